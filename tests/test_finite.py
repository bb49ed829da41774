"""Values that are not finite are noticed before the optimizer moves, reported with row and batch, and never saved."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from scripts.train import make_trainer
from test_resume import assert_equal
from test_stage1_trainer import processor as stage1_processor
from test_stage1_trainer import scenes, stage1
from tiny import share_of_a
from transformers import TrainerCallback, VisionEncoderDecoderModel

from vision_rl import Stage1Trainer, VisionMLEConfig, VisionRewardTrainer
from vision_rl.trainer.checkpoints import checkpoints_in
from vision_rl.trainer.finite import NotFiniteError, not_finite
from vision_rl.trainer.replay import main as replay_command
from vision_rl.trainer.replay import replay


pytestmark = pytest.mark.usefixtures("one_thread")

BAD = [float("nan"), float("inf"), float("-inf")]
SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
KINDS = ("mle", "reward", "stage1")


def trainer_of(kind: str, folder: Path, **options):
    if kind != "stage1":
        return make_trainer(kind, folder, **options)
    callbacks = options.pop("callbacks", [])
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    config = VisionMLEConfig(str(folder), per_device_train_batch_size=4, max_steps=4, **{**fixed, **options})
    return Stage1Trainer(
        stage1("panoptic"),
        config,
        train_dataset=scenes(8),
        processing_class=stage1_processor("panoptic"),
        callbacks=callbacks,
    )


class Poison(TrainerCallback):
    """In chosen steps puts one value that is not finite into the gradient, as an overflow in one layer would."""

    def __init__(self, steps, value=float("nan")):
        self.steps, self.value = steps, value

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            parameter = next(p for p in model.parameters() if p.requires_grad)
            handle = parameter.register_hook(lambda gradient: self._spoiled(gradient, handle))

    def _spoiled(self, gradient, handle):
        handle.remove()
        gradient = gradient.clone()
        gradient.view(-1)[0] = self.value
        return gradient


class Weights(TrainerCallback):
    """Keeps the weights at the end of each step."""

    def __init__(self):
        self.after: dict[int, dict] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def saved_values(folder: Path) -> list[torch.Tensor]:
    """Every number of weights and optimizer in every checkpoint of a run."""
    values = [value for path in folder.rglob("checkpoint-*/*.safetensors") for value in load_file(path).values()]
    for path in folder.rglob("optimizer.pt"):
        states = torch.load(path, weights_only=True)["state"].values()
        values += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_optimizer_moves(tmp_path, kind, max_grad_norm):
    for value in BAD:
        folder = tmp_path / str(value)
        weights = Weights()
        options = {"max_grad_norm": max_grad_norm, **SAVING}
        trainer = trainer_of(kind, folder, callbacks=[Poison([2], value), weights], **options)
        with pytest.raises(NotFiniteError, match=r"In update step 2 .* not finite, before the optimizer moved"):
            trainer.train()
        assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-2"]
        assert all(value.isfinite().all() for value in saved_values(folder))
        assert_equal(dict(trainer.model.state_dict()), weights.after[2])


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_last_step_too_nothing_that_is_not_finite_is_kept(tmp_path, kind):
    trainer = trainer_of(kind, tmp_path, callbacks=[Poison([3])], **SAVING)
    with pytest.raises(NotFiniteError, match="In update step 3"):
        trainer.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-3"]
    assert all(value.isfinite().all() for value in saved_values(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "big_vision_adafactor"])
def test_a_step_that_is_left_out_moves_neither_weights_nor_moments_and_is_counted(tmp_path, kind, optim):
    weights = Weights()
    options = {"on_nonfinite": "skip", "optim": optim, "lr_scheduler_type": "constant"}
    trainer = trainer_of(kind, tmp_path, callbacks=[Poison([1, 2]), weights], **options)
    trainer.train()
    assert_equal(weights.after[3], weights.after[1])
    changed = [name for name, value in weights.after[4].items() if not torch.equal(value, weights.after[3][name])]
    assert changed and not not_finite(weights.after[4].items())
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log.get("skipped_steps", 0) for log in logs] == [0, 1, 2, 2]
    assert all(log["loss"] == log["loss"] for log in logs)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_left_out_in_a_row_end_the_run_and_leave_a_finite_checkpoint(tmp_path, kind):
    options = {"on_nonfinite": "skip", "max_skipped_steps": 2, **SAVING}
    trainer = trainer_of(kind, tmp_path, callbacks=[Poison([0, 2, 3])], **options)
    with pytest.raises(
        NotFiniteError, match=r"This was the last of 2 steps in a row that were left out \(max_skipped_steps\)"
    ):
        trainer.train()
    assert trainer.state.global_step == 3
    assert all(value.isfinite().all() for value in saved_values(tmp_path))


def test_under_accumulation_a_bad_micro_batch_is_named_by_its_rows_and_the_whole_step_is_left_out(tmp_path):
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = make_trainer("mle", tmp_path, **split, max_steps=2)
    compute_loss, rows = trainer.compute_loss, []

    def spoiled(model, inputs, *args, **kwargs):
        loss = compute_loss(model, inputs, *args, **kwargs)
        rows.append(inputs["row_index"].tolist())
        return loss * float("nan") if len(rows) == 6 else loss

    trainer.compute_loss = spoiled
    with pytest.raises(NotFiniteError) as error:
        trainer.train()
    assert f"the loss of the rows {rows[5]} is nan" in str(error.value)
    assert trainer.state.global_step == 1


class HugeReward:
    """A reward that is finite in Python but not in float32."""

    __name__ = "huge"

    def __init__(self, step: int):
        self.step = step

    def __call__(self, completions, trainer_state, **kwargs):
        rewards = share_of_a(completions)
        if trainer_state.global_step == self.step:
            rewards[3] = 1e38 * 3
        return [10.0 * reward for reward in rewards]


@pytest.mark.parametrize("step", [0, 3])  # 3 is the last step
def test_a_reward_that_overflows_is_noticed_in_its_own_step(tmp_path, step):
    trainer = make_trainer("reward", tmp_path, **SAVING)
    trainer.reward = type(trainer.reward)(HugeReward(step))
    with pytest.raises(ValueError, match=r"`huge` returned 3e\+39, beyond float32's limit 3.4e\+38, for row \d+"):
        trainer.train()
    assert trainer.state.global_step == step
    assert all(value.isfinite().all() for value in saved_values(tmp_path))


@pytest.mark.parametrize("mle_weight", [0.0, 1.0])
def test_an_advantage_that_is_infinite_is_named_with_its_row(tmp_path, mle_weight):
    class Infinite(VisionRewardTrainer):
        def _advantages(self, rewards, completions, inputs):
            advantages = super()._advantages(rewards, completions, inputs)
            advantages[2, 1] = float("inf")
            self.spoiled = inputs["row_index"][2].item()
            return advantages

    trainer = make_trainer("reward", tmp_path, mle_weight=mle_weight)
    trainer.__class__ = Infinite
    with pytest.raises(NotFiniteError) as error:
        trainer.train()
    assert f"advantages of row {trainer.spoiled}, sample 1, is inf" in str(error.value)
    rows = list(replay(tmp_path / "faults" / "step-0"))
    assert [row.row for row in rows if not row.finite or not math.isfinite(row.loss)] == [trainer.spoiled]
    assert not any(math.isfinite(row.loss) for row in rows if row.row == trainer.spoiled)
    others = [row for row in rows if row.finite]
    assert any(row.loss for row in others) and all(len(row.scores["rewards"]) == 2 for row in others)


def test_weights_that_are_not_finite_are_not_saved_whoever_spoilt_them(tmp_path):
    class Spoiling(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.decoder.get_output_embeddings().weight.data[0, 0] = float("nan")

    trainer = make_trainer("mle", tmp_path, callbacks=[Spoiling()], **SAVING)
    with pytest.raises(NotFiniteError, match=r"At step 2 decoder\..*weight is not finite: nothing is saved"):
        trainer.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-1"]
    with pytest.raises(NotFiniteError):
        trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "model.safetensors").exists()


# --- faults that can be replayed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mle", "stage1", "lora"])
def test_a_fault_is_replayed_by_one_command_that_finds_the_row_and_the_module(tmp_path, kind, capsys):
    options: dict = {}
    if kind == "lora":
        make_trainer("mle", tmp_path / "base").save_model()
        options = {"peft_config": LoraConfig(r=4, target_modules="all-linear"), "model": str(tmp_path / "base")}
    trainer = trainer_of("stage1" if kind == "stage1" else "mle", tmp_path / "run", **options)
    collate, bad = trainer.data_collator, []

    def collated(rows):
        batch = collate(rows)
        if len(bad) < 1:
            batch["pixel_values"][3] = float("nan")
            bad.append(batch["row_index"][3].item())
        return batch

    trainer.data_collator = collated
    with pytest.raises(NotFiniteError) as error:
        trainer.train()
    folder = tmp_path / "run" / "faults" / "step-0"
    assert f"python -m vision_rl.trainer.replay {folder}" in str(error.value)
    rows = list(replay(folder))
    assert [row.row for row in rows if not row.finite] == bad
    assert len(rows) == (4 if kind == "stage1" else 8)
    assert all("embed" in row.module or "patch" in row.module.lower() for row in rows if not row.finite)
    assert replay_command([str(folder)]) == 1
    assert f"row {bad[0]}: loss nan" in capsys.readouterr().out
    columns = json.loads((folder / "batch-0-0.json").read_text())
    assert len(columns["image"]) == len(rows)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".pth")]


def test_a_replay_of_something_else_says_what_to_give(tmp_path, capsys):
    assert replay_command([str(tmp_path)]) == 2
    assert "holds no model and batches" in capsys.readouterr().err


def test_only_the_first_faults_are_written(tmp_path):
    options = {"on_nonfinite": "skip", "max_steps": 6}
    trainer = make_trainer("mle", tmp_path, callbacks=[Poison(range(5))], **options)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "faults").iterdir()) == ["step-0", "step-1", "step-2"]
    VisionEncoderDecoderModel.from_pretrained(tmp_path / "faults" / "step-0" / "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_number_is_found_anywhere(dtype):
    for bad in BAD:
        for place in (0, 77, 122):
            tensors = {name: torch.zeros(123, dtype=dtype) for name in "abc"}
            assert not not_finite(tensors.items())
            tensors["b"][place] = bad
            assert not_finite(tensors.items()) == ["b"]
    largest = torch.finfo(dtype).max
    assert not not_finite([("a", torch.full((1000,), largest, dtype=dtype)), ("b", torch.ones(3, dtype=torch.int64))])
    assert not not_finite([])
