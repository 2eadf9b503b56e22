"""Files of results: a missing one is named, a damaged one is refused by its name, and the findings are those of the files beside them."""

import json
import shutil

import pytest

from experiments.report import claims, claims_table, readme
from experiments.report.measurements import are_same
from igpt_jax.cli import program


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with two studies and their claims."""
    for name in ("digits", "objectives"):
        shutil.copy(claims.RESULTS / f"{name}.json", tmp_path)
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    claims.main()
    return tmp_path


def test_studies_without_a_file_are_named(results, capsys):
    (results / "objectives.json").unlink()
    claims.main()
    found = json.loads((results / "claims.json").read_text())
    assert "objectives" in found["absent"] and "digits" not in found["absent"] and set(found["files"]) == {"digits"}
    assert "objectives" in capsys.readouterr().err
    for text in (claims_table.note(found), claims_table.table(found)):
        assert "without a file" in text and "objectives" in text
    assert not json.loads((readme.ROOT / "experiments/results/claims.json").read_text())["absent"]


@pytest.mark.parametrize("main", [claims.main, readme.main])
def test_a_file_that_is_cut_off_is_named_in_one_line(results, main):
    path = results / ("objectives.json" if main is claims.main else "claims.json")
    path.write_text(path.read_text()[:500])
    with pytest.raises(SystemExit, match=rf"^error: {path} is damaged \(.*restore it, or run its study again$"):
        program(main)


def test_scores_that_are_cut_off_are_named_with_their_study(results):
    path = results / "objectives.json"
    contents = json.loads(path.read_text())
    row = contents["measurements"][0]
    row["scores"] = row["scores"][: len(row["scores"]) // 2]
    path.write_text(json.dumps(contents))
    with pytest.raises(SystemExit, match=r"^error: objectives.json, .*objective autoregressive.*: the scores of \d+ images must be"):
        program(claims.main)


def test_findings_of_other_files_are_refused(results):
    claims.check_files(results)
    path = results / "digits.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(SystemExit, match="claims.json was made of other files of digits than those beside it: run python -m experiments.report.claims first"):
        program(readme.main)
    claims.main()
    (results / "objectives.json").unlink()
    with pytest.raises(ValueError, match="other files of objectives"):
        claims.check_files(results)


def test_the_committed_findings_are_of_the_committed_files():
    claims.check_files(readme.ROOT / "experiments/results")


def test_fingerprints_of_labels_alone_fit_those_of_labels_and_images():
    assert are_same(["a", "a-1", "", "a-1"]) and are_same([]) and are_same(["a", "a"])
    assert not are_same(["a", "b"]) and not are_same(["a-1", "a-2"]) and not are_same(["a", "a-1", "a-2"]) and not are_same(["a-1", "b"])
