"""CUDA graphs of decode steps give the samples of eager steps, with few captures: on a CPU, by a graph that records."""

import copy
import logging
import pickle

import pytest
import torch
from recorded_graph import RecordedGraph, a_cpu_that_captures
from test_sampling import pixels
from tiny import tiny_model

from vision_rl.models import cuda_graphs
from vision_rl.models.cuda_graphs import MAX_KEPT, CudaGraphRunner, kept_writers
from vision_rl.models.sampling import sample


B, G, T = 4, 4, 72  # attention runs at two lengths, 64 and 72


@pytest.fixture
def gpu(monkeypatch):
    return a_cpu_that_captures(monkeypatch)


def model_of(decoder="ours", own_forward=False):
    """A model that ends at about one token in 40: some completions are short, and some never end."""
    model = tiny_model(decoder, vocab_size=40, sharp=0.05, length=T)
    if own_forward:
        model.decoder.register_forward_hook(lambda *arguments: None)  # with a hook the modules are called
    return model


def drawn(model, seed=0, images=B, graphs=True, **how):
    """The samples for a table of uniforms. Without `graphs` a copy of the model draws them, and nothing is captured."""
    if not graphs:
        model, device = copy.deepcopy(model), cuda_graphs.DEVICE
        cuda_graphs.DEVICE = "cuda"
    table = torch.rand(images, G, T, generator=torch.Generator().manual_seed(seed))
    completions = sample(model, pixels(images), G, uniforms=table, max_completion_length=T, watched_ids=(2,), **how)
    if not graphs:
        cuda_graphs.DEVICE = device
    return completions


def assert_same(actual, expected):
    assert torch.equal(actual.completion_ids, expected.completion_ids)
    assert torch.equal(actual.completion_mask, expected.completion_mask)
    torch.testing.assert_close(actual.per_token_logps, expected.per_token_logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.watched_logps, expected.watched_logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder, own_forward", [("ours", False), ("ours", True), ("gpt2", False), ("bert", False)])
def test_graphs_draw_what_eager_steps_draw_in_every_rollout(gpu, decoder, own_forward):
    model = model_of(decoder, own_forward)
    captures = []
    for seed in range(3):
        assert_same(drawn(model, seed), drawn(model, seed, graphs=False))
        captures.append(len(RecordedGraph.captured))
        with torch.no_grad():  # in place, as an optimiser does
            for parameter in model.decoder.parameters():
                parameter.mul_(1.05)
    assert captures[0] > 1 and captures[-1] <= 12
    assert sum(graph.replays for graph in RecordedGraph.captured) > 2 * T
    assert gpu.current is gpu.default


def test_a_writer_of_shapes_that_were_seen_captures_nothing(gpu):
    model = model_of()
    first = drawn(model)
    captured = list(RecordedGraph.captured)
    drawn(model)  # captures the shapes that were seen only once
    captured = list(RecordedGraph.captured)
    replays = sum(graph.replays for graph in captured)
    again = drawn(model)
    assert RecordedGraph.captured == captured
    assert sum(graph.replays for graph in captured) - replays >= T - 3
    assert_same(again, first)


def test_what_a_rollout_gave_is_not_overwritten_by_the_next(gpu):
    model = model_of()
    first = drawn(model)
    kept = copy.deepcopy(first)
    drawn(model, seed=1)
    assert_same(first, kept)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"temperature": 0.7}])
def test_another_way_to_draw_has_graphs_of_its_own(gpu, how):
    model = model_of()
    plain = drawn(model)
    assert_same(drawn(model, **how), drawn(model, graphs=False, **how))
    assert_same(drawn(model), plain)


def test_under_autocast_the_weights_of_the_day_are_used(gpu):
    model = model_of()
    for parameter in model.decoder.layers[0].parameters():
        parameter.requires_grad_(False)
    for seed in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            graphs, eager = drawn(model, seed), drawn(model, seed, graphs=False)
        assert torch.equal(graphs.completion_ids[..., :8], eager.completion_ids[..., :8])
        torch.testing.assert_close(graphs.per_token_logps[..., :8], eager.per_token_logps[..., :8], rtol=0, atol=0.02)
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                parameter.mul_(1.05)


