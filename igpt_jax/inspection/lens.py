"""What each layer would predict if it were the last: the logit lens (nostalgebraist, "interpreting GPT: the logit lens", 2020).

The final norm and the output head are applied to the residual stream after each layer. A layer's loss is then an upper bound of what a head of its own could
reach: early layers write in other directions than the last one (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens").

L layers, B batch, S sequence, D width, V palette. Entry 0 of a layer axis is the embedding, entry l the output of block l.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.inspection import batches
from igpt_jax.inspection.maps import check_mask, model_of
from igpt_jax.model import objectives
from igpt_jax.model.transformer import ImageGPT, check_codes, dense, normalize
from igpt_jax.shapes import describe
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.types import AnyArray, Array


class LogitLens(NamedTuple):
    """The predictions of every layer; numpy arrays."""

    nats: Any  # float32 [L + 1, B, S]: cross-entropy of each token
    likeliest: Any  # int32 [L + 1, B, S]: the most likely code of each token

    def __repr__(self) -> str:
        return describe(self)


def logit_lens(model: ImageGPT | Pretrained, codes_BS: Any, mask_BS: AnyArray | None = None, prefix_B: AnyArray | None = None) -> LogitLens:
    """Apply final norm and output head to the residual stream after each layer of one forward pass on codes int [B, S].

    `mask_BS` and `prefix_B` are those of `ImageGPT.__call__`; a bert model without a mask sees every code that it predicts. The last entry is the model's own
    prediction. Logits of one layer are in memory at a time. ValueError for codes that the model does not have, and for
    a mask of another shape or of a causal model.
    """
    model = model_of(model)
    codes_BS = check_codes(model.config, codes_BS)
    found = _lens(model, codes_BS, check_mask(model.config, codes_BS, mask_BS), prefix_B)
    return LogitLens(*(np.asarray(part) for part in found))


def nats_per_pixel(model: ImageGPT | Pretrained, lens: LogitLens, mask_BS: AnyArray | None = None) -> np.ndarray:
    """Return the loss of every layer on every image as `igpt_jax.evaluate` computes it, float32 [L + 1, B]: over all tokens, or over the masked ones."""
    tokens = model_of(model).config.tokens_per_pixel
    if mask_BS is None:
        return tokens * lens.nats.mean(axis=-1)
    return tokens * np.stack([np.asarray(objectives.masked_mean(jnp.asarray(nats_BS), jnp.asarray(mask_BS))) for nats_BS in lens.nats])


def whole_lens(pretrained: Pretrained, codes_BS: Any) -> LogitLens:
    """Return the `logit_lens` of whole pictures in which every token is predicted: a bert model's tokens are masked in turn, a share of them at a time."""
    if pretrained.model_config.causal:
        return logit_lens(pretrained, codes_BS)
    length = np.asarray(codes_BS).shape[1]
    group_S = np.random.RandomState(0).permutation(length) % max(1, round(1 / pretrained.mask_probability))
    masks = [np.broadcast_to(group_S == group, np.shape(codes_BS)).astype(np.float32) for group in np.unique(group_S)]
    found = [logit_lens(pretrained, codes_BS, mask_BS) for mask_BS in masks]
    return LogitLens(*(np.select([mask_BS > 0 for mask_BS in masks], parts) for parts in zip(*found, strict=True)))


def lens_pictures(pretrained: Pretrained, codes_S: Any) -> list[tuple[np.ndarray, str]]:
    """Return (uint8 [H, H, 3], caption) of each layer's most likely colours in a picture of codes [S], and of the picture itself."""
    codes_1S = np.asarray(codes_S)[None]
    found = whole_lens(pretrained, codes_1S)
    pictures = batches.decode_pictures(pretrained, np.concatenate([found.likeliest[:, 0], codes_1S]))
    names = ["embedding", *(f"layer {layer}" for layer in range(1, pretrained.model_config.layers + 1))]
    captions = [f"{name}: {nats:.2f} nats per pixel" for name, nats in zip(names, nats_per_pixel(pretrained, found)[:, 0], strict=True)]
    return list(zip(pictures, [*captions, "the picture"], strict=True))


@jax.jit
def _lens(model: ImageGPT, codes_BS: AnyArray, mask_BS: AnyArray | None, prefix_B: AnyArray | None) -> tuple[Array, Array]:
    output = model(codes_BS, mask_BS, prefix_B, hidden=True)
    head_DV = model.head()

    def read(logits_BSV: Array) -> tuple[Array, Array]:
        return objectives.cross_entropy(logits_BSV, codes_BS), logits_BSV.argmax(axis=-1).astype(jnp.int32)

    earlier = jax.lax.map(lambda x_BSD: read(dense(normalize(x_BSD), head_DV, model.config).astype(jnp.float32)), output.hidden[:-1])
    nats_BS, likeliest_BS = read(output.logits)
    return jnp.concatenate([earlier[0], nats_BS[None]]), jnp.concatenate([earlier[1], likeliest_BS[None]])
