"""An image with what is said of it written below."""

from collections.abc import Sequence

from PIL import Image

from vision_rl.arguments import naming_arguments
from vision_rl.drawing import LABEL, UNJUDGED, draw_text_below


@naming_arguments
def draw(
    image: Image.Image,
    completion: str | dict[str, str],
    reference: Sequence[str] | None = None,
    width: int | None = None,
) -> Image.Image:
    """The image with its caption below, broken into lines.

    Args:
        image: of any mode.
        completion: the caption; or several by name: `{"before": "a dog", "after": "a black dog runs"}`.
        reference: true captions, written in grey below.
        width: of the picture in pixels; without one a small image is enlarged while it fits into 512 pixels.

    Returns:
        An RGB picture of this width.
    """
    named = completion if isinstance(completion, dict) else {"": completion}
    lines = [(label, text or "(empty)", UNJUDGED) for label, text in named.items()]
    lines += [("" if row else "people", text, LABEL) for row, text in enumerate(reference or [])]
    return draw_text_below(image, lines, width)
