"""Pictures in rows and columns, as one PIL image."""

import math

import numpy as np

from igpt_jax.sampling.complete import Completions


def completion_grid(made: Completions, scale: int = 0):
    """The blog's figure as a PIL image: a row for each image, model input | completions | original, pixels enlarged and never blurred."""
    columns = [made.given, *made.pictures.swapaxes(0, 1), made.originals]
    return picture_grid(columns, ["model input", *["completions"] * made.pictures.shape[1], "original"], scale)


def picture_grid(columns, titles=None, scale: int = 0, gap: int = 4):
    """A PIL image of columns of pictures [I, H, W, 3] on white; equal neighbouring titles are written once. `scale` 0 makes them about 96 pixels."""
    from PIL import Image, ImageDraw, ImageFont

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
    for column, title in enumerate(titles or []):
        if column == 0 or titles[column - 1] != title:
            span = next((end for end in range(column, len(titles)) if titles[end] != title), len(titles)) - column
            draw.text((gap + (column + span / 2) * (width + gap), 6), title, fill="black", font=font, anchor="mt")
    return canvas
