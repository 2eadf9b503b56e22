"""A training run, shared by pretraining and fine-tuning: the loop, and the recipe checked and assembled.

Writes to WORKDIR: config.json, metrics.jsonl, tensorboard/, checkpoints/, best/ where the recipe keeps the best, and at the end result.json.
"""

import dataclasses
import json
import os
import zlib
from functools import partial

import jax
import numpy as np
from etils import epath

from igpt_jax.data import classes, pipeline
from igpt_jax.distributed import multihost, runtime, sharding
from igpt_jax.distributed.lock import Lock
from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig, parameter_count
from igpt_jax.palette.palette import Palette, write_whole
from igpt_jax.training import checkpoints, evaluation, metrics, recipe
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.step import LossConfig, TrainState, abstract_state, init_state, jit_train_step

HOST_KEYS = (("data", "source"), ("data", "directory"), ("data", "workers"), ("palette", "path"))  # which may differ between the hosts of one run
SAME = ("layers", "width", "heads", "vocabulary", "positions", "objective", *PAPER)  # what makes the parameters those of a pretrained model


def train(config, workdir, pretrained: checkpoints.Pretrained | None = None, keep_head: bool = False) -> dict[str, float]:
    """Run a recipe (an ml_collections.ConfigDict) to its end, or to a SIGTERM, and return the last evaluation.

    It goes on from the newest checkpoint in `workdir`, with any change of the recipe that keeps the shapes of arrays and the order of the data; a first
    start begins with the parameters of `pretrained`, if given, and of its class head with `keep_head`: a recipe's class head else begins with zeros.
    Whatever is wrong with the recipe is said before the first compile, and before anything is written.
    """
    run = multihost.together(lambda: Run(config, workdir, pretrained, keep_head), "another process cannot begin: see what it says")
    run.check_processes()
    with Lock(workdir) as lock, jax.set_mesh(run.mesh), multihost.Stop() as stop:
        step, state = run.start()
        batches = run.batches(step)
        try:
            while step < config.steps and not (stop.requested(step) or run.exhausted):
                batch = next(batches)
                state, values = run.step(state, batch, run.key)
                step += 1
                lock.check()
                run.log(step, values)
                run.evaluate(step, state)
                run.save(step, state, values)
            return run.finish(step, state, stopped=stop.requested(step) and step < config.steps)
        finally:
            batches.close()
            run.close()


