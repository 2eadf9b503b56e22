"""Pack a run as one file to be published: parameters in 16 bits, palette, recipe (training/model_file.py)."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import igpt_jax
from igpt_jax.cli import prepare_file
from igpt_jax.data import pipeline
from igpt_jax.data.mixture import split_mixture
from igpt_jax.distributed.multihost import note
from igpt_jax.interop.weights import load_to_publish
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.training import checkpoints, model_file
from igpt_jax.training.model_file import DTYPES
from igpt_jax.training.trees import nest, to_flat
from igpt_jax.types import PathLike

HERE_ONLY = {("data", "source"), ("data", "directory"), ("data", "workers"), ("palette", "path")}  # keys of a recipe that mean something on one machine
LARGEST_CHANGE = 0.01  # of an array by rounding, as a share of its norm: bfloat16 changes a number by at most 0.4%


def pack(source: PathLike, destination: PathLike, dtype: str = "float16", data: str | None = None, overwrite: bool = False, ema: bool = False) -> ModelConfig:
    """Write a checkpoint as one file and return the model's configuration.

    `dtype`: of the parameters in the file, float16, bfloat16 or float32. `data`: the source that the file names, one that every machine can have, `digits` or
    `tfds:NAME`; None: that of the run if it is such a one, else none. `ema` takes the moving average of the weights. Raises
    ValueError for parameters that are not finite or that `dtype` cannot hold.
    """
    _check(destination, dtype, data, overwrite)
    pretrained = load_to_publish(source, ema)
    parameters = nest({name: _rounded(name, np.asarray(array), dtype) for name, array in to_flat(pretrained.model).items()})
    meta: dict[str, Any] = {
        "model": dataclasses.asdict(pretrained.model_config),
        "config": _portable_recipe(pretrained, data),
        "step": pretrained.step,
        "class_names": None if pretrained.class_names is None else list(pretrained.class_names),
        "checksums": {"model": checkpoints.checksum(jax.tree.map(lambda array: array.astype(np.float32), parameters))},
        "version": igpt_jax.__version__,
    }
    size = model_file.write(destination, parameters, pretrained.palette.centers, meta)
    note(f"{destination}: step {pretrained.step}, {dtype}, {size / 2**20:.2f} MiB, data {meta['config']['data']['source'] or '(none)'}")
    return pretrained.model_config


def _check(destination: PathLike, dtype: str, data: str | None, overwrite: bool) -> None:
    """Raise ValueError or OSError, one line, for arguments that cannot be right."""
    path = pathlib.Path(destination)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES.values())}")
    if path.suffix != model_file.SUFFIX:
        raise ValueError(f"DST is one file whose name ends in {model_file.SUFFIX}, not {destination}")
    if "://" in str(destination):
        raise ValueError(f"DST must be a local file, not {destination}: copy it there afterwards")
    if data is not None and not is_portable(data):
        raise ValueError(f"--data={data} is no source that every machine can have: give digits or tfds:NAME, or leave it out")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another DST, or --overwrite")
    prepare_file(path)


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Return a parameter in `dtype`; ValueError where it is not finite, too large for `dtype`, or changed by more than LARGEST_CHANGE."""
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(array)):,} of {array.size:,} numbers that are not finite: pack an earlier checkpoint")
    with np.errstate(over="ignore"):
        rounded = array.astype(jnp.dtype(dtype))
    wider = "bfloat16" if dtype == "float16" else "float32"
    if not np.isfinite(rounded).all():
        largest = float(jnp.finfo(dtype).max)
        raise ValueError(f"{name} has numbers up to {np.abs(array).max():.3g}, above the largest of {dtype}, {largest:.3g}: use --dtype={wider}")
    scale = float(np.abs(array).max()) or 1.0  # so that no square leaves the range of float64
    norm, change = (float(np.linalg.norm(part.astype(np.float64) / scale)) for part in (array, array - rounded.astype(np.float32)))
    if change > LARGEST_CHANGE * norm:
        raise ValueError(f"{dtype} changes {name} by {change / norm:.0%} of its norm, its numbers are at most {scale:.3g}: use --dtype={wider}")
    return rounded


def _portable_recipe(pretrained: checkpoints.Pretrained, data: str | None) -> dict[str, Any]:
    """Return the recipe without what means something on one machine only: paths and numbers of processes."""
    recipe = json.loads(json.dumps(pretrained.config))
    source = recipe.get("data", {}).get("source", "")
    kept = data or (source if is_portable(source) else "")
    if source and not kept:
        note(f"data.source {source} is a place on this machine and is left out: --data=tfds:NAME names one that others can have")
    recipe = _without_paths(recipe)
    size = pretrained.image_size
    recipe["data"] = dataclasses.asdict(pipeline.config_for(pretrained.config, size, source or kept or "digits"))
    recipe["data"] |= {"source": kept, "directory": "", "workers": 0}
    if "palette" in recipe:
        recipe["palette"]["path"] = ""
    here_only = {".".join(key) for key in HERE_ONLY}
    history = [entry | {"changes": {key: pair for key, pair in entry["changes"].items() if key not in here_only}} for entry in recipe.pop("history", [])]
    history = [entry for entry in history if entry["changes"]]
    return recipe | ({"history": history} if history else {})


def _without_paths(value: Any) -> Any:
    """Return a recipe with the last part alone of every string that looks like a path."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value


def is_portable(source: str) -> bool:
    """Whether a data source can be had on every machine."""
    named = [name.partition(":") for name in [name for name, _ in split_mixture(source)] or [source]]
    return all(kind == "digits" or bool(place) and (kind == "tfds" or kind == "hf" and not _is_path(place.partition(",")[0])) for kind, _, place in named)


def _is_path(place: str) -> bool:
    return place.startswith(("/", ".", "~")) or os.path.exists(place)
