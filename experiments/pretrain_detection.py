"""MLE of the detection experiment, from scratch: a small ViT and the paper's decoder learn to write boxes as tokens.

In the first part the encoder also learns from a dense loss, on stored scenes. Some situations have a second, without that
loss, from scenes that are drawn when asked for, so that none is seen twice. Its best model is chosen by mAP with absence written
only where it is nearly sure: the greedy answer of a model that learned from incomplete labels hardly shows what it knows.
"""

from pathlib import Path
from typing import Any

from dense_boxes import DenseBoxesMLETrainer
from detection_scenes import Situation, situation_scenes, unseen_scenes
from runs import is_trained, record, weights_of
from transformers import VisionEncoderDecoderModel, ViTImageProcessorPil, set_seed
from transformers.trainer_utils import get_last_checkpoint

from vision_rl import VisionMLEConfig, VisionMLETrainer, models
from vision_rl.data.digit_scenes import CATEGORIES
from vision_rl.models.adaptation import adapt
from vision_rl.tasks.detection import DetectionProcessor, coco_map


STEPS: dict[Situation, int] = {"crowded": 20_000, "incomplete": 12_000, "complete": 12_000}
MORE_STEPS: dict[Situation, int] = {"incomplete": 12_000, "hard": 9_000}  # of the second part
STARTS: dict[Situation, Situation] = {"hard": "crowded"}  # whose first part it goes on from; else its own
FEW_TOKENS = {"num_bins": 64, "max_boxes": 8, "score": "likelihood"}
TOKENS: dict[Situation, dict] = {"hard": {"num_bins": 1000, "max_boxes": 12, "score": "likelihood"}}
STOP_THRESHOLD = 0.95  # the best one of these models; see docs/results.md
IMAGE_SIZE, NUM_TRAIN_IMAGES, NUM_EVAL_IMAGES = 48, 40_000, 500
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 100,
    "learning_rate": 3e-3,
    "adam_beta2": 0.95,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 150,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_steps": 1000,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "map",
    "ddp_find_unused_parameters": False,  # DistributedDataParallel does not see the dense head's use, so it must not look
}


def small_detector(processor: DetectionProcessor) -> VisionEncoderDecoderModel:
    """The paper's ViT and decoder, made small, with a convolutional stem: 0.9 M parameters."""
    size = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
    encoder = models.vit_encoder(processor.frame[0], patch_size=8, num_hidden_layers=3, conv_stem=True, **size)
    tokens = {"vocab_size": processor.vocab_size, "max_position_embeddings": processor.completion_length}
    decoder = models.VisionDecoderForCausalLM(models.VisionDecoderConfig(**tokens, **size, num_hidden_layers=2))
    model = models.vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0)
    models.init_sincos_positions(model)
    return model


def pretrain(situation: Situation, folder: Path) -> None:
    """MLE where it is missing, as the checkpoints that come along were made; goes on where it was interrupted."""
    if situation not in MORE_STEPS:
        learn_to_find(situation, folder)
        return
    learn_to_find(STARTS.get(situation, situation), folder / "first")
    learn_on(situation, folder / "first", folder)


def num_seen(situation: Situation) -> int:
    """How many of the situation's training scenes its MLE model has seen: the first so many."""
    return NUM_TRAIN_IMAGES + MORE_STEPS.get(situation, 0) * DEFAULTS["per_device_train_batch_size"]


def learn_to_find(situation: Situation, folder: Path) -> None:
    """The first part: from scratch, on scenes that are seen again and again, with the dense loss."""
    config = DEFAULTS | {"max_steps": STEPS[situation]}
    sizes = {"num_train_images": NUM_TRAIN_IMAGES, "image_size": IMAGE_SIZE, "max_boxes": FEW_TOKENS["max_boxes"]}
    data = {"situation": situation, **sizes}
    if is_trained(folder, config | data):
        return
    image_processor = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = DetectionProcessor(image_processor, list(CATEGORIES), **FEW_TOKENS)
    args = arguments(config, folder)
    set_seed(args.seed)
    trainer = DenseBoxesMLETrainer(
        model=small_detector(processor),
        args=args,
        train_dataset=situation_scenes(situation, "train", NUM_TRAIN_IMAGES, IMAGE_SIZE),
        eval_dataset=situation_scenes(situation, "validation", NUM_EVAL_IMAGES, IMAGE_SIZE),
        processing_class=processor,
        compute_metrics=coco_map,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.drop_head()
    trainer.save_model()
    record(trainer, config | data)


def learn_on(situation: Situation, start: Path, folder: Path) -> None:
    """The second part: from the model of the first, on new scenes; the best model by mAP with the stop threshold stays."""
    config = DEFAULTS | {"max_steps": MORE_STEPS[situation], "learning_rate": 1e-3}
    data = {"situation": situation, "stop_threshold": STOP_THRESHOLD, "started_from": weights_of(start)}
    if is_trained(folder, config | data):
        return
    args = arguments(config, folder)
    set_seed(args.seed)
    old, model = DetectionProcessor.from_pretrained(start), VisionEncoderDecoderModel.from_pretrained(start)
    processor = DetectionProcessor(old.image_processor, old.categories, **TOKENS.get(situation, FEW_TOKENS))
    adapt(model, old, processor)
    processor.stop_threshold = STOP_THRESHOLD
    trainer = VisionMLETrainer(
        model=model,
        args=args,
        train_dataset=unseen_scenes(situation, NUM_TRAIN_IMAGES, num_seen(situation) - NUM_TRAIN_IMAGES, IMAGE_SIZE),
        eval_dataset=situation_scenes(situation, "validation", NUM_EVAL_IMAGES, IMAGE_SIZE),
        processing_class=processor,
        compute_metrics=coco_map,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    processor.stop_threshold = 0.0
    trainer.save_model()
    record(trainer, config | data)


def arguments(config: dict, folder: Path) -> VisionMLEConfig:
    """The config of a training in `folder`, which goes on from its last checkpoint."""
    interrupted = get_last_checkpoint(folder) if folder.is_dir() else None
    return VisionMLEConfig(
        **config, output_dir=str(folder), resume_from_checkpoint=interrupted, use_cpu=True, report_to="none"
    )
