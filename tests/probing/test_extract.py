"""igpt_jax.features: every image once and in order, resumable, and never a mixture of two models."""

import dataclasses
import json
import shlex
import shutil
import types

import jax
import numpy as np
import pytest
from PIL import Image

from igpt_jax import features, probe
from igpt_jax.data import pipeline
from igpt_jax.data.classes import names_of_splits
from igpt_jax.model import objectives
from igpt_jax.palette.palette import Palette
from igpt_jax.probing import extract, lbfgs_probe, store
from igpt_jax.probing.splits import Splits
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny

DIGITS = dict(source="digits", image_size=8, augment="none", validation=0.1, directory="", workers=0, seed=0)
TEST = len(pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test"))
COUNTS = {"train": 1797 - TEST - 144, "validation": 144, "test": TEST}


@pytest.fixture(scope="module")
def pretrained():
    greys = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].repeat(3, 1)
    return checkpoints.Pretrained(random_model(tiny()), Palette(greys), {"data": DIGITS}, 7, "runs/test/checkpoints/7")


@pytest.fixture(scope="module")
def digits():
    return pipeline.DataConfig(**DIGITS)


def expected(pretrained, digits, split, field="features"):
    """The same by the plainest way: all codes in one batch."""
    dataset = pipeline.open_dataset(digits, split)
    return dataset, np.asarray(getattr(pretrained(dataset.codes(np.arange(len(dataset)), pretrained.palette)), field))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind, field", [("normalised", "features"), ("raw", "raw_features")])
def test_every_image_once_and_in_order(tmp_path, pretrained, digits, kind, field):
    splits = ("validation", "test")
    described = extract.write_features(pretrained, digits, tmp_path, splits, kind, batch=50, images_per_part=100)
    assert described["counts"] == {"validation": 144, "test": TEST}
    assert json.loads((tmp_path / "features.json").read_text()) == described
    for split in ("validation", "test"):
        dataset, wanted_LND = expected(pretrained, digits, split, field)
        for layer in range(4):
            # float32 sums in another order for another batch size; features are of size one
            np.testing.assert_allclose(store.read_layer(tmp_path, split, layer), wanted_LND[layer], atol=2e-5)
        np.testing.assert_array_equal(np.load(tmp_path / split / "labels.npy"), dataset.labels)
    assert np.load(tmp_path / "test" / "part-00003.npy").shape == (4, TEST - 300, 32)


def test_kinds_differ(pretrained, digits):
    _, normalised = expected(pretrained, digits, "validation")
    _, raw = expected(pretrained, digits, "validation", "raw_features")
    assert np.abs(normalised - raw).max() > 0.1


def test_interrupted_equals_uninterrupted(tmp_path, pretrained, digits, capsys):
    def write():
        extract.write_features(pretrained, digits, tmp_path, splits=("test",), batch=64, images_per_part=80)

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
    capsys.readouterr()
    write()
    said = capsys.readouterr().out
    assert f"all {len(np.load(parts / 'labels.npy'))} images of 4 x 32 are there already: nothing to write" in said and "0 images" not in said


def test_processes_share_the_parts(tmp_path, pretrained, digits, monkeypatch):
    description = extract.write_features(pretrained, digits, tmp_path, ("test",), images_per_part=100)
    for path in tmp_path.glob("test/part-*"):
        path.unlink()
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares += [path.name for path, _, _ in extract._missing_parts(tmp_path, description, "test", 0)]
    assert shares == ["part-00000.npy", "part-00003.npy", "part-00001.npy", "part-00002.npy"]


def test_other_features_are_refused_by_name(tmp_path, pretrained, digits):
    extract.write_features(pretrained, digits, tmp_path, splits=("test",))
    before = contents(tmp_path)
    later = dataclasses.replace(pretrained, step=8, model=random_model(tiny(), seed=1))
    with pytest.raises(ValueError, match=r"differing in step \(7 there, 8 now\), checksum .*, kind .*--overwrite") as error:
        extract.write_features(later, digits, tmp_path, splits=("test",), kind="raw")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before
    described = extract.write_features(later, digits, tmp_path, splits=("validation",), kind="raw", overwrite=True)
    assert described["counts"] == {"validation": 144}
    assert not (tmp_path / "test").exists()


