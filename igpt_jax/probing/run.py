"""Linear probes of every layer: checks the options, runs one of the two solvers, writes probe.json and the figure."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from igpt_jax.cli import prepare_folder
from igpt_jax.distributed.multihost import note
from igpt_jax.probing import lbfgs_probe, sgd_probe
from igpt_jax.probing.figure import draw
from igpt_jax.probing.splits import Splits
from igpt_jax.probing.store import Description, read_description, stored_layers
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
    """Probe the layers, write probe.json and the figure, and return the content of probe.json.

    Raises FileNotFoundError if the features are incomplete, ValueError if they or the options do not fit.
    """
    started = time.monotonic()
    directory = pathlib.Path(options.features)
    out = pathlib.Path(options.out or directory)
    description = read_description(directory)
    _check_model(directory, description, options.checkpoint)
    layers = _select_layers(options.layers, stored_layers(description))
    around_best = _window(options.concatenate, stored_layers(description))
    splits = Splits(directory, description)
    prepare_folder(out)
    solve = _solve_by_sgd if options.streams else _solve_by_lbfgs
    found = solve(options, splits, layers, around_best)
    result = {
        "features": str(directory),
        **{key: description.get(key) for key in ("checkpoint", "step", "checksum", "kind", "data", "counts")},
        "model": {key: description[key] for key in ("layers", "width", "parameters")},
        "classes": splits.classes,
        **found,
    }
    if description.get("masks"):
        result["masks"] = description["masks"]
    result |= {"seconds": round(time.monotonic() - started, 2), "device": jax.devices()[0].device_kind}
    (out / "probe.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, out / "accuracy_by_layer.png")
    return result


def _solve_by_lbfgs(options: Options, splits: Splits, layers: list[int], window: Callable[[int], list[int]]) -> dict[str, Any]:
    at_once = _layers_at_once(options, splits)
    _check_subsets(options, splits)
    # the pixels come first: if the data have changed, that is an error before the long work
    pixels = lbfgs_probe.probe_pixels(splits, options.C_values) if options.raw_pixels is not False else None
    rows = lbfgs_probe.probe_layers(splits, layers, options.C_values, at_once)
    best = _best(rows)
    found = {"C_values": list(options.C_values), "C_chosen_on": splits.chosen_on, "layers": rows, "best": best, "last": rows[-1], "raw_pixels": pixels}
    if options.concatenate:
        found["concatenated"] = lbfgs_probe.probe_concatenated(splits, window(best["layer"]), options.C_values)
    if options.labels_per_class:
        found["low_data"] = lbfgs_probe.probe_low_data(splits, best["layer"], options.C_values, options.labels_per_class, options.subsets)
    return found


def _solve_by_sgd(options: Options, splits: Splits, layers: list[int], window: Callable[[int], list[int]]) -> dict[str, Any]:
    settings = sgd_probe.Settings(_rates(options, splits), options.steps, options.batch, options.seed, options.memory)
    if options.concatenate:  # raises before the long work
        sgd_probe.Plan(splits, settings, joined=options.concatenate)
    rows = sgd_probe.probe_layers(splits, layers, settings)
    best, plan, count = _best(rows), sgd_probe.Plan(splits, settings), len(splits.labels["train"])
    steps = settings.steps_for(count)
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
        "layers": rows,
        "best": best,
        "last": rows[-1],
        "raw_pixels": None,
    }
    if options.pool == "attention":
        found["best_attention"] = max(rows, key=lambda row: row["attention"]["validation"])
    if options.concatenate:
        found["concatenated"] = sgd_probe.probe_concatenated(splits, window(best["layer"]), settings)
    return found


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
    if path is None and not pathlib.Path(description["checkpoint"]).exists():
        return
    model, features = checkpoints.identify(path or description["checkpoint"]), (description["checkpoint"], description["step"], description.get("checksum"))
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
