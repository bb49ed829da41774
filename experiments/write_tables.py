"""`make tables`: writes the tables of README.md and docs/, and the charts in docs/images, from the recorded results.

Each table stands between two comments, `<!-- table: NAME -->` and `<!-- end of table -->`, where NAME is a key of
`all_tables`. The text around the tables is not touched.
"""

import json
import re
from pathlib import Path

import ablation_study
import captioning_study
import colorization_hacking
import dense_study
import detection_study
import samples_study
import scene_captioning_study


ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKED = re.compile(r"<!-- table: (.+?) -->.*?<!-- end of table -->", re.DOTALL)


def recorded(name: str) -> dict:
    """The results of an experiment."""
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def all_tables() -> dict[str, str]:
    """Each table as Markdown, by the name in the comment before it."""
    tables = {"overview": overview()}
    for name in ("detection-incomplete", "detection-hard", "detection-crowded", "detection-short"):
        tables[name] = detection_study.table(recorded(name))
    for name in ("detection-incomplete", "detection-hard", "detection-crowded"):
        tables[f"{name}, differences"] = detection_study.difference_table(recorded(name))
    tables["detection-incomplete, thresholds"] = detection_study.threshold_table(recorded("detection-incomplete"))
    for name in ("detection-incomplete", "detection-hard"):
        tables[f"{name}, stopping"] = detection_study.stopping_table(recorded(name))
        tables[f"{name}, curves"] = detection_study.curve_table(recorded(name))
    tables["detection-ablations"] = detection_study.variant_table(recorded("detection-ablations"))
    tables["detection-ablations, curves"] = detection_study.curve_table(recorded("detection-ablations"))
    for name in ("panoptic", "panoptic-few-labels", "colorization"):
        tables[name] = dense_study.table(recorded(name))
        tables[f"{name}, differences"] = dense_study.difference_table(recorded(name))
    tables["colorization-hacking"] = colorization_hacking.table(recorded("colorization-hacking"))
    captions = recorded("captioning")
    tables["captioning"] = captioning_study.table(captions)
    tables["captioning, differences"] = captioning_study.difference_table(captions)
    tables["captioning, folds"] = captioning_study.fold_table(captions)
    tables["captioning, learning rates"] = captioning_study.rate_table(captions)
    tables["captioning, sentences"] = captioning_study.caption_table(captions)
    scenes = recorded("scene-captions")
    tables["scene-captions"] = scene_captioning_study.table(scenes)
    tables["scene-captions, differences"] = scene_captioning_study.difference_table(scenes)
    tables["scene-captions, learning rates"] = scene_captioning_study.rate_table(scenes)
    tables["scene-captions, curves"] = scene_captioning_study.curve_table(scenes)
    tables["ablations"] = ablation_study.table(recorded("ablations"))
    tables["ablations, learning rates"] = scene_captioning_study.rate_table(recorded("ablations"))
    tables["samples"] = samples_study.table(recorded("samples"))
    return tables


def overview() -> str:
    """What each experiment found: the metric of MLE, of its strongest control and of the tuned model."""
    lines = [
        "| | MLE | MLE continued | best decoding of either | tuned | seconds of tuning |",
        "|---|---|---|---|---|---|",
    ]
    for title, name, metric, mle, control, decoded, tuned in (
        (
            "captions of scenes, CIDEr",
            "scene-captions",
            "cider",
            "mle, greedy",
            "mle_continued, greedy",
            ("mle,", "mle_continued,"),
            "tuned_without_end, greedy",
        ),
        ("incomplete labels, mAP", "detection-incomplete", "map", "mle", "mle_continued", ("mle",), "tuned_map"),
        ("hard scenes, mAP", "detection-hard", "map", "mle", "mle_continued", ("mle",), "tuned_map"),
        ("panoptic segmentation, PQ", "panoptic", "pq", "mle", "mle_continued 0.001", (), "tuned 3e-05"),
        (
            "panoptic segmentation, 5,000 labels, PQ",
            "panoptic-few-labels",
            "pq",
            "mle",
            "mle_continued 0.0001",
            (),
            "tuned 3e-05",
        ),
        (
            "captions of photos, CIDEr",
            "captioning",
            "cider",
            "mle, greedy",
            "mle_continued, greedy",
            ("mle,", "mle_continued,"),
            "tuned, greedy",
        ),
    ):
        rows = recorded(name)["rows"]
        value = {row: columns[metric]["mean"] for row, columns in rows.items()}
        best = max((value[row] for row in value if decoded and row.startswith(decoded)), default=None)
        seconds = rows[tuned]["seconds"]
        numbers = [value[mle], value[control], best, value[tuned]]
        shown = " | ".join("" if number is None else f"{number:.3f}" for number in numbers)
        lines.append(f"| {title} | {shown} | {round(sum(seconds) / len(seconds))} |")
    return "\n".join(lines)


def all_charts() -> dict[str, str]:
    """Each chart as SVG, by its name in docs/images."""
    charts = samples_study.sample_charts(recorded("samples"))
    for name, study, results in (
        ("incomplete-labels", detection_study, "detection-incomplete"),
        ("hard-scenes", detection_study, "detection-hard"),
        ("captions-of-scenes", scene_captioning_study, "scene-captions"),
        ("panoptic", dense_study, "panoptic"),
        ("panoptic-few-labels", dense_study, "panoptic-few-labels"),
        ("colorization", dense_study, "colorization"),
    ):
        charts |= {f"{name}-{what}": chart for what, chart in study.curve_charts(recorded(results)).items()}
    return charts


def rewritten(text: str, tables: dict[str, str]) -> str:
    """The text with each marked table replaced by the one of that name in `tables`.

    Raises:
        KeyError: `tables` has no table of a name.
        ValueError: the end of a table is not marked.
    """
    if not text.count("<!-- table: ") == text.count("<!-- end of table -->") == len(MARKED.findall(text)):
        raise ValueError("Each `<!-- table: NAME -->` needs its own `<!-- end of table -->`.")
    return MARKED.sub(lambda found: marked(found[1], tables[found[1]]), text)


def marked(name: str, table: str) -> str:
    """A table between its two comments, with the empty lines that Markdown needs."""
    return f"<!-- table: {name} -->\n\n{table}\n\n<!-- end of table -->"


def main() -> None:
    tables = all_tables()
    for file in FILES:
        before = file.read_text()
        after = rewritten(before, tables)
        if after != before:
            file.write_text(after)
            print(f"Written: {file.relative_to(ROOT)}")
    for name, chart in all_charts().items():
        (IMAGES / f"{name}.svg").write_text(chart)


if __name__ == "__main__":
    main()
