"""One comparison, judged: a row of claims.json."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.report import classifiers, intervals, sentences
from experiments.report.classifiers import Classifier, describe
from experiments.report.sentences import FACTORS, RAW, Level, Sentence

SUPPORTED, CONTRADICTED, UNDECIDED = VERDICTS = ("supported", "contradicted", "undecided")
ONLY = "test images, of these models only"


class About(NamedTuple):
    """A sentence that a comparison is about, and whether it predicts the opposite of the comparison's own direction."""

    sentence: Sentence
    opposite: bool = False


def claim(study: str, factor: str, what: str, about: Sequence[About], terms: Sequence[tuple[int, Classifier]], context: dict[str, Any]) -> dict[str, Any]:
    """Return one row of claims.json: the signed sum of the terms, which is predicted to be above 0 for accuracies and below 0 for losses."""
    samples = intervals.on_common_seeds([one.sample for _, one in terms])
    better = 1 if samples[0].unit == "accuracy" else -1
    found = intervals.contrast([(better * sign, sample) for (sign, _), sample in zip(terms, samples, strict=True)])
    return {
        "what": what,
        "with": describe(context),
        "sentences": [_told(one, what, terms, context) for one in about],
        "study": study,
        "factor": factor,
        "larger": _factors_of(terms, 1),
        "smaller": _factors_of(terms, -1),
        "difference": rounded(found.difference),
        "interval": [rounded(found.low), rounded(found.high)],
        "verdict": judge(found.low, found.high),
        "paired": found.paired,
        "over": _over(study, found, terms),
        "images": samples[0].images,
        "unit": samples[0].unit,
        "budget": {"larger": _budget_of(terms, 1), "smaller": _budget_of(terms, -1)},
    } | _models(study, [one._replace(sample=sample) for (_, one), sample in zip(terms, samples, strict=True)])


def judge(low: float, high: float) -> str:
    """Return the verdict on a difference from its interval."""
    return SUPPORTED if low > 0 else CONTRADICTED if high < 0 else UNDECIDED


def turned(row: dict[str, Any]) -> dict[str, Any]:
    """Return the number, the interval and the verdict of a row in the opposite direction."""
    verdict = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}.get(row["verdict"], row["verdict"])
    ends = row["interval"] and [0.0 - end for end in reversed(row["interval"])]
    return row | {"difference": row["difference"] and 0.0 - row["difference"], "interval": ends, "verdict": verdict}


def rounded(value: float) -> float:
    """Return a number of six digits, so that the file does not depend on the order of a sum."""
    return float(f"{value:.6g}") + 0.0


def _told(about, what, terms, context):
    """What a row says of a sentence: its own name of the comparison, in the sentence's direction, and the paper's number."""
    sentence = about.sentence
    if about.opposite:
        head, _, sides = what.partition(": ")
        what = f"{head}: {' above '.join(reversed(sides.split(' above ')))}"
    number = sentences.number_of(sentence, *(_level(terms, sign, sentence) for sign in (-1, 1)))
    layer = {"layer": context["layer"]} if "layer" in context else {}
    return {"sentence": sentence.text, "place": sentence.place, "paper": number, "what": what, "with": describe(context), "opposite": about.opposite} | layer


def _level(terms, wanted, sentence):
    """The level of the sentence's factor on one side, None if the side has several terms."""
    found = [one.factors for sign, one in terms if sign == wanted]
    return found[0].get(sentence.factor) if len(found) == 1 else None


def _factors_of(terms, wanted):
    """The factors of the terms of one sign; a list if they are several."""
    found = [one.factors for sign, one in terms if sign == wanted]
    return found[0] if len(found) == 1 else found


def _budget_of(terms, wanted):
    """What the terms of one sign were trained on, each budget once."""
    return "; ".join(dict.fromkeys(one.budget for sign, one in terms if sign == wanted and one.budget))


def _over(study, found, terms):
    """What an interval is over, as text."""
    if not found.seeds:
        return ONLY
    seeds = classifiers.seeds_of(study)
    of = seeds.of + (" with their initialisations" if seeds.shared and any(one.factors["start"] == "scratch" for _, one in terms) else "")
    return f"test images and {of}" if found.images else f"{of}, on these test images"


def _models(study, found):
    """How many seeds each term has, and of what; how many different pretrained models and trainings from scratch the terms are of."""
    shared = classifiers.seeds_of(study).shared
    models = [one for one in found if one.factors["features"] != RAW]
    pretrained = {(origin, seed) for one in models if one.factors["start"] != "scratch" for origin in [_origin(one)] for seed in _seeds(one, shared)}
    scratch = {(origin, seed) for one in models if one.factors["start"] == "scratch" for origin in [_origin(one, shared)] for seed in one.sample.seeds}
    numbers = {"pretrained models": len(pretrained), "trainings from scratch": len(scratch)}
    return {"seeds": [len(one.sample.seeds) for one in found], "of": [one.noun for one in found]} | numbers


def _seeds(one: Classifier, shared: bool) -> Sequence[int]:
    """The seeds of the pretrainings; where the seeds are draws of labels there is one pretraining."""
    return (0,) if shared else one.sample.seeds


def _origin(one: Classifier, trained: bool = False) -> tuple[tuple[str, Level], ...]:
    """The factors that tell one pretraining from another; of a training from scratch with labels (`trained`) all that tell one from another."""
    names = [name for name, factor in FACTORS.items() if (trained and name not in ("masks", "layer")) or factor.retrained]
    return tuple((name, one.factors[name]) for name in names if name in one.factors)
