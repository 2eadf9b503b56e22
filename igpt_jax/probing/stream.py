"""Streams the images of a features folder from the disk: in order, or shuffled within windows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from igpt_jax.probing.store import Reader

Rows: TypeAlias = tuple[np.ndarray, np.ndarray]  # features [layers, n, ...] and the images' numbers [n]


def in_order(reader: Reader, rows: np.ndarray, size: int) -> Iterator[Rows]:
    """Yields (features [layers, n, ...], rows [n]) in the order of `rows`, which ascend. n is `size`; the last piece may be smaller."""
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        yield reader.read(piece), piece


def windows(reader: Reader, rows: np.ndarray, window: int, seed: int) -> Iterator[Rows]:
    """Yields (features [layers, n, ...], rows [n]) without end: at most `window` images in random order, each of `rows` once in an epoch.

    `rows` are divided into blocks of neighbours in a part (a quarter of a MiB of each layer). An epoch permutes the blocks, collects them into windows, and
    permutes the images within a window. So the disk reads entire blocks, and a window that holds the entire split is a perfect shuffle. The order depends
    on the seed and the size of the window only. If the images of a class are adjacent on disk, a window has as many classes as it has blocks.
    """
    blocks = _blocks(np.asarray(rows), reader.part_size, reader.block)
    epoch = 0
    while True:
        order = np.random.default_rng((seed, 0, epoch)).permutation(len(blocks))
        ends = _window_ends([len(blocks[index]) for index in order], window)
        for number, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            yield _read_window(reader, [blocks[index] for index in order[first:last]], np.random.default_rng((seed, 1, epoch, number)))
        epoch += 1


def batches(windows: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Yields (features [layers, size, ...], rows [size]) cut from consecutive windows; a batch may span several of them."""
    rest, rest_rows = None, np.zeros(0, np.int64)
    for features, rows in windows:
        start = 0
        if rest is not None and len(rest_rows) < size:
            start = size - len(rest_rows)
            rest, rest_rows = np.concatenate([rest, features[:, :start]], axis=1), np.concatenate([rest_rows, rows[:start]])
            if len(rest_rows) < size:
                continue
            yield rest, rest_rows
        for first in range(start, len(rows) - size + 1, size):
            yield features[:, first : first + size], rows[first : first + size]
        done = start + max(0, len(rows) - start) // size * size
        rest, rest_rows = features[:, done:], rows[done:]


def _blocks(rows: np.ndarray, part_size: int, block: int) -> list[np.ndarray]:
    """Divide `rows` into runs, each within one block of one part."""
    numbers, offsets = np.divmod(rows, part_size)
    keys = numbers * (-(-part_size // block)) + offsets // block
    return np.split(rows, np.flatnonzero(np.diff(keys)) + 1)


def _window_ends(sizes: Sequence[int], window: int) -> list[int]:
    """Indices of the block after each window. A window holds as many blocks of these sizes as `window` images allow, and at least one."""
    ends, images = [], 0
    for index, size in enumerate(sizes):
        if images and images + size > window:
            ends.append(index)
            images = 0
        images += size
    return [*ends, len(sizes)]


def _read_window(reader: Reader, blocks: Sequence[np.ndarray], generator: np.random.Generator) -> Rows:
    """Read blocks in ascending order and put their images at random places."""
    rows = np.concatenate(blocks)
    places = generator.permutation(len(rows))
    features = np.empty((len(reader.places), len(rows), *reader.row_shape), reader.dtype)
    start = 0
    for block in sorted(blocks, key=lambda block: block[0]):
        reader.read_into(features, places[start : start + len(block)], block)
        rows[start : start + len(block)] = block
        start += len(block)
    shuffled = np.empty_like(rows)
    shuffled[places] = rows
    return features, shuffled
