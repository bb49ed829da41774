"""Training on a stream equals training on its rows, is resumed where it was, and is shared among processes."""

import logging

import pytest
import torch
from datasets import Dataset
from scripts.train import make_trainer
from test_resume import ShuffledLetters, StopAt, assert_equal, without_times
from tiny import text_dataset, text_processor, tiny_model

from vision_rl.trainer.data_order import RowDataset, RowKey
from vision_rl.trainer.stream import RunningNumbers, StreamRows


pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, STEP = 20, 8  # rows of the data set, images of an update step


def stream(num_shards: int = 4, rows: int = ROWS):
    return text_dataset(rows).to_iterable_dataset(num_shards=num_shards)


class PlainStream(torch.utils.data.IterableDataset):
    """A stream without a state, such as a generator."""

    def __init__(self, rows: int = ROWS):
        self.rows = text_dataset(rows)

    def __iter__(self):
        yield from self.rows


def numbers(rows: StreamRows, asked: int) -> list[int]:
    return [rows[RowKey(0, number)].row_index for number in range(asked)]


def stream_rows(dataset=None, **how) -> StreamRows:
    return StreamRows(stream() if dataset is None else dataset, **{"seed": 0, "batch_size": 2, "block_size": 8, **how})


# --- training -----------------------------------------------------------------------------------------------------------


def run(kind, folder, dataset, resume=None, **options) -> dict:
    options = {"max_steps": 5, "shuffle_dataset": False, "train_dataset": dataset, **options}
    trainer = make_trainer(kind, folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return {
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "logs": [without_times(log) for log in trainer.state.log_history if "loss" in log],
        "seen": trainer.seen,
    }


ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize("kind", ["mle", "reward"])
@pytest.mark.parametrize("dataset", [stream, PlainStream])
def test_a_stream_is_learned_from_as_the_rows_themselves_without_a_shuffle(tmp_path, kind, dataset):
    """Two passes over the stream: it begins again in the middle of a step."""
    streamed = run(kind, tmp_path / "stream", dataset(), **ACCUMULATED)
    loaded = run(kind, tmp_path / "rows", text_dataset(ROWS), **ACCUMULATED)
    for logs in (streamed["logs"], loaded["logs"]):
        for log in logs:
            del log["epoch"]  # the length of a stream is not known, so its epoch is the share of max_steps
    assert_equal(streamed, loaded)
    assert [row for _, row, _ in streamed["seen"]] == [number % ROWS for number in range(5 * STEP)]


@pytest.mark.compatibility
@pytest.mark.parametrize("step", [1, 3])  # in the first pass and in the second, at row 24
@pytest.mark.parametrize("dataset", [stream, PlainStream])
def test_a_run_that_was_killed_and_resumed_equals_an_uninterrupted_one(tmp_path, step, dataset):
    processor = ShuffledLetters(text_processor().image_processor, text_processor().tokenizer)  # its targets are random
    options = {"processing_class": processor, "save_strategy": "steps", "save_steps": 1, **ACCUMULATED}
    whole = run("mle", tmp_path / "whole", dataset(), **options)
    run("mle", tmp_path / "part", dataset(), callbacks=[StopAt(step)], **options)
    resumed = run(
        "mle",
        tmp_path / "part",
        dataset(),
        resume=tmp_path / "part" / f"checkpoint-{step}",
        model=tiny_model(seed=99),
        **options,
    )
    assert_equal(resumed, {**whole, "seen": [entry for entry in whole["seen"] if entry[0] >= step]})
    assert len({(row, tuple(labels)) for _, row, labels in whole["seen"]}) > ROWS  # another choice in each pass


def test_a_resumed_run_reads_on_and_not_from_the_beginning(tmp_path):
    read = []

    def counted(shards):
        for shard in shards:
            for row in text_dataset(8, seed=shard):
                read.append(shard)
                yield row

    def dataset():
        from datasets import IterableDataset

        return IterableDataset.from_generator(counted, gen_kwargs={"shards": list(range(6))})

    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5}
    run("reward", tmp_path, dataset(), callbacks=[StopAt(4)], **options)
    before = dataset()
    read.clear()
    run("reward", tmp_path, before, resume=tmp_path / "checkpoint-4", **options)
    checked = read[:32]  # the checks before training read from the beginning
    assert checked == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    assert set(read[32:]) == {3, 4}  # datasets reads the shard in which it was again


# --- the rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [lambda: stream(3), PlainStream])
def test_two_processes_share_the_rows_of_each_micro_batch(dataset):
    """Three shards cannot be dealt out to two processes, so each takes every other row."""
    ranks = [stream_rows(dataset(), num_processes=2, process_index=rank) for rank in range(2)]
    seen = [[], []]
    for micro_batch in range(8):  # 2 rows each; accelerate gives them to the ranks in turn
        rank = micro_batch % 2
        keys = [RowKey(0, 2 * micro_batch + place) for place in range(2)]
        seen[rank] += [ranks[rank][key] for key in keys]
    texts = text_dataset(ROWS)["text"]
    assert [row.row_index for row in seen[0]] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [row.row_index for row in seen[1]] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert all(row.columns["text"] == texts[row.row_index] for row in seen[0] + seen[1])


def test_shards_are_dealt_out_where_their_number_allows_and_no_number_comes_twice():
    ranks = [stream_rows(stream(4), num_processes=2, process_index=rank) for rank in range(2)]
    seen = [
        [rows[RowKey(0, 4 * batch + 2 * rank + place)] for batch in range(5) for place in range(2)]
        for rank, rows in enumerate(ranks)
    ]
    assert sorted(row.row_index for rows in seen for row in rows) == list(range(ROWS))
    assert sorted(row.columns["text"] for rows in seen for row in rows) == sorted(text_dataset(ROWS)["text"])


