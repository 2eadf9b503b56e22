"""Next-pixel against masked-pixel pretraining, and what fine-tuning adds to a probe (the paper's figure 4, sections 4.4 and 4.6), with seeds.

    python -m experiments.studies.objectives --config=configs/fashion_mnist_14.py --workdir=runs/objectives --results=experiments/results

Pretrains the recipe once with each objective on all training images, without labels. Then, with a few labels of each class: a linear probe of every layer;
fine-tuning from the pretrained parameters and from random ones, each with the paper's joint loss and with the classification loss alone, under several
seeds, every run with the same budget, learning rate and early stopping on the same held-out share of the labelled images. Writes WORKDIR/objectives.json and
objectives.png, and both to --results. Started again, it goes on where it stopped; what is finished is kept.
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

OBJECTIVES = ("autoregressive", "bert")
STARTS = ("pretrained", "scratch")
LOSSES = {"joint": 1.0, "classification": 0.0}  # weight of the generative loss beside the classification loss
EVALUATE_EVERY = 40  # steps of fine-tuning
PATIENCE = 5  # evaluations without a better one


def compare(config, workdir, results=None, seeds=3, labels_per_class=200, test_images=2_000, finetune_steps=800) -> dict:
    """Run what is missing of the table and return it; `config` is the recipe of the pretraining."""
    workdir = pathlib.Path(workdir)
    classes = prepare(config, workdir, labels_per_class, test_images)
    quantize(_with_data(config, workdir, "all", palette=False), workdir)
    found = {"pretraining": {}, "probe": {}, "finetuning": []}
    for objective in OBJECTIVES:
        home = workdir / objective
        found["pretraining"][objective] = pretrain(_with_data(config, workdir, "all", objective), home)
        labelled = pipeline.DataConfig(**_with_data(config, workdir, "labelled").data)
        found["probe"][objective] = stages.probe_layers(home, labelled, home / "probe")
        for start in STARTS:
            for loss, weight in LOSSES.items():
                for seed in range(config.seed, config.seed + seeds):
                    recipe = finetuning(_with_data(config, workdir, "labelled", objective), classes, weight, finetune_steps, seed)
                    row = {"objective": objective, "start": start, "loss": loss, "seed": seed}
                    place = workdir / f"{objective}-{start}-{loss}-{seed}"
                    found["finetuning"].append(row | classify(recipe, place, home if start == "pretrained" else None))
    found |= {"labels_per_class": labels_per_class, "test_images": test_images, "finetuning_recipe": finetuning_facts(recipe), "recipe": config.to_dict()}
    found |= {"summary": summary(found), "bert_votes": votes(found)} | provenance(typed("objectives"))
    for folder in filter(None, (workdir, results and pathlib.Path(results))):
        (folder / "objectives.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
        draw(found, folder / "objectives.png")
    print("\n".join(table(found)))
    return found


def prepare(config, workdir, labels_per_class, test_images) -> int:
    """Write WORKDIR/images/{all,labelled}/{train,test}.npz once: all training images, and so many of each class; returns the number of classes."""
    data_config = pipeline.DataConfig(**config.data)
    sets = {part: pipeline.open_dataset(data_config, split) for part, split in (("train", "all_train"), ("test", "test"))}
    labels = np.asarray(sets["train"].labels)
    classes = int(labels.max()) + 1
    few = np.sort(choose_subset(labels, classes, labels_per_class, config.seed))
    if (workdir / "images" / "labelled" / "test.npz").exists():  # the last that is written
        return classes
    images = {part: dataset.images(0, len(dataset) if part == "train" else test_images) for part, dataset in sets.items()}
    for name, rows in (("all", np.arange(len(labels))), ("labelled", few)):
        folder = workdir / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "train.npz", images=images["train"][rows], labels=labels[rows])
        np.savez(folder / "test.npz", images=images["test"], labels=np.asarray(sets["test"].labels)[: len(images["test"])])
    return classes


def pretrain(recipe, home) -> dict:
    """Pretrain, and measure the loss on the test images beside that of two models that only count colours."""
    stages.pretrain(recipe, home)
    pretrained = checkpoints.load(home)
    train, test = (pipeline.open_dataset(pipeline.DataConfig(**recipe.data), split) for split in ("train", "test"))
    codes = [dataset.codes(np.arange(len(dataset)), pretrained.palette) for dataset in (train, test)]
    return evaluate_checkpoint(home) | {"baselines": count_baselines(*codes, pretrained.palette.size, pretrained.palette.tokens_per_pixel)}


def finetuning(recipe, classes, generative, steps, seed):
    """The recipe of one fine-tuning: a third of the pretraining's learning rate, constant; the best by validation accuracy is kept."""
    recipe.model.classes, recipe.seed, recipe.steps = classes, seed, steps
    recipe.loss.generative, recipe.loss.classification = generative, 1.0
    recipe.optim.learning_rate, recipe.optim.schedule = recipe.optim.learning_rate / 3, "constant"
    recipe.optim.warmup_steps, recipe.optim.steps = 0, steps
    recipe.eval_every, recipe.eval_images, recipe.save_every = EVALUATE_EVERY, 0, steps
    recipe.best.metric, recipe.best.patience = "accuracy", PATIENCE
    return recipe


def finetuning_facts(recipe) -> dict:
    """What all fine-tunings have in common."""
    facts = {"steps": recipe.steps, "batch_size": recipe.batch_size, "learning_rate": recipe.optim.learning_rate}
    return facts | {"evaluated_every": EVALUATE_EVERY, "patience": PATIENCE}


