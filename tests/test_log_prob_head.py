"""The fused head has the loss and the gradient of the plain way, without the logits of all tokens at once."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from plain_losses import reinforce_loss, selective_log_softmax, token_target_loss
from scripts.train import make_trainer
from tiny import SIZE, START, share_of_a, text_dataset, text_processor, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vision_rl import RewardOutput, TokenTargets, VisionRewardConfig, VisionRewardTrainer
from vision_rl.compatibility import CHECKPOINTING
from vision_rl.models.log_prob_head import (
    FusedHead,
    WeightedTokens,
    can_be_fused,
    label_tokens,
    weigh_hidden,
    weigh_logits,
)
from vision_rl.models.token_draw import policy_logits
from vision_rl.models.unwrapping import base_model
from vision_rl.trainer.losses import mle_loss, reinforce_weights, token_target_weights


R, T, V, D = 4, 5, 17, 6


def weighted_tokens(count: int = 30, seed: int = 0, lowest: int = 0) -> WeightedTokens:
    torch.manual_seed(seed)
    places = (torch.randint(R, (count,)), torch.randint(T, (count,)), torch.randint(lowest, V, (count,)))
    return WeightedTokens(*places, torch.randn(count))


def grouped_tokens(count: int, seed: int, lowest: int = 0) -> WeightedTokens:
    """`count` positions, some of which may be equal, with three candidates each, some of which have no weight."""
    torch.manual_seed(seed)
    return token_target_weights(
        TokenTargets(
            torch.stack([torch.randint(R, (count,)), torch.randint(T, (count,))], dim=1),
            torch.stack([torch.randperm(V - lowest)[:3] + lowest for _ in range(count)]),
            torch.rand(count, 3) * (torch.rand(count, 3) > 0.3),
            among="candidates",
        )
    )


def head_inputs(bias: bool = True, dtype=torch.float64) -> list:
    torch.manual_seed(1)
    tensors = [torch.randn(R, T, D), torch.randn(V, D), torch.randn(V)]
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    return tensors if bias else [*tensors[:2], None]


def plain(hidden, weight, bias, tokens, temperature=1.0, suppressed=None):
    return weigh_logits(policy_logits(F.linear(hidden, weight, bias), temperature, suppressed), tokens)


# --- the function ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.integers(1, 60),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 0.5, 2.0]),
    st.sampled_from([[], [0], [0, 2]]),
    st.integers(1, 400),
    st.booleans(),
    st.integers(0, 10),
)
def test_loss_log_probs_and_gradients_equal_the_plain_ways(count, seed, temperature, suppressed, chunk, bias, groups):
    """Includes several weights on one token, candidates that share their probability, and chunks of one token."""
    tokens = weighted_tokens(count, seed, lowest=3)
    if groups:
        tokens = grouped_tokens(groups, seed, lowest=3) + tokens + grouped_tokens(groups, seed + 1, lowest=3)
    results = []
    for weigh, options in ((plain, {}), (weigh_hidden, {"chunk_elements": chunk})):
        tensors = head_inputs(bias)
        loss, logps = weigh(*tensors, tokens, temperature, suppressed, **options)
        assert not logps.requires_grad
        inputs = [tensor for tensor in tensors if tensor is not None]
        results.append((loss, logps, *torch.autograd.grad(3 * loss, inputs)))
    for expected, fused in zip(*results, strict=True):
        rounding = max(1e-5, 3e-6 * expected.abs().max().item())  # of float32, for gradients of up to 30
        torch.testing.assert_close(fused.double(), expected.double(), rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("decoder", ["ours", "gpt2", "bert"])
@pytest.mark.parametrize("weighted", [False, True])
def test_maximum_likelihood_by_the_fused_head_is_the_cross_entropy(decoder, weighted):
    model = tiny_model(decoder, sharp=0.5)
    labels = torch.tensor([[3, 2, 1, -100], [4, -100, -100, -100], [-100] * 4])
    weights = torch.rand(3, 4) if weighted else None
    inputs = {"decoder_input_ids": labels.clamp(min=0), "use_cache": False}
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    results = []
    for fused in (False, True):
        model.zero_grad()
        if fused:
            with FusedHead(model.get_output_embeddings()).loss_of(label_tokens(labels, weights)):
                loss = model(pixel_values=images, **inputs).logits
        else:
            loss = mle_loss(model(pixel_values=images, **inputs).logits, labels, label_weights=weights).sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_labels_of_which_none_is_learned_give_gradients_of_zero():
    tensors = head_inputs(dtype=torch.float32)
    loss, logps = weigh_hidden(*tensors, label_tokens(torch.full((R, T), -100)))
    loss.backward()
    assert loss == 0 and not len(logps)
    assert all((tensor.grad == 0).all() for tensor in tensors)


def test_the_gradient_by_hand():
    """Two equally likely tokens; the first is drawn, with weight -1. The logits' gradient of -log p is (p - 1, p)."""
    hidden, weight = torch.ones(1, 1, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.long)
    loss, logps = weigh_hidden(hidden, weight, None, WeightedTokens(zero, zero, zero, torch.tensor([-1.0])))
    loss.backward()
    assert loss.item() == pytest.approx(0.6931472) and logps.item() == pytest.approx(-0.6931472)
    assert weight.grad.flatten().tolist() == [-0.5, 0.5]


