"""How far a long pass is: a bar on a terminal, a line every ten seconds elsewhere; both on stderr."""

import sys
import time

from tqdm import tqdm

SECONDS = 10  # between two lines


class Progress:
    """Counts `total` of something (`unit`: images, steps) under a name; a context manager."""

    def __init__(self, name: str, total: int, unit: str = "images"):
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.started = self.spoken = time.monotonic()

    def __enter__(self):
        self.bar = tqdm(total=self.total, desc=self.name, unit=f" {self.unit}", disable=not sys.stderr.isatty())
        return self

    def __exit__(self, *_):
        self.bar.close()

    def advance(self, count: int) -> None:
        """Count so many more."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and (now - self.spoken > SECONDS or self.done == self.total):
            self.spoken = now
            each = (now - self.started) / max(self.done, 1)
            speed = f"{each:.0f} s each" if each > 1 else f"{1 / max(each, 1e-9):.0f} {self.unit}/s"
            left = tqdm.format_interval((self.total - self.done) * each)
            print(f"{self.name}: {self.done} of {self.total} {self.unit}, {speed}, {left} left", file=sys.stderr, flush=True)
