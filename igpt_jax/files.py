"""Files that are complete or do not exist."""

import os
import pathlib

from etils import epath


def write_atomically(path: epath.Path | pathlib.Path, content: bytes) -> None:
    """Write a file beside its target and rename it, so that a reader sees the old content or the new, never a part; objects of a bucket need no rename."""
    if "://" in str(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
