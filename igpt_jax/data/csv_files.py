"""Picture files and labels listed in a CSV file.

    csv:FILE    a header, then a row for each picture. Columns (any case, others are not read): file | file_name | filename | path | image, the picture's path
                relative to the folder of FILE; label | labels | class | class_name | target, a number from 0 on (1.0 is 1) or a name, empty for none; split,
                as a folder's splits are spelled. Without a column split a tenth of the pictures is the test split, drawn by their names
"""

import csv
import os
import unicodedata
from collections import Counter

import numpy as np

from igpt_jax.data.failures import Failures
from igpt_jax.data.folder import Folder, draw_test, readable_images
from igpt_jax.data.labels import from_texts, number_labels
from igpt_jax.data.messages import listed
from igpt_jax.data.splits import SPELLINGS, parts_of, split_of

COLUMNS = {  # accepted names of the columns, in lower case
    "file": ("file", "file_name", "filename", "path", "image"),
    "label": ("label", "labels", "class", "class_name", "target"),
    "split": ("split",),
}
EXPECTED = "give a table with a header and a row for each picture: a column file, and where there are, label and split"


def open_csv(place: str, split: str, seed: int = 0, split_by: str = "name") -> Folder:
    """Open the listed pictures of a split. Pictures that cannot be read are left out, as from a folder.

    ValueError in one line for a table that is not as described, a picture that does not exist or lies outside the folder of the table, one that is listed
    twice, or a split that is unknown.
    """
    rows = _read(place)
    splits = {row["split"] for row in rows if row["split"]}
    parts = parts_of(split, splits)
    if splits and (missing := [part for part in parts if part not in splits]):
        raise ValueError(f"csv:{place} has no {missing[0]} pictures, only {', '.join(part for part in SPELLINGS if part in splits)}")
    training: tuple[str | int, ...] = ()
    _, training = _labels([row for row in rows if not splits or row["split"] == "train"], training, f"csv:{place}, train")
    chosen = [row for row in rows if not splits or row["split"] in parts]
    labels, class_names = _labels(chosen, training, f"csv:{place}, {split}")
    root = os.path.dirname(place) or "."
    paths = [os.path.join(root, row["file"]) for row in chosen]
    label_of = dict(zip(paths, labels.tolist(), strict=True))
    paths = readable_images(paths, f"csv:{place}")
    names = [unicodedata.normalize("NFC", os.path.relpath(path, root).replace(os.sep, "/")) for path in paths]
    found = np.array([label_of[path] for path in paths], np.int32)
    folder = Folder(f"csv:{place}", paths, names, found, class_names, Failures(f"csv:{place}", len(paths)))
    return folder if splits else draw_test(folder, split, seed, split_by)


def csv_parts(place: str) -> set[str]:
    """Return which of train, validation and test a table has; the test pictures drawn from an undivided one count."""
    return {row["split"] for row in _read(place) if row["split"]} or {"train", "test"}


def _labels(rows: list[dict[str, str]], training: tuple[str | int, ...], where: str) -> tuple[np.ndarray, tuple[str | int, ...]]:
    """Return (labels int32 [N], class names) of these rows."""
    return number_labels(from_texts([row["label"] for row in rows], training, where), (), training, where)


def _read(place: str) -> list[dict[str, str]]:
    """Return {file, label, split} of each row, "" where the table has none; the splits are train, validation or test."""
    if not os.path.isfile(place):
        raise FileNotFoundError(f"csv:{place} is a folder: give the file, or folder:{place}" if os.path.isdir(place) else f"{place} does not exist: {EXPECTED}")
    try:
        with open(place, newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{place} is not a CSV file in UTF-8: {error}") from error
    header = lines[0] if lines else []
    places = {role: [i for i, cell in enumerate(header) if cell.casefold() in names] for role, names in COLUMNS.items()}
    for role, found in places.items():
        if len(found) > 1 or (role == "file" and not found):
            wanted = f"needs one column {' | '.join(COLUMNS[role])}" if not found else f"has several columns that may be the {role}"
            raise ValueError(f"{place} {wanted}: its header is {', '.join(header) or 'empty'}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise ValueError(f"{place}, row {number} has {len(line)} cells, the header {len(header)}")
        rows.append({role: line[found[0]] if found else "" for role, found in places.items()} | {"row": str(number)})
    _check(rows, place, divided=bool(places["split"]))
    return rows


def _check(rows: list[dict[str, str]], place: str, divided: bool) -> None:
    """Raise ValueError for rows that name no picture of the folder, or one twice, or no split; the splits become train, validation or test."""
    if not rows:
        raise ValueError(f"{place} lists no pictures")
    root = os.path.realpath(os.path.dirname(place) or ".")
    for row in rows:
        path = os.path.normpath(os.path.join(root, row["file"]))
        if not row["file"] or os.path.commonpath([root, path]) != root:
            raise ValueError(f"{place}, row {row['row']}: {row['file']!r} is no path inside {root}: put the table into a folder above its pictures")
        row["file"] = os.path.relpath(path, root)
        if divided:
            part = split_of(row["split"])
            if part is None:
                known = ", ".join(word for spellings in SPELLINGS.values() for word in spellings)
                raise ValueError(f"{place}, row {row['row']}: split {row['split']!r} is unknown: one of {known}")
            row["split"] = part
    if divided and not any(row["split"] == "train" for row in rows):
        raise ValueError(f"{place} has no row of the split train")
    twice = [file for file, count in Counter(row["file"] for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{place} lists {len(twice)} pictures twice: {listed(twice)}")
    missing = [row["file"] for row in rows if not os.path.exists(os.path.join(root, row["file"]))]
    if missing:
        raise ValueError(f"{place}: {len(missing)} of {len(rows)} pictures do not exist in {root}: {listed(missing, 3)}")
