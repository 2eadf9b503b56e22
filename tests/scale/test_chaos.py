"""One fault of every kind is survived, and the report says so."""

import argparse
import json
import random
import subprocess
import sys

import pytest

from experiments.scale import chaos
from igpt_jax.training import metrics
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


def test_the_lines_of_a_run_are_those_that_are_read(tmp_path, capsys):
    """Printed by the writer of the training loop; those of an evaluation are no steps of the training."""
    run = chaos.Run(tmp_path / "run")
    writer = metrics.Writer(tmp_path / "run", 0, chaos.STEPS)
    writer.write(7, {"loss": 2.0, "nats_per_pixel": 2.0})
    writer.write(120, {"loss": 1.5, "nats_per_pixel": 1.5, "images_per_second": 90.0})
    writer.write(140, {"nats_per_pixel": 1.4, "images": 20}, "validation")
    writer.close()
    run.log.write_text("step 9/600  loss of a start before\n")
    run.read_from = run.log.stat().st_size
    assert run.last_step() == 0
    with run.log.open("a") as log:
        log.write(capsys.readouterr().out)
    assert run.last_step() == 120


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
