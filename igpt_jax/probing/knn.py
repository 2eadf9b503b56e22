"""Weighted nearest neighbours: a probe without training, as in DINO (Caron et al. 2021, section 4.1 and appendix F).

The similarity of two images is the cosine of the angle between their features, which are not standardised. The k nearest images vote for their classes with
weights exp(similarity / 0.07). k is 10, 20, 100 or 200, at most the number of training images (that number if it is below 10), and is the best on the
validation images with the training images as neighbours; of equal values it is the smallest. Test images have training and validation images as neighbours, as
the linear probe is fitted again to both. Of a bert model that was run with several masks, neighbours have mask 0, and the masks of an image vote.

The cost is a product of each image with each neighbour, and finding the k largest. 50,000 training images, of which 5,000 choose k, and 10,000 test images
are 725 million pairs for each layer; a pair costs a CPU core 18 ns at width 128 and 30 ns at width 512 (process time of 1,024 x 16,384 pairs with k = 200 on an
x86_64 CPU), so that is 13 to 22 s. Q queries, N neighbours, D features, C classes, K neighbours that vote.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.probing import store
from igpt_jax.probing.results import Outcome, accuracies, predictions
from igpt_jax.probing.splits import Splits, vote
from igpt_jax.progress import Progress
from igpt_jax.types import Array

TEMPERATURE = 0.07
COUNTS = (10, 20, 100, 200)  # of neighbours, to choose from
CHEAP = 2 * 10**9  # pairs of a layer, up to which these probes are made without being asked for: CIFAR-10 has 0.7, ImageNet 130 or more
QUERIES, NEIGHBOURS = 1024, 8192  # compared at once, if the memory allows: their similarities are 32 MiB

Read: TypeAlias = Callable[[str, int, np.ndarray], np.ndarray]  # (split, mask, ascending rows [n]) -> features float32 [n, D]


class Sizes(NamedTuple):
    """How many features are in memory at once, at least one of each."""

    queries: int  # on the device, with their nearest so far
    tile: int  # of the queries, compared at once
    neighbours: int  # read and compared at once


def probe_layers(splits: Splits, layers: Sequence[int], memory: float) -> list[Outcome]:
    """Probe each layer, with `memory` GiB. Rows {k, validation, test, interval}, and arrays k, validation and test of results.py."""
    with Progress("nearest neighbours", len(layers) * _query_count(splits)) as progress:
        return [probe(splits, _reader(splits, layer), memory, progress, _row_bytes(splits)) for layer in layers]


def probe_array(splits: Splits, features: dict[str, np.ndarray], memory: float) -> Outcome:
    """Probe features that are in memory, split on disk -> float32 [N, D]. All images have one mask."""
    with Progress("nearest neighbours of pixels", _query_count(splits, masked=False)) as progress:
        some = next(iter(features.values()))
        return probe(splits, lambda split, _, rows: features[split][rows], memory, progress, some.itemsize * some.shape[1], masked=False)


def probe(splits: Splits, read: Read, memory: float, progress: Progress, row_bytes: int, masked: bool = True) -> Outcome:
    """Probe the features that `read` returns; `row_bytes` is what it needs in memory for an image."""
    labels, counts = splits.labels, counts_for(len(splits.labels["train"]))

    def predict(part: str, among: Sequence[str], counts: Sequence[int]) -> np.ndarray:
        """Classes [len(counts), images of `part`] by the neighbours of the parts `among`."""
        neighbour_labels = np.concatenate([labels[each] for each in among])
        split, rows = splits.rows[part]
        width = read(split, 0, rows[:1]).shape[1]
        sizes = sizes_for(memory, width, counts[-1], row_bytes, len(rows), len(neighbour_labels))
        by_mask = []
        for mask in range(splits.masks[part] if masked else 1):
            pieces = []
            for start in range(0, len(rows), sizes.queries):
                queries = read(split, mask, rows[start : start + sizes.queries])
                blocks = _blocks(splits, read, among, sizes.neighbours)
                pieces.append(classify(nearest(queries, blocks, counts[-1], sizes), neighbour_labels, splits.classes, counts))
                progress.advance(len(queries))
            by_mask.append(np.concatenate(pieces, axis=1))
        return vote(np.stack(by_mask, axis=1))

    validated = predict("validation", ["train"], counts)
    shares = (validated == labels["validation"]).mean(axis=1)
    best = int(shares.argmax())  # the first of equals
    tested = share = None
    if "test" in labels:
        tested = predict("test", ["train", "validation"], counts[best : best + 1])[0]
        share = (tested == labels["test"]).mean()
    row = {"k": counts[best]} | accuracies(shares[best], share, len(labels.get("test", ())))
    return Outcome(row, {"k": np.int32(counts[best])} | predictions(splits.classes, validated[best], tested))


def counts_for(training_images: int) -> list[int]:
    """The numbers of neighbours to choose from."""
    return [count for count in COUNTS if count <= training_images] or [training_images]


def pairs(splits: Splits) -> int:
    """How many pairs of images the probe of a layer compares."""
    train, validation = (len(splits.labels[part]) for part in ("train", "validation"))
    test = len(splits.labels.get("test", ())) * splits.masks.get("test", 1)
    return validation * splits.masks["validation"] * train + test * (train + validation)


def nearest(queries_QD: np.ndarray, blocks: Iterable[np.ndarray], k: int, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of all neighbours, which come in blocks [n, D] and are at least k in all.

    Returns their similarities float32 [Q, K], in descending order, and their numbers int32 [Q, K]. Of equally near ones those with smaller numbers are taken.
    """
    tiles = [jnp.asarray(_padded(_normalised(queries_QD[start : start + sizes.tile]), sizes.tile)) for start in range(0, len(queries_QD), sizes.tile)]
    best = [(jnp.full((sizes.tile, k), -jnp.inf), jnp.full((sizes.tile, k), -1, jnp.int32)) for _ in tiles]
    first = 0
    for block in blocks:
        neighbours = jnp.asarray(_padded(_normalised(block), sizes.neighbours))  # padded, so that one compiled program is enough
        best = [_merge(pair, tile, neighbours, first, len(block)) for pair, tile in zip(best, tiles, strict=True)]
        first += len(block)
    similarities, numbers = (np.concatenate([np.asarray(pair[index]) for pair in best])[: len(queries_QD)] for index in (0, 1))
    return similarities, numbers


