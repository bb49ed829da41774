"""Image encoders: the paper's ViT, pretrained ViTs, and the model that an encoder and a decoder make together.

The paper's ViT (big_vision's `models/vit.py`: no class token, no pooling, tanh GELU, LayerNorm eps 1e-6, a last norm)
is transformers' `SiglipVisionModel` without its head. Weights come from any SigLIP, ViT or DINOv2 checkpoint. To train
on larger images than a checkpoint was trained on, call `resize_position_embeddings` first.
"""

import inspect
import logging
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    Dinov2Config,
    Dinov2Model,
    GenerationConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from vision_rl.models.conv_stem import ConvStemVisionConfig, ConvStemVisionModel


logger = logging.getLogger(__name__)


def vit_encoder(
    image_size: int,
    patch_size: int = 16,
    hidden_size: int = 768,
    num_hidden_layers: int = 12,
    num_attention_heads: int = 12,
    intermediate_size: int = 3072,
    conv_stem: bool = False,
) -> SiglipVisionModel:
    """Make the paper's ViT with new weights; the defaults are B/16 (L/16: width 1024, 24 layers, 16 heads, MLP 4096).

    The model reads `pixel_values` (B, 3, image_size, image_size), in [-1, 1] in the paper, and returns
    `last_hidden_state` (B, N, hidden_size), one row of patches after the other. `conv_stem` embeds patches by small
    convolutions (`vision_rl.models.conv_stem`): the paper has no such stem, but a small model trained from scratch
    needs one. Raises `ValueError` for an image that cannot be cut into patches.
    """
    config = (ConvStemVisionConfig if conv_stem else SiglipVisionConfig)(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )
    if isinstance(config, ConvStemVisionConfig):
        return ConvStemVisionModel(config)
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} cannot be cut into patches of {patch_size}: choose a multiple.")
    return SiglipVisionModel(config)


def load_encoder(
    name_or_path: str | PathLike,
    image_size: int | tuple[int, int] | None = None,
    num_hidden_layers: int | None = None,
    **from_pretrained_kwargs: Any,
) -> PreTrainedModel:
    """Load the ViT of a SigLIP, ViT or DINOv2 checkpoint, without any head or text model.

    `image_size` resizes the position embeddings (see `resize_position_embeddings`). `num_hidden_layers` keeps only
    that many of the first layers, because the last layers of some encoders are specialised on their pretraining. The
    other arguments are passed to `from_pretrained`; the weights are in float32 unless these have a `dtype`. Raises
    `ValueError` for any other kind of model, and for more layers than the checkpoint has.
    """
    if "torch_dtype" not in from_pretrained_kwargs:  # its name before transformers 5
        from_pretrained_kwargs.setdefault("dtype", torch.float32)
    download = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
    config = AutoConfig.from_pretrained(
        name_or_path,
        trust_remote_code=False,  # all three kinds of models are in transformers
        **{name: value for name, value in from_pretrained_kwargs.items() if name in download},
    )
    if isinstance(config, SiglipConfig):
        config = config.vision_config
    if num_hidden_layers is not None and not 1 <= num_hidden_layers <= getattr(config, "num_hidden_layers", 0):
        raise ValueError(
            f"`{name_or_path}` has {getattr(config, 'num_hidden_layers', 'no')} layers, so num_hidden_layers cannot be "
            f"{num_hidden_layers}."
        )
    encoder: PreTrainedModel
    if isinstance(config, SiglipVisionConfig):
        config.vision_use_head = False
        encoder = SiglipVisionModel.from_pretrained(name_or_path, config=config, **from_pretrained_kwargs)
    elif isinstance(config, ViTConfig):
        encoder = ViTModel.from_pretrained(
            name_or_path, config=config, add_pooling_layer=False, **from_pretrained_kwargs
        )
    elif isinstance(config, Dinov2Config):
        config.use_mask_token = False  # only pretraining uses the mask token; DDP would wait for its gradient
        encoder = Dinov2Model.from_pretrained(name_or_path, config=config, **from_pretrained_kwargs)
    else:
        raise ValueError(
            f"`{name_or_path}` holds a {config.model_type} model, but the encoder must be a SigLIP, ViT or DINOv2."
        )
    if num_hidden_layers is not None:
        _keep_first_layers(encoder, num_hidden_layers)
    if image_size is not None:
        resize_position_embeddings(encoder, image_size)
    return encoder


