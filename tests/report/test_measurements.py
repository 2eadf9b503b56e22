"""Scores that are cut off, or do not fit what their file says of them, are refused: they would be judged as other scores."""

import json

import numpy as np
import pytest

from experiments.report.measurements import Measurement, are_same, fingerprint_of, from_bits, from_json, to_bits, to_json, with_images
from experiments.studies import stages

LABELS = np.arange(203) // 21  # sorted by class


def stored(unit="accuracy", images=203):
    random = np.random.default_rng(0)
    scores = (random.random(images) < 0.6).astype(float) if unit == "accuracy" else 1e-6 + random.random(images)
    return json.loads(json.dumps(to_json(Measurement({"layer": 3, "objective": "bert"}, 0, scores, unit))))


@pytest.mark.parametrize("images", [1, 7, 8, 9, 203])
def test_bits_of_another_number_of_images_are_refused(images):
    right = np.ones(images, bool)
    text = to_bits(right)
    assert (from_bits(text, images) == right).all()
    for other, count in ((text[:-2], images), (text + "00", images), (text, images + 8), (text, images - 1)):
        with pytest.raises(ValueError, match=f"the scores of {count} images must be {len(range(0, count, 8))} bytes in hex .*, here {len(other) // 2} bytes"):
            from_bits(other, count)


@pytest.mark.parametrize("unit", ["accuracy", "nats"])
def test_scores_that_are_cut_off_or_changed_are_refused_and_named(unit):
    row = stored(unit)
    assert from_json(row).scores.mean() == pytest.approx(row["mean"], rel=1e-6)
    changed = [{"scores": row["scores"][: len(row["scores"]) // 2]}, *({"images": images} for images in (202, 204, 8 * 203)), {"mean": row["mean"] + 1 / 203}]
    if unit == "accuracy":  # the same losses in another order have the same mean
        changed.append({"scores": row["scores"][2:] + row["scores"][:2]})
    for changes in changed:
        with pytest.raises(ValueError, match="^layer 3, objective bert: "):
            from_json(row | changes)


def test_the_mean_of_few_losses_is_compared_to_the_digits_that_are_stored():
    for value in (1.0000049, 0.00012345678, 9.9999951):
        assert from_json(json.loads(json.dumps(to_json(Measurement({}, 0, np.array([value]), "nats"))))).scores[0] == pytest.approx(value, rel=6e-6)


@pytest.mark.parametrize("unit", ["Accuracy", "acc", "bits", ""])
def test_a_unit_that_has_no_direction_is_refused(unit):
    """It would count as a loss, of which lower is better."""
    with pytest.raises(ValueError, match=f"^scores of the unit '{unit}' cannot be compared, the units are accuracy and nats"):
        to_json(Measurement({}, 0, np.ones(3), unit))
    with pytest.raises(ValueError, match=f"^layer 3, objective bert: scores of the unit '{unit}' cannot"):
        from_json(stored("nats") | {"unit": unit})


def test_rows_of_jobs_are_checked_too():
    row = stages.pack(np.arange(20) < 5)
    assert stages.unpack(row).sum() == 5
    for changes in ({"right": row["right"][:-2]}, {"images": 21}, {"accuracy": 0.3}, {"right": "ff" + row["right"][2:]}):
        with pytest.raises(ValueError, match="images"):
            stages.unpack(row | changes)


def test_a_fingerprint_tells_images_of_the_same_labels_apart():
    labels, one, other = (fingerprint_of(LABELS, images) for images in ("", "1", "2"))
    assert len({labels, one, other}) == 3 and one[:16] == other[:16] == labels and len(one) == 33 and with_images(labels, "1") == one


@pytest.mark.parametrize(
    ("fingerprints", "same"),
    [
        ((), True), (("", ""), True), (("a", "a"), True), (("a", "b"), False), (("a", "", "a"), True), (("a", "", "b"), False),
        (("a-1", "a-1"), True), (("a-1", "a-2"), False), (("a-1", "b-1"), False), (("a-1", "a"), True), (("a-1", "b"), False),
        (("a-1", "a", "a-2"), False), (("a-1", "", "a-1"), True),
    ],
)  # fmt: skip
def test_images_are_the_same_as_far_as_each_fingerprint_knows(fingerprints, same):
    """Labels a or b, and images 1 or 2 where they are known, as the files of today have them."""
    assert are_same(iter(fingerprints)) == same
