"""Checkpoints: `WORKDIR/checkpoints/STEP/{model,training,meta}`, written by orbax; the only file that knows it.

`model` is a plain nested dict of float32 arrays under our parameter names, `training` the optimiser's state (opt_state.adam.mu, ...) and the step,
`meta` JSON with the model's configuration, the palette, the recipe and the position in the data. A model alone (converted, or to be published) has no
`training`. Only a damaged step (checksum, truncated or missing files) is passed over for the one before; every other error while reading ends the program.
"""

import dataclasses
import json
import os
import re
import shutil
import sys
import time
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from igpt_jax.distributed import multihost, sharding
from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig, check_codes
from igpt_jax.palette.palette import Palette
from igpt_jax.training.step import TrainState

FOLDER = "checkpoints"
SPARE = 2**18  # bytes left for logs, and for what orbax writes beside the arrays
PAUSES = (1.0, 5.0)  # seconds before a write that failed is tried again
PATIENCE = 600  # seconds that the processes of a run wait for each other while a checkpoint is written
FORMAT = 2  # of `training`: 1, which meta does not name, has the optimiser's state by its place in optax's chain
# What tensorstore calls the content of a file that is missing, too short or not what was written; of errors of a device or of memory it says others.
DAMAGE = ("NOT_FOUND", "OUT_OF_RANGE", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
FREE_FIELDS = ("dtype", "remat", "unroll", "attention")  # of ModelConfig: how a model is computed, not what it is


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with what is needed to use it."""

    model: ImageGPT
    palette: Palette
    config: dict  # the recipe it was trained with
    step: int
    path: str
    class_names: tuple | None = None  # of the class head: str, or int where its data had no names; None: not known
    checksum: int | None = None  # of the parameters; None: the checkpoint does not say

    @property
    def model_config(self) -> ModelConfig:
        return self.model.config

    @property
    def mesh(self):
        """The mesh that the model is placed on; None for one that was made here."""
        return getattr(jax.tree.leaves(self.model)[0].sharding, "mesh", None)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.model.config.rows

    @cached_property
    def _forward(self):
        return jax.jit(lambda model, codes_BS: model(codes_BS))

    def __call__(self, codes_BS):
        """Run codes int [B, S] and return the Output: `.logits` [B, S, V], `.features` [L + 1, B, D], ...; ValueError for codes that are no images."""
        return self._forward(self.model, check_codes(self.model_config, codes_BS, self.model_config.positions))


class Checkpoints:
    """Writes a run's checkpoints without holding up the run, and keeps the last few."""

    def __init__(self, workdir, keep_last: int, keep_every: int):
        """`keep_last` newest steps stay, and besides every step divisible by `keep_every` (0: none)."""
        self.directory = _absolute(workdir) / FOLDER
        self.keep_last, self.keep_every, self.opened = keep_last, keep_every, 0
        self.manager = self._open()

    def save(self, step: int, state: TrainState, meta: dict[str, Any], wait: bool = False) -> None:
        """Begin to write `state` as `step`; returns when the arrays are copied, or with `wait` when they are on disk.

        A write that failed, this one or the one begun before, on any process, is tried again by all after each of PAUSES; when the last try fails OSError
        in one line on every process, within PATIENCE of one that does not come. What was saved before stays as it is.
        """
        model, training = to_nested(state.model), to_nested({"step": state.step, "opt_state": state.opt_state, "guard": state.guard})
        meta = meta | {"format": FORMAT, "step": step, "checksums": {"model": checksum(model), "training": checksum(training)}}
        items = ocp.args.Composite(model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training), meta=ocp.args.JsonSave(meta))
        for pause in (*PAUSES, None):
            try:
                self._all(lambda: self.manager.wait_until_finished())  # for the one before, whose room is then known; orbax would wait for it too
                if not multihost.all_agree(step in self.manager.all_steps()):
                    self.check_space(state)
                    self._all(lambda: self.manager.save(step, args=items))
                if wait:
                    self._all(lambda: self.manager.wait_until_finished())
                return
            except Exception as error:  # orbax, tensorstore and the file system each raise their own
                if pause is None:
                    saved = f"steps {sorted(_steps(self.directory))} are saved; make room, or mend the disk, and start again"
                    raise OSError(f"checkpoint {step} cannot be written to {self.directory}: {_one_line(error)}; {saved}") from error
                print(f"checkpoint {step} cannot be written, trying again in {pause:g} s: {_one_line(error)}", file=sys.stderr, flush=True)
                self._all(self._reopen)
                time.sleep(pause)
                wait = True

    def failed(self) -> bool:
        """Whether a write begun before has failed, on any process: then save again."""
        try:
            self._all(lambda: self.manager.check_for_errors())
        except Exception as error:
            print(f"the last checkpoint was not written, saving again: {_one_line(error)}", file=sys.stderr, flush=True)
            self._all(self._reopen)
            return True
        return False

    def _all(self, do) -> None:
        """Do it on every process; where it fails on any, an error on each, so that none goes on alone to what all have to do together."""
        multihost.together(do, "another process cannot write its part")

    def check_space(self, state: TrainState) -> None:
        """OSError in one line where the disk has no room for another checkpoint: before it is begun, so that none is left half-written."""
        if "://" in str(self.directory):
            return
        need, free = 1.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE, shutil.disk_usage(self.directory).free
        if not multihost.all_agree(free >= need):
            raise OSError(f"No space left on the disk: {free / 2**20:.1f} MiB free and a checkpoint may take {need / 2**20:.1f} MiB")

    def close(self) -> None:
        """Finish and release."""
        self.manager.close()

    def _open(self):
        """A manager. Of several processes they wait for each other by name, new ones for each manager, at the coordinator: not by collectives of the devices,
        which would be mistaken for those of a process that has gone on.
        """
        self.opened += 1
        together = {}
        if jax.process_count() > 1:
            everyone = set(range(jax.process_count()))
            together["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes=everyone, barrier_sync_key_prefix=f"checkpoints{self.opened}"
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep_last,
            keep_period=self.keep_every or None,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=PATIENCE),
            create=False,  # which it refuses for some of all processes
            **together,
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        manager = ocp.CheckpointManager(self.directory, options=options)
        # It clears away in a thread, which would still be at it, and take what the next manager writes, where a save fails before it has waited for it.
        getattr(manager, "_maybe_await_cleanup_tmp_directory", lambda: None)()
        return manager

    def _reopen(self):
        """A manager that failed remembers steps that are not there; a new one reads the disk and clears away what is half-written."""
        try:
            self.manager.close()
        except Exception as error:  # the failure itself, once more
            print(f"while closing: {_one_line(error)}", file=sys.stderr, flush=True)
        self.manager = self._open()


