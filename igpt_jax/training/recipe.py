"""Checks of a recipe: the range of each of its numbers, and the keys that may differ when a run is continued.

A continuation is refused only if it changes the shapes of arrays or the order of the data. Other changes are written into the history of
WORKDIR/config.json: {..., "history": [{"step": 4000, "changes": {"optim.learning_rate": [0.003, 0.001]}}]}.
"""

import dataclasses
import itertools
import json
import math
import zlib
from typing import Any, TypeAlias

import jax
import numpy as np
from etils import epath

from igpt_jax.cli import OLD_KEYS, base_recipe
from igpt_jax.data.mixture import ROUND, Mixed
from igpt_jax.data.pipeline import DataConfig, Dataset
from igpt_jax.data.tfds import Records
from igpt_jax.distributed import multihost
from igpt_jax.files import write_atomically
from igpt_jax.palette.palette import MAX_SIZE, Palette
from igpt_jax.training.checkpoints import FREE_FIELDS
from igpt_jax.types import PathLike, Recipe

RecipeDict: TypeAlias = dict[str, Any]  # a recipe as nested dicts, ConfigDict.to_dict()

ABOVE_0 = 5e-324  # the smallest float above 0
BELOW_1 = math.nextafter(1, 0)
# Key -> (is an integer, lowest, highest) of every number in configs/base.py. An interval of 0 steps means never.
RANGES: dict[str, tuple[bool, float, float]] = {
    "seed": (True, 0, 2**32 - 1),
    "batch_size": (True, 1, math.inf),
    "steps": (True, 1, 2**31 - 1),  # counted in int32
    "gradient_accumulation_steps": (True, 1, math.inf),
    "max_consecutive_skips": (True, 0, math.inf),
    "log_every": (True, 0, math.inf),
    "eval_every": (True, 0, math.inf),
    "eval_images": (True, 0, math.inf),
    "eval_pictures": (True, 0, math.inf),
    "save_every": (True, 0, math.inf),
    "keep_last": (True, 1, math.inf),
    "keep_every": (True, 0, math.inf),
    "data.image_size": (True, 1, math.inf),
    "data.validation": (False, 0, BELOW_1),
    "data.workers": (True, 0, math.inf),
    "data.seed": (True, 0, 2**32 - 1),
    "palette.size": (True, 1, MAX_SIZE),
    "palette.iterations": (True, 1, math.inf),
    "palette.tolerance": (False, 0, math.inf),
    "model.layers": (True, 1, math.inf),
    "model.width": (True, 1, math.inf),
    "model.heads": (True, 1, math.inf),
    "model.vocabulary": (True, 1, MAX_SIZE),
    "model.positions": (True, 1, math.inf),
    "model.tokens_per_pixel": (True, 1, 3),
    "model.classes": (True, 0, math.inf),
    "model.class_layer": (True, -1, math.inf),
    "model.dropout": (False, 0, BELOW_1),
    "model.unroll": (True, 0, math.inf),
    "model.block": (True, 1, math.inf),
    "optim.learning_rate": (False, ABOVE_0, math.inf),
    "optim.warmup_steps": (True, 0, math.inf),
    "optim.decay_steps": (True, 0, math.inf),
    "optim.steps": (True, 1, 2**31 - 1),
    "optim.beta1": (False, 0, BELOW_1),
    "optim.beta2": (False, 0, BELOW_1),
    "optim.epsilon": (False, ABOVE_0, math.inf),
    "optim.weight_decay": (False, 0, math.inf),
    "optim.loss_spike_factor": (False, 0, math.inf),
    "optim.clip_norm": (False, 0, math.inf),
    "optim.ema_decay": (False, 0, BELOW_1),
    "optim.base_width": (True, 0, math.inf),
    "optim.layer_decay": (False, ABOVE_0, 1),
    "optim.frozen_layers": (True, 0, math.inf),
    "loss.generative": (False, 0, math.inf),
    "loss.classification": (False, 0, math.inf),
    "loss.mask_probability": (False, 0, 1),
    "loss.evaluation_masks": (True, 1, math.inf),
    "best.patience": (True, 0, math.inf),
    "mesh.data": (True, -1, math.inf),
    "mesh.fsdp": (True, -1, math.inf),
    "mesh.tensor": (True, -1, math.inf),
}
# Refused in a continuation, but for FREE_FIELDS of model. palette.* may change: the colours are compared instead, and their number is model.vocabulary.
FIXED = ("seed", "batch_size", "model.", "data.image_size", "data.augment", "data.view", "data.validation", "data.split_by", "data.seed", "optim.name")
HOST_KEYS = (("data", "source"), ("data", "directory"), ("data", "workers"), ("palette", "path"))  # may differ between the hosts of one run
SAMPLE, SAMPLE_CODES, SAME_CODES = 8, 64, 0.9  # images, and codes of each, that identify data; the share that must be equal (decoders differ)


