"""Features of all layers in one pass beside a plain forward pass: `python -m experiments.bench.features [--model=s|m|l] [--batch=N]`.

ours        the features of every layer in one pass, fetched from the device
plain       the logits alone, left on the device: the cost of any forward pass, because the compiler leaves out the features

One over "ours is faster by" is the relative cost of the features.
"""

import argparse

import jax
import numpy as np

from experiments.bench import models, rounds
from igpt_jax.cli import Parser, integer

PROGRAMS = {"ours": (), "plain": ()}
COLUMNS = {"ms a batch": ("milliseconds", "{:,.1f}"), "images/s": ("images_per_second", "{:,.1f}")}


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    models.add_arguments(parser)
    parser.add_argument("--batch", type=integer(1), default=32, help="images in a batch")
    parser.add_argument("--steps", type=integer(1), default=10, help="batches in a turn")
    small = models.SMALL | {"batch": 2, "steps": 2, "rounds": 2}
    return rounds.start("features", bench, parser, argv, PROGRAMS, small, models.GPU | {"batch": 256}, models.SIZES)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    config = models.model_config(arguments)
    model, codes = models.make_model(config), jax.device_put(models.random_codes(config, arguments.batch), jax.devices()[0])
    features, plain = jax.jit(lambda model, codes: model.forward_features(codes).features), jax.jit(lambda model, codes: model.forward_features(codes).logits)
    steps = {"ours": lambda: np.asarray(features(model, codes)), "plain": lambda: plain(model, codes)}

    def program(name):
        return lambda: {"seconds": rounds.seconds_each(steps[name], arguments.steps, jax.block_until_ready)}

    rows = rounds.alternate({name: program(name) for name in arguments.programs}, arguments.rounds)
    summary = rounds.summary(rows, arguments.batch, "images")
    for values in summary.values():
        values["milliseconds"] = 1e3 * values["seconds"]
    print(f"{config.layers + 1} features of width {config.width}, batch {arguments.batch}, {config.positions} positions, {config.dtype}")
    rounds.print_table(summary, COLUMNS)
    what = "features of every layer of a batch, against its logits"
    return {"what": what, "sizes": models.sizes(config), "dtype": config.dtype, "batch": arguments.batch, "programs": summary, "rounds": rows}


if __name__ == "__main__":
    main()
