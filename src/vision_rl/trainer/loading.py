"""The model and the processor of a name or path, and the tensors of a checkpoint."""

import logging
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    VisionEncoderDecoderModel,
)
from transformers.utils import find_adapter_config_file

from vision_rl.manifest import naming
from vision_rl.models.lengths import completion_length
from vision_rl.models.preparation import (
    align_special_ids,
    drop_generation_options,
    forbid_uncounted_id,
    freeze_unused_parameters,
    hold_sine_positions,
)
from vision_rl.models.served import SERVED, SERVED_CONFIGS, check_served, not_served, prepare_special_ids
from vision_rl.models.shared_images import share_images
from vision_rl.models.unwrapping import base_model, is_served
from vision_rl.processing import VisionProcessor, as_vision_processor
from vision_rl.prompting import reading_processor
from vision_rl.trainer.model_checks import check_model


logger = logging.getLogger(__name__)


def load_policy(name_or_path: str, options: dict[str, Any]) -> PreTrainedModel | PeftModel:
    """The model of a name or path; of saved adapters, the model that they belong to with the adapters, to train on.

    It is in float32 unless `options` have a `dtype`: transformers would take that in which it was saved, to train in.
    """
    options = {"dtype": torch.float32, **options}
    where = _where(options)
    adapters = _folder_of_adapters(name_or_path)
    if find_adapter_config_file(adapters, **where) is None:
        return _load_model(name_or_path, options)
    base = PeftConfig.from_pretrained(adapters, **where).base_model_name_or_path
    if not base:
        raise ValueError(
            f"{name_or_path} holds adapters, but does not name their base model. Load it yourself: "
            f"PeftModel.from_pretrained(base_model, {adapters!r}, is_trainable=True)."
        )
    of_adapters = where.pop("revision", None)  # the base has a history of its own
    options = {name: value for name, value in options.items() if name != "revision"}
    try:
        model = _load_model(base, options)
    except OSError as error:
        if Path(base).exists():
            raise
        raise OSError(
            f"{name_or_path} holds adapters of the model {base}, which is no folder here and could not be read from the Hub. "
            "Start in the folder from which that path leads to it, or load it yourself: "
            f"PeftModel.from_pretrained(base_model, {adapters!r}, is_trainable=True)."
        ) from error
    adapted = PeftModel.from_pretrained(model, adapters, is_trainable=True, revision=of_adapters, **where)
    _take_generation_config(model, name_or_path, {**where, "revision": of_adapters})
    return adapted


def _folder_of_adapters(name_or_path: str) -> str:
    """The folder itself, or in it that of adapters with a name of their own, as PEFT saves them."""
    folder = Path(name_or_path)
    if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        return name_or_path
    inner = sorted(file.parent for file in folder.glob("*/adapter_config.json"))
    named = [each for each in inner if not each.name.startswith("checkpoint-")]
    if len(named) > 1:
        raise ValueError(
            f"{name_or_path} holds the adapters {', '.join(each.name for each in named)}: give the folder of one, such as {named[0]}."
        )
    if inner and not named:
        raise ValueError(f"{name_or_path} holds checkpoints but no model: give one of them, such as {inner[-1]}.")
    return str(named[0]) if named else name_or_path


def _take_generation_config(policy: Any, name_or_path: str, where: dict[str, Any]) -> None:
    """Let the model start, end and stop as it did where its adapters were saved; files of other programs do not say how."""
    try:
        saved = GenerationConfig.from_pretrained(name_or_path, **where)
    except OSError:
        return
    policy.generation_config = saved
    if saved.decoder_start_token_id is not None:
        policy.config.decoder_start_token_id = saved.decoder_start_token_id


def _load_model(name_or_path: str, options: dict[str, Any]) -> PreTrainedModel:
    """Load a served model, of the class that its config names; others are refused before their weights come."""
    download = (
        "revision",
        "subfolder",
        "token",
        "cache_dir",
        "local_files_only",
        "force_download",
        "trust_remote_code",
    )
    known = {"trust_remote_code": False, **{name: options[name] for name in download if name in options}}
    config = AutoConfig.from_pretrained(name_or_path, **known)
    kinds = zip(SERVED, SERVED_CONFIGS, strict=True)
    kind = next((kind for kind, of_kind in kinds if isinstance(config, of_kind)), None)
    saved = (config.architectures or [type(config).__name__])[0]
    of_config = kind is VisionEncoderDecoderModel or saved in (type(config).__name__, kind and kind.__name__)
    if kind is None or not of_config:  # such as BLIP's model that answers questions
        raise TypeError(f"{name_or_path}: {not_served(saved, config)}")
    return kind.from_pretrained(name_or_path, **options)


