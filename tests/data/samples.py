"""Small data sets for tests, and what tests do with their batches."""

import dataclasses
import itertools
import json

import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.palette.palette import Palette

DIGITS = pipeline.DataConfig(source="digits", image_size=8, augment="cifar", validation=0.1, directory="", workers=0, seed=3)
GREYS = Palette(np.repeat(np.linspace(-1, 1, 9, dtype=np.float32)[:, None], 3, 1))
COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3)).astype(np.float32))


def replace(config, **changes):
    return dataclasses.replace(config, **changes)


def first(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]), name


def write_codes(directory, palette):
    for part, split in (("train", "all_train"), ("test", "test")):
        digits = pipeline.open_dataset(DIGITS, split)
        np.save(directory / f"{part}.npy", palette.encode(digits.images(0, None)).astype(np.uint16))
        np.save(directory / f"{part}_labels.npy", digits.labels)
    palette.save(directory / "palette.npy")
    (directory / "dataset.json").write_text(json.dumps({"class_names": list("0123456789"), "image_size": 8, "source": "digits"}))


def pictures(folder, augment="cifar", workers=0):
    return pipeline.DataConfig(f"folder:{folder}", 10, augment, 0.1, "", workers, 0)
