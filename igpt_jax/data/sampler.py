"""Which images a process reads at a global step: a function of the seed and the step (from 0), so that a run can resume at any step, on any number of hosts.

The batch of step 1000 here makes the update that the training log calls step 1001.

A plan is called with a step and returns (rows int [b], uniform [b, 3] or None): the images' numbers, and the random numbers of their augmentation.
Its `part` says which places of the global batch the process supplies: `sharding.part_of_batch` on a mesh, all of them for a single process.
"""

import dataclasses
import functools
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Training's plan: epochs that follow each other, each in an order of its own, and the random numbers of the images' augmentation."""

    size: int
    batch_size: int
    seed: int
    part: Any = ...  # int [b]; ...: all

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.part], self.size)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = _epoch_order(self.size, self.seed, int(epoch))[places[epochs == epoch]]
        # drawn for the whole batch, so that an image's numbers do not depend on the processes
        uniform = np.random.default_rng((self.seed, 1, step)).random((self.batch_size, 3))
        return rows, uniform[self.part]


@dataclasses.dataclass(frozen=True)
class InOrder:
    """Evaluation's plan: images start..stop in order; rows of -1 are padding."""

    start: int
    stop: int
    batch_size: int
    part: Any = ...  # int [b]; ...: all

    def __call__(self, step: int) -> tuple[np.ndarray, None]:
        rows = self.start + np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.part]
        return np.where(rows < self.stop, rows, -1), None


@functools.lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(size)
