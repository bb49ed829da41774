"""What a run and its models show: the paper's figures 5 and 6, and how much of an update is noise."""

from vision_rl.analysis.curves import read_log, reward_and_metrics
from vision_rl.analysis.gradient_noise import gradient_noise
from vision_rl.analysis.noise import GradientNoise, Sketch, noise_of
from vision_rl.analysis.order_statistics import best_of_n, likeliest_of_n
from vision_rl.analysis.reward_samples import RewardSamples, sample_rewards


__all__ = [
    "GradientNoise",
    "RewardSamples",
    "Sketch",
    "best_of_n",
    "gradient_noise",
    "likeliest_of_n",
    "noise_of",
    "read_log",
    "reward_and_metrics",
    "sample_rewards",
]
