"""The course of a run from metrics made up, and its figure."""

import json

import numpy as np
import pytest

from experiments.report import training_curve
from experiments.report.training_curve import Evaluated
from igpt_jax.reporting import course as course_of


def line(step, time, **values):
    return {"step": step, "time": time} | {f"train/{name}": value for name, value in values.items()}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return course_of.read_lines(path)


def test_steps_that_were_done_again_replace_their_lines_and_a_validation_joins_its_step(tmp_path):
    lines = [line(10, 1, loss=3), line(20, 2, loss=2.5), line(30, 3, loss=9), line(20, 9, loss=2), {"step": 20, "time": 9, "validation/nats_per_pixel": 1.5}]
    kept = write(tmp_path / "metrics.jsonl", lines)
    assert [(one["step"], one["train/loss"]) for one in kept] == [(10, 3), (20, 2)] and kept[1]["validation/nats_per_pixel"] == 1.5


def test_hours_are_those_of_the_steps_and_a_stop_is_a_pause():
    """200 steps of 8 images at 4 images a second are 400 s; the stop of an hour between them is none of the work."""
    lines = [line(100, 200, images_per_second=4.0), line(200, 4000, images_per_second=4.0)]
    found = course_of.course(lines, 8, 500)
    assert found == {"steps": 200, "batch_size": 8, "training_images": 500, "images_seen": 1600, "epochs": 3.2,
                     "hours": 0.1111, "elapsed_hours": 1.06, "pauses": 1}  # fmt: skip
    assert course_of.course([lines[0], line(200, 400, images_per_second=4.0)], 8, 500)["pauses"] == 0
    assert course_of.course([lines[0], line(200, 1300, images_per_second=0.8)], 8, 500)["pauses"] == 0  # slow, and not stopped
    assert course_of.course([line(1, 0)], 8, 500)["hours"] == 0  # a run that ended before its first report


def test_the_mean_of_neighbours_is_not_pulled_to_zero_at_the_ends():
    assert course_of.smoothed(np.full(9, 2.0), 4) == pytest.approx(2.0)
    assert course_of.smoothed(np.arange(5.0), 3)[2] == 2 and course_of.smoothed(np.array([3.0]), 7) == pytest.approx(3.0)


BASELINES = {"unigram": 5.0, "per_position": 4.5}


@pytest.mark.parametrize("count", [1, 2, 300])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_figure_has_the_run_beside_the_baselines_and_its_end_alone(count, schedule):
    x = np.arange(1, count + 1) / count
    rates = np.cos(x) if schedule == "cosine" else np.minimum(1, (1.001 - x) / 0.2)
    lines = [line(10 * (number + 1), number, nats_per_pixel=3 - x[number], learning_rate=rates[number], images_per_second=5.0) for number in range(count)]
    lines[-1]["validation/nats_per_pixel"] = 2.1
    course = course_of.course(lines, 32, 45_000)
    tested = [Evaluated(8 * count, 2.2, [2.19, 2.21], 10_000, "before"), Evaluated(10 * count, 2.0, None, 10_000, "at the end")]
    whole, end = training_curve.draw(lines, course, BASELINES, tested, "a model").axes
    labels = whole.get_legend_handles_labels()[1]
    assert {"unigram baseline, test: 5.000", "per-position baseline, test: 4.500", "test images, before", "test images, at the end"} < set(labels)
    assert ("the learning rate falls" in labels) == (schedule == "wsd" and count == 300)
    assert whole.get_ylim()[1] > 5 > 3 > end.get_ylim()[1] and len(whole.containers) == 2  # the baselines are in the first panel alone
    last = course["images_seen"] / 1e3
    assert end.get_xlim()[0] == pytest.approx(0.6 * last) and end.get_xlim()[1] > last
    title = training_curve.title(course, BASELINES, tested, "a model")
    assert title.endswith("nats per pixel on 10,000 test images: per-position baseline 4.500, 2.200 (2.190 to 2.210) before, 2.000 at the end")


@pytest.mark.parametrize(("hours", "shown"), [(0.0001, "0 s"), (0.06, "3.6 min"), (1.4, "84.0 min"), (9.63, "9.6 h")])
def test_the_title_has_the_name_of_the_better_baseline_and_a_time_in_fitting_units(hours, shown):
    course = {"images_seen": 25_600, "epochs": 19.784, "hours": hours}
    for baselines, name in (({"unigram": 2.0, "per_position": 1.5}, "per-position"), ({"unigram": 1.5, "per_position": 2.0}, "unigram")):
        title = training_curve.title(course, baselines, [Evaluated(400, 1.3, None, 359, "at the end")], "a model")
        assert f"19.78 epochs, {shown} of steps\n" in title and f"359 test images: {name} baseline 1.500, 1.300 at the end" in title
