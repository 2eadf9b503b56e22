"""The picture of the blog post on Image GPT: a row for each image, with the original, its colours in the palette, the model's input and completions.

    python -m experiments.studies.completions --checkpoint=runs/digits [--images cat.jpg dog.png]

Without --images it takes test images of the data that the model was trained on, one of each class in turn; none is chosen by hand. Writes
completions.png (--out), samples.png with pictures that start from nothing, and completions.json, which says how both were made.
"""

import argparse
import json
import pathlib

from PIL import Image

from experiments.report.provenance import provenance, typed
from experiments.studies import outputs
from igpt_jax import sample
from igpt_jax.cli import Parser, integer
from igpt_jax.interop import hub
from igpt_jax.sampling import complete, grid
from igpt_jax.training import checkpoints

DRAWS = ("temperature", "top_k", "top_p", "seed")
SETTINGS = ("rows", "completions", *DRAWS)


def run(arguments: argparse.Namespace) -> dict:
    """Draw the pictures; return the contents of the JSON file."""
    pretrained = hub.load(arguments.checkpoint)
    arguments.rows = pretrained.image_size // 2 if arguments.rows is None else arguments.rows
    pictures = arguments.images or complete.one_of_each_class(pretrained, arguments.count or sample.COUNT, source=arguments.data)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    completed = complete.complete(pretrained, pictures, **settings)
    draw(completed, pretrained.palette.size, arguments.scale).save(arguments.out)
    if arguments.samples:
        made = complete.unconditional(pretrained, arguments.samples, **{name: settings[name] for name in DRAWS})
        grid.square_grid(made, arguments.scale).save(samples_path(arguments.out))
    source = arguments.data or pretrained.config.get("data", {}).get("source")
    inputs = {"files": list(map(str, arguments.images))} if arguments.images else {"data": source, "split": "test", "count": len(pictures)}
    samples = {"file": samples_path(arguments.out).name, "count": arguments.samples} if arguments.samples else None
    result = outputs.facts_of(arguments.checkpoint, pretrained) | {"colours": pretrained.palette.size, "images": inputs, "samples": samples} | settings
    result |= provenance(typed("studies.completions"))
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def draw(completed: complete.Completions, colours: int, scale: int = 0) -> Image.Image:
    """Draw a row for each image: original, the same in the palette's colours, model input, completions; `scale` as in grid.picture_grid."""
    columns = [completed.originals, completed.coded, completed.given, *completed.pictures.swapaxes(0, 1)]
    titles = ["original", f"in {colours} colours", "model input", *["completions"] * completed.pictures.shape[1]]
    return grid.picture_grid(columns, titles, scale)


def samples_path(out: pathlib.Path) -> pathlib.Path:
    """Return where the pictures from nothing are written: samples.png beside completions.png, X_samples.png beside X_completions.png and X.png."""
    prefix = out.stem.removesuffix("completions").rstrip("_")
    return out.with_name(f"{prefix}_samples.png" if prefix else "samples.png")


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.completions", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="image files to complete; default: test images")
    parser.add_argument("--data", help="data source of the test images (see igpt_jax/data/config.py); default: the one that the model was trained on")
    parser.add_argument("--count", type=integer(1), help=f"number of test images (default: {sample.COUNT})")
    parser.add_argument("--completions", type=integer(1), default=5, help="completions of each image")
    parser.add_argument("--samples", type=integer(), default=64, help="number of pictures that start from nothing; 0: none")
    parser.add_argument("--scale", type=integer(), default=0, help="width of a pixel in the pictures; 0: images about 96 pixels high")
    parser.add_argument("--rows", type=integer(), help="rows given to the model; default: the upper half")
    sample.add_draws(parser)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("completions.png"), help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    result = outputs.start(run, arguments, {"images": ("data", "count")}, [samples_path(arguments.out)], arguments.images or (), save=None)
    print(f"{result['checkpoint']} at step {result['step']}, {result['model']['parameters']:,} parameters")
    written = [arguments.out, *([samples_path(arguments.out)] if arguments.samples else []), arguments.out.with_suffix(".json")]
    print(f"wrote {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
