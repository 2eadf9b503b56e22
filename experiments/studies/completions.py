"""The picture of the blog post on Image GPT: model input, completions, original, a row for each image.

    python -m experiments.studies.completions --checkpoint=runs/digits [--images cat.jpg dog.png]

Without --images it takes test images of the data that the model was trained on, of each class in turn. The picture is that of igpt_jax.sample; beside it
stands how it was made: experiments/results/completions.png and completions.json.
"""

import argparse
import json
import pathlib

from experiments.report.provenance import provenance, typed
from igpt_jax import sample
from igpt_jax.cli import ANY_ERROR, Parser, fail, integer, prepare_file
from igpt_jax.model.transformer import parameter_count
from igpt_jax.sampling import complete, grid
from igpt_jax.training import checkpoints

RESULTS = pathlib.Path(__file__).parents[1] / "results"
SETTINGS = ("rows", "completions", "temperature", "top_k", "top_p", "seed")


def run(arguments) -> dict:
    """Draw the picture; returns what it wrote as JSON."""
    pretrained = checkpoints.load(arguments.checkpoint)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.rows = pretrained.image_size // 2 if arguments.rows is None else arguments.rows
    pictures = arguments.images or complete.one_of_each_class(pretrained, arguments.count, source=arguments.data)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    made = complete.complete(pretrained, pictures, **settings)
    grid.completion_grid(made).save(arguments.out)
    config = pretrained.model_config
    source = arguments.data or pretrained.config.get("data", {}).get("source")
    shown = {"files": list(map(str, arguments.images))} if arguments.images else {"data": source, "split": "test", "count": len(pictures)}
    found = {
        "checkpoint": arguments.checkpoint,
        "step": pretrained.step,
        "model": {"layers": config.layers, "width": config.width, "heads": config.heads, "parameters": parameter_count(pretrained.model)},
        "image_size": pretrained.image_size,
        "colours": pretrained.palette.size,
        "images": shown,
        **settings,
    }
    found |= provenance(typed("completions"))
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.completions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="directory of a run, or of a converted model")
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="image files to complete; default: test images")
    parser.add_argument("--data", help="data source of the test images (see igpt_jax/data/pipeline.py); default: the one the model was trained on")
    parser.add_argument("--count", type=integer(1), default=8, help="test images")
    parser.add_argument("--completions", type=integer(1), default=5, help="of each image")
    parser.add_argument("--rows", type=integer(), help="rows given to the model; default: the upper half")
    parser.add_argument("--temperature", type=sample.TEMPERATURE, default=1.0, help="0 takes the likeliest colour")
    parser.add_argument("--top-k", type=integer(), default=0, help="draw from the k likeliest colours; 0: from all")
    parser.add_argument("--top-p", type=sample.TOP_P, default=1.0, help="draw from the fewest colours that hold this probability")
    parser.add_argument("--seed", type=sample.SEED, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "completions.png", help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    try:
        prepare_file(arguments.out)
        found = run(arguments)
    except ANY_ERROR as error:
        fail(error)
    print(f"{found['checkpoint']} at step {found['step']}, {found['model']['parameters']:,} parameters")
    print(f"wrote {arguments.out} and {arguments.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
