"""How many choices a preference reward needs, and whether its rater prefers the tuned model (docs/preferences.md).

    python experiments/preference_study.py    # about 12 minutes on one busy core; a second call does what is missing

The raters are simulated: they choose between two samples, and are not always sure. One rater likes a tone of colour, the
other likes what is close to the true photo. Both judge by a distance in CIELAB that the reward does not know: it sees only
the choices and `color_features`. The pictures are scenes of digits of 32 pixels, small enough to train stage I, MLE and
tuning in minutes. They show that the method works, not how good the colours can become.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from dense_models import ModelArguments, code_writer
from PIL import Image
from runs import is_trained, train_and_save, weights_of
from tables import markdown, write_json
from transformers import VisionEncoderDecoderModel, ViTImageProcessorPil, set_seed
from trl import TrlParser

import vision_rl
from vision_rl import Stage1Trainer, VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.data.digit_scenes import digit_scenes
from vision_rl.drawing import draw_grid
from vision_rl.models.uvim import UViMConfig, UViMDecoder, UViMModel
from vision_rl.preferences import Choice, ChoiceFile, Pair, PreferenceReward, fit_preference_reward, wilson
from vision_rl.tasks.colorization import (
    ColorizationProcessor,
    color_features,
    colorization_metrics,
    draw,
    psnr,
    rgb_to_lab,
)


SCENES = {"size": 32, "max_digits": 2, "min_height": 14, "max_height": 22, "annotations": []}
COMMON = {"per_device_train_batch_size": 16, "adam_beta2": 0.95, "report_to": "none", "disable_tqdm": True}
COMMON |= {"use_cpu": True, "save_strategy": "no"}
WIDTH = 64
NUM_TRAIN = 2000
TONE = (20.0, 8.0)  # a rose tone, as a and b of CIELAB; the MLE model's mean is (6, 17)
SURE = 5.0  # a distance in CIELAB: of pictures that differ by it the rater chooses the better one 73 % of the time


@dataclass
class StudyArguments:
    stage1_steps: int = 600
    mle_steps: int = 600
    tune_steps: int = 100
    learning_rate: float = 1e-4
    counts: list[int] = field(default_factory=lambda: [50, 100, 200, 400, 800])
    tuned_counts: list[int] = field(default_factory=lambda: [50, 200, 800])
    num_eval: int = 300  # scenes on which the models are compared
    num_fresh: int = 1000  # choices that no reward is fitted on
    work_dir: str = "runs/preference"
    output: str = "experiments/results/preference.json"
    pictures: str = "docs/images/preference.png"


def likes_the_tone(picture: Image.Image, photo: Image.Image) -> float:
    mean = _colours(picture).mean((0, 1))
    return -(mean - torch.tensor(TONE)).norm().item() / SURE


def likes_the_truth(picture: Image.Image, photo: Image.Image) -> float:
    distance = _colours(picture) - _colours(photo.convert("RGB").resize(picture.size))
    return -distance.norm(dim=-1).mean().item() / SURE


RATERS: dict[str, Callable[[Image.Image, Image.Image], float]] = {"tone": likes_the_tone, "truth": likes_the_truth}


def _colours(picture: Image.Image) -> torch.Tensor:
    return rgb_to_lab(torch.tensor(np.asarray(picture)) / 255)[..., 1:]


def chooses(rater: str, pair: Pair, rng: np.random.Generator) -> int:
    """The rater's choice, 0 or 1: mostly the picture it likes better, at the odds of Bradley and Terry's model."""
    first, second = (RATERS[rater](picture, pair.image) for picture in pair.completions)
    return int(rng.random() > 1 / (1 + np.exp(second - first)))


def scenes(split: str, count: int, seed: int = 0) -> Dataset:
    return digit_scenes(split, count, seed, **SCENES)


def collect(rater: str, model: str, count: int, seed: int, folder: Path) -> list[Choice]:
    """One choice between two samples of the model for each of `count` scenes. Choices already in the file are kept."""
    file = ChoiceFile(folder / f"choices-{weights_of(Path(model))}-{seed}.jsonl")
    made = len(list(file.read())) if file.path.exists() else 0
    if made < count:
        images = list(scenes("train", count, seed)["image"])
        answers = vision_rl.pipeline(model, use_cpu=True).sample(images, 2, seed)
        for number in range(made, count):
            pair = Pair(f"{seed}-{number}", images[number], tuple(answers[number]), ("mle", "mle"))
            better = chooses(rater, pair, np.random.default_rng([seed, number]))
            file.append(Choice(pair, better, rater=rater))
    return list(islice(file.read(), count))


def agreement(reward: PreferenceReward, choices: Sequence[Choice]) -> float:
    """The share of the choices that the reward predicts."""
    scores = [reward(list(choice.pair.completions)) for choice in choices]
    return float(
        np.mean(
            [score[choice.better] > score[1 - choice.better] for score, choice in zip(scores, choices, strict=True)]
        )
    )


def ceiling(rater: str, choices: Sequence[Choice]) -> float:
    """The share of the choices that the rater's own liking predicts; the rest is the rater's doubt."""
    likings = [
        [RATERS[rater](picture, choice.pair.image) for picture in choice.pair.completions] for choice in choices
    ]
    return float(
        np.mean(
            [
                liking[choice.better] > liking[1 - choice.better]
                for liking, choice in zip(likings, choices, strict=True)
            ]
        )
    )


def tune(model: str, reward: PreferenceReward, folder: Path, args: StudyArguments) -> str:
    """Tune for the reward, unless that is done already; the folder with the model, and the reward beside it."""
    fitted = {name: round(feature.weight, 6) for name, feature in reward.fitted.items()}
    schedule = {"max_steps": args.tune_steps, "learning_rate": args.learning_rate}
    settings = {**schedule, "reward": fitted, "started_from": weights_of(Path(model))}
    if not is_trained(folder, settings):
        set_seed(0)
        processor = ColorizationProcessor.from_pretrained(model)
        config = VisionRewardConfig(
            str(folder),
            num_generations=4,
            **schedule,
            max_grad_norm=1.0,
            warmup_steps=10,
            logging_steps=20,
            **COMMON,
        )
        trainer = VisionRewardTrainer(
            VisionEncoderDecoderModel.from_pretrained(model),
            reward,
            config,
            train_dataset=scenes("train", NUM_TRAIN),
            processing_class=processor,
            completion_decoder=UViMDecoder(UViMModel.from_pretrained(model, subfolder="stage1"), processor),
        )
        train_and_save(trainer, settings)
    return str(folder)


def against(rater: str, images: Sequence[Image.Image], tuned: list, mle: list) -> dict:
    """How often the rater prefers the tuned model's answer to that of MLE, and how close both are to the photo."""
    rng = np.random.default_rng(0)
    pairs = [Pair(str(n), *both) for n, both in enumerate(zip(images, zip(tuned, mle, strict=True), strict=True))]
    wins = sum(chooses(rater, pair, rng) == 0 for pair in pairs)
    low, high = wilson(wins, len(pairs))
    fidelity = [
        float(np.mean([psnr(p, photo) for p, photo in zip(each, images, strict=True)])) for each in (tuned, mle)
    ]
    return {"win_rate": wins / len(pairs), "interval": [low, high], "psnr": fidelity[0], "psnr_mle": fidelity[1]}


