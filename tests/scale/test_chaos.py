"""One fault of every kind is survived, and the report says so."""

import argparse
import json
import random
import subprocess
import sys

import pytest

from experiments.scale import chaos
from tests.runs import ROOT


@pytest.mark.slow
def test_a_run_survives_one_fault_of_every_kind_and_ends_bit_equal(tmp_path):
    out = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "experiments.scale.chaos", "--minutes=0", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {row["fault"] for row in found["rows"]} | set(found["left_out"]) == set(chaos.FAULTS) and set(found["left_out"]) <= set(chaos.ON_A_FULL_DISK)
    assert found["survived"] == found["faults"] >= len(chaos.FAULTS) - len(found["left_out"])
    assert f"{found['survived']} survived" in done.stdout and "ended bit-equal" in done.stdout


class Stub:
    """A run whose newest checkpoint can be damaged."""

    def __init__(self, workdir):
        self.workdir = workdir
        for step in (20, 40):
            for name in ("model", "training", "meta"):
                (workdir / f"checkpoints/{step}/{name}").mkdir(parents=True)
                (workdir / f"checkpoints/{step}/{name}/numbers").write_bytes(bytes(100))

    def committed(self):
        return sorted(int(path.name) for path in (self.workdir / "checkpoints").iterdir() if path.name.isdigit())

    def output(self):
        return ""


@pytest.mark.parametrize("kind", chaos.DAMAGES)
def test_damage_changes_the_newest_checkpoint_only(tmp_path, kind):
    run = Stub(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert chaos.damage(kind, run, random.Random(0)) == [20]
    after = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert after != before and all(after[path] == content for path, content in before.items() if "checkpoints/20" in str(path))


def test_a_fault_not_survived_ends_with_1(tmp_path, capsys):
    fault = chaos.Fault("kill -9", at_step=50, expected=40)
    assert not chaos.judge(fault, 20, Stub(tmp_path)) and fault.lost == 30
    arguments = argparse.Namespace(seed=0, minutes=0, out=tmp_path / "chaos.json")
    with pytest.raises(SystemExit, match="1"):
        chaos.report([fault], 1, chaos.FAULTS, arguments)
    assert "1 faults tried, 0 survived" in capsys.readouterr().out
