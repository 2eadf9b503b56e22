"""The sweeps' figures from made-up results: axes, curves, the best layer, and the verdict if the claim holds, fails, or cannot be judged."""

import json

import numpy as np
import pytest

from experiments.studies import accuracy_by_layer, accuracy_by_loss, low_data, resolution


def as_read(found):
    """What a sweep hands to draw: through JSON."""
    return json.loads(json.dumps(found))


def layers_row(objective, seed, peak, name="made up", pixels=None, last=8):
    heights = [0.5 - 0.01 * (layer - peak) ** 2 for layer in range(last + 1)]
    rows = [{"layer": layer, "validation": height, "test": height - 0.02 + 0.01 * seed} for layer, height in enumerate(heights)]
    probed = {"layers": rows, "best": rows[peak], "last": rows[-1], "raw_pixels": pixels and {"test": pixels}, "counts": {"train": 9}, "classes": 10}
    return {"objective": objective, "seed": seed, "model": {"layers": last, "width": 64, "step": 5}, "probes": {name: probed}}


def test_the_best_layer_is_chosen_on_validation_and_the_band_spans_the_seeds():
    rows = [layers_row("autoregressive", seed, 5, pixels=0.3 if seed == 0 else None) for seed in (0, 1, 2)] + [layers_row("bert", 0, 8)]
    rows[0]["probes"]["made up"]["layers"][7]["test"] = 0.99  # the best by test images, which must not be looked at
    found = as_read(accuracy_by_layer.summary(rows))
    one, bert = found["curves"]
    assert one["best"] == {"layer": 5, "test": pytest.approx(0.49), "inside": True} and one["seeds"] == [0, 1, 2]
    assert (one["least"][5], one["most"][5]) == (pytest.approx(0.48), pytest.approx(0.50)) and found["raw_pixels"] == {"made up": 0.3}
    assert one["lost_by_the_last_layer"]["mean"] == pytest.approx(0.09)
    assert not bert["best"]["inside"] and "8 of 8, at the end" in "\n".join(accuracy_by_layer.table(found))
    figure = accuracy_by_layer.draw(found)
    axes, paper = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert any("autoregressive, 3 seeds" in label for label in labels) and any("bert, 1 seed" in label for label in labels)
    x, y = paper.lines[0].get_data()
    assert max(x) == 8 and max(y) == 96.4 and x[np.argmax(y)] == pytest.approx(21 / 48 * 8)  # the same share of the depth


def curve(size, parameters, offset, seeds=3, start=3.0, end=2.0, noise=0.001, images=2000):
    """Accuracy rises by 20 points in a nat; `offset` higher at each loss. Which images are hard differs from size to size."""
    order = np.random.default_rng(parameters).permutation(images) / images
    runs = []
    for seed in range(seeds):
        points = [(loss + 0.01 * seed, order < 0.9 - 0.2 * loss + offset + noise * seed) for loss in np.linspace(start, end, 4)]
        runs.append([{"step": 1, "loss": loss, "best_layer": 3} | accuracy_by_loss.pack(right) for loss, right in points])
    return {"size": size, "parameters": parameters, "seeds": list(range(seeds)), "runs": runs}


def test_right_images_survive_json():
    right = np.random.default_rng(0).random(1001) < 0.3
    point = as_read(accuracy_by_loss.pack(right))
    assert (accuracy_by_loss.unpack(point) == right).all() and point["accuracy"] == right.mean()


@pytest.mark.parametrize(("offset", "verdict"), [(0.08, "confirmed"), (-0.08, "not confirmed"), (0.005, "too small to tell")])
def test_the_verdict_follows_the_gain_at_equal_loss(offset, verdict):
    found = accuracy_by_loss.verdict([curve("4x64", 1000, 0.0), curve("8x128", 8000, offset, start=2.7, end=1.7)])
    assert found["verdict"] == verdict
    pair = found["pairs"][0]
    assert pair["gain"] == pytest.approx(offset, abs=0.002) and pair["interval"][0] < pair["gain"] < pair["interval"][1]
    assert pair["losses"] == [pytest.approx(2.02), pytest.approx(2.7)]


def test_the_verdict_knows_what_it_cannot_tell():
    far = accuracy_by_loss.verdict([curve("4x64", 1, 0.0, start=3.0, end=2.5), curve("8x128", 2, 0.2, start=2.4, end=2.0)])
    assert far["verdict"] == "too small to tell" and "no loss is reached" in far["pairs"][0]["why"]
    alone = accuracy_by_loss.verdict([curve("4x64", 1, 0.0, seeds=1), curve("8x128", 2, 0.2, seeds=1)])
    assert alone["verdict"] == "too small to tell" and "one seed" in alone["pairs"][0]["why"]
    few = accuracy_by_loss.verdict([curve("4x64", 1, 0.0, images=100), curve("8x128", 2, 0.05, images=100)])
    assert few["verdict"] == "too small to tell" and few["pairs"][0]["interval"][1] > 0.1
    wild = accuracy_by_loss.verdict([curve("4x64", 1, 0.0, noise=0.1), curve("8x128", 2, 0.05)])
    assert wild["verdict"] == "too small to tell"
    assert accuracy_by_loss.verdict([curve("4x64", 1, 0.0)])["verdict"] == "too small to tell"


