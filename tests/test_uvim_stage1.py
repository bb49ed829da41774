"""UViM's stage I: against the authors' JAX code, its parts by hand, its codebook in one process and in two."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import golden
from tiny import recompute_activations
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModel

from vision_rl.models.uvim import UViMConfig, UViMModel, load_big_vision_stage1
from vision_rl.models.uvim.codebook import (
    assigned_sums,
    nearest_codewords,
    split_most_frequent,
    split_rare,
    unit_codewords,
)
from vision_rl.models.uvim.conversion import stage1_entries
from vision_rl.models.uvim.modeling import (
    ClassPatchStem,
    PatchHead,
    PatchStem,
    drop_codes,
    from_patches,
    resize_grid,
    to_patches,
)


pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "codebook_size": 12,
    "code_dim": 8,
    "code_length": 4,
    "code_dropout": "none",
}
OUTPUTS = {"semantics": 5, "instances": 6}
TASKS = ("panoptic", "color")


def tiny_config(task: str = "panoptic", **changes) -> UViMConfig:
    outputs = {"outputs": OUTPUTS} if task == "panoptic" else {"outputs": {"color": 3}, "regression": True}
    return UViMConfig(**{**SIZES, **outputs, **changes})


def tiny_model(task: str = "panoptic", **changes) -> UViMModel:
    """A model in eval mode. Its heads are random, because new ones are zero."""
    torch.manual_seed(0)
    model = UViMModel(tiny_config(task, **changes)).eval()
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight, std=0.3)
    return model


def tiny_batch(task: str = "panoptic", images: int = 2, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.rand(images, 3, 16, 16, generator=generator) * 2 - 1
    if task == "color":
        return pixel_values, {"color": torch.rand(images, 16, 16, 3, generator=generator) * 2 - 1}
    shape = (images, 16, 16)
    return pixel_values, {name: torch.randint(-1, n + 1, shape, generator=generator) for name, n in OUTPUTS.items()}


def part_of(batch, rows: slice):
    pixel_values, targets = batch
    return pixel_values[rows], {name: target[rows] for name, target in targets.items()}


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The reference's one-hots: `(...)` becomes `(..., C)`, all zero for a class that is not there."""
    return (labels[..., None] == torch.arange(num_classes)).float()


# --- the authors' code ----------------------------------------------------------------------------------------------


@pytest.fixture(params=TASKS)
def arrays(request):
    return golden("uvim_stage1_color.npz") if request.param == "color" else golden("uvim_stage1_panoptic.npz")


@pytest.fixture
def reference(arrays):
    """Our model with the reference's weights, and the reference's inputs."""
    model = load_big_vision_stage1({name: arrays[name] for name in arrays.files if name[:6] in ("params", "state/")})
    model.config.commitment_weight = 0.25
    labels = torch.from_numpy(arrays["in/labels"])
    if model.config.regression:
        targets = {"color": labels}
    else:
        targets = {"semantics": labels[..., 0], "instances": labels[..., 1]}
    return model, torch.from_numpy(arrays["in/image"]).permute(0, 3, 1, 2), targets  # NHWC -> NCHW


def assert_near(ours: torch.Tensor, theirs: np.ndarray, atol: float):
    np.testing.assert_allclose(ours.detach(), theirs, rtol=0, atol=atol)


def test_stems_are_those_of_the_reference(arrays, reference):
    model, _, targets = reference
    for name, stem in model.stems.items():
        target = targets[name] if model.config.regression else targets[name][..., None].long()
        assert_near(stem(to_patches(target, 8)), arrays[f"out/stem_{name}"], 1e-5)


def test_codes_and_what_is_quantised_are_those_of_the_reference(arrays, reference):
    model, pixel_values, targets = reference
    output = model(pixel_values, targets)
    assert_near(model.codebook.codewords, arrays["out/codewords"], 1e-6)
    assert_near(output.bottleneck, arrays["out/bottleneck"], 1e-5)
    np.testing.assert_array_equal(output.codes, arrays["out/code"])
    np.testing.assert_array_equal(model.encode(targets, pixel_values), arrays["out/code"])


