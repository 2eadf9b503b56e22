"""Few labels: linear probes and fine-tuning from 4, 25, ... labels of each class, with several draws (the paper's table 4 and section 4.5).

    python -m experiments.studies.low_data --config=configs/cifar10_16.py --workdir=runs/low_data --labels=4,25,100 --results=experiments/results

Pretrains the recipe with each objective and seed, without labels. For each number of labels, sets of images are drawn, the same sets for every model. On
each set a linear probe is fitted at the layer that is best with all labels, and the whole model is fine-tuned with the joint loss. The probe's C and the
step at which fine-tuning stops are chosen on the same validation images, on which nothing is fitted. The paper does not say on which images it chose. This
is a sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import pathlib
from functools import partial

import numpy as np

from experiments.studies import stages, sweep
from experiments.studies.objectives import classify, finetuning
from igpt_jax.cli import run_recipe
from igpt_jax.data import pipeline
from igpt_jax.palette.palette import Palette
from igpt_jax.probing.lbfgs_probe import SUBSET_SEED, choose_subset
from igpt_jax.types import PathLike, Recipe

PAPER = {"what": "iGPT-L on CIFAR-10, linear probe, table 4", "percent": {"4": 73.2, "25": 87.6, "400": 94.3}, "std": {"4": 1.5, "25": 0.6, "400": 0.1}}
OPENAI_ARRAYS = {"train": "tr", "validation": "va", "test": "te"}  # names of the splits in OpenAI's arrays, which can hold validation images
COLOURS = {"autoregressive": "#08519c", "bert": "#d95f02", "prefix": "#41ab5d"}


def sweep_labels(
    config: Recipe, workdir: PathLike, objectives: list[str], seeds: int, labels: list[str], draws: int, finetune_steps: int, probing: stages.Probing, **options
) -> dict | None:
    """Run the jobs, one for each objective and seed, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    if not all(size.isdigit() and int(size) for size in labels):
        raise ValueError(f"--labels={','.join(labels)} must be a list of numbers of labels of each class, for example 4,25,400")
    if not config.data.validation:
        raise ValueError("config.data.validation=0 leaves no images to choose C and the step on: set the share held out, for example 0.1")
    if probing.solver != "lbfgs":
        raise ValueError(f"--solver={probing.solver} is not for so few images: leave the flag out")
    settings = {"labels": sorted(map(int, labels)), "draws": draws, "finetune_steps": finetune_steps}
    jobs = [
        sweep.Job(f"{objective}-{seed}", partial(measure, config, workdir, objective, seed, settings, probing))
        for objective in objectives
        for seed in range(config.seed, config.seed + seeds)
    ]
    return sweep.run(FIGURE, jobs, config, settings | dataclasses.asdict(probing), workdir, **options)


def measure(config: Recipe, workdir: pathlib.Path, objective: str, seed: int, settings: dict, probing: stages.Probing) -> dict:
    """Pretrain one model, and probe and fine-tune it with few labels."""
    name, sizes, draws = f"{objective}-{seed}", settings["labels"], range(settings["draws"])
    home = workdir / "models" / name
    recipe = stages.changed(stages.with_palette(config, workdir), model__objective=objective, seed=seed)
    images = probing.images(recipe, recipe.data.source, workdir / "images/probed")
    classes = len(pipeline.open_dataset(images, "train").class_names)
    sources = {(size, draw): write_draw(recipe, images, workdir / "images" / f"{size}-{draw}", classes, size, draw) for size in sizes for draw in draws}
    trained = stages.pretrain(recipe, home)
    probed = probing.layers(home, images, home / "probe", options=[f"--labels-per-class={','.join(map(str, sizes))}", f"--subsets={len(draws)}"])
    tuned = {
        (size, draw): finetune_draw(recipe, source, workdir / "finetuned" / f"{name}-{size}-{draw}", home, classes, size, settings["finetune_steps"], draw)
        for (size, draw), source in sources.items()
    }
    rows = [{"labels_per_class": few["labels_per_class"], "layer": few["layer"], "probe": few["test"]} for few in probed["low_data"]]
    rows = [row | {"finetune": [tuned[row["labels_per_class"], draw] for draw in draws]} for row in rows]
    measured = {"objective": objective, "seed": seed, "validation": trained["nats_per_pixel"]}
    return measured | {"all_labels": probed["best"], "counts": probed["counts"], "rows": rows}