def test_a_forbidden_token_of_weight_0_is_no_nan():
    tokens = WeightedTokens(
        torch.zeros(2, dtype=torch.long),
        torch.zeros(2, dtype=torch.long),
        torch.tensor([0, 1]),
        torch.tensor([0.0, 1.0]),
    )
    hidden, weight, bias = head_inputs()
    loss, logps = weigh_hidden(hidden, weight, bias, tokens, suppressed=[0])
    loss.backward()
    assert logps[0] == float("-inf") and loss.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in (hidden, weight, bias))
    assert (weight.grad[0] == 0).all()


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(frozen):
    tensors = head_inputs()
    tensors[frozen].requires_grad_(False)
    weigh_hidden(*tensors, weighted_tokens())[0].backward()
    assert [tensor.grad is None for tensor in tensors] == [i == frozen for i in range(3)]


def test_without_gradient_only_the_log_probs_are_formed():
    with torch.no_grad():
        loss, logps = weigh_hidden(*head_inputs(), weighted_tokens())
    assert not loss.requires_grad
    torch.testing.assert_close(logps, plain(*head_inputs(), weighted_tokens())[1].float())


def test_under_autocast_the_gradient_is_as_near_the_exact_one_as_the_plain_ways():
    tokens, exact = weighted_tokens(), head_inputs()
    plain(*exact, tokens)[0].backward()
    errors = []
    for weigh in (plain, weigh_hidden):
        tensors = head_inputs(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss = weigh(*tensors, tokens)[0]
        loss.backward()
        assert loss.dtype == torch.float32
        errors.append([(t.grad - e.grad).norm() / e.grad.norm() for t, e in zip(tensors, exact, strict=True)])
    for of_plain, of_fused in zip(*errors, strict=True):
        assert 1e-4 < of_fused < max(2 * of_plain, 0.01)  # it did run in bfloat16


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


def test_no_tensor_is_as_large_as_the_logits_of_all_tokens():
    hidden = torch.randn(8, 32, D, requires_grad=True)
    weight = torch.randn(1000, D, requires_grad=True)
    ids = torch.randint(1000, (8, 32))
    tokens = reinforce_weights(ids, torch.ones_like(ids), torch.randn(8))
    with LargestTensor() as largest:
        weigh_hidden(hidden, weight, None, tokens, chunk_elements=32_000)[0].backward()
    assert largest.elements == 32_000 < 8 * 32 * 1000


# --- the weights of REINFORCE and of token targets ------------------------------------------------------------------


def test_the_weights_give_the_losses_that_the_formulas_give():
    torch.manual_seed(0)
    logits, ids, advantages = torch.randn(R, T, V), torch.randint(V, (R, T)), torch.randn(R)
    mask = (torch.arange(T) < torch.tensor([[5], [1], [3], [2]])).long()
    targets = TokenTargets(
        positions=torch.tensor([[0, 1], [0, 4], [2, 0]]),
        ids=torch.randint(V, (3, 2)),
        probabilities=torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.5, 0.5]]),
    )
    reinforce = reinforce_loss(selective_log_softmax(logits, ids), mask, advantages)
    taught = 0.3 * token_target_loss(logits, targets)
    probabilities = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.0, 0.0]])  # the last only counts in the mean
    among = replace(
        targets, ids=torch.tensor([[1, 2], [3, 0], [4, 5]]), probabilities=probabilities, among="candidates"
    )
    taught_among = 0.3 * token_target_loss(logits, among)
    for tokens, expected in (
        (reinforce_weights(ids, mask, advantages), reinforce),
        (token_target_weights(targets, 0.3), taught),
        (reinforce_weights(ids, mask, advantages) + token_target_weights(targets, 0.3), reinforce + taught),
        (token_target_weights(among, 0.3) + token_target_weights(among, 0.3), 2 * taught_among),
        (reinforce_weights(ids, mask, advantages) + token_target_weights(among, 0.3), reinforce + taught_among),
    ):
        torch.testing.assert_close(weigh_logits(logits, tokens)[0], expected)
        torch.testing.assert_close(weigh_logits(logits, tokens.nonzero())[0], expected)


