"""Mixtures: their text, weights, classes, palettes and splits; their batches for any division, place of resumption and worker."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import mixture, pipeline
from igpt_jax.data.classes import match_classes
from igpt_jax.data.quantization import fit_palette, open_parts
from igpt_jax.palette.palette import Palette
from tests.data.samples import COLOURS, DIGITS, GREYS, assert_same, first, replace
from tests.runs import recipe


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Arrays of the greys 0..39 and a folder of the greys 100..149 with a test split, of the same classes in another order."""
    root = tmp_path_factory.mktemp("sources")
    (root / "arrays").mkdir()
    values = np.arange(40)
    np.savez(root / "arrays/train.npz", images=greys(values), labels=values % 2, class_names=["dog", "cat"])
    for i in range(50):
        path = root / "pictures" / ("train" if i < 40 else "test") / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 9), (100 + i,) * 3).save(path)
    return root


def greys(values):
    return np.broadcast_to(np.asarray(values, np.uint8)[:, None, None, None], (len(values), 8, 8, 3))


def config(sources, weights=(7, 3), **changes):
    source = f"npz:{sources}/arrays*{weights[0]} + folder:{sources}/pictures*{weights[1]}"
    return replace(DIGITS, **{"source": source, "augment": "none", "validation": 0.1, "split_by": "position"} | changes)


ALL = Palette(np.repeat(np.linspace(-1, 1, 256, dtype=np.float32)[:, None], 3, 1))  # codes are greys


def seen(batches):
    """The (grey, label, index) of each image of some batches."""
    return [row for batch in batches for row in zip(batch["codes"][:, 0].tolist(), batch["label"].tolist(), batch["index"].tolist(), strict=True)]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("folder:a*0.7 + tfds:b*0.3", [("folder:a", "0.7"), ("tfds:b", "0.3")]),
        ("digits*1e3+npz:x*2", [("digits", "1e3"), ("npz:x", "2")]),
        ("  npz:x * 2 +  digits * 3 ", [("npz:x", "2"), ("digits", "3")]),
        ("folder:a*b + c*0.5 + hf:owner/name,image=x*.5", [("folder:a*b + c", "0.5"), ("hf:owner/name,image=x", ".5")]),
        ("folder:cats + dogs*2", []),
        ("folder:a*0.7", []),
        ("digits", []),
    ],
)
def test_the_text_of_a_mixture(text, pairs):
    assert mixture.split_mixture(text) == pairs


def test_a_folder_that_has_the_name_of_a_mixture_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "folder:a*1 + npz:b*2"
    assert len(mixture.split_mixture(text)) == 2
    (tmp_path / "a*1 + npz:b*2").mkdir()
    assert mixture.split_mixture(text) == [] and replace(DIGITS, source=text).source == text
    (tmp_path / "c*1 +").mkdir()
    assert mixture.split_mixture("folder:c*1 +") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits + npz:x*2", "'digits' needs a weight, a number after a .*, as in digits.0.5"),
        ("digits*1 + npz:x", "'npz:x' needs a weight"),
        ("digits*1 + npz:x*", "'npz:x.' needs a weight"),
        ("digits*1 + npz:x*y", "'npz:x.y' needs a weight"),
        ("digits*1 + npz:x*0", "'npz:x.0' has the weight 0, which must be a positive number"),
        ("digits*1 + npz:x*-2", "has the weight -2"),
        ("digits*1 + ", r"ends in a \+: a mixture is SOURCE\*WEIGHT \+ SOURCE\*WEIGHT"),
        ("digits*1 + npz:x*2 +", r"ends in a \+"),
        ("digits*nan + npz:x*1", "has the weight nan"),
        ("digits*inf + npz:x*1", "has the weight inf"),
        ("digits*1 + npz:x*1e-9", r"npz:x\*1e-9 is less than 1 in 20,000 draws"),
        ("digits*1 + digits*2", "names digits twice: give it once, with the sum"),
        ("digits*1 + foldr:x*2", "source 'foldr:x' is unknown"),
        ("digits:x*1 + npz:x*2", "source 'digits:x' is unknown"),
        ("npz:*1 + digits*2", "source 'npz:' is unknown"),
        ("npz:gs://x*1 + digits*2", "source 'npz:gs://x' must be a local directory"),
    ],
)
def test_mixtures_that_cannot_be_right_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        replace(DIGITS, source=text)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="which codes cannot"):
        replace(DIGITS, source="digits*1 + codes:x*1", augment="imagenet")


