"""Batches of palette codes for a model. The names of `config`, `sources` and `splits` that most callers need can be imported from here too.

    source -> split -> (augment) -> codes -> {"codes": int32 [b, S], "label": int32 [b], "index": int32 [b]}

Two engines make the same stream. Sets with fixed views (digits, npz, codes, npy) are encoded once, and numpy alone makes their batches. Pictures that must
be decoded or resized anew each time (the other sources, and any set with ImageNet's augmentation) go through Grain's threads or worker processes. Each source
of a mixture has its own engine. The content of a global step is a function of (seed, step) alone: the number of hosts, workers and interruptions does not
change it.
B global batch, b the part of this process, S sequence, H and W pixels, C channels.
"""

import functools
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np

from igpt_jax.data.arrays import Arrays
from igpt_jax.data.codes import Codes
from igpt_jax.data.config import AUGMENTS, SOURCES, VIEWS, DataConfig, config_for, expanded, places, view_of
from igpt_jax.data.dataset import Dataset, decoding_threads
from igpt_jax.data.mixture import Mixed
from igpt_jax.data.sampler import InOrder, OfSource, Plan, Shuffled, ShuffledMixture
from igpt_jax.data.sources import open_dataset, splits_of, stored_parts
from igpt_jax.data.splits import SPLITS
from igpt_jax.palette.palette import Palette
from igpt_jax.types import Batch

__all__ = [  # of config, sources and splits, and of this file
    "AUGMENTS",
    "SOURCES",
    "SPLITS",
    "VIEWS",
    "DataConfig",
    "Dataset",
    "config_for",
    "evaluation_batches",
    "expanded",
    "labelled",
    "open_dataset",
    "places",
    "prefetch",
    "shift_and_flip",
    "splits_of",
    "stored_parts",
    "train_batches",
    "view_of",
]
PAD = 4  # pixels of reflection around a small image before the random crop (paper 2.1)
Coded: TypeAlias = Generator[tuple[np.ndarray, np.ndarray], None, None]  # (codes int32 [b, S], labels int32 [b])
Item = TypeVar("Item")
Result = TypeVar("Result")


def train_batches(
    dataset: Dataset, palette: Palette, batch_size: int, seed: int, step: int = 0, part: Any = ...
) -> Generator[Batch, None, None]:
    """Yield this process's share of the augmented batches, from global step `step` on, without end.

    A batch is {"codes": int32 [b, S], "label": int32 [b], "index": int32 [b], the image's number in the split}. `batch_size` is
    global; `part`, int [b], says which places in it this process supplies (`sharding.part_of_batch`). The order is drawn anew each epoch, and
    an epoch may end inside a batch. Raises ValueError for sizes that do not fit, before anything is read.
    """
    _check_batches(dataset, palette, batch_size)
    if batch_size > len(dataset):
        images = f"{len(dataset)} images of {dataset.config.source} ({dataset.split})"
        raise ValueError(f"batch size {batch_size} is more than the {images}: lower config.batch_size")
    if seed < 0 or step < 0:
        raise ValueError(f"seed {seed} and step {step} must not be negative")
    return _augmented_batches(dataset, palette, _training_plan(dataset, batch_size, seed, part), step)


