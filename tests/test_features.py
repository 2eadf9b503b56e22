"""igpt_jax.features: every image once and in order, resumable, and never a mixture of two models."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from igpt_jax import activations, checkpoint, data, features
from igpt_jax.palette import Palette
from tests.models import random_model, tiny

DIGITS = dict(source="digits", image_size=8, augment="none", validation=0.1, directory="", workers=0, seed=0)
TEST = len(data.open_dataset(data.DataConfig(**DIGITS), "test"))
COUNTS = {"train": 1797 - TEST - 144, "validation": 144, "test": TEST}


@pytest.fixture(scope="module")
def pretrained():
    greys = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    return checkpoint.Pretrained(random_model(tiny()), Palette(greys), {"data": DIGITS}, 7, "runs/test/checkpoints/7")


@pytest.fixture(scope="module")
def digits():
    return data.DataConfig(**DIGITS)


def expected(pretrained, digits, split, field="features"):
    """The same by the plainest way: all codes in one batch."""
    dataset = data.open_dataset(digits, split)
    return dataset, np.asarray(getattr(pretrained(dataset.codes(np.arange(len(dataset)), pretrained.palette)), field))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind, field", [("normalised", "features"), ("raw", "raw_features")])
def test_every_image_once_and_in_order(tmp_path, pretrained, digits, kind, field):
    splits = ("validation", "test")
    described = features.write_features(pretrained, digits, tmp_path, splits, kind, batch=50, images_per_part=100)
    assert described["counts"] == {"validation": 144, "test": TEST}
    assert json.loads((tmp_path / "features.json").read_text()) == described
    for split in ("validation", "test"):
        dataset, wanted_LND = expected(pretrained, digits, split, field)
        for layer in range(4):
            # float32 sums in another order for another batch size; features are of size one
            np.testing.assert_allclose(activations.read_layer(tmp_path, split, layer), wanted_LND[layer], atol=2e-5)
        np.testing.assert_array_equal(np.load(tmp_path / split / "labels.npy"), dataset.labels)
    assert np.load(tmp_path / "test" / "part-00003.npy").shape == (4, TEST - 300, 32)


def test_kinds_differ(pretrained, digits):
    _, normalised = expected(pretrained, digits, "validation")
    _, raw = expected(pretrained, digits, "validation", "raw_features")
    assert np.abs(normalised - raw).max() > 0.1


def test_interrupted_equals_uninterrupted(tmp_path, pretrained, digits):
    def write():
        features.write_features(pretrained, digits, tmp_path, splits=("test",), batch=64, images_per_part=80)

    write()
    whole = contents(tmp_path)
    parts = tmp_path / "test"
    (parts / "part-00001.npy").unlink()
    (parts / "part-00002.npy").write_bytes(whole["test/part-00002.npy"][:-4])  # cut off
    (parts / "part-00003.npy").write_bytes(b"")
    np.save(parts / "part-00004.npy", np.zeros((1, 2, 3), np.float32))  # whole, but of another shape
    untouched = (parts / "part-00000.npy").stat().st_mtime_ns
    write()
    assert contents(tmp_path) == whole
    assert (parts / "part-00000.npy").stat().st_mtime_ns == untouched


def test_processes_share_the_parts(tmp_path, pretrained, digits, monkeypatch):
    description = features.write_features(pretrained, digits, tmp_path, ("test",), images_per_part=100)
    for path in tmp_path.glob("test/part-*"):
        path.unlink()
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares += [path.name for path, _, _ in features._missing_parts(tmp_path, description, "test", 0)]
    assert shares == ["part-00000.npy", "part-00003.npy", "part-00001.npy", "part-00002.npy"]


def test_other_features_are_refused_by_name(tmp_path, pretrained, digits):
    features.write_features(pretrained, digits, tmp_path, splits=("test",))
    before = contents(tmp_path)
    later = dataclasses.replace(pretrained, step=8)
    with pytest.raises(ValueError, match=r"differing in step \(7 there, 8 now\), kind .*--overwrite") as error:
        features.write_features(later, digits, tmp_path, splits=("test",), kind="raw")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before
    described = features.write_features(later, digits, tmp_path, splits=("validation",), kind="raw", overwrite=True)
    assert described["counts"] == {"validation": 144}
    assert not (tmp_path / "test").exists()


def test_a_split_can_be_added(tmp_path, pretrained, digits):
    features.write_features(pretrained, digits, tmp_path, splits=("test",))
    described = features.write_features(pretrained, digits, tmp_path, splits=("validation",))
    assert described["counts"] == activations.read_description(tmp_path)["counts"] == {"test": TEST, "validation": 144}


def test_float16_and_its_overflow(tmp_path, pretrained, digits):
    features.write_features(pretrained, digits, tmp_path / "half", splits=("validation",), dtype="float16")
    _, wanted = expected(pretrained, digits, "validation")
    assert np.load(tmp_path / "half/validation/part-00000.npy", mmap_mode="r").dtype == np.float16
    np.testing.assert_allclose(activations.read_layer(tmp_path / "half", "validation", 3), wanted[3], rtol=1e-3, atol=1e-3)
    huge = dataclasses.replace(pretrained, model=jax.tree.map(lambda x: x * 1e5, pretrained.model))
    with pytest.raises(ValueError, match="not finite in float16: use --dtype=float32"):
        features.write_features(huge, digits, tmp_path / "huge", splits=("validation",), dtype="float16")
    assert not list((tmp_path / "huge").rglob("*.tmp"))


def test_images_must_fit_the_model(tmp_path, pretrained, digits):
    with pytest.raises(ValueError, match="images of 16 x 16 pixels do not fit 64 positions: give --image-size=8"):
        features.write_features(pretrained, dataclasses.replace(digits, image_size=16), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_program(tmp_path, pretrained, capsys):
    checkpoint.save_model(tmp_path / "run", pretrained.model, pretrained.palette, pretrained.config, step=3)
    command = [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'features'}"]
    assert features.main([*command, "--batch=100"]) == 0
    assert f"layers 0 to 3, width 32, normalised; {COUNTS['train']} train, 144 validation, {TEST} test" in capsys.readouterr().out
    assert activations.read_description(tmp_path / "features")["counts"] == COUNTS
    assert features.main([*command, "--kind=raw"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "kind" in error
    assert features.main([*command, "--splits=train,testing"]) == 1
    assert "testing" in capsys.readouterr().err
    assert features.main([f"--checkpoint={tmp_path / 'nothing'}", f"--out={tmp_path / 'x'}"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_without_validation_share_there_are_two_splits(tmp_path, pretrained):
    checkpoint.save_model(tmp_path / "run", pretrained.model, pretrained.palette, pretrained.config)
    assert features.main([f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'features'}", "--validation=0"]) == 0
    assert activations.read_description(tmp_path / "features")["counts"] == {"train": 1797 - TEST, "test": TEST}
