"""Find objects although half of the labels are missing: MLE learns to leave out half of them, tuning for mAP mends it.

    python examples/detection.py                                              # a minute and a half on a CPU
    python examples/detection.py --images_dir photos --annotation_file boxes.json --mle_steps 20000     # COCO's form
    accelerate launch --multi_gpu --num_processes 2 examples/detection.py

Starts from a small detector that has learned such scenes of digits by MLE, so that you need not wait for it; its head is
adapted to your categories. Writes runs/detection: both models and boxes.png, MLE above and tuned below.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import VisionEncoderDecoderModel, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.data.digit_scenes import with_missing_boxes
from vision_rl.drawing import draw_grid
from vision_rl.models.adaptation import adapt
from vision_rl.tasks import detection


@dataclass
class ScriptArguments:
    model: str = str(Path(__file__).parents[1] / "experiments" / "checkpoints" / "detection-incomplete")
    mle_steps: int = 50
    tune_steps: int = 150
    output_dir: str = "runs/detection"


def main(args: ScriptArguments, options: detection.Options) -> None:
    set_seed(0)
    # The data: rows with `image` and `objects: {bbox, category}`. A folder is evaluated on a tenth, or on one of its own.
    train_dataset, eval_dataset = detection.load_data(options, "train"), detection.load_data(options, "validation")
    if options.annotation_file is None:
        train_dataset = with_missing_boxes(train_dataset, 0.5)
    elif eval_dataset is None:
        train_dataset, eval_dataset = train_dataset.train_test_split(0.1, seed=0).values()
    shown = eval_dataset.select(range(6))

    # The processor writes boxes as tokens. The model keeps what it knows about tokens whose meaning stays.
    old = detection.DetectionProcessor.from_pretrained(args.model)
    processor = detection.make_processor(options, old.image_processor, train_dataset)
    model = VisionEncoderDecoderModel.from_pretrained(args.model)
    adapt(model, old, processor)

    common = {"per_device_train_batch_size": 16, "logging_steps": 25, "adam_beta2": 0.95}
    data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processor}
    data["compute_metrics"] = detection.make_metric(processor)

    # Step 1: imitate the labels.
    schedule = {"learning_rate": 1e-4, "warmup_steps": 10, "max_steps": args.mle_steps}
    mle = VisionMLETrainer(model, VisionMLEConfig(f"{args.output_dir}/mle", **schedule, **common), **data)
    mle.train()
    mle.save_model()
    before, boxes = mle.evaluate(), mle.predict(shown).predictions

    # Step 2: tune for mAP. The reward also teaches what MLE cannot: how sure to be of a box.
    reward = detection.REWARDS["map"](processor, train_dataset)
    schedule = {"learning_rate": 1e-4, "max_steps": args.tune_steps, "num_generations": 4}
    config = VisionRewardConfig(f"{args.output_dir}/tuned", **schedule, **common)
    tuned = VisionRewardTrainer(model, reward, config, **data)
    tuned.train()
    tuned.save_model()
    after, tuned_boxes = tuned.evaluate(), tuned.predict(shown).predictions

    if tuned.is_world_process_zero():
        for name in ("eval_map", "eval_ar_100"):
            print(f"{name}: {before[name]:.3f} after MLE, {after[name]:.3f} after tuning")
        images, truth = list(shown["image"]), processor.get_references(shown)
        pictures = map(processor.draw, images * 2, [*boxes, *tuned_boxes], truth * 2)
        draw_grid(list(pictures), columns=len(shown)).save(f"{args.output_dir}/boxes.png")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, detection.Options))
    parser.set_defaults(scenes=15_000, num_bins=64, max_boxes=8)
    main(*parser.parse_args_and_config())
