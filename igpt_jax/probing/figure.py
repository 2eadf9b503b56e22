"""The figure of a probe: accuracy against layer, as the paper's figure 2."""

import os
from typing import Any, BinaryIO


def draw(result: dict[str, Any], path: str | os.PathLike[str] | BinaryIO) -> None:
    """Draw the content of probe.json and write it as a PNG to a path or an open file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    layers = [row["layer"] for row in result["layers"]]
    dark, light = "#08519c", "#9ecae1"  # one hue in two lightnesses, distinct in black and white too
    shown = "test" if result["best"]["test"] is not None else "validation"
    attention = "attention" in result["best"]
    axes.plot(layers, [100 * row["validation"] for row in result["layers"]], "s--", color=light, markersize=4, label="validation")
    if shown == "test":
        label = "test, vote of the masks" if "test_one_mask" in result["best"] else "test, mean over positions" if attention else "test"
        axes.plot(layers, [100 * row["test"] for row in result["layers"]], "o-", color=dark, markersize=5, label=label)
    if shown == "test" and "test_one_mask" in result["best"]:
        axes.plot(layers, [100 * row["test_one_mask"] for row in result["layers"]], "v:", color=dark, markersize=4, label="test, one mask")
    if attention:
        axes.plot(layers, [100 * row["attention"][shown] for row in result["layers"]], "D-", color="#238b45", markersize=5, label=f"{shown}, attention")
    _mark_best(axes, result, layers, shown)
    if result["raw_pixels"]:
        level = 100 * result["raw_pixels"][shown]
        axes.axhline(level, color="#d95f02", linestyle=":", linewidth=1.8, label=f"raw pixels: {level:.1f} %")
    axes.set(xlabel=f"layer (of {result['model']['layers']})", ylabel="accuracy, %", title=_title(result))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(loc="best", frameon=False)
    figure.savefig(path, format="png", dpi=150)


def _mark_best(axes: Any, result: dict[str, Any], layers: list[int], shown: str) -> None:
    best = result["best"]
    place, label = (best["layer"], 100 * best[shown]), f"best layer by validation: {best['layer']}"
    axes.plot(*place, "o", color="none", markeredgecolor="black", markersize=12, label=label)
    side = -1 if best["layer"] == layers[-1] and len(layers) > 1 else 1  # the text stands on the side that has room
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
    axes.annotate(f"{place[1]:.1f} %", place, (12 * side, 4), textcoords="offset points", ha="left" if side == 1 else "right", bbox=box)


def _title(result: dict[str, Any]) -> str:
    model = result["model"]
    size = f"{model['parameters'] / 1e6:.3g}M" if model["parameters"] >= 1e6 else f"{model['parameters'] / 1e3:.3g}k"
    return f"Linear probe of {result['data']['source']}: {model['layers']} layers, width {model['width']} ({size} parameters)"
