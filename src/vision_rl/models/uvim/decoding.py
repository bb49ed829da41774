"""Stage I beside stage II: it makes the labels that stage II learns, and what people see of the codes it samples."""

from typing import Any

import torch
from torch import Tensor, nn

from vision_rl.models.uvim.modeling import UViMModel
from vision_rl.processing import DenseProcessor


class UViMDecoder(nn.Module):
    """The `completion_decoder` of a model that writes stage I codes: a frozen stage I network and a processor.

    Token = code + 1; token 0 starts the decoder and is no code. Let the model not write it:
    `model.generation_config.suppress_tokens = [0]`. The reference lets it through, as the last code.

    Args:
        stage1: trained; the trainer saves it beside the model, in `stage1/`.
        processor: its `from_dense` makes maps or pictures of stage I's outputs.
        batch_size: images that are decoded at once; the logits of a panoptic image at 512 x 512 are a quarter of a
            gigabyte.
    """

    def __init__(self, stage1: UViMModel, processor: DenseProcessor, batch_size: int = 16):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        self.stage1 = stage1.requires_grad_(False).eval()
        self.processor, self.batch_size = processor, batch_size

    @torch.no_grad()
    def forward(self, completion_ids: Tensor, batch: dict[str, Any]) -> list:
        """Tokens `(B, G, L)` of the batch's images to B*G objects, the G of each image next to each other."""
        num_images, num_generations, _ = completion_ids.shape
        codes = completion_ids.flatten(0, 1) - 1  # (B*G, L)
        image = torch.arange(num_images, device=codes.device).repeat_interleave(num_generations)
        objects = []
        for rows in torch.arange(len(codes), device=codes.device).split(self.batch_size):
            pixel_values = batch["pixel_values"][image[rows]]
            objects += self.processor.from_dense(self.stage1.decode(codes[rows], pixel_values), pixel_values)
        return objects

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The tokens `(B, L)` of a batch with `pixel_values` and dense `targets`."""
        return self.stage1.encode(batch["targets"], batch["pixel_values"]) + 1
