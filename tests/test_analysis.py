"""Rewards of samples, best and likeliest of n, and the noise of gradients: against enumeration, by hand, and in use."""

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import share_of_a, text_dataset, text_processor, tiny_model

from vision_rl import RewardOutput, TokenTargets, VisionRewardConfig, VisionRewardTrainer
from vision_rl.analysis import best_of_n, gradient_noise, likeliest_of_n, noise_of, reward_and_metrics, sample_rewards
from vision_rl.analysis.charts import Line, line_chart, ticks
from vision_rl.analysis.curves import read_log, running_mean
from vision_rl.analysis.gradient_noise import TOKEN_TARGETS, WHOLE_UPDATE, losses_of
from vision_rl.analysis.noise import WIDTH, Sketch, images_text
from vision_rl.analysis.order_statistics import rank_weights, sizes_up_to
from vision_rl.cli import main


pytestmark = pytest.mark.usefixtures("one_thread")


# --- order statistics ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=7), st.data())
def test_the_best_of_n_is_the_mean_over_all_groups_of_n(rewards, data):
    n = data.draw(st.integers(1, len(rewards)))
    enumerated = np.mean([max(group) for group in combinations(rewards, n)])
    assert best_of_n(np.array([rewards]), n) == pytest.approx([enumerated], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(-3, 0)), min_size=1, max_size=6), st.data())
def test_the_likeliest_of_n_is_the_mean_over_all_groups_of_n_ties_in_any_order(samples, data):
    n = data.draw(st.integers(1, len(samples)))
    chosen = []
    for group in combinations(samples, n):
        most = max(logp for _, logp in group)
        chosen.append(np.mean([reward for reward, logp in group if logp == most]))
    rewards, logps = np.array(samples, float).T[:, None]
    assert likeliest_of_n(rewards, logps, n) == pytest.approx([np.mean(chosen)], abs=1e-9)


def test_the_best_of_n_is_unbiased_where_the_best_of_the_first_n_is_too_but_noisier():
    """Rewards are 1 with probability .2, so the expected best of n is 1 - .8**n."""
    draws = (np.random.default_rng(0).random((4000, 12)) < 0.2).astype(float)
    for n in (1, 3, 12):
        ours, plain = best_of_n(draws, n), draws[:, :n].max(1)
        assert ours.mean() == pytest.approx(1 - 0.8**n, abs=4 * ours.std() / 4000**0.5 + 1e-9)
        assert n == 12 or ours.var() < plain.var()


def test_ten_thousand_samples_have_weights_that_add_up_to_1():
    for n in sizes_up_to(10_000):
        assert rank_weights(10_000, n).sum() == pytest.approx(1, abs=1e-8)
    assert sizes_up_to(10_000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]
    assert sizes_up_to(1) == [1] and sizes_up_to(7) == [1, 2, 5, 7]


@pytest.mark.parametrize("n", [0, 4])
def test_no_group_is_larger_than_the_samples_that_there_are(n):
    with pytest.raises(ValueError, match=f"which is 3; it is {n}"):
        rank_weights(3, n)


# --- samples of a model ---------------------------------------------------------------------------------------------------


def tuner(folder, reward=share_of_a, rows=8, **options) -> VisionRewardTrainer:
    options = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "num_generations": 3, **options}
    args = VisionRewardConfig(str(folder), report_to="none", use_cpu=True, max_completion_length=6, **options)
    data = text_dataset(rows)
    model = tiny_model(sharp=1.0)
    return VisionRewardTrainer(model, reward, args, data, data, processing_class=text_processor())


def test_samples_are_the_same_however_many_are_in_memory_at_once(tmp_path):
    one, other = (sample_rewards(tuner(tmp_path), text_dataset(5), 7, count) for count in (1, 100))
    np.testing.assert_array_equal(one.rewards, other.rewards)
    np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)
    assert one.rewards.shape == (5, 7) and one.row_index.tolist() == list(range(5))
    assert len(np.unique(one.logps.round(4))) > 10


