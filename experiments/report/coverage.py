"""How often nominal 95 % intervals hold the true difference, by simulation: `python -m experiments.report.coverage` writes coverage.json and coverage.md.

Two classifiers are simulated on the same test images, each with R models. An image has a difficulty, normal, with which both are correlated; a model is right
where its own normal noise, added to the difficulty, stays below a threshold. The thresholds of the models of a classifier vary so that their true accuracies
have the deviation between seeds (kept inside 0 and 1). The second classifier is truly better by GAIN. Intervals of three or more models are to hold the
difference of the two kinds of model, others the difference of these very models. On some of the conditions the method is compared with bootstraps, also on
whether two models are enough for an interval about the kinds.

Losses without scores of images have an interval over seeds alone: the losses of two sizes, or of two steps of the same runs, are simulated as normal, also
where one size varies more than the other.

R models (seeds) of each classifier  B test images  N resamples  P patterns: which of the 2 R models are right on an image
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments.report import intervals
from experiments.report.provenance import provenance

RESULTS = pathlib.Path(__file__).parents[1] / "results"
COMMAND = "python -m experiments.report.coverage"
GAIN = 0.003
TRIALS, TRIALS_OF_BOOTSTRAPS, RESAMPLES = 1_000, 300, 500
ACCURACIES, CORRELATIONS, IMAGES, SEEDS, DEVIATIONS = (0.3, 0.5, 0.9, 0.99), (0.3, 0.8), (400, 2_000, 10_000), (1, 2, 3, 5), (0.0, 0.005, 0.01)


TRIALS_OF_LOSSES, RATIOS, SHARED = 4_000, (1, 4), 0.7  # simulated studies; deviation of one size over the other's; correlation of two steps of a run


class Condition(NamedTuple):
    """What is simulated."""

    accuracy: float  # of the first classifier
    correlation: float  # of each classifier's noise with the difficulty; so two models are correlated by it
    images: int
    seeds: int  # of each classifier
    deviation: float  # of the true accuracies between seeds


class Trial(NamedTuple):
    """One simulated study."""

    right_2RB: np.ndarray
    models: float  # true difference of these models
    kinds: float  # true difference of the two kinds of model


def simulate(condition: Condition, generator: np.random.Generator) -> Trial:
    """Draw one study."""
    from scipy.special import ndtri

    means = np.array([condition.accuracy, condition.accuracy + GAIN])[:, None]
    effects_2R = condition.deviation * generator.standard_normal((2, condition.seeds))
    room = 0.9 * np.minimum(means, 1 - means)  # symmetrical, so that the mean over seeds stays
    accuracies_2R = means + np.clip(effects_2R, -room, room)
    limits = ndtri(accuracies_2R)[..., None].astype(np.float32)
    difficulty_B = np.sqrt(condition.correlation) * generator.standard_normal(condition.images, np.float32)
    noise = np.sqrt(np.float32(1 - condition.correlation)) * generator.standard_normal((2, condition.seeds, condition.images), np.float32)
    right_2RB = difficulty_B.astype(np.float32) + noise < limits
    return Trial(right_2RB, float(np.diff(accuracies_2R.mean(axis=1))[0]), GAIN)


def ours(right_2RB: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """The interval that the claims have."""
    seeds = tuple(range(right_2RB.shape[1]))
    samples = [intervals.Sample(seeds, right_RB.mean(axis=1), right_RB.shape[1], right_RB) for right_RB in right_2RB]
    found = intervals.contrast([(1, samples[1]), (-1, samples[0])])
    return found.low, found.high


def plain(right_2RB: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """Twice the standard error of two independent samples of images, whatever the seeds."""
    accuracies = right_2RB.mean(axis=(1, 2))
    error = 1.96 * np.sqrt((accuracies * (1 - accuracies)).sum() / right_2RB.shape[2])
    return float(np.diff(accuracies)[0] - error), float(np.diff(accuracies)[0] + error)


def percentile(right_2RB: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap over images, and over the seeds of each side where there are several."""
    low, high = np.quantile(_resampled(right_2RB, generator)[0], (0.025, 0.975))
    return float(low), float(high)


