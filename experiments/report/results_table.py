"""README's results: paper | ours | command | commit | hardware | seed, and the table of the demo.

Our numbers are read from the JSON files that commands wrote to experiments/results/. The paper's numbers stand here, with their place in the paper.
`python -m experiments.report.readme` writes the blocks.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.report import summary
from experiments.report.measurements import read_results
from experiments.studies import marks, sweep

HEAD = ["| what | paper | ours | command | commit, hardware, seed |", "|---|---|---|---|---|"]
IMAGENET = (
    "| ImageNet 32 x 32, S, test loss with OpenAI's weights | 2.0895 | not run here "
    "| `python -m igpt_jax.evaluate --checkpoint=runs/igpt-s --data=npy:DIR/imagenet --split=test` | - |"
)

IN_PAPER = {  # kind of classifier of few labels -> the key of the paper's numbers in the study's file, and their place
    "linear probe, next pixel": ("percent", "table 4"),
    "fine-tuned, next pixel, pretrained, joint": ("fine-tuned", "text"),
}


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
            yield name, read_results(path)


def demo(results: pathlib.Path) -> str:
    """Return what `make demo` prints at its end."""
    return summary.table(read_results(results / "digits.json")) + "\n"


def run(data: str) -> Callable[[dict], Iterator[Row]]:
    """Return the function for a file that experiments.report.summary wrote of a run on `data`."""

    def rows(study: dict) -> Iterator[Row]:
        probe, test = study["probe"], study["test"]
        parameters = (study.get("model") or probe["model"])["parameters"]
        sizes = f"{data} {coded(study)}, {parameters:,} parameters, {test['step']:,} steps"
        counts = ", ".join(f"{name.replace('_', '-')} baseline: {nats:.3f}" for name, nats in sorted(study["baselines"].items()))
        yield Row(f"{sizes}: test loss, nats per pixel ({counts})", "-", f"{test['nats_per_pixel']:.3f}")
        if before := study.get("before"):
            yield Row(f"the same at step {before['step']:,}, before the learning rate fell", "-", f"{before['nats_per_pixel']:.3f}")
        if not probe:
            return
        best, last, pixels = probe["best"], probe["last"], probe.get("raw_pixels")
        what = f"linear probe at the best layer ({best['layer']} of {last['layer']}), at the last" + (", raw pixels" if pixels else "")
        yield Row(what, "-", ", ".join(percent(row["test"]) for row in (best, last, pixels) if row))

    return rows


def bench_palette(study: dict) -> Iterator[Row]:
    """Show error and time of three k-means programs."""
    medians = [study["median"][name] for name in ("ours", "scikit-learn", "faiss")]
    what = f"palette of {study['colours']} colours on {study['pixels']:,} pixels of CIFAR-10 (JPEG q75): error of ours, scikit-learn, FAISS"
    yield Row(what, "-", ", ".join(f"{median['mse']:.6f}" for median in medians))
    yield Row("the same, seconds from the counted colours to the centres", "-", ", ".join(f"{median['seconds']:.1f}" for median in medians))


def coded(study: dict) -> str:
    """Return resolution and palette of a run, which its losses are of: losses of others cannot be compared with them."""
    images = study.get("images") or {"image_size": study["palette"]["data"]["image_size"], "colours": study["palette"]["size"]}
    size, colours = images["image_size"], images["colours"]
    return f"at {size} x {size} in {colours} colours"


def colour_coding(study: dict) -> Iterator[Row]:
    """Show the PSNR of each picture at three sizes of the palette."""
    palettes = [palette for palette in study["sweep"] if palette["colours"] in (8, 512, 4096)]
    colours, names = ", ".join(str(palette["colours"]) for palette in palettes), " and ".join(image["name"] for image in study["images"])
    for number, image in enumerate(study["images"]):
        what = f"{image['name']} in {colours} colours, each palette fitted on {names}{' together' * (len(study['images']) > 1)}: PSNR, dB"
        yield Row(what, "-", ", ".join(f"{palette['psnr'][number]:.1f}" for palette in palettes))


def accuracy_by_layer(study: dict) -> Iterator[Row]:
    """Show the best layer and the last one of each curve, and raw pixels, with 95 % intervals."""
    for curve in study["curves"]:
        best, lost = curve["best"], curve["lost_by_the_last_layer"]
        in_paper = (curve["objective"], curve["way"]) == ("autoregressive", "linear probe")
        layer = f"{best['layer']} of {curve['layers'][-1]}{'' if best['inside'] else ': an end'}"
        last = f"{percent(curve['mean'][-1])} ({marks.points(curve['interval'][-1])})"
        ours = f"{percent(best['test'])} ({marks.points(best['interval'])}) at {layer}, {last}: {100 * lost['mean']:+.1f} points"
        what = f"{curve['data']}, {curve['way']} at the best layer, at the last: {model_name(curve)}"
        yield Row(what, figure_2(study["paper"]) if in_paper else "-", ours)
    for row in study["raw_pixels"]:
        what = f"{row['data']} at {row['resolution']} x {row['resolution']}, {row['way']} of raw pixels"
        yield Row(what, "-", f"{percent(row['test'])} ({marks.points(row['interval'])})")


def figure_2(paper: dict) -> str:
    """Return the paper's accuracy at its best layer and at its last, as text."""
    percents = {int(layer): percent for layer, percent in paper["percent"].items()}
    best, last = max(percents, key=percents.__getitem__), paper["layers"]
    return f"{percents[best]} % at {best} of {last}, {percents[last]} % (L, figure 2)"


