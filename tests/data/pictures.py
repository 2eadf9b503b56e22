"""Picture files for tests: good ones, and files that cannot be read."""

import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def write_picture(path, array=PICTURE, **options):
    """Write an array as a picture file, with its folders; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def bomb(path, side=20_000):
    """A PNG that says it has side x side pixels and holds none."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def bad_files(folder):
    """Write six files that are no readable pictures, and a readable one beside the folder; returns the six names."""
    folder.mkdir(exist_ok=True)
    good = write_picture(folder.parent / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(good[:-300])  # its header is whole
    (folder / "text.jpg").write_text("not a picture\n")
    (folder / "empty.png").write_bytes(b"")
    bomb(folder / "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bomb(folder / "small_bomb.png", side=10_000)  # over the limit at which Pillow warns, below the one at which it raises
    os.symlink(folder / "nowhere.png", folder / "dangling.png")
    return sorted(path.name for path in folder.iterdir())
