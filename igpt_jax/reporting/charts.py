"""Charts of a run as SVG whose ink is the colour of the page's text, so that they are readable on light and dark pages."""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from igpt_jax.reporting.course import points, smoothed

BLUE, ORANGE, GREEN = "#3b87cf", "#e0812b", "#4aa564"  # readable on white and on black
SMOOTHED = 20  # points of the mean over a whole run
SIZE = (4.8, 2.9)  # inches: small, so that the text is readable on a phone


class Curve(NamedTuple):
    """A curve over the steps: its values, what it is called, and how it is drawn."""

    steps: np.ndarray
    values: np.ndarray
    label: str
    style: dict[str, Any]


def charts(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (title, SVG) of what the lines of a metrics.jsonl hold: loss, accuracy, learning rate, gradient norm, images/s."""
    found = [("Loss, nats per pixel", _losses(lines)), ("Accuracy of the class head, %", _accuracies(lines))]
    singles = {"Learning rate": "learning_rate", "Gradient norm": "gradient_norm", "Images per second": "images_per_second"}
    found += [(title, [Curve(*points(lines, f"train/{key}"), "", {"color": BLUE})]) for title, key in singles.items()]
    drawn = [(title, [curve for curve in curves if len(curve.steps)]) for title, curves in found]
    return [(title, _svg(curves, title)) for title, curves in drawn if curves]


def _losses(lines: Sequence[dict[str, Any]]) -> list[Curve]:
    steps, loss = points(lines, "train/nats_per_pixel")
    curves = [Curve(steps, loss, "training batches", {"color": BLUE, "linewidth": 0.7, "alpha": 0.6})]
    if (width := len(loss) // SMOOTHED) > 1:
        curves.append(Curve(steps, smoothed(loss, width), f"mean of {width} that were logged", {"color": BLUE, "linewidth": 1.8}))
    return curves + _evaluated(lines, "nats_per_pixel")


def _accuracies(lines: Sequence[dict[str, Any]]) -> list[Curve]:
    curves = [curve._replace(values=100 * curve.values) for curve in _evaluated(lines, "accuracy")]
    return [Curve(steps, 100 * values, "training batches", {"color": BLUE}) for steps, values in [points(lines, "train/accuracy")]] + curves


def _evaluated(lines: Sequence[dict[str, Any]], name: str) -> list[Curve]:
    style = {"linestyle": "--", "markersize": 4, "linewidth": 1}
    marks = {"validation": {"color": ORANGE, "marker": "s"}, "test": {"color": GREEN, "marker": "D"}}
    return [Curve(*points(lines, f"{split}/{name}"), f"{split} images", mark | style) for split, mark in marks.items()]


def _svg(curves: Sequence[Curve], title: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            alone = {"marker": "o", "markersize": 4} if len(curve.steps) == 1 and "marker" not in curve.style else {}
            axes.plot(curve.steps, curve.values, label=curve.label or None, **curve.style | alone)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.25)
        if any(curve.label for curve in curves):
            axes.legend(frameon=False, fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _with_ink_of_the_page(file.getvalue().decode(), title)


def _with_ink_of_the_page(text: str, title: str) -> str:
    """The <svg> element alone, as wide as its place, with black replaced by the colour of the page's text."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    return re.sub(r"#000000|#262626|(?<=: )black", "currentColor", text)
