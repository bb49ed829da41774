"""Answers before and after as pictures: the largest gains and losses first, then some as they come."""

from collections.abc import Sequence

import numpy as np

from vision_rl.analysis.answers import Comparison
from vision_rl.analysis.page import Html, joined, picture, tag
from vision_rl.processing import as_in_data_set
from vision_rl.trainer.completions_sheet import number


NUM_SHOWN = 6  # of each kind
DRAWN = 360  # pixels of an image's width: about as wide as it is shown, so that what is written in it can be read


def gallery(comparison: Comparison, num_shown: int = NUM_SHOWN) -> Html:
    """Show images, each once: gains and losses; without a model before, best and worst; without rewards, the first."""
    sections = [
        joined(tag("h3", title), tag("div", *(_shown(comparison, row) for row in rows), class_="gallery"))
        if rows
        else joined(tag("h3", title), tag("p", "None.", class_="soft"))
        for title, rows in chosen(comparison, num_shown).items()
    ]
    return joined(*sections)


def chosen(comparison: Comparison, num_shown: int) -> dict[str, list[int]]:
    """Choose the rows that are shown, by the title above them."""
    changes, rewards = comparison.changes(), comparison.after.rewards
    count = len(comparison.after.completions)
    if changes is not None:
        order = _falling(changes)
        gains = [row for row in order if changes[row] > 0][:num_shown]
        losses = [row for row in reversed(order) if changes[row] < 0][:num_shown]
        extremes = {"Largest gains": gains, "Largest losses": losses}
    elif rewards is not None:
        order = _falling(np.asarray(rewards, float))
        best = order[: min(num_shown, len(order) // 2)]
        extremes = {
            "Highest rewards": best,
            "Lowest rewards": [row for row in order[::-1][:num_shown] if row not in best],
        }
    else:
        extremes = {}
    taken = {row for rows in extremes.values() for row in rows}
    return {**extremes, "As they come": [row for row in range(count) if row not in taken][:num_shown]}


def _falling(values: np.ndarray) -> list[int]:
    """Places of the values that are numbers, the largest first."""
    return [row for row in np.argsort(-values, kind="stable").tolist() if not np.isnan(values[row])]


def _shown(comparison: Comparison, row: int) -> Html:
    image = as_in_data_set(comparison.images[row], row)
    reference = None if comparison.references is None else comparison.references[row]
    models = {"before": comparison.before, "after": comparison.after}
    figures = []
    for name, answers in models.items():
        if answers is None:
            continue
        drawn = answers.draw(image, answers.completions[row], reference, DRAWN)
        label = name if comparison.before is not None else "answer"
        figures.append(
            tag("figure", tag("figcaption", label), picture(drawn, f"row {row}, the answer {name}", widest=2 * DRAWN))
        )
    pair = tag("div", *figures, class_="pair" if len(figures) > 1 else "pair single")
    return tag("div", tag("div", *_caption(comparison, row)), pair, class_="shown")


def _caption(comparison: Comparison, row: int) -> Sequence[object]:
    changes, name = comparison.changes(), comparison.reward
    parts: list[object] = [tag("strong", f"Row {row}")]
    if changes is not None and comparison.before is not None and comparison.before.rewards is not None:
        change, after = float(changes[row]), comparison.after.rewards
        colour = "good" if change > 0 else "bad" if change < 0 else "soft"
        earned = f"{number(float(comparison.before.rewards[row]))} → {number(float(after[row]))} "  # type: ignore[index]
        parts += [
            tag("span", f" · {name} {earned}", class_="soft"),
            tag("strong", number(change, sign=True), class_=colour),
        ]
    elif comparison.after.rewards is not None:
        parts.append(tag("span", f" · {name} {number(float(comparison.after.rewards[row]))}", class_="soft"))
    return parts
