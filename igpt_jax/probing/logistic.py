"""Multinomial logistic regression by L-BFGS on the device: many data sets and many values of C side by side (scikit-learn's inverse regularisation).

The objective is that of scikit-learn's LogisticRegression(solver="lbfgs"). B images, D features, C classes; L data sets, each with R values of C;
E is D along the principal axes plus one for the intercept.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

TOLERANCE = 1e-6  # largest entry of the gradient of the mean loss at the end; what scikit-learn calls tol
ITERATIONS = 1000
HISTORY = 10  # pairs that L-BFGS remembers, as scipy's


class Fit(NamedTuple):
    """What `fit_logistic` found."""

    weights: Any  # [L, R, C, D + 1], the intercept last
    steps: Any  # int [L, R]
    converged: Any  # bool [L, R]


@functools.partial(jax.jit, static_argnames="iterations")
def fit_logistic(features_LBD, labels_LB, start_LRCE, C_LR, tolerance=TOLERANCE, iterations=ITERATIONS) -> Fit:
    """Minimise, for each probe and each C, sum of cross entropies + |weights|^2 / (2 C); the intercept is free.

    Features must be standardised. L-BFGS works in the coordinates of the principal axes: there the Hessian is nearly diagonal, which takes
    several times fewer steps than in the features' own, and the penalty is the same because a rotation keeps lengths. All problems advance
    together; one that is done takes steps of length zero. `start_LRCE` [L, R, C, D + 1] is where to begin, zeros or earlier weights.
    """
    images, classes = labels_LB.shape[1], start_LRCE.shape[2]
    spread_LE, axes_LDE = _principal_axes(features_LBD)
    one = jnp.ones_like(features_LBD[..., :1])
    problem = _Problem(
        features=jnp.concatenate([_einsum("lbd,lde->lbe", features_LBD, axes_LDE), one], axis=-1),
        targets=jax.nn.one_hot(labels_LB, classes, axis=1)[:, None],
        penalty=jnp.append(jnp.ones_like(spread_LE[0]), 0.0) / (C_LR * images)[..., None, None],
        spread=jnp.concatenate([spread_LE, jnp.ones_like(spread_LE[:, :1])], axis=1)[:, None, None],
    )
    start = jnp.concatenate([_einsum("lrcd,lde->lrce", start_LRCE[..., :-1], axes_LDE), start_LRCE[..., -1:]], axis=-1)
    state = _minimise(problem, start, tolerance, iterations)
    weights = jnp.concatenate([_einsum("lrce,lde->lrcd", state.weights[..., :-1], axes_LDE), state.weights[..., -1:]], axis=-1)
    return Fit(weights, state.steps, ~state.active)


@jax.jit
def predict(weights_LRCE, features_LBD):
    """The likeliest class of each image, int [L, R, B]."""
    logits = _einsum("lrcd,lbd->lrcb", weights_LRCE[..., :-1], features_LBD) + weights_LRCE[..., -1:]
    return logits.argmax(axis=2)


class _Problem(NamedTuple):
    features: Any  # [L, B, E]: along the principal axes, then a one
    targets: Any  # [L, 1, C, B]
    penalty: Any  # [L, R, 1, E]: of the mean loss; 0 for the intercept
    spread: Any  # [L, 1, 1, E]: mean square of each feature


class _State(NamedTuple):
    count: Any
    weights: Any  # [L, R, C, E]
    logits: Any  # [L, R, C, B], kept up to date by adding, so that a step costs one product with the features and its gradient another
    gradient: Any  # [L, R, C, E] of the mean loss
    curvature: Any  # [L, R, C]: mean of p (1 - p)
    moves: Any  # [HISTORY, L, R, C, E]: steps in the weights, the newest last
    changes: Any  # [HISTORY, L, R, C, E]: of the gradient along them
    inverses: Any  # [HISTORY, L, R]: 1 / (move . change), 0 for an unused entry
    active: Any  # bool [L, R]
    steps: Any  # int [L, R]


# GPUs and TPUs round the factors of a float32 product unless told otherwise, and L-BFGS then stalls.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _principal_axes(features_LBD):
    """Mean squares [L, E] along the principal axes, and the axes [L, D, E], E = min(B, D): the best weights lie in the images' span."""
    _, images, width = features_LBD.shape
    if width <= images:
        spread, axes = jnp.linalg.eigh(_einsum("lbd,lbe->lde", features_LBD, features_LBD) / images)
        return jnp.maximum(spread, 0), axes
    spread, scores = jnp.linalg.eigh(_einsum("lbd,lcd->lbc", features_LBD, features_LBD) / images)
    real = spread > 1e-6 * spread[:, -1:]
    scale = jnp.where(real, jax.lax.rsqrt(jnp.where(real, spread, 1) * images), 0)
    return jnp.where(real, spread, 0), _einsum("lbd,lbe->lde", features_LBD, scores) * scale[:, None]


