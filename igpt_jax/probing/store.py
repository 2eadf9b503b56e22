"""The folder of activations that igpt_jax.features writes and igpt_jax.probe reads, its splits, and its images in order or at random.

`features.json` says what is in it: of which model, by the checksum of its parameters, and of which images, by a fingerprint of each split (a folder
written before these were stored has neither). `SPLIT/labels.npy` is int32 [N], -1 unlabelled; `SPLIT/part-00000.npy` holds images 0..n-1 of a split as
[layers, n, D], float32 or float16, part i images i * n and on, the last part fewer. Entry l of the first axis is the mean over positions of block l's
normalised input, the last that after the final norm (paper 2.6); of kind `raw` the mean of the embedding, then of each block's output. Of kind `positions`
a part is [layers, n, S, D], not averaged, of the layers that `stored_layers` of features.json names.

Of a bert model seen through M masks (`masks`: M in features.json, which else has no such key), SPLIT/part-*.npy are what it makes of mask 0; masks
1..M-1 of validation and test lie beside them, in the same parts, as SPLIT/mask-1/part-*.npy and on. Training images have mask 0 alone.
"""

import json
import math
import pathlib
import shlex
from typing import NamedTuple

import numpy as np

HOLD_OUT = 0.1  # of the training images, where there is no validation split
HOLD_OUT_SEED = 0
BLOCK_BYTES = 2**18  # of one layer, read in one go: enough for a solid-state disk's full speed, few enough images that a window mixes many places


# ---- the files ----


