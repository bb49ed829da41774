"""The expected gradient of each estimator, by enumeration of all sequences, equals the exact gradient."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_rl import RewardOutput
from vision_rl.models.log_prob_head import weigh_logits
from vision_rl.tasks.detection.rewards import ABSENT, HIGH, LOW, TOKENS_PER_BOX, confidence_targets
from vision_rl.trainer.advantages import (
    first_advantages,
    greedy_advantages,
    leave_one_out_advantages,
    mean_advantages,
    no_baseline_advantages,
)
from vision_rl.trainer.collator import BatchColumns
from vision_rl.trainer.losses import reinforce_weights, token_target_weights
from vision_rl.trainer.metrics import reward_metrics
from vision_rl.trainer.reward_scaling import group_scaled
from vision_rl.trainer.scoring import RewardSum


VOCAB, LENGTH, GENERATIONS = 3, 2, 3


@pytest.fixture
def policy():
    """A policy of two tokens in float64: logits of the first token, and of the second given the first."""
    torch.manual_seed(0)
    first = torch.randn(VOCAB, dtype=torch.float64, requires_grad=True)
    second = torch.randn(VOCAB, VOCAB, dtype=torch.float64, requires_grad=True)
    sequences = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))  # (9, 2)
    rewards = torch.randn(len(sequences), dtype=torch.float64)

    def logits_of(ids):
        return torch.stack([first.expand(len(ids), -1), second[ids[:, 0]]], dim=1)  # (R, 2, V)

    return (first, second), sequences, rewards, logits_of


def probabilities(logits_of, ids):
    return logits_of(ids).softmax(-1).gather(-1, ids[..., None]).squeeze(-1).prod(1)  # (R,)


def exact_gradient(policy):
    parameters, sequences, rewards, logits_of = policy
    expected_reward = (probabilities(logits_of, sequences) * rewards).sum()
    return torch.autograd.grad(-expected_reward, parameters)  # the loss is minus the reward


def expected_gradient(policy, advantages_of, num_learning):
    """The gradient of the loss of a group of G sequences times the group's probability, summed over all groups."""
    parameters, sequences, rewards, logits_of = policy
    groups = torch.tensor(list(itertools.product(range(len(sequences)), repeat=GENERATIONS)))  # (9^G, G)
    with torch.no_grad():
        probability = probabilities(logits_of, sequences)[groups].prod(1)
    advantages = advantages_of(rewards[groups])  # (9^G, G)
    ids = sequences[groups.flatten()]  # (9^G * G, 2)
    weighted = (probability[:, None] * advantages).flatten()
    loss, _ = weigh_logits(logits_of(ids), reinforce_weights(ids, torch.ones_like(ids), weighted))
    return torch.autograd.grad(loss / num_learning, parameters)


@pytest.mark.parametrize(
    ("name", "num_learning"),
    [("leave_one_out", GENERATIONS), ("first", 1), ("greedy", GENERATIONS), ("none", GENERATIONS)],
)
def test_the_expected_gradient_is_the_exact_gradient_of_the_expected_reward(policy, name, num_learning):
    _, sequences, rewards, logits_of = policy
    greedy_reward = rewards[probabilities(logits_of, sequences).argmax()]  # any constant would do
    advantages_of = {
        "leave_one_out": leave_one_out_advantages,
        "first": first_advantages,
        "greedy": lambda r: greedy_advantages(r, greedy_reward.expand(len(r))),
        "none": no_baseline_advantages,
    }[name]
    for estimate, exact in zip(
        expected_gradient(policy, advantages_of, num_learning), exact_gradient(policy), strict=True
    ):
        torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-6)


def test_the_mean_baseline_shrinks_the_gradient_by_g_minus_1_over_g(policy):
    estimates = expected_gradient(policy, mean_advantages, GENERATIONS)
    for estimate, exact in zip(estimates, exact_gradient(policy), strict=True):
        torch.testing.assert_close(estimate, exact * (GENERATIONS - 1) / GENERATIONS, rtol=0, atol=1e-6)


def test_leave_one_out_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(leave_one_out_advantages(rewards), torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5]]))
    torch.testing.assert_close(first_advantages(rewards), torch.tensor([[-3.0, 0.0, 0.0]]))


def test_an_unscored_sample_neither_learns_nor_serves_as_a_baseline():
    nan = float("nan")
    rewards = torch.tensor([[1.0, nan, 3.0], [nan, nan, 5.0], [nan, nan, nan]])
    expected = torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(leave_one_out_advantages(rewards), expected)
    assert mean_advantages(rewards).isfinite().all()
    assert first_advantages(torch.tensor([[nan, 1.0]])).tolist() == [[0.0, 0.0]]


