"""Which recipe fits which pod: compile the paper's models for pods without having them: `python -m experiments.scale.aot_table`.

Runs igpt_jax.aot once for each row of ROWS, each in its own process, and writes experiments/results/aot.json and aot.md. A row of the same commit is not
compiled again; `--only=TEXT` selects the rows whose command contains TEXT. Needs the extras aot and aot-gpu, and half an hour on two cores.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from importlib import metadata

from experiments.report.provenance import provenance
from igpt_jax.cli import Parser, prepare_folder, program
from igpt_jax.training.compilation import Compiled, table

SMALL = "--config.data.image_size=32"
TENSOR = "--config.mesh.tensor=4"
TWO_SLICES = "--config.mesh.data=2 --config.batch_size=128"
ROWS = {  # command -> peak in GiB of a hand-written program for the same chips (../shared/reference/tpu_aot.md); None: not measured there
    f"configs/xl.py --topology=v4-128 {SMALL}": 2.364,
    "configs/xl.py --topology=v4-128": 3.861,
    f"configs/xl.py --topology=v5e-256 {SMALL} {TENSOR}": 0.816,
    f"configs/xl.py --topology=v5e-256 {TENSOR}": 2.012,
    f"configs/xl.py --topology=v5p-64 {SMALL}": 4.764,
    "configs/xl.py --topology=v5p-64": 7.729,
    f"configs/xl.py --topology=v5e-256x2 {SMALL} {TENSOR} {TWO_SLICES}": 0.822,
    f"configs/xl.py --topology=v5e-256x2 {TENSOR} {TWO_SLICES}": None,
    f"configs/xl.py --topology=h100-64 {SMALL}": 2.4,
    "configs/xl.py --topology=h100-64": 7.3,
    "configs/l.py --topology=v5e-64": 0.748,
    "configs/s.py --topology=v5e-8 --config.model.remat=full": 1.586,
    "configs/s.py --topology=v5e-8": None,
    "configs/xl.py --topology=v5e-4 --config.batch_size=4": None,
}
RESULTS = pathlib.Path(__file__).parents[1] / "results"


def main() -> None:
    parser = Parser(prog="python -m experiments.scale.aot_table", description=__doc__)
    parser.add_argument("--only", default="", help="compile only the rows whose command contains this text")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder of aot.json and aot.md")
    arguments = parser.parse_args()
    path = prepare_folder(arguments.out) / "aot.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    origin = provenance("python -m experiments.scale.aot_table")
    for command in ROWS:
        if arguments.only not in command or rows.get(command, {}).get("commit") == origin["commit"]:
            continue
        rows[command] = {"commit": origin["commit"]} | compile_row(command)
        print(command, rows[command].get("refused") or f"{rows[command]['needed_bytes'] / 2**30:.2f} GiB", flush=True)
        rows = {name: rows[name] for name in ROWS if name in rows}
        versions = origin["versions"] | {name: version(name) for name in ("libtpu", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "optax")}
        path.write_text(json.dumps(origin | {"versions": versions, "rows": rows}, indent=1) + "\n")
    (arguments.out / "aot.md").write_text(markdown(json.loads(path.read_text())))


def compile_row(command: str) -> dict:
    """Return the report on one row: the fields of igpt_jax.training.compilation.Compiled, or {"refused": the error line}."""
    with tempfile.TemporaryDirectory() as place:
        out = pathlib.Path(place) / "row.json"
        words = [sys.executable, "-m", "igpt_jax.aot", *f"--config={command}".split(), f"--out={out}"]
        run = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        return {"refused": refusal(command, run)} if run.returncode else json.loads(out.read_text())[0]


def refusal(command: str, run: subprocess.CompletedProcess) -> str:
    """Return the line in which igpt_jax.aot says that a step does not fit; RuntimeError with the last line of any other error."""
    line = run.stderr.strip().splitlines()[-1]
    if "the step needs" not in line:
        raise RuntimeError(f"{command}: {line}")
    return line


def markdown(contents: dict) -> str:
    """Return aot.md from the contents of aot.json: the tables, their commands and their origin."""
    compiled = {command: row for command, row in contents["rows"].items() if "refused" not in row}
    fields = set(Compiled.__dataclass_fields__)
    unknown = {"remat": ""}  # in rows of commits before it was a field
    rows = [Compiled(**unknown | {name: value for name, value in row.items() if name in fields}) for row in compiled.values()]
    head, line, *body = table(rows).splitlines()
    parts = [
        "# Which recipe fits which pod",
        "The training step of igpt_jax.train, compiled by the chips' own compilers on a machine without them; nothing was executed.",
        "GiB are those of one device: `state` is parameters and Adam's moments, `peak` what the step needs at once as the compiler "
        "simulates it, `needs` what the runtime allocates (the temporaries in one block, with its gaps), `limit` what the compiler allows. "
        "TFLOP are those of a step on the whole batch. Collectives: how often a step runs them, in brackets the GiB of the whole arrays that they "
        "gather, scatter or sum, of which one device sends and receives nearly as much (an all-reduce: twice).",
        "\n".join([f"| batch, resolution {head}", f"|---{line}", *(f"| {_size(command)} {text}" for command, text in zip(compiled, body, strict=True))]),
        "## Peak beside a program written by hand for the same chips",
        "\n".join(["| command | peak, GiB | by hand | ratio |", "|---|---|---|---|", *(_compared(command, row) for command, row in compiled.items())]),
        "## Refused",
        "\n".join(f"- `python -m igpt_jax.aot --config={command}`: {row['refused']}" for command, row in contents["rows"].items() if "refused" in row),
        f"Commit {', '.join(sorted({row['commit'] for row in contents['rows'].values()}))}, compiled on {contents['hardware']} by `{contents['command']}`; "
        + ", ".join(f"{name} {version}" for name, version in contents["versions"].items())
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def readme_block(contents: dict) -> str:
    """Return README's table from the contents of aot.json: a row for each command that fits."""
    lines = ["| recipe, resolution | pod | `config.mesh` | batch | GiB of a device: state, needs, limit |", "|---|---|---|---|---|"]
    for command, row in contents["rows"].items():
        if "refused" not in row:
            name, batch, resolution = _size(command).split(", ")
            mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
            sizes = ", ".join(f"{row[key] / 2**30:.2f}" for key in ("argument_bytes", "needed_bytes", "limit_bytes"))
            remat = ", remat=full" if "remat=full" in command else ""
            lines.append(f"| {name}, {resolution}{remat} | {row['topology']} | {mesh} | {batch} | {sizes} |")
    return "\n".join(lines) + "\n"


def _compared(command, row):
    peak, by_hand = row["peak_bytes"] / 2**30, ROWS[command]
    columns = f"{by_hand:.2f} | {peak / by_hand:.2f}" if by_hand else "- | -"
    return f"| `python -m igpt_jax.aot --config={command}` | {peak:.2f} | {columns} |"


def _size(command):
    """Name of the recipe, batch size and resolution, as the command sets them."""
    import importlib

    name, *flags = command.split()
    config = importlib.import_module(name.removesuffix(".py").replace("/", ".")).get_config()
    for flag in flags:
        key, _, value = flag.removeprefix("--").partition("=")
        if key.startswith("config."):
            config.update_from_flattened_dict({key.removeprefix("config."): int(value) if value.isdigit() else value})
    return f"{pathlib.Path(name).stem.upper()}, {config.batch_size}, {config.data.image_size}"


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is executed, and the CUDA plugin must not look for a GPU
    program(main)
