"""Pictures listed in a CSV file: columns, splits, labels, and what is refused."""

import pytest

from igpt_jax.data import pipeline
from tests.data.pictures import write_picture
from tests.data.samples import pictures as folder_config
from tests.data.samples import replace


def write(folder, text, files=("a.png", "b.png", "in/c.png", "in/d.png")):
    for file in files:
        write_picture(folder / file)
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def opened(path, split="all_train", **changes):
    return pipeline.open_dataset(replace(folder_config("x"), source=f"csv:{path}", split_by="name", **changes), split)


ALL = "a.png,{}\nb.png,{}\nin/c.png,{}\nin/d.png,{}\n"


def test_columns_of_any_accepted_name_and_splits_as_spelled_for_folders(tmp_path):
    path = write(tmp_path, "more,File_Name,Class,SPLIT\n1,in/d.png,x,dev\n2,b.png,y,training\n3,./a.png,x,Train\n4,in/c.png,,test\n")
    parts = {split: opened(path, split) for split in ("train", "validation", "test", "all_train")}
    assert {split: part.source.names for split, part in parts.items()} == {
        "train": ["b.png", "a.png"], "validation": ["in/d.png"], "test": ["in/c.png"], "all_train": ["in/d.png", "b.png", "a.png"],
    }  # fmt: skip
    assert [parts[split].labels.tolist() for split in parts] == [[1, 0], [0], [-1], [0, 1, 0]]
    assert all(part.class_names == ("x", "y") for part in parts.values())
    assert pipeline.splits_of(replace(folder_config("x"), source=f"csv:{path}")) == ("train", "validation", "test")


def test_without_splits_the_table_is_drawn_as_an_undivided_folder(tmp_path):
    """By the names of its pictures: a folder of the same names has the same splits."""
    files = [f"{i}.png" for i in range(60)]
    path = write(tmp_path, "file\n" + "\n".join(files), files)
    for split in ("train", "validation", "test"):
        by_folder = pipeline.open_dataset(replace(folder_config(tmp_path), split_by="name"), split)
        assert sorted(opened(path, split).source.names) == sorted(by_folder.source.names) and len(by_folder)


def test_whole_numbers_are_the_classes_numbers_and_anything_else_their_names(tmp_path):
    path = write(tmp_path, "file,label,split\n" + "a.png,3,train\nb.png,0,train\nin/c.png,1,test\n")
    assert opened(path).labels.tolist() == [3, 0] and opened(path).class_names == (0, 1, 2, 3) and opened(path, "test").labels.tolist() == [1]
    path.write_text("file,label,split\na.png,10,train\nb.png,two,train\nin/c.png,10,test\n")
    assert opened(path).class_names == ("10", "two") and opened(path, "test").labels.tolist() == [0]
    path.write_text("file,split\na.png,train\nb.png,train\n")
    assert opened(path).class_names == () and opened(path).labels.tolist() == [-1, -1]


SPLITS = "file,label,split\na.png,{},train\nb.png,{},train\nin/c.png,{},test\nin/d.png,{},test\n"


@pytest.mark.parametrize(
    ("labels", "classes", "train", "test"),
    [
        (("0", "2", "1.0", "2"), (0, 1, 2), [0, 2], [1, 2]),  # as pandas writes numbers beside an empty cell
        (("0", "2", "1.", ""), (0, 1, 2), [0, 2], [1, -1]),
        (("0", "2", "2.00", "-1.0"), (0, 1, 2), [0, 2], [2, -1]),
        (("0.0", "2", "2", "1"), (0, 1, 2), [0, 2], [2, 1]),
        (("01", "02", "1", "2"), (0, 1, 2), [1, 2], [1, 2]),
        (("1.5", "2", "2", "1.5"), ("1.5", "2"), [0, 1], [1, 0]),
        (("1", "one", "one", "1"), ("1", "one"), [0, 1], [1, 0]),
        (("?", "one", "one", "?"), ("?", "one"), [0, 1], [1, 0]),
    ],
)
def test_a_label_has_one_meaning_in_all_splits(tmp_path, labels, classes, train, test):
    path = write(tmp_path, SPLITS.format(*labels))
    assert opened(path).class_names == opened(path, "test").class_names == classes
    assert (opened(path).labels.tolist(), opened(path, "test").labels.tolist()) == (train, test)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("0", "2", "1", "unknown"), "test holds the label unknown, but the classes of training are the numbers 0, 1, 2: leave it empty"),
        (("0", "2", "1", "?"), r"test holds the label \?, but"),
        (("0", "2", "1", "1.5"), "test holds the label 1.5, but"),
        (("0", "2", "cat", "dog"), "test holds the label cat, dog, but"),
        (("0", "2", "1", "3.0"), "test holds labels up to 3, but training has the 3 classes 0, 1, 2"),
        (("0", "2", "01", "1"), "test holds the labels 01, 1, which are one number: write it in one way"),
        (("01", "1", "1", "1"), "train holds the labels 01, 1, which are one number: write it in one way"),
        (("2", "2.0 and", "2", "2.0"), "test holds 2.0, which training lacks or has twice: 2, 2.0 and"),
        (("2", "?", "2", "2"), r"train holds the label \? beside whole numbers: leave it empty where a picture has no label"),
        (("2", "NaN", "2", "2"), "train holds the label NaN beside whole numbers"),
        (("x", "y", "0", "1"), "test holds 0, 1, which training lacks or has twice: x, y"),
    ],
)
def test_a_label_without_one_meaning_is_refused_with_its_split(tmp_path, labels, message):
    path = write(tmp_path, SPLITS.format(*labels))
    with pytest.raises(ValueError, match=f"csv:{path}, {message}") as caught:
        opened(path, "test")
    assert "\n" not in str(caught.value)


