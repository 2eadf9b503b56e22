"""Which layer holds the best features: probes of every layer on several data sets, with seeds (the paper's figure 2 and section 4.2).

    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/layers --results=experiments/results

Pretrains the recipe with each objective and seed, and probes every layer on each data set of --probe_data. With --checkpoints it probes these models and
trains none; each of them has a curve of its own. All models are probed on the same images. The best layer is chosen by validation accuracy; the accuracy
shown is that on test images, with 95 % intervals. This is a sweep: experiments/studies/sweep.py says how it is stopped, continued, and spread over hosts.
"""

import dataclasses
import json
import pathlib
import re
import zlib
from functools import partial
from typing import Any

import numpy as np

from experiments.report.measurements import Factors, Measurement, to_json
from experiments.studies import marks, stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.data.pipeline import DataConfig
from igpt_jax.interop import hub
from igpt_jax.training import checkpoints
from igpt_jax.types import PathLike, Recipe

PAPER = {  # figure 2 of the paper, iGPT-L on CIFAR-10, measured in the picture; error about 0.15 points
    "model": "iGPT-L on CIFAR-10",
    "layers": 48,
    "percent": {5: 69.4, 10: 85.5, 15: 93.3, 18: 95.9, 20: 96.3, 21: 96.4, 24: 96.3, 30: 96.1, 36: 95.6, 40: 95.2, 44: 94.8, 48: 94.0},
}
PAPER_ERROR = 0.15  # points, of reading the picture
DASHES = {"autoregressive": "-", "bert": "--", "prefix": ":"}


def sweep_layers(
    config: Recipe, workdir: PathLike, objectives: list[str], seeds: int, probe_data: list[str], probing: stages.Probing, checkpoints=(), **options
) -> dict | None:
    """Run the jobs, one for each objective and seed or for each of `checkpoints`, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    sources = named_sources(probe_data or [config.data.source])
    jobs = []
    for place in checkpoints:
        name = job_name(workdir, place)
        jobs.append(sweep.Job(name, partial(probe_model, config, workdir, sources, probing, name, place), place))
    for objective in [] if checkpoints else objectives:
        for seed in range(config.seed, config.seed + seeds):
            name = f"{objective}-{seed}"
            jobs.append(sweep.Job(name, partial(train_and_probe, config, workdir, sources, probing, name, objective, seed)))
    data = {name: stages.images_of(config, source) for name, source in sources.items()}
    if not checkpoints:
        data = {"pretraining": stages.images_of(config)} | data
    return sweep.run(FIGURE, jobs, config, {"sources": sources} | dataclasses.asdict(probing), workdir, data=data, **options)


def job_name(workdir: pathlib.Path, checkpoint: PathLike) -> str:
    """Return the name of the job that probes a given model: different for different paths. A job that an older version made keeps its name."""
    older = workdir / "jobs" / f"{_slug(checkpoint)}.json"
    if older.exists() and json.loads(older.read_text())["found"].get("checkpoint") == str(checkpoint):
        return older.stem
    return f"{_slug(checkpoint)}-{zlib.crc32(str(checkpoint).encode()):08x}"


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
    config: Recipe, workdir: pathlib.Path, sources: dict[str, str], probing: stages.Probing, name: str, objective: str, seed: int
) -> dict:
    """Pretrain one model and probe it."""
    home = workdir / "models" / name
    recipe = stages.changed(stages.with_palette(config, workdir), model__objective=objective, seed=seed)
    open_images(config, workdir, sources, probing)  # errors in the data must show before hours of training
    trained = stages.pretrain(recipe, home)
    return {"pretrained_on": config.data.source, "validation": trained["nats_per_pixel"]} | probe_model(config, workdir, sources, probing, name, home)


def probe_model(config: Recipe, workdir: pathlib.Path, sources: dict[str, str], probing: stages.Probing, name: str, place: PathLike) -> dict:
    """Probe the model in `place` on every data set, and the raw pixels, which are the same for every model of a resolution."""
    place = hub.local(place)
    pretrained = checkpoints.load(place)
    probes = {}
    for data, images in open_images(stages.changed(config, data__image_size=pretrained.image_size), workdir, sources, probing).items():
        folder = workdir / "probes" / name / _slug(data)
        report = probing.layers(place, images, folder)
        ways = stages.read_ways(folder)
        if probing.solver == "lbfgs":
            pixels = stages.raw_pixels(folder, images, workdir / "pixels" / f"{_slug(data)}-{pretrained.image_size}")
            ways = {way: found | {"raw_pixels": pixels.get(way)} for way, found in ways.items()}
        probes[data] = {"counts": stages.counts_of(report), "classes": report["classes"], "seconds": report["seconds"], "ways": ways}
    sizes = {"layers": pretrained.model_config.layers, "width": pretrained.model_config.width, "step": pretrained.step}
    found = {"objective": pretrained.model_config.objective, "seed": pretrained.config.get("seed"), "model": sizes, "image_size": pretrained.image_size}
    return found | {"checkpoint": str(place), "probes": probes}


def open_images(config: Recipe, workdir: pathlib.Path, sources: dict[str, str], probing: stages.Probing) -> dict[str, DataConfig]:
    """Return the images to probe of each data set, at the recipe's resolution."""
    resolution = config.data.image_size
    return {name: probing.images(config, source, workdir / "images" / f"{_slug(name)}-{resolution}") for name, source in sources.items()}


