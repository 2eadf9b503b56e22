"""The marks of the figures stand at their accuracies, and their bars and bands end where the intervals do."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.studies import marks


@pytest.mark.parametrize("count", [1, 24, 25, 60])
def test_few_marks_have_bars_and_many_have_a_band_and_both_end_where_the_intervals_do(count):
    axes, share = Figure().subplots(), np.linspace(0.2, 0.6, count)
    ends = np.stack([share - 0.05, share + 0.1], axis=1)
    marks.draw_curve(axes, range(count), share, ends, label="it", **marks.style_of(0))
    line = axes.get_legend_handles_labels()[0][0]
    assert bool(axes.containers) == (count <= 24)
    if count <= 24:
        bars = np.array(axes.collections[0].get_segments())
        np.testing.assert_allclose(bars[:, :, 1], 100 * ends)
        line = line.lines[0]
    else:
        band = axes.collections[0].get_paths()[0].vertices
        assert band[:, 1].min() == pytest.approx(15) and band[:, 1].max() == pytest.approx(70)
    np.testing.assert_allclose(line.get_ydata(), 100 * share)


def test_a_level_is_a_line_and_its_interval_a_band_over_the_whole_panel():
    axes = Figure().subplots()
    marks.draw_level(axes, 0.4, [0.35, 0.5], "raw pixels")
    assert axes.lines[0].get_ydata() == [40, 40] and axes.get_legend_handles_labels()[1] == ["raw pixels"]
    assert (axes.patches[0].get_y(), axes.patches[0].get_height()) == (pytest.approx(35), pytest.approx(15))


def test_curves_differ_in_colour_or_mark_and_stand_beside_each_other():
    assert len({tuple(marks.style_of(number).values()) for number in range(35)}) == 35
    for count in (1, 2, 7, 40):
        places = marks.offsets(count)
        assert len(set(places)) == count and abs(places).max() < 0.5 and places.sum() == pytest.approx(0)


def test_intervals_of_one_model_of_its_images_and_of_three_seeds():
    right = np.arange(100) < 40
    low, high = marks.interval_of([0], right[None])
    assert (low, high) == (pytest.approx(0.309, abs=1e-3), pytest.approx(0.498, abs=1e-3))  # Wilson's
    assert marks.interval_of_shares([0], [0.4], 100) == [low, high]
    two = np.stack([right, ~right])  # two models whose errors lie on different images
    assert np.ptp(marks.interval_of([0, 1], two)) < np.ptp(marks.interval_of_shares([0, 1], two.mean(axis=1), 100))
    seeds = [np.arange(100) < share for share in (20, 50, 80)]
    assert np.ptp(marks.interval_of([0, 1, 2], np.stack(seeds))) > 3 * (high - low)
    low, high = marks.interval_of_difference([0], right[None], np.roll(right, 1)[None])
    assert low < 0 < high and high - low < 0.1  # paired: the two differ on two images
    assert marks.points([0.1234, 0.5]) == "12.3 to 50.0" and marks.points([-0.01, 0.02], "+") == "-1.0 to +2.0"
