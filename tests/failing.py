"""The training program on a disk that fails for one process: `python -m tests.failing TIMES igpt_jax.train's arguments`.

On process 1 the first TIMES saves raise an OSError before orbax is called; the others then wait for it, here for seconds.
"""

import sys

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.multihost import multihost

from igpt_jax import train
from igpt_jax.cli import run_recipe
from igpt_jax.training import checkpoints, storage


def main():
    left, save_as_ever = [int(sys.argv.pop(1))], ocp.CheckpointManager.save

    def save(self, *arguments, **options):
        if jax.process_index() == 1 and left[0]:
            left[0] -= 1
            raise OSError("Input/output error")
        return save_as_ever(self, *arguments, **options)

    ocp.CheckpointManager.save = save
    multihost._DEFAULT_BARRIER_TIMEOUT = storage.PATIENCE = 5
    checkpoints.PAUSES = (0.1, 0.1)
    run_recipe(train.train)


if __name__ == "__main__":
    main()
