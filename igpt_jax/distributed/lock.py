"""One run at a time in a work directory: WORKDIR/lock names the process that holds it, and its modification time is that process's heartbeat.

A lock whose process has ended on this machine is taken over at once. The state of a process on another machine (another name, boot, or container) is not
known: its heartbeat is watched for STALE seconds of this machine's clock, and the lock is taken over if there is none. Clocks are never compared.
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
from typing import Any, TypeAlias

import jax
from etils import epath

from igpt_jax.distributed import multihost
from igpt_jax.types import PathLike

NAME = "lock"
HEARTBEAT = 10.0  # seconds
STALE = 35.0  # seconds without a heartbeat; more than three of them
SETTLE = 3.0  # seconds to wait on a bucket, which has no atomic creation: of several writers the last one has the lock
FIELDS = {"host", "machine", "pid", "started", "time", "token"}

Holder: TypeAlias = dict[str, Any]  # the content of a lock: FIELDS -> values
Reading: TypeAlias = tuple[Holder | None, float]  # (content, modification time in ns; of a bucket 0)


class Lock:
    """Hold the lock of a work directory. A context manager: the first process of a run takes the lock; if it cannot, all raise OSError."""

    def __init__(self, workdir: PathLike):
        self.place = epath.Path(workdir) / NAME
        self.bucket = "://" in str(workdir)
        self.me: Holder = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
        self.me |= {"time": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "token": uuid.uuid4().hex}
        self.lost: str | None = None  # a message, once another process has taken the lock over
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lock":
        multihost.together(self._take, f"the first process cannot take {self.place}: see what it says")
        if jax.process_index() == 0:
            self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if jax.process_index() == 0:
            self._heartbeat.join()
            with contextlib.suppress(OSError):
                if (self._read()[0] or self.me)["token"] == self.me["token"]:
                    self.place.unlink(missing_ok=True)

    def check(self) -> None:
        """OSError in one line where another process has taken the lock over, because this one had no heartbeat for too long."""
        if self.lost:
            raise OSError(self.lost)

    def _take(self) -> None:
        """Create the lock, on the first process; OSError if another run holds it."""
        if jax.process_index() != 0:
            return
        self.place.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            reading = self._read()
            holder = reading[0]
            if holder is None:
                continue  # released in the meantime
            if not self._is_abandoned(holder, reading):
                way_out = f"wait for it or end it; if it has ended, remove {self.place}"
                raise OSError(f"{self.place.parent} is in use by process {holder['pid']} on {holder['host']} since {holder['time']}: {way_out}")
            if self._remove(reading):
                print(f"takes over the lock of process {holder['pid']} on {holder['host']}, which has ended", file=sys.stderr, flush=True)

    def _create(self) -> bool:
        """Create the lock with its content if there is none; return whether this process did."""
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
            except OSError:  # a file system without hard links: create the file, then fill it
                with pathlib.Path(self.place).open("x") as file:
                    file.write(content)
            return True
        except FileExistsError:
            return False
        finally:
            mine.unlink(missing_ok=True)

    def _read(self) -> Reading:
        """Read the lock; (None, 0) where there is none."""
        try:
            text, modified = self.place.read_text(), 0 if self.bucket else os.stat(self.place).st_mtime_ns
        except FileNotFoundError:
            return None, 0
        return _parse(text), modified

    def _is_abandoned(self, holder: Holder, reading: Reading) -> bool:
        """Return whether the process that holds the lock has ended; on another machine, whether it shows no heartbeat for STALE seconds."""
        if holder["machine"] == self.me["machine"]:
            return _started(holder["pid"]) != holder["started"]
        print(f"{self.place} is of process {holder['pid']} on {holder['host']}: waits {STALE:g} s for its heartbeat", file=sys.stderr, flush=True)
        until = time.monotonic() + STALE
        while time.monotonic() < until:
            time.sleep(min(1.0, STALE / 10))
            if self._read() != reading:
                return False
        return True

    def _remove(self, reading: Reading) -> bool:
        """Remove an abandoned lock; return False, and leave the lock, where another process has replaced it."""
        if self.bucket:
            if self._read() == reading:
                self.place.unlink(missing_ok=True)
                return True
            return False
        away = pathlib.Path(f"{self.place}.{self.me['token']}.left")
        try:
            os.rename(self.place, away)  # of several processes only one succeeds
        except FileNotFoundError:
            return False
        removed = _parse(away.read_text())
        if removed != reading[0]:  # the lock of a process that was faster: put it back
            with contextlib.suppress(OSError):
                os.link(away, self.place)
        away.unlink()
        return removed == reading[0]

    def _beat(self) -> None:
        """Renew the modification time until the end, or until another process has the lock."""
        while not self._ended.wait(HEARTBEAT):
            try:
                holder = self._read()[0]
                if not holder or holder["token"] != self.me["token"]:
                    by = f"process {holder['pid']} on {holder['host']}" if holder else "somebody who removed it"
                    self.lost = f"the lock {self.place} was taken over by {by}: this process had no heartbeat for too long, and stops"
                    return
                if self.bucket:
                    self.place.write_text(json.dumps(self.me | {"beat": time.time()}))
                else:
                    os.utime(self.place)  # needs no space on a full disk
            except OSError:
                continue  # a file system that fails for a moment


def _parse(text: str) -> Holder:
    """The content of a lock. An incomplete one, left by a process that ended while writing or is still writing, is of an unknown process elsewhere."""
    with contextlib.suppress(ValueError, AttributeError):
        holder: Holder = json.loads(text)
        if FIELDS <= holder.keys():
            return holder
    return dict.fromkeys(sorted(FIELDS), "(unknown)")


def _machine() -> str:
    """Name the space in which a process number is unique: a boot of a machine, and a container on it."""
    parts = [socket.gethostname()]
    for read in (lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts)


def _started(pid: Any) -> str | None:
    """Start time of a process of this machine, which tells it from a later one with the same number; None where there is no such process."""
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
        return "?"  # no /proc here: only the number is known
