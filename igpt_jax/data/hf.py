"""Data sets of Hugging Face's `datasets` library, by name or from a folder. The only file that imports it.

    hf:NAME[,CONFIG]    a data set of the hub, downloaded into the library's cache (HF_HOME) at the first use; with HF_HUB_OFFLINE=1 from the cache alone
    hf:DIR              what `save_to_disk` wrote, or a folder that `load_dataset` reads: parquet, arrow, pictures in folders of classes, metadata.csv

The pictures are a column of type Image (or of encoded bytes), the labels a ClassLabel, or a column `label` or `labels` of numbers or names. Where a data set
has several, `,image=COLUMN` and `,label=COLUMN` after the name choose, and `,label=` reads no labels.
"""

import dataclasses
import functools
import io
import os
from typing import Any

import numpy as np

from igpt_jax.data.failures import Failures
from igpt_jax.data.images import Picture
from igpt_jax.data.labels import ClassNames, number_labels
from igpt_jax.data.messages import listed, print_once
from igpt_jax.data.pictures import Pictures
from igpt_jax.data.splits import SPELLINGS, parts_of, split_of
from igpt_jax.extras import install

OPTIONS = ("image", "label")
LABEL_NAMES = ("label", "labels")  # of a column of numbers or names without declared classes


@dataclasses.dataclass(frozen=True)
class Column:
    """The pictures of a table by row. The table maps its files into memory, also where it was pickled for a worker."""

    table: Any  # datasets.Dataset of the one column
    column: str
    name: str  # of the source and the split, in error messages

    def __getitem__(self, row: int) -> Picture:
        stored = self.table[row][self.column]
        content, path = (stored.get("bytes"), stored.get("path")) if isinstance(stored, dict) else (stored, None)
        if content is None:
            if path is None:
                raise ValueError(f"{self.name}, row {row} holds no picture")
            return str(path)
        picture = io.BytesIO(content)
        picture.name = f"{self.name}, row {row}"
        return picture


def open_hf(place: str, split: str) -> Pictures:
    """Open a split of a data set; the splits are known by their names, and a class has the number of its name in training. ValueError in one line."""
    import datasets

    name, tables = f"hf:{place}", _open_tables(place)
    _, options = _parse(place)
    parts = parts_of(split, tables)
    if missing := [part for part in parts if part not in tables]:
        raise ValueError(f"{name} has no {missing[0]} split, only {listed(tables)}")
    training = _read_labels(tables["train"], f"{name}, train", options, ())[1] if "train" in tables else ()
    columns, labels, class_names = [], [], training
    for part in parts:
        table, where = tables[part], f"{name}, {part}"
        found, class_names = _read_labels(table, where, options, training)
        column = _image_column(table, where, options.get("image"))
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        columns.append(Column(table.select_columns([column]).with_format(None), column, where))
        labels.append(found)
    lengths = [len(found) for found in labels]
    stored = columns[0] if len(columns) == 1 else Joined(tuple(columns), tuple(lengths))
    return Pictures(name, stored, np.arange(sum(lengths)), np.concatenate(labels), class_names, Failures(name, sum(lengths)))


@dataclasses.dataclass(frozen=True)
class Joined:
    """The pictures of several tables that follow each other."""

    columns: tuple[Column, ...]
    lengths: tuple[int, ...]

    def __getitem__(self, row: int) -> Picture:
        for column, length in zip(self.columns, self.lengths, strict=True):
            if row < length:
                return column[row]
            row -= length
        raise IndexError(row)


def hf_parts(place: str) -> set[str]:
    """Return which of train, validation and test a data set has."""
    return set(_open_tables(place))


def _parse(place: str) -> tuple[list[str], dict[str, str]]:
    """Return ([name or folder, config if given], {option: column}) of what follows `hf:`; a folder with commas in its name is one name if it exists."""
    if os.path.exists(place):
        return [place], {}
    words, options = place.split(","), {}
    while len(words) > 1 and "=" in words[-1]:
        option, _, column = words.pop().partition("=")
        if option.strip() not in OPTIONS or option.strip() in options:
            raise ValueError(f"hf:{place} has the option {option!r}: known are image=COLUMN and label=COLUMN, each once, after the name")
        options[option.strip()] = column.strip()
    folder = ",".join(words)
    words = [folder] if os.path.exists(folder) else [word.strip() for word in words]
    if len(words) > 2 or not all(words):
        raise ValueError(f"hf:{place} is not understood: hf:NAME[,CONFIG][,image=COLUMN][,label=COLUMN]")
    return words, options


