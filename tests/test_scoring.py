"""Rewards that fail, hang or return nonsense are named, waited for, skipped if asked to, and kept apart."""

import asyncio
import ctypes
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from tiny import share_of_a, text_dataset, text_processor, tiny_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from vision_rl import RewardOutput, TokenTargets, VisionRewardConfig, VisionRewardTrainer
from vision_rl.trainer.collator import BatchColumns
from vision_rl.trainer.reward_models import TextRewardModel
from vision_rl.trainer.reward_scaling import normalized_sum
from vision_rl.trainer.scoring import RewardSum, Scores


TEXTS = ["cab", "ab", "b"]


def scored(reward: RewardSum, completions=TEXTS, **columns) -> Scores:
    ids = [[5] * len(text) for text in completions]
    return reward(list(completions), ids, BatchColumns(columns, None, []), list(range(len(completions))), None)


def lengths(completions, **kwargs):
    return [float(len(text)) for text in completions]


# --- numbers --------------------------------------------------------------------------------------------------------


class Refusing:
    def __float__(self):
        raise KeyError("no number")

    def __repr__(self):
        raise KeyError("no text")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (1e39, "1e[+]39, beyond float32's limit 3.4e[+]38,"),
        (-1e300, "-1e[+]300, beyond float32's limit 3.4e[+]38,"),
        (10**400, "a number beyond float32's range"),
        (float("inf"), "inf"),
        (np.float64("nan"), "nan"),
        ("1.0", "a str"),
        ([1.0], "a list"),
        (1j, "a complex"),
        (Refusing(), "a Refusing"),
    ],
)
def test_what_is_no_number_to_learn_from_names_reward_and_row(value, problem):
    def odd(completions, **kwargs):
        return [1.0, value, 2.0]

    with pytest.raises(ValueError, match=f"The reward `odd` returned {problem} for row 1, completion 'ab'; it must"):
        scored(RewardSum(odd))


def test_numbers_of_other_kinds_are_numbers():
    def kinds(completions, **kwargs):
        return [True, np.float32(0.5), torch.tensor(2)]

    assert scored(RewardSum(kinds)).rewards.tolist() == [1, 0.5, 2]
    for returned in (torch.ones(3, dtype=torch.bfloat16), np.ones(3, np.int64), (1, 1, 1)):
        assert scored(RewardSum(lambda returned=returned, **kwargs: returned)).rewards.tolist() == [1, 1, 1]


def test_a_sum_that_leaves_float32_blames_the_weights():
    with pytest.raises(
        ValueError, match=r"sum of the rewards \['huge'\] is too large for float32: lower reward_weights"
    ):

        def huge(completions, **kwargs):
            return [3e38] * len(completions)

        scored(RewardSum(huge, [10.0]))


# --- rewards that raise -----------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self):
        raise KeyError("no text")


def raising(error, calls=None):
    def broken(completions, **kwargs):
        if calls is not None:
            calls.append(len(completions))
        if "ab" in completions:
            raise error
        return lengths(completions)

    return broken


def test_an_error_without_a_text_still_has_the_rewards_name():
    with pytest.raises(
        RuntimeError, match=r"`broken` raised Unspeakable on the rows \[0, 1, 2\]: \(its text cannot be"
    ):
        scored(RewardSum(raising(Unspeakable())))


def test_a_reward_that_raises_is_called_again_only_if_asked_to():
    calls = []
    with pytest.raises(RuntimeError, match=r"`broken` raised KeyError on the rows \[0, 1, 2\]: 'gone'"):
        scored(RewardSum(raising(KeyError("gone"), calls)))
    assert calls == [3]
    with pytest.raises(RuntimeError, match="`broken` raised KeyError on row 1, completion 'ab': 'gone'"):
        scored(RewardSum(raising(KeyError("gone"), calls), find_failing_row=True))
    assert len(calls) > 2


def test_a_completion_that_cannot_be_shown_or_is_long_is_no_obstacle():
    def broken(completions, **kwargs):
        raise KeyError("gone")

    for completion, text in ((Refusing(), "<a Refusing whose repr raises KeyError>"), ("x" * 9999, r"x{299}\.\.\.: ")):
        with pytest.raises(RuntimeError, match=text):
            reward = RewardSum(broken, find_failing_row=True)
            reward([completion], [[5]], BatchColumns({}, None, []), [0], None)


