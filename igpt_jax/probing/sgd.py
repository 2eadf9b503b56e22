"""Probes trained by stochastic gradient descent: momentum 0.9, cosine to zero, no weight decay (paper 2.6). Pure functions; no file is touched.

Suffixes: L layers, R learning rates, B images, S positions, D width, C classes, N heads, K = D / N. All L x R probes see the same batches, side by side.
Two kinds, trained together where all positions are given:
- `mean`: features averaged over positions, standardised and divided by sqrt(D), then a linear classifier. An image's features then have squared length
  one on average, so the loss bends no more at any width, and a learning rate means the same at any width.
- `attention`: AIM's attentive probe (El-Nouby et al. 2024, 3.4; AttentionPoolingClassifier of apple/ml-aim): keys and values are linear maps [D, N, K]
  without bias of the standardised features (there a batch norm without parameters), each of N heads has one learned query [K], a softmax over positions
  weighs the values, and a linear classifier reads the N * K = D numbers. N is 12, AIM's number, or the next fewer that divides D.
  D^2 keys + D^2 values + D queries + C (D + 1) parameters. Its rates are divided by D, which does for maps of D inputs what the division of `mean` does.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOMENTUM = 0.9
HEADS = 12
QUERY_DEVIATION = 0.02  # of the initial queries, AIM's
# GPUs and TPUs round the factors of a float32 product unless told otherwise.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Moments(NamedTuple):
    """How to standardise one kind's features: (features - mean) * scale, both float32 [L, D]."""

    mean: Any
    scale: Any


class State(NamedTuple):
    """What one step changes; each a dict kind -> dict of arrays that begin with [L, R]."""

    parameters: dict
    velocity: dict


def start(counts: dict, layers: int, classes: int, width: int, seed: int) -> State:
    """The first state for `counts`, kind -> R. Classifiers are zero; keys, values and queries are one draw for all layers and rates."""
    parameters = {}
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
    """Heads of the attention probe: the most up to 12 that divide the width."""
    return next(heads for heads in range(min(HEADS, width), 0, -1) if width % heads == 0)


