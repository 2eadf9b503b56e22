"""Arrays in .npz files: names of files and arrays, splits, and the numbers of classes."""

import numpy as np
import pytest

from igpt_jax.data.npz import npz_files, open_npz

IMAGES = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def test_npz_grey_colour_and_errors(tmp_path):
    grey = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    np.savez(tmp_path / "train.npz", images=grey)
    source = open_npz(tmp_path, "train")
    assert source.labels.tolist() == [-1] * 3 and source.class_names == ()
    assert np.array_equal(source.read_block(0, 3), np.repeat(grey[..., None], 3, -1)) and np.array_equal(source.read(1)[0][..., 2], grey[1])
    with pytest.raises(FileNotFoundError, match="test.npz does not exist"):
        open_npz(tmp_path, "test")
    colour = np.zeros((3, 4, 4, 3), np.uint8)
    for arrays, message in (
        ({"images": colour.astype(np.float32) + 7}, "`images` is float32 from 7.0 to 7.0: give uint8 from 0 to 255, or floats from 0 to 1"),
        ({"pictures": colour}, r"test.npz has no `images`, uint8 .*: its arrays are pictures"),
        ({"images": colour, "labels": np.arange(2)}, "the labels of the 3 images"),
        ({"images": colour, "labels": np.arange(3), "class_names": np.array(["a", "b"])}, "label 2 has no name"),
        ({"images": np.array([{}, {}, {}], object)}, "plain arrays"),
    ):
        np.savez(tmp_path / "test.npz", **arrays)
        with pytest.raises(ValueError, match=message) as caught:
            open_npz(tmp_path, "test")
        assert "\n" not in str(caught.value)
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="test.npz is not an npz"):
        open_npz(tmp_path, "test")


@pytest.mark.parametrize(
    "stored",
    [
        *(LABELS.astype(dtype) for dtype in (np.uint8, np.int64, np.uint64, np.float32, ">i2")),
        *(LABELS[:, None], LABELS[:, None].astype(np.uint8), np.eye(3)[LABELS], np.eye(3, dtype=bool)[LABELS], np.eye(3, dtype=np.uint8)[LABELS]),
    ],
)
def test_labels_of_one_meaning_are_taken(tmp_path, stored):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=stored)
    source = open_npz(tmp_path, "train")
    assert source.labels.dtype == np.int32 and source.labels.tolist() == LABELS.tolist() and source.class_names == (0, 1, 2)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (LABELS + 0.5, "from 0 on .-1: none., not float64 from 0.5 to 2.5"),
        (np.where(LABELS == 2, np.nan, LABELS), "not float64 from nan to nan"),
        (LABELS - 2, "not int64 from -2 to 0"),
        (LABELS + 2**32, "to 4294967298"),
        (np.eye(3)[LABELS] * 2, "one-hot, .* which row 0 is not"),
        (np.eye(3)[LABELS] * 0.5 + 0.25, "one-hot"),
        (LABELS[:5], "the labels of the 6 images beside it"),
        (LABELS[None], "the labels of the 6 images beside it"),
        (LABELS.astype(complex), "not complex128"),
    ],
)
def test_other_labels_are_refused(tmp_path, stored, message):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=stored)
    with pytest.raises(ValueError, match=message) as caught:
        open_npz(tmp_path, "train")
    assert "`labels`" in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_are_names_where_the_labels_of_training_are_text(tmp_path, capsys):
    """Label 1 is the class named 1, not the class in place 1; a number that names no class is refused."""
    np.savez(tmp_path / "train.npz", images=IMAGES[:4], labels=np.array(["1", "2", "3", "1"]))
    np.savez(tmp_path / "test.npz", images=IMAGES[:4], labels=np.array([1, 3, 2, -1]))
    test = open_npz(tmp_path, "test")
    assert test.class_names == ("1", "2", "3") and test.labels.tolist() == [0, 2, 1, -1]
    assert "the numbers are names of classes, as in training, whose numbers the labels get: 0 1, 1 2, 2 3" in capsys.readouterr().err
    np.savez(tmp_path / "test.npz", images=IMAGES[:4], labels=np.array([0, 1, 2, 2]))
    with pytest.raises(ValueError, match="`labels` holds 0, which training lacks or has twice: 1, 2, 3"):
        open_npz(tmp_path, "test")
    np.savez(tmp_path / "train.npz", images=IMAGES[:4], labels=np.array([0, 1, 2, 2]), class_names=np.array(["1", "2", "3"]))
    assert open_npz(tmp_path, "test").labels.tolist() == [0, 1, 2, 2]  # numbers of training too are places in its list of names


