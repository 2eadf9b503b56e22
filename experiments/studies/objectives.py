"""Next-pixel against masked-pixel pretraining, and what fine-tuning adds to a probe (the paper's figure 4, sections 4.4 and 4.6).

    python -m experiments.studies.objectives --config=configs/fashion_mnist_14.py --workdir=runs/objectives --results=experiments/results
    python -m experiments.studies.objectives --config=configs/cifar10_16.py --workdir=runs/finetuning --checkpoints=runs/cifar10-16 --labels_per_class=1000

Pretrains the recipe once with each objective on all training images, without labels, or takes the models of --checkpoints. A few labels of each class are
then used in several ways, on --seeds random draws of labelled images, the same for every model. Linear probes and nearest neighbours read every layer, and
raw pixels. Models are fine-tuned from the pretrained parameters and from random ones, with the paper's joint loss and with the classification loss alone.
experiments/studies/draws.py says what is chosen on which images, and when a fine-tuning ends; with --patience=0 every one sees the same number of images.
This is a sweep: see experiments/studies/sweep.py.
"""

import dataclasses
import math
import pathlib
from functools import partial

from experiments.studies import draw_rows, draws, marks, stages, sweep
from experiments.studies.draws import LOSSES, STARTS, Budget, Draw, Model
from igpt_jax.cli import run_recipe
from igpt_jax.types import PathLike, Recipe

POOL = 3  # labelled images, beside those of validation, from which the draws are taken, as a multiple of a draw
MARKS = {"autoregressive": "o", "bert": "s", "prefix": "^"}


def compare(
    config: Recipe, workdir: PathLike, objectives: list[str], seeds: int, labels_per_class: int, test_images: int, starts: list[str], losses: list[str],
    budget: Budget, checkpoints: tuple | list = (), **options,
) -> dict | None:  # fmt: skip
    """Run the jobs, one for each objective or for each of `checkpoints`, and draw; `options` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    probing = stages.Probing(math.ceil(POOL * labels_per_class / (1 - config.data.validation)), test_images, "lbfgs")
    draws.check(config, probing, labels_per_class, "--labels_per_class")
    models, config, checksums = draws.given_models(config, workdir, checkpoints)
    settings = {"labels_per_class": labels_per_class, "seeds": seeds, "starts": starts, "losses": losses, "test_images": test_images, "models": checksums}
    jobs = [
        sweep.Job(objective, partial(measure, config, workdir, objective, model, settings, probing, budget), model and model.checkpoint)
        for objective, model in (models if checkpoints else dict.fromkeys(objectives)).items()
    ]
    return sweep.run(FIGURE, jobs, config, settings | dataclasses.asdict(budget), workdir, **options)


def measure(config: Recipe, workdir: pathlib.Path, objective: str, model: Model | None, settings: dict, probing: stages.Probing, budget: Budget) -> dict:
    """Probe and fine-tune one model; without a `model`, pretrain it."""
    images = probing.images(config, config.data.source, workdir / "images/pool")
    chosen = [Draw(settings["labels_per_class"], number) for number in range(settings["seeds"])]
    draws.check_pool(images, chosen[0])
    model = model or draws.pretrain(config, workdir, objective)
    rows = draws.probe_draws(model, images, chosen)
    for start in settings["starts"]:
        for loss in settings["losses"]:
            rows += [row for draw in chosen for row in draws.finetune_draw(config, workdir, model, images, draw, start, loss, budget)]
    not_run = [f"fine-tuning, {start}, {loss} loss" for start in STARTS for loss in LOSSES if not (start in settings["starts"] and loss in settings["losses"])]
    not_run = [f"{objective}: {what} was not run" for what in not_run]
    return {"objective": objective, "model": draws.generative_loss(model, config, images), "measurements": rows, "not_run": not_run}


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each kind of classifier, the losses of the pretraining, and what was not run."""
    lines = [*draw_rows.HEAD, *map(draw_rows.row_line, summary["rows"])]
    for objective, model in summary["models"].items():
        counts = model["baselines"]["per_position"]
        lines.append(f"{objective}: step {model['step']:,}, test loss {model['nats_per_pixel']:.3f} nats per pixel, per-position baseline {counts:.3f}")
    return lines + summary["not_run"]


