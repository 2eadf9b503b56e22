"""How fast could a training step be on an H100: `python -m experiments.scale.roofline [--before=DIR]`, without one.

Compiles the training steps of MODELS for an H100, all layers unrolled, with the batch that was measured on a GPU and with the largest that fits (a power of
two or a multiple of 8), and writes experiments/results/roofline.json and roofline.md. Above about 76 % of the memory XLA begins to compute values again, to
save memory; such a batch does not fit here. `--before=DIR` adds rows of the same batches for a checkout of an older commit (`git worktree add DIR COMMIT`).
A row of the same commit is not compiled again; `--only=TEXT` selects models by their names. Needs the extra aot-gpu; a quarter of an hour on two cores.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from experiments.bench.kernels import kind_of
from experiments.report.provenance import provenance
from experiments.scale.aot_table import refusal, version
from igpt_jax.cli import Parser, prepare_folder, program
from igpt_jax.distributed import roofline
from igpt_jax.distributed.topology import CHIPS

RESULTS = pathlib.Path(__file__).parents[1] / "results"
PEAK = 989e12  # of an H100 and of an H200, bfloat16, data sheets
H200 = 4.8e12  # bytes/s of an H200's memory, data sheet
UNAIDED = 0.76  # share of the memory above which XLA computes values again: the search for the largest batch begins there


@dataclasses.dataclass(frozen=True)
class Model:
    """A recipe, its number of layers, which are all unrolled, and the batch that was measured; 0: none was."""

    recipe: str
    layers: int
    measured: int
    flags: str = ""

    def command(self, batch: int) -> str:
        """Return the command that compiles its step for a batch."""
        size = f"--config.batch_size={batch} --config.model.unroll={self.layers} --config.model.remat=none"
        return f"python -m igpt_jax.aot --config={self.recipe} --topology=h100-1 {size} {self.flags}".strip()


MODELS = {
    "S, 32 x 32": Model("configs/s.py", 24, 96),
    "M, 32 x 32": Model("configs/m.py", 36, 32),
    "L, 32 x 32": Model("configs/l.py", 48, 16),
    "L, 64 x 64": Model("configs/l.py", 48, 0, "--config.data.image_size=64"),
}
KERNELS = RESULTS / "gpu" / "bench_kernels_s_unrolled.json"  # of one H200, before
NOT_STORED = "one run, not stored"
MEASURED = {  # (model, batch, tree) -> milliseconds of a step on one H200, and the file in results/gpu that has them
    ("S, 32 x 32", 96, "before"): (142.3, "bench_train_s_before.json"),
    ("S, 32 x 32", 96, "after"): (135.0, "bench_train_s.json"),
    ("M, 32 x 32", 32, "after"): (195.8, "bench_train_m.json"),
    ("L, 32 x 32", 16, "after"): (285.3, NOT_STORED),
}


def main() -> None:
    parser = Parser(prog="python -m experiments.scale.roofline", description=__doc__)
    parser.add_argument("--before", type=pathlib.Path, help="checkout of an older commit, whose rows stand beside those of this one")
    parser.add_argument("--only", default="", help="compile only the models whose name contains this text")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder of roofline.json and roofline.md")
    arguments = parser.parse_args()
    path = prepare_folder(arguments.out) / "roofline.json"
    origin = provenance("python -m experiments.scale.roofline" + (" --before=DIR" if arguments.before else ""))
    versions = origin["versions"] | {name: version(name) for name in ("jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "optax")}
    trees = {"before": arguments.before} if arguments.before else {}
    trees["after"] = pathlib.Path(__file__).parents[2]
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name, model in MODELS.items():
        for tree, batch in steps(name, model, rows) if arguments.only in name else ():
            key = f"{tree}: {model.command(batch)}"
            if tree in trees and rows.get(key, {}).get("commit") != (commit := commit_of(trees[tree])):
                rows[key] = {"model": name, "tree": tree, "commit": commit, "batch": batch} | compile_step(model.command(batch), trees[tree])
                path.write_text(json.dumps(origin | {"versions": versions, "rows": rows}, indent=1) + "\n")
                print(key, rows[key].get("refused") or f"{rows[key]['peak_bytes'] / 2**30:.2f} GiB", flush=True)
    (arguments.out / "roofline.md").write_text(markdown(json.loads(path.read_text())))


def steps(name: str, model: Model, rows: dict) -> Iterator[tuple[str, int]]:
    """Yield (tree, batch) of the steps of a model to compile; the caller adds each to `rows` before it asks for the next one."""
    batch = model.measured or 4
    yield "after", batch
    first = rows[f"after: {model.command(batch)}"]
    each = (first["peak_bytes"] - first["argument_bytes"]) / batch
    largest = candidate(int((UNAIDED * first["limit_bytes"] - first["argument_bytes"]) / each))
    yield "after", largest
    direction = 1 if fits(rows[f"after: {model.command(largest)}"]) else -1
    while fits(rows[f"after: {model.command(largest)}"]) == (direction > 0) and largest > 1:
        largest = candidate(largest + direction, up=direction > 0)
        yield "after", largest
    yield "before", model.measured or max(row["batch"] for row in rows.values() if row["model"] == name and row["tree"] == "after" and fits(row))


def fits(row: dict) -> bool:
    """Whether a step fits without the compiler's help."""
    return "refused" not in row and not row["recomputed"]


