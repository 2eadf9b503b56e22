"""How good is a model that the package ships, and what does its file cost it?

    python -m experiments.studies.shipped_model --run=runs/cifar10-16 --data=npz:runs/cifar10

Evaluates the run that the model was packed from, the file in the package, and the same run in the other 16-bit type, on all test images. Counts the baselines
on the images, and measures in a new process how long a first completion takes. Writes experiments/results/cifar10-16.json, from which
`python -m experiments.report.readme` writes the numbers of the model's card, igpt_jax/models/cifar10-16.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from experiments.report.provenance import provenance, typed
from experiments.report.summary import COUNTED, baselines_of
from igpt_jax.cli import ANY_ERROR, Parser, fail
from igpt_jax.data import pipeline
from igpt_jax.distributed import runtime
from igpt_jax.interop.pack import pack
from igpt_jax.model.transformer import parameter_count
from igpt_jax.reporting import course
from igpt_jax.training import checkpoints, model_file
from igpt_jax.training.evaluation import evaluate_checkpoint

RESULTS = pathlib.Path(__file__).parents[1] / "results"
TIMED = """
import json, resource, sys, time
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
began = time.monotonic()
import igpt_jax
from igpt_jax.data.photographs import find_photographs
pretrained = igpt_jax.load(sys.argv[1])
loaded = time.monotonic(), cpu()
igpt_jax.complete(pretrained, find_photographs()[0])
seconds = {"load": loaded[0] - began, "first_completion": time.monotonic() - loaded[0]}
print(json.dumps(seconds | {"load_cpu": loaded[1], "first_completion_cpu": cpu() - loaded[1]}))
"""


def study(name: str, run: pathlib.Path, data: str) -> dict:
    """Return the numbers of a shipped model."""
    shipped, pretrained = checkpoints.load(name), checkpoints.load(run)
    if shipped.step != pretrained.step:
        raise ValueError(f"{name} is of step {shipped.step} and {run} of step {pretrained.step}: pack the run again")
    config = pipeline.config_for(pretrained.config, pretrained.image_size, data)
    file = model_file.FOLDER / f"{name}.safetensors"
    losses = {"float32": evaluate_checkpoint(run, source=data), "float16": evaluate_checkpoint(name, source=data)}
    with tempfile.TemporaryDirectory() as folder:
        pack(run, f"{folder}/{name}.safetensors", "bfloat16")
        losses["bfloat16"] = evaluate_checkpoint(f"{folder}/{name}.safetensors", source=data)
    training = course.course(
        course.read_lines(run / "metrics.jsonl"), pretrained.config["batch_size"], len(pipeline.open_dataset(config, "train"))
    )
    model = pretrained.model_config
    return {
        "model": {"name": name, "step": shipped.step, "checksum": shipped.checksum, "layers": model.layers, "width": model.width, "heads": model.heads}
        | {"parameters": parameter_count(shipped.model), "image_size": shipped.image_size, "colours": shipped.palette.size, "mib": file.stat().st_size / 2**20},
        "training": {"images": training["training_images"], "batch_size": training["batch_size"], "hours": training["hours"]},
        "test": {name: {key: loss[key] for key in ("nats_per_pixel", "bits_per_pixel", "images")} for name, loss in losses.items()},
        "baselines": baselines_of(pretrained, *(pipeline.open_dataset(config, split).draw(COUNTED) for split in ("all_train", "test"))),
        "palette_psnr": json.loads((run / "palette.json").read_text())["psnr"],
        "seconds": json.loads(subprocess.run([sys.executable, "-c", TIMED, name], check=True, capture_output=True, text=True).stdout),
    }


def card(result: dict) -> str:
    """Return the block `numbers` of the card."""
    model, training, test, seconds = (result[key] for key in ("model", "training", "test", "seconds"))
    epochs = model["step"] * training["batch_size"] / training["images"]
    rows = [
        ("model", f"{model['layers']} layers, width {model['width']}, {model['heads']} heads, {model['parameters']:,} parameters"),
        ("images", f"{model['image_size']} x {model['image_size']} pixels in {model['colours']} colours (PSNR of the palette {result['palette_psnr']:.1f} dB)"),
        ("training", f"{model['step']:,} steps of {training['batch_size']} images, {epochs:.1f} epochs of {training['images']:,} images"),
        ("time", f"{training['hours']:.1f} hours of steps on {result['hardware']}, shared with other programs"),
        ("file", f"{model['mib']:.2f} MiB, checksum of the parameters {model['checksum']}"),
    ]
    for dtype, where in (("float16", "as shipped"), ("float32", "the run"), ("bfloat16", "not shipped")):
        loss, images = test[dtype], f"{test[dtype]['images']:,} images"
        rows.append((f"test loss, {dtype}, {where}", f"{loss['nats_per_pixel']:.7f} nats per pixel ({loss['bits_per_pixel']:.5f} bits), {images}"))
    rows.append(("test loss of the per-position baseline", f"{result['baselines']['per_position']:.3f} nats per pixel"))
    rows.append(("test loss of the unigram baseline", f"{result['baselines']['unigram']:.3f} nats per pixel"))
    rows.append(("import and load", f"{seconds['load_cpu']:.1f} s of processor time"))
    rows.append(("first completion of a picture, with compilation", f"{seconds['first_completion_cpu']:.1f} s of processor time"))
    source = f"From experiments/results/{model['name']}.json (`{result['command']}`, commit {result['commit']})."
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), "", source]) + "\n"


def probe_table(probe: dict, source: str) -> str:
    """Return the block `probes` of the card from a probe.json of igpt_jax.probe, `source` in the repository."""
    counts, raw, neighbours = probe["counts"], probe.get("raw_pixels"), "knn" in probe["best"]
    rows = [(row["layer"], row) for row in probe["layers"]] + ([("raw pixels", raw)] if raw else [])
    head = ["layer", "linear probe: validation", "test (95 % interval)"] + ["nearest neighbours: validation", "test (95 % interval)"] * neighbours
    lines = [_cells(head), "|---" * len(head) + "|"]
    lines += [_cells([name, *_accuracies(row), *(_accuracies(row["knn"]) if neighbours else [])]) for name, row in rows]
    images = f"{counts['train']:,} training and {counts['validation']:,} validation images, tested on {counts['test']:,}"
    best = f"the best layer of the linear probe on validation images is {probe['best']['layer']}"
    return "\n".join([f"Fitted on {images}; {best} ({source}).", "", *lines]) + "\n"


def _accuracies(row):
    low, high = row["interval"]
    return f"{row['validation']:.1%}", f"{row['test']:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _cells(texts):
    return f"| {' | '.join(map(str, texts))} |"


def answer(result: dict) -> str:
    """Return the row of experiments/README.md."""
    losses = {dtype: f"{loss['nats_per_pixel']:.7f}" for dtype, loss in result["test"].items()}
    counts = min(result["baselines"].values())
    return f"{losses['float16']} nats per pixel (float32 {losses['float32']}, bfloat16 {losses['bfloat16']}; counts {counts:.3f})"


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m experiments.studies.shipped_model", description=__doc__)
    parser.add_argument("--model", default="cifar10-16", help="name of the model in the package")
    parser.add_argument("--run", type=pathlib.Path, required=True, help="directory of the run that it was packed from")
    parser.add_argument("--data", required=True, help="data source of the run (see igpt_jax/data/config.py)")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the JSON file")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    runtime.prepare()
    runtime.divide_cores()
    try:
        result = study(arguments.model, arguments.run, arguments.data) | provenance(typed("studies.shipped_model"))
        (arguments.results / f"{arguments.model}.json").write_text(json.dumps(result, indent=1) + "\n")
    except ANY_ERROR as error:
        fail(error)
    print(card(result))


if __name__ == "__main__":
    main()
