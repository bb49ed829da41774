"""Models, adapters, data sets and evaluate modules are pushed to a Hub on this machine, and loaded elsewhere by name.

There are three processes. `scripts/hub_push.py` trains and pushes, by the trainers and by the commands.
`scripts/hub_load.py` knows only the names: it runs with an empty cache, and then again with that cache and no Hub.
"""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_hub import TOKEN, LoopbackHub
from PIL import Image


pytestmark = pytest.mark.compatibility

SCRIPTS = Path(__file__).with_name("scripts")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


def run(hub: LoopbackHub, script: str, *arguments: Path, cache: Path, **environment: str) -> Any:
    """Run a script in a process with its own cache, as on another machine; returns the JSON in its last argument."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, env=hub.environment(cache) | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(arguments[-1].read_text())


@pytest.fixture(scope="module")
def pushed(hub, home) -> dict[str, Any]:
    return run(hub, "hub_push.py", home / "record.json", cache=home / "cache of training")


@pytest.fixture(scope="module")
def loaded(hub, home, pushed) -> dict[str, Any]:
    return run(hub, "hub_load.py", home / "record.json", home / "elsewhere" / "loaded.json", cache=home / "cache")


@pytest.fixture(scope="module")
def loaded_offline(hub, home, loaded) -> dict[str, Any]:
    return run(
        hub, "hub_load.py", home / "record.json", home / "offline" / "loaded.json", cache=home / "cache", **OFFLINE
    )


def card(hub: LoopbackHub, name: str, revision: str = "main") -> tuple[dict[str, Any], str]:
    """The metadata of a model's card, and its text."""
    _, head, text = hub.files(name, revision=revision)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(head), text


# --- what is pushed -------------------------------------------------------------------------------------------------


def test_a_run_pushes_its_model_with_processor_rewards_stage_i_and_card(hub, pushed):
    model = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "manifest.json"}
    assert model | {"README.md", "reward/rewards.json"} <= set(hub.files("user/boxes"))
    files = set(hub.files("user/captions"))
    assert {
        "reward/cider/document_frequency.npz",
        "images/curve.png",
        "images/first.png",
        "images/latest.png",
    } <= files
    assert model | {"stage1/config.json", "stage1/model.safetensors"} <= set(hub.files("user/colours"))
    adapter = hub.files("user/read-lora")
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= set(adapter)
    assert "model.safetensors" not in adapter


def test_no_token_is_pushed(hub, pushed):
    assert pushed["saved arguments"] is None
    for (kind, name), repo in hub.hub.repos.items():
        for revision in (*repo.branches, *repo.tags):
            for path, content in hub.files(name, kind, revision).items():
                assert TOKEN.encode() not in content, (name, path)


def test_by_hub_strategy_whole_checkpoints_are_pushed_while_the_run_goes_on(hub, pushed):
    titles = hub.titles("user/captions")
    assert titles[0] == "End of training" and "Training in progress, step 1" in titles
    halfway = hub.files("user/captions", revision="before-the-end")
    assert {"README.md", "model.safetensors", "reward/cider/config.json", "manifest.json"} <= set(halfway)
    listed = json.loads(halfway["manifest.json"])["files"]
    assert set(listed) <= set(halfway)  # the manifest has the model's files only
    assert not any(name.startswith(("optimizer", "trainer_state", "training_args")) for name in listed)
    assert "last-checkpoint/optimizer.pt" in halfway
    assert set(pushed["adapter before the end"]) >= {"adapter_model.safetensors", "processor_config.json", "README.md"}
    assert hub.titles("user/read-mle") == ["End of training", "initial commit"]  # hub_strategy="end"


