"""igpt_jax.probing.sgd and sgd_probe: updates as written by hand, and the same results as L-BFGS if both apply."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax import probe
from igpt_jax.probing import sgd, sgd_probe, splits, store
from tests.probing.test_lbfgs_probe import LAYERS, TEST, WIDTH, digit_samples, masked_folder, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("features"), digit_samples(), [str(digit) for digit in range(10)], images_per_part=100)


def problem(layers=2, images=60, width=6, classes=3, positions=None):
    generator = np.random.default_rng(0)
    shape = (layers, images, width) if positions is None else (layers, images, positions, width)
    features = (generator.normal(size=shape) * 2 + 5).astype(np.float32)
    return features, generator.integers(0, classes, images)


def moments_of(features, kinds=("mean",)):
    sums = sgd.RunningMoments(kinds)
    sums.add(features)
    return sums.moments()


def test_moments_gathered_in_blocks_are_those_of_the_whole():
    features, _ = problem(images=90, positions=4)
    features[0] += 3000  # far more than its deviation: sums of squares would lose it
    features[:, :, :, 1] = 7
    sums = sgd.RunningMoments(("mean", "attention"))
    for start in (0, 10, 50):
        sums.add(features[:, start : {0: 10, 10: 50, 50: 90}[start]])
    found, exact = sums.moments(), features.astype(np.float64)
    for kind, whole in (("mean", exact.mean(axis=2)), ("attention", exact.reshape(2, -1, 6))):
        np.testing.assert_allclose(found[kind].mean, whole.mean(axis=1), rtol=1e-6)
        deviation = np.delete(whole.std(axis=1), 1, axis=1)
        np.testing.assert_allclose(np.delete(found[kind].scale, 1, axis=1), 1 / deviation, rtol=2e-3)  # float32 holds 3000.0002
        np.testing.assert_array_equal(found[kind].scale[:, 1], 1)
    prepared = sgd.prepare(moments_of(features, ("mean", "attention")), features)
    assert prepared["mean"].shape == (2, 90, 6) and prepared["attention"].shape == features.shape
    lengths = jnp.square(prepared["mean"]).sum(axis=-1).mean(axis=1)
    np.testing.assert_allclose(lengths, 5 / 6, rtol=1e-2)  # one feature of six is constant


def test_update_is_momentum_and_each_probe_its_own():
    features, labels = problem()
    moments, rates = moments_of(features), {"mean": np.float32([3, 0.5])}
    state = sgd.start({"mean": 2}, 2, 3, 6, 0)
    for share in (1.0, 0.5, 0.25):
        state, measured = sgd.update(state, moments, features, labels, {"mean": share * rates["mean"]})
    x = np.asarray(sgd.prepare(moments, features)["mean"], np.float64)[1]
    weights, bias, velocities = np.zeros((3, 6)), np.zeros(3), [np.zeros((3, 6)), np.zeros(3)]
    for share in (1.0, 0.5, 0.25):
        logits = x @ weights.T + bias
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[labels]
        velocities = [0.9 * velocities[0] + p.T @ x / len(labels), 0.9 * velocities[1] + p.mean(axis=0)]
        weights, bias = weights - share * 0.5 * velocities[0], bias - share * 0.5 * velocities[1]
    np.testing.assert_allclose(state.parameters["mean"]["weights"][1, 1], weights, atol=1e-5)
    np.testing.assert_allclose(state.parameters["mean"]["bias"][1, 1], bias, atol=1e-5)
    nats, right = measured["mean"]
    assert nats.shape == right.shape == (2, 2) and float(nats.max()) < np.log(3)


def test_prediction_is_the_likeliest_class_of_each_probe():
    features, labels = problem()
    moments, generator = moments_of(features), np.random.default_rng(1)
    parameters = {"mean": {"weights": generator.normal(size=(2, 4, 3, 6)).astype(np.float32), "bias": generator.normal(size=(2, 4, 3)).astype(np.float32)}}
    predicted, nats = sgd.predict(parameters, moments, features, labels)["mean"]
    x = np.asarray(sgd.prepare(moments, features)["mean"], np.float64)
    logits = np.einsum("lbd,lrcd->lrbc", x, parameters["mean"]["weights"]) + parameters["mean"]["bias"][:, :, None]
    np.testing.assert_array_equal(predicted, logits.argmax(axis=-1))
    np.testing.assert_allclose(nats, np.log(np.exp(logits).sum(axis=-1)) - logits[:, :, np.arange(60), labels], atol=1e-5)


def test_attention_starts_at_one_draw_of_the_papers_deviations_for_all():
    first, other = (sgd.start({"mean": 1, "attention": 2}, 3, 5, 96, seed) for seed in (0, 1))
    drawn = first.parameters["attention"]
    for name, deviation in (("key", 96**-0.5), ("value", 96**-0.5), ("query", 0.02)):
        assert float(jnp.std(drawn[name])) == pytest.approx(deviation, rel=0.2) and drawn[name].shape[:2] == (3, 2)  # 96 numbers of the query
        np.testing.assert_array_equal(drawn[name], jnp.broadcast_to(drawn[name][:1, :1], drawn[name].shape))
        assert np.abs(drawn[name] - other.parameters["attention"][name]).max() > 1e-3
    assert np.abs(drawn["key"] - drawn["value"]).max() > 1e-3 and np.abs(drawn["query"] / 0.02 - 96**0.5 * drawn["key"][:, :, 0]).max() > 1  # each its own
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((first.velocity, first.parameters["mean"], drawn["weights"], drawn["bias"])))


def test_cosine_ends_at_zero():
    assert sgd.cosine(0, 10) == 1 and sgd.cosine(5, 10) == pytest.approx(0.5) and sgd.cosine(10, 10) == pytest.approx(0)


def test_attention_is_what_its_description_says():
    """Against keys and values made for every position, as AIM writes it."""
    features, _ = problem(layers=1, images=5, width=26, positions=7)
    state = sgd.start({"attention": 1}, 1, 3, 26, 1)
    keys = iter(jax.random.split(jax.random.key(2), 5))
    parameters = {name: x + 0.2 * jax.random.normal(next(keys), x.shape) for name, x in state.parameters["attention"].items()}
    x = (features[0] - features.mean()) / 2
    query, key, value, weights, bias = (np.asarray(parameters[name][0, 0]) for name in ("query", "key", "value", "weights", "bias"))
    assert query.shape == (2, 13) and [sgd.head_count(width) for width in (7, 64, 1536, 13)] == [7, 8, 12, 1]  # 12 or the next fewer
    keys_BSNK, values_BSNK = np.einsum("bsd,dnk->bsnk", x, key), np.einsum("bsd,dnk->bsnk", x, value)
    scores_BNS = np.einsum("bsnk,nk->bns", keys_BSNK, query) / np.sqrt(query.shape[1])
    shares = np.exp(scores_BNS) / np.exp(scores_BNS).sum(axis=-1, keepdims=True)
    pooled = np.einsum("bns,bsnk->bnk", shares, values_BSNK).reshape(5, 26)
    np.testing.assert_allclose(sgd._logits(parameters, x[None])[0, 0], pooled @ weights.T + bias, atol=1e-4)  # sums in another order


def told_by_one_position(count, generator, positions=6, classes=4, width=12):
    """A class at every position, but the image's own at the third alone; positions can be told apart by a vector of their own."""
    labels = generator.integers(0, classes, count)
    shown = generator.integers(0, classes, (count, positions))
    shown[:, 2] = labels
    features = 2 * np.eye(width)[shown] + 2 * np.eye(width)[classes + np.arange(positions)] + 0.2 * generator.normal(size=(count, positions, width))
    return features[None].astype(np.float16), labels


