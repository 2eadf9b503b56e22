"""Probes of features that do not fit in memory: they stream from the disk in shuffled windows, and all layers and learning rates train side by side.

One pass in order measures means and deviations of the training images, `steps` batches train, and one pass over each of validation and test measures
accuracy. The chosen learning rate is the best on the validation images, which are not trained on; of equal rates it is the one with fewer nats.
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
        self.window = min(len(rows), int(half // (2 * image_bytes * self.at_once)))


def probe_layers(splits: Splits, layers: Sequence[int], settings: Settings) -> list[dict[str, Any]]:
    """Probe each layer. Returns a row for each: learning rate, accuracies, and under `attention` the same of the attention probe."""
    plan, rows = Plan(splits, settings), []
    for first in range(0, len(layers), plan.at_once):
        group = layers[first : first + plan.at_once]
        name = f"layers {', '.join(map(str, group))}" if len(group) < 4 else f"layers {group[0]} to {group[-1]}"
        results = _Group(name, splits, group, settings, plan, joined=False).probe()
        rows += [{"layer": layer} | row for layer, row in zip(group, results, strict=True)]
    return rows


def probe_concatenated(splits: Splits, layers: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Train one probe on the features of several layers side by side (paper 4.3)."""
    plan = Plan(splits, settings, joined=len(layers))
    name = f"layers {layers[0]} to {layers[-1]} concatenated"
    return {"layers": list(layers)} | _Group(name, splits, layers, settings, plan, joined=True).probe()[0]


class _Scores(NamedTuple):
    """Scores of one kind on one part, each [L, R]. With one mask, `voted` and `one_mask` are equal."""

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

    def probe(self) -> list[dict[str, Any]]:
        """Measure, train, choose and test. Returns a row for each probe."""
        moments = self.measure()
        parameters, trained = self.train(moments)
        validated = self.evaluate(parameters, moments, "validation")
        best = {kind: _best_rates(scores) for kind, scores in validated.items()}
        chosen = {kind: jax.tree.map(partial(_select, best[kind]), parameters[kind]) for kind in parameters}
        tested = self.evaluate(chosen, moments, "test") if "test" in self.splits.rows else None
        rows = {kind: self.rows(kind, best[kind], trained[kind], validated[kind], tested[kind] if tested else None) for kind in parameters}
        return [row | ({"attention": rows["attention"][index]} if "attention" in rows else {}) for index, row in enumerate(rows["mean"])]

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

    def train(self, moments: dict[str, sgd.Moments]) -> tuple[Parameters, dict[str, np.ndarray]]:
        """Train all rates. Returns their parameters, and kind -> accuracy [L, R] on the batches of the last epoch, each before its step."""
        split, rows = self.splits.rows["train"]
        labels, steps, batch = np.zeros(self.splits.description["counts"][split], np.int32), self.settings.steps_for(len(rows)), self.settings.batch
        labels[rows] = self.splits.labels["train"]
        rates = {kind: np.asarray(values, np.float32) for kind, values in self.settings.rates.items()}
        counts = {kind: len(values) for kind, values in rates.items()}
        state = sgd.start(counts, 1 if self.joined else len(self.layers), self.splits.classes, self.plan.width, self.settings.seed)
        last = min(steps, math.ceil(len(rows) / batch))
        windows = pipeline.prefetch(stream.windows(self.reader(split), rows, self.plan.window, self.settings.seed), put=_unchanged, depth=1)
        correct: dict[str, Any] = dict.fromkeys(rates, 0)
        pending: dict[str, Any] = {}
        with Progress(self.name, steps, "steps") as progress, contextlib.closing(windows):
            for step, (features, numbers) in zip(range(steps), stream.batches(windows, batch), strict=False):
                step_rates = {kind: values * np.float32(sgd.cosine(step, steps)) for kind, values in rates.items()}
                state, measured = sgd.update(state, moments, self.join(features), labels[numbers], step_rates)
                if pending:  # one step late: the device never waits for the host, and at most two batches are in memory
                    correct = {kind: correct[kind] + np.asarray(pending[kind][1]) * (step > steps - last) for kind in correct}
                    if step % CHECK_EVERY == 0:
                        _check_finite(pending, step)
                pending = measured
                progress.advance(1)
        return state.parameters, {kind: (correct[kind] + np.asarray(pending[kind][1])) / (last * batch) for kind in correct}

    def evaluate(self, parameters: Parameters, moments: dict[str, sgd.Moments], part: str) -> dict[str, _Scores]:
        """Scores of each kind on one part."""
        split, rows = self.splits.rows[part]
        labels, masks = self.splits.labels[part], self.splits.masks[part]
        with Progress(f"{self.name}: {part}", masks * len(rows)) as progress:
            predicted = [self.predict(parameters, moments, self.reader(split, mask), rows, labels, progress) for mask in range(masks)]
        scores = {}
        for kind in parameters:
            classes, nats = zip(*(by_kind[kind] for by_kind in predicted), strict=True)
            voted = vote(np.stack(classes, axis=2))
            scores[kind] = _Scores((voted == labels).mean(axis=-1), (classes[0] == labels).mean(axis=-1), nats[0])
        return scores

    def predict(
        self, parameters: Parameters, moments: dict[str, sgd.Moments], reader: store.Reader, rows: np.ndarray, labels: np.ndarray, progress: Progress
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Kind -> (classes [L, R, N], mean nats [L, R]) under one mask."""
        size, done = self.settings.batch, 0
        pieces: dict[str, list[list[np.ndarray]]] = {kind: [] for kind in parameters}
        for features, numbers in pipeline.prefetch(stream.in_order(reader, rows, size), put=_unchanged):
            count = len(numbers)
            missing = size - count  # padded, so that one compiled program is enough
            padded = np.pad(self.join(features), ((0, 0), (0, missing), *((0, 0),) * (features.ndim - 2)))
            for kind, pair in sgd.predict(parameters, moments, padded, np.pad(labels[done : done + count], (0, missing))).items():
                pieces[kind].append([np.asarray(values)[..., :count] for values in pair])
            done += count
            progress.advance(count)
        joined = {kind: [np.concatenate(values, axis=-1) for values in zip(*pairs, strict=True)] for kind, pairs in pieces.items()}
        return {kind: (classes, nats.mean(axis=-1)) for kind, (classes, nats) in joined.items()}

    def rows(self, kind: str, best_L: list[int], trained_LR: np.ndarray, validated: _Scores, tested: _Scores | None) -> list[dict[str, Any]]:
        """A row of the report for each probe."""
        rows = []
        for index, best in enumerate(best_L):
            row = {
                "learning_rate": self.settings.rates[kind][best],
                "train": float(trained_LR[index, best]),
                "validation": float(validated.voted[index, best]),
                "test": float(tested.voted[index, 0]) if tested else None,
            }
            if self.splits.description.get("masks"):
                one_mask = float(tested.one_mask[index, 0]) if tested else None
                row |= {"validation_one_mask": float(validated.one_mask[index, best]), "test_one_mask": one_mask}
            rows.append(row)
        return rows

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