def summary(rows: list[dict]) -> dict:
    """Return {curves, raw_pixels, measurements, paper}, with a curve for each way, data set, objective and model; accuracies from 0 to 1."""
    groups: dict[tuple, list[tuple]] = {}
    pixels: dict[tuple, tuple] = {}
    for row in rows:
        for data, probed in row["probes"].items():
            for way, found in probed["ways"].items():
                if found["raw_pixels"]:
                    pixels[data, row["image_size"], way] = found["raw_pixels"], probed["counts"], found["fingerprint"]
                key = (way, data, row["objective"], row["image_size"], *row["model"].values(), None if "pretrained_on" in row else row["checkpoint"])
                groups.setdefault(key, []).append((row["seed"], probed["counts"], found))
    ordered = sorted(groups.items(), key=lambda group: group[0][0] != "linear probe")
    curves = [curve(*group) for group in ordered]
    raw = [
        {"data": data, "resolution": resolution, "way": way, "test": row["accuracy"], "interval": marks.interval_of([0], stages.unpack(row)[None])}
        for (data, resolution, way), (row, _, _) in pixels.items()
    ]
    stored = [one for curve, (_, runs) in zip(curves, ordered, strict=True) for one in measure(curve, runs)]
    for (data, resolution, way), (row, counts, fingerprint) in pixels.items():
        stored.append(stages.measured({"data": data, "features": "raw pixels", "resolution": resolution, "way": way}, 0, row, counts, fingerprint))
    return {"curves": curves, "raw_pixels": raw, "measurements": [to_json(measurement) for measurement in stored], "paper": PAPER}


def curve(key: tuple, runs: list[tuple]) -> dict:
    """Return mean test accuracy of every layer over the runs with its interval, and the layer with the best mean validation accuracy."""
    way, data, objective, resolution, layers, width, step, checkpoint = key
    validation_RL = np.array([[row["validation"] for row in found["layers"]] for _, _, found in runs])
    right_LRB = np.array([[stages.unpack(row) for row in found["layers"]] for _, _, found in runs], float).swapaxes(0, 1)
    numbers, seeds = [row["layer"] for row in runs[0][2]["layers"]], [seed for seed, _, _ in runs]
    best = int(validation_RL.mean(axis=0).argmax())  # the lowest of equally good layers
    mean, ends = right_LRB.mean(axis=(1, 2)).tolist(), [marks.interval_of(seeds, right_RB) for right_RB in right_LRB]
    return {
        "way": way, "data": data, "objective": objective, "resolution": resolution, "model": {"layers": layers, "width": width, "step": step},
        "checkpoint": checkpoint, "seeds": seeds, "counts": runs[0][1], "layers": numbers, "mean": mean, "interval": ends,
        "validation": validation_RL.mean(axis=0).tolist(), "best_of_each_seed": [stages.best_row(found["layers"])["layer"] for _, _, found in runs],
        "best": {"layer": numbers[best], "test": mean[best], "interval": ends[best], "inside": 0 < best < len(numbers) - 1},
        "lost_by_the_last_layer": {"mean": mean[best] - mean[-1], "interval": marks.interval_of_difference(seeds, right_LRB[best], right_LRB[-1])},
    }  # fmt: skip