def test_numbers_beside_names_are_names_which_a_line_says_and_one_number_is_no_two_of_them(tmp_path, capsys):
    path = write(tmp_path, "file,label,split\n" + ALL.format("2,train", "206,train", "206,train", "beetle,train"))
    assert opened(path).class_names == ("2", "206", "beetle")
    assert f"csv:{path}, train holds the label beetle beside whole numbers: all labels are names of classes, 3 of them" in capsys.readouterr().err
    path.write_text("file,label,split\n" + ALL.format("2,train", "2.0,train", "206,train", "beetle,train"))
    with pytest.raises(ValueError, match="holds the labels 2, 2.0, which are one number"):
        opened(path)


def test_the_fingerprint_knows_the_names_whatever_the_length_of_the_table_s_name(tmp_path):
    found = []
    for name in ("x", "y"):
        path = write(tmp_path / name, "file,split\na.png,train\n", ["a.png", "b.png"]).rename(tmp_path / name / "a long name of a table.csv")
        found.append(opened(path).fingerprint())
    assert found[0] == found[1]
    path.write_text("file,split\nb.png,train\n")
    assert opened(path).fingerprint() != found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs one column file | .* its header is empty"),
        ("a.png,1\n", "needs one column file | .* its header is a.png, 1"),
        ("file,path\na.png,a.png\n", "has several columns that may be the file: its header is file, path"),
        ("file,label\n", "lists no pictures"),
        ("file,label\na.png\n", "row 2 has 1 cells, the header 2"),
        ("file;label\na.png;1\n", "needs one column file"),
        ("file,label\na.png,1\nnone.png,1\n", "1 of 2 pictures do not exist in .*: none.png"),
        ("file,label\na.png,1\nin/../a.png,2\n", "lists 1 pictures twice: a.png"),
        ("file,label\n/etc/a.png,1\n", "row 2: '/etc/a.png' is no path inside"),
        ("file,label\n../a.png,1\n", "row 2: '../a.png' is no path inside"),
        ("file,label\n,1\n", "row 2: '' is no path inside"),
        ("file,split\na.png,train\nb.png,later\n", "row 3: split 'later' is unknown: one of train, training, val"),
        ("file,split\na.png,\n", "row 2: split '' is unknown"),
        ("file,split\na.png,test\n", "has no row of the split train"),
        ("file,label,split\na.png,x,train\nb.png,z,test\n", "holds z, which training lacks or has twice: x"),
        ("file,label,split\na.png,0,train\nb.png,1,test\n", "holds labels up to 1, but training has the 1 classes 0"),
        ("file,label\na.png,-7\n", None),
        ('file,label\n"a.png,1\n', "is not a CSV file in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    split = "test" if ",split" in text and "test" in text and "no row" not in str(message) else "all_train"
    if message is None:
        assert opened(path).class_names == ("-7",)  # a name like any other
        return
    with pytest.raises(ValueError, match=message) as caught:
        opened(path, split)
    assert "\n" not in str(caught.value)


def test_no_file_a_folder_and_a_table_without_a_split(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.csv does not exist: give a table with a header and a row for each picture"):
        opened(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=f"is a folder: give the file, or folder:{tmp_path}"):
        opened(tmp_path)
    path = write(tmp_path, "file,split\na.png,train\n")
    with pytest.raises(ValueError, match="has no test pictures, only train"):
        opened(path, "test")


def test_pictures_that_cannot_be_read_are_left_out(tmp_path, capsys):
    path = write(tmp_path, "file,label,split\n" + ALL.format("x,train", "y,train", "x,train", "y,train"))
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert opened(path).source.names == ["a.png", "in/c.png", "in/d.png"] and opened(path).labels.tolist() == [0, 0, 1]
    assert f"note: 1 of 4 files are left out: {tmp_path}" in capsys.readouterr().err
