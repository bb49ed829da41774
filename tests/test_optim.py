"""The optimiser against recorded runs of big_vision's code, and against steps computed by hand."""

import copy
import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from recorded import golden
from tiny import text_dataset, text_processor, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
    get_scheduler,
)

from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.models import VisionDecoderConfig, VisionDecoderForCausalLM, vision_encoder_decoder, vit_encoder
from vision_rl.trainer.optim import (
    BigVisionAdafactor,
    attention_view_shapes,
    factored_axes,
    kernel_names,
    parameter_groups,
)


def updates_of(gradients: np.ndarray, **options) -> tuple[np.ndarray, dict]:
    """The update of each step and the final state. Parameters are in float64, so that float32 updates stay unrounded."""
    parameter = nn.Parameter(torch.zeros(gradients.shape[1:], dtype=torch.float64))
    optimizer = BigVisionAdafactor([parameter], lr=1.0, **options)
    updates = []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        updates.append((before - parameter.detach()).numpy())
    return np.stack(updates), optimizer.state[parameter]


def assert_same_update(ours: np.ndarray, recorded: np.ndarray, bfloat16_momentum: bool):
    # Errors are measured on the scale of the tensor: a sum that nearly cancels has few digits of its own.
    scale = np.abs(recorded).max()
    error = np.abs(ours - recorded)
    if not bfloat16_momentum:
        assert error.max() <= 1e-6 * scale
    else:  # a value between two bfloat16 numbers may round to the other one, and is then off for some steps
        assert np.quantile(error, 0.99) <= 1e-6 * scale
        np.testing.assert_allclose(ours, recorded, rtol=1e-2, atol=1e-3)


OPTIONS = {
    "default": {},
    "uvim": {"beta2_cap": 0.95},
    "clip1": {"beta2_cap": 0.95, "clipping_threshold": 1.0},
    "nomom": {"momentum": None},
    "uvim_nomom": {"beta2_cap": 0.95, "momentum": None},
    "mom_f32": {"beta2_cap": 0.95, "momentum_dtype": torch.float32},
}
WITHOUT_BFLOAT16 = ("nomom", "uvim_nomom", "mom_f32")


@pytest.mark.parametrize("name", ["default", "uvim", "clip1", "nomom", "mom_f32"])
def test_updates_and_states_equal_big_vision_over_20_steps(name):
    arrays = golden("adafactor.npz")
    tensors = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    assert len(tensors) == 12
    for tensor in tensors:
        updates, state = updates_of(arrays[f"grad/{tensor}"], **OPTIONS[name])
        recorded = arrays[f"{name}/update/{tensor}"]
        for step, expected in zip(arrays[f"{name}/update_steps"], recorded, strict=True):
            assert_same_update(updates[step], expected, bfloat16_momentum=name not in WITHOUT_BFLOAT16)

        for ours, theirs in [("v", "v"), ("row", "v_row"), ("col", "v_col")]:
            expected = arrays[f"{name}/state_final/{theirs}/{tensor}"]
            assert (ours in state) == (expected.shape != (1,)), f"{tensor} is factored here or there, but not in both"
            if ours in state:
                np.testing.assert_allclose(state[ours].numpy().reshape(expected.shape), expected, rtol=2e-6)
        if name in ("default", "uvim", "clip1"):
            ours_bits = state["momentum"].view(torch.int16).numpy().astype(np.int64)
            bits = arrays[f"{name}/state_final/ema_bits/{tensor}"].view(np.int16).astype(np.int64)
            assert np.mean(ours_bits == bits) > 0.99


@pytest.mark.parametrize("name", ["default", "uvim", "nomom", "uvim_nomom"])
def test_updates_equal_big_vision_when_the_cap_on_beta2_binds(name):
    arrays = golden("adafactor_cap.npz")
    for tensor in ("vec", "mat"):
        updates, _ = updates_of(arrays[f"grad/{tensor}"], **OPTIONS[name])
        for step, expected in zip(arrays["update_steps"], arrays[f"{name}/update/{tensor}"], strict=True):
            assert_same_update(updates[step], expected, bfloat16_momentum=name not in WITHOUT_BFLOAT16)


