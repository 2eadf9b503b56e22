"""Multinomial logistic regression by L-BFGS on the device: many data sets and many values of C (scikit-learn's inverse regularisation) side by side.

The objective is that of scikit-learn's LogisticRegression(solver="lbfgs"). Suffixes: B images, D features, C classes; L data sets, each with R values of C;
E coordinates, which are those of the features along the principal axes, one for the intercept, and zeros up to a multiple of ALIGNMENT.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from igpt_jax.types import AnyArray, Array

TOLERANCE = 1e-6  # largest entry of the gradient of the mean loss at the end; scikit-learn's tol
ITERATIONS = 1000
HISTORY = 10  # pairs in the memory of L-BFGS, as in scipy
ALIGNMENT = 4  # float32 numbers; rows that begin at multiples of 16 bytes have faster matrix products on GPUs


class Fit(NamedTuple):
    """The result of `fit_logistic`."""

    weights: Array  # [L, R, C, D + 1], the intercept last
    steps: Array  # int [L, R]
    converged: Array  # bool [L, R]


def fit_logistic(
    features_LBD: AnyArray, labels_LB: AnyArray, start_LRCE: AnyArray, C_LR: AnyArray, tolerance: float = TOLERANCE, iterations: int = ITERATIONS
) -> Fit:
    """Minimise, for each data set and each C, the sum of cross entropies + |weights|^2 / (2 C). The intercept is not penalised.

    Features must be standardised. L-BFGS works in the coordinates of the principal axes. There the Hessian is nearly diagonal, which takes several times
    fewer steps than the features' own coordinates, and the penalty is the same because a rotation preserves lengths. All problems advance together; a
    problem that has converged makes steps of length zero. `start_LRCE` [L, R, C, D + 1] are the first weights: zeros, or those of an earlier fit.
    """
    return _compiled(jax.default_backend())(features_LBD, labels_LB, start_LRCE, C_LR, tolerance, iterations)


@functools.cache
def _compiled(platform: str) -> Callable[..., Fit]:
    """The jitted fit. On GPUs its products are those of cuBLAS: to try Triton's takes 20 s for each shape, and these programs run for seconds."""
    options = {"xla_gpu_enable_triton_gemm": False} if platform == "gpu" else None
    return jax.jit(_fit, static_argnames="iterations", compiler_options=options)


def _fit(features_LBD: Array, labels_LB: Array, start_LRCE: Array, C_LR: Array, tolerance: float, iterations: int) -> Fit:
    images, classes = labels_LB.shape[1], start_LRCE.shape[2]
    spread_LE, axes_LDE = _principal_axes(features_LBD)
    axes = spread_LE.shape[1]
    ones_LB1 = jnp.ones_like(features_LBD[..., :1])
    problem = _Problem(
        features=_aligned(_einsum("lbd,lde->lbe", features_LBD, axes_LDE), ones_LB1),
        targets=jax.nn.one_hot(labels_LB, classes, axis=1)[:, None],
        penalty=_aligned(jnp.ones_like(spread_LE[0]), jnp.zeros(1)) / (C_LR * images)[..., None, None],
        spread=_aligned(spread_LE, jnp.ones_like(spread_LE[:, :1]))[:, None, None],
    )
    start = _aligned(_einsum("lrcd,lde->lrce", start_LRCE[..., :-1], axes_LDE), start_LRCE[..., -1:])
    state = _minimise(problem, start, tolerance, iterations)
    found, intercept = state.weights[..., :axes], state.weights[..., axes : axes + 1]
    weights = jnp.concatenate([_einsum("lrce,lde->lrcd", found, axes_LDE), intercept], axis=-1)
    return Fit(weights, state.steps, ~state.active)


@jax.jit
def predict(weights_LRCE: AnyArray, features_LBD: AnyArray) -> Array:
    """The most likely class of each image, int [L, R, B]."""
    logits = _einsum("lrcd,lbd->lrcb", weights_LRCE[..., :-1], features_LBD) + weights_LRCE[..., -1:]
    return logits.argmax(axis=2)


class _Problem(NamedTuple):
    features: Array  # [L, B, E]: along the principal axes, then a one
    targets: Array  # [L, 1, C, B]
    penalty: Array  # [L, R, 1, E]: of the mean loss; 0 for the intercept
    spread: Array  # [L, 1, 1, E]: mean square of each feature


