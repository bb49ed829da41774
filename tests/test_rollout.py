"""The rollout of an update step is sampled at once, learned from in parts, and perhaps more than once."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scripts.train import make_trainer
from tiny import START, share_of_a, text_dataset, text_processor, tiny_model
from transformers import TrainerCallback

from vision_rl import TextProcessor, VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.completions import SampledCompletions
from vision_rl.trainer.data_order import EpochSampler, RowDataset
from vision_rl.trainer.reward_scaling import normalized_sum


NAN = float("nan")
pytestmark = pytest.mark.usefixtures("one_thread")


def varied(completion_ids, **kwargs) -> list[float]:
    """A reward that differs between nearly any two completions."""
    return [(7 * sum(ids) + len(ids)) % 5 / 4 for ids in completion_ids]


PARTS = ("processing_class", "eval_dataset", "callbacks", "compute_metrics")


def trainer(tmp_path, reward=varied, cls=VisionRewardTrainer, model=None, dataset=None, **options):
    parts = {name: options.pop(name) for name in PARTS if name in options}
    defaults = {"per_device_train_batch_size": 4, "max_steps": 1, "logging_steps": 1, "max_completion_length": 6}
    defaults |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = VisionRewardConfig(str(tmp_path), **{**defaults, "learning_rate": 3e-3, **options})
    parts = {"processing_class": text_processor(), **parts}
    return cls(model or tiny_model(sharp=0.5), reward, args, dataset or text_dataset(16), **parts)


def logs(trained) -> list[dict]:
    return [entry for entry in trained.state.log_history if "loss" in entry]


class Gradients(TrainerCallback):
    """Keeps the gradients of each update step, and the weights at which they were taken."""

    def __init__(self):
        self.steps: list[tuple[dict, dict]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        self.steps.append((gradients, copy.deepcopy(model.state_dict())))


def gradients_of(loss: torch.Tensor, model) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, named.values(), allow_unused=True), strict=True))


def assert_close(ours: dict, by_hand: dict) -> None:
    scale = max(gradient.abs().max() for gradient in by_hand.values() if gradient is not None)
    assert scale > 0
    for name, gradient in ours.items():
        assert (by_hand[name] - gradient).abs().max() <= 1e-4 * scale, name


# --- sampled at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "rounds"), [(None, 1), (8, 2), (3, 6)])
def test_eight_accumulated_micro_batches_take_the_decode_steps_of_one(tmp_path, size, rounds):
    """If the images are sampled in chunks, they take the decode steps of so many micro-batches."""
    length, steps, drawn = 6, [], []

    class Watching(VisionRewardTrainer):
        def _sample(self, inputs):
            completions = super()._sample(inputs)
            drawn.append(completions.completion_ids)
            return completions

    tuned = trainer(
        tmp_path,
        cls=Watching,
        model=tiny_model("gpt2", end=None, sharp=0.5),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        max_completion_length=length,
        per_device_generation_batch_size=size,
    )
    tuned.model.generation_config.eos_token_id = None
    hook = tuned.model.decoder.register_forward_hook(
        lambda module, args, output: None if torch.is_grad_enabled() else steps.append(1)
    )
    tuned.train()
    hook.remove()
    # one more forward tells whether the head can form the loss
    assert len(steps) - 1 == rounds * length and sum(map(len, drawn)) == 16


def test_an_augmentation_of_the_inputs_is_made_once_and_seen_by_sampling_and_learning(tmp_path):
    made, sampled, learned = [], [], []

    class Augmenting(VisionRewardTrainer):
        def _prepare_inputs(self, inputs):
            inputs = super()._prepare_inputs(inputs)
            inputs["pixel_values"] = inputs["pixel_values"] + len(made) + 1.0
            made.append(inputs["pixel_values"].clone())
            return inputs

        def _sample(self, inputs):
            sampled.append(inputs["pixel_values"].clone())
            return super()._sample(inputs)

        def _learn(self, model, inputs, *args):
            learned.append(inputs["pixel_values"].clone())
            return super()._learn(model, inputs, *args)

    tuned = trainer(tmp_path, cls=Augmenting, gradient_accumulation_steps=3, per_device_train_batch_size=2)
    tuned.train()
    assert len(made) == len(learned) == 3 and len(sampled) == 1
    assert torch.equal(torch.cat(made), sampled[0]) and torch.equal(torch.cat(learned), sampled[0])


def test_micro_batches_of_different_shapes_are_sampled_apart(tmp_path):
    class Uneven(TextProcessor):
        """Gives every second batch a mask of another width."""

        made = 0

        def __call__(self, images, seeds=None, text=None):
            self.made += 1
            batch = super().__call__(images, seeds, text)
            batch["pixel_mask"] = torch.ones(len(images), 2 + self.made % 2)
            return batch

    sampled = []

    class Watching(VisionRewardTrainer):
        def _sample(self, inputs):
            sampled.append(tuple(inputs["pixel_mask"].shape))
            return super()._sample(inputs)

    processor = Uneven(text_processor().image_processor, text_processor().tokenizer)
    tuned = trainer(tmp_path, cls=Watching, processing_class=processor, gradient_accumulation_steps=3)
    tuned.train()
    assert [count for count, _ in sampled] == [4, 4, 4] and len({width for _, width in sampled}) == 2
    assert logs(tuned)[0]["sampling/ratio_error"] < 1e-5


# --- the four calls -------------------------------------------------------------------------------------------------


class Inverted(VisionRewardTrainer):
    """Samples with the negative of each image."""

    def _sample(self, inputs):
        return super()._sample({**inputs, "pixel_values": -2 * inputs["pixel_values"]})


class LongestIsBest(VisionRewardTrainer):
    def _score(self, completions, inputs):
        rewards, targets = super()._score(completions, inputs)
        return rewards * 0 + completions.completion_mask.sum(-1), targets


class Doubled(VisionRewardTrainer):
    def _advantages(self, rewards, completions, inputs):
        return 2 * super()._advantages(rewards, completions, inputs)


class Halved(VisionRewardTrainer):
    def _learn(self, *args):
        return super()._learn(*args) / 2


class OtherPixels(VisionRewardTrainer):
    def _learn(self, model, inputs, *args):
        return super()._learn(model, {**inputs, "pixel_values": inputs["pixel_values"] * 3}, *args)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_override_of_each_of_the_four_calls_takes_effect(tmp_path, accumulated, workers):
    options = {"gradient_accumulation_steps": accumulated, "reward_num_workers": workers}
    options |= {"per_device_generation_batch_size": 4}

    def run(cls):
        tuned = trainer(tmp_path, cls=cls, **options)
        tuned.train()
        return logs(tuned)[0]

    plain, inverted, other = run(VisionRewardTrainer), run(Inverted), run(OtherPixels)
    assert inverted["entropy"] != pytest.approx(plain["entropy"], rel=1e-4)
    assert (
        inverted["sampling/ratio_error"] > 1e-4 > plain["sampling/ratio_error"]
    )  # it learns with the images as they are
    assert other["entropy"] == plain["entropy"] and other["sampling/ratio_error"] > 1e-4
    longest, doubled, halved = run(LongestIsBest), run(Doubled), run(Halved)
    assert longest["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-3)
    assert doubled["grad_norm"] == pytest.approx(2 * plain["grad_norm"], rel=1e-4)
    assert doubled["loss/policy"] == pytest.approx(2 * plain["loss/policy"], rel=1e-4)
    assert halved["grad_norm"] == pytest.approx(plain["grad_norm"] / 2, rel=1e-4)


def test_completions_that_an_override_makes_anew_have_the_log_probabilities_that_decoding_wants(tmp_path):
    class Watchful(TextProcessor):
        watched_ids = (2, 3)

        def decode_completions(self, sequences, *, per_token_logps, watched_logps, image_sizes):
            self.watched = watched_logps
            return self.batch_decode(sequences)

    class Rebuilding(VisionRewardTrainer):
        def _sample(self, inputs):
            ids, mask, logps = super()._sample(inputs)
            return SampledCompletions(ids, mask, logps)

    watched = []
    for cls in (VisionRewardTrainer, Rebuilding):
        processor = Watchful(text_processor().image_processor, text_processor().tokenizer)
        tuned = trainer(tmp_path, cls=cls, processing_class=processor)
        tuned.train()
        watched.append(tuned.processor.watched)
    assert watched[0].shape[-1] == 2 and (watched[0] < 0).any()
    torch.testing.assert_close(watched[1], watched[0], atol=1e-5, rtol=0)


# --- used more than once --------------------------------------------------------------------------------------------


def sequence_logps(model, pixel_values, completions, start=START):
    """`(B*G, T)` log-probabilities by a plain forward of everything; 0 after the end."""
    ids, mask, _ = (field.flatten(0, 1) for field in completions)
    logits = model(
        pixel_values=pixel_values.repeat_interleave(len(ids) // len(pixel_values), 0),
        decoder_input_ids=F.pad(ids[:, :-1], (1, 0), value=start),
    ).logits
    return logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1) * mask


@pytest.mark.parametrize(("level", "rate"), [("sequence", 2e-4), ("token", 4e-4)])
@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
def test_the_second_iteration_has_the_clipped_gradient(tmp_path, level, rate, decoder):
    """`-min(ratio * A, clip(ratio) * A)` of sequences or tokens, by autograd on all logits."""
    kept = []

    class Keeping(VisionRewardTrainer):
        def _learn(self, model, inputs, completions, advantages, *args):
            kept.append((inputs["pixel_values"], completions, advantages))
            return super()._learn(model, inputs, completions, advantages, *args)

    seen = Gradients()
    options = {"num_iterations": 2, "importance_sampling_level": level, "epsilon": 0.02, "epsilon_high": 0.03}
    tuned = trainer(
        tmp_path,
        cls=Keeping,
        model=tiny_model(decoder, sharp=0.2, seed=2),
        max_steps=2,
        num_generations=4,
        learning_rate=rate,
        callbacks=[seen],
        **options,
    )
    tuned.train()
    (first, once), (second, twice) = seen.steps
    (pixels, completions, advantages), (again, same, _) = kept
    assert torch.equal(pixels, again) and torch.equal(completions.completion_ids, same.completion_ids)

    model = copy.deepcopy(tuned.model)
    weights, mask = advantages.flatten()[:, None], completions.completion_mask.flatten(0, 1)
    old, clipped = completions.per_token_logps.flatten(0, 1), 0
    for gradients, at in ((first, once), (second, twice)):
        model.load_state_dict(at)
        logps = sequence_logps(model, pixels, completions)
        if level == "sequence":
            ratio = (logps.sum(1, keepdim=True) - old.sum(1, keepdim=True)).exp()
            objective = torch.min(ratio * weights, ratio.clamp(0.98, 1.03) * weights).sum()
        else:
            ratio = (logps - old).exp()
            objective = (torch.min(ratio * weights, ratio.clamp(0.98, 1.03) * weights) * mask).sum()
        assert_close(gradients, gradients_of(-objective / len(weights), model))
        stopped = ((ratio < 0.98) & (weights < 0)) | ((ratio > 1.03) & (weights > 0))
        clipped = (stopped * (mask if level == "token" else 1)).sum().item()
    count = mask.sum().item() if level == "token" else len(mask)
    assert 0 < clipped < count
    assert logs(tuned)[1]["clip_ratio/region_mean"] == pytest.approx(clipped / count)
    assert logs(tuned)[0]["clip_ratio/region_mean"] == 0 and logs(tuned)[0]["sampling/ratio_error"] < 1e-5
    assert "sampling/ratio_error" not in logs(tuned)[1]


def test_the_first_step_of_a_rollout_that_is_used_again_is_that_of_one_that_is_not(tmp_path):
    steps = []
    for options in ({}, {"num_iterations": 3}, {"steps_per_generation": 2}):
        seen = Gradients()
        # all three have the first 4 rows in their 4 images a step
        trainer(tmp_path, callbacks=[seen], shuffle_dataset=False, **options).train()
        steps.append(seen.steps[0][0])
    for gradients in steps[1:]:
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, steps[0][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [{"num_iterations": 2}, {"generation_batch_size": 16}])
def test_a_rollout_that_is_used_again_is_the_same_in_every_split(tmp_path, options):
    runs = []
    for batch, accumulated in ((8, 1), (2, 4)):
        tuned = make_trainer(
            "reward",
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            max_steps=4,
            importance_sampling_level="token",
            **options,
        )
        tuned.train()
        runs.append((tuned, logs(tuned)))
    (whole, of_whole), (split, of_split) = runs
    assert sorted(split.seen) == sorted(whole.seen) and {step for step, _, _ in whole.seen} == {0, 2}
    for one, other in zip(of_split, of_whole, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_rows_of_a_rollout_come_as_often_as_they_are_used_and_epochs_stay_whole():
    rows = RowDataset(list(range(10)), seed=0)
    sampler = EpochSampler(rows, seed=3, block_size=4, repeats=3)
    order = [key.row_index for key in sampler]
    assert len(order) == len(sampler) == 24
    assert order[:4] == order[4:8] == order[8:12] and order[12:16] == order[16:20] == order[20:]
    assert len(set(order)) == 8
    unshuffled = EpochSampler(rows, shuffle=False, block_size=4, repeats=2)
    seen = []
    for epoch in range(5):
        rows.set_epoch(epoch)
        seen += [key.row_index for key in unshuffled]
    assert {seen.count(row) for row in range(10)} == {8}  # 5 epochs of 8 rows, each twice


def test_an_epoch_has_the_update_steps_that_trainer_counts(tmp_path):
    tuned = trainer(tmp_path, max_steps=-1, num_train_epochs=1, num_iterations=2, steps_per_generation=2)
    tuned.train()
    assert tuned.state.global_step == tuned.state.max_steps == 8 and tuned.state.epoch == 1.0


# --- options --------------------------------------------------------------------------------------------------------


def config(**options) -> VisionRewardConfig:
    defaults = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "use_cpu": True}
    return VisionRewardConfig(**{"output_dir": "out", **defaults, **options})


def test_sizes_of_a_rollout_follow_from_each_other_as_in_trl():
    assert (config().steps_per_generation, config().generation_batch_size) == (2, 8)
    assert config(generation_batch_size=16).steps_per_generation == 4
    assert config(steps_per_generation=6).generation_batch_size == 24
    assert config(steps_per_generation=6, num_iterations=3).updates_per_rollout == 9


def test_a_config_can_be_copied_with_a_change():
    assert replace(config(), learning_rate=1.0).steps_per_generation == 2
    assert replace(config(steps_per_generation=6), num_iterations=3).updates_per_rollout == 9


def test_a_batch_that_is_changed_after_the_config_was_made_changes_the_rollout(tmp_path):
    for accumulation in (1, 3):
        changed = config(output_dir=str(tmp_path), report_to="none")
        changed.gradient_accumulation_steps = accumulation
        VisionRewardTrainer(
            *(tiny_model(), share_of_a, changed), train_dataset=text_dataset(16), processing_class=text_processor()
        )
        assert (changed.updates_per_rollout, changed.generation_batch_size) == (1, 4 * accumulation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_batch_size": 4, "steps_per_generation": 2}, "can not be both configured at the same time"),
        (
            {"generation_batch_size": 6},
            r"generation_batch_size \(6\) must be divisible by the global batch size \(4\)",
        ),
        ({"steps_per_generation": 3}, r"steps_per_generation \(3\) must be a multiple of gradient_accumulation_steps"),
        ({"steps_per_generation": 0}, "must be a multiple"),
        ({"num_iterations": 0}, "num_iterations must be at least 1"),
        ({"per_device_generation_batch_size": 0}, "per_device_generation_batch_size must be at least 1"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level must be one of sequence, token"),
        ({"scale_rewards": "std"}, "scale_rewards must be one of none, group, batch"),
        ({"multi_objective_aggregation": "sum"}, "multi_objective_aggregation must be one of"),
        (
            {"scale_rewards": "group", "baseline": "none"},
            "baseline='none' cannot be combined with scale_rewards='group'",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "baseline": "greedy"},
            "baseline='greedy' cannot be combined with multi_objective_aggregation='normalize_then_sum'",
        ),
        ({"epsilon": -0.1}, "epsilon must not be negative"),
        ({"epsilon_high": -0.1}, "epsilon_high must not be negative"),
        ({"entropy_coef": -1.0}, "entropy_coef must not be negative"),
        ({"mle_weight": -1.0}, "mle_weight must not be negative"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_the_labels_likelihood_is_mixed_in_as_mle_pretraining_has_it(tmp_path):
    """All rewards are equal, so `mle_weight` times the gradient of `VisionMLETrainer` remains."""

    def nothing(completions, **kwargs):
        return [1.0] * len(completions)

    seen = [Gradients(), Gradients()]
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    tuned = trainer(tmp_path, nothing, mle_weight=0.5, max_grad_norm=0.0, callbacks=[seen[0]], **split)
    tuned.train()
    args = VisionMLEConfig(str(tmp_path), per_device_train_batch_size=8, max_steps=1, use_cpu=True, report_to="none")
    args.max_grad_norm = 0.0
    parts = {"train_dataset": text_dataset(16), "processing_class": text_processor(), "callbacks": [seen[1]]}
    mle = VisionMLETrainer(tiny_model(sharp=0.5), args, **parts)
    mle.train()
    (ours, _), (imitating, _) = seen[0].steps[0], seen[1].steps[0]
    assert_close(ours, {name: gradient / 2 for name, gradient in imitating.items()})


def test_the_entropy_bonus_is_that_of_all_sampled_tokens(tmp_path):
    kept = []

    class Keeping(VisionRewardTrainer):
        def _learn(self, model, inputs, completions, *args):
            kept.append((inputs["pixel_values"], completions))
            return super()._learn(model, inputs, completions, *args)

    seen = Gradients()
    nothing = lambda completions, **kwargs: [1.0] * len(completions)  # noqa: E731
    tuned = trainer(tmp_path, nothing, Keeping, entropy_coef=0.3, callbacks=[seen])
    tuned.model.generation_config.suppress_tokens = [0]
    tuned.train()
    (pixels, completions), (gradients, at) = kept[0], seen.steps[0]
    model = copy.deepcopy(tuned.model)
    model.load_state_dict(at)
    ids, mask, _ = (field.flatten(0, 1) for field in completions)
    logits = model(
        pixel_values=pixels.repeat_interleave(2, 0), decoder_input_ids=F.pad(ids[:, :-1], (1, 0), value=START)
    ).logits
    entropies = torch.distributions.Categorical(logits=logits[..., 1:]).entropy()  # without the forbidden token
    mean = ((entropies * mask).sum(1) / mask.sum(1)).mean()
    by_hand = gradients_of(-0.3 * mean, model)
    assert_close(gradients, {name: torch.zeros(1) if g is None else g for name, g in by_hand.items()})


def judged(tmp_path, reward, **options):
    """The advantages `(B, G)` that a trainer computes from the rewards."""
    kept = {}

    class Keeping(VisionRewardTrainer):
        def _learn(self, model, inputs, completions, advantages, *args):
            kept.setdefault("advantages", []).append(advantages)
            return super()._learn(model, inputs, completions, advantages, *args)

    options = {"num_generations": 4, "gradient_accumulation_steps": 2, **options}
    tuned = trainer(tmp_path, reward, Keeping, **options)
    tuned.train()
    return torch.cat(kept["advantages"])


def test_rewards_are_scaled_as_in_trl(tmp_path):
    table = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, 0.0, 8.0, 2.0]]).repeat(4, 1)  # (8, 4)

    def given(completions, **kwargs):
        return table.flatten().tolist()[: len(completions)]

    plain = judged(tmp_path, given)
    group, batch = (judged(tmp_path, given, scale_rewards=how) for how in ("group", "batch"))
    torch.testing.assert_close(group, plain / (table.std(1, keepdim=True) + 1e-4))
    torch.testing.assert_close(batch, plain / (table.std() + 1e-4))


def test_each_reward_is_normalized_before_the_sum_as_in_trl(tmp_path):
    """GRPO's formula (`normalize_then_sum`) with its own baseline, the mean."""
    small = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, 1.0, 0.0, 2.0]]).repeat(4, 1)
    large = 1000 * torch.tensor([[1.0, 0.0, 3.0, 0.0], [5.0, 1.0, 0.0, 2.0]]).repeat(4, 1)

    def few(completions, **kwargs):
        return small.flatten().tolist()

    def many(completions, **kwargs):
        return large.flatten().tolist()

    options = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.5], "baseline": "mean"}
    ours = judged(tmp_path, [few, many], **options)
    each = [(r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4) for r in (small, large)]
    total = each[0] + 0.5 * each[1]
    torch.testing.assert_close(ours, (total - total.mean()) / (total.std() + 1e-4), rtol=1e-4, atol=1e-5)
    options["baseline"] = "leave_one_out"  # differs by a constant factor, which the last division removes
    torch.testing.assert_close(judged(tmp_path, [few, many], **options), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("baseline", ["leave_one_out", "first", "mean", "none"])
def test_a_reward_that_is_the_same_for_all_samples_adds_exactly_nothing(tmp_path, baseline):
    def same(completions, **kwargs):
        return [1000.3] * len(completions)

    options = {"multi_objective_aggregation": "normalize_then_sum", "baseline": baseline}
    ours = judged(tmp_path, [varied, same], **options)
    assert (ours != 0).any() and torch.equal(ours, judged(tmp_path, [varied], **options))
    assert (judged(tmp_path, [same], **options) == 0).all()


def test_normalized_sums_have_no_mean_whatever_the_rewards_means_are():
    rewards = torch.tensor([[[5.0, 1e4], [7.0, 3e4], [NAN, 2e4], [NAN, NAN]]])  # (1, 4, 2)
    total = normalized_sum(rewards, torch.tensor([1.0, 0.5]))
    half = 0.5 / (1 + 1e-4 / 1e4)
    expected = torch.tensor([[-(0.5**0.5) - half, 0.5**0.5 + half, 0.0, NAN]])
    torch.testing.assert_close(total, expected, rtol=0, atol=2e-4, equal_nan=True)


def test_where_one_sample_of_an_image_learns_the_scale_is_that_of_those_that_learn(tmp_path):
    table = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, 0.0, 8.0, 2.0]]).repeat(4, 1)  # (8, 4)

    def given(completions, **kwargs):
        return table.flatten().tolist()[: len(completions)]

    ours = judged(tmp_path, given, multi_objective_aggregation="normalize_then_sum", baseline="first")
    assert ours[:, 0].square().mean().sqrt().item() == pytest.approx(1, abs=1e-3) and (ours[:, 1:] == 0).all()
    one = {"per_device_train_batch_size": 1, "generation_batch_size": 1, "gradient_accumulation_steps": 1}
    alone = judged(tmp_path, given, multi_objective_aggregation="normalize_then_sum", baseline="first", **one)
    assert alone[0, 0].item() == pytest.approx(-1, abs=1e-3)


