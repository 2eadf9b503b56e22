"""Runs that end, are killed, are stopped, and go on; and everything that can be wrong with a recipe, said before the first compile."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import tarfile
import time
from types import SimpleNamespace

import numpy as np
import pytest

from igpt_jax import train
from igpt_jax.data.arrays import open_digits
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints, loop
from igpt_jax.training.setup import Setup
from tests import geometry
from tests.data.pictures import write_picture
from tests.runs import DATA, arrays, call, flags, grey_palette, make_workdir, recipe, start


def final_arrays(workdir, config):
    """Every array of the checkpoint of the last step, optimiser included."""
    found = arrays(workdir, config)
    assert int(found[0]) == config.steps
    return found


def arguments(config, workdir):
    return ["--config=configs/digits.py", *flags(config), f"--workdir={workdir}"]


def wait_for_step(workdir, step, process):
    """Return when metrics.jsonl has a line of that step."""
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        lines = path.read_text().splitlines() if path.exists() else []
        if any(line.startswith(f'{{"step": {step},') for line in lines):
            return
        time.sleep(0.02)
    raise AssertionError(f"the run ended before step {step}: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(work directory, recipe) of a run never stopped."""
    workdir, config = make_workdir(tmp_path_factory.mktemp("run")), recipe()
    train.train(config, workdir)
    return workdir, config


@pytest.mark.slow
def test_a_relative_workdir_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workdir("run")
    written, save = [], checkpoints.Checkpoints.save
    monkeypatch.setattr(checkpoints.Checkpoints, "save", lambda *given: written.append((given[1], given[4])) or save(*given))
    train.train(recipe(steps=4, save_every=2, deterministic=True), "run")  # which only a GPU asks a flag for
    assert checkpoints.load("run").step == 4
    assert written == [(2, False), (4, False), (4, True)]  # a run goes on while it is written, and ends when the last is on disk


def test_an_evaluation_on_the_way_sees_every_class_of_a_sorted_set_and_the_same_images_each_time(tmp_path):
    for split, count in (("train", 200), ("test", 400)):
        images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.sort(np.arange(count) % 10))
    config = recipe(data__source=f"npz:{tmp_path}", data__validation=0.0, eval_images=80)
    first, second = (loop.Run(Setup(config, make_workdir(tmp_path / "run")), 0, None) for _ in range(2))
    assert len(first.validation_sample) == 80 and set(first.validation_sample.labels) == set(range(10))
    np.testing.assert_array_equal(*(run.validation_sample.numbers(np.arange(80)) for run in (first, second)))
    first.close(), second.close()


def write_sources(folder):
    """Two sources of training and validation images, named one and two, of the same classes."""
    generator = np.random.default_rng(0)
    for name, high in (("one", 256), ("two", 20)):
        (folder / name).mkdir()
        for split, count in (("train", 60), ("validation", 9)):
            images = generator.integers(0, high, (count, 8, 8), dtype=np.uint8)
            np.savez(folder / name / f"{split}.npz", images=images, labels=np.arange(count) % 2, class_names=["x", "y"])
    return f"npz:{folder}/one*0.7 + npz:{folder}/two*0.3"


