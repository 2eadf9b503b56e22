"""Image files and arrays: reading, checking, cropping, resizing, and the sources made of them. The only file that knows Pillow.

An image is uint8 [H, W, 3] everywhere. Resizing is Pillow's BILINEAR, whose support grows with the factor when it shrinks, so it is
antialiased: the filter of Hugging Face's image processor, so that the same picture gives the same codes there and here.
A source has `len`, `class_names` (str, or the classes' numbers where they have no names), `read(row)` -> (image, label), `all_labels()` -> int32 [N]
(-1 unlabelled), and `keep(rows)` -> a source.
"""
import concurrent.futures
import contextlib
import dataclasses
import functools
import glob
import itertools
import logging
import os
import stat
import struct
import sys
import threading
import warnings
import zipfile

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

CROP = 224  # side of ImageNet's crop in pixels (paper 2.1)
SHORTER_SIDES = (256, 384)  # training resizes the shorter side to a random length in this range, ends included (paper 2.1)
DECODE_AT_MOST = 20_000  # a folder of more files than this has only its headers checked: decoding ImageNet takes hours of a core
UNREADABLE_SHARE = 0.01  # pictures that may fail after their source was opened; more is a broken disk
THREADS = 16  # readers at once; Pillow lets go of the interpreter while it decodes
PIXELS_AT_ONCE = 90_000_000  # decoded at once by all threads, some 8 bytes each; a picture as large as Pillow allows is decoded alone
STRIP = 4_000_000  # pixels converted at once
DIGITS_SPLIT = 1797  # seed of the digits' test set: a constant, so that every run of every recipe is tested on the same images

warnings.filterwarnings("ignore", module="PIL")  # one a file, of a broken EXIF and the like; what cannot be read is an error anyway


def read_image(file):
    """Reads one picture, a path or an open binary file, as uint8 [H, W, 3]: upright by its EXIF, transparency over white.

    Raises ValueError, one line with the name and the reason, for whatever cannot be read.
    """
    with _opened(file) as image, _PIXELS.taken(image.width * image.height):
        image.load()
        # a whole picture is used as it stands where its EXIF is broken
        with contextlib.suppress(SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error):
            ImageOps.exif_transpose(image, in_place=True)
        return _decoded(image)


def as_images(pictures):
    """One picture or several as a list of uint8 [H, W, 3], in whatever way a caller has them: paths, open files, PIL images, arrays of NumPy, JAX, ...

    An array is one picture, uint8 [H, W] or [H, W, 1, 3 or 4], or several, [N, H, W, 1, 3 or 4]; the fourth channel is transparency over white. ValueError,
    one line, for what is none of these.
    """
    if isinstance(pictures, str | os.PathLike | Image.Image) or hasattr(pictures, "read"):
        return [_as_image(pictures)]
    if hasattr(pictures, "__array__"):
        pictures = np.asarray(pictures)
        return [_as_image(picture) for picture in (pictures if pictures.ndim == 4 or pictures.dtype.kind in "OU" else [pictures])]
    try:
        pictures = list(pictures)
    except TypeError:
        raise ValueError(f"an image is a path, an array or a PIL image, and several are a list of them, not {type(pictures).__name__}") from None
    return [_as_image(picture) for picture in pictures]


def as_rgb(pixels):
    """Returns a grey [H, W] or [..., H, W, 1] array as [..., H, W, 3], a coloured one as it is."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def resize(image, size):
    """Resizes [H, W, 3] to uint8 [size, size, 3], bilinear and antialiased, not keeping the aspect; the right size comes back untouched."""
    height, width = image.shape[:2]
    return image if height == width == size else resize_region(image, (0, 0, width, height), size)


def resize_region(image, box, size):
    """Resizes the `box` (left, top, right, bottom in pixels, fractions allowed) of an image to uint8 [size, size, 3].

    Pillow's filter also sees the pixels around the box: the result is that of resizing the whole image and cropping after,
    without ever making the whole (a strip of 1 x 10,000 pixels at a shorter side of 224 would have 500 million pixels).
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def center_crop_square(image):
    """Crops [H, W, 3] to the square of the shorter side in the middle; an odd pixel is lost at the bottom or right."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def center_square(image, size):
    """Crops to the square in the middle, then resizes to uint8 [size, size, 3]: the view of the small sets."""
    return resize(center_crop_square(image), size)


def imagenet_center(image, size):
    """Shorter side to 224, centre crop 224, then resized to uint8 [size, size, 3]: ImageNet's evaluation view (paper 2.1)."""
    return resize(resize(center_crop_square(image), CROP), size)


