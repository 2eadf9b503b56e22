"""How one comparison is judged, and what its row says of models, budgets and sentences."""

import numpy as np
import pytest
from scipy import stats

from experiments.report import claims, classifiers, sentences, verdicts
from experiments.report.intervals import Sample
from experiments.report.measurements import Measurement
from tests.measured import LAYERS, at, claims_of, measured, paper_of, sentence_of


@pytest.mark.parametrize(("share", "verdict"), [(0.6, "supported"), (0.5, "undecided"), (0.501, "undecided"), (0.4, "contradicted")])
def test_the_interval_decides(share, verdict):
    [row] = claims_of(Measurement({"start": "scratch", "way": "kNN"}, 0, at(0.5)), Measurement({"start": "pretrained", "way": "kNN"}, 0, at(share)))
    assert (row["what"], row["verdict"], row["difference"]) == ("start: pretrained above scratch", verdict, pytest.approx(share - 0.5))
    assert row["interval"][0] <= row["difference"] <= row["interval"][1] and row["sentences"] == []


def test_a_verdict_needs_the_whole_interval_on_one_side():
    ends = [(0.1, 0.2), (0.0, 0.2), (-0.1, 0.2), (-0.2, 0.0), (-0.2, -0.1), (0.0, 0.0)]
    assert [verdicts.judge(*both) for both in ends] == ["supported", "undecided", "undecided", "undecided", "contradicted", "undecided"]


def test_a_row_in_the_opposite_direction():
    row = {"difference": 0.2, "interval": [0.1, 0.4], "verdict": "supported", "what": "a"}
    assert verdicts.turned(row) == {"difference": -0.2, "interval": [-0.4, -0.1], "verdict": "contradicted", "what": "a"}
    assert verdicts.turned(verdicts.turned(row)) == row and verdicts.turned(row | {"verdict": "undecided"})["verdict"] == "undecided"
    assert verdicts.turned({"difference": None, "interval": None, "verdict": "undecided"}) == {"difference": None, "interval": None, "verdict": "undecided"}


def test_lower_losses_are_better():
    higher, lower = np.linspace(2, 3, 500), np.linspace(1.9, 2.9, 500)
    [row] = claims_of(Measurement({"size": "4x64"}, 0, lower, "nats"), Measurement({"size": "2x64"}, 0, higher, "nats"))
    assert row["what"] == "size: 4x64 above 2x64" and row["verdict"] == "supported" and row["difference"] == pytest.approx(0.1)
    assert (row["unit"], sentence_of(row), paper_of(row)) == ("nats", sentences.LOWER, "0.028 (S to M), 0.015 (M to L)")
    [row] = claims_of(Measurement({"step": 4}, 0, higher, "nats"), Measurement({"step": 2}, 0, lower, "nats"))
    assert row["what"] == "step: 4 above 2" and row["verdict"] == "contradicted" and row["interval"][1] < 0


def test_numbers_are_of_six_digits():
    assert (verdicts.rounded(1 / 3), verdicts.rounded(-1.2345678)) == (0.333333, -1.23457) and str(verdicts.rounded(-0.0)) == "0.0"


def test_a_row_says_of_how_many_models_it_speaks():
    many = [measured(0.5, seed, objective="bert") for seed in range(3)] + [measured(0.6, seed, objective="autoregressive") for seed in range(3)]
    [row] = claims_of(*many)
    assert (row["seeds"], row["of"], row["pretrained models"]) == ([3, 3], ["models"] * 2, 6)
    assert row["over"] == "test images and pretrainings" and row["images"] == 200 and row["paired"]
    [row] = claims_of(*many[1:])
    assert row["seeds"] == [3, 2] and row["pretrained models"] == 5 and row["over"] == "test images and pretrainings"
    [row] = claims_of(*many[1:3], many[3])
    assert row["seeds"] == [1, 2] and row["pretrained models"] == 3 and row["over"] == "test images, of these models only"


