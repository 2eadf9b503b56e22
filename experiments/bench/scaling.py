"""How the cost of a training step grows: `python -m experiments.bench.scaling`.

Measures the time of our step on one device, and the memory that its compiler reports, against positions, width, layers and batch. One of them varies at a
time. The times are compared with ModelConfig.training_flops, scaled to the largest point, and the memory with the first power. Last, the time to compile the
step of XL is measured, from shapes only. Writes the JSON file and a figure of the same name (experiments/bench/scaling_figure.py).
"""

import argparse
import json
import statistics
import time
import types

import numpy as np

from experiments.bench import models, rounds, train
from experiments.bench.scaling_figure import draw
from igpt_jax.cli import Parser, integer

AXES = {"positions": [256, 512, 1024, 2048, 4096], "width": [64, 128, 256, 512], "layers": [2, 4, 8, 16], "batch": [1, 2, 4, 8, 16]}
GPU_AXES = AXES | {"width": [256, 512, 1024, 2048], "layers": [6, 12, 24, 48], "batch": [2, 4, 8, 16, 32]}
SMALL_AXES = {"positions": [16, 64], "batch": [1, 2]}


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    models.add_arguments(parser)
    parser.set_defaults(layers=4, positions=1024)
    parser.add_argument("--batch", type=integer(1), default=2, help="images in a batch")
    parser.add_argument("--steps", type=integer(1), default=3, help="steps in a turn")
    parser.add_argument("--axes", type=json.loads, default=AXES, help='axes and their values as JSON, for example \'{"positions": [256, 1024]}\'')
    small = models.SMALL | {"batch": 1, "steps": 1, "rounds": 1, "axes": SMALL_AXES}
    gpu = models.GPU | {"batch": 8, "axes": GPU_AXES}
    return rounds.start("scaling", bench, parser, argv, {"ours": ()}, small, gpu, models.SIZES, draw)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    axes = {}
    for axis, values in arguments.axes.items():
        points = [_point(arguments, axis, value) for value in values]
        last = points[-1]
        for point in points:
            point["expected_seconds"] = last["seconds"] * point["flops"] / last["flops"]
        slopes = {"slope": slope(points, "seconds"), "expected_slope": slope(points, "flops"), "memory_slope": slope(points, "bytes")}
        axes[axis] = {"points": points} | slopes
        powers = f"{slopes['slope']:.2f}, operations with {slopes['expected_slope']:.2f}, memory with {slopes['memory_slope']:.2f}"
        print(f"{axis}: seconds grow with power {powers}", flush=True)
    what = "one training step of ours; slopes are powers, fitted to all points of an axis"
    compiled = {"xl_compile_seconds": xl_compile_seconds()} if rounds.backend() == "cpu" and not arguments.small else {}
    config = models.model_config(arguments)
    facts = {"sizes": models.sizes(config), "dtype": config.dtype, "batch": arguments.batch, "steps": arguments.steps}
    return {"what": what} | facts | {"axes": axes} | compiled


def xl_compile_seconds() -> float:
    """Return the seconds that a new process needs to compile XL's step at 32 x 32 for one device, with a loop over the layers; no arrays are made."""
    seconds = rounds.in_a_process("from experiments.bench import scaling; scaling.compile_xl()", JAX_ENABLE_COMPILATION_CACHE="false")
    print(f"XL compiles in {seconds:.1f} s", flush=True)
    return seconds


def compile_xl() -> None:
    """Print the seconds from shapes to the compiled step of XL."""
    arguments = types.SimpleNamespace(**models.SIZES["xl"], dtype="bfloat16", remat="full", unroll=1)
    config = models.model_config(arguments)
    began = time.perf_counter()
    train.step_bytes(config, batch=1)
    print(time.perf_counter() - began)


def slope(points: list[dict], key: str) -> float:
    """Return the power of `value` with which `key` grows, by least squares of the logarithms."""
    logarithms = np.log([[point["value"], point[key]] for point in points])
    return float(np.polyfit(*logarithms.T, 1)[0])


def _point(arguments, axis, value):
    changed = types.SimpleNamespace(**vars(arguments) | {axis: value})
    config = models.model_config(changed)
    turn = train.ours(config, changed.batch, changed.steps, models.one_device())
    turn()  # compiles
    seconds = statistics.median(turn()["seconds"] for _ in range(arguments.rounds))
    print(f"{axis} {value}: {seconds:.4g} s", flush=True)
    return {"value": value, "seconds": seconds, "flops": changed.batch * config.training_flops(), "bytes": train.step_bytes(config, changed.batch)}


if __name__ == "__main__":
    main()
