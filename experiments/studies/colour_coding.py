"""What coding does to a picture: original, scaled and coded images, and PSNR against the number of colours.

    python -m experiments.studies.colour_coding [--images cat.jpg dog.png] [--size=32] [--palette=FILE | --fit=SOURCE]

The palette is fitted by k-means on all pixels of the images shown, or with --fit=SOURCE on those of a data set. With --palette=FILE it is read from a file,
and only the sweep over palettes of 8 to 4096 colours is fitted on the images shown. Without --images the images are scikit-learn's two photographs.
Writes colour_coding.png (--out) and colour_coding.json.
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from configs import base
from experiments.report.provenance import provenance, typed
from experiments.studies import outputs
from igpt_jax.cli import SEEDS, Parser, integer
from igpt_jax.data import images, pipeline
from igpt_jax.data.photographs import find_photographs
from igpt_jax.palette import kmeans
from igpt_jax.palette.palette import Palette

SWEEP = tuple(2**bits for bits in range(3, 13))  # colours
BLOCK = 2048  # images of a data set that are counted together
STYLES = ("o-", "s--", "^:", "D-.", "v-", "P--")  # they differ without colour


@dataclasses.dataclass(frozen=True)
class Shown:
    """The stages of one image, RGB uint8 [H, H, 3]: the square in its middle, the square at the model's resolution, and that in the palette's colours."""

    name: str
    square: np.ndarray
    scaled: np.ndarray
    coded: np.ndarray


def compare(
    pictures: dict[str, np.ndarray], size: int, colours: int = 512, palette: Palette | None = None, source: str | None = None, seed: int = 0
) -> tuple[dict, list[Shown], Palette]:
    """Code pictures {name: uint8 [H, W, 3]} at `size` x `size`; return the numbers, the images and the palette.

    `palette` replaces a fitted one of `colours` colours. `source` is a data set (igpt_jax/data/config.py) to fit on; default: the pictures.
    ValueError if there are fewer distinct colours than `colours`.
    """
    counts = kmeans.count_colours(pictures.values() if source is None else _blocks(source, size, seed))
    facts = {"fitted_on": source or "the images shown", "pixels": int(counts.sum()), "distinct_colours": int((counts > 0).sum())}
    scaled = {name: images.center_square(picture, size) for name, picture in pictures.items()}
    chosen = palette or fit(counts, colours, seed)
    shown = [Shown(name, images.center_crop_square(pictures[name]), small, code(small, chosen)) for name, small in scaled.items()]
    rows = [
        {"name": image.name, "height": len(pictures[image.name]), "width": pictures[image.name].shape[1], "psnr": psnr(image.scaled, image.coded)}
        for image in shown
    ]
    sweep = []
    for number in [number for number in SWEEP if number <= facts["distinct_colours"]]:
        fitted = chosen if palette is None and number == colours else fit(counts, number, seed)
        sweep.append({"colours": number, "psnr": [psnr(small, code(small, fitted)) for small in scaled.values()]})
    result = {"size": size, "seed": seed, "colours": chosen.size, "palette": facts, "images": rows, "sweep": sweep}
    return result, shown, chosen


def fit(counts: np.ndarray, colours: int, seed: int) -> Palette:
    """Fit a palette by k-means with the settings of configs/base.py; `counts` are those of kmeans.count_colours."""
    options = base.get_config().palette
    return Palette(kmeans.fit(counts, colours, seed, options.iterations, options.tolerance)[0])


def code(image: np.ndarray, palette: Palette) -> np.ndarray:
    """Return the image in the palette's colours."""
    return palette.decode(palette.encode(image))


def psnr(image: np.ndarray, coded: np.ndarray) -> float | None:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels of two uint8 images; None if they are equal."""
    error = np.square(image.astype(np.float64) - coded).mean()
    return float(10 * np.log10(255**2 / error)) if error else None


def draw(result: dict, shown: list[Shown], palette: Palette, path: pathlib.Path) -> None:
    """Draw the images in rows, and on their right the curve over the number of colours and the palette."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, max(5.8, 2.3 * len(shown) + 0.8)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(6.9, 6.1))
    _draw_images(left.subplots(len(shown), 3, squeeze=False), result, shown)
    curve, colours = right.subplots(2, 1, height_ratios=(3, 2))
    _draw_curve(curve, result)
    colours.imshow(palette.picture(), interpolation="nearest")
    colours.set_title(f"the palette, {palette.size} colours", fontsize=11)
    colours.axis("off")
    figure.supxlabel(caption(result), fontsize=9)
    figure.savefig(path, dpi=150)


