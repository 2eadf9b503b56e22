"""Sources and their splits: views, held-out images, labels and codes."""

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import images, pipeline
from tests.data.samples import COLOURS, DIGITS, GREYS, assert_same, first, pictures, replace


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
        assert ("view imagenet enlarges to 224 and shrinks: center_square leaves them unchanged" in capsys.readouterr().err) == (view == "imagenet")


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
    printed = capsys.readouterr().err
    assert f"folder:{tmp_path} has validation images of its own: config.data.validation 0.5 is not used" in printed
    assert f"folder:{tmp_path}, train: 10 pictures: 5 a, 5 b" in printed
    with pytest.raises(ValueError, match="has no test pictures, only train/, val/: choose another split"):
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


def test_folder_views(folder):
    train = pipeline.open_dataset(pictures(folder, "none"), "all_train")
    assert len(train) == 30 and train.class_names == ("a", "b") and train.labels.tolist() == [0] * 15 + [1] * 15
    picture = images.read_image(folder / "train" / "a" / "02.png")
    assert np.array_equal(train.images(1, 2)[0], images.resize(images.center_crop_square(picture), 10))
    large = pipeline.open_dataset(pictures(folder, "imagenet"), "all_train")
    assert np.array_equal(large.images(1, 2)[0], images.imagenet_center(picture, 10))
    assert np.array_equal(large.codes([1], COLOURS)[0], COLOURS.encode(large.images(1, 2)).reshape(-1))
    assert large.images(3, 3).shape == (0, 10, 10, 3) and large.codes([1, 0], COLOURS).shape == (2, 100)


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
