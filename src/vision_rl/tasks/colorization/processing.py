"""Colour photos as grey ones with the colour to find: the processor of colorization (paper, section 4.3; UViM)."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BatchFeature

from vision_rl.arguments import check_rows, naming_arguments
from vision_rl.columns import sampled_rows
from vision_rl.pictures import as_images, random_box, rgb_image
from vision_rl.processing import DenseProcessor, check_return_tensors, whole_image_size
from vision_rl.tasks.colorization.lab import lab_to_rgb, rgb_to_lab


logger = logging.getLogger(__name__)

GREY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # of red, green, blue (op `rgb_to_grayscale_to_rgb` of the authors)
GREY_TOLERANCE = 8  # of 255: JPEG leaves up to 2 between the channels of grey photos, a faint tone more
SMALLEST_SIDE = 16  # pixels: one patch of the paper's encoder


class ColorizationProcessor(DenseProcessor):
    """Rows with `image`, a colour photo: the model is given it in grey and writes the codes of the colours.

    Colour is not predicted pixel by pixel. A network of its own, stage I of UViM, makes `code_len` codes of a colour image
    and its grey one, and a colour image of codes and grey image. The model here, stage II, writes the codes: a token is
    a code plus 1, since 0 starts the decoder, and there is no end token. The processor makes what both stages read, and
    pictures of what stage I gives back; ids become colours only with that network, as the trainers' `completion_decoder`.

    The photo is resized first and made grey then, as by the authors. The model sees grey in [-1, 1] in three channels, and
    stage I colour in [-1, 1], both x / 127.5 - 1.

    Args:
        image_processor: a transformers image processor; its `size` is the model's frame, to which photos are stretched.
        num_codes: the size of stage I's codebook. Paper: 4096.
        code_len: codes of an image. Paper: 256.
        keep_luminance: `to_images` takes the colour alone from the prediction, and the lightness from the grey photo, which
            keeps all of its detail. The authors replace both.
        flip: whether `dense` mirrors half of the photos, given seeds.
        crop_area: a range such as (0.05, 1.0): `dense` cuts out so large a part of the photo, given seeds, with a ratio
            of width to height in 0.75..1.33, as stage I is trained by the authors. `None` does not.
        antialias: resize as the image processor does. False: bilinear without antialiasing, rounded down, which is how
            the published models were trained and evaluated.

    Raises:
        ValueError: for options out of range; in use, for codes that do not fit.
    """

    regression = True
    pipeline_tag = "image-to-image"

    def __init__(
        self,
        image_processor,
        num_codes: int = 4096,
        code_len: int = 256,
        keep_luminance: bool = False,
        flip: bool = True,
        crop_area: tuple[float, float] | None = None,
        antialias: bool = True,
        **kwargs,
    ):
        super().__init__(image_processor, **kwargs)
        self.num_codes, self.code_len, self.keep_luminance = num_codes, code_len, keep_luminance
        self.flip, self.crop_area, self.antialias = flip, None if crop_area is None else list(crop_area), antialias
        if num_codes < 1 or code_len < 1:
            raise ValueError(f"num_codes and code_len must be positive; they are {num_codes} and {code_len}.")
        if crop_area is not None and not (len(crop_area) == 2 and 0 < crop_area[0] <= crop_area[1] <= 1):
            raise ValueError(f"crop_area must be a range of shares such as (0.05, 1.0); it is {crop_area}.")
        whole_image_size(image_processor, "colours")
        for name in ("image_mean", "image_std"):
            values = getattr(image_processor, name)
            if any(abs(value - 0.5) > 1e-6 for value in values):
                raise ValueError(
                    f"The image processor's {name} is {list(values)}, but stage I reads the same grey image as the model, "
                    "in [-1, 1]: set image_mean and image_std to [0.5, 0.5, 0.5]."
                )

    @property
    def outputs(self) -> dict[str, int]:
        return {"color": 3}

    @property
    def makes_references(self) -> bool:
        return True  # of the image itself

    # --- photos to model inputs -------------------------------------------------------------------------------------

    @naming_arguments
    def __call__(  # type: ignore[override]
        self, images, seeds=None, codes: Sequence[Sequence[int]] | None = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Make stage II's inputs: `pixel_values (B, 3, H, W)` and, given `codes` that count from 0, `labels (B, code_len)`.

        Photos are as they are, whatever the seeds: codes that were made before belong to the photo that is not mirrored.
        """
        check_return_tensors(return_tensors)
        pictures = as_images(images)
        batch = {"pixel_values": _grey_inputs(self._resized(pictures))}
        if codes is not None:
            check_rows(images=pictures, codes=codes)
            batch["labels"] = self.labels_of(codes)
        return BatchFeature(batch)

    @naming_arguments
    def dense(self, images: Sequence[Image.Image], seeds: Sequence[int] | None = None, **targets) -> BatchFeature:
        """Make stage I's inputs: grey photos and their colours, mirrored and cropped alike.

        Args:
            images: `B` RGB images.
            seeds: one integer a row, the source of its crop and flip; `None` does neither.

        Returns:
            `pixel_values (B, 3, H, W)`, grey, and `targets: {"color": (B, H, W, 3)}`, both in [-1, 1].
        """
        if seeds is not None:
            images = [self._augmented(image, seed) for image, seed in zip(images, seeds, strict=True)]
        color = self._resized(images)
        return BatchFeature({"pixel_values": _grey_inputs(color), "targets": {"color": color / 127.5 - 1}})

    def _augmented(self, image: Image.Image, seed: int) -> Image.Image:
        rng = np.random.default_rng(seed)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image if self.crop_area is None else image.crop(random_box(image.size, self.crop_area, rng))

    def _resized(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """The photos in the model's frame: uint8 `(B, H, W, 3)`."""
        if not self.antialias:
            size = self.image_processor.size
            return torch.stack(
                [resize_without_antialias(np.array(image), size["height"], size["width"]) for image in images]
            )
        resized = self.image_processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt")
        return resized["pixel_values"].movedim(1, -1).contiguous()

    @naming_arguments
    def get_references(self, rows: list[dict]) -> list[Image.Image]:
        """The photos in colour, in the model's frame."""
        return [Image.fromarray(pixels) for pixels in self._resized([row["image"] for row in rows]).numpy()]

    def check_dataset(self, dataset, columns: dict[str, str]) -> None:
        """Opens some photos: those that are grey already, or hardly have pixels, are counted and told."""
        images = [rgb_image(dataset[index][columns["image"]], index) for index in sampled_rows(dataset)]
        num_grey = sum(map(is_grey, images))
        if num_grey:
            logger.warning(
                "%d of %d photos that were looked at are grey: no channels of a pixel are more than %d of 255 apart. Stage I "
                "learns from them that photos stay grey; vision_rl.tasks.colorization.without_grey(dataset) drops them.",
                num_grey,
                len(images),
                GREY_TOLERANCE,
            )
        num_small = sum(min(image.size) < SMALLEST_SIDE for image in images)
        if num_small:
            logger.warning(
                "%d of %d photos that were looked at have a side of less than %d pixels.",
                num_small,
                len(images),
                SMALLEST_SIDE,
            )

    # --- what stage I gives back to pictures ------------------------------------------------------------------------

    @naming_arguments
    def to_images(self, color: torch.Tensor, grey: torch.Tensor | None = None) -> list[Image.Image]:
        """Pictures of predicted colours, clipped to what a picture can hold.

        Args:
            color: `(N, H, W, 3)`, about in [-1, 1].
            grey: `(N, 3, H, W)` in [-1, 1], the `pixel_values` of the photos, one for each prediction; needed with
                `keep_luminance`.
        """
        rgb = ((color.float() + 1) / 2).clamp(0, 1)
        if self.keep_luminance:
            if grey is None or grey.movedim(1, -1).shape != color.shape:
                shape = None if grey is None else tuple(grey.shape)
                raise ValueError(
                    f"keep_luminance takes the lightness from the grey photos: grey must be the pixel_values (N, 3, H, W) of "
                    f"the {len(color)} predictions {tuple(color.shape)}; its shape is {shape}."
                )
            lab = rgb_to_lab(rgb)
            lab[..., 0] = rgb_to_lab((grey.movedim(1, -1).float() + 1) / 2)[..., 0]
            rgb = lab_to_rgb(lab)
        return [Image.fromarray(pixels) for pixels in (rgb * 255).round().to(torch.uint8).cpu().numpy()]

    @naming_arguments
    def from_dense(self, outputs: dict[str, torch.Tensor], pixel_values: torch.Tensor) -> list[Image.Image]:
        """Pictures of what stage I's `decode` gives for N grey photos `pixel_values (N, 3, H, W)`."""
        return self.to_images(outputs["color"], pixel_values)

    def draw(self, image, completion, reference=None, width=None) -> Image.Image:
        """The grey photo, the true one and the prediction, side by side."""
        from vision_rl.tasks.colorization.drawing import draw  # it imports this module

        return draw(image, completion, reference, width)

    def batch_decode(self, sequences) -> list:
        raise NotImplementedError(
            "Turning codes into colours takes the stage I network and the grey photo: give the trainer that network as "
            "completion_decoder."
        )


def rgb_to_grey(pixels: torch.Tensor) -> torch.Tensor:
    """The grey of uint8 `(..., 3)`, uint8 `(...)`: as the authors have it, 255.5 times the value in 0..1, rounded down.

    Rounding 255 times the value would give another grey to a quarter of all colours.
    """
    red, green, blue = (pixels.float() / 255).unbind(-1)
    value = GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue
    return (value * 255.5).to(torch.uint8)


def _grey_inputs(color: torch.Tensor) -> torch.Tensor:
    """Turn colour, uint8 `(B, H, W, 3)`, into the model's input: grey, three equal channels `(B, 3, H, W)` in [-1, 1]."""
    grey = rgb_to_grey(color) / 127.5 - 1  # (B, H, W)
    return grey[:, None].repeat(1, 3, 1, 1)


def resize_without_antialias(pixels: np.ndarray, height: int, width: int) -> torch.Tensor:
    """uint8 `(H, W, 3)` resized as the authors' input pipeline does: bilinear, no antialiasing, rounded down."""
    planes = torch.from_numpy(pixels).movedim(-1, 0)[None].float()  # (1, 3, H, W)
    return (
        F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0].movedim(0, -1).to(torch.uint8)
    )


def is_grey(image: Image.Image, tolerance: int = GREY_TOLERANCE) -> bool:
    """Whether in no pixel two channels are more than `tolerance` of 255 apart. A sepia photo is not grey."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    return int(np.ptp(pixels, axis=-1).max()) <= tolerance
