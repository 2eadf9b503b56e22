"""Accuracy by loss from made-up results: the gain at equal loss and its interval if the larger model is better, worse, or cannot be told, and the figure."""

import json

import numpy as np
import pytest

from experiments.report.measurements import from_json
from experiments.studies import accuracy_by_loss, stages


def curve(size, parameters, offset, seeds=3, start=3.0, end=2.0, noise=0.001, images=2000):
    """Accuracy rises by 20 points in a nat; `offset` higher at each loss. Which images are hard differs from size to size."""
    order = np.random.default_rng(parameters).permutation(images) / images
    runs = []
    for seed in range(seeds):
        points = [(loss + 0.01 * seed, order < 0.9 - 0.2 * loss + offset + noise * seed) for loss in np.linspace(start, end, 4)]
        layers = [{"layer": 0, "validation": 0.11, "test": 0.2}, {"layer": 3, "validation": 0.12, "test": 0.3}]
        runs.append([{"step": 1, "loss": loss, "best_layer": 3, "layers": layers} | stages.pack(right) for loss, right in points])
    return {"size": size, "parameters": parameters, "seeds": list(range(seeds)), "runs": runs}


def summary(*curves, pixels=None):
    """What a sweep hands to draw: through JSON."""
    rows = [
        {"size": curve["size"], "parameters": curve["parameters"], "seed": seed, "points": run, "raw_pixels": pixels}
        for curve in curves
        for seed, run in zip(curve["seeds"], curve["runs"], strict=True)
    ]
    return json.loads(json.dumps(accuracy_by_loss.summary(rows)))


def test_right_images_survive_json():
    right = np.random.default_rng(0).random(1001) < 0.3
    row = json.loads(json.dumps(stages.pack(right)))
    assert (stages.unpack(row) == right).all() and row["accuracy"] == right.mean()


@pytest.mark.parametrize("offset", [0.08, -0.08, 0.005])
def test_the_gain_is_at_equal_loss_and_not_at_equal_steps(offset):
    pair = accuracy_by_loss.compare(curve("4x64", 1000, 0.0), curve("8x128", 8000, offset, start=2.7, end=1.7))
    low, high = pair["interval"]
    assert pair["gain"] == pytest.approx(offset, abs=0.002) and low < pair["gain"] < high and pair["losses"] == [pytest.approx(2.02), pytest.approx(2.7)]
    assert (low > 0, high < 0) == (offset == 0.08, offset == -0.08) and pair["over"] == "test images and seeds"


def test_losses_that_only_one_size_reaches_are_not_compared():
    far = accuracy_by_loss.compare(curve("4x64", 1, 0.0, start=3.0, end=2.5), curve("8x128", 2, 0.2, start=2.4, end=2.0))
    assert far["gain"] is far["interval"] is None
    assert accuracy_by_loss.gain_text(far) == "no loss is reached by all runs of both: the nearest are 2.400 and 2.520"


def test_one_seed_says_that_the_interval_is_of_these_models_only_and_wild_seeds_widen_it():
    alone = accuracy_by_loss.compare(curve("4x64", 1, 0.0, seeds=1), curve("8x128", 2, 0.2, seeds=1))
    assert alone["over"] == "test images, of these models only" and alone["over"] in accuracy_by_loss.gain_text(alone)
    calm, wild = (accuracy_by_loss.compare(curve("4x64", 1, 0.0, noise=noise), curve("8x128", 2, 0.05)) for noise in (0.001, 0.1))
    assert calm["interval"][0] > 0 > wild["interval"][0]


def test_the_same_hard_images_make_a_small_gain_certain():
    smaller, larger = curve("4x64", 1, 0.0), curve("8x128", 1, 0.02)
    assert accuracy_by_loss.compare(smaller, larger)["interval"][0] > 0
    assert accuracy_by_loss.compare(smaller, larger | {"runs": curve("8x128", 2, 0.02)["runs"]})["interval"][0] < 0


def test_measurements_are_the_best_layer_and_the_losses_of_each_snapshot_and_every_layer_of_the_last():
    model = curve("4x64", 1000, 0.0, seeds=2, images=100)
    rows = [
        {"size": "4x64", "parameters": 1000, "seed": seed, "points": run, "counts": {"train": 90, "validation": 10}, "fingerprint": "abc",
         "at_the_end": [{"layer": layer, "validation": 0.1 * layer} | stages.pack(np.arange(100) < 10 * layer) for layer in range(4)],
         "raw_pixels": stages.pack(np.arange(100) < 38) if seed == 0 else None}
        for seed, run in enumerate(model["runs"])
    ]  # fmt: skip
    assert "measurements" not in accuracy_by_loss.summary(rows)  # as files of older versions, without the loss of each image
    for row in rows:
        row["points"] = [point | {"step": 2**number, "nats": [point["loss"]] * 100} for number, point in enumerate(row["points"])]
    measured = [from_json(one) for one in json.loads(json.dumps(accuracy_by_loss.summary(rows)))["measurements"]]
    assert len(measured) == 2 * (4 + 5 + 4) + 1 and {one.fingerprint for one in measured} == {"abc"}
    classified = [(one.factors["step"], one.factors["layer"]) for one in measured if one.seed == 1 and one.unit == "accuracy"]
    assert classified == [(1, "best"), (2, "best"), (4, "best"), (8, "best"), (8, 0), (8, 1), (8, 2), (8, 3), (8, "best interior")]
    assert [one.scores.mean() for one in measured if one.factors.get("layer") == "best interior"] == [0.2, 0.2]
    losses = [(one.factors, one.scores.mean()) for one in measured if one.unit == "nats" and one.seed == 0]
    expected = [({"size": "4x64", "step": 2**number}, pytest.approx(loss, rel=1e-5)) for number, loss in enumerate(np.linspace(3, 2, 4))]
    assert losses == expected and measured[-1].factors == {"features": "raw pixels"} and measured[-1].scores.mean() == 0.38


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_figure_of_few_and_of_many_sizes_has_intervals_validation_and_raw_pixels(count):
    pixels = {"validation": 0.4} | stages.pack(np.arange(100) < 38)
    sizes = [curve(f"{number + 1}x64", 1000 * (number + 1), 0.02 * number, seeds=1 + number % 3) for number in range(count)]
    content = summary(*reversed(sizes), pixels=pixels)
    assert [one["size"] for one in content["curves"]] == [one["size"] for one in sizes] and len(content["gains"]) == count - 1  # the smallest first
    axes = accuracy_by_loss.draw(content).axes[0]
    assert axes.xaxis_inverted() and "nats" in axes.get_xlabel() and len(axes.containers) == count
    assert len({(bar.lines[0].get_color(), bar.lines[0].get_marker()) for bar in axes.containers}) == count
    labels = axes.get_legend_handles_labels()[1]
    assert {"raw pixels of the same images", "validation images, which chose the layer"} < set(labels) and len(labels) == count + 2
    dotted = [line for line in axes.lines if len(line.get_xdata()) == 4 and line.get_ydata()[0] == pytest.approx(12)]
    assert len(dotted) == count  # validation accuracy of the chosen layer, 3, and not of layer 0
    for pair in content["gains"]:
        assert f"{pair['larger']} above {pair['smaller']}: {100 * pair['gain']:+.1f} points (95 %: " in axes.get_title()
    assert accuracy_by_loss.table(content)[-1] == "raw pixels: 38.0 % (29.1 to 47.8)"
    assert "raw pixels" not in str(accuracy_by_loss.draw(summary(*sizes)).axes[0].get_legend_handles_labels()[1])
