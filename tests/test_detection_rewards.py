"""Detection rewards equal recorded outputs of the authors' code, and a few cases worked out by hand."""

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import golden

import vision_rl
from vision_rl.models.log_prob_head import weigh_logits
from vision_rl.tasks.detection.rewards import (
    ABSENT,
    HIGH,
    LOW,
    THRESHOLDS,
    AveragePrecisionReward,
    RecallReward,
    class_weights,
    confidence_targets,
    detection_reward,
    read_tokens,
)
from vision_rl.trainer.advantages import first_advantages
from vision_rl.trainer.losses import reinforce_weights, token_target_weights


def tokens(*boxes) -> torch.Tensor:
    """Ids of boxes (y0, x0, y1, x1, class, confidence) with levels 0..1000 and 80 classes."""
    ids = [i for y0, x0, y1, x1, c, conf in boxes for i in (y0 + 3, x0 + 3, y1 + 3, x1 + 3, c + 1004, conf)]
    return torch.tensor(ids, dtype=torch.long)


def score(found, true, **options):
    return detection_reward(tokens(*found)[None, None], tokens(*true)[None], **options)


# --- against the authors' code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", range(5))
def test_rewards_equal_the_released_code(group):
    z = golden("detection_reward.npz")
    part = {name.split("_", 1)[1]: torch.tensor(z[name]) for name in z.files if name.startswith(f"g{group}_")}
    weights = torch.tensor(z["class_weights"])
    out = detection_reward(part["pred"].long(), part["gt"].long(), class_weights=weights)
    torch.testing.assert_close(out.rewards_per_threshold, part["thr_reward"], atol=3e-6, rtol=0)
    assert torch.equal(out.num_matches.int(), part["thr_num_matches"])
    torch.testing.assert_close(out.rewards, part["reward_uncollided"], atol=3e-6, rtol=0)
    torch.testing.assert_close(out.match_iou, part["match_iou"], atol=2e-5, rtol=0)  # theirs is rounded
    assert torch.equal(out.present, part["correct"] > 0)
    released = detection_reward(part["pred"].long(), part["gt"].long(), class_weights=weights, released_total=True)
    torch.testing.assert_close(released.rewards, part["reward"], atol=3e-6, rtol=0)


def test_rewards_equal_the_released_code_on_sampled_sequences():
    z = golden("detection_reward_sampled.npz")
    ids, targets = torch.tensor(z["seqs_pred"]).long(), torch.tensor(z["seqs_gt"]).long()
    weights = torch.tensor(z["class_weights"])
    out = detection_reward(ids, targets, class_weights=weights)
    per_threshold = torch.tensor(z["reward_per_threshold"]).permute(1, 2, 0)
    torch.testing.assert_close(out.rewards_per_threshold, per_threshold, atol=3e-6, rtol=0)
    torch.testing.assert_close(out.rewards, torch.tensor(z["reward_mean_of_thresholds"]), atol=3e-6, rtol=0)
    torch.testing.assert_close(out.match_iou, torch.tensor(z["match_iou_at_05"]), atol=2e-5, rtol=0)
    released = detection_reward(ids, targets, class_weights=weights, released_total=True)
    torch.testing.assert_close(released.rewards, torch.tensor(z["reward_fn_as_released"]), atol=3e-6, rtol=0)
    torch.testing.assert_close(class_weights(z["class_counts"].tolist()), weights.float(), atol=1e-6, rtol=0)


def test_tokens_are_read_as_the_released_code_reads_them():
    z = golden("detection_reward.npz")
    found = read_tokens(torch.tensor(z["seq2box_in"]).long())
    torch.testing.assert_close(found.levels / 1000, torch.tensor(z["seq2box_boxes"]), atol=1e-6, rtol=0)
    assert torch.equal(found.labels.int(), torch.tensor(z["seq2box_labels"]))
    assert torch.equal(found.present, torch.tensor(z["seq2box_confs"]) > 0)


def test_the_loss_and_its_gradient_equal_the_released_docstring():
    """The released loss is ours with `baseline="first"`, `loss_reduction="mean"` and the confidences of sample 0."""
    z = golden("detection_loss.npz")
    ids = torch.tensor(z["sample_seqs"][:, 0]).long()  # (B, L)
    logits = (2 * torch.tensor(z["logits"].astype(np.float32))).requires_grad_()
    advantages = first_advantages(torch.tensor(z["sample_rewards"]))[:, 0]
    num_rows, length = ids.shape
    present = read_tokens(ids).present
    targets = confidence_targets(torch.tensor(z["match_iou"])[:, 0], present, float(z["conf_w"]), among="vocabulary")
    drawn = reinforce_weights(ids, torch.ones_like(ids), advantages / (length * num_rows))
    reinforce, _ = weigh_logits(logits, drawn)
    confidence, _ = weigh_logits(logits, token_target_weights(targets, 1 / num_rows))
    assert reinforce.item() == pytest.approx(float(z["loss_reward"]), rel=1e-5)
    assert confidence.item() == pytest.approx(float(z["loss_conf"]), rel=1e-5)
    loss = reinforce + targets.weight * confidence
    assert loss.item() == pytest.approx(float(z["loss"]), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient[:, :, ::7], torch.tensor(z["grad_logits_sub"]), atol=1e-7, rtol=1e-4)


