"""Samples in tar files, most of them written by webdataset: which member is what, which file belongs to which split, and what is refused."""

import io
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import pipeline
from tests.data.samples import DIGITS, GREYS, assert_same, first, replace


def grey(value):
    return np.full((8, 10, 3), value, np.uint8)


def png(value):
    content = io.BytesIO()
    Image.fromarray(grey(value)).save(content, "png")
    return content.getvalue()


def write_shards(pattern, count, per_shard=8, first_value=0, **fields):
    """Write samples of the greys first_value, ... by webdataset; each field is a function of the grey."""
    webdataset = pytest.importorskip("webdataset")
    pathlib.Path(pattern).parent.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(pattern), maxcount=per_shard, verbose=0) as sink:
        for value in range(first_value, first_value + count):
            sink.write({"__key__": f"{value:06d}", "png": grey(value)} | {name: make(value) for name, make in fields.items()})


def write_tar(path, members, mode="w"):
    """Write members {name: bytes} in their order, as `tar` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def opened(place, split="all_train", **changes):
    return pipeline.open_dataset(replace(DIGITS, source=f"wds:{place}", **changes), split)


def greys(dataset):
    return dataset.images(0, None)[:, 0, 0, 0].tolist()


def one_line(message, place, split="all_train"):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        opened(place, split)
    assert "\n" not in str(caught.value)


def test_shards_of_webdataset_by_folder_and_by_pattern(tmp_path, capsys):
    write_shards(tmp_path / "train-%04d.tar", 20, cls=lambda value: value % 3)
    write_shards(tmp_path / "val-%04d.tar", 5, first_value=100, cls=lambda value: value % 2)
    assert pipeline.splits_of(replace(DIGITS, source=f"wds:{tmp_path}")) == ("train", "validation")
    train, validation = opened(tmp_path, "train"), opened(tmp_path, "validation")
    assert greys(train) == list(range(20)) and train.labels.tolist() == [value % 3 for value in range(20)] and train.class_names == (0, 1, 2)
    assert greys(validation) == list(range(100, 105)) and validation.class_names == (0, 1, 2) and len(opened(tmp_path)) == 25
    assert "train: 20 pictures: 7 0, 7 1, 6 2" in capsys.readouterr().err
    assert greys(opened(f"{tmp_path}/train-{{0002..0000..-2}}.tar")) == [*range(16, 20), *range(8)]  # in the pattern's order
    assert len(opened(f"{tmp_path}/{{train,val}}-{{0000..0000}}.tar", "validation")) == 5
    assert len(opened(tmp_path / "train-0001.tar")) == 8
    one_line("has no test files, only train, validation", tmp_path, "test")


def test_folders_and_words_of_names_are_splits(tmp_path):
    for place in ("a/train/000.tar", "a/test/000.tar", "b/set-Training_000.tar", "b/set-dev_000.tar", "c/000.tar", "c/001.tar"):
        write_tar(tmp_path / place, [(f"{place[0]}.png", png(1))])
    for folder, splits in (("a", {"train", "test"}), ("b", {"train", "validation"}), ("c", {"train"})):
        assert pipeline.stored_parts(replace(DIGITS, source=f"wds:{tmp_path}/{folder}")) == splits
    assert pipeline.stored_parts(replace(DIGITS, source=f"wds:{tmp_path}/a/test")) == {"train"}  # a folder that is given is no split
    assert pipeline.stored_parts(replace(DIGITS, source=f"wds:{tmp_path}/a/test/{{000..000}}.tar")) == {"test"}
    write_tar(tmp_path / "b/more.tar", [("a.png", png(1))])
    one_line("more.tar of 3 files have no split in their names", tmp_path / "b")
    write_tar(tmp_path / "c/test-train.tar", [("a.png", png(1))])
    one_line("test-train.tar has the names of several splits", tmp_path / "c")


def test_members_are_grouped_by_their_names_up_to_the_first_dot(tmp_path):
    """In any order, in folders, with long names and suffixes in capitals; other members, folders and webdataset's own are not read."""
    long = "x" * 150
    members = [("b/1.png", png(1)), ("a/1.PNG", png(2)), (f"{long}.png", png(3)), ("a/1.more.png", b""), ("a/1.CLS", b" 1\n"), ("b/1.cls", b"0")]
    members += [("__meta__/x.png", b""), ("lone.cls", b"7"), ("noname", b""), (f"{long}.seg.png", b"")]
    write_tar(tmp_path / "x.tar", members)
    train = opened(tmp_path)
    assert greys(train) == [1, 2, 3] and train.labels.tolist() == [0, 1, -1] and train.class_names == (0, 1)
    write_tar(tmp_path / "x.tar", [("a.png", png(5))])
    assert greys(opened(tmp_path)) == [5]  # the index was of another file


