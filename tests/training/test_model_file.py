"""A model in one file: every kind of model comes back, names of shipped models, and one line for every file that cannot be used."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

import igpt_jax
from igpt_jax.distributed import sharding
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints, model_file, trees
from tests.models import random_model, tiny
from tests.runs import grey_palette

MODELS = {  # name -> (changes of the configuration, palette)
    "paper": ({}, grey_palette(16)),
    "bert": ({"objective": "bert"}, grey_palette(16)),
    "prefix": ({"objective": "prefix"}, grey_palette(16)),
    "axial": ({"position_encoding": "axial"}, grey_palette(16)),
    "rotary": ({"position_encoding": "rotary", "qk_norm": True}, grey_palette(16)),
    "swiglu": ({"activation": "swiglu"}, grey_palette(16)),
    "bias": ({"bias": True, "activation": "swiglu"}, grey_palette(16)),
    "classes": ({"classes": 3, "class_layer": 1}, grey_palette(16)),
    "levels": ({"tokens_per_pixel": 3, "positions": 3 * 64}, Palette.levels(16)),
    "colours": ({"vocabulary": 7}, Palette(np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32))),
}


def write(path, model, palette, /, **changes):
    nested = jax.tree.map(np.asarray, checkpoints.to_nested(model))
    meta = {"model": dataclasses.asdict(model.config), "config": {"seed": 7}, "step": 3, "checksums": {"model": checkpoints.checksum(nested)}}
    model_file.write(path, nested, palette.centers, meta | changes)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "tiny.safetensors", random_model(tiny()), grey_palette(16))


@pytest.mark.parametrize(("changes", "palette"), MODELS.values(), ids=MODELS)
def test_every_kind_of_model_comes_back_on_one_device_and_on_eight(tmp_path, changes, palette):
    model = random_model(tiny(**changes))
    path = write(tmp_path / "it.safetensors", model, palette, class_names=["a", "b", 3] if "classes" in changes else None)
    for mesh in (None, sharding.make_mesh(2, 2, 2)):
        loaded = igpt_jax.load(path, mesh=mesh)
        assert loaded.model_config == model.config and (loaded.step, loaded.name, loaded.path) == (3, "it", str(path)) and loaded.config == {"seed": 7}
        assert loaded.class_names == (("a", "b", 3) if "classes" in changes else None)
        np.testing.assert_array_equal(loaded.palette.centers, palette.centers)
        for ours, theirs in zip(jax.tree.leaves(loaded.model), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == np.float32 and len(ours.sharding.device_set) == (8 if mesh else 1)
        assert checkpoints.identify(path) == (str(path), 3, checkpoints.checksum(checkpoints.to_nested(loaded.model)))


def test_a_model_is_computed_as_asked(file):
    assert igpt_jax.load(file, dtype="bfloat16").model_config.dtype == "bfloat16"


def test_every_changed_bit_is_noticed(file, tmp_path):
    """In the numbers, the palette, the recipe, the names, the checksum itself: no bit of the file is free, but for the blanks that fill its header."""
    content = file.read_bytes()
    blanks = range(8 + int.from_bytes(content[:8], "little") - 8, 8 + int.from_bytes(content[:8], "little"))
    places = np.random.default_rng(0).choice(len(content), 150, replace=False).tolist() + list(range(0, blanks.start, 29))
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        if place not in blanks:
            with pytest.raises(ValueError, match="damaged.safetensors") as error:
                igpt_jax.load(tmp_path / "damaged.safetensors")
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0, 0.0001, 0.05, 0.5, 0.9999])
def test_a_truncated_file_is_one_line(file, tmp_path, share):
    content = file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut.safetensors, [\d,]+ bytes, is cut off or no file of safetensors: [^\n]+$"):
        igpt_jax.load(tmp_path / "cut.safetensors")


def test_what_is_no_model_of_this_version_is_said(file, tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3)}, other)
    with pytest.raises(ValueError, match=r"without a model of igpt_jax: `python -m igpt_jax.convert hf` converts"):
        igpt_jax.load(other)
    with monkeypatch.context() as later:
        later.setattr(model_file, "FORMAT", 2)
        write(other, random_model(tiny()), grey_palette(16))
    with pytest.raises(ValueError, match="has format 2 of a model's file and this version reads 1: use the version of igpt_jax that wrote it, or a later one"):
        igpt_jax.load(other)
    write(other, random_model(tiny()), grey_palette(16), model=dataclasses.asdict(tiny()) | {"convolutions": 3})
    with pytest.raises(ValueError, match=r"options that this version does not have \(convolutions\): use the version"):
        igpt_jax.load(other)
    write(other, random_model(tiny()), grey_palette(16), model=dataclasses.asdict(tiny(width=64)))
    with pytest.raises(ValueError, match="does not hold the parameters of its model: blocks.attention_norm, "):
        igpt_jax.load(other)


@pytest.fixture
def package(file, tmp_path, monkeypatch):
    """A package that ships the model `small`, and an empty working directory."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.safetensors").write_bytes(file.read_bytes())
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(model_file, "FOLDER", tmp_path / "models")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_shipped_model_is_loaded_by_its_name(package, capsys):
    assert model_file.shipped() == ["small"]
    loaded = igpt_jax.load("small")
    assert (loaded.path, loaded.name, loaded.step) == ("small", "small", 3) and checkpoints.exists("small") and not checkpoints.exists("large")
    assert checkpoints.identify("small") == ("small", 3, loaded.checksum)
    assert capsys.readouterr().err == ""
    for name in ("large", "small.safetensors", "models/small", "SMALL"):
        known = r"the name of a model in the package \(small\), or hf:OWNER/NAME"
        with pytest.raises(FileNotFoundError, match=f"^checkpoint {name} does not exist: give .*, {known}"):
            igpt_jax.load(name)


