"""The losses, in nats, one number for each image (paper 2.1-2.3; `src/model.py` of openai/image-gpt).

B batch, S sequence, V palette, C classes.
"""

from functools import partial

import jax
import jax.numpy as jnp

from igpt_jax.model.transformer import ImageGPT, Output
from igpt_jax.types import AnyArray, Array

DROPOUT = 1  # what is folded into an image's key for dropout; the key itself draws its mask or prefix


def next_pixel_loss(logits_BSV: Array, codes_BS: AnyArray, prefix_B: Array | None = None) -> Array:
    """Average over positions the cross-entropy of each code given the codes before it, [B].

    A prefix of P inputs holds the start vector and the first P - 1 codes; the mean is then over the positions from P - 1 on (AIM, El-Nouby et al. 2024, 3.2).
    """
    losses_BS = cross_entropy(logits_BSV, codes_BS)
    if prefix_B is None:
        return losses_BS.mean(axis=1)
    return masked_mean(losses_BS, jnp.arange(codes_BS.shape[1]) >= prefix_B[:, None] - 1)


def masked_pixel_loss(logits_BSV: Array, codes_BS: AnyArray, mask_BS: Array) -> Array:
    """Average the cross-entropy over the masked positions of each image (mask = 1), [B]; 0 for an image without any."""
    return masked_mean(cross_entropy(logits_BSV, codes_BS), mask_BS)


def classification_loss(class_logits_BC: Array, labels_B: AnyArray) -> Array:
    """Compute the cross-entropy of the label, [B]."""
    return cross_entropy(class_logits_BC, labels_B)


def cross_entropy(logits: Array, targets: AnyArray) -> Array:
    """Compute -log softmax(logits)[target] over the last axis, without a second array of the size of the logits.

    The target's logit is selected by comparison, because the gradient of an index is a scatter, which is slow on accelerators.
    """
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_target, logits, 0).sum(axis=-1)


def masked_mean(values_BS: Array, included_BS: Array) -> Array:
    """Average the values of each image where `included_BS` is 1, [B]; 0 for an image without any."""
    return (values_BS * included_BS).sum(axis=1) / jnp.maximum(included_BS.sum(axis=1), 1.0)


def draw_prefix(keys_B: Array, positions: int) -> Array:
    """Draw the number of first inputs that attend to each other in both directions, int [B], uniform from 1 (no prefix) to positions - 1."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, positions))(keys_B)


def sample_mask(keys_B: Array, positions: int, probability: float) -> Array:
    """Draw which codes of each image are masked: float32 [B, S], 1 where the code is masked and 0 where the model sees it.

    Each position is masked with `probability`, independently of the others. Each image has its own key and at least one masked position: the one with
    the smallest draw is always masked. (In 3 of 100,000 images of 64 positions no other is, where the original divides by zero.)
    """

    def draw(key: Array) -> Array:
        uniform_S = jax.random.uniform(key, (positions,))
        return ((uniform_S < probability) | (uniform_S == uniform_S.min())).astype(jnp.float32)

    return jax.vmap(draw)(keys_B)


def image_keys(key: Array, indices_B: AnyArray) -> Array:
    """Derive a key for each image from its index, so that a draw depends neither on the batch size nor on the number of devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices_B)


def generative_loss(model: ImageGPT, codes_BS: AnyArray, keys_B: Array, mask_probability: float, training: bool) -> tuple[Array, Output]:
    """Run the model and compute the loss of its own objective: (nats per token [B], the Output).

    A prefix model gets a prefix, and dropout drops, only in training. Otherwise the loss of a prefix model is over whole images, as an autoregressive model's.
    """
    dropout_keys_B = jax.vmap(partial(jax.random.fold_in, data=DROPOUT))(keys_B) if training and model.config.dropout else None
    if model.config.objective == "bert":
        mask_BS = sample_mask(keys_B, codes_BS.shape[1], mask_probability)
        output = model(codes_BS, mask_BS, dropout_keys_B=dropout_keys_B)
        return masked_pixel_loss(output.logits, codes_BS, mask_BS), output
    prefix_B = draw_prefix(keys_B, codes_BS.shape[1]) if training and model.config.objective == "prefix" else None
    output = model(codes_BS, prefix_B=prefix_B, dropout_keys_B=dropout_keys_B)
    return next_pixel_loss(output.logits, codes_BS, prefix_B), output
