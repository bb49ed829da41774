"""UViM's stage I: an autoencoder that writes a dense map as a short sequence of codes, and reads it back.

Both the encoder and the decoder see the image. The paper's panoptic and colourisation models (stage II) write such
codes; this network makes their labels, and turns the codes that they sample into a map. The source is big_vision's
`models/proj/uvim/vit.py`. Each of the two transformers is the paper's ViT with its own patches of the image and
positions. To the embeddings of these patches the encoder adds the map, and the decoder adds the codes.
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
    """The output of `UViMModel`.

    Args:
        loss: the sum of the reconstruction losses and the weighted commitment loss; a mean over the images.
        codes: `(B, L)`, 0 .. K - 1.
        bottleneck: `(B, L, D)`, the encoder's vectors that were quantised; each is standardised.
        reconstruction_losses: the reconstruction loss of each output, by the output's name.
        commitment_loss: the mean squared difference between the components of the vectors and of their codewords.
        logits: `(B, H, W, C)` of each output, by the output's name; only with `output_logits`.
    """

    loss: Tensor | None = None
    codes: Tensor | None = None
    bottleneck: Tensor | None = None
    reconstruction_losses: dict[str, Tensor] | None = None
    commitment_loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None


def to_patches(maps: Tensor, patch_size: int) -> Tensor:
    """Cut maps `(B, H, W, C)` into patches `(B, N, C, P)`: N patches row by row, each of P pixels row by row."""
    x = F.pixel_unshuffle(maps.permute(0, 3, 1, 2), patch_size)  # (B, C*P, rows, columns)
    return x.flatten(2).transpose(1, 2).unflatten(2, (-1, patch_size**2))


def from_patches(patches: Tensor, patch_size: int) -> Tensor:
    """Join patches `(B, N, C, P)` to square maps `(B, H, W, C)`; the inverse of `to_patches`."""
    grid_size = round(patches.shape[1] ** 0.5)
    x = patches.flatten(2).transpose(1, 2).unflatten(2, (grid_size, grid_size))  # (B, C*P, rows, columns)
    return F.pixel_shuffle(x, patch_size).permute(0, 2, 3, 1)


def resize_grid(x: Tensor, size: int) -> Tensor:
    """Resize a square grid of tokens `(B, n, width)` to `(B, size * size, width)`, as "linear" of jax.image.resize."""
    old_size = round(x.shape[1] ** 0.5)
    grid = x.transpose(1, 2).unflatten(2, (old_size, old_size)).float()  # (B, width, rows, columns)
    grid = F.interpolate(grid, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(x.dtype)


def drop_codes(x: Tensor, code_dropout: str) -> Tensor:
    """Set some of the vectors `(B, L, D)` to zero, so that the decoder does not depend on every single code.

    The share of vectors that is kept is drawn for each image, uniformly from 0 .. 1; kept vectors are not scaled up.
    "random" keeps any vectors, "ordered" keeps the first ones.
    """
    batch_size, length, _ = x.shape
    importance = torch.linspace(1, 0, length + 2, device=x.device)[1:-1]  # (L,)
    keep = importance > torch.rand(batch_size, 1, device=x.device)  # (B, L)
    if code_dropout == "random":
        keep = keep.gather(1, torch.rand_like(keep, dtype=torch.float32).argsort(1))
    return x * keep[..., None]


class PatchStem(nn.Module):
    """Embeds a patch of a continuous map: a linear layer over the channels and pixels of the patch.

    The weights of stem and head have separate axes for channels and pixels, as in the reference, whose Adafactor
    factors the two largest of the three axes.
    """

    def __init__(self, num_channels: int, patch_pixels: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_channels, patch_pixels, hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, patches: Tensor) -> Tensor:
        """Return the embeddings `(B, N, hidden_size)` of patches `(B, N, C, P)`."""
        return patches.flatten(2).to(self.weight.dtype) @ self.weight.flatten(0, 1) + self.bias


class ClassPatchStem(PatchStem):
    """Embeds a patch of class numbers: a linear layer over one-hot classes, computed as a sum of rows of the weight.

    A class that does not exist (-1 is void) has an all-zero one-hot vector, as in the reference, so its pixel adds
    nothing. The one-hot vectors are never formed: a panoptic model would need 134 * 256 numbers a token for them.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """Return the embeddings `(B, N, hidden_size)` of patches `(B, N, 1, P)` of integers."""
        num_classes, num_pixels, _ = self.weight.shape
        known = (patches >= 0) & (patches < num_classes)
        rows = patches.where(known, 0) * num_pixels + torch.arange(num_pixels, device=patches.device)
        x = F.embedding_bag(
            rows.flatten(0, 2),  # (B*N, P), one bag for each patch
            self.weight.flatten(0, 1),
            mode="sum",
            per_sample_weights=known.flatten(0, 2).to(self.weight.dtype),
        )
        return x.unflatten(0, patches.shape[:2]) + self.bias


