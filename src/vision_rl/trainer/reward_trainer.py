"""Step 2 of the paper: sample answers, score them, and make the better ones more likely (REINFORCE)."""

import copy
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from vision_rl.models.completions import SampledCompletions
from vision_rl.models.preparation import disable_dropout
from vision_rl.models.special_ids import special_ids
from vision_rl.models.unwrapping import evaluation_mode
from vision_rl.randomness import uniform_table
from vision_rl.rewards import RewardFunc, TokenTargets
from vision_rl.trainer import checks
from vision_rl.trainer.advantages import (
    first_advantages,
    greedy_advantages,
    leave_one_out_advantages,
    mean_advantages,
    no_baseline_advantages,
)
from vision_rl.trainer.completions_log import CompletionsLog
from vision_rl.trainer.losses import reinforce_weights, token_target_weights
from vision_rl.trainer.metrics import completion_record, step_metrics
from vision_rl.trainer.reward_config import VisionRewardConfig
from vision_rl.trainer.scoring import RewardSum, Scores
from vision_rl.trainer.teacher_forcing import TeacherForcedTrainer
from vision_rl.trainer.timing import OptimizerClock
from vision_rl.trainer.vision_trainer import name_of_model


class RunBeginning(TrainerCallback):
    """Forgets what an earlier training has not logged; a run that goes on is known to have had rewards."""

    def __init__(self, trainer: "VisionRewardTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._metrics.clear()
        self.trainer._clock.read()
        self.trainer._step_time = 0.0
        self.trainer._rewarded = state.global_step > 0


class VisionRewardTrainer(TeacherForcedTrainer):
    """Tunes a vision model for a reward by REINFORCE (paper, section 3, Algorithm 2).

    A step is four calls, `_sample`, `_score`, `_advantages` and `_learn`; override one of them to change it. The loss of
    `_learn` is a weighted sum of log-probabilities, so that the whole logits are never needed.

    Args:
        model: an MLE-trained `VisionEncoderDecoderModel`, one inside PEFT, or the name or path of one.
        reward_funcs: one reward or a list: `reward(completions, completion_ids, references, **columns) ->
            list[float | None] | RewardOutput`, as in TRL; also async functions and evaluate modules.
        args: options; default `VisionRewardConfig("<model>-Reward")`.
        train_dataset, eval_dataset: rows with an image and whatever columns the rewards want.
        processing_class: a processor of the data protocol (`vision_rl.processing`), or any transformers processor
            with an image processor and a tokenizer.
        compute_metrics: `compute_metrics(predictions=, references=) -> dict` over the greedy completions of the whole
            evaluation set, as an evaluate module's `compute`: the true metric beside the reward.
        callbacks, optimizers, peft_config: as in TRL's trainers.
        completion_decoder: `completion_decoder(completion_ids (B, G, T), batch) -> list of B*G objects`, in place of
            `processing_class.batch_decode`; `batch["completion_mask"]` tells the ids from the padding behind them.
    """

    args: VisionRewardConfig
    learns_from_labels = False
    _tag_names = ["vision_rl", "reward-tuning"]

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc],
        args: VisionRewardConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[..., dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
        completion_decoder: nn.Module | None = None,
    ):
        args = args or VisionRewardConfig(f"{name_of_model(model)}-Reward")
        checks.check_config(self, args, VisionRewardConfig)
        self.reward = RewardSum(
            reward_funcs,
            args.reward_weights,
            args.completions_format == "conversational",
            args.reward_num_workers,
            args.reward_timeout,
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
            completion_decoder=completion_decoder,
        )
        self.num_generations = args.num_generations
        self.temperature = args.temperature
        self.num_learning = 1 if args.baseline == "first" else args.num_generations  # of the G samples
        self._metrics: dict[str, list[float]] = defaultdict(list)  # since the last log
        self._rewarded = False
        self._step_time = 0.0
        self.add_callback(OptimizerClock(self._clock))
        self.add_callback(RunBeginning(self))
        self._waiting: deque[dict] = deque()  # micro-batches of this update step that are not sampled yet
        self._drawn: deque[dict] = deque()  # those that are, and whose turn to learn has not come
        self.completions_log: CompletionsLog | None = None
        if args.log_completions:
            self.completions_log = CompletionsLog(
                self.processor.draw,
                os.path.join(str(args.output_dir), "completions"),
                self.reward.names,
                args.num_completions_to_print,
                args.log_multimodal,
            )
        if args.disable_dropout:
            disable_dropout(self.model)
        self.ref_model = self._reference_model(adapters_are_new=peft_config is not None)

    # --- one step of Algorithm 2 ------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = inputs if "completions" in inputs else self._draw(inputs)
        completions = inputs["completions"]
        rewards, token_targets = self._score(completions, inputs)
        advantages = self._advantages(rewards, completions, inputs)
        if self.completions_log is not None:
            self._show(self.completions_log, inputs, rewards, advantages)
        self._clock.enter("learn")
        loss = self._learn(model, inputs, completions, advantages, token_targets, num_items_in_batch)
        return (loss, completions) if return_outputs else loss

    def _draw(self, inputs) -> dict:
        """The micro-batch with its `completions`; threads, if there are any, have begun to score them."""
        inputs = self._encode(self._prepare_inputs(inputs))
        self._clock.enter("sample")
        completions = self._sample(inputs)
        inputs = {**inputs, "completions": completions}
        if self.args.reward_num_workers:
            inputs["scores"] = self._start_rewards(completions, inputs)
        if self.args.baseline == "greedy":
            self._clock.enter("sample")
            greedy = self.complete(inputs, do_sample=False)
            inputs["greedy_scores"] = self._start_rewards(greedy, inputs)
        self._clock.enter(None)
        return inputs

    def _sample(self, inputs) -> SampledCompletions:
        """G completions of each image, drawn from the model as it stands: `(B, G, T)`."""
        uniforms = uniform_table(
            self.data_seed,
            self.state.global_step,
            inputs["row_index"],
            self.num_generations,
            self.max_completion_length,
        )
        return self.complete(inputs, self.num_generations, temperature=self.temperature, uniforms=uniforms)

    def _score(self, completions: SampledCompletions, inputs) -> tuple[torch.Tensor, list[TokenTargets]]:
        """The weighted sum of the rewards `(B, G)`, NaN where none applies, and the token targets they supply.

        Where a reward has prefix rewards: the returns `(B, G, T)`, what each token can still earn.

        With `reward_num_workers` the rewards of the sampled completions have been started before, and this waits for
        them. An override may change what it returns; one that scores in a way of its own needs no workers.
        """
        drawn = completions is inputs.get("completions") and "scores" in inputs
        scores = self._finished(inputs["scores"] if drawn else self._start_rewards(completions, inputs))
        rewards = scores.rewards.view(completions.completion_ids.shape[:2])
        self._record(scores, rewards, completions)
        inputs["scored"] = scores
        if scores.returns is not None:
            rewards = scores.returns_of(completions.completion_ids.shape[2]).view_as(completions.completion_ids)
        return rewards, scores.token_targets

    def _advantages(self, rewards: torch.Tensor, completions: SampledCompletions, inputs) -> torch.Tensor:
        """Each sample's reward minus its baseline: `(B, G)`, or each token's return minus its own: `(B, G, T)`."""
        if self.ref_model is not None:
            self._clock.enter("reference")
            kl = self._kl(completions, inputs)
            rewards = rewards - self.args.beta * (kl if rewards.ndim == 2 else kl[..., None])
        match self.args.baseline:
            case "leave_one_out":
                return leave_one_out_advantages(rewards)
            case "first":
                return first_advantages(rewards)
            case "greedy":
                greedy = self._finished(inputs["greedy_scores"])
                return greedy_advantages(
                    rewards, greedy.rewards if rewards.ndim == 2 else greedy.returns_of(rewards.shape[2])
                )
            case "mean":
                return mean_advantages(rewards)
        return no_baseline_advantages(rewards)

    def _learn(self, model, inputs, completions, advantages, token_targets, num_images=None) -> torch.Tensor:
        """The loss: one teacher-forced pass over the samples, weighted by their advantages."""
        completions = completions.first(self.num_learning)  # (B, L, T), L = 1 or G
        num_samples = (num_images or len(advantages)) * self.num_learning  # of the whole update step
        ids, mask, _ = (field.flatten(0, 1) for field in completions)  # (B*L, T)
        tokens = reinforce_weights(ids, mask, advantages[:, : self.num_learning].flatten(0, 1))
        for targets in token_targets:  # TokenTargets.weight is stated for the mean over all positions
            tokens += token_target_weights(self._of_learners(targets), targets.weight * self.max_completion_length)
        loss = self._weighted_sum(model, inputs, completions, tokens)
        length = self.max_completion_length if self.args.loss_reduction == "mean" else 1
        return self.mean_over_step(loss / length, num_samples)

    # --- the parts --------------------------------------------------------------------------------------------------

    def _of_learners(self, targets: TokenTargets) -> TokenTargets:
        """For the `B*L` samples that learn: without those that only serve as a baseline."""
        images, samples = (
            targets.positions[:, 0] // self.num_generations,
            targets.positions[:, 0] % self.num_generations,
        )
        learns = samples < self.num_learning
        rows = images * self.num_learning + samples
        positions = torch.stack([rows, targets.positions[:, 1]], dim=1)
        positions, ids, probabilities = (
            field[learns].to(self.args.device) for field in (positions, targets.ids, targets.probabilities)
        )
        return replace(targets, positions=positions, ids=ids, probabilities=probabilities)

    def _start_rewards(self, completions: SampledCompletions, inputs) -> Callable[[], Scores]:
        """Decode and start the rewards; without workers they are computed here and now."""
        self._clock.enter("decode")
        decoded, ids = self.decode(completions, inputs)
        if completions is inputs.get("completions"):
            inputs["decoded"] = decoded, ids
        self._clock.enter("reward")
        return self.reward.start(decoded, ids, inputs["columns"], inputs["row_index"].tolist(), self.state)

    def _finished(self, started: Callable[[], Scores]) -> Scores:
        self._clock.enter("reward")
        return started().to(self.args.device)

    def _reference_model(self, adapters_are_new: bool):
        """The model before tuning, for `beta`: under new adapters the base itself, else a frozen copy."""
        if self.args.beta == 0:
            return None
        if adapters_are_new:
            return self.model
        if self._gathers_weights():
            raise ValueError("beta needs a second copy of the weights, which ZeRO-3 and FSDP would shard: use LoRA.")
        reference = copy.deepcopy(self.model).requires_grad_(False)
        return self.accelerator.prepare_model(reference, evaluation_mode=True).eval()

    @torch.no_grad()
    def _kl(self, completions: SampledCompletions, inputs) -> torch.Tensor:
        """The samples' log p(policy) - log p(reference), summed over tokens `(B, G)`: TRL's k1 estimator of the KL."""
        ids, mask, logps = (field.flatten(0, 1) for field in completions)
        tokens = reinforce_weights(ids, mask, torch.ones_like(logps[:, 0]))  # every token that was drawn
        # The reference has an encoder of its own: the policy's output beside the pixels is not for it.
        name = "pixel_values" if "pixel_values" in inputs else "encoder_outputs"
        without_adapters = self.ref_model.disable_adapter() if self.ref_model is self.model else nullcontext()
        with without_adapters, evaluation_mode(self.ref_model), self.accelerator.autocast():
            _, reference_logps = self._teacher_forced(
                self.ref_model, {name: inputs[name]}, completions.completion_ids, tokens
            )
        difference = logps[tokens.rows, tokens.positions] - reference_logps
        kl = torch.zeros_like(logps[:, 0]).index_add_(0, tokens.rows, difference)
        self._recorded["kl"].append(kl)
        return kl.view(completions.completion_ids.shape[:2])

    def _count_items(self, batch) -> int:
        return len(batch["row_index"])

    def _check_data(self, args, datasets, collator, policy) -> None:
        super()._check_data(args, datasets, collator, policy)
        for name, dataset in datasets.items():
            self._check_rewards(name, dataset)

    def _check_evaluated(self, name, dataset, columns) -> None:
        super()._check_evaluated(name, dataset, columns)
        if set(self.target_columns.values()) <= set(checks.column_names(dataset)):
            self._check_rewards(name, dataset)

    def _check_rewards(self, name: str, dataset) -> None:
        complete = len(self.target_columns) == len(self.processor.target_columns)
        columns = checks.column_names(dataset)
        complete = complete and set(self.target_columns.values()) <= set(columns)
        self.reward.check(name, columns, self.processor.makes_references and complete)

    def _save(self, output_dir=None, state_dict=None):
        """As both steps do, and what the rewards need to be made again."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            for reward in self.reward.saved:
                reward.save_pretrained(str(folder))

    # --- evaluation: the reward of greedy completions, beside the metric --------------------------------------------

    def _needs_completions(self) -> bool:
        return True

    def _evaluate_batch(self, model, batch) -> list[dict]:
        records = super()._evaluate_batch(model, batch)
        if not self._has_targets(batch):
            return records
        completions, ids = [r["completion"] for r in records], [r["completion_ids"] for r in records]
        scores = self.reward(completions, ids, batch["columns"], batch["row_index"].tolist(), self.state)
        for record, reward, parts in zip(records, scores.rewards, scores.per_function, strict=True):
            record["reward"], record["rewards"] = reward.item(), parts.tolist()
        if self.completions_log is not None and not self._predicting:
            self.completions_log.record(
                self.state.global_step,
                row_index=batch["row_index"].tolist(),
                images=batch["columns"].columns[self.args.image_column],
                completions=completions,
                completion_ids=ids,
                rewards=scores.rewards.tolist(),
                per_function=scores.per_function.tolist(),
                references=batch["columns"].references,
                evaluation=True,
            )
        return records

    def _evaluation_metrics(self, records) -> dict[str, float]:
        metrics = super()._evaluation_metrics(records)
        metrics["completions/mean_length"] = sum(len(record["completion_ids"]) for record in records) / len(records)
        if "reward" not in records[0]:
            return metrics
        metrics["reward"] = torch.tensor([record["reward"] for record in records]).nanmean().item()
        per_function = torch.tensor([record["rewards"] for record in records])  # (N, F)
        for name, mean in zip(self.reward.names, per_function.nanmean(0).tolist(), strict=True):
            metrics[f"rewards/{name}/mean"] = mean
        return metrics

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.completions_log is not None and not self._predicting:
            self.completions_log.gather(metric_key_prefix)
        return output

    # --- micro-batches ----------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._clock.enter("data")
        batches, num_images = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._clock.enter(None)
        self._waiting, self._drawn = deque(batches), deque()
        self._recorded.clear()
        return batches, num_images

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch. With reward workers the next one is sampled first, while this one's rewards are computed.

        No parameter moves within an update step, so that the next micro-batch's samples are on-policy all the same.
        """
        start = time.perf_counter()
        model.train()
        ahead = 1 if self.args.reward_num_workers else 0
        while self._waiting and len(self._drawn) <= ahead:
            self._drawn.append(self._draw(self._waiting.popleft()))
        loss = super().training_step(model, self._drawn.popleft() if self._drawn else inputs, num_items_in_batch)
        self._clock.enter(None)
        self._step_time += time.perf_counter() - start
        if self.accelerator.sync_gradients:
            self._metrics["step_time"].append(self._step_time)
            self._step_time = 0.0
            self._measure()
        return loss

    # --- logging: TRL's keys ----------------------------------------------------------------------------------------

    def _record(self, scores: Scores, rewards: torch.Tensor, completions: SampledCompletions) -> None:
        """Keep what the log says of these completions; ranks exchange it once an update step."""
        ends = special_ids(self.bare(self.model)).ends
        self._recorded["completions"].append(completion_record(completions, ends, rewards, scores.per_function))
        for name, value in scores.logged.items():
            self._metrics[name].append(value)

    def _show(self, log: CompletionsLog, inputs: dict, rewards: torch.Tensor, advantages: torch.Tensor) -> None:
        """Give the log of completions what it keeps of this micro-batch."""
        if not {"decoded", "scored"} <= set(inputs):
            return  # an override of `_score` does it all
        decoded, ids = inputs["decoded"]
        scores: Scores = inputs["scored"]
        if rewards.ndim == 3:  # returns, and advantages, of every token: at the first one those of the sample
            rewards, advantages = scores.rewards, advantages[..., 0]
        log.record(
            self.state.global_step,
            row_index=inputs["row_index"].tolist(),
            images=inputs["columns"].columns[self.args.image_column],
            completions=decoded,
            completion_ids=ids,
            rewards=rewards.flatten().tolist(),
            per_function=scores.per_function.tolist(),
            advantages=advantages.flatten().tolist(),
            references=inputs["columns"].references,
        )

    def _measure(self) -> None:
        """What all ranks recorded during this update step, as metrics of the whole step."""
        recorded = {name: torch.cat(parts) for name, parts in self._recorded.items()}
        self._recorded.clear()
        recorded = {name: values.cpu() for name, values in self.accelerator.gather(recorded).items()}
        metrics: dict[str, float] = {}
        if "completions" in recorded:
            metrics, num_tokens = step_metrics(recorded["completions"], self.num_generations, self.reward.names)
            self.state.num_input_tokens_seen += num_tokens
            self._metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        if "kl" in recorded:
            metrics["kl"] = recorded["kl"].mean().item()
        if "difference" in recorded:
            metrics["sampling/sampling_logp_difference/max"] = recorded["difference"].max().item()
        for name, value in metrics.items():
            self._metrics[name].append(value)

    def _check_rewarded(self) -> None:
        """Some completion of the run so far had a reward; rows that none applies to are no error by themselves."""
        self._rewarded = self._rewarded or bool(self._metrics.get("reward"))
        if "num_tokens" in self._metrics and not self._rewarded:  # else an override of `_score` does it all
            raise ValueError(
                f"Every reward ({', '.join(self.reward.names)}) was None for all completions of the first "
                f"{self.state.global_step} steps: nothing can be learned from them."
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_loss" in logs:  # of training, not of an evaluation before its first log
            self._check_rewarded()
        if "loss" in logs:  # in place: callbacks and the best-model check read the same dict
            num_steps = len(self._metrics.get("step_time", [None]))
            for name, values in self._metrics.items():
                logs[name] = sum(values) / len(values)
            for part, seconds in self._clock.read().items():
                logs[f"timing/{part}"] = seconds / num_steps
            self._metrics.clear()
        super().log(logs, start_time)
        if self.completions_log is not None and self.is_world_process_zero():
            self.completions_log.write(self.state.global_step, self.callback_handler.callbacks, samples="loss" in logs)
