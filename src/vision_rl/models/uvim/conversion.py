"""The published UViM and ViT checkpoints of big_vision (npz files of JAX arrays) as transformers models.

UViM's files are `gs://big_vision/uvim/{panoptic,color,depth}_stage{I,II}_params.npz`; the ViTs that stage II starts
from are in `gs://vit_models/augreg/`. The names of the arrays changed over the years: this module understands all
names that big_vision's own loaders understand. The sizes of a model are the shapes of the arrays.
"""

import math
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, SiglipVisionModel, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from vision_rl.arguments import naming_arguments
from vision_rl.models.decoder import VisionDecoderConfig, VisionDecoderForCausalLM
from vision_rl.models.encoder import resize_grid, vision_encoder_decoder, vit_encoder
from vision_rl.models.uvim.configuration import UViMConfig
from vision_rl.models.uvim.modeling import UViMModel


Checkpoint = str | PathLike | Mapping[str, np.ndarray]


@naming_arguments
def load_big_vision_stage1(checkpoint: Checkpoint, config: UViMConfig | None = None) -> UViMModel:
    """Load a checkpoint of stage I, weights and codebook, into a `UViMModel` in evaluation mode.

    Args:
        checkpoint: path of an npz file, or a mapping from names to arrays.
        config: sizes and settings. By default the sizes are the shapes of the arrays, and settings that no array tells
            are those of the published models: one code for four patches; the output "color" has numbers, other outputs
            have classes. If `config.image_size` differs from the checkpoint's, the positions of the patches are
            resized bilinearly, and the corners stay.

    Raises:
        ValueError: for missing or unexpected arrays, for arrays of another shape than the model's, for numbers that
            are not finite, and for a file that is no npz or is broken.
    """
    arrays = BigVisionArrays(checkpoint)
    model = UViMModel(config or _stage1_config(arrays))
    _load(stage1_entries(model), arrays)
    return model.eval()


@naming_arguments
def load_big_vision_stage2(
    checkpoint: Checkpoint, config: VisionEncoderDecoderConfig | None = None
) -> VisionEncoderDecoderModel:
    """Load a checkpoint of stage II, a model that writes codes about an image, in evaluation mode.

    Arguments and errors are those of `load_big_vision_stage1`. Token 0 starts a sequence and pads, token `c + 1` is
    code `c`, and nothing ends a sequence: every sequence has `model.config.decoder.max_position_embeddings` tokens,
    256 in the published models. Token 0 is never written (`suppress_tokens`); the reference allows token 0, as the
    last code.
    """
    arrays = BigVisionArrays(checkpoint)
    model = _stage2_model(arrays) if config is None else VisionEncoderDecoderModel(config)
    _load(stage2_entries(model), arrays)
    length = model.decoder.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        decoder_start_token_id=0, pad_token_id=0, suppress_tokens=[0], max_new_tokens=length
    )
    model.config.decoder_start_token_id = model.config.pad_token_id = 0
    model.config.eos_token_id = None
    return model.eval()


def _stage2_model(arrays: "BigVisionArrays") -> VisionEncoderDecoderModel:
    vocab_size, width = arrays["decoder/EmbedTargets/embedding"].shape
    decoder_config = VisionDecoderConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=arrays.num_blocks("decoder/EncDecBlock"),
        num_attention_heads=arrays["decoder/EncDecBlock0/SelfAttn/query/kernel"].shape[1],
        intermediate_size=arrays["decoder/EncDecBlock0/MLP/Dense_0/kernel"].shape[1],
        max_position_embeddings=arrays["pos_embedding_decoder"].shape[1],
    )
    encoder = vit_encoder(**_vit_sizes(arrays, "encoder", "EmbedPatches", "pos_embedding_encoder"))
    decoder = VisionDecoderForCausalLM(decoder_config)
    return vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0)


@naming_arguments
def load_big_vision_vit(checkpoint: Checkpoint, image_size: int | None = None) -> SiglipVisionModel:
    """Load the paper's ViT encoder from a checkpoint of a classifier, without the classifier's head and class token.

    `image_size` resizes the positions. `checkpoint` and errors are as in `load_big_vision_stage1`.
    """
    arrays = BigVisionArrays(checkpoint)
    positions = arrays["pos_embedding"]
    num_patches = math.isqrt(positions.shape[1]) ** 2  # (1, 1 + N, width) with a class token, which comes first
    of_encoder = {name: array for name, array in arrays.items() if not re.match("cls$|head/|pre_logits/", name)}
    of_encoder["pos_embedding"] = positions[:, -num_patches:]  # (1, N, width)

    sizes = _vit_sizes(arrays, "Transformer", "embedding", "pos_embedding")
    encoder = vit_encoder(**sizes | ({} if image_size is None else {"image_size": image_size}))
    _load(vit_entries(encoder, "Transformer", "embedding", "pos_embedding"), of_encoder)
    return encoder.eval()