@pytest.mark.parametrize("name", ["default", "uvim", "clip1", "nomom"])
def test_updates_equal_big_vision_on_a_large_matrix(name):
    arrays = golden("adafactor_large.npz")
    scale = arrays["big_grad_scale"]
    gradients = np.stack([arrays["big_grad_base"][t % 5].astype(np.float32) * scale[t] for t in range(len(scale))])
    updates, state = updates_of(gradients, **OPTIONS[name])
    for step in (0, 1, 4, 9, 19):
        expected = arrays[f"{name}/update_sub/{step}"]
        assert_same_update(updates[step][::4, ::5], expected, bfloat16_momentum=name != "nomom")
    np.testing.assert_allclose(
        np.linalg.norm(updates.reshape(len(updates), -1), axis=1), arrays[f"{name}/update_norm"], rtol=1e-5, atol=1e-30
    )
    np.testing.assert_allclose(state["row"].flatten(), arrays[f"{name}/v_row_final"], rtol=2e-6)
    np.testing.assert_allclose(state["col"].flatten(), arrays[f"{name}/v_col_final"], rtol=2e-6)


class RecordedModel(nn.Module):
    """The parameters of the recorded optax chain as encoder and decoder, in float64 so that updates stay unrounded."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.positions = nn.Parameter(torch.zeros(1, 16, 32))
        self.encoder.patches = nn.Conv2d(3, 32, kernel_size=4)
        self.encoder.dense = nn.Linear(32, 64, bias=False)
        self.encoder.norm = nn.LayerNorm(32, bias=False)
        self.decoder = nn.Module()
        self.decoder.positions = nn.Parameter(torch.zeros(1, 8, 32))
        self.decoder.tokens = nn.Embedding(50, 32)
        self.decoder.logits = nn.Linear(32, 50)
        self.double()
        self.recorded_names = {
            "encoder.positions": "pos_embedding_encoder",
            "encoder.patches.weight": "EmbedPatches/kernel",
            "encoder.patches.bias": "EmbedPatches/bias",
            "encoder.dense.weight": "encoder/encoderblock_0/MlpBlock_0/Dense_0/kernel",
            "encoder.norm.weight": "encoder/encoder_norm/scale",
            "decoder.positions": "pos_embedding_decoder",
            "decoder.tokens.weight": "decoder/EmbedTargets/embedding",
            "decoder.logits.weight": "decoder/LogitsDense/kernel",
            "decoder.logits.bias": "decoder/LogitsDense/bias",
        }
        for name, parameter in self.named_parameters():
            parameter.data = self.as_torch(name, arrays[f"param0|{self.recorded_names[name]}"])

    def as_torch(self, name: str, array: np.ndarray) -> torch.Tensor:
        """Turns Flax's kernels, (in, out) and (height, width, in, out), into torch's form."""
        if self.recorded_names[name].endswith("/kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        return torch.tensor(array, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "lr", "encoder_lr", "weight_decay", "clip_norm", "schedule", "warmup"),
    [
        ("uvim2", 1e-3, 1e-4, 1e-6, None, "cosine", 4),
        ("uvim1", 4e-4, None, 4e-5, 1.0, "cosine", 4),
        ("reward_const", 1e-6, None, 0.0, None, "constant_with_warmup", 4),
        ("reward_nowarm", 3e-7, None, 0.0, None, "constant", 0),
        ("caption", 3e-4, 3e-5, 5e-6, None, "cosine", 4),
        ("freeze", 1e-2, None, 1e-2, 0.5, "linear", 2),
    ],
)
def test_the_whole_chain_equals_big_vision(name, lr, encoder_lr, weight_decay, clip_norm, schedule, warmup):
    """Gradient clipping, groups, optimiser and transformers' schedule together give the recorded updates."""
    arrays = golden("optax_chain.npz")
    model = RecordedModel(arrays)
    if name == "freeze":
        model.encoder.dense.requires_grad_(False)
        model.encoder.norm.requires_grad_(False)

    groups = parameter_groups(model, lr, encoder_lr, weight_decay, kernel_names(model))
    optimizer = BigVisionAdafactor(groups, lr=lr, beta2_cap=0.95)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=15)
    for step in range(15):
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = model.as_torch(key, arrays[f"grad|{model.recorded_names[key]}"][step])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        scheduler.step()
        if step in (0, 1, 2, 5, 14):
            for key, parameter in model.named_parameters():
                expected = model.as_torch(key, arrays[f"{name}|update|{step}|{model.recorded_names[key]}"])
                error = (parameter.detach() - before[key] - expected).abs() / expected.abs().max().clamp(min=1e-30)
                assert error.max() <= 4e-3, (key, step)  # the momentum rounded once to the other bfloat16
                assert error.quantile(0.95) <= 1e-5, (key, step)

    for key, parameter in model.named_parameters():
        final = model.as_torch(key, arrays[f"{name}|param_final|{model.recorded_names[key]}"])
        error = (parameter.detach() - final).abs()
        assert error.quantile(0.95) <= 4e-6, key
        assert error.max() <= 4e-6 + 0.04 * lr, key  # such an error fades over the next ten steps


