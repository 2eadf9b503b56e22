"""The classifiers of a study: its measurements with all seeds of the same factors together."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.report import intervals, sentences
from experiments.report.measurements import Measurement, are_same
from experiments.report.sentences import FACTORS, RAW, Level


class Seeds(NamedTuple):
    """What differs between the seeds of a study."""

    of: str
    shared: bool = False  # whether all classifiers with as many labels share what a seed decides, or only those that are of one pretraining


PRETRAINING = Seeds("pretrainings")
SEEDS = {  # study -> its seeds
    "digits": PRETRAINING,
    "cifar10_16": PRETRAINING,
    "fashion_mnist_small": PRETRAINING,
    "accuracy_by_layer": PRETRAINING,
    "accuracy_by_loss": PRETRAINING,
    "resolution": PRETRAINING,
    "objectives": Seeds("draws of the labels", shared=True),
    "low_data": Seeds("draws of the labels", shared=True),
}


class Classifier(NamedTuple):
    """All models of a study that have the same factors."""

    factors: dict[str, Level]  # with the usual levels of those that are not named
    sample: intervals.Sample
    budget: str = ""
    number: int | None = None  # of the layer that a "best" one is, if it is the same for all seeds and known
    noun: str = "models"  # what its seeds are: models | draws | trainings from scratch | probes


def make(study: str, factors: dict[str, Level], sample: intervals.Sample, budget: str = "", number: int | None = None) -> Classifier:
    """Return a classifier with its usual levels and its origin; ValueError if the study, a factor or a level stands in no table."""
    sentences.check(study, factors)
    factors = sentences.usual(factors)
    retrained = [name for name, factor in FACTORS.items() if factor.retrained]
    shared = seeds_of(study).shared
    names = ["labels"] if shared else retrained
    origin = tuple((name, factors[name]) for name in names if name in factors)
    return Classifier(factors, sample._replace(origin=origin), budget, number, _noun(factors, shared))


def _noun(factors, shared):
    """What the seeds of a classifier are: raw pixels have no model, and a training from scratch has no pretrained one."""
    if factors["features"] == RAW:
        return "draws" if shared else "probes"
    if factors["start"] == "scratch":
        return "trainings from scratch"
    return "draws" if shared else "models"


def seeds_of(study: str) -> Seeds:
    """Return what differs between the seeds of a study; ValueError if it stands in no table."""
    if study not in SEEDS:
        raise ValueError(f"{study} has measurements, and SEEDS of experiments/report/classifiers.py lacks it: say there what its seeds are")
    return SEEDS[study]


def group(study: str, measurements: Iterable[Measurement]) -> list[Classifier]:
    """Return the classifiers of a study; ValueError if the seeds of one of them do not belong together."""
    groups: dict[tuple, list[Measurement]] = {}
    for measurement in measurements:
        sentences.check(study, measurement.factors)
        key = measurement.unit, tuple(sorted(sentences.usual(measurement.factors).items()))
        groups.setdefault(key, []).append(measurement)
    return [_classifier(study, rows) for rows in groups.values()]


def _classifier(study, rows):
    """The classifier of measurements that have the same factors."""
    factors, rows = rows[0].factors, sorted(rows, key=lambda row: row.seed)
    name = f"{study}, {describe(factors)}"
    seeds, images = tuple(row.seed for row in rows), {len(row.scores) for row in rows}
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{name}: two measurements have the same seed, {', '.join(map(str, seeds))}")
    fingerprints = {row.fingerprint for row in rows}
    if len(images) > 1 or not are_same(fingerprints):
        raise ValueError(f"{name}: the seeds are of other test images, {', '.join(str(len(row.scores)) + ' ' + row.fingerprint for row in rows)}")
    scores_RB = np.stack([np.asarray(row.scores, float) for row in rows])
    if not np.isfinite(scores_RB).all():
        raise ValueError(f"{name}: {(~np.isfinite(scores_RB)).sum()} of {scores_RB.size} scores are not numbers")
    sample = intervals.Sample(seeds, scores_RB.mean(axis=1), *images, scores_RB, rows[0].unit, min(fingerprints, key=len))
    return make(study, factors, sample, "; ".join(dict.fromkeys(row.budget for row in rows if row.budget)))


def differing(one: Classifier, other: Classifier) -> str | None:
    """Return the one factor in which two classifiers differ, None if it is not one; a factor may be missing where a level of that one lacks it."""
    names = [name for name in one.factors.keys() & other.factors.keys() if one.factors[name] != other.factors[name]]
    missing = one.factors.keys() ^ other.factors.keys()
    if one.sample.unit != other.sample.unit or len(names) != 1 or any(names[0] not in FACTORS[name].within for name in missing):
        return None
    return names[0]


def numbered(found: Sequence[Classifier]) -> list[Classifier]:
    """Return the classifiers with `number` set where the best layer, or the best interior one, is right on the same images as one of the numbered layers."""
    places: dict[tuple, list[Classifier]] = {}
    for one in found:
        if isinstance(one.factors.get("layer"), int) and one.sample.scores is not None:
            places.setdefault(_without_layer(one), []).append(one)

    def number(one: Classifier) -> int | None:
        same = [other for other in places.get(_without_layer(one), ()) if _have_equal_scores(one, other)]
        return int(same[0].factors["layer"]) if same else None

    named = [one.number is None and isinstance(one.factors.get("layer"), str) and one.sample.scores is not None for one in found]
    return [one._replace(number=number(one)) if is_named else one for one, is_named in zip(found, named, strict=True)]


def _without_layer(one):
    return one.sample.unit, tuple(sorted((name, level) for name, level in one.factors.items() if name != "layer"))


def _have_equal_scores(one, other):
    return one.sample.seeds == other.sample.seeds and np.array_equal(one.sample.scores, other.sample.scores)


def identity(one: Classifier) -> tuple:
    """Return what tells a classifier from others, for a set; the best layer and its number are one classifier."""
    layer = {"layer": one.number} if one.number is not None else {}
    return one.sample.unit, tuple(sorted((one.factors | layer).items()))


def describe(factors: dict[str, Level]) -> str:
    """Return factors as text, without the usual levels."""
    return ", ".join(f"{name} {level}" for name, level in factors.items() if level != FACTORS[name].usual) if factors else "no factors"
