"""Losses on cases that can be done by hand, and the draw of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax import objectives


def test_uniform_logits_cost_the_logarithm_of_the_palette():
    logits, codes = jnp.zeros((2, 5, 512)), jnp.zeros((2, 5), jnp.int32)
    np.testing.assert_allclose(objectives.next_pixel_loss(logits, codes), np.log(512), rtol=1e-6)
    np.testing.assert_allclose(objectives.masked_pixel_loss(logits, codes, jnp.ones((2, 5)).at[:, 2].set(0)), np.log(512), rtol=1e-6)
    np.testing.assert_allclose(objectives.classification_loss(jnp.zeros((3, 10)), jnp.arange(3)), np.log(10), rtol=1e-6)


def test_position_i_is_charged_for_code_i():
    codes = jnp.asarray([[1, 0, 2]])
    sure = 100.0 * jax.nn.one_hot(codes, 3)
    assert objectives.next_pixel_loss(sure, codes)[0] < 1e-6
    assert objectives.next_pixel_loss(sure, jnp.roll(codes, 1, axis=1))[0] > 50


def test_only_masked_positions_are_charged_and_each_image_counts_the_same():
    logits = jnp.zeros((2, 4, 3)).at[0, 0, 1].set(7.0)
    codes = jnp.zeros((2, 4), jnp.int32)
    keep = jnp.asarray([[0.0, 1, 1, 1], [0, 0, 0, 0]])
    expected = [np.log(2 + np.exp(7)), np.log(3)]
    np.testing.assert_allclose(objectives.masked_pixel_loss(logits, codes, keep), expected, rtol=1e-6)


def test_nothing_masked_costs_nothing_and_is_no_nan():
    assert objectives.masked_pixel_loss(jnp.zeros((1, 4, 3)), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4)))[0] == 0


def test_behind_a_prefix_only_what_it_does_not_know_is_charged():
    logits = jnp.zeros((2, 4, 3)).at[0, 1, 1].set(7.0).at[0, 2, 2].set(7.0)
    codes = jnp.zeros((2, 4), jnp.int32)
    losses = objectives.next_pixel_loss(logits, codes, jnp.asarray([3, 1]))  # 3 inputs: the start vector and codes 0 and 1
    np.testing.assert_allclose(losses, [(np.log(2 + np.exp(7)) + np.log(3)) / 2, np.log(3)], rtol=1e-6)
    drawn = objectives.draw_prefix(objectives.image_keys(jax.random.key(0), jnp.arange(2000)), 4)
    np.testing.assert_allclose(np.bincount(drawn, minlength=5)[1:4] / 2000, 1 / 3, atol=0.05)  # 4 standard deviations
    assert int(drawn.max()) == 3


@pytest.mark.parametrize("probability", [0.0, 0.15, 0.5])
def test_draw_masks_the_asked_share_and_never_nothing(probability):
    keep = objectives.draw_keep(objectives.image_keys(jax.random.key(0), jnp.arange(2000)), 64, probability)
    masked = 1 - np.asarray(keep)
    assert (masked.sum(axis=1) >= 1).all()
    if probability:
        assert masked.mean() == pytest.approx(probability, abs=4 * np.sqrt(probability / 128000) + 1e-3)
        by_position = masked.mean(axis=0)
        assert np.abs(by_position - probability).max() < 5 * np.sqrt(probability * (1 - probability) / 2000)


def test_draw_belongs_to_the_image_not_to_its_place_in_the_batch():
    key = jax.random.key(3)
    whole = objectives.draw_keep(objectives.image_keys(key, jnp.arange(8)), 64, 0.15)
    part = objectives.draw_keep(objectives.image_keys(key, jnp.arange(4, 8)), 64, 0.15)
    np.testing.assert_array_equal(whole[4:], part)
    other = objectives.draw_keep(objectives.image_keys(jax.random.key(4), jnp.arange(8)), 64, 0.15)
    assert (whole != other).any()
