"""The factors of the studies, their levels in the order that the paper predicts, and the sentences of the paper that the comparisons are about.

A study names its classifiers by these factors and levels (`Measurement.factors`); a factor or a level that stands in no table here is an error. Factors with
a usual level may be left out: a classifier without `way` is a linear probe, without `start` one of pretrained parameters, without `features` one of a model.
Raw pixels are {"features": "raw pixels"} and have none of the model's factors.

    data         name of the data set; never compared          objective    autoregressive, prefix, bert
    layer        0, 1, ..., the last; "best interior": the best of all between these two by validation accuracy; "best": the best of all
    resolution   pixels        size    layers x width, "4x64"        step   of the pretraining        labels   of each class
    way          linear probe, kNN, fine-tuned                       start        pretrained, scratch
    learning rate  constant, decayed: before or after its fall in the last steps (named only where a run's learning rate is constant until then)
    loss         joint, classification (of a fine-tuning)            masks        1, 5: how many vote (bert)
"""

import math
from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any, NamedTuple, TypeAlias

Level: TypeAlias = str | int
BEST, INTERIOR = "best", "best interior"
MIDDLE = "middle"  # the layer at the depth of the paper's best ones, see `middle_of`
RAW, KNN = "raw pixels", "kNN"
UNUSUAL = {"way": KNN, "start": "scratch"}  # the paper has no neighbours, and compares models from random parameters with none but pretrained ones
PEAK = 20 / 48, 21 / 48  # where the paper's accuracy by layer stops to rise, and where it begins to fall, as parts of the depth (figure 2)
MANY = 5  # levels; a factor with more is compared between neighbours, and its last level with its first
EACH_LAYER = ("features", "objective", "masks", "way")  # factors that are compared at each layer; the others at the best layer alone


class Factor(NamedTuple):
    """What can be compared in one factor."""

    levels: tuple[str, ...] | None = None  # from the worst to the best in the paper; of factors of which it says nothing, any order; None: numbers
    usual: str | None = None  # level of a classifier that does not name the factor
    within: tuple[str, ...] = ()  # factors of which some levels do not have this factor: raw pixels have no layer
    units: tuple[str, ...] = ("accuracy",)  # a loss of another task is not compared: pixels of larger images are easier to predict
    retrained: bool = False  # whether another level is another pretraining


FACTORS = {
    "data": Factor(units=()),
    "features": Factor((RAW, "model"), usual="model"),
    "objective": Factor(("bert", "prefix", "autoregressive"), within=("features",), retrained=True),
    "layer": Factor(within=("features", "way")),
    "size": Factor(within=("features",), units=("accuracy", "nats"), retrained=True),
    "step": Factor(within=("features",), units=("accuracy", "nats")),
    "learning rate": Factor(("constant", "decayed"), within=("features",), units=()),
    "resolution": Factor(retrained=True),
    "way": Factor((KNN, "linear probe", "fine-tuned"), usual="linear probe"),
    "start": Factor(("scratch", "pretrained"), usual="pretrained", retrained=True),
    "loss": Factor(("classification", "joint"), within=("way",)),
    "labels": Factor(),
    "masks": Factor(within=("features", "objective")),
}


class Sentence(NamedTuple):
    """A sentence of the paper, an assumption of it, or a question that readers ask first, and the pairs of levels that it is about."""

    text: str  # sentences of one text are one row of README
    place: str  # in the paper; "" where the paper is silent
    factor: str
    smaller: Level | None = None  # None: any pair of the factor, in its order
    larger: Level | None = None
    where: Mapping[str, tuple[Level, ...]] = {}  # levels that the two have in common; those of UNUSUAL only if they are named here
    number: str | Mapping[tuple[Level | None, Level | None], str] | None = None  # of the paper, or of each pair (smaller, larger) for which it has one
    unit: str = "accuracy"
    layers: bool = False  # whether it is about each layer, or about the best one


