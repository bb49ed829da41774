"""What was read, written under the image that it was read from."""

from PIL import Image, ImageDraw, ImageFont

from vision_rl.arguments import naming_arguments
from vision_rl.drawing import LABEL, PAPER, RIGHT, UNJUDGED, WRONG, at_width, draw_grid, draw_mark


__all__ = ["draw", "draw_grid"]


@naming_arguments
def draw(
    image: Image.Image,
    completion: str | dict[str, str | list[str]],
    reference: str | None = None,
    width: int | None = None,
) -> Image.Image:
    """The image enlarged, with what was read below it: green with a tick when right, red with a cross when wrong.

    Args:
        image: what was read, of any mode.
        completion: the text; or several by name, each on a line of its own: `{"before": "46719", "after": "40719"}`.
            A name may have a list of texts, such as the samples of an image.
        reference: the true text. Without one the completion is dark and has no mark.
        width: of the drawn image in pixels; without one a small image is enlarged while it fits into 512 pixels.

    Returns:
        An RGB picture, as wide as the enlarged image unless a line is wider.
    """
    named = completion if isinstance(completion, dict) else {"": completion}
    lines = {label: [texts] if isinstance(texts, str) else texts for label, texts in named.items()}
    enlarged = at_width(image, width)
    size = max(12, min(enlarged.height // 4, enlarged.width // 16))
    font, label_font = ImageFont.load_default(size), ImageFont.load_default(0.65 * size)
    margin, line_height = size // 3, round(1.35 * size)
    label_width = max(round(label_font.getlength(label)) for label in lines)
    text_left = margin + (label_width + margin if label_width else 0)
    mark_width = 0 if reference is None else round(0.9 * size)

    def width_of(text: str) -> int:
        return round(font.getlength(text or "(empty)")) + mark_width + margin

    widest = max(enlarged.width, *(text_left + sum(map(width_of, texts)) for texts in lines.values()))
    picture = Image.new("RGB", (widest, enlarged.height + line_height * len(lines) + margin), PAPER)
    picture.paste(enlarged)
    canvas = ImageDraw.Draw(picture)
    for line, (label, texts) in enumerate(lines.items()):
        baseline = enlarged.height + line_height * line + round(1.1 * size)
        canvas.text((margin, baseline), label, LABEL, label_font, anchor="ls")
        left = text_left
        for text in texts:
            colour = UNJUDGED if reference is None else RIGHT if text == reference else WRONG
            canvas.text((left, baseline), text or "(empty)", colour, font, anchor="ls")
            if reference is not None:
                corner = (left + font.getlength(text or "(empty)") + 0.2 * size, baseline - 0.7 * size)
                draw_mark(canvas, corner, 0.65 * size, colour, right=text == reference)
            left += width_of(text)
    return picture
