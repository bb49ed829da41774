"""ZeRO-3's weights gathered once for a whole rollout, where they would be gathered anew at each of its tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from vision_rl.trainer.reward_trainer import VisionRewardTrainer


@contextmanager
def whole_weights(trainer: "VisionRewardTrainer") -> Iterator[None]:
    """Inside, every rank holds all weights and samples by itself; without ZeRO-3 nothing changes.

    With `ds3_gather_for_generation=False` they stay in shards, for a model that a device cannot hold.
    """
    if not (trainer.is_deepspeed_enabled and trainer.gathers_weights() and trainer.args.ds3_gather_for_generation):
        yield
        return
    import deepspeed
    from trl.models.utils import add_hooks, remove_hooks  # of the engine, which gather and part with weights

    engine = trainer.model_wrapped
    with deepspeed.zero.GatheredParameters(list(engine.parameters())):
        remove_hooks(engine)
        trainer.holds_all_weights = True
        try:
            yield
        finally:
            trainer.holds_all_weights = False
            add_hooks(engine)
