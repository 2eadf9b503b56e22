"""Probes of features that fit in memory, by L-BFGS: every layer and every value of C side by side (paper 2.6, 4.3, 4.5).

Each probe chooses C on the validation images, is fitted again with it on training and validation images, and is tested. For a bert model that was run with
several masks, the masks vote: their vote chooses C, and validation and test accuracy are those of the vote, beside those with one mask.
L layers, R values of C, B images, D features, E features along the principal axes and a one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.probing.logistic import fit_logistic, predict
from igpt_jax.probing.results import Arrays, Linear, Outcome, accuracies, predictions, stack
from igpt_jax.probing.splits import Sample, Splits, vote
from igpt_jax.probing.store import read_layer
from igpt_jax.progress import Progress

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
    fit on training images. Test accuracy is of the second fit, on training and validation images; with `refit=False` it is of the first fit. `interval` is
    the 95 % interval of test accuracy.
    """
    return [outcome.row for outcome in fit_probes(training, validation, test, classes, C_values, refit)]


def fit_probes(
    training: Sample, validation: Sample, test: Sample | None, classes: int, C_values: Sequence[float] = C_VALUES, refit: bool = True
) -> list[Outcome]:
    """Fit what `probe` describes. Returns for each set its row and the arrays weights, bias, C, validation and test of results.py."""
    layers, _, width = training.features.shape
    C_R = np.sort(np.asarray(C_values, np.float32))
    start = np.zeros((layers, len(C_R), classes, width + 1), np.float32)
    fit = fit_logistic(training.features, _labels_LB(training), start, np.tile(C_R, (layers, 1)))
    validated = _judge(lambda features: np.asarray(predict(fit.weights, features)), validation)
    best_L = validated.accuracy.argmax(axis=1)  # the first of equals
    chosen = fit.weights[np.arange(layers), best_L][:, None]
    trained_L = (np.asarray(predict(chosen, training.features))[:, 0] == training.labels).mean(axis=-1)
    converged_L = np.asarray(fit.converged)[np.arange(layers), best_L]
    if refit:
        features = np.concatenate([training.features, validation.features], axis=1)
        both = Sample(features, np.concatenate([training.labels, validation.labels]))
        second = fit_logistic(both.features, _labels_LB(both), chosen, C_R[best_L][:, None])
        chosen, converged_L = second.weights, converged_L & np.asarray(second.converged)[:, 0]
    weights_LCE = np.asarray(chosen)[:, 0]
    tested = test and _judge(lambda features: _predict_exactly(weights_LCE, features), test)
    images, masked = len(test.labels) if test else 0, bool(validation.more or (test and test.more))
    outcomes = []
    for layer, best in enumerate(best_L):
        C = float(f"{C_R[best]:.6g}")
        row = {"C": C, "converged": bool(converged_L[layer]), "train": float(trained_L[layer])}
        row |= accuracies(validated.accuracy[layer, best], tested and tested.accuracy[layer], images)
        if masked:
            row |= accuracies(validated.one_mask[layer, best], tested and tested.one_mask[layer], images, "_one_mask")
        arrays: Arrays = {"weights": weights_LCE[layer, :, :-1], "bias": weights_LCE[layer, :, -1], "C": np.float64(C)}
        arrays |= predictions(classes, validated.classes[layer, best], tested and tested.classes[layer])
        outcomes.append(Outcome(row, arrays))
    return outcomes


def standardise(training: Sample, validation: Sample, test: Sample | None) -> tuple[Sample, Sample, Sample | None]:
    """Subtract the mean of the training images and divide by their standard deviation (by 1 for a constant feature).

    Raises ValueError if the features are not finite.
    """
    return measure_and_standardise(training, validation, test)[0]


def measure_and_standardise(
    training: Sample, validation: Sample, test: Sample | None
) -> tuple[tuple[Sample, Sample, Sample | None], tuple[np.ndarray, np.ndarray]]:
    """As `standardise`. Returns the samples, and the mean and the scale, float32 [L, D]: a standardised feature is (feature - mean) * scale."""
    mean = training.features.mean(axis=1, keepdims=True, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("the features are not finite: write them again with --dtype=float32")
    centred = training.features - mean.astype(np.float32)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True, dtype=np.float64))
    deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1)
    shift, scale = mean.astype(np.float32), (1 / deviation).astype(np.float32)

    def scaled(sample: Sample) -> Sample:
        return Sample((sample.features - shift) * scale, sample.labels, tuple((more - shift) * scale for more in sample.more))

    return (Sample(centred * scale, training.labels), scaled(validation), test and scaled(test)), (shift[:, 0], scale[:, 0])


def probe_layers(splits: Splits, layers: Sequence[int], C_values: Sequence[float], at_once: int) -> list[Outcome]:
    """Probe each layer, `at_once` of them side by side on the device. Returns an outcome for each."""
    outcomes = []
    with Progress("probes", len(layers), "layers") as progress:
        for first in range(0, len(layers), at_once):
            group = layers[first : first + at_once]

            def read_group(split: str, mask: int, group: Sequence[int] = group) -> np.ndarray:
                return np.stack([read_layer(splits.directory, split, layer, mask) for layer in group])

            results = _standardise_and_fit(splits.samples(read_group), splits.classes, C_values)
            outcomes += [Outcome({"layer": layer} | row, arrays) for layer, (row, arrays) in zip(group, results, strict=True)]
            progress.advance(len(group))
    return outcomes


def probe_concatenated(splits: Splits, layers: Sequence[int], C_values: Sequence[float]) -> Outcome:
    """Fit one probe on the features of several layers side by side (paper 4.3)."""
    samples = splits.samples(lambda split, mask: np.concatenate([read_layer(splits.directory, split, layer, mask) for layer in layers], axis=1)[None])
    row, arrays = _standardise_and_fit(samples, splits.classes, C_values)[0]
    return Outcome({"layers": list(layers)} | row, arrays)