def shared(config: Recipe) -> RecipeDict:
    """Return what of a recipe is the same on all hosts of one run: all but HOST_KEYS."""
    values = config.to_dict()
    for section, key in HOST_KEYS:
        values[section].pop(key, None)
    return values


def check_numbers(config: RecipeDict) -> None:
    """ValueError naming the first number of a recipe that is outside its range, or a former key; a key that RANGES lacks must be finite."""
    for key, value in flatten(config).items():
        if key in OLD_KEYS:  # of a recipe that unlocked itself
            raise ValueError(f"config has no {key!r}: it is now config.{OLD_KEYS[key]}")
        if isinstance(value, bool) or not (key in RANGES or isinstance(value, int | float)):
            continue
        is_integer, lowest, highest = RANGES.get(key, (False, -math.inf, math.inf))
        is_number = isinstance(value, int | float | np.number) and math.isfinite(value) and not (is_integer and value != int(value))
        if not (is_number and lowest <= value <= highest):
            raise ValueError(f"config.{key} must be {_describe_range(is_integer, lowest, highest)}, not {value!r}")


def _describe_range(is_integer: bool, lowest: float, highest: float) -> str:
    kind = "a whole number" if is_integer else "a number"
    if lowest == ABOVE_0:
        return f"{kind} above 0" + ("" if math.isinf(highest) else f" and at most {highest}")
    if highest == BELOW_1:
        return f"{kind} from {lowest} to below 1"
    if math.isinf(highest):
        return kind if math.isinf(lowest) else f"{kind} of at least {lowest}"
    return f"{kind} from {lowest} to {highest}"


def check_profile(window: Any, steps: int) -> None:
    """ValueError where config.profile is neither empty nor a first and a last step of the run."""
    whole = isinstance(window, tuple | list) and all(isinstance(step, int) and not isinstance(step, bool) for step in window)
    if not (whole and (not window or len(window) == 2 and 1 <= window[0] <= window[1] <= steps)):
        wanted = f"the first and the last step to trace, from 1 to config.steps, which is {steps}, as in --config.profile=10,12, or () for none"
        raise ValueError(f"config.profile must be {wanted}, not {window!r}")


