"""What a fine-tuning recipe leaves open: the shape of the model, the palette's size, the resolution and the data are the checkpoint's, the classes the data's.

A recipe leaves the model's shape open by `model.layers` 0, and each of `data.image_size`, `data.source` and `model.classes` by 0 or "" (configs/finetune.py).
Keys that the user gives stay. What cuts a picture to a square, `data.view`, is the checkpoint's for any data, because a model must see pictures as in its
training.
"""

from collections.abc import Collection, Mapping
from typing import Any

from igpt_jax.data import pipeline
from igpt_jax.distributed.multihost import note
from igpt_jax.training import recipe
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.training.setup import SAME_FIELDS
from igpt_jax.types import PathLike, Recipe

FOLLOWING = ("vocabulary", "positions")  # fields of the model that follow from other keys of a recipe
OF_THE_IMAGES = ("source", "directory", "validation", "seed", "split_by")  # keys of data that say which images there are


def complete(config: Recipe, workdir: PathLike, pretrained: Pretrained | None, given: Collection[str] = ()) -> None:
    """Set what `config` leaves open from the checkpoint that a run begins with, or from the run's own recipe if it continues; in place, and say it.

    `given` are the keys that stay as they are, such as "data.validation". ValueError where a key is open and neither says it.
    """
    known: Mapping[str, Any] = recipe.read_config(workdir) or {} if pretrained is None else pretrained.config
    model = known.get("model", {}) if pretrained is None else {name: getattr(pretrained.model_config, name) for name in SAME_FIELDS}
    place = str(workdir) if pretrained is None else pretrained.path
    if config.model.layers and config.data.image_size and config.data.source and config.palette.size:
        return
    taken = _take_model(config, model, known.get("model", {}).get("dtype", ""), given) + _take_data(config, known.get("data", {}), given, place)
    if config.model.classes == 0 and config.loss.classification > 0:
        config.model.classes = _classes(config)
        taken.append(f"model.classes {config.model.classes}, those of the data")
    if taken:
        note(f"from {place}: {', '.join(taken)}")


def _take_model(config: Recipe, model: Mapping[str, Any], dtype: str, given: Collection[str]) -> list[str]:
    """Take the shape of the model, the `dtype` of its training ("": unknown, as of converted weights), the palette's size and the resolution."""
    if config.model.layers and config.data.image_size and config.palette.size:
        return []
    if not model:
        raise ValueError("this recipe takes the model from a checkpoint: give one by --checkpoint, or set config.model.layers, data.image_size, palette.size")
    tokens = model.get("tokens_per_pixel", 1)
    taken = []
    if not config.model.layers:
        for name in SAME_FIELDS:
            if name in model and name not in FOLLOWING and f"model.{name}" not in given:
                config.model[name] = model[name]
        taken.append(f"a model of {model['layers']} layers of width {model['width']}")
        if dtype and dtype != config.model.dtype and "model.dtype" not in given:
            config.model.dtype = dtype
            taken.append(f"model.dtype {dtype}")
    if not config.palette.size:
        config.palette.size = model["vocabulary"]
        config.palette.kind = "levels" if tokens == 3 else "colours"
        taken.append(f"palette.size {model['vocabulary']}")
    if not config.data.image_size:
        config.data.image_size = round((model["positions"] / tokens) ** 0.5)
        taken.append(f"data.image_size {config.data.image_size}")
    if tokens != config.model.positions // config.data.image_size**2:
        config.model.positions = tokens * config.data.image_size**2
    return taken


def _take_data(config: Recipe, data: Mapping[str, Any], given: Collection[str], place: str) -> list[str]:
    """Take the source of the images, and what says which of them belong to which split."""
    names = () if config.data.source else OF_THE_IMAGES
    if names and not data.get("source"):
        raise ValueError(f"{place} names no data: give them by --config.data.source=..., see igpt_jax/data/config.py")
    taken = [name for name in (*names, "view") if name in data and f"data.{name}" not in given and data[name] != config.data[name]]
    for name in taken:
        config.data[name] = data[name]
    return [f"data.{name} {data[name]!r}" for name in taken]


def _classes(config: Recipe) -> int:
    """The number of classes of the training images."""
    names = pipeline.open_dataset(pipeline.DataConfig(**config.data), "train").class_names
    if not names:
        raise ValueError(f"{config.data.source} has no classes: fine-tuning needs labels, see docs/guides/data.md for the layouts that have them")
    return len(names)
