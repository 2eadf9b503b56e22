"""What a training run is made of: its recipe checked, its mesh, data, palette and initial state, before anything is written."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from igpt_jax.data import classes, pipeline
from igpt_jax.data.pipeline import Dataset
from igpt_jax.distributed import multihost, runtime, sharding
from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints, evaluation, rates, recipe, tracking
from igpt_jax.training.checkpoints import Meta, Pretrained
from igpt_jax.training.compilation import Step, decide
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.profiler import CompileTime
from igpt_jax.training.step import LossConfig, TrainState, abstract_state, init_state
from igpt_jax.types import PathLike, Recipe

SAME_FIELDS = ("layers", "width", "heads", "vocabulary", "positions", "objective", *PAPER)  # of ModelConfig: they define the pretrained parameters

INTERPOLATE = "interpolate the checkpoint's positions to config.data.image_size (ViT's way); default: another size is refused"  # help of a flag


class Setup:
    """A recipe checked and assembled. ValueError, before the first compile, for whatever is wrong with it; nothing is written."""

    def __init__(self, config: Recipe, workdir: PathLike, pretrained: Pretrained | None = None, keep_head: bool = False):
        """`pretrained` gives the first parameters of a run that has no checkpoint of its own, and with `keep_head` its class head too."""
        self.config, self.workdir, self.pretrained, self.keep_head = config, epath.Path(workdir), pretrained, keep_head
        recipe.check_numbers(config.to_dict())
        recipe.check_profile(config.profile, config.steps)
        if jax.process_index() == 0:
            tracking.check(config.track)
        self.previous_recipe = recipe.read_config(self.workdir) if checkpoints.has_steps(self.workdir) else None
        if self.previous_recipe:
            recipe.check_continues(self.workdir, self.previous_recipe, config.to_dict())
        if config.deterministic and jax.default_backend() == "gpu" and runtime.DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
            raise ValueError(f"config.deterministic cannot be turned on in this process: set XLA_FLAGS={runtime.DETERMINISTIC} before it starts")
        self.mesh = sharding.make_mesh(**config.mesh)
        self.model_config = ModelConfig(**config.model)
        self.optim_config = OptimConfig(**config.optim)
        self.loss_config = LossConfig(**config.loss)
        rates.check_layers(self.optim_config.frozen_layers, self.model_config.layers, bool(pretrained or self.previous_recipe))
        sharding.check_model(self.mesh, self.model_config.width, self.model_config.heads, self.model_config.mlp)
        sharding.check_batch(self.mesh, config.batch_size, config.gradient_accumulation_steps)
        data_config = pipeline.DataConfig(**config.data)
        self.training = pipeline.open_dataset(data_config, "train")
        self.validation = pipeline.open_dataset(data_config, "validation" if "validation" in pipeline.splits_of(data_config) else "test")
        if pretrained is not None:
            check_same(self.model_config, pretrained.model_config, pretrained.path)
        self.palette = choose_palette(config.palette.path, self.training, self.workdir, pretrained)
        evaluation.check_fit(self.model_config, self.palette, self.training, labels_needed=self.loss_config.classification > 0)
        pipeline.train_batches(self.training, self.palette, config.batch_size, config.seed).close()  # checks the batch size and the palette, reads nothing
        self.class_names = choose_class_names(self.model_config, self.loss_config, self.training, pretrained, keep_head)
        check_best(config.best.metric, self.model_config, self.validation, self.optim_config.ema_decay > 0)
        self.data_description = recipe.describe_data(self.training, self.palette)
        self.key = jax.random.key(config.seed)
        self.compile_time = CompileTime()  # of `decide` and of the first step

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return abstract_state(self.model_config, self.mesh, self.optim_config)

    def check_processes(self) -> None:
        """ValueError on every process where they differ in recipe, images, palette or first weights: each supplies its part of a batch that all share."""
        weights = self.pretrained and self.pretrained.checksum  # their paths may differ
        images = [(len(dataset), dataset.class_names, recipe.describe_mixture(dataset)) for dataset in (self.training, self.validation)]
        multihost.check_same(
            recipe=recipe.shared(self.config), images=images, palette=self.palette.centers.tolist(), weights_to_start_from=weights
        )

    def decide(self) -> list[str]:
        """Decide what the recipe leaves open (training/compilation.py), after the checks, because it may compile for minutes; return lines on it."""
        config = self.config
        step = Step(self.mesh, self.model_config, self.optim_config, self.loss_config, config.batch_size, config.gradient_accumulation_steps)
        with self.compile_time:
            self.model_config, decisions = decide(step, sharding.device_memory() if self.model_config.remat == "auto" else math.inf)
        return decisions

    def initial_state(self) -> tuple[TrainState, Meta | None]:
        """Restore the newest complete checkpoint as (state, its meta), or make the state of step 0 as (state, None).

        ValueError where the checkpoint has another palette or other data than the recipe.
        """
        restored = checkpoints.restore_state(self.workdir, self.abstract_state)
        if restored is not None:
            state, meta = restored
            if not np.array_equal(np.asarray(meta["palette"], np.float32), self.palette.centers):
                raise ValueError(f"the checkpoint in {self.workdir} was trained with another palette: use that palette, or another --workdir")
            recipe.check_data(self.data_description, meta["data"], self.config.data.source, self.workdir)
            return state, meta
        state = init_state(self.model_config, self.mesh, jax.random.fold_in(self.key, 0), self.optim_config)
        if self.pretrained is not None:
            source = self.pretrained.model if self.keep_head else checkpoints.without_head(self.pretrained.model)
            state = state.starting_from(with_parameters(state.model, source))
        return state, None

    def match_classes(self, meta: Meta | None) -> tuple[Dataset, Dataset, tuple[str | int, ...] | None]:
        """Return (training, validation, class names) with the class numbers that the class head has, which is that of the checkpoint with this meta if any.

        ValueError where the data has other classes, or the images other labels than in the run. Class names are None for a model without a loss of classes.
        """
        if self.class_names is None:
            self._compare_validation(self.validation, meta)
            return self.training, self.validation, None
        head: tuple[str | int, ...] | None = self.class_names  # None: a checkpoint from before class names were stored
        if meta:
            head = meta.get("class_names") and tuple(meta["class_names"])
        names = head or self.class_names
        model, way_out = f"the run in {self.workdir}", ". Take another --workdir, or name them as there"
        training = classes.match_classes(self.training, head, model, way_out, every=True)
        labels = recipe.describe_labels(training)
        recipe.check_labels(labels, meta["data"] if meta else {}, self.config.data.source, self.workdir)
        self.data_description |= labels
        validation = classes.match_classes(self.validation, names, model, say=lambda line: None)
        self._compare_validation(validation, meta)
        return training, validation, names

    def _compare_validation(self, validation: Dataset, meta: Meta | None) -> None:
        """Note where the validation images, or their labels as numbers of the run's classes, are not those of the checkpoint with this meta."""
        now = validation.content()
        self.data_description |= {"validation": now}
        if meta and meta["data"].get("validation", now) != now:
            multihost.note("the validation images are not those of before this start: the losses before and after it cannot be compared")


