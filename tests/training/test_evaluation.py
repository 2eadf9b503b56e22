"""Evaluation counts every image once, whatever the batch and the devices, and refuses data that do not fit the model."""

import json
import sys
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax import evaluate as evaluate_program
from igpt_jax.data import classes, pipeline
from igpt_jax.distributed import sharding
from igpt_jax.model import objectives
from igpt_jax.training import checkpoints, evaluation
from igpt_jax.training.step import LossConfig
from tests.models import random_model, tiny
from tests.runs import call, grey_palette

DIGITS = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
LOSS = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}


def measured(model, batch, devices, each_image=False):
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    step = evaluation.make_eval_step(LossConfig(**LOSS), each_image)
    return evaluation.evaluate(step, model, pipeline.evaluation_batches(test, grey_palette(16), batch), mesh)


@pytest.mark.parametrize("objective", ["autoregressive", pytest.param("bert", marks=pytest.mark.slow)])
def test_batch_size_and_devices_change_nothing(objective):
    model = random_model(tiny(objective=objective, classes=10))
    whole = measured(model, 359, 1)
    assert whole["images"] == 359
    for batch, devices in ((100, 1), (16, 2), (64, 8)):
        part = measured(model, batch, devices)
        assert part["nats_per_pixel"] == pytest.approx(whole["nats_per_pixel"], rel=1e-6)
        assert part["accuracy"] == whole["accuracy"] and part["images"] == 359


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
@pytest.mark.slow
def test_ten_thousand_images_on_any_number_of_shards_and_with_any_batch(tmp_path, objective):
    """Loss within 1e-6 relative, accuracy and count exactly: padding is not counted, each image is, once."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (10_000, 4, 4), np.uint8), generator.integers(0, 10, 10_000).astype(np.int32)
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    np.savez(tmp_path / "train.npz", images=images[:10], labels=labels[:10])
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS | {"source": f"npz:{tmp_path}", "image_size": 4}), "test")
    model = random_model(tiny(layers=1, width=16, heads=2, positions=16, objective=objective, classes=10))
    found = {}
    for shards, batch in ((1, 1_000), (2, 1_000), (8, 1_000), (1, 333), (2, 1_334), (8, 3_336), (1, 9_999)):
        mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:shards])
        batches = pipeline.evaluation_batches(test, grey_palette(16), batch)
        found[shards, batch] = evaluation.evaluate(evaluation.make_eval_step(LossConfig(**LOSS)), model, batches, mesh)
    first = found[1, 1_000]
    assert first["images"] == 10_000 and 0 < first["accuracy"] < 1
    for other in found.values():
        assert other["nats_per_pixel"] == pytest.approx(first["nats_per_pixel"], rel=1e-6)
        assert other["images"] == 10_000 and other["accuracy"] == first["accuracy"]


@pytest.mark.parametrize("objective", ["autoregressive", pytest.param("bert", marks=pytest.mark.slow)])
def test_each_image_is_scored_in_the_order_of_the_data_for_any_batch_and_devices(objective):
    """The arrays hold every image once, without padding, and their means are the metrics."""
    model, labels = random_model(tiny(objective=objective, classes=10)), pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test").labels
    whole = measured(model, 359, 1)
    for batch, devices in ((100, 1), (64, 8)):
        found = measured(model, batch, devices, each_image=True)
        each = found["each_image"]
        assert each["index"].tolist() == list(range(359)) and (each["label"] == labels).all()
        assert each["nats"].mean() == pytest.approx(whole["nats_per_pixel"], rel=1e-6) and each["nats"].std() > 0.01
        assert each["class_nats"].mean() == pytest.approx(whole["class_nats"], rel=1e-6)
        assert (each["predicted"] == labels).mean() == whole["accuracy"] == found["accuracy"]
        assert ("predicted_one_mask" in each) == (objective == "bert")
    if objective == "bert":
        assert (each["predicted_one_mask"] == labels).mean() == whole["accuracy_one_mask"] and (each["predicted"] != each["predicted_one_mask"]).any()


def test_images_that_are_drawn_keep_their_numbers(tmp_path):
    model = random_model(tiny(classes=10))
    checkpoints.save_model(tmp_path, model, grey_palette(16), {"data": DIGITS, "loss": LOSS}, class_names=tuple("0123456789"))
    whole = evaluation.evaluate_checkpoint(tmp_path, each_image=True)["each_image"]
    part = evaluation.evaluate_checkpoint(tmp_path, limit=50, batch=7, each_image=True)["each_image"]
    assert len(part["index"]) == 50 and (np.diff(part["index"]) > 0).all() and part["index"][-1] > 50
    np.testing.assert_array_equal(part["predicted"], whole["predicted"][part["index"]])
    np.testing.assert_allclose(part["nats"], whole["nats"][part["index"]], rtol=1e-5)
    assert "each_image" not in evaluation.evaluate_checkpoint(tmp_path, limit=7)


@pytest.mark.parametrize("objective", ["autoregressive", pytest.param("bert", marks=pytest.mark.slow)])
def test_a_mixture_is_evaluated_as_a_whole_and_by_source(tmp_path, objective):
    """The whole is one data set of all images, also for the masks of bert, which depend on the number of an image; a source is its images alone."""
    generator = np.random.default_rng(0)
    for name, count in (("one", 30), ("two", 13)):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            pixels = generator.integers(0, 256 if name == "one" else 20, (count, 8, 8), np.uint8)
            np.savez(tmp_path / name / f"{split}.npz", images=pixels, labels=np.arange(count) % 10, class_names=[str(number) for number in range(10)])
    config = pipeline.DataConfig(**DIGITS | {"source": f"npz:{tmp_path}/one*1 + npz:{tmp_path}/two*9"})
    test = pipeline.open_dataset(config, "test")
    model, mesh = random_model(tiny(objective=objective, classes=10)), sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:2])
    step = evaluation.make_eval_step(LossConfig(**LOSS | {"classification": 1.0}), each_image=True)
    found = evaluation.evaluate_dataset(step, model, test, grey_palette(16), 16, mesh, labelled=True)
    whole = evaluation.evaluate(step, model, pipeline.evaluation_batches(test, grey_palette(16), 16), mesh)
    assert list(found["sources"]) == ["npz:one", "npz:two"] and found["images"] == 43
    for name in whole.keys() - {"each_image"}:
        assert found[name] == pytest.approx(whole[name], rel=1e-6), name
    for name in ("index", "label", "nats", "predicted"):
        np.testing.assert_allclose(found["each_image"][name], whole["each_image"][name], rtol=1e-6)
    for name, part, places in (("npz:one", "one", slice(0, 30)), ("npz:two", "two", slice(30, 43))):
        assert found["sources"][name]["nats_per_pixel"] == pytest.approx(whole["each_image"]["nats"][places].mean(), rel=1e-6)
        alone = pipeline.open_dataset(pipeline.DataConfig(**DIGITS | {"source": f"npz:{tmp_path}/{part}"}), "test")
        if objective == "autoregressive":
            assert found["sources"][name] == pytest.approx(without_each(evaluation.evaluate_dataset(step, model, alone, grey_palette(16), 16, mesh)), rel=1e-6)


def without_each(found):
    return {name: value for name, value in found.items() if name != "each_image"}


def test_it_is_the_mean_of_the_losses():
    model = random_model(tiny())
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    codes = test.codes(np.arange(359), grey_palette(16))
    expected = objectives.next_pixel_loss(model(codes).logits, codes).mean()
    found = measured(model, 64, 1)
    assert found["nats_per_pixel"] == pytest.approx(float(expected), rel=1e-5)
    assert found["bits_per_pixel"] == pytest.approx(float(expected) / np.log(2), rel=1e-5)


def test_red_green_and_blue_are_told_in_bits_per_dimension():
    """A fresh model holds all 256 levels equally likely: 8 bits each, 24 a pixel."""
    from igpt_jax.model.transformer import ImageGPT
    from igpt_jax.palette.palette import Palette

    model = ImageGPT(tiny(vocabulary=256, positions=192, tokens_per_pixel=3, position_encoding="rotary"), jax.random.key(0))
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    batches = pipeline.evaluation_batches(test, Palette.levels(), 64, stop=64)
    found = evaluation.evaluate(evaluation.make_eval_step(LossConfig(**LOSS)), model, batches, sharding.make_mesh(devices=jax.devices()[:1]))
    assert found["bits_per_dimension"] == pytest.approx(8, rel=1e-5) and found["bits_per_pixel"] == pytest.approx(24, rel=1e-5)
    evaluation.check_fit(model.config, Palette.levels(), test, labels_needed=False)
    with pytest.raises(ValueError, match="the palette codes 1 to a pixel and the model 3: set config.palette.kind"):
        evaluation.check_fit(model.config, grey_palette(256), test, labels_needed=False)


def test_a_prefix_model_is_measured_without_prefix_and_classifies_the_whole_image():
    model = random_model(tiny(objective="prefix", classes=10))
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    codes, found = test.codes(np.arange(359), grey_palette(16)), measured(model, 359, 1)
    assert found["nats_per_pixel"] == pytest.approx(float(objectives.next_pixel_loss(model(codes).logits, codes).mean()), rel=1e-5)
    expected = objectives.classification_loss(model.forward_features(codes).class_logits, test.labels).mean()
    assert found["class_nats"] == pytest.approx(float(expected), rel=1e-5)


def test_top_5_is_told_only_where_there_are_more_than_ten_classes():
    assert "accuracy_top5" not in measured(random_model(tiny(classes=10)), 64, 1)
    model = random_model(tiny(classes=12))
    found, test = measured(model, 64, 1), pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    logits = model(test.codes(np.arange(359), grey_palette(16))).class_logits
    ranks = (logits > jnp.take_along_axis(logits, test.labels[:, None], axis=1)).sum(axis=1)
    assert found["accuracy"] == pytest.approx(float((ranks < 1).mean())) and found["accuracy_top5"] == pytest.approx(float((ranks < 5).mean()))
    assert 0 < found["accuracy"] < found["accuracy_top5"] < 1


@pytest.mark.slow
def test_the_program_prints_json_and_one_line_errors(tmp_path):
    checkpoints.save_model(tmp_path, random_model(tiny()), grey_palette(16), {"data": DIGITS, "loss": LOSS})
    code, out, error = call("evaluate", f"--checkpoint={tmp_path}", f"--predictions={tmp_path}/made/each.npz", devices=2)
    assert code == 0, error
    assert json.loads(out)["images"] == 359 and json.loads(out)["split"] == "test"
    each = np.load(tmp_path / "made/each.npz")
    assert sorted(each) == ["class_names", "index", "label", "nats"] and each["nats"].mean() == pytest.approx(json.loads(out)["nats_per_pixel"], rel=1e-6)
    code, _, error = call("evaluate", f"--checkpoint={tmp_path}", "--predictions=each.json")
    assert code == 1 and "'each.json' must be the name of an .npz file" in error
    code, limited, error = call("evaluate", f"--checkpoint={tmp_path}", "--limit=100")
    assert code == 0, error
    assert json.loads(limited)["images"] == 100 and json.loads(limited)["nats_per_pixel"] != json.loads(out)["nats_per_pixel"]
    code, enlarged, error = call("evaluate", f"--checkpoint={tmp_path}", "--view=imagenet")  # and shrunk again: other codes
    assert json.loads(out)["view"] == "center_square" and json.loads(enlarged)["view"] == "imagenet", error
    assert json.loads(enlarged)["nats_per_pixel"] != json.loads(out)["nats_per_pixel"]
    code, _, error = call("evaluate", f"--checkpoint={tmp_path / 'empty'}")
    assert code == 1 and "does not exist" in error and len(error.splitlines()) == 1
    (tmp_path / "empty").mkdir()
    code, _, error = call("evaluate", f"--checkpoint={tmp_path / 'empty'}")
    assert code == 1 and "no complete checkpoint" in error and len(error.splitlines()) == 1


def test_labels_that_the_head_has_no_class_for_are_refused(tmp_path):
    """Images without a label (-1), too: before anything is compiled."""
    images = np.zeros((4, 8, 8), np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.asarray([0, 1, -1, 9]), class_names=np.arange(10).astype(str))
    dataset = pipeline.open_dataset(pipeline.DataConfig(**DIGITS | {"source": f"npz:{tmp_path}"}), "test")
    with pytest.raises(ValueError, match="has images without a label, which a class head cannot learn from"):
        evaluation.check_fit(tiny(classes=10), grey_palette(16), dataset, labels_needed=True)


def test_a_head_for_other_classes_is_left_out_and_the_loss_is_told(tmp_path, capsys):
    model = random_model(tiny(classes=7))
    checkpoints.save_model(tmp_path, model, grey_palette(16), {"data": DIGITS, "loss": LOSS})
    found = evaluation.evaluate_checkpoint(tmp_path)
    assert "the class head of 7 classes is left out: digits has 10" in capsys.readouterr().err
    assert "accuracy" not in found and found["nats_per_pixel"] == pytest.approx(measured(model, 64, 1)["nats_per_pixel"], rel=1e-6)


ANIMALS = ("caf\u00e9 cat", "dog", "fish")


def pictures(folder, labels, class_names=None, images=None, part="test"):
    """A source of these labels; without names of classes they are numbers."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), np.uint8) if images is None else images
    folder.mkdir(exist_ok=True)
    named = {} if class_names is None else {"class_names": np.asarray(class_names)}
    np.savez(folder / f"{part}.npz", images=images, labels=np.asarray(labels), **named)
    return f"npz:{folder}"


