"""The optimiser that the options name, any of Trainer's or the paper's, with a learning rate for encoder and decoder."""

import torch
from torch import nn
from transformers import Trainer

from vision_rl.trainer.optim import (
    BigVisionAdafactor,
    attention_view_shapes,
    kernel_names,
    parameter_groups,
    parse_optim_args,
)
from vision_rl.trainer.vision_config import BIG_VISION_ADAFACTOR, VisionConfig


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
        options = parse_optim_args(args.optim_args)
        if options.pop("reference_layout", False):
            options["view_shapes"] = attention_view_shapes(model)
        return BigVisionAdafactor(groups, lr=args.learning_rate, **options)
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    if {"params", "model", "optimizer_dict"} & set(options):
        raise ValueError(f"optim={args.optim!r} builds its own parameter groups: pass it in `optimizers`.")
    return optimizer_class(groups, **options)