def bca(right_2RB: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """The same bootstrap, bias-corrected and accelerated (Efron 1987); the acceleration is that of the images."""
    from scipy.special import ndtr, ndtri

    found_N = _resampled(right_2RB, generator)[0]
    values_B = right_2RB[1].mean(axis=0) - right_2RB[0].mean(axis=0)
    centred_B = values_B - values_B.mean()
    spread = (centred_B**2).sum()
    acceleration = (centred_B**3).sum() / (6 * spread**1.5) if spread else 0.0
    below = ((found_N < values_B.mean()).mean() + (found_N <= values_B.mean()).mean()) / 2
    bias = ndtri(np.clip(below, 1 / len(found_N), 1 - 1 / len(found_N)))
    points = bias + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(found_N, ndtr(bias + points / (1 - acceleration * points)))
    return float(low), float(high)


def studentised(right_2RB: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """The same bootstrap of the difference over its standard error over images."""
    found_N, errors_N = _resampled(right_2RB, generator)
    values_B = right_2RB[1].mean(axis=0) - right_2RB[0].mean(axis=0)
    mean, error = values_B.mean(), values_B.std() / np.sqrt(len(values_B))
    ratios_N = (found_N - mean)[errors_N > 0] / errors_N[errors_N > 0]
    if not len(ratios_N):
        return float(mean), float(mean)
    low, high = np.quantile(ratios_N, (0.025, 0.975))
    return float(mean - high * error), float(mean - low * error)


METHODS: dict[str, Callable] = {
    "ours": ours, "unpaired, images only": plain, "bootstrap, percentile": percentile, "bootstrap, BCa": bca, "bootstrap, studentised": studentised,
}  # fmt: skip


def _resampled(right_2RB, generator):
    """Differences [N] of resampled images and seeds, and their standard errors over images [N]."""
    _, seeds, images = right_2RB.shape
    patterns, counts_P = np.unique(right_2RB.reshape(2 * seeds, images), axis=1, return_counts=True)
    drawn_NP = generator.multinomial(images, counts_P / images, RESAMPLES)
    weights_N2R = generator.multinomial(seeds, np.full(seeds, 1 / seeds), (RESAMPLES, 2)) / seeds
    weights_N2R[:, 0] *= -1
    values_NP = weights_N2R.reshape(RESAMPLES, -1) @ patterns.astype(float)
    means_N = (drawn_NP * values_NP).sum(axis=1) / images
    variances_N = (drawn_NP * (values_NP - means_N[:, None]) ** 2).sum(axis=1) / images
    return means_N, np.sqrt(np.where(variances_N > 1e-12, variances_N, 0.0) / images)  # rounding leaves no 0 where all values are equal


def measure(condition: Condition, methods: Iterable[str], trials: int, seed: int, about: str) -> list[dict[str, Any]]:
    """Return for each method how often its interval holds the true difference of these `models` or of their `kinds`, and its mean width."""
    generator = np.random.default_rng([seed, *(int(1_000 * value) for value in condition)])
    kept: dict[str, list[tuple[bool, float]]] = {name: [] for name in methods}
    for _ in range(trials):
        trial = simulate(condition, generator)
        for name, row in kept.items():
            low, high = METHODS[name](trial.right_2RB, generator)
            row.append((low <= getattr(trial, about) <= high, high - low))
    facts = condition._asdict() | {"about": about, "trials": trials}
    return [facts | {"method": name, "coverage": float(np.mean(row, axis=0)[0]), "width": float(np.mean(row, axis=0)[1])} for name, row in kept.items()]


def measure_losses() -> list[dict[str, Any]]:
    """Return how often the interval of two losses, of which the mean of each model is known alone, holds their true difference, and its mean width."""
    found = []
    for seeds, ratio, shared in itertools.product((3, 5), RATIOS, (False, True)):
        generator = np.random.default_rng([2, seeds, ratio, int(shared)])
        mixed = np.linalg.cholesky([[1, SHARED], [SHARED, 1]]) if shared else np.eye(2)
        losses_N2R = np.einsum("ij,njr->nir", mixed, generator.standard_normal((TRIALS_OF_LOSSES, 2, seeds))) * np.array([[1], [ratio]])
        ends_N2 = np.array([_of_losses(losses_2R, shared) for losses_2R in losses_N2R])
        held = float(((ends_N2[:, 0] <= 0) & (ends_N2[:, 1] >= 0)).mean())
        facts = {"seeds": seeds, "ratio": ratio, "shared": shared, "trials": TRIALS_OF_LOSSES}
        found.append(facts | {"coverage": held, "width": float((ends_N2[:, 1] - ends_N2[:, 0]).mean())})
    return found


def _of_losses(losses_2R, shared):
    """The ends of the interval of the difference of two losses; `shared`: of two steps of the same runs."""
    seeds = tuple(range(losses_2R.shape[1]))
    samples = [intervals.Sample(seeds, losses_R, 2, None, "nats", origin=1 if shared else None) for losses_R in losses_2R]
    found = intervals.contrast([(1, samples[1]), (-1, samples[0])])
    return found.low, found.high


def conditions() -> list[Condition]:
    """Return all conditions; one or two models are the same for every deviation between seeds."""
    every = itertools.starmap(Condition, itertools.product(ACCURACIES, CORRELATIONS, IMAGES, SEEDS, DEVIATIONS))
    return [one for one in every if one.seeds >= intervals.ENOUGH or one.deviation == DEVIATIONS[0]]


def compared() -> list[tuple[Condition, str]]:
    """Return conditions on which the methods are compared, and what their intervals are to hold."""
    accuracies = [(0.5, 0.8, 2_000), (0.99, 0.8, 400)]
    models = [(Condition(*one, seeds, 0.0), "models") for one in accuracies for seeds in (1, 2)]
    return models + [(Condition(*one, seeds, deviation), "kinds") for one in accuracies for seeds in (2, 3) for deviation in (0.0, 0.01)]


def table(rows: list[dict[str, Any]], losses: list[dict[str, Any]]) -> str:
    """Return coverage.md: our intervals by images, models and deviation; all methods on the same conditions; losses of which each model's mean is known."""
    trials = f"{TRIALS:,} simulated studies of each condition, {TRIALS_OF_BOOTSTRAPS} for the comparison"
    lines = ["# How often nominal 95 % intervals hold the true difference", "", f"{trials}; see [coverage.py](../report/coverage.py).", ""]
    lines += ["| images | models | deviation between seeds, points | coverage, %: lowest, mean, highest | mean width, points |", "|--:|--:|--:|---|--:|"]
    main, others = ([row for row in rows if (row["trials"] == TRIALS) == is_main] for is_main in (True, False))
    for key in sorted({(row["images"], row["seeds"], row["deviation"]) for row in main}):
        group = [row for row in main if (row["images"], row["seeds"], row["deviation"]) == key]
        lines.append(f"| {key[0]:,} | {key[1]} | {100 * key[2]:g} | {_spread(group)} |")
    lines += ["", "The same for other methods. Two models do not tell how their kinds differ, so claims of fewer than three are about these models.", ""]
    lines += ["| method | models | true difference of | coverage, %: lowest, mean, highest | mean width, points |", "|---|--:|---|---|--:|"]
    for seeds, about, name in itertools.product(SEEDS, ("models", "kinds"), METHODS):
        group = [row for row in others if (row["method"], row["seeds"], row["about"]) == (name, seeds, about)]
        if group:
            lines.append(f"| {name} | {seeds} | {'these models' if about == 'models' else 'the kinds of model'} | {_spread(group)} |")
    lines += ["", f"Losses without scores of images, over seeds alone, {TRIALS_OF_LOSSES:,} simulated studies of each condition:", ""]
    lines += ["| models of each | compared | deviation of one over the other's | coverage, % | mean width, deviations of the first |", "|--:|---|--:|--:|--:|"]
    for row in losses:
        what = "two steps of the same runs" if row["shared"] else "two sizes"
        lines.append(f"| {row['seeds']} | {what} | {row['ratio']} | {100 * row['coverage']:.1f} | {row['width']:.2f} |")
    return "\n".join([*lines, ""])


def _spread(group):
    shares = [100 * row["coverage"] for row in group]
    return f"{min(shares):.1f}, {np.mean(shares):.1f}, {max(shares):.1f} | {100 * np.mean([row['width'] for row in group]):.2f}"


def main() -> None:
    rows = [row for one in conditions() for row in measure(one, ["ours"], TRIALS, 0, "kinds" if one.seeds >= intervals.ENOUGH else "models")]
    rows += [row for one, about in compared() for row in measure(one, METHODS, TRIALS_OF_BOOTSTRAPS, 1, about)]
    contents = {"gain": GAIN, "resamples": RESAMPLES, "rows": rows, "losses": measure_losses()} | provenance(COMMAND)
    (RESULTS / "coverage.json").write_text(json.dumps(contents, indent=1) + "\n")
    (RESULTS / "coverage.md").write_text(table(rows, contents["losses"]))
    print(table(rows, contents["losses"]))


if __name__ == "__main__":
    main()