def flatten(config: RecipeDict, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dict into {"model.width": 512, ...}."""
    pairs = (flatten(value, f"{prefix}{key}.").items() if isinstance(value, dict) else [(f"{prefix}{key}", value)] for key, value in config.items())
    return dict(itertools.chain.from_iterable(pairs))


def differences(before: RecipeDict, now: RecipeDict) -> dict[str, tuple[Any, Any]]:
    """Return {key: (value before, value now)} of two recipes; None where one lacks the key."""
    before, now = (flatten({key: value for key, value in json.loads(json.dumps(config)).items() if key != "history"}) for config in (before, now))
    return {key: (before.get(key), now.get(key)) for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)}


def show(config: Recipe, whole: bool = False) -> None:
    """Print a recipe on the first process, as `describe` does."""
    if jax.process_index() == 0:
        print("\n".join(describe(config.to_dict(), base_recipe().to_dict(), whole)), flush=True)


def describe(config: RecipeDict, base: RecipeDict, whole: bool = False) -> list[str]:
    """Return aligned lines on the keys in which a recipe differs from the base recipe, with the base's values, or, as a `whole`, on every key."""
    changed, values = differences(base, config), flatten(json.loads(json.dumps(config)))
    shown = list(values) if whole else [key for key in values if key in changed]
    if not shown:
        return ["recipe: that of configs/base.py"]
    keys, texts = max(map(len, shown)), {key: str(_show(values[key])) for key in shown}
    width = max(map(len, texts.values()))
    head = "recipe:" if whole else "recipe, where it differs from configs/base.py (--full_recipe prints every key):"
    before = {key: f"  (base: {_show(changed[key][0])})" if key in changed else "" for key in shown}
    return [head, *(f"  {key:<{keys}}  {texts[key]:<{width}}{before[key]}".rstrip() for key in shown)]


def read_config(workdir: PathLike) -> RecipeDict | None:
    """Read WORKDIR/config.json, with the present names of its keys; None where there is none."""
    path = epath.Path(workdir) / "config.json"  # `write_atomically` made it: it is complete even while another process writes it
    return with_new_keys(json.loads(path.read_text())) if path.exists() else None


def with_new_keys(config: RecipeDict) -> RecipeDict:
    """Return a recipe that an older version wrote with the present names of its keys (`cli.OLD_KEYS`), and name each in a note."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for old, new in OLD_KEYS.items():
        *section, name = old.split(".")
        values = config.get(section[0], {}) if section else config
        if name in values:
            values.setdefault(new.split(".")[-1], values.pop(name))
            multihost.note(f"config.{old} of the run is now config.{new}")
    return config


def check_continues(workdir: PathLike, before: RecipeDict, config: RecipeDict) -> None:
    """ValueError naming the FIXED keys in which a recipe differs from `before`, that of the run in `workdir`.

    A key that one of them lacks is not compared. Keys of the data that `before` lacks have the defaults of DataConfig, and its optimiser is Adam.
    """
    if "optim" in before:
        before = before | {"optim": {"name": "adam"} | before["optim"]}
    if "data" in before:
        before = before | {"data": dataclasses.asdict(DataConfig(**before["data"]))}
    free = tuple(f"model.{name}" for name in FREE_FIELDS)
    refused = {key: pair for key, pair in differences(before, config).items() if key.startswith(FIXED) and key not in free and None not in pair}
    if refused:
        listed = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in refused.items())
        raise ValueError(f"{workdir} holds a run of another recipe: {listed}. Take another --workdir, or the values it has")


def keep_config(workdir: PathLike, config: RecipeDict, before: RecipeDict | None = None, step: int = 0) -> list[str]:
    """Write the recipe to WORKDIR/config.json, with the differences from `before` at `step` in its history; return a line for each difference."""
    changes = differences(before, config) if before else {}
    history = (before or {}).get("history", []) + ([{"step": step, "changes": changes}] if changes else [])
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_atomically(workdir / "config.json", json.dumps(config | ({"history": history} if history else {}), indent=1).encode())
    return [f"{key} {_show(old)} -> {_show(new)} from step {step} on" for key, (old, new) in changes.items()]


def _show(value: Any) -> Any:
    return "(none)" if value is None else '""' if value == "" else value


def describe_data(dataset: Dataset, palette: Palette) -> dict[str, Any]:
    """Describe training data so that `check_data` recognises it: the number of images, their names, SAMPLE_CODES codes of SAMPLE images, and a mixture."""
    rows = np.linspace(0, len(dataset) - 1, SAMPLE).astype(int)
    codes = np.asarray(dataset.codes(rows, palette))
    description = {"images": len(dataset), "sample": codes[:, np.linspace(0, codes.shape[1] - 1, SAMPLE_CODES).astype(int)].tolist()}
    return description | {key: value for key, value in [("names", dataset.names_checksum()), ("mixture", describe_mixture(dataset))] if value}


def describe_mixture(dataset: Dataset) -> list[list[int]]:
    """Return [draws in a round, images] of each source of a mixture, which the order of training's images depends on; [] for other data."""
    if not isinstance(dataset.source, Mixed):
        return []
    return [[share, len(part)] for share, part in zip(dataset.source.shares, dataset.source.parts, strict=True)]


def check_data(present: dict[str, Any], written: dict[str, Any], source: str, workdir: PathLike) -> None:
    """ValueError where the data is not that of the run: `present` is its `describe_data`, `written` that in the checkpoint."""
    if "images" not in written:  # by an older version
        return
    way_out = "Restore the data, or take another --workdir (train --init_from starts from these weights)"
    if present["images"] != written["images"]:
        counts = f"{present['images']} training images and the run in {workdir} began with {written['images']}"
        raise ValueError(f"{source} has {counts}: the images would come in another order. {way_out}")
    if (now := present.get("mixture", [])) != (before := written.get("mixture", [])):
        order = f"mixes [draws in {ROUND:,}, images] {now} and the run in {workdir} {before}: the images would come in another order"
        raise ValueError(f"{source} {order}. {way_out}")
    if "names" in written and present.get("names", written["names"]) != written["names"]:
        raise ValueError(f"{source} has files of other names than the run in {workdir} began with: the images would come in another order. {way_out}")
    if (equal := np.mean(np.equal(present["sample"], written["sample"]))) < SAME_CODES:
        raise ValueError(f"{source} has other images than the run in {workdir} began with: {equal:.0%} of the codes compared are equal. {way_out}")


def describe_labels(dataset: Dataset) -> dict[str, Any]:
    """Describe the labels of training data, as numbers of the run's classes, for `check_labels`; {} for TFDS sets, where it would read all records."""
    if any(isinstance(part.source, Records) for part in dataset.parts):
        return {}
    return {"labels": [zlib.crc32(np.asarray(part.labels, np.int32).data) for part in dataset.parts]}


def check_labels(present: dict[str, Any], written: dict[str, Any], source: str, workdir: PathLike) -> None:
    """ValueError where the images have other labels than in the run: `present` is `describe_labels`, `written` the description in the checkpoint."""
    if "labels" in written and present.get("labels", written["labels"]) != written["labels"]:
        way_out = "Restore them, or take another --workdir"
        raise ValueError(f"{source} has other labels than the run in {workdir} began with, and what it learnt and measured is of those. {way_out}")
