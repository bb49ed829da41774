"""The output head and the log-probabilities in one: a loss without the logits `(R, T, V)` of all tokens.

REINFORCE, supervised token targets and maximum likelihood are all a sum of weighted log-probabilities, and the weights
are known before the forward pass. So the gradient is formed in it, chunk by chunk, and no logits are kept for the
backward pass. It buys memory: a vocabulary of 30k needs three copies of the logits otherwise. Time stays about the same.
Only tokens that have a weight are read, which leaves out the padding. In tuning with G=8 the peak of a step is 0.66 of
that with whole logits (`python benchmarks/learning.py`), in maximum likelihood 0.82, on a frozen encoder 0.54
(`python benchmarks/ways.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from vision_rl.models.token_draw import policy_logits
from vision_rl.models.unwrapping import replaced_forward


# Logits at once. On a CPU 16 MB of float32, 139 tokens at V = 30k; a GPU needs larger products to be busy: 256 MB.
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}


@dataclass(frozen=True)
class WeightedTokens:
    """The loss `sum(weights * log p(ids))` over `E` tokens of `R` sequences, some of them perhaps not the drawn ones.

    Args:
        rows: `LongTensor (E,)`, the sequence of each.
        positions: `LongTensor (E,)`, its place in the sequence.
        ids: `LongTensor (E,)`, the token whose log-probability counts.
        weights: `FloatTensor (E,)`, constants of the gradient.
        groups: `LongTensor (E,)`, or `None` where all are 0. Tokens of one group above 0 stand at one place, and their
            probabilities are the softmax over the ids of that group alone; 0: over the whole vocabulary.
    """

    rows: Tensor
    positions: Tensor
    ids: Tensor
    weights: Tensor
    groups: Tensor | None = None

    def __add__(self, other: "WeightedTokens") -> "WeightedTokens":
        joined = WeightedTokens(*(torch.cat(pair) for pair in zip(self._fields(), other._fields(), strict=True)))
        if self.groups is None and other.groups is None:
            return joined
        first, second = (
            torch.zeros_like(tokens.rows) if tokens.groups is None else tokens.groups for tokens in (self, other)
        )
        taken = first.max() if len(first) else 0  # numbers of groups
        return replace(joined, groups=torch.cat([first, torch.where(second > 0, second + taken, 0)]))

    def __getitem__(self, chosen: Tensor | slice) -> "WeightedTokens":
        part = WeightedTokens(*(field[chosen] for field in self._fields()))
        return part if self.groups is None else replace(part, groups=self.groups[chosen])

    def _fields(self) -> tuple[Tensor, ...]:
        return self.rows, self.positions, self.ids, self.weights

    def nonzero(self) -> "WeightedTokens":
        """Those with a weight other than 0; one token where there is none, for a step of nothing is a step too.

        A token of a group stays: without a weight, too, it has a share of the group's probability.
        """
        learns = self.weights != 0
        if self.groups is not None:
            learns |= self.groups > 0
        learns[0] |= ~learns.any()
        return self[learns]

    def of_rows(self, kept: Tensor) -> "WeightedTokens":
        """Those of the sequences `kept` (sorted), which are then numbered anew."""
        chosen = self[torch.isin(self.rows, kept)]
        return replace(chosen, rows=torch.searchsorted(kept, chosen.rows))


def label_tokens(labels: Tensor, label_weights: Tensor | None = None) -> WeightedTokens:
    """Maximum likelihood as weighted tokens: minus its weight is that of a label's log-probability.

    Without label smoothing, which gives every id of the vocabulary a weight.

    Args:
        labels: `LongTensor (B, T)`, -100 where nothing is learned.
        label_weights: `FloatTensor (B, T)`; default: 1.
    """
    rows, positions = (labels != -100).nonzero(as_tuple=True)
    weights = torch.ones_like(labels, dtype=torch.float32) if label_weights is None else label_weights.float()
    return WeightedTokens(rows, positions, labels[rows, positions], -weights[rows, positions])


def weigh_logits(logits: Tensor, tokens: WeightedTokens) -> tuple[Tensor, Tensor]:
    """The loss and the log-probabilities `(E,)` over the vocabulary, from whole logits `(R, T, V)` in float32: the plain way."""
    chosen = logits[tokens.rows, tokens.positions, tokens.ids]
    logps = chosen - logits.logsumexp(-1)[tokens.rows, tokens.positions]
    return _weighted_sum(logps, chosen, tokens.weights, tokens.groups), logps.detach()


def _weighted_sum(logps: Tensor, chosen: Tensor, weights: Tensor, groups: Tensor | None) -> Tensor:
    """The loss, of log-probabilities `logps (E,)` over the vocabulary and logits `chosen (E,)`."""
    if groups is not None:
        grouped, numbers = _grouped(groups)
        logps = logps.index_copy(0, grouped, _log_probs_in_groups(chosen[grouped], numbers))
    # masked_fill: the log-probability of a forbidden token is -inf, and 0 * -inf is no number
    return (weights * logps.masked_fill(weights == 0, 0.0)).sum()


def _grouped(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the tokens are in a group `(E',)`, and in which of them, counted from 0 `(E',)`."""
    grouped = groups.nonzero().squeeze(1)
    return grouped, groups[grouped].unique(return_inverse=True)[1]


