"""The blog's picture shows the original, its colours and what igpt_jax.sample makes of it, and a JSON file says how it was made."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.studies import completions
from igpt_jax.sampling import complete
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
    call(monkeypatch, f"--checkpoint={run}", "--count=3", "--completions=2", "--seed=4", "--samples=5", "--scale=12", f"--out={run}/made/it.png")
    found = json.loads((run / "made/it.json").read_text())
    assert found["images"] == {"data": "digits", "split": "test", "count": 3} and (found["step"], found["rows"], found["seed"]) == (7, 4, 4)
    assert found["commit"] and "--seed=4" in found["command"] and found["samples"] == {"file": "it_samples.png", "count": 5}
    pretrained = checkpoints.load(run)
    made = complete.complete(pretrained, complete.one_of_each_class(pretrained, 3), completions=2, seed=4)
    picture = np.asarray(Image.open(run / "made/it.png"))
    coded = pretrained.palette.decode(pretrained.palette.encode(made.originals)).reshape(made.originals.shape)
    columns = [made.originals, coded, made.given, made.pictures[:, 0], made.pictures[:, 1]]
    assert (coded != made.originals).any() and (coded[:, :4] == made.given[:, :4]).all()
    for column, pictures in enumerate(columns):
        for row, expected in enumerate(pictures):
            top, left = 26 + row * 100, 4 + column * 100
            np.testing.assert_array_equal(picture[top : top + 96 : 12, left : left + 96 : 12], expected)
            np.testing.assert_array_equal(picture[top + 11 : top + 96 : 12, left + 11 : left + 96 : 12], expected)  # nearest neighbour
    samples = np.asarray(Image.open(run / "made/it_samples.png"))
    drawn = complete.unconditional(pretrained, 5, seed=4)
    np.testing.assert_array_equal(samples[4:100:12, 104:200:12], drawn[1])  # row by row, in a square of 3 x 3
    np.testing.assert_array_equal(samples[104:200:12, 4:100:12], drawn[3])
    assert (samples[104:200, 204:300] == 255).all() and samples.shape[:2] == (204, 304)


@pytest.mark.parametrize(("name", "samples"), [("completions", "samples"), ("cifar_completions", "cifar_samples"), ("it", "it_samples")])
def test_samples_have_a_name_of_their_own_beside_the_picture(name, samples, tmp_path):
    assert completions.samples_path(tmp_path / f"{name}.png") == tmp_path / f"{samples}.png"


def test_picture_of_ones_own_images(run, monkeypatch, tmp_path):
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(tmp_path / "mine.png")
    call(monkeypatch, f"--checkpoint={run}", f"--images={tmp_path}/mine.png", "--rows=6", "--samples=0", f"--out={tmp_path}/it.png")
    found = json.loads((tmp_path / "it.json").read_text())
    assert found["images"] == {"files": [f"{tmp_path}/mine.png"]} and found["rows"] == 6 and found["completions"] == 5
    assert found["samples"] is None and sorted(path.name for path in tmp_path.iterdir()) == ["it.json", "it.png", "mine.png"]


def test_refusals_are_one_line(run, monkeypatch, tmp_path):
    for arguments, reason in (((f"--checkpoint={tmp_path}",), "no complete"), ((f"--checkpoint={run}", "--rows=8"), "rows 8 must be between 0 and 7")):
        with pytest.raises(SystemExit) as stopped:
            call(monkeypatch, *arguments, f"--out={tmp_path}/it.png")
        assert reason in stopped.value.code and "\n" not in stopped.value.code and not (tmp_path / "it.png").exists()