def cosine(step: int, steps: int) -> float:
    """Share of the learning rate at a step, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


@functools.partial(jax.jit, donate_argnums=0)
def update(state: State, moments: dict, features, labels_B, rates: dict):
    """One step on features [L, B, D] or [L, B, S, D]: (new state, {kind: (nats, right answers)}), each [L, R] over the batch before the step.

    `moments` is kind -> Moments, `rates` kind -> learning rates [R] of this step.
    """
    inputs = prepare(moments, features)

    def loss(parameters):
        logits = {kind: _logits(parameters[kind], inputs[kind]) for kind in parameters}
        nats = {kind: _nats(logits[kind], labels_B).mean(axis=2) for kind in logits}
        right = {kind: (logits[kind].argmax(axis=-1) == labels_B).sum(axis=2) for kind in logits}
        # no probe's loss depends on another's parameters: the gradient of the sum is each one's own
        return sum(each.sum() for each in nats.values()), {kind: (nats[kind], right[kind]) for kind in nats}

    gradients, measured = jax.grad(loss, has_aux=True)(state.parameters)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, state.velocity, gradients)
    parameters = {}
    for kind, some in rates.items():
        scaled = some / (features.shape[-1] if kind == "attention" else 1)
        step = functools.partial(jax.tree.map, lambda p, v, rate=scaled: p - rate.reshape(-1, *(1,) * (p.ndim - 2)) * v)
        parameters[kind] = step(state.parameters[kind], velocity[kind])
    return State(parameters, velocity), measured


@jax.jit
def predict(parameters: dict, moments: dict, features, labels_B):
    """Kind -> (likeliest class int [L, R, B], nats [L, R, B]) of features [L, B, D] or [L, B, S, D]."""
    inputs = prepare(moments, features)
    logits = {kind: _logits(parameters[kind], inputs[kind]) for kind in parameters}
    return {kind: (logits[kind].argmax(axis=-1), _nats(logits[kind], labels_B)) for kind in logits}


def prepare(moments: dict, features) -> dict:
    """Kind -> standardised features: [L, B, D] of length about one for `mean`, [L, B, S, D] for `attention`."""
    inputs = {}
    for kind, (mean_LD, scale_LD) in moments.items():
        x = features.astype(jnp.float32)
        if kind == "mean":
            x = x.mean(axis=2) if x.ndim == 4 else x
            scale_LD = scale_LD / math.sqrt(x.shape[-1])
        axes = tuple(range(1, x.ndim - 1))
        inputs[kind] = (x - jnp.expand_dims(mean_LD, axes)) * jnp.expand_dims(scale_LD, axes)
    return inputs


class RunningMoments:
    """Mean and deviation over the images of kind -> features [L, n, ..., D], gathered block by block in float64."""

    def __init__(self, kinds):
        self.count = dict.fromkeys(kinds, 0)
        self.mean: dict = {}
        self.square: dict = {}

    def add(self, features: np.ndarray) -> None:
        """Count a block [L, n, D] or [L, n, S, D]; merged as Chan et al. 1979 do, which loses nothing where the mean is large."""
        for kind in self.count:
            block = features.astype(np.float32)
            if block.ndim == 4:
                block = block.mean(axis=2) if kind == "mean" else block.reshape(len(block), -1, block.shape[-1])
            count, mean = block.shape[1], block.mean(axis=1, dtype=np.float64)
            square = np.square(block - mean[:, None].astype(np.float32)).sum(axis=1, dtype=np.float64)
            if not self.count[kind]:
                self.count[kind], self.mean[kind], self.square[kind] = count, mean, square
                continue
            total, apart = self.count[kind] + count, mean - self.mean[kind]
            self.square[kind] += square + np.square(apart) * (self.count[kind] * count / total)
            self.mean[kind] += apart * (count / total)
            self.count[kind] = total

    def moments(self) -> dict:
        """Kind -> Moments; a constant feature has scale 1. ValueError where the features are not finite."""
        found = {}
        for kind, mean in self.mean.items():
            if not np.isfinite(mean).all():
                raise ValueError("the features are not finite: write them again with --dtype=float32")
            deviation = np.sqrt(self.square[kind] / self.count[kind])
            deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1)
            found[kind] = Moments(mean.astype(np.float32), (1 / deviation).astype(np.float32))
        return found


def _logits(parameters, x):
    """Scores [L, R, B, C] of features [L, B, D], or of [L, B, S, D] through attention.

    The key map is led over to the query and the value map behind the softmax, which changes nothing but the work: 2 B S N D and not 2 B S D^2 products.
    """
    if "query" in parameters:
        question_LRND = _einsum("lrdnk,lrnk->lrnd", parameters["key"], parameters["query"]) * parameters["query"].shape[-1] ** -0.5
        weights_LRBNS = jax.nn.softmax(_einsum("lbsd,lrnd->lrbns", x, question_LRND), axis=-1)
        gathered_LRBND = _einsum("lrbns,lbsd->lrbnd", weights_LRBNS, x)
        pooled_LRBNK = _einsum("lrbnd,lrdnk->lrbnk", gathered_LRBND, parameters["value"])
        pooled_LRBD = pooled_LRBNK.reshape(*pooled_LRBNK.shape[:3], -1)
        return _einsum("lrbd,lrcd->lrbc", pooled_LRBD, parameters["weights"]) + parameters["bias"][:, :, None]
    return _einsum("lbd,lrcd->lrbc", x, parameters["weights"]) + parameters["bias"][:, :, None]


def _nats(logits_LRBC, labels_B):
    """Cross-entropy [L, R, B]."""
    chosen = jnp.take_along_axis(logits_LRBC, labels_B[None, None, :, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_LRBC, axis=-1) - chosen
