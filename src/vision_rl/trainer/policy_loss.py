"""The loss of sampled completions: REINFORCE, token targets, the clipped ratio, and what the log says of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from vision_rl.models.completions import SampledCompletions
from vision_rl.models.log_prob_head import WeightedTokens
from vision_rl.models.special_ids import special_ids
from vision_rl.rewards import TokenTargets
from vision_rl.trainer.clipping import ClippedRatio
from vision_rl.trainer.losses import reinforce_weights, token_target_weights
from vision_rl.trainer.metrics import ended
from vision_rl.trainer.teacher_forcing import TeacherForcing, without_idle_images


if TYPE_CHECKING:
    from vision_rl.trainer.reward_trainer import VisionRewardTrainer


@dataclass
class LearnedTokens:
    """The tokens of `R` completions that are learned.

    Args:
        tokens: the first `num_policy` are sampled ones, weighted by minus their advantage; the others are candidates of
            token targets.
        num_policy: how many are the policy's.
        sampled_logps: `(num_policy,)`, the sampler's log-probabilities of those.
        ratio: of a policy that has moved since it sampled.
    """

    tokens: WeightedTokens
    num_policy: int
    sampled_logps: torch.Tensor
    ratio: ClippedRatio | None

    @staticmethod
    def of(
        policy: WeightedTokens,
        sampled_logps: torch.Tensor,
        targets: Sequence[WeightedTokens],
        ratio: ClippedRatio | None = None,
    ) -> "LearnedTokens":
        """Select the tokens whose weight is not 0. If all are 0, one token is kept, since every step needs a backward pass.

        `policy` has all sampled tokens, `sampled_logps` is `(R, T)`.
        """
        learns = policy.weights != 0
        if ratio is not None and ratio.level == "sequence":  # a sequence's ratio is that of all of its tokens
            learns = torch.isin(policy.rows, policy.rows[learns])
        kept = policy[learns]
        tokens = kept
        for each in targets:
            if len(each.rows):
                tokens = tokens + each.nonzero()
        if not len(tokens.rows):
            tokens = kept = policy[:1]
        return LearnedTokens(tokens, len(kept.rows), sampled_logps[kept.rows, kept.positions], ratio)

    @property
    def policy(self) -> WeightedTokens:
        return self.tokens[: self.num_policy]

    def clipped(self, logps: torch.Tensor) -> torch.Tensor:
        """The weights `(E,)` of all tokens, given their log-probabilities `logps (E,)` by the policy as it is now."""
        assert self.ratio is not None
        ratios = self.ratio.ratios(self.policy, logps[: self.num_policy], self.sampled_logps)
        return torch.cat([self.ratio.weights(self.policy, ratios), self.tokens.weights[self.num_policy :]])


@dataclass
class CompletionLoss:
    """What one micro-batch learns, as sums.

    Args:
        loss: with gradient: of the policy and of token targets.
        of_policy: of it the policy's, without gradient.
        entropies: `(R,)`, of each completion the mean of its tokens', with gradient, if they were asked for.
        differences: `(2,)`, the largest between a token's log-probability when sampled and when learned, and the largest of
            a ratio from 1; NaN where the policy has moved since.
        stopped: `(3,)`, how many sequences or tokens pull no more, low ones and high ones, and of how many.
    """

    loss: torch.Tensor
    of_policy: torch.Tensor
    entropies: torch.Tensor | None
    differences: torch.Tensor
    stopped: torch.Tensor

    def record(self, scaled: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """One row `(1, 7)` for `StepLog`; `scaled` maps a sum of losses to the loss that is logged."""
        losses = torch.stack([scaled(self.of_policy), scaled(self.loss.detach() - self.of_policy)])
        return torch.cat([losses.double(), self.differences.double(), self.stopped.double()])[None]


@dataclass(frozen=True)
class PolicyLoss:
    """Makes a micro-batch's loss by one teacher-forced pass over its completions.

    Args:
        read: makes the pass.
        ratio: how far the policy may go from the one that sampled, where it is not that one any more.
        num_generations: G.
        length: most tokens of a completion; `TokenTargets.weight` is stated for the mean over all positions.
        ends: the end tokens without which a completion does not learn; `None`: all do.
        with_entropy: whether the entropy of all tokens is wanted; the head then cannot form the loss itself.
    """

    read: TeacherForcing
    ratio: ClippedRatio
    num_generations: int
    length: int
    ends: list[int] | None = None
    with_entropy: bool = False

    @staticmethod
    def of(trainer: "VisionRewardTrainer") -> "PolicyLoss":
        """Make the loss that the trainer's options describe."""
        args = trainer.args
        high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        ends = special_ids(trainer.unwrap(trainer.model)).ends if args.mask_truncated_completions else None
        ratio = ClippedRatio(args.epsilon, high, args.importance_sampling_level)
        length, with_entropy = trainer.max_completion_length, args.entropy_coef > 0
        return PolicyLoss(trainer.read_completions, ratio, args.num_generations, length, ends, with_entropy)

    def __call__(
        self,
        model: nn.Module,
        images: dict[str, torch.Tensor],
        completions: SampledCompletions,
        advantages: torch.Tensor,
        token_targets: Sequence[TokenTargets],
        has_moved: bool,
    ) -> CompletionLoss:
        """Compute the loss of the first L completions of each image.

        Args:
            model: as it is trained. images: as it is given them.
            completions: `(B, L, T)`. advantages: `(B, L)` or `(B, L, T)`.
            token_targets: of all `B*G` completions.
            has_moved: whether the policy is another than the one that sampled.
        """
        ids, mask, sampled_logps = (field.flatten(0, 1) for field in completions)  # (B*L, T)
        learns = torch.ones_like(ids[:, 0], dtype=torch.bool) if self.ends is None else ended(ids, mask, self.ends)
        advantages = advantages.flatten(0, 1)  # (B*L,) or (B*L, T)
        advantages = advantages * (learns if advantages.ndim == 1 else learns[:, None])
        targets = self._targets(token_targets, learns.view(completions.completion_ids.shape[:2]))
        policy, ratio = reinforce_weights(ids, mask, advantages), self.ratio if has_moved else None
        learned = LearnedTokens.of(policy, sampled_logps, targets, ratio)
        kept = images, completions.completion_ids, learned.tokens
        if not self.with_entropy:  # in which every token has a part
            kept = without_idle_images(*kept)
        reading = self.read(model, *kept, learned.clipped if has_moved else None, self.with_entropy)
        entropies = None
        if reading.logits is not None:
            entropies = (token_entropies(reading.logits) * mask).sum(-1) / mask.sum(-1)
        num, logps = learned.num_policy, reading.logps[: learned.num_policy]
        of_policy = (reading.tokens.weights[:num] * logps).sum()
        ratios = self.ratio.ratios(learned.policy, logps, learned.sampled_logps)
        differences = torch.stack([logps - learned.sampled_logps, ratios - 1]).abs()  # (2, num)
        largest = differences.amax(1) if num else differences.new_zeros(2)
        if has_moved:
            largest = torch.full_like(largest, float("nan"))
        return CompletionLoss(reading.loss, of_policy, entropies, largest, self._stopped(learned, ratios, mask))

    def _stopped(self, learned: LearnedTokens, ratios: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Count the sequences or tokens whose gradient the clipping stops: `(3,)`, from below, from above, and of how many."""
        low, high = self.ratio.stopped(learned.policy, ratios)
        if learned.ratio is None:
            low, high = torch.zeros_like(low), torch.zeros_like(high)
        if self.ratio.level == "token":
            return torch.stack([low.sum(), high.sum(), mask.sum()])
        rows = learned.policy.rows
        return torch.tensor([len(rows[low].unique()), len(rows[high].unique()), len(mask)], device=mask.device)

    def _targets(self, token_targets: Sequence[TokenTargets], learns: torch.Tensor) -> list[WeightedTokens]:
        """Turn token targets into token weights, for the completions that learn: `learns (B, L)`."""
        count, weighted = learns.shape[1], []
        for each in token_targets:
            each = each.to(learns.device)
            rows, positions = each.positions.unbind(1)
            image, sample = rows // self.num_generations, rows % self.num_generations
            chosen = (sample < count) & learns[image, sample.clamp(max=count - 1)]
            moved = replace(each, positions=torch.stack([image * count + sample, positions], dim=1))
            weighted.append(token_target_weights(moved.select(chosen), each.weight * self.length))
        return weighted


def token_entropies(logits: torch.Tensor) -> torch.Tensor:
    """The entropy `(R, T)` in nats of `logits (R, T, V)`, in which forbidden ids are -inf."""
    logps = logits.log_softmax(-1)
    return -(logps.exp() * logps.masked_fill(logps == float("-inf"), 0.0)).sum(-1)