def test_a_stream_that_shuffles_itself_does_so_anew_in_each_pass_and_forgets_its_buffer_in_a_resume():
    def shuffled():
        dataset = text_dataset(ROWS).add_column("number", range(ROWS)).to_iterable_dataset()
        return dataset.shuffle(seed=1, buffer_size=4)

    rows = stream_rows(shuffled())
    order = [rows[RowKey(0, number)].columns["number"] for number in range(2 * ROWS)]
    assert sorted(order[:ROWS]) == sorted(order[ROWS:]) == list(range(ROWS))
    assert order[:ROWS] != order[ROWS:]
    resumed = stream_rows(shuffled())
    resumed.resume(stream_at(shuffled(), 24))  # 4 rows into the second pass
    rest = [resumed[RowKey(0, number)].columns["number"] for number in range(24, 35)]
    assert len(set(rest)) == 11 and rest != order[24:35]
    assert ROWS - len({*order[20:24], *rest}) <= 2 * 4  # about a buffer of rows is missing, or comes again


def stream_at(dataset, asked: int, **how) -> dict:
    rows = stream_rows(dataset, **how)
    numbers(rows, asked)
    return rows.position(asked)


def test_rows_that_were_read_ahead_come_again_after_a_resume():
    """When a checkpoint is written, accelerate has already read the next batch."""
    rows = stream_rows()
    numbers(rows, 10)
    resumed = stream_rows()
    resumed.resume(rows.position(8))
    assert [resumed[RowKey(0, number)].row_index for number in range(8, 24)] == [n % ROWS for n in range(8, 24)]


def test_a_block_that_is_learned_from_twice_has_the_same_rows_and_a_resume_within_it_too():
    keys = list(RunningNumbers(num_steps=4, step_size=8, block_size=8, repeats=2))
    assert [key.row_index for key in keys] == [*range(8), *range(8), *range(8, 16), *range(8, 16)]
    rows = stream_rows(repeats=2)
    first, again = ([rows[key] for key in keys[start : start + 8]] for start in (16, 24))
    assert all(one is other for one, other in zip(first, again, strict=True))
    resumed = stream_rows(repeats=2)
    resumed.resume(rows.position(24))  # after the first of the two passes over the second block
    assert [resumed[key].row_index for key in keys[24:]] == list(range(8, 16))


def test_random_targets_are_those_of_the_rows_themselves_in_the_first_pass():
    rows = RowDataset(text_dataset(ROWS), seed=0)
    streamed = stream_rows()
    for number in range(ROWS):
        key = RowKey(0, number)
        assert streamed[key].seed == rows[key].seed


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "a stream, whose length is not known: set max_steps"),
        ({"ignore_data_skip": True}, "ignore_data_skip must be False with a stream"),
        ({"dataloader_num_workers": 2}, r"must be 0 with a stream.*decode\(num_threads"),
        ({"train_dataset": PlainStream(0)}, "train_dataset is empty"),
        ({"train_dataset": stream(1).rename_column("text", "word")}, "has no column `text`"),
        ({"eval_dataset": stream()}, "Only a train_dataset may be"),
    ],
)
def test_what_a_stream_cannot_do_is_told_before_training(tmp_path, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_trainer("mle", tmp_path, **{"train_dataset": stream(), **options})


def test_a_shuffle_that_has_no_effect_is_pointed_out(tmp_path, caplog):
    for shuffle in (True, False):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="vision_rl"):
            make_trainer("mle", tmp_path, train_dataset=stream(), shuffle_dataset=shuffle)
        assert ("dataset.shuffle(seed=0" in caplog.text) == shuffle


def test_a_stream_shorter_than_a_step_is_told(tmp_path):
    with pytest.raises(
        ValueError, match="a stream of 5 rows for each of 1 processes, but a step takes 8 rows per process"
    ):
        run("mle", tmp_path, stream(1, 5))


def test_a_row_that_is_no_dict_or_cannot_be_read_is_named():
    class Broken(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield {"text": "a"}
            yield "b"

    rows = stream_rows(Broken())
    assert rows[RowKey(0, 0)].columns == {"text": "a"}
    with pytest.raises(TypeError, match="Row 1 is a str"):
        rows[RowKey(0, 1)]
    bad = (
        Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset().map(lambda row: {"n": 1 // (row["text"] == "a")})
    )
    rows = stream_rows(bad)
    assert rows[RowKey(0, 0)].row_index == 0
    with pytest.raises(ValueError, match="Row 1 of the stream cannot be read: .*by zero"):
        rows[RowKey(0, 1)]


def test_another_number_of_processes_cannot_go_on():
    position = stream_at(stream(), 8)
    with pytest.raises(ValueError, match="places of 1 processes in the stream, but now there are 2"):
        stream_rows(num_processes=2).resume(position)


def test_a_stream_is_not_resumed_with_another_number_of_images_per_step(tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 1}
    run("mle", tmp_path / "run", stream(), per_device_train_batch_size=4, max_steps=1, **saves)
    for size in (2, 8):
        with pytest.raises(ValueError, match=f"4 images per step, but this run has {size}, and the place in a stream"):
            run(
                *("mle", tmp_path / "other", stream(), tmp_path / "run" / "checkpoint-1"),
                per_device_train_batch_size=size,
                **saves,
            )
