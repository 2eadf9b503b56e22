"""What larger images bring: loss and probe accuracy of the same model at several sides (the paper's table 2 and section 4.3).

    python -m experiments.studies.resolution --config=configs/cifar10_16.py --workdir=runs/resolution --sides=8,12,16 --results=experiments/results

Pretrains the recipe at each of --sides (pixels; the paper's are 32 and 48) under each seed, all with one palette, fitted at the recipe's own side, and for as
many steps; probes every layer. A pixel of a larger image is easier to predict from its neighbours: losses per pixel at different sides are those of different
tasks, and fall for that alone. A sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import pathlib
from functools import partial

import numpy as np

from experiments.studies import stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.training.evaluation import evaluate_checkpoint

PAPER = {"what": "ImageNet probe of iGPT-L, text of section 4.3 and table 2", "percent": {"32": 60.3, "48": 65.2}}


def sweep_sides(config, workdir, sides, seeds, probing, **how):
    """Do the jobs, one for each side and seed, and draw; `how` goes to sweep.run."""
    workdir = pathlib.Path(workdir)
    if not all(side.isdigit() and int(side) for side in sides):
        raise ValueError(f"--sides={','.join(sides)} must be a list of pixels, as 16,32,48")
    jobs = [
        sweep.Job(f"{side}-{seed}", partial(train_and_probe, config, workdir, int(side), seed, probing))
        for side in sides
        for seed in range(config.seed, config.seed + seeds)
    ]
    return sweep.run(FIGURE, jobs, config, dataclasses.asdict(probing), workdir, **how)


def train_and_probe(config, workdir, side, seed, probing) -> dict:
    """Pretrain one model and measure it."""
    home = workdir / "models" / f"{side}-{seed}"
    recipe = stages.changed(stages.with_palette(config, workdir), data__image_size=side, seed=seed)
    images = probing.images(recipe, recipe.data.source, workdir / "images" / str(side))
    trained = stages.pretrain(recipe, home)
    loss = stages.kept(home / "loss.json", partial(evaluate_checkpoint, home, "test", images.source))
    probed = probing.layers(home, images, home / "probe", pixels=seed == config.seed)
    found = {"side": side, "seed": seed, "parameters": trained["parameters"], "nats_per_pixel": loss["nats_per_pixel"], "test_images": loss["images"]}
    return found | {key: probed[key] for key in ("best", "last", "layers", "raw_pixels")}


def summary(rows) -> dict:
    """{sides, paper}: for each side losses and accuracies over its seeds; shares, not percent."""
    sides = []
    for side in sorted({row["side"] for row in rows}):
        mine = [row for row in rows if row["side"] == side]
        pixels = [row["raw_pixels"]["test"] for row in mine if row["raw_pixels"]]
        one = {"side": side, "seeds": [row["seed"] for row in mine], "parameters": mine[0]["parameters"]}
        one |= {"nats_per_pixel": [row["nats_per_pixel"] for row in mine], "accuracy": [row["best"]["test"] for row in mine]}
        sides.append(one | {"best_layers": [row["best"]["layer"] for row in mine], "raw_pixels": pixels[0] if pixels else None})
    return {"sides": sides, "paper": PAPER}


def table(found) -> list[str]:
    """A line of Markdown for each side."""
    lines = ["| side | positions | seeds | loss, nats per pixel | linear probe at the best layer, test accuracy, % | raw pixels, % |"]
    lines += ["|---|---|---|---|---|---|"]
    for one in found["sides"]:
        loss, accuracy = sweep.spread(one["nats_per_pixel"], 3), sweep.spread(100 * np.array(one["accuracy"]), 1)
        pixels = f"{100 * one['raw_pixels']:.1f}" if one["raw_pixels"] else "-"
        lines.append(f"| {one['side']} | {one['side'] ** 2} | {len(one['seeds'])} | {loss} | {accuracy} | {pixels} |")
    return [*lines, f"{found['paper']['what']}: " + ", ".join(f"{side}: {percent} %" for side, percent in found["paper"]["percent"].items())]


def draw(found):
    """Loss and accuracy beside each other against the side; every seed a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sides = [one["side"] for one in found["sides"]]
    for axes, key, scale, colour in ((left, "nats_per_pixel", 1, "#b35806"), (right, "accuracy", 100, "#08519c")):
        axes.plot(sides, [scale * np.mean(one[key]) for one in found["sides"]], "o-", color=colour, label="linear probe, mean" if scale == 100 else "mean")
        for number, one in enumerate(found["sides"]):
            label = "each seed" if number == 0 else None
            axes.plot([one["side"]] * len(one[key]), scale * np.array(one[key]), "_", color="black", markersize=10, label=label)
        axes.set_xticks(sides)
        axes.margins(x=0.08, y=0.25)  # room for the legend above
        axes.grid(alpha=0.25)
    pixels = [(one["side"], 100 * one["raw_pixels"]) for one in found["sides"] if one["raw_pixels"]]
    if pixels:
        right.plot(*zip(*pixels, strict=True), "s:", color="#737373", label="raw pixels")
    left.set(xlabel="side, pixels", ylabel="loss on test images, nats per pixel", title="Loss (other images at each side)")
    right.set(xlabel="side, pixels", ylabel="test accuracy, %", title="Linear probe at the best layer")
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper right", ncols=2)
    return figure


FIGURE = sweep.Figure("resolution", summary, table, draw)


def _flags(flags):
    return {
        "sides": flags.DEFINE_list("sides", ["8", "12", "16"], "of the images in pixels, a list; the paper: 32,48,64"),
        "seeds": flags.DEFINE_integer("seeds", 2, "pretrainings at each side", lower_bound=1),
        "probing": stages.ProbingFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_sides, _flags, trains=True)
