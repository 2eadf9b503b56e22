"""What the converters share: arrays by name and their checks, the checkpoint that is written, and folders that appear only when they are complete."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from igpt_jax.data import messages
from igpt_jax.distributed.multihost import note
from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from igpt_jax.types import PathLike

listed = partial(messages.listed, most=24)  # names of arrays

Shapes = dict[str, tuple[int, ...]]  # by the name of the array


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The arrays of another program's checkpoint: their shapes by name, and a function that reads one."""

    place: str  # for messages
    shapes: Shapes
    reader: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """Read one array in float32; ValueError if it does not hold floating-point numbers."""
        array = self.reader(name)
        if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise ValueError(f"{name} in {self.place} is {array.dtype.name}, expected floating-point numbers")
        return np.asarray(array, np.float32)


def load_to_publish(source: PathLike, ema: bool = False) -> checkpoints.Pretrained:
    """Load a checkpoint that is written in another form; `ema` takes the average of its weights. A note says that there is an average if it is not taken."""
    pretrained = checkpoints.load(source, ema=ema)
    average = None if ema or pretrained.name else checkpoints.identify(pretrained.path, ema=True)  # a model in one file has a name, and no average
    if average and average[2] is not None:
        note(f"{pretrained.path} has a moving average of the weights too: --ema writes that one, and these are the weights of step {pretrained.step}")
    return pretrained


def check_destination(destination: PathLike) -> None:
    """Raise ValueError for a path that is not local, FileExistsError for one that exists and is not an empty folder."""
    if "://" in str(destination):
        raise ValueError(f"DST must be a local folder, not {destination}: copy it there afterwards")
    destination = pathlib.Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists and is not an empty folder: give another DST, or delete it first")


def check_arrays(arrays: Arrays, expected: Shapes, ignored: Collection[str] = frozenset()) -> None:
    """Raise a ValueError that names every array that is missing, unexpected or of another shape."""
    shapes, problems = arrays.shapes, []
    if missing := [name for name in expected if name not in shapes]:
        problems.append(f"missing {listed(missing)}")
    if extra := [name for name in shapes if name not in expected and name not in ignored]:
        problems.append(f"unexpected {listed(extra)}")
    if wrong := [name for name, shape in expected.items() if shapes.get(name, shape) != shape]:
        problems.append("wrong shape " + listed(f"{name} {list(shapes[name])} instead of {list(expected[name])}" for name in wrong))
    if problems:
        raise ValueError(f"{arrays.place} does not hold the arrays of an Image GPT: {'; '.join(problems)}")


def check_palette(palette: Palette, config: ModelConfig) -> None:
    """Raise ValueError if the palette has not as many colours as the model."""
    if palette.size != config.vocabulary or palette.tokens_per_pixel != config.tokens_per_pixel:
        kind = "colours" if palette.tokens_per_pixel == 1 else "levels"
        raise ValueError(f"the palette has {palette.size} {kind}, the model {config.vocabulary} colours: give the palette that it was trained with")


def model_config(**sizes: Any) -> ModelConfig:
    """Make the configuration of a converted model from its sizes and objective; ValueError if its positions are no square image."""
    config = ModelConfig(**PAPER, **sizes, class_layer=-1, dtype="float32", remat="none", unroll=1, attention="auto")
    if round(config.positions**0.5) ** 2 != config.positions:
        raise ValueError(f"{config.positions} positions are not the pixels of a square image")
    return config


def stacked(layers: int, read_block: Callable[[int], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stack the arrays of the blocks along a leading layer axis. They are read layer by layer, so that memory holds the model only once."""
    arrays: dict[str, np.ndarray] = {}
    for layer in tqdm(range(layers), desc="reading", unit="layer", disable=not sys.stderr.isatty()):
        for name, array in read_block(layer).items():
            arrays.setdefault(name, np.empty((layers, *array.shape), np.float32))[layer] = array
    return arrays


def write_checkpoint(
    destination: PathLike,
    nested: dict[str, Any],
    config: ModelConfig,
    palette: Palette,
    source: str,
    step: int,
    view: str,
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Write nested arrays as a checkpoint, with the recipe that the other programs read. `view` is how the model's training cropped its images."""
    model = checkpoints.from_nested(nested, jax.eval_shape(partial(ImageGPT, config), jax.random.key(0)))
    data = {"source": "", "image_size": round(config.positions**0.5), "augment": "none", "view": view, "split_by": "name"}  # no source: --data gives one
    recipe = {
        "loss": {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5},
        "data": data | {"validation": 0.1, "directory": "", "workers": 0, "seed": 0},
        "converted_from": source,
    }
    with written_whole(destination) as folder:
        checkpoints.save_model(folder, model, palette, recipe, step, class_names)


@contextlib.contextmanager
def written_whole(destination: PathLike) -> Iterator[pathlib.Path]:
    """Make a temporary folder beside `destination`. It is renamed to `destination` when the block ends, and deleted if the block fails."""
    destination = pathlib.Path(destination).resolve()
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object; FileNotFoundError or ValueError, one line, where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder written by transformers' save_pretrained")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected names and values")
    return content


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
