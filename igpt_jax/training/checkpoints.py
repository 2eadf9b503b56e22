"""Checkpoints: `WORKDIR/checkpoints/STEP/{model,training,meta}`, and `ema` where the recipe keeps an average of the weights.

`model` is a nested dict of float32 arrays under the names of the parameters, `ema` another one, `training` the optimiser's state (opt_state.adam.mu, ...),
the step and the guard, `meta` JSON with the model's configuration, the palette, the recipe and the position in the data. A converted model has no
`training`. A step is complete if its files are there and its checksums are right. A damaged step (wrong checksum, truncated or missing files) is skipped
for the one before it; every other error while reading ends the program. `storage` reads and writes the files. A model to be published is one file
(`model_file`).
B batch, S sequence, V palette, L layers, D width.
"""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from igpt_jax.distributed import multihost, sharding
from igpt_jax.files import one_line
from igpt_jax.model.resolution import at_resolution
from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig, Output, check_codes, parameter_count
from igpt_jax.palette.palette import Palette
from igpt_jax.training import model_file, storage
from igpt_jax.training.step import TrainState
from igpt_jax.training.storage import FOLDER as FOLDER
from igpt_jax.training.storage import Damaged, list_steps
from igpt_jax.training.trees import NestedArrays, checksum, from_nested, to_nested
from igpt_jax.types import AnyArray, PathLike, Tree

Meta: TypeAlias = dict[str, Any]
T = TypeVar("T")