def probe_pixels(splits: Splits, C_values: Sequence[float], read: Callable[[str, int], np.ndarray] | None = None) -> Outcome:
    """Fit the same probe on the pixels, scaled to [0, 1], which `read(split, mask)` returns once for each split; None: `read_pixels`."""
    return _standardise_and_fit(splits.samples(read or partial(read_pixels, splits), masked=False), splits.classes, C_values)[0]


def probe_low_data(
    splits: Splits, layer: int, C_values: Sequence[float], labels_per_class: Sequence[int], subsets: int, seed: int = SUBSET_SEED
) -> tuple[list[dict[str, Any]], Arrays]:
    """Probe from few labels of each class, on seeded subsets of the training images (paper 4.5). Returns rows, and the `low_data` arrays of results.py.

    A row has for each subset the test accuracy and C, and the mean and deviation over subsets. Few labels are for the fit alone: features are standardised
    with all training images, which needs no labels; C is chosen on all validation images, which are not fitted; and the caller chooses the layer.
    """
    training, validation, test = standardise(*splits.samples(lambda split, mask: read_layer(splits.directory, split, layer, mask)[None]))
    rows: list[dict[str, Any]] = []
    arrays: list[Arrays] = []
    for size in labels_per_class:
        outcomes = []
        for subset in range(subsets):
            chosen = choose_subset(training.labels, splits.classes, size, (seed, size, subset))
            few = Sample(training.features[:, chosen], training.labels[chosen])
            outcomes += fit_probes(few, validation, test, splits.classes, C_values, refit=False)
        accuracies, chosen_C = [outcome.row["test"] for outcome in outcomes], [outcome.row["C"] for outcome in outcomes]
        mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=min(1, subsets - 1)))
        row = {"labels_per_class": size, "layer": layer, "test": accuracies, "mean": mean, "std": deviation, "C": chosen_C}
        rows.append(row | {"interval": [outcome.row["interval"] for outcome in outcomes]})
        arrays.append({key: array for key, array in stack(outcomes).items() if key in ("C", "test")})
    joined: Arrays = {key: np.stack([each[key] for each in arrays]) for key in arrays[0]}
    return rows, joined | {"sizes": np.asarray(labels_per_class, np.int32), "layer": np.int32(layer)}


def choose_subset(labels: np.ndarray, classes: int, size: int, seed: int | Sequence[int]) -> np.ndarray:
    """Rows of `size` random images of each class. Raises ValueError if a class has fewer."""
    generator, rows = np.random.default_rng(seed), []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < size:
            raise ValueError(f"class {label} has {len(members)} training images, fewer than --labels-per-class={size}")
        rows.append(generator.choice(members, size, replace=False))
    return np.concatenate(rows)


class _Judged(NamedTuple):
    """Predictions of a sample, and their accuracy. With one mask, `accuracy` and `one_mask` are equal."""

    classes: np.ndarray  # [..., B], by the vote of the sample's masks
    accuracy: np.ndarray  # [...], of the vote
    one_mask: np.ndarray  # [...], with mask 0


def _judge(classify: Callable[[np.ndarray], np.ndarray], sample: Sample) -> _Judged:
    """Predict a sample by `classify`, features [L, B, D] -> classes [..., B]."""
    classes = [classify(features) for features in (sample.features, *sample.more)]
    voted = vote(np.stack(classes, axis=-2))
    return _Judged(voted, (voted == sample.labels).mean(axis=-1), (classes[0] == sample.labels).mean(axis=-1))


def _predict_exactly(weights_LCE: np.ndarray, features_LBD: np.ndarray) -> np.ndarray:
    """The most likely class of each image, int [L, B], so that a stored probe predicts the same."""
    nothing = np.zeros(0, np.float32)
    pairs = zip(weights_LCE, features_LBD, strict=True)
    return np.stack([Linear(weights[:, :-1], weights[:, -1], nothing, nothing).predict(features, standardised=True) for weights, features in pairs])


def _standardise_and_fit(samples: tuple[Sample, Sample, Sample | None], classes: int, C_values: Sequence[float]) -> list[Outcome]:
    standardised, (mean_LD, scale_LD) = measure_and_standardise(*samples)
    outcomes = fit_probes(*standardised, classes, C_values)
    return [Outcome(row, arrays | {"mean": mean_LD[index], "scale": scale_LD[index]}) for index, (row, arrays) in enumerate(outcomes)]


def read_pixels(splits: Splits, split: str, mask: int = 0) -> np.ndarray:
    """Pixels of a split scaled to [0, 1], float32 [1, N, D]. Raises ValueError if the images have changed since their features were written."""
    config = pipeline.DataConfig(**splits.description["data"])
    dataset = pipeline.open_dataset(config, split).draw(splits.description.get("limit", 0))
    fingerprint = splits.description.get("fingerprints", {}).get(split)
    if not np.array_equal(dataset.labels, splits.stored[split]) or fingerprint not in (None, dataset.fingerprint()):
        problem = f"the {split} images of {config.source} are not those that the features were written from"
        counts = f"{len(dataset)} now, {len(splits.stored[split])} then, compared by labels, names and pixels"
        raise ValueError(f"{problem} ({counts}): write the features again, or leave out the pixels with --no-raw-pixels")
    pixels = dataset.images(0, len(dataset))
    return pixels.reshape(1, len(pixels), -1).astype(np.float32) / 255


def _labels_LB(sample: Sample) -> np.ndarray:
    return np.broadcast_to(sample.labels, sample.features.shape[:2])
