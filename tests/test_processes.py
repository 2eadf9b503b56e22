"""Several processes as one run: what is told wrongly, who is not there, and two real processes against one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from igpt_jax import checkpoint, processes
from tests.runs import ROOT, flags, make_workdir, recipe


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def told(port, index, count=2):
    return {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}


def test_nothing_told_is_a_single_process():
    processes.join({})


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
        processes.join(environment)


def test_a_coordinator_that_is_not_there_is_named_within_the_time():
    port, started = free_port(), time.monotonic()
    with pytest.raises(TimeoutError, match=f"no coordinator at 127.0.0.1:{port} within 1 s .*: start process 0 there"):
        processes.join(told(port, 1), patience=1)
    assert time.monotonic() - started < 10


def start(workdir, config, devices=4, count=2):
    """The training program as `count` processes of so many devices."""
    port = free_port()
    command = [sys.executable, "-m", "igpt_jax.train", "--config=configs/digits.py", f"--workdir={workdir}", *flags(config)]
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"}
    running = []
    for index in range(count):
        environment = os.environ | settings | (told(port, index, count) if count > 1 else {})
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return running


def finish(running):
    texts = [process.communicate(timeout=400)[0] for process in running]
    assert all(process.returncode == 0 for process in running), texts
    return texts


def parameters(workdir):
    import jax

    return jax.tree.leaves(jax.tree.map(np.asarray, checkpoint.load(workdir).model))


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
    for line in running[0].stdout:
        if line.startswith("step 5/"):
            break
    running[1].send_signal(signal.SIGTERM)
    texts = finish(running)
    assert "stopped by a signal at step" in texts[0]
    saved = checkpoint.load(tmp_path / "stopped").step
    assert 5 <= saved < 300
