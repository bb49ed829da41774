"""The completions of a training run: on a sheet, in parquet, in TensorBoard, wandb and trackio, in the terminal."""

import math
import re

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tiny import SIZE, image_processor, share_of_a, text_dataset, text_processor, tiny_images, tiny_model
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations import TensorBoardCallback

from vision_rl import VisionRewardConfig, VisionRewardTrainer, tasks
from vision_rl.drawing import RIGHT, WRONG
from vision_rl.processing import ORIGINAL_SIZE, VisionProcessor, completion_text
from vision_rl.rewards import RewardOutput
from vision_rl.tasks.captioning import CaptioningProcessor
from vision_rl.tasks.colorization import ColorizationProcessor
from vision_rl.tasks.detection import DetectionProcessor
from vision_rl.tasks.panoptic import PanopticProcessor
from vision_rl.trainer.completions_log import CompletionsLog, extremes
from vision_rl.trainer.completions_sheet import Cell, draw_sheet, number


def number_of_letters(completions, **kwargs) -> list[float | None]:
    return [len(text) if text else None for text in completions]


def trainer_of(
    folder,
    reward_funcs=(share_of_a, number_of_letters),
    callbacks=None,
    eval_dataset=None,
    kind=VisionRewardTrainer,
    **kwargs,
):
    options = {
        "per_device_train_batch_size": 2,
        "num_generations": 3,
        "max_completion_length": 5,
        "max_steps": 4,
        "logging_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "log_completions": True,
    }
    return kind(
        tiny_model(sharp=0.5),
        list(reward_funcs),
        VisionRewardConfig(str(folder), **{**options, **kwargs}),
        train_dataset=text_dataset(8),
        eval_dataset=text_dataset(6, seed=1) if eval_dataset is None else eval_dataset,
        processing_class=text_processor(),
        callbacks=callbacks,
    )


def files_of(folder) -> list[str]:
    return sorted(path.name for path in (folder / "completions").iterdir())


# --- training and evaluation --------------------------------------------------------------------------------------------


def test_each_log_writes_a_picture_and_a_table_and_each_evaluation_the_same_rows(tmp_path, one_thread):
    trainer = trainer_of(tmp_path, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4)
    trainer.train()
    names = ["completions_00002", "completions_00004", "eval_completions_00002", "eval_completions_00004"]
    assert files_of(tmp_path) == [f"{name}.{kind}" for name in names for kind in ("parquet", "png")]
    for step in (2, 4):
        rows = pyarrow.parquet.read_table(tmp_path / "completions" / f"completions_{step:05d}.parquet").to_pylist()
        assert len(rows) == 2 * 3 and {row["step"] for row in rows} == {step}
        assert [row["generation"] for row in rows] == [0, 1, 2] * 2
        for row in rows:
            assert row["share_of_a"] == pytest.approx(share_of_a([row["completion"]])[0])
            if row["completion"]:
                assert row["number_of_letters"] == len(row["completion"])
                assert row["reward"] == pytest.approx(row["share_of_a"] + row["number_of_letters"])
            else:
                assert math.isnan(row["number_of_letters"]) and row["reward"] == 0
            text = trainer.processor.batch_decode([row["completion_ids"]])[0]
            assert text == row["completion"]
        rewards, advantages = (np.array([row[key] for row in rows]).reshape(2, 3) for key in ("reward", "advantage"))
        others = (rewards.sum(1, keepdims=True) - rewards) / 2
        np.testing.assert_allclose(advantages, rewards - others, atol=1e-5)
        evaluated = pyarrow.parquet.read_table(tmp_path / "completions" / f"eval_completions_{step:05d}.parquet")
        assert evaluated["row_index"].to_pylist() == [0, 1, 2, 3]
        assert evaluated["advantage"].to_pylist() == [None] * 4


def test_micro_batches_of_a_step_are_shown_together_and_only_the_last_step_before_the_log(tmp_path, one_thread):
    trainer_of(tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=1, max_steps=2).train()
    table = pyarrow.parquet.read_table(tmp_path / "completions" / "completions_00002.parquet")
    assert len(set(table["row_index"].to_pylist())) == 3 and table.num_rows == 9


def test_completions_are_the_same_with_reward_workers_and_a_greedy_baseline(tmp_path, one_thread):
    tables = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        options = {"baseline": "greedy", "gradient_accumulation_steps": 2, "reward_num_workers": workers}
        trainer_of(folder, per_device_train_batch_size=1, **options).train()
        tables.append(pyarrow.parquet.read_table(folder / "completions" / "completions_00004.parquet").to_pydict())
    assert str(tables[0]) == str(tables[1])
    assert len(set(tables[0]["completion"])) > 1


