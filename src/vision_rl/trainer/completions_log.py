"""`log_completions`: what the model writes while it learns, as pictures and as a table. TRL's option, for images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from accelerate.utils import gather_object
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from vision_rl.processing import as_in_data_set, completion_text
from vision_rl.trainer.collator import BatchColumns
from vision_rl.trainer.completions_sheet import Cell, draw_sheet, number
from vision_rl.trainer.evaluation import Record
from vision_rl.trainer.rollout import Rollout
from vision_rl.trainer.scoring import Scores


if TYPE_CHECKING:
    from vision_rl.trainer.reward_trainer import VisionRewardTrainer


NUM_IMAGES = 4  # of a step or an evaluation
NUM_DRAWN = 4  # of an image's completions: those with the highest and the lowest rewards
OWN_COLUMNS = (
    *("step", "row_index", "generation", "completion", "completion_ids"),
    *("reward", "advantage", "image"),  # behind those of the reward functions
)
SAMPLED = "completions"  # TRL's name of the table and its files
LONGEST = 160  # characters of a completion in the terminal


class LoggedImage(NamedTuple):
    """An image with its G completions."""

    row_index: int
    image: Any
    reference: Any
    completions: list
    completion_ids: list[list[int]]
    rewards: list[float]  # (G,)
    per_function: list[list[float]]  # (G, F)
    advantages: list[float] | None  # (G,); None in evaluation


class CompletionsLog:
    """Keeps a few images of the step with their completions, and writes them when the step is logged.

    Training shows the first images of the step, which are others each time; evaluation the first rows of its data set,
    the same each time, so that a run's progress can be looked at. Each goes to `folder` as a picture and as parquet, to
    TensorBoard as a picture, and to wandb and trackio as a table, where Trainer reports there; the samples of training
    also to the terminal.

    Args:
        draw: `draw(image, completion, reference) -> picture`: the processor's.
        folder: of the files, `completions_{step:05d}.parquet` as TRL names them, and `.png`.
        names: of the F reward functions.
        num_to_print: completions that the terminal shows; None: all that are kept.
        with_pictures: False: tables only.
        image_column: name of the column with the image.
    """

    def __init__(
        self,
        draw: Callable[[Image.Image, Any, Any], Image.Image],
        folder: str | Path,
        names: Sequence[str],
        num_to_print: int | None = None,
        with_pictures: bool = True,
        image_column: str = "image",
    ):
        self.draw, self.folder = draw, Path(folder)
        self.names = [f"rewards/{name}" if name in OWN_COLUMNS else name for name in names]
        self.num_to_print, self.with_pictures, self.image_column = num_to_print, with_pictures, image_column
        self._sampled: list[LoggedImage] = []
        self._step: int | None = None  # theirs
        self._evaluating: list[LoggedImage] = []  # of this rank
        self._evaluated: dict[str, list[LoggedImage]] = {}  # by the prefix of the metrics, such as "eval"

    @classmethod
    def of(cls, trainer: "VisionRewardTrainer") -> "CompletionsLog":
        """Make the log that the trainer's options describe."""
        args, folder = trainer.args, Path(str(trainer.args.output_dir)) / "completions"
        options = args.num_completions_to_print, args.log_multimodal, args.image_column
        return cls(trainer.processor.draw, folder, trainer.reward.names, *options)

    def record_rollout(self, part: Rollout, inputs: dict, normalized: bool = False) -> None:
        """Record the completions of a chunk; `inputs` hold them `decoded`, and their `scores`.

        Where the rewards of `part` are `normalized`, the weighted sums of the `scores` are shown in their place.
        Where an override of `_score` has decoded and scored in a way of its own, there is nothing to show.
        """
        if not {"decoded", "scores"} <= set(inputs):
            return
        scores, columns, per_token = inputs["scores"], inputs["columns"], part.advantages.ndim == 3
        self.record(
            part.step,
            row_index=part.row_index.tolist(),
            images=columns.columns[self.image_column],
            completions=inputs["decoded"][0],
            completion_ids=inputs["decoded"][1],
            # of every token: the first one's is that of the sample
            rewards=(scores.rewards if per_token or normalized else part.rewards.flatten()).tolist(),
            per_function=scores.per_function.tolist(),
            advantages=(part.advantages[..., 0] if per_token else part.advantages).flatten().tolist(),
            references=columns.references,
        )

    def record_greedy(self, step: int, records: list[Record], scores: Scores, columns: BatchColumns) -> None:
        """Record a batch of an evaluation."""
        self.record(
            step,
            row_index=[record["index"] for record in records],
            images=columns.columns[self.image_column],
            completions=[record["completion"] for record in records],
            completion_ids=[record["completion_ids"] for record in records],
            rewards=scores.rewards.tolist(),
            per_function=scores.per_function.tolist(),
            references=columns.references,
            evaluation=True,
        )

    def record(
        self,
        step: int,
        *,
        row_index: Sequence[int],
        images: Sequence,
        completions: Sequence,
        completion_ids: Sequence[list[int]],
        rewards: Sequence[float],
        per_function: Sequence[Sequence[float]],
        advantages: Sequence[float] | None = None,
        references: Sequence | None = None,
        evaluation: bool = False,
    ) -> None:
        """Keep of a batch of B images what there is still room for.

        Args:
            step: the update step; the first batch of another one drops what training has kept so far.
            row_index: B rows of the data set; of an evaluation only its first rows are kept.
            images: B, and `references` B of them or None.
            completions, completion_ids, rewards, advantages: B * G, images in order; per_function: B * G lists of F.
        """
        if not evaluation and step != self._step:
            self._sampled, self._step = [], step
        kept, num_generations = self._evaluating if evaluation else self._sampled, len(completions) // len(images)
        for place, row in enumerate(row_index):
            if row >= NUM_IMAGES if evaluation else len(kept) == NUM_IMAGES:
                continue
            its = slice(place * num_generations, (place + 1) * num_generations)
            kept.append(
                LoggedImage(
                    row,
                    images[place],
                    None if references is None else references[place],
                    list(completions[its]),
                    [list(ids) for ids in completion_ids[its]],
                    list(rewards[its]),
                    [list(parts) for parts in per_function[its]],
                    None if advantages is None else list(advantages[its]),
                )
            )

    def gather(self, prefix: str) -> None:
        """Collect the rows of all ranks at the end of an evaluation, each once, in order. Every rank must call it."""
        rows = {row.row_index: row for row in gather_object(self._evaluating)}
        self._evaluating, self._evaluated[prefix] = [], [rows[index] for index in sorted(rows)]

    def write(self, step: int, reporters: Sequence[TrainerCallback] = (), samples: bool = True) -> None:
        """Write and forget what is kept; on the main process, after Trainer's own log, which sets its reporters up.

        Args:
            step: of the files and the curves.
            reporters: Trainer's callbacks; those of TensorBoard, wandb and trackio are reported to.
            samples: whether training is logged, or only evaluations that have ended.
        """
        tables = {f"{prefix}_{SAMPLED}": (f"greedy ({prefix})", rows) for prefix, rows in self._evaluated.items()}
        self._evaluated = {}
        if samples:
            tables[SAMPLED], self._sampled = ("samples", self._sampled), []
        for name, (kind, rows) in tables.items():
            if rows:
                self._write(step, name, f"Step {step}, {kind}", rows, reporters)

    def _write(self, step: int, name: str, title: str, rows: list[LoggedImage], reporters) -> None:
        file, table = self.folder / f"{name}_{step:05d}.parquet", self._table(step, rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(table), file)
        pictures: list[list[Image.Image]] = []
        sheet = None
        if self.with_pictures:
            pictures = [self._pictures(row) for row in rows]
            sheet = self._sheet(title, rows, pictures)
            sheet.save(file.with_suffix(".png"))
        self._report(step, name, table, [picture for each in pictures for picture in each], sheet, reporters)
        if name == SAMPLED and self.num_to_print != 0:
            self._print(step, table)

    # --- the forms ----------------------------------------------------------------------------------------------------

    def _table(self, step: int, rows: list[LoggedImage]) -> dict[str, list]:
        """The table with one row a completion: TRL's columns, with the image's row in the data set in place of the prompt."""
        table: dict[str, list] = {name: [] for name in OWN_COLUMNS[:5]}
        parts: dict[str, list] = {name: [] for name in self.names}
        total: dict[str, list[float | None]] = {"reward": [], "advantage": []}
        for row in rows:
            num_generations = len(row.completions)
            table["step"] += [step] * num_generations
            table["row_index"] += [row.row_index] * num_generations
            table["generation"] += range(num_generations)
            table["completion"] += map(completion_text, row.completions)
            table["completion_ids"] += row.completion_ids
            for name, values in zip(parts, zip(*row.per_function, strict=True), strict=True):
                parts[name] += values
            total["reward"] += row.rewards
            total["advantage"] += [None] * num_generations if row.advantages is None else row.advantages
        return {**table, **parts, **total}

    def _pictures(self, row: LoggedImage) -> list[Image.Image]:
        image = as_in_data_set(row.image, row.row_index)
        return [self.draw(image, completion, row.reference) for completion in row.completions]

    def _sheet(self, title: str, rows: list[LoggedImage], pictures: list[list[Image.Image]]) -> Image.Image:
        """Draw the sheet: a line of samples an image, the best first; of an evaluation, all answers in a line."""
        lines = []
        for row, drawn in zip(rows, pictures, strict=True):
            shown = extremes(row.rewards, NUM_DRAWN)
            some = f", the best and the worst {len(shown)} of {len(drawn)}" if len(shown) < len(drawn) else ""
            line: list[Cell] = []
            for place in shown:
                parts = dict(zip(self.names, row.per_function[place], strict=True)) if len(self.names) > 1 else {}
                advantage = None if row.advantages is None else row.advantages[place]
                name = "" if line else f"row {row.row_index}{some}"
                line.append(Cell(name, drawn[place], row.rewards[place], advantage, parts))
            lines.append(line)
        if all(len(line) == 1 for line in lines):
            lines = [[cell for line in lines for cell in line]]
        return draw_sheet(title, lines)

    def _report(self, step, name, table, pictures, sheet, reporters) -> None:
        key = name.replace("eval_", "eval/", 1)  # as Trainer renames its metrics
        for reporter in reporters:
            if isinstance(reporter, TensorBoardCallback) and reporter.tb_writer is not None and sheet is not None:
                reporter.tb_writer.add_image(key, np.asarray(sheet), step, dataformats="HWC")
                reporter.tb_writer.flush()
            elif isinstance(reporter, WandbCallback | TrackioCallback):
                module = reporter._wandb if isinstance(reporter, WandbCallback) else reporter._trackio
                columns = dict(table)
                if pictures:
                    columns["image"] = [module.Image(picture) for picture in pictures]
                rows = [list(values) for values in zip(*columns.values(), strict=True)]
                module.log({key: module.Table(columns=list(columns), data=rows), "train/global_step": step})

    def _print(self, step: int, table: dict[str, list]) -> None:
        shown = Table(title=f"Step {step}", title_justify="left")
        shown.add_column("Row", justify="right")
        shown.add_column("Completion", overflow="fold")
        numbers = [*(self.names if len(self.names) > 1 else []), "reward", "advantage"]
        for name in numbers:
            shown.add_column(name, justify="right", no_wrap=True)
        for index in range(len(table["step"]))[: self.num_to_print]:
            values = [number(table[name][index], sign=name == "advantage") for name in numbers]
            text = table["completion"][index]
            shortened = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
            shown.add_row(str(table["row_index"][index]), Text(shortened), *values)  # no markup: it may hold [/b]
        Console().print(shown)


def extremes(rewards: Sequence[float], count: int) -> list[int]:
    """Places of at most `count` rewards, the highest first: all, or the highest and the lowest; NaN counts as lowest."""
    order = sorted(range(len(rewards)), key=lambda place: (rewards[place] != rewards[place], -rewards[place]))
    return order if len(order) <= count else order[: count - count // 2] + order[len(order) - count // 2 :]
