"""Each contact with another library once, for `make test-oldest` and `make test-newest`.

The other test files check the same things by numbers. This one asks whether they run with the installed versions, from
an MLE step to the command line.
"""

import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from scripts.launch import TORCHRUN, launch
from scripts.train import EVAL_ROWS, MAX_LENGTH, make_trainer
from tiny import START, text_dataset, text_processor, tiny_model
from transformers import VisionEncoderDecoderModel

import vision_rl
from vision_rl import TextProcessor
from vision_rl.compatibility import CACHE, CHECKPOINTING, cache_of, checkpointing, checkpointing_kwargs
from vision_rl.models.sampling import sample
from vision_rl.tasks.captioning import DocumentFrequency


pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("one_thread")]

DECODERS = ("ours", "gpt2", "bert", "roberta", "trocr", "bart", "mbart")
KINDS = ("mle", "reward")


@pytest.fixture(autouse=True)
def nothing_deprecated_is_used(caplog, recwarn):
    """No deprecation is reported. transformers reports some old names by a warning, others by a line in the log."""
    yield
    told = [record.getMessage() for record in caplog.get_records("call")]
    told += [str(warning.message) for warning in recwarn if "vision_rl" in warning.filename]
    assert not [message for message in told if "deprecated" in message]


def model_of(decoder: str) -> VisionEncoderDecoderModel:
    """RoBERTa starts with an id of its own, since it gives padding no position; the other decoders start with padding."""
    if decoder != "roberta":
        return tiny_model(decoder, sharp=0.05, seed=2)
    model = tiny_model(decoder, vocab_size=7, sharp=0.05, seed=2)
    for holder in (model.config, model.generation_config):
        holder.decoder_start_token_id = 6
    model.generation_config.suppress_tokens = [START]  # as the trainers set it
    return model


def trained(kind: str, folder: Path, **options):
    """A trainer after two steps of two micro-batches, and one evaluation."""
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **options}
    trainer = make_trainer(kind, folder, eval_strategy="steps", eval_steps=2, **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    return trainer


def generated(model, processor: TextProcessor) -> list[str]:
    """What transformers' `generate` answers to the evaluation images."""
    pixel_values = processor(images=text_dataset(EVAL_ROWS, seed=1)["image"])["pixel_values"]
    return processor.batch_decode(
        model.eval().generate(pixel_values=pixel_values, max_new_tokens=MAX_LENGTH)[:, 1:].tolist()
    )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_is_trained_evaluated_saved_and_generates_elsewhere_what_was_evaluated(tmp_path, kind, decoder):
    trainer = trained(kind, tmp_path, model=model_of(decoder), **{CHECKPOINTING: decoder in ("ours", "gpt2")})
    assert any("eval_exact" in log for log in trainer.state.log_history)
    trainer.save_model()
    model, processor = VisionEncoderDecoderModel.from_pretrained(tmp_path), TextProcessor.from_pretrained(tmp_path)
    assert generated(model, processor) == trainer.predict(text_dataset(EVAL_ROWS, seed=1)).predictions


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_is_trained_with_adapters(tmp_path, kind, decoder):
    trainer = trained(
        kind, tmp_path, model=model_of(decoder), peft_config=LoraConfig(r=2, target_modules="all-linear")
    )
    trainer.save_model()
    reloaded = PeftModel.from_pretrained(model_of(decoder), tmp_path)
    said = generated(reloaded.merge_and_unload(), text_processor())
    assert said == trainer.predict(text_dataset(EVAL_ROWS, seed=1)).predictions


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_is_sampled_with_its_own_log_probabilities(decoder):
    model = model_of(decoder)
    model.generation_config.suppress_tokens = [START]
    pixels = text_processor()(images=text_dataset(2)["image"])["pixel_values"]
    completions = sample(model, pixels, 3, max_completion_length=6)
    ids = completions.completion_ids.flatten(0, 1)
    start = model.generation_config.decoder_start_token_id
    with torch.no_grad():
        logits = model(
            pixel_values=pixels.repeat_interleave(3, dim=0),
            decoder_input_ids=F.pad(ids[:, :-1], (1, 0), value=start),
        ).logits
    logits[..., START] = float("-inf")
    logps = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].view_as(completions.per_token_logps)
    logps = logps.masked_fill(completions.completion_mask == 0, 0)
    torch.testing.assert_close(completions.per_token_logps, logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapters", [None, LoraConfig(r=2, target_modules="all-linear")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_ends_with_the_weights_of_one_that_was_not_interrupted(tmp_path, kind, adapters):
    options = {"save_strategy": "steps", "save_steps": 1, "peft_config": adapters}
    whole = trained(kind, tmp_path / "whole", **options)
    resumed = make_trainer(
        kind,
        tmp_path / "resumed",
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **options,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    ends = resumed.model.state_dict()
    assert all(torch.equal(value, ends[name]) for name, value in whole.model.state_dict().items())


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "big_vision_adafactor"])
def test_the_optimisers_take_a_step_in_bf16(tmp_path, optim):
    trained("reward", tmp_path, optim=optim, bf16=True)


