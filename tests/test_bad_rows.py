"""Images that cannot be read in the middle of a run are named, or skipped without moving any other row."""

import io
import os
import random
import re
import struct
import zlib
from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value
from scripts.train import RecordingMLETrainer, RecordingRewardTrainer, make_trainer
from tiny import share_of_a, text_dataset, text_processor, tiny_images, tiny_model
from transformers import TrainerCallback

from vision_rl import VisionMLEConfig, VisionRewardConfig


pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, BAD = 20, 5


def gone(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def text(path: Path) -> None:
    path.write_text("<html>404</html>")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def bomb(path: Path) -> None:
    """A PNG of 60,000 x 60,000 pixels in a hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(7501 * 10))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


DAMAGES = (gone, truncated, text, folder, empty, bomb)


class FromFiles:
    """A data set as people write it themselves: rows with paths."""

    def __init__(self, paths: list[str], texts: list[str]):
        self.paths, self.texts = paths, texts

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.paths[index], "text": self.texts[index]}


def rows_of(tmp_path: Path, kind: str):
    paths = [str(tmp_path / f"{i}.png") for i in range(ROWS)]
    for path, image in zip(paths, tiny_images(ROWS), strict=True):
        image.save(path)
    texts = list(text_dataset(ROWS)["text"])
    if kind == "paths":
        return FromFiles(paths, texts)
    features = Features({"image": Image(), "text": Value("string")})
    return Dataset.from_dict({"image": paths, "text": texts}, features=features)


def trainer_of(step: str, rows, tmp_path: Path, **options):
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    fixed |= {"max_completion_length": 12, "per_device_train_batch_size": 4, "max_steps": 5, "learning_rate": 3e-3}
    config = {"mle": VisionMLEConfig, "reward": VisionRewardConfig}[step](
        str(tmp_path / "run"), **{**fixed, **options}
    )
    common = {"args": config, "train_dataset": rows, "processing_class": text_processor(), "eval_dataset": rows}
    model = tiny_model(sharp=0.2, seed=2)
    if step == "mle":
        return RecordingMLETrainer(model, compute_metrics=count, **common)
    return RecordingRewardTrainer(model, share_of_a, **common)


def count(predictions, references) -> dict:
    return {"rows": len(predictions)}


class Damaging(TrainerCallback):
    """Damages a file when training begins: the checks before training have seen it whole."""

    def __init__(self, damage, path: Path):
        self.damage, self.path = damage, path

    def on_train_begin(self, args, state, control, **kwargs):
        self.damage(self.path)


@pytest.mark.parametrize("kind", ["paths", "datasets"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_with_row_and_file(tmp_path, kind, workers):
    for damage in DAMAGES if workers == 0 else (gone,):
        rows = rows_of(tmp_path, kind)
        trainer = trainer_of("mle", rows, tmp_path, dataloader_num_workers=workers)
        trainer.add_callback(Damaging(damage, tmp_path / f"{BAD}.png"))
        with pytest.raises(ValueError) as error:
            trainer.train()
        assert f"ow {BAD}" in str(error.value) and f"{BAD}.png" in str(error.value), damage
        if damage is folder:
            (tmp_path / f"{BAD}.png").rmdir()


@pytest.mark.parametrize("kind", ["paths", "datasets"])
@pytest.mark.parametrize("step", ["mle", "reward"])
def test_a_skipped_row_gives_its_place_to_the_next_and_no_other_moves(tmp_path, kind, step, caplog):
    whole = trainer_of(step, rows_of(tmp_path, kind), tmp_path)
    whole.train()
    for damage in DAMAGES:
        caplog.clear()
        trainer = trainer_of(step, rows_of(tmp_path, kind), tmp_path, on_bad_row="skip")
        trainer.add_callback(Damaging(damage, tmp_path / f"{BAD}.png"))
        trainer.train()
        places = [(at, BAD + 1 if row == BAD else row) for at, row, _ in whole.seen]
        assert [(at, row) for at, row, _ in trainer.seen] == places
        told = [record.getMessage() for record in caplog.records if "takes its place" in record.getMessage()]
        assert len(told) == 1 and f"ow {BAD}" in told[0] and f"{BAD}.png" in told[0]
        logs = [log["skipped_rows"] for log in trainer.state.log_history if "loss" in log]
        assert logs[-1] == 1 and logs == sorted(logs)
        if step == "mle":
            assert trainer.evaluate()["eval_rows"] == ROWS - 1
        if damage is folder:
            (tmp_path / f"{BAD}.png").rmdir()


def test_with_workers_and_accumulation_the_same_rows_are_learned(tmp_path):
    seen = []
    for options in (
        {},
        {"dataloader_num_workers": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ):
        rows = rows_of(tmp_path, "paths")
        gone(tmp_path / f"{BAD}.png")
        gone(tmp_path / f"{BAD + 1}.png")
        trainer = trainer_of("mle", rows, tmp_path, on_bad_row="skip", **options)
        trainer.train()
        seen.append(sorted(trainer.seen))
    assert seen[0] == seen[1] == seen[2]
    assert {BAD, BAD + 1}.isdisjoint(row for _, row, _ in seen[0])


def test_a_row_that_cannot_be_read_has_no_prediction_and_all_others_keep_their_places(tmp_path):
    rows = rows_of(tmp_path, "paths")
    whole = trainer_of("mle", rows, tmp_path).predict(rows)
    gone(tmp_path / f"{BAD}.png")
    left = trainer_of("mle", rows, tmp_path, on_bad_row="skip").predict(rows)
    for name in ("predictions", "label_ids"):
        expected = [None if row == BAD else value for row, value in enumerate(getattr(whole, name))]
        assert getattr(left, name) == expected


def test_a_data_set_that_is_gone_is_an_error_not_a_run_over_nothing(tmp_path):
    rows = rows_of(tmp_path, "paths")
    trainer = trainer_of("mle", rows, tmp_path, on_bad_row="skip")
    for path in rows.paths:
        os.unlink(path)
    with pytest.raises(ValueError, match="16 rows one after another.*is the data still there"):
        trainer.train()


@pytest.mark.parametrize("kind", ["list", "datasets", "strings", "selected"])
@pytest.mark.parametrize("fault", ["missing", "null"])
def test_pictures_that_are_not_there_are_told_together_before_training(tmp_path, kind, fault):
    rows_of(tmp_path, "paths")
    columns = {"image": [str(tmp_path / f"{row}.png") for row in range(ROWS)], "text": text_dataset(ROWS)["text"][:]}
    for row in (BAD, BAD + 1):
        columns["image"][row] = None if fault == "null" else str(tmp_path / "gone.png")
    rows = Dataset.from_dict(columns)
    if kind == "list":
        rows = rows.to_list()
    elif kind != "strings":
        rows = rows.cast_column("image", Image())
    if kind == "selected":
        rows = rows.select([0, *range(2, ROWS)])
    count, bad = len(rows), BAD - (kind == "selected")
    what = "there is no picture." if fault == "null" else f"there is no file {tmp_path}/gone.png."
    told = f"train_dataset: Row {bad}, column `image`: {what} (2 of {count} rows cannot be used.)"
    with pytest.raises(ValueError, match=re.escape(told)):
        trainer_of("reward", rows, tmp_path)
    trainer_of("reward", rows, tmp_path, on_bad_row="skip").train()


def test_pictures_in_memory_and_at_an_address_are_not_looked_for_on_disk(tmp_path):
    class Fetched(list):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "image": tiny_images(1)[0]}

    addresses = Fetched({"image": f"https://x.org/{row}.png", "text": "aa"} for row in range(ROWS))
    uncast = Dataset.from_list([{"image": {"bytes": None, "path": "a.png"}, "text": "aa"}] * ROWS)
    with pytest.raises(ValueError, match="a dict is not an image"):  # the cast to Image() was forgotten
        trainer_of("mle", uncast, tmp_path)
    for rows in (text_dataset(ROWS), addresses, list(text_dataset(ROWS))):
        trainer_of("mle", rows, tmp_path)


def test_no_damage_to_a_picture_gets_past_with_another_error(tmp_path):
    """Files of four formats with random damage are read, or cause a ValueError that names row and file."""
    rng = random.Random(0)
    collator = make_trainer("mle", tmp_path).data_collator
    from vision_rl.trainer.data_order import Row

    for image_format in ("PNG", "JPEG", "GIF", "TIFF"):
        buffer = io.BytesIO()
        tiny_images(1)[0].save(buffer, image_format)
        for number in range(100):
            content = bytearray(buffer.getvalue())
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            path = tmp_path / f"{number}.{image_format.lower()}"
            path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
            try:
                collator.check_image(Row({"image": str(path)}, number, None))
            except ValueError as error:
                assert f"row {number}" in str(error) and path.name in str(error)
