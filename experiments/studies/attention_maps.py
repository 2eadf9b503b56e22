"""Where does each layer and each head of a model look when it predicts a pixel?

    python -m experiments.studies.attention_maps --checkpoint=runs/cifar10-16 --number=3 --row=9 --column=7

Draws the attention of one pixel of one picture over the picture, the mean over heads for every layer and single heads for three layers, to --out. Beside it
OUT_heads.png shows every head's mean map by offset from the predicted pixel, over --count test images, and how much weight lies on the pixel to the left, on
the one above and on the start vector. OUT.json holds the numbers. The weights are those of the forward pass (igpt_jax.attention_maps). A causal model sees
only pixels before the predicted one. For a bert model the predicted pixel is masked, and in the averages the pixels that `igpt_jax.evaluate` masks.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from experiments.report.intervals import interval_of_mean
from experiments.report.provenance import provenance, typed
from experiments.studies import outputs
from igpt_jax.cli import Parser, integer, list_of
from igpt_jax.inspection import batches, maps, pictures
from igpt_jax.interop import hub
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained

NEIGHBOURS = {"left": (0, -1), "above": (-1, 0)}  # rows and columns from the predicted pixel
SHARES = {"left": "on the pixel to the left", "above": "on the pixel above", "start": "on the start vector"}
MARKERS = "os^DvP*X<>dh"  # of heads


def run(arguments: argparse.Namespace) -> dict:
    """Compute the maps, draw both figures, and return the contents of the JSON file."""
    pretrained = hub.load(arguments.checkpoint)
    config, side = pretrained.model_config, pretrained.image_size
    row, column = (side // 2 if place is None else place for place in (arguments.row, arguments.column))
    layers = sorted({1, (config.layers + 1) // 2, config.layers}) if arguments.layers is None else arguments.layers
    maps.chosen("--layers", layers, 1, config.layers)
    maps.tokens_of_pixel(config, row, column)
    dataset = batches.open_images(pretrained, arguments.count, source=arguments.data)
    codes_S, name = choose_picture(pretrained, arguments)
    pixel_map = maps.pixel_maps(pretrained, codes_S, row, column)
    result = outputs.facts_of(arguments.checkpoint, pretrained, ("objective", "layers", "width", "heads"))
    result["pixel"] = {"picture": name, "row": row, "column": column, "layers": layers, "strongest": strongest(config, pixel_map, row, column)}
    result["images"] = len(dataset)
    heads, profile = head_statistics(pretrained, dataset, arguments.batch)
    uniform = maps.uniform_offset_maps(config)
    result |= {"heads": heads, "uniform": {name: float(value) for name, value in measures(uniform.pixels, uniform.start).items()}}
    result |= provenance(typed("studies.attention_maps"))
    picture = batches.decode_pictures(pretrained, codes_S)
    draw_pixel(result, picture, pixel_map, pictures.unseen_pixels(config, row, column)).savefig(arguments.out, dpi=150)
    draw_heads(result, profile).savefig(heads_path(arguments.out), dpi=150)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def heads_path(out: pathlib.Path) -> pathlib.Path:
    """The file of the second figure."""
    return out.with_name(f"{out.stem}_heads.png")


def choose_picture(pretrained: Pretrained, arguments: argparse.Namespace) -> tuple[np.ndarray, str]:
    """Return (codes int32 [S], name) of the picture: a file, or a test image by its number."""
    if arguments.image is not None:
        return batches.encode_pictures(pretrained, arguments.image)[0], arguments.image.name
    dataset, number = batches.open_images(pretrained, 0, source=arguments.data), arguments.number or 0
    if number >= len(dataset):
        raise ValueError(f"--number={number} must be below {len(dataset)}, the number of test images")
    return dataset.codes([number], pretrained.palette)[0], f"test image {number}"


def strongest(config: ModelConfig, pixel_map: maps.PixelMap, row: int, column: int) -> list[list[dict]]:
    """Return for each layer and head what has the largest weight: {pixel, is, weight}.

    `pixel` is [row, column], None for the start vector; `is` says where it lies: left, above, 2 up 1 right, ..., or start.
    """
    found = []
    for maps_NHH, start_N in zip(*pixel_map, strict=True):
        found.append([])
        for map_HH, start in zip(maps_NHH, start_N, strict=True):
            place = tuple(map(int, np.unravel_index(map_HH.argmax(), map_HH.shape)))
            offset = place[0] - row, place[1] - column
            on_start = config.causal and start > map_HH.max()
            weight = float(start if on_start else map_HH.max())
            found[-1].append({"pixel": None if on_start else list(place), "is": "start" if on_start else in_words(*offset), "weight": weight})
    return found


def in_words(row: int, column: int) -> str:
    """Say where a pixel lies from the predicted one: left, above, itself, or 2 up 1 right."""
    for name, offset in NEIGHBOURS.items():
        if offset == (row, column):
            return name
    parts = [f"{abs(steps)} {names[steps > 0]}" for steps, names in ((row, ("up", "down")), (column, ("left", "right"))) if steps]
    return " ".join(parts) or "itself"


def measures(offsets: Any, start: Any) -> dict[str, np.ndarray]:
    """Return shares of the weight and its mean distance in pixels, each [...], of maps by offset [..., R, R] and of weights [...] on the start vector."""
    centre = offsets.shape[-1] // 2
    near = {name: offsets[..., centre + row, centre + column] for name, (row, column) in NEIGHBOURS.items()}
    return near | {"start": start, "distance": maps.mean_distance(offsets)}


def head_statistics(pretrained: Pretrained, dataset: Any, batch: int) -> tuple[dict, np.ndarray]:
    """Return ({measure: {mean, interval}} of every layer and head, mean maps by offset [L, N, R, R]); 95 % intervals over images."""
    found: dict[str, list[np.ndarray]] = {}
    total: Any = 0.0
    for images, count in batches.evaluation_batches(pretrained, dataset, batch):
        by_offset = maps.offset_maps(pretrained.model, images.codes, images.mask)
        offsets, start = (part[:, :count] for part in by_offset)
        total = total + offsets.sum(axis=1, dtype=np.float64)
        for name, value in measures(offsets, start).items():
            found.setdefault(name, []).append(value)
    heads = {}
    for name, parts in found.items():
        values_LBN = np.concatenate(parts, axis=1)
        interval = np.stack(interval_of_mean(values_LBN, axis=1), axis=-1)
        heads[name] = {"mean": values_LBN.mean(axis=1).round(5).tolist(), "interval": interval.round(5).tolist()}
    return heads, total / len(dataset)


def draw_pixel(result: dict, picture: np.ndarray, pixel_map: maps.PixelMap, unseen: np.ndarray) -> Any:
    """Draw the picture, the mean over heads of every layer, and the heads of three layers."""
    from matplotlib.figure import Figure

    pixel, config = result["pixel"], result["model"]
    row, column, rows = pixel["row"], pixel["column"], 3
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    columns = -(-config["layers"] // rows)
    left, middle, right = figure.subfigures(1, 3, width_ratios=(3.2, columns, config["heads"] + 0.3), wspace=0.03)
    axes = left.subplots()
    _show(axes, picture, row, column)
    axes.set_title(f"{pixel['picture']} in {result['image_size']} x {result['image_size']} pixels", fontsize=11)
    axes.set_xlabel(f"framed: the pixel that is predicted,\nrow {row}, column {column}", fontsize=10)
    middle.suptitle("every layer, mean over its heads", fontsize=11)
    for layer, axes in enumerate(np.ravel(middle.subplots(rows, columns)), 1):
        axes.set_axis_off() if layer > config["layers"] else None
        if layer <= config["layers"]:
            _show(axes, pictures.overlay(picture, pixel_map.pixels[layer - 1].mean(axis=0), unseen), row, column)
            axes.set_title(f"layer {layer}", fontsize=9, pad=3)
    right.suptitle("single heads, and what their largest weight is on", fontsize=11)
    grid = np.reshape(right.subplots(len(pixel["layers"]), config["heads"]), (len(pixel["layers"]), -1))
    for axes_N, layer in zip(grid, pixel["layers"], strict=True):
        for head, axes in enumerate(axes_N):
            _show(axes, pictures.overlay(picture, pixel_map.pixels[layer - 1, head], unseen), row, column)
            most = pixel["strongest"][layer - 1][head]
            axes.set_title(f"{100 * most['weight']:.0f} % {most['is']}", fontsize=9, pad=3)
            axes.set_ylabel(f"layer {layer}" if head == 0 else "", fontsize=10)
    figure.suptitle(pixel_title(result), fontsize=13)
    return figure


def pixel_title(result: dict) -> str:
    """Say how many heads look most at the pixel to the left, and above."""
    kinds = [most["is"] for layer in result["pixel"]["strongest"] for most in layer]
    counts = [f"{kinds.count('left')} look most at the pixel to the left", f"{kinds.count('above')} at the one above"]
    counts += [f"{kinds.count('start')} at the start vector"] if "start" in kinds else []
    elsewhere = len(kinds) - sum(kinds.count(name) for name in (*NEIGHBOURS, "start"))
    return f"Predicting one pixel: of {len(kinds)} heads, {', '.join(counts)} and {elsewhere} elsewhere"


def draw_heads(result: dict, profile_LNRR: np.ndarray) -> Any:
    """Draw every head's mean map by offset, and the shares and distances of all heads by layer."""
    from matplotlib.figure import Figure

    config = result["model"]
    causal = config["objective"] != "bert"
    layers, heads, centre = config["layers"], config["heads"], profile_LNRR.shape[-1] // 2
    reach = min(centre, 6)
    window = slice(centre - reach, centre + 1 if causal else centre + reach + 1), slice(centre - reach, centre + reach + 1)
    height = 1.1 * heads * (reach + 1 if causal else 2 * reach + 1) / (2 * reach + 1)
    figure = Figure(figsize=(15, height + 4.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(height + 0.4, 3.6))
    grid = np.reshape(upper.subplots(heads, layers), (heads, layers))
    for layer in range(layers):
        for head in range(heads):
            axes, shown = grid[head, layer], profile_LNRR[layer, head][window]
            axes.imshow(np.sqrt(shown / shown.max()), cmap="cividis", vmin=0, vmax=1)
            _frame(axes, reach, reach)
            if head == 0:
                axes.set_title(f"layer {layer + 1}", fontsize=10)
        for head in range(heads) if layer == 0 else ():
            grid[head, 0].set_ylabel(f"head {head + 1}", fontsize=10)
    upper.suptitle(f"mean weight around the predicted pixel (framed), up to {reach} pixels away; each map from 0 to its largest, root scale", fontsize=11)
    _draw_measures(lower.subplots(1, 4 if causal else 3), result)
    figure.suptitle(heads_title(result), fontsize=13)
    return figure


def heads_title(result: dict) -> str:
    """Say how many heads give more than half of their weight to one neighbour."""
    left, above = (np.array(result["heads"][name]["mean"]) for name in NEIGHBOURS)
    count = f"{(left > 0.5).sum()} of {left.size} heads put most of their weight on the pixel to the left, {(above > 0.5).sum()} on the one above"
    layer, head = np.unravel_index(above.argmax(), above.shape)
    best = f"layer {layer + 1}, head {head + 1} looks up with {100 * above.max():.0f} %"
    return f"{count}; {best} (mean of {result['images']:,} test images)"


def _draw_measures(axes_all: Any, result: dict) -> None:
    """Draw the dots of all heads against the layer, with intervals, and the line of uniform attention."""
    for axes, name in zip(axes_all, [name for name in (*SHARES, "distance") if len(axes_all) == 4 or name != "start"], strict=True):
        scale = 1 if name == "distance" else 100
        mean, interval = (scale * np.array(result["heads"][name][key]) for key in ("mean", "interval"))
        heads = mean.shape[1]
        for head in range(heads):
            places = np.arange(1, len(mean) + 1) + 0.5 * ((head + 0.5) / heads - 0.5)
            errors = np.abs(interval[:, head].T - mean[:, head])
            style = {"fmt": MARKERS[head % len(MARKERS)], "color": "#08519c", "markersize": 4.5, "linewidth": 1}
            axes.errorbar(places, mean[:, head], errors, **style, label=f"head {head + 1}")
        axes.axhline(scale * result["uniform"][name], color="#d95f02", linestyle="--", label="uniform attention")
        title = "mean distance of the weight on pixels" if name == "distance" else f"weight {SHARES[name]}"
        axes.set(title=title, xlabel="layer", ylabel="pixels" if name == "distance" else "%", ylim=(0, None))
        axes.grid(alpha=0.25)
    axes_all[0].legend(frameon=False, fontsize=8, ncols=1 if mean.shape[1] <= 6 else 3)


def _show(axes: Any, picture: np.ndarray, row: int, column: int) -> None:
    axes.imshow(picture)
    _frame(axes, row, column)


def _frame(axes: Any, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=np.array(pictures.CHOSEN) / 255, linewidth=1.5))
    axes.set(xticks=[], yticks=[])


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.attention_maps", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--data", help="data source of the test images (see igpt_jax/data/config.py); default: the one that the model was trained on")
    parser.add_argument("--number", type=integer(), help="of the test image that is drawn (default: 0)")
    parser.add_argument("--image", type=pathlib.Path, metavar="FILE", help="a picture to draw instead")
    parser.add_argument("--row", type=integer(), help="of the predicted pixel, from 0 at the top; default: the middle")
    parser.add_argument("--column", type=integer(), help="of the predicted pixel, from 0 at the left; default: the middle")
    parser.add_argument("--layers", type=list_of(integer(1)), metavar="LIST", help="layers whose heads are drawn, like 1,6,12; default: first, middle, last")
    parser.add_argument("--count", type=integer(1), default=200, help="test images of the averages, drawn at random, always the same")
    parser.add_argument("--batch", type=integer(1), default=20, help="images at once")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("attention_maps.png"), help="the PNG to write; the others are written beside it")
    arguments = parser.parse_args()
    result = outputs.start(run, arguments, {"image": ("number",)}, [heads_path(arguments.out)], [arguments.image])
    print(pixel_title(result), heads_title(result), sep="\n")
    print(f"wrote {arguments.out}, {heads_path(arguments.out)} and {arguments.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
