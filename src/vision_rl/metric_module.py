"""The base of our evaluate modules, whose errors name what they are about, as those of the functions below them do."""

from typing import Any, Self

import evaluate

from vision_rl.arguments import naming_arguments


class MetricModule(evaluate.Metric):
    """Modules import this file and not the class: `evaluate.load` takes the first metric that it finds in a module."""

    def for_processor(self, processor: Any) -> Self:
        """The module for a trainer's processor, whose facts it may need; see `vision_rl.rewards.OfProcessor`."""
        return self

    def of_completions(
        self, completions: list, completion_ids: list[list[int]], references: list | None, **options
    ) -> dict[str, Any]:
        """Return what the module says of a trainer's batch, without the Arrow files of `compute`, whose options it takes."""
        return self._compute(predictions=completions, references=references, **options)

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, Any] | None:
        """The numbers of these, and of all that was added before."""
        compute = naming_arguments(super().compute)  # not around this one, of which evaluate copies the code alone
        return compute(predictions=predictions, references=references, **kwargs)