SIBLING_ADVANTAGES = (leave_one_out_advantages, first_advantages, mean_advantages)


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(2, 16), st.integers(0, 3), st.booleans())
def test_a_group_of_equal_rewards_has_no_gradient_whatever_their_size(reward, num_scored, num_unscored, per_token):
    rewards = torch.tensor([[reward] * num_scored + [float("nan")] * num_unscored])
    returns = torch.stack([rewards, rewards - 1.5], dim=-1) if per_token else rewards
    for advantages in SIBLING_ADVANTAGES:
        assert (advantages(returns) == 0).all() and (group_scaled(advantages(returns), returns) == 0).all()
    metrics = reward_metrics(rewards, rewards.view(-1, 1), ["reward"])
    assert metrics["frac_reward_zero_std"] == 1
    assert metrics["reward_std"] == metrics["rewards/reward/std"] == metrics["reward_std_within_image"] == 0


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=9), st.integers(0, 2))
def test_advantages_of_unequal_rewards_are_those_of_exact_arithmetic(rewards, num_unscored):
    exact = torch.tensor(rewards, dtype=torch.float64)
    others = (exact.sum() - exact) / (len(rewards) - 1)
    expected = [exact - others, (exact - others) * (torch.arange(len(rewards)) == 0), exact - exact.mean()]
    given_rewards = torch.tensor([rewards + [float("nan")] * num_unscored])
    for advantages, by_hand in zip(SIBLING_ADVANTAGES, expected, strict=True):
        ours = advantages(given_rewards)[0]
        torch.testing.assert_close(ours[: len(rewards)].double(), by_hand, rtol=0, atol=1e-2)
        assert (ours[len(rewards) :] == 0).all()


def test_rewards_that_differ_by_little_are_not_counted_as_equal():
    rewards = torch.tensor([[1e-7, 2e-7], [1000.0, 1000.0]])
    assert reward_metrics(rewards, rewards.view(-1, 1), ["reward"])["frac_reward_zero_std"] == 0.5


def test_an_infinite_reward_leaves_an_infinite_advantage_to_be_noticed():
    infinite = torch.tensor([[1.0, float("inf"), 2.0]])
    for advantages in (leave_one_out_advantages, first_advantages):
        assert advantages(infinite)[0, 0] == -float("inf")


def test_what_lies_behind_the_end_token_has_no_gradient_even_where_it_is_forbidden():
    logits = torch.tensor([[[0.0, 0.0], [float("-inf"), 0.0]]], requires_grad=True)
    tokens = reinforce_weights(torch.tensor([[1, 0]]), torch.tensor([[1, 0]]), torch.tensor([2.0]))
    loss, _ = weigh_logits(logits, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(2.0 * math.log(2))
    assert logits.grad.tolist() == [[[1.0, -1.0], [0.0, 0.0]]]


# --- prefix rewards: what was earned before a token leaves its advantage ------------------------------------------

END = 0


@pytest.fixture
def ending_policy():
    """Like `policy`, but token 0 ends a completion. The 7 sequences (0), (1, 0), (1, 1), ... are padded with 0."""
    torch.manual_seed(1)
    first = torch.randn(VOCAB, dtype=torch.float64, requires_grad=True)
    second = torch.randn(VOCAB, VOCAB, dtype=torch.float64, requires_grad=True)
    sequences = torch.tensor([[END, END], *itertools.product(range(1, VOCAB), range(VOCAB))])  # (7, 2)
    mask = torch.tensor([[1, 0], *[[1, 1]] * 6])

    def token_probabilities(ids, mask):
        logits = torch.stack([first.expand(len(ids), -1), second[ids[:, 0]]], dim=1)
        return logits.softmax(-1).gather(-1, ids[..., None]).squeeze(-1).where(mask > 0, 1.0)

    return (first, second), sequences, mask, token_probabilities


def returns_of(sequences, mask, only_plain=False):
    """Sums of three rewards `(S,)` and what each token can still earn `(S, 2)`.

    One reward has prefix rewards, one has none, and one applies only to some sequences.
    """
    earned_at = torch.tensor([[0.3, 0.0], [1.0, -0.5], [1.0, 0.9], [1.0, 0.1], [-2.0, 0.2], [-2.0, 0.4], [-2.0, 1.3]])

    def earning(completions, **kwargs):
        prefixes = torch.stack([torch.zeros(len(sequences)), earned_at[:, 0]], dim=1)
        return RewardOutput(earned_at.sum(1).tolist(), prefix_rewards=None if only_plain else prefixes)

    def plain(completions, **kwargs):
        return [0.5, -1.0, 2.0, 0.0, 0.7, 0.0, -0.3]

    def sparse(completions, **kwargs):
        return [None, 1.0, None, 2.0, None, 0.0, 1.0]

    ids = [row[: int(n)].tolist() for row, n in zip(sequences, mask.sum(1), strict=True)]
    reward = RewardSum([earning, plain, sparse], weights=[1.5, 1.0, 0.5])
    scores = reward(ids, ids, BatchColumns({}, None, []), list(range(len(ids))), None)
    return scores.rewards.double(), scores.returns_of(LENGTH).double()


def gradient_of_groups(ending_policy, advantages_of, num_learning, only_plain=False):
    """The gradient `(groups, parameters)` of each group of G completions, and the probability of each group."""
    parameters, sequences, mask, token_probabilities = ending_policy
    groups = torch.tensor(list(itertools.product(range(len(sequences)), repeat=GENERATIONS)))
    of_tokens = token_probabilities(sequences, mask)  # (7, 2)
    _, returns = returns_of(sequences, mask, only_plain)
    advantages = advantages_of(returns[groups]).double()  # (7^G, G, T)
    scores = [torch.autograd.grad(one, parameters, retain_graph=True) for one in of_tokens.log().flatten()]
    tokens = torch.stack([torch.cat([part.flatten() for part in score]) for score in scores])
    tokens = tokens.view(*sequences.shape, -1)  # (7, 2, parameters): the gradient of each token's log-probability
    weights = (-advantages * mask[groups])[..., None]
    gradients = (weights * tokens[groups]).sum((1, 2)) / num_learning
    probability = of_tokens.prod(1)[groups].prod(1).detach()
    return gradients, probability


def exact_gradient_of_endings(ending_policy):
    parameters, sequences, mask, token_probabilities = ending_policy
    rewards, _ = returns_of(sequences, mask)
    expected = (token_probabilities(sequences, mask).prod(1) * rewards).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(-expected, parameters)])


