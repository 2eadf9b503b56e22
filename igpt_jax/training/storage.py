"""Orbax: how the directories of steps are listed, written and read. The only module that imports it.

A step is a directory `STEP/{model,training,meta}`: two trees of arrays, and JSON. A model alone has no `training`.
"""

import json
import os
import re
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from igpt_jax.files import one_line
from igpt_jax.training.trees import NestedArrays
from igpt_jax.types import PathLike

FOLDER = "checkpoints"  # in a work directory
PATIENCE = 600  # seconds that the processes of a run wait for each other while a checkpoint is written
# Status codes of tensorstore for a file that is missing, too short, or not what was written. It reports errors of a device or of memory by others.
DAMAGE_STATUS = ("NOT_FOUND", "OUT_OF_RANGE", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT")


class Damaged(ValueError):
    """The content on the disk is not what was written."""


def folder_of(workdir: PathLike) -> epath.Path:
    """Return the directory in which a work directory has its checkpoints."""
    return epath.Path(workdir) / FOLDER


def list_steps(directory: epath.Path) -> list[int]:
    """List the committed steps of a `checkpoints` directory, newest first; [] where there is no directory, OSError where it cannot be read.

    A file system without renames (gs://) gives a step its final name before it is committed: orbax marks the commit by a file.
    """
    try:
        entries = list(directory.iterdir())  # not exists(), which answers False where the directory cannot be read
    except FileNotFoundError:
        return []
    return sorted((int(entry.name) for entry in entries if entry.name.isdigit() and ocp.utils.is_checkpoint_finalized(entry)), reverse=True)


def find_steps(path: PathLike) -> list[epath.Path]:
    """List the directories of the steps that `path` names, newest first.

    `path` is an existing work directory, its `checkpoints` directory, or the directory of one step under any name.
    """
    path = epath.Path(os.path.expanduser(path))
    if (path / "model").exists() and (path / "meta").exists():
        return [path]
    directory = folder_of(path) if folder_of(path).exists() else path
    return [directory / str(step) for step in list_steps(directory)]


def open_manager(workdir: PathLike, keep_last: int, keep_every: int, number: int) -> ocp.CheckpointManager:
    """Open the manager that writes a run's checkpoints in the background; `number` is another for each manager that a process opens.

    The processes of a run wait for each other at the coordinator, at barriers whose names contain `number`. Collectives on the devices would be confused
    with those of a process that is ahead.
    """
    several = {}
    if jax.process_count() > 1:
        several["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=f"checkpoints{number}"
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep_last,
        keep_period=keep_every or None,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        async_options=ocp.options.AsyncOptions(timeout_secs=PATIENCE),
        create=False,  # orbax refuses True together with active_processes
        **several,
    )
    directory = absolute(folder_of(workdir))
    directory.mkdir(parents=True, exist_ok=True)
    manager = ocp.CheckpointManager(directory, options=options)
    # Orbax removes unfinished directories in a thread. Wait for it: it would otherwise remove what the next manager writes, if this one fails before it saves.
    getattr(manager, "_maybe_await_cleanup_tmp_directory", lambda: None)()
    return manager


def open_model_manager(workdir: PathLike) -> ocp.CheckpointManager:
    """Open a manager that keeps a single step and returns from `save` when it is on disk."""
    return ocp.CheckpointManager(absolute(folder_of(workdir)), options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False))


def save_arguments(meta: dict[str, Any], **trees: NestedArrays) -> ocp.args.Composite:
    """Return the `args` of a manager's `save` for the meta and the named trees of a step."""
    return ocp.args.Composite(**{name: ocp.args.StandardSave(tree) for name, tree in trees.items()}, meta=ocp.args.JsonSave(meta))


def read_meta(step: epath.Path) -> dict[str, Any]:
    """Read the JSON of a step; Damaged where it is missing or no JSON object with the keys that every version wrote."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=_without_the_others()) as reader:
            meta = reader.restore(absolute(step) / "meta")
    except Exception as error:
        if not is_about_content(error):
            raise
        read_every_byte(step)
        raise Damaged(f"its meta is missing or no JSON: {one_line(error)}") from error
    if not isinstance(meta, dict):
        raise Damaged("its meta is no JSON object")
    if missing := {"model", "palette", "config"} - meta.keys():
        raise Damaged(f"its meta lacks {', '.join(sorted(missing))}")
    return meta


def read_trees(step: epath.Path, layout: dict[str, NestedArrays]) -> dict[str, NestedArrays]:
    """Read the named trees of a step with the shapes, types and shardings of `layout`; Damaged where their content makes no sense.

    A read that fails for its content is tried a second time after every byte of the step has been read, so that a file system that fails for a moment
    is an OSError and not Damaged.
    """
    try:
        return restore_trees(step, layout)
    except Exception as error:
        if not is_about_content(error):
            raise
    read_every_byte(step)
    try:
        return restore_trees(step, layout)
    except Exception as error:
        if not is_about_content(error):
            raise
        raise Damaged(one_line(error)) from error


def restore_trees(step: epath.Path, layout: dict[str, NestedArrays]) -> dict[str, NestedArrays]:
    """Read the named trees of a step once."""
    trees = {}
    for name, tree in layout.items():
        with ocp.StandardCheckpointer(multiprocessing_options=_without_the_others()) as reader:
            trees[name] = reader.restore(absolute(step / name), tree)
    return trees


def is_about_content(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is about the content of a file, and not about the device, memory, or the program."""
    while error is not None:
        if isinstance(error, FileNotFoundError | json.JSONDecodeError | UnicodeDecodeError):
            return True
        if isinstance(error, MemoryError | OSError):
            return False
        if status := re.match("[A-Z_]{6,}(?=:)", str(error)):
            return status[0] in DAMAGE_STATUS
        error = error.__cause__ or (error.__context__ if type(error) is Exception else None)
    return False


def read_every_byte(directory: epath.Path) -> None:
    """Read all files below a directory; OSError where one cannot be read: a failure before it is then no evidence of damage."""
    for entry in absolute(directory).iterdir():
        if entry.is_dir():
            read_every_byte(entry)
        else:
            with entry.open("rb") as file:
                while file.read(1 << 24):
                    pass


def absolute(path: PathLike) -> epath.Path:
    """Return the absolute path, which orbax requires; a URL (gs://) is absolute already."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _without_the_others() -> ocp.options.MultiprocessingOptions:
    """Options with which this process reads its part without waiting for the others: it would wait for ever for one that cannot read."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}")