def make_meta(
    model_config: ModelConfig, palette: Palette, config: dict, images_seen: int, best: dict | None = None, class_names: tuple | None = None
) -> dict[str, Any]:
    """What a checkpoint says of itself beside its arrays; float32 centres survive JSON exactly. `class_names` are those of the class head, None: not known."""
    return {
        "model": dataclasses.asdict(model_config),
        "palette": palette.centers.tolist(),
        "config": json.loads(json.dumps(config)),
        "data": {"images_seen": images_seen},
        "best": best,
        "class_names": None if class_names is None else list(class_names),
    }


class Damaged(ValueError):
    """What is on the disk is not what was written."""


def restore_state(workdir, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest whole checkpoint of a run as (state, meta), placed as `abstract` says; None where there is none.

    A damaged step newer than that is set aside as `STEP.broken`, with a line that says so, so that it is neither offered again nor in the way of a later
    save. Nothing is changed by any other error: OSError where a step cannot be read for another reason or none is whole, ValueError naming the fields where
    it holds another model than `abstract` does.
    """
    directory = epath.Path(workdir) / FOLDER
    steps = _steps(directory)
    if not multihost.all_equal(steps[0] if steps else -1):
        raise OSError(f"the processes do not see the same checkpoints in {directory}, this one {steps}: mount one directory on all, and start again")
    for number, step in enumerate(steps):
        place = directory / str(step)
        meta = _if_whole(partial(_read_meta, place), place)
        if meta is None:
            continue
        _check_model(place, meta["model"], abstract.model.config)
        wanted = {"model": to_nested(abstract.model), "training": _training_layout(place, meta, abstract)}
        items = _read_verified(place, wanted, meta)
        if items is not None:
            _set_aside(directory, steps[:number])
            model, training = from_nested(items["model"], abstract.model), _by_name(items["training"], meta)
            like = {"step": abstract.step, "opt_state": abstract.opt_state, "guard": abstract.guard}
            return TrainState(model=model, **from_nested(training, like)), meta
    if steps:
        way_out = "nothing was changed; bring one back, or remove that directory to begin anew"
        raise OSError(f"none of the checkpoints {steps} in {directory} is whole: {way_out}")
    return None


def has_steps(workdir) -> bool:
    """Whether there is a committed checkpoint in a work directory, whole or not."""
    return newest_step(workdir) is not None


def newest_step(workdir) -> int | None:
    """The newest committed checkpoint in a work directory, whole or not; None where there is none."""
    return next(iter(_steps(epath.Path(workdir) / FOLDER)), None)


def load(path, mesh=None, **overrides) -> Pretrained:
    """Load the model of a run's directory, a `checkpoints` directory or one step of it, under whatever name that is kept, with its palette.

    `mesh`: where it is placed, a Mesh or a function of the abstract model that chooses one; None: on one device of this process, or on all of them where
    one does not hold it. `overrides` replace fields of the ModelConfig that do not change the parameters (dtype, attention, remat). FileNotFoundError in
    one line where nothing whole is there, OSError where it cannot be read for another reason. With several steps it takes the newest whole one.
    """
    for place in _candidates(path):
        meta = _if_whole(partial(_read_meta, place), place)
        if meta is None:
            continue
        config = dataclasses.replace(ModelConfig(**PAPER | meta["model"]), **overrides)
        abstract = _abstract_model(config, mesh)
        items = _read_verified(place, {"model": to_nested(abstract)}, meta)
        if items is not None:
            names = None if meta.get("class_names") is None else tuple(meta["class_names"])
            palette, whole = Palette(np.asarray(meta["palette"], np.float32)), meta.get("checksums", {}).get("model")
            return Pretrained(from_nested(items["model"], abstract), palette, meta["config"], _step_of(place, meta), str(place), names, whole)
    raise FileNotFoundError(f"no whole checkpoint in {path}: give the --workdir of a training run, or a directory written by igpt_jax.convert")


def identify(path) -> tuple[str, int, int | None] | None:
    """(path, step, checksum of the parameters) of the checkpoint that `load` would load, from its meta alone; None where none can be read."""
    for place in _candidates(path):
        meta = _if_whole(partial(_read_meta, place), place)
        if meta is not None:
            return str(place), _step_of(place, meta), meta.get("checksums", {}).get("model")
    return None


def save_model(workdir, model: ImageGPT, palette: Palette, config: dict, step: int = 0, class_names: tuple | None = None) -> None:
    """Write a model alone as `WORKDIR/checkpoints/STEP`, whole or not at all; it is then the only one there."""
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    manager = ocp.CheckpointManager(_absolute(workdir) / FOLDER, options=options)
    for later in [found for found in manager.all_steps() if found >= step]:  # of a run that went on from before it, or began anew; orbax writes no earlier step
        manager.delete(later)
    nested = to_nested(model)
    meta = make_meta(model.config, palette, config, images_seen=0, class_names=class_names) | {"step": step, "checksums": {"model": checksum(nested)}}
    manager.save(step, args=ocp.args.Composite(model=ocp.args.StandardSave(nested), meta=ocp.args.JsonSave(meta)))
    manager.close()


def checksum(tree) -> int:
    """Sum of the bits of every number, each weighed by its place, modulo 2^32: the same on every mesh, because it does not depend on the order."""
    return int(_checksum(tree))


@jax.jit
def _checksum(tree):
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        place, stride = jnp.full(leaf.shape, number + 1, jnp.uint32), 1
        for axis in reversed(range(leaf.ndim)):  # counted along the axes: to flatten a sharded array would gather it
            place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride % 2**32)
            stride *= leaf.shape[axis]
        total += (bits * (2 * place + 1)).sum(dtype=jnp.uint32)  # an odd weight: no change of one number is lost
    return total


def without_head(model: ImageGPT) -> ImageGPT:
    """The model less its class head."""
    config = dataclasses.replace(model.config, classes=0)
    return from_nested(to_nested(model), jax.eval_shape(lambda: ImageGPT(config, jax.random.key(0))))


def to_nested(tree) -> dict:
    """Any pytree as a nested dict of its leaves under their names."""
    nested: dict = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parents, name = sharding.names(path)
        folder = nested
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[name] = leaf
    return nested


def from_nested(nested: dict, like):
    """The inverse of `to_nested`: a tree built as `like` is, with the leaves of `nested`."""

    def find(path, _):
        found = nested
        for name in sharding.names(path):
            found = found[name]
        return found

    return jax.tree_util.tree_map_with_path(find, like)


def _abstract_model(config, mesh):
    abstract = jax.eval_shape(partial(ImageGPT, config), jax.random.key(0))
    mesh = mesh if isinstance(mesh, jax.sharding.Mesh) else (mesh or sharding.alone)(abstract)
    sharding.check_model(mesh, config.width, config.heads, config.mlp)
    return sharding.placed(mesh, abstract)


def _steps(directory):
    """Committed steps, newest first. On a file system without renames, as gs://, an uncommitted one has its name already: orbax knows.

    OSError where the directory cannot be read, which to ask whether it exists would hide.
    """
    try:
        entries = list(directory.iterdir())
    except FileNotFoundError:
        return []
    return sorted((int(entry.name) for entry in entries if entry.name.isdigit() and ocp.utils.is_checkpoint_finalized(entry)), reverse=True)


def _candidates(path):
    """The directories of steps that `path` may mean, best first."""
    path = epath.Path(os.path.expanduser(path))
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give the --workdir of a training run, or a directory written by igpt_jax.convert")
    if (path / "model").exists() and (path / "meta").exists():
        return [path]
    directory = path / FOLDER if (path / FOLDER).exists() else path
    return [directory / str(step) for step in _steps(directory)]


def _step_of(place, meta) -> int:
    """The step of a checkpoint, which a copy under another name keeps; older ones say how many images were seen, models alone nothing."""
    if place.name.isdigit():
        return int(place.name)
    return meta.get("step", meta.get("data", {}).get("images_seen", 0) // meta["config"].get("batch_size", 1))


def _if_whole(read, place):
    """What `read()` returns; None, after a line that says why, where it is Damaged on any process: then all go on to the step before.

    OSError in one line, on all processes, where `read()` fails for another reason on any.
    """
    found = failure = None
    try:
        found = read()
    except Exception as error:  # orbax, tensorstore, jax and the file system each raise their own
        failure = error
    damaged = isinstance(failure, Damaged)
    if not multihost.all_agree(failure is None or damaged):
        reason = "another process cannot read its part" if failure is None or damaged else f"{type(failure).__name__}: {_one_line(failure)}"
        raise OSError(f"checkpoint {place} cannot be read: {reason}; nothing was changed, mend that and start again") from failure
    if multihost.all_agree(not damaged):
        return found
    said = _one_line(failure) if damaged else "another process cannot read its part"
    print(f"checkpoint {place} cannot be read, trying the one before it: {said}", file=sys.stderr, flush=True)
    return None


def _read_verified(place, wanted, meta):
    """The named trees of one step, read by every process and their bits verified by all together; None where it is damaged."""
    items = _if_whole(partial(_read_whole, place, wanted), place)
    return items and _if_whole(partial(_verify, items, meta), place)


def _read_meta(place) -> dict:
    """The JSON of one step, read before anything large."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=_alone()) as reader:
            meta = reader.restore(_absolute(place) / "meta")
    except Exception as error:
        if not _of_content(error):
            raise
        _read_every_byte(place)
        raise Damaged(f"its meta is missing or no JSON: {_one_line(error)}") from error
    if not isinstance(meta, dict) or (missing := {"model", "palette", "config"} - meta.keys()):
        raise Damaged(f"its meta lacks {', '.join(sorted(missing)) if isinstance(meta, dict) else 'everything'}")
    if meta.get("format", 1) > FORMAT:
        raise ValueError(f"it has format {meta['format']} and this version reads up to {FORMAT}: take the version of igpt_jax that wrote it, or a later one")
    return meta


def _read_whole(place, wanted) -> dict:
    """The named trees of one step in the shape, type and placement of `wanted`; Damaged where its files can be read and their content twice makes no sense."""
    try:
        return _read_items(place, wanted)
    except Exception as error:
        if not _of_content(error):
            raise
    _read_every_byte(place)
    try:
        return _read_items(place, wanted)
    except Exception as error:
        if not _of_content(error):
            raise
        raise Damaged(_one_line(error)) from error


def _read_items(place, wanted) -> dict:
    items = {}
    for name, like in wanted.items():
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
            items[name] = reader.restore(_absolute(place / name), like)
    return items


def _of_content(error) -> bool:
    """Whether an error, or what it came from, is about what a file holds, and not about the device, memory, or the program."""
    while error is not None:
        if isinstance(error, FileNotFoundError | json.JSONDecodeError | UnicodeDecodeError):
            return True
        if isinstance(error, MemoryError | OSError):
            return False
        if status := re.match("[A-Z_]{6,}(?=:)", str(error)):
            return status[0] in DAMAGE
        error = error.__cause__ or (error.__context__ if type(error) is Exception else None)
    return False


def _read_every_byte(place):
    """OSError where any file below `place` cannot be read: then what failed is no evidence of damage."""
    for entry in _absolute(place).iterdir():
        if entry.is_dir():
            _read_every_byte(entry)
        else:
            with entry.open("rb") as file:
                while file.read(1 << 24):
                    pass


def _verify(items, meta):
    """The items; Damaged where their bits are not those that were written, which no file format here would notice."""
    for name, expected in meta.get("checksums", {}).items():
        if name in items and checksum(items[name]) != expected:
            raise Damaged(f"the bits of {name} are not those that were written")
    return items


def _training_layout(place, meta, abstract: TrainState) -> dict:
    """What `training` of a step holds, as a nested dict of `abstract`'s leaves."""
    training = to_nested({"step": abstract.step, "opt_state": abstract.opt_state, "guard": abstract.guard})
    if meta.get("format", 1) > 1:
        return training
    adam, schedule = _places(meta)
    return training | {"opt_state": {adam: training["opt_state"]["adam"], schedule: {"count": training["step"]}}}


def _by_name(training: dict, meta) -> dict:
    """`training` of any format in that of today; the schedule's count is not needed, it was the step less the updates skipped."""
    if meta.get("format", 1) > 1:
        return training
    return training | {"opt_state": {"adam": training["opt_state"][_places(meta)[0]]}}


def _places(meta) -> tuple[str, str]:
    """Where in optax's chain a checkpoint of format 1 has the states of Adam and of the schedule: the recipe it was written with says."""
    optim = meta["config"]["optim"]
    adam = int(bool(optim["clip_norm"]))
    return str(adam), str(adam + 1 + bool(optim["weight_decay"]))


def _set_aside(directory, steps):
    """Rename damaged steps."""
    if jax.process_index() == 0:
        for step in steps:
            (directory / str(step)).rename(_free_name(directory, step))
    multihost.wait_for_all("restore")


def _alone():
    """Each process reads its part without waiting for the others, which would wait for ever for one that cannot."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}")


def _check_model(place, given: dict, config: ModelConfig):
    """ValueError where a checkpoint's model has other parameters than the recipe's."""
    wanted = dataclasses.asdict(config)
    given = PAPER | given
    differ = [f"{name} {given.get(name)!r} and not {wanted[name]!r}" for name in wanted if name not in FREE_FIELDS and given.get(name) != wanted[name]]
    if differ:
        raise ValueError(f"the model in {place} has {', '.join(differ)}: take its recipe, or another --workdir")


def _absolute(path):
    """orbax takes no path relative to where the program was started; gs:// and its like are absolute as they are."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _one_line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


def _free_name(directory, step):
    number = 0
    while (directory / f"{step}.broken{number or ''}").exists():
        number += 1
    return directory / f"{step}.broken{number or ''}"
