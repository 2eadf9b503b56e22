"""What the benchmarks share: options, programs that take turns, medians, ratios of each round, the table, and the JSON file, written and read.

A program is a function that does one turn, waits for its device, and returns {"seconds": of one unit of work, ...}. One of the programs is "ours".
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

from experiments.report.measurements import read_results
from experiments.report.provenance import provenance
from igpt_jax.cli import ANY_ERROR, Parser, fail, integer, prepare_file
from igpt_jax.distributed import runtime

RESULTS = pathlib.Path("experiments/results")
REHEARSAL = pathlib.Path("runs/rehearsal")  # of what --small measures; git ignores runs/
INSTALL = "pip install --editable '.[bench]'"
LIBRARIES = ("jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "transformers", "scikit-learn", "grain", "faiss-cpu")
SHARE = {True: 0.92, False: 0.5}  # of a GPU's memory for jax; True: jax runs alone, False: peers need the other half
Program: TypeAlias = Callable[[], dict]


def start(
    name: str, bench: Callable[[argparse.Namespace], dict], parser: Parser, argv: list[str] | None, programs: dict[str, tuple[str, ...]], small: dict,
    gpu: dict | None = None, sizes: dict[str, dict] | None = None, draw: Callable[[dict, pathlib.Path], None] | None = None, all_cores: bool = False,
) -> dict:  # fmt: skip
    """Parse the command line, write the result of `bench(arguments)` to bench_NAME.json and return it; an error is one line and exit code 1.

    `programs` maps a name to the libraries that it needs. `small`, `gpu` and `sizes` are defaults of options: with --small, on a GPU, and of each --model.
    Options on the command line take precedence. `draw(result, path of the JSON)` is called last. With `all_cores` the cores of a CPU are devices, as in the
    programs of igpt_jax that train, sample or write features.
    """
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    runtime.prepare()  # as the programs of igpt_jax do; it applies to the peers too
    if all_cores:
        runtime.divide_cores()
    try:
        arguments = _arguments(name, parser, argv, programs, small, gpu or {}, sizes or {})
        command = " ".join([f"python -m experiments.bench.{name}", *(word for word in argv if not word.startswith("--out"))])
        prepare_file(arguments.out)
        result = bench(arguments) | provenance(command)
    except ANY_ERROR as error:
        fail(error)
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of another build, as faiss-gpu
            result["versions"] |= {library: importlib.metadata.version(library)}
    result |= {"small": arguments.small, "threads": threads(), "backend": backend()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {arguments.out}")
    if draw:
        draw(result, arguments.out)
    return result


def alternate(programs: dict[str, Program], rounds: int) -> dict[str, list[dict]]:
    """Run the programs in turns for so many rounds, every second round in reverse order; return name -> its rows.

    A peer that fails (no memory, no compiler) gets the row {"failed": reason} and no further turn; an error of ours is raised.
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
            outcome = f"{row['seconds']:.4g} s" if "seconds" in row else f"failed: {row['failed']}"
            print(f"round {number}  {name:24} {outcome}", flush=True)
    return rows


def summary(rows: dict[str, list[dict]], work: float = 1, unit: str = "units") -> dict[str, dict]:
    """Return for each program the median, least and most seconds, and {unit}_per_second if a turn does `work` units in its seconds.

    `ratios` are the program's seconds over ours in each round, and `ours_is_faster_by` is their median. Other values are those of the last turn.
    """
    summary = {}
    for name, turns in rows.items():
        if "failed" in turns[-1]:
            summary[name] = {"failed": turns[-1]["failed"]}
            continue
        seconds = [turn["seconds"] for turn in turns]
        ratios = [turn["seconds"] / ours["seconds"] for turn, ours in zip(turns, rows["ours"], strict=True)]
        median = statistics.median(seconds)
        summary[name] = {key: value for key, value in turns[-1].items() if key != "seconds"}
        summary[name] |= {"seconds": median, "seconds_least": min(seconds), "seconds_most": max(seconds), f"{unit}_per_second": work / median}
        summary[name] |= {"ours_is_faster_by": statistics.median(ratios), "ratios": ratios}
    return summary


