"""Which layer holds the best features: linear probes of every layer on several data sets, with seeds (the paper's figure 2 and section 4.2).

    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/layers --results=experiments/results

Pretrains the recipe with each objective under each seed and probes every layer on each of --probe_data, or, with --checkpoints, probes these models. The
probed images are the same for every model. The best layer is chosen by validation accuracy and its accuracy is that on test images; a band spans the seeds.
A sweep: experiments/studies/sweep.py says how it is stopped, continued, and spread over hosts.
"""

import dataclasses
import pathlib
import re
from functools import partial

import numpy as np

from experiments.studies import stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.training import checkpoints

PAPER = {  # the paper's figure 2, iGPT-L on CIFAR-10, read off its picture; error about 0.15 points
    "model": "iGPT-L on CIFAR-10",
    "layers": 48,
    "percent": {5: 69.4, 10: 85.5, 15: 93.3, 18: 95.9, 20: 96.3, 21: 96.4, 24: 96.3, 30: 96.1, 36: 95.6, 40: 95.2, 44: 94.8, 48: 94.0},
}
COLOURS = ("#08306b", "#d95f02", "#41ab5d", "#6a51a3", "#737373")  # a data set's; in grey the marks and lines tell them apart
MARKS = "os^Dv"
DASHES = {"autoregressive": "-", "bert": "--", "prefix": ":"}


def sweep_layers(config, workdir, objectives, seeds, probe_data, probing, checkpoints=(), **how):
    """Do the jobs, one for each objective and seed or for each of `checkpoints`, and draw; `how` goes to sweep.run."""
    workdir = pathlib.Path(workdir)
    sources = named_sources(probe_data or [config.data.source])
    how_to = {}  # name of the job -> how it is done
    for place in checkpoints:
        how_to[_slug(place)] = partial(probe_model, place=place)
    for objective in [] if checkpoints else objectives:
        for seed in range(config.seed, config.seed + seeds):
            how_to[f"{objective}-{seed}"] = partial(train_and_probe, objective=objective, seed=seed)
    jobs = [
        sweep.Job(name, partial(work, config, workdir, sources, probing, name, pixels=not number)) for number, (name, work) in enumerate(how_to.items())
    ]
    return sweep.run(FIGURE, jobs, config, {"sources": sources} | dataclasses.asdict(probing), workdir, **how)


def named_sources(given) -> dict[str, str]:
    """{name: source} of "NAME=SOURCE" or "SOURCE", which is named by its last part."""
    found = {}
    for text in given:
        name, _, source = text.rpartition("=")
        name = name or re.split(r"[:/]", source.rstrip("/"))[-1]
        if _slug(name) in map(_slug, found):
            raise ValueError(f"two data sets are called {name}: name them, as --probe_data=one=npz:a,two=npz:b")
        found[name] = source
    return found


def train_and_probe(config, workdir, sources, probing, name, pixels, objective, seed) -> dict:
    """Pretrain one model and probe it."""
    home = workdir / "models" / name
    recipe = stages.changed(stages.with_palette(config, workdir), model__objective=objective, seed=seed)
    open_images(config, workdir, sources, probing)  # what is wrong with them is said before hours of training
    trained = stages.pretrain(recipe, home)
    return {"pretrained_on": config.data.source, "validation": trained["nats_per_pixel"]} | probe_model(config, workdir, sources, probing, name, pixels, home)


def probe_model(config, workdir, sources, probing, name, pixels, place) -> dict:
    """Probe one model on every data set; with `pixels` the pixels themselves too, which are the same for every model."""
    pretrained = checkpoints.load(place)
    probes = {}
    for data, images in open_images(stages.changed(config, data__image_size=pretrained.image_size), workdir, sources, probing).items():
        found = probing.layers(place, images, workdir / "probes" / name / _slug(data), pixels)
        probes[data] = {key: found[key] for key in ("layers", "best", "last", "raw_pixels", "counts", "classes", "seconds")}
    sizes = {"layers": pretrained.model_config.layers, "width": pretrained.model_config.width, "step": pretrained.step}
    return {"objective": pretrained.model_config.objective, "seed": pretrained.config.get("seed"), "model": sizes, "checkpoint": str(place), "probes": probes}


def open_images(config, workdir, sources, probing) -> dict:
    """The images to probe of each data set, at the recipe's side."""
    side = config.data.image_size
    return {name: probing.images(config, source, workdir / "images" / f"{_slug(name)}-{side}") for name, source in sources.items()}


def summary(rows) -> dict:
    """{curves, raw_pixels, paper}: a curve for each data set, objective and size of model; shares, not percent."""
    groups, pixels = {}, {}
    for row in rows:
        for name, probed in row["probes"].items():
            if probed["raw_pixels"]:
                pixels[name] = probed["raw_pixels"]["test"]
            groups.setdefault((name, row["objective"], row["model"]["layers"], row["model"]["width"]), []).append((row["seed"], probed))
    return {"curves": [curve(key, runs) for key, runs in groups.items()], "raw_pixels": pixels, "paper": PAPER}