def test_truncated_completions_are_not_learned_from_but_remain_in_the_baseline(tmp_path):
    seen, kept = Gradients(), []

    class Keeping(VisionRewardTrainer):
        def _learn(self, model, inputs, completions, advantages, *args):
            kept.append((inputs["pixel_values"], completions, advantages))
            return super()._learn(model, inputs, completions, advantages, *args)

    tuned = trainer(
        tmp_path, cls=Keeping, mask_truncated_completions=True, num_generations=4, callbacks=[seen], model=tiny_model()
    )
    tuned.train()
    (pixels, completions, advantages), (gradients, at) = kept[0], seen.steps[0]
    ended = (completions.completion_ids == 1).any(-1)
    assert ended.any() and not ended.all() and (advantages[~ended] != 0).any()
    model = copy.deepcopy(tuned.model)
    model.load_state_dict(at)
    logps = sequence_logps(model, pixels, completions).sum(1)
    assert_close(gradients, gradients_of(-(logps * (advantages * ended).flatten()).sum() / ended.numel(), model))


# --- the log --------------------------------------------------------------------------------------------------------


def test_reward_std_and_kl_have_trls_meaning(tmp_path):
    kept = []

    class Keeping(VisionRewardTrainer):
        def _score(self, completions, inputs):
            rewards, targets = super()._score(completions, inputs)
            kept.append((rewards, completions.completion_mask.sum(-1).float()))
            return rewards, targets

    tuned = trainer(tmp_path, cls=Keeping, max_steps=5, beta=0.01, learning_rate=1e-2)
    tuned.train()
    (rewards, lengths), log = kept[-1], logs(tuned)[-1]
    assert log["reward_std"] == pytest.approx(rewards.std().item(), rel=1e-5)  # over all samples
    assert log["rewards/varied/std"] == pytest.approx(rewards.std().item(), rel=1e-5)
    assert log["reward_std_within_image"] == pytest.approx(rewards.std(1, correction=0).mean().item(), rel=1e-5)
    assert log["kl"] * lengths.mean().item() == pytest.approx(log["kl_per_completion"], rel=1e-5)  # of a token
    assert abs(log["kl"]) > 1e-4


