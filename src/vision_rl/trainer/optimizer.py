"""The optimiser that the options name, any of Trainer's or the paper's, with a learning rate for encoder and decoder."""

import logging

import torch
from torch import nn
from transformers import Trainer

from vision_rl.trainer.optim import BIG_VISION_ADAFACTOR, big_vision_adafactor, kernel_names, parameter_groups
from vision_rl.trainer.vision_config import VisionConfig


logger = logging.getLogger(__name__)


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, args: VisionConfig) -> None:
    """Check that an optimiser of the user's own moves the parameters that learn; a warning tells which it lacks.

    Raises:
        ValueError: if it has none of them, or if an option asks for a learning rate that only ours would have.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name, parameter in learned.items() if id(parameter) not in held]
    if missing and len(missing) == len(learned):
        raise ValueError(
            "The optimizer in `optimizers` has none of the parameters that learn, so that nothing would change. Make it from the "
            "parameters of the very model that the trainer is given, with its adapters; or leave it out and set optim, "
            "learning_rate and encoder_learning_rate."
        )
    if missing:
        logger.warning(
            "The optimizer in `optimizers` lacks %d of the %d parameters that require a gradient, such as %s: they stay as they "
            "are.",
            *(len(missing), len(learned), missing[0]),
        )
    if args.encoder_learning_rate is not None:
        raise ValueError(
            "encoder_learning_rate has no effect beside an optimizer in `optimizers`: give the encoder's parameters a group with a "
            "learning rate of its own there, or leave the optimizer out."
        )


def make_optimizer(model: nn.Module, args: VisionConfig, decay_names: set[str], shards: bool) -> torch.optim.Optimizer:
    """The optimiser that `args.optim` names, with learning rates of encoder and decoder.

    Args:
        model: what is trained.
        args: the trainer's options.
        decay_names: parameters with weight decay, for all optimisers but the paper's, which has its own.
        shards: whether DeepSpeed or FSDP hand out pieces of the parameters.

    Raises:
        ValueError: for one that does not take parameter groups, or not as they are handed out.
    """
    paper = args.optim == BIG_VISION_ADAFACTOR
    if paper and shards:
        raise ValueError(
            f"optim={BIG_VISION_ADAFACTOR!r} needs whole tensors to factor; DeepSpeed and FSDP hand out flat "
            "pieces of them. Use optim='adamw_torch' there."
        )
    groups = parameter_groups(
        model,
        args.learning_rate,
        args.encoder_learning_rate,
        args.weight_decay,
        decay_names=kernel_names(model) if paper else decay_names,
    )
    if paper:
        return big_vision_adafactor(groups, model, args.learning_rate, args.optim_args)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    if {"params", "model", "optimizer_dict"} & set(options):
        raise ValueError(f"optim={args.optim!r} builds its own parameter groups: pass it in `optimizers`.")
    return optimizer_class(groups, **options)
