"""The output of a frozen encoder, computed once, trains the decoder in the same way as the images."""

import pytest
import torch
from tiny import share_of_a, text_dataset, text_processor, tiny_images, tiny_model

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.models import EncodedDataset
from vision_rl.tasks.detection import DetectionProcessor
from vision_rl.tasks.ocr import character_error_rate


COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}


def frozen_model(decoder: str = "ours"):
    model = tiny_model(decoder, sharp=1.0)
    model.encoder.requires_grad_(False)
    return model


def trained(trainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_takes_encoded_images(tmp_path, dtype):
    model = frozen_model().to(dtype)
    data = EncodedDataset(text_dataset(8), model, text_processor())
    args = VisionRewardConfig(str(tmp_path), max_completion_length=5, learning_rate=1e-2, **COMMON)

    def all_different(completions, **kwargs):
        return list(map(float, range(len(completions))))

    trainer = VisionRewardTrainer(model, all_different, args, data, processing_class=text_processor())
    before = {name: weight.clone() for name, weight in model.decoder.named_parameters()}
    after = trained(trainer)
    assert all(weight.dtype == dtype and weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(after[f"decoder.{name}"], weight) for name, weight in before.items())


@pytest.mark.parametrize("decoder", ["ours", "gpt2"])
@pytest.mark.parametrize("step", ["mle", "reward"])
def test_training_on_encoded_images_equals_training_on_the_images(tmp_path, decoder, step):
    def run(encoded: bool):
        model = frozen_model(decoder)
        data = text_dataset(8)
        if encoded:
            data = EncodedDataset(data, model, text_processor(), batch_size=3, dtype=torch.float32)
        if step == "mle":
            args = VisionMLEConfig(str(tmp_path), **COMMON)
            return trained(VisionMLETrainer(model, args, train_dataset=data, processing_class=text_processor()))
        args = VisionRewardConfig(str(tmp_path), learning_rate=1e-3, max_completion_length=5, **COMMON)
        return trained(VisionRewardTrainer(model, share_of_a, args, data, processing_class=text_processor()))

    with_images, encoded = run(False), run(True)
    for name, weight in with_images.items():
        torch.testing.assert_close(encoded[name], weight, rtol=1e-4, atol=1e-6)


def test_evaluation_on_encoded_images_equals_evaluation_on_the_images(tmp_path):
    model, data = frozen_model(), text_dataset(8)
    trainer = VisionMLETrainer(
        model,
        VisionMLEConfig(str(tmp_path), **COMMON),
        train_dataset=data,
        eval_dataset={"images": data, "encoded": EncodedDataset(data, model, text_processor())},
        processing_class=text_processor(),
        compute_metrics=character_error_rate,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_encoded_cer"] == metrics["eval_images_cer"]
    assert metrics["eval_encoded_loss"] == pytest.approx(metrics["eval_images_loss"], rel=1e-2)  # stored in float16


@pytest.mark.parametrize("options", [{"flip": True}, {"scale_jitter": (0.3, 2.0)}, {}])
def test_labels_of_other_views_of_an_image_than_the_encoded_one_are_refused(tmp_path, options):
    processor = DetectionProcessor(text_processor().image_processor, ["a"], num_bins=8, max_boxes=1, **options)
    model = tiny_model(vocab_size=processor.vocab_size, length=6, end=None)
    model.encoder.requires_grad_(False)
    objects = {"bbox": [[1, 2, 8, 9]], "category": [0]}
    rows = EncodedDataset([{"image": image, "objects": objects} for image in tiny_images(8)], model, processor)
    args = VisionMLEConfig(str(tmp_path), **COMMON)
    if options:
        with pytest.raises(
            ValueError, match="train_dataset has encoder_outputs, .* shows other views of it in training"
        ):
            VisionMLETrainer(model, args, train_dataset=rows, processing_class=processor)
    else:
        VisionMLETrainer(model, args, train_dataset=rows, processing_class=processor)


def test_an_encoder_that_still_learns_is_refused():
    with pytest.raises(ValueError, match=r"requires_grad_\(False\)"):
        EncodedDataset(text_dataset(2), tiny_model(), text_processor())
