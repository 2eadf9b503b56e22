"""The losses, each in nats and each one number per image (paper 2.1-2.3; `src/model.py` of openai/image-gpt)."""

import jax
import jax.numpy as jnp


def next_pixel_loss(logits_BSV, codes_BS, prefix_B=None):
    """Mean over positions of the cross-entropy of each code given the codes before it, [B].

    With a prefix of P inputs, which know the first P - 1 codes, over the positions from P - 1 on (AIM, El-Nouby et al. 2024, 3.2).
    """
    losses_BS = cross_entropy(logits_BSV, codes_BS)
    if prefix_B is None:
        return losses_BS.mean(axis=1)
    return masked_mean(losses_BS, jnp.arange(codes_BS.shape[1]) >= prefix_B[:, None] - 1)


def masked_pixel_loss(logits_BSV, codes_BS, mask_BS):
    """Average the cross-entropy over the masked positions of each image (mask = 1), [B]; 0 for an image without any."""
    return masked_mean(cross_entropy(logits_BSV, codes_BS), mask_BS)


def classification_loss(class_logits_BC, labels_B):
    """Cross-entropy of the label, [B]."""
    return cross_entropy(class_logits_BC, labels_B)


def cross_entropy(logits, targets):
    """-log softmax(logits)[target] over the last axis; written so that no second array of the size of the logits is made."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def masked_mean(values_BS, counted_BS):
    """Mean over the positions of each image where `counted_BS` is not 0, [B]; 0 where there is none."""
    return (values_BS * counted_BS).sum(axis=1) / jnp.maximum(counted_BS.sum(axis=1), 1.0)


def draw_prefix(keys_B, positions: int):
    """Draw how many of the first inputs of each image see each other both ways, int [B] from 1 (none) to positions - 1."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, positions))(keys_B)


def sample_mask(keys_B, positions: int, probability: float):
    """Draw which codes of each image are masked: float32 [B, S], 1 where the code is masked and 0 where the model sees it.

    Each position is masked with `probability`, independently of the others. Each image has its own key and at least one masked position: the one with
    the smallest draw is always masked. (In 3 of 100,000 images of 64 positions no other is, where the original divides by zero.)
    """

    def draw(key):
        uniform_S = jax.random.uniform(key, (positions,))
        return ((uniform_S < probability) | (uniform_S == uniform_S.min())).astype(jnp.float32)

    return jax.vmap(draw)(keys_B)


def image_keys(key, indices_B):
    """One key for each image, from its index: the same draw whatever the batch size and the number of devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices_B)


def generative_loss(model, codes_BS, keys_B, mask_probability: float, training: bool):
    """Forward pass and loss of the model's own objective: (nats per token [B], the Output).

    Outside of training a prefix model is given no prefix: its loss is then that of whole images, as an autoregressive model's.
    """
    if model.config.objective == "bert":
        mask_BS = sample_mask(keys_B, codes_BS.shape[1], mask_probability)
        output = model(codes_BS, mask_BS)
        return masked_pixel_loss(output.logits, codes_BS, mask_BS), output
    prefix_B = draw_prefix(keys_B, codes_BS.shape[1]) if training and model.config.objective == "prefix" else None
    output = model(codes_BS, prefix_B=prefix_B)
    return next_pixel_loss(output.logits, codes_BS, prefix_B), output