def test_each_token_has_an_advantage_of_its_own():
    torch.manual_seed(0)
    logits, ids, advantages = torch.randn(R, T, V), torch.randint(V, (R, T)), torch.randn(R, T)
    mask = (torch.arange(T) < torch.tensor([[5], [1], [3], [2]])).long()
    by_hand = -(advantages * mask * selective_log_softmax(logits, ids)).sum()
    torch.testing.assert_close(weigh_logits(logits, reinforce_weights(ids, mask, advantages))[0], by_hand)


def test_among_two_candidates_the_gradient_is_their_share_minus_the_target():
    """Logits 0, 0, log 2; the target is the last. The candidates' gradient is (1/3, 2/3) - (0, 1), the first one's is 0."""
    hidden = torch.tensor([[[0.0, 0.0, math.log(2)]]], requires_grad=True)
    targets = TokenTargets(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[1, 2]]), torch.tensor([[0.0, 1.0]]))
    for weigh in (plain, weigh_hidden):
        tokens = token_target_weights(replace(targets, among="candidates"))
        loss, logps = weigh(hidden, torch.eye(3), None, tokens)
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert loss.item() == pytest.approx(math.log(1.5))
        assert gradient.flatten().tolist() == pytest.approx([0, 1 / 3, -1 / 3])
        assert logps.tolist() == pytest.approx([math.log(1 / 4), math.log(2 / 4)])  # still over the vocabulary


def test_a_step_without_any_weight_keeps_one_token():
    ids = torch.ones(2, 3, dtype=torch.long)
    kept = reinforce_weights(ids, ids, torch.zeros(2)).nonzero()
    assert len(kept.rows) == 1 and kept.weights.item() == 0


# --- inside a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["ours", "gpt2", "bert", "trocr"])
def test_every_decoder_of_transformers_that_is_served_can_be_fused(decoder):
    model = tiny_model(decoder, sharp=1.0)
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32), "decoder_input_ids": torch.zeros(1, 2, dtype=torch.long)}
    assert can_be_fused(model, inputs)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)  # the head works as before


class HeadOfItsOwn(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def test_a_head_or_decoder_that_does_more_than_multiply_is_not_fused():
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32), "decoder_input_ids": torch.zeros(1, 2, dtype=torch.long)}
    model = tiny_model()
    model.decoder.lm_head = HeadOfItsOwn(32, 6)
    assert not can_be_fused(model, inputs)
    model = tiny_model()
    model.decoder.register_forward_hook(lambda module, args, output: replace(output, logits=output.logits.tanh()))
    assert not can_be_fused(model, inputs)


def test_an_error_inside_leaves_the_head_as_it_was():
    head = nn.Linear(D, V)
    with pytest.raises(RuntimeError, match="mine"), FusedHead(head).loss_of(weighted_tokens()):
        raise RuntimeError("mine")
    assert "forward" not in vars(head)


