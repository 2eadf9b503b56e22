"""What the readers and writers of other programs' checkpoints share: arrays by name, their checks, and folders that are written whole or not at all."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig
from igpt_jax.training import checkpoints

INSTALL = "pip install 'igpt_jax[convert]'"


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The arrays of somebody's checkpoint: shapes by name, and a function that reads one."""

    place: str  # for messages
    shapes: dict[str, tuple[int, ...]]
    reader: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """One array in float32; ValueError where it is not of floating point."""
        array = self.reader(name)
        if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise ValueError(f"{name} in {self.place} is {array.dtype.name}, expected floating-point numbers")
        return np.asarray(array, np.float32)


def check_destination(destination):
    if "://" in str(destination):
        raise ValueError(f"DST must be a local folder, not {destination}: copy it there afterwards")
    destination = pathlib.Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists and is not an empty folder: give another DST, or delete it first")


def check_arrays(arrays, wanted, ignored=frozenset()):
    """ValueError that names every array that is missing, unexpected or of another shape."""
    found, problems = arrays.shapes, []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"missing {listed(missing)}")
    if extra := [name for name in found if name not in wanted and name not in ignored]:
        problems.append(f"unexpected {listed(extra)}")
    if wrong := [name for name, shape in wanted.items() if found.get(name, shape) != shape]:
        problems.append("wrong shape " + listed(f"{name} {list(found[name])} instead of {list(wanted[name])}" for name in wrong))
    if problems:
        raise ValueError(f"{arrays.place} does not hold the arrays of an Image GPT: {'; '.join(problems)}")


def check_palette(palette, config):
    if palette.size != config.vocabulary or palette.tokens_per_pixel != config.tokens_per_pixel:
        kind = "colours" if palette.tokens_per_pixel == 1 else "levels"
        raise ValueError(f"the palette has {palette.size} {kind}, the model {config.vocabulary} colours: give the palette that it was trained with")


def model_config(**found):
    config = ModelConfig(**PAPER, **found, class_layer=-1, dtype="float32", remat="none", unroll=1, attention="auto")
    if round(config.positions**0.5) ** 2 != config.positions:
        raise ValueError(f"{config.positions} positions are not the pixels of a square image")
    return config


def stacked(layers, read_block):
    """The blocks' arrays along a leading layer axis, filled layer by layer, so that no second copy of the model is held."""
    stacked = {}
    for layer in tqdm(range(layers), desc="reading", unit="layer", disable=not sys.stderr.isatty()):
        for name, array in read_block(layer).items():
            stacked.setdefault(name, np.empty((layers, *array.shape), np.float32))[layer] = array
    return stacked


def write_checkpoint(destination, nested, config, palette, source, step, view, class_names=None):
    """Write the arrays as a checkpoint of ours, with the recipe that the other programs read in it; `view` is how the model's images were seen."""
    model = checkpoints.from_nested(nested, jax.eval_shape(partial(ImageGPT, config), jax.random.key(0)))
    unknown_data = {"source": "", "image_size": round(config.positions**0.5), "augment": "none", "view": view, "split_by": "name"}  # no source: --data says it
    recipe = {
        "loss": {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5},
        "data": unknown_data | {"validation": 0.1, "directory": "", "workers": 0, "seed": 0},
        "converted_from": source,
    }
    with written_whole(destination) as folder:
        checkpoints.save_model(folder, model, palette, recipe, step, class_names)


@contextlib.contextmanager
def written_whole(destination):
    """A new folder beside `destination` that takes its name when the block ends, and vanishes where it fails."""
    destination = pathlib.Path(destination).resolve()
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder written by transformers' save_pretrained")
    try:
        said = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds a {type(said).__name__}, expected names and values")
    return said


def note(line):
    print(f"note: {line}", file=sys.stderr)


def listed(names, most=24):
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
