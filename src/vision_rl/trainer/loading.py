"""The model and the processor of a name or path, and the tensors of a checkpoint."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin, VisionEncoderDecoderModel
from transformers.utils import find_adapter_config_file

from vision_rl.models.unwrapping import base_model


def load_policy(name_or_path: str, options: dict[str, Any]) -> PreTrainedModel | PeftModel:
    """The model of a name or path; of saved adapters, the model that they belong to with the adapters, to train on."""
    where = {name: options[name] for name in ("cache_dir", "local_files_only", "revision", "token") if name in options}
    if find_adapter_config_file(name_or_path, **where) is None:
        return VisionEncoderDecoderModel.from_pretrained(name_or_path, **options)
    base = PeftConfig.from_pretrained(name_or_path, **where).base_model_name_or_path
    if not base:
        raise ValueError(
            f"{name_or_path} holds adapters and does not say of which model. Load it yourself: "
            f"PeftModel.from_pretrained(base_model, {name_or_path!r}, is_trainable=True)."
        )
    revision = where.pop("revision", None)  # of the adapters; the base has a history of its own
    options = {name: value for name, value in options.items() if name != "revision"}
    model = VisionEncoderDecoderModel.from_pretrained(base, **options)
    return PeftModel.from_pretrained(model, name_or_path, is_trainable=True, revision=revision, **where)


def load_processor(name_or_path: str) -> Any:
    """The processor of a name or path. `AutoProcessor` knows one that is not transformers' once its module is imported."""
    processor = AutoProcessor.from_pretrained(name_or_path)
    saved = ProcessorMixin.get_processor_dict(name_or_path)[0].get("processor_class")
    if isinstance(processor, ProcessorMixin) or saved is None:
        return processor
    raise ValueError(
        f"{name_or_path} has a {saved}, whose module nothing has imported: import it before "
        "(vision_rl.tasks.detection, ...), or give the trainer a processing_class."
    )


def name_of_model(model: str | PreTrainedModel | PeftModel) -> str:
    """The last part of the model's name or path, from which the default output folder is named."""
    name = model if isinstance(model, str) else base_model(model).config._name_or_path or type(model).__name__
    return name.rstrip("/").split("/")[-1]


def saved_tensors(folder: str, names: set[str]) -> dict[str, torch.Tensor]:
    """Those of the tensors `names` that the checkpoint in `folder` holds under these names."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")) if names else []:
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in names & set(file.keys())}
    return tensors


def with_adapters(model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None) -> PreTrainedModel | PeftModel:
    """The model inside PEFT, if there is a `peft_config`."""
    if peft_config is None:
        return model
    if isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model has adapters already: leave out peft_config to train them, or give "
            "model.merge_and_unload() to put new ones on top."
        )
    return get_peft_model(model, peft_config)
