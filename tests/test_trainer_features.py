"""Features that users know from Trainer: LoRA, bf16, TensorBoard, saving, predict; and a completion decoder."""

import multiprocessing

import pytest
import torch
from peft import LoraConfig, PeftModel
from scripts.train import EVAL_ROWS, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import SIZE, text_dataset, text_processor, tiny_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, VisionEncoderDecoderModel

from vision_rl import TextProcessor, VisionMLETrainer, VisionRewardTrainer
from vision_rl.compatibility import CHECKPOINTING
from vision_rl.models.sampling import sample
from vision_rl.models.special_ids import special_ids
from vision_rl.models.unwrapping import decoder_of


def greedy_texts(model, processor, length: int = 12) -> list[str]:
    pixel_values = processor(images=text_dataset(EVAL_ROWS, seed=1)["image"])["pixel_values"]
    completions = sample(model.eval(), pixel_values, do_sample=False, max_completion_length=length)
    return processor.batch_decode(completions.completion_ids[:, 0])


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def logs(trainer) -> list[dict]:
    return [log for log in trainer.state.log_history if "loss" in log]


# --- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mle", "reward"])
@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_only_the_adapters_and_reloads_on_the_base(tmp_path, kind, decoder, checkpointing):
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = make_trainer(kind, tmp_path, decoder, peft_config=lora, max_steps=3, **{CHECKPOINTING: checkpointing})
    assert isinstance(trainer.model, PeftModel)
    before = weights(trainer.model)
    trainer.train()
    learned = changed(trainer.model, before)
    assert all("lora_" in name for name in learned)
    assert any("encoder." in name for name in learned) and any("decoder." in name for name in learned)

    trainer.save_model()
    base = tiny_model(decoder, sharp=0.2, seed=2)  # the weights with which the trainer began
    reloaded = PeftModel.from_pretrained(base, tmp_path)
    processor = TextProcessor.from_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / "model.safetensors").exists()
    assert not changed(reloaded, weights(trainer.model))
    texts = trainer.predict(text_dataset(EVAL_ROWS, seed=1)).predictions
    assert greedy_texts(reloaded, processor) == texts
    assert greedy_texts(reloaded.merge_and_unload(), processor) == texts


def test_an_adapter_under_beta_is_compared_with_its_own_base(tmp_path):
    trainer = make_trainer("reward", tmp_path, peft_config=LoraConfig(target_modules="all-linear"), beta=0.1)
    assert trainer.ref_model is trainer.model  # no second copy of the weights
    trainer.train()
    kl = [log["kl"] for log in logs(trainer)]
    assert kl[0] == pytest.approx(0, abs=1e-5)  # a new adapter changes nothing
    assert abs(kl[-1]) > 1e-3


def test_a_model_that_is_already_inside_peft_is_tuned(tmp_path):
    from peft import get_peft_model

    model = get_peft_model(tiny_model(sharp=0.2, seed=2), LoraConfig(target_modules="all-linear"))
    trainer = make_trainer("reward", tmp_path, model=model)
    before = weights(model)
    trainer.train()
    learned = changed(model, before)
    assert learned and all("lora_" in name for name in learned)


@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
@pytest.mark.parametrize("given", [False, True])
def test_a_decoder_that_peft_trains_whole_is_sampled_and_checked_as_any_other(tmp_path, caplog, decoder, given):
    from peft import get_peft_model

    lora = LoraConfig(target_modules=r"encoder\..*(query|value|q_proj|v_proj)", modules_to_save=["decoder"])
    model = tiny_model(decoder, sharp=0.2, seed=2)
    model, options = (get_peft_model(model, lora), {}) if given else (model, {"peft_config": lora})
    trainer = make_trainer("reward", tmp_path, model=model, **options)
    before = weights(trainer.model)
    trainer.train()
    learned = changed(trainer.model, before)
    assert any("decoder.modules_to_save" in name for name in learned) and any("lora_" in name for name in learned)
    assert not any("original_module" in name for name in learned)
    assert "reads each image once for every completion" not in caplog.text
    assert type(decoder_of(trainer.unwrap(trainer.model))) is type(tiny_model(decoder).decoder)

    trainer.save_model()
    reloaded = PeftModel.from_pretrained(tiny_model(decoder, sharp=0.2, seed=2), tmp_path)
    texts = trainer.predict(text_dataset(EVAL_ROWS, seed=1)).predictions
    assert greedy_texts(reloaded, TextProcessor.from_pretrained(tmp_path)) == texts


