"""Arrange pictures in rows and columns, as one PIL image or as an animation of how they were drawn."""

import io
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from igpt_jax.cli import prepare_file
from igpt_jax.files import one_line
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.sampling.complete import GREY, Completions

TILE = 96  # pixels of a picture in a grid, at least
STEPS = 64  # of an animation, at most: a file stays small
STEP_MS, INPUT_MS, HELD_MS = 60, 500, 2000  # milliseconds of a step, of the first frame and of the last one
GIF_COLOURS = 256
Save: TypeAlias = Callable[[IO[bytes], str], Any]  # (open file, ending without its dot) -> writes a picture


def prepare_picture(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = (), save: Save | None = None) -> None:
    """Check before the work that a picture can be written to a path, as `prepare_file` does, and in the format of the name's ending.

    The ending is tried: `save` (None: Pillow) writes a small picture into memory. ValueError, one line, where it cannot.
    """
    ending = pathlib.Path(path).suffix.lower().removeprefix(".")
    try:
        (save or _save_small)(io.BytesIO(), ending)
    except Exception as error:  # each encoder has its own
        reason = f"does not end like the name of a picture that can be written ({'no ending' if not ending else one_line(error)[:100]})"
        raise ValueError(f"--out={path} {reason}: give one that ends in .png") from error
    prepare_file(path, inputs)


def _save_small(file: IO[bytes], ending: str) -> None:
    if f".{ending}" not in Image.registered_extensions():
        raise ValueError(f"no format .{ending}")
    Image.new("RGB", (2, 2)).save(file, Image.registered_extensions()[f".{ending}"])


def completion_grid(made: Completions, scale: int = 0, pictures: np.ndarray | None = None) -> Image.Image:
    """Draw the blog's figure as a PIL image: a row for each image, with its model input, completions and original. See `picture_grid` for `scale`.

    `pictures`, uint8 [I, W, W, 3] with W a multiple of the model's resolution, are the images before they were made small. They are shown first, and the
    originals also in the colours of the palette.
    """
    columns = [made.given, *made.pictures.swapaxes(0, 1), made.originals]
    titles = ["model input", *["completions"] * made.pictures.shape[1], "original"]
    if pictures is None:
        return picture_grid(columns, titles, scale)
    height, width = made.originals.shape[1:3]
    return picture_grid([pictures, *columns, made.coded], ["picture", *titles[:-1], f"{width} x {height}", "palette colours"], scale)


def square_grid(pictures: np.ndarray, scale: int = 0) -> Image.Image:
    """Draw pictures uint8 [I, H, W, 3] in a square, row by row, with white ones at the end, as a PIL image. See `picture_grid` for `scale`."""
    side = math.ceil(len(pictures) ** 0.5)
    blank = np.full((-len(pictures) % side, *pictures.shape[1:]), 255, np.uint8)
    return picture_grid(np.concatenate([pictures, blank]).reshape(-1, side, *pictures.shape[1:]).swapaxes(0, 1), scale=scale)


