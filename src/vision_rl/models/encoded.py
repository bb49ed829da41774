"""Data sets with the output of a frozen encoder, which is computed once and then read in every epoch."""

import torch
from torch.utils.data import Dataset
from transformers import VisionEncoderDecoderModel

from vision_rl.models.unwrapping import evaluation_mode
from vision_rl.pictures import rgb_image
from vision_rl.processing import VisionProcessor


class EncodedDataset(Dataset):
    """The rows of `dataset` with a further column `encoder_outputs (N, d)`, so that a trainer skips the encoder.

    The class serves to train a decoder on a frozen encoder, for example without a GPU: the encoder does most of the
    work of a training step. The images are still read, because the processor needs their sizes and a reward may need
    the images.

    Args:
        dataset: a map-style data set of rows with an image.
        model: the model, whose encoder must be frozen: `model.encoder.requires_grad_(False)`.
        processor: makes the `pixel_values`.
        image_column: name of the column with the image.
        batch_size: number of images that are encoded at once.
        dtype: dtype of the stored outputs, `N * d` numbers an image: 0.2 MB for a ViT-S at 224 pixels in float16.

    Raises:
        TypeError: for a model that is no `VisionEncoderDecoderModel`.
        ValueError: for an encoder with parameters that are trained.
    """

    def __init__(
        self,
        dataset,
        model: VisionEncoderDecoderModel,
        processor: VisionProcessor,
        image_column: str = "image",
        batch_size: int = 16,
        dtype: torch.dtype = torch.float16,
    ):
        if not isinstance(model, VisionEncoderDecoderModel):
            raise TypeError(
                f"An EncodedDataset holds the outputs of a VisionEncoderDecoderModel's encoder, but this model is a "
                f"{type(model).__name__}: give the trainer the data set itself."
            )
        if any(parameter.requires_grad for parameter in model.encoder.parameters()):
            raise ValueError(
                "The encoder still learns, so its present outputs would soon be out of date: freeze it with "
                "model.encoder.requires_grad_(False)."
            )
        self.dataset = dataset
        encoded = []
        with torch.no_grad(), evaluation_mode(model):
            for start in range(0, len(dataset), batch_size):
                rows = range(start, min(start + batch_size, len(dataset)))
                images = [rgb_image(dataset[row][image_column], row) for row in rows]
                pixel_values = processor(images=images)["pixel_values"].to(model.device)
                hidden = model.encoder(pixel_values=pixel_values, return_dict=True).last_hidden_state
                encoded.append(hidden.to("cpu", dtype))
        self.encoder_outputs = torch.cat(encoded)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return {**self.dataset[index], "encoder_outputs": self.encoder_outputs[index].float()}
