"""Ask people which of two answers is better, fit a reward to their choices, and tune a model for it.

    pip install "vision-rl[app]"
    python examples/preferences.py --model runs/colorization/mle                # a page; choose, then end it with Ctrl+C
    python examples/preferences.py --model runs/colorization/mle --tune true    # from 30 choices on; some hundreds are good

Starts from the model of examples/colorization.py. A pair is two of its samples for one image. Whoever opens the page again
goes on where they stopped. Writes runs/preferences: choices.jsonl with the pictures that were shown, and the tuned model.
"""

from dataclasses import dataclass

from trl import TrlParser

import vision_rl
from vision_rl import VisionRewardConfig, VisionRewardTrainer
from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.preferences import ChoiceFile, Pair, comparison_page, fit_preference_reward
from vision_rl.tasks import colorization


@dataclass
class ScriptArguments:
    model: str = "runs/colorization/mle"
    pairs: int = 200
    tune: bool = False
    tune_steps: int = 100
    port: int = 7860
    output_dir: str = "runs/preferences"


def choose(args: ScriptArguments, options: colorization.Options) -> None:
    """Open the page. It is on this machine only; nothing is sent elsewhere."""
    pipeline = vision_rl.pipeline(args.model)
    rows = colorization.load_data(options, "train")
    images = rows.select(range(min(args.pairs, len(rows))))["image"]
    answers = pipeline.sample(images, 2)
    models = (args.model, args.model)
    rows = enumerate(zip(images, answers, strict=True))
    pairs = [Pair(str(row), image, tuple(two), models) for row, (image, two) in rows]
    page = comparison_page(pairs, ChoiceFile(f"{args.output_dir}/choices.jsonl"), pipeline.draw)
    page.launch(server_name="127.0.0.1", server_port=args.port)


def tune(args: ScriptArguments, options: colorization.Options) -> None:
    """Fit the reward, print how well it predicts the choices and what it pays for, and tune the model for it."""
    reward = fit_preference_reward(ChoiceFile(f"{args.output_dir}/choices.jsonl").read(), colorization.color_features)
    print(f"The reward {reward.agreement}.")
    for name, feature in sorted(reward.fitted.items(), key=lambda item: -abs(item[1].weight)):
        print(f"  {name}: {feature.weight:+.2f}")
    processor = colorization.ColorizationProcessor.from_pretrained(args.model)
    schedule = {"learning_rate": 1e-4, "max_steps": args.tune_steps, "num_generations": 4, "warmup_steps": 10}
    trainer = VisionRewardTrainer(
        args.model,
        # the choices do not cover everything: likeness to the photo keeps the model close where they say nothing
        [reward, colorization.fidelity_reward],
        VisionRewardConfig(f"{args.output_dir}/tuned", per_device_train_batch_size=16, logging_steps=10, **schedule),
        train_dataset=colorization.load_data(options, "train"),
        eval_dataset=colorization.load_data(options, "validation"),
        processing_class=processor,
        compute_metrics=colorization.make_metric(processor),
        completion_decoder=UViMDecoder(UViMModel.from_pretrained(args.model, subfolder="stage1"), processor),
    )
    before = trainer.evaluate()
    trainer.train()
    trainer.save_model()  # and with it the reward, in reward/preference
    after = trainer.evaluate()
    for name in ("eval_rewards/PreferenceReward/mean", "eval_psnr"):
        print(f"{name}: {before[name]:.3f} after MLE, {after[name]:.3f} after tuning")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, colorization.Options))
    parser.set_defaults(scenes=5000)
    args, options = parser.parse_args_and_config()
    tune(args, options) if args.tune else choose(args, options)