# --- the trainer's gradient -----------------------------------------------------------------------------------------


def says_b_and_shares_a(completions, completion_ids, **kwargs):
    """A reward and, for every third completion, token targets for its first and last token."""
    positions = [(i, token) for i in range(0, len(completions), 3) for token in {0, len(completion_ids[i]) - 1}]
    count = len(positions)
    targets = TokenTargets(
        torch.tensor(positions), torch.tensor([[2, 3]] * count), torch.tensor([[0.25, 0.75]] * count), weight=0.3
    )
    return RewardOutput(share_of_a(completions), targets)


def earns_by_the_letter(completions, completion_ids, **kwargs):
    """Every a earns 1 when it is written. The first token of each completion has a target between two candidates."""
    count, longest = len(completions), max(map(len, completion_ids))
    is_a = torch.tensor([[c == "a" for c in text.ljust(longest)] for text in completions]).float()
    earned = is_a.cumsum(1)
    targets = TokenTargets(
        torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)], dim=1),
        torch.tensor([[2, 3]] * count),
        torch.tensor([[0.25, 0.75]] * count),
        weight=0.3,
        among="candidates",
    )
    return RewardOutput(earned[:, -1].tolist(), targets, earned - is_a)


def rewards_only_row_3(completions, references, **kwargs):
    """The samples of an image all earn the same, except for those of row 3."""
    row = text_dataset(16)["text"][3]
    return [sum(map(ord, text)) / 100 if of == row else 1.0 for text, of in zip(completions, references, strict=True)]


def nothing_to_learn(completions, **kwargs):
    return [1.0] * len(completions)


def naive_loss(model, trainer, inputs, rollout):
    """The loss by its formulas: every image is encoded for each of its samples, and all logits are computed."""
    completions, advantages, targets = rollout.completions, rollout.advantages, rollout.token_targets
    times, rows = trainer.num_generations, completions.completion_ids.flatten(0, 1)
    logits = model(
        pixel_values=inputs["pixel_values"].repeat_interleave(times, dim=0),
        decoder_input_ids=F.pad(rows[:, :-1], (1, 0), value=START),
    ).logits
    logits = policy_logits(logits, trainer.temperature, base_model(model).generation_config.suppress_tokens)
    mask = completions.completion_mask.flatten(0, 1)
    if advantages.ndim == 3:
        loss = -(advantages.flatten(0, 1) * selective_log_softmax(logits, rows).masked_fill(mask == 0, 0.0)).sum()
    else:
        loss = reinforce_loss(selective_log_softmax(logits, rows), mask, advantages.flatten())
    for each in targets:
        loss = loss + each.weight * trainer.max_completion_length * token_target_loss(logits, each)
    return loss / len(rows)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def both_gradients(tmp_path, reward, decoder="ours", suppress=None, model=None, fused=True, **options):
    model = model or tiny_model(decoder, sharp=0.1, length=24)
    base_model(model).generation_config.suppress_tokens = suppress
    peft_config = options.pop("peft_config", None)
    args = VisionRewardConfig(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=6,
        max_completion_length=8,
        num_generations=3,
        shuffle_dataset=False,  # the first rows, row 3 among them
        **options,
    )
    trainer = VisionRewardTrainer(
        model, reward, args, text_dataset(16), processing_class=text_processor(), peft_config=peft_config
    )
    naive = copy.deepcopy(trainer.model).train()  # in float32
    trainer.model.train()
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)  # autocast, as in training
    inputs = next(iter(trainer.get_train_dataloader()))
    (rollout,) = trainer._roll_out([inputs])
    naive_loss(naive, trainer, inputs, rollout).backward()
    loss = trainer.compute_loss(trainer.model_wrapped, {**inputs, "rollout": rollout})
    loss.backward()
    assert trainer.read_completions.fuses_head is fused
    return gradients(naive), gradients(trainer.model)


