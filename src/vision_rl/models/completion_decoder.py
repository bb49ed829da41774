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


def check_completion_decoder(decoder: Any, processor: VisionProcessor, max_completion_length: int) -> None:
    """It is a module, if there is one, and fits the model's processor and what it writes, if it says so."""
    if decoder is not None and not isinstance(decoder, nn.Module):
        raise TypeError(
            f"completion_decoder is a {type(decoder).__name__}; it must be an nn.Module, which is "
            "moved to the device and saved. A function belongs into the processor's batch_decode."
        )
    if isinstance(decoder, CompletionDecoder):
        decoder.check(processor, max_completion_length)
