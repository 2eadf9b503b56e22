"""Fine-tune a model to classify: `python -m igpt_jax.finetune --config=finetune --workdir=runs/digits_ft --checkpoint=runs/digits`.

Loads the pretrained parameters, adds a class matrix of zeros on the mean of the final norm's output, and trains all parameters on generative plus
classification loss at a constant learning rate (paper 2.4). A class head of the checkpoint is left out; --keep_head keeps it if the data has its classes,
matched by name. The recipe `finetune` fits any checkpoint: model, palette, resolution and data are the checkpoint's unless they are given, and the classes
are those of the data. With --interpolate_positions the pictures may be of another size than the checkpoint's, config.data.image_size. Without --checkpoint
the parameters are random, for comparison. Writes to WORKDIR what igpt_jax.train writes, and the model with the best validation accuracy as WORKDIR/best,
which every other program takes as --checkpoint.
"""

from collections.abc import Collection
from typing import Any

from igpt_jax.cli import GivenKeys, recipe_flags, run_recipe
from igpt_jax.distributed import multihost
from igpt_jax.interop import hub
from igpt_jax.sampling import training
from igpt_jax.training import checkpoints, inherit, recipe
from igpt_jax.training.setup import INTERPOLATE, load_pretrained
from igpt_jax.types import PathLike, Recipe


def finetune(
    config: Recipe,
    workdir: PathLike,
    checkpoint: str | None = None,
    keep_head: bool = False,
    interpolate_positions: bool = False,
    full_recipe: bool = False,
    ema: bool = False,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Train a fine-tuning recipe from a pretrained checkpoint, or from random parameters, and return the last evaluation with `best`.

    With `ema` the fine-tuning starts from the average of the checkpoint's weights. Of the keys that the recipe leaves open (training/inherit.py) those in
    `given` stay as they are, for example "data.validation".
    """
    least = 1 if config.model.layers else 0  # a recipe that leaves the model open may leave the classes open too
    if config.model.classes < least or config.loss.classification <= 0:
        values = f"config.model.classes {config.model.classes}, config.loss.classification {config.loss.classification}"
        raise ValueError(f"fine-tuning needs a class head and its loss, not {values}: see configs/digits_finetune.py")
    if keep_head and not checkpoint:
        raise ValueError("--keep_head keeps the class head of a --checkpoint: give one, or leave it out")
    pretrained = load_pretrained(config, workdir, checkpoint, hub.load, interpolate_positions, ema)
    multihost.together(lambda: inherit.complete(config, workdir, pretrained, given), "another process cannot begin: see what it says")
    recipe.show(config, full_recipe)
    return training.train(config, workdir, pretrained, keep_head and pretrained is not None)


def _flags(flags: Any) -> dict[str, Any]:
    return {
        "checkpoint": flags.DEFINE_string("checkpoint", None, "pretrained run, converted model, name of a model in the package or of the hub (hf:OWNER/NAME)"),
        "keep_head": flags.DEFINE_bool("keep_head", False, "keep the checkpoint's class head if the classes are the same; default: a new one of zeros"),
        "interpolate_positions": flags.DEFINE_bool("interpolate_positions", False, INTERPOLATE),
        "ema": flags.DEFINE_bool("ema", False, f"with --checkpoint: {checkpoints.HELP_EMA}"),
        "given": GivenKeys(),
    } | recipe_flags(flags)


if __name__ == "__main__":
    run_recipe(finetune, _flags, trains=True)
