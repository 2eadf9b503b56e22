"""Folders of picture files: splits, classes, draws by name, and layouts that are refused."""

import itertools
import os
import unicodedata

import numpy as np
import pytest

from igpt_jax.data import pipeline
from igpt_jax.data.folder import Folder, list_files, open_folder
from tests.data.pictures import bad_files, write_picture


def test_folder_with_train_and_test(tmp_path):
    for part, name in (("train", "cat/1.png"), ("train", "cat/deep/er/2.png"), ("train", "dog/1.png"), ("test", "dog/9.png")):
        write_picture(tmp_path / part / name)
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("ignored")
    train, test = open_folder(tmp_path, "train", 0), open_folder(tmp_path, "test", 0)
    assert train.class_names == ("cat", "dog") and train.labels.tolist() == [0, 0, 1]
    assert test.class_names == ("cat", "dog") and test.labels.tolist() == [1]
    assert open_folder(tmp_path / "train" / "cat", "train", 0).class_names == ()  # one sub-folder is no class


def test_folder_is_split_by_the_seed(tmp_path):
    for i in range(40):
        write_picture(tmp_path / f"{i:02d}.png", np.full((2, 2, 3), i, np.uint8))
    values = {}
    for split_by, part in itertools.product(("name", "position"), ("train", "test")):
        source = open_folder(tmp_path, part, 5, split_by)
        assert source.labels.tolist() == [-1] * len(source) and source.class_names == ()
        values[split_by, part] = [int(source.read(i)[0][0, 0, 0]) for i in range(len(source))]
        assert values[split_by, part] == sorted(values[split_by, part])
    for split_by in ("name", "position"):
        assert sorted(values[split_by, "train"] + values[split_by, "test"]) == list(range(40)) and 0 < len(values[split_by, "test"]) < 10
        other = open_folder(tmp_path, "test", 6, split_by)
        assert [int(other.read(i)[0][0, 0, 0]) for i in range(len(other))] != values[split_by, "test"]
    # as versions before drew them: a stored run is tested on the pictures that it did not see
    assert values["position", "test"] == sorted(np.random.RandomState([5, 1]).permutation(40)[:4].tolist())


def test_a_tenth_of_the_names_is_drawn_and_each_by_itself():
    names = [f"{label}/{i}.png" for label in "ab" for i in range(5000)]
    folder = Folder("x", names, names, np.zeros(len(names)), (), None)
    draws = folder.draws(3, "test")
    assert abs((draws < 0.1).mean() - 0.1) < 0.01 and abs((folder.draws(3, "validation")[draws < 0.1] < 0.1).mean() - 0.1) < 0.03
    assert np.array_equal(folder.keep(np.arange(7, 9)).draws(3, "test"), draws[7:9])
    assert Folder("y", names[:1], names[:1], np.zeros(1), (), None).draws(3, "test") == draws[0]


