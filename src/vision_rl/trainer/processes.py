"""How many processes were asked for, and whether they train together."""

import os
from typing import Any


ASKED = "VISION_RL_NUM_PROCESSES"  # of `vision-rl --accelerate_config`, told to the processes that it starts


def check_processes(args: Any) -> None:
    """Check that as many processes train together as a launcher was asked for.

    accelerate starts a single process for `MULTI_CPU` and for `--cpu`, whatever number stands beside it, and says nothing.

    Raises:
        ValueError: for others, which would each train for itself, or on a part of the batch.
    """
    asked = int(os.environ.get(ASKED) or os.environ.get("WORLD_SIZE") or 1)
    if args.world_size != asked:
        raise ValueError(
            f"{asked} processes were asked for, but {args.world_size} would train. On CPUs set use_cpu=True, and start the "
            "processes by torchrun --nproc_per_node, or by accelerate with --multi_gpu (distributed_type: MULTI_GPU), which "
            "works for CPUs too; MULTI_CPU and --cpu start only one."
        )


def choose_deepspeeds_device(args: Any) -> None:
    """Tell DeepSpeed to take the CPU with `use_cpu`; by itself it takes what it finds when it is first imported."""
    if args.use_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def join_deepspeed(args: Any) -> None:
    """Tell DeepSpeed of the other processes, which it needs on CPUs; ZeRO-3 asks when a model is loaded."""
    if args.deepspeed is not None and args.device.type == "cpu":
        import deepspeed

        deepspeed.init_distributed("gloo")
