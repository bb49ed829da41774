"""Segment images in three steps: learn codes for maps (stage I), MLE on the codes, tuning for panoptic quality (PQ).

    python examples/panoptic.py                       # on a CPU, far from converged

Writes runs/panoptic: stage I, both models and maps.png, MLE above and tuned below. docs/panoptic.md has an experiment.
For a folder in COCO's form: --images_dir, --masks_dir, --annotation_file, and the same three with --eval_ in front.
"""

from dataclasses import dataclass

from transformers import ViTImageProcessorPil, set_seed
from trl import TrlParser

from vision_rl import Stage1Trainer, VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer, models
from vision_rl.drawing import draw_grid
from vision_rl.models import description
from vision_rl.tasks import panoptic


@dataclass
class ScriptArguments:
    stage1_steps: int = 1000
    mle_steps: int = 1000
    tune_steps: int = 100
    output_dir: str = "runs/panoptic"


def main(args: ScriptArguments, options: panoptic.Options) -> None:
    set_seed(0)
    # The data: rows with `image`, `segmentation` and `segments_info`.
    train_dataset, eval_dataset = panoptic.load_data(options, "train"), panoptic.load_data(options, "validation")
    shown = eval_dataset.select(range(4))
    processor = panoptic.make_processor(options, ViTImageProcessorPil(size={"height": 64, "width": 64}), train_dataset)
    data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processor}
    data["compute_metrics"] = panoptic.make_metric(processor)
    common = {"per_device_train_batch_size": 16, "adam_beta2": 0.95, "warmup_steps": 50, "logging_steps": 50}
    schedule = {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", **common}

    # Stage I writes a map as codes and reads them back. Its quality is the ceiling of what follows.
    size = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
    codes = {"codebook_size": processor.num_codes, "code_length": processor.code_len, "code_dropout": "none"}
    layers = {"code_dim": 128, "outputs": processor.outputs, "num_encoder_layers": 2, "num_decoder_layers": 3}
    stage1 = models.UViMModel(models.UViMConfig(image_size=64, patch_size=8, **size, **codes, **layers))
    config = VisionMLEConfig(f"{args.output_dir}/stage1", max_steps=args.stage1_steps, **schedule)
    reader = Stage1Trainer(stage1, config, **data)
    reader.train()
    reader.save_model()
    ceiling = reader.evaluate()

    # Stage II sees the image and writes the codes. First MLE: it imitates the codes that stage I writes.
    encoder = description.make_encoder(64, size | {"num_hidden_layers": 3}, patch_size=8, conv_stem=True)
    decoder = description.make_decoder(processor.vocab_size, processor.code_len, size | {"num_hidden_layers": 2})
    model = description.make_model(processor, encoder, decoder)
    models.init_sincos_positions(model)
    data["completion_decoder"] = models.uvim.UViMDecoder(stage1, processor)  # stage I, frozen
    config = VisionMLEConfig(f"{args.output_dir}/mle", max_steps=args.mle_steps, **schedule)
    mle = VisionMLETrainer(model, config, **data)
    mle.train()
    mle.save_model()
    before, maps = mle.evaluate(), mle.predict(shown).predictions
    # Then tuning: stage I turns each sample into a map, which is compared with the true one.
    schedule = {"learning_rate": 1e-4, "num_generations": 4, **common}
    config = VisionRewardConfig(f"{args.output_dir}/tuned", max_steps=args.tune_steps, **schedule)
    tuned = VisionRewardTrainer(model, panoptic.PanopticReward(), config, **data)
    tuned.train()
    tuned.save_model()
    after, tuned_maps = tuned.evaluate(), tuned.predict(shown).predictions

    if tuned.is_world_process_zero():
        print(f"PQ: {ceiling['eval_pq']:.3f} read back, {before['eval_pq']:.3f} MLE, {after['eval_pq']:.3f} tuned")
        images, truth = list(shown["image"]), processor.get_references(shown)
        pictures = map(processor.draw, images * 2, [*maps, *tuned_maps], truth * 2)
        draw_grid(list(pictures), columns=len(shown)).save(f"{args.output_dir}/maps.png")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, panoptic.Options))
    parser.set_defaults(scenes=5000, max_instances=8, num_codes=256, code_len=16, flip=False)
    main(*parser.parse_args_and_config())
