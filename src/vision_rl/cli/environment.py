"""`vision-rl env`: what a report of a bug needs to say."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import vision_rl


PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "trl",
    "datasets",
    "evaluate",
    "peft",
    "huggingface_hub",
    "deepspeed",
)


def print_environment() -> None:
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "vision_rl": vision_rl.__version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "devices": ", ".join(devices) or "CPU",
    }
    print("\n".join(f"- {name}: {value}" for name, value in facts.items()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