class PatchHead(nn.Module):
    """Maps a vector to the logits of the classes, or to the values, of all pixels of a patch."""

    def __init__(self, num_channels: int, patch_pixels: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_channels, patch_pixels, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_channels, patch_pixels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits or values `(..., N, C, P)` of the patches of vectors `(..., N, hidden_size)`."""
        return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(-1, self.bias.shape)


class UViMModel(PreTrainedModel):
    """UViM's stage I: encodes dense maps as codes and decodes codes to maps, given the image.

    **Training.** In training mode the decoder misses some codes (`code_dropout`), and every forward pass collects the
    vectors that the codebook learns from. So a training loop must call `update_codebook()` itself, once an
    optimisation step, after `optimizer.step()`, on every rank.
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
        """Load a model as transformers does, after comparing a folder that a trainer saved with its `manifest.json`.

        Raises:
            DamagedFolder: if a file is missing or differs from the saved file; the error names the file.
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
        """Initialise a module as the reference does; the two transformers have initialised themselves already."""
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
        """Compute the loss of encoding `targets` as codes and decoding these codes.

        Args:
            pixel_values: `(B, 3, image_size, image_size)`, in [-1, 1].
            targets: a map for each of `config.outputs`. Classes are integers `(B, H, W)`; a pixel of a class that does
                not exist, such as -1, is neither read nor learned. With `regression`, maps are floats `(B, H, W, C)`
                in [-1, 1].
            output_logits: whether to return the logits of all pixels too, which take a quarter of a gigabyte an image
                in the panoptic model.

        Raises:
            ValueError: for images or targets of another shape, and for targets that are too many, too few or of
                another kind.
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
        """Encode `targets`, as in `forward`, as codes `(B, L)`, 0 .. K - 1; a token of stage II is its code plus 1."""
        bottleneck = self._bottleneck(self._target_patches(targets, pixel_values), pixel_values)
        return nearest_codewords(bottleneck, self.codebook.codewords)

    def decode(self, codes: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        """Decode codes `(B, L)` to a map `(B, H, W, C)` for each output, by name: class logits, or unclipped values.

        Code -1 is the last codeword, as in the reference, where token 0 of stage II becomes code -1. The logits of an
        image take a quarter of a gigabyte in the panoptic model.

        Raises:
            ValueError: for codes of another shape, that are no integers, or outside of -1 .. K - 1, and for images of
                another shape.
        """
        if codes.shape != (len(pixel_values), self.config.code_length):
            raise ValueError(
                f"codes has the shape {tuple(codes.shape)}; for {len(pixel_values)} images it must be "
                f"{(len(pixel_values), self.config.code_length)}."
            )
        least, most = (int(code) for code in codes.aminmax())  # an index out of range on a GPU would end the process
        if codes.is_floating_point() or least < -1 or most >= self.config.codebook_size:
            raise ValueError(
                f"codes must be integers from -1 to {self.config.codebook_size - 1} (codebook_size - 1); they are of "
                f"{codes.dtype}, from {least} to {most}."
            )
        self._check_images(pixel_values)
        return self._logits(self._read(self.codebook.codewords[codes], pixel_values))

    def update_codebook(self) -> dict[str, float]:
        """Update the codebook from all forward passes in training mode since the last call, on all ranks.

        Call this method once an optimisation step, after `optimizer.step()`, on every rank. A batch of 8 images then
        has the same effect whole, in 2 accumulated micro-batches of 4, or on 2 ranks with 4 images each. Until the
        call, all forward passes see the old codewords. The new codebook is equal on all ranks, split codes included,
        so DistributedDataParallel may broadcast buffers or not. Do not recompute the activations of the model as a
        whole, because each pass would then count twice; recomputing single layers, as transformers does, is fine.

        Returns:
            "codebook_max_ratio", the most frequent code's share of the step's codes, and "codebook_zeros_ratio", the
            share of the codebook that the step did not use.

        Raises:
            RuntimeError: if there was no pass in training mode, if the codebook is not in float32, or if the codebook
                is too large for the batch.
        """
        return self.codebook.update()

    def _check_images(self, pixel_values: Tensor) -> None:
        size = self.config.image_size
        if pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; this model reads (B, 3, {size}, {size})."
            )

    def _target_patches(self, targets: dict[str, Tensor], pixel_values: Tensor) -> dict[str, Tensor]:
        """Check the targets and cut each into patches `(B, N, C, P)`; class numbers have one channel."""
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
        """Compute the vectors to quantise, `(B, L, D)` in float32; each vector is standardised."""
        x = sum(stem(patches[name]) for name, stem in self.stems.items()) + self.encoder.embeddings(pixel_values)
        x = self._run(self.encoder, x)  # (B, N, width)
        x = self.encoder_head(resize_grid(x, self.config.code_grid_size)).float()  # (B, L, D)
        return F.layer_norm(x, x.shape[-1:], eps=1e-5)

    def _read(self, codewords: Tensor, pixel_values: Tensor) -> Tensor:
        """Decode codewords `(B, L, D)` to the vectors `(B, N, width)` that the heads read."""
        x = self.decoder_stem(codewords.to(self.decoder_stem.weight.dtype))
        x = resize_grid(x, self.config.grid_size) + self.decoder.embeddings(pixel_values)
        return self._run(self.decoder, x)

    def _run(self, vit: Any, x: Tensor) -> Tensor:
        return vit.post_layernorm(vit.encoder(inputs_embeds=x).last_hidden_state)

    def _logits(self, x: Tensor) -> dict[str, Tensor]:
        return {name: from_patches(head(x), self.config.patch_size) for name, head in self.heads.items()}

    def _reconstruction_loss(self, name: str, x: Tensor, patches: Tensor) -> Tensor:
        """Compute the mean loss over images, patches and pixels of one output, one image at a time.

        The logits of an image are computed again for its gradient, because the logits of a whole batch would fill the
        memory.
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
        # A pixel without a class adds no loss but counts in the mean, as in the reference.
        return F.cross_entropy(logits, classes.where(known, -100), reduction="sum") / classes.numel()


AutoModel.register(UViMConfig, UViMModel, exist_ok=True)
