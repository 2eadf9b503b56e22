"""Write the generated blocks of README.md, docs/ and the models' cards from experiments/results/: `python -m experiments.report.readme`.

After a study has written its file, run `python -m experiments.report.claims` first.

A block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. Its numbers are read from files, never typed.
"""

import pathlib

from experiments.bench import table
from experiments.report import claims, claims_table, entrance, findings, results_table, summary
from experiments.report.measurements import read_results
from experiments.scale import aot_table, chaos, plan
from experiments.studies import coordinate_check, isoflop, shipped_model, training_options
from igpt_jax.cli import program

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments/results"
DOCS = {  # page in docs/ -> the blocks that stand in it
    "reference/results.md": ("findings", "results"),
    "reference/studies.md": ("studies",),
    "reference/speed.md": ("speed",),
    "reference/pods.md": ("aot", "plan"),
    "guides/faults.md": ("chaos",),
}
MODULES = {"aot": aot_table, "chaos": chaos, "plan": plan}  # each writes NAME.json and turns it into a block by readme_block


def _loss_and_layers(study):
    baseline, nats = summary.best_baseline(study)
    loss = f"{study['test']['nats_per_pixel']:.3f} nats per pixel {results_table.coded(study)} ({baseline} baseline {nats:.3f})"
    if not study["probe"]:
        return loss
    best, last = study["probe"]["best"], study["probe"]["last"]
    return f"{loss}; layer {best['layer']} {100 * best['test']:.1f}%, last {100 * last['test']:.1f}%"


def _layers(probe):
    best, last, pixels = (100 * probe[key]["test"] for key in ("best", "last", "raw_pixels"))
    return f"layer {probe['best']['layer']} {best:.1f}%, last {last:.1f}%, raw pixels {pixels:.1f}%"


