"""Two ranks with faults: records what each rank is told. A launcher starts it; it writes `<folder>/<rank>.json`.

    accelerate launch --multi_gpu --num_processes 2 ... tests/scripts/faults.py killed|faults folder

`killed`: rank 1 is killed in the middle of a training. `faults`: that training is resumed, and is repeated without a
kill. Then single ranks fail in several ways, and the other rank must be told. A rank that hangs here is a fault of
ours.
"""

import json
import os
import signal
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.train import digest, make_trainer
from tiny import text_dataset
from transformers import TrainerCallback


OPTIONS = {"rows": 20, "decoder": "bert", "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
RANK = int(os.environ.get("RANK", 0))


class KilledAt(TrainerCallback):
    """Rank 1 ends without a word, as if the kernel had killed it for taking too much memory."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def trained(folder: Path, resume: bool = False, callbacks=(), kind: str = "mle", **options) -> dict:
    trainer = make_trainer(kind, folder, callbacks=list(callbacks), **{**OPTIONS, **options})
    trainer.train(resume_from_checkpoint=resume)
    logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {
        "weights": digest(trainer.model),
        "losses": logs,
        "world_size": trainer.accelerator.num_processes,
        "seen": [step for step, _, _ in trainer.seen],
    }


def other_lengths(folder: Path) -> None:
    make_trainer("mle", folder, **{**OPTIONS, "rows": 20 if RANK == 0 else 28})


def another_order(folder: Path) -> None:
    shuffled = text_dataset(20).shuffle(seed=RANK)
    make_trainer("mle", folder, eval_dataset=shuffled, **OPTIONS)


def nan_on_one_rank(folder: Path) -> None:
    """With accumulation, so that the ranks meet only once in each step."""
    options = {**OPTIONS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer("mle", folder, **options)
    compute_loss = trainer.compute_loss

    def spoiled(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        return loss * float("nan") if trainer.state.global_step == 1 and RANK == 1 else loss

    trainer.compute_loss = spoiled
    trainer.train()


def a_disk_that_fails_on_one_rank(folder: Path) -> None:
    trainer = make_trainer("mle", folder, **OPTIONS)
    save = trainer._save_rng_state

    def failing(output_dir: str) -> None:
        if trainer.state.global_step == 2 and RANK == 1:
            raise OSError(28, "No space left on device", output_dir)
        save(output_dir)

    trainer._save_rng_state = failing
    trainer.train()


def weights_spoilt_on_one_rank(folder: Path) -> None:
    class Spoiling(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2 and RANK == 1:
                next(model.parameters()).data.view(-1)[0] = float("nan")

    make_trainer("mle", folder, callbacks=[Spoiling()], **OPTIONS).train()


FAULTS = (other_lengths, another_order, nan_on_one_rank, a_disk_that_fails_on_one_rank, weights_spoilt_on_one_rank)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "killed":
        trained(folder / "run", callbacks=[KilledAt()])
        return
    told: dict = {"rank": RANK, "whole": trained(folder / "whole"), "resumed": trained(folder / "run", resume=True)}
    for fault in FAULTS:
        try:
            fault(folder / fault.__name__)
            told[fault.__name__] = None
        except Exception as error:
            told[fault.__name__] = f"{type(error).__name__}: {error}"
    (folder / f"{RANK}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
