"""The clipped ratio of a rollout that is learned from more than once (PPO; TRL's RLOO and GRPO). Pure functions."""

from dataclasses import dataclass
from typing import Literal

import torch

from vision_rl.models.log_prob_head import WeightedTokens


@dataclass(frozen=True)
class ClippedRatio:
    """How far the policy may go from the one that sampled before a completion, or a token, stops pulling.

    Args:
        epsilon, epsilon_high: the ratio of probabilities may fall to `1 - epsilon` and rise to `1 + epsilon_high`.
        level: the ratio of whole `"sequence"`s, as in TRL's RLOO, or of each `"token"`.
    """

    epsilon: float
    epsilon_high: float
    level: Literal["sequence", "token"]

    def ratios(self, tokens: WeightedTokens, logps: torch.Tensor, sampled_logps: torch.Tensor) -> torch.Tensor:
        """The ratio `(E,)` of each token's probability now to its probability when it was sampled, or of its whole sequence's.

        Args:
            tokens: all of the sequences that learn, where the level is theirs.
            logps: `(E,)`, now. sampled_logps: `(E,)`, the sampler's.
        """
        differences = logps - sampled_logps
        if self.level == "sequence" and len(differences):
            of_rows = differences.new_zeros(int(tokens.rows.max()) + 1).index_add_(0, tokens.rows, differences)
            differences = of_rows[tokens.rows]
        return differences.exp()

    def stopped(self, tokens: WeightedTokens, ratios: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens have no gradient any more `(E,)`: pushed down and low enough, and pushed up and high enough.

        A token's weight is minus its advantage.
        """
        low = (ratios < 1 - self.epsilon) & (tokens.weights > 0)
        high = (ratios > 1 + self.epsilon_high) & (tokens.weights < 0)
        return low, high

    def weights(self, tokens: WeightedTokens, ratios: torch.Tensor) -> torch.Tensor:
        """The weights `(E,)` with which log-probabilities have the gradient of `-min(ratio * A, clip(ratio) * A)`.

        At a ratio of 1 these are the weights of `tokens` themselves.
        """
        low, high = self.stopped(tokens, ratios)
        return (tokens.weights * ratios).masked_fill(low | high, 0.0)