def test_a_path_of_adapters_is_trained_on_and_never_replaced(tmp_path, caplog):
    lora = LoraConfig(r=4, target_modules="all-linear")
    tiny_model(sharp=0.2, seed=2).save_pretrained(tmp_path / "base")
    first = make_trainer("mle", tmp_path / "lora", model=str(tmp_path / "base"), peft_config=lora)
    first.train()
    first.save_model()
    again = make_trainer("reward", tmp_path / "tuned", model=str(tmp_path / "lora"))
    before = weights(again.model)
    assert not changed(first.model, before)
    again.train()
    assert all("lora_" in name for name in changed(again.model, before))
    with pytest.raises(ValueError, match="The model has adapters already: leave out peft_config"):
        make_trainer("reward", tmp_path, model=str(tmp_path / "lora"), peft_config=lora)
    injected = VisionEncoderDecoderModel.from_pretrained(tmp_path / "lora")  # transformers freezes adapters
    with pytest.raises(ValueError, match="No parameter of the model is trained"):
        make_trainer("reward", tmp_path, model=injected)
    with pytest.raises(ValueError, match="The model has adapters already"):
        make_trainer("reward", tmp_path, model=injected, peft_config=lora)


def test_adapters_and_reentrant_checkpoints_are_refused_together(tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear")
    options = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="use_reentrant=True gives no gradient to adapters"):
        make_trainer("reward", tmp_path, peft_config=lora, **options)


# --- decoders whose positions leave out the padding -------------------------------------------------------------------


def roberta(start: int = 4):
    """A RoBERTa decoder for the character tokenizer. It starts with an id other than the padding, which is 0."""
    model = tiny_model("roberta", vocab_size=7, sharp=0.2, seed=2)
    for holder in (model.config, model.generation_config):
        holder.decoder_start_token_id = start
    return model


def test_roberta_learns_at_the_positions_at_which_it_was_sampled(tmp_path):
    trainer = make_trainer("reward", tmp_path, model=roberta(), num_generations=4)
    assert trainer.model.generation_config.suppress_tokens == [0]
    trainer.train()
    assert max(log["sampling/sampling_logp_difference/max"] for log in logs(trainer)) < 1e-4


def test_roberta_must_not_start_with_its_padding_and_has_fewer_positions(tmp_path):
    with pytest.raises(ValueError, match="decoder_start_token_id is 0, which is also the padding"):
        make_trainer("reward", tmp_path, model=roberta(start=0))
    with pytest.raises(ValueError, match="max_completion_length is 16, but the decoder has only 15 positions"):
        make_trainer("reward", tmp_path, model=roberta(), max_completion_length=16)
    assert make_trainer("reward", tmp_path, model=roberta(), max_completion_length=None).max_completion_length == 15


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["ours", "gpt2", "bert"])
def test_bf16_keeps_the_learned_policy_near_the_sampled_one(tmp_path, decoder):
    trainer = make_trainer("reward", tmp_path, decoder, bf16=True)
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())  # the weights stay in float32: autocast
    assert max(log["sampling/sampling_logp_difference/max"] for log in logs(trainer)) < 0.1
    exact = make_trainer("reward", tmp_path, decoder, max_steps=1)
    exact.train()
    difference = abs(logs(trainer)[0]["entropy"] - logs(exact)[0]["entropy"])
    assert 1e-6 < difference < 0.2  # the difference shows that it was sampled in bf16


def test_bf16_evaluates_before_training_as_it_does_after_it(tmp_path):
    """With a learning rate of 0 the weights stay. It must not matter whether accelerate has wrapped the model."""
    trainer = make_trainer("mle", tmp_path, bf16=True, learning_rate=0.0, max_steps=1)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-6)
    exact = make_trainer("mle", tmp_path).evaluate()["eval_loss"]
    assert 0 < abs(before - exact) < 0.05


