"""Write the generated blocks of README.md and experiments/README.md from experiments/results/: `python -m experiments.report.readme`.

A block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. Its numbers are read from files, never typed.
"""

import json
import pathlib

from experiments.bench import table
from experiments.report import findings, results_table, summary
from experiments.scale import aot_table, chaos, plan

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments/results"
MODULES = {"aot": aot_table, "chaos": chaos, "plan": plan}  # each writes NAME.json and turns it into a block by readme_block


def _loss_and_layers(study):
    best, last = study["probe"]["best"], study["probe"]["last"]
    layers = f"layer {best['layer']} {100 * best['test']:.1f}%, last {100 * last['test']:.1f}%"
    return f"{study['test']['nats_per_pixel']:.3f} nats per pixel (counts {summary.best_baseline(study)[1]:.3f}); {layers}"


SWEEP = "--config=configs/cifar10_16.py --workdir=DIR"
# question, name of its files in results/, command to show if it was not run, function from its JSON to a short answer
STUDIES = [
    ("What does the palette cost an image?", "colour_coding", "python -m experiments.studies.colour_coding", None),
    ("What is the method, in one drawing?", "training_process", "python -m experiments.studies.training_process", None),
    ("How does a model complete pictures?", "completions", "python -m experiments.studies.completions --checkpoint=DIR", None),
    ("Does the demo learn its digits, and which layer is best?", "digits", "make demo", _loss_and_layers),
    ("The same on 3,000 colour images", "cifar10_small", "python -m experiments.report.summary --workdir=DIR", _loss_and_layers),
    ("The same on clothes", "fashion_mnist_small", "python -m experiments.report.summary --workdir=DIR", _loss_and_layers),
    ("Which layer holds the best features? (figure 2)", "accuracy_by_layer", f"python -m experiments.studies.accuracy_by_layer {SWEEP}", None),
    ("The same of a deeper model", "twelve_layers/accuracy_by_layer", f"python -m experiments.studies.accuracy_by_layer {SWEEP}", None),
    ("Does a lower loss mean better features? (figure 3)", "accuracy_by_loss", f"python -m experiments.studies.accuracy_by_loss {SWEEP}", None),
    ("Next pixel or masked pixel; probe or fine-tuning? (figure 4)", "objectives", f"python -m experiments.studies.objectives {SWEEP}", None),
    ("How few labels are enough? (table 4)", "low_data", f"python -m experiments.studies.low_data {SWEEP}", None),
    ("What do larger images bring? (section 4.3)", "resolution", f"python -m experiments.studies.resolution {SWEEP}", None),
    ("Do the recipes fit their pods?", "aot", "python -m experiments.scale.aot_table", None),
    ("How fast could a step be on an H100?", "roofline", "python -m experiments.scale.roofline", None),
    ("What would XL cost on a pod?", "plan", "python -m experiments.scale.plan", None),
    ("Does a run survive faults?", "chaos", "make chaos", lambda study: f"{study['survived']} of {study['faults']} faults survived"),
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
    """Return name -> text of every block of README.md."""
    texts = {name: module.readme_block(json.loads((RESULTS / f"{name}.json").read_text())) for name, module in MODULES.items()}
    texts |= {"speed": table.block(RESULTS), "findings": findings.block(RESULTS)}
    return texts | {"results": results_table.block(RESULTS), "demo": results_table.demo(RESULTS)}


def studies() -> dict[str, str]:
    """Return the block of experiments/README.md: a row for each study, run or not."""
    lines = ["| question | command | result | status |", "|---|---|---|---|"]
    for question, name, command, answer in STUDIES:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {question} | `{command}` | - | not run |")
            continue
        study = json.loads(path.read_text())
        files = [f"[{end}](results/{name}.{end})" for end in ("png", "md", "json") if path.with_suffix(f".{end}").exists()]
        text = f"{answer(study)}: " if answer else ""
        lines.append(f"| {question} | `{study['command']}` | {text}{', '.join(files)} | run, commit {study['commit']}, {study['hardware']} |")
    return {"studies": "\n".join(lines) + "\n"}


def rewritten(readme: str, texts: dict[str, str] | None = None) -> str:
    """Return the text of a file with its blocks replaced by `texts`, default: those of README.md. ValueError if a marker is missing."""
    for name, text in (blocks() if texts is None else texts).items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if not readme.count(begin) == readme.count(end) == 1:
            raise ValueError(f"the markers {begin} and {end} are missing: write both where the block belongs")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{text}{end}{rest.split(end)[1]}"
    return readme


if __name__ == "__main__":
    for path, texts in ((ROOT / "README.md", blocks()), (ROOT / "experiments/README.md", studies())):
        path.write_text(rewritten(path.read_text(), texts))
