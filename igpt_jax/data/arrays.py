"""Images and labels in arrays: the source that holds them, scikit-learn's digits, and which contents of arrays are accepted."""

import dataclasses
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from igpt_jax.data.images import Picture, as_rgb, decoded
from igpt_jax.data.messages import with_progress

ROWS_AT_ONCE = 4096  # of one-hot labels, 16 MB for ImageNet; of images to be converted
DIGITS_SPLIT = 1797  # seed of the digits' test set: a constant, so that every run of every recipe is tested on the same images


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images of one size held in memory."""

    images: np.ndarray  # uint8 [N, H, W] grey, or [N, H, W, 1 or 3]
    labels: np.ndarray
    class_names: tuple[str | int, ...]

    def __len__(self) -> int:
        return len(self.images)

    def keep(self, rows: np.ndarray) -> "Arrays":
        """Return the images of these rows alone."""
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows])

    def read(self, row: int, view: Callable[[Picture], np.ndarray] = decoded) -> tuple[np.ndarray, int]:
        """Return (view of the image, uint8 [H, W, 3], label)."""
        return view(as_rgb(self.images[row])), int(self.labels[row])

    def read_block(self, start: int, stop: int | None) -> np.ndarray:
        """Return images start..stop as stored, uint8 [n, H, W, 3]."""
        block = self.images[start:stop]
        return as_rgb(block[..., None] if block.ndim == 3 else block)

    def all_labels(self) -> np.ndarray:
        """Return the labels of all images, int [N]; -1 where there is none."""
        return self.labels


def open_digits(part: str) -> Arrays:
    """Open scikit-learn's 1797 grey digits of 8 x 8 pixels: `test` is a fifth of each class, the same in every run, `train` the rest."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("source digits needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255
    random = np.random.RandomState(DIGITS_SPLIT)  # numpy guarantees its stream for ever
    shuffled = [random.permutation(np.flatnonzero(digits.target == digit)) for digit in range(10)]
    parts = [rows[: round(len(rows) / 5)] if part == "test" else rows[round(len(rows) / 5) :] for rows in shuffled]
    rows = np.sort(np.concatenate(parts))
    return Arrays(images[rows], digits.target[rows].astype(np.int32), tuple("0123456789"))


def take_labels(stored: np.ndarray, count: int | None, where: str) -> tuple[np.ndarray, int, str]:
    """Return (labels, number of classes, note) of an array of labels: int64 [N], -1 unlabelled, or text [N] with 0 classes.

    Accepted are whole numbers of any dtype, text, one-hot [N, C] and a column [N, 1] of labels; the note says which, "" if as documented. Raises
    ValueError, which begins with `where`, for anything else and for a number of labels other than `count`.
    """
    shape = list(stored.shape)
    column = stored[:, 0] if stored.ndim == 2 and shape[1] == 1 else stored
    if column.ndim not in (1, 2) or len(column) != count or column.dtype.kind not in ("biufUS" if column.ndim == 1 else "biuf"):
        expected = f"must hold the labels of the {count} images beside it, one-hot [N, C] or [N]"
        raise ValueError(f"{where} {expected}, not {stored.dtype} {shape}")
    if column.ndim == 2:
        return _one_hot(column, where), shape[1], f"labels are one-hot {shape}"
    note = "" if column.dtype.kind in "iu" and column is stored else f"labels are {stored.dtype} {shape}"
    if column.dtype.kind in "US":
        return np.array([as_text(label) for label in column.tolist()], str), 0, note
    low, high = (column.min(), column.max()) if len(column) else (0, 0)
    if not (-1 <= low and high < 2**31) or (column.dtype.kind == "f" and not np.array_equal(column, np.floor(column))):
        raise ValueError(f"{where} must hold labels from 0 on (-1: none), not {stored.dtype} from {low} to {high}")
    return column.astype(np.int64), int(high) + 1 if len(column) else 0, note


def _one_hot(stored: np.ndarray, where: str) -> np.ndarray:
    """Return the labels int64 [N] of a one-hot array, which is read through."""
    labels = np.empty(len(stored), np.int64)
    for start in with_progress(range(0, len(stored), ROWS_AT_ONCE), "reading labels", unit="block"):
        block = stored[start : start + ROWS_AT_ONCE]
        bad = np.flatnonzero(((block != 0).sum(axis=1) != 1) | ((block == 1).sum(axis=1) != 1))
        if len(bad):
            raise ValueError(f"{where} must be one-hot, a single 1 in each row of zeros, which row {start + bad[0]} is not")
        labels[start : start + ROWS_AT_ONCE] = block.argmax(axis=1)
    return labels


