"""OpenAI's arrays of palette ids: the splits, the palette beside them, what is wrong with them in one line, and every program on them."""

import dataclasses
import itertools
import json
import re
import sys

import numpy as np
import pytest

from igpt_jax import convert, evaluate, features, sample, train
from igpt_jax.data import pipeline
from igpt_jax.model import objectives
from igpt_jax.palette.palette import Palette
from igpt_jax.sampling import complete
from igpt_jax.training import checkpoints, evaluation
from tests.models import random_model, tiny
from tests.runs import grey_palette, make_workdir, recipe

RANDOM = np.random.default_rng(0)
COUNTS = {"tr": 30, "va": 6, "te": 11}
IDS = {part: RANDOM.integers(0, 16, (count, 64)) for part, count in COUNTS.items()}
LABELS = {part: np.arange(count) % 5 for part, count in COUNTS.items()}
GREYS = grey_palette(16)
LOSS = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}


def one_hot(labels, dtype=np.float32):
    return np.eye(5, dtype=dtype)[labels]


def write(directory, parts=("tr", "va", "te"), prefix="imagenet_", ids=np.int64, labels=one_hot):
    """Arrays as OpenAI hosts them; the source that names them."""
    directory.mkdir(exist_ok=True)
    for part in parts:
        np.save(directory / f"{prefix}{part}X.npy", IDS[part].astype(ids))
        if labels:
            np.save(directory / f"{prefix}{part}Y.npy", labels(LABELS[part]))
    return f"npy:{directory}"


def config(source, **changes):
    return dataclasses.replace(pipeline.DataConfig(source, 8, "none", 0.1, "", 0, 0), **changes)


def opened(source, split, **changes):
    return pipeline.open_dataset(config(source, **changes), split)


