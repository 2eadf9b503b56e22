"""The files of a features folder, which igpt_jax.features writes and igpt_jax.probe reads.

`features.json` describes the folder. It names the model, by a checksum of its parameters, and the images, by a fingerprint of each split; folders from
before these keys have neither. `SPLIT/labels.npy` is int32 [N], -1 for an unlabelled image. `SPLIT/part-00000.npy` holds images 0 to n - 1 of the split as
[layers, n, D], float32 or float16; part i starts at image i * n, and the last part may be shorter. Entry l of the first axis is the mean over positions of
block l's normalised input, the last entry that after the final norm (paper 2.6). Of kind `raw` it is the mean of the embedding, then of each block's
output. Of kind `positions` a part is [layers, n, S, D], not averaged, and holds the layers that `stored_layers` of features.json lists.

A bert model may be run with M masks (`masks`: M in features.json; otherwise the key is missing). Then SPLIT/part-*.npy are the features under mask 0, and
SPLIT/mask-1/part-*.npy and so on those under masks 1 to M - 1, for validation and test images. Training images have mask 0 only.
"""

import json
import math
import pathlib
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from igpt_jax.types import PathLike

Description: TypeAlias = dict[str, Any]  # the content of features.json

BLOCK_BYTES = 2**18  # of one layer, read at once: enough for the full speed of a solid-state disk, and few enough images that a window mixes many blocks