box = st.tuples(*[st.integers(0, 12)] * 4, st.integers(0, 1), st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(box, max_size=8), st.lists(box, max_size=4), st.integers(0, 5), st.booleans())
def test_prefix_rewards_are_those_of_the_completion_cut_there(found, true, cut, released):
    options = {"class_weights": torch.linspace(0.5, 2, 80), "released_total": released}
    ids = torch.cat([tokens(*found), tokens((1, 1, 5, 5, 0, 1))[:cut]])
    prefixes = detection_reward(ids[None, None], tokens(*true)[None], **options).prefix_rewards(len(ids))
    cuts = [detection_reward(ids[None, None, :t], tokens(*true)[None], **options).rewards for t in range(len(ids))]
    torch.testing.assert_close(prefixes.flatten(), torch.cat([torch.zeros(0, 1), *cuts]).flatten(), atol=1e-6, rtol=0)


def test_a_box_earns_when_it_is_the_first_to_find_and_pays_when_it_repeats():
    near = (
        0,
        0,
        300,
        400,
        7,
        LOW,
    )  # IoU 0.75: at threshold 0.5 the box after it is a duplicate, at 0.9 that box is the one that finds
    out = score([near, TRUE], [TRUE], thresholds=(0.5, 0.9))
    assert out.rewards_per_box.flatten().tolist() == pytest.approx([0.5, (-0.3 + 1) / 2])
    assert out.prefix_rewards(12).flatten().tolist() == pytest.approx([0.0] * 6 + [0.5] * 6)


def test_counts_without_a_box_are_refused():
    with pytest.raises(ValueError, match="class_counts are all 0"):
        AveragePrecisionReward(num_bins=32, num_labels=2, class_counts=[0, 0])


# --- by hand --------------------------------------------------------------------------------------------------------

TRUE = (0, 0, 400, 400, 7, HIGH)


def test_a_perfect_box_is_worth_one_and_an_empty_answer_nothing():
    assert score([TRUE], [TRUE]).rewards.item() == pytest.approx(1)
    assert score([], [TRUE]).rewards.item() == 0
    assert score([(0, 0, 0, 0, 0, ABSENT)], [TRUE]).rewards.item() == 0


def test_a_box_that_overlaps_nothing_costs_nothing():
    assert score([TRUE, (600, 600, 800, 800, 7, HIGH)], [TRUE]).rewards.item() == 1


def test_with_a_price_a_box_that_finds_nothing_costs_it_at_each_threshold_that_it_misses():
    near, far, hole = (0, 0, 300, 400, 7, LOW), (600, 600, 800, 800, 3, HIGH), (0, 0, 0, 0, 0, ABSENT)
    options = {"thresholds": (0.5, 0.9), "false_positive_weight": 0.2}  # near has an IoU of 0.75
    assert score([near, hole], [TRUE], **options).rewards.item() == pytest.approx((1 - 0.2) / 2)
    assert score([TRUE, far], [TRUE], **options).rewards.item() == pytest.approx(1 - 0.2)
    assert score([far], [], **options).rewards.item() == pytest.approx(-0.2)
    # after TRUE, `near` is a duplicate at 0.5 and a false positive at 0.9
    assert score([TRUE, near], [TRUE], **options).rewards.item() == pytest.approx(1 - (0.3 + 0.2) / 2)
    weights = torch.ones(80)
    weights[3] = 2.0
    assert score([far], [], class_weights=weights, **options).rewards.item() == pytest.approx(-0.4)


@settings(max_examples=60, deadline=None)
@given(st.lists(box, max_size=8), st.lists(box, max_size=4))
def test_every_box_is_a_match_a_duplicate_or_a_false_positive(found, true):
    plain, priced = (score(found, true, false_positive_weight=price) for price in (0.0, 0.25))
    false = plain.present.sum() - plain.num_matches - plain.num_duplicates  # at each threshold
    torch.testing.assert_close(plain.rewards_per_threshold - priced.rewards_per_threshold, 0.25 * false)


