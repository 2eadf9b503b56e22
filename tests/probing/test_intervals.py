"""The interval of an accuracy."""

import numpy as np
import pytest

from igpt_jax.probing.intervals import wilson


def test_the_ends_are_where_the_share_is_two_deviations_away():
    """Wilson's definition: p is an end if (share - p)^2 = quantile^2 p (1 - p) / n."""
    for right, images in ((1, 7), (250, 1000), (6, 7)):
        share = right / images
        for end in wilson(share, images):
            assert abs(share - end) == pytest.approx(1.959964 * (end * (1 - end) / images) ** 0.5, rel=1e-5)


def test_it_holds_the_true_accuracy_about_95_times_in_a_hundred():
    generator = np.random.default_rng(0)
    for true, images in ((0.5, 50), (0.9, 200)):
        held = [low <= true <= high for low, high in (wilson(right / images, images) for right in generator.binomial(images, true, 4000))]
        assert 0.93 < np.mean(held) < 0.97


def test_none_and_all():
    assert wilson(0.0, 20)[0] == 0 and 0.1 < wilson(0.0, 20)[1] < 0.2
    assert wilson(1.0, 20)[1] == 1 and 0.8 < wilson(1.0, 20)[0] < 0.9
    assert wilson(1.0, 1)[0] > 0.2
    assert wilson(None, 20) is None and wilson(0.5, 0) is None
    with pytest.raises(ValueError, match="an accuracy of 55.0 on 20 images: it must be from 0 to 1"):
        wilson(55.0, 20)
