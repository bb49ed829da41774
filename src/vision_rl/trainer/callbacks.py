"""What watches a run: a reward that goes on rising while the metric that is meant falls."""

import logging

from transformers import TrainerCallback


logger = logging.getLogger(__name__)


class RewardMetricDivergenceCallback(TrainerCallback):
    """Warns when evaluations say that the reward is being hacked: it is higher than where the metric was best.

    After each evaluation the metric is compared with its best so far. Once it has been worse `patience` times in a row,
    and the reward higher than at that best, a warning says so, with the step to go back to; it is repeated only after
    the metric has recovered. `load_best_model_at_end` with `metric_for_best_model` does the going back.

    Args:
        metric: key of what `compute_metrics` returns, such as "map"; the prefix `eval_` may be left out. Of several
            evaluation data sets: with the name of one, "new_map".
        reward: the key it is compared with: "new_reward".
        greater_is_better: of the metric.
        patience: evaluations.
        tolerance: how much worse the metric must be, as a share of its best, to count.

    Raises:
        ValueError: at the first evaluation with only one of the two; `patience` below 1.
    """

    def __init__(
        self,
        metric: str,
        reward: str = "reward",
        greater_is_better: bool = True,
        patience: int = 2,
        tolerance: float = 0.0,
    ):
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}.")
        self.metric, self.reward = f"eval_{metric.removeprefix('eval_')}", f"eval_{reward.removeprefix('eval_')}"
        self.greater_is_better, self.patience, self.tolerance = greater_is_better, patience, tolerance
        self.best: tuple[float, float, int] | None = None  # metric (larger is better), reward, step
        self.num_worse = 0

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        missing = [key for key in (self.metric, self.reward) if key not in metrics]
        if len(missing) == 2:
            return  # another one of several data sets
        if missing:
            raise ValueError(
                f"The evaluation has no {missing[0]}; it has {', '.join(sorted(metrics))}. Pass compute_metrics, and give "
                "RewardMetricDivergenceCallback the keys; with several data sets they are such as `new_map` and `new_reward`."
            )
        value = metrics[self.metric] if self.greater_is_better else -metrics[self.metric]
        if self.best is None or value >= self.best[0]:
            self.best, self.num_worse = (value, metrics[self.reward], state.global_step), 0
            return
        best, reward, step = self.best
        if best - value <= self.tolerance * abs(best) or metrics[self.reward] <= reward:
            self.num_worse = 0
            return
        self.num_worse += 1
        if self.num_worse == self.patience and state.is_world_process_zero:
            logger.warning(
                "The reward rises while %s falls: they are %.4g and %.4g now, and were %.4g and %.4g at step %d. The model has "
                "found what the reward overlooks: stop there, add what is missing to the reward, or hold the model "
                "back (beta).",
                self.metric,
                metrics[self.reward],
                metrics[self.metric],
                reward,
                best if self.greater_is_better else -best,
                step,
            )
