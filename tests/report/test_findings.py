"""README's table of sentences counts all claims, and what stands beside it is read from the claims."""

import json

import pytest

from experiments.report import claims, claims_table, findings, sentences

FOUND = {"undecided losses": [], "fine-tunings ended by": {}}


def row(sentence, verdict, difference, unit="accuracy", paired=True, place="figure 9", opposite=False, **more):
    about = [{"sentence": sentence, "place": place, "what": "a", "with": "", "paper": None, "opposite": opposite}] if sentence else []
    about += [one | {"what": "a", "with": "", "paper": None, "opposite": False} for one in more.pop("also", [])]
    found = {"sentences": about, "verdict": verdict, "difference": difference, "interval": None, "unit": unit, "paired": paired}
    return found | {"pretrained models": 1, "larger": {}, "smaller": {}} | more


def block(tmp_path, *rows, **more):
    (tmp_path / "claims.json").write_text(json.dumps(FOUND | {"claims": rows} | more))
    table, *also, limits, note = findings.block(tmp_path).split("\n\n")
    head, line, *lines = table.split("\n")
    assert [head, line] == findings.HEAD and note.endswith("\n")
    return lines, *(also or [""]), limits, note


def test_a_row_counts_the_claims_of_one_sentence(tmp_path):
    rows = [row(sentences.GAP, "undecided", 0.3), row(sentences.TUNED, "supported", 0.031, place="figure 4"), row(sentences.TUNED, "undecided", -0.2)]
    rows += [row(sentences.TUNED, "supported", 0.02), row(sentences.TUNED, "contradicted", -0.31), row(None, "supported", 0.9, paired=False)]
    rows += [row(sentences.LOWER, "supported", 0.25, "nats", paired=False), row(sentences.EQUAL_LOSS, "undecided", None, paired=None)]
    rows += [row(sentences.JOINT, "supported", 0.25, place="text"), row(sentences.START, "contradicted", 0.25, place="text")]
    lines, also, _, note = block(tmp_path, *rows)
    assert also == f"Sentences without a figure or table, supported / contradicted / undecided: {sentences.START} 0 / 1 / 0; {sentences.JOINT} 1 / 0 / 0."
    assert lines == [
        f"| {sentences.EQUAL_LOSS} (figure 9) | 0 | 0 | 1 | - |",
        f"| {sentences.LOWER} (figure 9) | 1 | 0 | 0 | +0.2500, +0.2500, +0.2500 nats |",
        f"| {sentences.TUNED} (figure 4, figure 9) | 2 | 1 | 1 | -31.0, -9.0, +3.1 points |",
        f"| {sentences.GAP} (figure 9) | 0 | 0 | 1 | +30.0, +30.0, +30.0 points |",
    ]
    assert note.startswith(claims_table.note({"claims": rows})) and " 1 comparisons of accuracies are not paired image by image" in note
    assert "(experiments/results/claims.md)" in note


MEDIANS = [((0.3, 0.1), "+10.0, +20.0, +30.0"), ((0.3, 0.1, 0.05), "+5.0, +10.0, +30.0"), ((0.1, None), "+10.0, +10.0, +10.0")]


@pytest.mark.parametrize(("differences", "shown"), MEDIANS)
def test_the_median_of_an_even_number_is_between_the_middle_two(differences, shown):
    assert findings.span([row(None, "undecided", one) for one in differences]) == f"{shown} points"


def test_differences_of_two_units_have_no_median():
    with pytest.raises(ValueError):
        findings.span([row(None, "supported", 0.1), row(None, "supported", 0.2, "nats")])
    units = {(one.text, one.unit) for one in sentences.SENTENCES}
    assert len(units) == len({text for text, _ in units})


def test_every_claim_of_the_committed_file_is_counted():
    """Once in the note, and in the table once under each sentence."""
    found = json.loads((claims.RESULTS / "claims.json").read_text())
    shown = {text: claims_table.rows_about(found["claims"], text) for text in dict.fromkeys(one.text for one in sentences.SENTENCES)}
    assert sum(map(len, shown.values())) == sum(len(one["sentences"]) for one in found["claims"])
    text = findings.block(claims.RESULTS)
    for name, rows in shown.items():
        cells, short = (mark.join(findings.counts(rows)) for mark in (" | ", " / "))
        told = any(line.startswith(f"| {name}") and f"| {cells} |" in line for line in text.splitlines()) or f"{name} {short}" in text
        assert told or not rows
    assert f"{len(found['claims'])} comparisons (" in text and found["counts"]["claims"] == len(found["claims"])
    assert sum(found["counts"][verdict] for verdict in claims.VERDICTS) == len(found["claims"])


def test_a_claim_counts_in_each_of_its_sentences_in_their_direction(tmp_path):
    also = [{"sentence": sentences.GENERATIVE, "place": "figure 3"}]
    one = row(sentences.LARGER, "supported", 0.2, also=also)
    other = row(sentences.LARGER, "supported", 0.1, interval=[0.05, 0.15])
    other["sentences"].append(also[0] | {"opposite": True, "what": "b", "with": "", "paper": None})
    lines, _, limits, _ = block(tmp_path, one, other, **{"undecided losses": ["a", "b", "c"]})
    assert lines == [
        f"| {sentences.LARGER} (figure 9) | 2 | 0 | 0 | +10.0, +15.0, +20.0 points |",
        f"| {sentences.GENERATIVE} (figure 3) | 1 | 1 | 0 | -10.0, +5.0, +20.0 points |",
    ]
    assert "for 2 of 5 pairs; 3 pairs have losses that do not differ beyond chance, and are not counted." in limits


def test_the_sentences_are_counted_by_whose_they_are(tmp_path):
    rows = [row(sentences.TUNED, "supported", 0.1), row(sentences.PIXELS, "supported", 0.1, place=sentences.GRANTED)]
    rows += [row(sentences.JOINT, "supported", 0.1, place="text")]
    rows += [row(sentences.EVERY, "undecided", 0.1, place=""), row(sentences.NEAREST, "undecided", 0.1, place="")]
    _, _, limits, _ = block(tmp_path, *rows)
    assert limits == "Of these 5 sentences 2 stand in the paper, 1 it takes for granted, and of 2 it says nothing."


def test_figure_4_rests_on_the_pretrainings_that_it_has():
    def told(*pretrained, place="figure 4"):
        sides = {"larger": {"objective": "bert"}, "smaller": [{"objective": "autoregressive"}, {"features": "raw pixels"}]}
        return findings.of_figure_4([row("a", "supported", 0.1, place=place, **sides) | {"pretrained models": number} for number in pretrained])

    assert told(2, 2).startswith("Figure 4 rests on one pretraining of each objective") and told(2, 6) == told() == told(2, place="figure 3") == ""


def test_fine_tunings_that_their_budget_ended_are_told():
    def told(**ended):
        return findings.of_fine_tunings({"fine-tunings ended by": ended})

    assert told(budget=15).startswith("Every fine-tuning, 15 in all, was ended by its budget of steps")
    assert told(budget=3, validation=2).startswith("3 of 5 fine-tunings were ended by their budget of steps") and told(validation=2) == told() == ""


def test_without_claims_the_block_says_so(tmp_path):
    assert findings.block(tmp_path) == "Not run: `python -m experiments.report.claims`.\n"
