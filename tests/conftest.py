"""What several test files use."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest
import torch


# No test needs the network; where there is none, huggingface_hub would retry for most of a minute. It reads this on import.
os.environ["HF_HUB_OFFLINE"] = "1"


hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")


LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface_hub", "peft", "trl", "numpy")


def pytest_report_header() -> str:
    """What a run was a run of: its first lines say so."""
    return "libraries: " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


@pytest.fixture(scope="module")
def one_thread():
    """A file's tests on one thread of torch: tiny tensors, or several processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def cache_of_datasets(tmp_path_factory):
    """What loaders store goes away with the tests, also that of processes which tests start."""
    import datasets  # not at the top: it imports huggingface_hub

    folder = str(tmp_path_factory.mktemp("datasets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


ROOT = Path(__file__).parents[1]


def _modules_of(folder: Path, monkeypatch) -> Iterator[Callable]:
    """An import of the folder's modules by name, which are forgotten again."""
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ is not part of the installed package")
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.fixture
def experiment(monkeypatch):
    """Imports a module of experiments/."""
    yield from _modules_of(ROOT / "experiments", monkeypatch)


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of benchmarks/."""
    yield from _modules_of(ROOT / "benchmarks", monkeypatch)
