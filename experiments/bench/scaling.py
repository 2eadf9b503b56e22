"""How the cost of a training step grows: `python -m experiments.bench.scaling`.

Step time of ours against positions, width, layers and batch, one at a time from a base; beside each the line of ModelConfig.training_flops
through the point that is largest. Writes the JSON and beside it a figure of the same name (experiments/bench/scaling_figure.py).
"""

import argparse
import json
import statistics
import types

import numpy as np

from experiments.bench import models, rounds, train
from experiments.bench.scaling_figure import draw

AXES = {"positions": [256, 512, 1024, 2048, 4096], "width": [64, 128, 256, 512], "layers": [2, 4, 8, 16], "batch": [1, 2, 4, 8, 16]}
GPU_AXES = AXES | {"width": [256, 512, 1024, 2048], "layers": [6, 12, 24, 48], "batch": [2, 4, 8, 16, 32]}
SMALL_AXES = {"positions": [16, 64], "batch": [1, 2]}


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_arguments(parser)
    parser.set_defaults(layers=4, positions=1024)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--axes", type=json.loads, default=AXES, help='JSON, such as \'{"positions": [256, 1024]}\'')
    small = models.SMALL | {"batch": 1, "steps": 1, "rounds": 1, "axes": SMALL_AXES}
    gpu = models.GPU | {"batch": 8, "axes": GPU_AXES}
    return rounds.start("scaling", bench, parser, argv, {"ours": ()}, small, gpu, models.SIZES, draw)


def bench(arguments) -> dict:
    """Measure; the result without its provenance."""
    axes = {}
    for axis, values in arguments.axes.items():
        points = [_point(arguments, axis, value) for value in values]
        last = points[-1]
        for point in points:
            point["expected_seconds"] = last["seconds"] * point["flops"] / last["flops"]
        axes[axis] = {"points": points, "slope": slope(points, "seconds"), "expected_slope": slope(points, "flops")}
        print(f"{axis}: seconds grow with power {axes[axis]['slope']:.2f}, operations with {axes[axis]['expected_slope']:.2f}", flush=True)
    what = "one training step of ours; slopes are powers, fitted to all points of an axis"
    config = models.model_config(arguments)
    facts = {"sizes": models.sizes(config), "dtype": config.dtype, "batch": arguments.batch, "steps": arguments.steps}
    return {"what": what} | facts | {"axes": axes}


def slope(points: list[dict], key: str) -> float:
    """The power of `value` that `key` grows with: least squares of the logarithms."""
    logarithms = np.log([[point["value"], point[key]] for point in points])
    return float(np.polyfit(*logarithms.T, 1)[0])


def _point(arguments, axis, value):
    changed = types.SimpleNamespace(**vars(arguments) | {axis: value})
    config = models.model_config(changed)
    turn = train.ours(config, changed.batch, changed.steps)
    turn()  # compiles
    seconds = statistics.median(turn()["seconds"] for _ in range(arguments.rounds))
    print(f"{axis} {value}: {seconds:.4g} s", flush=True)
    return {"value": value, "seconds": seconds, "flops": changed.batch * config.training_flops()}


if __name__ == "__main__":
    main()