def test_the_same_hard_images_make_a_small_gain_certain():
    smaller, larger = curve("4x64", 1, 0.0), curve("8x128", 1, 0.02)
    assert accuracy_by_loss.verdict([smaller, larger])["verdict"] == "confirmed"
    assert accuracy_by_loss.verdict([smaller, larger | {"runs": curve("8x128", 2, 0.02)["runs"]}])["verdict"] == "too small to tell"


def test_one_pair_against_the_claim_is_enough():
    curves = [curve("2x32", 1, 0.0), curve("4x64", 2, 0.1), curve("8x128", 3, 0.0)]
    found = accuracy_by_loss.verdict(curves)
    assert [pair["verdict"] for pair in found["pairs"]] == ["confirmed", "not confirmed"] and found["verdict"] == "not confirmed"


def test_accuracy_by_loss_falls_to_the_right_and_says_the_verdict():
    rows = [
        {"size": sized["size"], "parameters": sized["parameters"], "seed": seed, "points": run}
        for sized in (curve("8x128", 8000, 0.08), curve("4x64", 1000, 0.0))
        for seed, run in enumerate(sized["runs"])
    ]
    found = as_read(accuracy_by_loss.summary(rows))
    assert [curve["size"] for curve in found["curves"]] == ["4x64", "8x128"]  # the smallest first
    axes = accuracy_by_loss.draw(found).axes[0]
    assert axes.xaxis_inverted() and "nats" in axes.get_xlabel() and "confirmed" in axes.get_title()
    assert len(axes.get_legend_handles_labels()[1]) == 2  # a line for each size
    lines = accuracy_by_loss.table(found)
    assert lines[-1] == "at equal loss the larger model probes better: confirmed" and "8x128 against 4x64: +8.0 points" in lines[-2]


def test_resolution_draws_loss_and_accuracy_against_the_resolution():
    rows = [
        {"side": size, "seed": seed, "parameters": 100, "nats_per_pixel": 3 - size / 32 + 0.02 * seed, "best": {"test": 0.2 + size / 200, "layer": 2},
         "raw_pixels": {"test": 0.25} if seed == 0 else None}
        for size in (16, 8) for seed in (0, 1)
    ]  # fmt: skip
    found = as_read(resolution.summary(rows))
    assert [row["side"] for row in found["sides"]] == [8, 16] and found["sides"][0]["raw_pixels"] == 0.25
    left, right = resolution.draw(found).axes
    assert list(right.get_xticks()) == [8, 16] and "nats" in left.get_ylabel() and "%" in right.get_ylabel()
    assert "| 8 | 64 | 2 | 2.760 +- 0.014 | 24.0 +- 0.0 | 25.0 |" in resolution.table(found)


def test_low_data_shows_every_draw_beside_the_papers_numbers():
    def row(objective, seed):
        few = [
            {"labels_per_class": size, "layer": 2, "probe": [0.1 * step + 0.01 * draw for draw in range(3)],
             "finetune": [{"accuracy": 0.1 * step + 0.02 * draw} for draw in range(3)]}
            for step, size in enumerate((4, 25), 2)
        ]  # fmt: skip
        return {"objective": objective, "seed": seed, "rows": few, "counts": {"train": 900, "validation": 100}, "all_labels": {"test": 0.5}}

    found = as_read(low_data.summary([row("autoregressive", 0), row("autoregressive", 1), row("bert", 0)]))
    assert {(curve["objective"], curve["way"]): len(curve["accuracies"]["4"]) for curve in found["curves"]} == {
        ("autoregressive", "linear probe"): 6, ("autoregressive", "fine-tuned"): 6, ("bert", "linear probe"): 3, ("bert", "fine-tuned"): 3,
    }  # fmt: skip
    assert found["all_labels"]["autoregressive"] == {"images": 1000, "accuracies": [0.5, 0.5]}
    lines = low_data.table(found)
    assert any("autoregressive | linear probe | 4 | 6 | 21.0 +- 0.9 | 73.2 +- 1.5" in line for line in lines)
    axes = low_data.draw(found).axes[0]
    assert axes.get_xscale() == "log" and list(axes.get_xticks()) == [4, 25] and len(axes.get_legend_handles_labels()[1]) == 4
