"""Two processes: both report a fault of one, none waits for ever, and what was saved is whole."""

import json
import time

import pytest
from scripts.faults import FAULTS
from scripts.launch import ACCELERATE, start

from vision_rl.manifest import check_whole
from vision_rl.trainer.checkpoints import checkpoints_in


pytestmark = pytest.mark.usefixtures("one_thread")

LAUNCHER = [*ACCELERATE, "--multi_gpu", "--num_processes", "2"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run in whose third step rank 1 was killed."""
    folder = tmp_path_factory.mktemp("ranks")
    begun = time.monotonic()
    code, output = start(LAUNCHER, "faults.py", ["killed", str(folder)], folder)
    return folder, code, output, time.monotonic() - begun


@pytest.fixture(scope="module")
def told(killed) -> list[dict]:
    """The error of each rank for each fault."""
    folder = killed[0]
    code, output = start(LAUNCHER, "faults.py", ["faults", str(folder)], folder)
    assert code == 0, output[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_killed_rank_ends_the_other(killed):
    _, code, output, _ = killed
    assert code not in (0, None), output[-3000:]
    assert "SIGKILL" in output or "-9" in output


def test_the_run_of_a_killed_rank_resumes_on_two_ranks_bit_for_bit(told):
    for rank in told:
        assert rank["whole"]["world_size"] == rank["resumed"]["world_size"] == 2
        assert rank["resumed"]["weights"] == rank["whole"]["weights"] == told[0]["whole"]["weights"]
        assert rank["resumed"]["losses"] == rank["whole"]["losses"]
        assert set(rank["resumed"]["seen"]) == {2, 3}


@pytest.mark.parametrize("fault", [fault.__name__ for fault in FAULTS])
def test_a_fault_of_one_rank_is_told_on_both(told, fault):
    assert [rank["rank"] for rank in told] == [0, 1]
    assert all(rank[fault] for rank in told)


def test_other_data_on_a_rank_is_told_with_what_each_has(told):
    for rank in told:
        assert "as train_dataset (rank 0: 20 rows; rank 1: 28 rows)" in rank["other_lengths"]
        assert "as eval_dataset (rank 0: rows with the digest" in rank["another_order"]


def test_what_is_not_finite_on_one_rank_is_told_with_rank_and_rows_and_nothing_is_kept_of_it(told, killed):
    for rank in told:
        assert (
            "In update step 1" in rank["nan_on_one_rank"] and "rank 1: the loss of the rows" in rank["nan_on_one_rank"]
        )
        assert "not finite: nothing is saved" in rank["weights_spoilt_on_one_rank"]
    folder = killed[0] / "nan_on_one_rank"
    assert len(list((folder / "faults" / "step-1").glob("batch-*.safetensors"))) == 4
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-1"]
    assert [path.name for path in checkpoints_in(killed[0] / "weights_spoilt_on_one_rank")] == ["checkpoint-1"]


def test_a_disk_that_fails_on_one_rank_ends_both_and_leaves_the_checkpoint_before(told, killed):
    for rank in told:
        assert (
            "SaveError: [Errno 28] checkpoint-2 could not be written: the disk is full"
            in rank["a_disk_that_fails_on_one_rank"]
        )
    folder = killed[0] / "a_disk_that_fails_on_one_rank"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["checkpoint-1"]
    check_whole(folder / "checkpoint-1")
