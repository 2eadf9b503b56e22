"""A recipe before the run: the range of each of its numbers, and what of it may differ between a run and its continuation.

A continuation is refused only for what changes the shapes of arrays or the order of the data. Everything else is taken, and written into the history of
WORKDIR/config.json: {..., "history": [{"step": 4000, "changes": {"optim.learning_rate": [0.003, 0.001]}}]}.
"""

import dataclasses
import itertools
import json
import math

import jax
import numpy as np

from igpt_jax.cli import OLD_KEYS
from igpt_jax.data.pipeline import DataConfig
from igpt_jax.palette.palette import MAX_SIZE, write_whole
from igpt_jax.training.checkpoints import FREE_FIELDS

ABOVE_0 = 5e-324  # the smallest float: a limit that 0 does not meet
BELOW_1 = math.nextafter(1, 0)
# Key -> (whole, lowest, highest) of every number in configs/base.py. Of those that say how often, 0 is never.
RANGES = {
    "seed": (True, 0, 2**32 - 1),
    "batch_size": (True, 1, math.inf),
    "steps": (True, 1, 2**31 - 1),  # counted in int32
    "gradient_accumulation_steps": (True, 1, math.inf),
    "max_consecutive_skips": (True, 0, math.inf),
    "log_every": (True, 0, math.inf),
    "eval_every": (True, 0, math.inf),
    "eval_images": (True, 0, math.inf),
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
    "model.unroll": (True, 1, math.inf),
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
    "loss.generative": (False, 0, math.inf),
    "loss.classification": (False, 0, math.inf),
    "loss.mask_probability": (False, 0, 1),
    "loss.evaluation_masks": (True, 1, math.inf),
    "best.patience": (True, 0, math.inf),
    "mesh.data": (True, -1, math.inf),
    "mesh.fsdp": (True, -1, math.inf),
    "mesh.tensor": (True, -1, math.inf),
}
# Refused in a continuation; of model.* not how it is computed. palette.* is free: the colours themselves are compared, and their number is model.vocabulary.
FIXED = ("seed", "batch_size", "model.", "data.image_size", "data.augment", "data.view", "data.validation", "data.split_by", "data.seed")
SAMPLE, SAMPLE_CODES, SAME_CODES = 8, 64, 0.9  # images and codes of each by which data is known again; the share that must be equal (decoders differ)


def check_numbers(config: dict) -> None:
    """ValueError naming the first number of a recipe that is outside its range; of a key that the table lacks, whatever is not finite."""
    for key, value in flatten(config).items():
        if isinstance(value, bool) or not (key in RANGES or isinstance(value, int | float)):
            continue
        whole, lowest, highest = RANGES.get(key, (False, -math.inf, math.inf))
        number = isinstance(value, int | float | np.number) and math.isfinite(value) and not (whole and value != int(value))
        if not (number and lowest <= value <= highest):
            raise ValueError(f"config.{key} must be {_said(whole, lowest, highest)}, not {value!r}")


def _said(whole, lowest, highest):
    """A range in words."""
    kind = "a whole number" if whole else "a number"
    if lowest == ABOVE_0:
        return f"{kind} above 0"
    if highest == BELOW_1:
        return f"{kind} from {lowest} to below 1"
    if math.isinf(highest):
        return kind if math.isinf(lowest) else f"{kind} of at least {lowest}"
    return f"{kind} from {lowest} to {highest}"


def flatten(config: dict, prefix: str = "") -> dict:
    """A nested dict as {"model.width": 512, ...}."""
    pairs = (flatten(value, f"{prefix}{key}.").items() if isinstance(value, dict) else [(f"{prefix}{key}", value)] for key, value in config.items())
    return dict(itertools.chain.from_iterable(pairs))


def differences(before: dict, now: dict) -> dict[str, tuple]:
    """{key: (value before, value now)} of two recipes; None where one lacks the key."""
    before, now = (flatten({key: value for key, value in json.loads(json.dumps(config)).items() if key != "history"}) for config in (before, now))
    return {key: (before.get(key), now.get(key)) for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)}


def read_config(workdir) -> dict | None:
    """WORKDIR/config.json with the present names of its keys, or None where there is none."""
    path = workdir / "config.json"
    return with_new_keys(json.loads(path.read_text())) if path.exists() else None  # the file appears complete: another process may be writing it


def with_new_keys(config: dict) -> dict:
    """A recipe that an older version wrote, with the present names of its keys (`cli.OLD_KEYS`)."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for old, new in OLD_KEYS.items():
        *section, name = old.split(".")
        values = config.get(section[0], {}) if section else config
        if name in values:
            values[new.split(".")[-1]] = values.pop(name)
    return config


def check_continues(workdir, before: dict, config: dict) -> None:
    """ValueError naming the keys in which a recipe contradicts the one of the run in `workdir`.

    A key that one of them lacks does not, but for those of the data, of which runs from before them have the value that DataConfig gives.
    """
    if "data" in before:
        before = before | {"data": dataclasses.asdict(DataConfig(**before["data"]))}
    free = tuple(f"model.{name}" for name in FREE_FIELDS)
    found = {key: pair for key, pair in differences(before, config).items() if key.startswith(FIXED) and key not in free and None not in pair}
    if found:
        listed = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in found.items())
        raise ValueError(f"{workdir} holds a run of another recipe: {listed}. Take another --workdir, or the values it has")


def keep_config(workdir, config: dict, before: dict | None = None, step: int = 0) -> list[str]:
    """Write the recipe as WORKDIR/config.json, what differs from `before` from `step` on into its history; returns a line for each difference."""
    changes = differences(before, config) if before else {}
    history = (before or {}).get("history", []) + ([{"step": step, "changes": changes}] if changes else [])
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        write_whole(workdir / "config.json", json.dumps(config | ({"history": history} if history else {}), indent=1).encode())
    return [f"{key} {_shown(old)} -> {_shown(new)} from step {step} on" for key, (old, new) in changes.items()]


def _shown(value):
    return "(none)" if value is None else '""' if value == "" else value


def describe_data(dataset, palette) -> dict:
    """By what the training data is known again: the number of images, and some codes of some."""
    rows = np.linspace(0, len(dataset) - 1, SAMPLE).astype(int)
    codes = np.asarray(dataset.codes(rows, palette))
    return {"images": len(dataset), "sample": codes[:, np.linspace(0, codes.shape[1] - 1, SAMPLE_CODES).astype(int)].tolist()}


def check_data(found: dict, written: dict, source: str, workdir) -> None:
    """ValueError where the data is not that of the run, by what `describe_data` found and what the checkpoint has; one from before says nothing."""
    if "images" not in written:
        return
    way_out = "Bring it back, or take another --workdir (train --init_from starts from these weights)"
    if found["images"] != written["images"]:
        counts = f"{found['images']} training images and the run in {workdir} began with {written['images']}"
        raise ValueError(f"{source} has {counts}: the order of the images would be another. {way_out}")
    if (equal := np.mean(np.equal(found["sample"], written["sample"]))) < SAME_CODES:
        raise ValueError(f"{source} has other images than the run in {workdir} began with: {equal:.0%} of the codes compared are equal. {way_out}")
