"""Which images a process reads at a global step: a function of the seed and the step (from 0), so that a run can resume at any step, on any number of hosts.

The batch of step 1000 here makes the update that the training log calls step 1001.

A plan is called with a step and returns (rows int [b], uniform [b, 3] or None): the images' numbers, and the random numbers of their augmentation.
Its `part` says which places of the global batch the process supplies: `sharding.part_of_batch` on a mesh, all of them for a single process.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Training's plan: epochs that follow each other, each in an order of its own, and the random numbers of the images' augmentation."""

    size: int
    batch_size: int
    seed: int
    part: Any = ...  # int [b]; ...: all

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        draws = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.part]
        return _in_epochs(draws, self.size, functools.partial(_epoch_order, self.size, self.seed)), _uniform(self.seed, step, self.batch_size)[self.part]


@dataclasses.dataclass(frozen=True)
class ShuffledMixture:
    """Training's plan for several sources: rounds of sum(shares) draws, in each of which every source has its share, and epochs of its own for each source."""

    members: tuple[np.ndarray, ...]  # of each source: int [n], the rows of its images
    shares: tuple[int, ...]  # draws of each source in a round
    batch_size: int
    seed: int
    part: Any = ...  # int [b]; ...: all

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        draws = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.part]
        rounds, places = np.divmod(draws, sum(self.shares))
        rows = np.empty_like(draws)
        for number in np.unique(rounds).tolist():
            chosen, earlier = _round_order(self.shares, self.seed, number)
            for source, (members, share) in enumerate(zip(self.members, self.shares, strict=True)):
                here = (rounds == number) & (chosen[places] == source)
                draws_of_source = number * share + earlier[places[here]]
                rows[here] = members[_in_epochs(draws_of_source, len(members), _orders_of_source(source, len(members), self.seed))]
        return rows, _uniform(self.seed, step, self.batch_size)[self.part]


@dataclasses.dataclass(frozen=True)
class OfSource:
    """What one source of a mixture supplies of a plan's batches: its rows alone, in their order."""

    plan: "Plan"
    members: np.ndarray  # int [N], the number in the source of each row of the mixture, -1 for rows of other sources

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        rows, uniform = self.plan(step)
        own = np.where(rows < 0, -1, self.members[rows])
        return own[own >= 0], None if uniform is None else uniform[own >= 0]


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


Plan: TypeAlias = Shuffled | ShuffledMixture | InOrder | OfSource


def _in_epochs(draws: np.ndarray, size: int, order: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return the image of each draw, int [n], from epochs of `size` draws, each in the order(epoch) of its own."""
    epochs, places = np.divmod(draws, size)
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = order(int(epoch))[places[epochs == epoch]]
    return rows


def _uniform(seed: int, step: int, batch_size: int) -> np.ndarray:
    """Return the random numbers [B, 3] of a step. They are drawn for the whole batch, so that an image's numbers do not depend on the processes."""
    return np.random.default_rng((seed, 1, step)).random((batch_size, 3))


@functools.lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(size)


@functools.lru_cache(maxsize=4)
def _round_order(shares: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each draw of a round (its source, how many draws of this source the round has before it)."""
    chosen = np.random.default_rng((seed, 2, number)).permutation(np.repeat(np.arange(len(shares)), shares))
    earlier = np.empty_like(chosen)
    for source, share in enumerate(shares):
        earlier[chosen == source] = np.arange(share)
    return chosen, earlier


@functools.lru_cache(maxsize=64)
def _orders_of_source(source: int, size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Return the function from an epoch to the order of a source of a mixture; each source keeps its last orders."""
    return functools.lru_cache(maxsize=2)(lambda epoch: np.random.default_rng((seed, 3, source, epoch)).permutation(size))
