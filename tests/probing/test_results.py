"""probe.npz: what is stored is what was measured, it can be applied again, and files of two runs are noticed."""

import json
import shutil

import numpy as np
import pytest

from igpt_jax import probe
from igpt_jax.probing import lbfgs_probe, results, splits, store
from tests.probing.test_lbfgs_probe import add_masks, digit_samples, write_folder

COUNTS = {"train": 90, "validation": 40, "test": 77}
SOLVERS = {
    "lbfgs": ["--C=0.01,1", "--labels-per-class=1,5", "--subsets=2"],
    "sgd": ["--solver=sgd", "--steps=40", "--batch=32", "--learning-rates=1,10"],
}


def masked_layers(folder, masks=3, test_classes=(0, 1, 2), dtype=np.float32, splits=tuple(COUNTS)):
    """Four classes of which the last is not among the test images; three layers of 6 features, one of them constant, under several masks."""
    generator = np.random.default_rng(4)
    samples, others = {}, {}
    for split in splits:
        labels = generator.choice(test_classes if split == "test" else 4, COUNTS[split])
        labels[:3] = 0, 1, 2
        sets = [(np.eye(6)[labels] + generator.normal(size=(3, len(labels), 6)) * [[[1]], [[0.7]], [[0.9]]]).astype(dtype) for _ in range(masks)]
        for each in sets:
            each[..., 5] = 3
        samples[split], others[split] = (sets[0], labels), sets[1:]
    write_folder(folder, samples, ["a", "b", "c", "d"], images_per_part=32, dtype=np.dtype(dtype).name, **({"masks": masks} if masks > 1 else {}))
    for split in set(splits) - {"train"}:
        add_masks(folder, split, others[split], images_per_part=32)
    return folder


def run(folder, out, *options):
    assert probe.main([f"--features={folder}", f"--out={out}", "--no-raw-pixels", *options]) == 0
    return json.loads((out / "probe.json").read_text())


@pytest.fixture(scope="module", params=SOLVERS)
def probed(request, tmp_path_factory):
    """(solver, features, folder of results, probe.json) of a run with masks, float16 features and --concatenate, a layer at a time by lbfgs."""
    place = tmp_path_factory.mktemp(request.param)
    folder = masked_layers(place / "features", dtype=np.float16)
    return request.param, folder, place, run(folder, place, "--concatenate=2", *SOLVERS[request.param])


def voted(linear, folder, layers):
    """What a stored probe predicts for the features of layers side by side, by the vote of the masks."""
    sets = [np.concatenate([store.read_layer(folder, "test", layer, mask) for layer in layers], axis=1) for mask in range(3)]
    alone = [linear.predict(features[5:6])[0] for features in sets]
    together = np.stack([linear.predict(features) for features in sets])
    assert alone == together[:, 5].tolist()
    return splits.vote(together)


def test_a_stored_probe_predicts_what_is_stored(probed):
    _, folder, place, result = probed
    stored = results.read_predictions(place)
    for layer in (0, 1, 2):
        np.testing.assert_array_equal(voted(results.read_linear(place, layer), folder, [layer]), stored.layers[layer])
    joined = result["concatenated"]["layers"]
    np.testing.assert_array_equal(voted(results.read_linear(place, "concatenated"), folder, joined), stored.concatenated)
    assert stored.layers[0].dtype == np.int16 and not np.array_equal(stored.layers[0], stored.layers[1])
    with pytest.raises(KeyError, match="layer 3 is not probed in .*, only 0, 1, 2"):
        results.read_linear(place, 3)


