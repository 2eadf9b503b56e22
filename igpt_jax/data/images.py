"""Image files and arrays: reading, checking, cropping, resizing, and the sources made of them. The only file that knows Pillow.

An image is uint8 [H, W, 3] everywhere. Resizing is Pillow's BILINEAR, whose support grows with the factor when it shrinks, so it is
antialiased: the filter of Hugging Face's image processor. The same picture gives the same codes there and here under the view `squash`, and
under `center_square` where the picture is square.
A source has `len`, `class_names` (str, or the classes' numbers where they have no names), `read(row)` -> (image, label), `all_labels()` -> int32 [N]
(-1 unlabelled), and `keep(rows)` -> a source.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import glob
import hashlib
import itertools
import logging
import os
import re
import stat
import struct
import sys
import threading
import unicodedata
import warnings
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

TEST_SHARE = 0.1  # of the pictures of an undivided folder
CROP = 224  # side of ImageNet's crop in pixels (paper 2.1)
SHORTER_SIDES = (256, 384)  # training resizes the shorter side to a random length in this range, ends included (paper 2.1)
DECODE_AT_MOST = 20_000  # a folder of more files than this has only its headers checked: decoding ImageNet takes hours of a core
UNREADABLE_SHARE = 0.01  # pictures that may fail after their source was opened; more is a broken disk
THREADS = 16  # readers at once; Pillow lets go of the interpreter while it decodes
PIXELS_AT_ONCE = 90_000_000  # decoded at once by all threads, some 8 bytes each; a picture as large as Pillow allows is decoded alone
STRIP = 4_000_000  # pixels converted at once
SPELLINGS = {"train": ("train", "training"), "validation": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
SPLIT_LIKE = {*itertools.chain(*SPELLINGS.values()), "trainset", "trainval", "valset", "devset", "testset", "eval", "evaluation", "holdout"}
LAYOUTS = "known are DIR/CLASS/..., pictures alone in DIR, and DIR/train with DIR/val and DIR/test where there are any"
LEFT_BEHIND = {  # folders and files of archives, systems and disks, in lower case; names that begin with a dot are left out everywhere
    *("__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information", "network trash folder", "temporary items"),
    *("@eadir", "#recycle", "#snapshot", "__pycache__", "thumbs", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}
NAMED_CLASSES = 8  # classes that the line of counts names; of more it gives the number, the smallest and the largest
KEYS = {  # what the arrays of an .npz file may be called, in lower case and without the name of a split
    "images": ("images", "image", "imgs", "x", "data", "pixels"),
    "labels": ("labels", "label", "y", "targets", "target"),
    "class_names": ("class_names", "label_names"),
}
ROWS_AT_ONCE = 4096  # of one-hot labels, 16 MB for ImageNet; of images to be converted
DIGITS_SPLIT = 1797  # seed of the digits' test set: a constant, so that every run of every recipe is tested on the same images

warnings.filterwarnings("ignore", module="PIL")  # one a file, of a broken EXIF and the like; what cannot be read is an error anyway


def read_image(file):
    """Reads one picture, a path or an open binary file, as uint8 [H, W, 3]: upright by its EXIF, transparency over white.

    Raises ValueError, one line with the name and the reason, for whatever cannot be read.
    """
    file = os.path.expanduser(file) if isinstance(file, str | os.PathLike) else file
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
    if hasattr(pictures, "__array__") or isinstance(pictures, memoryview):
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


def evaluation_view(image, view, size):
    """Returns an image as evaluation sees it, uint8 [size, size, 3]; `view` is one of VIEWS."""
    return VIEWS[view](image, size)


def given_view(image, view, size):
    """Returns a given picture as evaluation by this view sees it, uint8 [size, size, 3]; one of that size already was seen, and is taken as it is."""
    return image if image.shape[:2] == (size, size) else evaluation_view(image, view, size)


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


VIEWS = {"center_square": center_square, "imagenet": imagenet_center, "squash": resize}  # config.data.view -> (image, size)


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
    names: list  # of the pictures below their folder, with / and in NFC: what a draw depends on
    labels: np.ndarray
    class_names: tuple
    failures: Failures

    def __len__(self):
        return len(self.paths)

    def keep(self, rows):
        paths, names = [self.paths[row] for row in rows], [self.names[row] for row in rows]
        return dataclasses.replace(self, paths=paths, names=names, labels=self.labels[rows], failures=Failures(self.name, len(paths)))

    def read(self, row):
        return self.failures.first_good(self._decode, itertools.chain([row], rows_of_its_label(row, len(self), self.labels.__getitem__)))

    def all_labels(self):
        return self.labels

    def draws(self, seed, role):
        """float64 [N] in [0, 1), of each picture by its name alone: other pictures may come and go, a picture drawn stays drawn."""
        digests = (hashlib.sha256(f"{seed}/{role}/{name}".encode(errors="surrogateescape")).digest() for name in self.names)
        return np.fromiter((int.from_bytes(digest[:6], "big") / 2**48 for digest in digests), np.float64, len(self.names))

    def _decode(self, row):
        return read_image(self.paths[row]), int(self.labels[row])


def rows_of_its_label(row, count, label):
    """Yields the other rows of the label of `row`, the next first, round the end; looked for one by one, as they are asked for."""
    return (other for other in itertools.chain(range(row + 1, count), range(row)) if label(other) == label(row))


@functools.cache
def say(line):
    """Print a line to stderr once in this process: a set is opened for each of its splits."""
    print(line, file=sys.stderr, flush=True)


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


def open_npz(place, split):
    """Opens a split of arrays: DIR/{train,validation,test}.npz, or one file of several splits, with x_train, y_train, x_test, y_test or such.

    Documented are `images` uint8 [N, H, W, 3] or [N, H, W] and, where there are any, `labels` [N] and `class_names`. Other names (KEYS), layouts,
    dtypes and ranges are taken where they have one meaning, which a line says, else ValueError. A class has the number that it has in training.
    """
    files = npz_files(place)
    parts = ("train", "validation") if split == "all_train" and "validation" in files else ("train" if split == "all_train" else split,)
    if missing := [part for part in parts if part not in files]:
        raise FileNotFoundError(_no_npz(str(place), missing[0]))
    training = _read_npz(files["train"], "train", images=False)[2] if "train" in files and parts != ("train",) else ()
    opened = [_read_npz(files[part], part, training if part != "train" else ()) for part in parts]
    if len({pixels.shape[1:] for pixels, _, _ in opened}) > 1:
        shapes = " and ".join(str(list(pixels.shape)) for pixels, _, _ in opened)
        raise ValueError(f"npz:{place} has {shapes} as training and validation images, which must be of one size")
    return Arrays(*(np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in list(zip(*opened, strict=True))[:2]), opened[0][2])


def npz_files(place):
    """The files {split: path} of arrays, one path for all where one file holds several splits; ValueError where two hold the same."""
    place, found = str(place), {}
    if os.path.isfile(place):
        with _opened_npz(place) as archive:
            return {part: place for part in SPELLINGS if any(_role(key) == ("images", part) for key in archive.files)}
    paths = sorted(glob.glob(f"{glob.escape(place)}/*.npz"))
    for path in paths:
        part = _split_of(os.path.basename(path)[: -len(".npz")])
        if part in found:
            raise ValueError(f"{found[part]} and {path} are both the {part} split: remove one")
        found |= {part: path} if part else {}
    return found if found or len(paths) != 1 else npz_files(paths[0])


def _no_npz(place, part):
    if place.casefold().endswith(".npz") and not os.path.exists(place):
        return f"{place} does not exist"
    paths = [place] if os.path.isfile(place) else sorted(glob.glob(f"{glob.escape(place)}/*.npz"))
    one_of_several = len(paths) == 1 and _split_of(os.path.basename(paths[0])[: -len(".npz")]) is not None  # train.npz, say
    if os.path.isfile(place) or (len(paths) == 1 and not one_of_several):
        way_out = f"; a file of one split is named by its folder: npz:{os.path.dirname(place) or '.'}" if one_of_several else ""
        with _opened_npz(paths[0]) as archive:
            return f"{paths[0]} has no {part} images, as `x_{part}` or `{part}_images`: its arrays are {_listed(archive.files)}{way_out}"
    path, ids = os.path.join(place, f"{part}.npz"), sorted(glob.glob(f"{glob.escape(place)}/*[tv][rae]X.npy"))
    way_out = f"write it by numpy.savez({path!r}, images=..., labels=..., class_names=...)"
    return f"{path} does not exist: " + (f"{ids[0]} holds palette ids, read as npy:{place}" if ids else way_out)


@contextlib.contextmanager
def _opened_npz(path):
    """The archive; ValueError in one line for whatever numpy and zipfile raise in the block."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("it is a single array")
            yield archive
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an npz file of plain arrays: {' '.join(str(error).split())}") from error