def test_a_picture_stays_in_its_split_when_others_come_and_go(tmp_path):
    def parts():
        return {part: set(open_folder(tmp_path, part, 0).names) for part in ("train", "test")}

    for i in range(60):
        write_picture(tmp_path / "ab"[i % 2] / f"caf\u00e9 {i}.png")
    before = parts()
    for i in range(60, 90):
        write_picture(tmp_path / "abc"[i % 3] / f"{i}.png")
    for name in sorted(before["train"])[:5]:
        (tmp_path / name).unlink()
    for name in sorted(before["test"])[:1] + sorted(before["train"])[7:20]:  # copied through another system
        (tmp_path / name).rename(tmp_path / unicodedata.normalize("NFD", name))
    after = parts()
    assert len(before["test"]) > 2 and not before["train"] & after["test"] and not before["test"] & after["train"] and before["test"] <= after["test"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_folder_leaves_out_bad_files_and_says_so_once(tmp_path, capsys):
    names = bad_files(tmp_path / "set")
    for i in range(20):
        write_picture(tmp_path / "set" / f"{i}.png")
    train, test = open_folder(tmp_path / "set", "train", 0), open_folder(tmp_path / "set", "test", 0)
    assert len(train) + len(test) == 20
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert line.startswith(f"note: {len(names)} of 26 files are left out: {tmp_path}")


def test_folder_errors(tmp_path):
    (tmp_path / "list.txt").write_text("")
    for name, message in (("nowhere", "nowhere does not exist: give a folder"), ("list.txt", "folder .*list.txt is a file: give the folder that holds it")):
        for split in ("train", "validation", "test", "all_train"):
            with pytest.raises(FileNotFoundError, match=message):
                pipeline.open_dataset(pipeline.DataConfig(f"folder:{tmp_path / name}", 8, "none", 0.1, "", 0, 0), split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        open_folder(tmp_path / "empty", "train", 0)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("a")
    with pytest.raises(ValueError, match="none of its 1 files"):
        open_folder(tmp_path / "texts", "train", 0)
    write_picture(tmp_path / "half" / "train" / "a.png")
    assert len(open_folder(tmp_path / "half", "train")) == 1  # a test folder is asked for where it is needed
    with pytest.raises(ValueError, match="half has no test pictures, only train/: choose another split, or put pictures into .*half/test"):
        open_folder(tmp_path / "half", "test")


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("validation", ["val", "Valid", "VALIDATION", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing", None])
def test_usual_names_of_splits_are_known(tmp_path, train, validation, test):
    for root, value in ((train, 1), (validation, 2), (test, 3)):
        for label in ("cat", "dog") if root else ():
            write_picture(tmp_path / root / label / "1.png", np.full((2, 2, 3), value, np.uint8))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    for split, expected in (("train", [1, 1]), ("validation", [2, 2]), ("test", [3, 3]), ("all_train", [1, 1, 2, 2])):
        if split == "test" and not test:
            continue
        source = open_folder(tmp_path, split)
        assert [int(source.read(i)[0][0, 0, 0]) for i in range(len(source))] == expected and source.class_names == ("cat", "dog")
        assert source.labels.tolist() == [0, 1] * (len(expected) // 2)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("train/a train2/b", "train and beside it train2: are these splits, or classes"),
        ("train/a cat/1", "train and beside it cat: are these splits, or classes"),
        ("train_old/a cat/1 dog/1", "holds train_old: are these splits, or classes"),
        ("test-A/a cat/1", "holds test-A: "),
        ("trainImages/a valImages/b", "holds trainImages, valImages: "),
        ("seg_train/x/a seg_test/x/a other/x/b", "holds seg_test, seg_train: "),
        ("VAL2017/a x/b", "holds VAL2017: "),
        ("train/a Train/b", "Train/ and train/, both train: remove one"),
        ("train/a val/a validation/a", "val/ and validation/, both validation"),
        ("val/a test/a", "holds val, test and no train/|holds test, val and no train/"),
        ("test/a", "holds test and no train/"),
        ("data/train/x/a data/test/x/a", "data holds test, train, splits below a class folder: give this folder as source"),
        ("cat/train/a cat/val/a dog/train/a dog/val/a", "cat holds train, val, splits below"),
        ("train/train/cat/a train/train/dog/a", "train holds only train/: move its contents one level up"),
        ("train/cat/a train/dog/a test/cat/a test/bird/a", "test holds bird, where training has the classes cat, dog"),
        ("train/cat/a train/dog/a dev/wolf/a", "dev holds wolf, where training has the classes cat, dog"),
        ("train/a test/cat/a test/dog/a", "test holds cat, dog, where training has no classes"),
    ],
)
def test_a_folder_that_may_mean_two_things_is_refused_with_the_layouts_known(tmp_path, pictures, message):
    for name in pictures.split():
        write_picture(tmp_path / f"{name}.png")
    for split in ("train", "all_train"):
        with pytest.raises(ValueError, match=message) as caught:
            open_folder(tmp_path, split)
        assert "\n" not in str(caught.value) and ("known layouts are DIR/CLASS" in str(caught.value) or "where training has" in str(caught.value))


def test_a_split_that_is_a_link_to_another_is_refused(tmp_path):
    write_picture(tmp_path / "train" / "a.png")
    os.symlink(tmp_path / "train", tmp_path / "test")
    with pytest.raises(ValueError, match="test/ and train/ are the same folder"):
        open_folder(tmp_path, "train")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_class_is_a_folder_with_a_readable_picture(tmp_path, capsys):
    for left in ("__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "found.000", "Thumbs.db"):
        write_picture(tmp_path / left / "cat.png")
        write_picture(tmp_path / "cat" / "deep" / left / "cat.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("no picture")
    bad_files(tmp_path / "broken")  # and a whole one beside the folders
    for label in ("cat", "dog"):
        for i in range(10):
            write_picture(tmp_path / label / "deep" / f"{i}.png")
    write_picture(tmp_path / "beside.png")
    parts = [open_folder(tmp_path, part) for part in ("train", "test")]
    assert {part.class_names for part in parts} == {("cat", "dog")} and sum(len(part) for part in parts) == 22
    assert sorted(np.concatenate([part.labels for part in parts]).tolist()) == [-1] * 2 + [0] * 10 + [1] * 10
    assert f"{tmp_path}: not classes, because they hold no readable pictures: broken, empty, texts" in capsys.readouterr().err


def test_names_of_classes_are_those_of_one_unicode_form(tmp_path, capsys):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for name in (f"train/{composed}/1", "train/bar/1", f"test/{decomposed}/1", f"train/{decomposed}/2"):
        write_picture(tmp_path / f"{name}.png")
    train, test = (open_folder(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("bar", composed)
    assert sorted(train.labels.tolist()) == [0, 1, 1] and test.labels.tolist() == [1]
    assert f"{composed}: two folders whose names differ only in their Unicode form are one class" in capsys.readouterr().err


def test_links_to_folders_are_followed_without_end(tmp_path):
    write_picture(tmp_path / "real" / "a.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "real" / "back")
    assert [os.path.basename(path) for path in list_files(tmp_path / "set")] == ["a.png"]