def main(args: StudyArguments) -> None:
    model = make_mle_model(args)
    images = list(scenes("validation", args.num_eval)["image"])
    mle = vision_rl.pipeline(model, use_cpu=True)
    greedy, sampled = mle(images), [answers[0] for answers in mle.sample(images, 1, seed=7)]
    results: dict = {"settings": asdict(args), "raters": {}}
    shown = {"MLE": greedy}
    for rater in RATERS:
        work = Path(args.work_dir) / rater
        choices = collect(rater, model, max(args.counts), 1, work)
        fresh = collect(rater, model, args.num_fresh, 2, work)
        rows = {}
        for count in args.counts:
            reward = fit_preference_reward(islice(choices, count), color_features)
            print(f"{rater}, {count}: {reward.agreement}")
            rows[count] = {"agreement": asdict(reward.agreement), "fresh": agreement(reward, fresh)}
            if count in args.tuned_counts:
                tuned = vision_rl.pipeline(tune(model, reward, work / f"tuned-{count}", args), use_cpu=True)
                answers, samples = tuned(images), [drawn[0] for drawn in tuned.sample(images, 1, seed=7)]
                rows[count]["greedy"] = against(rater, images, answers, greedy)
                rows[count]["sampled"] = against(rater, images, samples, sampled)
        shown[f"likes the {rater}"] = answers
        results["raters"][rater] = {"ceiling": ceiling(rater, fresh), "choices": rows}
    write_json(results, args.output)
    strips = [
        draw(images[row], {name: pictures[row] for name, pictures in shown.items()}, images[row], 96)
        for row in range(min(8, len(images)))
    ]
    draw_grid(strips, columns=2).save(args.pictures)
    print(table(results))