def _role(key):
    """What the name of an array says: (a role of KEYS or None, a split or None)."""
    words = [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key)]
    splits = {"tr": "train", "va": "validation", "te": "test"} | {word: split for split, spelled in SPELLINGS.items() for word in spelled}
    rest = "_".join(word for word in words if word not in splits)
    found = {splits[word] for word in words if word in splits}
    return next((role for role, names in KEYS.items() if rest in names), None) if len(found) < 2 else None, found.pop() if len(found) == 1 else None


def _choose_arrays(path, keys, part):
    """The keys {role: key} of a split in an archive; ValueError naming the keys where it is not clear which."""
    roles = {key: _role(key) for key in keys}
    divided = any(role == "images" and split for role, split in roles.values())  # by the names of its arrays
    chosen = {}
    for role in KEYS:
        found = [key for key, said in roles.items() if said in ((role, part), *(() if divided and role != "class_names" else ((role, None),)))]
        found = [role] if role in found else found
        if len(found) > 1:
            raise ValueError(f"{path} holds {_listed(found)}, each of which may be the {role}: name the right one `{role}`")
        chosen |= dict(zip([role], found, strict=False))
    if "images" not in chosen:
        raise ValueError(f"{path} has no `images`, uint8 [N, H, W, 3] or [N, H, W]: its arrays are {_listed(keys) or 'none'}")
    return chosen, [key for key, (_, split) in roles.items() if key not in chosen.values() and split in (None, part)]


