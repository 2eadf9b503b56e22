"""The method in one drawing, after the paper's figure 1: resize and code, two objectives of pretraining, two ways to use the features.

    python -m experiments.studies.training_process

Draws experiments/results/training_process.png from lines and rectangles; training_process.json holds its palette and codes. Nothing is trained.
"""

import json
import pathlib

import numpy as np

from experiments.report.provenance import provenance
from igpt_jax.cli import Parser, prepare_file, program
from igpt_jax.data.images import resize
from igpt_jax.palette import kmeans
from igpt_jax.palette.palette import Palette

RESULTS = pathlib.Path(__file__).parents[1] / "results"
INK, SOFT, PALE = "#111111", "#8a8a8a", "#f1f1f1"
TRAINED, FROZEN = "#9ecae1", "#ffffff"  # a filled layer learns, a hatched one does not
RESOLUTION = 8  # of the resized picture, pixels
COLOURS = 4  # of its palette
FIRST, TOKENS = 17, 6  # the part of the sequence in the second column
MASKED = (1, 4)
# text beside the inputs of an objective, beside its outputs, and its loss (paper 2.1)
NEXT_PIXEL = ("shifted by one,\na start first", "each: the next", r"$L_{AR} = -\sum_i \; \log p(x_i \mid x_1, \ldots, x_{i-1})$")
MASKED_PIXELS = ("15 % masked,\nat random", "the masked", r"$L_{BERT} = -\sum_{i \in M} \log p(x_i \mid x_{j \notin M})$")


def scene(resolution: int) -> np.ndarray:
    """Return a landscape with a tree, a hill and the sun, uint8 [resolution, resolution, 3]."""
    y, x = (np.mgrid[:resolution, :resolution] + 0.5) / resolution
    picture = np.empty((resolution, resolution, 3))
    picture[:] = (205, 226, 240)
    picture -= 60 * (0.6 - y.clip(0, 0.6))[..., None]
    picture[(x - 0.75) ** 2 + (y - 0.3125) ** 2 < 0.15**2] = (250, 205, 90)
    ground = y > 0.66 + 0.08 * np.sin(4 * x + 0.4)
    picture[ground] = (125, 165, 85) - 60 * (y[ground, None] - 0.6)
    picture[((x - 0.25) ** 2 + (y - 0.36) ** 2 < 0.18**2) | ((abs(x - 0.25) < 0.03) & (y > 0.4) & (y < 0.76))] = (45, 75, 55)
    return picture.clip(0, 255).astype(np.uint8)


