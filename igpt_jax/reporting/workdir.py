"""What a work directory holds, read without a device: also that of a run which was stopped, or damaged."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from etils import epath

from igpt_jax.data.messages import listed
from igpt_jax.provenance import read_starts
from igpt_jax.reporting.course import read_intact
from igpt_jax.types import PathLike

MARKS = ("config.json", "metrics.jsonl", "palette.npy", "palette.json", "checkpoints", "result.json")  # one of them makes a folder a work directory
PICTURES = {  # file -> what it shows, and the program that makes it
    "completions.png": ("Completions of test images", "python -m igpt_jax.sample --checkpoint={workdir} --out={workdir}/completions.png"),
    "samples.png": ("Pictures made from nothing", "python -m igpt_jax.sample --checkpoint={workdir} --unconditional=36 --out={workdir}/samples.png"),
    "accuracy_by_layer.png": ("Linear probes of every layer", "python -m igpt_jax.features --checkpoint={workdir} --out={workdir}/features, then "
                              "python -m igpt_jax.probe --features={workdir}/features --out={workdir}"),
    "palette.png": ("The colours of the palette", "python -m igpt_jax.quantize"),
}  # fmt: skip
OTHERS = {"training.png": "Loss against images seen, beside baselines", "colours.png": "Completions of photographs"}  # that other programs often make
SUFFIXES = {".png": "png", ".gif": "gif", ".jpg": "jpeg", ".jpeg": "jpeg"}  # of pictures, in lower case -> their type
SIGNATURES = {"png": b"\x89PNG\r\n\x1a\n", "gif": b"GIF8", "jpeg": b"\xff\xd8\xff"}  # first bytes
MOST_OTHERS, MOST_BYTES = 12, 2**21  # number of other pictures, and size of each


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The contents of a work directory; {} and [] for what is not there."""

    path: epath.Path
    recipe: dict[str, Any]
    lines: list[dict[str, Any]]  # of metrics.jsonl, one for each step
    result: dict[str, Any]
    starts: list[dict[str, Any]]
    palette: dict[str, Any]
    probe: dict[str, Any]
    best: dict[str, Any]  # value and step of config.best.metric
    pictures: dict[str, bytes]  # files by their names: PICTURES, then others
    missing: list[str]  # a sentence on each thing that is not there, or damaged

    @property
    def steps(self) -> int:
        """The last step that was reported."""
        return max([line["step"] for line in self.lines], default=self.result.get("step", 0))


def read(path: PathLike) -> Workdir:
    """Read a work directory of quantize, train or finetune; ValueError where the folder is none."""
    workdir = epath.Path(path)
    if not any((workdir / name).exists() for name in MARKS):
        what = "is no work directory" if workdir.exists() else "does not exist"
        raise ValueError(f"{path} {what}: give the --workdir of quantize, train or finetune, which holds one of {', '.join(MARKS)}")
    missing: list[str] = []
    contents = {name: _read_json(workdir / f"{name}.json", missing) for name in ("config", "result", "palette", "probe")}
    lines = _read_metrics(workdir, missing)
    pictures = {name: (workdir / name).read_bytes() for name in PICTURES if (workdir / name).exists()}
    pictures |= _read_others(workdir, missing)
    if other_palette := _has_another_palette(workdir):
        missing.append("palette.npy, palette.png and palette.json are of another palette than the one that the run was trained with, and are left out")
        contents["palette"] = {}
        pictures.pop("palette.png", None)
    of_another, probed = _of_another_model(workdir, contents["probe"]), "step {step:,} of {checkpoint}"
    if of_another:
        missing.append(f"probe.json is of another model, {probed.format_map(contents['probe'])}, and is left out")
        contents["probe"] = {}
        pictures.pop("accuracy_by_layer.png", None)
    elif of_another is None:
        missing.append(f"The linear probes are of {probed.format_map(contents['probe'])}, which is not here to be compared with this run")
    best = contents["result"].get("best") or _best_so_far(contents["config"], lines)
    found = Workdir(
        workdir, contents["config"], lines, contents["result"], read_starts(workdir), contents["palette"], contents["probe"], best, pictures, missing
    )
    missing += [sentence for sentence in _not_there(found) if not (other_palette and "palette.png" in sentence)]
    return found


def _of_another_model(workdir: epath.Path, probe: dict[str, Any]) -> bool | None:
    """Whether probes are of other weights than this run has at their step, by the checksum; None where neither the step is here nor its place."""
    if "checksum" not in probe or "step" not in probe:
        return False
    step, best = workdir / "checkpoints" / str(probe["step"]), workdir / "best"
    kept = {place: [_checksum(place, ema) for ema in (False, True)] for place in (step, best) if place.exists()}
    if any(probe["checksum"] in checksums for checksums in kept.values()):
        return False
    if any(checksum is not None for checksum in kept.get(step, ())):
        return True
    place = pathlib.PurePath(os.path.abspath(str(probe.get("checkpoint"))))
    inside = any(place.is_relative_to(os.path.abspath(str(folder))) for folder in (workdir / "checkpoints", best))
    return False if inside else None  # inside: a step that was deleted since, or one of before checksums; else perhaps a run that was copied without it