def evaluation_batches(
    dataset: Dataset, palette: Palette, batch_size: int, part: Any = ..., start: int = 0, stop: int | None = None
) -> Generator[Batch, None, None]:
    """Yield images start..stop in order, in evaluation's view, each exactly once in the global batches.

    A batch is {"codes": int32 [b, S], "label": int32 [b], "weight": float32 [b], 1 for an image, 0 for padding, "index": int32 [b], the
    image's number in the split}; `part` as in `train_batches`. Every process yields the same number of batches. Padding has codes 0,
    label -1 and index 0.
    """
    _check_batches(dataset, palette, batch_size)
    start, stop, _ = slice(start, stop).indices(len(dataset))
    plan = InOrder(start, stop, batch_size, part)
    return _weighted_batches(dataset, palette, plan, range(-(-max(stop - start, 0) // batch_size)))


def labelled(batches: Iterable[Batch], source: str) -> Iterator[Batch]:
    """Yield the batches for a loss of classes; raise ValueError with the number of the first image without a label.

    The labels of a TFDS set are checked here, because only some of them are read before.
    """
    for batch in batches:
        unlabelled = (batch["label"] < 0) & (batch.get("weight", 1) > 0)
        if unlabelled.any():
            raise ValueError(f"image {batch['index'][unlabelled][0]} of {source} has no label, which the class head needs")
        yield batch


def prefetch(items: Iterable[Item], put: Callable[[Item], Result], depth: int = 2) -> Generator[Result, None, None]:
    """Yield put(item) for each item; a thread keeps `depth` of them ready. close() ends the thread and closes the iterator.

    An error of the iterator or of `put` is raised here, after the items before it.
    """
    if depth < 1:
        raise ValueError(f"depth {depth} must be at least 1")
    iterator, free, stopped = iter(items), threading.Semaphore(depth), threading.Event()
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            while free.acquire() and not stopped.is_set():
                ready.put((put(next(iterator)), None))
        except BaseException as error:  # including StopIteration: the end is passed on like an error
            ready.put((None, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            result, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            free.release()
            yield result
    finally:
        stopped.set()
        free.release()
        thread.join()


def shift_and_flip(images_BHW: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Augment square images or codes [B, H, W, ...] as for CIFAR (paper 2.1): 4 px of reflection, a random crop, half of them mirrored.

    `uniform` [B, 3] in [0, 1) holds row, column and flip. Pixels are only moved, so the function commutes with encoding, and codes are cheaper to move.
    """
    side = images_BHW.shape[1]
    reflected = np.pad(np.arange(side), PAD, "reflect")
    window = np.arange(side)
    offsets = (uniform[:, :2] * (2 * PAD + 1)).astype(np.int64)
    rows = reflected[offsets[:, :1] + window]
    columns = reflected[offsets[:, 1:] + np.where(uniform[:, 2:] < 0.5, window[::-1], window)]
    return images_BHW[np.arange(len(images_BHW))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _check_batches(dataset: Dataset, palette: Palette, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1")
    dataset.check_palette(palette)


def _training_plan(dataset: Dataset, batch_size: int, seed: int, part: Any) -> Shuffled | ShuffledMixture:
    """Return which images are drawn at each step; ValueError for a source of a mixture of which no image is left."""
    source = dataset.source
    if not isinstance(source, Mixed):
        return Shuffled(len(dataset), batch_size, seed, part)
    members = tuple(np.flatnonzero(member >= 0) for member in source.members())
    for name, rows in zip(source.names, members, strict=True):
        if not len(rows):
            raise ValueError(f"none of the {len(dataset)} images of {dataset.config.source} ({dataset.split}) that are left is from {name}")
    return ShuffledMixture(members, source.shares, batch_size, seed, part)


def _augmented_batches(dataset: Dataset, palette: Palette, plan: Shuffled | ShuffledMixture, first: int) -> Generator[Batch, None, None]:
    steps, side = range(first, sys.maxsize), dataset.config.image_size
    fixed_views = dataset.config.augment != "imagenet"
    for step, (codes, labels) in zip(steps, _coded_batches(dataset, palette, plan, steps, fixed_views), strict=True):
        rows, uniform = plan(step)
        if dataset.config.augment == "cifar":
            codes = shift_and_flip(codes.reshape(len(codes), side, side, palette.tokens_per_pixel), uniform).reshape(codes.shape)
        yield {"codes": codes, "label": labels, "index": dataset.numbers(rows).astype(np.int32)}


def _weighted_batches(dataset: Dataset, palette: Palette, plan: InOrder, steps: range) -> Generator[Batch, None, None]:
    for step, (codes, labels) in zip(steps, _coded_batches(dataset, palette, plan, steps, fixed_views=True), strict=True):
        rows, _ = plan(step)
        real = rows >= 0
        codes, labels, index = np.where(real[:, None], codes, 0), np.where(real, labels, -1), np.where(real, dataset.numbers(rows), 0)
        yield {"codes": codes, "label": labels, "weight": real.astype(np.float32), "index": index.astype(np.int32)}


def _coded_batches(dataset: Dataset, palette: Palette, plan: Plan, steps: range, fixed_views: bool) -> Coded:
    """Choose the engine; it yields (codes int32 [b, S], labels int32 [b]) for each step of the plan."""
    if isinstance(dataset.source, Mixed):
        return _mixed_codes(dataset, dataset.source, palette, plan, steps, fixed_views)
    stored = isinstance(dataset.source, Arrays | Codes) and fixed_views
    return (_stored_codes if stored else _decoded_codes)(dataset, palette, plan, steps)


def _mixed_codes(dataset: Dataset, source: Mixed, palette: Palette, plan: Plan, steps: range, fixed_views: bool) -> Coded:
    """The engine for mixtures: each source has an engine of its own, which supplies its places of every batch."""
    members = source.members()
    engines = [_coded_batches(part, palette, OfSource(plan, member), steps, fixed_views) for part, member in zip(source.parts, members, strict=True)]
    positions = dataset.config.image_size**2 * palette.tokens_per_pixel
    try:
        for step in steps:
            rows = plan(step)[0]
            codes, labels = np.zeros((len(rows), positions), np.int32), np.full(len(rows), -1, np.int32)
            for member, engine in zip(members, engines, strict=True):
                mine = (rows >= 0) & (member[rows] >= 0)
                codes[mine], labels[mine] = next(engine)
            yield codes, np.asarray(dataset.renumber(labels), np.int32)
    finally:
        for engine in engines:
            engine.close()


def _stored_codes(dataset: Dataset, palette: Palette, plan: Plan, steps: range) -> Coded:
    """The engine for sets with fixed views: their codes are in memory or mapped into it."""
    for step in steps:
        rows = plan(step)[0]
        yield dataset.codes(rows, palette), dataset.labels[rows]


def _decoded_codes(dataset: Dataset, palette: Palette, plan: Plan, steps: range) -> Coded:
    """The engine for pictures decoded anew: Grain's threads or processes make whole batches of codes.

    One element is one global step, so a run resumes by starting the range later. Grain's own state is not used: it depends on the number of workers.
    """
    try:
        import grain
    except ImportError as error:
        raise ValueError(f"{dataset.config.source} needs Grain to decode images: pip install grain") from error
    from absl import flags

    in_memory = isinstance(dataset.source, Arrays)  # not worth a copy in each worker
    workers = 0 if in_memory else dataset.config.workers
    if workers and not flags.FLAGS.is_parsed():  # Grain reads its flags, which absl refuses outside of absl.app.run
        flags.FLAGS.mark_as_parsed()
    decode = functools.partial(_decode_in_worker if workers else _decode_batch, dataset, plan)
    encode = functools.partial(_encode_batch, palette, dataset.config.image_size**2 * palette.tokens_per_pixel)
    batches = grain.MapDataset.range(steps.start, steps.stop).map(decode).map(encode)
    if workers:  # each decodes in its main thread, and its batches wait in the queue between the processes
        palette.prepare()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).mp_prefetch(options)
    else:
        threads = decoding_threads()
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    failures, iterator = getattr(dataset.source, "failures", None), iter(batches)
    try:
        for codes, labels, unreadable in iterator:
            if failures is not None:
                failures.count(unreadable)
            yield codes.astype(np.int32), labels
    finally:
        iterator.close()


def _encode_batch(palette: Palette, positions: int, decoded: tuple[np.ndarray, np.ndarray, dict[int, str]]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return what `_decode_batch` returns with codes uint16 [b, S] for the pixels: the buffers and the queues between processes hold many batches."""
    pixels_bHWC, labels, unreadable = decoded
    return palette.encode(pixels_bHWC).astype(np.uint16).reshape(len(labels), positions), labels, unreadable


def _decode_in_worker(dataset: Dataset, plan: Plan, step: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Decode a batch in one of Grain's processes, which do not inherit that the program ignores Pillow's warnings."""
    _ignore_pillow_warnings()
    return _decode_batch(dataset, plan, step)


@functools.cache
def _ignore_pillow_warnings() -> None:
    """Set the filter of `runtime.prepare` once in this process: each change of the filters makes Python repeat warnings that it has shown."""
    warnings.filterwarnings("ignore", module="PIL")


def _decode_batch(dataset: Dataset, plan: Plan, step: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return (uint8 [b, H, W, 3], labels int32 [b], {row: reason} newly unreadable) of a step; runs in Grain's threads and workers."""
    rows, uniform = plan(step)
    size, failures = dataset.config.image_size, getattr(dataset.source, "failures", None)
    known = len(failures.reasons) if failures else 0
    pixels, labels = np.zeros((len(rows), size, size, 3), np.uint8), np.full(len(rows), -1, np.int32)
    for i, row in enumerate(rows):
        if row >= 0:
            pixels[i], labels[i] = dataset.view(row, None if uniform is None else uniform[i])
    return pixels, labels, dict(list(failures.reasons.items())[known:]) if failures else {}