def letters_as_they_come(completions, completion_ids, **kwargs) -> RewardOutput:
    """A reward of 1 for each token; its prefix rewards are the numbers of tokens before."""
    width = max(map(len, completion_ids))
    return RewardOutput(
        [float(len(ids)) for ids in completion_ids],
        prefix_rewards=torch.arange(width, dtype=torch.float32).expand(len(completion_ids), width),
    )


def test_where_each_token_has_an_advantage_that_of_the_whole_sample_is_shown(tmp_path, one_thread):
    trainer_of(tmp_path, [letters_as_they_come]).train()
    table = pyarrow.parquet.read_table(tmp_path / "completions" / "completions_00004.parquet")
    lengths = np.array([len(ids) for ids in table["completion_ids"].to_pylist()], float).reshape(2, 3)
    np.testing.assert_allclose(table["reward"].to_numpy().reshape(2, 3), lengths)
    others = (lengths.sum(1, keepdims=True) - lengths) / 2
    np.testing.assert_allclose(table["advantage"].to_numpy().reshape(2, 3), lengths - others, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}]
)
@pytest.mark.parametrize("at_once", [None, 1])
def test_the_advantages_shown_are_those_learned_from_and_the_reward_is_the_weighted_sum(
    tmp_path, one_thread, options, at_once
):
    learned = []

    class Keeping(VisionRewardTrainer):
        def _learn(self, model, inputs, completions, advantages, *args):
            learned.extend(advantages.flatten().tolist())
            return super()._learn(model, inputs, completions, advantages, *args)

    options |= {"max_steps": 1, "logging_steps": 1, "reward_weights": [10.0, 1.0]}
    trainer_of(tmp_path, kind=Keeping, per_device_generation_batch_size=at_once, **options).train()
    rows = pyarrow.parquet.read_table(tmp_path / "completions" / "completions_00001.parquet").to_pylist()
    assert any(learned) and [row["advantage"] for row in rows] == pytest.approx(learned)
    parts = [[10 * row["share_of_a"], row["number_of_letters"]] for row in rows]
    assert [row["reward"] for row in rows] == pytest.approx([np.nansum(each) for each in parts])


def test_rewards_with_the_names_of_the_tables_own_columns_have_columns_of_their_own(tmp_path, capsys):
    names = ["reward", "letters", "advantage", "step", "image"]
    log = CompletionsLog(text_processor().draw, tmp_path, names)
    log.record(
        1,
        row_index=[0],
        images=tiny_images(1),
        completions=["ab"],
        completion_ids=[[2, 3, 1]],
        rewards=[15.0],
        per_function=[[1.0, 2.0, 3.0, 4.0, 5.0]],
        advantages=[0.5],
    )
    log.write(1)
    (row,) = pyarrow.parquet.read_table(tmp_path / "completions_00001.parquet").to_pylist()
    assert (row["step"], row["reward"], row["advantage"]) == (1, 15.0, 0.5)
    columns = ["rewards/reward", "letters", "rewards/advantage", "rewards/step", "rewards/image"]
    assert [row[name] for name in columns] == [1.0, 2.0, 3.0, 4.0, 5.0] and "image" not in row
    assert re.search(r"│ +1 │ +2 │ +3 │ +4 │ +5 │ +15 │ +\+0\.5 │", capsys.readouterr().out)


@pytest.mark.parametrize("itself", [True, False])
def test_an_override_of_score_is_shown_as_what_it_returns_or_not_at_all(tmp_path, one_thread, itself):
    class Scoring(VisionRewardTrainer):
        def _score(self, completions, inputs):
            if itself:
                return torch.ones(completions.completion_ids.shape[:2]), []
            rewards, targets = super()._score(completions, inputs)
            return rewards + 100, targets

    trainer_of(tmp_path, kind=Scoring, max_steps=2).train()
    assert (tmp_path / "completions").exists() != itself
    if not itself:
        table = pyarrow.parquet.read_table(tmp_path / "completions" / "completions_00002.parquet")
        assert min(table["reward"].to_pylist()) >= 100


def test_several_evaluation_sets_are_told_apart_and_predict_writes_nothing(tmp_path, one_thread):
    sets = {"new": text_dataset(3, seed=2), "old": text_dataset(5, seed=3)}
    trainer = trainer_of(tmp_path, eval_dataset=sets)
    trainer.evaluate()
    trainer.predict(text_dataset(3))
    assert files_of(tmp_path) == [
        f"eval_{name}_completions_00000.{kind}" for name in ("new", "old") for kind in ("parquet", "png")
    ]