def refusal(source, split="test", error=ValueError, **changes):
    """The one line with which it is refused."""
    with pytest.raises(error) as caught:
        dataset = opened(source, split, **changes)
        dataset.codes(np.arange(len(dataset)), GREYS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("labels", [one_hot, lambda labels: one_hot(labels, bool), lambda labels: labels.astype(np.uint8)])
def test_ids_and_labels_are_those_of_the_files(tmp_path, dtype, square, labels):
    source = write(tmp_path, ids=dtype, labels=labels)
    if square:
        np.save(tmp_path / "imagenet_teX.npy", np.asfortranarray(IDS["te"].reshape(-1, 8, 8).astype(dtype)))
    test = opened(source, "test")
    codes = test.codes([10, 0, 3], GREYS)
    assert codes.dtype == np.int32 and np.array_equal(codes, IDS["te"][[10, 0, 3]])
    assert test.labels.dtype == np.int32 and np.array_equal(test.labels, LABELS["te"]) and test.class_names == tuple(range(5))
    assert all(array.filename for array in test.source.arrays)  # mapped, never read as a whole


def test_each_split_is_its_file_and_the_share_is_not_used(tmp_path):
    source = write(tmp_path)
    for validation in (0.0, 0.1, 0.5):
        for split, parts in (("train", ["tr"]), ("validation", ["va"]), ("test", ["te"]), ("all_train", ["tr", "va"])):
            dataset = opened(source, split, validation=validation)
            assert np.array_equal(dataset.codes(np.arange(len(dataset)), GREYS), np.concatenate([IDS[part] for part in parts])), split
            assert np.array_equal(dataset.labels, np.concatenate([LABELS[part] for part in parts])), split
    everything = opened(source, "all_train")
    across = [35, 2, 29, 30]  # the two files in any order
    assert np.array_equal(everything.codes(across, GREYS), np.concatenate([IDS["tr"], IDS["va"]])[across])


def test_without_a_file_of_its_own_validation_is_held_out_of_training(tmp_path):
    source = write(tmp_path, ("tr", "te"))
    train, validation, everything = (opened(source, split) for split in ("train", "validation", "all_train"))
    assert (len(train), len(validation), len(everything)) == (27, 3, 30)
    rows = [dataset.codes(np.arange(len(dataset)), GREYS) for dataset in (train, validation, everything)]
    assert sorted(map(bytes, np.concatenate(rows[:2]))) == sorted(map(bytes, rows[2])) and np.array_equal(rows[2], IDS["tr"])
    held = [IDS["tr"].tolist().index(row.tolist()) for row in rows[1]]
    assert np.array_equal(validation.labels, LABELS["tr"][held])
    (tmp_path / "imagenet_vaY.npy").write_bytes(b"")  # a download that is not whole changes no split in silence
    assert len(opened(source, "train")) == 30
    assert "imagenet_vaX.npy does not exist" in refusal(source, "validation", FileNotFoundError)


def test_the_test_files_alone_are_enough_for_the_test_split(tmp_path):
    source = write(tmp_path, ("te",), labels=None)
    test = opened(source, "test")
    assert len(test) == 11 and test.labels.tolist() == [-1] * 11 and test.class_names == ()
    assert "imagenet_trX.npy does not exist, the palette ids of this split" in refusal(source, "train", FileNotFoundError)
    np.save(tmp_path / "imagenet_teX.npy", IDS["te"][:0])
    assert refusal(source) == f"{source} has no images in its test split"


def test_a_data_set_is_named_where_a_folder_holds_several(tmp_path):
    source = write(tmp_path)
    assert len(opened(f"{source}/imagenet", "test")) == len(opened(f"{source}/", "test")) == 11
    write(tmp_path, ("te",), "cifar10_")
    expected = f"{source} holds the arrays of 2 data sets, choose one of them: {source}/cifar10, {source}/imagenet"
    assert refusal(source) == expected
    assert len(opened(f"{source}/imagenet", "all_train")) == 36 and len(opened(f"{source}/cifar10", "test")) == 11
    assert f"there is {source}/cifar10, {source}/imagenet" in refusal(f"{source}/imagnet", error=FileNotFoundError)
    write(tmp_path, ("te",), "")
    assert len(opened(source, "test")) == 11  # files without a prefix are the folder's own
    (tmp_path / "none").mkdir()
    assert "none has no arrays [PREFIX_]{tr,va,te}X.npy" in refusal(f"{source}/none", error=FileNotFoundError)
    assert "nowhere/x has no arrays" in refusal("npy:/nowhere/x", error=FileNotFoundError)


@pytest.mark.parametrize("name", ["kmeans_centers.npy", "palette.npy"])
def test_a_palette_beside_the_arrays_is_theirs(tmp_path, name):
    source = write(tmp_path)
    GREYS.save(tmp_path / name)
    test = opened(source, "test")
    assert np.array_equal(test.images(2, 5), GREYS.decode(IDS["te"][2:5].reshape(-1, 8, 8)))
    other = Palette(GREYS.centers[::-1])
    with pytest.raises(ValueError, match="was coded with another palette .16 colours. than the one given .16."):
        pipeline.evaluation_batches(test, other, 4)
    Palette(GREYS.centers[:8]).save(tmp_path / name)
    assert "holds code 15, but its palette has 8 colours" in refusal_of_images(opened(source, "test"))


def test_without_a_palette_beside_them_the_one_given_shows_them(tmp_path):
    test = opened(write(tmp_path), "test")
    assert test.palette is None
    assert np.array_equal(test.images(2, 5, GREYS), GREYS.decode(IDS["te"][2:5].reshape(-1, 8, 8)))
    assert "holds palette ids but no colours: put the kmeans_centers.npy" in refusal_of_images(test)
    with pytest.raises(ValueError, match="code 15, but the palette given has 8 colours: use the palette"):
        test.codes(np.arange(11), Palette(GREYS.centers[:8]))


def refusal_of_images(dataset):
    with pytest.raises(ValueError) as caught:
        dataset.images(0, None)
    return str(caught.value)


def bad_one_hot(row, value):
    def labels(labels):
        array = one_hot(labels)
        array[row] = value
        return array

    return labels


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("X", IDS["te"].astype(np.float32), "teX.npy must hold palette ids, whole numbers .*, not float32 .11, 64."),
        ("X", IDS["te"][0], "must hold palette ids, .* not int64 .64."),
        ("X", IDS["te"][:, :63], r"teX.npy must hold square images, not ids \[11, 63\]"),
        ("X", IDS["te"].reshape(11, 4, 16), r"must hold square images, not ids \[11, 4, 16\]"),
        ("X", IDS["te"][:, :16], "holds images of 4 x 4 pixels, but image_size is 8"),
        ("X", IDS["te"][:0], "must hold the labels of the 0 images"),
        ("X", np.where(np.arange(11)[:, None] == 7, 16, IDS["te"]), "holds code 16, but the palette given has 16 colours: use"),
        ("X", np.where(np.arange(11)[:, None] == 7, -1, IDS["te"]), "holds code -1"),
        ("X", np.where(np.arange(11)[:, None] == 7, 1 << 32, IDS["te"]), "holds code 4294967296"),  # 0 as int32
        ("X", np.array([{}], object), "Python objects"),
        ("Y", one_hot(LABELS["te"])[:10], r"teY.npy must hold the labels of the 11 images beside it, .* not float32 \[10, 5\]"),
        ("Y", LABELS["te"][:10], r"the labels of the 11 images .* not int64 \[10\]"),
        ("Y", np.zeros((11, 5, 1)), "the labels of the 11 images"),
        ("Y", np.full((11, 5), "1"), "the labels of the 11 images"),
        ("Y", bad_one_hot(4, 0)(LABELS["te"]), "must be one-hot, .* which row 4 is not"),
        ("Y", bad_one_hot(5, 1)(LABELS["te"]), "row 5 is not"),
        ("Y", 2 * one_hot(LABELS["te"]), "row 0 is not"),
        ("Y", bad_one_hot(6, [1, 0, 0, 0, 0.5])(LABELS["te"]), "row 6 is not"),
        ("Y", bad_one_hot(6, [1, 0, 0, 0, np.nan])(LABELS["te"]), "row 6 is not"),
        ("Y", LABELS["te"] - 2, "must hold labels from 0 on .-1: none., not int64 from -2"),
        ("Y", LABELS["te"] / 2, "must hold labels from 0 on .* not float64"),
    ],
)
def test_a_wrong_array_is_refused_in_one_line(tmp_path, name, array, message):
    source = write(tmp_path)
    np.save(tmp_path / f"imagenet_te{name}.npy", array)
    assert re.search(message, refusal(source))


