"""The callback that warns when the metric falls while the reward rises."""

import logging

import pytest
from tiny import share_of_a, text_dataset, text_processor, tiny_model
from transformers import TrainerControl, TrainerState

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.tasks.ocr import character_error_rate
from vision_rl.trainer.callbacks import RewardMetricDivergenceCallback


def warnings_of(callback, evaluations, caplog) -> list[str]:
    """The warnings in a run with these pairs of reward and metric, one pair every ten steps."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for index, (reward, metric) in enumerate(evaluations):
            state = TrainerState(global_step=10 * index, is_world_process_zero=True)
            metrics = {"eval_reward": reward, "eval_map": metric}
            callback.on_evaluate(None, state, TrainerControl(), metrics)
    return [record.message for record in caplog.records]


def test_a_reward_that_rises_while_the_metric_falls_is_told_once_with_the_best_step(caplog):
    run = [(1.0, 0.30), (1.2, 0.40), (1.3, 0.38), (1.4, 0.35), (1.5, 0.30), (1.6, 0.2)]
    (message,) = warnings_of(RewardMetricDivergenceCallback("map"), run, caplog)
    assert "1.4 and 0.35 now, and were 1.2 and 0.4 at step 10" in message


@pytest.mark.parametrize(
    "run",
    [
        [(1.0, 0.3), (1.1, 0.4), (1.2, 0.5), (1.3, 0.6)],  # both rise
        [(1.0, 0.3), (0.9, 0.2), (0.8, 0.1), (0.7, 0.1)],  # both fall
        [(1.0, 0.3), (1.1, 0.2), (1.2, 0.35), (1.3, 0.3), (1.4, 0.4)],  # the metric recovers each time
    ],
)
def test_other_runs_are_left_in_peace(caplog, run):
    assert warnings_of(RewardMetricDivergenceCallback("map"), run, caplog) == []


def test_a_metric_to_be_lowered_and_a_tolerance_are_understood(caplog):
    rising_error = [(1.0, 0.30), (1.2, 0.31), (1.3, 0.32), (1.4, 0.40), (1.5, 0.41)]
    strict = RewardMetricDivergenceCallback("eval_map", greater_is_better=False)
    lenient = RewardMetricDivergenceCallback("map", greater_is_better=False, tolerance=0.5)
    assert len(warnings_of(strict, rising_error, caplog)) == 1
    assert warnings_of(lenient, rising_error, caplog) == []


def test_after_a_recovery_it_warns_again(caplog):
    run = [(1.0, 0.4), (1.1, 0.3), (1.2, 0.3), (1.2, 0.5), (1.3, 0.4), (1.4, 0.4)]
    assert len(warnings_of(RewardMetricDivergenceCallback("map"), run, caplog)) == 2


def test_a_metric_that_is_not_there_is_told_at_the_first_evaluation(tmp_path):
    with pytest.raises(ValueError, match="patience must be at least 1"):
        RewardMetricDivergenceCallback("map", patience=0)
    trainer = VisionRewardTrainer(
        tiny_model(),
        share_of_a,
        VisionRewardConfig(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        eval_dataset=text_dataset(4),
        processing_class=text_processor(),
        compute_metrics=character_error_rate,
        callbacks=[RewardMetricDivergenceCallback("map")],
    )
    with pytest.raises(ValueError, match="The evaluation has no eval_map; it has .*eval_cer"):
        trainer.evaluate()