def test_attention_beats_the_mean_where_one_position_tells_the_class(tmp_path, capsys):
    generator = np.random.default_rng(6)
    samples = {split: told_by_one_position(count, generator) for split, count in (("train", 600), ("validation", 200), ("test", 300))}
    write_folder(tmp_path, samples, [], 100, kind="positions", stored_layers=[3], positions=6, dtype="float16", layers=5)
    command = [f"--features={tmp_path}", "--pool=attention", "--steps=300", "--batch=64", "--learning-rates=3,10", "--attention-rates=3,10"]
    assert probe.main(command) == 0
    row = json.loads((tmp_path / "probe.json").read_text())["best"]
    assert row["attention"]["test"] > 0.95 and row["test"] < 0.7, row  # the mean sees one vote of six
    assert "attention: rate" in capsys.readouterr().out


def accuracies(folder, out, *options):
    assert probe.main([f"--features={folder}", f"--out={out}", "--no-raw-pixels", "--no-knn", *options]) == 0
    return json.loads((out / "probe.json").read_text())


@pytest.mark.slow
def test_near_lbfgs_and_the_same_for_the_same_seed(folder, tmp_path):
    options = ["--solver=sgd", "--steps=600", "--batch=128"]
    ours = accuracies(folder, tmp_path / "sgd", *options)
    theirs = accuracies(folder, tmp_path / "lbfgs", "--C=0.0001,0.001,0.01,0.1,1")
    for a, b in zip(ours["layers"], theirs["layers"], strict=True):
        # TEST = 359 images, of whose accuracy a deviation is 0.02: two of them
        assert abs(a["test"] - b["test"]) < 0.04 and abs(a["validation"] - b["validation"]) < 0.05, (a, b)
    assert ours["sgd"]["steps"] == 600 and ours["raw_pixels"] is None and ours["best"]["layer"] == 2
    again = accuracies(folder, tmp_path / "again", *options)
    other = accuracies(folder, tmp_path / "other", *options, "--seed=1")
    assert again["layers"] == ours["layers"] != other["layers"]


