"""The documentation's Python blocks run: those of the quickstart first, as every other page builds on them."""

import re
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SHORTER = [
    (r"max_steps=\d+", "max_steps=2"),
    (r'"max_steps": \d+', '"max_steps": 2'),
    (r"printed_numbers\(\d+", "printed_numbers(64"),
]


def blocks(page: str) -> list[str]:
    code = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)
    for pattern, replacement in SHORTER:
        code = [re.sub(pattern, replacement, block) for block in code]
    return code


def run(page: str, names: dict) -> None:
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page}[{number}]", "exec"), names)


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of the installed package")
def test_every_python_block_of_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    quickstart: dict = {"__name__": "docs"}
    run("index.md", quickstart)
    for page in sorted(path.name for path in DOCS.glob("*.md")):
        if page != "index.md":
            run(page, dict(quickstart) if page != "add-a-task.md" else {"__name__": "docs"})


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of the installed package")
def test_the_walks_through_the_house_name_files_that_are_there():
    named = re.findall(r"`([\w./*]+\.(?:py|yaml))[`:,]", (DOCS / "architecture.md").read_text())
    folder = ""
    for name in named:
        if name in ("my_rewards.py",) or name.startswith("tests/"):
            continue
        here = ROOT / "src" / "vision_rl"
        folder = str(Path(name).parent) if "/" in name else folder  # a bare name stands beside the one before it
        assert list(here.glob(name)) or list(here.glob(f"{folder}/{name}")), name
    assert len(named) > 30


def test_the_page_on_versions_names_the_floors_of_the_metadata_and_the_versions_that_were_tested():
    page = (DOCS / "compatibility.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(re.match(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in declared)
    floors.pop("torch")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints" / "known-good.txt").read_text(), re.M))
    assert {name: floor for name, floor, _ in rows} == floors
    assert {name: version for name, _, version in rows} == {name: pinned[name] for name in floors}
    assert f"**torch** is {pinned['torch']} in all three" in page
