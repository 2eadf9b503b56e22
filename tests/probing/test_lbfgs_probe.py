"""igpt_jax.probe: the same optimum as scikit-learn's, an honest protocol, and errors in one line."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax import probe
from igpt_jax.data import pipeline
from igpt_jax.probing import lbfgs_probe, logistic, run, store
from igpt_jax.probing.splits import Sample, Splits, vote

DIGITS = dict(source="digits", image_size=8, augment="none", validation=0.1, directory="", workers=0, seed=0)
LAYERS, WIDTH = 3, 24
TEST = len(pipeline.open_dataset(pipeline.DataConfig(**DIGITS), "test"))
TRAIN = 1797 - TEST - 144


def write_folder(folder, samples, class_names, images_per_part=500, **changes):
    """A features folder made by hand, after igpt_jax/probing/store.py; `samples` is {split: (features [L, N, D] or [L, N, S, D], labels)}."""
    some = next(iter(samples.values()))[0]
    description = {
        "checkpoint": "runs/x/checkpoints/9", "step": 9, "layers": len(some) - 1, "width": some.shape[-1], "parameters": 1234567,
        "kind": "normalised", "dtype": "float32", "data": DIGITS, "class_names": class_names, "images_per_part": images_per_part,
        "counts": {split: len(labels) for split, (_, labels) in samples.items()},
    }  # fmt: skip
    for split, (features_LND, labels) in samples.items():
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "labels.npy", labels.astype(np.int32))
        for number, start in enumerate(range(0, len(labels), images_per_part)):
            np.save(folder / split / f"part-{number:05d}.npy", features_LND[:, start : start + images_per_part])
    (folder / "features.json").write_text(json.dumps(description | changes))
    return folder


def add_masks(folder, split, sets, images_per_part=500):
    """Features under masks 1 and on, each [L, N, D], beside those of mask 0."""
    for mask, features_LND in enumerate(sets, start=1):
        (folder / split / f"mask-{mask}").mkdir()
        for number, start in enumerate(range(0, features_LND.shape[1], images_per_part)):
            np.save(folder / split / f"mask-{mask}" / f"part-{number:05d}.npy", features_LND[:, start : start + images_per_part])


def masked_folder(folder, masks=5):
    """Three classes of which each mask shows an image's own in two cases of three, and another otherwise, in one layer."""
    generator = np.random.default_rng(4)
    samples, others = {}, {}
    for split, count in (("train", 600), ("validation", 200), ("test", 400)):
        labels = generator.integers(0, 3, count)
        sets = []
        for _ in range(masks):
            shown = np.where(generator.random(count) < 2 / 3, labels, (labels + generator.integers(1, 3, count)) % 3)
            sets.append((4 * np.eye(8)[shown] + 0.3 * generator.normal(size=(count, 8)))[None].astype(np.float32))
        samples[split], others[split] = (sets[0], labels), sets[1:]
    write_folder(folder, samples, ["a", "b", "c"], masks=masks)
    for split in ("validation", "test"):
        add_masks(folder, split, others[split])
    return folder


def digit_samples(layers=LAYERS, width=WIDTH):
    """Digits seen through random layers: the first is noise, later ones tell more."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(64, width))
    samples = {}
    for split in ("train", "validation", "test"):
        dataset = pipeline.open_dataset(pipeline.DataConfig(**DIGITS), split)
        pixels = dataset.images(0, len(dataset))[..., 0].reshape(len(dataset), 64) / 255
        noise = generator.normal(size=(layers, len(dataset), width)) * np.linspace(8, 0.5, layers)[:, None, None]
        samples[split] = (np.maximum(pixels @ weights, 0) + noise).astype(np.float32), dataset.labels
    return samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("features"), digit_samples(), [str(digit) for digit in range(10)])


@pytest.fixture(scope="module")
def problem():
    """Correlated features of three layers, one feature constant, one doubled; the last layer can be separated without error."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, 300)
    mixing = generator.normal(size=(20, 20)) * np.geomspace(1, 0.01, 20)
    features = generator.normal(size=(3, 300, 20)) + np.array([0.5, 1, 9])[:, None, None] * np.eye(20)[labels]
    features = features @ mixing + 5
    features[..., 0], features[..., 1] = 3.3, features[..., 2]
    sample = Sample(features.astype(np.float32), labels)
    return lbfgs_probe.standardise(sample, sample, None)[0]


def fit(sample, C_values, classes=4, start=None, **options):
    layers, images, width = sample.features.shape
    start = np.zeros((layers, len(C_values), classes, width + 1), np.float32) if start is None else start
    rows = np.tile(sample.labels, (layers, 1))
    return logistic.fit_logistic(sample.features, rows, start, np.tile(np.float32(C_values), (layers, 1)), **options)


