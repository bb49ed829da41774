"""An image with what is said of it written below."""

from PIL import Image

from vision_rl.arguments import naming_arguments
from vision_rl.drawing import LABEL, UNJUDGED, draw_text_below


@naming_arguments
def draw(
    image: Image.Image,
    completion: str | dict[str, str],
    references: list[str] | None = None,
    width: int = 320,
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
    lines += [("" if row else "people", text, LABEL) for row, text in enumerate(references or [])]
    return draw_text_below(image, lines, width)
