"""A run as one page: whether it worked, on what, what got worse, and how to do it again."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vision_rl.analysis import figures
from vision_rl.analysis.answers import Change, Comparison
from vision_rl.analysis.charts import Line, line_chart
from vision_rl.analysis.curves import curve, metric_charts, reward_and_metrics, reward_chart, running_mean
from vision_rl.analysis.gallery import gallery
from vision_rl.analysis.noise import images_text
from vision_rl.analysis.page import Html, facts, joined, page, picture, table, tag, write_page
from vision_rl.analysis.run_folder import RunFolder, open_sheet, read_completions
from vision_rl.trainer.completions_sheet import number


TRAINING_CURVES = {
    "loss": "Loss",
    "entropy": "Entropy of a token",
    "kl": "KL divergence of a token",
    "completions/mean_length": "Tokens of a sample",
    "reward_std_within_image": "Spread of the reward within an image",
    "frac_reward_zero_std": "Share of images that teach nothing",
    "grad_norm": "Norm of the gradient",
    "learning_rate": "Learning rate",
}
NUM_CHARTS = 6  # of metrics, before the others are folded away
NUM_NAMED = 4  # of metrics that went up; those that went down are all named
SAME = 5e-5  # of a metric: what its four digits do not show


def write_report(run_dir: str | Path, comparison: Comparison | None = None, output: str | Path | None = None) -> Path:
    """Write the page of a run, of `report.html` in its folder unless told otherwise; returns where it is.

    Args:
        run_dir: the output folder of a training: its log, and what else is there of settings, samples and pictures.
        comparison: answers of its model, and of the one that it started from: the verdict and the gallery.
        output: of the page.
    """
    folder = Path(run_dir)
    path = folder / "report.html" if output is None else Path(output)
    write_page(path, report_page(RunFolder.read(folder), comparison))
    return path


def report_page(run: RunFolder, comparison: Comparison | None = None) -> str:
    """The page's HTML."""
    title = f"{run.path.resolve().name}: {'reward tuning' if _is_tuning(run) else 'training'}"
    return page(
        title,
        _head(run, title),
        _verdict(run, comparison),
        _metrics(comparison),
        _evaluated(run),
        _answers(comparison),
        _curves(run, [] if comparison is None else list(comparison.after.metrics)),
        _samples(run),
        _noise(run),
        _sheets(run, folded=comparison is not None),
        _how(run),
    )


# --- did it work? -----------------------------------------------------------------------------------------------------------


def _head(run: RunFolder, title: str) -> Html:
    record = run.record
    said = [
        f"from {record['model']}" if record.get("model") else "",
        f"rewarded for {', '.join(str(each.get('name')) for each in run.rewards)}" if run.rewards else "",
        f"{record['steps']} update steps" if "steps" in record else "",
        _duration(record["seconds"]) if isinstance(record.get("seconds"), int | float) else "",
        str(record.get("started", ""))[:16],
    ]
    return joined(tag("h1", title), tag("p", " · ".join(filter(None, said)), class_="soft"))


def _verdict(run: RunFolder, comparison: Comparison | None) -> Html:
    changes = None if comparison is None else comparison.changes()
    change = None if changes is None else Change.of(changes)
    if comparison is None or change is None:
        return _verdict_of_log(run)
    name, unit = comparison.reward, f"{len(comparison.after.completions)} images"
    how = "No clear change" if not change.is_clear else "It worked" if change.mean > 0 else "It got worse"
    way = "less" if change.mean < 0 else "more"
    verdict = f"{how}: the greedy answer earns {abs(change.mean):.3g} {way} {name}"
    interval = f" than before, on average over {unit} (95 % interval {change.low:+.3g} to {change.high:+.3g})."
    if not change.gained and not change.lost:
        verdict = "Nothing changed"
        interval = f": the answers to all {unit} earn as much {name} as before."
    colour = None if not change.is_clear else "good" if change.mean > 0 else "bad"
    sentences = [tag("p", tag("strong", verdict, class_=colour), interval, class_="verdict")]
    if comparison.before is not None and comparison.before.metrics:
        down, up = _moved_metrics(comparison)
        sentences.append(tag("p", tag("strong", "Went down: "), ", ".join(down) or "no metric", "."))
        more = f", and {len(up) - NUM_NAMED} more" if len(up) > NUM_NAMED else ""
        sentences.append(tag("p", tag("strong", "Went up: "), ", ".join(up[:NUM_NAMED]) or "no metric", f"{more}."))
    return joined(*sentences, _cards(comparison, change), *_against_the_reward(run))


