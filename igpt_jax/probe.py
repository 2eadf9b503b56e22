"""Linear probes of every layer: `python -m igpt_jax.probe --features=runs/digits/features [--out=runs/digits]`.

Reads the folder that igpt_jax.features wrote (its docstring describes it). Fits a multinomial logistic regression on each layer by L-BFGS,
chooses the regularisation on the validation split, fits again on training and validation images with it, and tests (paper 2.6).
Writes probe.json and accuracy_by_layer.png. `--concatenate=5` adds a probe of the 5 layers around the best one,
`--labels-per-class=4,25,400` the low-data protocol.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from igpt_jax import data
from igpt_jax.cli import USER_ERRORS
from igpt_jax.logistic import ITERATIONS, TOLERANCE, accuracy, fit_logistic

# C of scikit-learn: sum of cross entropies + |weights|^2 / 2C. On standardised features 1e-4 lets each class barely depart from its mean,
# 100 hardly restrains at all; decades between them are finer than what a decade changes in accuracy.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
HOLD_OUT = 0.1  # of the training images, where there is no validation split
SUBSET_SEED = 0


# ---- the files of igpt_jax.features ----


def read_description(directory) -> dict:
    """What features.json says; FileNotFoundError in one line where it, labels or parts are missing or truncated."""
    directory = pathlib.Path(directory)
    again = f"python -m igpt_jax.features --checkpoint=CHECKPOINT --out={directory}"
    if not (directory / "features.json").exists():
        raise FileNotFoundError(f"{directory} holds no features.json: write the features first, {again}")
    description = json.loads((directory / "features.json").read_text())
    again = again.replace("CHECKPOINT", description["checkpoint"])
    missing = []
    for split, count in description["counts"].items():
        parts = -(-count // description["images_per_part"])
        paths = [directory / split / "labels.npy"] + [directory / split / f"part-{number:05d}.npy" for number in range(parts)]
        missing += [f"{split}/{path.name}" for path in paths if not _is_readable(path)]
    if missing:
        some = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise FileNotFoundError(f"{directory} is incomplete, {len(missing)} files missing or cut off ({some}): finish with {again}")
    return description


def read_layer(directory, split, layer) -> np.ndarray:
    """Features of one layer, float32 [N, D]; only that layer's part of the files is read."""
    parts = sorted((pathlib.Path(directory) / split).glob("part-*.npy"))
    return np.concatenate([np.asarray(np.load(part, mmap_mode="r")[layer], np.float32) for part in parts])


def _is_readable(path):
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


# ---- the protocol ----


class Sample(NamedTuple):
    """Images of a probe: features float32 [L, B, D] and labels int [B]."""

    features: np.ndarray
    labels: np.ndarray


def probe(training, validation, test, classes, strengths=STRENGTHS, refit=True) -> list[dict]:
    """Probe L sets of standardised features: for each its strength, `converged`, and accuracy train, validation, test (or None).

    The strength is the best on the validation images, of equals the one that regularises most. Training and validation accuracy are of the
    fit on training images alone, test accuracy is of the one on training and validation images (`refit=False`: of the first).
    """
    layers, _, width = training.features.shape
    strengths = np.sort(np.asarray(strengths, np.float32))
    start = np.zeros((layers, len(strengths), classes, width + 1), np.float32)
    fit = fit_logistic(training.features, _rows(training), start, np.tile(strengths, (layers, 1)))
    scores_LR = np.asarray(accuracy(fit.weights, validation.features, _rows(validation)))
    best_L = scores_LR.argmax(axis=1)  # the first of equals
    chosen = fit.weights[np.arange(layers), best_L][:, None]
    trained_L = np.asarray(accuracy(chosen, training.features, _rows(training)))[:, 0]
    converged_L = np.asarray(fit.converged)[np.arange(layers), best_L]
    if refit:
        features = np.concatenate([training.features, validation.features], axis=1)
        both = Sample(features, np.concatenate([training.labels, validation.labels]))
        second = fit_logistic(both.features, _rows(both), chosen, strengths[best_L][:, None])
        chosen, converged_L = second.weights, converged_L & np.asarray(second.converged)[:, 0]
    tested_L = [None] * layers if test is None else np.asarray(accuracy(chosen, test.features, _rows(test)))[:, 0].tolist()
    columns = zip(strengths[best_L], trained_L, scores_LR.max(axis=1), tested_L, converged_L, strict=True)
    return [
        dict(strength=float(f"{strength:.6g}"), converged=bool(done), train=float(trained), validation=float(validated), test=tested)
        for strength, trained, validated, tested, done in columns
    ]


