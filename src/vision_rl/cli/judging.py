"""A saved model with its rewards and its metric, to look at what it answers: of `analyze` and `report`."""

from dataclasses import replace
from typing import Any

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.cli import building
from vision_rl.cli.reading import Read
from vision_rl.cli.rewards import load_rewards
from vision_rl.task import load_processor
from vision_rl.trainer.vision_config import on_one_device


def judging_trainer(
    given: Read, model: str, folder: str, rows: Any, counted: Any, train: Any = None, **options: Any
) -> VisionRewardTrainer | VisionMLETrainer:
    """Make a trainer that judges the answers of `model`, which is not trained.

    Args:
        given: what the command was given; of its first dataclass the model's revision, the rewards and the device count.
        model: one of those that the command names.
        folder: Trainer wants one.
        rows: that are answered, or None.
        counted: rows from which rewards take counts; None: nothing is rewarded.
        train: rows for gradients, or None.
        options: of the trainer's config besides.
    """
    args = given.own[0]
    args = replace(
        args, model=model, model_revision=args.model_revision if model == args.model else args.before_revision
    )
    processor = building.with_options(load_processor(model, given.task, args.model_revision), given.options)
    options |= {
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.batch_size,
        "bf16": args.bf16,
        "use_cpu": args.use_cpu,
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": building.at_revision(args),
    }
    rewards = None if counted is None else load_rewards(args.reward, given.task, processor, counted)
    processor = building.with_options(processor, given.options)  # a reward may have changed what an option says
    parts: dict[str, Any] = {
        "model": model,
        "train_dataset": train,
        "eval_dataset": rows,
        "processing_class": processor,
        "compute_metrics": given.task.make_metric(processor),
        "completion_decoder": building.completion_decoder(processor, args),
    }
    if rewards is None:
        return VisionMLETrainer(args=on_one_device(VisionMLEConfig(folder, **options)), **parts)
    config = VisionRewardConfig(folder, reward_weights=args.reward_weights, **options)
    return VisionRewardTrainer(reward_funcs=rewards, args=on_one_device(config), **parts)
