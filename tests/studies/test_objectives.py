"""The table of objectives at its smallest size: it is complete, a second start does not repeat it, and other settings are refused."""

import json

import numpy as np
import pytest

from experiments.report.measurements import from_json
from experiments.studies import draw_rows, draws, objectives, stages
from experiments.studies.draws import Budget
from tests.runs import recipe

BUDGET = Budget(finetune_steps=4, evaluate_every=2, patience=5, finetune_rate=0.0)


@pytest.mark.slow
def test_every_run_of_the_table_is_made_once(tmp_path, monkeypatch, capsys):
    settings = {"objectives": ["bert"], "seeds": 2, "labels_per_class": 6, "test_images": 60, "starts": ["pretrained", "scratch"], "losses": ["joint"]}

    def start(workdir, **changes):
        return objectives.compare(recipe(steps=4, eval_every=4, save_every=4), workdir, **settings | {"budget": BUDGET} | changes)

    found = start(tmp_path / "work", results=tmp_path)
    measured = [from_json(row) for row in found["measurements"]]
    ways = {(one.factors["way"], one.factors.get("features"), one.factors.get("start"), one.factors.get("masks")) for one in measured}
    assert {("linear probe", None, None, 5), ("kNN", "raw pixels", None, None), ("fine-tuned", None, "scratch", 1)} < ways
    assert {("fine-tuned", None, start, masks) for start in draws.STARTS for masks in (1, 5)} < ways
    assert all(len(one.scores) == 60 and one.seed in (0, 1) and one.budget for one in measured) and len({one.fingerprint for one in measured}) == 1
    labels = np.load(tmp_path / "work/images/pool/test.npz")["labels"]
    assert len(np.unique(labels)) == 10 and (np.diff(labels) < 0).any()
    written = json.loads((tmp_path / "objectives.json").read_text())
    assert written["measurements"] == found["measurements"] and written["commit"] and written["models"]["bert"]["baselines"]["per_position"] > 0
    assert (tmp_path / "objectives.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "bert: fine-tuning, scratch, classification loss was not run" in out and "the budget ended 2 of 2" in out
    with pytest.raises(ValueError, match="sweep.test_images 60 -> 50"):  # old images are not used for other settings
        start(tmp_path / "work", test_images=50)
    (tmp_path / "work/jobs/bert.json").unlink()  # the job again: nothing of it is computed a second time
    for module, name in ((draws, "finetune"), (draws, "fit_probes"), (stages.loop, "train")):
        monkeypatch.setattr(module, name, None)
    assert start(tmp_path / "work")["rows"] == found["rows"]
    monkeypatch.undo()
    again = start(tmp_path / "given", checkpoints=[str(tmp_path / "work/models/bert")], seeds=1, starts=["pretrained"], objectives=[])
    assert [job["job"] for job in again["jobs"]] == ["bert"] and not (tmp_path / "given/models/bert/checkpoints").exists()
    probes = [next(row for row in draw_rows.select(each["rows"], objective="bert", way="linear probe"))["accuracies"][0] for each in (found, again)]
    assert probes[0] == probes[1]  # the same draw, the same model
