"""From options to a processor and a model: a new one, one that goes on, or one that comes to other sizes."""

import copy
import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ViTImageProcessorPil

from vision_rl.cli.arguments import ModelArguments, Stage1Arguments
from vision_rl.models import adaptation, description, load_image_processor
from vision_rl.models.uvim import UViMConfig, UViMDecoder, UViMModel
from vision_rl.processing import DenseProcessor, VisionProcessor
from vision_rl.task import load_processor
from vision_rl.trainer.loading import load_policy
from vision_rl.trainer.optim import encoder_parameters


DEFAULT_IMAGE_SIZE, DEFAULT_LENGTH = 224, 128


def make_processor(task: Any, args: ModelArguments, options: Any, rows: Any) -> VisionProcessor:
    """The processor of a new model, or of the model that goes on, changed as the options say."""
    if args.stage1 is not None and args.model is None:
        return with_options(load_processor(args.stage1, task), options)
    if args.model is None:
        return task.make_processor(options, image_processor(args), rows)
    _refuse_description(args)
    old = load_processor(args.model, task, args.model_revision)
    if isinstance(old, DenseProcessor) or not isinstance(old, VisionProcessor):
        return with_options(old, options)
    kept = {
        option.name: getattr(old, option.name)
        for option in fields(options)
        if getattr(options, option.name) is None and option.name in vars(old)
    }
    images = old.image_processor
    if args.image_size is not None:
        size = {"height": args.image_size, "width": args.image_size}
        images = type(images)(**images.to_dict() | {"size": size})
    new = task.make_processor(replace(options, **kept), images, rows)
    new.take_saved(old, options)
    return new


def with_options(processor: Any, options: Any) -> Any:
    """A saved processor, changed as the options say: how it reads, augments and scores, but not what its tokens mean.

    Raises:
        ValueError: for options that would change its tokens, whose model has others, or that contradict it otherwise.
    """
    changed = copy.copy(processor)
    for option in fields(options):
        value = getattr(options, option.name)
        if value is not None and option.name in vars(processor) and option.name != "tokenizer":
            setattr(changed, option.name, value)
    if isinstance(processor, VisionProcessor):
        _made_again(changed)
        changed.take_options(options)
        names = ["vocab_size", "completion_length", *(["outputs"] if isinstance(processor, DenseProcessor) else [])]
        for name in names:
            new, old = getattr(changed, name), getattr(processor, name)
            if new != old:
                raise ValueError(
                    f"With these options {name} of the processor is {new}, but the model was made with {old}: leave out the "
                    "options that change it."
                )
    return changed


def _made_again(processor: VisionProcessor) -> None:
    """Give the processor's values to its constructor, which checks them."""
    needed = [p for p in inspect.signature(type(processor)).parameters.values() if p.kind is not p.VAR_KEYWORD]
    if all(p.name in vars(processor) for p in needed if p.default is p.empty):
        type(processor)(**{p.name: vars(processor)[p.name] for p in needed if p.name in vars(processor)})


def _refuse_description(args: ModelArguments) -> None:
    """A model that goes on has its sizes and weights: options that describe a new one would have no effect."""
    described = ("patch_size", "conv_stem", "sincos_positions")
    for option in fields(args):
        about_new = option.name.startswith(("encoder", "decoder")) or option.name in described
        if about_new and getattr(args, option.name) != option.default:
            raise ValueError(
                f"{option.name} describes a new model, but this run goes on from the model {args.model}: leave out "
                "one of the two."
            )


def image_processor(args: ModelArguments | Stage1Arguments) -> ViTImageProcessorPil:
    """The image processor for images of the wanted size, normalised as the encoder's weights want them."""
    size = args.image_size or DEFAULT_IMAGE_SIZE
    init = getattr(args, "encoder_init", None)
    if init is not None and not str(init).endswith(".npz"):
        return load_image_processor(init, size)
    return ViTImageProcessorPil(size={"height": size, "width": size})