def test_models_that_both_sides_share_count_once():
    """Two steps, or two layers, of the same runs; raw pixels have no model."""
    runs = [measured(0.5, seed, size="2x64", step=step) for seed in range(3) for step in (100, 200)]
    [row] = claims_of(*runs)
    assert (row["seeds"], row["pretrained models"]) == ([3, 3], 3)
    rows = claims_of(measured(features="raw pixels"), measured(features="raw pixels", way="kNN"), *(measured(0.5, seed, objective="bert") for seed in (0, 1)))
    assert [(row["of"], row["pretrained models"]) for row in rows] == [(["models", "probes"], 2), (["probes", "probes"], 0)]


def test_trainings_from_scratch_are_no_pretrained_models():
    """Three draws of labels, each with an initialisation of its own; bert's votes of masks are of one training."""
    tuned = {"way": "fine-tuned", "loss": "joint"}
    starts = [measured(0.5, seed, objective="bert", start=start, **tuned) for seed in range(3) for start in ("scratch", "pretrained")]
    [row] = claims_of(*starts, study="objectives")
    assert row["of"] == ["draws", "trainings from scratch"] and (row["pretrained models"], row["trainings from scratch"]) == (1, 3)
    assert row["over"] == "test images and draws of the labels with their initialisations"
    both = [measured(0.5, seed, objective=one, start="scratch", **tuned) for seed in range(3) for one in ("bert", "autoregressive")]
    [row] = claims_of(*both, study="objectives")
    assert (row["pretrained models"], row["trainings from scratch"]) == (0, 6)
    masks = [measured(0.5, seed, objective="bert", start="scratch", masks=number, **tuned) for seed in range(3) for number in (1, 5)]
    [row] = claims_of(*masks, study="objectives")
    assert (row["pretrained models"], row["trainings from scratch"]) == (0, 3)
    [row] = claims_of(*(one._replace(factors=one.factors | {"start": "pretrained"}) for one in both), study="objectives")
    assert row["pretrained models"] == 2 and row["over"] == "test images and draws of the labels"
    losses = [measured(0.5, seed, objective="bert", start="scratch", way="fine-tuned", loss=loss) for seed in range(3) for loss in ("joint", "classification")]
    assert claims_of(*losses, study="objectives")[0]["trainings from scratch"] == 6
    several = [measured(0.5, seed, start="scratch", layer=layer) for seed in range(3) for layer in (0, 1, "best")]
    assert claims_of(*several)[0]["trainings from scratch"] == 3


def test_budgets_name_their_side():
    one, other = measured(layer=0, budget="100 labels"), measured(layer=1, budget="all labels")
    chosen = measured(layer="best", budget="100 labels")
    [row] = claims_of(one, other, chosen)
    assert row["larger"]["layer"] == 1 and row["budget"] == {"larger": "all labels", "smaller": "100 labels"}
    [row] = claims_of(one._replace(budget=""), other, chosen)
    assert row["budget"] == {"larger": "all labels", "smaller": ""}
    several = [one._replace(seed=seed, budget=budget) for seed, budget in enumerate(("step 200", "step 240", "step 200"))]
    [row] = claims_of(*several, *(other._replace(seed=seed) for seed in range(3)), *(chosen._replace(seed=seed) for seed in range(3)))
    assert row["budget"] == {"larger": "all labels", "smaller": "step 200; step 240"}


def test_draws_are_shared_by_all_models_and_seeds_by_those_of_one_pretraining():
    """Scores that move together with the seed: a difference of classifiers that share it hardly varies."""

    def models(study, name, levels, **common):
        made = [Measurement({name: level} | common, seed, at(0.3 + 0.1 * seed + 0.05 * (level == levels[1]))) for level in levels for seed in range(4)]
        [row] = claims_of(*made, study=study)
        return row["interval"][1] - row["interval"][0] < 0.1

    assert models("low_data", "objective", ("bert", "autoregressive")) and not models(LAYERS, "objective", ("bert", "autoregressive"))
    assert models("objectives", "start", ("scratch", "pretrained")) and not models(LAYERS, "start", ("scratch", "pretrained"))
    assert models(LAYERS, "way", ("linear probe", "fine-tuned")) and models("low_data", "way", ("linear probe", "fine-tuned"), labels=4)
    assert not models("low_data", "labels", (4, 25)) and models(LAYERS, "labels", (4, 25)) and not models(LAYERS, "size", ("2x64", "4x64"))
    assert not models("resolution", "resolution", (8, 16))