def test_logits_of_encoded_and_of_given_codes_are_those_of_the_reference(arrays, reference):
    model, pixel_values, targets = reference
    logits = {"": model(pixel_values, targets, output_logits=True).logits}
    for which in ("2", "3"):  # those of the third contain a -1
        logits[which] = model.decode(torch.from_numpy(arrays[f"in/code{which}"]), pixel_values)
    for which, outputs in logits.items():
        for name, maps in outputs.items():
            assert_near(to_patches(maps, 8), arrays[f"out/logits{which}_{name}"], 3e-5)


def test_predictions_are_those_of_the_reference(arrays, reference):
    model, pixel_values, _ = reference
    outputs = model.decode(torch.from_numpy(arrays["in/code2"]), pixel_values)
    if model.config.regression:
        assert_near(outputs["color"].clamp(-1, 1), arrays["out/pred2"], 3e-5)
    else:
        np.testing.assert_array_equal(outputs["instances"].argmax(-1), arrays["out/pred2"][..., 1])


def test_losses_are_those_of_the_reference(arrays, reference):
    model, pixel_values, targets = reference
    output = model(pixel_values, targets)
    for name, loss in output.reconstruction_losses.items():
        assert_near(loss, arrays[f"out/loss_{name}_mean"], 1e-5)
    assert_near(output.commitment_loss, arrays["out/loss_commitment"], 1e-5)
    assert_near(output.loss, arrays["out/train_loss"], 1e-5)


def test_gradients_are_those_of_the_reference(arrays, reference):
    model, pixel_values, targets = reference
    model(pixel_values, targets).loss.backward()
    names = {name.removeprefix("grad/") for name in arrays.files if name.startswith("grad/")}
    for entry in stage1_entries(model):
        if entry.name in names:
            expected = entry.to_torch(arrays[f"grad/{entry.name}"])
            torch.testing.assert_close(
                entry.tensor.grad, expected, rtol=0, atol=2e-6 * expected.abs().max().item(), msg=entry.name
            )
            names.remove(entry.name)
    assert not names


def test_the_codebook_after_a_step_is_that_of_the_reference(arrays, reference):
    model, pixel_values, targets = reference
    model.train()
    model(pixel_values, targets)
    model.update_codebook()
    assert_near(model.codebook.dictionary, arrays["out/state_after/dictionary"], 1e-5)
    assert_near(model.codebook.counts, arrays["out/state_after/counts"], 1e-6)


def test_a_split_code_is_that_of_the_reference(arrays):
    dictionary, counts, noise = (
        torch.tensor(arrays[name]) for name in ("state/dictionary", "split/in_counts", "split/noise")
    )
    split_most_frequent(dictionary, counts, noise)
    assert_near(dictionary, arrays["split/out_dictionary"], 1e-7)
    assert_near(counts, arrays["split/out_counts"], 1e-7)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_grids_are_resized_as_in_the_reference(arrays, direction):
    before, after = (torch.from_numpy(arrays[f"resize/{end}_{direction}"]) for end in ("in", "out"))
    assert_near(resize_grid(before.flatten(1, 2), after.shape[1]), after.flatten(1, 2), 1e-6)


# --- patches --------------------------------------------------------------------------------------------------------


def test_patches_and_their_pixels_are_ordered_row_by_row():
    image = torch.arange(16).view(1, 4, 4, 1)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert to_patches(image, 2)[0, :, 0].tolist() == expected


def test_channels_come_before_the_pixels_of_a_patch():
    image = torch.arange(12).view(1, 2, 2, 3)  # one patch, three channels
    assert to_patches(image, 2)[0, 0].tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@given(grid=st.integers(1, 4), patch=st.integers(1, 4), channels=st.integers(1, 3), images=st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_patches_are_put_together_again(grid, patch, channels, images):
    maps = torch.randn(images, grid * patch, grid * patch, channels)
    assert torch.equal(from_patches(to_patches(maps, patch), patch), maps)


def test_shrinking_a_grid_averages_and_growing_interpolates():
    half = torch.tensor([[3.0, 3, 1, 0], [0, 1, 3, 3]]) / 7  # a triangle two pixels wide, cut at the border
    twice = torch.tensor([[4.0, 0], [3, 1], [1, 3], [0, 4]]) / 4
    for matrix in (half, twice):
        new, old = matrix.shape
        grid = torch.randn(old, old)
        expected = matrix @ grid @ matrix.T
        resized = resize_grid(grid.view(1, -1, 1), new).view(new, new)
        torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)


