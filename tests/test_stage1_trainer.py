"""Stage I is trained, makes the labels of stage II, and reads stage II's samples, on panoptic maps and on colours."""

import pytest
import torch
from tiny import image_processor, text_dataset, text_processor, tiny_model
from transformers import TrainerCallback

from vision_rl import Stage1Trainer, VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.data.digit_scenes import PANOPTIC_CATEGORIES, digit_scenes
from vision_rl.models.uvim import UViMConfig, UViMDecoder, UViMModel
from vision_rl.tasks.colorization import (
    ColorfulnessReward,
    ColorizationProcessor,
    colorization_metrics,
    fidelity_reward,
)
from vision_rl.tasks.panoptic import PanopticProcessor, PanopticQuality, PanopticReward
from vision_rl.trainer.data_order import RowKey


SIZE, CODES, LENGTH = 32, 16, 4
KINDS = ("panoptic", "color")


def scenes(count: int = 8, split: str = "train"):
    return digit_scenes(
        split, count, size=SIZE, max_digits=2, min_height=12, max_height=20, annotations=["segmentation"]
    )


def processor(kind: str):
    sizes = {"num_codes": CODES, "code_len": LENGTH, "flip": False}
    if kind == "color":
        return ColorizationProcessor(image_processor(SIZE), **sizes)
    return PanopticProcessor(image_processor(SIZE), PANOPTIC_CATEGORIES, max_instances=8, **sizes)


def stage1(kind: str, seed: int = 0) -> UViMModel:
    torch.manual_seed(seed)
    outputs = {"color": 3} if kind == "color" else {"semantics": len(PANOPTIC_CATEGORIES) + 1, "instances": 8}
    return UViMModel(
        UViMConfig(
            image_size=SIZE,
            patch_size=8,
            hidden_size=32,
            num_encoder_layers=1,
            num_decoder_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            codebook_size=CODES,
            code_dim=16,
            code_length=LENGTH,
            outputs=outputs,
            regression=kind == "color",
        )
    )


def code_writer():
    model = tiny_model(vocab_size=CODES + 1, end=None, length=LENGTH)
    model.generation_config.suppress_tokens = [0]
    return model


def settings(tmp_path, **kwargs) -> dict:
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        **kwargs,
    }


def metric(kind: str):
    return colorization_metrics if kind == "color" else PanopticQuality(PANOPTIC_CATEGORIES)


def trained_stage1(tmp_path, kind: str, **kwargs) -> tuple[Stage1Trainer, UViMModel]:
    model, data = stage1(kind), scenes(16)
    trainer = Stage1Trainer(
        model,
        VisionMLEConfig(**settings(tmp_path, learning_rate=2e-3, **kwargs)),
        train_dataset=data,
        eval_dataset=scenes(4, "validation"),
        processing_class=processor(kind),
        compute_metrics=metric(kind),
    )
    trainer.train()
    return trainer, model


@pytest.mark.parametrize("kind", KINDS)
def test_stage_one_learns_its_codebook_with_each_step_and_tells_what_codes_keep(tmp_path, kind):
    trainer, model = trained_stage1(tmp_path, kind, max_steps=30)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert model.codebook.num_updates == 30 and 0 < logs[-1]["codebook_max_ratio"] <= 1
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] > 0 and {"eval_psnr" if kind == "color" else "eval_pq"} <= set(evaluated)


