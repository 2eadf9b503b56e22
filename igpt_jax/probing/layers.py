"""Linear probes of every layer: what is asked for is checked, one of the two solvers runs, probe.json and the figure are written."""

import json
import os
import pathlib
import sys
import time

import jax

from igpt_jax.cli import prepare_folder
from igpt_jax.probing import lbfgs_probe, sgd_probe
from igpt_jax.probing.figure import draw
from igpt_jax.probing.lbfgs_probe import choose_subset
from igpt_jax.probing.store import Splits, read_description, stored_layers
from igpt_jax.training import checkpoints


def run(arguments) -> dict:
    """All that the command line asks for; writes probe.json and the figure and returns what is in probe.json."""
    started = time.monotonic()
    directory = pathlib.Path(arguments.features)
    out = pathlib.Path(arguments.out or directory)
    _check(arguments)
    description = read_description(directory)
    _check_model(directory, description, arguments.checkpoint)
    layers = _layers(arguments.layers, stored_layers(description))
    window = _window(arguments.concatenate, stored_layers(description))
    images = Splits(directory, description)
    prepare_folder(out)
    solve = _by_sgd if _solver(arguments) == "sgd" else _by_lbfgs
    found = solve(arguments, directory, description, images, layers, window)
    result = {
        "features": str(directory),
        **{key: description.get(key) for key in ("checkpoint", "step", "checksum", "kind", "data", "counts")},
        "model": {key: description[key] for key in ("layers", "width", "parameters")},
        "classes": images.classes,
        **found,
    }
    if description.get("masks"):
        result["masks"] = description["masks"]
    result |= {"seconds": round(time.monotonic() - started, 2), "device": jax.devices()[0].device_kind}
    (out / "probe.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, out / "accuracy_by_layer.png")
    return result


def _by_lbfgs(arguments, directory, description, images, layers, window) -> dict:
    C_values, at_once = arguments.C, _at_once(arguments, description, images)
    _check_subsets(arguments, images)
    pixels = lbfgs_probe.probe_pixels(images, C_values) if arguments.raw_pixels is not False else None  # first: the data may be other data by now
    rows = lbfgs_probe.probe_layers(directory, images, layers, C_values, at_once)
    best = _best(rows)
    found = {"C_values": list(C_values), "C_chosen_on": images.chosen_on, "layers": rows, "best": best, "last": rows[-1]}
    found["raw_pixels"] = pixels
    if arguments.concatenate:
        found["concatenated"] = lbfgs_probe.probe_concatenated(directory, images, window(best["layer"]), C_values)
    if arguments.labels_per_class:
        few = lbfgs_probe.probe_low_data(directory, images, best["layer"], C_values, arguments.labels_per_class, arguments.subsets)
        found["low_data"] = few
    return found


def _by_sgd(arguments, directory, description, images, layers, window) -> dict:
    rates = {"mean": arguments.learning_rates}
    if arguments.pool == "attention":
        if description["kind"] != "positions":
            again = f"python -m igpt_jax.features --checkpoint={description['checkpoint']} --out=DIR --kind=positions --layers=LAYERS"
            raise ValueError(f"--pool=attention needs the features of every position, {directory} holds {description['kind']} means: write them by {again}")
        rates["attention"] = arguments.attention_rates
    settings = sgd_probe.Settings(rates, arguments.steps, arguments.batch, arguments.seed, arguments.memory)
    if arguments.concatenate:  # refused before hours of the rest
        sgd_probe.Plan(directory, description, images, settings, joined=arguments.concatenate)
    rows = sgd_probe.probe_layers(directory, description, images, layers, settings)
    best, plan, count = _best(rows), sgd_probe.Plan(directory, description, images, settings), len(images.labels["train"])
    steps = settings.steps_for(count)
    found = {
        "sgd": {
            "learning_rates": rates,
            "steps": steps,
            "batch": settings.batch,
            "epochs": round(steps * settings.batch / count, 2),
            "window": plan.window,
            "seed": settings.seed,
        },
        "rate_chosen_on": images.chosen_on,
        "layers": rows,
        "best": best,
        "last": rows[-1],
        "raw_pixels": None,
    }
    if arguments.pool == "attention":
        found["best_attention"] = max(rows, key=lambda row: row["attention"]["validation"])
    if arguments.concatenate:
        found["concatenated"] = sgd_probe.probe_concatenated(directory, description, images, window(best["layer"]), settings)
    return found


def _best(rows):
    return max(rows, key=lambda row: row["validation"])  # the first of equals


def _check(arguments):
    """ValueError for options that do not go together."""
    if arguments.pool == "attention" and arguments.solver == "lbfgs":
        raise ValueError("--pool=attention is trained by sgd: leave out --solver=lbfgs")
    if _solver(arguments) == "lbfgs":
        return
    if arguments.labels_per_class:
        raise ValueError("--labels-per-class fits so few images that --solver=lbfgs is the one for it: leave out --solver=sgd and --pool")
    if arguments.raw_pixels:
        raise ValueError("--raw-pixels reads all images into memory: it goes with --solver=lbfgs alone")


def _check_model(directory, description, path):
    """ValueError where the features are not those of the checkpoint at `path`, or with None of the one that lies where theirs did, if one does."""
    if path is None and not pathlib.Path(description["checkpoint"]).exists():
        return
    model, features = checkpoints.identify(path or description["checkpoint"]), (description["checkpoint"], description["step"], description.get("checksum"))
    if model is None:
        return
    if None in (features[2], model[2]):
        unsaid = directory if features[2] is None else model[0]
        print(f"note: {unsaid} does not say the checksum of its model: compared are places and steps", file=sys.stderr)
        same = (os.path.realpath(features[0]), features[1]) == (os.path.realpath(model[0]), model[1])
    else:
        same = features[2] == model[2]
    if not same:
        told, now = (f"{place}, step {step}, checksum {number}" for place, step, number in (features, model))
        again = f"python -m igpt_jax.features --checkpoint={path or description['checkpoint']} --out={directory} --overwrite"
        raise ValueError(f"{directory} holds features of {told}; the model is {now}: write them anew by {again}")


def _solver(arguments):
    return arguments.solver or ("sgd" if arguments.pool == "attention" else "lbfgs")


def _layers(text, stored):
    if text == "all":
        return list(stored)
    if not all(part.isdigit() and int(part) in stored for part in text.split(",")):
        known = f"from {stored[0]} to {stored[-1]}" if len(stored) == stored[-1] + 1 else f"of those stored, {', '.join(map(str, stored))}"
        raise ValueError(f"--layers={text} is neither all nor a list of layers {known}")
    return sorted({int(part) for part in text.split(",")})


def _window(size, stored):
    """A function from the best layer to the `size` layers around it, moved inwards at the ends."""
    if size and not 2 <= size <= len(stored):
        raise ValueError(f"--concatenate={size} must be from 2 to the {len(stored)} layers there are")

    def around(best):
        first = min(max(stored.index(best) - size // 2, 0), len(stored) - size)
        return stored[first : first + size]

    return around


def _at_once(arguments, description, images):
    """How many layers fit into --memory side by side; ValueError where the widest probe does not fit alone."""
    counts = sum(len(labels) * images.masks[part] for part, labels in images.labels.items())
    width, logits = description["width"], len(arguments.C) * images.classes * counts
    widths = {"a layer": width, f"--concatenate={arguments.concatenate}": width * arguments.concatenate}
    if arguments.raw_pixels is not False:
        widths["raw pixels (--no-raw-pixels leaves them out)"] = 3 * description["data"]["image_size"] ** 2
    sizes = {name: 4 * (4 * counts * wide + 6 * logits + wide * wide) for name, wide in widths.items()}  # bytes: features, logits, axes
    name, size = max(sizes.items(), key=lambda item: item[1])
    if size > arguments.memory * 2**30:
        gib = f"{size / 2**30:.1f}"
        more = f"more than --memory={arguments.memory:g}"
        raise ValueError(f"the probe of {name} needs about {gib} GiB, {more}: raise that, give fewer --C, or stream from the disk by --solver=sgd")
    return max(1, int(arguments.memory * 2**30 // sizes["a layer"]))


def _check_subsets(arguments, images):
    if arguments.labels_per_class and ("test" not in images.labels or arguments.subsets < 1):
        raise ValueError(f"--labels-per-class needs a test split and --subsets of at least 1, here {arguments.subsets}")
    for size in arguments.labels_per_class:
        choose_subset(images.labels["train"], images.classes, size, 0)
