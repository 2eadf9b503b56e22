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


def draws(shares, sizes, steps, batch_size=7, seed=3, part=...):
    """The rows of the first steps of a mixture whose sources have 100, 101, ... and 200, 201, ... as rows."""
    members = tuple(np.arange(100 * (i + 1), 100 * (i + 1) + size) for i, size in enumerate(sizes))
    plan = sampler.ShuffledMixture(members, shares, batch_size, seed, part)
    return [plan(step) for step in range(steps)]


def test_each_source_of_a_mixture_has_its_share_of_every_round_and_its_own_epochs():
    """Rounds of 10 draws, 7 and 3 of them of each source; sources of 5 and 4 images: an epoch ends inside a round, a batch and a step."""
    rows = np.concatenate([rows for rows, _ in draws((7, 3), (5, 4), 50)])
    for start in range(0, 350, 10):
        assert (rows[start : start + 10] < 200).sum() == 7
    for source, size in ((100, 5), (200, 4)):
        own = rows[(rows >= source) & (rows < source + 100)] - source
        epochs = [own[start : start + size].tolist() for start in range(0, len(own) - size, size)]
        assert len(epochs) > 20 and all(sorted(epoch) == list(range(size)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 10
    patterns = {tuple(rows[start : start + 10] < 200) for start in range(0, 350, 10)}
    assert len(patterns) > 10  # rounds have orders of their own


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_the_order_of_a_mixture_does_not_depend_on_batches_and_processes(part):
    whole = draws((3, 2, 1), (9, 2, 30), 60, batch_size=7)
    some = draws((3, 2, 1), (9, 2, 30), 60, batch_size=7, part=part)
    for (rows, uniform), (all_rows, all_uniform) in zip(some, whole, strict=True):
        np.testing.assert_array_equal(rows, all_rows[part])
        np.testing.assert_array_equal(uniform, all_uniform[part])
    for batch_size in (1, 35, 420):
        other = draws((3, 2, 1), (9, 2, 30), 420 // batch_size, batch_size)
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in other]), np.concatenate([rows for rows, _ in whole]))


def test_sources_of_one_size_and_other_seeds_have_other_orders():
    rows = np.concatenate([rows for rows, _ in draws((1, 1), (50, 50), 20, batch_size=10)])
    assert (rows[rows < 200] - 100).tolist() != (rows[rows >= 200] - 200).tolist()
    other = np.concatenate([rows for rows, _ in draws((1, 1), (50, 50), 20, batch_size=10, seed=4)])
    assert rows.tolist() != other.tolist()


def test_a_source_supplies_its_rows_of_a_plan_in_their_order():
    plan = sampler.InOrder(0, 6, 4)
    member = np.array([-1, 0, -1, 1, 2, -1])
    assert [sampler.OfSource(plan, member)(step)[0].tolist() for step in range(3)] == [[0, 1], [2], []]
    shuffled = sampler.Shuffled(6, 6, 0)
    rows, uniform = shuffled(1)
    own, numbers = sampler.OfSource(shuffled, member)(1)
    assert own.tolist() == [member[row] for row in rows if member[row] >= 0] and np.array_equal(numbers, uniform[member[rows] >= 0])