def test_an_interrupted_stage_one_goes_on_where_its_arguments_say(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trainer, whole = trained_stage1(tmp_path, "panoptic", **saving)
    trainer, resumed = trained_stage1(
        tmp_path, "panoptic", **saving, resume_from_checkpoint=str(tmp_path / "checkpoint-1")
    )
    assert trainer.state.global_step == 3
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [1, 2, 3]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_is_the_same_whole_and_in_micro_batches(tmp_path):
    steps = []
    for batch, accumulated in ((8, 1), (2, 4)):
        model, seen = stage1("panoptic"), Gradients()
        model.config.code_dropout = "none"  # dropped codes would be drawn anew for each batch
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        trainer = Stage1Trainer(
            model,
            VisionMLEConfig(**settings(tmp_path, **options)),
            train_dataset=scenes(16),
            processing_class=processor("panoptic"),
            callbacks=[seen],
        )
        trainer.train()
        steps.append((seen.gradients, model.codebook))
    (whole, once), (split, in_parts) = steps
    scale = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        assert (split[name] - gradient).abs().max() <= 1e-4 * scale, name
    torch.testing.assert_close(in_parts.counts, once.counts)
    assert once.num_updates == in_parts.num_updates == 1


@pytest.mark.parametrize("kind", KINDS)
def test_labels_made_online_are_the_codes_of_a_column(tmp_path, kind):
    model, made = stage1(kind), processor(kind)
    data = scenes(4)
    batch = made.dense([row["image"] for row in data], **columns(kind, data))
    codes = model.eval().encode(batch["targets"], batch["pixel_values"])

    def losses(dataset) -> float:
        trainer = VisionMLETrainer(
            code_writer(),
            VisionMLEConfig(**settings(tmp_path)),
            train_dataset=dataset,
            eval_dataset=dataset,
            processing_class=made,
            completion_decoder=UViMDecoder(model, made),
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        return before, trainer.evaluate()["eval_loss"]

    assert losses(data) == pytest.approx(losses(data.add_column("codes", codes.tolist())), rel=1e-5)


def test_stage_one_works_in_the_precision_of_the_training(tmp_path):
    """In a bfloat16 training stage I makes its labels for stage II, and its reconstructions, in bfloat16."""
    model, made, seen = stage1("panoptic"), processor("panoptic"), []
    model.encoder_head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    model.heads["semantics"].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    parts = {"train_dataset": scenes(4), "eval_dataset": scenes(4), "processing_class": made}
    beside = VisionMLETrainer(
        code_writer(),
        VisionMLEConfig(**settings(tmp_path, bf16=True)),
        completion_decoder=UViMDecoder(model, made),
        compute_metrics=metric("panoptic"),
        **parts,
    )
    beside.train()
    beside.evaluate()
    alone = Stage1Trainer(
        model.requires_grad_(True),
        VisionMLEConfig(**settings(tmp_path, bf16=True)),
        compute_metrics=metric("panoptic"),
        **parts,
    )
    alone.evaluate()
    assert len(seen) > 6 and set(seen) == {torch.bfloat16}


def columns(kind: str, data) -> dict:
    return {} if kind == "color" else {name: data[name][:] for name in ("segmentation", "segments_info")}


@pytest.mark.parametrize("kind", KINDS)
def test_stage_two_is_pretrained_and_tuned_and_saved_with_stage_one(tmp_path, kind):
    model, made = stage1(kind), processor(kind)
    parts = {
        "train_dataset": scenes(8),
        "eval_dataset": scenes(4, "validation"),
        "processing_class": made,
        "compute_metrics": metric(kind),
        "completion_decoder": UViMDecoder(model, made, batch_size=3),
    }
    writer = code_writer()
    mle = VisionMLETrainer(writer, VisionMLEConfig(**settings(tmp_path, learning_rate=1e-3)), **parts)
    mle.train()
    reward = [ColorfulnessReward(), fidelity_reward] if kind == "color" else PanopticReward()
    tuned = VisionRewardTrainer(writer, reward, VisionRewardConfig(**settings(tmp_path)), **parts)
    tuned.train()
    entry = next(entry for entry in tuned.state.log_history if "loss" in entry)
    assert entry["reward"] == entry["reward"] and entry["completions/mean_length"] == LENGTH
    assert ("rewards/fidelity_reward/mean" in entry) == (kind == "color")
    evaluated = tuned.evaluate()
    assert {"eval_reward", "eval_psnr" if kind == "color" else "eval_pq"} <= set(evaluated)
    tuned.save_model()
    loaded = UViMModel.from_pretrained(tmp_path, subfolder="stage1")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    assert isinstance(type(made).from_pretrained(tmp_path), type(made))


def test_a_decoder_gives_the_samples_of_an_image_side_by_side():
    model, made = stage1("color").eval(), processor("color")
    torch.nn.init.normal_(model.heads["color"].weight)
    pixel_values = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    ids = torch.randint(1, CODES + 1, (2, 3, LENGTH))
    objects = UViMDecoder(model, made, batch_size=4)(ids, {"pixel_values": pixel_values})
    for image in range(2):
        for sample in range(3):
            alone = made.from_dense(
                model.decode(ids[image, sample][None] - 1, pixel_values[image][None]), pixel_values[image][None]
            )
            assert alone[0].tobytes() == objects[3 * image + sample].tobytes()


def test_what_is_no_stage_one_and_what_makes_no_dense_targets_is_refused(tmp_path):
    args = VisionMLEConfig(**settings(tmp_path))
    with pytest.raises(TypeError, match="Stage1Trainer trains a UViMModel, not a VisionEncoderDecoderModel"):
        Stage1Trainer(code_writer(), args, scenes(8), processing_class=processor("color"))
    with pytest.raises(TypeError, match="stage I needs one that makes dense targets"):
        Stage1Trainer(stage1("color"), args, text_dataset(8), processing_class=text_processor())
    smoothed = VisionMLEConfig(**settings(tmp_path, label_smoothing_factor=0.1))
    with pytest.raises(ValueError, match="label_smoothing_factor has no effect on stage I"):
        Stage1Trainer(stage1("color"), smoothed, scenes(8), processing_class=processor("color"))
    with pytest.raises(ValueError, match="batch_size must be positive"):
        UViMDecoder(stage1("color"), processor("color"), batch_size=0)


def test_stage_one_the_processor_and_the_model_must_agree_about_the_codes(tmp_path):
    made, data = processor("color"), scenes(8)
    parts = {"train_dataset": data, "completion_decoder": UViMDecoder(stage1("color"), made)}
    args = VisionMLEConfig(**settings(tmp_path, max_completion_length=3))
    with pytest.raises(ValueError, match="Stage I has 4 codes per image, but the model writes 3"):
        VisionMLETrainer(code_writer(), args, processing_class=made, **parts)
    other = ColorizationProcessor(image_processor(SIZE), num_codes=8, code_len=LENGTH)
    with pytest.raises(ValueError, match="Stage I has 16 different codes, but the processor has 8"):
        VisionMLETrainer(code_writer(), VisionMLEConfig(**settings(tmp_path)), processing_class=other, **parts)


def test_stage_one_and_its_processor_must_agree_about_codes_and_outputs(tmp_path):
    model, data, sizes = stage1("panoptic"), scenes(8), {"num_codes": CODES, "code_len": LENGTH}
    others = {
        "4 codes per image .*, but the processor has 256": {**sizes, "code_len": 256},
        "16 different codes .*, but the processor has 4096": {**sizes, "num_codes": 4096},
        r"makes targets for \{'semantics': 15, 'instances': 100\}": sizes,
    }
    for message, options in others.items():
        other = PanopticProcessor(image_processor(SIZE), PANOPTIC_CATEGORIES, **options)
        with pytest.raises(ValueError, match=message):
            Stage1Trainer(model, VisionMLEConfig(**settings(tmp_path)), data, processing_class=other)
    made = processor("panoptic")
    with pytest.raises(ValueError, match="makes targets for"):
        VisionMLETrainer(
            code_writer(),
            VisionMLEConfig(**settings(tmp_path)),
            data,
            processing_class=made,
            completion_decoder=UViMDecoder(
                model, PanopticProcessor(image_processor(SIZE), PANOPTIC_CATEGORIES, **sizes)
            ),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_stage_one_predicts_reconstructions_with_or_without_a_metric(tmp_path, kind):
    trainer = Stage1Trainer(
        stage1(kind), VisionMLEConfig(**settings(tmp_path)), scenes(8), processing_class=processor(kind)
    )
    predicted = trainer.predict(scenes(3, "validation"))
    trainer.compute_metrics = metric(kind)
    again = trainer.predict(scenes(3, "validation"))
    for one, other in zip(predicted.predictions, again.predictions, strict=True):
        assert one[1] == other[1] if kind == "panoptic" else one.tobytes() == other.tobytes()
    assert len(predicted.label_ids) == 3 and all(reference is not None for reference in predicted.label_ids)


def test_passes_before_training_teach_the_codebook_nothing(tmp_path):
    trained = []
    for passes in (0, 2):
        trainer = Stage1Trainer(
            stage1("color"),
            VisionMLEConfig(**settings(tmp_path, max_steps=1)),
            scenes(8),
            processing_class=processor("color"),
        )
        batch = trainer.data_collator([trainer.get_train_dataloader().dataset[RowKey(0, 0)]])
        for _ in range(passes):
            trainer.model.train()(batch["pixel_values"], batch["targets"])
        torch.manual_seed(0)
        trainer.train()
        trained.append(trainer.model.codebook.counts.sum().item())
    assert trained[0] == trained[1]


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_targets_are_predicted(tmp_path, kind):
    made = processor(kind)
    trainer = VisionMLETrainer(
        code_writer(),
        VisionMLEConfig(**settings(tmp_path)),
        train_dataset=scenes(8),
        processing_class=made,
        completion_decoder=UViMDecoder(stage1(kind), made),
    )
    assert len(trainer.predict(scenes(2).select_columns(["image"])).predictions) == 2


def test_data_sets_with_and_without_codes_are_not_mixed(tmp_path):
    made, data = processor("color"), scenes(8)
    with pytest.raises(ValueError, match="Some data sets have a column `codes` and others do not"):
        VisionMLETrainer(
            code_writer(),
            VisionMLEConfig(**settings(tmp_path)),
            train_dataset=data,
            eval_dataset=data.add_column("codes", [[0] * LENGTH] * 8),
            processing_class=made,
            completion_decoder=UViMDecoder(stage1("color"), made),
        )
