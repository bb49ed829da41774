"""FSDP2 through Trainer on two CPU processes has the steps, samples and evaluation of one; and what is refused."""

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from scripts.launch import TORCHRUN, launch
from scripts.train import train
from tiny import tiny_model
from transformers import VisionEncoderDecoderModel

from vision_rl.cli.parser import package_file
from vision_rl.models.preparation import prepare_for_fsdp


pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = {"rel": 1e-4, "abs": 1e-6}
CALLS = {
    "mle": {"kind": "mle", "rows": 20, "learning_rate": 1e-2, "max_steps": 2},
    "reward": {"kind": "reward", "rows": 20},
    "reward_gpt2": {"kind": "reward", "decoder": "gpt2", "rows": 20, "max_steps": 2},  # with tied embeddings
}
_CONFIG = yaml.safe_load(package_file("fsdp2", "cli/accelerate_configs", "launch configuration").read_text())
# The settings of `--accelerate_config fsdp2`, given as Trainer's fsdp_config: without a GPU accelerate does not shard.
FSDP = {"fsdp": True, "fsdp_config": {k.removeprefix("fsdp_"): v for k, v in _CONFIG["fsdp_config"].items()}}
SAVED_STEP = 3  # of 4


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("fsdp")
    calls = {name: {**call, **FSDP, "per_device_train_batch_size": 4} for name, call in CALLS.items()}
    resumed = {**calls["reward"], "resume": str(folder / "reward" / f"checkpoint-{SAVED_STEP}")}
    calls["reward"] |= {"evaluate": True, "save": True, "save_strategy": "steps", "save_steps": SAVED_STEP}
    return {**launch([*TORCHRUN, "--nproc_per_node", "2"], {**calls, "resumed": resumed}, folder), "folder": folder}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("alone")
    evaluated = {"reward": {"evaluate": True}}
    return {
        name: train(folder=folder / name, per_device_train_batch_size=8, **call, **evaluated.get(name, {}))
        for name, call in CALLS.items()
    }


def steps(record: dict) -> list[float]:
    return [number for log in record["logs"] for number in (log["loss"], log["grad_norm"])]


@pytest.mark.parametrize("name", CALLS)
def test_two_sharded_processes_take_the_steps_of_one(alone, sharded, name):
    for record in sharded[name]:
        assert (record["world_size"], record["distributed_type"]) == (2, "FSDP")
        assert record["model_class"] == "FSDPVisionEncoderDecoderModel"
        assert steps(record) == pytest.approx(steps(alone[name]), **CLOSE)
    seen = sorted(entry for record in sharded[name] for entry in map(list, record["seen"]))
    assert seen == sorted(map(list, alone[name]["seen"]))  # the same samples of the same images


def test_evaluation_before_and_after_training_is_that_of_one_process(alone, sharded):
    for record in sharded["reward"]:
        for when in ("before", "after"):
            assert record[when]["completions"] == alone["reward"][when]["completions"]
            assert record[when]["metrics"] == pytest.approx(alone["reward"][when]["metrics"], **CLOSE)


def test_ranks_resumed_end_where_they_would_have(sharded):
    for whole, resumed in zip(sharded["reward"], sharded["resumed"], strict=True):
        assert resumed["weights"] == whole["weights"]


def test_a_model_saved_by_sharded_processes_loads_in_one(sharded):
    _, info = VisionEncoderDecoderModel.from_pretrained(sharded["folder"] / "reward", output_loading_info=True)
    assert not any(info.values())


def test_fsdp1_and_adapters_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="use FSDP2"):
        prepare_for_fsdp(tiny_model(), 1)
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="Adapters are not supported under FSDP"):
        prepare_for_fsdp(adapted, 2)


def test_only_layers_that_are_there_are_sharded_one_by_one():
    model = tiny_model()
    prepare_for_fsdp(model, 2)
    present = {type(module).__name__ for module in model.modules()}
    assert {"SiglipEncoderLayer", "VisionDecoderLayer"} <= set(model._no_split_modules) <= present
