"""Rewards run in threads while the next chunk is sampled, with the same results as in serial order."""

import copy
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from scripts.launch import ACCELERATE, launch
from scripts.train import make_trainer, train
from tiny import share_of_a, text_dataset
from torch import nn
from transformers import TrainerCallback

from vision_rl import VisionRewardConfig
from vision_rl.trainer.reward_workers import RewardWorkers
from vision_rl.trainer.timing import StepClock


pytestmark = pytest.mark.usefixtures("one_thread")

# Rollouts of 8 images are sampled in two chunks and learned from in four micro-batches.
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 3}
SPLIT |= {"per_device_generation_batch_size": 4}
PARTS = {"data", "encode", "sample", "decode", "reward", "learn", "optimizer"}


def scored_by(reward, tmp_path, cls=None, **options):
    """A trainer of `make_trainer` with the reward of a test, and with its class if one is given."""
    made = make_trainer("reward", tmp_path, **{**SPLIT, **options})
    made.reward = type(made.reward)(
        reward,
        num_workers=made.args.reward_num_workers,
        timeout=made.args.reward_timeout,
        find_failing_row=made.args.find_failing_row,
    )
    if cls is not None:
        made.__class__ = cls
    return made


def without_times(log: dict) -> dict:
    return {key: value for key, value in log.items() if not key.startswith(("timing/", "step_time"))}


def results(trainer) -> dict:
    trainer.train()
    return {
        "logs": [without_times(log) for log in trainer.state.log_history if "loss" in log],
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "seen": trainer.seen,
        "random": torch.rand(()).item(),  # the next number of torch's generator
    }


def assert_identical(one, other):
    assert one["logs"] == other["logs"]
    assert one["seen"] == other["seen"]
    assert one["random"] == other["random"]
    assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())


def uneven(completions, completion_ids, log_metric, **kwargs):
    """A reward that takes longer for some chunks, so that chunks end in another order than they began."""
    time.sleep(0.002 * (sum(map(len, completion_ids)) % 7))
    log_metric("letters", float(sum(map(len, completions))))
    return share_of_a(completions)


async def asynchronous(completions, **kwargs):
    return [float(len(text)) for text in completions]


# --- the same results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoder", "options"),
    [("ours", {}), ("gpt2", {"baseline": "greedy", "beta": 0.1}), ("bert", {"disable_dropout": False, "bf16": True})],
)
def test_with_workers_every_bit_is_that_of_the_serial_order(tmp_path, decoder, options):
    runs = []
    for workers in (0, 2):
        trainer = scored_by([uneven, asynchronous], tmp_path, decoder=decoder, reward_num_workers=workers, **options)
        runs.append(results(trainer))
    assert_identical(*runs)


class ClippedRewards:
    """Overrides `_score` by changing what it returns."""

    def _score(self, completions, inputs):
        rewards, targets = super()._score(completions, inputs)
        return rewards.clamp(max=0.2), targets


class RewardsOfItsOwn:
    def _score(self, completions, inputs):
        return completions.completion_mask.sum(-1).float(), []


@pytest.mark.parametrize("seam", [ClippedRewards, RewardsOfItsOwn])
def test_an_overridden_score_gives_the_same_with_workers(tmp_path, seam):
    base = type(make_trainer("reward", tmp_path))
    cls = type("Overriding", (seam, base), {})
    runs = [results(scored_by(uneven, tmp_path, cls, reward_num_workers=workers)) for workers in (0, 2)]
    for run in runs:
        for log in run["logs"]:
            log.pop("letters", None)
    assert_identical(*runs)


def test_a_score_of_other_completions_than_the_drawn_ones_is_computed_for_those(tmp_path):
    base, pairs = type(make_trainer("reward", tmp_path)), []

    class FirstTwice(base):
        def _score(self, completions, inputs):
            twice = type(completions)(*(field[:, :1].expand_as(field) for field in completions))
            rewards, targets = super()._score(twice, inputs)
            pairs.append(rewards)
            return rewards, targets

    scored_by(share_of_a, tmp_path, FirstTwice, reward_num_workers=1).train()
    first, second = torch.cat(pairs).unbind(1)
    assert torch.equal(first, second) and len(first.unique()) > 1


def test_two_ranks_take_the_steps_of_one_with_workers_and_with_nothing_to_learn_on_one_of_them(tmp_path):
    """With completions of one token most images have two equal rewards, and some ranks have no other image."""
    call = {"kind": "reward", "rows": 20, "max_completion_length": 1, "max_steps": 3}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    calls = {f"workers_{count}": {**call, **split, "reward_num_workers": count} for count in (0, 2)}
    records = launch([*ACCELERATE, "--multi_gpu", "--num_processes", "2"], calls, tmp_path)
    for serial, parallel in zip(records["workers_0"], records["workers_2"], strict=True):
        assert parallel["weights"] == serial["weights"] == records["workers_0"][0]["weights"]
        assert parallel["seen"] == serial["seen"]
        assert list(map(without_times, parallel["logs"])) == list(map(without_times, serial["logs"]))
    alone = train(folder=tmp_path / "alone", **call)
    for log, expected in zip(records["workers_2"][0]["logs"], alone["logs"], strict=True):
        assert without_times(log) == pytest.approx(without_times(expected), rel=1e-4, abs=1e-6)
    nothing = [
        len({tuple(ids) == (2,) for ids in drawn}) == 1
        for record in records["workers_0"]
        for _, _, drawn in record["seen"]
    ]
    assert any(all(nothing[i : i + 2]) for i in range(0, len(nothing), 2)) and not all(nothing)


