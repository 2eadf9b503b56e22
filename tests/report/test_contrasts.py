"""Comparisons of more than one thing: objectives before and after fine-tuning, equal losses, better generative models, the fall of the learning rate."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments.report import claims, classifiers, contrasts, sentences
from experiments.report.measurements import Measurement, to_json
from tests.measured import LAYERS, at, claims_of, curve, measured, sentence_of, sentences_of


def test_the_gap_between_two_objectives_is_compared_before_and_after_fine_tuning():
    """By hand, image by image; a model from random parameters has no part in it."""
    scores = {}
    for objective in ("bert", "autoregressive"):
        for way in ({}, {"way": "fine-tuned", "loss": "joint"}, {"way": "fine-tuned", "loss": "joint", "start": "scratch"}):
            scores[objective, len(way)] = measured(objective=objective, **way)
    [row] = [row for row in claims_of(*scores.values(), study="objectives") if row["factor"] == sentences.CLOSED]
    gap = {size: scores["autoregressive", size].scores - scores["bert", size].scores for size in (0, 2)}
    each = np.concatenate([gap[0] - gap[2], [-1, 1]])
    half = stats.t.ppf(0.975, 199) * each.std() / math.sqrt(202)
    assert row["difference"] == pytest.approx((gap[0] - gap[2]).mean()) and row["interval"] == pytest.approx([each.mean() - half, each.mean() + half], rel=1e-5)
    assert row["what"] == "the gap between autoregressive and bert: probe above fine-tuned" and sentence_of(row) == sentences.GAP
    assert [one["way"] + " " + one["objective"] for one in row["larger"]] == ["linear probe autoregressive", "fine-tuned bert"]
    assert [one["way"] + " " + one["objective"] for one in row["smaller"]] == ["linear probe bert", "fine-tuned autoregressive"]


def test_the_gap_is_of_equal_labels_and_of_the_best_layer_and_the_paper_s_of_the_joint_loss():
    found = []
    for objective in ("bert", "autoregressive"):
        found += [measured(objective=objective, labels=labels, layer=layer) for labels in (4, 25) for layer in (0, 1, "best")]
        found += [measured(objective=objective, labels=4, way="fine-tuned", loss=loss) for loss in ("joint", "classification")]
    rows = [row for row in claims_of(*found, study="low_data") if row["factor"] == sentences.CLOSED]
    assert [(row["with"], sentence_of(row)) for row in rows] == [
        ("labels 4, loss joint", sentences.GAP), ("labels 4, loss classification", None),
    ]  # fmt: skip
    assert all(one.get("layer", "best") == "best" for row in rows for one in row["larger"] + row["smaller"])


def test_sizes_are_compared_at_equal_losses():
    """By hand: accuracies on a line between the steps, at 16 losses from 2.2 to 2.8."""
    smaller, larger = curve("2x64", (3.0, 2.2), (0.3, 0.5)), curve("4x640", (2.8, 2.4, 2.0), (0.4, 0.6, 0.7))
    [row] = [row for row in claims_of(*smaller, *larger, study="accuracy_by_loss") if row["factor"] == sentences.EQUAL]
    small, large, wanted = 0, 0, [2.2 + 0.6 * number / 15 for number in range(16)]
    for loss in wanted:
        part = (3.0 - loss) / 0.8
        small = small + ((1 - part) * smaller[0].scores + part * smaller[2].scores) / 16
        first, part = (0, (2.8 - loss) / 0.4) if loss > 2.4 else (2, (2.4 - loss) / 0.4)
        large = large + ((1 - part) * larger[first].scores + part * larger[first + 2].scores) / 16
    each = np.concatenate([large - small, [-1, 1]])
    half = stats.t.ppf(0.975, 499) * each.std() / math.sqrt(502)
    assert row["difference"] == pytest.approx((large - small).mean(), rel=1e-5) and row["losses"] == [2.2, 2.8]
    assert row["interval"] == pytest.approx([each.mean() - half, each.mean() + half], rel=1e-4)
    assert (row["what"], row["verdict"], sentence_of(row)) == ("size at equal loss: 4x640 above 2x64", "supported", sentences.EQUAL_LOSS)


def test_each_model_is_read_at_its_own_losses():
    """Three seeds: each has its own accuracy at the wanted losses, so that the interval is over seeds too."""
    runs = [one for seed in range(3) for one in curve("2x64", (3.0 + 0.1 * seed, 2.0), (0.3, 0.5 + 0.1 * seed), seed=seed)]
    found = classifiers.group("accuracy_by_loss", runs)
    losses = contrasts.losses_of(found)
    assert {sample.unit for order in (found, found[::-1]) for sample in contrasts.losses_of(order).values()} == {"nats"}
    pairs = [(losses[contrasts.key_of(one)], one) for one in found if one.sample.unit == "accuracy"]
    sample = contrasts._at_losses(pairs, np.array([2.5]))
    share = [(0.5 / (1 + 0.1 * seed)) for seed in range(3)]  # of the first step
    assert sample.means == pytest.approx([0.3 * part + (0.5 + 0.1 * seed) * (1 - part) for seed, part in enumerate(share)])
    assert sample.scores.shape == (3, 500) and sample.scores.mean(axis=1) == pytest.approx(sample.means)


def test_every_model_must_reach_the_losses():
    runs = [*curve("2x64", (3.0, 2.0), (0.3, 0.5)), *curve("2x64", (2.9, 2.1), (0.3, 0.5), seed=1), *curve("4x640", (2.95, 1.9), (0.4, 0.6))]
    [row] = [row for row in claims_of(*runs, study="accuracy_by_loss") if row["factor"] == sentences.EQUAL]
    assert row["losses"] == [2.1, 2.9] and row["seeds"] == [1, 2]


def test_sizes_without_a_common_loss_are_not_judged():
    runs = [*curve("2x64", (3.0, 2.6), (0.3, 0.5)), *curve("4x640", (2.5, 2.0), (0.4, 0.6)), *curve("8x640", (2.6, 1.9), (0.4, 0.6))]
    rows = [row for row in claims_of(*runs, study="accuracy_by_loss") if row["factor"] == sentences.EQUAL]
    assert [(row["verdict"], row["interval"]) for row in rows[:2]] == [("undecided", None)] * 2 and rows[2]["interval"] is not None
    assert rows[0]["why"] == "no loss is reached by all models of both: the nearest are 2.500 and 2.600" and rows[0]["difference"] is None
    assert [(rows[0][side]["size"], rows[0][side]["step"]) for side in ("larger", "smaller")] == [("4x640", 200), ("2x64", 200)]
    assert rows[1]["why"] == "no loss is reached by all models of both: the nearest are 2.600 and 2.600"


def test_losses_of_other_seeds_are_refused():
    runs = curve("2x64", (3.0, 2.0), (0.3, 0.5)) + curve("4x640", (2.9, 1.9), (0.4, 0.6))
    runs[1] = runs[1]._replace(seed=7)
    with pytest.raises(ValueError, match="losses and accuracies are of other seeds"):
        claims_of(*runs, study="accuracy_by_loss")


def test_fine_tuned_models_are_compared_with_raw_pixels_of_the_same_labels():
    tuned = {"way": "fine-tuned", "loss": "joint", "objective": "bert"}
    found = [measured(features="raw pixels", labels=number) for number in (4, 25)] + [measured(features="raw pixels", way="kNN", labels=4)]
    found += [measured(**tuned, labels=4), measured(**tuned, labels=4, start="scratch")]
    rows = [row for row in claims_of(*found, study="low_data") if row["factor"] == sentences.BOTH]
    assert [row["what"] for row in rows] == ["fine-tuned above linear probe of raw pixels"] * 2
    assert [sentence_of(row) for row in rows] == [sentences.TUNED_PIXELS, None]
    assert rows[0]["difference"] == pytest.approx(found[3].scores.mean() - found[0].scores.mean())


def test_the_better_generative_model_is_the_one_with_the_lower_loss():
    """All pairs of models count, in the direction of their losses; sizes at equal steps and steps of one size are the same claims as under their sentences."""
    runs = [*curve("2x64", (3.0, 2.6), (0.3, 0.5)), *curve("4x640", (3.1, 2.0), (0.4, 0.6))]
    rows = [row for row in claims_of(*runs, study="accuracy_by_loss") if row["unit"] == "accuracy" and "test losses" in row]
    found = {row["what"] + "; " + row["with"]: row for row in rows}
    assert len(rows) == 6 and all(sentences.GENERATIVE in sentences_of(row) for row in rows)
    early, late = (found[f"size: 4x640 above 2x64; step {step}, layer best"] for step in (100, 200))
    assert sentences_of(early) == sentences_of(late) == [sentences.LARGER, sentences.GENERATIVE]
    assert [one["opposite"] for one in early["sentences"]] == [False, True] and not any(one["opposite"] for one in late["sentences"])
    assert early["sentences"][1]["what"] == "size: 2x64 above 4x640" and late["sentences"][1]["what"] == late["what"]
    assert (early["test losses"]["lower"], early["test losses"]["higher"], early["test losses"]["decided"]) == (3.0, 3.1, True)
    assert sentences_of(found["step: 200 above 100; size 2x64, layer best"]) == [sentences.LONGER, sentences.GENERATIVE]
    two = [row for row in rows if row["factor"] == sentences.LOSS]
    sides = ("4x640 at step 200 above 2x64 at step 100", "2x64 at step 200 above 4x640 at step 100")
    assert [row["what"] for row in two] == [f"size and step: {one}" for one in sides]
    assert two[0]["difference"] == pytest.approx(0.3) and two[1]["difference"] == pytest.approx(0.1) and two[0]["with"] == "layer best"
    assert not any("test losses" in row for row in claims_of(measured(size="2x64"), measured(size="4x64")))


def test_models_whose_losses_do_not_differ_beyond_chance_are_told_apart(tmp_path):
    runs = curve("2x64", (3.0, 2.0), (0.3, 0.5)) + curve("4x640", (2.5, 2.5), (0.4, 0.6))
    noise = np.random.default_rng(0).normal(0, 1, 500)
    runs[7] = runs[7]._replace(scores=runs[5].scores + noise - noise.mean() + 0.001)
    (tmp_path / "accuracy_by_loss.json").write_text(json.dumps({"measurements": list(map(to_json, runs))}))
    found = claims.all_claims(tmp_path)
    [pair] = found["undecided losses"]
    assert pair.startswith("accuracy_by_loss: size 4x640, step 100, layer best and size 4x640, step 200, layer best: 2.5000 and 2.5010 nats")
    [row] = [row for row in found["claims"] if row["what"] == "step: 200 above 100" and "4x640" in row["with"] and row["unit"] == "accuracy"]
    assert sentences_of(row) == [sentences.LONGER] and row["test losses"]["decided"] is False
    assert sum(sentences.GENERATIVE in sentences_of(row) for row in found["claims"]) == 5


def test_neighbours_and_single_layers_are_no_better_models():
    runs = curve("2x64", (3.0, 2.2), (0.3, 0.5), way="kNN") + curve("4x640", (2.8, 2.0), (0.4, 0.6), way="kNN")
    rows = claims_of(*runs, study="accuracy_by_loss")
    assert {name for row in rows if row["unit"] == "accuracy" for name in sentences_of(row)} == set()
    numbered = [one._replace(factors=one.factors | {"layer": 3}) if one.unit == "accuracy" else one for one in curve("2x64", (3.0, 2.2), (0.3, 0.5))]
    assert contrasts.loss_pairs(classifiers.group(LAYERS, numbered)) == [] and len(contrasts.loss_pairs(classifiers.group(LAYERS, runs))) == 6


def test_the_fall_of_the_learning_rate_has_its_own_sentence():
    """Two things differ between the steps, so the pair is none of the sentence on longer training."""
    one = {"size": "12x128", "objective": "autoregressive"}
    before, after = ({"step": 5070, "learning rate": "constant"}, {"step": 5700, "learning rate": "decayed"})
    losses = [Measurement(one | names, 0, at(0.5) + share, "nats") for names, share in ((before, 1.1), (after, 1.0))]
    [row] = claims_of(*losses, study="cifar10_16")
    assert row["what"] == "step and learning rate: 5700 decayed above 5070 constant" and sentence_of(row) == sentences.DECAYED
    assert row["difference"] == pytest.approx(0.1) and row["verdict"] == "supported" and row["factor"] == sentences.FALL
    [row] = claims_of(*(measured(**one, **names) for names in (before, after)))
    assert row["factor"] == sentences.FALL and row["sentences"] == []
    constant = {"step": 2000, "learning rate": "constant"}
    rows = claims_of(*losses, Measurement(one | constant, 0, at(0.5) + 1.2, "nats"), study="cifar10_16")
    assert [row["what"] for row in rows] == ["step: 5070 above 2000", *(f"step and learning rate: 5700 decayed above {step} constant" for step in (5070, 2000))]
    other = [losses[0], losses[1]._replace(factors=losses[1].factors | {"size": "6x96"})]
    assert claims_of(*other, study="cifar10_16") == []


@pytest.mark.parametrize(("constant", "number"), [(5070, 1), (5700, 0), (6000, 0)])
def test_the_fall_of_the_learning_rate_comes_after_the_steps_before_it(constant, number):
    """A run may go on at a constant rate past the step where a copy of it ended with a fall. The rate alone is not compared."""
    ends = [{"step": constant, "learning rate": "constant"}, {"step": 5700, "learning rate": "decayed"}]
    for unit in ("nats", "accuracy"):
        rows = claims_of(*(measured(size="12x128", unit=unit, **one) for one in ends), study="cifar10_16")
        assert [row["factor"] for row in rows] == [sentences.FALL] * number
