"""Sizes and settings of UViM's stage I (arXiv 2205.10337); the defaults are those of the published panoptic model."""

import math
from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


CODE_DROPOUTS = ("random", "ordered", "none")


@strict
class UViMConfig(PreTrainedConfig):
    """Of a `UViMModel`. Colourisation differs by `outputs={"color": 3}` and `regression=True` alone.

    Images, patches and the grid of codes are square. Left out, as the published models do not use them: learned
    matrices in place of the resizing between patches and codes, models that do not see the image, sine-cosine positions.

    Args:
        outputs: what a model reads and writes, by name: how many classes (class 0 included) or channels each has.
        regression: the outputs are numbers in [-1, 1], learned by their squared error, and not classes.
        codebook_size: K; codes are 0 .. K - 1.
        code_dim: the length of a codeword.
        code_length: L, codes an image; a square number.
        code_dropout: which codes the decoder is trained without: "random" ones, the last ones ("ordered"), or "none".
        codebook_momentum: how much of the codebook's sums is kept at an update.
        min_code_count: a code whose discounted count falls below this gives up its place (0.995^500 is about 0.1).
        commitment_weight: of the loss that draws the encoder to the codewords; 0 in the published models.

    Raises:
        ValueError: for sizes that do not fit together, or a `code_dropout` that is none of the three.
    """

    model_type = "uvim"

    image_size: int = 512
    patch_size: int = 16
    hidden_size: int = 768
    num_encoder_layers: int = 6
    num_decoder_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    codebook_size: int = 4096
    code_dim: int = 768
    code_length: int = 256
    outputs: dict[str, int] = field(default_factory=lambda: {"semantics": 134, "instances": 100})
    regression: bool = False
    code_dropout: str = "random"
    codebook_momentum: float = 0.995
    min_code_count: float = 0.1
    commitment_weight: float = 0.0

    def __post_init__(self, **kwargs):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} cannot be cut into patches of {self.patch_size}: choose a multiple."
            )
        if math.isqrt(self.code_length) ** 2 != self.code_length:
            raise ValueError(f"code_length {self.code_length} makes no square grid: choose 4, 16, 64, 256, ...")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be split among {self.num_attention_heads} attention heads."
            )
        if self.code_dropout not in CODE_DROPOUTS:
            raise ValueError(f"code_dropout is {self.code_dropout!r}; it must be one of {', '.join(CODE_DROPOUTS)}.")
        if not self.outputs:
            raise ValueError('outputs is empty: name what the model predicts, for example {"color": 3}.')
        # In the order of config.json, which is sorted: a reloaded model has its parameters in the same order.
        self.outputs = dict(sorted(self.outputs.items()))
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def code_grid_size(self) -> int:
        """Codes a side."""
        return math.isqrt(self.code_length)


AutoConfig.register(UViMConfig.model_type, UViMConfig, exist_ok=True)
