"""Adapters of every task type of PEFT train every encoder, although PEFT calls the model differently for each type."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from tiny import text_dataset, text_processor, tiny_images, tiny_model
from transformers import VisionEncoderDecoderModel

from vision_rl import VisionMLEConfig, VisionMLETrainer, pipeline
from vision_rl.cli import main
from vision_rl.trainer.loading import load_policy


SILENT = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}


def saved_base(folder) -> str:
    tiny_model(sharp=0.2).save_pretrained(folder)
    text_processor().save_pretrained(folder)
    return str(folder)


def saved_adapters(base, folder, name: str | None = None) -> str:
    """Adapters on a base, a path or a model, which are trained for a step and saved in a folder."""
    lora = LoraConfig(r=4, target_modules=r"decoder\..*(q_proj|v_proj)")
    options = {"peft_config": lora}
    if name is not None:
        base, options = get_peft_model(VisionEncoderDecoderModel.from_pretrained(base), lora, name), {}
    args = VisionMLEConfig(str(folder), max_steps=1, max_completion_length=5, learning_rate=0.1, **SILENT)
    trainer = VisionMLETrainer(base, args, text_dataset(), processing_class=text_processor(), **options)
    trainer.train()
    trainer.save_model()
    return str(folder)


@pytest.mark.parametrize("task_type", [None, "SEQ_2_SEQ_LM", "CAUSAL_LM", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("decoder", ["ours", "trocr"])
def test_adapters_of_every_task_type_are_trained(tmp_path, decoder, task_type):
    adapters = LoraConfig(r=2, target_modules="all-linear", task_type=task_type)
    model = get_peft_model(tiny_model(decoder, sharp=0.3), adapters)
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_B" in name}
    args = VisionMLEConfig(
        str(tmp_path), max_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
    )
    trainer = VisionMLETrainer(model, args, train_dataset=text_dataset(), processing_class=text_processor())
    trainer.train()
    after = model.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    pickle.dumps(copy.deepcopy(model.get_base_model().encoder))


def test_a_command_that_goes_on_from_adapters_trains_them_alone_and_saves_all_that_it_trained(tmp_path):
    adapters = saved_adapters(saved_base(tmp_path / "base"), tmp_path / "adapters")
    DatasetDict(train=text_dataset(8), validation=text_dataset(8)).save_to_disk(str(tmp_path / "rows"))
    command = (
        f"mle --task ocr --model {adapters} --dataset_name {tmp_path}/rows --output_dir {tmp_path}/more --max_steps 3 "
        "--per_device_train_batch_size 8 --learning_rate 0.01 --report_to none --use_cpu true --save_strategy no "
        "--eval_strategy steps --eval_steps 3 --disable_tqdm true"
    )
    assert main(command.split()) == 0
    state = json.loads((tmp_path / "more" / "trainer_state.json").read_text())
    (measured,) = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    args = VisionMLEConfig(str(tmp_path / "again"), **SILENT)
    again = VisionMLETrainer(str(tmp_path / "more"), args, eval_dataset=text_dataset(8))
    assert again.evaluate()["eval_loss"] == pytest.approx(measured, rel=1e-5)
    base = VisionEncoderDecoderModel.from_pretrained(tmp_path / "base").encoder.state_dict()
    loaded = again.unwrap(again.model).encoder.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in base.items())


def test_loaded_adapters_start_end_and_stop_as_they_did_where_they_were_saved(tmp_path):
    base = VisionEncoderDecoderModel.from_pretrained(saved_base(tmp_path / "base"))
    base.config.decoder_start_token_id = base.generation_config.decoder_start_token_id = 3  # as one does for TrOCR
    base.generation_config.suppress_tokens = [2]
    adapters = saved_adapters(base, tmp_path / "adapters")
    images = tiny_images(4)
    rows = [{"image": image} for image in images]
    trainer = VisionMLETrainer(adapters, VisionMLEConfig(str(tmp_path / "run"), **SILENT))
    config = trainer.unwrap(trainer.model).generation_config
    assert (config.decoder_start_token_id, config.max_new_tokens, config.suppress_tokens) == (3, 5, [2])
    assert trainer.unwrap(trainer.model).config.decoder_start_token_id == 3
    answers = trainer.predict(rows).predictions
    assert max(map(len, answers)) <= 5 and answers == pipeline(adapters, task="ocr", use_cpu=True)(images)


def test_adapters_are_found_in_a_folder_of_their_name_and_their_missing_base_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_base("base")
    named = saved_adapters("base", "named", "mine")
    assert (tmp_path / "named" / "mine" / "adapter_config.json").is_file()
    weights = load_policy(named, {}).state_dict()
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in weights.items())
    shutil.copytree(tmp_path / "named" / "mine", tmp_path / "named" / "other")
    with pytest.raises(ValueError, match="named holds the adapters mine, other: give the folder of one"):
        load_policy(named, {})
    shutil.rmtree(tmp_path / "named" / "other")
    (tmp_path / "run").mkdir()
    shutil.copytree(tmp_path / "named" / "mine", tmp_path / "run" / "checkpoint-2")
    with pytest.raises(
        ValueError, match="run holds checkpoints but no model: give one of them, such as run/checkpoint-2"
    ):
        load_policy("run", {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="holds adapters of the model base, which is no folder here"):
        load_policy(str(tmp_path / "named"), {})


@pytest.mark.parametrize("name", ["default", "mine"])
def test_the_best_of_adapters_with_any_name_is_loaded_at_the_end(tmp_path, name):
    model = get_peft_model(tiny_model(sharp=0.2), LoraConfig(r=4, target_modules="all-linear"), name)
    scores, states = iter([0.9, 0.5]), []

    def score(predictions, references) -> dict:
        states.append({name: value.clone() for name, value in model.state_dict().items() if "lora_B" in name})
        return {"score": next(scores)}

    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "save_steps": 1, "eval_steps": 1}
    steps = {"max_steps": 2, "learning_rate": 0.05, "eval_strategy": "steps", "save_strategy": "steps"}
    args = VisionMLEConfig(str(tmp_path), **{**SILENT, **best, **steps})
    data = {"train_dataset": text_dataset(), "eval_dataset": text_dataset(4), "processing_class": text_processor()}
    VisionMLETrainer(model, args, compute_metrics=score, **data).train()
    loaded = model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in states[0].items())
    assert any(not torch.equal(value, loaded[name]) for name, value in states[1].items())
