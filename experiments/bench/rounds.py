"""What the benchmarks share: options, programs that take turns, medians and ratios of each round, the table, the JSON file.

A program is a function that does one turn and returns {"seconds": of one unit of work, ...}; it has waited for its device. "ours" is always
among them.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from experiments.report.provenance import provenance
from igpt_jax.cli import ANY_ERROR, fail, integer, prepare_file
from igpt_jax.distributed import runtime

RESULTS = "experiments/results"
INSTALL = "pip install --editable '.[bench]'"
LIBRARIES = ("jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "transformers", "scikit-learn", "grain")
SHARE = {True: 0.92, False: 0.5}  # of a GPU's memory that jax may take: alone, and beside peers, who have the other half


def start(name: str, bench, parser, argv, programs, small, gpu=None, sizes=None, draw=None, all_cores=False) -> dict:
    """Parse, call `bench(arguments)` for its result, write it to bench_NAME.json, return it; a user's mistake is one line and exit code 1.

    `programs`: name -> libraries it needs. `small` and `gpu` are options that --small and a GPU give instead of the parser's own, `sizes`
    those of each --model; what the command line says itself goes before. `draw(result, path of the JSON)` comes last. `all_cores`: a CPU's cores are
    devices, as in our programs that train, sample or write features.
    """
    argv = sys.argv[1:] if argv is None else argv
    runtime.keep()  # as our programs do; the peers have that memory too
    if all_cores:
        runtime.divide_cores()
    try:
        arguments = _arguments(name, parser, argv, programs, small, gpu or {}, sizes or {})
        command = " ".join([f"python -m experiments.bench.{name}", *(word for word in argv if not word.startswith("--out"))])
        prepare_file(arguments.out)
        result = bench(arguments) | provenance(command)
    except ANY_ERROR as error:
        fail(error)
    result["versions"] |= {library: importlib.metadata.version(library) for library in LIBRARIES if installed(library)}
    result |= {"small": arguments.small, "threads": threads(), "backend": backend()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.out}")
    if draw:
        draw(result, arguments.out)
    return result


def alternate(programs: dict, rounds: int) -> dict[str, list[dict]]:
    """Let the programs take `rounds` turns each, every other round in the opposite order: name -> its rows.

    A peer that fails (no memory, no compiler) gets the row {"failed": why} and no further turn; an error of ours is raised.
    """
    rows = {name: [] for name in programs}
    for number in range(rounds):
        for name in list(programs) if number % 2 == 0 else reversed(programs):
            if any("failed" in row for row in rows[name]):
                continue
            try:
                rows[name].append(programs[name]())
            except Exception as error:
                if name == "ours":
                    raise
                rows[name].append({"failed": _first_line(error)})
            row = rows[name][-1]
            told = f"{row['seconds']:.4g} s" if "seconds" in row else f"failed: {row['failed']}"
            print(f"round {number}  {name:24} {told}", flush=True)
    return rows


def summary(rows: dict[str, list[dict]], work: float = 1, unit: str = "units") -> dict[str, dict]:
    """Of each program: median, least and most seconds, and `unit`_per_second where `work` units are done in a turn's seconds.

    `ours_is_faster_by` is the median of each round's own ratio, its seconds over ours, which stand in `ratios`. Other values of the rows
    are the last turn's.
    """
    found = {}
    for name, turns in rows.items():
        if "failed" in turns[-1]:
            found[name] = {"failed": turns[-1]["failed"]}
            continue
        seconds = [turn["seconds"] for turn in turns]
        ratios = [turn["seconds"] / ours["seconds"] for turn, ours in zip(turns, rows["ours"], strict=True)]
        median = statistics.median(seconds)
        found[name] = {key: value for key, value in turns[-1].items() if key != "seconds"}
        found[name] |= {"seconds": median, "seconds_least": min(seconds), "seconds_most": max(seconds), f"{unit}_per_second": work / median}
        found[name] |= {"ours_is_faster_by": statistics.median(ratios), "ratios": ratios}
    return found


def print_table(found: dict[str, dict], columns: dict[str, tuple[str, str]]) -> None:
    """Print a row for each program and, of `columns`, title -> (key, format), those that any has; last, how much faster ours is."""
    columns = columns | {"ours is faster by": ("ours_is_faster_by", "{:.2f}")}
    shown = {title: column for title, column in columns.items() if any(values.get(column[0]) is not None for values in found.values())}
    lines = [["", *shown]]
    for name, values in found.items():
        cells = ["-" if values.get(key) is None else form.format(values[key]) for key, form in shown.values()]
        lines.append([name, *cells] if "failed" not in values else [name, f"failed: {values['failed'][:100]}"])
    widths = [max(len(line[place]) for line in lines if len(line) == len(lines[0])) for place in range(len(lines[0]))]
    for line in lines:
        padded = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)]
        print("  ".join([line[0].ljust(widths[0]), *padded]))


def seconds_each(step, count: int, wait, warm: int = 1) -> float:
    """Seconds of one of `count` steps, after `warm` more; `wait(what the step returned)` is where the device is waited for."""
    for _ in range(warm):
        wait(step())
    began = time.perf_counter()
    for _ in range(count):
        made = step()
    wait(made)
    return (time.perf_counter() - began) / count


def in_a_process(program: str, **environment):
    """What a Python program prints last, JSON, in a process of its own, whose C library and jax nobody has told anything."""
    run = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def backend() -> str:
    """What jax runs on: cpu, gpu or tpu."""
    import jax

    return jax.default_backend()


def installed(library: str) -> bool:
    """Whether a library, by its name on a package index, is there; nothing is imported."""
    try:
        return importlib.util.find_spec({"scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}.get(library, library)) is not None
    except ValueError:  # a module without a spec, made by hand
        return False


def threads() -> int:
    """Cores of this process, which is how many threads XLA takes; the peers are given as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_device():
    """torch's device, the same kind as jax's, with as many threads; ValueError where the two would not run on the same."""
    import torch

    torch.set_num_threads(threads())
    if (backend() == "gpu") != torch.cuda.is_available() or backend() not in ("cpu", "gpu"):
        other = "GPU" if torch.cuda.is_available() else "CPU"
        way_out = "install both for the same, set CUDA_VISIBLE_DEVICES= to nothing, or give --programs ours"
        raise ValueError(f"jax runs on {backend()}, torch would on a {other}: {way_out}")
    return torch.device("cuda" if backend() == "gpu" else "cpu")


