"""All recorded outputs are there, each is read by a test, and golden/README.md has a row for each."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from recorded import GOLDEN


def readers() -> dict[str, set[str]]:
    """For each recorded file the test files that read it, found by the calls of `golden` in their source."""
    found = defaultdict(set)
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "golden":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}: name the file in the call"
                found[node.args[0].value].add(path.name)
    return found


def test_every_recorded_file_is_read_and_every_file_that_a_test_reads_is_there():
    assert set(readers()) == {path.name for path in GOLDEN.iterdir()} - {"README.md"}


def test_the_page_of_the_recorded_files_names_each_with_the_tests_that_read_it():
    page = (GOLDEN / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+\.\w+)` \|.*\| (.*?) \|$", page, re.M)
    told = {name: set(re.findall(r"`(test_\w+\.py)`", tests)) for name, tests in rows}
    assert told == readers()
