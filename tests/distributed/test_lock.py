"""One run at a time in a work directory: who is refused, and which locks are taken over."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from igpt_jax.distributed import lock
from igpt_jax.distributed.lock import Lock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.5)
    monkeypatch.setattr(lock, "SETTLE", 0.05)


def left(workdir, **changes):
    """A lock that somebody left."""
    holder = Lock(workdir).me | changes
    (workdir / "lock").write_text(json.dumps(holder))
    return holder


def test_the_second_is_refused_in_one_line_and_the_next_is_not(tmp_path):
    with Lock(tmp_path / "run") as held:
        time.sleep(0.2)
        held.check()
        with pytest.raises(OSError, match=rf"^\S+/run is in use by process {os.getpid()} on \S+ since .*: wait for it or end it; if it has ended, remove \S+$"):
            Lock(tmp_path / "run").__enter__()
    assert not list((tmp_path / "run").iterdir())
    with Lock(tmp_path / "run"):
        pass


def test_a_lock_of_a_process_that_has_ended_is_taken_over_at_once(tmp_path, capsys):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left(tmp_path, pid=int(ended.stdout))
    started = time.monotonic()
    with Lock(tmp_path) as held:
        assert json.loads((tmp_path / "lock").read_text()) == held.me and time.monotonic() - started < 0.5
    assert "takes over the lock of process" in capsys.readouterr().err


def test_a_process_number_given_out_again_is_another_process(tmp_path):
    left(tmp_path, pid=os.getppid(), started="1")
    with Lock(tmp_path):
        pass


@pytest.mark.parametrize("clock", [-1e6, 0, 1e6])
def test_elsewhere_the_heartbeat_decides_and_not_the_clocks(tmp_path, clock):
    left(tmp_path, host="node7", machine="node7 another boot", pid=1)
    ended = threading.Event()

    def beat():
        number = 0
        while not ended.wait(0.05):
            number += 1
            os.utime(tmp_path / "lock", (time.time() + clock + number, time.time() + clock + number))

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(OSError, match="in use by process 1 on node7"):
        Lock(tmp_path).__enter__()
    ended.set()
    heart.join()
    with Lock(tmp_path):
        pass


def test_half_a_lock_is_waited_for_and_then_taken_over(tmp_path):
    (tmp_path / "lock").write_text('{"host": "nod')
    with Lock(tmp_path):
        pass


def test_a_process_without_a_heartbeat_is_stopped(tmp_path):
    with Lock(tmp_path) as held:
        other = left(tmp_path, host="node7", pid=3)
        time.sleep(0.3)
        with pytest.raises(OSError, match="was taken over by process 3 on node7: this process had no heartbeat for too long, and stops"):
            held.check()
    assert json.loads((tmp_path / "lock").read_text()) == other  # of whom took it over


def test_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(lock.os, "link", link)
    with Lock(tmp_path), pytest.raises(OSError, match="in use"):
        Lock(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def _enter(place, barrier, results):
    barrier.wait()
    try:
        with Lock(place):
            results.put("in")
            time.sleep(2)
    except OSError:
        results.put("refused")


@pytest.mark.slow
def test_of_several_at_once_one_has_a_lock_that_was_left(tmp_path):
    left(tmp_path, pid=2**22 + 1)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    starters = [context.Process(target=_enter, args=(tmp_path, barrier, results)) for _ in range(4)]
    for starter in starters:
        starter.start()
    found = [results.get(timeout=120) for _ in starters]
    for starter in starters:
        starter.join()
    assert sorted(found) == ["in", "refused", "refused", "refused"]