@pytest.mark.parametrize(
    ("weights", "shares"),
    [(("0.7", "0.3"), (7000, 3000)), (("7", "3"), (7000, 3000)), (("1", "1", "1"), (3334, 3333, 3333)), (("1e300", "1e300"), (5000, 5000))],
)
def test_weights_have_any_scale(weights, shares):
    assert mixture.shares_of([("x", weight) for weight in weights]) == shares and sum(shares) == mixture.ROUND


def test_a_source_is_not_counted_twice_by_two_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    for other in ("./a", "a/", f"{tmp_path}/a", "link", "b/../a"):
        with pytest.raises(ValueError, match=f"names folder:a and folder:{other}, which are the same: give it once, with the sum"):
            replace(DIGITS, source=f"folder:a*0.5 + folder:{other}*0.5")
    assert len(replace(DIGITS, source="folder:a*1 + npz:a*1 + folder:b*1 + tfds:a*1 + tfds:./a*1").mixture()) == 5


def test_names_for_metrics_are_short_where_they_differ():
    assert mixture.short_names(["digits", "folder:/x/a/", "npz:/x/a", "hf:o/n"]) == ["digits", "folder:a", "npz:a", "hf:n"]
    assert mixture.short_names(["folder:/x/a", "folder:/y/a"]) == ["folder:/x/a", "folder:/y/a"]


def test_the_home_folder_is_expanded_in_each_source(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = replace(DIGITS, source="npz:~/x*2 +  digits*1", workers=5)
    assert found.source == "npz:/home/me/x*2 + digits*1" and pipeline.places(found.source) == ["/home/me/x"]
    assert [(part.source, part.workers, share) for part, share in found.mixture()] == [("npz:/home/me/x", 3, 6667), ("digits", 3, 3333)]
    assert pipeline.config_for({"data": {"source": found.source, "augment": "cifar"}}, 8, "npz:~/x*2 + digits*1").augment == "cifar"  # the same


def test_a_mixture_has_the_images_of_all_its_sources_with_classes_matched_by_name(sources, capsys):
    train, validation, whole, test = (pipeline.open_dataset(config(sources), split) for split in ("train", "validation", "all_train", "test"))
    assert (len(train), len(validation), len(whole), len(test)) == (72, 8, 80, 10) and whole.class_names == ("dog", "cat")
    values = whole.images(0, None)[:, 0, 0, 0]
    assert sorted(values.tolist()) == [*range(40), *range(100, 140)]
    labels = [value % 2 if value < 100 else 1 - value % 2 for value in values.tolist()]
    assert whole.labels.tolist() == labels and whole.label_range == (0, 1)
    rows = np.array([50, 3, 79, 4])
    assert np.array_equal(whole.codes(rows, ALL)[:, 0], values[rows]) and np.array_equal(whole.pixels(rows)[:, 0, 0, 0], values[rows])
    assert [whole.view(row)[1] for row in (3, 50)] == [labels[3], labels[50]]
    printed = capsys.readouterr().err
    assert f"training draws its images 70.00% from the 36 of npz:{sources}/arrays, 30.00% from the 36 of folder:{sources}/pictures" in printed
    assert f"test images of the mixture: none from npz:{sources}/arrays" in printed
    assert pipeline.splits_of(config(sources)) == ("train", "validation", "test") and list(test.sources) == ["folder:pictures"]


@pytest.mark.parametrize("augment", ["none", "cifar", "imagenet"])
def test_batches_are_the_same_for_any_division_and_place_of_resumption(sources, augment):
    train = pipeline.open_dataset(config(sources, augment=augment), "train")
    whole = first(pipeline.train_batches(train, COLOURS, 12, seed=5), 9)
    assert_same(first(pipeline.train_batches(train, COLOURS, 12, seed=5, step=6), 3), whole[6:])
    parts = [first(pipeline.train_batches(train, COLOURS, 12, seed=5, part=part), 9) for part in ([3, 7, 0], [1, 2, 4, 5, 6, 8, 9, 10, 11], [])]
    order = [3, 7, 0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    for step, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[step][name] for part in parts])
            assert np.array_equal(joined, batch[name][order]), (step, name)


