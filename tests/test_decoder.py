"""The decoder: against the authors' JAX code, with and without a cache, and inside of transformers."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import golden
from tiny import recompute_activations
from transformers import AutoModelForCausalLM, DynamicCache, VisionEncoderDecoderModel

from vision_rl.compatibility import cache_of
from vision_rl.models import VisionDecoderConfig, VisionDecoderForCausalLM, vision_encoder_decoder, vit_encoder


B, G, T, N, VOCAB, WIDTH = 2, 3, 8, 16, 11, 32


def tiny_config(**changes) -> VisionDecoderConfig:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
    }
    return VisionDecoderConfig(**{**sizes, **changes})


def tiny_decoder(**changes) -> VisionDecoderForCausalLM:
    """A decoder in eval mode. Its head is random, because a new one is zero and finds all tokens equally likely."""
    torch.manual_seed(0)
    decoder = VisionDecoderForCausalLM(tiny_config(**changes)).eval()
    torch.nn.init.normal_(decoder.lm_head.weight, std=0.3)
    return decoder


def tiny_encoder(width: int = WIDTH, layers: int = 2):
    torch.manual_seed(1)
    return vit_encoder(64, 16, width, layers, 4, 64).eval()


def tiny_model(**changes) -> VisionEncoderDecoderModel:
    return vision_encoder_decoder(tiny_encoder(), tiny_decoder(**changes), 0, 0).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(B, N, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(B, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (B * G, T), generator=torch.Generator().manual_seed(4))


# --- the authors' code ----------------------------------------------------------------------------------------------


def reference_parameters(model: VisionEncoderDecoderModel):
    """For each parameter the reference's name, our tensor, and a function that brings their array into our shape."""

    def q_k_v(kernel):  # (width, heads, D) -> (heads*D, width)
        return kernel.reshape(kernel.shape[0], -1).T

    def out(kernel):  # (heads, D, width) -> (width, heads*D)
        return kernel.reshape(-1, kernel.shape[-1]).T

    def same(array):
        return array

    def positions(array):
        return array[0]

    def layer_norm(theirs, ours):
        yield f"{theirs}/scale", ours.weight, same
        yield f"{theirs}/bias", ours.bias, same

    def mlp(theirs, ours):
        for i, dense in enumerate((ours.fc1, ours.fc2)):
            yield f"{theirs}/Dense_{i}/kernel", dense.weight, np.transpose
            yield f"{theirs}/Dense_{i}/bias", dense.bias, same

    def attention(theirs, ours):
        for name, proj in (
            ("query", ours.q_proj),
            ("key", ours.k_proj),
            ("value", ours.v_proj),
            ("out", ours.out_proj),
        ):
            yield f"{theirs}/{name}/kernel", proj.weight, out if name == "out" else q_k_v
            if proj.bias is not None:
                yield f"{theirs}/{name}/bias", proj.bias, np.ravel  # (heads, D) -> (heads*D,)

    encoder, decoder = model.encoder, model.decoder
    patches = encoder.embeddings.patch_embedding
    yield "EmbedPatches/kernel", patches.weight, lambda array: array.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    yield "EmbedPatches/bias", patches.bias, same
    yield "pos_embedding_encoder", encoder.embeddings.position_embedding.weight, positions
    for i, layer in enumerate(encoder.encoder.layers):
        block = f"encoder/encoderblock_{i}"
        yield from layer_norm(f"{block}/LayerNorm_0", layer.layer_norm1)
        yield from attention(f"{block}/MultiHeadDotProductAttention_0", layer.self_attn)
        yield from layer_norm(f"{block}/LayerNorm_1", layer.layer_norm2)
        yield from mlp(f"{block}/MlpBlock_0", layer.mlp)
    yield from layer_norm("encoder/encoder_norm", encoder.post_layernorm)
    yield "decoder/EmbedTargets/embedding", decoder.embed_tokens.weight, same
    yield "pos_embedding_decoder", decoder.embed_positions.weight, positions
    for i, layer in enumerate(decoder.layers):
        block = f"decoder/EncDecBlock{i}"
        yield from layer_norm(f"{block}/LayerNorm1", layer.layer_norm1)
        yield from attention(f"{block}/SelfAttn", layer.self_attn)
        yield from layer_norm(f"{block}/LayerNorm2", layer.layer_norm2)
        yield from attention(f"{block}/CrossAttn", layer.cross_attn)
        yield from layer_norm(f"{block}/LayerNorm3", layer.layer_norm3)
        yield from mlp(f"{block}/MLP", layer.mlp)
    yield from layer_norm("decoder/LayerNorm", decoder.layer_norm)
    yield "decoder/LogitsDense/kernel", decoder.lm_head.weight, np.transpose
    yield "decoder/LogitsDense/bias", decoder.lm_head.bias, same


