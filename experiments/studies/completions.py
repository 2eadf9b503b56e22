"""The picture of the blog post on Image GPT: a row for each image, with model input, completions and original.

    python -m experiments.studies.completions --checkpoint=runs/digits [--images cat.jpg dog.png]

Without --images it takes test images of the data that the model was trained on, one of each class in turn. Writes experiments/results/completions.png, the
picture of igpt_jax.sample, and completions.json, which says how it was made.
"""

import argparse
import json
import pathlib

from experiments.report.provenance import provenance, typed
from igpt_jax import sample
from igpt_jax.cli import ANY_ERROR, Parser, fail, integer, prepare_file
from igpt_jax.distributed import runtime
from igpt_jax.model.transformer import parameter_count
from igpt_jax.sampling import complete, grid
from igpt_jax.training import checkpoints

RESULTS = pathlib.Path(__file__).parents[1] / "results"
SETTINGS = ("rows", "completions", "temperature", "top_k", "top_p", "seed")


def run(arguments: argparse.Namespace) -> dict:
    """Draw the picture; return the contents of the JSON file."""
    pretrained = checkpoints.load(arguments.checkpoint)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.rows = pretrained.image_size // 2 if arguments.rows is None else arguments.rows
    pictures = arguments.images or complete.one_of_each_class(pretrained, arguments.count, source=arguments.data)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    completed = complete.complete(pretrained, pictures, **settings)
    grid.completion_grid(completed).save(arguments.out)
    config = pretrained.model_config
    source = arguments.data or pretrained.config.get("data", {}).get("source")
    inputs = {"files": list(map(str, arguments.images))} if arguments.images else {"data": source, "split": "test", "count": len(pictures)}
    result = {
        "checkpoint": arguments.checkpoint,
        "step": pretrained.step,
        "model": {"layers": config.layers, "width": config.width, "heads": config.heads, "parameters": parameter_count(pretrained.model)},
        "image_size": pretrained.image_size,
        "colours": pretrained.palette.size,
        "images": inputs,
        **settings,
    }
    result |= provenance(typed("studies.completions"))
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.completions", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="directory of a run or of a converted model")
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="image files to complete; default: test images")
    parser.add_argument("--data", help="data source of the test images (see igpt_jax/data/config.py); default: the one that the model was trained on")
    parser.add_argument("--count", type=integer(1), default=8, help="number of test images")
    parser.add_argument("--completions", type=integer(1), default=5, help="completions of each image")
    parser.add_argument("--rows", type=integer(), help="rows given to the model; default: the upper half")
    parser.add_argument("--temperature", type=sample.TEMPERATURE, default=1.0, help="temperature of the softmax; 0 takes the most likely colour")
    parser.add_argument("--top-k", type=integer(), default=0, help="sample from the k most likely colours; 0: from all")
    parser.add_argument("--top-p", type=sample.TOP_P, default=1.0, help="sample from the smallest set of colours with this probability")
    parser.add_argument("--seed", type=sample.SEED, default=0, help="seed of the sampling")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "completions.png", help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    runtime.prepare()
    try:
        prepare_file(arguments.out)
        result = run(arguments)
    except ANY_ERROR as error:
        fail(error)
    print(f"{result['checkpoint']} at step {result['step']}, {result['model']['parameters']:,} parameters")
    print(f"wrote {arguments.out} and {arguments.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