def torch_wait(_=None) -> None:
    """Wait for torch's device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments(name, parser, argv, programs, small, gpu, sizes):
    parser.prog = f"python -m experiments.bench.{name}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--programs", nargs="+", choices=list(programs), default=list(programs), help="that take turns; default: all")
    parser.add_argument("--rounds", type=integer(1), default=3)
    parser.add_argument("--small", action="store_true", help="a form of seconds, for the tests: its numbers say nothing")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(RESULTS) / f"bench_{name}.json")
    first = parser.parse_args(argv)
    if "ours" not in first.programs or first.rounds < 1:
        raise ValueError(f"--programs={' '.join(first.programs)} must have ours among them, and --rounds={first.rounds} be at least 1")
    for program in first.programs:
        for library in programs[program]:
            if not installed(library):
                raise ValueError(f"{program} needs {library}, which is not installed: {INSTALL}, or name the others by --programs")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(SHARE[not any("torch" in programs[program] for program in first.programs)]))
    parser.set_defaults(**(gpu if backend() == "gpu" else {}))
    parser.set_defaults(**(small if first.small else {}))
    parser.set_defaults(**sizes.get(getattr(first, "model", None), {}))
    return parser.parse_args(argv)


def _first_line(error):
    text = " ".join(str(error).split()[:40])
    return "out of memory" if "out of memory" in text.lower() or "RESOURCE_EXHAUSTED" in text else f"{type(error).__name__}: {text}"