@pytest.fixture(scope="module")
def arrays():
    return golden("uvim_stage2.npz")


@pytest.fixture
def reference(arrays):
    """Our model with the reference's weights, and the reference's inputs."""
    encoder = vit_encoder(64, 16, 32, 2, 4, 64)
    decoder = VisionDecoderForCausalLM(tiny_config(vocab_size=33))
    model = vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0).eval()
    loaded = set()
    with torch.no_grad():
        for name, parameter, convert in reference_parameters(model):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(convert(arrays[f"params/{name}"]))))
            loaded.add(parameter)
    assert loaded == set(model.parameters())
    pixel_values = torch.from_numpy(arrays["in/image"]).permute(0, 3, 1, 2).contiguous()  # NHWC -> NCHW
    return model, pixel_values, torch.from_numpy(arrays["in/labels"]).long()


def test_logits_and_loss_are_those_of_the_reference(arrays, reference):
    model, pixel_values, labels = reference
    with torch.no_grad():
        output = model(pixel_values=pixel_values, labels=labels)
    np.testing.assert_allclose(output.encoder_last_hidden_state, arrays["out/encoded"], atol=1e-4)
    np.testing.assert_allclose(output.logits, arrays["out/logits"], atol=1e-4)
    np.testing.assert_allclose(output.loss, arrays["out/loss"], atol=1e-5)


def test_greedy_tokens_are_those_of_the_reference(arrays, reference):
    model, pixel_values, _ = reference
    tokens = model.generate(pixel_values, max_new_tokens=16, do_sample=False)[:, 1:]
    np.testing.assert_array_equal(tokens, arrays["out/greedy_tokens"])


def test_log_probabilities_of_five_samples_an_image_are_those_of_the_reference(arrays, reference):
    model, pixel_values, _ = reference
    tokens = torch.from_numpy(arrays["out/sample_tokens"]).long().flatten(0, 1)  # (3 * 5, 16)
    with torch.no_grad():
        encoded = model.encoder(pixel_values).last_hidden_state  # (3, 16, 32): each image once
        logits = model.decoder(F.pad(tokens[:, :-1], (1, 0)), encoder_hidden_states=encoded).logits
    logps = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    np.testing.assert_allclose(logps.unflatten(0, (3, 5)), arrays["out/sample_logprobs"], atol=1e-4)


@pytest.mark.parametrize("loss", ["mle", "reinforce"])
def test_gradients_are_those_of_the_reference(arrays, reference, loss):
    model, pixel_values, labels = reference
    logits = model(pixel_values=pixel_values, decoder_input_ids=F.pad(labels[:, :-1], (1, 0))).logits
    nll = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # (B, T)
    weight = torch.ones(3) if loss == "mle" else torch.from_numpy(arrays["in/advantage"])
    value = (weight[:, None] * nll).mean()
    value.backward()
    np.testing.assert_allclose(value.detach(), arrays[f"out/{loss}_loss"], atol=1e-5)
    names = {name.removeprefix(f"grad_{loss}/") for name in arrays.files if name.startswith(f"grad_{loss}/")}
    for name, parameter, convert in reference_parameters(model):
        if name in names:
            expected = convert(arrays[f"grad_{loss}/{name}"])
            np.testing.assert_allclose(parameter.grad, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)
            names.remove(name)
    assert not names


