"""The processors of Pix2Struct, Florence-2 and BLIP in the form that the trainers use.

Florence-2 always reads a prompt beside the image ("<CAPTION>", "<OD>"), Pix2Struct one that is drawn above it where its
image processor is for questions (`is_vqa`). It stands in the column `prompt`, as in TRL.
"""

import copy
from typing import Any

from torch import Tensor
from transformers import BatchFeature, BlipProcessor, Florence2Processor, Pix2StructProcessor

from vision_rl.arguments import check_rows, naming_arguments
from vision_rl.pictures import as_images
from vision_rl.processing import TextProcessor, check_return_tensors, checked_text


class ReadingProcessor(TextProcessor):
    """A `TextProcessor` whose images are read by a processor of transformers as a whole, perhaps with a prompt.

    Args:
        image_processor, tokenizer: the two of the model's own processor.
        decoder_start_token_id: the model's.
        reads: that processor.
    """

    def __init__(self, image_processor, tokenizer, decoder_start_token_id: int | None = None, reads: Any = None):
        super().__init__(image_processor, tokenizer, decoder_start_token_id)
        self.reads = reads

    @classmethod
    def of(cls, reads: Any, decoder_start_token_id: int | None) -> "ReadingProcessor":
        return cls(reads.image_processor, reads.tokenizer, decoder_start_token_id, reads)

    @naming_arguments
    def __call__(self, images, seeds=None, prompt=None, text=None, return_tensors: str | None = "pt") -> BatchFeature:  # type: ignore[override]
        check_return_tensors(return_tensors)
        prompt = [prompt] if isinstance(prompt, str) else prompt
        text = [text] if isinstance(text, str) else text
        pictures = as_images(images)
        for name, rows in (("prompt", prompt), ("text", text)):
            if rows is not None:
                check_rows(images=pictures, **{name: rows})
        if prompt and "prompt" not in self.input_columns:
            raise ValueError(
                "This model reads no prompt beside the image, so `prompt` would have no effect: leave it out."
            )
        prompts = [checked_text(each, "prompt") for each in prompt or ()]
        batch: dict[str, Tensor] = self.read(pictures, prompts)
        if text is not None:
            batch["labels"] = self._labels(list(text))
        return BatchFeature(batch)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save the model's own processor, which the trainers wrap again."""
        return self.reads.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def read(self, images: list, prompts: list[str]) -> dict[str, Tensor]:
        """What the encoder reads of `B` images, `pixel_values` first."""
        raise NotImplementedError


class PatchProcessor(ReadingProcessor):
    """Pix2Struct's: `pixel_values (B, N, 2 + pixels)` are its flattened patches, each with its row and column in front."""

    @property
    def input_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("prompt",) if self.image_processor.is_vqa else ()

    def read(self, images, prompts):
        header = {"header_text": prompts} if prompts else {}
        return {"pixel_values": self.image_processor(images, return_tensors="pt", **header)["flattened_patches"]}


class Florence2TextProcessor(ReadingProcessor):
    """Florence-2's: `prompt_ids (B, P)` beside `pixel_values (B, C, H, W)`, with a place for each token of the image."""

    input_columns = ("prompt",)

    def read(self, images, prompts):
        inputs = self.reads(images=images, text=prompts, padding=True, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"], "prompt_ids": inputs["input_ids"]}


def reading_processor(processing_class: Any, decoder_start_token_id: int | None) -> Any:
    """The processor of one of these models in the trainers' form; any other as it is."""
    match processing_class:
        case Pix2StructProcessor():
            return PatchProcessor.of(processing_class, decoder_start_token_id)
        case Florence2Processor():
            return Florence2TextProcessor.of(processing_class, decoder_start_token_id)
        case BlipProcessor() if processing_class.tokenizer.eos_token is None:
            tokenizer = copy.deepcopy(
                processing_class.tokenizer
            )  # a BERT's, which calls the end of a text its separator
            tokenizer.eos_token = tokenizer.sep_token
            return TextProcessor(processing_class.image_processor, tokenizer, decoder_start_token_id)
        case _:
            return processing_class
