"""Folders of picture files: which files are pictures, which folders are splits and which are classes."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from igpt_jax.data.failures import Failures, rows_of_same_label
from igpt_jax.data.images import Picture, check_image, decoded
from igpt_jax.data.messages import listed, print_once, with_progress
from igpt_jax.data.splits import SPELLINGS, SPLIT_LIKE, parts_of, split_of
from igpt_jax.types import PathLike

TEST_SHARE = 0.1  # of the pictures of an undivided folder
DECODE_AT_MOST = 20_000  # in a folder of more files only the headers are checked: decoding ImageNet takes hours on one core
THREADS = 16  # readers at once; Pillow releases the interpreter while it decodes
LAYOUTS = "known layouts are DIR/CLASS/..., pictures directly in DIR, and DIR/train with optional DIR/val and DIR/test"
IGNORED = {  # folders and files of archives, systems and disks, in lower case; names that begin with a dot are ignored as well
    *("__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information", "network trash folder", "temporary items"),
    *("@eadir", "#recycle", "#snapshot", "__pycache__", "thumbs", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}


@dataclasses.dataclass(frozen=True)
class Folder:
    """Picture files, decoded when they are read."""

    name: str
    paths: list[str]
    names: list[str]  # of the pictures relative to their folder, with / and in NFC; random draws depend on them
    labels: np.ndarray
    class_names: tuple[str | int, ...]
    failures: Failures

    def __len__(self) -> int:
        return len(self.paths)

    def keep(self, rows: np.ndarray) -> "Folder":
        """Return the pictures of these rows alone."""
        paths, names = [self.paths[row] for row in rows], [self.names[row] for row in rows]
        return dataclasses.replace(self, paths=paths, names=names, labels=self.labels[rows], failures=Failures(self.name, len(paths)))

    def read(self, row: int, view: Callable[[Picture], np.ndarray] = decoded) -> tuple[np.ndarray, int]:
        """Return (view of the file, uint8 [H, W, 3], label) of a picture, or of another one of its label if it cannot be read any more."""
        decode = functools.partial(self._decode, view=view)
        return self.failures.first_readable(decode, rows_of_same_label(row, len(self), self.labels.__getitem__))

    def all_labels(self) -> np.ndarray:
        """Return the labels of all images, int [N]; -1 where there is none."""
        return self.labels

    def draws(self, seed: int, role: str) -> np.ndarray:
        """Return a random number of each picture, float64 [N] in [0, 1), from its name alone: it stays when other pictures come and go."""
        digests = (hashlib.sha256(f"{seed}/{role}/{name}".encode(errors="surrogateescape")).digest() for name in self.names)
        return np.fromiter((int.from_bytes(digest[:6], "big") / 2**48 for digest in digests), np.float64, len(self.names))

    def _decode(self, row: int, view: Callable[[Picture], np.ndarray]) -> tuple[np.ndarray, int]:
        return view(self.paths[row]), int(self.labels[row])


def open_folder(directory: PathLike, split: str, seed: int = 0, split_by: str = "name") -> Folder:
    """Open the pictures of a split: those in DIR/train, DIR/val or DIR/test (SPELLINGS); in a DIR without these, a tenth of the pictures is `test`.

    A class is a folder directly in DIR/train, or in an undivided DIR, that holds a readable picture at any depth. With fewer than two such folders all
    pictures are unlabelled; pictures beside class folders always are. The test pictures of an undivided folder are drawn by `seed` and their names, or with
    `split_by` "position" by their place in today's list. Raises ValueError if it is not clear which folders are splits and which are classes.
    """
    directory = str(directory)
    roots = folder_splits(directory)
    parts = parts_of(split, roots)
    if roots and parts[-1] not in roots:
        stored = ", ".join(f"{os.path.basename(root)}/" for root in roots.values())
        way_out = f"choose another split, or put pictures into {directory}/{parts[-1]}; --split=validation takes those held out of the training"
        raise ValueError(f"{directory} has no {split} pictures, only {stored}: {way_out if split == 'test' else way_out.partition(';')[0]}")
    class_names = _class_names(directory, roots)
    number = {name: i for i, name in enumerate(class_names)}
    paths: list[str] = []
    names: list[str] = []
    for root in [roots[part] for part in parts] if roots else [directory]:
        readable = readable_images(list_files(root), root)
        paths += readable
        names += [unicodedata.normalize("NFC", os.path.relpath(path, root).replace(os.sep, "/")) for path in readable]
    labels = np.array([number.get(name.partition("/")[0], -1) if "/" in name else -1 for name in names], np.int32)
    folder = Folder(directory, paths, names, labels, class_names, Failures(directory, len(paths)))
    return folder if roots else draw_test(folder, split, seed, split_by)


def draw_test(folder: Folder, split: str, seed: int, split_by: str) -> Folder:
    """Return the pictures of a split of undivided ones: `test` is a tenth, drawn by `seed` and their names or positions, and any other split the rest."""
    if split_by == "name":
        test = folder.draws(seed, "test") < TEST_SHARE
    else:
        count = len(folder)
        test = np.isin(np.arange(count), np.random.RandomState([seed, 1]).permutation(count)[: round(count * TEST_SHARE)])
    return folder.keep(np.flatnonzero(test if split == "test" else ~test))


def folder_splits(directory: str) -> dict[str, str]:
    """Return the split folders {split: path} of a folder, {} for an undivided one.

    Raises ValueError if their names contradict each other, or if other folders may be splits too.
    """
    if not os.path.isdir(directory):
        why = "is a file: give the folder that holds it" if os.path.exists(directory) else f"does not exist: give a folder of pictures; {LAYOUTS}"
        raise FileNotFoundError(f"folder {directory} {why}")
    folders = _sub_folders(directory)
    splits: dict[str, str] = {}
    for name in folders:
        if split := split_of(name):
            if split in splits:
                raise ValueError(f"{directory} holds {splits[split]}/ and {name}/, both {split}: remove one of them; {LAYOUTS}")
            splits[split] = name
    _check_split_folders(directory, list(splits.values()), "train" in splits)
    others = [name for name in folders if name not in splits.values()]
    if unclear := [name for name in (others if splits else _like_splits(others)) if _holds_picture(os.path.join(directory, name))]:
        holds = f"{listed(splits.values())} and beside it {listed(unclear)}" if splits else listed(unclear)
        way_out = "move class folders into train/, and other pictures elsewhere" if splits else "rename splits, and move classes with such names into train/"
        raise ValueError(f"{directory} holds {holds}: are these splits, or classes? {way_out}; {LAYOUTS}")
    return {split: os.path.join(directory, splits[split]) for split in SPELLINGS if split in splits}


def _check_split_folders(directory: str, names: Sequence[str], has_train: bool) -> None:
    """Raise ValueError for split folders without train, nested in one another, or linked to one another."""
    if names and not has_train:
        raise ValueError(f"{directory} holds {listed(names)} and no train/: {LAYOUTS}")
    for name in names:
        inside = _sub_folders(os.path.join(directory, name))
        if len(inside) == 1 and split_of(inside[0]):
            raise ValueError(f"{directory}/{name} holds only {inside[0]}/: move its contents one level up; {LAYOUTS}")
    for first, second in itertools.combinations(names, 2):
        if os.path.realpath(os.path.join(directory, first)) == os.path.realpath(os.path.join(directory, second)):
            raise ValueError(f"{directory}: {first}/ and {second}/ are the same folder, one is a link to the other: give each split its own pictures")


def _like_splits(names: Sequence[str]) -> list[str]:
    """Return the names that begin with a split's name, like train2 or test-A; if there are none, those that end with one, like images_train, if several do."""
    words = {name: [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)] for name in names}
    first, last = ([name for name in names if words[name] and words[name][place] in SPLIT_LIKE] for place in (0, -1))
    return first or (last if len(last) > 1 else [])