def take_pixels(stored: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """Return (pixels uint8 [N, H, W] or [N, H, W, 1 or 3], note) of an array of images.

    Accepted are uint8, whole numbers 0..255 with channels, floats 0..1 or 0..255, booleans; channels last or first; transparency, which is put over white.
    The note says what was converted, "" if nothing. Raises ValueError, which begins with `where`, for contents that have no single meaning.
    """
    shape, kind = list(stored.shape), stored.dtype.kind
    axis = _channel_axis(shape, where, stored.dtype)
    low, high = (stored.min(), stored.max()) if stored.size and kind in "biuf" else (0, 0)
    ids = "; palette ids are read from .npy files by npy:DIR" if kind in "iu" else ""
    if kind not in "biuf" or (stored.dtype != np.uint8 and kind in "iu" and axis is None):
        raise ValueError(f"{where} must be uint8 [N, H, W, 3] or [N, H, W], not {stored.dtype} {shape}{ids}")
    if not (0 <= low and high <= 255) or (kind == "f" and 1 < high < 128) or (kind in "iu" and stored.dtype != np.uint8 and 0 < high < 2):
        raise ValueError(f"{where} is {stored.dtype} from {low} to {high}: give uint8 from 0 to 255, or floats from 0 to 1")
    scale = 255 if kind == "b" or (kind == "f" and high <= 1) else 1
    pixels = np.moveaxis(stored, axis, 3) if axis is not None else stored
    transparent = axis is not None and shape[axis] == 4
    if stored.dtype == np.uint8 and axis != 1 and not transparent:
        return pixels, ""
    note = f"images are {stored.dtype} {shape}" + f" from 0 to {1 if scale == 255 else 255}" * (kind != "b") + ", channels first" * (axis == 1)
    return _as_uint8(pixels, scale, transparent), note + ", over white" * transparent


def _as_uint8(pixels: np.ndarray, scale: int, transparent: bool) -> np.ndarray:
    """Return pixels times `scale`, rounded, as uint8, block by block; [..., 4] over white as [..., 3] if `transparent`."""
    result = np.empty((*pixels.shape[:3], *(3 if transparent else count for count in pixels.shape[3:])), np.uint8)
    for start in range(0, len(pixels), ROWS_AT_ONCE):
        block = np.rint(pixels[start : start + ROWS_AT_ONCE].astype(np.float32) * scale)
        if transparent:
            block = np.rint((block[..., :3] * block[..., 3:] + 255 * (255 - block[..., 3:])) / 255)
        result[start : start + ROWS_AT_ONCE] = block
    return result


def _channel_axis(shape: list[int], where: str, dtype: np.dtype) -> int | None:
    """Return the axis of the channels of [N, H, W, 1, 3 or 4] or [N, 1, 3 or 4, H, W], None for [N, H, W]; ValueError if both may be meant, or neither."""
    message = f"{where} must be [N, H, W, 3] or [N, H, W], not {dtype} {shape}"
    if 0 in shape[1:]:
        raise ValueError(f"{message}: images without pixels")
    if len(shape) == 3:
        if shape[2] in (1, 3, 4) and shape[1] != shape[2]:
            raise ValueError(f"{message}: {shape[0]} grey images of {shape[1]} x {shape[2]} pixels, or a single picture? Give it as [N, H, W, C]")
        return None
    if len(shape) != 4:
        raise ValueError(message + ("; palette ids are read from .npy files by npy:DIR" if len(shape) == 2 and dtype.kind in "iu" else ""))
    axes = [axis for axis in (1, 3) if shape[axis] in (1, 3, 4)]
    square = [axis for axis in axes if shape[2] == shape[4 - axis]]
    if len(axes) == 1 or len(square) == 1:
        return axes[0] if len(axes) == 1 else square[0]
    raise ValueError(f"{message}: " + (f"is the axis of {shape[1]} or that of {shape[3]} the channels?" if axes else "no axis of 1, 3 or 4 channels"))


def as_text(value: Any) -> str:
    """Return a name, str or bytes, as str in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", value.decode() if isinstance(value, bytes) else str(value))
