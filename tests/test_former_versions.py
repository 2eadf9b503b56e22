"""A workdir, a checkpoint and features that commit 9ce915e wrote, with the former names of keys, are read and continued."""

import json
import tarfile

import pytest

from igpt_jax import evaluate, features, probe, train
from tests.runs import DATA, recipe

SMALL = {
    "model__layers": 1, "model__width": 8, "model__heads": 2, "model__unroll": 1, "model__vocabulary": 16, "palette__size": 16,
    "batch_size": 16, "steps": 6, "optim__warmup_steps": 2, "save_every": 4, "eval_every": 6, "log_every": 1,
    "data__validation": 0.5, "max_consecutive_skips": 7, "optim__loss_spike_factor": 3.0,
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """A folder with run/, at step 4 of 6 and with all six losses in metrics.jsonl, and features/ of the validation and test images."""
    with tarfile.open(DATA / "workdir_of_9ce915e.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / "features/features.json"
    path.write_text(path.read_text().replace("/tmp/old9/", f"{tmp_path}/"))  # as if it had been written here
    return tmp_path


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def test_a_run_goes_on_to_the_losses_that_it_had(written):
    workdir = written / "run"
    expected, config = losses(workdir), recipe(**SMALL)
    assert json.loads((workdir / "config.json").read_text())["skips"] == 7
    train.train(config, workdir)
    assert losses(workdir) == pytest.approx(expected, rel=1e-5) and len(expected) == 6
    history = json.loads((workdir / "config.json").read_text()).get("history", [])
    changed = {key for entry in history for key in entry["changes"]}
    assert not changed & {"skips", "optim.spike", "accumulate", "max_consecutive_skips", "optim.loss_spike_factor"}


def test_features_are_added_to_and_probed(written):
    folder = written / "features"
    before = {path.name: path.read_bytes() for path in (folder / "test").iterdir()}
    assert features.main([f"--checkpoint={written / 'run'}", f"--out={folder}", "--splits=train", "--dtype=float16"]) == 0
    assert {path.name: path.read_bytes() for path in (folder / "test").iterdir()} == before
    assert probe.main([f"--features={folder}", "--C=0.1", "--no-raw-pixels"]) == 0
    assert {row["layer"] for row in json.loads((folder / "probe.json").read_text())["layers"]} == {0, 1}


def test_a_checkpoint_is_evaluated(written):
    found = evaluate.evaluate_checkpoint(written / "run", "validation")
    assert found["step"] == 4 and found["images"] == 719 and 2.7 < found["nats_per_pixel"] < 2.76
