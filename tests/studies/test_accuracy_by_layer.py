"""Accuracy by layer from made-up probes: the best layer is chosen on validation images, and the figure of few and of many curves shows all that it should."""

import json

import numpy as np
import pytest

from experiments.report.measurements import from_json
from experiments.studies import accuracy_by_layer, stages

IMAGES = 400


def probed(peak, layers, seed=0, height=0.5, spread=0.01, pixels=None, last_validation=None):
    """Probes whose accuracy falls by a point with each layer's distance from `peak` and rises with the seed; validation accuracy is two points above."""
    random = np.random.default_rng(seed)

    def row(share):
        return {"validation": share + 0.02} | stages.pack(random.permutation(IMAGES) < share * IMAGES)

    rows = [{"layer": layer} | row(height - 0.01 * abs(layer - peak) + spread * seed) for layer in range(layers + 1)]
    rows[-1]["validation"] = last_validation or rows[-1]["validation"]
    return {"layers": rows, "raw_pixels": pixels and row(pixels), "fingerprint": "abc"}


def found(objective="autoregressive", seed=0, names=("made up",), ways=("linear probe", "kNN"), place=None, layers=8, width=64, **options):
    options = {"peak": 5} | options
    read = {way: probed(layers=layers, seed=seed, height=0.5 if way == "linear probe" else 0.4, **options) for way in ways}
    probes = {name: {"counts": {"train": 90, "validation": 10}, "ways": read} for name in names}
    row = {"objective": objective, "seed": seed, "model": {"layers": layers, "width": width, "step": 5}, "image_size": 16, "probes": probes}
    return row | ({"checkpoint": place} if place else {"pretrained_on": "x", "checkpoint": f"models/{objective}-{seed}"})


def summary(rows):
    """What a sweep hands to draw: through JSON."""
    return json.loads(json.dumps(accuracy_by_layer.summary(rows)))


def test_the_best_layer_is_chosen_on_validation_images_alone():
    row = found(ways=("linear probe",))
    rows = row["probes"]["made up"]["ways"]["linear probe"]["layers"]
    rows[7] |= stages.pack(np.ones(IMAGES, bool))  # the best on test images
    [curve] = summary([row])["curves"]
    assert curve["best"] == {"layer": 5, "test": 0.5, "interval": curve["interval"][5], "inside": True} and curve["mean"][7] == 1
    assert curve["lost_by_the_last_layer"]["mean"] == pytest.approx(0.03)
    low, high = curve["interval"][5]
    assert low == pytest.approx(0.451, abs=0.001) and high == pytest.approx(0.549, abs=0.001)  # Wilson's, of 200 of 400
    [curve] = summary([found(ways=("linear probe",), last_validation=0.9)])["curves"]
    assert curve["best"]["layer"] == 8 and not curve["best"]["inside"]
    assert "8 of 8, at the end" in "\n".join(accuracy_by_layer.table(summary([found(ways=("linear probe",), last_validation=0.9)])))


def test_three_seeds_widen_the_interval_and_two_do_not():
    one, two, three = (summary([found(seed=seed, ways=("linear probe",), spread=0.05) for seed in range(count)])["curves"][0] for count in (1, 2, 3))
    assert [curve["seeds"] for curve in (one, two, three)] == [[0], [0, 1], [0, 1, 2]]
    width = [curve["interval"][5][1] - curve["interval"][5][0] for curve in (one, two, three)]
    assert width[1] < width[0] and width[2] > width[1]
    assert three["mean"][5] == pytest.approx(0.55, abs=0.002) and three["best_of_each_seed"] == [5, 5, 5]


def test_measurements_are_every_layer_the_best_ones_and_raw_pixels():
    rows = [found(seed=0, pixels=0.3, last_validation=0.9), found(seed=1, last_validation=0.9)]
    measured = [from_json(row) for row in summary(rows)["measurements"]]
    probes = [one for one in measured if one.factors["way"] == "linear probe" and one.seed == 1]
    assert [one.factors["layer"] for one in probes] == [*range(9), "best", "best interior"] and len(measured) == 2 * (2 * 11 + 1)
    by_layer = {one.factors["layer"]: one for one in probes}
    assert (by_layer["best"].scores == by_layer[8].scores).all() and (by_layer["best interior"].scores == by_layer[5].scores).all()
    assert by_layer[5].scores.mean() == 0.51 and by_layer[5].factors["size"] == "8x64" and by_layer[5].budget == (
        "90 labelled images; the probe's setting chosen on 10 more; whether the tested probe has these too was not stored"
    )
    assert {one.fingerprint for one in measured} == {"abc"}
    [pixels] = [one for one in measured if one.factors.get("features") == "raw pixels" and one.factors["way"] == "linear probe"]
    assert pixels.factors == {"data": "made up", "features": "raw pixels", "resolution": 16, "way": "linear probe"} and pixels.scores.mean() == 0.3


def test_checkpoints_of_one_seed_are_two_curves_and_not_two_seeds():
    curves = summary([found(place="runs/early", ways=("kNN",)), found(place="runs/late", ways=("kNN",))])["curves"]
    assert [curve["seeds"] for curve in curves] == [[0], [0]]
    assert [accuracy_by_layer.model_name(curve) for curve in curves] == ["8 layers of width 64, 5 steps (early)", "8 layers of width 64, 5 steps (late)"]


def test_one_curve_has_its_numbers_in_the_title_and_the_paper_a_panel_of_its_own():
    content = summary([found(pixels=0.3)])
    linear, neighbours, paper = accuracy_by_layer.draw(content).axes
    assert (linear.get_title(), neighbours.get_title(), paper.get_title()) == ("linear probe", "kNN", "paper, figure 2: iGPT-L on CIFAR-10")
    title = accuracy_by_layer.title(content)
    assert "linear probe: 50.0 % (45.1 to 54.9) at layer 5 of 8, 47.0 %" in title and title.endswith("raw pixels 30.0 %")
    labels = linear.get_legend_handles_labels()[1]
    assert sorted(labels) == ["made up, autoregressive, 8 layers of width 64, 5 steps, 1 seed", "raw pixels of made up at 16 x 16",
                              "validation images, which chose the layer in a ring"]  # fmt: skip
    assert len(linear.containers) == 1 and linear.get_ylim() == neighbours.get_ylim()
    x, y = paper.lines[0].get_data()
    assert max(x) == 48 and max(y) == 96.4


@pytest.mark.parametrize("layers", [3, 48])
def test_many_curves_differ_in_colour_or_mark_and_all_have_intervals_and_validation(layers):
    kinds = [(objective, width) for objective in ("autoregressive", "bert") for width in (8, 16)]
    rows = [found(objective, names=("one", "two", "three"), layers=layers, width=width, pixels=0.3, ways=("linear probe",)) for objective, width in kinds]
    content = summary(rows)
    linear = accuracy_by_layer.draw(content).axes[0]
    bars, bands = [bar.lines[0] for bar in linear.containers], [line for line in linear.lines if line.get_markevery()]
    assert (len(bars), len(bands)) == ((12, 0) if layers == 3 else (0, 12)) and len(linear.collections) == 12
    assert len({(line.get_color(), line.get_marker()) for line in (*bars, *bands)}) == 12
    assert len([line for line in linear.lines if line.get_marker() == "None" and len(line.get_xdata()) == layers + 1]) == 12  # validation
    starts = {round(float(line.get_xdata()[0]), 3) for line in (*bars, *bands)}
    assert len(starts) == 12 and max(map(abs, starts)) < 0.5  # beside each other, and nearer to their layer than to the next
    assert accuracy_by_layer.title(content).startswith("12 curves, linear probe: ")
