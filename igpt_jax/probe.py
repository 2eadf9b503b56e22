"""Linear probes of every layer: `python -m igpt_jax.probe --features=runs/digits/features [--out=runs/digits]`.

Reads the folder that igpt_jax.features wrote (igpt_jax/activations.py describes it), trains a linear classifier on each layer, chooses what regularises it
on the validation images, and tests (paper 2.6). Writes probe.json and accuracy_by_layer.png. Two solvers:
- `--solver=lbfgs`, the default, all images in memory: see probe_lbfgs.py. `--labels-per-class=4,25,400` adds the low-data protocol.
- `--solver=sgd`, the paper's for ImageNet, images from the disk: see probe_sgd.py.
`--concatenate=5` adds a probe of the 5 layers around the best one. `--pool=attention` (features of --kind=positions; by sgd) trains, beside the probe
of the mean over positions, one that attends to them, see sgd.py.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import jax

from igpt_jax import checkpoint, machine, probe_lbfgs, probe_sgd
from igpt_jax.activations import Images, read_description, stored_layers
from igpt_jax.cli import ANY_ERROR, SEEDS, Parser, explain, integer, list_of, positive, prepare_folder
from igpt_jax.logistic import ITERATIONS, TOLERANCE
from igpt_jax.probe_figure import draw
from igpt_jax.probe_lbfgs import STRENGTHS, choose_subset


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
    images = Images(directory, description)
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
    strengths, at_once = arguments.strengths, _at_once(arguments, description, images)
    _check_subsets(arguments, images)
    pixels = probe_lbfgs.probe_pixels(images, strengths) if arguments.raw_pixels is not False else None  # first: the data may be other data by now
    rows = probe_lbfgs.probe_layers(directory, images, layers, strengths, at_once)
    best = _best(rows)
    found = {"strengths": list(strengths), "strength_chosen_on": images.chosen_on, "layers": rows, "best": best, "last": rows[-1]}
    found["raw_pixels"] = pixels
    if arguments.concatenate:
        found["concatenated"] = probe_lbfgs.probe_concatenated(directory, images, window(best["layer"]), strengths)
    if arguments.labels_per_class:
        few = probe_lbfgs.probe_low_data(directory, images, best["layer"], strengths, arguments.labels_per_class, arguments.subsets)
        found["low_data"] = few
    return found


def _by_sgd(arguments, directory, description, images, layers, window) -> dict:
    rates = {"mean": arguments.learning_rates}
    if arguments.pool == "attention":
        if description["kind"] != "positions":
            again = f"python -m igpt_jax.features --checkpoint={description['checkpoint']} --out=DIR --kind=positions --layers=LAYERS"
            raise ValueError(f"--pool=attention needs the features of every position, {directory} holds {description['kind']} means: write them by {again}")
        rates["attention"] = arguments.attention_rates
    settings = probe_sgd.Settings(rates, arguments.steps, arguments.batch, arguments.seed, arguments.memory)
    if arguments.concatenate:  # refused before hours of the rest
        probe_sgd.Plan(directory, description, images, settings, joined=arguments.concatenate)
    rows = probe_sgd.probe_layers(directory, description, images, layers, settings)
    best, plan, count = _best(rows), probe_sgd.Plan(directory, description, images, settings), len(images.labels["train"])
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
        found["concatenated"] = probe_sgd.probe_concatenated(directory, description, images, window(best["layer"]), settings)
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
    model, features = checkpoint.identify(path or description["checkpoint"]), (description["checkpoint"], description["step"], description.get("checksum"))
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
    width, logits = description["width"], len(arguments.strengths) * images.classes * counts
    widths = {"a layer": width, f"--concatenate={arguments.concatenate}": width * arguments.concatenate}
    if arguments.raw_pixels is not False:
        widths["raw pixels (--no-raw-pixels leaves them out)"] = 3 * description["data"]["image_size"] ** 2
    sizes = {name: 4 * (4 * counts * wide + 6 * logits + wide * wide) for name, wide in widths.items()}  # bytes: features, logits, axes
    name, size = max(sizes.items(), key=lambda item: item[1])
    if size > arguments.memory * 2**30:
        gib = f"{size / 2**30:.1f}"
        more = f"more than --memory={arguments.memory:g}"
        raise ValueError(f"the probe of {name} needs about {gib} GiB, {more}: raise that, give fewer --strengths, or stream from the disk by --solver=sgd")
    return max(1, int(arguments.memory * 2**30 // sizes["a layer"]))


def _check_subsets(arguments, images):
    if arguments.labels_per_class and ("test" not in images.labels or arguments.subsets < 1):
        raise ValueError(f"--labels-per-class needs a test split and --subsets of at least 1, here {arguments.subsets}")
    for size in arguments.labels_per_class:
        choose_subset(images.labels["train"], images.classes, size, 0)


# ---- the command line, and what is printed ----


def _rates(text):
    return sorted(set(list_of(positive())(text)))


def _parse(arguments):
    parser = Parser(prog="python -m igpt_jax.probe", description=__doc__.split("\n")[0])
    parser.add_argument("--features", required=True, help="folder that igpt_jax.features wrote")
    parser.add_argument("--checkpoint", help="refuse features of another model than this one's; default: than the one where theirs lay, if any")
    parser.add_argument("--out", help="folder for probe.json and accuracy_by_layer.png; default: the features' folder")
    parser.add_argument("--layers", default="all", help="all, or a list like 0,4,8")
    parser.add_argument("--concatenate", type=integer(), default=0, metavar="N", help="also probe N layers around the best as one; the paper: 5")
    parser.add_argument("--memory", type=positive(), default=8, help="GiB that the probes may take: how many layers run side by side")
    parser.add_argument("--solver", choices=("lbfgs", "sgd"), help="lbfgs (default): all images in memory; sgd: images from the disk")
    lbfgs = parser.add_argument_group("--solver=lbfgs")
    lbfgs.add_argument("--strengths", type=_rates, default=list(STRENGTHS), help="values of C to choose from, a list")
    lbfgs.add_argument("--raw-pixels", action=argparse.BooleanOptionalAction, help="probe the pixels too, for comparison; default: yes")
    lbfgs.add_argument("--labels-per-class", type=list_of(integer(1)), default=[], help="also probe from so few labels, a list; the paper: 4,25,400")
    lbfgs.add_argument("--subsets", type=integer(1), default=5, help="random subsets for each of --labels-per-class")
    sgd = parser.add_argument_group("--solver=sgd")
    sgd.add_argument("--learning-rates", type=_rates, default=sorted(probe_sgd.LEARNING_RATES), help="to choose from, a list")
    sgd.add_argument("--steps", type=integer(), default=0, help=f"batches; default: {probe_sgd.EPOCHS} epochs, at least {probe_sgd.LEAST_STEPS} steps")
    sgd.add_argument("--batch", type=integer(1), default=256, help="images in one step")
    sgd.add_argument("--seed", type=integer(0, SEEDS), default=0, help="of the order of the images")
    sgd.add_argument("--pool", choices=("mean", "attention"), default="mean", help="attention: also a probe that attends to the positions")
    sgd.add_argument("--attention-rates", type=_rates, default=sorted(probe_sgd.ATTENTION_RATES), help="learning rates of --pool=attention, a list")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    """Run the program; returns its exit code."""
    arguments = _parse(arguments)
    machine.keep()
    try:
        result = run(arguments)
    except ANY_ERROR as error:
        print(explain(error, arguments.out or arguments.features), file=sys.stderr)
        return 1
    print("\n".join(_report(result, arguments.out or arguments.features)))
    return 0


def _report(result, out):
    best, last = result["best"], result["last"]
    yield from _table(result)
    yield f"best layer by validation: {best['layer']}, test {_percent(best['test'])}; layer {last['layer']}: {_percent(last['test'])}"
    if "best_attention" in result:
        row = result["best_attention"]
        yield f"best layer by validation with attention: {row['layer']}, test {_percent(row['attention']['test'])}"
    if "concatenated" in result:
        joined = result["concatenated"]
        yield f"layers {joined['layers'][0]} to {joined['layers'][-1]} concatenated: test {_percent(joined['test'])}"
    for row in result.get("low_data", []):
        yield f"{row['labels_per_class']} labels per class, layer {row['layer']}: test {_percent(row['mean'])} +- {_percent(row['std'])}"
    if "masks" in result:
        yield f"validation and test: the vote of {result['masks']} masks (one where the images were held out of training); C or rate chosen by it"
    if "sgd" in result:
        sgd = result["sgd"]
        yield f"sgd: {sgd['steps']} steps of {sgd['batch']} images, {sgd['epochs']:g} epochs, from windows of {sgd['window']} images"
        yield f"rate chosen on {result['rate_chosen_on']}; {result['seconds']:.1f} s on {result['device']}"
    else:
        yield f"C chosen on {result['strength_chosen_on']}; {result['seconds']:.1f} s on {result['device']}"
    yield f"written: {out}/probe.json, {out}/accuracy_by_layer.png"
    yield from _warnings(result)


def _table(result):
    """A line for each layer: C or learning rate, and accuracies; those of one mask, and of attention, in columns of their own."""
    setting = "learning_rate" if "sgd" in result else "strength"
    heads = [f"{'rate' if 'sgd' in result else 'C':>7}", "  train", " validation", "   test"]
    masked, attention = "masks" in result, "best_attention" in result
    heads += [" one mask"] * masked + ["| attention: rate", "  train", " validation", "   test"] * attention + [" one mask"] * (masked and attention)
    yield " ".join(["layer", *heads])

    def cells(row):
        found = [f"{row[setting]:>7g}", f"{_percent(row['train']):>7}", f"{_percent(row['validation']):>11}", f"{_percent(row['test']):>7}"]
        return found + [f"{_percent(row.get('test_one_mask')):>9}"] * masked

    for name, row in [(row["layer"], row) for row in result["layers"]] + ([("pixels", result["raw_pixels"])] if result["raw_pixels"] else []):
        beside = cells(row["attention"]) if attention else []
        yield " ".join([f"{name:>5}", *cells(row), *(["|" + f"{beside[0]:>16}", *beside[1:]] if beside else [])])


def _warnings(result):
    best = result["best"]
    if "sgd" in result:
        chosen = {"mean": best} | ({"attention": result["best_attention"]["attention"]} if "best_attention" in result else {})
        for kind, row in chosen.items():
            rates = result["sgd"]["learning_rates"][kind]
            if row["learning_rate"] in (rates[0], rates[-1]) and len(rates) > 1:
                flag = "--learning-rates" if kind == "mean" else "--attention-rates"
                yield f"note: the best layer's rate {row['learning_rate']:g} is at the end of {flag}; try values beyond it"
        return
    if not all(row["converged"] for row in result["layers"]):
        yield f"warning: not every fit reached a gradient of {TOLERANCE:g} in {ITERATIONS} steps (`converged` in probe.json)"
    if best["strength"] in (result["strengths"][0], result["strengths"][-1]) and len(result["strengths"]) > 1:
        yield f"note: the best layer's C = {best['strength']:g} is at the end of --strengths; try values beyond it"


def _percent(share):
    return "-" if share is None else f"{100 * share:.2f}%"


if __name__ == "__main__":
    sys.exit(main())
