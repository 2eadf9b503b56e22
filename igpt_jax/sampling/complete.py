"""Pictures in, pictures out: the upper rows of images completed, a region filled, pictures made from nothing."""

import dataclasses
import pathlib

import jax
import numpy as np

from igpt_jax.cli import SEEDS
from igpt_jax.data import images, pipeline
from igpt_jax.sampling.generate import fill_codes, is_whole_number, sample_codes
from igpt_jax.sampling.placement import replicate_everywhere


@dataclasses.dataclass(frozen=True)
class Completions:
    """What `complete` or `fill` made of I images of size H x H; RGB uint8."""

    pictures: np.ndarray  # [I, completions, H, H, 3]
    codes: np.ndarray  # int32 [I, completions, H * H]; the given pixels are those of the input, bit for bit
    given: np.ndarray  # [I, H, H, 3]: the model's input, grey where it is to be completed
    originals: np.ndarray  # [I, H, H, 3]: the images resized, before colour coding


def complete(pretrained, pictures, rows=None, completions=4, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> Completions:
    """Complete images from their top `rows` (half of them by default), `completions` times each.

    `pictures`: one or several, as paths, arrays uint8 [H, W] or [H, W, 1, 3 or 4] of NumPy, JAX, ..., or PIL images (see `images.as_images`), of any size:
    seen as the model's evaluation sees them (config.data.view); one of the model's size is taken as it is. `temperature` 0 takes the likeliest colour;
    `top_k` (0: off) and `top_p` (1: off) keep only the likeliest colours. `batch` is how many pictures run at once, at most; fewer, said in a line, where
    the memory is too small. A picture that is there twice, or another with the same given rows, gets the completions of the next numbers: those that it
    would have if it were there once with twice as many.
    """
    size = pretrained.image_size
    rows = size // 2 if rows is None else rows
    _check_counts(completions=completions, batch=batch)
    if not is_whole_number(rows) or not 0 <= rows < size:
        raise ValueError(f"rows {rows} must be between 0 and {size - 1}: the images have {size} rows")
    originals, codes_IS = _coded(pretrained, pictures)
    missing_IHH = np.broadcast_to(np.arange(size)[:, None] >= rows, originals.shape[:3])
    prompts_IP = codes_IS[:, : rows * pretrained.model_config.columns]
    made = sample_codes(replicate_everywhere(pretrained.model), prompts_IP, _key(seed), completions, temperature, top_k, top_p, batch)
    return _shown(pretrained, made, originals, codes_IS, missing_IHH)


def fill(pretrained, pictures, region, completions=4, rounds=None, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> Completions:
    """Let a bert model fill a region of images, `completions` times each; `region` bool [H, H] or [I, H, H] is true where it fills.

    In each of `rounds` (None: 16) all missing pixels are predicted and those nearest to known ones stay, few at first; as many rounds as pixels
    fill one at a time. The draws belong to the pictures as those of `complete` do.
    """
    size = pretrained.image_size
    _check_counts(completions=completions, batch=batch, **({} if rounds is None else {"rounds": rounds}))
    originals, codes_IS = _coded(pretrained, pictures)
    region = np.asarray(region)
    if region.dtype.kind not in "biu" or not np.isin(region, (0, 1, 255)).all():
        raise ValueError(f"a region is bool, or 0 and 1, or 0 and 255, not {region.dtype} {list(region.shape)} of other values")
    if not region.any():
        raise ValueError("the region has no pixel to fill")
    region = region.astype(bool)
    if region.shape not in ((size, size), (len(originals), size, size)):
        raise ValueError(f"a region is bool [{size}, {size}], or one such for each of the {len(originals)} images, not {list(region.shape)}")
    region_IHH = np.broadcast_to(region, (len(originals), size, size))
    mask_IS = region_IHH.reshape(len(originals), -1).repeat(pretrained.palette.tokens_per_pixel, axis=1).astype(np.float32)
    made = fill_codes(replicate_everywhere(pretrained.model), codes_IS, mask_IS, _key(seed), completions, rounds, temperature, top_k, top_p, batch)
    return _shown(pretrained, made, originals, codes_IS, region_IHH)


def one_of_each_class(pretrained, count, split="test", source=None) -> list[np.ndarray]:
    """So many images of a split, RGB uint8 [H, H, 3] each, of each class in turn, so that a picture shows all; `source` replaces the checkpoint's data."""
    config = pipeline.config_for(pretrained.config, pretrained.image_size, source)
    dataset = pipeline.open_dataset(config, split)
    labels = np.asarray(dataset.labels)
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    chosen = np.lexsort((labels, rank))[:count]
    return [dataset.images(index, index + 1, pretrained.palette)[0] for index in chosen]


def unconditional(pretrained, count, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> np.ndarray:
    """Pictures made from nothing, uint8 [count, H, H, 3]; the n-th is the same whatever the count."""
    size, nothing = pretrained.image_size, np.zeros((1, 0), np.int32)
    _check_counts(count=count, batch=batch)
    codes = sample_codes(replicate_everywhere(pretrained.model), nothing, _key(seed), count, temperature, top_k, top_p, batch)
    return pretrained.palette.decode(codes[0]).reshape(count, size, size, 3)


def parse_region(text, size, view) -> np.ndarray:
    """TOP,LEFT,HEIGHT,WIDTH in pixels of the model's image, or the path of a mask image (white: to fill) seen by the pictures' `view`; bool [size, size]."""
    if pathlib.Path(text).suffix:
        region = images.given_view(images.read_image(text), view, size).mean(axis=2) > 127
    else:
        try:
            top, left, height, width = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"--fill={text} is neither TOP,LEFT,HEIGHT,WIDTH nor the path of a mask image") from None
        if min(top, left) < 0 or min(height, width) < 1 or max(top + height, left + width) > size:
            raise ValueError(f"--fill={text} reaches outside the model's image of {size} x {size} pixels")
        region = np.zeros((size, size), bool)
        region[top : top + height, left : left + width] = True
    if not region.any():
        raise ValueError(f"{text} has no white pixel: white is what the model fills")
    return region


def _coded(pretrained, pictures):
    """Pictures as RGB uint8 [I, H, H, 3] and codes int32 [I, S]."""
    taken = images.as_images(pictures)
    if not taken:
        raise ValueError("there is no image to complete")
    size = pretrained.image_size
    originals = np.stack([images.given_view(picture, pipeline.view_of(pretrained.config, size), size) for picture in taken])
    return originals, pretrained.palette.encode(originals).reshape(len(originals), -1)


def _shown(pretrained, codes_ICS, originals, codes_IS, missing_IHH) -> Completions:
    given = pretrained.palette.decode(codes_IS).reshape(originals.shape)
    given[missing_IHH] = 128
    return Completions(pretrained.palette.decode(codes_ICS).reshape(*codes_ICS.shape[:2], *originals.shape[1:]), codes_ICS, given, originals)


def _check_counts(**counts):
    """ValueError for what is no whole number of at least 1."""
    for name, value in counts.items():
        if not is_whole_number(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def _key(seed):
    """The key of a seed; beyond 32 bits it would be another seed's."""
    if not is_whole_number(seed) or not 0 <= seed <= SEEDS:
        raise ValueError(f"seed must be a whole number from 0 to {SEEDS}, not {seed!r}")
    return jax.random.key(seed)
