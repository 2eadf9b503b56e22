"""Data sets of the datasets library: what it wrote, parquet files, folders of pictures, columns, classes and splits."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import pipeline
from tests.data.samples import DIGITS, GREYS, assert_same, first, replace

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    """No network, and a cache that is gone afterwards."""
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def grey(value, side=8):
    return Image.fromarray(np.full((side, side + 2, 3), value, np.uint8))


def png(value):
    content = io.BytesIO()
    grey(value).save(content, "png")
    return content.getvalue()


def table(count, names=("cat", "dog", "emu"), label="label", image="image", first_value=0):
    """Pictures of the greys first_value, first_value + 1, ..., each labelled by its grey modulo the number of names."""
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    values = range(first_value, first_value + count)
    return datasets.Dataset.from_dict({image: [grey(value) for value in values], label: [value % len(names) for value in values]}, features=features)


def opened(place, split="all_train", **changes):
    return pipeline.open_dataset(replace(DIGITS, source=f"hf:{place}", **changes), split)


def one_line(message, place, split="all_train"):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        opened(place, split)
    assert "\n" not in str(caught.value)


def test_a_saved_dictionary_has_its_splits_by_their_names_and_classes_by_theirs(tmp_path, capsys):
    """The classes of the other splits are in another order; `dev` is validation; a split of another name is not read, which a line says."""
    parts = {"train": table(30), "dev": table(7, ("emu", "cat", "dog"), first_value=100), "extra": table(2)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    config = replace(DIGITS, source=f"hf:{tmp_path}/set")
    assert pipeline.splits_of(config) == ("train", "validation")
    train, validation, both = (opened(tmp_path / "set", split) for split in ("train", "validation", "all_train"))
    assert (len(train), len(validation), len(both)) == (30, 7, 37) and train.class_names == validation.class_names == ("cat", "dog", "emu")
    greys = both.images(0, None)[:, 0, 0, 0]
    assert greys.tolist() == [*range(30), *range(100, 107)]
    own = ["emu", "cat", "dog"]
    assert both.labels.tolist() == [value % 3 for value in range(30)] + [train.class_names.index(own[value % 3]) for value in range(100, 107)]
    printed = capsys.readouterr().err
    assert "not read are the splits extra" in printed and f"hf:{tmp_path}/set, train: 30 pictures: 10 cat, 10 dog, 10 emu" in printed
    one_line("has no test split, only train, validation", tmp_path / "set", "test")


def test_a_single_saved_table_is_training_unless_it_says_another_split(tmp_path):
    table(20).save_to_disk(tmp_path / "set")
    assert len(opened(tmp_path / "set", "train")) == 18 and len(opened(tmp_path / "set", "validation")) == 2
    datasets.load_dataset("parquet", data_files={"test": write_parquet(tmp_path / "x.parquet", 6)}, split="test").save_to_disk(tmp_path / "other")
    assert len(opened(tmp_path / "other", "test")) == 6
    one_line("has no train split, only test", tmp_path / "other")


def write_parquet(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    table(count).to_parquet(path)
    return str(path)


def test_parquet_files_and_picture_folders(tmp_path):
    write_parquet(tmp_path / "parquet/data/train-00000-of-00001.parquet", 12)
    write_parquet(tmp_path / "parquet/data/validation-00000-of-00001.parquet", 5)
    assert [len(opened(tmp_path / "parquet", split)) for split in ("train", "validation")] == [12, 5]
    assert opened(tmp_path / "parquet").class_names == ("cat", "dog", "emu")
    for part, count in (("train", 6), ("test", 2)):
        for i in range(count):
            path = tmp_path / "folders" / part / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey(i).save(path)
    train, test = opened(tmp_path / "folders"), opened(tmp_path / "folders", "test")
    assert train.class_names == test.class_names == ("a", "b") and (len(train), len(test)) == (6, 2)
    assert sorted(train.images(0, None)[:, 0, 0, 0].tolist()) == list(range(6)) and np.array_equal(train.labels, train.images(0, None)[:, 0, 0, 0] % 2)


def test_parquet_that_pandas_wrote_has_bytes_and_names_as_labels(tmp_path):
    import pandas

    rows = [{"image": {"bytes": png(i), "path": f"{i}.png"}, "label": "yx"[i % 2]} for i in range(10)]
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    train = opened(tmp_path)
    assert train.class_names == ("x", "y") and train.labels.tolist() == [1, 0] * 5 and train.images(0, None)[:, 0, 0, 0].tolist() == list(range(10))
    pandas.DataFrame([{"picture": png(i), "label": i % 2} for i in range(4)]).to_parquet(tmp_path / "train.parquet")
    train = opened(tmp_path)
    assert train.class_names == (0, 1) and train.labels.tolist() == [0, 1, 0, 1]


def test_columns_are_found_by_their_types_and_several_are_asked_for(tmp_path):
    kinds = {"img": datasets.Image(), "other": datasets.Image(), "coarse": datasets.ClassLabel(num_classes=3), "fine": datasets.ClassLabel(num_classes=4)}
    columns = {"img": [grey(i) for i in range(8)], "other": [grey(50 + i) for i in range(8)], "coarse": [0] * 8, "fine": [0, 1, 2, 3] * 2}
    two = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    two.save_to_disk(tmp_path / "set")
    wanted = r"has 2 columns of classes: choose one by hf:NAME,label=coarse; its columns are img \(Image\), other \(Image\), coarse \(ClassLabel\)"
    one_line(wanted, tmp_path / "set")
    one_line("has 2 columns of pictures: choose one by hf:NAME,image=img", f"{tmp_path}/set,label=fine")
    chosen = opened(f"{tmp_path}/set,label=fine,image=other")
    assert chosen.labels.tolist() == [0, 1, 2, 3] * 2 and chosen.images(0, 2)[:, 0, 0, 0].tolist() == [50, 51]
    assert opened(f"{tmp_path}/set,image=img,label=").class_names == () and opened(f"{tmp_path}/set,image=img,label=").labels.tolist() == [-1] * 8
    one_line("has no pictures in a column 'fine'", f"{tmp_path}/set,image=fine,label=fine")
    one_line("has no labels in a column 'img'", f"{tmp_path}/set,label=img")
    one_line("has the option 'colour'", f"{tmp_path}/set,colour=img")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    one_line("has 0 columns of pictures: a column of type Image is needed", tmp_path / "text")


def test_unlabelled_pictures_and_classes_that_training_lacks(tmp_path):
    unlabelled = table(6).remove_columns("label")
    unlabelled.save_to_disk(tmp_path / "set")
    assert opened(tmp_path / "set").labels.tolist() == [-1] * 6 and opened(tmp_path / "set").class_names == ()
    some = datasets.Dataset.from_dict({"image": [grey(0)] * 3, "label": [1, None, -1]}, features=table(1).features)
    datasets.DatasetDict({"train": table(6), "test": some}).save_to_disk(tmp_path / "some")
    assert opened(tmp_path / "some", "test").labels.tolist() == [1, -1, -1]
    datasets.DatasetDict({"train": table(6), "test": table(6, ("cat", "dog", "fox"))}).save_to_disk(tmp_path / "other")
    one_line("test: `label` holds fox, which training lacks or has twice: cat, dog, emu", tmp_path / "other", "test")


def labelled(labels, feature):
    columns = {"image": [grey(0)] * len(labels), "label": labels}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), "label": feature}))


NUMBER, TEXT = datasets.Value("int64"), datasets.Value("string")


def classes(*names):
    return datasets.ClassLabel(names=list(names))


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (([0, 1, 2], NUMBER), (["1.0", "2", "", None, " "], TEXT), [1, 2, -1, -1, -1]),
        (([0, 1, 2], NUMBER), ([0, 1], classes("2", "1")), [2, 1]),
        ((["1", "2", ""], TEXT), ([1, 2, -1], NUMBER), [0, 1, -1]),
        (([0, 1], classes("dog", "cat")), (["cat", "dog"], TEXT), [1, 0]),
        (([0, 1, 2], NUMBER), (["1", "unknown"], TEXT), "test: `label` holds the label unknown, but the classes of training are the numbers 0, 1, 2"),
        (([0, 1], NUMBER), ([0, 1], classes("dog", "cat")), "test: `label` holds the label cat, dog, but the classes of training are the numbers 0, 1"),
        ((["cat", "dog"], TEXT), ([0, 1], NUMBER), "test: `label` holds 0, 1, which training lacks or has twice: cat, dog"),
        (([0, 1], classes("cat", "dog")), ([0, 1], NUMBER), "test: `label` holds 0, 1, which training lacks or has twice: cat, dog"),
        ((["1", "2", "2.0"], TEXT), (["1"], TEXT), "train: `label` holds the labels 2, 2.0, which are one number: write it in one way"),
        ((["1", "2", "?"], TEXT), (["1"], TEXT), r"train: `label` holds the label \? beside whole numbers: leave it empty"),
    ],
)
def test_names_in_one_split_and_numbers_in_the_other(tmp_path, train, test, expected):
    for part, (labels, feature) in (("train", train), ("test", test)):
        labelled(labels, feature).save_to_disk(tmp_path / part)
    tables = {part: datasets.load_from_disk(tmp_path / part) for part in ("train", "test")}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "set")
    if isinstance(expected, str):
        one_line(expected, tmp_path / "set", "test")
    else:
        assert opened(tmp_path / "set", "test").labels.tolist() == expected


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_same_pictures_in_arrays(tmp_path, workers):
    """Also when worker processes read the table."""
    table(40).save_to_disk(tmp_path / "set")
    stored = opened(tmp_path / "set")
    np.savez(tmp_path / "train.npz", images=stored.images(0, None), labels=stored.labels, class_names=stored.class_names)
    arrays = pipeline.open_dataset(replace(DIGITS, source=f"npz:{tmp_path}"), "train")
    train = opened(tmp_path / "set", "train", workers=workers)
    assert_same(*(first(pipeline.train_batches(dataset, GREYS, 9, seed=1, step=3), 6) for dataset in (arrays, train)))


def test_broken_pictures_are_replaced_and_too_many_end_the_run(tmp_path, caplog):
    def with_broken(broken):
        images = [{"bytes": b"no picture" if i in broken else png(i), "path": None} for i in range(9)]
        if 8 in broken:
            images[8] = None
        return datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 3}, features=table(1).features)

    with_broken({4}).save_to_disk(tmp_path / "one")
    train = opened(tmp_path / "one")
    assert train.images(0, None)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 7, 5, 6, 7, 8]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"hf:{tmp_path}/one, train, row 4 is not a readable image: ") and line.endswith("replaces it (1 so far)")
    with_broken({4, 8}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="2 of 9 pictures, more than 1%, can no longer be read, the last: .*row 8 holds no picture"):
        opened(tmp_path / "two").images(0, None)


def test_what_cannot_be_opened_is_said_in_one_line(tmp_path, monkeypatch):
    one_line("hf:owner/nothing is no folder here, and offline mode gives no data set 'owner/nothing'", "owner/nothing")
    one_line(f"folder {tmp_path}/nowhere does not exist: give one that `save_to_disk` wrote", f"{tmp_path}/nowhere")
    (tmp_path / "empty").mkdir()
    one_line("empty cannot be read: ", tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.parquet").write_bytes(b"no parquet")
    one_line("broken cannot be read: ", tmp_path / "broken")
    datasets.DatasetDict({"val": table(3), "valid": table(3)}).save_to_disk(tmp_path / "twice")
    one_line("has two splits that are both validation: val, valid", tmp_path / "twice")
    datasets.DatasetDict({"one": table(3), "two": table(3)}).save_to_disk(tmp_path / "unknown")
    one_line("has the splits one, two, none of which is one of train, training, val", tmp_path / "unknown")
    one_line("is not understood: hf:NAME", "owner/name,config,more")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    one_line(r"needs the datasets library: pip install 'igpt_jax\[datasets\]'", tmp_path / "twice")


def test_the_fingerprint_notices_other_pictures_and_labels(tmp_path):
    for name, rows in (("one", table(20)), ("same", table(20)), ("pixels", table(20, first_value=3)), ("labels", table(20, ("dog", "cat", "emu")))):
        rows.save_to_disk(tmp_path / name)
    found = {name: opened(tmp_path / name).fingerprint() for name in ("one", "same", "pixels")}
    assert found["one"] == found["same"] != found["pixels"]
    assert dataclasses.asdict(opened(tmp_path / "one").config)["source"] == f"hf:{tmp_path}/one"
