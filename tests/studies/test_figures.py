"""The figures of the studies of few labels from made-up results: every draw, intervals, raw pixels, and titles in numbers."""

import json

import numpy as np

from experiments.report.measurements import Measurement, to_json
from experiments.studies import draw_rows, low_data, objectives


def as_read(found):
    """What a sweep hands to draw: through JSON."""
    return json.loads(json.dumps(found))


def measured(accuracies, images=400, **factors):
    """A measurement of each draw with these accuracies."""
    budget = {"chosen_layer": 2, "C": 1.0, "validation": 0.4}
    if factors.get("way") == "fine-tuned":
        budget = {"step": 40, "steps": 80, "images_seen": 1280, "batch_size": 16, "stopped_by": "validation", "validation": 0.4, "learning_rate": 1e-3}
    if "features" in factors:
        budget = {"C": 1.0, "validation": 0.4}
    scores = [(np.arange(images) < round(share * images)).astype(float) for share in accuracies]
    return [to_json(Measurement(factors, draw, right, budget="as it was")) | budget for draw, right in enumerate(scores)]


MODEL = {"step": 100, "nats_per_pixel": 1.5, "baselines": {"per_position": 2.0}}


def test_low_data_shows_every_draw_beside_the_papers_numbers():
    def row(objective, gain):
        rows = []
        for size, share in ((4, 0.2), (25, 0.3)):
            for way, more in (("linear probe", {"layer": "best"}), ("fine-tuned", {"start": "pretrained", "loss": "joint"})):
                if (size, way) != (25, "fine-tuned"):
                    shares = [share + gain + 0.02 * draw for draw in range(3)]
                    rows += measured(shares, objective=objective, labels=size, way=way, **more)
            rows += measured([share + 0.05] * 3, labels=size, way="linear probe", features="raw pixels")
        not_run = [f"{objective}: fine-tuning with 25 labels of each class was not run"]
        return {"objective": objective, "model": MODEL, "measurements": rows, "not_run": not_run}

    found = as_read(low_data.summary([row("autoregressive", 0.0), row("bert", 0.1)]))
    pixels = [one for one in found["measurements"] if one["factors"].get("features")]
    assert len(pixels) == 6 and len(found["measurements"]) == 6 + 2 * 9  # raw pixels are stored once
    lines = low_data.table(found)
    assert any("| autoregressive, linear probe | 4 | 3 | 22.0 +- 2.0 (" in line and line.endswith("| layer 2, C 1 |") for line in lines)
    bert = next(line for line in lines if "| bert, fine-tuned, pretrained, joint | 4 | 3 |" in line)
    assert "best after 640 images of 1,280; the validation ended all 3" in bert
    assert "bert: fine-tuning with 25 labels of each class was not run" in lines
    assert "73.2 +- 1.5 % with 4" in lines[-1] and "fine-tuned with 4: 42.1 %" in lines[-1]
    figure = low_data.draw(found)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and list(axes.get_xticks()) == [4, 25] and len(axes.get_legend_handles_labels()[1]) == 5
    assert "4 labels of each class: raw pixels 25.0 %; autoregressive probe 22.0 %, fine-tuned 22.0 %; bert probe 32.0 %" in axes.get_title()
    assert len(axes.containers) == 4 and len(axes.collections) > 4  # every curve of a model has intervals, raw pixels a band


def test_objectives_are_dots_with_intervals_beside_raw_pixels():
    def row(objective, gain, **more):
        rows = measured([0.7 + gain] * 3, objective=objective, labels=200, way="linear probe", layer="best", **more)
        for start, share in (("pretrained", 0.75), ("scratch", 0.65)):
            rows += measured([share + gain] * 3, objective=objective, labels=200, way="fine-tuned", start=start, loss="joint", **more)
            if more:
                rows += measured([share + gain - 0.1] * 3, objective=objective, labels=200, way="fine-tuned", start=start, loss="joint", masks=1)
        rows += measured([0.8] * 3, labels=200, way="linear probe", features="raw pixels")
        return {"objective": objective, "model": MODEL, "measurements": rows, "not_run": []}

    found = as_read(draw_rows.summary([row("autoregressive", 0.0), row("bert", -0.05, masks=5)]))
    assert [name for name, _ in objectives.kinds(found)][1:] == ["fine-tuned,\npretrained,\njoint loss", "fine-tuned,\nscratch,\njoint loss"]
    axes = objectives.draw(found).axes[0]
    assert len(axes.containers) == 2 and not axes.patches[1:]  # dots with intervals, no bars; a band of raw pixels
    title = axes.get_title()
    assert "200 labels of each class, raw pixels 80.0 %" in title
    assert "bert: linear probe, best layer 65.0 %; fine-tuned, pretrained, joint loss 70.0 %" in title
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["70.0", "75.0", "65.0", "65.0", "70.0", "60.0"]  # of bert those by the vote of 5 masks
    assert any("| bert, fine-tuned, scratch, joint, 1 mask | 200 | 3 | 50.0" in line for line in objectives.table(found))