@pytest.mark.parametrize(
    ("name", "num_learning", "factor"),
    [
        ("leave_one_out", GENERATIONS, 1),
        ("first", 1, 1),
        ("greedy", GENERATIONS, 1),
        ("none", GENERATIONS, 1),
        ("mean", GENERATIONS, (GENERATIONS - 1) / GENERATIONS),
    ],
)
def test_with_prefix_rewards_the_expected_gradient_is_the_same(ending_policy, name, num_learning, factor):
    _, sequences, mask, _ = ending_policy
    _, returns = returns_of(sequences, mask)
    advantages_of = {
        "leave_one_out": leave_one_out_advantages,
        "first": first_advantages,
        "greedy": lambda r: greedy_advantages(r, returns[3].expand(len(r), -1)),
        "none": no_baseline_advantages,
        "mean": mean_advantages,
    }[name]
    gradients, probability = gradient_of_groups(ending_policy, advantages_of, num_learning)
    expected = (probability[:, None] * gradients).sum(0)
    torch.testing.assert_close(expected, factor * exact_gradient_of_endings(ending_policy), rtol=0, atol=1e-6)


@pytest.mark.parametrize("advantages_of", [leave_one_out_advantages, first_advantages, mean_advantages])
def test_with_prefix_rewards_the_gradient_varies_less(ending_policy, advantages_of):
    def variance(only_plain):
        gradients, probability = gradient_of_groups(ending_policy, advantages_of, 1, only_plain)
        mean = (probability[:, None] * gradients).sum(0)
        return (probability[:, None] * (gradients - mean).square()).sum()

    assert variance(only_plain=False) < 0.9 * variance(only_plain=True)


# --- confidences: two losses, one expected gradient ---------------------------------------------------------------------


@pytest.mark.parametrize("num_boxes", [1, 2])
def test_confidences_among_candidates_have_the_released_expected_gradient_and_less_variance(num_boxes):
    """Enumerates the answers of a policy whose confidences depend on those before. IoUs differ between answers."""
    torch.manual_seed(2)
    answers = torch.tensor(list(itertools.product((ABSENT, LOW, HIGH), repeat=num_boxes)))  # (3^N, N)
    table = torch.randn(num_boxes, 3 ** (num_boxes - 1), 3, dtype=torch.float64, requires_grad=True)
    history = torch.zeros_like(answers)
    for box in range(1, num_boxes):
        history[:, box] = history[:, box - 1] * 3 + answers[:, box - 1]
    logits = torch.stack([table[box, history[:, box]] for box in range(num_boxes)], dim=1)  # (3^N, N, 3)
    probability = logits.softmax(-1).gather(-1, answers[..., None]).squeeze(-1).prod(1).detach()
    match_iou, present = torch.rand(answers.shape), answers > ABSENT
    places = torch.zeros(len(answers), TOKENS_PER_BOX * num_boxes, 3, dtype=torch.float64)

    def gradients(among):
        targets = confidence_targets(match_iou, present, among=among)
        whole = places.index_copy(1, torch.arange(num_boxes) * TOKENS_PER_BOX + TOKENS_PER_BOX - 1, logits)
        tokens = token_target_weights(targets, targets.weight)
        losses = [weigh_logits(whole, tokens[tokens.rows == row])[0] for row in range(len(answers))]
        return torch.stack([torch.autograd.grad(loss, table, retain_graph=True)[0].flatten() for loss in losses])

    moments = []
    for among in ("vocabulary", "candidates"):
        each = gradients(among)
        mean = (probability[:, None] * each).sum(0)
        moments.append((mean, (probability[:, None] * (each - mean).square()).sum()))
    (released, of_released), (quiet, of_quiet) = moments
    assert released.abs().max() > 1e-3
    torch.testing.assert_close(quiet, released, rtol=0, atol=1e-7)
    assert of_quiet < 0.5 * of_released
