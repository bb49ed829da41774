"""Files that a user might download run no code, reach nothing outside of their folder, and fail with a clear error.

The hostile files are made here: pickles and modules that write a marker, even if a question is answered with yes.
"""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from scripts.train import make_trainer
from test_stage1_trainer import stage1
from tiny import text_processor

from vision_rl import TextProcessor
from vision_rl.manifest import DamagedFolder, write_manifest
from vision_rl.models import load_encoder
from vision_rl.models.uvim import UViMModel, convert_uvim
from vision_rl.tasks.captioning import CiderReward, DocumentFrequency
from vision_rl.trainer.replay import replay


pytestmark = pytest.mark.usefixtures("one_thread")

CLEAR = (ValueError, TypeError, OSError)


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that hostile code would write. Every question on standard input is answered with yes."""
    monkeypatch.setattr("builtins.input", lambda *args: "yes")
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 1000))
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "code of a hostile file has run"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The folder of a model, with a checkpoint below it."""
    folder = tmp_path_factory.mktemp("good")
    trainer = make_trainer("mle", folder, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def hostile(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "hostile"))


def pickled(marker: Path) -> bytes:
    return pickle.dumps({"state": Marker(marker)})


def torch_pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state": Marker(marker)}, buffer)
    return buffer.getvalue()


def npz_pickled(marker: Path, names=("hashes", "counts", "num_images", "append_eos", "version")) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.array([Marker(marker)], dtype=object) for name in names})
    return buffer.getvalue()


def add_code(folder: Path, marker: Path) -> None:
    (folder / "hostile.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom transformers import *\nclass Hostile(PreTrainedConfig): pass\n"
    )
    (folder / "custom_generate").mkdir(exist_ok=True)
    shutil.copy(folder / "hostile.py", folder / "custom_generate" / "generate.py")


def point_to_code(path: Path, **changes) -> None:
    """Make a config name hostile code for every class that transformers might take from the folder."""
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor")
    names += ("AutoImageProcessor", "AutoTokenizer", "AutoFeatureExtractor")
    content = json.loads(path.read_text()) if path.exists() else {}
    auto_map = dict.fromkeys(names, "hostile.Hostile")
    auto_map["AutoTokenizer"] = ["hostile.Hostile", "hostile.Hostile"]
    path.write_text(json.dumps({**content, "auto_map": auto_map, **changes}))


def clear(function) -> None:
    """Call a function that must work, or raise an error that says clearly what is wrong."""
    try:
        function()
    except CLEAR as error:
        assert str(error)


LOADS = {
    "a trainer": lambda folder: make_trainer("mle", folder.parent / "out", model=str(folder), processing_class=None),
    "a processor": lambda folder: TextProcessor.from_pretrained(folder),
    "an encoder": lambda folder: load_encoder(folder),
    "stage I": lambda folder: UViMModel.from_pretrained(folder),
    "stage I in a folder": lambda folder: UViMModel.from_pretrained(folder.parent, subfolder=folder.name),
    "a reward": lambda folder: CiderReward.from_pretrained(folder),
    "a replay": lambda folder: list(replay(folder)),
}


@pytest.mark.parametrize("load", LOADS)
def test_code_that_comes_with_a_folder_does_not_run(hostile, marker, load):
    changes = {
        "config.json": [{}, {"model_type": "hostile"}, {"architectures": ["Hostile"]}],
        "processor_config.json": [{}, {"processor_class": "Hostile"}],
        "preprocessor_config.json": [{}, {"image_processor_type": "Hostile"}],
        "tokenizer_config.json": [{}, {"tokenizer_class": "Hostile"}],
        "generation_config.json": [{"custom_generate": "custom_generate"}],
    }
    add_code(hostile, marker)
    for name, variants in changes.items():
        before = (hostile / name).read_bytes() if (hostile / name).exists() else None
        for change in variants:
            point_to_code(hostile / name, **change)
            write_manifest(hostile)  # an attacker would write one too
            clear(lambda: LOADS[load](hostile))
            assert not marker.exists(), (name, change)
        if before is None:
            (hostile / name).unlink()
        else:
            (hostile / name).write_bytes(before)


def test_code_runs_when_it_is_asked_for(good, tmp_path, monkeypatch):
    """Otherwise the test above would prove nothing."""
    folder, marker = Path(shutil.copytree(good, tmp_path / "hostile")), tmp_path / "marker"
    (folder / "manifest.json").unlink()
    add_code(folder, marker)
    point_to_code(folder / "processor_config.json", processor_class="Hostile")
    options = {"model_init_kwargs": {"trust_remote_code": True}, "processing_class": None}
    clear(lambda: make_trainer("mle", tmp_path / "out", model=str(folder), **options))
    assert marker.exists()


