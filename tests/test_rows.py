"""Which rows are checked before training, and how they are read."""

import datasets
import pytest
from PIL import Image
from scripts.train import make_trainer

from vision_rl.columns import NUM_SAMPLED_ROWS, column_values, sampled_rows


COUNT = 3 * NUM_SAMPLED_ROWS + 1


class Rows:
    """A data set that has only a length and rows."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return {"label": index}


def table(**columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"label": range(COUNT), **columns})


@pytest.mark.parametrize("dataset", [table(), table().with_format("numpy"), [{"label": i} for i in range(COUNT)]])
def test_a_column_that_decodes_no_image_is_read_whole(dataset):
    assert [(index, int(value)) for index, value in column_values(dataset, "label")] == [(i, i) for i in range(COUNT)]


def test_reading_a_column_leaves_broken_images_alone(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"")
    dataset = table(image=[str(tmp_path / "broken.jpg")] * COUNT).cast_column("image", datasets.Image())
    assert len(list(column_values(dataset, "label"))) == COUNT


def test_a_transform_is_given_whole_rows():
    def doubled(batch):
        assert set(batch) == {"label", "name"}
        return {
            "label": [2 * label for label in batch["label"]],
            "image": [Image.new("L", (1, 1))] * len(batch["name"]),
        }

    dataset = table(name=["a"] * COUNT).with_transform(doubled)
    assert list(column_values(dataset, "label")) == [(index, 2 * index) for index in sampled_rows(dataset)]
    assert [value for _, value in column_values(dataset, "label", sample=False)] == [2 * i for i in range(COUNT)]


def test_of_other_data_sets_some_rows_are_read_evenly_spread():
    found = list(column_values(Rows(), "label"))
    assert found[:2] == [(0, 0), (4, 4)] and len(found) <= NUM_SAMPLED_ROWS
    assert len(list(column_values(Rows(), "label", sample=False))) == COUNT


def test_without_a_shuffle_every_row_has_its_turn(tmp_path):
    trainer = make_trainer(
        "reward",
        tmp_path,
        rows=10,
        per_device_train_batch_size=4,
        shuffle_dataset=False,
        max_steps=5,
        num_generations=2,
    )
    trainer.train()
    assert [row for _, row, _ in trainer.seen] == [*range(10), *range(10)]