def imagenet_crop(image, uniform, size):
    """Shorter side to a random 256..384, a random crop of 224, resized to uint8 [size, size, 3]; no flip (paper 2.1).

    `uniform` holds three numbers in [0, 1): for the length, the row and the column.
    """
    height, width = image.shape[:2]
    low, high = SHORTER_SIDES
    scale = min(height, width) / (low + int(uniform[0] * (high - low + 1)))  # pixels of the source in one resized pixel
    side = CROP * scale
    rows, columns = round(height / scale) - CROP, round(width / scale) - CROP
    top = min(int(uniform[1] * (rows + 1)) * scale, height - side)  # a longer side that was rounded up ends past the source
    left = min(int(uniform[2] * (columns + 1)) * scale, width - side)
    return resize(resize_region(image, (left, top, left + side, top + side), CROP), size)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Images of one size held in memory."""

    images: np.ndarray  # uint8 [N, H, W] grey, or [N, H, W, 1 or 3]
    labels: np.ndarray
    class_names: tuple

    def __len__(self):
        return len(self.images)

    def keep(self, rows):
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows])

    def read(self, row):
        return as_rgb(self.images[row]), int(self.labels[row])

    def read_block(self, start, stop):
        """Returns uint8 [n, H, W, 3] as stored."""
        block = self.images[start:stop]
        return as_rgb(block[..., None] if block.ndim == 3 else block)

    def all_labels(self):
        return self.labels


class Failures:
    """The pictures of a source that did not decode: each is counted and told once, another of its label stands in, and too many end the run."""

    def __init__(self, name, size):
        """`name` and `size` (pictures) of the source."""
        self.name, self.size, self.reasons, self.opener = name, size, {}, os.getpid()

    def first_good(self, decode, rows):
        """What `decode(row)` gives for the first of `rows` that it raises no ValueError for."""
        for row in rows:
            try:
                return decode(row)
            except ValueError as error:
                self.count({int(row): str(error)})
        raise ValueError(f"{self.name}: no picture of the label of picture {row} can be read any more")

    def count(self, found):
        """Add {row: reason}, of this process or of a worker, each row once; ValueError when they are too many.

        Only the process that opened the source tells them: its workers hand theirs over.
        """
        with _COUNTING:
            for row, reason in found.items():
                if row not in self.reasons:
                    self.reasons[row] = reason
                    if os.getpid() == self.opener:
                        told = "%s; another picture of its label stands in (%d so far)"
                        logging.getLogger(__name__).warning(told, reason, len(self.reasons))
                if len(self.reasons) > max(1, UNREADABLE_SHARE * self.size):
                    share = f"{len(self.reasons)} of {self.size} pictures, more than {UNREADABLE_SHARE:.0%},"
                    raise ValueError(f"{self.name}: {share} can no longer be read, the last: {reason}")


@dataclasses.dataclass(frozen=True)
class Folder:
    """Picture files, decoded when read."""

    name: str
    paths: list
    labels: np.ndarray
    class_names: tuple
    failures: Failures

    def __len__(self):
        return len(self.paths)

    def keep(self, rows):
        paths = [self.paths[row] for row in rows]
        return dataclasses.replace(self, paths=paths, labels=self.labels[rows], failures=Failures(self.name, len(paths)))

    def read(self, row):
        same = np.flatnonzero(self.labels == self.labels[row])
        others = np.roll(same, -np.searchsorted(same, row, side="right"))[:-1]
        return self.failures.first_good(self._decode, itertools.chain([row], others))

    def all_labels(self):
        return self.labels

    def _decode(self, row):
        return read_image(self.paths[row]), int(self.labels[row])


def open_digits(part):
    """Opens scikit-learn's 1797 grey digits of 8 x 8 pixels: `test` is a fifth of each class, the same in every run, `train` the rest."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("source digits needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 to 0..255
    random = np.random.RandomState(DIGITS_SPLIT)  # its stream is frozen for ever by numpy
    shuffled = [random.permutation(np.flatnonzero(digits.target == digit)) for digit in range(10)]
    parts = [rows[: round(len(rows) / 5)] if part == "test" else rows[round(len(rows) / 5) :] for rows in shuffled]
    rows = np.sort(np.concatenate(parts))
    return Arrays(images[rows], digits.target[rows].astype(np.int32), tuple("0123456789"))