@pytest.mark.parametrize("content", [pickled, torch_pickled])
def test_pickled_weights_are_not_unpickled(hostile, marker, content):
    """Pickles in place of safetensors, or under their name, as weights of the model, of adapters and of stage I."""
    (hostile / "manifest.json").unlink()
    weights = (hostile / "model.safetensors").read_bytes()
    for name in ("pytorch_model.bin", "model.safetensors", "adapter_model.bin", "adapter_model.safetensors"):
        (hostile / "model.safetensors").unlink(missing_ok=True)
        (hostile / name).write_bytes(content(marker))
        if name.startswith("adapter"):
            (hostile / "model.safetensors").write_bytes(weights)
            adapters = LoraConfig(r=4, base_model_name_or_path=str(hostile), target_modules=["query"]).to_dict()
            adapters = {key: sorted(v) if isinstance(v, set) else v for key, v in adapters.items()}
            (hostile / "adapter_config.json").write_text(json.dumps(adapters, default=str))
        with pytest.raises(CLEAR):
            LOADS["a trainer"](hostile)
        for path in ("adapter_config.json", name):
            (hostile / path).unlink(missing_ok=True)
    stage1("panoptic").save_pretrained(hostile / "stage1")
    (hostile / "stage1" / "model.safetensors").unlink()
    (hostile / "stage1" / "pytorch_model.bin").write_bytes(content(marker))
    with pytest.raises(CLEAR):
        UViMModel.from_pretrained(hostile, subfolder="stage1")


@pytest.mark.parametrize("content", [pickled, torch_pickled])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"]
)
def test_a_pickled_piece_of_a_checkpoint_is_not_unpickled_though_its_manifest_lists_it(
    hostile, marker, name, content, tmp_path
):
    folder = hostile / "checkpoint-1"
    (folder / name).write_bytes(content(marker))
    write_manifest(folder, **{"world_size": 1, "images_per_step": 8, "train_rows": 16})
    trainer = make_trainer("mle", tmp_path / "out", max_steps=3)
    if name == "training_args.bin":  # is never read
        trainer.train(resume_from_checkpoint=str(folder))
        return
    with pytest.raises(CLEAR, match="checkpoint-1"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_pickled_arrays_are_not_unpickled(tmp_path, marker):
    (tmp_path / "arrays.npz").write_bytes(npz_pickled(marker))
    (tmp_path / "pickle.npz").write_bytes(pickled(marker))
    (tmp_path / "uvim.npz").write_bytes(npz_pickled(marker, names=("params/encoder/x", "opt/a")))
    for name in ("arrays.npz", "pickle.npz", "uvim.npz"):
        with pytest.raises(CLEAR, match=name):
            DocumentFrequency.load(tmp_path / name)
        with pytest.raises(CLEAR):
            convert_uvim(tmp_path / name, tmp_path / "out")
    folder = tmp_path / "model" / "reward" / "cider"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"append_eos": true, "eos_token_id": null, "score": "cider_d"}')
    (folder / "document_frequency.npz").write_bytes(npz_pickled(marker))
    with pytest.raises(CLEAR, match=r"document_frequency\.npz"):
        CiderReward.from_pretrained(tmp_path / "model")


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../../escaped.npy", b"x")
    for load in (DocumentFrequency.load, lambda path: convert_uvim(path, tmp_path / "out")):
        with pytest.raises(CLEAR):
            load(tmp_path / "a.npz")
    assert not list(tmp_path.parent.rglob("escaped.npy"))


def test_shards_and_manifests_cannot_name_files_of_others(hostile, tmp_path):
    secret = tmp_path / "secret.safetensors"
    os.rename(hostile / "model.safetensors", secret)
    index = {"metadata": {}, "weight_map": {"decoder.lm_head.weight": "../secret.safetensors"}}
    (hostile / "model.safetensors.index.json").write_text(json.dumps(index))
    content = json.loads((hostile / "manifest.json").read_text())
    content["files"]["../secret.safetensors"] = content["files"].pop("model.safetensors")
    (hostile / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DamagedFolder, match="outside of the folder"):
        LOADS["a trainer"](hostile)


DEEP = "[" * 200_000
WRONG_JSON = {"deep": DEEP, "a list": "[]", "cut": '{"a": ', "bytes": "\x00\xff"}


@pytest.mark.parametrize("content", WRONG_JSON)
def test_json_of_another_kind_is_a_clear_error_wherever_it_lies(hostile, content, tmp_path):
    """The manifest lists the file, as an attacker would make it."""
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        before = (hostile / name).read_bytes()
        (hostile / name).write_text(WRONG_JSON[content], encoding="latin-1")
        write_manifest(hostile)
        clear(lambda: LOADS["a trainer"](hostile))
        (hostile / name).write_bytes(before)
    folder = hostile / "checkpoint-1"
    (folder / "trainer_state.json").write_text(WRONG_JSON[content], encoding="latin-1")
    write_manifest(folder, **{"world_size": 1, "images_per_step": 8, "train_rows": 16})
    with pytest.raises(CLEAR, match="checkpoint-1"):
        make_trainer("mle", tmp_path / "out", max_steps=3).train(resume_from_checkpoint=str(folder))


def test_a_processor_of_ours_asks_nothing(tmp_path, marker):
    text_processor().save_pretrained(tmp_path / "processor")
    add_code(tmp_path / "processor", marker)
    for name in ("processor_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        point_to_code(tmp_path / "processor" / name)
    clear(lambda: TextProcessor.from_pretrained(tmp_path / "processor"))