def test_weights_that_moved_are_captured_anew(gpu):
    model = model_of()
    drawn(model)
    with torch.no_grad():
        model.decoder.lm_head.weight = torch.nn.Parameter(-model.decoder.lm_head.weight)
    assert_same(drawn(model), drawn(model, graphs=False))


def test_what_a_diverged_model_left_in_the_buffers_does_no_harm(gpu):
    model = model_of()
    expected = drawn(model)
    weight = model.decoder.layers[0].self_attn.v_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged"):
        drawn(model)
    with torch.no_grad():
        weight.copy_(before)
    assert_same(drawn(model), expected)


def test_few_rollouts_stay_in_memory_and_none_in_a_copy_of_the_model(gpu):
    model = model_of()
    for images in (1, 2, 3):
        drawn(model, images=images)
    assert len(kept_writers(model.decoder).kept) == MAX_KEPT
    assert not kept_writers(copy.deepcopy(model).decoder).kept
    assert not kept_writers(pickle.loads(pickle.dumps(model)).decoder).kept


def test_what_has_ended_is_dropped_by_halves():
    runner = CudaGraphRunner()
    assert [runner.size(needed, 8) for needed in range(1, 9)] == [1, 2, 4, 4, 8, 8, 8, 8]
    assert [runner.size(needed, 7) for needed in range(1, 8)] == [1, 2, 4, 4, 7, 7, 7]


# --- a capture that fails -------------------------------------------------------------------------------------------


def reading(module, args, output):
    output[0].sum().item()  # the host waits for a value, which invalidates a capture of CUDA


@pytest.mark.parametrize("at_end", [False, True])
def test_a_failed_capture_costs_speed_only_and_is_remembered(gpu, caplog, monkeypatch, at_end):
    model = model_of()
    expected = drawn(model, graphs=False)
    if at_end:
        monkeypatch.setattr(RecordedGraph, "fails_at_end", True)
    else:
        model.decoder.layer_norm.register_forward_hook(reading)
    with caplog.at_level(logging.WARNING, logger="vision_rl.models.cuda_graphs"):
        assert_same(drawn(model), expected)
        assert gpu.current is gpu.default
        assert_same(drawn(model), expected)
        assert_same(drawn(model_of()), expected)  # another model does not try to capture either
    assert len([record for record in caplog.records if "could not be captured" in record.message]) == 1
    assert not RecordedGraph.captured


def test_an_error_of_a_users_hook_leaves_the_capture_s_stream_too(gpu):
    model = model_of()
    calls = []

    def failing(module, args, output):
        calls.append(1)
        if len(calls) == 3:  # after the first step and the first of its shape comes the capture
            raise KeyError("a mistake of the user's")

    model.decoder.layer_norm.register_forward_hook(failing)
    with pytest.raises(KeyError, match="a mistake"):
        drawn(model)
    assert gpu.current is gpu.default


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("decoder", ["ours", "gpt2", "bert"])
def test_a_gpu_replays_the_samples_of_a_cpu(decoder):
    model = model_of(decoder)
    table = torch.rand(B, G, T, generator=torch.Generator().manual_seed(0))
    expected = sample(model, pixels(B), G, uniforms=table, max_completion_length=T)
    model.cuda()
    for _ in range(3):
        drawn = sample(model, pixels(B).cuda(), G, uniforms=table.cuda(), max_completion_length=T)
        alike = (drawn.completion_ids.cpu() == expected.completion_ids).all(-1)
        assert alike.float().mean() > 0.9  # a draw at the border of two ids may differ
        difference = (drawn.per_token_logps.cpu() - expected.per_token_logps)[alike]
        assert difference.abs().max() < 1e-3
    assert CudaGraphRunner.works
    assert any(rollout.runner.graphs for rollout in kept_writers(model.decoder).kept.values())
