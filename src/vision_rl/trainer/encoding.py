"""Images that are encoded once an update step, for sampling and for learning."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from vision_rl.models.unwrapping import evaluation_mode


def images_of(batch: dict) -> dict[str, torch.Tensor]:
    """The images of a batch alone: pixels, or what a frozen encoder has made of them in the data set."""
    name = "encoder_outputs" if "encoder_outputs" in batch else "pixel_values"
    return {name: batch[name]}


class SharedEncoding:
    """What the encoder said of images when they were sampled, with its graph, for the learning pass to go on from.

    It is found by the very tensor of pixels: who passes other pixels has those encoded.

    Args:
        autocast: the context in which the trainer runs the model.
    """

    def __init__(self, autocast: Callable[[], AbstractContextManager]):
        self._autocast = autocast
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, policy, pixel_values: torch.Tensor, to_learn: bool) -> torch.Tensor:
        """`(B, N, d)`, with gradient if it is `to_learn`; kept until it is forgotten."""
        encoded = self._of(pixel_values)
        if encoded is not None:
            return encoded
        # A context of its own: autocast keeps the weights it has cast, and those cast without gradient have none later.
        with self._autocast():
            if to_learn:
                encoded = policy.encoder(pixel_values=pixel_values, return_dict=True).last_hidden_state
            else:
                with evaluation_mode(policy), torch.no_grad():
                    encoded = policy.encoder(pixel_values=pixel_values, return_dict=True).last_hidden_state
        self._kept.append((pixel_values, encoded))
        return encoded

    def join(self, pixel_values: torch.Tensor, parts: list[torch.Tensor]) -> None:
        """`pixel_values` were encoded in `parts`."""
        encoded = [self._of(part) for part in parts]
        if len(parts) > 1 and all(one is not None for one in encoded):
            self._kept.append((pixel_values, torch.cat(encoded)))  # type: ignore[arg-type]

    def images_of(self, batch: dict) -> dict[str, torch.Tensor]:
        """The images of a batch alone: their encoding, where the batch or this object has it, else pixels."""
        encoded = None if "encoder_outputs" in batch else self._of(batch["pixel_values"])
        return images_of(batch) if encoded is None else {"encoder_outputs": encoded}

    def forget(self) -> None:
        self._kept.clear()

    def _of(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        return next((encoded for pixels, encoded in self._kept if pixels is pixel_values), None)
