"""The result of sampling: the ids of completions, their mask and their log-probabilities."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SampledCompletions:
    """G completions of each image. The mask is 1 up to and including the end token; later ids are the pad.

    An instance unpacks into its first three fields: `completion_ids, completion_mask, per_token_logps = sample(...)`.
    """

    completion_ids: torch.Tensor  # (B, G, T) int64
    completion_mask: torch.Tensor  # (B, G, T) int64
    per_token_logps: torch.Tensor  # (B, G, T) float32, 0 behind the end token
    watched_logps: torch.Tensor | None = None  # (B, G, T, C) float32, of the C `watched_ids`, 0 behind the end token

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.completion_ids, self.completion_mask, self.per_token_logps))

    def first(self, count: int) -> "SampledCompletions":
        """Return the first `count` completions of each image."""
        watched = None if self.watched_logps is None else self.watched_logps[:, :count]
        ids, mask, logps = (field[:, :count] for field in self)
        return SampledCompletions(ids, mask, logps, watched)


def mask_to_the_end(completion_ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return a mask `(rows, T)` that is 1 up to and including the first id of a row that is in `ends (E,)`."""
    ended = torch.isin(completion_ids, ends)
    return (ended.cumsum(-1) - ended.long() == 0).long()
