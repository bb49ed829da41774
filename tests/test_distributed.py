"""Several processes have the loss, gradient and samples of one, and equal weights on every rank; also with ZeRO."""

import importlib.util

import pytest
import torch
from scripts.launch import ACCELERATE, TORCHRUN, launch
from scripts.train import EVAL_ROWS, train
from tiny import SIZE, text_dataset, tiny_model
from transformers import VisionEncoderDecoderModel

from vision_rl.compatibility import CHECKPOINTING


pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = {"rel": 1e-4, "abs": 1e-6}
KINDS = ("mle", "reward")
# Ways to split a step of 8 images into micro-batches and ranks. Of 20 rows an epoch, 4 wait for the next one.
ALONE = {"per_device_train_batch_size": 8}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
HALF = {"per_device_train_batch_size": 4}
HALF_ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CALLS = {
    "mle": {"kind": "mle", "rows": 20, "learning_rate": 1e-2},
    "reward": {"kind": "reward", "rows": 20},
    # a ViT encoder with a pooling head that no loss reaches, and a decoder that gets the images through a hook
    "reward_gpt2": {"kind": "reward", "decoder": "gpt2", CHECKPOINTING: True},
    "reward_adafactor": {
        "kind": "reward",
        "rows": 20,
        "optim": "big_vision_adafactor",
        "encoder_learning_rate": 1e-3,
    },
    "stream": {"kind": "reward", "rows": 20, "shards": 3, "shuffle_dataset": False},  # each rank takes every other row
    "mle_bert": {"kind": "mle", "decoder": "bert", CHECKPOINTING: True},  # with dropout
}
SAVED_STEP = 3  # of 4 steps, two of which are an epoch: in the middle of epoch 1
SKIP = {"on_nonfinite": "skip", "spoilt_step": 1}
SAVING = {"save_strategy": "steps", "save_steps": SAVED_STEP}


def zero(stage: int) -> dict:
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict]:
    """The record of one process with whole batches."""
    folder = tmp_path_factory.mktemp("alone")
    calls = {name: {**call, **ALONE} for name, call in CALLS.items() if name != "mle_bert"}
    calls = {name: {**call, "evaluate": name in KINDS} for name, call in calls.items()}
    calls["reward"] |= SAVING
    return {**{name: train(folder=folder / name, **call) for name, call in calls.items()}, "folder": folder}


@pytest.fixture(scope="module")
def ddp(tmp_path_factory, alone) -> dict[str, list[dict]]:
    """The records of two processes, each with half of every batch."""
    folder = tmp_path_factory.mktemp("ddp")
    calls = {name: {**call, **HALF} for name, call in CALLS.items()}
    resumed = {
        f"{name}_resumed": {**call, "resume": str(folder / name / f"checkpoint-{SAVED_STEP}")}
        for name, call in calls.items()
    }
    accumulated = {f"{name}_accumulated": {**CALLS[name], **HALF_ACCUMULATED} for name in KINDS}
    one = {
        "reward_from_one": {**calls["reward"], "resume": str(alone["folder"] / "reward" / f"checkpoint-{SAVED_STEP}")}
    }
    calls = {name: {**call, **SAVING, "evaluate": name in KINDS} for name, call in calls.items()}
    calls["reward"]["save"] = True
    launched = launch(
        [*ACCELERATE, "--multi_gpu", "--num_processes", "2"], {**calls, **accumulated, **resumed, **one}, folder
    )
    return {**launched, "folder": folder}


def steps(record: dict) -> list[tuple[float, float]]:
    return [number for log in record["logs"] for number in (log["loss"], log["grad_norm"])]


def seen(*records: dict) -> list:
    """(update step, row, sampled ids) of all ranks."""
    return sorted(entry for record in records for entry in map(list, record["seen"]))


def lengths(record: dict) -> list[int]:
    """The longest completion of each update step on this rank."""
    return [max(len(ids) for step, _, drawn in record["seen"] if step == s for ids in drawn) for s in range(4)]


@pytest.mark.parametrize(
    "options", [{}, {"baseline": "first"}, {"loss_reduction": "mean"}, {"baseline": "greedy", "beta": 0.1}]
)
def test_accumulated_micro_batches_give_the_step_of_the_whole_batch(tmp_path, options):
    for kind in KINDS if not options else ("reward",):
        whole = train(kind, tmp_path / "whole", rows=20, **ALONE, **options)
        split = train(kind, tmp_path / "split", rows=20, **ACCUMULATED, **options)
        assert steps(split) == pytest.approx(steps(whole), **CLOSE)
        assert seen(split) == seen(whole)
        assert len(steps(whole)) == 2 * 4 and any(steps(whole))


def test_every_launched_training_really_had_two_ranks(ddp):
    for name in (*CALLS, *(f"{kind}_accumulated" for kind in KINDS), *(f"{name}_resumed" for name in CALLS)):
        records = ddp[name]
        assert [record["rank"] for record in records] == [0, 1]
        assert {record["world_size"] for record in records} == {2}
        assert {record["model_class"] for record in records} == {"DistributedDataParallel"}


