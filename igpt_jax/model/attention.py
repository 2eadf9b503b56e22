"""Scaled dot-product attention: one function, with an implementation for each platform.

B batch, S sequence (T where keys are meant), N heads, K head size; G = B * N, one row for each head of each image.
The softmax is computed in float32 for inputs of any dtype.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from igpt_jax.types import AnyArray, Array

IMPLEMENTATIONS = ("auto", "reference", "contiguous", "blocks", "cudnn", "splash")
PRECISIONS = ("highest", "high")
QUERY_BLOCK = 128  # positions; the fastest of 128, 256, 512 and none at 1,024 positions on two CPU cores
LANES = 128  # positions; the smallest block of a TPU kernel
SPLASH_BLOCK = 1024  # a third faster than smaller ones on v6e (axlearn pull request 958); not measured here
_MASKED = -1e30  # finite, because exp(-inf - -inf) is NaN


def attention(
    q_BSNK: Array,
    k_BSNK: Array,
    v_BSNK: Array,
    causal: bool,
    implementation: str = "auto",
    prefix_B: AnyArray | None = None,
    precision: str = "highest",
    order_S: AnyArray | None = None,
) -> Array:
    """Compute scaled dot-product attention, [B, S, N, K] in and out, with logits scaled by K ** -0.5.

    With `causal`, each position attends to itself and to those before it, otherwise to all. `prefix_B` (with `causal`) is the number of first positions
    of each image that all positions attend to. `order_S` (with `causal`) is when each position is predicted; a position attends to those of an equal or
    smaller number. No flash kernel supports these two masks, so the reference computes them.

    `auto` selects cuDNN's flash kernel on a GPU in half precision and splash attention on a TPU (both with memory linear in S). On a GPU in float32 it
    selects `blocks`: blocks of queries one after the other, computed again in the backward pass, with memory linear in S. Elsewhere it selects
    `contiguous`: batched products over contiguous heads, whose backward pass stores the probabilities. Each device must run splash attention on its own
    part of the arrays (`sharding.per_shard`), because the compiler cannot partition a kernel. `precision` is that of float32 products
    (`matmul_precision`). Source: attention in `src/model.py` of openai/image-gpt.
    """
    precision = precision if q_BSNK.dtype == jnp.float32 else "default"
    if prefix_B is not None or order_S is not None:
        return _reference(q_BSNK, k_BSNK, v_BSNK, causal, precision, prefix_B, order_S)
    implementation = resolve(implementation, jax.default_backend(), str(q_BSNK.dtype), q_BSNK.shape[1])
    if implementation == "splash":
        return _splash(q_BSNK, k_BSNK, v_BSNK, causal)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q_BSNK, k_BSNK, v_BSNK, is_causal=causal, implementation="cudnn")
    if implementation == "reference":
        return _reference(q_BSNK, k_BSNK, v_BSNK, causal, precision)
    if implementation == "contiguous":
        return _contiguous(q_BSNK, k_BSNK, v_BSNK, causal, precision)
    if implementation == "blocks":
        return _blocks(q_BSNK, k_BSNK, v_BSNK, causal, precision)
    raise ValueError(f"attention {implementation!r} is unknown: one of {', '.join(IMPLEMENTATIONS)}")


def resolve(implementation: str, platform: str, dtype: str, positions: int) -> str:
    """Return the implementation that `auto` selects on a platform (cpu, gpu, tpu) for a dtype and a sequence length."""
    if implementation != "auto":
        return implementation
    if platform == "tpu" and positions % LANES == 0:
        return "splash"
    if platform == "gpu":
        return "cudnn" if dtype in ("bfloat16", "float16") else "blocks"
    return "contiguous"


def _splash(q_BSNK: Array, k_BSNK: Array, v_BSNK: Array, causal: bool, interpret: bool = False) -> Array:
    """Run jax's Pallas kernel, in larger blocks than its default of 128, which is slow (jax issue 24633). `interpret` runs it on any platform, for tests."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    S, N, K = q_BSNK.shape[1:]
    block = max(size for size in range(LANES, min(S, SPLASH_BLOCK) + 1, LANES) if S % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    sizes: dict[str, Any] = dict.fromkeys(names, block)
    mask = splash_attention_mask.CausalMask((S, S)) if causal else splash_attention_mask.FullMask((S, S))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention_kernel.BlockSizes(**sizes),
        interpret=interpret,
    )
    heads_first = (x.swapaxes(1, 2) for x in (q_BSNK * K**-0.5, k_BSNK, v_BSNK))
    return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)


