"""The training state and the pure functions that make it and take it one step further."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from igpt_jax.distributed import sharding
from igpt_jax.model import objectives
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.training.optimizer import OptimConfig, apply_updates, global_norm, init_optimizer, make_schedule, update

LOSS_EMA_DECAY = 0.99  # of the running mean of the loss: a hundred steps


@partial(jax.tree_util.register_dataclass, data_fields=["skipped", "skipped_in_a_row", "mean_loss"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Guard:
    """What is remembered of steps whose update was not made."""

    skipped: Any  # int32 []: of all steps
    skipped_in_a_row: Any  # int32 []: up to now
    mean_loss: Any  # float32 []: running mean of the losses that were not skipped; 0 before the first


@partial(jax.tree_util.register_dataclass, data_fields=["step", "model", "opt_state", "guard"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that one step changes."""

    step: Any  # int32 []: steps done
    model: ImageGPT
    opt_state: Any
    guard: Guard


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised: `generative` x the model's own objective + `classification` x the class head's cross-entropy (paper 2.4: 1 and 1)."""

    generative: float
    classification: float  # 0: the labels are not used
    mask_probability: float  # bert: share of positions masked
    evaluation_masks: int  # bert with a class head: draws whose most frequent class counts (paper 2.4: 5)


def make_state(model_config: ModelConfig, key) -> TrainState:
    """A fresh state; call it through `init_state`, which makes it sharded, or `abstract_state`, which allocates nothing."""
    model = ImageGPT(model_config, key)
    guard = Guard(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(()))
    return TrainState(jnp.zeros((), jnp.int32), model, init_optimizer(model), guard)


def abstract_state(model_config: ModelConfig, mesh) -> TrainState:
    """Shapes, types and shardings of the state, without memory."""
    return sharding.placed(mesh, jax.eval_shape(lambda: make_state(model_config, jax.random.key(0))))


def init_state(model_config: ModelConfig, mesh, key) -> TrainState:
    """A fresh state, born sharded: no device ever holds more than its part."""
    shardings = sharding.state_shardings(mesh, abstract_state(model_config, mesh))
    return jax.jit(partial(make_state, model_config), out_shardings=shardings)(key)


def jit_train_step(mesh, model_config: ModelConfig, optim_config: OptimConfig, loss_config: LossConfig, gradient_accumulation_steps: int = 1):
    """The compiled `train_step`: (state, batch, run_key) -> (state, metrics); the state given is consumed and its memory used again."""
    shardings = sharding.state_shardings(mesh, abstract_state(model_config, mesh))
    step = partial(train_step, optim_config=optim_config, loss_config=loss_config, gradient_accumulation_steps=gradient_accumulation_steps)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def loss_and_metrics(model, batch, key, loss_config: LossConfig):
    """Mean loss of a batch {codes [B, S], label [B], index [B]} in nats, and its parts; what is drawn for an image comes from `key` and its index alone."""
    keys_B = objectives.image_keys(key, batch["index"])
    nats_B, output = objectives.generative_loss(model, batch["codes"], keys_B, loss_config.mask_probability, training=True)
    metrics = {"nats_per_pixel": nats_B.mean() * model.config.tokens_per_pixel}
    loss = loss_config.generative * nats_B.mean()
    if loss_config.classification:
        metrics["class_nats"] = objectives.classification_loss(output.class_logits, batch["label"]).mean()
        metrics["accuracy"] = (output.class_logits.argmax(axis=-1) == batch["label"]).mean()
        loss = loss + loss_config.classification * metrics["class_nats"]
    return loss, metrics | {"loss": loss}


def train_step(state: TrainState, batch, run_key, *, optim_config: OptimConfig, loss_config: LossConfig, gradient_accumulation_steps: int = 1):
    """One update: (new state, metrics). Pure: masks and prefixes come from `run_key`, the step and each image's index, its row in the data set.

    So they are the same wherever in the batch an image stands, and on any mesh, number of processes and `gradient_accumulation_steps`.

    Where loss or gradient is not finite, or the loss jumps (`OptimConfig.loss_spike_factor`), parameters and moments stay as they are, and the guard counts it.
    `gradient_accumulation_steps` > 1 runs the batch in that many equal parts and averages their gradients, for batches that do not fit at once.
    """
    key = jax.random.fold_in(run_key, state.step)
    gradient_of = jax.value_and_grad(partial(loss_and_metrics, loss_config=loss_config), has_aux=True)
    if gradient_accumulation_steps == 1:
        (_, metrics), gradients = gradient_of(state.model, batch, key)
    else:
        gradients, metrics = _accumulated(gradient_of, state.model, batch, key, gradient_accumulation_steps)
    updates, opt_state = update(optim_config, gradients, state.opt_state, state.model, state.step)
    norm = global_norm(gradients)
    good, guard = _accept_update(state.guard, metrics["loss"], norm, optim_config.loss_spike_factor)
    model, opt_state = jax.tree.map(partial(jnp.where, good), (apply_updates(state.model, updates), opt_state), (state.model, state.opt_state))
    metrics |= {"gradient_norm": norm, "learning_rate": make_schedule(optim_config)(state.step)}
    metrics |= {"skipped": guard.skipped, "skipped_in_a_row": guard.skipped_in_a_row}
    return TrainState(state.step + 1, model, opt_state, guard), metrics


def _accept_update(guard, loss, norm, loss_spike_factor):
    """Whether to make an update, and the guard after it."""
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if loss_spike_factor:
        good &= (guard.mean_loss == 0) | (loss <= loss_spike_factor * guard.mean_loss)
    mean_loss = jnp.where(guard.mean_loss == 0, loss, LOSS_EMA_DECAY * guard.mean_loss + (1 - LOSS_EMA_DECAY) * loss)
    in_a_row = jnp.where(good, 0, guard.skipped_in_a_row + 1)
    return good, Guard(guard.skipped + ~good, in_a_row, jnp.where(good, mean_loss, guard.mean_loss))


def eval_step(model, batch, run_key, *, loss_config: LossConfig):
    """Sums over a batch {codes, label, weight, index} whose padding weighs 0: nats, correct classes, images; masks come from each image's index."""
    keys_B = objectives.image_keys(run_key, batch["index"])
    nats_B, output = objectives.generative_loss(model, batch["codes"], keys_B, loss_config.mask_probability, training=False)
    sums = {"nats": (nats_B * batch["weight"]).sum() * model.config.tokens_per_pixel, "images": batch["weight"].sum()}
    if output.class_logits is not None:
        class_logits_BC = model.forward_features(batch["codes"]).class_logits if model.config.objective == "prefix" else output.class_logits
        scores_BC = _votes(model, batch, run_key, class_logits_BC, loss_config)
        _, top_B5 = jax.lax.top_k(scores_BC, min(5, model.config.classes))
        hits_B5 = (top_B5 == batch["label"][:, None]) * batch["weight"][:, None]
        sums |= {"correct": hits_B5[:, 0].sum(), "correct_top5": hits_B5.sum()}
        sums["correct_one_mask"] = ((class_logits_BC.argmax(axis=1) == batch["label"]) * batch["weight"]).sum()
        class_nats_B = objectives.classification_loss(class_logits_BC, jnp.maximum(batch["label"], 0))
        sums["class_nats"] = (class_nats_B * batch["weight"]).sum()
    return sums


