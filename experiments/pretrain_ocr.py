"""Step 1: train a small vision transformer from scratch to read strings of real handwritten digits (MLE).

    python examples/pretrain_ocr.py --output_dir runs/ocr-mle
    accelerate launch --multi_gpu --num_processes 2 examples/pretrain_ocr.py --output_dir runs/ocr-mle

Every option of VisionMLEConfig can be given, or a YAML file: --config FILE. docs/results.md has the numbers to expect.
"""

from dataclasses import dataclass
from functools import cache

from transformers import VisionEncoderDecoderModel, ViTConfig, ViTImageProcessorPil, ViTModel, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.data.handwriting import digit_strings
from vision_rl.models import (
    VisionDecoderConfig,
    VisionDecoderForCausalLM,
    init_sincos_positions,
    vision_encoder_decoder,
)
from vision_rl.tasks.ocr import TextProcessor, character_error_rate, character_tokenizer


HEIGHT, WIDTH, MAX_DIGITS = 32, 80, 4
DEFAULTS = {
    "output_dir": "runs/ocr-mle",
    "max_steps": 4000,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "optim": "big_vision_adafactor",  # the paper's optimiser
    "learning_rate": 4e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 200,
    "logging_steps": 100,
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "save_strategy": "no",
}


@dataclass
class ScriptArguments:
    num_train_images: int = 24_000
    num_eval_images: int = 500


@cache
def digits(split: str, num_images: int):
    """Two to four digits an image, some of them touching."""
    return digit_strings(
        split, num_images, min_digits=2, max_digits=MAX_DIGITS, height=HEIGHT, width=WIDTH, crowding=0.25
    )


def small_reader(vocab_size: int) -> VisionEncoderDecoderModel:
    """A ViT on columns of 4 pixels and the paper's decoder, 115,000 parameters."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    image = {"image_size": (HEIGHT, WIDTH), "patch_size": (HEIGHT, 4)}
    activation = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    encoder = ViTModel(ViTConfig(**image, **size, **activation, num_hidden_layers=2))
    text = {"vocab_size": vocab_size, "max_position_embeddings": MAX_DIGITS + 1}  # and the end token
    decoder = VisionDecoderForCausalLM(VisionDecoderConfig(**text, **size, num_hidden_layers=1))
    model = vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    init_sincos_positions(model)
    return model


def main(script_args: ScriptArguments, training_args: VisionMLEConfig) -> VisionMLETrainer:
    set_seed(training_args.seed)
    processor = TextProcessor(ViTImageProcessorPil(do_resize=False), character_tokenizer("0123456789"))
    trainer = VisionMLETrainer(
        model=small_reader(processor.vocab_size),
        args=training_args,
        train_dataset=digits("train", script_args.num_train_images),
        eval_dataset=digits("validation", script_args.num_eval_images),
        processing_class=processor,
        compute_metrics=character_error_rate,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, VisionMLEConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