class _State(NamedTuple):
    iteration: Array | int
    weights: Array  # [L, R, C, E]
    logits: Array  # [L, R, C, B], updated by addition, so that a step costs one product with the features, and its gradient another
    gradient: Array  # [L, R, C, E] of the mean loss
    curvature: Array  # [L, R, C]: mean of p (1 - p)
    moves: Array  # [HISTORY, L, R, C, E]: steps in the weights, the newest last
    changes: Array  # [HISTORY, L, R, C, E]: of the gradient in these steps
    inverses: Array  # [HISTORY, L, R]: 1 / (move . change), 0 for an unused entry
    active: Array  # bool [L, R]: not converged
    steps: Array  # int [L, R]


def _aligned(along_axes: Array, intercept: AnyArray) -> Array:
    """Append the intercept's entry, and zeros, which stay zeros: their gradient is zero."""
    zeros = jnp.zeros((*along_axes.shape[:-1], -(along_axes.shape[-1] + 1) % ALIGNMENT))
    return jnp.concatenate([along_axes, intercept, zeros], axis=-1)


# By default GPUs and TPUs round the factors of a float32 product, and then L-BFGS stalls.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _principal_axes(features_LBD: AnyArray) -> tuple[Array, Array]:
    """Mean squares [L, E] along the principal axes, and the axes [L, D, E]. E is min(B, D), because the best weights lie in the span of the images."""
    _, images, width = features_LBD.shape
    if width <= images:
        spread, axes = jnp.linalg.eigh(_einsum("lbd,lbe->lde", features_LBD, features_LBD) / images)
        return jnp.maximum(spread, 0), axes
    spread, scores = jnp.linalg.eigh(_einsum("lbd,lcd->lbc", features_LBD, features_LBD) / images)
    real = spread > 1e-6 * spread[:, -1:]
    scale = jnp.where(real, jax.lax.rsqrt(jnp.where(real, spread, 1) * images), 0)
    return jnp.where(real, spread, 0), _einsum("lbd,lbe->lde", features_LBD, scores) * scale[:, None]


def _minimise(problem: _Problem, start: Array, tolerance: float, iterations: int) -> _State:
    logits = _einsum("lrce,lbe->lrcb", start, problem.features)
    gradient, curvature = _gradient(problem, start, logits)
    problems, nothing = start.shape[:2], jnp.zeros((HISTORY, *start.shape))
    active = jnp.abs(gradient).max(axis=(2, 3)) > tolerance
    steps = jnp.zeros(problems, int)
    state = _State(0, start, logits, gradient, curvature, nothing, nothing, jnp.zeros((HISTORY, *problems)), active, steps)
    return jax.lax.while_loop(lambda s: (s.iteration < iterations) & s.active.any(), lambda s: _advance(problem, s, tolerance), state)


def _advance(problem: _Problem, state: _State, tolerance: float) -> _State:
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
        state.iteration + 1,
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


def _gradient(problem: _Problem, weights: Array, logits: Array) -> tuple[Array, Array]:
    """Gradient of the mean loss, and the mean of p (1 - p) of each class."""
    p = jax.nn.softmax(logits, axis=2)
    images = logits.shape[-1]
    gradient = _einsum("lrcb,lbe->lrce", p - problem.targets, problem.features) / images + problem.penalty * weights
    return gradient, _einsum("lrcb,lrcb->lrc", p, 1 - p) / images


def _direction(problem: _Problem, state: _State) -> Array:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4), with an approximate Hessian: curvature times spread, plus penalty."""
    inverse_hessian = 1 / (jnp.maximum(state.curvature, 1e-6)[..., None] * problem.spread + problem.penalty + 1e-12)
    history = (state.moves, state.changes, state.inverses)

    def descend(q, pair):
        move, change, inverse = pair
        share = inverse * _dot(move, q)
        return q - share[..., None, None] * change, share

    def ascend(q, pair):
        move, change, inverse, share = pair
        return q + (share - inverse * _dot(change, q))[..., None, None] * move, None

    # with a scan instead of a Python loop the program compiles several times faster
    q, shares = jax.lax.scan(descend, state.gradient, history, reverse=True)
    latest = state.changes[-1]
    scale = jnp.where(state.inverses[-1] > 0, state.inverses[-1] * _dot(latest * inverse_hessian, latest), 1)
    q = inverse_hessian * q / jnp.where(scale > 0, scale, 1)[..., None, None]
    q, _ = jax.lax.scan(ascend, q, (*history, shares))
    return -q


def _search(problem: _Problem, state: _State, direction: Array, along: Array, slope: Array) -> Array:
    """Step length [L, R] at which the slope has fallen to half of `slope`; 0 if `slope` is no descent.

    Newton's method on the line, within a bracket. The logits along the line (`along`) are known, so a trial needs no product with the features. Only slopes
    are compared: near the minimum the difference of two losses is below float32's precision, and on a convex line the slope is enough.
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


def _dot(a: Array, b: Array) -> Array:
    return _einsum("lrce,lrce->lr", a, b)