def _log_probs_in_groups(logits: Tensor, numbers: Tensor) -> Tensor:
    """The log-softmax of `logits (E',)` among those that have the same of the `numbers (E',)`."""
    largest = torch.full_like(logits, float("-inf")).scatter_reduce(0, numbers, logits.detach(), "amax")[numbers]
    total = torch.zeros_like(logits).index_add(0, numbers, (logits - largest).exp())[numbers]
    return logits - largest - total.log()


def weigh_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: WeightedTokens,
    temperature: float = 1.0,
    suppressed: list[int] | None = None,
    chunk_elements: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `weigh_logits(policy_logits(F.linear(hidden, weight, bias), ...), tokens)`, in less memory.

    Under autocast the matrix products run in its dtype, everything else in float32.

    Args:
        hidden: `(R, T, d)`, what the head reads.
        weight: `(V, d)`, bias: `(V,)`, the head's.
        tokens: what is learned.
        temperature, suppressed: of the policy, as for `policy_logits`.
        chunk_elements: most logits at a time; by default what suits the device.

    Returns:
        The loss, and the log-probabilities `(E,)` without gradient.
    """
    if chunk_elements is None:
        chunk_elements = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
    forbidden = torch.tensor(suppressed or [], dtype=torch.long, device=hidden.device)
    places, place_of = torch.unique(tokens.rows * hidden.shape[1] + tokens.positions, return_inverse=True)
    order = place_of.argsort(stable=True)
    loss, logps = _WeightedLogProbs.apply(
        hidden.flatten(0, 1).index_select(0, places),  # (N, d)
        weight,
        bias,
        place_of[order],
        tokens.ids[order],
        tokens.weights[order],
        None if tokens.groups is None else tokens.groups[order],
        forbidden,
        (temperature, max(1, chunk_elements // len(weight)), torch.is_grad_enabled()),
    )
    return loss, torch.empty_like(logps).index_copy_(0, order, logps)


class _WeightedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden, weight, bias, places, ids, weights, groups, suppressed, options
    ) -> tuple[Tensor, Tensor]:
        """Of `hidden (N, d)`; `places (E,)`, sorted, says which of the N each of the E tokens belongs to."""
        temperature, chunk, learns = options
        needs_hidden, needs_weight, needs_bias = (learns and needed for needed in ctx.needs_input_grad[:3])
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        x, w, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        hidden_grad: Any = torch.empty_like(x, dtype=hidden.dtype) if needs_hidden else None
        weight_grad: Any = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        bias_grad: Any = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        logps, chosen = torch.empty(2, len(ids), device=hidden.device)
        starts = range(0, len(x), chunk)
        bounds = torch.searchsorted(places, torch.tensor([*starts, len(x)], device=places.device)).tolist()
        with torch.autocast(device, enabled=False):
            for start, first, last in zip(starts, bounds, bounds[1:], strict=False):
                part, entries = slice(start, start + chunk), slice(first, last)
                of_part = (places[entries] - start, ids[entries], weights[entries])
                in_groups = None if groups is None else groups[entries]
                logits = F.linear(x[part], w, b)  # (c, V)
                logps[entries], chosen[entries], grad = _log_probs_and_gradient(
                    logits, temperature, suppressed, *of_part, in_groups
                )
                low_grad = grad.to(dtype)
                if needs_hidden:
                    hidden_grad[part] = low_grad @ w
                if needs_weight and dtype == torch.float32:
                    weight_grad.addmm_(low_grad.T, x[part])
                elif needs_weight:
                    weight_grad += low_grad.T @ x[part]
                if needs_bias:
                    bias_grad += grad.sum(0)
        if needs_weight:
            weight_grad = weight_grad.to(weight.dtype)
        if needs_bias:
            bias_grad = bias_grad.to(bias.dtype)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.mark_non_differentiable(logps)
        return _weighted_sum(logps, chosen, weights, groups), logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad, _):
        # in place: the weight's gradient may be the largest tensor of the step
        grads = (None if grad is None else grad.mul_(loss_grad.to(grad.dtype)) for grad in ctx.saved_tensors)
        return *grads, None, None, None, None, None, None


def _log_probs_and_gradient(
    logits: Tensor,
    temperature: float,
    suppressed: Tensor,
    places: Tensor,
    ids: Tensor,
    weights: Tensor,
    groups: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`log p (E,)` over the vocabulary, the policy's logits of the ids `(E,)`, and the gradient of the weighted sum.

    The gradient is that by `logits (c, V)`, in float32 and in the policy's memory.
    """
    policy = policy_logits(logits, temperature, suppressed)
    chosen = policy[places, ids]
    largest = policy.amax(-1, keepdim=True)
    total = policy.sub_(largest).exp_().sum(-1, keepdim=True)
    logps = chosen - (largest + total.log()).squeeze(1)[places]
    # d/dlogits of w * log p(id) is w * (1 at id, minus the probabilities)
    of_vocabulary = gains = weights
    if groups is not None:
        grouped, numbers = _grouped(groups)
        probabilities = _log_probs_in_groups(chosen[grouped], numbers).exp()
        weight_of_group = torch.zeros_like(probabilities).index_add_(0, numbers, weights[grouped])
        gains = weights.index_add(0, grouped, weight_of_group[numbers] * probabilities, alpha=-1)
        of_vocabulary = weights.index_fill(0, grouped, 0.0)
    weight_of_place = torch.zeros_like(total).squeeze(1).index_add_(0, places, of_vocabulary)
    grad = policy.mul_(-weight_of_place[:, None] / total).index_put_((places, ids), gains, accumulate=True)
    if temperature != 1:
        grad.div_(temperature)
    if len(suppressed):
        grad.index_fill_(1, suppressed, 0.0)
    return logps, chosen, grad