def _votes(model, batch, run_key, class_logits_BC, loss_config):
    """What classes are ranked by: the logits, or for a bert model how many of several masks vote for each, ties broken at random (paper 2.4)."""
    if model.config.causal or loss_config.evaluation_masks == 1:
        return class_logits_BC
    votes_BC = jax.nn.one_hot(class_logits_BC.argmax(axis=1), model.config.classes)
    for number in range(1, loss_config.evaluation_masks):
        keys_B = objectives.image_keys(jax.random.fold_in(run_key, number), batch["index"])
        _, output = objectives.generative_loss(model, batch["codes"], keys_B, loss_config.mask_probability, training=False)
        votes_BC += jax.nn.one_hot(output.class_logits.argmax(axis=1), model.config.classes)
    keys_B = objectives.image_keys(jax.random.fold_in(run_key, loss_config.evaluation_masks), batch["index"])
    return votes_BC + 0.5 * jax.vmap(lambda key: jax.random.uniform(key, votes_BC.shape[1:]))(keys_B)


def _accumulated(gradient_of, model, batch, key, parts):
    """Average gradients and metrics over `parts` interleaved slices of the batch, so that every device works on every slice."""
    slices = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total, part):
        part = jax.tree.map(lambda x: sharding.constrain(x, "batch", *(None,) * (x.ndim - 1)), part)
        (_, metrics), gradients = gradient_of(model, part, key)
        return jax.tree.map(jnp.add, total, (gradients, metrics)), None

    first = jax.eval_shape(gradient_of, model, jax.tree.map(lambda x: x[0], slices), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (first[1], first[0][1]))
    total, _ = jax.lax.scan(add, zeros, slices)
    return jax.tree.map(lambda x: x / parts, total)
