"""Attention of one new position to the cached ones before it, a step of sampling: in operations of XLA, or on a GPU as one kernel.

B batch, S positions of the cache, N heads, K head size.
"""

import functools
import importlib
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from igpt_jax.distributed.sharding import per_shard
from igpt_jax.types import Array

Cache: TypeAlias = tuple[Array, Array]  # keys and values of a layer, each [B, N, S, K]
BLOCK = 128  # positions that the kernel reads at once
WARPS = 4


def cached_attention(qkv_B3NK: Array, cache: Cache, position: Array, kernel: bool, interpret: bool = False) -> tuple[Array, Cache]:
    """Return the attention [B, N, K] of the query at `position` (int32 []), and the cache with its key and value.

    `qkv_B3NK` are query, key and value: one array, so that the kernel can read the result of one matrix product in place. Logits are scaled by K ** -0.5.
    With `kernel` a Triton kernel writes the key and the value and reads the positions up to this one. Otherwise, and where jax has no Triton any more, XLA
    reads the whole cache. `interpret` runs the kernel on any platform, for tests.
    """
    if not kernel or not has_triton():
        return _operations(qkv_B3NK, cache, position)
    heads, cached = ("batch", "heads", None), ("batch", "heads", None, None)
    run = per_shard(functools.partial(_run_kernel, interpret=interpret), ((None,), ("batch", None, "heads", None), cached, cached), (heads, cached, cached))
    attended_BNK, k_BNSK, v_BNSK = run(position[None], qkv_B3NK, *cache)
    return attended_BNK, (k_BNSK, v_BNSK)


@functools.cache
def has_triton() -> bool:
    """Return whether this jax can compile kernels by Triton: jax 0.11 says that a later version will not."""
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:
        return False
    return True


def _operations(qkv_B3NK: Array, cache: Cache, position: Array) -> tuple[Array, Cache]:
    q_BNK = qkv_B3NK[:, 0] * qkv_B3NK.shape[-1] ** -0.5
    k_BNSK, v_BNSK = (jax.lax.dynamic_update_slice_in_dim(cache[index], qkv_B3NK[:, 1 + index, :, None], position, axis=2) for index in range(2))
    precision = "highest" if v_BNSK.dtype == jnp.float32 else "default"
    logits_BNS = jnp.einsum("bnk,bnsk->bns", q_BNK, k_BNSK, precision=precision, preferred_element_type=jnp.float32)
    logits_BNS = jnp.where(jnp.arange(k_BNSK.shape[2]) <= position, logits_BNS, -1e30)
    probabilities_BNS = jax.nn.softmax(logits_BNS, axis=-1).astype(v_BNSK.dtype)
    return jnp.einsum("bns,bnsk->bnk", probabilities_BNS, v_BNSK, precision=precision), (k_BNSK, v_BNSK)


def _run_kernel(position_1: Array, qkv_B3NK: Array, k_BNSK: Array, v_BNSK: Array, interpret: bool) -> list[Array]:
    """Run one program for each head of each image. The caches are updated in place."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, N, S, K = k_BNSK.shape
    new = [pl.BlockSpec((None, None, None, K), functools.partial(_place_of_part, part)) for part in range(3)]
    cached = pl.BlockSpec((None, None, S, K), lambda image, head: (image, head, 0, 0))
    return pl.pallas_call(
        functools.partial(_kernel, size=K),
        grid=(B, N),
        in_specs=[pl.BlockSpec((1,), lambda image, head: (0,)), *new, cached, cached],
        out_specs=[pl.BlockSpec((None, None, K), lambda image, head: (image, head, 0)), cached, cached],
        out_shape=[jax.ShapeDtypeStruct(shape, k_BNSK.dtype) for shape in ((B, N, K), k_BNSK.shape, v_BNSK.shape)],
        input_output_aliases={4: 1, 5: 2},
        compiler_params=None if interpret else triton.CompilerParams(num_warps=WARPS, num_stages=2),
        interpret=interpret,
        name="cached_attention",
    )(position_1, qkv_B3NK, qkv_B3NK, qkv_B3NK, k_BNSK, v_BNSK)


def _place_of_part(part: int, image: Array, head: Array) -> tuple[Any, ...]:
    return image, part, head, 0


def _kernel(position_1: Any, q_K: Any, k_K: Any, v_K: Any, k_SK: Any, v_SK: Any, o_K: Any, new_k_SK: Any, new_v_SK: Any, size: int) -> None:
    """Sum exp(logit) * value over blocks of positions, relative to the largest logit so far (Dao et al. 2022). Triton needs sizes that are powers of two."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    position, padded = position_1[0], 1 << (size - 1).bit_length()
    # masks keep to the arrays; jax 0.12 refuses a slice beyond them if it begins at a number that it knows, so the 0 is computed
    lanes, inside = pl.ds(position - position, padded), jnp.arange(padded) < size
    q, k, v = (triton.load(x.at[lanes], mask=inside, other=0.0) for x in (q_K, k_K, v_K))
    triton.store(new_k_SK.at[position, lanes], k, mask=inside)
    triton.store(new_v_SK.at[position, lanes], v, mask=inside)
    q = q.astype(jnp.float32) * size**-0.5

    def add_block(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        largest, total, sum_K = carry
        rows = pl.ds(number * BLOCK, BLOCK)
        seen = number * BLOCK + jnp.arange(BLOCK) < position
        mask = seen[:, None] & inside[None]
        keys, values = (triton.load(x.at[rows, lanes], mask=mask, other=0.0).astype(jnp.float32) for x in (k_SK, v_SK))
        logits = jnp.where(seen, (keys * q[None]).sum(axis=1), -1e30)
        new_largest = jnp.maximum(largest, logits.max())
        weights, shrink = jnp.exp(logits - new_largest), jnp.exp(largest - new_largest)
        return new_largest, total * shrink + weights.sum(), sum_K * shrink + (weights[:, None] * values).sum(axis=0)

    first = ((q * k.astype(jnp.float32)).sum(), jnp.float32(1), v.astype(jnp.float32))
    _, total, sum_K = jax.lax.fori_loop(0, pl.cdiv(position, BLOCK), add_block, first)
    triton.store(o_K.at[lanes], (sum_K / total).astype(o_K.dtype), mask=inside)
