"""The grey photo, what was made of it, and what it was, side by side."""

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from vision_rl.arguments import naming_arguments
from vision_rl.drawing import LABEL, PAPER, at_width
from vision_rl.tasks.colorization.colorfulness import Picture, uint8_pixels_of
from vision_rl.tasks.colorization.processing import rgb_to_grey


@naming_arguments
def draw(
    image: Picture,
    completion: Picture | Mapping[str, Picture],
    reference: Picture | None = None,
    width: int | None = None,
) -> Image.Image:
    """A row of pictures, each with its name below: the grey photo, the true one, and what was predicted.

    Args:
        image: the photo; it is made grey here, as for the model.
        completion: a prediction; or several by name: `{"before": ..., "after": ...}`.
        reference: the photo in colour. Without one it is left out.
        width: of each picture in pixels; without one a small photo is enlarged while it fits into 512 pixels. All pictures have
            the shape of `image`, for predictions come stretched to the model's frame.

    Returns:
        An RGB picture.
    """
    grey = rgb_to_grey(uint8_pixels_of(image))  # (H, W)
    pictures: dict[str, Picture] = {"input": grey[..., None].repeat(1, 1, 3)}
    if reference is not None:
        pictures["photo"] = reference
    pictures |= completion if isinstance(completion, Mapping) else {"prediction": completion}

    size = at_width(Image.fromarray(grey.cpu().numpy()), width).size
    gap, text_size = max(2, size[0] // 64), max(11, size[0] // 16)
    row = Image.new("RGB", (len(pictures) * (size[0] + gap) - gap, size[1] + round(1.6 * text_size)), PAPER)
    canvas, font = ImageDraw.Draw(row), ImageFont.load_default(text_size)
    for column, (name, picture) in enumerate(pictures.items()):
        left = column * (size[0] + gap)
        cell = Image.fromarray(uint8_pixels_of(picture).cpu().numpy()).resize(size, Image.Resampling.BICUBIC)
        row.paste(cell, (left, 0))
        canvas.text((left + size[0] / 2, size[1] + 0.8 * text_size), name, LABEL, font, anchor="mm")
    return row
