"""What a model needs before it is trained here: no dropout, no parameter that never gets a gradient."""

from torch import nn
from transformers import PreTrainedModel, VisionEncoderDecoderModel


# Parts of transformers' image encoders that do not lie on the way to `last_hidden_state`.
UNUSED_BY_LAST_HIDDEN_STATE = ("pooler", "head", "mask_token", "post_layernorm")


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout, layer-drop and drop-path probability of the modules to 0; the configs stay as they are.

    transformers keeps some of them in `nn.Dropout` modules and others as plain numbers that the forward passes on.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and any(word in name for word in ("dropout", "layerdrop", "drop_prob")):
                setattr(module, name, 0.0)


def freeze_unused_parameters(model: PreTrainedModel) -> list[str]:
    """Freeze the encoder's parameters that get no gradient (its pooling head) and return their names.

    DistributedDataParallel would wait for their gradients, and with activation checkpointing fail.
    """
    if not isinstance(model, VisionEncoderDecoderModel):
        return []
    frozen = []
    for name, parameter in model.encoder.named_parameters():
        unused = set(UNUSED_BY_LAST_HIDDEN_STATE) & set(name.split("."))
        # SigLIP's post_layernorm is its encoder's last norm, CLIP's belongs to the pooled output only.
        if unused and not (unused == {"post_layernorm"} and model.encoder.config.model_type != "clip_vision_model"):
            parameter.requires_grad_(False)
            frozen.append(f"encoder.{name}")
    return frozen