def assert_same(naive, ours, relative=1e-5):
    assert naive.keys() == ours.keys()
    scale = max(gradient.abs().max() for gradient in naive.values())
    assert scale > 0
    for name, gradient in naive.items():
        assert (ours[name] - gradient).abs().max() <= relative * scale, name


@pytest.mark.parametrize("decoder", ["ours", "gpt2", "bert", "trocr"])
@pytest.mark.parametrize("reward", [share_of_a, says_b_and_shares_a, earns_by_the_letter, rewards_only_row_3])
def test_the_trainers_gradient_is_the_naive_scripts(tmp_path, decoder, reward):
    assert_same(*both_gradients(tmp_path, reward, decoder))


@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
def test_it_is_so_with_temperature_forbidden_tokens_and_activation_checkpointing(tmp_path, decoder):
    options = {"temperature": 0.7, CHECKPOINTING: True, "suppress": [4]}  # "c", as the reward is for "a"
    assert_same(*both_gradients(tmp_path, share_of_a, decoder, **options))


@pytest.mark.parametrize(
    "options", [{"baseline": "greedy"}, {"baseline": "mean"}, {"baseline": "none"}, {"beta": 0.1}]
)
def test_it_is_so_for_tokens_that_earn_apart_with_every_baseline(tmp_path, options):
    assert_same(*both_gradients(tmp_path, [earns_by_the_letter, share_of_a], **options))


def test_it_is_so_with_a_projection_between_encoder_and_decoder(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from vision_rl.models import vision_encoder_decoder

    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=6, n_embd=16, n_layer=1, n_head=2, add_cross_attention=True))
    model = vision_encoder_decoder(tiny_model().encoder, decoder, START, START, 1)
    naive, ours = both_gradients(tmp_path, share_of_a, model=model)
    assert "enc_to_dec_proj.weight" in naive
    assert_same(naive, ours)


@pytest.mark.parametrize("adapters", [{}, {"modules_to_save": ["lm_head"]}])
def test_it_is_so_with_adapters(tmp_path, adapters):
    """A head that an adapter copies and trains is no plain layer, so it takes the plain way."""
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **adapters)
    assert_same(*both_gradients(tmp_path, share_of_a, peft_config=lora, fused=not adapters))


def test_the_plain_way_gives_the_same_gradient(tmp_path):
    model = tiny_model(sharp=0.5)
    model.decoder.lm_head = HeadOfItsOwn(32, 6)
    assert_same(*both_gradients(tmp_path, says_b_and_shares_a, model=model, fused=False))


def test_images_without_an_advantage_are_not_decoded_again(tmp_path):
    trainer = make_trainer("reward", tmp_path, max_steps=1, rows=16, shuffle_dataset=False)
    trainer.reward = type(trainer.reward)(rewards_only_row_3)
    learned = []
    trainer.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: learned.append(tuple(kwargs["input_ids"].shape)) if module.training else None,
        with_kwargs=True,
    )
    trainer.train()
    lengths = {row: [len(ids) for ids in drawn] for _, row, drawn in trainer.seen}
    assert len(lengths) == 8 and len(set(lengths[3])) == 2
    assert learned == [(2, max(lengths[3]))]


def test_nothing_to_learn_gives_every_parameter_a_gradient_of_zero(tmp_path):
    """Zero, not `None`: other ranks wait for the gradient, and an optimiser with momentum still moves."""
    _, ours = both_gradients(tmp_path, nothing_to_learn)
    assert all((gradient == 0).all() for gradient in ours.values())


@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"baseline": "greedy"}, {CHECKPOINTING: True}])
def test_in_bf16_every_parameter_gets_its_gradient(tmp_path, decoder, options):
    """autocast keeps the weights that it has cast. Those cast without gradient, for sampling, must not serve to learn."""
    naive, ours = both_gradients(tmp_path, says_b_and_shares_a, decoder, bf16=True, **options)
    # the gradient of a key's bias is only rounding, hence the constant
    errors = [(ours[name] - gradient).norm() / (gradient.norm() + 0.01) for name, gradient in naive.items()]
    assert 1e-4 < max(errors) < 0.1  # it did run in bfloat16
