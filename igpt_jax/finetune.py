"""Fine-tune a model to classify: `python -m igpt_jax.finetune --config=configs/digits_finetune.py --workdir=runs/digits_ft --checkpoint=runs/digits`.

Loads the pretrained parameters, adds a class matrix of zeros on the mean of the final norm's output, and trains all parameters on generative plus
classification loss at a constant learning rate (paper 2.4). A class head of the checkpoint is left out; --keep_head keeps it if the data has its classes,
matched by name. Without --checkpoint the parameters are random, for comparison. Writes to WORKDIR what igpt_jax.train writes, and the model with the best
validation accuracy as WORKDIR/best, which every other program takes as --checkpoint.
"""

from typing import Any

from igpt_jax.cli import run_recipe
from igpt_jax.training import loop
from igpt_jax.training.setup import load_pretrained
from igpt_jax.types import PathLike, Recipe


def finetune(config: Recipe, workdir: PathLike, checkpoint: str | None = None, keep_head: bool = False) -> dict[str, Any]:
    """Train a fine-tuning recipe from a pretrained checkpoint, or from random parameters, and return the last evaluation with `best`."""
    if config.model.classes < 1 or config.loss.classification <= 0:
        values = f"config.model.classes {config.model.classes}, config.loss.classification {config.loss.classification}"
        raise ValueError(f"fine-tuning needs a class head and its loss, not {values}: see configs/digits_finetune.py")
    if keep_head and not checkpoint:
        raise ValueError("--keep_head keeps the class head of a --checkpoint: give one, or leave it out")
    pretrained = load_pretrained(config, workdir, checkpoint)
    return loop.train(config, workdir, pretrained, keep_head and pretrained is not None)


def _flags(flags: Any) -> dict[str, Any]:
    return {
        "checkpoint": flags.DEFINE_string("checkpoint", None, "pretrained run or converted model; none: random parameters"),
        "keep_head": flags.DEFINE_bool("keep_head", False, "keep the checkpoint's class head if the classes are the same; default: a new one of zeros"),
    }


if __name__ == "__main__":
    run_recipe(finetune, _flags, trains=True)
