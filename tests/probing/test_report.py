"""What the program prints and draws about probe.json."""

import io

import pytest
from matplotlib.figure import Figure

from igpt_jax.probing import figure, report


def result(test=True, images=True, neighbours=True, pixels=True):
    """The content of a small probe.json; without `images` and `neighbours` an older one."""

    def row(layer, validation, share):
        row = {"layer": layer, "C": 0.1, "converged": True, "train": 0.9, "validation": validation, "test": share if test else None}
        row |= {"interval": [share - 0.01, share + 0.02] if test else None} if images else {}
        return row | (
            {"knn": {"k": 20, "validation": validation - 0.1, "test": share - 0.1 if test else None, "interval": row.get("interval")}} if neighbours else {}
        )

    rows = [row(0, 0.5, 0.4), row(1, 0.75, 0.72), row(2, 0.7, 0.71)]
    found = {"layers": rows, "best": rows[1], "last": rows[2], "raw_pixels": row(9, 0.6, 0.61) if pixels else None, "C_values": [0.01, 0.1, 1]}
    found |= {
        "model": {"layers": 2, "width": 8, "parameters": 1500},
        "data": {"source": "digits"},
        "counts": {},
        "C_chosen_on": "x",
        "seconds": 1,
        "device": "cpu",
    }
    return found | ({"images": {"train": 900, "validation": 100, "test": 400}} if images else {}) | {"knn": {} if not neighbours else {"k_values": [10, 20]}}


def drawn(monkeypatch, content):
    """(figure, bytes of the PNG)."""
    kept, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: kept.append(self) or save(self, *arguments, **options))
    file = io.BytesIO()
    figure.draw(content, file)
    return kept[0], file.getvalue()


def test_the_figure_shows_intervals_of_every_accuracy(monkeypatch):
    shown, picture = drawn(monkeypatch, result())
    axes = shown.axes[0]
    assert picture[:4] == b"\x89PNG" and len(axes.containers) == 3  # validation, test, neighbours
    for container, images, level in zip(axes.containers, (100, 400, 400), (75, 72, 62), strict=True):
        low, high = container.lines[2][0].get_segments()[1][:, 1]  # of layer 1
        assert low < level < high and (high - low) == pytest.approx(200 * 1.96 * (level / 100 * (1 - level / 100) / images) ** 0.5, rel=0.05)
    texts = [text.get_text() for text in shown.legends[0].get_texts()]
    assert "raw pixels: 61.0 % (56.1 to 65.7)" in texts and "raw pixels, nearest neighbours: 51.0 % (46.1 to 55.9)" in texts
    assert axes.get_title().splitlines()[0] == "layer 1: 72.0 % (67.4 to 76.2); last layer: 71.0 %; raw pixels: 61.0 %"


def test_older_results_and_those_without_a_test_split_are_drawn(monkeypatch):
    shown, _ = drawn(monkeypatch, result(images=False, neighbours=False))
    assert len(shown.axes[0].containers) == 2 and not shown.axes[0].containers[0].has_yerr
    shown, _ = drawn(monkeypatch, result(test=False, pixels=False))
    assert [container.get_label() for container in shown.axes[0].containers] == ["validation, which chooses", "validation, nearest neighbours"]
    assert shown.axes[0].get_title().startswith("layer 1: 75.0 % (")


def test_the_table_shows_intervals():
    lines = list(report.report_lines(result(), "runs/x"))
    head = "layer       C   train  validation    test  95 % interval | neighbours: k  validation    test  95 % interval"
    assert lines[0] == head and all(len(line) == len(head) for line in lines[:4])
    assert lines[2].split() == "1 0.1 90.00% 75.00% 72.00% 71.0 to 74.0 | 20 65.00% 62.00% 71.0 to 74.0".split()
    assert "best layer by validation: 1, test 72.00% (71.0 to 74.0); layer 2: 71.00% (70.0 to 73.0)" in lines
    assert "best layer by validation with nearest neighbours: 1, test 62.00% (71.0 to 74.0)" in lines
    without = list(report.report_lines(result(test=False, neighbours=False), "runs/x"))
    assert without[1].split() == "0 0.1 90.00% 50.00% - -".split() and "best layer by validation: 1, test -; layer 2: -" in without
