"""Images stored as palette codes, memory-mapped: the folder that `quantize --codes` writes, and the arrays that OpenAI hosts.

    codes:DIR           {train,validation,test}.npy uint16 [N, H, W], {train,validation,test}_labels.npy int32 [N], palette.npy, dataset.json;
                        validation and test exist if the images that were coded have them
    npy:DIR[/PREFIX]    [PREFIX_]{tr,va,te}X.npy whole numbers [N, H * W] or [N, H, W], as download.py of openai/image-gpt fetches them; optional
                        beside them [PREFIX_]{tr,va,te}Y.npy, one-hot [N, C] or labels [N], and kmeans_centers.npy or palette.npy
"""

import dataclasses
import json
import math
import os
import re
from typing import Any

import numpy as np

from igpt_jax.data.arrays import take_labels
from igpt_jax.data.splits import parts_of
from igpt_jax.palette.palette import Palette

QUANTIZE = "python -m igpt_jax.quantize --config=CONFIG --workdir=WORKDIR --codes"
REMEDY = f"write the codes again by `{QUANTIZE}`"
OPENAI_ARRAYS = {"train": ("tr",), "validation": ("va",), "test": ("te",), "all_train": ("tr", "va")}  # split -> OpenAI's names
HOSTED_NAME = re.compile(r"(?:(.*)_)?(?:tr|va|te)[XY]\.npy")
PALETTES = ("kmeans_centers.npy", "palette.npy")


@dataclasses.dataclass(frozen=True)
class Codes:
    """Images stored as codes, in one or more arrays that follow each other."""

    arrays: tuple[np.ndarray, ...]  # of whole numbers [n, H, W]
    rows: np.ndarray
    labels: np.ndarray
    class_names: tuple[str | int, ...]
    palette: Palette | None  # None: none is stored with the codes
    name: str
    remedy: str  # for codes outside the palette, in error messages

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, rows: np.ndarray) -> "Codes":
        """Return the images of these rows alone."""
        return dataclasses.replace(self, rows=self.rows[rows], labels=self.labels[rows])

    def read_codes(self, rows: np.ndarray, palette: Palette) -> np.ndarray:
        """Return the codes [n, H, W] of some images; raise ValueError for a code outside the palette, which an embedding would clamp without notice."""
        codes = self.stored(rows)
        if codes.size and (codes.min() < 0 or codes.max() >= palette.size):
            outside = codes.min() if codes.min() < 0 else codes.max()
            owner = "the palette given" if self.palette is None else "its palette"
            raise ValueError(f"{self.name} holds code {outside}, but {owner} has {palette.size} colours: {self.remedy}")
        return codes

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Return the codes [n, H, W] of some images as stored, without a check."""
        rows = self.rows[rows]
        codes = np.empty((len(rows), *self.arrays[0].shape[1:]), np.result_type(*self.arrays))
        first = 0
        for array in self.arrays:
            inside = (first <= rows) & (rows < first + len(array))
            codes[inside] = array[rows[inside] - first]
            first += len(array)
        return codes

    def all_labels(self) -> np.ndarray:
        """Return the labels of all images, int [N]; -1 where there is none."""
        return self.labels


def open_codes(directory: str, split: str, image_size: int, view: str) -> Codes:
    """Open a split of a folder that quantize wrote; raise ValueError if its palette, size or view is not the expected one."""
    parts = parts_of(split, coded_parts(directory))
    palette_path, facts_path = os.path.join(directory, "palette.npy"), os.path.join(directory, "dataset.json")
    paths = [(os.path.join(directory, f"{part}.npy"), os.path.join(directory, f"{part}_labels.npy")) for part in parts]
    for needed in (*(path for pair in paths for path in pair), palette_path, facts_path):
        if not os.path.isfile(needed):
            raise FileNotFoundError(f"{needed} does not exist: write the codes by `{QUANTIZE}`")
    try:
        arrays = [(_open_array(path), _open_array(labels)) for path, labels in paths]
        with open(facts_path, encoding="utf-8") as file:
            facts = json.load(file)
        names, counts = tuple(facts["class_names"]), facts.get("counts", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} is damaged ({error}): {REMEDY}") from error
    for part, (path, _), (codes, labels) in zip(parts, paths, arrays, strict=True):
        if codes.dtype != np.uint16 or codes.ndim != 3 or labels.shape != codes.shape[:1]:
            stored = f"{codes.dtype} {list(codes.shape)} and labels {list(labels.shape)}"
            raise ValueError(f"{path} must be uint16 [N, H, W] with a label each, not {stored}: {REMEDY}")
        if counts.get(part, len(codes)) != len(codes):
            raise ValueError(f"{path} holds {len(codes)} images, but {facts_path} says {counts[part]}: {REMEDY}")
        _check_size(path, codes.shape[1:], image_size)
    palette = _checked_palette(palette_path, facts)
    if facts.get("view", view) != view:
        raise ValueError(f"codes:{directory} holds images of the view {facts['view']}, not {view}: give the view {facts['view']}, or {REMEDY}")
    labels = np.concatenate([labels for _, labels in arrays]).astype(np.int32)
    return Codes(tuple(codes for codes, _ in arrays), np.arange(len(labels)), labels, names, palette, f"codes:{directory}", REMEDY)


def _checked_palette(path: str, facts: dict[str, Any]) -> Palette:
    """Return the palette beside the codes; ValueError if it is not the one that `facts`, the content of dataset.json, names by its checksum."""
    palette = Palette.load(path)
    if facts.get("palette", palette.checksum) != palette.checksum:
        raise ValueError(f"{path} is not the palette that these codes were made with: put that one back, or {REMEDY}")
    return palette


def coded_parts(directory: str) -> set[str]:
    """Return which of train, validation and test a folder that quantize wrote holds."""
    return {part for part in ("train", "validation", "test") if os.path.isfile(os.path.join(directory, f"{part}.npy"))}


def open_openai_arrays(place: str, split: str, image_size: int) -> Codes:
    """Open a split of OpenAI's arrays at DIR or DIR/PREFIX; without validation files, `validation` and `all_train` are all images of `tr`."""
    start = _find_hosted(place)
    parts = OPENAI_ARRAYS[split] if split in ("train", "test") or "validation" in openai_parts(place) else OPENAI_ARRAYS["train"]
    arrays = tuple(_open_ids(f"{start}{part}X.npy", image_size) for part in parts)
    labelled = [_read_labels(f"{start}{part}Y.npy", len(array)) for part, array in zip(parts, arrays, strict=True)]
    labels, classes = np.concatenate([labels for labels, _ in labelled]), max(classes for _, classes in labelled)
    beside = (os.path.join(os.path.dirname(start), name) for name in PALETTES)
    palette = next((Palette.load(path) for path in beside if os.path.isfile(path)), None)
    remedy = "use the palette (OpenAI's kmeans_centers.npy) and the model that these ids were made for"
    return Codes(arrays, np.arange(len(labels)), labels, tuple(range(classes)), palette, f"npy:{place}", remedy)


