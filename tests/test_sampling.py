"""Samples have the policy's own distribution and log-probabilities, and do not depend on the batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign_model import ForeignEncoderDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import END, SIZE, START, tiny_images, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    ChineseCLIPVisionModel,
    CLIPSegVisionModel,
    CLIPVisionModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    TrOCRConfig,
    TrOCRForCausalLM,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from vision_rl.models.generate_fallback import sample_with_generate
from vision_rl.models.preparation import disable_dropout, freeze_unused_parameters, hold_sine_positions
from vision_rl.models.sampling import sample
from vision_rl.models.shared_images import share_images
from vision_rl.models.token_draw import inverse_cdf, policy_logits
from vision_rl.randomness import SAMPLING, keyed_generator, uniform_table


DECODERS = ["ours", "gpt2", "bert", "trocr"]


def pixels(count=2, seed=0):
    images = np.stack([np.asarray(image) for image in tiny_images(count, seed)])
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def teacher_forced_logps(model, pixel_values, completion_ids):
    """The usual way: every image is encoded once for each of its completions."""
    num_generations = completion_ids.shape[1]
    ids = completion_ids.flatten(0, 1)
    logits = model(
        pixel_values=pixel_values.repeat_interleave(num_generations, 0),
        decoder_input_ids=F.pad(ids[:, :-1], (1, 0), value=START),
    ).logits
    return logits.log_softmax(-1).gather(-1, ids[..., None]).view_as(completion_ids)


@pytest.mark.parametrize("decoder", DECODERS)
def test_sampled_log_probabilities_equal_the_teacher_forced_ones(decoder):
    model = tiny_model(decoder, sharp=1.0)
    completions = sample(model, pixels(3), 4, max_completion_length=8)
    logps = teacher_forced_logps(model, pixels(3), completions.completion_ids)
    difference = (logps - completions.per_token_logps).masked_fill(completions.completion_mask == 0, 0)
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("decoder", DECODERS)
def test_one_forward_over_images_encoded_once_equals_repeated_images(decoder):
    model = tiny_model(decoder, sharp=1.0)
    ids = sample(model, pixels(3), 4, max_completion_length=8).completion_ids
    expected = teacher_forced_logps(model, pixels(3), ids)
    share_images(model)
    share_images(model)  # a second call changes nothing
    calls = []
    model.encoder.register_forward_hook(lambda *a: calls.append(1))
    inputs = F.pad(ids.flatten(0, 1)[:, :-1], (1, 0), value=START)
    logits = model(pixel_values=pixels(3), decoder_input_ids=inputs).logits
    logps = logits.log_softmax(-1).gather(-1, ids.flatten(0, 1)[..., None]).view_as(ids)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("decoder", DECODERS)
def test_samples_follow_the_policy_chi_square(decoder):
    """4096 samples of two tokens out of four: 16 cells against the enumerated distribution."""
    model = tiny_model(decoder, vocab_size=4, end=None, sharp=0.5)
    torch.manual_seed(1)
    image = pixels(1)
    ids = sample(model, image, 4096, max_completion_length=2).completion_ids[0]
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    with torch.no_grad():
        probabilities = teacher_forced_logps(model, image, every[None]).sum(-1).exp()[0].double()
    counts = torch.bincount(ids[:, 0] * 4 + ids[:, 1], minlength=16)
    assert stats.chisquare(counts, probabilities / probabilities.sum() * 4096).pvalue > 1e-3


def test_nothing_is_cut_to_the_fifty_most_likely_tokens():
    """generate(do_sample=True) samples from the top 50 unless top_k=0 is given. Ours reaches the whole vocabulary."""
    model = tiny_model(vocab_size=200, end=None)
    torch.manual_seed(0)
    ours = sample(model, pixels(1), 4000, max_completion_length=1).completion_ids
    stock = model.generate(pixel_values=pixels(1), do_sample=True, num_return_sequences=4000, max_new_tokens=1)[:, 1:]
    assert len(stock.unique()) <= 50
    assert len(ours.unique()) > 150


def test_generate_changes_the_encoder_outputs_it_is_given_and_sample_does_not():
    model = tiny_model(end=None)
    encoded = model.encoder(pixel_values=pixels(2)).last_hidden_state.detach()
    kept = encoded.clone()
    given = BaseModelOutput(last_hidden_state=encoded)
    model.generate(encoder_outputs=given, do_sample=True, top_k=0, num_return_sequences=3, max_new_tokens=2)
    assert len(given.last_hidden_state) == 6  # the trap: a second call would return 18 sequences
    ids = sample(model, num_generations=3, encoder_outputs=encoded, max_completion_length=2).completion_ids
    assert ids.shape == (2, 3, 2)
    assert torch.equal(encoded, kept)


@pytest.mark.parametrize("decoder", DECODERS)
def test_greedy_equals_generate(decoder):
    model = tiny_model(decoder, sharp=1.0)
    completions = sample(model, pixels(4), do_sample=False, max_completion_length=8)
    stock = model.generate(pixel_values=pixels(4), do_sample=False, max_new_tokens=8)[:, 1:]
    assert torch.equal(completions.completion_ids[:, 0], stock)


def test_the_same_uniforms_draw_the_same_samples_in_any_batch():
    model = tiny_model(sharp=1.0)
    index = torch.tensor([5, 9, 2, 7])
    together = sample(model, pixels(4), 3, uniforms=uniform_table(0, 3, index, 3, 8), max_completion_length=8)
    for b in range(4):
        alone = sample(
            model,
            pixels(4)[b : b + 1],
            3,
            uniforms=uniform_table(0, 3, index[b : b + 1], 3, 8),
            max_completion_length=8,
        )
        length = alone.completion_ids.shape[2]
        assert torch.equal(alone.completion_ids[0], together.completion_ids[b, :, :length])


def test_the_table_of_uniforms_depends_on_seed_step_row_and_generation_only():
    table = uniform_table(0, 1, torch.tensor([4, 8]), 2, 16)
    assert torch.equal(uniform_table(0, 1, torch.tensor([8]), 2, 16)[0], table[1])
    assert torch.equal(uniform_table(0, 1, torch.tensor([8]), 1, 16)[0, 0], table[1, 0])
    for other in (uniform_table(1, 1, torch.tensor([4, 8]), 2, 16), uniform_table(0, 2, torch.tensor([4, 8]), 2, 16)):
        assert not torch.isclose(other, table).any()
    assert len(table.flatten().unique()) == table.numel()
    assert table.min() >= 0 and table.max() < 1


@settings(max_examples=50)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**40),
    st.lists(st.integers(0, 2**62), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 20),
)
def test_the_table_of_uniforms_is_numpy_s_philox_bit_for_bit(seed, step, rows, num_generations, length):
    table = uniform_table(seed, step, torch.tensor(rows), num_generations, length)
    for b, row in enumerate(rows):
        for g in range(num_generations):
            expected = keyed_generator(seed, SAMPLING, step, row, g).random(length, dtype=np.float32)
            assert np.array_equal(table[b, g].numpy(), expected)


class NoTransfer(TorchDispatchMode):
    """Fails if the host reads a value or sends one to the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert not any(word in name for word in ("_local_scalar_dense", "lift_fresh", "nonzero"))
        return function(*args, **(kwargs or {}))


