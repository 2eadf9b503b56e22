"""The results of one run in a table: `python -m experiments.report.summary --workdir=runs/digits`.

Reads WORKDIR/{palette.json,metrics.jsonl,probe.json} and the newest checkpoint; writes WORKDIR/{summary.md,summary.json,training.png}. The model's loss on
the test images is shown beside two baselines that count colours: over all positions (unigram), and at each position (per-position). `--before=CHECKPOINT`
adds the loss of an earlier checkpoint of the run, for example from before the learning rate fell, and the losses of each test image. With
`--results=NAME.json` the numbers and the figure are also written to NAME.json and NAME.png.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np

from experiments.report import intervals, training_curve
from experiments.report.measurements import Factors, Measurement, fingerprint_of, to_json
from experiments.report.provenance import provenance, typed
from experiments.report.training_curve import Evaluated
from igpt_jax.cli import ANY_ERROR, Parser, fail, prepare_file
from igpt_jax.data import pipeline
from igpt_jax.model.transformer import parameter_count
from igpt_jax.probing.results import dumps
from igpt_jax.reporting import course
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


def baselines_of(pretrained: checkpoints.Pretrained, train: pipeline.Dataset, test: pipeline.Dataset) -> dict[str, float]:
    """Return `count_baselines` of all images of two data sets in the codes of a model."""
    codes = [dataset.codes(np.arange(len(dataset)), pretrained.palette) for dataset in (train, test)]
    return count_baselines(*codes, pretrained.palette.size, pretrained.palette.tokens_per_pixel)


def summarise(workdir: PathLike, source: str | None = None, before: PathLike | None = None) -> dict:
    """Return the numbers of a run as a nested dict; `source` replaces the data that the model was trained on, `before` is an earlier checkpoint of it."""
    workdir = pathlib.Path(workdir)
    pretrained = checkpoints.load(workdir)
    config = pipeline.config_for(pretrained.config, pretrained.image_size, source)
    baselines = baselines_of(pretrained, *(pipeline.open_dataset(config, split).draw(COUNTED) for split in ("all_train", "test")))
    model = pretrained.model_config
    summary = {"test": evaluate_checkpoint(workdir, source=source, each_image=True), "seed": pretrained.config["seed"], "baselines": baselines}
    summary["model"] = {"objective": model.objective, "layers": model.layers, "width": model.width, "parameters": parameter_count(pretrained.model)}
    summary["images"] = {"image_size": pretrained.image_size, "colours": pretrained.palette.size}
    summary["training"] = _course(workdir, pretrained.config, config)
    optim = pretrained.config.get("optim")
    images = str(pipeline.open_dataset(config, "test").content())
    measured = [_take_losses(summary, "test", optim, images)]
    if before is not None:
        summary["before"] = evaluate_checkpoint(before, source=source, each_image=True)
        measured.append(_take_losses(summary, "before", optim, images))
        summary["measurements"] = list(map(to_json, measured))
    for name in ("palette", "probe"):
        path = workdir / f"{name}.json"
        summary[name] = json.loads(path.read_text()) if path.exists() else None
    if summary["probe"] and not is_of(summary["probe"], pretrained):
        steps = f"step {summary['probe']['step']}, and the model is of step {pretrained.step}"
        print(f"note: {workdir}/probe.json is left out, it is of another model ({steps}): write features and probes again", file=sys.stderr)
        summary["probe"] = None
    return summary


def learning_rate_of(optim: dict[str, Any] | None, step: int) -> Factors:
    """Return {"learning rate": "constant" or "decayed"} at a step of a run whose rate is constant until its last steps, in which it falls; else {}."""
    if not optim or optim["schedule"] != "wsd" or not optim["decay_steps"]:
        return {}
    return {"learning rate": "decayed" if step > optim["steps"] - optim["decay_steps"] else "constant"}


def _take_losses(summary, name, optim, images):
    """Replace the losses of each image under summary[name] by their 95 % interval; return them as a measurement."""
    result = summary[name]
    each, model = result.pop("each_image"), summary["model"]
    nats_B = np.asarray(each["nats"], float)
    if len(nats_B) > 1:
        found = intervals.contrast([(1, intervals.Sample((summary["seed"],), nats_B.mean(keepdims=True), len(nats_B), nats_B[None], "nats"))])
        result["interval"] = [found.low, found.high]
    factors: Factors = {"objective": model["objective"], "size": f"{model['layers']}x{model['width']}", "step": result["step"]}
    training = summary["training"]
    budget = f"{training['training_images']:,} images without labels, {training['epochs']:g} epochs to the last step" if training else ""
    factors |= {"resolution": summary["images"]["image_size"]} | learning_rate_of(optim, result["step"])
    return Measurement(factors, summary["seed"], nats_B, "nats", budget, fingerprint_of(each["label"], images))


def _course(workdir, recipe, data):
    """The course of a run, None if it has no metrics."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return None
    return course.course(course.read_lines(path), recipe["batch_size"], len(pipeline.open_dataset(data, "train")))


def is_of(probe: dict[str, Any], pretrained: checkpoints.Pretrained) -> bool:
    """Return whether a probe (probe.json) is of this model: by the checksum of the parameters, or by the step if one of them has no checksum."""
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
        quality = f"PSNR {palette['psnr']:.1f} dB" if palette["psnr"] else "exact"
        rows.append(("palette", f"{palette['size']} colours at {_resolution(palette['data']['image_size'])} pixels, {quality}"))
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


def what(summary: dict) -> str:
    """Return the model and what it is trained on, as text."""
    model, images = summary["model"], summary["images"]
    return f"{model['layers']} layers of width {model['width']}, {_resolution(images['image_size'])} pixels in {images['colours']} colours"


def _resolution(size):
    return f"{size} x {size}"


def draw_training(workdir: pathlib.Path, summary: dict) -> Any:
    """Draw the loss of a run against images seen, with its test losses."""
    lines, names = course.read_lines(workdir / "metrics.jsonl"), {"before": "at step", "test": "at the end, step"}
    tested = [
        Evaluated(row["step"], row["nats_per_pixel"], row.get("interval"), row["images"], f"{label} {row['step']:,}")
        for key, label in names.items()
        if (row := summary.get(key))
    ]
    return training_curve.draw(lines, summary["training"], summary["baselines"], tested, what(summary))


def main() -> None:
    parser = Parser(prog="python -m experiments.report.summary", description=__doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="directory of a run")
    parser.add_argument("--data", help="data source to evaluate on; default: the one that the model was trained on")
    parser.add_argument("--before", help="an earlier checkpoint of the run (its directory), to evaluate too")
    parser.add_argument("--results", type=pathlib.Path, help="JSON file to write the numbers to, with commit, hardware and versions; the figure goes beside it")
    arguments = parser.parse_args()
    workdir = arguments.workdir
    try:
        if arguments.results:
            prepare_file(arguments.results)
        summary = summarise(workdir, arguments.data, arguments.before)
        figure = draw_training(workdir, summary)
        if arguments.results:
            arguments.results.write_text(dumps(summary | provenance(typed("report.summary"))) + "\n")
            figure.savefig(arguments.results.with_suffix(".png"), dpi=150)
        text = table(summary)
        (workdir / "summary.json").write_text(dumps(summary))
        (workdir / "summary.md").write_text(text + "\n")
        figure.savefig(workdir / "training.png", dpi=150)
    except ANY_ERROR as error:
        fail(error, workdir)
    print(text)
    print("\n".join(["", "pictures:", *(f"  {path}" for path in sorted(workdir.glob("*.png")))]))


if __name__ == "__main__":
    main()
