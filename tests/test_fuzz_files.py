"""Files of every kind with damaged bytes or broken content are read, or refused in a sentence with the file's name."""

import contextlib
import http.server
import io
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
import yaml
from fuzzing import COUNT, OBJECTS, ODD, damaged, fault_of, mutated
from test_fuzz import CAPTIONS, CATEGORIES, FOUND, FREQUENCY, PAIRS, PICTURES, TARGETS, TRUE_CAPTIONS, TRUTH
from test_stream import stream_rows
from test_uvim_conversion import stage1, stage2, to_jax, vit

from vision_rl import RemoteReward, metric_path
from vision_rl.cli.reading import read_training
from vision_rl.manifest import DamagedFolder, check_whole, write_manifest
from vision_rl.models.completions import SampledCompletions
from vision_rl.models.uvim import UViMDecoder, convert_uvim, load_big_vision_vit
from vision_rl.rewards import TokenTargets
from vision_rl.task import load_task
from vision_rl.tasks.captioning import CiderReward
from vision_rl.tasks.captioning.ngrams import DocumentFrequency
from vision_rl.tasks.panoptic import PanopticProcessor
from vision_rl.trainer.rollout import Rollout
from vision_rl.trainer.rollout_in_use import RolloutInUse


def npz(arrays: Any) -> bytes:
    """The bytes of an npz with these arrays. Values that a file could hold only by pickling are left out."""
    stored = {}
    for name, array in arrays.items():
        with contextlib.suppress(Exception):
            array = np.asarray(array)
            stored |= {} if array.dtype == object else {str(name).replace("\0", "0"): array}
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    return buffer.getvalue()


def pickled(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_frequency(file: Path) -> None:
    scores = CiderReward(DocumentFrequency.load(file))(CAPTIONS, TRUE_CAPTIONS)
    assert np.isfinite(scores).all(), "silently wrong"


def load_reward(file: Path) -> None:
    folder = file.parent / "reward" / "cider"
    folder.mkdir(parents=True, exist_ok=True)
    FREQUENCY.save(folder / "document_frequency.npz")
    (folder / "config.json").write_bytes(file.read_bytes())
    CiderReward.from_pretrained(file.parent)


def load_rollout(file: Path) -> None:
    (file.parent / "rollout_0.pt").write_bytes(file.read_bytes())
    RolloutInUse(2, 1).load(str(file.parent), 0, torch.device("cpu"))


def read_recipe(file: Path) -> None:
    read_training(
        "tune", ["--config", str(file), "--model", str(file.parent), "--output_dir", str(file.parent / "out")]
    )


def uvim(model: Callable) -> dict[str, Any]:
    return {f"params/{name}" if "state/" not in name else name: array for name, array in to_jax(model()).items()}


ROLLOUT = Rollout(
    torch.arange(2),
    SampledCompletions(torch.ones(2, 2, 3).long(), torch.ones(2, 2, 3).long(), torch.zeros(2, 2, 3)),
    torch.zeros(2, 2),
    torch.zeros(2, 2),
    [TokenTargets(**TARGETS)],
    4,
)
FREQUENCIES = {
    "version": 1,
    "hashes": FREQUENCY.hashes,
    "counts": FREQUENCY.counts.astype(np.uint32),
    "num_images": FREQUENCY.num_images,
    "append_eos": True,
}
RECIPE = {
    "command": "tune",
    "task": "detection",
    "model": "runs/mle",
    "reward": ["average_precision"],
    "num_generations": 4,
    "scenes": 8,
    "learning_rate": 1e-5,
    "report_to": "none",
    "optim_args": "reference_layout=true",
    "eval": {"split": "test"},
    "env": {"VISION_RL_FUZZED": "1"},
}
# for each file: its content, the function that makes its bytes, the function that reads it
FILES: dict[str, tuple[Any, Callable[[Any], bytes], Callable[[Path], object]]] = {
    "uvim_stage1.npz": (uvim(stage1), npz, lambda file: convert_uvim(file, file.parent / "stage1")),
    "uvim_stage2.npz": (uvim(stage2), npz, lambda file: convert_uvim(file, file.parent / "stage2")),
    "vit.npz": ({**to_jax(vit()), "cls": np.zeros((1, 1, 16))}, npz, load_big_vision_vit),
    "frequency.npz": (FREQUENCIES, npz, load_frequency),
    "config.json": (
        {"append_eos": True, "eos_token_id": 1, "score": "cider_d"},
        lambda content: json.dumps(content).encode(),
        load_reward,
    ),
    "rollout.pt": ([ROLLOUT.state_dict()], pickled, load_rollout),
    "recipe.yaml": (RECIPE, lambda content: yaml.dump(content).encode("utf-8", "surrogatepass"), read_recipe),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_read_or_refused_with_its_name_or_the_entry(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VISION_RL_FUZZED", "0")
    content, as_bytes, read = FILES[name]
    rng, file = random.Random(name), tmp_path / name
    file.write_bytes(as_bytes(content))
    with contextlib.suppress(FileNotFoundError):  # a recipe's model is missing
        read(file)
    names = [*content, name, "reward/cider", "rollout_0.pt", "option", "argument", "checkpoint"]
    faults = []
    for _ in range(COUNT or 12):
        changed = content
        for _ in range(rng.randrange(1, 3)):
            changed = mutated(changed, rng, ODD if name.endswith(("json", "yaml")) else OBJECTS)
        try:
            data = as_bytes(changed if rng.random() < 0.5 else content)
        except Exception:
            data = as_bytes(content)
        file.write_bytes(damaged(data, rng) if rng.random() < 0.6 else data)
        try:
            read(file)
        except BaseException as error:
            fault = fault_of(error, [str(each) for each in names])
            faults += [] if fault is None else [f"{fault}: {str(error)[:300]!r}"]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:40]])


