"""The files that igpt_jax.probe writes: probe.json, the numbers, and probe.npz, the probes themselves and what they predict for each image.

probe.npz is written first. Then probe.json is written, with `predictions`: {"file": "probe.npz", "sha256": the checksum of its bytes, "images": of each part}.
So two files of different runs, or of a run that was stopped between them, do not fit each other, and `read_predictions` and `read_linear` refuse them.

Keys of probe.npz, with L layers, C classes, D features, N test images and V validation images. The images have the order of the features folder. Predictions
are classes, int16 (int32 if there are more than 32767 classes). Without a test split there is no key that ends in `test` or `test_labels`.

    class_names                str [C], or [0] if the data have no names
    test_labels                int32 [N]
    validation_labels          int32 [V]; of the validation split, or of the training images that were held out
    validation_rows            int32 [V], the row numbers of held out validation images in the train split; only if there is no validation split
    layers                     int32 [L], the numbers of the layers
    weights, bias              float32 [L, C, D] and [L, C], fitted to training and validation images
    mean, scale                float32 [L, D]: the scores of an image are ((features - mean) * scale) @ weights.T + bias
    C or learning_rate         float64 [L], chosen on the validation images; C of --solver=lbfgs, learning_rate of --solver=sgd
    test                       [L, N], by these weights; for a bert model that was run with several masks, the vote of the masks
    validation                 [L, V], by the weights fitted to the training images alone, which are not stored; a vote too
    knn_k                      int32 [L], the numbers of neighbours, chosen on the validation images; not with --no-knn
    knn_test, knn_validation   [L, N] and [L, V], as `test` and `validation`

    pixels_*                   the same for raw pixels scaled to [0, 1], without the axis L: pixels_weights [C, D] and so on, with pixels_knn_*
    concatenated_*             the same for --concatenate, without the axis L; concatenated_layers lists the layers, whose features follow each other in D
    attention_*                the same for --pool=attention, with attention_key, attention_value [L, D, N, K] and attention_query [L, N, K] of sgd.py
    low_data_sizes             int32 [Z]: --labels-per-class
    low_data_layer             int32, the layer whose features these probes read
    low_data_C                 float64 [Z, S], for each of S subsets
    low_data_test              [Z, S, N]
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from igpt_jax.files import one_line, replacing, write_atomically
from igpt_jax.probing.intervals import wilson
from igpt_jax.shapes import describe
from igpt_jax.types import PathLike

Arrays: TypeAlias = dict[str, Any]  # arrays of probe.npz by their keys, numpy's or scalars of numpy
JSON, NPZ = "probe.json", "probe.npz"
ROWS_AT_ONCE = 4096  # images whose features are in memory as float64
LARGEST_TABLE = 100  # classes; a confusion matrix of more is left to those who need it, `confusion` makes it from probe.npz


class Outcome(NamedTuple):
    """One probe: its entry of probe.json, and its arrays of probe.npz, by the keys above."""

    row: dict[str, Any]
    arrays: Arrays

    def __repr__(self) -> str:
        return describe(self)


class Linear(NamedTuple):
    """A linear probe: weights float32 [C, D], bias [C], mean [D] and scale [D]."""

    weights: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def __repr__(self) -> str:
        return describe(self)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Logits float64 [B, C] of features [B, D], which are not standardised."""
        return self.scores_of_standardised((np.asarray(features, np.float32) - self.mean) * self.scale)

    def scores_of_standardised(self, features: np.ndarray) -> np.ndarray:
        """Logits float64 [B, C] of features float32 [B, D].

        Sums in float64 are the same to all digits that matter, whatever the order. So the predictions that are stored with a probe can be made again, on any
        device and of any number of images at once.
        """
        return features.astype(np.float64) @ self.weights.astype(np.float64).T + self.bias.astype(np.float64)

    def predict(self, features: np.ndarray, standardised: bool = False) -> np.ndarray:
        """The most likely class of each image, int [B]."""
        scores = self.scores_of_standardised if standardised else self.scores
        starts = range(0, len(features), ROWS_AT_ONCE)
        pieces = [scores(features[start : start + ROWS_AT_ONCE]).argmax(axis=1) for start in starts]
        return np.concatenate([np.zeros(0, np.intp), *pieces])


class Predictions(NamedTuple):
    """The predicted class of each of N images, int [N], by the name of the probe; `layers` and `knn` are by the number of the layer."""

    labels: np.ndarray  # the true classes, int [N]
    layers: dict[int, np.ndarray]
    pixels: np.ndarray | None  # None: not probed
    knn: dict[int, np.ndarray]  # empty: not probed
    pixels_knn: np.ndarray | None
    concatenated: np.ndarray | None
    low_data: dict[int, np.ndarray]  # labels per class -> int [subsets, N]; of test images only
    class_names: list[str]  # may be empty
    training_rows: np.ndarray | None = None  # row numbers of these images in the train split, int [N]; None: they are not held out of it

    def __repr__(self) -> str:
        return describe(self)


def stack(outcomes: Sequence[Outcome]) -> Arrays:
    """The arrays of several probes, along a new first axis."""
    return {key: np.stack([outcome.arrays[key] for outcome in outcomes]) for key in outcomes[0].arrays}


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    """The arrays with keys that begin with `prefix`."""
    return {f"{prefix}_{key}": array for key, array in arrays.items()}


