"""Progress of a long pass on stderr: a bar on a terminal, elsewhere a line every ten seconds, and how long it will take."""

import sys
import time

from tqdm import tqdm

SECONDS = 10  # between two lines


class Progress:
    """Count up to `total` units (images, steps; bytes, `B`, are shown with k, M and G) under a name; a context manager.

    The first part compiles: the speed is that of the parts after it, and the time left is said after the second one. A pass of a single
    part prints no line.
    """

    def __init__(self, name: str, total: int, unit: str = "images"):
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.started = self.last_line = time.monotonic()
        self.first, self.parts = 0, 0  # units of the first part, number of parts
        self.bar = tqdm(total=total, desc=name, unit=f" {unit}", unit_scale=unit == "B", disable=not sys.stderr.isatty())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int) -> None:
        """Count `count` more units."""
        self.done += count
        self.parts += 1
        self.bar.update(count)
        now = time.monotonic()
        estimate = self.parts == 2 and self.seconds_left(now) > SECONDS
        ended = self.done == self.total
        due = self.parts > 1 if ended else now - self.last_line > SECONDS or estimate
        if self.bar.disable and due:
            self.last_line = now
            each = self.seconds_each(now)
            shown = tqdm.format_sizeof if self.unit == "B" else "{:.0f}".format
            speed = f"{each:.0f} s each" if each > 1 else f"{shown(1 / max(each, 1e-9))} {self.unit}/s"
            left = f"{shown(self.done)} of {shown(self.total)} {self.unit}, {speed}, {duration(self.seconds_left(now))} left"
            print(f"{self.name}: {left}", file=sys.stderr, flush=True)
        if self.parts == 1:
            self.started, self.first = now, count
            if not self.bar.disable:
                self.bar.start_t, self.bar.initial = time.time(), count

    def seconds_each(self, now: float) -> float:
        """Seconds of a unit, without those of the first part where there are others."""
        return (now - self.started) / max(self.done - self.first, 1)

    def seconds_left(self, now: float) -> float:
        """Seconds that the rest will take."""
        return (self.total - self.done) * self.seconds_each(now)


def duration(seconds: float) -> str:
    """Return seconds as people say them: 45 s, 8.3 min, 3.1 h, 2.4 days."""
    for size, name, least in ((86_400, "days", 2 * 86_400), (3600, "h", 5400), (60, "min", 90)):
        if seconds >= least:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
