"""How near are a model's pictures to real ones? The Frechet distance in the model's own features.

    python -m experiments.studies.sample_quality --checkpoint=cifar10-16 --layer=11 --data=npz:runs/cifar10

Yan et al. (arXiv 2511.08704) evaluate next-pixel models by the Frechet distance of completions of the upper half. Here the features are those of one layer of
the same model, the mean over positions (igpt_jax.features; --layer, by default the best layer of CHECKPOINT/probe.json, else the middle one). Distances of
two models are therefore in different units and cannot be compared; conditions of one model can. Every picture is compared in the palette's colours.

Each draw takes --count test images as the reference and as many others, which no other draw has, and measures the distance to the reference of
- the other images as they are: the floor, since the distance of two finite sets of one distribution is above 0,
- their completions from the upper half, and pictures from nothing, in each condition of --temperatures and --top-ps,
- the other images with their pixels exchanged among images at each position: right colours, no structure.
All sets have equally many images, so the bias of small samples, which grows as they get smaller, is in all distances; only differences from the floor mean
something, and a larger --count gives smaller numbers. Draws the means over --draws with 95 % intervals to --out; OUT.json holds the numbers.

I images, D width, S sequence.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.report.intervals import interval_of_mean
from experiments.report.provenance import provenance, typed
from experiments.studies import nearest, outputs
from igpt_jax.cli import SEEDS, Parser, integer, list_of, real
from igpt_jax.inspection import batches
from igpt_jax.progress import Progress
from igpt_jax.sampling.generate import sample_codes
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained

FLOOR, SHUFFLED = "other test images", "their pixels exchanged"


def frechet_distance(first_ID: np.ndarray, second_ID: np.ndarray) -> float:
    """Return the squared Frechet distance of two Gaussians with the means and covariances of two sets of features, computed in float64.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^0.5 C2 C1^0.5)^0.5), as the Frechet inception distance (Heusel et al. 2017) has it. ValueError for sets with no more
    rows than features, whose covariance is singular, and for values that are not finite.
    """
    from scipy.linalg import eigh

    sets = [np.asarray(features, np.float64) for features in (first_ID, second_ID)]
    for features_ID in sets:
        rows, width = features_ID.shape
        if rows <= width:
            raise ValueError(f"{rows} images are too few for features of width {width}: their covariance needs at least {width + 1}")
        if not np.isfinite(features_ID).all():
            raise ValueError(f"{(~np.isfinite(features_ID)).sum()} features are not finite")
    (mean, other_mean), (covariance, other_covariance) = zip(*((each.mean(axis=0), np.atleast_2d(np.cov(each, rowvar=False))) for each in sets), strict=True)
    values, vectors = eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T  # by eigenvalues, because a feature may be the same in all images
    product = np.maximum(eigh(root @ other_covariance @ root, eigvals_only=True), 0)
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(product).sum())


def run(arguments: argparse.Namespace) -> dict:
    """Draw the pictures, measure, draw the figure, and return the contents of the JSON file."""
    pretrained = checkpoints.load(arguments.checkpoint)
    layer, width = nearest.choose_layer(pretrained, arguments), pretrained.model_config.width
    if arguments.count <= width:
        raise ValueError(f"--count={arguments.count} must be above {width}, the width of the features: fewer images have a singular covariance")
    needed = 2 * arguments.count * arguments.draws
    test = batches.open_images(pretrained, needed, "test", arguments.data)
    if len(test) < needed:
        raise ValueError(f"{arguments.draws} draws of 2 x {arguments.count} test images are {needed:,}, and there are {len(test):,}: lower one of them")
    codes_RIS = test.codes(np.arange(needed), pretrained.palette).reshape(2 * arguments.draws, arguments.count, -1)
    distances: dict[str, list[float]] = {}
    with Progress("measuring", arguments.draws, "draws") as progress:
        for number in range(arguments.draws):
            measured = measure(pretrained, arguments, *codes_RIS[2 * number : 2 * number + 2], layer, number)
            for name, distance in measured.items():
                distances.setdefault(name, []).append(distance)
            progress.advance(1)
    result = outputs.facts_of(arguments.checkpoint, pretrained) | {"layer": layer, "images_in_each_set": arguments.count, "draws": arguments.draws}
    result |= {"rows_given": pretrained.image_size // 2, "seed": arguments.seed, "sets": {name: summary(values) for name, values in distances.items()}}
    result |= provenance(typed("studies.sample_quality"))
    draw(result).savefig(arguments.out, dpi=150)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def measure(
    pretrained: Pretrained, arguments: argparse.Namespace, reference_IS: np.ndarray, others_IS: np.ndarray, layer: int, number: int
) -> dict[str, float]:
    """Return {name: distance to the reference} of all sets of one draw."""
    sets = picture_sets(pretrained, arguments, others_IS, number)
    codes = np.concatenate([reference_IS, *sets.values()])  # in one call, which compiles once
    reference_ID, *features = np.split(nearest.describe(pretrained, codes, layer, arguments.batch).features, len(sets) + 1)
    return {name: frechet_distance(features_ID, reference_ID) for name, features_ID in zip(sets, features, strict=True)}


def picture_sets(pretrained: Pretrained, arguments: argparse.Namespace, real_IS: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """Return {name: codes int32 [I, S]} of all sets of one draw that are compared with its reference."""
    key = jax.random.fold_in(jax.random.key(arguments.seed), number)
    generator = np.random.default_rng((arguments.seed, number))
    sets = {FLOOR: real_IS}
    given_IP = real_IS[:, : pretrained.image_size // 2 * pretrained.model_config.columns]
    for temperature, top_p in conditions(arguments):
        settings = {"temperature": temperature, "top_p": top_p, "batch": arguments.batch}
        sets[f"completions, {named(temperature, top_p)}"] = sample_codes(pretrained.model, given_IP, key, 1, **settings)[:, 0]
        sets[f"from nothing, {named(temperature, top_p)}"] = sample_codes(pretrained.model, given_IP[:1, :0], key, len(real_IS), **settings)[0]
    return sets | {SHUFFLED: generator.permuted(real_IS, axis=0)}


def conditions(arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """Return (temperature, top_p) of each condition: every temperature with all colours, then every top-p at temperature 1."""
    return [(temperature, 1.0) for temperature in arguments.temperatures] + [(1.0, top_p) for top_p in arguments.top_ps]


def named(temperature: float, top_p: float) -> str:
    """Return a condition in words."""
    return f"top-p {top_p:g}" if top_p < 1 else f"temperature {temperature:g}"


def summary(values: list[float]) -> dict[str, Any]:
    """Return the distances of all draws, their mean, its standard error and its 95 % interval."""
    measured = np.array(values)
    interval = [float(end) for end in interval_of_mean(measured)]
    return {"mean": float(measured.mean()), "standard_error": float(measured.std(ddof=1) / len(values) ** 0.5), "interval": interval, "distances": values}


def title(result: dict) -> str:
    """Say the distances of the floor, and of the nearest set of completions and of pictures from nothing."""

    def text(name: str) -> str:
        return f"{result['sets'][name]['mean']:.3g} ± {result['sets'][name]['standard_error']:.1g}"

    best = [min((name for name in result["sets"] if name.startswith(kind)), key=lambda name: result["sets"][name]["mean"]) for kind in ("completions", "from")]
    said = f"{FLOOR} {text(FLOOR)}; {best[0]} {text(best[0])};\n{best[1]} {text(best[1])}; {SHUFFLED} {text(SHUFFLED)}"
    what = f"Frechet distance to {result['images_in_each_set']} test images, features of layer {result['layer']}"
    return f"{what} (mean ± standard error of {result['draws']} draws):\n{said}"


def draw(result: dict) -> Any:
    """Draw the distance of every set, a mark with its 95 % interval for the mean and a dot for each draw."""
    from matplotlib.figure import Figure

    names = list(result["sets"])
    figure = Figure(figsize=(12, 2.2 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        found = result["sets"][name]
        marker, colour = ("s", "#444444") if name in (FLOOR, SHUFFLED) else ("o", "#08519c") if name.startswith("completions") else ("^", "#d95f02")
        errors = [[found["mean"] - found["interval"][0]], [found["interval"][1] - found["mean"]]]
        axes.errorbar(found["mean"], place, xerr=errors, fmt=marker, color=colour, capsize=4, markersize=8)
        axes.plot(found["distances"], [place] * len(found["distances"]), "|", color=colour, markersize=12, alpha=0.6)
        axes.annotate(f"{found['mean']:.3g}", (found["mean"], place), textcoords="offset points", xytext=(0, 9), ha="center", fontsize=9)
    axes.axvline(result["sets"][FLOOR]["mean"], color="#444444", linewidth=1, linestyle=":")
    axes.set(yticks=range(len(names)), yticklabels=names, xscale="log", ylim=(len(names) - 0.4, -0.7))
    axes.set_xlabel(f"squared Frechet distance (log scale); {result['draws']} draws (ticks), mean with 95 % interval; dotted: two sets of real images")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25, axis="x", which="both")
    figure.suptitle(title(result), fontsize=12)
    return figure


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.sample_quality", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--data", help="data source of the test images (see igpt_jax/data/config.py); default: the one the model was trained on")
    parser.add_argument("--count", type=integer(2), default=256, help="images in each set, more than the model's width")
    parser.add_argument("--draws", type=integer(2), default=4, help="of images and of pictures, over which the standard errors are")
    parser.add_argument("--layer", type=integer(), help="whose features are compared; default: the best of CHECKPOINT/probe.json, else the middle one")
    temperature, top_p = real("a number of at least 0", lambda value: value >= 0), real("a number above 0 and below 1", lambda value: 0 < value < 1)
    parser.add_argument("--temperatures", type=list_of(temperature), default=[1.0, 0.9], help="conditions, each with all colours: 1,0.9")
    parser.add_argument("--top-ps", type=list_of(top_p), default=[0.9], help="conditions, each at temperature 1: 0.9")
    parser.add_argument("--seed", type=integer(0, SEEDS), default=0, help="of all draws")
    parser.add_argument("--batch", type=integer(1), default=128, help="images at once")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("sample_quality.png"), help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    result = outputs.start(run, arguments, {})
    outputs.tell(title(result), arguments.out)


if __name__ == "__main__":
    main()
