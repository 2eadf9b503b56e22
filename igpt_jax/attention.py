"""Scaled dot-product attention, one function with an implementation for each platform.

B batch, S sequence, N heads, K head size; G = B * N, one row for each head of each image. Softmax is in float32 whatever the inputs are.
"""

from functools import partial

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "reference", "contiguous", "cudnn")
QUERY_BLOCK = 128  # positions; the fastest of 128, 256, 512 and none at 1,024 positions on two CPU cores
_MASKED = -1e30  # finite, so that no row of exp(-inf - -inf) can make a NaN


def attention(q_BSNK, k_BSNK, v_BSNK, causal: bool, implementation: str = "auto", prefix_B=None):
    """Attend every position to those at or before it (`causal`) or to all; [B, S, N, K] in and out, logits scaled by K ** -0.5.

    `prefix_B`, with `causal`: how many of the first positions of each image are seen by all. No flash kernel takes such a mask: the reference does it.

    `auto` takes cuDNN's flash kernel on a GPU in half precision (memory linear in S), elsewhere batched products over contiguous heads
    with a backward pass that keeps the probabilities. Source: attention in `src/model.py` of openai/image-gpt.
    """
    if prefix_B is not None:
        return _reference(q_BSNK, k_BSNK, v_BSNK, causal, prefix_B)
    if implementation == "auto":
        half = q_BSNK.dtype in (jnp.bfloat16, jnp.float16)
        implementation = "cudnn" if jax.default_backend() == "gpu" and half else "contiguous"
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q_BSNK, k_BSNK, v_BSNK, is_causal=causal, implementation="cudnn")
    if implementation == "reference":
        return _reference(q_BSNK, k_BSNK, v_BSNK, causal)
    if implementation == "contiguous":
        return _contiguous(q_BSNK, k_BSNK, v_BSNK, causal)
    raise ValueError(f"attention {implementation!r} is unknown: one of {', '.join(IMPLEMENTATIONS)}")


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
    outputs, probabilities = [], []
    for start, stop in _query_blocks(q_GSK.shape[1], causal):
        seen = stop if causal else q_GSK.shape[1]
        logits_GQT = _matmul(q_GSK[:, start:stop], k_GKS[:, :, :seen]).astype(jnp.float32)
        logits_GQT = _mask(logits_GQT, causal)
        exponentials_GQT = jnp.exp(logits_GQT - logits_GQT.max(axis=-1, keepdims=True))
        probabilities.append((exponentials_GQT / exponentials_GQT.sum(axis=-1, keepdims=True)).astype(v_GSK.dtype))
        outputs.append(_matmul(probabilities[-1], v_GSK[:, :seen]))
    return jnp.concatenate(outputs, axis=1), (q_GSK, k_GKS, v_GSK, probabilities)


def _heads_backward(causal, residuals, gradient_GSK):
    """The masked probabilities are exact zeros, so the mask itself is not needed again."""
    q_GSK, k_GKS, v_GSK, probabilities = residuals
    length = q_GSK.shape[1]
    q_gradients, k_gradient_GKS, v_gradient_GSK = [], 0.0, 0.0
    for (start, stop), p_GQT in zip(_query_blocks(length, causal), probabilities, strict=True):
        seen, block_GQK = p_GQT.shape[2], gradient_GSK[:, start:stop]
        unseen = (0, length - seen)
        v_gradient_GSK += jnp.pad(_matmul(p_GQT.swapaxes(1, 2), block_GQK), ((0, 0), unseen, (0, 0)))
        p_gradient_GQT = _matmul(block_GQK, v_GSK[:, :seen].swapaxes(1, 2)).astype(jnp.float32)
        mean_GQ1 = (p_gradient_GQT * p_GQT).sum(axis=-1, keepdims=True)
        logits_gradient_GQT = (p_GQT * (p_gradient_GQT - mean_GQ1)).astype(q_GSK.dtype)
        q_gradients.append(_matmul(logits_gradient_GQT, k_GKS[:, :, :seen].swapaxes(1, 2)))
        k_gradient_GKS += jnp.pad(_matmul(q_GSK[:, start:stop].swapaxes(1, 2), logits_gradient_GQT), ((0, 0), (0, 0), unseen))
    return jnp.concatenate(q_gradients, axis=1), k_gradient_GKS, v_gradient_GSK


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