def matched(source, names, **options):
    return classes.match_classes(pipeline.open_dataset(pipeline.DataConfig(**DIGITS | {"source": source}), "test"), names, "the model", **options)


def test_classes_are_matched_by_name(tmp_path, capsys):
    """In any order, Unicode form or case; a class without an image is none that is missing."""
    for number, (names, labels, expected) in enumerate((
        (("fish", "caf\u00e9 cat", "dog"), [0, 1, 2, 2], [2, 0, 1, 1]),
        (("dog", "fish"), [0, 1, 1], [1, 2, 2]),
        (("bird", "dog", "fish"), [1, 2, 2], [1, 2, 2]),  # no bird is among them
        ((unicodedata.normalize("NFD", "caf\u00e9 cat"), " Fish", "DOG "), [0, 1, 2], [0, 2, 1]),
    )):  # fmt: skip
        dataset = matched(pictures(tmp_path / str(number), labels, names), ANIMALS)
        assert dataset.labels.tolist() == expected and dataset.class_names == ANIMALS
        assert [int(dataset.view(row)[1]) for row in range(len(labels))] == expected == dataset.keep(np.arange(len(labels))).labels.tolist()
        (batch,) = pipeline.evaluation_batches(dataset, grey_palette(16), 8)
        assert batch["label"].tolist() == expected + [-1] * (8 - len(expected))
    digits = matched(pictures(tmp_path / "digits", [0, 1, 2], ("0", "1", "10")), tuple("0123456789") + ("10",))
    assert digits.labels.tolist() == [0, 1, 10]  # names, though they look like numbers
    letters = matched(pictures(tmp_path / "letters", [0, 1], ("A", "a")), ("a", "A", "b"))
    assert letters.labels.tolist() == [1, 0]  # classes that differ in case alone are two
    assert not capsys.readouterr().err


