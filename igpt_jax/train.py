"""Pretrain a model: `python -m igpt_jax.train --config=configs/digits.py --workdir=runs/digits [--config.batch_size=64 ...]`.

--init_from=CHECKPOINT starts from the parameters and the palette of a run or a converted model, without its class head, instead of random parameters.
Reads the palette that igpt_jax.quantize wrote (WORKDIR/palette.npy, or the one beside coded data). Writes to WORKDIR: config.json, metrics.jsonl,
tensorboard/, checkpoints/ and, at the end, result.json. The same command started again restores the newest complete checkpoint, and its numbers are
bit-identical to those of a run that was never stopped. SIGTERM or SIGUSR1 saves and exits with 0. A finished run evaluates and exits.
"""

from typing import Any

from igpt_jax.cli import recipe_flags, run_recipe
from igpt_jax.interop import hub
from igpt_jax.sampling import training
from igpt_jax.training import checkpoints, recipe
from igpt_jax.training.setup import INTERPOLATE, load_pretrained
from igpt_jax.types import PathLike, Recipe


def train(
    config: Recipe, workdir: PathLike, init_from: str | None = None, interpolate_positions: bool = False, full_recipe: bool = False, ema: bool = False
) -> dict[str, Any]:
    """Train a recipe to its last step, a new run from the parameters of the checkpoint `init_from` if given, and return the last evaluation.

    With `ema` the run starts from the average of the checkpoint's weights.
    """
    recipe.show(config, full_recipe)
    return training.train(config, workdir, load_pretrained(config, workdir, init_from, hub.load, interpolate_positions, ema))


def _flags(flags: Any) -> dict[str, Any]:
    meaning = "run, converted model, or name of a model in the package or of the hub (hf:OWNER/NAME), to start from"
    return {
        "init_from": flags.DEFINE_string("init_from", None, meaning),
        "interpolate_positions": flags.DEFINE_bool("interpolate_positions", False, INTERPOLATE),
        "ema": flags.DEFINE_bool("ema", False, f"with --init_from: {checkpoints.HELP_EMA}"),
    } | recipe_flags(flags)


if __name__ == "__main__":
    run_recipe(train, _flags, trains=True)