def read_claim(directory) -> dict:
    """What features.json says, whether the arrays are there or not; ValueError in one line where it is damaged."""
    path = pathlib.Path(directory) / "features.json"
    try:
        description = json.loads(path.read_text())
        return description | {"counts": dict(description["counts"])}
    except (ValueError, LookupError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise ValueError(f"{path} is not what igpt_jax.features writes ({reason}): write the features again with --overwrite") from None


def read_description(directory) -> dict:
    """What features.json says; FileNotFoundError in one line where it, labels or parts are missing or truncated."""
    directory = pathlib.Path(directory)
    if not (directory / "features.json").exists():
        again = f"python -m igpt_jax.features --checkpoint=CHECKPOINT --out={directory}"
        raise FileNotFoundError(f"{directory} holds no features.json: write the features first, {again}")
    description, paths = read_claim(directory), []
    for split in description["counts"]:
        paths += [directory / split / "labels.npy"]
        paths += [part_path(directory, split, mask, number) for mask in range(mask_count(description, split)) for number, _, _ in parts(description, split)]
    missing = [path.relative_to(directory).as_posix() for path in paths if not _is_readable(path)]
    if missing:
        some = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise FileNotFoundError(f"{directory} is incomplete, {len(missing)} files missing or cut off ({some}): finish with {command(description, directory)}")
    return description


def command(description, directory, splits=None) -> str:
    """The command line of igpt_jax.features that writes this folder, its splits or those given, and finishes it where parts are missing."""
    known = {"checkpoint": description["checkpoint"], "out": directory, "splits": ",".join(splits or description["counts"])}
    known |= {name.replace("_", "-"): description.get(name) for name in ("kind", "dtype", "images_per_part", "masks", "limit")}
    known |= {"data": description["data"]["source"]} | {name: description["data"].get(name) for name in ("view", "validation", "directory")}
    known["layers"] = ",".join(map(str, description.get("stored_layers", [])))
    return shlex.join(["python", "-m", "igpt_jax.features", *(f"--{name}={value}" for name, value in known.items() if value not in (None, ""))])


def parts(description, split) -> list[tuple[int, int, int]]:
    """(number, first image, one past the last) of each part of a split."""
    size, count = description["images_per_part"], description["counts"][split]
    return [(number, start, min(start + size, count)) for number, start in enumerate(range(0, count, size))]


def part_path(directory, split, mask, number) -> pathlib.Path:
    """Where a part lies."""
    return pathlib.Path(directory) / split / (f"mask-{mask}" if mask else "") / f"part-{number:05d}.npy"


def row_shape(description) -> tuple[int, ...]:
    """Shape of what is stored of one image and one layer: (D,), or (S, D)."""
    return (*((description["positions"],) if description["kind"] == "positions" else ()), description["width"])


def image_bytes(description) -> int:
    """Of one image and mask, all stored layers."""
    return len(stored_layers(description)) * math.prod(row_shape(description)) * np.dtype(description["dtype"]).itemsize


def stored_layers(description) -> list[int]:
    """Numbers of the layers in a part, in their order there."""
    return description.get("stored_layers", list(range(description["layers"] + 1)))


def mask_count(description, split) -> int:
    """How many sets of parts a split has: one for each mask, one where there are no masks."""
    return 1 if split == "train" else max(1, description.get("masks", 0))


def read_layer(directory, split, layer, mask=0) -> np.ndarray:
    """Features of one layer, float32 [N, D], the mean over positions where all are stored; only that layer's part of the files is read."""
    description = json.loads((pathlib.Path(directory) / "features.json").read_text())
    place, found = stored_layers(description).index(layer), []
    for number, _, _ in parts(description, split):
        array = np.load(part_path(directory, split, mask, number), mmap_mode="r")[place]
        found.append(array.mean(axis=1, dtype=np.float32) if array.ndim == 3 else np.asarray(array, np.float32))
    return np.concatenate(found)


def _is_readable(path):
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


class Reader:
    """Images of one split and mask by number, from memory-mapped parts: no more is read than asked for."""

    def __init__(self, directory, description, split, layers, mask=0):
        self.directory, self.split, self.mask = directory, split, mask
        self.part_size, self.row_shape = description["images_per_part"], row_shape(description)
        self.dtype = np.dtype(description["dtype"])
        self.places = [stored_layers(description).index(layer) for layer in layers]

    def read(self, rows, out=None, at=None) -> np.ndarray:
        """Images `rows` (ascending) as [layers, n, ...] in the type on disk, or into `out` at the places `at`."""
        if out is None:
            out, at = np.empty((len(self.places), len(rows), *self.row_shape), self.dtype), np.arange(len(rows))
        numbers, offsets = np.divmod(rows, self.part_size)
        for number in np.unique(numbers):
            here = numbers == number
            part = np.load(part_path(self.directory, self.split, self.mask, number), mmap_mode="r")
            span = offsets[here]
            wanted = slice(span[0], span[-1] + 1) if span[-1] - span[0] + 1 == len(span) else span  # a slice is one long read
            for index, place in enumerate(self.places):
                out[index, at[here]] = part[place, wanted]
        return out

    @property
    def row_bytes(self) -> int:
        """Of one image, all layers together."""
        return len(self.places) * int(np.prod(self.row_shape)) * self.dtype.itemsize

    @property
    def block(self) -> int:
        """Consecutive images that are read in one go."""
        return max(1, min(BLOCK_BYTES // (self.row_bytes // len(self.places)), self.part_size))


# ---- the images in order, and at random ----


def in_order(reader, rows, size):
    """Yields (features [layers, n, ...], rows [n]) with n = `size`, the last fewer; `rows` ascend."""
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield reader.read(some), some


def windows(reader, rows, window, seed):
    """Yields for ever (features [layers, n, ...], rows [n]) with n at most `window` images in random order, each of `rows` once in an epoch.

    `rows` fall into blocks of neighbours in a part (a quarter of a MiB of each layer). An epoch permutes the blocks, gathers them into windows, and
    permutes the images within a window: the disk reads whole blocks, and a window that holds the whole split is a perfect shuffle. The order depends on
    the seed and the window's size alone. Where images of a class lie together on disk, a window holds as many classes as it has blocks.
    """
    blocks = _blocks(np.asarray(rows), reader.part_size, reader.block)
    epoch = 0
    while True:
        order = np.random.default_rng((seed, 0, epoch)).permutation(len(blocks))
        ends = _fill([len(blocks[index]) for index in order], window)
        for number, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            yield _window(reader, [blocks[index] for index in order[first:last]], np.random.default_rng((seed, 1, epoch, number)))
        epoch += 1


def batches(windows, size):
    """Yields (features [layers, size, ...], rows [size]) cut from windows one after the other; a batch may span two of them."""
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


def _blocks(rows, part_size, block):
    """Runs of `rows` that lie in one block of one part."""
    numbers, offsets = np.divmod(rows, part_size)
    keys = numbers * (-(-part_size // block)) + offsets // block
    return np.split(rows, np.flatnonzero(np.diff(keys)) + 1)


def _fill(sizes, window):
    """Where windows end, so that each holds as many blocks of these sizes as go into `window` images, and at least one."""
    ends, held = [], 0
    for index, size in enumerate(sizes):
        if held and held + size > window:
            ends.append(index)
            held = 0
        held += size
    return [*ends, len(sizes)]


def _window(reader, blocks, generator):
    rows = np.concatenate(blocks)
    places = generator.permutation(len(rows))
    features = np.empty((len(reader.places), len(rows), *reader.row_shape), reader.dtype)
    start = 0
    for block in sorted(blocks, key=lambda block: block[0]):  # the disk goes forwards
        reader.read(block, features, places[start : start + len(block)])
        rows[start : start + len(block)] = block
        start += len(block)
    shuffled = np.empty_like(rows)
    shuffled[places] = rows
    return features, shuffled


# ---- which images are for what ----


class Sample(NamedTuple):
    """Images of a probe: features float32 [L, B, D], labels int [B], and `more`, features of the same images under masks 1 and on."""

    features: np.ndarray
    labels: np.ndarray
    more: tuple = ()


class Splits:
    """Which images are for training, validation and test (`rows`: part -> (split, numbers)), their labels and masks, and how many classes there are.

    `stored` are all labels of each split, int [N].
    """

    def __init__(self, directory, description, seed=HOLD_OUT_SEED):
        """Raises ValueError in one line where the labels allow no probe."""
        self.description, counts = description, description["counts"]
        self.stored = stored = {split: np.load(pathlib.Path(directory) / split / "labels.npy") for split in counts}
        if "train" not in stored:
            again = command(description, directory, ["train"])
            raise ValueError(f"{directory} has no train split, only {', '.join(stored)}: add it with {again}")
        self.classes = _check_labels(stored, description["class_names"])
        self.rows = {split: (split, np.arange(len(labels))) for split, labels in stored.items() if len(labels)}
        self.chosen_on = "the validation split"
        if "validation" not in self.rows:
            order = np.random.default_rng(seed).permutation(counts["train"])
            held_out = max(1, round(HOLD_OUT * len(order)))
            self.rows |= {"train": ("train", np.sort(order[held_out:])), "validation": ("train", np.sort(order[:held_out]))}
            self.chosen_on = f"{held_out} training images held out (seed {seed}), there being no validation split"
        self.labels = {part: stored[split][rows] for part, (split, rows) in self.rows.items()}
        self.masks = {part: mask_count(description, split) for part, (split, _) in self.rows.items()}

    def samples(self, read, masked=True):
        """Samples of training, validation and test (None without one); `read(split, mask)` returns a split's features [L, N, D]."""
        found, known = [], {}
        for part in ("train", "validation", "test"):
            if part not in self.rows:
                found.append(None)
                continue
            split, rows = self.rows[part]
            sets = []
            for mask in range(self.masks[part] if masked else 1):
                if (split, mask) not in known:
                    known[split, mask] = read(split, mask)
                whole = known[split, mask]
                sets.append(whole if len(rows) == whole.shape[1] else whole[:, rows])
            found.append(Sample(sets[0], self.labels[part], tuple(sets[1:])))
        return found


def vote(classes, seed=0):
    """The most frequent of M predicted classes, int [..., M, B] -> [..., B]; ties fall at random, the same way for the same image (paper 2.4)."""
    classes = np.asarray(classes)
    agreeing = sum((classes == classes[..., mask : mask + 1, :]).astype(np.float32) for mask in range(classes.shape[-2]))
    # tied classes have equally many masks, so that the luckiest of these masks is a fair draw between the classes
    winner = (agreeing + 0.5 * np.random.default_rng(seed).random(classes.shape[-2:])).argmax(axis=-2)
    return np.take_along_axis(classes, winner[..., None, :], axis=-2)[..., 0, :]


def _check_labels(stored, class_names):
    """The number of classes."""
    for split, labels in stored.items():
        if unlabelled := int((labels < 0).sum()):
            raise ValueError(f"{unlabelled} of {len(labels)} {split} images have no label: a linear probe needs labelled images")
    largest = max(int(labels.max(initial=0)) for labels in stored.values())
    if class_names and largest >= len(class_names):
        raise ValueError(f"label {largest} is outside the {len(class_names)} classes of features.json: write the features again")
    if len(np.unique(stored["train"])) < 2:
        raise ValueError(f"all {len(stored['train'])} training images are of one class: there is nothing to tell apart")
    return len(class_names) or largest + 1
