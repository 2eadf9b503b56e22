"""The count baselines on a case done by hand."""

import json

import numpy as np
import pytest

from experiments.report import summary
from experiments.report.summary import count_baselines
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette


def test_counts_give_the_entropy_of_what_they_count():
    train = np.tile(np.asarray([[0, 1]]), (10_000, 1))  # position 0 is always colour 0, position 1 always colour 1
    found = count_baselines(train, train[:10], 2)
    assert found["unigram"] == pytest.approx(np.log(2), abs=1e-3)
    assert found["per_position"] == pytest.approx(0, abs=1e-3)


def test_a_colour_never_seen_costs_much_and_not_everything():
    found = count_baselines(np.zeros((100, 4), int), np.ones((1, 4), int), 2)
    assert 2 < found["per_position"] < np.inf and 2 < found["unigram"] < np.inf


def write_run(folder, palette, source="digits", **changes):
    """A run's checkpoint of a random model of 8 x 8 pixels."""
    model = random_model(tiny(layers=1, width=8, heads=2, vocabulary=palette.size, **changes))
    seen = {"source": source, "image_size": 8, "augment": "none", "view": "center_square", "split_by": "name", "validation": 0.0}
    seen |= {"directory": "", "workers": 0, "seed": 0}
    loss = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}
    checkpoints.save_model(folder, model, palette, {"data": seen, "seed": 0, "loss": loss})
    return checkpoints.load(folder)


def test_counts_of_red_green_and_blue_are_per_pixel_as_the_models_loss_is(tmp_path):
    palette = Palette.levels(256) if hasattr(Palette, "levels") else None
    write_run(tmp_path, palette, positions=192, tokens_per_pixel=3)
    found = summary.summarise(tmp_path)["baselines"]
    write_run(tmp_path / "grey", grey_palette(16))
    coloured = summary.summarise(tmp_path / "grey")["baselines"]  # digits have 17 greys: one more than these colours
    assert found["unigram"] == pytest.approx(3 * coloured["unigram"], rel=0.1)


def test_counts_are_of_images_drawn_from_the_whole_split(tmp_path, monkeypatch):
    """And not of the first of a sorted one, which are of one class."""
    pixels = np.zeros((40, 8, 8, 3), np.uint8)
    pixels[20:] = 255
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=pixels, labels=np.arange(40) // 20)
    write_run(tmp_path, grey_palette(), f"npz:{tmp_path}")
    monkeypatch.setattr(summary, "COUNTED", 20)
    assert summary.summarise(tmp_path)["baselines"]["unigram"] > 0.3  # two colours, about as often


def test_a_probe_of_another_model_is_left_out_and_one_without_test_images_has_no_accuracy(tmp_path, capsys):
    pretrained = write_run(tmp_path, grey_palette())
    row = {"layer": 0, "test": None}
    probe = {"step": pretrained.step, "checksum": pretrained.checksum, "best": row, "last": row, "raw_pixels": row}
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    assert "| probe accuracy, last layer" in (shown := summary.table(summary.summarise(tmp_path))) and shown.count("| - |") == 3
    assert "left out" not in capsys.readouterr().err
    for other in ({"checksum": pretrained.checksum + 1}, {"checksum": None, "step": pretrained.step + 1}):
        (tmp_path / "probe.json").write_text(json.dumps(probe | other))
        assert summary.summarise(tmp_path)["probe"] is None
        assert "probe.json is left out, it is of another model" in capsys.readouterr().err
