"""Data sets of TensorFlow Datasets, read without TensorFlow."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from igpt_jax.data import pipeline
from igpt_jax.data.failures import Failures
from tests.data.samples import DIGITS, GREYS, first, replace
from tests.runs import ROOT


def test_tfds_without_tensorflow(shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if not installed
    train, test = pipeline.open_dataset(shapes, "all_train"), pipeline.open_dataset(shapes, "test")
    assert (len(train), len(test)) == (30, 12) and train.class_names == ("a", "b", "c")  # no test split: its validation is the test set
    pixels, labels = train.images(0, None), train.labels
    assert pixels.shape == (30, 8, 8, 3) and sorted(pixels[:, 0, 0, 0] // 8) == list(range(30))
    assert labels.dtype == np.int32 and np.array_equal(labels, pixels[:, 0, 0, 0] // 8 % 3)
    assert len(pipeline.open_dataset(shapes, "train")) == 27
    batch = first(pipeline.train_batches(train, GREYS, 30, seed=0), 1)[0]
    assert np.bincount(batch["label"]).tolist() == [10, 10, 10] and batch["codes"].shape == (30, 64)


def test_the_range_of_tfds_labels_is_known_from_some_of_them(shapes):
    """Where fine-tuning checks them at each start: reading those of ImageNet takes an hour."""
    train = pipeline.open_dataset(shapes, "all_train")

    class Counted:
        read = []

        def __init__(self, labels):
            self.labels = labels

        def __getitem__(self, row):
            self.read.append(row)
            return {"label": self.labels[row]}

    many = dataclasses.replace(train.source, records=Counted(np.arange(10_000) % 3), rows=np.arange(10_000))
    assert pipeline.Dataset(shapes, "train", many).label_range == (0, 2) and len(set(Counted.read)) == 100 and {0, 9_999} <= set(Counted.read)
    unlabelled = dataclasses.replace(many, records=Counted(np.full(10_000, -1)))
    assert pipeline.Dataset(shapes, "train", unlabelled).label_range == (-1, 2)
    numbers = dataclasses.replace(many, class_names=(), records=Counted(np.arange(10_000)))  # TFDS has not checked them
    assert pipeline.Dataset(shapes, "train", numbers).label_range == (0, 9_999)
    assert train.label_range == (0, 2) and pipeline.splits_of(shapes) == ("train", "validation", "test")


def test_tfds_records_that_do_not_decode_are_counted_like_files(shapes, caplog):
    train = pipeline.open_dataset(shapes, "all_train")

    class Broken:
        def __init__(self, rows):
            self.rows = rows

        def __getitem__(self, row):
            record = train.source.records[row]
            return record | {"image": record["image"][:50]} if row in self.rows else record

    labels = train.labels
    last = int(np.flatnonzero(labels == 1)[-1])
    source = dataclasses.replace(train.source, records=Broken({last}))
    dataset = pipeline.Dataset(shapes, "all_train", source)
    batches = list(pipeline.evaluation_batches(dataset, GREYS, 10))
    assert np.array_equal(np.concatenate([batch["label"] for batch in batches]), labels)
    stand_in = train.codes([np.flatnonzero(labels == 1)[0]], GREYS)[0]  # the next of its label, round the end
    assert np.array_equal(np.concatenate([batch["codes"] for batch in batches])[last], stand_in)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"tfds:tiny_shapes, record {last} is not a readable image: ") and line.endswith("replaces it (1 so far)")
    source = dataclasses.replace(train.source, records=Broken({4, 5}), failures=Failures(train.source.name, len(train.source)))
    with pytest.raises(ValueError, match="tfds:tiny_shapes: 2 of 30 pictures, more than 1%"):
        pipeline.Dataset(shapes, "all_train", source).images(0, None)


def test_tfds_errors_name_the_way_out(shapes, tmp_path):
    config = replace(DIGITS, source="tfds:mnist", directory=str(tmp_path))
    command = r"tfds.builder\('mnist', data_dir=.*file_format='array_record'\).download_and_prepare"
    with pytest.raises(FileNotFoundError, match=command) as caught:
        pipeline.open_dataset(config, "train")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="TFDS knows no 'nonesuch'") as caught:
        pipeline.open_dataset(replace(config, source="tfds:nonesuch"), "train")
    assert "\n" not in str(caught.value)
    shutil.copytree(pathlib.Path(shapes.directory) / "tiny_shapes", tmp_path / "tiny_shapes")
    (info,) = tmp_path.glob("tiny_shapes/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="prepare it again: .*array_record") as caught:
        pipeline.open_dataset(replace(shapes, directory=str(tmp_path)), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_array_records_are_read_without_the_code_that_wrote_them(shapes):
    """In a process of its own, which does not know the builder: names and types of the features are stored beside the records."""
    program = f"""
from igpt_jax.data import pipeline
dataset = pipeline.open_dataset(pipeline.{shapes!r}, "all_train")
print(len(dataset), dataset.class_names, dataset.images(0, None)[:, 0, 0, 0].sum())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == f"30 ('a', 'b', 'c') {8 * sum(range(30))}"