def test_a_directory_or_a_file_of_that_name_has_precedence_and_is_named(package, capsys):
    checkpoints.save_model("small", random_model(tiny(), seed=5), grey_palette(16), {}, step=8)
    assert igpt_jax.load("small").step == 8 and checkpoints.identify("small")[1] == 8
    shipped = f"the model of that name in the package is {model_file.FOLDER}/small.safetensors"
    note = f"note: small is read from the directory of that name in {os.getcwd()}; {shipped}\n"
    assert capsys.readouterr().err == 2 * note
    assert igpt_jax.load(model_file.FOLDER / "small.safetensors").step == 3
    epath.Path("small").rmtree()
    pathlib.Path("small").write_bytes(b"mine")
    with pytest.raises(ValueError, match="^small, 4 bytes, is cut off or no file of safetensors"):
        igpt_jax.load("small")
    assert "note: small is read from the file of that name" in capsys.readouterr().err


def test_a_package_without_models_names_none(package, monkeypatch):
    monkeypatch.setattr(model_file, "FOLDER", package / "nothing")
    with pytest.raises(FileNotFoundError, match=r"a directory or file written by igpt_jax.convert, or hf:OWNER"):
        igpt_jax.load("small")


def test_the_file_is_a_plain_one_of_safetensors(file):
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        assert set(opened.keys()) == {"palette"} | {f"model.{name}" for name in trees.to_flat(random_model(tiny()))}
        assert json.loads(opened.metadata()["meta"])["model"]["width"] == 32


@pytest.mark.parametrize("name", model_file.shipped())
def test_the_models_of_the_package_are_whole_small_and_have_a_card(name):
    path = model_file.FOLDER / f"{name}.safetensors"
    assert path.stat().st_size <= 8 * 2**20 and (model_file.FOLDER / f"{name}.md").exists()
    loaded = igpt_jax.load(name)
    assert loaded.checksum == checkpoints.checksum(checkpoints.to_nested(loaded.model)) and loaded.palette.size == loaded.model_config.vocabulary
    assert loaded.config["data"]["source"].startswith("tfds:") and "/root" not in json.dumps(loaded.config)


def test_the_package_ships_the_model_that_the_page_begins_with():
    from igpt_jax import demo

    assert demo.FIRST_MODEL in model_file.shipped()