def _verdict_of_log(run: RunFolder) -> Html:
    """Say whether the run worked as far as its log tells, where no answers are compared."""
    sentences = []
    steps, rewards = curve(run.log, "eval_reward")
    if len(steps) > 1:
        best = int(np.argmax(rewards))
        sentences.append(
            f"The reward of greedy answers went from {number(rewards[0])} (step {steps[0]}) to {number(rewards[-1])} (step "
            f"{steps[-1]}) in the evaluations; the best was {number(rewards[best])} at step {steps[best]}."
        )
    steps, rewards = curve(run.log, "reward")
    if len(steps) > 1:
        count = min(20, len(steps) // 2)
        first, last = np.mean(rewards[:count]), np.mean(rewards[-count:])
        sentences.append(
            f"The reward of samples went from {number(float(first))} to {number(float(last))}, the mean of the first and of "
            f"the last {count} log lines."
        )
    steps, losses = curve(run.log, "eval_loss")
    if len(steps) > 1:
        best = int(np.argmin(losses))
        sentences.append(
            f"The loss of the evaluations went from {number(losses[0])} to {number(losses[-1])}; the best was "
            f"{number(losses[best])} at step {steps[best]}."
        )
    if not sentences:
        sentences.append("The log does not say whether it worked: there are no evaluations in it.")
    return joined(*(tag("p", sentence, class_="verdict") for sentence in sentences), *_against_the_reward(run))


def _cards(comparison: Comparison, change: Change) -> Html:
    assert comparison.before is not None
    before, after = (
        float(np.nanmean(np.asarray(answers.rewards, float))) for answers in (comparison.before, comparison.after)
    )
    total = change.gained + change.same + change.lost
    parts = (("var(--good)", change.gained), ("var(--line)", change.same), ("var(--bad)", change.lost))
    bar = tag(
        "div",
        *(tag("div", style=f"width:{100 * count / total:.2f}%;background:{colour}") for colour, count in parts),
        class_="bar",
        role="img",
        aria_label=f"{change.gained} gained, {change.same} the same, {change.lost} lost",
    )
    cards = [
        tag("div", f"{comparison.reward}, greedy", tag("b", f"{number(before)} → {number(after)}"), class_="card"),
        tag(
            "div",
            "images",
            bar,
            tag("span", f"{change.gained} gained", class_="good"),
            f" · {change.same} the same · ",
            tag("span", f"{change.lost} lost", class_="bad"),
            class_="card",
        ),
    ]
    for name, values in list(_paired_metrics(comparison).items())[:2]:
        shown = tag("b", f"{number(values[0])} → {number(values[1])}")
        cards.append(tag("div", name, shown, class_="card"))
    return tag("div", *cards, class_="cards")


def _paired_metrics(comparison: Comparison) -> dict[str, tuple[float, float]]:
    """Return each metric of both models, before and after, by name: the task's first, then parts of rewards."""
    if comparison.before is None:
        return {}
    before, after = comparison.before.metrics, comparison.after.metrics
    names = [name for name in after if name in before and name != "reward"]
    return {name: (float(before[name]), float(after[name])) for name in sorted(names, key=_is_of_reward)}


def _is_of_reward(name: str) -> bool:
    return name.startswith(("rewards/", "completions/"))


def _moved_metrics(comparison: Comparison) -> tuple[list[str], list[str]]:
    """List the metrics that went down, and those that went up, in words; whether that is good, the reader knows."""
    down: list[str] = []
    up: list[str] = []
    for name, (before, after) in _paired_metrics(comparison).items():
        if not _is_of_reward(name) and abs(after - before) > SAME:
            (up if after > before else down).append(f"{name} {number(before)} → {number(after)}")
    return down, up


def _against_the_reward(run: RunFolder) -> list[Html]:
    """Metrics that fell over the evaluations as the reward rose, or the other way round."""
    evaluated = reward_and_metrics(run.log)["evaluated"]
    against = [
        f"{name.removeprefix('eval_')} ({each['rank_correlation']:+.2f})"
        for name, each in evaluated.items()
        if (each.get("rank_correlation") or 0) < -0.5 and not _is_of_reward(name.removeprefix("eval_"))
    ]
    if not against:
        return []
    text = " moved against the reward over the evaluations (rank correlation)."
    text += " Where more of it is better, look at the answers: the reward may be hacked."
    return [tag("p", tag("strong", ", ".join(against)), text)]


def _metrics(comparison: Comparison | None) -> Html:
    if comparison is None:
        return Html()
    metrics = comparison.after.metrics
    if comparison.before is None:
        rows: list[list[object]] = [[name, f"{float(value):.4f}"] for name, value in metrics.items()]
        return joined(tag("h2", "What was measured"), table(["", "model"], rows)) if rows else Html()
    pairs = _paired_metrics(comparison)
    rows = [
        [name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"]
        for name, (before, after) in pairs.items()
        if after != before
    ]
    same = [f"{name} {number(after)}" for name, (before, after) in pairs.items() if after == before]
    parts = [tag("h2", "What was measured")] if pairs else []
    if rows:
        parts.append(table(["", "before", "after", "change"], rows))
    if same:
        parts.append(tag("p", f"Unchanged: {', '.join(same)}.", class_="soft"))
    return joined(*parts)


def _answers(comparison: Comparison | None) -> Html:
    if comparison is None:
        return Html()
    changes, charts = comparison.changes(), []
    if changes is not None and not np.isnan(changes).all():
        known = np.sort(changes[~np.isnan(changes)]).tolist()
        lines = [Line("", range(1, len(known) + 1), known), Line("", [1, len(known)], [0, 0], colour=1, dashed=True)]
        charts = [Html(line_chart("Change of each image's reward, sorted", lines, "image"))]
    return joined(tag("h2", "Answers"), tag("div", *charts, class_="charts"), gallery(comparison))


# --- how it went ------------------------------------------------------------------------------------------------------------


def _curves(run: RunFolder, first: list[str]) -> Html:
    """`first` are the metrics that come first."""
    reward = reward_chart(run.log)
    charts = [*([] if reward is None else [reward]), *metric_charts(run.log, first)]
    training = [
        line_chart(title, [Line("", steps, values, faint=True), Line("", steps, running_mean(values))], "update step")
        for name, title in TRAINING_CURVES.items()
        for steps, values in [curve(run.log, name)]
        if len(steps) > 1
    ]
    if not charts and not training:
        return Html()
    parts = [tag("h2", "The run"), tag("div", *map(Html, charts[:NUM_CHARTS]), class_="charts")]
    for title, folded in (("More of what was evaluated", charts[NUM_CHARTS:]), ("The training itself", training)):
        if folded:
            shown = tag("div", *map(Html, folded), class_="charts")
            parts.append(tag("details", tag("summary", title), shown, open=None if len(charts) > 1 else ""))
    return joined(*parts)


def _samples(run: RunFolder) -> Html:
    models = run.samples.get("models")
    if not models:
        return Html()
    charts = (figures.quantile_chart, figures.best_of_n_chart, figures.likeliest_of_n_chart)
    first: Mapping[str, Any] = next(iter(models.values()))
    return joined(
        tag("h2", "What the samples hold"),
        tag("p", f"{first['samples']} samples of each of {first['images']} images; bands are 95 % intervals."),
        tag("div", *(Html(chart(models)) for chart in charts), class_="charts"),
    )


def _noise(run: RunFolder) -> Html:
    tables = []
    for name, model in run.noise.get("models", {}).items():
        rows: list[list[object]] = []
        for each in model["estimators"]:
            low, high = each["images_needed_interval"]
            interval = "no signal seen" if low is None else f"{images_text(low)} to {images_text(high)}"
            needed = images_text(each["images_needed"])
            rows.append([each["name"], needed, interval, f"{100 * each['share_of_signal']:.0f} %"])
        images = model["estimators"][0]["images"]
        head: list[object] = ["estimator", "images needed", "95 % interval", f"signal in {images} images"]
        tables.append(joined(tag("h3", name), table(head, rows)))
    if not tables:
        return Html()
    text = "An update of as many images as are needed has as much noise as signal; one of far fewer is mostly noise."
    return joined(tag("h2", "Noise of the gradients"), tag("p", text), *tables)


def _sheets(run: RunFolder, folded: bool) -> Html:
    """The first and the last of what `log_completions` has drawn, of evaluations the same rows each time."""
    title = "What it wrote while it learned"
    parts = []
    for name, files in run.sheets.items():
        for step, path in files if len(files) < 3 else [files[0], files[-1]]:
            shown = (
                _completions(path) if path.suffix == ".parquet" else picture(open_sheet(path), path.stem, widest=1600)
            )
            parts.append(tag("figure", tag("figcaption", f"{name}, step {step}"), shown, class_="shown sheet"))
    if not parts:
        return Html()
    return tag("details", tag("summary", title), *parts) if folded else joined(tag("h2", title), *parts)


def _completions(path: Path) -> Html:
    rows: list[list[object]] = [
        [each["row_index"], tag("td", each["completion"], class_="text"), _reward(each["reward"])]
        for each in read_completions(path)
    ]
    return table(["row", "completion", "reward"], rows)


def _reward(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else "none"


def _evaluated(run: RunFolder) -> Html:
    """What `vision-rl eval` has measured of the whole data set."""
    return joined(tag("h2", "Evaluation"), facts(run.evaluated)) if run.evaluated else Html()


def _how(run: RunFolder) -> Html:
    record, commands = run.record, []
    if record.get("command"):
        commands.append(str(record["command"]))
    if (run.path / "command.yaml").is_file():
        made_by = _command_of(run.path / "command.yaml") or ("tune" if _is_tuning(run) else "mle")
        commands.append(f"vision-rl {made_by} --config {run.path}/command.yaml   # once more")
        if made_by != "stage1":  # whose model answers no image
            commands.append(f"vision-rl analyze --config {run.path}/command.yaml")
    parts = [tag("h2", "How it was made")]
    if commands:
        parts.append(tag("pre", "\n".join(commands)))
    for title, name in (
        ("Settings that are not the defaults", "settings"),
        ("Versions", "versions"),
        ("Rows", "rows"),
    ):
        pairs = record.get(name)
        if isinstance(pairs, dict) and pairs:
            parts.append(tag("details", tag("summary", title), facts(pairs)))
    if run.rewards:
        pairs = {str(each.get("name")): f"weight {each.get('weight')}, {each.get('source')}" for each in run.rewards}
        parts.append(tag("details", tag("summary", "Rewards"), facts(pairs)))
    return joined(*parts) if len(parts) > 1 else Html()


def _command_of(file: Path) -> str | None:
    """The command that wrote this file, if the file says so."""
    found = re.search(r"^command: (mle|tune|stage1)$", file.read_text(encoding="utf-8", errors="replace"), re.M)
    return found and found[1]


def _is_tuning(run: RunFolder) -> bool:
    return "Reward" in str(run.record.get("trainer", "")) or any("reward" in line for line in run.log)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
