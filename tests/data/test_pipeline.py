"""Sources, splits and batches: the same stream however it is cut, resumed, shared out or decoded."""

import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import images, pipeline, sampler
from igpt_jax.palette.palette import Palette

DIGITS = pipeline.DataConfig(source="digits", image_size=8, augment="cifar", validation=0.1, directory="", workers=0, seed=3)
GREYS = Palette(np.repeat(np.linspace(-1, 1, 9, dtype=np.float32)[:, None], 3, 1))
COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3)).astype(np.float32))
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


def replace(config, **changes):
    return dataclasses.replace(config, **changes)


def first(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]), name


PARTS = [np.array(part) for part in ([0, 1, 2, 3, 8, 9], [4, 5, 6, 7, 10, 11], [8, 9, 10, 11])]  # of 12 places: neither neighbours, nor equal, nor apart


def joined(shares, parts):
    """The batches of all processes as one process would have them; places that several processes supply hold the same."""
    places = np.concatenate([np.arange(12)[part] for part in parts])
    first, back = np.unique(places, return_index=True)[1], np.unique(places, return_inverse=True)[1]
    whole = []
    for batches in zip(*shares, strict=True):
        together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        whole.append({name: values[first] for name, values in together.items()})
        assert_same([together], [{name: values[back] for name, values in whole[-1].items()}])
    return whole


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


def write_codes(directory, palette):
    for part, split in (("train", "all_train"), ("test", "test")):
        digits = pipeline.open_dataset(DIGITS, split)
        np.save(directory / f"{part}.npy", palette.encode(digits.images(0, None)).astype(np.uint16))
        np.save(directory / f"{part}_labels.npy", digits.labels)
    palette.save(directory / "palette.npy")
    (directory / "dataset.json").write_text(json.dumps({"class_names": list("0123456789"), "image_size": 8, "source": "digits"}))


def pictures(folder, augment="cifar", workers=0):
    return pipeline.DataConfig(f"folder:{folder}", 10, augment, 0.1, "", workers, 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "imagenet"}, "source 'imagenet' is unknown"),
        ({"source": "folder:"}, "is unknown"),
        ({"source": "digits:x"}, "is unknown"),
        ({"augment": "flip"}, "augment 'flip' is unknown: one of none, cifar, imagenet"),
        ({"source": "codes:x", "augment": "imagenet"}, "which codes cannot"),
        ({"image_size": 0}, "image_size must be a whole number of at least 1, not 0"),
        ({"workers": -1}, "workers must be a whole number of at least 0, not -1"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"validation": 1.0}, "validation"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        replace(DIGITS, **changes)
    assert "\n" not in str(caught.value)


def test_a_recipe_from_before_the_view_has_the_one_that_its_augmentation_implied(monkeypatch):
    for augment, view in (("none", "center_square"), ("cifar", "center_square"), ("imagenet", "imagenet")):
        assert replace(DIGITS, augment=augment, view=None).view == view
    assert replace(DIGITS, source="folder:x", split_by=None).split_by == "position" and replace(DIGITS, split_by=None).split_by == "name"
    kept = replace(DIGITS, source="folder:x", augment="imagenet", view="squash", split_by="name")
    assert (kept.view, kept.split_by) == ("squash", "name")
    with pytest.raises(ValueError, match="view 'crop' is unknown: one of center_square, imagenet, squash"):
        replace(DIGITS, view="crop")


def test_another_source_is_seen_as_the_model_s_images_were():
    """An ImageNet model's pictures moved to another folder keep their view and their draw; only the augmentation is left out."""
    trained = {"source": "folder:there", "image_size": 32, "augment": "imagenet", "validation": 0.1, "directory": "", "workers": 0, "seed": 3}
    for known in (trained, trained | {"view": "imagenet", "split_by": "position"}):
        moved = pipeline.config_for({"data": known}, 32, "folder:here")
        assert (moved.source, moved.augment, moved.view, moved.split_by, moved.seed) == ("folder:here", "none", "imagenet", "position", 3)
        assert pipeline.config_for({"data": known}, 32).augment == "imagenet" and pipeline.config_for({"data": known}, 32, view="squash").view == "squash"
    assert pipeline.config_for({"data": trained | {"view": "squash"}}, 32, "npz:x").view == "squash"
    assert pipeline.config_for({"data": {"source": ""}}, 32, "npz:x").view == "center_square"