@naming_arguments
def convert_uvim(checkpoint: Checkpoint, output_dir: str | PathLike) -> UViMModel | VisionEncoderDecoderModel:
    """Save a checkpoint of stage I or of stage II in `output_dir`, so that `from_pretrained(output_dir)` loads it.

    Raises:
        ValueError: for a checkpoint of neither stage, for an `output_dir` that is a file, and as in
            `load_big_vision_stage1`.
    """
    if Path(output_dir).is_file():
        raise ValueError(f"{output_dir} is a file: the model needs a folder.")
    arrays = BigVisionArrays(checkpoint)
    model: UViMModel | VisionEncoderDecoderModel
    if "state/dictionary" in arrays:
        model = load_big_vision_stage1(arrays)
    elif "decoder/EmbedTargets/embedding" in arrays:
        model = load_big_vision_stage2(arrays)
    else:
        raise ValueError(
            "This is not a checkpoint of UViM: it has neither the codebook of stage I (state/dictionary) nor the decoder "
            f"of stage II (decoder/EmbedTargets/embedding). It has: {_listed(arrays)}."
        )
    model.save_pretrained(output_dir)
    return model


# --- the names of the arrays ----------------------------------------------------------------------------------------


class BigVisionArrays(Mapping[str, np.ndarray]):
    """The arrays of a checkpoint in float32, by the names that big_vision's present code gives them.

    The parameters have no prefix; the codebook is `state/dictionary` and `state/counts`. An array of an npz file is
    read only when it is asked for, because the largest file has 2.9 GB.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._file = None if isinstance(checkpoint, Mapping) else checkpoint
        self._arrays = checkpoint if isinstance(checkpoint, Mapping) else _open_npz(checkpoint)
        self._stored_names = present_names(self._arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._stored_names:  # a KeyError would print its sentence in quotes
            raise ValueError(f"The checkpoint has no `{name}`. It has: {_listed(self)}.")
        try:
            array = np.asarray(self._arrays[self._stored_names[name]])
        except _BROKEN as error:
            raise ValueError(f"{self._file} is broken at `{name}` ({error}): fetch it again.") from error
        if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, which numpy does not know
            array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"`{name}` of the checkpoint has the dtype {array.dtype}, which is not one of numbers.")
        return array.astype(np.float32, copy=False)

    def __contains__(self, name: object) -> bool:
        return name in self._stored_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored_names)

    def __len__(self) -> int:
        return len(self._stored_names)

    def num_blocks(self, prefix: str) -> int:
        """Return the number of transformer blocks whose names are `prefix` and a number."""
        return len({match[0] for name in self if (match := re.match(rf"{prefix}\d+/", name))})


_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, SyntaxError)


def _open_npz(path: str | PathLike) -> Mapping[str, np.ndarray]:
    try:
        arrays = np.load(path, allow_pickle=False)
    except (*_BROKEN, ValueError) as error:  # ValueError: the file is pickled, or in no format of numpy
        raise ValueError(
            f"{path} is not an npz file of arrays, or was not fetched completely: fetch it again."
        ) from error
    if not isinstance(arrays, Mapping):
        raise ValueError(f"{path} holds a single array, but a checkpoint is an npz file with many.")
    return arrays


def present_names(stored_names: Iterable[str]) -> dict[str, str]:
    """Map the names that present code uses to the names stored in a checkpoint, without the arrays of the optimiser.

    Old checkpoints differ in the prefix of the parameters, in the capitals of `Encoder` and `Decoder`, in the place of
    the ViT's positions, and in the numbers of a block's parts, which were counted across classes (LayerNorm_0,
    MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3).
    """
    stored = list(stored_names)
    prefix = next((p for p in ("params/", "opt/target/") if any(name.startswith(p) for name in stored)), "")
    names = {name.removeprefix(prefix): name for name in stored if name.startswith((prefix, "state/"))}

    numbers = defaultdict(set)  # the numbers that the parts of each class have in each block
    numbered = re.compile(r"(.*(?:LayerNorm|MultiHeadDotProductAttention|MlpBlock)_)(\d+)(/.*)")
    for name in names:
        if match := numbered.fullmatch(name):
            numbers[match[1]].add(int(match[2]))

    def present(name: str) -> str:
        if match := numbered.fullmatch(name):
            name = f"{match[1]}{sorted(numbers[match[1]]).index(int(match[2]))}{match[3]}"
        name = re.sub("^(Encoder|Decoder)/", lambda match: match[0].lower(), name)
        return re.sub("^Transformer/(posembed_input/)?pos_embedding$", "pos_embedding", name)

    return {present(name): stored_name for name, stored_name in names.items()}


class Entry(NamedTuple):
    """An array of a checkpoint: its name, the model's tensor for it, its shape, and the tensor's order of its axes.

    `axes` numbers the array's axes after the axis of the heads is merged with its neighbour, as torch stores them.
    `is_grid` marks the positions of patches, which may belong to images of another size.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    is_grid: bool = False

    def fitted(self, array: np.ndarray) -> np.ndarray:
        """Return the array; a grid of positions is resized to the model's grid."""
        if not self.is_grid or array.ndim != 3 or array.shape[::2] != self.shape[::2]:
            return array
        old, new = math.isqrt(array.shape[1]), math.isqrt(self.shape[1])
        if old == new or old**2 != array.shape[1]:
            return array
        return resize_grid(torch.tensor(array[0]), (old, old), (new, new))[None].numpy()

    def to_torch(self, array: np.ndarray) -> Tensor:
        merged = [self.tensor.shape[self.axes.index(axis)] for axis in range(len(self.axes))]
        return torch.tensor(array.reshape(merged).transpose(self.axes))


