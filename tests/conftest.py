"""What several test files use."""

import importlib
import sys
from pathlib import Path

import hypothesis
import pytest


hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports a module of examples/."""
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not part of the installed package")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in [
        name for name, module in sys.modules.items() if str(EXAMPLES) in str(getattr(module, "__file__", ""))
    ]:
        del sys.modules[name]
