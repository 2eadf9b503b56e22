"""Colour coding: numbers by hand, the palette is named, the files are complete, errors are one line."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.studies import colour_coding
from tests.runs import grey_palette


@pytest.fixture
def noise(tmp_path):
    """A picture of few greys and one of many colours, as files."""
    random = np.random.default_rng(0)
    greys = np.repeat(random.choice([0, 80, 160, 240], (20, 30, 1)), 3, axis=2).astype(np.uint8)
    colours = random.integers(0, 256, (24, 16, 3), np.uint8)
    for name, pixels in (("greys.png", greys), ("colours.png", colours)):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["colour_coding", *map(str, arguments)])
    colour_coding.main()


def test_psnr_by_hand():
    black = np.zeros((2, 2, 3), np.uint8)
    assert colour_coding.psnr(black, black) is None
    assert colour_coding.psnr(black, black + np.uint8(255)) == 0
    assert colour_coding.psnr(black + np.uint8(200), black + np.uint8(226)) == pytest.approx(20 * np.log10(255 / 26))


def test_figure_and_numbers(noise, monkeypatch, capsys):
    run(monkeypatch, "--images", noise / "greys.png", noise / "colours.png", "--size=8", "--colours=16", f"--out={noise}/made/coding.png")
    found = json.loads((noise / "made/coding.json").read_text())
    assert (noise / "made/coding.png").read_bytes().startswith(b"\x89PNG")
    assert found["palette"] == {"fitted_on": "the images shown", "pixels": 20 * 30 + 24 * 16, "distinct_colours": 4 + 24 * 16}
    assert [row["colours"] for row in found["sweep"]] == [8, 16, 32, 64, 128, 256]  # no palette of more colours than there are
    many = [row["psnr"][1] for row in found["sweep"]]
    assert many == sorted(many) and found["images"][1]["psnr"] == found["sweep"][1]["psnr"][1]
    assert found["commit"] and found["seed"] == 0 and "--colours=16" in found["command"]
    assert "k-means on the 984 pixels (388 colours) of the images shown" in capsys.readouterr().out


def test_somebodys_palette_is_used_and_named(noise, monkeypatch, capsys):
    grey_palette(8).save(noise / "palette.npy")
    run(monkeypatch, "--images", noise / "colours.png", "--size=16", f"--palette={noise}/palette.npy", f"--out={noise}/coding.png")
    found = json.loads((noise / "coding.json").read_text())
    assert found["colours"] == 8 and found["palette"]["file"] == f"{noise}/palette.npy"
    assert found["images"][0]["psnr"] < found["sweep"][0]["psnr"][0]  # greys fit worse than 8 colours of the picture itself
    assert f"Palette: {noise}/palette.npy, 8 colours" in capsys.readouterr().out


def test_palette_fitted_on_a_data_set(noise):
    found, _, palette = colour_coding.compare({"a.png": np.zeros((9, 9, 3), np.uint8)}, 8, 16, source="digits")
    assert found["palette"] == {"fitted_on": "digits", "pixels": 1438 * 64, "distinct_colours": 17} and palette.size == 16


def test_refusals_are_one_line(noise, monkeypatch):
    for arguments, reason in (
        (("--colours=999",), "palette size 999 exceeds the 388 distinct colours"),
        (("--size=0",), "argument --size: '0' is not a whole number of at least 1"),
        ((f"--palette={noise}/none.npy",), "no palette at"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "--images", noise / "greys.png", noise / "colours.png", f"--out={noise}/x.png", *arguments)
        assert reason in stopped.value.code and "\n" not in stopped.value.code
