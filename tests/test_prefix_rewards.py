"""Prefix rewards, what was earned before each token, are read, checked, summed over rewards and used to learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import share_of_a, text_dataset, text_processor, tiny_model

from vision_rl import RewardOutput, TokenTargets, VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.completions import SampledCompletions
from vision_rl.trainer.advantages import leave_one_out_advantages
from vision_rl.trainer.collator import BatchColumns
from vision_rl.trainer.scoring import RewardSum, Scores


NAN = float("nan")


def scored(functions, completion_ids, weights=None) -> Scores:
    reward = RewardSum(functions, weights)
    count = len(completion_ids)
    return reward(["x"] * count, completion_ids, BatchColumns({}, None, []), list(range(count)), None)


def giving(rewards, prefixes=None, targets=None):
    def reward(completions, **kwargs):
        return RewardOutput(rewards, targets, None if prefixes is None else torch.tensor(prefixes))

    return reward


def test_a_token_can_still_earn_the_reward_minus_what_was_earned_before_it():
    scores = scored(giving([3.0, 1.0], [[0.0, 1.0, 1.0], [0.0, 9.0, NAN]]), [[5, 5, 1], [1]])
    assert scores.returns.tolist() == [
        [3, 2, 2, 0],
        [1, 0, 0, 0],
    ]  # after an end nothing is left to earn, whatever is given there
    assert scores.returns_of(2).tolist() == [[3, 2], [1, 0]]
    assert scores.returns_of(6).tolist() == [[3, 2, 2, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


def test_a_reward_without_prefixes_is_all_still_to_be_earned():
    scores = scored([giving([3.0, 1.0], [[0.0, 1.0], [0.0, 0.5]]), giving([10.0, 20.0])], [[5, 1], [5, 1]], [2.0, 0.1])
    assert scores.returns_of(3).tolist() == [[7, 5, 1], [4, 3, 2]]
    assert scores.rewards.tolist() == [7, 4]


def test_a_reward_that_does_not_apply_leaves_the_others_prefixes():
    functions = [giving([3.0, None, None], [[0.0, 1.0], [NAN, NAN], [0.0, 0.0]]), giving([None, 5.0, None])]
    returns = scored(functions, [[5, 1]] * 3).returns_of(2)
    torch.testing.assert_close(returns, torch.tensor([[3.0, 2.0], [5.0, 5.0], [NAN, NAN]]), equal_nan=True)


def test_nothing_is_paid_where_no_reward_has_them():
    assert scored([giving([3.0, 1.0]), giving([0.0, 1.0])], [[5, 1], [1]]).returns is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_where_nothing_more_is_earned_the_advantage_is_exactly_0(seed, functions):
    """A rounding error would make the learning pass decode tokens that have nothing to teach."""
    generator = torch.Generator().manual_seed(seed)
    earned = torch.rand(functions, 4, 3, generator=generator).cumsum(-1)
    earned[..., 2] = earned[..., 1]
    rewards = [giving(each[:, 2].tolist(), torch.nn.functional.pad(each, (1, 0)).tolist()) for each in earned]
    returns = scored(rewards, [[5] * 4] * 4, [0.3, 0.7, 1.1][:functions]).returns_of(4)
    assert (returns[:, 2:] == 0).all() and (leave_one_out_advantages(returns[None])[..., 2:] == 0).all()


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ([[0.0], [0.0]], r"prefix_rewards of the shape \(2, 1\); it must be \(2, T\), .*has 2"),
        ([[0.0, 0.0]], r"prefix_rewards of the shape \(1, 2\)"),
        ([0.0, 0.0], r"prefix_rewards of the shape \(2,\)"),
        ([[0.0, NAN], [0.0, 0.0]], "a prefix reward of nan for completion 0, token 1"),
        ([[0.0, 0.0], [float("inf"), 0.0]], "a prefix reward of inf for completion 1, token 0"),
    ],
)
def test_prefix_rewards_that_do_not_fit_name_the_reward(prefixes, message):
    with pytest.raises(ValueError, match=f"The reward `reward` gave {message}"):
        scored(giving([1.0, 1.0], prefixes), [[5, 1], [5, 1]])


@pytest.mark.parametrize(
    ("ids", "probabilities", "among", "message"),
    [
        ([[1, 2]], [[0.5, 0.4]], "vocabulary", "must sum to 1"),
        ([[1, 2]], [[1.5, -0.5]], "vocabulary", "must sum to 1"),
        ([[1, 2]], [[NAN, 1.0]], "candidates", "must sum to 1"),
        ([[2, 2]], [[0.5, 0.5]], "candidates", "the same id twice at one position"),
        ([[2, -1]], [[0.5, 0.5]], "vocabulary", "an id below 0"),
    ],
)
def test_token_targets_that_are_no_distribution_name_the_reward(ids, probabilities, among, message):
    targets = TokenTargets(
        torch.zeros(1, 2, dtype=torch.long), torch.tensor(ids), torch.tensor(probabilities), 1.0, among
    )
    with pytest.raises(ValueError, match=f"The reward `reward` gave token targets .*{message}"):
        scored(giving([1.0], targets=targets), [[5, 1]])


def test_token_targets_know_among_what():
    place, one = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 1)
    with pytest.raises(ValueError, match="among must be 'vocabulary' or 'candidates', got 'all'"):
        TokenTargets(place, one.long(), one, among="all")
    with pytest.raises(
        ValueError, match="one candidate per position, whose probability among='candidates' is always 1"
    ):
        TokenTargets(place, one.long(), one, among="candidates")


# --- in the trainer -------------------------------------------------------------------------------------------------


def letters_a(completions, completion_ids, **kwargs):
    """A reward of 1 for each a, earned when it is written."""
    longest = max(map(len, completion_ids))
    earned = torch.tensor([[text[:t].count("a") for t in range(longest)] for text in completions], dtype=torch.float32)
    return RewardOutput([float(text.count("a")) for text in completions], prefix_rewards=earned)


def trainer(tmp_path, reward, cls=VisionRewardTrainer, **options):
    defaults = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 3e-3, "logging_steps": 1}
    args = VisionRewardConfig(
        str(tmp_path),
        max_completion_length=6,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{**defaults, **options},
    )
    return cls(tiny_model(), reward, args, train_dataset=text_dataset(16), processing_class=text_processor())


class Looking(VisionRewardTrainer):
    def _learn(self, model, inputs, completions, advantages, *args):
        self.seen = (completions, advantages)
        return super()._learn(model, inputs, completions, advantages, *args)


def test_the_trainer_gives_each_token_its_own_advantage(tmp_path):
    tuned = trainer(tmp_path, letters_a, Looking, max_steps=1, num_generations=3)
    tuned.train()
    completions, advantages = tuned.seen
    assert isinstance(completions, SampledCompletions) and advantages.shape == completions.completion_ids.shape
    texts = tuned.processor.batch_decode(completions.completion_ids.flatten(0, 1).tolist())
    to_come = torch.tensor([[text[t:].count("a") for t in range(advantages.shape[2])] for text in texts]).float()
    to_come = to_come.view_as(advantages)
    by_hand = to_come - (to_come.sum(1, keepdim=True) - to_come) / 2
    written = completions.completion_mask > 0
    torch.testing.assert_close(advantages[written], by_hand[written])


@pytest.mark.parametrize("baseline", ["leave_one_out", "first", "greedy", "mean", "none"])
def test_tuning_by_what_each_token_can_still_earn_raises_the_reward(tmp_path, baseline):
    tuned = trainer(tmp_path, [letters_a, share_of_a], max_steps=40, num_generations=4, baseline=baseline)
    tuned.train()
    rewards = [entry["reward"] for entry in tuned.state.log_history if "loss" in entry]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])


def equal_in_all(completions, completion_ids, **kwargs):
    """A reward of 1 for each completion, which every second one earns two tokens later than the others."""
    earned = torch.zeros(len(completions), max(map(len, completion_ids)) + 1)
    for place in range(len(completions)):
        earned[place, 1 + place % 2 * 2 :] = 1.0
    return RewardOutput([1.0] * len(completions), prefix_rewards=earned)


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
def test_samples_that_earn_as_much_at_other_tokens_are_not_scaled_up(tmp_path, scale_rewards):
    tuned = trainer(tmp_path, equal_in_all, Looking, max_steps=1, num_generations=4, scale_rewards=scale_rewards)
    tuned.train()
    _, advantages = tuned.seen
    assert 0 < advantages.abs().max() < 4 and advantages.square().mean().sqrt() <= 1.01


def test_the_split_into_micro_batches_changes_nothing(tmp_path):
    logs = []
    for batch, accumulated in ((4, 1), (1, 4)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        tuned = trainer(tmp_path, letters_a, **options)
        tuned.train()
        logs.append([entry for entry in tuned.state.log_history if "loss" in entry])
    for whole, split in zip(*logs, strict=True):
        assert split["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