def kinds(summary: dict) -> list[tuple[str, dict]]:
    """Return (name, factors) of the columns of the figure that were run: probes, then fine-tunings."""
    found = [("linear probe,\nbest layer", {"way": "linear probe"}), ("kNN,\nbest layer", {"way": "kNN"})]
    found += [(f"fine-tuned,\n{start},\n{loss} loss", {"way": "fine-tuned", "start": start, "loss": loss}) for start in STARTS for loss in LOSSES]
    return [(name, factors) for name, factors in found if any("objective" in row["factors"] for row in draw_rows.select(summary["rows"], **factors))]


def title(summary: dict) -> str:
    """State the result of each objective in numbers."""
    labels, lines = summary["rows"][0]["factors"]["labels"], []
    for objective in summary["models"]:
        found = {name.replace("\n", " "): row for name, factors in kinds(summary) for row in draw_rows.voted(summary["rows"], objective=objective, **factors)}
        lines.append(f"{objective}: " + "; ".join(f"{name} {100 * row['mean']:.1f} %" for name, row in found.items() if name in _told(found)))
    pixels = draw_rows.select(summary["rows"], features="raw pixels", way="linear probe")
    return "\n".join([f"{labels} labels of each class, raw pixels {100 * pixels[0]['mean']:.1f} %", *lines])


def _told(found: dict) -> list[str]:
    """The columns that a title names: the probe, and the first fine-tuning of each start."""
    tuned = [name for name in found if name.startswith("fine-tuned")]
    firsts = {start: next((name for name in tuned if f" {start}," in name), None) for start in STARTS}
    return ["linear probe, best layer", *filter(None, firsts.values())]


def draw(summary: dict):
    """Draw the paper's figure 4: mean accuracies with 95 % intervals, each draw as a small dot, raw pixels as a line with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    columns = kinds(summary)
    for number, objective in enumerate(summary["models"]):
        offset = 0.24 * (number - (len(summary["models"]) - 1) / 2)
        of_columns = [draw_rows.voted(summary["rows"], objective=objective, **factors) for _, factors in columns]
        found = [(place + offset, row) for place, rows in enumerate(of_columns) for row in rows]
        places, rows = [place for place, _ in found], [row for _, row in found]
        style = {"color": draw_rows.COLOURS[objective], "marker": MARKS[objective], "linestyle": "none", "markersize": 7}
        marks.draw_curve(axes, places, [row["mean"] for row in rows], [row["interval"] for row in rows], label=objective, **style)
        for place, row in found:
            draw_rows.draw_each(axes, place + 0.06, row)
            axes.annotate(f"{100 * row['mean']:.1f}", (place, 100 * row["mean"]), (-5, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
    for row in draw_rows.select(summary["rows"], features="raw pixels"):
        label = f"raw pixels, {row['factors']['way']}: {100 * row['mean']:.1f} %"
        marks.draw_level(axes, row["mean"], row["interval"], label, marks.GREY if row["factors"]["way"] == "linear probe" else "#a6a6a6")
    axes.set_xticks(range(len(columns)), [name for name, _ in columns])
    axes.set_xlim(-0.6, len(columns) - 0.5)
    axes.set_ylabel("test accuracy, % (95 % intervals over images and draws)")
    axes.set_title(title(summary), fontsize=9)
    axes.grid(axis="y", alpha=0.25)
    marks.legend_below(figure, [axes])
    return figure


FIGURE = sweep.Figure("objectives", draw_rows.summary, table, draw)


def _flags(flags):
    return {
        "objectives": flags.DEFINE_list("objectives", ["autoregressive", "bert"], "objectives of the pretraining, a list"),
        "seeds": flags.DEFINE_integer("seeds", 3, "number of draws of labelled images, each with probes and one fine-tuning of each kind", lower_bound=1),
        "labels_per_class": flags.DEFINE_integer("labels_per_class", 200, "labelled training images of each class in a draw", lower_bound=1),
        "test_images": flags.DEFINE_integer("test_images", 2_000, "number of random test images; 0: all", lower_bound=0),
        "starts": flags.DEFINE_multi_enum("starts", list(STARTS), STARTS, "parameters that a fine-tuning starts from; give the flag once for each"),
        "losses": flags.DEFINE_multi_enum("losses", list(LOSSES), list(LOSSES), "losses of the fine-tunings; give the flag once for each"),
        "checkpoints": flags.DEFINE_list("checkpoints", [], "take these runs or converted models and pretrain none, a list with one for each objective"),
        "budget": draws.BudgetFlags(flags),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(compare, _flags)
