"""The paper's optimiser: Adam with beta2 = 0.95, no weight decay, warmup then cosine to zero (paper 3.3 and appendix A). The only file that knows optax."""

import dataclasses

import jax
import optax

SCHEDULES = ("cosine", "constant")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Every field is required, because a recipe says it (configs/base.py)."""

    learning_rate: float  # at its highest
    schedule: str  # cosine: to zero at `steps`; constant
    warmup_steps: int  # linear from zero
    steps: int  # of the whole run
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float  # decoupled, on matrices only; 0: none
    clip_norm: float  # largest global norm of the gradient; 0: no clipping
    spike: float  # a loss above so many times its running mean is not learned from; 0: all are

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown: one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be between 0 and the run's {self.steps} steps")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate {self.learning_rate} must be positive")


def make_schedule(config: OptimConfig):
    """Learning rate as a function of the step."""
    if config.schedule == "constant":
        after = optax.schedules.constant_schedule(config.learning_rate)
    else:
        after = optax.schedules.cosine_decay_schedule(config.learning_rate, max(config.steps - config.warmup_steps, 1))
    if not config.warmup_steps:  # optax takes a warmup of no steps as one that never ends
        return after
    warmup = optax.schedules.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.schedules.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Clipping, Adam, decay and schedule, each only where the recipe asks for it."""
    chain = []
    if config.clip_norm:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    chain.append(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=_matrices))
    chain.append(optax.scale_by_learning_rate(make_schedule(config)))
    return optax.chain(*chain)


def apply_updates(parameters, updates):
    """Parameters plus updates."""
    return optax.apply_updates(parameters, updates)


def global_norm(tree):
    """Root of the sum of squares of every number in a tree."""
    return optax.tree.norm(tree)


def _matrices(parameters):
    """Everything but the gains of the norms."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: "norm" not in jax.tree_util.keystr(path), parameters)
