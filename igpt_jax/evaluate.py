"""Evaluate a model on a split: `python -m igpt_jax.evaluate --checkpoint=runs/digits`.

Prints nats and bits per pixel, and the accuracy of a class head, as JSON. Every image counts exactly once, for any batch size and number of devices. The
masks of a bert model depend on the index of each image.
"""

import json

import jax

from igpt_jax.cli import ANY_ERROR, Parser, fail, integer
from igpt_jax.data import pipeline
from igpt_jax.distributed import runtime
from igpt_jax.distributed.multihost import join
from igpt_jax.training.evaluation import evaluate_checkpoint


def _main() -> None:
    parser = Parser(prog="python -m igpt_jax.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="directory of a run or of a converted model")
    parser.add_argument("--batch", type=integer(1), default=256, help="images in one forward pass")
    parser.add_argument("--loss-only", action="store_true", help="leave out the class head, for data with other classes")
    data = parser.add_argument_group("images")
    data.add_argument("--data", help="data source, see igpt_jax/data/config.py; default: the one that the model was trained on")
    data.add_argument("--view", choices=pipeline.VIEWS, help="how an image becomes a square; default: as in training")
    data.add_argument("--split", default="test", choices=("train", "validation", "test"), help="split of the data")
    data.add_argument("--limit", type=integer(), default=0, help="largest number of images, drawn at random, always the same; 0: all")
    arguments = parser.parse_args()
    runtime.prepare()
    try:
        join()
        runtime.divide_cores()
        options = (arguments.split, arguments.data, arguments.batch, arguments.limit, arguments.loss_only)
        result = evaluate_checkpoint(arguments.checkpoint, *options, view=arguments.view)
    except ANY_ERROR as error:
        fail(error)
    if jax.process_index() == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    _main()
