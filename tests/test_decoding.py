"""The decode loop against a slow one without a cache, and against itself: dropped rows, lengths, hooks, adapters."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from scipy import stats
from test_sampling import DECODERS, pixels, teacher_forced_logps
from tiny import END, START, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from vision_rl.models import VisionDecoderForCausalLM
from vision_rl.models.decoder import VisionDecoderSelfAttention
from vision_rl.models.decoding import EagerRunner
from vision_rl.models.fast_step import is_plain
from vision_rl.models.packed_linear import PackedLinear
from vision_rl.models.sampling import encode, sample
from vision_rl.models.shared_images import share_images
from vision_rl.models.special_ids import special_ids
from vision_rl.models.token_draw import draw, inverse_cdf, policy_logits
from vision_rl.models.writer import Work, Writer


B, G, T = 3, 4, 16  # T is long enough for weights to be packed
# For each decoder `sharp` and its end ids, chosen for completions of many lengths: with tied embeddings a model
# tends to repeat a token, so it needs several ends.
SHARP_AND_ENDS = {"ours": (0.2, [1]), "bert": (0.1, [1]), "gpt2": (0.1, [1, 3, 4]), "trocr": (0.1, [1, 2, 3, 4])}


@pytest.fixture(autouse=True)
def small_weights_are_packed_too(monkeypatch):
    monkeypatch.setattr(PackedLinear, "pays", lambda weight: weight.dtype == torch.float32)


def model_of(decoder="ours"):
    sharp, ends = SHARP_AND_ENDS[decoder]
    model = tiny_model(decoder, sharp=sharp)
    model.generation_config.eos_token_id = ends
    return model


def endless_model():
    return tiny_model(end=None, sharp=0.2)


def uniforms(seed=0):
    return torch.rand(B, G, T, generator=torch.Generator().manual_seed(seed))


def slowly(model, pixel_values, table, temperature=1.0, suppressed=()):
    """The definition of a sample: repeated images, everything computed anew for each token, one flat CDF in float64."""
    images = pixel_values.repeat_interleave(G, 0)
    tokens = torch.full((B * G, 1), START)
    logps = []
    for t in range(T):
        with torch.no_grad():
            logits = model(pixel_values=images, decoder_input_ids=tokens, use_cache=False).logits[:, -1].double()
        logits[:, list(suppressed)] = float("-inf")
        logp = (logits / temperature).log_softmax(-1)
        cdf = logp.exp().cumsum(-1).numpy()
        u = table.flatten(0, 1)[:, t].double().numpy()
        drawn = torch.tensor([np.searchsorted(row, x, side="right") for row, x in zip(cdf, u, strict=True)])
        logps.append(logp.gather(-1, drawn[:, None]))
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    return tokens[:, 1:].view(B, G, T), torch.cat(logps, dim=1).view(B, G, T)


def rollout(model, runner, do_sample=True, watched=()):
    """A rollout of `B` images and `B * G` completions, made as in `sample` and run by `runner`."""
    ids = special_ids(model)
    work = Work(
        num_images=B,
        num_rows=B * G,
        length=T,
        start=ids.decoder_start,
        pad=ids.pad,
        ends=tuple(ids.ends),
        suppressed=(),
        do_sample=do_sample,
        temperature=1.0,
        watched_ids=watched,
        device=torch.device("cpu"),
        autocast=None,
        synced=False,
    )
    share_images(model)
    return Writer(model.decoder, work, runner)


@torch.no_grad()
def written(rollout, model, seed=0):
    """Copies of the ids, of their log-probabilities and of those of the watched ids."""
    images = encode(model, {"pixel_values": pixels(B)})["encoder_outputs"]
    decoding = rollout.write(images, uniforms(seed).flatten(0, 1))
    return decoding.ids.clone(), decoding.logps.clone(), decoding.watched_logps.clone()


class Recorded(EagerRunner):
    """A runner that remembers the shapes of the steps. It does not run the first step of a rollout."""

    def __init__(self, shrink):
        super().__init__()
        self.shrink, self.shapes = shrink, []

    def run(self, shape, step):
        self.shapes.append(shape)
        step()


# --- the same samples as by the definition --------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"suppressed": (2, 5)}])
def test_draws_are_those_of_one_flat_cdf_without_any_cache(decoder, how):
    model = model_of(decoder)
    expected, logps = slowly(model, pixels(B), uniforms(), **how)
    model.generation_config.suppress_tokens = list(how.get("suppressed", ()))
    completions = sample(
        model,
        pixels(B),
        G,
        uniforms=uniforms(),
        max_completion_length=T,
        temperature=how.get("temperature", 1.0),
    )
    mask = completions.completion_mask == 1
    longest = mask.shape[-1]
    assert torch.equal(completions.completion_ids[mask], expected[..., :longest][mask])
    difference = completions.per_token_logps - logps[..., :longest].float()
    assert difference[mask].abs().max() < 1e-5
    lengths = mask.sum(-1)
    assert lengths.min() < lengths.max()  # so rows were dropped at different times


def test_encoder_outputs_in_place_of_pixels_give_the_same_samples():
    model = model_of()
    with torch.no_grad():
        encoded = model.encoder(pixel_values=pixels(B)).last_hidden_state
    how = {"num_generations": G, "uniforms": uniforms(), "max_completion_length": T}
    for a, b in zip(sample(model, pixels(B), **how), sample(model, encoder_outputs=encoded, **how), strict=True):
        assert torch.equal(a, b)


# --- rows that have ended -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_dropping_ended_rows_changes_no_token(decoder):
    model = model_of(decoder)
    results, shapes = [], []
    for shrink in (0.0, 0.85, 1.0):
        runner = Recorded(shrink)
        results.append(written(rollout(model, runner, watched=(2, 3)), model))
        shapes.append(runner.shapes)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        for a, b in zip(result[1:], results[0][1:], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert {rows for _, rows, _ in shapes[0]} == {B * G}
    for dropped in shapes[1:]:
        images, rows, _ = dropped[-1]
        assert rows < B * G and rows % images == 0
    assert decoder != "ours" or images < B  # a whole image was dropped too
    assert len(shapes[0]) == len(shapes[1]) == len(shapes[2])


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_second_rollout_in_the_same_buffers_writes_what_a_new_one_does(decoder):
    model = model_of(decoder)
    again = rollout(model, Recorded(0.85), watched=(2,))
    for seed in (0, 1, 0):
        expected = written(rollout(model, EagerRunner(), watched=(2,)), model, seed)
        for a, b in zip(written(again, model, seed), expected, strict=True):
            assert torch.equal(a, b)


def test_without_an_end_nothing_is_dropped():
    runner = Recorded(1.0)
    model = endless_model()
    written(rollout(model, runner), model)
    assert [(images, rows) for images, rows, _ in runner.shapes] == [(B, B * G)] * (T - 1)


def test_ranks_that_must_step_together_keep_all_rows_and_call_the_modules():
    model = model_of()
    rows = []
    plain = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    hook = model.decoder.lm_head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    together = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T, synced=True)
    hook.remove()
    assert set(rows) == {B * G}
    assert torch.equal(plain.completion_ids, together.completion_ids)
    torch.testing.assert_close(plain.per_token_logps, together.per_token_logps, rtol=0, atol=1e-5)


# --- the step is the decoder ----------------------------------------------------------------------------------------


def test_a_hook_on_the_decoder_is_called_and_changes_no_sample():
    model = model_of()
    how = {"uniforms": uniforms(), "max_completion_length": T}
    plain = sample(model, pixels(B), G, **how)
    calls = []
    model.decoder.layers[0].mlp.register_forward_hook(lambda *arguments: calls.append(1))
    hooked = sample(model, pixels(B), G, **how)
    assert len(calls) == plain.completion_ids.shape[-1]
    assert torch.equal(plain.completion_ids, hooked.completion_ids)
    torch.testing.assert_close(plain.per_token_logps, hooked.per_token_logps, rtol=0, atol=1e-5)


def test_adapters_are_part_of_the_policy():
    model = model_of()
    before = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj", "fc1", "lm_head"], r=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    assert is_plain(model.decoder)  # so the step is ours, with adapters too
    after = sample(adapted, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    assert not torch.equal(before.per_token_logps, after.per_token_logps)
    logps = teacher_forced_logps(adapted.eval(), pixels(B), after.completion_ids)
    assert (logps - after.per_token_logps).masked_fill(after.completion_mask == 0, 0).abs().max() < 1e-5


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("decoder", ["ours", "bert"])
def test_long_completions_on_a_cpu_pack_the_weights_as_they_are_at_each_call(decoder, monkeypatch):
    packed = []
    monkeypatch.setattr(PackedLinear, "__init__", _counted(PackedLinear.__init__, packed))
    model = model_of(decoder)
    sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T - 1)
    assert not packed  # these completions are too short
    linears = sum(type(module) is torch.nn.Linear for module in model.decoder.modules())
    sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    assert len(packed) == linears
    head = model.decoder.get_output_embeddings()
    with torch.no_grad():
        head.weight.neg_()
    ids = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T).completion_ids
    expected = slowly(model, pixels(B), uniforms())[0][..., : ids.shape[-1]]
    assert torch.equal(ids, expected.where(ids != START, START))
    assert "forward" not in vars(head)  # the packed forward is not left behind


def _counted(init, calls):
    def counting(self, linear):
        calls.append(linear)
        init(self, linear)

    return counting


@pytest.mark.parametrize("rows", [1, 7, 8, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_is_the_linear(rows, bias):
    linear = torch.nn.Linear(48, 130, bias=bias)
    x = torch.randn(rows, 1, 48)
    packed = PackedLinear(linear)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), linear(x), rtol=0, atol=1e-5)


def test_a_subclass_with_a_forward_of_its_own_is_asked_itself():
    class Louder(VisionDecoderForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 2 * output.logits
            return output

    model = model_of()
    cold = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T, temperature=0.5)
    model.decoder.__class__ = Louder
    louder = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    assert torch.equal(cold.completion_ids, louder.completion_ids)


@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
def test_bfloat16_autocast_samples_close_to_its_own_teacher_forced_pass(decoder):
    model = model_of(decoder)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        completions = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
        logps = teacher_forced_logps(model, pixels(B), completions.completion_ids)
    assert completions.per_token_logps.dtype == torch.float32
    assert (logps - completions.per_token_logps).masked_fill(completions.completion_mask == 0, 0).abs().max() < 0.1


class Casts(TorchDispatchMode):
    """Counts the casts to bfloat16."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += "_to_copy" in function.name() and result.dtype == torch.bfloat16
        return result


