"""Prepare a model for training: no dropout, no parameter without a gradient, the same special ids everywhere."""

import copy
import logging
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import BlipForConditionalGeneration, GenerationConfig, PreTrainedModel, VisionEncoderDecoderModel
from transformers.trainer_utils import align_special_tokens

from vision_rl.models.lengths import uncounted_id
from vision_rl.models.special_ids import special_ids
from vision_rl.models.unwrapping import base_model, decoder_of


logger = logging.getLogger(__name__)

# Parts of transformers' image encoders that do not lie on the way to `last_hidden_state`.
UNUSED_BY_LAST_HIDDEN_STATE = ("pooler", "head", "mask_token", "post_layernorm")
CLIPS = tuple(f"{name}_vision_model" for name in ("clip", "chinese_clip", "altclip", "clipseg", "metaclip_2"))
MOVED_POSITIONS = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")  # at random, while DINOv3 is trained

TEXT_ARGUMENTS = ("input_ids", "attention_mask", "inputs_embeds", "task_ids")
# The fields of a generation config that sampling follows, and the fields that do not affect which tokens are chosen.
FOLLOWED = (
    "decoder_start_token_id",
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "suppress_tokens",
    "max_new_tokens",
)
TECHNICAL = {"use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"}
TECHNICAL |= {"continuous_batching_config", "prefill_chunk_size", "low_memory", "return_dict_in_generate"}
TECHNICAL |= {"output_attentions", "output_hidden_states", "output_scores", "output_logits", "transformers_version"}
WITHOUT_EFFECT = {
    "max_length": 20,
    "top_k": 50,
    "early_stopping": False,
}  # the defaults of earlier versions of transformers, which files of these versions hold
WITHOUT_EFFECT |= dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "guidance_scale"), 1)
WITHOUT_EFFECT |= dict.fromkeys(("temperature", "top_p", "typical_p", "length_penalty"), 1)
WITHOUT_EFFECT |= dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout, layer-drop and drop-path probability of the modules to 0; the config of the model stays as it is.

    transformers keeps some of these probabilities in `nn.Dropout` modules, and others as plain numbers of a module. In training
    DINOv3 also moves its positions at random, as its config says: the module that does so gets a config of its own.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if type(module).__name__.endswith("RopePositionEmbedding") and hasattr(module, "config"):
            module.config = copy.copy(module.config)
            for name in MOVED_POSITIONS:
                setattr(module.config, name, None)
        for name, value in vars(module).items():
            if isinstance(value, float) and any(word in name for word in ("dropout", "layerdrop", "drop_prob")):
                setattr(module, name, 0.0)


def hold_sine_positions(model: nn.Module) -> None:
    """Make buffers of TrOCR's sine positions: a plain tensor stays on the CPU, and `from_pretrained` leaves it without numbers."""
    for module in model.modules():
        plain = vars(module).get("weights")
        if type(module).__name__ == "TrOCRSinusoidalPositionalEmbedding" and plain is not None:
            positions = module.get_embedding(*plain.shape, module.padding_idx)  # type: ignore[operator]
            del module.weights
            module.register_buffer("weights", positions, persistent=False)


def prepare_for_fsdp(model: nn.Module, version: int) -> None:
    """Let FSDP2 shard the model layer by layer; `version` is the `fsdp_version` of accelerate's plugin.

    accelerate shards the layer classes that transformers names for a model, and raises an error if the model has no
    layer of a class, such as the text layers of a SigLIP of which only the image half is used. This function therefore
    keeps only the names of classes that the model has.

    Raises:
        ValueError: for FSDP1, whose wrapper hides the parts of a model from the sampler, and for adapters.
    """
    if version == 1:
        raise ValueError(
            "FSDP1 is not supported, because the sampler calls parts of the model: use FSDP2 "
            '(fsdp_config={"version": 2, ...}, or fsdp_version: 2 for accelerate), or DeepSpeed ZeRO-3.'
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "Adapters are not supported under FSDP, which shards the model around them: train them under DDP (leave FSDP "
            "out), or train all weights."
        )
    present = {type(module).__name__ for module in model.modules()}
    policy: Any = base_model(model)
    policy._no_split_modules = sorted(set(policy._no_split_modules or ()) & present)


