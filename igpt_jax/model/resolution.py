"""A model at another resolution: its positions are interpolated, so that a place in the picture keeps its vector.

R rows and columns of pixels, T tokens of a pixel, D width.
"""

import dataclasses

import jax

from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.types import Array, Tree

LARGEST = 1024  # pixels; attention to a million positions fits no device


def check_image_size(config: ModelConfig, image_size: int) -> None:
    """Raise ValueError for what is no resolution, and for a model whose positions are no square image."""
    if not isinstance(image_size, int) or isinstance(image_size, bool) or not 1 <= image_size <= LARGEST:
        raise ValueError(f"image_size must be a whole number of pixels from 1 to {LARGEST}, not {image_size!r}")
    if config.rows * config.columns != config.positions:
        raise ValueError(f"the model's {config.positions} positions are no square image, so they cannot be interpolated to {image_size} x {image_size}")


def at_resolution(model: ImageGPT, image_size: int) -> ImageGPT:
    """Return the model for pictures of `image_size` x `image_size` pixels; the model itself if it has this resolution.

    Learned positions are interpolated in two dimensions by their place in the picture, as in ViT (Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words",
    3.2), and axial ones along their axis: bilinear between the centres of the pixels, constant beyond the outermost; for a smaller picture they are averaged
    over the pixels that become one (`antialias` of jax.image.resize). The three tokens of a pixel have a table each. Rotary positions have no table and
    nothing changes: an offset in pixels means what it meant in training, and offsets longer than those of training are new to the model. All other
    parameters are kept. The model computes something at once, but it was not trained there: fine-tune it. A loss per pixel is another quantity at each
    resolution, because neighbouring pixels of a larger picture are more alike.
    """
    config = model.config
    check_image_size(config, image_size)
    if image_size == config.rows:
        return model
    resized = jax.tree.map(lambda x: x, model)
    resized.config = dataclasses.replace(config, positions=image_size**2 * config.tokens_per_pixel)
    rows, tokens = config.rows, config.tokens_per_pixel
    if config.position_encoding == "learned":
        resized.position_embedding = _interpolated(model.position_embedding, (rows, rows, tokens), image_size)
    if config.position_encoding == "axial":
        resized.row_embedding = _interpolated(model.row_embedding, (rows, 1), image_size)
        resized.column_embedding = _interpolated(model.column_embedding, (rows, tokens), image_size)
    return resized


def _interpolated(parameter: Tree, axes: tuple[int, ...], image_size: int) -> Tree:
    """Interpolate a table [product of axes, D] along all axes but the last, the tokens of a pixel. It stays where it is placed."""

    def resize(table: Array) -> Array:
        shape = (*(image_size for _ in axes[:-1]), axes[-1], table.shape[-1])
        return jax.image.resize(table.reshape(*axes, -1), shape, "bilinear", antialias=True).reshape(-1, table.shape[-1])

    return jax.tree.map(lambda table: jax.jit(resize, out_shardings=table.sharding)(table), parameter)
