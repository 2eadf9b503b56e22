"""What larger images bring: loss and probe accuracy of the same model at several resolutions (the paper's table 2 and section 4.3).

    python -m experiments.studies.resolution --config=configs/cifar10_16.py --workdir=runs/resolution --sides=8,12,16 --results=experiments/results

Pretrains the recipe with each seed at each resolution of --sides (pixels; the paper's are 32 and 48), and probes every layer. All runs have the same number
of steps and the same palette, which is fitted at the recipe's own resolution. Losses per pixel at different resolutions are losses of different tasks: a
pixel of a larger image is easier to predict from its neighbours, so the loss falls for that reason alone. This is a sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import pathlib
from functools import partial
from typing import Any

import numpy as np

from experiments.report.measurements import Factors, Measurement, to_json
from experiments.studies import marks, origin, stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.training.evaluation import evaluate_checkpoint
from igpt_jax.types import PathLike, Recipe

PAPER = {"what": "ImageNet probe of iGPT-L, text of section 4.3 and table 2", "percent": {"32": 60.3, "48": 65.2}}


def sweep_resolutions(config: Recipe, workdir: PathLike, resolutions: list[str], seeds: int, probing: stages.Probing, **options) -> dict | None:
    """Run the jobs, one for each resolution and seed, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    if not all(resolution.isdigit() and int(resolution) for resolution in resolutions):
        raise ValueError(f"--sides={','.join(resolutions)} must be a list of pixels, for example 16,32,48")
    jobs = [
        sweep.Job(f"{resolution}-{seed}", partial(train_and_probe, config, workdir, int(resolution), seed, probing))
        for resolution in resolutions
        for seed in range(config.seed, config.seed + seeds)
    ]
    return sweep.run(FIGURE, jobs, config, dataclasses.asdict(probing), workdir, **options)


def train_and_probe(config: Recipe, workdir: pathlib.Path, resolution: int, seed: int, probing: stages.Probing) -> dict:
    """Pretrain one model and measure it. The keys `side` and `sides` are those of files that exist."""
    home = workdir / "models" / f"{resolution}-{seed}"
    recipe = stages.changed(stages.with_palette(config, workdir), data__image_size=resolution, seed=seed)
    images = probing.images(recipe, recipe.data.source, workdir / "images" / str(resolution))
    trained = stages.pretrain(recipe, home)
    made_of = {"model": origin.of_model(home), "images": origin.of_images(images)}
    loss = stages.compute_once(home / "loss.json", partial(evaluate_checkpoint, home, "test", images.source), made_of)
    probed = probing.layers(home, images, home / "probe", pixels=seed == config.seed)
    measured = {"side": resolution, "seed": seed, "parameters": trained["parameters"]}
    measured |= {"nats_per_pixel": loss["nats_per_pixel"], "test_images": loss["images"]}
    measured |= {key: probed[key] for key in ("best", "last", "layers", "raw_pixels")}
    return measured | {"counts": stages.counts_of(probed), "ways": stages.read_ways(home / "probe")}


def summary(rows: list[dict]) -> dict:
    """Return {sides, paper} and the measurements, with losses and accuracies over the seeds at each resolution; accuracies from 0 to 1.

    Rows of older versions lack `ways`, the predictions of each image: their intervals are of the accuracies alone, and they give no measurements.
    """
    resolutions, stored = [], []
    for resolution in sorted({row["side"] for row in rows}):
        runs = [row for row in rows if row["side"] == resolution]
        pixels = [row["raw_pixels"]["test"] for row in runs if row["raw_pixels"]]
        seeds, images = [row["seed"] for row in runs], runs[0]["test_images"]
        accuracy = [row["best"]["test"] for row in runs]
        resolutions.append({
            "side": resolution, "seeds": seeds, "parameters": runs[0]["parameters"], "nats_per_pixel": [row["nats_per_pixel"] for row in runs],
            "accuracy": accuracy, "interval": _interval(runs), "test_images": images,
            "validation": [row["best"]["validation"] for row in runs], "best_layers": [row["best"]["layer"] for row in runs],
            "raw_pixels": pixels[0] if pixels else None, "raw_pixels_interval": marks.interval_of_shares([0], pixels[:1], images) if pixels else None,
        })  # fmt: skip
        stored += [to_json(one) for row in runs if "ways" in row for one in measure(row)]
    return {"sides": resolutions, "paper": PAPER} | ({"measurements": stored} if stored else {})