def test_small_memory_streams_and_groups_layers(folder, tmp_path):
    images = splits.Splits(folder, store.read_description(folder))
    rates = {"mean": [0.5, 1.0]}  # low ones, at which the order of the images moves the accuracy by less than 0.02, seeds 0 to 2
    large = sgd_probe.Settings(rates, 300, 32, 0, 8)
    small = sgd_probe.Settings(rates, 300, 32, 0, 0.00013)  # a layer at a time, from windows of a few hundred images
    plans = [sgd_probe.Plan(images, settings) for settings in (large, small)]
    count = len(images.labels["train"])
    assert (plans[0].at_once, plans[0].window) == (LAYERS, count) and plans[1].at_once == 1 and plans[1].window < count, (plans[1].at_once, plans[1].window)
    rows = [[outcome.row for outcome in sgd_probe.probe_layers(images, [0, 1, 2], settings)] for settings in (large, small)]
    for a, b in zip(*rows, strict=True):
        assert abs(a["test"] - b["test"]) < 0.04  # another order of the images; two deviations of 359 images
    assert len(images.labels["test"]) == TEST and plans[0].width == WIDTH


def test_concatenation(folder, tmp_path):
    result = accuracies(folder, tmp_path, "--solver=sgd", "--steps=300", "--concatenate=2", "--learning-rates=0.5,1", "--layers=1,2")
    assert result["concatenated"]["layers"] == [1, 2] and result["concatenated"]["test"] > result["layers"][0]["test"]
    assert abs(result["concatenated"]["test"] - result["layers"][1]["test"]) < 0.04  # the layer before adds little