def _read_npz(path, part, training=(), images=True):
    """(pixels uint8 [N, H, W] or [N, H, W, 1 or 3], None without `images`; labels int32 [N]; class names) of a split; says what is not as documented.

    `training`: the class names in training, which become those of this split.
    """
    with _opened_npz(path) as archive:
        keys = archive.files
    chosen, rest = _choose_arrays(path, keys, part)
    with _opened_npz(path) as archive:
        arrays = {role: archive[key] for role, key in chosen.items() if images or role != "images"}
    where = {role: f"{path}: `{chosen.get(role, role)}`" for role in KEYS}
    told = [f"{role} are `{key}`" for role, key in chosen.items() if key != role]
    pixels, how = take_pixels(arrays["images"], where["images"]) if images else (None, "")
    labels, names, how_labelled = _take_classes(arrays, len(pixels) if images else None, where, training)
    told += [f"not read: {_listed(rest)}"] * bool(rest) + [how] * bool(how) + [how_labelled] * bool(how_labelled)
    if images and told:
        say(f"{path}, {part}: {'; '.join(told)}")
    return pixels, labels, names


def _take_classes(arrays, count, where, training):
    """(labels int32 [N], class names, how the labels were taken) of the arrays of a split; by number or by name those of `training`, if given."""
    stored = arrays["class_names"].ravel() if "class_names" in arrays else None
    numbered = stored is not None and stored.dtype.kind in "iu" and np.array_equal(stored, np.arange(len(stored)))  # numbers that name nothing
    names = None if stored is None else tuple(range(len(stored))) if numbered else tuple(_text(name) for name in stored)
    if "labels" not in arrays:
        return np.full(count or 0, -1, np.int32), training or names or (), ""
    stored = arrays["labels"]
    labels, classes, how = take_labels(stored, len(stored) if count is None and stored.ndim else count, where["labels"])
    by_name = labels.dtype.kind == "U" or not (names is None or numbered)
    if labels.dtype.kind == "U":
        found, places = np.unique(labels, return_inverse=True)
        names = names or tuple(found.tolist())
        if unnamed := [name for name in found.tolist() if names.count(name) != 1]:
            raise ValueError(f"{where['labels']} holds {_listed(unnamed)}, which `class_names` lacks or has twice: {_listed(names)}")
        labels = np.array([names.index(name) for name in found.tolist()], np.int64)[places.ravel()]
    elif names is not None and classes > len(names):
        raise ValueError(f"{where['labels']}: label {classes - 1} has no name, `class_names` has {len(names)}")
    names = names or tuple(range(classes))
    if training and by_name and names != training:
        used = [names[label] for label in np.unique(labels).tolist() if label >= 0]
        if unknown := [name for name in used if training.count(name) != 1 or names.count(name) != 1]:
            raise ValueError(f"{where['labels']} holds {_listed(unknown)}, which training lacks or has twice: {_listed(training)}")
        number = {name: i for i, name in enumerate(training)}
        labels = np.array([*(number.get(name, -1) for name in names), -1])[labels]  # -1 is the last and stays
    elif training and labels.max(initial=-1) >= len(training):
        raise ValueError(f"{where['labels']} goes to {labels.max()}, training has the {len(training)} classes {_listed(training)}: store `class_names` in both")
    return labels.astype(np.int32), training or names, how


