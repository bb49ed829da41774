"""The experiments run from their command lines, with a few steps each."""

import json
from pathlib import Path

import pytest
import torch

from vision_rl.manifest import write_manifest
from vision_rl.models.uvim import UViMModel


EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def run(script):
    """Runs a script of experiments/ with options."""
    return lambda name, *options: script((EXPERIMENTS / name).resolve(), *options)


SMALL = ["--steps", "1", "--num_train_images", "32", "--num_eval_images", "4"]


def test_the_demo_compares_tuning_with_decoding_and_more_mle_in_two_pieces_and_draws_them(tmp_path, run):
    run("demo.py", *SMALL, "--output_dir", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(results) == ["incomplete", "captions"]
    for rows, tuned in zip(results.values(), ("tuned for mAP", "tuned for CIDEr"), strict=True):
        assert {"MLE", "MLE continued", tuned} < set(rows)
        assert rows["MLE"]["steps"] == 0 and rows["MLE continued"]["steps"] > rows[tuned]["steps"] == 1
    assert all((tmp_path / f"{name}.png").stat().st_size > 30_000 for name in results)


def test_the_study_measures_every_row_and_goes_on_from_what_is_there(tmp_path, run):
    out = ["--work_dir", f"{tmp_path}/work", "--output", f"{tmp_path}/results.json"]
    rows = ["--rows", "mle_continued", "tuned_map", "tuned_f1", "--seeds", "0", "1", "--learning_rates", "1e-4"]
    few = ["--steps", "1", "--num_train_images", "64", "--num_validation_images", "20", "--num_eval_images", "4"]
    command = [
        "detection_study.py",
        "--situation",
        "incomplete",
        *few,
        "--stop_thresholds",
        "0",
        "0.5",
        "1",
        *rows,
        *out,
    ]
    run(*command)
    first = json.loads((tmp_path / "results.json").read_text())
    decoded = first["thresholds"]["tuned_map"]["chosen"]
    assert len(first["rows"]) == 4 * 3 and len(first["rows"][f"tuned_map@{decoded}"]["map_class"]["seeds"]) == 2
    assert {pair.split(" - ")[1].split("@")[0] for pair in first["differences"]} == {"mle", "mle_continued"}
    assert list(first["over_tuned_map"]) == ["tuned_f1 - tuned_map"]
    assert [point["step"] for point in first["curves"]["tuned_map"]] == [0, 1]
    assert all(
        low is None or low > 0 for low, _ in (p["images_needed_interval"] for p in first["curves"]["tuned_map"])
    )
    trained = {path: path.stat().st_mtime for path in (tmp_path / "work").rglob("model.safetensors")}
    assert len(list((tmp_path / "work").rglob("run.json"))) == 1 + 2 * 2
    run(*command)
    assert {path: path.stat().st_mtime for path in trained} == trained
    assert json.loads((tmp_path / "results.json").read_text()) == first


def test_every_ablation_is_tuned_for_as_many_seconds_as_the_default(tmp_path, experiment, run):
    checkpoint = ["--checkpoint", EXPERIMENTS / "checkpoints" / "scene-captions"]
    few = ["--num_eval_images", "4", "--num_test_images", "8", "--tuning_seconds", "0.5", "--learning_rates", "1e-4"]
    out = ["--seeds", "0", "--work_dir", tmp_path / "work", "--output", tmp_path / "results.json"]
    command = ["ablation_study.py", *checkpoint, *few, *out, "--rows", "default", "15 siblings"]
    run(*command)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == ["MLE", "default", "15 siblings"]
    assert results["rows"]["default"]["steps"] > results["rows"]["15 siblings"]["steps"]
    assert results["options"]["15 siblings"] == {"num_generations": 16}
    assert "15 siblings" in experiment("ablation_study").table(results)


STAGE1 = "--max_steps 2 --per_device_train_batch_size 4 --eval_strategy no --report_to none --use_cpu true"


def test_panoptic_segmentation_is_studied_from_its_stage_one_and_then_from_the_continued_models(
    tmp_path, experiment, run
):
    few = ("--num_train_images", "32", "--num_eval_images", "8")
    run("train_uvim_stage1.py", "--output_dir", f"{tmp_path}/stage1", *STAGE1.split(), *few)
    results = json.loads(study(run, "panoptic", tmp_path, *few).read_text())
    assert set(results["rows"]["tuned 0.0001"]) >= {"pq", "sq", "rq", "greedy_reward", "sampled_reward"}

    continued = [f"{tmp_path}/work/panoptic/mle_continued-lr0.0001-seed{seed}" for seed in (0, 1)]
    started = ("--seeds", "2", "3", "--mle_seeds", "0", "1", "--mle_models", *continued)
    longer = json.loads(
        study(run, "panoptic", tmp_path, *few, *started, "--work_dir", f"{tmp_path}/longer").read_text()
    )
    assert not list((tmp_path / "longer" / "panoptic").glob("mle-*"))
    assert longer["rows"]["mle"]["pq"] == results["rows"]["mle_continued 0.0001"]["pq"]
    weights_of = experiment("runs").weights_of
    for seed, folder in zip((2, 3), continued, strict=True):
        tuned = json.loads((tmp_path / f"longer/panoptic/tuned-lr0.0001-seed{seed}/run.json").read_text())
        assert tuned["settings"]["started_from"] == weights_of(Path(folder))


@pytest.fixture
def photos_folder(tmp_path):
    from vision_rl.data.digit_scenes import digit_scenes

    (tmp_path / "photos").mkdir()
    for index, row in enumerate(digit_scenes("train", 45, size=48)):
        row["image"].save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def test_colorization_is_studied_and_hacked(photos_folder, tmp_path, experiment, run):
    data = ("--images_dir", str(photos_folder))
    run("train_uvim_stage1.py", "--task", "colorization", "--output_dir", f"{tmp_path}/stage1", *STAGE1.split(), *data)
    results = json.loads(study(run, "colorization", tmp_path, *data).read_text())
    assert list(results["rows"]) == ["stage1", "mle", "mle_continued 0.0001", "tuned 0.0001"]
    assert len(results["rows"]["tuned 0.0001"]["psnr"]["seeds"]) == 2
    charts = experiment("dense_study").curve_charts(results)
    assert "tuned, 0.0001" in charts["reward"] and "PSNR on validation" in charts["metric"]

    mle = f"{tmp_path}/work/colorization/mle-lr0.001-seed0"
    paths = ("--model", mle, "--work_dir", f"{tmp_path}/runs", "--pictures_dir", f"{tmp_path}")
    run(
        "colorization_hacking.py",
        *data,
        *paths,
        "--steps",
        "2",
        "--eval_steps",
        "1",
        "--output",
        f"{tmp_path}/hack.json",
    )
    results = json.loads((tmp_path / "hack.json").read_text())
    assert [point["step"] for point in results["curves"]["reward alone"]] == [0, 1, 2]
    assert (tmp_path / "reward_hacking.png").exists() and (tmp_path / "reward_hacking_curves.png").exists()


def test_the_preference_of_simulated_raters_is_fitted_and_tuned_for(tmp_path, experiment, run):
    """Stage I has random weights, so that its codes differ in colour; after only two steps of training they would not."""
    preference_study = experiment("preference_study")
    few = {"stage1_steps": 2, "mle_steps": 2, "num_eval": 4, "work_dir": f"{tmp_path}/work"}
    model = Path(preference_study.make_mle_model(preference_study.StudyArguments(**few)))
    stage1 = UViMModel.from_pretrained(model, subfolder="stage1")
    for weights in stage1.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    stage1.save_pretrained(model / "stage1")
    write_manifest(model)
    options = [str(word) for name, value in few.items() for word in (f"--{name}", value)]
    options += ["--tune_steps", "1", "--counts", "30", "--tuned_counts", "30", "--num_fresh", "10"]
    run("preference_study.py", *options, "--output", f"{tmp_path}/found.json", "--pictures", f"{tmp_path}/a.png")
    found = json.loads((tmp_path / "found.json").read_text())["raters"]
    assert list(found) == ["tone", "truth"]
    assert all(0 <= row["greedy"]["win_rate"] <= 1 for rater in found.values() for row in rater["choices"].values())
    assert (tmp_path / "a.png").stat().st_size > 10_000

    for made in (tmp_path / "work" / "tone").glob("choices-*-1.*"):
        made.rename(tmp_path / f"choices{made.suffix}")
    example = ("--model", f"{tmp_path}/work/mle", "--tune", "true", "--tune_steps", "1", "--scenes", "32")
    run("../examples/preferences.py", *example, "--output_dir", str(tmp_path))
    assert (tmp_path / "tuned" / "reward" / "preference" / "config.json").exists()


def test_the_page_on_preferences_has_the_numbers_of_the_experiment(experiment):
    results = EXPERIMENTS / "results" / "preference.json"
    table = experiment("preference_study").table(json.loads(results.read_text()))
    assert table in (EXPERIMENTS.parent / "docs" / "preferences.md").read_text()


def study(run, task: str, folder: Path, *data: str) -> Path:
    """The results of the study of a task with codes, with a few steps."""
    steps = (
        "--mle_steps 16 --steps 1 --control_steps 1 --seeds 0 1 --learning_rates 1e-4 --control_learning_rates 1e-4"
    )
    paths = ("--work_dir", f"{folder}/work", "--output", f"{folder}/results.json", "--picture", f"{folder}/study.png")
    run("dense_study.py", "--task", task, "--stage1", f"{folder}/stage1", *steps.split(), *paths, *data)
    assert (folder / "study.png").stat().st_size > 10_000
    return folder / "results.json"


@pytest.fixture
def captions_folder(tmp_path):
    """Scenes with captions in COCO's form, a tiny ViT and a tiny BERT with a WordPiece vocabulary, as options."""
    from transformers import BertConfig, BertModel, BertTokenizer, Dinov2Config, Dinov2Model

    from vision_rl.data.digit_scenes import digit_scenes

    content: dict[str, list] = {"images": [], "annotations": []}
    for index, row in enumerate(digit_scenes("train", 72, size=48, annotations=["captions"])):
        row["image"].save(tmp_path / f"{index}.png")
        content["images"].append({"id": index, "file_name": f"{index}.png"})
        content["annotations"] += [{"image_id": index, "caption": caption} for caption in row["captions"]]
    (tmp_path / "captions.json").write_text(json.dumps(content))
    words = sorted({word for annotation in content["annotations"] for word in annotation["caption"].split()})
    vocabulary = ["[PAD]", "unused", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *{word.rstrip(",") for word in words}, ","]
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(tmp_path / "bert")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocabulary), intermediate_size=64, **size)).save_pretrained(tmp_path / "bert")
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **size)).save_pretrained(tmp_path / "vit")
    model = f"--encoder {tmp_path}/vit --decoder {tmp_path}/bert --image_size 28 --num_encoder_layers 1"
    data = f"--images_dir {tmp_path} --annotation_file {tmp_path}/captions.json"
    return [*model.split(), "--num_decoder_layers", "1"], data.split()


