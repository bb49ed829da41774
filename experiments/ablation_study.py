"""Captions of scenes, tuned with one option changed at a time: what is each choice worth in the same time?

    python experiments/ablation_study.py

Every row starts from the MLE models of `scene_captioning_study.py`, one a seed, which are trained where they are missing, and is
tuned for CIDEr without the end for as many seconds of a core: it makes as many steps as it can make in them. The learning rate
is chosen for the default options, and for Adafactor, on validation with the first seed; all other rows take the default's. The
last model counts. What is finished is kept in `work_dir`, and a training goes on where it was interrupted.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tables
import torch
from runs import commit
from scene_captioning_study import PATHS as CAPTIONING_PATHS
from scene_captioning_study import RESULTS, SceneCaptioningStudy, StudyArguments
from transformers import TrainerCallback
from trl import TrlParser

from vision_rl import VisionMLETrainer, VisionRewardTrainer


DEFAULT, ADAFACTOR = "default", "Adafactor"
OPTIONS: dict[str, dict] = {  # of each row, in place of the default
    DEFAULT: {},
    "1 sibling": {"num_generations": 2},
    "3 siblings": {"num_generations": 4},
    "15 siblings": {"num_generations": 16},
    "baseline first, 1 sibling": {"baseline": "first", "num_generations": 2},
    "baseline first": {"baseline": "first"},
    "baseline greedy": {"baseline": "greedy"},
    "no baseline": {"baseline": "none"},
    ADAFACTOR: {"optim": "big_vision_adafactor"},
    "2 iterations": {"num_iterations": 2},
    "4 iterations": {"num_iterations": 4},
    "MLE weight 0.1": {"mle_weight": 0.1},
    "MLE weight 1": {"mle_weight": 1.0},
}
TIMED = (2, 12)  # the steps between which the time of one is measured
COLUMNS = {
    "cider": "CIDEr",
    "reward": "reward, greedy",
    "sampled_reward": "reward, sampled",
    "num_words": "words",
    "forms": "forms",
    "sampled_forms": "forms of samples",
}


@dataclass
class AblationArguments(StudyArguments):
    rows: list[str] = field(default_factory=lambda: list(OPTIONS))
    tuning_seconds: float = 45.0  # of a core
    learning_rates: list[float] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3])
    output: str = str(RESULTS / "ablations.json")


class StepTime(TrainerCallback):
    """Measures how many seconds of this process a step takes, and stops."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == TIMED[0]:
            self.began = time.process_time()
        if state.global_step == TIMED[1]:
            self.seconds = (time.process_time() - self.began) / (TIMED[1] - TIMED[0])
            control.should_training_stop = True


class AblationStudy(SceneCaptioningStudy):
    """The captions of scenes once more, tuned with the options of each row."""

    args: AblationArguments

    def config(self, row: str, learning_rate: float, seed: int) -> dict:
        if row not in OPTIONS:
            return super().config(row, learning_rate, seed)
        steps = {"max_steps": self.steps_in_time(row), "eval_strategy": "no", "load_best_model_at_end": False}
        return self.timed_config(row, learning_rate, seed) | steps

    def timed_config(self, row: str, learning_rate: float, seed: int) -> dict:
        """The config of a row, but for the number of its steps."""
        return super().config("tuned_without_end", learning_rate, seed) | OPTIONS[row]

    def steps_in_time(self, row: str) -> int:
        """How many steps the row's tuning makes in `tuning_seconds`; measured once, and kept."""
        file = self.folder / "seconds of a step.json"
        seconds = tables.read_json(file) if file.exists() else {}
        if row not in seconds:
            config = self.timed_config(row, self.args.learning_rates[0], self.seeds[0])
            config |= {"output_dir": str(self.folder / "timed"), "max_steps": TIMED[1] + 1, "report_to": "none"}
            config |= {"eval_strategy": "no", "load_best_model_at_end": False, "save_strategy": "no", "use_cpu": True}
            clock = StepTime()
            trainer = self.make_trainer(row, config, self.start(row, self.seeds[0]))
            trainer.add_callback(clock)
            trainer.train()
            seconds[row] = clock.seconds
            tables.write_json(seconds, file)
        return round(self.args.tuning_seconds / seconds[row])

    def make_trainer(self, row: str, config: dict, start: Path | None) -> VisionMLETrainer | VisionRewardTrainer:
        return super().make_trainer("tuned_without_end" if row in OPTIONS else row, config, start)


def main(args: AblationArguments) -> dict:
    torch.set_num_threads(args.threads)
    study = AblationStudy(args)
    rates, tried = {}, {}
    for row in (DEFAULT, ADAFACTOR):
        rates[row], tried[row] = study.choose(row, args.learning_rates)
    study.test("MLE", [study.start(DEFAULT, seed) for seed in args.seeds])
    for row in args.rows:
        study.test(row, [study.trained(row, rates.get(row, rates[DEFAULT]), seed) for seed in args.seeds])
    results = {
        "commit": commit(),
        "settings": {name: value for name, value in asdict(args).items() if name not in CAPTIONING_PATHS},
        "options": {row: OPTIONS[row] for row in args.rows},
        "learning_rates": tried,
        **study.results([row for row in args.rows if row != DEFAULT], [DEFAULT]),
    }
    tables.write_json(results, args.output)
    print(table(results))
    return results


def table(results: dict) -> str:
    """The rows as Markdown: means over the seeds, and how much CIDEr each has more than the default options."""
    gains = {pair.split(" - ")[0]: values["cider"] for pair, values in results["differences"].items()}
    rows = []
    for row, values in results["rows"].items():
        numbers = [f"{values[name]['mean']:{'.1f' if name == 'sampled_forms' else '.3f'}}" for name in COLUMNS]
        gained = tables.with_interval(gains[row], ".3f") if row in gains else ""
        rows.append(
            [row, *numbers, gained, *(f"{sum(values[name]) / len(values[name]):.0f}" for name in ("steps", "seconds"))]
        )
    return tables.markdown(["", *COLUMNS.values(), "CIDEr over the default", "steps", "seconds"], rows)


if __name__ == "__main__":
    main(*TrlParser((AblationArguments,)).parse_args_and_config())
