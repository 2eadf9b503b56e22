"""Data sets of TensorFlow Datasets, prepared as array_record, which is read at random and without TensorFlow. The only file that knows TFDS."""

import dataclasses
import io
import itertools
import sys

import numpy as np
from tqdm import tqdm

from igpt_jax.data import images


@dataclasses.dataclass(frozen=True)
class Records:
    """A prepared TFDS split; its pictures come encoded and go through `images.read_image`: one set of rules for all sources."""

    name: str
    records: object  # tfds data source: random access by row
    rows: np.ndarray
    class_names: tuple  # of a ClassLabel, whose labels TFDS has checked: from 0 on, or -1
    failures: images.Failures

    def __len__(self):
        return len(self.rows)

    def keep(self, rows):
        return dataclasses.replace(self, rows=self.rows[rows], failures=images.Failures(self.name, len(rows)))

    def read(self, row):
        return self.failures.first_good(self._decode, itertools.chain([row], images.rows_of_its_label(row, len(self), self._label)))

    def all_labels(self):
        every = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines where nobody watches
        rows = tqdm(range(len(self)), desc="reading labels", unit="image", delay=2, mininterval=every, leave=False)
        return np.array([self._label(row) for row in rows], np.int32)

    def some_labels(self):
        """int32 [at most 100]: those of records from end to end, where reading all takes hours; of a ClassLabel they tell whether the split has labels."""
        rows = np.unique(np.linspace(0, len(self) - 1, 100).astype(int)) if self.class_names else range(len(self))
        return np.array([self._label(row) for row in rows], np.int32)

    def _decode(self, row):
        record = self.records[int(self.rows[row])]
        image = record["image"]
        if isinstance(image, bytes):
            file = io.BytesIO(image)
            file.name = f"{self.name}, record {self.rows[row]}"
            image = images.read_image(file)
        return images.as_rgb(image), int(record.get("label", -1))

    def _label(self, row):
        return int(self.records[int(self.rows[row])].get("label", -1))


def tfds_parts(name, data_dir):
    """Which of train and test a data set of TFDS has; a part of train is held out for validation."""
    splits = _builder(name, data_dir).info.splits
    return ({"train"} if "train" in splits else set()) | ({"test"} if _test_split(name, splits) in splits else set())


def open_tfds(name, part, data_dir):
    """Opens `train` or `test` of a data set of TFDS; errors say how to prepare it. `data_dir` "" is TFDS's own default."""
    builder = _builder(name, data_dir)
    import tensorflow_datasets as tfds

    splits, features = builder.info.splits, builder.info.features
    chosen = _test_split(name, splits) if part == "test" else part
    if chosen not in splits or "image" not in features:
        has = f"its splits are {', '.join(splits)}, its features {', '.join(features)}"
        raise ValueError(f"tfds:{name} needs a split {chosen} and a feature image: {has}")
    encoded = isinstance(features["image"], tfds.features.Image)
    records = builder.as_data_source(chosen, decoders={"image": tfds.decode.SkipDecoding()} if encoded else None)
    label = features["label"] if "label" in features else None
    names = tuple(getattr(label, "names", None) or range(getattr(label, "num_classes", None) or 0))
    return Records(f"tfds:{name}", records, np.arange(len(records)), names, images.Failures(f"tfds:{name}", len(records)))


def _test_split(name, splits):
    """ImageNet's labelled test images are its `validation`; some sets have no test split at all."""
    return "validation" if name.startswith("imagenet2012") or "test" not in splits else "test"


def _builder(name, data_dir):
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f"source tfds:{name} needs TFDS: pip install 'igpt_jax[tfds]'") from error
    directory = f", data_dir={data_dir!r}" if data_dir else ""
    prepare = (
        f"pip install 'igpt_jax[tfds]' && python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}{directory}, file_format='array_record').download_and_prepare()\""
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:  # its text lists every data set there is
        raise ValueError(f"TFDS knows no {name!r}, and finds none in {data_dir or 'its default data_dir'}") from error
    except Exception as error:  # above all: prepared as TFRecord, which has no random access
        raise ValueError(f"TFDS cannot open {name!r} ({str(error).strip().splitlines()[0]}); prepare it anew: {prepare}") from error
    if not builder.info.splits:
        raise FileNotFoundError(f"tfds:{name} is not prepared in {builder.data_dir}: {prepare}")
    return builder
