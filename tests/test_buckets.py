"""Work directories in a bucket (gs://): what the programs write there, what they read, and what has to lie on a disk.

The bucket is a folder behind epath, which like a bucket has no empty directories, does not append and does not rename. The arrays of checkpoints, which
tensorstore puts into a real bucket by itself, go to that folder directly.
"""

import json
import tempfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from igpt_jax import features, quantize, train
from igpt_jax.data import pipeline
from igpt_jax.distributed import lock
from igpt_jax.palette import palette
from igpt_jax.palette.palette import Palette
from igpt_jax.probing import extract
from igpt_jax.training import checkpoints, loop, metrics, profiler, recipe, setup, storage
from tests import runs
from tests.runs import grey_palette

RUN = "gs://bucket/run"


class Bucket(DirFileSystem):
    protocol = ("gs", "gcs")

    def __init__(self, folder):
        super().__init__(path=str(folder), fs=LocalFileSystem(auto_mkdir=True))
        self.folder, self.written, self.down = folder, [], False

    def makedirs(self, path, exist_ok=False):
        pass

    mkdir = makedirs

    def mv(self, path1, path2, **options):
        raise OSError("a bucket copies and deletes, which a crash may cut in two")

    def open(self, path, mode="rb", **options):
        if "a" in mode or "+" in mode:
            raise NotImplementedError("File mode not supported")
        if "w" in mode and self.down:
            raise RuntimeError("the network\nis away")
        if "w" in mode:
            self.written.append(str(path))
        return super().open(path, mode, **options)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The file system behind gs://; `folder` holds its buckets."""
    fake = Bucket(tmp_path / "cloud")
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # with TensorFlow epath would take its file system
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: fake)
    monkeypatch.setattr(storage, "epath", SimpleNamespace(Path=lambda path: epath.Path(str(path).replace("gs:/", str(fake.folder)))))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    yield fake
    assert not (tmp_path / "gs:").exists()  # what a path taken for a local one would make


def lines_of(bucket, name="bucket/run/metrics.jsonl"):
    return [json.loads(line) for line in (bucket.folder / name).read_text().splitlines()]


