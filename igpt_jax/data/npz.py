"""Images and labels in .npz files: which file or array belongs to which split, and which class is which number."""

import contextlib
import glob
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from igpt_jax.data.arrays import Arrays, as_text, take_labels, take_pixels
from igpt_jax.data.labels import are_names, from_texts
from igpt_jax.data.messages import listed, print_once
from igpt_jax.data.splits import SPELLINGS, parts_of, split_of
from igpt_jax.types import PathLike

TEXT = "USO"  # kinds of dtypes
KEYS = {  # accepted names of the arrays, in lower case and without the name of a split
    "images": ("images", "image", "imgs", "x", "data", "pixels"),
    "labels": ("labels", "label", "y", "targets", "target"),
    "class_names": ("class_names", "label_names"),
}


class Training(NamedTuple):
    """The classes of training, which are those of every split."""

    names: tuple[str | int, ...] = ()  # (): none, or training itself is read
    text: bool = False  # whether its labels are text: numbers of another split without `class_names` are names then


def open_npz(place: PathLike, split: str) -> Arrays:
    """Open a split of arrays: DIR/{train,validation,test}.npz, or one file of several splits, with x_train, y_train, x_test, y_test or similar names.

    The documented arrays are `images` uint8 [N, H, W, 3] or [N, H, W] and, optionally, `labels` [N] and `class_names`. Other names (KEYS), layouts,
    dtypes and ranges are accepted if they have a single meaning, and a line says how they were read; else ValueError is raised. A class has the
    number that it has in training.
    """
    files = npz_files(place)
    parts = parts_of(split, files)
    if missing := [part for part in parts if part not in files]:
        raise FileNotFoundError(_missing_message(str(place), missing[0]))
    training = Training(*_read_split(files["train"], "train", Training(), images=False)[2:]) if "train" in files and parts != ("train",) else Training()
    opened = [_read_split(files[part], part, training if part != "train" else Training())[:3] for part in parts]
    if len({pixels.shape[1:] for pixels, _, _ in opened}) > 1:
        shapes = " and ".join(str(list(pixels.shape)) for pixels, _, _ in opened)
        raise ValueError(f"npz:{place} has {shapes} as training and validation images, which must be of one size")
    if len(opened) == 1:
        return Arrays(*opened[0])
    return Arrays(np.concatenate([pixels for pixels, _, _ in opened]), np.concatenate([labels for _, labels, _ in opened]), opened[0][2])


def npz_files(place: PathLike) -> dict[str, str]:
    """Return the files {split: path} of arrays, the same path for all splits of one file; raise ValueError if two files hold the same split."""
    place = str(place)
    if os.path.isfile(place):
        with _open_archive(place) as archive:
            return {part: place for part in SPELLINGS if any(_role(key) == ("images", part) for key in archive.files)}
    paths = sorted(glob.glob(f"{glob.escape(place)}/*.npz"))
    files: dict[str, str] = {}
    for path in paths:
        part = _split_of_file(path)
        if part in files:
            raise ValueError(f"{files[part]} and {path} are both the {part} split: remove one")
        files |= {part: path} if part else {}
    return files if files or len(paths) != 1 else npz_files(paths[0])


def _split_of_file(path: str) -> str | None:
    return split_of(os.path.basename(path)[: -len(".npz")])


def _missing_message(place: str, part: str) -> str:
    """Return why a split does not exist at a place, and what to do."""
    if place.casefold().endswith(".npz") and not os.path.exists(place):
        return f"{place} does not exist: write it by numpy.savez({place!r}, x_train=..., y_train=..., x_test=..., y_test=...)"
    paths = [place] if os.path.isfile(place) else sorted(glob.glob(f"{glob.escape(place)}/*.npz"))
    one_of_several = len(paths) == 1 and _split_of_file(paths[0]) is not None  # a file like train.npz
    if os.path.isfile(place) or (len(paths) == 1 and not one_of_several):
        way_out = f"; a file of one split is named by its folder: npz:{os.path.dirname(place) or '.'}" if one_of_several else ""
        with _open_archive(paths[0]) as archive:
            return f"{paths[0]} has no {part} images, as `x_{part}` or `{part}_images`: its arrays are {listed(archive.files)}{way_out}"
    path, ids = os.path.join(place, f"{part}.npz"), sorted(glob.glob(f"{glob.escape(place)}/*[tv][rae]X.npy"))
    way_out = f"write it by numpy.savez({path!r}, images=..., labels=..., class_names=...)"
    return f"{path} does not exist: " + (f"{ids[0]} holds palette ids, read as npy:{place}" if ids else way_out)


