"""For runs of days: what a step makes is freed after it, and what a trainer starts ends with it."""

import gc
import multiprocessing
import threading
import weakref
from pathlib import Path

import pytest
import torch
from scripts.train import make_trainer
from transformers import TrainerCallback


pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = 4096


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Counting(TrainerCallback):
    """Records live tensors and resident memory at some steps."""

    def __init__(self, steps):
        self.steps, self.tensors, self.resident = steps, [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            gc.collect()
            self.tensors.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
            self.resident.append(resident_bytes())


@pytest.mark.parametrize("kind", ["mle", "reward"])
def test_steps_do_not_grow(tmp_path, kind):
    """150 steps here; 1,000 were run by hand."""
    counting = Counting((50, 100, 150))
    options = {"reward_num_workers": 1, "baseline": "greedy"} if kind == "reward" else {"on_nonfinite": "skip"}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    make_trainer(kind, tmp_path, max_steps=150, logging_steps=10, callbacks=[counting], **split, **options).train()
    assert counting.tensors[2] <= counting.tensors[0] + 2, counting.tensors
    assert counting.resident[2] - counting.resident[1] < 8 * 2**20, counting.resident


def started() -> tuple[set[str], int]:
    """The names of the threads, and the number of child processes, after collected ones have had time to end."""
    gc.collect()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "vision_rl rewards" in thread.name:
            thread.join(1)
    return {thread.name for thread in threading.enumerate()}, len(multiprocessing.active_children())


@pytest.mark.parametrize("kind", ["mle", "reward"])
def test_what_a_trainer_started_is_gone_after_training_and_when_it_is_collected(tmp_path, kind):
    before = started()
    options = {"dataloader_num_workers": 2, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    if kind == "reward":
        options["reward_num_workers"] = 2
    trainer = make_trainer(kind, tmp_path, **options)
    trainer.train()
    names, children = started()
    assert children == before[1]
    assert all("vision_rl rewards" in name for name in names - before[0])
    collected = weakref.ref(trainer.model)
    del trainer
    assert started() == before
    assert collected() is None


def test_a_trainer_that_failed_leaves_no_worker(tmp_path):
    before = started()
    trainer = make_trainer("mle", tmp_path, dataloader_num_workers=2, dataloader_persistent_workers=True)
    trainer.compute_loss = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    del trainer
    assert started() == before
