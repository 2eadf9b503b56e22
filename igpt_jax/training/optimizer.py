"""Adam or Muon, with optional clipping and decoupled weight decay, and their schedules. The only module that imports optax.

The paper's values (Adam, beta2 = 0.95, no weight decay, warmup, then cosine to zero; 3.3 and appendix A) are those of configs/base.py. Muon (Jordan et al.
2024) updates the matrices inside the blocks, each by an orthogonal matrix near its momentum; Adam updates embeddings, gains and heads. An orthogonal update
of A x B numbers is multiplied by 0.2 sqrt(max(A, B)), so that its root mean square is that of Adam's usual updates, and both take one learning rate and one
weight decay (Liu et al. 2025, arXiv 2502.16982, 2.2).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from igpt_jax.training import rates
from igpt_jax.training.trees import NestedArrays, from_nested, nest, to_flat
from igpt_jax.types import Array, Tree

NAMES = ("adam", "muon")
SCHEDULES = ("cosine", "constant", "wsd")
MUON_MOMENTUM, MUON_RMS = 0.95, 0.2  # Jordan et al. 2024; Liu et al. 2025
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the coefficients of Jordan et al.; five iterations
# Axes (from, to) of the matrices that Muon updates. The other axes count matrices: layers, and queries, keys and values, which are better orthogonalised
# apart than as one matrix (Jordan et al. 2024). The heads of one of them are together, as in both sources.
MUON_MATRICES = {
    "blocks.query_key_value": MuonDimensionNumbers((1,), (3, 4)),
    "blocks.attention_output": MuonDimensionNumbers((1,), (2,)),
    "blocks.mlp_gate": MuonDimensionNumbers((1,), (2,)),
    "blocks.mlp_in": MuonDimensionNumbers((1,), (2,)),
    "blocks.mlp_out": MuonDimensionNumbers((1,), (2,)),
}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule; every field is required, because a recipe has it (configs/base.py)."""

    name: str  # adam: the paper's; muon: for the matrices of the blocks (MUON_MATRICES), with Adam for all other parameters
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
    ema_decay: float  # of the average of the weights that is kept beside them; 0: none is kept
    base_width: int  # width for which the rate was found; at another width rates and initial values follow muP (rates.py); 0: they do not
    layer_decay: float  # a layer's rate is this times that of the layer above it; 1: all have the same
    frozen_layers: int  # number of first blocks that stay as they are, with the embeddings; 0: all parameters are trained

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"optimiser {self.name!r} is unknown: config.optim.name is one of {', '.join(NAMES)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"config.optim.schedule {self.schedule!r} is unknown: one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"config.optim.warmup_steps {self.warmup_steps} must be between 0 and the run's {self.steps} steps: set it too")
        if self.decay_steps < 0 or (self.schedule == "wsd" and self.warmup_steps + self.decay_steps > self.steps):
            raise ValueError(f"config.optim.warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} must be at most the run's {self.steps} steps")
        if not self.learning_rate > 0:
            raise ValueError(f"config.optim.learning_rate {self.learning_rate} must be positive")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"config.optim.ema_decay {self.ema_decay} must be from 0 (no average) to below 1")
        rates.check(self.base_width, self.layer_decay, self.frozen_layers)
        if self.name == "muon" and self.base_width:
            raise ValueError(f"base_width {self.base_width} scales Adam's rate for the matrices, which muon updates: leave out base_width, or take adam")


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


def init_optimizer(parameters: Tree, config: OptimConfig | None = None) -> dict[str, Any]:
    """Return the optimiser's state: {"adam": {count, mu, nu}}, and of Muon {"adam": of the other parameters, "muon": {count, mu}}; `config` None: Adam's.

    Its names are ours, so that neither optax nor the recipe changes the format of checkpoints.
    """
    if config is None or config.name == "adam":
        return {"adam": optax.scale_by_adam().init(parameters)._asdict()}
    matrices, others = _divided(parameters)
    muon = _muon(matrices).init(matrices)
    return {"adam": optax.scale_by_adam().init(others)._asdict(), "muon": {"count": muon.count, "mu": muon.mu}}


