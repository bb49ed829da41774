"""Human preference as a reward: choices between two answers, kept in a file, and a reward that is fitted to them."""

from vision_rl.preferences.choices import Choice, ChoiceFile, Pair
from vision_rl.preferences.comparison import Comparison, Shown
from vision_rl.preferences.fitting import fit_preference_reward, wilson
from vision_rl.preferences.page import comparison_page
from vision_rl.preferences.reward import Agreement, FittedFeature, PreferenceReward


__all__ = [
    "Agreement",
    "Choice",
    "ChoiceFile",
    "Comparison",
    "FittedFeature",
    "Pair",
    "PreferenceReward",
    "Shown",
    "comparison_page",
    "fit_preference_reward",
    "wilson",
]
