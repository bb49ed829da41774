"""The detection experiment: its intervals resample `coco_map`, and its control learns confidences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_detection_processor import box_dataset, options, processor, tiny_detector

from vision_rl import VisionMLEConfig
from vision_rl.tasks.detection import AveragePrecisionReward, RecallReward, coco_map
from vision_rl.tasks.detection.drawing import match_boxes


ROOT = Path(__file__).parents[1]


def random_answers(rng, num_images: int, num_labels: int = 4):
    """True boxes, and predictions of them: a little shifted, some with a wrong label, one doubled, one of nothing."""
    predictions, references = [], []
    for _ in range(num_images):
        corners = rng.uniform(0, 40, (rng.integers(0, 6), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 20, corners.shape)], axis=1)
        labels = rng.integers(0, num_labels, len(boxes))
        references.append({"boxes": boxes, "labels": labels})
        nowhere = rng.uniform(0, 30, (1, 4)) + np.array([0, 0, 30, 30])
        found = np.concatenate([boxes, boxes[:1], nowhere])
        found = found + rng.normal(0, 1.5, found.shape)
        guessed = np.concatenate([labels, labels[:1], [0]])
        guessed[rng.random(len(guessed)) < 0.2] = 1
        scores = rng.permutation(1000)[: len(found)] / 1000 + rng.random()
        predictions.append({"boxes": found, "labels": guessed, "scores": scores})
    return predictions, references


def test_resampled_scores_equal_coco_map_of_the_images_drawn(experiment):
    measures = experiment("detection_measures")
    rng = np.random.default_rng(0)
    predictions, references = random_answers(rng, num_images=40)
    weights = np.stack([np.ones(40, int), *rng.multinomial(40, np.full(40, 1 / 40), size=3)])
    scores = measures.Resampled(predictions, references, num_labels=4).scores(weights)
    for row, counts in enumerate(weights):
        drawn = np.repeat(np.arange(40), counts)
        expected = coco_map([predictions[i] for i in drawn], [references[i] for i in drawn], num_labels=4)
        assert scores["map"][row] == pytest.approx(expected["map"], abs=1e-9)
        assert scores["ar_100"][row] == pytest.approx(expected["ar_100"], abs=1e-9)


def test_a_class_that_no_resampled_image_has_does_not_count(experiment):
    measures = experiment("detection_measures")
    box, nothing = np.array([[0.0, 0, 10, 10]]), np.zeros((0, 4))
    predictions = [
        {"boxes": box, "labels": np.array([0]), "scores": np.array([0.5])},
        {"boxes": nothing, "labels": np.zeros(0, int), "scores": np.zeros(0)},
    ]
    references = [{"boxes": box, "labels": np.array([0])}, {"boxes": box, "labels": np.array([1])}]
    scores = measures.Resampled(predictions, references, num_labels=2).scores(np.array([[1, 1], [2, 0]]))
    assert scores["map"].tolist() == pytest.approx([0.5, 1.0]) and scores["ar_100"].tolist() == [0.5, 1.0]


def test_forbidding_absence_fills_every_box_and_leaves_the_processor_as_it_was(experiment):
    measures = experiment("detection_measures")
    p = processor(num_bins=32)
    torch.manual_seed(0)
    model = tiny_detector(p).eval()
    rewards = {"recall": RecallReward(p.num_bins, p.num_labels)}
    free, forced = (measures.measure(model, p, box_dataset(), rewards, threshold) for threshold in (0.0, 1.0))
    assert (forced.per_image["boxes_per_image"] == p.max_boxes).all()
    assert (free.per_image["boxes_per_image"] < p.max_boxes).any()
    assert p.stop_threshold == 0 and p.score == "confidence"
    assert {score: len(found) for score, found in forced.boxes.items()} == dict.fromkeys(
        measures.SCORES, len(box_dataset())
    )


def test_f1_counts_every_box_that_is_written_whatever_its_score(experiment):
    measures = experiment("detection_measures")
    predictions, references = random_answers(np.random.default_rng(0), num_images=10)
    right = [(match_boxes(a, b)[0] >= 0).sum() for a, b in zip(predictions, references, strict=True)]
    numbers = {"boxes_per_image": np.array([len(a["labels"]) for a in predictions]), "right_boxes": np.array(right)}
    measured = measures.Measured(dict.fromkeys(measures.SCORES, predictions), numbers, references)
    columns = measures.resampled_columns(measured, num_labels=4, num_resamples=3)
    found, true = sum(len(a["labels"]) for a in predictions), sum(len(b["labels"]) for b in references)
    assert columns["f1"][0] == pytest.approx(2 * sum(right) / (found + true)) and columns["f1"].shape == (4,)


def test_unseen_scenes_are_those_behind_the_first_of_the_table(experiment):
    scenes = experiment("detection_scenes")
    for situation in ("incomplete", "crowded"):
        table, unseen = scenes.situation_scenes(situation, "train", 6), scenes.unseen_scenes(situation, 4, 2)
        assert len(unseen) == 2
        for row, expected in zip(unseen, table.select([4, 5]), strict=True):
            assert row["objects"] == expected["objects"]
            assert np.array_equal(np.asarray(row["image"]), np.asarray(expected["image"]))


def test_the_confidence_control_teaches_confidences_what_tuning_teaches_them(experiment, tmp_path):
    study = experiment("detection_study")
    p = processor(num_bins=32)
    torch.manual_seed(0)
    trainer = study.ConfidenceMLETrainer(
        tiny_detector(p),
        VisionMLEConfig(**options(tmp_path)),
        train_dataset=box_dataset(),
        processing_class=p,
        reward=AveragePrecisionReward(p.num_bins, p.num_labels),
    )
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    torch.manual_seed(1)
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.reward.confidence_weight = 0.0
    torch.manual_seed(1)
    without = trainer.compute_loss(trainer.model, batch)
    assert loss > without > 0
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_the_demos_checkpoints_are_small_and_hold_nothing_but_model_and_processor():
    folders = sorted((ROOT / "experiments" / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == [
        "detection-crowded",
        "detection-hard",
        "detection-incomplete",
        "scene-captions",
    ]
    for folder in folders:
        assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6
        model = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"}
        words = {"tokenizer.json", "tokenizer_config.json"} if folder.name == "scene-captions" else set()
        assert {file.name for file in folder.iterdir()} == model | words


def test_the_variants_of_the_reward_for_map_differ_in_nothing_but_what_they_leave_out(experiment):
    study = experiment("detection_study")
    p = processor(num_bins=32)
    reward = AveragePrecisionReward(p.num_bins, p.num_labels)
    rows = box_dataset()
    ids = torch.randint(0, p.vocab_size, (len(rows), p.completion_length), generator=torch.Generator().manual_seed(0))
    variants = {"map": reward, **study.reward_variants(reward)}
    found = {name: variant(ids, p.get_references(rows)) for name, variant in variants.items()}
    assert all(output.rewards == found["map"].rewards for output in found.values())
    assert found["map"].token_targets.among == "candidates" and found["map"].prefix_rewards is not None
    assert found["map, no confidence loss"].token_targets is None
    assert found["map, released loss"].token_targets.among == "vocabulary"
    assert found["map, whole samples"].prefix_rewards is None
    assert reward.confidence_weight == 0.3 and reward.confidence_among == "candidates"