def test_splits_that_number_their_classes_differently_are_refused(tmp_path, pretrained, digits, monkeypatch):
    opened = pipeline.open_dataset

    def in_another_order(config, split):
        dataset = opened(config, split)
        return dataset.renumbered(np.arange(10)[::-1], dataset.class_names[::-1]) if split == "test" else dataset

    monkeypatch.setattr(pipeline, "open_dataset", in_another_order)
    with pytest.raises(ValueError, match="digits numbers its classes in several ways: 0, 1, .* in train, 9, 8, .* in test"):
        extract.write_features(pretrained, digits, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [((0, 1), (0, 1, 2), (0, 1, 2)), ((0, 1, 2), (0,), (0, 1, 2)), ((), ("a", "b"), ("a", "b")), ((0, 1), ("1", "0"), None), (("a", "b"), ("a",), None)],
)
def test_the_class_names_of_all_splits(train, test, names):
    datasets = {split: types.SimpleNamespace(class_names=own, config=types.SimpleNamespace(source="x")) for split, own in (("train", train), ("test", test))}
    if names is not None:
        assert names_of_splits(datasets) == names
        return
    with pytest.raises(ValueError, match="x numbers its classes in several ways") as caught:
        names_of_splits(datasets)
    assert "\n" not in str(caught.value)


def small_source(folder, labels=None, seed=0):
    """Thirty pictures for training and ten for a test, of two classes."""
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 30), ("test", 10)):
        images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=np.arange(count) % 2 if labels is None else labels[:count])
    return pipeline.DataConfig(**DIGITS | {"source": f"npz:{folder}"})


def small_run(folder, pretrained, config, seed):
    recipe = {"data": dataclasses.asdict(config)}
    checkpoints.save_model(folder, random_model(tiny(layers=1), seed), pretrained.palette, recipe, step=3)
    return f"--checkpoint={folder}"


@pytest.mark.slow
def test_features_of_a_model_are_not_those_of_its_successor(tmp_path, pretrained, capsys):
    """At the same place and step; and the same model elsewhere is the same."""
    config, out, options = small_source(tmp_path / "data"), tmp_path / "features", ["--C=1", "--no-raw-pixels"]
    assert features.main([small_run(tmp_path / "run", pretrained, config, 0), f"--out={out}"]) == 0
    before = contents(out)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert features.main([f"--checkpoint={tmp_path / 'moved'}", f"--out={out}"]) == 0
    assert contents(out).keys() == before.keys() and probe.main([f"--features={out}", *options]) == 0  # where it lay lies nothing
    assert json.loads((out / "probe.json").read_text())["checksum"] == json.loads((out / "features.json").read_text())["checksum"]
    capsys.readouterr()
    assert features.main([small_run(tmp_path / "run", pretrained, config, 1), f"--out={out}"]) == 1
    assert "holds other features, differing in checkpoint" in (said := capsys.readouterr().err) and "checksum (" in said and said.count("\n") == 1
    (tmp_path / "moved").rename(tmp_path / "gone")
    (tmp_path / "run").rename(tmp_path / "moved")  # the successor lies where the model did
    for told in ([], [f"--checkpoint={tmp_path / 'moved'}"]):
        assert probe.main([f"--features={out}", *told, *options]) == 1
        assert f"{out} holds features of {tmp_path}/moved/checkpoints/3, step 3, checksum " in (said := capsys.readouterr().err)
        assert f"; the model is {tmp_path}/moved/checkpoints/3, step 3, checksum " in said and said.count("\n") == 1
    assert probe.main([f"--features={out}", f"--checkpoint={tmp_path / 'gone'}", *options]) == 0