def test_labels_of_text_are_matched_by_name(tmp_path):
    names = np.array(["dog", "caf\u00e9", "ant"])
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=names[LABELS])
    np.savez(tmp_path / "test.npz", images=IMAGES[:2], labels=np.array([["dog"], ["cafe\u0301"]]))
    train, test = (open_npz(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("ant", "caf\u00e9", "dog") and train.labels.tolist() == [2, 1, 0, 0, 1, 2]
    assert test.labels.tolist() == [2, 1]
    np.savez(tmp_path / "test.npz", images=IMAGES[:2], labels=np.array([b"dog", b"wolf"]))
    with pytest.raises(ValueError, match="holds wolf, which training lacks or has twice: ant, caf\u00e9, dog"):
        open_npz(tmp_path, "test")


def test_a_class_has_the_number_it_has_in_training(tmp_path):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=LABELS, class_names=np.array(["cat", "dog", "fish"]))
    np.savez(tmp_path / "test.npz", images=IMAGES[:3], labels=np.array([0, 1, -1]), class_names=np.array(["fish", "cat", "bird"]))
    test = open_npz(tmp_path, "test")
    assert test.labels.tolist() == [2, 0, -1] and test.class_names == ("cat", "dog", "fish")
    np.savez(tmp_path / "test.npz", images=IMAGES[:3], labels=np.array([0, 1, 1]))  # lacks a class
    assert open_npz(tmp_path, "test").class_names == ("cat", "dog", "fish")
    np.savez(tmp_path / "test.npz", images=IMAGES[:3], labels=np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="goes to 3, training has the 3 classes cat, dog, fish"):
        open_npz(tmp_path, "test")


def refused_npz(place, split):
    with pytest.raises(FileNotFoundError) as caught:
        open_npz(place, split)
    return str(caught.value)


def test_a_file_that_is_one_split_is_named_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("train.npz", images=IMAGES, labels=LABELS)
    for place, folder in ((tmp_path / "train.npz", tmp_path), ("train.npz", ".")):
        for split in ("train", "test"):
            message = f"{place} has no {split} images, as `x_{split}` or `{split}_images`: its arrays are images, labels"
            assert refused_npz(place, split) == f"{message}; a file of one split is named by its folder: npz:{folder}"
    assert refused_npz("gone.npz", "train").startswith("gone.npz does not exist: write it by numpy.savez('gone.npz', x_train=")
    assert refused_npz("gone", "train").startswith("gone/train.npz does not exist: write it by numpy.savez('gone/train.npz', ")


@pytest.mark.parametrize("shape", [(4, 0, 8, 3), (4, 8, 0), (4, 3, 0, 8), (4, 0, 0)])
def test_images_without_pixels_are_refused(tmp_path, shape):
    np.savez(tmp_path / "train.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"train.npz: `images` must be .* not uint8 \[4, .*\]: images without pixels"):
        open_npz(tmp_path, "train")


@pytest.mark.parametrize(
    "names",
    ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels", "X_train Y_train X_test Y_test", "trainX trainY testX testY", "Xtr"],
)
def test_one_file_of_several_splits(tmp_path, names, capsys):
    arrays = dict(zip(names.split(), (IMAGES, LABELS[:, None], IMAGES[:2], LABELS[:2]), strict=False))
    np.savez(tmp_path / "set.npz", **arrays)
    if names == "Xtr":
        assert "named by its folder" not in refused_npz(tmp_path, "train")
        with pytest.raises(FileNotFoundError, match=r"set.npz has no train images, as `x_train` or `train_images`: its arrays are Xtr"):
            open_npz(tmp_path, "train")
        return
    for place in (tmp_path, tmp_path / "set.npz"):
        train, test = (open_npz(place, split) for split in ("train", "test"))
        assert np.array_equal(train.images, IMAGES) and train.labels.tolist() == LABELS.tolist()
        assert np.array_equal(test.images, IMAGES[:2]) and test.labels.tolist() == [0, 1] and test.class_names == (0, 1, 2)
        with pytest.raises(FileNotFoundError, match="has no validation images"):
            open_npz(place, "validation")
    assert f"images are `{names.split()[0]}`; labels are `{names.split()[1]}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("x images", None),
        ("data labels", None),
        ("X y fine_labels", None),
        ("x data", "holds x, data, each of which may be the images: name the right one `images`"),
        ("images y target", "holds y, target, each of which may be the labels"),
        ("arr_0 arr_1", "has no `images`, .* its arrays are arr_0, arr_1"),
        ("x_test y_test", "has no `images`, .* its arrays are x_test, y_test"),
    ],
)
def test_other_names_of_arrays(tmp_path, names, message, capsys):
    np.savez(tmp_path / "train.npz", **{name: IMAGES if i == 0 or name == "images" or name == "data" else LABELS for i, name in enumerate(names.split())})
    if message:
        with pytest.raises(ValueError, match=message):
            open_npz(tmp_path, "train")
    else:
        assert np.array_equal(open_npz(tmp_path, "train").images, IMAGES)
        printed = capsys.readouterr().err
        assert "not read: fine_labels" in printed if "fine_labels" in names else "images are `data`" in printed if "data" in names else True


