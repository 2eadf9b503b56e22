"""Does a lower loss mean better features, and does a larger model probe better at the same loss? (The paper's figure 3 and section 4.3.)

    python -m experiments.studies.accuracy_by_loss --config=configs/cifar10_16.py --workdir=runs/loss --sizes=4x64,6x96,8x128 --results=experiments/results

Pretrains the recipe with each seed at each of --sizes, which are layers x width with the recipe's head size; 8x128@0.001 also sets the learning rate. Each
run has --snapshots. Each snapshot has twice the steps of the one before, and the last is the end of the run. Two things are measured at each snapshot: the
loss on the probed test images, and which of these images a linear probe classifies correctly, at the layer that is best on validation images. Neighbouring
sizes are compared at losses that both reach, on the same test images. This is a sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import pathlib
import re
from functools import partial
from typing import Any

import numpy as np

from experiments.report import intervals
from experiments.report.measurements import Factors, Measurement, to_json
from experiments.studies import marks, origin, stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.training.evaluation import evaluate_checkpoint
from igpt_jax.types import PathLike, Recipe

LOSSES = 16  # number of losses at which two sizes are compared, evenly spaced over the range that both reach


def sweep_losses(config: Recipe, workdir: PathLike, sizes: list[str], seeds: int, snapshots: int, probing: stages.Probing, **options) -> dict | None:
    """Run the jobs, one for each size and seed, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    if probing.solver != "lbfgs":
        raise ValueError(f"--solver={probing.solver} is for more images than fit in memory, and this study probes few of many models: leave the flag out")
    recipes = {size: recipe_of(config, size, snapshots) for size in sizes}
    jobs = [
        sweep.Job(f"{size}-{seed}".replace("@", "-"), partial(train_and_probe, recipe, workdir, size, seed, snapshots, probing))
        for size, recipe in recipes.items()
        for seed in range(config.seed, config.seed + seeds)
    ]
    return sweep.run(FIGURE, jobs, config, {"snapshots": snapshots} | dataclasses.asdict(probing), workdir, **options)


