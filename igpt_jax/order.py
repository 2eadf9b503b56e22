"""Which images a process sees at a global step: a function of the step alone, so that a run can go on from any step, on any number of hosts.

A plan is called with a step and gives (rows int [b], uniform [b, 3] or None): the images' numbers, and the random numbers of their augmentation.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Which images a process trains on at a global step, and the random numbers of their augmentation."""

    size: int
    batch_size: int
    seed: int
    process_index: int
    process_count: int

    def __call__(self, step):
        mine = _share(self.batch_size, self.process_index, self.process_count)
        epochs, places = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size)[mine], self.size)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = _epoch_order(self.size, self.seed, int(epoch))[places[epochs == epoch]]
        # drawn for the whole batch, so that an image's numbers do not depend on the number of processes
        uniform = np.random.default_rng((self.seed, 1, step)).random((self.batch_size, 3))
        return rows, uniform[mine]


@dataclasses.dataclass(frozen=True)
class InOrder:
    """Which images a process evaluates at a step; -1 is padding."""

    start: int
    stop: int
    batch_size: int
    process_index: int
    process_count: int

    def __call__(self, step):
        mine = _share(self.batch_size, self.process_index, self.process_count)
        rows = self.start + np.arange(step * self.batch_size, (step + 1) * self.batch_size)[mine]
        return np.where(rows < self.stop, rows, -1), None


def _share(batch_size, process_index, process_count):
    """A process's part of a batch: contiguous, so that the parts one after the other are the batch of a single process."""
    each = batch_size // process_count
    return slice(process_index * each, (process_index + 1) * each)


@functools.lru_cache(maxsize=4)
def _epoch_order(size, seed, epoch):
    return np.random.default_rng((seed, 0, epoch)).permutation(size)
