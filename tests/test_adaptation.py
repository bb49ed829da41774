"""A trained model is adapted to other sizes: tokens that still mean the same are as likely as before."""

import pytest
import torch
from tiny import text_processor, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

from vision_rl.models.adaptation import adapt, change_special_ids
from vision_rl.models.description import (
    SIZES,
    count_parameters,
    make_decoder,
    make_encoder,
    make_model,
    transformer_size,
)
from vision_rl.models.encoder import load_encoder, vit_encoder
from vision_rl.processing import TextProcessor
from vision_rl.tasks.detection import DetectionProcessor
from vision_rl.tasks.ocr import character_tokenizer
from vision_rl.trainer.loading import load_policy


NAMES = ["Cat", "dog", "bird"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def processor(categories=NAMES, num_bins=8, max_boxes=2, size=32) -> DetectionProcessor:
    image_processor = ViTImageProcessorPil(size={"height": size, "width": size})
    return DetectionProcessor(image_processor, list(categories), num_bins=num_bins, max_boxes=max_boxes)


def detector(of: DetectionProcessor):
    return tiny_model(vocab_size=of.vocab_size, length=of.completion_length, end=None, sharp=1.0)


def logits(model, ids: list[int], size: int = 32) -> torch.Tensor:
    torch.manual_seed(3)
    pixel_values = torch.randn(1, 3, 32, 32)
    pixel_values = torch.nn.functional.interpolate(pixel_values, size=(size, size))
    with torch.no_grad():
        return model(pixel_values=pixel_values, decoder_input_ids=torch.tensor([ids])).logits[0]


def id_of(of: DetectionProcessor, kind: str, value: float | str) -> int:
    if kind == "level":
        return 3 + round(value * of.num_bins)
    return 4 + of.num_bins + [name.lower() for name in of.categories].index(value)


@pytest.mark.parametrize(
    "change",
    [
        {"categories": ["bird", "horse", "cat", "cow"]},
        {"num_bins": 4},
        {"num_bins": 16},
        {"max_boxes": 1},
        {"max_boxes": 5},
        {"categories": ["dog"], "num_bins": 16, "max_boxes": 3},
    ],
)
def test_tokens_that_mean_the_same_keep_their_logits(change):
    old, new = processor(), processor(**change)
    meanings = [("level", value) for value in (0, 0.25, 0.5, 1)]
    meanings += [
        ("class", name.lower()) for name in old.categories if name.lower() in {n.lower() for n in new.categories}
    ]
    before = {of: [0, 1, 2, *(id_of(of, *meaning) for meaning in meanings)] for of in (old, new)}
    model = detector(old)
    was = logits(model, before[old][: old.completion_length])[:, before[old]]
    adapt(model, old, new)
    assert model.decoder.config.vocab_size == new.vocab_size
    assert model.decoder.config.max_position_embeddings == new.completion_length
    length = min(old.completion_length, new.completion_length, len(before[old]))
    now = logits(model, before[new][:length])[:, before[new]]
    torch.testing.assert_close(now, was[:length])


def test_a_new_class_starts_at_the_mean_of_the_old_logits():
    old, new = processor(), processor([*NAMES, "zebra"])
    model = detector(old)
    was = logits(model, [0, 4]).mean(-1)
    adapt(model, old, new)
    torch.testing.assert_close(logits(model, [0, 4])[:, id_of(new, "class", "zebra")], was)


def test_a_level_of_finer_bins_starts_as_the_nearest_of_the_old():
    old, new = processor(num_bins=4), processor(num_bins=16)
    kept = new.tokens_from(old)
    assert [kept[3 + level] - 3 for level in range(17)] == [round(level / 4) for level in range(17)]


def test_images_of_another_size_leave_the_vocabulary_as_it_is_and_resize_the_positions():
    old, new = processor(), processor(size=64)
    model = detector(old)
    tokens = model.decoder.embed_tokens.weight.clone()
    adapt(model, old, new)
    assert model.config.encoder.image_size == 64
    assert torch.equal(model.decoder.embed_tokens.weight, tokens)
    assert logits(model, [0, 4], size=64).shape == (2, old.vocab_size)


def test_another_alphabet_keeps_the_characters_that_both_have():
    old, new = text_processor("abcd"), TextProcessor(text_processor().image_processor, character_tokenizer("xdbc"))
    model = tiny_model(vocab_size=6, sharp=1.0)
    was = logits(model, [0, 5, 3])  # the letters d, b
    adapt(model, old, new)
    now = logits(model, [0, 3, 4])
    torch.testing.assert_close(now[:, [0, 1, 3, 4, 5]], was[:, [0, 1, 5, 3, 4]])


def tokenizer(tokens: str, **special) -> PreTrainedTokenizerFast:
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens.split())}, names["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, **{name: token for name, token in names.items() if token})


@pytest.mark.parametrize("end", [2, [2, 3]])
def test_a_model_of_another_tokenizer_starts_pads_and_ends_with_the_tokens_that_it_knew(end):
    images = text_processor().image_processor
    old = TextProcessor(images, tokenizer("<pad> <s> </s> <unk> a b c d"))
    new = TextProcessor(images, tokenizer("a b c d e <pad> <s> </s> <unk>"))
    model = tiny_model(vocab_size=8, sharp=1.0)
    ids = {"decoder_start_token_id": 1, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": end}
    for config in (model.config, model.generation_config, model.config.decoder):
        for name, value in ids.items():
            setattr(config, name, value)
    was = logits(model, [1, 4, 5])  # start, a, b
    adapt(model, old, new)
    torch.testing.assert_close(logits(model, [6, 0, 1])[:, [5, 6, 7, 8, 0, 1, 2, 3]], was)
    ends = 7 if end == 2 else [7, 8]
    for config in (model.config, model.generation_config, model.config.decoder):
        assert {name: getattr(config, name) for name in ids} == dict(zip(ids, (6, 6, 5, ends), strict=True))


def test_tokens_that_a_new_tokenizer_lacks_are_replaced_by_its_own_and_a_start_must_be_there():
    images = text_processor().image_processor
    old = TextProcessor(images, tokenizer("<pad> <s> </s> <unk> a b"))
    ids = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
    for special, expected in (({}, (3, 2, 4)), ({"bos_token": None}, (2, 2, 4))):
        model = tiny_model(vocab_size=6)
        for name, value in ids.items():
            setattr(model.generation_config, name, value)
        names = {"pad_token": "[pad]", "bos_token": "[s]", "eos_token": "[e]", "unk_token": "[unk]"} | special
        adapt(model, old, TextProcessor(images, tokenizer("a b [pad] [s] [e] [unk]", **names)))
        assert tuple(getattr(model.generation_config, name) for name in ids) == expected
    with pytest.raises(ValueError, match="has neither the token with which the model starts nor a bos, cls or pad"):
        change_special_ids(model, [4, 5])


def test_an_adapted_model_is_saved_and_loaded(tmp_path):
    from transformers import VisionEncoderDecoderModel

    old, new = processor(), processor(["dog", "fox"], num_bins=16, max_boxes=3, size=64)
    model = detector(old)
    adapt(model, old, new)
    model.save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, [0, 5], 64), logits(model, [0, 5], 64))