def test_predictions_are_those_that_were_measured(probed):
    solver, folder, place, result = probed
    test, validation = results.read_predictions(place), results.read_predictions(place, "validation")
    np.testing.assert_array_equal(test.labels, np.load(folder / "test/labels.npy"))
    np.testing.assert_array_equal(validation.labels, np.load(folder / "validation/labels.npy"))
    assert test.class_names == ["a", "b", "c", "d"] and test.pixels is None and result["predictions"]["images"] == {"validation": 40, "test": 77}
    for row in result["layers"]:
        assert row["test"] == (test.layers[row["layer"]] == test.labels).mean()
        assert row["validation"] == (validation.layers[row["layer"]] == validation.labels).mean()
        assert row["interval"][0] < row["test"] < row["interval"][1] and row["interval_one_mask"][0] < row["test_one_mask"]
    assert result["concatenated"]["test"] == (test.concatenated == test.labels).mean()
    arrays = np.load(place / "probe.npz")
    setting = "C" if solver == "lbfgs" else "learning_rate"
    assert arrays[setting].tolist() == [row[setting] for row in result["layers"]]
    assert "validation_rows" not in arrays and validation.training_rows is None and test.training_rows is None  # none is held out
    assert arrays["weights"].shape == (3, 4, 6) and arrays["concatenated_weights"].shape == (4, 12) and arrays["layers"].tolist() == [0, 1, 2]
    assert result["refit"]["images"] == 130 and result["images"] == COUNTS


def test_few_labels(probed):
    solver, _, place, result = probed
    if solver == "sgd":
        assert results.read_predictions(place).low_data == {}
        return
    stored, arrays = results.read_predictions(place), np.load(place / "probe.npz")
    for number, row in enumerate(result["low_data"]):
        predicted = stored.low_data[row["labels_per_class"]]
        assert predicted.shape == (2, 77) and row["test"] == (predicted == stored.labels).mean(axis=1).tolist()
        assert row["C"] == arrays["low_data_C"][number].tolist() and len(row["interval"]) == 2 and row["interval"][1][0] < row["test"][1]
    assert arrays["low_data_layer"] == result["best"]["layer"] == result["low_data"][0]["layer"]
    choices = result["low_data_choices"]
    assert choices["C"] == {"chosen_by": "accuracy on the validation split, for each subset", "labels": 40}
    assert choices["layer"]["labels"] == 130 and "among 3 layers" in choices["layer"]["chosen_by"] and "90 training images" in choices["standardised_by"]


def test_classes_and_confusion(probed):
    _, _, place, result = probed
    stored = results.read_predictions(place)
    for name in ("best", "last"):
        found, predicted = result["by_class"][name], stored.layers[result[name]["layer"]]
        expected = [[int(((stored.labels == true) & (predicted == given)).sum()) for given in range(4)] for true in range(4)]
        assert found["confusion"] == expected and found["images"] == [sum(row) for row in expected]
        assert found["accuracy"][3] is None and found["interval"][3] is None and found["images"][3] == 0  # no test image is of the last class
        assert found["accuracy"][:3] == [expected[label][label] / sum(expected[label]) for label in range(3)]
        assert found["interval"][0][0] < found["accuracy"][0] <= found["interval"][0][1]
    assert set(result["by_class"]) == {"best", "last"}  # raw pixels are not probed
    assert '"images": [2' in (place / "probe.json").read_text()  # a list of numbers is a line


def test_files_of_two_runs_are_noticed(probed, tmp_path, monkeypatch):
    _, _, place, _ = probed
    for name in ("probe.json", "probe.npz"):
        shutil.copy(place / name, tmp_path)
    arrays, result = dict(np.load(place / "probe.npz")), json.loads((place / "probe.json").read_text())
    arrays["test"] = arrays["test"][:, ::-1]  # the same shapes and counts

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results, "write_atomically", stop)  # stopped between the two files
        results.write(tmp_path, result, arrays)
    with pytest.raises(ValueError, match="probe.npz and .*probe.json are of different runs, or damaged: run python -m igpt_jax.probe"):
        results.read_predictions(tmp_path)
    results.write(tmp_path, result, arrays)
    np.testing.assert_array_equal(results.read_predictions(tmp_path).layers[0], arrays["test"][0])
    content = (tmp_path / "probe.npz").read_bytes()
    (tmp_path / "probe.npz").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="different runs, or damaged"):
        results.read_predictions(tmp_path)
    (tmp_path / "probe.npz").unlink()
    with pytest.raises(FileNotFoundError, match="holds no probe.npz, which keeps what probes predict"):
        results.read_predictions(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '{"predictions": null}', '{"predictions": []}', "{}", '{"predictions": {"sha', "\xff"])
