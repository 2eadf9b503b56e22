"""How long the probes will take, said before they begin: from their sizes, and for L-BFGS from the speed of one matrix product on this device."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from igpt_jax.probing.splits import Splits

STEPS = 400  # of L-BFGS until the slowest value of C converges: 97 on the pixels of 1,294 digits, 1,000 (the limit) on 3,000 images of Fashion-MNIST
MEASURED, TURNS = 4096, 5  # images in the product that is timed, and how often: the fastest counts


def lbfgs_seconds(splits: Splits, widths: Sequence[int], rates: int) -> float:
    """Estimate the seconds of fits on features of these widths, each with `rates` values of C: a step is two products with the features."""
    images, logits = len(splits.labels["train"]), rates * splits.classes
    return sum(2 * STEPS * _product_seconds(images, width, logits) for width in widths)


def _product_seconds(images: int, width: int, logits: int) -> float:
    """Time a product [logits, width] x [width, images] of float32, on at most MEASURED images."""
    count = min(images, MEASURED)
    features, weights = jnp.ones((count, width)), jnp.ones((logits, width))
    product = jax.jit(lambda weights, features: jnp.einsum("re,be->rb", weights, features, precision=jax.lax.Precision.HIGHEST))
    product(weights, features).block_until_ready()  # compiles
    seconds = []
    for _ in range(TURNS):
        started = time.perf_counter()
        product(weights, features).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return min(seconds) * images / count
