"""Draws of labels: probes and fine-tunings see the same labels, choose on the same validation images, and are tested on the same images."""

import json

import numpy as np
import pytest

from experiments.report.measurements import from_json
from experiments.studies import draws, low_data, stages
from experiments.studies.draws import Budget, Draw, Model
from igpt_jax.data import pipeline
from igpt_jax.probing.lbfgs_probe import C_VALUES, SUBSET_SEED, choose_subset
from igpt_jax.probing.splits import Sample
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette, recipe

DIGITS = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
LOSS = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}
BUDGET = Budget(finetune_steps=4, evaluate_every=2, patience=1, finetune_rate=0.0)


@pytest.fixture
def images(tmp_path):
    """Twenty digits of each class, sorted by class, of which a tenth is held out."""
    return stages.Probing(labels_per_class=20, test_images=60, solver="lbfgs").images(recipe(), "digits", tmp_path / "pool")


def given(folder, **changes):
    checkpoints.save_model(folder, random_model(tiny(**changes)), grey_palette(16), {"data": DIGITS, "loss": LOSS, "seed": 0})
    return str(folder)


def test_a_draw_holds_the_images_that_probe_draws_and_all_validation_images(tmp_path, images):
    source = draws.write_draw(images, tmp_path / "few", Draw(4, 1))
    few, training = np.load(tmp_path / "few/train.npz"), pipeline.open_dataset(images, "train")
    rows = choose_subset(training.labels, 10, 4, (SUBSET_SEED, 4, 1))
    assert (np.bincount(few["labels"]) == 4).all() and (few["images"] == training.images(0, None)[rows]).all()
    config = pipeline.DataConfig(**DIGITS | {"source": source, "validation": 0.0})
    held_out = pipeline.open_dataset(images, "validation")
    assert (pipeline.open_dataset(config, "validation").images(0, None) == held_out.images(0, None)).all() and len(held_out) == 20
    assert pipeline.open_dataset(config, "train").class_names == training.class_names


class Described:
    classes = 2
    description = {"layers": 1}


def test_the_layer_is_chosen_on_validation_and_nothing_is_fitted_to_it():
    """Layer 0 separates training and test images, layer 1 training and validation images: layer 1 is chosen, and its test accuracy is that of chance."""
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 100)
    signal, noise = (2.0 * labels - 1)[:, None] * [1, 1], lambda: generator.normal(size=(200, 2))
    training = Sample(np.stack([signal + noise() / 4, signal + noise() / 4]).astype(np.float32), labels)
    validation = Sample(np.stack([noise(), signal + noise() / 4]).astype(np.float32), labels)
    test = Sample(np.stack([signal + noise() / 4, noise()]).astype(np.float32), labels)
    row = draws._probe_draw(Model("autoregressive", "", None), Described, Draw(8, 0), "model", C_VALUES, training, validation, test)
    assert row["chosen_layer"] == 1 and row["validation"] == 1 and 0.35 < row["mean"] < 0.65 and row["factors"]["layer"] == "best"
    assert row["budget"] == "16 labels; C and the layer chosen on 200 validation images, which are not used otherwise"
    row = draws._neighbours_of_draw(Model("autoregressive", "", None), Described, Draw(8, 0), "model", training, validation, test)
    assert row["chosen_layer"] == 1 and row["validation"] == 1 and 0.35 < row["mean"] < 0.65 and row["k"] == 10 and row["factors"]["way"] == "kNN"
    first = [Sample(sample.features[:1], sample.labels) for sample in (training, training, test)]
    flipped = first[1]._replace(labels=1 - labels)  # a refit on these would leave nothing to learn
    row = draws._probe_draw(None, Described, Draw(8, 0), "raw pixels", C_VALUES, first[0], flipped, first[2])
    assert row["mean"] > 0.9 and row["factors"] == {"features": "raw pixels", "labels": 8, "way": "linear probe"}