# --- inside a model -------------------------------------------------------------------------------------------------


class FusedHead:
    """Lets a model's forward return the loss in place of its logits.

    For as long as `loss_of(...)` lasts, the forward of the head itself computes the loss. Thus the loss comes out of
    the wrapped model's one forward call, as DistributedDataParallel, DeepSpeed and PEFT need it, and the head's weights
    are read where ZeRO has gathered them.
    """

    def __init__(self, head: nn.Linear, temperature: float = 1.0, suppressed: list[int] | None = None):
        self.head, self.temperature, self.suppressed = head, temperature, suppressed
        self.logps: Any = None  # (E,) after a forward
        self.tokens: Any = None  # with the weights that the loss has

    @contextmanager
    def loss_of(self, tokens: WeightedTokens, reweigh: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
        """Inside, `model(...).logits` is the loss of `tokens`, a tensor of no dimension; `logps (E,)` is set.

        Where the weights depend on the log-probabilities, `reweigh` makes them `(E,)` of these: the head runs twice.
        """

        def forward(hidden: Tensor) -> Tensor:
            head = (self.head.weight, self.head.bias)
            self.tokens = tokens
            if reweigh is not None:
                with torch.no_grad():
                    _, logps = weigh_hidden(hidden, *head, tokens, self.temperature, self.suppressed)
                    self.tokens = replace(tokens, weights=reweigh(logps))
            loss, self.logps = weigh_hidden(hidden, *head, self.tokens, self.temperature, self.suppressed)
            return loss

        with replaced_forward(self.head, forward):
            yield


def can_be_fused(model: PreTrainedModel, inputs: dict) -> bool:
    """Whether the model's logits are what a plain `nn.Linear` gave, untouched.

    They are not where a decoder scales or caps them, nor is the head plain inside an adapter or a quantised model.

    Args:
        model: a transformers model.
        inputs: of one small forward call, in which the head is replaced by one that says something recognisable.
    """
    head: Any = model.get_output_embeddings()
    if head is None or type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        return False
    said = []

    def forward(hidden: Tensor) -> Tensor:
        said.append(torch.linspace(-50, 50, head.out_features, device=hidden.device).expand(*hidden.shape[:-1], -1))
        return said[-1]

    with torch.no_grad(), replaced_forward(head, forward):
        logits = model(**inputs).logits
    return len(said) == 1 and torch.equal(logits, said[0])
