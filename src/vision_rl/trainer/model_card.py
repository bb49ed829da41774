"""The model card of a run: what was learned and from what, numbers and pictures before and after, and how to use it."""

import dataclasses
import logging
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel
from PIL import Image
from transformers import VisionEncoderDecoderModel

import vision_rl
from vision_rl.citation import CITATION
from vision_rl.manifest import CARD
from vision_rl.models.unwrapping import base_model
from vision_rl.models.uvim import UViMModel
from vision_rl.processing import VisionProcessor
from vision_rl.recording import plain, without_secrets
from vision_rl.trainer.curves import Panel, draw_curves
from vision_rl.trainer.shown_answers import Evaluated, draw_answers
from vision_rl.trainer.stream import is_stream


if TYPE_CHECKING:
    from vision_rl.trainer.vision_trainer import VisionTrainer


logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("model_card.md")
PICTURES = "images"  # folder beside the card
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "huggingface_hub")
OF_THE_MACHINE = ("_runtime", "_per_second", "_preparation_time")  # the ends of an evaluation's other keys
# Settings of a place, not of a run; none of a card's business, and some are secrets.
NOT_SHOWN = re.compile(
    r"hub_|push_to_hub|_n_gpu|output_dir|run_name|logging_|log_|report_to|disable_tqdm|dataloader_|use_cpu|save_|"
    r"local_rank|deepspeed|accelerator_config|fsdp|parallelism_config|project|trackio|.*_token$|do_|resume_from|"
    r"skip_memory_metrics|eval_on_start|eval_steps|eval_strategy|eval_delay|ignore_data_skip|num_completions_to_print"
)


def write_card(
    trainer: "VisionTrainer", folder: Path, model_name: str | None, dataset_name: str | None, tags: list[str]
) -> None:
    """Write the card as `README.md` into a folder, with its pictures in `images/`. Only the main process calls this."""
    name = model_name or folder.absolute().name
    repo, data_name = trainer.hub_model_id or name, dataset_name or "evaluation set"
    history = trainer.state.log_history
    measured, task = evaluations(history), trainer.processor.pipeline_tag
    bases = base_models(trainer.model)
    data = ModelCardData(
        base_model=(bases[0] if len(bases) == 1 else bases) or None,
        datasets=dataset_name,
        eval_results=eval_results(measured, task, dataset_name, data_name, _names(trainer.eval_dataset)) or None,
        library_name="peft" if isinstance(trainer.model, PeftModel) else "transformers",
        model_name=name,
        pipeline_tag=task,
        tags=tags,
    )
    pictures = _save_pictures(trainer, folder, measured)
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        summary=_summary(trainer, bases, dataset_name),
        learned=_rewards(trainer),
        usage=usage(trainer, repo),
        results=_table(measured),
        run=_run(trainer),
        config=type(trainer.args).__name__,
        settings=yaml.safe_dump(settings(trainer.args), sort_keys=True).strip(),
        versions=_versions(),
        citation=CITATION,
        **pictures,
    )
    card.save(folder / CARD)


# --- from what, and for what -------------------------------------------------------------------------------------------


def base_models(model: Any) -> list[str]:
    """Return the models of the Hub that this one comes from: the model that was loaded, or the parts that it was made of.

    For a model from a folder, these are the models that the card in the folder names.
    """
    policy = base_model(model)
    parts = [policy.encoder, policy.decoder] if isinstance(policy, VisionEncoderDecoderModel) else []
    for configs in ([policy.config], [part.config for part in parts]):
        found = [base for config in configs for base in _on_hub(str(config._name_or_path or ""))]
        if found:
            return list(dict.fromkeys(found))
    return []


def _on_hub(name: str) -> list[str]:
    card = Path(name) / CARD
    if name and card.is_file():
        base = ModelCard.load(card, ignore_metadata_errors=True).data.base_model
        return [base] if isinstance(base, str) else list(base or [])
    is_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
    return [name] if is_name and not Path(name).exists() else []


def _link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})"


def _summary(trainer: "VisionTrainer", bases: list[str], dataset_name: str | None) -> str:
    task = (trainer.processor.pipeline_tag or "vision").replace("-", " ")
    origin = f", from {' and '.join(map(_link, bases))}" if bases else ""
    on_hub = dataset_name is not None and _on_hub(dataset_name)
    data = f" on {_link(dataset_name, 'datasets/') if on_hub else f'`{dataset_name}`'}" if dataset_name else ""
    return f"A model for {task}, {trainer.learned_by}{data}{origin}, made with vision_rl."