def test_rewards_and_log_probabilities_belong_to_each_other(tmp_path):
    """The reward is the index of the first letter; each letter is drawn as often as the model's probability says."""

    def first_letter(completions, **kwargs):
        return [float("abcd".find(text[:1])) if text else -1.0 for text in completions]

    trainer = tuner(tmp_path, first_letter)
    samples = sample_rewards(trainer, text_dataset(1), 2000)
    with torch.no_grad():
        pixels = next(iter(trainer.get_eval_dataloader(text_dataset(1))))["pixel_values"]
        ids = torch.zeros((1, 1), dtype=torch.long)
        said = trainer.model(pixel_values=pixels, decoder_input_ids=ids).logits[0, 0].softmax(-1)
    letters = text_processor().tokenizer.convert_tokens_to_ids(list("abcd"))
    for place, letter in enumerate(letters):
        share = (samples.rewards == place).mean()
        assert share == pytest.approx(said[letter].item(), abs=0.05)


def test_the_greedy_answer_is_that_of_evaluation(tmp_path):
    trainer = tuner(tmp_path)
    samples = sample_rewards(trainer, text_dataset(5), 2)
    assert samples.greedy.mean() == pytest.approx(trainer.evaluate(text_dataset(5))["eval_reward"])


def test_images_with_an_answer_that_no_reward_applies_to_are_left_out_and_counted(tmp_path):
    words = text_dataset(5)["text"]

    def not_for_one_word(completions, references, **kwargs):
        return [None if reference == words[2] else 1.0 for reference in references]

    samples = sample_rewards(tuner(tmp_path, not_for_one_word), text_dataset(5), 2)
    assert samples.row_index.tolist() == [row for row in range(5) if words[row] != words[2]]
    assert samples.left_out == words.count(words[2])
    with pytest.raises(ValueError, match="None for the answers to every image"):
        sample_rewards(tuner(tmp_path, lambda completions, **kwargs: [None] * len(completions)), text_dataset(5), 2)


def test_a_summary_rises_with_n_and_with_the_quantile(tmp_path):
    summary = sample_rewards(tuner(tmp_path), text_dataset(5), 20).summary()
    for values in (summary["best_of_n"]["mean"], summary["quantiles"]["mean"]):
        assert values == sorted(values)
    assert summary["best_of_n"]["mean"][0] == pytest.approx(summary["sampled"]["mean"])
    assert json.loads(json.dumps(summary)) == summary


# --- noise ----------------------------------------------------------------------------------------------------------------


def test_signal_and_noise_of_two_by_hand():
    """Gradients (1, 0), (3, 0), (1, 2), (3, 2): mean (2, 1), variance 4/3 in each number, signal 5 - (8/3) / 4."""
    gradients = [torch.tensor(values) for values in ([1.0, 0.0], [3.0, 0.0], [1.0, 2.0], [3.0, 2.0])]
    found = noise_of("by hand", gradients, images=10)
    assert found.signal == pytest.approx(5 - 2 / 3) and found.noise == pytest.approx(10 * 8 / 3)
    assert found.images_needed == pytest.approx(10 * 8 / 3 / (5 - 2 / 3))
    assert found.share_of_signal(10) == pytest.approx((5 - 2 / 3) / (5 - 2 / 3 + 8 / 3))


def test_the_intervals_hold_the_truth_and_the_signal_is_unbiased():
    """300 repetitions: the squared signal is 0.5, the noise is 20 numbers of variance 1."""
    generator, signals, held = torch.Generator().manual_seed(0), [], 0
    mean = torch.full((20,), (0.5 / 20) ** 0.5)
    for _ in range(300):
        gradients = mean + torch.randn(40, 20, generator=generator)
        found = noise_of("", list(gradients), images=1)
        signals.append(found.signal)
        low, high = found.images_needed_interval
        held += low <= 20 / 0.5 and (high is None or high >= 20 / 0.5)
    assert np.mean(signals) == pytest.approx(0.5, abs=4 * np.std(signals) / 300**0.5)
    assert np.std(signals) == pytest.approx(found.signal_error, rel=0.5)
    assert held / 300 > 0.9


def test_where_there_is_no_signal_none_is_seen():
    generator = torch.Generator().manual_seed(1)
    seen = [noise_of("", list(torch.randn(30, 50, generator=generator)), images=4) for _ in range(50)]
    assert abs(np.mean([found.signal for found in seen])) < 4 * np.std([found.signal for found in seen]) / 50**0.5
    assert sum(found.images_needed_interval[1] is None for found in seen) > 40


