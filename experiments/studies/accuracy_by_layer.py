"""Which layer holds the best features: linear probes of every layer on several data sets, with seeds (the paper's figure 2 and section 4.2).

    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/layers --results=experiments/results

Pretrains the recipe with each objective and seed, and probes every layer on each data set of --probe_data. With --checkpoints it probes these models and
trains none. All models are probed on the same images. The best layer is chosen by validation accuracy; the accuracy shown is that on test images. A band
spans the seeds. This is a sweep: experiments/studies/sweep.py says how it is stopped, continued, and spread over hosts.
"""

import dataclasses
import pathlib
import re
from functools import partial

import numpy as np

from experiments.studies import stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.data.pipeline import DataConfig
from igpt_jax.training import checkpoints
from igpt_jax.types import PathLike, Recipe

PAPER = {  # figure 2 of the paper, iGPT-L on CIFAR-10, measured in the picture; error about 0.15 points
    "model": "iGPT-L on CIFAR-10",
    "layers": 48,
    "percent": {5: 69.4, 10: 85.5, 15: 93.3, 18: 95.9, 20: 96.3, 21: 96.4, 24: 96.3, 30: 96.1, 36: 95.6, 40: 95.2, 44: 94.8, 48: 94.0},
}
COLOURS = ("#08306b", "#d95f02", "#41ab5d", "#6a51a3", "#737373")  # one for each data set; without colour they differ by marks and lines
MARKS = "os^Dv"
DASHES = {"autoregressive": "-", "bert": "--", "prefix": ":"}


def sweep_layers(
    config: Recipe, workdir: PathLike, objectives: list[str], seeds: int, probe_data: list[str], probing: stages.Probing, checkpoints=(), **options
) -> dict | None:
    """Run the jobs, one for each objective and seed or for each of `checkpoints`, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    sources = named_sources(probe_data or [config.data.source])
    works = {}  # name of the job -> function that does it
    for place in checkpoints:
        works[_slug(place)] = partial(probe_model, place=place)
    for objective in [] if checkpoints else objectives:
        for seed in range(config.seed, config.seed + seeds):
            works[f"{objective}-{seed}"] = partial(train_and_probe, objective=objective, seed=seed)
    jobs = [sweep.Job(name, partial(work, config, workdir, sources, probing, name, pixels=not number)) for number, (name, work) in enumerate(works.items())]
    return sweep.run(FIGURE, jobs, config, {"sources": sources} | dataclasses.asdict(probing), workdir, **options)


def named_sources(texts: list[str]) -> dict[str, str]:
    """Return {name: source} of texts "NAME=SOURCE" or "SOURCE"; the latter is named by its last part. ValueError if two have the same name."""
    sources = {}
    for text in texts:
        name, _, source = text.rpartition("=")
        name = name or re.split(r"[:/]", source.rstrip("/"))[-1]
        if _slug(name) in map(_slug, sources):
            raise ValueError(f"two data sets are called {name}: give them names, for example --probe_data=first=npz:a,second=npz:b")
        sources[name] = source
    return sources


def train_and_probe(
    config: Recipe, workdir: pathlib.Path, sources: dict[str, str], probing: stages.Probing, name: str, pixels: bool, objective: str, seed: int
) -> dict:
    """Pretrain one model and probe it."""
    home = workdir / "models" / name
    recipe = stages.changed(stages.with_palette(config, workdir), model__objective=objective, seed=seed)
    open_images(config, workdir, sources, probing)  # errors in the data must show before hours of training
    trained = stages.pretrain(recipe, home)
    return {"pretrained_on": config.data.source, "validation": trained["nats_per_pixel"]} | probe_model(config, workdir, sources, probing, name, pixels, home)


def probe_model(config: Recipe, workdir: pathlib.Path, sources: dict[str, str], probing: stages.Probing, name: str, pixels: bool, place: PathLike) -> dict:
    """Probe the model in `place` on every data set; with `pixels` also the raw pixels, which are the same for every model."""
    pretrained = checkpoints.load(place)
    probes = {}
    for data, images in open_images(stages.changed(config, data__image_size=pretrained.image_size), workdir, sources, probing).items():
        report = probing.layers(place, images, workdir / "probes" / name / _slug(data), pixels)
        probes[data] = {key: report[key] for key in ("layers", "best", "last", "raw_pixels", "counts", "classes", "seconds")}
    sizes = {"layers": pretrained.model_config.layers, "width": pretrained.model_config.width, "step": pretrained.step}
    return {"objective": pretrained.model_config.objective, "seed": pretrained.config.get("seed"), "model": sizes, "checkpoint": str(place), "probes": probes}


def open_images(config: Recipe, workdir: pathlib.Path, sources: dict[str, str], probing: stages.Probing) -> dict[str, DataConfig]:
    """Return the images to probe of each data set, at the recipe's resolution."""
    resolution = config.data.image_size
    return {name: probing.images(config, source, workdir / "images" / f"{_slug(name)}-{resolution}") for name, source in sources.items()}


