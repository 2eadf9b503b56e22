"""Checkpoints: `WORKDIR/checkpoints/STEP/{model,training,meta}`, written by orbax; the only file that knows it.

`model` is a plain nested dict of float32 arrays under our parameter names, `training` the optimiser's state and the step, `meta` JSON with
the model's configuration, the palette, the recipe and the position in the data. A model alone (converted, or to be published) has no `training`.
"""

import dataclasses
import json
import os
import shutil
import sys
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from igpt_jax import sharding
from igpt_jax.model import PAPER, ImageGPT, ModelConfig
from igpt_jax.palette import Palette
from igpt_jax.state import TrainState

FOLDER = "checkpoints"
SPARE = 2**18  # bytes left for logs, and for what orbax writes beside the arrays


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with what is needed to use it."""

    model: ImageGPT
    palette: Palette
    config: dict  # the recipe it was trained with
    step: int
    path: str

    @property
    def model_config(self) -> ModelConfig:
        return self.model.config

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.model.config.rows

    @cached_property
    def _forward(self):
        return jax.jit(lambda model, codes_BS: model(codes_BS))

    def __call__(self, codes_BS):
        """Run codes int [B, S] and return the Output: `.logits` [B, S, V], `.features` [L + 1, B, D], ..."""
        return self._forward(self.model, codes_BS)


class Checkpoints:
    """Writes a run's checkpoints without holding up the run, and keeps the last few."""

    def __init__(self, workdir, keep_last: int, keep_every: int):
        """`keep_last` newest steps stay, and besides every step divisible by `keep_every` (0: none)."""
        self.directory = _absolute(workdir) / FOLDER
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every or None, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Begin to write `state` as `step`; returns when the arrays are copied, not when they are on disk."""
        if step in self.manager.all_steps():
            return
        self.check_space(state)
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(to_nested(state.model)),
            training=ocp.args.StandardSave(to_nested({"step": state.step, "opt_state": state.opt_state, "guard": state.guard})),
            meta=ocp.args.JsonSave(meta),
        )
        self.manager.save(step, args=items)

    def check_space(self, state: TrainState) -> None:
        """OSError in one line where the disk has no room for another checkpoint: before it is begun, so that none is left half-written."""
        if "://" in str(self.directory):
            return
        need, free = 1.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE, shutil.disk_usage(self.directory).free
        if free < need:
            sizes = f"{free / 2**20:.1f} MiB free and a checkpoint may take {need / 2**20:.1f} MiB"
            raise OSError(f"No space left on the disk of {self.directory}: {sizes}. Steps {self.manager.all_steps()} are saved; make room and start again")

    def wait(self) -> None:
        """Return when everything begun is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Finish and release."""
        self.manager.close()


def make_meta(model_config: ModelConfig, palette: Palette, config: dict, images_seen: int, best: dict | None = None) -> dict[str, Any]:
    """What a checkpoint says of itself beside its arrays; float32 centres survive JSON exactly."""
    return {
        "model": dataclasses.asdict(model_config),
        "palette": palette.centers.tolist(),
        "config": json.loads(json.dumps(config)),
        "data": {"images_seen": images_seen},
        "best": best,
    }


def restore_state(workdir, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """The newest whole checkpoint of a run as (state, meta), placed as `abstract` says; None where there is none.

    A step that cannot be read is set aside as `STEP.broken`, with a line that says so, so that it is neither offered again nor in the way of a later save.
    """
    wanted = {"model": abstract.model, "training": {"step": abstract.step, "opt_state": abstract.opt_state, "guard": abstract.guard}}
    directory = epath.Path(workdir) / FOLDER
    for step in _steps(directory):
        try:
            meta = _read_meta(directory / str(step))
            restored = {name: _read_arrays(directory / str(step) / name, tree) for name, tree in wanted.items()}
        except Exception as error:  # orbax, tensorstore and json each raise their own
            _report_broken(directory, step, error)
            if jax.process_index() == 0:
                (directory / str(step)).rename(_free_name(directory, step))
            continue
        return TrainState(model=restored["model"], **restored["training"]), meta
    return None


def load(path, mesh=None, **overrides) -> Pretrained:
    """Load the model of a run's directory, a `checkpoints` directory or one step of it, with its palette.

    `overrides` replace fields of the ModelConfig that do not change the parameters (dtype, attention, remat). FileNotFoundError in one line
    where nothing whole is there. With several steps it takes the newest whole one.
    """
    path = epath.Path(path)
    for directory, step in _candidates(path):
        try:
            meta = _read_meta(directory / str(step))
            config = dataclasses.replace(ModelConfig(**PAPER | meta["model"]), **overrides)
            model = _read_arrays(directory / str(step) / "model", _abstract_model(config, mesh))
            palette = Palette(np.asarray(meta["palette"], np.float32))
        except Exception as error:
            _report_broken(directory, step, error)
            continue
        return Pretrained(model, palette, meta["config"], step, str(directory / str(step)))
    raise FileNotFoundError(f"no whole checkpoint in {path}: give the --workdir of a training run, or a directory written by igpt_jax.convert")


def save_model(workdir, model: ImageGPT, palette: Palette, config: dict, step: int = 0) -> None:
    """Write a model alone as `WORKDIR/checkpoints/STEP`, whole or not at all."""
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    manager = ocp.CheckpointManager(_absolute(workdir) / FOLDER, options=options)
    if step in manager.all_steps():  # a run that went on from before it saves the same again
        manager.delete(step)
    meta = make_meta(model.config, palette, config, images_seen=0)
    manager.save(step, args=ocp.args.Composite(model=ocp.args.StandardSave(to_nested(model)), meta=ocp.args.JsonSave(meta)))
    manager.close()


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
    mesh = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    return sharding.placed(mesh, abstract)


def _steps(directory):
    """Committed steps, newest first."""
    if not directory.exists():
        return []
    return sorted((int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()), reverse=True)


def _candidates(path):
    """(directory, step) pairs that `path` may mean, best first."""
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give the --workdir of a training run, or a directory written by igpt_jax.convert")
    if path.name.isdigit() and (path / "model").exists():
        return [(path.parent, int(path.name))]
    directory = path / FOLDER if (path / FOLDER).exists() else path
    return [(directory, step) for step in _steps(directory)]


def _read_meta(step_directory) -> dict:
    """The JSON of one step, read before anything large."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(_absolute(step_directory) / "meta")


def _read_arrays(directory, like):
    """The arrays under `directory` in the shape, type and placement of `like`."""
    with ocp.StandardCheckpointer() as reader:
        return from_nested(reader.restore(_absolute(directory), to_nested(like)), like)


def _absolute(path):
    """orbax takes no path relative to where the program was started; gs:// and its like are absolute as they are."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(os.path.abspath(path))


def _report_broken(directory, step, error):
    reason = " ".join(str(error).split())[:200]
    print(f"checkpoint {directory / str(step)} cannot be read, trying the one before it: {type(error).__name__}: {reason}", file=sys.stderr)


def _free_name(directory, step):
    number = 0
    while (directory / f"{step}.broken{number or ''}").exists():
        number += 1
    return directory / f"{step}.broken{number or ''}"