def caption(result: dict) -> str:
    """Return which palette is shown, in one or two lines."""
    facts = result["palette"]
    fitted = f"k-means on the {facts['pixels']:,} pixels ({facts['distinct_colours']:,} colours) of {facts['fitted_on']}"
    if "file" in facts:
        return f"Palette: {facts['file']}, {result['colours']} colours. The curve's palettes: {fitted}.\nPSNR of the coded beside the scaled image."
    return f"Palettes: {fitted}.\nPSNR of the coded beside the scaled image."


def _draw_images(axes, result, shown):
    size, colours = result["size"], result["colours"]
    bits = f"{colours.bit_length() - 1}-bit: " if colours & (colours - 1) == 0 else ""
    for column, title in enumerate(("original, the middle", f"scaled, {size} x {size}", f"{bits}{colours} colours")):
        axes[0, column].set_title(title, fontsize=11)
    for row, (image, facts) in enumerate(zip(shown, result["images"], strict=True)):
        for column, pixels in enumerate((image.square, image.scaled, image.coded)):
            axes[row, column].imshow(pixels, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[row, 0].set_xlabel(f"{pathlib.Path(image.name).name}, {facts['width']} x {facts['height']}", fontsize=9)
        axes[row, 2].set_xlabel(decibels(facts["psnr"]), fontsize=9)


def _draw_curve(axes, result):
    for number, facts in enumerate(result["images"]):
        name = pathlib.Path(facts["name"]).name
        rows = [row for row in result["sweep"] if row["psnr"][number] is not None]
        points = [row["colours"] for row in rows], [row["psnr"][number] for row in rows]
        (line,) = axes.plot(*points, STYLES[number % len(STYLES)], markersize=5, label=name)
        if "file" in result["palette"] and facts["psnr"] is not None:
            star = {"markersize": 13, "color": line.get_color(), "markeredgecolor": "black"}
            axes.plot(result["colours"], facts["psnr"], "*", **star)
            axes.annotate(f"{name}, the file's palette", (result["colours"], facts["psnr"]), (9, -4), textcoords="offset points", fontsize=8)
    axes.axvline(result["colours"], color="#555555", linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xscale("log", base=2)
    ticks = [row["colours"] for row in result["sweep"]]
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.set(xlabel="colours of the palette", ylabel="PSNR, dB")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")


def decibels(value: float | None) -> str:
    """Return a PSNR as text."""
    return "exact" if value is None else f"PSNR {value:.1f} dB"


def _blocks(source, size, seed):
    settings = {"augment": "none", "validation": 0.0, "directory": "", "workers": 0}
    dataset = pipeline.open_dataset(pipeline.DataConfig(source=source, image_size=size, seed=seed, **settings), "train")
    for start in range(0, len(dataset), BLOCK):
        yield dataset.images(start, start + BLOCK)


def run(arguments: argparse.Namespace) -> dict:
    """Write the picture and the JSON file; return its contents."""
    if arguments.size < 1:
        raise ValueError(f"--size={arguments.size} must be at least 1 pixel")
    palette = Palette.load(arguments.palette) if arguments.palette else None
    if palette and palette.tokens_per_pixel != 1:
        raise ValueError(f"{arguments.palette} holds {palette.size} levels of a channel, not colours [V, 3]")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    paths = arguments.images or find_photographs()
    pictures = {str(path) if arguments.images else path.name: images.read_image(path) for path in paths}
    result, shown, chosen = compare(pictures, arguments.size, arguments.colours, palette, arguments.fit, arguments.seed)
    result["palette"] |= {"file": str(arguments.palette)} if palette else {}
    result |= provenance(typed("studies.colour_coding"))
    draw(result, shown, chosen, arguments.out)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.colour_coding", description=__doc__)
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="image files; default: china.jpg and flower.jpg of scikit-learn")
    parser.add_argument("--size", type=integer(1), default=32, help="resolution of the scaled image in pixels")
    parser.add_argument("--colours", type=integer(1), default=512, help="number of colours of the palette to fit and show")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--palette", type=pathlib.Path, help="a palette.npy to show instead of a fitted palette")
    which.add_argument("--fit", metavar="SOURCE", help="fit on the training images of this data source instead of the images shown")
    parser.add_argument("--seed", type=integer(0, SEEDS), default=0, help="seed of k-means")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("colour_coding.png"), help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    result = outputs.start(run, arguments, {}, inputs=[*(arguments.images or ()), arguments.palette])
    for row in result["images"]:
        print(f"{row['name']}: {result['size']} x {result['size']}, {result['colours']} colours, {decibels(row['psnr'])}")
    outputs.tell(caption(result), arguments.out)


if __name__ == "__main__":
    main()