def test_a_sketch_keeps_products_of_gradients_that_are_longer_than_it():
    generator = torch.Generator().manual_seed(0)
    long = torch.randn(2, 3 * WIDTH + 5, generator=generator)
    long[1] += long[0]
    sketch = Sketch(long.shape[1])
    first, second = (sketch([part[:100], part[100:].view(-1, 1)]) for part in long)
    assert len(first) == WIDTH
    for ours, true in ((first @ first, long[0] @ long[0]), (first @ second, long[0] @ long[1])):
        assert ours.item() == pytest.approx(true.item(), rel=0.03)
    short = torch.randn(10)
    assert torch.equal(Sketch(10)([short]), short)
    with pytest.raises(ValueError, match="has 9 numbers, but the sketch was made for 10"):
        Sketch(10)([short[:9]])


def test_a_number_of_images_that_cannot_be_told_is_not_given():
    assert [images_text(images) for images in (8.216, 131.5, 12345.6, None)] == [
        "8.22",
        "132",
        "12,346",
        "beyond telling",
    ]


def test_fewer_than_four_batches_say_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least 4"):
        noise_of("", [torch.ones(2)] * 3, 1)
    with pytest.raises(ValueError, match="fewer than 4 batches of 2 training images"):
        gradient_noise(tuner(tmp_path, rows=4))
    with pytest.raises(ValueError, match="num_generations must be at least 2"):
        gradient_noise(tuner(tmp_path, num_generations=1, baseline="none"))


def test_every_baseline_has_the_gradient_that_the_trainer_takes_with_it(tmp_path):
    """The last loss is the trainer's own, on the same samples."""
    for name in ("leave_one_out", "first", "greedy", "mean", "none"):
        trainer = tuner(tmp_path, lambda completions, **kwargs: [len(text) for text in completions], baseline=name)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        gradients = {}
        for each, loss in losses_of(trainer, batch):
            parts = torch.autograd.grad(loss, list(trainer.model.parameters()), allow_unused=True)
            gradients[each] = torch.cat([part.flatten() for part in parts if part is not None])
        torch.testing.assert_close(gradients[name], gradients[WHOLE_UPDATE], atol=1e-6, rtol=1e-4)
        assert gradients[WHOLE_UPDATE].norm() > 1e-4


def number_of_letters(completions, **kwargs) -> list[float]:
    return [float(len(text)) for text in completions]


def number_of_as(completions, **kwargs) -> list[float]:
    return [1000.0 + 100 * text.count("a") for text in completions]


def earned_by_letter(completions, completion_ids, **kwargs) -> RewardOutput:
    """Every letter earns its id when it is written, and a token target teaches the first one to be an "a"."""
    a = text_processor().tokenizer.convert_tokens_to_ids("a")
    longest = max(map(len, completion_ids))
    earned = [[float(token) for token in ids] + [0.0] * (longest - len(ids)) for ids in completion_ids]
    before = torch.nn.functional.pad(torch.tensor(earned).cumsum(1), (1, 0))[:, :-1]
    positions = torch.tensor([[row, 0] for row in range(len(completion_ids))])
    targets = TokenTargets(positions, torch.full((len(positions), 1), a), torch.ones(len(positions), 1))
    return RewardOutput([float(sum(row)) for row in earned], targets, before)


def test_prefix_rewards_and_token_targets_have_lines_of_their_own_and_the_former_are_less_noisy(tmp_path):
    found = gradient_noise(tuner(tmp_path, earned_by_letter, rows=160, per_device_train_batch_size=4), num_batches=40)
    by_name = {each.name: each for each in found}
    assert list(by_name)[-2:] == [TOKEN_TARGETS, WHOLE_UPDATE] and len(by_name) == 12
    assert by_name["none, prefix rewards"].noise < by_name["none"].noise
    assert by_name["leave_one_out"].noise < by_name["first"].noise
    assert all(each.batches == 40 and each.images == 4 for each in found)


