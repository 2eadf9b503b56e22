"""Few labels: linear probes and fine-tuning from 4, 25, 400 labels of each class, with several draws (the paper's table 4 and section 4.5).

    python -m experiments.studies.low_data --config=configs/cifar10_16.py --workdir=runs/low_data --results=experiments/results
    python -m experiments.studies.low_data --config=configs/cifar10_16.py --workdir=runs/low_data_of_mine --checkpoints=runs/cifar10-16

Pretrains the recipe with each objective, without labels, or takes the models of --checkpoints. For each number of labels, sets of images are drawn, the same
for every model. Linear probes and nearest neighbours of every layer and of raw pixels use each draw, and the whole model is fine-tuned on it, with the joint
loss. experiments/studies/draws.py says what is chosen on which images; the paper does not say on which images it chose. --labels_per_class is the number of
labelled images from which the draws and the validation images are taken. Fine-tuning with many labels takes long: --finetune_labels=4,25 leaves the others
out. This is a sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from experiments.studies import draw_rows, draws, marks, stages, sweep
from experiments.studies.draws import Budget, Draw, Model
from igpt_jax.cli import run_recipe
from igpt_jax.probing.lbfgs_probe import C_VALUES
from igpt_jax.types import PathLike, Recipe

PAPER = {
    "what": "iGPT-L on CIFAR-10, linear probe, table 4", "percent": {"4": 73.2, "25": 87.6, "400": 94.3}, "std": {"4": 1.5, "25": 0.6, "400": 0.1},
    "fine-tuned": {"4": 42.1},
}  # fmt: skip


def sweep_labels(
    config: Recipe, workdir: PathLike, objectives: list[str], labels: list[str], draw_count: int, probing: stages.Probing, budget: Budget,
    finetune_labels: list[str] | None = None, finetune_draws: int | None = None, checkpoints: tuple | list = (), C_values: Sequence[str | float] = C_VALUES,
    **options,
) -> dict | None:  # fmt: skip
    """Run the jobs, one for each objective or for each of `checkpoints`, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    sizes = numbers("labels", labels)
    tuned = sizes if finetune_labels is None else numbers("finetune_labels", finetune_labels)
    if not set(tuned) <= set(sizes):
        raise ValueError(f"--finetune_labels={','.join(map(str, tuned))} must be some of --labels={','.join(map(str, sizes))}")
    draws.check(config, probing, max(sizes), "--labels")
    models, config, checksums = draws.given_models(config, workdir, checkpoints)
    finetune_draws = min(draw_count, draw_count if finetune_draws is None else finetune_draws)
    settings = {"labels": sizes, "draws": draw_count, "finetune_labels": tuned, "finetune_draws": finetune_draws, "models": checksums}
    settings["C"] = sorted(map(float, C_values))
    jobs = [
        sweep.Job(objective, partial(measure, config, workdir, objective, model, settings, probing, budget), model and model.checkpoint)
        for objective, model in (models if checkpoints else dict.fromkeys(objectives)).items()
    ]
    return sweep.run(FIGURE, jobs, config, settings | dataclasses.asdict(probing) | dataclasses.asdict(budget), workdir, **options)


def numbers(flag: str, texts: list[str]) -> list[int]:
    """Return the numbers of a list, ascending; ValueError if one is not a number above 0."""
    if not all(text.isdigit() and int(text) for text in texts):
        raise ValueError(f"--{flag}={','.join(texts)} must be a list of numbers of labels of each class, for example 4,25,400")
    return sorted(set(map(int, texts)))


def measure(config: Recipe, workdir: pathlib.Path, objective: str, model: Model | None, settings: dict, probing: stages.Probing, budget: Budget) -> dict:
    """Probe and fine-tune one model with few labels; without a `model`, pretrain it."""
    images = probing.images(config, config.data.source, workdir / "images/pool")
    chosen = [Draw(size, number) for size in settings["labels"] for number in range(settings["draws"])]
    draws.check_pool(images, chosen[-1])  # an error in the data must show before hours of training
    model = model or draws.pretrain(config, workdir, objective)
    tuned = [draw for draw in chosen if draw.labels in settings["finetune_labels"] and draw.number < settings["finetune_draws"]]
    rows = draws.probe_draws(model, images, chosen, settings["C"])
    rows += [row for draw in tuned for row in draws.finetune_draw(config, workdir, model, images, draw, "pretrained", "joint", budget)]
    left_out = [size for size in settings["labels"] if size not in settings["finetune_labels"]]
    not_run = [f"{objective}: fine-tuning with {size} labels of each class was not run" for size in left_out]
    return {"objective": objective, "model": draws.generative_loss(model, config, images), "measurements": rows, "not_run": not_run}


