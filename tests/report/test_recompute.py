"""Stored results whose measurements are made again: the scores stay, and what the file does not hold is said to be unknown."""

import json

import pytest

from experiments.report import recompute
from experiments.report.measurements import budget_of_probe


@pytest.mark.parametrize("name", [*recompute.FIGURES, *recompute.RUNS])
def test_the_committed_files_are_those_that_the_program_writes(name):
    path = recompute.RESULTS / f"{name}.json"
    assert recompute.recomputed(path) == json.loads(path.read_text()), "run python -m experiments.report.recompute"


def test_only_budgets_of_a_sweep_change_and_return(tmp_path):
    path = recompute.RESULTS / "accuracy_by_layer.json"
    contents = json.loads(path.read_text())
    other = json.loads(path.read_text())
    for one in other["measurements"]:
        one["budget"] = "another"
    (tmp_path / path.name).write_text(json.dumps(other))
    assert recompute.recomputed(tmp_path / path.name) == contents != other
    told = {one["factors"].get("layer", "raw"): one["budget"] for one in contents["measurements"] if one["factors"]["way"] == "linear probe"}
    counts = contents["curves"][0]["counts"]
    assert told[3] == told["raw"] == budget_of_probe(counts, "the probe's setting")
    assert told["best interior"] == budget_of_probe(counts, "the probe's setting and the best interior layer")


def test_the_learning_rate_is_that_of_the_model_of_the_run():
    contents = json.loads((recompute.RESULTS / "cifar10_16.json").read_text())
    rates = {one["factors"]["step"]: one["factors"].pop("learning rate") for one in contents["measurements"]}
    assert rates == {5700: "decayed", 5070: "constant"}
    again = recompute.of_run(contents, "cifar10-16")
    assert {one["factors"]["step"]: one["factors"]["learning rate"] for one in again["measurements"]} == rates
    with pytest.raises(ValueError, match="cifar10-16 has 12 layers of width 128 and is of step 5700, and the file is of another model"):
        recompute.of_run(contents | {"model": contents["model"] | {"width": 64}}, "cifar10-16")


def test_the_program_writes_what_changed_alone(tmp_path, monkeypatch, capsys):
    for name, change in (("accuracy_by_layer", "another"), ("objectives", None)):
        contents = json.loads((recompute.RESULTS / f"{name}.json").read_text())
        contents["measurements"][0]["budget"] = change or contents["measurements"][0]["budget"]
        (tmp_path / f"{name}.json").write_text(json.dumps(contents))
    before = (tmp_path / "objectives.json").read_text()
    monkeypatch.setattr(recompute, "RESULTS", tmp_path)
    recompute.main()
    assert capsys.readouterr().out == "accuracy_by_layer.json: changed\nobjectives.json: unchanged\n"
    assert (tmp_path / "objectives.json").read_text() == before
    assert (tmp_path / "accuracy_by_layer.json").read_text() == (recompute.ROOT / "experiments/results/accuracy_by_layer.json").read_text()
