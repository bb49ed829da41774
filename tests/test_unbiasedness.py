"""The estimators' expected gradient, by going through every sequence there is, against the exact gradient."""

import itertools
import math

import pytest
import torch

from vision_rl.models.log_prob_head import weigh_logits
from vision_rl.trainer.advantages import (
    first_advantages,
    greedy_advantages,
    leave_one_out_advantages,
    mean_advantages,
    no_baseline_advantages,
)
from vision_rl.trainer.losses import reinforce_weights


VOCAB, LENGTH, GENERATIONS = 3, 2, 3


@pytest.fixture
def policy():
    """An autoregressive toy: the first token's logits, and the second's for each first token, in float64."""
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
    return torch.autograd.grad(-expected_reward, parameters)  # a loss: the negative


def expected_gradient(policy, advantages_of, num_learning):
    """Sum over all groups of G sequences of their probability times the gradient of the loss."""
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
    greedy_reward = rewards[probabilities(logits_of, sequences).argmax()]  # any constant of the samples would do
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


def test_a_group_of_equal_rewards_has_no_gradient():
    for advantages in (leave_one_out_advantages, first_advantages, mean_advantages):
        assert not advantages(torch.full((2, 4), 0.7)).abs().max() > 1e-6


def test_what_lies_behind_the_end_token_has_no_gradient_even_where_it_is_forbidden():
    logits = torch.tensor([[[0.0, 0.0], [float("-inf"), 0.0]]], requires_grad=True)
    tokens = reinforce_weights(torch.tensor([[1, 0]]), torch.tensor([[1, 0]]), torch.tensor([2.0]))
    loss, _ = weigh_logits(logits, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(2.0 * math.log(2))
    assert logits.grad.tolist() == [[[1.0, -1.0], [0.0, 0.0]]]
