"""Any transformers processor with a tokenizer reads text with any VisionEncoderDecoderModel."""

import pytest
import torch
from tiny import END, START, image_processor, share_of_a, text_dataset, text_processor, tiny_images, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    DonutProcessor,
    PreTrainedTokenizerFast,
    TrOCRProcessor,
    ViTImageProcessor,
    ViTImageProcessorPil,
)
from transformers.utils import is_torchvision_available

from vision_rl import TextProcessor, VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.processing import VisionProcessor, as_vision_processor


def roberta_like_tokenizer() -> PreTrainedTokenizerFast:
    """Like TrOCR's: `<s> text </s>`."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5, "d": 6, "<unk>": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def test_labels_are_the_tokenizers_own_with_one_end_token():
    processor = as_vision_processor(
        TrOCRProcessor(image_processor(), roberta_like_tokenizer()), decoder_start_token_id=2
    )
    labels = processor(images=tiny_images(2), text=["ab", "c"])["labels"]
    assert labels.tolist() == [[0, 3, 4, 2], [0, 5, 2, -100]]


def test_a_first_token_that_the_model_is_given_is_not_learned():
    processor = TextProcessor(image_processor(), roberta_like_tokenizer(), decoder_start_token_id=0)
    assert processor(images=tiny_images(1), text=["ab"])["labels"].tolist() == [[3, 4, 2]]


def test_an_end_token_that_is_also_the_pad_is_still_learned():
    tokenizer = roberta_like_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    labels = TextProcessor(image_processor(), tokenizer)(images=tiny_images(2), text=["ab", "c"])["labels"]
    assert labels.tolist() == [[0, 3, 4, 2], [0, 5, 2, -100]]


@pytest.mark.parametrize("kind", [TrOCRProcessor, DonutProcessor])
@pytest.mark.parametrize("decoder", ["trocr", "gpt2", "bert"])
def test_stock_processors_are_pretrained_and_tuned_as_they_are(tmp_path, kind, decoder):
    model = tiny_model(decoder, vocab_size=8, end=2)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id = 2, 1
    processor = kind(image_processor(), roberta_like_tokenizer())
    shared = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    parts = {"train_dataset": text_dataset(8), "eval_dataset": text_dataset(4), "processing_class": processor}
    mle = VisionMLETrainer(model, VisionMLEConfig(str(tmp_path), **shared), **parts)
    mle.train()
    tuned = VisionRewardTrainer(model, share_of_a, VisionRewardConfig(str(tmp_path), **shared), **parts)
    tuned.train()
    entry = next(entry for entry in tuned.state.log_history if "loss" in entry)
    assert entry["sampling/sampling_logp_difference/max"] < 1e-5
    tuned.save_model(tmp_path)
    assert isinstance(kind.from_pretrained(tmp_path), kind)


def test_a_text_processor_is_saved_and_loaded(tmp_path):
    text_processor().save_pretrained(tmp_path)
    loaded = TextProcessor.from_pretrained(tmp_path)
    batch = loaded(images=tiny_images(1), text=["ab"])
    expected = text_processor()(images=tiny_images(1), text=["ab"])
    assert batch["labels"].tolist() == expected["labels"].tolist() == [[2, 3, END]]
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert loaded.batch_decode([[2, 3, END, START]]) == ["ab"]


def test_seeds_reach_the_processor_and_change_with_the_epoch_only_in_training(tmp_path):
    seen = []

    class Recording(TextProcessor):
        def __call__(self, images, seeds=None, text=None):
            seen.append(seeds)
            return super().__call__(images, seeds, text)

    processor = Recording(image_processor(), text_processor().tokenizer)
    wrapped = as_vision_processor(processor, START)
    assert isinstance(wrapped, Recording), "a subclass keeps its own behaviour"
    args = VisionMLEConfig(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        shuffle_dataset=False,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = VisionMLETrainer(
        tiny_model(), args, train_dataset=text_dataset(4), eval_dataset=text_dataset(4), processing_class=processor
    )
    seen.clear()
    trainer.train()
    trainer.evaluate()
    first, second, evaluation = seen
    assert len(set(first + second)) == 8 and evaluation is None


def test_a_tokenizer_alone_is_no_processor():
    with pytest.raises(
        TypeError, match=r"both the images and the targets.*TextProcessor\(image_processor, tokenizer\)"
    ):
        as_vision_processor(text_processor().tokenizer, START)


def test_pictures_are_read_with_pillow_also_where_transformers_would_read_them_otherwise():
    class ViTImageProcessor(ViTImageProcessorPil):
        """Stands for the form of this name that transformers has where torchvision is installed."""

    given = ViTImageProcessor(size={"height": 20, "width": 30}, image_mean=[0.1, 0.2, 0.3], do_rescale=False)
    used = TextProcessor(given, roberta_like_tokenizer()).image_processor
    assert type(used) is ViTImageProcessorPil and used.to_dict() == given.to_dict()

    class Mine(ViTImageProcessorPil):
        """One that transformers has no other form of."""

    assert type(TextProcessor(Mine(), roberta_like_tokenizer()).image_processor) is Mine


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
def test_a_saved_processor_reads_pictures_with_pillow_where_torchvision_is_installed(tmp_path):
    TextProcessor(ViTImageProcessorPil(), roberta_like_tokenizer()).save_pretrained(tmp_path)
    assert type(TextProcessor.from_pretrained(tmp_path).image_processor) is ViTImageProcessorPil
    assert type(TextProcessor(ViTImageProcessor(), roberta_like_tokenizer()).image_processor) is ViTImageProcessorPil


def test_a_processor_that_does_not_say_its_references_is_told_to():
    class TwoTargets(VisionProcessor):
        target_columns = ("boxes", "labels")

        def __init__(self, image_processor):
            super().__init__(image_processor)

    with pytest.raises(NotImplementedError, match="define get_references"):
        TwoTargets(image_processor()).get_references([{}])


def test_texts_that_would_be_lost_or_belong_to_no_picture_are_told():
    processor = text_processor()
    with pytest.raises(ValueError, match="pass these by name, text="):
        processor(tiny_images(2), ["ab", "c"])
    with pytest.raises(ValueError, match="2 images but 1 text"):
        processor(images=tiny_images(2), text=["ab"])