def test_labels_in_json_and_text(tmp_path):
    write_shards(tmp_path / "json/train-%d.tar", 6, json=lambda value: {"caption": "any", "label": "yx"[value % 2]} if value else {})
    assert opened(tmp_path / "json").class_names == ("x", "y") and opened(tmp_path / "json").labels.tolist() == [-1, 0, 1, 0, 1, 0]
    write_shards(tmp_path / "numbers/train-%d.tar", 6, json=lambda value: {"cls": value % 4}, txt=lambda value: "a")
    assert opened(tmp_path / "numbers").class_names == (0, 1, 2, 3) and opened(tmp_path / "numbers").labels.tolist() == [0, 1, 2, 3, 0, 1]
    write_shards(tmp_path / "names/train-%d.tar", 6, txt=lambda value: "yx"[value % 2])
    write_shards(tmp_path / "names/test-%d.tar", 2, txt=lambda value: "x")
    assert opened(tmp_path / "names").labels.tolist() == [1, 0] * 3 and opened(tmp_path / "names", "test").labels.tolist() == [0, 0]


def test_a_list_of_names_names_the_classes_of_numbers(tmp_path):
    """As CLIP's benchmarks store them: beside the folders of the splits."""
    for part, numbers in (("train", (2, 0, 1)), ("test", (1, 2))):
        members = [(f"{i}.{kind}", content) for i, number in enumerate(numbers) for kind, content in (("png", png(i)), ("cls", b"%d" % number))]
        write_tar(tmp_path / part / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n emu \n", encoding="utf-8")
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog", "emu") and train.labels.tolist() == [2, 0, 1] and test.labels.tolist() == [1, 2]
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    one_line("holds label 2, but only 2 classes have names: cat, dog", tmp_path)
    write_tar(tmp_path / "names/0.tar", [("a.png", png(0)), ("a.cls", b"x")])
    assert opened(tmp_path / "names").class_names == ("x",)  # a label that is a name already


def write_labels(folder, **parts):
    for part, labels in parts.items():
        write_tar(folder / part / "0.tar", [(f"{i}.{kind}", content) for i, label in enumerate(labels) for kind, content in (("png", png(i)), ("cls", label))])


def test_a_label_that_is_no_number_beside_training_s_numbers(tmp_path):
    write_labels(tmp_path, train=(b"0", b"1", b"2"), test=(b"1.0", b"2", b""))
    assert opened(tmp_path).class_names == (0, 1, 2) and opened(tmp_path, "test").labels.tolist() == [1, 2, -1]
    write_labels(tmp_path, test=(b"1", b"2", b"?"))
    one_line(r"test: .cls holds the label \?, but the classes of training are the numbers 0, 1, 2", tmp_path, "test")
    write_labels(tmp_path, train=(b"0", b"1", b"unknown"))
    one_line("train: .cls holds the label unknown beside whole numbers: leave it empty", tmp_path)


def test_a_list_of_names_beside_one_split_alone(tmp_path):
    write_labels(tmp_path, train=(b"0", b"1", b"2"), test=(b"1", b"2"))
    (tmp_path / "test/classnames.txt").write_text("cat\ndog\nemu\n")
    one_line("test: .cls holds the label dog, emu, but the classes of training are the numbers 0, 1, 2", tmp_path, "test")
    (tmp_path / "test/classnames.txt").write_text("0\n1\n")
    one_line("test: .cls holds label 2, but only 2 classes have names: 0, 1", tmp_path, "test")
    (tmp_path / "test/classnames.txt").rename(tmp_path / "train/classnames.txt")
    write_labels(tmp_path, train=(b"0", b"1"))
    one_line("test: .cls holds 2, which training lacks or has twice: 0, 1", tmp_path, "test")
    (tmp_path / "train/classnames.txt").write_text("cat\ndog\n")
    write_labels(tmp_path, train=(b"0", b"1", b"emu"))
    one_line("train: .cls holds the label emu beside whole numbers", tmp_path)


def test_captions_and_metadata_are_no_labels(tmp_path, capsys):
    """As img2dataset writes them."""
    write_shards(tmp_path / "%05d.tar", 10, txt=lambda value: f"picture {value}", json=lambda value: {"url": "http", "width": 10})
    assert opened(tmp_path).labels.tolist() == [-1] * 10 and opened(tmp_path).class_names == ()
    assert "10 of 10 .txt differ: they are captions, and the pictures unlabelled" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_same_pictures_in_arrays(tmp_path, workers):
    """The order is that of the step, not that of the files; also when worker processes read them."""
    write_shards(tmp_path / "train-%04d.tar", 40, per_shard=7, cls=lambda value: value % 3)
    stored = opened(tmp_path)
    np.savez(tmp_path / "train.npz", images=stored.images(0, None), labels=stored.labels)
    arrays = pipeline.open_dataset(replace(DIGITS, source=f"npz:{tmp_path}"), "train")
    train = opened(tmp_path, "train", workers=workers)
    assert_same(*(first(pipeline.train_batches(dataset, GREYS, 9, seed=1, step=3), 6) for dataset in (arrays, train)))


def test_broken_pictures_are_replaced_and_too_many_end_the_run(tmp_path, caplog):
    def members(broken):
        return [(f"{i}.{kind}", content) for i in range(9) for kind, content in (("png", png(i)[: 40 if i in broken else None]), ("cls", b"%d" % (i % 3)))]

    write_tar(tmp_path / "x.tar", members({4}))
    assert greys(opened(tmp_path)) == [0, 1, 2, 3, 7, 5, 6, 7, 8]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path}/x.tar: 4.png is not a readable image: ") and line.endswith("replaces it (1 so far)")
    write_tar(tmp_path / "x.tar", members({4, 8}))
    with pytest.raises(ValueError, match=f"wds:{tmp_path}: 2 of 9 pictures, more than 1%, can no longer be read, the last: .*[48].png is not"):
        opened(tmp_path).images(0, None)


