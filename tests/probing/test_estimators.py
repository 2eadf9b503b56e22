"""LinearProbe and KNNProbe: the optimum of scikit-learn, its shapes, and its messages."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from igpt_jax.probing import KNNProbe, LinearProbe, estimators
from tests.runs import ROOT


def problem(classes=3, images=80, seed=0):
    """Correlated features with large means; one is constant."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    features = (generator.normal(size=(images, 5)) + 1.5 * np.eye(5)[labels]) @ generator.normal(size=(5, 5)) * [1, 2, 5, 0.1, 1] + 300
    features[:, 4] = 7
    return features, labels


@pytest.mark.parametrize("names", [np.array(["cat", "ant", "bee"]), np.array([70, -3, 5]), np.array(["b", "a"])], ids=["strings", "integers", "two classes"])
def test_weights_are_those_of_scikit_learn(names):
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.preprocessing import StandardScaler

    features, codes = problem(len(names))
    labels = names[codes]
    scaler = StandardScaler().fit(features)
    theirs = linear_model.LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000).fit(scaler.transform(features), labels)
    ours = LinearProbe(C=0.1).fit(features, labels)
    assert ours.classes_.tolist() == theirs.classes_.tolist() == sorted(names.tolist()) and ours.coef_.shape == theirs.coef_.shape
    # ours stops at a gradient of 1e-6 of the mean loss, and the penalty's curvature is 1 / (0.1 * 80) = 0.125: weights differ by about 1e-5
    np.testing.assert_allclose(ours.coef_ * scaler.scale_, theirs.coef_, atol=1e-4)
    x = features[:20] + 0.3
    for name in ("decision_function", "predict_proba"):
        a, b = getattr(ours, name)(x), getattr(theirs, name)(scaler.transform(x))
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-3)  # a sum over 5 features of some deviations
    assert ours.score(features, labels) == theirs.score(scaler.transform(features), labels) > 0.6
    np.testing.assert_allclose(ours.decision_function(x), np.squeeze(x @ ours.coef_.T + ours.intercept_), atol=1e-12)
    assert ours.n_iter_.shape == theirs.n_iter_.shape and 1 < ours.n_iter_[0] < 1000 and ours.n_features_in_ == 5


