"""Step 1: train a pretrained ViT and a BERT-like decoder to write captions (MLE).

    python examples/pretrain_captioning.py --images_dir coco --karpathy_file dataset_coco.json \\
        --encoder facebook/dinov2-small --decoder google-bert/bert-base-uncased --output_dir runs/captioning-mle

The paper's recipe with a smaller batch: the encoder learns ten times slower than the decoder. Without a GPU
--freeze_encoder is for you: the encoder's output is then computed once for each image. captioning_data.py has the options
for the data.
"""

from dataclasses import dataclass

from captioning_data import DataArguments, captioning_data
from transformers import AutoTokenizer, BertLMHeadModel, VisionEncoderDecoderModel, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, models
from vision_rl.tasks.captioning import CaptioningProcessor, coco_captions


DEFAULTS = {
    "output_dir": "runs/captioning-mle",
    "max_steps": 5000,
    "per_device_train_batch_size": 32,  # paper: 256
    "learning_rate": 3e-4,
    "encoder_learning_rate": 3e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1000,
    "weight_decay": 5e-6,
    "optim": "big_vision_adafactor",
    "max_completion_length": 32,
    "eval_strategy": "steps",
    "eval_steps": 250,
    "save_steps": 250,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "cider",
}


@dataclass
class ModelArguments:
    encoder: str = "facebook/dinov2-small"
    decoder: str = "google-bert/bert-base-uncased"
    image_size: int = 224
    num_encoder_layers: int | None = None  # the first so many; None: all
    num_decoder_layers: int = 6  # as in the paper
    freeze_encoder: bool = False


def captioner(args: ModelArguments) -> tuple[VisionEncoderDecoderModel, CaptioningProcessor]:
    tokenizer = AutoTokenizer.from_pretrained(args.decoder)
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    encoder = models.load_encoder(args.encoder, args.image_size, num_hidden_layers=args.num_encoder_layers)
    layers = {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": args.num_decoder_layers}
    model = models.vision_encoder_decoder(
        encoder,
        BertLMHeadModel.from_pretrained(args.decoder, **layers),
        decoder_start_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.encoder.requires_grad_(not args.freeze_encoder)
    image_processor = models.load_image_processor(args.encoder, args.image_size)
    return model, CaptioningProcessor(image_processor, tokenizer, tokenizer.bos_token_id)


def main(args: ModelArguments, data_args: DataArguments, training_args: VisionMLEConfig) -> VisionMLETrainer:
    set_seed(training_args.seed)
    model, processor = captioner(args)
    train_dataset, eval_dataset, _ = captioning_data(data_args)
    if args.freeze_encoder:
        training_args.encoder_learning_rate = None
        train_dataset = models.EncodedDataset(train_dataset, model, processor)
        eval_dataset = models.EncodedDataset(eval_dataset, model, processor)
    trainer = VisionMLETrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=coco_captions,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ModelArguments, DataArguments, VisionMLEConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
