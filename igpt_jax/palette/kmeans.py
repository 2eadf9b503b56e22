"""K-means on colours: one pass counts how often each of the 256^3 colours occurs, then weighted k-means runs on the distinct colours.

The fit goes from coarse to fine: the first centres (greedy k-means++, Arthur and Vassilvitskii 2007) and the first steps use colours merged with
their neighbours, the last steps the colours themselves. Each step is exact: a block of neighbouring colours skips a group of neighbouring centres
only if none of them can be the nearest. Distances are float32 differences in [-1, 1] space, computed on every device of this process; sums over
blocks are float64. The N x V distances are never stored.

Shape suffixes: n points, V centres, b blocks, P points in a block, g groups of centres, c centres in a group, u centres compared at once.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from igpt_jax.types import Array

COLOURS = 256**3
_POINTS = 256  # colours in a block
_BLOCKS = 64  # blocks on a device in one call
_UNROLLED = 8  # centres compared in one fused step
_GROUPS = 256  # of centres, at most
_LEVELS = (32, 256)  # merged points per centre on the coarse levels
_RELAXATION = 1.8  # factor of a step; below 2 every step lowers the error
_MOST_DRAWN = 2048  # largest palette whose first centres are drawn one after another
Report: TypeAlias = Callable[[int, int, float], object]  # (number of points, pass, error per pixel)
Call: TypeAlias = tuple[Array, Array, Array, Array]  # blocks on the devices: points [b, 3, P], weights [b, P], least and greatest values [b, 3]


@dataclasses.dataclass(frozen=True)
class Fit:
    """Statistics of a fit; `mse` is the mean over pixels of the squared distance, summed over the three channels, in [-1, 1] space."""

    pixels: int
    distinct_colours: int
    iterations: int  # Lloyd steps on the colours themselves
    coarse_iterations: int
    mse: float  # per pixel, as scikit-learn's inertia / pixels
    mse_per_channel: float  # mse / 3
    psnr: float  # dB, 10 log10(4 / mse_per_channel): the range of [-1, 1] is 2
    seconds: float


def count_colours(batches: Iterable[np.ndarray]) -> np.ndarray:
    """Count how often each colour red << 16 | green << 8 | blue occurs, int64 [256^3], in batches uint8 [..., 3] of all processes of the run."""
    counts = np.zeros(COLOURS, np.int64)
    for batch in batches:
        batch = np.asarray(batch)
        if batch.dtype != np.uint8 or batch.shape[-1:] != (3,):
            raise ValueError(f"pixels must be uint8 [..., 3], got {batch.dtype} {list(batch.shape)}")
        pixels = batch.reshape(-1, 3)
        for start in range(0, len(pixels), 1 << 22):
            block = pixels[start : start + (1 << 22)].astype(np.int32)
            np.add.at(counts, (block[:, 0] << 16) | (block[:, 1] << 8) | block[:, 2], 1)
    return counts if jax.process_count() == 1 else _sum_over_processes(counts)


def fit(
    counts: np.ndarray, size: int, seed: int, iterations: int, tolerance: float, report: Report = lambda points, iteration, mse: None
) -> tuple[np.ndarray, Fit]:
    """Fit a palette to counts int64 or float64 [256^3]; return (centres float32 [size, 3] in [-1, 1], Fit).

    The same seed and number of devices give the same centres. Each level stops after `iterations` steps, or when a step lowers the error by less than
    `tolerance` of itself. `report` is called in every pass with the number of points, the pass and the error per pixel. Raises ValueError for fewer
    distinct colours than `size`.
    """
    began = time.perf_counter()
    keys = np.flatnonzero(counts)
    if not 2 <= size <= 65536:
        raise ValueError(f"palette size {size} is not between 2 and 65536")
    if len(keys) < size:
        raise ValueError(f"palette size {size} exceeds the {len(keys)} distinct colours of the images: ask for at most {len(keys)}")
    colours, weights = _colours_in_order(keys, counts[keys])
    merged = [_merge(colours, weights, per_center * size) for per_center in _LEVELS if per_center * size <= len(colours) // 2]
    lloyd = _Lloyd(len(colours), size, iterations, tolerance, report)
    rng = np.random.default_rng(seed)
    centers = _first_centers(colours, weights, size, rng)
    steps = []
    for points, masses in [*merged, (colours, weights)]:
        centers, error, done = lloyd.run(points, masses, centers, rng)
        steps.append(done)
    pixels = int(counts.sum().round())
    mse = float(error / pixels)
    psnr = 10 * float(np.log10(12 / mse)) if mse > 0 else float("inf")
    return centers, Fit(pixels, len(keys), steps[-1], sum(steps[:-1]), mse, mse / 3, psnr, time.perf_counter() - began)


def _colours_in_order(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (colours float64 [n, 3] in [-1, 1], weights float64 [n]) of colour keys and counts, sorted along a Hilbert curve."""
    channels = np.stack([keys >> 16, (keys >> 8) & 255, keys & 255], axis=1)
    order = np.argsort(_hilbert(channels))
    return channels[order] / 127.5 - 1, counts[order].astype(np.float64)


