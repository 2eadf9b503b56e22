"""Fill a region of images with a causal model, by sequential Monte Carlo: known codes after a missing one weigh what was drawn for it.

Each of M particles draws the missing codes in order, from the codes before them, and takes the known ones as they are. The logarithm of a known code's
probability is added to its particle's weight. Where the effective sample size, 1 / (sum of squared weights), is below M / 2, particles are drawn anew in
proportion to their weights. One particle, drawn by the last weights, is the picture. Its distribution approaches the model's own, given all known
codes, as M grows (Doucet and Johansen 2009, "A Tutorial on Particle Filtering and Smoothing"). With M = 1 the codes after the region have no effect.

I images, B pictures (several completions of an image are several pictures), M particles of a picture, R = B * M, S sequence, V palette,
Q positions that are drawn together: one, or those of a block (`config.block`).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.model.objectives import cross_entropy
from igpt_jax.model.transformer import Caches, ImageGPT
from igpt_jax.sampling.decode import Choice, Prompts, begin_loop, choose, draw_noise, fold_in, grow_caches, stretches
from igpt_jax.sampling.placement import select_rows
from igpt_jax.types import AnyArray, Array

Particles = tuple[Array, Caches, Array]  # codes int32 [R, S], their caches, logarithms of their weights float32 [B, M]


@partial(jax.jit, static_argnames="particles")
def fill_by_particles(
    model: ImageGPT, prompts: Prompts, codes_IS: AnyArray, mask_IS: AnyArray, image_B: AnyArray, keys_B: Array, choice: Choice, particles: int
) -> tuple[Array, Array, Array]:
    """Fill the masked positions (mask = 1) of image `image_B` for each picture. `prompts` are the known codes before all gaps.

    Returns the codes of all particles, int32 [B, M, S], the logarithms of their weights, float32 [B, M], and which particle is the picture, int32 [B].
    `choice` says how missing codes are drawn; known ones weigh by the model's own probabilities, at temperature 1 and of all colours.
    """
    config, decoder = model.config, model.decoder()
    given_BS, mask_BS = (select_rows(x, image_B) for x in (codes_IS, mask_IS))
    blocks_Q, shape, size = jnp.asarray(config.positions_of_blocks()), (len(given_BS), particles), config.block**2  # blocks of one position, if not of more

    def step(number: Array, carry: Particles) -> Particles:
        codes_RS, caches, weights_BM = carry
        before_RQ, positions_Q = codes_RS[:, blocks_Q[number - 1]], blocks_Q[number]
        if config.block > 1:
            logits, caches = model.decode_block(before_RQ, number, caches, decoder)
        else:
            logits, caches = model.decode(before_RQ[:, 0], number, caches, decoder)
        logits_BMQV, known_B1Q = logits.reshape(*shape, size, -1), mask_BS[:, None, positions_Q] == 0
        drawn_BMQ = choose(logits_BMQV, draw_noise(fold_in(keys_B, number), logits_BMQV.shape[1:]), choice)
        codes_BMQ = jnp.where(known_B1Q, given_BS[:, None, positions_Q], drawn_BMQ)
        weights_BM = weights_BM - jnp.where(known_B1Q, cross_entropy(logits_BMQV, codes_BMQ), 0).sum(axis=-1)
        codes_RS = codes_RS.at[:, positions_Q].set(codes_BMQ.reshape(-1, size))
        return resample(fold_in(keys_B, config.positions + number), (codes_RS, caches, weights_BM))

    carry: Particles = *begin_loop(model, prompts, jnp.repeat(image_B, particles)), jnp.zeros(shape)
    for begin, end in stretches(config, prompts[0].shape[1]):
        carry = jax.lax.fori_loop(begin // size, end // size, step, (carry[0], grow_caches(carry[1], end), carry[2]))
    codes_RS, _, weights_BM = carry
    return codes_RS.reshape(*shape, -1), weights_BM, jax.vmap(jax.random.categorical)(fold_in(keys_B, 2 * config.positions), weights_BM)


def resample(keys_B: Array, carry: Particles) -> Particles:
    """Draw the particles of a picture anew (systematic resampling) where the effective sample size is below half of their number.

    Codes and caches are copied at a step at which some picture needs it, and stay where they are at all others.
    """
    weights_BM = carry[2]
    shares_BM = jax.nn.softmax(weights_BM, axis=1)
    count = shares_BM.shape[1]
    few_B = effective(shares_BM) < count / 2

    def draw(key: Array, shares_M: Array) -> Array:
        sums_M = jnp.cumsum(shares_M)
        points_M = (jax.random.uniform(key) + jnp.arange(count)) / count
        return jnp.minimum(jnp.searchsorted(sums_M / sums_M[-1], points_M, side="right"), count - 1)  # a point may round to 1

    def gather(carry: Particles) -> Particles:
        source_BM = jnp.where(few_B[:, None], jax.vmap(draw)(keys_B, shares_BM), jnp.arange(count))
        codes_RS, caches = jax.tree.map(lambda x: jax.vmap(lambda x, m: x[m])(x.reshape(-1, count, *x.shape[1:]), source_BM).reshape(x.shape), carry[:2])
        return codes_RS, caches, jnp.where(few_B[:, None], 0, carry[2])

    return jax.lax.cond(few_B.any(), gather, lambda carry: carry, carry)


def effective(shares_BM: Array) -> Array:
    """Return the effective sample size of weights that sum to 1, [B]: from 1, one has all the weight, to M."""
    return 1 / (shares_BM**2).sum(axis=1)


def survivors(codes_BMS: np.ndarray, weights_BM: np.ndarray) -> np.ndarray:
    """Return the effective number of different particles of each picture at the end, float [B]: equal ones count as one, with the sum of their weights."""
    shares_BM = np.exp(weights_BM.astype(float) - weights_BM.max(axis=1, keepdims=True))
    shares_BM /= shares_BM.sum(axis=1, keepdims=True)
    kinds = [np.unique(codes_MS, axis=0, return_inverse=True)[1].reshape(-1) for codes_MS in codes_BMS]
    return np.array([1 / (np.bincount(kind_M, shares_M) ** 2).sum() for kind_M, shares_M in zip(kinds, shares_BM, strict=True)])