def casts_a_token(model) -> int:
    counts = []
    for length in (4, 5):
        with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
            sample(model, pixels(B), G, max_completion_length=length)
        counts.append(casts.count)
    return counts[1] - counts[0]


@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
def test_autocast_casts_no_frozen_weight_at_every_token(decoder):
    """autocast keeps the casts of weights that learn only, not those of frozen weights, as beneath adapters."""
    learning = endless_model() if decoder == "ours" else tiny_model(decoder, end=None)
    frozen = copy.deepcopy(learning).requires_grad_(False)
    adapted = get_peft_model(copy.deepcopy(learning), LoraConfig(target_modules=["q_proj", "c_attn"], r=2))
    products = sum(type(module) in (torch.nn.Linear, Conv1D) for module in learning.decoder.modules())
    assert casts_a_token(frozen) == casts_a_token(learning) < products
    assert casts_a_token(adapted) <= casts_a_token(learning) + 2 * 4 * 2  # the inputs of A and B of each adapter
    with torch.autocast("cpu", torch.bfloat16):
        how = {"uniforms": uniforms(), "max_completion_length": T}
        expected, actual = sample(learning, pixels(B), G, **how), sample(frozen, pixels(B), G, **how)
    assert torch.equal(actual.completion_ids, expected.completion_ids)
    assert torch.equal(actual.per_token_logps, expected.per_token_logps)


