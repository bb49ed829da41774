"""Reward tuning: it learns, its parts do what they say, and it behaves as TRL users expect."""

import asyncio
import math

import pytest
import torch
from scripts.train import share_exact
from tiny import START, share_of_a, text_dataset, text_processor, tiny_model
from transformers import VisionEncoderDecoderModel

from vision_rl import RewardOutput, TokenTargets, VisionRewardConfig, VisionRewardTrainer
from vision_rl.tasks.ocr import character_accuracy_reward, character_error_rate, exact_match_reward


def config(tmp_path, **kwargs) -> VisionRewardConfig:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return VisionRewardConfig(str(tmp_path), **{**defaults, **kwargs})


def trainer(tmp_path, reward=share_of_a, model=None, dataset=None, cls=VisionRewardTrainer, **kwargs):
    names = ("compute_metrics", "eval_dataset", "completion_decoder", "peft_config", "callbacks")
    parts = {name: kwargs.pop(name) for name in names if name in kwargs}
    return cls(
        model or tiny_model(),
        reward,
        config(tmp_path, **kwargs),
        train_dataset=dataset or text_dataset(16),
        processing_class=text_processor(),
        **parts,
    )


def history(trained) -> list[dict]:
    return [entry for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize("baseline", ["leave_one_out", "first", "greedy", "mean", "none"])
def test_reward_tuning_raises_the_mean_reward_with_every_baseline(tmp_path, baseline):
    tuned = trainer(tmp_path, baseline=baseline, num_generations=4, max_steps=60, learning_rate=3e-3)
    tuned.train()
    rewards = [entry["reward"] for entry in history(tuned)]
    assert sum(rewards[:5]) / 5 < 0.35
    assert sum(rewards[-5:]) / 5 > 0.6


def test_the_log_has_trls_keys(tmp_path):
    tuned = trainer(tmp_path, reward=[share_of_a, character_accuracy_reward], beta=0.1)
    tuned.train()
    keys = set(history(tuned)[-1])
    lengths = {f"completions/{kind}_{what}" for kind in ("mean", "min", "max") for what in ("length",)}
    rewards = {f"rewards/{f}/{k}" for f in ("share_of_a", "character_accuracy_reward") for k in ("mean", "std")}
    assert keys >= lengths | rewards | {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "entropy",
        "kl",
        "num_tokens",
        "step_time",
        "completions/clipped_ratio",
    }


@pytest.mark.parametrize("name", ["reward", "loss", "rewards/share_of_a/mean", "timing/learn"])
def test_a_reward_cannot_log_under_a_name_of_the_trainers(tmp_path, name):
    def logging_reward(completions, log_metric, **kwargs):
        log_metric(name, 99.0)
        return [1.0] * len(completions)

    with pytest.raises(RuntimeError, match=f"log_metric\\('{name}', ...\\): the trainer itself logs this name"):
        trainer(tmp_path, reward=logging_reward, max_steps=1).train()


def rarely(completions, trainer_state, **kwargs) -> list:
    """A reward that applies to the first step only."""
    return [len(completion) if trainer_state.global_step == 0 else None for completion in completions]


def test_a_run_with_rare_rewards_is_resumed_and_evaluated_without_an_error(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "logging_steps": 1}
    trainer(tmp_path, reward=rarely, **saving).train()
    resumed = trainer(tmp_path, reward=rarely, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4


def test_an_evaluation_before_the_first_log_asks_for_no_reward(tmp_path):
    def later(completions, trainer_state, **kwargs):
        return [len(completion) if trainer_state.global_step == 1 else None for completion in completions]

    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 2, "max_steps": 2}
    tuned = trainer(tmp_path, reward=later, eval_dataset=text_dataset(4), **evaluating)
    tuned.train()
    rewards = [log["eval_reward"] for log in tuned.state.log_history if "eval_reward" in log]
    assert rewards[0] > 0 and math.isnan(rewards[1])


def test_images_without_labels_are_tuned_on_and_others_with_labels_evaluated(tmp_path):
    bare = text_dataset(8).select_columns(["image"])
    tuned = trainer(tmp_path, dataset=bare, eval_dataset=text_dataset(4), compute_metrics=share_exact, max_steps=2)
    tuned.train()
    assert {"eval_exact", "eval_reward"} <= set(tuned.evaluate())

    def comparing(completions, references, **kwargs):
        return [float(one == other) for one, other in zip(completions, references, strict=True)]

    with pytest.raises(ValueError, match="compares with `references`, but train_dataset lacks the target columns"):
        trainer(tmp_path, reward=comparing, dataset=bare, eval_dataset=text_dataset(4))


def test_a_metric_without_references_is_told_at_the_start(tmp_path, caplog):
    bare = text_dataset(8).select_columns(["image"])
    trainer(tmp_path, dataset=bare, eval_dataset=bare, compute_metrics=share_exact)
    assert "eval_dataset has no column `text`: compute_metrics will be given None" in caplog.text


def test_a_saved_model_knows_how_long_its_completions_are(tmp_path):
    trainer(tmp_path, max_completion_length=5, max_steps=1).save_model()
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    model.generation_config.eos_token_id = None
    assert model.generate(torch.zeros(1, 3, 32, 32), do_sample=False).shape == (1, 1 + 5)


def test_two_different_start_tokens_are_told(tmp_path, caplog):
    model = tiny_model()
    model.config.decoder_start_token_id = 5
    trainer(tmp_path, model=model)
    assert "decoder_start_token_id is 5 in model.config and 0 in model.generation_config" in caplog.text


def test_a_second_training_logs_none_of_the_steps_that_the_first_did_not_log(tmp_path):
    drawn = []

    class Watching(VisionRewardTrainer):
        def _score(self, completions, inputs):
            rewards, targets = super()._score(completions, inputs)
            drawn.append(rewards)
            return rewards, targets

    tuned = trainer(tmp_path, cls=Watching, max_steps=3, logging_steps=2)
    tuned.train()
    drawn.clear()
    tuned.train()
    first = next(log for log in tuned.state.log_history if "reward" in log)
    assert first["step"] == 2
    assert first["reward"] == pytest.approx(torch.cat(drawn[:2]).mean().item())


def test_the_first_step_is_on_policy(tmp_path):
    tuned = trainer(tmp_path, model=tiny_model("bert", sharp=1.0), max_steps=1, beta=0.1)  # BERT has dropout
    tuned.train()
    assert history(tuned)[0]["sampling/sampling_logp_difference/max"] < 1e-5
    assert abs(history(tuned)[0]["kl"]) < 1e-5


@pytest.mark.parametrize(
    ("options", "encoded"),
    [
        ({}, [4]),
        ({"baseline": "greedy"}, [4]),
        ({"reward_num_workers": 1}, [2, 2]),  # the first half is scored while the second is sampled
        ({"gradient_accumulation_steps": 2}, [8, 4, 4]),  # all images to sample, then each micro-batch to learn
        ({"gradient_accumulation_steps": 2, "baseline": "greedy"}, [8, 4, 4]),
    ],
)
def test_an_image_is_encoded_once_for_sampling_and_learning_and_anew_where_micro_batches_wait(
    tmp_path, options, encoded
):
    tuned = trainer(tmp_path, all_different, num_generations=4, max_steps=1, **options)
    batches = []
    tuned.model.encoder.register_forward_hook(lambda module, args, output: batches.append(len(output[0])))
    tuned.train()
    assert [count for count in batches if count > 1] == encoded  # one image tells whether the head can be fused


def all_different(completions, **kwargs) -> list[float]:
    return [float(place) for place in range(len(completions))]


def test_with_dropout_the_learner_encodes_anew(tmp_path):
    tuned = trainer(tmp_path, disable_dropout=False, max_steps=1)
    batches = []
    tuned.model.encoder.register_forward_hook(lambda module, args, output: batches.append(len(output[0])))
    tuned.train()
    assert batches.count(4) == 2  # a third forward, of one image, tells whether the head can be fused


def test_evaluation_is_greedy_and_sees_the_whole_set(tmp_path):
    seen = {}

    def metric(predictions, references):
        seen["references"], seen["predictions"] = references, predictions
        return {"rows": len(predictions), "lists_are_left_out": [1, 2]}

    dataset = text_dataset(7)
    tuned = trainer(tmp_path, eval_dataset=dataset, compute_metrics=metric, per_device_eval_batch_size=3)
    metrics = tuned.evaluate()
    assert metrics["eval_rows"] == 7 and "eval_lists_are_left_out" not in metrics
    assert metrics["eval_reward"] == pytest.approx(sum(share_of_a(seen["predictions"])) / 7)
    assert seen["references"] == dataset["text"][:]
    assert tuned.evaluate()["eval_reward"] == metrics["eval_reward"]


def test_evaluation_reports_the_reward_of_every_eval_set(tmp_path):
    sets = {"a": text_dataset(4), "b": text_dataset(5, seed=1)}
    metrics = trainer(tmp_path, eval_dataset=sets, compute_metrics=character_error_rate).evaluate()
    assert {"eval_a_reward", "eval_b_reward", "eval_a_cer", "eval_b_rewards/share_of_a/mean"} <= set(metrics)


def test_rewards_see_columns_references_and_ids_as_in_trl(tmp_path):
    calls = []

    def reward(prompts, completions, completion_ids, text, references, image, trainer_state, log_metric, **kwargs):
        calls.append((prompts, completions, completion_ids, text, references, image, trainer_state.global_step))
        log_metric("mine", 7.0)
        return [1.0] * len(completions)

    tuned = trainer(tmp_path, reward, num_generations=3, max_steps=1)
    tuned.train()
    prompts, completions, ids, text, references, image, step = calls[0]
    assert len(completions) == len(ids) == len(text) == len(image) == len(prompts) == 12
    assert text == references and text[0] == text[1] == text[2] and step == 0
    assert tuned.processor.batch_decode(ids) == completions
    assert history(tuned)[0]["mine"] == 7.0


def test_a_trl_reward_and_an_async_reward_run_unmodified(tmp_path):
    from trl.rewards import get_soft_overlong_punishment

    async def slow(completions, **kwargs):
        return [0.5] * len(completions)

    def length_reward(completion_ids, **kwargs):  # as in TRL's documentation
        return [float(len(ids)) for ids in completion_ids]

    rewards = [slow, length_reward, get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)]
    tuned = trainer(tmp_path, rewards, max_steps=1)
    tuned.train()
    entry = history(tuned)[0]
    assert entry["rewards/slow/mean"] == 0.5
    assert entry["rewards/length_reward/mean"] == entry["completions/mean_length"]
    assert -1 <= entry["rewards/soft_overlong_punishment_reward/mean"] < 0


