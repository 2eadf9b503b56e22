"""Equal FLOPs from made-up losses: an optimum and exponents that are known are found, one outside the sizes is said, and plans spend their budget."""

import io
import json
import math

import numpy as np
import pytest

from experiments.studies import isoflop
from igpt_jax.model.transformer import ModelConfig
from tests.runs import recipe

SIZES = {"1x8": 3000, "2x8": 6000, "2x16": 12000, "2x24": 24000, "3x32": 48000}


def rows(optima, noise=0.0, seeds=1, sizes=SIZES):
    """Points of a parabola in log parameters with its minimum at the optimum of each budget {FLOPs: parameters}; images x parameters are the budget."""
    generator = np.random.default_rng(0)
    return [
        {"budget": budget, "size": size, "seed": seed, "parameters": count, "images": round(budget / (100 * count)), "steps": 100, "positions": 64,
         "learning_rate": 0.01, "nats_per_pixel": 1 - math.log10(budget) / 50 + 0.05 * math.log(count / best) ** 2 + noise * generator.normal()}
        for budget, best in optima.items() for size, count in sizes.items() for seed in range(seeds)
    ]  # fmt: skip


def summary(*given, **more):
    return json.loads(json.dumps(isoflop.summary(rows(*given, **more))))


def draw(found):
    """Draw to bytes: some faults of a figure show only then."""
    isoflop.draw(found).savefig(io.BytesIO(), format="png", dpi=40)


def test_known_exponents_are_found():
    found = summary({1e11: 6000, 4e11: 12000, 16e11: 24000})  # parameters as FLOPs^0.5
    assert [budget["parameters"] for budget in found["budgets"]] == pytest.approx([6000, 12000, 24000], rel=1e-6)
    assert found["exponents"]["parameters"]["exponent"] == pytest.approx(0.5)
    assert found["exponents"]["images"]["exponent"] == pytest.approx(0.5, abs=1e-5)  # images are whole numbers
    assert found["exponents"]["parameters"]["interval"] == pytest.approx([0.5, 0.5])  # no noise
    assert found["budgets"][0]["images"] == pytest.approx(1e11 / (100 * 6000), rel=1e-3)
    assert found["cost"][0] == pytest.approx(1, abs=1e-4)
    assert "optimal parameters grow as FLOPs^0.50 (95 %: 0.50 to 0.50, 3 budgets)" in isoflop.table(found)[-2]
    draw(found)


def test_noise_widens_the_intervals_and_they_hold_the_truth():
    quiet, loud = (summary({1e11: 6000, 4e11: 12000, 16e11: 24000}, noise=noise, seeds=3) for noise in (0.001, 0.02))
    widths = [np.ptp(found["exponents"]["parameters"]["interval"]) for found in (quiet, loud)]
    assert 0 < widths[0] < widths[1]
    for found in (quiet, loud):
        low, high = found["exponents"]["parameters"]["interval"]
        assert low < 0.5 < high
        for budget, truth in zip(found["budgets"], (6000, 12000, 24000), strict=True):
            assert budget["interval"][0] < truth < budget["interval"][1]


@pytest.mark.parametrize(("best", "words"), [(500, "the loss still falls at the smallest size"), (9e5, "the loss still falls at the largest size")])
def test_an_optimum_outside_the_sizes_is_said_and_not_extrapolated(best, words):
    found = summary({1e11: best, 4e11: 12000})
    assert found["budgets"][0]["parameters"] is None and words in found["budgets"][0]["why"]
    assert found["exponents"]["parameters"]["exponent"] is None
    lines = isoflop.table(found)
    assert f"1e+11 FLOPs: no optimum inside the sizes, {words}" in lines and "no exponent, 1 of 2 budgets" in lines[-1]
    draw(found)


def test_a_curve_that_bends_down_has_no_optimum():
    given = rows({1e11: 12000})
    for row in given:
        row["nats_per_pixel"] = 2 - row["nats_per_pixel"]
    found = isoflop.summary(given)["budgets"][0]
    assert found["parameters"] is None and "the loss is least at the" in found["why"]


def test_two_sizes_are_too_few():
    found = summary({1e11: 6000}, sizes={"1x8": 3000, "2x8": 6000})
    assert found["budgets"][0]["why"] == "2 sizes, a parabola needs 3"
    draw(found)


@pytest.mark.parametrize("size", ["1x8", "2x16", "3x32", "2x16@0.05"])
def test_a_plan_spends_its_budget_and_keeps_the_share_of_warm_up(size):
    config = recipe(batch_size=16, steps=100, optim__warmup_steps=5, model__width=16, model__heads=2)
    planned = isoflop.plan(config, size, 3e9)
    spent = planned.steps * 16 * ModelConfig(**planned.model).training_flops()
    assert spent == pytest.approx(3e9, rel=0.5 / planned.steps) and planned.optim.steps == planned.steps
    assert planned.optim.warmup_steps == math.ceil(planned.steps / 20) and config.steps == 100
    width = int(size.partition("@")[0].split("x")[1])
    assert planned.optim.learning_rate == pytest.approx(0.05 if "@" in size else config.optim.learning_rate * 16 / width)


@pytest.mark.parametrize("text", ["", "0", "-1e9", "nan", "inf", "many"])
def test_a_budget_that_is_no_number_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="must be numbers of FLOPs above 0"):
        isoflop.sweep_budgets(recipe(), tmp_path, [text], ["1x8"], 1)


def test_a_run_of_few_steps_is_left_out_and_the_budgets_of_two_workers_are_one_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(isoflop, "measure", lambda recipe, workdir, budget, size, seed: rows({budget: 6000}, sizes={size: SIZES[size]})[0])
    config = recipe(batch_size=16, model__width=16, model__heads=2)
    for shard in ("0/2", "1/2", None):
        found = isoflop.sweep_budgets(config, tmp_path, ["2.5e9", "2.5e10"], list(SIZES)[:4], 1, shard=shard)
    assert "2x24 is left out at 2.5e+09 FLOPs, which are" in capsys.readouterr().out
    assert [len(budget["points"]) for budget in found["budgets"]] == [2, 4] and not found["missing"]


@pytest.mark.slow
def test_at_its_smallest_it_trains_and_draws(tmp_path):
    config = recipe(batch_size=8, model__width=8, model__heads=1, model__layers=1, eval_images=8)
    found = isoflop.sweep_budgets(config, tmp_path, ["2e9", "4e9"], ["1x8", "2x8", "1x16"], 1, results=tmp_path / "results")
    assert not found["missing"] and all(len(budget["points"]) == 3 for budget in found["budgets"])
    assert (tmp_path / "results/isoflop.png").read_bytes().startswith(b"\x89PNG")
