"""Where a model looks: the weights of its attention for chosen queries, the same by pixel of the picture, and their average by offset.

A causal model reads the token before at each position, and a start vector at position 0: position i holds token i - 1 and predicts token i. So its weights
are moved by one token before they are drawn over a picture, and the pixel to the left is what the query itself holds. A bert model's position i holds token i.
Layers are numbered as in the figures: 0 is the embedding, 1 to L are the blocks.

L layers, B batch, S sequence, N heads, K head size, D width, Q queries, H rows and columns of a picture, R = 2 H - 1 offsets from 1 - H to H - 1.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.model.attention import attention_weights
from igpt_jax.model.transformer import ImageGPT, ModelConfig, check_codes, normalize
from igpt_jax.shapes import describe
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.types import AnyArray, Array

MOST_BYTES = 2**32  # of the array that `attention_maps` returns


class PixelMap(NamedTuple):
    """The weights of queries on a picture; both together sum to 1."""

    pixels: Any  # float32 [..., H, H]: the weight on each pixel
    start: Any  # float32 [...]: the weight on the start vector; 0 for a bert model

    def __repr__(self) -> str:
        return describe(self)


def attention_maps(
    model: ImageGPT | Pretrained,
    codes_BS: Any,
    queries: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    mask_BS: AnyArray | None = None,
    prefix_B: AnyArray | None = None,
) -> np.ndarray:
    """Compute the attention weights of the forward pass, float32 [layers, B, N, Q, S]: position `queries[q]` attends to key s with this weight.

    `codes_BS` int [B, S], S at most the model's positions. `queries`: positions, None: all S. `layers`: numbers from 1 to L, None: all. `mask_BS` and
    `prefix_B` are those of `ImageGPT.__call__`; a prefix model attends causally without a prefix, and to the whole image with prefix_B = [S] * B.
    `on_pixels` says which pixel each key holds. One layer is computed at a time.

    Raises ValueError for codes, queries or layers that the model does not have, for a mask of another shape or of a causal model, and
    for a result of more than 4 GiB, with its size.
    """
    model = model_of(model)
    codes_BS = check_codes(model.config, codes_BS)
    mask_BS = check_mask(model.config, codes_BS, mask_BS)
    batch, length = codes_BS.shape
    queries_Q = chosen("queries", queries, 0, length - 1)
    layers_L = chosen("layers", layers, 1, model.config.layers)
    size = 4 * len(layers_L) * batch * model.config.heads * len(queries_Q) * length
    if size > MOST_BYTES:
        counts = f"{len(layers_L)} layers, {batch} images, {model.config.heads} heads, {len(queries_Q)} queries and {length} keys"
        raise ValueError(f"the maps of {counts} take {size / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:.0f}: give fewer queries, layers or images")
    hidden_LBSD = hidden_states(model, codes_BS, mask_BS, prefix_B)
    return np.stack([np.asarray(layer_weights(model, hidden_LBSD, layer - 1, queries_Q, prefix_B)) for layer in layers_L.tolist()])


def check_mask(config: ModelConfig, codes_BS: AnyArray, mask_BS: AnyArray | None) -> AnyArray | None:
    """Return a mask as float32 [B, S], None without one; ValueError where its shape is not that of the codes, or the model is causal and masks nothing."""
    if mask_BS is None:
        return None
    if config.causal:
        raise ValueError(f"mask_BS has no effect on a causal model, and the objective of this one is {config.objective}: leave it out")
    if np.shape(mask_BS) != np.shape(codes_BS):
        raise ValueError(f"mask_BS must have the shape of the codes, {list(np.shape(codes_BS))}, not {list(np.shape(mask_BS))}")
    return jnp.asarray(mask_BS, jnp.float32)


@jax.jit
def hidden_states(model: ImageGPT, codes_BS: AnyArray, mask_BS: AnyArray | None = None, prefix_B: AnyArray | None = None) -> Array:
    """Run the model; return the embedding, then each block's output, [L + 1, B, S, D]."""
    return model(codes_BS, mask_BS, prefix_B, hidden=True).hidden


