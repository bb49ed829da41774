"""Colour grey photos: MLE on the codes of stage I, then tuning for colourful pictures, which needs no label.

    vision-rl stage1 --task colorization --scenes 5000 --image_size 64 --patch_size 8 --hidden_size 128 --heads 4 \\
        --mlp_size 256 --encoder_layers 2 --decoder_layers 3 --num_codes 256 --code_len 16 --code_dropout none \\
        --keep_luminance true --max_steps 1000 --learning_rate 2e-3 --output_dir runs/colorization/stage1
    python examples/colorization.py                   # on a CPU, far from converged

On scenes of digits, or on photos: --images_dir and --eval_images_dir. Writes runs/colorization: models and pictures.png.
"""

from dataclasses import dataclass

from transformers import set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer, models
from vision_rl.drawing import draw_grid
from vision_rl.models import description
from vision_rl.tasks import colorization
from vision_rl.trainer.callbacks import RewardMetricDivergenceCallback


@dataclass
class ScriptArguments:
    stage1: str = "runs/colorization/stage1"
    mle_steps: int = 1000
    tune_steps: int = 100
    output_dir: str = "runs/colorization"


def main(args: ScriptArguments, options: colorization.Options) -> None:
    set_seed(0)
    # The data: rows with `image`, in colour.
    train_dataset, eval_dataset = (
        colorization.load_data(options, "train"),
        colorization.load_data(options, "validation"),
    )
    shown = eval_dataset.select(range(6))
    # Stage I, which is not trained any more, and the model, which sees a grey photo and writes stage I's codes.
    stage1 = models.UViMModel.from_pretrained(args.stage1)
    processor = colorization.ColorizationProcessor.from_pretrained(args.stage1)
    size = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 3}
    encoder = description.make_encoder(stage1.config.image_size, size, patch_size=8, conv_stem=True)
    decoder = description.make_decoder(processor.vocab_size, processor.code_len, size)
    model = description.make_model(processor, encoder, decoder)
    models.init_sincos_positions(model)
    common = {"per_device_train_batch_size": 16, "adam_beta2": 0.95, "warmup_steps": 50, "logging_steps": 50}
    data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processor}
    data["compute_metrics"] = colorization.make_metric(processor)
    data["completion_decoder"] = models.uvim.UViMDecoder(stage1, processor)  # makes labels, and pictures from samples

    # Step 1: imitate the codes of the true colours.
    schedule = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "max_steps": args.mle_steps}
    mle = VisionMLETrainer(model, VisionMLEConfig(f"{args.output_dir}/mle", **schedule, **common), **data)
    mle.train()
    mle.save_model()
    before, pictures = mle.evaluate(), mle.predict(shown).predictions

    # Step 2: tune for colourfulness. It is easily overdone: the trainer warns when PSNR falls while the reward rises.
    schedule = {"learning_rate": 1e-4, "max_steps": args.tune_steps, "num_generations": 4, "eval_strategy": "steps"}
    config = VisionRewardConfig(f"{args.output_dir}/tuned", **schedule, **common)
    tuned = VisionRewardTrainer(model, colorization.ColorfulnessReward(), config, **data)
    tuned.add_callback(RewardMetricDivergenceCallback("psnr"))
    tuned.train()
    tuned.save_model()
    after, tuned_pictures = tuned.evaluate(), tuned.predict(shown).predictions

    if tuned.is_world_process_zero():
        for name in ("eval_colorfulness", "eval_psnr"):
            print(f"{name}: {before[name]:.3f} after MLE, {after[name]:.3f} after tuning")
        answers = [{"MLE": first, "tuned": second} for first, second in zip(pictures, tuned_pictures, strict=True)]
        strips = map(colorization.draw, shown["image"], answers, processor.get_references(shown))
        draw_grid(list(strips), columns=2).save(f"{args.output_dir}/pictures.png")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, colorization.Options))
    parser.set_defaults(scenes=5000)
    main(*parser.parse_args_and_config())
