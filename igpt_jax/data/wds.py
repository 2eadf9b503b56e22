"""WebDataset: pictures and their labels as members of tar files. The files are indexed once, when they are opened, and then read at random.

    wds:DIR        the .tar files of a folder and of the folders in it
    wds:PATTERN    the files of a pattern in braces, in its order: wds:DIR/train-{0000..0146}.tar, or one file

The members of a sample have the same name up to the first dot: 0017.jpg, 0017.cls. The picture is .jpg, .jpeg, .png, .webp or another of PICTURES. The label is
.cls, a number from 0 on or a name; without such members the value of one of KEYS in .json; without those .txt, if it holds names of classes: where more than
half of the texts differ, they are captions, and the pictures are unlabelled. `classnames.txt` beside the files, or beside the folder of a split, may name the
classes of the numbers, a name a line. A file belongs to the split that a word of its name, or the folder it is
in, spells like a folder's: imagenet-train-0003.tar, val/0000.tar. Files without such words are all training.
"""

import dataclasses
import functools
import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from igpt_jax.data.failures import Failures
from igpt_jax.data.images import Picture
from igpt_jax.data.labels import ClassNames, from_texts, number_labels
from igpt_jax.data.messages import listed, print_once, with_progress
from igpt_jax.data.pictures import Pictures
from igpt_jax.data.splits import SPELLINGS, parts_of, split_of
from igpt_jax.extras import install

EXPECTED = "give a folder of .tar files, one file, or a pattern as wds:DIR/train-{0000..0146}.tar"
PICTURES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "bmp", "gif", "tif", "tiff")
LABELS = ("cls", "json", "txt")
KEYS = ("label", "cls", "class", "class_name", "target")  # of a .json
BLOCK = 512  # bytes of a tar file's blocks
Member: TypeAlias = tuple[str, int, int]  # name, offset and size in bytes
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # (key, suffix) of a member: webdataset's rule


@dataclasses.dataclass(frozen=True)
class Index:
    """The samples of a tar file that have a picture."""

    path: str
    names: np.ndarray  # bytes [N], names of the pictures' members
    pictures: np.ndarray  # int64 [N, 2], offset and size in bytes
    labels: dict[str, np.ndarray]  # of LABELS: int64 [N, 2], size -1 where a sample has none
    without: int  # samples without a picture


@dataclasses.dataclass(frozen=True)
class Shards:
    """The pictures of several tar files that follow each other, by number."""

    paths: tuple[str, ...]
    file_of: np.ndarray  # int32 [N], which of the paths
    names: np.ndarray
    places: np.ndarray  # int64 [N, 2], offset and size in bytes

    def __getitem__(self, number: int) -> Picture:
        path, (offset, size) = self.paths[self.file_of[number]], self.places[number].tolist()
        with open(path, "rb") as file:
            file.seek(offset)
            picture = io.BytesIO(file.read(size))
        picture.name = f"{path}: {self.names[number].decode(errors='replace')}"
        return picture


def open_wds(place: str, split: str) -> Pictures:
    """Open the samples of a split; a class has the number of its name in training. ValueError in one line for files that are no whole tar files."""
    name, files = f"wds:{place}", _files(place)
    parts = parts_of(split, files)
    if missing := [part for part in parts if part not in files]:
        raise ValueError(f"{name} has no {missing[0]} files, only {', '.join(files)}")
    kind = _label_kind(_indices(files.get("train") or files[parts[0]]))
    training = _labels(_indices(files["train"]), kind, f"{name}, train", ())[1] if "train" in files and kind else ()
    indices, labels, class_names = [], [], training
    for part in parts:
        opened = _indices(files[part])
        if not sum(len(index.names) for index in opened):
            raise ValueError(f"{name}, {part}: none of its {len(opened)} files holds a picture ({', '.join(PICTURES)}), the first is {opened[0].path}")
        if without := sum(index.without for index in opened):
            print_once(f"{name}, {part}: {without} samples without a picture are left out")
        found, class_names = _labels(opened, kind, f"{name}, {part}", training)
        indices += opened
        labels.append(found)
    numbers = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index.names) for index in indices])
    names, places = (np.concatenate([getattr(index, field) for index in indices]) for field in ("names", "pictures"))
    shards = Shards(tuple(index.path for index in indices), numbers, names, places)
    return Pictures(name, shards, np.arange(len(numbers)), np.concatenate(labels), class_names, Failures(name, len(numbers)))


