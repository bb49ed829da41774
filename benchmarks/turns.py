"""Steps of our trainer and of the scripts in turns within one process, after a check that they compute the same."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from baselines import OutsideScript, Script, mask_of
from measuring import Peak, peak_memory, ratio
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, VisionEncoderDecoderModel
from workload import NoiseProcessor, Workload, noise_images, share_of_sevens

from vision_rl import VisionProcessor, VisionRewardConfig, VisionRewardTrainer


OURS = "vision_rl"
LOGP_TOLERANCE = 1e-5  # for the log-probability of a token, in float32
GRADIENT_TOLERANCE = 1e-4  # for the gradient of all parameters together, as a share of its norm
Scripts = Mapping[str, Script | OutsideScript]


def make_scripts(workload: Workload, model: VisionEncoderDecoderModel, names: tuple[str, ...]) -> dict[str, Script]:
    """The scripts of these names: "naive" or "competent"."""
    return {name: Script(workload, model, encodes_once=name == "competent") for name in names}


@dataclass
class Times:
    """For each implementation each step's seconds `sample`, `learn`, `optimizer`, `total`, and the `tokens` drawn."""

    steps: dict[str, list[dict[str, float]]]

    def seconds(self, name: str, part: str = "total") -> float:
        return median(step[part] for step in self.steps[name])

    def ratio(self, name: str, part: str = "total") -> float:
        """How many times as long the part takes in the implementation `name` as in ours."""
        return ratio([step[part] for step in self.steps[name]], [step[part] for step in self.steps[OURS]])


def step_times(workload: Workload, model: VisionEncoderDecoderModel, scripts: Scripts, rounds: int) -> Times:
    """The times of one step of each implementation in each round. The first round does not count."""
    clocked = ClockedSteps(workload, scripts)
    train(workload, model, rounds + 1, clocked)
    return Times({name: steps[1:] for name, steps in clocked.steps.items()})


def step_peaks(workload: Workload, model: VisionEncoderDecoderModel, scripts: Scripts) -> dict[str, Peak]:
    """The memory of a whole step beyond weights, optimiser state and images. It includes the gradients."""
    measured = MeasuredSteps(workload.device)
    train(workload, model, 2, measured)  # the first step makes the optimiser's state
    peaks = {OURS: measured.peak}
    pixel_values = pixels(workload)
    for name, script in scripts.items():
        script.step(pixel_values)
        with peak_memory(workload.device) as peaks[name]:
            script.step(pixel_values)
    return peaks


def check_equal(workload: Workload, model: VisionEncoderDecoderModel, scripts: Scripts) -> dict[str, float]:
    """Check in float32 that the scripts find our log-probabilities for our samples and, where `Script`s, our gradients.

    Returns:
        The largest differences: `logp` and, as a share of its norm, `gradient`.
    """
    workload = replace(workload, dtype="float32")
    kept = KeptGradients()
    completions = train(workload, model, 1, kept).drawn
    ids, logps = completions.completion_ids.flatten(0, 1), completions.per_token_logps.flatten(0, 1)
    pixel_values, end = pixels(workload), model.generation_config.eos_token_id
    mask = mask_of(ids, end)
    rewards = torch.tensor(share_of_sevens([row[:n].tolist() for row, n in zip(ids, mask.sum(1), strict=True)]))
    differences = {"logp": 0.0, "gradient": 0.0}
    for name, script in scripts.items():
        with torch.no_grad():
            theirs = script.log_probabilities(pixel_values, ids)
        difference = ((theirs - logps) * mask).abs().max().item()
        assert difference <= LOGP_TOLERANCE, f"log-probabilities of {name} differ by {difference:.1e}"
        differences["logp"] = max(differences["logp"], difference)
        if isinstance(script, Script):
            in_float32 = replace(script, workload=workload)  # the script copies the model
            in_float32.loss(pixel_values, ids, mask, rewards.to(ids.device)).backward()
            gradients = {key: weight.grad for key, weight in in_float32.model.named_parameters()}
            theirs = torch.cat([gradients[key].flatten() for key in kept.gradients])
            ours = torch.cat([gradient.flatten() for gradient in kept.gradients.values()])
            difference = ((ours - theirs).norm() / theirs.norm()).item()
            assert difference <= GRADIENT_TOLERANCE, f"gradients of {name} differ by {difference:.1e} of their norm"
            differences["gradient"] = max(differences["gradient"], difference)
    return differences