def _merge(points: np.ndarray, weights: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbours on the curve to at most about `number` means; return (points, weights).

    The merged runs have equal sums of weight^0.6: the density of the best k-means centres in three dimensions is weight^(3/5) (Zador 1982).
    """
    if number >= len(points):
        return points, weights
    filled = np.cumsum(weights**0.6)
    first = np.flatnonzero(np.diff((filled * (number / filled[-1])).astype(np.int64), prepend=-1))
    total = np.add.reduceat(weights, first)
    return np.add.reduceat(points * weights[:, None], first) / total[:, None], total


def _hilbert(channels: np.ndarray) -> np.ndarray:
    """Return the place of channels int [n, 3] below 256 on a Hilbert curve, int64 [n]: close places have close colours (Skilling 2004)."""
    axes = [np.array(channel, np.int64) for channel in channels.T]
    for bit in (128, 64, 32, 16, 8, 4, 2):
        low = bit - 1
        axes[0] ^= np.where(axes[0] & bit, low, 0)
        for axis in (1, 2):
            inverted = axes[axis] & bit != 0
            exchange = np.where(inverted, 0, (axes[0] ^ axes[axis]) & low)
            axes[0] ^= np.where(inverted, low, exchange)
            axes[axis] ^= exchange
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    flips = np.zeros_like(axes[0])
    for bit in (128, 64, 32, 16, 8, 4, 2):
        flips ^= np.where(axes[2] & bit, bit - 1, 0)
    place = np.zeros_like(flips)
    for shift, bits in itertools.product(range(7, -1, -1), axes):
        place = place << 1 | ((bits ^ flips) >> shift & 1)
    return place


def _first_centers(colours: np.ndarray, weights: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return centres to start from [size, 3]: k-means++, or for a large palette, where that would take too long, runs of the curve."""
    if len(colours) == size:
        return colours
    if size <= _MOST_DRAWN:
        return _seed_centers(*_merge(colours, weights, 8 * size), size, rng)
    centers, _ = _merge(colours, weights, size)
    rest = rng.choice(len(colours), max(0, size - len(centers)), replace=False)
    return np.concatenate([centers, colours[rest]])[:size]


def _seed_centers(points: np.ndarray, weights: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Greedy k-means++: draw a few points by weighted squared distance and take the one that leaves the least error; return [size, 3]."""
    trials = 2 + int(np.log(size))
    columns = np.ascontiguousarray(points.T)
    distances = np.full(len(points), 12.0)  # the squared distance of black and white, the largest
    chosen: list[int] = []
    for _ in range(size):
        cumulative = np.cumsum(distances * weights)
        drawn = np.minimum(np.searchsorted(cumulative, rng.random(trials) * cumulative[-1], side="right"), len(points) - 1)
        nearer = sum(np.square(column - column[drawn, None]) for column in columns)
        np.minimum(nearer, distances, out=nearer)
        best = int(np.argmin((nearer * weights).sum(axis=1)))
        distances = nearer[best]
        chosen.append(drawn[best])
    return points[chosen]


def _in_order(centers: np.ndarray) -> np.ndarray:
    """Return centres [V, 3] as float32, sorted along the curve, so that neighbours share a group."""
    return centers[np.argsort(_hilbert(np.rint(127.5 * (centers + 1))), kind="stable")].astype(np.float32)


@functools.cache  # so that a second fit of the same size compiles nothing
def _programs(devices: tuple[jax.Device, ...]) -> tuple[NamedSharding, Callable[..., Any], Callable[..., Any]]:
    """Return (sharding of blocks over the devices, _possible_groups, _assign_blocks); each device works on its own blocks."""
    mesh = Mesh(np.array(devices), ("blocks",))
    split, whole = PartitionSpec("blocks"), PartitionSpec()

    def on_each_device(function: Callable[..., Any], *specs: PartitionSpec) -> Callable[..., Any]:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False))

    possible_groups = on_each_device(_possible_groups, split, split, whole)
    return NamedSharding(mesh, split), possible_groups, on_each_device(_assign_blocks, split, split, split, split, whole)


class _Lloyd:
    """Lloyd's iteration on every device of this process, with one compiled program for all levels and iterations.

    Each process of a run has the same counts and does the same work, so no collective is needed.
    """

    def __init__(self, most_points: int, size: int, iterations: int, tolerance: float, report: Report) -> None:
        self.iterations, self.tolerance, self.report = iterations, tolerance, report
        devices = jax.local_devices()
        blocks = -(-most_points // (_POINTS * len(devices)))
        self.blocks = len(devices) * min(_BLOCKS, 1 << (blocks - 1).bit_length())  # in one call
        self.group = _UNROLLED * -(-size // (_GROUPS * _UNROLLED))  # centres compared or skipped together
        self.sharding, self.possible_groups, self.assign_blocks = _programs(tuple(devices))

    def run(self, points: np.ndarray, weights: np.ndarray, centers: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        """Improve centres [V, 3] for points [n, 3] of weights [n]; return (centres float32 [V, 3] along the curve, weighted squared error, steps taken).

        A step goes 1.8 times as far as the means, which still lowers the error and saves about half of the steps. The last step goes to the means.
        """
        scale, total = weights.max(), weights.sum()  # relative weights, so that float32 holds any count
        centers = _in_order(centers)
        calls = self.place(points, weights / scale, centers)
        previous, plain = np.inf, False
        for iteration in range(self.iterations + 1):
            mass, shifts, errors, point_errors = self.assign(calls, centers)
            error = errors.sum() * scale
            self.report(len(points), iteration, error / total)
            empty = mass == 0
            repair = empty.any() and error > 0
            settled = previous - error <= self.tolerance * error and not repair
            if iteration == self.iterations or (settled and plain) or error == 0:
                break
            previous, plain = error, settled or iteration == self.iterations - 1
            centers = np.clip(centers + (1 if plain else _RELAXATION) * shifts, -1, 1)
            if repair:
                centers[empty] = _reseed(calls, point_errors, centers[empty], rng)
            centers = _in_order(centers)
        return centers, error, iteration

    def place(self, points: np.ndarray, weights: np.ndarray, centers: np.ndarray) -> list[Call]:
        """Put points [n, 3] and weights [n] on the devices, as blocks for each call.

        The time of a call depends on its block with the most possible centres, so blocks are sorted by that number.
        """
        padding = -len(points) % (self.blocks * _POINTS)  # the last point again, with weight 0
        points = np.pad(points.astype(np.float32), ((0, padding), (0, 0)), mode="edge").reshape(-1, _POINTS, 3).swapaxes(1, 2)
        weights = np.pad(weights.astype(np.float32), (0, padding)).reshape(-1, _POINTS)
        low, high = points.min(axis=2), points.max(axis=2)
        groups = self.grouped(centers)
        parts = np.arange(len(low)).reshape(-1, self.blocks)
        boxes = [jax.device_put((low[part], high[part]), self.sharding) for part in parts]
        possible = np.concatenate([self.possible_groups(*box, groups)[1] for box in boxes])
        order = np.argsort(possible, kind="stable").reshape(-1, self.blocks)
        return [jax.device_put((points[part], weights[part], low[part], high[part]), self.sharding) for part in order]

    def assign(self, calls: Sequence[Call], centers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Array]]:
        """Assign the points to centres [V, 3]; return float64 weights [V], shifts to the clusters' means [V, 3], weighted errors [V]; the points' errors."""
        groups = self.grouped(centers)
        results: list[tuple[Array, Array]] = []
        for points, weights, low, high in calls:
            results.append(self.assign_blocks(points, weights, *self.possible_groups(low, high, groups), groups))
        sums = np.sum([np.asarray(sums, np.float64).sum(axis=0) for sums, _ in results], axis=0)[: len(centers)]
        mass = sums[:, 0]
        return mass, sums[:, 1:4] / np.where(mass > 0, mass, 1)[:, None], sums[:, 4], [errors for _, errors in results]

    def grouped(self, centers: np.ndarray) -> np.ndarray:
        """Return centres [V, 3] as groups [g, c, 3]."""
        padding = -len(centers) % self.group  # copies of the last centre; in a tie the original wins
        return np.pad(centers, ((0, padding), (0, 0)), mode="edge").reshape(-1, self.group, 3)


def _reseed(calls: Sequence[Call], errors: Sequence[Array], stray: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the centres of empty clusters [e, 3] to points drawn by their weighted squared error, each point once, as long as there are any."""
    flat = np.concatenate([np.asarray(call, np.float64).reshape(-1) for call in errors])
    drawn = rng.choice(len(flat), min(len(stray), int(np.count_nonzero(flat))), replace=False, p=flat / flat.sum())
    call, block, point = np.unravel_index(drawn, (len(calls), *errors[0].shape))
    stray[: len(drawn)] = [np.asarray(calls[c][0])[b, :, p] for c, b, p in zip(call, block, point, strict=True)]
    return stray


def _assign_blocks(points_b3P: Array, weights_bP: Array, order_bg: Array, counts_b: Array, centers_gc3: Array) -> tuple[Array, Array]:
    """Return (sums [1, V, 5]: weight, weight x difference from the centre, weight x squared distance; errors [b, P]) of one device's blocks."""
    codes_bP, squared_bP = _nearest(points_b3P, centers_gc3, order_bg, counts_b.max())
    centers_V3 = centers_gc3.reshape(-1, 3)
    difference_bP3 = points_b3P.swapaxes(1, 2) - centers_V3[codes_bP]
    one_bP1 = jnp.ones_like(difference_bP3[..., :1])
    terms_bP5 = weights_bP[..., None] * jnp.concatenate([one_bP1, difference_bP3, squared_bP[..., None]], axis=2)
    sums_V5 = jnp.zeros((len(centers_V3), 5), jnp.float32).at[codes_bP.reshape(-1)].add(terms_bP5.reshape(-1, 5))
    return sums_V5[None], squared_bP * weights_bP


def _possible_groups(low_b3: Array, high_b3: Array, centers_gc3: Array) -> tuple[Array, Array]:
    """Return (groups [b, g], first those that can hold the nearest centre of a point in the block, and their number [b]) for the boxes of the blocks.

    A group is possible only if one of its centres is nearer than the box's pivot, a centre near its middle, somewhere in the box. The lead
    |x - pivot|^2 - |x - group's box|^2 is a sum over channels of convex functions, each of which is greatest at an end of the box.
    """
    group_low_g3, group_high_g3 = centers_gc3.min(axis=1), centers_gc3.max(axis=1)
    middle_b3 = (low_b3 + high_b3) / 2
    near_bc3 = centers_gc3[_nearest_row(middle_b3, (group_low_g3 + group_high_g3)[None] / 2)]
    pivot_b13 = jnp.take_along_axis(near_bc3, _nearest_row(middle_b3, near_bc3)[:, None, None], axis=1)

    def lead(x_b3: Array) -> Array:
        x_b13 = x_b3[:, None]
        outside_bg3 = jnp.maximum(0, jnp.maximum(group_low_g3 - x_b13, x_b13 - group_high_g3))
        return (x_b13 - pivot_b13) ** 2 - outside_bg3**2

    possible_bg = jnp.maximum(lead(low_b3), lead(high_b3)).sum(axis=2) > -1e-5  # float32 rounding errors are smaller
    return jnp.argsort(~possible_bg, axis=1), possible_bg.sum(axis=1)


def _nearest_row(points_b3: Array, rows_br3: Array) -> Array:
    return ((rows_br3 - points_b3[:, None]) ** 2).sum(axis=2).argmin(axis=1)


def _nearest(points_b3P: Array, centers_gc3: Array, order_bg: Array, count: Array) -> tuple[Array, Array]:
    """Return (codes int32, squared distances) [b, P] of the nearest centre of each point among the first `count` groups of its block's order."""
    parts = centers_gc3.shape[1] // _UNROLLED
    rows_ru3 = centers_gc3.reshape(-1, _UNROLLED, 3)

    def compare(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        best_bP, codes_bP = carry
        row_b = jax.lax.dynamic_index_in_dim(order_bg, step // parts, 1, keepdims=False) * parts + step % parts
        centers_bu3 = rows_ru3[row_b]
        for u in range(_UNROLLED):
            difference_b3P = points_b3P - centers_bu3[:, u, :, None]
            squared_bP = difference_b3P[:, 0] ** 2 + difference_b3P[:, 1] ** 2 + difference_b3P[:, 2] ** 2
            better_bP = squared_bP < best_bP
            best_bP = jnp.where(better_bP, squared_bP, best_bP)
            codes_bP = jnp.where(better_bP, (row_b * _UNROLLED + u)[:, None], codes_bP)
        return best_bP, codes_bP

    shape = points_b3P.shape[0], points_b3P.shape[2]
    start = jnp.full(shape, jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
    best_bP, codes_bP = jax.lax.fori_loop(0, count * parts, compare, start)
    return codes_bP, best_bP


def _sum_over_processes(counts: np.ndarray) -> np.ndarray:
    from jax.experimental import multihost_utils

    total = np.empty_like(counts)
    for start in range(0, COLOURS, 1 << 20):  # in slices, because each process receives those of all others
        words = counts[start : start + (1 << 20)].view(np.uint32)  # jax would cut int64 to int32
        gathered = np.ascontiguousarray(multihost_utils.process_allgather(words))
        total[start : start + (1 << 20)] = gathered.view(np.int64).sum(axis=0)
    return total
