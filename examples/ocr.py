"""Read handwritten digits: MLE from scratch, then tuning for the goal itself, that the whole string is right.

    python examples/ocr.py                                                    # about 5 minutes on a CPU
    accelerate launch --multi_gpu --num_processes 2 examples/ocr.py

Half of the strings are then read right. Tuning raises the reward of samples (`reward` in the log), but not the quality of
greedy reading, which MLE optimises already: docs/results.md. Writes runs/ocr: both models and readings.png.
"""

from dataclasses import dataclass

from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer, models
from vision_rl.drawing import draw_grid
from vision_rl.tasks import ocr


@dataclass
class ScriptArguments:
    mle_steps: int = 4000
    tune_steps: int = 600
    output_dir: str = "runs/ocr"


def main(args: ScriptArguments, options: ocr.Options) -> None:
    set_seed(0)
    # The data: rows with `image` and `text`, here 32 x 80 pixels with two to four digits. Any data set with such rows works.
    train_dataset, eval_dataset = ocr.load_data(options, "train"), ocr.load_data(options, "validation")
    shown = eval_dataset.select(range(8))
    processor = ocr.make_processor(options, ViTImageProcessorPil(do_resize=False), train_dataset)

    # The model: a ViT on columns of 4 pixels and the paper's decoder, 115,000 parameters.
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    encoder = ViTModel(ViTConfig(image_size=(32, 80), patch_size=(32, 4), num_hidden_layers=2, **size))
    tokens = {"vocab_size": processor.vocab_size, "max_position_embeddings": 5}  # four digits and the end token
    decoder = models.VisionDecoderForCausalLM(models.VisionDecoderConfig(**tokens, **size, num_hidden_layers=1))
    model = models.vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    models.init_sincos_positions(model)

    common = {"per_device_train_batch_size": 32, "optim": "big_vision_adafactor", "logging_steps": 100}
    data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processor}
    data["compute_metrics"] = ocr.make_metric(processor)

    # Step 1: imitate the labels.
    schedule = {"learning_rate": 4e-3, "lr_scheduler_type": "cosine", "warmup_steps": 200, "max_steps": args.mle_steps}
    mle = VisionMLETrainer(model, VisionMLEConfig(f"{args.output_dir}/mle", **schedule, **common), **data)
    mle.train()
    mle.save_model()
    before, readings = mle.evaluate(), mle.predict(shown).predictions

    # Step 2: tune for the sum of two rewards: every character is right, and the share of characters that are right.
    rewards = [ocr.exact_match_reward, ocr.character_accuracy_reward]
    schedule = {"learning_rate": 1e-4, "warmup_steps": 10, "max_steps": args.tune_steps, "num_generations": 8}
    config = VisionRewardConfig(f"{args.output_dir}/tuned", **schedule, **common)
    tuned = VisionRewardTrainer(model, rewards, config, **data)
    tuned.train()
    tuned.save_model()
    after, tuned_readings = tuned.evaluate(), tuned.predict(shown).predictions

    if tuned.is_world_process_zero():
        for name in ("eval_exact_match", "eval_cer"):
            print(f"{name}: {before[name]:.3f} after MLE, {after[name]:.3f} after tuning")
        pictures = [
            ocr.draw(row["image"], {"MLE": first, "tuned": second}, row["text"])
            for row, first, second in zip(shown, readings, tuned_readings, strict=True)
        ]
        draw_grid(pictures).save(f"{args.output_dir}/readings.png")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, ocr.Options))
    parser.set_defaults(scenes=24_000, alphabet="0123456789")
    main(*parser.parse_args_and_config())
