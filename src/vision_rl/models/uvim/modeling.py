"""UViM's stage I: an autoencoder that writes a dense map as a short sequence of codes, and reads it back.

Both directions see the image. The paper's panoptic and colourisation models (stage II) write such codes; this network
makes their labels, and turns what they sample into a map. From big_vision's `models/proj/uvim/vit.py`. Each of its two
transformers, with its patches of the image and its positions, is the paper's ViT, to whose embeddings something is
added: the map in the encoder, the codes in the decoder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from vision_rl.manifest import TRAINING_STATE, loading
from vision_rl.models.encoder import vit_encoder
from vision_rl.models.uvim.codebook import Codebook, nearest_codewords
from vision_rl.models.uvim.configuration import UViMConfig


@dataclass
class UViMOutput(ModelOutput):
    """What `UViMModel` returns.

    Args:
        loss: mean over the images; the sum of the reconstruction losses, and of the commitment loss by its weight.
        codes: `(B, L)`, 0 .. K - 1.
        bottleneck: `(B, L, D)`, what was quantised: the encoder's vectors, standardised.
        reconstruction_losses: one an output, by name.
        commitment_loss: the mean squared distance between vectors and codewords.
        logits: with `output_logits`, `(B, H, W, C)` an output, by name.
    """

    loss: Tensor | None = None
    codes: Tensor | None = None
    bottleneck: Tensor | None = None
    reconstruction_losses: dict[str, Tensor] | None = None
    commitment_loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None


def to_patches(maps: Tensor, patch_size: int) -> Tensor:
    """`(B, H, W, C)` to `(B, N, C, P)`: N patches row by row, each of P pixels row by row."""
    x = F.pixel_unshuffle(maps.permute(0, 3, 1, 2), patch_size)  # (B, C*P, rows, columns)
    return x.flatten(2).transpose(1, 2).unflatten(2, (-1, patch_size**2))


def from_patches(patches: Tensor, patch_size: int) -> Tensor:
    """`(B, N, C, P)` to `(B, H, W, C)`, of square maps; the inverse of `to_patches`."""
    grid_size = round(patches.shape[1] ** 0.5)
    x = patches.flatten(2).transpose(1, 2).unflatten(2, (grid_size, grid_size))  # (B, C*P, rows, columns)
    return F.pixel_shuffle(x, patch_size).permute(0, 2, 3, 1)


def resize_grid(x: Tensor, size: int) -> Tensor:
    """Tokens `(B, n, width)` of a square grid to `(B, size * size, width)`, as `jax.image.resize(..., "linear")`."""
    old_size = round(x.shape[1] ** 0.5)
    grid = x.transpose(1, 2).unflatten(2, (old_size, old_size)).float()  # (B, width, rows, columns)
    grid = F.interpolate(grid, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(x.dtype)


def drop_codes(x: Tensor, code_dropout: str) -> Tensor:
    """Set some of the vectors `(B, L, D)` to zero, so that the decoder does not lean on every code.

    The share that is kept is uniform over 0 .. 1, drawn for each image; what is kept is not scaled up. "random" keeps
    any, "ordered" the first ones.
    """
    batch_size, length, _ = x.shape
    importance = torch.linspace(1, 0, length + 2, device=x.device)[1:-1]  # (L,)
    keep = importance > torch.rand(batch_size, 1, device=x.device)  # (B, L)
    if code_dropout == "random":
        keep = keep.gather(1, torch.rand_like(keep, dtype=torch.float32).argsort(1))
    return x * keep[..., None]


class PatchStem(nn.Module):
    """A patch of a continuous map to a vector: a linear layer over its channels and pixels.

    Stem and head keep channels and pixels apart in their weights, as the reference does: its Adafactor factors the two
    largest of the three axes.
    """

    def __init__(self, num_channels: int, patch_pixels: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_channels, patch_pixels, hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, patches: Tensor) -> Tensor:
        """`(B, N, C, P)` to `(B, N, hidden_size)`."""
        return patches.flatten(2).to(self.weight.dtype) @ self.weight.flatten(0, 1) + self.bias


class ClassPatchStem(PatchStem):
    """A patch of class numbers to a vector: the linear layer over its one-hot classes, as a sum of rows of its weight.

    A class that does not exist (-1 is void) has an all-zero one-hot, as in the reference: its pixel adds nothing. The
    one-hots themselves would be 134 * 256 numbers a token.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """`(B, N, 1, P)`, integers, to `(B, N, hidden_size)`."""
        num_classes, num_pixels, _ = self.weight.shape
        known = (patches >= 0) & (patches < num_classes)
        rows = patches.where(known, 0) * num_pixels + torch.arange(num_pixels, device=patches.device)
        x = F.embedding_bag(
            rows.flatten(0, 2),  # (B*N, P), a bag a patch
            self.weight.flatten(0, 1),
            mode="sum",
            per_sample_weights=known.flatten(0, 2).to(self.weight.dtype),
        )
        return x.unflatten(0, patches.shape[:2]) + self.bias