def accuracy_by_loss(study: dict) -> Iterator[Row]:
    """Show the gain of each size over the next smaller one at equal loss, with its 95 % interval, and raw pixels."""
    for pair in study["gains"]:
        what = f"gain of {pair['larger']} over {pair['smaller']} (layers x width) in probe accuracy at equal loss, points"
        gain = pair["why"] if pair["gain"] is None else f"{100 * pair['gain']:+.1f} ({marks.points(pair['interval'], '+')})"
        yield Row(what, "above 0 (figure 3)", gain)
    if pixels := study["raw_pixels"]:
        yield Row("linear probe of raw pixels, the same images and labels, %", "-", with_interval(pixels["accuracy"], pixels["interval"]))


def few_labels(study: dict) -> Iterator[Row]:
    """Show the losses of the models of a study of few labels, and each kind of classifier at each number of labels."""
    for objective, model in study["models"].items():
        size = f"{model['layers']}x{model['width']} at {model['image_size']} x {model['image_size']}, {model['step']:,} steps"
        what = f"{objective_name(objective)}, {size}: test loss, nats per pixel (per-position baseline {model['baselines']['per_position']:.3f})"
        yield Row(what, "-", f"{model['nats_per_pixel']:.3f}")
    groups: dict[str, list[dict]] = {}
    for row in study["rows"]:
        factors = row["factors"]
        names = [factors["way"], "raw pixels" if "features" in factors else objective_name(factors["objective"])]
        names += [factors[key] for key in ("start", "loss") if key in factors] + ([_counted(factors["masks"], "mask")] if "masks" in factors else [])
        groups.setdefault(", ".join(names), []).append(row)
    for what, rows in groups.items():
        labels = [str(row["factors"]["labels"]) for row in rows]
        key, place = IN_PAPER.get(what, ("", ""))
        in_paper = study.get("paper", {}).get(key, {})
        paper = "; ".join(str(in_paper.get(size, "-")) for size in labels) + f" (L, {place})" if in_paper else "-"
        ours = "; ".join(with_interval(row["mean"], row["interval"]) for row in rows)
        yield Row(f"{what}, {', '.join(labels)} labels of each class, {_counted(len(rows[0]['seeds']), 'draw')}, %", paper, ours)


def _counted(number, noun):
    return f"{number} {noun}{'s' if number != 1 else ''}"


def resolution(study: dict) -> Iterator[Row]:
    """Show probe accuracy, that of raw pixels, and loss at each resolution."""
    rows, paper = study["sides"], ", ".join(f"{accuracy} ({resolution})" for resolution, accuracy in study["paper"]["percent"].items())
    sides = f"images of resolution {', '.join(str(row['side']) for row in rows)}"
    yield Row(f"probe at the best layer, {sides}, %", paper, "; ".join(with_interval(np.mean(row["accuracy"]), row["interval"]) for row in rows))
    if all(row["raw_pixels"] for row in rows):
        pixels = "; ".join(with_interval(row["raw_pixels"], row["raw_pixels_interval"]) for row in rows)
        yield Row("the same, raw pixels, %", "-", pixels)
    what = f"the same, test loss in nats per pixel, and its deviation over {len(rows[0]['seeds'])} seeds"
    yield Row(what, "-", "; ".join(sweep.spread(row["nats_per_pixel"], 3) for row in rows))


def with_interval(share: float, interval: Sequence[float]) -> str:
    """Return a share and its 95 % interval in percent, as text."""
    return f"{100 * share:.1f} ({marks.points(interval)})"


STUDIES = {  # file in experiments/results/ -> its rows
    "digits": run("digits"),
    "cifar10_16": run("CIFAR-10 (JPEG q75)"),
    "accuracy_by_layer": accuracy_by_layer,
    "accuracy_by_loss": accuracy_by_loss,
    "low_data": few_labels,
    "resolution": resolution,
    "fashion_mnist_small": run("Fashion-MNIST"),
    "objectives": few_labels,
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