def test_an_evaluate_module_is_a_reward(tmp_path):
    import evaluate

    import vision_rl

    module = evaluate.load(vision_rl.metric_path("ocr_reward"))
    tuned = trainer(tmp_path, [module, character_accuracy_reward], max_steps=1)
    tuned.train()
    entry = history(tuned)[0]
    assert entry["rewards/ocr_reward/mean"] == pytest.approx(entry["rewards/character_accuracy_reward/mean"])


def test_reward_weights_scale_and_none_means_not_applicable(tmp_path):
    def first_half(completions, **kwargs):
        return [2.0 if i < len(completions) // 2 else None for i in range(len(completions))]

    def all_of_them(completions, **kwargs):
        return [1.0] * len(completions)

    tuned = trainer(tmp_path, [first_half, all_of_them], reward_weights=[10.0, 0.5], max_steps=1)
    tuned.train()
    assert history(tuned)[0]["reward"] == pytest.approx((20.5 + 0.5) / 2)
    assert history(tuned)[0]["rewards/first_half/mean"] == 2.0


def test_a_row_that_no_reward_applies_to_is_left_out_of_the_evaluation(tmp_path):
    def only_short_texts(completions, references, **kwargs):
        return [1.0 if len(text) < 3 else None for text in references]

    dataset = text_dataset(8)
    tuned = trainer(tmp_path, only_short_texts, eval_dataset=dataset, per_device_eval_batch_size=1)
    assert tuned.evaluate()["eval_reward"] == 1.0


def test_rewards_for_some_rows_only_tune_alike_in_every_split_into_micro_batches(tmp_path):
    """In micro-batches of one image, a whole one may have no reward. That is no error and changes nothing."""

    def only_short_texts(completions, references, **kwargs):
        return [
            share if len(text) < 3 else None for share, text in zip(share_of_a(completions), references, strict=True)
        ]

    logs = []
    for batch, accumulated in ((8, 1), (1, 8)):
        tuned = trainer(
            tmp_path,
            only_short_texts,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
        )
        tuned.train()
        logs.append(history(tuned))
    for whole, split in zip(*logs, strict=True):
        assert split["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_async_rewards_run_together_and_keep_their_loop(tmp_path):
    """A semaphore belongs to the loop that used it first. Run one after the other, the two would wait for ever."""
    semaphore, arrived = asyncio.Semaphore(1), {name: asyncio.Event() for name in ("one", "other")}

    async def one(completions, **kwargs):
        async with semaphore:
            await asyncio.sleep(0)
        arrived["one"].set()
        await asyncio.wait_for(arrived["other"].wait(), 20)
        return [1.0] * len(completions)

    async def other(completions, **kwargs):
        async with semaphore:
            await asyncio.sleep(0)
        arrived["other"].set()
        await asyncio.wait_for(arrived["one"].wait(), 20)
        return [2.0] * len(completions)

    tuned = trainer(tmp_path, [one, other], max_steps=3)
    tuned.train()
    assert [entry["reward"] for entry in history(tuned)] == [3.0] * 3


def test_a_reward_may_log_tensors_and_they_are_saved(tmp_path):
    def reward(completions, log_metric, **kwargs):
        log_metric("mean_words", torch.tensor(1.5))
        return [1.0] * len(completions)

    tuned = trainer(tmp_path, reward, max_steps=1, save_strategy="steps", save_steps=1)
    tuned.train()
    assert history(tuned)[0]["mean_words"] == 1.5


def test_gradients_are_not_clipped_unless_asked_for(tmp_path):
    sgd = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_steps": 1, "num_generations": 4}
    for options in ({}, {"max_grad_norm": 0.5}):
        model = tiny_model()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        tuned = trainer(tmp_path, all_different, model, **sgd, **options)
        tuned.train()
        moved = torch.cat([(old - new).flatten() for old, new in zip(before, model.parameters(), strict=True)]).norm()
        norm = history(tuned)[0]["grad_norm"]
        assert norm > 0.5
        assert moved.item() == pytest.approx(options.get("max_grad_norm", norm), rel=1e-3)


def test_two_rewards_of_one_name_have_two_log_keys(tmp_path):
    tuned = trainer(tmp_path, [share_of_a, share_of_a], max_steps=1)
    tuned.train()
    assert {"rewards/share_of_a/mean", "rewards/share_of_a_2/mean"} <= set(history(tuned)[0])


def test_beta_keeps_the_policy_near_the_mle_model(tmp_path):
    def final_kl(beta):
        tuned = trainer(tmp_path, beta=beta, num_generations=4, max_steps=40, learning_rate=3e-3)
        tuned.train()
        return history(tuned)[-1]["kl"]

    assert final_kl(1.0) < 0.5 * final_kl(1e-6)


def test_the_released_estimator_learns_from_sample_0_only(tmp_path):
    """`first` with `mean` is the authors' loss: the mean over images and all positions of -A log p of sample 0."""
    tuned = trainer(tmp_path, baseline="first", loss_reduction="mean", num_generations=3, max_completion_length=4)
    inputs = tuned._prepare_inputs(next(iter(tuned.get_train_dataloader())))
    completions = tuned._sample(inputs)
    advantages = torch.randn(4, 3)
    tuned.num_images_in_step = 4
    loss = tuned._learn(tuned.model, inputs, completions, tuned._advantages(advantages, completions, inputs), [])
    by_hand = -(
        (advantages[:, 0] - advantages[:, 1:].mean(1))[:, None]
        * (completions.per_token_logps * completions.completion_mask)[:, 0]
    ).sum() / (4 * 4)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_token_targets_weigh_the_same_against_reinforce_in_both_reductions(tmp_path, reduction):
    """As in the released code: 0.3 times the cross-entropy's mean over batch and boxes, beside a mean over positions."""
    length = 6
    tuned = trainer(tmp_path, loss_reduction=reduction, max_completion_length=length, model=tiny_model(end=None))
    inputs = tuned._prepare_inputs(next(iter(tuned.get_train_dataloader())))
    completions = tuned._sample(inputs)
    rows = torch.arange(8).repeat_interleave(2)
    targets = TokenTargets(
        positions=torch.stack([rows, torch.tensor([2, 5] * 8)], dim=1),
        ids=torch.tensor([[0, 1, 2]]).expand(16, -1),
        probabilities=torch.tensor([[0.0, 0.25, 0.75]]).expand(16, -1),
        weight=0.3,
    )
    tuned.num_images_in_step = 4
    loss = tuned._learn(tuned.model, inputs, completions, torch.zeros(4, 2), [targets])
    ids = completions.completion_ids.flatten(0, 1)
    logits = tuned.model(
        pixel_values=inputs["pixel_values"].repeat_interleave(2, 0),
        decoder_input_ids=torch.nn.functional.pad(ids[:, :-1], (1, 0), value=START),
    ).logits
    logps = logits.log_softmax(-1)[:, [2, 5], :3]
    mean = 0.3 * -(logps * torch.tensor([0.0, 0.25, 0.75])).sum(-1).mean()
    assert loss.item() == pytest.approx(mean.item() * (length if reduction == "sum" else 1), rel=1e-4)


def test_a_reward_output_teaches_its_token_targets(tmp_path):
    """All rewards are equal, so only the targets can teach: the first token becomes 'b'."""

    def says_b_first(completions, completion_ids, **kwargs):
        n = len(completions)
        b = text_processor().tokenizer.convert_tokens_to_ids("b")
        positions = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.long)], dim=1)
        return RewardOutput([1.0] * n, TokenTargets(positions, torch.full((n, 1), b), torch.ones(n, 1)))

    tuned = trainer(tmp_path, says_b_first, max_steps=60, learning_rate=1e-2, eval_dataset=text_dataset(8))
    tuned.train()
    assert all(text.startswith("b") for text in tuned.predict(text_dataset(8)).predictions)