@contextlib.contextmanager
def _open_archive(path: str) -> Iterator[Any]:
    """Open an archive; whatever numpy and zipfile raise in the block becomes a ValueError of one line."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("it is a single array")
            yield archive
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an npz file of plain arrays: {' '.join(str(error).split())}") from error


def _role(key: str) -> tuple[str | None, str | None]:
    """Return what the name of an array means: (a role of KEYS or None, a split or None)."""
    words = [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key)]
    split_words = {"tr": "train", "va": "validation", "te": "test"} | {word: split for split, spelled in SPELLINGS.items() for word in spelled}
    rest = "_".join(word for word in words if word not in split_words)
    splits = {split_words[word] for word in words if word in split_words}
    role = next((role for role, names in KEYS.items() if rest in names), None)
    return role if len(splits) < 2 else None, splits.pop() if len(splits) == 1 else None


def _choose_arrays(path: str, keys: Sequence[str], part: str) -> tuple[dict[str, str], list[str]]:
    """Return ({role: key} of a split in an archive, the keys that are not read); ValueError with the keys if the choice is not clear."""
    meanings = {key: _role(key) for key in keys}
    divided = any(role == "images" and split for role, split in meanings.values())  # into splits, by the names of its arrays
    chosen: dict[str, str] = {}
    for role in KEYS:
        accepted: list[tuple[str | None, str | None]] = [(role, part)]
        if not divided or role == "class_names":
            accepted.append((role, None))
        matching = [key for key, meaning in meanings.items() if meaning in accepted]
        matching = [role] if role in matching else matching
        if len(matching) > 1:
            raise ValueError(f"{path} holds {listed(matching)}, each of which may be the {role}: name the right one `{role}`")
        if matching:
            chosen[role] = matching[0]
    if "images" not in chosen:
        raise ValueError(f"{path} has no `images`, uint8 [N, H, W, 3] or [N, H, W]: its arrays are {listed(keys) or 'none'}")
    return chosen, [key for key, (_, split) in meanings.items() if key not in chosen.values() and split in (None, part)]


def _read_split(path: str, part: str, training: Training, images: bool = True) -> tuple[Any, np.ndarray, tuple[str | int, ...], bool]:
    """Return (pixels uint8 [N, H, W] or [N, H, W, 1 or 3], None without `images`; labels int32 [N]; class names; whether the labels are text).

    A line says what is not as documented. The classes of `training` become those of this split.
    """
    with _open_archive(path) as archive:
        keys = archive.files
    chosen, unread = _choose_arrays(path, keys, part)
    with _open_archive(path) as archive:
        arrays = {role: archive[key] for role, key in chosen.items() if images or role != "images"}
    where = {role: f"{path}: `{chosen.get(role, role)}`" for role in KEYS}
    pixels, pixel_note = take_pixels(arrays["images"], where["images"]) if images else (None, "")
    labels, names, label_note = _take_classes(arrays, None if pixels is None else len(pixels), where, training)
    notes = [f"{role} are `{key}`" for role, key in chosen.items() if key != role]
    notes += [f"not read: {listed(unread)}"] * bool(unread) + [note for note in (pixel_note, label_note) if note]
    if images and notes:
        print_once(f"{path}, {part}: {'; '.join(notes)}")
    return pixels, labels, names, "labels" in arrays and arrays["labels"].dtype.kind in TEXT


def _take_classes(
    arrays: dict[str, np.ndarray], count: int | None, where: dict[str, str], training: Training
) -> tuple[np.ndarray, tuple[str | int, ...], str]:
    """Return (labels int32 [N], class names, note as of `take_labels`) of the arrays of a split; with `training`, the numbers are those of its classes."""
    names, named = _stored_names(arrays.get("class_names"))
    if "labels" not in arrays:
        return np.full(count or 0, -1, np.int32), training.names or names, ""
    stored = arrays["labels"]
    labels, classes, note = take_labels(stored, len(stored) if count is None and stored.ndim else count, where["labels"])
    if labels.dtype.kind == "U" and not names and training.names and not are_names(training.names):
        numbers = from_texts(labels.tolist(), training.names, where["labels"])  # "3" is 3 where the classes of training are numbers
        if not any(isinstance(number, str) for number in numbers):
            labels = np.array([-1 if number is None else number for number in numbers], np.int64)
            note = "; ".join([*([note] if note else []), "text that holds numbers is read as numbers, as training has"])
    if labels.dtype.kind == "U":
        names, labels = _number_text(labels, names, where["labels"])
        named = True
    elif "class_names" in arrays and classes > len(names):
        raise ValueError(f"{where['labels']}: label {classes - 1} has no name, `class_names` has {len(names)}")
    if training.text and not named:
        names, named = tuple(map(str, range(classes))), True
    names = names or tuple(range(classes))
    if training.names:
        as_stored, labels = labels, _number_as_training(labels, names, training.names, named, where["labels"])
        if stored.dtype.kind not in TEXT and not np.array_equal(labels, as_stored):  # text has no numbers
            order = listed([f"{number} {name}" for number, name in enumerate(training.names)])
            what = "`class_names` are in another order than in training" if "class_names" in arrays else "the numbers are names of classes, as in training"
            note = "; ".join([*([note] if note else []), f"{what}, whose numbers the labels get: {order}"])
    return labels.astype(np.int32), training.names or names, note


def _stored_names(stored: np.ndarray | None) -> tuple[tuple[str | int, ...], bool]:
    """Return (class names, whether they name anything): the numbers 0, 1, 2, ... as names do not."""
    if stored is None:
        return (), False
    stored = stored.ravel()
    if stored.dtype.kind in "iu" and np.array_equal(stored, np.arange(len(stored))):
        return tuple(range(len(stored))), False
    return tuple(as_text(name) for name in stored), True


def _number_text(labels: np.ndarray, names: tuple[str | int, ...], where: str) -> tuple[tuple[str | int, ...], np.ndarray]:
    """Return (class names, labels int64 [N]) of labels that are text; without `names` the classes are the sorted texts."""
    texts, places = np.unique(labels, return_inverse=True)
    names = names or tuple(texts.tolist())
    if unnamed := [text for text in texts.tolist() if names.count(text) != 1]:
        raise ValueError(f"{where} holds {listed(unnamed)}, which `class_names` lacks or has twice: {listed(names)}")
    return names, np.array([names.index(text) for text in texts.tolist()], np.int64)[places.ravel()]


def _number_as_training(labels: np.ndarray, names: tuple[str | int, ...], training: tuple[str | int, ...], by_name: bool, where: str) -> np.ndarray:
    """Return the labels with the numbers that their classes have in training; ValueError if training lacks a class that has images."""
    if by_name and names != training:
        used = [names[label] for label in np.unique(labels).tolist() if label >= 0]
        if unknown := [name for name in used if training.count(name) != 1 or names.count(name) != 1]:
            raise ValueError(f"{where} holds {listed(unknown)}, which training lacks or has twice: {listed(training)}")
        number = {name: i for i, name in enumerate(training)}
        return np.array([*(number.get(name, -1) for name in names), -1])[labels]  # label -1 takes the last entry, and stays -1
    if labels.max(initial=-1) >= len(training):
        raise ValueError(f"{where} goes to {labels.max()}, training has the {len(training)} classes {listed(training)}: store `class_names` in both")
    return labels