def test_the_stem_of_classes_is_the_linear_layer_over_their_one_hots():
    torch.manual_seed(0)
    by_rows, by_one_hots = ClassPatchStem(7, 9, 5), PatchStem(7, 9, 5)
    with torch.no_grad():
        for parameter, other in zip(by_rows.parameters(), by_one_hots.parameters(), strict=True):
            other.copy_(parameter.normal_())
    labels = torch.randint(-2, 10, (2, 4, 1, 9))  # -2, -1, 7, 8 and 9 are no classes
    outputs = by_rows(labels), by_one_hots(one_hot(labels[:, :, 0], 7).transpose(-1, -2))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    for parameter, other in zip(by_rows.parameters(), by_one_hots.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-5)


# --- the loss -------------------------------------------------------------------------------------------------------


def slow_losses(model: UViMModel, output, targets) -> dict[str, torch.Tensor]:
    """The loss as the reference writes it: from the logits of all pixels and one-hots, a mean over all positions."""
    losses = {}
    for name, logits in output.logits.items():
        if model.config.regression:
            losses[name] = (logits - targets[name]).square().mean()
        else:
            labels = one_hot(targets[name], model.config.outputs[name])
            losses[name] = -(labels * logits.log_softmax(-1)).sum(-1).mean()
    return losses


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_and_its_gradients_are_those_of_the_definition(task):
    model, (pixel_values, targets) = tiny_model(task), tiny_batch(task)
    output = model(pixel_values, targets, output_logits=True)
    expected = slow_losses(model, output, targets)
    for name in expected:
        torch.testing.assert_close(output.reconstruction_losses[name], expected[name], rtol=1e-5, atol=0)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(output.loss, parameters, retain_graph=True)
    expected_gradients = torch.autograd.grad(sum(expected.values()), parameters)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


def test_pixels_without_a_class_cost_nothing_but_count_in_the_mean():
    model, (pixel_values, targets) = UViMModel(tiny_config()).eval(), tiny_batch()
    targets["semantics"][:] = 2
    targets["semantics"][:, :4] = -1  # a quarter of the image
    targets["instances"][:] = 6  # a class beyond the last one
    losses = model(pixel_values, targets).reconstruction_losses
    assert losses["semantics"].item() == pytest.approx(0.75 * np.log(5))  # new heads find every class equally likely
    assert losses["instances"].item() == 0


def test_the_commitment_loss_counts_by_its_weight():
    batch = tiny_batch()
    plain, committed = (tiny_model(commitment_weight=weight)(*batch) for weight in (0.0, 0.5))
    nearest = tiny_model().codebook.codewords[plain.codes]
    expected = (plain.bottleneck - nearest).square().mean()
    torch.testing.assert_close(plain.commitment_loss, expected)
    torch.testing.assert_close(committed.loss, plain.loss + 0.5 * expected)


def test_no_logits_are_kept_for_the_backward_pass():
    model, (pixel_values, targets) = tiny_model(outputs={**OUTPUTS, "semantics": 50}, hidden_size=8), tiny_batch()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        model(pixel_values, targets).loss.backward()
    assert sizes and max(sizes) < 50 * 16 * 16  # the logits of one image


# --- the bottleneck -------------------------------------------------------------------------------------------------


def test_what_is_quantised_is_standardised_with_epsilon_1e_5():
    model, batch = tiny_model(), tiny_batch()
    with torch.no_grad():
        for parameter in model.encoder_head.parameters():
            parameter *= 1e-2  # makes the variance so small that epsilon matters
        bottleneck = model(*batch).bottleneck
        head = []
        model.encoder_head.register_forward_hook(lambda module, inputs, output: head.append(output))
        model(*batch)
    x = head[0]
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(bottleneck, expected, rtol=0, atol=1e-5)


