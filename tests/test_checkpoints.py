"""A checkpoint is whole or it is not there: kills, full disks and damaged files, and what a resume does about them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from scripts.launch import PYTHON
from scripts.train import make_trainer
from test_resume import STEPS, StopAt, assert_equal, run
from tiny import text_processor, tiny_model
from transformers import TrainerCallback

from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.manifest import DamagedFolder, check_whole, read_manifest, write_manifest
from vision_rl.trainer.checkpoints import SaveError, checkpoints_in


pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"])


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_in(folder)]


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """Flips one bit in the middle. The size stays, and a reader of JSON or safetensors may notice nothing."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (missing, empty, cut, zeroed, flipped)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of an MLE run with five checkpoints, and the record of that run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run("mle", folder, decoder="bert")


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


# --- damaged checkpoints ------------------------------------------------------------------------------------------------


def test_every_damage_to_every_file_is_one_error_that_names_file_folder_and_way_back(whole, tmp_path):
    folder, _ = whole
    trainer = make_trainer("mle", tmp_path / "out", "bert", **STEPS)
    files = sorted(path.relative_to(folder / "checkpoint-4") for path in (folder / "checkpoint-4").rglob("*.*"))
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(
        map(str, files)
    )
    shutil.copytree(folder / "checkpoint-3", tmp_path / "checkpoint-3")
    for name in files:
        for damage in DAMAGES:
            shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
            damage(tmp_path / "checkpoint-4" / name)
            with pytest.raises(DamagedFolder) as error:
                trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
            told = str(error.value)
            assert str(tmp_path / "checkpoint-4") in told and name.name in told, (name, damage)
            assert f"Go back to {tmp_path / 'checkpoint-3'}" in told
            shutil.rmtree(tmp_path / "checkpoint-4")


def test_resume_takes_the_newest_whole_checkpoint_and_tells_which_it_passed_over(whole, copied, caplog):
    flipped(copied / "checkpoint-5" / "model.safetensors")
    missing(copied / "checkpoint-4" / "scheduler.pt")
    resumed = run("mle", copied, True, decoder="bert", model=tiny_model("bert", seed=99))
    assert_equal(resumed["weights"], whole[1]["weights"])
    assert_equal(resumed["optimizer"], whole[1]["optimizer"])
    assert {step for step, _, _ in resumed["seen"]} == {3, 4}
    told = [record.getMessage() for record in caplog.records if "Passed over" in record.getMessage()]
    assert len(told) == 2
    assert "checkpoint-5" in told[0] and "model.safetensors does not have the content" in told[0]
    assert "checkpoint-4" in told[1] and "scheduler.pt is missing" in told[1]
    check_whole(copied / "checkpoint-5")  # the resumed run has replaced the damaged one


def test_no_whole_checkpoint_is_an_error_that_tells_what_is_wrong_with_each(copied):
    for folder in checkpoints_in(copied):
        cut(folder / "optimizer.pt")
    with pytest.raises(ValueError, match=r"no whole checkpoint.*checkpoint-5 is damaged.*checkpoint-1 is damaged"):
        run("mle", copied, True, decoder="bert")


def test_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint to resume from"):
        run("mle", tmp_path, True)


def test_a_manifest_may_not_point_out_of_its_folder(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "a").write_text("x")
    write_manifest(folder)
    content = read_manifest(folder)
    content["files"]["../secret"] = content["files"]["a"]
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DamagedFolder, match="outside of the folder"):
        check_whole(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"a": 1}}', "[" * 100_000])
def test_a_broken_manifest_is_told_as_such(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamagedFolder, match="manifest.json"):
        check_whole(tmp_path)


def test_a_checkpoint_of_the_model_only_is_not_resumed_in_silence(tmp_path):
    run("mle", tmp_path, save_only_model=True, max_steps=1)
    with pytest.raises(ValueError, match="save_only_model.*pass it as `model` to a new run"):
        run("mle", tmp_path, True)


