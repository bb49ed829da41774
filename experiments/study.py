"""An experiment: rows of models that start from one another, trained where they are missing, and what they reach."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tables
from bootstrap import Columns, differences, summaries
from runs import cost, is_trained, train_and_save, weights_of
from transformers import Trainer


class Study(ABC):
    """What differs between experiments are the abstract methods; a row is named, and has a model a seed.

    Args:
        folder: of the models; what is finished there is used again, so that an interrupted study goes on.
        seeds: of the trainings; learning rates are chosen with the first.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]):
        self.folder, self.seeds = folder, seeds
        self.columns: dict[str, Columns] = {}  # of the rows that were tested
        self.costs: dict[str, list[dict[str, int]]] = {}
        self.predictions: dict[str, Any] = {}  # of the first seed

    @abstractmethod
    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        """What decides the training of a row, as its trainer's config takes it."""

    @abstractmethod
    def start(self, row: str, seed: int) -> Path | None:
        """The folder of the model that the training of a row starts from; None: of a new one."""

    @abstractmethod
    def other_settings(self) -> dict:
        """What else the models depend on: data, sizes."""

    @abstractmethod
    def make_trainer(self, row: str, config: dict, start: Path | None) -> Trainer: ...

    @abstractmethod
    def measure(self, folder: Path | None, split: str) -> tuple[dict[str, np.ndarray], Any]:
        """The columns of a model, `(1 + R,)` each (see `bootstrap`), and its predictions; None: of what needs none."""

    @abstractmethod
    def quality(self, row: str, columns: Mapping[str, np.ndarray]) -> float:
        """What the learning rate of a row is chosen by."""

    def trained(self, row: str, learning_rate: float, seed: int) -> Path:
        """The folder of a model that is there already, or is now trained."""
        folder = self.folder / f"{row}-lr{learning_rate:g}-seed{seed}"
        start = self.start(row, seed)
        if not is_trained(folder, self.settings(row, learning_rate, seed, start)):
            self.train(row, learning_rate, seed, folder)
        return folder

    def settings(self, row: str, learning_rate: float, seed: int, start: Path | None) -> dict:
        """All that a model depends on, for its `run.json`."""
        started_from = None if start is None else weights_of(start)
        config = self.config(row, learning_rate, seed)
        return {"row": row, **config, **self.other_settings(), "started_from": started_from}

    def train(self, row: str, learning_rate: float, seed: int, folder: Path) -> None:
        """Train and save; `run.json` in the folder then says with which settings, in how many steps and seconds."""
        start = self.start(row, seed)
        config = self.config(row, learning_rate, seed)
        config |= {"output_dir": str(folder), "logging_steps": min(50, config.get("eval_steps", 50))}
        config |= {"use_cpu": True, "report_to": "none"}
        train_and_save(self.make_trainer(row, config, start), self.settings(row, learning_rate, seed, start))

    def evaluations(self, row: str, learning_rate: float, seed: int, names: Sequence[str]) -> list[dict]:
        """What the log of a training has of validation, and the mean reward of the samples that was logged last before."""
        log = tables.read_json(self.trained(row, learning_rate, seed) / "trainer_state.json")["log_history"]
        entries, reward = [], {}
        for entry in log:
            reward = {"reward": entry["reward"]} if "reward" in entry else reward
            if "eval_runtime" in entry:
                entries.append({name: entry[name] for name in names if name in entry} | reward)
        return entries

    def choose(self, row: str, learning_rates: Sequence[float]) -> tuple[float, dict]:
        """The learning rate that does best on validation with the first seed, and a record of what each did there."""
        folders = {rate: self.trained(row, rate, self.seeds[0]) for rate in learning_rates}
        reached = {rate: self.measure(folder, "validation")[0] for rate, folder in folders.items()}
        best = max(reached, key=lambda rate: self.quality(row, reached[rate]))
        tried = {
            f"{rate:g}": {name: round(float(values[0]), 4) for name, values in columns.items()}
            for rate, columns in reached.items()
        }
        return best, {"chosen": best, "validation": tried}

    def test(self, row: str, folders: Sequence[Path | None], **how) -> None:
        """Measure the models of a row, one a seed, on the test images; `how` is for `measure`."""
        measured = [self.measure(folder, "test", **how) for folder in folders]
        self.columns[row] = {name: [columns[name] for columns, _ in measured] for name in measured[0][0]}
        self.costs[row] = [cost(folder) for folder in folders if folder is not None]
        self.predictions[row] = measured[0][1]

    def results(self, tuned: Sequence[str], controls: Sequence[str]) -> dict[str, dict]:
        """What is written of the rows that were tested, and how much the tuned ones gain over their controls."""
        return {
            "rows": summaries(self.columns, self.costs),
            "differences": differences(self.columns, tuned, controls),
        }
