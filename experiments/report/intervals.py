"""95 % intervals of differences between classifiers, over the test images and, where there are three or more models of a kind, over their seeds.

The estimate is a signed sum of means over R models and B test images: one model's mean minus another's, or a difference of two differences. Its variance is
the sum of two parts. Of the images: the variance, over images, of the signed sum of the models' scores on that image; so two classifiers on the same images
are paired. Of the seeds: the variance of the models' means over their seeds, for each kind of model that has three or more; models of equal seeds that share
what the seed decides are paired. What chance on single images adds to the variance over seeds is subtracted, since the images' part has it already. With
fewer models the interval is over images alone, and is about these models only. Losses whose study kept no more than the mean of each model have the seeds'
part alone: their interval is over seeds, on these test images. The interval is Student's t with Satterthwaite's degrees of freedom.
Accuracies get two more images, one on which the first is better and one on which the second is (Bonett and Price, 2012, for one pair of classifiers; Agresti
and Caffo, 2000, for two that are not paired), because the variance of few differing images is underestimated. experiments/results/coverage.md compares this
with bootstraps of images and seeds.

R models (seeds)  B test images  K terms of the sum
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.report.measurements import are_same

LEVEL = 0.95
ENOUGH = 3  # models of a kind from which a variance over seeds is taken


class Sample(NamedTuple):
    """The scores of R models of a kind on the same B test images."""

    seeds: tuple[int, ...]
    means: np.ndarray  # [R]
    images: int
    scores: np.ndarray | None  # [R, B]; None if they were not stored
    unit: str = "accuracy"
    fingerprint: str = ""  # of the test images' labels, "" if it is not known
    origin: Hashable = None  # samples of equal origin and seeds share what the seed decides


class Interval(NamedTuple):
    """An estimate, its interval, and what the interval is over."""

    difference: float
    low: float
    high: float
    paired: bool  # whether the classifiers were compared image by image
    seeds: bool  # whether the interval is over seeds
    images: bool  # whether the interval is over test images


class Part(NamedTuple):
    """A part of the variance of an estimate."""

    variance: float
    freedom: int  # degrees of freedom
    counted_twice: float = 0.0  # of it, in another part


def contrast(terms: Sequence[tuple[int, Sample]]) -> Interval:
    """Return the sum of sign x mean over (sign, sample) and its 95 % interval; ValueError if the samples cannot be compared."""
    from scipy.special import stdtrit

    shares = _unit_of(terms) == "accuracy"
    paired = _paired([sample for _, sample in terms])
    over_images = shares or all(sample.scores is not None for _, sample in terms)
    shift, parts = _over_images(terms, paired, shares) if over_images else (0.0, [])
    over_seeds = _over_seeds(terms)
    parts += over_seeds
    difference = float(sum(sign * sample.means.mean() for sign, sample in terms))
    variance = sum(part.variance - part.counted_twice for part in parts)
    freedom = variance**2 / sum(part.variance**2 / part.freedom for part in parts if part.variance) if variance else 1
    width = float(stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance))
    least, most = _range([sign for sign, _ in terms]) if shares else (-np.inf, np.inf)
    low, high = max(least, difference + shift - width), min(most, difference + shift + width)
    return Interval(difference, low, high, paired, bool(over_seeds), over_images)


def has_interval(samples: Sequence[Sample]) -> bool:
    """Whether `contrast` has an interval of the samples: losses need the scores of each image, or enough models of each kind."""
    stored = all(sample.scores is not None for sample in samples)
    return stored or all(sample.unit == "accuracy" or len(sample.seeds) >= ENOUGH for sample in samples)


def interval_of_mean(values: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of Student's 95 % interval of the mean of independent values along an axis; both are the value where there is only one."""
    from scipy.stats import t

    count = values.shape[axis]
    mean = values.mean(axis=axis)
    half = t.ppf((1 + LEVEL) / 2, count - 1) * values.std(axis=axis, ddof=1) / count**0.5 if count > 1 else 0.0
    return mean - half, mean + half


