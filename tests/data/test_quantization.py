"""The program that fits the palette: what it writes, what it keeps, and its errors."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from igpt_jax import quantize
from igpt_jax.data import pipeline, quantization
from igpt_jax.distributed.lock import Lock
from igpt_jax.palette.palette import Palette
from igpt_jax.training import setup

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    """A recipe for 40 + 10 colour images of 8 x 8."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for split, number in (("train", 40), ("test", 10)):
        images = rng.integers(0, 256, (number, 8, 8, 3), np.uint8)
        labels = np.arange(number) % 2
        np.savez(tmp_path / f"images/{split}.npz", images=images, labels=labels, class_names=np.array(["cat", "dog"]))
    source = f"npz:{tmp_path / 'images'}"
    images = dict(source=source, image_size=8, augment="none", validation=0.1, directory="", workers=0, seed=0)
    palette = dict(kind="colours", size=32, iterations=10, tolerance=1e-4, path="")
    return ConfigDict(dict(seed=0, data=images, palette=palette))


def test_it_writes_palette_picture_statistics_and_codes(config, tmp_path, capsys):
    workdir = tmp_path / "new/run"
    quantize.quantize(config, workdir, codes=True)
    assert "mse 0." in capsys.readouterr().out
    palette = Palette.load(workdir / "palette.npy")
    facts = json.loads((workdir / "palette.json").read_text())
    assert facts["size"] == palette.size == 32 and facts["pixels"] == 40 * 64 and facts["data"] == config.data.to_dict()
    assert {"seed", "distinct_colours", "iterations", "mse", "mse_per_channel", "psnr", "seconds"} <= facts.keys()
    assert (workdir / "palette.png").read_bytes().startswith(b"\x89PNG")
    coded = dict(config.data, source=f"codes:{workdir / 'codes'}")
    for split, number in (("all_train", 40), ("test", 10)):
        images = pipeline.open_dataset(pipeline.DataConfig(**config.data), split)
        codes = pipeline.open_dataset(pipeline.DataConfig(**coded), split)
        np.testing.assert_array_equal(codes.codes(np.arange(number), palette), images.codes(np.arange(number), palette))
        np.testing.assert_array_equal(codes.labels, images.labels)
        assert codes.class_names == ("cat", "dog")
    stored = np.load(workdir / "codes/train.npy", mmap_mode="r")
    assert stored.dtype == np.uint16 and stored.shape == (40, 8, 8)
    assert json.loads((workdir / "codes/dataset.json").read_text())["counts"] == {"train": 40, "test": 10}
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name or "writable" in path.name]


def test_levels_are_not_fitted_and_not_mixed_up_with_colours(config, tmp_path, capsys):
    config.palette.kind, config.palette.size = "levels", 256
    quantize.quantize(config, tmp_path / "levels")
    assert "256 levels of a channel, three codes to a pixel" in capsys.readouterr().out
    assert Palette.load(tmp_path / "levels/palette.npy").tokens_per_pixel == 3
    quantize.quantize(config, tmp_path / "levels")
    assert "keeping" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the images are their own codes"):
        quantize.quantize(config, tmp_path / "levels", codes=True)
    config.palette.kind = "colours"
    with pytest.raises(ValueError, match="is not a palette of colours: set config.palette.kind"):
        quantize.quantize(config, tmp_path / "levels")
    config.palette.kind = "greys"
    with pytest.raises(ValueError, match="config.palette.kind 'greys' is unknown: one of colours, levels"):
        quantize.quantize(config, tmp_path / "new")


def test_all_training_images_count(config, tmp_path):
    quantize.quantize(config, tmp_path)
    facts = json.loads((tmp_path / "palette.json").read_text())
    images = np.load(tmp_path / "images/train.npz")["images"]
    assert facts["distinct_colours"] == len(np.unique(images.reshape(-1, 3), axis=0))
    centers = Palette.load(tmp_path / "palette.npy").centers
    nearest = ((images.reshape(-1, 1, 3) / 127.5 - 1 - centers) ** 2).sum(-1).min(-1)
    np.testing.assert_allclose(facts["mse"], nearest.mean(), rtol=1e-5)