def recipe_of(config: Recipe, size: str, snapshots: int) -> Recipe:
    """Return the recipe at a size "LAYERSxWIDTH" or "LAYERSxWIDTH@RATE", with a checkpoint at every snapshot; ValueError if it cannot be made."""
    match = re.fullmatch(r"(\d+)x(\d+)(?:@([\d.e-]+))?", size)
    if not match or not int(match[1]) * int(match[2]):
        raise ValueError(f"--sizes={size} must be LAYERSxWIDTH or LAYERSxWIDTH@LEARNING_RATE, for example 8x128 or 8x128@0.001")
    layers, width, head = int(match[1]), int(match[2]), config.model.width // config.model.heads
    if width % head:
        raise ValueError(f"--sizes={size}: width {width} is not a multiple of the recipe's head size {head} (width {config.model.width})")
    every = config.steps // 2 ** (snapshots - 1)
    if every < 1 or config.steps % 2 ** (snapshots - 1):
        raise ValueError(f"config.steps={config.steps} must be a multiple of {2 ** (snapshots - 1)}: --snapshots={snapshots} halves it")
    unroll = layers if config.model.unroll == config.model.layers else config.model.unroll
    changes = {"model__layers": layers, "model__width": width, "model__heads": width // head, "model__unroll": unroll}
    changes |= {"optim__learning_rate": float(match[3])} if match[3] else {}
    return stages.changed(config, save_every=every, keep_every=every, **changes)


def train_and_probe(recipe: Recipe, workdir: pathlib.Path, size: str, seed: int, snapshots: int, probing: stages.Probing) -> dict:
    """Pretrain one model and measure every snapshot of it."""
    home = workdir / "models" / f"{size}-{seed}"
    recipe = stages.changed(stages.with_palette(recipe, workdir), seed=seed)
    images = probing.images(recipe, recipe.data.source, workdir / "images/probed")
    trained = stages.pretrain(recipe, home)
    points = []
    for step in (recipe.steps // 2**halves for halves in reversed(range(snapshots))):
        place, measured = home / "checkpoints" / str(step), home / "snapshots" / str(step)
        made_of = {"model": origin.of_model(place), "images": origin.of_images(images)}
        loss = stages.compute_once(measured / "loss.json", partial(losses, place, images.source), made_of)
        counts = stages.counts_of(probing.layers(place, images, measured, pixels=step == recipe.steps))
        found = stages.read_ways(measured)["linear probe"]
        best = stages.best_row(found["layers"])
        layers = [{"layer": row["layer"], "validation": row["validation"], "test": row["accuracy"]} for row in found["layers"]]
        right = {key: best[key] for key in ("accuracy", "images", "right")}
        points.append({"step": step, "loss": loss["nats_per_pixel"], "nats": loss.get("nats"), "best_layer": best["layer"], "layers": layers} | right)
    measured = {"size": size, "parameters": trained["parameters"], "seed": seed, "validation": trained["nats_per_pixel"], "counts": counts}
    return measured | {"points": points, "raw_pixels": found["raw_pixels"], "at_the_end": found["layers"], "fingerprint": found["fingerprint"]}


def losses(checkpoint: PathLike, source: str) -> dict:
    """Return {nats_per_pixel, nats}, the mean loss on the test images of a source and that of each of them, to six digits."""
    found = evaluate_checkpoint(checkpoint, "test", source, each_image=True)
    return {"nats_per_pixel": found["nats_per_pixel"], "nats": [float(f"{nats:.6g}") for nats in found["each_image"]["nats"]]}


def summary(rows: list[dict]) -> dict:
    """Return {curves, gains, raw_pixels} and the measurements; each curve holds the points of one size by seed, the smallest size first.

    Accuracies are from 0 to 1. Rows of older versions lack the loss of each image: with one of them there are no measurements.
    """
    curves: dict = {}
    for row in sorted(rows, key=lambda row: row["parameters"]):
        curve = curves.setdefault(row["size"], {"size": row["size"], "parameters": row["parameters"], "seeds": [], "runs": []})
        curve["seeds"].append(row["seed"])
        curve["runs"].append([_point(point) for point in row["points"]])
    for curve in curves.values():
        steps = [[stages.unpack(point) for point in points] for points in zip(*curve["runs"], strict=True)]
        curve["interval"] = [marks.interval_of(curve["seeds"], np.array(right_RB, float)) for right_RB in steps]
    first = next((row for row in rows if row.get("raw_pixels")), None)  # they are the same for every model
    pixels = first and first["raw_pixels"] | {"interval": marks.interval_of([0], stages.unpack(first["raw_pixels"])[None])}
    ordered = list(curves.values())
    found = {"curves": ordered, "gains": [compare(*pair) for pair in zip(ordered, ordered[1:], strict=False)], "raw_pixels": pixels}
    whole = all(point.get("nats") for row in rows for point in row["points"])
    if not whole:
        return found
    stored = [one for row in rows for one in measure(row)]
    if first:
        stored.append(stages.measured({"features": "raw pixels"}, 0, pixels, first["counts"], first["fingerprint"]))
    return found | {"measurements": list(map(to_json, stored))}


def measure(row: dict) -> list[Measurement]:
    """Return the best layer and the loss of each snapshot of one model, and every layer of the last one."""
    counts, fingerprint = row["counts"], row["fingerprint"]
    stored: list[tuple[Factors, dict]] = []
    factors: Factors = {}
    for point in row["points"]:
        factors = {"size": row["size"], "step": point["step"]}
        stored.append((factors | {"layer": "best"}, point))
    stored += [(factors | {"layer": level}, one) for level, one in stages.levels(row["at_the_end"]).items() if level != "best"]
    found = [stages.measured(names, row["seed"], one, counts, fingerprint) for names, one in stored]
    for point in row["points"]:
        factors = {"size": row["size"], "step": point["step"]}
        found.append(Measurement(factors, row["seed"], np.array(point["nats"]), "nats", fingerprint=fingerprint))
    return found


def compare(smaller: dict, larger: dict) -> dict:
    """Return the gain in accuracy of the larger model, averaged over losses that all runs of both sizes reach, with its 95 % interval.

    Accuracies between snapshots are interpolated. Both sizes are compared on the same test images. From three seeds on the interval is over seeds too.
    """
    pair = {"smaller": smaller["size"], "larger": larger["size"], "losses": None, "gain": None, "interval": None, "over": None}
    spans = [[point["loss"] for point in run] for curve in (smaller, larger) for run in curve["runs"]]
    least, most = max(map(min, spans)), min(map(max, spans))
    if least >= most:
        return pair | {"why": f"no loss is reached by all runs of both: the nearest are {most:.3f} and {least:.3f}"}
    wanted = np.linspace(least, most, LOSSES)
    samples = [marks.sample_of(curve["seeds"], np.stack([_right_at(run, wanted) for run in curve["runs"]])) for curve in (larger, smaller)]
    found = intervals.contrast(list(zip((1, -1), samples, strict=True)))
    over = "test images and seeds" if found.seeds else "test images, of these models only"
    return pair | {"losses": [least, most], "gain": found.difference, "interval": [found.low, found.high], "over": over}


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each size and snapshot, the gains at equal loss, and raw pixels."""
    lines = ["| size | parameters | seeds | step | loss, nats per pixel | linear probe, test accuracy, % |", "|---|---|---|---|---|---|"]
    for curve in summary["curves"]:
        for points in zip(*curve["runs"], strict=True):
            losses, accuracies = ([point[key] for point in points] for key in ("loss", "accuracy"))
            shown = " ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
            means = f"{np.mean(losses):.3f} | {100 * np.mean(accuracies):.1f} ({shown})"
            lines.append(f"| {curve['size']} | {curve['parameters']:,} | {len(points)} | {points[0]['step']} | {means} |")
    lines += [f"{pair['larger']} against {pair['smaller']} at equal loss: {gain_text(pair)}" for pair in summary["gains"]]
    pixels = summary["raw_pixels"]
    return lines + ([f"raw pixels: {100 * pixels['accuracy']:.1f} % ({marks.points(pixels['interval'])})"] if pixels else [])


def gain_text(pair: dict) -> str:
    """Return the gain of a pair with its interval, or why there is none, as text."""
    if pair["gain"] is None:
        return pair["why"]
    return f"{100 * pair['gain']:+.1f} points (95 %: {marks.points(pair['interval'], '+')}, over {pair['over']})"


def draw(summary: dict) -> Any:
    """Draw accuracy against loss, which falls to the right: a line for each size and a faint line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 6.2), layout="constrained")
    axes = figure.subplots()
    for number, curve in enumerate(summary["curves"]):
        _draw_size(axes, number, curve)
    if pixels := summary["raw_pixels"]:
        marks.draw_level(axes, pixels["accuracy"], pixels["interval"], "raw pixels of the same images")
    axes.invert_xaxis()  # as in the paper: training goes to the right
    axes.set(xlabel="loss on test images, nats per pixel (falling)", ylabel="linear probe at the best layer, test accuracy, %")
    gains = [f"{pair['larger']} above {pair['smaller']}: {gain_text(pair)}" for pair in summary["gains"]]
    axes.set_title("\n".join(["At equal loss, layers x width", *gains] if gains else ["Probe accuracy against loss"]), fontsize=11)
    axes.grid(alpha=0.25)
    marks.legend_below(figure, [axes])
    return figure


