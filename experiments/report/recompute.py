"""Write the measurements of stored results again, from what is stored: `python -m experiments.report.recompute`. Nothing is trained or evaluated.

The file of a sweep holds the results of its jobs, so its summary can be made of them by the present code: budgets and factors are then told as new files tell
them. What the jobs did not store stays unknown, and the budget says so. The scores do not change, and the file keeps command and commit of its jobs. The file
of the long run names the learning rate of its two steps, which is read from the recipe in the model that the package has of this run.
"""

import json
import pathlib
from typing import Any

from experiments.report.summary import learning_rate_of
from experiments.studies import accuracy_by_layer, accuracy_by_loss, low_data, objectives, resolution
from igpt_jax.probing.results import dumps
from igpt_jax.training import checkpoints

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments/results"
FIGURES = {module.FIGURE.name: module.FIGURE for module in (accuracy_by_layer, accuracy_by_loss, low_data, objectives, resolution)}
RUNS = {"cifar10_16": "cifar10-16"}  # file of a run that experiments.report.summary wrote -> the package's model of it


def of_sweep(name: str, contents: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a sweep's file with the summary of its jobs made again."""
    found = FIGURES[name].summary([row["found"] for row in contents["jobs"]])
    return contents | json.loads(json.dumps(found, default=str))


def of_run(contents: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the contents of a run's file with the learning rate in the factors of its measurements; `place` is the model of the run.

    ValueError if it is another model.
    """
    pretrained = checkpoints.load(place)
    model, facts = pretrained.model_config, contents["model"]
    same = (model.layers, model.width, pretrained.step) == (facts["layers"], facts["width"], contents["test"]["step"])
    if not same:
        raise ValueError(f"{place} has {model.layers} layers of width {model.width} and is of step {pretrained.step}, and the file is of another model")
    rows = [
        row | {"factors": row["factors"] | learning_rate_of(pretrained.config["optim"], row["factors"]["step"])} for row in contents.get("measurements", [])
    ]
    return contents | ({"measurements": rows} if rows else {})


def recomputed(path: pathlib.Path) -> dict[str, Any]:
    """Return the contents of a file, made again."""
    contents = json.loads(path.read_text())
    return of_run(contents, RUNS[path.stem]) if path.stem in RUNS else of_sweep(path.stem, contents)


def main() -> None:
    for name in (*FIGURES, *RUNS):
        path = RESULTS / f"{name}.json"
        if path.exists():
            contents = recomputed(path)
            changed = contents != json.loads(path.read_text())
            if changed:
                path.write_text(dumps(contents) + "\n")
            print(f"{path.name}: {'changed' if changed else 'unchanged'}")


if __name__ == "__main__":
    main()