def loss(weights, features, labels, C):
    """The objective in float64, from its definition."""
    weights, features = np.asarray(weights, np.float64), np.asarray(features, np.float64)
    logits = features @ weights[:, :-1].T + weights[:, -1]
    entropies = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[np.arange(len(labels)), labels]
    return entropies.sum() + (weights[:, :-1] ** 2).sum() / (2 * C)


@pytest.mark.parametrize("images", [300, 15], ids=["more images than features", "fewer"])
def test_same_optimum_as_scikit_learn(problem, images):
    from sklearn.linear_model import LogisticRegression

    C_values = [1e-4, 1e-2, 1.0, 100.0]
    sample = Sample(problem.features[:, :images], problem.labels[:images])
    found = fit(sample, C_values)
    assert np.asarray(found.converged).all()
    for layer in range(3):
        for number, C in enumerate(C_values):
            x = sample.features[layer].astype(np.float64)
            theirs = LogisticRegression(C=C, tol=1e-6, max_iter=100_000).fit(x, sample.labels)
            theirs_loss = loss(np.concatenate([theirs.coef_, theirs.intercept_[:, None]], 1), x, sample.labels, C)
            ours = np.asarray(found.weights[layer, number])
            # both stop at a gradient of 1e-6 of the mean loss, hence within that of the optimum; they may differ on either side
            assert loss(ours, x, sample.labels, C) <= theirs_loss * (1 + 1e-3) + 1e-6 * images
            right = (problem.features[layer] @ ours[:, :-1].T + ours[:, -1]).argmax(1) == problem.labels
            assert abs(right.mean() - theirs.score(problem.features[layer].astype(np.float64), problem.labels)) <= 0.002 + 1e-9


def test_gradient_is_zero_at_the_optimum(problem):
    def objective(weights, features, labels, C):
        logits = features @ weights[:, :-1].T + weights[:, -1]
        entropies = jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return entropies.mean() + (weights[:, :-1] ** 2).sum() / (2 * C * len(labels))

    weights = fit(problem, [0.1]).weights[1, 0]
    slope = jax.grad(objective)(weights, problem.features[1], problem.labels, 0.1)
    assert float(jnp.abs(slope).max()) < 1e-5  # the tolerance is 1e-6 along the principal axes
    assert float(jnp.abs(jax.grad(objective)(weights * 1.01, problem.features[1], problem.labels, 0.1)).max()) > 1e-4


def test_side_by_side_equals_alone(problem):
    together = fit(problem, [1e-3, 1.0])
    for layer in range(3):
        for number, C in enumerate([1e-3, 1.0]):
            alone = fit(Sample(problem.features[layer : layer + 1], problem.labels), [C])
            found = together.weights[layer, number], alone.weights[0, 0]
            losses = [loss(weights, problem.features[layer], problem.labels, C) for weights in found]
            assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=3e-4)  # sums in float32 in another order; 300 images at 1e-6


def test_warm_start_needs_fewer_steps(problem):
    cold = fit(problem, [0.1])
    warm = fit(problem, [0.1], start=cold.weights)
    assert int(warm.steps.max()) <= 2 < int(cold.steps.min())
    np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-3)


def test_unfinished_fits_are_reported(problem):
    assert not np.asarray(fit(problem, [1.0], iterations=3).converged).any()


def test_standardise_by_the_training_images_alone():
    generator = np.random.default_rng(2)
    training = Sample((generator.normal(size=(2, 50, 4)) * 3 + 1000).astype(np.float32), np.zeros(50, int))
    training.features[:, :, 1] = 0.1
    other = Sample(training.features[:, :5] + 1, np.zeros(5, int))
    scaled, shifted, none = lbfgs_probe.standardise(training, other, None)
    np.testing.assert_allclose(scaled.features.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(np.delete(scaled.features.std(1), 1, 1), 1, rtol=1e-5)
    np.testing.assert_array_equal(scaled.features[:, :, 1], 0)
    np.testing.assert_allclose(shifted.features[:, :, 1], 1, rtol=1e-5)
    assert none is None


def test_of_equal_values_of_C_the_strongest_and_refit_sees_the_validation_images():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 40)
    features = (labels[:, None] * 20 + generator.normal(size=(40, 2))).astype(np.float32)[None]
    easy = lbfgs_probe.standardise(*[Sample(features, labels)] * 3)
    assert lbfgs_probe.probe(*easy, 2, [1.0, 0.01, 10.0])[0]["C"] == 0.01
    # training images say one thing, ten times as many validation images the opposite: only a refit can be right on the test images
    many = Sample(np.tile(features, (1, 10, 1)), np.tile(1 - labels, 10))
    samples = lbfgs_probe.standardise(Sample(features, labels), many, many)
    assert lbfgs_probe.probe(*samples, 2, [1.0])[0]["test"] > 0.9 > 0.1 > lbfgs_probe.probe(*samples, 2, [1.0], refit=False)[0]["test"]


