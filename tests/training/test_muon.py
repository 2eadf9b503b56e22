"""Muon: each matrix of each layer, and queries, keys and values apart, has an orthogonal update of Adam's size; all other parameters have Adam's update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.distributed import sharding
from igpt_jax.training import checkpoints, optimizer
from igpt_jax.training.step import abstract_state, init_state
from igpt_jax.training.trees import to_flat
from tests.models import random_model, tiny
from tests.training.test_checkpoints import save
from tests.training.test_optimizer import replace

MUON = replace(name="muon", learning_rate=1.0)
MODEL = tiny(layers=2, width=16, heads=2, positions=16)
MATRICES = {f"blocks.{name}" for name in ("query_key_value", "attention_output", "mlp_in", "mlp_out")}


def gradients(config, seed=3):
    return random_model(config, seed)


def updated(config, model_config, *steps):
    """The last of the updates by these gradients, as {name: array}."""
    model = random_model(model_config)
    state = optimizer.init_optimizer(model, config)
    step = jax.jit(lambda gradient, state: optimizer.update(config, gradient, state, model, 0))
    for gradient in steps:
        updates, state = step(gradient, state)
    return {name: np.asarray(value) for name, value in to_flat(updates).items()}, state


def orthogonalised(gradient):
    """Muon's direction of the first update of a matrix, in float64: the momentum is a multiple of the gradient, and its length does not matter."""
    x = np.asarray(gradient, np.float64)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


def matrices_of(name, array):
    """The matrices that one stacked array holds, each [inputs, outputs]."""
    if name == "blocks.query_key_value":
        return [array[layer, :, part].reshape(array.shape[1], -1) for layer in range(len(array)) for part in range(3)]
    return list(array)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_each_matrix_of_each_layer_is_orthogonalised_by_itself_and_the_rest_is_adams(activation):
    config = dataclasses.replace(MODEL, activation=activation)
    gradient = gradients(config)
    ours, state = updated(MUON, config, gradient)
    adams, _ = updated(replace(learning_rate=1.0), config, gradient)
    matrices = MATRICES | ({"blocks.mlp_gate"} if activation == "swiglu" else set())
    assert {name for name in to_flat(state["muon"]["mu"])} == matrices
    for name, update in ours.items():
        if name not in matrices:
            np.testing.assert_array_equal(update, adams[name])
            continue
        for one, of in zip(matrices_of(name, update), matrices_of(name, np.asarray(to_flat(gradient)[name])), strict=True):
            np.testing.assert_allclose(one, -0.2 * max(of.shape) ** 0.5 * orthogonalised(of), atol=2e-5)
            assert np.sqrt(np.square(one).mean()) == pytest.approx(0.2 * 0.9, rel=0.2)  # the usual size of Adam's update


def test_the_momentum_is_nesterovs_and_its_state_is_named():
    first, second = gradients(MODEL, 3), gradients(MODEL, 4)
    ours, state = updated(MUON, MODEL, first, second)
    name = "blocks.mlp_in"
    a, b = (np.asarray(to_flat(gradient)[name], np.float64) for gradient in (first, second))
    momentum = 0.95 * 0.05 * a + 0.05 * b
    direction = 0.95 * momentum / (1 - 0.95**3) + 0.05 * b / (1 - 0.95**2)
    for one, of in zip(ours[name], direction, strict=True):
        np.testing.assert_allclose(one, -0.2 * max(of.shape) ** 0.5 * orthogonalised(of), atol=2e-5)
    np.testing.assert_allclose(to_flat(state["muon"]["mu"])[name], momentum, rtol=1e-5, atol=1e-8)
    others = {"token_embedding", "position_embedding", "start_vector", "final_norm", "output_embedding", "blocks.attention_norm", "blocks.mlp_norm"}
    names = {"muon.count", *(f"muon.mu.{name}" for name in MATRICES), "adam.count", *(f"adam.{moment}.{name}" for moment in ("mu", "nu") for name in others)}
    assert set(to_flat(state)) == names and int(state["muon"]["count"]) == int(state["adam"]["count"]) == 2


def test_the_state_is_sharded_like_the_parameters_and_comes_back_on_another_mesh(tmp_path):
    state = init_state(tiny(), sharding.make_mesh(2, 2, 2), jax.random.key(0), MUON)
    momentum, parameters = (to_flat(tree) for tree in (state.opt_state["muon"]["mu"], state.model))
    assert all(momentum[name].sharding == parameters[name].sharding for name in MATRICES)
    state = dataclasses.replace(state, opt_state=jax.tree.map(lambda leaf: leaf + jnp.asarray(2, leaf.dtype), state.opt_state))
    save(tmp_path, state)
    restored, _ = checkpoints.restore_state(tmp_path, abstract_state(tiny(), sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1]), MUON))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_mesh_changes_no_update():
    mesh = sharding.make_mesh(2, 2, 2)
    model, gradient = random_model(tiny()), gradients(tiny())
    state = optimizer.init_optimizer(model, MUON)
    step = jax.jit(lambda gradient, model: optimizer.update(MUON, gradient, state, model, 0)[0])
    places = sharding.state_shardings(mesh, model)
    divided = step(*(jax.device_put(tree, places) for tree in (gradient, model)))
    for one, other in zip(jax.tree.leaves(divided), jax.tree.leaves(step(gradient, model)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_frozen_layer_does_not_change_what_another_learns():
    config = dataclasses.replace(MUON, frozen_layers=1)
    gradient = gradients(MODEL)
    frozen, whole = (updated(each, MODEL, gradient)[0]["blocks.query_key_value"] for each in (config, MUON))
    np.testing.assert_array_equal(frozen[1], whole[1])
    assert not frozen[0].any() and whole[0].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "lion"}, "optimiser 'lion' is unknown: config.optim.name is one of adam, muon"),
        ({"name": "muon", "base_width": 64}, "base_width 64 scales Adam's rate for the matrices, which muon updates"),
        ({"ema_decay": 1.0}, "ema_decay 1.0 must be from 0"),
        ({"ema_decay": -0.1}, "ema_decay -0.1 must be from 0"),
        ({"layer_decay": 0.0}, "layer_decay 0.0 must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "layer_decay 1.1 must be"),
        ({"frozen_layers": -1}, "frozen_layers must be a whole number of at least 0, not -1"),
        ({"base_width": 1.5}, "base_width must be a whole number of at least 0, not 1.5"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(**changes)