def test_nothing_is_written_unless_asked_for_and_no_pictures_without_log_multimodal(tmp_path, one_thread):
    trainer_of(tmp_path, log_completions=False).train()
    assert not (tmp_path / "completions").exists()
    trainer_of(tmp_path, log_multimodal=False).train()
    assert files_of(tmp_path) == ["completions_00002.parquet", "completions_00004.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_completions_to_print": 3}, "num_completions_to_print needs log_completions=True"),
        ({"log_completions": True, "num_completions_to_print": -1}, "must not be negative, got -1"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        VisionRewardConfig(str(tmp_path), use_cpu=True, **options)


# --- where it goes ------------------------------------------------------------------------------------------------------


@pytest.mark.compatibility
def test_tensorboard_has_the_sheet_at_its_step(tmp_path, one_thread):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorBoardCallback(SummaryWriter(str(tmp_path / "tensorboard")))
    trainer_of(tmp_path, callbacks=[writer], eval_strategy="steps", eval_steps=4).train()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["completions", "eval/completions"]
    assert [event.step for event in events.Images("completions")] == [2, 4]
    with Image.open(tmp_path / "completions" / "completions_00004.png") as sheet:
        event = events.Images("completions")[1]
        assert (event.width, event.height) == sheet.size


def a_log(folder, **kwargs) -> CompletionsLog:
    log = CompletionsLog(text_processor().draw, folder, ["accuracy"], **kwargs)
    log.record(
        6,
        row_index=[3, 8],
        images=tiny_images(2),
        completions=["ab", "a", "[bold]b[/", ""],
        completion_ids=[[2, 3, 1], [2, 1], [3, 1], [1]],
        rewards=[1.0, 0.5, float("nan"), -2.0],
        per_function=[[1.0], [0.5], [float("nan")], [-2.0]],
        advantages=[0.5, -0.5, 0.0, 0.0],
        references=["ab", "cc"],
    )
    return log


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_a_table_with_pictures(tmp_path, monkeypatch, name):
    """With the libraries' own `Table` and `Image`; only their function `log`, which sends the values, is replaced."""
    module = pytest.importorskip(name, reason=f"{name} is not installed")
    from transformers.integrations import TrackioCallback, WandbCallback

    sent = []
    monkeypatch.setattr(module, "log", lambda values, **kwargs: sent.append(values))
    a_log(tmp_path, num_to_print=0).write(7, [WandbCallback() if name == "wandb" else TrackioCallback()])
    (values,) = sent
    assert values["train/global_step"] == 7
    table = values["completions"]
    assert isinstance(table, module.Table)
    first = dict(zip(table.columns, table.data[0], strict=True)) if name == "wandb" else table.data[0]
    assert (first["completion"], first["reward"], first["advantage"]) == ("ab", 1.0, 0.5)
    assert isinstance(first["image"], module.Image) and len(table.data) == 4


@pytest.mark.parametrize(("to_print", "rows"), [(None, 4), (2, 2), (0, 0)])
def test_the_terminal_shows_as_many_completions_as_asked_for_and_reads_no_markup_in_them(
    tmp_path, capsys, to_print, rows
):
    a_log(tmp_path, num_to_print=to_print).write(7)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^│ +[38] │", printed, re.M)) == rows
    assert ("Step 7" in printed) == (rows > 0)
    if rows == 4:
        assert "[bold]b[/" in printed and "+0.5" in printed and "none" in printed


def test_what_is_written_is_forgotten_and_a_new_step_replaces_what_was_not(tmp_path):
    log = a_log(tmp_path, num_to_print=0)
    record = {"images": tiny_images(1), "completions": ["c"], "completion_ids": [[4, 1]]}
    log.record(7, row_index=[5], rewards=[1.0], per_function=[[1.0]], advantages=[0.0], **record)
    log.write(8, samples=False)
    assert not tmp_path.joinpath("completions_00008.parquet").exists()
    log.write(8)
    log.write(9)
    table = pyarrow.parquet.read_table(tmp_path / "completions_00008.parquet")
    assert table["row_index"].to_pylist() == [5]
    assert not list(tmp_path.glob("*00009*"))


# --- pictures -----------------------------------------------------------------------------------------------------------


def pixels_of(picture, colour) -> int:
    return int((np.asarray(picture) == colour).all(-1).sum())


def test_the_bar_below_a_picture_has_the_colour_of_its_advantage():
    def bar(advantage):
        return draw_sheet("Step 1", [[Cell("row 0", Image.new("RGB", (300, 100)), 1.0, advantage, {})]])

    up, down, even, greedy = bar(0.3), bar(-0.3), bar(0.0), bar(None)
    assert pixels_of(up, RIGHT) > 300 * 5 and pixels_of(up, WRONG) == 0
    assert pixels_of(down, WRONG) > 300 * 5 and pixels_of(down, RIGHT) == 0
    assert pixels_of(even, RIGHT) == pixels_of(even, WRONG) == pixels_of(greedy, WRONG) == 0


def test_large_pictures_are_brought_to_the_sheet_and_small_ones_have_room_for_their_numbers():
    wide, small = Image.new("RGB", (2000, 500)), Image.new("RGB", (32, 32))
    sheet = draw_sheet("Step 1", [[Cell("", wide, 1.0, 0.0, {}), Cell("", small, 1.0, 0.0, {"a": 1.0, "b": 2.0})]])
    assert sheet.width < 1200
    assert draw_sheet("Step 1", [[Cell("", small, 1.0, 0.0, {})]]).width > 240


def test_numbers_have_three_digits_and_a_missing_reward_is_called_none():
    assert [number(value) for value in (0.123456, 12345, -2.0, float("nan"))] == ["0.123", "1.23e+04", "-2", "none"]
    assert [number(value, sign=True) for value in (0.5, -0.5, 0.0)] == ["+0.5", "-0.5", "0"]


def test_of_many_samples_the_best_and_the_worst_are_drawn_best_first():
    assert extremes([0.2, 0.9, 0.5], 4) == [1, 2, 0]
    assert extremes([0.2, 0.9, float("nan"), 0.5, 0.4, 1.0], 4) == [5, 1, 0, 2]
    assert extremes([3.0, 1.0, 2.0], 1) == [0]


def test_an_image_that_was_resized_beforehand_is_drawn_in_the_pixels_of_its_boxes(tmp_path):
    sizes = []

    def draw(image, completion, reference):
        sizes.append(image.size)
        return image

    image = tiny_images(1)[0]
    image.info[ORIGINAL_SIZE] = (64, 48)
    log = CompletionsLog(draw, tmp_path, ["map"], num_to_print=0)
    log.record(
        0, row_index=[0], images=[image], completions=["x"], completion_ids=[[1]], rewards=[1], per_function=[[1]]
    )
    log.write(1)
    assert sizes == [(64, 48)]


def test_a_processor_without_a_picture_of_its_own_writes_the_completion_below_the_image():
    image = tiny_images(1)[0]
    plain = VisionProcessor.draw(text_processor(), image, "ab")
    right, wrong = (VisionProcessor.draw(text_processor(), image, text, "ab") for text in ("ab", "ba"))
    assert plain.width == 512 and plain.height > 512 and right.height > plain.height
    assert pixels_of(right, RIGHT) > pixels_of(wrong, RIGHT)
    very_long = VisionProcessor.draw(text_processor(), image, "a" * 300)
    assert very_long.height > plain.height  # the line is broken within the word


def test_boxes_are_drawn_with_the_processors_class_names(one_thread):
    processor = DetectionProcessor(image_processor(), ["cat", "dog"], num_bins=8)
    boxes = {"boxes": np.array([[2.0, 2, 30, 30]]), "labels": np.array([1]), "scores": np.array([0.9])}
    named, found = (processor.draw(tiny_images(1)[0], boxes, reference) for reference in (None, boxes))
    assert named.size == (512, 512) and pixels_of(found, RIGHT) > pixels_of(named, RIGHT)


def test_every_task_draws_its_completions_as_its_room_does():
    image, photo = tiny_images(2)
    categories = [{"id": 7, "name": "cat", "isthing": 1}]
    segments = (np.ones((SIZE, SIZE), int), [{"id": 1, "category_id": 7, "iscrowd": 0}])
    panoptic = PanopticProcessor(image_processor(), categories, num_codes=8, code_len=4)
    colours = ColorizationProcessor(image_processor(), num_codes=8, code_len=4)
    captions = CaptioningProcessor(image_processor(), text_processor().tokenizer)
    assert panoptic.draw(image, segments, segments) == tasks.panoptic.draw(
        image, segments, segments, categories=categories
    )
    assert colours.draw(image, photo, image) == tasks.colorization.draw(image, photo, image)
    assert captions.draw(image, "a dog", ["a cat"]) == tasks.captioning.draw(image, "a dog", ["a cat"])


def test_completions_of_every_kind_have_a_text():
    assert completion_text("a dog") == "a dog"
    boxes = {"boxes": np.array([[1.23456, 2, 3, 4]]), "labels": np.array([7])}
    assert completion_text(boxes) == '{"boxes": [[1.2346, 2.0, 3.0, 4.0]], "labels": [7]}'
    segments = (np.zeros((64, 64), int), [{"id": 1, "category_id": np.int64(3), "iscrowd": False}])
    assert completion_text(segments) == '["64 x 64 map", [{"id": 1, "category_id": 3, "iscrowd": false}]]'
    assert completion_text(Image.new("RGB", (5, 4))) == '"5 x 4 picture"'