def test_the_table_of_uniforms_is_made_without_a_wait_for_the_device():
    rows = torch.tensor([3, 1])
    with NoTransfer():
        assert uniform_table(0, 5, rows, 2, 9).shape == (2, 2, 9)


def test_nothing_follows_the_end_token():
    model = tiny_model(sharp=1.0)
    ids, mask, logps = sample(model, pixels(4), 16, max_completion_length=12)
    for row, row_mask, row_logps in zip(ids.flatten(0, 1), mask.flatten(0, 1), logps.flatten(0, 1), strict=True):
        ends = (row == END).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(row)
        assert row_mask.tolist() == [1] * length + [0] * (len(row) - length)
        assert (row[length:] == START).all() and (row_logps[length:] == 0).all()
    assert mask.sum(-1).max() == ids.shape[2]  # the width is that of the longest


def test_without_an_end_token_every_completion_has_full_length():
    completions = sample(tiny_model(end=None), pixels(2), 3, max_completion_length=7)
    assert completions.completion_mask.sum(-1).unique().tolist() == [7]


def test_a_forbidden_token_is_never_drawn_and_has_no_probability():
    model = tiny_model(end=None, sharp=0.5)
    model.generation_config.suppress_tokens = [0, 3]
    completions = sample(model, pixels(2), 64, max_completion_length=6)
    assert not torch.isin(completions.completion_ids, torch.tensor([0, 3])).any()
    greedy = sample(model, pixels(2), do_sample=False, max_completion_length=6).completion_ids
    assert not torch.isin(greedy, torch.tensor([0, 3])).any()
    logits = policy_logits(torch.zeros(1, 4), suppress_tokens=[0, 3])
    assert logits.log_softmax(-1).exp().tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_temperature_sharpens_the_samples_and_their_log_probabilities_alike():
    model = tiny_model(end=None, sharp=1.0)
    cold = sample(model, pixels(1), 2, max_completion_length=4, temperature=1e-3)
    greedy = sample(model, pixels(1), do_sample=False, max_completion_length=4)
    assert torch.equal(cold.completion_ids[0, 0], greedy.completion_ids[0, 0])
    assert cold.per_token_logps.abs().max() < 1e-3


