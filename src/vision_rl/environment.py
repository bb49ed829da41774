"""What a run ran with: versions and devices, as a report of a bug and the record of a run need them."""

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


def environment() -> dict[str, str]:
    """Return the versions of packages, the platform and the devices, by name; our own version comes first."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "vision_rl": vision_rl.__version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "devices": ", ".join(devices) or "CPU",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