def test_cast_weights_are_put_back_whatever_happens():
    model = model_of()
    before = dict(model.named_parameters())
    model.decoder.layer_norm.register_forward_hook(lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.autocast("cpu", torch.bfloat16):
        sample(model, pixels(B), G, max_completion_length=T)
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)


def test_more_tokens_than_positions_are_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match="17 tokens do not fit the decoder's 16 learned positions"):
        sample(model_of(), pixels(1), 2, max_completion_length=17)


def test_an_attention_of_another_class_is_asked_itself():
    class Louder(VisionDecoderSelfAttention):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)

    model = model_of()
    for layer in model.decoder.layers:
        layer.self_attn.__class__ = Louder
    completions = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    logps = teacher_forced_logps(model, pixels(B), completions.completion_ids)
    assert (logps - completions.per_token_logps).masked_fill(completions.completion_mask == 0, 0).abs().max() < 1e-5


def test_torch_s_default_dtype_changes_nothing():
    model = model_of()
    how = {"uniforms": uniforms(), "max_completion_length": T}
    expected = sample(model, pixels(B), G, **how)
    torch.set_default_dtype(torch.float64)
    try:
        completions = sample(model, pixels(B), G, **how)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(completions.completion_ids, expected.completion_ids)


def test_an_image_is_projected_once_a_call():
    model = model_of()
    counts = []
    cross = model.decoder.layers[0].cross_attn.k_proj
    cross.register_forward_hook(lambda module, args, output: counts.append(len(output)))
    sample(model, pixels(B), G, max_completion_length=T)
    assert counts == [B]


