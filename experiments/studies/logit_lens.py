"""What would each layer of a model predict if it were the last?

    python -m experiments.studies.logit_lens --checkpoint=runs/cifar10-16

The logit lens (nostalgebraist 2020; igpt_jax.logit_lens) applies final norm and output head to the residual stream after each layer. Measures on --count
test images, those of `igpt_jax.evaluate --limit`, the loss of every layer, and the share of pixels whose most likely colour is already that of the last layer.
A bert model is measured on the pixels that `igpt_jax.evaluate` masks. The loss of the last layer is that of `igpt_jax.evaluate`. Draws both, and the most
likely colour of every pixel of some pictures at each layer, to --out; OUT.json holds the numbers.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from experiments.report.intervals import interval_of_mean
from experiments.report.provenance import provenance, typed
from experiments.report.summary import baselines_of
from experiments.studies import outputs
from igpt_jax.cli import Parser, integer
from igpt_jax.inspection import batches, lens
from igpt_jax.interop import hub
from igpt_jax.sampling import complete
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained

COUNTED = 10_000  # training images whose colours are counted
SHOWN = 4  # test images in the picture
MOST_COLUMNS = 13  # layers in the picture


def run(arguments: argparse.Namespace) -> dict:
    """Measure, draw the figure, and return the contents of the JSON file."""
    pretrained = hub.load(arguments.checkpoint)
    config = pretrained.model_config
    train, dataset = (batches.open_images(pretrained, count, split, arguments.data) for count, split in ((COUNTED, "all_train"), (arguments.count, "test")))
    chosen = arguments.images or complete.one_of_each_class(pretrained, arguments.shown or SHOWN, source=arguments.data)
    nats_LI, agreed_LI = measure(pretrained, dataset, arguments.batch)
    baselines = {"uniform": config.tokens_per_pixel * float(np.log(config.vocabulary))} | baselines_of(pretrained, train, dataset)
    result = outputs.facts_of(arguments.checkpoint, pretrained, ("objective", "layers", "width", "heads"))
    result |= {"images": len(dataset), "baselines": baselines, "layers": rows(nats_LI, agreed_LI)}
    result |= provenance(typed("studies.logit_lens"))
    shown_IS = batches.encode_pictures(pretrained, chosen)
    figure = draw(result, batches.decode_pictures(pretrained, shown_IS), predicted_pictures(pretrained, shown_IS))
    figure.savefig(arguments.out, dpi=150)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def measure(pretrained: Pretrained, dataset: Any, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nats per pixel, and the share of pixels whose most likely colour is the last layer's, of every layer and image, both float64 [L + 1, I]."""
    nats, agreed, tokens = [], [], pretrained.model_config.tokens_per_pixel
    for images, count in batches.evaluation_batches(pretrained, dataset, batch):
        found = lens.logit_lens(pretrained, images.codes, images.mask)
        nats.append(lens.nats_per_pixel(pretrained, found, images.mask)[:, :count])
        same_LBP = (found.likeliest == found.likeliest[-1]).reshape(*found.likeliest.shape[:2], -1, tokens).all(axis=-1)
        counted_BP = np.ones(same_LBP.shape[1:]) if images.mask is None else images.mask.reshape(len(images.mask), -1, tokens).max(axis=-1)
        agreed.append(((same_LBP * counted_BP).sum(axis=-1) / counted_BP.sum(axis=-1))[:, :count])
    return np.concatenate(nats, axis=1).astype(np.float64), np.concatenate(agreed, axis=1)


def rows(nats_LI: np.ndarray, agreed_LI: np.ndarray) -> list[dict]:
    """Return for each layer the mean over images and its 95 % interval of both measures."""

    def mean_and_interval(values_I: np.ndarray) -> dict:
        return {"mean": float(values_I.mean()), "interval": [float(end) for end in interval_of_mean(values_I)]}

    both = zip(nats_LI, agreed_LI, strict=True)
    return [{"layer": layer, "nats_per_pixel": mean_and_interval(nats), "agreement": mean_and_interval(agreed)} for layer, (nats, agreed) in enumerate(both)]


def predicted_pictures(pretrained: Pretrained, codes_IS: np.ndarray) -> np.ndarray:
    """Return the pictures of every layer's most likely colours, uint8 [L + 1, I, H, H, 3]; each pixel is predicted from true ones."""
    return batches.decode_pictures(pretrained, lens.whole_lens(pretrained, codes_IS).likeliest)