def test_seeds_are_paired_in_any_order():
    models = [measured(0.2 + 0.2 * seed, seed, labels=4, **way) for way in ({}, {"way": "kNN"}) for seed in range(4)]
    assert claims_of(*models, study="low_data") == claims_of(*(models[place] for place in (3, 0, 2, 1, 6, 7, 4, 5)), study="low_data")


def test_draws_that_both_sides_have_are_compared():
    """Of five draws and three the three; of two in common all, and so where the seeds are other pretrainings."""

    def row(study, name, few, many=5):
        made = [measured(0.2 + 0.1 * seed, seed, labels=4) for seed in range(many)]
        made += [measured(0.3 + 0.1 * seed, seed, labels=4, **name) for seed in few]
        [found] = claims_of(*made, study=study)
        means = [[one.scores.mean() for one in made if bool(name.items() <= one.factors.items()) == side and one.seed in few] for side in (True, False)]
        return found, means

    found, (larger, smaller) = row("low_data", {"way": "kNN"}, (0, 2, 4))
    assert found["seeds"] == [3, 3] and found["difference"] == pytest.approx(np.mean(smaller) - np.mean(larger), rel=1e-5)
    assert found["interval"][1] - found["interval"][0] < 0.4
    assert row("low_data", {"way": "kNN"}, (3, 4))[0]["seeds"] == [5, 2]
    assert row("low_data", {"way": "kNN"}, (0, 1, 2, 3, 4, 5), many=4)[0]["seeds"] == [4, 4]
    assert row(LAYERS, {"start": "scratch"}, (0, 2, 4))[0]["seeds"] == [5, 3]


def test_images_of_another_order_are_not_paired():
    one, other = measured(layer=0, fingerprint="a"), measured(layer=1, fingerprint="b")
    assert [row["paired"] for row in claims_of(one, other, measured(layer="best"))] == [False]
    assert [row["paired"] for row in claims_of(one, other._replace(fingerprint="a"), measured(layer="best"))] == [True]
    [row] = claims_of(one, measured(layer=1, images=100), measured(layer="best"))
    assert row["paired"] is False and row["larger"]["layer"] == 1 and row["images"] == 100  # of the larger side


def test_losses_of_several_models_without_scores_of_images_have_an_interval_over_seeds():
    """Welch's t of two sizes, and Student's t of the differences of two steps of the same runs, by scipy."""
    sizes = {"2x32": np.array([2.84, 2.86, 2.85]), "6x96": np.array([2.52, 2.60, 2.47])}
    steps = {100: np.array([2.9, 2.8, 2.7]), 200: np.array([2.8, 2.71, 2.59])}
    [row] = bare_losses("size", sizes)
    assert row["what"] == "size: 6x96 above 2x32" and (row["seeds"], row["pretrained models"], row["paired"]) == ([3, 3], 6, False)
    expected = stats.ttest_ind(sizes["2x32"], sizes["6x96"], equal_var=False)
    assert [row["difference"], *row["interval"]] == pytest.approx([0.32, *expected.confidence_interval()], rel=1e-4)
    assert row["over"] == "pretrainings, on these test images" and sentence_of(row) == sentences.LOWER
    [row] = bare_losses("step", steps)
    expected = stats.ttest_rel(steps[100], steps[200])
    assert [row["difference"], *row["interval"]] == pytest.approx([0.1, *expected.confidence_interval()], rel=1e-4)
    assert row["verdict"] == "supported" and row["pretrained models"] == 3
    assert bare_losses("size", {name: values[:2] for name, values in sizes.items()}) == []


def bare_losses(name, levels):
    """The claims about losses of which the mean of each model is known alone."""
    found = [
        classifiers.make("accuracy_by_loss", {name: level} | ({"size": "2x32"} if name == "step" else {}),
                         Sample(tuple(range(len(values))), values, 100, None, "nats"))
        for level, values in levels.items()
    ]  # fmt: skip
    return claims.compare("accuracy_by_loss", found)
