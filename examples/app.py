"""A page that shows the answers of two models to an image side by side: MLE, and the model tuned from it. For any task.

    pip install "vision-rl[app]"
    python examples/app.py --mle runs/colorization/mle --tuned runs/colorization/tuned

Then open http://127.0.0.1:7860. The models know their task; for a task of your own, --task names your file. The page is
on this machine only: pictures that you drop there are not sent elsewhere.
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
    width: int = 512  # of the drawn pictures, in pixels


def make_page(args: ScriptArguments) -> gradio.Blocks:
    """The page: it takes an image and shows the answer of each model, drawn."""
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
        image = gradio.File(label="An image", file_types=["image"])  # gradio.Image would hide why a file is unreadable
        with gradio.Row():
            how = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}  # no upload
            answers = [gradio.Image(label=name, **how) for name in pipelines]
        image.change(answer, image, answers)
    return page


if __name__ == "__main__":
    (args,) = TrlParser(ScriptArguments).parse_args_and_config()
    make_page(args).launch(server_name="127.0.0.1", server_port=args.port)