def wds_parts(place: str) -> set[str]:
    """Return which of train, validation and test the tar files belong to."""
    return set(_files(place))


def _files(place: str) -> dict[str, list[str]]:
    """Return {split: paths} of the tar files."""
    paths = _expand(place)
    found = {path: _split_of_file(path, place) for path in paths}
    if not any(found.values()):
        return {"train": paths}
    if unclear := [path for path, split in found.items() if not split]:
        raise ValueError(f"wds:{place}: {listed(unclear, 3)} of {len(paths)} files have no split in their names, as others have: rename or move them")
    return {split: [path for path in paths if found[path] == split] for split in SPELLINGS if split in found.values()}


def _expand(place: str) -> list[str]:
    """Return the paths of the tar files of a folder, a file, or a pattern in braces."""
    if os.path.isdir(place):
        paths = sorted(glob.glob(f"{glob.escape(place)}/*.tar") + glob.glob(f"{glob.escape(place)}/*/*.tar"))
        if not paths:
            packed = glob.glob(f"{glob.escape(place)}/*.tar.*") + glob.glob(f"{glob.escape(place)}/*.tgz")
            reason = f"{os.path.basename(packed[0])} is compressed and cannot be read at random: unpack it to .tar" if packed else "write them by webdataset"
            raise FileNotFoundError(f"wds:{place} holds no .tar files: {reason}")
        return paths
    paths = [place]
    if "{" in place and not os.path.exists(place):
        try:
            import braceexpand
        except ImportError as error:
            raise ValueError(f"the pattern wds:{place} needs braceexpand: {install('wds')}, or give the folder") from error
        try:
            paths = list(braceexpand.braceexpand(place))
        except ValueError as error:
            raise ValueError(f"wds:{place} has braces that do not match") from error
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise FileNotFoundError(f"wds:{place}: {len(missing)} of {len(paths)} files do not exist: {listed(missing, 3)}; {EXPECTED}")
    if len(set(paths)) < len(paths):
        raise ValueError(f"wds:{place} names a file twice")
    return paths


def _split_of_file(path: str, place: str) -> str | None:
    """Return the split that a word of the file's name spells, else the folder below `place` that it is in; ValueError for a name with several."""
    splits = {split_of(word) for word in re.findall(r"[^\W\d_]+", os.path.basename(path))} - {None}
    if len(splits) > 1:
        raise ValueError(f"{path} has the names of several splits in its name: rename it")
    folder = os.path.dirname(path)
    inside = folder != place.rstrip("/") and os.path.isdir(place) or "{" in place
    return splits.pop() if splits else split_of(os.path.basename(folder)) if inside else None


def _indices(paths: Sequence[str]) -> list[Index]:
    """Return the index of each tar file; those of unchanged files are kept, because train and validation open the same ones."""
    files = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return [_index(*file) for file in with_progress(files, "indexing tar files", len(files), "file")]


@functools.cache
def _index(path: str, size: int, _time: int) -> Index:
    samples: dict[str, dict[str, Member]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                match = NAME.fullmatch(member.name)
                if not match or not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):
                    continue
                if member.issparse():
                    raise ValueError(f"{member.name} is a sparse file: write the tar file without --sparse")
                sample = samples.setdefault(match[1], {})
                if match[2].lower() in sample:
                    raise ValueError(f"{member.name} is in it twice")
                sample[match[2].lower()] = member.name, member.offset_data, member.size
                archive.members = []  # type: ignore[attr-defined]  # kept, they would take a kilobyte each
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a whole, uncompressed tar file: {error}") from error
    if size < end + BLOCK:
        raise ValueError(f"{path} is cut short: its {size:,} bytes end before the tar file's end mark")
    return _collect(path, samples)


