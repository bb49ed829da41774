"""Samples the completions of a rollout: encodes and answers its images in chunks, while threads score the chunk before."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vision_rl.models.completions import SampledCompletions
from vision_rl.models.log_prob_head import WeightedTokens
from vision_rl.models.served import takes_encoder_outputs
from vision_rl.models.unwrapping import is_served
from vision_rl.trainer.encoding import SharedEncoding, images_of
from vision_rl.trainer.rollout import chunks_of
from vision_rl.trainer.scoring import Scores


if TYPE_CHECKING:
    from vision_rl.trainer.reward_trainer import VisionRewardTrainer


class RolloutSampler:
    """Has a trainer's `_sample` answer the images of micro-batches, and keeps the scores that threads are computing.

    Args:
        trainer: that samples, encodes, decodes and scores.
    """

    def __init__(self, trainer: "VisionRewardTrainer"):
        self.trainer = trainer
        self.encoding = SharedEncoding(trainer.accelerator.autocast)
        self._encodes_to_learn = False
        self._pending: list[tuple[SampledCompletions, Callable[[], Scores]]] = []

    def __call__(self, batches: list[dict]) -> list[tuple[SampledCompletions, dict]]:
        """The completions of all images in chunks, each with the inputs that it was sampled for.

        Where one micro-batch is learned from once, and right away, its images are encoded with gradient: learning goes
        on from there. Only without dropout, and where a process holds all weights.
        """
        args, once = self.trainer.args, len(batches) == 1 and self.trainer.args.updates_per_rollout == 1
        self.forget()
        goes_on = takes_encoder_outputs(self.trainer.unwrap(self.trainer.model)) and not self.trainer.shards_weights()
        self._encodes_to_learn = once and args.disable_dropout and goes_on
        count, size = sum(len(batch["row_index"]) for batch in batches), args.per_device_generation_batch_size
        if size is None:
            size = (count + 1) // 2 if args.reward_num_workers else count
        chunks = [dict(chunk) for chunk in chunks_of(batches, size)]  # to which scores and the like are added
        sampled = [self._sample(chunk) for chunk in chunks]
        if self._encodes_to_learn and "pixel_values" in batches[0]:
            self.encoding.join(batches[0]["pixel_values"], [chunk["pixel_values"] for chunk in chunks])
        self._encodes_to_learn = False
        return sampled

    def _sample(self, inputs: dict) -> tuple[SampledCompletions, dict]:
        """Sample one chunk and, where there are threads for rewards, start its rewards."""
        trainer = self.trainer
        trainer.clock.enter("sample")
        try:
            completions = trainer._sample(inputs)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} It happened on the rows {inputs['row_index'].tolist()}.") from error
        started = [completions]
        if trainer.args.baseline == "greedy":
            inputs = {**inputs, "greedy": trainer.complete(self.encoded(inputs), do_sample=False)}
            started.append(inputs["greedy"])
        if not self._encodes_to_learn:
            self.encoding.forget()
        if trainer.args.reward_num_workers:
            self._pending += [(each, self._begin_rewards(each, inputs)) for each in started]
        return completions, inputs

    def encoded(self, inputs: dict) -> dict:
        """The inputs with `encoder_outputs (B, N, d)`, the images encoded once for whoever asks."""
        trainer = self.trainer
        policy = trainer.unwrap(trainer.model_wrapped)
        if "encoder_outputs" in inputs or not is_served(policy) or trainer.gathers_weights():
            return inputs
        trainer.clock.enter("encode")
        encoded = self.encoding(policy, inputs, self._encodes_to_learn)
        trainer.clock.enter("sample")
        return {**inputs, **encoded}

    def scores_of(self, completions: SampledCompletions, inputs: dict) -> Scores:
        """The scores of the completions: wait for the threads that score these very ones, or score them now."""
        started = next((finish for each, finish in self._pending if each is completions), None)
        finish = started or self._begin_rewards(completions, inputs)
        self.trainer.clock.enter("reward")
        return finish().to(self.trainer.args.device)

    def greedy_rewards(self, rewards: torch.Tensor, inputs: dict) -> torch.Tensor:
        """The rewards of the greedy completions, `(B,)`; or their returns `(B, T)`, if `rewards` are returns `(B, G, T)`."""
        greedy = inputs["greedy"] if "greedy" in inputs else self.trainer.complete(inputs, do_sample=False)
        scores = self.scores_of(greedy, inputs)
        return scores.rewards if rewards.ndim == 2 else scores.returns_of(rewards.shape[2])

    def forget(self) -> None:
        """Drop encodings and scores, once the completions have been learned from."""
        self.encoding.forget()
        self._pending.clear()

    def _begin_rewards(self, completions: SampledCompletions, inputs: dict) -> Callable[[], Scores]:
        """Decode and start the rewards; without threads they are computed here and now."""
        trainer = self.trainer
        trainer.clock.enter("decode")
        if trainer.processor.watched_ids and completions.watched_logps is None:
            completions = self._watched(completions, inputs)
        objects, ids = trainer.decode(completions, inputs)
        inputs.setdefault("decoded", (objects, ids))  # of the sampled completions, which come first: what is shown
        trainer.clock.enter("reward")
        return trainer.reward.start(objects, ids, inputs["columns"], inputs["row_index"].tolist(), trainer.state)

    @torch.no_grad()
    def _watched(self, completions: SampledCompletions, inputs: dict) -> SampledCompletions:
        """Add the log-probabilities that the processor watches, which an override of `_sample` may have left out."""
        trainer, (ids, mask, _) = self.trainer, completions
        watched = torch.tensor(trainer.processor.watched_ids, device=ids.device)  # (C,)
        rows, positions = mask.flatten(0, 1).nonzero(as_tuple=True)
        places, at = (values.repeat_interleave(len(watched)) for values in (rows, positions))
        tokens = WeightedTokens(places, at, watched.repeat(len(rows)), torch.ones(len(at), device=ids.device))
        with trainer.accelerator.autocast():
            reading = trainer.read_completions(trainer.model_wrapped, images_of(inputs), ids, tokens)
        logps = torch.zeros(*mask.flatten(0, 1).shape, len(watched), device=ids.device)
        logps[rows, positions] = reading.logps.view(len(rows), -1)
        return replace(completions, watched_logps=logps.view(*ids.shape, -1))
