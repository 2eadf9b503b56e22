"""Pretrain a model: `python -m igpt_jax.train --config=configs/digits.py --workdir=runs/digits [--config.batch_size=64 ...]`.

Reads the palette that igpt_jax.quantize wrote (WORKDIR/palette.npy, or the one beside coded data). Writes to WORKDIR: config.json,
metrics.jsonl, tensorboard/, checkpoints/ and, at the end, result.json. Started again with the same command it goes on from the newest checkpoint,
bit-identical to a run never stopped; SIGTERM or SIGUSR1 saves and exits with 0; a finished run evaluates and exits.
"""

from igpt_jax.cli import run_recipe
from igpt_jax.run import train

if __name__ == "__main__":
    run_recipe(train, trains=True)
