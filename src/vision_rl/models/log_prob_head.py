"""The output head fused with the loss: weighted log-probabilities without the logits `(R, T, V)` of all tokens.

The losses of REINFORCE, of supervised token targets and of maximum likelihood are all sums of weighted
log-probabilities whose weights are known before the forward pass. So the forward pass already forms the gradient,
chunk by chunk, and keeps no logits for the backward pass. This saves memory, because a vocabulary of 30k otherwise
needs three copies of the logits; the time stays about the same. Only tokens with a weight are read, so padding costs
nothing. In tuning with G=8 the peak memory of a step is 0.66 times the peak with whole logits
(`python benchmarks/learning.py`). In maximum likelihood the peak is 0.82 times, and on a frozen encoder 0.54 times
the peak with whole logits (`python benchmarks/ways.py`).
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


# Number of logits of a chunk. On a CPU they take 16 MB in float32, 139 tokens at V = 30k. A GPU needs larger matrix
# products to be busy: 256 MB.
CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}


@dataclass(frozen=True)
class WeightedTokens:
    """The terms of a loss `sum(weights * log p(ids))` over `E` tokens of `R` sequences, drawn by the policy or not.

    Args:
        rows: `LongTensor (E,)`, the sequence of each token.
        positions: `LongTensor (E,)`, the position of each token in its sequence.
        ids: `LongTensor (E,)`, the id whose log-probability counts.
        weights: `FloatTensor (E,)`, the weights, through which no gradient flows.
        groups: `LongTensor (E,)`, or `None` if all are 0. All tokens of a group above 0 have the same row and
            position, and their probabilities are the softmax over the ids of the group. The probability of a token of
            group 0 is the softmax over the whole vocabulary.
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
        taken = first.max() if len(first) else 0  # the largest group number of `self`
        return replace(joined, groups=torch.cat([first, torch.where(second > 0, second + taken, 0)]))

    def __getitem__(self, chosen: Tensor | slice) -> "WeightedTokens":
        part = WeightedTokens(*(field[chosen] for field in self._fields()))
        return part if self.groups is None else replace(part, groups=self.groups[chosen])

    def _fields(self) -> tuple[Tensor, ...]:
        return self.rows, self.positions, self.ids, self.weights

    def nonzero(self) -> "WeightedTokens":
        """Return the tokens with a weight other than 0, or one token if all weights are 0: a step needs a loss.

        Tokens of a group stay even if their weight is 0, because they share the probability of the group.
        """
        learns = self.weights != 0
        if self.groups is not None:
            learns |= self.groups > 0
        learns[0] |= ~learns.any()
        return self[learns]

    def of_rows(self, kept: Tensor) -> "WeightedTokens":
        """Return the tokens of the sequences `kept` (sorted); each row becomes its index in `kept`."""
        chosen = self[torch.isin(self.rows, kept)]
        return replace(chosen, rows=torch.searchsorted(kept, chosen.rows))


def label_tokens(labels: Tensor, label_weights: Tensor | None = None) -> WeightedTokens:
    """Return the weighted tokens of maximum likelihood: each label, with minus its label weight.

    Label smoothing is not covered, because it gives every id of the vocabulary a weight.

    Args:
        labels: `LongTensor (B, T)`, -100 where nothing is learned.
        label_weights: `FloatTensor (B, T)`, the weight of each label; default: 1.
    """
    rows, positions = (labels != -100).nonzero(as_tuple=True)
    weights = torch.ones_like(labels, dtype=torch.float32) if label_weights is None else label_weights.float()
    return WeightedTokens(rows, positions, labels[rows, positions], -weights[rows, positions])


def weigh_logits(logits: Tensor, tokens: WeightedTokens) -> tuple[Tensor, Tensor]:
    """Compute the loss and the log-probabilities `(E,)` over the vocabulary from all logits `(R, T, V)` in float32."""
    chosen = logits[tokens.rows, tokens.positions, tokens.ids]
    logps = chosen - logits.logsumexp(-1)[tokens.rows, tokens.positions]
    return _weighted_sum(logps, chosen, tokens.weights, tokens.groups), logps.detach()


def _weighted_sum(logps: Tensor, chosen: Tensor, weights: Tensor, groups: Tensor | None) -> Tensor:
    """Return the loss, given the log-probabilities `logps (E,)` over the vocabulary and the logits `chosen (E,)`."""
    if groups is not None:
        grouped, numbers = _grouped(groups)
        logps = logps.index_copy(0, grouped, _log_probs_in_groups(chosen[grouped], numbers))
    # masked_fill: the log-probability of a forbidden token is -inf, and 0 * -inf is no number
    return (weights * logps.masked_fill(weights == 0, 0.0)).sum()


def _grouped(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices `(E',)` of the tokens in a group, and the numbers `(E',)` of their groups, counted from 0."""
    grouped = groups.nonzero().squeeze(1)
    return grouped, groups[grouped].unique(return_inverse=True)[1]


def _log_probs_in_groups(logits: Tensor, numbers: Tensor) -> Tensor:
    """Return the log-softmax of `logits (E',)` within each group of equal `numbers (E',)`."""
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
    """Compute `weigh_logits(policy_logits(F.linear(hidden, weight, bias), ...), tokens)` in less memory.

    Under autocast the matrix products run in autocast's dtype, and everything else in float32.

    Args:
        hidden: `(R, T, d)`, the input of the head.
        weight: `(V, d)`, and bias: `(V,)`, the parameters of the head.
        tokens: the weighted tokens of the loss.
        temperature, suppressed: settings of the policy, as in `policy_logits`.
        chunk_elements: largest number of logits at a time; the default depends on the device (`CHUNK_ELEMENTS`).

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
        """Compute loss and gradients; `places (E,)`, sorted, is the row of `hidden (N, d)` that each token reads."""
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
    """Compute `log p (E,)` over the vocabulary, the policy's logits of the ids `(E,)`, and the gradient of the loss.

    The gradient is the gradient by `logits (c, V)`, in float32; it overwrites the policy's logits in memory.
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

    Inside the context `loss_of(...)`, the forward of the head computes the loss. So the loss is the result of one
    forward call of the wrapped model, as DistributedDataParallel, DeepSpeed and PEFT need, and the head's weights are
    read while ZeRO has gathered them.
    """

    def __init__(self, head: nn.Linear, temperature: float = 1.0, suppressed: list[int] | None = None):
        self.head, self.temperature, self.suppressed = head, temperature, suppressed
        self.logps: Any = None  # (E,) after a forward
        self.tokens: Any = None  # the tokens with the weights that the last loss used

    @contextmanager
    def loss_of(self, tokens: WeightedTokens, reweigh: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
        """Inside the context, make `model(...).logits` the loss of `tokens`, a scalar tensor, and set `logps (E,)`.

        If the weights depend on the log-probabilities, `reweigh` maps log-probabilities `(E,)` to weights `(E,)`; the
        head then runs twice.
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
    """Return whether the model's logits are exactly the output of a plain `nn.Linear`.

    The answer is no for a decoder that scales or caps its logits, and for a head inside an adapter or of a quantised
    model.

    Args:
        model: a transformers model.
        inputs: the inputs of one small forward call, during which the head returns recognisable numbers.
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