def _collect(path: str, samples: dict[str, dict[str, Member]]) -> Index:
    """Return the index of samples {key: {suffix: (name, offset, size)}}; ValueError for one with several pictures."""
    names, pictures = [], []
    labels: dict[str, list[tuple[int, int]]] = {kind: [] for kind in LABELS}
    for key, sample in samples.items():
        found = [suffix for suffix in sample if suffix in PICTURES]
        if len(found) > 1:
            raise ValueError(f"{path}: sample {key} has several pictures, {listed(found)}: name the others like {key}.more.{found[1]}")
        if found:
            name, *place = sample[found[0]]
            names.append(name.encode("utf-8", "surrogateescape"))
            pictures.append(place)
            for kind in LABELS:
                labels[kind].append(sample[kind][1:] if kind in sample else (0, -1))
    arrays = {kind: np.array(found, np.int64).reshape(-1, 2) for kind, found in labels.items()}
    return Index(path, np.array(names, np.bytes_), np.array(pictures, np.int64).reshape(-1, 2), arrays, len(samples) - len(names))


def _label_kind(indices: Sequence[Index]) -> str:
    """Return which of LABELS holds the labels of these samples, "" for none."""
    existing = [kind for kind in LABELS if any((index.labels[kind][:, 1] >= 0).any() for index in indices)]
    if "cls" in existing:
        return "cls"
    if "json" in existing and any(value is not None for index in indices for value in _values(index, "json")):
        return "json"
    if "txt" in existing:
        texts = [value for index in indices for value in _values(index, "txt") if value]
        if 2 * len(set(texts)) <= len(texts):
            return "txt"
        print_once(f"{os.path.dirname(indices[0].path)}: {len(set(texts))} of {len(texts)} .txt differ: they are captions, and the pictures unlabelled")
    return ""


def _labels(indices: Sequence[Index], kind: str, where: str, training: ClassNames) -> tuple[np.ndarray, ClassNames]:
    """Return (labels int32 [N], class names) of all samples."""
    if not kind:
        return np.full(sum(len(index.names) for index in indices), -1, np.int32), training
    texts, names = [value for index in indices for value in _values(index, kind)], _class_names(indices[0].path)
    numbers = from_texts(texts, () if names else training, f"{where}: .{kind}")
    return number_labels(numbers, names, training, f"{where}: .{kind}")


def _class_names(path: str) -> list[str]:
    """Return the names in classnames.txt beside a tar file, or beside its folder if that is named after a split; [] if there is none."""
    beside = os.path.dirname(os.path.abspath(path))
    for folder in (beside, os.path.dirname(beside)) if split_of(os.path.basename(beside)) else (beside,):
        if os.path.isfile(names := os.path.join(folder, "classnames.txt")):
            with open(names, encoding="utf-8-sig") as file:
                return [line.strip() for line in file.read().strip().splitlines()]
    return []


@functools.cache
def _read_values(path: str, _time: int, kind: str, places: bytes) -> tuple[str | None, ...]:
    values = []
    with open(path, "rb") as file:
        for offset, size in np.frombuffer(places, np.int64).reshape(-1, 2).tolist():
            file.seek(offset)
            values.append(None if size < 0 else _parse(file.read(size), kind, path))
    return tuple(values)


def _values(index: Index, kind: str) -> tuple[str | None, ...]:
    """Return the text of the label of each sample, None where there is none."""
    return _read_values(index.path, os.stat(index.path).st_mtime_ns, kind, index.labels[kind].tobytes())


def _parse(content: bytes, kind: str, path: str) -> str | None:
    try:
        text = content.decode("utf-8").strip()
        if kind != "json":
            return text or None
        stored = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} holds a .{kind} that cannot be read: {error}") from error
    value = next((stored[key] for key in KEYS if stored.get(key) is not None), None) if isinstance(stored, dict) else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise ValueError(f"{path} holds a .json whose label is {value!r}: it must be a number of a class, or its name")
    return None if value is None else str(value)