def stage1_entries(model: UViMModel) -> Iterator[Entry]:
    """Yield the entries of all arrays of a checkpoint of stage I."""
    for name in model.config.outputs:
        stem: Any = model.stems[name]
        head: Any = model.heads[name]
        yield from _as_it_is(f"embedding_{name}", kernel=stem.weight, bias=stem.bias)
        num_channels, num_pixels, width = head.weight.shape
        yield Entry(f"head_{name}/kernel", head.weight, (width, num_channels, num_pixels), (1, 2, 0))
        yield from _as_it_is(f"head_{name}", bias=head.bias)
    yield from vit_entries(model.encoder, "encoder", "ctx_enc_embedding", "pos_embedding_encoder")
    yield from _dense("encoder_head", model.encoder_head)
    yield from _as_it_is("state", dictionary=model.codebook.dictionary, counts=model.codebook.counts)
    yield from _dense("decoder_stem", model.decoder_stem)
    yield from vit_entries(model.decoder, "decoder", "ctx_dec_embedding", "pos_embedding_decoder")


def stage2_entries(model: VisionEncoderDecoderModel) -> Iterator[Entry]:
    """Yield the entries of all arrays of a checkpoint of stage II; `model` has our ViT and our decoder."""
    decoder: Any = model.decoder
    num_heads = decoder.config.num_attention_heads
    yield from vit_entries(model.encoder, "encoder", "EmbedPatches", "pos_embedding_encoder")
    yield from _as_it_is("decoder/EmbedTargets", embedding=decoder.embed_tokens.weight)
    yield _positions("pos_embedding_decoder", decoder.embed_positions)
    for i, layer in enumerate(decoder.layers):
        block = f"decoder/EncDecBlock{i}"
        yield from _layer_norm(f"{block}/LayerNorm1", layer.layer_norm1)
        yield from _attention(f"{block}/SelfAttn", layer.self_attn, num_heads)
        yield from _layer_norm(f"{block}/LayerNorm2", layer.layer_norm2)
        yield from _attention(f"{block}/CrossAttn", layer.cross_attn, num_heads)
        yield from _layer_norm(f"{block}/LayerNorm3", layer.layer_norm3)
        yield from _mlp(f"{block}/MLP", layer.mlp)
    yield from _layer_norm("decoder/LayerNorm", decoder.layer_norm)
    yield from _dense("decoder/LogitsDense", decoder.lm_head)


def vit_entries(encoder: Any, transformer: str, patches: str, positions: str) -> Iterator[Entry]:
    """Yield the entries of a `vit_encoder`, given the checkpoint's names of its transformer, patches and positions."""
    conv = encoder.embeddings.patch_embedding
    width, channels, height, columns = conv.weight.shape
    yield Entry(f"{patches}/kernel", conv.weight, (height, columns, channels, width), (3, 2, 0, 1))
    yield from _as_it_is(patches, bias=conv.bias)
    yield _positions(positions, encoder.embeddings.position_embedding)._replace(is_grid=True)
    for i, layer in enumerate(encoder.encoder.layers):
        block = f"{transformer}/encoderblock_{i}"
        yield from _layer_norm(f"{block}/LayerNorm_0", layer.layer_norm1)
        yield from _attention(
            f"{block}/MultiHeadDotProductAttention_0", layer.self_attn, encoder.config.num_attention_heads
        )
        yield from _layer_norm(f"{block}/LayerNorm_1", layer.layer_norm2)
        yield from _mlp(f"{block}/MlpBlock_0", layer.mlp)
    yield from _layer_norm(f"{transformer}/encoder_norm", encoder.post_layernorm)