@pytest.mark.slow
def test_chunks_of_layers_do_not_matter(folder):
    images = Splits(folder, store.read_description(folder))
    outcomes = [lbfgs_probe.probe_layers(images, [0, 1, 2], [0.001, 0.1], at_once) for at_once in (3, 1)]
    whole, single = ([outcome.row for outcome in each] for each in outcomes)
    for a, b in zip(whole, single, strict=True):
        assert (a["layer"], a["C"]) == (b["layer"], b["C"])
        assert abs(a["test"] - b["test"]) <= 1.01 / TEST  # an image on the border may fall on either side


def test_program(folder, tmp_path, capsys):
    assert probe.main([f"--features={folder}", f"--out={tmp_path}", "--C=0.001,0.1", "--no-raw-pixels"]) == 0
    result = json.loads((tmp_path / "probe.json").read_text())
    rows = result["layers"]
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert result["best"] == max(rows, key=lambda row: row["validation"]) and result["last"] == rows[2]
    assert rows[2]["test"] > 0.8 > rows[0]["test"] > 0.05
    assert (result["step"], result["counts"]["test"], result["classes"], result["raw_pixels"]) == (9, TEST, 10, None)
    assert (tmp_path / "accuracy_by_layer.png").read_bytes()[:4] == b"\x89PNG"
    assert "best layer by validation: 2" in capsys.readouterr().out


@pytest.mark.slow
def test_pixels_concatenation_and_few_labels(folder, tmp_path):
    options = ["--C=0.001,0.1", "--concatenate=2", "--labels-per-class=4,25", "--subsets=3"]
    assert probe.main([f"--features={folder}", f"--out={tmp_path}", *options]) == 0
    result = json.loads((tmp_path / "probe.json").read_text())
    assert result["raw_pixels"]["test"] > 0.93
    assert result["concatenated"]["layers"] == [1, 2] and result["concatenated"]["test"] > 0.7
    few, more = result["low_data"]
    assert len(few["test"]) == 3 and len(set(few["test"])) > 1 and few["mean"] == pytest.approx(np.mean(few["test"]))
    assert 0.2 < few["mean"] < more["mean"] < result["best"]["test"]


def test_without_validation_images_some_training_images_choose(tmp_path, capsys):
    write_folder(tmp_path, {"train": digit_samples()["train"]}, [])
    assert probe.main([f"--features={tmp_path}", "--layers=0,2", "--C=0.1", "--no-raw-pixels"]) == 0
    assert f"{round(0.1 * TRAIN)} training images held out (seed 0), there being no validation split" in capsys.readouterr().out
    result = json.loads((tmp_path / "probe.json").read_text())
    assert [row["layer"] for row in result["layers"]] == [0, 2] and result["classes"] == 10
    assert result["best"]["test"] is None and result["best"]["validation"] > 0.7