@pytest.mark.parametrize(
    ("reward", "options"),
    [
        ([number_of_letters, number_of_as], {"scale_rewards": "group"}),
        ([number_of_letters, number_of_as], {"scale_rewards": "batch"}),
        ([number_of_letters, number_of_as], {"multi_objective_aggregation": "normalize_then_sum"}),
        (earned_by_letter, {"scale_rewards": "batch", "baseline": "none"}),
    ],
)
def test_the_update_as_configured_is_scaled_as_the_trainer_scales_a_rollout(tmp_path, reward, options):
    trainer = tuner(tmp_path, reward, per_device_train_batch_size=4, **options)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]

    def gradient_of(loss: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    measured = {name: gradient_of(loss) for name, loss in losses_of(trainer, dict(batch))}[WHOLE_UPDATE]
    torch.testing.assert_close(measured, gradient_of(trainer.compute_loss(trainer.model, batch)), atol=1e-5, rtol=1e-4)
    assert measured.norm() > 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2},
        {"num_iterations": 3, "gradient_accumulation_steps": 2},
        {"num_iterations": 2, "steps_per_generation": 4},
    ],
)
def test_no_image_is_used_twice_where_a_rollout_is_learned_from_several_times(tmp_path, options):
    trainer, used = tuner(tmp_path, rows=16, **options), []
    sample = trainer._sample
    trainer._sample = lambda batch: used.extend(batch["row_index"].tolist()) or sample(batch)
    assert {each.batches for each in gradient_noise(trainer, 60)} == {8}
    assert sorted(used) == list(range(16))
    with pytest.raises(ValueError, match="fewer than 4 batches"):  # although the loader has more
        gradient_noise(tuner(tmp_path, rows=4, num_iterations=2))


def test_looking_at_the_noise_changes_neither_weights_nor_gradients(tmp_path):
    trainer = tuner(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    gradient_noise(trainer, 4)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


# --- curves and charts ----------------------------------------------------------------------------------------------------


LOG = [
    {"step": 1, "loss": 0.1, "reward": 1.0},
    {"step": 2, "loss": 0.2, "reward": 3.0},
    {"step": 2, "eval_reward": 1.0, "eval_map": 0.3, "eval_runtime": 1.0},
    {"step": 4, "eval_reward": 2.0, "eval_map": 0.2, "eval_runtime": 1.0},
    {"step": 6, "eval_reward": 3.0, "eval_map": 0.1, "eval_runtime": 1.0},
]


def test_a_metric_that_falls_while_the_reward_rises_is_told_by_its_rank_correlation():
    found = reward_and_metrics(LOG)
    assert found["sampled_reward"] == {"step": [1, 2], "value": [1.0, 3.0]}
    assert list(found["evaluated"]) == ["eval_reward", "eval_map"]
    assert found["evaluated"]["eval_map"]["rank_correlation"] == pytest.approx(-1)


def test_the_log_of_a_run_that_has_not_ended_is_that_of_its_newest_checkpoint(tmp_path):
    assert read_log(tmp_path) == []
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(
            json.dumps({"log_history": [{"step": step}]})
        )
    assert read_log(tmp_path) == [{"step": 10}]
    (tmp_path / "trainer_state.json").write_text('{"log_history": [3]}')
    with pytest.raises(ValueError, match=r"trainer_state.json is not the log of a run"):
        read_log(tmp_path)


def test_a_run_that_was_continued_and_interrupted_has_the_log_of_the_state_of_most_steps(tmp_path):
    def write(folder: Path, step: int, text: str | None = None) -> None:
        folder.mkdir(exist_ok=True)
        state = {"global_step": step, "log_history": [{"step": step, "in": folder.name}]}
        (folder / "trainer_state.json").write_text(text or json.dumps(state))

    def found() -> tuple[int, str]:
        (line,) = read_log(tmp_path)
        return line["step"], line["in"]

    write(tmp_path, 2)  # as a run of two steps leaves it
    write(tmp_path / "checkpoint-2", 2)
    assert found() == (2, tmp_path.name)
    write(tmp_path / "checkpoint-4", 4)
    assert found() == (4, "checkpoint-4")
    write(tmp_path / "checkpoint-4", 4, "{")  # the only file that says how the run went on
    with pytest.raises(ValueError, match=r"checkpoint-4.trainer_state.json is not the log of a run"):
        read_log(tmp_path)
    write(tmp_path, 6)  # when it has ended again, nothing is missing
    assert found() == (6, tmp_path.name)
    write(tmp_path / "checkpoint-9", 9)  # of an earlier run, longer than this one
    os.utime(tmp_path / "checkpoint-9" / "trainer_state.json", (0, 0))
    assert found() == (6, tmp_path.name)
    write(tmp_path, 6, '{"global_step": [], "log_history": []}')
    with pytest.raises(ValueError, match=r"is not the log of a run"):
        read_log(tmp_path)


def test_a_running_mean_has_as_many_values_as_there_are():
    assert running_mean([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert running_mean([]) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9) | st.none() | st.just(float("nan"))),
        min_size=1,
        max_size=20,
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]) | st.sampled_from("<&\"'>")),
    st.booleans(),
)
def test_a_chart_is_wellformed_and_inside_its_frame_whatever_it_shows(points, name, log_x):
    x, y = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    if not any(value is not None and value == value for value in y):
        with pytest.raises(ValueError, match="no points"):
            line_chart(name, [Line(name, x, y)])
        return
    svg = line_chart(name, [Line(name, x, y, y, y)], name, log_x)
    assert "nan" not in re.sub(r"<text.*?</text>|aria-label=\"[^\"]*\"", "", svg, flags=re.S)
    for circle in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.get("cx")) <= 460 and 0 <= float(circle.get("cy")) <= 300