def take_labels(stored, count, where):
    """Returns (int64 [N] from -1: none, or text [N]; the number of classes they are of, 0 for text; how they were taken, "" if as documented).

    Taken are whole numbers of any dtype, text, one-hot [N, C] and a column [N, 1] of labels; ValueError for the rest.
    """
    shape = list(stored.shape)
    column = stored[:, 0] if stored.ndim == 2 and shape[1] == 1 else stored
    if column.ndim not in (1, 2) or len(column) != count or column.dtype.kind not in ("biufUS" if column.ndim == 1 else "biuf"):
        expected = f"must hold the labels of the {count} images beside it, one-hot [N, C] or [N]"
        raise ValueError(f"{where} {expected}, not {stored.dtype} {shape}")
    if column.ndim == 2:
        return _one_hot(column, where), shape[1], f"labels are one-hot {shape}"
    how = "" if column.dtype.kind in "iu" and column is stored else f"labels are {stored.dtype} {shape}"
    if column.dtype.kind in "US":
        return np.array([_text(label) for label in column.tolist()], str), 0, how
    low, high = (column.min(), column.max()) if len(column) else (0, 0)
    if not (-1 <= low and high < 2**31) or (column.dtype.kind == "f" and not np.array_equal(column, np.floor(column))):
        raise ValueError(f"{where} must hold labels from 0 on (-1: none), not {stored.dtype} from {low} to {high}")
    return column.astype(np.int64), int(high) + 1 if len(column) else 0, how


def _one_hot(stored, where):
    """int64 [N] of a one-hot array, which is read through."""
    labels = np.empty(len(stored), np.int64)
    every = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines where nobody watches
    for start in tqdm(range(0, len(stored), ROWS_AT_ONCE), desc="reading labels", delay=2, mininterval=every, leave=False):
        block = stored[start : start + ROWS_AT_ONCE]
        bad = np.flatnonzero(((block != 0).sum(axis=1) != 1) | ((block == 1).sum(axis=1) != 1))
        if len(bad):
            raise ValueError(f"{where} must be one-hot, a single 1 in each row of zeros, which row {start + bad[0]} is not")
        labels[start : start + ROWS_AT_ONCE] = block.argmax(axis=1)
    return labels


