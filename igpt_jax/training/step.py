"""The training state, and the pure functions of one training step and one evaluation step.

Letters of shapes: B batch, S sequence, C classes.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from igpt_jax.distributed import runtime, sharding
from igpt_jax.model import objectives
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.training import rates
from igpt_jax.training.optimizer import OptimConfig, apply_updates, average, global_norm, init_optimizer, make_schedule, update
from igpt_jax.types import Array, Batch, Tree

LOSS_EMA_DECAY = 0.99  # of the running mean of the loss, about a hundred steps


@partial(jax.tree_util.register_dataclass, data_fields=["skipped", "skipped_in_a_row", "mean_loss"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Guard:
    """Counts of skipped updates, and the mean loss by which a loss spike is recognised."""

    skipped: Array  # int32 []: of all steps
    skipped_in_a_row: Array  # int32 []: until now
    mean_loss: Array  # float32 []: running mean of the losses that were not skipped; 0 before the first


@partial(jax.tree_util.register_dataclass, data_fields=["step", "model", "opt_state", "guard", "ema"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All arrays that one step changes."""

    step: Array  # int32 []: steps done
    model: ImageGPT
    opt_state: dict[str, Any]  # as `init_optimizer` makes it
    guard: Guard
    ema: ImageGPT | None = None  # moving average of the parameters; None where OptimConfig.ema_decay is 0

    def starting_from(self, model: ImageGPT) -> "TrainState":
        """Return the state with other parameters, from which the average of the weights begins too."""
        return dataclasses.replace(self, model=model, ema=None if self.ema is None else jax.tree.map(jnp.copy, model))


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss: `generative` x the model's objective + `classification` x the class head's cross-entropy (paper 2.4: 1 and 1)."""

    generative: float
    classification: float  # 0: the labels are not used
    mask_probability: float  # bert: share of masked positions
    evaluation_masks: int  # bert with a class head: number of masks, each of which votes for a class (paper 2.4: 5)


def make_state(model_config: ModelConfig, optim_config: OptimConfig | None, key: Array) -> TrainState:
    """Return the state of step 0; called by `init_state`, which makes it sharded, and `abstract_state`, which allocates nothing.

    No array is in it twice, because a step donates each.
    """
    model = ImageGPT(model_config, key)
    if optim_config is not None:
        model = rates.initial_values(model, optim_config.base_width)
    guard = Guard(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(()))
    ema = jax.tree.map(jnp.copy, model) if optim_config is not None and optim_config.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), model, init_optimizer(model, optim_config), guard, ema)


def abstract_state(model_config: ModelConfig, mesh: Mesh, optim_config: OptimConfig | None = None) -> TrainState:
    """Return the shapes, types and shardings of the state, without arrays; `optim_config` None: with Adam's moments and no average of the weights."""
    return sharding.placed(mesh, jax.eval_shape(lambda: make_state(model_config, optim_config, jax.random.key(0))))


def init_state(model_config: ModelConfig, mesh: Mesh, key: Array, optim_config: OptimConfig | None = None) -> TrainState:
    """Return the state of step 0, as `abstract_state` describes it, made sharded: no device ever holds more than its part."""
    shardings = sharding.state_shardings(mesh, abstract_state(model_config, mesh, optim_config))
    return jax.jit(partial(make_state, model_config, optim_config), out_shardings=shardings)(key)


def jit_train_step(mesh: Mesh, model_config: ModelConfig, optim_config: OptimConfig, loss_config: LossConfig, gradient_accumulation_steps: int = 1) -> Any:
    """Return the jitted `train_step`, (state, batch, run_key) -> (state, metrics); it donates the memory of the state that it is given."""
    shardings = sharding.state_shardings(mesh, abstract_state(model_config, mesh, optim_config))
    step = partial(train_step, optim_config=optim_config, loss_config=loss_config, gradient_accumulation_steps=gradient_accumulation_steps)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=runtime.compiler_options(list(mesh.devices.flat)))


