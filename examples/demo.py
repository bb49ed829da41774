"""The whole story in a few minutes on two CPU cores: imitate, then tune for the reward, and compare with more imitation.

    make demo            (or: python examples/demo.py)

Strings of real handwritten digits are read by a small vision transformer. It is trained by maximum likelihood (MLE),
then tuned for "the whole string is right" and "most characters are right". The control continues MLE instead, for as
many steps and at least as long. No digit of the test images was ever seen in training. Writes runs/demo/.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pretrain_ocr
import tune_ocr
from transformers import TrainerCallback, VisionEncoderDecoderModel
from trl import TrlParser

from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig
from vision_rl.tasks.ocr import TextProcessor, character_accuracy_reward, character_error_rate, draw, draw_grid


@dataclass
class DemoArguments:
    output_dir: str = "runs/demo"
    seed: int = 0
    mle_steps: int = 4000
    tune_steps: int = 300
    control_learning_rate: float = 1e-4  # the best of 3e-5, 1e-4, 3e-4 on the validation images
    num_train_images: int = 16_000
    num_test_images: int = 1000


class AtLeast(TrainerCallback):
    """Stops when both are reached: this many steps, and this many seconds."""

    def __init__(self, steps: int, seconds: float):
        self.steps, self.seconds = steps, seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        enough = state.global_step >= self.steps and time.perf_counter() - self.start >= self.seconds
        control.should_training_stop = control.should_training_stop or enough


def main(demo: DemoArguments) -> None:
    out = Path(demo.output_dir)
    quiet = {"seed": demo.seed, "use_cpu": True, "report_to": "none", "eval_strategy": "no"}
    data = {"num_train_images": demo.num_train_images}

    print(f"\n1/3  MLE: {demo.mle_steps} steps on strings of real handwritten digits")
    settings = {**pretrain_ocr.DEFAULTS, **quiet, "output_dir": str(out / "mle"), "max_steps": demo.mle_steps}
    start = time.perf_counter()
    mle = pretrain_ocr.main(pretrain_ocr.ScriptArguments(**data), VisionMLEConfig(**settings))
    mle_seconds = time.perf_counter() - start

    print(f"\n2/3  Reward tuning: {demo.tune_steps} steps, 4 samples an image")
    settings = {**tune_ocr.DEFAULTS, **quiet, "output_dir": str(out / "tuned"), "max_steps": demo.tune_steps}
    start = time.perf_counter()
    tuned = tune_ocr.main(tune_ocr.ScriptArguments(model=str(out / "mle"), **data), VisionRewardConfig(**settings))
    tune_seconds = time.perf_counter() - start

    print(f"\n3/3  Control: MLE continued, at least {demo.tune_steps} steps and {tune_seconds:.0f} s")
    settings = {
        **settings,
        "output_dir": str(out / "control"),
        "max_steps": 100 * demo.tune_steps,
        "learning_rate": demo.control_learning_rate,
    }
    settings.pop("num_generations")
    start = time.perf_counter()
    control = VisionMLETrainer(
        model=VisionEncoderDecoderModel.from_pretrained(out / "mle"),
        args=VisionMLEConfig(**settings),
        train_dataset=tuned.train_dataset,
        processing_class=TextProcessor.from_pretrained(out / "mle"),
        compute_metrics=character_error_rate,
        callbacks=[AtLeast(demo.tune_steps, tune_seconds)],
    )
    control.train()
    control.save_model()
    control_seconds = time.perf_counter() - start

    test = pretrain_ocr.digits("test", demo.num_test_images)
    runs = {"MLE": (mle, mle_seconds), "MLE continued": (control, control_seconds), "tuned": (tuned, tune_seconds)}
    table = {name: score(trainer, test, seconds) for name, (trainer, seconds) in runs.items()}
    report(table, demo, out)
    picture(test, mle, tuned).save(out / "readings.png")
    print(f"\nWritten: {out}/results.json, {out}/readings.png (what was read before and after), and the three models.")


def score(trainer, test, seconds: float) -> dict:
    """Greedy readings of the test images, by metric and by reward."""
    readings = trainer.predict(test)
    metrics = character_error_rate(readings.predictions, readings.label_ids)
    accuracy = character_accuracy_reward(readings.predictions, readings.label_ids)
    return {
        "exact_match": metrics["exact_match"],
        "cer": metrics["cer"],
        "character_accuracy": sum(accuracy) / len(accuracy),
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
    }


def report(table: dict[str, dict], demo: DemoArguments, out: Path) -> None:
    (out / "results.json").write_text(json.dumps({"settings": vars(demo), "test": table}, indent=2) + "\n")
    print(f"\n{demo.num_test_images} test images, greedy reading, seed {demo.seed}\n")
    print(f"{'':16}{'exact match':>12}{'char. error rate':>18}{'char. accuracy':>16}{'steps':>8}{'seconds':>9}")
    for name, row in table.items():
        print(
            f"{name:16}{row['exact_match']:12.1%}{row['cer']:18.1%}{row['character_accuracy']:16.1%}"
            f"{row['steps']:8}{row['seconds']:9.0f}"
        )


def picture(test, mle, tuned):
    """Test images that the two models read differently first, then others, in the data set's order."""
    before, after = mle.predict(test).predictions, tuned.predict(test).predictions
    order = sorted(range(len(test)), key=lambda i: before[i] == after[i])[:8] + list(range(4))
    return draw_grid(
        [draw(test[i]["image"], {"before": before[i], "after": after[i]}, test[i]["text"]) for i in order]
    )


if __name__ == "__main__":
    main(*TrlParser((DemoArguments,)).parse_args_and_config())
