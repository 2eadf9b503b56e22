"""Sample pictures, or complete the top rows of given ones: `python -m igpt_jax.sample --checkpoint=runs/digits --out=completions.png`.

Reads a checkpoint and images (files of any format and size, or a split of a data set). Writes one PNG with a row for each image:
model input | completions | original. With --unconditional=N it writes N pictures made from nothing. A bert model cannot be sampled pixel by pixel;
with --fill=TOP,LEFT,HEIGHT,WIDTH (or a mask image) it fills any region of given images. The loop over pixels is one compiled program with a cache of
keys and values; the given rows pass through the model once, in parallel.

A completion depends on the seed, on the given part of its picture and on its number, not on --batch, the other pictures, their order or the number of
devices. The last bits of the model's scores may differ from one batch size or device to another. A draw that falls very close to the border between two
colours may then give the other colour, and change the rest of the picture. In float32 this never happened in the tests.
"""

import argparse
import math
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from igpt_jax.cli import ANY_ERROR, SEEDS, Parser, fail, integer, prepare_file, real
from igpt_jax.data import pipeline
from igpt_jax.distributed import runtime
from igpt_jax.sampling.complete import complete, fill, one_of_each_class, parse_region, unconditional
from igpt_jax.sampling.generate import ROUNDS
from igpt_jax.sampling.grid import completion_grid, picture_grid
from igpt_jax.sampling.placement import sample_in_bfloat16
from igpt_jax.training import checkpoints
from igpt_jax.types import PathLike

TEMPERATURE = real("a number of at least 0", lambda value: value >= 0)
TOP_P = real("a number above 0 and at most 1", lambda value: 0 < value <= 1)
SEED = integer(0, SEEDS)


def _main() -> None:
    arguments = _arguments()
    try:
        _check_together(arguments)
        runtime.prepare()
        runtime.divide_cores()
        _check_picture(arguments.out)
        overrides = {"dtype": arguments.dtype} if arguments.dtype else {}
        pretrained = checkpoints.load(arguments.checkpoint, **overrides)
        if not overrides:
            sample_in_bfloat16(pretrained.model)
        grid = _unconditional_grid(pretrained, arguments) if arguments.unconditional else _completion_grid(pretrained, arguments)
        grid.save(arguments.out)
    except ANY_ERROR as error:
        fail(error)
    print(f"wrote {arguments.out}, {grid.width} x {grid.height} pixels")


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed", "batch")}


def _unconditional_grid(pretrained: checkpoints.Pretrained, arguments: argparse.Namespace) -> Image.Image:
    """Arrange pictures made from nothing in a square, with white ones at the end."""
    pictures = unconditional(pretrained, arguments.unconditional, **_settings(arguments))
    columns = math.ceil(len(pictures) ** 0.5)
    blank = np.full((-len(pictures) % columns, *pictures.shape[1:]), 255, np.uint8)
    return picture_grid(np.concatenate([pictures, blank]).reshape(-1, columns, *pictures.shape[1:]).swapaxes(0, 1))


def _completion_grid(pretrained: checkpoints.Pretrained, arguments: argparse.Namespace) -> Image.Image:
    """Complete images, or fill their region if --fill is given, and show them beside their originals."""
    size = pretrained.image_size
    region = None if arguments.fill is None else parse_region(arguments.fill, size, pipeline.view_of(pretrained.config, size))
    pictures = arguments.images or one_of_each_class(pretrained, arguments.count, arguments.split, arguments.data)
    if region is not None:
        return completion_grid(fill(pretrained, pictures, region, arguments.completions, arguments.rounds, **_settings(arguments)))
    return completion_grid(complete(pretrained, pictures, arguments.rows, arguments.completions, **_settings(arguments)))


def _check_together(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a flag that has no effect beside another one."""
    for flag, without in (("unconditional", ("images", "data", "rows", "fill", "rounds")), ("images", ("data",)), ("fill", ("rows",))):
        for other in without:
            if getattr(arguments, flag) is not None and getattr(arguments, other) is not None:
                raise ValueError(f"--{other} has no effect with --{flag}: leave out one of them")
    if arguments.rounds is not None and arguments.fill is None:
        raise ValueError("--rounds has no effect without --fill: leave it out, or give a region to fill")


def _check_picture(path: PathLike) -> None:
    """Raise ValueError or OSError, one line, if no picture can be written to the path."""
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    if pathlib.Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"--out={path} does not end like the name of a picture: give one that ends in .png")
    prepare_file(path)


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m igpt_jax.sample", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="directory of a run or of a converted model")
    parser.add_argument("--out", required=True, help="the PNG to write")
    inputs = parser.add_argument_group("images")
    inputs.add_argument("--images", nargs="+", metavar="FILE", help="image files to complete; default: images of --split")
    inputs.add_argument("--data", help="data source, see igpt_jax/data/config.py; default: the one that the model was trained on")
    inputs.add_argument("--split", default="test", choices=("train", "validation", "test"), help="split of --data")
    inputs.add_argument("--count", type=integer(1), default=8, help="images of the split")
    inputs.add_argument("--unconditional", type=integer(1), metavar="N", help="instead, make N pictures that start from nothing")
    inputs.add_argument("--rows", type=integer(), help="rows that the model is given; default: the upper half")
    inputs.add_argument("--fill", metavar="REGION", help="bert: TOP,LEFT,HEIGHT,WIDTH in pixels of the model's image, or a mask image, white where to fill")
    rounds = f"of --fill: each predicts all missing pixels and keeps those nearest to known ones; default: {ROUNDS}"
    inputs.add_argument("--rounds", type=integer(1), help=rounds)
    draws = parser.add_argument_group("sampling")
    draws.add_argument("--completions", type=integer(1), default=4, help="number for each image")
    draws.add_argument("--temperature", type=TEMPERATURE, default=1.0, help="0 takes the most likely colour")
    draws.add_argument("--top-k", type=integer(), default=0, help="draw from the k most likely colours; 0: from all")
    draws.add_argument("--top-p", type=TOP_P, default=1.0, help="draw from the smallest set of most likely colours with this total probability")
    draws.add_argument("--seed", type=SEED, default=0, help="of all draws")
    draws.add_argument("--batch", type=integer(1), default=256, help="largest number of pictures at once")
    draws.add_argument("--dtype", choices=("float32", "bfloat16"), help="of products and caches; default: as in training, but bfloat16 on an accelerator")
    return parser.parse_args()


if __name__ == "__main__":
    _main()