def test_the_home_folder_is_expanded_where_a_source_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("folder", "npz", "codes", "npy"):
        assert replace(DIGITS, source=f"{kind}:~/x$HOME").source == f"{kind}:{tmp_path}/x$HOME"
    assert replace(DIGITS, directory="~/tfds").directory == f"{tmp_path}/tfds" and replace(DIGITS, source="npz:a~b").source == "npz:a~b"
    stored = {"data": dataclasses.asdict(replace(DIGITS, source="npz:x")) | {"source": "npz:~/x"}}
    assert pipeline.config_for(stored, 8, f"npz:{tmp_path}/x").augment == "cifar"  # the same source
    (tmp_path / "x").mkdir()
    np.savez(tmp_path / "x" / "train.npz", images=np.zeros((10, 8, 8), np.uint8))
    assert len(pipeline.open_dataset(replace(DIGITS, source="npz:~/x"), "all_train")) == 10


@pytest.mark.parametrize("view", pipeline.VIEWS)
def test_the_view_is_that_of_evaluation_and_of_training_that_does_not_crop(folder, view):
    picture = images.read_image(folder / "train" / "a" / "02.png")
    expected = images.evaluation_view(picture, view, 10)
    for augment in pipeline.AUGMENTS:
        dataset = pipeline.open_dataset(replace(pictures(folder, augment), view=view), "all_train")
        assert np.array_equal(dataset.images(1, 2)[0], expected) and np.array_equal(dataset.codes([1], COLOURS)[0], COLOURS.encode(expected).ravel())
    plain = pipeline.open_dataset(replace(pictures(folder, "none"), view=view), "all_train")
    batch = first(pipeline.train_batches(plain, COLOURS, 30, seed=0), 1)[0]
    assert COLOURS.encode(expected).ravel().tolist() in batch["codes"].tolist()


def test_arrays_of_the_right_size_are_untouched_by_views_that_only_crop(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=pixels)
    for view in pipeline.VIEWS:
        train = pipeline.open_dataset(replace(DIGITS, source=f"npz:{tmp_path}", view=view), "all_train")
        assert np.array_equal(train.images(0, None), pixels) == (view != "imagenet")
        assert ("view imagenet enlarges to 224 and shrinks: center_square takes them as they are" in capsys.readouterr().err) == (view == "imagenet")


def test_own_validation_pictures_are_the_validation_split(tmp_path, capsys):
    for part, value in (("train", 1), ("val", 2)):
        for i in range(10):
            path = tmp_path / part / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (value, i, 0)).save(path)
    for share in (0.0, 0.5):
        config = replace(pictures(tmp_path), validation=share)
        parts = {split: pipeline.open_dataset(config, split) for split in ("train", "validation", "all_train")}
        assert {split: len(part) for split, part in parts.items()} == {"train": 10, "validation": 10, "all_train": 20}
        assert (parts["validation"].images(0, None)[..., 0] == 2).all() and (parts["train"].images(0, None)[..., 0] == 1).all()
        assert pipeline.splits_of(config) == ("train", "validation")
    told = capsys.readouterr().err
    assert f"folder:{tmp_path} has validation images of its own: config.data.validation 0.5 draws none" in told
    assert f"folder:{tmp_path}, train: 10 pictures: 5 a, 5 b" in told
    with pytest.raises(ValueError, match="has no test pictures, only train/, val/: give another split"):
        pipeline.open_dataset(config, "test")


