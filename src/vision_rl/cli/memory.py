"""Memory of a device by calculation, in bytes: what a run holds before anybody has a device for it."""

from typing import Any

import torch
from torch import nn

from vision_rl.models.description import count_parameters
from vision_rl.trainer.optim import BIG_VISION_ADAFACTOR, big_vision_adafactor, kernel_names, parameter_groups


def optimizer_bytes(model: nn.Module, args: Any) -> int:
    """Bytes of the optimizer's state, found by taking a step without numbers: `model` is on the meta device."""
    groups = parameter_groups(
        model, args.learning_rate, args.encoder_learning_rate, args.weight_decay, kernel_names(model)
    )
    optimizer: torch.optim.Optimizer
    if args.optim == BIG_VISION_ADAFACTOR:
        optimizer = big_vision_adafactor(groups, model, args.learning_rate, args.optim_args)
    else:  # AdamW's two moments; Trainer's other optimizers have at most these
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, foreach=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def training_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the weights, and of their gradients, in float32."""
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4 * count_parameters(model), 4 * learned


def encoder_floats(config: Any, num_patches: int) -> tuple[int, int]:
    """Activations of an image that the backward pass needs: of all layers, and when layers are recomputed."""
    layer = num_patches * (7 * config.hidden_size + 2 * config.intermediate_size)  # x, norms, q, k, v, output; the MLP
    kept = num_patches * config.hidden_size
    return config.num_hidden_layers * layer, config.num_hidden_layers * kept + layer


def decoder_floats(config: Any, num_tokens: int, num_patches: int) -> tuple[int, int]:
    """Activations of a sequence that the backward pass needs: self-attention, cross-attention to the image, and MLP."""
    layer = (
        num_tokens * (12 * config.hidden_size + 2 * config.intermediate_size) + 2 * num_patches * config.hidden_size
    )
    kept = num_tokens * config.hidden_size
    return config.num_hidden_layers * layer, config.num_hidden_layers * kept + layer


def cache_floats(config: Any, num_tokens: int, num_patches: int, num_generations: int) -> int:
    """Keys and values of a rollout, an image: those of its samples, and one copy of the image's."""
    positions = num_generations * num_tokens + num_patches
    return 2 * config.num_hidden_layers * config.hidden_size * positions
