"""Arrange pictures in rows and columns, as one PIL image."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from igpt_jax.sampling.complete import Completions


def completion_grid(made: Completions, scale: int = 0) -> Image.Image:
    """Draw the blog's figure as a PIL image: a row for each image, with its model input, completions and original. See `picture_grid` for `scale`."""
    columns = [made.given, *made.pictures.swapaxes(0, 1), made.originals]
    return picture_grid(columns, ["model input", *["completions"] * made.pictures.shape[1], "original"], scale)


def picture_grid(columns: Sequence[np.ndarray] | np.ndarray, titles: Sequence[str] | None = None, scale: int = 0, gap: int = 4) -> Image.Image:
    """Draw columns of pictures uint8 [I, H, W, 3] on white, as a PIL image. Neighbouring columns with equal titles share one.

    Each pixel becomes a square of `scale` pixels, without interpolation (0: pictures about 96 pixels high). Pictures are `gap` pixels apart.
    """
    rows, height, width = np.asarray(columns[0]).shape[:3]
    scale = scale or max(1, math.ceil(96 / height))
    height, width = height * scale, width * scale
    top = 26 if titles else gap
    canvas = Image.new("RGB", (len(columns) * (width + gap) + gap, top + rows * (height + gap)), "white")
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(np.asarray(pictures)):
            enlarged = np.kron(picture, np.ones((scale, scale, 1), np.uint8))
            canvas.paste(Image.fromarray(enlarged), (gap + column * (width + gap), top + row * (height + gap)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    titles = titles or []
    for column, title in enumerate(titles):
        if column == 0 or titles[column - 1] != title:
            span = next((end for end in range(column, len(titles)) if titles[end] != title), len(titles)) - column
            draw.text((gap + (column + span / 2) * (width + gap), 6), title, fill="black", font=font, anchor="mt")
    return canvas
