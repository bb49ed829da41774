"""The warnings that a run gives by itself, each of them once."""

import pytest
from transformers import TrainerControl, TrainerState

from vision_rl import VisionRewardConfig
from vision_rl.trainer.run_watch import WINDOW, RunWatch


def said(caplog, lines: list[dict], **options) -> list[str]:
    """The warnings of a run with these lines in its log."""
    args = VisionRewardConfig("out", use_cpu=True, **options)
    watch, state, control = RunWatch(args), TrainerState(is_world_process_zero=True), TrainerControl()
    caplog.clear()
    watch.on_train_begin(args, state, control)
    for step, line in enumerate(lines):
        state.global_step = step
        watch.on_log(args, state, control, logs={"loss": 0.0, **line})
    return [record.message for record in caplog.records]


def noisy(levels: list[float], spread: float = 0.01) -> list[dict]:
    """For each level a window of rewards around it."""
    return [{"reward": level + spread * (-1) ** place} for level in levels for place in range(WINDOW)]


def test_a_gradient_that_is_always_clipped_is_pointed_out_once(caplog):
    lines = [{"grad_norm": 3.0 + place} for place in range(3 * WINDOW)]
    (warning,) = said(caplog, lines, max_grad_norm=1.0)
    assert "max_grad_norm=1 has cut the gradient at each of the last 10 log lines" in warning
    assert "3 to 12" in warning


@pytest.mark.parametrize("options", [{"max_grad_norm": 0.0}, {"max_grad_norm": 50.0}, {}])
def test_a_gradient_that_is_not_clipped_is_not(caplog, options):
    assert not said(caplog, [{"grad_norm": 3.0}] * 3 * WINDOW, **options)


def test_nor_is_one_that_is_clipped_now_and_then(caplog):
    lines = [{"grad_norm": 0.9 if place % 5 == 0 else 3.0} for place in range(5 * WINDOW)]
    assert not said(caplog, lines, max_grad_norm=1.0)


def test_a_reward_that_loses_half_of_its_gain_is_pointed_out_once(caplog):
    (warning,) = said(caplog, noisy([0.2, 0.5, 0.8, 0.4, 0.2, 0.1]))
    assert "The reward has lost half of what it had gained" in warning
    assert "0.2 at the start, 0.8 at best around step 29" in warning


def test_a_reward_that_rises_or_only_wavers_is_not(caplog):
    assert not said(caplog, noisy([0.2, 0.5, 0.8, 0.7, 0.6, 0.9]))
    assert not said(caplog, noisy([0.2, 0.21, 0.2, 0.19, 0.2], spread=0.1))


def test_a_policy_that_is_not_the_one_that_sampled_is_pointed_out_in_float32_only(caplog):
    lines = [{"sampling/ratio_error": 0.02}] * 3
    (warning,) = said(caplog, lines)
    assert "The policy that learns is not the one that sampled" in warning and "0.02" in warning
    assert not said(caplog, lines, bf16=True) and not said(caplog, lines, disable_dropout=False)
    assert not said(caplog, [{"sampling/ratio_error": 1e-5}] * 3)
