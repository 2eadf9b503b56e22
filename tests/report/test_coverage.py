"""The simulation of coverage: what is drawn, what the methods are, and what the committed table says."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments.report import coverage
from experiments.report.coverage import Condition


def test_the_committed_table_is_that_of_the_committed_numbers():
    found = json.loads((coverage.RESULTS / "coverage.json").read_text())
    assert coverage.table(found["rows"], found["losses"]) == (coverage.RESULTS / "coverage.md").read_text()
    main = [row for row in found["rows"] if row["trials"] == coverage.TRIALS]
    assert len(main) == len(coverage.conditions()) and found["gain"] == coverage.GAIN and found["resamples"] == coverage.RESAMPLES
    assert len(found["rows"]) - len(main) == len(coverage.compared()) * len(coverage.METHODS)


def test_the_intervals_of_the_claims_hold_the_true_difference():
    """In 93 % of the studies or more, less twice the deviation of a share of 1,000 studies; and the mean over all conditions is above 95 %."""
    rows = [row for row in json.loads((coverage.RESULTS / "coverage.json").read_text())["rows"] if row["trials"] == coverage.TRIALS]
    assert min(row["coverage"] for row in rows) > 0.93 - 2 * np.sqrt(0.95 * 0.05 / coverage.TRIALS) and np.mean([row["coverage"] for row in rows]) > 0.95


def test_intervals_of_losses_over_seeds_hold_the_true_difference(monkeypatch):
    """In 95 % of the studies less twice the deviation of a share of 4,000; and the committed rows are what the program makes, here of fewer studies."""
    found = json.loads((coverage.RESULTS / "coverage.json").read_text())["losses"]
    assert len(found) == 8 and min(row["coverage"] for row in found) > 0.95 - 2 * np.sqrt(0.95 * 0.05 / coverage.TRIALS_OF_LOSSES)
    monkeypatch.setattr(coverage, "TRIALS_OF_LOSSES", 200)
    again = coverage.measure_losses()
    assert [row | {"trials": 0, "coverage": 0, "width": 0} for row in again] == [row | {"trials": 0, "coverage": 0, "width": 0} for row in found]
    assert [row["width"] for row in again] == pytest.approx([row["width"] for row in found], rel=0.2)
    assert [row["coverage"] for row in again] == pytest.approx([row["coverage"] for row in found], abs=0.05)
    monkeypatch.setattr(coverage, "_of_losses", lambda losses_2R, shared: (0.1, 0.3))
    assert {(row["coverage"], round(row["width"], 6)) for row in coverage.measure_losses()} == {(0.0, 0.2)}


def drawn(trials=400, **changes):
    condition = Condition(**{"accuracy": 0.7, "correlation": 0.6, "images": 100, "seeds": 2, "deviation": 0.0} | changes)
    generator = np.random.default_rng(0)
    found = [coverage.simulate(condition, generator) for _ in range(trials)]
    return np.stack([trial.right_2RB for trial in found]), found


def test_simulated_accuracies_and_correlations():
    right_N2RB, trials = drawn()
    assert right_N2RB.shape == (400, 2, 2, 100) and right_N2RB[:, 0].mean() == pytest.approx(0.7, abs=0.01)
    assert right_N2RB[:, 1].mean() - right_N2RB[:, 0].mean() == pytest.approx(coverage.GAIN, abs=0.006)
    assert all((trial.models, trial.kinds) == (pytest.approx(coverage.GAIN), coverage.GAIN) for trial in trials)
    columns = right_N2RB.reshape(400, 4, 100).transpose(1, 0, 2).reshape(4, -1).astype(float)
    threshold = stats.norm.ppf(0.7)
    together = stats.multivariate_normal.cdf([threshold, threshold], cov=[[1, 0.6], [0.6, 1]])
    assert np.corrcoef(columns)[np.triu_indices(4, 1)] == pytest.approx((together - 0.49) / 0.21, abs=0.02)
    apart = drawn(correlation=0.0)[0].reshape(400, 4, 100).transpose(1, 0, 2).reshape(4, -1).astype(float)
    assert np.corrcoef(apart)[np.triu_indices(4, 1)] == pytest.approx(0, abs=0.02)


def test_models_of_a_kind_differ_by_the_deviation_of_seeds():
    right_N2RB, trials = drawn(deviation=0.05, images=2_000, trials=200)
    assert right_N2RB.mean(axis=3).std(axis=2, ddof=1).mean() == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.15)
    differences = [trial.models for trial in trials]
    assert np.std(differences) == pytest.approx(0.05, rel=0.15) and np.mean(differences) == pytest.approx(0.003, abs=0.008)
    near, _ = drawn(deviation=0.5, accuracy=0.99, images=2_000, trials=100)
    assert near.mean(axis=3).min() > 0.97 and near[:, 0].mean() == pytest.approx(0.99, abs=0.002)  # kept inside 0 and 1, on both sides alike


@pytest.fixture(scope="module")
def right_2RB():
    return drawn(1, images=1_000, seeds=1)[0][0]


def test_bootstraps_of_one_model_agree_with_scipy_s(right_2RB, monkeypatch):
    monkeypatch.setattr(coverage, "RESAMPLES", 4_000)
    values_B = right_2RB[1, 0].astype(float) - right_2RB[0, 0]
    for method, name in ((coverage.percentile, "percentile"), (coverage.bca, "BCa")):
        theirs = stats.bootstrap((values_B,), np.mean, method=name, n_resamples=4_000, batch=500, rng=np.random.default_rng(1)).confidence_interval
        assert method(right_2RB, np.random.default_rng(0)) == pytest.approx(tuple(theirs), abs=0.003)
    half = 1.96 * values_B.std() / np.sqrt(1_000)
    assert coverage.studentised(right_2RB, np.random.default_rng(0)) == pytest.approx((values_B.mean() - half, values_B.mean() + half), abs=0.003)
    assert coverage.ours(right_2RB, np.random.default_rng(0)) == pytest.approx((values_B.mean() - half, values_B.mean() + half), abs=0.001)


def test_bootstraps_of_several_models_draw_models_too():
    """Models that are right everywhere or nowhere: only their draw varies."""
    right_2RB = np.zeros((2, 3, 50), bool)
    right_2RB[1, 0] = True
    found_N, errors_N = coverage._resampled(right_2RB, np.random.default_rng(0))
    assert set(np.round(3 * found_N, 6)) == {0, 1, 2, 3} and found_N.mean() == pytest.approx(1 / 3, abs=0.05) and not errors_N.any()
    assert coverage.studentised(np.ones((2, 1, 50), bool), np.random.default_rng(0)) == (0, 0)
    assert coverage.bca(np.ones((2, 1, 50), bool), np.random.default_rng(0)) == (0, 0)


def test_the_plain_method_is_that_of_independent_images(right_2RB):
    shares = right_2RB.mean(axis=(1, 2))
    half = 1.96 * np.sqrt((shares * (1 - shares) / 1_000).sum())
    assert coverage.plain(right_2RB, np.random.default_rng(0)) == pytest.approx((shares[1] - shares[0] - half, shares[1] - shares[0] + half))


def test_coverage_counts_what_is_held(monkeypatch):
    ends = {"all": (-1.0, 1.0), "none": (0.5, 0.75), "kinds": (coverage.GAIN, coverage.GAIN)}
    monkeypatch.setattr(coverage, "METHODS", {name: lambda *_, both=both: both for name, both in ends.items()})
    one = Condition(0.5, 0.3, 50, 2, 0.01)
    rows = coverage.measure(one, ["all", "none", "kinds"], 20, 0, "kinds")
    assert [(row["method"], row["coverage"], row["width"]) for row in rows] == [("all", 1, 2), ("none", 0, 0.25), ("kinds", 1, 0)]
    assert rows[0] | one._asdict() == rows[0] and (rows[0]["trials"], rows[0]["about"]) == (20, "kinds")
    assert coverage.measure(one, ["kinds"], 20, 0, "models")[0]["coverage"] < 1
    assert coverage.measure(one, ["all"], 2, 0, "models") == coverage.measure(one, ["all"], 2, 0, "models")


def test_one_or_two_models_are_simulated_without_a_deviation():
    found = coverage.conditions()
    assert {one.deviation for one in found if one.seeds < 3} == {0.0} and {one.deviation for one in found if one.seeds == 3} == {0.0, 0.005, 0.01}
    assert len(found) == len(set(found)) == 4 * 2 * 3 * (1 + 1 + 3 + 3)
    assert {(one.seeds, about) for one, about in coverage.compared()} == {(1, "models"), (2, "models"), (2, "kinds"), (3, "kinds")}
