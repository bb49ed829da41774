"""The captioning experiment's tables in the documentation are its recorded results."""

import json
from pathlib import Path


ROOT = Path(__file__).parents[1]


def test_the_tables_in_readme_and_docs_are_those_of_the_recorded_results(experiment):
    study = experiment("captioning_study")
    results = json.loads((ROOT / "experiments" / "results" / "captioning.json").read_text())
    docs, readme = (ROOT / "docs" / "captioning.md").read_text(), (ROOT / "README.md").read_text()
    assert study.table(results) in docs and study.table(results) in readme
    assert study.difference_table(results) in docs
    assert study.caption_table(results) in docs
