"""Dropout: what a share of the numbers means, what a draw depends on, and where there is none."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.distributed import sharding
from igpt_jax.model import objectives
from igpt_jax.model.transformer import ImageGPT, drop
from igpt_jax.training.step import LossConfig, eval_step, loss_and_metrics
from tests.models import random_model, tiny

CONFIG = tiny(layers=2, width=16, heads=2, positions=16, dropout=0.25)
LOSS = LossConfig(generative=1.0, classification=0.0, mask_probability=0.15, evaluation_masks=5)
CODES = jax.random.randint(jax.random.key(1), (8, 16), 0, 16)
BATCH = {"codes": CODES, "label": jnp.zeros(8, int), "index": 5 * jnp.arange(8), "weight": jnp.ones(8)}
KEY = jax.random.key(3)


def nats(config, rows=slice(None), key=KEY, training=True):
    """The loss of each image of some rows of the batch."""
    loss = jax.jit(partial(objectives.generative_loss, mask_probability=0.15, training=training))
    return np.asarray(loss(random_model(config), CODES[rows], objectives.image_keys(key, BATCH["index"][rows]))[0])


def test_a_share_is_zero_the_rest_is_larger_and_every_image_and_place_has_its_own_draw():
    keys_B, x_BSD = jax.random.split(KEY, 4), jnp.ones((4, 50, 40), jnp.bfloat16)
    dropped = np.stack([np.asarray(drop(x_BSD, keys_B, place, CONFIG), float) for place in (0, 1)])
    assert set(np.unique(dropped)) == {0.0, float(jnp.bfloat16(1 / 0.75))}
    np.testing.assert_allclose((dropped == 0).mean(axis=(2, 3)), 0.25, atol=0.05)
    draws = {each.tobytes() for each in dropped.reshape(8, -1)}
    assert len(draws) == 8
    assert drop(x_BSD, None, 0, CONFIG) is x_BSD


def test_the_embedding_and_both_branches_of_each_block_are_dropped(monkeypatch):
    from igpt_jax.model import transformer

    places = []
    monkeypatch.setattr(transformer, "drop", lambda x, keys, place, config: places.append(place) or x)
    monkeypatch.setattr(jax.lax, "scan", lambda f, x, xs, unroll: (x, jax.tree.map(lambda *each: jnp.stack(each), *[
        f(x, jax.tree.map(lambda leaf, layer=layer: leaf[layer], xs))[1] for layer in range(2)])))  # fmt: skip
    random_model(CONFIG)(CODES, dropout_keys_B=jax.random.split(KEY, 8))
    assert sorted(map(int, places)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_a_draw_depends_on_the_key_and_the_image_alone(objective):
    config = dataclasses.replace(CONFIG, objective=objective)
    whole = nats(config)
    np.testing.assert_allclose(nats(config, slice(4, 6)), whole[4:6], rtol=1e-6)
    np.testing.assert_allclose(nats(config, slice(None, None, -1)), whole[::-1], rtol=1e-6)
    assert np.abs(nats(config, key=jax.random.key(4)) - whole).min() > 1e-4
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        batch = sharding.shard_batch(mesh, jax.tree.map(np.asarray, BATCH))
        loss, _ = jax.jit(partial(loss_and_metrics, loss_config=LOSS))(random_model(config), batch, KEY)
    assert float(loss) == pytest.approx(float(whole.mean()), rel=1e-5)


def test_there_is_none_in_evaluation_in_features_or_at_0():
    plain = dataclasses.replace(CONFIG, dropout=0.0)
    np.testing.assert_array_equal(nats(CONFIG, training=False), nats(plain))
    assert np.abs(nats(CONFIG) - nats(plain)).min() > 1e-4
    model, other = random_model(CONFIG), random_model(plain)
    np.testing.assert_array_equal(model.forward_features(CODES).features, other.forward_features(CODES).features)
    step = jax.jit(partial(eval_step, loss_config=LOSS))
    assert float(step(model, BATCH, KEY)["nats"]) == float(step(other, BATCH, KEY)["nats"])


@pytest.mark.parametrize(("remat", "unroll"), [("full", 1), ("dots", 1), ("full", 2)])
def test_recomputation_draws_the_same(remat, unroll):
    def gradient(config):
        loss = partial(loss_and_metrics, loss_config=LOSS)
        return jax.jit(jax.grad(loss, has_aux=True))(random_model(config), BATCH, KEY)[0]

    for ours, theirs in zip(*(jax.tree.leaves(gradient(each)) for each in (dataclasses.replace(CONFIG, remat=remat, unroll=unroll), CONFIG)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(ValueError, match=f"dropout {share} must be from 0"):
        tiny(dropout=share)


def test_it_has_no_parameters():
    abstract = [jax.eval_shape(lambda rate=rate: ImageGPT(tiny(dropout=rate), KEY)) for rate in (0.0, 0.5)]
    assert [leaf.shape for leaf in jax.tree.leaves(abstract[0])] == [leaf.shape for leaf in jax.tree.leaves(abstract[1])]