@jax.jit
def layer_weights(model: ImageGPT, hidden_LBSD: Array, block: AnyArray | int, queries_Q: AnyArray, prefix_B: AnyArray | None = None) -> Array:
    """Compute the attention weights of a block (from 0) from its input hidden_LBSD[block], float32 [B, N, Q, S]."""
    q_BSNK, k_BSNK = _queries_and_keys(model, hidden_LBSD[block], block)
    order_S = model.config.block_of_position() if model.config.block > 1 else None
    return attention_weights(q_BSNK[:, queries_Q], k_BSNK, queries_Q, model.config.causal, prefix_B, model.config.matmul_precision, order_S)


def on_pixels(config: ModelConfig, weights: Any) -> PixelMap:
    """Give the weights [..., S] on keys to the pixels that the keys hold, S being all positions: a PixelMap of [..., H, H] and [...].

    The three tokens of a pixel (`tokens_per_pixel` 3) are summed. A causal model never sees the last token.
    """
    if weights.shape[-1] != config.positions:
        raise ValueError(f"weights on {weights.shape[-1]} keys are not those of a whole picture of {config.positions} tokens")
    if config.block > 1:
        raise ValueError(f"the model predicts blocks of {config.block} x {config.block} pixels together, and maps on pixels are made for single ones alone")
    start = jnp.zeros(weights.shape[:-1])
    if config.causal:
        start, weights = weights[..., 0], jnp.concatenate([weights[..., 1:], jnp.zeros_like(weights[..., :1])], axis=-1)
    return PixelMap(weights.reshape(*weights.shape[:-1], config.rows, config.rows, config.tokens_per_pixel).sum(axis=-1), start)


def tokens_of_pixel(config: ModelConfig, row: int, column: int) -> np.ndarray:
    """Return the positions that predict a pixel, int [tokens_per_pixel]. ValueError where the picture has no such row or column."""
    if not (0 <= row < config.rows and 0 <= column < config.rows):
        raise ValueError(f"row {row}, column {column} is outside the picture: both must be from 0 to {config.rows - 1}")
    return (row * config.rows + column) * config.tokens_per_pixel + np.arange(config.tokens_per_pixel)


def pixel_maps(model: ImageGPT | Pretrained, codes_S: Any, row: int, column: int) -> PixelMap:
    """Return where every layer and head looks when it predicts one pixel of a picture: numpy arrays [L, N, H, H] and [L, N].

    `codes_S` int [S] of a whole picture. The weights of the pixel's tokens are averaged. For a bert model this pixel is masked, and no other.
    """
    model = model_of(model)
    codes_1S = check_codes(model.config, np.asarray(codes_S)[None], model.config.positions)
    tokens = tokens_of_pixel(model.config, row, column)
    mask_1S = None if model.config.causal else np.isin(np.arange(codes_1S.shape[1]), tokens).astype(np.float32)[None]
    weights_LNS = attention_maps(model, codes_1S, tokens.tolist(), mask_BS=mask_1S)[:, 0].mean(axis=2)
    return PixelMap(*map(np.asarray, on_pixels(model.config, weights_LNS)))


def offset_maps(model: ImageGPT | Pretrained, codes_BS: AnyArray, mask_BS: AnyArray | None = None, prefix_B: AnyArray | None = None) -> PixelMap:
    """Return the mean weight on a pixel by its offset from the predicted one: numpy arrays float32 [L, B, N, R, R] and [L, B, N].

    Entry [H - 1 + r, H - 1 + c] is the weight on the pixel r rows below and c columns to the right, averaged over the pixels of the image that have such a
    neighbour. Only one row of queries is in memory at a time.
    """
    model = model_of(model)
    hidden_LBSD = hidden_states(model, codes_BS, check_mask(model.config, codes_BS, mask_BS), prefix_B)
    found = [_layer_offsets(model, hidden_LBSD, block, prefix_B) for block in range(model.config.layers)]
    return PixelMap(*(np.stack(parts) for parts in zip(*found, strict=True)))