@pytest.mark.parametrize(
    ("name", "schedule", "warmup"),
    [("uvim2", "cosine", 4), ("reward_const", "constant_with_warmup", 4), ("freeze", "linear", 2)],
)
def test_schedules_of_transformers_equal_big_vision(name, schedule, warmup):
    """So vision_rl needs no schedule of its own."""
    recorded = golden("optax_chain.npz")[f"{name}|schedule0"]
    optimizer = BigVisionAdafactor([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=15)
    factors = []
    for _ in recorded:
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert factors[0] == 0.0, "the first update of a warm-up changes nothing"
    np.testing.assert_allclose(factors, recorded, atol=2e-7)


def one_step(parameter: torch.Tensor, gradient: torch.Tensor, lr: float = 0.1, **options) -> torch.Tensor:
    parameter = nn.Parameter(parameter.clone())
    optimizer = BigVisionAdafactor([parameter], lr=lr, **options)
    parameter.grad = gradient
    optimizer.step()
    return parameter.detach()


def test_first_step_of_a_vector_is_a_tenth_of_the_sign():
    """beta2 is 0 in the first step, so u = g / |g|. Momentum of 0.9 starts from zero and leaves a tenth of that."""
    after = one_step(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, -1e-3, 0.0]), lr=0.5)
    torch.testing.assert_close(after, torch.tensor([1 - 0.05, 1 + 0.05, 1.0]))


def test_factored_step_by_hand():
    """g = [[1, 2], [3, 4]]: g^2 has row means 2.5 and 12.5, column means 5 and 10, and the mean 7.5."""
    after = one_step(
        torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), lr=1.0, momentum=None, min_dim_size_to_factor=2
    )
    u = [
        [1 / (2.5 / 7.5 * 5) ** 0.5, 2 / (2.5 / 7.5 * 10) ** 0.5],
        [3 / (12.5 / 7.5 * 5) ** 0.5, 4 / (12.5 / 7.5 * 10) ** 0.5],
    ]
    torch.testing.assert_close(after, -torch.tensor(u))


def test_second_moments_forget_with_the_step_to_the_minus_0_8():
    updates, _ = updates_of(np.array([[1.0], [2.0]]), momentum=None)
    beta2 = 1 - 2**-0.8
    np.testing.assert_allclose(updates[1], 2 / np.sqrt(beta2 * 1 + (1 - beta2) * 4), rtol=1e-6)