@pytest.mark.parametrize("left", [0, 100, 512, 1000, 1024, 1536, 2000, -1024, -10240])
def test_a_tar_file_that_is_cut_short_is_refused_wherever_it_ends(tmp_path, left):
    """Inside a header, inside a member, between members, and before the end mark."""
    path = write_tar(tmp_path / "x.tar", [(f"{i}.png", png(i).ljust(600)) for i in range(3)])
    whole = path.read_bytes()
    data = 3 * (512 + 1024)
    path.write_bytes(whole[: left if left >= 0 else data if left == -1024 else data + 100])
    one_line("x.tar is (not a whole, uncompressed tar file|cut short)", tmp_path)


def test_what_cannot_be_right_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    one_line("wds:.*/empty holds no .tar files: write them by webdataset", tmp_path / "empty")
    write_tar(tmp_path / "packed/x.tar.gz", [("a.png", png(1))], "w:gz")
    one_line("x.tar.gz is compressed and cannot be read at random: unpack it", tmp_path / "packed")
    write_tar(tmp_path / "renamed/x.tar", [("a.png", png(1))], "w:gz")
    one_line("x.tar is not a whole, uncompressed tar file", tmp_path / "renamed")
    one_line("2 of 3 files do not exist: .*renamed/y.tar, ", f"{tmp_path}/renamed/{{x,y,z}}.tar")
    one_line("names a file twice", f"{tmp_path}/renamed/{{x,x}}.tar")
    one_line("has braces that do not match", f"{tmp_path}/renamed/{{x.tar")
    write_tar(tmp_path / "twice/x.tar", [("a.png", png(1)), ("b.png", png(1)), ("a.png", png(2))])
    one_line("a.png is in it twice", tmp_path / "twice")
    write_tar(tmp_path / "two/x.tar", [("a.png", png(1)), ("a.jpg", png(1))])
    one_line("sample a has several pictures, png, jpg: name the others like a.more.jpg", tmp_path / "two")
    write_tar(tmp_path / "none/x.tar", [("a.txt", b"x")])
    one_line("none of its 1 files holds a picture", tmp_path / "none")
    write_tar(tmp_path / "json/x.tar", [("a.png", png(1)), ("a.json", b"{")])
    one_line("holds a .json that cannot be read", tmp_path / "json")
    write_tar(tmp_path / "json/x.tar", [("a.png", png(1)), ("a.json", b'{"label": [1]}')])
    one_line(r"holds a .json whose label is \[1\]", tmp_path / "json")
    for part, label in (("train", b"x"), ("test", b"z")):
        write_tar(tmp_path / f"classes/{part}.tar", [("a.png", png(1)), ("a.cls", label)])
    one_line("test: .cls holds z, which training lacks or has twice: x", tmp_path / "classes", "test")
    monkeypatch.setitem(__import__("sys").modules, "braceexpand", None)
    one_line(r"needs braceexpand: pip install 'igpt_jax\[wds\]' .*, or give the folder", f"{tmp_path}/renamed/{{x,y}}.tar")