def open_npz(directory, part):
    """Opens DIR/{train,test}.npz: `images` uint8 [N, H, W, 3] or [N, H, W], and where there are any `labels` [N] and `class_names`."""
    path = os.path.join(directory, f"{part}.npz")
    if not os.path.isfile(path):
        ids = sorted(glob.glob(f"{glob.escape(str(directory))}/*[tv][rae]X.npy"))
        way_out = f"write it by numpy.savez({path!r}, images=..., labels=..., class_names=...)"
        raise FileNotFoundError(f"{path} does not exist: " + (f"{ids[0]} holds palette ids, read as npy:{directory}" if ids else way_out))
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("images", "labels", "class_names") if key in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an npz file of plain arrays: {' '.join(str(error).split())}") from error
    images = arrays.get("images", np.zeros(0))
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        ids = "; palette ids are read from .npy files by npy:DIR" if images.dtype.kind in "iu" and images.ndim in (2, 3) else ""
        raise ValueError(f"{path}: `images` must be uint8 [N, H, W, 3] or [N, H, W], not {images.dtype} {list(images.shape)}{ids}")
    labels = arrays.get("labels", np.full(len(images), -1, np.int32))
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: `labels` must be {len(images)} whole numbers, one an image, not {labels.dtype} {list(labels.shape)}")
    names = arrays.get("class_names", np.arange(labels.max(initial=-1) + 1))
    if labels.max(initial=-1) >= len(names):
        raise ValueError(f"{path}: label {labels.max()} has no name, `class_names` has {len(names)}")
    numbered = names.dtype.kind in "iu" and np.array_equal(names, np.arange(len(names)))  # no names, or numbers that name nothing
    return Arrays(images, labels.astype(np.int32), tuple(range(len(names))) if numbered else tuple(str(name) for name in names))


def open_folder(directory, part, seed):
    """Opens the pictures below DIR/train and DIR/test, or else a seeded tenth of those below DIR as `test` and the rest as `train`.

    The first sub-folder on a file's way is its class; with fewer than two of them the images are unlabelled.
    """
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"folder {directory} does not exist")
    parts = _sub_folders(directory)
    if parts in ({"train"}, {"test"}):
        raise ValueError(f"{directory} holds only {parts.pop()}/: give it both train/ and test/, or name the folder of the classes itself")
    divided = {"train", "test"} <= parts
    root = os.path.join(directory, part) if divided else directory
    names = sorted(_sub_folders(os.path.join(directory, "train")) | _sub_folders(os.path.join(directory, "test")) if divided else parts)
    names = names if len(names) > 1 else []
    paths = readable_images(list_files(root), root)
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number.get(os.path.relpath(path, root).split(os.sep)[0], -1) for path in paths], np.int32)
    folder = Folder(directory, paths, labels, tuple(names), Failures(directory, len(paths)))
    if divided:
        return folder
    order, tenth = np.random.RandomState([seed, 1]).permutation(len(paths)), round(len(paths) / 10)
    return folder.keep(np.sort(order[:tenth] if part == "test" else order[tenth:]))


def list_files(directory):
    """Returns the paths of all files below a directory, sorted, hidden ones left out; links to folders are followed, each folder once."""
    found, visited = [], set()
    for folder, folders, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(folder, name) for name in files if not name.startswith(".")]
    return sorted(found)


def readable_images(paths, name):
    """Returns the paths of the good pictures and warns of the others; ValueError with `name` and the first reason when none is good."""
    problems = _check_files(tuple((path, *_size_and_time(path)) for path in paths))
    good = [path for path, problem in zip(paths, problems, strict=True) if problem is None]
    if not good:
        reason = f"none of its {len(paths)} files can be used, the first: {problems[0]}" if paths else "it holds no files"
        raise ValueError(f"{name} has no images: {reason}")
    return good