# --- the order of events --------------------------------------------------------------------------------------------


class Watching:
    """Keeps the order of sampling and learning."""

    events: list[str]

    def _sample(self, inputs):
        self.events.append(f"sample {len(inputs['row_index'])}")
        return super()._sample(inputs)

    def _learn(self, model, inputs, *args):
        self.events.append(f"learn {len(inputs['row_index'])}")
        return super()._learn(model, inputs, *args)


def watching(tmp_path, reward, events, **options):
    base = type(make_trainer("reward", tmp_path))
    return scored_by(reward, tmp_path, type("WatchingTrainer", (Watching, base), {"events": events}), **options)


@pytest.mark.parametrize("options", [{"reward_num_workers": 1, "per_device_generation_batch_size": None}, {}])
def test_all_images_of_an_update_step_are_answered_and_scored_before_the_first_is_learned_from(tmp_path, options):
    events: list[str] = []

    def reward(completions, **kwargs):
        events.append("reward")
        return share_of_a(completions)

    watching(tmp_path, reward, events, max_steps=2, **options).train()
    for step in (events[:8], events[8:]):
        assert sorted(step[:4]) == ["reward", "reward", "sample 4", "sample 4"]
        assert step[4:] == ["learn 2"] * 4


def test_the_next_chunk_is_sampled_while_the_reward_of_the_last_is_computed(tmp_path):
    events: list[str] = []
    deadline = 20

    def patient(completions, **kwargs):
        end = time.monotonic() + deadline
        while events.count("sample 4") < 2 and time.monotonic() < end:
            time.sleep(0.001)
        assert events.count("sample 4") == 2, "the next chunk was not sampled meanwhile"
        return share_of_a(completions)

    watching(tmp_path, patient, events, reward_num_workers=1, max_steps=1).train()


def test_without_workers_rewards_run_in_the_main_thread(tmp_path):
    def reward(completions, **kwargs):
        assert threading.current_thread() is threading.main_thread()
        return share_of_a(completions)

    scored_by(reward, tmp_path, max_steps=1).train()


def test_a_training_that_is_stopped_within_a_step_begins_the_next_one_anew(tmp_path):
    class StopOnce(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    trainer = scored_by(share_of_a, tmp_path, reward_num_workers=1)
    stop = StopOnce()
    trainer.add_callback(stop)
    trainer.train()
    assert trainer.state.global_step == 0
    trainer.remove_callback(stop)
    trainer.seen.clear()
    trainer.model.zero_grad()
    trainer.train()
    assert trainer.state.global_step == 3
    assert len(trainer.seen) == 3 * 8


# --- errors ---------------------------------------------------------------------------------------------------------


def fails_on_row_3(completions, references, **kwargs):
    if text_dataset(16)["text"][3] in references:
        raise KeyError("no such word")
    return share_of_a(completions)


def message(call) -> str:
    with pytest.raises(Exception) as info:
        call()
    return f"{type(info.value).__name__}: {info.value}"


@pytest.mark.parametrize(
    "reward", [fails_on_row_3, lambda completions, **kwargs: [1.0], lambda completions, **kwargs: "none"]
)
def test_an_error_in_a_worker_reads_as_it_does_inline(tmp_path, reward):
    options = {"rows": 8, "find_failing_row": True}
    messages = [message(scored_by(reward, tmp_path, reward_num_workers=count, **options).train) for count in (0, 2)]
    assert messages[0] == messages[1]
    if reward is fails_on_row_3:
        assert "The reward `fails_on_row_3` raised KeyError on row 3, completion" in messages[0]


def test_an_exit_in_a_worker_ends_the_training(tmp_path):
    def leaves(completions, **kwargs):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        scored_by(leaves, tmp_path, reward_num_workers=1).train()


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_reward_that_takes_too_long_is_named(tmp_path, kind):
    released = threading.Event()

    def hangs(completions, **kwargs):
        released.wait(60)
        return share_of_a(completions)

    async def hangs_async(completions, **kwargs):
        import asyncio

        await asyncio.sleep(60)

    reward = hangs if kind == "plain" else hangs_async
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"`{reward.__name__}` was not ready after 0.2 s \(reward_timeout\), on"):
        scored_by(reward, tmp_path, reward_num_workers=1, reward_timeout=0.2).train()
    assert time.monotonic() - start < 20
    released.set()


