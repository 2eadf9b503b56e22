"""Images stored as palette codes, memory-mapped: the folder that `quantize --codes` writes, and the arrays that OpenAI hosts.

    codes:DIR           {train,validation,test}.npy uint16 [N, H, W], {train,validation,test}_labels.npy int32 [N], palette.npy, dataset.json;
                        validation and test where the images that were coded have them
    npy:DIR[/PREFIX]    [PREFIX_]{tr,va,te}X.npy whole numbers [N, H * W] or [N, H, W], as download.py of openai/image-gpt fetches them; optional
                        beside them [PREFIX_]{tr,va,te}Y.npy, one-hot [N, C] or labels [N], and kmeans_centers.npy or palette.npy
"""

import dataclasses
import json
import math
import os
import re

import numpy as np

from igpt_jax.data.images import take_labels
from igpt_jax.palette.palette import Palette

QUANTIZE = "python -m igpt_jax.quantize --config=CONFIG --workdir=WORKDIR --codes"
OPENAI_ARRAYS = {"train": ("tr",), "validation": ("va",), "test": ("te",), "all_train": ("tr", "va")}  # split -> OpenAI's names
HOSTED_NAME = re.compile(r"(?:(.*)_)?(?:tr|va|te)[XY]\.npy")
PALETTES = ("kmeans_centers.npy", "palette.npy")


@dataclasses.dataclass(frozen=True)
class Codes:
    """Images stored as codes, in one or more arrays, one after the other."""

    arrays: tuple  # of whole numbers [n, H, W]
    rows: np.ndarray
    labels: np.ndarray
    class_names: tuple
    palette: Palette | None  # None: none is stored with the codes
    name: str
    remedy: str  # against codes outside the palette

    def __len__(self):
        return len(self.rows)

    def keep(self, rows):
        return dataclasses.replace(self, rows=self.rows[rows], labels=self.labels[rows])

    def read_codes(self, rows, palette):
        """Returns the codes [n, H, W] of some images; ValueError for a code outside the palette, which an embedding would clamp silently."""
        codes = self.stored(rows)
        if codes.size and (codes.min() < 0 or codes.max() >= palette.size):
            found = codes.min() if codes.min() < 0 else codes.max()
            whose = "the palette given" if self.palette is None else "its palette"
            raise ValueError(f"{self.name} holds code {found}, but {whose} has {palette.size} colours: {self.remedy}")
        return codes

    def stored(self, rows):
        """Returns the codes [n, H, W] of some images as they lie on the disk."""
        rows = self.rows[rows]
        codes = np.empty((len(rows), *self.arrays[0].shape[1:]), np.result_type(*self.arrays))
        first = 0
        for array in self.arrays:
            inside = (first <= rows) & (rows < first + len(array))
            codes[inside] = array[rows[inside] - first]
            first += len(array)
        return codes

    def all_labels(self):
        return self.labels


def open_codes(directory, split, image_size, view):
    """Opens a split of a folder that quantize wrote; ValueError where the codes are those of another palette, size or `view` than is said."""
    parts = ("train", "validation") if split == "all_train" and "validation" in coded_parts(directory) else ("train" if split == "all_train" else split,)
    palette_path, facts_path = os.path.join(directory, "palette.npy"), os.path.join(directory, "dataset.json")
    paths = [(os.path.join(directory, f"{part}.npy"), os.path.join(directory, f"{part}_labels.npy")) for part in parts]
    for needed in (*(path for pair in paths for path in pair), palette_path, facts_path):
        if not os.path.isfile(needed):
            raise FileNotFoundError(f"{needed} does not exist: write the codes by `{QUANTIZE}`")
    remedy = f"write the codes anew by `{QUANTIZE}`"
    try:
        arrays = [(_open_array(path), _open_array(labels)) for path, labels in paths]
        with open(facts_path, encoding="utf-8") as file:
            facts = json.load(file)
        names, counts = tuple(facts["class_names"]), facts.get("counts", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} is damaged ({error}): write the codes anew by `{QUANTIZE}`") from error
    for part, (path, _), (codes, labels) in zip(parts, paths, arrays, strict=True):
        if codes.dtype != np.uint16 or codes.ndim != 3 or labels.shape != codes.shape[:1]:
            stored = f"{codes.dtype} {list(codes.shape)} and labels {list(labels.shape)}"
            raise ValueError(f"{path} must be uint16 [N, H, W] with a label each, not {stored}: write it anew by `{QUANTIZE}`")
        if counts.get(part, len(codes)) != len(codes):
            raise ValueError(f"{path} holds {len(codes)} images, of which {facts_path} says {counts[part]}: {remedy}")
        _check_size(path, codes.shape[1:], image_size)
    palette = Palette.load(palette_path)
    if facts.get("palette", palette.checksum) != palette.checksum:
        raise ValueError(f"{palette_path} is not the palette that these codes were made with: put that one back, or {remedy}")
    if facts.get("view", view) != view:
        raise ValueError(f"codes:{directory} shows its images by the view {facts['view']}, asked for is {view}: give the view {facts['view']}, or {remedy}")
    labels = np.concatenate([labels for _, labels in arrays]).astype(np.int32)
    return Codes(tuple(codes for codes, _ in arrays), np.arange(len(labels)), labels, names, palette, f"codes:{directory}", remedy)


