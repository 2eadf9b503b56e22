"""The probes with the interface of scikit-learn's classifiers, for features in memory:

    from igpt_jax.probing import KNNProbe, LinearProbe

    probe = LinearProbe(C=0.1).fit(features, labels)      # X: features [B, D], y: labels [B], integers or strings
    probe.score(others, their_labels)                     # accuracy

They have scikit-learn's names, shapes and messages and work in its pipelines, and do not need it. A table with names of columns, such as a DataFrame of
pandas, must have the same names in the same order at each call. A `fit` that raises leaves a probe as it was. B images, D features, C classes.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np

from igpt_jax.probing import inputs, knn
from igpt_jax.probing.inputs import NotFittedError
from igpt_jax.probing.logistic import ITERATIONS, TOLERANCE, fit_logistic

__all__ = ["KNNProbe", "LinearProbe", "NotFittedError"]

MEMORY = 1.0  # GiB for the similarities of nearest neighbours, beside the features
SMALLEST_C, LARGEST_C = 1e-30, 1e30  # of the solver, in float32; beyond them the weights are 0, or have no penalty


@dataclasses.dataclass(eq=False)
class LinearProbe:
    """Multinomial logistic regression on standardised features, by `fit_logistic`, the solver of igpt_jax.probe.

    The optimum is that of make_pipeline(StandardScaler(), LogisticRegression(C=C)), also for two classes, where it has one vector of weights. (For two
    classes igpt_jax.probe has two vectors, so that its C is half of this one.) Set by `fit`:

    coef_            float64 [C, D], or [1, D] for two classes; of the features as they are given, so scores are features @ coef_.T + intercept_
    intercept_       float64 [C] or [1]; their mean is 0 if there are more than two classes
    classes_         [C], the different labels, sorted
    n_iter_          int [1], steps of L-BFGS
    n_features_in_   D; and feature_names_in_ [D] if X was a table whose columns have names
    """

    C: float = 1.0  # inverse of the strength of regularisation
    tol: float = TOLERANCE  # largest entry of the gradient of the mean loss at the end
    max_iter: int = ITERATIONS

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Fit the probe. Raises ValueError if parameters, features or labels cannot be used; warns if `max_iter` steps were too few."""
        inputs.check_parameter(self, "C")
        inputs.check_parameter(self, "tol", zero=True)
        inputs.check_parameter(self, "max_iter", whole=True)
        names, x_BD = inputs.feature_names(X), inputs.check_features(X)
        classes, codes_B = _classes(inputs.check_labels(y, len(x_BD)))
        if len(classes) < 2:
            one = classes.tolist()[0]
            raise ValueError(f"This solver needs samples of at least 2 classes in the data, but the data contains only one class: {one!r}")
        mean_D, scale_D = _moments(x_BD)
        weights_CE, steps = self._solve(((x_BD - mean_D) * scale_D).astype(np.float32), codes_B, len(classes))
        self.classes_: np.ndarray = classes
        self.coef_: np.ndarray = weights_CE[:, :-1] * scale_D
        self.intercept_: np.ndarray = weights_CE[:, -1] - self.coef_ @ mean_D
        self.n_iter_ = np.array([steps], np.int32)
        _set_features(self, x_BD.shape[1], names)
        return self

    def _solve(self, standardised_BD: np.ndarray, codes_B: np.ndarray, classes: int) -> tuple[np.ndarray, int]:
        """Weights float64 [C, D + 1], or [1, D + 1] for two classes, the intercept last, and the number of steps."""
        images, width = standardised_BD.shape
        # two vectors of weights w and -w have half the penalty of the one vector 2 w
        C = np.full((1, 1), min(max(self.C / 2 if classes == 2 else self.C, SMALLEST_C), LARGEST_C), np.float32)
        start = np.zeros((1, 1, classes, width + 1), np.float32)
        found = fit_logistic(standardised_BD[None], codes_B[None], start, C, float(min(self.tol, LARGEST_C)), min(int(self.max_iter), 2**31 - 1))
        if not bool(found.converged[0, 0]):
            warnings.warn(f"LinearProbe did not reach a gradient of {self.tol:g} in {self.max_iter} steps on {images} images: raise max_iter", stacklevel=3)
        weights_CE = np.asarray(found.weights[0, 0], np.float64)
        return weights_CE[1:] - weights_CE[:1] if classes == 2 else weights_CE - weights_CE.mean(axis=0), int(found.steps[0, 0])

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits float64 [B, C]; for two classes [B], positive for the second one."""
        x_BD = inputs.check_fitted(self, X)
        scores = x_BD @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The most likely class of each image, [B]."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities float64 [B, C] of the classes in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms float64 [B, C] of the probabilities."""
        scores = self.decision_function(X)
        logits = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
        logits = logits - logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy, weighted if there are weights [B]. Raises ValueError for labels of another type than those of the fit."""
        return _accuracy(self, X, y, sample_weight)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def set_params(self, **params: Any) -> "LinearProbe":
        """Change arguments of the constructor. Raises ValueError for an unknown name."""
        return _set_params(self, params)

    def __sklearn_tags__(self) -> Any:
        return _sklearn_tags()


@dataclasses.dataclass(eq=False)
class KNNProbe:
    """Weighted nearest neighbours by cosine similarity, as igpt_jax/probing/knn.py describes them. Set by `fit`:

    classes_         [C], the different labels, sorted
    n_features_in_   D; and feature_names_in_ [D] if X was a table whose columns have names
    n_samples_fit_   how many neighbours there are
    """

    k: int = 20  # neighbours that vote
    temperature: float = knn.TEMPERATURE  # weights are exp(similarity / temperature)

    def fit(self, X: Any, y: Any) -> "KNNProbe":
        """Keep the neighbours. Raises ValueError if features and labels do not fit each other, or if there are fewer than k."""
        names, x_BD = inputs.feature_names(X), inputs.check_features(X)
        classes, codes_B = _classes(inputs.check_labels(y, len(x_BD)))
        self._check_parameters(len(x_BD))
        self.classes_: np.ndarray = classes
        self._codes_B: np.ndarray = codes_B
        self._neighbours_BD: np.ndarray = x_BD
        self.n_samples_fit_: int = len(x_BD)
        _set_features(self, x_BD.shape[1], names)
        return self

    def _check_parameters(self, neighbours: int) -> None:
        inputs.check_parameter(self, "k", whole=True)
        inputs.check_parameter(self, "temperature")
        if self.k > neighbours:
            raise ValueError(f"Expected k <= n_samples_fit, but k = {self.k}, n_samples_fit = {neighbours}: give a smaller k")

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares float64 [B, C] of the neighbours' votes, in the order of `classes_`. Raises ValueError if k was changed to more than there are."""
        x_BD, neighbours = inputs.check_fitted(self, X), self._neighbours_BD
        self._check_parameters(len(neighbours))
        sizes = knn.sizes_for(MEMORY, x_BD.shape[1], int(self.k), 8 * x_BD.shape[1], len(x_BD), len(neighbours))
        pieces: list[np.ndarray] = []
        for start in range(0, len(x_BD), sizes.queries):
            blocks = (neighbours[first : first + sizes.neighbours] for first in range(0, len(neighbours), sizes.neighbours))
            found = knn.nearest(x_BD[start : start + sizes.queries], blocks, int(self.k), sizes)
            for piece in knn.in_pieces(found):
                pieces += knn.shares(piece, self._codes_B, len(self.classes_), (int(self.k),), self.temperature)  # one array
        return np.concatenate(pieces)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms float64 [B, C] of the shares, -inf of 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The class with most votes, [B]; of equal ones the first."""
        shares = self.predict_proba(X)  # which checks that the probe is fitted
        return self.classes_[shares.argmax(axis=1)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy, weighted if there are weights [B]. Raises ValueError for labels of another type than those of the fit."""
        return _accuracy(self, X, y, sample_weight)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def set_params(self, **params: Any) -> "KNNProbe":
        """Change arguments of the constructor. Raises ValueError for an unknown name."""
        return _set_params(self, params)

    def __sklearn_tags__(self) -> Any:
        return _sklearn_tags()


