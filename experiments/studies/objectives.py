"""Next-pixel against masked-pixel pretraining, and what fine-tuning adds to a probe (the paper's figure 4, sections 4.4 and 4.6).

    python -m experiments.studies.objectives --config=configs/fashion_mnist_14.py --workdir=runs/objectives --results=experiments/results

Pretrains the recipe once with each objective on all training images, without labels. A few labels of each class are then used in two ways. A linear probe is
fitted to every layer. Models are fine-tuned from the pretrained parameters and from random ones, with the paper's joint loss and with the classification
loss alone, with several seeds. All fine-tunings have the same budget, the same learning rate, and early stopping on the same held-out part of the labelled
images. Writes WORKDIR/objectives.json and objectives.png, and both to --results. The same command continues a stopped study; finished runs are not repeated.
"""

import json
import pathlib

import numpy as np

from experiments.report.provenance import provenance, typed
from experiments.report.summary import count_baselines
from experiments.studies import stages, sweep
from igpt_jax.cli import run_recipe
from igpt_jax.data import pipeline
from igpt_jax.finetune import finetune
from igpt_jax.probing.lbfgs_probe import choose_subset
from igpt_jax.quantize import quantize
from igpt_jax.training import checkpoints
from igpt_jax.training.evaluation import evaluate_checkpoint
from igpt_jax.types import PathLike, Recipe

OBJECTIVES = ("autoregressive", "bert")
STARTS = ("pretrained", "scratch")
LOSSES = {"joint": 1.0, "classification": 0.0}  # weight of the generative loss; that of the classification loss is 1
EVALUATE_EVERY = 40  # steps of fine-tuning
PATIENCE = 5  # evaluations without improvement before a fine-tuning stops


def compare(
    config: Recipe, workdir: PathLike, results: str | None = None, seeds: int = 3, labels_per_class: int = 200, test_images: int = 2_000,
    finetune_steps: int = 800,
) -> dict:  # fmt: skip
    """Run what is missing of the table and return it; `config` is the recipe of the pretraining."""
    workdir = pathlib.Path(workdir)
    classes = prepare(config, workdir, labels_per_class, test_images)
    quantize(_with_data(config, workdir, "all", palette=False), workdir)
    study = {"pretraining": {}, "probe": {}, "finetuning": []}
    for objective in OBJECTIVES:
        home = workdir / objective
        study["pretraining"][objective] = pretrain(_with_data(config, workdir, "all", objective), home)
        labelled = pipeline.DataConfig(**_with_data(config, workdir, "labelled").data)
        study["probe"][objective] = stages.probe_layers(home, labelled, home / "probe")
        for start in STARTS:
            for loss, weight in LOSSES.items():
                for seed in range(config.seed, config.seed + seeds):
                    recipe = finetuning(_with_data(config, workdir, "labelled", objective), classes, weight, finetune_steps, seed)
                    row = {"objective": objective, "start": start, "loss": loss, "seed": seed}
                    place = workdir / f"{objective}-{start}-{loss}-{seed}"
                    study["finetuning"].append(row | classify(recipe, place, home if start == "pretrained" else None))
    study |= {"labels_per_class": labels_per_class, "test_images": test_images, "finetuning_recipe": finetuning_facts(recipe), "recipe": config.to_dict()}
    study |= {"summary": summary(study), "bert_votes": votes(study)} | provenance(typed("studies.objectives"))
    for folder in filter(None, (workdir, results and pathlib.Path(results))):
        (folder / "objectives.json").write_text(json.dumps(study, indent=1, default=str) + "\n")
        draw(study, folder / "objectives.png")
    print("\n".join(table(study)))
    return study