def test_masks_vote_and_rates_fall_to_zero(tmp_path, monkeypatch):
    folder, rates, update = masked_folder(tmp_path / "features"), [], sgd.update
    monkeypatch.setattr(sgd, "update", lambda *arguments: rates.append(arguments[-1]["mean"]) or update(*arguments))
    row = accuracies(folder, tmp_path, "--solver=sgd", "--steps=100", "--batch=64", "--learning-rates=1,10")["best"]
    assert 0.58 < row["test_one_mask"] < 0.75 < row["test"]  # as for L-BFGS, tests/probing/test_lbfgs_probe.py
    assert 0.58 < row["validation_one_mask"] < 0.75 < row["validation"]
    rates_TR = np.stack(rates[:100])
    again = np.stack(rates[100:])  # the second fit, of the one layer with the rate chosen
    assert again.shape == (100, 1, 1) and again[0] == row["learning_rate"] and (np.diff(again, axis=0) < 0).all()
    assert rates_TR[0].tolist() == [1, 10] and (np.diff(rates_TR, axis=0) < 0).all() and rates_TR[-1].max() < 0.01


def contradicting(folder, opposite=400):
    """Training images say one thing, ten times as many validation images and all test images the opposite; two layers."""
    generator = np.random.default_rng(3)
    samples = {}
    for split, count, flip in (("train", 40, 0), ("validation", opposite, 1), ("test", 60, 1)):
        labels = generator.integers(0, 2, count)
        features = (20 * labels[:, None] + generator.normal(size=(2, count, 3))).astype(np.float32)
        samples[split] = features, abs(labels - flip)
    return write_folder(folder, samples, [], images_per_part=17)


def test_the_second_fit_sees_the_validation_images(tmp_path):
    found = accuracies(contradicting(tmp_path / "features"), tmp_path, "--solver=sgd", "--steps=60", "--batch=32", "--learning-rates=1")
    assert found["refit"]["images"] == 440 and found["refit"]["steps"] == 60
    for row in found["layers"]:
        assert row["train"] > 0.9 and row["validation"] < 0.1 and row["test"] > 0.9 and row["refitted"]


def test_a_second_fit_that_diverges_is_replaced_by_the_first(tmp_path, monkeypatch):
    folder, update = contradicting(tmp_path / "features"), sgd.update

    def diverge_again(state, moments, features, labels, rates):
        state, measured = update(state, moments, features, labels, rates)
        bad = np.ones(rates["mean"].shape, np.float32) if rates["mean"].ndim == 1 else np.float32([[1], [np.nan]])  # the second layer, in the second fit
        return sgd.State(
            {"mean": {name: x * bad.reshape(*bad.shape, *(1,) * (x.ndim - 2)) for name, x in state.parameters["mean"].items()}}, state[1]
        ), measured

    monkeypatch.setattr(sgd, "update", diverge_again)
    rows = accuracies(folder, tmp_path, "--solver=sgd", "--steps=60", "--batch=32", "--learning-rates=1")["layers"]
    assert [row["refitted"] for row in rows] == [True, False]
    assert rows[0]["test"] > 0.9 > 0.1 > rows[1]["test"]  # the first fit has not seen the validation images


def test_divergence_is_said_when_it_happens(folder, tmp_path, capsys):
    options = [f"--features={folder}", f"--out={tmp_path}", "--solver=sgd", "--steps=100000", "--learning-rates=1e38,3e38", "--layers=0"]
    assert probe.main(options) == 1  # a hundred thousand steps would take minutes
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: every learning rate of the mean probe diverged within 200 steps: give lower ones"
    assert accuracies(folder, tmp_path, "--solver=sgd", "--steps=101", "--learning-rates=10,3e38", "--layers=2")["best"]["learning_rate"] == 10


def test_default_steps_are_epochs():
    settings = sgd_probe.Settings({"mean": [1.0]}, 0, 128, 0, 8)
    assert settings.steps_for(1_229_920) == 960_875  # about the paper's million
    assert settings.steps_for(1000) == sgd_probe.LEAST_STEPS
