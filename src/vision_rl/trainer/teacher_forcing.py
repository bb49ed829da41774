"""The log-probabilities of given completions, by one pass that reads them: each image encoded once, nothing in vain."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from vision_rl.models.lengths import num_positions
from vision_rl.models.log_prob_head import FusedHead, WeightedTokens, can_be_fused, weigh_logits
from vision_rl.models.served import token_inputs
from vision_rl.models.special_ids import special_ids
from vision_rl.models.token_draw import policy_logits
from vision_rl.models.unwrapping import evaluation_mode, is_served
from vision_rl.trainer.losses import mle_loss


if TYPE_CHECKING:
    from vision_rl.trainer.reward_trainer import VisionRewardTrainer
    from vision_rl.trainer.vision_trainer import VisionTrainer

Reweigh = Callable[[torch.Tensor], torch.Tensor]  # log-probabilities (E,) of tokens to their weights (E,)


@dataclass
class Reading:
    """The result of a pass over completions, for `E` of their tokens.

    Args:
        loss: the sum of `tokens.weights` times log-probability, with gradient.
        tokens: with the weights that the loss has.
        logps: `(E,)`, over the whole vocabulary, without gradient.
        logits: `(R, T, V)`, those of the policy, with gradient; only where they were asked for.
    """

    loss: torch.Tensor
    tokens: WeightedTokens
    logps: torch.Tensor
    logits: torch.Tensor | None = None


class TeacherForcing:
    """Reads completions again for the log-probabilities of chosen tokens, as the policy that samples says them.

    Args:
        trainer: whose model it is, with its temperature.
    """

    def __init__(self, trainer: "VisionRewardTrainer"):
        self.trainer = trainer
        self.fuses_head: bool | None = None  # found out at the first pass

    def __call__(
        self,
        model: nn.Module,
        images: dict[str, torch.Tensor],
        completion_ids: torch.Tensor,
        tokens: WeightedTokens,
        reweigh: Reweigh | None = None,
        with_logits: bool = False,
    ) -> Reading:
        """One pass over `completion_ids (B, L, T)` about B `images`.

        Args:
            tokens: of the `B*L` completions.
            reweigh: gives the tokens their weights, where these depend on the log-probabilities: constants all the same.
            with_logits: the logits of everything are wanted too; the head then does not form the loss.
        """
        policy = self.trainer.unwrap(model)
        special = special_ids(policy)
        if not is_served(policy):
            images = {name: value.repeat_interleave(completion_ids.shape[1], dim=0) for name, value in images.items()}
        completion_ids = completion_ids.flatten(0, 1)  # (B*L, T)
        decoder_input_ids = F.pad(completion_ids[:, :-1], (1, 0), value=special.decoder_start)
        inputs = {**self.trainer.model_inputs(images), **token_inputs(policy, decoder_input_ids)}
        if self.fuses_head is None:
            self.fuses_head = can_fuse_head(self.trainer, policy, images)
        if self.fuses_head and not with_logits:
            head = FusedHead(policy.get_output_embeddings(), self.trainer.temperature, special.suppressed)
            with head.loss_of(tokens, reweigh):
                loss = model(**inputs).logits
            return Reading(loss, head.tokens, head.logps)
        logits = policy_logits(model(**inputs).logits, self.trainer.temperature, special.suppressed)
        if reweigh is not None:
            with torch.no_grad():
                tokens = replace(tokens, weights=reweigh(weigh_logits(logits, tokens)[1]))
        loss, logps = weigh_logits(logits, tokens)
        return Reading(loss, tokens, logps, logits if with_logits else None)


def can_fuse_head(trainer: "VisionTrainer", policy: Any, images: dict[str, torch.Tensor]) -> bool:
    """Whether the model's head may form the loss; that of a compiled model may not, nor that of a scaled loss (fp16)."""
    if trainer.args.torch_compile or trainer.args.fp16 or not is_served(policy):
        return False
    inputs = trainer.model_inputs({name: value[:1] for name, value in images.items()})
    device = next(iter(images.values())).device
    start = torch.full((1, 1), special_ids(policy).decoder_start, device=device)
    with evaluation_mode(policy), trainer.accelerator.autocast():
        return can_be_fused(policy, {**inputs, **token_inputs(policy, start)})


def without_idle_images(
    images: dict[str, torch.Tensor], completion_ids: torch.Tensor, tokens: WeightedTokens
) -> tuple[dict[str, torch.Tensor], torch.Tensor, WeightedTokens]:
    """Drop images without a token to learn, and positions behind the last such token: the gradient stays the same.

    `completion_ids (B, L, T)` become `(B', L, T')`; the order of the tokens stays, their rows are numbered anew.
    """
    completion_ids = completion_ids[:, :, : int(tokens.positions.max()) + 1]
    num_images, times = completion_ids.shape[:2]
    learning = (tokens.rows // times).unique()  # (B',)
    if len(learning) == num_images:
        return images, completion_ids, tokens
    rows = torch.arange(num_images * times, device=learning.device).view(num_images, times)[learning]
    images = {name: value.index_select(0, learning) for name, value in images.items()}
    return images, completion_ids[learning], tokens.of_rows(rows.flatten())


def read_labels(policy: Any, model: nn.Module, images: dict[str, Any], batch: dict) -> Any:
    """The outputs of `model`, whose logits `(B, T, V)` say each label from those before it.

    Args:
        policy: the transformers model inside of `model`. images: as the model takes them.
        batch: with `labels (B, T)`, -100 behind their end.

    Raises:
        ValueError: for labels that have more tokens than the decoder has positions.
    """
    labels, ids, positions = batch["labels"], special_ids(policy), num_positions(policy)
    if positions is not None and labels.shape[1] > positions:
        row = batch["row_index"][(labels != -100).sum(1).argmax()].item()
        raise ValueError(
            f"Row {row} has labels of {labels.shape[1]} tokens, but the decoder has only {positions} positions: "
            "shorten them, or build the decoder with a larger max_position_embeddings."
        )
    before = F.pad(labels[:, :-1], (1, 0), value=ids.decoder_start)
    decoder_input_ids = before.masked_fill(before == -100, ids.pad)
    return model(**images, **token_inputs(policy, decoder_input_ids))


def label_loss(policy: Any, model: nn.Module, images: dict[str, Any], batch: dict) -> torch.Tensor:
    """Return the loss of MLE pretraining for the labels of a batch: `(B, T)`, 0 behind their end."""
    outputs = read_labels(policy, model, images, batch)
    return mle_loss(outputs.logits, batch["labels"], label_weights=batch.get("label_weights"))


def label_weights(batch: dict) -> torch.Tensor:
    """The weight of each label in the mean, `(B, T)`; 0 for labels of -100."""
    learned = (batch["labels"] != -100).float()
    return learned * batch["label_weights"] if "label_weights" in batch else learned
