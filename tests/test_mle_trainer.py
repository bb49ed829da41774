"""MLE: the loss is right for every accumulation, unlike that of transformers' Trainer; and learning."""

import pytest
import torch
import torch.nn.functional as F
from scripts.train import make_trainer
from tiny import END, START, text_dataset, text_processor, tiny_images, tiny_model
from transformers import Trainer, TrainingArguments

from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.compatibility import CHECKPOINTING
from vision_rl.tasks.ocr import character_error_rate
from vision_rl.trainer.collator import VisionCollator
from vision_rl.trainer.data_order import RowDataset, RowKey


def arguments(tmp_path, batch, accumulation, cls=VisionMLEConfig, **kwargs):
    return cls(
        str(tmp_path),
        **{
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 1,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
            "learning_rate": 1e-3,
            **kwargs,
        },
    )


def trainer(tmp_path, batch=8, accumulation=1, cls=VisionMLETrainer, model=None, dataset=None, **kwargs):
    parts = {name: kwargs.pop(name) for name in ("compute_metrics", "eval_dataset") if name in kwargs}
    return cls(
        model or tiny_model(sharp=1.0),
        arguments(tmp_path, batch, accumulation, **kwargs),
        train_dataset=dataset if dataset is not None else text_dataset(8),
        processing_class=text_processor(),
        **parts,
    )


def first_log(trained):
    return next(entry for entry in trained.state.log_history if "loss" in entry)


def true_loss(model, dataset, label_smoothing=0.0):
    """The mean loss over all tokens of the set, from the logits of transformers' own forward on one batch."""
    processor = text_processor()
    rows = RowDataset(dataset)
    batch = VisionCollator(processor, "image", {"text": "text"}, True)([rows[RowKey(0, i)] for i in range(len(rows))])
    logits = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=label_smoothing).item()


def test_the_loss_is_the_mean_over_the_steps_tokens_whatever_the_accumulation(tmp_path):
    expected = true_loss(tiny_model(sharp=1.0), text_dataset(8))
    logs = []
    for batch, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        trained = trainer(tmp_path, batch, accumulation)
        trained.train()
        logs.append(first_log(trained))
    for entry in logs:
        assert entry["loss"] == pytest.approx(expected, rel=1e-4)
        assert entry["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-4)


def test_stock_trainer_multiplies_the_loss_by_the_accumulation_steps(tmp_path):
    """A fault of transformers, because of which we compute the loss ourselves. When this fails, it has been fixed."""
    rows = RowDataset(text_dataset(8))
    collate = VisionCollator(text_processor(), "image", {"text": "text"}, True)

    def stock_collate(keys):
        batch = collate([rows[RowKey(0, key)] for key in keys])
        return {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}

    losses = []
    for batch, accumulation in ((8, 1), (2, 4)):
        args = arguments(tmp_path, batch, accumulation, cls=TrainingArguments, remove_unused_columns=False)
        stock = Trainer(tiny_model(sharp=1.0), args, train_dataset=list(range(8)), data_collator=stock_collate)
        stock.train()
        losses.append(first_log(stock)["loss"])
    assert losses[1] > 3 * losses[0]


def test_mle_learns_to_read_a_tiny_set_by_heart(tmp_path):
    dataset = text_dataset(8)
    trained = trainer(
        tmp_path,
        max_steps=150,
        learning_rate=5e-3,
        logging_steps=50,
        eval_dataset=dataset,
        compute_metrics=character_error_rate,
    )
    trained.train()
    metrics = trained.evaluate()
    assert metrics["eval_cer"] < 0.1 and metrics["eval_loss"] < 0.3


def test_an_optimizer_that_evaluates_other_weights_than_it_trains_is_told_when(tmp_path):
    """As schedule-free ones do; Trainer calls `train` before each step."""
    told = []

    class TwoSided(torch.optim.SGD):
        def train(self):
            told.append("train")

        def eval(self):
            told.append("eval")

    model = tiny_model()
    optimizers = (TwoSided(model.parameters(), lr=1e-3), None)
    args = VisionMLEConfig(
        str(tmp_path),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    data = {"train_dataset": text_dataset(16), "eval_dataset": text_dataset(4), "processing_class": text_processor()}
    VisionMLETrainer(model, args, optimizers=optimizers, **data).train()
    assert told == ["train", "eval", "train", "eval"]


def test_the_evaluation_loss_is_the_token_mean_of_the_whole_set(tmp_path):
    dataset = text_dataset(7, seed=3)
    metrics = trainer(tmp_path, eval_dataset=dataset, per_device_eval_batch_size=3).evaluate()
    assert metrics["eval_loss"] == pytest.approx(true_loss(tiny_model(sharp=1.0), dataset), rel=1e-4)
    assert "eval_cer" not in metrics


def test_padding_is_not_learned_and_the_end_is():
    labels = text_processor()(images=tiny_images(2), text=["a", "bcd"])["labels"]
    assert labels.tolist() == [[2, END, -100, -100], [3, 4, 5, END]]


def test_an_auxiliary_loss_is_added_by_subclassing_and_is_a_mean_over_the_images_of_the_step(tmp_path):
    class Auxiliary(VisionMLETrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            per_image = outputs.encoder_last_hidden_state.square().mean((1, 2)) * 100  # (B,)
            loss = loss + self.mean_over_step(per_image)
            return (loss, outputs) if return_outputs else loss

    plain = trainer(tmp_path)
    plain.train()
    logs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trained = trainer(tmp_path, batch, accumulation, cls=Auxiliary)
        trained.train()
        logs.append(first_log(trained))
    assert logs[0]["loss"] > first_log(plain)["loss"] + 50
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-4)
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-3)


def test_the_encoder_has_its_own_learning_rate(tmp_path):
    model = tiny_model(sharp=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path, model=model, encoder_learning_rate=0.0, optim="adamw_torch").train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("encoder") for name in moved)


