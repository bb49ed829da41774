"""Fixtures that several test files use."""

import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest
import torch


# No test needs the network. Without one, huggingface_hub would retry for most of a minute; it reads this when
# imported.
os.environ["HF_HUB_OFFLINE"] = "1"


hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure of a test
hypothesis.settings.load_profile("no deadline")


LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "huggingface_hub", "peft", "trl", "numpy")


def pytest_report_header() -> str:
    """The first lines of a run say which versions it tested."""
    return "libraries: " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


@pytest.fixture(scope="module")
def one_thread():
    """Run the tests of a file on one thread of torch, because tensors are tiny or processes several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def cache_of_datasets(tmp_path_factory):
    """What the loaders store is removed after the tests, including what processes store that tests start."""
    import datasets  # not at the top: it imports huggingface_hub

    folder = str(tmp_path_factory.mktemp("datasets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


ROOT = Path(__file__).parents[1]


def _forget(folder: Path) -> None:
    """Forget the modules that were imported from the folder."""
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def _modules_of(folder: Path, monkeypatch) -> Iterator[Callable]:
    """A function that imports modules of the folder by name. After the test the modules are forgotten."""
    if not folder.is_dir():
        pytest.skip(f"{folder.name}/ is not part of the installed package")
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    _forget(folder)


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a script as its command line does and returns what it prints.

    It runs in this process, which has imported the libraries already: that takes longer than most of the scripts do.
    """

    def run(path: Path, *options: str | Path) -> str:
        if not path.parent.is_dir():
            pytest.skip(f"{path.parent.name}/ is not part of the installed package")
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, options)])
        monkeypatch.syspath_prepend(str(path.parent))
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        _forget(path.parent)
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def experiment(monkeypatch):
    """Imports a module of experiments/."""
    yield from _modules_of(ROOT / "experiments", monkeypatch)


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of benchmarks/."""
    yield from _modules_of(ROOT / "benchmarks", monkeypatch)