def test_classes_that_the_model_lacks_are_refused_with_both_lists(tmp_path):
    birds = pictures(tmp_path / "birds", [0, 1, 2], ("bird", "dog", "fish"))
    both = f"{birds} has bird, which the model lacks or has twice: classes of {birds}: bird, dog, fish; of the model: cat, dog, fish$"
    with pytest.raises(ValueError, match=both):
        matched(birds, ("cat", "dog", "fish"))
    for names, found in ((("crane", "crane", "dog"), "crane, crane"), (("Dog", "DOG", "cat"), "Dog, DOG")):
        with pytest.raises(ValueError, match=f"has {found}, which the model lacks or has twice"):
            matched(pictures(tmp_path / "twice", [0, 1, 2], names), ("cat", "crane", "dog"))
    with pytest.raises(ValueError, match="lacks cat of the model"):
        matched(pictures(tmp_path / "two", [0, 1], ("dog", "fish")), ("cat", "dog", "fish"), every=True)


def test_without_names_classes_are_matched_by_number_and_it_is_said_once(tmp_path, capsys):
    numbers = pictures(tmp_path / "numbers", [0, 1, 1])  # of three classes, the last without an image
    assert matched(numbers, ANIMALS).labels.tolist() == [0, 1, 1]
    assert capsys.readouterr().err == f"note: {numbers} has no names of classes: those of {numbers} and of the model are matched by number\n"
    named = pictures(tmp_path / "named", [2, 0], ANIMALS)
    assert matched(named, (0, 1, 2)).class_names == (0, 1, 2)
    assert capsys.readouterr().err == f"note: the model has no names of classes: those of {named} and of the model are matched by number\n"
    assert matched(named, None).class_names == ANIMALS  # an old checkpoint
    assert capsys.readouterr().err == f"note: the model does not say its classes, those of {named} are matched by number\n"
    assert matched(numbers, (0, 1)).labels.tolist() == [0, 1, 1] and not capsys.readouterr().err  # the same numbers
    for source, names in ((pictures(tmp_path / "more", [0, 3]), ANIMALS), (named, (0, 1, 2, 3))):
        with pytest.raises(ValueError, match="has no names of classes, and their numbers do not fit: classes of"):
            matched(source, names)


