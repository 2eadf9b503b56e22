"""The numbers of a recipe: every one has a range, and what is outside is refused by name before anything is opened."""

import math
import re
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import base
from igpt_jax import cli
from igpt_jax.training import recipe
from tests.runs import recipe as small


def numbers():
    return {key: value for key, value in recipe.flatten(base.get_config().to_dict()).items() if isinstance(value, int | float) and not isinstance(value, bool)}


def test_every_number_of_a_recipe_has_a_range_and_no_other_has():
    assert recipe.RANGES.keys() == numbers().keys()
    recipe.check_numbers(base.get_config().to_dict())


@pytest.mark.parametrize("key", recipe.RANGES)
def test_what_is_outside_the_range_is_refused_by_name(key):
    whole, lowest, highest = recipe.RANGES[key]
    bad = [math.nan, math.inf, -math.inf, "3", None, -2, lowest - 1] + ([highest + 1] if math.isfinite(highest) else []) + ([lowest + 0.5] if whole else [])
    section, _, name = key.rpartition(".")
    for value in bad:
        with pytest.raises(ValueError, match=rf"^config\.{key} must be a (whole )?number.*, not {value!r}$"):
            recipe.check_numbers({section: {name: value}} if section else {name: value})
    for value in [lowest] + ([highest] if math.isfinite(highest) else []):
        recipe.check_numbers({section: {name: value}} if section else {name: value})


@pytest.mark.parametrize("name", ["log_every", "eval_every", "eval_images", "save_every", "keep_every", "max_consecutive_skips"])
def test_0_is_never_where_it_says_how_often(name):
    recipe.check_numbers({name: 0})


def test_a_number_of_a_new_key_is_finite_at_least():
    with pytest.raises(ValueError, match="config.new.key must be a number, not nan"):
        recipe.check_numbers({"new": {"key": math.nan}})


def test_a_continuation_is_refused_only_for_shapes_and_the_order_of_the_data():
    before = small().to_dict()
    refused = {"seed": 1, "batch_size": 8, "model__width": 32, "model__classes": 3, "data__validation": 0.2, "data__augment": "cifar", "data__seed": 1}
    for key, value in refused.items():
        with pytest.raises(ValueError, match=rf"run of another recipe: {key.replace('__', '.')} \S+ -> {value!r}. Take another"):
            recipe.check_continues("runs/a", before, small(**{key: value}).to_dict())
    taken = {"model__dtype": "bfloat16", "model__unroll": 1, "optim__beta2": 0.9, "loss__generative": 0.5, "mesh__data": 2, "palette__iterations": 5}
    recipe.check_continues("runs/a", before, small(steps=99, **taken).to_dict())
    recipe.check_continues("runs/a", before, before | {"new": {"key": 1}})
    assert recipe.differences(before, small(**taken).to_dict())["optim.beta2"] == (0.95, 0.9)


def test_a_run_from_before_the_keys_of_the_data_has_their_old_values():
    folder = small(data__source="folder:pictures").to_dict()
    old = folder | {"data": {key: value for key, value in folder["data"].items() if key not in ("view", "split_by")}}
    with pytest.raises(ValueError, match="another recipe: data.split_by 'position' -> 'name'. Take another"):
        recipe.check_continues("runs/a", old, folder)
    recipe.check_continues("runs/a", old, folder | {"data": folder["data"] | {"split_by": "position"}})


def test_former_names_of_keys_are_read_and_named_once(capsys):
    """Of a recipe that an older version wrote, and of a command line."""
    written = {"accumulate": 2, "skips": 5, "optim": {"spike": 1.5, "beta1": 0.9}}
    expected = {"optim": {"beta1": 0.9, "loss_spike_factor": 1.5}, "gradient_accumulation_steps": 2, "max_consecutive_skips": 5}
    assert recipe.with_new_keys(written) == expected and recipe.with_new_keys(expected) == expected and written["accumulate"] == 2
    assert "note: config.optim.spike of the run is now config.optim.loss_spike_factor" in capsys.readouterr().err.splitlines()
    assert recipe.with_new_keys({"skips": 5, "max_consecutive_skips": 3}) == {"max_consecutive_skips": 3} and capsys.readouterr()
    with pytest.raises(ValueError, match="config has no 'optim.spike': it is now config.optim.loss_spike_factor"):
        recipe.check_numbers({"optim": {"spike": 1.5}})  # of a recipe that unlocked itself
    assert cli.with_new_keys(['--config.optim["spike"]=2', "-config.model['width']=8"])[0] == "--config.optim.loss_spike_factor=2" and capsys.readouterr()
    words = cli.with_new_keys(["--config=configs/digits.py", "--config.accumulate=4", "--config.optim.spike", "2", "--config.skips=1", "accumulate=1"])
    assert words[1:] == ["--config.gradient_accumulation_steps=4", "--config.optim.loss_spike_factor", "2", "--config.max_consecutive_skips=1", "accumulate=1"]
    assert capsys.readouterr().err.splitlines()[1] == "note: config.optim.spike is now config.optim.loss_spike_factor"
    assert all(new in recipe.flatten(base.get_config().to_dict()) for new in cli.OLD_KEYS.values())


@pytest.mark.parametrize("window", [(5, 3), (0, 2), (3, 11), (2,), (1, 2, 3), (1.5, 2), (True, 2), ("",), ("10:12",), "3,5", 3])
def test_a_window_that_is_none_is_refused(window):
    wanted = "the first and the last step to trace, from 1 to config.steps, which is 10, as in --config.profile=10,12, or () for none"
    with pytest.raises(ValueError, match=re.escape(f"config.profile must be {wanted}, not {window!r}")):
        recipe.check_profile(window, 10)


@pytest.mark.parametrize(("words", "window"), [("3,5", (3, 5)), ("(3, 5)", (3, 5)), ("[3,5]", (3, 5)), ("1,10", (1, 10)), ("4,4", (4, 4)), ("()", ())])
def test_every_spelling_of_a_window_is_read(monkeypatch, words, window):
    monkeypatch.setattr(sys, "argv", ["train", f"--config.profile={words}"])  # where the flag looks for keys when it is defined
    values = flags.FlagValues()
    given = config_flags.DEFINE_config_dict("config", base.get_config(), flag_values=values)
    values(sys.argv)
    assert given.value.profile == window
    recipe.check_profile(given.value.profile, 10)
    recipe.check_profile(list(window), 10)  # as config.json has it