def draw(path: pathlib.Path) -> dict:
    """Draw the three columns; return palette and codes of the first one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 30), ylim=(0, 16), aspect="equal")
    axes.axis("off")
    picture = scene(48)
    palette = Palette(kmeans.fit(kmeans.count_colours([picture]), COLOURS, seed=0, iterations=100, tolerance=1e-4)[0])
    small = resize(picture, RESOLUTION)
    codes = palette.encode(small)
    for x, number, title in ((0.4, 1, "Resize and code"), (9.0, 2, "Pretrain, without labels"), (20.2, 3, "Use what was learned")):
        axes.text(x, 15.35, f"{number}", fontsize=17, weight="bold", color="white", bbox={"boxstyle": "circle,pad=0.25", "facecolor": INK})
        axes.text(x + 0.75, 15.35, title, fontsize=17, weight="bold")
    for x in (8.45, 19.65):
        axes.plot((x, x), (0.4, 15.7), color=SOFT, linewidth=1)
    _first_column(axes, picture, small, codes, palette)
    shown = codes.ravel()[FIRST : FIRST + TOKENS]
    _objective(axes, 8.3, "Autoregressive: the next pixel", shown, palette, masked=None)
    _objective(axes, 0.55, "BERT: the masked pixels", shown, palette, masked=MASKED)
    _linear_probe(axes, 8.3)
    _fine_tuning(axes, 0.55)
    figure.savefig(path, dpi=160)
    return {"palette": palette.decode(np.arange(palette.size)).tolist(), "codes": codes.tolist()}


def _first_column(axes, picture, small, codes, palette):
    """Draw the picture, the resized picture, its codes, and the codes in a row."""
    side = 3.2 / RESOLUTION
    _grid(axes, 0.5, 10.6, 3.4 / len(picture), picture)
    _text(axes, 2.2, 14.35, "an image")
    _arrow(axes, (4.05, 12.3), (4.7, 12.3))
    _grid(axes, 4.85, 10.7, side, small, edge=INK)
    _text(axes, 6.45, 14.35, "resized (to 32 x 32,\n48 x 48 or 64 x 64)", size=9.5)
    _arrow(axes, (6.45, 10.5), (6.45, 9.0))
    _text(axes, 4.1, 9.8, "each pixel: the nearest\nof the palette's colours")
    _grid(axes, 4.85, 5.65, side, palette.decode(codes), edge=INK, labels=codes)
    for code in range(palette.size):
        _square(axes, 0.75 + code * 0.75, 6.95, 0.55, palette.decode(np.array([code]))[0], label=code)
    _text(axes, 2.15, 8.05, f"palette, by k-means (here\n{COLOURS} colours, 512 in the paper)", size=9)
    _arrow(axes, (3.8, 7.23), (4.7, 7.23))
    _arrow(axes, (6.45, 5.45), (6.45, 3.95))
    _text(axes, 4.3, 4.75, "row by row\ninto one sequence")
    for place, code in enumerate(codes.ravel()[FIRST - 4 : FIRST + 10]):
        _square(axes, 0.9 + place * 0.48, 3.25, 0.48, palette.decode(np.array([code]))[0], label=code)
    _text(axes, 0.62, 3.48, "...")
    _text(axes, 7.95, 3.48, "...")
    _text(axes, 4.25, 1.75, "The model sees codes and positions only:\nno rows and columns, no convolution,\nno labels.")


def _objective(axes, bottom, title, codes, palette, masked):
    """Draw inputs below, the transformer, predictions above; `masked` None: each position sees those to its left, else it sees all that are not masked."""
    left, step, side = 11.3, 1.4, 0.85
    low, high = bottom + 1.0, bottom + 4.6
    axes.text(9.2, bottom + 6.25, title, fontsize=13, weight="bold")
    axes.add_patch(_box(left - 0.25, low + 1.25, step * (TOKENS - 1) + side + 0.5, high - low - 1.85, PALE))
    pale = (240, 240, 240)
    for place in range(TOKENS):
        x = left + place * step
        source = place - 1 if masked is None else place
        hidden = masked is not None and place in masked
        if source < 0:
            _square(axes, x, low, side, (255, 255, 255), label="start", size=8)
        else:
            _square(axes, x, low, side, (255, 255, 255) if hidden else palette.decode(codes[[source]])[0], label="" if hidden else codes[source], hatch=hidden)
        predicted = masked is None or hidden
        if predicted:
            _square(axes, x, high, side, palette.decode(codes[[place]])[0], label=codes[place])
        else:
            _square(axes, x, high, side, pale, edge=SOFT)
        bold = place == (3 if masked is None else MASKED[0])
        for seen in range(TOKENS):
            if predicted and (seen <= place if masked is None else True):
                _line(axes, left + seen * step + side / 2, low + side, x + side / 2, high, bold)
    _text(axes, left + step * (TOKENS - 1) / 2 + side / 2, (low + high) / 2 + 0.42, "transformer", box=True, size=11)
    inputs, outputs, formula = NEXT_PIXEL if masked is None else MASKED_PIXELS
    _text(axes, left - 0.4, low + side / 2, inputs, align="right", size=9)
    _text(axes, left - 0.4, high + side / 2, outputs, align="right", size=9)
    _text(axes, left + step * (TOKENS - 1) / 2 + side / 2, bottom + 0.2, formula, size=13)


def _linear_probe(axes, bottom):
    axes.text(20.4, bottom + 6.25, "Linear probe: what a layer knows", fontsize=13, weight="bold")
    _layers(axes, bottom, frozen=True)
    middle = bottom + 1.35 + 2.5 * 0.72
    _readout(axes, middle, "linear\nclassifier")
    _text(axes, 27.3, middle - 1.6, "one for each layer: the best\nfeatures of a large model\nlie in its middle", size=9.5)


def _fine_tuning(axes, bottom):
    axes.text(20.4, bottom + 6.25, "Fine-tuning: everything learns", fontsize=13, weight="bold")
    _layers(axes, bottom, frozen=False)
    top = bottom + 1.35 + 4.5 * 0.72
    _readout(axes, top, "class\nhead")
    _arrow(axes, (22.6, bottom + 5.0), (22.6, bottom + 5.35))
    _text(axes, 22.6, bottom + 5.6, "pixels, as before", size=9.5)
    _text(axes, 27.3, top - 1.6, "both losses together:", size=10)
    _text(axes, 27.3, top - 2.3, "$L_{GEN} + L_{CLF}$", size=14)


def _readout(axes, y, classifier):
    """Draw what follows the layer whose middle is at `y`: the mean over positions, a trained classifier, the class."""
    _arrow(axes, (24.3, y), (25.0, y))
    _stage(axes, 25.1, y - 0.65, "mean over\npositions")
    _arrow(axes, (27.15, y), (27.55, y))
    _stage(axes, 27.6, y - 0.65, classifier, TRAINED)
    _arrow(axes, (28.6, y + 0.68), (28.6, y + 1.0))
    _text(axes, 28.6, y + 1.2, "class", size=11)


def _layers(axes, bottom, frozen):
    """Draw a stack of five layers over the coded image, hatched if they are frozen."""
    for layer in range(5):
        y = bottom + 1.35 + layer * 0.72
        axes.add_patch(_box(20.9, y, 3.4, 0.62, FROZEN if frozen else TRAINED, "////" if frozen else ""))
        _text(axes, 22.6, y + 0.31, ("layer 1", "", "", "", "layer L")[layer], box=frozen, size=9)
    _arrow(axes, (22.6, bottom + 0.85), (22.6, bottom + 1.28))
    _text(axes, 22.6, bottom + 0.55, "a coded image", size=9.5)
    axes.text(20.55, bottom + 1.35 + 1.8, "frozen" if frozen else "trained", rotation=90, ha="center", va="center", fontsize=10)


def _stage(axes, x, y, text, fill=PALE):
    axes.add_patch(_box(x, y, 2.0, 1.3, fill))
    _text(axes, x + 1.0, y + 0.65, text)


def _grid(axes, x, y, side, picture, edge=None, labels=None):
    """Draw a picture as squares, its lower left corner at (x, y); `edge` is the colour of the squares' edges."""
    height = len(picture)
    for row, column in np.ndindex(*picture.shape[:2]):
        place = x + column * side, y + (height - 1 - row) * side
        _square(axes, *place, side, picture[row, column], edge=edge, label="" if labels is None else labels[row, column])