def test_damaged_adapters_are_named_by_a_resume_and_by_a_new_run(tmp_path):
    run("mle", tmp_path / "run", peft_config=LORA, max_steps=1)
    folder = tmp_path / "run" / "checkpoint-1"
    flipped(folder / "adapter_model.safetensors")
    for load in (
        lambda: run("mle", tmp_path / "run", str(folder), peft_config=LORA),
        lambda: make_trainer("mle", tmp_path / "new", model=str(folder)),
    ):
        with pytest.raises(DamagedFolder, match=r"checkpoint-1 is damaged: adapter_model\.safetensors"):
            load()


def test_a_damaged_best_model_is_not_loaded_at_the_end(tmp_path):
    class Damaging(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                zeroed(tmp_path / "checkpoint-1" / "model.safetensors")

    scores = iter([0.9, 0.1])
    trainer = make_trainer(
        "mle",
        tmp_path,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        compute_metrics=lambda predictions, references: {"score": next(scores)},
        callbacks=[Damaging()],
    )
    with pytest.raises(DamagedFolder, match=r"best model cannot be loaded.*checkpoint-1.*Go back to .*checkpoint-2"):
        trainer.train()


# --- saving -------------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_of_a_save_every_run_resumes_bit_for_bit(tmp_path):
    """5 kills here; run the script by hand for more: `--kills 100`."""
    script = Path(__file__).parent / "scripts" / "kill_while_saving.py"
    told = subprocess.run(
        [*PYTHON, str(script), "--kills", "5", "--folder", str(tmp_path), "--seed", str(os.getpid())],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    outcome = json.loads(told.stdout.splitlines()[-1])
    assert outcome["kills while saving"] == 5
    assert outcome["resumed otherwise"] == [], (outcome, tmp_path)


def test_a_save_interrupted_before_its_new_name_is_finished_by_the_resume(whole, copied):
    os.rename(copied / "checkpoint-5", copied / "_saving-checkpoint-5")
    resumed = run("mle", copied, True, decoder="bert", model=tiny_model("bert", seed=99))
    assert resumed["seen"] == []  # no step was left to do
    assert_equal(resumed["weights"], whole[1]["weights"])


def test_a_part_of_a_checkpoint_is_not_resumed_and_is_gone_after_the_next_save(whole, copied):
    os.rename(copied / "checkpoint-5", copied / "_saving-checkpoint-5")
    missing(copied / "_saving-checkpoint-5" / "manifest.json")
    resumed = run("mle", copied, True, decoder="bert")
    assert {step for step, _, _ in resumed["seen"]} == {4}
    assert not list(copied.glob("_*"))


def test_the_limit_keeps_the_newest_and_the_best_and_deletes_after_the_new_one_is_whole(tmp_path):
    there = []

    class Looking(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            there.append(names(tmp_path))
            for folder in checkpoints_in(tmp_path):
                check_whole(folder)

    scores = iter([0.1, 0.9, 0.3, 0.2, 0.2])
    make_trainer(
        "mle",
        tmp_path,
        max_steps=5,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="score",
        greater_is_better=True,
        compute_metrics=lambda predictions, references: {"score": next(scores)},
        callbacks=[Looking()],
    ).train()
    kept = [[1], [1, 2], [2, 3], [2, 4], [2, 5]]
    assert there == [[f"checkpoint-{step}" for step in steps] for steps in kept]


def test_a_limit_of_one_does_not_delete_the_checkpoint_just_written_for_a_damaged_later_one(copied):
    """A resume has gone back behind a damaged checkpoint-5, so the new checkpoint-4 has not the highest number."""
    cut(copied / "checkpoint-5" / "model.safetensors")
    shutil.rmtree(copied / "checkpoint-4")
    run("mle", copied, True, decoder="bert", max_steps=4, save_total_limit=1)
    assert names(copied) == ["checkpoint-4"]
    check_whole(copied / "checkpoint-4")


def full_disk(tmp_path: Path, megabytes: float) -> Path:
    """A folder with a file system of its own. The test is skipped where that may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 2**20)}", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root on Linux may mount a small disk")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for two checkpoints of a tiny model and a part of a third."""
    folder = full_disk(tmp_path, 2.5)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazy, because loaded weights are still mapped


@pytest.mark.parametrize("filled", [0.0, 0.3, 0.6, 0.9])
def test_a_full_disk_is_named_and_leaves_the_checkpoint_before_whole(small_disk, tmp_path, filled):
    """The parameter moves the place where writing stops: in the weights, the processor, the optimizer or the states."""
    whole_run = run("mle", tmp_path / "whole", max_steps=4)
    run("mle", small_disk / "run", max_steps=4, callbacks=[StopAt(1)])
    size = sum(path.stat().st_size for path in (small_disk / "run" / "checkpoint-1").rglob("*"))
    (small_disk / "filling").write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - int(filled * size) - 8192)))
    with pytest.raises(SaveError) as error:
        run("mle", small_disk / "run", True, max_steps=4)
    told = str(error.value)
    assert "checkpoint-2 could not be written: the disk is full" in told and "checkpoint-1, saved before" in told
    assert str(small_disk / "run") in told and error.value.errno == 28
    assert [path.name for path in (small_disk / "run").iterdir() if path.is_dir()] == ["checkpoint-1"]
    check_whole(small_disk / "run" / "checkpoint-1")
    (small_disk / "filling").unlink()
    restarted = run("mle", small_disk / "run", True, max_steps=4, save_total_limit=1)
    assert_equal(restarted["weights"], whole_run["weights"])


