"""A run packed as one file: what comes back is the run's model in 16 bits, without the machine's paths; numbers that 16 bits cannot hold are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import igpt_jax
from igpt_jax.interop.pack import pack
from igpt_jax.training import checkpoints, model_file
from tests.models import random_model, tiny
from tests.runs import call, grey_palette
from tests.training.test_model_file import MODELS

DATA = {
    "source": "npz:/home/me/data", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "/home/me/tfds", "workers": 3, "seed": 0,
    "view": "squash",
}  # fmt: skip
HISTORY = [
    {"step": 4, "changes": {"data.source": ["npz:/home/me/old", "npz:/home/me/data"]}},
    {"step": 5, "changes": {"data.workers": [0, 3], "optim.learning_rate": [0.1, 0.2]}},
]
RECIPE = {"data": DATA, "seed": 7, "palette": {"size": 16, "path": "/home/me/palette.npy"}, "converted_from": "/home/me/model.ckpt-1", "history": HISTORY}


def save(path, model, palette=None, recipe=RECIPE, **options):
    checkpoints.save_model(path, model, palette or grey_palette(16), recipe, step=9, **options)
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("changes", "palette"), MODELS.values(), ids=MODELS)
def test_every_kind_of_model_comes_back_rounded(tmp_path, changes, palette, dtype):
    if dtype != "float16" and changes not in ({}, {"classes": 3, "class_layer": 1}):
        return
    model = random_model(tiny(**changes))
    names = ("cat", "dog", "frog") if "classes" in changes else None
    pack(save(tmp_path / "run", model, palette, class_names=names), tmp_path / "new" / "it.safetensors", dtype)
    loaded = igpt_jax.load(tmp_path / "new" / "it.safetensors")
    assert loaded.model_config == model.config and loaded.step == 9 and loaded.class_names == names
    np.testing.assert_array_equal(loaded.palette.centers, palette.centers)
    for ours, theirs in zip(jax.tree.leaves(loaded.model), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(jnp.dtype(dtype)).astype(np.float32))
    assert loaded.checksum == checkpoints.checksum(checkpoints.to_nested(loaded.model))
    pack(tmp_path / "new" / "it.safetensors", tmp_path / "again.safetensors", dtype)
    assert igpt_jax.load(tmp_path / "again.safetensors").checksum == loaded.checksum


@pytest.mark.parametrize(
    ("source", "data", "kept"),
    [
        ("npz:/home/me/data", None, ""), ("npz:/home/me/data", "tfds:cifar10", "tfds:cifar10"), ("folder:pictures", None, ""), ("digits", None, "digits"),
        ("tfds:cifar10", None, "tfds:cifar10"), ("tfds:cifar10", "digits", "digits"), ("", None, ""), ("", "digits", "digits"),
        ("tfds:a*1 + digits*2", None, "tfds:a*1 + digits*2"), ("tfds:a*1 + npz:/home/me/data*2", None, ""), ("hf:owner/name", None, "hf:owner/name"),
        ("hf:/home/me/data", None, ""),
    ],
)  # fmt: skip
def test_the_recipe_keeps_what_means_something_elsewhere(tmp_path, capsys, source, data, kept):
    run = save(tmp_path / "run", random_model(tiny()), recipe=RECIPE | {"data": DATA | {"source": source}})
    pack(run, tmp_path / "it.safetensors", data=data)
    recipe = igpt_jax.load(tmp_path / "it.safetensors").config
    expected = DATA | {"source": kept, "directory": "", "workers": 0}
    assert {key: recipe["data"][key] for key in expected} == expected
    assert recipe["seed"] == 7 and recipe["converted_from"] == "model.ckpt-1"
    assert recipe["history"] == [{"step": 5, "changes": {"optim.learning_rate": [0.1, 0.2]}}]
    content = (tmp_path / "it.safetensors").read_bytes()
    assert b"/home/me" not in content and str(tmp_path).encode() not in content
    assert ("is a place on this machine and is left out" in capsys.readouterr().err) == (bool(source) and not kept)


def test_numbers_that_16_bits_cannot_hold_are_refused(tmp_path):
    def packed(name, change, **options):
        model = random_model(tiny())
        nested = checkpoints.to_nested(model)
        nested["blocks"]["mlp_in"] = change(nested["blocks"]["mlp_in"])
        run = save(tmp_path / name, checkpoints.from_nested(nested, model))
        pack(run, tmp_path / f"{name}.safetensors", **options)
        return np.asarray(igpt_jax.load(tmp_path / f"{name}.safetensors").model.blocks.mlp_in[...])

    with pytest.raises(ValueError, match=r"blocks.mlp_in has numbers up to 7e\+04, above the largest of float16, 6.55e\+04: use --dtype=bfloat16$"):
        packed("large", lambda array: array.at[0, 0, 0].set(7e4))
    assert packed("wide", lambda array: array.at[0, 0, 0].set(7e4), dtype="bfloat16").max() == pytest.approx(7e4, rel=0.004)
    with pytest.raises(ValueError, match=r"float16 changes blocks.mlp_in by \d+% of its norm, its numbers are at most .*e-0\d: use --dtype=bfloat16$"):
        packed("small", lambda array: array * 1e-8)
    assert packed("narrow", lambda array: array * 1e-8, dtype="bfloat16").max() > 0
    with pytest.raises(ValueError, match=r"above the largest of bfloat16, 3.39e\+38: use --dtype=float32$"):
        packed("largest", lambda array: array.at[0, 0, 0].set(3.4e38), dtype="bfloat16")
    for number in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"blocks.mlp_in has 2 of 12,288 numbers that are not finite: pack an earlier checkpoint$"):
            packed(f"not_finite_{number}", lambda array, number=number: array.at[0, 0, :2].set(number))
    assert not packed("zero", lambda array: 0 * array).any()
    assert not list(tmp_path.glob("large*.safetensors")) + list(tmp_path.glob(".*"))


def test_a_destination_that_cannot_be_right_is_refused_before_the_run_is_read(tmp_path):
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    for destination, options, message in (
        ("it.npz", {}, "DST is one file whose name ends in .safetensors, not .*it.npz"),
        ("there.safetensors", {}, "there.safetensors exists: give another DST, or --overwrite"),
        ("it.safetensors", {"data": "npz:/home/me/data"}, "--data=npz:/home/me/data is no source that every machine can have: give digits or tfds:NAME"),
        ("it.safetensors", {"data": "tfds:"}, "--data=tfds: is no source"),
        ("it.safetensors", {"dtype": "int8"}, "dtype 'int8' is none of float16, bfloat16, float32"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            pack(tmp_path / "nothing", tmp_path / destination, **options)
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    pack(save(tmp_path / "run", random_model(tiny())), tmp_path / "there.safetensors", overwrite=True)
    assert igpt_jax.load(tmp_path / "there.safetensors").step == 9


@pytest.mark.slow
def test_the_program_packs_and_every_program_takes_the_file(tmp_path):
    loss = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}
    run = save(tmp_path / "run", random_model(tiny()), recipe=RECIPE | {"loss": loss, "data": DATA | {"source": "digits"}})
    file = tmp_path / "it.safetensors"
    code, out, error = call("convert", "pack", str(run), str(file))
    assert code == 0 and f"wrote {file}: autoregressive, 3 layers" in out and "step 9, float16, 0.08 MiB" in error, error
    code, out, error = call("evaluate", f"--checkpoint={file}", "--limit=20")
    assert code == 0 and json.loads(out)["checkpoint"] == str(file), error
    code, out, error = call("features", f"--checkpoint={file}", f"--out={tmp_path / 'features'}", "--limit=40")
    assert code == 0, error
    code, out, error = call("probe", f"--features={tmp_path / 'features'}", f"--checkpoint={file}")
    assert code == 0, error
    code, out, error = call("convert", "to-hf", str(file), str(tmp_path / "hf"))
    assert code == 0 and (tmp_path / "hf" / "model.safetensors").exists(), error
    pack(save(tmp_path / "other", random_model(tiny(), seed=3), recipe=RECIPE | {"data": DATA | {"source": "digits"}}), file, overwrite=True)
    code, _, error = call("probe", f"--features={tmp_path / 'features'}")
    assert code == 1 and f"write the features again with python -m igpt_jax.features --checkpoint={file}" in error
    assert model_file.read(file)[0]["version"] == igpt_jax.__version__
