"""`--dry_run`: what a run is, before there is data, a device, or the model that it goes on from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import torch
from transformers import AutoConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from vision_rl.cli import building, memory
from vision_rl.cli.arguments import ModelArguments
from vision_rl.cli.data import load_rows
from vision_rl.cli.reading import Read, read_training
from vision_rl.cli.recipe import Recipe
from vision_rl.cli.rewards import named_rewards
from vision_rl.compatibility import CHECKPOINTING
from vision_rl.models.description import count_parameters
from vision_rl.models.uvim import UViMModel
from vision_rl.task import load_processor
from vision_rl.trainer.scoring import check_weights


GB = 1e9


def dry_run(command: str, given: Read) -> Callable[[], None]:
    """Return a function that prints sizes, memory by calculation, what is missing, and the command that follows."""
    missing: list[str] = []
    rows = _rows(given, missing)
    if command == "tune":
        _tried(partial(_check_rewards, given), missing)
    with torch.device("meta"):
        try:
            model, processor = _model(command, given, rows, missing)
        except (OSError, ValueError) as error:  # without the data, what is told then may only follow from it
            raise ValueError(" ".join(dict.fromkeys([*missing, str(error)]))) from error
        optimizer = memory.optimizer_bytes(model, given.training)
    lines = [*_sizes(model, processor, given), *_step(command, given), *_memory(command, model, optimizer, given)]
    lines += [("missing", text) for text in dict.fromkeys(missing) or ["nothing"]]
    lines += [("then", text) for text in _following(command, given.training.output_dir)]
    return lambda: print("\n".join(f"{name:12}{text}" for name, text in lines))


# --- the model, from sizes alone --------------------------------------------------------------------------------------


def _rows(given: Read, missing: list[str]) -> Any:
    """The training rows if they are there."""
    data = next(own for own in given.own if type(own).__name__ == "DataArguments")
    found = {}
    for split in ("train", "validation"):
        if split == "validation" and not given.evaluates():
            continue
        found[split] = _tried(partial(load_rows, given.task, data, given.options, split), missing)
        if found[split] is None and not missing:
            missing.append(f"the {split} data: no option names it")
    return found["train"]


def _check_rewards(given: Read) -> None:
    """The rewards are there, with a weight for each."""
    names = named_rewards(given.own[0].reward, given.task)
    check_weights(given.training.reward_weights, len(names))


def _tried(make: Callable[[], Any], missing: list[str]) -> Any:
    try:
        return make()
    except (OSError, ValueError) as error:
        missing.append(str(error).splitlines()[0])
        return None


def _model(command: str, given: Read, rows: Any, missing: list[str]) -> tuple[Any, Any]:
    if command == "stage1":
        processor = given.task.make_processor(given.options, building.image_processor(given.own[0]), rows)
        return building.make_stage1(given.own[0], processor), processor
    if _is_there(given.own[0].model):
        return _saved(command, given, rows)
    args, options = _described(command, given, missing)
    goes_on = given.own[0].model is not None  # and has its stage I with it
    processor = _processor(given, args, options, rows, [] if goes_on else missing)
    length = given.training.max_completion_length
    model = building.make_model(given.task, replace(args, model=None), processor, length, weights=False)
    return model, processor


def _is_there(model: str | None) -> bool:
    """Whether a model can be looked at: a folder, or what no recipe makes, which may be on the Hub."""
    return model is not None and (Path(model).is_dir() or all(r.content["output_dir"] != model for r in Recipe.all()))


def _saved(command: str, given: Read, rows: Any) -> tuple[Any, Any]:
    args = given.own[0]
    if command == "tune":
        processor = load_processor(args.model, given.task, args.model_revision)
        config = AutoConfig.from_pretrained(args.model, revision=args.model_revision)
        if not isinstance(config, VisionEncoderDecoderConfig):
            raise ValueError(
                f"A dry run knows only the sizes of a VisionEncoderDecoderModel, but {args.model} is a {config.model_type}."
            )
        return VisionEncoderDecoderModel(config), processor
    processor = building.make_processor(given.task, args, given.options, rows)
    with torch.device("cpu"):
        model: Any = building.make_model(given.task, args, processor, given.training.max_completion_length)
    return model.to("meta"), processor


def _described(command: str, given: Read, missing: list[str]) -> tuple[ModelArguments, Any]:
    """The options of the model and its processor: the run's own, or the options of the run before, whose model goes on."""
    args = given.own[0]
    if args.model is None:
        for init in (args.encoder_init, args.decoder_init):
            if init is not None and not Path(init).exists() and init.endswith(".npz"):
                missing.append(f"the weights {init}")
        return args, given.options
    before = _run_before(args.model)
    missing.append(f"the model {args.model}: `vision-rl {before.content['command']} --config {before.name}`")
    model_args, options = _described(before.content["command"], _read(before), [])
    kept = {
        option.name: getattr(options, option.name)
        for option in fields(options)
        if getattr(given.options, option.name) is None
    }
    if command == "mle":
        model_args = replace(
            model_args, image_size=args.image_size or model_args.image_size, stage1=args.stage1 or model_args.stage1
        )
    return model_args, replace(given.options, **kept)


