"""Does one learning rate fit every width?

    python -m experiments.studies.coordinate_check --config=configs/digits.py --out=experiments/results/coordinate_check.png

The coordinate check of muP (Yang et al. 2022, appendix D.1). Models of several widths, with heads of equal size, take --steps updates on one batch at a
constant rate. After each, the root mean square is taken of how far the activations of that batch have moved from those of the initial model: the embedding,
the output of the last block, and the logits. By default every width has the same rate and the recipe's initial values; with config.optim.base_width, the
smallest of --widths, both follow muP (igpt_jax/training/rates.py). Where a rate fits all widths the curves are flat. Values are means over --seeds. The
first step moves the logits alone, because the output matrix is zero before it.
"""

import argparse
import importlib
import json
import pathlib
import tempfile
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.report.provenance import provenance, typed
from experiments.studies import marks, outputs
from igpt_jax.cli import Parser, integer, list_of, positive
from igpt_jax.data import pipeline
from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.quantize import quantize
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.step import LossConfig, jit_train_step, make_state
from igpt_jax.types import Array, Batch, Recipe

ACTIVATIONS = ("embedding", "output of the last block", "logits")
HEAD_SIZE = 16


def run(arguments: argparse.Namespace) -> dict:
    """Measure every width with and without muP, draw, and return the contents of the JSON file."""
    config = importlib.import_module(f"configs.{arguments.config.stem}").get_config()
    if wrong := [width for width in arguments.widths if width % HEAD_SIZE]:
        raise ValueError(f"--widths names {wrong[0]}: heads have {HEAD_SIZE} numbers, so a width must be a multiple of {HEAD_SIZE}")
    widths, batch = sorted(set(arguments.widths)), _batch(config, arguments.batch)
    moved = {
        name: [measure(config, arguments, width, base, batch).tolist() for width in widths]
        for name, base in (("one rate for every width", 0), (f"muP, base width {widths[0]}", widths[0]))
    }
    result: dict[str, Any] = {"widths": widths, "activations": ACTIVATIONS, "moved": moved, "learning_rate": arguments.learning_rate}
    result |= {"layers": arguments.layers, "head_size": HEAD_SIZE, "batch": arguments.batch, "seeds": arguments.seeds, "data": config.data.source}
    result |= {"growth": growth(result)} | provenance(typed("studies.coordinate_check"))
    draw(result).savefig(arguments.out, dpi=150)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def measure(config: Recipe, arguments: argparse.Namespace, width: int, base_width: int, batch: Batch) -> np.ndarray:
    """Return how far the activations have moved after each step, float [steps, ACTIVATIONS], the mean over seeds."""
    sizes = {"layers": arguments.layers, "width": width, "heads": width // HEAD_SIZE, "remat": "none", "unroll": 1}
    model_config = ModelConfig(**config.model.to_dict() | sizes)
    rate = {"learning_rate": arguments.learning_rate, "schedule": "constant", "warmup_steps": 0, "base_width": base_width}
    optim_config, mesh = OptimConfig(**config.optim.to_dict() | rate), sharding.make_mesh(devices=jax.devices()[:1])
    init = jax.jit(partial(make_state, model_config, optim_config))
    step = jit_train_step(mesh, model_config, optim_config, LossConfig(**config.loss))
    activations = jax.jit(partial(_activations, batch["codes"]))
    moved = []
    for seed in range(arguments.seeds):
        state = init(jax.random.key(seed))
        first = activations(state.model)
        for _ in range(arguments.steps):
            state, _ = step(state, batch, jax.random.key(seed))
            moved.append([float(np.sqrt(np.mean(np.square(now - before)))) for now, before in zip(activations(state.model), first, strict=True)])
    return np.reshape(moved, (arguments.seeds, arguments.steps, len(ACTIVATIONS))).mean(axis=0)


def growth(result: dict) -> dict[str, dict[str, float]]:
    """Return by how much the last step's activations move more at the largest width than at the smallest: {way: {activation: factor}}."""
    moved = {way: np.array(values)[:, -1] for way, values in result["moved"].items()}
    return {way: dict(zip(ACTIVATIONS, (values[-1] / values[0]).tolist(), strict=True)) for way, values in moved.items()}


def title(result: dict) -> str:
    """State by what factor the logits move more at the largest width."""
    factors = [f"{factors['logits']:.1f} times as far with {way}" for way, factors in result["growth"].items()]
    low, high = result["widths"][0], result["widths"][-1]
    return f"From width {low} to {high} the logits move {', '.join(factors)}"


def draw(result: dict) -> Any:
    """Draw, for each way and activation, the distance against the width, a curve for each step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey="col")
    for row, (way, values) in zip(grid, result["moved"].items(), strict=True):
        for number, (axes, name) in enumerate(zip(row, ACTIVATIONS, strict=True)):
            for step, moved_W in enumerate(np.array(values)[:, :, number].T):
                axes.plot(result["widths"], moved_W, label=f"after step {step + 1}", **marks.style_of(step), markersize=5, linewidth=1.4)
            axes.set(xscale="log", ylim=(0, None), xlabel="width" if row is grid[-1] else "")
            axes.set_xticks(result["widths"], result["widths"])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.set_title(f"{name}, {way}: x {result['growth'][way][name]:.1f}", fontsize=9)
        row[0].set_ylabel("root mean square of the movement")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(grid[0][0].lines), frameon=False, fontsize=9)
    figure.suptitle(title(result), fontsize=11)
    return figure


def _activations(codes_BS: Array, model: ImageGPT) -> tuple[Array, Array, Array]:
    output = model(codes_BS, hidden=True)
    return output.hidden[0], output.hidden[-1], output.logits


def _batch(config: Recipe, size: int) -> Batch:
    """The first images of the training split, with the recipe's palette."""
    dataset = pipeline.open_dataset(pipeline.DataConfig(**config.data), "train")
    with tempfile.TemporaryDirectory() as folder:
        quantize(config, folder)
        palette = Palette.load(f"{folder}/palette.npy")
    codes = dataset.codes(np.arange(size), palette)
    return {"codes": np.asarray(codes), "label": np.zeros(size, np.int32), "index": np.arange(size, dtype=np.int32)}


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.coordinate_check", description=__doc__)
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("configs/digits.py"), help="recipe in configs/")
    parser.add_argument("--widths", type=list_of(integer(1)), default=[32, 64, 128, 256], help="widths of the models, a list; the smallest is the base")
    parser.add_argument("--layers", type=integer(1), default=2, help="layers of the models")
    parser.add_argument("--steps", type=integer(1), default=4, help="updates")
    parser.add_argument("--seeds", type=integer(1), default=3, help="initial models of each width")
    parser.add_argument("--batch", type=integer(1), default=16, help="images")
    parser.add_argument("--learning-rate", type=positive(), default=0.01, help="of all steps")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("coordinate_check.png"), help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    result = outputs.start(run, arguments, {})
    outputs.tell(title(result), arguments.out)


if __name__ == "__main__":
    main()