def test_ticks_are_round_numbers_inside():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-0.3, 2.4) == pytest.approx([0, 0.5, 1, 1.5, 2])


# --- the command ------------------------------------------------------------------------------------------------------------


COUNTING = Path(__file__).with_name("counting_task.py")
SIZES = "--hidden_size 32 --layers 1 --heads 2 --mlp_size 64"
FEW = "--max_steps 2 --per_device_train_batch_size 4 --report_to none --use_cpu true --disable_tqdm true --save_strategy no"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A tuned counter of squares, with two evaluations in its log. The model that it was tuned from lies beside it."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = " ".join(f"{SIZES} ".replace("--", f"--{side}_") for side in ("encoder", "decoder"))
    new = f"--image_size 32 --patch_size 16 {sizes} --output_dir {folder}/mle"
    assert main(f"mle --task {COUNTING} {new} {FEW}".split()) == 0
    watched = "--learning_rate 3e-2 --eval_strategy steps --eval_steps 1 --eval_on_start true --logging_steps 1"
    command = f"tune --task {COUNTING} --model {folder}/mle {FEW} {watched} --output_dir {folder}/tuned"
    assert main(command.split()) == 0
    return folder / "tuned"


def test_the_command_compares_two_models_and_draws_the_run(tuned, tmp_path, capsys):
    command = f"analyze --task {COUNTING} --model {tuned} --before {tuned.parent}/mle --num_images 5 --num_samples 30"
    assert main([*command.split(), "--use_cpu", "true", "--output_dir", str(tmp_path)]) == 0
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert list(samples["models"]) == ["before", "after"] and samples["rewards"] == ["closeness_reward"]
    assert samples["models"]["after"]["images"] == 5 and samples["models"]["after"]["best_of_n"]["n"][-1] == 30
    assert next(iter(json.loads((tmp_path / "curves.json").read_text())["evaluated"])) == "eval_reward"
    for name in ("quantiles", "best_of_n", "likeliest_of_n", "reward", "metric_0"):
        ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
    assert "| after |" in capsys.readouterr().out


def test_the_command_says_how_many_images_an_update_needs(tuned, tmp_path, capsys):
    command = f"analyze --task {COUNTING} --model {tuned} --noise true --num_batches 6 --batch_size 4 --use_cpu true"
    assert main([*command.split(), "--output_dir", str(tmp_path)]) == 0
    (estimators,) = [
        model["estimators"] for model in json.loads((tmp_path / "noise.json").read_text())["models"].values()
    ]
    assert [each["name"] for each in estimators] == ["leave_one_out", "first", "greedy", "mean", "none", WHOLE_UPDATE]
    assert all(each["batches"] == 6 and each["noise"] > 0 for each in estimators)
    assert "| leave_one_out |" in capsys.readouterr().out


def test_a_command_that_cannot_work_says_so_in_a_line(tuned, capsys):
    for options, told in (
        ("", "--model is needed"),
        (f"--model {tuned} --num_samples 0", "num_samples must be at least 1"),
        (f"--model {tuned} --reward nearness", "There is no reward 'nearness'"),
    ):
        assert main(f"analyze --task {COUNTING} --use_cpu true {options}".split()) == 1
        assert told in capsys.readouterr().err