def test_rewards_behind_one_that_failed_are_not_computed():
    calls = []
    with pytest.raises(RuntimeError, match="`broken` raised KeyError"):
        scored(RewardSum([raising(KeyError("gone")), lambda completions, **kwargs: calls.append(1)]))
    assert not calls


# --- async rewards ------------------------------------------------------------------------------------------------------


async def patient(completions, **kwargs):
    await asyncio.sleep(0)
    return lengths(completions)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("leaving", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("nested", [False, True])
def test_an_async_reward_that_exits_ends_the_training_and_no_later_one(workers, leaving, nested, caplog):
    async def leaves(completions, **kwargs):
        async def inner():
            raise leaving

        await (asyncio.create_task(inner()) if nested else inner())

    start = time.monotonic()
    with pytest.raises(type(leaving)):
        scored(RewardSum([leaves, patient], num_workers=workers))
    assert f"The reward `leaves` raised {type(leaving).__name__}: training ends" in caplog.text
    assert scored(RewardSum(patient, num_workers=workers)).rewards.tolist() == [3, 2, 1]
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("by_timeout", [True, False])
def test_an_async_reward_that_blocks_the_loop_times_out_no_later_trainer(by_timeout, caplog):
    begun, released = threading.Event(), threading.Event()

    async def blocks(completions, **kwargs):
        begun.set()
        released.wait(60)
        return lengths(completions)

    def broken(completions, **kwargs):
        begun.wait(20)
        raise KeyError("gone")

    if by_timeout:
        with pytest.raises(TimeoutError, match="`blocks` was not ready after 0.2 s"):
            scored(RewardSum(blocks, num_workers=1, timeout=0.2))
    else:  # the other reward has failed, so nobody waits for this one
        with pytest.raises(RuntimeError, match="`broken` raised"):
            scored(RewardSum([broken, blocks], num_workers=2))
    assert "An async reward blocks the event loop" in caplog.text
    for _ in range(2):
        assert scored(RewardSum(patient, num_workers=1, timeout=20.0)).rewards.tolist() == [3, 2, 1]
    released.set()


def test_an_async_reward_that_only_takes_long_keeps_its_loop(caplog):
    async def slow(completions, **kwargs):
        await asyncio.sleep(30)

    with pytest.raises(TimeoutError, match="`slow` was not ready"):
        scored(RewardSum(slow, num_workers=1, timeout=0.1))
    assert "blocks the event loop" not in caplog.text


# --- threads --------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_named_and_replaced(caplog):
    reward = RewardSum(lengths, num_workers=2)
    assert scored(reward).rewards.tolist() == [3, 2, 1]
    victim = reward.workers._threads[0]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim.ident), ctypes.py_object(Killed))
    deadline = time.monotonic() + 20
    while victim.is_alive() and time.monotonic() < deadline:
        scored(reward)
    for _ in range(4):
        assert scored(reward).rewards.tolist() == [3, 2, 1]
    assert "The thread `vision_rl rewards 0` has died; another takes its place" in caplog.text