def test_the_vocabulary_of_a_foreign_decoder_is_refused():
    model = tiny_model("gpt2", vocab_size=processor().vocab_size)
    with pytest.raises(ValueError, match="The vocabulary of a GPT2LMHeadModel cannot be changed here"):
        adapt(model, processor(), processor(num_bins=4))


# --- description ------------------------------------------------------------------------------------------------------


def test_a_model_by_sizes_has_the_parameters_of_the_papers_detector():
    with torch.device("meta"):
        encoder = make_encoder(640, transformer_size("vit-b16"))
        decoder = make_decoder(1369, 600, transformer_size("vit-b16", num_hidden_layers=6), 768)
    assert round(count_parameters(encoder) / 1e6, 1) == 86.9 and round(count_parameters(decoder) / 1e6, 1) == 59.2


def test_a_decoder_of_another_width_than_the_encoder_projects_in_its_attention():
    text = text_processor()
    encoder = make_encoder(32, transformer_size("vit-ti16", num_hidden_layers=1))
    small = transformer_size(
        "vit-ti16", num_hidden_layers=1, hidden_size=64, num_attention_heads=2, intermediate_size=64
    )
    model = make_model(text, encoder, make_decoder(text.vocab_size, 8, small, 192))
    assert model.decoder.layers[0].cross_attn.k_proj.in_features == 192 and not hasattr(model, "enc_to_dec_proj")
    assert (model.generation_config.decoder_start_token_id, model.generation_config.eos_token_id) == (0, 1)


def test_a_size_that_the_heads_cannot_share_and_an_unknown_one_are_told():
    with pytest.raises(ValueError, match="hidden_size 100 cannot be split among 12"):
        transformer_size("vit-b16", hidden_size=100)
    with pytest.raises(ValueError, match=f"there are {', '.join(SIZES)}"):
        transformer_size("vit-xxl")
    with pytest.raises(ValueError, match="num_hidden_layers is 0"):
        transformer_size("vit-b16", num_hidden_layers=0)


def test_the_decoder_of_a_folder_must_hold_the_processors_tokens(tmp_path):
    tiny_model(vocab_size=6, length=16).save_pretrained(tmp_path)
    kept = make_decoder(6, 16, transformer_size("vit-ti16"), init=tmp_path)
    assert kept.config.vocab_size == 6
    with pytest.raises(ValueError, match="The processor has 9 tokens"):
        make_decoder(9, 16, transformer_size("vit-ti16"), init=tmp_path)
    with pytest.raises(ValueError, match="has only 16 positions"):
        make_decoder(6, 99, transformer_size("vit-ti16"), init=tmp_path)


def test_parts_of_a_model_that_was_saved_in_half_precision_are_trained_in_float32(tmp_path):
    tiny_model("ours", vocab_size=12, length=16).to(torch.bfloat16).save_pretrained(tmp_path)
    vit_encoder(32, 16, **SMALL).to(torch.bfloat16).save_pretrained(tmp_path / "vit")
    encoder = make_encoder(32, SMALL, init=tmp_path)
    decoder = make_decoder(12, 16, SMALL, init=tmp_path)
    whole = load_policy(str(tmp_path), {})
    of_vit = load_encoder(tmp_path / "vit")
    for part in (encoder, decoder, whole, of_vit):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    assert load_policy(str(tmp_path), {"dtype": torch.bfloat16}).dtype == torch.bfloat16
    assert load_encoder(tmp_path / "vit", dtype="auto").dtype == torch.bfloat16