def test_momentum_decay_is_rounded_to_the_dtype_of_the_momentum():
    """As in jitted JAX, 0.9 is 0.8984375 in bfloat16. The state is rounded, the update is not."""
    updates, state = updates_of(np.ones((2, 1)))
    kept = torch.tensor(0.1).bfloat16().item()
    np.testing.assert_allclose(updates[1], 0.1 + 0.8984375 * kept, rtol=1e-6)
    assert state["momentum"].dtype == torch.bfloat16


def test_without_momentum_there_is_no_momentum_in_memory():
    _, state = updates_of(np.ones((1, 3)), momentum=None)
    assert set(state) == {"step", "v"}


def test_clipping_limits_the_rms_of_an_update():
    updates, _ = updates_of(np.array([[1.0, 1.0], [30.0, 1.0]]), momentum=None, clipping_threshold=0.5)
    np.testing.assert_allclose(np.sqrt(np.mean(updates[1] ** 2)), 0.5, rtol=1e-6)


def test_factored_state_is_a_row_and_a_column():
    _, state = updates_of(np.ones((1, 64, 128)))
    assert state["row"].numel() + state["col"].numel() == 64 + 128
    assert state["row"].dtype == state["col"].dtype == torch.float32
    assert state["momentum"].shape == (64, 128)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), None),
        ((4096,), None),
        ((31, 40), None),
        ((32, 40), (1, 0)),
        ((40, 33), (0, 1)),
        ((34, 34), (1, 0)),
        ((12, 64, 768), (2, 1)),
        ((768, 12, 64), (0, 2)),
        ((768, 3, 16, 16), None),  # a patch embedding
    ],
)
def test_the_two_largest_axes_are_factored_if_the_second_has_32(shape, axes):
    assert factored_axes(shape) == axes


def test_gradients_of_zeros_change_nothing_and_make_no_nan():
    gradients = np.zeros((3, 40, 33))
    for options in OPTIONS.values():
        updates, _ = updates_of(gradients, **options)
        assert not updates.any()


def test_gradients_of_zeros_between_others_make_no_nan():
    gradients = np.random.default_rng(0).normal(size=(6, 40, 33))
    gradients[2:4] = 0
    for options in OPTIONS.values():
        updates, _ = updates_of(gradients, **options)
        assert np.isfinite(updates).all()


def test_weight_decay_follows_the_schedule_but_not_the_learning_rate():
    for lr in (1e-3, 1e-1):
        parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        optimizer = BigVisionAdafactor([parameter], lr=lr, weight_decay=0.01)
        scheduler = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=2)
        expected = 2.0
        for factor in (0.0, 0.5, 1.0, 1.0):
            parameter.grad = torch.zeros(1, dtype=torch.float64)
            optimizer.step()
            scheduler.step()
            expected -= factor * 0.01 * expected
            assert parameter.item() == pytest.approx(expected, rel=1e-7)


def test_a_learning_rate_set_by_hand_schedules_weight_decay():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = BigVisionAdafactor([parameter], lr=0.4, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 0.1
    parameter.grad = torch.zeros(1)
    optimizer.step()
    assert parameter.item() == pytest.approx(1 - 0.25 * 0.1)


def test_a_group_with_learning_rate_zero_does_not_move():
    assert one_step(torch.ones(3), torch.ones(3), lr=0.0, weight_decay=0.1).eq(1).all()


def test_groups_added_later_have_their_own_schedule_and_rate():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = BigVisionAdafactor([first], lr=0.1, momentum=None)
    optimizer.add_param_group({"params": [second], "lr": 0.01})
    first.grad, second.grad = torch.ones(1), torch.ones(1)
    optimizer.step()
    assert first.item() == pytest.approx(0.9)
    assert second.item() == pytest.approx(0.99)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 0.01]