@pytest.mark.slow
def test_batches_are_the_same_from_worker_processes(sources):
    threads, workers = (pipeline.open_dataset(config(sources, augment="imagenet", workers=count), "train") for count in (0, 2))
    assert_same(*(first(pipeline.train_batches(train, COLOURS, 12, seed=5, step=2), 4) for train in (threads, workers)))


def test_every_image_is_drawn_once_in_an_epoch_of_its_source_with_its_own_label(sources):
    train = pipeline.open_dataset(config(sources, weights=(1, 3)), "train")
    drawn = seen(first(pipeline.train_batches(train, ALL, 8, seed=0), 40))
    arrays, pictures = ([row for row in drawn if (row[0] < 100) == wanted] for wanted in (True, False))
    assert 60 < len(arrays) < 100 and len({row[0] for row in arrays[:36]}) == len({row[0] for row in pictures[:36]}) == 36
    for grey, label, index in drawn:
        assert label == (grey % 2 if grey < 100 else 1 - grey % 2) and train.images(index, index + 1)[0, 0, 0, 0] == grey
    sizes = seen(first(pipeline.train_batches(train, ALL, 5, seed=0), 64))
    assert sizes == drawn[:320]  # batches of another size hold the same images in the same order


def test_evaluation_reads_every_image_once_in_order(sources):
    validation = pipeline.open_dataset(config(sources, validation=0.3), "validation")
    for part in (..., [1, 0, 4]):
        batches = list(pipeline.evaluation_batches(validation, ALL, 5, part))
        expected = [validation.images(0, None)[:, 0, 0, 0][row] for row in np.concatenate([np.arange(5 * i, 5 * i + 5)[part] for i in range(5)]) if row < 24]
        found = [row for batch in batches for row, weight in zip(seen([batch]), batch["weight"], strict=True) if weight]
        assert [row[0] for row in found] == expected and len(batches) == 5
        assert sum(batch["weight"].sum() for batch in batches) == len(expected)


def test_a_part_of_a_mixture_keeps_its_images_numbers_and_draws_from_each_source_that_is_left(sources):
    train = pipeline.open_dataset(config(sources), "train")
    drawn = train.draw(20)
    assert len(drawn) == 20 and {name: len(part) for name, part in drawn.sources.items()} == {"npz:arrays": 9, "folder:pictures": 11}
    for part in drawn.sources.values():
        for row, number in enumerate(part.numbers(np.arange(len(part)))):
            assert np.array_equal(part.images(row, row + 1), train.images(number, number + 1)) and part.labels[row] == train.labels[number]
    batches = seen(first(pipeline.train_batches(drawn, ALL, 10, seed=0), 30))
    assert {row[2] for row in batches} == set(drawn.numbers(np.arange(20)).tolist()) and 190 < sum(grey < 100 for grey, _, _ in batches) < 230
    with pytest.raises(ValueError, match="none of the 36 images of .* that are left is from folder:pictures"):
        pipeline.train_batches(train.keep(np.arange(36)), ALL, 4, seed=0)


def test_other_classes_leave_the_images_unlabelled_and_are_named_for_a_class_head(sources, tmp_path, capsys):
    np.savez(tmp_path / "train.npz", images=greys(range(200, 230)), labels=np.arange(30) % 2, class_names=["cat", "emu"])
    other = pipeline.open_dataset(replace(DIGITS, source=f"npz:{sources}/arrays*1 + npz:{tmp_path}*1", augment="none"), "train")
    assert other.class_names == () and set(other.labels.tolist()) == {-1}
    assert {row[1] for row in seen(first(pipeline.train_batches(other, ALL, 8, seed=0), 4))} == {-1}
    named = f"their classes are not the same: npz:{sources}/arrays has dog, cat; npz:{tmp_path} has cat, emu"
    assert named in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"a class head needs sources of the same classes: {named}"):
        other.check_classes()
    np.savez(tmp_path / "train.npz", images=greys(range(30)), labels=np.arange(30) % 2)
    with pytest.raises(ValueError, match="one has names of classes and the other numbers"):
        pipeline.open_dataset(other.config, "train").check_classes()
    np.savez(tmp_path / "train.npz", images=greys(range(200, 230)))
    unlabelled = pipeline.open_dataset(other.config, "train")
    unlabelled.check_classes()
    assert unlabelled.class_names == ("dog", "cat") and unlabelled.label_range == (-1, 1)
    np.testing.assert_array_equal(unlabelled.labels < 0, unlabelled.images(0, None)[:, 0, 0, 0] >= 200)


