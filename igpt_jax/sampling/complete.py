"""Pictures in, pictures out: complete the upper rows of images, fill a region, make pictures from nothing.

I images of H x H pixels, C completions of each, P codes of a prompt, S codes of an image.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from igpt_jax.cli import SEEDS
from igpt_jax.data import images, pipeline
from igpt_jax.sampling.generate import fill_codes, fill_codes_causally, is_whole_number, sample_codes
from igpt_jax.sampling.placement import replicate_everywhere
from igpt_jax.shapes import describe
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.types import Array

GREY = 128  # of a pixel that is not given


@dataclasses.dataclass(frozen=True)
class Completions:
    """What `complete` or `fill` made of I images of H x H pixels; pictures are RGB uint8."""

    pictures: np.ndarray  # [I, completions, H, H, 3]
    codes: np.ndarray  # int32 [I, completions, H * H]; those of the given pixels equal the input's
    given: np.ndarray  # [I, H, H, 3]: the model's input, grey where the model completes it
    originals: np.ndarray  # [I, H, H, 3]: the images resized, before colour quantization
    coded: np.ndarray  # [I, H, H, 3]: the originals in the colours of the palette
    missing: np.ndarray  # bool [I, H, H]: the pixels that were drawn
    survivors: np.ndarray | None = None  # float [I, completions]: effective number of different particles at the end, where a causal model filled

    def __repr__(self) -> str:
        return describe(self)


def complete(
    pretrained: Pretrained,
    pictures: Any,
    rows: int | None = None,
    completions: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 256,
) -> Completions:
    """Complete images from their top `rows` (None: half of them), `completions` times each.

    `pictures` is one image or several: paths, PIL images, or arrays uint8 [H, W] or [H, W, 1, 3 or 4] of NumPy, JAX, ... (see `images.as_images`). Images
    of another size than the model's are cropped and resized as in its evaluation (config.data.view).

    `temperature` 0 takes the likeliest colour. `top_k` (0: off) and `top_p` (1: off) draw only from the likeliest colours. At most `batch` pictures are
    drawn at once; if memory is too small for them, fewer, with a line on stderr.

    A draw depends on `seed`, on the given rows in the palette's colours, and on the number of the completion. Images with the same given rows continue each
    other's numbers in their order: two of them get the completions that one would get with twice as many. Other images, and their order, change nothing.
    """
    size = pretrained.image_size
    block = pretrained.model_config.block
    rows = size // 2 // block * block if rows is None else rows
    _check_counts(completions=completions, batch=batch)
    if not is_whole_number(rows) or not 0 <= rows < size:
        raise ValueError(f"rows {rows} must be between 0 and {size - 1}: the images have {size} rows")
    originals, codes_IS = _encode(pretrained, pictures)
    missing_IHH = np.broadcast_to(np.arange(size)[:, None] >= rows, originals.shape[:3])
    prompts_IP = codes_IS[:, : rows * pretrained.model_config.columns]
    codes_ICS = sample_codes(replicate_everywhere(pretrained.model), prompts_IP, _key(seed), completions, temperature, top_k, top_p, batch)
    return _decode(pretrained, codes_ICS, originals, codes_IS, missing_IHH)


def fill(
    pretrained: Pretrained,
    pictures: Any,
    region: Any,
    completions: int = 4,
    rounds: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 256,
    particles: int | None = None,
) -> Completions:
    """Fill a region of images, `completions` times each; `region` bool [H, H] or [I, H, H] is true where it fills.

    A bert model fills it in `rounds` (None: 16): each predicts all missing pixels and fixes those nearest to known ones, few at first. With as many rounds
    as pixels, each round fixes one. A causal model draws pixel by pixel with `particles` (None: 16) for each completion, which the known pixels after the
    gap weigh (igpt_jax/sampling/particles.py): a completion takes as many times the work and the memory of one without known pixels below.
    The other parameters are those of `complete`. As there, images with the same region and the same known pixels continue each other's numbers. Raises
    ValueError for `rounds` of a causal model, and for `particles` of a bert model.
    """
    size = pretrained.image_size
    counts = {name: value for name, value in (("rounds", rounds), ("particles", particles)) if value is not None}
    _check_counts(completions=completions, batch=batch, **counts)
    without = "rounds" if pretrained.model_config.causal else "particles"
    if without in counts:
        raise ValueError(f"{without} has no effect with a {'causal' if pretrained.model_config.causal else 'bert'} model: leave it out")
    originals, codes_IS = _encode(pretrained, pictures)
    region_IHH = np.broadcast_to(_checked_region(region, size, len(originals)), (len(originals), size, size))
    mask_IS = region_IHH.reshape(len(originals), -1).repeat(pretrained.palette.tokens_per_pixel, axis=1).astype(np.float32)
    model, key = replicate_everywhere(pretrained.model), _key(seed)
    if pretrained.model_config.causal:
        codes_ICS, survivors_IC = fill_codes_causally(model, codes_IS, mask_IS, key, completions, particles, temperature, top_k, top_p, batch)
        return dataclasses.replace(_decode(pretrained, codes_ICS, originals, codes_IS, region_IHH), survivors=survivors_IC)
    codes_ICS = fill_codes(model, codes_IS, mask_IS, key, completions, rounds, temperature, top_k, top_p, batch)
    return _decode(pretrained, codes_ICS, originals, codes_IS, region_IHH)


def one_of_each_class(pretrained: Pretrained, count: int, split: str = "test", source: str | None = None) -> list[np.ndarray]:
    """Choose `count` images of a split, RGB uint8 [H, H, 3] each: one of each class in turn. `source` replaces the checkpoint's data."""
    config = pipeline.config_for(pretrained.config, pretrained.image_size, source)
    dataset = pipeline.open_dataset(config, split)
    labels = np.asarray(dataset.labels)
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    chosen = np.lexsort((labels, rank))[:count]
    return [dataset.images(index, index + 1, pretrained.palette)[0] for index in chosen]