def test_dropout_is_off_while_sampling_and_the_mode_comes_back():
    model = tiny_model("bert", sharp=1.0).train()  # BERT has a dropout of 0.1
    uniforms = torch.rand(2, 3, 8)
    first = sample(model, pixels(2), 3, uniforms=uniforms, max_completion_length=8)
    second = sample(model, pixels(2), 3, uniforms=uniforms, max_completion_length=8)
    assert torch.equal(first.per_token_logps, second.per_token_logps)
    assert all(module.training for module in model.modules())
    with pytest.raises(AttributeError):  # an error does not leave the model in evaluation mode either
        sample(model, "no pixels", 3, max_completion_length=8)
    assert model.training


@pytest.mark.parametrize("decoder", DECODERS)
def test_disable_dropout_makes_training_and_evaluation_the_same_function(decoder):
    model = tiny_model(decoder)
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    inputs = {"pixel_values": pixels(2), "decoder_input_ids": torch.tensor([[START, 2, 3], [START, 4, 5]])}
    expected = model.eval()(**inputs).logits
    disable_dropout(model)
    assert torch.equal(model.train()(**inputs).logits, expected)


def test_inverse_cdf_never_draws_what_has_no_probability():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-24])
    assert inverse_cdf(probabilities, uniforms).tolist() == [1, 1, 3, 3]


class TestGenerateFallback:
    """For encoder-decoders that are not a VisionEncoderDecoderModel."""

    def draw(self, model, count, **how):
        return sample_with_generate(model, pixels(1), count, **{"length": 2, **how})

    def test_it_samples_the_whole_policy(self):
        model = tiny_model(vocab_size=200, end=None)
        torch.manual_seed(0)
        assert len(self.draw(model, 4000, length=1).completion_ids.unique()) > 150

    def test_its_log_probabilities_are_the_teacher_forced_ones(self):
        model = tiny_model(sharp=1.0)
        completions = self.draw(model, 8, length=6)
        logps = teacher_forced_logps(model, pixels(1), completions.completion_ids)
        difference = (logps - completions.per_token_logps).masked_fill(completions.completion_mask == 0, 0)
        assert difference.abs().max() < 1e-5

    def test_it_masks_behind_the_end_and_honours_forbidden_tokens(self):
        model = tiny_model(sharp=1.0)
        model.generation_config.suppress_tokens = [3]
        ids, mask, _ = self.draw(model, 64, length=8)
        assert not (ids == 3).any()
        after_end = ((ids == END).cumsum(-1) - (ids == END).long()) > 0
        assert torch.equal(mask == 0, after_end)