def test_few_images_and_classes_without_test_images_are_noted_in_one_line(tmp_path, capsys):
    """Nothing is said of a class that training lacks too, nor of twenty images of every class."""
    labels = {"train": np.arange(60) % 3, "validation": np.arange(20) % 3, "test": np.arange(20) % 3}
    cases = {
        "whole": ({}, None),
        "few": ({"test": np.arange(19) % 3}, "there are 19 test images, and accuracy on so few says little"),
        "one": ({"validation": np.zeros(1, int)}, "there is 1 validation image, to choose the settings and the best layer by"),
        "lacking": ({"test": np.zeros(20, int)}, "2 of 3 classes of the training images have no test image (b, c): test accuracy says nothing of them"),
        "unknown": ({"train": np.arange(60) % 2, "test": np.arange(20) % 2}, None),
        "both": ({"test": np.arange(4) % 2}, "there are 4 test images, and accuracy on so few says little; 1 of 3 classes of the training images"),
    }
    for name, (changed, said) in cases.items():
        samples = {split: (np.random.default_rng(0).normal(size=(1, len(of), 4)).astype(np.float32), of) for split, of in (labels | changed).items()}
        folder = write_folder(tmp_path / name, samples, ["a", "b", "c"])
        doubts = Splits(folder, store.read_description(folder)).doubts()
        assert "; ".join(doubts).startswith(said) if said else not doubts, name
    assert probe.main([f"--features={tmp_path / 'both'}", "--C=0.1", "--no-raw-pixels"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "says little" in line]
    assert len(notes) == 1 and notes[0].startswith(f"note: {cases['both'][1]}")


def test_masks_vote(tmp_path, capsys):
    folder = masked_folder(tmp_path / "features")
    assert probe.main([f"--features={folder}", "--C=0.1", "--no-raw-pixels"]) == 0
    result = json.loads((folder / "probe.json").read_text())
    row = result["best"]
    assert 0.58 < row["test_one_mask"] < 0.75 and 0.58 < row["validation_one_mask"] < 0.75  # two in three, 400 images: a deviation is 0.024
    assert row["test"] > 0.75 < row["validation"]  # at least three of five right in 0.79 of cases, or two with the others apart
    assert "one mask" in capsys.readouterr().out and result["masks"] == 5


def test_vote_is_the_mode_and_ties_are_fair_and_the_same_for_every_probe():
    assert vote(np.array([[3, 1], [2, 1], [3, 0]])).tolist() == [3, 1]
    ties = np.tile(np.array([[7], [7], [2], [2], [5]]), (1, 4000))
    voted = vote(ties)
    assert set(voted) == {2, 7} and abs((voted == 7).mean() - 0.5) < 0.04  # five deviations
    np.testing.assert_array_equal(vote(np.stack([ties, ties]))[1], voted)
    assert (vote(ties, seed=1) != voted).any()


def test_positions_are_averaged(tmp_path):
    positions = np.random.default_rng(5).normal(size=(2, 30, 6, 4)).astype(np.float16)
    write_folder(tmp_path, {"train": (positions, np.arange(30) % 2)}, [], 8, kind="positions", stored_layers=[1, 4], positions=6, dtype="float16", layers=4)
    np.testing.assert_allclose(store.read_layer(tmp_path, "train", 4), positions[1].astype(np.float32).mean(axis=1), atol=1e-6)
    assert probe.main([f"--features={tmp_path}", "--layers=4", "--C=0.1", "--no-raw-pixels"]) == 0
    assert [row["layer"] for row in json.loads((tmp_path / "probe.json").read_text())["layers"]] == [4]
    assert run._window(2, [1, 4, 7])(7) == [4, 7]


def test_subsets_are_seeded_balanced_and_in_range():
    labels = np.arange(60) % 3
    rows = lbfgs_probe.choose_subset(labels, 3, 5, (0, 5, 1))
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5] and len(set(rows)) == 15
    np.testing.assert_array_equal(rows, lbfgs_probe.choose_subset(labels, 3, 5, (0, 5, 1)))
    assert not np.array_equal(rows, lbfgs_probe.choose_subset(labels, 3, 5, (0, 5, 2)))
    with pytest.raises(ValueError, match="class 0 has 20 training images, fewer than --labels-per-class=21"):
        lbfgs_probe.choose_subset(labels, 3, 21, 0)


def test_window_stays_inside():
    window = run._window(5, list(range(9)))
    assert [window(best) for best in (0, 4, 8)] == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8]]


def _break_part(folder):
    part = folder / "train" / "part-00001.npy"
    part.write_bytes(part.read_bytes()[:-8])


@pytest.mark.parametrize(
    "spoil, options, message",
    [
        (lambda f: shutil.rmtree(f), [], "holds no features.json: write the features first, python -m igpt_jax.features"),
        (lambda f: (f / "test/labels.npy").unlink(), [], "1 files missing or cut off (test/labels.npy): finish with python -m"),
        (_break_part, [], "1 files missing or cut off (train/part-00001.npy): finish with"),
        (lambda f: np.save(f / "train/labels.npy", np.full(TRAIN, -1)), [], f"{TRAIN} of {TRAIN} train images have no label"),
        (lambda f: np.save(f / "train/labels.npy", np.full(TRAIN, 4)), [], f"all {TRAIN} training images are of one class"),
        (lambda f: np.save(f / "test/labels.npy", np.full(TEST, 10)), [], "label 10 is outside the 10 classes"),
        (lambda f: None, ["--layers=0,9"], "--layers=0,9 is neither all nor a list of layers from 0 to 2"),
        (lambda f: None, ["--concatenate=4"], "--concatenate=4 must be from 2 to the 3 layers"),
        (lambda f: None, ["--memory=0.0001"], "more than --memory=0.0001: raise that, give fewer --C, or stream from the disk by --solver=sgd"),
        (lambda f: None, ["--memory=0.0001", "--solver=sgd"], "more than --memory=0.0001: raise that, or give fewer --learning-rates or a smaller --batch"),
        (lambda f: None, ["--labels-per-class=4", "--solver=sgd"], "--labels-per-class fits so few images that --solver=lbfgs is the one for it"),
        (lambda f: None, ["--pool=attention"], "--pool=attention needs the features of every position"),
        (lambda f: None, ["--pool=attention", "--solver=lbfgs"], "--pool=attention is trained by sgd: leave out --solver=lbfgs"),
        (lambda f: None, ["--labels-per-class=4000"], "fewer than --labels-per-class=4000"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, capsys, spoil, options, message):
    copy = shutil.copytree(folder, tmp_path / "features")
    spoil(copy)
    assert probe.main([f"--features={copy}", "--C=1", "--no-raw-pixels", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (copy / "probe.json").exists()
