"""The images that an inspection looks at: those of `igpt_jax.evaluate`, with the same masks for a bert model.

B batch, S sequence, H rows and columns of a picture.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from igpt_jax.data import images, pipeline
from igpt_jax.model import objectives
from igpt_jax.shapes import describe
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.training.evaluation import EVALUATION_SEED, check_fit


class Batch(NamedTuple):
    """Some images of a data set."""

    codes: np.ndarray  # int32 [B, S]
    mask: np.ndarray | None  # float32 [B, S], 1 where a bert model sees nothing; None for a causal model

    def __repr__(self) -> str:
        return describe(self)


def open_images(pretrained: Pretrained, count: int, split: str = "test", source: str | None = None) -> pipeline.Dataset:
    """Open at most `count` images of a split (0: all), drawn as by `igpt_jax.evaluate --limit`; ValueError where they do not fit the model."""
    dataset = pipeline.open_dataset(pipeline.config_for(pretrained.config, pretrained.image_size, source), split).draw(count)
    check_fit(pretrained.model_config, pretrained.palette, dataset, labels_needed=False)
    return dataset


def evaluation_batches(pretrained: Pretrained, dataset: pipeline.Dataset, size: int) -> Iterator[tuple[Batch, int]]:
    """Yield (batch, number of its images) in order. Every batch has `size` images, the last one with others behind its own."""
    for batch in pipeline.evaluation_batches(dataset, pretrained.palette, min(size, len(dataset))):
        mask = None
        if not pretrained.model_config.causal:
            keys_B = objectives.image_keys(jax.random.key(EVALUATION_SEED), batch["index"])
            mask = np.asarray(objectives.sample_mask(keys_B, batch["codes"].shape[1], pretrained.mask_probability))
        yield Batch(batch["codes"], mask), int(batch["weight"].sum())


def encode_pictures(pretrained: Pretrained, pictures: Any) -> np.ndarray:
    """Return the codes int32 [B, S] of one picture or several: paths, PIL images or arrays, seen as in the model's evaluation."""
    size, view = pretrained.image_size, pipeline.view_of(pretrained.config, pretrained.image_size)
    arrays = [images.given_view(picture, view, size) for picture in images.as_images(pictures)]
    if not arrays:
        raise ValueError("there is no picture to look at")
    return pretrained.palette.encode(np.stack(arrays)).reshape(len(arrays), -1)


def decode_pictures(pretrained: Pretrained, codes: np.ndarray) -> np.ndarray:
    """Return the pictures uint8 [..., H, H, 3] of codes [..., S], in the palette's colours."""
    return pretrained.palette.decode(codes).reshape(*codes.shape[:-1], pretrained.image_size, pretrained.image_size, 3)