def summary(rows: list[dict]) -> dict:
    """Return {curves, raw_pixels, paper}, with a curve for each data set, objective and size of model; accuracies from 0 to 1."""
    groups, pixels = {}, {}
    for row in rows:
        for name, probed in row["probes"].items():
            if probed["raw_pixels"]:
                pixels[name] = probed["raw_pixels"]["test"]
            groups.setdefault((name, row["objective"], row["model"]["layers"], row["model"]["width"]), []).append((row["seed"], probed))
    return {"curves": [curve(key, runs) for key, runs in groups.items()], "raw_pixels": pixels, "paper": PAPER}


def curve(key: tuple, runs: list[tuple]) -> dict:
    """Return mean, lowest and highest test accuracy of every layer over the runs, and the layer with the best mean validation accuracy."""
    name, objective, layers, width = key
    test_RL = np.array([[row["test"] for row in probed["layers"]] for _, probed in runs])
    validation_RL = np.array([[row["validation"] for row in probed["layers"]] for _, probed in runs])
    numbers = [row["layer"] for row in runs[0][1]["layers"]]
    best = int(validation_RL.mean(axis=0).argmax())  # the lowest of equally good layers
    lost_R = test_RL[:, best] - test_RL[:, -1]
    return {
        "data": name, "objective": objective, "model": {"layers": layers, "width": width}, "seeds": [seed for seed, _ in runs], "layers": numbers,
        "mean": test_RL.mean(axis=0).tolist(), "least": test_RL.min(axis=0).tolist(), "most": test_RL.max(axis=0).tolist(),
        "validation": validation_RL.mean(axis=0).tolist(), "counts": runs[0][1]["counts"],
        "best": {"layer": numbers[best], "test": float(test_RL[:, best].mean()), "inside": 0 < best < len(numbers) - 1},
        "best_of_each_seed": [probed["best"]["layer"] for _, probed in runs],
        "lost_by_the_last_layer": {"mean": float(lost_R.mean()), "least": float(lost_R.min()), "most": float(lost_R.max())},
    }  # fmt: skip


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each curve."""
    lines = ["| probed on | objective | seeds | best layer by validation (of each seed) | test there, % | last layer, % | the last loses (least to most) |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for curve in summary["curves"]:
        best, lost, each = curve["best"], curve["lost_by_the_last_layer"], ", ".join(map(str, curve["best_of_each_seed"]))
        layer = f"{best['layer']} of {curve['layers'][-1]}{'' if best['inside'] else ', at the end'} ({each})"
        points = f"{100 * lost['mean']:.1f} ({100 * lost['least']:.1f} to {100 * lost['most']:.1f})"
        numbers = f"{100 * best['test']:.1f} | {100 * curve['mean'][-1]:.1f} | {points}"
        lines.append(f"| {curve['data']} | {curve['objective']} | {len(curve['seeds'])} | {layer} | {numbers} |")
    return lines + [f"raw pixels, {name}: {100 * share:.1f} %" for name, share in summary["raw_pixels"].items()]


def draw(summary: dict):
    """Draw accuracy against layer; the paper's curve is faint, at the same fraction of its depth, on the right axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(curve["data"] for curve in summary["curves"]))
    for curve in summary["curves"]:
        place = names.index(curve["data"]) % len(COLOURS)
        colour, filled = COLOURS[place], curve["objective"] == "autoregressive"
        style = {"color": colour, "linestyle": DASHES[curve["objective"]], "marker": MARKS[place], "markerfacecolor": colour if filled else "white"}
        label = f"{curve['data']}, {curve['objective']}, {len(curve['seeds'])} seed{'s' * (len(curve['seeds']) > 1)}"
        axes.plot(curve["layers"], 100 * np.array(curve["mean"]), markersize=5, label=label, zorder=3, **style)
        axes.fill_between(curve["layers"], 100 * np.array(curve["least"]), 100 * np.array(curve["most"]), color=colour, alpha=0.15, linewidth=0)
        _mark_best(axes, curve)
    for name, share in summary["raw_pixels"].items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        axes.axhline(100 * share, color=colour, linestyle=(0, (6, 2, 1, 2)), linewidth=1, label=f"{name}, raw pixels: {100 * share:.1f} %")
    axes.plot([], [], "o", color="none", markeredgecolor="black", markersize=12, label="best layer by validation")
    _draw_paper(axes, max(curve["layers"][-1] for curve in summary["curves"]), summary["paper"])
    axes.set(xlabel="layer (0: the embedding)", ylabel="linear probe, test accuracy, %", title=f"Linear probe against layer: {_sizes(summary)}")
    axes.margins(y=0.1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _slug(name):
    """Replace the characters that a file name should not have."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _sizes(summary):
    sizes = {(curve["model"]["layers"], curve["model"]["width"]) for curve in summary["curves"]}
    return " and ".join(f"{layers} layers of width {width}" for layers, width in sorted(sizes))


def _mark_best(axes, curve):
    place = curve["best"]["layer"], 100 * curve["best"]["test"]
    axes.plot(*place, "o", color="none", markeredgecolor="black", markersize=12, zorder=4)
    above = 1 if curve["objective"] == "autoregressive" else -1  # the curves of the two objectives are near each other
    style = {"ha": "center", "va": "bottom" if above == 1 else "top", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}}
    axes.annotate(f"{place[1]:.1f}", place, (0, 9 * above), textcoords="offset points", fontsize=9, zorder=5, **style)


def _draw_paper(axes, layers, paper):
    beside = axes.twinx()
    places = [int(layer) / paper["layers"] * layers for layer in paper["percent"]]
    label = f"paper: {paper['model']}, {paper['layers']} layers (right axis)"
    beside.plot(places, list(paper["percent"].values()), color="#b0b0b0", linewidth=1.2, linestyle=(0, (1, 1)), label=label, zorder=1)
    axes.set_zorder(beside.get_zorder() + 1)  # our curves in front of the paper's
    axes.patch.set_visible(False)
    beside.set_ylabel(f"paper: {paper['model']}, %", color="#8a8a8a")
    beside.tick_params(axis="y", colors="#8a8a8a")


FIGURE = sweep.Figure("accuracy_by_layer", summary, table, draw)


def _flags(flags):
    return {
        "objectives": flags.DEFINE_list("objectives", ["autoregressive", "bert"], "objectives of the pretraining, a list"),
        "seeds": flags.DEFINE_integer("seeds", 3, "number of pretrainings with each objective", lower_bound=1),
        "probe_data": flags.DEFINE_list("probe_data", [], "data sets to probe, a list of SOURCE or NAME=SOURCE; default: the data of the pretraining"),
        "probing": stages.ProbingFlags(flags),
        "checkpoints": flags.DEFINE_list("checkpoints", [], "probe these runs or converted models and train none, a list of directories"),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_layers, _flags, trains=True)
