"""Tune vision models with task rewards (Pinto et al., arXiv 2302.08242), in the manner of transformers and TRL."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vision_rl.registration import register


__version__ = "0.2.0"

# `import vision_rl` is light: torch, transformers and trl are loaded when one of these names is first asked for.
_HOME_OF = {
    "Stage1Trainer": "vision_rl.trainer.stage1_trainer",
    "VisionMLEConfig": "vision_rl.trainer.mle_config",
    "VisionMLETrainer": "vision_rl.trainer.mle_trainer",
    "VisionRewardConfig": "vision_rl.trainer.reward_config",
    "VisionRewardTrainer": "vision_rl.trainer.reward_trainer",
    "RemoteReward": "vision_rl.remote_reward",
    "RewardOutput": "vision_rl.rewards",
    "SavedReward": "vision_rl.rewards",
    "TokenTargets": "vision_rl.rewards",
    "TextProcessor": "vision_rl.processing",
    "VisionPipeline": "vision_rl.pipelines",
    "VisionProcessor": "vision_rl.processing",
    "pipeline": "vision_rl.pipelines",
}

__all__ = [
    "RemoteReward",
    "RewardOutput",
    "SavedReward",
    "Stage1Trainer",
    "TextProcessor",
    "TokenTargets",
    "VisionMLEConfig",
    "VisionMLETrainer",
    "VisionPipeline",
    "VisionProcessor",
    "VisionRewardConfig",
    "VisionRewardTrainer",
    "metric_path",
    "pipeline",
]

if TYPE_CHECKING:
    from vision_rl.pipelines import VisionPipeline, pipeline
    from vision_rl.processing import TextProcessor, VisionProcessor
    from vision_rl.remote_reward import RemoteReward
    from vision_rl.rewards import RewardOutput, SavedReward, TokenTargets
    from vision_rl.trainer.mle_config import VisionMLEConfig
    from vision_rl.trainer.mle_trainer import VisionMLETrainer
    from vision_rl.trainer.reward_config import VisionRewardConfig
    from vision_rl.trainer.reward_trainer import VisionRewardTrainer
    from vision_rl.trainer.stage1_trainer import Stage1Trainer


def metric_path(name: str) -> str:
    """The folder of an evaluate module that ships with vision_rl: `evaluate.load(metric_path("character_error_rate"))`.

    Works offline. Raises `ValueError` with the names there are when `name` is none of them.
    """
    folders = {folder.name: folder for folder in sorted(Path(__file__).parent.glob("tasks/*/metrics/*/"))}
    folders.pop("__pycache__", None)
    if name not in folders:
        raise ValueError(f"vision_rl has no evaluate module `{name}`; it has: {', '.join(sorted(folders))}.")
    return str(folders[name])


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vision_rl' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register()