@pytest.mark.parametrize("name", ["mle", "reward", "reward_gpt2", "reward_adafactor", "stream"])
def test_two_processes_take_the_steps_of_one(alone, ddp, name):
    for record in ddp[name]:
        assert steps(record) == pytest.approx(steps(alone[name]), **CLOSE)
    assert seen(*ddp[name]) == seen(alone[name])


def test_what_a_reward_logs_on_any_process_is_in_the_log(alone, ddp):
    letters = [log["letters"] for log in alone["reward"]["logs"]]
    assert len(set(letters)) == 4
    for record in ddp["reward"]:
        assert [log["letters"] for log in record["logs"]] == pytest.approx(letters)
        assert record["after"]["metrics"]["eval_letters"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_that_accumulate_take_the_steps_of_one(alone, ddp, kind):
    for record in ddp[f"{kind}_accumulated"]:
        assert steps(record) == pytest.approx(steps(alone[kind]), **CLOSE)
    assert seen(*ddp[f"{kind}_accumulated"]) == seen(alone[kind])


@pytest.mark.parametrize("name", CALLS)
def test_both_ranks_end_with_the_same_weights(ddp, name):
    """Also after an evaluation, which would make transformers' Trainer leave out DDP."""
    first, second = ddp[name]
    assert first["weights"] == second["weights"]
    assert {row for _, row, _ in first["seen"][:4]}.isdisjoint(row for _, row, _ in second["seen"][:4])


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_on_two_ranks_counts_every_row_once(alone, ddp, kind):
    assert EVAL_ROWS % 2 == 1
    for record in ddp[kind]:
        for when in ("before", "after"):
            assert record[when]["references"] == text_dataset(EVAL_ROWS, seed=1)["text"][:]
            assert record[when]["completions"] == alone[kind][when]["completions"]
            assert record[when]["metrics"] == pytest.approx(alone[kind][when]["metrics"], **CLOSE)
            assert record[when]["metrics"]["eval_rows"] == EVAL_ROWS
    assert len(set(alone["mle"]["after"]["completions"])) > 2  # not all rows are answered alike


@pytest.mark.parametrize("name", ["mle_bert", "reward_gpt2"])
def test_an_unused_pooler_does_not_stop_ddp_with_activation_checkpointing(ddp, name):
    for record in ddp[name]:
        assert record["checkpointing"]
        assert record["frozen"] == ["encoder.pooler.dense.weight", "encoder.pooler.dense.bias"]


@pytest.mark.parametrize("name", CALLS)
def test_two_ranks_resumed_in_a_later_epoch_end_where_they_would_have(ddp, name):
    """accelerate's `set_epoch` does not reach the sampler behind a skipping batch sampler: epoch 0 would come again."""
    for whole, resumed in zip(ddp[name], ddp[f"{name}_resumed"], strict=True):
        assert seen(resumed) == [entry for entry in seen(whole) if entry[0] >= SAVED_STEP]
        assert steps(resumed) == steps(whole)
        assert resumed["weights"] == whole["weights"]


def test_a_run_goes_on_with_another_number_of_processes_and_says_so(alone, ddp, tmp_path, caplog):
    """From one process to two and from two to one: each step has the same images and is equal up to rounding."""
    expected = [entry for entry in seen(alone["reward"]) if entry[0] >= SAVED_STEP]
    checkpoint = ddp["folder"] / "reward" / f"checkpoint-{SAVED_STEP}"
    to_one = train("reward", tmp_path, resume=str(checkpoint), rows=20, **ALONE)
    assert "was written by 2 processes, but now there are 1" in caplog.text
    for records in ([to_one], ddp["reward_from_one"]):
        assert [record["world_size"] for record in records] == [len(records)] * len(records)
        assert seen(*records) == expected
        for record in records:
            assert steps(record) == pytest.approx(steps(alone["reward"]), **CLOSE)


def test_accelerate_launch_with_cpu_and_two_processes_starts_only_one(tmp_path):
    """A fault of accelerate: it ignores --num_processes with --cpu (huggingface/accelerate#2741).

    That is why the docs use `--multi_gpu`. When this test fails, accelerate has changed, and the docs may say `--cpu`.
    """
    calls = {"mle": {"kind": "mle", "max_steps": 1}}
    (record,) = launch([*ACCELERATE, "--cpu", "--num_processes", "2"], calls, tmp_path)["mle"]
    assert record["world_size"] == 1


# --- DeepSpeed ------------------------------------------------------------------------------------------------------

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install vision-rl[deepspeed]",
)


