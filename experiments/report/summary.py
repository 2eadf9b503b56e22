"""The results of one run in a table: `python -m experiments.report.summary --workdir=runs/digits`.

Reads WORKDIR/{palette.json,metrics.jsonl,probe.json} and the newest checkpoint; writes WORKDIR/{summary.md,summary.json,training.png}. The model's loss on
the test images is shown beside two baselines that count colours: over all positions (unigram), and at each position (per-position).
"""

import json
import pathlib
import sys

import numpy as np

from experiments.report.provenance import provenance, typed
from igpt_jax.cli import ANY_ERROR, Parser, fail, prepare_file
from igpt_jax.data import pipeline
from igpt_jax.training import checkpoints
from igpt_jax.training.evaluation import evaluate_checkpoint
from igpt_jax.types import PathLike

COUNTED = 20_000  # images of a split to count, drawn at random


def count_baselines(train_NS, test_NS, colours: int, tokens_per_pixel: int = 1) -> dict[str, float]:
    """Return {unigram, per_position}: nats per pixel on the test codes under the colour frequencies of the training codes.

    The unigram baseline counts over all positions, with add-one smoothing. The per-position baseline counts at each position, and is smoothed by one
    additional image that has the frequencies over all positions.
    """
    overall_V = np.bincount(train_NS.ravel(), minlength=colours) + 1.0
    overall_V /= overall_V.sum()
    positions = np.arange(train_NS.shape[1])
    counts_SV = np.zeros((train_NS.shape[1], colours))
    np.add.at(counts_SV, (np.broadcast_to(positions, train_NS.shape), train_NS), 1.0)
    by_position_SV = (counts_SV + overall_V) / (len(train_NS) + 1.0)
    return {
        "unigram": tokens_per_pixel * float(-np.log(overall_V[test_NS]).mean()),
        "per_position": tokens_per_pixel * float(-np.log(by_position_SV[positions, test_NS]).mean()),
    }


def summarise(workdir: PathLike, source: str | None = None) -> dict:
    """Return the numbers of a run as a nested dict; `source` replaces the data that the model was trained on."""
    workdir = pathlib.Path(workdir)
    pretrained = checkpoints.load(workdir)
    config = pipeline.config_for(pretrained.config, pretrained.image_size, source)
    datasets = [pipeline.open_dataset(config, split).draw(COUNTED) for split in ("all_train", "test")]
    codes = [dataset.codes(np.arange(len(dataset)), pretrained.palette) for dataset in datasets]
    baselines = count_baselines(*codes, pretrained.palette.size, pretrained.palette.tokens_per_pixel)
    summary = {"test": evaluate_checkpoint(workdir, source=source), "seed": pretrained.config["seed"], "baselines": baselines}
    for name in ("palette", "probe"):
        path = workdir / f"{name}.json"
        summary[name] = json.loads(path.read_text()) if path.exists() else None
    if summary["probe"] and not _is_of(summary["probe"], pretrained):
        steps = f"step {summary['probe']['step']}, and the model is of step {pretrained.step}"
        print(f"note: {workdir}/probe.json is left out, it is of another model ({steps}): write features and probes again", file=sys.stderr)
        summary["probe"] = None
    return summary


def _is_of(probe, pretrained):
    """Whether a probe is of this model: by the checksum of the parameters, or by the step if one of them has no checksum."""
    checksums = probe.get("checksum"), pretrained.checksum
    return probe["step"] == pretrained.step if None in checksums else checksums[0] == checksums[1]


def best_baseline(summary: dict) -> tuple[str, float]:
    """Return (name, nats per pixel) of the better of the two baselines."""
    name, nats = min(summary["baselines"].items(), key=lambda baseline: baseline[1])
    return {"unigram": "unigram", "per_position": "per-position"}[name], nats


def table(summary: dict) -> str:
    """Return the summary as a Markdown table."""
    test, baselines, probe, palette = (summary[key] for key in ("test", "baselines", "probe", "palette"))
    rows = [("test loss of the model", f"{test['nats_per_pixel']:.3f} nats per pixel ({test['bits_per_pixel']:.3f} bits)")]
    rows.append(("test loss of the per-position baseline", f"{baselines['per_position']:.3f} nats per pixel"))
    rows.append(("test loss of the unigram baseline", f"{baselines['unigram']:.3f} nats per pixel"))
    if palette:
        rows.append(("palette", f"{palette['size']} colours, PSNR {palette['psnr']:.1f} dB" if palette["psnr"] else f"{palette['size']} colours, exact"))
    if probe:
        best, last = probe["best"], probe["last"]
        rows.append((f"probe accuracy, best layer ({best['layer']} of {last['layer']}, chosen on validation)", _percent(best)))
        rows.append(("probe accuracy, last layer", _percent(last)))
        if probe.get("raw_pixels"):
            rows.append(("logistic regression on raw pixels", _percent(probe["raw_pixels"])))
    width = max(len(name) for name, _ in rows)
    head = ["| " + "what".ljust(width) + " | value |", "|" + "-" * (width + 2) + "|---|"]
    return "\n".join(head + [f"| {name.ljust(width)} | {value} |" for name, value in rows])


def _percent(row):
    return "-" if row["test"] is None else f"{row['test']:.1%}"  # features without a test split


def draw_training(workdir: pathlib.Path, baselines: dict[str, float]) -> None:
    """Draw loss against step as WORKDIR/training.png."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(7, 4.2), dpi=150)
    axes = figure.subplots()
    for key, label, style in (
        ("train/nats_per_pixel", "training batch", {"color": "#7fb2d9", "linewidth": 1.2}),
        ("validation/nats_per_pixel", "validation", {"color": "#08306b", "linewidth": 2, "marker": "o", "markersize": 4}),
    ):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.axhline(baselines["per_position"], color="#b35806", linestyle="--", linewidth=1.2, label="per-position baseline (test)")
    axes.set(xlabel="step", ylabel="loss, nats per pixel", title=f"Pretraining, {workdir.name}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    figure.tight_layout()
    figure.savefig(workdir / "training.png")


def main() -> None:
    parser = Parser(prog="python -m experiments.report.summary", description=__doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="directory of a run")
    parser.add_argument("--data", help="data source to evaluate on; default: the one that the model was trained on")
    parser.add_argument("--results", type=pathlib.Path, help="JSON file to write the numbers to, with commit, hardware and versions")
    arguments = parser.parse_args()
    workdir = arguments.workdir
    try:
        if arguments.results:
            prepare_file(arguments.results)
        summary = summarise(workdir, arguments.data)
        if arguments.results:
            arguments.results.write_text(json.dumps(summary | provenance(typed("report.summary")), indent=1) + "\n")
        text = table(summary)
        (workdir / "summary.json").write_text(json.dumps(summary, indent=1))
        (workdir / "summary.md").write_text(text + "\n")
        draw_training(workdir, summary["baselines"])
    except ANY_ERROR as error:
        fail(error, workdir)
    print(text)
    print("\n".join(["", "pictures:", *(f"  {path}" for path in sorted(workdir.glob("*.png")))]))


if __name__ == "__main__":
    main()