def _class_names(directory: str, roots: dict[str, str]) -> tuple[str, ...]:
    """Return the names of the classes in NFC, sorted; () for fewer than two. ValueError if another split has classes that training lacks."""
    classes = {split: _classes_in(root) for split, root in (roots or {"train": directory}).items()}
    names = tuple(classes["train"]) if len(classes["train"]) > 1 else ()
    for split, found in classes.items():
        if unknown := [name for name in found if name not in names] if names or len(found) > 1 else []:
            known = f"the classes {listed(names)}" if names else "no classes"
            way_out = "move them, or put unlabelled pictures directly into it"
            raise ValueError(f"{roots[split]} holds {listed(unknown)}, where training has {known}: {way_out}")
    return names


def _classes_in(root: str) -> list[str]:
    """Return the sorted names, in NFC, of the folders in `root` that hold a readable picture; a line names folders that are left out or merged."""
    folders = _sub_folders(root)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        holding = list(pool.map(lambda name: _holds_picture(os.path.join(root, name)), folders))
    classes = [unicodedata.normalize("NFC", name) for name, holds in zip(folders, holding, strict=True) if holds]
    empty = [name for name, holds in zip(folders, holding, strict=True) if not holds]
    twice = sorted({name for name in classes if classes.count(name) > 1})
    notes = [f"{listed(twice)}: two folders whose names differ only in their Unicode form are one class"] if twice else []
    notes += [f"not classes, because they hold no readable pictures: {listed(empty)}"] if empty else []
    if notes:
        print_once(f"{root}: {'; '.join(notes)}")
    return sorted(set(classes))