def _set_params(probe: Any, params: dict[str, Any]) -> Any:
    known = probe.get_params()
    if unknown := [name for name in params if name not in known]:
        raise ValueError(f"Invalid parameter {unknown[0]!r} for estimator {probe}. Valid parameters are: {list(known)}.")
    for name, value in params.items():
        setattr(probe, name, value)
    return probe


def _sklearn_tags() -> Any:
    """What scikit-learn asks of a classifier that it is given, for example by cross_val_score or in a pipeline."""
    from sklearn.utils import ClassifierTags, Tags, TargetTags

    return Tags(estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags())


def _set_features(probe: Any, width: int, names: np.ndarray | None) -> None:
    """Set what a fit says of its features; `feature_names_in_` is there only if they have names."""
    probe.n_features_in_ = width
    if names is not None:
        probe.feature_names_in_ = names
    elif hasattr(probe, "feature_names_in_"):
        del probe.feature_names_in_


def _classes(labels_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes [C], sorted, and the place of each label among them, int32 [B]."""
    classes, codes = np.unique(labels_B, return_inverse=True)
    return classes, codes.astype(np.int32)


def _moments(x_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [D] and one over the deviations [D], 1 for a constant feature.

    As in scikit-learn's StandardScaler a feature is constant if its variance is not more than the rounding errors of B numbers in float64 explain (Chan, Golub
    and LeVeque, Algorithms for computing the sample variance).
    """
    unit = np.ldexp(1.0, np.maximum(np.frexp(np.abs(x_BD).max(axis=0))[1] - 1, 0))  # powers of 2, so that no square overflows
    scaled = x_BD / unit
    mean = scaled.mean(axis=0)
    variance = (scaled - mean).var(axis=0)  # without the rounding error of the mean
    rounding = len(x_BD) * np.finfo(np.float64).eps
    constant = variance <= rounding * variance + (rounding * mean) ** 2
    return mean * unit, np.where(constant, 1, 1 / (np.sqrt(np.where(constant, 1, variance)) * unit))


def _accuracy(probe: Any, X: Any, y: Any, sample_weight: Any) -> float:
    predicted = probe.predict(X)
    labels = inputs.check_labels(y, len(predicted))
    inputs.check_same_kind(labels, probe.classes_)
    return float(np.average(predicted == labels, weights=inputs.check_weights(sample_weight, len(labels))))
