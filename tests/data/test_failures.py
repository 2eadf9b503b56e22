"""Pictures that cannot be read any more: each is replaced by another of its label, and too many end the run."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from igpt_jax.data.failures import Failures
from igpt_jax.data.folder import Folder, open_folder
from tests.data.pictures import write_picture


def test_another_picture_of_the_label_is_looked_for_only_where_one_cannot_be_read(tmp_path):
    """Reading a picture looks at no other's label, and finding another for it at no more than come before it."""

    class Labels(np.ndarray):
        read = []

        def __getitem__(self, row):
            Labels.read.append(row)
            return np.asarray(self)[row]

        def __eq__(self, other):
            pytest.fail("all labels were looked at")

    paths = [str(write_picture(tmp_path / f"{i}.png")) for i in range(4)]
    labels = np.array([0, 1, 0, 0]).view(Labels)
    folder = Folder("x", paths, paths, labels, ("a", "b"), Failures("x", 1000))
    assert folder.read(1)[1] == 1 and len(Labels.read) == 1
    open(paths[0], "wb").close()
    Labels.read.clear()
    assert folder.read(0)[1] == 0 and set(Labels.read) == {0, 1, 2}


def test_large_folder_checks_headers_and_later_failures_are_substituted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("igpt_jax.data.folder.DECODE_AT_MOST", 10)
    for part, count in (("train", 300), ("test", 1)):
        for i in range(count):
            write_picture(tmp_path / part / "ab"[i % 2] / f"{i:03d}.png", np.full((2, 2, 3), i % 256, np.uint8))
        (tmp_path / part / "b").mkdir(exist_ok=True)

    def truncate(i):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i:03d}.png"
        path.write_bytes(path.read_bytes()[:45])  # the header alone

    for i in (4, 6, 299):
        truncate(i)
    source = open_folder(tmp_path, "train", 0)
    assert len(source) == 300  # the headers are whole
    value = {i: source.read(row)[0][0, 0, 0] for row, i in enumerate([*range(0, 300, 2), *range(1, 300, 2)])}
    assert value[4] == 8 and value[6] == 8 and value[299] == 1  # the next good one of the same label, round the end
    assert len(caplog.records) == 3
    truncate(10)
    with pytest.raises(ValueError, match="4 of 300 pictures, more than 1%"):
        source.read(5)


def test_failures_belong_to_the_rows_of_one_part(tmp_path):
    for i in range(20):
        write_picture(tmp_path / f"{i:02d}.png")
    source = open_folder(tmp_path, "train", 0)
    (tmp_path / os.path.basename(source.paths[4])).write_bytes(b"")
    source.read(4)
    part = source.keep(np.arange(3, 9))
    assert list(source.failures.reasons) == [4] and part.failures.reasons == {}
    part.read(1)
    assert list(part.failures.reasons) == [1] and list(source.failures.reasons) == [4]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_pictures_that_break_later_are_counted_once_and_too_many_end_the_run(workers, tmp_path):
    """Over all workers together: each of the two finds two of the four. In a process of its own, as Grain's workers ask for."""
    program = """
import sys
import numpy as np
from PIL import Image
from igpt_jax.data import pipeline, sampler
from igpt_jax.palette.palette import Palette

if __name__ == "__main__":
    root, workers = sys.argv[1], int(sys.argv[2])
    for i in range(300):
        Image.fromarray(np.full((2, 2, 3), i % 256, np.uint8)).save(f"{root}/train/{i:03d}.png")
    Image.new("RGB", (2, 2)).save(f"{root}/test/0.png")
    for broken in (3, 4):
        train = pipeline.open_dataset(pipeline.DataConfig("folder:" + root, 2, "none", 0.0, "", workers, 0), "train")
        plan = sampler.Shuffled(300, 10, 0)
        for step in range(broken):
            open(train.source.paths[plan(step)[0][0]], "wb").close()
        batches = pipeline.prefetch(pipeline.train_batches(train, Palette.levels(), 10, seed=0), lambda batch: batch)
        try:
            for _ in range(31):
                next(batches)
        except ValueError as error:
            print("error:", error)
        batches.close()
        print(len(train.source.failures.reasons))
        for step in range(broken):
            Image.new("RGB", (2, 2)).save(train.source.paths[plan(step)[0][0]])
"""
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    script = tmp_path / "failures.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, script, tmp_path, str(workers)], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    few, error, many = run.stdout.splitlines()
    assert (few, many) == ("3", "4") and "4 of 300 pictures, more than 1%, can no longer be read, the last: " in error
    lines = [line for line in run.stderr.splitlines() if "replaces it" in line]
    assert [re.search(r"\((\d) so far\)", line)[1] for line in lines] == list("1231234"), run.stderr
