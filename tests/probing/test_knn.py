"""igpt_jax.probing.knn: the neighbours and votes of the definition, for any sizes of blocks, and the protocol of the linear probe."""

import json

import numpy as np
import pytest

from igpt_jax import probe
from igpt_jax.probing import knn, results, splits, store
from tests.probing.test_lbfgs_probe import masked_folder, write_folder


def problem(queries=37, neighbours=203, width=5, classes=4):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(queries + neighbours, width)).astype(np.float32) + 0.5
    return features[:queries], features[queries:], generator.integers(0, classes, neighbours)


def by_definition(queries, neighbours, labels, k, classes=4):
    """Votes, sorted neighbours and similarities in float64."""
    unit = [each.astype(np.float64) / np.linalg.norm(each.astype(np.float64), axis=1, keepdims=True) for each in (queries, neighbours)]
    similarities = unit[0] @ unit[1].T
    order = np.argsort(-similarities, axis=1)[:, :k]
    near = np.take_along_axis(similarities, order, axis=1)
    votes = np.stack([(np.exp(near / 0.07) * (labels[order] == label)).sum(axis=1) for label in range(classes)], axis=1)
    return votes / votes.sum(axis=1, keepdims=True), order, near


def blocks(features, size):
    return [features[start : start + size] for start in range(0, len(features), size)]


@pytest.mark.parametrize("tile, block", [(37, 203), (8, 50), (5, 3)], ids=["whole", "parts", "blocks smaller than k"])
def test_neighbours_and_votes_are_those_of_the_definition(tile, block):
    queries, neighbours, labels = problem()
    sizes = knn.Sizes(37, tile, block)
    found = knn.nearest(queries, blocks(neighbours, block), 20, sizes)
    votes, order, near = by_definition(queries, neighbours, labels, 20)
    np.testing.assert_array_equal(found[1], order)
    np.testing.assert_allclose(found[0], near, atol=1e-6)  # float32
    for k, shares in zip((3, 20), knn.shares(found, labels, 4, (3, 20)), strict=True):
        np.testing.assert_allclose(shares, by_definition(queries, neighbours, labels, k)[0], atol=1e-5)
    np.testing.assert_array_equal(knn.classify(found, labels, 4, (20,))[0], votes.argmax(axis=1))


def test_lengths_do_not_matter_and_equally_near_ones_are_taken_in_order():
    queries, neighbours, _ = problem()
    sizes = knn.Sizes(37, 37, 60)
    found = knn.nearest(queries, blocks(neighbours, 60), 9, sizes)
    scale = np.geomspace(1e-30, 1e30, len(neighbours), dtype=np.float32)[:, None]  # squares of these overflow float32
    np.testing.assert_array_equal(knn.nearest(queries, blocks(neighbours * scale, 60), 9, sizes)[1], found[1])
    constant = np.ones((203, 5), np.float32)
    np.testing.assert_array_equal(knn.nearest(queries, blocks(constant, 60), 9, sizes)[1], np.tile(np.arange(9), (37, 1)))
    similarities, numbers = knn.nearest(queries, blocks(0 * constant, 60), 9, sizes)  # no direction at all
    assert not similarities.any() and numbers.max() == 8
    with pytest.raises(ValueError, match="the features are not finite"):
        knn.nearest(np.full((1, 5), np.nan, np.float32), [neighbours], 9, knn.Sizes(1, 1, 203))


def test_nearer_neighbours_weigh_more_however_near_all_are():
    found = np.float32([[1.0, 0.93, 0.93]]), np.int32([[2, 0, 1]])
    np.testing.assert_allclose(next(knn.shares(found, np.array([0, 0, 1]), 2, (3,))), [[2 / (2 + np.e), np.e / (2 + np.e)]], rtol=1e-5)
    colder = found[0] - 1.99, found[1]
    np.testing.assert_allclose(next(knn.shares(colder, np.array([0, 0, 1]), 2, (3,)))[0, 1], np.e / (2 + np.e), rtol=1e-5)


def test_k_is_at_most_the_number_of_training_images():
    assert [knn.counts_for(images) for images in (1000, 200, 199, 10, 9, 2)] == [[10, 20, 100, 200], [10, 20, 100, 200], [10, 20, 100], [10], [9], [2]]


@pytest.mark.parametrize("memory", [1e-9, 1e-4, 1, 1000])
def test_memory_bounds_what_is_compared_at_once(memory):
    sizes = knn.sizes_for(memory, width=512, k=200, row_bytes=1024 * 2 * 512, queries=60_000, neighbours=10**6)
    bytes_of_each = {"neighbours": 1024 * 2 * 512 + 12 * 512, "tile": 12 * (sizes.neighbours + 200), "queries": 12 * 512 + 16 * 200}
    for name, size in bytes_of_each.items():
        count = getattr(sizes, name)
        assert count >= 1 and (count * size <= memory * 2**28 or count == (sizes.tile if name == "queries" else 1)), name
    assert sizes.queries >= sizes.tile <= 1024 and sizes.neighbours <= 8192 and sizes.queries <= 60_000
    assert memory < 1 or (sizes.tile > 100 and sizes.neighbours > 100)  # no smaller than they must be


