"""Encoder-decoders of transformers other than VisionEncoderDecoderModel: Pix2Struct, Florence-2, BLIP's captioner."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from peft import LoraConfig
from served_models import KINDS, dataset, served
from tiny import share_of_a
from transformers import AutoProcessor

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.compatibility import CHECKPOINTING
from vision_rl.models.sampling import sample
from vision_rl.models.served import encode, image_inputs, takes_encoder_outputs, token_inputs
from vision_rl.randomness import uniform_table


pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}


def mle(tmp_path, kind, sharp=0.15, **options):
    model, processor = served(kind, sharp=sharp)
    args = VisionMLEConfig(str(tmp_path), per_device_train_batch_size=4, max_completion_length=6, **SHARED, **options)
    rows = {"train_dataset": dataset(kind), "eval_dataset": dataset(kind)}
    return VisionMLETrainer(model, args, processing_class=processor, **rows)


def tuning(tmp_path, kind, reward=share_of_a, **options):
    model, processor = served(kind)
    args = {"per_device_train_batch_size": 4, "max_completion_length": 6, "num_generations": 4, **SHARED, **options}
    rows = {"train_dataset": dataset(kind), "eval_dataset": dataset(kind)}
    return VisionRewardTrainer(
        model, reward, VisionRewardConfig(str(tmp_path), **args), processing_class=processor, **rows
    )


def images_of(trainer) -> dict:
    """The images of a batch. If the model has padding, the second and third are smaller than the first."""
    batch = next(iter(trainer.get_eval_dataloader()))
    images = {name: batch[name][:4] for name in ("pixel_values", "prompt_ids") if name in batch}
    if images["pixel_values"].ndim == 3:  # patches of Pix2Struct, whose number depends on the size
        images["pixel_values"][1, 9:] = images["pixel_values"][2, 4:] = 0
    return images


def teacher_forced(model, images, ids):
    """`(R, T)` log-probabilities of `ids` by the model's own forward; each image is given once for each completion."""
    start = model.generation_config.decoder_start_token_id
    read = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)
    with torch.no_grad():
        logits = model(**image_inputs(model, images), **token_inputs(model, read)).logits
    return logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


