"""A run that is interrupted and resumed equals an uninterrupted one, bit for bit; the best model comes back whole."""

import json
import sys

import pytest
import torch
from peft import LoraConfig
from scripts.launch import launch
from scripts.train import MAX_LENGTH, make_trainer, train
from tiny import share_of_a, text_dataset, text_processor, tiny_model
from transformers import Trainer, TrainerCallback, TrainingArguments, VisionEncoderDecoderModel

from vision_rl import TextProcessor, VisionRewardConfig, VisionRewardTrainer
from vision_rl.manifest import write_manifest


pytestmark = pytest.mark.usefixtures("one_thread")

# 20 rows at 8 images a step make two steps an epoch; four rows wait for the next epoch.
STEPS = {"rows": 20, "max_steps": 5, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
ONE_STEP = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
PAPERS_OPTIMIZER = {
    "optim": "big_vision_adafactor",
    "optim_args": "beta2_cap=0.95",
    "weight_decay": 1e-4,
    "encoder_learning_rate": 1e-4,
    "warmup_steps": 2,
}
LORA = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"])


class ShuffledLetters(TextProcessor):
    """A task with random targets: the seed of a row decides the order of its letters."""

    def __call__(self, images, seeds=None, text=None):
        if seeds is not None and text is not None:
            text = [
                "".join(sorted(word, key=lambda c: (seed * (ord(c) + 1)) % 1009))
                for word, seed in zip(text, seeds, strict=True)
            ]
        return super().__call__(images, text=text)


class StopAt(TrainerCallback):
    """Interrupts a run after `step` updates, as the queue of a cluster might."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class Snapshots(TrainerCallback):
    """Keeps the weights at each evaluation."""

    def __init__(self):
        self.at: dict[int, dict[str, torch.Tensor]] = {}

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.at[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


def run(kind, folder, checkpoint=None, **options) -> dict:
    """Train, and return all that the training leaves behind."""
    trainer = make_trainer(kind, folder, **{**STEPS, **options})
    trainer.train(resume_from_checkpoint=checkpoint)
    return {
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "logs": [without_times(log) for log in trainer.state.log_history if "loss" in log],
        "seen": trainer.seen,
    }


def without_times(log: dict) -> dict:
    return {key: value for key, value in log.items() if not key.startswith(("step_time", "timing/"))}


def assert_equal(resumed, whole, where="") -> None:
    """Check that both are equal bit for bit, through dicts, lists and tensors."""
    assert type(resumed) is type(whole), where
    if isinstance(whole, torch.Tensor):
        assert torch.equal(resumed, whole), where
    elif isinstance(whole, dict):
        assert resumed.keys() == whole.keys(), where
        for key in whole:
            assert_equal(resumed[key], whole[key], f"{where}.{key}")
    elif isinstance(whole, list | tuple):
        assert len(resumed) == len(whole), where
        for index, (a, b) in enumerate(zip(resumed, whole, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    else:
        assert resumed == whole, where


def assert_resumes(kind, tmp_path, checkpoints=(1, 2, 3), other_weights=True, **options) -> None:
    """Resumed runs equal the whole one. They start from other weights, so only the checkpoint can make them equal."""
    whole = run(kind, tmp_path / "whole", **options)
    for step in checkpoints:
        model = tiny_model(options.get("decoder", "ours"), seed=99) if other_weights else None
        resumed = run(
            kind, tmp_path / f"from-{step}", tmp_path / "whole" / f"checkpoint-{step}", model=model, **options
        )
        expected = {**whole, "seen": [entry for entry in whole["seen"] if entry[0] >= step]}
        assert_equal(resumed, expected, f"from step {step}: ")


@pytest.mark.parametrize("kind", ["mle", "reward"])
@pytest.mark.parametrize(
    "decoder", ["ours", "bert"]
)  # with a SigLIP encoder, and with a ViT, whose weights are saved under older names
def test_resumed_in_any_epoch_equals_uninterrupted(tmp_path, kind, decoder):
    """From the middle and the end of epoch 0, and the middle of epoch 1. In MLE, BERT has dropout."""
    assert_resumes(kind, tmp_path, decoder=decoder)


@pytest.mark.parametrize("kind", ["mle", "reward"])
def test_resumed_with_accumulation_and_the_papers_optimizer_equals_uninterrupted(tmp_path, kind):
    assert_resumes(kind, tmp_path, **ACCUMULATED, **PAPERS_OPTIMIZER)


def test_resumed_with_reference_model_and_greedy_baseline_equals_uninterrupted(tmp_path):
    """The reference is the model before tuning, which the user passes again, and not the one in the checkpoint."""
    assert_resumes("reward", tmp_path, (3,), other_weights=False, baseline="greedy", beta=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2},
        {"num_iterations": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"generation_batch_size": 16, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"steps_per_generation": 2, "num_iterations": 2, "importance_sampling_level": "token", "decoder": "gpt2"},
    ],
)
def test_resumed_within_a_rollout_that_is_used_again_equals_uninterrupted(tmp_path, options):
    assert_resumes("reward", tmp_path, **options)


def test_a_rollout_is_not_gone_on_with_in_another_split_or_without_its_file(tmp_path):
    run("reward", tmp_path / "whole", num_iterations=2, max_steps=2)
    checkpoint = tmp_path / "whole" / "checkpoint-1"
    with pytest.raises(ValueError, match="Step 1 is number 2 of 2 that learn from one rollout, but the rollout"):
        run("reward", tmp_path / "split", checkpoint, num_iterations=2, **ACCUMULATED)
    (checkpoint / "rollout_0.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 is damaged: rollout_0\.pt is missing"):
        run("reward", tmp_path / "lost", checkpoint, num_iterations=2)
    write_manifest(checkpoint)  # as if the file had never been there
    with pytest.raises(ValueError, match="a checkpoint whose step is a multiple of 2"):
        run("reward", tmp_path / "lost", checkpoint, num_iterations=2)
    assert not (tmp_path / "whole" / "checkpoint-2" / "rollout_0.pt").exists()  # that rollout is used up


def test_an_epoch_that_a_callback_stops_within_a_rollout_is_an_error_that_names_the_steps_at_which_it_may(tmp_path):
    class StopEpoch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == self.step

    trainer = make_trainer("reward", tmp_path / "between", num_iterations=2, max_steps=6)
    StopEpoch.step = 2
    trainer.add_callback(StopEpoch())
    trainer.train()
    assert trainer.state.global_step == 6
    StopEpoch.step = 1
    with pytest.raises(ValueError, match="a multiple of 2; a callback may stop an epoch only at such a step"):
        trainer.train()


def test_resumed_with_rewards_of_chance_equals_uninterrupted(tmp_path):
    """Rewards that draw from torch's generator draw the same numbers after a resume, as a model's `generate` would."""

    def chance(completions, **kwargs):
        return torch.rand(len(completions)).tolist()

    runs = []
    for checkpoint in (None, tmp_path / "0" / "checkpoint-1"):
        trainer = make_trainer("reward", tmp_path / str(len(runs)), **STEPS)
        trainer.reward = type(trainer.reward)(chance)
        trainer.train(resume_from_checkpoint=checkpoint)
        runs.append([log["reward"] for log in trainer.state.log_history if "reward" in log])
    assert runs[0] == runs[1] and len(set(runs[0])) == 5


def test_resumed_with_workers_and_random_targets_equals_uninterrupted(tmp_path):
    processor = ShuffledLetters(text_processor().image_processor, text_processor().tokenizer)
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "max_steps": 4}
    assert_resumes("mle", tmp_path, (3,), processing_class=processor, **workers)
    seen = run("mle", tmp_path / "again", processing_class=processor, max_steps=10)["seen"]
    assert len({(row, tuple(labels)) for _, row, labels in seen}) > 20  # the targets change with the epoch


@pytest.mark.parametrize("kind", ["mle", "reward"])
def test_resumed_lora_equals_uninterrupted(tmp_path, kind):
    of_decoder = LoraConfig(r=4, target_modules=r"decoder\..*(query|value)")  # a regex over the names of modules
    decoder, adapters = {"mle": ("bert", of_decoder), "reward": ("ours", LORA)}[kind]
    assert_resumes(kind, tmp_path, (3,), other_weights=False, decoder=decoder, peft_config=adapters)


def test_a_checkpoint_goes_on_with_another_split_of_the_batch(tmp_path):
    whole = run("reward", tmp_path / "whole")
    split = run("reward", tmp_path / "split", tmp_path / "whole" / "checkpoint-3", **ACCUMULATED)
    assert sorted(split["seen"]) == sorted(entry for entry in whole["seen"] if entry[0] >= 3)
    for log, expected in zip(split["logs"], whole["logs"], strict=True):
        assert (log["loss"], log["grad_norm"]) == pytest.approx((expected["loss"], expected["grad_norm"]), rel=1e-4)


def test_a_run_that_was_cut_off_goes_on_in_a_new_process(tmp_path):
    call = {"kind": "reward", "decoder": "bert", **STEPS}
    train(folder=tmp_path / "run", callbacks=[StopAt(3)], **call)
    (resumed,) = launch([sys.executable], {"run": {**call, "resume": True}}, tmp_path)["run"]
    whole = json.loads(json.dumps(train(folder=tmp_path / "whole", **call)))
    assert resumed["weights"] == whole["weights"]
    assert resumed["seen"] == [entry for entry in whole["seen"] if entry[0] >= 3]
    assert list(map(without_times, resumed["logs"])) == list(map(without_times, whole["logs"]))


# --- why we load checkpoints ourselves -------------------------------------------------------------------------------


def loaded_by(trainer_class, tmp_path) -> tuple[dict, dict]:
    """The weights in a checkpoint of a ViT encoder with a BERT decoder, and those that a trainer restores from it."""
    saved = tiny_model("bert", seed=1)
    saved.save_pretrained(tmp_path / "checkpoint")
    other = tiny_model("bert", seed=2)
    if trainer_class is Trainer:
        trainer = Trainer(other, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    else:
        trainer = make_trainer("reward", tmp_path, model=other)
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint"))
    return saved.state_dict(), other.state_dict()


def test_stock_trainer_loses_the_encoder_of_a_checkpoint(tmp_path):
    """A fault of transformers: it saves ViT's weights under older names and reads them back only under the new ones.

    It is huggingface/transformers#43701 and #48805. When this test fails, transformers has been mended, and
    `VisionTrainer._load_from_checkpoint` and `_load_best_model` can go.
    """
    saved, restored = loaded_by(Trainer, tmp_path)
    lost = [name for name in saved if not torch.equal(saved[name], restored[name])]
    assert lost
    assert all(name.startswith("encoder.") for name in lost)


def test_our_trainer_restores_the_encoder_of_a_checkpoint(tmp_path):
    saved, restored = loaded_by(None, tmp_path)
    assert_equal(dict(restored), dict(saved))


def test_a_frozen_encoder_in_half_precision_does_not_round_the_decoder_that_is_resumed(tmp_path):
    model = tiny_model(sharp=0.2)
    model.encoder.requires_grad_(False).to(torch.bfloat16)
    trainer = make_trainer("mle", tmp_path, model=model, bf16=True, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert_equal(dict(trainer.model.state_dict()), trained)


# --- the best model -------------------------------------------------------------------------------------------------

BEST = 2
KEEP_BEST = {
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "max_steps": 4,
    "disable_tqdm": True,
}
KEEP_BEST |= {"save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("decoder, peft_config", [("bert", None), ("ours", LORA)])
def test_the_best_model_by_the_metric_comes_back_with_its_encoder(tmp_path, decoder, peft_config):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    snapshots = Snapshots()
    trainer = make_trainer(
        "mle",
        tmp_path,
        decoder,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        compute_metrics=lambda predictions, references: {"score": next(scores)},
        callbacks=[snapshots],
        peft_config=peft_config,
        **KEEP_BEST,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{BEST}")
    assert_equal(dict(trainer.model.state_dict()), snapshots.at[BEST])
    changed = [name for name, value in snapshots.at[4].items() if not torch.equal(value, snapshots.at[BEST][name])]
    assert any("encoder." in name for name in changed) and any("decoder." in name for name in changed)


def best_at_two(completions, trainer_state, **kwargs) -> list[float]:
    return [share - abs(trainer_state.global_step - BEST) for share in share_of_a(completions)]


def test_the_best_tuned_model_is_that_of_the_highest_reward_by_default(tmp_path):
    snapshots = Snapshots()
    config = VisionRewardConfig(
        str(tmp_path),
        learning_rate=3e-3,
        max_completion_length=MAX_LENGTH,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=8,
        **KEEP_BEST,
    )
    trainer = VisionRewardTrainer(
        tiny_model("gpt2", sharp=0.2),
        best_at_two,
        config,
        train_dataset=text_dataset(16),
        eval_dataset=text_dataset(7, seed=1),
        processing_class=text_processor(),
        callbacks=[snapshots],
    )
    trainer.train()
    assert config.metric_for_best_model == "reward"
    assert trainer.state.best_global_step == BEST
    assert_equal(dict(trainer.model.state_dict()), snapshots.at[BEST])
    reloaded = VisionEncoderDecoderModel.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert_equal({name: reloaded[name] for name in snapshots.at[BEST]}, snapshots.at[BEST])


# --- a resumed run with other options -------------------------------------------------------------------------------


def test_a_resumed_run_says_that_it_keeps_the_learning_rates_of_its_checkpoint(tmp_path, caplog):
    run("mle", tmp_path / "run", learning_rate=1e-2, **ONE_STEP)
    caplog.clear()
    resumed = run("mle", tmp_path / "other", tmp_path / "run" / "checkpoint-1", learning_rate=1e-5, max_steps=2)
    assert [group["initial_lr"] for group in resumed["optimizer"]["param_groups"]] == [1e-2] * 2
    (warning,) = [record.message for record in caplog.records if "learning_rate=0.01" in record.message]
    assert "this run has learning_rate=1e-05" in warning
    assert "start a new run with the checkpoint as `model`" in warning


def test_a_weight_decay_that_the_checkpoint_did_not_have_is_told_before_the_optimizer_is_loaded(tmp_path):
    run("mle", tmp_path / "run", **ONE_STEP)
    with pytest.raises(
        ValueError, match="weight_decay=0.0, but this run has weight_decay=0.1: the state of its optimizer"
    ):
        run("mle", tmp_path / "other", tmp_path / "run" / "checkpoint-1", weight_decay=0.1, max_steps=2)


# --- callbacks of the user's own ------------------------------------------------------------------------------------


class RaisesAtStepEnd(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise RuntimeError("the tracker is gone")


def test_a_callback_that_fails_at_the_end_of_a_step_loses_no_step(tmp_path):
    trainer = make_trainer("mle", tmp_path, callbacks=[RaisesAtStepEnd()], **{**STEPS, "save_steps": 100})
    with pytest.raises(RuntimeError, match="the tracker is gone"):
        trainer.train()
    whole = run("mle", tmp_path / "whole", **STEPS)
    assert_equal(run("mle", tmp_path / "resumed", tmp_path / "checkpoint-2", **STEPS)["weights"], whole["weights"])


class StopsBeforeTraining(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_a_callback_may_stop_a_run_before_its_first_step(tmp_path):
    trainer = make_trainer("mle", tmp_path, callbacks=[StopsBeforeTraining()], **STEPS)
    trainer.train()
    assert trainer.state.global_step == 0


def test_workers_that_persist_over_evaluations_change_nothing_for_a_resumed_run(tmp_path):
    """A decoder with dropout: its masks come from the generator that seeds the workers of training."""
    options = {
        "decoder": "bert",
        "eval_dataset": text_dataset(4),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
    }
    assert_resumes("mle", tmp_path, (2,), max_steps=3, **options)