def test_a_palette_is_written_at_once_and_keeps_no_table_there(bucket, monkeypatch):
    monkeypatch.setattr(palette, "_DIRECT_PAIRS", 0)
    monkeypatch.setattr(palette, "_DIRECT_PIXELS", 0)
    monkeypatch.setattr(palette, "build_table", lambda centers: np.zeros(256**3, np.uint16))
    path = f"{RUN}/palette.npy"
    with pytest.raises(FileNotFoundError, match=f"no palette at {path}"):
        Palette.load(path)
    saved = grey_palette()
    saved.save(path)
    loaded = Palette.load(path)
    np.testing.assert_array_equal(loaded.centers, saved.centers)
    for one in (saved, loaded):
        one.encode(np.zeros((4, 4, 3), np.uint8))
        assert one._table is not None
    assert bucket.written == [path] and [file.name for file in (bucket.folder / "bucket/run").iterdir()] == ["palette.npy"]
    (bucket.folder / "bucket/run/palette.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match="gs://bucket/run/palette.npy is not a plain .npy"):
        Palette.load(path)


def test_metrics_are_copied_whole_and_go_on_from_the_checkpoint(bucket, tmp_path):
    first = metrics.Writer(RUN, 0, 10)
    for step in (1, 2, 3):
        first.write(step, {"loss": 4.0 - step})
        if step == 2:
            assert not bucket.written
            first.publish()
    assert [line["step"] for line in lines_of(bucket)] == [1, 2]  # and is killed, with line 3 unsaved

    second = metrics.Writer(RUN, 1, 10)
    second.write(2, {"loss": 7.0})
    second.close()
    assert [(line["step"], line["train/loss"]) for line in lines_of(bucket)] == [(1, 3.0), (2, 7.0)]
    assert list((bucket.folder / "bucket/run/tensorboard").glob("events*"))
    assert len(list((tmp_path / "temporary").glob("igpt_jax-*"))) == 1  # that of the one killed

    silent = metrics.Writer(RUN, 0, 10, enabled=False)
    assert silent.publish()
    silent.close()


def test_metrics_that_cannot_be_copied_do_not_end_the_run(bucket, tmp_path, capsys):
    writer = metrics.Writer(RUN, 0, 10)
    writer.write(1, {"loss": 1.0})
    bucket.down = True
    assert not writer.publish()
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot" in line]
    assert len(said) == 1 and said[0].endswith("the network is away") and f"metrics cannot be written to {RUN}" in said[0]
    bucket.down = False
    assert writer.publish() and len(lines_of(bucket)) == 1
    writer.write(2, {"loss": 1.0})
    bucket.down = True
    writer.close()
    left = next((tmp_path / "temporary").glob("igpt_jax-*/metrics.jsonl"))  # not thrown away
    assert len(left.read_text().splitlines()) == 2 and str(left.parent) in capsys.readouterr().out


def test_a_trace_is_made_here_and_copied_whole(bucket, tmp_path, monkeypatch):
    folders, said = [], []

    def write():
        for name in ("perfetto_trace.json.gz", "host.xplane.pb"):
            path = folders[-1] / "plugins/profile/2026_11_27" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, create_perfetto_trace: folders.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", write)

    def trace():
        made = profiler.Trace((1, 1), RUN, 0, said.append)
        made.start(1, 0)
        assert made.stop_after(1, 0)

    trace()
    copied = bucket.folder / "bucket/run/profile/plugins/profile/2026_11_27"
    assert {path.name: path.read_text() for path in copied.iterdir()} == {name: name for name in ("perfetto_trace.json.gz", "host.xplane.pb")}
    file = f"{RUN}/profile/plugins/profile/2026_11_27/perfetto_trace.json.gz"
    assert said.pop() == f"step 1 traced: tensorboard --logdir={RUN}/profile (with xprof installed), or open {file} at https://ui.perfetto.dev"
    assert not list((tmp_path / "temporary").iterdir())
    bucket.down = True
    trace()
    assert said == [f"the trace of step 1 cannot be written to {RUN}/profile, its files are in {folders[-1]}: the network is away"]
    assert list(folders[-1].rglob("host.xplane.pb"))  # not thrown away


def test_a_recipe_is_kept_with_its_history(bucket, monkeypatch):
    workdir = epath.Path(RUN)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    recipe.keep_config(workdir, {"seed": 1})
    assert not bucket.written
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    recipe.keep_config(workdir, {"seed": 1, "log_every": 1})
    assert recipe.keep_config(workdir, {"seed": 1, "log_every": 2}, recipe.read_config(workdir), 3) == ["log_every 1 -> 2 from step 3 on"]
    kept = {"seed": 1, "log_every": 2, "history": [{"step": 3, "changes": {"log_every": [1, 2]}}]}
    assert json.loads((bucket.folder / "bucket/run/config.json").read_text()) == kept
    assert [file.name for file in (bucket.folder / "bucket/run").iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match=f"{RUN} holds a run of another recipe: seed 1 -> 2"):
        recipe.check_continues(workdir, kept, {"seed": 2, "log_every": 2})


def test_quantize_writes_there_what_it_writes_elsewhere(bucket, tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(lock, "SETTLE", 0.0)
    config = runs.recipe()
    quantize.quantize(config, RUN)
    quantize.quantize(config, tmp_path / "here")
    there = bucket.folder / "bucket/run"
    assert {file.name for file in there.iterdir()} == {"palette.npy", "palette.json", "palette.png"}
    for name in ("palette.npy", "palette.png"):
        assert (there / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert json.loads((there / "palette.json").read_text())["size"] == 8
    assert f"{RUN}/palette.npy: 8 colours" in capsys.readouterr().out
    quantize.quantize(config, RUN)
    assert f"keeping {RUN}/palette.npy" in capsys.readouterr().out
    config.palette.path = f"{RUN}/palette.npy"
    quantize.quantize(config, tmp_path / "coded", codes=True)
    assert Palette.load(tmp_path / "coded/codes/palette.npy").size == 8


def test_quantize_says_first_what_cannot_be(bucket, monkeypatch):
    monkeypatch.setattr(pipeline, "open_dataset", lambda *arguments: pytest.fail("worked before it looked"))
    with pytest.raises(ValueError, match=f"--workdir must be a local or mounted directory, not {RUN}"):
        quantize.quantize(runs.recipe(), RUN, codes=True)

    def lacking(path):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(backend.fsspec_backend, "fs", lacking)
    with pytest.raises(OSError, match=f"{RUN} cannot be written: Please install gcsfs"):
        quantize.quantize(runs.recipe(), RUN)


@pytest.mark.parametrize("source", ["codes:gs://bucket/codes", "npz:gs://bucket/set", "folder:gs://bucket/set", "npy:gs://bucket/imagenet"])
def test_images_lie_on_a_disk(bucket, source):
    with pytest.raises(ValueError, match=f"'{source}' must be a local directory: copy it to this machine, or mount the bucket"):
        pipeline.DataConfig(source=source, image_size=8, augment="none", validation=0.1, directory="", workers=0, seed=0)


def test_features_lie_on_a_disk(bucket, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "load", lambda *arguments, **options: pytest.fail("worked before it looked"))
    assert features.main([f"--checkpoint={RUN}", "--out=gs://bucket/features"]) == 1
    assert capsys.readouterr().err == "error: --out=gs://bucket/features must be a local or mounted folder: igpt_jax.probe maps the features into memory\n"
    with pytest.raises(ValueError, match="local or mounted"):
        extract.write_features(None, None, "gs://bucket/features")


@pytest.mark.slow
def test_a_run_there_goes_on_after_a_crash(bucket, tmp_path, monkeypatch):
    grey_palette().save(f"{RUN}/palette.npy")
    config = runs.recipe(steps=4, save_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "save", lambda self, step, *_, save=loop.Run.save: save(self, step, *_) if step < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.train(config, RUN)
    before = {line["step"]: line["train/loss"] for line in lines_of(bucket)}
    assert before.keys() == {1, 2, 3}
    result = train.train(config, RUN)
    lines = [line for line in lines_of(bucket) if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[2]["train/loss"] == before[3] and lines[2]["time"] > lines[1]["time"]
    kept = json.loads((bucket.folder / "bucket/run/result.json").read_text())
    assert kept["step"] == 4 and kept["nats_per_pixel"] == result["nats_per_pixel"] == lines_of(bucket)[-1]["validation/nats_per_pixel"]
    assert {"palette.npy", "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "result.json", "starts.json"} == {
        file.name for file in (bucket.folder / "bucket/run").iterdir()
    }
    assert not list((tmp_path / "temporary").glob("igpt_jax-*"))


def test_lines_are_there_before_the_checkpoint_they_belong_to(bucket, monkeypatch):
    """A crash between the two loses lines that nobody writes again only if the checkpoint were first."""
    events = []
    writer = SimpleNamespace(publish=lambda: events.append("lines"))
    saver = SimpleNamespace(save=lambda *arguments: events.append("checkpoint"))
    monkeypatch.setattr(checkpoints, "make_meta", lambda *arguments: {})
    assembled = SimpleNamespace(config=runs.recipe(), model_config=None, palette=None, data_description={})
    some = SimpleNamespace(writer=writer, checkpoints=saver, setup=assembled, best=None, class_names=None)
    some.speed = SimpleNamespace(restart=lambda step: None)
    loop.Run.save_now(some, 2, None)
    assert events == ["lines", "checkpoint"]


def test_the_palette_of_a_run_may_lie_there(bucket, monkeypatch):
    path = epath.Path("gs://bucket/tuned/palette.npy")
    setup.write_palette(grey_palette(), path)
    setup.write_palette(grey_palette(), path)
    assert bucket.written == [str(path)]
    with pytest.raises(ValueError, match=f"{path} is not the palette of the checkpoint"):
        setup.choose_palette(str(path), None, None, SimpleNamespace(palette=grey_palette(9)))
    assert setup.choose_palette(str(path), None, None).size == 8 == setup.choose_palette("", SimpleNamespace(palette=None), path.parent).size
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    setup.write_palette(grey_palette(), epath.Path("gs://bucket/other/palette.npy"))  # the first process writes it, and this one waits
    assert bucket.written == [str(path)]
