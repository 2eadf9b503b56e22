"""What a study measured, image by image: the form in which every study stores its results, so that every comparison can be judged the same way.

A measurement is one classifier (or one model's loss) on the test images of its study. `factors` says what it is: {"objective": "bert", "way": "linear probe",
"labels": 25}; experiments/report/sentences.py lists the factors and their levels. Measurements that differ in the level of exactly one factor are compared by
the rule of experiments/report/claims.py, image by image if they are of the same test images in the same order. A study stores the list under the key
`measurements` of its JSON file.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from igpt_jax.files import one_line

Factors: TypeAlias = dict[str, str | int]
UNITS = ("accuracy", "nats")  # higher is better | per pixel, lower is better


class Measurement(NamedTuple):
    """One classifier, or one model's loss, on B test images."""

    factors: Factors  # name of the factor -> level
    seed: int  # of the pretraining, or of the draw of labels; measurements with equal seeds share it
    scores: np.ndarray  # [B]: 1.0 where the classifier is right, or nats per pixel of each image
    unit: str = "accuracy"  # one of UNITS
    budget: str = ""  # what it was trained on and how its settings were chosen, one sentence
    fingerprint: str = ""  # `fingerprint_of` the test images in this order, "" if it is not known


def budget_of_probe(counts: Mapping[str, int], chosen: str) -> str:
    """Return what a probe saw, as text: numbers of images `train`, `validation`, and `refit`, of the tested fit, if it is known; `chosen` on the second."""
    refit = counts.get("refit")
    tested = f"the tested probe has all {refit:,}" if refit else "whether the tested probe has these too was not stored"
    return f"{counts['train']:,} labelled images; {chosen} chosen on {counts['validation']:,} more; {tested}"


def fingerprint_of(labels_B: np.ndarray, images: str = "") -> str:
    """Return what tells one order of test images from another: a checksum of their labels, integers [B], and of what names the `images`, see `with_images`."""
    return with_images(hashlib.sha256(np.asarray(labels_B).astype("<i8").tobytes()).hexdigest()[:16], images)


def with_images(fingerprint: str, images: str) -> str:
    """Return the fingerprint of labels with a checksum of the text that names their images (experiments/studies/origin.py), if there is one.

    Sets of images with the same labels, for example sorted by class, differ in it alone. Files of older versions lack it: their fingerprints have no hyphen.
    """
    return f"{fingerprint}-{hashlib.sha256(images.encode()).hexdigest()[:16]}" if images else fingerprint


def are_same(fingerprints: Iterable[str]) -> bool:
    """Whether fingerprints may be of the same images in the same order, as far as each of them knows; "" knows nothing."""
    parts = [one.partition("-") for one in fingerprints if one]
    return all(len({part[place] for part in parts} - {""}) <= 1 for place in (0, 2))


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """Return the contents of a file of results; ValueError, which names it, if it is cut off or otherwise damaged."""
    try:
        contents = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}): restore it, or run its study again") from None
    if not isinstance(contents, dict):
        raise ValueError(f"{path} is damaged (it holds no object of JSON): restore it, or run its study again")
    return contents


def to_bits(right_B: np.ndarray) -> str:
    """Return which images are right, bool or 0 and 1 [B], as bits in hex."""
    return np.packbits(right_B.astype(bool)).tobytes().hex()


def from_bits(text: str, images: int) -> np.ndarray:
    """Return what `to_bits` made of so many images, float [B]; ValueError if the text is of another number."""
    packed, size = np.frombuffer(bytes.fromhex(text), np.uint8), math.ceil(images / 8)
    if len(packed) != size or np.unpackbits(packed)[images:].any():
        raise ValueError(f"the scores of {images} images must be {size} bytes in hex with zeros after the last image, here {len(packed)} bytes")
    return np.unpackbits(packed, count=images).astype(float)


def to_json(measurement: Measurement) -> dict[str, Any]:
    """Return the measurement for JSON. Accuracies become bits in hex, losses numbers of six digits."""
    _check_unit(measurement.unit)
    scores = measurement.scores
    if measurement.unit == "accuracy":
        if not np.isin(scores, (0, 1)).all():
            raise ValueError(f"scores of accuracy are 0 or 1 for each image, here from {scores.min():g} to {scores.max():g}")
        stored: Any = to_bits(scores)
    else:
        stored = [float(f"{score:.6g}") for score in scores]
    return measurement._asdict() | {"images": len(scores), "mean": float(np.mean(scores)), "scores": stored}


def from_json(row: dict[str, Any]) -> Measurement:
    """Return what `to_json` stored; ValueError, which begins with its factors, if the scores are not of so many images or do not have the stored mean."""
    what = ", ".join(f"{name} {level}" for name, level in row["factors"].items())
    try:
        _check_unit(row["unit"])
        scores = np.asarray(from_bits(row["scores"], row["images"]) if row["unit"] == "accuracy" else row["scores"], float)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    check_scores(what, scores, row["images"], row["mean"])
    return Measurement(row["factors"], row["seed"], scores, row["unit"], row["budget"], row.get("fingerprint", ""))


def _check_unit(unit):
    if unit not in UNITS:
        raise ValueError(f"scores of the unit {unit!r} cannot be compared, the units are {' and '.join(UNITS)}")


def check_scores(what: str, scores: np.ndarray, images: int, mean: float) -> None:
    """ValueError, which begins with `what`, if scores are not those of so many images with this mean; scores of losses are stored with six digits."""
    if scores.shape != (images,):
        raise ValueError(f"{what}: there are scores of {len(scores)} images, and {images} are said: run the study again")
    if not np.isclose(scores.mean(), mean, rtol=6e-6, atol=1e-9, equal_nan=True):
        raise ValueError(f"{what}: the scores have the mean {scores.mean():.7g}, and {mean:.7g} is said: run the study again")
