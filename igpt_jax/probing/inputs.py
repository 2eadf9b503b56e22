"""What the classes of estimators.py accept: features X, labels y and parameters, refused as scikit-learn refuses them.

B images, D features, C classes.
"""

import math
import numbers
import warnings
from typing import Any

import numpy as np


class NotFittedError(ValueError, AttributeError):
    """Raised if a probe is used before `fit`; like scikit-learn's it is both a ValueError and an AttributeError."""


def check_parameter(probe: Any, name: str, whole: bool = False, zero: bool = False) -> None:
    """Raises ValueError unless a parameter is a positive finite number: an integer if `whole`, perhaps 0 if `zero`."""
    value: Any = getattr(probe, name)
    number = isinstance(value, numbers.Integral if whole else numbers.Real)
    if number and not isinstance(value, bool) and (0 < value < math.inf or (zero and value == 0)):
        return
    expected = "an int in the range [1, inf)" if whole else f"a float in the range {'[' if zero else '('}0.0, inf)"
    raise ValueError(f"The {name!r} parameter of {type(probe).__name__} must be {expected}. Got {value!r} instead.")


def check_features(X: Any) -> np.ndarray:
    """The features as float64 [B, D], a copy. Raises ValueError if they are none, and TypeError for a sparse matrix."""
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError("Sparse data was passed for X, but dense data is required: sparse matrices are not supported. Use X.toarray().")
    x = np.asarray(X)
    if x.ndim != 2:
        shape = "scalar" if x.ndim == 0 else f"{x.ndim}D"
        raise ValueError(f"Expected 2D array, got {shape} array instead: features are [images, features], here of shape {x.shape}.")
    if not (x.shape[0] and x.shape[1]):
        what = "sample(s)" if not x.shape[0] else "feature(s)"
        raise ValueError(f"Found array with 0 {what} (shape={x.shape}) while a minimum of 1 is required.")
    if x.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: X is {x.dtype}.")
    if x.dtype.kind not in "biufOUS":
        raise ValueError(f"X must be numbers, it is {x.dtype}.")
    try:
        x = x.astype(np.float64)
    except TypeError as error:
        raise ValueError(f"X has values that are no numbers: {error}") from None
    if not np.isfinite(x).all():
        raise ValueError("Input X contains NaN." if np.isnan(x).any() else "Input X contains infinity.")
    return x


def feature_names(X: Any) -> np.ndarray | None:
    """The names of the columns of a table, [D]; None if X is none or if they are not strings. Raises TypeError if only some are strings."""
    columns = list(getattr(X, "columns", ()))
    strings = [isinstance(column, str) for column in columns]
    if any(strings) and not all(strings):
        types = sorted({type(column).__qualname__ for column in columns})
        raise TypeError(f"Feature names are only supported if all are strings, here they are {types}: use X.columns = X.columns.astype(str)")
    return np.array(columns, object) if any(strings) else None


def check_fitted(probe: Any, X: Any) -> np.ndarray:
    """The features of a fitted probe, float64 [B, D]. Raises ValueError if they are not the features of the fit, by their names and number."""
    name = type(probe).__name__
    if not hasattr(probe, "n_features_in_"):
        raise NotFittedError(f"This {name} instance is not fitted yet. Call 'fit' with appropriate arguments before using this estimator.")
    _check_names(name, getattr(probe, "feature_names_in_", None), feature_names(X))
    x_BD = check_features(X)
    if x_BD.shape[1] != probe.n_features_in_:
        raise ValueError(f"X has {x_BD.shape[1]} features, but {name} is expecting {probe.n_features_in_} features as input.")
    return x_BD


def _check_names(probe: str, fitted: np.ndarray | None, given: np.ndarray | None) -> None:
    if fitted is None or given is None:
        if given is not None:
            warnings.warn(f"X has feature names, but {probe} was fitted without feature names", stacklevel=5)
        if fitted is not None:
            warnings.warn(f"X does not have valid feature names, but {probe} was fitted with feature names", stacklevel=5)
        return
    if fitted.tolist() == given.tolist():
        return
    unseen, missing = (sorted(set(a) - set(b)) for a, b in ((given, fitted), (fitted, given)))
    problems = [
        f"{problem}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
        for problem, names in (("Feature names unseen at fit time", unseen), ("Feature names seen at fit time, yet now missing", missing))
        if names
    ]
    reason = " ".join(problems) or "Feature names must be in the same order as they were in fit."
    raise ValueError(f"The feature names should match those that were passed during fit. {reason}")


def check_labels(y: Any, images: int) -> np.ndarray:
    """The labels [B]: integers, whole floats or strings. Raises ValueError if they are none of classes; warns if they are a column [B, 1]."""
    if y is None:
        raise ValueError("This estimator requires y to be passed, but the target y is None.")
    labels = np.asarray(y)
    if labels.dtype.kind == "U" and not hasattr(y, "dtype"):
        _check_objects(np.asarray(y, object).ravel())  # numpy has made strings of all labels if one is a string
    if labels.ndim == 2 and labels.shape[1] == 1:
        warnings.warn("A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples,).", stacklevel=3)
        labels = labels.ravel()
    if labels.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {labels.shape} instead.")
    if len(labels) != images:
        raise ValueError(f"Found input variables with inconsistent numbers of samples: [{images}, {len(labels)}]")
    if labels.dtype.kind == "O":
        labels = _check_objects(labels)
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise ValueError("Input y contains NaN." if np.isnan(labels).any() else "Input y contains infinity.")
        if (labels != np.floor(labels)).any():
            raise ValueError("Unknown label type: continuous. Labels must be integers or strings.")
    if labels.dtype.kind not in "biufUSO":
        raise ValueError(f"Unknown label type: {labels.dtype}. Labels must be integers or strings.")
    return labels


def _check_objects(labels: np.ndarray) -> np.ndarray:
    """Labels of type object: strings as they are, numbers as numbers."""
    if all(isinstance(label, numbers.Real | np.bool_) for label in labels):
        return np.array(labels.tolist())
    if not all(isinstance(label, str) for label in labels):
        raise ValueError("Unknown label type: mixed. Labels must be integers or strings.")
    return labels


def check_same_kind(labels: np.ndarray, classes: np.ndarray) -> None:
    """Raises ValueError if one of two arrays has strings and the other has numbers."""
    kinds = [{"U": "strings", "O": "strings", "S": "bytes"}.get(array.dtype.kind, "numbers") for array in (labels, classes)]
    if kinds[0] != kinds[1]:
        examples = [array.tolist()[0] for array in (labels, classes)]
        raise ValueError(f"Labels must be of one type: y has {kinds[0]} like {examples[0]!r}, and the probe was fitted to {kinds[1]} like {examples[1]!r}")


def check_weights(weights: Any, images: int) -> np.ndarray | None:
    """Weights of images, float64 [B]; None if there are none. Raises ValueError unless they are finite, not negative, and not all 0."""
    if weights is None:
        return None
    w = np.asarray(weights, np.float64)
    if w.shape != (images,):
        raise ValueError(f"sample_weight.shape == {w.shape}, expected {(images,)}!")
    if not (np.isfinite(w).all() and (w >= 0).all() and w.any()):
        raise ValueError("sample_weight must be finite numbers that are at least 0, and not all 0.")
    return w
