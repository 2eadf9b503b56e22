"""What a GPU spends a step on: `python -m experiments.bench.kernels [--model=s|m|l] [--batch=N] [--what=train|sample]`.

Traces a few steps with jax.profiler, sums the time of each kernel and of each kind of kernel, and writes JSON. `launches` is the number of kernels in a
step; a step of sampling is one token. Only GPUs report their kernels; on other devices the table is empty.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re
import tempfile

import jax
import numpy as np

from experiments.bench import models, rounds, train
from igpt_jax.cli import Parser, integer
from igpt_jax.sampling.generate import sample_codes
from igpt_jax.types import PathLike

KINDS = {  # kind -> pattern of the names of its kernels; the first match counts
    "attention": r"cudnn.*(sdpa|flash|mha|attention)|flash|sdpa|fmha",
    "copies": r"memcpy|memset|copy|transpose|wrapped_concatenate|slice",
    "products": r"gemm|cutlass|nvjet|cublas|dot|splitk|xmma",
    "elementwise": r"fusion|reduce|loop|wrapped|convert|add|multiply|select|iota|compare",
}
MODULE = re.compile(r"^(jit_|XlaModule|PjRt|Execute|Thunk|cuGraph|cuLaunch|cuda)")


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    models.add_arguments(parser)
    parser.add_argument("--batch", type=integer(1), default=16, help="images in a batch")
    parser.add_argument("--steps", type=integer(1), default=3, help="steps of training to trace")
    parser.add_argument("--what", choices=("train", "sample"), default="train", help="program to trace")
    small = models.SMALL | {"batch": 2, "steps": 2, "rounds": 1, "positions": 16}
    return rounds.start("kernels", bench, parser, argv, {"ours": ()}, small, models.GPU | {"batch": 64}, models.SIZES)


def bench(arguments: argparse.Namespace) -> dict:
    """Trace; return the result without its provenance."""
    config, steps = models.model_config(arguments), arguments.steps
    if arguments.what == "train":
        turn, units = train.ours(config, arguments.batch, steps), steps + train.WARM
    else:
        model, prefix, key = models.make_model(config), np.zeros((1, 0), np.int32), jax.random.key(0)
        turn, units = (lambda: sample_codes(model, prefix, key, arguments.batch)), config.positions
    turn()  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            turn()
        events = read_trace(folder)
    kernels = total(events, units)
    kinds = collections.Counter()
    for name, (microseconds, _) in kernels.items():
        kinds[kind_of(name)] += microseconds
    microseconds_of_all = sum(kinds.values())
    launches = sum(count for _, count in kernels.values())
    print(f"{arguments.what}, batch {arguments.batch}: {microseconds_of_all / 1e3:.3f} ms of kernels a step, {launches:.1f} kernels")
    for kind, microseconds in kinds.most_common():
        print(f"{microseconds / microseconds_of_all:7.1%}  {kind}")
    largest = sorted(kernels.items(), key=lambda item: -item[1][0])[:25]
    for name, (microseconds, count) in largest:
        print(f"{microseconds / microseconds_of_all:7.1%}  {count:8.1f} x {microseconds / count:9.1f} us  {name[:110]}")
    return {
        "what": f"kernels of one step: {arguments.what}", "sizes": models.sizes(config), "dtype": config.dtype, "batch": arguments.batch,
        "milliseconds": microseconds_of_all / 1e3, "launches": launches, "kinds": {kind: us / microseconds_of_all for kind, us in kinds.items()},
        "largest": [{"kernel": name, "share": us / microseconds_of_all, "launches": count, "microseconds_each": us / count} for name, (us, count) in largest],
    }  # fmt: skip


def read_trace(folder: PathLike) -> list[dict]:
    """Return the events {name, dur in microseconds} of a device's kernels in the newest trace below `folder`."""
    path = max(pathlib.Path(folder).rglob("perfetto_trace.json.gz"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    process = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
    thread = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event.get("name") == "thread_name"}
    streams = {place for place, name in thread.items() if "GPU" in process.get(place[0], "") and "Stream" in name}
    return [event for event in events if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams]


def total(events: list[dict], units: int) -> dict[str, tuple[float, float]]:
    """Return kernel -> (microseconds, launches) of one of `units` steps; numbers at the end of a name are removed."""
    sums: dict[str, list] = {}
    for event in events:
        name = re.sub(r"[._]\d+$", "", event["name"])
        if not MODULE.match(name):
            entry = sums.setdefault(name, [0.0, 0])
            entry[0] += event["dur"]
            entry[1] += 1
    return {name: (microseconds / units, count / units) for name, (microseconds, count) in sums.items()}


def kind_of(name: str) -> str:
    """Return the kind of a kernel, one of KINDS or "other"."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


if __name__ == "__main__":
    main()