def test_what_a_reward_logs_is_logged_in_evaluation_too(tmp_path):
    def reward(completions, log_metric, **kwargs):
        log_metric("letters", sum(map(len, completions)) / len(completions))
        return [1.0] * len(completions)

    tuned = trainer(tmp_path, reward, eval_dataset=text_dataset(7, seed=1), per_device_eval_batch_size=3)
    metrics = tuned.evaluate()
    texts = tuned.predict(text_dataset(7, seed=1)).predictions
    assert metrics["eval_letters"] == pytest.approx(sum(map(len, texts)) / 7)


def test_what_a_reward_logs_does_not_replace_a_metric_of_the_same_name(tmp_path):
    def reward(completions, log_metric, **kwargs):
        log_metric("accuracy", 0.125)
        return [1.0] * len(completions)

    options = {"eval_dataset": text_dataset(4, seed=1)}
    tuned = trainer(tmp_path, reward, compute_metrics=lambda predictions, references: {"accuracy": 0.75}, **options)
    metrics = tuned.evaluate()
    assert (metrics["eval_accuracy"], metrics["eval_rewards/accuracy"]) == (0.75, 0.125)
    assert trainer(tmp_path, reward, **options).evaluate()["eval_accuracy"] == 0.125


def test_the_loss_outside_of_training_is_that_of_the_batch_before_and_after(tmp_path):
    tuned = trainer(tmp_path, gradient_accumulation_steps=2, learning_rate=0.0)
    inputs = tuned._prepare_inputs(next(iter(tuned.get_train_dataloader())))
    ones = torch.ones(4)
    assert tuned.mean_over_step(ones) == 1.0
    before = tuned.compute_loss(tuned.model, dict(inputs)).item()
    tuned.train()
    assert tuned.mean_over_step(ones) == 1.0
    tuned.state.global_step = 0
    assert tuned.compute_loss(tuned.model, dict(inputs)).item() == pytest.approx(before, rel=1e-5)


def test_a_model_that_says_nan_is_told_of_with_the_rows_that_it_was_asked_about(tmp_path):
    trainer = make_trainer("reward", tmp_path, rows=8)
    with torch.no_grad():
        trainer.model.decoder.get_output_embeddings().weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"training has diverged.* It happened on the rows \[[\d, ]+\]"):
        trainer.train()