@pytest.mark.slow
def test_features_that_do_not_say_of_whom_are_read_and_it_is_said(tmp_path, pretrained, capsys):
    """As those written before checksums were stored."""
    config, out = small_source(tmp_path / "data"), tmp_path / "features"
    command = [small_run(tmp_path / "run", pretrained, config, 0), f"--out={out}"]
    assert features.main([*command, "--splits=train,test"]) == 0
    described = json.loads((out / "features.json").read_text())
    old = {key: value for key, value in described.items() if key not in ("checksum", "fingerprints")}
    old["data"] = {key: value for key, value in old["data"].items() if key not in ("view", "split_by")} | {"workers": 3}
    (out / "features.json").write_text(json.dumps(old))
    capsys.readouterr()
    assert features.main([*command, "--splits=test"]) == 0
    assert capsys.readouterr().err == f"note: {out} does not say the checksum of its model: its features are assumed to be of {old['checkpoint']}, step 3\n"
    assert json.loads((out / "features.json").read_text()) == old | {"data": described["data"]}  # nor does it now
    assert probe.main([f"--features={out}", "--C=1", "--no-knn"]) == 0
    assert capsys.readouterr().err.startswith(f"note: {out} does not say the checksum of its model: paths and steps are compared instead\n")
    small_run(tmp_path / "other", pretrained, config, 0)
    assert probe.main([f"--features={out}", "--C=1", f"--checkpoint={tmp_path / 'other'}"]) == 1