def _rewards(trainer: "VisionTrainer") -> str:
    weights = trainer.rewards_learned
    if not weights:
        return ""
    named = [f"`{name}`" if weight == 1 else f"`{name}` (weight {weight:g})" for name, weight in weights.items()]
    return f"What earns a reward: {', '.join(named)}."


# --- how to use it ------------------------------------------------------------------------------------------------------


def usage(trainer: "VisionTrainer", repo: str) -> str:
    """Return a few lines of code that answer an image with the model."""
    processor, policy = trainer.processing_class, base_model(trainer.model)
    plain = policy is trainer.model and isinstance(policy, VisionEncoderDecoderModel)  # without adapters
    module, name = type(processor).__module__, type(processor).__name__
    of_library = module.startswith(("vision_rl.", "transformers."))
    lines = ["import vision_rl", *([] if of_library else [f"import {module}  # has {name}"])]
    load = f'processor = AutoProcessor.from_pretrained("{repo}")'
    if isinstance(policy, UViMModel):
        lines += ["from transformers import AutoModel, AutoProcessor", "", load]
        lines += [
            f'stage1 = AutoModel.from_pretrained("{repo}")  # `vision-rl mle --stage1 {repo}` trains on its codes'
        ]
    elif module.startswith("vision_rl."):
        lines += ["", f'answer = vision_rl.pipeline("{repo}")', 'result = answer("image.jpg")']
        lines += ['answer.draw("image.jpg", result).save("answer.png")']
    elif isinstance(processor, VisionProcessor) or not plain:
        lines += ["from PIL import Image", "", 'args = vision_rl.VisionMLEConfig("answers", report_to="none")']
        lines += [f'trainer = vision_rl.VisionMLETrainer("{repo}", args)', f"rows = [{_row(trainer)}]"]
        lines += ["trainer.predict(rows).predictions[0]"]
    else:
        lines += [
            "from PIL import Image",
            "from transformers import AutoProcessor, VisionEncoderDecoderModel",
            "",
            load,
        ]
        lines += [f'model = VisionEncoderDecoderModel.from_pretrained("{repo}")']
        lines += ['inputs = processor(images=Image.open("image.jpg").convert("RGB"), return_tensors="pt")']
        lines += ["processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]"]
    return "\n".join(lines)


def _row(trainer: "VisionTrainer") -> str:
    """Write a row that the model can answer, with the prompt of the first training row where the model reads one."""
    rows: Any = trainer.train_dataset
    known = rows is not None and not is_stream(rows)
    prompts = {column: rows[0][column] if known else "..." for column in trainer.processor.input_columns}
    return "".join(
        ['{"image": Image.open("image.jpg")', *(f', "{name}": {text!r}' for name, text in prompts.items()), "}"]
    )


# --- numbers ------------------------------------------------------------------------------------------------------------


