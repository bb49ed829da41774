"""Progress in a terminal as one line: how far, the reward, the metric, and the time that is left."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import has_length


SECONDS_BETWEEN = 0.2  # of two refreshes
OF_EVALUATION = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_loss")
NUM_METRICS = 3  # of an evaluation, in its line


class ProgressLine(TrainerCallback):
    """One line that is written anew with each step, and one that stays for each evaluation; the whole log is in files.

    It takes the place of Trainer's bar where there is a terminal, on the main process. Where the output goes to a file, or
    with `disable_tqdm`, everything is as Trainer has it. TRL's `RichProgressCallback` shows every value of the log in panels
    instead; pass it with `disable_tqdm=True`.

    Nothing runs beside the training: the line is drawn between steps, so that no worker is forked while it is.
    """

    def __init__(self, console: Console | None = None):
        self.console = Console(stderr=True) if console is None else console
        self.bar: Progress | None = None
        self.training: TaskID | None = None
        self.evaluation: TaskID | None = None
        self.log: dict[str, float] = {}
        self.drawn = 0.0

    @classmethod
    def take_place(cls, trainer: Trainer) -> "ProgressLine | None":
        """Put it in place of the trainer's bar, if there is one and a terminal to draw it in."""
        bars = [type(callback) for callback in trainer.callback_handler.callbacks]
        line = cls()
        if ProgressCallback not in bars or not line.console.is_terminal or line.console.is_jupyter:
            return None
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(line)
        return line

    def stop(self) -> None:
        """Leave the line as it is; called also where a training ends by an error."""
        if self.bar is not None:
            self.bar.refresh()
            self.bar.stop()
        self.bar = self.training = self.evaluation = None

    # --- Trainer's events -------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.stop()
            self.log = {}
            bar = self._start()
            self.training = bar.add_task("", total=state.max_steps, completed=state.global_step, said=Text())
            self._draw(now=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None and self.training is not None:
            self.bar.update(self.training, completed=state.global_step)
            self._draw()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is not None and self.training is not None and logs:
            self.log |= {name: value for name, value in logs.items() if isinstance(value, int | float)}
            self.bar.update(self.training, said=Text(said_of(self.log, args.metric_for_best_model)))
            self._draw(now=True)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not state.is_world_process_zero or eval_dataloader is None or not has_length(eval_dataloader):
            return
        bar = self._start()
        if self.evaluation is None:
            self.evaluation = bar.add_task("", total=len(eval_dataloader), said=Text("evaluation"))
        bar.advance(self.evaluation)
        self._draw(now=bar.finished)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._end_evaluation()
        if self.bar is not None and metrics:
            said = " · ".join(f"{name.removeprefix('eval_')} {metrics[name]:.4g}" for name in told(metrics, args))
            self.console.print(Text(f"step {state.global_step}: {said}"))

    def on_predict(self, args, state, control, metrics, **kwargs):
        self._end_evaluation()

    def on_train_end(self, args, state, control, **kwargs):
        self.stop()

    # --- the line ---------------------------------------------------------------------------------------------------------

    def _start(self) -> Progress:
        if self.bar is None:
            self.bar = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[said]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self.console,
                auto_refresh=False,
                speed_estimate_period=900,
            )
            self.bar.start()
        return self.bar

    def _draw(self, now: bool = False) -> None:
        if self.bar is not None and (now or time.monotonic() - self.drawn > SECONDS_BETWEEN):
            self.drawn = time.monotonic()
            self.bar.refresh()

    def _end_evaluation(self) -> None:
        """End the progress of an evaluation; outside of a training the whole line goes with it."""
        if self.bar is None or self.evaluation is None:
            return
        self.bar.remove_task(self.evaluation)
        self.evaluation = None
        if self.training is None:
            self.stop()


def said_of(log: Mapping[str, float], metric: str | None = None) -> str:
    """The reward of samples, or the loss where there is none; and of the last evaluation the metric that is watched, or the reward."""
    parts = [f"{name} {log[name]:.4g}" for name in ("reward", "loss") if name in log][:1]
    watched = f"eval_{metric.removeprefix('eval_')}" if metric else "eval_reward"
    evaluated = [name for name in (watched, *log) if name in log and _is_metric(name)]
    return " · ".join([*parts, *(f"{name} {log[name]:.4g}" for name in evaluated[:1])])


def told(metrics: Mapping[str, Any], args: Any) -> list[str]:
    """Names of an evaluation's numbers that its line has: what is watched, the reward, the first of the others."""
    watched = f"eval_{args.metric_for_best_model.removeprefix('eval_')}" if args.metric_for_best_model else ""
    names = dict.fromkeys([watched, "eval_reward", *(name for name in metrics if _is_metric(name)), "eval_loss"])
    return [name for name in names if isinstance(metrics.get(name), int | float)][: NUM_METRICS + 1]


def _is_metric(name: str) -> bool:
    inner = name.removeprefix("eval_")
    return (
        name.startswith("eval_") and name not in OF_EVALUATION and not inner.startswith(("rewards/", "completions/"))
    )