def title(result: dict) -> str:
    """Say how much of the way half of the layers go, and from which layer on most pixels have their final colour."""
    layers, last = result["layers"], result["model"]["layers"]
    settled = next(row for row in layers if row["agreement"]["mean"] >= 0.5)
    loss = f"from {layers[0]['nats_per_pixel']['mean']:.2f} to {layers[-1]['nats_per_pixel']['mean']:.2f} nats per pixel"
    return f"The loss falls {loss}; after layer {settled['layer']} of {last}, {100 * settled['agreement']['mean']:.0f} % of the pixels have their final colour"


def draw(result: dict, originals: np.ndarray, predicted: np.ndarray) -> Any:
    """Draw loss and agreement by layer, and below them the pictures."""
    from matplotlib.figure import Figure

    shown = np.unique(np.linspace(0, len(predicted) - 1, min(MOST_COLUMNS, len(predicted))).round().astype(int))
    height = 13.6 / (len(shown) + 1) * len(originals)
    figure = Figure(figsize=(15, 4.2 + height), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.8, height + 0.4))
    _curves(upper.subplots(1, 2), result)
    grid = np.reshape(lower.subplots(len(originals), len(shown) + 1), (len(originals), -1))
    for axes_C, original, layers in zip(grid, originals, predicted.swapaxes(0, 1), strict=True):
        for axes, picture in zip(axes_C, [*layers[shown], original], strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
    names = ["embedding" if layer == 0 else f"layer {layer}" for layer in shown]
    for axes, name in zip(grid[0], [*names, "the picture"], strict=True):
        axes.set_title(name, fontsize=10)
    given = "the pixels that are not masked with it" if result["model"]["objective"] == "bert" else "the true pixels before it"
    lower.suptitle(f"the most likely colour of each pixel, given {given}", fontsize=11)
    figure.suptitle(title(result), fontsize=13)
    return figure


def _curves(axes_2: Any, result: dict) -> None:
    layers = [row["layer"] for row in result["layers"]]
    for axes, name, scale, label in zip(axes_2, ("nats_per_pixel", "agreement"), (1, 100), ("nats per pixel", "pixels, %"), strict=True):
        mean = scale * np.array([row[name]["mean"] for row in result["layers"]])
        interval = scale * np.array([row[name]["interval"] for row in result["layers"]])
        axes.errorbar(layers, mean, np.abs(interval.T - mean), fmt="o-", color="#08519c", markersize=5, capsize=3)
        for layer, value in list(zip(layers, mean, strict=True))[:: max(1, len(layers) // 12)]:
            text = f"{value:.2f}" if scale == 1 else f"{value:.0f}"
            axes.annotate(text, (layer, value), (3, 7), textcoords="offset points", ha="left" if scale == 1 else "center", fontsize=8.5)
        axes.set(xlabel="layer (0: the embedding)", ylabel=label, ylim=(0, 1.12 * interval.max()))
        axes.set_xticks(layers[:: max(1, len(layers) // 12)])
        axes.grid(alpha=0.25)
    baselines = {"uniform": "all colours alike", "per_position": "counts of colours at each position"}
    for (name, text), style in zip(baselines.items(), (":", "--"), strict=True):
        axes_2[0].axhline(result["baselines"][name], color="#d95f02", linestyle=style, label=f"{text}: {result['baselines'][name]:.2f}")
    axes_2[0].legend(frameon=False, loc="lower left")
    axes_2[0].set_title(f"loss if the layer were the last, {result['images']:,} test images, 95 % interval")
    axes_2[1].set_title("pixels whose most likely colour is already the last layer's")


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.logit_lens", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--data", help="data source of the test images (see igpt_jax/data/config.py); default: the one that the model was trained on")
    parser.add_argument("--count", type=integer(1), default=1000, help="test images that are measured, drawn at random, always the same")
    parser.add_argument("--shown", type=integer(1), help=f"test images that are drawn, one of each class in turn (default: {SHOWN})")
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="image files to draw instead")
    parser.add_argument("--batch", type=integer(1), default=20, help="images at once")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("logit_lens.png"), help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    result = outputs.start(run, arguments, {"images": ("shown",)}, inputs=arguments.images or ())
    outputs.tell(title(result), arguments.out)


if __name__ == "__main__":
    main()