def take_pixels(stored, where):
    """Returns (uint8 [N, H, W] or [N, H, W, 1 or 3], how they were taken, "" if as documented); ValueError for what has no one meaning.

    Taken are uint8, whole numbers 0..255 with channels, floats 0..1 or 0..255, booleans; channels last or first; transparency, over white.
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
    alpha = axis is not None and shape[axis] == 4
    if stored.dtype == np.uint8 and axis != 1 and not alpha:
        return pixels, ""
    taken = np.empty((*pixels.shape[:3], *(3 if alpha else count for count in pixels.shape[3:])), np.uint8)
    for start in range(0, len(pixels), ROWS_AT_ONCE):
        block = np.rint(pixels[start : start + ROWS_AT_ONCE].astype(np.float32) * scale)
        if alpha:
            block = np.rint((block[..., :3] * block[..., 3:] + 255 * (255 - block[..., 3:])) / 255)
        taken[start : start + ROWS_AT_ONCE] = block
    how = f"images are {stored.dtype} {shape}" + f" from 0 to {1 if scale == 255 else 255}" * (kind != "b") + ", channels first" * (axis == 1)
    return taken, how + ", over white" * alpha


def _channel_axis(shape, where, dtype):
    """The axis of the channels of [N, H, W, 1, 3 or 4] or [N, 1, 3 or 4, H, W], None of [N, H, W]; ValueError where both may be meant, or none."""
    said = f"{where} must be [N, H, W, 3] or [N, H, W], not {dtype} {shape}"
    if 0 in shape[1:]:
        raise ValueError(f"{said}: images without pixels")
    if len(shape) == 3:
        if shape[2] in (1, 3, 4) and shape[1] != shape[2]:
            raise ValueError(f"{said}: {shape[0]} grey images of {shape[1]} x {shape[2]} pixels, or a single picture? Give it as [N, H, W, C]")
        return None
    if len(shape) != 4:
        raise ValueError(said + ("; palette ids are read from .npy files by npy:DIR" if len(shape) == 2 and dtype.kind in "iu" else ""))
    axes = [axis for axis in (1, 3) if shape[axis] in (1, 3, 4)]
    square = [axis for axis in axes if shape[2] == shape[4 - axis]]
    if len(axes) == 1 or len(square) == 1:
        return axes[0] if len(axes) == 1 else square[0]
    raise ValueError(f"{said}: " + (f"is the axis of {shape[1]} or that of {shape[3]} the channels?" if axes else "no axis of 1, 3 or 4 channels"))


def open_folder(directory, split, seed=0, split_by="name"):
    """Opens the pictures of a split of a folder: those below DIR/train, DIR/val, DIR/test (SPELLINGS), or of an undivided DIR a tenth as `test`.

    A class is a folder directly below DIR/train, or an undivided DIR, that holds a readable picture at any depth; with fewer than two of them the
    images are unlabelled, as those beside class folders are. An undivided folder's test pictures are drawn by `seed` and their names, or, `split_by`
    position, by their place in the list of today. ValueError where it is not clear what is a split and what a class.
    """
    directory = str(directory)
    roots = folder_splits(directory)
    parts = ("train", "validation") if split == "all_train" and "validation" in roots else ("train" if split == "all_train" else split,)
    if roots and parts[-1] not in roots:
        there = ", ".join(f"{os.path.basename(root)}/" for root in roots.values())
        raise ValueError(f"{directory} has no {split} pictures, only {there}: give another split, or lay them into {directory}/{parts[-1]}")
    names = _class_names(directory, roots)
    number = {name: i for i, name in enumerate(names)}
    paths, below = [], []
    for root in [roots[part] for part in parts] if roots else [directory]:
        good = readable_images(list_files(root), root)
        paths += good
        below += [unicodedata.normalize("NFC", os.path.relpath(path, root).replace(os.sep, "/")) for path in good]
    labels = np.array([number.get(name.partition("/")[0], -1) if "/" in name else -1 for name in below], np.int32)
    folder = Folder(directory, paths, below, labels, names, Failures(directory, len(paths)))
    if roots:
        return folder
    if split_by == "name":
        test = folder.draws(seed, "test") < TEST_SHARE
    else:
        test = np.isin(np.arange(len(paths)), np.random.RandomState([seed, 1]).permutation(len(paths))[: round(len(paths) * TEST_SHARE)])
    return folder.keep(np.flatnonzero(test if split == "test" else ~test))


def folder_splits(directory):
    """The split folders {split: path} of a folder, {} for an undivided one; ValueError where names contradict each other, or look like splits unknown."""
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"folder {directory} " + ("is a file: name the folder it lies in" if os.path.exists(directory) else "does not exist"))
    folders, found = _sub_folders(directory), {}
    for name in folders:
        if split := _split_of(name):
            if split in found:
                raise ValueError(f"{directory} holds {found[split]}/ and {name}/, both {split}: leave one of them; {LAYOUTS}")
            found[split] = name
    others = [name for name in folders if name not in found.values()]
    if found and "train" not in found:
        raise ValueError(f"{directory} holds {_listed(found.values())} and no train/: {LAYOUTS}")
    for name in found.values():
        inside = _sub_folders(os.path.join(directory, name))
        if len(inside) == 1 and _split_of(inside[0]):
            raise ValueError(f"{directory}/{name} holds {inside[0]}/ alone: move what is in it one up; {LAYOUTS}")
    same = [pair for pair in itertools.combinations(found.values(), 2) if len({os.path.realpath(os.path.join(directory, name)) for name in pair}) == 1]
    if same:
        raise ValueError(f"{directory}: {same[0][0]}/ and {same[0][1]}/ are one folder, of which one is a link to the other")
    asked = others if found else _like_splits(others)
    if unclear := [name for name in asked if _holds_picture(os.path.join(directory, name))]:
        beside = f"{_listed(found.values())} and beside it {_listed(unclear)}" if found else f"{_listed(unclear)}"
        way_out = "lay classes into train/, and other pictures elsewhere" if found else "rename splits, and lay classes of such names into train/"
        raise ValueError(f"{directory} holds {beside}: are these splits, or classes? {way_out}; {LAYOUTS}")
    return {split: os.path.join(directory, found[split]) for split in SPELLINGS if split in found}


def _split_of(name):
    """The split that a folder, file or word names, or None."""
    return next((split for split, spelled in SPELLINGS.items() if unicodedata.normalize("NFKC", name).strip().casefold() in spelled), None)


def _like_splits(names):
    """Those that begin with a split's name, as train2 or test-A, or, where several do, end with one, as images_train."""
    words = {name: [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)] for name in names}
    first, last = ([name for name in names if words[name] and words[name][place] in SPLIT_LIKE] for place in (0, -1))
    return first or (last if len(last) > 1 else [])