def candidate(batch: int, up: bool = False) -> int:
    """Return the next batch, a power of two or a multiple of 8, that is at most (`up`: at least) `batch` and at least 1."""
    while batch > 1 and batch % 8 and batch not in (1, 2, 4):
        batch += 1 if up else -1
    return max(1, batch)


def compile_step(command: str, folder: pathlib.Path) -> dict:
    """Run a command of igpt_jax.aot in the checkout `folder` and return its report, with the roofline of the HLO text that the compiler leaves.

    The text is read by this commit's reader for every checkout. A step that is refused has {"refused": the error line}.
    """
    with tempfile.TemporaryDirectory() as place:
        out = pathlib.Path(place) / "row.json"
        dump = f"--xla_dump_to={place} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_train_step"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder.resolve()), "XLA_FLAGS": dump}
        words = [sys.executable, *command.split()[1:], f"--out={out}"]
        run = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
        reports = json.loads(out.read_text() or "[]") if out.exists() else []
        if run.returncode and not reports:
            return {"refused": refusal(command, run)}
        (text,) = (path.read_text() for path in pathlib.Path(place).glob("*gpu_after_optimizations.txt"))
    keys = ("parameters", "argument_bytes", "peak_bytes", "limit_bytes", "flops", "compile_seconds")
    kinds = roofline.roofline(text, PEAK, CHIPS["h100"].bandwidth)
    again = {"recomputed": len(re.findall(r"^ *%\S*\.remat\S* = (?!.* (?:bitcast|get-tuple-element)\()", text, re.MULTILINE))}
    return {key: reports[0][key] for key in keys} | again | {"kinds": kinds, "by_name": by_name(roofline.kernels(text))}


def by_name(kernels: list[roofline.Kernel]) -> list[dict]:
    """Return {name, kind, kernels, flops, bytes, h200} of the kernels of each name and kind; `h200` is the least time on an H200 in seconds."""
    sums: dict[tuple[str, str], dict] = {}
    for kernel in kernels:
        row = sums.setdefault((kernel.name, kernel.kind), {"kernels": 0, "flops": 0.0, "bytes": 0, "h200": 0.0})
        row["kernels"] += kernel.executions
        row["flops"] += kernel.executions * kernel.flops
        row["bytes"] += kernel.executions * kernel.bytes
        row["h200"] += kernel.executions * kernel.seconds(PEAK, H200)
    return [{"name": name, "kind": kind} | row for (name, kind), row in sums.items()]


