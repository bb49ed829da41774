"""Sizes and settings of UViM's stage I (arXiv 2205.10337); the defaults are those of the published panoptic model."""

import math
from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


CODE_DROPOUTS = ("random", "ordered", "none")


@strict
class UViMConfig(PreTrainedConfig):
    """Configuration of a `UViMModel`. Colourisation differs only by `outputs={"color": 3}` and `regression=True`.

    Images, patches and the grid of codes are square. Three options of the reference are left out, because the
    published models do not use them: learned matrices in place of the resizing between patches and codes, models that
    do not see the image, and sine-cosine positions.

    Args:
        outputs: the maps that the model reads and writes: the number of classes (class 0 included) or channels by
            name.
        regression: whether the outputs are numbers in [-1, 1], trained by squared error, instead of classes.
        codebook_size: K; codes are 0 .. K - 1.
        code_dim: the number of components of a codeword.
        code_length: L, the number of codes of an image; a square number.
        code_dropout: which codes the decoder misses in training: "random" codes, the last codes ("ordered"), or
            "none".
        codebook_momentum: the share of the codebook's sums that is kept at an update.
        min_code_count: a code whose discounted count falls below this number is replaced (0.995^500 is about 0.1).
        commitment_weight: the weight of the loss that draws the encoder to the codewords; 0 in the published models.

    Raises:
        ValueError: for sizes that do not fit together, for an unknown `code_dropout`, and for empty `outputs`.
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
            raise ValueError(f"code_length {self.code_length} does not make a square grid: choose 4, 16, 64, 256, ...")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be split among {self.num_attention_heads} attention heads: choose a "
                "multiple of num_attention_heads."
            )
        if self.code_dropout not in CODE_DROPOUTS:
            raise ValueError(f"code_dropout is {self.code_dropout!r}; it must be one of {', '.join(CODE_DROPOUTS)}.")
        if not self.outputs:
            raise ValueError('outputs is empty: name what the model predicts, for example {"color": 3}.')
        # Sort the outputs as config.json does, so that a reloaded model has its parameters in the same order.
        self.outputs = dict(sorted(self.outputs.items()))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """Make a configuration of saved values, and refuse those of another model before 224 M weights are made for them.

        Raises:
            ValueError: for the configuration of a model that is not stage I.
        """
        saved = config_dict.get("model_type", cls.model_type)
        if saved != cls.model_type:
            raise ValueError(
                f"This is the configuration of a model of the type {saved!r}, not of stage I: name the output_dir of "
                '`vision-rl stage1`, or a tuned model with subfolder="stage1".'
            )
        return super().from_dict(config_dict, **kwargs)

    @property
    def grid_size(self) -> int:
        """The number of patches along a side of the image."""
        return self.image_size // self.patch_size

    @property
    def code_grid_size(self) -> int:
        """The number of codes along a side of the grid of codes."""
        return math.isqrt(self.code_length)


AutoConfig.register(UViMConfig.model_type, UViMConfig, exist_ok=True)