@pytest.mark.parametrize("split_by", ["name", "position"])
def test_a_picture_held_out_stays_so_when_others_come(tmp_path, split_by):
    def held_out():
        parts = [pipeline.open_dataset(replace(pictures(tmp_path), validation=0.3, split_by=split_by), split) for split in ("train", "validation", "test")]
        return [set(part.source.names) for part in parts]

    for i in range(60):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    before = held_out()
    for i in range(60, 90):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    after = held_out()
    assert sum(map(len, before)) == 60 and sum(map(len, after)) == 90 and all(before)
    assert all(old <= new for old, new in zip(before, after, strict=True)) == (split_by == "name")


def test_the_splits_that_data_have(folder, coded, tmp_path):
    assert pipeline.splits_of(DIGITS) == ("train", "validation", "test") and pipeline.splits_of(replace(DIGITS, validation=0.0)) == ("train", "test")
    assert pipeline.splits_of(pictures(folder)) == pipeline.splits_of(coded) == ("train", "validation", "test")
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz/train.npz", images=np.zeros((10, 8, 8), np.uint8))
    assert pipeline.splits_of(replace(DIGITS, source=f"npz:{tmp_path}/npz")) == ("train", "validation")


def test_splits_are_disjoint_and_complete_and_the_test_set_never_changes():
    parts = {split: pipeline.open_dataset(DIGITS, split) for split in pipeline.SPLITS}
    sizes = {split: len(part) for split, part in parts.items()}
    assert sizes == {"train": 1294, "validation": 144, "test": 359, "all_train": 1438}
    pixels = {split: part.images(0, None).reshape(len(part), -1) for split, part in parts.items()}

    def as_rows(rows):
        return sorted(map(bytes, rows))

    assert as_rows(np.concatenate([pixels["train"], pixels["validation"]])) == as_rows(pixels["all_train"])
    other = pipeline.open_dataset(replace(DIGITS, seed=4), "validation").images(0, None)
    assert not np.array_equal(other.reshape(144, -1), pixels["validation"])
    assert np.array_equal(pipeline.open_dataset(replace(DIGITS, seed=4), "test").images(0, None).reshape(359, -1), pixels["test"])
    assert np.array_equal(pipeline.open_dataset(DIGITS, "validation").images(0, None).reshape(144, -1), pixels["validation"])


def test_split_errors():
    with pytest.raises(ValueError, match="split 'valid' is unknown"):
        pipeline.open_dataset(DIGITS, "valid")
    with pytest.raises(ValueError, match="validation 0.0 of 1438 images of digits leaves none for validation"):
        pipeline.open_dataset(replace(DIGITS, validation=0.0), "validation")
    assert len(pipeline.open_dataset(replace(DIGITS, validation=0.0), "train")) == 1438


def test_codes_labels_and_images_agree():
    digits = pipeline.open_dataset(DIGITS, "validation")
    assert digits.labels.dtype == np.int32 and digits.class_names == tuple("0123456789") and digits.palette is None
    rows = [5, 0, 143]
    codes = digits.codes(rows, GREYS)
    assert codes.dtype == np.int32 and codes.shape == (3, 64)
    assert np.array_equal(codes.reshape(3, 8, 8), GREYS.encode(digits.images(0, None)[rows]))
    assert np.array_equal(digits.images(3, 7), digits.images(0, None)[3:7]) and digits.images(3, 3).shape == (0, 8, 8, 3)


def test_augmentation_commutes_with_encoding():
    random = np.random.default_rng(0)
    pixels, uniform = random.integers(0, 256, (50, 9, 9, 3), dtype=np.uint8), random.random((50, 3))
    moved = pipeline.shift_and_flip(pixels, uniform)
    assert np.array_equal(COLOURS.encode(moved), pipeline.shift_and_flip(COLOURS.encode(pixels), uniform))
    assert not np.array_equal(moved, pixels)


