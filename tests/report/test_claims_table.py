"""claims.md: what its rows, its sections and its notes say."""

import pytest

from experiments.report import claims_table, sentences, verdicts
from tests.measured import claims_of, curve, measured

FOUND = {"not compared": [], "left out by the rule": {}, "outside": {}, "undecided losses": []}


def test_the_table_has_a_row_for_each_claim_under_each_of_its_sentences():
    runs = [*curve("2x64", (3.0, 2.6), (0.3, 0.5)), *curve("4x640", (2.5, 2.0), (0.4, 0.6))]
    rows = claims_of(*runs, study="accuracy_by_loss")
    rows += claims_of(measured(labels=4), measured(labels=25, seed=1), measured(labels=25), measured(features="raw pixels"))
    text = claims_table.table(FOUND | {"claims": rows})
    assert text.count("\n| accuracy_by") == sum(len(row["sentences"]) or 1 for row in rows) > len(rows)
    assert text.startswith(f"# All comparisons\n\n{claims_table.note({'claims': rows})}\n\n{claims_table.RULE}\n\n{claims_table.ROWS}\n\n## ")
    why = "no loss is reached by all models of both: the nearest are 2.500 and 2.600"
    assert f"| size at equal loss: 4x640 above 2x64 | layer best | - | {why} | undecided | - | - |" in text
    assert "| step: 200 above 100 | size 2x64 | +0.4000 nats | +0.4000 to +0.4000 | supported | one model; 500 images | 0.059" in text
    assert "| step: 200 above 100, test losses 2.6000 and 3.0000 | size 2x64, layer best |" in text
    assert "\n## At equal loss the larger model probes better\n" in text and "The first of each pair has" not in text
    [labels] = [line for line in text.splitlines() if "labels: 25 above 4" in line]
    assert " points | " in labels and "| 2 models; 200 images |" in labels
    assert "## Comparisons that are about no sentence" in claims_table.table(FOUND | {"claims": claims_of(measured(way="kNN"), measured())})


def test_a_row_stands_in_the_direction_of_its_sentence():
    """The larger model has the higher loss and the higher accuracy: supported in one section, contradicted in the other."""
    rows = claims_of(*curve("2x64", (3.0,), (0.3,)), *curve("4x640", (3.1,), (0.6,)), study="accuracy_by_loss")
    text = claims_table.table(FOUND | {"claims": rows})
    [larger], [better] = ([line for line in text.splitlines() if f"| size: {what}, test" in line] for what in ("4x640 above 2x64", "2x64 above 4x640"))
    assert "| +30.0 points |" in larger and "| supported |" in larger and "| -30.0 points |" in better and "| contradicted |" in better
    low, high = next(row["interval"] for row in rows if row["unit"] == "accuracy" and row["factor"] == "size")
    assert f"| {-100 * high:+.1f} to {-100 * low:+.1f} |" in better


def test_the_layers_of_a_curve_are_one_line():
    levels = [*range(3), "best", "best interior"]
    models = [measured(layer=level, objective="bert") for level in levels]
    models[3] = models[2]._replace(factors=models[3].factors)
    rows = claims_of(*models, measured(features="raw pixels"))
    [line] = [line for line in claims_table.table(FOUND | {"claims": rows}).splitlines() if "layers above raw pixels" in line]
    assert line.startswith("| accuracy_by_layer | 3 layers above raw pixels | objective bert | ") and line.endswith("| one model; 200 images | - |")
    told = [one for row in claims_table.rows_about(rows, sentences.EVERY) for one in [(row["layer"], row["verdict"])]]
    assert sorted(layer for layer, _ in told) == [0, 1, 2] and all(verdict + ": " in line for _, verdict in told)


def test_a_line_says_whether_its_rows_are_paired():
    rows = claims_of(measured(layer="best"), measured(layer=0), measured(layer=1), measured(features="raw pixels"))
    rows = [row for row in rows if row["factor"] == "features" and row["larger"]["layer"] != "best"]
    shown = []
    for pair in ((True, True), (True, False), (False, False)):
        changed = [row | {"paired": paired} for row, paired in zip(rows, pair, strict=True)]
        [line] = [line for line in claims_table.table(FOUND | {"claims": changed}).splitlines() if "layers above raw pixels" in line]
        shown.append(line.split(" images")[1].removesuffix(" | - |"))
    assert shown == ["", ", not all paired", ", not paired"]
    assert claims_table._sample([rows[0] | {"paired": False, "over": "pretrainings, on these test images"}]) == "one model, over seeds; 200 images"


