"""How the studies of few labels show what draws.py measured: a row for each kind of classifier, with all its draws, its line of Markdown, and its marks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report.measurements import from_json
from experiments.studies import marks, sweep

HEAD = ["| what | labels of each class | draws | test accuracy, % (95 % interval) | how it was chosen |", "|---|---|---|---|---|"]
COLOURS = {"autoregressive": marks.COLOURS[0], "bert": marks.COLOURS[1], "prefix": marks.COLOURS[2]}


def summary(found: Sequence[dict]) -> dict:
    """Return {models, rows, not_run, measurements} of all jobs; see `rows_of`."""
    models, not_run = {job["objective"]: job["model"] for job in found}, [line for job in found for line in job["not_run"]]
    unique = {(_key(one), one["seed"]): one for job in found for one in job["measurements"]}  # raw pixels are measured beside every model
    measurements = list(unique.values())
    return {"models": models, "rows": rows_of(measurements), "not_run": not_run, "measurements": measurements}


def rows_of(measurements: Sequence[dict]) -> list[dict]:
    """Return a row for each kind of classifier, all its draws together: {factors, seeds, accuracies, mean, interval, and facts of each draw}."""
    groups: dict[tuple, list[dict]] = {}
    for one in measurements:
        groups.setdefault(_key(one), []).append(one)
    return [_row(sorted(group, key=lambda one: one["seed"])) for group in groups.values()]


def _row(group):
    measured = [from_json(one) for one in group]
    seeds, right_RB = [one.seed for one in measured], np.stack([one.scores for one in measured])
    row = {"factors": measured[0].factors, "seeds": seeds, "images": right_RB.shape[1], "accuracies": right_RB.mean(axis=1).tolist()}
    row |= {"mean": float(right_RB.mean()), "interval": marks.interval_of(seeds, right_RB), "budgets": [one.budget for one in measured]}
    names = ("C", "k", "chosen_layer", "validation", "step", "steps", "images_seen", "stopped_by", "learning_rate", "batch_size")
    return row | {name: [one[name] for one in group] for name in names if name in group[0]}


def _key(measurement):
    return tuple(sorted(measurement["factors"].items()))


def select(rows: Sequence[dict], **factors) -> list[dict]:
    """Return the rows with these levels of the factors."""
    return [row for row in rows if all(row["factors"].get(name) == level for name, level in factors.items())]


def voted(rows: Sequence[dict], **factors) -> list[dict]:
    """Return what `select` returns; of a bert model only the rows by the vote of the most masks."""
    found = select(rows, **factors)
    most = max((row["factors"].get("masks", 0) for row in found), default=0)
    return [row for row in found if row["factors"].get("masks", 0) == most]


def draw_each(axes: Any, place: float, row: dict) -> None:
    """Draw the accuracy of each draw of a model's row as a small dot at x = `place`."""
    style = {"color": COLOURS[row["factors"]["objective"]], "markersize": 4, "alpha": 0.5}
    axes.plot([place] * len(row["accuracies"]), 100 * np.array(row["accuracies"]), ".", **style)


def row_line(row: dict) -> str:
    """Return the row as a line of Markdown, with the head `HEAD`."""
    factors = row["factors"]
    what = f"{factors.get('features') or factors['objective']}, {factors['way']}"
    what += "".join(f", {factors[name]}" for name in ("start", "loss") if name in factors)
    if "masks" in factors:
        what += f", {factors['masks']} mask{'s' if factors['masks'] > 1 else ''}"
    accuracy = f"{sweep.spread(100 * np.array(row['accuracies']), 1)} ({marks.points(row['interval'])})"
    return f"| {what} | {factors['labels']} | {len(row['seeds'])} | {accuracy} | {how(row)} |"


def how(row: dict) -> str:
    """Say of all draws of a row which layer, or how many images, and what ended the training."""
    if "stopped_by" not in row:
        layer = [f"layer {span(row['chosen_layer'])}"] if "chosen_layer" in row else []
        return ", ".join(layer + [f"{name} {span(row[name])}" for name in ("C", "k") if name in row])
    by_budget = sum(ended == "budget" for ended in row["stopped_by"])
    ended = f"the budget ended {by_budget} of {len(row['seeds'])}" if by_budget else f"the validation ended all {len(row['seeds'])}"
    return f"best after {span([a * b for a, b in zip(row['step'], row['batch_size'], strict=True)])} images of {span(row['images_seen'])}; {ended}"


def span(values: Sequence[float]) -> str:
    """Return the lowest and the highest of the values as text."""
    low, high = min(values), max(values)
    return f"{low:,g}" if low == high else f"{low:,g} to {high:,g}"
