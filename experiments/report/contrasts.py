"""Comparisons of classifiers that differ in more than one thing: those that the paper makes, and those that a reader asks for."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from experiments.report import intervals, sentences
from experiments.report.classifiers import Classifier, describe, differing
from experiments.report.sentences import BEST, FACTORS, RAW
from experiments.report.verdicts import UNDECIDED, About, claim, rounded

LOSSES = 16  # losses at which two sizes are compared, evenly spaced over the range that both reach


def above_pixels(study: str, found: Sequence[Classifier]) -> Iterator[dict[str, Any]]:
    """Yield a claim for each fine-tuned model and the linear probe of the raw pixels of the same images and labels."""
    raw = [one for one in found if (one.factors["features"], one.factors["way"]) == (RAW, "linear probe")]
    for one, pixels in ((a, b) for a in found for b in raw if a.factors["way"] == "fine-tuned" and a.sample.unit == "accuracy"):
        if all(one.factors.get(name) == level for name, level in pixels.factors.items() if name not in ("features", "way", "start")):
            context = {name: level for name, level in one.factors.items() if name not in ("features", "way")}
            terms = [(1, one), (-1, pixels)]
            yield claim(study, sentences.BOTH, "fine-tuned above linear probe of raw pixels", about(sentences.BOTH, context), terms, context)


def about(factor: str, context: dict[str, Any]) -> list[About]:
    """Return the sentence of a contrast, if it is about classifiers with these factors."""
    sentence = sentences.sentence_of(factor)
    return [About(sentence)] if sentences.fits(sentence, context) else []


def gaps(study: str, found: Sequence[Classifier]) -> Iterator[dict[str, Any]]:
    """Yield how much smaller the difference between two objectives is after fine-tuning: the difference of the probes minus that of the fine-tuned models."""
    probes = [one for one in found if one.factors["way"] == "linear probe" and one.factors.get("layer", BEST) == BEST]
    tuned = [one for one in found if one.factors["way"] == "fine-tuned"]
    for worse, better in ((a, b) for a in tuned for b in tuned if differing(a, b) == "objective" and is_in_order(a, b)):
        for worse_probe, better_probe in ((a, b) for a in probes for b in probes if differing(a, b) == "objective"):
            if differing(worse_probe, worse) == differing(better_probe, better) == "way":
                objectives = f"{better.factors['objective']} and {worse.factors['objective']}"
                context = {key: level for key, level in (better.factors | worse.factors).items() if key not in ("way", "objective")}
                terms = [(1, better_probe), (-1, worse_probe), (-1, better), (1, worse)]
                what = f"the gap between {objectives}: probe above fine-tuned"
                yield claim(study, sentences.CLOSED, what, about(sentences.CLOSED, context), terms, context)


def is_in_order(one: Classifier, other: Classifier) -> bool:
    """Whether the paper has the second of two objectives above the first."""
    order = FACTORS["objective"].levels or ()
    return order.index(str(one.factors["objective"])) < order.index(str(other.factors["objective"]))


def falls(study: str, found: Sequence[Classifier]) -> Iterator[dict[str, Any]]:
    """Yield a claim for each later step of a run after the fall of its learning rate, and an earlier one before it: two things differ."""
    names = ("step", "learning rate")
    of_runs = [one for one in found if all(name in one.factors for name in names)]
    rests = [{name: level for name, level in one.factors.items() if name not in names} for one in of_runs]
    for (before, rest), (after, same) in ((a, b) for a in zip(of_runs, rests, strict=True) for b in zip(of_runs, rests, strict=True)):
        levels = before.factors["learning rate"], after.factors["learning rate"]
        later = sentences.rank("step", after.factors["step"]) > sentences.rank("step", before.factors["step"])
        if rest == same and later and levels == FACTORS["learning rate"].levels and before.sample.unit == after.sample.unit:
            told = [About(one) for one in sentences.SENTENCES if (one.factor, one.unit) == (sentences.FALL, after.sample.unit) and sentences.fits(one, rest)]
            sides = " above ".join(" ".join(str(one.factors[name]) for name in names) for one in (after, before))
            yield claim(study, sentences.FALL, f"step and learning rate: {sides}", told, [(1, after), (-1, before)], rest)


class LossPair(NamedTuple):
    """Two models of a study with their losses, the one with the lower mean loss second."""

    worse: Classifier
    better: Classifier
    losses: tuple[float, float]  # mean test losses of worse and better, nats per pixel
    interval: intervals.Interval  # of the first minus the second

    @property
    def decided(self) -> bool:
        """Whether one is the better generative model; else nobody can say which."""
        return self.interval.low > 0


def loss_pairs(found: Sequence[Classifier]) -> list[LossPair]:
    """Return all pairs of models, at their best layers, that differ in size, in step or in both and whose losses have an interval."""
    losses, places = losses_of(found), {}
    for one in found:
        if one.sample.unit == "accuracy" and one.factors.get("layer", BEST) == BEST and key_of(one) in losses:
            places.setdefault(_rest(one), []).append(one)
    pairs = [pair for place in places.values() for pair in combinations(place, 2)]
    return [_loss_pair(pair, losses) for pair in pairs if intervals.has_interval([losses[key_of(one)] for one in pair])]


def _loss_pair(pair, losses):
    better, worse = sorted(pair, key=lambda one: losses[key_of(one)].means.mean())
    samples = intervals.on_common_seeds([losses[key_of(one)] for one in (worse, better)])
    found = intervals.contrast(list(zip((1, -1), samples, strict=True)))
    return LossPair(worse, better, (float(samples[0].means.mean()), float(samples[1].means.mean())), found)


def better_models(study: str, pairs: Sequence[LossPair]) -> Iterator[dict[str, Any]]:
    """Yield a claim for each pair of models that differ in size and step and of which one has the lower loss."""
    for pair in pairs:
        if pair.decided and all(pair.better.factors[name] != pair.worse.factors[name] for name in ("size", "step")):
            context = {name: level for name, level in pair.better.factors.items() if name not in ("size", "step")}
            sides = " above ".join(f"{one.factors['size']} at step {one.factors['step']}" for one in (pair.better, pair.worse))
            row = claim(study, sentences.LOSS, f"size and step: {sides}", about(sentences.LOSS, context), [(1, pair.better), (-1, pair.worse)], context)
            yield row | told_losses(pair)


def told_losses(pair: LossPair) -> dict[str, Any]:
    """Return what a row says of the losses of its two models."""
    ends = [rounded(end) for end in (pair.interval.low, pair.interval.high)]
    return {"test losses": {"lower": rounded(pair.losses[1]), "higher": rounded(pair.losses[0]), "interval of the difference": ends, "decided": pair.decided}}


def undecided(pairs: Sequence[LossPair]) -> list[str]:
    """Return the pairs of models of which nobody can say which is the better generative one, as text."""
    return [
        f"{describe(pair.better.factors)} and {describe(pair.worse.factors)}: {pair.losses[1]:.4f} and {pair.losses[0]:.4f} nats per pixel"
        for pair in pairs
        if not pair.decided and sentences.fits(sentences.sentence_of(sentences.LOSS), pair.better.factors)
    ]


def losses_of(found: Sequence[Classifier]) -> dict[tuple, intervals.Sample]:
    """Return the test losses of models by `key_of`."""
    return {key_of(one): one.sample for one in found if one.sample.unit == "nats" and key_of(one)}


def key_of(one: Classifier) -> tuple:
    """Return the factors of a classifier, or of the loss of the same model, for a dict."""
    return tuple(sorted((name, level) for name, level in one.factors.items() if name != "layer")) if {"size", "step"} <= one.factors.keys() else ()


def _rest(one):
    """The factors of a classifier but its size and step."""
    return tuple(sorted((name, level) for name, level in one.factors.items() if name not in ("size", "step")))


def equal_losses(study: str, found: Sequence[Classifier]) -> Iterator[dict[str, Any]]:
    """Yield the gain of each larger size over each smaller one, averaged over the losses that all models of both reach."""
    losses = losses_of(found)
    places: dict[tuple, dict[str, list[tuple[intervals.Sample, Classifier]]]] = {}
    for one in found:
        if one.sample.unit == "accuracy" and one.sample.scores is not None and one.factors.get("layer", BEST) == BEST and key_of(one) in losses:
            places.setdefault(_rest(one), {}).setdefault(str(one.factors["size"]), []).append((losses[key_of(one)], one))
    for rest, curves in places.items():
        for pair in sentences.pairs(study, "size", set(curves)):
            yield equal_loss(study, curves[str(pair.smaller)], curves[str(pair.larger)], dict(rest))


def equal_loss(study: str, smaller: list, larger: list, context: dict[str, Any]) -> dict[str, Any]:
    """Return the claim about two sizes, each a list of (losses, classifier) by step. Between steps accuracies are interpolated at the mean test loss."""
    told = about(sentences.EQUAL, context)
    sides = [_at_losses(curve, None) for curve in (smaller, larger)]
    least, most = max(low for low, _ in sides), min(high for _, high in sides)
    what = f"size at equal loss: {larger[0][1].factors['size']} above {smaller[0][1].factors['size']}"
    if least >= most:
        why = f"no loss is reached by all models of both: the nearest are {most:.3f} and {least:.3f}"
        row = claim(study, sentences.EQUAL, what, told, [(1, larger[-1][1]), (-1, smaller[-1][1])], context)
        return row | dict.fromkeys(("difference", "interval", "paired", "over")) | {"verdict": UNDECIDED, "why": why}
    wanted = np.linspace(least, most, LOSSES)
    terms = [(sign, curve[0][1]._replace(sample=_at_losses(curve, wanted))) for sign, curve in ((1, larger), (-1, smaller))]
    return claim(study, sentences.EQUAL, what, told, terms, context) | {"losses": [rounded(least), rounded(most)]}


def _at_losses(curve, wanted):
    """The sample of a size at the wanted losses, interpolated for each model; with None the (least, most) loss that all of its models reach."""
    steps = [(loss, one.sample) for loss, one in curve if loss.seeds == one.sample.seeds]
    if len(steps) < len(curve):
        raise ValueError(f"{curve[0][1].factors}: losses and accuracies are of other seeds")
    loss_RS = np.stack([loss.means for loss, _ in steps], axis=1)
    if wanted is None:
        return loss_RS.min(axis=1).max(), loss_RS.max(axis=1).min()
    scores_RB = []
    for number, loss_S in enumerate(loss_RS):
        order = np.argsort(loss_S)
        share_S = [np.interp(wanted, loss_S[order], unit[order]).mean() for unit in np.eye(len(steps))]  # weight of each step
        scores_RB.append(sum(share * sample.scores[number] for share, (_, sample) in zip(share_S, steps, strict=True)))
    return steps[0][1]._replace(scores=np.stack(scores_RB), means=np.mean(scores_RB, axis=1))
