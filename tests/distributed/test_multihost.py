"""Several processes as one run: what is told wrongly, who is not there, and two real processes against one."""

import hashlib
import importlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from igpt_jax import cli, train
from igpt_jax.data import pipeline
from igpt_jax.distributed import multihost
from igpt_jax.training import checkpoints
from igpt_jax.training.setup import Setup
from tests import geometry
from tests.data.pictures import write_picture
from tests.models import random_model, tiny
from tests.runs import ROOT, arrays, flags, grey_palette, make_workdir, recipe


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def told(port, index, count=2):
    return {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}


@pytest.mark.parametrize("words", ["sample --checkpoint=cifar10-16 --photographs", "probe --features=f", "convert pack a b", "demo --checkpoint=cifar10-16"])
@pytest.mark.parametrize("name", multihost.COPIES)
def test_copies_of_a_program_of_one_process_are_refused(words, name, monkeypatch, capsys):
    """Each would do the whole work, and write the same files."""
    monkeypatch.setenv(name, "3")
    program, *rest = words.split()
    module = importlib.import_module(f"igpt_jax.{program}")
    monkeypatch.setattr(sys, "argv", [program, *rest])
    with pytest.raises(SystemExit) as ended:
        sys.exit(module.main(rest)) if program == "probe" else module._main()
    said = capsys.readouterr().err + str(ended.value)
    assert f"error: {program} is a program of one process, and 3 were started: start it once; it uses all devices of its machine" in said


@pytest.mark.parametrize("environment", [{}, {"JAX_NUM_PROCESSES": "1"}, {"SLURM_NTASKS": "4"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"OMPI_COMM_WORLD_SIZE": ""}])
def test_one_copy_is_not_refused(environment):
    """A batch script of SLURM names the tasks that it may start, and is itself one process."""
    multihost.check_alone("sample", environment)