def test_validation_arrays_are_the_validation_split(tmp_path):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "val.npz", images=IMAGES[:2], labels=LABELS[:2])
    assert set(npz_files(tmp_path)) == {"train", "validation"}
    assert [len(open_npz(tmp_path, split)) for split in ("train", "validation", "all_train")] == [6, 2, 8]
    np.savez(tmp_path / "valid.npz", images=IMAGES[:2])
    with pytest.raises(ValueError, match="val.npz and .*valid.npz are both the validation split: remove one"):
        open_npz(tmp_path, "train")


def test_labels_that_get_the_numbers_of_training_are_said(tmp_path, capsys):
    images = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=[0, 1, 2], class_names=["cat", "dog", "fish"])
    np.savez(tmp_path / "test.npz", images=images, labels=[0, 1, 2], class_names=["fish", "cat", "dog"])
    opened = open_npz(tmp_path, "test")
    assert opened.all_labels().tolist() == [2, 0, 1] and opened.class_names == ("cat", "dog", "fish")
    assert "`class_names` are in another order than in training, whose numbers the labels get: 0 cat, 1 dog, 2 fish" in capsys.readouterr().err
    np.savez(tmp_path / "test.npz", images=images, labels=["fish", "cat", "dog"])
    assert open_npz(tmp_path, "test").all_labels().tolist() == [2, 0, 1] and "another order" not in capsys.readouterr().err


def test_text_that_holds_numbers_is_matched_with_numbers_of_training(tmp_path, capsys):
    images = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=[3, 7, 7])
    np.savez(tmp_path / "test.npz", images=images, labels=["7", "3", "3"])
    assert open_npz(tmp_path, "test").all_labels().tolist() == [7, 3, 3] and "text that holds numbers is read as numbers" in capsys.readouterr().err
    np.savez(tmp_path / "test.npz", images=images, labels=["7", "cat", "3"])
    with pytest.raises(ValueError, match="which training lacks or has twice"):
        open_npz(tmp_path, "test")
    np.savez(tmp_path / "test.npz", images=images, labels=["9", "3", "3"])
    with pytest.raises(ValueError, match="goes to 9, training has the 8 classes"):
        open_npz(tmp_path, "test")
