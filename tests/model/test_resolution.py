"""Positions at another resolution: a place in the picture keeps its vector, equal sizes keep every bit, and what cannot be interpolated is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import igpt_jax
from igpt_jax import features
from igpt_jax.distributed import sharding
from igpt_jax.model.resolution import at_resolution
from igpt_jax.sampling import complete
from igpt_jax.training import checkpoints
from igpt_jax.training.evaluation import evaluate_checkpoint
from tests.models import random_model, tiny, to_nested
from tests.runs import grey_palette

DATA = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
LOSS = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "run"
    checkpoints.save_model(path, random_model(tiny()), grey_palette(16), {"data": DATA, "loss": LOSS})
    return path


def centres(size):
    """The middle of each pixel as a share of the picture's side."""
    return (np.arange(size) + 0.5) / size


def ramp(size, tokens, width=32):
    """A table that is linear in row and column of the picture, with another slope for each token of a pixel and each entry of the vector."""
    draw = np.random.default_rng(0).standard_normal((3, tokens, width))
    row, column = (axis[:, :, None, None] for axis in np.meshgrid(centres(size), centres(size), indexing="ij"))
    return (draw[0] + draw[1] * row + draw[2] * column).astype(np.float32)  # [size, size, tokens, D]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("size", [4, 12, 13, 20])
def test_a_linear_ramp_stays_one_between_the_outermost_pixels(size, tokens):
    """Each token of a pixel has its own ramp, so that a table of one that reached another would show; rows and columns have other slopes."""
    model = random_model(tiny(tokens_per_pixel=tokens, positions=64 * tokens))
    model.position_embedding[...] = jnp.asarray(ramp(8, tokens).reshape(64 * tokens, -1))
    resized = at_resolution(model, size)
    assert resized.config.positions == size * size * tokens and resized.config.rows == size
    inside = (centres(size) >= centres(8)[0]) & (centres(size) <= centres(8)[-1])
    inside &= (np.arange(size) > 0) & (np.arange(size) < size - 1) if size < 8 else True  # a pixel of a smaller picture is an average of several
    found = np.asarray(resized.position_embedding[...]).reshape(size, size, tokens, -1)
    np.testing.assert_allclose(found[inside][:, inside], ramp(size, tokens)[inside][:, inside], atol=1e-5)
    assert inside.sum() >= size // 2


def test_beyond_the_outermost_pixels_the_table_is_constant():
    table = np.asarray(at_resolution(random_model(tiny()), 24).position_embedding[...]).reshape(24, 24, -1)
    first = random_model(tiny()).position_embedding[...].reshape(8, 8, -1)
    np.testing.assert_allclose(table[0, 0], first[0, 0], atol=1e-6)  # the corner's centre lies outside the corner of the smaller grid
    np.testing.assert_allclose(table[1, 1], first[0, 0], atol=1e-6)  # 24 = 3 * 8: the same centre
    np.testing.assert_allclose(table[-2, 1], first[-1, 0], atol=1e-6)


def test_a_smaller_picture_averages_over_the_pixels_that_become_one():
    """A row of 4 pixels of 8 lies between rows 2 and 3 for its second pixel; rows 1 to 4 have weights 1, 3, 3, 1 of 8, and those of columns likewise."""
    model = random_model(tiny())
    model.position_embedding[...] = jnp.zeros((64, 32)).at[4 * 8 + 3].set(1.0)
    found = at_resolution(model, 4).position_embedding[...].reshape(4, 4, 32)
    np.testing.assert_allclose(found[1, 1], 3 / 64, atol=1e-6)
    np.testing.assert_allclose(found[2, 2], 3 / 64, atol=1e-6)
    np.testing.assert_allclose(found[2, 1], 9 / 64, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 3])
def test_axial_positions_are_interpolated_along_their_axes(tokens):
    model = random_model(tiny(position_encoding="axial", tokens_per_pixel=tokens, positions=64 * tokens))
    resized = at_resolution(model, 24)
    np.testing.assert_allclose(resized.row_embedding[...][1::3], model.row_embedding[...], atol=1e-6)
    columns, before = (m.column_embedding[...].reshape(-1, tokens, 32) for m in (resized, model))
    np.testing.assert_allclose(columns[1::3], before, atol=1e-6)
    np.testing.assert_allclose(columns[2], before[0] * 2 / 3 + before[1] / 3, atol=1e-6)