# --- reports --------------------------------------------------------------------------------------------------------


def test_tensorboard_shows_reward_and_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    trainer = make_trainer("reward", tmp_path, report_to="tensorboard", eval_strategy="steps", eval_steps=2)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    tags = events.Tags()["scalars"]
    for tag in ("train/loss", "train/reward", "train/reward_std", "train/rewards/share_of_a/mean", "train/entropy"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4], tag
    for tag in ("eval/reward", "eval/exact", "eval/completions/mean_length"):
        assert [event.step for event in events.Scalars(tag)] == [2, 4], tag
    assert "train/completions/mean_length" in tags
    assert [e.value for e in events.Scalars("train/reward")] == pytest.approx([log["reward"] for log in logs(trainer)])


# --- saving and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mle", "reward"])
@pytest.mark.parametrize("decoder", ["ours", "bert", "trocr"])
def test_the_saved_folder_holds_model_and_processor(tmp_path, kind, decoder):
    trainer = make_trainer(kind, tmp_path, decoder, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    texts = trainer.predict(text_dataset(EVAL_ROWS, seed=1)).predictions
    model, processor = VisionEncoderDecoderModel.from_pretrained(tmp_path), TextProcessor.from_pretrained(tmp_path)
    assert greedy_texts(model, processor) == texts
    generation, ours = model.generation_config, trainer.model.generation_config
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        assert getattr(generation, name) == getattr(ours, name) is not None


def test_a_model_may_be_given_as_a_path(tmp_path):
    """Step 2 starts from the folder that step 1 wrote."""
    first = make_trainer("mle", tmp_path / "step1", learning_rate=1e-2)
    first.train()
    first.save_model()
    second = VisionRewardTrainer(
        str(tmp_path / "step1"),
        lambda completions, **kwargs: [len(text) for text in completions],
        make_trainer("reward", tmp_path / "step2").args,
        train_dataset=text_dataset(16),
        processing_class=text_processor(),
    )
    assert not changed(second.model, weights(first.model))
    second.train()
    assert second.state.global_step == 4


def test_the_processor_of_a_path_is_found_beside_the_model(tmp_path):
    tiny_model(sharp=0.2, seed=2).save_pretrained(tmp_path)
    text_processor().save_pretrained(tmp_path)
    trainer = VisionMLETrainer(
        str(tmp_path), make_trainer("mle", tmp_path / "run").args, train_dataset=text_dataset(16)
    )
    assert isinstance(trainer.processing_class, TextProcessor)
    trainer.train()


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mle", "reward"])
def test_predict_returns_completions_and_references_in_the_order_of_the_rows(tmp_path, kind):
    trainer = make_trainer(kind, tmp_path, per_device_eval_batch_size=3)
    rows = text_dataset(EVAL_ROWS, seed=1)
    output = trainer.predict(rows)
    assert output.label_ids == rows["text"][:]
    assert output.predictions == greedy_texts(trainer.model, text_processor())
    assert output.metrics["test_rows"] == EVAL_ROWS
    assert {"mle": "test_loss", "reward": "test_reward"}[kind] in output.metrics


@pytest.mark.parametrize("kind", ["mle", "reward"])
def test_images_without_targets_are_predicted(tmp_path, kind):
    trainer = make_trainer(kind, tmp_path)
    rows = text_dataset(EVAL_ROWS, seed=1)
    output = trainer.predict(rows.remove_columns("text"))
    assert output.predictions == trainer.predict(rows).predictions
    assert output.label_ids == [None] * EVAL_ROWS
    assert not {"test_loss", "test_reward", "test_exact"} & set(output.metrics)


def test_mle_predicts_without_metrics(tmp_path):
    trainer = make_trainer("mle", tmp_path)
    trainer.compute_metrics = None
    assert trainer.predict(trainer.eval_dataset).predictions == greedy_texts(trainer.model, text_processor())


def test_a_metric_that_is_named_with_its_prefix_keeps_its_name(tmp_path):
    trainer = make_trainer("mle", tmp_path)
    trainer.compute_metrics = lambda predictions, references: {"eval_exact": 1.0}
    assert trainer.evaluate()["eval_exact"] == 1.0


def test_evaluation_keeps_its_workers(tmp_path):
    trainer = make_trainer("mle", tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer.evaluate()
    workers = {process.pid for process in multiprocessing.active_children()}
    trainer.evaluate()
    assert {process.pid for process in multiprocessing.active_children()} == workers
    other = trainer.predict(text_dataset(3, seed=5))
    assert len(other.predictions) == 3


def test_workers_that_are_kept_read_the_evaluation_set_that_is_there_now(tmp_path):
    trainer = make_trainer("mle", tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer.evaluate()
    trainer.eval_dataset = text_dataset(5, seed=7)
    assert (
        trainer.evaluate()["eval_loss"] == make_trainer("mle", tmp_path).evaluate(text_dataset(5, seed=7))["eval_loss"]
    )


# --- torch.compile --------------------------------------------------------------------------------------------------


def test_a_compiled_run_draws_the_same_samples_and_learns_the_same(tmp_path):
    runs = []
    for compiled in (False, True):
        trainer = make_trainer("reward", tmp_path, torch_compile=compiled, torch_compile_backend="eager", max_steps=2)
        trainer.train()
        runs.append((logs(trainer), weights(trainer.model)))
    for plain, compiled in zip(runs[0][0], runs[1][0], strict=True):
        assert compiled["entropy"] == pytest.approx(plain["entropy"], rel=1e-5)
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-4, abs=1e-6)
    assert all(torch.allclose(runs[0][1][name], value, atol=1e-6) for name, value in runs[1][1].items())


# --- special ids ----------------------------------------------------------------------------------------------------


def test_the_tokenizers_end_ends_a_completion_before_training_as_after_it(tmp_path):
    model = tiny_model(end=5)
    trainer = make_trainer("reward", tmp_path, model=model)
    before = special_ids(model)
    assert set(before.ends) == {text_processor().tokenizer.eos_token_id, 5}
    trainer.train()
    assert special_ids(model) == before


# --- a completion decoder -------------------------------------------------------------------------------------------


class PictureDecoderConfig(PreTrainedConfig):
    model_type = "picture_decoder"


class PictureDecoder(PreTrainedModel):
    """A small network in place of stage I, which turns ids into one colour for each completion."""

    config_class = PictureDecoderConfig

    def __init__(self, config):
        super().__init__(config)
        self.colours = nn.Embedding(6, 3)
        self.dropout = nn.Dropout(0.5)
        self.post_init()

    def forward(self, completion_ids, batch):
        assert completion_ids.shape[0] == len(batch["pixel_values"]) == len(batch["columns"].columns["image"])
        assert batch["pixel_values"].shape[-1] == SIZE
        assert not torch.is_grad_enabled() and not self.training
        return self.dropout(self.colours(completion_ids)).mean(2).flatten(0, 1)  # (B*G, 3)


def redness(completions, references, **kwargs) -> list[float]:
    assert all(colour.shape == (3,) for colour in completions)
    assert len(references) == len(completions)
    return [colour[0].item() for colour in completions]


def test_a_completion_decoder_decodes_in_place_of_the_processor_and_is_saved_as_stage1(tmp_path):
    torch.manual_seed(0)
    decoder = PictureDecoder(PictureDecoderConfig())
    before = weights(decoder)
    options = make_trainer("reward", tmp_path, save_strategy="steps", save_steps=4, num_generations=3).args
    trainer = VisionRewardTrainer(
        tiny_model(sharp=0.2, seed=2),
        redness,
        options,
        train_dataset=text_dataset(16),
        eval_dataset=text_dataset(EVAL_ROWS, seed=1),
        processing_class=text_processor(),
        completion_decoder=decoder,
    )
    untrained = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_reward"] > untrained["eval_reward"]
    assert not changed(decoder, before)
    assert not any(p.requires_grad or p.grad is not None for p in decoder.parameters())
    in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not in_optimizer & {id(p) for p in decoder.parameters()}
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        assert not changed(PictureDecoder.from_pretrained(folder / "stage1"), before)
        assert not any("colours" in name for name in VisionEncoderDecoderModel.from_pretrained(folder).state_dict())
    assert all(colour.shape == (3,) for colour in trainer.predict(trainer.eval_dataset).predictions)
