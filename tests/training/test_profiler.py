"""A trace of some steps is always closed, and counted as no one's speed; compilation is timed once, without what it waits for."""

import collections
import gzip
import json
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from igpt_jax import train
from igpt_jax.distributed import multihost
from igpt_jax.training import loop, metrics, profiler, setup
from tests.runs import make_workdir, recipe


@pytest.fixture
def profiled(monkeypatch):
    """What jax.profiler was asked for; stop_trace writes the file that jax writes."""
    events, folders = [], []

    def start(folder, create_perfetto_trace):
        folders.append(folder)
        events.append("start")

    def stop():
        path = folders[-1] / "plugins/profile/2026_11_27/perfetto_trace.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"trace")
        events.append("stop")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    return events


def run_trace(trace, steps):
    """The steps after which it stopped."""
    return [step for step in steps if trace.start(step, 0) or trace.stop_after(step, 0)]


CASES = {  # steps of the run, number of the process -> the steps after which the trace stops by itself, what is said
    "whole": (range(1, 9), 0, [5], "steps 3 to 5 traced: tensorboard --logdir=WORKDIR/profile (with xprof installed), or open WORKDIR/profile/plugins"),
    "continued inside": (range(5, 9), 0, [5], "step 5 traced: "),
    "ended inside": (range(1, 5), 0, [], "steps 3 to 4 traced: "),
    "ended before": (range(1, 3), 0, [], ""),
    "continued after": (range(6, 9), 0, [], "nothing is traced: config.profile ends with step 5, and the run is at step 5"),
    "another process": (range(1, 9), 1, [], ""),
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_of_the_window_that_are_made_are_traced(profiled, tmp_path, monkeypatch, case):
    steps, process, stops, message = CASES[case]
    monkeypatch.setattr(jax, "process_index", lambda: process)
    said = []
    trace = profiler.Trace((3, 5), tmp_path, steps[0] - 1, said.append)
    assert run_trace(trace, steps) == stops
    trace.close()
    trace.close()  # as a run does that ends
    assert profiled == (["start", "stop"] if message.startswith("step") else [])
    assert len(said) == bool(message) and "".join(said).startswith(message.replace("WORKDIR", str(tmp_path)))


def test_the_trace_waits_for_the_steps_before_it_and_for_its_last(profiled, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "block_until_ready", profiled.append)
    trace = profiler.Trace([2, 3], tmp_path, 0, print)
    for step in range(1, 5):
        trace.start(step, f"state {step}")
        trace.stop_after(step, f"values {step}")
    assert profiled == ["state 2", "start", "values 3", "stop"]


def test_a_trace_that_fails_is_said_and_the_run_goes_on(profiled, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: 1 / 0)
    assert run_trace(profiler.Trace((2, 3), tmp_path, 0, said.append), range(1, 5)) == [3]
    assert said.pop() == f"the trace of steps 2 to 3 cannot be written to {tmp_path}/profile, its files are in {tmp_path}/profile: division by zero"

    def refuse(*_, **__):
        profiled.append("asked")
        raise RuntimeError("Profile has already been started.\nOnly one profile may be run at a time.")

    del profiled[:]
    monkeypatch.setattr(jax.profiler, "start_trace", refuse)
    assert run_trace(profiler.Trace((2, 3), tmp_path, 0, said.append), range(1, 5)) == []
    assert said == ["no trace of steps 2 to 3: Profile has already been started. Only one profile may be run at a time."] and profiled == ["asked"]


def reports(tmp_path, profile, steps):
    """(step, whether its line has a speed) as a run reports them, its first step at step 1, and its lines on the screen."""
    lines, said = [], []
    writer = SimpleNamespace(advance=lambda step: None, say=said.append, write=lambda step, values: lines.append((step, "images_per_second" in values)))
    writer.start_clock, writer.estimate_due = lambda step: None, False
    some = SimpleNamespace(writer=writer, compiling_step=1, compile_time=profiler.CompileTime(), config=recipe(log_every=1, steps=steps))
    some.unfinished = collections.deque()
    some.speed, some.check_skips = metrics.Throughput(16, 64, 1e6, None), lambda step, values, since_0=False: None
    some.trace, some.train_step, some.key = profiler.Trace(profile, tmp_path, 0, said.append), jax.jit(lambda state, batch, key: (state, {"loss": state})), None
    for step in range(1, steps + 1):
        _, values = loop.Run.update(some, step, jnp.ones(3).sum(), iter([0]))
        loop.Run.log(some, step, values)
    return lines, said


def test_no_speed_is_reported_in_the_window_and_the_next_begins_after_it(profiled, tmp_path):
    lines, said = reports(tmp_path, (3, 4), 6)
    assert lines == [(1, False), (2, True), (3, False), (4, False), (5, True), (6, True)]
    assert [line.split()[0] for line in said] == ["compiled", "steps"] and said[0].startswith("compiled in 0.")


def test_a_run_that_ends_closes_its_trace_before_it_saves_and_evaluates(tmp_path):
    events = []
    some = SimpleNamespace(trace=SimpleNamespace(close=lambda: events.append("trace")), config=recipe(), workdir=tmp_path)
    some.writer = SimpleNamespace(say=lambda line: events.append("said"), close=lambda: events.append("writer"))
    some.checkpoints, some.save_now = SimpleNamespace(close=lambda: events.append("checkpoints")), lambda *given, wait: events.append("save")
    assert loop.Run.finish(some, 3, None, stopped=True) == {}
    assert events == ["trace", "save", "said"]
    del events[:]
    loop.Run.close(some)
    assert events == ["trace", "writer", "checkpoints"]  # what the trace says is on the screen and its files are closed


@pytest.mark.slow
def test_a_run_stopped_or_failed_in_the_window_closes_its_trace(profiled, tmp_path, monkeypatch, capsys):
    config, workdir = recipe(steps=6, profile=(2, 5), log_every=0, eval_every=0, save_every=0), make_workdir(tmp_path)
    order = loop.Run.save_now
    with monkeypatch.context() as patch:
        patch.setattr(multihost.Stop, "requested", lambda self, step: step >= 3)
        patch.setattr(loop.Run, "save_now", lambda self, *given, **options: profiled.append("save") or order(self, *given, **options))
        assert train.train(config, workdir) == {}
    said = capsys.readouterr().out
    assert profiled == ["start", "stop", "save"] and "steps 2 to 3 traced" in said and "stopped by a signal at step 3" in said
    del profiled[:]
    monkeypatch.setattr(loop.Run, "log", lambda self, step, values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.train(config, workdir)
    assert profiled == ["start", "stop"] and "step 4 traced" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_traced_step_by_step_and_the_speed_is_that_without(tmp_path, capsys):
    workdir = make_workdir(tmp_path)
    train.train(recipe(model__layers=1, steps=5, profile=(2, 3), eval_every=0, save_every=0), workdir)
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("compiled in ") for line in said) == 1
    path = next((workdir / "profile").glob("plugins/profile/*/perfetto_trace.json.gz"))
    assert next(line for line in said if "traced" in line).endswith(f"open {path} at https://ui.perfetto.dev") and list(path.parent.glob("*.xplane.pb"))
    trace = json.loads(gzip.decompress(path.read_bytes()))
    assert [event["args"]["step_num"] for event in trace["traceEvents"] if event.get("name") == "train"] == ["2", "3"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/images_per_second" in line] == [4, 5]  # step 1 compiles


def test_compilation_is_timed_without_what_runs(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(profiler.time, "monotonic", lambda: clock[0])
    record = jax.monitoring.record_event_duration_secs
    with profiler.CompileTime() as measured:
        for now, event, seconds in (
            (101, profiler.COMPILED, 1), (102.5, "/jax/core/compile/jaxpr_trace_duration", 0.5), (103, "/jax/core/compile/jaxpr_trace_duration", 3),
            (110, "/jax/other", 9), (112, profiler.READ, 1), (112, profiler.COMPILED, 2),
        ):  # fmt: skip
            clock[0] = now
            record(event, seconds)
        other = threading.Thread(target=record, args=(profiler.COMPILED, 50))
        other.start(), other.join()
    record(profiler.COMPILED, 50)
    assert measured.seconds == 5 and (measured.compiled, measured.read) == (2, 1)  # 100 to 103 with another inside, 110 to 112
    assert str(measured) == "compiled in 5.0 s"
    measured.read = 2
    assert str(measured) == "compiled in 5.0 s, read from the cache"


def test_what_is_compiled_to_decide_is_part_of_the_time(monkeypatch):
    """`remat` auto compiles the step beforehand, and its first call then reads it from the cache."""
    monkeypatch.setattr(setup, "decide", lambda step, limit: jax.monitoring.record_event_duration_secs(profiler.COMPILED, 7) or ("config", ["a line"]))
    model_config, time_of = SimpleNamespace(remat="none"), profiler.CompileTime()
    some = SimpleNamespace(config=recipe(), mesh=None, model_config=model_config, optim_config=None, loss_config=None, compile_time=time_of)
    assert setup.Setup.decide(some) == ["a line"] and some.model_config == "config"
    with time_of:
        jax.monitoring.record_event_duration_secs(profiler.READ, 1)
        jax.monitoring.record_event_duration_secs(profiler.COMPILED, 1e-9)
    assert str(time_of) == "compiled in 7.0 s"


def test_the_time_of_a_real_program_is_part_of_that_of_its_first_call():
    start = time.monotonic()
    with profiler.CompileTime() as measured:
        jax.jit(lambda x: jnp.sin(x @ x))(jnp.ones((8, 8)))
    assert 0 < measured.seconds <= time.monotonic() - start and measured.compiled
    before = measured.seconds, measured.compiled
    jax.jit(lambda x: jnp.cos(x @ x))(jnp.ones((8, 8)))
    assert (measured.seconds, measured.compiled) == before
