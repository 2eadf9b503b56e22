"""Data sets that several tests read."""

import importlib
import sys

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import pipeline
from tests.data.samples import DIGITS, GREYS, replace, write_codes

TINY_SHAPES = '''
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class TinyShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=["a", "b", "c"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(30), "validation": self._generate_examples(12)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": Image.fromarray(np.full((20, 24, 3), 8 * i, np.uint8)), "label": i % 3}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 noise pictures of several sizes in two classes, with train/ and test/."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 10)):
        for i in range(count):
            path = root / part / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (12 + i % 5, 12 + i % 7, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A TFDS set in array_record, prepared and read without TensorFlow."""
    pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")
    (root / "igpt_tiny_shapes.py").write_text(TINY_SHAPES)
    sys.path.insert(0, str(root))
    try:
        builder = importlib.import_module("igpt_tiny_shapes").TinyShapes(data_dir=str(root), file_format="array_record")
        builder.download_and_prepare()
    finally:
        sys.path.remove(str(root))
    return pipeline.DataConfig(source="tfds:tiny_shapes", image_size=8, augment="none", validation=0.1, directory=str(root), workers=0, seed=0)


@pytest.fixture
def coded(tmp_path):
    """The digits as `quantize` stores them."""
    write_codes(tmp_path, GREYS)
    return replace(DIGITS, source=f"codes:{tmp_path}")