def unix_times(unit, seed=3):
    """Features whose means are far larger than their deviations, which hold the two classes; one column has only rounding errors."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 80)
    features = generator.normal(size=(80, 5))
    features[:, 0] = (1.7e9 + 300 * labels + 100 * features[:, 0]) * unit
    features[:, 1] = 0.1 + 1e-17 * features[:, 1]
    return features, labels


@pytest.mark.parametrize("unit", [1, 1e-6, 1e200])
def test_a_feature_is_constant_only_if_float64_does_not_resolve_it(unit):
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = unix_times(unit)
    scaled = features / [unit, 1, 1, 1, 1]  # squares of 1e200 overflow in StandardScaler
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000)).fit(scaled, labels)
    ours = LinearProbe(C=0.1).fit(features, labels)
    np.testing.assert_allclose(ours.predict_proba(features), theirs.predict_proba(scaled), atol=1e-4)
    np.testing.assert_allclose(np.exp(ours.predict_log_proba(features)), ours.predict_proba(features))
    assert ours.score(features, labels) > 0.85


@pytest.mark.parametrize("images", [3, 50, 2000])
def test_the_scale_of_scikit_learn(images):
    data = pytest.importorskip("sklearn.preprocessing")
    deviations = 10.0 ** np.arange(-18, 3)
    features = 1 + deviations * np.random.default_rng(images).normal(size=(images, len(deviations)))
    scale = data.StandardScaler().fit(features).scale_
    np.testing.assert_allclose(1 / estimators._moments(features)[1], scale, rtol=1e-9)  # sums in another order
    assert 2 < (scale == 1).sum() < 8


class Table:
    """A table with names of columns, as pandas has it."""

    def __init__(self, columns):
        self.columns, self.values = list(columns), np.stack(list(columns.values()), axis=1)

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_names_of_columns():
    columns = dict(zip("abcd", np.eye(4), strict=True))
    swapped, other = {name: columns[name] for name in "bacd"}, dict(zip("aecd", np.eye(4), strict=True))
    for probe in (LinearProbe(), KNNProbe(k=1)):
        probe.fit(Table(columns), [0, 0, 1, 1])
        assert probe.feature_names_in_.tolist() == list("abcd") and probe.feature_names_in_.dtype == object
        with warnings.catch_warnings(action="error"):
            assert probe.score(Table(columns), [0, 0, 1, 1]) == 1
        for call in (probe.predict, probe.predict_proba, lambda X, probe=probe: probe.score(X, [0, 0, 1, 1])):
            with pytest.raises(
                ValueError, match="should match those that were passed during fit. Feature names must be in the same order as they were in fit."
            ):
                call(Table(swapped))
        with pytest.raises(ValueError, match="unseen at fit time: e. Feature names seen at fit time, yet now missing: b."):
            probe.predict(Table(other))
        with pytest.warns(UserWarning, match="X does not have valid feature names, but .*Probe was fitted with feature names"):
            probe.predict(Table(columns).values)
        with pytest.raises(TypeError, match="only supported if all are strings"):
            probe.fit(Table(dict(zip(["a", 1, 2, 3], np.eye(4), strict=True))), [0, 0, 1, 1])
        probe.fit(Table(dict(enumerate(np.eye(4)))), [0, 0, 1, 1])
        assert not hasattr(probe, "feature_names_in_")
        with pytest.warns(UserWarning, match="X has feature names, but .*Probe was fitted without feature names"):
            probe.predict(Table(columns))


def test_score():
    features = np.eye(4)
    probe = KNNProbe(k=1).fit(X=features, y=[0, 1, 2, 3])
    assert probe.score(X=features, y=[0, 1, 2, 7]) == 0.75  # as scikit-learn's: a label of no class is never right
    assert probe.score(features, [0, 1, 2, 0], sample_weight=[1, 1, 0, 2]) == 0.5 and probe.score(features, np.array([0, 1, 2, 3], object)) == 1
    for labels, message in (
        (list("0123"), "Labels must be of one type: y has strings like '0', and the probe was fitted to numbers like 0"),
        ([0, 1, 2, np.nan], "Input y contains NaN."),
        ([0, 1, 2, np.inf], "Input y contains infinity."),
        ([0, 1, 2, 0.5], "Unknown label type: continuous"),
    ):
        with pytest.raises(ValueError, match=message):
            probe.score(features, labels)
    for weights in ([1, 1], [0] * 4, [1, 1, 1, -1], [1, 1, 1, np.nan]):
        with pytest.raises(ValueError, match="sample_weight"):
            probe.score(features, [0, 1, 2, 3], sample_weight=weights)
    with pytest.raises(ValueError, match="y has numbers like 0, and the probe was fitted to strings like 'a'"):
        KNNProbe(k=1).fit(features, list("abcd")).score(features, [0, 1, 2, 3])
    np.testing.assert_array_equal(probe.predict_log_proba(features[:1]), [[0, -np.inf, -np.inf, -np.inf]])


def test_a_column_of_labels_is_said():
    with pytest.warns(UserWarning, match="A column-vector y was passed when a 1d array was expected"):
        probe = KNNProbe(k=1).fit(np.eye(4), [["a"], ["b"], ["a"], ["b"]])
    assert probe.predict(np.eye(4)).tolist() == ["a", "b", "a", "b"]


@pytest.mark.parametrize("probe", [LinearProbe(), KNNProbe(k=2)])
def test_a_fit_that_raises_changes_nothing(probe):
    probe.fit(np.eye(4), [0, 0, 1, 1])
    before, wrong = vars(probe).copy(), {"C": 0, "tol": None, "max_iter": 0} if isinstance(probe, LinearProbe) else {"k": 6, "temperature": -1}
    for features, labels in ((np.eye(5), [5] * 4), (np.eye(5), [5, 6, 7, 8, np.nan]), (np.full((5, 5), np.nan), [5, 6, 7, 8, 9])):
        with pytest.raises(ValueError):
            probe.fit(features, labels)
    for name, value in wrong.items():
        default = getattr(probe, name)
        with pytest.raises(ValueError, match=f"'{name}'|Expected {name} <="):
            probe.set_params(**{name: value}).fit(np.eye(5), [5, 6, 7, 8, 9])
        probe.set_params(**{name: default})
    with pytest.raises(ValueError, match="Invalid parameter 'other'"):
        probe.set_params(**{name: 3, "other": 1})
    if isinstance(probe, LinearProbe):
        with pytest.raises(ValueError, match="only one class: 5.0$"):
            probe.fit(np.eye(5), np.full(5, 5.0))
    assert vars(probe).keys() == before.keys() and all(vars(probe)[name] is value for name, value in before.items())


def test_neighbours_that_are_changed_after_fit():
    probe = KNNProbe(k=2).fit(np.eye(4), [0, 0, 1, 1])
    for name, value, message in (("k", 0, "'k' parameter"), ("k", 5, "Expected k <= n_samples_fit, but k = 5"), ("temperature", np.nan, "'temperature'")):
        with pytest.raises(ValueError, match=message):
            KNNProbe.predict(probe.set_params(k=2, temperature=0.1).set_params(**{name: value}), np.eye(4))


def test_c_is_the_inverse_of_the_regularisation_and_the_order_of_images_does_not_matter():
    features, labels = problem()
    weak, strong = (np.abs(LinearProbe(C=C).fit(features, labels).coef_).sum() for C in (10.0, 0.001))
    assert weak > 10 * strong
    order = np.random.default_rng(1).permutation(len(labels))
    a, b = LinearProbe(C=0.1).fit(features, labels), LinearProbe(C=0.1).fit(features[order].tolist(), labels[order].astype(float))
    np.testing.assert_allclose(a.coef_, b.coef_, atol=1e-3)
    assert (a.predict(features) == b.predict(features)).mean() > 0.97 and len(set(a.predict(features))) == 3


def test_float16_features_and_one_image_of_each_class():
    features = np.array([[1, 0, 5], [0, 1, 5], [-1, -1, 5]], np.float16)
    for probe in (LinearProbe(C=10.0), KNNProbe(k=1)):
        fitted = probe.fit(features, ["x", "y", "z"])
        assert fitted is probe and probe.predict(features).tolist() == ["x", "y", "z"] and probe.score(features, ["x", "y", "x"]) == pytest.approx(2 / 3)
        np.testing.assert_allclose(probe.predict_proba(features).sum(axis=1), 1)


def test_too_few_steps_are_said():
    features, labels = problem()
    with pytest.warns(UserWarning, match="LinearProbe did not reach a gradient of 1e-06 in 2 steps on 80 images: raise max_iter"):
        assert LinearProbe(max_iter=2).fit(features, labels).n_iter_[0] == 2
    with warnings.catch_warnings(action="error"):
        LinearProbe().fit(features, labels)


def test_neighbours_vote():
    features = np.array([[1, 0.0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0]])
    probe = KNNProbe(k=2).fit(features, ["a", "a", "b", "b", "c"])
    assert probe.predict([[5, 0.1], [0.01, 0.3], [-2, 0.001]]).tolist() == ["a", "b", "c"] and probe.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(probe.predict_proba([[1, 0.05]]), [[1, 0, 0]])
    far, near = (
        KNNProbe(k=5, temperature=temperature).fit(features, ["a", "a", "b", "b", "c"]).predict_proba([[1, 0.05]])[0, 0] for temperature in (100, 0.07)
    )
    assert far == pytest.approx(0.4, abs=0.01) and near > 0.99
    single = KNNProbe(k=1).fit(features, np.zeros(5, int))  # one class is no problem for neighbours
    assert single.predict(features).tolist() == [0] * 5


@pytest.mark.parametrize("kind", [LinearProbe, KNNProbe])
@pytest.mark.parametrize(
    "features, labels, message",
    [
        ([[1.0, np.nan]] * 4, [0, 0, 1, 1], "Input X contains NaN."),
        ([[1.0, np.inf]] * 4, [0, 0, 1, 1], "Input X contains infinity."),
        ([1.0, 2.0], [0, 1], "Expected 2D array, got 1D array instead"),
        (np.zeros((0, 3)), [], "Found array with 0 sample"),
        (np.zeros((4, 0)), [0, 0, 1, 1], "Found array with 0 feature"),
        (np.eye(4), [0, 1, 1], r"Found input variables with inconsistent numbers of samples: \[4, 3\]"),
        (np.eye(4), np.eye(4), r"y should be a 1d array, got an array of shape \(4, 4\) instead"),
        (np.eye(4), [0, 1, 1, np.nan], "Input y contains NaN."),
        (np.eye(4), [0, 1, 1, 0.5], "Unknown label type: continuous"),
        (np.eye(4), np.array([0, "a", None, 1], object), "Unknown label type: mixed"),
        ([["a", "b"]] * 4, [0, 0, 1, 1], "could not convert string to float"),
        (np.eye(4) * 1j, [0, 0, 1, 1], "Complex data not supported"),
        (np.array([[1, object()]] * 4, object), [0, 0, 1, 1], "X has values that are no numbers"),
        (np.eye(4).astype("M8[s]"), [0, 0, 1, 1], r"X must be numbers, it is datetime64\[s\]."),
        (np.eye(4), [0, 1, 1, np.inf], "Input y contains infinity."),
        (np.eye(4), ["a", 1, "b", 2], "Unknown label type: mixed"),
        (np.eye(4), np.array([0, 1, 1, np.nan], object), "Input y contains NaN."),
        (np.eye(4), None, "the target y is None"),
    ],
)
def test_messages_of_fit(kind, features, labels, message):
    with pytest.raises(ValueError, match=message):
        kind().fit(features, labels)


@pytest.mark.parametrize(
    "probe, labels, message",
    [
        (LinearProbe(), [3, 3, 3, 3], "at least 2 classes in the data, but the data contains only one class: .*3"),
        (LinearProbe(C=0), [0, 0, 1, 1], r"The 'C' parameter of LinearProbe must be a float in the range \(0.0, inf\). Got 0 instead."),
        (LinearProbe(C="1"), [0, 0, 1, 1], "The 'C' parameter of LinearProbe"),
        (LinearProbe(C=np.nan), [0, 0, 1, 1], "The 'C' parameter of LinearProbe"),
        (LinearProbe(tol=np.nan), [0, 0, 1, 1], r"The 'tol' parameter of LinearProbe must be a float in the range \[0.0, inf\). Got nan instead."),
        (LinearProbe(tol="a"), [0, 0, 1, 1], "The 'tol' parameter"),
        (LinearProbe(tol=-1), [0, 0, 1, 1], "The 'tol' parameter"),
        (LinearProbe(max_iter=0), [0, 0, 1, 1], r"The 'max_iter' parameter of LinearProbe must be an int in the range \[1, inf\). Got 0 instead."),
        (LinearProbe(max_iter=1.5), [0, 0, 1, 1], "The 'max_iter' parameter"),
        (KNNProbe(k=5.0), [0, 0, 1, 1], "The 'k' parameter of KNNProbe must be an int"),
        (KNNProbe(k=2, temperature="a"), [0, 0, 1, 1], "The 'temperature' parameter of KNNProbe"),
        (KNNProbe(k=5), [0, 0, 1, 1], "Expected k <= n_samples_fit, but k = 5, n_samples_fit = 4"),
        (KNNProbe(k=0), [0, 0, 1, 1], "The 'k' parameter of KNNProbe"),
        (KNNProbe(k=2, temperature=0), [0, 0, 1, 1], "The 'temperature' parameter of KNNProbe"),
    ],
)
def test_messages_of_parameters(probe, labels, message):
    with pytest.raises(ValueError, match=message):
        probe.fit(np.eye(4), labels)


def test_sparse_matrices_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    for kind in (sparse.csr_matrix, sparse.csr_array, sparse.coo_array):
        with pytest.raises(TypeError, match=r"sparse matrices are not supported. Use X.toarray\(\)"):
            KNNProbe(k=1).fit(kind(np.eye(4)), [0, 0, 1, 1])


@pytest.mark.parametrize("C", [1e39, 1e-60])
def test_a_c_beyond_float32(C):
    features, labels = problem(2)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # without a penalty classes that can be separated have no optimum
        probe = LinearProbe(C=C).fit(features, labels)
    assert np.isfinite(probe.coef_).all() and (np.abs(probe.coef_).max() > 0.01) == (C > 1)


def test_messages_of_predict():
    for probe in (LinearProbe(), KNNProbe(k=2)):
        with pytest.raises(estimators.NotFittedError, match="instance is not fitted yet. Call 'fit' with appropriate arguments"):
            probe.predict(np.eye(4))
        assert issubclass(estimators.NotFittedError, ValueError) and issubclass(estimators.NotFittedError, AttributeError)  # as scikit-learn's
        probe.fit(np.eye(4), [0, 0, 1, 1])
        with pytest.raises(ValueError, match="X has 3 features, but .*Probe is expecting 4 features as input."):
            probe.predict(np.eye(3))
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[4, 2\]"):
            probe.score(np.eye(4), [0, 1])
        with pytest.raises(ValueError, match="Invalid parameter 'c' for estimator .*Probe"):
            probe.set_params(c=1)


def test_scikit_learn_takes_them():
    model_selection = pytest.importorskip("sklearn.model_selection")
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = problem()
    copy = clone(LinearProbe(C=0.3).fit(features, labels))
    assert copy.C == 0.3 and not hasattr(copy, "coef_") and repr(KNNProbe(k=3)).startswith("KNNProbe(k=3, ")
    search = model_selection.GridSearchCV(make_pipeline(StandardScaler(), KNNProbe()), {"knnprobe__k": [1, 9]}, cv=2).fit(features, labels)
    assert search.best_params_["knnprobe__k"] in (1, 9) and search.score(features, labels) > 0.5


def test_importing_the_package_imports_no_jax():
    program = (
        "import sys, igpt_jax, igpt_jax.probing; assert 'jax' not in sys.modules; from igpt_jax.probing import LinearProbe; assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("dtype, scales", [(np.float32, (1e-30, 1e30)), (np.float64, (1e-300, 1e-60, 1e60, 1e300))])
def test_neighbours_do_not_depend_on_the_scale_of_the_features(dtype, scales):
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 60)
    X = (generator.normal(size=(60, 4)) + 1.5 * np.eye(4)[y]).astype(dtype)
    known = KNNProbe(k=5).fit(X, y).predict_proba(X)
    for scale in scales:
        scaled = X * dtype(scale)
        assert np.allclose(KNNProbe(k=5).fit(scaled, y).predict_proba(scaled), known, atol=1e-4)