def print_table(summary: dict[str, dict], columns: dict[str, tuple[str, str]]) -> None:
    """Print a row for each program; `columns` are title -> (key, format). Columns without values are left out; the last one is how much faster ours is."""
    columns = columns | {"ours is faster by": ("ours_is_faster_by", "{:.2f}")}
    shown = {title: column for title, column in columns.items() if any(values.get(column[0]) is not None for values in summary.values())}
    lines = [["", *shown]]
    for name, values in summary.items():
        cells = ["-" if values.get(key) is None else form.format(values[key]) for key, form in shown.values()]
        lines.append([name, *cells] if "failed" not in values else [name, f"failed: {values['failed'][:100]}"])
    widths = [max(len(line[place]) for line in lines if len(line) == len(lines[0])) for place in range(len(lines[0]))]
    for line in lines:
        padded = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)]
        print("  ".join([line[0].ljust(widths[0]), *padded]))


def seconds_each(step: Callable[[], object], count: int, wait: Callable[[object], object], warm: int = 1) -> float:
    """Return the mean seconds of `count` steps after `warm` uncounted ones; `wait(result of the step)` waits for the device."""
    for _ in range(warm):
        wait(step())
    began = time.perf_counter()
    for _ in range(count):
        result = step()
    wait(result)
    return (time.perf_counter() - began) / count


def in_a_process(program: str, **environment: str) -> object:
    """Run a Python program in a process whose C library and jax have default settings; return the JSON of its last line."""
    run = subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def backend() -> str:
    """Return the backend of jax: cpu, gpu or tpu."""
    import jax

    return jax.default_backend()


def installed(library: str) -> bool:
    """Return whether a library, by its name on a package index, is installed; nothing is imported."""
    try:
        return importlib.util.find_spec({"scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}.get(library, library)) is not None
    except ValueError:  # a module without a spec, put into sys.modules by hand
        return False


def threads() -> int:
    """Return the number of cores of this process, which is the number of threads of XLA and of the peers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_device():
    """Return torch's device, of the same kind as jax's and with as many threads; ValueError if the kinds differ."""
    import torch

    torch.set_num_threads(threads())
    if (backend() == "gpu") != torch.cuda.is_available() or backend() not in ("cpu", "gpu"):
        device = "GPU" if torch.cuda.is_available() else "CPU"
        solution = "install both for the same device, set CUDA_VISIBLE_DEVICES to nothing, or give --programs ours"
        raise ValueError(f"jax runs on {backend()}, torch would run on a {device}: {solution}")
    return torch.device("cuda" if backend() == "gpu" else "cpu")


def torch_wait(_: object = None) -> None:
    """Wait for torch's device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _arguments(name, parser, argv, programs, small, gpu, sizes):
    parser.prog = f"python -m experiments.bench.{name}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--programs", nargs="+", choices=list(programs), default=list(programs), help="programs that take turns; default: all")
    parser.add_argument("--rounds", type=integer(1), default=3, help="turns of each program")
    parser.add_argument("--small", action="store_true", help="run for seconds only, for tests; the numbers have no meaning")
    places = f"bench_{name}.json in {RESULTS}, in its folder gpu or tpu on such devices, with --small in {REHEARSAL}"
    parser.add_argument("--out", type=pathlib.Path, help=f"JSON file to write; default: {places}")
    first = parser.parse_args(argv)
    if "ours" not in first.programs or first.rounds < 1:
        raise ValueError(f"--programs={' '.join(first.programs)} must include ours, and --rounds={first.rounds} must be at least 1")
    for program in first.programs:
        for library in programs[program]:
            if not installed(library):
                raise ValueError(f"{program} needs {library}, which is not installed: {INSTALL}, or leave {program} out of --programs")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(SHARE[not any("torch" in programs[program] for program in first.programs)]))
    parser.set_defaults(**(gpu if backend() == "gpu" else {}))
    parser.set_defaults(**(small if first.small else {}))
    parser.set_defaults(**sizes.get(getattr(first, "model", None), {}))
    parser.set_defaults(out=(REHEARSAL if first.small else RESULTS if backend() == "cpu" else RESULTS / backend()) / f"bench_{name}.json")
    return parser.parse_args(argv)


def read(path: pathlib.Path, backend: str) -> dict:
    """Return the result of a benchmark; ValueError if it is damaged, of a rehearsal (--small), or of another backend than the table's."""
    result = read_results(path)
    if result.get("small"):
        raise ValueError(f"{path} is of a rehearsal (--small), whose numbers have no meaning: run `{result['command'].replace(' --small', '')}`")
    if result.get("backend", backend) != backend:
        raise ValueError(f"{path} was measured on {result['hardware']}, and its table is of a {backend}: move it to the results of its backend")
    return result


def _first_line(error):
    text = " ".join(str(error).split()[:40])
    return "out of memory" if "out of memory" in text.lower() or "RESOURCE_EXHAUSTED" in text else f"{type(error).__name__}: {text}"