def standardise(training, *others):
    """Samples minus the training images' mean, divided by their deviation (1 for a constant feature)."""
    mean = training.features.mean(axis=1, keepdims=True, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("the features are not finite: write them again with --dtype=float32")
    centred = training.features - mean.astype(np.float32)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True, dtype=np.float64))
    deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1)
    shift, scale = mean.astype(np.float32), (1 / deviation).astype(np.float32)
    scaled = [sample and Sample((sample.features - shift) * scale, sample.labels) for sample in others]
    return Sample(centred * scale, training.labels), *scaled


def _rows(sample):
    return np.broadcast_to(sample.labels, sample.features.shape[:2])


class Images:
    """Which images are for training, validation and test, their labels, and how many classes there are."""

    def __init__(self, directory, description, seed=SUBSET_SEED):
        """Raises ValueError in one line where the labels allow no probe."""
        self.description, counts = description, description["counts"]
        stored = {split: np.load(pathlib.Path(directory) / split / "labels.npy") for split in counts}
        if "train" not in stored:
            again = f"python -m igpt_jax.features --checkpoint={description['checkpoint']} --out={directory} --splits=train"
            raise ValueError(f"{directory} has no train split, only {', '.join(stored)}: add it with {again}")
        self.classes = _check_labels(stored, description["class_names"])
        self.rows = {split: (split, np.arange(len(labels))) for split, labels in stored.items() if len(labels)}
        self.chosen_on = "the validation split"
        if "validation" not in self.rows:
            order = np.random.default_rng(seed).permutation(counts["train"])
            held_out = max(1, round(HOLD_OUT * len(order)))
            self.rows |= {"train": ("train", np.sort(order[held_out:])), "validation": ("train", np.sort(order[:held_out]))}
            self.chosen_on = f"{held_out} training images held out (seed {seed}), there being no validation split"
        self.labels = {part: stored[split][rows] for part, (split, rows) in self.rows.items()}

    def samples(self, read):
        """Samples of training, validation and test (None without one); `read(split)` returns a split's features [L, N, D]."""
        features = {split: read(split) for split in {split for split, _ in self.rows.values()}}
        whole = {part: len(rows) == features[split].shape[1] for part, (split, rows) in self.rows.items()}
        parts = {part: features[split] if whole[part] else features[split][:, rows] for part, (split, rows) in self.rows.items()}
        return [Sample(parts[part], self.labels[part]) if part in parts else None for part in ("train", "validation", "test")]


def probe_layers(directory, images, layers, strengths, at_once) -> list[dict]:
    """A row for each layer, `at_once` of them side by side on the device."""
    rows = []
    with tqdm(total=len(layers), desc="layers", disable=not sys.stderr.isatty()) as bar:
        for first in range(0, len(layers), at_once):
            some = layers[first : first + at_once]
            samples = images.samples(lambda split, some=some: np.stack([read_layer(directory, split, layer) for layer in some]))
            results = probe(*standardise(*samples), images.classes, strengths)
            rows += [{"layer": layer} | result for layer, result in zip(some, results, strict=True)]
            bar.update(len(some))
    return rows