def load_processor(name_or_path: str, options: dict[str, Any]) -> Any:
    """The processor of a name or path. `AutoProcessor` knows one of neither transformers nor ours once its module is imported.

    Code that comes with the folder runs only if asked for (`model_init_kwargs={"trust_remote_code": True}`): transformers
    would otherwise ask on standard input, where a pipe may answer.
    """
    where = _where(options)
    trust_remote_code = options.get("trust_remote_code", False)
    processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **where)
    saved = ProcessorMixin.get_processor_dict(name_or_path, **where)[0].get("processor_class")
    if isinstance(processor, ProcessorMixin) or saved is None:
        return processor
    raise ValueError(
        f"The processor of {name_or_path} is a {saved}, whose module is not imported: import it first, or give the trainer a "
        "processing_class."
    )


def _where(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options of `from_pretrained` that say where the files of model and processor are."""
    return {name: options[name] for name in ("cache_dir", "local_files_only", "revision", "token") if name in options}


def name_of_model(model: str | PreTrainedModel | PeftModel) -> str:
    """The last part of the model's name or path, from which the default output folder is named."""
    name = model if isinstance(model, str) else base_model(model).config._name_or_path or type(model).__name__
    return name.rstrip("/").split("/")[-1]


def prepared_policy(
    policy: Any, max_completion_length: int | None, processing_class: Any
) -> tuple[VisionProcessor, int]:
    """Checks the model against its processor, frees it of what hinders training, and lets G completions share an image.

    Returns:
        The processor in the form that the trainers use, and the most tokens of a completion.
    """
    check_served(policy)
    hold_sine_positions(policy)
    prepare_special_ids(policy)
    align_special_ids(policy, processing_class)
    drop_generation_options(policy)
    start = policy.generation_config.decoder_start_token_id
    processor = as_vision_processor(reading_processor(processing_class, start), start)
    if processor.id2label is not None:
        policy.config.id2label = processor.id2label
        policy.config.label2id = {label: i for i, label in processor.id2label.items()}
    length = max_completion_length or processor.completion_length
    if is_served(policy):
        forbid_uncounted_id(policy)
    check_model(policy, processor, length)
    length = completion_length(policy, length)
    policy.generation_config.max_new_tokens = length  # saved: `generate` would stop at 20
    freeze_unused_parameters(policy)
    if is_served(policy):
        share_images(policy)
    else:
        logger.warning(
            "%s is sampled through transformers' generate, which is slower, and its draws depend on the batch.",
            type(policy).__name__,
        )
    return processor, length


def saved_tensors(folder: str, names: set[str]) -> dict[str, torch.Tensor]:
    """Read the tensors `names` of the checkpoint in `folder`; names that it does not have are left out."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")) if names else []:
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in names & set(file.keys())}
    return tensors


def restore_weights(model: Any, folder: str) -> None:
    """All weights of a checkpoint, the encoder's too: Trainer's own way misses those saved under their older names."""
    with naming(folder):
        dtypes = {parameter.dtype for parameter in model.parameters()}  # several with a frozen encoder in bfloat16
        dtype = reduce(torch.promote_types, dtypes)
        restored = type(model).from_pretrained(folder, dtype=dtype).state_dict()
    names = set(model.state_dict())
    restored |= saved_tensors(folder, names - set(restored))  # parts that a subclass has added
    model.load_state_dict({name: restored[name] for name in names})  # not a pooler added on loading


def check_base_is_kept(peft_config: PeftConfig) -> None:
    """Check that without its new adapters the model is what it was before them: `beta` compares with that.

    Raises:
        ValueError: for adapters that change the weights below them as they are made (PiSSA, OLoRA, LoftQ, ...), and for
            those whose training changes biases below them.
    """
    start = getattr(peft_config, "init_lora_weights", True)
    if start not in (True, False, "gaussian", "orthogonal", "eva"):
        raise ValueError(
            f"beta compares with the model without its adapters, but init_lora_weights={start!r} changes the weights below "
            "them: leave init_lora_weights out, or set beta=0."
        )
    bias = getattr(peft_config, "bias", "none")
    if bias != "none":
        raise ValueError(
            f"beta compares with the model without its adapters, but bias={bias!r} trains biases that are not part of them: "
            "set bias='none', or beta=0."
        )


def with_adapters(model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None) -> PreTrainedModel | PeftModel:
    """The model inside PEFT, if there is a `peft_config`."""
    given = model.active_peft_config if isinstance(model, PeftModel) else peft_config
    if given is not None and given.is_prompt_learning:
        raise ValueError(
            f"{type(given).__name__} learns tokens that stand before a text, which sampling does not have: take adapters that "
            "change weights, such as LoraConfig."
        )
    if peft_config is None:
        return model
    if isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model has adapters already: leave out peft_config to train them, or pass "
            "model.merge_and_unload() to put new ones on top."
        )
    return get_peft_model(model, peft_config)