def _draw_size(axes, number, curve):
    losses, validation = (np.array([[point[key] for point in run] for run in curve["runs"]]) for key in ("loss", "validation"))
    accuracies, style, count = np.array([[point["accuracy"] for point in run] for run in curve["runs"]]), marks.style_of(number), len(losses)
    if count > 1:
        for loss, accuracy in zip(losses, accuracies, strict=True):
            axes.plot(loss, 100 * accuracy, "-", color=style["color"], alpha=0.4, linewidth=0.8)
    mean = losses.mean(axis=0)
    label = f"{curve['size'].partition('@')[0]}, {_count(curve['parameters'])} parameters, {count} seed{'s' * (count > 1)}"
    marks.draw_curve(axes, mean, accuracies.mean(axis=0), curve["interval"], label=label, **style)
    axes.hlines(100 * accuracies.mean(axis=0), losses.min(axis=0), losses.max(axis=0), color=style["color"], linewidth=0.9)  # losses of the seeds
    label = "validation images, which chose the layer" if number == 0 else None
    marks.draw_validation(axes, mean, validation.mean(axis=0), color=style["color"], label=label)


def _point(point):
    """A snapshot without the layers that were not chosen."""
    [best] = [row for row in point["layers"] if row["layer"] == point["best_layer"]]
    return {key: point[key] for key in ("step", "loss", "accuracy", "best_layer", "images", "right")} | {"validation": best["validation"]}


def _right_at(run, losses):
    """Return for each test image how often it is right in one run at these losses, interpolated between snapshots: float [B]."""
    points = sorted(run, key=lambda point: point["loss"])
    shares = [np.interp(losses, [point["loss"] for point in points], unit).mean() for unit in np.eye(len(points))]  # weight of each snapshot
    return sum(share * stages.unpack(point) for share, point in zip(shares, points, strict=True))


def _count(parameters):
    return f"{parameters / 1e6:.3g}M" if parameters >= 1e6 else f"{parameters / 1e3:.3g}k"


FIGURE = sweep.Figure("accuracy_by_loss", summary, table, draw)


def _flags(flags):
    return {
        "sizes": flags.DEFINE_list("sizes", ["4x64", "6x96", "8x128"], "sizes of the models, a list of LAYERSxWIDTH or LAYERSxWIDTH@LEARNING_RATE"),
        "seeds": flags.DEFINE_integer("seeds", 2, "number of pretrainings of each size", lower_bound=1),
        "snapshots": flags.DEFINE_integer("snapshots", 4, "snapshots of each pretraining, each at twice the steps of the one before", lower_bound=1),
        "probing": stages.ProbingFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_losses, _flags)
