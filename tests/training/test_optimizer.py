"""The optimiser by hand in float64: schedules at their corners, clipping, Adam, decay of matrices alone; and what is refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.training import optimizer

CONFIG = optimizer.OptimConfig(
    name="adam", learning_rate=0.5, schedule="constant", warmup_steps=0, decay_steps=0, steps=20, beta1=0.9, beta2=0.95, epsilon=1e-3,
    weight_decay=0.0, clip_norm=0.0, loss_spike_factor=0.0, ema_decay=0.0, base_width=0, layer_decay=1.0, frozen_layers=0,
)  # fmt: skip


def replace(**changes):
    return dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.5, 19: 0.5, 40: 0.5}),
        ({"warmup_steps": 4}, {0: 0, 1: 0.125, 3: 0.375, 4: 0.5, 19: 0.5}),
        ({"schedule": "cosine"}, {0: 0.5, 5: 0.25 * (1 + np.sqrt(0.5)), 10: 0.25, 20: 0, 30: 0}),
        ({"schedule": "cosine", "warmup_steps": 4}, {0: 0, 3: 0.375, 4: 0.5, 12: 0.25, 20: 0}),
        ({"schedule": "cosine", "warmup_steps": 20}, {0: 0, 10: 0.25, 20: 0.5, 21: 0}),
        ({"schedule": "cosine", "warmup_steps": 19}, {0: 0, 19: 0.5, 20: 0}),
        ({"schedule": "wsd"}, {0: 0.5, 20: 0.5}),
        ({"schedule": "wsd", "decay_steps": 4}, {0: 0.5, 16: 0.5, 17: 0.375, 19: 0.125, 20: 0, 30: 0}),
        ({"schedule": "wsd", "decay_steps": 15, "warmup_steps": 5}, {0: 0, 4: 0.4, 5: 0.5, 8: 0.4, 20: 0}),
        ({"schedule": "constant", "decay_steps": 4}, {16: 0.5, 20: 0.5}),
    ],
)
def test_schedules_at_their_corners(changes, expected):
    rate = optimizer.make_schedule(replace(**changes))
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-7), step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "schedule 'linear' is unknown: one of cosine, constant, wsd"),
        ({"warmup_steps": -1}, "warmup_steps -1 must be between 0 and the run's 20 steps"),
        ({"warmup_steps": 21}, "warmup_steps 21 must be"),
        ({"decay_steps": -1}, r"warmup_steps 0 \+ decay_steps -1 must be at most the run's 20 steps"),
        ({"schedule": "wsd", "decay_steps": 16, "warmup_steps": 5}, r"warmup_steps 5 \+ decay_steps 16 must be at most the run's 20"),
        ({"schedule": "wsd", "decay_steps": 15, "warmup_steps": 15}, r"warmup_steps 15 \+ decay_steps 15 must be at most the run's 20"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate nan must be positive"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(**changes)


def test_decay_steps_of_other_schedules_are_not_looked_at():
    assert replace(schedule="cosine", decay_steps=16, warmup_steps=5).decay_steps == 16


PARAMETERS = {"matrix": [[0.5, -1.0], [2.0, 0.25]], "norm": [1.0, 1.5], "mlp_in_bias": [2.0]}
GRADIENTS = [  # of norm 13, and below 1
    {"matrix": [[3.0, 0.0], [0.0, -4.0]], "norm": [12.0, 0.0], "mlp_in_bias": [0.0]},
    {"matrix": [[0.1, 0.2], [0.3, 0.4]], "norm": [0.5, 0.6], "mlp_in_bias": [0.1]},
]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
def test_two_updates_by_hand(weight_decay, clip_norm):
    config = replace(schedule="wsd", decay_steps=20, weight_decay=weight_decay, clip_norm=clip_norm)
    parameters = {name: jnp.asarray(value) for name, value in PARAMETERS.items()}
    state = optimizer.init_optimizer(parameters)
    mu, nu = ({name: np.zeros_like(value) for name, value in PARAMETERS.items()} for _ in range(2))
    for number, gradients in enumerate(GRADIENTS):
        step = 10 * number + 4  # the rate is that of the step, 0.4 and then 0.15, and not of the updates made
        updates, state = optimizer.update(config, {name: jnp.asarray(value) for name, value in gradients.items()}, state, parameters, step)
        norm = np.sqrt(sum(np.square(value).sum() for value in gradients.values()))
        for name, gradient in gradients.items():
            gradient = np.array(gradient) * (clip_norm / norm if clip_norm and norm > clip_norm else 1)
            mu[name], nu[name] = 0.9 * mu[name] + 0.1 * gradient, 0.95 * nu[name] + 0.05 * gradient**2
            wanted = mu[name] / (1 - 0.9 ** (number + 1)) / (np.sqrt(nu[name] / (1 - 0.95 ** (number + 1))) + 1e-3)
            wanted += weight_decay * np.array(PARAMETERS[name]) * (name == "matrix")
            np.testing.assert_allclose(updates[name], -(0.4, 0.15)[number] * wanted, rtol=2e-5)
            np.testing.assert_allclose(optimizer.apply_updates(parameters, updates)[name], PARAMETERS[name] + np.array(updates[name]), rtol=1e-6)
    assert int(state["adam"]["count"]) == 2


def test_the_global_norm_is_of_all_numbers():
    assert float(optimizer.global_norm({name: jnp.asarray(value) for name, value in GRADIENTS[0].items()})) == pytest.approx(13)