def test_the_captioning_study_compares_tuning_with_its_control(captions_folder, tmp_path, run):
    model, data = captions_folder
    steps = "--mle_steps 4 --steps 2 --control_steps 2 --folds 3 --learning_rates 1e-4 --control_learning_rates 1e-4"
    paths = ("--work_dir", f"{tmp_path}/work", "--output", f"{tmp_path}/captioning.json")
    decodings = ("--decodings", "greedy", "beam 2", "mbr 16 without end")
    run("captioning_study.py", *model, *data, *steps.split(), *decodings, *paths)
    results = json.loads((tmp_path / "captioning.json").read_text())
    controls = [f"{row}, {decoding}" for row in ("mle", "mle_continued") for decoding in decodings[1:]]
    assert list(results["rows"]) == [*controls, "tuned, greedy", "tuned_without_end, greedy"]
    assert all(len(by_fold) == 3 for by_fold in results["cider_by_fold"].values()) and len(results["captions"]) == 10
    assert sum(of_fold["test"] for of_fold in results["num_images"]) == 72


def test_reading_is_compared_with_more_imitation(tmp_path, run):
    few = "--mle_steps 4 --tune_steps 2 --num_train_images 64 --num_eval_images 16"
    run("compare_ocr.py", *few.split(), "--output_dir", tmp_path)
    assert set(json.loads((tmp_path / "results.json").read_text())["results"]) == {"mle", "control", "tuned"}