def uniform_offset_maps(config: ModelConfig) -> PixelMap:
    """Return the `offset_maps` of attention that gives the same weight to every position that it may see: [R, R] and []."""
    zeros = jnp.zeros((1, config.positions, 1, 4))
    offsets, start = _offsets(config, zeros, zeros, None)
    return PixelMap(np.asarray(offsets)[0, 0], np.asarray(start)[0, 0])


def mean_distance(offsets: Any) -> np.ndarray:
    """Return the mean distance in pixels of the weight in maps by offset [..., R, R]: every pair of pixels counts by its weight."""
    pairs, distances = _pairs_and_distances(np.asarray(offsets).shape[-1] // 2 + 1)
    sums = np.asarray(offsets, np.float64) * pairs
    return (sums * distances).sum(axis=(-2, -1)) / sums.sum(axis=(-2, -1))


def model_of(model: ImageGPT | Pretrained) -> ImageGPT:
    """Return the model with a loop over its layers, because all layers unrolled would compile longer than they run for a few pictures."""
    looped = jax.tree.map(lambda x: x, model.model if isinstance(model, Pretrained) else model)
    looped.config = dataclasses.replace(looped.config, unroll=1)
    return looped


def _pairs_and_distances(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of pairs of pixels with each offset, and the length of the offset in pixels, both [R, R]."""
    away = np.abs(np.arange(1 - side, side))
    return (side - away[:, None]) * (side - away), np.hypot(away[:, None], away)


def _queries_and_keys(model: ImageGPT, x_BSD: Array, block: AnyArray | int) -> tuple[Array, Array]:
    folded = jax.tree.map(lambda stacked: stacked[block], model.blocks).fold_gains()
    q_BSNK, k_BSNK, _ = folded.qkv(normalize(x_BSD), jnp.arange(x_BSD.shape[1]), model.config)
    return q_BSNK, k_BSNK


@jax.jit
def _layer_offsets(model: ImageGPT, hidden_LBSD: Array, block: AnyArray | int, prefix_B: AnyArray | None) -> tuple[Array, Array]:
    return _offsets(model.config, *_queries_and_keys(model, hidden_LBSD[block], block), prefix_B)


@functools.partial(jax.jit, static_argnums=0)
def _offsets(config: ModelConfig, q_BSNK: Array, k_BSNK: Array, prefix_B: AnyArray | None) -> tuple[Array, Array]:
    """Mean weights by offset [B, N, R, R] and on the start vector [B, N], one row of the picture after the other."""
    B, S, N, _ = q_BSNK.shape
    side, tokens = config.rows, config.tokens_per_pixel

    def add(sums: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
        queries_Q = row * config.columns + jnp.arange(config.columns)
        weights_BNQS = attention_weights(q_BSNK[:, queries_Q], k_BSNK, queries_Q, config.causal, prefix_B, config.matmul_precision)
        pixels, start = on_pixels(config, weights_BNQS.reshape(B, N, side, tokens, S).mean(axis=3))
        shifted = sum(jnp.pad(pixels[:, :, c], ((0, 0), (0, 0), (0, side - 1), (side - 1 - c, c))) for c in range(side))
        return (sums[0] + jnp.roll(shifted, side - 1 - row, axis=2), sums[1] + start.sum(axis=-1)), None

    zeros = jnp.zeros((B, N, 2 * side - 1, 2 * side - 1)), jnp.zeros((B, N))
    (offsets, start), _ = jax.lax.scan(add, zeros, jnp.arange(side))
    return offsets / _pairs_and_distances(side)[0], start / side**2


def chosen(name: str, values: Sequence[int] | None, least: int, most: int) -> np.ndarray:
    """Return `values` as int32 [n], None: all from `least` to `most`. ValueError for none, others, and what are no whole numbers."""
    chosen = np.arange(least, most + 1) if values is None else np.asarray(values)
    if chosen.ndim != 1 or not chosen.size or chosen.dtype.kind not in "iu" or chosen.min() < least or chosen.max() > most:
        raise ValueError(f"{name} must be a list of whole numbers from {least} to {most}, not {values!r}")
    return chosen.astype(np.int32)
