"""Evaluate a model on a split: `python -m igpt_jax.evaluate --checkpoint=runs/digits`.

Prints nats and bits per pixel, and the accuracy of a class head, as JSON. Every image counts exactly once, for any batch size and number of devices. The
masks of a bert model depend on the index of each image. `--predictions=FILE.npz` also writes arrays of the images in the order of the data: `index` (the
number of the image in the split), `label` (-1: none), `nats` (per pixel), and with a class head `predicted` (class), `class_nats`, and for a bert model,
whose masks vote, `predicted_one_mask`. Classes are numbers of the model's classes, and of the data's without a class head: `class_names` [classes] names them,
and a line says where the data has them in another order.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from igpt_jax.cli import ANY_ERROR, Parser, fail, integer, prepare_file
from igpt_jax.data import pipeline
from igpt_jax.distributed import runtime
from igpt_jax.distributed.multihost import join
from igpt_jax.files import replacing
from igpt_jax.interop import hub
from igpt_jax.training import checkpoints
from igpt_jax.training.evaluation import evaluate_checkpoint


def _main() -> None:
    parser = Parser(prog="python -m igpt_jax.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--ema", action="store_true", help=checkpoints.HELP_EMA)
    parser.add_argument("--batch", type=integer(1), default=256, help="images in one forward pass")
    parser.add_argument("--loss-only", action="store_true", help="leave out the class head, for data with other classes")
    parser.add_argument("--predictions", type=_npz_file, metavar="FILE.npz", help="also write label, predicted class, loss of each image, and class names")
    data = parser.add_argument_group("images")
    data.add_argument("--data", help="data source, see igpt_jax/data/config.py; default: the one that the model was trained on")
    data.add_argument("--view", choices=pipeline.VIEWS, help="how an image becomes a square; default: as in training")
    data.add_argument("--image-size", type=integer(1), help=f"side of the images in pixels, {checkpoints.ANOTHER_SIZE}")
    data.add_argument("--split", default="test", choices=("train", "validation", "test"), help="split of the data")
    data.add_argument("--limit", type=integer(), default=0, help="largest number of images, drawn at random, always the same; 0: all")
    arguments = parser.parse_args()
    runtime.prepare()
    try:
        join()
        runtime.divide_cores()
        if arguments.predictions:
            prepare_file(arguments.predictions, pipeline.places(arguments.data or ""))
        options = (arguments.split, arguments.data, arguments.batch, arguments.limit, arguments.loss_only, arguments.view)
        extras = {"each_image": arguments.predictions is not None, "image_size": arguments.image_size, "ema": arguments.ema}
        result = evaluate_checkpoint(hub.local(arguments.checkpoint), *options, **extras)
        if (each_image := result.pop("each_image", None)) and jax.process_index() == 0:
            write_predictions(arguments.predictions, each_image)
    except ANY_ERROR as error:
        fail(error)
    if jax.process_index() == 0:
        print(json.dumps(result), flush=True)
        if arguments.predictions:
            print(f"wrote {arguments.predictions}", file=sys.stderr)
        print(f"next: python -m igpt_jax.features --checkpoint={arguments.checkpoint} --out=FOLDER", file=sys.stderr)


def write_predictions(path: pathlib.Path, each_image: dict[str, Any]) -> None:
    """Write the arrays of `evaluate`'s `each_image` to an npz file, which appears complete."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **each_image)


def _npz_file(text: str) -> pathlib.Path:
    if not text.endswith(".npz"):
        raise argparse.ArgumentTypeError(f"{text!r} must be the name of an .npz file")
    return pathlib.Path(text)


if __name__ == "__main__":
    _main()
