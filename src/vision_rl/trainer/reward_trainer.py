"""Step 2 of the paper: sample answers, score them, and make the better ones more likely (REINFORCE)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from vision_rl.models.completions import SampledCompletions
from vision_rl.models.preparation import disable_dropout
from vision_rl.models.special_ids import special_ids
from vision_rl.randomness import uniform_table
from vision_rl.rewards import RewardFunc, TokenTargets
from vision_rl.trainer import advantages as baselines
from vision_rl.trainer import checks, evaluation
from vision_rl.trainer.completions_log import CompletionsLog
from vision_rl.trainer.loading import check_base_is_kept, name_of_model
from vision_rl.trainer.metrics import completion_record
from vision_rl.trainer.policy_loss import PolicyLoss
from vision_rl.trainer.reference_model import ReferenceModel
from vision_rl.trainer.reward_config import VisionRewardConfig
from vision_rl.trainer.reward_scaling import group_scaled, normalized_sum, scaled_over_rollout
from vision_rl.trainer.rollout import Rollout
from vision_rl.trainer.rollout_in_use import RolloutInUse, prepared_already
from vision_rl.trainer.rollout_sampler import RolloutSampler
from vision_rl.trainer.run_watch import RunWatch
from vision_rl.trainer.scoring import RewardSum
from vision_rl.trainer.step_log import StepLog
from vision_rl.trainer.teacher_forcing import TeacherForcing, label_loss, label_weights
from vision_rl.trainer.timing import OptimizerClock, StepClock
from vision_rl.trainer.vision_trainer import VisionTrainer
from vision_rl.trainer.whole_weights import whole_weights


class VisionRewardTrainer(VisionTrainer):
    """Tunes a vision model for a reward by REINFORCE (paper, section 3, Algorithm 2).

    A step is four calls; override one of them to change it. `_sample`, `_score` and `_advantages` make the rollout: all
    images of an update step are answered and judged before learning begins. `_learn` makes the loss of one micro-batch, a
    weighted sum of log-probabilities, so that the whole logits are never needed.

    Args:
        model: an MLE-trained `VisionEncoderDecoderModel`, Pix2Struct, Florence-2 or BLIP's captioner, one inside PEFT, or the
            name or path of one.
        reward_funcs: one reward or a list: `reward(completions, completion_ids, references, **columns) ->
            list[float | None] | RewardOutput`, as in TRL; also async functions, modules, text classifiers of transformers
            or the name of one, and evaluate modules or the path of one.
        args: options; default `VisionRewardConfig("<model>-Reward")`.
        train_dataset, eval_dataset: rows with an image and whatever columns the rewards want.
        processing_class: a processor of the data protocol (`vision_rl.processing`), or any transformers processor
            with an image processor and a tokenizer.
        compute_metrics: `compute_metrics(predictions=, references=) -> dict` over the greedy completions of the whole
            evaluation set, an evaluate module, its path, or a list of these: the true metric beside the reward.
        callbacks, optimizers, peft_config: as in TRL's trainers.
        completion_decoder: `completion_decoder(completion_ids (B, G, T), batch) -> list of B*G objects`, in place of
            `processing_class.batch_decode`; `batch["completion_mask"]` tells the ids from the padding behind them.
        reward_processing_classes: tokenizers of the rewards that are text classifiers, one a reward, `None` for the others;
            default: the one beside each model.
    """

    args: VisionRewardConfig
    _tag_names = ["vision_rl", "reward-tuning"]
    learned_by = "tuned for task rewards (REINFORCE)"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc],
        args: VisionRewardConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable[..., dict] | Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: PeftConfig | None = None,
        completion_decoder: nn.Module | None = None,
        reward_processing_classes: Sequence | PreTrainedTokenizerBase | None = None,
    ):
        args = args or VisionRewardConfig(f"{name_of_model(model)}-Reward")
        checks.check_config(self, args, VisionRewardConfig)
        args.resolve_rollout()
        if args.beta > 0 and peft_config is not None:
            check_base_is_kept(peft_config)
        self.learns_from_labels = args.mle_weight > 0
        self.reward = RewardSum(
            reward_funcs,
            args.reward_weights,
            args.completions_format == "conversational",
            args.reward_num_workers,
            args.reward_timeout,
            args.on_reward_error,
            args.find_failing_row,
            reward_processing_classes,
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
        self.reward.prepare(self.accelerator)
        self.rewards_learned = dict(zip(self.reward.names, self.reward.weights.tolist(), strict=True))
        self.num_generations, self.temperature = args.num_generations, args.temperature
        self.num_learning = 1 if args.baseline == "first" else args.num_generations  # of the G samples
        if args.disable_dropout:
            disable_dropout(self.model)
        self.clock = StepClock(self.args.device)
        self.step_log = StepLog(self.accelerator, self.clock, args)
        self.read_completions, self.rollout_sampler = TeacherForcing(self), RolloutSampler(self)
        self.reference = ReferenceModel(self, adapters_are_new=peft_config is not None) if args.beta > 0 else None
        self.ref_model = self.reference and self.reference.model
        self.completions_log = CompletionsLog.of(self) if args.log_completions else None
        self._in_use = RolloutInUse(args.updates_per_rollout, args.steps_per_generation)  # type: ignore[arg-type]
        self._policy_loss = PolicyLoss.of(self)
        self.add_callback(OptimizerClock(self.clock))
        self.add_callback(RunWatch(args))

    # --- one step of Algorithm 2 ------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Return the update step's micro-batches, each with its part of the rollout, and the number of their images."""
        load = partial(self._load, epoch_iterator)
        batches = self._in_use.batches(self.state.global_step, num_batches, load, self._roll_out)
        return batches, self._items_in_step(batches)

    def _roll_out(self, batches: list[dict]) -> list[Rollout]:
        """Answer all images of the micro-batches, score the answers, and return one part of the rollout a micro-batch."""
        step, parts = self.state.global_step, []
        with self.step_log.timed(), whole_weights(self):
            chunks = self.rollout_sampler(batches)  # calls `_sample`, chunk by chunk
            for completions, inputs in chunks:
                rewards, targets = self._score(completions, inputs)
                advantages = self._advantages(rewards, completions, inputs)
                parts.append(Rollout(inputs["row_index"], completions, rewards, advantages, targets, step))
        rollout = Rollout.joined(parts, special_ids(self.unwrap(self.model)).pad)
        rollout = scaled_over_rollout(rollout, self.args, self.accelerator.gather)
        if self.completions_log is not None:
            learned = rollout.split([len(inputs["row_index"]) for _, inputs in chunks])
            normalized = self.args.multi_objective_aggregation == "normalize_then_sum"
            for part, (_, inputs) in zip(learned, chunks, strict=True):
                self.completions_log.record_rollout(part, inputs, normalized)
        return rollout.split([len(batch["row_index"]) for batch in batches])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rollout = inputs["rollout"] if "rollout" in inputs else self._roll_out([inputs])[0]
        judged = rollout.completions, rollout.advantages, rollout.token_targets
        loss = self._learn(model, inputs, *judged, num_items_in_batch)
        return (loss, rollout.completions) if return_outputs else loss

    def _sample(self, inputs) -> SampledCompletions:
        """Draw G completions of each image from the model as it is now: `(B, G, T)`."""
        rows, step = inputs["row_index"], self.state.global_step
        uniforms = uniform_table(self.data_seed, step, rows, self.num_generations, self.max_completion_length)
        inputs = self.rollout_sampler.encoded(inputs)
        return self.complete(inputs, self.num_generations, temperature=self.temperature, uniforms=uniforms)

    def _score(self, completions: SampledCompletions, inputs) -> tuple[torch.Tensor, list[TokenTargets]]:
        """The weighted sum of the rewards `(B, G)`, NaN where none applies, and the token targets they supply.

        Where a reward has prefix rewards: the returns `(B, G, T)`, what each token can still earn.
        With `reward_num_workers` the rewards of these very completions have been started when they were drawn, and this
        waits for them. An override may change what it returns; one that scores in a way of its own needs no workers.
        """
        scores = inputs["scores"] = self.rollout_sampler.scores_of(completions, inputs)
        shape = completions.completion_ids.shape  # (B, G, T)
        rewards, ends = scores.rewards.view(shape[:2]), special_ids(self.unwrap(self.model)).ends
        self.step_log.record("completions", completion_record(completions, ends, rewards, scores.per_function))
        self.step_log.log_metrics(scores.logged)
        if self.args.multi_objective_aggregation == "normalize_then_sum":
            normalized = normalized_sum(scores.per_function.view(*shape[:2], -1), self.reward.weights)
            rewards = torch.where(rewards.isnan(), rewards, normalized)
        elif scores.returns is not None:
            rewards = scores.returns_of(shape[2]).view(shape)
        return rewards, scores.token_targets

    def _advantages(self, rewards: torch.Tensor, completions: SampledCompletions, inputs) -> torch.Tensor:
        """Each sample's reward minus its baseline: `(B, G)`, or each token's return minus its own: `(B, G, T)`."""
        if self.reference is not None:
            kl = self.reference.kl(completions, inputs)
            rewards = rewards - self.args.beta * (kl if rewards.ndim == 2 else kl[..., None])
        match self.args.baseline:
            case "leave_one_out":
                advantages = baselines.leave_one_out_advantages(rewards)
            case "first":
                advantages = baselines.first_advantages(rewards)
            case "greedy":
                advantages = baselines.greedy_advantages(rewards, self.rollout_sampler.greedy_rewards(rewards, inputs))
            case "mean":
                advantages = baselines.mean_advantages(rewards)
            case "none":
                advantages = baselines.no_baseline_advantages(rewards)
        return group_scaled(advantages, rewards) if self.args.scale_rewards == "group" else advantages

    def _learn(self, model, inputs, completions, advantages, token_targets, num_images=None) -> torch.Tensor:
        """The loss of a micro-batch: one teacher-forced pass over its samples, weighted by their advantages."""
        self.clock.enter("learn")
        args, count, images = self.args, self.num_learning, self.rollout_sampler.encoding.images_of(inputs)
        num_samples = (num_images or len(advantages)) * count  # of the whole update step; of G the first L learn
        length = self.max_completion_length if args.loss_reduction == "mean" else 1
        has_moved = "rollout" in inputs and inputs["rollout"].step < self.state.global_step  # since it sampled
        judged = completions.first(count), advantages[:, :count], token_targets
        learned = self._policy_loss(model, images, *judged, has_moved)
        loss = self.mean_over_step(learned.loss / length, num_samples)
        self.step_log.record("learned", learned.record(lambda loss: self.mean_over_step(loss / length, num_samples)))
        if learned.entropies is not None:
            loss = loss - args.entropy_coef * self.mean_over_step(learned.entropies, num_samples)
        if args.mle_weight > 0:
            of_labels = label_loss(self.unwrap(model), model, self.model_inputs(images), inputs)
            num_labels = self.num_labels_in_step if self.num_images_in_step else label_weights(inputs).sum().item()
            loss = loss + args.mle_weight * self.mean_over_step(of_labels, num_labels)
        return loss

    # --- the parts --------------------------------------------------------------------------------------------------

    def _load(self, epoch_iterator, count: int) -> list[dict]:
        """Load the next micro-batches and move them to the device."""
        self.clock.enter("data")
        batches, _ = Trainer.get_batch_samples(self, epoch_iterator, count, self.args.device)
        batches = [self._prepare_inputs(batch) for batch in batches]
        self.clock.enter(None)
        self._load_rng_state(self._resumed_from)  # Trainer does it after this, but rewards may draw from it
        self.model_wrapped.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # a schedule-free one, after an evaluation of its mean
            optimizer.train()
        return batches

    def _items_in_step(self, batches: list[dict]) -> float:
        if self.args.mle_weight > 0:
            (self.num_labels_in_step,) = self._over_ranks([sum(label_weights(b).sum().item() for b in batches)])
        return super()._items_in_step(batches)

    def _prepare_model(self, policy, args, processing_class) -> None:
        super()._prepare_model(policy, args, processing_class)
        self.reward.fit_to(self.processor)

    # --- Trainer's hooks --------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        with self.step_log.timed(), prepared_already(self, "rollout" in inputs):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.rollout_sampler.forget()
        if self.accelerator.sync_gradients:
            self.step_log.end_step(self.state, self.reward.names)
        return loss

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """Drop what an earlier training has left. A resumed run goes on with the rollout in its checkpoint."""
        self.step_log.restart(self.state.global_step)
        self._in_use.forget()
        if resume_from_checkpoint is not None:
            self._in_use.load(resume_from_checkpoint, self.args.process_index, self.args.device)
        self._resumed_from, self._rng_loaded = resume_from_checkpoint, False
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint):
        """Load the random state before the first rollout, and not a second time after it."""
        if not self._rng_loaded:
            super()._load_rng_state(checkpoint)
        self._rng_loaded = True

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self._in_use.save(output_dir, self.state.global_step, self.args.process_index)

    def _save(self, output_dir=None, state_dict=None):
        """Save what both trainers save, and the files from which rewards can be made again."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.reward.save_pretrained(str(self.args.output_dir if output_dir is None else output_dir))

    def _check_rewards(self, name: str, columns: list[str]) -> None:
        targets, wanted = self.target_columns, self.processor.target_columns
        complete = len(targets) == len(wanted) and set(targets.values()) <= set(columns)
        self.reward.check(name, columns, self.processor.makes_references and complete)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_loss" in logs:  # of training, not of an evaluation before its first log
            self.step_log.check_rewarded(self.state.global_step, self.reward.names, ended="train_loss" in logs)
        if "loss" in logs:  # in place: callbacks and the best-model check read the same dict
            logs |= self.step_log.read()
        super().log(logs, start_time)
        if self.completions_log is not None and self.is_world_process_zero():
            self.completions_log.write(self.state.global_step, self.callback_handler.callbacks, samples="loss" in logs)

    # --- evaluation: the reward of greedy completions, beside the metric --------------------------------------------

    def _needs_completions(self) -> bool:
        return True

    def _measures(self, metric: str) -> bool:
        """Whatever a reward may log, but no loss."""
        return metric != "loss"

    def _is_scored(self, batch) -> bool:
        """Whether rows that `predict` brings have all that the rewards read; others, as images alone, get no reward."""
        if not self._has_targets(batch):
            return False
        try:
            self._check_rewards("test_dataset", list(batch["columns"].columns))
        except ValueError:
            return False
        return True

    def _evaluate_batch(self, model, batch) -> list[evaluation.Record]:
        records = super()._evaluate_batch(model, batch)
        if not self._predicting or self._is_scored(batch):
            completions, ids = ([record[name] for record in records] for name in ("completion", "completion_ids"))
            scores = self.reward(completions, ids, batch["columns"], batch["row_index"].tolist(), self.state)
            evaluation.add_scores(records, scores)
            if self.completions_log is not None and not self._predicting:
                self.completions_log.record_greedy(self.state.global_step, records, scores, batch["columns"])
        return records

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        if self.completions_log is not None and not self._predicting:
            self.completions_log.gather(metric_key_prefix)
        return output

    def _evaluation_metrics(self, records) -> dict[str, float]:
        metrics = super()._evaluation_metrics(records)
        return metrics | evaluation.reward_metrics(records, self.reward.names, taken=metrics)