def test_label_smoothing_is_honoured(tmp_path):
    smooth = trainer(tmp_path, label_smoothing_factor=0.2)
    expected = true_loss(smooth.model, text_dataset(8), label_smoothing=0.2)
    smooth.train()
    assert first_log(smooth)["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("decoder", ["gpt2", "bert", "trocr"])
def test_transformers_decoders_are_trained_alike(tmp_path, decoder):
    trained = trainer(tmp_path, model=tiny_model(decoder, sharp=0.5), max_steps=8, learning_rate=3e-3)
    expected = true_loss(trained.model, text_dataset(8))
    trained.train()
    losses = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, rel=0.2)  # dropout changes the loss a little
    assert losses[-1] < 0.8 * losses[0]


def test_the_logits_are_those_of_transformers_own_forward(tmp_path):
    made = trainer(tmp_path)
    batch = next(iter(made.get_train_dataloader()))
    _, outputs = made.compute_loss(made.model, batch, return_outputs=True)
    labels = batch["labels"]
    shifted = F.pad(labels[:, :-1], (1, 0), value=START).masked_fill(F.pad(labels[:, :-1], (1, 0)) == -100, START)
    expected = made.model(pixel_values=batch["pixel_values"], decoder_input_ids=shifted).logits
    torch.testing.assert_close(outputs.logits, expected)


@pytest.mark.parametrize("decoder", ["ours", "gpt2", "bert"])
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {CHECKPOINTING: True}])
def test_a_step_without_the_logits_has_the_loss_and_the_gradient_of_one_with_them(tmp_path, decoder, options):
    steps = []
    for fused in (True, False):
        trainer = make_trainer("mle", tmp_path, decoder, max_steps=1, **options)
        trainer._head_can_be_fused = None if fused else False
        trainer.train()
        assert trainer._head_can_be_fused is fused
        steps.append(next(log for log in trainer.state.log_history if "loss" in log))
    rel = 2e-2 if "bf16" in options else 1e-5
    assert steps[0]["loss"] == pytest.approx(steps[1]["loss"], rel=rel)
    assert steps[0]["grad_norm"] == pytest.approx(steps[1]["grad_norm"], rel=rel)