def measure(curve: dict, runs: list[tuple]) -> list[Measurement]:
    """Return every layer of every run of a curve, the `best` one by its validation accuracy, and the `best interior` one between the first and the last."""
    model = curve["model"]
    factors: Factors = {"data": curve["data"], "objective": curve["objective"], "resolution": curve["resolution"], "way": curve["way"]}
    factors |= {"size": f"{model['layers']}x{model['width']}", "step": model["step"]}
    return [
        stages.measured(factors | {"layer": level}, seed, row, counts, found["fingerprint"])
        for seed, counts, found in runs
        for level, row in stages.levels(found["layers"]).items()
    ]


def model_name(curve: dict) -> str:
    """Return size and training of a curve's model, and where it is if it was given by --checkpoints."""
    model, place = curve["model"], f" ({pathlib.Path(curve['checkpoint']).name})" if curve["checkpoint"] else ""
    return f"{model['layers']} layers of width {model['width']}, {model['step']:,} steps{place}"


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each curve."""
    lines = ["| probed on | objective, model | way | seeds | best layer by validation (of each seed) | test there, % | last layer, % | the last loses |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for curve in summary["curves"]:
        best, lost, each = curve["best"], curve["lost_by_the_last_layer"], ", ".join(map(str, curve["best_of_each_seed"]))
        layer = f"{best['layer']} of {curve['layers'][-1]}{'' if best['inside'] else ', at the end'} ({each})"
        numbers = " | ".join(f"{100 * share:.1f} ({marks.points(ends)})" for share, ends in _best_and_last(curve))
        points = f"{100 * lost['mean']:+.1f} ({marks.points(lost['interval'], '+')})"
        what = f"{curve['data']} | {curve['objective']}, {model_name(curve)} | {curve['way']}"
        lines.append(f"| {what} | {len(curve['seeds'])} | {layer} | {numbers} | {points} |")
    measured = {(row["data"], row["resolution"], row["way"]) for row in summary["raw_pixels"]}
    wanted = dict.fromkeys((curve["data"], curve["resolution"], curve["way"]) for curve in summary["curves"])
    lines += [f"raw pixels, {data} at {side} x {side}, {way}: not measured" for data, side, way in wanted if (data, side, way) not in measured]
    return lines + [
        f"raw pixels, {row['data']} at {row['resolution']} x {row['resolution']}, {row['way']}: {100 * row['test']:.1f} % ({marks.points(row['interval'])})"
        for row in summary["raw_pixels"]
    ]


def draw(summary: dict) -> Any:
    """Draw accuracy against layer, in a panel for each way, and the paper's curve in the last one."""
    from matplotlib.figure import Figure

    ways = list(dict.fromkeys(curve["way"] for curve in summary["curves"]))
    figure = Figure(figsize=(4.4 * (len(ways) + 1), 5 + 0.1 * len(summary["curves"])), layout="constrained")
    panels = figure.subplots(1, len(ways) + 1, squeeze=False)[0]
    for axes, way in zip(panels, ways, strict=False):
        _draw_way(axes, way, [curve for curve in summary["curves"] if curve["way"] == way], summary["raw_pixels"])
        axes.sharey(panels[0])
    panels[0].set_ylabel("test accuracy, %")
    _draw_paper(panels[-1], summary["paper"])
    figure.suptitle(title(summary), fontsize=11)
    marks.legend_below(figure, panels[:1])
    return figure


