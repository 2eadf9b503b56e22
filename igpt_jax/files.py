"""Files that are complete or do not exist, and why one cannot be written or read."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import TypeVar

from etils import epath

Path = TypeVar("Path", pathlib.Path, epath.Path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside a local `path`. The file is renamed to `path` when the block ends, and deleted if the block fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; an object of a bucket is written so anyway."""
    if "://" in str(path):
        path.write_bytes(content)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def one_line(error: BaseException) -> str:
    """Return at most 200 characters of an error's message on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def copy_files(source: pathlib.Path, target: epath.Path) -> None:
    """Copy every file below a local folder to the same place below `target`, a folder of a bucket."""
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