def write_arrays(folder, part, values, names):
    """Even greys are dogs and odd ones cats; `names` gives the order, () writes no labels."""
    folder.mkdir(exist_ok=True)
    labels = {"labels": [names.index(("dog", "cat")[value % 2]) for value in values], "class_names": names} if names else {}
    np.savez(folder / f"{part}.npz", images=greys(values), **labels)


@pytest.mark.parametrize("first_has", ["no other split", "no labels in training", "all"])
def test_a_class_has_the_number_of_training_in_every_split(tmp_path, first_has):
    """Also where the first source in training is not the first of the split, or is labelled there alone, or has its classes in another order."""
    write_arrays(tmp_path / "first", "train", range(20), () if first_has == "no labels in training" else ["dog", "cat"])
    write_arrays(tmp_path / "second", "train", range(20, 40), ["cat", "dog"] if first_has != "no labels in training" else ["dog", "cat"])
    for part in ("validation", "test"):
        write_arrays(tmp_path / "second", part, range(41, 50), ["cat", "dog"])
        if first_has != "no other split":
            write_arrays(tmp_path / "first", part, range(51, 60), ["cat", "dog"])
    source = f"npz:{tmp_path}/first*1 + npz:{tmp_path}/second*1"
    for split in ("train", "validation", "test", "all_train"):
        dataset = pipeline.open_dataset(replace(DIGITS, source=source, augment="none", validation=0), split)
        values = dataset.images(0, None)[:, 0, 0, 0]
        labelled = dataset.labels >= 0
        beyond_training = (values > 50) & (split == "all_train")  # of a source whose training has no classes
        assert dataset.class_names == ("dog", "cat") and labelled[(values >= 20) & ~beyond_training].all(), split
        assert np.array_equal(dataset.labels[labelled], values[labelled] % 2), split


def test_held_out_images_have_the_classes_of_training_and_other_classes_of_a_split_are_not_hidden(tmp_path, capsys):
    write_arrays(tmp_path / "first", "train", range(20), ())
    write_arrays(tmp_path / "second", "train", range(20, 40), ["dog", "cat"])
    settings = replace(DIGITS, source=f"npz:{tmp_path}/first*1 + npz:{tmp_path}/second*1", augment="none", validation=0.2)
    validation = pipeline.open_dataset(settings, "validation")
    assert validation.class_names == ("dog", "cat") and len(validation) == 8 and (validation.labels >= 0).sum() == 4
    np.savez(tmp_path / "first/test.npz", images=greys([1, 2]), labels=[0, 1], class_names=["cat", "emu"])
    assert pipeline.open_dataset(settings, "test").labels.tolist() == [-1, -1]
    assert "test images of the mixture: unlabelled, because their classes are not the same: " in capsys.readouterr().err


def test_a_split_of_numbered_classes_may_lack_the_last_ones(tmp_path):
    for name, classes in (("first", 3), ("second", 3)):
        (tmp_path / name).mkdir()
        for part, highest in (("tr", classes), ("te", 2 if name == "first" else 3)):
            np.save(tmp_path / name / f"{part}X.npy", np.zeros((6, 64), np.uint16))
            np.save(tmp_path / name / f"{part}Y.npy", np.arange(6) % highest)
    settings = replace(DIGITS, source=f"npy:{tmp_path}/first*1 + npy:{tmp_path}/second*1", augment="none", validation=0)
    test = pipeline.open_dataset(settings, "test")
    assert test.class_names == (0, 1, 2) and test.labels.tolist() == [0, 1] * 3 + [0, 1, 2] * 2


def test_classes_of_a_model_are_matched_over_those_of_the_mixture(sources):
    train = pipeline.open_dataset(config(sources), "train")
    matched = match_classes(train, ("cat", "dog"), "the model")
    assert np.array_equal(matched.labels, 1 - train.labels)
    drawn, before = (seen(first(pipeline.train_batches(dataset, ALL, 8, seed=0), 3)) for dataset in (matched, train))
    for one, other in zip(drawn, before, strict=True):
        assert one == (other[0], 1 - other[1], other[2])
    assert all(np.array_equal(part.labels, 1 - train.sources[name].labels) for name, part in matched.sources.items())


