"""Made-up measurements of studies, and the claims about them."""

import json

import numpy as np

from experiments.report import claims
from experiments.report.measurements import Measurement, to_json

LAYERS = "accuracy_by_layer"


def measured(share=0.5, seed=0, unit="accuracy", images=200, budget="", fingerprint="", **factors):
    """A measurement with made-up scores, others for every factor and seed."""
    text = json.dumps([sorted(factors.items()), seed, unit])
    scores = np.random.default_rng(list(text.encode())).random(images)
    scores = (scores < share).astype(float) if unit == "accuracy" else scores + share
    return Measurement(factors, seed, scores, unit, budget, fingerprint)


def at(share, images=1_000):
    return (np.arange(images) < share * images).astype(float)


def curve(size, losses, shares, seed=0, images=500, **factors):
    """Accuracies and losses of a size at steps 100, 200, ..."""
    found = []
    for number, (loss, share) in enumerate(zip(losses, shares, strict=True)):
        place = {"size": size, "step": 100 * (number + 1)} | factors
        found.append(Measurement(place | {"layer": "best"}, seed, np.random.default_rng([seed, number, len(size)]).permutation(at(share, images))))
        found.append(Measurement(place, seed, np.full(images, loss) + np.linspace(-0.1, 0.1, images), "nats"))
    return found


def claims_of(*measurements, study=LAYERS):
    return judged(study, {"measurements": [to_json(one) for one in measurements]})


def judged(study, contents):
    return claims.compare(study, claims.read(study, json.loads(json.dumps(contents))))


def whats(*measurements, study=LAYERS):
    return [row["what"] for row in claims_of(*measurements, study=study)]


def sentences_of(row):
    """The sentences that a claim is about; a claim that is about one or none: see `sentence_of`."""
    return [one["sentence"] for one in row["sentences"]]


def sentence_of(row):
    """The only sentence of a claim, None if it has none."""
    [*found] = sentences_of(row) or [None]
    assert len(found) == 1
    return found[0]


def paper_of(row):
    """The paper's number for a claim about one sentence."""
    [one] = row["sentences"]
    return one["paper"]