def test_levels_are_moved_as_pixels_three_codes_at_a_time(tmp_path):
    """A batch of levels, decoded, is the batch of pictures that the augmentation makes of the pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=pixels)
    dataset = pipeline.open_dataset(replace(DIGITS, source=f"npz:{tmp_path}", validation=0.0), "train")
    batch = next(pipeline.train_batches(dataset, Palette.levels(), 6, seed=1))["codes"]
    assert batch.shape == (6, 192)
    rows, uniform = sampler.Shuffled(20, 6, 1)(0)
    assert np.array_equal(Palette.levels().decode(batch).reshape(6, 8, 8, 3), pipeline.shift_and_flip(pixels[rows], uniform))


def test_shift_and_flip_is_reflection_pad_crop_flip():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    padded = np.pad(pixels[0], ((4, 4), (4, 4), (0, 0)), "reflect")
    assert np.array_equal(pipeline.shift_and_flip(pixels, np.array([[4.5 / 9, 4.5 / 9, 0.5]])), pixels)
    assert np.array_equal(pipeline.shift_and_flip(pixels, np.array([[0, 0.999, 0.5]]))[0], padded[:8, 8:])
    assert np.array_equal(pipeline.shift_and_flip(pixels, np.array([[0.999, 0, 0.49]]))[0], padded[8:, :8][:, ::-1])


@pytest.mark.parametrize("augment", ["none", "cifar"])
def test_an_epoch_holds_every_image_once_in_a_new_order(augment):
    digits = pipeline.open_dataset(replace(DIGITS, augment=augment), "validation")
    batches = first(pipeline.train_batches(digits, GREYS, 36, seed=1), 8)  # two epochs of 144
    assert all(batch["codes"].shape == (36, 64) and batch["codes"].dtype == batch["label"].dtype == np.int32 for batch in batches)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert sorted(labels[:144]) == sorted(labels[144:]) == sorted(digits.labels)
    assert not np.array_equal(labels[:144], labels[144:])
    if augment == "none":
        codes = np.concatenate([batch["codes"] for batch in batches])
        stored = digits.codes(np.arange(144), GREYS)
        assert sorted(map(bytes, codes[:144])) == sorted(map(bytes, codes[144:])) == sorted(map(bytes, stored))


@pytest.mark.parametrize("kind", ["digits", "folder", "codes"])
def test_a_batch_numbers_its_images_and_a_part_of_a_set_keeps_their_numbers(kind, folder, coded):
    """By these numbers masks are drawn: in training, in evaluation, and where a limit draws some."""
    config = {"digits": DIGITS, "folder": pictures(folder), "codes": coded}[kind]
    palette = COLOURS if kind == "folder" else GREYS
    train = pipeline.open_dataset(replace(config, augment="none"), "train")
    part = train.draw(20).keep(np.arange(3, 15))
    batches = [*first(pipeline.train_batches(train, palette, 9, seed=3, step=1), 4), *first(pipeline.train_batches(part, palette, 5, seed=3), 3)]
    batches += [{name: values[batch["weight"] > 0] for name, values in batch.items()} for batch in pipeline.evaluation_batches(part, palette, 5)]
    for batch in batches:
        assert batch["index"].dtype == np.int32 and np.array_equal(train.codes(batch["index"], palette), batch["codes"])


@pytest.mark.parametrize("augment", ["none", "cifar", "imagenet"])
@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_resuming_is_as_if_never_stopped(kind, augment, folder):
    config = replace(DIGITS, augment=augment) if kind == "digits" else pictures(folder, augment)
    train = pipeline.open_dataset(config, "train")
    whole = first(pipeline.train_batches(train, COLOURS, 10, seed=7), 9)  # past the folder's epoch of 27
    assert_same(whole[4:], first(pipeline.train_batches(train, COLOURS, 10, seed=7, step=4), 5))
    assert not np.array_equal(whole[0]["codes"], first(pipeline.train_batches(train, COLOURS, 10, seed=8), 1)[0]["codes"])


@pytest.mark.parametrize("augment", ["none", "cifar", "imagenet"])
@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_a_global_step_does_not_depend_on_the_processes(kind, augment, folder):
    config = replace(DIGITS, augment=augment) if kind == "digits" else pictures(folder, augment)
    train = pipeline.open_dataset(config, "train")
    alone = first(pipeline.train_batches(train, COLOURS, 12, seed=0, step=1), 3)
    for parts in (PARTS, np.arange(12).reshape(6, 2)):
        shares = [first(pipeline.train_batches(train, COLOURS, 12, 0, 1, part), 3) for part in parts]
        assert all(batch["codes"].shape[0] == len(part) for part, share in zip(parts, shares, strict=True) for batch in share)
        assert_same(joined(shares, parts), alone)


@pytest.mark.parametrize("kind", ["digits", "folder", "codes"])
@pytest.mark.parametrize("parts", [[slice(None)], PARTS])
def test_evaluation_sees_every_image_once(kind, parts, folder, coded):
    config = {"digits": DIGITS, "folder": pictures(folder), "codes": coded}[kind]
    palette = COLOURS if kind == "folder" else GREYS
    test = pipeline.open_dataset(config, "test")
    shares = [list(pipeline.evaluation_batches(test, palette, 12, part)) for part in parts]
    assert {len(share) for share in shares} == {-(-len(test) // 12)}
    batches = joined(shares, parts)
    real = np.concatenate([batch["weight"] for batch in batches])
    assert real.dtype == np.float32 and real.tolist() == [1] * len(test) + [0] * (len(real) - len(test))
    codes, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("codes", "label"))
    assert np.array_equal(codes[real == 1], test.codes(np.arange(len(test)), palette)) and (codes[real == 0] == 0).all()
    assert np.array_equal(labels[real == 1], test.labels) and (labels[real == 0] == -1).all()
    assert np.concatenate([batch["index"] for batch in batches])[real == 1].tolist() == list(range(len(test)))


def test_evaluation_of_a_part():
    test = pipeline.open_dataset(DIGITS, "test")
    batches = list(pipeline.evaluation_batches(test, GREYS, 4, start=10, stop=15))
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == [*test.labels[10:15], -1, -1, -1]
    assert list(pipeline.evaluation_batches(test, GREYS, 4, start=5, stop=5)) == []
    assert sum(batch["weight"].sum() for batch in pipeline.evaluation_batches(test, GREYS, 50, stop=10_000)) == 359


def test_batch_errors():
    train = pipeline.open_dataset(DIGITS, "validation")
    for arguments, message in (
        ((145, 0), "batch size 145 is more than the 144 images of digits"),
        ((0, 0), "batch size 0 must be at least 1"),
        ((12, 0, -1), "step -1 must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):  # at the call, before the first batch
            pipeline.train_batches(train, GREYS, *arguments)


def test_both_engines_make_the_same_stream(folder, tmp_path):
    decoded = pipeline.open_dataset(pictures(folder), "all_train")
    np.savez(tmp_path / "train.npz", images=decoded.images(0, None), labels=decoded.labels)
    stored = pipeline.open_dataset(replace(pictures(folder), source=f"npz:{tmp_path}"), "all_train")
    assert_same(*(first(pipeline.train_batches(dataset, COLOURS, 8, seed=0), 6) for dataset in (decoded, stored)))


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_stream(folder):
    """In a process of its own: Grain's workers are spawned, and import the main file anew."""
    program = """
import hashlib, itertools, sys
import numpy as np
from igpt_jax import data
from igpt_jax.palette import Palette

if __name__ == "__main__":
    palette = Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3)).astype(np.float32))
    for workers in (0, 1, 2):
        config = data.DataConfig("folder:" + sys.argv[1], 10, "imagenet", 0.1, "", workers, 0)
        train = data.open_dataset(config, "train")
        batches = data.train_batches(train, palette, 6, seed=0, step=2)
        digest = hashlib.sha256()
        for batch in itertools.islice(batches, 7):
            digest.update(batch["codes"].tobytes() + batch["label"].tobytes())
        batches.close()
        print(digest.hexdigest())
"""
    script = folder / "workers.py"
    script.write_text(program)
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run([sys.executable, script, folder], env=environment, capture_output=True, text=True, timeout=240)
    script.unlink()
    assert run.returncode == 0, run.stderr
    digests = run.stdout.split()
    assert len(digests) == 3 and len(set(digests)) == 1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_pictures_that_break_later_are_counted_once_and_too_many_end_the_run(workers, tmp_path):
    """Over all workers together: each of the two finds two of the four. In a process of its own, as Grain's workers ask for."""
    program = """
import sys
import numpy as np
from PIL import Image
from igpt_jax import data, order
from igpt_jax.palette import Palette

if __name__ == "__main__":
    root, workers = sys.argv[1], int(sys.argv[2])
    for i in range(300):
        Image.fromarray(np.full((2, 2, 3), i % 256, np.uint8)).save(f"{root}/train/{i:03d}.png")
    Image.new("RGB", (2, 2)).save(f"{root}/test/0.png")
    for broken in (3, 4):
        train = data.open_dataset(data.DataConfig("folder:" + root, 2, "none", 0.0, "", workers, 0), "train")
        plan = order.Shuffled(300, 10, 0)
        for step in range(broken):
            open(train.source.paths[plan(step)[0][0]], "wb").close()
        batches = data.prefetch(data.train_batches(train, Palette.levels(), 10, seed=0), lambda batch: batch)
        try:
            for _ in range(31):
                next(batches)
        except ValueError as error:
            print("error:", error)
        batches.close()
        print(len(train.source.failures.reasons))
        for step in range(broken):
            Image.new("RGB", (2, 2)).save(train.source.paths[plan(step)[0][0]])
"""
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    script = tmp_path / "failures.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, script, tmp_path, str(workers)], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    few, error, many = run.stdout.splitlines()
    assert (few, many) == ("3", "4") and "4 of 300 pictures, more than 1%, can no longer be read, the last: " in error
    told = [line for line in run.stderr.splitlines() if "stands in" in line]
    assert [re.search(r"\((\d) so far\)", line)[1] for line in told] == list("1231234"), run.stderr