@pytest.mark.parametrize("name", ["X", "Y"])
@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_cut_short_is_refused_in_one_line(tmp_path, name, keep):
    source = write(tmp_path)
    path = tmp_path / f"imagenet_te{name}.npy"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is cut short, or no .npy file" in refusal(source)
    path.write_text("<html>404 Not Found</html>")
    assert f"{path} is cut short, or no .npy file" in refusal(source)


def test_images_missing_beside_their_labels_are_named(tmp_path):
    source = write(tmp_path, ("te",))
    (tmp_path / "imagenet_teX.npy").unlink()
    for name in (source, f"{source}/imagenet"):
        message = f"{tmp_path}/imagenet_teX.npy does not exist, the palette ids of this split: download.py"
        assert refusal(name, error=FileNotFoundError).startswith(message)


def test_npz_points_to_npy(tmp_path):
    source = write(tmp_path)
    message = refusal(f"npz:{tmp_path}", error=FileNotFoundError)
    assert message.endswith(f"imagenet_teX.npy holds palette ids, read as {source}")
    np.savez(tmp_path / "test.npz", images=IDS["te"])
    assert "palette ids are read from .npy files by npy:DIR" in refusal(f"npz:{tmp_path}")


def test_resizing_augmentation_is_refused():
    with pytest.raises(ValueError, match="which codes cannot"):
        config("npy:x", augment="imagenet")