def test_a_palette_that_is_there_is_kept(config, tmp_path, capsys):
    mine = Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3)))
    mine.save(tmp_path / "palette.npy")
    quantize.quantize(config, tmp_path, codes=True)
    assert "keeping" in capsys.readouterr().out
    np.testing.assert_array_equal(Palette.load(tmp_path / "palette.npy").centers, mine.centers)
    np.testing.assert_array_equal(Palette.load(tmp_path / "codes/palette.npy").centers, mine.centers)
    config.palette.size = 16
    with pytest.raises(ValueError, match="has 32 colours, but config.palette.size is 16: .*--refit"):
        quantize.quantize(config, tmp_path)
    quantize.quantize(config, tmp_path, refit=True)
    assert Palette.load(tmp_path / "palette.npy").size == 16


def test_a_new_palette_beside_codes_of_another_is_said_and_training_refuses_them(config, tmp_path, capsys):
    quantize.quantize(config, tmp_path, codes=True, refit=True)
    quantize.quantize(config, tmp_path)
    assert "note" not in capsys.readouterr().err
    former = (tmp_path / "codes/palette.npy").read_bytes()
    config.palette.iterations = config.seed = 1
    quantize.quantize(config, tmp_path, refit=True)
    said = f"note: {tmp_path}/codes holds codes of another palette than {tmp_path}/palette.npy, which train refuses together: write them again by the same "
    assert said + "command with --codes and without --refit, or delete them\n" in capsys.readouterr().err
    assert (tmp_path / "codes/palette.npy").read_bytes() == former
    coded = pipeline.open_dataset(pipeline.DataConfig(**dict(config.data, source=f"codes:{tmp_path / 'codes'}")), "train")
    path = tmp_path / "palette.npy"
    ways = f"write the codes again by igpt_jax.quantize --codes, delete {path} to take the palette of the codes, or take another --workdir"
    with pytest.raises(ValueError, match=f"^{path} is not the palette of codes:{tmp_path}/codes: {ways}$"):
        setup.choose_palette("", coded, epath.Path(tmp_path))
    (tmp_path / "codes/palette.npy").write_bytes(b"damaged")
    quantize.quantize(config, tmp_path)
    assert said in capsys.readouterr().err
    quantize.quantize(config, tmp_path, codes=True)
    assert "note" not in capsys.readouterr().err
    coded = pipeline.open_dataset(coded.config, "train")
    np.testing.assert_array_equal(setup.choose_palette("", coded, epath.Path(tmp_path)).centers, Palette.load(path).centers)


def test_a_given_palette_codes_without_a_fit(config, tmp_path):
    Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3))).save(tmp_path / "given.npy")
    config.palette.path = str(tmp_path / "given.npy")
    with pytest.raises(ValueError, match="--refit"):
        quantize.quantize(config, tmp_path / "run", refit=True)
    quantize.quantize(config, tmp_path / "run", codes=True)
    assert not (tmp_path / "run/palette.npy").exists()
    np.testing.assert_array_equal(Palette.load(tmp_path / "run/codes/palette.npy").centers, Palette.load(tmp_path / "given.npy").centers)


def test_codes_cut_short_are_not_taken_for_whole(config, tmp_path, monkeypatch):
    quantize.quantize(config, tmp_path, codes=True)
    (tmp_path / "images/test.npz").rename(tmp_path / "test.npz")
    (tmp_path / "images/test.npz").write_bytes(b"")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="test.npz is not an npz file"):
        patch.setattr(quantization, "fit_palette", lambda *arguments: pytest.fail("fitted before it looked"))
        quantize.quantize(config, tmp_path, codes=True, refit=True)
    assert (tmp_path / "codes/dataset.json").exists()  # nothing was begun: what is there is whole
    (tmp_path / "test.npz").rename(tmp_path / "images/test.npz")
    encode, calls = Palette.encode, []

    def failing(self, pixels):
        calls.append(len(pixels))
        if len(calls) > 1:
            raise OSError("disk gone")
        return encode(self, pixels)

    monkeypatch.setattr(Palette, "encode", failing)
    with pytest.raises(OSError, match="disk gone"):
        quantize.quantize(config, tmp_path, codes=True)
    assert not (tmp_path / "codes/dataset.json").exists()
    assert not [path for path in (tmp_path / "codes").iterdir() if "tmp" in path.name]


