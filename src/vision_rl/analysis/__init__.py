"""What a run and its models show: the paper's figures 5 and 6, how much of an update is noise, and a page of all of it."""

from vision_rl.analysis.answers import Answers, Comparison, answers_of
from vision_rl.analysis.curves import read_log, reward_and_metrics
from vision_rl.analysis.gradient_noise import gradient_noise
from vision_rl.analysis.noise import GradientNoise, Sketch, noise_of
from vision_rl.analysis.order_statistics import best_of_n, likeliest_of_n
from vision_rl.analysis.report import write_report
from vision_rl.analysis.reward_samples import RewardSamples, sample_rewards


__all__ = [
    "Answers",
    "Comparison",
    "GradientNoise",
    "RewardSamples",
    "Sketch",
    "answers_of",
    "best_of_n",
    "gradient_noise",
    "likeliest_of_n",
    "noise_of",
    "read_log",
    "reward_and_metrics",
    "sample_rewards",
    "write_report",
]