def load_pretrained(
    config: Recipe,
    workdir: PathLike,
    path: str | None,
    load: Callable[..., Pretrained] = checkpoints.load,
    interpolate_positions: bool = False,
    ema: bool = False,
) -> Pretrained | None:
    """Load the checkpoint at `path` on the recipe's mesh, for a run that begins with it; with `interpolate_positions` at the recipe's resolution.

    `load` is checkpoints.load, or a function that knows more names. With `ema` the parameters are the average of the checkpoint's weights.

    None where no path is given, and, with a note, where the run has a checkpoint of its own: it does not need the other one, which may be gone.
    """
    own = checkpoints.has_steps(workdir)
    if not multihost.all_equal(2 * bool(path) + own):  # what they load, they load together
        raise ValueError("the processes do not all have --init_from or --checkpoint, or a checkpoint of their own: start all of them with one command")
    if interpolate_positions and not path:
        raise ValueError("--interpolate_positions is for the positions of a checkpoint to begin with: give one, or leave it out")
    if not path:
        if ema:
            raise ValueError("--ema takes the average of the weights of a checkpoint: name one, or leave it out")
        return None
    if own:
        multihost.note(f"{workdir} continues from its own checkpoint; {path} is not read")
        return None
    size = config.data.image_size if interpolate_positions else None
    return load(path, mesh=sharding.make_mesh(**config.mesh), image_size=size, ema=ema)


