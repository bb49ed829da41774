"""UViM's stage I, which writes dense maps as codes, and the published checkpoints.

Importing this package lets AutoModel load `uvim` models.
"""

from vision_rl.models.uvim.configuration import UViMConfig
from vision_rl.models.uvim.conversion import (
    convert_uvim,
    load_big_vision_stage1,
    load_big_vision_stage2,
    load_big_vision_vit,
)
from vision_rl.models.uvim.decoding import UViMDecoder, check_stage1
from vision_rl.models.uvim.modeling import UViMModel, UViMOutput


__all__ = [
    "UViMConfig",
    "UViMDecoder",
    "UViMModel",
    "UViMOutput",
    "check_stage1",
    "convert_uvim",
    "load_big_vision_stage1",
    "load_big_vision_stage2",
    "load_big_vision_vit",
]
