"""`vision-rl mle`, `stage1` and `tune`: the paper's steps, each from its options to a saved model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import set_seed

from vision_rl import Stage1Trainer, VisionMLETrainer, VisionRewardTrainer
from vision_rl.cli import building
from vision_rl.cli.arguments import DataArguments
from vision_rl.cli.data import load_rows, require, under_usual_names
from vision_rl.cli.dry_run import dry_run
from vision_rl.cli.pace import PaceCallback
from vision_rl.cli.reading import Read
from vision_rl.cli.recipe import require_folders
from vision_rl.cli.rewards import load_rewards
from vision_rl.task import load_processor
from vision_rl.trainer.optim import encoder_parameters


def mle(given: Read) -> Callable[[], None]:
    model_args, data, run = given.own
    if run.dry_run:
        return dry_run("mle", given)
    require_folders([model_args.model, model_args.stage1])
    set_seed(given.training.seed)
    train, evaluated = _rows(given, data)
    processor = building.make_processor(given.task, model_args, given.options, train)
    trainer = VisionMLETrainer(
        model=building.make_model(given.task, model_args, processor, given.training.max_completion_length),
        **_parts(given, train, evaluated, processor),
        completion_decoder=building.completion_decoder(processor, model_args, model_args.stage1),
    )
    return lambda: _train(trainer, data, "mle", given)


def stage1(given: Read) -> Callable[[], None]:
    model_args, data, run = given.own
    if run.dry_run:
        return dry_run("stage1", given)
    set_seed(given.training.seed)
    train, evaluated = _rows(given, data)
    processor = given.task.make_processor(given.options, building.image_processor(model_args), train)
    trainer = Stage1Trainer(
        model=building.make_stage1(model_args, processor), **_parts(given, train, evaluated, processor)
    )
    return lambda: _train(trainer, data, "stage1", given)


def tune(given: Read) -> Callable[[], None]:
    args, data, run = given.own
    if args.model is None:
        raise ValueError("vision-rl tune needs --model: the output_dir of `vision-rl mle`.")
    if run.dry_run:
        return dry_run("tune", given)
    require_folders([args.model])
    processor = building.with_options(load_processor(args.model, given.task, args.model_revision), given.options)
    given.training.model_init_kwargs = building.at_revision(args, given.training.model_init_kwargs)
    train, evaluated = _rows(given, data)
    named = under_usual_names(train, given.training.target_columns)
    rewards = load_rewards(args.reward, given.task, processor, named)
    processor = building.with_options(processor, given.options)  # a reward may have changed what an option says
    trainer = VisionRewardTrainer(
        model=args.model,
        reward_funcs=rewards,
        **_parts(given, train, evaluated, processor),
        completion_decoder=building.completion_decoder(processor, args),
    )
    if args.freeze_encoder:
        for parameter in encoder_parameters(trainer.model):
            parameter.requires_grad_(False)
    return lambda: _train(trainer, data, "tune", given)


def _parts(given: Read, train: Any, evaluated: Any, processor: Any) -> dict[str, Any]:
    """The arguments that every trainer is given."""
    return {
        "args": given.training,
        "train_dataset": train,
        "eval_dataset": evaluated,
        "processing_class": processor,
        "compute_metrics": given.task.make_metric(processor),
        "callbacks": [PaceCallback()],
    }


def _rows(given: Read, data: DataArguments) -> tuple[Any, Any]:
    """The rows to learn from, and those that are evaluated if the config asks for it."""
    train = require(load_rows(given.task, data, given.options, "train"), "to learn from", data, given.task)
    if not given.evaluates():
        return train, None
    evaluated = load_rows(given.task, data, given.options, "validation")
    return train, require(
        evaluated, "to evaluate on (or set eval_strategy to no and eval_on_start to false)", data, given.task
    )


def _train(trainer: Any, data: DataArguments, command: str, given: Read) -> None:
    trainer.dataset_name = data.dataset_name
    if trainer.is_world_process_zero():
        given.record(command, Path(str(trainer.args.output_dir)))
    trainer.train()
    trainer.save_state()
    trainer.push_to_hub() if trainer.args.push_to_hub else trainer.save_model()  # the first saves as well
    if trainer.is_world_process_zero():
        print(f"The model is in {trainer.args.output_dir}.")
