"""The policy for pictures that cannot be read after their source was opened: each is replaced by another of its label, and too many end the run."""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

UNREADABLE_SHARE = 0.01  # of the pictures of a source; more failures mean a broken disk
_COUNTING = threading.Lock()  # not an attribute: sources are pickled for Grain's workers
Decoded = TypeVar("Decoded")


class Failures:
    """Counts the pictures of a source that could not be decoded, and logs each of them once."""

    def __init__(self, name: str, size: int) -> None:
        """`name` and `size` (number of pictures) are those of the source."""
        self.name, self.size, self.opener = name, size, os.getpid()
        self.reasons: dict[int, str] = {}  # of each row that failed

    def first_readable(self, decode: Callable[[int], Decoded], rows: Iterable[int]) -> Decoded:
        """Return `decode(row)` of the first of `rows` for which it does not raise ValueError; the rows before it are counted."""
        for row in rows:
            try:
                return decode(row)
            except ValueError as error:
                self.count({int(row): str(error)})
        raise ValueError(f"{self.name}: no picture with the label of picture {row} can be read any more")

    def count(self, reasons: Mapping[int, str]) -> None:
        """Add {row: reason}, each row once, from this process or a worker; raise ValueError if more than UNREADABLE_SHARE of the pictures failed.

        Only the process that opened the source logs failures. Workers return theirs to it.
        """
        with _COUNTING:
            for row, reason in reasons.items():
                if row not in self.reasons:
                    self.reasons[row] = reason
                    if os.getpid() == self.opener:
                        message = "%s; another picture of its label replaces it (%d so far)"
                        logging.getLogger(__name__).warning(message, reason, len(self.reasons))
                if len(self.reasons) > max(1, UNREADABLE_SHARE * self.size):
                    share = f"{len(self.reasons)} of {self.size} pictures, more than {UNREADABLE_SHARE:.0%},"
                    raise ValueError(f"{self.name}: {share} can no longer be read, the last: {reason}")


def rows_of_same_label(row: int, count: int, label_of: Callable[[int], int]) -> Iterator[int]:
    """Yield `row`, then the other rows of its label among `count`: first those after it, then those before it. Labels are read as rows are asked for."""
    yield row
    for other in itertools.chain(range(row + 1, count), range(row)):
        if label_of(other) == label_of(row):
            yield other