class Filling(TrainerCallback):
    """Another file fills the disk. `free` says how many bytes it leaves free after a step."""

    def __init__(self, disk: Path, free: dict[int, int | None]):
        self.disk, self.free = disk, free

    def on_step_end(self, args, state, control, **kwargs):
        filling = self.disk / "filling"
        filling.unlink(missing_ok=True)
        if self.free[state.global_step] is not None:
            filling.write_bytes(bytes(shutil.disk_usage(self.disk).free - self.free[state.global_step]))


def test_with_save_retry_one_checkpoint_may_fail_and_two_in_a_row_end_the_run(small_disk, caplog):
    options = {"save_retry": True, "save_total_limit": 1}
    run(
        "mle",
        small_disk / "a",
        callbacks=[Filling(small_disk, {1: None, 2: 99999, 3: None, 4: 99999, 5: None})],
        **options,
    )
    assert names(small_disk / "a") == ["checkpoint-5"]
    assert sum("The run goes on" in record.getMessage() for record in caplog.records) == 2
    shutil.rmtree(small_disk / "a")
    with pytest.raises(SaveError, match="checkpoint-3 could not be written: the disk is full"):
        run("mle", small_disk / "b", callbacks=[Filling(small_disk, {1: None, 2: 9999, 3: 9999})], **options)
    assert names(small_disk / "b") == ["checkpoint-1"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run("mle", tmp_path / "file", max_steps=1)


def test_the_finished_model_replaces_an_earlier_one_only_as_a_whole(small_disk, tmp_path):
    trainer = make_trainer("mle", small_disk / "model")
    trainer.save_model()
    before = {
        name: (small_disk / "model" / name).read_bytes() for name in read_manifest(small_disk / "model")["files"]
    }
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1.0)
    (small_disk / "filling").write_bytes(bytes(shutil.disk_usage(small_disk).free - 50_000))
    with pytest.raises(SaveError, match="the model could not be written: the disk is full"):
        trainer.save_model()
    check_whole(small_disk / "model")
    assert before == {name: (small_disk / "model" / name).read_bytes() for name in before}
    (small_disk / "filling").unlink()
    trainer.save_model()
    check_whole(small_disk / "model")
    assert not list((small_disk / "model").glob("_*"))
    again = make_trainer("mle", tmp_path, model=str(small_disk / "model"), processing_class=None)
    assert_equal(dict(again.model.state_dict()), dict(trainer.model.state_dict()))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_new_run_names_the_damaged_file_of_the_model_it_starts_from(tmp_path, name):
    make_trainer("mle", tmp_path / "model").save_model()
    flipped(tmp_path / "model" / name)
    with pytest.raises(DamagedFolder, match=f"{tmp_path / 'model'} is damaged: {name}"):
        make_trainer("mle", tmp_path / "new", model=str(tmp_path / "model"), processing_class=None)


