"""Probes of features that do not fit in memory: they stream from the disk in shuffled windows, and all layers and learning rates train side by side.

One pass in order measures means and deviations of the training images, `steps` batches train all rates, and a pass over the validation images chooses the
rate: the best on these images, which are not trained on; of equal rates it is the one with fewer nats. Then each layer is trained again from the start with
its rate, on training and validation images, as lbfgs_probe.py fits again: for as many epochs, or the same number of steps if `steps` is given. A pass over
the test images measures the accuracy of this second fit. Means and deviations remain those of the training images.
L layers, R learning rates, B images, S positions, D width, C classes.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.probing import sgd, store, stream
from igpt_jax.probing.results import Arrays, Linear, Outcome, accuracies, predictions, prefixed
from igpt_jax.probing.splits import Splits, vote
from igpt_jax.progress import Progress

# The paper names 30, 10, 3, ... (2.6). Features are scaled so that a rate means the same at any width, see sgd.py. The attention probe is not linear and
# needs smaller rates: on digits 10 (3) is the best for it, and 30 to 100 for the mean.
LEARNING_RATES = (100.0, 30.0, 10.0, 3.0, 1.0)
ATTENTION_RATES = (30.0, 10.0, 3.0, 1.0, 0.3)
EPOCHS = 100  # the paper's 1,000,000 steps are 104 epochs of ImageNet's 1,229,920 training images, if its batch was pretraining's 128
LEAST_STEPS = 2000  # for small sets, where 100 epochs are too few steps to converge
CHECK_EVERY = 200  # steps between two checks for divergence

Parameters: TypeAlias = dict[str, Any]  # kind -> arrays [L, R, ...], see sgd.py


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train."""

    rates: dict[str, Sequence[float]]  # kind (mean, attention) -> learning rates to choose from
    steps: int  # 0: 100 epochs, at least 2000
    batch: int
    seed: int  # of the order of the images and of the attention probe's first parameters
    memory: float  # GiB: half for parameters and what a step computes, half for two windows of images

    def steps_for(self, images: int) -> int:
        """Steps for this number of training images."""
        return self.steps or max(LEAST_STEPS, math.ceil(EPOCHS * images / self.batch))


