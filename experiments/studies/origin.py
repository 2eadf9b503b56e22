"""What a result that is kept was made of: the content of the images and the parameters of the model, as checksums, not only their paths.

A sweep keeps results for its next start. Each of them stores its origin: a folder in FOLDER/made_of.json, a JSON file under its key `made_of`. A result is
used again only if its origin is the same; else one line says what has changed and what to delete. A result of an older version lacks its origin, or a part of
it: what it has is compared, and a note names what it lacks.
"""

import contextlib
import json
import pathlib
from typing import Any, TypeAlias

from igpt_jax.data import pipeline
from igpt_jax.distributed.multihost import note
from igpt_jax.files import write_atomically
from igpt_jax.interop import hub
from igpt_jax.training import checkpoints
from igpt_jax.training.recipe import flatten
from igpt_jax.types import PathLike

Origin: TypeAlias = dict[str, Any]  # of JSON's types

KEY = "made_of"


def of_images(config: pipeline.DataConfig) -> Origin:
    """Return which images a configuration reads, whatever the folder they are in.

    `test_images` tells sets of test images apart, and is the same for the same images at another resolution; "" if there are none.
    """
    kind, _, place = config.source.partition(":")
    content = {"all_train": pipeline.open_dataset(config, "all_train").content()}  # which images are held out follows from the seed
    if "test" in pipeline.stored_parts(config):
        with contextlib.suppress(*[ValueError] * (kind == "folder")):  # none of few pictures may be drawn for it
            content["test"] = pipeline.open_dataset(config, "test").content()
    drawn = (read(place) or {}) if kind == "npz" else {}  # this folder was written by Probing.images from images of another resolution
    known = {name: getattr(config, name) for name in ("image_size", "view", "seed", "split_by")}
    return known | {"content": content, "test_images": drawn.get("test_images_are", str(content.get("test", "")))}


def of_model(checkpoint: PathLike) -> Origin:
    """Return which parameters the newest checkpoint at a path has: the step, and their checksum, if it has one."""
    found = checkpoints.identify(hub.local(checkpoint))
    if found is None:
        raise ValueError(f"{checkpoint} holds no checkpoint that can be read")
    _, step, checksum = found
    return {"step": step} | ({} if checksum is None else {"checksum": checksum})


def read(folder: PathLike) -> Origin | None:
    """Return the origin of what is in a folder; None if it does not say."""
    path = pathlib.Path(folder) / f"{KEY}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write(folder: pathlib.Path, origin: Origin) -> None:
    """Write the origin of what will be in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{KEY}.json", json.dumps(origin, indent=1).encode())


def claim(folder: pathlib.Path, now: Origin, begun: bool, older: Origin | None = None) -> None:
    """Write the origin of a folder; of one that has `begun`, compare it: ValueError if it was another. `older` is what a folder without one was made of."""
    if begun:
        check(folder, read(folder) or older, now)
    else:
        write(folder, now)


def check(place: PathLike, written: Origin | None, now: Origin) -> None:
    """ValueError if what is kept at `place` was made of other things than `now`. What `written` lacks is not compared, and a note says so."""
    if missing := compare(place, written, now, str(place)):
        note(f"{place} does not say of which {', '.join(missing)} it was made: it is used as it is")


def compare(place: PathLike, written: Origin | None, now: Origin, delete: str) -> list[str]:
    """Return what `written` does not say of `now`; ValueError, which says to delete `delete`, if what is kept at `place` was made of other things."""
    before, present = (flatten(json.loads(json.dumps(each))) for each in (written or {}, now))
    for key in [key for key in before.keys() & present.keys() if key.endswith("model.checksum")]:  # the same parameters, whatever the number of the step
        del present[key.removesuffix("checksum") + "step"]
    changed = ", ".join(f"{key} {before[key]!r} there, {value!r} now" for key, value in present.items() if key in before and before[key] != value)
    if changed:
        raise ValueError(f"{place} was made of other data or of another model ({changed}): delete {delete}, or give another --workdir")
    return [key for key in present if key not in before]
