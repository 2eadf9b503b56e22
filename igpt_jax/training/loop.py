"""The training loop, shared by pretraining and fine-tuning.

Writes to WORKDIR: config.json, metrics.jsonl, tensorboard/, checkpoints/, best/ and profile/ where the recipe asks for them, and at the end result.json.
"""

import collections
import json
import operator
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax

from igpt_jax.data import pipeline
from igpt_jax.data.pipeline import Dataset
from igpt_jax.distributed import multihost, sharding
from igpt_jax.distributed.lock import Lock
from igpt_jax.files import write_atomically
from igpt_jax.model.transformer import ImageGPT, parameter_count
from igpt_jax.provenance import add_start
from igpt_jax.training import checkpoints, evaluation, metrics, profiler, recipe
from igpt_jax.training.checkpoints import Meta, Pretrained
from igpt_jax.training.setup import Setup, describe_head, write_palette
from igpt_jax.training.step import TrainState, jit_train_step
from igpt_jax.types import Batch, PathLike, Recipe

AHEAD = 4  # steps that may wait for the devices; with hundreds of them, devices made of a CPU's cores wait for each other until XLA ends the process


class Evaluated(NamedTuple):
    """What a training run gives out after an evaluation."""

    run: "Run"
    step: int
    model: ImageGPT  # of this step; the next step replaces its arrays
    values: dict[str, Any]  # metrics of the evaluation, at the end with `best`; {} where a signal stopped the run


def train(config: Recipe, workdir: PathLike, pretrained: Pretrained | None = None, keep_head: bool = False) -> dict[str, Any]:
    """Train as `evaluations` does, and return the last evaluation."""
    return collections.deque(map(operator.attrgetter("values"), evaluations(config, workdir, pretrained, keep_head)), maxlen=1)[0]


def evaluations(config: Recipe, workdir: PathLike, pretrained: Pretrained | None = None, keep_head: bool = False) -> Generator[Evaluated, None, None]:
    """Train a recipe (an ml_collections.ConfigDict) to its last step, or until a SIGTERM, and yield every evaluation; the last is that of the whole split.

    Restores the newest complete checkpoint in `workdir`; the recipe may differ from the one that wrote it in all that keeps the shapes of arrays and the
    order of the data. Without a checkpoint, training begins with the parameters of `pretrained` if given, and with its class head if `keep_head`;
    otherwise a class head begins with zeros. ValueError for whatever is wrong with the recipe, before the first compile and before anything is written.
    """
    setup = multihost.together(lambda: Setup(config, workdir, pretrained, keep_head), "another process cannot begin: see what it says")
    setup.check_processes()
    decisions = setup.decide()
    with Lock(workdir) as lock, multihost.Stop() as stop:
        with jax.set_mesh(setup.mesh):
            state, meta = setup.initial_state()
            step, ended = int(state.step), False
            run = Run(setup, step, meta, decisions)
        with closing(run), closing(run.batches(step)) as batches:
            while not ended:
                with jax.set_mesh(setup.mesh):  # but not during a yield: who takes the evaluation may have a mesh of its own
                    step, state, values, ended = run.until_evaluation(step, state, batches, lock, stop)
                yield Evaluated(run, step, state.model, values)
                run.speed.restart(step)


