"""Prepare Fashion-MNIST for TFDS from local files, without network and TensorFlow: `python -m experiments.studies.fashion_mnist [--data-dir=DIR]`.

Reads the four .gz files of Debian's package `dataset-fashion-mnist`, or of another folder (--files), and writes the TFDS data set `fashion_mnist` as
array_record. The pixels are those that TFDS would download. Afterwards --config.data.source=tfds:fashion_mnist works.
"""

import gzip
import io
import os
import pathlib
import sys

import numpy as np
import tensorflow_datasets as tfds

from igpt_jax.cli import Parser, program

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PREFIXES = {"train": "train", "test": "t10k"}


class FashionMnist(tfds.core.GeneratorBasedBuilder):
    """The builder of this name in TFDS, except that it reads local files."""

    VERSION = tfds.core.Version("3.0.1")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "apt install dataset-fashion-mnist"

    def _info(self):
        features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(names=CLASSES)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label"))

    def _split_generators(self, manager):
        return {split: self._generate_examples(pathlib.Path(manager.manual_dir), prefix) for split, prefix in PREFIXES.items()}

    def _generate_examples(self, directory, prefix):
        from PIL import Image

        images, labels = read_idx(directory / f"{prefix}-images-idx3-ubyte.gz"), read_idx(directory / f"{prefix}-labels-idx1-ubyte.gz")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, "label": int(label)}


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Read a uint8 array from a gzipped file in MNIST's idx format."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.fashion_mnist", description=__doc__)
    parser.add_argument("--files", default="/usr/share/datasets/fashion-mnist", help="folder with the four .gz files")
    parser.add_argument("--data-dir", default=None, help="data directory of TFDS; default: the default of TFDS")
    arguments = parser.parse_args()
    if not os.path.exists(os.path.join(arguments.files, "train-images-idx3-ubyte.gz")):
        sys.exit(f"error: {arguments.files} has no train-images-idx3-ubyte.gz: run apt install dataset-fashion-mnist, or give another folder with --files")
    builder = FashionMnist(data_dir=arguments.data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=arguments.files, num_shards=10)
    builder.download_and_prepare(download_config=config)
    print(f"prepared {builder.data_path}: " + ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items()))


if __name__ == "__main__":
    program(main)
