"""Write what every layer makes of a data set: `python -m igpt_jax.features --checkpoint=runs/digits --out=runs/digits/features`.

igpt_jax/probing/store.py describes the folder,
 igpt_jax.probe reads it. Written is the mean over positions of each block's normalised input, the last that after
the final norm (paper 2.6); with `--kind=raw` the mean of the embedding, then of each block's output; with `--kind=positions --layers=4,8` the normalised
features of those layers at every position, of which the mean is what the default kind writes. Images are seen as evaluation sees them, without augmentation.

A bert model must see masked inputs (paper 2.4): training images through one mask, validation and test images through `--masks=5`, which then vote;
`--masks=0` masks nothing. A mask depends on its number and the image's alone, and is drawn with the probability of the model's training.
Started again, the same command keeps the parts that are whole and makes the others.
"""

import dataclasses
import sys

from igpt_jax.cli import ANY_ERROR, Parser, explain, integer, list_of, prepare_folder, real
from igpt_jax.data import pipeline
from igpt_jax.distributed import multihost, runtime
from igpt_jax.probing.extract import IMAGES_PER_PART, KINDS, SPLITS, local_folder, place, write_features
from igpt_jax.training import checkpoints


def _parse(arguments):
    parser = Parser(prog="python -m igpt_jax.features", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="directory of a run, or of a converted model")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--data", help="data source (igpt_jax/data/pipeline.py); like the next four, by default the one the model was trained on")
    parser.add_argument("--image-size", type=integer(1), help="side of the images in pixels")
    parser.add_argument("--view", choices=pipeline.VIEWS, help="how a picture becomes a square: the model's by default")
    parser.add_argument("--validation", type=real("a share from 0 to below 1", lambda share: 0 <= share < 1), help="share of the training images held out")
    parser.add_argument("--directory", help="where TFDS keeps its data")
    parser.add_argument("--kind", choices=KINDS, default="normalised", help="block inputs after the norm (paper), raw outputs, or at all positions")
    parser.add_argument("--layers", type=list_of(integer()), help="for --kind=positions, a list like 4,8")
    parser.add_argument("--masks", type=integer(), help="of a bert model, that vote on validation and test images; 0: none; default: 5")
    parser.add_argument("--limit", type=integer(), default=0, help="at most so many images of each split, drawn at random, the same each time; 0: all")
    parser.add_argument("--splits", default=",".join(SPLITS), help="of train, validation, test; default: those that the data has")
    parser.add_argument("--batch", type=integer(1), help="images in one forward pass; default: 256, 32 for --kind=positions")
    parser.add_argument("--dtype", choices=("float32", "float16"), help="on disk; default: float32, float16 for --kind=positions")
    parser.add_argument("--images-per-part", type=integer(1), help=f"images in a file; default: {IMAGES_PER_PART}, fewer for --kind=positions")
    parser.add_argument("--overwrite", action="store_true", help="delete other features that lie in --out")
    return parser.parse_args(arguments)


def _data_config(arguments, recipe):
    """The recipe's data with what the command line says instead."""
    given = {name: getattr(arguments, name) for name in ("image_size", "validation", "directory")}
    config = pipeline.config_for({"data": recipe}, recipe["image_size"], arguments.data, arguments.view)
    return dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})


def main(arguments=None) -> int:
    """Run the program; returns its exit code."""
    arguments = _parse(arguments)
    runtime.keep()
    try:
        multihost.join()
        runtime.divide_cores()
        splits = tuple(arguments.splits.split(","))
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ValueError(f"--splits names {unknown[0]!r}: choose of {', '.join(SPLITS)}")
        prepare_folder(local_folder(arguments.out))
        pretrained = checkpoints.load(arguments.checkpoint, mesh=place)
        config = _data_config(arguments, pretrained.config["data"])
        if arguments.splits == ",".join(SPLITS):
            splits = pipeline.splits_of(config)
        names = ("out", "kind", "batch", "dtype", "images_per_part", "overwrite", "layers", "masks", "limit")
        description = write_features(pretrained, config, splits=splits, **{name: getattr(arguments, name) for name in names})
    except ANY_ERROR as error:
        print(explain(error, arguments.out), file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {split}" for split, count in description["counts"].items())
    layers = f"layers 0 to {description['layers']}"
    if description["kind"] == "positions":
        layers = f"layers {', '.join(map(str, description['stored_layers']))} at {description['positions']} positions"
    masks = f"; {description['masks']} masks, of training images one" if description.get("masks") else ""
    print(f"{arguments.out}: {layers}, width {description['width']}, {description['kind']}; {counts}{masks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
