"""Detection from few real photos: a decoder is trained on a frozen, pretrained encoder, then tuned for mAP.

    python experiments/frozen_detection.py --images_dir bccd/JPEGImages --annotation_file bccd/instances.json \\
        --encoder facebook/dinov2-small

One folder in COCO's form is split into training, validation and test. The encoder's output for each image and its mirror
images is computed once, so that two CPU cores suffice. The control continues MLE for longer than tuning takes. Writes the
table and the models to `output_dir`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from detection_measures import make_rewards, measure, resampled_columns
from PIL import Image
from torch.utils.data import Dataset
from transformers import VisionEncoderDecoderModel, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer, models
from vision_rl.data.coco import category_names, load_coco_detection
from vision_rl.tasks.detection import DetectionProcessor, coco_map


@dataclass
class FrozenArguments:
    images_dir: str
    annotation_file: str
    encoder: str = "facebook/dinov2-small"
    num_encoder_layers: int = 10  # the last layers of many encoders know less about places
    image_size: int = 252
    max_boxes: int = 30
    num_bins: int = 100
    mle_steps: int = 1500
    mle_learning_rate: float = 1e-3
    control_steps: int = 500
    control_learning_rate: float = 1e-4
    steps: int = 100  # of tuning
    learning_rate: float = 1e-4
    seed: int = 0
    output_dir: str = "runs/frozen-detection"
    threads: int = 1


class Mirrored(Dataset):
    """Every row four times: as it is, mirrored left to right, mirrored top to bottom, and mirrored both ways."""

    FLIPS = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.FLIPS) * len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        row, flip = self.dataset[index // len(self.FLIPS)], index % len(self.FLIPS)
        image, objects = row["image"], row["objects"]
        boxes = [
            [image.width - x - w if flip in (1, 3) else x, image.height - y - h if flip in (2, 3) else y, w, h]
            for x, y, w, h in objects["bbox"]
        ]
        mirrored = image.transpose(self.FLIPS[flip]) if flip else image
        return {"image": mirrored, "objects": {"bbox": boxes, "category": objects["category"]}}


def frozen_detector(args: FrozenArguments, processor: DetectionProcessor) -> VisionEncoderDecoderModel:
    encoder = models.load_encoder(args.encoder, args.image_size, num_hidden_layers=args.num_encoder_layers)
    encoder.requires_grad_(False)
    size = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512, "num_hidden_layers": 3}
    tokens = {"vocab_size": processor.vocab_size, "max_position_embeddings": processor.completion_length}
    decoder = models.VisionDecoderForCausalLM(models.VisionDecoderConfig(**tokens, **size))
    return models.vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0)


def main(args: FrozenArguments) -> None:
    torch.set_num_threads(args.threads)
    set_seed(args.seed)
    out = Path(args.output_dir)
    rows = load_coco_detection(args.images_dir, args.annotation_file).shuffle(seed=0)
    num_train, num_seen = round(0.7 * len(rows)), round(0.85 * len(rows))
    train, validation = rows.select(range(num_train)), rows.select(range(num_train, num_seen))
    test = rows.select(range(num_seen, len(rows)))
    image_processor = models.load_image_processor(args.encoder, args.image_size)
    sizes = {"num_bins": args.num_bins, "max_boxes": args.max_boxes}
    processor = DetectionProcessor(image_processor, category_names(rows), **sizes, score="likelihood")
    model = frozen_detector(args, processor)
    print(f"Encoding {len(train)} images and their mirror images, once", flush=True)
    data = {
        "train_dataset": models.EncodedDataset(Mirrored(train), model, processor),
        "eval_dataset": models.EncodedDataset(validation, model, processor),
        "processing_class": processor,
        "compute_metrics": coco_map,
    }
    common = {
        "adam_beta2": 0.95,
        "per_device_eval_batch_size": 25,
        "seed": args.seed,
        "warmup_steps": 20,
        "lr_scheduler_type": "cosine",
        "logging_steps": 25,
        "eval_strategy": "steps",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    rewards = make_rewards(processor, train)
    table = {}

    def train_and_test(name: str, trainer) -> None:
        seconds = trainer.train().metrics["train_runtime"]
        trainer.save_model()
        measured = measure(trainer.model, processor, test, rewards, batch_size=25)
        columns = resampled_columns(measured, processor.num_labels, num_resamples=0)
        columns = {name: round(float(values[0]), 4) for name, values in columns.items()}
        table[name] = {**columns, "steps": trainer.state.global_step, "seconds": round(seconds)}
        print(name, table[name], flush=True)
        (out / "results.json").write_text(json.dumps({"settings": vars(args), "results": table}, indent=1) + "\n")

    def mle(model, name: str, learning_rate: float, steps: int) -> VisionMLETrainer:
        settings = {"learning_rate": learning_rate, "max_steps": steps, "eval_steps": 250, "weight_decay": 0.05}
        settings |= {"per_device_train_batch_size": 16, "output_dir": str(out / name)}
        return VisionMLETrainer(model, VisionMLEConfig(**common | settings), **data)

    def trained_by_mle() -> VisionEncoderDecoderModel:
        start = VisionEncoderDecoderModel.from_pretrained(out / "mle")
        start.encoder.requires_grad_(False)
        return start

    train_and_test("mle", mle(model, "mle", args.mle_learning_rate, args.mle_steps))
    settings = {"learning_rate": args.learning_rate, "max_steps": args.steps, "eval_steps": 50, "max_grad_norm": 1.0}
    settings |= {"per_device_train_batch_size": 8, "num_generations": 4, "output_dir": str(out / "tuned_map")}
    args_map = VisionRewardConfig(**common | settings)
    train_and_test("tuned_map", VisionRewardTrainer(trained_by_mle(), rewards["map"], args_map, **data))
    train_and_test(
        "mle_continued", mle(trained_by_mle(), "mle_continued", args.control_learning_rate, args.control_steps)
    )


if __name__ == "__main__":
    main(*TrlParser((FrozenArguments,)).parse_args_and_config())