def test_an_iou_of_exactly_the_threshold_is_no_match():
    half = (0, 0, 200, 400, 7, HIGH)  # IoU 0.5
    assert score([half], [TRUE], thresholds=(0.5,)).rewards.item() == 0
    assert score([half], [TRUE], thresholds=(0.49,)).rewards.item() == 1


def test_a_duplicate_costs_three_tenths_and_the_better_box_wins():
    near = (0, 0, 380, 400, 7, LOW)  # IoU 0.95, which is not above 0.95
    out = score([near, TRUE], [TRUE])
    assert out.num_matches[0, 0].tolist() == [1] * 10
    assert out.num_duplicates[0, 0].tolist() == [1] * 9 + [0]
    assert out.rewards.item() == pytest.approx(1 - 0.3 * 0.9)
    assert out.match_iou[0, 0].tolist() == pytest.approx([0.95, 1.0])  # the duplicate keeps its IoU


def test_of_equal_predictions_the_first_wins():
    out = score([TRUE, TRUE, TRUE], [TRUE], thresholds=(0.5,))
    assert out.rewards.item() == pytest.approx(1 - 0.6)


def test_one_prediction_of_two_true_boxes_finds_one():
    other = (0, 0, 380, 400, 7, HIGH)
    assert score([TRUE], [TRUE, other], thresholds=(0.5,)).num_matches.item() == 1
    both = score([TRUE, other], [TRUE, other], thresholds=(0.5,))
    assert (both.num_matches.item(), both.num_duplicates.item()) == (2, 0)


def test_a_loser_is_not_given_another_true_box():
    """Both predictions overlap A most. The second overlaps B as well, but it is A's duplicate, and B is missed."""
    a, b = (0, 0, 400, 400, 7, HIGH), (100, 0, 500, 400, 7, HIGH)
    close_to_a = (40, 0, 440, 400, 7, HIGH)
    out = score([a, close_to_a], [a, b], thresholds=(0.5,))
    assert (out.num_matches.item(), out.num_duplicates.item()) == (1, 1)


def test_the_wrong_class_is_neither_match_nor_duplicate():
    out = score([(0, 0, 400, 400, 8, HIGH), TRUE], [TRUE], thresholds=(0.5,))
    assert (out.num_matches.item(), out.num_duplicates.item()) == (1, 0)


def test_boxes_behind_an_absent_one_count():
    hole = (0, 0, 0, 0, 0, ABSENT)
    assert score([hole, TRUE], [hole, TRUE]).rewards.item() == 1


def test_an_absent_box_counts_on_neither_side():
    absent = (*TRUE[:5], ABSENT)
    assert score([absent], [TRUE]).rewards.item() == 0
    assert score([TRUE], [absent]).rewards.item() == 0


def test_degenerate_boxes_match_nothing():
    flat = (100, 100, 100, 300, 7, HIGH)
    assert score([flat], [flat]).rewards.item() == 0


def test_an_incomplete_box_at_the_end_is_left_out():
    cut = torch.cat([tokens(TRUE), tokens(TRUE)[:4]])
    assert detection_reward(cut[None, None], tokens(TRUE)[None]).rewards.item() == 1


def test_class_weights_weigh_matches_and_duplicates():
    weights = torch.ones(80)
    weights[7] = 0.5
    out = score([TRUE, TRUE], [TRUE], class_weights=weights, thresholds=(0.5,))
    assert out.rewards.item() == pytest.approx(0.5 * (1 - 0.3))


def test_class_weights_have_mean_one_and_are_bounded():
    weights = class_weights([1000, 10, 0])
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0] < weights[1] < weights[2] < 21 * weights[0] + 1e-6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1200), max_size=60), st.lists(st.integers(0, 1200), max_size=60))
def test_any_ids_have_a_reward_between_the_duplicates_and_the_true_boxes(found, true):
    out = detection_reward(torch.tensor(found).long()[None, None], torch.tensor(true).long()[None])
    assert out.rewards.isfinite().all()
    num_true = int(read_tokens(torch.tensor(true).long()).present.sum())
    assert (out.num_matches <= num_true).all()
    assert ((out.match_iou >= 0) & (out.match_iou <= 1 + 1e-5)).all()


# --- as rewards of the trainer --------------------------------------------------------------------------------------