def test_threads_that_are_killed_at_any_time_never_keep_a_trainer_waiting():
    """Threads are killed at work, between two calls, or with a call in hand: another takes over, or the caller is told."""
    script = """
import ctypes, time
from vision_rl.trainer.reward_workers import RewardWorkers

class Killed(BaseException):
    pass

def busy(number):
    return number + 0 * sum(i % 7 for i in range(2000))

outcomes = set()
for kill in range(40):
    workers = RewardWorkers(1 + kill % 2)
    futures = [workers.submit(busy, 1) for _ in range(3)]
    time.sleep(0.0003 * (kill % 8))
    for thread in workers._threads:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Killed))
    for future in futures:
        while not future.done():
            time.sleep(0.001)
            workers.check()
        outcomes.add(future.result() if future.exception() is None else type(future.exception()).__name__)
print(1 in outcomes and outcomes <= {1, "RuntimeError", "Killed"}, outcomes)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("True"), done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_rewards_in_threads_have_the_trainers_cuda_device(kind, monkeypatch):
    current = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.update({threading.get_ident(): device}))
    seen = []

    def looks(completions, **kwargs):
        seen.append(current[threading.get_ident()])
        return lengths(completions)

    async def looks_async(completions, **kwargs):
        return looks(completions)

    reward = RewardSum(looks if kind == "plain" else looks_async, num_workers=2)
    reward.device = torch.device("cuda", 3)
    scored(reward)
    assert seen == [torch.device("cuda", 3)] and threading.get_ident() not in current


# --- on_error="skip" --------------------------------------------------------------------------------------------------------


def test_a_reward_that_raises_is_skipped_counted_and_told(caplog):
    reward = RewardSum([raising(KeyError("gone")), lengths], on_error="skip")
    scores = scored(reward)
    assert scores.rewards.isnan().all()  # a sum that lacks a part would be another reward
    assert scores.per_function[:, 1].tolist() == [3, 2, 1]
    assert scores.logged == {"rewards/broken/skipped": 1.0, "rewards/lengths/skipped": 0.0}
    assert "The reward `broken` raised KeyError on the rows [0, 1, 2]: 'gone' (skipped" in caplog.text
    assert scored(reward, ["cab", "b"]).rewards.tolist() == [6, 2]


def test_a_completion_without_a_number_is_skipped_alone(caplog):
    def half(completions, **kwargs):
        targets = TokenTargets(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[1], [2]]), torch.ones(2, 1))
        return RewardOutput([0.5, float("nan"), None], targets, torch.zeros(3, 3))

    scores = scored(RewardSum([half, lengths], on_error="skip"))
    torch.testing.assert_close(scores.rewards, torch.tensor([3.5, float("nan"), 1.0]), equal_nan=True)
    assert scores.returns[1].isnan().all() and scores.returns[0, 0] == 3.5
    assert scores.token_targets[0].positions.tolist() == [[0, 0]]
    assert scores.logged["rewards/half/skipped"] == pytest.approx(1 / 3)
    assert "returned nan for row 1, completion 'ab'" in caplog.text and "1 of 3 are skipped" in caplog.text


def test_a_completion_that_one_reward_skips_learns_no_token_targets_of_another():
    def teacher(completions, **kwargs):
        positions = torch.tensor([[row, 0] for row in range(3)])
        return RewardOutput([1.0] * 3, TokenTargets(positions, torch.full((3, 1), 2), torch.ones(3, 1)))

    def broken(completions, **kwargs):
        return [float("nan"), 1.0, 1.0]

    scores = scored(RewardSum([broken, teacher], on_error="skip"))
    assert scores.rewards.isnan().tolist() == [True, False, False]
    assert scores.token_targets[0].positions[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("watched", [[1.0, 1.0, 1.0], [None, 5.0, float("nan")]])
def test_a_reward_of_weight_0_changes_nothing_of_what_is_learned(watched):
    def learned(completions, **kwargs):
        targets = TokenTargets(torch.tensor([[row, 0] for row in range(3)]), torch.full((3, 1), 2), torch.ones(3, 1))
        return RewardOutput([None, 4.0, 2.0], targets, torch.zeros(3, 3))

    def monitor(completions, **kwargs):
        return watched

    alone = scored(RewardSum([learned], on_error="skip"))
    both = scored(RewardSum([learned, monitor], [1.0, 0.0], on_error="skip"))
    torch.testing.assert_close(both.rewards, alone.rewards, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(both.returns, alone.returns, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(both.token_targets[0].positions, alone.token_targets[0].positions)
    weights, parts = torch.tensor([1.0, 0.0]), both.per_function[None]
    assert torch.equal(normalized_sum(parts, weights).isnan(), alone.rewards.isnan()[None])


def test_a_reward_of_weight_0_that_fails_teaches_no_token_targets_there():
    def monitor(completions, **kwargs):
        targets = TokenTargets(torch.tensor([[row, 0] for row in range(3)]), torch.full((3, 1), 2), torch.ones(3, 1))
        return RewardOutput([1.0, float("nan"), 1.0], targets)

    scores = scored(RewardSum([lengths, monitor], [1.0, 0.0], on_error="skip"))
    assert scores.rewards.tolist() == [3, 2, 1]
    assert scores.token_targets[0].positions[:, 0].tolist() == [0, 2]
    assert scores.logged["rewards/monitor/skipped"] == pytest.approx(1 / 3)


def test_where_all_weights_are_0_the_sum_is_0_where_a_reward_applies():
    def some(completions, **kwargs):
        return [None, 4.0, 2.0]

    torch.testing.assert_close(
        scored(RewardSum([some], [0.0])).rewards, torch.tensor([float("nan"), 0.0, 0.0]), equal_nan=True
    )


@pytest.mark.parametrize("kind", ["plain", "async", "blocking"])
def test_a_reward_that_hangs_is_skipped_and_what_it_blocks_replaced(kind):
    released = threading.Event()

    def hangs(completions, **kwargs):
        if "b" in completions:
            released.wait(60)
        return lengths(completions)

    async def hangs_async(completions, **kwargs):
        if "b" in completions:
            released.wait(60) if kind == "blocking" else await asyncio.sleep(60)
        return lengths(completions)

    reward = RewardSum(hangs if kind == "plain" else hangs_async, num_workers=1, timeout=0.3, on_error="skip")
    for _ in range(2):
        assert scored(reward).rewards.isnan().all()
        assert scored(reward, ["cab"]).rewards.tolist() == [3]
    released.set()


@pytest.mark.parametrize("returned", ["none", [1.0], 7])
def test_what_is_no_list_of_rewards_is_skipped(returned):
    scores = scored(RewardSum([lambda completions, **kwargs: returned], on_error="skip"))
    assert scores.rewards.isnan().all()


def test_a_reward_that_fails_for_good_ends_the_training_after_all(monkeypatch):
    monkeypatch.setattr("vision_rl.trainer.scoring.MOST_SKIPPED", 3)
    reward = RewardSum(raising(KeyError("gone")), on_error="skip")
    for completions in (TEXTS, TEXTS, ["b"], TEXTS, TEXTS):
        scored(reward, completions)
    with pytest.raises(RuntimeError, match="The reward `broken` has failed 3 times in a row: .* raised KeyError"):
        scored(reward)


# --- lists of its own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_what_one_reward_sorts_or_empties_the_others_do_not_see(workers):
    def spoils(completions, completion_ids, boxes, references=None, **kwargs):
        rewards = [float(len(one["labels"])) for one in boxes]
        completions.sort()
        for ids, one in zip(completion_ids, boxes, strict=True):
            ids.clear()
            one["labels"].reverse()
            del one["nested"][0]["deep"]
            one["tensor"].zero_()
        boxes.clear()
        return rewards

    def looks(completions, completion_ids, boxes, **kwargs):
        assert completions == TEXTS and completion_ids == [[5] * 3, [5] * 2, [5]]
        assert [one["labels"] for one in boxes] == [[1, 2]] * 3
        assert all("deep" in one["nested"][0] and one["tensor"].all() for one in boxes)
        return lengths(completions)

    boxes = [{"labels": [1, 2], "nested": ({"deep": [0]},), "tensor": torch.ones(2)} for _ in TEXTS]
    reward = RewardSum([spoils, looks, spoils, looks], num_workers=workers)
    for _ in range(3):
        assert scored(reward, boxes=boxes).rewards.tolist() == [10, 8, 6]


def test_an_array_is_not_copied_and_cannot_be_written_to():
    array = np.arange(3.0)

    def writes(completions, map, **kwargs):
        map[0][:] = 0
        return lengths(completions)

    def reads(completions, map, **kwargs):
        assert np.shares_memory(map[0], array)
        return lengths(completions)

    with pytest.raises(RuntimeError, match="`writes` raised ValueError .* assignment destination is read-only"):
        scored(RewardSum(writes), map=[array] * 3)
    scored(RewardSum(reads), map=[array] * 3)
    assert array.flags.writeable and array.tolist() == [0, 1, 2]


# --- what rewards log -----------------------------------------------------------------------------------------------------


def test_each_call_has_what_its_rewards_logged():
    def one(completions, log_metric, **kwargs):
        log_metric("both", 1.0)
        log_metric("mine", torch.tensor(5))
        return lengths(completions)

    def other(completions, log_metric, **kwargs):
        log_metric("both", 2.0)
        return lengths(completions)

    assert scored(RewardSum([one, other], num_workers=2)).logged == {"both": 1.5, "mine": 5.0}


# --- modules ------------------------------------------------------------------------------------------------------------------


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(1, 1), nn.Dropout(0.5)
        self.seen = []

    def forward(self, completions, log_metric, **kwargs):
        lengths = torch.tensor([[float(len(text))] for text in completions], device=self.layer.weight.device)
        scores = self.dropout(self.layer(lengths))
        self.seen.append((self.training, scores.requires_grad))
        return scores[:, 0]


def trainer(tmp_path, reward, **options) -> VisionRewardTrainer:
    tokenizers = options.pop("reward_processing_classes", None)
    defaults = {"per_device_train_batch_size": 4, "max_steps": 2, "max_completion_length": 6, "logging_steps": 1}
    args = VisionRewardConfig(str(tmp_path), report_to="none", use_cpu=True, **{**defaults, **options})
    return VisionRewardTrainer(
        tiny_model(),
        reward,
        args,
        train_dataset=text_dataset(16),
        processing_class=text_processor(),
        reward_processing_classes=tokenizers,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_module_is_a_reward_in_evaluation_mode_and_without_gradient(tmp_path, workers):
    module = Scorer().train()
    tuned = trainer(tmp_path, [module, share_of_a], reward_num_workers=workers, save_strategy="no")
    tuned.train()
    assert set(module.seen) == {(False, False)}
    assert "rewards/Scorer/mean" in next(log for log in tuned.state.log_history if "loss" in log)
    assert not {id(p) for p in module.parameters()} & {
        id(p) for g in tuned.optimizer.param_groups for p in g["params"]
    }


def test_a_module_is_asked_what_its_forward_takes(tmp_path):
    class Picky(nn.Module):
        def forward(self, completions, colour, **kwargs):
            return lengths(completions)

    with pytest.raises(ValueError, match="The reward `Picky` asks for a column that is not there"):
        trainer(tmp_path, Picky())


@pytest.fixture
def classifier(tmp_path):
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd", *(f"##{c}" for c in "abcd")])
    )
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_a_text_classifier_scores_each_text_as_it_does_alone(classifier):
    _, model, tokenizer = classifier
    texts = ["abcd", "", "b", "dcab"]
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
    for batch_size in (1, 3, 64):
        reward = TextRewardModel(model, tokenizer, batch_size)
        assert reward(texts) == pytest.approx(alone, abs=1e-5)
        assert reward([[{"role": "assistant", "content": text}] for text in texts]) == pytest.approx(alone, abs=1e-5)


def test_a_text_classifier_is_a_reward_by_itself_and_by_its_path(tmp_path, classifier):
    folder, model, tokenizer = classifier
    by_path = trainer(tmp_path / "a", [str(folder), share_of_a], max_steps=1, save_steps=1)
    by_path.train()
    given = trainer(tmp_path / "b", [model, share_of_a], max_steps=1, reward_processing_classes=[tokenizer, None])
    given.train()
    logs = [next(log for log in each.state.log_history if "loss" in log) for each in (by_path, given)]
    assert logs[0]["rewards/judge/mean"] == pytest.approx(
        logs[1]["rewards/BertForSequenceClassification/mean"], abs=1e-5
    )
    named = (tmp_path / "a" / "checkpoint-1" / "reward" / "rewards.json").read_text()
    assert str(folder) in named and "share_of_a" in named


def test_classifiers_and_tokenizers_that_do_not_fit_are_refused(classifier):
    _, model, tokenizer = classifier
    with pytest.raises(ValueError, match="reward_processing_classes has 1 entries for 2 reward functions"):
        RewardSum([model, lengths], processing_classes=[tokenizer])
    with pytest.raises(
        ValueError, match="has an entry for the reward `lengths`, a function, but only a model of transformers"
    ):
        RewardSum([model, lengths], processing_classes=[tokenizer, tokenizer])
    with pytest.raises(RuntimeError, match="`BertForSequenceClassification` scores text, but a completion is a int"):
        RewardSum(model, processing_classes=tokenizer)([7], [[5]], BatchColumns({}, None, []), [0], None)
    model.config.num_labels = 2
    with pytest.raises(ValueError, match="has 2 outputs, but a reward is one number"):
        RewardSum(model, processing_classes=tokenizer)


# --- in the trainer ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_past_a_reward_that_fails_now_and_then(tmp_path, caplog):
    def moody(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 1:
            raise ConnectionError("gone")
        return share_of_a(completions)

    with caplog.at_level(logging.WARNING):
        tuned = trainer(tmp_path, moody, max_steps=3, on_reward_error="skip", save_strategy="no")
        tuned.train()
    logs = [log for log in tuned.state.log_history if "loss" in log]
    assert [log["rewards/moody/skipped"] for log in logs] == [0, 1, 0]
    assert "reward" not in logs[1] and logs[1]["grad_norm"] == 0 and logs[2]["grad_norm"] > 0
    assert "The reward `moody` raised ConnectionError" in caplog.text