class Run:
    """A training run under way: its compiled steps, its data with the classes of its head, and what it writes."""

    def __init__(self, setup: Setup, step: int, meta: Meta | None, decisions: Sequence[str] = ()):
        """Start at `step`, restored from a checkpoint with this meta, or None for a new run. Writes config.json, opens the other files, says `decisions`."""
        self.setup, self.config, self.workdir = setup, setup.config, setup.workdir
        self.training, self.validation, self.class_names = setup.match_classes(meta)
        self.validation_sample = self.validation.draw(self.config.eval_images)  # at random, because a data set may be sorted by class
        self.key = jax.random.fold_in(setup.key, 1)
        self.train_step = jit_train_step(setup.mesh, setup.model_config, setup.optim_config, setup.loss_config, self.config.gradient_accumulation_steps)
        self.eval_step = evaluation.make_eval_step(setup.loss_config)
        self.best: dict[str, Any] | None = None  # of config.best.metric: {value, step, since (evaluations), images (measured on), sample (their checksum)}
        self.evaluated: tuple[int, dict[str, Any]] | None = None  # (step, metrics) of the last report on the whole validation split
        previous_recipe = None
        if meta:
            previous_recipe = setup.previous_recipe or recipe.with_new_keys(meta["config"])
            self.best = restored_best(meta, previous_recipe, self.config.best.metric, self.workdir / "best")
        changes = recipe.keep_config(self.workdir, self.config.to_dict(), previous_recipe, step)
        if setup.pretrained is not None and not self.config.palette.path and self.training.palette is None:
            write_palette(setup.palette, self.workdir / "palette.npy")
        if step < self.config.steps and jax.process_index() == 0:
            (self.workdir / "result.json").unlink(missing_ok=True)  # of a run that had fewer steps
        self.checkpoints = checkpoints.Checkpoints(self.workdir, self.config.keep_last, self.config.keep_every)
        self.saved = step if meta else None  # step of the last checkpoint
        first = jax.process_index() == 0
        if first:
            add_start(self.workdir, step, parameters=parameter_count(setup.abstract_state.model), training_images=len(setup.training))
        self.writer = metrics.Writer(self.workdir, step, self.config.steps, enabled=first, track=self.config.track, recipe=self.config.to_dict())
        peak, flops = metrics.peak_flops(jax.devices()[0].device_kind), setup.model_config.training_flops()
        self.speed = metrics.Throughput(self.config.batch_size, setup.model_config.positions, flops, peak and peak * jax.device_count())
        self.compiling_step, self.compile_time = step + 1, setup.compile_time  # its time is not that of a step
        for line in (describe_run(setup, step), *decisions, *changes):
            self.writer.say(line)
        self.measure_best_again()
        self.unfinished: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()  # (step, metrics) that the devices may still be computing
        self.trace = profiler.Trace(self.config.profile, self.workdir, step, self.writer.say)
        if setup.pretrained is not None and not meta:
            which = "the average of the weights of " if setup.pretrained.ema else ""
            self.writer.say(f"begins with {which}{setup.pretrained.path}{describe_head(setup.model_config.classes, setup.pretrained, setup.keep_head)}")

    def until_evaluation(
        self, step: int, state: TrainState, batches: Iterator[Batch], lock: Lock, stop: multihost.Stop
    ) -> tuple[int, TrainState, dict[str, Any], bool]:
        """Train up to the next evaluation, to the last step or until a signal; return (step, state, the evaluation, whether it was the last)."""
        while step < self.config.steps and not (stop.requested(step) or self.out_of_patience):
            state, values = self.update(step + 1, state, batches)
            step += 1
            lock.check()
            self.log(step, values)
            found = self.validate(step, state)
            self.save(step, state, values)
            if found:
                return step, state, found, False
        return step, state, self.finish(step, state, stopped=stop.requested(step) and step < self.config.steps), True

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield the training batches from `step` on, on the devices, prepared ahead."""
        part = sharding.part_of_batch(self.setup.mesh, self.config.batch_size)
        batches: Iterator[Batch] = pipeline.train_batches(self.training, self.setup.palette, self.config.batch_size, self.config.seed, step, part)
        if self.setup.loss_config.classification > 0:
            batches = pipeline.labelled(batches, self.config.data.source)
        return pipeline.prefetch(batches, partial(sharding.shard_batch, self.setup.mesh))

    def update(self, step: int, state: TrainState, batches: Iterator[Batch]) -> tuple[TrainState, dict[str, Any]]:
        """Begin the update of this step with the next batch, and return (state, metrics) after it, which the devices may still be computing."""
        self.trace.start(step, state)
        with jax.profiler.StepTraceAnnotation("train", step_num=step), self.compile_time if step == self.compiling_step else nullcontext():
            state, values = self.train_step(state, next(batches), self.key)
        self.unfinished.append((step, values))
        if len(self.unfinished) > AHEAD:
            earlier, found = self.unfinished.popleft()
            self.check_skips(earlier, jax.block_until_ready(found))
        return state, values

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Report the training metrics every log_every steps and at the last; FloatingPointError as `check_skips` says."""
        self.writer.advance(step)
        if step == self.compiling_step:
            jax.block_until_ready(values)
            if self.compile_time.compiled:
                self.writer.say(str(self.compile_time))
            self.speed.restart(step)
            self.writer.start_clock(step)
        if self.trace.stop_after(step, values):
            self.speed.restart(step)
        if is_due(step, self.config.log_every) or step == self.config.steps:
            self.check_skips(step, values, since_0=True)
            values = {name: float(value) for name, value in values.items() if "skipped" not in name or value}
            speed = {} if self.trace.steps else self.speed.report(step)  # a trace slows the steps down
            self.writer.write(step, values | speed | metrics.peak_memory(jax.local_devices()))
        if self.writer.estimate_due:
            jax.block_until_ready(values)
            self.writer.say_estimate(step)

    def check_skips(self, step: int, values: dict[str, Any], since_0: bool = False) -> None:
        """FloatingPointError with the last good step and checkpoint if config.max_consecutive_skips updates in a row were skipped, or all `since_0`."""
        limit = self.config.max_consecutive_skips
        in_a_row = int(values["skipped_in_a_row"]) if limit else 0
        if in_a_row and in_a_row >= (min(limit, step) if since_0 else limit):
            saved = "there is no checkpoint yet" if self.saved is None else f"the last checkpoint is step {self.saved}"
            raise FloatingPointError(
                f"the last {in_a_row} updates were skipped: loss {float(values['loss'])} and gradient norm {float(values['gradient_norm'])} at step {step}; "
                f"the last good step is {step - in_a_row}, {saved} in {self.workdir}. Lower config.optim.learning_rate or set config.optim.clip_norm = 1.0"
            )

    def save(self, step: int, state: TrainState, values: dict[str, Any]) -> None:
        """Begin a checkpoint every save_every steps and after the last, and where the one before was not written."""
        due = is_due(step, self.config.save_every) or step == self.config.steps
        if due or (is_due(step, self.config.log_every) and self.checkpoints.failed()):
            self.check_skips(step, values, since_0=True)
            self.save_now(step, state)

    def save_now(self, step: int, state: TrainState, wait: bool = False) -> None:
        """Begin a checkpoint; with `wait`, return when it is on disk."""
        setup, images_seen = self.setup, step * self.setup.config.batch_size
        meta = checkpoints.make_meta(setup.model_config, setup.palette, setup.config.to_dict(), images_seen, self.best, self.class_names)
        meta |= {"data": meta.get("data", {}) | setup.data_description}
        self.writer.publish()
        self.checkpoints.save(step, state, meta, wait)
        self.saved = step
        self.speed.restart(step)

    def validate(self, step: int, state: TrainState) -> dict[str, Any]:
        """Report on the validation sample every eval_every steps, and keep the best model if the recipe asks for it; return the metrics, {} where not due.

        After the last step only for the best model: `finish` evaluates the whole split.
        """
        metric, last = self.config.best.metric, step == self.config.steps
        if not (metric if last else is_due(step, self.config.eval_every)):
            return {}
        values = self.measure(state, self.validation_sample)
        self.report(step, values)
        if len(self.validation_sample) == len(self.validation):
            self.evaluated = step, values
        if metric:
            self.keep_best(step, state, values)
        self.speed.restart(step)
        return {} if last else values

    def keep_best(self, step: int, state: TrainState, values: dict[str, float]) -> None:
        """Save the model to WORKDIR/best if its metric is the best so far; count the evaluations since."""
        metric = self.config.best.metric
        sign = evaluation.direction(metric)
        if self.best is None or sign * values[metric] > sign * self.best["value"]:
            model = state.ema if metric.endswith(evaluation.EMA) and state.ema is not None else state.model
            checkpoints.save_model(self.workdir / "best", model, self.setup.palette, self.config.to_dict(), step, self.class_names)
            self.best = {"value": values[metric], "step": step, "since": 0} | self.sample_described
        else:
            self.best = self.best | {"since": self.best["since"] + 1}

    @cached_property
    def sample_described(self) -> dict[str, int]:
        """The validation images that the best is chosen on: their number, and a checksum."""
        return {"images": len(self.validation_sample), "sample": self.validation_sample.content()}

    def measure_best_again(self) -> None:
        """Measure the best model so far on today's validation sample where its value is of another one: values of two samples cannot be compared."""
        if self.best is None or multihost.all_agree(self.best.get("sample") in (None, self.sample_described["sample"])):
            return
        metric, before = self.config.best.metric, self.best
        model = checkpoints.load(self.workdir / "best", mesh=self.setup.mesh).model
        values = self.measure_model(model, self.validation_sample)  # the model in best/ is the average, where the metric is the average's
        self.best = before | {"value": values[metric.removesuffix(evaluation.EMA)]} | self.sample_described
        value = f"{metric} {describe_value(metric, before['value'])} -> {describe_value(metric, self.best['value'])}"
        images = f"{self.best['images']:,} validation images, not those of before ({before['images']:,})"
        self.writer.say(f"the best is now chosen on {images}: the model in {self.workdir}/best was measured again, {value}")

    @property
    def out_of_patience(self) -> bool:
        """Whether the metric has not improved for config.best.patience evaluations."""
        return bool(self.best and self.config.best.patience and self.best["since"] >= self.config.best.patience)

    def measure(self, state: TrainState, dataset: Dataset) -> dict[str, Any]:
        """Compute the evaluation metrics of the model on a data set, and those of the average of its weights, named `accuracy_ema` and so on."""
        values = self.measure_model(state.model, dataset)
        if state.ema is not None:
            values |= {name + evaluation.EMA: value for name, value in self.measure_model(state.ema, dataset).items() if name in evaluation.DIRECTIONS}
        return values

    def measure_model(self, model: ImageGPT, dataset: Dataset) -> dict[str, Any]:
        """Compute the evaluation metrics of a model on a data set."""
        return evaluation.evaluate_dataset(self.eval_step, model, dataset, self.setup.palette, self.config.batch_size, self.setup.mesh)

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Write the evaluation metrics, and those of each source of a mixture as validation/SOURCE/..."""
        self.writer.write(step, {name: value for name, value in values.items() if name != "sources"}, self.validation.split)
        for source, found in values.get("sources", {}).items():
            self.writer.write(step, found, f"{self.validation.split}/{source}")

    def finish(self, step: int, state: TrainState, stopped: bool) -> dict[str, Any]:
        """Save, and if the run was not stopped, evaluate the whole validation split and write result.json; return the evaluation, {} if stopped."""
        self.trace.close()
        self.save_now(step, state, wait=True)
        if stopped:
            self.writer.say(f"stopped by a signal at step {step} of {self.config.steps}, saved: the same command continues from there")
            return {}
        if self.evaluated and self.evaluated[0] == step:
            values = self.evaluated[1]
        else:
            values = self.measure(state, self.validation)
            self.report(step, values)
        if self.best:
            self.writer.say(describe_best(self.best, self.config.best.metric, step, self.config.steps, self.workdir) + self.describe_sample())
        result = values | ({"best": self.best} if self.best else {})
        if jax.process_index() == 0:
            summary = {"step": step, "split": self.validation.split, "parameters": parameter_count(state.model)} | result
            write_atomically(self.workdir / "result.json", json.dumps(summary, indent=1).encode())
        return result

    def describe_sample(self) -> str:
        """On how many images the best was chosen, where that is a part of the validation split: the last evaluation is of all, and differs."""
        sample, whole = (self.best or {}).get("images", len(self.validation_sample)), len(self.validation)
        return f", chosen on {sample:,} of {whole:,} validation images" if sample < whole else ""

    def close(self) -> None:
        """Finish writing what was begun, after an error too."""
        self.trace.close()
        self.writer.close()
        self.checkpoints.close()


def is_due(step: int, every: int) -> bool:
    """Return whether an action that is taken every so many steps is due after this one; `every` 0: never."""
    return every > 0 and step % every == 0


def restored_best(meta: Meta, previous_recipe: dict[str, Any], metric: str, best_workdir: PathLike) -> dict[str, Any] | None:
    """Return the best value so far as a checkpoint has it; None where it is of another metric, or `best_workdir` does not hold its model."""
    best, step = meta.get("best"), checkpoints.newest_step(best_workdir)
    lost = best and step != best["step"]
    return None if lost or previous_recipe.get("best", {}).get("metric") != metric else best


def describe_best(best: dict[str, Any], metric: str, step: int, steps: int, workdir: PathLike) -> str:
    """Describe the best evaluation in one line, and why a run ended before its last step."""
    ended = f"no better {metric} in {best['since']} evaluations, so the run ends at step {step} of {steps}; " if step < steps else ""
    return f"{ended}best: {metric} {describe_value(metric, best['value'])} at step {best['step']}, the model in {workdir}/best"


def describe_value(metric: str, value: float) -> str:
    """Return the value of a metric as text: an accuracy in percent, a loss with four digits."""
    return f"{value:.1%}" if "accuracy" in metric else f"{value:.4f}"


def describe_run(setup: Setup, step: int) -> str:
    """Describe model, data, devices and steps in one line."""
    parameters, devices = parameter_count(setup.abstract_state.model), jax.devices()
    shape = " x ".join(f"{name} {size}" for name, size in setup.mesh.shape.items())
    return (
        f"{parameters:,} parameters, {len(setup.training):,} training images, {setup.palette.size} colours, "
        f"{len(devices)} x {devices[0].device_kind} ({shape}), from step {step} to {setup.config.steps}"
    )
