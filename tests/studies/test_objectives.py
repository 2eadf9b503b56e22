"""The table of objectives at its smallest size: it is complete, a second start does not repeat it, and the picture is a PNG file."""

import json

import numpy as np
import pytest

from experiments.studies import objectives
from tests.runs import recipe


def test_table_gathers_the_seeds_of_each_kind():
    rows = [{"objective": "bert", "start": "scratch", "loss": "joint", "seed": seed, "accuracy": 0.5 + seed} for seed in (0, 1)]
    assert objectives.gather({"finetuning": rows}) == {("bert", "scratch", "joint"): [0.5, 1.5]}


@pytest.mark.slow
def test_every_run_of_the_table_is_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(objectives, "OBJECTIVES", ("bert",))
    settings = {"seeds": 1, "labels_per_class": 12, "test_images": 60, "finetune_steps": 4}
    found = objectives.compare(recipe(steps=4, eval_every=4, save_every=4), tmp_path / "work", str(tmp_path), **settings)
    assert len(found["finetuning"]) == 4 and {row["start"] for row in found["finetuning"]} == {"pretrained", "scratch"}
    assert all(np.isfinite(row["accuracy"]) and "accuracy_one_mask" in row for row in found["finetuning"])
    labelled = np.load(tmp_path / "work/images/labelled/train.npz")["labels"]
    assert (np.bincount(labelled) == 12).all()
    assert found["pretraining"]["bert"]["images"] == 60 and found["pretraining"]["bert"]["baselines"]["per_position"] > 0
    written = json.loads((tmp_path / "objectives.json").read_text())
    assert written["finetuning"] == json.loads(json.dumps(found["finetuning"])) and written["commit"] and written["hardware"]
    assert (tmp_path / "objectives.png").read_bytes().startswith(b"\x89PNG")
    assert "by the vote of 5 masks" in capsys.readouterr().out
    monkeypatch.setattr(objectives, "finetune", None)  # nothing is trained a second time
    monkeypatch.setattr(objectives.stages.loop, "train", None)
    again = objectives.compare(recipe(steps=4, eval_every=4, save_every=4), tmp_path / "work", None, **settings)
    assert again["finetuning"] == found["finetuning"]