def probe_concatenated(directory, images, layers, strengths) -> dict:
    """One probe of the features of several layers side by side (paper 4.3)."""
    samples = images.samples(lambda split: np.concatenate([read_layer(directory, split, layer) for layer in layers], axis=1)[None])
    return {"layers": list(layers)} | probe(*standardise(*samples), images.classes, strengths)[0]


def probe_pixels(images, strengths) -> dict:
    """The same probe of the pixels themselves, scaled to 0..1."""
    config = data.DataConfig(**images.description["data"])

    def read(split):
        dataset = data.open_dataset(config, split)
        pixels = dataset.images(0, len(dataset))
        if len(pixels) != images.description["counts"][split]:
            counted = images.description["counts"][split]
            raise ValueError(f"{config.source} has {len(pixels)} {split} images, its features {counted}: write those again")
        return pixels.reshape(1, len(pixels), -1).astype(np.float32) / 255

    return probe(*standardise(*images.samples(read)), images.classes, strengths)[0]


def probe_low_data(directory, images, layer, strengths, labels_per_class, subsets, seed=SUBSET_SEED) -> list[dict]:
    """Accuracy on the test images from few labels of each class: mean and deviation over seeded subsets (paper 4.5).

    Features are standardised by all training images, which takes no labels; the strength is chosen on the validation images, which are not
    fitted.
    """
    training, validation, test = standardise(*images.samples(lambda split: read_layer(directory, split, layer)[None]))
    rows = []
    for size in labels_per_class:
        accuracies = []
        for subset in range(subsets):
            chosen = choose_subset(training.labels, images.classes, size, (seed, size, subset))
            few = Sample(training.features[:, chosen], training.labels[chosen])
            accuracies.append(probe(few, validation, test, images.classes, strengths, refit=False)[0]["test"])
        mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=min(1, subsets - 1)))
        rows.append({"labels_per_class": size, "layer": layer, "test": accuracies, "mean": mean, "std": deviation})
    return rows


def choose_subset(labels, classes, size, seed) -> np.ndarray:
    """Rows of `size` random images of each class; ValueError where a class has fewer."""
    generator, rows = np.random.default_rng(seed), []
    for label in range(classes):
        mine = np.flatnonzero(labels == label)
        if len(mine) < size:
            raise ValueError(f"class {label} has {len(mine)} training images, fewer than --labels-per-class={size}")
        rows.append(generator.choice(mine, size, replace=False))
    return np.concatenate(rows)


def _check_labels(stored, class_names):
    """The number of classes."""
    for split, labels in stored.items():
        if unlabelled := int((labels < 0).sum()):
            raise ValueError(f"{unlabelled} of {len(labels)} {split} images have no label: a linear probe needs labelled images")
    largest = max(int(labels.max(initial=0)) for labels in stored.values())
    if class_names and largest >= len(class_names):
        raise ValueError(f"label {largest} is outside the {len(class_names)} classes of features.json: write the features again")
    if len(np.unique(stored["train"])) < 2:
        raise ValueError(f"all {len(stored['train'])} training images are of one class: there is nothing to tell apart")
    return len(class_names) or largest + 1


