"""The figure of a probe: accuracy against layer, as the paper's figure 2."""

import os
from typing import Any, BinaryIO

import numpy as np

from igpt_jax.probing.intervals import in_percent, wilson

DARK, LIGHT = "#08519c", "#9ecae1"  # one hue in two lightnesses, distinct in black and white too
GREEN, ORANGE, BROWN = "#238b45", "#d95f02", "#7f5539"


def draw(result: dict[str, Any], path: str | os.PathLike[str] | BinaryIO) -> None:
    """Draw the content of probe.json and write it as a PNG to a path or an open file. Older ones lack intervals and nearest neighbours."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 5.4), layout="constrained")
    axes = figure.subplots()
    shown = "test" if result["best"]["test"] is not None else "validation"
    _draw_probes(axes, result, shown)
    _draw_pixels(axes, result, shown)
    _mark_best(axes, result, shown)
    last = result["model"]["layers"]
    axes.set(xlabel=f"layer (0: the embedding, {last}: the last)", ylabel="accuracy, %, with 95 % intervals" if "images" in result else "accuracy, %")
    axes.set_title(_title(result, shown), fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=150)


def _draw_probes(axes: Any, result: dict[str, Any], shown: str) -> None:
    rows, best = result["layers"], result["best"]
    layers = np.array([row["layer"] for row in rows])
    images = result.get("images", {})

    def line(rows: list[dict[str, Any]], key: str, style: str, shift: float = 0, **options: Any) -> None:
        """Accuracies with their intervals, which are those of the images of `key`."""
        levels = np.array([row[key] for row in rows])
        count = images.get("test" if key.startswith("test") else key, 0)
        ends = np.array([wilson(level, count) or [level, level] for level in levels])
        bars = np.abs(ends - levels[:, None]).T * 100 if count else None
        axes.errorbar(layers + shift, 100 * levels, yerr=bars, fmt=style, capsize=2, elinewidth=1, **options)

    line(rows, "validation", "s--", -0.12 if shown == "test" else 0, color=LIGHT, markersize=4, label="validation, which chooses")
    if shown == "test":
        label = "test, vote of the masks" if "test_one_mask" in best else "test, mean over positions" if "attention" in best else "test"
        line(rows, "test", "o-", color=DARK, markersize=5, label=label)
    if shown == "test" and "test_one_mask" in best:
        line(rows, "test_one_mask", "v:", color=DARK, markersize=4, label="test, one mask")
    if "attention" in best:
        line([row["attention"] for row in rows], shown, "D-", 0.06, color=GREEN, markersize=5, label=f"{shown}, attention")
    if "knn" in best:
        line([row["knn"] for row in rows], shown, "^-.", 0.12, color=BROWN, markersize=5, linewidth=1, label=f"{shown}, nearest neighbours")


def _draw_pixels(axes: Any, result: dict[str, Any], shown: str) -> None:
    pixels = result["raw_pixels"]
    if not pixels:
        return
    count = result.get("images", {}).get(shown, 0)
    for row, name, color, style in ((pixels, "raw pixels", ORANGE, ":"), (pixels.get("knn"), "raw pixels, nearest neighbours", BROWN, (0, (1, 4)))):
        if row is None:
            continue
        ends = wilson(row[shown], count)
        said = "" if ends is None else f" ({in_percent(ends)})"
        axes.axhline(100 * row[shown], color=color, linestyle=style, linewidth=1.8, label=f"{name}: {100 * row[shown]:.1f} %{said}")
        if ends is not None:
            axes.axhspan(*(100 * end for end in ends), color=color, alpha=0.1, linewidth=0)


def _mark_best(axes: Any, result: dict[str, Any], shown: str) -> None:
    best, layers = result["best"], [row["layer"] for row in result["layers"]]
    place, label = (best["layer"], 100 * best[shown]), f"best layer by validation: {best['layer']}"
    axes.plot(*place, "o", color="none", markeredgecolor="black", markersize=12, label=label)
    side = -1 if best["layer"] == layers[-1] and len(layers) > 1 else 1  # the text stands on the side that has room
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
    axes.annotate(f"{place[1]:.1f} %", place, (12 * side, 4), textcoords="offset points", ha="left" if side == 1 else "right", bbox=box)


def _title(result: dict[str, Any], shown: str) -> str:
    """The result in numbers, then what was probed."""
    model, best, last = result["model"], result["best"], result["layers"][-1]
    ends = wilson(best[shown], result.get("images", {}).get(shown, 0))
    said = "" if ends is None else f" ({in_percent(ends)})"
    first = [f"layer {best['layer']}: {100 * best[shown]:.1f} %{said}"]
    first += [f"last layer: {100 * last[shown]:.1f} %"] if last["layer"] != best["layer"] else []
    first += [f"raw pixels: {100 * result['raw_pixels'][shown]:.1f} %"] if result["raw_pixels"] else []
    size = f"{model['parameters'] / 1e6:.3g}M" if model["parameters"] >= 1e6 else f"{model['parameters'] / 1e3:.3g}k"
    return f"{'; '.join(first)}\nprobes of {result['data']['source']}: {model['layers']} layers, width {model['width']} ({size} parameters)"