def update(config: OptimConfig, gradients: Tree, state: dict[str, Any], parameters: Tree, step: Array) -> tuple[Tree, dict[str, Any]]:
    """Return (updates, new state) of clipping, the optimiser, weight decay and the learning rate of `step`; each only if the recipe asks for it."""
    if config.clip_norm:
        gradients = _stateless(optax.clip_by_global_norm(config.clip_norm), gradients, parameters)
    if config.name == "adam":
        updates, moments = _adam(config, gradients, state["adam"])
        new_state = {"adam": moments}
    else:
        updates, new_state = _muon_and_adam(config, gradients, state)
    if config.weight_decay:
        updates = _stateless(optax.add_decayed_weights(config.weight_decay, mask=_matrices), updates, parameters)
    rate = make_schedule(config)(step)
    updates = jax.tree.map(lambda update: jnp.asarray(-rate, update.dtype) * update, updates)
    return rates.scale(updates, config.base_width, config.layer_decay, config.frozen_layers), new_state


def _adam(config: OptimConfig, gradients: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
    """Adam's updates before the learning rate, and its new state."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    updates, moments = adam.update(gradients, optax.ScaleByAdamState(**state))
    return updates, moments._asdict()


def _muon_and_adam(config: OptimConfig, gradients: Tree, state: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
    """The updates of Muon and of Adam before the learning rate, in the structure of `gradients`, and the new state."""
    matrices, others = _divided(gradients)
    other_updates, adam = _adam(config, others, state["adam"])
    directions, muon = _muon(matrices).update(matrices, optax.contrib.MuonState(**state["muon"], ns_coeffs=jnp.asarray(NEWTON_SCHULZ)))
    scaled = {name: MUON_RMS * _larger_side(direction, MUON_MATRICES[name]) ** 0.5 * direction for name, direction in to_flat(directions).items()}
    updates = from_nested(nest(to_flat(other_updates) | scaled), gradients)
    return updates, {"adam": adam, "muon": {"count": muon.count, "mu": muon.mu}}


def _divided(tree: Tree) -> tuple[NestedArrays, NestedArrays]:
    """The parameters of Muon and those of Adam, as nested dicts under their names."""
    flat = to_flat(tree)
    return nest({name: flat[name] for name in flat if name in MUON_MATRICES}), nest({name: flat[name] for name in flat if name not in MUON_MATRICES})


def _muon(matrices: NestedArrays) -> optax.GradientTransformation:
    """Muon's momentum, made orthogonal, for a nested dict of MUON_MATRICES."""
    axes = nest({name: MUON_MATRICES[name] for name in to_flat(matrices)})
    return optax.contrib.scale_by_muon(NEWTON_SCHULZ, beta=MUON_MOMENTUM, weight_dimension_numbers=axes)


def _larger_side(matrices: Array, axes: MuonDimensionNumbers) -> int:
    """The larger side of each of the matrices that an array holds."""
    sides = [[matrices.shape[axis] for axis in group] for group in (axes.reduction_axis, axes.output_axis)]
    return max(map(math.prod, sides))


def average(weights: Tree, parameters: Tree, decay: float, step: Array) -> Tree:
    """Return the moving average of the weights after `step`, the number of steps before this one: decay x `weights` + (1 - decay) x `parameters`.

    The decay begins at 0.1 and rises to `decay` as (1 + step) / (10 + step), so that the average soon forgets the initial parameters (TensorFlow's
    ExponentialMovingAverage with `num_updates`).
    """
    rising = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(parameters, weights, 1 - rising)


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
    """True for every parameter but the gains of the norms and the biases."""

    def is_matrix(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(is_matrix, parameters)