class PatchHead(nn.Module):
    """A vector to the logits, or the values, of a patch."""

    def __init__(self, num_channels: int, patch_pixels: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_channels, patch_pixels, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_channels, patch_pixels))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., N, hidden_size)` to `(..., N, C, P)`."""
        return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(-1, self.bias.shape)


class UViMModel(PreTrainedModel):
    """Dense maps to codes and back, given the image.

    **Training.** In training mode the decoder misses some codes (`code_dropout`), and every forward pass collects what
    the codebook is to learn. So a training loop has one call to make itself: `update_codebook()`, once an optimisation
    step, after `optimizer.step()`, on every rank.
    """

    config: UViMConfig
    config_class = UViMConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["codebook.dictionary", "codebook.counts"]

    def __init__(self, config: UViMConfig):
        super().__init__(config)
        patch_pixels, width = config.patch_size**2, config.hidden_size
        stem = PatchStem if config.regression else ClassPatchStem
        self.stems = nn.ModuleDict({name: stem(n, patch_pixels, width) for name, n in config.outputs.items()})
        self.encoder: Any = self._transformer(config.num_encoder_layers)
        self.encoder_head = nn.Linear(width, config.code_dim)
        self.codebook = Codebook(
            config.codebook_size, config.code_dim, config.codebook_momentum, config.min_code_count
        )
        self.decoder_stem = nn.Linear(config.code_dim, width)
        self.decoder: Any = self._transformer(config.num_decoder_layers)
        self.heads = nn.ModuleDict({name: PatchHead(n, patch_pixels, width) for name, n in config.outputs.items()})
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, subfolder: str = "", **kwargs):
        """As transformers'. A folder that a trainer has saved is compared with its `manifest.json` before.

        Raises:
            DamagedFolder: naming the file that is missing, or is not what was saved.
        """
        with loading(Path(pretrained_model_name_or_path or "") / subfolder, without=TRAINING_STATE):
            return super().from_pretrained(pretrained_model_name_or_path, *args, subfolder=subfolder, **kwargs)

    def _transformer(self, num_layers: int) -> PreTrainedModel:
        config = self.config
        return vit_encoder(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The reference's initialisation, but for the transformers, which have initialised themselves."""
        if isinstance(module, PatchHead):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PatchStem | nn.Linear):
            fan_in = module.in_features if isinstance(module, nn.Linear) else module.weight[..., 0].numel()
            std = fan_in**-0.5 / 0.87962566103423978  # LeCun normal as Flax draws it: see `VisionDecoderForCausalLM`
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            init.zeros_(module.bias)
        elif isinstance(module, Codebook):
            init.normal_(module.dictionary, std=len(module.counts) ** -0.5)
            init.ones_(module.counts)
            init.zeros_(module.num_updates)

    def forward(self, pixel_values: Tensor, targets: dict[str, Tensor], output_logits: bool = False) -> UViMOutput:
        """The loss of writing `targets` as codes and reading them back.

        Args:
            pixel_values: `(B, 3, image_size, image_size)`, in [-1, 1].
            targets: an entry for each of `config.outputs`. Of classes: integers `(B, H, W)`, where a class that does not
                exist, such as -1, is neither seen nor learned. With `regression`: floats `(B, H, W, C)` in [-1, 1].
            output_logits: return the logits of all pixels too: a quarter of a gigabyte an image in the panoptic model.

        Raises:
            ValueError: for images or targets of another shape, or targets that are too many, too few or of another kind.
        """
        patches = self._target_patches(targets, pixel_values)
        bottleneck = self._bottleneck(patches, pixel_values)  # (B, L, D)
        codes, codewords = self.codebook(bottleneck)
        quantized = bottleneck + (codewords - bottleneck).detach()  # straight-through
        if self.training and self.config.code_dropout != "none":
            quantized = drop_codes(quantized, self.config.code_dropout)
        x = self._read(quantized, pixel_values)  # (B, N, width)

        losses = {name: self._reconstruction_loss(name, x, patches[name]) for name in self.heads}
        commitment_loss = F.mse_loss(bottleneck, codewords)
        return UViMOutput(
            loss=sum(losses.values()) + self.config.commitment_weight * commitment_loss,
            codes=codes,
            bottleneck=bottleneck,
            reconstruction_losses=losses,
            commitment_loss=commitment_loss,
            logits=self._logits(x) if output_logits else None,
        )

    @torch.no_grad()
    def encode(self, targets: dict[str, Tensor], pixel_values: Tensor) -> Tensor:
        """`targets`, as in `forward`, to codes `(B, L)`, 0 .. K - 1: one lower than the tokens of stage II."""
        bottleneck = self._bottleneck(self._target_patches(targets, pixel_values), pixel_values)
        return nearest_codewords(bottleneck, self.codebook.codewords)

    def decode(self, codes: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Codes `(B, L)` to `(B, H, W, C)` an output, by name: logits of classes, or values that are not clipped.

        Code -1 is the last codeword, as in the reference, where token 0 of stage II becomes code -1. The logits of an
        image take a quarter of a gigabyte in the panoptic model.
        """
        if codes.shape != (len(pixel_values), self.config.code_length):
            raise ValueError(
                f"codes has the shape {tuple(codes.shape)}; for {len(pixel_values)} images it must be "
                f"{(len(pixel_values), self.config.code_length)}."
            )
        least, most = (int(code) for code in codes.aminmax())  # on a GPU an index out of range would end the process
        if codes.is_floating_point() or least < -1 or most >= self.config.codebook_size:
            raise ValueError(
                f"codes must be integers from -1 to {self.config.codebook_size - 1} (codebook_size - 1); they are of "
                f"{codes.dtype}, from {least} to {most}."
            )
        self._check_images(pixel_values)
        return self._logits(self._read(self.codebook.codewords[codes], pixel_values))

    def update_codebook(self) -> dict[str, float]:
        """Let the codebook learn from all forward passes in training mode since the last call, on all ranks.

        Call it once an optimisation step, after `optimizer.step()`, on every rank: a batch of 8 images then does the same
        whole, in 2 accumulated micro-batches of 4, or on 2 ranks with 4 each. Until then all passes see the old codewords.
        The outcome is equal on all ranks, split codes included, so DistributedDataParallel may broadcast buffers or not.
        Do not recompute the activations of the model as a whole, or a pass counts twice; those of single layers, as
        transformers does, is fine.

        Returns:
            "codebook_max_ratio", the most frequent code's share of the step's codes, and "codebook_zeros_ratio", the share
            of the codebook that the step did not use.

        Raises:
            RuntimeError: if there was no pass in training mode, the codebook is not in float32, or it is too large.
        """
        return self.codebook.update()

    def _check_images(self, pixel_values: Tensor) -> None:
        size = self.config.image_size
        if pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; this model reads (B, 3, {size}, {size})."
            )

    def _target_patches(self, targets: dict[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
        """Targets, checked, as patches `(B, N, C, P)`; class numbers have one channel."""
        self._check_images(pixel_values)
        if set(targets) != set(self.config.outputs):
            raise ValueError(f"targets has {sorted(targets)}; this model predicts {sorted(self.config.outputs)}.")
        maps = (len(pixel_values), self.config.image_size, self.config.image_size)
        patches = {}
        for name, target in targets.items():
            shape = (*maps, self.config.outputs[name]) if self.config.regression else maps
            if target.shape != shape or target.is_floating_point() != self.config.regression:
                raise ValueError(
                    f"targets[{name!r}] is {target.dtype} {tuple(target.shape)}; it must be "
                    f"{'floats' if self.config.regression else 'integers'} {shape}."
                )
            target = target if self.config.regression else target[..., None].long()
            patches[name] = to_patches(target, self.config.patch_size)
        return patches

    def _bottleneck(self, patches: dict[str, Tensor], pixel_values: Tensor) -> Tensor:
        """The vectors to quantise, `(B, L, D)` in float32, standardised each."""
        x = sum(stem(patches[name]) for name, stem in self.stems.items()) + self.encoder.embeddings(pixel_values)
        x = self._run(self.encoder, x)  # (B, N, width)
        x = self.encoder_head(resize_grid(x, self.config.code_grid_size)).float()  # (B, L, D)
        return F.layer_norm(x, x.shape[-1:], eps=1e-5)

    def _read(self, codewords: Tensor, pixel_values: Tensor) -> Tensor:
        """Codewords `(B, L, D)` to what the heads read, `(B, N, width)`."""
        x = self.decoder_stem(codewords.to(self.decoder_stem.weight.dtype))
        x = resize_grid(x, self.config.grid_size) + self.decoder.embeddings(pixel_values)
        return self._run(self.decoder, x)

    def _run(self, vit: Any, x: Tensor) -> Tensor:
        return vit.post_layernorm(vit.encoder(inputs_embeds=x).last_hidden_state)

    def _logits(self, x: Tensor) -> dict[str, Tensor]:
        return {name: from_patches(head(x), self.config.patch_size) for name, head in self.heads.items()}

    def _reconstruction_loss(self, name: str, x: Tensor, patches: Tensor) -> Tensor:
        """Mean over images, patches and pixels, one image at a time.

        The logits of an image are made again for its gradient: those of a whole batch are what would fill the memory.
        """
        losses = [
            checkpoint(self._image_loss, name, *image, use_reentrant=False, preserve_rng_state=False)
            for image in zip(x, patches, strict=True)
        ]
        return torch.stack(losses).mean()

    def _image_loss(self, name: str, x: Tensor, patches: Tensor) -> Tensor:
        logits = self.heads[name](x).float()  # (N, C, P)
        if self.config.regression:
            return F.mse_loss(logits, patches.float())
        classes = patches[:, 0]  # (N, P)
        known = (classes >= 0) & (classes < logits.shape[1])
        # A pixel without a class costs nothing but counts in the mean, as in the reference.
        return F.cross_entropy(logits, classes.where(known, -100), reduction="sum") / classes.numel()


AutoModel.register(UViMConfig, UViMModel, exist_ok=True)
