"""The tables of the documentation are those of the recorded results."""

import pytest


def test_the_tables_of_readme_and_docs_are_those_of_the_recorded_results(experiment):
    write_tables = experiment("write_tables")
    tables, shown = write_tables.all_tables(), set()
    for file in write_tables.FILES:
        text = file.read_text()
        assert write_tables.rewritten(text, tables) == text, f"{file.name}: make tables"
        shown |= set(write_tables.MARKED.findall(text))
    assert shown == set(tables)


def test_the_charts_of_the_docs_are_those_of_the_recorded_results(experiment):
    write_tables = experiment("write_tables")
    shown = "".join(file.read_text() for file in write_tables.FILES)
    for name, chart in write_tables.all_charts().items():
        assert (write_tables.IMAGES / f"{name}.svg").read_text() == chart, f"{name}.svg: make tables"
        assert f"images/{name}.svg" in shown


def test_only_what_is_marked_is_rewritten(experiment):
    write_tables = experiment("write_tables")
    text = "Before | it.\n\n<!-- table: a, b -->\nold\n<!-- end of table -->\nBetween.\n" + write_tables.marked(
        "c", "|C|"
    )
    assert write_tables.rewritten(text, {"a, b": "|AB|", "c": "|C|"}) == (
        "Before | it.\n\n<!-- table: a, b -->\n\n|AB|\n\n<!-- end of table -->\nBetween.\n"
        "<!-- table: c -->\n\n|C|\n\n<!-- end of table -->"
    )


def test_an_unknown_table_and_one_without_an_end_are_refused(experiment):
    write_tables = experiment("write_tables")
    with pytest.raises(KeyError, match="typo"):
        write_tables.rewritten(write_tables.marked("typo", ""), {"name": ""})
    for text in ("<!-- table: name -->", "<!-- table: name -->\n" + write_tables.marked("name", "")):
        with pytest.raises(ValueError, match="needs its own"):
            write_tables.rewritten(text, {"name": ""})
