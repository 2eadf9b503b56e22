"""The palette with which a run trains: one for the data, the work directory, a given file and the run before, or a refusal."""

import pathlib

import numpy as np
import pytest
from etils import epath

from igpt_jax import train
from igpt_jax.data import pipeline
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints, setup
from tests.data.samples import DIGITS, replace, write_codes
from tests.runs import grey_palette, recipe

OTHER = Palette(grey_palette().centers * 0.9)


@pytest.fixture
def codes(tmp_path):
    """The source of digits that were coded with the grey palette in the work directory `run`."""
    (tmp_path / "run/codes").mkdir(parents=True)
    write_codes(tmp_path / "run/codes", grey_palette())
    return f"codes:{tmp_path}/run/codes"


def same(palette, other):
    return np.array_equal(palette.centers, other.centers)


@pytest.mark.parametrize("other", [OTHER, grey_palette(9), Palette.levels(8)], ids=["colours", "number", "levels"])
def test_coded_data_need_their_palette_in_the_work_directory_or_none_there(tmp_path, codes, other):
    workdir, coded = epath.Path(tmp_path / "run"), pipeline.open_dataset(replace(DIGITS, source=codes), "train")
    assert same(setup.choose_palette("", coded, workdir), grey_palette())
    grey_palette().save(workdir / "palette.npy")
    assert same(setup.choose_palette("", coded, workdir), grey_palette())
    other.save(workdir / "palette.npy")
    with pytest.raises(ValueError, match=f"^{workdir}/palette.npy is not the palette of {codes}: write the codes again by [^\n]*, delete [^\n]*--workdir$"):
        setup.choose_palette("", coded, workdir)
    pictures = pipeline.open_dataset(DIGITS, "train")
    assert same(setup.choose_palette("", pictures, workdir), other)  # no codes: that of the work directory


def test_a_palette_that_the_recipe_names_replaces_that_of_the_work_directory(tmp_path, codes):
    workdir, coded = epath.Path(tmp_path / "run"), pipeline.open_dataset(replace(DIGITS, source=codes), "train")
    OTHER.save(workdir / "palette.npy")
    grey_palette().save(tmp_path / "given.npy")
    assert same(setup.choose_palette(str(tmp_path / "given.npy"), coded, workdir), grey_palette())


def test_arrays_of_another_program_are_not_to_be_written_again(tmp_path):
    np.save(tmp_path / "trX.npy", np.zeros((4, 64), np.int64))
    grey_palette().save(tmp_path / "kmeans_centers.npy")
    arrays = pipeline.open_dataset(replace(DIGITS, source=f"npy:{tmp_path}"), "all_train")
    (tmp_path / "run").mkdir()
    OTHER.save(tmp_path / "run/palette.npy")
    with pytest.raises(ValueError, match=f"is not the palette of npy:{tmp_path}: delete {tmp_path}/run/palette.npy to take the palette of the codes, or take"):
        setup.choose_palette("", arrays, epath.Path(tmp_path / "run"))


def test_a_run_on_codes_whose_palette_was_fitted_again_is_refused_at_its_start_and_when_it_continues(tmp_path, codes):
    workdir = tmp_path / "run"
    OTHER.save(workdir / "palette.npy")
    with pytest.raises(ValueError, match="write the codes again by igpt_jax.quantize --codes"):
        train.train(recipe(steps=2, data__source=codes), workdir)
    assert {path.name for path in pathlib.Path(workdir).iterdir()} == {"codes", "palette.npy"}
    (workdir / "palette.npy").unlink()
    train.train(recipe(steps=2, data__source=codes), workdir)
    OTHER.save(workdir / "palette.npy")
    with pytest.raises(ValueError, match=f"is not the palette of {codes}: delete {workdir}/palette.npy"):  # its codes are those of its checkpoint
        train.train(recipe(steps=3, data__source=codes), workdir)
    (workdir / "palette.npy").unlink()
    train.train(recipe(steps=3, data__source=codes), workdir)
    assert checkpoints.load(workdir).step == 3 and same(checkpoints.load(workdir).palette, grey_palette())