class Run:
    """A recipe checked and assembled."""

    def __init__(self, config, workdir, pretrained: checkpoints.Pretrained | None = None, keep_head: bool = False):
        self.config, self.workdir, self.pretrained, self.keep_head = config, epath.Path(workdir), pretrained, keep_head
        recipe.check_numbers(config.to_dict())
        self.before = recipe.read_config(self.workdir) if checkpoints.has_steps(self.workdir) else None
        if self.before:
            recipe.check_continues(self.workdir, self.before, config.to_dict())
        if config.deterministic and jax.default_backend() == "gpu" and runtime.DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
            raise ValueError(f"config.deterministic is asked for too late in this process: set XLA_FLAGS={runtime.DETERMINISTIC} before it starts")
        self.mesh = sharding.make_mesh(**config.mesh)
        self.model_config = ModelConfig(**config.model)
        self.optim_config = OptimConfig(**config.optim)
        self.loss_config = LossConfig(**config.loss)
        sharding.check_model(self.mesh, self.model_config.width, self.model_config.heads, self.model_config.mlp)
        sharding.check_batch(self.mesh, config.batch_size, config.gradient_accumulation_steps)
        data_config = pipeline.DataConfig(**config.data)
        self.training = pipeline.open_dataset(data_config, "train")
        self.validation = pipeline.open_dataset(data_config, "validation" if "validation" in pipeline.splits_of(data_config) else "test")
        self.watched = self.validation.draw(config.eval_images)  # the same at each evaluation: a data set may be sorted by class
        if pretrained is not None:
            check_same(self.model_config, pretrained.model_config, pretrained.path)
        self.palette = choose_palette(config.palette.path, self.training, self.workdir, pretrained)
        evaluation.check_fit(self.model_config, self.palette, self.training, labels_needed=self.loss_config.classification > 0)
        pipeline.train_batches(self.training, self.palette, config.batch_size, config.seed).close()  # says what does not fit; reads nothing
        self.class_names = self.training.class_names if self.loss_config.classification > 0 else None
        if keep_head:
            self.class_names = kept_classes(self.model_config, pretrained, self.training) if self.class_names else pretrained.class_names
        self.check_best()
        self.described = recipe.describe_data(self.training, self.palette)
        self.key = jax.random.key(config.seed)
        self.step = jit_train_step(self.mesh, self.model_config, self.optim_config, self.loss_config, config.gradient_accumulation_steps)
        self.eval_step = evaluation.make_eval_step(self.loss_config)
        self.best = None  # {value, step, evaluations since} of config.best.metric

    def start(self) -> tuple[int, TrainState]:
        """The step to go on from and the state there."""
        restored = checkpoints.restore_state(self.workdir, abstract_state(self.model_config, self.mesh))
        if restored and not np.array_equal(np.asarray(restored[1]["palette"], np.float32), self.palette.centers):
            raise ValueError(f"the checkpoint in {self.workdir} was trained with another palette: give that one, or take another --workdir")
        state = restored[0] if restored else init_state(self.model_config, self.mesh, jax.random.fold_in(self.key, 0))
        step = int(state.step)
        if restored:
            before, self.best = self.before or recipe.with_new_keys(restored[1]["config"]), restored[1].get("best")
            recipe.check_data(self.described, restored[1]["data"], self.config.data.source, self.workdir)
            kept = checkpoints.newest_step(self.workdir / "best")
            if before.get("best", {}).get("metric") != self.config.best.metric or (self.best and kept not in (None, self.best["step"])):
                self.best = None  # of another metric, or overwritten by steps that are gone
        elif self.pretrained is not None:
            given = self.pretrained.model if self.keep_head else checkpoints.without_head(self.pretrained.model)
            state = dataclasses.replace(state, model=with_parameters(state.model, given))
        self.match_classes(restored and restored[1])
        self.key = jax.random.fold_in(self.key, 1)
        lines = recipe.keep_config(self.workdir, self.config.to_dict(), before if restored else None, step)
        if self.pretrained is not None and not self.config.palette.path and self.training.palette is None:
            keep_palette(self.palette, self.workdir / "palette.npy")
        if step < self.config.steps and jax.process_index() == 0:
            (self.workdir / "result.json").unlink(missing_ok=True)  # of a run that had fewer steps
        self.checkpoints = checkpoints.Checkpoints(self.workdir, self.config.keep_last, self.config.keep_every)
        self.saved = step if restored else None
        self.writer = metrics.Writer(self.workdir, step, self.config.steps, enabled=jax.process_index() == 0)
        peak = metrics.peak_flops(jax.devices()[0].device_kind)
        flops = self.model_config.training_flops()
        self.speed = metrics.Throughput(self.config.batch_size, self.model_config.positions, flops, peak and peak * jax.device_count())
        self.first = step + 1  # compiles: its time is that of no step
        shape = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        self.writer.say(
            f"{parameter_count(state.model):,} parameters, {len(self.training):,} training images, {self.palette.size} colours, "
            f"{jax.device_count()} x {jax.devices()[0].device_kind} ({shape}), from step {step} to {self.config.steps}"
        )
        for line in lines:
            self.writer.say(line)
        if self.pretrained is not None and not restored:
            self.writer.say(f"begins with {self.pretrained.path}{head_line(self.model_config.classes, self.pretrained, self.keep_head)}")
        return step, state

    def check_processes(self) -> None:
        """ValueError on every process where they do not have the same recipe, images or palette: each supplies its part of a batch that they share."""
        given = self.config.to_dict()
        for section, key in HOST_KEYS:
            given[section].pop(key, None)
        images = [(len(dataset), dataset.class_names) for dataset in (self.training, self.validation)]
        for name, what in (("recipe", given), ("images", images), ("palette", self.palette.centers.tolist())):
            if not multihost.all_equal(zlib.crc32(json.dumps(what).encode()) >> 1):
                raise ValueError(f"the processes have not the same {name}: start all of them with one command, on the same files")

    def check_best(self) -> None:
        """ValueError where config.best.metric is not measured, or there is no validation split to measure it on."""
        metric, measured = self.config.best.metric, evaluation.measured(self.model_config)
        if metric and metric not in measured:
            raise ValueError(f"config.best.metric {metric!r} is not measured: one of {', '.join(measured)}")
        if metric and self.validation.split == "test":
            way_out = "set config.data.validation to the share held out, or config.best.metric to nothing"
            raise ValueError(f"config.best.metric {metric!r} chooses by the validation split, and there is none: {way_out}")

    def match_classes(self, meta) -> None:
        """Give the classes of the data the numbers that the class head has, of the checkpoint with this meta if any; ValueError where they are others."""
        if self.class_names is None:
            return
        names, model, every = self.class_names, f"the run in {self.workdir}", True
        if meta:
            names = meta.get("class_names") and tuple(meta["class_names"])
            self.class_names = names or self.class_names
        self.training = classes.match_classes(self.training, names, model, ". Take another --workdir, or name them as there", every)
        self.validation = classes.match_classes(self.validation, self.class_names, model, say=lambda line: None)
        self.watched = self.validation.draw(self.config.eval_images)

    def batches(self, step):
        """Training batches on the devices, from `step` on, prepared ahead."""
        part = sharding.part_of_batch(self.mesh, self.config.batch_size)
        batches = pipeline.train_batches(self.training, self.palette, self.config.batch_size, self.config.seed, step, part)
        if self.loss_config.classification > 0:
            batches = pipeline.labelled(batches, self.config.data.source)
        return pipeline.prefetch(batches, partial(sharding.shard_batch, self.mesh))

    def log(self, step, values) -> None:
        """Report every log_every steps; stop the run where the loss is no number."""
        self.writer.advance(step)
        if step == self.first:
            jax.block_until_ready(values)
            self.speed.restart(step)
        if is_due(step, self.config.log_every) or step == self.config.steps:
            self.check_skips(step, values)
            values = {name: float(value) for name, value in values.items() if "skipped" not in name or value}
            self.writer.write(step, values | self.speed.report(step))

    def check_skips(self, step, values) -> None:
        """Raise FloatingPointError, with the last good step and checkpoint, after config.max_consecutive_skips skipped updates in a row (or if all were)."""
        in_a_row, limit = int(values["skipped_in_a_row"]), self.config.max_consecutive_skips
        if limit and in_a_row and in_a_row >= min(limit, step):
            saved = "there is no checkpoint yet" if self.saved is None else f"the last checkpoint is step {self.saved}"
            raise FloatingPointError(
                f"the last {in_a_row} updates were skipped: loss {float(values['loss'])} and gradient norm {float(values['gradient_norm'])} at step {step}; "
                f"the last good step is {step - in_a_row}, {saved} in {self.workdir}. Lower config.optim.learning_rate or set config.optim.clip_norm = 1.0"
            )

    def save(self, step, state, values) -> None:
        """Begin a checkpoint every save_every steps, after the last, and where one begun before turns out not to have been written."""
        due = is_due(step, self.config.save_every) or step == self.config.steps
        if due or (is_due(step, self.config.log_every) and self.checkpoints.failed()):
            self.check_skips(step, values)
            self.save_now(step, state)

    def save_now(self, step, state, wait: bool = False) -> None:
        """Begin a checkpoint; with `wait`, return when it is on disk."""
        meta = checkpoints.make_meta(self.model_config, self.palette, self.config.to_dict(), step * self.config.batch_size, self.best, self.class_names)
        meta |= {"data": meta.get("data", {}) | self.described}
        self.writer.publish()
        self.checkpoints.save(step, state, meta, wait)
        self.saved = step
        self.speed.restart(step)

    def evaluate(self, step, state) -> None:
        """Report the validation split every eval_every steps and after the last, and keep the best model where the recipe asks for it."""
        metric = self.config.best.metric
        if not is_due(step, self.config.eval_every) and not (metric and step == self.config.steps):
            return
        if step == self.config.steps and not metric:
            return  # finish does it, on all images
        values = self.measure(state, self.watched)
        self.writer.write(step, values, self.validation.split)
        if metric:
            self.keep_best(step, state, values)
        self.speed.restart(step)

    def keep_best(self, step, state, values) -> None:
        """Save the model to WORKDIR/best where its metric is the best so far; count the evaluations since."""
        metric = self.config.best.metric
        sign = evaluation.DIRECTIONS[metric]
        better = self.best is None or sign * values[metric] > sign * self.best["value"]
        if better:
            checkpoints.save_model(self.workdir / "best", state.model, self.palette, self.config.to_dict(), step, self.class_names)
        self.best = {"value": values[metric], "step": step, "since": 0} if better else self.best | {"since": self.best["since"] + 1}

    @property
    def exhausted(self) -> bool:
        """Whether the metric has not improved for config.best.patience evaluations."""
        return bool(self.best and self.config.best.patience and self.best["since"] >= self.config.best.patience)

    def measure(self, state, dataset) -> dict[str, float]:
        """Evaluate on a data set."""
        size = sharding.round_up(self.mesh, min(self.config.batch_size, len(dataset)))
        batches = pipeline.evaluation_batches(dataset, self.palette, size, sharding.part_of_batch(self.mesh, size))
        return evaluation.evaluate(self.eval_step, state.model, batches, self.mesh)

    def finish(self, step, state, stopped: bool) -> dict[str, float]:
        """Save; then say where a stopped run can go on, or evaluate a finished one."""
        self.save_now(step, state, wait=True)
        result = {}
        if stopped:
            self.writer.say(f"stopped by a signal at step {step} of {self.config.steps}, saved: the same command goes on from there")
        else:
            result = self.measure(state, self.validation)
            self.writer.write(step, result, self.validation.split)
            result |= {"best": self.best} if self.best else {}
            if jax.process_index() == 0:
                summary = {"step": step, "split": self.validation.split, "parameters": parameter_count(state.model)} | result
                write_whole(self.workdir / "result.json", json.dumps(summary, indent=1).encode())
        return result

    def close(self) -> None:
        """Let what was begun be written, after an error too."""
        self.writer.close()
        self.checkpoints.close()


