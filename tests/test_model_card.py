"""The model card without a Hub: what it says about several kinds of runs, and that it never stops a run."""

import inspect
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from served_models import KINDS, dataset, served
from tiny import share_of_a, text_dataset, text_processor, tiny_model
from transformers.trainer_utils import HubStrategy
from trl.trainer.base_trainer import _BaseTrainer

import vision_rl
from vision_rl import VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.drawing import RIGHT
from vision_rl.manifest import check_whole
from vision_rl.metric_space import compute_json
from vision_rl.tasks.ocr import character_error_rate
from vision_rl.trainer.curves import Panel, draw_curves
from vision_rl.trainer.model_card import before_and_after, evaluations, settings, usage


pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(folder, kind="reward", processor=None, model=None, eval_dataset=None, **options):
    config = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no" if eval_dataset is None else "steps",
        "eval_steps": 1,
        "max_completion_length": 6,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    } | options
    given = {
        "train_dataset": text_dataset(8),
        "eval_dataset": eval_dataset,
        "processing_class": processor or text_processor(),
        "compute_metrics": character_error_rate,
    }
    model = tiny_model(sharp=1.0) if model is None else model
    if kind == "mle":
        return VisionMLETrainer(model, VisionMLEConfig(str(folder), **config), **given)
    return VisionRewardTrainer(model, share_of_a, VisionRewardConfig(str(folder), **config), **given)


def read(folder) -> tuple[dict, str]:
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.mark.compatibility
def test_the_arguments_are_those_of_trl():
    ours, theirs = (inspect.signature(cls.create_model_card).parameters for cls in (VisionMLETrainer, _BaseTrainer))
    assert list(ours) == list(theirs)


def test_a_run_without_evaluation_has_a_card_without_results(tmp_path):
    made = trainer(tmp_path / "run", "mle")
    made.create_model_card(tags="numbers")  # before training
    made.train()
    made.create_model_card(dataset_name="somebody's rows")
    head, text = read(tmp_path / "run")
    assert head["tags"] == ["vision_rl", "mle"] and "model-index" not in head and "base_model" not in head
    assert "Results" not in text and "`somebody's rows`" in text and 'vision_rl.pipeline("run")' in text
    assert "![The run](images/curve.png)" in text  # shows the loss
    made.create_model_card()  # the data set's name is kept
    assert read(tmp_path / "run")[0]["datasets"] == "somebody's rows"


def test_several_evaluation_sets_are_results_of_their_own(tmp_path):
    sets = {"seen": text_dataset(4), "new": text_dataset(4, seed=1)}
    made = trainer(tmp_path, eval_dataset=sets, eval_on_start=True)
    made.train()
    made.create_model_card()
    results = {
        result["dataset"]["split"]: result["metrics"] for result in read(tmp_path)[0]["model-index"][0]["results"]
    }
    assert set(results) == {"seen", "new"}
    assert {"cer", "reward"} <= {metric["type"] for metric in results["new"]}
    assert {metric["args"]["step"] for metric in results["seen"]} == {0, 2}


def test_pictures_that_cannot_be_drawn_are_left_out_and_told(tmp_path, caplog):
    processor = text_processor()
    processor.draw = lambda *_: 1 / 0
    made = trainer(tmp_path, processor=processor, eval_dataset=text_dataset(4))
    made.train()
    with caplog.at_level(logging.WARNING):
        made.create_model_card()
    assert "without its pictures: ZeroDivisionError" in caplog.text
    assert "model-index" in read(tmp_path)[0] and "latest.png" not in read(tmp_path)[1]


def test_a_resumed_run_shows_what_was_answered_before_it_was_interrupted(tmp_path):
    how = {"eval_dataset": text_dataset(4), "save_strategy": "steps", "save_steps": 1}
    first = trainer(tmp_path, eval_on_start=True, max_steps=1, **how)
    first.train()
    first.create_model_card()
    before = (tmp_path / "images" / "first.png").read_bytes()
    resumed = trainer(tmp_path, max_steps=2, **how)
    resumed.train(resume_from_checkpoint=True)
    resumed.create_model_card()
    _, text = read(tmp_path)
    assert "| | step 0 | step 2 |" in text and "![Answers at step 0](images/first.png)" in text
    assert (tmp_path / "images" / "first.png").read_bytes() == before


def test_a_card_may_be_edited_and_is_followed_to_the_base_model(tmp_path):
    made = trainer(tmp_path / "mle", "mle")
    made.save_model()
    (tmp_path / "mle" / "README.md").write_text("---\nbase_model: somebody/vit\n---\nMine.\n")
    check_whole(tmp_path / "mle")
    tuned = trainer(tmp_path / "tuned", model=str(tmp_path / "mle"))
    tuned.create_model_card()
    assert read(tmp_path / "tuned")[0]["base_model"] == "somebody/vit"  # the folder itself is not on the Hub


