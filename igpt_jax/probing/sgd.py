"""Probes trained by stochastic gradient descent: momentum 0.9, cosine decay to zero, no weight decay (paper 2.6). Pure functions, without files.

Suffixes: L layers, R learning rates, B images, S positions, D width, C classes, N heads, K = D / N. All L x R probes train on the same batches, side by side.
There are two kinds. They train together if the features of all positions are given.
- `mean`: features are averaged over positions, standardised and divided by sqrt(D), and a linear classifier reads them. The squared length of an image's
  features is then one on average, so the curvature of the loss, and the meaning of a learning rate, do not depend on the width.
- `attention`: AIM's attentive probe (El-Nouby et al. 2024, 3.4; AttentionPoolingClassifier of apple/ml-aim). Keys and values are linear maps [D, N, K]
  without bias of the standardised features (AIM uses a batch norm without parameters). Each of N heads has one learned query [K], a softmax over positions
  weights the values, and a linear classifier reads the N * K = D numbers. N is 12, as AIM's, or the largest smaller number that divides D.
  Parameters: D^2 keys + D^2 values + D queries + C (D + 1). Its rates are divided by D, for the same reason as the features of `mean` by sqrt(D).
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.types import AnyArray, Array

MOMENTUM = 0.9
HEADS = 12
QUERY_DEVIATION = 0.02  # standard deviation of the initial queries, AIM's
# By default GPUs and TPUs round the factors of a float32 product.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Moments(NamedTuple):
    """How to standardise the features of one kind: (features - mean) * scale, both float32 [L, D]."""

    mean: np.ndarray
    scale: np.ndarray


class State(NamedTuple):
    """Parameters and momentum; each maps kind -> name -> array [L, R, ...]."""

    parameters: dict[str, Any]
    velocity: dict[str, Any]


def start(counts: dict[str, int], layers: int, classes: int, width: int, seed: int) -> State:
    """The first state for `counts`, kind -> R. Classifiers are zero; keys, values and queries are one draw, the same for all layers and rates."""
    parameters: dict[str, Any] = {}
    for kind, count in counts.items():
        first = {"weights": jnp.zeros((classes, width)), "bias": jnp.zeros(classes)}
        if kind == "attention":
            heads = head_count(width)
            keys, shape = jax.random.split(jax.random.key(seed), 3), (width, heads, width // heads)
            first |= {"key": width**-0.5 * jax.random.normal(keys[0], shape), "value": width**-0.5 * jax.random.normal(keys[1], shape)}
            first |= {"query": QUERY_DEVIATION * jax.random.normal(keys[2], shape[1:])}
        parameters[kind] = jax.tree.map(lambda x, count=count: jnp.tile(x, (layers, count, *(1,) * x.ndim)), first)
    return State(parameters, jax.tree.map(jnp.zeros_like, parameters))


def head_count(width: int) -> int:
    """Heads of the attention probe: the largest number up to 12 that divides the width."""
    return next(heads for heads in range(min(HEADS, width), 0, -1) if width % heads == 0)


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rate at a step, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


@functools.partial(jax.jit, donate_argnums=0)
def update(
    state: State, moments: dict[str, Moments], features: AnyArray, labels_B: AnyArray, rates: dict[str, AnyArray]
) -> tuple[State, dict[str, tuple[Array, Array]]]:
    """Make one step on features [L, B, D] or [L, B, S, D].

    Returns the new state and kind -> (mean nats, number of correct predictions), each [L, R] over the batch, before the step. `rates` is kind -> learning
    rates of this step, [R] or, if each layer has its own, [L, R].
    """
    inputs = prepare(moments, features)

    def loss(parameters):
        logits = {kind: _logits(parameters[kind], inputs[kind]) for kind in parameters}
        nats = {kind: _nats(logits[kind], labels_B).mean(axis=2) for kind in logits}
        correct = {kind: (logits[kind].argmax(axis=-1) == labels_B).sum(axis=2) for kind in logits}
        # no probe's loss depends on the parameters of another, so the gradient of the sum is the gradient of each
        return sum(loss_LR.sum() for loss_LR in nats.values()), {kind: (nats[kind], correct[kind]) for kind in nats}

    gradients, measured = jax.grad(loss, has_aux=True)(state.parameters)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, state.velocity, gradients)
    parameters = {}
    for kind, rates_LR in rates.items():
        scaled = rates_LR / (features.shape[-1] if kind == "attention" else 1)
        step = functools.partial(jax.tree.map, lambda p, v, rate=scaled: p - rate.reshape(*rate.shape, *(1,) * (p.ndim - 2)) * v)
        parameters[kind] = step(state.parameters[kind], velocity[kind])
    return State(parameters, velocity), measured


@jax.jit
def predict(parameters: dict[str, Any], moments: dict[str, Moments], features: AnyArray, labels_B: AnyArray) -> dict[str, tuple[Array, Array]]:
    """Kind -> (most likely class int [L, R, B], nats [L, R, B]) of features [L, B, D] or [L, B, S, D]."""
    inputs = prepare(moments, features)
    logits = {kind: _logits(parameters[kind], inputs[kind]) for kind in parameters}
    return {kind: (logits[kind].argmax(axis=-1), _nats(logits[kind], labels_B)) for kind in logits}


def prepare(moments: dict[str, Moments], features: AnyArray) -> dict[str, Array]:
    """Kind -> standardised features: [L, B, D] of length about one for `mean`, [L, B, S, D] for `attention`."""
    inputs = {}
    for kind, (mean_LD, scale_LD) in moments.items():
        x: Any = features.astype(jnp.float32)
        if kind == "mean":
            x = x.mean(axis=2) if x.ndim == 4 else x
            scale_LD = scale_LD / math.sqrt(x.shape[-1])
        axes = tuple(range(1, x.ndim - 1))
        inputs[kind] = (x - jnp.expand_dims(mean_LD, axes)) * jnp.expand_dims(scale_LD, axes)
    return inputs


class RunningMoments:
    """Means and deviations of the features of each kind, accumulated block by block in float64."""

    def __init__(self, kinds: Iterable[str]):
        self.count = dict.fromkeys(kinds, 0)
        self.mean: dict[str, np.ndarray] = {}
        self.square: dict[str, np.ndarray] = {}

    def add(self, features: np.ndarray) -> None:
        """Add a block [L, n, D] or [L, n, S, D]. Blocks are merged as in Chan et al. 1979, which stays accurate if the mean is large."""
        for kind in self.count:
            block = features.astype(np.float32)
            if block.ndim == 4:
                block = block.mean(axis=2) if kind == "mean" else block.reshape(len(block), -1, block.shape[-1])
            count, mean = block.shape[1], block.mean(axis=1, dtype=np.float64)
            square = np.square(block - mean[:, None].astype(np.float32)).sum(axis=1, dtype=np.float64)
            if not self.count[kind]:
                self.count[kind], self.mean[kind], self.square[kind] = count, mean, square
                continue
            total, difference = self.count[kind] + count, mean - self.mean[kind]
            self.square[kind] += square + np.square(difference) * (self.count[kind] * count / total)
            self.mean[kind] += difference * (count / total)
            self.count[kind] = total

    def moments(self) -> dict[str, Moments]:
        """Kind -> Moments; a constant feature has scale 1. Raises ValueError if the features are not finite."""
        moments = {}
        for kind, mean in self.mean.items():
            if not np.isfinite(mean).all():
                raise ValueError("the features are not finite: write them again with --dtype=float32")
            deviation = np.sqrt(self.square[kind] / self.count[kind])
            deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1)
            moments[kind] = Moments(mean.astype(np.float32), (1 / deviation).astype(np.float32))
        return moments


def _logits(parameters: dict[str, Any], x: AnyArray) -> Array:
    """Logits [L, R, B, C] of features [L, B, D], or by attention of [L, B, S, D].

    The key map is applied to the query, and the value map after the softmax. The result is the same, with 2 B S N D products instead of 2 B S D^2.
    """
    if "query" in parameters:
        query_LRND = _einsum("lrdnk,lrnk->lrnd", parameters["key"], parameters["query"]) * parameters["query"].shape[-1] ** -0.5
        weights_LRBNS = jax.nn.softmax(_einsum("lbsd,lrnd->lrbns", x, query_LRND), axis=-1)
        gathered_LRBND = _einsum("lrbns,lbsd->lrbnd", weights_LRBNS, x)
        pooled_LRBNK = _einsum("lrbnd,lrdnk->lrbnk", gathered_LRBND, parameters["value"])
        pooled_LRBD = pooled_LRBNK.reshape(*pooled_LRBNK.shape[:3], -1)
        return _einsum("lrbd,lrcd->lrbc", pooled_LRBD, parameters["weights"]) + parameters["bias"][:, :, None]
    return _einsum("lbd,lrcd->lrbc", x, parameters["weights"]) + parameters["bias"][:, :, None]


def _nats(logits_LRBC: Array, labels_B: AnyArray) -> Array:
    """Cross-entropy [L, R, B]."""
    chosen = jnp.take_along_axis(logits_LRBC, labels_B[None, None, :, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_LRBC, axis=-1) - chosen
