"""TFDS reads Fashion-MNIST that was prepared from files, without network or TensorFlow."""

import gzip
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from igpt_jax.data import pipeline

ROOT = pathlib.Path(__file__).parents[2]
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")


def config(directory):
    return pipeline.DataConfig("tfds:fashion_mnist", 28, "none", 0.1, str(directory), 0, 0)


def prepare(files, directory):
    command = [sys.executable, "-m", "experiments.studies.fashion_mnist", f"--files={files}", f"--data-dir={directory}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def write_idx(path, array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def test_files_in_pixels_out(tmp_path):
    images = {"train": np.random.default_rng(0).integers(0, 256, (50, 28, 28)), "t10k": np.random.default_rng(1).integers(0, 256, (20, 28, 28))}
    for prefix, array in images.items():
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", array)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(len(array)) % 10)
    done = prepare(tmp_path, tmp_path / "tfds")
    assert done.returncode == 0, done.stderr
    test = pipeline.open_dataset(config(tmp_path / "tfds"), "test")
    numbers = [next(i for i, image in enumerate(images["t10k"]) if (image == seen[..., 0]).all()) for seen in test.images(0, 20)]
    assert sorted(numbers) == list(range(20)) and test.labels.tolist() == [number % 10 for number in numbers]
    assert test.class_names[0] == "T-shirt/top" and test.class_names[9] == "Ankle boot"
    assert len(pipeline.open_dataset(config(tmp_path / "tfds"), "train")) == 45


def test_missing_files_are_an_error_of_one_line(tmp_path):
    done = prepare(tmp_path, tmp_path / "tfds")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "dataset-fashion-mnist" in done.stderr


@pytest.mark.slow
def test_debians_files_are_the_whole_set(tmp_path):
    if not DEBIAN.exists():
        pytest.skip(f"needs {DEBIAN}: apt install dataset-fashion-mnist")
    done = prepare(DEBIAN, tmp_path)
    assert done.returncode == 0, done.stderr
    test = pipeline.open_dataset(config(tmp_path), "test")
    assert len(test) == 10_000 and np.bincount(test.labels).tolist() == [1000] * 10
