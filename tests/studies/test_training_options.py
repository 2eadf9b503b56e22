"""The studies of training options: their numbers on made-up curves, and their files from the smallest runs."""

import json
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.studies import coordinate_check, training_options
from igpt_jax.training.optimizer import OptimConfig
from tests.runs import recipe


def made_up(seed, shift):
    """What a job returns: an option that is `shift` below its reference."""
    steps, falling = [20, 40, 60], [2.0 + seed, 1.5 + seed, 1.6 + seed]
    one = {"option": "default", "kind": training_options.PRETRAINING, "reference": None, "steps": steps, "losses": falling, "parameters": 7}
    return {"seed": seed, "options": [one, one | {"option": "other", "reference": "default", "losses": [loss - shift for loss in falling]}]}


def test_differences_are_paired_by_seed_and_steps_are_to_the_lowest_loss_of_the_reference():
    found = training_options.summary([made_up(0, 0.6), made_up(5, 0.5), made_up(9, 0.4)])
    default, other = found["rows"]
    assert found["seeds"] == [0, 5, 9] and default["loss"] == pytest.approx([1.6, 6.6, 10.6]) and "difference" not in default
    assert other["difference"] == pytest.approx([-0.6, -0.5, -0.4]) and np.mean(other["difference_interval"]) == pytest.approx(-0.5)
    assert other["difference_interval"][1] == pytest.approx(-0.5 + 4.302653 * 0.1 / 3**0.5)  # Student's t with 2 degrees of freedom
    assert other["steps"] == [20, 20, 40] and other["reference_steps"] == [40, 40, 40]
    lines = training_options.table(found)
    assert "| other | default | 5.767 " in "\n".join(lines) and "-0.500 (-0.748 to -0.252)" in "\n".join(lines)
    assert training_options.title(found) == "1 of 1 options change the loss, by an interval over 3 seeds that leaves out 0:\nother -0.500"
    assert isinstance(training_options.draw(found), Figure)
    unclear = training_options.summary([made_up(0, 0.6), made_up(5, -0.5), made_up(9, 0.0)])
    assert training_options.title(unclear) == "0 of 1 options change the loss, by an interval over 3 seeds that leaves out 0"


def test_a_loss_is_reached_at_the_first_evaluation_not_above_it_or_never():
    curve = {"steps": [10, 20, 30], "losses": [3.0, 2.0, 2.5]}
    assert [training_options.steps_to(curve, loss) for loss in (4.0, 3.0, 2.5, 2.0, 1.9)] == [10, 10, 20, 20, None]
    worse = training_options.summary([made_up(0, -1.0)])
    assert worse["rows"][1]["steps"] == [None] and "never" in "\n".join(training_options.table(worse))


def test_every_option_is_one_of_the_recipe_and_differs_from_its_reference_in_that_alone():
    config = recipe(model__layers=4)
    rows = {row.name: row for row in training_options.options(config)}
    for row in rows.values():
        changed = training_options.stages.changed(config, **row.changes)
        OptimConfig(**changed.optim)
        if row.reference:
            assert rows[row.reference].kind == row.kind
            differing = row.changes.items() ^ rows[row.reference].changes.items()
            assert row.ema or {key for key, _ in differing} - {"optim__ema_decay", "model__heads", "optim__decay_steps"}


@pytest.mark.slow
def test_the_sweep_writes_every_row_at_its_smallest_size(tmp_path):
    config = recipe(steps=4, eval_every=2, save_every=0, model__layers=2, palette__size=8)
    found = training_options.sweep_options(config, tmp_path, seeds=1, labels=32, tune_steps=2, tune_rate=0.001)
    assert [row["option"] for row in found["rows"]] == [row.name for row in training_options.options(config)]
    assert all(np.isfinite(row["loss"]).all() for row in found["rows"]) and (tmp_path / "training_options.png").exists()
    frozen = next(row for row in found["rows"] if row["option"] == "1 of 2 layers frozen")
    assert "accuracy" in frozen and len(frozen["difference"]) == 1


@pytest.mark.parametrize("labels", [0, 15, 1_438])
def test_numbers_of_labels_that_cannot_be_are_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=f"--labels={labels} must be at least the batch of 16 and below the 1438 training images"):
        training_options.sweep_options(recipe(), tmp_path, seeds=1, labels=labels, tune_steps=2, tune_rate=0.001)


def test_growth_is_that_of_the_last_step_from_the_smallest_width_to_the_largest():
    moved = {"flat": [[[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]]] * 2, "growing": [[[1.0, 1.0, 1.0]] * 2, [[2.0, 4.0, 8.0], [3.0, 5.0, 7.0]]]}
    result = {"widths": [16, 32], "moved": moved}
    result["growth"] = coordinate_check.growth(result)
    assert result["growth"]["flat"] == dict.fromkeys(coordinate_check.ACTIVATIONS, 1.0)
    assert list(result["growth"]["growing"].values()) == [3.0, 5.0, 7.0]
    assert coordinate_check.title(result) == "From width 16 to 32 the logits move 1.0 times as far with flat, 7.0 times as far with growing"


@pytest.mark.slow
def test_the_coordinate_check_writes_its_figure_and_refuses_widths_of_no_whole_heads(tmp_path, monkeypatch, capsys):
    out = tmp_path / "check.png"
    words = ["study", "--layers=1", "--steps=2", "--seeds=1", "--batch=4", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", [*words, "--widths=16,48"])
    coordinate_check.main()
    found = json.loads(out.with_suffix(".json").read_text())
    plain, mup = found["moved"].values()
    assert found["widths"] == [16, 48] and np.shape(plain) == (2, 2, 3) and out.exists()
    assert plain[0] == mup[0] and np.all(np.array(mup[1])[:, 2] < np.array(plain[1])[:, 2])  # the base is the same, and muP moves the wide one less
    monkeypatch.setattr(sys, "argv", [*words, "--widths=16,40"])
    with pytest.raises(SystemExit, match="--widths names 40: heads have 16 numbers, so a width must be a multiple of 16"):
        coordinate_check.main()
