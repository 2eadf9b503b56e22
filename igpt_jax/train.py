"""Pretrain a model: `python -m igpt_jax.train --config=configs/digits.py --workdir=runs/digits [--config.batch_size=64 ...]`.

--init_from=CHECKPOINT begins with the parameters and the palette of a run or a converted model, less its class head, instead of random ones.
Reads the palette that igpt_jax.quantize wrote (WORKDIR/palette.npy, or the one beside coded data). Writes to WORKDIR: config.json,
metrics.jsonl, tensorboard/, checkpoints/ and, at the end, result.json. Started again with the same command it goes on from the newest checkpoint,
bit-identical to a run never stopped; SIGTERM or SIGUSR1 saves and exits with 0; a finished run evaluates and exits.
"""

from igpt_jax.cli import run_recipe
from igpt_jax.distributed import multihost, sharding
from igpt_jax.training import checkpoints, loop


def train(config, workdir, init_from: str | None = None) -> dict[str, float]:
    """Run a recipe to its end, from the parameters of the checkpoint `init_from` on if given; returns the last evaluation."""
    started = init_from and checkpoints.has_steps(workdir)  # it goes on from there, whether the weights that it began with are still at hand or not
    if started:
        multihost.note(f"{workdir} goes on from its own checkpoint, {init_from} is not read")
    pretrained = checkpoints.load(init_from, mesh=sharding.make_mesh(**config.mesh)) if init_from and not started else None
    return loop.train(config, workdir, pretrained)


def _flags(flags):
    return {"init_from": flags.DEFINE_string("init_from", None, "run or converted model to begin with; none: random parameters")}


if __name__ == "__main__":
    run_recipe(train, _flags, trains=True)
