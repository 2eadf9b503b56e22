"""What a difference of accuracies says of a finding, and what it is read from."""

import json

import pytest

from experiments import findings, readme


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.0201, "confirmed"), (0.02, "too small to tell"), (-0.02, "too small to tell"), (-0.0201, "not confirmed")]
)
def test_two_standard_errors_decide(difference, verdict):
    assert findings.judge(difference, 0.01) == verdict


def test_more_images_tell_a_smaller_difference():
    assert findings._compared(0.52, 0.5, 100) == ("too small to tell", "+2.0 +- 7.1 points")
    assert findings._compared(0.52, 0.5, 10_000) == ("confirmed", "+2.0 +- 0.7 points")


def test_a_best_layer_at_an_end_confirms_nothing(tmp_path):
    found = json.loads((readme.RESULTS / "accuracy_by_layer.json").read_text())
    curve = found["curves"][0]
    for layer, inside, verdict in ((3, True, "confirmed"), (0, False, "not confirmed")):
        curve["best"] = {"layer": layer, "test": curve["mean"][-1] + 0.05, "inside": inside}
        (tmp_path / "accuracy_by_layer.json").write_text(json.dumps(found))
        [row] = [line for line in findings.block(tmp_path).splitlines() if "figure 2" in line]
        assert f"| {verdict} |" in row and f"layer {layer} of 8" in row and "+5.0 +- " in row


def test_studies_that_were_not_run_have_no_row(tmp_path):
    assert findings.block(tmp_path).count("|---") == 3 and "points," not in findings.block(tmp_path)