def _square(axes, x, y, side, colour, label="", edge=INK, hatch=False, size=None):
    from matplotlib.patches import Rectangle

    fill = tuple(np.asarray(colour) / 255)
    axes.add_patch(Rectangle((x, y), side, side, facecolor=fill, edgecolor=edge or fill, linewidth=0.8 if edge else 0.3, hatch="xxxx" if hatch else None))
    if label != "":
        dark = np.dot(colour, (0.299, 0.587, 0.114)) < 110
        axes.text(x + side / 2, y + side / 2, str(label), ha="center", va="center", fontsize=size or 17 * side, color="white" if dark else INK)


def _box(x, y, width, height, fill, hatch=""):
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=fill, edgecolor=INK, hatch=hatch, linewidth=1)


def _line(axes, x, y, to_x, to_y, bold):
    axes.plot((x, to_x), (y, to_y), color=INK if bold else "#bdbdbd", linewidth=1.5 if bold else 0.6, zorder=3 if bold else 2)


def _arrow(axes, start, end):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0})


def _text(axes, x, y, text, size=10, align="center", box=False):
    background = {"facecolor": "white", "edgecolor": "none", "pad": 2} if box and text else None
    axes.text(x, y, text, ha=align, va="center", fontsize=size, bbox=background, zorder=5, linespacing=1.25)


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.training_process", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "training_process.png", help="the PNG to write; the JSON is written beside it")
    out = prepare_file(parser.parse_args().out)
    result = draw(out) | provenance("python -m experiments.studies.training_process")
    out.with_suffix(".json").write_text(json.dumps(result) + "\n")
    print(f"wrote {out} and {out.with_suffix('.json')}")


if __name__ == "__main__":
    program(main)