def test_a_folder_with_a_damaged_file_is_never_taken_for_whole(tmp_path):
    rng = random.Random(0)
    files = {"model.safetensors": rng.randbytes(500), "trainer_state.json": b'{"global_step": 4}' * 9}
    for _ in range(COUNT or 30):
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        write_manifest(tmp_path, global_step=4)
        name = rng.choice([*files, "manifest.json"])
        data = (tmp_path / name).read_bytes()
        changed = damaged(data, rng)
        (tmp_path / name).write_bytes(changed)
        try:
            check_whole(tmp_path)
        except DamagedFolder as error:
            assert name in str(error) or name == "manifest.json"
        else:
            assert changed == data or name == "manifest.json"


# --- evaluate modules -----------------------------------------------------------------------------------------------

AS_DICTS = [{"segmentation": ids, "segments_info": infos} for ids, infos in PAIRS]
BOX = [3, 3, 13, 13, 24, 2]
MODULES: dict[str, tuple[dict, dict]] = {
    "character_error_rate": ({}, {"predictions": ["ab", "c"], "references": ["abc", "c"]}),
    "ocr_reward": ({}, {"predictions": ["ab", "c"], "references": ["abc", "c"], "kind": "exact_match"}),
    "cider": ({}, {"predictions": CAPTIONS, "references": TRUE_CAPTIONS}),
    "cider_reward": ({"document_frequency": FREQUENCY}, {"predictions": CAPTIONS, "references": TRUE_CAPTIONS}),
    "coco_map": ({}, {"predictions": [FOUND] * 2, "references": [TRUTH] * 2, "num_labels": 2}),
    "detection_reward": (
        {},
        {"predictions": [BOX, []], "references": [BOX, BOX], "num_bins": 20, "num_labels": 2, "class_counts": [1, 2]},
    ),
    "panoptic_quality": ({"categories": CATEGORIES}, {"predictions": AS_DICTS, "references": AS_DICTS}),
    "panoptic_reward": ({}, {"predictions": AS_DICTS, "references": PAIRS, "false_positive_weight": 0.3}),
    "colorfulness": ({}, {"predictions": PICTURES[:2], "references": PICTURES[:2]}),
    "colorfulness_reward": ({}, {"predictions": PICTURES[:2], "hue": "arctan"}),
}
OF_MODULES = ["prediction", "reference", "caption", "label", "segment", "map", "image", "boxes", "scores", "id"]