def test_folder_views(folder):
    train = pipeline.open_dataset(pictures(folder, "none"), "all_train")
    assert len(train) == 30 and train.class_names == ("a", "b") and train.labels.tolist() == [0] * 15 + [1] * 15
    picture = images.read_image(folder / "train" / "a" / "02.png")
    assert np.array_equal(train.images(1, 2)[0], images.resize(images.center_crop_square(picture), 10))
    large = pipeline.open_dataset(pictures(folder, "imagenet"), "all_train")
    assert np.array_equal(large.images(1, 2)[0], images.imagenet_center(picture, 10))
    assert np.array_equal(large.codes([1], COLOURS)[0], COLOURS.encode(large.images(1, 2)).reshape(-1))
    assert large.images(3, 3).shape == (0, 10, 10, 3) and large.codes([1, 0], COLOURS).shape == (2, 100)


def test_imagenet_augmentation_varies_and_evaluation_does_not(folder):
    train = pipeline.open_dataset(replace(pictures(folder, "imagenet"), image_size=32), "all_train")
    epochs = first(pipeline.train_batches(train, COLOURS, 30, seed=0), 2)
    stored = set(map(bytes, train.codes(np.arange(30), COLOURS)))
    views = [set(map(bytes, epoch["codes"])) for epoch in epochs]
    assert len(views[0] | views[1]) == 60 and not stored & views[0]