def test_the_accuracy_does_not_depend_on_the_order_of_the_classes(tmp_path, capsys):
    model, images = random_model(tiny(layers=1, classes=3), seed=5), np.random.default_rng(0).integers(0, 256, (24, 8, 8), np.uint8)
    recipe = {"data": DIGITS | {"source": pictures(tmp_path / "own", np.zeros(24, int), ANIMALS, images)}, "loss": LOSS}
    codes = pipeline.open_dataset(pipeline.DataConfig(**recipe["data"]), "test").codes(np.arange(24), grey_palette(16))
    found = np.asarray(model.forward_features(codes).class_logits.argmax(axis=1))
    checkpoints.save_model(tmp_path / "model", model, grey_palette(16), recipe, class_names=ANIMALS)
    moved = pictures(tmp_path / "moved", (found + 1) % 3, ("fish", "caf\u00e9 cat", "dog"), images)
    assert evaluation.evaluate_checkpoint(tmp_path / "model", source=moved)["accuracy"] == 1
    others = pictures(tmp_path / "others", found, ("bird", "dog", "fish"), images)
    with pytest.raises(ValueError, match=r"of .*/model/checkpoints/0: caf\u00e9 cat, dog, fish. --loss-only leaves the class head out"):
        evaluation.evaluate_checkpoint(tmp_path / "model", source=others)
    assert "accuracy" not in evaluation.evaluate_checkpoint(tmp_path / "model", source=others, loss_only=True)
    assert not capsys.readouterr().err