def measure(row: dict) -> list[Measurement]:
    """Return every layer of one model, its `best` one by validation accuracy, its `best interior` one, and raw pixels, by each way of reading them."""
    factors: Factors = {"resolution": row["side"]}
    stored = []
    for way, found in row["ways"].items():
        levels = stages.levels(found["layers"])
        told = [(factors | {"way": way, "layer": level}, one) for level, one in levels.items()]
        told += [(factors | {"way": way, "features": "raw pixels"}, found["raw_pixels"])] if found["raw_pixels"] else []
        stored += [stages.measured(names, row["seed"], one, row["counts"], found["fingerprint"]) for names, one in told]
    return stored


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each resolution."""
    lines = ["| resolution | positions | seeds | loss, nats per pixel | linear probe at the best layer, test accuracy, % | raw pixels, % |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in summary["sides"]:
        loss, accuracy = sweep.spread(row["nats_per_pixel"], 3), sweep.spread(100 * np.array(row["accuracy"]), 1)
        pixels = f"{100 * row['raw_pixels']:.1f}" if row["raw_pixels"] else "-"
        lines.append(f"| {row['side']} | {row['side'] ** 2} | {len(row['seeds'])} | {loss} | {accuracy} | {pixels} |")
    paper = summary["paper"]
    return [*lines, f"{paper['what']}: " + ", ".join(f"{resolution}: {percent} %" for resolution, percent in paper["percent"].items())]


def draw(summary: dict) -> Any:
    """Draw loss and accuracy against resolution, in two panels; every seed is a dash."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = summary["sides"]
    resolutions = [row["side"] for row in rows]
    for axes, key, scale in ((left, "nats_per_pixel", 1), (right, "accuracy", 100)):
        for number, row in enumerate(rows):
            label = "each seed" if number == 0 else None
            axes.plot([row["side"]] * len(row[key]), scale * np.array(row[key]), "_", color="black", markersize=14, label=label, zorder=4)
        axes.set_xticks(resolutions)
        axes.margins(x=0.08, y=0.12)
        axes.grid(alpha=0.25)
        axes.set_xlabel("resolution, pixels (the images of each are others)" if axes is left else "resolution, pixels")
    left.plot(resolutions, [np.mean(row["nats_per_pixel"]) for row in rows], "o-", color=marks.COLOURS[0])
    means, label = [np.mean(row["accuracy"]) for row in rows], "mean of the seeds, test images"
    marks.draw_curve(right, resolutions, means, [row["interval"] for row in rows], label=label, **marks.style_of(0))
    validation, label = [np.mean(row["validation"]) for row in rows], "validation images, which chose the layer"
    marks.draw_validation(right, resolutions, validation, color=marks.COLOURS[0], label=label, linewidth=1.5)
    pixels = [row for row in rows if row["raw_pixels"]]
    if pixels:
        level, ends = [row["raw_pixels"] for row in pixels], [row["raw_pixels_interval"] for row in pixels]
        style = {"color": marks.GREY, "marker": "s", "linestyle": marks.RAW_PIXELS, "markerfacecolor": "white"}
        x = np.array([row["side"] for row in pixels]) + 0.01 * (resolutions[-1] - resolutions[0])  # beside the model's
        marks.draw_curve(right, x, level, ends, label="raw pixels", **style)
    left.set(ylabel="loss on test images, nats per pixel", title=f"loss: {_list(rows, 'nats_per_pixel', 1, 3)}")
    of_pixels = f"\nraw pixels: {_list(pixels, 'raw_pixels', 100, 1)} %" if pixels else ""
    right.set(ylabel="test accuracy, %", title=f"linear probe at the best layer: {_list(rows, 'accuracy', 100, 1)} %{of_pixels}")
    marks.legend_below(figure, [right])
    return figure


def _interval(runs):
    """The 95 % interval of the mean accuracy at the best layer of each run."""
    seeds = [row["seed"] for row in runs]
    if not all("ways" in row for row in runs):
        return marks.interval_of_shares(seeds, [row["best"]["test"] for row in runs], runs[0]["test_images"])
    return marks.interval_of(seeds, np.array([stages.unpack(stages.best_row(row["ways"]["linear probe"]["layers"])) for row in runs], float))


def _list(rows, key, scale, digits):
    """The mean at each resolution, as text; of more than four, the first and the last."""
    shown = [f"{scale * np.mean(row[key]):.{digits}f}" for row in rows]
    return ", ".join(shown) if len(shown) <= 4 else f"{shown[0]} to {shown[-1]}"


FIGURE = sweep.Figure("resolution", summary, table, draw)


def _flags(flags):
    return {
        "resolutions": flags.DEFINE_list("sides", ["8", "12", "16"], "resolutions in pixels, a list; the paper: 32,48,64"),
        "seeds": flags.DEFINE_integer("seeds", 2, "number of pretrainings at each resolution", lower_bound=1),
        "probing": stages.ProbingFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_resolutions, _flags, trains=True)