def test_rotary_positions_have_nothing_to_interpolate_and_offsets_keep_their_meaning():
    model = random_model(tiny(position_encoding="rotary"))
    resized = at_resolution(model, 12)
    for ours, theirs in zip(jax.tree.leaves(resized), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    codes = np.random.default_rng(0).integers(0, 16, (1, 144))
    np.testing.assert_allclose(resized(codes[:, :8]).logits, model(codes[:, :8]).logits, atol=1e-5)  # the first row alone: the same offsets
    assert np.abs(resized(codes[:, :64]).logits - model(codes[:, :64]).logits).max() > 1e-3


def test_equal_sizes_change_no_bit(saved, capsys):
    model = random_model(tiny())
    assert at_resolution(model, 8) is model
    loaded, same = igpt_jax.load(saved), igpt_jax.load(saved, image_size=8)
    assert same.config == loaded.config and same.model_config == loaded.model_config and "interpolated" not in capsys.readouterr().err
    for ours, theirs in zip(jax.tree.leaves(same.model), jax.tree.leaves(loaded.model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("changes", [{"objective": "bert"}, {"objective": "prefix", "classes": 3}, {"position_encoding": "axial", "bias": True}])
def test_all_else_is_kept_on_one_device_and_on_eight(changes, tmp_path, capsys):
    model = random_model(tiny(**changes))
    checkpoints.save_model(tmp_path, model, grey_palette(16), {})
    codes, found = np.random.default_rng(0).integers(0, 16, (8, 144)), []
    for mesh in (None, sharding.make_mesh(2, 2, 2)):
        loaded = igpt_jax.load(tmp_path, mesh=mesh, image_size=12)
        assert "positions were interpolated: they go from 8 x 8 to 12 x 12 pixels" in capsys.readouterr().err
        before, after = to_nested(model), to_nested(loaded.model)
        tables = {name for name in before if name.endswith("_embedding") and before[name].shape != after[name].shape}
        assert tables == ({"row_embedding", "column_embedding"} if "position_encoding" in changes else {"position_embedding"})
        for name in before.keys() - tables:
            jax.tree.map(np.testing.assert_array_equal, before[name], after[name])
        with jax.set_mesh(loaded.mesh):
            found.append(np.asarray(loaded(jax.device_put(codes, sharding.batch_sharding(loaded.mesh))).logits))
        assert all(leaf.sharding.mesh == loaded.mesh for leaf in jax.tree.leaves(loaded.model))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_a_larger_picture_is_completed_and_evaluated(saved, capsys):
    made = complete.complete(igpt_jax.load(saved, image_size=10), [np.zeros((30, 30, 3), np.uint8)], completions=1)
    assert made.pictures.shape == (1, 1, 10, 10, 3)
    result = evaluate_checkpoint(saved, limit=4, image_size=10)
    assert (result["images"], result["image_size"]) == (4, 10) and np.isfinite(result["nats_per_pixel"])
    assert "image_size" not in evaluate_checkpoint(saved, limit=4)
    assert capsys.readouterr().err.count("interpolated") == 2


@pytest.mark.slow
def test_features_at_another_resolution_are_known_as_those_of_the_checkpoint(saved, tmp_path, capsys):
    """`probe` compares the checksum of the stored parameters; the resolution stands beside it."""
    assert features.main([f"--checkpoint={saved}", f"--out={tmp_path}", "--image-size=10", "--splits=test", "--limit=4"]) == 0
    described = json.loads((tmp_path / "features.json").read_text())
    assert described["checksum"] == checkpoints.identify(saved)[2] and described["data"]["image_size"] == 10
    assert features.main([f"--checkpoint={saved}", f"--out={tmp_path}", "--splits=test", "--limit=4"]) == 1  # at 8 x 8 they are others
    assert "image_size" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, -8, 1025, 8.0, "8", True])
def test_what_is_no_resolution_is_refused(size, saved):
    with pytest.raises(ValueError, match="image_size must be a whole number of pixels from 1 to 1024, not"):
        igpt_jax.load(saved, image_size=size)


def test_positions_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="the model's 60 positions are no square image, so they cannot be interpolated to 12 x 12"):
        at_resolution(random_model(tiny(positions=60)), 12)