# --- the initialisation ---------------------------------------------------------------------------------------------


def test_a_new_decoder_finds_every_token_equally_likely(images, ids):
    decoder = VisionDecoderForCausalLM(tiny_config())
    probabilities = decoder(ids, encoder_hidden_states=images).logits.softmax(-1)
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / VOCAB))


def test_initial_weights_are_spread_as_in_the_reference():
    torch.manual_seed(0)
    decoder = VisionDecoderForCausalLM(
        tiny_config(vocab_size=500, hidden_size=256, intermediate_size=512, max_position_embeddings=200)
    )
    layer = decoder.layers[1]
    for attention in (layer.self_attn, layer.cross_attn):
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            assert proj.bias is None
            assert proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.02)  # LeCun: variance 1 / fan-in
            assert proj.weight.abs().max().item() <= 2 * 256**-0.5 / 0.8796  # a truncated normal
    bound = (6 / (256 + 512)) ** 0.5  # Xavier uniform
    for dense in (layer.mlp.fc1, layer.mlp.fc2):
        assert 0.99 * bound < dense.weight.abs().max().item() <= bound
        assert dense.bias.std().item() == pytest.approx(1e-6, rel=0.15)
    assert decoder.embed_tokens.weight.std().item() == pytest.approx(1.0, rel=0.02)
    assert decoder.embed_positions.weight.std().item() == pytest.approx(256**-0.5, rel=0.02)


def test_weights_that_a_checkpoint_lacks_are_initialised_and_the_others_kept(tmp_path):
    decoder = tiny_decoder()
    decoder.save_pretrained(tmp_path)
    other = VisionDecoderForCausalLM.from_pretrained(tmp_path, vocab_size=300, ignore_mismatched_sizes=True)
    assert not other.lm_head.weight.any()
    assert other.embed_tokens.weight.std().item() == pytest.approx(1.0, rel=0.05)
    torch.testing.assert_close(other.layers.state_dict(), decoder.layers.state_dict(), rtol=0, atol=0)