def _minimise(problem, start, tolerance, iterations):
    logits = _einsum("lrce,lbe->lrcb", start, problem.features)
    gradient, curvature = _gradient(problem, start, logits)
    problems, nothing = start.shape[:2], jnp.zeros((HISTORY, *start.shape))
    active = jnp.abs(gradient).max(axis=(2, 3)) > tolerance
    steps = jnp.zeros(problems, int)
    state = _State(0, start, logits, gradient, curvature, nothing, nothing, jnp.zeros((HISTORY, *problems)), active, steps)
    return jax.lax.while_loop(lambda s: (s.count < iterations) & s.active.any(), lambda s: _advance(problem, s, tolerance), state)


def _advance(problem, state, tolerance):
    direction = _direction(problem, state)
    slope = jnp.where(state.active, _dot(state.gradient, direction), 0)
    along = _einsum("lrce,lbe->lrcb", direction, problem.features)
    length = _search(problem, state, direction, along, slope)[..., None, None]
    move = length * direction
    weights, logits = state.weights + move, state.logits + length * along
    gradient, curvature = _gradient(problem, weights, logits)
    change = gradient - state.gradient
    product = _dot(move, change)
    inverse = jnp.where(product > 0, 1 / jnp.where(product > 0, product, 1), 0)
    return _State(
        state.count + 1,
        weights,
        logits,
        gradient,
        curvature,
        moves=jnp.concatenate([state.moves[1:], move[None]]),
        changes=jnp.concatenate([state.changes[1:], change[None]]),
        inverses=jnp.concatenate([state.inverses[1:], inverse[None]]),
        active=state.active & (jnp.abs(gradient).max(axis=(2, 3)) > tolerance),
        steps=state.steps + state.active,
    )


def _gradient(problem, weights, logits):
    """Gradient of the mean loss, and the mean of p (1 - p) of each class."""
    p = jax.nn.softmax(logits, axis=2)
    images = logits.shape[-1]
    gradient = _einsum("lrcb,lbe->lrce", p - problem.targets, problem.features) / images + problem.penalty * weights
    return gradient, _einsum("lrcb,lrcb->lrc", p, 1 - p) / images


def _direction(problem, state):
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4) from an approximate Hessian, curvature times spread plus penalty."""
    inverse_hessian = 1 / (jnp.maximum(state.curvature, 1e-6)[..., None] * problem.spread + problem.penalty + 1e-12)
    history = (state.moves, state.changes, state.inverses)

    def descend(q, pair):
        move, change, inverse = pair
        share = inverse * _dot(move, q)
        return q - share[..., None, None] * change, share

    def ascend(q, pair):
        move, change, inverse, share = pair
        return q + (share - inverse * _dot(change, q))[..., None, None] * move, None

    # a scan and not a Python loop: the program compiles several times faster
    q, shares = jax.lax.scan(descend, state.gradient, history, reverse=True)
    latest = state.changes[-1]
    scale = jnp.where(state.inverses[-1] > 0, state.inverses[-1] * _dot(latest * inverse_hessian, latest), 1)
    q = inverse_hessian * q / jnp.where(scale > 0, scale, 1)[..., None, None]
    q, _ = jax.lax.scan(ascend, q, (*history, shares))
    return -q


def _search(problem, state, direction, along, slope):
    """Step length [L, R] at which the slope has fallen to half; 0 where there is no descent.

    Newton's method on the line, kept inside a bracket. The logits along it are known, so a trial costs no product with the features. It
    looks at slopes alone: near the minimum float32 cannot tell two losses apart, and on a convex line the slope says as much.
    """
    images = along.shape[-1]
    bend, push = _dot(problem.penalty * direction, direction), _dot(problem.penalty * state.weights, direction)

    def attempt(carry):
        count, length, low, high, done = carry
        p = jax.nn.softmax(state.logits + length[..., None, None] * along, axis=2)
        mean = (p * along).sum(axis=2)
        first = _einsum("lrcb,lrcb->lr", p - problem.targets, along) / images + push + length * bend
        second = (_einsum("lrcb,lrcb->lr", p * along, along) - _einsum("lrb,lrb->lr", mean, mean)) / images + bend
        done = done | (jnp.abs(first) <= 0.5 * jnp.abs(slope))
        low, high = jnp.where(first < 0, length, low), jnp.where(first < 0, high, length)
        middle = jnp.where(jnp.isinf(high), 4 * length, (low + high) / 2)
        newton = length - first / jnp.maximum(second, 1e-30)
        inside = (newton > low) & (newton < jnp.minimum(high, 10 * length))
        return count + 1, jnp.where(done, length, jnp.where(inside, newton, middle)), low, high, done

    carry = (0, jnp.ones_like(slope), jnp.zeros_like(slope), jnp.full_like(slope, jnp.inf), slope >= 0)
    length = jax.lax.while_loop(lambda c: (c[0] < 10) & ~c[-1].all(), attempt, carry)[1]
    return jnp.where(slope < 0, length, 0)


def _dot(a, b):
    return _einsum("lrce,lrce->lr", a, b)
