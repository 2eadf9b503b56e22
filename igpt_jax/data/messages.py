"""Lines about data for the user: names listed, pictures counted, progress; each line is printed once."""

import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

NAMED_CLASSES = 8  # with more classes, `count_classes` gives their number, the smallest and the largest


@functools.cache
def print_once(line: str) -> None:
    """Print a line to stderr, once in this process: a data set is opened for each of its splits."""
    print(line, file=sys.stderr, flush=True)


def listed(names: Iterable[Any], most: int = 8) -> str:
    """Return the names with commas between them, at most `most` of them, and how many more there are."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def count_classes(labels: np.ndarray, class_names: Sequence[str | int]) -> str:
    """Return the number of pictures, and of those in each class, as text; `labels` int [N], -1 unlabelled."""
    if not class_names:
        return f"{len(labels):,} pictures, unlabelled"
    counts, unlabelled = np.bincount(labels[labels >= 0], minlength=len(class_names)), int((labels < 0).sum())
    classes = ", ".join(f"{count:,} {name}" for count, name in zip(counts, class_names, strict=True))
    if len(class_names) > NAMED_CLASSES:
        least, most = int(np.argmin(counts)), int(np.argmax(counts))
        classes = f"{len(class_names):,} classes of {counts[least]:,} ({class_names[least]}) to {counts[most]:,} ({class_names[most]})"
    return f"{len(labels):,} pictures: {classes}" + (f", {unlabelled:,} in no class" if unlabelled else "")


def with_progress(items: Iterable[Any], description: str, total: int | None = None, unit: str = "image") -> Iterable[Any]:
    """Return the items with a progress bar on stderr after two seconds; where stderr is no terminal, with a line every 30 seconds."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(items, total=total, desc=description, unit=unit, delay=2, mininterval=interval, leave=False)
