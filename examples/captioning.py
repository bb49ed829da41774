"""Caption images: MLE, then tuning for CIDEr with eight samples for each image, each compared with the other seven.

    python examples/captioning.py                                             # about 4 minutes on a CPU

Writes runs/captioning: models and captions.png. After so few steps the model hardly looks at the image: tuning doubles
CIDEr (0.37 to 0.76) by what is true of most images. More --mle_steps help, or photos: --images_dir coco --karpathy_file ...
"""

from dataclasses import dataclass

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil, set_seed
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.drawing import draw_grid
from vision_rl.models import description, init_sincos_positions
from vision_rl.tasks import captioning


@dataclass
class ScriptArguments:
    mle_steps: int = 1000
    tune_steps: int = 100
    output_dir: str = "runs/captioning"


def word_tokenizer(captions: list[list[str]]) -> PreTrainedTokenizerFast:
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(captions, trainers.WordLevelTrainer(special_tokens=list(names.values())))
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def main(args: ScriptArguments, options: captioning.Options) -> None:
    set_seed(0)
    # The data: rows with `image` and `captions`, a list of strings.
    train_dataset, eval_dataset = captioning.load_data(options, "train"), captioning.load_data(options, "validation")
    shown = eval_dataset.select(range(6))
    # The processor, and a small ViT with the paper's decoder, which writes whole words.
    if options.tokenizer is None:
        options.tokenizer = f"{args.output_dir}/tokenizer"
        word_tokenizer(list(train_dataset["captions"])).save_pretrained(options.tokenizer)
    pixels = ViTImageProcessorPil(size={"height": 64, "width": 64})
    processor = captioning.make_processor(options, pixels, train_dataset)
    size = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 3}
    encoder = description.make_encoder(64, size, patch_size=8, conv_stem=True)
    decoder = description.make_decoder(processor.vocab_size, 32, size)
    model = description.make_model(processor, encoder, decoder)
    init_sincos_positions(model)
    common = {"per_device_train_batch_size": 16, "max_completion_length": 32, "warmup_steps": 50, "logging_steps": 50}
    data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processor}
    data["compute_metrics"] = captioning.make_metric(processor)

    # Step 1: imitate one caption of each image, drawn anew each epoch.
    schedule = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "max_steps": args.mle_steps}
    mle = VisionMLETrainer(model, VisionMLEConfig(f"{args.output_dir}/mle", **schedule, **common), **data)
    mle.train()
    mle.save_model()
    before, captions = mle.evaluate(), mle.predict(shown).predictions
    # Step 2: tune for CIDEr, with the document frequencies of the training captions.
    schedule = {"learning_rate": 1e-4, "max_steps": args.tune_steps, "num_generations": 8}
    config = VisionRewardConfig(f"{args.output_dir}/tuned", **schedule, **common)
    tuned = VisionRewardTrainer(model, captioning.REWARDS["cider"](processor, train_dataset), config, **data)
    tuned.train()
    tuned.save_model()
    after, tuned_captions = tuned.evaluate(), tuned.predict(shown).predictions
    if tuned.is_world_process_zero():
        print(f"CIDEr: {before['eval_cider']:.3f} after MLE, {after['eval_cider']:.3f} after tuning")
        answers = [{"MLE": first, "tuned": second} for first, second in zip(captions, tuned_captions, strict=True)]
        pictures = map(captioning.draw, shown["image"], answers, shown["captions"])
        draw_grid(list(pictures), columns=3).save(f"{args.output_dir}/captions.png")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, captioning.Options))
    parser.set_defaults(scenes=5000, tokenizer=None, max_caption_length=32)
    main(*parser.parse_args_and_config())