DIGITS = "--config=configs/digits.py --workdir=DIR"
SWEEP = "--config=configs/cifar10_16.py --workdir=DIR"
# question, name of its files in results/, command to show if it was not run, function from its JSON to a short answer
STUDIES = [
    ("What does the palette cost an image?", "colour_coding", "python -m experiments.studies.colour_coding", None),
    ("What is the method, in one drawing?", "training_process", "python -m experiments.studies.training_process", None),
    ("How does a model complete pictures, or make new ones?", "completions", "python -m experiments.studies.completions --checkpoint=DIR", None),
    ("How good is the model in the package?", "cifar10-16", "python -m experiments.studies.shipped_model --run=DIR --data=SOURCE", shipped_model.answer),
    ("How good are its features, from the wheel in an empty folder?", "cifar10-16_probe", "python -m igpt_jax.probe --features=DIR", _layers),
    ("Where does each head look?", "attention_maps", "python -m experiments.studies.attention_maps --checkpoint=DIR", None),
    ("What would each layer predict?", "logit_lens", "python -m experiments.studies.logit_lens --checkpoint=DIR", None),
    ("Does a model draw what it remembers?", "nearest", "python -m experiments.studies.nearest --checkpoint=DIR", None),
    ("How near are its pictures to real ones?", "sample_quality", "python -m experiments.studies.sample_quality --checkpoint=DIR", None),
    ("Does the demo learn its digits, and which layer is best?", "digits", "make demo", _loss_and_layers),
    ("How does a longer run on colour images learn?", "cifar10_16", "python -m experiments.report.summary --workdir=DIR", _loss_and_layers),
    ("Does a small model learn clothes?", "fashion_mnist_small", "python -m experiments.report.summary --workdir=DIR", _loss_and_layers),
    ("Which layer holds the best features? (figure 2)", "accuracy_by_layer", f"python -m experiments.studies.accuracy_by_layer {SWEEP}", None),
    ("Does a lower loss mean better features? (figure 3)", "accuracy_by_loss", f"python -m experiments.studies.accuracy_by_loss {SWEEP}", None),
    ("Next pixel or masked pixel; probe or fine-tuning? (figure 4)", "objectives", f"python -m experiments.studies.objectives {SWEEP}", None),
    ("How few labels are enough? (table 4)", "low_data", f"python -m experiments.studies.low_data {SWEEP}", None),
    ("What do larger images bring? (section 4.3)", "resolution", f"python -m experiments.studies.resolution {SWEEP}", None),
    ("How large a model for a budget of FLOPs? (2511.08704)", "isoflop", f"python -m experiments.studies.isoflop {SWEEP}", isoflop.answer),
    ("What does each training option change?", "training_options", f"python -m experiments.studies.training_options {DIGITS}", training_options.answer),
    ("Does one learning rate fit every width?", "coordinate_check", "python -m experiments.studies.coordinate_check", coordinate_check.title),
    ("What do all these comparisons say of the paper?", "claims", "python -m experiments.report.claims", claims_table.note),
    ("How often do their 95 % intervals hold the true difference?", "coverage", "python -m experiments.report.coverage", None),
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
    return {"demo": results_table.demo(RESULTS), "findings": entrance.findings_block(RESULTS), "speed": entrance.speed_block(RESULTS)}


def page_blocks(page: str) -> dict[str, str]:
    """Return name -> text of the blocks of a page in docs/, whose links lead to the repository."""
    texts = {name: module.readme_block(read_results(RESULTS / f"{name}.json")) for name, module in MODULES.items()}
    texts |= {"speed": table.block(RESULTS), "findings": findings.block(RESULTS), "results": results_table.block(RESULTS)} | studies()
    return {name: texts[name].replace("](experiments/", "](repo:experiments/") for name in DOCS[page]}


def studies() -> dict[str, str]:
    """Return the block of the page of studies: a row for each study, run or not."""
    lines = ["| question | command | result | status |", "|---|---|---|---|"]
    for question, name, command, answer in STUDIES:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {question} | `{command}` | - | not run |")
            continue
        study = read_results(path)
        files = [f"[{end}](experiments/results/{name}.{end})" for end in ("png", "md", "json") if path.with_suffix(f".{end}").exists()]
        files += [f"[{picture}](experiments/results/{picture})"] if (picture := (study.get("samples") or {}).get("file")) else []
        text = f"{answer(study)}: " if answer else ""
        origin = f"run, commit {study['commit']}, {study['hardware']}" if "commit" in study else "made of the files of the studies"
        lines.append(f"| {question} | `{study['command']}` | {text}{', '.join(files)} | {origin} |")
    return {"studies": "\n".join(lines) + "\n"}


def card(name: str) -> dict[str, str]:
    """Return the blocks of the card of a shipped model that have results: numbers, and probes by igpt_jax.probe from NAME_probe.json."""
    texts, numbers, probe = {}, RESULTS / f"{name}.json", RESULTS / f"{name}_probe.json"
    if numbers.exists():
        texts["numbers"] = shipped_model.card(read_results(numbers))
    if probe.exists():
        texts["probes"] = shipped_model.probe_table(read_results(probe), f"experiments/results/{probe.name}")
    return texts


def rewritten(readme: str, texts: dict[str, str] | None = None) -> str:
    """Return the text of a file with its blocks replaced by `texts`, default: those of README.md. ValueError if a marker is missing."""
    for name, text in (blocks() if texts is None else texts).items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if not readme.count(begin) == readme.count(end) == 1:
            raise ValueError(f"the markers {begin} and {end} are missing: write both where the block belongs")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{text}{end}{rest.split(end)[1]}"
    return readme


def files() -> dict[pathlib.Path, dict[str, str]]:
    """Return every file with generated blocks, and the blocks of each."""
    cards = {path: card(path.stem) for path in sorted((ROOT / "igpt_jax/models").glob("*.md"))}
    return {ROOT / "README.md": blocks()} | {ROOT / "docs" / page: page_blocks(page) for page in DOCS} | cards


def main() -> None:
    claims.check_files(RESULTS)
    texts = {path: rewritten(path.read_text(), found) for path, found in files().items()}
    for path, text in texts.items():
        path.write_text(text)


if __name__ == "__main__":
    program(main)
