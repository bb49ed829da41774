"""Models that are not supported are refused when the trainer is made, with a sentence that says what to use instead."""

import pytest
import torch
import transformers
from served_models import served
from tiny import SIZE, share_of_a, text_dataset, text_processor, tiny_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    ConvNextConfig,
    ConvNextModel,
    Florence2Config,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    VisionEncoderDecoderModel,
    VitDetConfig,
    VitDetModel,
    YolosConfig,
    YolosForObjectDetection,
)

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.models import EncodedDataset, vision_encoder_decoder


OPTIONS = {"report_to": "none", "use_cpu": True, "max_completion_length": 4}
PARTS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def tuning(tmp_path, model):
    args = VisionRewardConfig(str(tmp_path), per_device_train_batch_size=4, **OPTIONS)
    return VisionRewardTrainer(model, share_of_a, args, text_dataset(), processing_class=text_processor())


def mle(tmp_path, model):
    args = VisionMLEConfig(str(tmp_path), per_device_train_batch_size=4, **OPTIONS)
    return VisionMLETrainer(model, args, text_dataset(), processing_class=text_processor())


VISION_LANGUAGE = [
    "Blip2ForConditionalGeneration",
    "GitForCausalLM",
    "Idefics3ForConditionalGeneration",
    "InstructBlipForConditionalGeneration",
    "Kosmos2ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
]


@pytest.mark.parametrize("name", VISION_LANGUAGE)
@pytest.mark.parametrize("trainer", [mle, tuning])
def test_a_vision_language_model_is_sent_to_trl(tmp_path, name, trainer):
    kind = getattr(transformers, name)
    config = kind.config_class()
    config.get_text_config().pad_token_id = 0  # the default of some lies outside of their vocabulary
    with torch.device("meta"):
        model = kind(config)
    with pytest.raises(TypeError, match=f"{name} is a vision-language model.*GRPOTrainer and RLOOTrainer.*Pix2Struct"):
        trainer(tmp_path, model)


def test_by_its_path_it_is_refused_before_its_weights_are_read(tmp_path):
    kind = transformers.LlavaForConditionalGeneration
    config = kind.config_class()
    config.architectures = [kind.__name__]
    config.save_pretrained(tmp_path / "llava")  # no weights at all
    with pytest.raises(TypeError, match="LlavaForConditionalGeneration is a vision-language model"):
        tuning(tmp_path, str(tmp_path / "llava"))


def test_a_sibling_of_a_model_that_is_served_is_refused(tmp_path):
    config = served("blip")[0].config
    with pytest.raises(
        TypeError,
        match="vision_rl does not serve BlipForQuestionAnswering. It serves models that read an image and write tokens",
    ):
        tuning(tmp_path, transformers.BlipForQuestionAnswering(config))
    config.architectures = ["BlipForQuestionAnswering"]
    config.save_pretrained(tmp_path / "questions")
    with pytest.raises(TypeError, match="vision_rl does not serve BlipForQuestionAnswering"):
        tuning(tmp_path, str(tmp_path / "questions"))


@pytest.mark.parametrize("trainer", [mle, tuning])
def test_what_writes_nothing_about_an_image_is_refused(tmp_path, trainer):
    yolos = YolosForObjectDetection(YolosConfig(**PARTS, image_size=[32, 32]))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=32, n_layer=1, n_head=2))
    for model in (yolos, gpt2, tiny_model().encoder, torch.nn.Linear(2, 2)):
        with pytest.raises(
            TypeError,
            match=f"does not serve {type(model).__name__}. It serves models that read an image and write tokens",
        ):
            trainer(tmp_path, model)


def decoder():
    return BertLMHeadModel(BertConfig(vocab_size=6, **PARTS, is_decoder=True, add_cross_attention=True))


def test_an_encoder_that_gives_a_map_is_refused_by_its_name(tmp_path):
    conv = {"hidden_sizes": [8, 32], "depths": [1, 1]}
    for encoder in (
        ConvNextModel(ConvNextConfig(**conv, num_stages=2)),
        ResNetModel(ResNetConfig(**conv, embedding_size=8, layer_type="basic")),
    ):
        with pytest.raises(
            ValueError, match=f"{type(encoder).__name__} has no hidden_size: it gives a map.*Take a ViT"
        ):
            vision_encoder_decoder(encoder, decoder(), 0, 0, 1)
    sizes = {name: PARTS[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = VisionEncoderDecoderModel(
        encoder=VitDetModel(VitDetConfig(**sizes, image_size=SIZE, pretrain_image_size=SIZE)), decoder=decoder()
    )
    model.generation_config.update(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    with pytest.raises(ValueError, match=r"VitDetModel gives a map \(1, 32, 2, 2\), but a decoder reads tokens"):
        tuning(tmp_path, model)


def test_an_encoder_that_reads_more_than_pixels_is_refused(tmp_path):
    model = VisionEncoderDecoderModel(encoder=Siglip2VisionModel(Siglip2VisionConfig(**PARTS)), decoder=decoder())
    model.generation_config.update(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    with pytest.raises(ValueError, match="Siglip2VisionModel cannot be the encoder.*pixel_attention_mask"):
        tuning(tmp_path, model)


def test_florence_without_its_prompts_is_told_where_they_stand(tmp_path):
    model, processor = served("florence2")
    args = VisionMLEConfig(str(tmp_path), **OPTIONS)
    with pytest.raises(ValueError, match=r"no column `prompt`.*add_column\('prompt', \['<CAPTION>'\]"):
        VisionMLETrainer(model, args, text_dataset(), processing_class=processor)
    assert isinstance(model.config, Florence2Config)


def test_an_encoded_data_set_is_of_a_vision_encoder_decoder_only():
    model, _ = served("blip")
    with pytest.raises(TypeError, match="BlipForConditionalGeneration: give the trainer the data set itself"):
        EncodedDataset(text_dataset(2), model, text_processor())


def test_a_special_id_outside_of_the_vocabulary_is_named_with_the_tokenizers(tmp_path):
    model = tiny_model()
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = 50256
    wanted = r"decoder_start_token_id has the id 50256, outside of the decoder's vocabulary of 6. The tokenizer's bos_token_id is 0"
    with pytest.raises(ValueError, match=wanted):
        tuning(tmp_path, model)
