"""Probes of features too many for memory: they stream from the disk in random windows, and all layers and learning rates train side by side.

One pass in order measures means and deviations of the training images, `steps` batches train, one pass each over validation and test measures accuracy.
The learning rate is the best on validation images (which are not trained on), of equals the one of fewer nats.
"""

import contextlib
import dataclasses
import math

import jax
import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.probing import sgd, store
from igpt_jax.progress import Progress

# The paper names 30, 10, 3, ... (2.6); features are scaled so that a rate fits any width, see sgd.py. Attention is not linear and wants less: on digits
# 10 (3) is the best, where the mean takes 30 to 100.
LEARNING_RATES = (100.0, 30.0, 10.0, 3.0, 1.0)
ATTENTION_RATES = (30.0, 10.0, 3.0, 1.0, 0.3)
EPOCHS = 100  # the paper's 1,000,000 steps are 104 epochs of ImageNet's 1,229,920 training images, if its batch was pretraining's 128
LEAST_STEPS = 2000  # of small sets, whose 100 epochs are too few steps to come to rest
CHECK_EVERY = 200  # steps between two looks for divergence


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train."""

    rates: dict  # kind (mean, attention) -> learning rates to choose from
    steps: int  # 0: 100 epochs, at least 2000
    batch: int
    seed: int  # of the order and of attention's first weights
    memory: float  # GiB: half for parameters and what a step computes, half for two windows of images

    def steps_for(self, images: int) -> int:
        return self.steps or max(LEAST_STEPS, math.ceil(EPOCHS * images / self.batch))


class Plan:
    """How many layers train side by side (`at_once`), `width` and how many images a window holds; ValueError where one layer does not fit the memory."""

    def __init__(self, directory, description, images, settings, joined: int = 1):
        """`joined` layers make one probe."""
        split, rows = images.rows["train"]
        reader = store.Reader(directory, description, split, store.stored_layers(description)[:1])
        self.width, positions = joined * description["width"], reader.row_shape[0] if len(reader.row_shape) == 2 else 1
        counts = {kind: len(some) for kind, some in settings.rates.items()}
        one = joined * reader.row_bytes
        numbers = 3 * settings.batch * positions * self.width  # the batch, its float32 and standardised copies; below parameters, gradients, velocities
        for kind, rates in counts.items():
            pooling = 2 * self.width**2 + self.width if kind == "attention" else 0
            numbers += rates * (3 * (images.classes * (self.width + 1) + pooling) + 4 * images.classes * settings.batch)
            numbers += rates * settings.batch * sgd.head_count(self.width) * 4 * (positions + self.width) if kind == "attention" else 0
        half = settings.memory * 2**29
        need = max(4 * numbers, 2 * one * max(reader.block, settings.batch))
        if need > half:
            name = "a layer" if joined == 1 else f"--concatenate={joined}"
            raise ValueError(
                f"the sgd probe of {name} needs about {2 * need / 2**30:.2g} GiB, more than --memory={settings.memory:g}: "
                f"raise that, or give fewer --learning-rates or a smaller --batch (now {settings.batch})"
            )
        layers = len(store.stored_layers(description)) if joined == 1 else 1
        fitting = max(1, min(layers, int(half // max(4 * numbers, 2 * one * min(len(rows), 8 * settings.batch)))))
        self.at_once = math.ceil(layers / math.ceil(layers / fitting))  # groups of equal size
        self.window = min(len(rows), int(half // (2 * one * self.at_once)))


def probe_layers(directory, description, images, layers, settings) -> list[dict]:
    """A row for each layer: learning rate, accuracies, and under `attention` the same of the attention probe."""
    plan, rows = Plan(directory, description, images, settings), []
    for first in range(0, len(layers), plan.at_once):
        some = layers[first : first + plan.at_once]
        name = f"layers {', '.join(map(str, some))}" if len(some) < 4 else f"layers {some[0]} to {some[-1]}"
        found = _Run(directory, description, images, some, settings, plan, joined=False).result(name)
        rows += [{"layer": layer} | row for layer, row in zip(some, found, strict=True)]
    return rows


def probe_concatenated(directory, description, images, layers, settings) -> dict:
    """One probe of the features of several layers side by side (paper 4.3)."""
    plan = Plan(directory, description, images, settings, joined=len(layers))
    run = _Run(directory, description, images, layers, settings, plan, joined=True)
    return {"layers": list(layers)} | run.result(f"layers {layers[0]} to {layers[-1]} concatenated")[0]


class _Run:
    """The probes of one group of layers."""

    def __init__(self, directory, description, images, layers, settings, plan, joined):
        self.directory, self.description, self.images, self.layers = directory, description, images, layers
        self.settings, self.plan, self.joined = settings, plan, joined

    def result(self, name) -> list[dict]:
        """Measure, train, choose and test."""
        moments = self.measure(name)
        parameters, trained = self.train(name, moments)
        validated = self.evaluate(parameters, moments, "validation", name)
        best = {kind: _best(*scores) for kind, scores in validated.items()}
        chosen = {kind: jax.tree.map(lambda p, index=best[kind]: p[np.arange(len(p)), index][:, None], parameters[kind]) for kind in parameters}
        tested = self.evaluate(chosen, moments, "test", name) if "test" in self.images.rows else None
        rows = {kind: self.rows(kind, best[kind], trained[kind], validated[kind], tested and tested[kind]) for kind in parameters}
        return [row | ({"attention": rows["attention"][index]} if "attention" in rows else {}) for index, row in enumerate(rows["mean"])]

    def measure(self, name) -> dict:
        """Kind -> Moments of the training images."""
        split, rows = self.images.rows["train"]
        reader, sums = self.reader(split), sgd.RunningMoments(self.settings.rates)
        size = max(1, min(self.plan.window, reader.block))
        with Progress(f"{name}: means and deviations", len(rows)) as progress:
            for features, some in pipeline.prefetch(store.in_order(reader, rows, size), put=lambda pair: pair):
                sums.add(self.join(features))
                progress.advance(len(some))
        return sums.moments()

    def train(self, name, moments):
        """(Parameters of all rates, kind -> accuracy [L, R] on the batches of the last epoch, each before its step)."""
        split, rows = self.images.rows["train"]
        labels, steps, batch = np.zeros(self.description["counts"][split], np.int32), self.settings.steps_for(len(rows)), self.settings.batch
        labels[rows] = self.images.labels["train"]
        rates = {kind: np.asarray(some, np.float32) for kind, some in self.settings.rates.items()}
        counts = {kind: len(some) for kind, some in rates.items()}
        state = sgd.start(counts, 1 if self.joined else len(self.layers), self.images.classes, self.plan.width, self.settings.seed)
        last = min(steps, math.ceil(len(rows) / batch))
        windows = pipeline.prefetch(store.windows(self.reader(split), rows, self.plan.window, self.settings.seed), put=lambda pair: pair, depth=1)
        right, pending = {kind: 0 for kind in rates}, None
        with Progress(name, steps, "steps") as progress, contextlib.closing(windows):
            for step, (features, some) in zip(range(steps), store.batches(windows, batch), strict=False):
                now = {kind: each * np.float32(sgd.cosine(step, steps)) for kind, each in rates.items()}
                state, measured = sgd.update(state, moments, self.join(features), labels[some], now)
                if pending is not None:  # one step late: the device never waits for the host, and no more than two batches are alive
                    right = {kind: right[kind] + np.asarray(pending[kind][1]) * (step > steps - last) for kind in right}
                    if step % CHECK_EVERY == 0:
                        _check_finite(pending, step)
                pending = measured
                progress.advance(1)
        right = {kind: right[kind] + np.asarray(pending[kind][1]) for kind in right}
        return state.parameters, {kind: each / (last * batch) for kind, each in right.items()}

    def evaluate(self, parameters, moments, part, name) -> dict:
        """Kind -> (accuracy by the masks' vote, accuracy with one mask, nats with one mask), each [L, R]; of one mask, vote and mask 0 are the same."""
        split, rows = self.images.rows[part]
        labels, masks = self.images.labels[part], self.images.masks[part]
        with Progress(f"{name}: {part}", masks * len(rows)) as progress:
            found = [self.predictions(parameters, moments, self.reader(split, mask), rows, labels, progress) for mask in range(masks)]
        scores = {}
        for kind in parameters:
            classes, nats = zip(*(each[kind] for each in found), strict=True)
            voted = store.vote(np.stack(classes, axis=2))
            scores[kind] = (voted == labels).mean(axis=-1), (classes[0] == labels).mean(axis=-1), nats[0]
        return scores

    def predictions(self, parameters, moments, reader, rows, labels, progress) -> dict:
        """Kind -> (classes [L, R, N], mean nats [L, R])."""
        size = self.settings.batch
        found: dict = {kind: [] for kind in parameters}
        done = 0
        for features, some in pipeline.prefetch(store.in_order(reader, rows, size), put=lambda pair: pair):
            missing = size - len(some)  # padded, so that one compiled program serves all
            padded = np.pad(self.join(features), ((0, 0), (0, missing), *((0, 0),) * (features.ndim - 2)))
            for kind, pair in sgd.predict(parameters, moments, padded, np.pad(labels[done : done + len(some)], (0, missing))).items():
                found[kind].append([np.asarray(each)[..., : len(some)] for each in pair])
            done += len(some)
            progress.advance(len(some))
        joined = {kind: [np.concatenate(each, axis=-1) for each in zip(*some, strict=True)] for kind, some in found.items()}
        return {kind: (classes, nats.mean(axis=-1)) for kind, (classes, nats) in joined.items()}

    def rows(self, kind, best_L, trained_LR, validated, tested) -> list[dict]:
        """What is reported of each layer."""
        found = []
        for index, best in enumerate(best_L):
            row = {
                "learning_rate": self.settings.rates[kind][best],
                "train": float(trained_LR[index, best]),
                "validation": float(validated[0][index, best]),
                "test": float(tested[0][index, 0]) if tested else None,
            }
            if self.description.get("masks"):
                row |= {"validation_one_mask": float(validated[1][index, best]), "test_one_mask": float(tested[1][index, 0]) if tested else None}
            found.append(row)
        return found

    def reader(self, split, mask=0):
        return store.Reader(self.directory, self.description, split, self.layers, mask)

    def join(self, features):
        """Several layers as one with their widths one after the other, where they are probed so."""
        return np.concatenate(list(features), axis=-1)[None] if self.joined else features


def _best(accuracy_LR, _, nats_LR):
    """Index of the best rate of each layer; ValueError where all of a layer's diverged."""
    score = np.where(np.isfinite(nats_LR), accuracy_LR, -1.0)
    if (score.max(axis=1) < 0).any():
        raise ValueError("every learning rate diverged: give lower ones")
    return [int(min(range(len(row)), key=lambda index: (-row[index], nats[index]))) for row, nats in zip(score, nats_LR, strict=True)]


def _check_finite(measured, step):
    """ValueError where a layer has no learning rate left; numbers that are not finite do not come back."""
    for kind, (nats_LR, _) in measured.items():
        if not np.isfinite(nats_LR).any(axis=1).all():
            raise ValueError(f"every learning rate of the {kind} probe diverged within {step} steps: give lower ones")
