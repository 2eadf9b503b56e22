"""The Frechet distance is that of Gaussians, its draws have images of their own, and the study's files and refusals are right."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments.studies import sample_quality
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette

DATA = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}


def with_moments(generator, rows, mean, covariance):
    """Features [rows, D] whose mean and covariance are exactly these."""
    white = generator.normal(size=(rows, len(mean)))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_the_distance_of_known_gaussians_is_that_of_the_closed_form():
    generator = np.random.default_rng(0)
    mean, other_mean, spread, other_spread = generator.normal(size=5), generator.normal(size=5), np.array([1, 2, 3, 4, 0.1]), np.array([2, 2, 1, 0.5, 3])
    rotation = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    pairs = [(spread, other_spread, np.eye(5)), (spread, other_spread, rotation)]  # covariances that commute: the sum over axes of squared differences
    for one, other, axes in pairs:
        sets = (with_moments(generator, 40, m, axes @ np.diag(s**2) @ axes.T) for m, s in ((mean, one), (other_mean, other)))
        expected = ((mean - other_mean) ** 2).sum() + ((one - other) ** 2).sum()
        assert sample_quality.frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)
    first, second = (with_moments(generator, 40, np.zeros(2), np.array(c)) for c in ([[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 3.0]]))
    root_trace = np.sqrt(8 + 2 * np.sqrt(9))  # of two dimensions: the root of trace + 2 sqrt(determinant) of the product, whose trace is 8 and determinant 9
    assert sample_quality.frechet_distance(first, second) == pytest.approx(4 + 4 - 2 * root_trace, rel=1e-9)  # covariances that do not commute


def test_identical_sets_are_at_distance_zero_and_order_does_not_matter():
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    other = features[::-1] * 1.5 + 1
    assert abs(sample_quality.frechet_distance(features, features[::-1])) < 1e-10
    assert sample_quality.frechet_distance(features, other) == pytest.approx(sample_quality.frechet_distance(other, features), rel=1e-9)
    constant = np.concatenate([features, np.ones((50, 1))], axis=1)  # a feature that is the same in all images
    assert abs(sample_quality.frechet_distance(constant, constant)) < 1e-6


@pytest.mark.parametrize(
    ("rows", "value", "reason"), [(8, 0.0, "8 images are too few for features of width 8: .* at least 9"), (20, np.nan, "8 features are not")]
)
def test_what_has_no_distance_is_refused(rows, value, reason):
    features = np.random.default_rng(0).normal(size=(rows, 8))
    features[0] += value
    with pytest.raises(ValueError, match=reason):
        sample_quality.frechet_distance(features, features)


def test_sets_of_a_draw_are_conditions_of_the_same_images(monkeypatch):
    made = []

    def sample_codes(model, given_IP, key, count, **more):
        made.append((given_IP, more))
        return np.zeros((len(given_IP), count, 16), int)

    monkeypatch.setattr(sample_quality, "sample_codes", sample_codes)
    pretrained = SimpleNamespace(model=None, image_size=4, model_config=SimpleNamespace(columns=4))
    arguments = SimpleNamespace(seed=0, batch=7, temperatures=[1.0, 0.5], top_ps=[0.9])
    real_IS = np.arange(96).reshape(6, 16)
    sets = sample_quality.picture_sets(pretrained, arguments, real_IS, 0)
    conditions = ["temperature 1", "temperature 0.5", "top-p 0.9"]
    drawn = [f"{kind}, {name}" for name in conditions for kind in ("completions", "from nothing")]
    assert list(sets) == ["other test images", *drawn, "their pixels exchanged"]
    assert all(np.shape(codes) == (6, 16) for codes in sets.values())
    np.testing.assert_array_equal(made[0][0], real_IS[:, :8])
    assert made[1][0].shape == (1, 0) and made[4][1] == {"temperature": 1.0, "top_p": 0.9, "batch": 7}
    exchanged = sets["their pixels exchanged"]
    np.testing.assert_array_equal(np.sort(exchanged, axis=0), real_IS)
    assert len({tuple(order) for order in np.argsort(exchanged, axis=0).T.tolist()}) > 1  # each position its own order


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A random model of 8 x 8 pixels that names digits as its data."""
    path = tmp_path_factory.mktemp("run")
    checkpoints.save_model(path, random_model(tiny(layers=1, width=8, heads=2)), grey_palette(16), {"data": DATA, "loss": {}}, step=7)
    return path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
    sample_quality.main()


@pytest.mark.slow
def test_the_study_is_drawn_and_its_floor_is_the_lowest(run, monkeypatch, capsys):
    out = run / "made" / "quality.png"
    flags = ("--count=60", "--draws=2", "--layer=1", "--batch=40", "--temperatures=1", "--top-ps=0.5")
    call(monkeypatch, f"--checkpoint={run}", *flags, f"--out={out}")
    found = json.loads(out.with_suffix(".json").read_text())
    assert np.asarray(Image.open(out)).shape[1] > 1000 and "measurements" not in found
    sets = found["sets"]
    assert len(sets) == 6 and all(of["mean"] > 2 * sets["other test images"]["mean"] for name, of in sets.items() if name.startswith(("completions", "from")))
    for of in sets.values():
        assert len(of["distances"]) == 2 and of["interval"][0] < of["mean"] < of["interval"][1]
        assert of["standard_error"] == pytest.approx(abs(of["distances"][0] - of["distances"][1]) / 2)
    assert "Frechet distance to 60 test images, features of layer 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--count=8"], "--count=8 must be above 8, the width of the features"),
        (["--count=200"], "4 draws of 2 x 200 test images are 1,600, and there are 359: lower one of them"),
        (["--layer=2"], "--layer=2 must be from 0 to 1"),
        (["--draws=1"], "--draws"),
        (["--top-ps=0.9,1.5"], "--top-ps"),
    ],
)
def test_refusals_are_one_line(run, monkeypatch, tmp_path, flags, reason):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, f"--checkpoint={run}", "--count=20", *flags, f"--out={tmp_path}/it.png")
    assert reason in stopped.value.code and "\n" not in stopped.value.code and not (tmp_path / "it.png").exists()
