"""An image with what is said of it written below."""

from PIL import Image, ImageDraw, ImageFont

from vision_rl.drawing import PAPER, UNJUDGED


_WIDTH = 320  # pixels of a picture
_LABEL = (120, 120, 120)


def draw(
    image: Image.Image,
    completion: str | dict[str, str],
    references: list[str] | None = None,
    width: int = _WIDTH,
) -> Image.Image:
    """The image with its caption below, broken into lines.

    Args:
        image: of any mode.
        completion: the caption; or several by name: `{"before": "a dog", "after": "a black dog runs"}`.
        references: true captions, written in grey below.
        width: of the picture in pixels.

    Returns:
        An RGB picture of this width.
    """
    named = completion if isinstance(completion, dict) else {"": completion}
    lines = [(label, text or "(empty)", UNJUDGED) for label, text in named.items()]
    lines += [("" if row else "people", text, _LABEL) for row, text in enumerate(references or [])]
    size = max(12, width // 22)
    font, label_font = ImageFont.load_default(size), ImageFont.load_default(0.8 * size)
    margin, line_height = size // 2, round(1.3 * size)
    label_width = max(round(label_font.getlength(label)) for label, _, _ in lines)
    left = margin + (label_width + margin if label_width else 0)
    broken = [(label, _broken(text, font, width - left - margin), colour) for label, text, colour in lines]

    photo = image.convert("RGB")
    photo = photo.resize((width, max(1, round(photo.height * width / photo.width))), Image.Resampling.BICUBIC)
    height = photo.height + line_height * sum(len(rows) for _, rows, _ in broken) + 2 * margin
    picture = Image.new("RGB", (width, height), PAPER)
    picture.paste(photo)
    canvas = ImageDraw.Draw(picture)
    baseline = photo.height + margin + size
    for label, rows, colour in broken:
        canvas.text((margin, baseline), label, _LABEL, label_font, anchor="ls")
        for row in rows:
            canvas.text((left, baseline), row, colour, font, anchor="ls")
            baseline += line_height
    return picture


def _broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of whole words no wider than `width`, but for a word that is wider itself."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