def is_due(step: int, every: int) -> bool:
    """Whether what is done every so many steps is done after this one; 0: never."""
    return every > 0 and step % every == 0


def with_parameters(model: ImageGPT, pretrained: ImageGPT) -> ImageGPT:
    """`model` with every parameter that `pretrained` has too; what is new (a class head) stays as it is."""
    given = checkpoints.to_nested(pretrained)

    def choose(path, leaf):
        found = given
        for name in sharding.names(path):
            found = found.get(name) if found is not None else None
        return leaf if found is None else jax.device_put(found, leaf.sharding)

    return jax.tree_util.tree_map_with_path(choose, model)


def check_same(wanted: ModelConfig, found: ModelConfig, path) -> None:
    """ValueError naming the sizes in which a recipe and a checkpoint differ."""
    differ = [f"{name} {getattr(found, name)!r}, recipe {getattr(wanted, name)!r}" for name in SAME if getattr(found, name) != getattr(wanted, name)]
    if differ:
        raise ValueError(f"{path} is a model of another architecture: {'; '.join(differ)}. Set config.model, config.palette.size and config.data to its")


def kept_classes(config: ModelConfig, pretrained: checkpoints.Pretrained, dataset) -> tuple:
    """Names of the classes whose head --keep_head keeps, in its order; ValueError where there is none, or those of the data set are others."""
    found, names = pretrained.model_config, pretrained.class_names
    if not found.classes:
        raise ValueError(f"{pretrained.path} has no class head: leave out --keep_head")
    fresh = ". Leave out --keep_head for a fresh head"
    if config.classes != found.classes and names is None:
        raise ValueError(f"the class head of {pretrained.path} has {found.classes} classes and {dataset.config.source} {config.classes}{fresh}")
    if (layers := [{-1: one.layers}.get(one.class_layer, one.class_layer) for one in (config, found)]) and layers[0] != layers[1]:
        raise ValueError(f"the class head of {pretrained.path} reads layer {layers[1]}, config.model.class_layer says {layers[0]}{fresh}")
    return classes.match_classes(dataset, names, pretrained.path, fresh, every=True).class_names


