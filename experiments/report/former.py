"""Classifiers of files without measurements of accuracies, which older versions of the studies wrote. Bits were stored by accuracy_by_loss alone.

A function of FORMER is no longer called once the file of its study holds `measurements` of accuracies, and can be deleted then. REST has what a file with
measurements holds beside them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from experiments.report import classifiers
from experiments.report.classifiers import Classifier
from experiments.report.intervals import Sample
from experiments.report.measurements import budget_of_probe, from_bits
from experiments.report.sentences import BEST, INTERIOR, Level, middle_of

Runs = dict[int, float]  # seed -> accuracy


def classifiers_of(study: str, contents: dict[str, Any]) -> list[Classifier]:
    """Return the classifiers of a study's file; ValueError if this file holds none."""
    if study not in FORMER:
        raise ValueError(f"{study}.json has no measurements: run {contents.get('command', 'its study')} again")
    return list(FORMER[study](partial(classifiers.make, study), contents))


def rest_of(study: str, contents: dict[str, Any]) -> list[Classifier]:
    """Return the classifiers that a file with measurements holds beside them, as accuracies alone."""
    return list(REST[study](partial(classifiers.make, study), contents)) if study in REST else []


def sample(runs: Runs, images: int) -> Sample:
    """Return the sample of accuracies on so many test images, rounded to whole images."""
    return Sample(tuple(sorted(runs)), np.array([round(runs[seed] * images) / images for seed in sorted(runs)]), images, None)


def layers(
    make: Callable, factors: dict[str, Level], probes: dict[int, list[dict]], images: int, seen: str, masks: str = "", setting: str = "C"
) -> Iterator[Classifier]:
    """Yield every layer, the best one by validation accuracy, and the best interior one.

    `probes` holds the rows of each seed; `seen` says what a probe is fitted and chosen on; `masks` ends the keys of the accuracies; `setting` is chosen.
    """
    test, validation = f"test{masks}", f"validation{masks}"
    numbers = [row["layer"] for row in next(iter(probes.values()))]
    for place, number in enumerate(numbers):
        yield make(factors | {"layer": number}, sample({seed: rows[place][test] for seed, rows in probes.items()}, images), seen.format(chosen=setting))
    for name, choice in ((BEST, slice(None)), (INTERIOR, slice(1, -1))):
        if len(numbers[choice]):
            best = {seed: max(rows[choice], key=lambda row: row[validation]) for seed, rows in probes.items()}
            runs, said = {seed: row[test] for seed, row in best.items()}, f"{setting} and the {name} layer"
            yield make(factors | {"layer": name}, sample(runs, images), seen.format(chosen=said), common([row["layer"] for row in best.values()]))


def common(numbers: Iterable[int]) -> int | None:
    """Return the layer that all seeds chose, None if they chose others."""
    found = set(numbers)
    return found.pop() if len(found) == 1 else None


def fitted(probe: dict[str, Any]) -> str:
    """Return what a probe saw, from its report; `chosen` is left to be named."""
    return budget_of_probe(probe["counts"] | ({"refit": probe["refit"]["images"]} if "refit" in probe else {}), "{chosen}")


def a_class(contents: dict) -> str:
    """Return what a probe saw of a study that stores how many labels each class has; `chosen` is left to be named."""
    labels, share = contents["settings"]["labels_per_class"], contents["recipe"]["data"]["validation"]
    chosen = f"{share:.0%} of them validation images; {{chosen}} chosen on these"
    return f"{labels} labels of each class, {chosen}; whether the tested probe has these too was not stored"


def summary(make: Callable, contents: dict) -> Iterator[Classifier]:
    """Yield the classifiers of a file that experiments.report.summary wrote: linear probes, and nearest neighbours where the probe has them."""
    probe, seed = contents["probe"], contents["seed"]
    seen, images, pixels = fitted(probe), probe["counts"]["test"], probe.get("raw_pixels")
    neighbours = [{"layer": row["layer"]} | row["knn"] for row in probe["layers"] if "knn" in row]
    ways = [({}, "C", probe["layers"], pixels)] + ([({"way": "kNN"}, "k", neighbours, pixels and pixels.get("knn"))] if neighbours else [])
    for way, setting, rows, raw in ways:
        yield from layers(make, way, {seed: rows}, images, seen, setting=setting)
        if raw:
            yield make(way | {"features": "raw pixels"}, sample({seed: raw["test"]}, images), seen.format(chosen=setting))


def accuracy_by_loss(make: Callable, contents: dict) -> Iterator[Classifier]:
    """Yield for each size the loss and the bits of every step, all layers at the last step, and at the others those of `snapshots`."""
    seen = a_class(contents)
    for curve in contents["curves"]:
        seeds = tuple(curve["seeds"])
        for points in zip(*curve["runs"], strict=True):
            factors, images = {"size": curve["size"], "step": points[0]["step"]}, points[0]["images"]
            scores_RB = np.stack([from_bits(point["right"], images) for point in points])
            best = common(point["best_layer"] for point in points)
            yield make(factors | {"layer": BEST}, Sample(seeds, scores_RB.mean(axis=1), images, scores_RB), seen.format(chosen="C and the best layer"), best)
            nats = Sample(seeds, np.array([point["loss"] for point in points]), images, None, "nats")
            yield make(factors, nats, f"pretraining of {points[0]['step']:,} steps")
        last = {job["found"]["seed"]: job["found"]["points"][-1]["layers"] for job in contents["jobs"] if job["found"]["size"] == curve["size"]}
        yield from (one for one in layers(make, factors, last, images, seen) if one.factors["layer"] != BEST)
    if pixels := contents.get("raw_pixels"):
        right_B = from_bits(pixels["right"], pixels["images"])
        yield make({"features": "raw pixels"}, Sample((0,), np.array([right_B.mean()]), len(right_B), right_B[None]), seen.format(chosen="C"))
    yield from snapshots(make, contents)


def snapshots(make: Callable, contents: dict) -> Iterator[Classifier]:
    """Yield the first, the middle, the last and the best interior layer at each step of accuracy_by_loss but the last one."""
    for curve in contents.get("curves", ()):
        runs = {job["found"]["seed"]: job["found"]["points"][:-1] for job in contents["jobs"] if job["found"]["size"] == curve["size"]}
        for points in zip(*runs.values(), strict=True):
            rows = {seed: point["layers"] for seed, point in zip(runs, points, strict=True)}
            last = points[0]["layers"][-1]["layer"]
            told = (0, middle_of(last), last, INTERIOR)
            factors = {"size": curve["size"], "step": points[0]["step"]}
            found = layers(make, factors, rows, points[0]["images"], a_class(contents))
            yield from (one for one in found if one.factors["layer"] in told)


def resolution(make: Callable, contents: dict) -> Iterator[Classifier]:
    seen = a_class(contents)
    for row in contents["sides"]:
        runs = [job["found"] for job in contents["jobs"] if job["found"]["side"] == row["side"]]
        yield from layers(make, {"resolution": row["side"]}, {run["seed"]: run["layers"] for run in runs}, runs[0]["test_images"], seen)
        pixels: Iterable = [run for run in runs if run["raw_pixels"]]
        for run in pixels:
            found = sample({run["seed"]: run["raw_pixels"]["test"]}, run["test_images"])
            yield make({"resolution": row["side"], "features": "raw pixels"}, found, seen.format(chosen="C"))


FORMER = {
    "digits": summary,
    "fashion_mnist_small": summary,
    "accuracy_by_loss": accuracy_by_loss,
    "resolution": resolution,
}
REST = {"accuracy_by_loss": snapshots}