@pytest.mark.parametrize("name", MODULES)
def test_an_evaluate_module_names_what_is_broken(name, tmp_path):
    options, arguments = MODULES[name]
    rng, faults = random.Random(name), []
    module = evaluate.load(metric_path(name), cache_dir=str(tmp_path), keep_in_memory=True, **options)
    module.compute(**arguments)
    for _ in range(COUNT or 6):
        broken = dict(arguments)
        for key in rng.choices(list(broken), k=rng.randrange(1, 3)):
            broken[key] = mutated(broken[key], rng, OBJECTS)
        module = type(module)(cache_dir=str(tmp_path), keep_in_memory=True, **options)
        try:
            result = module.compute(**broken)
        except BaseException as error:
            fault = fault_of(error, [*arguments, *OF_MODULES])
            faults += [] if fault is None else [f"{fault}: {str(error)[:200]!r} of {str(broken)[:400]}"]
        else:
            rewards = result.get("rewards", [])
            faults += [] if np.isfinite(np.array(rewards, float)).all() else [f"{rewards} of {broken}"]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:40]])


# --- answers, codes, places in a stream -------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, dict]]:
    """A server whose answer to a question is `answer["make"](question)`, as bytes."""
    answer: dict[str, Callable[[dict], bytes]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = answer["make"](json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/", answer
    made.shutdown()
    made.server_close()


def test_a_broken_answer_of_a_reward_server_is_refused(server):
    url, answer = server
    rng, reward = random.Random(0), RemoteReward(url, retries=0, timeout=5)

    def make(question: dict) -> bytes:
        changed = mutated({"id": question["id"], "rewards": [0.5, None]}, rng)
        data = json.dumps(changed).encode()
        return damaged(data, rng) if rng.random() < 0.5 else data

    answer["make"] = make
    for _ in range(COUNT or 20):
        try:
            rewards = reward(completions=["a", "b"], references=["c", "d"])
        except OSError as error:
            assert url in str(error)
        else:
            assert len(rewards) == 2
            assert all(value is None or abs(value) < 1e400 for value in rewards)


def test_codes_that_are_none_are_refused_by_stage_one():
    model = stage1()
    processor = PanopticProcessor(
        image_processor_of(16),
        [{"id": i, "name": str(i), "isthing": 1} for i in range(4)],
        6,
        num_codes=12,
        code_len=4,
    )
    decoder, rng = UViMDecoder(model, processor), random.Random(0)
    good = torch.randint(1, 13, (2, 2, 4))
    batch = {"pixel_values": torch.zeros(2, 3, 16, 16)}
    for _ in range(COUNT or 20):
        ids = mutated(good, rng, OBJECTS)
        try:
            maps = decoder(ids, batch)
        except (ValueError, TypeError) as error:
            assert any(name in str(error) for name in ("codes", "completion_ids", "pixel_values"))
        else:
            assert len(maps) == 4
            assert ids.min() >= 0
            assert ids.max() <= 12


def image_processor_of(size: int) -> Any:
    from tiny import image_processor

    return image_processor(size)


def test_a_broken_place_in_a_stream_is_refused():
    rng = random.Random(0)
    good = stream_rows().position(0)
    for _ in range(COUNT or 20):
        position = mutated(good, rng, OBJECTS)
        try:
            stream_rows().resume(position)
        except ValueError as error:
            assert "stream" in str(error)


def test_a_name_that_is_no_task_is_refused(tmp_path):
    rng = random.Random(0)
    names = ["detection", "my_task.py", str(tmp_path / "a.py")]
    for _ in range(COUNT or 20):
        name = damaged(rng.choice(names).encode(), rng).decode("latin-1")
        try:
            load_task(name)
        except (ValueError, OSError) as error:
            assert "task" in str(error) or "file" in str(error) or "File name" in str(error)