def prepare(config: Recipe, workdir: pathlib.Path, labels_per_class: int, test_images: int) -> int:
    """Write WORKDIR/images/{all,labelled}/{train,test}.npz once: all training images, and `labels_per_class` of each class. Return the number of classes."""
    data_config = pipeline.DataConfig(**config.data)
    sets = {part: pipeline.open_dataset(data_config, split) for part, split in (("train", "all_train"), ("test", "test"))}
    labels = np.asarray(sets["train"].labels)
    classes = int(labels.max()) + 1
    few = np.sort(choose_subset(labels, classes, labels_per_class, config.seed))
    if (workdir / "images" / "labelled" / "test.npz").exists():  # the last file to be written
        return classes
    images = {part: dataset.images(0, len(dataset) if part == "train" else test_images) for part, dataset in sets.items()}
    for name, rows in (("all", np.arange(len(labels))), ("labelled", few)):
        folder = workdir / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "train.npz", images=images["train"][rows], labels=labels[rows])
        np.savez(folder / "test.npz", images=images["test"], labels=np.asarray(sets["test"].labels)[: len(images["test"])])
    return classes


def pretrain(recipe: Recipe, home: pathlib.Path) -> dict:
    """Pretrain a recipe; return the loss on the test images and the two baselines that count colours."""
    stages.pretrain(recipe, home)
    pretrained = checkpoints.load(home)
    train, test = (pipeline.open_dataset(pipeline.DataConfig(**recipe.data), split) for split in ("train", "test"))
    codes = [dataset.codes(np.arange(len(dataset)), pretrained.palette) for dataset in (train, test)]
    return evaluate_checkpoint(home) | {"baselines": count_baselines(*codes, pretrained.palette.size, pretrained.palette.tokens_per_pixel)}


def finetuning(recipe: Recipe, classes: int, generative: float, steps: int, seed: int) -> Recipe:
    """Change a recipe to that of one fine-tuning: a third of the learning rate, constant; the best model by validation accuracy is saved."""
    recipe.model.classes, recipe.seed, recipe.steps = classes, seed, steps
    recipe.loss.generative, recipe.loss.classification = generative, 1.0
    recipe.optim.learning_rate, recipe.optim.schedule = recipe.optim.learning_rate / 3, "constant"
    recipe.optim.warmup_steps, recipe.optim.steps = 0, steps
    recipe.eval_every, recipe.eval_images, recipe.save_every = EVALUATE_EVERY, 0, steps
    recipe.best.metric, recipe.best.patience = "accuracy", PATIENCE
    return recipe


def finetuning_facts(recipe: Recipe) -> dict:
    """Return what all fine-tunings have in common."""
    facts = {"steps": recipe.steps, "batch_size": recipe.batch_size, "learning_rate": recipe.optim.learning_rate}
    return facts | {"evaluated_every": EVALUATE_EVERY, "patience": PATIENCE}


def classify(recipe: Recipe, place: pathlib.Path, pretrained: pathlib.Path | None) -> dict:
    """Fine-tune, and measure the best model on the test images; `pretrained` None: from random parameters."""
    if not (place / "result.json").exists():
        finetune(recipe, place, pretrained and str(pretrained))
    test = evaluate_checkpoint(place / "best")
    names = ("accuracy", "accuracy_one_mask", "class_nats", "nats_per_pixel", "step")
    return {name: test[name] for name in names if name in test} | {"validation": json.loads((place / "result.json").read_text())["best"]}


def _with_data(config, workdir, name, objective="autoregressive", palette=True):
    """Return a copy of the recipe that reads WORKDIR/images/NAME."""
    recipe = config.copy_and_resolve_references()
    recipe.data.source, recipe.model.objective = f"npz:{workdir}/images/{name}", objective
    recipe.palette.path = str(workdir / "palette.npy") if palette else ""
    return recipe


def summary(study: dict) -> list[dict]:
    """Return mean and deviation of the test accuracies of each kind of fine-tuning, for bert also the mean with one mask; accuracies from 0 to 1."""
    rows = []
    for (objective, start, loss), values in gather(study).items():
        runs = [row for row in study["finetuning"] if (row["objective"], row["start"], row["loss"]) == (objective, start, loss)]
        one_mask = {"mean_one_mask": float(np.mean([row["accuracy_one_mask"] for row in runs]))} if objective == "bert" else {}
        deviation = sweep.deviation(values)
        rows.append({"objective": objective, "start": start, "loss": loss, "seeds": len(values), "mean": float(np.mean(values)), "std": deviation} | one_mask)
    return rows