def test_a_view_equals_reshaping_by_hand():
    """A query kernel with 2 heads of 33 numbers is (66, 40) in torch and (40, 2, 33) in the reference."""
    gradients = torch.randn(4, 66, 40, generator=torch.Generator().manual_seed(0))
    weight, kernel = nn.Parameter(torch.zeros(66, 40)), nn.Parameter(torch.zeros(40, 2, 33))
    plain = nn.Parameter(torch.zeros(66, 40))
    optimizers = [
        BigVisionAdafactor([weight], lr=0.1, view_shapes={weight: (2, 33, 40)}),
        BigVisionAdafactor([kernel], lr=0.1),
        BigVisionAdafactor([plain], lr=0.1),
    ]
    for gradient in gradients:
        weight.grad, plain.grad = gradient.clone(), gradient.clone()
        kernel.grad = gradient.view(2, 33, 40).permute(2, 0, 1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(weight.view(2, 33, 40), kernel.permute(1, 2, 0), rtol=1e-6, atol=1e-7)
    assert (weight - plain).abs().max() > 1e-3, "the two layouts differ, or the view is of no use"


def run_steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator) * 1e-3
            parameter.grad = gradient.to(parameter)
        optimizer.step()


def three_parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(), (64,), (66, 40)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("momentum_dtype", [torch.bfloat16, torch.float32])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(dtype, momentum_dtype):
    """torch's own load_state_dict would cast the state to the parameter's dtype; in float16 that gives NaN here."""

    def build(parameters):
        return BigVisionAdafactor(
            parameters,
            lr=0.01,
            weight_decay=1e-3,
            momentum_dtype=momentum_dtype,
            view_shapes={parameters[2]: (2, 33, 40)},
        )

    straight = three_parameters(dtype)
    run_steps(straight, build(straight), range(6))

    first = three_parameters(dtype)
    interrupted = build(first)
    run_steps(first, interrupted, range(3))
    file = io.BytesIO()
    torch.save({"weights": first, "optimizer": interrupted.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = [nn.Parameter(weight.detach().clone()) for weight in saved["weights"]]
    optimizer = build(resumed)
    optimizer.load_state_dict(saved["optimizer"])
    run_steps(resumed, optimizer, range(3, 6))
    for ours, expected in zip(resumed, straight, strict=True):
        assert expected.isfinite().all()
        assert torch.equal(ours, expected)


def test_a_loaded_state_dict_is_not_changed_by_further_steps():
    parameters = three_parameters(torch.float32)
    optimizer = BigVisionAdafactor(parameters, lr=0.01)
    run_steps(parameters, optimizer, range(2))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    run_steps(parameters, optimizer, range(2, 4))
    for index, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(saved["state"][index][name]), torch.as_tensor(value)), name


def test_a_copy_of_the_optimizer_keeps_its_views():
    weight = nn.Parameter(torch.zeros(66, 40))
    optimizer = copy.deepcopy(BigVisionAdafactor([weight], lr=0.1, view_shapes={weight: (2, 33, 40)}))
    (copied,) = optimizer.param_groups[0]["params"]
    copied.grad = torch.ones(66, 40)
    optimizer.step()
    assert optimizer.state[copied]["momentum"].shape == (2, 33, 40)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_get_the_float32_update_rounded_once(dtype):
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (
        torch.randn(64, 48, generator=generator).to(dtype),
        torch.randn(64, 48, generator=generator).to(dtype),
    )
    after = one_step(weight, gradient, lr=0.01, weight_decay=0.1)
    expected = one_step(weight.float(), gradient.float(), lr=0.01, weight_decay=0.1)
    assert after.dtype == dtype
    assert torch.equal(after, expected.to(dtype))


def test_a_transposed_weight_is_updated_in_place():
    storage = torch.zeros(40, 33)
    transposed = nn.Parameter(storage.t())
    transposed.grad = torch.randn(33, 40, generator=torch.Generator().manual_seed(0))
    BigVisionAdafactor([transposed], lr=0.1).step()
    assert torch.equal(storage.t(), one_step(torch.zeros(33, 40), transposed.grad))
    assert storage.any()


class Operations(TorchDispatchMode):
    """Counts the operations that torch is asked for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_a_step_asks_for_few_operations_however_many_parameters_there_are():
    """A thin ViT-S with a decoder of 6 layers. Updated one by one, its parameters would take 7,000 operations."""
    decoder = VisionDecoderConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
    )
    model = vision_encoder_decoder(vit_encoder(64, 16, 32, 12, 2, 64), VisionDecoderForCausalLM(decoder), 0, 0)
    groups = parameter_groups(model, 0.1, 0.01, weight_decay=0.1, decay_names=kernel_names(model))
    optimizer = BigVisionAdafactor(groups, lr=0.1, clipping_threshold=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with Operations() as operations:
        optimizer.step()
    assert len(list(model.parameters())) == 311
    assert operations.count < 600


def test_parameters_without_a_gradient_are_left_alone():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = BigVisionAdafactor([used, unused], lr=0.1, weight_decay=0.1)
    used.grad = torch.ones(3)
    optimizer.step()
    assert unused.eq(1).all() and not used.eq(1).any()
    assert unused not in optimizer.state


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    parameter = nn.Parameter(torch.tensor(3.0))
    optimizer = BigVisionAdafactor([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameter**2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() == pytest.approx(3.0 - 0.1 * 0.1)


def test_gradients_may_be_views_of_one_bucket():
    """As DDP makes them with `gradient_as_bucket_view`. Whole trainings under DDP are in test_distributed.py."""
    model = nn.Sequential(OrderedDict(encoder=nn.Linear(40, 36), decoder=nn.Linear(36, 2)))
    alone = copy.deepcopy(model)
    bucket = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))
    start = 0
    for parameter in model.parameters():
        parameter.grad = bucket[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    for network in (model, alone):
        optimizer = BigVisionAdafactor(parameter_groups(network, 0.1, encoder_learning_rate=0.01), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=False)
            network(torch.ones(3, 40)).square().sum().backward()
            optimizer.step()
    assert bucket.any()
    for ours, expected in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_the_same_and_resumes_from_a_state_on_the_cpu():
    here = three_parameters(torch.float32)
    there = [nn.Parameter(parameter.detach().cuda()) for parameter in here]
    optimizer, gpu_optimizer = [BigVisionAdafactor(parameters, lr=0.01, momentum=None) for parameters in (here, there)]
    run_steps(here, optimizer, range(3))
    run_steps(there, gpu_optimizer, range(3))
    gpu_optimizer.load_state_dict(optimizer.state_dict())
    run_steps(here, optimizer, range(3, 5))
    run_steps(there, gpu_optimizer, range(3, 5))
    for ours, expected in zip(there, here, strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": -1.0}, "lr is -1.0, but must be 0 or more"),
        ({"lr": float("nan")}, "lr is nan, but must be 0 or more"),
        ({"beta2_cap": 0.0}, "beta2_cap is 0.0, but must be above 0"),
        ({"momentum": 1.0}, "momentum is 1.0, but must be at least 0 and below 1, or None"),
        ({"clipping_threshold": 0.0}, "clipping_threshold is 0.0, but must be above 0, or None"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, but must be 0 or more"),
        ({"min_dim_size_to_factor": 0}, "min_dim_size_to_factor is 0, but must be at least 1"),
        ({"momentum_dtype": torch.int8}, "momentum_dtype is torch.int8, but must be a floating dtype"),
    ],
)
def test_options_out_of_range_are_refused_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        BigVisionAdafactor([nn.Parameter(torch.zeros(2))], **{"lr": 0.1, **options})


def test_a_view_of_another_size_is_refused():
    parameter = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="same number of elements"):
        BigVisionAdafactor([parameter], lr=0.1, view_shapes={parameter: (2, 4)})


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        BigVisionAdafactor(embedding.parameters(), lr=0.1).step()


def siglip_and(decoder_config) -> VisionEncoderDecoderModel:
    encoder = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        vision_use_head=False,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder_config)
    return VisionEncoderDecoderModel(config=config)


def siglip_gpt2() -> VisionEncoderDecoderModel:
    return siglip_and(GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=1, n_head=2))


def names_by_group(model: nn.Module, groups: list[dict]) -> dict[str, set[str]]:
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: {name_of[parameter] for parameter in group["params"]} for group in groups}


def test_groups_are_encoder_and_decoder_with_and_without_decay():
    model = siglip_gpt2()
    groups = parameter_groups(model, 3e-4, 3e-5, weight_decay=5e-6, decay_names=kernel_names(model))
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("decoder", 3e-4, 5e-6),
        ("decoder_no_decay", 3e-4, 0.0),
        ("encoder", 3e-5, 5e-6),
        ("encoder_no_decay", 3e-5, 0.0),
    ]
    names = names_by_group(model, groups)
    assert set.union(*names.values()) == {name for name, _ in model.named_parameters()}
    assert sum(map(len, names.values())) == len(list(model.parameters()))
    for part in ("encoder", "encoder_no_decay"):
        assert all(name.startswith("encoder.") for name in names[part])
    assert not any(name.startswith("encoder.") for name in names["decoder"] | names["decoder_no_decay"])
    assert "enc_to_dec_proj.weight" in names["decoder"]
    assert {
        "decoder.transformer.h.0.attn.c_attn.weight",
        "decoder.transformer.h.0.crossattention.q_attn.weight",
    } <= names["decoder"]
    assert {"decoder.transformer.wte.weight", "decoder.transformer.wpe.weight"} <= names["decoder_no_decay"]
    assert any(name.endswith("patch_embedding.weight") for name in names["encoder"])
    assert any(name.endswith("position_embedding.weight") for name in names["encoder_no_decay"])
    for no_decay in ("encoder_no_decay", "decoder_no_decay"):
        assert all(
            ".bias" in name or "norm" in name or "ln_" in name or "emb" in name or "wte" in name or "wpe" in name
            for name in names[no_decay]
        )


def test_the_learning_rate_that_trainer_logs_is_the_decoders():
    model = siglip_gpt2()
    optimizer = BigVisionAdafactor(parameter_groups(model, 3e-4, 3e-5), lr=3e-4)
    assert get_scheduler("constant", optimizer).get_last_lr()[0] == 3e-4


def test_without_weight_decay_there_are_two_groups():
    groups = parameter_groups(siglip_gpt2(), 1e-3)
    assert [(group["name"], group["lr"]) for group in groups] == [("decoder", 1e-3), ("encoder", 1e-3)]


def test_the_encoder_inside_a_bert_decoder_is_part_of_the_decoder():
    bert = BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = siglip_and(bert)
    names = names_by_group(model, parameter_groups(model, 1e-3, 1e-4))
    assert any(name.startswith("decoder.bert.encoder.layer.0") for name in names["decoder"])


def test_an_output_layer_tied_to_the_embedding_is_not_decayed():
    model = siglip_gpt2()
    assert model.decoder.lm_head.weight is model.decoder.transformer.wte.weight
    assert not {"decoder.lm_head.weight", "decoder.transformer.wte.weight"} & kernel_names(model)


def test_kernels_are_weights_of_linear_and_convolution_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm(4), nn.Linear(4, 4), nn.Embedding(5, 4), nn.Conv1d(4, 4, 1))
    assert kernel_names(model) == {"0.weight", "2.weight", "4.weight"}
    assert kernel_names(nn.Linear(2, 2)) == {"weight"}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")
def test_groups_of_a_lora_model_are_its_adapters_and_nothing_frozen():
    model = get_peft_model(siglip_gpt2(), LoraConfig(target_modules=["q_proj", "c_attn"], fan_in_fan_out=True))
    groups = parameter_groups(model, 1e-3, 1e-4, weight_decay=0.1, decay_names=kernel_names(model))
    assert [(group["name"], group["lr"]) for group in groups] == [("decoder", 1e-3), ("encoder", 1e-4)]
    names = names_by_group(model, groups)
    assert all(name.startswith("base_model.model.encoder.") and "lora_" in name for name in names["encoder"])
    assert all(name.startswith("base_model.model.decoder.") and "lora_" in name for name in names["decoder"])
    BigVisionAdafactor(groups, lr=1e-3, view_shapes=attention_view_shapes(model))


def test_an_encoder_learning_rate_without_a_trainable_encoder_is_refused():
    model = siglip_gpt2()
    model.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no trainable parameter under `encoder\.`"):
        parameter_groups(model, 1e-3, encoder_learning_rate=1e-4)
    with pytest.raises(ValueError, match=r"no trainable parameter under `encoder\.`"):
        parameter_groups(nn.Linear(2, 2), 1e-3, encoder_learning_rate=1e-4)


def test_weight_decay_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"decay_names=kernel_names\(model\)"):
        parameter_groups(siglip_gpt2(), 1e-3, weight_decay=0.1)


SMALL = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.mark.parametrize(
    ("model_class", "config_class", "output"),
    [
        (SiglipVisionModel, SiglipVisionConfig, "out_proj"),
        (ViTModel, ViTConfig, "o_proj"),
        (Dinov2Model, Dinov2Config, "o_proj"),
    ],
)
def test_attention_of_transformers_encoders_is_viewed_per_head(model_class, config_class, output):
    model = model_class(config_class(**SMALL))
    shapes = attention_view_shapes(model)
    assert len(shapes) == 2 * 7  # weights and biases of queries, keys, values; weight of the output
    expected = {"weight": (3, 8, 24), "bias": (3, 8)}
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")[-2:]
        if layer in ("q_proj", "k_proj", "v_proj"):
            assert shapes[parameter] == expected[kind]
        elif name.endswith(f"{output}.weight") and parameter in shapes:
            assert shapes[parameter] == (24, 3, 8)
        else:
            assert parameter not in shapes


class Attention(nn.Module):
    """An attention named as in vision_rl's decoder, but with 2 heads for keys and values to 4 for queries."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.q_proj, self.out_proj = nn.Linear(24, 32, bias=False), nn.Linear(32, 24, bias=False)
        self.k_proj, self.v_proj = nn.Linear(24, 16, bias=False), nn.Linear(24, 16, bias=False)


def test_keys_and_values_may_have_fewer_heads_than_queries():
    attention = Attention()
    assert attention_view_shapes(attention) == {
        attention.q_proj.weight: (4, 8, 24),
        attention.k_proj.weight: (2, 8, 24),
        attention.v_proj.weight: (2, 8, 24),
        attention.out_proj.weight: (24, 4, 8),
    }


def test_models_without_projections_by_name_keep_the_shapes_of_torch():
    assert attention_view_shapes(siglip_gpt2().decoder) == {}


# --- an optimizer of the user's own ---------------------------------------------------------------------------------


def trainer_with(folder, model, optimizer, **options) -> VisionMLETrainer:
    args = VisionMLEConfig(str(folder), max_steps=1, use_cpu=True, report_to="none", save_strategy="no", **options)
    data = {"train_dataset": text_dataset(16), "processing_class": text_processor()}
    return VisionMLETrainer(model, args, optimizers=(optimizer, None), **data)


def test_an_optimizer_with_none_of_the_models_parameters_is_refused(tmp_path):
    model, other = tiny_model(), tiny_model()
    with pytest.raises(ValueError, match="none of the parameters that learn"):
        trainer_with(tmp_path, model, torch.optim.AdamW(other.parameters()))


def test_an_optimizer_that_lacks_parameters_is_told_with_the_first_of_them(tmp_path, caplog):
    model = tiny_model()
    trainer_with(tmp_path, model, torch.optim.AdamW(model.decoder.parameters())).train()
    assert any("lacks" in record.message and "such as encoder." in record.message for record in caplog.records)


def test_an_encoder_learning_rate_beside_an_own_optimizer_is_refused(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match="encoder_learning_rate has no effect beside an optimizer"):
        trainer_with(tmp_path, model, torch.optim.AdamW(model.parameters()), encoder_learning_rate=0.0)
