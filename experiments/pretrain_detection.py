"""MLE from scratch of the detection experiment: a small ViT and the paper's decoder learn to write boxes as tokens."""

from pathlib import Path

from dense_boxes import DenseBoxesMLETrainer
from detection_scenes import Situation, situation_scenes
from runs import is_trained, record
from transformers import VisionEncoderDecoderModel, ViTImageProcessorPil, set_seed
from transformers.trainer_utils import get_last_checkpoint

from vision_rl import VisionMLEConfig, models
from vision_rl.data.digit_scenes import CATEGORIES
from vision_rl.tasks.detection import DetectionProcessor, coco_map


STEPS: dict[Situation, int] = {"crowded": 20_000, "incomplete": 12_000, "complete": 12_000}
IMAGE_SIZE, NUM_TRAIN_IMAGES, NUM_EVAL_IMAGES = 48, 40_000, 500
DEFAULTS = {
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
    config = DEFAULTS | {"max_steps": STEPS[situation]}
    data = {"situation": situation, "num_train_images": NUM_TRAIN_IMAGES, "image_size": IMAGE_SIZE, "max_boxes": 8}
    if is_trained(folder, config | data):
        return
    interrupted = get_last_checkpoint(folder) if folder.is_dir() else None
    run = {"output_dir": str(folder), "resume_from_checkpoint": interrupted, "use_cpu": True, "report_to": "none"}
    args = VisionMLEConfig(**config, **run)
    set_seed(args.seed)
    image_processor = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = DetectionProcessor(image_processor, list(CATEGORIES), num_bins=64, max_boxes=8, score="likelihood")
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