def _reference(
    q_BSNK: Array, k_BSNK: Array, v_BSNK: Array, causal: bool, precision: str, prefix_B: AnyArray | None = None, order_S: AnyArray | None = None
) -> Array:
    """Compute the formula as the original program does. The other implementations must agree with it."""
    weights_BNST = attention_weights(q_BSNK, k_BSNK, jnp.arange(q_BSNK.shape[1]), causal, prefix_B, precision, order_S)
    return jnp.einsum("bnst,btnk->bsnk", weights_BNST.astype(v_BSNK.dtype), v_BSNK, precision=precision)


def attention_weights(
    q_BSNK: Array,
    k_BTNK: Array,
    positions_S: AnyArray,
    causal: bool,
    prefix_B: AnyArray | None = None,
    precision: str = "highest",
    order_T: AnyArray | None = None,
) -> Array:
    """Compute the weights with which queries attend to all keys, float32 [B, N, S, T]; they sum to 1 over the keys.

    The queries may be some of a sequence: `positions_S` says which. `causal`, `prefix_B`, `precision` and `order_T` are those of `attention`.
    """
    precision = precision if q_BSNK.dtype == jnp.float32 else "default"
    logits_BNST = jnp.einsum("bsnk,btnk->bnst", q_BSNK, k_BTNK, precision=precision, preferred_element_type=jnp.float32)
    logits_BNST = logits_BNST * q_BSNK.shape[-1] ** -0.5
    if causal:
        keys_T = jnp.arange(k_BTNK.shape[1])
        order_T = keys_T if order_T is None else jnp.asarray(order_T)
        seen_BST = (order_T <= (jnp.asarray(positions_S) if order_T is keys_T else order_T[positions_S])[:, None])[None]
        if prefix_B is not None:
            seen_BST = seen_BST | (keys_T < jnp.asarray(prefix_B)[:, None])[:, None]
        logits_BNST = jnp.where(seen_BST[:, None], logits_BNST, _MASKED)
    return jax.nn.softmax(logits_BNST, axis=-1)