def votes(study: dict) -> dict:
    """Return the mean test accuracy of the fine-tuned bert models with one mask, and by the vote of 5 masks."""
    rows = [row for row in study["finetuning"] if row["objective"] == "bert"]
    return {"mean_one_mask": float(np.mean([row["accuracy_one_mask"] for row in rows])), "mean_vote_of_5": float(np.mean([row["accuracy"] for row in rows]))}


def gather(study: dict) -> dict[tuple[str, str, str], list[float]]:
    """Return (objective, start, loss) -> test accuracies over seeds."""
    accuracies: dict = {}
    for row in study["finetuning"]:
        accuracies.setdefault((row["objective"], row["start"], row["loss"]), []).append(row["accuracy"])
    return accuracies


def table(study: dict) -> list[str]:
    """Return the comparison as lines of Markdown."""
    lines = ["| objective | what | test accuracy, % |", "|---|---|---|"]
    for objective in OBJECTIVES:
        best = study["probe"][objective]["best"]
        lines.append(f"| {objective} | linear probe, best layer by validation ({best['layer']}) | {100 * best['test']:.1f} |")
        for row in summary(study):
            if row["objective"] == objective:
                name = f"fine-tuned, {row['start']}, {row['loss']} loss, {row['seeds']} seeds"
                one_mask = f" (one mask: {100 * row['mean_one_mask']:.1f})" if "mean_one_mask" in row else ""
                lines.append(f"| {objective} | {name} | {100 * row['mean']:.1f} +- {100 * row['std']:.1f}{one_mask} |")
    for objective, measured in study["pretraining"].items():
        counts = measured["baselines"]["per_position"]
        lines.append(f"{objective}: test loss {measured['nats_per_pixel']:.3f} nats per pixel, per-position baseline {counts:.3f}")
    one_mask, vote = votes(study).values()
    lines.append(f"bert, mean of all fine-tuned models: {100 * one_mask:.2f} % with one mask, {100 * vote:.2f} % by the vote of 5 masks")
    return lines


def draw(study: dict, path: pathlib.Path) -> None:
    """Draw the paper's figure 4: bars of probe and fine-tuning for each objective; every seed is a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    colours = {"autoregressive": "#08519c", "bert": "#d95f02"}
    accuracies = gather(study)
    names = ["linear probe"] + [f"{start},\n{loss} loss" for start in STARTS for loss in LOSSES]
    for number, objective in enumerate(OBJECTIVES):
        columns = [[study["probe"][objective]["best"]["test"]]] + [accuracies[objective, start, loss] for start in STARTS for loss in LOSSES]
        places = np.arange(len(columns)) + 0.36 * (number - 0.5)
        means = [100 * np.mean(column) for column in columns]
        axes.bar(places, means, 0.34, color=colours[objective], alpha=0.55, label=objective)
        for place, column, mean in zip(places, columns, means, strict=True):
            axes.plot([place] * len(column), 100 * np.asarray(column), "o", color=colours[objective], markersize=4)
            axes.annotate(f"{mean:.1f}", (place, 100 * max(column)), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    values = [100 * value for column in accuracies.values() for value in column] + [100 * study["probe"][name]["best"]["test"] for name in OBJECTIVES]
    axes.set_ylim(max(0, min(values) - 8), min(100, max(values) + 4))
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="test accuracy, %", title=f"{study['labels_per_class']} labels of each class: probe and fine-tuning (axis does not start at 0)")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=150)


def _flags(flags):
    return {
        "results": flags.DEFINE_string("results", None, "also write objectives.json and objectives.png to this folder"),
        "seeds": flags.DEFINE_integer("seeds", 3, "number of fine-tunings of each kind", lower_bound=1),
        "labels_per_class": flags.DEFINE_integer("labels_per_class", 200, "labelled training images of each class", lower_bound=1),
        "test_images": flags.DEFINE_integer("test_images", 2_000, "maximum number of test images", lower_bound=1),
        "finetune_steps": flags.DEFINE_integer("finetune_steps", 800, "maximum number of steps of a fine-tuning", lower_bound=1),
    }


if __name__ == "__main__":
    run_recipe(compare, _flags, trains=True)
