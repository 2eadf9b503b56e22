"""The paper's optimiser: Adam with beta2 = 0.95, no weight decay, warmup then cosine to zero (paper 3.3 and appendix A). The only file that knows optax."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("cosine", "constant", "wsd")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Every field is required, because a recipe says it (configs/base.py)."""

    learning_rate: float  # at its highest
    schedule: str  # cosine: to zero at `steps`; constant; wsd: constant, then linear to zero over the last `decay_steps`
    warmup_steps: int  # linear from zero
    decay_steps: int  # of wsd; 0: stable to the end
    steps: int  # of the whole run
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float  # decoupled, on matrices only; 0: none
    clip_norm: float  # largest global norm of the gradient; 0: no clipping
    loss_spike_factor: float  # a loss above so many times its running mean is not learned from; 0: all are

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown: one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be between 0 and the run's {self.steps} steps")
        if self.decay_steps < 0 or (self.schedule == "wsd" and self.warmup_steps + self.decay_steps > self.steps):
            raise ValueError(f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} must be at most the run's {self.steps} steps")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate {self.learning_rate} must be positive")


def make_schedule(config: OptimConfig):
    """Learning rate as a function of the step."""
    schedules, ends = [optax.schedules.constant_schedule(config.learning_rate)], []
    if config.schedule == "cosine":
        schedules = [optax.schedules.cosine_decay_schedule(config.learning_rate, max(config.steps - config.warmup_steps, 1))]
    elif config.schedule == "wsd" and config.decay_steps:  # warmup, stable, decay (Hu et al. 2024); linear as in Haegele et al. 2024
        schedules.append(optax.schedules.linear_schedule(config.learning_rate, 0.0, config.decay_steps))
        ends.append(config.steps - config.decay_steps)
    if config.warmup_steps:  # optax takes a warmup of no steps as one that never ends
        schedules.insert(0, optax.schedules.linear_schedule(0.0, config.learning_rate, config.warmup_steps))
        ends.insert(0, config.warmup_steps)
    return optax.schedules.join_schedules(schedules, ends) if ends else schedules[0]


def init_optimizer(parameters) -> dict:
    """The optimiser's state under names of our own, {"adam": {count, mu, nu}}, so that neither optax nor the recipe changes what a checkpoint holds."""
    return {"adam": optax.scale_by_adam().init(parameters)._asdict()}


def update(config: OptimConfig, gradients, state: dict, parameters, step):
    """(updates, new state): clipping, Adam, decay and the learning rate of `step`, each only where the recipe asks for it."""
    if config.clip_norm:
        gradients = _stateless(optax.clip_by_global_norm(config.clip_norm), gradients, parameters)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    updates, moments = adam.update(gradients, optax.ScaleByAdamState(**state["adam"]))
    if config.weight_decay:
        updates = _stateless(optax.add_decayed_weights(config.weight_decay, mask=_matrices), updates, parameters)
    rate = make_schedule(config)(step)
    return jax.tree.map(lambda update: jnp.asarray(-rate, update.dtype) * update, updates), {"adam": moments._asdict()}


def apply_updates(parameters, updates):
    """Parameters plus updates."""
    return optax.apply_updates(parameters, updates)


def global_norm(tree):
    """Root of the sum of squares of every number in a tree."""
    return optax.tree.norm(tree)


def _stateless(transformation, updates, parameters):
    return transformation.update(updates, transformation.init(parameters), parameters)[0]


def _matrices(parameters):
    """Everything but the gains of the norms."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: "norm" not in jax.tree_util.keystr(path), parameters)
