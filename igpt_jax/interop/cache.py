"""Where downloaded and converted models are kept: IGPT_JAX_CACHE, else XDG_CACHE_HOME/igpt_jax, else ~/.cache/igpt_jax. It may be deleted at any time.

    CACHE/hub/OWNER--NAME/COMMIT       a model of the Hugging Face hub, converted: a directory that every program takes as --checkpoint
    CACHE/openai/NAME/STEP             OpenAI's files as they were downloaded, with files.json, their sizes and checksums
"""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator

VARIABLE = "IGPT_JAX_CACHE"
DAY = 24 * 3600  # seconds


def home() -> pathlib.Path:
    """Return the folder of the cache."""
    own, system = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    return pathlib.Path(own or (os.path.join(system, "igpt_jax") if system else "~/.cache/igpt_jax")).expanduser()


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Make a folder and hold its lock; another process waits, with a line. The lock of a process that ends is free, however it ended.

    Where the system or the file system has no such locks, the block runs without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder} is in use by another process: waits for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


@contextlib.contextmanager
def made_once(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Make a temporary folder beside `folder`; its part `whole` is renamed to `folder` when the block ends. A folder that another process made stays."""
    for left in folder.parent.glob(".*.tmp"):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary / "whole"
        try:
            (temporary / "whole").rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