def write_codes(directory, palette, values, image_size=8):
    directory.mkdir()
    codes = np.broadcast_to(np.asarray(values, np.uint16)[:, None, None], (len(values), image_size, image_size))
    np.save(directory / "train.npy", codes)
    np.save(directory / "train_labels.npy", np.asarray(values, np.int32) % 2)
    palette.save(directory / "palette.npy")
    (directory / "dataset.json").write_text(json.dumps({"class_names": ["dog", "cat"], "image_size": image_size, "source": "x"}))


def test_codes_mix_with_codes_and_with_pictures_of_one_palette(sources, tmp_path):
    write_codes(tmp_path / "codes", ALL, range(200, 220))
    write_codes(tmp_path / "more", ALL, range(220, 240))
    write_codes(tmp_path / "other", GREYS, range(8))
    source = f"codes:{tmp_path}/codes*1 + codes:{tmp_path}/more*1 + folder:{sources}/pictures*2"
    train = pipeline.open_dataset(replace(DIGITS, source=source, augment="none", validation=0), "train")
    assert train.palette.size == 256 and train.images(0, 2)[:, 0, 0, 0].tolist() == [200, 201] and train.class_names == ("dog", "cat")
    drawn = seen(first(pipeline.train_batches(train, ALL, 10, seed=0), 12))
    assert {grey // 20 for grey, _, _ in drawn} == {5, 6, 10, 11} and all(label == grey % 2 for grey, label, _ in drawn if grey >= 200)
    with pytest.raises(ValueError, match=r"was coded with another palette \(256 colours\)"):
        pipeline.train_batches(train, GREYS, 4, seed=0)
    with pytest.raises(ValueError, match=r"codes and codes:.*other were coded with other palettes \(256 and 9 colours\): code both with one"):
        pipeline.open_dataset(replace(DIGITS, source=f"codes:{tmp_path}/codes*1 + codes:{tmp_path}/other*1", validation=0), "train")
    write_codes(tmp_path / "large", ALL, range(8), image_size=16)
    with pytest.raises(ValueError, match="large/train.npy holds images of 16 x 16 pixels, but image_size is 8"):
        pipeline.open_dataset(replace(DIGITS, source=f"codes:{tmp_path}/codes*1 + codes:{tmp_path}/large*1", validation=0), "train")


def test_an_empty_source_and_a_split_that_none_has(sources, tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=f"npz:{tmp_path} has no images in its train split"):
        pipeline.open_dataset(replace(DIGITS, source=f"digits*1 + npz:{tmp_path}*1", validation=0), "train")
    with pytest.raises(ValueError, match="none of the sources of .* has validation images"):
        pipeline.open_dataset(config(sources, validation=0.0), "validation")


def test_the_fingerprint_is_that_of_the_images_of_all_sources(sources, tmp_path):
    def written(values):
        np.savez(tmp_path / "train.npz", images=greys(values))
        return pipeline.open_dataset(replace(DIGITS, source=f"npz:{sources}/arrays*1 + npz:{tmp_path}*1"), "all_train").fingerprint()

    assert written(range(10)) == written(range(10)) != written(range(1, 11))


def test_a_batch_needs_no_pickle_of_other_sources(sources):
    """What is sent to a worker of the folder's engine: its own data set and its plan."""
    train = pipeline.open_dataset(config(sources), "train")
    plan = pipeline._training_plan(train, 8, 0, ...)
    assert len(pickle.dumps(pipeline.OfSource(plan, train.source.members()[1]))) < 10_000


def test_the_palette_counts_each_source_by_its_weight(tmp_path):
    """90 black and 10 white images in halves: the mean colour of a palette of two is that of the weights, not that of the numbers of images."""
    for name, value, count in (("black", 0, 90), ("white", 250, 10)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "train.npz", images=greys([value, value + 5] * (count // 2)))
    source = f"npz:{tmp_path}/black*1 + npz:{tmp_path}/white*1"
    settings = recipe(data__source=source, data__validation=0.0, palette__size=3)
    palette = fit_palette(settings, replace(DIGITS, source=source, validation=0), tmp_path_of(tmp_path))
    facts = json.loads((tmp_path / "out/palette.json").read_text())
    assert facts["pixels"] == 100 * 64 and palette.size == 3
    assert facts["mse"] == pytest.approx(0.5 * 3 * (2.5 / 127.5) ** 2, rel=1e-3)  # one pair of greys shares a colour: half of the pixels, whichever it is
    with pytest.raises(ValueError, match="--codes cannot store the weights of the mixture .*: code each source in a --workdir of its own"):
        open_parts(replace(DIGITS, source=source))


def tmp_path_of(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"
