"""A study uses the models that it has finished again, but never those of other settings."""

import json

import pytest
from tiny import text_dataset, text_processor, tiny_model
from transformers import TrainerCallback

from vision_rl import VisionMLEConfig, VisionMLETrainer


SETTINGS = {"row": "mle", "learning_rate": 1e-3, "seeds": (0, 1), "data.num_images": 8}


def trained(runs, folder, settings=SETTINGS):
    args = VisionMLEConfig(str(folder), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True)
    trainer = VisionMLETrainer(tiny_model(), args, train_dataset=text_dataset(4), processing_class=text_processor())
    runs.train_and_save(trainer, settings)


def test_a_finished_model_of_the_same_settings_is_used_again(experiment, tmp_path):
    runs = experiment("runs")
    assert not runs.is_trained(tmp_path, SETTINGS)
    trained(runs, tmp_path)
    assert runs.is_trained(tmp_path, SETTINGS)
    assert runs.cost(tmp_path)["steps"] == 1
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({**SETTINGS, "learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002"),
        ({**SETTINGS, "weight_decay": 0.1}, "weight_decay was 'not recorded' and is 0.1"),
        ({name: value for name, value in SETTINGS.items() if name != "row"}, "row was 'mle' and is 'not given'"),
    ],
)
def test_a_model_of_other_settings_is_refused(experiment, tmp_path, settings, told):
    runs = experiment("runs")
    (tmp_path / "run.json").write_text(json.dumps({"steps": 1, "seconds": 1, "settings": SETTINGS}))
    with pytest.raises(ValueError, match=f"has a model of other settings: {told}. Choose another work_dir"):
        runs.is_trained(tmp_path, settings)


def test_a_model_that_does_not_say_its_settings_is_refused(experiment, tmp_path):
    (tmp_path / "run.json").write_text('{"steps": 1, "seconds": 1}')
    with pytest.raises(ValueError, match="row was 'not recorded'"):
        experiment("runs").is_trained(tmp_path, SETTINGS)


def test_an_interrupted_training_goes_on_from_its_last_checkpoint(experiment, tmp_path):
    runs = experiment("runs")

    class Interruption(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    def train(*callbacks):
        options = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}
        args = VisionMLEConfig(str(tmp_path), **options, report_to="none", use_cpu=True)
        data = {"train_dataset": text_dataset(4), "processing_class": text_processor()}
        trainer = VisionMLETrainer(tiny_model(), args, callbacks=list(callbacks), **data)
        runs.train_and_save(trainer, SETTINGS)
        return trainer.state

    with pytest.raises(KeyboardInterrupt):
        train(Interruption())
    assert not runs.is_trained(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="has a model of other settings: row was 'mle' and is 'tuned'"):
        runs.is_trained(tmp_path, {**SETTINGS, "row": "tuned"})
    state = train()
    assert runs.is_trained(tmp_path, SETTINGS) and runs.cost(tmp_path)["steps"] == 4
    logged = [(log["step"], log["cpu_seconds"]) for log in state.log_history if "loss" in log]
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    assert sorted(logged) == logged and 0 < logged[0][1] < logged[-1][1]  # the clock goes on after the interruption


def test_what_is_trained_from_other_weights_has_other_settings(experiment, tmp_path):
    runs = experiment("runs")
    for seed in (0, 1):
        tiny_model(seed=seed).save_pretrained(tmp_path / str(seed))
    first, second = (runs.weights_of(tmp_path / str(seed)) for seed in (0, 1))
    assert first != second and first == runs.weights_of(tmp_path / "0")


def test_the_detection_study_refuses_models_of_another_number_of_steps(experiment, tmp_path):
    study = experiment("detection_study")
    options = {"num_train_images": 16, "work_dir": str(tmp_path)}
    folder = study.DetectionStudy(study.StudyArguments(steps=1, **options)).trained("tuned_recall", 1e-4, 0)
    again = study.DetectionStudy(study.StudyArguments(steps=1, **options)).trained("tuned_recall", 1e-4, 0)
    assert again == folder and json.loads((folder / "run.json").read_text())["settings"]["max_steps"] == 1
    with pytest.raises(ValueError, match="max_steps was 1 and is 2"):
        study.DetectionStudy(study.StudyArguments(steps=2, **options)).trained("tuned_recall", 1e-4, 0)
