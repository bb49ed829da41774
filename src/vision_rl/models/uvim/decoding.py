"""Stage I as the companion of stage II: it makes the labels of stage II, and turns sampled codes into objects."""

from typing import Any

import torch
from torch import Tensor

from vision_rl.arguments import naming_arguments
from vision_rl.models.completion_decoder import CompletionDecoder
from vision_rl.models.uvim.configuration import UViMConfig
from vision_rl.models.uvim.modeling import UViMModel
from vision_rl.processing import DenseProcessor, VisionProcessor


class UViMDecoder(CompletionDecoder):
    """The `completion_decoder` of a model that writes stage I codes: a frozen stage I network and a processor.

    Token `c + 1` is code `c`; token 0 starts the decoder and is no code. Forbid the model to write token 0 by
    `model.generation_config.suppress_tokens = [0]`. The reference allows token 0, and decodes it as the last code.

    Args:
        stage1: the trained network; the trainer saves it beside the model, in `stage1/`.
        processor: its `from_dense` makes maps or pictures of stage I's outputs.
        batch_size: number of completions that are decoded at once; the logits of a panoptic image of 512 x 512 pixels
            are a quarter of a gigabyte.

    Raises:
        ValueError: for a `batch_size` below 1.
    """

    def __init__(self, stage1: UViMModel, processor: DenseProcessor, batch_size: int = 16):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive; it is {batch_size}.")
        self.stage1 = stage1.requires_grad_(False).eval()
        self.processor, self.batch_size = processor, batch_size

    @naming_arguments
    @torch.no_grad()
    def forward(self, completion_ids: Tensor, batch: dict[str, Any]) -> list:
        """Turn tokens `(B, G, L)` of the batch's images into B*G objects, the G objects of an image adjacent."""
        num_images, num_generations, _ = completion_ids.shape
        if len(batch["pixel_values"]) != num_images:
            raise ValueError(
                f"completion_ids are of {num_images} images, but pixel_values are of {len(batch['pixel_values'])}: pass both "
                "for the same images."
            )
        codes = completion_ids.flatten(0, 1) - 1  # (B*G, L)
        image = torch.arange(num_images, device=codes.device).repeat_interleave(num_generations)
        objects = []
        for rows in torch.arange(len(codes), device=codes.device).split(self.batch_size):
            pixel_values = batch["pixel_values"][image[rows]]
            objects += self.processor.from_dense(self.stage1.decode(codes[rows], pixel_values), pixel_values)
        return objects

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """Return the tokens `(B, L)` that stage II learns, of a batch with `pixel_values` and dense `targets`."""
        return self.stage1.encode(batch["targets"], batch["pixel_values"]) + 1

    def check(self, processor: VisionProcessor, max_completion_length: int) -> None:
        """Raise `ValueError` if the model's completions differ from stage I's codes in length or vocabulary."""
        stage1: UViMConfig = self.stage1.config
        if max_completion_length != stage1.code_length:
            raise ValueError(
                f"Stage I has {stage1.code_length} codes per image, but the model writes {max_completion_length}: leave out "
                f"max_completion_length, and give the processor code_len={stage1.code_length}."
            )
        if processor.vocab_size != stage1.codebook_size + 1:
            raise ValueError(
                f"Stage I has {stage1.codebook_size} different codes, but the processor has {(processor.vocab_size or 1) - 1}: "
                f"give the processor num_codes={stage1.codebook_size}."
            )
        check_stage1(stage1, self.processor)


def check_stage1(stage1: UViMConfig, processor: DenseProcessor) -> None:
    """Raise `ValueError` if stage I and its processor differ in number of codes, code length or outputs."""
    if processor.code_len != stage1.code_length:
        raise ValueError(
            f"Stage I has {stage1.code_length} codes per image (code_length), but the processor has {processor.code_len}: give "
            f"the processor code_len={stage1.code_length}."
        )
    if processor.num_codes != stage1.codebook_size:
        raise ValueError(
            f"Stage I has {stage1.codebook_size} different codes (codebook_size), but the processor has "
            f"{processor.num_codes}: give the processor num_codes={stage1.codebook_size}."
        )
    if processor.outputs is not None and processor.outputs != stage1.outputs:
        raise ValueError(
            f"Stage I has the outputs {stage1.outputs}, but {type(processor).__name__} makes targets for {processor.outputs}: "
            "build the model with UViMConfig(outputs=processor.outputs)."
        )
