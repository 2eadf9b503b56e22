"""A limit on memory that threads share."""

import contextlib
import threading
from collections.abc import Iterator


class Budget:
    """An amount that threads take shares of; a thread waits until its share is free, and a share larger than the amount is granted alone."""

    def __init__(self, amount: int) -> None:
        self.amount, self.used, self.changed = amount, 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, share: int) -> Iterator[None]:
        """Hold `share` of the amount inside the block."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + share <= self.amount)
            self.used += share
        try:
            yield
        finally:
            with self.changed:
                self.used -= share
                self.changed.notify_all()