def _as_it_is(prefix: str, **tensors: Tensor) -> Iterator[Entry]:
    for name, tensor in tensors.items():
        yield Entry(f"{prefix}/{name}", tensor, tuple(tensor.shape), tuple(range(tensor.ndim)))


def _layer_norm(name: str, layer_norm: nn.LayerNorm) -> Iterator[Entry]:
    return _as_it_is(name, scale=layer_norm.weight, bias=layer_norm.bias)


def _positions(name: str, embedding: nn.Embedding) -> Entry:
    return Entry(name, embedding.weight, (1, *embedding.weight.shape), (0, 1))


def _dense(name: str, linear: nn.Linear) -> Iterator[Entry]:
    yield Entry(f"{name}/kernel", linear.weight, (linear.in_features, linear.out_features), (1, 0))
    yield from _as_it_is(name, bias=linear.bias)


def _mlp(name: str, mlp: Any) -> Iterator[Entry]:
    yield from _dense(f"{name}/Dense_0", mlp.fc1)
    yield from _dense(f"{name}/Dense_1", mlp.fc2)


def _attention(name: str, attention: Any, num_heads: int) -> Iterator[Entry]:
    """Yield the entries of an attention layer, which in Flax has an axis for the heads.

    Kernels of queries, keys and values have the shape (width, H, D), and the output's kernel (H, D, width).
    """
    width = attention.q_proj.out_features
    heads = (num_heads, width // num_heads)
    for part, linear in {"query": attention.q_proj, "key": attention.k_proj, "value": attention.v_proj}.items():
        yield Entry(f"{name}/{part}/kernel", linear.weight, (linear.in_features, *heads), (1, 0))
        if linear.bias is not None:
            yield Entry(f"{name}/{part}/bias", linear.bias, heads, (0,))
    out = attention.out_proj
    yield Entry(f"{name}/out/kernel", out.weight, (*heads, out.out_features), (1, 0))
    if out.bias is not None:
        yield from _as_it_is(f"{name}/out", bias=out.bias)


# --- sizes and loading ----------------------------------------------------------------------------------------------


def _vit_sizes(arrays: BigVisionArrays, transformer: str, patches: str, positions: str) -> dict[str, Any]:
    """Return the arguments of `vit_encoder` that fit the shapes of the arrays."""
    patch_size, _, _, width = arrays[f"{patches}/kernel"].shape
    block = f"{transformer}/encoderblock_0"
    return {
        "image_size": math.isqrt(arrays[positions].shape[1]) * patch_size,
        "patch_size": patch_size,
        "hidden_size": width,
        "num_hidden_layers": arrays.num_blocks(f"{transformer}/encoderblock_"),
        "num_attention_heads": arrays[f"{block}/MultiHeadDotProductAttention_0/query/kernel"].shape[1],
        "intermediate_size": arrays[f"{block}/MlpBlock_0/Dense_0/kernel"].shape[1],
    }


def _stage1_config(arrays: BigVisionArrays) -> UViMConfig:
    sizes = _vit_sizes(arrays, "encoder", "ctx_enc_embedding", "pos_embedding_encoder")
    num_encoder_layers = sizes.pop("num_hidden_layers")
    codebook_size, code_dim = arrays["state/dictionary"].shape
    outputs = [match[1] for name in arrays if (match := re.fullmatch("head_(.*)/bias", name))]
    return UViMConfig(
        **sizes,
        num_encoder_layers=num_encoder_layers,
        num_decoder_layers=arrays.num_blocks("decoder/encoderblock_"),
        codebook_size=codebook_size,
        code_dim=code_dim,
        code_length=(sizes["image_size"] // sizes["patch_size"] // 2) ** 2,
        outputs={name: arrays[f"head_{name}/bias"].shape[0] for name in outputs},
        regression="color" in outputs,
    )


@torch.no_grad()
def _load(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]) -> None:
    """Copy the arrays into the tensors of `entries`; no tensor is changed if names are missing or unexpected."""
    wanted = {entry.name: entry for entry in entries}
    missing, unexpected = wanted.keys() - arrays.keys(), arrays.keys() - wanted.keys()
    if missing or unexpected:
        raise ValueError(
            "The checkpoint does not fit the model."
            + (f" Missing: {_listed(missing)}." if missing else "")
            + (f" Unexpected: {_listed(unexpected)}." if unexpected else "")
        )
    for name, entry in wanted.items():
        array = entry.fitted(arrays[name])
        if array.shape != entry.shape:
            raise ValueError(f"`{name}` has the shape {array.shape} in the checkpoint; the model needs {entry.shape}.")
        if not np.isfinite(array).all():
            raise ValueError(f"`{name}` of the checkpoint has numbers that are not finite: fetch it again.")
        entry.tensor.copy_(entry.to_torch(array))


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