def test_uvim_large_has_the_715_7_million_parameters_of_the_paper():
    with torch.device("meta"):
        encoder = vit_encoder(512, 16, 1024, 24, 16, 4096)
        config = VisionDecoderConfig(
            vocab_size=4097,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=256,
        )
        model = vision_encoder_decoder(encoder, VisionDecoderForCausalLM(config), 0, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 715_729_921


# --- an image is read once ------------------------------------------------------------------------------------------


def test_g_rows_of_an_image_equal_the_image_repeated_g_times_with_gradients(images, ids):
    decoder = tiny_decoder()
    results = []
    for repeats in (1, G):
        leaf = images.clone().requires_grad_()
        logits = decoder(ids, encoder_hidden_states=leaf.repeat_interleave(repeats, dim=0)).logits
        parameters = [leaf, *decoder.parameters()]
        results.append((logits, *torch.autograd.grad(logits.log_softmax(-1)[..., 3].sum(), parameters)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-4, atol=1e-5)


def test_a_row_reads_its_own_image_only(images, ids):
    decoder = tiny_decoder()
    before = decoder(ids, encoder_hidden_states=images).logits
    images[1] += 1.0
    after = decoder(ids, encoder_hidden_states=images).logits
    torch.testing.assert_close(before[:G], after[:G])
    assert not torch.isclose(before[G:], after[G:]).all(-1).any()


def test_the_cache_holds_an_image_once(images, ids):
    cache = cache_of(tiny_decoder()(ids, encoder_hidden_states=images))
    assert cache.cross_attention_cache.layers[0].keys.shape == (B, 4, N, WIDTH // 4)
    assert cache.self_attention_cache.layers[0].keys.shape == (B * G, 4, T, WIDTH // 4)


def test_rows_that_cannot_be_shared_out_among_the_images_are_refused(images, ids):
    with pytest.raises(ValueError, match="5 sequences cannot be shared out among 2 images"):
        tiny_decoder()(ids[:5], encoder_hidden_states=images)


def test_a_hidden_patch_is_not_read(images, ids):
    decoder = tiny_decoder()
    mask = torch.ones(B, N, dtype=torch.long)
    mask[1, 10:] = 0
    masked = decoder(ids, encoder_hidden_states=images, encoder_attention_mask=mask).logits
    alone = decoder(ids[G:], encoder_hidden_states=images[1:, :10]).logits
    torch.testing.assert_close(masked[G:], alone, rtol=0, atol=1e-5)


# --- the cache and the masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_cache", [lambda: None, DynamicCache])
@pytest.mark.parametrize("chunks", [[1] * T, [3, 1, 4], [5, 3]])
def test_decoding_with_a_cache_equals_teacher_forcing(images, ids, chunks, make_cache):
    decoder = tiny_decoder()
    logits, cache = [], make_cache()
    for i, chunk in enumerate(ids.split(chunks, dim=1)):
        output = decoder(chunk, encoder_hidden_states=images if i == 0 else None, cache=cache, use_cache=True)
        logits.append(output.logits)
        cache = cache_of(output)
    full = decoder(ids, encoder_hidden_states=images, use_cache=False)
    assert cache_of(full) is None
    torch.testing.assert_close(torch.cat(logits, dim=1), full.logits, rtol=0, atol=1e-5)


def test_a_token_does_not_see_the_next_one(images, ids):
    decoder = tiny_decoder()
    before = decoder(ids, encoder_hidden_states=images).logits
    ids[:, 5] = (ids[:, 5] + 1) % VOCAB
    after = decoder(ids, encoder_hidden_states=images).logits
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


def test_padding_on_the_right_changes_nothing_with_or_without_a_mask(images, ids):
    decoder = tiny_decoder()
    expected = decoder(ids, encoder_hidden_states=images).logits
    padded, mask = F.pad(ids, (0, 3)), F.pad(torch.ones_like(ids), (0, 3))
    for attention_mask in (None, mask):
        logits = decoder(padded, encoder_hidden_states=images, attention_mask=attention_mask).logits
        torch.testing.assert_close(logits[:, :T], expected, rtol=0, atol=1e-5)


def test_padding_on_the_left_changes_nothing_given_mask_and_positions(images, ids):
    decoder = tiny_decoder()
    expected = decoder(ids, encoder_hidden_states=images).logits
    padded, mask = F.pad(ids, (3, 0), value=7), F.pad(torch.ones_like(ids), (3, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = decoder(padded, encoder_hidden_states=images, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[:, 3:], expected, rtol=0, atol=1e-5)

    logits[:, 3:].sum().backward()  # padding attends to nothing; its softmax must not make the gradient NaN
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())

    start = decoder(
        padded[:, :6], encoder_hidden_states=images, attention_mask=mask[:, :6], position_ids=positions[:, :6]
    )
    rest = decoder(padded[:, 6:], attention_mask=mask, position_ids=positions[:, 6:], cache=cache_of(start))
    torch.testing.assert_close(rest.logits, expected[:, 3:], rtol=0, atol=1e-5)


def test_embeddings_may_be_given_in_place_of_ids(images, ids):
    decoder = tiny_decoder()
    expected = decoder(ids, encoder_hidden_states=images).logits
    embedded = decoder(inputs_embeds=decoder.embed_tokens(ids), encoder_hidden_states=images).logits
    torch.testing.assert_close(embedded, expected, rtol=0, atol=0)


def test_wrong_calls_are_refused_with_a_sentence(images, ids):
    decoder = tiny_decoder()
    with pytest.raises(ValueError, match="Pass encoder_hidden_states"):
        decoder(ids)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        decoder(encoder_hidden_states=images)
    with pytest.raises(ValueError, match="leave output_attentions off"):
        decoder(ids, encoder_hidden_states=images, output_attentions=True)
    with pytest.raises(ValueError, match="17 tokens does not fit 16 learned positions"):
        decoder(ids.new_zeros(B, 17), encoder_hidden_states=images)
    with pytest.raises(ValueError, match="tie_word_embeddings must be False"):
        VisionDecoderConfig(tie_word_embeddings=True)
    with pytest.raises(ValueError, match="33 cannot be split among 4 attention heads"):
        tiny_config(hidden_size=33)
    recompute_activations(decoder.train())
    with pytest.raises(ValueError, match=r"call model\.eval"):
        decoder(ids, encoder_hidden_states=images, use_cache=True)


# --- inside VisionEncoderDecoderModel -------------------------------------------------------------------------------


def greedy(model, pixel_values, length):
    """The most likely token each time; everything is computed anew for each token."""
    tokens = torch.zeros(len(pixel_values), 1, dtype=torch.long)
    for _ in range(length):
        logits = model(pixel_values=pixel_values, decoder_input_ids=tokens, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_generate_takes_the_most_likely_token_each_time(pixel_values, options):
    model = tiny_model()
    with torch.no_grad():
        expected = greedy(model, pixel_values, 10)
    tokens = model.generate(pixel_values, max_new_tokens=10, do_sample=False, **options)
    assert tokens.tolist() == expected.tolist()


def test_generate_samples_from_the_teacher_forced_distribution(pixel_values):
    model = tiny_model()
    torch.manual_seed(0)
    output = model.generate(
        pixel_values,
        max_new_tokens=6,
        do_sample=True,
        top_k=0,
        num_return_sequences=G,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert output.sequences.shape == (B * G, 7)
    encoded = model.encoder(pixel_values).last_hidden_state
    forced = model.decoder(output.sequences[:, :-1], encoder_hidden_states=encoded).logits
    torch.testing.assert_close(torch.stack(output.logits, dim=1), forced, rtol=0, atol=1e-5)


def test_beams_enough_for_all_prefixes_find_the_most_likely_sequence(pixel_values):
    vocab, length = 4, 3
    model = tiny_model(vocab_size=vocab)
    tokens = torch.tensor(list(product(range(vocab), repeat=length)))  # (64, 3)
    with torch.no_grad():
        encoded = model.encoder(pixel_values).last_hidden_state
        starts = F.pad(tokens[:, :-1], (1, 0))
        logps = model.decoder(starts.repeat(B, 1), encoder_hidden_states=encoded).logits.log_softmax(-1)
    scores = logps.gather(-1, tokens.repeat(B, 1)[..., None]).sum((1, 2)).view(B, -1)
    beams = model.generate(pixel_values, max_new_tokens=length, num_beams=vocab**2, do_sample=False)[:, 1:]
    assert beams.tolist() == tokens[scores.argmax(-1)].tolist()


def test_outputs_are_those_of_a_transformers_decoder(pixel_values, ids):
    model = tiny_model()
    output = model(pixel_values=pixel_values, decoder_input_ids=ids, output_hidden_states=True)
    assert [tuple(state.shape) for state in output.decoder_hidden_states] == [(B * G, T, WIDTH)] * 3
    torch.testing.assert_close(model.decoder.lm_head(output.decoder_hidden_states[-1]), output.logits)
    assert output.decoder_attentions is None and output.cross_attentions is None
    logits, *_ = model(pixel_values=pixel_values, decoder_input_ids=ids, return_dict=False)
    torch.testing.assert_close(logits, output.logits)
    assert cache_of(model.train()(pixel_values=pixel_values, decoder_input_ids=ids)) is None


def test_gradient_checkpointing_gives_the_same_gradients(pixel_values, ids):
    model = tiny_model().train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        logits = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
        logits.log_softmax(-1)[..., 3].sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        recompute_activations(model)
    assert all(layer.gradient_checkpointing for layer in model.decoder.layers)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cross_attention_hidden_size", [48, None])
def test_encoder_and_decoder_differ_in_width_and_depth(pixel_values, ids, tmp_path, cross_attention_hidden_size):
    decoder = tiny_decoder(num_hidden_layers=3, cross_attention_hidden_size=cross_attention_hidden_size)
    model = vision_encoder_decoder(tiny_encoder(width=48, layers=1), decoder, 0, 0).eval()
    assert hasattr(model, "enc_to_dec_proj") == (cross_attention_hidden_size is None)
    assert decoder.layers[0].cross_attn.k_proj.weight.shape == (WIDTH, cross_attention_hidden_size or WIDTH)
    logits = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values=pixel_values, decoder_input_ids=ids).logits, logits)


def test_new_tokens_leave_the_logits_of_the_old_ones_alone(pixel_values, ids, tmp_path):
    model = tiny_model()
    before = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
    model.decoder.resize_token_embeddings(VOCAB + 4)
    after = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
    assert after.shape[-1] == VOCAB + 4
    torch.testing.assert_close(after[..., :VOCAB], before, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)  # the config of the whole model has the new size too
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values=pixel_values, decoder_input_ids=ids).logits, after)


def test_bfloat16_and_autocast_stay_close_to_float32(pixel_values, ids):
    model = tiny_model()
    with torch.no_grad():
        expected = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
        half = model.to(torch.bfloat16)(pixel_values=pixel_values.bfloat16(), decoder_input_ids=ids).logits
        assert model.generate(pixel_values.bfloat16(), max_new_tokens=4, do_sample=False).shape == (B, 5)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), expected, rtol=0, atol=0.1)
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1)


