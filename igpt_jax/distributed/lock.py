"""One run at a time in a work directory: WORKDIR/lock says which process has it, and its time of change is that process's heartbeat.

A lock left by a process of this machine that has ended is taken over at once. Of another machine (another name, boot, or container) only the heartbeat is
known: it is watched for STALE seconds by this machine's own clock, never compared with it, and taken over where it stands still.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid

import jax
from etils import epath

from igpt_jax.distributed import multihost

NAME = "lock"
HEARTBEAT = 10.0  # seconds
STALE = 35.0  # seconds without a heartbeat; more than three of them
SETTLE = 3.0  # seconds that a bucket is given: it has no atomic creation, the last of several writers has the lock
FIELDS = {"host", "machine", "pid", "started", "time", "token"}


class Lock:
    """Holds the lock of a work directory; a context manager. Of several processes the first holds it, and all fail where it cannot."""

    def __init__(self, workdir):
        self.place = epath.Path(workdir) / NAME
        self.bucket = "://" in str(workdir)
        self.me = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
        self.me |= {"time": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "token": uuid.uuid4().hex}
        self.lost = None  # a line, once another process has taken the lock over

    def __enter__(self):
        refused = None
        if jax.process_index() == 0:
            try:
                self._take()
            except OSError as error:
                refused = error
        if not multihost.all_agree(refused is None):
            raise refused or OSError(f"the first process cannot have {self.place}: see what it says")
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        if jax.process_index() == 0:
            self._heart.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        if jax.process_index() == 0:
            self._heart.join()
            with contextlib.suppress(OSError):
                if (self._read()[0] or self.me)["token"] == self.me["token"]:
                    self.place.unlink(missing_ok=True)

    def check(self) -> None:
        """OSError in one line where another process has taken the lock over, because this one stood still for longer than its heartbeat allows."""
        if self.lost:
            raise OSError(self.lost)

    def _take(self):
        self.place.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            found = self._read()
            if found[0] is None:
                continue  # given back meanwhile
            if not self._is_left(found):
                holder, way_out = found[0], f"wait for it or end it; if it has ended, remove {self.place}"
                raise OSError(f"{self.place.parent} is in use by process {holder['pid']} on {holder['host']} since {holder['time']}: {way_out}")
            if self._remove(found):
                print(f"takes over the lock of process {found[0]['pid']} on {found[0]['host']}, which has ended", file=sys.stderr, flush=True)

    def _create(self) -> bool:
        """Write the lock, whole, if there is none."""
        content = json.dumps(self.me)
        if self.bucket:
            if self.place.exists():
                return False
            self.place.write_text(content)
            time.sleep(SETTLE)
            return self._read()[0] == self.me
        mine = pathlib.Path(f"{self.place}.{self.me['token']}")
        try:
            mine.write_text(content)
            try:
                os.link(mine, self.place)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: created first and filled then
                with pathlib.Path(self.place).open("x") as file:
                    file.write(content)
            return True
        except FileExistsError:
            return False
        finally:
            mine.unlink(missing_ok=True)

    def _read(self) -> tuple[dict | None, float]:
        """(what the lock says, its time of change); (None, 0) where there is none."""
        try:
            text, beat = self.place.read_text(), 0 if self.bucket else os.stat(self.place).st_mtime_ns
        except FileNotFoundError:
            return None, 0
        return _said(text), beat

    def _is_left(self, found) -> bool:
        """Whether the process that holds the lock has ended."""
        holder = found[0]
        if holder["machine"] == self.me["machine"]:
            return _started(holder["pid"]) != holder["started"]
        print(f"{self.place} is of process {holder['pid']} on {holder['host']}: waits {STALE:g} s for its heartbeat", file=sys.stderr, flush=True)
        until = time.monotonic() + STALE
        while time.monotonic() < until:
            time.sleep(min(1.0, STALE / 10))
            if self._read() != found:
                return False
        return True

    def _remove(self, found) -> bool:
        """Take away a lock that was left; False where another process was quicker, whose lock stays."""
        if self.bucket:
            if self._read() == found:
                self.place.unlink(missing_ok=True)
                return True
            return False
        away = pathlib.Path(f"{self.place}.{self.me['token']}.left")
        try:
            os.rename(self.place, away)  # of several only one succeeds
        except FileNotFoundError:
            return False
        left = _said(away.read_text())
        if left != found[0]:  # a lock of a process that was quicker: give it back
            with contextlib.suppress(OSError):
                os.link(away, self.place)
        away.unlink()
        return left == found[0]

    def _beat(self):
        while not self._ended.wait(HEARTBEAT):
            try:
                holder = self._read()[0]
                if not holder or holder["token"] != self.me["token"]:
                    by = f"process {holder['pid']} on {holder['host']}" if holder else "somebody who removed it"
                    self.lost = f"the lock {self.place} was taken over by {by}: this process stood still for too long, and stops"
                    return
                if self.bucket:
                    self.place.write_text(json.dumps(self.me | {"beat": time.time()}))
                else:
                    os.utime(self.place)  # which needs no room on a full disk
            except OSError:
                continue  # a file system that is away for a moment


def _said(text) -> dict:
    """What a lock says; one that is half-written, by a process that ended there or is at it, is of an unknown process elsewhere."""
    with contextlib.suppress(ValueError, AttributeError):
        if FIELDS <= (said := json.loads(text)).keys():
            return said
    return dict.fromkeys(sorted(FIELDS), "(unknown)")


def _machine() -> str:
    """Within which a process's number means something: a machine since it was started, and a container of it."""
    parts = [socket.gethostname()]
    for read in (lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts)


def _started(pid) -> str | None:
    """When a process of this machine was started, so that a number given out again is another process; None where there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, TypeError, OverflowError):
        pass
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
    except (OSError, IndexError):
        return "?"  # no /proc here: the number alone says it
