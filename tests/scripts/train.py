"""Trainings for the tests, with a record of what each rank saw.

A test calls `train(...)` in its own process. Or it writes a list of such calls to a file and starts this script with
`accelerate launch` or `torchrun`; then each rank writes `<folder>/<name>.<rank>.json`.

    accelerate launch --multi_gpu --num_processes 2 ... tests/scripts/train.py calls.json folder
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor


sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import share_of_a, text_dataset, text_processor, tiny_model

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.compatibility import CHECKPOINTING


MAX_LENGTH = 12
EVAL_ROWS = 7  # no number of ranks divides it
OPTIONS_OF_TRAINERS = ("peft_config", "callbacks", "completion_decoder", "train_dataset")


def share_of_a_logged(completions, log_metric, **kwargs) -> list[float]:
    """`share_of_a` that also logs the mean number of letters of a completion."""
    log_metric("letters", sum(map(len, completions)) / len(completions))
    return share_of_a(completions)


share_of_a_logged.__name__ = "share_of_a"  # the name in the keys of the log


class Recorder:
    """Keeps (update step, row, sampled ids) of each row of a micro-batch, and the width of each micro-batch's samples."""

    def __init__(self, *args, **kwargs):
        self.seen: list[tuple[int, int, list]] = []
        self.widths: list[int] = []
        super().__init__(*args, **kwargs)


class RecordingMLETrainer(Recorder, VisionMLETrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        for row, labels in zip(inputs["row_index"].tolist(), inputs["labels"], strict=True):
            self.seen.append((self.state.global_step, row, labels[labels != -100].tolist()))
        return super().compute_loss(model, inputs, *args, **kwargs)


class RecordingRewardTrainer(Recorder, VisionRewardTrainer):
    def _sample(self, inputs):
        completions = super()._sample(inputs)
        for b, row in enumerate(inputs["row_index"].tolist()):
            pairs = zip(completions.completion_ids[b], completions.completion_mask[b], strict=True)
            self.seen.append((self.state.global_step, row, [ids[mask.bool()].tolist() for ids, mask in pairs]))
        self.widths.append(completions.completion_ids.shape[-1])
        return completions


def share_exact(predictions, references) -> dict[str, float]:
    """A metric that depends on every row: mean length, and share of rows that are right."""
    pairs = list(zip(predictions, references, strict=True))
    return {
        "exact": sum(p == r for p, r in pairs) / len(pairs),
        "length": sum(len(p) for p in predictions) / len(pairs),
        "rows": len(pairs),
    }


def make_trainer(
    kind: str, folder: str | Path, decoder: str = "ours", rows: int = 16, shards: int = 0, model=None, **options
):
    """A trainer on `rows` images, which are streamed from `shards` if given.

    `model` is a model or its path; by default a tiny one with this decoder. `options` are arguments of the trainer, or
    else options of its config.
    """
    own = {
        "eval_dataset": text_dataset(EVAL_ROWS, seed=1),
        "processing_class": text_processor(),
        "compute_metrics": share_exact,
    }
    dataset = text_dataset(rows)
    own |= {"train_dataset": dataset.to_iterable_dataset(num_shards=shards) if shards else dataset}
    own |= {name: options.pop(name) for name in (*own, *OPTIONS_OF_TRAINERS) if name in options}
    config = {"mle": VisionMLEConfig, "reward": VisionRewardConfig}[kind](
        str(folder),
        **{
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "learning_rate": 3e-3,
            "max_completion_length": MAX_LENGTH,
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            **options,
        },
    )
    return {"mle": RecordingMLETrainer, "reward": RecordingRewardTrainer}[kind](
        model if model is not None else tiny_model(decoder, sharp=0.2, seed=2),
        *([share_of_a_logged] if kind == "reward" else []),
        args=config,
        **own,
    )


def train(
    kind: str,
    folder: str | Path,
    resume: str | None = None,
    evaluate: bool = False,
    save: bool = False,
    spoilt_step: int | None = None,
    **how,
):
    """Train, and return a record of it. `resume` is a checkpoint; `save` writes the tuned model into `folder`.

    In the step `spoilt_step` the loss of the last rank is NaN.
    """
    trainer = make_trainer(kind, folder, **how)
    if spoilt_step is not None:
        _spoil(trainer, spoilt_step)
    record = {"before": _evaluate(trainer) if evaluate else None}
    trainer.train(resume_from_checkpoint=resume)
    record |= {
        "rank": trainer.args.process_index,
        "world_size": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "model_class": type(trainer.model_wrapped).__name__,
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "seen": trainer.seen,
        "widths": trainer.widths,
        "weights": digest(trainer.model),
        "frozen": [name for name, p in trainer.model.named_parameters() if not p.requires_grad],
        "checkpointing": getattr(trainer.model, f"is_{CHECKPOINTING}"),
        "after": _evaluate(trainer) if evaluate else None,
    }
    if save:
        trainer.save_model()
    return record


def _spoil(trainer, step: int) -> None:
    compute_loss, is_last = trainer.compute_loss, trainer.args.process_index == trainer.args.world_size - 1

    def spoilt(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        return loss * float("nan") if is_last and trainer.state.global_step == step else loss

    trainer.compute_loss = spoilt


def _evaluate(trainer) -> dict:
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    timings = ("_runtime", "_per_second")
    return {
        "metrics": {key: value for key, value in output.metrics.items() if not key.endswith(timings)},
        "completions": output.predictions,
        "references": output.label_ids,
    }


def digest(model: torch.nn.Module) -> str:
    """A fingerprint of all weights; it changes with every bit."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.full_tensor() if isinstance(value, DTensor) else value
        sha.update(name.encode() + value.detach().float().numpy().tobytes())
    return sha.hexdigest()


def allow_fsdp_on_cpus() -> None:
    """Without a GPU accelerate replaces FSDP by DistributedDataParallel, although FSDP2 itself runs on CPUs, over gloo."""
    made = AcceleratorState.__init__

    def make(self, *args, fsdp_plugin=None, **kwargs):
        made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = make


def main() -> None:
    calls, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if any("deepspeed" in call for call in calls.values()):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it would take a minute
        deepspeed.init_distributed("gloo")  # accelerate does it only with a GPU, and ZeRO-3 needs it to load a model
    if any("fsdp" in call for call in calls.values()):
        allow_fsdp_on_cpus()
    for name, call in calls.items():
        record = train(folder=folder / name, **call)
        (folder / f"{name}.{record['rank']}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
