"""Step 1: train a ViT and the paper's decoder from scratch to write boxes as tokens (MLE).

    python examples/pretrain_detection.py --output_dir runs/detection-mle
    accelerate launch --multi_gpu --num_processes 2 examples/pretrain_detection.py --output_dir runs/detection-mle

On scenes of handwritten digits, on a folder in COCO's form, or on a data set by name: detection_data.py has the options.
--config FILE is YAML; --resume_from_checkpoint true goes on where a run was interrupted.
"""

from dense_boxes import DenseBoxesMLETrainer
from detection_data import DataArguments, detection_data
from transformers import VisionEncoderDecoderModel, ViTImageProcessorPil, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, models
from vision_rl.tasks.detection import DetectionProcessor, coco_map


DEFAULTS = {
    "output_dir": "runs/detection-mle",
    "max_steps": 12_000,
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


def main(data_args: DataArguments, training_args: VisionMLEConfig) -> DenseBoxesMLETrainer:
    set_seed(training_args.seed)
    train_dataset, eval_dataset, categories = detection_data(data_args)
    image_processor = ViTImageProcessorPil(size={"height": data_args.image_size, "width": data_args.image_size})
    boxes = {"num_bins": 64, "max_boxes": data_args.max_boxes}
    processor = DetectionProcessor(image_processor, categories, **boxes, score="likelihood")
    trainer = DenseBoxesMLETrainer(
        model=small_detector(processor),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=coco_map,
    )
    trainer.train()
    trainer.drop_head()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((DataArguments, VisionMLEConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
