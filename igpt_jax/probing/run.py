"""Linear probes of every layer: checks the options, runs one of the two solvers, writes probe.json, probe.npz and the figure."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from igpt_jax.cli import prepare_folder
from igpt_jax.distributed.multihost import note
from igpt_jax.probing import cost, knn, lbfgs_probe, results, sgd_probe
from igpt_jax.probing.figure import draw
from igpt_jax.probing.splits import Splits
from igpt_jax.probing.store import Description, read_claim, read_description, stored_layers
from igpt_jax.progress import duration
from igpt_jax.training import checkpoints
from igpt_jax.types import PathLike


@dataclasses.dataclass(frozen=True)
class Options:
    """What to probe and how; the flags of igpt_jax.probe have these names, except `C_values`. Raises ValueError for options that exclude each other."""

    features: PathLike  # folder that igpt_jax.features wrote
    out: PathLike | None = None  # folder for probe.json and the figure; None: the folder of the features
    checkpoint: PathLike | None = None  # refuse features of another model; None: compare with the model at the features' checkpoint, if there is one
    layers: str = "all"  # or a list like 0,4,8
    concatenate: int = 0  # also probe this number of layers around the best one as one; 0: do not
    memory: float = 8  # GiB for the probes
    knn: bool | None = None  # also probe by weighted nearest neighbours; None: if that compares at most knn.CHEAP pairs of images in each layer
    solver: str | None = None  # lbfgs | sgd; None: sgd for attention, otherwise lbfgs
    # lbfgs
    C_values: Sequence[float] = lbfgs_probe.C_VALUES  # to choose from, ascending
    raw_pixels: bool | None = None  # also probe the pixels; None: yes with lbfgs
    labels_per_class: Sequence[int] = ()  # also probe from this few labels of each class
    subsets: int = 5  # random subsets for each of labels_per_class
    # sgd
    learning_rates: Sequence[float] = tuple(sorted(sgd_probe.LEARNING_RATES))  # to choose from, ascending
    steps: int = 0  # 0: 100 epochs, at least 2000 steps
    batch: int = 256  # images
    seed: int = 0  # of the order of the images
    pool: str = "mean"  # mean | attention
    attention_rates: Sequence[float] = tuple(sorted(sgd_probe.ATTENTION_RATES))  # learning rates of the attention probe, ascending

    def __post_init__(self) -> None:
        if self.pool == "attention" and self.solver == "lbfgs":
            raise ValueError("--pool=attention is trained by sgd: leave out --solver=lbfgs")
        if self.streams and self.labels_per_class:
            raise ValueError("--labels-per-class fits so few images that --solver=lbfgs is the one for it: leave out --solver=sgd and --pool")
        if self.streams and self.raw_pixels:
            raise ValueError("--raw-pixels reads all images into memory and needs --solver=lbfgs: leave out one of them")

    @property
    def streams(self) -> bool:
        """Whether the features stream from the disk, to probes trained by sgd."""
        return self.solver == "sgd" or (self.solver is None and self.pool == "attention")


def run(options: Options) -> dict[str, Any]:
    """Probe the layers, write probe.npz, probe.json and the figure, and return the content of probe.json; see results.py.

    Raises FileNotFoundError if the features are incomplete, ValueError if they or the options do not fit, or if the features changed meanwhile.
    """
    started = time.monotonic()
    directory = pathlib.Path(options.features)
    out = pathlib.Path(options.out or directory)
    description = read_description(directory)
    _check_model(directory, description, options.checkpoint)
    layers = _select_layers(options.layers, stored_layers(description))
    around_best = _window(options.concatenate, stored_layers(description))
    splits = Splits(directory, description)
    if doubts := splits.doubts():
        note("; ".join(doubts))
    options = dataclasses.replace(options, knn=_with_neighbours(options, splits))
    prepare_folder(out)
    solve = _solve_by_sgd if options.streams else _solve_by_lbfgs
    found, arrays = solve(options, splits, layers, around_best)
    found["knn"] = _add_neighbours(options, splits, found, arrays)
    arrays |= {f"{part}_labels": splits.labels[part].astype(np.int32) for part in ("validation", "test") if part in splits.labels}
    if splits.rows["validation"][0] == "train":
        arrays["validation_rows"] = splits.rows["validation"][1].astype(np.int32)
    arrays |= {"layers": np.asarray(layers, np.int32), "class_names": np.asarray(description["class_names"], np.str_)}
    result = {
        "features": str(directory),
        **{key: description.get(key) for key in ("checkpoint", "step", "checksum", "kind", "data", "counts", "fingerprints")},
        "model": {key: description[key] for key in ("layers", "width", "parameters")},
        "classes": splits.classes,
        "class_names": description["class_names"],
        "images": {part: len(labels) for part, labels in splits.labels.items()},
        **found,
        "by_class": _by_class(splits, found, arrays),
    }
    if description.get("masks"):
        result["masks"] = description["masks"]
    result |= {"seconds": round(time.monotonic() - started, 2), "device": jax.devices()[0].device_kind}
    _check_unchanged(directory, description)
    result = results.write(out, result, arrays)
    draw(result, out / "accuracy_by_layer.png")
    return result


Found: TypeAlias = tuple[dict[str, Any], results.Arrays]  # entries of probe.json, arrays of probe.npz


def _solve_by_lbfgs(options: Options, splits: Splits, layers: list[int], window: Callable[[int], list[int]]) -> Found:
    at_once = _layers_at_once(options, splits)
    _check_subsets(options, splits)
    # the pixels come first: if the data have changed, that is an error before the long work
    widths = [splits.description["width"]] * len(layers) + ([] if options.raw_pixels is False else [3 * splits.description["data"]["image_size"] ** 2])
    sizes = f"{len(layers)} layers{'' if options.raw_pixels is False else ' and the pixels'}, {len(splits.labels['train']):,} images to fit"
    seconds = cost.lbfgs_seconds(splits, widths, len(options.C_values))
    note(f"{sizes}: about {duration(seconds)} of fitting on this device; compiling and the nearest neighbours take up to a minute more at the first start")
    pixels = _probe_pixels(options, splits) if options.raw_pixels is not False else None
    outcomes = lbfgs_probe.probe_layers(splits, layers, options.C_values, at_once)
    rows = [outcome.row for outcome in outcomes]
    best, arrays = _best(rows), results.stack(outcomes) | (pixels.arrays if pixels else {})
    found: dict[str, Any] = {"C_values": list(options.C_values), "C_chosen_on": splits.chosen_on, "refit": _refit(splits)}
    found |= {"layers": rows, "best": best, "last": rows[-1], "raw_pixels": pixels.row if pixels else None}
    if options.concatenate:
        _add_concatenated(lbfgs_probe.probe_concatenated(splits, window(best["layer"]), options.C_values), found, arrays)
    if options.labels_per_class:
        few, few_arrays = lbfgs_probe.probe_low_data(splits, best["layer"], options.C_values, options.labels_per_class, options.subsets)
        found |= {"low_data": few, "low_data_choices": _low_data_choices(splits, layers)}
        arrays |= results.prefixed("low_data", few_arrays)
    return found, arrays


def _solve_by_sgd(options: Options, splits: Splits, layers: list[int], window: Callable[[int], list[int]]) -> Found:
    settings = sgd_probe.Settings(_rates(options, splits), options.steps, options.batch, options.seed, options.memory)
    if options.concatenate:  # raises before the long work
        sgd_probe.Plan(splits, settings, joined=options.concatenate)
    note(f"{len(layers)} layers, {sgd_probe.total_steps(splits, layers, settings):,} steps of sgd in all; the bar of the first tells their speed")
    outcomes = sgd_probe.probe_layers(splits, layers, settings)
    rows, arrays = [outcome.row for outcome in outcomes], results.stack(outcomes)
    best, plan, count = _best(rows), sgd_probe.Plan(splits, settings), len(splits.labels["train"])
    steps, refit = settings.steps_for(count), _refit(splits)
    found = {
        "sgd": {
            "learning_rates": settings.rates,
            "steps": steps,
            "batch": settings.batch,
            "epochs": round(steps * settings.batch / count, 2),
            "window": plan.window,
            "seed": settings.seed,
        },
        "rate_chosen_on": splits.chosen_on,
        "refit": refit | {"steps": settings.steps_for(refit["images"])},
        "layers": rows,
        "best": best,
        "last": rows[-1],
        "raw_pixels": None,
    }
    if options.pool == "attention":
        found["best_attention"] = max(rows, key=lambda row: row["attention"]["validation"])
    if options.concatenate:
        _add_concatenated(sgd_probe.probe_concatenated(splits, window(best["layer"]), settings), found, arrays)
    return found, arrays


def _add_concatenated(joined: results.Outcome, found: dict[str, Any], arrays: results.Arrays) -> None:
    found["concatenated"] = joined.row
    arrays |= results.prefixed("concatenated", joined.arrays | {"layers": np.asarray(joined.row["layers"], np.int32)})


def _probe_pixels(options: Options, splits: Splits) -> results.Outcome:
    """Probe the raw pixels, by nearest neighbours too if options.knn; the arrays have the keys of probe.npz. The pixels are read and compared once."""
    pixels = {split: lbfgs_probe.read_pixels(splits, split) for split in dict.fromkeys(split for split, _ in splits.rows.values())}
    near = knn.probe_array(splits, {split: pixels_1ND[0] for split, pixels_1ND in pixels.items()}, options.memory) if options.knn else None
    row, arrays = lbfgs_probe.probe_pixels(splits, options.C_values, lambda split, mask: pixels.pop(split))  # not kept beside what the fit makes of them
    arrays = results.prefixed("pixels", arrays)
    if near:
        row, arrays = row | {"knn": near.row}, arrays | results.prefixed("pixels_knn", near.arrays)
    return results.Outcome(row, arrays)


def _with_neighbours(options: Options, splits: Splits) -> bool:
    """Whether to probe by nearest neighbours too; a note says it if their cost decides."""
    pairs = knn.pairs(splits)
    if options.knn is None and pairs > knn.CHEAP:
        note(f"nearest neighbours are left out: they compare {pairs:.2g} pairs of images in each layer; --knn probes by them all the same")
        return False
    return options.knn is not False


def _add_neighbours(options: Options, splits: Splits, found: dict[str, Any], arrays: results.Arrays) -> dict[str, Any] | None:
    """Probe the layers by nearest neighbours, and add the results to the rows and arrays. Returns how it was done, for probe.json; None if it was not."""
    if not options.knn:
        return None
    outcomes = knn.probe_layers(splits, [row["layer"] for row in found["layers"]], options.memory)
    for row, outcome in zip(found["layers"], outcomes, strict=True):
        row["knn"] = outcome.row
    arrays |= results.prefixed("knn", results.stack(outcomes))
    counts, pairs = knn.counts_for(len(splits.labels["train"])), knn.pairs(splits)
    return {"k_values": counts, "k_chosen_on": splits.chosen_on, "temperature": knn.TEMPERATURE, "similarity": "cosine", "pairs": pairs}


def _refit(splits: Splits) -> dict[str, Any]:
    """What the probes that are tested were fitted to, the same with both solvers."""
    return {"on": "training and validation images, after C or rate was chosen", "images": len(splits.labels["train"]) + len(splits.labels["validation"])}


def _low_data_choices(splits: Splits, layers: list[int]) -> dict[str, Any]:
    """How --labels-per-class chooses what is not fitted, and on how many labels."""
    train, validation = (len(splits.labels[part]) for part in ("train", "validation"))
    return {
        "C": {"chosen_by": f"accuracy on {splits.chosen_on}, for each subset", "labels": validation},
        "layer": {"chosen_by": f"validation accuracy of probes fitted to all training labels, among {len(layers)} layers", "labels": train + validation},
        "standardised_by": f"all {train} training images, without their labels",
        "refit": "none: the probe that is tested is fitted to the few labels alone",
    }


def _by_class(splits: Splits, found: dict[str, Any], arrays: results.Arrays) -> dict[str, Any] | None:
    """Accuracy by class and the confusion matrix on the test images, of the best layer, the last and raw pixels; None without a test split."""
    if "test" not in splits.labels:
        return None
    place = {layer["layer"]: number for number, layer in enumerate(found["layers"])}
    predicted = {name: arrays["test"][place[found[name]["layer"]]] for name in ("best", "last")}
    if found["raw_pixels"]:
        predicted["raw_pixels"] = arrays["pixels_test"]
    return {name: results.by_class(splits.labels["test"], classes, splits.classes) for name, classes in predicted.items()}


def _rates(options: Options, splits: Splits) -> dict[str, Sequence[float]]:
    """Kind of probe -> learning rates. Raises ValueError if attention has no features of positions."""
    if options.pool != "attention":
        return {"mean": options.learning_rates}
    kind = splits.description["kind"]
    if kind != "positions":
        program = f"python -m igpt_jax.features --checkpoint={splits.description['checkpoint']} --out=DIR --kind=positions --layers=LAYERS"
        raise ValueError(f"--pool=attention needs the features of every position, {splits.directory} holds {kind} means: write them by {program}")
    return {"mean": options.learning_rates, "attention": options.attention_rates}


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: row["validation"])  # the first of equal ones


def _check_model(directory: pathlib.Path, description: Description, path: PathLike | None) -> None:
    """Raises ValueError if the features are not those of the checkpoint at `path`; None: of the one at the path that features.json names, if it exists."""
    if path is None and not checkpoints.exists(description["checkpoint"]):
        return
    model = checkpoints.identify(path or description["checkpoint"], description.get("ema", False))
    features = description["checkpoint"], description["step"], description.get("checksum")
    if model is None:
        return
    if None in (features[2], model[2]):
        place = directory if features[2] is None else model[0]
        note(f"{place} does not say the checksum of its model: paths and steps are compared instead")
        same = (os.path.realpath(features[0]), features[1]) == (os.path.realpath(model[0]), model[1])
    else:
        same = features[2] == model[2]
    if not same:
        old, new = (f"{place}, step {step}, checksum {checksum}" for place, step, checksum in (features, model))
        program = f"python -m igpt_jax.features --checkpoint={path or description['checkpoint']} --out={directory} --overwrite"
        raise ValueError(f"{directory} holds features of {old}; the model is {new}: write the features again with {program}")


def _check_unchanged(directory: pathlib.Path, description: Description) -> None:
    """Raises ValueError if the features are no longer those of `description`; another split may have been added."""
    try:
        now = read_claim(directory)
    except (ValueError, OSError):
        now = {}
    known = {key: {split: now.get(key, {}).get(split) for split in description[key]} for key in ("counts", "fingerprints") if key in description}
    if now | known != description:
        raise ValueError(f"{directory} was written again while its probes were trained: nothing is written, run the same command again")


def _select_layers(text: str, stored: list[int]) -> list[int]:
    """The layers that --layers=`text` names. Raises ValueError if one is not stored."""
    if text == "all":
        return list(stored)
    if not all(part.isdigit() and int(part) in stored for part in text.split(",")):
        known = f"from {stored[0]} to {stored[-1]}" if len(stored) == stored[-1] + 1 else f"of those stored, {', '.join(map(str, stored))}"
        raise ValueError(f"--layers={text} is neither all nor a list of layers {known}")
    return sorted({int(part) for part in text.split(",")})


def _window(size: int, stored: list[int]) -> Callable[[int], list[int]]:
    """A function from the best layer to the `size` layers around it; the window is shifted to stay inside `stored`."""
    if size and not 2 <= size <= len(stored):
        raise ValueError(f"--concatenate={size} must be from 2 to the {len(stored)} layers there are")

    def around(best: int) -> list[int]:
        first = min(max(stored.index(best) - size // 2, 0), len(stored) - size)
        return stored[first : first + size]

    return around


def _layers_at_once(options: Options, splits: Splits) -> int:
    """How many layers fit in --memory side by side. Raises ValueError if the widest probe does not fit alone."""
    counts = sum(len(labels) * splits.masks[part] for part, labels in splits.labels.items())
    width, logits = splits.description["width"], len(options.C_values) * splits.classes * counts
    widths = {"a layer": width, f"--concatenate={options.concatenate}": width * options.concatenate}
    if options.raw_pixels is not False:
        widths["raw pixels (--no-raw-pixels leaves them out)"] = 3 * splits.description["data"]["image_size"] ** 2
    sizes = {name: 4 * (4 * counts * columns + 6 * logits + columns * columns) for name, columns in widths.items()}  # bytes: features, logits, axes
    name, size = max(sizes.items(), key=lambda item: item[1])
    if size > options.memory * 2**30:
        problem = f"the probe of {name} needs about {size / 2**30:.1f} GiB, more than --memory={options.memory:g}"
        raise ValueError(f"{problem}: raise that, give fewer --C, or stream from the disk by --solver=sgd")
    return max(1, int(options.memory * 2**30 // sizes["a layer"]))


def _check_subsets(options: Options, splits: Splits) -> None:
    """Raises ValueError if the images do not allow --labels-per-class."""
    if options.labels_per_class and ("test" not in splits.labels or options.subsets < 1):
        raise ValueError(f"--labels-per-class needs a test split and --subsets of at least 1, here {options.subsets}")
    for size in options.labels_per_class:
        lbfgs_probe.choose_subset(splits.labels["train"], splits.classes, size, 0)
