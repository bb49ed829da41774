"""The answers that a model card shows: the first rows of a run's first evaluation, and of its latest."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from transformers import TrainerState

from vision_rl.drawing import draw_grid
from vision_rl.processing import VisionProcessor, as_in_data_set
from vision_rl.trainer.collator import BatchColumns


NUM_SHOWN = 4
WIDTH = 320  # pixels of a picture at most


@dataclass
class Evaluated:
    """The first rows of an evaluation on this process: the image, the completion and the reference of each."""

    step: int
    rows: list[tuple[Any, Any, Any]] = field(default_factory=list)


class ShownAnswers:
    """Keeps the answers of the first rows. They are drawn only when a card is written, so that no evaluation fails for it.

    Args:
        image_column: name of the column with the image.
    """

    def __init__(self, image_column: str):
        self.image_column = image_column
        self.first: Evaluated | None = None  # None where an earlier process of the run has made it
        self.latest: Evaluated | None = None

    def begin(self, state: TrainerState) -> None:
        """Begin an evaluation. It is the run's first if no earlier one has been logged."""
        if self.latest is not None and self.latest.step == state.global_step:
            return  # another one of several data sets
        self.latest = Evaluated(state.global_step)
        if not any(name.startswith("eval_") for entry in state.log_history for name in entry):
            self.first = self.latest

    def record(self, records: list[dict[str, Any]], columns: BatchColumns) -> None:
        """Keep the rows of a batch for which there is room."""
        latest, images = self.latest, columns.columns.get(self.image_column)
        if latest is None or images is None:
            return
        for image, record in zip(images, records, strict=True):
            if len(latest.rows) < NUM_SHOWN and "completion" in record:
                latest.rows.append((image, record["completion"], record["reference"]))


def draw_answers(answers: Evaluated, processor: VisionProcessor) -> Image.Image:
    """Draw the answers side by side, each as the processor draws it."""
    pictures = []
    for place, (image, completion, reference) in enumerate(answers.rows):
        drawn = processor.draw(as_in_data_set(image, place), completion, reference).copy()
        drawn.thumbnail((WIDTH, WIDTH))
        pictures.append(drawn)
    return draw_grid(pictures, columns=len(pictures))
