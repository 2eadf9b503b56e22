"""The photographs that scikit-learn brings: squares inside them, and one line where they are missing."""

import importlib.util
import types

import numpy as np
import pytest

from igpt_jax.data import images, photographs


def test_every_square_lies_in_its_photograph():
    files = {path.name: images.read_image(path) for path in photographs.find_photographs()}
    found = photographs.photographs()
    assert list(found) == list(photographs.SQUARES) and len({picture.tobytes() for picture in found.values()}) == len(found)
    for name, (file, left, top, side) in photographs.SQUARES.items():
        assert found[name].shape == (side, side, 3) and found[name].dtype == np.uint8
        np.testing.assert_array_equal(found[name][[0, -1]], files[file][[top, top + side - 1], left : left + side])


@pytest.mark.parametrize("library", [None, types.SimpleNamespace(origin=None), types.SimpleNamespace(origin="/nowhere/sklearn/__init__.py")])
def test_missing_photographs_are_one_line(monkeypatch, library):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: library)
    assert photographs.find_photographs() == []
    with pytest.raises(FileNotFoundError, match="pip install scikit-learn"):
        photographs.photographs()
