"""Which comparisons are made of a study's measurements, and under which sentences of the paper; what is refused; committed claims by hand."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats

from experiments.report import claims, claims_table, classifiers, findings, former, sentences
from experiments.report.classifiers import SEEDS
from experiments.report.measurements import Measurement, budget_of_probe, fingerprint_of, from_json, to_json
from experiments.studies import accuracy_by_layer, low_data, resolution
from tests.measured import LAYERS, claims_of, curve, judged, measured, paper_of, sentence_of, sentences_of, whats


def test_the_committed_claims_are_those_of_the_committed_studies():
    found = claims.all_claims(claims.RESULTS)
    assert found == json.loads((claims.RESULTS / "claims.json").read_text()), f"run {claims.COMMAND}"
    assert claims_table.table(found) == (claims.RESULTS / "claims.md").read_text(), f"run {claims.COMMAND}"


def test_all_pairs_of_few_levels_that_differ_in_one_factor_are_compared_and_no_others():
    ways = [{"way": "linear probe"}, {"way": "kNN"}, {"way": "fine-tuned", "loss": "joint"}, {"way": "fine-tuned", "loss": "classification"}]
    models = [measured(objective=objective, labels=labels, **way) for objective in ("bert", "autoregressive") for labels in (4, 25) for way in ways]
    found = [(row["what"], row["with"]) for row in claims_of(*models, study="low_data") if row["factor"] in sentences.FACTORS]
    expected = [("objective: autoregressive above bert", f"{way}labels {labels}{loss}") for labels in (4, 25) for way, loss in (
        ("", ""), ("way kNN, ", ""), ("way fine-tuned, ", ", loss joint"), ("way fine-tuned, ", ", loss classification"))]  # fmt: skip
    for objective in ("bert", "autoregressive"):
        for labels in (4, 25):
            context = f"objective {objective}, labels {labels}"
            tuned = ("linear probe", "fine-tuned") if labels == 4 else ("fine-tuned", "linear probe")
            expected += [("way: linear probe above kNN", context), (f"way: {tuned[0]} above {tuned[1]}", f"{context}, loss joint")]
            expected += [("way: fine-tuned above linear probe", f"{context}, loss classification")]
            expected += [("way: fine-tuned above kNN", f"{context}, loss {loss}") for loss in ("joint", "classification")]
            expected += [("loss: joint above classification", f"way fine-tuned, {context}")]
        for way, loss in (("", ""), ("way kNN, ", ""), ("way fine-tuned, ", ", loss joint"), ("way fine-tuned, ", ", loss classification")):
            expected.append(("labels: 25 above 4", f"{way}objective {objective}{loss}"))
    assert sorted(found) == sorted(expected)


def test_raw_pixels_have_no_model_and_are_compared_with_every_one():
    models = [measured(objective=objective, layer="best", masks=masks) for objective, masks in (("bert", 5), ("bert", 1), ("autoregressive", 1))]
    found = claims_of(measured(features="raw pixels"), measured(features="raw pixels", way="kNN"), *models, study="objectives")
    with_pixels = [row for row in found if row["factor"] == "features"]
    assert [row["larger"]["objective"] for row in with_pixels] == ["bert", "bert", "autoregressive"]
    assert all(row["smaller"] == {"way": "linear probe", "start": "pretrained", "features": "raw pixels"} for row in with_pixels)
    assert [row["what"] for row in found if row["smaller"]["features"] == row["larger"]["features"] == "raw pixels"] == ["way: linear probe above kNN"]


@pytest.mark.parametrize("own", [{"objective": "prefix"}, {"layer": "best"}, {"size": "2x64"}, {"step": 9}, {"learning rate": "decayed"}, {"masks": 5}])
def test_what_a_model_alone_has_does_not_keep_raw_pixels_from_it(own):
    [row] = claims_of(measured(features="raw pixels", labels=4), measured(labels=4, **own), study="low_data")
    assert (row["factor"], sentence_of(row)) == ("features", sentences.PIXELS) and own.items() <= row["larger"].items()
    assert claims_of(measured(features="raw pixels", labels=4), measured(labels=4, resolution=8, **own), study="low_data") == []


def test_levels_stand_in_the_order_of_the_paper_where_no_sentence_is_about_them():
    for common in ({}, {"way": "fine-tuned", "loss": "joint"}):
        rows = claims_of(*(measured(objective=one, **common) for one in ("autoregressive", "bert", "prefix")))
        sides = ("prefix above bert", "autoregressive above bert", "autoregressive above prefix")
        assert [row["what"] for row in rows] == [f"objective: {one}" for one in sides]
        assert [len(row["sentences"]) for row in rows] == [0, 1, 0]
    for labels in (4, 25):
        [row] = claims_of(measured(way="fine-tuned", loss="joint", labels=labels), measured(way="kNN", labels=labels), study="low_data")
        assert (row["what"], row["sentences"]) == ("way: fine-tuned above kNN", [])
    scratch = [measured(way="fine-tuned", start="scratch", loss=loss) for loss in ("joint", "classification")]
    assert whats(*scratch) == ["loss: joint above classification"]


def test_layers_are_compared_at_the_best_and_among_each_other_by_one_rule():
    """Of 13 layers: the best interior one with both ends, the middle and the first with the last, and neighbours.

    The paper's curve rises until 20/48 of the depth and falls from 21/48 on.
    """
    levels = [*range(13), "best", "best interior"]
    found = whats(
        *(measured(objective="bert", layer=level) for level in levels), measured(objective="autoregressive", layer="best"), measured(features="raw pixels")
    )
    assert found == [
        *["features: model above raw pixels"] * 15, "objective: autoregressive above bert",
        "layer: best interior above 0", "layer: best interior above 12", "layer: 5 above 12", "layer: 12 above 0",
        "layer: 1 above 0", "layer: 2 above 1", "layer: 3 above 2", "layer: 4 above 3", "layer: 5 above 4", "layer: 6 above 5",
        "layer: 6 above 7", "layer: 7 above 8", "layer: 8 above 9", "layer: 9 above 10", "layer: 10 above 11", "layer: 11 above 12",
    ]  # fmt: skip
    rows = [row for row in claims_of(*(measured(layer=level) for level in levels))]
    expected = [sentences.FIRST, sentences.LAST, sentences.MIDDLE_LAST, sentences.LAST_FIRST]
    assert [sentence_of(row) for row in rows] == expected + [sentences.UNIMODAL] * 5 + [None] + [sentences.UNIMODAL] * 6
    assert [paper_of(row) for row in rows[:4]] == [None, "+2.4 (L, CIFAR-10)", "+2.4 (L, CIFAR-10)", None]


def test_the_paper_s_48_layers_rise_to_20_and_fall_from_21():
    rows = claims_of(*(measured(layer=level, images=20) for level in [*range(49), "best", "best interior"]))[4:]
    assert [row["what"] for row in rows[18:23]] == [f"layer: {one}" for one in ("19 above 18", "20 above 19", "21 above 20", "21 above 22", "22 above 23")]
    assert [number for number, row in enumerate(rows) if not row["sentences"]] == [20] and len(rows) == 48


def test_layers_of_models_of_any_depth_rise_and_fall_as_the_paper_s_48_do():
    for last in range(3, 100):
        found = [(pair.kind[0], pair.larger) for pair in sentences.pairs(LAYERS, "layer", {*range(last + 1), "best", "best interior"})]
        assert [layer for kind, layer in found if kind == sentences.RISING] == [layer for layer in range(1, last + 1) if 48 * layer <= 20 * last]
        assert [layer for kind, layer in found if kind == sentences.FALLING] == [layer for layer in range(last) if 48 * layer >= 21 * last]
        assert sentences.middle_of(last) == (41 * last + 48) // 96


@pytest.mark.parametrize(("last", "middle"), [(2, 1), (4, 2), (6, 3), (8, 3), (12, 5), (24, 10), (48, 21)])
def test_the_middle_layer_is_at_the_depth_of_the_paper_s_best(last, middle):
    assert sentences.middle_of(last) == middle


def test_nearest_neighbours_of_the_middle_and_of_the_last_layer_have_sentences_of_their_own():
    rows = claims_of(*(measured(layer=level, way="kNN") for level in [*range(13), "best", "best interior"]))
    told = {row["what"]: sentences_of(row) for row in rows if row["sentences"]}
    assert told == {"layer: 5 above 12": [sentences.KNN_MIDDLE_LAST], "layer: 12 above 0": [sentences.KNN_LAST_FIRST]}


def test_neighbours_and_linear_probes_are_compared_at_every_layer_of_both():
    levels = [*range(3), "best", "best interior"]
    found = [measured(layer=level, way=way) for level in levels for way in ("kNN", "linear probe")] + [measured(way="fine-tuned", loss="joint")]
    rows = [row for row in claims_of(*found) if row["factor"] == "way"]
    assert [row["larger"]["layer"] for row in rows if row["what"] == "way: linear probe above kNN"] == ["best", 0, 1, 2]
    assert {row["with"] for row in rows if "fine-tuned" in row["what"]} == {"layer best, loss joint"}


def test_two_layers_have_no_interior():
    assert whats(*(measured(layer=level) for level in (0, 1, "best"))) == ["layer: 1 above 0"]


@pytest.mark.parametrize(("levels", "lacks"), [((0, 1, 2, "best"), "'best interior'"), ((0, 1, 2, "best interior"), "'best'"), ((3, "best"), "two numbers")])
def test_layers_without_the_chosen_ones_are_refused(levels, lacks):
    with pytest.raises(ValueError, match=f"accuracy_by_layer has the layers .* lacks {lacks}"):
        whats(*(measured(layer=level) for level in levels))


def test_many_levels_are_compared_between_neighbours_and_at_the_ends():
    assert len(whats(*(measured(labels=number) for number in (1, 2, 3, 4, 100)), study="low_data")) == 10
    found = whats(*(measured(labels=number) for number in (100, 1, 2, 3, 4, 25)), study="low_data")
    assert found == [f"labels: {larger} above {smaller}" for smaller, larger in ((1, 2), (2, 3), (3, 4), (4, 25), (25, 100), (1, 100))]


def test_sizes_are_ordered_by_their_parameters():
    found = whats(*(measured(size=size) for size in ("12x64", "4x128@0.001", "8x64")))
    assert found == ["size: 12x64 above 8x64", "size: 4x128@0.001 above 8x64", "size: 4x128@0.001 above 12x64"]


def test_data_sets_are_not_compared_and_losses_only_of_one_task():
    one = {"size": "4x64", "step": 100}
    assert not claims_of(measured(data="a"), measured(data="b"), measured(data="c", labels=4))
    found = classifiers.group(LAYERS, [measured(size="4x64", step=step, unit=unit) for step in (1, 2) for unit in ("accuracy", "nats")])
    assert [classifiers.differing(a, b) for a in found for b in found if a.sample.unit != b.sample.unit] == [None] * 8
    losses = [measured(unit="nats", **(one | other)) for other in ({}, {"objective": "bert"}, {"resolution": 8}, {"resolution": 16})]
    assert not claims_of(*losses, measured(**one))
    assert whats(*(measured(unit="nats", size=size) for size in ("4x64", "8x64"))) == ["size: 8x64 above 4x64"]


def test_the_paper_s_direction_depends_on_the_other_factors():
    tuned, probe = {"way": "fine-tuned", "loss": "joint", "objective": "bert"}, {"objective": "bert"}
    few, many = ("way: linear probe above fine-tuned", "+31.1"), ("way: fine-tuned above linear probe", "+2.7")
    for labels, (what, paper) in ((1, few), (2, few), (3, few), (4, few), (5, many)):
        [row] = claims_of(measured(labels=labels, **tuned), measured(labels=labels, **probe), study="low_data")
        assert row["what"] == what and paper_of(row).startswith(paper) and sentence_of(row) == (sentences.FEW if labels <= 4 else sentences.TUNED)
        better, worse = (probe, tuned) if labels <= 4 else (tuned, probe)
        usual = {"way": "linear probe", "start": "pretrained", "features": "model", "labels": labels}
        assert row["larger"] == usual | better and row["smaller"] == usual | worse
    for labels in (4, 5):
        classified = measured(labels=labels, **tuned | {"loss": "classification"})
        random = [measured(labels=labels, start="scratch", **one) for one in (tuned, probe)]
        for pair in ((classified, measured(labels=labels, **probe)), random):
            [row] = claims_of(*pair, study="low_data")
            assert (row["what"], row["sentences"]) == ("way: fine-tuned above linear probe", [])
    objectives = [{"objective": "autoregressive"}, {"objective": "bert"}]
    [probes] = claims_of(*(measured(**one) for one in objectives))
    [finetuned] = claims_of(*(measured(**one | {"way": "fine-tuned", "loss": "joint"}) for one in objectives))
    [random] = claims_of(*(measured(**one | {"start": "scratch"}) for one in objectives))
    assert probes["sentences"][0]["place"] == "figure 4" and sentence_of(finetuned) == sentences.FIGURE_4 and random["sentences"] == []
    assert paper_of(finetuned) == "+0.4 (99.0 against 98.6, L, CIFAR-10)"


PROBED, TUNED, CLASSIFIED = {}, {"way": "fine-tuned", "loss": "joint"}, {"way": "fine-tuned", "loss": "classification"}
RAW = {"features": "raw pixels"}
CONDITIONS = [  # factor, its two levels; what the two classifiers have in common, with the sentence; and in common where there is none
    ("objective", "bert", "autoregressive", [(PROBED, "next pixel probes better than masked pixels"), (TUNED, sentences.FIGURE_4)], [CLASSIFIED]),
    ("start", "scratch", "pretrained", [(TUNED, sentences.START), (CLASSIFIED, sentences.START)], [PROBED]),
    ("loss", "classification", "joint", [({"way": "fine-tuned"}, sentences.JOINT)], []),
    ("labels", 4, 25, [(PROBED, "more labels are better")], [TUNED, RAW]),
    ("resolution", 8, 16, [(PROBED, "larger images are better"), (TUNED, "larger images are better")], [RAW]),
    ("size", "2x64", "4x64", [(PROBED, sentences.LARGER)], [TUNED]),
    ("step", 1, 2, [(PROBED, sentences.LONGER)], [TUNED]),
    ("masks", 1, 5, [({"objective": "bert"}, "the vote of several masks is better than one mask")], []),
]


@pytest.mark.parametrize(("factor", "smaller", "larger", "about", "silent"), CONDITIONS)
def test_a_sentence_is_about_classifiers_of_its_own_conditions(factor, smaller, larger, about, silent):
    """Of no others, though they differ in the same levels: the paper compares models from random parameters with pretrained ones, and not with each other."""
    random = [{"start": "scratch"} | common for common, _ in about] if factor != "start" else []
    for common, text in about + [(common, None) for common in silent + random]:
        [row] = claims_of(*(measured(**common, **{factor: level}) for level in (smaller, larger)))
        assert (row["what"], sentence_of(row)) == (f"{factor}: {larger} above {smaller}", text), common


def test_layers_of_random_parameters_are_about_no_sentence():
    levels, runs = [*range(13), "best", "best interior"], [*curve("2x64", (3.0, 2.2), (0.3, 0.5)), *curve("4x640", (2.8, 2.0), (0.4, 0.6))]
    random = claims_of(*(measured(layer=level, start="scratch") for level in levels), measured(features="raw pixels", start="scratch"))
    random += claims_of(*(one._replace(factors=one.factors | {"start": "scratch"}) for one in runs), study="accuracy_by_loss")
    tuned = claims_of(*(one._replace(factors=one.factors | {"way": "fine-tuned"}) for one in runs), study="accuracy_by_loss")
    assert len(random) > 30 and not any(row["sentences"] for row in random)
    assert {name for row in tuned for name in sentences_of(row)} == {sentences.LOWER}


def test_a_sentence_without_a_place_says_that_the_paper_is_silent():
    """Its place decides as whose sentence a comparison is counted."""
    silent = "(the paper is silent)"
    assert [one.text for one in sentences.SENTENCES if (one.place == "") != one.text.endswith(silent)] == []
    assert {one.place.split()[0].rstrip("s") for one in sentences.SENTENCES if one.place} == {"figure", "table", "text", "taken"}
    in_text = {(one.text, one.place == findings.TEXT) for one in sentences.SENTENCES}
    assert len(in_text) == len({text for text, _ in in_text})  # a row of the table, or a count beside it
    assert {one.text for one in sentences.SENTENCES if one.place == sentences.GRANTED} == {sentences.PIXELS, sentences.TUNED_PIXELS}


def test_every_sentence_can_be_about_a_comparison():
    """Made of its own levels, and with its own unit; of more than one factor, it is one of the contrasts."""
    several = {sentences.CLOSED, sentences.EQUAL, sentences.BOTH, sentences.LOSS, sentences.FALL}
    assert {sentence.factor for sentence in sentences.SENTENCES} - sentences.FACTORS.keys() == several
    for sentence in sentences.SENTENCES:
        if sentence.factor in sentences.FACTORS and sentence.factor != "layer":
            factor = sentences.FACTORS[sentence.factor]
            levels = [sentence.smaller, sentence.larger] if sentence.smaller else list(factor.levels[-2:]) if factor.levels else [8, 16]
            context = {name: allowed[0] for name, allowed in sentence.where.items()} | {"layer": 0 if sentence.layers else "best"}
            found = sentences.directed(sentences.Pair(*levels, None), sentence.factor, context, sentence.unit)
            assert found[:3] == (*levels, sentence)
            assert sentences.directed(sentences.Pair(*levels[::-1], None), sentence.factor, context, sentence.unit).sentence


def test_neighbours_in_feature_space_count_under_no_sentence_of_the_paper():
    """The paper has only linear probes; nearest neighbours against raw pixels are told by themselves."""
    levels = [*range(4), "best", "best interior"]
    found = [measured(way="kNN", layer=level) for level in levels] + [measured(way="kNN", layer="best", labels=number) for number in (4, 25)]
    found += [measured(way="kNN", layer="best", size=size, objective=objective) for size in ("2x32", "4x64") for objective in ("bert", "autoregressive")]
    told = {name for row in claims_of(*found, study="low_data") for name in sentences_of(row)}
    assert told == {sentences.KNN_LAST_FIRST, sentences.KNN_MIDDLE_LAST} and len(claims_of(*found, study="low_data")) > 8
    rows = claims_of(*found[:6], measured(way="kNN", features="raw pixels"))
    assert sorted(sentence_of(row) for row in rows if row["factor"] == "features") == [sentences.EVERY] * 4 + [sentences.NEAREST]


def test_layers_are_compared_with_raw_pixels_with_another_objective_and_with_one_mask():
    levels = [*range(3), "best", "best interior"]
    found = [measured(layer=level, objective="bert", masks=masks) for level in levels for masks in (1, 5)]
    found += [measured(layer=level, objective="autoregressive") for level in levels] + [measured(features="raw pixels")]
    rows = claims_of(*found, study="objectives")
    for factor, sides in (("features", 3), ("objective", 2), ("masks", 1)):
        layers = [row["larger"]["layer"] for row in rows if row["factor"] == factor]
        assert sorted(map(str, layers)) == sorted(["0", "1", "2", "best"] * sides)
    told = {row["factor"]: sentence_of(row) for row in rows if row["larger"].get("layer") == 1 and row["factor"] != "layer"}
    assert told == {"features": sentences.EVERY, "objective": None, "masks": None}
    several = [measured(layer=level, size=size) for level in levels for size in ("2x64", "4x64")]
    assert [row["larger"]["layer"] for row in claims_of(*several) if row["factor"] == "size"] == ["best"]


def test_two_names_of_one_layer_are_one_claim_about_the_sentences_of_both(tmp_path):
    """The best interior layer is layer 1, which is the middle one too, and the best one."""
    raw, layers = measured(features="raw pixels"), [measured(layer=level) for level in range(3)]
    chosen = [layers[1]._replace(factors={"layer": level}) for level in ("best", "best interior")]
    rows = claims_of(raw, *layers, *chosen)
    told = {row["what"]: sentences_of(row) for row in rows if row["factor"] == "layer"}
    assert told == {
        "layer: best interior above 0": [sentences.FIRST],
        "layer: best interior above 2": [sentences.LAST, sentences.MIDDLE_LAST, sentences.UNIMODAL],
        "layer: 2 above 0": [sentences.LAST_FIRST],
    }
    again = [row["same as"] for row in rows if row["factor"] == "layer" and "same as" in row]
    assert again == [["layer: 1 above 0"], ["layer: 1 above 2"]]
    [_, last, _] = [row["sentences"] for row in rows if row["factor"] == "layer"]
    assert [one["what"] for one in last] == ["layer: best interior above 2", "layer: 1 above 2", "layer: 1 above 2"]
    assert not any(one["opposite"] for row in rows for one in row["sentences"])
    pixels = [row for row in rows if row["factor"] == "features"]
    assert [row["larger"]["layer"] for row in pixels] == ["best", 0, 2]
    assert sentences_of(pixels[0]) == [sentences.PIXELS, sentences.EVERY] and [one["layer"] for one in pixels[0]["sentences"]] == ["best", 1]
    (tmp_path / f"{LAYERS}.json").write_text(json.dumps({"measurements": [to_json(one) for one in (raw, *layers, *chosen)]}))
    found = claims.all_claims(tmp_path)
    assert found["not compared"] == [] and found["left out by the rule"] == {}


def test_one_layer_of_two_objectives_is_one_claim_at_the_best_and_by_its_number():
    found = [measured(layer=level, objective=one) for level in (0, 1) for one in ("bert", "autoregressive")]
    found += [one._replace(factors=one.factors | {"layer": "best"}) for one in found[2:]]
    rows = [row for row in claims_of(*found) if row["factor"] == "objective"]
    assert [(row["with"], row.get("same as")) for row in rows] == [
        ("layer best", ["objective: autoregressive above bert, layer 1"]), ("layer 0", None)
    ]  # fmt: skip


def test_layers_of_equal_accuracy_are_no_twins_and_the_best_one_is_the_layer_that_was_chosen():
    """A file that stores accuracies alone: layers 1 and 2 are equally good, and layer 2 was chosen."""
    rows = [{"layer": number, "validation": 0.1 * min(number, 5 - number + 0.5), "test": test} for number, test in enumerate((0.1, 0.3, 0.3, 0.2))]
    rows[2]["validation"] = 0.9
    probe = {"counts": {"train": 9, "validation": 3, "test": 100}, "layers": rows, "raw_pixels": {"test": 0.25}}
    found = judged("digits", {"seed": 0, "probe": probe})
    about = [row for row in found if row["factor"] == "features"]
    assert [(row["larger"]["layer"], len(row["sentences"])) for row in about] == [("best", 2), (0, 1), (1, 1), (3, 1)]
    assert {row["what"]: row.get("same as") for row in found if row["factor"] == "layer"} == {
        "layer: best interior above 0": None, "layer: best interior above 3": ["layer: 2 above 3"], "layer: 1 above 3": None, "layer: 3 above 0": None,
        "layer: 1 above 0": None, "layer: 2 above 1": None,
    }  # fmt: skip


def test_a_best_layer_that_differs_between_seeds_is_none_of_the_numbers():
    assert former.common([3, 3]) == 3 and former.common([3, 2]) is None
    layers = [measured(0.5, seed, layer=level) for level in (0, 1) for seed in (0, 1)]
    of_one = [layers[2 + seed]._replace(factors={"layer": "best"}) for seed in (0, 1)]
    assert [row.get("same as") for row in claims_of(measured(features="raw pixels"), *layers, *of_one)] == [
        ["features: model above raw pixels, layer 1"], None, None,
    ]  # fmt: skip
    of_two = [layers[2 * seed + seed]._replace(factors={"layer": "best"}) for seed in (0, 1)]
    assert not any("same as" in row for row in claims_of(measured(features="raw pixels"), *layers, *of_two))


def test_equal_scores_of_other_classifiers_are_no_twins():
    """Two sizes that are right on the same images; a claim is joined with another only where a layer has two names."""
    one = measured(size="2x64")
    rows = claims_of(one, *(one._replace(factors={"size": size}) for size in ("4x64", "8x64")))
    assert len(rows) == 3 and not any("same as" in row for row in rows)


def test_a_twin_in_the_opposite_direction_counts_so():
    row, other = {"what": "a", "with": "", "sentences": []}, {"what": "b", "with": "c", "sentences": [{"sentence": "s", "opposite": False}]}
    claims._join(row, other, opposite=True)
    assert row["sentences"] == [{"sentence": "s", "opposite": True}] and row["same as"] == ["b, c"]
    claims._join(row, other | {"sentences": [{"sentence": "s", "opposite": False}, {"sentence": "t", "opposite": True}]}, opposite=True)
    assert row["sentences"] == [{"sentence": "s", "opposite": True}, {"sentence": "t", "opposite": False}]


def test_layers_that_are_no_neighbours_are_compared_with_the_best_interior_one():
    found = whats(*(measured(layer=level) for level in (0, 6, "best", "best interior")))
    assert found == ["layer: best interior above 0", "layer: best interior above 6", "layer: 6 above 0"]


def test_the_paper_s_numbers_are_of_the_pair():
    rows = claims_of(*(measured(labels=number, objective="bert") for number in (4, 25, 100, 400)), study="low_data")
    assert {row["what"]: paper_of(row) for row in rows} == {
        "labels: 25 above 4": "+14.4 (L, CIFAR-10)", "labels: 400 above 4": "+21.1 (L, CIFAR-10)", "labels: 400 above 25": "+6.7 (L, CIFAR-10)",
        "labels: 100 above 4": None, "labels: 100 above 25": None, "labels: 400 above 100": None,
    }  # fmt: skip


def test_the_paper_s_numbers_are_differences_of_its_results():
    """Figure 3 as read from the picture (models S, M and L after 1,000,000 steps, L after 65,000), tables 1 to 4, figures 2 and 4."""
    losses, probes = {"S": 2.0895, "M": 2.0614, "L": 2.0467, "early": 2.1056}, {"S": 90.6, "M": 95.2, "L": 96.3, "early": 91.8}
    tuned, masked, layers = 99.0, 98.6, accuracy_by_layer.PAPER["percent"]
    few, images, large = low_data.PAPER["percent"], resolution.PAPER["percent"], "(L, CIFAR-10"
    last = f"{max(layers.values()) - layers[48]:+.1f} {large})"
    assert {(one.text, one.unit): one.number for one in sentences.SENTENCES if one.number} == {
        (sentences.LAST, "accuracy"): last,
        (sentences.MIDDLE_LAST, "accuracy"): last,
        (sentences.LARGER, "accuracy"): f"{probes['M'] - probes['S']:+.1f} (S to M), {probes['L'] - probes['M']:+.1f} (M to L, CIFAR-10)",
        (sentences.LONGER, "accuracy"): f"{probes['L'] - probes['early']:+.1f} {large}, 65,000 to 1,000,000 steps)",
        (sentences.LOWER, "nats"): f"{losses['early'] - losses['L']:.3f} (L, 65,000 to 1,000,000 steps)",
        ("next pixel probes better than masked pixels", "accuracy"): f"more than +1 {large})",
        (sentences.FIGURE_4, "accuracy"): f"{tuned - masked:+.1f} ({tuned} against {masked}, L, CIFAR-10)",
        (sentences.GAP, "accuracy"): f"more than 1 to {tuned - masked:.1f} {large})",
        (sentences.FEW, "accuracy"): f"{few['4'] - low_data.PAPER['fine-tuned']['4']:+.1f} {large}, 4 labels of each class)",
        (sentences.TUNED, "accuracy"): f"{tuned - probes['L']:+.1f} {large}, all labels)",
        ("more labels are better", "accuracy"): {
            (less, more): f"{few[str(more)] - few[str(less)]:+.1f} {large})" for less, more in ((4, 25), (4, 400), (25, 400))
        },
        ("larger images are better", "accuracy"): f"{images['48'] - images['32']:+.1f} (L, ImageNet, 32 to 48)",
        ("the vote of several masks is better than one mask", "accuracy"): "about 0 (CIFAR-10), almost +1 (ImageNet)",
    }
    [sizes] = [one for one in sentences.SENTENCES if (one.text, one.factor) == (sentences.LOWER, "size")]
    assert sizes.number == f"{losses['S'] - losses['M']:.3f} (S to M), {losses['M'] - losses['L']:.3f} (M to L)"


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"optimizer": "adam"}, "accuracy_by_layer has the factor optimizer, which .*sentences.py lacks"),
        ({"way": "zero shot"}, "accuracy_by_layer has the level 'zero shot' of way, which .*sentences.py lacks: it has kNN, linear probe, fine-tuned"),
        ({"labels": "many"}, "the level 'many' of labels is not an integer"),
        ({"labels": "4x64"}, "the level '4x64' of labels is not an integer"),
        ({"labels": True}, "the level True of labels is not an integer"),
        ({"layer": "last"}, "the level 'last' of layer is not an integer"),
        ({"layer": -1}, "the level -1 of layer is not an integer from 0 on"),  # the last one to Python, and the first one in order
        ({"size": "large"}, "the level 'large' of size is not LAYERSxWIDTH"),
        *(({"size": size}, f"the level {size!r} of size is not LAYERSxWIDTH") for size in ("4x", "x64", "4x64x8", "4@64", 64)),
        ({"features": "raw pixels", "objective": "bert"}, "raw pixels have no objective"),
    ],
)
def test_what_stands_in_no_table_is_refused_by_name(factors, message):
    with pytest.raises(ValueError, match=message):
        claims_of(measured(**factors))


def test_a_study_that_stands_in_no_table_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="new_study has measurements, and SEEDS of .*classifiers.py lacks it"):
        claims_of(measured(labels=4), study="new_study")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/new_study.json").write_text(json.dumps({"measurements": []}))
    with pytest.raises(ValueError, match="folder/new_study has measurements"):
        claims.all_claims(tmp_path)


def test_measurements_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="accuracy_by_layer, objective bert: two measurements have the same seed, 0, 0"):
        claims_of(measured(objective="bert"), measured(0.6, objective="bert"))
    with pytest.raises(ValueError, match="same seed"):  # the usual level, named or not
        claims_of(measured(objective="bert"), measured(objective="bert", way="linear probe"))
    with pytest.raises(ValueError, match="objective bert: the seeds are of other test images, 200 , 100 "):
        claims_of(measured(objective="bert"), measured(objective="bert", seed=1, images=100))
    with pytest.raises(ValueError, match="the seeds are of other test images, 200 a, 200 b"):
        claims_of(measured(objective="bert", fingerprint="a"), measured(objective="bert", seed=1, fingerprint="b"))
    with pytest.raises(ValueError, match="accuracy_by_layer, size 2x64: 1 of 200 scores are not numbers"):
        loss = measured(size="2x64", unit="nats")
        loss.scores[3] = np.nan
        claims_of(loss)


def test_studies_that_were_not_run_have_no_claims(tmp_path):
    found = claims.all_claims(tmp_path)
    assert found["claims"] == [] and found["counts"] == {"claims": 0, "supported": 0, "contradicted": 0, "undecided": 0}
    shutil.copy(claims.RESULTS / "digits.json", tmp_path)
    found = claims.all_claims(tmp_path)
    stored = json.loads((tmp_path / "digits.json").read_text())
    assert found["provenance"] == {"digits": {key: stored[key] for key in ("command", "commit", "hardware")}} and found["command"] == claims.COMMAND
    assert {row["study"] for row in found["claims"]} == {"digits"} and found["counts"]["claims"] == len(found["claims"]) > 10
    assert sum(found["counts"][verdict] for verdict in claims.VERDICTS) == len(found["claims"])


def test_every_study_is_read_once_and_in_one_order(tmp_path):
    for name in ("low_data", "digits", "resolution"):
        shutil.copy(claims.RESULTS / f"{name}.json", tmp_path)
    (tmp_path / "speed.json").write_text("{}")
    assert (
        list(claims.all_claims(tmp_path)["provenance"])
        == ["digits", "resolution", "low_data"]
        == [name for name in SEEDS if (tmp_path / f"{name}.json").exists()]
    )


def test_classifiers_that_nothing_is_compared_with_are_listed(tmp_path):
    """A factor that only one of them names, or two that differ; losses and accuracies apart; losses without an interval."""
    models = [measured(objective="bert", labels=4), measured(objective="autoregressive", labels=25), measured(objective="bert", labels=4, resolution=8)]
    models += [measured(size="2x64", step=1, unit="nats"), *(measured(size="2x64", step=step) for step in (1, 2))]
    (tmp_path / "low_data.json").write_text(json.dumps({"measurements": list(map(to_json, models))}))
    found = claims.all_claims(tmp_path)
    expected = ["objective bert, labels 4", "objective autoregressive, labels 25", "objective bert, labels 4, resolution 8", "size 2x64, step 1"]
    assert found["not compared"] == [f"low_data: {one}: no other classifier differs in one factor alone" for one in expected] and len(found["claims"]) == 1
    bare = former.classifiers_of("accuracy_by_loss", two_losses((0, 1)))
    rows = claims.compare("accuracy_by_loss", bare)
    losses = [one for one in bare if one.sample.unit == "nats"]
    assert not any(claims.is_compared(one, rows, bare) for one in losses)
    assert claims.why_alone(losses[0]) == "losses of single images were not stored, and an interval over models needs 3 of them, here 2"
    bare = former.classifiers_of("accuracy_by_loss", two_losses((0, 1, 2)))
    assert all(claims.is_compared(one, claims.compare("accuracy_by_loss", bare), bare) for one in bare if one.sample.unit == "nats")


def two_losses(seeds):
    """A file of accuracy_by_loss without measurements: one size, two steps."""
    layers = [{"layer": number, "validation": 0.1 * number, "test": 0.1 * number} for number in range(3)]
    points = [{"step": step, "loss": 3.0 - step, "images": 8, "right": "f0", "best_layer": 2, "layers": layers} for step in (1, 2)]
    runs = [[point | {"loss": point["loss"] + 0.01 * seed * point["step"]} for point in points] for seed in seeds]
    jobs = [{"found": {"size": "2x64", "seed": seed, "points": run}} for seed, run in zip(seeds, runs, strict=True)]
    settings = {"settings": {"labels_per_class": 3}, "recipe": {"data": {"validation": 0.1}}}
    return {"curves": [{"size": "2x64", "seeds": list(seeds), "runs": runs}], "jobs": jobs} | settings


def test_pairs_that_the_rule_leaves_out_are_counted(tmp_path):
    """Of 5 layers: 0 with 2, 3; 1 with 3, 4; and with the best interior one, 1 to 3; the best one, which is another, with all 6. At step 1 the same."""
    found = [measured(layer=level, step=step) for level in [*range(5), "best", "best interior"] for step in (1, 2)]
    (tmp_path / f"{LAYERS}.json").write_text(json.dumps({"measurements": list(map(to_json, found))}))
    assert claims.all_claims(tmp_path)["left out by the rule"] == {"layer": 2 * 13, "step": 6}


def test_fine_tunings_are_counted_once_by_what_ended_them(tmp_path):
    tuned = [measured(0.5, seed, objective="bert", way="fine-tuned", loss="joint", masks=masks) for seed in range(3) for masks in (1, 5)]
    tuned += [measured(0.5, 0, objective="autoregressive", way="fine-tuned", loss="joint")]
    ends = ["budget"] * 4 + ["validation"] * 2 + ["budget"]
    rows = [to_json(one) | {"stopped_by": end} for one, end in zip(tuned, ends, strict=True)] + [to_json(measured(objective="bert"))]
    (tmp_path / "objectives.json").write_text(json.dumps({"measurements": rows}))
    assert claims.all_claims(tmp_path)["fine-tunings ended by"] == {"budget": 3, "validation": 1}


def test_files_outside_are_named_where_they_are(tmp_path):
    (tmp_path / "nearest.json").write_text("{}")
    assert claims.all_claims(tmp_path)["outside"] == {"nearest": claims.OUTSIDE["nearest"]}
    assert claims.OUTSIDE.keys() <= {path.stem for path in claims.RESULTS.glob("*.json")}


def test_every_claim_of_the_committed_file_says_what_it_was_trained_on():
    rows = json.loads((claims.RESULTS / "claims.json").read_text())["claims"]
    assert [row["what"] for row in rows if row["unit"] == "accuracy" and not (row["budget"]["larger"] and row["budget"]["smaller"])] == []


def test_a_budget_says_what_the_tested_probe_saw_or_that_it_is_unknown():
    counts = {"train": 1_294, "validation": 144}
    known, unknown = budget_of_probe(counts | {"refit": 1_438}, "C"), budget_of_probe(counts, "k and the best layer")
    assert known == "1,294 labelled images; C chosen on 144 more; the tested probe has all 1,438"
    assert unknown == "1,294 labelled images; k and the best layer chosen on 144 more; whether the tested probe has these too was not stored"


def test_the_program_writes_both_files(tmp_path, monkeypatch, capsys):
    shutil.copy(claims.RESULTS / "digits.json", tmp_path)
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    claims.main()
    found = json.loads((tmp_path / "claims.json").read_text())
    assert found == claims.all_claims(tmp_path) and (tmp_path / "claims.md").read_text() == claims_table.table(found)
    assert capsys.readouterr().out == claims_table.note(found) + "\n"


def bits_of(text, images):
    return [int(bit) for byte in bytes.fromhex(text) for bit in f"{byte:08b}"][:images]


def by_loops(larger, smaller):
    """The difference and the interval of one or two models of each side, from lists of bits."""
    images = len(larger[0])
    each = [sum(run[image] for run in larger) / len(larger) - sum(run[image] for run in smaller) / len(smaller) for image in range(images)]
    mean = sum(each) / (images + 2)
    variance = (sum((one - mean) ** 2 for one in each) + (1 - mean) ** 2 + (-1 - mean) ** 2) / (images + 2) ** 2
    half = stats.t.ppf(0.975, images - 1) * math.sqrt(variance)
    return sum(each) / images, mean - half, mean + half


def test_rows_of_the_committed_file_are_recomputed():
    """The largest size against the smallest at the last step, the last step against the first of the largest size, and two sizes at a step between.

    The difference is recomputed, and the interval over images, which the one over images and three seeds holds.
    """
    study = json.loads((claims.RESULTS / "accuracy_by_loss.json").read_text())
    runs = [[(curve["size"], *points) for points in zip(*curve["runs"], strict=True)] for curve in study["curves"]]  # [size][step]
    rows = json.loads((claims.RESULTS / "claims.json").read_text())["claims"]
    for larger, smaller in ((runs[-1][-1], runs[0][-1]), (runs[-1][-1], runs[-1][0]), (runs[-1][1], runs[-2][1])):
        wanted = [(side[0], side[1]["step"]) for side in (larger, smaller)]
        [row] = [
            row for row in rows if row["study"] == "accuracy_by_loss" and row["unit"] == "accuracy" and row["factor"] in ("size", "step")
            and [(row[side]["size"], row[side]["step"]) for side in ("larger", "smaller")] == wanted
        ]  # fmt: skip
        sides = [[bits_of(point["right"], point["images"]) for point in side[1:]] for side in (larger, smaller)]
        difference, *ends = by_loops(*sides)
        low, high = row["interval"]
        assert row["seeds"] == [3, 3] and row["difference"] == pytest.approx(difference, rel=1e-5)
        assert low <= ends[0] + 1e-6 and high >= ends[1] - 1e-6  # at least as wide as over the images alone, because seeds vary too
        assert (low + high) / 2 == pytest.approx(sum(ends) / 2, abs=1e-6)


def test_rows_of_every_file_with_measurements_are_recomputed():
    """The first, a middle and the last pair of up to two models of each study that stores the scores of each image."""
    found = json.loads((claims.RESULTS / "claims.json").read_text())["claims"]
    for study in {row["study"] for row in found}:
        contents = json.loads((claims.RESULTS / f"{study}.json").read_text())
        rows = [row for row in found if row["study"] == study and row["paired"] and row["factor"] in sentences.FACTORS and row["unit"] == "accuracy"]
        rows = [row for row in rows if max(row["seeds"]) <= 2]
        for row in [rows[0], rows[len(rows) // 2], rows[-1]] if "measurements" in contents and rows else []:
            sides = [[bits_of(one["scores"], one["images"]) for one in contents["measurements"] if one["unit"] == "accuracy"
                      and sentences.usual(one["factors"]) == row[side]] for side in ("larger", "smaller")]  # fmt: skip
            assert (row["difference"], *row["interval"]) == pytest.approx(by_loops(*sides), rel=1e-5), row["what"]


def test_former_files_are_read_until_they_hold_measurements():
    assert former.FORMER.keys() <= SEEDS.keys()
    with pytest.raises(ValueError, match="other.json has no measurements: run make it again"):
        former.classifiers_of("other", {"command": "make it"})
    contents = json.loads((claims.RESULTS / "digits.json").read_text()) | {"measurements": [to_json(measured(labels=number)) for number in (4, 25)]}
    assert [row["what"] for row in judged("digits", contents)] == ["labels: 25 above 4"]
    before = judged("digits", {key: value for key, value in contents.items() if key != "measurements"})
    losses = [to_json(measured(unit="nats", step=number)) for number in (4, 25)]
    expected = [*before, *claims_of(*map(from_json, losses), study="digits")]
    assert sorted(map(json.dumps, judged("digits", contents | {"measurements": losses}))) == sorted(map(json.dumps, expected))


def test_measurements_are_stored_as_bits_and_losses(tmp_path):
    one = measured(labels=4, budget="few", fingerprint="f")
    stored = json.loads(json.dumps(to_json(one)))
    assert stored["images"] == 200 and stored["mean"] == one.scores.mean() and len(stored["scores"]) == 50
    read = from_json(stored)
    assert (read.scores == one.scores).all() and read._replace(scores=0) == one._replace(scores=0)
    assert from_json({key: value for key, value in stored.items() if key != "fingerprint"}).fingerprint == ""


def test_a_fingerprint_tells_orders_of_labels_apart():
    labels = np.array([3, 1, 2])
    same = {fingerprint_of(one) for one in (labels, labels.astype(np.uint8), [3, 1, 2], labels.astype(">i4"))}
    assert len(same) == 1 and len(*same) == 16 and fingerprint_of([1, 3, 2]) not in same and fingerprint_of([3, 1]) not in same


def test_scores_of_accuracy_are_bits():
    with pytest.raises(ValueError, match="scores of accuracy are 0 or 1 for each image, here from 0 to 0.5"):
        to_json(Measurement({}, 0, np.array([0, 0.5])))
    stored = to_json(Measurement({}, 0, np.array([1.23456789, 2.0]), "nats"))
    assert stored["scores"] == [1.23457, 2.0] and stored["mean"] == pytest.approx(1.617283945) and from_json(stored).scores.tolist() == [1.23457, 2.0]
