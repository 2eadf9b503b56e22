"""wandb: what it is sent, without a network; one line where it cannot be used; a run goes on in the same run there, and without it where it fails."""

import json
import os
import pathlib
import sys

import numpy as np
import pytest

from igpt_jax.training import metrics, tracking

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No key, no settings and no mode of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    wandb.teardown()
    yield
    wandb.teardown()


class Run:
    """A run of wandb that keeps what it is given, and fails from a report on."""

    offline, url = False, "https://wandb.invalid/run"

    def __init__(self, fails_at=None, **arguments):
        self.arguments, self.fails_at, self.rows, self.finished, self.axes = arguments, fails_at, [], False, []

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values, step):
        if self.fails_at is not None and len(self.rows) >= self.fails_at:
            raise ConnectionError("the service\nis gone")
        assert not self.rows or step > self.rows[-1][0]  # wandb ignores the others
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that wandb.init makes, each with the arguments it got."""
    made = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: made.append(Run(**arguments)) or made[-1])
    return made


def tracker(tmp_path, track="wandb:lab/pixels", lines=None):
    return tracking.Tracker(track, tmp_path, "digits", {"steps": 4}, [].append if lines is None else lines.append)


def test_the_project_the_entity_and_the_recipe_arrive(tmp_path, runs):
    tracker(tmp_path).close()
    tracker(tmp_path / "x" if (tmp_path / "x").mkdir() else tmp_path / "x", "wandb:pixels").close()
    first, second = (run.arguments for run in runs)
    assert (first["entity"], first["project"], second["entity"], second["project"]) == ("lab", "pixels", None, "pixels")
    assert first["config"]["steps"] == 4 and first["config"]["provenance"]["commit"] and first["name"] == "digits"
    assert runs[0].axes == [("*", "step")] and runs[0].finished


def test_a_run_that_is_continued_from_an_older_checkpoint_goes_on_in_the_same_run(tmp_path, runs):
    one = tracker(tmp_path)
    for step in (10, 20, 30):
        one.write(step, {"train/loss": 1.0})
    two = tracker(tmp_path)  # killed, and the last checkpoint is step 10
    for step in (20, 30, 40):
        two.write(step, {"train/loss": 2.0})
    first, second = runs
    assert first.arguments["id"] == second.arguments["id"] and second.arguments["resume"] == "allow"
    assert [values["step"] for _, values in first.rows + second.rows] == [10, 20, 30, 20, 30, 40]
    rows = [row for row, _ in first.rows + second.rows]
    assert rows == sorted(set(rows))
    assert tracker(tmp_path, "wandb:other").state["id"] != first.arguments["id"]  # another project is another run


@pytest.mark.parametrize("text", ["", "{", '{"track": "wandb:lab/pixels"}', "[]"])
def test_a_damaged_file_begins_a_new_run(tmp_path, runs, text):
    (tmp_path / "wandb.json").write_text(text)
    tracker(tmp_path).write(1, {"train/loss": 1.0})
    assert runs[0].rows and json.loads((tmp_path / "wandb.json").read_text())["rows"] == 1


def test_a_failure_is_a_line_and_the_run_goes_on(tmp_path, runs):
    lines = []
    one = tracker(tmp_path, lines=lines)
    runs[0].fails_at = 1
    for step in (1, 2, 3):
        one.write(step, {"train/loss": 1.0})
    one.close()
    assert len(runs[0].rows) == 1
    assert lines[1:] == ["wandb failed, no tracking from here on: ConnectionError: the service is gone"]


def test_without_a_network_at_the_start_the_run_is_written_offline(tmp_path, monkeypatch):
    made, lines = [], []

    def init(**arguments):
        if "mode" not in arguments:
            raise wandb.errors.CommError("no network")
        made.append(Run(**arguments))
        return made[-1]

    monkeypatch.setattr(wandb, "init", init)
    tracker(tmp_path, lines=lines).write(1, {"train/loss": 1.0})
    assert made[0].arguments["mode"] == "offline" and made[0].rows
    assert lines[0] == "wandb failed, offline tracking from here on: CommError: no network"


@pytest.mark.parametrize("track", ["pixels", "wandb:", "wandb:a/b/c", "mlflow:pixels", "wandb:/pixels", 3])
def test_another_form_is_refused(track):
    with pytest.raises(ValueError, match="config.track must be wandb:PROJECT or wandb:ENTITY/PROJECT"):
        tracking.check(track)


def test_without_a_key_it_is_refused_and_nobody_is_asked(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a job has nobody to ask"))
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("a job has nobody to ask"))
    with pytest.raises(ValueError, match="not logged in on this machine: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"):
        tracking.check("wandb:pixels")


@pytest.mark.parametrize("variable", [("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled"), ("WANDB_API_KEY", "0" * 40)])
def test_offline_or_with_a_key_it_is_taken(monkeypatch, variable):
    monkeypatch.setenv(*variable)
    wandb.teardown()
    tracking.check("wandb:pixels")
    tracking.check("")


def test_without_wandb_the_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"needs wandb: pip install 'igpt_jax\[wandb\]'"):
        tracking.check("wandb:pixels")
    tracking.check("")


def test_metrics_and_pictures_reach_wandb_through_the_writer(tmp_path, runs):
    writer = metrics.Writer(tmp_path, 0, 10, track="wandb:pixels", recipe={"steps": 10})
    writer.write(5, {"loss": 1.5})
    writer.write_picture(5, "validation/completions", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    (_, values), (_, picture) = runs[0].rows
    assert values == {"step": 5, "train/loss": 1.5} and isinstance(picture["validation/completions"], wandb.Image) and runs[0].finished
    assert not metrics.Writer(tmp_path, 0, 10, enabled=False, track="wandb:pixels").tracker


@pytest.mark.slow
def test_a_server_that_does_not_answer_leaves_an_offline_run_of_the_same_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "SECONDS", 5)
    wandb.teardown()
    tracking.check("wandb:pixels")
    lines = []
    one = tracker(tmp_path, "wandb:pixels", lines)
    one.write(1, {"train/loss": 1.0})
    one.close()
    assert "wandb failed, offline tracking from here on" in lines[0] and "tracked by wandb: offline" in lines[1] and len(lines) == 2
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{one.state['id']}"))


@pytest.mark.slow
def test_offline_a_run_writes_its_files_into_the_work_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    for first in (0, 5):  # the second start goes on from an older checkpoint
        writer = metrics.Writer(tmp_path, first, 20, track="wandb:pixels", recipe={"model": {"width": 4}})
        for step in (first + 5, first + 10):
            writer.write(step, {"loss": 1.5})
        writer.close()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len({folder.name.split("-")[3] for folder in folders}) == 1 and len(list((tmp_path / "wandb").rglob("run-*.wandb"))) == 2
    assert "offline, `wandb sync" in capsys.readouterr().out
    content = b"".join(pathlib.Path(file).read_bytes() for file in (tmp_path / "wandb").rglob("run-*.wandb"))
    assert b"train/loss" in content and b'"width"' in content or b"width" in content
