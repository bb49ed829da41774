"""The page of a run: its verdict, its pictures of each task, and that nothing in it runs or is fetched."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import yaml
from counting_task import squares
from PIL import Image
from pyarrow import parquet
from tiny import text_dataset, text_processor, tiny_images, tiny_model

import vision_rl
from vision_rl import VisionMLEConfig, VisionMLETrainer
from vision_rl.analysis import Answers, Comparison, write_report
from vision_rl.analysis.answers import Change, answers_of
from vision_rl.analysis.gallery import chosen
from vision_rl.analysis.page import Html, page, picture, tag
from vision_rl.cli import main
from vision_rl.recording import shown_command
from vision_rl.tasks import captioning, colorization, detection, ocr, panoptic


pytestmark = pytest.mark.usefixtures("one_thread")

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&</title></style>"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, content: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def read(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def harmless(elements: Elements) -> None:
    """Check that nothing on a page runs, is fetched or leads away."""
    for name, attributes in elements.found:
        assert name not in ("script", "iframe", "object", "embed", "link", "base", "form", "a"), name
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "xlink:href", "srcdoc")]
        assert attributes.get("src", "data:").startswith("data:")
        assert "url(" not in (attributes.get("style") or "")
    assert "default-src 'none'" in elements.all("meta")[1]["content"]


def drawn(image, completion, reference=None, width=None):
    return image


def comparison(before, after) -> Comparison:
    """A comparison on as many images as there are rewards."""
    count = len(after)
    answers = [str(row) for row in range(count)]
    old = Answers(answers, drawn, np.array(before, float), {"reward": np.mean(before), "map": 0.5, "cer": 0.2})
    new = Answers(answers, drawn, np.array(after, float), {"reward": np.mean(after), "map": 0.4, "cer": 0.2})
    return Comparison(tiny_images(count), None, new, old)


# --- the verdict ------------------------------------------------------------------------------------------------------------


def test_a_change_by_hand():
    """The changes 1, 1, -1, 0 and one without a score have the mean .25 and the standard error sqrt(11/12 / 4)."""
    change = Change.of(np.array([1.0, 1.0, np.nan, -1.0, 0.0]))
    assert (change.gained, change.lost, change.same) == (2, 1, 1)
    assert change.mean == 0.25 and change.high - change.mean == pytest.approx(1.96 * (11 / 12 / 4) ** 0.5)
    assert not change.is_clear
    assert Change.of(np.array([1.0, np.nan])) is None


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0, 1, 2, 3], [1, 2, 3, 4.1], "It worked: the greedy answer earns 1.02 more reward than before"),
        ([1, 2, 3, 4.1], [0, 1, 2, 3], "It got worse: the greedy answer earns 1.02 less reward than before"),
        ([0, 1, 2, 3], [1, 0, 3, 2], "No clear change: the greedy answer earns 0 more reward than before"),
    ],
)
def test_the_page_says_first_whether_it_worked(tmp_path, before, after, verdict):
    text = read(write_report(tmp_path, comparison(before, after))).text
    assert f"{verdict}, on average over 4 images" in text
    assert "Went down: map 0.5 → 0.4." in text and "Went up: no metric." in text
    assert text.index("Went down") < text.index("What was measured") < text.index("Largest gains")


def test_where_no_answer_earns_anything_else_the_page_says_so(tmp_path):
    text = read(write_report(tmp_path, comparison([1, 2], [1, 2]))).text
    assert "Nothing changed: the answers to all 2 images earn as much reward as before." in text


def test_without_answers_the_log_speaks(tmp_path):
    log = [{"step": step, "loss": 1.0, "reward": step / 10} for step in range(1, 41)]
    log += [{"step": step, "eval_reward": value, "eval_map": -value} for step, value in ((0, 1), (20, 3), (40, 2))]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    elements = read(write_report(tmp_path))
    assert "went from 1 (step 0) to 2 (step 40) in the evaluations; the best was 3 at step 20" in elements.text
    assert "The reward of samples went from 1.05 to 3.05" in elements.text
    assert "map (-1.00) moved against the reward" in elements.text
    assert len(elements.all("svg")) == 3  # reward, map, loss


def test_a_folder_with_nothing_in_it_has_a_page_and_no_folder_has_none(tmp_path):
    assert "The log does not say whether it worked" in read(write_report(tmp_path)).text
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("training.json", "{", "training.json is not valid JSON"),
        ("training.json", "[]", "should hold a dict; it holds a list"),
        ("trainer_state.json", '{"log_history": 3}', "is not the log of a run"),
        ("completions/completions_1.png", "no picture", "is not a picture of completions"),
        ("completions/completions_1.parquet", "no table", "is not a table of completions"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, told):
    (tmp_path / "completions").mkdir()
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=told):
        write_report(tmp_path)


def test_completions_without_pictures_are_a_table_and_an_evaluation_has_its_numbers(tmp_path):
    for name in ("completions", "eval"):
        (tmp_path / name).mkdir()
    rows = {"row_index": [3, 3], "completion": ["a <b>dog</b>", ""], "reward": [0.5, None], "advantage": [0.1, 0.2]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "completions" / "eval_completions_00020.parquet")
    (tmp_path / "eval" / "metrics.json").write_text(json.dumps({"split": "validation", "map": 0.25}))
    elements = read(write_report(tmp_path))
    assert "a <b>dog</b>" in elements.text and "eval_completions, step 20" in elements.text and "none" in elements.text
    assert "Evaluation" in elements.text and "0.25" in elements.text


# --- the gallery ------------------------------------------------------------------------------------------------------------


def test_the_largest_gains_and_losses_come_first_and_no_image_twice():
    changes = [0, 5, -2, 1, np.nan, -7, 0]
    rows = chosen(comparison(np.zeros(7), changes), num_shown=2)
    assert rows == {"Largest gains": [1, 3], "Largest losses": [5, 2], "As they come": [0, 4]}


def test_of_a_model_alone_the_best_and_the_worst_come_first():
    alone = replace(comparison(np.zeros(5), [3, 1, np.nan, 5, 4]), before=None)
    assert chosen(alone, 2) == {"Highest rewards": [3, 4], "Lowest rewards": [1, 0], "As they come": [2]}
    unscored = Comparison(tiny_images(2), None, Answers(["a", "b"], drawn))
    assert chosen(unscored, 2) == {"As they come": [0, 1]}


BOXES = {"boxes": [[2, 2, 20, 20]], "labels": [0], "scores": [0.9]}
MAP = (np.ones((32, 32), int), [{"id": 1, "category_id": 0}])
TASKS = {
    "ocr": (ocr.draw, "123", "124"),
    "detection": (detection.draw, BOXES, {"boxes": [[2, 2, 20, 20]], "labels": [0]}),
    "captioning": (captioning.draw, "a dog", ["a dog runs"]),
    "colorization": (colorization.draw, tiny_images(1)[0], tiny_images(1)[0]),
    "panoptic": (panoptic.draw, MAP, MAP),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_tasks_answers_are_drawn_by_the_tasks_own_draw(tmp_path, name):
    draw, completion, reference = TASKS[name]

    answers = Answers([completion] * 3, draw, np.array([0.0, 1.0, 2.0]))
    shown = Comparison(tiny_images(3), [reference] * 3, answers, Answers([completion] * 3, draw, np.zeros(3)))
    elements = read(write_report(tmp_path, shown))
    harmless(elements)
    images = elements.all("img")
    assert len(images) == 6 and all(each["src"].startswith("data:image/") for each in images)


def test_a_picture_is_no_wider_than_asked_for_and_says_what_it_is():
    shown = Elements(picture(Image.new("RGB", (1000, 100)), "a <picture>", widest=200)).all("img")[0]
    assert (shown["width"], shown["height"], shown["alt"]) == ("200", "20", "a <picture>")


# --- hostile text -----------------------------------------------------------------------------------------------------------


def test_text_is_escaped_unless_it_is_html():
    assert tag("p", "<b>", tag("b", "x"), class_='"') == '<p class="&quot;">&lt;b&gt;<b>x</b></p>'
    assert isinstance(tag("p"), Html) and "<b>" not in page("<b>")


def hostile_run(folder: Path) -> Path:
    """The page of a folder in which every text is an attack."""
    log = [
        {"step": step, "loss": 1.0, "reward": 1.0, f"eval_{HOSTILE}": step, "eval_reward": -step} for step in range(4)
    ]
    record = {"model": HOSTILE, "command": HOSTILE, "settings": {HOSTILE: HOSTILE}, "versions": {HOSTILE: [HOSTILE]}}
    summary = {"mean": [0.0, 1.0], "error": [0.1, None]}
    model = {"samples": HOSTILE, "images": HOSTILE, "greedy": {"mean": 1.0, "error": None}}
    for key, x in (("quantiles", "levels"), ("best_of_n", "n"), ("likeliest_of_n", "n")):
        model[key] = {x: [1, 2], **summary}
    noise = {"name": HOSTILE, "images": HOSTILE, "images_needed": None, "images_needed_interval": [1.0, None]}
    files = {
        "trainer_state.json": {"log_history": log},
        "training.json": {**record, "trainer": HOSTILE, "started": HOSTILE, "steps": HOSTILE, "seconds": 3},
        "reward/rewards.json": [{"name": HOSTILE, "weight": HOSTILE, "source": HOSTILE}],
        "analysis/samples.json": {"models": {HOSTILE: model}},
        "analysis/noise.json": {"models": {HOSTILE: {"estimators": [{**noise, "share_of_signal": 0.5}]}}},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "completions").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "completions" / "<b onclick='x'>&\"_7.png")

    def draw(image, completion, reference, width):
        return captioning.draw(image, completion, [reference], width)

    answers = [
        Answers([HOSTILE] * 3, draw, np.arange(3.0) * place, {HOSTILE: 0.1 * place, "\ud800": place})
        for place in (0, 1)
    ]
    shown = Comparison(tiny_images(3), [HOSTILE] * 3, answers[1], answers[0], HOSTILE)
    return write_report(folder, shown)


def test_no_text_of_a_run_becomes_markup(tmp_path):
    elements = read(hostile_run(tmp_path))
    harmless(elements)
    assert elements.text.count("document.title='owned'") > 20  # the attacks are there, as text
    assert len(elements.all("title")) == 1


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no browser at hand")
def test_a_browser_shows_the_page_and_runs_nothing_of_it(tmp_path):
    path = hostile_run(tmp_path)
    command = [CHROMIUM, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}/profile", "--window-size=500,1200"]
    dumped = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, check=True).stdout
    assert re.search("<title>.*: reward tuning</title>", dumped)
    subprocess.run([*command, f"--screenshot={tmp_path}/page.png", path.as_uri()], capture_output=True, check=True)
    with Image.open(tmp_path / "page.png") as shown:
        assert len(shown.convert("RGB").getcolors(maxcolors=2**24)) > 50


# --- the command ------------------------------------------------------------------------------------------------------------


COUNTING = Path(__file__).with_name("counting_task.py")
FEW = "--max_steps 2 --per_device_train_batch_size 4 --report_to none --use_cpu true --disable_tqdm true --save_strategy no"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the runs `mle` and `tuned` of a model that counts squares."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = "_hidden_size 32 {0}_layers 1 {0}_heads 2 {0}_mlp_size 64"
    new = " ".join(side + sizes.format(f"--{side[2:]}") for side in ("--encoder", "--decoder"))
    assert (
        main(f"mle --task {COUNTING} --image_size 32 --patch_size 16 {new} {FEW} --output_dir {folder}/mle".split())
        == 0
    )
    tuning = "--learning_rate 1e-2 --eval_strategy steps --eval_steps 1 --eval_on_start true --logging_steps 1"
    files = "--log_completions true --num_completions_to_print 0 --hub_token secret"
    command = f"tune --task {COUNTING} --model {folder}/mle {FEW} {tuning} {files} --output_dir {folder}/tuned"
    assert main(command.split()) == 0
    return folder


def test_a_run_is_reported_by_its_folder_alone(runs, capsys):
    assert main(["report", str(runs / "tuned"), "--num_images", "20", "--use_cpu", "true"]) == 0
    elements = read(runs / "tuned" / "report.html")
    harmless(elements)
    assert "tuned answers " in capsys.readouterr().out
    for text in (
        "closeness_reward than before",
        "20 images",
        "mean_absolute_error",
        "As they come",
        "learning_rate",
        "torch",
    ):
        assert text in elements.text
    assert len(elements.all("img")) >= 2 * 6 + 2  # six rows as they come, two sheets
    assert "secret" not in (runs / "tuned" / "report.html").read_text()
    assert "secret" not in (runs / "tuned" / "command.yaml").read_text()


def test_a_run_of_mle_is_reported_without_a_model_before(runs):
    command = f"report {runs}/mle --num_images 10 --use_cpu true --output_file {runs}/page.html"
    assert main(command.split()) == 0
    text = read(runs / "page.html").text
    assert "mle: training" in text and "Highest rewards" in text and "Largest gains" not in text


def test_the_recorded_command_runs_again_and_is_evaluated(runs, tmp_path):
    recorded = yaml.safe_load((runs / "tuned" / "command.yaml").read_text())
    assert recorded["command"] == "tune" and recorded["learning_rate"] == 0.01 and "hub_token" not in recorded
    again = ["tune", "--config", str(runs / "tuned" / "command.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(again) == 0
    logs = [json.loads((folder / "trainer_state.json").read_text()) for folder in (runs / "tuned", tmp_path / "again")]
    rewards = [[line["reward"] for line in log["log_history"] if "reward" in line] for log in logs]
    assert rewards[0] == rewards[1] and len(rewards[0]) == 2
    assert main(["eval", "--config", str(tmp_path / "again" / "command.yaml"), "--use_cpu", "true"]) == 0
    assert (tmp_path / "again" / "eval" / "metrics.json").is_file()
    few = ["--num_images", "3", "--num_samples", "4", "--use_cpu", "true"]
    assert main(["analyze", "--config", str(tmp_path / "again" / "command.yaml"), *few]) == 0
    samples = json.loads((tmp_path / "again" / "analysis" / "samples.json").read_text())
    assert [model["path"] for model in samples["models"].values()] == [str(runs / "mle"), str(tmp_path / "again")]


def test_a_recorded_recipe_keeps_its_environment_and_its_evaluation_but_no_secret(runs, tmp_path):
    recipe = yaml.safe_load((runs / "tuned" / "command.yaml").read_text()) | {
        "env": {"VISION_RL_COLOUR": "blue", "SOME_API_KEY": "secret", "HF_TOKEN": "secret"},
        "eval": {"max_eval_rows": 7},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        for name in recipe["env"]:
            patch.setenv(name, "")
        assert main(["tune", "--config", str(tmp_path / "recipe.yaml")]) == 0
    recorded = yaml.safe_load((tmp_path / "run" / "command.yaml").read_text())
    assert recorded["env"] == {"VISION_RL_COLOUR": "blue"} and recorded["eval"] == {"max_eval_rows": 7}


def test_a_command_line_is_shown_without_tokens():
    shown = shown_command(
        ["/usr/bin/vision-rl", "tune", "--hub_token", "secret", "--hub-token=secret", "--model", "a b"]
    )
    assert shown == "vision-rl tune --hub_token ... --hub-token=... --model 'a b'"
    assert shown_command(["/x/vision_rl/cli/__main__.py", "mle"]) == "vision-rl mle"
    inside = shown_command(["vision-rl", "mle", "--model_init_kwargs", '{"token": "hf_hidden", "revision": "x"}'])
    assert "hidden" not in inside and "revision" in inside
    assert shown_command(["train.py", "--steps", "3"]) == "train.py --steps 3"


def test_a_run_of_a_script_is_reported_by_its_log(tmp_path, capsys):
    args = VisionMLEConfig(str(tmp_path), max_steps=2, logging_steps=1, report_to="none", use_cpu=True)
    trainer = VisionMLETrainer(tiny_model(), args, text_dataset(), processing_class=text_processor())
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["settings"]["max_steps"] == 2 and record["steps"] == 2 and record["rows"] == {"train_dataset": 16}
    assert record["versions"]["vision_rl"] == vision_rl.__version__
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 0
    assert "It shows no answers" in capsys.readouterr().out
    assert "Loss" in read(tmp_path / "report.html").text


def test_answers_are_those_of_evaluation(tmp_path):
    args = VisionMLEConfig(str(tmp_path), report_to="none", use_cpu=True)

    def count(predictions, references):
        return {"same": float(np.mean([p == r for p, r in zip(predictions, references, strict=True)]))}

    rows = text_dataset(5)
    trainer = VisionMLETrainer(tiny_model(), args, None, rows, text_processor(), count)
    answers, references = answers_of(trainer, rows)
    assert references == rows["text"][:] and answers.rewards is None
    assert answers.completions == trainer.predict(rows).predictions
    assert answers.metrics["same"] == trainer.evaluate()["eval_same"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("report", "needs the folder of a run before its options"),
        ("report --num_images 3", "needs the folder of a run before its options"),
        ("report nowhere", "There is no run folder nowhere"),
        ("report {runs}/tuned --num_images 1", "num_images must be at least 2"),
        ("report {runs}/tuned --num_imags 3", "Did you mean num_images?"),
        ("report {runs}/tuned --before nowhere --use_cpu true", "nowhere"),
    ],
)
def test_a_command_that_cannot_work_says_so_in_a_line(runs, capsys, command, told):
    assert main(command.format(runs=runs).split()) == 1
    assert told in capsys.readouterr().err


def test_a_run_on_columns_of_other_names_is_evaluated_reported_and_analysed(runs, tmp_path):
    rows = squares(20)
    renamed = datasets.Dataset.from_list([{"photo": row["image"], "number": row["count"]} for row in rows])
    datasets.DatasetDict(train=renamed, validation=renamed).save_to_disk(str(tmp_path / "data"))
    recipe = {"task": str(COUNTING), "model": str(runs / "mle"), "dataset_name": str(tmp_path / "data")}
    recipe |= {"image_column": "photo", "target_columns": {"count": "number"}, "output_dir": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["tune", "--config", str(tmp_path / "run.yaml"), *FEW.split()]) == 0
    config = ["--config", str(tmp_path / "run" / "command.yaml"), "--use_cpu", "true"]
    assert main(["eval", *config]) == 0
    assert main(["report", str(tmp_path / "run"), "--num_images", "4", "--use_cpu", "true"]) == 0
    assert main(["analyze", *config, "--num_images", "2", "--num_samples", "4"]) == 0
