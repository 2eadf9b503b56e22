"""Resolutions from made-up results: what is stored of each model, and the figure of few and of many resolutions."""

import json

import numpy as np
import pytest

from experiments.report.measurements import from_json
from experiments.studies import marks, resolution, stages

IMAGES = 200


def former(side, seed):
    """A row as older versions wrote it, without the predictions of each image."""
    best = {"layer": 2, "test": 0.2 + side / 200, "validation": 0.25 + side / 200}
    found = {"side": side, "seed": seed, "parameters": 100, "nats_per_pixel": 3 - side / 32 + 0.02 * seed, "test_images": IMAGES}
    return found | {"best": best, "raw_pixels": {"test": 0.25} if seed == 0 else None}


def row(side, seed):
    random = np.random.default_rng([side, seed])

    def found(share):
        return {"validation": share} | stages.pack(random.permutation(IMAGES) < share * IMAGES)

    layers = [{"layer": layer} | found(share) for layer, share in enumerate((0.3, 0.2 + side / 200, 0.4, 0.2 + side / 100))]
    way = {"layers": layers, "raw_pixels": found(0.25) if seed == 0 else None, "fingerprint": "abc"}
    return former(side, seed) | {"counts": {"train": 90, "validation": 10, "test": IMAGES}, "ways": {"linear probe": way, "kNN": way}}


def summary(rows):
    """What a sweep hands to draw: through JSON."""
    return json.loads(json.dumps(resolution.summary(rows)))


def test_each_model_is_measured_at_every_layer_and_the_raw_pixels_once():
    measured = [from_json(one) for one in summary([row(side, seed) for side in (20, 32) for seed in (0, 1)])["measurements"]]
    assert len(measured) == 2 * (4 * 6 + 2)
    probes = {one.factors["layer"]: one for one in measured if (one.factors["resolution"], one.factors["way"], one.seed) == (32, "kNN", 1)}
    assert list(probes) == [0, 1, 2, 3, "best", "best interior"] and probes["best"].scores.mean() == 0.52
    assert (probes["best"].scores == probes[3].scores).all() and (probes["best interior"].scores == probes[2].scores).all()
    assert {one.fingerprint for one in measured} == {"abc"}
    told = {(one.factors["way"], one.factors.get("layer", "raw")): one.budget for one in measured}
    end = "chosen on 10 more; whether the tested probe has these too was not stored"
    assert told["kNN", "raw"] == told["kNN", 1] == f"90 labelled images; k {end}"
    assert told["linear probe", "raw"] == told["linear probe", 1] == f"90 labelled images; the probe's setting {end}"
    assert told["linear probe", "best"] == f"90 labelled images; the probe's setting and the best layer {end}"


def test_rows_of_older_versions_have_intervals_of_their_accuracies_and_no_measurements():
    found = summary([former(side, seed) for side in (16, 8) for seed in (0, 1)])
    assert [one["side"] for one in found["sides"]] == [8, 16] and "measurements" not in found
    low, high = found["sides"][0]["interval"]
    assert low < 0.24 < high and high - low == pytest.approx(0.12, abs=0.005)  # of 200 images, whatever the number of models
    [with_bits] = summary([row(8, seed) for seed in (0, 1)])["sides"]
    alone = marks.interval_of_shares([0, 1], with_bits["accuracy"], IMAGES)
    assert np.ptp(with_bits["interval"]) < 0.9 * np.ptp(alone)  # two models whose errors are on different images tell more than one
    assert found["sides"][0]["raw_pixels"] == 0.25 and "| 8 | 64 | 2 | 2.760 +- 0.014 | 24.0 +- 0.0 | 25.0 |" in resolution.table(found)


@pytest.mark.parametrize("sides", [(8,), (8, 16), tuple(range(4, 40, 4))])
@pytest.mark.parametrize("make", [former, row])
def test_the_figure_of_few_and_of_many_resolutions_has_every_seed_intervals_validation_and_raw_pixels(sides, make):
    found = summary([make(side, seed) for side in sides for seed in (0, 1)])
    left, right = resolution.draw(found).axes
    assert list(right.get_xticks()) == list(sides) and "nats" in left.get_ylabel() and "%" in right.get_ylabel()
    assert right.get_legend_handles_labels()[1] == ["each seed", "validation images, which chose the layer", "mean of the seeds, test images", "raw pixels"]
    assert len(right.containers) == 2 and all(len(bar.lines[0].get_xdata()) == len(sides) for bar in right.containers)
    dashes = [line for line in right.lines if line.get_marker() == "_" and len(line.get_xdata()) == 2 and line.get_label() != "_nolegend_"]
    assert sum(line.get_color() == "black" for line in dashes) == len(sides)
    shown = f"{20 + sides[0] / 2:.1f}"
    assert right.get_title().startswith(f"linear probe at the best layer: {shown}") and (" to " in right.get_title()) == (len(sides) > 4)