def with_parameters(model: ImageGPT, pretrained: ImageGPT) -> ImageGPT:
    """Return `model` with every parameter that `pretrained` has too; a new one (a class head) stays as it is."""
    parameters = checkpoints.to_nested(pretrained)

    def choose(path: Any, leaf: Any) -> Any:
        node: Any = parameters
        for name in sharding.names(path):
            node = node.get(name) if node is not None else None
        return leaf if node is None else jax.device_put(node, leaf.sharding)

    return jax.tree_util.tree_map_with_path(choose, model)


def check_same(config: ModelConfig, pretrained: ModelConfig, path: str) -> None:
    """ValueError naming the fields in which a recipe and a checkpoint differ."""
    differ = [
        f"{name} {getattr(pretrained, name)!r}, recipe {getattr(config, name)!r}" for name in SAME_FIELDS if getattr(pretrained, name) != getattr(config, name)
    ]
    if differ:
        size = pretrained.rows != config.rows and pretrained.tokens_per_pixel == config.tokens_per_pixel
        way_out = f", or --interpolate_positions to begin at {config.rows} x {config.rows}" if size else ""
        raise ValueError(f"{path} is a model of another architecture: {'; '.join(differ)}. Add {' '.join(flags_of(config, pretrained))}{way_out}")


def flags_of(config: ModelConfig, pretrained: ModelConfig) -> list[str]:
    """Return the flags that give a recipe of the model `config` the architecture of `pretrained`."""
    differ = {name: getattr(pretrained, name) for name in SAME_FIELDS if getattr(pretrained, name) != getattr(config, name)}
    flags = [f"--config.palette.size={differ.pop('vocabulary')}"] if "vocabulary" in differ else []
    if pretrained.rows != config.rows:
        flags.append(f"--config.data.image_size={pretrained.rows}")
        if pretrained.tokens_per_pixel == config.tokens_per_pixel:  # the recipe's positions follow
            differ.pop("positions")
    if "tokens_per_pixel" in differ:
        flags.append(f"--config.palette.kind={'levels' if pretrained.tokens_per_pixel == 3 else 'colours'}")
    return [f"--config.model.{name}={value}" for name, value in differ.items()] + flags


def check_best(metric: str, model_config: ModelConfig, validation: Dataset, ema: bool = False) -> None:
    """ValueError where config.best.metric is not measured, or there is no validation split to measure it on."""
    measured = evaluation.measured(model_config, ema)
    if metric and metric not in measured:
        raise ValueError(f"config.best.metric {metric!r} is not measured: one of {', '.join(measured)}")
    if metric and validation.split == "test":
        way_out = "set config.data.validation to the share held out, or config.best.metric to nothing"
        raise ValueError(f"config.best.metric {metric!r} chooses by the validation split, and there is none: {way_out}")


