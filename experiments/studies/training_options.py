"""What does each training option change: the loss at the end, and the steps to a loss?

    python -m experiments.studies.training_options --config=configs/digits.py --workdir=runs/training_options --results=experiments/results

Trains small models with --seeds seeds, each once with every option of OPTIONS, and compares it with the run of the same seed that differs in the option alone,
its reference. Three measures: the loss on all validation images after the last step; its difference from the reference's; and the first evaluation at which
the loss is at most the lowest one of the reference. Means over the seeds have Student's 95 % interval; differences are paired by seed. Rates are not tuned
for each option: pretraining has the recipe's, which is Adam's.

Pretraining is on the training images of the recipe. The models that are twice as wide have heads of equal size. Classifiers are trained on --labels labelled
images (joint loss; from random parameters: classification loss alone), at a constant rate, and their loss is that of the classes.
This is a sweep, a job for each seed: see experiments/studies/sweep.py.
"""

import json
import pathlib
import textwrap
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.report.intervals import interval_of_mean
from experiments.studies import marks, origin, stages, sweep
from igpt_jax import finetune
from igpt_jax.cli import run_recipe
from igpt_jax.data import pipeline
from igpt_jax.training import evaluation
from igpt_jax.types import PathLike, Recipe

PRETRAINING, SCRATCH, TUNING = "pretraining", "classifier from random parameters", "fine-tuning"
LOSS = {PRETRAINING: "nats_per_pixel", SCRATCH: "class_nats", TUNING: "class_nats"}


class Option(NamedTuple):
    """A row of the table."""

    name: str
    kind: str
    run: str  # which training; two options may be the weights of one run and their average
    changes: dict[str, Any]  # of the recipe of this kind
    reference: str | None  # name of the option that it is compared with
    ema: bool = False