def test_a_fresh_process_loads_what_was_saved(pixel_values, ids, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    model.decoder.save_pretrained(tmp_path / "decoder")
    images = model.encoder(pixel_values).last_hidden_state.detach()
    torch.save((pixel_values, ids, images), tmp_path / "inputs.pt")
    program = """
import sys, torch
import vision_rl.models
from transformers import AutoModelForCausalLM, VisionEncoderDecoderModel
folder = sys.argv[1]
pixel_values, ids, images = torch.load(f"{folder}/inputs.pt")
model = VisionEncoderDecoderModel.from_pretrained(f"{folder}/model")
decoder = AutoModelForCausalLM.from_pretrained(f"{folder}/decoder")
with torch.no_grad():
    logits = (
        model(pixel_values=pixel_values, decoder_input_ids=ids).logits,
        decoder(ids, encoder_hidden_states=images).logits,
    )
torch.save((logits, model.generate(pixel_values, max_new_tokens=8, do_sample=False)), f"{folder}/outputs.pt")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    (of_model, of_decoder), tokens = torch.load(tmp_path / "outputs.pt")
    expected = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
    torch.testing.assert_close(of_model, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(of_decoder, expected, rtol=0, atol=1e-6)
    assert tokens.tolist() == model.generate(pixel_values, max_new_tokens=8, do_sample=False).tolist()


def test_auto_classes_know_the_decoder():
    assert isinstance(AutoModelForCausalLM.from_config(tiny_config()), VisionDecoderForCausalLM)


def test_either_name_of_the_cache_gives_the_same_logits_and_both_together_are_refused(images, ids):
    decoder = tiny_decoder()
    said = [
        decoder(ids[:, 4:], **{name: cache_of(decoder(ids[:, :4], encoder_hidden_states=images))}).logits
        for name in ("cache", "past_key_values")
    ]
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=0)
    with pytest.raises(TypeError, match="pass only `cache`"):
        decoder(ids, encoder_hidden_states=images, cache=DynamicCache(), past_key_values=DynamicCache())