# --- the work before an error is kept -------------------------------------------------------------------------------


class FailingAt:
    """A metric that fails once, at the call of the given number."""

    def __init__(self, call: int):
        self.call, self.calls = call, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.call:
            raise OSError("The server of the metric is down.")
        return {"score": 1.0}


def test_an_evaluation_that_fails_at_the_step_of_a_save_loses_nothing(tmp_path):
    options = {"decoder": "bert", "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 5}
    whole_run = run("mle", tmp_path / "whole", compute_metrics=FailingAt(99), **options)
    with pytest.raises(OSError, match="The server of the metric is down"):
        run("mle", tmp_path / "run", compute_metrics=FailingAt(2), **options)
    assert names(tmp_path / "run") == ["checkpoint-2", "checkpoint-4"]
    resumed = run("mle", tmp_path / "run", True, compute_metrics=FailingAt(99), **options)
    assert {step for step, _, _ in resumed["seen"]} == {4}
    assert resumed["seen"] == [entry for entry in whole_run["seen"] if entry[0] == 4]


@pytest.mark.parametrize("kind, decoder", [("mle", "bert"), ("reward", "ours")])
@pytest.mark.parametrize("step", [1, 2, 3])  # in the middle of an epoch, at the start of one
def test_a_step_that_fails_leaves_a_checkpoint_of_the_one_before_it_that_resumes_bit_for_bit(
    tmp_path, kind, decoder, step
):
    """The failing step has already drawn random numbers for BERT's dropout; the checkpoint has the state before it."""
    options = {"decoder": decoder, "save_steps": 100}
    whole_run = run(kind, tmp_path / "whole", **options)
    trainer = make_trainer(kind, tmp_path / "run", **{**STEPS, **options})
    compute_loss = trainer.compute_loss

    def failing(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        if trainer.state.global_step == step:
            raise RuntimeError("CUDA out of memory")
        return loss

    trainer.compute_loss = failing
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        trainer.train()
    assert names(tmp_path / "run") == [f"checkpoint-{step}"]
    resumed = run(kind, tmp_path / "run", True, **options)
    expected = {**whole_run, "seen": [entry for entry in whole_run["seen"] if entry[0] >= step]}
    assert_equal(resumed, expected)


# --- another split, another batch ---------------------------------------------------------------------------------------


def test_a_resume_with_another_batch_or_other_rows_warns(copied, caplog):
    run("mle", copied, str(copied / "checkpoint-4"), decoder="bert", per_device_train_batch_size=4, save_strategy="no")
    assert any("8 images per step, but this run has 4" in record.getMessage() for record in caplog.records)
    caplog.clear()
    run("mle", copied, str(copied / "checkpoint-4"), decoder="bert", rows=24, save_strategy="no")
    assert any("a run with 20 rows, but this run has 24" in record.getMessage() for record in caplog.records)
    caplog.clear()
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    run("mle", copied, str(copied / "checkpoint-4"), decoder="bert", save_strategy="no", **split)
    assert not [record for record in caplog.records if "was written by" in record.getMessage()]


def test_the_rewards_files_are_compared_with_the_manifest(tmp_path):
    from vision_rl.tasks.captioning import CiderReward, DocumentFrequency

    reward = CiderReward(DocumentFrequency.from_references([["abab", "b a"], ["c d"]], append_eos=True))
    trainer = VisionRewardTrainer(
        tiny_model(sharp=0.2),
        reward,
        VisionRewardConfig(str(tmp_path), use_cpu=True, report_to="none", max_completion_length=8),
        processing_class=text_processor(),
    )
    trainer.save_model()
    CiderReward.from_pretrained(tmp_path)
    flipped(tmp_path / "reward" / "cider" / "document_frequency.npz")
    with pytest.raises(DamagedFolder, match=r"reward/cider/document_frequency\.npz does not have the content"):
        CiderReward.from_pretrained(tmp_path)