def title(summary: dict) -> str:
    """Return the result in numbers: of each curve of linear probes, or of all together where there are more than three."""
    curves = [curve for curve in summary["curves"] if curve["way"] == summary["curves"][0]["way"]]
    shown = [_best_and_last(curve) for curve in curves]
    if len(curves) > 3:
        best, last = (f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %" for shares in zip(*((best[0], last[0]) for best, last in shown), strict=True))
        return f"{len(curves)} curves, {curves[0]['way']}: {best} at the best layer, {last} at the last"
    lines = []
    for curve, told in zip(curves, shown, strict=True):
        best, last = (f"{100 * share:.1f} % ({marks.points(ends)})" for share, ends in told)
        lines.append(f"{curve['data']}, {curve['objective']}, {model_name(curve)}")
        lines.append(f"{curve['way']}: {best} at layer {curve['best']['layer']} of {curve['layers'][-1]}, {last} at the last")
        lines[-1] += "".join(f", raw pixels {100 * row['test']:.1f} %" for row in _pixels_of(curve, summary["raw_pixels"]))
    return "\n".join(lines)


def _slug(name):
    """Replace the characters that a file name should not have."""
    return re.sub(r"[^\w.-]+", "_", str(name)).strip("_")


def _best_and_last(curve):
    """The two accuracies of a curve that are told, each with its interval."""
    return (curve["best"]["test"], curve["best"]["interval"]), (curve["mean"][-1], curve["interval"][-1])


def _pixels_of(curve, raw_pixels):
    return [row for row in raw_pixels if all(row[key] == curve[key] for key in ("data", "resolution", "way"))]


def _draw_way(axes, way, curves, raw_pixels):
    for number, (curve, offset) in enumerate(zip(curves, marks.offsets(len(curves)), strict=True)):
        style, seeds = marks.style_of(number), len(curve["seeds"])
        filled = style["color"] if curve["objective"] == "autoregressive" else "white"
        label = f"{curve['data']}, {curve['objective']}, {model_name(curve)}, {seeds} seed{'s' * (seeds > 1)}"
        x = np.array(curve["layers"]) + offset
        style |= {"linestyle": DASHES[curve["objective"]], "markerfacecolor": filled}
        marks.draw_curve(axes, x, curve["mean"], curve["interval"], label=label, zorder=3, **style)
        chose = "validation images, which chose the layer in a ring" if number == 0 else None
        marks.draw_validation(axes, x, curve["validation"], color=style["color"], label=chose, zorder=2)
        _mark_best(axes, curve, offset, written=len(curves) <= 3)
    for number, row in enumerate(row for row in raw_pixels if row["way"] == way):
        colour = marks.GREY if number == 0 else marks.COLOURS[number % len(marks.COLOURS)]
        marks.draw_level(axes, row["test"], row["interval"], f"raw pixels of {row['data']} at {row['resolution']} x {row['resolution']}", colour)
    axes.set(xlabel="layer (0: the embedding)", title=way)
    _finish(axes)


def _mark_best(axes, curve, offset, written):
    place = curve["best"]["layer"] + offset, 100 * curve["best"]["test"]
    axes.plot(*place, "o", color="none", markeredgecolor="black", markersize=12, zorder=4)
    if written:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
        top = place[0], 100 * curve["best"]["interval"][1]
        axes.annotate(f"{place[1]:.1f}", top, (0, 5), textcoords="offset points", fontsize=10, ha="center", va="bottom", bbox=box, zorder=5)


def _draw_paper(axes, paper):
    layers, percents = [int(layer) for layer in paper["percent"]], list(paper["percent"].values())
    axes.errorbar(layers, percents, PAPER_ERROR, fmt="o-", color="black", markersize=4, capsize=2, linewidth=1.3)
    best = int(np.argmax(percents))
    axes.annotate(f"{percents[best]:.1f} at {layers[best]}", (layers[best], percents[best]), (0, 6), textcoords="offset points", ha="center", fontsize=10)
    axes.set(xlabel=f"layer of {paper['layers']}", title=f"paper, figure 2: {paper['model']}")
    _finish(axes)


def _finish(axes):
    axes.margins(y=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)


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
