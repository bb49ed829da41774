"""Transformers' own decoders with one copy of an image for its G completions equal repeated images, gradients too."""

import copy
import logging

import pytest
import torch
from tiny import SIZE, START, recompute_activations, tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    VisionEncoderDecoderModel,
)

from vision_rl.compatibility import named
from vision_rl.models.sampling import sample
from vision_rl.models.shared_images import images_for, reads_images_once, share_images, share_images_of


B, G, T, N, VOCAB, WIDTH = 2, 3, 5, 7, 11, 32
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
BART_SIZES = {
    "vocab_size": VOCAB,
    "d_model": WIDTH,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32}
FAMILIES = {
    "gpt2": GPT2_SIZES,
    "bert": SIZES,
    "roberta": SIZES,
    "electra": {**SIZES, "embedding_size": WIDTH},
    "trocr": BART_SIZES,
    "bart": BART_SIZES,
    "mbart": BART_SIZES,
    "marian": {**BART_SIZES, "decoder_start_token_id": 0},
}


def tiny_decoder(family, attention="sdpa", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family], **changes, is_decoder=True, add_cross_attention=True)
    options = {} if family == "trocr" else {"attn_implementation": attention}
    decoder = AutoModelForCausalLM.from_config(config, **options).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder


@pytest.fixture
def ids():
    return torch.randint(3, VOCAB, (B * G, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images():
    return torch.randn(B, N, WIDTH, generator=torch.Generator().manual_seed(2))


def result(decoder, ids, images):
    """The logits, and the gradient of every parameter and of the images."""
    images = images.clone().requires_grad_()
    logits = decoder(input_ids=ids, encoder_hidden_states=images, use_cache=False).logits
    used = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logits.log_softmax(-1)[..., 3].sum(), [*used, images], allow_unused=True)
    return logits, gradients[:-1], gradients[-1]


@pytest.mark.parametrize(("family", "attention"), [*((family, "sdpa") for family in FAMILIES), ("gpt2", "eager")])
def test_images_read_once_equal_repeated_images_with_gradients(family, attention, ids, images):
    decoder = tiny_decoder(family, attention)
    logits, gradients, of_images = result(decoder, ids, images.repeat_interleave(G, 0))
    share_images_of(decoder)
    share_images_of(decoder)  # a second call changes nothing
    assert reads_images_once(decoder)
    shared_logits, shared_gradients, of_shared_images = result(decoder, ids, images)
    torch.testing.assert_close(shared_logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(of_shared_images, of_images.view(B, G, N, WIDTH).sum(1), rtol=1e-4, atol=1e-5)
    for shared, expected in zip(shared_gradients, gradients, strict=True):
        assert (shared is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(shared, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_of_an_image_are_cached_once(family, ids, images):
    decoder = tiny_decoder(family)
    share_images_of(decoder)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    how = {"encoder_hidden_states": images, "use_cache": True, **named(cache)}
    with torch.no_grad():
        full = decoder(input_ids=ids, encoder_hidden_states=images, use_cache=False).logits
        steps = [decoder(input_ids=ids[:, t : t + 1], **how).logits for t in range(T)]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=0, atol=1e-5)
    assert len(cache.cross_attention_cache.layers[0].keys) == B
    assert len(cache.self_attention_cache.layers[0].keys) == B * G


@pytest.mark.parametrize("family", ["gpt2", "bert", "trocr"])
def test_a_model_with_an_image_for_each_row_is_as_it_was(family, ids, images):
    decoder = tiny_decoder(family)
    repeated = images.repeat_interleave(G, 0)
    config = decoder.config.to_dict()
    expected = result(decoder, ids, repeated)
    share_images_of(decoder)
    assert decoder.config.to_dict() == config
    for before, after in zip(expected, result(decoder, ids, repeated), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_copy_of_a_model_that_shares_images_uses_its_own_weights(ids, images):
    decoder = tiny_decoder("gpt2")
    share_images_of(decoder)
    other = copy.deepcopy(decoder)
    before = result(decoder, ids, images)[0]
    torch.nn.init.zeros_(decoder.transformer.h[0].crossattention.c_proj.weight)
    torch.testing.assert_close(result(other, ids, images)[0], before, rtol=0, atol=0)
    assert not torch.allclose(result(decoder, ids, images)[0], before)


def test_checkpointed_layers_share_images_too(ids, images):
    decoder = tiny_decoder("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    share_images_of(decoder)
    expected = result(decoder, ids, images)
    recompute_activations(decoder)
    images = images.clone().requires_grad_()
    logits = decoder(input_ids=ids, encoder_hidden_states=images, use_cache=False).logits
    logits.log_softmax(-1)[..., 3].sum().backward()
    torch.testing.assert_close(images.grad, expected[2], rtol=1e-4, atol=1e-5)


def test_a_row_reads_its_own_image_only(ids, images):
    decoder = tiny_decoder("trocr")
    share_images_of(decoder)
    before = decoder(input_ids=ids, encoder_hidden_states=images).logits
    images[1] += 1.0
    after = decoder(input_ids=ids, encoder_hidden_states=images).logits
    torch.testing.assert_close(before[:G], after[:G])
    assert not torch.isclose(before[G:], after[G:]).all(-1).any()


def test_an_unknown_cross_attention_gets_repeated_images_and_a_line_in_the_log(caplog, ids, images):
    decoder = tiny_decoder("gpt2")
    for block in decoder.transformer.h:  # like a decoder that has another name for it
        block.to_image = block.crossattention
        forward = type(block).forward
        del block._modules["crossattention"]
        object.__setattr__(block, "crossattention", block.to_image)
        assert type(block).forward is forward
    assert not reads_images_once(decoder)
    expected = decoder(input_ids=ids, encoder_hidden_states=images.repeat_interleave(G, 0)).logits
    with caplog.at_level(logging.WARNING, logger="vision_rl.models.shared_images"):
        share_images_of(decoder)
        share_images_of(decoder)
    said = [record.getMessage()[:40] for record in caplog.records if record.name == "vision_rl.models.shared_images"]
    assert said == ["The cross-attention of GPT2LMHeadModel i"]
    assert len(images_for(decoder, images, B * G)) == B * G
    torch.testing.assert_close(decoder(input_ids=ids, encoder_hidden_states=images).logits, expected, rtol=0, atol=0)


def test_a_decoder_whose_images_are_repeated_is_sampled_all_the_same():
    model = tiny_model("gpt2", sharp=0.1)
    table, pixel_values = torch.rand(B, G, T), torch.randn(B, 3, SIZE, SIZE)
    expected = sample(copy.deepcopy(model), pixel_values, G, uniforms=table, max_completion_length=T)
    model.decoder.config.model_type = "big_bird"
    repeated = sample(model, pixel_values, G, uniforms=table, max_completion_length=T)
    assert torch.equal(repeated.completion_ids, expected.completion_ids)
    torch.testing.assert_close(repeated.per_token_logps, expected.per_token_logps, rtol=0, atol=1e-5)


def test_generate_of_a_model_that_shares_images_is_as_it_was():
    model = tiny_model("gpt2", sharp=0.1)
    pixel_values = torch.randn(B, 3, SIZE, SIZE)
    expected = model.generate(pixel_values, max_new_tokens=T, do_sample=False, num_beams=2)
    share_images(model)
    assert torch.equal(model.generate(pixel_values, max_new_tokens=T, do_sample=False, num_beams=2), expected)


def test_a_saved_model_knows_nothing_of_it(tmp_path):
    model = tiny_model("bert")
    share_images(model)
    model.save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert not any(module._forward_pre_hooks for module in loaded.decoder.modules())
    inputs = {"pixel_values": torch.randn(B, 3, SIZE, SIZE), "decoder_input_ids": torch.full((B, T), START)}
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
