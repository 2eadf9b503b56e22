"""The limit on memory that threads share."""

import concurrent.futures
import threading
import time

import pytest

from igpt_jax.data.budget import Budget


def test_no_more_pixels_at_once_than_the_budget():
    budget, most, now, lock = Budget(10), [], [], threading.Lock()

    def work(share):
        with budget.taken(share):
            with lock:
                now.append(share)
                most.append(sum(now))
            time.sleep(0.002)
            with lock:
                now.remove(share)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 4, 25, 1, 9, 2, 2, 2] * 5))
    assert len(most) == 40 and sorted(set(most))[-1] == 25 and all(total <= 10 or total == 25 for total in most)
    with pytest.raises(ZeroDivisionError):
        with budget.taken(10):
            raise ZeroDivisionError
    assert budget.used == 0