def unconditional(
    pretrained: Pretrained, count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, batch: int = 256
) -> np.ndarray:
    """Make pictures from nothing, uint8 [count, H, H, 3]. Picture n does not depend on `count`. The parameters are those of `complete`."""
    size, no_codes = pretrained.image_size, np.zeros((1, 0), np.int32)
    _check_counts(count=count, batch=batch)
    codes = sample_codes(replicate_everywhere(pretrained.model), no_codes, _key(seed), count, temperature, top_k, top_p, batch)
    return pretrained.palette.decode(codes[0]).reshape(count, size, size, 3)


def parse_region(text: str, size: int, view: str) -> np.ndarray:
    """Parse a region of the model's image, bool [size, size]: TOP,LEFT,HEIGHT,WIDTH in pixels, or the path of a mask image, white where the model fills.

    The mask image is cropped and resized by `view`, as the pictures are. Raises ValueError for other text, and for a region that is empty or outside.
    """
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
        raise ValueError(f"{text} has no white pixel: the model fills where the mask image is white")
    return region


def _checked_region(region: Any, size: int, count: int) -> np.ndarray:
    """Return the region as bool [H, H] or [I, H, H]; ValueError for other shapes and values, and where it is empty."""
    region = np.asarray(region)
    if region.dtype.kind not in "biu" or not np.isin(region, (0, 1, 255)).all():
        raise ValueError(f"a region is bool, or 0 and 1, or 0 and 255, not {region.dtype} {list(region.shape)} of other values")
    if not region.any():
        raise ValueError("the region has no pixel to fill")
    if region.shape not in ((size, size), (count, size, size)):
        raise ValueError(f"a region is bool [{size}, {size}], or [{count}, {size}, {size}] with one for each image, not {list(region.shape)}")
    return region.astype(bool)


def _encode(pretrained: Pretrained, pictures: Any) -> tuple[np.ndarray, np.ndarray]:
    """Read pictures: RGB uint8 [I, H, H, 3] as the model's evaluation sees them, and their codes int32 [I, S]."""
    arrays = images.as_images(pictures)
    if not arrays:
        raise ValueError("there is no image to complete")
    size = pretrained.image_size
    originals = np.stack([images.given_view(picture, pipeline.view_of(pretrained.config, size), size) for picture in arrays])
    return originals, pretrained.palette.encode(originals).reshape(len(originals), -1)


def _decode(pretrained: Pretrained, codes_ICS: np.ndarray, originals: np.ndarray, codes_IS: np.ndarray, missing_IHH: np.ndarray) -> Completions:
    coded = pretrained.palette.decode(codes_IS).reshape(originals.shape)
    given = np.where(missing_IHH[..., None], np.uint8(GREY), coded)
    pictures = pretrained.palette.decode(codes_ICS).reshape(*codes_ICS.shape[:2], *originals.shape[1:])
    return Completions(pictures, codes_ICS, given, originals, coded, missing_IHH)


def _check_counts(**counts: Any) -> None:
    """Raise ValueError for a value that is no whole number of at least 1."""
    for name, value in counts.items():
        if not is_whole_number(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def _key(seed: Any) -> Array:
    """Make the key of a seed. Seeds of more than 32 bits are refused, because JAX drops the rest."""
    if not is_whole_number(seed) or not 0 <= seed <= SEEDS:
        raise ValueError(f"seed must be a whole number from 0 to {SEEDS}, not {seed!r}")
    return jax.random.key(seed)