def openai_parts(place: str) -> set[str]:
    """Return which of train, validation and test OpenAI's arrays at a place have, by the files of their images or labels."""
    start = _find_hosted(place)
    return {split for split, (part, *more) in OPENAI_ARRAYS.items() if not more and any(os.path.isfile(f"{start}{part}{kind}.npy") for kind in "XY")}


def _find_hosted(place: str) -> str:
    """Return what the paths of the arrays begin with, like DIR/imagenet_; one line if there are none, or those of several sets."""
    for start in (f"{place}_", os.path.join(place, "")):
        if any(os.path.isfile(f"{start}{part}{kind}.npy") for part in ("tr", "va", "te") for kind in "XY"):
            return start
    directory = place if os.path.isdir(place) else os.path.dirname(place)
    names = os.listdir(directory or ".") if os.path.isdir(directory or ".") else ()
    prefixes = sorted({match[1] for name in names if (match := HOSTED_NAME.fullmatch(name)) and match[1]})
    sources = ", ".join(f"npy:{os.path.join(directory, prefix)}" for prefix in prefixes)
    if directory != place or not prefixes:
        existing = f"there is {sources}" if prefixes else "download.py of openai/image-gpt fetches such arrays"
        raise FileNotFoundError(f"npy:{place} has no arrays [PREFIX_]{{tr,va,te}}X.npy of palette ids: {existing}")
    if len(prefixes) > 1:
        raise ValueError(f"npy:{place} holds the arrays of {len(prefixes)} data sets, choose one of them: {sources}")
    return os.path.join(place, f"{prefixes[0]}_")


def _open_ids(path: str, image_size: int) -> np.ndarray:
    """Map an array of palette ids as [N, H, W]."""
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


def _read_labels(path: str, count: int) -> tuple[np.ndarray, int]:
    """Return (int32 [N], number of classes) of a one-hot array, which is read through, or of labels; all -1 if the file does not exist."""
    if not os.path.isfile(path):
        return np.full(count, -1, np.int32), 0
    stored = _open_array(path)
    labels, classes, _ = take_labels(stored, count, path)
    if labels.dtype.kind == "U":
        raise ValueError(f"{path} holds text {list(stored.shape)} as labels of the {count} images beside it: number the classes from 0 on")
    return labels.astype(np.int32), classes


def _open_array(path: str) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(path, mode="r")  # unlike numpy.load it accepts neither pickles nor archives
    except ValueError as error:
        raise ValueError(f"{path} is cut short, or no .npy file of numbers: {error}") from error


def _check_size(path: str, shape: tuple[int, ...], image_size: int) -> None:
    if shape != (image_size, image_size):
        raise ValueError(f"{path} holds images of {shape[0]} x {shape[1]} pixels, but image_size is {image_size}")
