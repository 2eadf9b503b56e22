"""Which images at which step, by hand: epochs that follow each other, a part of a batch, padding."""

import numpy as np
import pytest

from igpt_jax.data import sampler

PARTS = [..., np.array([0, 1, 2]), np.array([5, 3]), np.array([], int)]


def epoch(size, seed, number):
    """The order of an epoch, and of another seed or epoch another one."""
    return np.random.default_rng((seed, 0, number)).permutation(size)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_epochs_follow_each_other_across_batches(part):
    """20 steps of 6 among 10 images: a batch holds the end of an epoch and the beginning of the next, or the whole of neither."""
    plan = sampler.Shuffled(10, 6, 3, part)
    whole = np.concatenate([epoch(10, 3, number) for number in range(13)])
    for step in range(20):
        rows, uniform = plan(step)
        np.testing.assert_array_equal(rows, whole[6 * step : 6 * step + 6][part])
        np.testing.assert_array_equal(uniform, np.random.default_rng((3, 1, step)).random((6, 3))[part])


def test_a_batch_may_hold_several_epochs():
    rows, uniform = sampler.Shuffled(4, 10, 0)(1)
    np.testing.assert_array_equal(rows, np.concatenate([epoch(4, 0, number) for number in range(5)])[10:])
    assert uniform.shape == (10, 3)


def test_each_epoch_each_seed_and_each_step_has_its_own_draw():
    rows = [tuple(sampler.Shuffled(50, 50, seed)(step)[0]) for seed in (0, 1) for step in (0, 1)]
    uniforms = [sampler.Shuffled(50, 50, seed)(step)[1].tobytes() for seed in (0, 1) for step in (0, 1)]
    assert len(set(rows)) == len(set(uniforms)) == 4 and all(sorted(one) == list(range(50)) for one in rows)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_evaluation_goes_from_start_to_stop_and_pads(part):
    plan = sampler.InOrder(7, 17, 6, part)
    for step, wanted in enumerate(([7, 8, 9, 10, 11, 12], [13, 14, 15, 16, -1, -1], [-1] * 6)):
        rows, uniform = plan(step)
        assert uniform is None and rows.tolist() == np.array(wanted)[part].tolist()