def _holds_picture(directory: str) -> bool:
    """Return whether a folder holds a readable picture, at any depth."""
    return any(_check_unchanged(path, *_size_and_time(path)) is None for path in list_files(directory))


@functools.lru_cache(maxsize=1 << 16)
def _check_unchanged(path: str, _size: int | None, _time: int | None) -> str | None:
    return check_image(path)


def list_files(directory: str | os.PathLike[str]) -> list[str]:
    """Return the paths of all files below a directory, sorted, without hidden ones; links to folders are followed, each folder once."""
    paths: list[str] = []
    visited = set()
    for folder, folders, files in os.walk(os.fspath(directory), followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        inner = {split_of(name): name for name in folders}
        inner.pop(None, None)
        if len(inner) > 1:
            raise ValueError(f"{folder} holds {listed(inner.values())}, splits below a class folder: give this folder as source, or move them up; {LAYOUTS}")
        paths += [os.path.join(folder, name) for name in files if not _is_ignored(name)]
    return sorted(paths)


def readable_images(paths: Sequence[str], name: str) -> list[str]:
    """Return the paths of the readable pictures and say how many are left out; raise ValueError with `name` and the first reason if none is readable."""
    problems = _check_files(tuple((path, *_size_and_time(path)) for path in paths))
    readable = [path for path, problem in zip(paths, problems, strict=True) if problem is None]
    if not readable:
        reason = f"none of its {len(paths)} files can be used, the first: {problems[0]}" if paths else "it holds no files"
        raise ValueError(f"{name} has no images: {reason}")
    return readable


@functools.lru_cache(maxsize=4)
def _check_files(files: tuple[tuple[str, int | None, int | None], ...]) -> tuple[str | None, ...]:
    """Return None or the problem of each (path, bytes, mtime); cached, because train and validation open the same unchanged files."""
    decode = len(files) <= DECODE_AT_MOST
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        checks = pool.map(lambda file: check_image(file[0], decode), files)
        problems = tuple(with_progress(checks, "checking images", len(files), "file"))
    bad = [problem for problem in problems if problem is not None]
    if bad and len(bad) < len(files):
        print_once(f"note: {len(bad)} of {len(files)} files are left out: {'; '.join(bad[:3])}")
    return problems


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in IGNORED or bool(re.fullmatch(r"found\.\d{3}", name.casefold()))


def _sub_folders(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_ignored(entry.name))


def _size_and_time(path: str) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except OSError:  # a dangling link; opening it gives the reason
        return None, None
    return status.st_size, status.st_mtime_ns