def _processor(given: Read, args: ModelArguments, options: Any, rows: Any, missing: list[str]) -> Any:
    if args.stage1 is not None:
        before = _run_before(args.stage1)
        if not Path(args.stage1).is_dir():
            missing.append(f"stage I, {args.stage1}: `vision-rl stage1 --config {before.name}`")
        stage1 = _read(before)
        return stage1.task.make_processor(stage1.options, building.image_processor(stage1.own[0]), rows)
    images = building.image_processor(replace(args, encoder_init=None))
    made = None
    knows_size = getattr(options, "vocab_size", None) is not None
    try:
        with _hub_not_asked() if knows_size else nullcontext():
            made = given.task.make_processor(options, images, rows)
    except OSError:
        if not hasattr(options, "tokenizer"):  # it is not a tokenizer that is not there
            raise
        missing.append(f"the tokenizer {options.tokenizer or 'of the task'}: the run downloads it")
    if made is None:
        no_ids = SimpleNamespace(bos_token_id=None, pad_token_id=None, eos_token_id=None)
        made = SimpleNamespace(
            image_processor=images,
            vocab_size=options.vocab_size,
            completion_length=None,
            tokenizer=no_ids,
            suppress_tokens=(),
        )
    return made


@contextmanager
def _hub_not_asked() -> Iterator[None]:
    """Find only what is in the cache. Without a network the Hub would be retried for a minute."""
    before, huggingface_hub.constants.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _run_before(folder: str) -> Recipe:
    """The recipe whose output is this folder."""
    for recipe in Recipe.all():
        if recipe.content["output_dir"] == folder:
            return recipe
    raise ValueError(f"{folder} does not exist, and no recipe makes it, so a dry run does not know its sizes.")


def _read(recipe: Recipe) -> Read:
    return read_training(recipe.content["command"], ["--config", recipe.name, "--use_cpu", "true"])


# --- what is printed --------------------------------------------------------------------------------------------------


def _sizes(model: Any, processor: Any, given: Read) -> list[tuple[str, str]]:
    total = f"{count_parameters(model) / 1e6:.1f} M parameters"
    if isinstance(model, UViMModel):
        codes = (
            f"{processor.code_len} codes per image of {model.config.image_size} pixels, out of {processor.num_codes}"
        )
        return [("model", f"{total}, of stage I"), ("tokens", codes)]
    parts = ", ".join(
        f"{name} {count_parameters(getattr(model, name)) / 1e6:.1f} M" for name in ("encoder", "decoder")
    )
    size, patches = model.config.encoder.image_size, _num_patches(model)
    tokens = f"{_num_tokens(model)} per completion, vocabulary {model.config.decoder.vocab_size}"
    return [("model", f"{total} ({parts})"), ("tokens", f"{tokens}; {patches} patches of an image of {size} pixels")]


def _step(command: str, given: Read) -> list[tuple[str, str]]:
    args = given.training
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    images = per_device * accumulation * args.world_size
    samples = f", {args.num_generations} samples each" if command == "tune" else ""
    text = (
        f"{images} images{samples}: {per_device} per device x {accumulation} accumulation x {args.world_size} devices"
    )
    if args.world_size == 1 and accumulation % 8 == 0:
        text += f"; on 8 devices, set gradient_accumulation_steps to {accumulation // 8}"
    steps = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs} epochs"
    return [("step", text), ("run", f"{steps}, into {args.output_dir}")]


def _memory(command: str, model: Any, optimizer: int, given: Read) -> list[tuple[str, str]]:
    args = given.training
    weights, gradients = memory.training_bytes(model)
    parts = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    width, images = 2 if args.bf16 or args.fp16 else 4, args.per_device_train_batch_size
    samples = args.num_generations if command == "tune" else 1
    if isinstance(model, UViMModel):
        config, patches = model.config, model.config.grid_size**2
        both = [
            memory.encoder_floats(_with_layers(config, layers), patches)
            for layers in (config.num_encoder_layers, config.num_decoder_layers)
        ]
        learning, recomputed = (sum(pair) for pair in zip(*both, strict=True))
        cache = 0
    else:
        patches, tokens = _num_patches(model), _num_tokens(model)
        encoder = memory.encoder_floats(model.config.encoder, patches)
        decoder = memory.decoder_floats(model.config.decoder, tokens, patches)
        learning, recomputed = (e + samples * d for e, d in zip(encoder, decoder, strict=True))
        cache = memory.cache_floats(model.config.decoder, tokens, patches, samples) if command == "tune" else 0
    lines = [("memory", ", ".join(f"{name} {size / GB:.2f} GB" for name, size in parts.items()) + ", per device")]
    held = f"activations of {images} images {images * learning * width / GB:.1f} GB"
    held += f", with {CHECKPOINTING} {images * recomputed * width / GB:.1f} GB"
    lines.append(("", held))
    if cache:
        rollout = args.per_device_generation_batch_size or images * args.steps_per_generation
        held = f"keys and values of {rollout} images that are sampled at once {rollout * cache * width / GB:.1f} GB"
        lines.append(("", f"{held}; set per_device_generation_batch_size to sample fewer"))
    return lines


def _with_layers(config: Any, layers: int) -> SimpleNamespace:
    return SimpleNamespace(
        hidden_size=config.hidden_size, intermediate_size=config.intermediate_size, num_hidden_layers=layers
    )


def _num_patches(model: Any) -> int:
    return (model.config.encoder.image_size // model.config.encoder.patch_size) ** 2


def _num_tokens(model: Any) -> int:
    return model.config.decoder.max_position_embeddings


def _following(command: str, output_dir: str) -> list[str]:
    """The commands that take what this run makes."""
    after = [
        f"vision-rl {recipe.content['command']} --config {recipe.name}"
        for recipe in Recipe.all()
        if recipe.starts_from(output_dir)
    ]
    own = [
        recipe.name for recipe in Recipe.all() if recipe.content["output_dir"] == output_dir and command != "stage1"
    ]
    return after + [f"vision-rl eval --config {name}" for name in own]