def coded_parts(directory):
    """Which of train, validation and test a folder that quantize wrote holds."""
    return {part for part in ("train", "validation", "test") if os.path.isfile(os.path.join(directory, f"{part}.npy"))}


def open_openai_arrays(place, split, image_size):
    """Opens a split of OpenAI's arrays at DIR or DIR/PREFIX; without a file of their own, `validation` and `all_train` are all of `tr`."""
    start = _find_hosted(place)
    parts = OPENAI_ARRAYS[split] if split in ("train", "test") or "validation" in openai_parts(place) else OPENAI_ARRAYS["train"]
    arrays = tuple(_open_ids(f"{start}{part}X.npy", image_size) for part in parts)
    labels, classes = zip(*(_read_labels(f"{start}{part}Y.npy", len(array)) for part, array in zip(parts, arrays, strict=True)), strict=True)
    labels, names = np.concatenate(labels), tuple(range(max(classes)))
    beside = (os.path.join(os.path.dirname(start), name) for name in PALETTES)
    palette = next((Palette.load(path) for path in beside if os.path.isfile(path)), None)
    remedy = "take the palette (OpenAI's kmeans_centers.npy) and the model that these ids were made for"
    return Codes(arrays, np.arange(len(labels)), labels, names, palette, f"npy:{place}", remedy)


def openai_parts(place):
    """Which of train, validation and test OpenAI's arrays at a place have, by the files of their images or labels."""
    start = _find_hosted(place)
    return {split for split, (part, *more) in OPENAI_ARRAYS.items() if not more and any(os.path.isfile(f"{start}{part}{kind}.npy") for kind in "XY")}


def _find_hosted(place):
    """What the paths of the arrays begin with, as DIR/imagenet_; one line where there are none, or those of several sets."""
    for start in (f"{place}_", os.path.join(place, "")):
        if any(os.path.isfile(f"{start}{part}{kind}.npy") for part in ("tr", "va", "te") for kind in "XY"):
            return start
    directory = place if os.path.isdir(place) else os.path.dirname(place)
    names = os.listdir(directory or ".") if os.path.isdir(directory or ".") else ()
    prefixes = sorted({match[1] for name in names if (match := HOSTED_NAME.fullmatch(name)) and match[1]})
    sources = ", ".join(f"npy:{os.path.join(directory, prefix)}" for prefix in prefixes)
    if directory != place or not prefixes:
        there = f"there is {sources}" if prefixes else "download.py of openai/image-gpt fetches such"
        raise FileNotFoundError(f"npy:{place} has no arrays [PREFIX_]{{tr,va,te}}X.npy of palette ids: {there}")
    if len(prefixes) > 1:
        raise ValueError(f"npy:{place} holds the arrays of {len(prefixes)} data sets, say which: {sources}")
    return os.path.join(place, f"{prefixes[0]}_")


def _open_ids(path, image_size):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist, the palette ids of this split: download.py of openai/image-gpt fetches it")
    ids = _open_array(path)
    if ids.dtype.kind not in "iu" or ids.ndim not in (2, 3):
        raise ValueError(f"{path} must hold palette ids, whole numbers [N, H * W] or [N, H, W], not {ids.dtype} {list(ids.shape)}")
    shape = ids.shape[1:]
    if ids.ndim == 2:
        shape = (math.isqrt(ids.shape[1]),) * 2
    if math.prod(shape) != math.prod(ids.shape[1:]) or shape[0] != shape[1]:
        raise ValueError(f"{path} must hold square images, not ids {list(ids.shape)}")
    _check_size(path, shape, image_size)
    return ids.reshape(len(ids), *shape)


def _read_labels(path, count):
    """Returns (int32 [N], number of classes) of a one-hot array, which is read through, or of labels; all -1 where the file does not exist."""
    if not os.path.isfile(path):
        return np.full(count, -1, np.int32), 0
    stored = _open_array(path)
    labels, classes, _ = take_labels(stored, count, path)
    if labels.dtype.kind == "U":
        raise ValueError(f"{path} holds text {list(stored.shape)} as labels of the {count} images beside it: number the classes from 0 on")
    return labels.astype(np.int32), classes


def _open_array(path):
    try:
        return np.lib.format.open_memmap(path, mode="r")  # unlike numpy.load it takes no pickle and no archive
    except ValueError as error:
        raise ValueError(f"{path} is cut short, or no .npy file of numbers: {error}") from error


def _check_size(path, shape, image_size):
    if shape != (image_size, image_size):
        raise ValueError(f"{path} holds images of {shape[0]} x {shape[1]} pixels, but image_size is {image_size}")