def make_model(
    task: Any,
    args: ModelArguments,
    processor: VisionProcessor,
    max_completion_length: int | None,
    weights: bool = True,
) -> PreTrainedModel:
    """The model of MLE.

    Args:
        task: its module.
        args: how it is described.
        processor: of `make_processor`.
        max_completion_length: tokens of the longest completion, where the processor does not say.
        weights: False: sizes alone, of a new encoder and decoder, without reading any.
    """
    model: Any
    ours = isinstance(processor, VisionProcessor)  # and not one of transformers, which a model that goes on may have
    length = (processor.completion_length if ours else None) or max_completion_length
    if args.model is not None:
        model = load_policy(args.model, at_revision(args))
        old = load_processor(args.model, task, args.model_revision)
        if isinstance(old, VisionProcessor) and not isinstance(old, DenseProcessor):
            adaptation.adapt(model, old, processor, length)
        elif args.image_size not in (None, dict(processor.image_processor.size or {}).get("height")):
            raise ValueError(
                f"{args.model} reads images of {processor.image_processor.size}, but image_size is {args.image_size}: "
                f"{'train stage I at that size first' if isinstance(old, DenseProcessor) else 'leave image_size out'}."
            )
    else:
        model = _new_model(args, processor, length or DEFAULT_LENGTH, weights)
    if args.freeze_encoder:
        for parameter in encoder_parameters(model):
            parameter.requires_grad_(False)
    return model


def _new_model(args: ModelArguments, processor: VisionProcessor, length: int, weights: bool) -> PreTrainedModel:
    encoder_size = description.transformer_size(
        args.encoder,
        hidden_size=args.encoder_hidden_size,
        num_hidden_layers=args.encoder_layers,
        num_attention_heads=args.encoder_heads,
        intermediate_size=args.encoder_mlp_size,
    )
    decoder_size = description.transformer_size(
        args.decoder,
        hidden_size=args.decoder_hidden_size,
        num_hidden_layers=args.decoder_layers,
        num_attention_heads=args.decoder_heads,
        intermediate_size=args.decoder_mlp_size,
    )
    size = dict(processor.image_processor.size)
    if args.image_size not in (None, size["height"]):
        raise ValueError(
            f"image_size is {args.image_size}, but stage I reads images of {size['height']} pixels: leave image_size out, or "
            "train stage I at that size."
        )
    init = (args.encoder_init, args.decoder_init) if weights else (None, None)
    encoder = description.make_encoder(
        size["height"], encoder_size, args.patch_size, args.conv_stem, init[0], args.encoder_layers
    )
    decoder = description.make_decoder(
        processor.vocab_size or 0, length, decoder_size, encoder.config.hidden_size, init[1]
    )
    model = description.make_model(processor, encoder, decoder)
    if args.sincos_positions and args.encoder_init is None and args.decoder_init is None:
        from vision_rl.models import init_sincos_positions

        init_sincos_positions(model)
    return model


def make_stage1(args: Stage1Arguments, processor: VisionProcessor) -> UViMModel:
    if not isinstance(processor, DenseProcessor):
        raise ValueError(
            f"{type(processor).__name__} has no stage I: its models write tokens of their own. Train them with `vision-rl mle`."
        )
    return UViMModel(
        UViMConfig(
            image_size=args.image_size,
            patch_size=args.patch_size,
            hidden_size=args.hidden_size,
            num_encoder_layers=args.encoder_layers,
            num_decoder_layers=args.decoder_layers,
            num_attention_heads=args.heads,
            intermediate_size=args.mlp_size,
            codebook_size=processor.num_codes,
            code_dim=args.hidden_size,
            code_length=processor.code_len,
            code_dropout=args.code_dropout,
            codebook_momentum=args.codebook_momentum,
            outputs=dict(processor.outputs or {}),
            regression=processor.regression,
        )
    )


def folder_of(model: str) -> Path:
    """The folder to which results of a model belong: the model's own, or one in `runs` for a model on the Hub."""
    return Path(model) if Path(model).is_dir() else Path("runs", model.replace("/", "--"))


def at_revision(args: Any, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Options for `from_pretrained`, with the revision of `args.model` added."""
    return {**(options or {}), **({} if args.model_revision is None else {"revision": args.model_revision})}


def completion_decoder(processor: VisionProcessor, args: Any, stage1: str | None = None) -> UViMDecoder | None:
    """The decoder of a task with codes: stage I from its own folder, or from the folder of `args.model`."""
    model = args.model
    if not isinstance(processor, DenseProcessor):
        return None
    if stage1 is not None:
        return UViMDecoder(UViMModel.from_pretrained(stage1), processor)
    if model is None:
        raise ValueError(
            "A model that writes codes needs stage I, which makes them: set stage1 to the output_dir of `vision-rl stage1`."
        )
    if Path(model).is_dir() and not (Path(model) / "stage1").is_dir():
        raise ValueError(f"{model} has no folder `stage1`, where the network that reads codes should be.")
    stage1_of_model = UViMModel.from_pretrained(model, subfolder="stage1", revision=args.model_revision)
    return UViMDecoder(stage1_of_model, processor)