def test_a_revision_is_a_branch_of_its_own(hub, pushed):
    assert card(hub, "user/read-mle")[0]["tags"] == ["vision_rl", "mle"]
    assert card(hub, "user/read-mle", "tuned")[0]["tags"] == ["vision_rl", "reward-tuning"]


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_card_names_task_data_base_model_and_library(hub, pushed):
    boxes, text = card(hub, "user/boxes")
    assert boxes["pipeline_tag"] == "object-detection" and boxes["datasets"] == "user/scenes"
    assert boxes["base_model"] == "user/boxes-mle" and boxes["library_name"] == "transformers"
    assert "[user/boxes-mle](https://huggingface.co/user/boxes-mle)" in text and "REINFORCE" in text
    assert "2302.08242" in text and "@inproceedings{pinto2023tuning" in text
    assert re.search(r"Versions: vision_rl \d.*torch.*transformers", text)
    assert card(hub, "user/boxes-mle")[0]["base_model"] == "user/vit"  # the encoder's; the decoder is new
    assert "base_model" not in card(hub, "user/captions")[0]
    adapter = card(hub, "user/read-lora")[0]
    assert adapter["base_model"] == "user/read-mle" and adapter["library_name"] == "peft"
    assert card(hub, "user/colours")[0]["pipeline_tag"] == "image-to-image"
    assert card(hub, "user/colours-stage1")[0]["tags"] == ["vision_rl", "uvim"]


def test_the_model_index_has_metric_and_reward_before_and_after(hub, pushed):
    head, text = card(hub, "user/captions")
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"] == {"name": "user/words", "type": "user/words"}
    metrics = {(metric["type"], metric["args"]["step"]): metric["value"] for metric in result["metrics"]}
    assert {("cider", 0), ("cider", 2), ("reward", 0), ("reward", 2)} <= set(metrics)
    assert not any("runtime" in name or "/" in name for name, _ in metrics)
    row = re.search(r"^\| reward \| (\S+) \| (\S+) \|$", text, re.M)
    assert [float(cell) for cell in row.groups()] == pytest.approx(
        [metrics["reward", 0], metrics["reward", 2]], rel=1e-3
    )
    assert "`CiderReward`, `share_of_a` (weight 0.5)" in text


def test_the_card_has_pictures_of_the_run_and_of_the_same_images_before_and_after(hub, pushed):
    _, text = card(hub, "user/captions")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == ["images/first.png", "images/latest.png", "images/curve.png"]
    pictures = [Image.open(io.BytesIO(hub.files("user/captions")[name])) for name in shown]
    assert pictures[0].width == pictures[1].width and all(picture.width > 300 for picture in pictures)


def test_the_settings_are_those_that_are_no_defaults_and_no_paths(hub, pushed):
    _, text = card(hub, "user/captions")
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    assert settings["reward_weights"] == [1.0, 0.5] and settings["learning_rate"] == 0.01
    assert not any(word in name for name in settings for word in ("hub", "dir", "token", "report"))


# --- loaded elsewhere -----------------------------------------------------------------------------------------------


def test_what_is_loaded_by_name_and_revision_answers_as_the_run_did(pushed, loaded):
    assert loaded["answers"] == pushed["answers"]


def test_the_first_block_of_every_card_runs(loaded):
    assert loaded["cards"]["boxes"][0] == "import vision_rl" and len(loaded["cards"]["boxes"]) == 5


def test_auto_classes_find_what_was_pushed(loaded):
    assert loaded["processors"]["boxes"] == "DetectionProcessor"
    assert loaded["processors"]["captions"] == "CaptioningProcessor"
    assert loaded["processors"]["colours"] == loaded["processors"]["colours-stage1"] == "ColorizationProcessor"
    assert loaded["processors"]["read-lora"] == "TextProcessor" and loaded["processors"]["trocr"] == "TrOCRProcessor"
    assert loaded["decoder"] == "VisionDecoderForCausalLM" and loaded["stage I"] == "UViMModel"
    assert loaded["config at a tag"] == "vision-encoder-decoder"


def test_data_sets_rewards_modules_and_checkpoints_come_by_name(loaded):
    assert loaded["rows"] == {"train": 8, "validation": 4}
    assert loaded["reward"][0] > 0 and loaded["module"] == pytest.approx(1)
    assert loaded["checkpoint"] == 2


def test_without_a_hub_the_cache_gives_the_same(loaded, loaded_offline):
    assert loaded_offline == loaded


# --- commands and modules -------------------------------------------------------------------------------------------


def test_commands_take_names_of_the_hub_and_leave_no_folder_of_that_name(pushed):
    assert pushed["evaluated"]["model"] == "user/boxes" and pushed["evaluated"]["images"] == 4
    assert pushed["predicted"] == ["detections.json", "picture.png"]


def test_a_modules_space_has_the_page_and_the_requirements_that_its_card_names(hub, pushed):
    files = hub.files("user/cider", "spaces")
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert head["app_file"] in files and b"vision-rl" in files["requirements.txt"]
