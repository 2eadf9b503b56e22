"""Sample pictures, or complete the top rows of given ones: `python -m igpt_jax.sample --checkpoint=runs/digits --out=completions.png`.

Reads a checkpoint and images (files of any format and size, or a split of a data set); writes one PNG, a row for each image:
model input | completions | original. With --unconditional=N it writes N pictures made from nothing. The loop over pixels is one compiled
program with a cache of keys and values; the given rows are run through the model once, in one pass.

What is drawn for a completion comes from the seed, from what the model is given of the picture, and from the completion's number: not from --batch, the
other pictures, their order or the number of devices. The model's scores may differ in their last bits from one batch size or device to another, so a
colour whose draw falls so near to the border between two may come out as the other one, and what follows it too. In float32 none did in the tests.
A bert model sees both sides and cannot be sampled so; with --fill=TOP,LEFT,HEIGHT,WIDTH (or a mask image) it fills any region of given images.
"""

import math
import pathlib

import numpy as np

from igpt_jax.cli import ANY_ERROR, SEEDS, Parser, fail, integer, prepare_file, real
from igpt_jax.data import pipeline
from igpt_jax.distributed import runtime
from igpt_jax.sampling.complete import complete, fill, one_of_each_class, parse_region, unconditional
from igpt_jax.sampling.generate import ROUNDS
from igpt_jax.sampling.grid import completion_grid, picture_grid
from igpt_jax.training import checkpoints

TEMPERATURE = real("a number of at least 0", lambda value: value >= 0)
TOP_P = real("a number above 0 and at most 1", lambda value: 0 < value <= 1)
SEED = integer(0, SEEDS)


def _main() -> None:
    arguments = _arguments()
    try:
        _check_together(arguments)
        runtime.keep()
        runtime.divide_cores()
        _check_picture(arguments.out)
        overrides = {"dtype": arguments.dtype} if arguments.dtype else {}
        pretrained = checkpoints.load(arguments.checkpoint, **overrides)
        settings = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed", "batch")}
        if arguments.unconditional:
            made = unconditional(pretrained, arguments.unconditional, **settings)
            columns = math.ceil(len(made) ** 0.5)
            blank = np.full((-len(made) % columns, *made.shape[1:]), 255, np.uint8)
            grid = picture_grid(np.concatenate([made, blank]).reshape(-1, columns, *made.shape[1:]).swapaxes(0, 1))
        else:
            size = pretrained.image_size
            region = parse_region(arguments.fill, size, pipeline.view_of(pretrained.config, size)) if arguments.fill is not None else None
            pictures = arguments.images or one_of_each_class(pretrained, arguments.count, arguments.split, arguments.data)
            if region is not None:
                made = fill(pretrained, pictures, region, arguments.completions, arguments.rounds, **settings)
            else:
                made = complete(pretrained, pictures, arguments.rows, arguments.completions, **settings)
            grid = completion_grid(made)
        grid.save(arguments.out)
    except ANY_ERROR as error:
        fail(error)
    print(f"wrote {arguments.out}, {grid.width} x {grid.height} pixels")


def _check_together(arguments) -> None:
    """ValueError for a flag that another one would leave without effect."""
    for flag, without in (("unconditional", ("images", "data", "rows", "fill", "rounds")), ("images", ("data",)), ("fill", ("rows",))):
        for other in without:
            if getattr(arguments, flag) is not None and getattr(arguments, other) is not None:
                raise ValueError(f"--{other} means nothing with --{flag}: leave out one of them")
    if arguments.rounds is not None and arguments.fill is None:
        raise ValueError("--rounds means nothing without --fill: leave it out, or give a region to fill")


def _check_picture(path) -> None:
    """ValueError or OSError in one line where no picture can be written there."""
    from PIL import Image

    kinds = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    if pathlib.Path(path).suffix.lower() not in kinds:
        raise ValueError(f"--out={path} does not end like a picture's name: give one that ends with .png")
    prepare_file(path)


def _arguments():
    parser = Parser(prog="python -m igpt_jax.sample", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="directory of a run, or of a converted model")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--images", nargs="+", help="image files to complete; default: images of --split")
    parser.add_argument("--data", help="data source (see igpt_jax/data/pipeline.py); default: the one the model was trained on")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--count", type=integer(1), default=8, help="images taken from the split")
    parser.add_argument("--unconditional", type=integer(1), metavar="N", help="make N pictures from nothing instead")
    parser.add_argument("--rows", type=integer(), help="rows given to the model; default: the upper half")
    parser.add_argument("--fill", metavar="REGION", help="bert models: TOP,LEFT,HEIGHT,WIDTH in pixels of the model's image, or a mask image, white to fill")
    parser.add_argument("--rounds", type=integer(1), help=f"of --fill: each predicts all missing pixels and keeps the nearest to known ones; default: {ROUNDS}")
    parser.add_argument("--completions", type=integer(1), default=4, help="of each image")
    parser.add_argument("--temperature", type=TEMPERATURE, default=1.0, help="0 takes the likeliest colour")
    parser.add_argument("--top-k", type=integer(), default=0, help="draw from the k likeliest colours; 0: from all")
    parser.add_argument("--top-p", type=TOP_P, default=1.0, help="draw from the fewest colours that hold this probability")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--batch", type=integer(1), default=256, help="pictures made at once, at most")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of matrix products and caches; default: as trained")
    return parser.parse_args()


if __name__ == "__main__":
    _main()