def test_codes_are_those_parts_that_the_data_have_and_say_their_palette_and_view(config, tmp_path, capsys):
    quantize.quantize(config, tmp_path, codes=True)
    (tmp_path / "images/test.npz").rename(tmp_path / "images/val.npz")
    quantize.quantize(config, tmp_path, codes=True)
    assert "40 train images, 10 validation images, read as" in capsys.readouterr().out
    coded = pipeline.DataConfig(**dict(config.data, source=f"codes:{tmp_path / 'codes'}", view="center_square"))
    assert [len(pipeline.open_dataset(coded, split)) for split in ("train", "validation", "all_train")] == [40, 10, 50]
    assert pipeline.splits_of(coded) == ("train", "validation") == pipeline.splits_of(pipeline.DataConfig(**config.data))
    with pytest.raises(FileNotFoundError, match="test.npy does not exist"):  # that of before is gone
        pipeline.open_dataset(coded, "test")
    with pytest.raises(ValueError, match="of the view center_square, not squash: give the view center_square, or write the codes again"):
        pipeline.open_dataset(dataclasses.replace(coded, view="squash"), "train")
    other = Palette(np.random.default_rng(1).uniform(-1, 1, (32, 3)))
    other.save(tmp_path / "codes/palette.npy")
    with pytest.raises(ValueError, match="codes/palette.npy is not the palette that these codes were made with"):
        pipeline.open_dataset(coded, "train")
    quantize.quantize(config, tmp_path, codes=True)
    np.save(tmp_path / "codes/train.npy", np.zeros((3, 8, 8), np.uint16))
    np.save(tmp_path / "codes/train_labels.npy", np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="train.npy holds 3 images, but .*dataset.json says 40"):
        pipeline.open_dataset(coded, "train")


@pytest.mark.parametrize("tested", [np.arange(6) % 2, None])
def test_codes_have_the_classes_of_training_where_other_parts_have_fewer(config, tmp_path, tested):
    ids, labels = np.zeros((20, 64), np.int64), np.arange(20) % 3
    arrays = {"trX": ids, "trY": labels, "teX": ids[:6], "palette": np.array([[-1, -1, -1], [1, 1, 1]], np.float32)}
    for name, array in (arrays if tested is None else arrays | {"teY": tested}).items():
        np.save(tmp_path / f"images/{name}.npy", array)
    config.data["source"], config.palette.path = f"npy:{tmp_path / 'images'}", str(tmp_path / "images/palette.npy")
    config.palette.size = 2
    quantize.quantize(config, tmp_path, codes=True)
    coded = pipeline.DataConfig(**dict(config.data, source=f"codes:{tmp_path / 'codes'}"))
    train, test = (pipeline.open_dataset(coded, split) for split in ("all_train", "test"))
    assert train.class_names == test.class_names == (0, 1, 2) and train.labels.tolist() == labels.tolist()


def test_a_second_one_in_the_same_workdir_is_refused(config, tmp_path):
    quantize.quantize(config, tmp_path / "run", codes=True)
    assert not (tmp_path / "run/lock").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*")}
    with Lock(tmp_path / "run"), pytest.raises(OSError, match="run is in use by process"):
        quantize.quantize(config, tmp_path / "run", codes=True, refit=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*")} == before


def test_a_workdir_that_cannot_be_written_is_refused_before_any_work(config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pipeline, "open_dataset", lambda *arguments: pytest.fail("worked before it looked"))
    with pytest.raises(OSError, match="file/run cannot be written: Not a directory"):
        quantize.quantize(config, tmp_path / "file/run")


def test_the_command_ends_in_one_line(tmp_path):
    pytest.importorskip("ml_collections")
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", "igpt_jax.quantize", "--config=configs/digits.py", f"--workdir={tmp_path}", "--config.palette.size=99"]
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1] == "error: palette size 99 exceeds the 17 distinct colours of the images: ask for at most 17"


@pytest.mark.parametrize(
    ("words", "codes", "augment", "expected"),
    [
        (["--config=digits", "--workdir=a b"], False, "none", "--config=digits '--workdir=a b'"),
        (["--config=digits", "--codes", "--refit=true", "--workdir=w"], True, "none", "--config=digits --workdir=w --config.data.source=codes:w/codes"),
        (["--codes", "--config.data.source=folder:p", "--workdir=w"], True, "cifar", "--workdir=w --config.data.source=codes:w/codes"),
        (["--codes", "--config.data.source=folder:p", "--workdir=w"], True, "imagenet", "--config.data.source=folder:p --workdir=w"),
        (["--nocodes", "--config.data.source=folder:p", "--workdir=w"], False, "cifar", "--config.data.source=folder:p --workdir=w"),
    ],
)
def test_the_next_command_trains_on_what_was_written(words, codes, augment, expected):
    config = ConfigDict({"data": {"augment": augment}})
    assert quantize.next_command(words, config, "w", codes) == f"python -m igpt_jax.train {expected}"