def run(folder, out, *options):
    assert probe.main([f"--features={folder}", f"--out={out}", "--no-raw-pixels", "--C=0.1", *options]) == 0
    return json.loads((out / "probe.json").read_text())


def test_protocol_and_files(tmp_path, capsys):
    """k by the validation images with training images as neighbours; test images have both as neighbours."""
    generator = np.random.default_rng(2)
    samples = {
        split: (generator.normal(size=(2, count, 5)).astype(np.float32) + 0.5, np.arange(count) % 3)
        for split, count in (("train", 45), ("validation", 25), ("test", 31))
    }
    for features, labels in samples.values():
        features[1] += 2 * np.eye(5)[labels]
    folder = write_folder(tmp_path / "features", samples, ["a", "b", "c"], images_per_part=16)
    result, stored = run(folder, tmp_path), results.read_predictions(tmp_path)
    before = results.read_predictions(tmp_path, "validation")
    both = [np.concatenate([samples[split][index] for split in ("train", "validation")], axis=1 - index) for index in (0, 1)]
    for layer, row in enumerate(result["layers"]):
        votes = {k: by_definition(samples["validation"][0][layer], samples["train"][0][layer], samples["train"][1], k, 3)[0].argmax(axis=1) for k in (10, 20)}
        accuracies = {k: (classes == samples["validation"][1]).mean() for k, classes in votes.items()}
        k = max(accuracies, key=accuracies.get)
        tested = by_definition(samples["test"][0][layer], both[0][layer], both[1], k, 3)[0].argmax(axis=1)
        np.testing.assert_array_equal(stored.knn[layer], tested)
        np.testing.assert_array_equal(before.knn[layer], votes[k])
        assert row["knn"]["k"] == k and row["knn"]["validation"] == accuracies[k] and row["knn"]["test"] == (tested == stored.labels).mean()
        assert row["knn"]["interval"][0] < row["knn"]["test"] < row["knn"]["interval"][1]
    assert result["knn"]["k_values"] == [10, 20] and result["knn"]["pairs"] == 25 * 45 + 31 * 70 and result["best"]["knn"] == result["layers"][1]["knn"]
    assert "| neighbours: k" in capsys.readouterr().out and stored.knn[0].dtype == np.int16
    without = run(folder, tmp_path, "--no-knn", "--layers=1")
    assert without["knn"] is None and "knn" not in without["best"] and results.read_predictions(tmp_path).knn == {}
    assert "neighbours" not in capsys.readouterr().out


def test_many_pairs_are_left_out_unless_asked_for(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(2)
    folder = write_folder(tmp_path / "features", {"train": (generator.normal(size=(1, 6, 3)).astype(np.float32), np.arange(6) % 2)}, [])
    monkeypatch.setattr(knn, "CHEAP", 4)  # one image is held out
    assert run(folder, tmp_path)["knn"] is None
    assert "nearest neighbours are left out: they compare 5 pairs of images in each layer; --knn probes by them all the same" in capsys.readouterr().err
    row = run(folder, tmp_path, "--knn")["best"]["knn"]
    assert row["k"] == 5 and row["test"] is None and row["interval"] is None


def test_masks_vote(tmp_path):
    folder = masked_folder(tmp_path / "features")
    images = splits.Splits(folder, store.read_description(folder))
    assert knn.pairs(images) == 5 * (200 * 600 + 400 * 800)
    row = knn.probe_layers(images, [0], memory=0.01)[0].row
    assert row["test"] > 0.75 < row["validation"]  # as in tests/probing/test_lbfgs_probe.py; one mask has two in three


def test_positions_are_averaged_and_sgd_has_neighbours_too(tmp_path):
    generator = np.random.default_rng(3)
    samples = {split: (generator.normal(size=(1, 40, 6, 4)).astype(np.float16), np.arange(40) % 2) for split in ("train", "test")}
    folder = write_folder(tmp_path / "features", samples, [], 8, kind="positions", stored_layers=[4], positions=6, dtype="float16", layers=4)
    options = [f"--features={folder}", f"--out={tmp_path}", "--solver=sgd", "--steps=2", "--learning-rates=1", "--memory=0.001"]
    assert probe.main(options) == 0
    result = json.loads((tmp_path / "probe.json").read_text())
    averaged = {split: features[0].mean(axis=1, dtype=np.float32) for split, (features, _) in samples.items()}
    images = splits.Splits(folder, store.read_description(folder))
    both = np.concatenate([images.rows["train"][1], images.rows["validation"][1]])
    k = result["best"]["knn"]["k"]
    expected = by_definition(averaged["test"], averaged["train"][both], samples["train"][1][both], k, 2)[0].argmax(axis=1)
    np.testing.assert_array_equal(results.read_predictions(tmp_path).knn[4], expected)
    assert len(images.rows["validation"][1]) == 4 and k in (10, 20)
