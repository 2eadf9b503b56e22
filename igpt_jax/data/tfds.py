"""Data sets of TensorFlow Datasets, prepared as array_record, which is read at random and without TensorFlow. The only file that imports TFDS."""

import dataclasses
import functools
import io
from collections.abc import Callable, Container
from typing import Any

import numpy as np

from igpt_jax.data.failures import Failures, rows_of_same_label
from igpt_jax.data.images import Picture, as_rgb, decoded
from igpt_jax.data.messages import with_progress
from igpt_jax.extras import install

SAMPLED_LABELS = 100  # read by `some_labels`


@dataclasses.dataclass(frozen=True)
class Records:
    """A prepared TFDS split. Its pictures are stored encoded and decoded by `images`, so the same rules hold for all sources."""

    name: str
    records: Any  # TFDS's data source: random access by row
    rows: np.ndarray
    class_names: tuple[str | int, ...]  # of a ClassLabel, whose labels TFDS has checked: from 0 on, or -1
    failures: Failures

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, rows: np.ndarray) -> "Records":
        """Return the images of these rows alone."""
        return dataclasses.replace(self, rows=self.rows[rows], failures=Failures(self.name, len(rows)))

    def read(self, row: int, view: Callable[[Picture], np.ndarray] = decoded) -> tuple[np.ndarray, int]:
        """Return (view of the picture, uint8 [H, W, 3], label) of a record, or of another one of its label if it cannot be decoded."""
        return self.failures.first_readable(functools.partial(self._decode, view=view), rows_of_same_label(row, len(self), self._label))

    def all_labels(self) -> np.ndarray:
        """Return the labels int32 [N]; all records are read."""
        return np.array([self._label(row) for row in with_progress(range(len(self)), "reading labels")], np.int32)

    def some_labels(self) -> np.ndarray:
        """Return the labels int32 of SAMPLED_LABELS records spread over the split if the classes are named, else of all.

        Reading all labels may take hours. TFDS has checked those of a ClassLabel, so a few tell whether the split has labels.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED_LABELS).astype(int)) if self.class_names else range(len(self))
        return np.array([self._label(row) for row in rows], np.int32)

    def _decode(self, row: int, view: Callable[[Picture], np.ndarray]) -> tuple[np.ndarray, int]:
        record = self.records[int(self.rows[row])]
        picture = record["image"]
        if isinstance(picture, bytes):
            picture = io.BytesIO(picture)
            picture.name = f"{self.name}, record {self.rows[row]}"
        else:
            picture = as_rgb(picture)
        return view(picture), int(record.get("label", -1))

    def _label(self, row: int) -> int:
        return int(self.records[int(self.rows[row])].get("label", -1))


def tfds_parts(name: str, data_dir: str) -> set[str]:
    """Return which of train and test a TFDS data set has; validation images are held out of train."""
    splits = _builder(name, data_dir).info.splits
    return ({"train"} if "train" in splits else set()) | ({"test"} if _test_split(name, splits) in splits else set())


def open_tfds(name: str, part: str, data_dir: str) -> Records:
    """Open `train` or `test` of a TFDS data set; errors say how to prepare it. A `data_dir` of "" is TFDS's own default."""
    builder = _builder(name, data_dir)
    import tensorflow_datasets as tfds

    splits, features = builder.info.splits, builder.info.features
    chosen = _test_split(name, splits) if part == "test" else part
    if chosen not in splits or "image" not in features:
        stored = f"its splits are {', '.join(splits)}, its features {', '.join(features)}"
        raise ValueError(f"tfds:{name} needs a split {chosen} and a feature image: {stored}")
    encoded = isinstance(features["image"], tfds.features.Image)
    records = builder.as_data_source(chosen, decoders={"image": tfds.decode.SkipDecoding()} if encoded else None)
    label = features["label"] if "label" in features else None
    names = tuple(getattr(label, "names", None) or range(getattr(label, "num_classes", None) or 0))
    return Records(f"tfds:{name}", records, np.arange(len(records)), names, Failures(f"tfds:{name}", len(records)))


def _test_split(name: str, splits: Container[str]) -> str:
    """Return the split that serves as test: `validation` for ImageNet, which has its labelled test images there, and for sets without a test split."""
    return "validation" if name.startswith("imagenet2012") or "test" not in splits else "test"


def _builder(name: str, data_dir: str) -> Any:
    """Return TFDS's builder of a prepared data set; ValueError or FileNotFoundError with the command that prepares it."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f"source tfds:{name} needs TFDS: {install('tfds')}") from error
    directory = f", data_dir={data_dir!r}" if data_dir else ""
    prepare = (
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder({name!r}{directory}, file_format='array_record').download_and_prepare()\", "
        f"after {install('tfds')}"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:  # its text lists every data set there is
        raise ValueError(f"TFDS knows no {name!r}, and finds none in {data_dir or 'its default data_dir'}") from error
    except Exception as error:  # usually: prepared as TFRecord, which has no random access
        raise ValueError(f"TFDS cannot open {name!r} ({str(error).strip().splitlines()[0]}); prepare it again: {prepare}") from error
    if not builder.info.splits:
        raise FileNotFoundError(f"tfds:{name} is not prepared in {builder.data_dir}: {prepare}")
    return builder