def read_claim(directory: PathLike) -> Description:
    """Read features.json without looking at the arrays. Raises ValueError if it is damaged."""
    path = pathlib.Path(directory) / "features.json"
    try:
        description = json.loads(path.read_text())
        return description | {"counts": dict(description["counts"])}
    except (ValueError, LookupError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise ValueError(f"{path} is not what igpt_jax.features writes ({reason}): write the features again with --overwrite") from None


def read_description(directory: PathLike) -> Description:
    """Read features.json. Raises FileNotFoundError if the file, labels or parts are missing or truncated."""
    directory = pathlib.Path(directory)
    if not (directory / "features.json").exists():
        program = f"python -m igpt_jax.features --checkpoint=CHECKPOINT --out={directory}"
        raise FileNotFoundError(f"{directory} holds no features.json: write the features first, {program}")
    description, paths = read_claim(directory), []
    for split in description["counts"]:
        paths += [directory / split / "labels.npy"]
        paths += [part_path(directory, split, mask, number) for mask in range(mask_count(description, split)) for number, _, _ in parts(description, split)]
    missing = [path.relative_to(directory).as_posix() for path in paths if not _is_readable(path)]
    if missing:
        names = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise FileNotFoundError(f"{directory} is incomplete, {len(missing)} files missing or cut off ({names}): finish with {command(description, directory)}")
    return description


def command(description: Description, directory: PathLike, splits: Iterable[str] | None = None) -> str:
    """The command line of igpt_jax.features that writes this folder, or only `splits` of it. It also completes a folder with missing parts."""
    values = {"checkpoint": description["checkpoint"], "out": directory, "splits": ",".join(splits or description["counts"])}
    values |= {name.replace("_", "-"): description.get(name) for name in ("kind", "dtype", "images_per_part", "masks", "limit")}
    values |= {"data": description["data"]["source"]} | {name: description["data"].get(name) for name in ("view", "validation", "directory")}
    values["layers"] = ",".join(map(str, description.get("stored_layers", [])))
    return shlex.join(["python", "-m", "igpt_jax.features", *(f"--{name}={value}" for name, value in values.items() if value not in (None, ""))])


def parts(description: Description, split: str) -> list[tuple[int, int, int]]:
    """(number, first image, one past the last image) of each part of a split."""
    size, count = description["images_per_part"], description["counts"][split]
    return [(number, start, min(start + size, count)) for number, start in enumerate(range(0, count, size))]


def part_path(directory: PathLike, split: str, mask: int, number: int) -> pathlib.Path:
    """The path of a part."""
    return pathlib.Path(directory) / split / (f"mask-{mask}" if mask else "") / f"part-{number:05d}.npy"


def row_shape(description: Description) -> tuple[int, ...]:
    """Shape of the features of one image and one layer: (D,), or (S, D) of kind positions."""
    return (*((description["positions"],) if description["kind"] == "positions" else ()), description["width"])


def image_bytes(description: Description) -> int:
    """Bytes of one image under one mask, all stored layers together."""
    return len(stored_layers(description)) * math.prod(row_shape(description)) * np.dtype(description["dtype"]).itemsize


def stored_layers(description: Description) -> list[int]:
    """Numbers of the layers in a part, in the order of its first axis."""
    return description.get("stored_layers", list(range(description["layers"] + 1)))


def mask_count(description: Description, split: str) -> int:
    """Number of sets of parts of a split: one for each mask, or one without masks."""
    return 1 if split == "train" else max(1, description.get("masks", 0))


def read_layer(directory: PathLike, split: str, layer: int, mask: int = 0) -> np.ndarray:
    """Features of one layer, float32 [N, D]; the mean over positions for kind positions. Other layers are not read."""
    description = json.loads((pathlib.Path(directory) / "features.json").read_text())
    index, pieces = stored_layers(description).index(layer), []
    for number, _, _ in parts(description, split):
        array = np.load(part_path(directory, split, mask, number), mmap_mode="r")[index]
        pieces.append(mean_over_positions(array) if array.ndim == 3 else np.asarray(array, np.float32))
    return np.concatenate(pieces)


def mean_over_positions(features: np.ndarray) -> np.ndarray:
    """Features of kind positions [..., S, D] averaged over S, float32."""
    return features.mean(axis=-2, dtype=np.float32)


def _is_readable(path: pathlib.Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


class Reader:
    """Reads images of one mask by number from memory-mapped parts: of one split, or of several in a row.

    `first[split]` is the number of the split's image 0. It is a multiple of `part_size`, so the numbers between two splits may name no image.
    """

    def __init__(self, directory: PathLike, description: Description, splits: str | Sequence[str], layers: Sequence[int], mask: int = 0):
        self.part_size, self.row_shape = int(description["images_per_part"]), row_shape(description)
        self.paths: list[pathlib.Path] = []
        self.first: dict[str, int] = {}
        for split in [splits] if isinstance(splits, str) else splits:
            self.first[split] = len(self.paths) * self.part_size
            self.paths += [part_path(directory, split, mask, number) for number, _, _ in parts(description, split)]
        self.dtype = np.dtype(description["dtype"])
        self.places = [stored_layers(description).index(layer) for layer in layers]  # in the first axis of a part

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images `rows` (ascending) as [layers, n, ...] in the type on disk."""
        features = np.empty((len(self.places), len(rows), *self.row_shape), self.dtype)
        self.read_into(features, np.arange(len(rows)), rows)
        return features

    def read_into(self, features: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Read images `rows` (ascending) into `features[:, places]`."""
        numbers, offsets = np.divmod(rows, self.part_size)
        for number in np.unique(numbers):
            inside = numbers == number
            part = np.load(self.paths[number], mmap_mode="r")
            selected = offsets[inside]
            is_run = selected[-1] - selected[0] + 1 == len(selected)
            wanted = slice(selected[0], selected[-1] + 1) if is_run else selected  # a slice is one long read
            for index, place in enumerate(self.places):
                features[index, places[inside]] = part[place, wanted]

    @property
    def row_bytes(self) -> int:
        """Bytes of one image, all layers of this reader together."""
        return len(self.places) * int(np.prod(self.row_shape)) * self.dtype.itemsize

    @property
    def block(self) -> int:
        """Number of consecutive images that are read at once."""
        return max(1, min(BLOCK_BYTES // (self.row_bytes // len(self.places)), self.part_size))