# --- the draw -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.sampled_from([2, 130, 2048, 2049, 2176, 5000]), st.floats(0.5, 30))
def test_the_inverse_cdf_is_the_flat_one_except_at_a_boundary(seed, vocab, spread):
    generator = torch.Generator().manual_seed(seed)
    weights = (spread * torch.randn(64, vocab, generator=generator)).softmax(-1)
    weights[:, torch.rand(vocab, generator=generator) < 0.3] = 0.0
    weights[:, int(seed % vocab)] = 0.01
    u = torch.rand(64, generator=generator)
    u[:2] = torch.tensor([0.0, 1 - 2**-24])
    drawn = inverse_cdf(weights, u)
    assert (weights.gather(-1, drawn[:, None]) > 0).all()
    shares = weights.double() / weights.double().sum(-1, keepdim=True)
    upper = shares.cumsum(-1).gather(-1, drawn[:, None]).squeeze(-1)
    lower = upper - shares.gather(-1, drawn[:, None]).squeeze(-1)
    assert ((lower - 1e-6 <= u) & (u <= upper + 1e-6)).all()


def test_every_id_of_a_large_vocabulary_is_found_by_the_middle_of_its_share():
    vocab = 5000
    weights = torch.rand(1, vocab, generator=torch.Generator().manual_seed(0)) + 0.5
    shares = weights.double() / weights.double().sum()
    middles = (shares.cumsum(-1) - shares / 2).squeeze(0)
    assert torch.equal(inverse_cdf(weights.expand(vocab, -1), middles.float()), torch.arange(vocab))


def test_draws_from_a_large_vocabulary_are_exact_chi_square():
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 4097)
    drawn = torch.cat([draw(logits.expand(2000, -1), torch.rand(2000))[0] for _ in range(50)])
    expected = logits[0].double().softmax(-1) * len(drawn)
    often = expected >= 5
    observed = torch.bincount(drawn, minlength=4097).double()
    cells = torch.cat([observed[often], observed[~often].sum()[None]])
    shares = torch.cat([expected[often], expected[~often].sum()[None]])
    assert stats.chisquare(cells, shares * cells.sum() / shares.sum()).pvalue > 1e-3


def test_the_normaliser_gives_the_log_probability_of_any_id():
    logits = policy_logits(5 * torch.randn(8, 3000), temperature=0.7, suppress_tokens=[1, 2])
    for table in (torch.rand(8), None):
        drawn, log_normalizer = draw(logits, table)
        torch.testing.assert_close(logits - log_normalizer, logits.log_softmax(-1), rtol=0, atol=1e-5)
        assert not torch.isin(drawn, torch.tensor([1, 2])).any()
    assert torch.equal(drawn, logits.argmax(-1))


def test_padding_that_is_also_the_end_is_masked_behind_the_first():
    model = model_of()
    model.generation_config.pad_token_id = END
    ids, mask, _ = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    model.generation_config.pad_token_id = START
    others, other_mask, _ = sample(model, pixels(B), G, uniforms=uniforms(), max_completion_length=T)
    assert torch.equal(mask, other_mask) and torch.equal(ids[mask == 1], others[mask == 1])
    assert F.pad(mask, (0, 1))[..., 1:].le(mask).all()
