"""Who may import whom, checked on the source; and what `import vision_rl` loads."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vision_rl


SOURCE = Path(vision_rl.__file__).parent
ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in SOURCE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The absolute names of the modules that a file imports, at its top or inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imports(path: Path, *prefixes: str) -> set[str]:
    return {name for name in imports_of(path) if any(name == p or name.startswith(f"{p}.") for p in prefixes)}


def under(*parts: str) -> list[Path]:
    return [path for path in FILES if SOURCE.joinpath(*parts) in path.parents]


def test_models_import_neither_tasks_nor_the_trainer():
    assert under("models")
    for path in under("models"):
        assert not imports(path, "vision_rl.tasks", "vision_rl.trainer"), path


def test_the_trainer_imports_no_task():
    assert under("trainer")
    for path in under("trainer"):
        assert not imports(path, "vision_rl.tasks", "vision_rl.data"), path


def test_analysis_imports_no_task_and_nothing_below_imports_analysis():
    assert under("analysis")
    for path in under("analysis"):
        assert not imports(path, "vision_rl.tasks", "vision_rl.data", "vision_rl.cli"), path
    for path in [path for room in ("models", "trainer", "tasks", "data") for path in under(room)]:
        assert not imports(path, "vision_rl.analysis"), path


def test_preferences_know_no_task_no_model_and_no_trainer():
    assert under("preferences")
    for path in under("preferences"):
        assert not imports(path, "vision_rl.tasks", "vision_rl.models", "vision_rl.trainer", "transformers"), path


@pytest.mark.parametrize(
    "task", sorted(path.name for path in (SOURCE / "tasks").iterdir() if path.is_dir() and path.name != "__pycache__")
)
def test_a_task_imports_neither_the_trainer_nor_another_task(task):
    others = [f"vision_rl.tasks.{path.name}" for path in (SOURCE / "tasks").iterdir() if path.name != task]
    for path in under("tasks", task):
        assert not imports(path, "vision_rl.trainer", "trl", *others), path


def test_the_maths_of_rewards_and_metrics_needs_no_transformers():
    maths = (
        "segments",
        "quality",
        "decoding",
        "lab",
        "colorfulness",
        "cider",
        "ngrams",
        "coco_captions",
        "ptb_tokenizer",
    )
    for path in [path for name in ("rewards", *maths) for path in SOURCE.glob(f"tasks/*/{name}.py")]:
        assert not imports(path, "transformers", "vision_rl.trainer", "vision_rl.models"), path
    for name in ("rewards.py", "randomness.py"):
        assert not imports(SOURCE / name, "transformers", "vision_rl.trainer", "vision_rl.tasks"), name


def test_nothing_depends_on_torchvision_or_timm():
    for path in FILES:
        assert not imports(path, "torchvision", "timm", "torchmetrics"), path


def documented() -> list[object]:
    """The objects that docs/api.md describes."""
    entries = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    return [pkgutil.resolve_name(entry) for entry in entries]


@pytest.mark.parametrize("folder", ["examples", "experiments"])
def test_scripts_use_the_public_interface_only(folder):
    """Public are modules, constants, names in an `__all__` and what docs/api.md describes. No script uses `x._y`."""
    if not (ROOT / folder).is_dir():
        pytest.skip(f"{folder}/ is not part of the installed package")
    public = documented()
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "vision_rl":
                module = importlib.import_module(node.module)
                for name in [alias.name for alias in node.names]:
                    value = (
                        getattr(module, name)
                        if hasattr(module, name)
                        else importlib.import_module(f"{node.module}.{name}")
                    )
                    known = isinstance(value, ModuleType) or name.isupper() or name in getattr(module, "__all__", ())
                    known = known or any(value is one for one in public)
                    assert known and not f".{node.module}.{name}".count("._"), f"{path.name}: {node.module}.{name}"
            if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Call):
                of_its_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert of_its_own or not re.match(r"_[^_]", node.attr), f"{path.name}: {ast.unparse(node)}"


def test_import_vision_rl_loads_neither_torch_nor_trl_nor_the_trainers():
    code = (
        "import sys, vision_rl; heavy = {'torch', 'transformers', 'trl', 'datasets', 'vision_rl.trainer'} & set(sys.modules);"
        "assert not heavy, heavy; vision_rl.VisionRewardConfig; assert 'trl' not in sys.modules;"
        "assert 'vision_rl.trainer.reward_config' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_top_level_shows_its_names_and_refuses_others():
    assert {"VisionRewardTrainer", "VisionMLETrainer", "RewardOutput", "metric_path"} <= set(dir(vision_rl))
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = vision_rl.Trainer
    with pytest.raises(ValueError, match="it has: .*character_error_rate"):
        vision_rl.metric_path("cer")