def accuracies(validation: float, test: float | None, images: int, suffix: str = "") -> dict[str, Any]:
    """The entries of a row that are accuracies, and the interval of the one on `images` test images; without a test split `test` is None."""
    interval = wilson(None if test is None else float(test), images)
    return {f"validation{suffix}": float(validation), f"test{suffix}": None if test is None else float(test), f"interval{suffix}": interval}


def predictions(classes: int, validation: np.ndarray, test: np.ndarray | None) -> Arrays:
    """The arrays of a probe that are predicted classes, in the type of probe.npz; without a test split `test` is None."""
    by_part = {"validation": validation} | ({} if test is None else {"test": test})
    return {part: predicted.astype(np.int16 if classes <= 2**15 else np.int32) for part, predicted in by_part.items()}


def write(out: pathlib.Path, result: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Write probe.npz, then probe.json, each completely or not at all. Returns the content of probe.json."""
    with replacing(out / NPZ) as temporary:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        checksum = _checksum(temporary)
    images = {part: len(arrays[f"{part}_labels"]) for part in ("validation", "test") if f"{part}_labels" in arrays}
    result = result | {"predictions": {"file": NPZ, "sha256": checksum, "images": images}}
    write_atomically(out / JSON, (dumps(result) + "\n").encode())
    return result


def dumps(result: dict[str, Any]) -> str:
    """The text of probe.json: indented, and a list of numbers on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[\n[-+\d.eE,\snul]*\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)  # no text in JSON holds a newline


def read_predictions(directory: PathLike, part: str = "test") -> Predictions:
    """The predictions of every probe in a folder that igpt_jax.probe wrote, for its `test` images or its `validation` images.

    Those of validation images were made before these images were fitted. Raises FileNotFoundError if there are none, and ValueError if probe.npz and
    probe.json are of different runs or damaged, or if the run had no such images.
    """
    arrays = _read(directory)
    if f"{part}_labels" not in arrays:
        parts = " and ".join(key.removesuffix("_labels") for key in arrays if key.endswith("_labels"))
        raise ValueError(f"{directory} holds no predictions of {part} images, only of {parts}: write the features of that split, and probe again")
    layers = arrays["layers"].tolist()

    def of(prefix: str) -> dict[int, np.ndarray]:
        return dict(zip(layers, arrays[f"{prefix}{part}"], strict=True)) if f"{prefix}{part}" in arrays else {}

    return Predictions(
        labels=arrays[f"{part}_labels"],
        layers=of(""),
        pixels=arrays.get(f"pixels_{part}"),
        knn=of("knn_"),
        pixels_knn=arrays.get(f"pixels_knn_{part}"),
        concatenated=arrays.get(f"concatenated_{part}"),
        low_data=dict(zip(arrays["low_data_sizes"].tolist(), arrays[f"low_data_{part}"], strict=True)) if f"low_data_{part}" in arrays else {},
        class_names=arrays["class_names"].tolist(),
        training_rows=arrays.get(f"{part}_rows"),
    )


def read_linear(directory: PathLike, which: int | str) -> Linear:
    """The probe of a layer, or that of `pixels` or `concatenated`. Raises as `read_predictions` does, and KeyError if there is no such probe."""
    arrays = _read(directory)
    if isinstance(which, str):
        return Linear(*(arrays[f"{which}_{name}"] for name in Linear._fields))
    places = np.flatnonzero(arrays["layers"] == which)
    if not len(places):
        raise KeyError(f"layer {which} is not probed in {directory}, only {', '.join(map(str, arrays['layers']))}")
    return Linear(*(arrays[name][places[0]] for name in Linear._fields))


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each true class (row) were given each class (column), int [C, C]."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def by_class(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    """Accuracy of each class with its interval, None for a class without images, and the confusion matrix, None for more than LARGEST_TABLE classes."""
    images = np.bincount(labels, minlength=classes).tolist()
    right = np.bincount(labels[labels == predicted], minlength=classes).tolist()
    shares = [hits / count if count else None for hits, count in zip(right, images, strict=True)]
    return {
        "images": images,
        "accuracy": shares,
        "interval": [wilson(share, count) for share, count in zip(shares, images, strict=True)],
        "confusion": confusion(labels, predicted, classes).tolist() if classes <= LARGEST_TABLE else None,
    }


def _read(directory: PathLike) -> Arrays:
    """The content of probe.npz, which is of the same run as probe.json."""
    directory = pathlib.Path(directory)
    again = f"run python -m igpt_jax.probe --out={directory} again"
    if missing := [name for name in (JSON, NPZ) if not (directory / name).exists()]:
        raise FileNotFoundError(f"{directory} holds no {missing[0]}, which keeps what probes predict: {again}")
    try:
        result = json.loads((directory / JSON).read_text())
    except ValueError as error:
        raise ValueError(f"{directory / JSON} is damaged ({one_line(error)}): {again}") from None
    predictions = result.get("predictions") if isinstance(result, dict) else None
    if not isinstance(predictions, dict) or predictions.get("sha256") != _checksum(directory / NPZ):
        raise ValueError(f"{directory / NPZ} and {directory / JSON} are of different runs, or damaged: {again}")
    try:
        with np.load(directory / NPZ) as file:
            return dict(file)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{directory / NPZ} is damaged ({one_line(error)}): {again}") from None


def _checksum(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
