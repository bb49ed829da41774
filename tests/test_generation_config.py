"""`generate` of transformers, on a saved folder, repeats our greedy evaluation."""

import logging

import pytest
import torch
from tiny import share_of_a, text_dataset, text_processor, tiny_model
from transformers import GenerationConfig, VisionEncoderDecoderModel

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer


OPTIONS = {
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 1,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "min_length": 6,
    "repetition_penalty": 5.0,
    "begin_suppress_tokens": [2, 3],
    "bad_words_ids": [[2]],
    "do_sample": True,
    "max_length": 3,
}


def trainer(tmp_path, model, kind="reward", **kwargs):
    options = {"max_completion_length": 8, "report_to": "none", "use_cpu": True, "disable_tqdm": True, **kwargs}
    parts = {"train_dataset": text_dataset(), "processing_class": text_processor()}
    if kind == "mle":
        return VisionMLETrainer(model, VisionMLEConfig(str(tmp_path), **options), **parts)
    return VisionRewardTrainer(model, share_of_a, VisionRewardConfig(str(tmp_path), **options), **parts)


@pytest.mark.parametrize(
    ("decoder", "options"),
    [(decoder, list(OPTIONS)) for decoder in ("ours", "gpt2", "bert", "roberta")]
    + [("trocr", options) for options in ([], *([name] for name in OPTIONS))],
)
def test_generate_of_the_saved_folder_repeats_the_greedy_evaluation(tmp_path, decoder, options):
    model = tiny_model(decoder, vocab_size=7, sharp=0.3, seed=1, length=20)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = 6  # not the padding, which has no position in RoBERTa
    for option in options:
        setattr(model.generation_config, option, OPTIONS[option])
    tuned = trainer(tmp_path, model)
    said = tuned.predict(text_dataset(6)).predictions
    tuned.save_model(tmp_path)
    again, processor = VisionEncoderDecoderModel.from_pretrained(tmp_path), tuned.processor
    pixel_values = processor(images=text_dataset(6)["image"])["pixel_values"]
    assert processor.batch_decode(again.generate(pixel_values)) == said


def test_options_that_are_not_followed_are_named(tmp_path, caplog):
    model = tiny_model()
    model.generation_config.update(no_repeat_ngram_size=1, num_beams=4, length_penalty=1.0, top_k=50, do_sample=False)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, model, "mle")
    (told,) = [record.getMessage() for record in caplog.records if "generation_config has" in record.getMessage()]
    assert told.startswith("generation_config has num_beams=4, no_repeat_ngram_size=1. Training and evaluation follow")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, model, "mle")
    assert "generation_config has" not in caplog.text


def test_ids_forbidden_tokens_and_how_it_is_run_stay(tmp_path):
    model = tiny_model()
    kept = {"suppress_tokens": [4], "use_cache": False, "output_scores": True}
    model.generation_config = GenerationConfig(decoder_start_token_id=0, pad_token_id=0, eos_token_id=[1, 5], **kept)
    trainer(tmp_path, model)
    config = model.generation_config
    assert {name: getattr(config, name) for name in kept} == kept
    assert (config.decoder_start_token_id, config.eos_token_id, config.max_new_tokens) == (0, [1, 5], 8)
    assert torch.equal(model.generate(torch.zeros(1, 3, 32, 32))[:, :1], torch.zeros(1, 1, dtype=torch.long))