@pytest.fixture(scope="module")
def deepspeed(tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("deepspeed")
    mle, reward = ({**CALLS[kind], "deepspeed": zero(2)} for kind in KINDS)
    zero3 = {**CALLS["reward"], **HALF, "deepspeed": zero(3), "ds3_gather_for_generation": False}
    calls = {
        "mle": {**mle, **HALF_ACCUMULATED, **SAVING, "evaluate": True},
        "mle_resumed": {**mle, **HALF_ACCUMULATED, "resume": str(folder / "mle" / f"checkpoint-{SAVED_STEP}")},
        "reward": {**reward, **HALF},
        "reward_zero3": {**zero3, **SAVING, "evaluate": True, "save": True},
        "reward_zero3_resumed": {**zero3, "resume": str(folder / "reward_zero3" / f"checkpoint-{SAVED_STEP}")},
        "reward_zero3_gathered": {**CALLS["reward"], **HALF, "deepspeed": zero(3)},  # once a rollout, the default
        **{f"zero{stage}_skip": {**CALLS["mle"], **HALF, **SKIP, "deepspeed": zero(stage)} for stage in (2, 3)},
        "gpt2_zero3": {
            "kind": "reward",
            "model": str(folder / "gpt2"),
            **HALF,
            "deepspeed": zero(3),
            "evaluate": True,
        },
    }
    tiny_model("gpt2", sharp=0.2, seed=2).save_pretrained(folder / "gpt2")
    return {**launch([*TORCHRUN, "--nproc_per_node", "2"], calls, folder), "folder": folder}


@needs_deepspeed
@pytest.mark.parametrize(
    "name, same",
    [
        *(("mle", "mle"), ("reward", "reward")),
        *(("reward_zero3", "reward"), ("reward_zero3_gathered", "reward"), ("gpt2_zero3", "reward_gpt2")),
    ],
)
def test_zero_takes_the_steps_of_ddp(ddp, deepspeed, name, same):
    """The model is in memory, or given as a path: then ZeRO-3 shards it while it is loaded."""
    for record in deepspeed[name]:
        assert (record["world_size"], record["distributed_type"]) == (2, "DEEPSPEED")
        assert record["model_class"] == "DeepSpeedEngine"
        assert steps(record) == pytest.approx(steps(ddp[same][0]), **CLOSE)
    assert seen(*deepspeed[name]) == seen(*ddp[same])


@needs_deepspeed
@pytest.mark.parametrize("name, kind", [("mle", "mle"), ("reward_zero3", "reward")])
def test_zero_evaluates_before_and_after_training(ddp, deepspeed, name, kind):
    for record in deepspeed[name]:
        for when in ("before", "after"):
            assert record[when]["completions"] == ddp[kind][0][when]["completions"]
            assert record[when]["metrics"] == pytest.approx(ddp[kind][0][when]["metrics"], **CLOSE)


@needs_deepspeed
def test_zero3_ranks_go_on_sampling_until_the_slowest_is_done(deepspeed):
    """Every forward gathers weights from all ranks. A rank that stopped early would leave the other waiting for ever."""
    first, second = deepspeed["reward_zero3"]
    assert lengths(first) != lengths(second)  # the ranks need different numbers of steps
    assert (
        first["widths"]
        == second["widths"]
        == [max(pair) for pair in zip(lengths(first), lengths(second), strict=True)]
    )


@needs_deepspeed
def test_with_weights_gathered_once_a_rollout_each_rank_of_zero3_samples_for_itself(deepspeed):
    first, second = deepspeed["reward_zero3_gathered"]
    assert lengths(first) != lengths(second)
    assert (first["widths"], second["widths"]) == (lengths(first), lengths(second))


@needs_deepspeed
@pytest.mark.parametrize("name", ["mle", "reward_zero3"])  # ZeRO-2, ZeRO-3
def test_zero_resumed_ends_where_it_would_have(deepspeed, name):
    for whole, resumed in zip(deepspeed[name], deepspeed[f"{name}_resumed"], strict=True):
        assert resumed["world_size"] == 2
        assert steps(resumed) == steps(whole)
        assert resumed["weights"] == whole["weights"]


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_leaves_out_a_step_that_is_not_finite_on_one_rank(deepspeed, stage):
    first, second = deepspeed[f"zero{stage}_skip"]
    assert first["world_size"] == second["world_size"] == 2
    assert first["weights"] == second["weights"]
    for record in (first, second):
        assert [log.get("skipped_steps", 0) for log in record["logs"]] == [0, 1, 1, 1]
        assert all(log["loss"] == log["loss"] for log in record["logs"])


@needs_deepspeed
def test_a_model_saved_by_zero3_loads_without_deepspeed_and_equals_ddps(ddp, deepspeed):
    torch.manual_seed(0)
    inputs = {"pixel_values": torch.randn(3, 3, SIZE, SIZE), "decoder_input_ids": torch.randint(6, (3, 5))}
    logits = []
    for folder in (ddp["folder"] / "reward", deepspeed["folder"] / "reward_zero3"):
        model, info = VisionEncoderDecoderModel.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
    untrained = tiny_model(sharp=0.2, seed=2)(**inputs).logits
    assert (logits[0] - untrained).abs().max() > 0.1