@pytest.mark.parametrize(("row", "token"), [(0, 9), (99, 0), (-1, 0)])
def test_a_token_target_behind_the_end_of_its_completion_names_the_reward(tmp_path, row, token):
    def beyond(completions, **kwargs):
        targets = TokenTargets(torch.tensor([[row, token]]), torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1))
        return RewardOutput([1.0] * len(completions), targets)

    with pytest.raises(ValueError, match=f"`beyond` gave a token target for completion {row}, token {token}"):
        trainer(tmp_path, beyond).train()


def test_a_model_without_the_exact_sampler_is_tuned_through_generate(tmp_path, caplog):
    """A foreign encoder-decoder has `generate`, but is not a VisionEncoderDecoderModel."""
    from foreign_model import ForeignEncoderDecoder

    model = ForeignEncoderDecoder.wrapping(tiny_model())
    with caplog.at_level("WARNING"):
        tuned = trainer(
            tmp_path, model=model, num_generations=4, max_steps=40, learning_rate=3e-3, eval_dataset=text_dataset(8)
        )
    assert "generate" in caplog.text
    tuned.train()
    assert history(tuned)[0]["sampling/sampling_logp_difference/max"] < 1e-5
    assert tuned.evaluate()["eval_reward"] > 0.5


def test_exact_match_alone_is_a_reward_that_is_not_differentiable(tmp_path):
    dataset = text_dataset(16, alphabet="ab", max_length=1)
    tuned = trainer(
        tmp_path, exact_match_reward, dataset=dataset, max_steps=80, num_generations=8, learning_rate=3e-3, seed=1
    )
    tuned.train()
    rewards = [entry["reward"] for entry in history(tuned)]
    assert sum(rewards[-10:]) > 2 * sum(rewards[:10]) > 0


class ScheduleFree(torch.optim.SGD):
    """As schedule-free optimizers do, it evaluates other weights than it trains, in place."""

    shift = 0.0

    def eval(self):
        self._move_to(0.5)

    def train(self):
        self._move_to(0.0)

    @torch.no_grad()
    def _move_to(self, shift: float):
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter in parameters if shift != self.shift else ():
            parameter.add_(shift - self.shift)
        self.shift = shift


def test_after_an_evaluation_of_other_weights_samples_are_of_the_weights_that_learn(tmp_path):
    model = tiny_model(sharp=0.5)
    optimizer = ScheduleFree(model.parameters(), lr=1e-3)
    args = VisionRewardConfig(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    trained = VisionRewardTrainer(
        *(model, share_of_a, args),
        train_dataset=text_dataset(16),
        eval_dataset=text_dataset(4),
        processing_class=text_processor(),
        optimizers=(optimizer, None),
    )
    trained.train()
    errors = [log["sampling/ratio_error"] for log in trained.state.log_history if "sampling/ratio_error" in log]
    assert len(errors) == 2 and max(errors) < 1e-4
