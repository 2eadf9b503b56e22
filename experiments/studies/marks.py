"""How the figures of the studies draw an accuracy: marks with their 95 % intervals, a reference as a line with its interval.

Accuracies are shares from 0 to 1, drawn in percent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import intervals
from igpt_jax.probing.intervals import wilson

GREY = "#5a5a5a"
COLOURS = ("#08306b", "#d95f02", "#1b9e77", "#7b3294", "#5a5a5a")
RAW_PIXELS, VALIDATION = (0, (6, 2, 1, 2)), (0, (1, 1.5))  # styles of lines
MANY = 24  # marks of a curve; bars of more would cover each other
MARKS = "os^DvPX"  # with the colours, 35 curves that differ in colour or mark


def interval_of(seeds: Sequence[int], right_RB: np.ndarray) -> list[float]:
    """Return the 95 % interval [low, high] of the mean accuracy of R models on B test images; from three seeds on it is over seeds too."""
    if len(right_RB) == 1:
        return wilson(float(right_RB.mean()), right_RB.shape[1])
    found = intervals.contrast([(1, sample_of(seeds, right_RB))])
    return [max(0.0, found.low), min(1.0, found.high)]


def interval_of_shares(seeds: Sequence[int], share_R: Sequence[float], images: int) -> list[float]:
    """Return the interval of `interval_of` where only the accuracy of each of R models is known; it is wider, as if their errors were on the same images."""
    if len(share_R) == 1:
        return wilson(share_R[0], images)
    found = intervals.contrast([(1, intervals.Sample(tuple(seeds), np.asarray(share_R, float), images, None))])
    return [max(0.0, found.low), min(1.0, found.high)]


def interval_of_difference(seeds: Sequence[int], right_RB: np.ndarray, other_RB: np.ndarray) -> list[float]:
    """Return the 95 % interval of the first mean accuracy minus the other one, of the same R models on the same B test images."""
    found = intervals.contrast([(1, sample_of(seeds, right_RB, "same")), (-1, sample_of(seeds, other_RB, "same"))])
    return [found.low, found.high]


def sample_of(seeds: Sequence[int], scores_RB: np.ndarray, origin: str | None = None) -> intervals.Sample:
    """Return R models of a kind on B test images for experiments.report.intervals; those of equal `origin` and seed are the same models."""
    scores_RB = np.asarray(scores_RB, float)
    return intervals.Sample(tuple(seeds), scores_RB.mean(axis=1), scores_RB.shape[1], scores_RB, origin=origin)


def style_of(number: int) -> dict[str, Any]:
    """Return colour and mark of the `number`-th curve of a figure."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}


def draw_curve(axes: Any, x: Sequence[float] | np.ndarray, share: Sequence[float], interval: Sequence[Sequence[float]], **style: Any) -> None:
    """Draw accuracies [N] at `x` [N] with their intervals [N, 2], as bars, or where there are many as a band; `style` as in matplotlib's plot."""
    share_N, ends_N2 = 100 * np.asarray(share, float), 100 * np.asarray(interval, float)
    if len(share_N) > MANY:
        axes.plot(x, share_N, **{"markersize": 4, "linewidth": 1.3, "markevery": len(share_N) // 12} | style)
        axes.fill_between(x, ends_N2[:, 0], ends_N2[:, 1], color=style["color"], alpha=0.15, linewidth=0)
        return
    lengths_2N = np.abs(np.stack([share_N - ends_N2[:, 0], ends_N2[:, 1] - share_N]))
    axes.errorbar(x, share_N, lengths_2N, **{"markersize": 5, "capsize": 2, "elinewidth": 0.9, "linewidth": 1.3} | style)


def draw_level(axes: Any, share: float, interval: Sequence[float], label: str, colour: str = GREY) -> None:
    """Draw an accuracy that does not depend on x, such as that of raw pixels: a line over the whole panel, and its interval as a band."""
    axes.axhline(100 * share, color=colour, linestyle=RAW_PIXELS, linewidth=1.3, label=label, zorder=1)
    axes.axhspan(100 * interval[0], 100 * interval[1], color=colour, alpha=0.12, linewidth=0, zorder=0)


def draw_validation(axes: Any, x: Sequence[float] | np.ndarray, share: Sequence[float] | np.ndarray, **style: Any) -> None:
    """Draw the accuracies [N] on the validation images, which chose what the curve at `x` [N] shows; `style` as in matplotlib's plot."""
    axes.plot(x, 100 * np.asarray(share, float), **{"linestyle": VALIDATION, "linewidth": 1.2} | style)


def offsets(count: int, width: float = 0.5) -> np.ndarray:
    """Return how far the marks of `count` curves stand beside their x, so that their intervals do not cover each other."""
    return (np.arange(count) - (count - 1) / 2) * min(0.12, width / max(1, count))


def points(interval: Sequence[float], sign: str = "") -> str:
    """Return the ends of an interval in percent, as text; `sign` "+" for a difference."""
    low, high = (f"{100 * end:{sign}.1f}" for end in interval)
    return f"{low} to {high}"


def legend_below(figure: Any, panels: Sequence[Any], ncols: int = 2) -> None:
    """Write one legend below the panels, each label once."""
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False, fontsize=10)
