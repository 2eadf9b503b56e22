"""The figure of a run's loss from its metrics.jsonl."""

from typing import Any, NamedTuple

import numpy as np

from experiments.studies import marks
from igpt_jax.progress import duration
from igpt_jax.reporting.course import smoothed

SMOOTHED = 20  # points of the mean of training batches over a whole run
RESTRICTED = 0.4  # part of the run that the second panel shows, from its end


class Evaluated(NamedTuple):
    """The loss of a checkpoint on test images."""

    step: int
    nats: float  # per pixel
    interval: list[float] | None  # 95 %, over test images
    images: int
    label: str = "test"


def draw(lines: list[dict[str, Any]], course: dict[str, Any], baselines: dict[str, float], tested: list[Evaluated], what: str) -> Any:
    """Draw loss against images seen, as a whole beside the baselines, and its end; `what` names the run in the title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for axes in panels:
        _draw_loss(axes, lines, course["batch_size"], tested)
        axes.set_xlabel(f"thousand images seen ({course['training_images']:,} are an epoch)")
        axes.grid(alpha=0.25)
    for (name, nats), style in zip(baselines.items(), ("--", ":"), strict=True):
        panels[0].axhline(nats, color="#b35806", linestyle=style, linewidth=1.4, label=f"{_named(name)}, test: {nats:.3f}")
    panels[0].set(ylabel="loss, nats per pixel", title="the whole run")
    panels[0].margins(y=0.08)
    _restrict(panels[1], lines, course, tested)
    figure.suptitle(title(course, baselines, tested, what), fontsize=10)
    marks.legend_below(figure, panels, ncols=3)
    return figure


def title(course: dict[str, Any], baselines: dict[str, float], tested: list[Evaluated], what: str) -> str:
    """Return the run and its result in numbers, on two lines."""
    seen = f"{course['images_seen']:,} images, {course['epochs']:.2f} epochs, {duration(3600 * course['hours'])} of steps"
    losses = ", ".join(f"{one.nats:.3f}{_ends(one)} {one.label}" for one in tested)
    name, nats = min(baselines.items(), key=lambda baseline: baseline[1])
    return f"{what}: {seen}\nnats per pixel on {tested[0].images:,} test images: {_named(name)} {nats:.3f}, {losses}"


def _named(baseline):
    return f"{baseline.replace('_', '-')} baseline"


def _ends(one):
    return f" ({one.interval[0]:.3f} to {one.interval[1]:.3f})" if one.interval else ""


def _points(lines, key, batch_size):
    """Images seen in thousands, and the values of a metric where it was measured: float [2, N]."""
    found = [(line["step"] * batch_size / 1e3, line[key]) for line in lines if line.get(key) is not None]
    return np.array(found, float).reshape(-1, 2).T


def _draw_loss(axes, lines, batch_size, tested):
    seen, loss = _points(lines, "train/nats_per_pixel", batch_size)
    if len(seen):
        axes.plot(seen, loss, color="#5a9bd0", linewidth=0.7, label="training batches")
        if (width := len(seen) // SMOOTHED) > 1:
            axes.plot(seen, smoothed(loss, width), color="#2171b5", linewidth=1.6, label=f"mean of {width} batches that were logged")
    seen, loss = _points(lines, "validation/nats_per_pixel", batch_size)
    axes.plot(seen, loss, "s--", color="black", markersize=4, linewidth=0.9, label="validation images")
    for one, mark in zip(tested, "oD^v", strict=False):
        ends = np.abs(np.array([one.interval or (one.nats, one.nats)]) - one.nats).T
        style = {"color": "#d95f02", "markersize": 8, "markeredgecolor": "black", "capsize": 3, "zorder": 5}
        axes.errorbar(one.step * batch_size / 1e3, one.nats, ends, fmt=mark, label=f"test images, {one.label}", **style)
    _shade_decay(axes, lines, batch_size)


def _shade_decay(axes, lines, batch_size):
    """Shade the images for which the learning rate falls to zero after it was constant; a schedule that falls all the time is not shaded."""
    seen, rate = _points(lines, "train/learning_rate", batch_size)
    if len(rate) > 2 and (highest := np.flatnonzero(rate >= 0.9999 * rate.max()))[-1] - highest[0] > len(rate) / 4:
        axes.axvspan(seen[highest[-1]], seen[-1], color="#5a5a5a", alpha=0.12, linewidth=0, label="the learning rate falls")


def _restrict(axes, lines, course, tested):
    """Show the last part of the run alone."""
    batch_size, last = course["batch_size"], course["images_seen"] / 1e3
    first = (1 - RESTRICTED) * last
    values = [one.nats for one in tested]
    for key in ("train/nats_per_pixel", "validation/nats_per_pixel"):
        seen, loss = _points(lines, key, batch_size)
        values += loss[seen >= first].tolist()
    margin = 0.1 * (max(values) - min(values)) + 1e-3
    axes.set(xlim=(first, last + 0.02 * (last - first) + 1e-3), ylim=(min(values) - margin, max(values) + margin), title=f"its last {RESTRICTED:.0%}")