def evaluations(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return what the evaluations of a run have measured, in order: `step`, and the numbers without the prefix `eval_`."""
    found = []
    for entry in history:
        numbers = {
            key.removeprefix("eval_"): value
            for key, value in entry.items()
            if key.startswith("eval_") and not key.endswith(OF_THE_MACHINE)
        }
        if numbers:
            found.append({"step": entry["step"], **numbers})
    return found


def before_and_after(measured: list[dict[str, float]]) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Return the first and the last `(step, value)` of each number."""
    names = list(dict.fromkeys(name for entry in measured for name in entry if name != "step"))
    points = {name: [(entry["step"], entry[name]) for entry in measured if name in entry] for name in names}
    return {name: (of_name[0], of_name[-1]) for name, of_name in points.items()}


def eval_results(
    measured: list[dict[str, float]], task: str, dataset: str | None, data_name: str, eval_names: list[str]
) -> list[EvalResult]:
    """Return the entries of `model-index`: each metric and the reward, now and at the first evaluation."""
    results = []
    for name, ((first, before), (last, after)) in before_and_after(measured).items():
        split = next((each for each in eval_names if name.startswith(f"{each}_")), None)
        metric = name.removeprefix(f"{split}_") if split else name
        if "/" in metric:
            continue  # a part of another number
        of_dataset: dict[str, Any] = {
            "dataset_type": dataset or "unknown",
            "dataset_name": data_name,
            "dataset_split": split,
        }
        shown = [(after, metric, {"step": last})]
        if first < last:
            shown.append((before, f"{metric} before, at step {first}", {"step": first}))
        results += [
            EvalResult(
                task_type=task,
                metric_type=metric,
                metric_name=text,
                metric_value=value,
                metric_args=args,
                **of_dataset,
            )
            for value, text, args in shown
        ]
    return results


def _names(eval_dataset: Any) -> list[str]:
    return list(eval_dataset) if isinstance(eval_dataset, dict) else []


def _table(measured: list[dict[str, float]]) -> str:
    rows = before_and_after(measured)
    if not rows:
        return ""
    first, last = measured[0]["step"], measured[-1]["step"]
    if first == last:
        lines = [f"| | step {last} |", "|---|---|"]
        return "\n".join([*lines, *(f"| {name} | {after:.4g} |" for name, (_, (_, after)) in rows.items())])
    lines = [f"| | step {first} | step {last} |", "|---|---|---|"]
    lines += [f"| {name} | {before:.4g} | {after:.4g} |" for name, ((_, before), (_, after)) in rows.items()]
    note = "" if first == 0 else "\n\nThe run was first evaluated after its beginning."
    return "\n".join(lines) + note


# --- pictures -----------------------------------------------------------------------------------------------------------


def _save_pictures(trainer: "VisionTrainer", folder: Path, measured: list[dict[str, float]]) -> dict[str, Any]:
    """Save the pictures and return what the template needs of them. A picture that cannot be drawn is left out."""
    told: dict[str, Any] = {}
    shown, processor = trainer.shown_answers, trainer.processor
    try:
        panels = curves(trainer.state.log_history, measured, trainer.args.metric_for_best_model)
        if panels:
            told["curve"] = _saved(draw_curves(panels), folder, "curve.png")
        answers = {"first": shown.first if shown.first is not shown.latest else None, "latest": shown.latest}
        for name, evaluated in answers.items():
            if isinstance(evaluated, Evaluated) and evaluated.rows:
                told[f"{name}_pictures"] = _saved(draw_answers(evaluated, processor), folder, f"{name}.png")
                told[f"{name}_step"] = evaluated.step
    except Exception as error:
        logger.warning("The model card is written without its pictures: %s: %s", type(error).__name__, error)
    if shown.first is None and "latest_pictures" in told and (folder / PICTURES / "first.png").is_file():
        told |= {"first_pictures": f"{PICTURES}/first.png", "first_step": measured[0]["step"]}  # before it was resumed
    return told


def _saved(picture: Image.Image, folder: Path, name: str) -> str:
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    picture.save(folder / PICTURES / name)
    return f"{PICTURES}/{name}"


def curves(history: list[dict[str, float]], measured: list[dict[str, float]], best: str | None) -> list[Panel]:
    """Return a panel of the reward, or else the loss, and one of the metric that chooses the best model, or of the first."""
    learned = "reward" if any("reward" in entry for entry in history) else "loss"
    names = [
        name for entry in measured for name in entry if "/" not in name and name not in ("step", "loss", "reward")
    ]
    metric = (best or "").removeprefix("eval_")
    metric = metric if metric in names else next(iter(names), "")
    panels = []
    for name in (learned, metric):
        training = [(entry["step"], entry[name]) for entry in history if name in entry and "step" in entry]
        evaluated = [(entry["step"], entry[name]) for entry in measured if name in entry]
        if len(training) + len(evaluated) > 1:
            panels.append(Panel(name, training, evaluated))
    return panels


# --- the run ------------------------------------------------------------------------------------------------------------


def _run(trainer: "VisionTrainer") -> str:
    args, state = trainer.args, trainer.state
    rows: Any = trainer.train_dataset
    count = "" if rows is None else ", a stream of rows" if is_stream(rows) else f", {len(rows):,} rows"
    return f"{state.global_step} steps of {args.images_at_once} images{count}, seed {args.seed}."


def settings(args: Any) -> dict[str, Any]:
    """Return the settings of a run that are not defaults. Settings of the machine, and secrets, are left out."""
    values = args.to_dict()
    shown = {}
    for field in dataclasses.fields(args):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = values.get(field.name)
        if value != default and (value or default) and not NOT_SHOWN.match(field.name):
            shown[field.name] = value
    return plain(without_secrets(shown))


def _versions() -> str:
    named = {name: version(name) for name in LIBRARIES} | {"torch": torch.__version__}
    text = ", ".join(f"{name} {number}" for name, number in named.items())
    return f"vision_rl {vision_rl.__version__}, {text}, Python {platform.python_version()}"
