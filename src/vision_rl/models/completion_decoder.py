"""Networks that turn completions into objects where the processor alone cannot, and that may also make labels."""

from typing import Any

from torch import Tensor, nn

from vision_rl.processing import DenseProcessor, VisionProcessor


class CompletionDecoder(nn.Module):
    """A `completion_decoder` that also makes the labels of MLE pretraining, such as `UViMDecoder`.

    A completion decoder that makes no labels may be any `nn.Module` with the same `forward`.
    """

    processor: DenseProcessor  # its `dense` turns the rows into the `targets` that `labels` reads

    def forward(self, completion_ids: Tensor, batch: dict[str, Any]) -> list:
        """Turn tokens `(B, G, T)` of the batch's images into `B*G` objects, the G objects of an image adjacent."""
        raise NotImplementedError

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """Return the labels `(B, T)` of a batch with `pixel_values` and dense `targets`."""
        raise NotImplementedError

    def check(self, processor: VisionProcessor, max_completion_length: int) -> None:
        """Raise `ValueError` if the model's processor or the length of its completions does not fit this network."""
        raise NotImplementedError


def check_completion_decoder(decoder: Any, processor: VisionProcessor, max_completion_length: int) -> None:
    """Check that `decoder` is None or a module, and call its `check` if it is a `CompletionDecoder`.

    Raises:
        TypeError: if it is neither None nor an `nn.Module`.
        ValueError: if it does not fit the model's processor or the length of the completions.
    """
    if decoder is not None and not isinstance(decoder, nn.Module):
        raise TypeError(
            f"completion_decoder is a {type(decoder).__name__}; it must be an nn.Module, which is "
            "moved to the device and saved. A plain function belongs in the processor's batch_decode."
        )
    if isinstance(decoder, CompletionDecoder):
        decoder.check(processor, max_completion_length)
