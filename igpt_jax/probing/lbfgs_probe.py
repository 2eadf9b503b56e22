"""Probes of features that fit in memory, by L-BFGS: every layer and every value of C side by side (paper 2.6, 4.3, 4.5).

Each probe chooses C on the validation images, is fitted again with it on training and validation images, and is tested. For a bert model that was run with
several masks, the masks vote: their vote chooses C, and validation and test accuracy are those of the vote, beside those with one mask.
L layers, R values of C, B images, D features, E features along the principal axes and a one.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from igpt_jax.data import pipeline
from igpt_jax.probing.logistic import fit_logistic, predict
from igpt_jax.probing.splits import Sample, Splits, vote
from igpt_jax.probing.store import read_layer
from igpt_jax.types import AnyArray

# scikit-learn's C: sum of cross entropies + |weights|^2 / 2C. On standardised features 1e-4 allows almost no dependence on the features, and 100 is almost
# no penalty. Between them one decade changes the accuracy little.
C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
SUBSET_SEED = 0


def probe(
    training: Sample, validation: Sample, test: Sample | None, classes: int, C_values: Sequence[float] = C_VALUES, refit: bool = True
) -> list[dict[str, Any]]:
    """Probe L sets of standardised features. Returns for each its C, `converged`, and accuracies `train`, `validation` and `test` (or None).

    If images have features under several masks, `validation` and `test` are by the vote of the masks, beside `validation_one_mask` and `test_one_mask`.
    C is the best on the validation images; of equal values it is the smallest, which regularises most. Training and validation accuracy are of the
    fit on training images. Test accuracy is of the second fit, on training and validation images; with `refit=False` it is of the first fit.
    """
    layers, _, width = training.features.shape
    C_R = np.sort(np.asarray(C_values, np.float32))
    start = np.zeros((layers, len(C_R), classes, width + 1), np.float32)
    fit = fit_logistic(training.features, _labels_LB(training), start, np.tile(C_R, (layers, 1)))
    scores_LR, one_mask_LR = _accuracies(fit.weights, validation)
    best_L = scores_LR.argmax(axis=1)  # the first of equals
    chosen = fit.weights[np.arange(layers), best_L][:, None]
    trained_L = _accuracies(chosen, training)[0][:, 0]
    converged_L = np.asarray(fit.converged)[np.arange(layers), best_L]
    if refit:
        features = np.concatenate([training.features, validation.features], axis=1)
        both = Sample(features, np.concatenate([training.labels, validation.labels]))
        second = fit_logistic(both.features, _labels_LB(both), chosen, C_R[best_L][:, None])
        chosen, converged_L = second.weights, converged_L & np.asarray(second.converged)[:, 0]
    tested = test and _accuracies(chosen, test)
    rows = []
    for layer, best in enumerate(best_L):
        row: dict[str, Any] = dict(C=float(f"{C_R[best]:.6g}"), converged=bool(converged_L[layer]), train=float(trained_L[layer]))
        row |= dict(validation=float(scores_LR[layer, best]), test=float(tested[0][layer, 0]) if tested else None)
        if validation.more or (test and test.more):
            row |= dict(validation_one_mask=float(one_mask_LR[layer, best]), test_one_mask=float(tested[1][layer, 0]) if tested else None)
        rows.append(row)
    return rows


def standardise(training: Sample, validation: Sample, test: Sample | None) -> tuple[Sample, Sample, Sample | None]:
    """Subtract the mean of the training images and divide by their standard deviation (by 1 for a constant feature).

    Raises ValueError if the features are not finite.
    """
    mean = training.features.mean(axis=1, keepdims=True, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("the features are not finite: write them again with --dtype=float32")
    centred = training.features - mean.astype(np.float32)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True, dtype=np.float64))
    deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1)
    shift, scale = mean.astype(np.float32), (1 / deviation).astype(np.float32)

    def scaled(sample: Sample) -> Sample:
        return Sample((sample.features - shift) * scale, sample.labels, tuple((more - shift) * scale for more in sample.more))

    return Sample(centred * scale, training.labels), scaled(validation), test and scaled(test)


def probe_layers(splits: Splits, layers: Sequence[int], C_values: Sequence[float], at_once: int) -> list[dict[str, Any]]:
    """Probe each layer, `at_once` of them side by side on the device. Returns a row for each."""
    rows = []
    with tqdm(total=len(layers), desc="layers", disable=not sys.stderr.isatty()) as bar:
        for first in range(0, len(layers), at_once):
            group = layers[first : first + at_once]

            def read_group(split: str, mask: int, group: Sequence[int] = group) -> np.ndarray:
                return np.stack([read_layer(splits.directory, split, layer, mask) for layer in group])

            samples = splits.samples(read_group)
            results = probe(*standardise(*samples), splits.classes, C_values)
            rows += [{"layer": layer} | result for layer, result in zip(group, results, strict=True)]
            bar.update(len(group))
    return rows


def probe_concatenated(splits: Splits, layers: Sequence[int], C_values: Sequence[float]) -> dict[str, Any]:
    """Fit one probe on the features of several layers side by side (paper 4.3)."""
    samples = splits.samples(lambda split, mask: np.concatenate([read_layer(splits.directory, split, layer, mask) for layer in layers], axis=1)[None])
    return {"layers": list(layers)} | probe(*standardise(*samples), splits.classes, C_values)[0]


def probe_pixels(splits: Splits, C_values: Sequence[float]) -> dict[str, Any]:
    """Fit the same probe on the pixels, scaled to [0, 1]. Raises ValueError if the images have changed since their features were written."""
    config = pipeline.DataConfig(**splits.description["data"])

    def read(split: str, _: int) -> np.ndarray:
        dataset = pipeline.open_dataset(config, split).draw(splits.description.get("limit", 0))
        fingerprint = splits.description.get("fingerprints", {}).get(split)
        if not np.array_equal(dataset.labels, splits.stored[split]) or fingerprint not in (None, dataset.fingerprint()):
            problem = f"the {split} images of {config.source} are not those that the features were written from"
            counts = f"{len(dataset)} now, {len(splits.stored[split])} then, compared by labels, names and pixels"
            raise ValueError(f"{problem} ({counts}): write the features again, or leave out the pixels with --no-raw-pixels")
        pixels = dataset.images(0, len(dataset))
        return pixels.reshape(1, len(pixels), -1).astype(np.float32) / 255

    return probe(*standardise(*splits.samples(read, masked=False)), splits.classes, C_values)[0]


def probe_low_data(
    splits: Splits, layer: int, C_values: Sequence[float], labels_per_class: Sequence[int], subsets: int, seed: int = SUBSET_SEED
) -> list[dict[str, Any]]:
    """Test accuracy from few labels of each class: mean and deviation over seeded subsets (paper 4.5).

    Features are standardised with all training images, which needs no labels. C is chosen on the validation images, which are not fitted.
    """
    training, validation, test = standardise(*splits.samples(lambda split, mask: read_layer(splits.directory, split, layer, mask)[None]))
    rows = []
    for size in labels_per_class:
        accuracies = []
        for subset in range(subsets):
            chosen = choose_subset(training.labels, splits.classes, size, (seed, size, subset))
            few = Sample(training.features[:, chosen], training.labels[chosen])
            accuracies.append(probe(few, validation, test, splits.classes, C_values, refit=False)[0]["test"])
        mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=min(1, subsets - 1)))
        rows.append({"labels_per_class": size, "layer": layer, "test": accuracies, "mean": mean, "std": deviation})
    return rows


def choose_subset(labels: np.ndarray, classes: int, size: int, seed: int | Sequence[int]) -> np.ndarray:
    """Rows of `size` random images of each class. Raises ValueError if a class has fewer."""
    generator, rows = np.random.default_rng(seed), []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < size:
            raise ValueError(f"class {label} has {len(members)} training images, fewer than --labels-per-class={size}")
        rows.append(generator.choice(members, size, replace=False))
    return np.concatenate(rows)


def _accuracies(weights_LRCE: AnyArray, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy [L, R] by the vote of the sample's masks, and with mask 0; they are equal if there is one mask."""
    classes = [np.asarray(predict(weights_LRCE, features)) for features in (sample.features, *sample.more)]
    voted = vote(np.stack(classes, axis=-2))
    return (voted == sample.labels).mean(axis=-1), (classes[0] == sample.labels).mean(axis=-1)


def _labels_LB(sample: Sample) -> np.ndarray:
    return np.broadcast_to(sample.labels, sample.features.shape[:2])