def test_numbers_of_classes_are_stored_with_their_names(tmp_path, capsys):
    """`class_names[label]` is the user's class, whatever the order of the data's, with and without the class head."""
    model, images = random_model(tiny(layers=1, classes=3), seed=5), np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    recipe = {"data": DIGITS | {"source": pictures(tmp_path / "own", np.zeros(6, int), ANIMALS, images)}, "loss": LOSS}
    checkpoints.save_model(tmp_path / "model", model, grey_palette(16), recipe, class_names=ANIMALS)
    labels, own = np.array([0, 1, 2, 2, 1, 0]), ("fish", "caf\u00e9 cat", "dog")
    moved = pictures(tmp_path / "moved", labels, own, images)
    each = evaluation.evaluate_checkpoint(tmp_path / "model", source=moved, each_image=True)["each_image"]
    assert each["class_names"].tolist() == list(ANIMALS) and each["class_names"][each["label"]].tolist() == [own[label] for label in labels]
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and said.endswith("labels and predictions are numbers of its classes, 0 caf\u00e9 cat, 1 dog, 2 fish\n"), said
    alone = evaluation.evaluate_checkpoint(tmp_path / "model", source=moved, each_image=True, loss_only=True)["each_image"]
    assert alone["class_names"].tolist() == list(own) and alone["label"].tolist() == labels.tolist() and "predicted" not in alone
    same = pictures(tmp_path / "same", labels, (ANIMALS[0].upper(), *ANIMALS[1:]), images)
    assert evaluation.evaluate_checkpoint(tmp_path / "model", source=same, each_image=True)["each_image"]["label"].tolist() == labels.tolist()
    assert not capsys.readouterr().err


def test_predictions_do_not_replace_the_data(tmp_path, monkeypatch):
    source = pictures(tmp_path / "data", [0, 1], ("a", "b"))
    for path in (tmp_path / "data/test.npz", tmp_path / "data/../data/test.npz"):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--checkpoint=no", f"--data={source}", f"--predictions={path}"])
        with pytest.raises(SystemExit, match="would replace an input"):
            evaluate_program._main()


def test_data_that_do_not_fit_the_model_are_refused(tmp_path):
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    with pytest.raises(ValueError, match="digits has 10 classes and the model's head 7"):
        evaluation.check_fit(tiny(classes=7), grey_palette(16), test, labels_needed=True)
    wide = {"data": DIGITS | {"image_size": 12}, "loss": LOSS}
    checkpoints.save_model(tmp_path / "wide", random_model(tiny()), grey_palette(16), wide)
    with pytest.raises(ValueError, match=r"images of 12 x 12 \(digits\) have 144 pixels and the model 64 positions"):
        evaluation.evaluate_checkpoint(tmp_path / "wide")
