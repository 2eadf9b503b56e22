"""Losses on cases that can be done by hand, and the draw of masks."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.model import objectives


def test_uniform_logits_cost_the_logarithm_of_the_palette():
    logits, codes = jnp.zeros((2, 5, 512)), jnp.zeros((2, 5), jnp.int32)
    np.testing.assert_allclose(objectives.next_pixel_loss(logits, codes), np.log(512), rtol=1e-6)
    np.testing.assert_allclose(objectives.masked_pixel_loss(logits, codes, jnp.zeros((2, 5)).at[:, 2].set(1)), np.log(512), rtol=1e-6)
    np.testing.assert_allclose(objectives.classification_loss(jnp.zeros((3, 10)), jnp.arange(3)), np.log(10), rtol=1e-6)


def test_position_i_is_charged_for_code_i():
    codes = jnp.asarray([[1, 0, 2]])
    sure = 100.0 * jax.nn.one_hot(codes, 3)
    assert objectives.next_pixel_loss(sure, codes)[0] < 1e-6
    assert objectives.next_pixel_loss(sure, jnp.roll(codes, 1, axis=1))[0] > 50


def test_only_masked_positions_are_charged_and_each_image_counts_the_same():
    logits = jnp.zeros((2, 4, 3)).at[0, 0, 1].set(7.0)
    codes = jnp.zeros((2, 4), jnp.int32)
    mask = jnp.asarray([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    expected = [np.log(2 + np.exp(7)), np.log(3)]
    np.testing.assert_allclose(objectives.masked_pixel_loss(logits, codes, mask), expected, rtol=1e-6)


def test_nothing_masked_costs_nothing_and_is_no_nan():
    assert objectives.masked_pixel_loss(jnp.zeros((1, 4, 3)), jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4)))[0] == 0


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
    masked = np.asarray(objectives.sample_mask(objectives.image_keys(jax.random.key(0), jnp.arange(2000)), 64, probability))
    assert (masked.sum(axis=1) >= 1).all()
    if probability:
        assert masked.mean() == pytest.approx(probability, abs=4 * np.sqrt(probability / 128000) + 1e-3)
        by_position = masked.mean(axis=0)
        assert np.abs(by_position - probability).max() < 5 * np.sqrt(probability * (1 - probability) / 2000)


def test_draw_belongs_to_the_image_not_to_its_place_in_the_batch():
    key = jax.random.key(3)
    whole = objectives.sample_mask(objectives.image_keys(key, jnp.arange(8)), 64, 0.15)
    part = objectives.sample_mask(objectives.image_keys(key, jnp.arange(4, 8)), 64, 0.15)
    np.testing.assert_array_equal(whole[4:], part)
    other = objectives.sample_mask(objectives.image_keys(jax.random.key(4), jnp.arange(8)), 64, 0.15)
    assert (whole != other).any()


class Stub:
    """A model that answers every position with the same logits, and shows what it was asked."""

    def __init__(self, objective):
        self.config, self.asked = types.SimpleNamespace(objective=objective, dropout=0.0), []

    def __call__(self, codes, *mask, prefix_B=None, dropout_keys_B=None):
        self.asked.append((*mask, prefix_B))
        return types.SimpleNamespace(logits=jnp.zeros((*codes.shape, 3)).at[:, 0, 1].set(7.0))


def asked(objective, training):
    """(losses of 500 images of 4 zeros, what the model was given)."""
    stub, keys = Stub(objective), objectives.image_keys(jax.random.key(0), jnp.arange(500))
    nats, _ = objectives.generative_loss(stub, jnp.zeros((500, 4), jnp.int32), keys, 0.5, training)
    return np.asarray(nats), stub.asked[0], keys


FIRST, OTHERS = np.log(2 + np.exp(7)), np.log(3)  # the loss at position 0, and at each of the others


def test_masked_pixels_are_those_of_the_draw_in_training_and_outside():
    for training in (True, False):
        nats, (mask, prefix), keys = asked("bert", training)
        np.testing.assert_array_equal(mask, objectives.sample_mask(keys, 4, 0.5))
        mask = np.asarray(mask)
        np.testing.assert_allclose(nats, (mask @ [FIRST, OTHERS, OTHERS, OTHERS]) / mask.sum(axis=1), rtol=1e-5)
        assert prefix is None


def test_only_a_prefix_model_is_given_a_prefix_and_only_in_training():
    for objective, training in (("autoregressive", True), ("autoregressive", False), ("prefix", False)):
        nats, (prefix,), _ = asked(objective, training)
        assert prefix is None
        np.testing.assert_allclose(nats, (FIRST + 3 * OTHERS) / 4, rtol=1e-6)
    nats, (prefix,), keys = asked("prefix", True)
    np.testing.assert_array_equal(prefix, objectives.draw_prefix(keys, 4))
    assert set(np.asarray(prefix)) == {1, 2, 3}  # 1: none
    np.testing.assert_allclose(nats, np.where(np.asarray(prefix) == 1, (FIRST + 3 * OTHERS) / 4, OTHERS), rtol=1e-6)