def freeze_unused_parameters(model: PreTrainedModel) -> list[str]:
    """Freeze the encoder's parameters that get no gradient (its pooling head) and return their names.

    DistributedDataParallel would wait for the gradients of these parameters, and with activation checkpointing fail.
    """
    if not isinstance(model, VisionEncoderDecoderModel):
        return []
    frozen = []
    for name, parameter in model.encoder.named_parameters():
        unused = set(UNUSED_BY_LAST_HIDDEN_STATE) & set(name.split("."))
        # In SigLIP `post_layernorm` is the encoder's last norm; in CLIP and its kin it belongs to the pooled output only.
        if unused and not (unused == {"post_layernorm"} and model.encoder.config.model_type not in CLIPS):
            parameter.requires_grad_(False)
            frozen.append(f"encoder.{name}")
    return frozen


def drop_text_arguments(policy: PreTrainedModel) -> None:
    """Let the model be called as PEFT calls it for task types such as SEQ_2_SEQ_LM: with `input_ids=None` and others.

    `VisionEncoderDecoderModel` passes these arguments on to its encoder, and SigLIP would get `inputs_embeds` twice;
    BLIP would as well.
    """
    if isinstance(policy, VisionEncoderDecoderModel):
        policy.encoder.register_forward_pre_hook(_without_text, with_kwargs=True)
    if isinstance(policy, BlipForConditionalGeneration):
        policy.register_forward_pre_hook(_without_nothing, with_kwargs=True)


def _without_text(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {name: value for name, value in kwargs.items() if name not in TEXT_ARGUMENTS or value is not None}


def _without_nothing(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {name: value for name, value in kwargs.items() if value is not None}


def forbid_uncounted_id(policy: VisionEncoderDecoderModel) -> None:
    """Suppress the id that the decoder skips when it counts positions (see `uncounted_id`): it is then never written.

    Raises:
        ValueError: if the decoder starts with this id.
    """
    uncounted, ids = uncounted_id(policy), special_ids(policy)
    if uncounted is None:
        return
    if uncounted == ids.decoder_start:
        raise ValueError(
            f"decoder_start_token_id is {uncounted}, which is also the padding, and the positions of "
            f"{type(decoder_of(policy)).__name__} do not count padding: the model would learn at other positions than it "
            "writes. Set decoder_start_token_id, in config and generation_config, to another id, such as the tokenizer's bos "
            "or cls."
        )
    if uncounted not in (*ids.ends, *ids.suppressed):
        policy.generation_config.suppress_tokens = [*ids.suppressed, uncounted]


def drop_generation_options(policy: PreTrainedModel) -> None:
    """Remove the options of the generation config that `sample` does not follow, and warn about those with an effect.

    Samples, greedy completions and the loss follow the model's own distribution. Options such as forced tokens, beams
    and penalties would be saved with the model, and `generate` of the saved model would then write other completions
    than the evaluation saw.
    """
    config, default = policy.generation_config, GenerationConfig()
    dropped = {}
    for name, value in vars(config).items():
        if name.startswith("_") or name in (*FOLLOWED, *TECHNICAL) or value == getattr(default, name, None):
            continue
        if name.endswith("_token_id") or value != WITHOUT_EFFECT.get(name, 0):
            dropped[name] = value
        setattr(config, name, getattr(default, name, None))
    if dropped:
        logger.warning(
            "generation_config has %s. Training and evaluation follow the model's own distribution, so these options are taken "
            "out: `generate` of the saved model then repeats the greedy evaluation. Pass them to `generate` where you want "
            "them.",
            ", ".join(f"{name}={value!r}" for name, value in dropped.items()),
        )


def align_special_ids(policy: PreTrainedModel, processing_class) -> None:
    """Write the same special ids, those of the tokenizer included, into every config of the model.

    Trainer takes over the tokenizer's ids only when training starts, so an evaluation before training would decode
    with other ids.
    """
    tokenizer = getattr(processing_class, "tokenizer", None)
    starts = [getattr(config, "decoder_start_token_id", None) for config in (policy.config, policy.generation_config)]
    if None not in starts and starts[0] != starts[1]:
        logger.warning(
            "decoder_start_token_id is %d in model.config and %d in model.generation_config. The second one counts: set "
            "both to the same id.",
            *starts,
        )
    _mirror_special_ids(policy, tokenizer)
    if tokenizer is not None:
        align_special_tokens(policy, processing_class)  # warns where they differ
        _mirror_special_ids(policy, tokenizer)


def _mirror_special_ids(policy: PreTrainedModel, tokenizer) -> None:
    """Copy the special ids of the generation config, else of the model's config or the tokenizer, to all configs."""
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id"):
        value = getattr(policy.generation_config, name)
        if value is None:
            value = getattr(policy.config, name, None)
        if value is None and name != "decoder_start_token_id":
            value = getattr(tokenizer, name, None)
        if value is not None:
            for config in (policy.generation_config, policy.config, policy.config.get_text_config(decoder=True)):
                setattr(config, name, value)