FIRST, LAST = "the best inner layer is above the first", "the best inner layer is above the last"
MIDDLE_LAST, LAST_FIRST = "the middle layer (20.5/48 of the depth) is above the last", "the last layer is above the first"
KNN_MIDDLE_LAST, KNN_LAST_FIRST = (f"nearest neighbours: {text} (the paper is silent)" for text in (MIDDLE_LAST, LAST_FIRST))
UNIMODAL = "accuracy rises layer by layer to the middle, then falls"
TUNED, FEW = "fine-tuning is above the linear probe", "with 4 labels of each class the linear probe is above fine-tuning"
LONGER, LARGER = "models that are trained longer probe better", "larger models probe better at equal steps"
GENERATIVE = "better generative models have better features"
LOWER = "larger models, and models that are trained longer, have a lower loss"
START, JOINT = "fine-tuning is better from pretrained parameters", "fine-tuning is better with the joint loss"
PIXELS, TUNED_PIXELS = "features of a model probe better than raw pixels", "fine-tuning is above the linear probe of raw pixels"
NEAREST = "nearest neighbours of features are better than of raw pixels (the paper is silent)"
EVERY = "each single layer of a model is above raw pixels (the paper is silent)"
FIGURE_4 = "fine-tuned, next pixel is better than masked pixels"
GAP = "fine-tuning closes part of the gap between next pixel and masked pixels"
EQUAL_LOSS = "at equal loss the larger model probes better"
DECAYED = "the last steps, in which the learning rate falls, lower the loss (the paper is silent)"
CLOSED, EQUAL, BOTH, LOSS, FALL = "way and objective", "size at equal loss", "way and features", "test loss", "step and learning rate"  # instead of a factor
GRANTED = "taken for granted"  # the place of what the paper assumes and does not say
RISING, FALLING = "rising", "falling"  # instead of a level: neighbouring layers on either side of the paper's best
SENTENCES = (
    Sentence(FIRST, "figure 2", "layer", "first", INTERIOR),
    Sentence(LAST, "figure 2", "layer", "last", INTERIOR, number="+2.4 (L, CIFAR-10)"),
    Sentence(MIDDLE_LAST, "figure 2", "layer", "last", MIDDLE, number="+2.4 (L, CIFAR-10)"),
    Sentence(LAST_FIRST, "figure 2", "layer", "first", "last"),
    Sentence(KNN_MIDDLE_LAST, "", "layer", "last", MIDDLE, {"way": (KNN,)}),
    Sentence(KNN_LAST_FIRST, "", "layer", "first", "last", {"way": (KNN,)}),
    Sentence(UNIMODAL, "figure 2", "layer", RISING),
    Sentence(UNIMODAL, "figure 2", "layer", FALLING),
    Sentence(EQUAL_LOSS, "figure 3", EQUAL, where={"way": ("linear probe",)}),
    Sentence(LARGER, "figure 3", "size", where={"way": ("linear probe",)}, number="+4.6 (S to M), +1.1 (M to L, CIFAR-10)"),
    Sentence(LONGER, "figure 3", "step", where={"way": ("linear probe",)}, number="+4.5 (L, CIFAR-10, 65,000 to 1,000,000 steps)"),
    Sentence(GENERATIVE, "figure 3", LOSS, where={"way": ("linear probe",)}),
    Sentence(LOWER, "figure 3", "size", number="0.028 (S to M), 0.015 (M to L)", unit="nats"),
    Sentence(LOWER, "figure 3", "step", number="0.059 (L, 65,000 to 1,000,000 steps)", unit="nats"),
    Sentence(DECAYED, "", FALL, unit="nats"),
    Sentence(PIXELS, GRANTED, "features", where={"way": ("linear probe",)}),
    Sentence(TUNED_PIXELS, GRANTED, BOTH),
    Sentence(EVERY, "", "features", where={"way": ("linear probe", KNN)}, layers=True),
    Sentence(NEAREST, "", "features", where={"way": (KNN,)}),
    Sentence(
        "next pixel probes better than masked pixels", "figure 4", "objective", "bert", "autoregressive",
        {"way": ("linear probe",)}, "more than +1 (L, CIFAR-10)",
    ),
    Sentence(
        FIGURE_4, "figure 4", "objective", "bert", "autoregressive",
        {"way": ("fine-tuned",), "loss": ("joint",)}, "+0.4 (99.0 against 98.6, L, CIFAR-10)",
    ),
    Sentence(
        FEW, "text", "way", "fine-tuned", "linear probe", {"loss": ("joint",), "labels": (1, 2, 3, 4)},
        "+31.1 (L, CIFAR-10, 4 labels of each class)",
    ),
    Sentence(
        TUNED, "tables 1 and 3", "way", "linear probe", "fine-tuned", {"loss": ("joint",)}, "+2.7 (L, CIFAR-10, all labels)"
    ),
    Sentence(GAP, "figure 4", CLOSED, where={"loss": ("joint",)}, number="more than 1 to 0.4 (L, CIFAR-10)"),
    Sentence(START, "text", "start", "scratch", "pretrained", {"way": ("fine-tuned",)}),
    Sentence(JOINT, "text", "loss", "classification", "joint"),
    Sentence(
        "more labels are better", "table 4", "labels", where={"features": ("model",), "way": ("linear probe",)},
        number={(4, 25): "+14.4 (L, CIFAR-10)", (4, 400): "+21.1 (L, CIFAR-10)", (25, 400): "+6.7 (L, CIFAR-10)"},
    ),
    Sentence("larger images are better", "table 2", "resolution", where={"features": ("model",)}, number="+4.9 (L, ImageNet, 32 to 48)"),
    Sentence("the vote of several masks is better than one mask", "text", "masks", number="about 0 (CIFAR-10), almost +1 (ImageNet)"),
)  # fmt: skip