def test_features_of_images_that_have_changed_are_refused(tmp_path, pretrained, capsys):
    """With as many images as before: others, or with other labels."""
    config, out = small_source(tmp_path / "data"), tmp_path / "features"
    command = [small_run(tmp_path / "run", pretrained, config, 0), f"--out={out}"]
    assert features.main(command) == 0
    for change in ({"labels": np.arange(30) // 15}, {"seed": 1}):
        small_source(tmp_path / "data", **change)
        capsys.readouterr()
        assert features.main(command) == 1
        assert "holds other features, differing in fingerprints of train (" in capsys.readouterr().err
        assert probe.main([f"--features={out}", "--C=1"]) == 1
        told = f"the train images of npz:{tmp_path}/data are not those that the features were written from (27 now, 27 then, compared by labels"
        assert told in capsys.readouterr().err


def test_a_file_of_another_name_is_another_image(tmp_path):
    for name in "abc":
        for part in ("train", "test"):
            (tmp_path / part / "dog").mkdir(parents=True, exist_ok=True)
            (tmp_path / part / "cat").mkdir(exist_ok=True)
            for kind in ("dog", "cat"):
                Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / part / kind / f"{name}.png")
    config = pipeline.DataConfig(**DIGITS | {"source": f"folder:{tmp_path}"})
    first = pipeline.open_dataset(config, "test").fingerprint()
    (tmp_path / "test/dog/c.png").rename(tmp_path / "test/dog/d.png")
    assert pipeline.open_dataset(config, "test").fingerprint() != first
    (tmp_path / "test/dog/d.png").rename(tmp_path / "test/dog/c.png")
    assert pipeline.open_dataset(config, "test").fingerprint() == first
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    assert pipeline.open_dataset(pipeline.DataConfig(**DIGITS | {"source": f"folder:{tmp_path.with_name('copy')}/"}), "test").fingerprint() == first


@pytest.mark.slow
def test_the_pixels_probed_are_those_of_the_limited_features(tmp_path, pretrained, digits):
    """Not all, nor the first: the pixels of the images whose features were written."""
    command = [small_run(tmp_path / "run", pretrained, digits, 0), f"--out={tmp_path / 'features'}", "--limit=60"]
    assert features.main(command) == 0 and probe.main([f"--features={tmp_path / 'features'}", "--C=0.01"]) == 0
    images = Splits(tmp_path / "features", store.read_description(tmp_path / "features"))
    rows = np.sort(np.random.RandomState([0, 1]).permutation(COUNTS["train"])[:60])
    pixels = pipeline.open_dataset(digits, "train").keep(rows).images(0, 60).reshape(1, 60, -1).astype(np.float32) / 255
    seen = []
    samples = images.samples
    images.samples = lambda read, masked: seen.append(read("train", 0)) or samples(read, masked)
    lbfgs_probe.probe_pixels(images, [0.01])
    np.testing.assert_array_equal(seen[0], pixels)


def test_a_split_can_be_added(tmp_path, pretrained, digits):
    extract.write_features(pretrained, digits, tmp_path, splits=("test",))
    described = extract.write_features(pretrained, digits, tmp_path, splits=("validation",))
    assert described["counts"] == store.read_description(tmp_path)["counts"] == {"test": TEST, "validation": 144}


def test_float16_and_its_overflow(tmp_path, pretrained, digits):
    extract.write_features(pretrained, digits, tmp_path / "half", splits=("validation",), dtype="float16")
    _, wanted = expected(pretrained, digits, "validation")
    assert np.load(tmp_path / "half/validation/part-00000.npy", mmap_mode="r").dtype == np.float16
    np.testing.assert_allclose(store.read_layer(tmp_path / "half", "validation", 3), wanted[3], rtol=1e-3, atol=1e-3)
    huge = dataclasses.replace(pretrained, model=jax.tree.map(lambda x: x * 1e5, pretrained.model))
    with pytest.raises(ValueError, match="not finite in float16: use --dtype=float32"):
        extract.write_features(huge, digits, tmp_path / "huge", splits=("validation",), dtype="float16")
    assert not list((tmp_path / "huge").rglob("*.tmp"))


def test_images_must_fit_the_model(tmp_path, pretrained, digits):
    with pytest.raises(ValueError, match="images of 16 x 16 pixels do not fit 64 positions: give --image-size=8"):
        extract.write_features(pretrained, dataclasses.replace(digits, image_size=16), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_program(tmp_path, pretrained, capsys):
    checkpoints.save_model(tmp_path / "run", pretrained.model, pretrained.palette, pretrained.config, step=3)
    command = [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'features'}"]
    assert features.main([*command, "--batch=100"]) == 0
    assert f"layers 0 to 3, width 32, normalised; {COUNTS['train']} train, 144 validation, {TEST} test" in capsys.readouterr().out
    assert store.read_description(tmp_path / "features")["counts"] == COUNTS
    assert features.main([*command, "--kind=raw"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "kind" in error
    assert features.main([*command, "--splits=train,testing"]) == 1
    assert "testing" in capsys.readouterr().err
    assert features.main([f"--checkpoint={tmp_path / 'nothing'}", f"--out={tmp_path / 'x'}"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("options", [[], ["--kind=positions", "--layers=1,3", "--limit=40", "--images-per-part=16"]])
def test_the_command_named_where_parts_are_missing_finishes_them(tmp_path, pretrained, options):
    checkpoints.save_model(tmp_path / "run", pretrained.model, pretrained.palette, pretrained.config, step=3)
    out = tmp_path / "the features"
    assert features.main([f"--checkpoint={tmp_path / 'run'}", f"--out={out}", "--splits=validation,test", "--batch=100", *options]) == 0
    whole = contents(out)
    (out / "test/part-00000.npy").unlink()
    with pytest.raises(FileNotFoundError, match="finish with python -m igpt_jax.features ") as caught:
        store.read_description(out)
    assert features.main(shlex.split(str(caught.value).partition("finish with ")[2])[3:]) == 0
    assert contents(out) == whole


def test_a_limit_takes_the_same_images_of_each_split_each_time(tmp_path, pretrained, digits, capsys):
    """Rows of the whole, in their order, whatever else is asked for; and not the first ones."""
    checkpoints.save_model(tmp_path / "run", pretrained.model, pretrained.palette, pretrained.config, step=3)
    command = [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'some'}"]
    assert features.main([*command, "--limit=40"]) == 0
    assert "40 train, 40 validation, 40 test" in capsys.readouterr().out
    assert store.read_description(tmp_path / "some")["limit"] == 40
    whole, wanted_LND = expected(pretrained, digits, "test")
    rows = np.random.RandomState([0, 1]).permutation(TEST)[:40]
    assert sorted(rows) != list(range(40))
    np.testing.assert_array_equal(np.load(tmp_path / "some/test/labels.npy"), whole.labels[np.sort(rows)])
    np.testing.assert_allclose(store.read_layer(tmp_path / "some", "test", 3), wanted_LND[3, np.sort(rows)], atol=2e-5)
    assert features.main([*command, "--limit=50"]) == 1
    assert "limit (40 there, 50 now)" in capsys.readouterr().err
    described = extract.write_features(pretrained, digits, tmp_path / "all", splits=("validation",), limit=10_000)
    assert described["counts"] == {"validation": 144}
    with pytest.raises(ValueError, match="limit of -1 images"):
        extract.write_features(pretrained, digits, tmp_path / "none", limit=-1)


def test_without_validation_share_there_are_two_splits(tmp_path, pretrained):
    checkpoints.save_model(tmp_path / "run", pretrained.model, pretrained.palette, pretrained.config)
    assert features.main([f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'features'}", "--validation=0"]) == 0
    assert store.read_description(tmp_path / "features")["counts"] == {"train": 1797 - TEST, "test": TEST}


@pytest.fixture(scope="module")
def bert(pretrained):
    config = {"data": DIGITS, "loss": {"mask_probability": 0.3}}
    return dataclasses.replace(pretrained, model=random_model(tiny(objective="bert")), config=config)


def masked(bert, digits, split, number, probability):
    """What a bert model makes of a split under one mask, by the plainest way."""
    dataset = pipeline.open_dataset(digits, split)
    keys = objectives.image_keys(jax.random.fold_in(jax.random.key(0), number), np.arange(len(dataset)))
    mask = objectives.sample_mask(keys, 64, probability)
    forward = jax.jit(lambda model, codes, mask: model(codes, mask).features)
    return np.asarray(forward(bert.model, dataset.codes(np.arange(len(dataset)), bert.palette), mask))


def test_a_bert_model_is_seen_through_masks_that_depend_on_the_image_alone(tmp_path, bert, digits, capsys):
    described = extract.write_features(bert, digits, tmp_path, ("train", "validation"), batch=50, images_per_part=100, masks=3)
    assert described["masks"] == 3 and store.read_description(tmp_path) == described
    for mask in range(3):
        wanted = masked(bert, digits, "validation", mask, 0.3)
        for layer in (0, 3):
            np.testing.assert_allclose(store.read_layer(tmp_path, "validation", layer, mask), wanted[layer], atol=2e-5)  # as above
    assert np.abs(masked(bert, digits, "validation", 0, 0.3) - masked(bert, digits, "validation", 1, 0.3)).max() > 0.01
    assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == ["labels.npy", "mask-1", "mask-2", "part-00000.npy", "part-00001.npy"]
    assert not list((tmp_path / "train").glob("mask-*"))
    with pytest.raises(ValueError, match=r"differing in masks \(3 there, none now\)"):
        extract.write_features(bert, digits, tmp_path, ("validation",), images_per_part=100, masks=0)


def test_masks_by_default_and_without(tmp_path, bert, pretrained, digits):
    no_probability = dataclasses.replace(bert, config={"data": DIGITS})
    assert extract.write_features(no_probability, digits, tmp_path / "bert", ("validation",))["masks"] == 5
    wanted = masked(bert, digits, "validation", 4, 0.15)
    np.testing.assert_allclose(store.read_layer(tmp_path / "bert", "validation", 2, 4), wanted[2], atol=2e-5)
    assert "masks" not in extract.write_features(bert, digits, tmp_path / "unmasked", ("validation",), masks=0)
    dataset = pipeline.open_dataset(digits, "validation")
    unmasked = bert(dataset.codes(np.arange(len(dataset)), bert.palette)).features
    np.testing.assert_allclose(store.read_layer(tmp_path / "unmasked", "validation", 2), unmasked[2], atol=2e-5)
    with pytest.raises(ValueError, match="this model is autoregressive and sees no masks: leave out --masks=2"):
        extract.write_features(pretrained, digits, tmp_path / "none", masks=2)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("objective", ["autoregressive", "bert", "prefix"])
def test_the_mean_of_the_positions_is_the_features(tmp_path, pretrained, digits, objective):
    model = dataclasses.replace(pretrained, model=random_model(tiny(objective=objective)))
    common = dict(splits=("validation",), batch=16)
    extract.write_features(model, digits, tmp_path / "means", **common)
    described = extract.write_features(model, digits, tmp_path / "all", kind="positions", layers=[3, 0], dtype="float32", images_per_part=60, **common)
    assert described["stored_layers"] == [0, 3] and np.load(tmp_path / "all/validation/part-00001.npy").shape == (2, 60, 64, 32)
    if objective == "prefix":  # sees the whole image
        dataset = pipeline.open_dataset(digits, "validation")
        wanted = jax.jit(lambda model, codes: model.forward_features(codes).features)(model.model, dataset.codes(np.arange(len(dataset)), model.palette))
        np.testing.assert_allclose(store.read_layer(tmp_path / "means", "validation", 3), wanted[3], atol=2e-5)
    for layer in (0, 3):
        means = store.read_layer(tmp_path / "means", "validation", layer)
        np.testing.assert_allclose(store.read_layer(tmp_path / "all", "validation", layer), means, atol=2e-5)
        if objective == "bert":
            second = [store.read_layer(tmp_path / place, "validation", layer, 1) for place in ("means", "all")]
            np.testing.assert_allclose(*second, atol=2e-5)


def test_positions_by_default_and_refusals(tmp_path, pretrained, digits, monkeypatch, capsys):
    monkeypatch.setattr(extract, "POSITIONS_PART", 50 * 64 * 32 * 2)  # 50 images
    described = extract.write_features(pretrained, digits, tmp_path / "all", ("validation",), kind="positions", layers=[1])
    assert (described["dtype"], described["images_per_part"], described["positions"]) == ("float16", 50, 64)
    assert "144 images of 1 x 64 x 32 in float16, 0.6 MiB to write" in capsys.readouterr().out
    part = tmp_path / "all/validation/part-00001.npy"
    whole = part.read_bytes()
    part.write_bytes(whole[:-2])
    extract.write_features(pretrained, digits, tmp_path / "all", ("validation",), kind="positions", layers=[1])
    assert part.read_bytes() == whole and "50 images of 1 x 64 x 32" in capsys.readouterr().out
    for options, message in (
        (dict(kind="positions"), "--kind=positions needs --layers, a list like 4,8"),
        (dict(kind="positions", layers=[4]), "--layers=4 must be from 0 to 3"),
        (dict(layers=[1]), "--kind=normalised writes all layers: leave out --layers"),
        (dict(masks=-1), "--masks=-1 must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            extract.write_features(pretrained, digits, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, pretrained, digits, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20 + 500_000))
    with pytest.raises(OSError, match=r"No space left on the disk of .*: 0.6 MiB to write, 1.5 MiB free: make room, give fewer --layers") as error:
        extract.write_features(pretrained, digits, tmp_path / "all", ("validation",), kind="positions", layers=[1])
    assert "\n" not in str(error.value) and not (tmp_path / "all").exists()
    extract.write_features(pretrained, digits, tmp_path / "means", ("validation",))  # 72 KiB


@pytest.mark.parametrize("text", ["", '{"counts":', "[1]", "{}", '{"counts": 3}'])
def test_a_damaged_description_is_one_line_and_can_be_overwritten(tmp_path, pretrained, digits, text):
    extract.write_features(pretrained, digits, tmp_path, ("validation",))
    (tmp_path / "features.json").write_text(text)
    for use in (lambda: extract.write_features(pretrained, digits, tmp_path, ("validation",)), lambda: store.read_description(tmp_path)):
        with pytest.raises(ValueError, match=r"features.json is not what igpt_jax.features writes \(.*\): write the features again with --overwrite"):
            use()
    assert extract.write_features(pretrained, digits, tmp_path, ("validation",), overwrite=True)["counts"] == {"validation": 144}
