"""Adam with optional clipping and decoupled weight decay, and its schedules. The only module that imports optax.

The paper's values (beta2 = 0.95, no weight decay, warmup, then cosine to zero; 3.3 and appendix A) are those of configs/base.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from igpt_jax.types import Array, Tree

SCHEDULES = ("cosine", "constant", "wsd")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule; every field is required, because a recipe has it (configs/base.py)."""

    learning_rate: float  # the highest
    schedule: str  # cosine: to zero at `steps`; constant; wsd: constant, then linear to zero over the last `decay_steps`
    warmup_steps: int  # linear from zero
    decay_steps: int  # of wsd; 0: stable to the end
    steps: int  # of the whole run
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float  # decoupled, on matrices only; 0: none
    clip_norm: float  # largest global norm of the gradient; 0: no clipping
    loss_spike_factor: float  # an update is skipped if its loss is above so many times the running mean; 0: none is

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown: one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be between 0 and the run's {self.steps} steps")
        if self.decay_steps < 0 or (self.schedule == "wsd" and self.warmup_steps + self.decay_steps > self.steps):
            raise ValueError(f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} must be at most the run's {self.steps} steps")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate {self.learning_rate} must be positive")


def make_schedule(config: OptimConfig) -> Callable[[Any], Any]:
    """Return the learning rate as a function of the step."""
    ends: list[int]
    schedules, ends = [optax.schedules.constant_schedule(config.learning_rate)], []
    if config.schedule == "cosine":
        schedules = [optax.schedules.cosine_decay_schedule(config.learning_rate, max(config.steps - config.warmup_steps, 1))]
    elif config.schedule == "wsd" and config.decay_steps:  # warmup, stable, decay (Hu et al. 2024); linear as in Haegele et al. 2024
        schedules.append(optax.schedules.linear_schedule(config.learning_rate, 0.0, config.decay_steps))
        ends.append(config.steps - config.decay_steps)
    if config.warmup_steps:  # a warmup of 0 steps never ends in optax
        schedules.insert(0, optax.schedules.linear_schedule(0.0, config.learning_rate, config.warmup_steps))
        ends.insert(0, config.warmup_steps)
    return optax.schedules.join_schedules(schedules, ends) if ends else schedules[0]


def init_optimizer(parameters: Tree) -> dict[str, Any]:
    """Return the optimiser's state, {"adam": {count, mu, nu}}. Its names are ours, so that neither optax nor the recipe changes the format of checkpoints."""
    return {"adam": optax.scale_by_adam().init(parameters)._asdict()}


def update(config: OptimConfig, gradients: Tree, state: dict[str, Any], parameters: Tree, step: Array) -> tuple[Tree, dict[str, Any]]:
    """Return (updates, new state) of clipping, Adam, weight decay and the learning rate of `step`; clipping and decay only if the recipe asks for them."""
    if config.clip_norm:
        gradients = _stateless(optax.clip_by_global_norm(config.clip_norm), gradients, parameters)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    updates, moments = adam.update(gradients, optax.ScaleByAdamState(**state["adam"]))
    if config.weight_decay:
        updates = _stateless(optax.add_decayed_weights(config.weight_decay, mask=_matrices), updates, parameters)
    rate = make_schedule(config)(step)
    return jax.tree.map(lambda update: jnp.asarray(-rate, update.dtype) * update, updates), {"adam": moments._asdict()}


def apply_updates(parameters: Tree, updates: Tree) -> Tree:
    """Return parameters plus updates."""
    return optax.apply_updates(parameters, updates)


def global_norm(tree: Tree) -> Array:
    """Return the root of the sum of squares of all numbers in a tree."""
    return optax.tree.norm(tree)


def _stateless(transformation: optax.GradientTransformation, updates: Tree, parameters: Tree) -> Tree:
    """Apply a transformation that has no state."""
    return transformation.update(updates, transformation.init(parameters), parameters)[0]


def _matrices(parameters: Tree) -> Tree:
    """True for every parameter but the gains of the norms."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: "norm" not in jax.tree_util.keystr(path), parameters)