class Pair(NamedTuple):
    """Two levels of a factor to be compared; `larger` is the one that is predicted to be better."""

    smaller: Level
    larger: Level
    sentence: Sentence | None  # None: the paper says nothing
    kind: tuple[Level | None, Level | None] = (None, None)  # of a pair of layers: smaller and larger of the sentences that it may be about


def check(study: str, factors: Mapping[str, Level]) -> None:
    """ValueError if a factor or a level stands in no table."""
    for name, level in factors.items():
        if name not in FACTORS:
            raise ValueError(f"{study} has the factor {name}, which FACTORS of experiments/report/sentences.py lacks: it has {', '.join(FACTORS)}")
        known = FACTORS[name].levels
        if known and level not in known:
            raise ValueError(f"{study} has the level {level!r} of {name}, which FACTORS of experiments/report/sentences.py lacks: it has {', '.join(known)}")
        if known is None and name != "data" and level not in ((BEST, INTERIOR) if name == "layer" else ()):
            rank(name, level)
    if factors.get("features") == RAW:
        for name in factors:
            if "features" in FACTORS[name].within:
                raise ValueError(f"{study}: raw pixels have no {name}, leave the factor out")


def rank(name: str, level: Level) -> float:
    """Return a number by which the levels of an ordered factor are sorted; ValueError if the level is none."""
    if name == "size":
        layers, _, width = str(level).partition("@")[0].partition("x")
        if not (layers.isdecimal() and width.isdecimal()):
            raise ValueError(f"the level {level!r} of size is not LAYERSxWIDTH, for example 4x64")
        return int(layers) * int(width) ** 2
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ValueError(f"the level {level!r} of {name} is not an integer from 0 on")
    return level


def pairs(study: str, name: str, levels: set[Level]) -> list[Pair]:
    """Return the pairs of levels of a factor that are compared, in the factor's order; the pairs of layers have their direction and kind."""
    factor = FACTORS[name]
    if name == "layer":
        return _layers(study, levels)
    if factor.levels:
        ordered: list[Level] = [level for level in factor.levels if level in levels]
    else:
        ordered = sorted(levels, key=lambda level: (rank(name, level), str(level)))
    few = len(ordered) <= MANY or bool(factor.levels)
    chosen = list(combinations(ordered, 2)) if few else [*pairwise(ordered), (ordered[0], ordered[-1])]
    return [Pair(smaller, larger, None) for smaller, larger in chosen]