def write_draw(recipe: Recipe, images: pipeline.DataConfig, place: pathlib.Path, classes: int, size: int, draw: int) -> str:
    """Write the codes of one draw once; return their source.

    The training split has `size` images of each class, the same that igpt_jax.probe draws. The other splits are complete.
    """

    def write(folder):
        palette = Palette.load(recipe.palette.path) if recipe.palette.path else pipeline.open_dataset(images, "train").palette
        for split, part in OPENAI_ARRAYS.items():
            dataset = pipeline.open_dataset(images, split)
            rows = choose_subset(dataset.labels, classes, size, (SUBSET_SEED, size, draw)) if split == "train" else np.arange(len(dataset))
            np.save(folder / f"few_{part}X.npy", dataset.codes(rows, palette).astype(np.uint16))
            np.save(folder / f"few_{part}Y.npy", np.eye(classes, dtype=np.uint8)[dataset.labels[rows]])
        palette.save(folder / "palette.npy")

    return f"npy:{stages.make_once(place, write)}/few"


def finetune_draw(recipe: Recipe, source: str, place: pathlib.Path, home: pathlib.Path, classes: int, size: int, steps: int, draw: int) -> dict:
    """Fine-tune a model on one draw; return what objectives.classify returns."""
    recipe = finetuning(stages.changed(recipe, data__source=source), classes, 1.0, steps, draw)
    recipe.batch_size = min(recipe.batch_size, size * classes)
    return classify(recipe, place, home)


def summary(rows: list[dict]) -> dict:
    """Return {curves, all_labels, paper}; a curve holds the test accuracies of every draw and seed at each number of labels, from 0 to 1."""
    curves: dict = {}
    for row in rows:
        for few in row["rows"]:
            for way, accuracies in (("linear probe", few["probe"]), ("fine-tuned", [run["accuracy"] for run in few["finetune"]])):
                curve = curves.setdefault((row["objective"], way), {"objective": row["objective"], "way": way, "accuracies": {}})
                curve["accuracies"].setdefault(str(few["labels_per_class"]), []).extend(accuracies)
    all_labels: dict = {}
    for row in rows:
        count = row["counts"]["train"] + row["counts"]["validation"]
        all_labels.setdefault(row["objective"], {"images": count, "accuracies": []})["accuracies"].append(row["all_labels"]["test"])
    return {"curves": list(curves.values()), "all_labels": all_labels, "paper": PAPER}


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each objective, way and number of labels."""
    paper = summary["paper"]
    lines = [f"| objective | way | labels of each class | runs | test accuracy, % | paper, {paper['what']}, % |", "|---|---|---|---|---|---|"]
    for curve in summary["curves"]:
        for size, accuracies in curve["accuracies"].items():
            in_paper = size in paper["percent"] and curve["way"] == "linear probe" and curve["objective"] == "autoregressive"
            theirs = f"{paper['percent'][size]} +- {paper['std'][size]}" if in_paper else "-"
            lines.append(f"| {curve['objective']} | {curve['way']} | {size} | {len(accuracies)} | {sweep.spread(100 * np.array(accuracies), 1)} | {theirs} |")
    return lines


def draw(summary: dict):
    """Draw accuracy against labels of each class; every draw is a dot, and bars are deviations over draws and seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({int(size) for curve in summary["curves"] for size in curve["accuracies"]})
    for number, curve in enumerate(summary["curves"]):
        probe, colour = curve["way"] == "linear probe", COLOURS[curve["objective"]]
        places = [int(size) * 1.06 ** (number - (len(summary["curves"]) - 1) / 2) for size in curve["accuracies"]]  # beside each other
        values = [100 * np.array(accuracies) for accuracies in curve["accuracies"].values()]
        style = {"color": colour, "linestyle": "-" if probe else "--", "marker": "o" if probe else "s", "markerfacecolor": colour if probe else "white"}
        label = f"{curve['objective']}, {curve['way']}"
        axes.errorbar(places, [value.mean() for value in values], [sweep.deviation(value) for value in values], capsize=3, elinewidth=1, label=label, **style)
        for place, value in zip(places, values, strict=True):
            axes.plot([place] * len(value), value, ".", color=colour, markersize=5, alpha=0.5)
    axes.set_xscale("log")
    axes.set_xticks(sizes, sizes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="labels of each class", ylabel="test accuracy, % (bars: deviation over draws)", title="Few labels: linear probe and fine-tuning")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")
    return figure


FIGURE = sweep.Figure("low_data", summary, table, draw)


def _flags(flags):
    return {
        "objectives": flags.DEFINE_list("objectives", ["autoregressive", "bert"], "objectives of the pretraining, a list"),
        "seeds": flags.DEFINE_integer("seeds", 1, "number of pretrainings with each objective", lower_bound=1),
        "labels": flags.DEFINE_list("labels", ["4", "25", "100"], "numbers of labels of each class, a list; the paper: 4,25,400"),
        "draws": flags.DEFINE_integer("draws", 3, "number of random sets for each number of labels; the paper: 5", lower_bound=1),
        "finetune_steps": flags.DEFINE_integer("finetune_steps", 200, "maximum number of steps of a fine-tuning", lower_bound=1),
        "probing": stages.ProbingFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_labels, _flags)
