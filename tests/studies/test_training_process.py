"""The drawing of the method: the package codes its picture, and the drawing has lines and squares only."""

import json
import sys

import numpy as np

from experiments.studies import training_process
from igpt_jax.data.images import resize
from igpt_jax.palette.palette import Palette


def test_drawing_and_its_codes(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    monkeypatch.setattr(Axes, "imshow", None)  # squares, not a bitmap
    monkeypatch.setattr(sys, "argv", ["training_process", f"--out={tmp_path}/made/process.png"])
    training_process.main()
    assert (tmp_path / "made/process.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "made/process.json").read_text())
    palette = Palette(np.array(found["palette"], np.float32) / 127.5 - 1)
    assert np.array_equal(palette.encode(resize(training_process.scene(48), training_process.RESOLUTION)), found["codes"])
    shown = np.ravel(found["codes"])[training_process.FIRST :][: training_process.TOKENS]
    assert len(set(shown)) > 2 and found["commit"]  # the sequence shown is worth predicting