def test_a_codeword_is_the_direction_of_its_sum_and_the_nearest_one_is_taken():
    torch.manual_seed(0)
    dictionary, counts, x = torch.randn(20, 6), torch.rand(20) + 0.1, torch.randn(3, 7, 6)
    vectors = unit_codewords(dictionary, counts)
    torch.testing.assert_close(vectors, F.normalize(dictionary, dim=1))
    assert torch.equal(nearest_codewords(x, vectors), torch.cdist(x, vectors).argmin(-1))


def test_of_equally_near_codewords_the_first_is_taken():
    vectors = F.normalize(torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 0]]), dim=1)
    assert nearest_codewords(torch.tensor([[[3.0, 0.1]]]), vectors).tolist() == [[1]]


def test_codes_are_found_in_float32_also_under_autocast():
    torch.manual_seed(0)
    vectors, x = F.normalize(torch.randn(500, 16), dim=1), torch.randn(2, 50, 16)
    with torch.autocast("cpu", torch.bfloat16):
        codes = nearest_codewords(x, vectors)
    assert torch.equal(codes, nearest_codewords(x, vectors))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_codes_are_the_same_whatever_the_program_allows_its_products(precision):
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(64, 128), dim=1)
    vectors = torch.cat([vectors, F.normalize(vectors * (1 + 0.001 * torch.randn(64, 128)), dim=1)])  # split ones
    x = vectors.repeat(2, 1) + 1e-4 * torch.randn(256, 128)
    nearest = (x.double() @ vectors.double().T).argmax(-1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        codes = nearest_codewords(x, vectors)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(codes, nearest)
    assert torch.equal(codes, torch.arange(128).repeat(2))


def test_the_gradient_passes_the_codebook_straight_through():
    model, (pixel_values, targets) = tiny_model(), tiny_batch()
    output = model(pixel_values, targets)
    (gradient,) = torch.autograd.grad(output.loss, output.bottleneck)
    entering = model.codebook.codewords[output.codes].requires_grad_()
    x = model._read(entering, pixel_values)
    logits = {name: from_patches(head(x), 4) for name, head in model.heads.items()}
    output.logits = logits
    (expected,) = torch.autograd.grad(sum(slow_losses(model, output, targets).values()), entering)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)


def test_encoding_and_decoding_are_the_two_halves_of_the_model():
    for task in TASKS:
        model, (pixel_values, targets) = tiny_model(task), tiny_batch(task)
        output = model(pixel_values, targets, output_logits=True)
        codes = model.encode(targets, pixel_values)
        assert torch.equal(codes, output.codes) and codes.shape == (2, 4)
        decoded = model.decode(codes, pixel_values)
        for name, num_channels in model.config.outputs.items():
            assert decoded[name].shape == (2, 16, 16, num_channels)
            torch.testing.assert_close(decoded[name], output.logits[name], rtol=0, atol=1e-5)


def test_code_minus_one_is_the_last_codeword():
    model, (pixel_values, _) = tiny_model(), tiny_batch()
    codes = torch.tensor([[0, -1, 3, -1], [1, 2, -1, 4]])
    decoded = model.decode(codes, pixel_values), model.decode(codes % 12, pixel_values)
    torch.testing.assert_close(*decoded, rtol=0, atol=0)


# --- code dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["random", "ordered"])
def test_any_number_of_codes_is_dropped_equally_often_and_the_others_are_not_scaled(mode):
    torch.manual_seed(0)
    x = drop_codes(torch.full((10_000, 4, 2), 3.0), mode)
    assert set(x.unique().tolist()) == {0.0, 3.0}
    assert torch.equal(x[..., 0], x[..., 1])
    kept = x[..., 0] > 0  # (B, L)
    shares = torch.bincount(kept.sum(1)) / len(kept)
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.02)
    if mode == "random":
        torch.testing.assert_close(kept.float().mean(0), torch.full((4,), 0.5), rtol=0, atol=0.02)
        assert len(kept[kept.sum(1) == 2].unique(dim=0)) == 6  # each pair
    else:
        assert (kept[:, :-1] >= kept[:, 1:]).all()