def test_recall_reward_scores_each_completion_against_its_own_reference():
    reward = RecallReward(num_bins=1000, num_labels=80)
    references = [
        {"target_ids": tokens(TRUE).tolist()},
        {"target_ids": tokens(TRUE, (600, 600, 800, 800, 3, 1)).tolist()},
    ]
    completion_ids = [tokens(TRUE, TRUE).tolist(), tokens((600, 600, 800, 800, 3, 1), TRUE).tolist()]
    output = reward(completion_ids=completion_ids, references=references)
    assert output.rewards == pytest.approx([0.7, 2.0])
    assert output.prefix_rewards[:, ::6].tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_average_precision_reward_teaches_confidences_the_iou():
    reward = AveragePrecisionReward(num_bins=1000, num_labels=80)
    near, hole = (0, 0, 300, 400, 7, LOW), (0, 0, 0, 0, 0, ABSENT)
    output = reward(completion_ids=[tokens(near, hole).tolist()], references=[{"target_ids": tokens(TRUE).tolist()}])
    assert output.rewards == pytest.approx([0.5])  # IoU 0.75 is above five of the ten thresholds
    targets = output.token_targets
    assert targets.weight == 0.3
    assert targets.positions.tolist() == [[0, 5], [0, 11]]
    assert (targets.among, targets.ids.tolist()) == ("candidates", [[LOW, HIGH]] * 2)
    assert targets.probabilities.tolist() == [pytest.approx([0.25, 0.75]), [0, 0]]


def test_both_rewards_of_the_trainer_give_false_positives_their_price():
    references = [{"target_ids": tokens(TRUE).tolist()}]
    completion_ids = [tokens(TRUE, (600, 600, 800, 800, 3, 1)).tolist()]
    for reward in (RecallReward, AveragePrecisionReward):
        priced = reward(1000, 80, false_positive_weight=0.1)(completion_ids=completion_ids, references=references)
        assert priced.rewards == pytest.approx([0.9])
        assert priced.prefix_rewards[0, ::6].tolist() == pytest.approx([0.0, 1.0])
        with pytest.raises(ValueError, match="false_positive_weight"):
            reward(1000, 80, false_positive_weight=-0.1)


def test_the_released_confidence_loss_is_there_by_name():
    reward = AveragePrecisionReward(num_bins=1000, num_labels=80, confidence_among="vocabulary")
    near, hole = (0, 0, 300, 400, 7, LOW), (0, 0, 0, 0, 0, ABSENT)
    output = reward(completion_ids=[tokens(near, hole).tolist()], references=[{"target_ids": tokens(TRUE).tolist()}])
    targets = output.token_targets
    assert (targets.among, targets.ids.tolist()) == ("vocabulary", [[ABSENT, LOW, HIGH]] * 2)
    assert targets.probabilities.tolist() == [pytest.approx([0, 0.25, 0.75]), [1, 0, 0]]


def test_the_rewards_can_be_pickled():
    import pickle

    reward = pickle.loads(pickle.dumps(AveragePrecisionReward(64, 3, class_counts=[5, 1, 2])))
    assert reward.class_weights.shape == (3,)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="released_total is only defined for the thresholds"):
        score([TRUE], [TRUE], thresholds=(0.5,), released_total=True)
    with pytest.raises(ValueError, match=r"class_weights must be \(80,\)"):
        score([TRUE], [TRUE], class_weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"completion_ids must be \(B, G, T\)"):
        detection_reward(tokens(TRUE)[None], tokens(TRUE)[None])
    with pytest.raises(ValueError, match="class_counts has 2 numbers, but there are 3 classes"):
        AveragePrecisionReward(64, 3, class_counts=[1, 2])
    assert len(THRESHOLDS) == 10


def test_the_evaluate_module_gives_the_same_numbers():
    import evaluate

    import vision_rl

    module = evaluate.load(vision_rl.metric_path("detection_reward"))
    found = [tokens(TRUE, TRUE).tolist(), tokens(TRUE).tolist(), []]
    true = [tokens(TRUE).tolist(), [], tokens(TRUE).tolist()]
    result = module.compute(predictions=found, references=true, thresholds=[0.5])
    assert result["rewards"] == pytest.approx([0.7, 0, 0])
    weighted = module.compute(predictions=found, references=true, num_labels=80, class_counts=[1] * 80)
    assert weighted["rewards"] == pytest.approx([0.7, 0, 0])
    assert result["reward"] == pytest.approx(0.7 / 3)
    priced = module.compute(predictions=found, references=true, thresholds=[0.5], false_positive_weight=0.5)
    assert priced["rewards"] == pytest.approx([0.7, -0.5, 0])


def test_the_module_takes_every_option_of_the_reward_at_its_loading():
    module = evaluate.load(vision_rl.metric_path("detection_reward"), false_positive_weight=0.5, num_bins=10)
    assert module.options == {"false_positive_weight": 0.5, "num_bins": 10}
    assert not any(mark in module.inputs_description for mark in ("<<<<", ">>>>", "===="))
