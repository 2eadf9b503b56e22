"""README's results, each number read from the JSON that a command wrote to experiments/results/: paper | ours | command | commit | hardware | seed.

The paper's numbers stand here, with the place in the paper. experiments/report/readme.py puts the blocks there.
"""

import json
import pathlib

import numpy as np

from experiments.report import summary
from experiments.studies import sweep

HEAD = ["| what | paper | ours | command | commit, hardware, seed |", "|---|---|---|---|---|"]
IMAGENET = (
    "| ImageNet 32 x 32, S, test loss with OpenAI's weights | 2.0895 | not run here "
    "| `python -m igpt_jax.evaluate --checkpoint=runs/igpt-s --data=npy:DIR/imagenet --split=test` | - |"
)


def block(results: pathlib.Path) -> str:
    """A row for each number; a study that was not run has none."""
    lines = []
    for name, found in read(results, ROWS):
        where = f"{found['commit']}, {found['hardware']}, {_seeds(found)}"
        for number, (what, paper, ours) in enumerate(ROWS[name](found)):
            command = "as above" if number else f"`{found['command']}`, [{name}.json](experiments/results/{name}.json)"
            lines.append(f"| {what} | {paper} | {ours} | {command} | {'as above' if number else where} |")
    return "\n".join([*HEAD, *lines, IMAGENET, ""])


def read(results: pathlib.Path, names):
    """(name, what its JSON says) of each study that was run."""
    for name in names:
        path = results / f"{name}.json"
        if path.exists():
            yield name, json.loads(path.read_text())


def demo(results: pathlib.Path) -> str:
    """What `make demo` prints at its end."""
    return summary.table(json.loads((results / "digits.json").read_text())) + "\n"


def _run(name):
    """Rows of what experiments.report.summary wrote of a run."""

    def rows(found):
        probe, test = found["probe"], found["test"]
        sizes = f"{name}, {probe['model']['parameters']:,} parameters, {test['step']:,} steps"
        best, last, pixels = probe["best"], probe["last"], probe.get("raw_pixels")
        yield f"{sizes}: test loss, nats per pixel (unigram baseline: {summary.counted(found):.3f})", "-", f"{test['nats_per_pixel']:.3f}"
        told = f"{percent(best['test'])}, {percent(last['test'])}" + (f", {percent(pixels['test'])}" if pixels else "")
        what = f"linear probe at the best layer ({best['layer']} of {last['layer']}), at the last" + (", raw pixels" if pixels else "")
        yield what, "-", told

    return rows


def _palette(found):
    names, median = ("ours", "scikit-learn", "faiss"), found["median"]
    errors, seconds = (", ".join(format(median[name][key], form) for name in names) for key, form in (("mse", ".6f"), ("seconds", ".1f")))
    yield f"palette of {found['colours']} colours on {found['pixels']:,} pixels of CIFAR-10 (JPEG q75): error of ours, scikit-learn, FAISS", "-", errors
    yield "the same, seconds from the counted colours to the centres", "-", seconds


def _colours(found):
    chosen = [one for one in found["sweep"] if one["colours"] in (8, 512, 4096)]
    for number, image in enumerate(found["images"]):
        told = ", ".join(f"{one['psnr'][number]:.1f}" for one in chosen)
        yield f"{image['name']} in {', '.join(str(one['colours']) for one in chosen)} colours of its own: PSNR, dB", "-", told


def _layers(found):
    for one in found["curves"]:
        best, lost = one["best"], one["lost_by_the_last_layer"]
        paper = "96.3 % at 20 of 48, 94.0 % (L, figure 2)" if one["objective"] == "autoregressive" else "-"
        where = f"{best['layer']} of {one['layers'][-1]}{'' if best['inside'] else ': an end'}"
        ours = f"{percent(best['test'])} at {where}, {percent(one['mean'][-1])}: {100 * lost['mean']:+.1f} points"
        yield f"{one['data']}, probe at the best layer, at the last: {model_name(one)}", paper, ours
    for name, share in found["raw_pixels"].items():
        yield f"{name}, raw pixels", "-", percent(share)