def test_a_reward_is_not_called_again_after_it_has_raised_unless_asked_for(tmp_path):
    calls = []

    def loses_its_connection(completions, **kwargs):
        calls.append(len(completions))
        raise KeyError("gone")  # and a second call might hang

    with pytest.raises(RuntimeError, match=r"`loses_its_connection` raised KeyError on the rows \["):
        scored_by(loses_its_connection, tmp_path, reward_num_workers=1, reward_timeout=5.0).train()
    before = len(calls)
    assert set(calls) == {4 * 2} and before <= 2  # from the first chunk, and perhaps from the next


def test_the_greedy_completions_are_scored_right_after_the_samples_of_their_chunk(tmp_path):
    sizes = []

    def counted(completions, **kwargs):
        sizes.append(len(completions))
        return share_of_a(completions)

    scored_by(counted, tmp_path, reward_num_workers=1, baseline="greedy", max_steps=1).train()
    assert sizes == [8, 4] * 2


def test_copies_of_workers_have_threads_of_their_own():
    workers = RewardWorkers(2)
    for copied in (copy.deepcopy(workers), pickle.loads(pickle.dumps(workers))):
        assert copied.submit(int, "7").result() == 7


@pytest.mark.parametrize("workers", [0, 1])
def test_rewards_are_asked_outside_of_autocast_in_training_and_in_evaluation(tmp_path, workers):
    seen = set()

    def looks(completions, **kwargs):
        seen.add(torch.is_autocast_enabled("cpu"))
        return share_of_a(completions)

    trainer = scored_by(looks, tmp_path, bf16=True, reward_num_workers=workers, max_steps=1)
    trainer.train()
    trainer.evaluate()
    assert seen == {False}


def test_a_reward_that_hangs_does_not_keep_the_interpreter_from_exiting(tmp_path):
    script = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from vision_rl.trainer.reward_workers import RewardWorkers
workers = RewardWorkers(2)
future = workers.submit(time.sleep, 600)
print(workers.submit(int, "7").result())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_the_threads_end_with_what_they_work_for():
    workers = RewardWorkers(2)
    assert workers.submit(int, "7").result(20) == 7
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("vision_rl rewards")]
    del workers
    deadline = time.monotonic() + 20
    while any(thread.is_alive() for thread in threads[-2:]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in threads[-2:])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"reward_num_workers": -1}, "must not be negative"),
        ({"reward_num_workers": 1, "reward_timeout": 0}, "must be positive"),
        ({"reward_timeout": 5.0}, "needs reward_num_workers of at least 1"),
        (
            {"reward_timeout": 5.0, "reward_num_workers": 1, "find_failing_row": True},
            "calls a reward again.*may then hang",
        ),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size must be at least 1, got -1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"on_reward_error": "zero"}, "on_reward_error must be 'raise' or 'skip', got 'zero'"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, what):
    with pytest.raises(ValueError, match=what):
        VisionRewardConfig("out", use_cpu=True, **options)


# --- timing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "beta"), [(0, 0.0), (2, 0.0), (0, 0.1)])
def test_the_log_says_where_the_time_of_a_step_went(tmp_path, workers, beta):
    def slow(completions, **kwargs):
        time.sleep(0.02)
        return share_of_a(completions)

    trainer = scored_by(slow, tmp_path, reward_num_workers=workers, beta=beta, logging_steps=3)
    trainer.train()
    (log,) = (log for log in trainer.state.log_history if "loss" in log)
    timing = {key.removeprefix("timing/"): value for key, value in log.items() if key.startswith("timing/")}
    assert set(timing) == (PARTS | {"reference"} if beta else PARTS)
    inside = sum(value for part, value in timing.items() if part not in ("data", "optimizer"))
    assert 0.8 * log["step_time"] < inside <= log["step_time"]
    if not workers:
        assert timing["reward"] > 2 * 0.02  # an update step has two chunks


def test_a_completion_decoder_has_a_line_of_its_own(tmp_path):
    class Slow(nn.Module):
        def forward(self, completion_ids, batch):
            time.sleep(0.02)
            return ["a"] * completion_ids.flatten(0, 1).shape[0]

    trainer = make_trainer("reward", tmp_path, completion_decoder=Slow(), max_steps=2, eval_dataset=None)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["timing/decode"] > 0.02 > log["timing/reward"] for log in logs)


def test_a_clock_gives_each_part_the_time_until_the_next():
    clock = StepClock(torch.device("cpu"))
    clock.enter("a")
    time.sleep(0.02)
    clock.enter("b")
    clock.enter("a")
    time.sleep(0.02)
    clock.enter(None)
    time.sleep(0.02)
    clock.enter("b")
    seconds = clock.read()
    assert set(seconds) == {"a", "b"} and seconds["a"] >= 0.04 and seconds["b"] < 0.02
    assert clock.read() == {}


def test_statistics_are_those_of_the_whole_update_step_in_every_split(tmp_path):
    logs = []
    for batch, accumulated in ((8, 1), (2, 4)):
        trainer = make_trainer(
            "reward", tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated
        )
        trainer.train()
        logs.append([log for log in trainer.state.log_history if "loss" in log])
    for whole, split in zip(*logs, strict=True):
        assert without_times(split) == pytest.approx(without_times(whole), rel=1e-4, abs=1e-5)
