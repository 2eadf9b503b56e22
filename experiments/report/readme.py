"""Write the generated blocks of README.md and experiments/README.md from experiments/results/: `python -m experiments.report.readme`.

Numbers there are read, never typed. A block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; those of README.md are each made by the
experiment of that name from what it wrote.
"""

import json
import pathlib

from experiments.bench import table
from experiments.report import findings, results_table, summary
from experiments.scale import aot_table, chaos, plan

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments/results"
MODULES = {"aot": aot_table, "chaos": chaos, "plan": plan}  # each writes NAME.json and has readme_block(of it)


def _run_of(found):
    best, last = found["probe"]["best"], found["probe"]["last"]
    loss, counted = found["test"]["nats_per_pixel"], summary.counted(found)
    layers = f"layer {best['layer']} {100 * best['test']:.1f}%, last {100 * last['test']:.1f}%"
    return f"{loss:.3f} nats per pixel (counts {counted:.3f}); {layers}"


SWEEP = "--config=configs/cifar10_16.py --workdir=DIR"
# question, name of its files in results/, the command where it was never run, what its JSON answers
STUDIES = [
    ("What does the palette cost an image?", "colour_coding", "python -m experiments.studies.colour_coding", None),
    ("What is the method, in one drawing?", "training_process", "python -m experiments.studies.training_process", None),
    ("How does a model complete pictures?", "completions", "python -m experiments.studies.completions --checkpoint=DIR", None),
    ("Does the demo learn its digits, and which layer is best?", "digits", "make demo", _run_of),
    ("The same on 3,000 colour images", "cifar10_small", "python -m experiments.report.summary --workdir=DIR", _run_of),
    ("The same on clothes", "fashion_mnist_small", "python -m experiments.report.summary --workdir=DIR", _run_of),
    ("Which layer holds the best features? (figure 2)", "accuracy_by_layer", f"python -m experiments.studies.accuracy_by_layer {SWEEP}", None),
    ("The same of a deeper model", "twelve_layers/accuracy_by_layer", f"python -m experiments.studies.accuracy_by_layer {SWEEP}", None),
    ("Does a lower loss mean better features? (figure 3)", "accuracy_by_loss", f"python -m experiments.studies.accuracy_by_loss {SWEEP}", None),
    ("Next pixel or masked pixel; probe or fine-tuning? (figure 4)", "objectives", f"python -m experiments.studies.objectives {SWEEP}", None),
    ("How few labels are enough? (table 4)", "low_data", f"python -m experiments.studies.low_data {SWEEP}", None),
    ("What do larger images bring? (section 4.3)", "resolution", f"python -m experiments.studies.resolution {SWEEP}", None),
    ("Do the recipes fit their pods?", "aot", "python -m experiments.scale.aot_table", None),
    ("What would XL cost on a pod?", "plan", "python -m experiments.scale.plan", None),
    ("Does a run survive faults?", "chaos", "make chaos", lambda found: f"{found['survived']} of {found['faults']} faults survived"),
    ("Is the training step fast?", "bench_train", "python -m experiments.bench.train", None),
    ("Is sampling?", "bench_sample", "python -m experiments.bench.sample", None),
    ("Is coding?", "bench_encode", "python -m experiments.bench.encode", None),
    ("Is the palette's k-means?", "bench_palette", "python -m experiments.bench.palette --images=DIR", None),
    ("Are features of all layers?", "bench_features", "python -m experiments.bench.features", None),
    ("Are probes?", "bench_probe", "python -m experiments.bench.probe", None),
    ("Is the input?", "bench_data", "python -m experiments.bench.data", None),
    ("How does the cost grow?", "bench_scaling", "python -m experiments.bench.scaling", None),
    ("What made it faster?", "bench_choices", "python -m experiments.bench.choices", None),
]


def blocks() -> dict[str, str]:
    """Name -> text of every block of README.md."""
    made = {name: module.readme_block(json.loads((RESULTS / f"{name}.json").read_text())) for name, module in MODULES.items()}
    made |= {"speed": table.block(RESULTS), "findings": findings.block(RESULTS)}
    return made | {"results": results_table.block(RESULTS), "demo": results_table.demo(RESULTS)}


def studies() -> dict[str, str]:
    """The block of experiments/README.md: a row for each study, run or not."""
    lines = ["| question | command | result | status |", "|---|---|---|---|"]
    for question, name, command, answer in STUDIES:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {question} | `{command}` | - | not run |")
            continue
        found = json.loads(path.read_text())
        shown = [f"[{end}](results/{name}.{end})" for end in ("png", "md", "json") if path.with_suffix(f".{end}").exists()]
        said = answer(found) if answer else ""
        status = f"run, commit {found['commit']}, {found['hardware']}"
        lines.append(f"| {question} | `{found['command']}` | {said}{': ' if said else ''}{', '.join(shown)} | {status} |")
    return {"studies": "\n".join(lines) + "\n"}


def rewritten(readme: str, made: dict[str, str] | None = None) -> str:
    """A file with its blocks, README's or those `made`, put in anew; ValueError where a marker is missing."""
    for name, text in (blocks() if made is None else made).items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if not readme.count(begin) == readme.count(end) == 1:
            raise ValueError(f"the markers {begin} and {end} are missing: write both where the block belongs")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{text}{end}{rest.split(end)[1]}"
    return readme


if __name__ == "__main__":
    for path, made in ((ROOT / "README.md", blocks()), (ROOT / "experiments/README.md", studies())):
        path.write_text(rewritten(path.read_text(), made))
