"""What larger images bring: loss and probe accuracy of the same model at several resolutions (the paper's table 2 and section 4.3).

    python -m experiments.studies.resolution --config=configs/cifar10_16.py --workdir=runs/resolution --sides=8,12,16 --results=experiments/results

Pretrains the recipe with each seed at each resolution of --sides (pixels; the paper's are 32 and 48), and probes every layer. All runs have the same number
of steps and the same palette, which is fitted at the recipe's own resolution. Losses per pixel at different resolutions are losses of different tasks: a
pixel of a larger image is easier to predict from its neighbours, so the loss falls for that reason alone. This is a sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import pathlib
from functools import partial

import numpy as np

from experiments.studies import stages, sweep
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
    loss = stages.compute_once(home / "loss.json", partial(evaluate_checkpoint, home, "test", images.source))
    probed = probing.layers(home, images, home / "probe", pixels=seed == config.seed)
    measured = {"side": resolution, "seed": seed, "parameters": trained["parameters"]}
    measured |= {"nats_per_pixel": loss["nats_per_pixel"], "test_images": loss["images"]}
    return measured | {key: probed[key] for key in ("best", "last", "layers", "raw_pixels")}


def summary(rows: list[dict]) -> dict:
    """Return {sides, paper}, with losses and accuracies over the seeds at each resolution; accuracies from 0 to 1."""
    resolutions = []
    for resolution in sorted({row["side"] for row in rows}):
        runs = [row for row in rows if row["side"] == resolution]
        pixels = [row["raw_pixels"]["test"] for row in runs if row["raw_pixels"]]
        resolutions.append({
            "side": resolution, "seeds": [row["seed"] for row in runs], "parameters": runs[0]["parameters"],
            "nats_per_pixel": [row["nats_per_pixel"] for row in runs], "accuracy": [row["best"]["test"] for row in runs],
            "best_layers": [row["best"]["layer"] for row in runs], "raw_pixels": pixels[0] if pixels else None,
        })  # fmt: skip
    return {"sides": resolutions, "paper": PAPER}


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


def draw(summary: dict):
    """Draw loss and accuracy against resolution, in two panels; every seed is a mark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = summary["sides"]
    resolutions = [row["side"] for row in rows]
    for axes, key, scale, colour in ((left, "nats_per_pixel", 1, "#b35806"), (right, "accuracy", 100, "#08519c")):
        axes.plot(resolutions, [scale * np.mean(row[key]) for row in rows], "o-", color=colour, label="linear probe, mean" if scale == 100 else "mean")
        for number, row in enumerate(rows):
            label = "each seed" if number == 0 else None
            axes.plot([row["side"]] * len(row[key]), scale * np.array(row[key]), "_", color="black", markersize=10, label=label)
        axes.set_xticks(resolutions)
        axes.margins(x=0.08, y=0.25)  # room for the legend above
        axes.grid(alpha=0.25)
    pixels = [(row["side"], 100 * row["raw_pixels"]) for row in rows if row["raw_pixels"]]
    if pixels:
        right.plot(*zip(*pixels, strict=True), "s:", color="#737373", label="raw pixels")
    left.set(xlabel="resolution, pixels", ylabel="loss on test images, nats per pixel", title="Loss (other images at each resolution)")
    right.set(xlabel="resolution, pixels", ylabel="test accuracy, %", title="Linear probe at the best layer")
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper right", ncols=2)
    return figure


FIGURE = sweep.Figure("resolution", summary, table, draw)


def _flags(flags):
    return {
        "resolutions": flags.DEFINE_list("sides", ["8", "12", "16"], "resolutions in pixels, a list; the paper: 32,48,64"),
        "seeds": flags.DEFINE_integer("seeds", 2, "number of pretrainings at each resolution", lower_bound=1),
        "probing": stages.ProbingFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_resolutions, _flags, trains=True)