def picture_grid(columns: Sequence[np.ndarray] | np.ndarray, titles: Sequence[str] | None = None, scale: int = 0, gap: int = 4) -> Image.Image:
    """Draw columns of pictures uint8 [I, H, W, 3] on white, as a PIL image. Neighbouring columns with equal titles share one.

    Each pixel becomes a square of `scale` pixels, without interpolation (0: pictures about 96 pixels high). Pictures are `gap` pixels apart. The pictures
    of a column may be a whole number of times as large as the smallest, and are then drawn at the same size; ValueError for other sizes.
    """
    rows, (height, width) = len(columns[0]), min(np.asarray(pictures).shape[1:3] for pictures in columns)
    scale = scale or max(1, math.ceil(TILE / height))
    height, width = height * scale, width * scale
    top = 26 if titles else gap
    canvas = Image.new("RGB", (len(columns) * (width + gap) + gap, top + rows * (height + gap)), "white")
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(np.asarray(pictures)):
            enlarged = _enlarge(picture, height, width)
            canvas.paste(Image.fromarray(enlarged), (gap + column * (width + gap), top + row * (height + gap)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    titles = titles or []
    for column, title in enumerate(titles):
        if column == 0 or titles[column - 1] != title:
            span = next((end for end in range(column, len(titles)) if titles[end] != title), len(titles)) - column
            draw.text((gap + (column + span / 2) * (width + gap), 6), title, fill="black", font=font, anchor="mt")
    return canvas


def _enlarge(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture with each pixel as a square, uint8 [height, width, 3]."""
    scale = height // picture.shape[0]
    if (scale * picture.shape[0], scale * picture.shape[1]) != (height, width):
        raise ValueError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels cannot be drawn with {width} x {height}: its pixels would be no squares")
    return picture.repeat(scale, 0).repeat(scale, 1)


def drawing_frames(
    pictures: np.ndarray, missing: np.ndarray, draw: Callable[[np.ndarray], Image.Image], order_HH: np.ndarray | None = None
) -> list[Image.Image]:
    """Return the frames in which the missing pixels of pictures uint8 [..., H, H, 3] appear in the order of the draws: the model's input, then the steps.

    `missing` bool, broadcast to [..., H, H], is true where the model drew. `draw` makes an image of all pictures. `order_HH` int says when each pixel is
    drawn (None: row by row); pixels of equal numbers appear together. There are as many steps as missing pixels, or 64 with several pixels in each.
    """
    height, width = pictures.shape[-3:-1]
    order_S = np.arange(height * width) if order_HH is None else order_HH.reshape(-1)
    missing_S = np.broadcast_to(missing, pictures.shape[:-1]).reshape(*pictures.shape[:-3], -1)
    drawn_S = np.take_along_axis(missing_S, np.argsort(order_S, kind="stable").reshape((1,) * (missing_S.ndim - 1) + (-1,)), -1).cumsum(axis=-1)
    rank_S = drawn_S[..., np.searchsorted(np.sort(order_S), order_S, side="right") - 1].reshape(*pictures.shape[:-1])  # how many are drawn with this one
    total = np.maximum(missing_S.sum(axis=-1), 1)[..., None, None]
    steps = min(STEPS, int(missing_S.sum(axis=-1).max()))
    hidden = (np.broadcast_to(missing, rank_S.shape) & (rank_S * steps > step * total) for step in range(steps + 1))
    return [draw(np.where(hidden_HH[..., None], np.uint8(GREY), pictures)) for hidden_HH in hidden]


def drawing_order(config: ModelConfig) -> np.ndarray | None:
    """Return when a model draws each pixel, for `drawing_frames`: None row by row, int [H, H] where it draws blocks."""
    return config.block_of_position().reshape(config.rows, config.rows) if config.block > 1 else None


def save_animation(frames: Sequence[Image.Image], file: str | os.PathLike[str] | IO[bytes]) -> str:
    """Write frames as a GIF that repeats; return how many there are and how long it takes, in words. More than 256 colours are reduced to 256.

    The colours are those of the first and the last frame; a frame between them has no others.
    """
    pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    numbers = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    colours = np.unique(numbers[[0, -1]])
    levels = colours[:, None] >> np.array([16, 8, 0]) & 255
    kept = levels
    if len(colours) > GIF_COLOURS:
        reduced = Image.fromarray(np.concatenate(pixels[[0, -1]])).quantize(GIF_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        kept = np.array(reduced.getpalette()).reshape(-1, 3)
    nearest = ((levels[:, None] - kept) ** 2).sum(axis=-1).argmin(axis=1).astype(np.uint8)
    indexed = [Image.fromarray(nearest[np.searchsorted(colours, number)]) for number in numbers]
    for image in indexed:
        image.putpalette(kept.astype(np.uint8).tobytes())
    durations = [INPUT_MS, *[STEP_MS] * (len(frames) - 2), HELD_MS][-len(frames) :]
    indexed[0].save(file, "gif", save_all=True, append_images=indexed[1:], duration=durations, loop=0)
    return f"{len(frames)} frames in {sum(durations) / 1000:.1f} seconds, the last held for {HELD_MS / 1000:.0f}"
