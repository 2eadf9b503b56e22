"""The count baselines on a case done by hand."""

import numpy as np
import pytest

from experiments.summary import count_baselines


def test_counts_give_the_entropy_of_what_they_count():
    train = np.tile(np.asarray([[0, 1]]), (10_000, 1))  # position 0 is always colour 0, position 1 always colour 1
    found = count_baselines(train, train[:10], 2)
    assert found["unigram"] == pytest.approx(np.log(2), abs=1e-3)
    assert found["per_position"] == pytest.approx(0, abs=1e-3)


def test_a_colour_never_seen_costs_much_and_not_everything():
    found = count_baselines(np.zeros((100, 4), int), np.ones((1, 4), int), 2)
    assert 2 < found["per_position"] < np.inf and 2 < found["unigram"] < np.inf