def table(results: dict) -> str:
    """The results as the table of the documentation."""
    rows = []
    for rater, found in results["raters"].items():
        for count, row in found["choices"].items():
            low, high = row["agreement"]["interval"]
            cells = [f"likes the {rater}", str(count), f"{row['agreement']['accuracy']:.3f} [{low:.3f}, {high:.3f}]"]
            cells += [f"{row['fresh']:.3f}", f"{found['ceiling']:.3f}"]
            for how in ("greedy", "sampled"):
                won = row.get(how)
                cells.append(
                    f"{won['win_rate']:.3f} [{won['interval'][0]:.3f}, {won['interval'][1]:.3f}]" if won else ""
                )
            cells.append(f"{row['greedy']['psnr']:.1f} ({row['greedy']['psnr_mle']:.1f})" if "greedy" in row else "")
            rows.append(cells)
    titles = [
        "rater",
        "choices",
        "agreement, left out",
        "fresh choices",
        "ceiling",
        "wins, greedy",
        "wins, sampled",
        "PSNR (MLE)",
    ]
    return markdown(titles, rows)


def make_mle_model(args: StudyArguments) -> str:
    """The folder of a small model that colours scenes. If it is missing it is trained: stage I, then MLE on its codes."""
    folder = Path(args.work_dir) / "mle"
    settings = {"stage1_steps": args.stage1_steps, "mle_steps": args.mle_steps}
    if is_trained(folder, settings):
        return str(folder)
    set_seed(0)
    data = {"train_dataset": scenes("train", NUM_TRAIN), "eval_dataset": scenes("validation", args.num_eval)}
    image_processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    data["processing_class"] = processor = ColorizationProcessor(
        image_processor, num_codes=64, code_len=16, keep_luminance=True
    )
    data["compute_metrics"] = colorization_metrics
    stage1 = UViMModel(
        UViMConfig(
            image_size=32,
            patch_size=8,
            hidden_size=WIDTH,
            num_encoder_layers=2,
            num_decoder_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * WIDTH,
            codebook_size=64,
            code_dim=WIDTH,
            code_length=16,
            code_dropout="none",
            outputs=processor.outputs,
            regression=True,
        )
    )
    schedule = {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": 50, "logging_steps": 100}
    config = VisionMLEConfig(f"{args.work_dir}/stage1", max_steps=args.stage1_steps, **schedule, **COMMON)
    trainer = Stage1Trainer(stage1, config, **data)
    trainer.train()
    print("stage I reads its own codes back:", trainer.evaluate())
    size = ModelArguments(hidden_size=WIDTH, num_encoder_layers=2, num_decoder_layers=2)
    model = code_writer(size, stage1, processor)
    config = VisionMLEConfig(str(folder), max_steps=args.mle_steps, **{**schedule, "learning_rate": 1e-3}, **COMMON)
    mle = VisionMLETrainer(model, config, completion_decoder=UViMDecoder(stage1, processor), **data)
    train_and_save(mle, settings)
    print("MLE:", mle.evaluate())
    return str(folder)


if __name__ == "__main__":
    main(TrlParser(StudyArguments).parse_args_and_config()[0])