def test_codes_are_dropped_in_training_only():
    batch = tiny_batch()
    model = tiny_model(code_dropout="random")
    losses = [model(*batch).loss.item() for _ in range(2)]
    model.train()
    assert losses[0] == losses[1]
    assert len({model(*batch).loss.item() for _ in range(5)}) > 1


# --- the codebook ---------------------------------------------------------------------------------------------------


def test_each_code_is_given_the_sum_and_the_number_of_its_vectors():
    x = torch.tensor([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]])
    sums = assigned_sums(x, torch.tensor([[2, 0], [2, 2]]), 4)
    assert sums.tolist() == [[3, 4, 1], [0, 0, 0], [13, 16, 3], [0, 0, 0]]


def slow_update(dictionary, counts, x, codes, seed: int, momentum=0.995, min_count=0.1):
    """The next state of a codebook, computed code by code and split by split."""
    dictionary, counts = dictionary.clone() * momentum, counts.clone() * momentum
    for vector, code in zip(x.flatten(0, 1), codes.flatten(), strict=True):
        dictionary[code] += vector
        counts[code] += 1
    generator = torch.Generator().manual_seed(seed)
    num_splits = 0
    while min(counts.tolist()) < min_count:
        most, least = counts.argmax().item(), counts.argmin().item()
        noise = 0.999 + 0.002 * torch.rand(dictionary.shape[1], generator=generator)
        dictionary[least], dictionary[most] = dictionary[most] * noise / 2, dictionary[most] / 2
        counts[least] = counts[most] = counts[most] / 2
        num_splits += 1
    return dictionary, counts, num_splits


def test_the_codebook_learns_running_sums_and_splits_rare_codes():
    model, splits = tiny_model().train(), []
    with torch.no_grad():
        model.codebook.counts[:3] = 0.09
    for step in range(4):
        before = model.codebook.dictionary.clone(), model.codebook.counts.clone()
        output = model(*tiny_batch(seed=step))
        assert torch.equal(model.codebook.dictionary, before[0])  # it changes only when the step is over
        model.update_codebook()
        *expected, num_splits = slow_update(*before, output.bottleneck.detach(), output.codes, seed=step)
        torch.testing.assert_close(model.codebook.dictionary, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.codebook.counts, expected[1])
        splits.append(num_splits)
    assert splits[0] > 1 and model.codebook.num_updates == 4


def test_a_split_code_and_its_copy_differ_by_at_most_a_thousandth():
    dictionary, counts = torch.randn(3, 1000), torch.tensor([5.0, 8.0, 0.01])
    whole = dictionary[1].clone()
    split_rare(dictionary, counts, 0.1, torch.Generator().manual_seed(0))
    assert counts.tolist() == [5, 4, 4]
    torch.testing.assert_close(dictionary[1], whole / 2, rtol=0, atol=0)
    ratio = dictionary[2] / dictionary[1]
    assert 0.999 <= ratio.min() < 0.9991 and 1.0009 < ratio.max() <= 1.001


def test_a_codebook_that_is_too_large_for_its_batches_is_an_error_and_no_endless_loop():
    with pytest.raises(RuntimeError, match="has 3 codes, more than such small batches can keep in use"):
        split_rare(torch.randn(3, 4), torch.tensor([0.15, 0.12, 0.05]), 0.1, torch.Generator())


def test_only_training_passes_teach_the_codebook():
    model, (pixel_values, targets) = tiny_model(), tiny_batch()
    model(pixel_values, targets)
    model.train()
    model.decode(model.encode(targets, pixel_values), pixel_values)
    with pytest.raises(RuntimeError, match="call the model in training mode first"):
        model.update_codebook()
    assert model.codebook.num_updates == 0