def test_batches_are_those_of_the_same_codes_in_quantize_s_folder(tmp_path):
    source = write(tmp_path, ("tr", "te"))
    for part, name in (("tr", "train"), ("te", "test")):
        np.save(tmp_path / f"{name}.npy", IDS[part].reshape(-1, 8, 8).astype(np.uint16))
        np.save(tmp_path / f"{name}_labels.npy", LABELS[part])
    GREYS.save(tmp_path / "palette.npy")
    (tmp_path / "dataset.json").write_text(json.dumps({"class_names": list("01234")}))
    streams = []
    for same in (source, f"codes:{tmp_path}"):
        training, test = (opened(same, split, augment="cifar") for split in ("train", "test"))
        batches = pipeline.train_batches(training, GREYS, 8, seed=0)
        streams.append([*itertools.islice(batches, 7), *pipeline.evaluation_batches(test, GREYS, 4)])
    for one, other in zip(*streams, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_folder_of_quantize_with_validation_images_of_its_own(tmp_path):
    for part, name in (("tr", "train"), ("va", "validation"), ("te", "test")):
        np.save(tmp_path / f"{name}.npy", IDS[part].reshape(-1, 8, 8).astype(np.uint16))
        np.save(tmp_path / f"{name}_labels.npy", LABELS[part])
    GREYS.save(tmp_path / "palette.npy")
    counts = {"train": 30, "validation": 6, "test": 11}
    (tmp_path / "dataset.json").write_text(json.dumps({"class_names": list("01234"), "counts": counts}))
    for split, parts in (("train", ["tr"]), ("validation", ["va"]), ("test", ["te"]), ("all_train", ["tr", "va"])):
        dataset = opened(f"codes:{tmp_path}", split)
        np.testing.assert_array_equal(dataset.codes(np.arange(len(dataset)), GREYS), np.concatenate([IDS[part] for part in parts]))
        np.testing.assert_array_equal(dataset.labels, np.concatenate([LABELS[part] for part in parts]))
    for wrong in (5, 7):
        (tmp_path / "dataset.json").write_text(json.dumps({"class_names": list("01234"), "counts": counts | {"validation": wrong}}))
        assert f"validation.npy holds 6 images, but {tmp_path}/dataset.json says {wrong}" in refusal(f"codes:{tmp_path}", "validation")
        assert len(opened(f"codes:{tmp_path}", "test")) == 11


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A checkpoint that, like a converted one, names no data."""
    path, unknown = tmp_path_factory.mktemp("checkpoint"), dataclasses.asdict(config("digits")) | {"source": ""}
    checkpoints.save_model(path, random_model(tiny(classes=5)), GREYS, {"loss": LOSS, "data": unknown})
    return path


def test_a_checkpoint_is_evaluated_on_them(converted, tmp_path, monkeypatch, capsys):
    source = write(tmp_path)
    result = evaluation.evaluate_checkpoint(converted, source=f"{source}/imagenet")
    output = checkpoints.load(converted)(IDS["te"])
    assert result["nats_per_pixel"] == pytest.approx(float(objectives.next_pixel_loss(output.logits, IDS["te"]).mean()), rel=1e-5)
    assert result["images"] == 11 and result["data"] == f"{source}/imagenet" and result["split"] == "test"
    assert result["accuracy"] == pytest.approx(float((np.argmax(output.class_logits, -1) == LABELS["te"]).mean()))
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--checkpoint={converted}", f"--data={source}/imagenet", "--split=validation"])
    evaluate._main()
    assert json.loads(capsys.readouterr().out)["images"] == 6
    with pytest.raises(ValueError, match="this checkpoint names no data: give them by --data=.*npy:DIR"):
        evaluation.evaluate_checkpoint(converted)


def test_a_checkpoint_of_another_size_or_palette_is_refused_and_one_of_another_head_measured_without(converted, tmp_path):
    source = write(tmp_path / "ids", ("te",))
    checkpoints.save_model(tmp_path / "larger", random_model(tiny(positions=100)), GREYS, {"loss": LOSS})
    with pytest.raises(ValueError, match="holds images of 8 x 8 pixels, but image_size is 10"):
        evaluation.evaluate_checkpoint(tmp_path / "larger", source=source)
    checkpoints.save_model(tmp_path / "fewer", random_model(tiny(vocabulary=8)), grey_palette(8), {"loss": LOSS})
    with pytest.raises(ValueError, match="holds code 15, but the palette given has 8 colours"):
        evaluation.evaluate_checkpoint(tmp_path / "fewer", source=source)
    np.save(tmp_path / "ids" / "imagenet_teY.npy", np.eye(7)[LABELS["te"]])
    assert "accuracy" not in evaluation.evaluate_checkpoint(converted, source=source)


@pytest.mark.slow
def test_openai_s_checkpoint_on_openai_s_arrays_has_openai_s_loss(oracles, tmp_path):
    pytest.importorskip("tensorflow", reason="needs the extra `convert`: TensorFlow reads TensorFlow's checkpoints")
    expected = np.load(oracles / "openai_ar" / "expected.npz")
    np.save(tmp_path / "cifar10_teX.npy", expected["X"])
    np.save(tmp_path / "cifar10_teY.npy", expected["Y"])
    GREYS.save(tmp_path / "kmeans_centers.npy")
    convert._main(["openai", str(oracles / "openai_ar"), str(tmp_path / "model"), f"--palette={tmp_path / 'kmeans_centers.npy'}", "--heads=4"])
    result = evaluation.evaluate_checkpoint(tmp_path / "model", source=f"npy:{tmp_path}/cifar10")
    assert result["nats_per_pixel"] == pytest.approx(float(expected["gen_loss"]), abs=2e-5)
    assert result["class_nats"] == pytest.approx(float(expected["clf_loss"]), abs=2e-5)
    assert 100 * result["accuracy"] == pytest.approx(float(expected["accuracy"]), abs=1e-4) and result["images"] == 3


def test_features_and_completions_of_them(converted, tmp_path):
    source = write(tmp_path / "ids")
    assert features.main([f"--checkpoint={converted}", f"--data={source}", f"--out={tmp_path / 'features'}"]) == 0
    described = json.loads((tmp_path / "features" / "features.json").read_text())
    assert described["counts"] == {"train": 30, "validation": 6, "test": 11} and described["class_names"] == list(range(5))
    stored = np.load(tmp_path / "features" / "test" / "part-00000.npy")
    np.testing.assert_allclose(stored, checkpoints.load(converted)(IDS["te"]).features, atol=1e-5)
    pretrained, test = checkpoints.load(converted), opened(source, "test")
    made = complete.complete(pretrained, list(test.images(0, 2, pretrained.palette)), completions=1)
    assert np.array_equal(made.codes[:, 0, :32], IDS["te"][:2, :32])


def test_completions_by_command_with_the_palette_of_the_checkpoint(converted, tmp_path, monkeypatch):
    source = write(tmp_path / "ids")
    arguments = [f"--checkpoint={converted}", f"--data={source}", f"--out={tmp_path / 'x.png'}", "--count=2", "--completions=1"]
    monkeypatch.setattr(sys, "argv", ["sample", *arguments])
    sample._main()
    assert (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_run_trains_on_them(tmp_path):
    source, workdir = write(tmp_path / "ids"), make_workdir(tmp_path / "run")
    GREYS.save(workdir / "palette.npy")
    train.train(recipe(data__source=source, palette__size=16, steps=3, eval_every=3, save_every=3, optim__warmup_steps=1), workdir)
    assert json.loads((workdir / "result.json").read_text())["images"] == 6  # of their own validation file