def _class_names(directory, roots):
    """The names of the classes in NFC, sorted; () for fewer than two. ValueError where other splits have classes that training lacks."""
    found = {}
    for split, root in (roots or {"train": directory}).items():
        folders = _sub_folders(root)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            holding = list(pool.map(lambda name, root=root: _holds_picture(os.path.join(root, name)), folders))
        classes = [unicodedata.normalize("NFC", name) for name, holds in zip(folders, holding, strict=True) if holds]
        found[split] = sorted(set(classes))
        twice = sorted({name for name in classes if classes.count(name) > 1})
        left_out = [name for name, holds in zip(folders, holding, strict=True) if not holds]
        if twice or left_out:
            told = f"{_listed(twice)} are two folders of the same name in two Unicode forms, taken as one class" if twice else ""
            say(f"{root}: " + "; ".join(filter(None, (told, f"no class, since without pictures: {_listed(left_out)}" if left_out else ""))))
    names = tuple(found["train"]) if len(found["train"]) > 1 else ()
    for split, classes in found.items():
        if unknown := [name for name in classes if name not in names] if names or len(classes) > 1 else []:
            known = f"the classes {_listed(names)}" if names else "no classes"
            raise ValueError(f"{roots[split]} holds {_listed(unknown)}, where training has {known}: move them, or lay unlabelled pictures directly into it")
    return names


def _holds_picture(directory):
    """Whether a readable picture lies in a folder, at any depth."""
    return any(_problem_of_unchanged(path, *_size_and_time(path)) is None for path in list_files(directory))


@functools.lru_cache(maxsize=1 << 16)
def _problem_of_unchanged(path, _size, _time):
    return _problem(path, decode=True)


def counted(labels, class_names):
    """The number of pictures, and of each class, in a line's words."""
    if not class_names:
        return f"{len(labels):,} pictures, unlabelled"
    counts, rest = np.bincount(labels[labels >= 0], minlength=len(class_names)), int((labels < 0).sum())
    each = ", ".join(f"{count:,} {name}" for count, name in zip(counts, class_names, strict=True))
    if len(class_names) > NAMED_CLASSES:
        least, most = np.argmin(counts), np.argmax(counts)
        each = f"{len(class_names):,} classes of {counts[least]:,} ({class_names[least]}) to {counts[most]:,} ({class_names[most]})"
    return f"{len(labels):,} pictures: {each}" + (f", {rest:,} in no class" if rest else "")


def _text(value):
    return unicodedata.normalize("NFC", value.decode() if isinstance(value, bytes) else str(value))


def _listed(names, most=8):
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def list_files(directory):
    """Returns the paths of all files below a directory, sorted, hidden ones left out; links to folders are followed, each folder once."""
    found, visited = [], set()
    for folder, folders, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _left_behind(name))
        inner = {_split_of(name): name for name in folders}
        inner.pop(None, None)
        if len(inner) > 1:
            raise ValueError(f"{folder} holds {_listed(inner.values())}, splits below a folder of classes: name it itself, or move them up; {LAYOUTS}")
        found += [os.path.join(folder, name) for name in files if not _left_behind(name)]
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


def _left_behind(name):
    return name.startswith(".") or name.casefold() in LEFT_BEHIND or bool(re.fullmatch(r"found\.\d{3}", name.casefold()))


def _sub_folders(directory):
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _left_behind(entry.name))


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
