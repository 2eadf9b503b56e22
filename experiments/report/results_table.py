"""README's results: paper | ours | command | commit | hardware | seed, and the table of the demo.

Our numbers are read from the JSON files that commands wrote to experiments/results/. The paper's numbers stand here, with their place in the paper.
`python -m experiments.report.readme` writes the blocks.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.report import summary
from experiments.studies import sweep

HEAD = ["| what | paper | ours | command | commit, hardware, seed |", "|---|---|---|---|---|"]
IMAGENET = (
    "| ImageNet 32 x 32, S, test loss with OpenAI's weights | 2.0895 | not run here "
    "| `python -m igpt_jax.evaluate --checkpoint=runs/igpt-s --data=npy:DIR/imagenet --split=test` | - |"
)


class Row(NamedTuple):
    """One row of the table, without the columns that say where the number comes from; "-" where the paper has no number."""

    what: str
    paper: str
    ours: str


def block(results: pathlib.Path) -> str:
    """Return the table: the rows of each study that was run."""
    lines = []
    for name, study in read(results, STUDIES):
        command = f"`{study['command']}`, [{name}.json](experiments/results/{name}.json)"
        origin = f"{study['commit']}, {study['hardware']}, {_seeds(study)}"
        for row in STUDIES[name](study):
            lines.append(f"| {row.what} | {row.paper} | {row.ours} | {command} | {origin} |")
            command = origin = "as above"
    return "\n".join([*HEAD, *lines, IMAGENET, ""])


def read(results: pathlib.Path, names: Iterable[str]) -> Iterator[tuple[str, dict]]:
    """Return (name, contents of its JSON) of each study that was run."""
    for name in names:
        path = results / f"{name}.json"
        if path.exists():
            yield name, json.loads(path.read_text())


def demo(results: pathlib.Path) -> str:
    """Return what `make demo` prints at its end."""
    return summary.table(json.loads((results / "digits.json").read_text())) + "\n"


def run(data: str) -> Callable[[dict], Iterator[Row]]:
    """Return the function for a file that experiments.report.summary wrote of a run on `data`."""

    def rows(study: dict) -> Iterator[Row]:
        probe, test = study["probe"], study["test"]
        best, last, pixels = probe["best"], probe["last"], probe.get("raw_pixels")
        baseline, nats = summary.best_baseline(study)
        sizes = f"{data}, {probe['model']['parameters']:,} parameters, {test['step']:,} steps"
        yield Row(f"{sizes}: test loss, nats per pixel ({baseline} baseline: {nats:.3f})", "-", f"{test['nats_per_pixel']:.3f}")
        what = f"linear probe at the best layer ({best['layer']} of {last['layer']}), at the last" + (", raw pixels" if pixels else "")
        yield Row(what, "-", ", ".join(percent(row["test"]) for row in (best, last, pixels) if row))

    return rows


def bench_palette(study: dict) -> Iterator[Row]:
    """Show error and time of three k-means programs."""
    medians = [study["median"][name] for name in ("ours", "scikit-learn", "faiss")]
    what = f"palette of {study['colours']} colours on {study['pixels']:,} pixels of CIFAR-10 (JPEG q75): error of ours, scikit-learn, FAISS"
    yield Row(what, "-", ", ".join(f"{median['mse']:.6f}" for median in medians))
    yield Row("the same, seconds from the counted colours to the centres", "-", ", ".join(f"{median['seconds']:.1f}" for median in medians))


def colour_coding(study: dict) -> Iterator[Row]:
    """Show the PSNR of each picture at three sizes of the palette."""
    palettes = [palette for palette in study["sweep"] if palette["colours"] in (8, 512, 4096)]
    colours = ", ".join(str(palette["colours"]) for palette in palettes)
    for number, image in enumerate(study["images"]):
        yield Row(f"{image['name']} in {colours} colours of its own: PSNR, dB", "-", ", ".join(f"{palette['psnr'][number]:.1f}" for palette in palettes))


def accuracy_by_layer(study: dict) -> Iterator[Row]:
    """Show the best layer and the last one of each curve, and raw pixels."""
    for curve in study["curves"]:
        best, lost = curve["best"], curve["lost_by_the_last_layer"]
        paper = "96.3 % at 20 of 48, 94.0 % (L, figure 2)" if curve["objective"] == "autoregressive" else "-"
        layer = f"{best['layer']} of {curve['layers'][-1]}{'' if best['inside'] else ': an end'}"
        ours = f"{percent(best['test'])} at {layer}, {percent(curve['mean'][-1])}: {100 * lost['mean']:+.1f} points"
        yield Row(f"{curve['data']}, probe at the best layer, at the last: {model_name(curve)}", paper, ours)
    for data, accuracy in study["raw_pixels"].items():
        yield Row(f"{data}, raw pixels", "-", percent(accuracy))


def accuracy_by_loss(study: dict) -> Iterator[Row]:
    """Show the gain of each size over the next smaller one at equal loss."""
    for pair in study["verdict"]["pairs"]:
        what = f"gain of {pair['larger']} over {pair['smaller']} (layers x width) in probe accuracy at equal loss, points (95 % interval)"
        ours = f"{pair['verdict']}: {pair['why']}"
        if pair["interval"]:
            ours = f"{100 * pair['gain']:+.1f} ({' to '.join(f'{100 * end:+.1f}' for end in pair['interval'])}): {ours}"
        yield Row(what, "above 0 (figure 3)", ours)


def low_data(study: dict) -> Iterator[Row]:
    """Show probes and fine-tuning from few labels."""
    for curve in study["curves"]:
        in_paper = curve["way"] == "linear probe" and curve["objective"] == "autoregressive"
        paper = "; ".join(f"{study['paper']['percent'].get(labels, '-')}" for labels in curve["accuracies"]) + " (L, table 4)" if in_paper else "-"
        what = f"{curve['way']}, {objective_name(curve['objective'])}, {', '.join(curve['accuracies'])} labels of each class, %"
        yield Row(what, paper, "; ".join(sweep.spread(100 * np.array(accuracies), 1) for accuracies in curve["accuracies"].values()))


def resolution(study: dict) -> Iterator[Row]:
    """Show probe accuracy and loss at each resolution."""
    rows, paper = study["sides"], ", ".join(f"{accuracy} ({resolution})" for resolution, accuracy in study["paper"]["percent"].items())
    what = f"probe at the best layer, images of resolution {', '.join(str(row['side']) for row in rows)}, %"
    yield Row(what, paper, "; ".join(sweep.spread(100 * np.array(row["accuracy"]), 1) for row in rows))
    yield Row("the same, test loss in nats per pixel", "-", "; ".join(sweep.spread(row["nats_per_pixel"], 3) for row in rows))


def objectives(study: dict) -> Iterator[Row]:
    """Show losses, probes and fine-tuning of the two objectives."""
    recipe, trained = study["recipe"], study["pretraining"]
    counts = trained["autoregressive"]["baselines"]["per_position"]
    data = f"Fashion-MNIST at {recipe['data']['image_size']} x {recipe['data']['image_size']}, {recipe['steps']:,} steps"
    losses = ", ".join(f"{test['nats_per_pixel']:.3f}" for test in trained.values())
    yield Row(f"{data}: test loss, next pixel (counts: {counts:.3f}), masked pixels", "-", losses)
    probes = ", ".join(percent(probe["best"]["test"]) for probe in study["probe"].values())
    yield Row(f"{study['labels_per_class']} labels of each class: linear probe, next pixel, masked", "-", probes)
    for loss, paper in (("joint", "99.0, 98.6; - (CIFAR-10, L)"), ("classification", "-")):
        means = {(row["objective"], row["start"]): row["mean"] for row in study["summary"] if row["loss"] == loss}
        ours = "; ".join(", ".join(percent(means[objective, start]) for objective in trained) for start in ("pretrained", "scratch"))
        yield Row(f"fine-tuned, {loss} loss: pretrained next pixel, masked; from scratch the same", paper, ours)
    votes = study["bert_votes"]
    what = "masked, mean of the fine-tuned models: one mask, vote of 5"
    yield Row(what, '"almost +1" on ImageNet', f"{percent(votes['mean_one_mask'])}, {percent(votes['mean_vote_of_5'])}")


STUDIES = {  # file in experiments/results/ -> its rows
    "digits": run("digits"),
    "cifar10_small": run("CIFAR-10 (JPEG q75)"),
    "accuracy_by_layer": accuracy_by_layer,
    "twelve_layers/accuracy_by_layer": accuracy_by_layer,
    "accuracy_by_loss": accuracy_by_loss,
    "low_data": low_data,
    "resolution": resolution,
    "fashion_mnist_small": run("Fashion-MNIST"),
    "objectives": objectives,
    "bench_palette": bench_palette,
    "colour_coding": colour_coding,
}


def _seeds(study):
    """Every seed that the file names, as text."""
    seeds = sorted(_integers("seed", study))
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _integers(key, tree):
    """The set of integers under a key at any depth."""
    if isinstance(tree, list):
        return set().union(*(_integers(key, child) for child in tree))
    if not isinstance(tree, dict):
        return set()
    return {value for name, value in tree.items() if name == key and isinstance(value, int)}.union(*(_integers(key, child) for child in tree.values()))


def objective_name(objective: str) -> str:
    """Return the name of an objective for readers."""
    return {"autoregressive": "next pixel", "bert": "masked pixels"}.get(objective, objective)


def model_name(curve: dict) -> str:
    """Return objective, size and number of seeds of a curve over layers, as text."""
    layers, width, seeds = curve["model"]["layers"], curve["model"]["width"], len(curve["seeds"])
    return f"{objective_name(curve['objective'])}, {layers} layers of width {width}, {seeds} seed{'s' if seeds != 1 else ''}"


def percent(share: float) -> str:
    """Return a share in percent, as text."""
    return f"{100 * share:.1f} %"