def test_an_upload_that_fails_is_told_and_training_goes_on(tmp_path, caplog):
    made = trainer(tmp_path, "mle", save_strategy="steps", save_steps=1, save_total_limit=1)
    made.args.push_to_hub, made.args.hub_strategy = True, HubStrategy.CHECKPOINT  # as if there had been a Hub
    made.hub_model_id, made.push_in_progress = "somebody/run", None
    with caplog.at_level(logging.WARNING):
        made.train()
        made._finish_current_push()
    assert made.state.global_step == 2 and (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    assert "could not be pushed to the Hub" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_the_use_of_a_model_with_a_processor_of_transformers_runs(kind, tmp_path, monkeypatch):
    """Some of these models read patches or prompts, which the trainers handle."""
    model, processor = served(kind)
    args = VisionMLEConfig(str(tmp_path / "run"), use_cpu=True, report_to="none")
    made = VisionMLETrainer(model, args, train_dataset=dataset(kind, 8), processing_class=processor)
    made.save_model()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    Image.new("RGB", (40, 30), "teal").save("image.jpg")
    *lines, last = usage(made, str(tmp_path / "run")).splitlines()
    names: dict = {}
    exec("\n".join([*lines, f"answer = {last}"]), names)
    assert names["answer"] == made.predict([{**dataset(kind, 1)[0], "image": Image.open("image.jpg")}]).predictions[0]


def test_settings_are_what_is_no_default_and_nobodys_secret(tmp_path):
    args = VisionRewardConfig(
        str(tmp_path),
        hub_token="hf_secret",
        num_generations=5,
        beta=0.0,
        use_cpu=True,
        run_name="mine",
        report_to="none",
    )
    assert settings(args) == {"num_generations": 5} | {
        name: value
        for name, value in settings(args).items()
        if name in ("generation_batch_size", "steps_per_generation")
    }
    assert "hf_secret" not in json.dumps(settings(args))


def test_first_and_last_are_of_each_number_on_its_own():
    history = [
        {"step": 0, "eval_cer": 0.9, "eval_runtime": 3.0, "eval_steps_per_second": 2.0},
        {"step": 5, "loss": 1.0},
        {"step": 5, "eval_cer": 0.5, "eval_reward": 0.1},
        {"step": 9, "train_runtime": 3.0},
        {"step": 9, "eval_cer": 0.25, "eval_reward": 0.7},
    ]
    measured = evaluations(history)
    assert measured[0] == {"step": 0, "cer": 0.9} and len(measured) == 3
    assert before_and_after(measured) == {"cer": ((0, 0.9), (9, 0.25)), "reward": ((5, 0.1), (9, 0.7))}
    assert evaluations([]) == [] and before_and_after([]) == {}


def test_a_curve_rises_where_its_numbers_do():
    picture = np.asarray(draw_curves([Panel("reward", [], [(0, 0.0), (10, 1.0)]), Panel("loss", [(5, 2.0)], [])]))
    assert picture.shape == (300, 960, 3)
    rows, columns = np.nonzero((np.abs(picture[:, :480].astype(int) - RIGHT) < 40).all(-1))
    left, right = rows[columns < 100].mean(), rows[columns > 400].mean()
    assert right < left - 150  # rows count from the top
    for empty in ([], [Panel("reward", [], [])]):
        with pytest.raises(ValueError, match="at least one point"):
            draw_curves(empty)


def test_a_modules_page_reads_json_and_says_what_is_none():
    script = f"{vision_rl.metric_path('ocr_reward')}/ocr_reward.py"
    assert compute_json(script, '["4071"]', '["4079"]') == {"reward": 0.75, "rewards": [0.75]}
    with pytest.raises(ValueError, match="references is not valid JSON"):
        compute_json(script, '["4071"]', "4079]")
    with pytest.raises(ValueError, match="predictions must be a JSON list, it is a dict"):
        compute_json(script, "{}", '["4079"]')
    maps = f"{vision_rl.metric_path('panoptic_quality')}/panoptic_quality.py"
    with pytest.raises(ValueError, match="Say which categories there are"):
        compute_json(maps, "[]", "[]")


def test_every_module_has_the_page_and_requirements_of_a_space():
    folders = sorted(path.parent for path in Path(vision_rl.__file__).parent.glob("tasks/*/metrics/*/README.md"))
    assert len(folders) == 10
    for folder in folders:
        head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
        assert (folder / head["app_file"]).read_text().count(f'"{folder.name}.py"') == 1
        assert (folder / "requirements.txt").read_text() == "vision-rl\n"


def test_settings_are_plain_values_and_hold_no_secret(tmp_path):
    inside = {"cache_dir": tmp_path, "token": "hf_hidden"}
    numbers = {"learning_rate": np.float64(1e-3), "max_steps": np.int64(5)}
    shown = settings(VisionMLEConfig(str(tmp_path), model_init_kwargs=inside, use_cpu=True, **numbers))
    assert json.loads(json.dumps(shown)) == shown == yaml.safe_load(yaml.safe_dump(shown))
    assert (shown["learning_rate"], shown["max_steps"]) == (1e-3, 5)
    assert shown["model_init_kwargs"] == {"cache_dir": str(tmp_path)}