def _blocks(q_BSNK: Array, k_BSNK: Array, v_BSNK: Array, causal: bool, precision: str) -> Array:
    """Compute the formula for one block of queries after the other; the backward pass computes each block again."""
    B, S, N, K = q_BSNK.shape
    size = min(S, QUERY_BLOCK)
    count = -(-S // size)
    q_BPNK = jnp.pad(q_BSNK, ((0, 0), (0, count * size - S), (0, 0), (0, 0)))

    @jax.checkpoint
    def attend(start: Array) -> Array:
        q_BQNK = jax.lax.dynamic_slice_in_dim(q_BPNK, start, size, axis=1)
        logits_BNQT = jnp.einsum("bqnk,btnk->bnqt", q_BQNK, k_BSNK, precision=precision, preferred_element_type=jnp.float32) * K**-0.5
        if causal:
            logits_BNQT = jnp.where(jnp.arange(S) <= start + jnp.arange(size)[:, None], logits_BNQT, _MASKED)
        probabilities_BNQT = jax.nn.softmax(logits_BNQT, axis=-1).astype(v_BSNK.dtype)
        return jnp.einsum("bnqt,btnk->bqnk", probabilities_BNQT, v_BSNK, precision=precision)

    return jax.lax.map(attend, size * jnp.arange(count)).swapaxes(0, 1).reshape(B, -1, N, K)[:, :S]


def _contiguous(q_BSNK: Array, k_BSNK: Array, v_BSNK: Array, causal: bool, precision: str) -> Array:
    """Fold the heads into the batch and transpose the keys first. Matrix products of XLA on CPUs are several times faster in this layout."""
    B, S, N, K = q_BSNK.shape
    q_GSK = (q_BSNK * K**-0.5).transpose(0, 2, 1, 3).reshape(B * N, S, K)
    k_GKS = k_BSNK.transpose(0, 2, 3, 1).reshape(B * N, K, S)
    v_GSK = v_BSNK.transpose(0, 2, 1, 3).reshape(B * N, S, K)
    return _heads_attention(q_GSK, k_GKS, v_GSK, causal, precision).reshape(B, N, S, K).transpose(0, 2, 1, 3)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _heads_attention(q_GSK: Array, k_GKS: Array, v_GSK: Array, causal: bool, precision: str) -> Array:
    return _heads_forward(q_GSK, k_GKS, v_GSK, causal, precision)[0]


def _heads_forward(q_GSK: Array, k_GKS: Array, v_GSK: Array, causal: bool, precision: str) -> tuple[Array, tuple]:
    """Store exp(logit - largest logit) and its sum instead of the probabilities: dividing K outputs is less work than dividing S weights."""
    multiply = partial(jnp.matmul, precision=precision)
    outputs, weights = [], []
    for start, stop in _query_blocks(q_GSK.shape[1], causal):
        seen = stop if causal else q_GSK.shape[1]
        logits_GQT = multiply(q_GSK[:, start:stop], k_GKS[:, :, :seen]).astype(jnp.float32)
        logits_GQT = _mask(logits_GQT, causal)
        exponentials_GQT = jnp.exp(logits_GQT - logits_GQT.max(axis=-1, keepdims=True))
        sum_GQ1 = exponentials_GQT.sum(axis=-1, keepdims=True)
        exponentials_GQT = exponentials_GQT.astype(v_GSK.dtype)
        weights.append((exponentials_GQT, sum_GQ1))
        outputs.append((multiply(exponentials_GQT, v_GSK[:, :seen]) / sum_GQ1).astype(v_GSK.dtype))
    output_GSK = jnp.concatenate(outputs, axis=1)
    return output_GSK, (q_GSK, k_GKS, v_GSK, weights, output_GSK)


def _heads_backward(causal: bool, precision: str, residuals: tuple, gradient_GSK: Array) -> tuple[Array, Array, Array]:
    """Compute the gradients. Masked weights are exactly zero, so the mask is not applied again. Gradients of values are summed transposed, as those of keys."""
    q_GSK, k_GKS, v_GSK, weights, output_GSK = residuals
    multiply = partial(jnp.matmul, precision=precision)
    length = q_GSK.shape[1]
    mean_GS1 = (gradient_GSK.astype(jnp.float32) * output_GSK).sum(axis=-1, keepdims=True)  # mean over keys of the probabilities' gradients
    q_gradients: list[Array] = []
    k_gradient_GKS: Any = 0.0
    v_gradient_GKS: Any = 0.0
    for (start, stop), (e_GQT, sum_GQ1) in zip(_query_blocks(length, causal), weights, strict=True):
        seen, block_GQK = e_GQT.shape[2], (gradient_GSK[:, start:stop] / sum_GQ1).astype(q_GSK.dtype)
        unseen = ((0, 0), (0, 0), (0, length - seen))
        v_gradient_GKS += jnp.pad(multiply(block_GQK.swapaxes(1, 2), e_GQT), unseen)
        e_gradient_GQT = multiply(block_GQK, v_GSK[:, :seen].swapaxes(1, 2)).astype(jnp.float32)
        logits_gradient_GQT = (e_GQT * (e_gradient_GQT - mean_GS1[:, start:stop] / sum_GQ1)).astype(q_GSK.dtype)
        q_gradients.append(multiply(logits_gradient_GQT, k_GKS[:, :, :seen].swapaxes(1, 2)))
        k_gradient_GKS += jnp.pad(multiply(q_GSK[:, start:stop].swapaxes(1, 2), logits_gradient_GQT), unseen)
    v_gradient_GKS = jax.lax.optimization_barrier(v_gradient_GKS)  # without it the compiler swaps the factors of the product back
    return jnp.concatenate(q_gradients, axis=1), k_gradient_GKS, v_gradient_GKS.swapaxes(1, 2)


_heads_attention.defvjp(_heads_forward, _heads_backward)


def _query_blocks(length: int, causal: bool) -> list[tuple[int, int]]:
    """Return (start, stop) of each block of queries. A causal block needs no later keys, which saves half of the work on a long sequence."""
    size = QUERY_BLOCK if causal and length > QUERY_BLOCK else length
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _mask(logits_QT: Array, causal: bool) -> Array:
    """Mask the keys after each query if `causal`. The last two axes are queries and keys, and the last query attends to every key."""
    queries, keys = logits_QT.shape[-2:]
    return jnp.where(jnp.tri(queries, keys, keys - queries, dtype=bool), logits_QT, _MASKED) if causal else logits_QT
