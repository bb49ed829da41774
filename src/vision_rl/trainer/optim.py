"""The paper's optimiser: Adafactor as big_vision has it, with a learning rate each for the encoder and the decoder.

The paper trains with the Adafactor of "Scaling Vision Transformers" (Zhai et al., arXiv 2106.04560, section 3.4), that is
`scale_by_adafactor` in big_vision's optax.py: second moments factored, a cap on their decay, momentum in half precision.
Neither `torch.optim.Adafactor` nor `transformers.Adafactor` can be configured to equal it: they have no cap, factor other
axes, and have no momentum or take it elsewhere.

Schedules are transformers' own: `get_scheduler("constant_with_warmup")`, `"cosine"` and `"linear"` equal big_vision's at
every update of a run, the first update of a warm-up (factor 0) included.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT


BIG_VISION_ADAFACTOR = "big_vision_adafactor"
DECAY_RATE = 0.8  # the second moments forget with beta2 = 1 - step^-0.8
EPSILON = 1e-30  # inside the square, so that a gradient of zeros gives an update of zeros


class BigVisionAdafactor(torch.optim.Optimizer):
    """Adafactor with the arithmetic of big_vision's `scale_by_adafactor`, its learning rate and its weight decay.

    One step takes `schedule * (lr * u + weight_decay * p)` from a parameter `p`, where `u` is the gradient over the root of
    its second moments, averaged by the momentum without bias correction. So weight decay follows the schedule but not the
    learning rate. The schedule is read off each group as `lr / initial_lr`, which is what torch's schedulers keep there;
    whoever sets `lr` by hand thereby schedules it, and a group built with `lr=0` never moves.

    Everything is computed in float32 and applied in the parameter's dtype. Parameters without a gradient are skipped.

    Args:
        params: parameters or groups; `parameter_groups` makes groups with the paper's two learning rates.
        lr: learning rate before the schedule; `u` has an RMS near 1 whatever the scale of the gradients.
        beta2_cap: upper limit of the second moments' decay; UViM's models were trained with 0.95.
        momentum: decay of the average over updates; `None` turns it off and saves its memory.
        clipping_threshold: limit of an update's RMS in each tensor, before momentum; `None` for no limit.
        weight_decay: per step at the schedule's peak, *not* multiplied by `lr`.
        min_dim_size_to_factor: a tensor is factored if its second largest dimension has at least this size.
        momentum_dtype: dtype of the stored momentum.
        view_shapes: parameters to optimise as if they had another shape, which changes the axes that are factored;
            `attention_view_shapes` makes those of the reference. By default torch's own shapes are used.

    Raises:
        ValueError: for an option out of its range, for a view of the wrong size, and in `step` for a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        beta2_cap: float = 0.999,
        momentum: float | None = 0.9,
        clipping_threshold: float | None = None,
        weight_decay: float = 0.0,
        min_dim_size_to_factor: int = 32,
        momentum_dtype: torch.dtype = torch.bfloat16,
        view_shapes: Mapping[nn.Parameter, tuple[int, ...]] | None = None,
    ):
        self.view_shapes = dict(view_shapes or {})
        defaults = {
            "lr": lr,
            "beta2_cap": beta2_cap,
            "momentum": momentum,
            "clipping_threshold": clipping_threshold,
            "weight_decay": weight_decay,
            "min_dim_size_to_factor": min_dim_size_to_factor,
            "momentum_dtype": momentum_dtype,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, check its options, and remember its learning rate before any schedule as `initial_lr`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check_options(group)
        group.setdefault("initial_lr", float(group["lr"]))
        for parameter in group["params"]:
            view = torch.Size(self.view_shapes.get(parameter, parameter.shape))
            if view.numel() != parameter.numel():
                raise ValueError(
                    f"view_shapes gives the shape {tuple(view)} to a parameter of shape {tuple(parameter.shape)}: "
                    "a view must have the same number of elements."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss of `closure` where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            alike: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["step"] = state.get("step", 0) + 1
                    factored = self._axes(parameter, group) is not None
                    alike[state["step"], factored].append(parameter)
            for (step, factored), parameters in alike.items():
                beta2 = min(group["beta2_cap"], 1.0 - step**-DECAY_RATE)  # 0 at the first step: no bias to correct
                gradients = [self._viewed_gradient(parameter) for parameter in parameters]
                scale = self._scale_factored if factored else self._scale
                self._apply(parameters, scale(parameters, gradients, beta2, group), group)
        return loss

    def _scale(self, parameters: list[nn.Parameter], gradients: list[Tensor], beta2: float, group) -> list[Tensor]:
        """Divide the gradients by the roots of their second moments."""
        squares = list(torch._foreach_mul(gradients, gradients))
        torch._foreach_add_(squares, EPSILON)
        moments = self._states(parameters, "v", squares)
        _forget(moments, beta2, squares)
        return list(torch._foreach_div(gradients, torch._foreach_sqrt(moments)))

    def _scale_factored(
        self, parameters: list[nn.Parameter], gradients: list[Tensor], beta2: float, group
    ) -> list[Tensor]:
        """Divide the gradients by the roots of their second moments, which are kept as means over each of two axes."""
        largest, second = zip(*(self._axes(parameter, group) or () for parameter in parameters), strict=True)
        squares = list(torch._foreach_mul(gradients, gradients))
        row_means, col_means = _means(squares, largest), _means(squares, second)
        del squares
        torch._foreach_add_([*row_means, *col_means], EPSILON)  # of each square, and so of their means
        rows, cols = self._states(parameters, "row", row_means), self._states(parameters, "col", col_means)
        _forget(rows, beta2, row_means)
        _forget(cols, beta2, col_means)
        row_shares = torch._foreach_div(rows, _means(rows, second))
        updates = list(torch._foreach_div(gradients, torch._foreach_sqrt(row_shares)))
        torch._foreach_div_(updates, torch._foreach_sqrt(cols))
        return updates

    def _apply(self, parameters: list[nn.Parameter], updates: list[Tensor], group: dict[str, Any]) -> None:
        """Clip the updates, average them, and subtract them with the decayed weights."""
        if group["clipping_threshold"] is not None:
            excess = torch._foreach_norm(updates)  # the RMS times the root of the number of elements
            torch._foreach_div_(excess, [group["clipping_threshold"] * update.numel() ** 0.5 for update in updates])
            torch._foreach_clamp_min_(excess, 1.0)
            torch._foreach_div_(updates, excess)
        if group["momentum"] is not None:
            # Jitted JAX rounds the decay to the momentum's dtype (0.9 becomes 0.8984375) but multiplies in float32.
            decay = torch.tensor(group["momentum"], dtype=group["momentum_dtype"], device="cpu").item()
            averages = self._states(parameters, "momentum", updates, group["momentum_dtype"])
            torch._foreach_mul_(updates, 1 - group["momentum"])
            torch._foreach_add_(updates, averages, alpha=decay)
            torch._foreach_copy_(averages, updates)

        weights: list[Tensor] = [*parameters]
        updates = [
            update.reshape(parameter.shape) if parameter in self.view_shapes else update
            for parameter, update in zip(parameters, updates, strict=True)
        ]
        if group["weight_decay"] and group["initial_lr"]:
            # lr times this is the schedule times weight_decay
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"] / group["initial_lr"])
        torch._foreach_add_(weights, updates, alpha=-float(group["lr"]))  # rounds once, to the weights' dtype

    def _axes(self, parameter: nn.Parameter, group: dict[str, Any]) -> tuple[int, int] | None:
        shape = self.view_shapes.get(parameter, parameter.shape)
        return factored_axes(shape, group["min_dim_size_to_factor"])

    def _viewed_gradient(self, parameter: nn.Parameter) -> Tensor:
        """The gradient in float32, in the shape that is factored."""
        gradient: Any = parameter.grad
        if gradient.is_sparse:
            raise ValueError("BigVisionAdafactor has no sparse updates: build the nn.Embedding with sparse=False.")
        shape = self.view_shapes.get(parameter)
        return gradient.float() if shape is None else gradient.float().reshape(shape)

    def _states(
        self, parameters: list[nn.Parameter], name: str, like: list[Tensor], dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """A tensor of each parameter's state, of the shape of those in `like`; zeros before the first step."""
        for parameter, tensor in zip(parameters, like, strict=True):
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(tensor, dtype=dtype)
        return [self.state[parameter][name] for parameter in parameters]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state in the dtypes it was saved in, so that a resumed run is the uninterrupted one, bit for bit.

        torch casts the state to each parameter's dtype. For half precision weights that would round the second moments,
        and in float16 their smallest become 0.
        """
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        saved_indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for parameter, index in zip(parameters, saved_indices, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if torch.is_tensor(value):
                    # a copy, because steps write the state in place
                    self.state[parameter][name] = value.to(parameter.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        """The state that a copy or a pickle keeps; torch's own list would leave the views out."""
        return {**super().__getstate__(), "view_shapes": self.view_shapes}


def _forget(moments: list[Tensor], beta2: float, new: list[Tensor]) -> None:
    """Update moments in place: `moments = beta2 * moments + (1 - beta2) * new`."""
    torch._foreach_mul_(moments, beta2)
    torch._foreach_add_(moments, new, alpha=1 - beta2)


def _means(tensors: list[Tensor], axes: Sequence[int]) -> list[Tensor]:
    """The mean of each over its axis, which stays with length 1."""
    return [tensor.mean(axis, keepdim=True) for tensor, axis in zip(tensors, axes, strict=True)]


def factored_axes(shape: tuple[int, ...], min_dim_size_to_factor: int = 32) -> tuple[int, int] | None:
    """The largest and the second largest axis of `shape`, or `None` if the second is too small to be worth factoring.

    Of equal dimensions the last counts as the largest, as in the reference.
    """
    if len(shape) < 2:
        return None
    *_, second, largest = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (largest, second) if shape[second] >= min_dim_size_to_factor else None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Tensor) and not isinstance(value, bool)


# What an option may be, as a test and in words.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda value: _is_number(value) and value >= 0, "0 or more"),
    "beta2_cap": (
        lambda value: _is_number(value) and 0 < value <= 1,
        "above 0 and at most 1, where 1 is no cap",
    ),
    "momentum": (
        lambda value: value is None or (_is_number(value) and 0 <= value < 1),
        "at least 0 and below 1, or None to turn it off",
    ),
    "clipping_threshold": (
        lambda value: value is None or (_is_number(value) and value > 0),
        "above 0, or None to turn it off",
    ),
    "weight_decay": (lambda value: _is_number(value) and value >= 0, "0 or more"),
    "min_dim_size_to_factor": (
        lambda value: _is_number(value) and value >= 1,
        "at least 1; a huge one factors nothing",
    ),
    "momentum_dtype": (
        lambda value: isinstance(value, torch.dtype) and value.is_floating_point,
        "a floating dtype such as torch.bfloat16",
    ),
    "reference_layout": (lambda value: value in (True, False), "true or false"),  # of `optim_args` alone
}


def _check_options(group: dict[str, Any]) -> None:
    """Raise a `ValueError` that says what to do for an option of `group` that is out of its range."""
    for option, (in_range, wanted) in _RANGES.items():
        if option in group and not in_range(group[option]):
            raise ValueError(f"{option} is {group[option]}, but must be {wanted}.")


def attention_view_shapes(model: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """The shapes in which the reference keeps attention weights, for `BigVisionAdafactor(view_shapes=...)`.

    Flax has an axis for the heads: (E, H, D) for queries, keys and values, (H, D, E) for the output, with H heads of size D
    and a width E. Adafactor factors over E and the larger of H and D, and keeps the third axis as a batch, where torch's
    (H*D, E) would be factored whole. The views are (H, D, E) and (E, H, D): factoring does not mind the order.

    Finds every module with a linear `q_proj` and a number of heads: our decoder, and ViT, SigLIP, DINOv2, CLIP, TrOCR and
    the like of transformers. Keys and values may have fewer heads than queries. Others (BERT, GPT-2) keep torch's shapes.
    """
    shapes: dict[nn.Parameter, tuple[int, ...]] = {}
    for attention in model.modules():
        layers = {name: layer for name, layer in attention.named_children() if isinstance(layer, nn.Linear)}
        num_heads = _num_heads(attention)
        if "q_proj" not in layers or num_heads is None:
            continue
        head_dim = layers["q_proj"].out_features // num_heads
        for name, layer in layers.items():
            if name in ("q_proj", "k_proj", "v_proj"):
                for parameter in layer.parameters():  # weight (H*D, E), bias (H*D,)
                    shapes[parameter] = (layer.out_features // head_dim, head_dim, *parameter.shape[1:])
            elif name in ("out_proj", "o_proj"):
                shapes[layer.get_parameter("weight")] = (layer.out_features, num_heads, head_dim)
    return shapes


def _num_heads(attention: nn.Module) -> int | None:
    """The number of heads, under one of the three names that transformers has for it."""
    config = getattr(attention, "config", None)
    places = [(attention, "num_heads"), (attention, "num_attention_heads"), (config, "num_attention_heads")]
    return next((getattr(owner, name) for owner, name in places if hasattr(owner, name)), None)


def kernel_names(model: nn.Module) -> set[str]:
    """Names of the parameters that the reference decays: weights of linear and convolution layers, and the like (its `.*/kernel`).

    Embeddings, norms, biases and positions are not decayed, nor is an output layer tied to the token embedding.
    """
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if name.split(".")[-1] == "weight" and parameter.ndim >= 2 and parameter not in embeddings
    }


# `encoder` as a child of the whole model, which PEFT, DistributedDataParallel and torch.compile may have wrapped; what it is
# called in BLIP and, in three parts, in Florence-2.
_ENCODERS = r"encoder|vision_model|model\.(vision_tower|multi_modal_projector|language_model\.encoder)"
_IN_ENCODER = re.compile(rf"(base_model\.model\.|module\.|_orig_mod\.)*({_ENCODERS})\.")


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the encoder, as `parameter_groups` tells them from the decoder's."""
    return [parameter for name, parameter in model.named_parameters() if _IN_ENCODER.match(name)]


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    encoder_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    decay_names: Collection[str] = frozenset(),
) -> list[dict[str, Any]]:
    """Optimiser groups of a `VisionEncoderDecoderModel`: the encoder with its own learning rate, kernels with decay.

    The paper's captioning model learns its decoder ten times faster than its encoder (Table 7). The decoder's groups come
    first, because Trainer logs the learning rate of the first group. `enc_to_dec_proj` goes with the decoder.

    Args:
        model: the model; only parameters that require a gradient are taken.
        learning_rate: of the decoder, and of the encoder where it has none of its own.
        encoder_learning_rate: of the parameters below `model.encoder`.
        weight_decay: of the parameters in `decay_names`; all others get 0.
        decay_names: names as in `model.named_parameters()`, such as `kernel_names(model)`.

    Returns:
        Groups for any torch optimiser, empty ones left out, each with a `name`: "decoder", "decoder_no_decay", "encoder",
        "encoder_no_decay".

    Raises:
        ValueError: for an `encoder_learning_rate` without a trainable encoder, or a `weight_decay` without names.
    """
    if weight_decay and not decay_names:
        raise ValueError(
            f"weight_decay is {weight_decay} but decay_names is empty: pass decay_names=kernel_names(model) to decay what "
            "the reference decays, or weight_decay=0.0."
        )
    encoder_lr = learning_rate if encoder_learning_rate is None else encoder_learning_rate
    groups: dict[str, dict[str, Any]] = {
        "decoder": {"params": [], "lr": learning_rate, "weight_decay": weight_decay},
        "decoder_no_decay": {"params": [], "lr": learning_rate, "weight_decay": 0.0},
        "encoder": {"params": [], "lr": encoder_lr, "weight_decay": weight_decay},
        "encoder_no_decay": {"params": [], "lr": encoder_lr, "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "encoder" if _IN_ENCODER.match(name) else "decoder"
            decayed = not weight_decay or name in decay_names
            groups[part if decayed else f"{part}_no_decay"]["params"].append(parameter)

    if encoder_learning_rate is not None and not (groups["encoder"]["params"] or groups["encoder_no_decay"]["params"]):
        raise ValueError(
            f"encoder_learning_rate is {encoder_learning_rate} but the model has no trainable parameter under `encoder.`: "
            "unfreeze the encoder, or leave encoder_learning_rate out."
        )
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def big_vision_adafactor(
    groups: list[dict[str, Any]], model: nn.Module, learning_rate: float, optim_args: str | None
) -> BigVisionAdafactor:
    """Return the paper's optimiser of the groups, with the options that `optim_args` names."""
    options = read_optim_args(optim_args)
    if options.pop("reference_layout", False):
        options["view_shapes"] = attention_view_shapes(model)
    return BigVisionAdafactor(groups, lr=learning_rate, **options)


def read_optim_args(text: str | None) -> dict[str, Any]:
    """Read 'beta2_cap=0.95,momentum=none' as Trainer's other optimisers read `optim_args`.

    Raises:
        ValueError: for a name that is not known, and for a value that the option of this name cannot have.
    """
    if not text:
        return {}
    if not isinstance(text, str):
        raise ValueError(f"optim_args is {text!r}; it must be text such as 'beta2_cap=0.95,reference_layout=true'.")
    words = {"true": True, "false": False, "none": None}
    known = ("beta2_cap", "momentum", "clipping_threshold", "min_dim_size_to_factor", "reference_layout")
    options: dict[str, Any] = {}
    for pair in text.replace(" ", "").split(","):
        name, _, value = pair.partition("=")
        if name not in known or not value:
            raise ValueError(
                f"optim_args has {pair!r}; {BIG_VISION_ADAFACTOR} takes {', '.join(known)}, as name=value."
            )
        in_range, wanted = _RANGES[name]
        try:
            options[name] = words[value.lower()] if value.lower() in words else float(value)
        except ValueError:
            options[name] = value
        if not in_range(options[name]):
            raise ValueError(f"optim_args has {pair!r}, but {name} must be {wanted}.")
    return options
