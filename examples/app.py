"""A page that answers one image with several models side by side: MLE and what was tuned from it, of any task.

    pip install "vision-rl[app]"
    python examples/app.py --mle runs/colorization/mle --tuned runs/colorization/tuned

Then open http://127.0.0.1:7860. The task is told from the models; --task names a file of yours. The page is on this machine
only: pictures that are dropped there are not sent elsewhere.
"""

import html
from dataclasses import dataclass

import gradio
from PIL import Image
from trl import TrlParser

import vision_rl


@dataclass
class ScriptArguments:
    mle: str = "runs/colorization/mle"
    tuned: str = "runs/colorization/tuned"
    task: str | None = None
    port: int = 7860
    width: int = 512  # of a drawn picture in pixels


def make_page(args: ScriptArguments) -> gradio.Blocks:
    """One image in, a drawn answer of each model out."""
    pipelines = {
        "MLE": vision_rl.pipeline(args.mle, args.task),
        "Tuned": vision_rl.pipeline(args.tuned, args.task),
    }

    def answer(path: str | None) -> list[Image.Image | None]:
        if path is None:
            return [None] * len(pipelines)
        try:
            return [pipeline.draw(path, pipeline(path), width=args.width) for pipeline in pipelines.values()]
        except Exception as error:
            raise gradio.Error(html.escape(str(error)), duration=None) from error  # gradio shows it as HTML

    with gradio.Blocks(title="vision_rl", analytics_enabled=False) as page:
        gradio.Markdown("## Before and after tuning")
        image = gradio.File(label="An image", file_types=["image"])  # not gradio.Image, which hides why it reads none
        with gradio.Row():
            how = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}  # none that uploads
            answers = [gradio.Image(label=name, **how) for name in pipelines]
        image.change(answer, image, answers)
    return page


if __name__ == "__main__":
    (args,) = TrlParser(ScriptArguments).parse_args_and_config()
    make_page(args).launch(server_name="127.0.0.1", server_port=args.port)
