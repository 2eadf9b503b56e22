"""Lines about data for the user."""

import numpy as np

from igpt_jax.data.messages import count_classes


def test_the_line_of_counts():
    assert count_classes(np.array([0, 1, 1, -1]), ("cat", "dog")) == "4 pictures: 1 cat, 2 dog, 1 in no class"
    assert count_classes(np.array([-1, -1]), ()) == "2 pictures, unlabelled"
    assert count_classes(np.repeat(np.arange(9), np.arange(1, 10)), tuple("abcdefghi")) == "45 pictures: 9 classes of 1 (a) to 9 (i)"