@pytest.mark.slow
def test_a_mixture_is_validated_by_source_and_continues_bit_for_bit_with_the_same_weights_only(tmp_path):
    source = write_sources(tmp_path)
    config = recipe(data__source=source, steps=6, save_every=3, model__layers=1)
    found = train.train(config, make_workdir(tmp_path / "whole"))
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["step"] == 6]
    names = [name for line in last for name in line if name.startswith("validation/") and name.endswith("nats_per_pixel")]
    assert names == ["validation/nats_per_pixel", "validation/npz:one/nats_per_pixel", "validation/npz:two/nats_per_pixel"]
    one, two = (found["sources"][name]["nats_per_pixel"] for name in ("npz:one", "npz:two"))
    assert one > two and found["nats_per_pixel"] == pytest.approx((one + two) / 2, rel=1e-6) and found["images"] == 18
    assert json.loads((tmp_path / "whole/result.json").read_text())["sources"]["npz:one"]["nats_per_pixel"] == one
    workdir = make_workdir(tmp_path / "stopped")
    with contextlib.suppress(geometry.Killed), geometry.killed_at(3):
        train.train(config, workdir)
    other = recipe(data__source=source.replace("0.3", "0.4"), steps=6, save_every=3, model__layers=1)
    with pytest.raises(ValueError, match=r"images\] \[\[6364, 60\], \[3636, 60\]\] and the run in .* \[\[7000, 60\], \[3000, 60\]\]: the images would come in"):
        train.train(other, workdir)
    train.train(config, workdir)
    for ours, theirs in zip(final_arrays(tmp_path / "whole", config), final_arrays(workdir, config), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_class_head_needs_a_mixture_of_the_same_classes(tmp_path):
    source = write_sources(tmp_path)
    config = recipe(data__source=source, model__classes=2, loss__classification=1.0)
    assert Setup(config, make_workdir(tmp_path / "run")).class_names == ("x", "y")
    config.data.source = f"{source} + digits*1"
    with pytest.raises(ValueError, match="a class head needs sources of the same classes: .*one has x, y; digits has 0, 1, 2"):
        Setup(config, make_workdir(tmp_path / "run"))


def test_a_run_writes_what_it_says(finished):
    workdir, config = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation/nats_per_pixel" in line] == [6, 12]
    assert lines[0]["train/loss"] == pytest.approx(np.log(8), rel=1e-4)
    assert lines[-1]["validation/bits_per_pixel"] == pytest.approx(lines[-1]["validation/nats_per_pixel"] / np.log(2))
    assert lines[-1]["validation/images"] == 144
    assert json.loads((workdir / "result.json").read_text())["step"] == 12
    assert list((workdir / "tensorboard").glob("events*"))
    assert json.loads((workdir / "checkpoints/12/meta/metadata").read_text())["data"]["images_seen"] == 12 * 16
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [4, 8, 12]


def test_the_first_report_of_speed_leaves_compilation_out(finished):
    """The step that compiles is in no interval: where each step is reported, it has no speed."""
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert ["train/images_per_second" in line for line in lines if "train/loss" in line] == [False] + 11 * [True]


def test_a_finished_run_started_again_evaluates_and_exits(finished):
    workdir, config = finished
    before = final_arrays(workdir, config)
    again = train.train(config, workdir)
    assert again["nats_per_pixel"] == json.loads((workdir / "result.json").read_text())["nats_per_pixel"]
    for a, b in zip(before, final_arrays(workdir, config), strict=True):
        np.testing.assert_array_equal(a, b)


def test_loaded_model_is_the_trained_one_with_its_palette(finished):
    workdir, config = finished
    loaded = checkpoints.load(workdir)
    assert loaded.step == 12 and loaded.palette.size == 8 and loaded.image_size == 8
    codes = np.zeros((1, 64), np.int32)
    assert loaded(codes).logits.shape == (1, 64, 8) and loaded(codes).features.shape == (3, 1, 16)
    older = checkpoints.load(workdir / "checkpoints" / "4")
    assert older.step == 4 and (np.asarray(older(codes).logits) != np.asarray(loaded(codes).logits)).any()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_killed_at_five_random_steps_ends_bit_equal(tmp_path, devices):
    config = recipe(steps=24, save_every=3)
    whole, broken = make_workdir(tmp_path / "whole"), make_workdir(tmp_path / "broken")
    code, _, error = call("train", *arguments(config, whole), devices=devices)
    assert code == 0, error
    for step in sorted(random.Random(devices).sample(range(2, 24), 5)):
        process = start("train", *arguments(config, broken), devices=devices)
        wait_for_step(broken, step, process)
        process.kill()
        process.wait()
    code, _, error = call("train", *arguments(config, broken), devices=devices)
    assert code == 0, error
    for a, b in zip(final_arrays(whole, config), final_arrays(broken, config), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [[json.loads(line).get("train/loss") for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (whole, broken)]
    assert [x for x in losses[0] if x] == [x for x in losses[1] if x] and len([x for x in losses[0] if x]) == config.steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_exits_with_0_and_the_run_ends_bit_equal(tmp_path, finished, name):
    workdir, config = make_workdir(tmp_path), recipe()
    process = start("train", *arguments(config, workdir))
    wait_for_step(workdir, 5, process)
    process.send_signal(getattr(signal, name))
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "stopped by a signal at step" in out
    call_code, _, error = call("train", *arguments(config, workdir))
    assert call_code == 0, error
    by_subprocess = make_workdir(tmp_path / "whole")
    assert call("train", *arguments(config, by_subprocess))[0] == 0
    for a, b in zip(final_arrays(workdir, config), final_arrays(by_subprocess, config), strict=True):
        np.testing.assert_array_equal(a, b)


def newest(workdir):
    return workdir / "checkpoints" / str(max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()))


@pytest.mark.parametrize("damage", ["model", "meta", "truncate", "unfinished"])
def test_a_half_written_newest_step_is_set_aside_and_the_run_ends_bit_equal(tmp_path, finished, damage, capsys):
    workdir, config = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], workdir)
    last = newest(workdir)
    if damage == "truncate":
        for path in (last / "model").rglob("d/*"):
            os.truncate(path, path.stat().st_size // 2)
    elif damage == "unfinished":
        last.rename(last.with_name("12.orbax-checkpoint-tmp"))
    else:
        shutil.rmtree(last / damage)
    assert checkpoints.load(workdir).step == 8
    train.train(config, workdir)
    said = capsys.readouterr()
    assert damage == "unfinished" or "cannot be read, trying the one before it" in said.err
    assert "from step 8 to 12" in said.out
    for a, b in zip(final_arrays(workdir, config), final_arrays(finished[0], config), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_in_one_line_and_keeps_what_was_saved(tmp_path):
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        workdir = make_workdir(disk / "run")
        config = recipe(save_every=2, keep_last=100, steps=60)
        code, _, error = call("train", *arguments(config, workdir))
        assert code == 1 and error.splitlines()[-1].startswith("error: checkpoint") and "Traceback" not in error, error
        assert re.search(r"No space left on the disk: [\d.]+ MiB free and a checkpoint may take [\d.]+ MiB; steps \[2, 4.*\] are saved", error), error
        kept = checkpoints.load(workdir)
        assert kept.step >= 2 and np.isfinite(np.asarray(kept(np.zeros((1, 64), np.int32)).logits)).all()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_loss_that_is_no_number_stops_the_run_and_names_the_last_good_step(tmp_path):
    workdir = make_workdir(tmp_path)
    config = recipe(optim__learning_rate=1e30, save_every=1, steps=8, max_consecutive_skips=3)
    with pytest.raises(FloatingPointError, match=r"skipped: .* the last good step is \d+, the last checkpoint is step \d+ in .*Lower config.optim"):
        train.train(config, workdir)
    assert np.isfinite(np.asarray(checkpoints.load(workdir)(np.zeros((1, 64), np.int32)).logits)).all()


def test_the_limit_of_skipped_updates_holds_also_where_nothing_is_reported(tmp_path):
    workdir, never = make_workdir(tmp_path), {"log_every": 0, "save_every": 0, "eval_every": 0}
    with pytest.raises(FloatingPointError, match="the last 2 updates were skipped"):
        train.train(recipe(optim__learning_rate=1e38, steps=60, max_consecutive_skips=2, **never), workdir)


STOPS = [
    (3, 2, 9, True, False), (3, 3, 9, True, True), (3, 5, 9, True, True), (3, 2, 2, True, True), (3, 2, 2, False, False), (3, 3, 9, False, True),
    (3, 0, 9, True, False), (0, 9, 9, True, False),
]  # fmt: skip


@pytest.mark.parametrize(("skips", "in_a_row", "step", "since_0", "stops"), STOPS)
def test_so_many_skipped_updates_in_a_row_or_all_there_were_stop_a_run(skips, in_a_row, step, since_0, stops):
    some = SimpleNamespace(config=recipe(max_consecutive_skips=skips), saved=None, workdir="runs/a")
    values = {"skipped_in_a_row": in_a_row, "loss": 7.5, "gradient_norm": 0.25}
    if not stops:
        return loop.Run.check_skips(some, step, values, since_0)
    for some.saved, place in ((None, "there is no checkpoint yet"), (4, "the last checkpoint is step 4")):
        with pytest.raises(FloatingPointError) as said:
            loop.Run.check_skips(some, step, values, since_0)
        happened = f"the last {in_a_row} updates were skipped: loss 7.5 and gradient norm 0.25 at step {step}; the last good step is {step - in_a_row}"
        assert str(said.value).startswith(f"{happened}, {place} in runs/a. Lower config.optim")


def test_another_recipe_in_the_same_place_names_the_keys_that_differ(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match=r"holds a run of another recipe: batch_size 16 -> 8, model.width 16 -> 32\. Take another --workdir"):
        train.train(recipe(batch_size=8, model__width=32), workdir)


def test_what_keeps_shapes_and_order_is_taken_said_and_recorded(tmp_path, finished, capsys):
    """More steps of a finished run, with every remedy that a message recommends, data and palette moved, and a key that is new."""
    workdir, moved = tmp_path / "run", tmp_path / "palette.npy"
    shutil.copytree(finished[0], workdir)
    (workdir / "palette.npy").rename(moved)
    for name in ("train", "test"):
        images = open_digits(name)
        np.savez(tmp_path / f"{name}.npz", images=images.images, labels=images.all_labels())
    known = json.loads((workdir / "config.json").read_text())
    del known["optim"]["decay_steps"]  # as in a run from before there was this key
    (workdir / "config.json").write_text(json.dumps(known))
    changes = {"steps": 14, "gradient_accumulation_steps": 2, "max_consecutive_skips": 3, "optim__learning_rate": 0.001, "optim__clip_norm": 1.0}
    changes |= {"optim__weight_decay": 0.1}
    changes |= {"model__remat": "full", "optim__schedule": "wsd", "optim__decay_steps": 1, "palette__path": str(moved), "data__source": f"npz:{tmp_path}"}
    train.train(recipe(**changes), workdir)
    said = capsys.readouterr().out
    expected = ["optim.learning_rate 0.003 -> 0.001 from step 12 on", "optim.decay_steps (none) -> 1 from step 12 on", "steps 12 -> 14 from step 12 on"]
    assert all(line in said.splitlines() for line in expected) and "from step 12 to 14" in said
    kept = json.loads((workdir / "config.json").read_text())
    assert kept["history"][0]["step"] == 12 and kept["history"][0]["changes"]["optim.learning_rate"] == [0.003, 0.001] and len(kept["history"]) == 1
    assert kept["steps"] == 14 and json.loads((workdir / "result.json").read_text())["step"] == 14
    train.train(recipe(**changes), workdir)  # nothing changed: nothing said
    assert " -> " not in capsys.readouterr().out and json.loads((workdir / "config.json").read_text()) == kept


def test_other_data_at_the_same_place_is_refused_and_changes_nothing(tmp_path, finished):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    train_set, test_set = open_digits("train"), open_digits("test")
    np.savez(tmp_path / "test.npz", images=test_set.images, labels=test_set.all_labels())
    for images, message in ((train_set.images[:-10], "1285 training images and the run in"), (255 - train_set.images, "has other images than the run in")):
        np.savez(tmp_path / "train.npz", images=images, labels=train_set.all_labels()[: len(images)])
        with pytest.raises(ValueError, match=message):
            train.train(recipe(data__source=f"npz:{tmp_path}"), workdir)
        assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def write_folder(root, names, seed=0):
    """Random pictures of these names, each of its own colours."""
    for number, name in enumerate(names):
        write_picture(root / name, np.random.default_rng([seed, number]).integers(0, 256, (8, 8, 3), np.uint8))


def test_files_of_other_names_are_refused_also_where_their_number_is_the_same(tmp_path):
    """Their order follows from their names."""
    write_folder(tmp_path / "set", [f"train/{number:02}.png" for number in range(40)] + [f"val/{number:02}.png" for number in range(8)])
    folder = {"data__source": f"folder:{tmp_path / 'set'}", "data__validation": 0.0}
    train.train(recipe(steps=2, **folder), make_workdir(tmp_path))
    (tmp_path / "set/train/07.png").rename(tmp_path / "set/train/99.png")
    with pytest.raises(ValueError, match="has files of other names than the run in .* began with: the images would come in another order"):
        train.train(recipe(steps=3, **folder), tmp_path)
    (tmp_path / "set/train/99.png").rename(tmp_path / "set/train/07.png")
    shutil.move(tmp_path / "set", tmp_path / "moved")
    train.train(recipe(steps=3, **folder | {"data__source": f"folder:{tmp_path / 'moved'}"}), tmp_path)


def test_a_table_whose_files_were_moved_is_the_same_data(tmp_path):
    """It names them by paths that change with their place; the order is that of its rows."""
    names = [f"{split}/{number:02}.png" for split, count in (("train", 40), ("test", 8)) for number in range(count)]
    write_folder(tmp_path / "first/deep", names)
    table = {"data__source": f"csv:{tmp_path / 'table.csv'}", "data__validation": 0.0}

    def name_them(place, chosen=names):
        rows = [f"{place / name},{name.partition('/')[0]}" for name in chosen]
        (tmp_path / "table.csv").write_text("\n".join(["file,split", *rows]) + "\n")

    name_them(tmp_path / "first/deep")
    train.train(recipe(steps=2, **table), make_workdir(tmp_path))
    shutil.move(tmp_path / "first/deep", tmp_path / "second")
    name_them(tmp_path / "second")
    train.train(recipe(steps=3, **table), tmp_path)
    name_them(tmp_path / "second", [names[1], names[0], *names[2:]])
    with pytest.raises(ValueError, match="has files of other names than the run in"):
        train.train(recipe(steps=4, **table), tmp_path)


def test_other_validation_images_are_noted(tmp_path, capsys):
    write_folder(tmp_path / "set", [f"train/{number:02}.png" for number in range(40)] + [f"val/{number:02}.png" for number in range(8)])
    folder = {"data__source": f"folder:{tmp_path / 'set'}", "data__validation": 0.0}
    train.train(recipe(steps=2, **folder), make_workdir(tmp_path))
    train.train(recipe(steps=3, **folder), tmp_path)
    assert "validation images are not those" not in capsys.readouterr().err
    (tmp_path / "set/val/07.png").unlink()
    train.train(recipe(steps=4, **folder), tmp_path)
    assert "note: the validation images are not those of before this start: the losses before and after it cannot be compared\n" in capsys.readouterr().err


def test_without_a_checkpoint_another_recipe_is_no_contradiction(tmp_path):
    workdir = make_workdir(tmp_path)
    (workdir / "config.json").write_text(json.dumps(recipe(batch_size=64).to_dict()))  # of a start that had no memory for it
    train.train(recipe(steps=2), workdir)
    assert "history" not in json.loads((workdir / "config.json").read_text())


def test_weights_given_are_begun_with_and_not_asked_for_again(tmp_path, finished):
    first = finished[0]
    small = {"steps": 2, "save_every": 1, "optim__learning_rate": 1e-30}
    train.train(recipe(**small), tmp_path / "run", init_from=str(first))
    ours, theirs = (checkpoints.load(path).model.blocks.mlp_in[...] for path in (tmp_path / "run", first))
    np.testing.assert_array_equal(ours, theirs)
    train.train(recipe(**small), tmp_path / "run", init_from=str(tmp_path / "no longer there"))
    with pytest.raises(ValueError, match="is a model of another architecture: layers 2, recipe 3"):
        train.train(recipe(model__layers=3), tmp_path / "other", init_from=str(first))
    Palette(grey_palette().centers * 0.9).save(make_workdir(tmp_path / "coloured") / "palette.npy")
    with pytest.raises(ValueError, match="is not the palette of the checkpoint"):
        train.train(recipe(), tmp_path / "coloured", init_from=str(first))


def test_0_is_never(tmp_path, capsys):
    workdir = make_workdir(tmp_path)
    train.train(recipe(steps=3, log_every=0, eval_every=0, save_every=0, max_consecutive_skips=0, keep_every=0), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 3] and checkpoints.load(workdir).step == 3  # the last step is reported, evaluated and saved


WAYS = [("bits_per_pixel", 1.0, 2.0), ("class_nats", 1.0, 2.0), ("accuracy", 0.9, 0.1), ("accuracy_top5", 0.9, 0.1)]


@pytest.mark.parametrize(("metric", "better", "worse"), WAYS)
def test_the_best_is_the_better_whichever_way_the_metric_goes(monkeypatch, metric, better, worse):
    saved = []
    monkeypatch.setattr(checkpoints, "save_model", lambda *arguments: saved.append(arguments[4]))
    some = SimpleNamespace(config=recipe(best__metric=metric), best=None, workdir=pathlib.Path(), setup=SimpleNamespace(palette=None), class_names=None)
    some.sample_described = {"images": 5, "sample": 7}
    for step, value in enumerate((worse, better, worse, better)):
        loop.Run.keep_best(some, step, SimpleNamespace(model=None), {metric: value})
    assert saved == [0, 1] and some.best == {"value": better, "step": 1, "since": 2, "images": 5, "sample": 7}


@pytest.mark.parametrize(("metric", "expected"), [("", [2, 4]), ("nats_per_pixel", [2, 4, 6, 7])])
def test_it_evaluates_every_so_many_steps_and_where_the_best_is_kept_after_the_last(metric, expected):
    """Else `finish` evaluates after the last, on all images."""
    evaluated, nothing = [], SimpleNamespace(restart=lambda *_: None)
    some = SimpleNamespace(measure=lambda state, _: evaluated.append(state), keep_best=lambda *_: None, report=lambda *_: None, speed=nothing)
    some.validation_sample, some.validation = [], [None]
    some.config = recipe(steps=7 if metric else 6, eval_every=2, best__metric=metric)
    for step in range(1, some.config.steps + 1):
        loop.Run.validate(some, step, step)
    assert evaluated == expected


def test_a_metric_that_is_not_measured_and_a_best_without_validation_are_refused_first(tmp_path):
    workdir = make_workdir(tmp_path)
    with pytest.raises(ValueError, match="config.best.metric 'accuracy' is not measured: one of nats_per_pixel, bits_per_pixel$"):
        train.train(recipe(best__metric="accuracy"), workdir)
    with pytest.raises(ValueError, match="chooses by the validation split, and there is none: set config.data.validation"):
        train.train(recipe(best__metric="nats_per_pixel", data__validation=0.0), workdir)
    assert [path.name for path in workdir.iterdir()] == ["palette.npy"]


def test_another_palette_than_the_checkpoints_is_refused(tmp_path, finished):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    Palette(grey_palette().centers * 0.9).save(workdir / "palette.npy")
    with pytest.raises(ValueError, match="was trained with another palette"):
        train.train(finished[1], workdir)


def write_bad_files(directory):
    """Palettes and folders that are none."""
    np.save(directory / "flat.npy", np.zeros((8, 2), np.float32))
    np.save(directory / "nan.npy", np.full((8, 3), np.nan, np.float32))
    np.save(directory / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (directory / "empty").mkdir()
    (directory / "bad").mkdir()
    (directory / "bad/a.jpg").write_text("not an image")


BAD_RECIPES = {
    "config.modl": (["--config.modl.width=3"], r"modl"),
    "wrong type": (["--config.model.width=wide"], r"wide"),
    "heads": (["--config.model.width=30", "--config.model.heads=4"], r"error: width 30 is not divisible by 4 heads"),
    "mesh": (["--config.mesh.fsdp=3"], r"error: mesh data=1 x fsdp=3 x tensor=1 does not make 1 devices"),
    "batch": (["--config.batch_size=5000"], r"error: batch size 5000 is more than the 1294 images"),
    "image size": (["--config.model.positions=49"], r"error: images of 8 x 8 \(digits\) have 64 pixels and the model 49 positions"),
    "classes": (["--config.model.classes=7", "--config.loss.classification=1.0"], r"error: digits has 10 classes and the model's head 7"),
    "palette size": (["--config.palette.size=4"], r"error: the palette has 8 colours and the model 4"),
    "no palette": (["--config.palette.path=nowhere.npy"], r"error: .*nowhere.npy.*igpt_jax.quantize"),
    "palette shape": (["--config.palette.path=TMP/flat.npy"], r"error: .*flat.npy.*\[8, 2\]|error: .*flat.npy.*\(8, 2\)"),
    "palette nan": (["--config.palette.path=TMP/nan.npy"], r"error: .*nan.npy.*(NaN|finite)"),
    "palette pickled": (["--config.palette.path=TMP/pickled.npy"], r"error: .*pickled.npy.*pickle"),
    "empty folder": (["--config.data.source=folder:TMP/empty"], r"error: .*empty.*no "),
    "bad folder": (["--config.data.source=folder:TMP/bad"], r"error: .*bad.*a.jpg"),
    "source": (["--config.data.source=digit"], r"error: source 'digit' is unknown"),
    "not prepared": (["--config.data.source=tfds:cifar10", "--config.data.directory=/nonexistent"], r"error: .*cifar10.*download_and_prepare"),
    "codes missing": (["--config.data.source=codes:/nonexistent"], r"error: .*/nonexistent.*igpt_jax.quantize"),
    "profile": (["--config.profile=9,3"], r"error: config.profile must be the first and the last step to trace, from 1 to config.steps.*, not \(9, 3\)$"),
    "workdir": (["--workdir=/proc/nowhere"], r"error: .*/proc/nowhere"),
    "no workdir": (["--workdir="], r"workdir"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes_end_in_one_line_and_code_1(tmp_path, case):
    changes, message = BAD_RECIPES[case]
    write_bad_files(tmp_path)
    changes = [change.replace("TMP", str(tmp_path)) for change in changes]
    code, _, error = call("train", *arguments(recipe(), make_workdir(tmp_path)), *changes)
    assert code == 1 and re.search(message, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "checkpoints").exists()


def losses_after(workdir, step):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if line["step"] > step and "train/loss" in line]


@pytest.mark.parametrize("name", ["plain", "clipped"])
def test_a_run_whose_checkpoint_has_the_optimiser_by_position_goes_on(tmp_path, name):
    """Written by commit 9ce915e at step 6 of 8; its own losses of steps 7 and 8 are in the metrics.jsonl beside it."""
    with tarfile.open(DATA / "checkpoints_by_position.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = tmp_path / name
    expected = losses_after(workdir, 6)
    small = {"model__layers": 1, "model__width": 8, "model__unroll": 1, "steps": 8, "save_every": 6, "eval_every": 8, "keep_last": 5}
    config = recipe(**small, optim__clip_norm=float(name == "clipped"))
    train.train(config, workdir)
    assert len(expected) == 2 and losses_after(workdir, 6) == pytest.approx(expected, rel=1e-5)
    train.train(config, workdir)  # read again, in the format of today


def test_few_steps_wait_for_the_devices_however_rarely_a_line_is_written(tmp_path, monkeypatch):
    waited, wait = [], loop.jax.block_until_ready
    monkeypatch.setattr(loop.jax, "block_until_ready", lambda values: waited.append(values) or wait(values))
    loop.train(recipe(log_every=0, eval_every=0, save_every=0), make_workdir(tmp_path / "run"))
    assert sum("loss" in values for values in waited if isinstance(values, dict)) >= 12 - loop.AHEAD
