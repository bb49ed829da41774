"""The page on which people choose: two answers side by side, without the names of their models (gradio, the extra `app`)."""

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from vision_rl.preferences.choices import ChoiceFile, Pair
from vision_rl.preferences.comparison import Comparison, Shown


if TYPE_CHECKING:
    import gradio

LONGEST_NAME = 100  # characters of a rater's


def comparison_page(
    pairs: Sequence[Pair],
    choices: ChoiceFile,
    draw: Callable[..., Image.Image],
    question: str = "Which answer is better?",
) -> "gradio.Blocks":
    """A page that asks which of two answers is better, and keeps each choice at once: `comparison_page(...).launch()`.

    The sides are by chance, and no model is named. A rater who comes back goes on where the last choice was made; several
    may judge at the same time, each under a name of their own.

    Args:
        pairs: what is shown, in this order.
        choices: the file that is appended to.
        draw: `draw(image, completion) -> picture`: the processor's, or a pipeline's.
        question: above the pictures.

    Raises:
        ModuleNotFoundError: without gradio.
    """
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('The page needs gradio: pip install "vision-rl[app]".', name=error.name) from error
    comparison = Comparison(pairs, choices, draw)
    assert comparison.keys  # all pairs can be kept: told now, not to a rater

    def show(rater: str) -> tuple:
        """The two pictures, what they are, how far the rater has come, and whether there is something to choose."""
        rater = rater.strip()[:LONGEST_NAME]
        shown = comparison.next(rater)
        left, right = (None, None) if shown is None else comparison.pictures(shown)
        told = f"{comparison.num_judged(rater)} of {len(comparison.pairs)} judged."
        told += " That was the last one: thank you." if shown is None else ""
        return left, right, shown, told, *[gradio.update(interactive=shown is not None)] * 3

    def choose(side: int | None) -> Callable[[Shown | None, str], tuple]:
        def chosen(shown: Shown | None, rater: str) -> tuple:
            if shown is not None:
                comparison.choose(shown, side, rater.strip()[:LONGEST_NAME])
            return show(rater)

        return chosen

    with gradio.Blocks(title="Which is better?", analytics_enabled=False) as page:
        gradio.HTML(f"<h2>{html.escape(question)}</h2>")
        with gradio.Row():
            # PNG: what is judged is what is kept, without the traces of a lossy format. No button sends a picture elsewhere.
            how = {"format": "png", "interactive": False, "buttons": ["fullscreen"]}
            pictures = [gradio.Image(label=label, **how) for label in ("Left", "Right")]
        with gradio.Row():
            buttons = [gradio.Button(label) for label in ("Left is better", "I cannot tell", "Right is better")]
        with gradio.Row():
            told = gradio.Textbox(label="Progress", interactive=False)
            rater = gradio.Textbox(label="Your name (kept with each choice)", max_length=LONGEST_NAME)
        shown = gradio.State()
        outputs = [*pictures, shown, told, *buttons]
        page.load(show, rater, outputs)
        rater.submit(show, rater, outputs)
        rater.blur(show, rater, outputs)
        for button, side in zip(buttons, (0, None, 1), strict=True):
            button.click(choose(side), [shown, rater], outputs)
    return page