def load_image_processor(name_or_path: str | PathLike, image_size: int) -> ViTImageProcessorPil:
    """Return an image processor that resizes to `image_size` pixels and normalises as the checkpoint's own does.

    An encoder that reads pixels of another mean and standard deviation than in its training gets worse without any
    error. A checkpoint without a `preprocessor_config.json` gets mean and standard deviation 0.5, as the paper's ViTs
    have, and a warning is logged.
    """
    try:
        config, _ = ViTImageProcessorPil.get_image_processor_dict(name_or_path)
    except OSError:
        config = {}
        logger.warning(
            "%s has no preprocessor_config.json: images are normalised with mean and standard deviation 0.5. If its encoder "
            "was trained with other values, set image_mean and image_std of the image processor.",
            name_or_path,
        )
    statistics = {key: config[key] for key in ("image_mean", "image_std") if config.get(key) is not None}
    return ViTImageProcessorPil(size={"height": image_size, "width": image_size}, **statistics)


def _keep_first_layers(encoder: PreTrainedModel, count: int) -> None:
    """Drop all layers but the first `count`, in place and in the config; the last norm then follows layer `count`."""
    name, layers = next((name, part) for name, part in encoder.named_modules() if isinstance(part, nn.ModuleList))
    encoder.set_submodule(name, layers[:count])
    backbone = ("out_features", "out_indices", "stage_names")  # these fields name layers that are gone
    kept = {key: value for key, value in encoder.config.to_dict().items() if key not in backbone}
    encoder.config = type(encoder.config)(**kept | {"num_hidden_layers": count})


@torch.no_grad()
def resize_position_embeddings(model: PreTrainedModel, image_size: int | tuple[int, int]) -> None:
    """Resize the position embeddings of a ViT, alone or in a `VisionEncoderDecoderModel`, to `image_size`, in place.

    The grid of positions is interpolated bilinearly and keeps its corners, as the reference does with scipy's zoom of
    order 1 (transformers' `interpolate_pos_encoding` is bicubic and moves the corners); a class token keeps its
    position. The config is changed too, so a saved model is loaded at the new size. Call this function before the
    optimizer is made, and give the image processor the same size.

    Args:
        model: `SiglipVisionModel`, `ViTModel`, `Dinov2Model`, or a `VisionEncoderDecoderModel` with such an encoder.
        image_size: pixels, a multiple of the patch size; (height, width) only for `ViTModel`.

    Raises:
        ValueError: for another encoder, and for an image size that the encoder cannot have.
    """
    encoder = model.encoder if isinstance(model, VisionEncoderDecoderModel) else model
    if not isinstance(encoder, SiglipVisionModel | ViTModel | Dinov2Model):
        raise ValueError(
            f"vision_rl does not know how to resize the positions of {type(encoder).__name__}: "
            "the encoder must be a SiglipVisionModel, a ViTModel or a Dinov2Model."
        )
    new_size, old_size = _pair(image_size), _pair(encoder.config.image_size)
    patch_size = _pair(encoder.config.patch_size)
    grid, old_grid = _grid(new_size, patch_size), _grid(old_size, patch_size)
    if (grid[0] * patch_size[0], grid[1] * patch_size[1]) != new_size:
        raise ValueError(
            f"image_size {image_size} cannot be cut into patches of {patch_size}: choose a multiple of them."
        )
    if new_size[0] != new_size[1] and not isinstance(encoder, ViTModel):
        raise ValueError(
            f"{type(encoder).__name__} of transformers reads only square images, but image_size is {image_size}."
        )
    if new_size == old_size:
        return

    embeddings: Any = encoder.embeddings
    if isinstance(encoder, SiglipVisionModel):
        old = embeddings.position_embedding.weight  # (N, width)
        new = resize_grid(old, old_grid, grid)
        embeddings.position_embedding = nn.Embedding.from_pretrained(new, freeze=not old.requires_grad)
        embeddings.position_ids = torch.arange(len(new), device=new.device)[None]
        embeddings.num_patches = embeddings.num_positions = len(new)
        embeddings.image_size = new_size[0]
    else:
        old = embeddings.position_embeddings  # (1, 1 + N, width), the class token first
        new = torch.cat([old[0, :1], resize_grid(old[0, 1:], old_grid, grid)])
        embeddings.position_embeddings = nn.Parameter(new[None], requires_grad=old.requires_grad)
        embeddings.patch_embeddings.num_patches = grid[0] * grid[1]
        embeddings.patch_embeddings.image_size = new_size
        if isinstance(encoder, ViTModel):
            embeddings.image_size = new_size
    # Inside a VisionEncoderDecoderModel this object is also its `config.encoder`.
    encoder.config.image_size = new_size[0] if new_size[0] == new_size[1] else list(new_size)


