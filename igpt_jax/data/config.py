"""The part of a recipe that says which images are read, and how."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from igpt_jax.data.images import VIEWS as VIEW_FUNCTIONS
from igpt_jax.data.mixture import shares_of, split_mixture

# Kind -> how a recipe names it; ~ is the home folder. The file of each kind in this folder describes what it reads. Several sources with weights are a mixture,
# "folder:a*0.7 + tfds:b*0.3", see mixture.py.
SOURCES = {
    "digits": "digits",  # scikit-learn's
    "tfds": "tfds:NAME",  # of TensorFlow Datasets, prepared as array_record in config.data.directory
    "hf": "hf:NAME or hf:DIR",  # of the datasets library, hf.py: a data set of the hub, what save_to_disk wrote, a folder of parquet files
    "folder": "folder:DIR",  # picture files in folders of splits and classes
    "csv": "csv:FILE",  # picture files whose names, labels and splits are the columns of a table, csv_files.py
    "wds": "wds:DIR or wds:PATTERN",  # samples in tar files, wds.py
    "npz": "npz:DIR or npz:FILE",  # arrays of numpy
    "codes": "codes:DIR",  # what quantize --codes wrote
    "npy": "npy:DIR[/PREFIX]",  # OpenAI's palette ids
}
AUGMENTS = ("none", "cifar", "imagenet")
VIEWS = tuple(VIEW_FUNCTIONS)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images are read, and how; every field is required, because a recipe states it (configs/base.py)."""

    source: str  # in a form of SOURCES, or a mixture of such
    image_size: int  # side in pixels after resizing
    augment: str  # of training. none; cifar: 4 px reflection, crop, flip; imagenet: resize, crop 224
    validation: float  # share of the training images held out (paper: 0.04 ImageNet, 0.10 others); 0: none; unused if the data have validation images
    directory: str  # TFDS's data_dir; "": TFDS's own default
    workers: int  # Grain's worker processes that decode and code pictures, divided among the sources of a mixture; 0: threads in this process
    seed: int  # of the train/validation split, and of a folder's train/test split
    # recipes from before these two keys lack them; they get the value that applied then
    view: str = ""  # of evaluation, and of training unless augment crops: center_square | imagenet | squash; "": that of augment
    split_by: str = ""  # what draws a folder's validation and test pictures: name | position; "": position

    def __post_init__(self) -> None:
        mixed, (kind, colon, place) = bool(split_mixture(self.source)), self.source.partition(":")
        if not self.view:
            object.__setattr__(self, "view", "imagenet" if self.augment == "imagenet" else "center_square")
        if not self.split_by:  # other sources have no names: both give the same split
            object.__setattr__(self, "split_by", "position" if kind == "folder" and not mixed else "name")
        object.__setattr__(self, "source", expanded(self.source))
        object.__setattr__(self, "directory", os.path.expanduser(self.directory))
        if mixed:
            self._check_numbers()
            self.mixture()  # each source is checked by its own DataConfig
        else:
            self._check_source(kind, colon, place)
            self._check_numbers()

    def mixture(self) -> list[tuple["DataConfig", int]]:
        """Return the (config, draws in ROUND) of each source of a mixture, [] for a single source."""
        pairs = split_mixture(self.source)
        workers = -(-self.workers // max(len(pairs), 1))
        configs = [dataclasses.replace(self, source=source, workers=workers) for source, _ in pairs]
        return list(zip(configs, shares_of(pairs), strict=True)) if pairs else []

    def _check_source(self, kind: str, colon: str, place: str) -> None:
        if kind not in SOURCES or (kind == "digits") == bool(colon) or (colon and not place):
            raise ValueError(f"source {self.source!r} is unknown: one of {', '.join(SOURCES.values())}")
        if "://" in place and kind != "tfds":
            raise ValueError(f"source {self.source!r} must be a local directory: copy it to this machine, or mount the bucket")
        if kind in ("codes", "npy") and self.augment == "imagenet":
            way_out = "give the pictures (config.data.source=folder:DIR), or config.data.augment none or cifar"
            raise ValueError(f"config.data.augment imagenet resizes, which codes cannot: {way_out}")

    def _check_numbers(self) -> None:
        if self.augment not in AUGMENTS:
            raise ValueError(f"augment {self.augment!r} is unknown: one of {', '.join(AUGMENTS)}")
        for name, choice, known in (("view", self.view, VIEWS), ("split_by", self.split_by, ("name", "position"))):
            if choice not in known:
                raise ValueError(f"{name} {choice!r} is unknown: one of {', '.join(known)}")
        for name, least in (("image_size", 1), ("workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is the share held out, from 0 to below 1, not {self.validation!r}")


def config_for(recipe: Mapping[str, Any], image_size: int, source: str | None = None, view: str | None = None) -> DataConfig:
    """Return the DataConfig of a checkpoint's recipe, or that of another `source` for its model, without augmentation.

    `image_size` is the model's. So is the view, for any source, unless another `view` is given.
    """
    known = recipe.get("data", {})
    if source is None and not known.get("source"):
        raise ValueError(f"this checkpoint names no data: give them by --data=..., one of {', '.join(SOURCES.values())}")
    base: dict[str, Any] = {"augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
    trained = DataConfig(**base | {"image_size": image_size} | known | {"source": known.get("source") or source})
    if source is not None and expanded(source) != trained.source:
        trained = dataclasses.replace(trained, source=source, image_size=image_size, augment="none")
    return dataclasses.replace(trained, view=view or trained.view)


def view_of(recipe: Mapping[str, Any], image_size: int) -> str:
    """Return the view of a checkpoint's recipe, also of a converted model's, which names no source."""
    return config_for(recipe, image_size, recipe.get("data", {}).get("source") or "digits").view


def expanded(source: str) -> str:
    """Return a data source with its ~ replaced by the home folder, and a mixture in one spelling."""
    if pairs := split_mixture(source):
        return " + ".join(f"{expanded(name)}*{weight}" for name, weight in pairs)
    kind, colon, place = source.partition(":")
    return kind + colon + (os.path.expanduser(place) if kind != "tfds" else place)


def places(source: str) -> list[str]:
    """Return the places of a source, or of each source of a mixture: what follows the kind."""
    return [place for name in [name for name, _ in split_mixture(source)] or [source] if (place := name.partition(":")[2])]
