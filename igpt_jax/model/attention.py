"""Scaled dot-product attention, one function with an implementation for each platform.

B batch, S sequence, N heads, K head size; G = B * N, one row for each head of each image. Softmax is in float32 whatever the inputs are.
"""

from functools import partial

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "reference", "contiguous", "cudnn", "splash")
QUERY_BLOCK = 128  # positions; the fastest of 128, 256, 512 and none at 1,024 positions on two CPU cores
LANES = 128  # positions that a TPU kernel takes at least
SPLASH_BLOCK = 1024  # a third faster than smaller ones on v6e (axlearn pull request 958); not measured here
_MASKED = -1e30  # finite, so that no row of exp(-inf - -inf) can make a NaN


def attention(q_BSNK, k_BSNK, v_BSNK, causal: bool, implementation: str = "auto", prefix_B=None):
    """Attend every position to those at or before it (`causal`) or to all; [B, S, N, K] in and out, logits scaled by K ** -0.5.

    `prefix_B`, with `causal`: how many of the first positions of each image are seen by all. No flash kernel takes such a mask: the reference does it.

    `auto` takes cuDNN's flash kernel on a GPU in half precision and splash attention on a TPU (memory linear in S), elsewhere batched products
    over contiguous heads with a backward pass that keeps the probabilities. Splash attention is run by each device on its own part of the
    arrays (`sharding.per_shard`), because the compiler cannot divide a kernel. Source: attention in `src/model.py` of openai/image-gpt.
    """
    if prefix_B is not None:
        return _reference(q_BSNK, k_BSNK, v_BSNK, causal, prefix_B)
    implementation = resolve(implementation, jax.default_backend(), str(q_BSNK.dtype), q_BSNK.shape[1])
    if implementation == "splash":
        return _splash(q_BSNK, k_BSNK, v_BSNK, causal)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q_BSNK, k_BSNK, v_BSNK, is_causal=causal, implementation="cudnn")
    if implementation == "reference":
        return _reference(q_BSNK, k_BSNK, v_BSNK, causal)
    if implementation == "contiguous":
        return _contiguous(q_BSNK, k_BSNK, v_BSNK, causal)
    raise ValueError(f"attention {implementation!r} is unknown: one of {', '.join(IMPLEMENTATIONS)}")


def resolve(implementation: str, platform: str, dtype: str, positions: int) -> str:
    """What `auto` means on a platform (cpu, gpu, tpu) for a dtype and a sequence."""
    if implementation != "auto":
        return implementation
    if platform == "tpu" and positions % LANES == 0:
        return "splash"
    return "cudnn" if platform == "gpu" and dtype in ("bfloat16", "float16") else "contiguous"


def _splash(q_BSNK, k_BSNK, v_BSNK, causal, interpret=False):
    """The Pallas kernel that comes with jax, whose own blocks of 128 are far too small (jax issue 24633); `interpret` runs it on any platform, for tests."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    S, N, K = q_BSNK.shape[1:]
    block = max(size for size in range(LANES, min(S, SPLASH_BLOCK) + 1, LANES) if S % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    one = splash_attention_mask.CausalMask((S, S)) if causal else splash_attention_mask.FullMask((S, S))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([one] * N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention_kernel.BlockSizes(**dict.fromkeys(names, block)),
        interpret=interpret,
    )
    heads_first = (x.swapaxes(1, 2) for x in (q_BSNK * K**-0.5, k_BSNK, v_BSNK))
    return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)


def _reference(q_BSNK, k_BSNK, v_BSNK, causal, prefix_B=None):
    """The formula as it stands in the original program: what the others must equal."""
    logits_BNST = jnp.einsum("bsnk,btnk->bnst", q_BSNK, k_BSNK, precision=_precision(q_BSNK), preferred_element_type=jnp.float32)
    logits_BNST = logits_BNST * q_BSNK.shape[-1] ** -0.5
    masked_BNST = _mask(logits_BNST, causal)
    if prefix_B is not None:
        seen_BT = jnp.arange(k_BSNK.shape[1]) < prefix_B[:, None]
        masked_BNST = jnp.where(seen_BT[:, None, None], logits_BNST, masked_BNST)
    probabilities_BNST = jax.nn.softmax(masked_BNST, axis=-1).astype(v_BSNK.dtype)
    return jnp.einsum("bnst,btnk->bsnk", probabilities_BNST, v_BSNK, precision=_precision(q_BSNK))


def _contiguous(q_BSNK, k_BSNK, v_BSNK, causal):
    """Heads folded into the batch and the key transposed beforehand: XLA's CPU products are several times faster on this layout."""
    B, S, N, K = q_BSNK.shape
    q_GSK = (q_BSNK * K**-0.5).transpose(0, 2, 1, 3).reshape(B * N, S, K)
    k_GKS = k_BSNK.transpose(0, 2, 3, 1).reshape(B * N, K, S)
    v_GSK = v_BSNK.transpose(0, 2, 1, 3).reshape(B * N, S, K)
    return _heads_attention(q_GSK, k_GKS, v_GSK, causal).reshape(B, N, S, K).transpose(0, 2, 1, 3)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _heads_attention(q_GSK, k_GKS, v_GSK, causal):
    return _heads_forward(q_GSK, k_GKS, v_GSK, causal)[0]


