"""The blog's picture is that of igpt_jax.sample, and a JSON file says how it was made."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.studies import completions
from igpt_jax.sampling import complete, grid
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A random model of 8 x 8 pixels that names digits as its data."""
    path = tmp_path_factory.mktemp("run")
    data = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
    checkpoints.save_model(path, random_model(tiny()), grey_palette(16), {"data": data}, step=7)
    return path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["completions", *map(str, arguments)])
    completions.main()


def test_picture_of_test_images(run, monkeypatch):
    call(monkeypatch, f"--checkpoint={run}", "--count=3", "--completions=2", "--seed=4", f"--out={run}/made/it.png")
    found = json.loads((run / "made/it.json").read_text())
    assert found["images"] == {"data": "digits", "split": "test", "count": 3} and (found["step"], found["rows"], found["seed"]) == (7, 4, 4)
    assert found["commit"] and "--seed=4" in found["command"]
    pretrained = checkpoints.load(run)
    made = complete.complete(pretrained, complete.one_of_each_class(pretrained, 3), completions=2, seed=4)
    np.testing.assert_array_equal(np.asarray(Image.open(run / "made/it.png")), np.asarray(grid.completion_grid(made)))


def test_picture_of_ones_own_images(run, monkeypatch, tmp_path):
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(tmp_path / "mine.png")
    call(monkeypatch, f"--checkpoint={run}", f"--images={tmp_path}/mine.png", "--rows=6", f"--out={tmp_path}/it.png")
    found = json.loads((tmp_path / "it.json").read_text())
    assert found["images"] == {"files": [f"{tmp_path}/mine.png"]} and found["rows"] == 6 and found["completions"] == 5


def test_refusals_are_one_line(run, monkeypatch, tmp_path):
    for arguments, reason in (((f"--checkpoint={tmp_path}",), "no complete"), ((f"--checkpoint={run}", "--rows=8"), "rows 8 must be between 0 and 7")):
        with pytest.raises(SystemExit) as stopped:
            call(monkeypatch, *arguments, f"--out={tmp_path}/it.png")
        assert reason in stopped.value.code and "\n" not in stopped.value.code and not (tmp_path / "it.png").exists()