def test_npz(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 5)):
        np.savez(tmp_path / f"{part}.npz", images=random.integers(0, 256, (count, 9, 12, 3), dtype=np.uint8), labels=np.arange(count) % 2)
    config = replace(DIGITS, source=f"npz:{tmp_path}", augment="none")
    train = pipeline.open_dataset(config, "train")
    assert len(train) == 18 and train.class_names == (0, 1) and train.images(0, 4).shape == (4, 8, 8, 3)
    assert first(pipeline.train_batches(train, COLOURS, 18, seed=0), 1)[0]["codes"].shape == (18, 64)
    np.savez(tmp_path / "test.npz", images=np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="no images in its test split"):
        pipeline.open_dataset(config, "test")


def test_codes_are_the_images_they_were_made_of(coded):
    digits, codes = pipeline.open_dataset(DIGITS, "train"), pipeline.open_dataset(coded, "train")
    assert codes.palette.size == 9 and codes.class_names == digits.class_names and np.array_equal(codes.labels, digits.labels)
    assert np.array_equal(codes.images(0, 5), GREYS.decode(GREYS.encode(digits.images(0, 5))))
    assert_same(*(first(pipeline.train_batches(dataset, GREYS, 16, seed=0), 4) for dataset in (digits, codes)))


def test_codes_errors(coded, tmp_path):
    train = pipeline.open_dataset(coded, "train")
    with pytest.raises(ValueError, match="another palette .9 colours. than the one given .32."):
        pipeline.train_batches(train, COLOURS, 4, seed=0)
    with pytest.raises(ValueError, match="holds images of 8 x 8 pixels, but image_size is 16"):
        pipeline.open_dataset(replace(coded, image_size=16), "train")
    np.save(tmp_path / "train.npy", np.full((1438, 8, 8), 9, np.uint16))
    with pytest.raises(ValueError, match="holds code 9, but its palette has 9 colours"):
        pipeline.open_dataset(coded, "train").codes([0], GREYS)
    (tmp_path / "test_labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match="test_labels.npy does not exist: write the codes by `python -m igpt_jax") as caught:
        pipeline.open_dataset(coded, "test")
    assert "\n" not in str(caught.value)
    np.save(tmp_path / "train.npy", np.zeros((3, 8, 8), np.int64))
    with pytest.raises(ValueError, match="must be uint16"):
        pipeline.open_dataset(coded, "train")


def test_tfds_without_tensorflow(shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if not installed
    train, test = pipeline.open_dataset(shapes, "all_train"), pipeline.open_dataset(shapes, "test")
    assert (len(train), len(test)) == (30, 12) and train.class_names == ("a", "b", "c")  # no test split: its validation is the test set
    pixels, labels = train.images(0, None), train.labels
    assert pixels.shape == (30, 8, 8, 3) and sorted(pixels[:, 0, 0, 0] // 8) == list(range(30))
    assert labels.dtype == np.int32 and np.array_equal(labels, pixels[:, 0, 0, 0] // 8 % 3)
    assert len(pipeline.open_dataset(shapes, "train")) == 27
    batch = first(pipeline.train_batches(train, GREYS, 30, seed=0), 1)[0]
    assert np.bincount(batch["label"]).tolist() == [10, 10, 10] and batch["codes"].shape == (30, 64)


def test_the_range_of_tfds_labels_is_known_from_some_of_them(shapes):
    """Where fine-tuning checks them at each start: reading those of ImageNet takes an hour."""
    train = pipeline.open_dataset(shapes, "all_train")

    class Counted:
        read = []

        def __init__(self, labels):
            self.labels = labels

        def __getitem__(self, row):
            self.read.append(row)
            return {"label": self.labels[row]}

    many = dataclasses.replace(train.source, records=Counted(np.arange(10_000) % 3), rows=np.arange(10_000))
    assert pipeline.Dataset(shapes, "train", many).label_range == (0, 2) and len(set(Counted.read)) == 100 and {0, 9_999} <= set(Counted.read)
    unlabelled = dataclasses.replace(many, records=Counted(np.full(10_000, -1)))
    assert pipeline.Dataset(shapes, "train", unlabelled).label_range == (-1, 2)
    numbers = dataclasses.replace(many, class_names=(), records=Counted(np.arange(10_000)))  # TFDS has not checked them
    assert pipeline.Dataset(shapes, "train", numbers).label_range == (0, 9_999)
    assert train.label_range == (0, 2) and pipeline.splits_of(shapes) == ("train", "validation", "test")


def test_an_image_without_a_label_is_refused_where_its_class_is_needed():
    batch = {"label": np.int32([2, 0, -1]), "index": np.int32([7, 5, 0]), "weight": np.float32([1, 1, 0])}
    assert list(pipeline.labelled([batch], "tfds:x")) == [batch]  # padding needs none
    for some in (batch | {"label": np.int32([2, -1, -1])}, {"label": np.int32([1, -1]), "index": np.int32([7, 5])}):
        with pytest.raises(ValueError, match="^image 5 of tfds:x has no label"):
            list(pipeline.labelled([batch, some], "tfds:x"))


def test_tfds_records_that_do_not_decode_are_counted_like_files(shapes, caplog):
    train = pipeline.open_dataset(shapes, "all_train")

    class Broken:
        def __init__(self, rows):
            self.rows = rows

        def __getitem__(self, row):
            record = train.source.records[row]
            return record | {"image": record["image"][:50]} if row in self.rows else record

    labels = train.labels
    last = int(np.flatnonzero(labels == 1)[-1])
    source = dataclasses.replace(train.source, records=Broken({last}))
    dataset = pipeline.Dataset(shapes, "all_train", source)
    batches = list(pipeline.evaluation_batches(dataset, GREYS, 10))
    assert np.array_equal(np.concatenate([batch["label"] for batch in batches]), labels)
    stand_in = train.codes([np.flatnonzero(labels == 1)[0]], GREYS)[0]  # the next of its label, round the end
    assert np.array_equal(np.concatenate([batch["codes"] for batch in batches])[last], stand_in)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"tfds:tiny_shapes, record {last} is not a readable image: ") and line.endswith("stands in (1 so far)")
    source = dataclasses.replace(train.source, records=Broken({4, 5}), failures=images.Failures(train.source.name, len(train.source)))
    with pytest.raises(ValueError, match="tfds:tiny_shapes: 2 of 30 pictures, more than 1%"):
        pipeline.Dataset(shapes, "all_train", source).images(0, None)


def test_tfds_errors_name_the_way_out(shapes, tmp_path):
    config = replace(DIGITS, source="tfds:mnist", directory=str(tmp_path))
    command = r"tfds.builder\('mnist', data_dir=.*file_format='array_record'\).download_and_prepare"
    with pytest.raises(FileNotFoundError, match=command) as caught:
        pipeline.open_dataset(config, "train")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="TFDS knows no 'nonesuch'") as caught:
        pipeline.open_dataset(replace(config, source="tfds:nonesuch"), "train")
    assert "\n" not in str(caught.value)
    shutil.copytree(pathlib.Path(shapes.directory) / "tiny_shapes", tmp_path / "tiny_shapes")
    (info,) = tmp_path.glob("tiny_shapes/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="prepare it anew: .*array_record") as caught:
        pipeline.open_dataset(replace(shapes, directory=str(tmp_path)), "train")
    assert "\n" not in str(caught.value)


def test_stored_sets_need_neither_grain_nor_tfds(coded):
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("grain", "tensorflow_datasets", "ml_collections", "absl"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
from igpt_jax import data
train = data.open_dataset(data.DataConfig(sys.argv[1], 8, "cifar", 0.1, "", 0, 0), "train")
print(next(data.train_batches(train, train.palette, 16, seed=0))["codes"].shape)
try:
    data.open_dataset(data.DataConfig("tfds:mnist", 8, "cifar", 0.1, "", 0, 0), "train")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", program, coded.source], env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines() == ["(16, 64)", "source tfds:mnist needs TFDS: pip install 'igpt_jax[tfds]'"], run.stderr


def test_prefetch_keeps_order_and_depth_and_closes():
    made, closed = [], threading.Event()

    def numbers():
        try:
            for i in range(100):
                made.append(i)
                yield i
        finally:
            closed.set()

    source = numbers()  # a reference of our own, so that only close() can end it
    ahead = pipeline.prefetch(source, lambda number: 10 * number, depth=3)
    assert [next(ahead), next(ahead)] == [0, 10]
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3, 4]  # two taken, three ahead
    ahead.close()
    assert closed.is_set() and not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert list(pipeline.prefetch(range(5), str)) == list("01234")


def test_prefetch_raises_errors_after_the_batches_before():
    def failing():
        yield 1
        raise OSError("disk gone")

    ahead = pipeline.prefetch(failing(), lambda number: number)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)
    with pytest.raises(ZeroDivisionError):
        next(pipeline.prefetch([0], lambda number: 1 / number))
    with pytest.raises(ValueError, match="depth 0"):
        next(pipeline.prefetch([0], str, depth=0))