def shares(
    found: tuple[np.ndarray, np.ndarray], labels: np.ndarray, classes: int, counts: Sequence[int], temperature: float = TEMPERATURE
) -> Iterator[np.ndarray]:
    """Yield the votes float64 [Q, C] of the first k neighbours for each k of `counts`, which ascend. Those of a query sum to 1.

    `found` is what `nearest` returns. Sums are in float64 in the order of the neighbours, so they are the same on every device.
    """
    similarities, numbers = found
    weights_QK = np.exp((similarities.astype(np.float64) - similarities[:, :1]) / temperature)
    cells_QK = np.arange(len(numbers))[:, None] * classes + labels[numbers]
    total_QC = np.zeros(len(numbers) * classes)
    for start, stop in zip((0, *counts), counts, strict=False):
        total_QC += np.bincount(cells_QK[:, start:stop].ravel(), weights_QK[:, start:stop].ravel(), len(total_QC))
        votes_QC = total_QC.reshape(-1, classes)
        yield votes_QC / votes_QC.sum(axis=1, keepdims=True)


def classify(found: tuple[np.ndarray, np.ndarray], labels: np.ndarray, classes: int, counts: Sequence[int]) -> np.ndarray:
    """The class with most votes for each k of `counts`, int [len(counts), Q]; of equal classes the first."""
    pieces = [[votes.argmax(axis=1) for votes in shares(piece, labels, classes, counts)] for piece in in_pieces(found)]
    return np.concatenate(pieces, axis=1)


def in_pieces(found: tuple[np.ndarray, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what `nearest` returns for a few queries at a time, because the votes of all would take much memory."""
    return ((found[0][start : start + QUERIES], found[1][start : start + QUERIES]) for start in range(0, len(found[0]), QUERIES))


def sizes_for(memory: float, width: int, k: int, row_bytes: int, queries: int, neighbours: int) -> Sizes:
    """Sizes that need at most about `memory` GiB, a quarter each for neighbours, similarities and queries. `row_bytes` is of a neighbour as it is read."""
    quarter = memory * 2**28
    block = int(max(1, min(NEIGHBOURS, neighbours, quarter // (row_bytes + 12 * width))))
    tile = int(max(1, min(QUERIES, queries, quarter // (12 * (block + k)))))  # similarities, joined with the nearest so far, and sorted
    return Sizes(int(max(tile, min(queries, quarter // (12 * width + 16 * k)))), tile, block)


@functools.partial(jax.jit, donate_argnums=0)
def _merge(best: tuple[Array, Array], queries_QD: Array, neighbours_ND: Array, first: int, count: int) -> tuple[Array, Array]:
    """The nearest of those so far, (similarities, numbers) [Q, K], and of the first `count` neighbours, whose numbers begin at `first`."""
    similarities, numbers = best
    k = numbers.shape[1]
    found = jnp.einsum("qd,nd->qn", queries_QD, neighbours_ND, precision=jax.lax.Precision.HIGHEST)
    found = jnp.where(jnp.arange(len(neighbours_ND)) < count, found, -jnp.inf)
    values, places = jax.lax.top_k(jnp.concatenate([similarities, found], axis=1), k)
    known = jnp.take_along_axis(numbers, jnp.minimum(places, k - 1), axis=1)
    return values, jnp.where(places < k, known, first + places - k)


def _normalised(features: np.ndarray) -> np.ndarray:
    """Features float32 [n, D] of length 1, or 0 if all are 0. Raises ValueError if they are not finite."""
    largest = np.abs(features).max(axis=1, keepdims=True, initial=0)
    scaled = (features / np.where(largest == 0, 1, largest)).astype(np.float32)  # in the type of the features; no square overflows, not all underflow
    lengths = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    if not np.isfinite(lengths).all():
        raise ValueError("the features are not finite: write them again with --dtype=float32")
    return scaled / np.where(lengths == 0, 1, lengths)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _blocks(splits: Splits, read: Read, parts: Sequence[str], size: int) -> Iterator[np.ndarray]:
    """Yield the features of parts under mask 0, [n, D] with n at most `size`."""
    for split, rows in (splits.rows[part] for part in parts):
        yield from (read(split, 0, rows[start : start + size]) for start in range(0, len(rows), size))


def _reader(splits: Splits, layer: int) -> Read:
    def read(split: str, mask: int, rows: np.ndarray) -> np.ndarray:
        features = store.Reader(splits.directory, splits.description, split, [layer], mask).read(rows)[0]
        return store.mean_over_positions(features) if features.ndim == 3 else features.astype(np.float32)

    return read


def _row_bytes(splits: Splits) -> int:
    return store.image_bytes(splits.description) // len(store.stored_layers(splits.description))


def _query_count(splits: Splits, masked: bool = True) -> int:
    return sum(len(splits.labels[part]) * (splits.masks[part] if masked else 1) for part in ("validation", "test") if part in splits.labels)