def test_the_use_of_the_codebook_is_reported():
    model = tiny_model().train()
    codes = torch.cat([model(*tiny_batch(seed=seed)).codes for seed in range(2)])
    counts = torch.bincount(codes.flatten(), minlength=12)
    metrics = model.update_codebook()
    assert metrics == {
        "codebook_max_ratio": pytest.approx(counts.max().item() / 16),
        "codebook_zeros_ratio": pytest.approx((counts == 0).float().mean().item()),
    }


def trained_codebook(splits: int, steps: int = 3) -> UViMModel:
    """The codebook after steps of 8 images each, in so many micro-batches."""
    model = tiny_model(min_code_count=0.995).train()  # every code that a step does not use is replaced
    for step in range(steps):
        batch = tiny_batch(images=8, seed=step)
        for i in range(splits):
            model(*part_of(batch, slice(8 * i // splits, 8 * (i + 1) // splits))).loss.backward()
        model.update_codebook()
    return model


@pytest.mark.parametrize("splits", [2, 4])
def test_accumulated_micro_batches_teach_the_codebook_what_the_whole_batch_does(splits):
    whole, accumulated = trained_codebook(1).codebook, trained_codebook(splits).codebook
    torch.testing.assert_close(accumulated.counts, whole.counts)
    torch.testing.assert_close(accumulated.dictionary, whole.dictionary, rtol=0, atol=1e-5)


def train_codebook_on_a_rank(rank: int, folder: str):
    """Like `trained_codebook`, with the images shared among 2 ranks in 2 micro-batches each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = tiny_model(min_code_count=0.995).train()
    ddp = DistributedDataParallel(model)  # DDP broadcasts buffers before every pass
    for step in range(3):
        batch = tiny_batch(images=8, seed=step)
        for i in range(2):
            start = 4 * rank + 2 * i
            ddp.require_backward_grad_sync = i == 1
            ddp(*part_of(batch, slice(start, start + 2))).loss.backward()
        model.update_codebook()
    torch.save(model.codebook.state_dict(), f"{folder}/rank{rank}.pt")
    dist.barrier()
    os._exit(0)  # at its end Python may abort in gloo's thread; trainers wait for that (trainer/ranks.py)


def test_two_ranks_teach_the_codebook_what_one_process_does(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=train_codebook_on_a_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
        process.kill()
    states = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    torch.testing.assert_close(states[0], dict(trained_codebook(1).codebook.state_dict()), rtol=1e-6, atol=1e-5)


def test_recomputed_layers_change_neither_gradients_nor_what_the_codebook_learns():
    results = []
    for recomputed in (False, True):
        model = tiny_model().train()
        if recomputed:
            recompute_activations(model)
        model(*tiny_batch()).loss.backward()
        model.update_codebook()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((gradients, dict(model.codebook.state_dict())))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_running_sums_stay_in_float32_and_are_not_learned_in_less(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    half = UViMModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.codebook.state_dict(), model.codebook.state_dict(), rtol=0, atol=0)
    pixel_values, targets = tiny_batch()
    logits = [each.decode(each.encode(targets, pixel_values), pixel_values)["semantics"] for each in (half, model)]
    assert (logits[0].argmax(-1) == logits[1].argmax(-1)).float().mean() > 0.7
    half.to(torch.bfloat16).train()(pixel_values, targets)
    with pytest.raises(RuntimeError, match="load the model in float32"):
        half.update_codebook()


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parameters"), [({}, 223_593_984), ({"outputs": {"color": 3}, "regression": True}, 132_701_184)]
)
def test_the_paper_s_models_have_223_6_and_132_7_million_parameters(changes, parameters):
    with torch.device("meta"):
        model = UViMModel(UViMConfig(**changes))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.codebook.dictionary.shape == (4096, 768)


def test_initial_weights_are_spread_as_in_the_reference():
    torch.manual_seed(0)
    model = UViMModel(tiny_config(hidden_size=256, code_dim=128, codebook_size=300, intermediate_size=512))
    for module, fan_in in (
        (model.encoder_head, 256),
        (model.decoder_stem, 128),
        (model.stems["semantics"], 5 * 16),
        (model.stems["instances"], 6 * 16),
    ):
        assert module.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)  # LeCun: variance 1 / fan-in
        assert module.weight.abs().max().item() <= 2 * fan_in**-0.5 / 0.8796  # a truncated normal
        assert not module.bias.any()
    for head in model.heads.values():
        assert isinstance(head, PatchHead) and not head.weight.any() and not head.bias.any()
    for vit in (model.encoder, model.decoder):
        layer = vit.encoder.layers[0]
        bound = (6 / (256 + 256)) ** 0.5  # Xavier uniform
        assert 0.99 * bound < layer.self_attn.q_proj.weight.abs().max().item() <= bound
        assert not layer.self_attn.q_proj.bias.any()
        assert layer.mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.2)
        assert vit.embeddings.position_embedding.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert model.codebook.dictionary.std().item() == pytest.approx(300**-0.5, rel=0.02)
    assert (model.codebook.counts == 1).all() and model.codebook.num_updates == 0


@pytest.mark.parametrize("task", TASKS)
def test_a_saved_model_is_loaded_by_the_auto_class_with_its_codebook(task, tmp_path):
    model = tiny_model(task).train()
    model(*tiny_batch(task))
    model.update_codebook()
    model.eval().save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, UViMModel) and not any(report.values())
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    batch = tiny_batch(task)
    torch.testing.assert_close(loaded(*batch).loss, model(*batch).loss, rtol=0, atol=0)
    assert AutoConfig.from_pretrained(tmp_path).outputs == model.config.outputs


def test_weights_that_a_checkpoint_lacks_are_initialised_and_the_others_kept(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    other = UViMModel.from_pretrained(
        tmp_path, codebook_size=20, outputs={**OUTPUTS, "semantics": 9}, ignore_mismatched_sizes=True
    )
    assert not other.heads["semantics"].weight.any() and other.stems["semantics"].weight.any()
    assert other.codebook.counts.tolist() == [1] * 20
    torch.testing.assert_close(other.encoder.state_dict(), model.encoder.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.heads["instances"].weight, model.heads["instances"].weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 18}, "18 cannot be cut into patches of 4"),
        ({"code_length": 8}, "8 does not make a square grid"),
        ({"num_attention_heads": 3}, "16 cannot be split among 3 attention heads"),
        ({"code_dropout": "all"}, "must be one of random, ordered, none"),
        ({"outputs": {}}, "outputs is empty"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_inputs_that_are_not_the_model_s_are_refused():
    model, (pixel_values, targets) = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match=r"pixel_values has the shape \(2, 3, 8, 8\); this model reads \(B, 3, 16"):
        model(pixel_values[:, :, :8, :8], targets)
    with pytest.raises(ValueError, match=r"targets has \['semantics'\]; this model predicts \['instances', 'sem"):
        model(pixel_values, {"semantics": targets["semantics"]})
    with pytest.raises(
        ValueError, match=r"'semantics'\] is torch.int64 \(2, 16, 8\); it must be integers \(2, 16, 16"
    ):
        model(pixel_values, {**targets, "semantics": targets["semantics"][:, :, :8]})
    with pytest.raises(ValueError, match="'semantics'\\] is torch.float32 .*; it must be integers"):
        model(pixel_values, {**targets, "semantics": targets["semantics"].float()})
    with pytest.raises(ValueError, match=r"codes has the shape \(2, 5\); for 2 images it must be \(2, 4\)"):
        model.decode(torch.zeros(2, 5, dtype=torch.long), pixel_values)
    colour, (_, colours) = tiny_model("color"), tiny_batch("color")
    with pytest.raises(ValueError, match=r"it must be floats \(2, 16, 16, 3\)"):
        colour(pixel_values, {"color": colours["color"].permute(0, 3, 1, 2)})


def test_the_configuration_of_another_model_is_refused_before_weights_are_made(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vision-encoder-decoder"}')
    with pytest.raises(ValueError, match="type 'vision-encoder-decoder', not of stage I"):
        UViMModel.from_pretrained(tmp_path)
