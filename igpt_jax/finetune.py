"""Fine-tune a model to classify: `python -m igpt_jax.finetune --config=configs/digits_finetune.py --workdir=runs/digits_ft --checkpoint=runs/digits`.

Loads the pretrained parameters, puts a zero-initialised class matrix on the mean of the final norm's output, and trains all of it on generative plus
classification loss at a constant learning rate (paper 2.4). A class head that the checkpoint has is left out; --keep_head keeps it, where the data has its
classes, matched by name. Without --checkpoint it starts from random parameters, for comparison. Writes to WORKDIR what igpt_jax.train writes, and the
model with the best validation accuracy as WORKDIR/best, which every other program takes as --checkpoint.
"""

from igpt_jax.cli import run_recipe
from igpt_jax.distributed import multihost, sharding
from igpt_jax.training import checkpoints, loop


def finetune(config, workdir, checkpoint: str | None = None, keep_head: bool = False) -> dict[str, float]:
    """Run a fine-tuning recipe from a pretrained checkpoint, or from random parameters; returns the last evaluation, `best` among it."""
    if config.model.classes < 1 or config.loss.classification <= 0:
        found = f"config.model.classes {config.model.classes}, config.loss.classification {config.loss.classification}"
        raise ValueError(f"fine-tuning needs a class head and its loss, not {found}: see configs/digits_finetune.py")
    if keep_head and not checkpoint:
        raise ValueError("--keep_head keeps the class head of a --checkpoint: give one, or leave it out")
    if checkpoint and checkpoints.has_steps(workdir):  # it goes on from there, whether the weights that it began with are still at hand or not
        multihost.note(f"{workdir} goes on from its own checkpoint, {checkpoint} is not read")
        checkpoint = None
    if not checkpoint:
        return loop.train(config, workdir)
    return loop.train(config, workdir, checkpoints.load(checkpoint, mesh=sharding.make_mesh(**config.mesh)), keep_head)


def _flags(flags):
    return {
        "checkpoint": flags.DEFINE_string("checkpoint", None, "pretrained run or converted model; none: random parameters"),
        "keep_head": flags.DEFINE_bool("keep_head", False, "keep the checkpoint's class head, where the classes are the same; default: a fresh one of zeros"),
    }


if __name__ == "__main__":
    run_recipe(finetune, _flags, trains=True)
