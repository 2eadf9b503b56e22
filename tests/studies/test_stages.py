"""What the probes of a folder predicted becomes rows of images that are right, by each way of reading the features."""

import json

import numpy as np
import pytest

from experiments.report.measurements import fingerprint_of
from experiments.studies import stages
from igpt_jax.probing.results import Predictions

TEST, VALIDATION = np.array([0, 1, 2, 0, 1]), np.array([2, 2])


def predictions(labels, layers, knn=None, pixels=None):
    made = {layer: np.array(predicted) for layer, predicted in layers.items()}
    neighbours = {layer: np.array(predicted) for layer, predicted in (knn or {}).items()}
    pixels = None if pixels is None else np.array(pixels)
    return Predictions(labels, made, pixels, neighbours, None, None, {}, [])


@pytest.fixture
def probed(monkeypatch):
    """Layers 0 and 3 by both ways, and raw pixels by linear probes alone."""
    parts = {
        "test": predictions(TEST, {0: [0, 1, 2, 1, 0], 3: [0, 0, 0, 0, 0]}, {0: [0, 1, 2, 0, 1], 3: [1, 0, 0, 1, 0]}, [2, 2, 2, 2, 2]),
        "validation": predictions(VALIDATION, {0: [0, 2], 3: [2, 2]}, {0: [1, 1], 3: [1, 2]}, [2, 0]),
    }
    monkeypatch.setattr(stages, "read_predictions", lambda place, part: parts[part])
    return stages.read_ways("anywhere")


def test_rows_hold_validation_accuracy_and_the_test_images_that_are_right(probed):
    assert list(probed) == ["linear probe", "kNN"]
    first, last = json.loads(json.dumps(probed["linear probe"]["layers"]))
    assert (first["layer"], first["validation"], first["accuracy"], first["images"]) == (0, 0.5, 0.6, 5)
    assert (last["layer"], last["validation"], last["accuracy"]) == (3, 1.0, 0.4)
    assert stages.unpack(first).tolist() == [True, True, True, False, False] and stages.unpack(last).tolist() == [True, False, False, True, False]
    assert [(row["layer"], row["validation"], row["accuracy"]) for row in probed["kNN"]["layers"]] == [(0, 0.0, 1.0), (3, 0.5, 0.0)]
    pixels = probed["linear probe"]["raw_pixels"]
    assert (pixels["validation"], pixels["accuracy"]) == (0.5, 0.2) and probed["kNN"]["raw_pixels"] is None
    assert {way["fingerprint"] for way in probed.values()} == {fingerprint_of(TEST)}


def test_the_best_layer_is_the_first_of_the_best_on_validation_images(probed):
    rows = probed["linear probe"]["layers"]
    assert stages.best_row(rows)["layer"] == 3 and stages.best_row([rows[0], rows[0] | {"layer": 9}])["layer"] == 0
    assert {level: row["layer"] for level, row in stages.levels(rows).items()} == {0: 0, 3: 3, "best": 3}
    more = [*rows, rows[0] | {"layer": 5}, rows[1] | {"layer": 7}]
    assert {level: row["layer"] for level, row in stages.levels(more).items()} == {0: 0, 3: 3, 5: 5, 7: 7, "best": 3, "best interior": 3}
    more[1] = more[1] | {"validation": 0.1}
    assert stages.levels(more)["best interior"]["layer"] == 5 and stages.levels(more)["best"]["layer"] == 7


def test_probes_without_nearest_neighbours_have_one_way(monkeypatch):
    monkeypatch.setattr(stages, "read_predictions", lambda place, part: predictions(TEST, {0: TEST}))
    assert list(stages.read_ways("anywhere")) == ["linear probe"]
