"""The three losses, each in nats and each one number per image (paper 2.1-2.3; `src/model.py` of openai/image-gpt)."""

import jax
import jax.numpy as jnp


def next_pixel_loss(logits_BSV, codes_BS):
    """Mean over positions of the cross-entropy of each code given the codes before it, [B]."""
    return cross_entropy(logits_BSV, codes_BS).mean(axis=1)


def masked_pixel_loss(logits_BSV, codes_BS, keep_BS):
    """Mean over the masked positions (keep = 0) of each image, [B]; 0 for an image that has none."""
    masked_BS = 1.0 - keep_BS
    return (cross_entropy(logits_BSV, codes_BS) * masked_BS).sum(axis=1) / jnp.maximum(masked_BS.sum(axis=1), 1.0)


def classification_loss(class_logits_BC, labels_B):
    """Cross-entropy of the label, [B]."""
    return cross_entropy(class_logits_BC, labels_B)


def cross_entropy(logits, targets):
    """-log softmax(logits)[target] over the last axis; written so that no second array of the size of the logits is made."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def draw_keep(keys_B, positions: int, probability: float):
    """Draw which positions each image keeps, float32 [B, S]: 0 with `probability`, each from its own key; an image never masks nothing.

    One position, drawn too, is masked where the draw masked none (at 64 positions 3 draws in 100,000; the original divides by zero).
    """

    def draw(key):
        uniform_S = jax.random.uniform(key, (positions,))
        masked_S = (uniform_S < probability) | (uniform_S == uniform_S.min())
        return 1.0 - masked_S.astype(jnp.float32)

    return jax.vmap(draw)(keys_B)


def image_keys(key, indices_B):
    """One key for each image, from its index: the same draw whatever the batch size and the number of devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices_B)


def generative_loss(model, codes_BS, keys_B, mask_probability: float):
    """Forward pass and loss of the model's own objective: (nats per pixel [B], the Output)."""
    if model.config.causal:
        output = model(codes_BS)
        return next_pixel_loss(output.logits, codes_BS), output
    keep_BS = draw_keep(keys_B, codes_BS.shape[1], mask_probability)
    output = model(codes_BS, keep_BS)
    return masked_pixel_loss(output.logits, codes_BS, keep_BS), output