def classify(recipe, place, pretrained) -> dict:
    """Fine-tune, and measure the best model on the test images."""
    if not (place / "result.json").exists():
        finetune(recipe, place, pretrained and str(pretrained))
    test = evaluate_checkpoint(place / "best")
    kept = ("accuracy", "accuracy_one_mask", "class_nats", "nats_per_pixel", "step")
    return {name: test[name] for name in kept if name in test} | {"validation": json.loads((place / "result.json").read_text())["best"]}


def _with_data(config, workdir, name, objective="autoregressive", palette=True):
    """A copy of the recipe that reads WORKDIR/images/NAME."""
    recipe = config.copy_and_resolve_references()
    recipe.data.source, recipe.model.objective = f"npz:{workdir}/images/{name}", objective
    recipe.palette.path = str(workdir / "palette.npy") if palette else ""
    return recipe


def summary(found) -> list[dict]:
    """For each kind of fine-tuning the mean and deviation of its test accuracies, and for bert the mean with one mask; shares, not percent."""
    rows = []
    for (objective, start, loss), values in gather(found).items():
        mine = [row for row in found["finetuning"] if (row["objective"], row["start"], row["loss"]) == (objective, start, loss)]
        one = {"mean_one_mask": float(np.mean([row["accuracy_one_mask"] for row in mine]))} if objective == "bert" else {}
        deviation = sweep.deviation(values)
        rows.append({"objective": objective, "start": start, "loss": loss, "seeds": len(values), "mean": float(np.mean(values)), "std": deviation} | one)
    return rows


def votes(found) -> dict:
    """Mean test accuracy of the fine-tuned bert models with one mask, and by the vote of 5."""
    rows = [row for row in found["finetuning"] if row["objective"] == "bert"]
    return {"mean_one_mask": float(np.mean([row["accuracy_one_mask"] for row in rows])), "mean_vote_of_5": float(np.mean([row["accuracy"] for row in rows]))}


def gather(found) -> dict:
    """(objective, start, loss) -> test accuracies over seeds."""
    accuracies: dict = {}
    for row in found["finetuning"]:
        accuracies.setdefault((row["objective"], row["start"], row["loss"]), []).append(row["accuracy"])
    return accuracies


def table(found) -> list[str]:
    """The comparison as lines of Markdown."""
    lines = ["| objective | what | test accuracy, % |", "|---|---|---|"]
    for objective in OBJECTIVES:
        best = found["probe"][objective]["best"]
        lines.append(f"| {objective} | linear probe, best layer by validation ({best['layer']}) | {100 * best['test']:.1f} |")
        for row in summary(found):
            if row["objective"] == objective:
                name = f"fine-tuned, {row['start']}, {row['loss']} loss, {row['seeds']} seeds"
                one = f" (one mask: {100 * row['mean_one_mask']:.1f})" if "mean_one_mask" in row else ""
                lines.append(f"| {objective} | {name} | {100 * row['mean']:.1f} +- {100 * row['std']:.1f}{one} |")
    for objective, measured in found["pretraining"].items():
        counts = measured["baselines"]["per_position"]
        lines.append(f"{objective}: test loss {measured['nats_per_pixel']:.3f} nats per pixel, per-position baseline {counts:.3f}")
    one, five = votes(found).values()
    lines.append(f"bert, mean of all fine-tuned models: {100 * one:.2f} % with one mask, {100 * five:.2f} % by the vote of 5 masks")
    return lines


def draw(found, path) -> None:
    """The paper's figure 4: probe and fine-tuning beside each other for each objective; every seed a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.4), layout="constrained")
    colours = {"autoregressive": "#08519c", "bert": "#d95f02"}
    accuracies = gather(found)
    names = ["linear probe"] + [f"{start},\n{loss} loss" for start in STARTS for loss in LOSSES]
    for side, objective in enumerate(OBJECTIVES):
        columns = [[found["probe"][objective]["best"]["test"]]] + [accuracies[objective, start, loss] for start in STARTS for loss in LOSSES]
        places = np.arange(len(columns)) + 0.36 * (side - 0.5)
        means = [100 * np.mean(column) for column in columns]
        axes.bar(places, means, 0.34, color=colours[objective], alpha=0.55, label=objective)
        for place, column, mean in zip(places, columns, means, strict=True):
            axes.plot([place] * len(column), 100 * np.asarray(column), "o", color=colours[objective], markersize=4)
            axes.annotate(f"{mean:.1f}", (place, 100 * max(column)), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    values = [100 * value for column in accuracies.values() for value in column] + [100 * found["probe"][name]["best"]["test"] for name in OBJECTIVES]
    axes.set_ylim(max(0, min(values) - 8), min(100, max(values) + 4))
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="test accuracy, %", title=f"{found['labels_per_class']} labels of each class: probe and fine-tuning (axis does not start at 0)")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _flags(flags):
    return {
        "results": flags.DEFINE_string("results", None, "also write objectives.json and objectives.png to this folder"),
        "seeds": flags.DEFINE_integer("seeds", 3, "fine-tunings of each kind", lower_bound=1),
        "labels_per_class": flags.DEFINE_integer("labels_per_class", 200, "labelled training images of each class", lower_bound=1),
        "test_images": flags.DEFINE_integer("test_images", 2_000, "test images, at most", lower_bound=1),
        "finetune_steps": flags.DEFINE_integer("finetune_steps", 800, "steps of a fine-tuning, at most", lower_bound=1),
    }


if __name__ == "__main__":
    run_recipe(compare, _flags, trains=True)