def test_nothing_told_is_a_single_process():
    multihost.join({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID not set: set all of them, or none"),
        ({"JAX_PROCESS_ID": "2"}, "expected HOST:PORT, a number of processes, and one from 0 to below it"),
        ({"JAX_NUM_PROCESSES": "two"}, "'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "'host'"),
    ],
)
def test_what_is_told_wrongly_is_said_in_one_line(changes, message):
    environment = {name: value for name, value in (told(1234, 1) | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        multihost.join(environment)


def test_a_coordinator_that_is_not_there_is_named_within_the_time():
    port, started = free_port(), time.monotonic()
    with pytest.raises(TimeoutError, match=f"no coordinator at 127.0.0.1:{port} within 1 s .*: start process 0 there"):
        multihost.join(told(port, 1), patience=1)
    assert time.monotonic() - started < 10


def start(workdir, config, devices=4, count=2):
    """The training program as `count` processes of so many devices."""
    return start_together(["igpt_jax.train", "--config=configs/digits.py", f"--workdir={workdir}", *flags(config)], devices, count)


def start_together(words, devices, count, last=()):
    """A module and its arguments as `count` processes of so many devices that know of each other; `last`: more words for the last of them."""
    port, command = free_port(), [sys.executable, "-m", *words]
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"}
    running = []
    for index in range(count):
        environment = os.environ | settings | (told(port, index, count) if count > 1 else {})
        more = list(last) if index == count - 1 else []
        running.append(subprocess.Popen([*command, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return running


def finish(running):
    texts = [process.communicate(timeout=400)[0] for process in running]
    assert all(process.returncode == 0 for process in running), texts
    return texts


def wait_for_line(process, beginning):
    for line in process.stdout:
        if " ".join(line.split()).startswith(beginning):  # steps are aligned
            return
    raise AssertionError(f"the run ended before {beginning!r}")


@pytest.mark.slow
def test_one_of_two_processes_killed_both_started_again_end_bit_equal(tmp_path):
    config = recipe(steps=12, save_every=4, eval_every=12, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    finish(start(make_workdir(tmp_path / "whole"), config))
    broken = make_workdir(tmp_path / "broken")
    running = start(broken, config)
    wait_for_line(running[0], "step 6/")
    running[1].kill()
    time.sleep(1)
    running[0].kill()  # as a scheduler does with what is left of a job
    for process in running:
        process.wait()
    assert not (broken / "result.json").exists()
    texts = finish(start(broken, config))
    assert re.search(r"from step [48] to 12", texts[0]), texts[0]
    for ours, theirs in zip(arrays(tmp_path / "whole", config), arrays(broken, config), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_other_numbers_of_processes_and_devices_find_the_same_bits_and_go_on_with_the_same_images(tmp_path):
    """Written by 2 processes of 4 devices; read as 1 x 8, 4 x 2 and 1 x 1."""
    config = recipe(steps=20, save_every=4, eval_every=20, log_every=1, mesh__data=1, mesh__fsdp=4, mesh__tensor=2)
    workdir = make_workdir(tmp_path)
    running = start(workdir, config)
    wait_for_line(running[0], "step 9/")
    for process in running:
        process.kill()
        process.wait()
    found = {}
    for count, devices, mesh in ((2, 4, (1, 4, 2)), (1, 8, (1, 8, 1)), (4, 2, (2, 2, 2)), (1, 1, (1, 1, 1))):
        text = finish(start_together(["tests.resumed", str(workdir), *map(str, mesh)], devices, count))[0]
        found[count, devices] = json.loads(text.strip().splitlines()[-1])
    first = found[2, 4]
    assert first["step"] in (4, 8)  # 8 was being written when they were killed
    for other in found.values():
        assert {name: other[name] for name in ("step", "checksum", "images")} == {name: first[name] for name in ("step", "checksum", "images")}, found
        np.testing.assert_allclose(other["losses"], first["losses"], rtol=1e-5)  # float32 sums in another order


@pytest.mark.slow
def test_a_mixture_killed_on_two_processes_continues_with_the_same_images_on_1_2_and_4_and_bit_equal(tmp_path):
    """Arrays and picture files, drawn 7 : 3; the images of the next steps are those that one process alone draws."""
    random = np.random.default_rng(0)
    for name in ("arrays", "pictures/train/a", "pictures/train/b"):
        (tmp_path / name).mkdir(parents=True)
    np.savez(tmp_path / "arrays/train.npz", images=random.integers(0, 256, (50, 8, 8), dtype=np.uint8))
    for i in range(30):
        write_picture(tmp_path / f"pictures/train/{'ab'[i % 2]}/{i}.png", random.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    source = f"npz:{tmp_path}/arrays*7 + folder:{tmp_path}/pictures*3"
    config = recipe(data__source=source, steps=12, save_every=4, eval_every=12, mesh__data=1, mesh__fsdp=4, mesh__tensor=1)
    finish(start(make_workdir(tmp_path / "whole"), config, devices=2))
    workdir = make_workdir(tmp_path / "broken")
    running = start(workdir, config, devices=2)
    wait_for_line(running[0], "step 6/")
    for process in running:
        process.kill()
        process.wait()
    found = {}
    for count, devices in ((2, 2), (1, 4), (4, 1)):
        text = finish(start_together(["tests.resumed", str(workdir), "1", "4", "1"], devices, count))[0]
        found[count] = json.loads(text.strip().splitlines()[-1])
    data = pipeline.open_dataset(pipeline.DataConfig(**config.data), "train")
    batches = pipeline.train_batches(data, grey_palette(), 16, config.seed, found[2]["step"])
    drawn = b"".join(np.asarray(next(batches)["codes"]).tobytes() for _ in range(3))
    batches.close()
    assert [one["images"] for one in found.values()] == [hashlib.sha256(drawn).hexdigest()] * 3
    assert len({one["checksum"] for one in found.values()}) == 1
    for one in found.values():
        np.testing.assert_allclose(one["losses"], found[2]["losses"], rtol=1e-5)  # float32 sums in another order
    finish(start(workdir, config, devices=2))
    for ours, theirs in zip(arrays(tmp_path / "whole", config), arrays(workdir, config), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together_and_go_on(tmp_path):
    """Four devices each, against one process of eight: the same losses; a SIGTERM to one process saves on both and the run ends as if undisturbed."""
    config = recipe(steps=8, save_every=4, eval_every=8, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    texts = finish(start(make_workdir(tmp_path / "two"), config))
    assert "8 x cpu (data 2 x fsdp 2 x tensor 2)" in texts[0] and "step 8/8" in texts[0] and "step 8/8" not in texts[1]
    finish(start(make_workdir(tmp_path / "one"), config, devices=8, count=1))
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one")]
    assert results[0]["nats_per_pixel"] == pytest.approx(results[1]["nats_per_pixel"], rel=1e-5) and results[0]["images"] == results[1]["images"]
    longer = recipe(steps=300, save_every=300, eval_every=300, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    running = start(make_workdir(tmp_path / "stopped"), longer)
    wait_for_line(running[0], "step 5/")
    running[1].send_signal(signal.SIGTERM)
    texts = finish(running)
    assert "stopped by a signal at step" in texts[0]
    saved = checkpoints.load(tmp_path / "stopped").step
    assert 5 <= saved < 300


@pytest.mark.slow
def test_two_processes_fit_a_palette_fine_tune_keep_the_best_and_write_features(tmp_path):
    """As one process of as many devices: the same palette to the bit, the same accuracy, the same features."""
    small = ["--config.model.layers=2", "--config.model.width=16", "--config.model.heads=2", "--config.palette.size=8", "--config.batch_size=16"]
    small += ["--config.steps=6", "--config.eval_every=3", "--config.save_every=3", "--config.optim.warmup_steps=0", "--config.log_every=1"]
    for name, count, devices in (("two", 2, 2), ("one", 1, 4)):
        place = f"--workdir={tmp_path / name}"
        finish(start_together(["igpt_jax.quantize", "--config=configs/digits.py", place, "--config.palette.size=8"], devices, count))
        finish(start_together(["igpt_jax.finetune", "--config=configs/digits_finetune.py", place, *small], devices, count))
        finish(start_together(["igpt_jax.features", f"--checkpoint={tmp_path / name / 'best'}", f"--out={tmp_path / name / 'features'}"], devices, count))
    assert (tmp_path / "two/palette.npy").read_bytes() == (tmp_path / "one/palette.npy").read_bytes()
    two, one = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one"))
    assert two["images"] == one["images"] and two["accuracy"] == pytest.approx(one["accuracy"], abs=0.01)
    assert two["best"]["step"] == checkpoints.load(tmp_path / "two/best").step
    for split in ("train", "test"):
        paths = sorted((tmp_path / "one/features" / split).rglob("part-*.npy"))
        assert paths
        for path in paths:
            other = np.load(tmp_path / "two" / path.relative_to(tmp_path / "one"))
            np.testing.assert_allclose(other.astype(np.float32), np.load(path).astype(np.float32), atol=0.02)


def test_what_fails_on_another_process_ends_this_one(monkeypatch):
    assert multihost.together(lambda: 3, "another cannot") == 3
    with pytest.raises(KeyError, match="ours"):
        multihost.together(lambda: {}["ours"], "another cannot")
    monkeypatch.setattr(multihost, "all_agree", lambda fine: False)
    with pytest.raises(OSError, match="^another cannot$"):
        multihost.together(lambda: 3, "another cannot")


@pytest.mark.parametrize(("other", "name"), [(1, "recipe"), (2, "images"), (3, "palette"), (4, "weights to start from")])
def test_a_run_of_processes_that_differ_is_refused_before_a_step(tmp_path, monkeypatch, other, name):
    """As each sees it: after whether there are weights to load, its numbers are those of recipe, images, palette and these weights, in this order."""
    given = []
    monkeypatch.setattr(multihost, "all_equal", lambda number: given.append(number) or len(given) - 1 != other)
    with pytest.raises(ValueError, match=f"the processes do not have the same {name}: start all of them with one command"):
        train.train(recipe(), make_workdir(tmp_path))
    assert not (tmp_path / "checkpoints").exists() and all(0 <= number < 2**31 for number in given)


def test_processes_that_do_not_all_load_weights_are_refused_before_they_load_together(tmp_path, monkeypatch):
    numbers = []
    monkeypatch.setattr(multihost, "all_equal", lambda number: numbers.append(number))
    for path in (None, str(tmp_path / "weights"), str(tmp_path / "a copy of them")):
        with pytest.raises(ValueError, match="the processes do not all have --init_from or --checkpoint, or a checkpoint of their own: start all of them"):
            train.train(recipe(), make_workdir(tmp_path / "run"), path)
    assert numbers[0] != numbers[1] == numbers[2]


def test_hosts_may_keep_the_data_at_other_places_and_nothing_else_differs_unseen(tmp_path, monkeypatch):
    numbers = []
    monkeypatch.setattr(multihost, "all_equal", lambda number: numbers.append(number) or True)
    for changes in ({}, {"palette__path": str(make_workdir(tmp_path / "there") / "palette.npy")}, {"batch_size": 32}, {"data__validation": 0.2}):
        Setup(recipe(**changes), make_workdir(tmp_path / "run")).check_processes()
    ours, elsewhere, batch, split = (numbers[start : start + 4] for start in range(0, 16, 4))
    assert ours == elsewhere and [a == b for a, b in zip(ours, batch, strict=True)] == [False, True, True, True]
    assert [a == b for a, b in zip(ours, split, strict=True)] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "lines"),
    [
        (["--config.batch_size=32"], ["the processes do not have the same recipe: start all of them"] * 2),
        (["--config.data.source=npz:not there"], ["another process cannot begin: see what it says", "not there"]),
    ],
)
def test_a_process_of_another_recipe_or_without_the_data_ends_all_in_one_line(tmp_path, last, lines):
    running = start_together(["igpt_jax.train", "--config=configs/digits.py", f"--workdir={make_workdir(tmp_path)}", *flags(recipe(steps=2))], 1, 2, last)
    texts = [process.communicate(timeout=200)[0] for process in running]
    for process, text, line in zip(running, texts, lines, strict=True):
        assert process.returncode == 1 and re.search(f"^error: .*{line}", text, re.M) and "Traceback" not in text, texts


@pytest.mark.slow
def test_features_that_the_first_process_refuses_end_all_at_once_in_one_line(tmp_path):
    model = random_model(tiny(layers=1, width=8, heads=2, vocabulary=8))
    seen = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
    checkpoints.save_model(tmp_path / "model", model, grey_palette(), {"data": seen})
    words = ["igpt_jax.features", f"--checkpoint={tmp_path / 'model'}", f"--out={tmp_path / 'out'}", "--splits=test"]
    for process in start_together([*words, "--limit=20"], 1, 2):
        assert process.wait(timeout=200) == 0
    running = start_together([*words, "--limit=10"], 1, 2)
    texts = [process.communicate(timeout=200)[0] for process in running]  # below jax's own 300 s
    for process, text, line in zip(running, texts, ["holds other features, differing in limit", "another process cannot begin: see what it says"], strict=True):
        assert process.returncode == 1 and re.search(f"^error: .*{line}", text, re.M) and "not expected" not in text, texts


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 99])
def test_a_save_that_fails_on_one_process_is_tried_again_by_all_or_ends_all_in_one_line(tmp_path, times):
    config = recipe(steps=4, save_every=2, eval_every=4, model__layers=1, model__width=8)
    words = ["tests.failing", str(times), "--config=configs/digits.py", f"--workdir={make_workdir(tmp_path)}", *flags(config)]
    running = start_together(words, 1, 2)
    texts = [process.communicate(timeout=300)[0] for process in running]
    assert not any("Traceback" in text for text in texts), texts
    if times == 1:
        assert [process.returncode for process in running] == [0, 0] and checkpoints.load(tmp_path).step == 4, texts
        assert "cannot be written, trying again in 0.1 s: Input/output error" in texts[1]
    else:
        assert all(process.returncode for process in running), texts
        assert all(re.search(r"^error: checkpoint 2 cannot be written to .*; steps \[\] are saved; free some disk space", text, re.M) for text in texts), texts


def test_the_rows_of_the_table_hold_every_pair_of_conditions():
    """But for meshes of two axes in one process, which has two devices at most."""
    rows = geometry.rows()
    conditions = geometry.PROCESSES, geometry.DEVICES, tuple(geometry.MESHES), geometry.PROGRAMS
    for (i, ones), (j, others) in itertools.combinations(enumerate(conditions), 2):
        lacking = {(one, other) for one in ones for other in others} - {(row[i], row[j]) for row in rows}
        assert lacking == ({(1, "fsdp x tensor"), (1, "data x fsdp x tensor")} if (i, j) == (0, 2) else {(1, 1)} if (i, j) == (0, 1) else set())
    assert len({row[:3] for row in rows}) <= 16  # starts of processes


@pytest.mark.slow
def test_every_program_gives_the_numbers_of_one_process_with_one_device(tmp_path):
    """Over processes x devices x meshes x programs, every pair of conditions; `python -m tests.geometry` prints the table."""
    found = geometry.table(tmp_path)
    assert len(found) == len(geometry.rows()) and all(row["equal"] for row in found), [row for row in found if not row["equal"]]
    assert all(row["result"]["images"] in (144, 359, [144, 359]) for row in found if row["row"][3] != "quantize")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "last", "what"),
    [
        (["igpt_jax.evaluate", "--checkpoint={one}", "--limit=16"], ["--split=validation"], "options"),
        (["igpt_jax.evaluate", "--checkpoint={one}", "--limit=16"], ["--checkpoint={other}"], "weights"),
        (["igpt_jax.features", "--checkpoint={one}", "--limit=16", "--out={out}"], ["--checkpoint={other}"], "weights"),
        (["igpt_jax.features", "--checkpoint={one}", "--limit=16", "--out={out}"], ["--limit=8"], "options"),
        (["igpt_jax.quantize", "--config=configs/digits.py", "--workdir={out}"], ["--config.palette.size=8"], "recipe"),
    ],
)
def test_programs_whose_processes_do_different_work_end_before_they_mix_it(tmp_path, program, last, what):
    """Else the parts of two models, or the sums of two splits, become one plausible result."""
    for seed, name in enumerate(("one", "other")):
        checkpoints.save_model(tmp_path / name, random_model(tiny(), seed=seed), grey_palette(16), recipe().to_dict())
    places = {name: str(tmp_path / name) for name in ("one", "other", "out")}
    words, last = ([word.format(**places) for word in each] for each in (program, last))
    running = start_together(words, 1, 2, last)
    texts = [process.communicate(timeout=200)[0] for process in running]
    for process, text in zip(running, texts, strict=True):
        assert process.returncode == 1 and f"the processes do not have the same {what}: start all of them with one command" in text, texts
    assert not (tmp_path / "out/features.json").exists() and not (tmp_path / "out/palette.npy").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "first", "last", "lines"),
    [
        (["igpt_jax.evaluate", "--limit=16"], "--checkpoint={one}", "--checkpoint={nowhere}", ["another process does not find", "nowhere"]),
        (["igpt_jax.features", "--limit=16", "--out={out}"], "--checkpoint={nowhere}", "--checkpoint={one}", ["nowhere", "another process does not find"]),
        (["igpt_jax.quantize", "--config=configs/digits.py"], "--workdir={one}", "--workdir={out}", ["do not have the same work directory"] * 2),
        (
            ["igpt_jax.quantize", "--config=configs/digits.py", "--codes", "--workdir={out}"],
            "--config.data.source=npz:{nowhere}", "--config.data.source=digits", ["nowhere", "another process of this run has ended"],
        ),
    ],
)  # fmt: skip
def test_what_one_process_lacks_ends_all_in_one_line(tmp_path, program, first, last, lines):
    checkpoints.save_model(tmp_path / "one", random_model(tiny()), grey_palette(16), recipe().to_dict())
    (tmp_path / "one/palette.npy").write_bytes(b"") if "--workdir={one}" == first else None
    places = {name: str(tmp_path / name) for name in ("one", "nowhere", "out")}
    words = [word.format(**places) for word in [*program, first]]
    running = start_together(words, 1, 2, [last.format(**places)])
    texts = [process.communicate(timeout=100)[0] for process in running]
    for process, text, line in zip(running, texts, lines, strict=True):
        ended = (-signal.SIGKILL, -signal.SIGABRT) if "has ended" in line else (1,)  # SIGABRT: jax noticed it first
        assert process.returncode in ended and re.search(f"^error: .*{line}", text, re.M) and "not expected" not in text, texts
    assert not (tmp_path / "out/features.json").exists() and not list(tmp_path.rglob("error-*.txt"))


def test_a_lost_process_is_told_in_words_and_other_errors_are_not_taken_for_it(monkeypatch):
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    assert not multihost.is_lost(lost)  # a single process has none to lose
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert multihost.is_lost(lost) and cli.explain(lost).startswith("error: another process of this run has ended or cannot be reached, see what it says")
    for other in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), ValueError("Gloo")):
        assert not multihost.is_lost(other)