def test_what_ended_a_fine_tuning_is_stored(tmp_path, images, monkeypatch):
    """The validation if it had the last word, the budget if the steps were over; its predictions are those of the best model on all test images."""
    place, made = tmp_path / "finetuned", given(tmp_path / "finetuned/best", classes=10)
    checkpoints.save_model(place, random_model(tiny(classes=10)), grey_palette(16), {"data": DIGITS, "loss": LOSS}, step=400)
    source = draws.write_draw(images, tmp_path / "few", Draw(4, 0))
    for since, patience, ended in ((5, 5, "validation"), (4, 5, "budget"), (7, 0, "budget")):
        (place / "result.json").write_text(json.dumps({"best": {"value": 0.5, "step": 200, "since": since}}))
        config = draws.finetuning(recipe(), source, 10, Draw(4, 0), "joint", Budget(400, 40, patience, 0.0))
        (row,) = draws._test(place, images, config, {"labels": 4}, Draw(4, 0))
        assert (row["stopped_by"], row["step"], row["steps"], row["images_seen"]) == (ended, 200, 400, 400 * 16)
        assert ("the budget ended it" in row["budget"]) == (ended == "budget") and "20 validation images, which are not used otherwise" in row["budget"]
    model, test = checkpoints.load(made), pipeline.open_dataset(images, "test")
    predicted = model.model.forward_features(test.codes(np.arange(60), model.palette)).class_logits.argmax(axis=1)
    assert (from_json(row).scores == (predicted == test.labels)).all()


def test_a_fine_tuning_has_its_own_budget_and_the_draws_seed():
    config = draws.finetuning(recipe(batch_size=64), "npz:few", 10, Draw(4, 3), "classification", Budget(400, 40, 5, 0.0))
    assert (config.batch_size, config.seed, config.steps, config.optim.steps) == (40, 3, 400, 400)
    assert (config.loss.generative, config.loss.classification, config.best.patience) == (0.0, 1.0, 5)
    assert config.optim.learning_rate == pytest.approx(0.001) and config.optim.schedule == "constant"
    assert draws.finetuning(recipe(), "npz:few", 10, Draw(4, 3), "joint", Budget(400, 40, 5, 0.01)).optim.learning_rate == 0.01


def test_given_models_lend_their_sizes_and_are_one_for_each_objective(tmp_path):
    one, other = given(tmp_path / "one"), given(tmp_path / "other", objective="bert")
    models, config, checksums = draws.given_models(recipe(), tmp_path / "work", [one, other])
    assert list(models) == ["autoregressive", "bert"] and models["bert"].checkpoint == other and checksums["bert"] != checksums["autoregressive"]
    assert (config.model.layers, config.model.width, config.model.vocabulary, config.model.positions) == (3, 32, 16, 64)
    with pytest.raises(ValueError, match="both are autoregressive models: give one for each objective"):
        draws.given_models(recipe(), tmp_path / "work", [one, given(tmp_path / "twin")])
    with pytest.raises(ValueError, match="is not of the same size as"):
        draws.given_models(recipe(), tmp_path / "work", [one, given(tmp_path / "small", objective="bert", layers=2)])


def test_images_that_are_too_few_are_refused_before_any_work(tmp_path, images):
    pool = stages.Probing(20, 60, "lbfgs")
    with pytest.raises(ValueError, match="validation=0 leaves no images"):
        draws.check(recipe(data__validation=0.0), pool, 4, "--labels")
    with pytest.raises(ValueError, match="--labels asks for 19 images of each class, and there are 20 labelled images of each class without the share"):
        draws.check(recipe(), pool, 19, "--labels")
    draws.check(recipe(), pool, 18, "--labels")
    with pytest.raises(ValueError, match="has 1[0-9] training images, fewer than"):
        draws.check_pool(images, Draw(20, 0))
    with pytest.raises(ValueError, match="--finetune_labels=5 must be some of --labels=4"):
        low_data.sweep_labels(recipe(), tmp_path / "work", ["bert"], ["4"], 1, pool, BUDGET, finetune_labels=["5"])
    assert not (tmp_path / "work").exists()