def _open_tables(place: str) -> dict[str, Any]:
    """Return {train, validation or test: datasets.Dataset} of a data set."""
    words, _ = _parse(place)
    loaded = _load_folder(words[0], place) if os.path.isdir(words[0]) else _load_named(tuple(words), place)
    if not isinstance(loaded, dict):  # a single table that `save_to_disk` wrote
        return {split_of(str(loaded.split)) or "train": loaded}
    tables: dict[str, Any] = {}
    unread = []
    for spelled, table in loaded.items():
        part = split_of(spelled)
        if part in tables:
            raise ValueError(f"hf:{place} has two splits that are both {part}: {listed(loaded)}")
        if part:
            tables[part] = table
        else:
            unread.append(spelled)
    if not tables and len(loaded) == 1:
        return {"train": next(iter(loaded.values()))}
    if not tables:
        known = ", ".join(word for spellings in SPELLINGS.values() for word in spellings)
        raise ValueError(f"hf:{place} has the splits {listed(loaded)}, none of which is one of {known}")
    if unread:
        print_once(f"hf:{place}: not read are the splits {listed(unread)}")
    return {part: tables[part] for part in SPELLINGS if part in tables}


def _load_folder(folder: str, place: str) -> Any:
    datasets = _library(place)
    try:
        if any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(folder)
        return datasets.load_dataset(folder)
    except Exception as error:  # the library passes on those of arrow, fsspec, json and its own
        raise ValueError(f"hf:{place} cannot be read: {_first_line(error)}") from error


@functools.lru_cache(maxsize=4)
def _load_named(words: tuple[str, ...], place: str) -> Any:
    """Load a data set of the hub; kept, because the library asks the hub anew for each of the splits."""
    name = words[0]
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        wanted = "give one that `save_to_disk` wrote, one of parquet files or of pictures, or the name of a data set of the hub"
        raise FileNotFoundError(f"hf:{place}: folder {name} does not exist: {wanted}")
    datasets = _library(place)
    try:
        return datasets.load_dataset(*words)
    except Exception as error:
        where = "offline mode" if datasets.config.HF_HUB_OFFLINE else "the hub"
        way_out = "check the name and the network, or copy the data set to this machine and give its folder, hf:DIR"
        raise ValueError(f"hf:{place} is no folder here, and {where} gives no data set {name!r} ({_first_line(error)}): {way_out}") from error


def _library(place: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"source hf:{place} needs the datasets library: {install('datasets')}") from error
    return datasets


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error  # of a DatasetGenerationError, which says only that an error occurred
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _image_column(table: Any, where: str, chosen: str | None) -> str:
    """Return the column that holds the pictures; one line if none may, or several."""
    import datasets

    kinds = {column: _picture_kind(feature, datasets) for column, feature in table.features.items()}
    candidates = [column for column, kind in kinds.items() if kind == "image"] or [column for column, kind in kinds.items() if kind == "bytes"]
    if chosen:
        if not kinds.get(chosen):
            raise ValueError(f"{where} has no pictures in a column {chosen!r}: {_described(table)}")
        return chosen
    if "image" in candidates:
        return "image"
    if len(candidates) != 1:
        way_out = f"choose one by hf:NAME,image={candidates[0]}" if candidates else "a column of type Image is needed"
        raise ValueError(f"{where} has {len(candidates)} columns of pictures: {way_out}; {_described(table)}")
    return candidates[0]


def _picture_kind(feature: Any, datasets: Any) -> str:
    """Return "image" for a column of type Image, or one written without the library's types but in the same form; "bytes" for plain bytes; else ""."""
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature and feature.keys() <= {"bytes", "path"}):
        return "image"
    return "bytes" if isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary") else ""


def _read_labels(table: Any, where: str, options: dict[str, str], training: ClassNames) -> tuple[np.ndarray, ClassNames]:
    """Return (labels int32 [N], class names) of a table."""
    column = _label_column(table, where, options.get("label"))
    if column is None:
        return np.full(len(table), -1, np.int32), training
    names = getattr(table.features[column], "names", None) or ()
    values = table.select_columns([column]).with_format("arrow")[:].column(0).to_pylist() if len(table) else []
    return number_labels(values, names, training, f"{where}: `{column}`")


def _label_column(table: Any, where: str, chosen: str | None) -> str | None:
    """Return the column that holds the labels, None for unlabelled pictures; one line if several may."""
    import datasets

    if chosen == "":
        return None
    features = table.features
    usable = [column for column, feature in features.items() if _is_label(feature, datasets)]
    if chosen:
        if chosen not in usable:
            raise ValueError(f"{where} has no labels in a column {chosen!r}, numbers or names: {_described(table)}")
        return chosen
    named = [column for column in LABEL_NAMES if column in usable]
    candidates = named[:1] or [column for column in usable if isinstance(features[column], datasets.ClassLabel)]
    if len(candidates) > 1:
        raise ValueError(f"{where} has {len(candidates)} columns of classes: choose one by hf:NAME,label={candidates[0]}; {_described(table)}")
    return candidates[0] if candidates else None


def _is_label(feature: Any, datasets: Any) -> bool:
    kinds = ("int", "uint", "string", "large_string")
    return isinstance(feature, datasets.ClassLabel) or (isinstance(feature, datasets.Value) and feature.dtype.rstrip("0123456789") in kinds)


def _described(table: Any) -> str:
    import datasets

    kinds = ((column, feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__) for column, feature in table.features.items())
    return "its columns are " + listed(f"{column} ({kind})" for column, kind in kinds)