def curve(key, runs) -> dict:
    """Mean, least and most test accuracy of every layer over the runs, and the layer with the best mean validation accuracy."""
    name, objective, layers, width = key
    test_RL = np.array([[row["test"] for row in probed["layers"]] for _, probed in runs])
    validation_RL = np.array([[row["validation"] for row in probed["layers"]] for _, probed in runs])
    numbers = [row["layer"] for row in runs[0][1]["layers"]]
    best = int(validation_RL.mean(axis=0).argmax())  # the first of equals
    lost_R = test_RL[:, best] - test_RL[:, -1]
    return {
        "data": name, "objective": objective, "model": {"layers": layers, "width": width}, "seeds": [seed for seed, _ in runs], "layers": numbers,
        "mean": test_RL.mean(axis=0).tolist(), "least": test_RL.min(axis=0).tolist(), "most": test_RL.max(axis=0).tolist(),
        "validation": validation_RL.mean(axis=0).tolist(), "counts": runs[0][1]["counts"],
        "best": {"layer": numbers[best], "test": float(test_RL[:, best].mean()), "inside": 0 < best < len(numbers) - 1},
        "best_of_each_seed": [probed["best"]["layer"] for _, probed in runs],
        "lost_by_the_last_layer": {"mean": float(lost_R.mean()), "least": float(lost_R.min()), "most": float(lost_R.max())},
    }  # fmt: skip


def table(found) -> list[str]:
    """A line of Markdown for each curve."""
    lines = ["| probed on | objective | seeds | best layer by validation (of each seed) | test there, % | last layer, % | the last loses (least to most) |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for one in found["curves"]:
        best, lost, each = one["best"], one["lost_by_the_last_layer"], ", ".join(map(str, one["best_of_each_seed"]))
        where = f"{best['layer']} of {one['layers'][-1]}{'' if best['inside'] else ', at the end'} ({each})"
        points = f"{100 * lost['mean']:.1f} ({100 * lost['least']:.1f} to {100 * lost['most']:.1f})"
        numbers = f"{100 * best['test']:.1f} | {100 * one['mean'][-1]:.1f} | {points}"
        lines.append(f"| {one['data']} | {one['objective']} | {len(one['seeds'])} | {where} | {numbers} |")
    return lines + [f"raw pixels, {name}: {100 * share:.1f} %" for name, share in found["raw_pixels"].items()]


def draw(found):
    """Accuracy against layer; the paper's curve faint, over the same share of its depth, on the right axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(one["data"] for one in found["curves"]))
    for one in found["curves"]:
        place = names.index(one["data"]) % len(COLOURS)
        colour, filled = COLOURS[place], one["objective"] == "autoregressive"
        style = {"color": colour, "linestyle": DASHES[one["objective"]], "marker": MARKS[place], "markerfacecolor": colour if filled else "white"}
        label = f"{one['data']}, {one['objective']}, {len(one['seeds'])} seed{'s' * (len(one['seeds']) > 1)}"
        axes.plot(one["layers"], 100 * np.array(one["mean"]), markersize=5, label=label, zorder=3, **style)
        axes.fill_between(one["layers"], 100 * np.array(one["least"]), 100 * np.array(one["most"]), color=colour, alpha=0.15, linewidth=0)
        _mark_best(axes, one)
    for name, share in found["raw_pixels"].items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        axes.axhline(100 * share, color=colour, linestyle=(0, (6, 2, 1, 2)), linewidth=1, label=f"{name}, raw pixels: {100 * share:.1f} %")
    axes.plot([], [], "o", color="none", markeredgecolor="black", markersize=12, label="best layer by validation")
    _draw_paper(axes, max(one["layers"][-1] for one in found["curves"]), found["paper"])
    axes.set(xlabel="layer (0: the embedding)", ylabel="linear probe, test accuracy, %", title=f"Linear probe against layer: {_sizes(found)}")
    axes.margins(y=0.1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _slug(name):
    """A name that a file can have."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _sizes(found):
    sizes = {(one["model"]["layers"], one["model"]["width"]) for one in found["curves"]}
    return " and ".join(f"{layers} layers of width {width}" for layers, width in sorted(sizes))


def _mark_best(axes, one):
    place = one["best"]["layer"], 100 * one["best"]["test"]
    axes.plot(*place, "o", color="none", markeredgecolor="black", markersize=12, zorder=4)
    above = 1 if one["objective"] == "autoregressive" else -1  # apart from the other objective's, which is near
    style = {"ha": "center", "va": "bottom" if above == 1 else "top", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}}
    axes.annotate(f"{place[1]:.1f}", place, (0, 9 * above), textcoords="offset points", fontsize=9, zorder=5, **style)


def _draw_paper(axes, layers, paper):
    beside = axes.twinx()
    places = [int(layer) / paper["layers"] * layers for layer in paper["percent"]]
    label = f"paper: {paper['model']}, {paper['layers']} layers (right axis)"
    beside.plot(places, list(paper["percent"].values()), color="#b0b0b0", linewidth=1.2, linestyle=(0, (1, 1)), label=label, zorder=1)
    axes.set_zorder(beside.get_zorder() + 1)  # ours before the paper's
    axes.patch.set_visible(False)
    beside.set_ylabel(f"paper: {paper['model']}, %", color="#8a8a8a")
    beside.tick_params(axis="y", colors="#8a8a8a")


FIGURE = sweep.Figure("accuracy_by_layer", summary, table, draw)


def _flags(flags):
    return {
        "objectives": flags.DEFINE_list("objectives", ["autoregressive", "bert"], "of the pretraining, a list"),
        "seeds": flags.DEFINE_integer("seeds", 3, "pretrainings with each objective", lower_bound=1),
        "probe_data": flags.DEFINE_list("probe_data", [], "data sets to probe, a list of SOURCE or NAME=SOURCE; default: that of the pretraining"),
        "probing": stages.ProbingFlags(flags),
        "checkpoints": flags.DEFINE_list("checkpoints", [], "probe these runs or converted models and pretrain none, a list of directories"),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_layers, _flags, trains=True)