def head_line(classes: int, pretrained: checkpoints.Pretrained, keep_head: bool) -> str:
    """What becomes of a pretrained model's class head, to end a line with."""
    found, fresh = pretrained.model_config.classes, f", a class head of {classes} classes that is zero" * bool(classes)
    kept, left_out = f" and its class head of {found} classes", f" without its class head of {found} classes (--keep_head keeps it)" * bool(found)
    return kept if keep_head else left_out + fresh


def choose_palette(path: str, dataset, workdir, pretrained: checkpoints.Pretrained | None = None) -> Palette:
    """The palette of the pretrained model, else at `path`, else beside coded data, else the one that quantize wrote into the work directory.

    ValueError where one lies there that is not the pretrained model's, which would see wrong colours.
    """
    if pretrained is not None:
        place = path or workdir / "palette.npy"
        if (path or place.exists()) and not np.array_equal(Palette.load(place).centers, pretrained.palette.centers):
            raise ValueError(f"{place} is not the palette of the checkpoint: remove it, or take another --workdir")
        return pretrained.palette
    if path:
        return Palette.load(path)
    return dataset.palette if dataset.palette is not None else Palette.load(workdir / "palette.npy")


def keep_palette(palette: Palette, path) -> None:
    """Write the palette where a run's is looked for, if none is there."""
    if jax.process_index() == 0 and not path.exists():
        palette.save(path)
    multihost.wait_for_all("palette")
