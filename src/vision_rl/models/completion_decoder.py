"""What makes objects of completions where the processor alone cannot: a network, or one that also writes labels."""

from typing import Any

from torch import Tensor, nn

from vision_rl.processing import DenseProcessor, VisionProcessor


class CompletionDecoder(nn.Module):
    """A `completion_decoder` that also makes the labels of MLE pretraining, such as `UViMDecoder`.

    One that only decodes may be any `nn.Module` with this `forward`.
    """

    processor: DenseProcessor  # its `dense` makes of the rows what `labels` reads

    def forward(self, completion_ids: Tensor, batch: dict[str, Any]) -> list:
        """Tokens `(B, G, T)` of the batch's images to `B*G` objects, the G of each image next to each other."""
        raise NotImplementedError

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The labels `(B, T)` of a batch with `pixel_values` and dense `targets`."""
        raise NotImplementedError

    def check(self, processor: VisionProcessor, max_completion_length: int) -> None:
        """Raises `ValueError` where the model's processor and what it writes do not fit this network."""
        raise NotImplementedError
