"""Write the features of every layer of a model: `python -m igpt_jax.features --checkpoint=runs/digits --out=runs/digits/features`.

igpt_jax.probe reads the folder; igpt_jax/probing/store.py describes its files. The features of an image are the mean over positions of each block's
normalised input, and of the final norm's output (paper 2.6). With `--kind=raw` they are the mean of the embedding, then of each block's output. With
`--kind=positions --layers=4,8` they are the normalised features of these layers at every position, not averaged. Images are not augmented.

A bert model needs masked inputs (paper 2.4): training images have one mask, and validation and test images `--masks=5`, which then vote; `--masks=0` masks
nothing. A mask depends only on its number and the image, and its probability is that of the model's training.
The same command started again keeps the complete parts and writes the others.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from igpt_jax.cli import ANY_ERROR, Parser, explain, integer, leave_others, list_of, prepare_folder, real
from igpt_jax.data import pipeline
from igpt_jax.distributed import multihost, runtime
from igpt_jax.interop import hub
from igpt_jax.probing.extract import IMAGES_PER_PART, KINDS, SPLITS, local_folder, place, write_features
from igpt_jax.training import checkpoints


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m igpt_jax.features", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--ema", action="store_true", help=checkpoints.HELP_EMA)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="delete other features in --out")
    data = parser.add_argument_group("images", "by default those that the model was trained on")
    data.add_argument("--data", help="data source, see igpt_jax/data/config.py")
    data.add_argument("--image-size", type=integer(1), help=f"side of the images in pixels, {checkpoints.ANOTHER_SIZE}")
    data.add_argument("--view", choices=pipeline.VIEWS, help="how an image becomes a square")
    data.add_argument("--validation", type=real("a share from 0 to below 1", lambda share: 0 <= share < 1), help="held-out share of the training images")
    data.add_argument("--directory", help="where TFDS stores its data")
    data.add_argument("--splits", metavar="LIST", default=",".join(SPLITS), help="default: those of train,validation,test that the data have")
    data.add_argument("--limit", type=integer(), default=0, help="largest number of images of each split, drawn at random, always the same; 0: all")
    kind = parser.add_argument_group("features")
    kind.add_argument("--kind", choices=KINDS, default="normalised", help="inputs of the blocks after the norm (paper); raw outputs; at all positions")
    kind.add_argument("--layers", type=list_of(integer()), metavar="LIST", help="for --kind=positions, a list like 4,8")
    kind.add_argument("--masks", type=integer(), help="bert: masks that vote on validation and test images; 0: none; default: 5")
    kind.add_argument("--dtype", choices=("float32", "float16"), help="on disk; default: float32, for --kind=positions float16")
    kind.add_argument("--images-per-part", type=integer(1), help=f"images in a file; default: {IMAGES_PER_PART}, for --kind=positions fewer")
    kind.add_argument("--batch", type=integer(1), help="images in one forward pass; default: 256, for --kind=positions 32")
    return parser.parse_args(arguments)


def _data_config(arguments: argparse.Namespace, recipe: dict[str, Any]) -> pipeline.DataConfig:
    """The data of the recipe, changed by the command line."""
    changes = {name: getattr(arguments, name) for name in ("image_size", "validation", "directory")}
    config = pipeline.config_for({"data": recipe}, recipe["image_size"], arguments.data, arguments.view)
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})


def main(words: Sequence[str] | None = None) -> int:
    """Run the program with the words of a command line (None: sys.argv). Returns its exit code."""
    arguments = _parse(words)
    runtime.prepare()
    try:
        multihost.join()
        runtime.divide_cores()
        splits = tuple(arguments.splits.split(","))
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ValueError(f"--splits names {unknown[0]!r}: choose from {', '.join(SPLITS)}")
        prepare_folder(local_folder(arguments.out))
        pretrained = hub.load(arguments.checkpoint, mesh=place, image_size=arguments.image_size, ema=arguments.ema)
        config = _data_config(arguments, pretrained.config["data"])
        if arguments.splits == ",".join(SPLITS):
            splits = tuple(pipeline.splits_of(config))
        names = ("out", "kind", "batch", "dtype", "images_per_part", "overwrite", "layers", "masks", "limit")
        description = write_features(pretrained, config, splits=splits, **{name: getattr(arguments, name) for name in names})
    except ANY_ERROR as error:
        line = explain(error, arguments.out)
        print(line, file=sys.stderr)
        leave_others(error, line)
        return 1
    counts = ", ".join(f"{count} {split}" for split, count in description["counts"].items())
    layers = f"layers 0 to {description['layers']}"
    if description["kind"] == "positions":
        layers = f"layers {', '.join(map(str, description['stored_layers']))} at {description['positions']} positions"
    masks = f"; {description['masks']} masks, for training images one" if description.get("masks") else ""
    print(f"{arguments.out}: {layers}, width {description['width']}, {description['kind']}; {counts}{masks}")
    print(f"next: python -m igpt_jax.probe --features={arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