def test_a_damaged_probe_json(tmp_path, text):
    results.write(tmp_path, {}, {"layers": np.zeros(1, np.int32), "test_labels": np.zeros(2, np.int32)})
    (tmp_path / "probe.json").write_bytes(text.encode("latin-1"))
    for read in (results.read_predictions, lambda directory: results.read_linear(directory, 0)):
        with pytest.raises(ValueError, match=rf"{tmp_path}/probe.json .*damaged.*: run python -m igpt_jax.probe"):
            read(tmp_path)


def test_without_a_test_split(tmp_path):
    folder = masked_layers(tmp_path / "features", masks=1, splits=("train",))
    result = run(folder, tmp_path, "--C=0.1", "--layers=0,2")
    assert result["best"]["test"] is None and result["best"]["interval"] is None and result["by_class"] is None
    with pytest.raises(ValueError, match="holds no predictions of test images, only of validation: write the features of that split"):
        results.read_predictions(tmp_path)
    stored = results.read_predictions(tmp_path, "validation")
    held_out = splits.Splits(folder, store.read_description(folder)).labels["validation"]
    np.testing.assert_array_equal(stored.labels, held_out)
    assert list(stored.layers) == [0, 2] and len(stored.layers[2]) == 9
    labels, rows = np.load(folder / "train/labels.npy"), np.load(tmp_path / "probe.npz")["validation_rows"]
    np.testing.assert_array_equal(rows, np.sort(np.random.default_rng(splits.HOLD_OUT_SEED).permutation(90)[:9]))
    np.testing.assert_array_equal(labels[rows], held_out)
    np.testing.assert_array_equal(stored.training_rows, rows)
    assert result["layers"][1]["validation"] == (stored.layers[2] == held_out).mean()


def test_features_that_are_written_again_meanwhile(tmp_path, monkeypatch, capsys):
    folder, fit = masked_layers(tmp_path / "features", masks=1), lbfgs_probe.probe_layers

    def change(**changes):
        path = folder / "features.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    monkeypatch.setattr(lbfgs_probe, "probe_layers", lambda *arguments: [fit(*arguments), change(step=10)][0])
    options = [f"--features={folder}", f"--out={tmp_path}", "--no-raw-pixels", "--C=0.1", "--layers=0"]
    assert probe.main(options) == 1
    assert "features was written again while its probes were trained: nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "probe.json").exists() and not (tmp_path / "probe.npz").exists()
    monkeypatch.setattr(lbfgs_probe, "probe_layers", lambda *arguments: [fit(*arguments), change(counts=COUNTS | {"more": 5})][0])
    assert probe.main(options) == 0  # a split that was added changes nothing


def test_text_of_lists():
    value = {"a": [1, 2.5, None, -1e-9], "b": [[1, 2], [3, 4]], "c": ["[ 1,  2 ]", "x\n[\n1 ]"], "d": [], "e": [True, 1]}
    assert json.loads(results.dumps(value)) == value and '"a": [1, 2.5, null, -1e-09]' in results.dumps(value) and "  [3, 4]" in results.dumps(value)


@pytest.mark.slow
def test_pixels(tmp_path):
    write_folder(tmp_path / "features", {split: (features[:1], labels) for split, (features, labels) in digit_samples().items()}, list("0123456789"))
    assert probe.main([f"--features={tmp_path / 'features'}", f"--out={tmp_path}", "--C=0.01", "--layers=0"]) == 0
    images = splits.Splits(tmp_path / "features", store.read_description(tmp_path / "features"))
    stored = results.read_predictions(tmp_path)
    pixels = lbfgs_probe.read_pixels(images, "test")[0]
    np.testing.assert_array_equal(results.read_linear(tmp_path, "pixels").predict(pixels), stored.pixels)
    result = json.loads((tmp_path / "probe.json").read_text())
    assert result["raw_pixels"]["test"] == (stored.pixels == stored.labels).mean() > 0.9
    assert result["raw_pixels"]["validation"] == (lambda found: (found.pixels == found.labels).mean())(results.read_predictions(tmp_path, "validation"))
    assert np.trace(result["by_class"]["raw_pixels"]["confusion"]) == (stored.pixels == stored.labels).sum()