def draw(result, path):
    """The figure: accuracy against layer, as the paper's figure 2."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    layers = [row["layer"] for row in result["layers"]]
    dark, light = "#08519c", "#9ecae1"  # one hue in two lightnesses, told apart without colour
    axes.plot(layers, [100 * row["validation"] for row in result["layers"]], "s--", color=light, markersize=4, label="validation")
    shown = "test" if result["best"]["test"] is not None else "validation"
    if shown == "test":
        axes.plot(layers, [100 * row["test"] for row in result["layers"]], "o-", color=dark, markersize=5, label="test")
    best = result["best"]
    place, marked = (best["layer"], 100 * best[shown]), f"best layer by validation: {best['layer']}"
    axes.plot(*place, "o", color="none", markeredgecolor="black", markersize=12, label=marked)
    side = -1 if best["layer"] == layers[-1] and len(layers) > 1 else 1  # beside the mark, on the side where there is room
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
    axes.annotate(f"{place[1]:.1f} %", place, (12 * side, 4), textcoords="offset points", ha="left" if side == 1 else "right", bbox=box)
    if result["raw_pixels"]:
        level = 100 * result["raw_pixels"][shown]
        axes.axhline(level, color="#d95f02", linestyle=":", linewidth=1.8, label=f"raw pixels: {level:.1f} %")
    axes.set(xlabel=f"layer (of {result['model']['layers']})", ylabel="accuracy, %", title=_title(result))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _title(result):
    model = result["model"]
    size = f"{model['parameters'] / 1e6:.3g}M" if model["parameters"] >= 1e6 else f"{model['parameters'] / 1e3:.3g}k"
    return f"Linear probe of {result['data']['source']}: {model['layers']} layers, width {model['width']} ({size} parameters)"


# ---- the program ----


def run(arguments) -> dict:
    """All that the command line asks for; writes probe.json and the figure and returns what is in probe.json."""
    started = time.monotonic()
    directory = pathlib.Path(arguments.features)
    out = pathlib.Path(arguments.out or directory)
    description = read_description(directory)
    layers = _layers(arguments.layers, description["layers"])
    window = _window(arguments.concatenate, description["layers"])
    images = Images(directory, description)
    at_once = _at_once(arguments, description, images)
    _check_subsets(arguments, images)
    rows = probe_layers(directory, images, layers, arguments.strengths, at_once)
    best = max(rows, key=lambda row: row["validation"])  # the first of equals
    result = {
        "features": str(directory),
        **{key: description[key] for key in ("checkpoint", "step", "kind", "data", "counts")},
        "model": {key: description[key] for key in ("layers", "width", "parameters")},
        "classes": images.classes,
        "strengths": list(arguments.strengths),
        "strength_chosen_on": images.chosen_on,
        "layers": rows,
        "best": best,
        "last": rows[-1],
        "raw_pixels": probe_pixels(images, arguments.strengths) if arguments.raw_pixels else None,
    }
    if arguments.concatenate:
        result["concatenated"] = probe_concatenated(directory, images, window(best["layer"]), arguments.strengths)
    if arguments.labels_per_class:
        few = probe_low_data(directory, images, best["layer"], arguments.strengths, arguments.labels_per_class, arguments.subsets)
        result["low_data"] = few
    result |= {"seconds": round(time.monotonic() - started, 2), "device": jax.devices()[0].device_kind}
    out.mkdir(parents=True, exist_ok=True)
    (out / "probe.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, out / "accuracy_by_layer.png")
    return result


def _layers(text, last):
    if text == "all":
        return list(range(last + 1))
    if not all(part.isdigit() and int(part) <= last for part in text.split(",")):
        raise ValueError(f"--layers={text} is neither all nor a list of layers from 0 to {last}")
    return sorted({int(part) for part in text.split(",")})


def _window(size, last):
    """A function from the best layer to the `size` layers around it, moved inwards at the ends."""
    if size and not 2 <= size <= last + 1:
        raise ValueError(f"--concatenate={size} must be from 2 to the {last + 1} layers there are")
    return lambda best: list(range(first := min(max(best - size // 2, 0), last + 1 - size), first + size))


def _at_once(arguments, description, images):
    """How many layers fit into --memory side by side; ValueError where the widest probe does not fit alone."""
    counts = sum(len(labels) for labels in images.labels.values())
    width, logits = description["width"], len(arguments.strengths) * images.classes * counts
    widths = {"a layer": width, f"--concatenate={arguments.concatenate}": width * arguments.concatenate}
    if arguments.raw_pixels:
        widths["raw pixels (--no-raw-pixels leaves them out)"] = 3 * description["data"]["image_size"] ** 2
    sizes = {name: 4 * (4 * counts * wide + 6 * logits + wide * wide) for name, wide in widths.items()}  # bytes: features, logits, axes
    name, size = max(sizes.items(), key=lambda item: item[1])
    if size > arguments.memory * 2**30:
        gib = f"{size / 2**30:.1f}"
        more = f"more than --memory={arguments.memory:g}"
        raise ValueError(f"the probe of {name} needs about {gib} GiB, {more}: raise that, or give fewer --strengths")
    return max(1, int(arguments.memory * 2**30 // sizes["a layer"]))


def _check_subsets(arguments, images):
    if arguments.labels_per_class and ("test" not in images.labels or arguments.subsets < 1):
        raise ValueError(f"--labels-per-class needs a test split and --subsets of at least 1, here {arguments.subsets}")
    for size in arguments.labels_per_class:
        choose_subset(images.labels["train"], images.classes, size, 0)


def _strengths(text):
    values = sorted({float(part) for part in text.split(",")})
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError
    return values


def _sizes(text):
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def _parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m igpt_jax.probe", description=__doc__.split("\n")[0])
    parser.add_argument("--features", required=True, help="folder that igpt_jax.features wrote")
    parser.add_argument("--out", help="folder for probe.json and accuracy_by_layer.png; default: the features' folder")
    parser.add_argument("--layers", default="all", help="all, or a list like 0,4,8")
    parser.add_argument("--strengths", type=_strengths, default=list(STRENGTHS), help="values of C to choose from, a list")
    parser.add_argument("--raw-pixels", action=argparse.BooleanOptionalAction, default=True, help="probe the pixels too, for comparison")
    parser.add_argument("--concatenate", type=int, default=0, metavar="N", help="also probe N layers around the best as one; the paper: 5")
    parser.add_argument("--labels-per-class", type=_sizes, default=[], help="also probe from so few labels, a list; the paper: 4,25,400")
    parser.add_argument("--subsets", type=int, default=5, help="random subsets for each of --labels-per-class")
    parser.add_argument("--memory", type=float, default=8, help="GiB that the fits may take: how many layers run side by side")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    """Run the program; returns its exit code."""
    arguments = _parse(arguments)
    try:
        result = run(arguments)
    except USER_ERRORS as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    print("\n".join(_report(result, arguments.out or arguments.features)))
    return 0


def _report(result, out):
    yield "layer       C   train  validation    test"
    named = [("pixels", result["raw_pixels"])] if result["raw_pixels"] else []
    for name, row in [(row["layer"], row) for row in result["layers"]] + named:
        yield f"{name:>5} {row['strength']:>7g} {_percent(row['train']):>7} {_percent(row['validation']):>11} {_percent(row['test']):>7}"
    best, last = result["best"], result["last"]
    yield f"best layer by validation: {best['layer']}, test {_percent(best['test'])}; layer {last['layer']}: {_percent(last['test'])}"
    if "concatenated" in result:
        joined = result["concatenated"]
        yield f"layers {joined['layers'][0]} to {joined['layers'][-1]} concatenated: test {_percent(joined['test'])}"
    for row in result.get("low_data", []):
        yield f"{row['labels_per_class']} labels per class, layer {row['layer']}: test {_percent(row['mean'])} +- {_percent(row['std'])}"
    yield f"C chosen on {result['strength_chosen_on']}; {result['seconds']:.1f} s on {result['device']}"
    yield f"written: {out}/probe.json, {out}/accuracy_by_layer.png"
    if not all(row["converged"] for row in result["layers"]):
        yield f"warning: not every fit reached a gradient of {TOLERANCE:g} in {ITERATIONS} steps (`converged` in probe.json)"
    if best["strength"] in (result["strengths"][0], result["strengths"][-1]) and len(result["strengths"]) > 1:
        yield f"note: the best layer's C = {best['strength']:g} is at the end of --strengths; try values beyond it"


def _percent(share):
    return "-" if share is None else f"{100 * share:.2f}%"


if __name__ == "__main__":
    sys.exit(main())
