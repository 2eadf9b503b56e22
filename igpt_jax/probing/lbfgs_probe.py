"""Probes of features that fit into memory, by L-BFGS: every layer and every value of C side by side (paper 2.6, 4.3, 4.5).

Each probe chooses its regularisation on the validation images, is fitted again on training and validation images with it, and tests. Of a bert model seen
through several masks the accuracies of validation and test are those of the masks' vote, beside those of one mask; C is chosen by the vote.
"""

import sys

import numpy as np
from tqdm import tqdm

from igpt_jax.data import pipeline
from igpt_jax.probing.logistic import fit_logistic, predict
from igpt_jax.probing.store import Sample, read_layer, vote

# C of scikit-learn: sum of cross entropies + |weights|^2 / 2C. On standardised features 1e-4 lets each class barely depart from its mean,
# 100 hardly restrains at all; decades between them are finer than what a decade changes in accuracy.
C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
SUBSET_SEED = 0


def probe(training, validation, test, classes, C_values=C_VALUES, refit=True) -> list[dict]:
    """Probe L sets of standardised features: for each its C, `converged`, and accuracy train, validation, test (or None).

    With images seen through several masks, validation and test are by their vote; `validation_one_mask` and `test_one_mask` join them.

    C is the best on the validation images, of equals the one that regularises most. Training and validation accuracy are of the
    fit on training images alone, test accuracy is of the one on training and validation images (`refit=False`: of the first).
    """
    layers, _, width = training.features.shape
    C_values = np.sort(np.asarray(C_values, np.float32))
    start = np.zeros((layers, len(C_values), classes, width + 1), np.float32)
    fit = fit_logistic(training.features, _rows(training), start, np.tile(C_values, (layers, 1)))
    scores_LR, one_mask_LR = _accuracies(fit.weights, validation)
    best_L = scores_LR.argmax(axis=1)  # the first of equals
    chosen = fit.weights[np.arange(layers), best_L][:, None]
    trained_L = _accuracies(chosen, training)[0][:, 0]
    converged_L = np.asarray(fit.converged)[np.arange(layers), best_L]
    if refit:
        features = np.concatenate([training.features, validation.features], axis=1)
        both = Sample(features, np.concatenate([training.labels, validation.labels]))
        second = fit_logistic(both.features, _rows(both), chosen, C_values[best_L][:, None])
        chosen, converged_L = second.weights, converged_L & np.asarray(second.converged)[:, 0]
    tested, tested_one_mask = (None, None) if test is None else _accuracies(chosen, test)
    found = []
    for layer, best in enumerate(best_L):
        row = dict(C=float(f"{C_values[best]:.6g}"), converged=bool(converged_L[layer]), train=float(trained_L[layer]))
        row |= dict(validation=float(scores_LR[layer, best]), test=None if test is None else float(tested[layer, 0]))
        if validation.more or (test and test.more):
            one_mask = None if test is None else float(tested_one_mask[layer, 0])
            row |= dict(validation_one_mask=float(one_mask_LR[layer, best]), test_one_mask=one_mask)
        found.append(row)
    return found


def standardise(training, *others):
    """Samples minus the training images' mean, divided by their deviation (1 for a constant feature)."""
    mean = training.features.mean(axis=1, keepdims=True, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("the features are not finite: write them again with --dtype=float32")
    centred = training.features - mean.astype(np.float32)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True, dtype=np.float64))
    deviation = np.where(deviation > 1e-6 * np.abs(mean), deviation, 1)
    shift, scale = mean.astype(np.float32), (1 / deviation).astype(np.float32)
    scaled = [sample and Sample((sample.features - shift) * scale, sample.labels, tuple((more - shift) * scale for more in sample.more)) for sample in others]
    return Sample(centred * scale, training.labels), *scaled


def probe_layers(directory, images, layers, C_values, at_once) -> list[dict]:
    """A row for each layer, `at_once` of them side by side on the device."""
    rows = []
    with tqdm(total=len(layers), desc="layers", disable=not sys.stderr.isatty()) as bar:
        for first in range(0, len(layers), at_once):
            some = layers[first : first + at_once]
            samples = images.samples(lambda split, mask, some=some: np.stack([read_layer(directory, split, layer, mask) for layer in some]))
            results = probe(*standardise(*samples), images.classes, C_values)
            rows += [{"layer": layer} | result for layer, result in zip(some, results, strict=True)]
            bar.update(len(some))
    return rows


def probe_concatenated(directory, images, layers, C_values) -> dict:
    """One probe of the features of several layers side by side (paper 4.3)."""
    samples = images.samples(lambda split, mask: np.concatenate([read_layer(directory, split, layer, mask) for layer in layers], axis=1)[None])
    return {"layers": list(layers)} | probe(*standardise(*samples), images.classes, C_values)[0]


def probe_pixels(images, C_values) -> dict:
    """The same probe of the pixels themselves, scaled to 0..1."""
    config = pipeline.DataConfig(**images.description["data"])

    def read(split, _):
        dataset = pipeline.open_dataset(config, split).draw(images.description.get("limit", 0))
        written = images.description.get("fingerprints", {}).get(split)
        if not np.array_equal(dataset.labels, images.stored[split]) or written not in (None, dataset.fingerprint()):
            told = f"the {split} images of {config.source} are not those that the features were written from"
            counts = f"{len(dataset)} now, {len(images.stored[split])} then, compared by labels, names and pixels"
            raise ValueError(f"{told} ({counts}): write the features again, or leave the pixels out by --no-raw-pixels")
        pixels = dataset.images(0, len(dataset))
        return pixels.reshape(1, len(pixels), -1).astype(np.float32) / 255

    return probe(*standardise(*images.samples(read, masked=False)), images.classes, C_values)[0]


def probe_low_data(directory, images, layer, C_values, labels_per_class, subsets, seed=SUBSET_SEED) -> list[dict]:
    """Accuracy on the test images from few labels of each class: mean and deviation over seeded subsets (paper 4.5).

    Features are standardised by all training images, which takes no labels; C is chosen on the validation images, which are not
    fitted.
    """
    training, validation, test = standardise(*images.samples(lambda split, mask: read_layer(directory, split, layer, mask)[None]))
    rows = []
    for size in labels_per_class:
        accuracies = []
        for subset in range(subsets):
            chosen = choose_subset(training.labels, images.classes, size, (seed, size, subset))
            few = Sample(training.features[:, chosen], training.labels[chosen])
            accuracies.append(probe(few, validation, test, images.classes, C_values, refit=False)[0]["test"])
        mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=min(1, subsets - 1)))
        rows.append({"labels_per_class": size, "layer": layer, "test": accuracies, "mean": mean, "std": deviation})
    return rows


def choose_subset(labels, classes, size, seed) -> np.ndarray:
    """Rows of `size` random images of each class; ValueError where a class has fewer."""
    generator, rows = np.random.default_rng(seed), []
    for label in range(classes):
        mine = np.flatnonzero(labels == label)
        if len(mine) < size:
            raise ValueError(f"class {label} has {len(mine)} training images, fewer than --labels-per-class={size}")
        rows.append(generator.choice(mine, size, replace=False))
    return np.concatenate(rows)


def _accuracies(weights_LRCE, sample):
    """Accuracy [L, R] by the vote of the sample's masks, and with mask 0 alone; the same where there is one."""
    classes = [np.asarray(predict(weights_LRCE, features)) for features in (sample.features, *sample.more)]
    return [(some == sample.labels).mean(axis=-1) for some in (vote(np.stack(classes, axis=-2)), classes[0])]


def _rows(sample):
    return np.broadcast_to(sample.labels, sample.features.shape[:2])