class _Budget:
    """Lets threads take of an amount as long as there is enough; who wants more than all of it gets it alone."""

    def __init__(self, amount):
        self.amount, self.used, self.changed = amount, 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, share):
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + share <= self.amount)
            self.used += share
        try:
            yield
        finally:
            with self.changed:
                self.used -= share
                self.changed.notify_all()


_PIXELS = _Budget(PIXELS_AT_ONCE)
_COUNTING = threading.Lock()  # not in a source: sources are pickled for Grain's workers


@contextlib.contextmanager
def _opened(file):
    """Opens a picture, refuses decompression bombs, and turns whatever Pillow raises in the block into one line with the name."""
    try:
        if isinstance(file, str | os.PathLike) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("no plain file")  # to open a pipe would wait for ever, and a device may never end
        with Image.open(file) as image:
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:  # Pillow itself only warns, up to twice as many
                raise ValueError(f"{pixels:,} pixels are over Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}")
            if image.format == "EPS":
                raise ValueError("PostScript is a program, which is not run")
            yield image
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError and more
        name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "image")
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "no format that Pillow knows, or a broken header"
        raise ValueError(" ".join(f"{name} is not a readable image: {reason.strip() or type(error).__name__}".split())) from error


def _as_image(picture):
    """One picture of `as_images` as uint8 [H, W, 3]."""
    if isinstance(picture, Image.Image):
        try:
            return _decoded(ImageOps.exif_transpose(picture))
        except Exception as error:  # a file that was opened and not yet read: as in `_opened`
            name = getattr(picture, "filename", "") or "a PIL image"
            raise ValueError(" ".join(f"{name} is not a readable image: {str(error) or type(error).__name__}".split())) from error
    if isinstance(picture, str | os.PathLike) or hasattr(picture, "read"):
        return read_image(picture)
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)) or not array.size:
        several = "several are a list of such, or [N, H, W, C]"
        found = f"{array.dtype} {list(array.shape)}" if isinstance(picture, np.ndarray) or hasattr(picture, "__array__") else type(picture).__name__
        raise ValueError(f"an image is uint8 from 0 to 255, [H, W] or [H, W, C] of C = 1, 3 or 4 channels, and {several}, not {found}")
    if array.shape[2:] == (4,):
        return _decoded(Image.fromarray(np.ascontiguousarray(array)))
    return np.ascontiguousarray(as_rgb(array))


def _decoded(image):
    """Returns a Pillow image of any mode as uint8 [H, W, 3]; a large one is made strip by strip, since each conversion is a copy."""
    width, height = image.size
    if width * height <= STRIP:
        return _converted(image)
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, STRIP // width)
    for top in range(0, height, rows):
        pixels[top : top + rows] = _converted(image.crop((0, top, width, min(top + rows, height))))
    return pixels


def _converted(image):
    """Converts a Pillow image of any mode to uint8 [H, W, 3]."""
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would clip at 255
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        return np.array(as_rgb(((wide + 128) // 257).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _sub_folders(directory):
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


def _size_and_time(path):
    try:
        stat = os.stat(path)
    except OSError:  # a dangling link: opening it says why
        return None, None
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _check_files(files):
    """Returns None or the problem of each (path, bytes, mtime); cached, because train and validation open the same unchanged files."""
    decode = len(files) <= DECODE_AT_MOST
    every = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines where nobody watches
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda file: _problem(file[0], decode), files)
        problems = tuple(tqdm(checks, total=len(files), desc="checking images", unit="file", delay=2, mininterval=every, leave=False))
    bad = [problem for problem in problems if problem is not None]
    if bad and len(bad) < len(files):
        logging.getLogger(__name__).warning("%d of %d files are left out: %s", len(bad), len(files), "; ".join(bad[:3]))
    return problems


def _problem(path, decode):
    """Returns None for a good picture, else one line that says why it is none; without `decode` only the header is looked at."""
    try:
        if decode:
            read_image(path)
        else:
            with _opened(path):
                pass
    except ValueError as error:
        return str(error)
    return None