def test_two_processes_take_the_same_step(tmp_path):
    calls = {
        kind: {"kind": kind, "max_steps": 1, "per_device_train_batch_size": 4, "evaluate": True} for kind in KINDS
    }
    for records in launch([*TORCHRUN, "--nproc_per_node", "2"], calls, tmp_path / "ranks").values():
        assert [record["world_size"] for record in records] == [2, 2]
        assert records[0]["weights"] == records[1]["weights"]
        assert records[0]["after"]["metrics"]["eval_rows"] == EVAL_ROWS


NEEDS = {
    "cider_reward": {"document_frequency": DocumentFrequency.from_references([["a dog"]])},
    "panoptic_quality": {"categories": [{"id": 1, "isthing": 1}]},
}
METRICS = sorted(folder.name for folder in Path(vision_rl.__file__).parent.glob("tasks/*/metrics/[a-z]*"))


@pytest.mark.parametrize("name", METRICS)
def test_every_evaluate_module_is_loaded_and_says_what_it_takes(name):
    module = evaluate.load(vision_rl.metric_path(name), **NEEDS.get(name, {}))
    assert module.description and module.features


def test_an_evaluate_module_computes(tmp_path):
    module = evaluate.load(vision_rl.metric_path("character_error_rate"))
    assert module.compute(predictions=["abc"], references=["abd"]) == {"cer": pytest.approx(1 / 3), "exact_match": 0.0}


def test_a_processor_is_saved_and_loaded_and_reads_back_its_labels(tmp_path):
    text_processor().save_pretrained(tmp_path)
    processor = TextProcessor.from_pretrained(tmp_path)
    row = text_dataset(1)[0]
    labels = processor(images=[row["image"]], text=[row["text"]])["labels"]
    assert processor.batch_decode(labels) == [row["text"]]
    assert processor(images=[row["image"]])["pixel_values"].shape == (1, 3, 32, 32)


def test_the_command_line_answers():
    answer = subprocess.run([Path(sys.executable).with_name("vision-rl"), "--help"], capture_output=True, text=True)
    assert answer.returncode == 0 and "convert-uvim" in answer.stdout


def test_the_names_are_those_of_the_installed_transformers(tmp_path):
    """5.24 has `cache`, and 5.23 has `activation_checkpointing`. The older names are removed in 5.40 and in 6."""
    model = tiny_model()
    outputs = model(pixel_values=torch.zeros(1, 3, 32, 32), decoder_input_ids=torch.zeros(1, 2, dtype=torch.long))
    assert CACHE in outputs and cache_of(outputs) is not None
    options = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}
    trainer = make_trainer("mle", tmp_path, **options)
    assert checkpointing(trainer.args) and checkpointing_kwargs(trainer.args) == {"use_reentrant": False}
    assert trainer.max_completion_length == MAX_LENGTH