def on_common_seeds(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples, those of one origin with the seeds that all of these have, so that they are paired; all seeds if they have few in common."""
    found = list(samples)
    for origin in {sample.origin for sample in samples} - {None}:
        places = [place for place, sample in enumerate(samples) if sample.origin == origin]
        common = set.intersection(*(set(samples[place].seeds) for place in places))
        if len(common) >= ENOUGH:
            for place in places:
                found[place] = _with_seeds(samples[place], common)
    return found


def _with_seeds(sample, seeds):
    rows = [row for row, seed in enumerate(sample.seeds) if seed in seeds]
    scores = None if sample.scores is None else sample.scores[rows]
    return sample._replace(seeds=tuple(sample.seeds[row] for row in rows), means=sample.means[rows], scores=scores)


def _range(signs):
    """The least and the most that a sum of accuracies with these signs can be."""
    return float(sum(sign for sign in signs if sign < 0)), float(sum(sign for sign in signs if sign > 0))


def _unit_of(terms):
    """The unit of all samples; ValueError if they have no interval together."""
    for _, sample in terms:
        if sample.images < 2:
            raise ValueError(f"an interval over test images needs 2 or more images, here {sample.images}")
        scores = sample.means if sample.scores is None else sample.scores
        if not np.isfinite(scores).all():
            raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not numbers")
    unit, *others = sorted({sample.unit for _, sample in terms})
    if others:
        raise ValueError(f"scores of {' and '.join([unit, *others])} cannot be subtracted")
    if not has_interval([sample for _, sample in terms]):
        raise ValueError(f"an interval of {unit} needs the scores of each image, or {ENOUGH} models of each kind")
    return unit


def _paired(samples):
    """Whether all samples are of the same images in the same order, as far as is known."""
    known = all(sample.scores is not None for sample in samples) and len({sample.images for sample in samples}) == 1
    return known and are_same(sample.fingerprint for sample in samples)


def _over_images(terms, paired, shares):
    """Return by how much the two images added to accuracies (`shares`) move the estimate, and the parts of the variance that the images have."""
    if paired and len(terms) > 1:
        moments = [(sum(sign * sample.scores.mean(axis=0) for sign, sample in terms), (-1.0, 1.0))]
    else:
        moments = [(sign * _each_image(sample), (0.0, float(sign))) for sign, sample in terms]
    shift, parts = 0.0, []
    for values_B, added in moments:
        more = np.concatenate([values_B, added if shares else ()])
        shift += more.mean() - values_B.mean()
        variance = (more.var() if shares else more.var(ddof=1)) / len(more)
        parts.append(Part(float(variance), len(values_B) - 1))
    return float(shift), parts


def _each_image(sample):
    """The mean score of each image [B]; without stored scores, bits with the same number of ones, so that their variance is that of one model."""
    if sample.scores is not None:
        return sample.scores.mean(axis=0)
    right = sample.means.mean() * sample.images
    return np.clip(right - np.arange(sample.images), 0, 1)


def _over_seeds(terms):
    """Return a part of the variance for each group of samples that share their seeds."""
    groups: dict = {}
    for number, (sign, sample) in enumerate(terms):
        if len(sample.seeds) >= ENOUGH:
            groups.setdefault(number if sample.origin is None else (sample.origin, sample.seeds), []).append((sign, sample))
    parts = []
    for group in groups.values():
        means_R = sum(sign * sample.means for sign, sample in group)
        variance = float(means_R.var(ddof=1)) / len(means_R)
        parts.append(Part(variance, len(means_R) - 1, min(variance, _of_single_images(group))))
    return parts


def _of_single_images(group):
    """The part of the variance over seeds that chance on single images has: neither the image's nor the model's; 0 if their scores were not stored."""
    if any(sample.scores is None for _, sample in group) or len({sample.images for _, sample in group}) > 1:
        return 0.0
    scores_RB = sum(sign * sample.scores for sign, sample in group)
    models, images = scores_RB.shape
    rest_RB = scores_RB - scores_RB.mean(axis=0) - scores_RB.mean(axis=1, keepdims=True) + scores_RB.mean()
    return float((rest_RB**2).sum()) / ((models - 1) * (images - 1)) / (models * images)