def options(config: Recipe) -> list[Option]:
    """Return the rows of the table; those of other widths and of parts of the run depend on the recipe."""
    width, heads, steps, layers = config.model.width, config.model.heads, config.steps, config.model.layers
    wide = {"model__width": 2 * width, "model__heads": 2 * heads}
    average = {"optim__ema_decay": 0.98}
    return [
        Option("Adam, cosine (default)", PRETRAINING, "adam", average, None),
        Option("EMA 0.98 of the weights", PRETRAINING, "adam", average, "Adam, cosine (default)", ema=True),
        Option("Muon", PRETRAINING, "muon", {"optim__name": "muon"}, "Adam, cosine (default)"),
        Option("wsd, decay over the last fifth", PRETRAINING, "wsd", {"optim__schedule": "wsd", "optim__decay_steps": steps // 5}, "Adam, cosine (default)"),
        Option("constant rate", PRETRAINING, "constant", average | {"optim__schedule": "constant"}, "Adam, cosine (default)"),
        Option("constant rate, EMA 0.98", PRETRAINING, "constant", average | {"optim__schedule": "constant"}, "constant rate", ema=True),
        Option("twice as wide", PRETRAINING, "wide", wide, "Adam, cosine (default)"),
        Option("twice as wide, muP", PRETRAINING, "wide_mup", wide | {"optim__base_width": width}, "twice as wide"),
        Option("no dropout (default)", SCRATCH, "scratch", {}, None),
        Option("dropout 0.1", SCRATCH, "dropout", {"model__dropout": 0.1}, "no dropout (default)"),
        Option("all layers alike (default)", TUNING, "tuned", {}, None),
        Option("layer decay 0.75", TUNING, "layer_decay", {"optim__layer_decay": 0.75}, "all layers alike (default)"),
        Option(f"{layers // 2} of {layers} layers frozen", TUNING, "frozen", {"optim__frozen_layers": layers // 2}, "all layers alike (default)"),
    ]


def sweep_options(config: Recipe, workdir: PathLike, seeds: int, labels: int, tune_steps: int, tune_rate: float, **settings) -> dict | None:
    """Run the jobs, one for each seed, and draw; `settings` are passed to sweep.run."""
    workdir = pathlib.Path(workdir)
    images = len(pipeline.open_dataset(pipeline.DataConfig(**config.data), "all_train"))
    if not config.batch_size <= labels < images:
        raise ValueError(f"--labels={labels} must be at least the batch of {config.batch_size} and below the {images} training images")
    chosen = {"labels": labels, "tune_steps": tune_steps, "tune_rate": tune_rate, "images": images}
    jobs = [sweep.Job(f"seed-{seed}", partial(train_all, config, workdir, seed, chosen)) for seed in range(config.seed, config.seed + seeds)]
    return sweep.run(FIGURE, jobs, config, chosen, workdir, **settings)


def train_all(config: Recipe, workdir: pathlib.Path, seed: int, chosen: dict) -> dict:
    """Train one seed with every option; return the curves and the last losses."""
    recipe = stages.changed(stages.with_palette(config, workdir), seed=seed)
    classifier = {
        "data__validation": 1 - chosen["labels"] / chosen["images"], "model__classes": 10, "loss__classification": 1.0, "optim__schedule": "constant",
        "optim__warmup_steps": 0, "optim__learning_rate": chosen["tune_rate"], "steps": chosen["tune_steps"],
    }  # fmt: skip
    kinds = {PRETRAINING: {}, SCRATCH: classifier | {"loss__generative": 0.0}, TUNING: classifier}
    rows = []
    for option in options(config):
        home = workdir / "models" / f"{option.run}-{seed}"
        changed = stages.changed(recipe, **kinds[option.kind] | option.changes)
        start = str(workdir / "models" / f"adam-{seed}") if option.kind == TUNING else None
        if option.kind == PRETRAINING:
            stages.pretrain(changed, home)
        else:
            made_of = {"images": origin.of_images(stages.images_of(changed))} | ({"model": origin.of_model(start)} if start else {})
            stages.train_once(home, partial(finetune.finetune, changed, home, start), made_of)
        described = {"option": option.name, "kind": option.kind, "reference": option.reference}
        rows.append(described | read_curve(home, LOSS[option.kind] + (evaluation.EMA if option.ema else "")))
    return {"seed": seed, "options": rows}


def read_curve(home: pathlib.Path, metric: str) -> dict:
    """Return {steps, losses} of the evaluations of a run, the last one on all validation images, and its accuracy if it has one."""
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    curve = {line["step"]: line[f"validation/{metric}"] for line in lines if f"validation/{metric}" in line}
    result = json.loads((home / "result.json").read_text())
    accuracy = {"accuracy": result["accuracy"]} if "accuracy" in result else {}
    return {"steps": list(curve), "losses": list(curve.values()), "parameters": result["parameters"]} | accuracy


def summary(rows: list[dict]) -> dict:
    """Return a row for each option: its losses, differences from the reference and steps to the reference's lowest loss, of each seed and on average."""
    by_name = {option["option"]: [] for option in rows[0]["options"]}
    for row in rows:
        for option in row["options"]:
            by_name[option["option"]].append(option)
    found = []
    for runs in by_name.values():
        row = {key: runs[0][key] for key in ("option", "kind", "reference", "parameters")}
        values = {key: [run[key] for run in runs] for key in ("accuracy",) if key in runs[0]} | {"loss": [run["losses"][-1] for run in runs]}
        if row["reference"]:
            others = by_name[row["reference"]]
            values["difference"] = [run["losses"][-1] - other["losses"][-1] for run, other in zip(runs, others, strict=True)]
            row["steps"] = [steps_to(run, min(other["losses"])) for run, other in zip(runs, others, strict=True)]
            row["reference_steps"] = [steps_to(other, min(other["losses"])) for other in others]
        intervals = {f"{key}_interval": [float(end) for end in interval_of_mean(np.asarray(each, float))] for key, each in values.items()}
        found.append(row | values | intervals)
    return {"rows": found, "seeds": [row["seed"] for row in rows]}


def steps_to(curve: dict, loss: float) -> int | None:
    """Return the step of the first evaluation at which the loss is at most this one; None where there is none."""
    return next((step for step, reached in zip(curve["steps"], curve["losses"], strict=True) if reached <= loss), None)


def table(summary: dict) -> list[str]:
    """Return a line of Markdown for each option."""
    lines = ["| option | compared with | loss, nats (95 % interval) | difference | steps to the reference's lowest loss, of each seed (its own) |"]
    lines += ["|---|---|---|---|---|"]
    for kind in LOSS:
        lines.append(f"| **{kind}** | | | | |")
        for row in (row for row in summary["rows"] if row["kind"] == kind):
            difference = _told(row, "difference", "+") if row["reference"] else "-"
            steps = f"{_steps(row['steps'])} ({_steps(row['reference_steps'])})" if row["reference"] else "-"
            lines.append(f"| {row['option']} | {row['reference'] or '-'} | {_told(row, 'loss')} | {difference} | {steps} |")
    return lines


def title(summary: dict) -> str:
    """Count the options whose difference is clear, and name them with their numbers."""
    compared = [row for row in summary["rows"] if row["reference"]]
    clear = [row for row in compared if len(summary["seeds"]) > 1 and np.prod(np.sign(row["difference_interval"])) > 0]
    named = "; ".join(f"{row['option']} {np.mean(row['difference']):+.3f}" for row in clear)
    counted = f"{len(clear)} of {len(compared)} options change the loss, by an interval over {len(summary['seeds'])} seeds that leaves out 0"
    return counted + (":\n" + textwrap.fill(named, 95) if clear else "")


def answer(summary: dict) -> str:
    """Return the title on one line."""
    return " ".join(title(summary).split())


def draw(summary: dict) -> Any:
    """Draw the difference of each option from its reference with its interval, a dash for each seed."""
    from matplotlib.figure import Figure

    rows = [row for row in summary["rows"] if row["reference"]][::-1]
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        low, high = row["difference_interval"]
        colour = marks.COLOURS[list(LOSS).index(row["kind"])]
        mean = float(np.mean(row["difference"]))
        axes.errorbar([mean], [place], xerr=[[mean - low], [high - mean]], fmt="os^"[list(LOSS).index(row["kind"])], color=colour, capsize=4, markersize=7)
        axes.plot(row["difference"], [place] * len(row["difference"]), "|", color="black", markersize=10)
    axes.axvline(0, color=marks.GREY, linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row['option']}\n(against {row['reference']})" for row in rows], fontsize=8)
    units = "circles: nats per pixel; squares and triangles: nats of the class"
    axes.set_xlabel(
        f"difference of the last validation loss ({units})\n95 % intervals of the mean over seeds, dashes are seeds; left of 0 is better", fontsize=9
    )
    axes.set_xscale("symlog", linthresh=0.01)
    ticks = [-0.1, -0.01, 0, 0.01, 0.1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(alpha=0.25, axis="x")
    axes.set_title(title(summary), fontsize=9)
    return figure


def _told(row: dict, name: str, sign: str = "") -> str:
    low, high = row[f"{name}_interval"]
    return f"{np.mean(row[name]):{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _steps(steps: list[int | None]) -> str:
    return ", ".join("never" if step is None else str(step) for step in steps)


FIGURE = sweep.Figure("training_options", summary, table, draw)


def _flags(flags):
    return {
        "seeds": flags.DEFINE_integer("seeds", 3, "number of runs with each option", lower_bound=1),
        "labels": flags.DEFINE_integer("labels", 288, "labelled images of the classifiers", lower_bound=1),
        "tune_steps": flags.DEFINE_integer("tune_steps", 100, "steps of the classifiers", lower_bound=1),
        "tune_rate": flags.DEFINE_float("tune_rate", 0.003, "learning rate of the classifiers", lower_bound=0),
    } | sweep.flags(flags)


if __name__ == "__main__":
    run_recipe(sweep_options, _flags, trains=True)