def position_table(encoder: PreTrainedModel) -> tuple[Tensor, tuple[int, int], int]:
    """Return a ViT's position embeddings (class tokens + N, width), grid of patches, and number of class tokens."""
    grid = _grid(_pair(encoder.config.image_size), _pair(encoder.config.patch_size))
    embeddings: Any = encoder.embeddings
    if isinstance(encoder, SiglipVisionModel):
        return embeddings.position_embedding.weight, grid, 0
    return embeddings.position_embeddings[0], grid, 1


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def resize_grid(positions: Tensor, old_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Resize positions `(old height * old width, d)` to `(height * width, d)` bilinearly; the corners stay."""
    image = positions.float().T.reshape(1, -1, *old_grid)  # (1, d, h, w)
    image = F.interpolate(image, size=grid, mode="bilinear", align_corners=True)
    return image.flatten(2)[0].T.contiguous().to(positions.dtype)


def vision_encoder_decoder(
    encoder: PreTrainedModel,
    decoder: PreTrainedModel,
    decoder_start_token_id: int,
    pad_token_id: int,
    eos_token_id: int | None = None,
) -> VisionEncoderDecoderModel:
    """Join an encoder, which reads an image, and a decoder, which writes tokens about the image, to one model.

    The special ids are written to both places where transformers looks: `config`, which turns labels into decoder
    inputs, and `generation_config`. The generation config is a new one, because the decoder's own may hold forced
    tokens and a maximal length, which sampling would obey and the loss would ignore. With `eos_token_id=None` every
    sequence has the length that is asked for. Raises `ValueError` for a decoder without cross-attention, and for an
    encoder that returns a map instead of tokens.
    """
    if not hasattr(encoder.config, "hidden_size"):
        raise ValueError(
            f"{type(encoder).__name__} has no hidden_size: it gives a map, or tokens of several widths, but a decoder reads "
            "tokens (B, N, hidden_size). Take a ViT, SigLIP, DINOv2 or Swin; ConvNeXt, ResNet and the like are not served."
        )
    if "encoder_hidden_states" not in inspect.signature(decoder.forward).parameters:
        raise ValueError(
            f"{type(decoder).__name__} has no cross-attention, so it cannot look at an image: take a "
            "VisionDecoderForCausalLM, or a BERT, GPT-2 or TrOCR decoder made with add_cross_attention=True."
        )
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=decoder_start_token_id, pad_token_id=pad_token_id, eos_token_id=eos_token_id
    )
    model.config.decoder_start_token_id = decoder_start_token_id
    model.config.pad_token_id = pad_token_id
    model.config.eos_token_id = eos_token_id
    return model
