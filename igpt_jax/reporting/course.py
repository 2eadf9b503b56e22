"""The course of a run from its metrics.jsonl: the metrics of each step, images seen, epochs, hours of steps."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from igpt_jax.types import PathLike

PAUSE = 600  # seconds between two lines that the steps between them do not explain: the run was stopped then


def read_lines(path: PathLike) -> list[dict[str, Any]]:
    """Return the metrics of each step, in order; steps that were done again after a stop replace their earlier lines. Damaged lines are left out."""
    return read_intact(path)[0]


def read_intact(path: PathLike) -> tuple[list[dict[str, Any]], int]:
    """Return (the lines as `read_lines`, the number of damaged lines that were left out), as a crash or a full disk leaves one."""
    kept: dict[int, dict[str, Any]] = {}
    damaged = 0
    for text in epath.Path(path).read_bytes().decode(errors="replace").splitlines():
        line = _parsed(text)
        if line is None:
            damaged += bool(text.strip("\0 "))
            continue
        for step in [step for step in kept if step > line["step"]]:
            del kept[step]
        kept[line["step"]] = kept.get(line["step"], {}) | line
    return list(kept.values()), damaged


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def course(lines: list[dict[str, Any]], batch_size: int, training_images: int) -> dict[str, Any]:
    """Return {steps, batch_size, training_images, images_seen, epochs, hours, elapsed_hours, pauses}.

    `hours` are those of the steps, by the images per second that the run measured. `elapsed_hours` are those from the first line to the last, with the
    `pauses` of more than ten minutes in which the run was stopped.
    """
    timed = [line for line in lines if line.get("train/images_per_second")]
    seconds, pauses = 0.0, 0
    for before, line in zip([{"step": 0}, *timed], timed, strict=False):
        working = (line["step"] - before["step"]) * batch_size / line["train/images_per_second"]
        seconds += working
        pauses += "time" in before and line["time"] - before["time"] > working + PAUSE
    steps = lines[-1]["step"]
    return {
        "steps": steps,
        "batch_size": batch_size,
        "training_images": training_images,
        "images_seen": steps * batch_size,
        "epochs": round(steps * batch_size / training_images, 3),
        "hours": round(seconds / 3600, 4),
        "elapsed_hours": round((lines[-1]["time"] - lines[0]["time"]) / 3600, 2),
        "pauses": int(pauses),
    }


def points(lines: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the values of a metric where it was measured, float [N] each; values that are not finite are left out."""
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the `width` values around each of N values; at the ends of those that there are."""
    ones = np.ones(min(width, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