HELP = (  # of --checkpoint
    "directory of a run or of a converted model, a file of `convert pack`, the name of a model in the package, cifar10-16, or of the hub, hf:OWNER/NAME"
)
ANOTHER_SIZE = "to which the model's positions are interpolated; default: that of its training"  # help of --image-size
HELP_EMA = "take the moving average of the weights, which a run with config.optim.ema_decay keeps"
MASK_PROBABILITY = 0.15  # of a bert model whose recipe has none; paper 2.1
SPARE = 2**18  # bytes left for logs, and for what orbax writes beside the arrays
PAUSES = (1.0, 5.0)  # seconds before a failed write is tried again
FORMAT = 2  # of `training`; 1, which meta does not name, has the optimiser's state by its position in optax's chain
FREE_FIELDS = ("dtype", "remat", "unroll", "attention", "matmul_precision", "dropout")  # of ModelConfig: how a model is computed, not its parameters


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with what is needed to use it."""

    model: ImageGPT
    palette: Palette
    config: dict[str, Any]  # the recipe it was trained with
    step: int
    path: str  # of the step's directory or of the file; the name of a model that the package ships
    class_names: tuple[str | int, ...] | None = None  # of the class head: str, or int where its data had no names; None: not known
    checksum: int | None = None  # of the parameters; None: the checkpoint has none
    ema: bool = False  # whether the parameters are the moving average of the weights
    name: str | None = None  # of a model in one file: that of the file without its suffix; of one of the hub: that after OWNER/; None: a step of a run

    def __repr__(self) -> str:
        model, colours = self.model_config, "colours" if self.palette.tokens_per_pixel == 1 else "levels of each channel"
        pixels = f"{model.rows} x {model.rows} pixels in {self.palette.size} {colours}"
        size = f"{model.layers} layers of width {model.width}, {parameter_count(self.model):,} parameters"
        return f"Pretrained({self.path!r}, step {self.step}{', moving average' * self.ema}: {model.objective}, {size}, {pixels})"

    @property
    def model_config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def mesh(self) -> Any:
        """The Mesh on which the model is placed; None for a model that was not loaded but made in this process."""
        return getattr(jax.tree.leaves(self.model)[0].sharding, "mesh", None)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.model.config.rows

    @property
    def mask_probability(self) -> float:
        """Share of the positions that the training of a bert model masked."""
        return self.config.get("loss", {}).get("mask_probability", MASK_PROBABILITY)

    def __call__(self, codes_BS: AnyArray) -> Output:
        """Run codes int [B, S] and return the Output: `.logits` [B, S, V], `.features` [L + 1, B, D], ...; ValueError for codes that are no images."""
        return _forward(self.model, check_codes(self.model_config, codes_BS, self.model_config.positions))


@jax.jit
def _forward(model: ImageGPT, codes_BS: AnyArray) -> Output:
    """The forward pass, compiled once for each configuration; no attribute of a Pretrained, which can be pickled."""
    return model(codes_BS)


class Checkpoints:
    """Writes the checkpoints of a run in the background and keeps the last few."""

    def __init__(self, workdir: PathLike, keep_last: int, keep_every: int):
        """Keep the `keep_last` newest steps, and every step divisible by `keep_every` (0: none)."""
        self.directory = storage.absolute(storage.folder_of(workdir))
        self._open = partial(storage.open_manager, workdir, keep_last, keep_every)
        self._opened = 1
        self.manager = self._open(self._opened)

    def save(self, step: int, state: TrainState, meta: Meta, wait: bool = False) -> None:
        """Begin to write `state` as `step`; return when the arrays are copied, or with `wait` when they are on disk.

        A write that fails on any process, this one or the one before it, is tried again by all processes after each of PAUSES. OSError in one line on every
        process when the last try fails, within storage.PATIENCE of a process that does not take part. Earlier checkpoints are left as they are.
        """
        trees = {"model": to_nested(state.model), "training": to_nested({"step": state.step, "opt_state": state.opt_state, "guard": state.guard})}
        if state.ema is not None:
            trees["ema"] = to_nested(state.ema)
        meta = meta | {"format": FORMAT, "step": step, "checksums": {name: checksum(tree) for name, tree in trees.items()}}
        arguments = storage.save_arguments(meta, **trees)
        for pause in (*PAUSES, None):
            try:
                self._write(step, state, arguments, wait)
                return
            except Exception as error:  # orbax, tensorstore and the file systems each raise their own
                if pause is None:
                    saved = f"steps {sorted(list_steps(self.directory))} are saved; free some disk space, or repair the disk, and start again"
                    raise OSError(f"checkpoint {step} cannot be written to {self.directory}: {one_line(error)}; {saved}") from error
                print(f"checkpoint {step} cannot be written, trying again in {pause:g} s: {one_line(error)}", file=sys.stderr, flush=True)
                self._on_all(self._reopen)
                time.sleep(pause)
                wait = True

    def failed(self) -> bool:
        """Return whether the last write failed on any process; the caller then saves again."""
        try:
            self._on_all(lambda: self.manager.check_for_errors())
        except Exception as error:
            print(f"the last checkpoint was not written, saving again: {one_line(error)}", file=sys.stderr, flush=True)
            self._on_all(self._reopen)
            return True
        return False

    def check_space(self, state: Tree) -> None:
        """OSError in one line where the disk has no room for another checkpoint. Called before one is begun, so that none is left incomplete."""
        if "://" in str(self.directory):
            return
        need, free = 1.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE, shutil.disk_usage(self.directory).free
        if not multihost.all_agree(free >= need):
            raise OSError(f"No space left on the disk: {free / 2**20:.1f} MiB free and a checkpoint may take {need / 2**20:.1f} MiB")

    def close(self) -> None:
        """Finish writing and release the manager."""
        self.manager.close()

    def _write(self, step: int, state: TrainState, arguments: Any, wait: bool) -> None:
        """Begin to write one step, once, after the step before it is on disk and its size is known."""
        self._on_all(lambda: self.manager.wait_until_finished())
        if not multihost.all_agree(step in self.manager.all_steps()):
            self.check_space(state)
            self._on_all(lambda: self.manager.save(step, args=arguments))
        if wait:
            self._on_all(lambda: self.manager.wait_until_finished())

    def _on_all(self, action: Callable[[], Any]) -> None:
        """Run `action` on every process; where it fails on one, raise on all, so that none waits for another in the next collective."""
        multihost.together(action, "another process cannot write its part")

    def _reopen(self) -> None:
        """Replace the manager: one that failed remembers steps that are not there; a new one reads the disk and removes incomplete directories."""
        try:
            self.manager.close()
        except Exception as error:  # the same failure again
            print(f"while closing: {one_line(error)}", file=sys.stderr, flush=True)
        self._opened += 1
        self.manager = self._open(self._opened)


def make_meta(
    model_config: ModelConfig,
    palette: Palette,
    config: dict[str, Any],
    images_seen: int,
    best: dict[str, Any] | None = None,
    class_names: tuple[str | int, ...] | None = None,
) -> Meta:
    """Return the meta of a checkpoint; JSON keeps float32 centres exactly. `class_names` are those of the class head, None: not known."""
    return {
        "model": dataclasses.asdict(model_config),
        "palette": palette.centers.tolist(),
        "config": json.loads(json.dumps(config)),
        "data": {"images_seen": images_seen},
        "best": best,
        "class_names": None if class_names is None else list(class_names),
    }


def save_model(
    workdir: PathLike,
    model: ImageGPT,
    palette: Palette,
    config: dict[str, Any],
    step: int = 0,
    class_names: tuple[str | int, ...] | None = None,
) -> None:
    """Write a model alone as `WORKDIR/checkpoints/STEP`, completely or not at all, and remove all other steps there."""
    manager = storage.open_model_manager(workdir)
    for later in [existing for existing in manager.all_steps() if existing >= step]:  # of a run that restarted before it: orbax writes no earlier step
        manager.delete(later)
    nested = to_nested(model)
    meta = make_meta(model.config, palette, config, images_seen=0, class_names=class_names) | {"step": step, "checksums": {"model": checksum(nested)}}
    manager.save(step, args=storage.save_arguments(meta, model=nested))
    manager.close()


def restore_state(workdir: PathLike, abstract: TrainState) -> tuple[TrainState, Meta] | None:
    """Restore the newest complete checkpoint of a run as (state, meta), placed as `abstract` says; None where there is no checkpoint.

    Damaged steps newer than that are renamed `STEP.broken`, with a line for each, so that they are neither read again nor in the way of a later save.
    Any other error changes nothing: OSError where a step cannot be read for another reason or no step is complete, ValueError naming the fields where
    the checkpoint holds another model than `abstract`.
    """
    directory = storage.folder_of(workdir)
    steps = list_steps(directory)
    if not multihost.all_equal(steps[0] if steps else -1):
        raise OSError(f"the processes do not see the same checkpoints in {directory}, this one {steps}: mount one directory on all, and start again")
    for number, step in enumerate(steps):
        state_and_meta = _read_state(directory / str(step), abstract)
        if state_and_meta is not None:
            _set_aside(directory, steps[:number])
            return state_and_meta
    if steps:
        way_out = "nothing was changed; restore one from a copy, or remove that directory to start from the beginning"
        raise OSError(f"none of the checkpoints {steps} in {directory} is complete: {way_out}")
    return None


def has_steps(workdir: PathLike) -> bool:
    """Return whether a work directory has a committed checkpoint, complete or damaged."""
    return newest_step(workdir) is not None


def newest_step(workdir: PathLike) -> int | None:
    """Return the newest committed checkpoint in a work directory, complete or damaged; None where there is none."""
    return next(iter(list_steps(storage.folder_of(workdir))), None)


def load(
    path: PathLike, mesh: Mesh | Callable[[ImageGPT], Mesh] | None = None, image_size: int | None = None, ema: bool = False, **overrides: Any
) -> Pretrained:
    """Load a model with its palette.

    `path`: a run's directory or a `checkpoints` directory (its newest complete step), the directory of one step under any name, a file that `igpt_jax.convert
    pack` wrote, or the name of a model that the package ships, such as "cifar10-16".

    `mesh`: where the model is placed, a Mesh or a function of the abstract model that chooses one; None: one device of this process, or all of them where
    one is too small. `image_size`: side in pixels of the pictures that it will be given; None: that of its training; for another one its positions are
    interpolated (`model.resolution.at_resolution`), with a note. `ema` loads the moving average of the weights in their place. `overrides` replace fields of
    the ModelConfig that say how the model is computed: those of FREE_FIELDS. FileNotFoundError in one line where there is no complete step, OSError where
    one cannot be read for another reason, ValueError for a damaged file, an `image_size` that is none, another override, or where there is no average.
    """
    check_overrides(overrides)
    file, places = multihost.together(lambda: _find(path), f"another process does not find {path}: see what it says")
    multihost.check_same(weights=[file is None, len(places)])  # all read one kind, and as many steps until one is complete: they read together
    if file is not None and ema:
        raise ValueError(f"{path} is a model in one file, which has no average beside its weights: load it without ema")
    pretrained = _load_step(path, places, mesh, overrides, "ema" if ema else "model") if file is None else _load_file(file, path, mesh, overrides)
    return pretrained if image_size is None else _at_resolution(pretrained, image_size)


def check_overrides(overrides: Iterable[str]) -> None:
    """ValueError naming the overrides of `load` that are not in FREE_FIELDS: they would change the parameters, or what the stored ones mean."""
    if wrong := sorted(set(overrides) - {*FREE_FIELDS}):
        allowed = f"besides path, mesh, image_size and ema it takes {', '.join(FREE_FIELDS)}"
        raise ValueError(f"igpt_jax.load cannot set {', '.join(wrong)}: {allowed}; all else belongs to the stored parameters")


def _find(path: PathLike) -> tuple[epath.Path | None, list[epath.Path]]:
    """(the file of a model, or None; the steps of a directory, newest first); FileNotFoundError where nothing has this path or name."""
    file = model_file.find(path)
    return file, storage.find_steps(path) if file is None else []


def _load_step(
    path: PathLike, places: list[epath.Path], mesh: Mesh | Callable[[ImageGPT], Mesh] | None, overrides: dict[str, Any], tree: str
) -> Pretrained:
    """Load the newest complete one of the steps in a directory; `tree` is `model`, or `ema` for the average of the weights."""
    for place in places:
        meta = _read_meta(place)
        if meta is None:
            continue
        multihost.check_same(weights=[tree, _step_of(place, meta), meta.get("checksums")])
        if tree == "ema" and not has_average(meta):
            raise ValueError(f"{place} has no average of the weights, as runs without config.optim.ema_decay and every best/: load it without ema")
        abstract = _abstract_model(_config(meta, overrides), mesh)
        trees = _read_trees(place, meta, {tree: to_nested(abstract)})
        if trees is not None:
            return _pretrained(from_nested(trees[tree], abstract), meta, _step_of(place, meta), str(place), tree=tree)
    if _is_of_transformers(path):
        raise FileNotFoundError(f"{path} is a folder of transformers, not a checkpoint: convert it first, python -m igpt_jax.convert hf {path} DIRECTORY")
    raise FileNotFoundError(f"no complete checkpoint in {path}: give the --workdir of a training run, or a directory written by igpt_jax.convert")


def _is_of_transformers(path: PathLike) -> bool:
    try:
        return "model_type" in json.loads((epath.Path(os.path.expanduser(path)) / "config.json").read_text())
    except (OSError, ValueError):
        return False


def exists(path: PathLike) -> bool:
    """Return whether there is a local file or directory at the path of a checkpoint, or the package ships a model of this name."""
    return os.fspath(path) in model_file.shipped() or os.path.exists(os.path.expanduser(path))


def identify(path: PathLike, ema: bool = False) -> tuple[str, int, int | None] | None:
    """Return (path, step, checksum of the parameters) of the checkpoint that `load` would choose by its meta; None where no meta can be read.

    With `ema` the checksum is that of the average of the weights, None where there is none.

    FileNotFoundError where nothing has this path or name.
    """
    file = model_file.find(path)
    if file is not None:
        stored, _ = model_file.read(file)
        return _label(path), stored["step"], stored["checksums"]["model"]
    newest = _newest(storage.find_steps(path))
    return newest and (str(newest[0]), _step_of(*newest), newest[1].get("checksums", {}).get("ema" if ema else "model"))


def stored_palette(workdir: PathLike) -> Palette | None:
    """Return the palette with which a run was trained, by the meta of its newest complete step; None where there is none."""
    newest = _newest(storage.find_steps(workdir)) if has_steps(workdir) else None
    return Palette(np.asarray(newest[1]["palette"], np.float32)) if newest else None


def _newest(places: Iterable[epath.Path]) -> tuple[epath.Path, Meta] | None:
    """Return the first of the steps whose meta can be read, with its meta; None where there is none."""
    return next(((place, meta) for place in places if (meta := _read_meta(place)) is not None), None)


def has_average(meta: Meta) -> bool:
    """Return whether a step has the moving average of the weights."""
    return "ema" in meta.get("checksums", {})


def without_head(model: ImageGPT) -> ImageGPT:
    """Return the model without its class head."""
    config = dataclasses.replace(model.config, classes=0)
    return from_nested(to_nested(model), jax.eval_shape(lambda: ImageGPT(config, jax.random.key(0))))


def _load_file(file: epath.Path, path: PathLike, mesh: Mesh | Callable[[ImageGPT], Mesh] | None, overrides: dict[str, Any]) -> Pretrained:
    """Load the model of one file. Every process reads it and places its part of the parameters."""

    def read() -> tuple[Meta, ImageGPT, ImageGPT]:
        meta, nested = model_file.read(file)
        abstract = _abstract_model(_config(meta, overrides), mesh)
        return meta, abstract, model_file.parameters_like(file, nested, abstract)

    meta, abstract, parameters = multihost.together(read, f"another process cannot read {file}")
    multihost.check_same(weights=meta["checksums"])
    model = jax.tree.map(lambda array, like: jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__), parameters, abstract)
    return _pretrained(model, meta, meta["step"], _label(path), name=file.stem)


def _at_resolution(pretrained: Pretrained, image_size: int) -> Pretrained:
    """The model with positions for another resolution, and the recipe for images of it."""
    model, before = at_resolution(pretrained.model, image_size), pretrained.image_size
    if model is pretrained.model:
        return pretrained
    rotary = model.config.position_encoding == "rotary"
    done = "rotary positions, which have nothing to interpolate," if rotary else "positions were interpolated: they"
    multihost.note(f"{pretrained.path} is used at another resolution; its {done} go from {before} x {before} to {image_size} x {image_size} pixels")
    recipe = pretrained.config
    if "data" in recipe:
        recipe = recipe | {"data": recipe["data"] | {"image_size": image_size}}
    return dataclasses.replace(pretrained, model=model, config=recipe)


def _config(meta: Meta, overrides: dict[str, Any]) -> ModelConfig:
    """The configuration of a stored model; ValueError for options that this version does not have."""
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown := sorted(meta["model"].keys() - known):
        way_out = "use the version of igpt_jax that wrote it, or a later one"
        raise ValueError(f"the model has options that this version does not have ({', '.join(unknown)}): {way_out}")
    return dataclasses.replace(ModelConfig(**PAPER | meta["model"]), **overrides)


def _pretrained(model: ImageGPT, meta: Meta, step: int, path: str, name: str | None = None, tree: str = "model") -> Pretrained:
    return Pretrained(
        model=model,
        palette=Palette(np.asarray(meta["palette"], np.float32)),
        config=meta["config"],
        step=step,
        path=path,
        class_names=None if meta.get("class_names") is None else tuple(meta["class_names"]),
        checksum=meta.get("checksums", {}).get(tree),
        name=name,
        ema=tree == "ema",
    )


def _label(path: PathLike) -> str:
    """The path or the name of a model's file, as it was given."""
    return str(epath.Path(os.path.expanduser(path)))


# Reading one step. Every process reads its part; then all compare, and all of them use the step, skip it, or raise.


def _read_state(place: epath.Path, abstract: TrainState) -> tuple[TrainState, Meta] | None:
    """Read (state, meta) of one step; None where it is damaged. An average that the step lacks begins with its weights."""
    meta = _read_meta(place)
    if meta is None:
        return None
    _check_model(place, meta["model"], abstract.model.config)
    layout = {"model": to_nested(abstract.model), "training": _training_layout(meta, abstract)}
    if abstract.ema is not None and has_average(meta):
        layout["ema"] = to_nested(abstract.ema)
    trees = _read_trees(place, meta, layout)
    if trees is None:
        return None
    like = {"step": abstract.step, "opt_state": abstract.opt_state, "guard": abstract.guard}
    state = TrainState(model=from_nested(trees["model"], abstract.model), **from_nested(_named_training(trees["training"], meta), like))
    if "ema" in trees:
        return dataclasses.replace(state, ema=from_nested(trees["ema"], abstract.ema)), meta
    if abstract.ema is not None:
        multihost.note(f"{place} has no average of the weights: it begins with the weights of this step")
        state = dataclasses.replace(state, ema=abstract.ema).starting_from(state.model)
    return state, meta


def _read_meta(place: epath.Path) -> Meta | None:
    """Read the meta of one step, before its arrays; None where it is damaged."""

    def read() -> Meta:
        meta = storage.read_meta(place)
        if meta.get("format", 1) > FORMAT:
            raise ValueError(f"it has format {meta['format']} and this version reads up to {FORMAT}: use the version of igpt_jax that wrote it, or a later one")
        return meta

    return _unless_damaged(place, read)


def _read_trees(place: epath.Path, meta: Meta, layout: dict[str, NestedArrays]) -> dict[str, NestedArrays] | None:
    """Read the named trees of one step as `layout` describes them and compare their checksums; None where the step is damaged."""
    trees = _unless_damaged(place, lambda: storage.read_trees(place, layout))
    if trees is None or _unless_damaged(place, lambda: _check_bits(trees, meta)) is None:
        return None
    return trees


def _check_bits(trees: dict[str, NestedArrays], meta: Meta) -> bool:
    """True; Damaged where the bits are not those that were written, which orbax does not check."""
    for name, expected in meta.get("checksums", {}).items():
        if name in trees and checksum(trees[name]) != expected:
            raise Damaged(f"the checksum of {name} is not the one that was written with it")
    return True


def _unless_damaged(place: epath.Path, read: Callable[[], T]) -> T | None:
    """Return what `read()` returns; None on all processes, after a line with the reason, where it raises Damaged on any: all then try the step before.

    OSError in one line on all processes where `read()` fails for another reason on any.
    """
    result, failure = None, None
    try:
        result = read()
    except Exception as error:  # orbax, tensorstore, jax and the file systems each raise their own
        failure = error
    damaged = isinstance(failure, Damaged)
    if not multihost.all_agree(failure is None or damaged):
        reason = "another process cannot read its part" if failure is None or damaged else f"{type(failure).__name__}: {one_line(failure)}"
        raise OSError(f"checkpoint {place} cannot be read: {reason}; nothing was changed, fix that and start again") from failure
    if multihost.all_agree(not damaged):
        return result
    reason = one_line(failure) if failure is not None else "another process cannot read its part"
    print(f"checkpoint {place} cannot be read, trying the one before it: {reason}", file=sys.stderr, flush=True)
    return None


def _check_model(place: epath.Path, stored: dict[str, Any], config: ModelConfig) -> None:
    """ValueError where a checkpoint's model has other parameters than the recipe's."""
    wanted, stored = dataclasses.asdict(config), PAPER | stored
    differ = [f"{name} {stored.get(name)!r} and not {wanted[name]!r}" for name in wanted if name not in FREE_FIELDS and stored.get(name) != wanted[name]]
    if differ:
        raise ValueError(f"the model in {place} has {', '.join(differ)}: use its recipe, or another --workdir")


def _training_layout(meta: Meta, abstract: TrainState) -> NestedArrays:
    """Describe `training` of a step, a nested dict of `abstract`'s leaves in the format that the meta names."""
    training = to_nested({"step": abstract.step, "opt_state": abstract.opt_state, "guard": abstract.guard})
    if meta.get("format", 1) > 1:
        return training
    adam, schedule = _chain_positions(meta)
    return training | {"opt_state": {adam: training["opt_state"]["adam"], schedule: {"count": training["step"]}}}


def _named_training(training: NestedArrays, meta: Meta) -> NestedArrays:
    """Convert `training` of any format into the present one; the schedule's count, the step less the skipped updates, is not needed."""
    if meta.get("format", 1) > 1:
        return training
    return training | {"opt_state": {"adam": training["opt_state"][_chain_positions(meta)[0]]}}


def _chain_positions(meta: Meta) -> tuple[str, str]:
    """Positions of the states of Adam and of the schedule in optax's chain, format 1; they depend on the recipe that wrote the checkpoint."""
    optim = meta["config"]["optim"]
    adam = int(bool(optim["clip_norm"]))
    return str(adam), str(adam + 1 + bool(optim["weight_decay"]))


def _abstract_model(config: ModelConfig, mesh: Mesh | Callable[[ImageGPT], Mesh] | None) -> ImageGPT:
    """Shapes, types and shardings of a model's parameters on the mesh that `load` takes or chooses."""
    abstract = jax.eval_shape(partial(ImageGPT, config), jax.random.key(0))
    mesh = mesh if isinstance(mesh, Mesh) else (mesh or sharding.alone)(abstract)
    sharding.check_model(mesh, config.width, config.heads, config.mlp)
    return sharding.placed(mesh, abstract)


def _step_of(place: epath.Path, meta: Meta) -> int:
    """The step of a checkpoint under any name. Older ones do not have it in their meta: there it is images seen / batch size, 0 for a model alone."""
    if place.name.isdigit():
        return int(place.name)
    return meta.get("step", meta.get("data", {}).get("images_seen", 0) // meta["config"].get("batch_size", 1))


def _set_aside(directory: epath.Path, steps: list[int]) -> None:
    """Rename damaged steps STEP.broken, STEP.broken1, ..."""
    if jax.process_index() == 0:
        for step in steps:
            name, number = f"{step}.broken", 0
            while (directory / name).exists():
                number += 1
                name = f"{step}.broken{number}"
            (directory / str(step)).rename(directory / name)
    multihost.wait_for_all("restore")