def _has_another_palette(workdir: epath.Path) -> bool:
    """Whether the palette was fitted again after the run's last step."""
    from igpt_jax.training import checkpoints

    trained = checkpoints.stored_palette(workdir)
    try:
        return trained is not None and trained.differs_from(workdir / "palette.npy")
    except (OSError, ValueError):  # damaged
        return False


def _checksum(place: epath.Path, ema: bool) -> int | None:
    from igpt_jax.training import checkpoints

    found = checkpoints.identify(place, ema)
    return found and found[2]


def _read_others(workdir: epath.Path, missing: list[str]) -> dict[str, bytes]:
    """The other pictures directly in the work directory, by name: at most MOST_OTHERS of at most MOST_BYTES."""
    paths = sorted(path for path in workdir.iterdir() if path.suffix.lower() in SUFFIXES and path.name not in PICTURES and not path.name.startswith("."))
    found: dict[str, bytes] = {}
    left_out: dict[str, list[str]] = {}
    for path in sorted(paths, key=lambda path: path.name not in OTHERS):
        content, reason = _read_picture(path) if len(found) < MOST_OTHERS else (b"", f"there are more than {MOST_OTHERS}")
        if reason:
            left_out.setdefault(reason, []).append(path.name)
        else:
            found[path.name] = content
    missing += [f"Pictures that are left out, because {reason}: {listed(names)}" for reason, names in left_out.items()]
    return found


def _read_picture(path: epath.Path) -> tuple[bytes, str]:
    """(a picture, "") or (b"", why it is not shown)."""
    try:
        if path.stat().length > MOST_BYTES:
            return b"", f"a file is larger than {MOST_BYTES >> 20} MiB"
        content = path.read_bytes()
    except OSError:
        content = b""
    return (content, "") if content.startswith(SIGNATURES[picture_type(path.name)]) else (b"", "a file is damaged or cannot be read")


def picture_type(name: str) -> str:
    """Return the type of a picture by its name, as MIME types have it: png, gif or jpeg."""
    return SUFFIXES[epath.Path(name).suffix.lower()]


def _read_json(path: epath.Path, missing: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    missing.append(f"{path.name} is damaged and left out")
    return {}


def _read_metrics(workdir: epath.Path, missing: list[str]) -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines, damaged = read_intact(path)
    if damaged:
        missing.append(f"{damaged} of the lines of metrics.jsonl {'is' if damaged == 1 else 'are'} damaged and left out")
    return lines


def _best_so_far(recipe: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The lowest loss of the evaluations, or what config.best.metric asks for."""
    from igpt_jax.training.evaluation import DIRECTIONS, EMA, direction

    metric = recipe.get("best", {}).get("metric") or "nats_per_pixel"
    key = f"validation/{metric}"
    found = [line for line in lines if isinstance(line.get(key), int | float)]
    if not found or metric.removesuffix(EMA) not in DIRECTIONS:
        return {}
    best = max(found, key=lambda line: direction(metric) * line[key])
    return {"value": best[key], "step": best["step"]}


def _other_data(training: dict[str, Any], probed: dict[str, Any]) -> str:
    """The keys of data in which probes differ from the training, with both values; "" for none."""
    keys = [key for key in ("source", "image_size", "view") if key in training and key in probed and training[key] != probed[key]]
    return ", ".join(f"data.{key} {probed[key]}, there {training[key]}" for key in keys)


def _not_there(found: Workdir) -> list[str]:
    """A sentence on each thing that the programs would have written."""
    if not found.recipe and not found.lines:
        return [f"It is not trained yet: python -m igpt_jax.train --workdir={found.path}"]
    wanted, sentences = found.recipe.get("steps", 0), []
    if not found.lines:
        sentences.append("metrics.jsonl is not there or empty: no curves")
    if not found.result:
        stopped = "The run has not ended" + (f", {found.steps:,} of {wanted:,} steps are reported" if wanted else "")
        sentences.append(f"{stopped}: the command that started it continues it")
    if not found.starts:
        sentences.append("starts.json is not there, so commit, hardware and versions are not known")
    if found.probe.get("step", found.steps) != found.steps:
        sentences.append(f"The linear probes are of step {found.probe['step']:,} of {found.probe.get('checkpoint')}, and this run is at step {found.steps:,}")
    if other := _other_data(found.recipe.get("data", {}), found.probe.get("data") or {}):
        sentences.append(f"The linear probes are of other images than the training: {other}")
    for name, (what, command) in PICTURES.items():
        if name not in found.pictures and not (name == "samples.png" and found.recipe.get("model", {}).get("objective") == "bert"):
            sentences.append(f"{what}: no {name}, which is made by {command.format(workdir=found.path)}")
    return sentences