def loss_and_metrics(model: ImageGPT, batch: Batch, key: Array, loss_config: LossConfig) -> tuple[Array, dict[str, Array]]:
    """Return the mean loss of a batch {codes [B, S], label [B], index [B]} in nats, and metrics; random draws depend only on `key` and the image's index."""
    keys_B = objectives.image_keys(key, batch["index"])
    nats_B, output = objectives.generative_loss(model, batch["codes"], keys_B, loss_config.mask_probability, training=True)
    metrics = {"nats_per_pixel": nats_B.mean() * model.config.tokens_per_pixel}
    loss = loss_config.generative * nats_B.mean()
    if loss_config.classification:
        metrics["class_nats"] = objectives.classification_loss(output.class_logits, batch["label"]).mean()
        metrics["accuracy"] = (output.class_logits.argmax(axis=-1) == batch["label"]).mean()
        loss = loss + loss_config.classification * metrics["class_nats"]
    return loss, metrics | {"loss": loss}


def train_step(
    state: TrainState,
    batch: Batch,
    run_key: Array,
    *,
    optim_config: OptimConfig,
    loss_config: LossConfig,
    gradient_accumulation_steps: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """Make one update and return (new state, metrics). A pure function.

    Masks and prefixes depend on `run_key`, the step and each image's index, its row in the data set. They are the same at any position in the batch, and
    for any mesh, number of processes and `gradient_accumulation_steps`.

    If the loss or the gradient is not finite, or the loss jumps (`OptimConfig.loss_spike_factor`), the update is skipped: parameters, moments and the average
    of the weights stay as they are, and the guard counts it. `gradient_accumulation_steps` > 1 runs the batch in that many equal parts and averages their
    gradients, for batches that do not fit into memory at once.
    """
    key = jax.random.fold_in(run_key, state.step)
    gradient_of = jax.value_and_grad(partial(loss_and_metrics, loss_config=loss_config), has_aux=True)
    if gradient_accumulation_steps == 1:
        (_, metrics), gradients = gradient_of(state.model, batch, key)
    else:
        gradients, metrics = _accumulated(gradient_of, state.model, batch, key, gradient_accumulation_steps)
    gradients = rates.without_frozen(gradients, optim_config.frozen_layers)
    updates, opt_state = update(optim_config, gradients, state.opt_state, state.model, state.step)
    norm = global_norm(gradients)
    good, guard = _accept_update(state.guard, metrics["loss"], norm, optim_config.loss_spike_factor)
    model = apply_updates(state.model, updates)
    ema = average(state.ema, model, optim_config.ema_decay, state.step) if optim_config.ema_decay else None
    model, opt_state, ema = jax.tree.map(partial(jnp.where, good), (model, opt_state, ema), (state.model, state.opt_state, state.ema))
    metrics |= {"gradient_norm": norm, "learning_rate": make_schedule(optim_config)(state.step)}
    metrics |= {"skipped": guard.skipped, "skipped_in_a_row": guard.skipped_in_a_row}
    return TrainState(state.step + 1, model, opt_state, guard, ema), metrics


def _accept_update(guard: Guard, loss: Array, norm: Array, loss_spike_factor: float) -> tuple[Array, Guard]:
    """Whether to make an update, bool [], and the guard after it."""
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if loss_spike_factor:
        good &= (guard.mean_loss == 0) | (loss <= loss_spike_factor * guard.mean_loss)
    mean_loss = jnp.where(guard.mean_loss == 0, loss, LOSS_EMA_DECAY * guard.mean_loss + (1 - LOSS_EMA_DECAY) * loss)
    in_a_row = jnp.where(good, 0, guard.skipped_in_a_row + 1)
    return good, Guard(guard.skipped + ~good, in_a_row, jnp.where(good, mean_loss, guard.mean_loss))


def eval_step(model: ImageGPT, batch: Batch, run_key: Array, *, loss_config: LossConfig) -> dict[str, Array]:
    """Return sums of nats, correct classes and images over a batch {codes, label, weight, index}; padding has weight 0, masks depend on the image's index."""
    return sum_scores(score_images(model, batch, run_key, loss_config=loss_config), batch)


def score_images(model: ImageGPT, batch: Batch, run_key: Array, *, loss_config: LossConfig) -> dict[str, Array]:
    """Return {nats} of each image of a batch {codes, label, index}, [B], and with a head {class_nats, top5 [B, 5], predicted_one_mask}, classes as int."""
    keys_B = objectives.image_keys(run_key, batch["index"])
    nats_B, output = objectives.generative_loss(model, batch["codes"], keys_B, loss_config.mask_probability, training=False)
    scores = {"nats": nats_B * model.config.tokens_per_pixel}
    if output.class_logits is not None:
        class_logits_BC = model.forward_features(batch["codes"]).class_logits if model.config.objective == "prefix" else output.class_logits
        scores_BC = _votes(model, batch, run_key, class_logits_BC, loss_config)
        scores["top5"] = jax.lax.top_k(scores_BC, min(5, model.config.classes))[1]
        scores["predicted_one_mask"] = class_logits_BC.argmax(axis=1)
        scores["class_nats"] = objectives.classification_loss(class_logits_BC, jnp.maximum(batch["label"], 0))
    return scores


def sum_scores(scores: dict[str, Array], batch: Batch) -> dict[str, Array]:
    """Sum what `score_images` returns over the images of the batch."""
    label_B, weight_B = batch["label"], batch["weight"]
    sums = {"nats": (scores["nats"] * weight_B).sum(), "images": weight_B.sum()}
    if "top5" in scores:
        hits_B5 = (scores["top5"] == label_B[:, None]) * weight_B[:, None]
        sums |= {"correct": hits_B5[:, 0].sum(), "correct_top5": hits_B5.sum()}
        sums["correct_one_mask"] = ((scores["predicted_one_mask"] == label_B) * weight_B).sum()
        sums["class_nats"] = (scores["class_nats"] * weight_B).sum()
    return sums


def _votes(model: ImageGPT, batch: Batch, run_key: Array, class_logits_BC: Array, loss_config: LossConfig) -> Array:
    """Scores of the classes [B, C]: the logits, or for a bert model the number of masks that vote for each, ties broken at random (paper 2.4)."""
    if model.config.causal or loss_config.evaluation_masks == 1:
        return class_logits_BC
    votes_BC = jax.nn.one_hot(class_logits_BC.argmax(axis=1), model.config.classes)
    for number in range(1, loss_config.evaluation_masks):
        keys_B = objectives.image_keys(jax.random.fold_in(run_key, number), batch["index"])
        _, output = objectives.generative_loss(model, batch["codes"], keys_B, loss_config.mask_probability, training=False)
        votes_BC += jax.nn.one_hot(output.class_logits.argmax(axis=1), model.config.classes)
    keys_B = objectives.image_keys(jax.random.fold_in(run_key, loss_config.evaluation_masks), batch["index"])
    return votes_BC + 0.5 * jax.vmap(lambda key: jax.random.uniform(key, votes_BC.shape[1:]))(keys_B)


def _accumulated(gradient_of: Callable[..., Any], model: ImageGPT, batch: Batch, key: Array, parts: int) -> tuple[Tree, dict[str, Array]]:
    """Average gradients and metrics over `parts` slices of the batch, interleaved so that every device works on every slice."""
    slices = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Tree, part: Batch) -> tuple[Tree, None]:
        part = jax.tree.map(lambda x: sharding.constrain(x, "batch", *(None,) * (x.ndim - 1)), part)
        (_, metrics), gradients = gradient_of(model, part, key)
        return jax.tree.map(jnp.add, total, (gradients, metrics)), None

    first = jax.eval_shape(gradient_of, model, jax.tree.map(lambda x: x[0], slices), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (first[1], first[0][1]))
    total, _ = jax.lax.scan(add, zeros, slices)
    return jax.tree.map(lambda x: x / parts, total)
