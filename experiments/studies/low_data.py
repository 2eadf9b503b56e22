"""Few labels: a linear probe and fine-tuning from 4, 25, ... labels of each class, several draws (the paper's table 4 and section 4.5).

    python -m experiments.studies.low_data --config=configs/cifar10_16.py --workdir=runs/low_data --labels=4,25,100 --results=experiments/results

Pretrains the recipe with each objective under each seed, without labels. Then, for each number of labels and each draw of that many images, the same for
every model: a linear probe at the layer that is best with all labels, and fine-tuning of the whole model with the joint loss. The probe's C and the
step at which fine-tuning stops are chosen on the same validation images, which are not fitted; the paper does not say on which it chose. A sweep: see
experiments/studies/sweep.py.
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

PAPER = {"what": "iGPT-L on CIFAR-10, linear probe, table 4", "percent": {"4": 73.2, "25": 87.6, "400": 94.3}, "std": {"4": 1.5, "25": 0.6, "400": 0.1}}
OPENAI_ARRAYS = {"train": "tr", "validation": "va", "test": "te"}  # names of the arrays, which may have validation images of their own
COLOURS = {"autoregressive": "#08519c", "bert": "#d95f02", "prefix": "#41ab5d"}


def sweep_labels(config, workdir, objectives, seeds, labels, draws, finetune_steps, probing, **how):
    """Do the jobs, one for each objective and seed, and draw; `how` goes to sweep.run."""
    workdir = pathlib.Path(workdir)
    if not all(size.isdigit() and int(size) for size in labels):
        raise ValueError(f"--labels={','.join(labels)} must be a list of numbers of labels of each class, as 4,25,400")
    if not config.data.validation:
        raise ValueError("config.data.validation=0 leaves no images to choose C and step on: set the share held out, 0.1 say")
    if probing.solver != "lbfgs":
        raise ValueError(f"--solver={probing.solver} does not fit so few images: leave it out")
    settings = {"labels": sorted(map(int, labels)), "draws": draws, "finetune_steps": finetune_steps}
    jobs = [
        sweep.Job(f"{objective}-{seed}", partial(measure, config, workdir, objective, seed, settings, probing))
        for objective in objectives
        for seed in range(config.seed, config.seed + seeds)
    ]
    return sweep.run(FIGURE, jobs, config, settings | dataclasses.asdict(probing), workdir, **how)


def measure(config, workdir, objective, seed, settings, probing) -> dict:
    """Pretrain one model; probe and fine-tune it from few labels."""
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
    found = {"objective": objective, "seed": seed, "validation": trained["nats_per_pixel"]}
    return found | {"all_labels": probed["best"], "counts": probed["counts"], "rows": rows}


def write_draw(recipe, images, place, classes, size, draw) -> str:
    """The source of the codes of one draw, written once: `size` training images of each class, as igpt_jax.probe draws them, and all others' splits."""

    def write(folder):
        palette = Palette.load(recipe.palette.path) if recipe.palette.path else pipeline.open_dataset(images, "train").palette
        for split, part in OPENAI_ARRAYS.items():
            dataset = pipeline.open_dataset(images, split)
            rows = choose_subset(dataset.labels, classes, size, (SUBSET_SEED, size, draw)) if split == "train" else np.arange(len(dataset))
            np.save(folder / f"few_{part}X.npy", dataset.codes(rows, palette).astype(np.uint16))
            np.save(folder / f"few_{part}Y.npy", np.eye(classes, dtype=np.uint8)[dataset.labels[rows]])
        palette.save(folder / "palette.npy")

    return f"npy:{stages.made_once(place, write)}/few"


def finetune_draw(recipe, source, place, home, classes, size, steps, draw) -> dict:
    """Fine-tune a model to one draw; what experiments.studies.objectives says of it."""
    recipe = finetuning(stages.changed(recipe, data__source=source), classes, 1.0, steps, draw)
    recipe.batch_size = min(recipe.batch_size, size * classes)
    return classify(recipe, place, home)


def summary(rows) -> dict:
    """{curves, all_labels, paper}: for each objective and way, test accuracies of every draw and seed at each number of labels; shares, not percent."""
    curves: dict = {}
    for row in rows:
        for few in row["rows"]:
            for way, accuracies in (("linear probe", few["probe"]), ("fine-tuned", [one["accuracy"] for one in few["finetune"]])):
                curve = curves.setdefault((row["objective"], way), {"objective": row["objective"], "way": way, "accuracies": {}})
                curve["accuracies"].setdefault(str(few["labels_per_class"]), []).extend(accuracies)
    whole: dict = {}
    for row in rows:
        count = row["counts"]["train"] + row["counts"]["validation"]
        whole.setdefault(row["objective"], {"images": count, "accuracies": []})["accuracies"].append(row["all_labels"]["test"])
    return {"curves": list(curves.values()), "all_labels": whole, "paper": PAPER}


def table(found) -> list[str]:
    """A line of Markdown for each objective, way, and number of labels."""
    paper = found["paper"]
    lines = [f"| objective | way | labels of each class | runs | test accuracy, % | paper, {paper['what']}, % |", "|---|---|---|---|---|---|"]
    for one in found["curves"]:
        for size, accuracies in one["accuracies"].items():
            known = size in paper["percent"] and one["way"] == "linear probe" and one["objective"] == "autoregressive"
            theirs = f"{paper['percent'][size]} +- {paper['std'][size]}" if known else "-"
            lines.append(f"| {one['objective']} | {one['way']} | {size} | {len(accuracies)} | {sweep.spread(100 * np.array(accuracies), 1)} | {theirs} |")
    return lines


def draw(found):
    """Accuracy against labels of each class; every draw a dot, bars are deviations over draws and seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({int(size) for one in found["curves"] for size in one["accuracies"]})
    for number, one in enumerate(found["curves"]):
        probe, colour = one["way"] == "linear probe", COLOURS[one["objective"]]
        places = [int(size) * 1.06 ** (number - (len(found["curves"]) - 1) / 2) for size in one["accuracies"]]  # beside each other
        values = [100 * np.array(accuracies) for accuracies in one["accuracies"].values()]
        style = {"color": colour, "linestyle": "-" if probe else "--", "marker": "o" if probe else "s", "markerfacecolor": colour if probe else "white"}
        label = f"{one['objective']}, {one['way']}"
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
        "objectives": flags.DEFINE_list("objectives", ["autoregressive", "bert"], "of the pretraining, a list"),
        "seeds": flags.DEFINE_integer("seeds", 1, "pretrainings with each objective", lower_bound=1),
        "labels": flags.DEFINE_list("labels", ["4", "25", "100"], "labels of each class, a list; the paper: 4,25,400"),
        "draws": flags.DEFINE_integer("draws", 3, "random sets of each number of labels; the paper: 5", lower_bound=1),
        "finetune_steps": flags.DEFINE_integer("finetune_steps", 200, "steps of a fine-tuning, at most", lower_bound=1),
        "probing": stages.ProbingFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_labels, _flags)