def _heads_forward(q_GSK, k_GKS, v_GSK, causal):
    """Weights of the values are kept as exp(logit - largest) and their sums: to divide K outputs is less work than S weights."""
    outputs, weights = [], []
    for start, stop in _query_blocks(q_GSK.shape[1], causal):
        seen = stop if causal else q_GSK.shape[1]
        logits_GQT = _matmul(q_GSK[:, start:stop], k_GKS[:, :, :seen]).astype(jnp.float32)
        logits_GQT = _mask(logits_GQT, causal)
        exponentials_GQT = jnp.exp(logits_GQT - logits_GQT.max(axis=-1, keepdims=True))
        sum_GQ1 = exponentials_GQT.sum(axis=-1, keepdims=True)
        exponentials_GQT = exponentials_GQT.astype(v_GSK.dtype)
        weights.append((exponentials_GQT, sum_GQ1))
        outputs.append((_matmul(exponentials_GQT, v_GSK[:, :seen]) / sum_GQ1).astype(v_GSK.dtype))
    output_GSK = jnp.concatenate(outputs, axis=1)
    return output_GSK, (q_GSK, k_GKS, v_GSK, weights, output_GSK)


def _heads_backward(causal, residuals, gradient_GSK):
    """The masked weights are exact zeros, so the mask itself is not needed again; values' gradients are summed transposed, as keys' are."""
    q_GSK, k_GKS, v_GSK, weights, output_GSK = residuals
    length = q_GSK.shape[1]
    mean_GS1 = (gradient_GSK.astype(jnp.float32) * output_GSK).sum(axis=-1, keepdims=True)  # over keys, of the gradients of the probabilities
    q_gradients, k_gradient_GKS, v_gradient_GKS = [], 0.0, 0.0
    for (start, stop), (e_GQT, sum_GQ1) in zip(_query_blocks(length, causal), weights, strict=True):
        seen, block_GQK = e_GQT.shape[2], (gradient_GSK[:, start:stop] / sum_GQ1).astype(q_GSK.dtype)
        unseen = ((0, 0), (0, 0), (0, length - seen))
        v_gradient_GKS += jnp.pad(_matmul(block_GQK.swapaxes(1, 2), e_GQT), unseen)
        e_gradient_GQT = _matmul(block_GQK, v_GSK[:, :seen].swapaxes(1, 2)).astype(jnp.float32)
        logits_gradient_GQT = (e_GQT * (e_gradient_GQT - mean_GS1[:, start:stop] / sum_GQ1)).astype(q_GSK.dtype)
        q_gradients.append(_matmul(logits_gradient_GQT, k_GKS[:, :, :seen].swapaxes(1, 2)))
        k_gradient_GKS += jnp.pad(_matmul(q_GSK[:, start:stop].swapaxes(1, 2), logits_gradient_GQT), unseen)
    v_gradient_GKS = jax.lax.optimization_barrier(v_gradient_GKS)  # else the compiler swaps the product's factors back
    return jnp.concatenate(q_gradients, axis=1), k_gradient_GKS, v_gradient_GKS.swapaxes(1, 2)


_heads_attention.defvjp(_heads_forward, _heads_backward)


def _query_blocks(length, causal):
    """(start, stop) of the queries taken together: a causal block needs no keys behind its own, which saves half of a long sequence."""
    size = QUERY_BLOCK if causal and length > QUERY_BLOCK else length
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _mask(logits_QT, causal):
    """Give the positions after each query no weight; the last two axes are queries and keys, and the last query sees every key."""
    queries, keys = logits_QT.shape[-2:]
    return jnp.where(jnp.tri(queries, keys, keys - queries, dtype=bool), logits_QT, _MASKED) if causal else logits_QT


def _matmul(a, b):
    return jnp.matmul(a, b, precision=_precision(a))


def _precision(x):
    """float32 means float32 on every chip: GPUs and TPUs would round the factors to 10 or 8 bits otherwise."""
    return "highest" if x.dtype == jnp.float32 else "default"