@pytest.mark.compatibility
@pytest.mark.parametrize("kind", KINDS)
def test_the_samplers_log_probabilities_are_those_of_the_models_own_forward(tmp_path, kind):
    trainer = tuning(tmp_path, kind)
    images, untouched = images_of(trainer), served(kind)[0]
    untouched.generation_config = trainer.model.generation_config
    completions = sample(trainer.model, num_generations=8, max_completion_length=6, **images)
    ids, mask, logps = (field.flatten(0, 1) for field in completions)
    assert 1 < mask.sum(1).float().mean() < 6, "some end before the others"
    repeated = {name: value.repeat_interleave(8, dim=0) for name, value in images.items()}
    for model, given in ((untouched, repeated), (trainer.model, images)):  # its hooks let 32 rows read 4 images
        assert torch.allclose(teacher_forced(model, given, ids) * mask, logps, atol=1e-5)
    if takes_encoder_outputs(trainer.model):
        encoded = encode(trainer.model, images)
        assert torch.allclose(teacher_forced(trainer.model, encoded, ids) * mask, logps, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_completions_are_those_of_generate(tmp_path, kind):
    trainer = mle(tmp_path, kind, sharp=0.3)
    said = trainer.predict(dataset(kind, 6)).predictions
    trainer.save_model(tmp_path)
    rows, reader = dataset(kind, 6), type(trainer.processing_class).from_pretrained(tmp_path)
    model = type(trainer.model).from_pretrained(tmp_path)
    inputs = {"text": rows["prompt"], "padding": True} if "prompt" in rows.column_names else {}
    if kind == "pix2struct":
        inputs = {"max_patches": reader.image_processor.max_patches}  # the default of its processor is 2048
    inputs = reader(images=list(rows["image"]), return_tensors="pt", **inputs)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert trainer.processor.batch_decode(ids) == said
    assert len(set(said)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_samples_depend_on_neither_the_batch_nor_how_it_is_cut(tmp_path, kind):
    trainer = tuning(tmp_path, kind)
    images, uniforms = images_of(trainer), uniform_table(0, 0, torch.arange(4), 4, 6)
    whole = sample(trainer.model, num_generations=4, max_completion_length=6, uniforms=uniforms, **images)
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in images.items()}
        part = sample(
            trainer.model, num_generations=4, max_completion_length=6, uniforms=uniforms[row : row + 1], **one
        )
        length = part.completion_ids.shape[2]
        assert torch.equal(part.completion_ids[0], whole.completion_ids[row, :, :length])


@pytest.mark.parametrize("kind", KINDS)
def test_mle_learns_the_labels_and_every_parameter_of_them(tmp_path, kind):
    trainer = mle(tmp_path, kind, max_steps=30, learning_rate=3e-3, encoder_learning_rate=1e-3)
    before = copy.deepcopy(trainer.model.state_dict())
    loss = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * loss
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    still = [name for name in names if torch.equal(before[name], trainer.model.state_dict()[name])]
    assert all("k_proj.bias" in name or "key.bias" in name for name in still), "only a key's bias has no effect"
    rates = {group["name"].removesuffix("_no_decay"): group["lr"] for group in trainer.optimizer.param_groups}
    assert set(rates) == {"decoder", "encoder"}


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_makes_the_reward_larger(tmp_path, kind):
    trainer = tuning(tmp_path, kind, max_steps=24, learning_rate=5e-3)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert entry["sampling/sampling_logp_difference/max"] < 1e-5
    assert trainer.evaluate()["eval_reward"] > max(0.6, before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_tune_runs(tmp_path, kind):
    options = {"beta": 0.1, "entropy_coef": 0.01, "mle_weight": 0.1, "baseline": "greedy", "num_iterations": 2}
    chunks = {"per_device_generation_batch_size": 3, "gradient_accumulation_steps": 2, "reward_num_workers": 1}
    trainer = tuning(tmp_path, kind, max_steps=2, **options, **chunks)
    trainer.train()
    assert "kl" in trainer.state.log_history[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task_type", [None, "SEQ_2_SEQ_LM"])
def test_adapters_are_tuned(tmp_path, kind, task_type):
    model, processor = served(kind)
    args = VisionRewardConfig(
        str(tmp_path), max_steps=2, max_completion_length=6, beta=0.1, learning_rate=1e-2, **SHARED
    )
    lora = LoraConfig(r=2, target_modules="all-linear", task_type=task_type)
    tuned = VisionRewardTrainer(model, share_of_a, args, dataset(kind), processing_class=processor, peft_config=lora)
    tuned.train()
    assert tuned.state.log_history[0]["sampling/sampling_logp_difference/max"] < 1e-5
    assert tuned.state.log_history[1]["kl"] != 0
    tuned.save_model(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"optim": "big_vision_adafactor"}, {CHECKPOINTING: True}, {"bf16": True}])
def test_other_ways_to_train_them_run(tmp_path, kind, options):
    if kind == "pix2struct" and CHECKPOINTING in options:
        pytest.skip("transformers' Pix2Struct keeps all activations, and says so")
    mle(tmp_path, kind, max_steps=2, **options).train()
    trainer = tuning(tmp_path, kind, max_steps=2, **options)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_a_question_is_drawn_above_what_pix2struct_reads(tmp_path, monkeypatch):
    model, processor = served("pix2struct")
    processor.image_processor.is_vqa = True
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    hub = SimpleNamespace(hf_hub_download=lambda *args: str(font))  # the font would come from the Hub
    monkeypatch.setattr(f"{type(processor.image_processor).__module__}.hf_api", lambda: hub)
    rows = dataset("pix2struct").add_column("prompt", ["which?", "how many?"] * 8)
    seen = []

    def asked(completions, prompts, **kwargs):
        seen.extend(prompts)
        return [1.0] * len(completions)

    args = VisionRewardConfig(str(tmp_path), max_steps=1, max_completion_length=4, num_generations=2, **SHARED)
    VisionRewardTrainer(model, asked, args, rows, processing_class=processor).train()
    assert set(seen) == {"which?", "how many?"}
    with pytest.raises(ValueError, match="train_dataset has no column `prompt`"):
        VisionRewardTrainer(model, asked, args, dataset("pix2struct"), processing_class=processor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_loaded_by_its_path_and_resumed(tmp_path, kind):
    whole = tuning(tmp_path / "whole", kind, max_steps=4, learning_rate=1e-3)
    whole.train()
    options = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2}
    tuning(tmp_path / "parts", kind, max_steps=2, **(SHARED | options)).train()
    _, processor = served(kind)
    args = VisionRewardConfig(str(tmp_path / "parts"), **(SHARED | options), max_steps=4, num_generations=4)
    args.per_device_train_batch_size, args.max_completion_length = 4, 6
    again = VisionRewardTrainer(
        str(tmp_path / "parts" / "checkpoint-2"), share_of_a, args, dataset(kind), processing_class=processor
    )
    assert type(again.model) is type(whole.model)
    again.train(resume_from_checkpoint=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["pix2struct", "florence2"])
def test_a_wrapped_processor_wants_a_row_of_everything_and_saves_the_models_own(tmp_path, kind):
    processor = mle(tmp_path, kind).processor
    rows = dataset(kind, 2)
    prompts = {"prompt": rows["prompt"][:]} if kind == "florence2" else {}
    with pytest.raises(ValueError, match="There are 2 images but 1 text"):
        processor(images=rows["image"][:], text=["a"], **prompts)
    if kind == "pix2struct":
        with pytest.raises(ValueError, match="reads no prompt beside the image"):
            processor(images=rows["image"][:], prompt=["a", "b"])
    processor.save_pretrained(tmp_path / "saved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(processor.reads)