def pixels(workload: Workload) -> Tensor:
    images = [row["image"] for row in noise_images(workload)]
    return NoiseProcessor()(images)["pixel_values"].to(workload.device)


# --- our steps ------------------------------------------------------------------------------------------------------------


def train(
    workload: Workload, model: VisionEncoderDecoderModel, steps: int, callback: TrainerCallback
) -> "WatchedTrainer":
    """Train `VisionRewardTrainer` on a copy of the model. Every step has the same images and leaves the weights alone."""
    trainer = make_trainer(WatchedTrainer, workload, model, steps)
    trainer.add_callback(callback)
    if isinstance(callback, ClockedSteps | MeasuredSteps):
        callback.watch(trainer)
    trainer.train()
    return trainer


def make_trainer(
    trainer_class: type,
    workload: Workload,
    model: VisionEncoderDecoderModel,
    steps: int,
    rows: Any = None,
    processor: VisionProcessor | None = None,
    **options,
):
    """A `VisionRewardTrainer` that neither prints nor saves. By default every step has the same images of noise."""
    with TemporaryDirectory() as folder:
        args = VisionRewardConfig(
            folder,
            learning_rate=0.0,
            per_device_train_batch_size=workload.images,
            num_generations=workload.num_generations,
            max_completion_length=workload.length,
            max_steps=steps,
            shuffle_dataset=False,
            bf16=workload.dtype == "bfloat16",
            use_cpu=workload.device == "cpu",
            **{"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no", **options},
        )
    trainer = trainer_class(
        copy.deepcopy(model),
        share_of_sevens,
        args,
        rows or noise_images(workload),
        processing_class=processor or NoiseProcessor(),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class WatchedTrainer(VisionRewardTrainer):
    """Keeps the last samples. Calls `when_begun` once a step's images are there, and `when_drawn` after sampling."""

    def when_begun(self) -> None: ...

    def when_drawn(self) -> None: ...

    def _roll_out(self, *args):
        self.when_begun()
        return super()._roll_out(*args)

    def _sample(self, *args, **kwargs):
        self.drawn = super()._sample(*args, **kwargs)
        self.when_drawn()
        return self.drawn


class ClockedSteps(TrainerCallback):
    """Times each step of the trainer. Before each of them the scripts take their steps.

    The time of a step goes from the begin of the rollout to `on_step_end`: sampling, reward, learning, everything that
    the trainer records, optimiser. If the encoder runs with gradient before sampling, its output serves sampling and
    learning; that forward counts as learning, as the scripts' does.
    """

    def __init__(self, workload: Workload, scripts: Scripts):
        self.now, self.scripts, self.pixel_values = workload.now, scripts, pixels(workload)
        self.steps: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *scripts)}

    def watch(self, trainer: WatchedTrainer) -> None:
        self.trainer = trainer
        trainer.when_begun, trainer.when_drawn = self._begun, self._drawn
        encoder: nn.Module = trainer.model.encoder
        encoder.register_forward_pre_hook(self._encodes)
        encoder.register_forward_hook(self._encoded)

    def _begun(self) -> None:
        for name, script in self.scripts.items():
            self.steps[name].append(script.step(self.pixel_values))
        self.encoding = 0.0
        self.drawn: float | None = None
        self.begin = self.now()

    def _encodes(self, *_) -> None:
        self.encodes = self.now()

    def _encoded(self, *_) -> None:
        if torch.is_grad_enabled() and self.drawn is None:
            self.encoding += self.now() - self.encodes

    def _drawn(self) -> None:
        self.drawn = self.now()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.learned = self.now()

    def on_step_end(self, args, state, control, **kwargs):
        end = self.now()
        self.steps[OURS].append(
            {
                "sample": self.drawn - self.begin - self.encoding,
                "learn": self.learned - self.drawn + self.encoding,
                "optimizer": end - self.learned,
                "total": end - self.begin,
                "tokens": self.trainer.drawn.completion_ids.shape[-1],
            }
        )


class MeasuredSteps(TrainerCallback):
    """The peak memory of the last step."""

    def __init__(self, device: str):
        self.device = device

    def watch(self, trainer: WatchedTrainer) -> None:
        trainer.when_begun = self._begun

    def _begun(self) -> None:
        self.measuring = peak_memory(self.device)
        self.peak = self.measuring.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.measuring.__exit__(None, None, None)


class KeptGradients(TrainerCallback):
    """The gradients of the last step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {
            key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None
        }
