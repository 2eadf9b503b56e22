"""Progress of a long pass on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

import sys
import time

from tqdm import tqdm

SECONDS = 10  # between two lines


class Progress:
    """Count up to `total` units (images, steps) under a name; a context manager."""

    def __init__(self, name: str, total: int, unit: str = "images"):
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(total=total, desc=name, unit=f" {unit}", disable=not sys.stderr.isatty())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int) -> None:
        """Count `count` more units."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line > SECONDS or self.done == self.total):
            self.last_line = now
            each = (now - self.started) / max(self.done, 1)
            speed = f"{each:.0f} s each" if each > 1 else f"{1 / max(each, 1e-9):.0f} {self.unit}/s"
            left = tqdm.format_interval((self.total - self.done) * each)
            print(f"{self.name}: {self.done} of {self.total} {self.unit}, {speed}, {left} left", file=sys.stderr, flush=True)
