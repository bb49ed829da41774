"""The model as it was before tuning, which `beta` holds the policy near to."""

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from vision_rl.models.completions import SampledCompletions
from vision_rl.models.unwrapping import evaluation_mode
from vision_rl.trainer.encoding import images_of
from vision_rl.trainer.losses import reinforce_weights


if TYPE_CHECKING:
    from vision_rl.trainer.reward_trainer import VisionRewardTrainer


class ReferenceModel:
    """Says how far a trainer's policy has gone from the model before tuning.

    Under new adapters that is the base itself, else a frozen copy.

    Raises:
        ValueError: where processes would hold the copy in shards.
    """

    def __init__(self, trainer: "VisionRewardTrainer", adapters_are_new: bool):
        self.trainer, self.is_base = trainer, adapters_are_new
        self.model: Any = trainer.model
        if adapters_are_new:
            return
        if trainer.gathers_weights():
            raise ValueError("beta needs a second copy of the weights, which ZeRO-3 and FSDP would shard: use LoRA.")
        copied = copy.deepcopy(trainer.model).requires_grad_(False)
        self.model = trainer.accelerator.prepare_model(copied, evaluation_mode=True).eval()

    @torch.no_grad()
    def kl(self, completions: SampledCompletions, batch: dict) -> torch.Tensor:
        """The samples' log p(policy) - log p(reference), summed over tokens `(B, G)`: TRL's k1 estimator of the KL."""
        trainer, images, parts = self.trainer, images_of(batch), []
        trainer.clock.enter("reference")
        adapters = self.model.disable_adapter() if self.is_base else nullcontext()
        with adapters, evaluation_mode(self.model), trainer.accelerator.autocast():
            at_once = trainer.args.per_device_train_batch_size
            for start in range(0, len(completions.completion_ids), at_once):
                which = slice(start, start + at_once)
                ids, mask, logps = (field[which].flatten(0, 1) for field in completions)
                tokens = reinforce_weights(ids, mask, torch.ones_like(logps[:, 0]))  # every token that was drawn
                some = {name: value[which] for name, value in images.items()}
                reading = trainer.read_completions(self.model, some, completions.completion_ids[which], tokens)
                difference = logps[tokens.rows, tokens.positions] - reading.logps
                parts.append(torch.zeros_like(logps[:, 0]).index_add_(0, tokens.rows, difference))
        kl = torch.cat(parts).view(completions.completion_ids.shape[:2])
        trainer.step_log.record("kl", torch.stack([kl, completions.completion_mask.sum(-1)], dim=-1).flatten(0, 1))
        return kl
