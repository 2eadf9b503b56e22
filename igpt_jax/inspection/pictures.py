"""Attention drawn over a picture, for the page and for figures: weights shine, the rest of the picture is dark, what the model has not seen is blank.

N heads, S sequence, H rows and columns of a picture.
"""

import math

import numpy as np

from igpt_jax.inspection.batches import decode_pictures
from igpt_jax.inspection.maps import PixelMap
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.training.checkpoints import Pretrained

SHINE = np.array((255, 214, 10))  # yellow: brighter than the darkened picture in grey too
UNSEEN = 240  # level of pixels that the model has not seen
CHOSEN = (255, 59, 48)  # red, of the frame of the predicted pixel


def attention_pictures(
    pretrained: Pretrained, codes_S: np.ndarray, found: PixelMap, row: int, column: int, layer: int, side: int
) -> list[tuple[np.ndarray, str]]:
    """Return (uint8 picture of at least `side` pixels, caption): the mean over the heads of a layer (from 1), the picture alone, and each head.

    `found` is what `pixel_maps` returns for this pixel of the picture.
    """
    config, picture = pretrained.model_config, decode_pictures(pretrained, codes_S)
    maps_NHH, start_N = found.pixels[layer - 1], found.start[layer - 1]
    unseen, scale = unseen_pixels(config, row, column), math.ceil(side / config.rows)
    weights = [maps_NHH.mean(axis=0), *maps_NHH]
    large, *heads = (framed(overlay(picture, weights_HH, unseen), row, column, scale) for weights_HH in weights)
    starts = [f", {100 * start:.0f} % on the start vector" if config.causal else "" for start in start_N]
    captions = [f"head {head}: up to {100 * maps_NHH[head - 1].max():.0f} % on a pixel{start}" for head, start in enumerate(starts, 1)]
    first = (large, f"layer {layer} of {config.layers}, mean over {len(maps_NHH)} heads; click on a pixel to predict it")
    return [first, (framed(picture, row, column, scale), f"row {row}, column {column} is predicted"), *zip(heads, captions, strict=True)]


def unseen_pixels(config: ModelConfig, row: int, column: int) -> np.ndarray:
    """Return which pixels have no part in the prediction of a pixel, bool [H, H]: it and all later ones, for a bert model itself alone."""
    number = np.arange(config.rows**2).reshape(config.rows, config.rows)
    chosen = row * config.rows + column
    return number >= chosen if config.causal else number == chosen


def overlay(picture: np.ndarray, weights: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Draw weights float [H, H] over a picture uint8 [H, H, 3]: uint8 [H, H, 3].

    The brightness of a pixel is the root of its weight relative to the largest one, because a few pixels have most of the weight.
    """
    luminance = picture @ np.array((0.299, 0.587, 0.114))
    dark = np.repeat(0.10 * 255 + 0.42 * luminance[..., None], 3, axis=-1)
    share = np.sqrt(weights / max(float(weights.max()), 1e-12))[..., None]
    drawn = np.where(unseen[..., None], UNSEEN, (1 - share) * dark + share * SHINE)
    return drawn.round().astype(np.uint8)


def framed(picture: np.ndarray, row: int, column: int, scale: int) -> np.ndarray:
    """Enlarge a picture uint8 [H, H, 3] by a whole number, with a frame around one pixel: uint8 [H * scale, H * scale, 3]."""
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    width = max(1, scale // 5)
    top, left = row * scale, column * scale
    inside = large[top + width : top + scale - width, left + width : left + scale - width].copy()
    large[top : top + scale, left : left + scale] = CHOSEN
    large[top + width : top + scale - width, left + width : left + scale - width] = inside
    return large
