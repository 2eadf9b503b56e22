"""Evaluation counts every image once, whatever the batch and the devices, and refuses data that do not fit the model."""

import json
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.data import classes, pipeline
from igpt_jax.distributed import sharding
from igpt_jax.model import objectives
from igpt_jax.training import checkpoints, evaluation
from igpt_jax.training.step import LossConfig
from tests.models import random_model, tiny
from tests.runs import call, grey_palette

DIGITS = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
LOSS = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}


def measured(model, batch, devices):
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    return evaluation.evaluate(evaluation.make_eval_step(LossConfig(**LOSS)), model, pipeline.evaluation_batches(test, grey_palette(16), batch), mesh)


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
    code, out, error = call("evaluate", f"--checkpoint={tmp_path}")
    assert code == 0, error
    assert json.loads(out)["images"] == 359 and json.loads(out)["split"] == "test"
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
    with pytest.raises(ValueError, match=r"has labels from -1 to 9 \(-1: none\), outside the 10 classes"):
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


def test_data_that_do_not_fit_the_model_are_refused(tmp_path):
    test = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test")
    with pytest.raises(ValueError, match="digits has 10 classes and the model's head 7"):
        evaluation.check_fit(tiny(classes=7), grey_palette(16), test, labels_needed=True)
    wide = {"data": DIGITS | {"image_size": 12}, "loss": LOSS}
    checkpoints.save_model(tmp_path / "wide", random_model(tiny()), grey_palette(16), wide)
    with pytest.raises(ValueError, match=r"images of 12 x 12 \(digits\) have 144 pixels and the model 64 positions"):
        evaluation.evaluate_checkpoint(tmp_path / "wide")