def summary(rows: list[dict]) -> dict:
    """Return what `draw_rows.summary` returns, and the paper's numbers."""
    return draw_rows.summary(rows) | {"paper": PAPER}


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each kind of classifier and number of labels, and what was not run."""
    paper = summary["paper"]
    numbers = ", ".join(f"{percent} +- {paper['std'][size]} % with {size}" for size, percent in paper["percent"].items())
    told = f"paper, {paper['what']}: {numbers} labels of each class; fine-tuned with 4: {paper['fine-tuned']['4']} %"
    return [*draw_rows.HEAD, *map(draw_rows.row_line, summary["rows"]), *summary["not_run"], told]


def curves(summary: dict) -> list[tuple[str, str | None, str, list[dict]]]:
    """Return (label, objective or None for raw pixels, way, rows in the order of the labels) of each curve of the figure."""
    found = [("raw pixels, linear probe", None, "linear probe", draw_rows.select(summary["rows"], features="raw pixels", way="linear probe"))]
    for objective, model in summary["models"].items():
        for way, name in (("linear probe", "linear probe at the best layer"), ("fine-tuned", "fine-tuned")):
            rows = draw_rows.voted(summary["rows"], objective=objective, way=way)
            found.append((f"{objective}, {name} (step {model['step']:,})", objective, way, rows))
    return [(label, objective, way, sorted(rows, key=lambda row: row["factors"]["labels"])) for label, objective, way, rows in found if rows]


def title(summary: dict) -> str:
    """State the result at the smallest and the largest number of labels."""
    sizes, lines = [row["factors"]["labels"] for row in summary["rows"]], []
    for size in sorted({min(sizes), max(sizes)}):
        parts: dict[str | None, list[str]] = {}
        for _, objective, way, rows in curves(summary):
            name = "raw pixels" if objective is None else {"linear probe": "probe"}.get(way, way)
            parts.setdefault(objective, []).extend(f"{name} {100 * row['mean']:.1f} %" for row in draw_rows.select(rows, labels=size))
        groups = [(f"{objective} " if objective else "") + ", ".join(found) for objective, found in parts.items()]
        lines.append(f"{size} labels of each class: " + "; ".join(groups))
    return "\n".join(lines)


def draw(summary: dict):
    """Draw accuracy against labels of each class: means with 95 % intervals, each draw as a small dot, raw pixels as a line with its interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({row["factors"]["labels"] for row in summary["rows"]})
    shown = curves(summary)
    for number, (label, objective, way, rows) in enumerate(shown):
        probe, places = way == "linear probe", np.array([row["factors"]["labels"] for row in rows], float)
        means, intervals = [row["mean"] for row in rows], [row["interval"] for row in rows]
        if objective is None:
            axes.plot(places, 100 * np.array(means), color=marks.GREY, linestyle=marks.RAW_PIXELS, linewidth=1.3, label=label, zorder=1)
            axes.fill_between(places, *100 * np.array(intervals).T, color=marks.GREY, alpha=0.12, linewidth=0, zorder=0)
            continue
        places *= 1.08 ** (number - len(shown) / 2)  # beside each other
        colour = draw_rows.COLOURS[objective]
        face = colour if probe else "white"
        marks.draw_curve(
            axes, places, means, intervals, color=colour, marker="o" if probe else "s", markerfacecolor=face, linestyle="-" if probe else "--", label=label
        )
        for place, row in zip(places, rows, strict=True):
            draw_rows.draw_each(axes, place, row)
    axes.set_xscale("log")
    axes.set_xticks(sizes, sizes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="labels of each class", ylabel="test accuracy, % (95 % intervals over images and draws)")
    axes.set_title(title(summary), fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


FIGURE = sweep.Figure("low_data", summary, table, draw)


def _flags(flags):
    probing = stages.ProbingFlags(flags)
    flags.set_default(probing.holders["labels_per_class"], 500)  # 450 for the draws and 50 for validation
    return {
        "objectives": flags.DEFINE_list("objectives", ["autoregressive", "bert"], "objectives of the pretraining, a list"),
        "labels": flags.DEFINE_list("labels", ["4", "25", "400"], "numbers of labels of each class, a list; the paper: 4,25,400"),
        "draw_count": flags.DEFINE_integer("draws", 5, "number of random sets for each number of labels; the paper: 5", lower_bound=1),
        "finetune_labels": flags.DEFINE_list("finetune_labels", None, "numbers of labels to fine-tune with, a list; default: those of --labels"),
        "finetune_draws": flags.DEFINE_integer("finetune_draws", None, "number of sets to fine-tune on; default: all", lower_bound=1),
        "C_values": flags.DEFINE_list("C", list(map(str, C_VALUES)), "scikit-learn's C of the linear probes, a list to choose from"),
        "checkpoints": flags.DEFINE_list("checkpoints", [], "take these runs or converted models and pretrain none, a list with one for each objective"),
        "probing": probing,
        "budget": draws.BudgetFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_labels, _flags)