def test_a_diverged_model_is_named_as_such():
    model = tiny_model()
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(float("nan"))
    for do_sample in (True, False):
        with pytest.raises(FloatingPointError, match="logits are NaN"):
            sample(model, torch.zeros(2, 3, SIZE, SIZE), 2, do_sample=do_sample, max_completion_length=4)


def test_a_compiled_model_is_sampled_by_the_same_exact_sampler():
    model = tiny_model()
    uniforms, images = torch.rand(2, 3, 4), torch.randn(2, 3, SIZE, SIZE)
    plain = sample(model, images, 3, uniforms=uniforms, max_completion_length=4)
    compiled = sample(torch.compile(model, backend="eager"), images, 3, uniforms=uniforms, max_completion_length=4)
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


@pytest.mark.parametrize("decoder", [*DECODERS, "generate"])
def test_watched_ids_have_their_log_probability_at_every_position(decoder):
    model = tiny_model("ours" if decoder == "generate" else decoder)
    if decoder == "generate":
        model = ForeignEncoderDecoder.wrapping(model)
    completions = sample(model, pixels(), 16, max_completion_length=4, watched_ids=(2, 3))
    ids, logps, watched = completions.completion_ids, completions.per_token_logps, completions.watched_logps
    assert watched.shape == (*ids.shape, 2)
    assert ((ids == 2) | (ids == 3)).any()
    for column, token in enumerate((2, 3)):
        drawn = (ids == token) & (completions.completion_mask == 1)
        assert torch.allclose(watched[..., column][drawn], logps[drawn], atol=1e-6)
    assert completions.first(1).watched_logps.shape == (2, 1, ids.shape[2], 2)


def test_a_temperature_of_zero_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="temperature must be positive, got 0.0: .* do_sample=False"):
        sample(tiny_model(), pixels(), temperature=0.0)


def test_the_fallback_does_not_follow_the_models_own_generation_options():
    model = ForeignEncoderDecoder.wrapping(tiny_model(sharp=0.6))
    plain = sample(model, pixels(), do_sample=False, max_completion_length=8).completion_ids
    model.generation_config.repetition_penalty = 5.0
    again = sample(model, pixels(), do_sample=False, max_completion_length=8).completion_ids
    assert torch.equal(again, plain) and model.generation_config.repetition_penalty == 5.0


def test_without_dropout_dinov3_does_not_move_its_positions_while_it_is_trained():
    config = DINOv3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8
    )
    encoder = DINOv3ViTModel(config)
    expected = encoder.eval()(pixels()).last_hidden_state
    assert not torch.equal(encoder.train()(pixels()).last_hidden_state, expected)
    disable_dropout(encoder)
    assert torch.equal(encoder.train()(pixels()).last_hidden_state, expected)
    assert encoder.config.pos_embed_rescale is not None  # what is saved


def test_sine_positions_are_there_after_loading(tmp_path):
    config = TrOCRConfig(
        vocab_size=6,
        d_model=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        use_learned_position_embeddings=False,
    )
    encoder = tiny_model("trocr").encoder
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=TrOCRForCausalLM(config)).eval()
    inputs = {"pixel_values": pixels(), "decoder_input_ids": torch.tensor([[0, 2, 3], [0, 4, 5]])}
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    hold_sine_positions(loaded)
    assert torch.equal(loaded(**inputs).logits, expected)


@pytest.mark.parametrize("kind", [ChineseCLIPVisionModel, CLIPSegVisionModel, CLIPVisionModel])
def test_no_parameter_of_clips_pooled_output_waits_for_a_gradient(kind):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = kind(kind.config_class(image_size=SIZE, patch_size=16, **sizes))
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=tiny_model().decoder)
    freeze_unused_parameters(model)
    encoder(pixels()).last_hidden_state.sum().backward()
    learned = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert learned and all(p.grad is not None for p in learned.values())
