"""The benchmarks run at small sizes, and refuse to compare what is not equal. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recorded_graph import a_cpu_that_captures

from vision_rl.data.coco import load_coco_detection


BASELINES = Path(__file__).resolve().parents[2] / "shared" / "bench" / "reinforce_baselines.py"
TINY = {"vit": "xs", "image_size": 32, "decoder_layers": 1, "vocab_size": 50, "length": 8, "images": 2}


def workload(benchmark, **sizes):
    return benchmark("workload").Workload(**{**TINY, **sizes})


# --- what is compared does the same ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [{"decoder": "vision_rl"}, {"decoder": "gpt2", "num_generations": 3}, {"captions": True, "length": 20}]
)
def test_both_scripts_have_our_log_probabilities_and_gradients(benchmark, sizes):
    step = benchmark("step")
    rows = step.main(workload(benchmark, **sizes), step.StepArguments(rounds=1))
    assert [row["against"] for row in rows] == ["naive", "competent"]
    for row in rows:
        assert row["logp differs by"] <= 1e-5 and row["gradient"] <= 1e-4
        assert row["step"] > 0 and row["memory, MiB"] > 0


def test_a_script_that_learns_something_else_is_found_out(benchmark):
    turns, sizes = benchmark("turns"), workload(benchmark)
    model = benchmark("workload").make_model(sizes)
    scripts = turns.make_scripts(sizes, model, ("naive",))
    with torch.no_grad():
        scripts["naive"].model.decoder.lm_head.bias[3] += 0.01
    with pytest.raises(AssertionError, match="log-probabilities of naive differ"):
        turns.check_equal(sizes, model, scripts)


def test_a_script_that_averages_otherwise_is_found_out(benchmark):
    turns, baselines, sizes = benchmark("turns"), benchmark("baselines"), workload(benchmark)

    class Halved(baselines.Script):
        def loss(self, *args):
            return super().loss(*args) / 2

    model = benchmark("workload").make_model(sizes)
    with pytest.raises(AssertionError, match="gradients of halved differ"):
        turns.check_equal(sizes, model, {"halved": Halved(sizes, model, encodes_once=False)})


def test_an_outside_script_takes_its_turns(benchmark):
    if not BASELINES.exists():
        pytest.skip("no outside script at hand")
    step = benchmark("step")
    args = step.StepArguments(rounds=1, baseline=str(BASELINES), memory=False)
    rows = step.main(workload(benchmark, vit="ti"), args)
    assert [row["against"] for row in rows] == ["naive", "competent"]
    assert all(row["logp differs by"] <= 1e-5 for row in rows)


@pytest.mark.parametrize("decoder", ["vision_rl", "gpt2"])
def test_completions_end_as_captions_do_without_being_forced(benchmark, decoder):
    from vision_rl.models.sampling import sample

    sizes = workload(benchmark, decoder=decoder, captions=True, length=40, vocab_size=5000, vit="ti", images=8)
    lengths = sample(
        benchmark("workload").make_model(sizes), benchmark("turns").pixels(sizes), 8, max_completion_length=40
    ).completion_mask.sum(-1)
    assert 9 < lengths.float().mean() < 15
    assert lengths.min() >= 4 and lengths.max() < 30


def test_cpu_time_of_several_threads_is_refused(benchmark):
    with pytest.raises(ValueError, match="--clock wall"):
        workload(benchmark, threads=2)


# --- how it is measured ------------------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_in_use_at_once(benchmark):
    peak_memory = benchmark("measuring").peak_memory
    kept = torch.ones(1000)  # in use before the block, so not counted
    with peak_memory() as peak:
        first = torch.zeros(500_000)
        del first
        second, third = torch.zeros(250_000), torch.zeros(350_000)
        del second, third
    assert peak.bytes == 4 * 600_000
    del kept


def test_peak_memory_sees_what_an_operation_takes_for_itself_and_for_its_backward(benchmark):
    """The log-sum-exp of a matrix allocates a second one of its size, and its gradient a third."""
    peak_memory = benchmark("measuring").peak_memory
    logits = torch.zeros(100, 10_000, requires_grad=True)
    with peak_memory() as forward:
        total = logits.logsumexp(-1)
    assert forward.bytes == pytest.approx(4e6, rel=0.01)
    with peak_memory() as backward:
        total.sum().backward()
    assert 4e6 <= backward.bytes <= 13e6 and logits.grad is not None


def test_exponents_are_slopes(benchmark):
    exponent = benchmark("scaling").exponent
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_ratios_are_medians_of_the_rounds_own(benchmark):
    assert benchmark("measuring").ratio([2, 20, 6], [1, 10, 2]) == 2


def test_the_bytes_of_a_decoding_step_are_counted_once(benchmark):
    """By hand: 1 layer, width 64, B=2, G=3, 4 image tokens, T=8, float32."""
    roofline, sizes = benchmark("roofline"), workload(benchmark, num_generations=3)
    model = benchmark("workload").make_model(sizes)
    projections, mlp, norms, head = 6 * 64 * 64, 2 * 64 * 256 + 256 + 64, 4 * 2 * 64, 50 * 64 + 50
    images, past = 2 * 4 * 2 * 64, 6 * 5 * 2 * 64
    expected = 4 * (projections + mlp + norms + head + images + past)
    assert roofline.decoding_bytes(sizes, model, num_image_tokens=4) == expected


def test_figures_are_json_lines_and_a_table(benchmark, capsys):
    benchmark("measuring").report("name", [{"a": 1.23456, "b": None}, {"a": 2, "b": "x"}])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines[:2]] == [
        {"benchmark": "name", "a": 1.235, "b": None},
        {"benchmark": "name", "a": 2, "b": "x"},
    ]
    assert lines[3:7] == ["| a | b |", "| --- | --- |", "| 1.235 |  |", "| 2 | x |"]


# --- each runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["vision_rl", "gpt2"])
def test_sampling_runs(benchmark, decoder):
    sampling = benchmark("sampling")
    (row,) = sampling.main(workload(benchmark, decoder=decoder), sampling.SamplingArguments(rounds=1))
    assert row["image tokens"] == 4 and row["logp differs by"] <= 1e-5 and row["loop"] > 0


def test_gradient_noise_runs(benchmark):
    for reward, count in (("recall", 11), ("map_vocabulary", 12)):  # map_vocabulary has token targets as well
        rows = benchmark("gradient_noise").main("incomplete", None, reward, batches=4, images=2, times=2)
        assert len(rows) == count and all(row["noise"] >= 0 for row in rows)


def test_learning_runs(benchmark):
    learning = benchmark("learning")
    rows = learning.main(workload(benchmark), learning.LearningArguments(rounds=1))
    assert len(rows) == 2 and all(row["memory, share"] > 0 and row["learn"] > 0 for row in rows)


def test_scaling_runs(benchmark):
    scaling = benchmark("scaling")
    args = scaling.ScalingArguments(over=["vocab_size"], points=[50, 100], rounds=1)
    rows, exponents = scaling.main(workload(benchmark), args)
    assert [(row["by"], row["V"]) for row in rows] == [
        ("vision_rl", 50),
        ("naive", 50),
        ("vision_rl", 100),
        ("naive", 100),
    ]
    assert [row["by"] for row in exponents] == ["vision_rl", "naive"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_roofline_runs(benchmark, dtype):
    roofline = benchmark("roofline")
    args = roofline.RooflineArguments(copied_mib=1, matrix_size=64, rounds=1)
    rows = roofline.main(workload(benchmark, length=16, dtype=dtype), args)
    assert [row["unit"] for row in rows] == ["GB/s", "TFLOP/s"] and rows[1]["share"] > 0


def test_every_way_to_run_faster_is_measured(benchmark):
    ways = benchmark("ways")
    rows = ways.main(workload(benchmark, length=16), ways.WaysArguments(rounds=1))
    assert len(rows) == 6 and all(row["times as fast"] > 0 for row in rows)


def test_overhead_runs(benchmark):
    overhead = benchmark("overhead")
    (row,) = overhead.main(workload(benchmark), overhead.OverheadArguments(rounds=3))
    assert row["in the loop, s"] > 0


def test_all_ways_to_load_images_give_the_same(benchmark):
    data_loading = benchmark("data_loading")
    args = data_loading.LoadingArguments(num_photos=8, image_size=32, batch_size=2, workers=[1], rounds=1)
    rows = data_loading.main(args)
    assert [row["way"] for row in rows] == ["JPEG, in its process", "JPEG, 1 workers", "stored, in its process"]


def test_annotations_of_a_made_up_size_are_read_without_a_word(benchmark, tmp_path, caplog):
    annotations = benchmark("annotations")
    file = annotations.make_annotations(tmp_path, num_images=40, num_boxes=200)
    rows = load_coco_detection(tmp_path / "images", file)
    assert len(rows) == 40 and sum(len(objects["bbox"]) for objects in rows["objects"]) == 200 and not caplog.text
    found = annotations.measured(tmp_path, file, "load")
    assert found["found"] == 40 and found["s"] > 0 and found["MiB in all"] > found["MiB"] >= 0


def test_the_gpu_check_does_on_a_cpu_all_that_needs_no_gpu(benchmark, tmp_path):
    gpu_check = benchmark("gpu_check")
    output = tmp_path / "found.json"
    results = gpu_check.main(gpu_check.GpuCheckArguments(device="cpu", tiny=True, output=str(output), rounds=1))
    assert json.loads(output.read_text()) == results
    left_out = {name for name, result in results.items() if result["status"] == "left out"}
    assert left_out == {"CUDA graphs against eager steps", "tests marked gpu"}
    assert {result["status"] for name, result in results.items() if name not in left_out} == {"ok"}
    for name, sizes in gpu_check.STEPS.items():
        assert results[f"step, {name}"]["times as fast as naive"]["total"] > 0 and sizes["vit"] == "b"
        limits = results[f"limits, {name}"]
        assert limits["decoding, a token"]["share"] > 0 and limits["learning"]["share"] > 0


def test_the_gpu_check_needs_no_datasets_trl_or_evaluate():
    """A machine with a GPU but no network may lack these packages."""
    lacking = "import sys; sys.modules.update(dict.fromkeys(['datasets', 'trl', 'evaluate'])); import gpu_check"
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    subprocess.run([sys.executable, "-c", lacking], cwd=folder, check=True)


def test_the_gpu_check_replays_graphs_and_compares_them(benchmark, monkeypatch):
    """On a CPU whose graphs record and replay; the same check runs on a GPU."""
    a_cpu_that_captures(monkeypatch)
    gpu_check = benchmark("gpu_check")
    found = gpu_check.graphs_of(workload(benchmark, captions=True, length=24, num_generations=2), rollouts=2)
    assert found["captured"] and found["rollouts drawn alike"] == 1
    assert found["sampler's logp against the learning pass"] < 1e-5


def test_a_check_of_the_gpu_that_fails_stops_no_other(benchmark, tmp_path, monkeypatch):
    gpu_check = benchmark("gpu_check")
    monkeypatch.setattr(gpu_check, "machine", lambda args: 1 / 0)
    monkeypatch.setattr(gpu_check, "STEPS", {})
    args = gpu_check.GpuCheckArguments(device="cpu", tiny=True, output=str(tmp_path / "found.json"), seconds=1e9)
    results = gpu_check.main(args)
    assert results["machine"]["status"] == "failed" and "ZeroDivisionError" in results["machine"]["error"]
    assert results["bfloat16"]["status"] == "ok"
    results = gpu_check.main(gpu_check.GpuCheckArguments(**{**vars(args), "seconds": -1}))
    assert {result["status"] for result in results.values()} == {"left out"}


def test_rewards_are_those_of_the_fields_own_code(benchmark, capsys):
    """Each of the four benchmarks stops if its results differ."""
    pytest.importorskip("pycocoevalcap")
    pytest.importorskip("skimage")
    benchmark("rewards").main(captioned=4, completions=4, evaluated=4, side=64, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert {json.loads(line)["benchmark"] for line in lines if line.startswith("{")} == {
        "cider",
        "detection",
        "panoptic",
        "colorfulness",
    }