def choose_class_names(
    model_config: ModelConfig, loss_config: LossConfig, dataset: Dataset, pretrained: Pretrained | None, keep_head: bool
) -> tuple[str | int, ...] | None:
    """Return the names of the classes of a new run's class head: those of a head that is kept, else those of the data; None without a loss of classes.

    ValueError where `keep_head` asks for a head that the pretrained model does not have, or that has other classes than the data set.
    """
    if keep_head and pretrained is not None:
        return kept_classes(model_config, pretrained, dataset) if loss_config.classification > 0 else pretrained.class_names
    return dataset.class_names if loss_config.classification > 0 else None


def kept_classes(config: ModelConfig, pretrained: Pretrained, dataset: Dataset) -> tuple[str | int, ...]:
    """Return the names of the classes whose head --keep_head keeps, in its order; ValueError where there is none, or the data set has other classes."""
    head, names = pretrained.model_config, pretrained.class_names
    if not head.classes:
        raise ValueError(f"{pretrained.path} has no class head: leave out --keep_head")
    way_out = ". Leave out --keep_head for a fresh head"
    if config.classes != head.classes and names is None:
        raise ValueError(f"the class head of {pretrained.path} has {head.classes} classes and {dataset.config.source} {config.classes}{way_out}")
    wanted_layer, head_layer = (model.layers if model.class_layer == -1 else model.class_layer for model in (config, head))
    if wanted_layer != head_layer:
        raise ValueError(f"the class head of {pretrained.path} reads layer {head_layer}, config.model.class_layer says {wanted_layer}{way_out}")
    return classes.match_classes(dataset, names, pretrained.path, way_out, every=True).class_names


def describe_head(classes: int, pretrained: Pretrained, keep_head: bool) -> str:
    """Say what becomes of a pretrained model's class head, as the end of a line."""
    before = pretrained.model_config.classes
    if keep_head:
        return f" and its class head of {before} classes"
    left_out = f" without its class head of {before} classes (--keep_head keeps it)" if before else ""
    return left_out + (f", a class head of {classes} classes that is zero" if classes else "")


def choose_palette(path: str, dataset: Dataset, workdir: epath.Path, pretrained: Pretrained | None = None) -> Palette:
    """Return the palette of the pretrained model, else the one at `path`, else the one beside coded data, else WORKDIR/palette.npy, which quantize writes.

    ValueError where there is another palette at `path` or in the work directory than the pretrained model's, which would see wrong colours, or in the work
    directory than the one beside coded data. `path` replaces the palette of the work directory, and the pipeline compares it with that of coded data.
    """
    if pretrained is not None:
        place = epath.Path(path) if path else workdir / "palette.npy"
        if (path or place.exists()) and not np.array_equal(Palette.load(place).centers, pretrained.palette.centers):
            raise ValueError(f"{place} is not the palette of the checkpoint: remove it, or take another --workdir")
        return pretrained.palette
    if path:
        return Palette.load(path)
    if dataset.palette is not None:
        check_coded(dataset.config.source, dataset.palette, workdir)
        return dataset.palette
    if not (workdir / "palette.npy").exists():
        raise FileNotFoundError(f"no palette at {workdir}/palette.npy: fit one with python -m igpt_jax.quantize --workdir={workdir} and this recipe's --config")
    return Palette.load(workdir / "palette.npy")


def check_coded(source: str, palette: Palette, workdir: epath.Path) -> None:
    """ValueError where WORKDIR/palette.npy is another palette than that of the coded data `source`: a palette fitted again leaves codes as they are."""
    place = workdir / "palette.npy"
    if not palette.differs_from(place):
        return
    recode = "codes:" in source and not checkpoints.has_steps(workdir)  # a run that continues has the palette of its codes; other arrays are not ours
    again = "write the codes again by igpt_jax.quantize --codes, " if recode else ""
    raise ValueError(f"{place} is not the palette of {source}: {again}delete {place} to take the palette of the codes, or take another --workdir")


def write_palette(palette: Palette, path: epath.Path) -> None:
    """Write the palette to `path` if there is none; every process returns when it is there."""
    if jax.process_index() == 0 and not path.exists():
        palette.save(path)
    multihost.wait_for_all("palette")