def _losses(found):
    for pair in found["verdict"]["pairs"]:
        what = f"gain of {pair['larger']} over {pair['smaller']} (layers x width) in probe accuracy at equal loss, points (95 % interval)"
        told = f"{pair['verdict']}: {pair['why']}"
        if pair["interval"]:
            told = f"{100 * pair['gain']:+.1f} ({' to '.join(f'{100 * end:+.1f}' for end in pair['interval'])}): {told}"
        yield what, "above 0 (figure 3)", told


def _few(found):
    for one in found["curves"]:
        probe = one["way"] == "linear probe" and one["objective"] == "autoregressive"
        numbers = [sweep.spread(100 * np.array(values), 1) for values in one["accuracies"].values()]
        paper = "; ".join(f"{found['paper']['percent'].get(size, '-')}" for size in one["accuracies"]) + " (L, table 4)" if probe else "-"
        yield f"{one['way']}, {objective_name(one['objective'])}, {', '.join(one['accuracies'])} labels of each class, %", paper, "; ".join(numbers)


def _sides(found):
    sides, paper = found["sides"], found["paper"]
    theirs = ", ".join(f"{share} ({side})" for side, share in paper["percent"].items())
    named = ", ".join(str(one["side"]) for one in sides)
    yield f"probe at the best layer, images of side {named}, %", theirs, "; ".join(sweep.spread(100 * np.array(one["accuracy"]), 1) for one in sides)
    yield "the same, test loss in nats per pixel", "-", "; ".join(sweep.spread(one["nats_per_pixel"], 3) for one in sides)


def _objectives(found):
    recipe, trained = found["recipe"], found["pretraining"]
    counts = trained["autoregressive"]["baselines"]["per_position"]
    side = recipe["data"]["image_size"]
    losses = ", ".join(f"{trained[name]['nats_per_pixel']:.3f}" for name in trained)
    yield f"Fashion-MNIST at {side} x {side}, {recipe['steps']:,} steps: test loss, next pixel (counts: {counts:.3f}), masked pixels", "-", losses
    probes = ", ".join(percent(one["best"]["test"]) for one in found["probe"].values())
    yield f"{found['labels_per_class']} labels of each class: linear probe, next pixel, masked", "-", probes
    for loss in ("joint", "classification"):
        shares = {(one["objective"], one["start"]): one["mean"] for one in found["summary"] if one["loss"] == loss}
        told = [", ".join(percent(shares[objective, start]) for objective in trained) for start in ("pretrained", "scratch")]
        paper = "99.0, 98.6; - (CIFAR-10, L)" if loss == "joint" else "-"
        yield f"fine-tuned, {loss} loss: pretrained next pixel, masked; from scratch the same", paper, "; ".join(told)
    votes = found["bert_votes"]
    what = "masked, mean of the fine-tuned models: one mask, vote of 5"
    yield what, '"almost +1" on ImageNet', f"{percent(votes['mean_one_mask'])}, {percent(votes['mean_vote_of_5'])}"


ROWS = {
    "digits": _run("digits"),
    "cifar10_small": _run("CIFAR-10 (JPEG q75)"),
    "accuracy_by_layer": _layers,
    "twelve_layers/accuracy_by_layer": _layers,
    "accuracy_by_loss": _losses,
    "low_data": _few,
    "resolution": _sides,
    "fashion_mnist_small": _run("Fashion-MNIST"),
    "objectives": _objectives,
    "bench_palette": _palette,
    "colour_coding": _colours,
}


def _seeds(found):
    """Every seed that the file names."""
    seeds = sorted(_named("seed", found))
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _named(key, found):
    """The integers that stand under a key at any depth."""
    if isinstance(found, list):
        return set().union(*(_named(key, one) for one in found))
    if not isinstance(found, dict):
        return set()
    return {value for name, value in found.items() if name == key and isinstance(value, int)}.union(*(_named(key, value) for value in found.values()))


def objective_name(name):
    """What people call an objective."""
    return {"autoregressive": "next pixel", "bert": "masked pixels"}.get(name, name)


def model_name(curve):
    """The models of a curve over layers."""
    layers, width, seeds = curve["model"]["layers"], curve["model"]["width"], len(curve["seeds"])
    return f"{objective_name(curve['objective'])}, {layers} layers of width {width}, {seeds} seed{'s' if seeds != 1 else ''}"


def percent(share):
    """A share in percent."""
    return f"{100 * share:.1f} %"