class Plan:
    """How the probes fit the memory: `at_once` layers side by side, of `width` features each, from windows of `window` images."""

    def __init__(self, splits: Splits, settings: Settings, joined: int = 1):
        """`joined` layers make one probe. Raises ValueError if a single probe does not fit."""
        split, rows = splits.rows["train"]
        layers = store.stored_layers(splits.description)
        reader = store.Reader(splits.directory, splits.description, split, layers[:1])
        self.width = joined * splits.description["width"]
        positions = reader.row_shape[0] if len(reader.row_shape) == 2 else 1
        half, image_bytes = settings.memory * 2**29, joined * reader.row_bytes
        step_bytes = 4 * _step_numbers(settings, splits.classes, self.width, positions)
        need = max(step_bytes, 2 * image_bytes * max(reader.block, settings.batch))
        if need > half:
            name = "a layer" if joined == 1 else f"--concatenate={joined}"
            raise ValueError(
                f"the sgd probe of {name} needs about {2 * need / 2**30:.2g} GiB, more than --memory={settings.memory:g}: "
                f"raise that, or give fewer --learning-rates or a smaller --batch (now {settings.batch})"
            )
        probes = len(layers) if joined == 1 else 1
        fitting = max(1, min(probes, int(half // max(step_bytes, 2 * image_bytes * min(len(rows), 8 * settings.batch)))))
        self.at_once = math.ceil(probes / math.ceil(probes / fitting))  # groups of equal size
        self.largest_window = int(half // (2 * image_bytes * self.at_once))
        self.window = min(len(rows), self.largest_window)


def probe_layers(splits: Splits, layers: Sequence[int], settings: Settings) -> list[Outcome]:
    """Probe each layer. A row has the learning rate, accuracies, and under `attention` the same of the attention probe; the arrays are those of results.py."""
    plan, outcomes = Plan(splits, settings), []
    for first in range(0, len(layers), plan.at_once):
        group = layers[first : first + plan.at_once]
        name = f"layers {', '.join(map(str, group))}" if len(group) < 4 else f"layers {group[0]} to {group[-1]}"
        results = _Group(name, splits, group, settings, plan, joined=False).probe()
        outcomes += [Outcome({"layer": layer} | row, arrays) for layer, (row, arrays) in zip(group, results, strict=True)]
    return outcomes


def total_steps(splits: Splits, layers: Sequence[int], settings: Settings) -> int:
    """Return the steps of `probe_layers`: of each group of layers first on the training images, then on those of training and validation."""
    counts = [len(splits.labels[part]) for part in ("train", "validation")]
    return math.ceil(len(layers) / Plan(splits, settings).at_once) * (settings.steps_for(counts[0]) + settings.steps_for(sum(counts)))


def probe_concatenated(splits: Splits, layers: Sequence[int], settings: Settings) -> Outcome:
    """Train one probe on the features of several layers side by side (paper 4.3)."""
    plan = Plan(splits, settings, joined=len(layers))
    name = f"layers {layers[0]} to {layers[-1]} concatenated"
    row, arrays = _Group(name, splits, layers, settings, plan, joined=True).probe()[0]
    return Outcome({"layers": list(layers)} | row, arrays)


class _Scores(NamedTuple):
    """Predictions of one kind on one part, and their scores [L, R]. With one mask, `voted` and `one_mask` are equal."""

    classes: np.ndarray  # [L, R, N], the vote of all masks
    voted: np.ndarray  # accuracy of the vote of all masks
    one_mask: np.ndarray  # accuracy under mask 0
    nats: np.ndarray  # under mask 0


@dataclasses.dataclass(frozen=True)
class _Group:
    """Layers that are probed side by side, or `joined` as one."""

    name: str  # for the progress bar
    splits: Splits
    layers: Sequence[int]
    settings: Settings
    plan: Plan
    joined: bool

    def probe(self) -> list[Outcome]:
        """Measure, train, choose, train again and test. Returns an outcome for each probe."""
        moments = self.measure()
        rates = {kind: np.asarray(values, np.float32) for kind, values in self.settings.rates.items()}
        parameters, trained = self.train(moments, rates, ("train",))
        validated = self.evaluate(parameters, moments, "validation")
        best = {kind: _best_rates(scores) for kind, scores in validated.items()}
        chosen = {kind: jax.tree.map(partial(_select, best[kind]), parameters[kind]) for kind in parameters}
        again, _ = self.train(moments, {kind: rates[kind][best[kind]][:, None] for kind in rates}, ("train", "validation"))
        finite = {kind: _finite(again[kind]) for kind in again}
        final = {kind: {name: _where(finite[kind], again[kind][name], chosen[kind][name]) for name in again[kind]} for kind in again}
        tested = self.evaluate(final, moments, "test", exactly=True) if "test" in self.splits.rows else {}
        outcomes = {}
        for kind in parameters:
            rows = self.rows(kind, best[kind], finite[kind], trained[kind], validated[kind], tested.get(kind))
            outcomes[kind] = [
                Outcome(row, self.arrays(kind, index, best[kind][index], validated[kind], tested.get(kind), final[kind], moments[kind]))
                for index, row in enumerate(rows)
            ]
        if "attention" not in outcomes:
            return outcomes["mean"]
        pairs = zip(outcomes["mean"], outcomes["attention"], strict=True)
        return [Outcome(mean.row | {"attention": other.row}, mean.arrays | prefixed("attention", other.arrays)) for mean, other in pairs]

    def measure(self) -> dict[str, sgd.Moments]:
        """Moments of each kind over the training images."""
        split, rows = self.splits.rows["train"]
        reader, running = self.reader(split), sgd.RunningMoments(self.settings.rates)
        size = max(1, min(self.plan.window, reader.block))
        with Progress(f"{self.name}: means and deviations", len(rows)) as progress:
            for features, numbers in pipeline.prefetch(stream.in_order(reader, rows, size), put=_unchanged):
                running.add(self.join(features))
                progress.advance(len(numbers))
        return running.moments()

    def train(self, moments: dict[str, sgd.Moments], rates: dict[str, np.ndarray], parts: Sequence[str]) -> tuple[Parameters, dict[str, np.ndarray]]:
        """Train all rates ([R] or [L, R] of each kind) on the images of `parts`.

        Returns their parameters, and kind -> accuracy [L, R] on the batches of the last epoch, each before its step.
        """
        reader, rows, labels = self.images(parts)
        steps, batch = self.settings.steps_for(len(rows)), self.settings.batch
        counts = {kind: values.shape[-1] for kind, values in rates.items()}
        state = sgd.start(counts, 1 if self.joined else len(self.layers), self.splits.classes, self.plan.width, self.settings.seed)
        last = min(steps, math.ceil(len(rows) / batch))
        window = min(len(rows), self.plan.largest_window)
        windows = pipeline.prefetch(stream.windows(reader, rows, window, self.settings.seed), put=_unchanged, depth=1)
        correct: dict[str, Any] = dict.fromkeys(rates, 0)
        pending: dict[str, Any] = {}
        with Progress(f"{self.name}: {' and '.join(parts)}", steps, "steps") as progress, contextlib.closing(windows):
            for step, (features, numbers) in zip(range(steps), stream.batches(windows, batch), strict=False):
                step_rates = {kind: values * np.float32(sgd.cosine(step, steps)) for kind, values in rates.items()}
                state, measured = sgd.update(state, moments, self.join(features), labels[numbers], step_rates)
                if pending:  # one step late: the device never waits for the host, and at most two batches are in memory
                    correct = {kind: correct[kind] + np.asarray(pending[kind][1]) * (step > steps - last) for kind in correct}
                    if step % CHECK_EVERY == 0 and "validation" not in parts:  # a second fit that diverges is replaced by the first, see `probe`
                        _check_finite(pending, step)
                pending = measured
                progress.advance(1)
        return state.parameters, {kind: (correct[kind] + np.asarray(pending[kind][1])) / (last * batch) for kind in correct}

    def images(self, parts: Sequence[str]) -> tuple[store.Reader, np.ndarray, np.ndarray]:
        """A reader of these parts under mask 0, the numbers of their images in it, ascending, and the labels by number."""
        places = [self.splits.rows[part] for part in parts]
        reader = store.Reader(self.splits.directory, self.splits.description, list(dict.fromkeys(split for split, _ in places)), self.layers)
        numbers = [reader.first[split] + rows for split, rows in places]
        labels = np.zeros(max(each.max() for each in numbers) + 1, np.int32)
        for part, each in zip(parts, numbers, strict=True):
            labels[each] = self.splits.labels[part]
        return reader, np.sort(np.concatenate(numbers)), labels

    def evaluate(self, parameters: Parameters, moments: dict[str, sgd.Moments], part: str, exactly: bool = False) -> dict[str, _Scores]:
        """Scores of each kind on one part; `exactly` as in `predict`."""
        split, rows = self.splits.rows[part]
        labels, masks = self.splits.labels[part], self.splits.masks[part]
        with Progress(f"{self.name}: {part}", masks * len(rows)) as progress:
            predicted = [self.predict(parameters, moments, self.reader(split, mask), rows, labels, progress, exactly) for mask in range(masks)]
        scores = {}
        for kind in parameters:
            classes, nats = zip(*(by_kind[kind] for by_kind in predicted), strict=True)
            voted = vote(np.stack(classes, axis=2))
            scores[kind] = _Scores(voted, (voted == labels).mean(axis=-1), (classes[0] == labels).mean(axis=-1), nats[0])
        return scores

    def predict(
        self,
        parameters: Parameters,
        moments: dict[str, sgd.Moments],
        reader: store.Reader,
        rows: np.ndarray,
        labels: np.ndarray,
        progress: Progress,
        exactly: bool = False,
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Kind -> (classes [L, R, N], mean nats [L, R]) under one mask. `exactly`: the classes of kind mean, R = 1, are those of results.Linear."""
        size, done = self.settings.batch, 0
        linear = [_linear(parameters["mean"], moments["mean"], probe) for probe in range(len(moments["mean"].mean))] if exactly else []
        pieces: dict[str, list[list[np.ndarray]]] = {kind: [] for kind in parameters}
        for features, numbers in pipeline.prefetch(stream.in_order(reader, rows, size), put=_unchanged):
            count = len(numbers)
            missing = size - count  # padded, so that one compiled program is enough
            joined = self.join(features)
            padded = np.pad(joined, ((0, 0), (0, missing), *((0, 0),) * (features.ndim - 2)))
            for kind, pair in sgd.predict(parameters, moments, padded, np.pad(labels[done : done + count], (0, missing))).items():
                pieces[kind].append([np.asarray(values)[..., :count] for values in pair])
            if exactly:
                averaged = store.mean_over_positions(joined) if joined.ndim == 4 else joined
                pieces["mean"][-1][0] = np.stack([probe.predict(x) for probe, x in zip(linear, averaged, strict=True)])[:, None]
            done += count
            progress.advance(count)
        whole = {kind: [np.concatenate(values, axis=-1) for values in zip(*pairs, strict=True)] for kind, pairs in pieces.items()}
        return {kind: (classes, nats.mean(axis=-1)) for kind, (classes, nats) in whole.items()}

    def rows(
        self, kind: str, best_L: list[int], refitted_L: np.ndarray, trained_LR: np.ndarray, validated: _Scores, tested: _Scores | None
    ) -> list[dict[str, Any]]:
        """A row of the report for each probe."""
        rows, images = [], len(self.splits.labels.get("test", ()))
        for index, best in enumerate(best_L):
            row = {"learning_rate": self.settings.rates[kind][best], "refitted": bool(refitted_L[index]), "train": float(trained_LR[index, best])}
            row |= accuracies(validated.voted[index, best], tested and tested.voted[index, 0], images)
            if self.splits.description.get("masks"):
                row |= accuracies(validated.one_mask[index, best], tested and tested.one_mask[index, 0], images, "_one_mask")
            rows.append(row)
        return rows

    def arrays(self, kind: str, index: int, best: int, validated: _Scores, tested: _Scores | None, final: Parameters, moments: sgd.Moments) -> Arrays:
        """The arrays of one probe, as results.py lists them."""
        arrays: Arrays = {name: values[index, 0] for name, values in final.items()}
        arrays |= {"mean": moments.mean[index], "scale": moments.scale[index], "learning_rate": np.float64(self.settings.rates[kind][best])}
        if kind == "mean":
            arrays |= _linear(final, moments, index)._asdict()
        return arrays | predictions(self.splits.classes, validated.classes[index, best], tested and tested.classes[index, 0])

    def reader(self, split: str, mask: int = 0) -> store.Reader:
        """A reader of these layers."""
        return store.Reader(self.splits.directory, self.splits.description, split, self.layers, mask)

    def join(self, features: np.ndarray) -> np.ndarray:
        """The features [L, B, ..., D], or [1, B, ..., L * D] if the layers are probed as one."""
        return np.concatenate(list(features), axis=-1)[None] if self.joined else features


def _step_numbers(settings: Settings, classes: int, width: int, positions: int) -> int:
    """How many float32 numbers a training step of one layer keeps in memory."""
    numbers = 3 * settings.batch * positions * width  # the batch, its float32 and standardised copies
    for kind, rates in settings.rates.items():
        pooling = 2 * width**2 + width if kind == "attention" else 0
        numbers += len(rates) * (3 * (classes * (width + 1) + pooling) + 4 * classes * settings.batch)  # parameters, gradients, velocities; logits
        numbers += len(rates) * settings.batch * sgd.head_count(width) * 4 * (positions + width) if kind == "attention" else 0
    return numbers


def _select(best_L: list[int], values: jax.Array) -> jax.Array:
    """Parameters [L, 1, ...] of each layer's best rate."""
    return values[np.arange(len(values)), best_L][:, None]


def _finite(parameters: dict[str, jax.Array]) -> np.ndarray:
    """Whether all parameters [L, 1, ...] of each layer are finite, bool [L]."""
    return np.all([np.isfinite(values).all(axis=tuple(range(1, values.ndim))) for values in parameters.values()], axis=0)


def _where(condition_L: np.ndarray, yes: jax.Array, no: jax.Array) -> np.ndarray:
    return np.where(condition_L.reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)


def _linear(parameters: dict[str, Any], moments: sgd.Moments, probe: int) -> Linear:
    """The probe of kind mean with parameters [L, 1, ...]; its scale has the factor 1 / sqrt(D) of sgd.py."""
    weights, bias = (np.asarray(parameters[name][probe, 0]) for name in ("weights", "bias"))
    return Linear(weights, bias, moments.mean[probe], moments.scale[probe] / np.float32(math.sqrt(moments.scale.shape[-1])))


def _best_rates(scores: _Scores) -> list[int]:
    """Index of the best rate of each layer. Raises ValueError if all rates of a layer diverged."""
    score = np.where(np.isfinite(scores.nats), scores.voted, -1.0)
    if (score.max(axis=1) < 0).any():
        raise ValueError("every learning rate diverged: give lower ones")
    return [int(min(range(len(row)), key=lambda index: (-row[index], nats[index]))) for row, nats in zip(score, scores.nats, strict=True)]


def _check_finite(measured: dict[str, Any], step: int) -> None:
    """Raises ValueError if all learning rates of a layer have diverged; a loss that is not finite stays so."""
    for kind, (nats_LR, _) in measured.items():
        if not np.isfinite(nats_LR).any(axis=1).all():
            raise ValueError(f"every learning rate of the {kind} probe diverged within {step} steps: give lower ones")


def _unchanged(rows: stream.Rows) -> stream.Rows:
    return rows