def directed(pair: Pair, name: str, context: Mapping[str, Level], unit: str = "accuracy") -> Pair:
    """Return a pair in the direction of the first sentence that is about it; `context` holds the other factors of the two classifiers."""
    if name == "layer":
        about = [one for one in SENTENCES if one.factor == name and (one.smaller, one.larger) == pair.kind and fits(one, context)]
        return pair._replace(sentence=about[0] if about else None)
    for sentence in SENTENCES:
        if (sentence.factor, sentence.unit) == (name, unit) and fits(sentence, context):
            if sentence.smaller is None or (sentence.smaller, sentence.larger) == (pair.smaller, pair.larger):
                return pair._replace(sentence=sentence)
            if (sentence.larger, sentence.smaller) == (pair.smaller, pair.larger):
                return Pair(pair.larger, pair.smaller, sentence)
    return pair


def fits(sentence: Sentence, context: Mapping[str, Level]) -> bool:
    """Whether a sentence is about classifiers with these factors."""
    if any(context.get(name) == level and level not in sentence.where.get(name, ()) for name, level in UNUSUAL.items()):
        return False
    at_best = context.get("layer", BEST) == BEST
    return at_best != sentence.layers and all(context.get(name) in allowed for name, allowed in sentence.where.items())


def middle_of(last: int) -> int:
    """Return the layer that is nearest to the depth at which the paper's layers are best; of two the upper one."""
    return math.floor(sum(PEAK) / 2 * last + 0.5)


def _layers(study, levels):
    """The pairs of layers, each in the direction of the paper's curve: the best interior, the middle, the first and the last one; and neighbours."""
    numbers = sorted(level for level in levels if isinstance(level, int))
    if not numbers:
        return []
    missing = {BEST, *([INTERIOR] if len(numbers) > 2 else [])} - levels
    if missing or len(numbers) < 2:
        lacks = " and ".join(repr(level) for level in sorted(missing)) or "two numbers of layers"
        raise ValueError(f"{study} has the layers {', '.join(map(str, sorted(levels, key=str)))} and lacks {lacks}: see experiments/report/sentences.py")
    first, last, middle = numbers[0], numbers[-1], middle_of(numbers[-1])
    chosen = [Pair(first, INTERIOR, None, ("first", INTERIOR)), Pair(last, INTERIOR, None, ("last", INTERIOR))] if INTERIOR in levels else []
    chosen += [Pair(last, middle, None, ("last", MIDDLE))] if middle in numbers[1:-1] else []
    return [*chosen, Pair(first, last, None, ("first", "last")), *_neighbours(numbers)]


def _neighbours(numbers):
    """The pairs of neighbouring layers: the upper one is predicted to be better up to the paper's best layers, and the lower one from there on."""
    for lower, upper in ((lower, upper) for lower, upper in pairwise(numbers) if upper == lower + 1):
        if upper <= PEAK[0] * numbers[-1]:
            yield Pair(lower, upper, None, (RISING, None))
        elif lower >= PEAK[1] * numbers[-1]:
            yield Pair(upper, lower, None, (FALLING, None))
        else:
            yield Pair(lower, upper, None)


def sentence_of(factor: str) -> Sentence:
    """Return the sentence of a comparison that is not of two levels."""
    return next(sentence for sentence in SENTENCES if sentence.factor == factor)


def number_of(sentence: Sentence, smaller: Level | None, larger: Level | None) -> str | None:
    """Return the paper's number for a pair of levels, None if it has none."""
    return sentence.number.get((smaller, larger)) if isinstance(sentence.number, Mapping) else sentence.number


def usual(factors: Mapping[str, Level]) -> dict[str, Any]:
    """Return the factors with the usual level of each that is not named."""
    return {name: factor.usual for name, factor in FACTORS.items() if factor.usual} | dict(factors)
