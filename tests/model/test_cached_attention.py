"""One step's attention to the cache: the kernel for GPUs, interpreted, against the operations of XLA, and these against the whole sequence's attention."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.model import cached_attention as module
from igpt_jax.model.attention import attention
from igpt_jax.model.cached_attention import BLOCK, cached_attention


def draw(positions, size, seed=0):
    """Query, key and value of a new position, and a cache whose later positions are filled too: they must not count."""
    new, keys, values = (jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(seed), 3), _shapes(positions, size), strict=True))
    return new, (keys, values)


def _shapes(positions, size):
    return (2, 3, 4, size), (2, 4, positions, size), (2, 4, positions, size)


@pytest.mark.parametrize(("positions", "size"), [(2 * BLOCK, 64), (BLOCK + 16, 96), (40, 8)])  # whole blocks; lanes and rows beyond the arrays; less than one
def test_the_kernel_computes_what_the_operations_do(positions, size):
    new, cache = draw(positions, size)
    for position in sorted({0, 1, BLOCK - 1, BLOCK, BLOCK + 1, positions - 1} & set(range(positions))):
        wanted, filled = cached_attention(new, cache, jnp.int32(position), kernel=False)
        found, written = cached_attention(new, cache, jnp.int32(position), kernel=True, interpret=True)
        np.testing.assert_allclose(found, wanted, atol=2e-6)
        for ours, theirs in zip(written, filled, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kernel", [False, True])
def test_the_last_position_is_that_of_the_whole_sequence(kernel):
    q, k, v = (jax.random.normal(key, (2, 40, 4, 8)) for key in jax.random.split(jax.random.key(1), 3))
    wanted = attention(q, k, v, causal=True, implementation="reference")[:, 29]
    cache = tuple(x.swapaxes(1, 2).at[:, :, 29:].set(jnp.nan if kernel else 7.0) for x in (k, v))  # the kernel does not even read later positions
    found, _ = cached_attention(jnp.stack([q, k, v], axis=2)[:, 29], cache, jnp.int32(29), kernel, interpret=kernel)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_without_triton_xla_computes_it(monkeypatch):
    new, cache = draw(40, 8)
    wanted, _ = cached_attention(new, cache, jnp.int32(7), kernel=False)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)  # an import of it fails
    module.has_triton.cache_clear()
    found, _ = cached_attention(new, cache, jnp.int32(7), kernel=True)
    module.has_triton.cache_clear()
    np.testing.assert_array_equal(found, wanted)
