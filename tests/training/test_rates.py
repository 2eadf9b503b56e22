"""Factors of the learning rate: muP's table, BEiT's rule of depth, and frozen parameters that keep every bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ImageGPT
from igpt_jax.training import optimizer, rates
from igpt_jax.training.step import init_state
from igpt_jax.training.trees import to_flat
from tests.models import random_model, tiny
from tests.training.test_optimizer import replace

MODEL = tiny(layers=3, width=16, heads=2, positions=16, classes=5)
OUTPUTS = {"output_embedding", "class_embedding", "final_norm"}


def ones(config):
    return jax.tree.map(jnp.ones_like, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(lambda: ImageGPT(config, jax.random.key(0)))))


def factors(config=MODEL, **options):
    """What the update of each parameter is multiplied by."""
    settings = {"base_width": 0, "layer_decay": 1.0, "frozen_layers": 0} | options
    return {name: np.asarray(value) for name, value in to_flat(rates.scale(ones(config), **settings)).items()}


@pytest.mark.parametrize("changes", [{}, {"position_encoding": "axial", "qk_norm": True, "activation": "swiglu"}, {"objective": "bert"}])
def test_layer_decay_is_beits_rule(changes):
    for name, factor in factors(dataclasses.replace(MODEL, **changes), layer_decay=0.5).items():
        if name.startswith("blocks."):
            expected = np.array([0.125, 0.25, 0.5]).reshape(-1, *(1,) * (factor.ndim - 1))  # decay^(L + 1 - depth)
        else:
            expected = 1.0 if name in OUTPUTS else 0.0625
        np.testing.assert_array_equal(factor, np.broadcast_to(expected, factor.shape), err_msg=name)


def test_mup_divides_the_rate_of_matrices_alone():
    matrices = {"blocks.query_key_value", "blocks.attention_output", "blocks.mlp_in", "blocks.mlp_out", "output_embedding", "class_embedding"}
    for name, factor in factors(base_width=4).items():
        np.testing.assert_array_equal(factor, 0.25 if name in matrices else 1.0, err_msg=name)
    assert "blocks.mlp_gate" in rates.FROM_WIDTH and factors(dataclasses.replace(MODEL, activation="swiglu"), base_width=32)["blocks.mlp_gate"].max() == 2


def test_mup_has_the_initial_values_of_the_base_width_and_deviations_of_the_root_of_the_width():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    plain, base, wide = (init_state(tiny(), mesh, jax.random.key(0), replace(base_width=width)).model for width in (0, 32, 8))
    for ours, theirs in zip(jax.tree.leaves(base), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name, value in to_flat(wide).items():
        np.testing.assert_array_equal(value, to_flat(plain)[name] * (0.5 if "mlp_in" in name or "mlp_out" in name else 1), err_msg=name)
    for width in (32, 128):  # all matrices of the blocks have 1 / root of width
        model = rates.initial_values(ImageGPT(tiny(layers=2, width=width), jax.random.key(0)), 32)
        deviations = {name: float(jnp.std(to_flat(model)[f"blocks.{name}"])) * width**0.5 for name in ("query_key_value", "attention_output", "mlp_in")}
        assert deviations == pytest.approx({"query_key_value": 1, "attention_output": 2**-0.5, "mlp_in": 0.02 * 32**0.5}, rel=0.05)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_frozen_parameters_keep_every_bit_and_do_not_count_in_the_norm(name):
    """Also with weight decay, clipping, moments from before they were frozen, and a parameter that is -0."""
    model, gradient = random_model(MODEL), random_model(MODEL, 5)
    model.blocks.mlp_in[...] = model.blocks.mlp_in[...].at[0, 0, 0].set(-0.0)
    config = replace(name=name, weight_decay=0.1, clip_norm=1.0)
    _, state = jax.jit(lambda: optimizer.update(config, gradient, optimizer.init_optimizer(model, config), model, 0))()
    frozen = dataclasses.replace(config, frozen_layers=2)

    @jax.jit
    def step(gradient, state):
        masked = rates.without_frozen(gradient, 2)
        updates, _ = optimizer.update(frozen, masked, state, model, 0)
        return optimizer.apply_updates(model, updates), optimizer.global_norm(masked)

    after, norm = step(gradient, state)
    names = to_flat(after)
    for name, value in to_flat(model).items():
        before, now = np.asarray(value).view(np.uint32), np.asarray(names[name]).view(np.uint32)
        if name.startswith("blocks."):
            np.testing.assert_array_equal(now[:2], before[:2], err_msg=name)
            assert (now[2] != before[2]).any()
        else:
            assert (now == before).all() == (name not in OUTPUTS), name
    squares = sum(np.square(value[2:] if name.startswith("blocks.") else value).sum() for name, value in to_flat(gradient).items() if "embedding" not in name
                  and name != "start_vector") + sum(np.square(to_flat(gradient)[name]).sum() for name in ("output_embedding", "class_embedding"))  # fmt: skip
    assert float(norm) == pytest.approx(float(squares) ** 0.5, rel=1e-5)


def test_parameters_frozen_from_the_start_have_moments_of_zero():
    model, config = random_model(MODEL), replace(frozen_layers=3)
    gradient = rates.without_frozen(random_model(MODEL, 5), 3)
    _, state = optimizer.update(config, gradient, optimizer.init_optimizer(model, config), model, 0)
    moments = to_flat(state["adam"]["nu"])
    assert {name for name, value in moments.items() if np.any(value)} == OUTPUTS


def test_more_layers_than_there_are_and_random_ones_are_refused():
    rates.check_layers(3, 3, from_weights=True)
    rates.check_layers(0, 3, from_weights=False)
    with pytest.raises(ValueError, match="frozen_layers=4 is more than the model's 3 layers"):
        rates.check_layers(4, 3, from_weights=True)
    with pytest.raises(ValueError, match="frozen_layers=1 would keep random parameters: give finetune a --checkpoint or train --init_from"):
        rates.check_layers(1, 3, from_weights=False)