def test_what_is_not_compared_is_listed():
    found = FOUND | {"claims": [], "not compared": ["a: b"], "left out by the rule": {"layer": 1_265, "way": 1}, "outside": {"x": "y", "z": "w"}}
    text = claims_table.table(found)
    assert "\n\nNot compared:\n\n- a: b\n\nPairs that differ in one thing and that the rule leaves out: layer 1,265, way 1.\n\n" in text
    assert "Files that are in no comparison: x.json (y); z.json (w).\n" in text
    assert "leaves out:" not in claims_table.table(FOUND | {"claims": []}) and "Not compared" not in claims_table.table(FOUND | {"claims": []})
    rows = claims_of(*curve("2x64", (3.0, 2.6), (0.3, 0.5)), study="accuracy_by_loss")
    text = claims_table.table(FOUND | {"claims": rows, "undecided losses": ["one", "two"]})
    assert "2 pairs are left out, because their losses do not differ beyond chance:\n\n- one\n- two\n\n| study |" in text


def about(place, sentence="s"):
    return {"place": place, "sentence": sentence}


def test_a_claim_is_of_the_paper_or_taken_for_granted_or_neither():
    kinds = {(): "none", ("",): "none", ("", sentences.GRANTED): "granted", (sentences.GRANTED, "figure 2"): "paper", ("text",): "paper"}
    assert {places: claims_table.kind_of({"sentences": list(map(about, places))}) for places in kinds} == kinds


def test_the_note_counts_each_claim_once_by_what_it_is_about():
    rows = [{"sentences": [about("figure 2"), about("", "other")], "verdict": "supported"}, {"sentences": [about("")], "verdict": "contradicted"}]
    rows += [{"sentences": [], "verdict": "contradicted"}, {"sentences": [about(sentences.GRANTED)], "verdict": "undecided"}]
    assert claims_table.note({"claims": rows}) == (
        "4 comparisons (1 supported, 2 contradicted, 1 undecided): 1 comparisons (1 supported, 0 contradicted, 0 undecided) about sentences of the paper; "
        "1 comparisons (0 supported, 0 contradicted, 1 undecided) about what it takes for granted; "
        "2 comparisons (0 supported, 2 contradicted, 0 undecided) about neither. "
        "No verdict is corrected for their number, and claims about the same model are not independent."
    )


def told(numbers, of, pretrained, scratch=0, over=verdicts.ONLY, larger=None, smaller=None):
    row = {"seeds": numbers, "of": of, "pretrained models": pretrained, "trainings from scratch": scratch, "over": over}
    return claims_table.models(row | {"larger": larger or {}, "smaller": smaller or {}})


@pytest.mark.parametrize(
    ("numbers", "pretrained", "expected"),
    [
        ([1, 1], 1, "one model"), ([1, 1], 2, "one model of each"), ([3, 3], 3, "3 models"), ([3, 3], 6, "3 models of each"), ([3, 2], 5, "3 and 2 models"),
        ([2, 1], 2, "2 models"), ([1, 1, 2, 2], 6, "1, 1, 2 and 2 models"), ([3], 3, "3 models"), ([1], 1, "one model"),
    ],
)  # fmt: skip
def test_the_number_of_models_is_told(numbers, pretrained, expected):
    assert told(numbers, ["models"] * len(numbers), pretrained) == expected


def test_raw_pixels_are_no_model():
    assert told([3, 1], ["models", "probes"], 3) == "3 models" and told([1, 1], ["probes"] * 2, 0) == "no model"
    assert told([3, 3], ["models"] * 2, 6, over="pretrainings, on these test images") == "3 models of each, over seeds"


def test_draws_and_trainings_from_scratch_are_not_called_models():
    one, raw, scratch = {"features": "model", "objective": "bert"}, {"features": "raw pixels"}, "trainings from scratch"
    assert told([5, 5], ["draws"] * 2, 1, larger=one, smaller=raw) == "5 draws, 1 pretrained model"
    assert told([5, 5], ["draws"] * 2, 0, larger=raw, smaller=raw) == "5 draws" and told([5, 5], ["draws"] * 2, 2) == "5 draws, 2 pretrained models"
    assert told([5, 5], ["draws"] * 2, 1, larger=one | {"labels": 4}, smaller=one | {"labels": 25}) == "5 draws of each, 1 pretrained model"
    assert told([5, 2], ["draws"] * 2, 1, larger=one, smaller=one) == "2 and 5 draws, 1 pretrained model"
    assert told([3, 3], ["draws", scratch], 1, 3) == "3 draws, 1 pretrained model, 3 trainings from scratch"
    assert told([3, 3], [scratch] * 2, 0, 6, over="test images and draws") == "6 trainings from scratch, over seeds"
    assert told([1, 1], ["models", scratch], 1, 1) == "one model, 1 training from scratch"
    assert told([3] * 4, ["draws"] * 4, 2, larger=[one, one], smaller=[one, raw]) == "3 draws, 2 pretrained models"


def test_amounts_are_points_or_nats():
    assert (claims_table.amount(0.0123, "accuracy"), claims_table.amount(-0.0123, "nats"), claims_table.amount(0.0, "accuracy")) == ("+1.2", "-0.0123", "+0.0")