def commit_of(folder: pathlib.Path) -> str:
    """Return the commit of a checkout, with "+" if tracked files were changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "igpt_jax/model", "igpt_jax/training", "configs")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def markdown(contents: dict) -> str:
    """Return roofline.md from the contents of roofline.json."""
    rows = chosen(contents["rows"])
    commits = ", ".join(f"{tree} is commit {commit}" for tree, commit in sorted({(row["tree"], row["commit"]) for row in rows}, reverse=True))
    versions = ", ".join(f"{name} {number}" for name, number in contents["versions"].items())
    parts = [
        "# How fast a training step could be on an H100",
        "The training step of igpt_jax.train in bfloat16, all layers unrolled, compiled for one H100 on a machine without one; nothing was executed. A kernel "
        "takes at least FLOP / 989 TFLOP/s and at least bytes / 3.35 TB/s, whichever is more. It reads its operands and writes its results once. The sum over "
        "the kernels is a floor of the step's time and gives the largest MFU that this program can have. Without a GPU products are not tuned and are Triton "
        "kernels instead of cuBLAS's; their FLOP and bytes are the same. cuDNN's attention has FLOP of two products forward and five backward, halved by the "
        f"causal mask. {commits[0].upper()}{commits[1:]}.",
        steps_table(rows),
        f"The largest batch of a model is the largest power of two or multiple of 8 for which XLA computes nothing again. {beyond(contents['rows'])}",
        "## Bytes by kind, GB",
        kinds_table(rows, lambda kind: f"{kind['bytes'] / 1e9:,.1f}"),
        "## Least time by kind, ms on an H100",
        kinds_table(rows, lambda kind: f"{1e3 * kind['seconds']:,.2f}"),
        "## What one H200 reached of it",
        "An H200 has the same peak and 4.8 TB/s; `reached` is least time / measured time. It ran jax 0.11.2, the compiled programs are of the versions below.",
        measured_table(rows),
        *kernel_tables(contents["rows"]),
        f"Compiled on {contents['hardware']} by `{contents['command']}` of commit {contents['commit']}; {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def chosen(rows: dict[str, dict]) -> list[dict]:
    """Return the rows to show: of each model the batches that both trees have or that were measured, and the largest; pairs stand together."""
    shown = []
    for name, model in MODELS.items():
        own = [row for row in rows.values() if row["model"] == name and "refused" not in row]
        largest = max((row["batch"] for row in own if row["tree"] == "after" and fits(row)), default=0)
        shown += [row for row in own if row["tree"] == "before" or row["batch"] in (model.measured, largest)]
    order = list(MODELS)
    return sorted(shown, key=lambda row: (order.index(row["model"]), row["batch"], row["tree"] != "before"))


def beyond(rows: dict[str, dict]) -> str:
    """Return a sentence on the batches that were compiled and do not fit unaided."""
    texts = []
    for row in rows.values():
        if not fits(row):
            result = f"{row['peak_bytes'] / 2**30:.1f} GiB with {row['recomputed']} operations repeated" if "recomputed" in row else "refused"
            texts.append(f"{row['model']} {row['tree']}, batch {row['batch']}: {result}")
    return f"Beyond it ({'; '.join(texts)}) XLA repeats operations to save memory." if texts else ""


def steps_table(rows: list[dict]) -> str:
    """Return the table of steps: memory, floating-point operations, least time and MFU."""
    head = ("model", "tree", "batch", "peak GiB", "computed again", "TFLOP of the model", "of the kernels", "ms, at least", "MFU, at most")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        executed, seconds = (sum(kind[key] for kind in row["kinds"]) for key in ("flops", "seconds"))
        numbers = f"{row['flops'] / 1e12:,.1f} | {executed / 1e12:,.1f} | {1e3 * seconds:,.1f} | {roofline.mfu(row['kinds'], row['flops'], PEAK):.1%}"
        lines.append(f"| {row['model']} | {row['tree']} | {row['batch']} | {row['peak_bytes'] / 2**30:.1f} | {row['recomputed']} | {numbers} |")
    return "\n".join(lines)


def kinds_table(rows: list[dict], cell: Callable[[dict], str]) -> str:
    """Return a table with a column for each kind of kernel that occurs; `cell` formats a row of roofline.roofline."""
    kinds = [kind for kind in roofline.KINDS if any(one["kind"] == kind and one["kernels"] for row in rows for one in row["kinds"])]
    lines = [f"| model | tree | batch | {' | '.join(kinds)} | all |", "|---" * (len(kinds) + 4) + "|"]
    for row in rows:
        total = {key: sum(kind[key] for kind in row["kinds"]) for key in ("kernels", "flops", "bytes", "seconds")}
        cells = [cell(kind) for kind in row["kinds"] if kind["kind"] in kinds] + [cell(total)]
        lines.append(f"| {row['model']} | {row['tree']} | {row['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_table(rows: list[dict]) -> str:
    """Return the steps that were measured on one H200 beside their least time there."""
    lines = ["| model | tree | batch | measured ms, MFU | source | at least ms, MFU at most | reached |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        if measured := MEASURED.get((row["model"], row["batch"], row["tree"])):
            least = 1e3 * sum(name["h200"] for name in row["by_name"])
            time, source = measured
            both = [f"{ms:.1f}, {row['flops'] / PEAK / ms * 1e3:.1%}" for ms in (time, least)]
            lines.append(f"| {row['model']} | {row['tree']} | {row['batch']} | {both[0]} | {source} | {both[1]} | {least / time:.0%} |")
    return "\n".join(lines)


def kernel_tables(rows: dict[str, dict]) -> list[str]:
    """Return the comparison of KERNELS, a profile of one H200, with the same program compiled here: by kind, and by the names of the kernels."""
    trace, model = json.loads(KERNELS.read_text()), MODELS["S, 32 x 32"]
    row = rows.get(f"before: {model.command(trace['batch'])}")
    if row is None:
        return []
    measured, least = compared(trace, row["by_name"])
    kinds = ["| kind | measured ms | at least ms | reached |", "|---|---|---|---|"]
    for kind in (*(kind for kind in roofline.KINDS if least[kind]), "all"):
        time, floor = (sum(sums.values()) if kind == "all" else sums[kind] for sums in (measured, least))
        kinds.append(f"| {kind} | {time:.1f} | {floor:.1f} | {floor / time:.0%} |")
    names = ["| kernel | kind | launches, compiled | microseconds | at least | reached |", "|---|---|---|---|---|---|"]
    for kernel in trace["largest"]:
        if group := [name for name in row["by_name"] if name["name"] == kernel["kernel"]]:
            launches, floor = sum(name["kernels"] for name in group), 1e6 * sum(name["h200"] for name in group)
            each = floor / launches
            numbers = f"{kernel['launches']:.0f}, {launches} | {kernel['microseconds_each']:.1f} | {each:.1f} | {each / kernel['microseconds_each']:.0%}"
            names.append(f"| {kernel['kernel']} | {largest_kind(group)} | {numbers} |")
    listed = sum(kernel["share"] for kernel in trace["largest"])
    return [
        f"By kind, S before at batch {trace['batch']}: kernels of `{trace['command']}` (commit {trace['commit']}, {trace['hardware']}, jax "
        f"{trace['versions']['jax']}), {len(trace['largest'])} names with {listed:.1%} of {trace['milliseconds']:.1f} ms. "
        "Kernels have the kind of the compiled kernels of the same name.",
        "\n".join(kinds),
        "By name, the kernels that both programs have:",
        "\n".join(names),
    ]


def compared(trace: dict, names: list[dict]) -> tuple[dict[str, float], dict[str, float]]:
    """Return milliseconds by kind, measured in a profile and at least; products and attention by the profile's names, others by the compiled kernels'."""
    measured: dict[str, float] = collections.defaultdict(float)
    least: dict[str, float] = collections.defaultdict(float)
    kinds = {name["name"]: largest_kind([other for other in names if other["name"] == name["name"]]) for name in names}
    for kernel in trace["largest"]:
        kind = kinds.get(kernel["kernel"]) or kind_of(kernel["kernel"])
        measured[kind] += kernel["share"] * trace["milliseconds"]
    for name in names:
        least[kinds[name["name"]]] += 1e3 * name["h200"]
    return measured, least


def largest_kind(group: list[dict]) -> str:
    """Return the kind on which kernels of one name spend most of their least time."""
    return max(group, key=lambda name: name["h200"])["kind"]


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is executed, and the CUDA plugin must not look for a GPU
    program(main)
