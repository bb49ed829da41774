"""Images that are encoded once an update step, for sampling and for learning."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from vision_rl.models.served import ENCODED, IMAGES, encode
from vision_rl.models.unwrapping import evaluation_mode


def images_of(batch: dict) -> dict[str, torch.Tensor]:
    """The images of a batch alone: pixels and prompts, or what an encoder has made of them."""
    names = ENCODED if "encoder_outputs" in batch else IMAGES
    return {name: batch[name] for name in names if name in batch}


class SharedEncoding:
    """What the encoder said of images when they were sampled, with its graph, for the learning pass to go on from.

    It is found by the very tensor of pixels: who passes other pixels has those encoded.

    Args:
        autocast: the context in which the trainer runs the model.
    """

    def __init__(self, autocast: Callable[[], AbstractContextManager]):
        self._autocast = autocast
        self._kept: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []

    def __call__(self, policy, batch: dict, to_learn: bool) -> dict[str, torch.Tensor]:
        """`encoder_outputs (B, N, d)`, with gradient if they are `to_learn`, and their mask; kept until forgotten."""
        encoded = self._of(batch["pixel_values"])
        if encoded is not None:
            return encoded
        # A context of its own: autocast keeps the weights it has cast, and those cast without gradient have none later.
        with self._autocast():
            if to_learn:
                encoded = encode(policy, images_of(batch))
            else:
                with evaluation_mode(policy), torch.no_grad():
                    encoded = encode(policy, images_of(batch))
        self._kept.append((batch["pixel_values"], encoded))
        return encoded

    def join(self, pixel_values: torch.Tensor, parts: list[torch.Tensor]) -> None:
        """Remember that `pixel_values` were encoded in `parts`."""
        encoded = [self._of(part) for part in parts]
        if len(parts) > 1 and all(one is not None for one in encoded):
            joined = {name: torch.cat([one[name] for one in encoded]) for name in encoded[0]}  # type: ignore[index, union-attr]
            self._kept.append((pixel_values, joined))

    def images_of(self, batch: dict) -> dict[str, torch.Tensor]:
        """The images of a batch alone: their encoding, where the batch or this object has it, else pixels."""
        encoded = None if "encoder_outputs" in batch else self._of(batch["pixel_values"])
        return images_of(batch) if encoded is None else encoded

    def forget(self) -> None:
        self._kept.clear()

    def _of(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor] | None:
        return next((encoded for pixels, encoded in self._kept if pixels is pixel_values), None)
