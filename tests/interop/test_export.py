"""An exported model gives the model's numbers for any batch, runs where only jax is, and nothing is written that does not."""

import json
import pathlib
import re
import subprocess
import sys

import jax.export
import numpy as np
import pytest

from igpt_jax import convert
from igpt_jax.interop import export as module
from igpt_jax.interop.export import export
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette

pytest.importorskip("flatbuffers", reason="needs the extra `export`")
GUIDE = pathlib.Path(__file__).parents[2] / "docs/guides/conversion.md"
COLOURS = Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32))
MODELS = {  # name -> (changes of the configuration, palette)
    "paper": ({}, COLOURS),
    "bert": ({"objective": "bert", "bias": True, "classes": 3}, grey_palette(16)),
    "prefix": ({"objective": "prefix", "position_encoding": "rotary", "qk_norm": True, "classes": 3}, grey_palette(16)),
    "levels": ({"tokens_per_pixel": 3, "positions": 48, "position_encoding": "axial", "activation": "swiglu"}, Palette.levels(16)),
    "bfloat16": ({"dtype": "bfloat16", "unroll": 3, "remat": "full"}, COLOURS),
    "block": ({"block": 2}, COLOURS),
}


def save(path, palette=COLOURS, **changes):
    """A checkpoint of random parameters: (folder, the loaded model)."""
    checkpoints.save_model(path, random_model(tiny(**changes)), palette, {}, step=9, class_names=("cat", "dog", "frog") if "classes" in changes else None)
    return path, checkpoints.load(path)


@pytest.mark.parametrize(
    ("changes", "palette"), [pytest.param(*model, marks=() if name == "paper" else pytest.mark.slow, id=name) for name, model in MODELS.items()]
)
def test_the_file_gives_the_models_numbers_for_every_batch(changes, palette, tmp_path, capsys):
    folder, pretrained = save(tmp_path / "run", palette, **changes)
    config = export(folder, tmp_path / "it.jaxexport")
    assert config == pretrained.model_config and "for cpu, cuda, tpu; on cpu it differs from the model by at most" in capsys.readouterr().err
    content, described = (tmp_path / "it.jaxexport").read_bytes(), json.loads((tmp_path / "it.jaxexport.json").read_text())
    exported, forward, random = jax.export.deserialize(bytearray(content)), jax.jit(pretrained.model), np.random.default_rng(1)
    for batch in (1, 5):
        codes = random.integers(0, 16, (batch, config.positions), np.int32)
        mask = None if config.causal else (random.random(codes.shape) < 0.5).astype(np.float32)
        found = exported.call(codes) if mask is None else exported.call(codes, mask)
        wanted = forward(codes, mask)
        features = jax.jit(pretrained.model.forward_features)(codes) if config.objective == "prefix" else wanted
        tolerance = 0.05 if config.dtype == "bfloat16" else 1e-5
        for name, array in (("logits", wanted.logits), ("features", features.features), ("class_logits", features.class_logits)):
            assert (name in found) == (array is not None) == (name in described["outputs"])
            if array is not None:
                np.testing.assert_allclose(found[name], array, atol=tolerance * float(np.abs(array).max()))
                assert [batch if size == "batch" else size for size in described["outputs"][name]["shape"]] == list(found[name].shape)
    inputs = dict(zip(described["inputs"], exported.in_avals, strict=True))
    assert {name: (str(aval.dtype), list(map(str, aval.shape))) for name, aval in inputs.items()} == {
        name: (each["dtype"], list(map(str, each["shape"]))) for name, each in described["inputs"].items()
    }
    assert described["class_names"] == (["cat", "dog", "frog"] if "classes" in changes else None) and described["image_size"] == pretrained.image_size


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "levels"])
def test_its_own_lines_run_it_where_there_is_only_jax(kind, tmp_path):
    """In a process of its own, in another folder, which can import neither this package nor flax."""
    changes, palette = MODELS[kind]
    folder, pretrained = save(tmp_path / "run", palette, **changes)
    (tmp_path / "served").mkdir()
    export(folder, tmp_path / "served/it.jaxexport", ["cpu"])
    described = json.loads((tmp_path / "served/it.jaxexport.json").read_text())
    size = pretrained.image_size
    pixels = np.random.default_rng(2).integers(0, 256, (3, size, size, 3), np.uint8)
    np.save(tmp_path / "served/pixels.npy", pixels)
    lines = ["import sys, numpy as np", "sys.modules |= dict.fromkeys(('igpt_jax', 'flax', 'orbax', 'optax'))", "pixels = np.load('pixels.npy')"]
    lines += [*described["use"], "np.savez('output.npz', codes=codes, **output)"]
    assert len(described["use"]) == 6  # one comment, five lines
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path / "served", env={"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "served/output.npz")
    np.testing.assert_array_equal(found["codes"], palette.encode(pixels).reshape(3, -1))
    wanted = pretrained(found["codes"])
    np.testing.assert_allclose(found["logits"], wanted.logits, atol=1e-4)
    np.testing.assert_allclose(found["features"], wanted.features, atol=1e-4)


@pytest.mark.parametrize("kind", [pytest.param(name, marks=() if name == "bert" else pytest.mark.slow) for name in ("paper", "bert", "levels")])
def test_the_lines_of_the_guide_run_every_kind_of_model(kind, tmp_path, monkeypatch):
    changes, palette = MODELS[kind]
    folder, pretrained = save(tmp_path / "run", palette, **changes)
    export(folder, tmp_path / "digits.jaxexport", ["cpu"])
    monkeypatch.chdir(tmp_path)
    size = pretrained.image_size
    names = {"pixels": np.random.default_rng(2).integers(0, 256, (3, size, size, 3), np.uint8)}
    (lines,) = (text for text in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL) if "deserialize" in text)
    exec(lines, names)
    np.testing.assert_array_equal(names["codes"], palette.encode(names["pixels"]).reshape(3, -1))
    wanted = pretrained(names["codes"])
    np.testing.assert_allclose(names["output"]["logits"], wanted.logits, atol=1e-4)
    np.testing.assert_allclose(names["output"]["features"], wanted.features, atol=1e-4)


def refusal(*arguments):
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as stopped:
        convert._main(["export", *map(str, arguments)])
    assert stopped.value.code.startswith("error: ") and "\n" not in stopped.value.code
    return stopped.value.code


def test_what_cannot_be_right_is_refused_in_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    folder, out = save(tmp_path / "run")[0], tmp_path / "it.jaxexport"
    assert "names 'gpu', 'metal': choose from cpu, cuda, tpu" in refusal(folder, out, "--platforms=cpu,gpu,metal")
    assert "--platforms=cuda,tpu lacks cpu, the platform of this machine" in refusal(folder, out, "--platforms=cuda,tpu")
    assert "names '': choose" in refusal(folder, out, "--platforms=")
    assert "ends in .jaxexport, not" in refusal(folder, tmp_path / "it.onnx")
    assert "must be a local file, not gs://bucket/it.jaxexport" in refusal(folder, "gs://bucket/it.jaxexport")
    assert "does not exist" in refusal(tmp_path / "nothing", out)
    (tmp_path / "it.jaxexport.json").write_text("mine")
    assert "it.jaxexport.json exists: give another DST, or --overwrite" in refusal(folder, out)
    (tmp_path / "it.jaxexport.json").unlink()
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    assert "the parameters take 0.0 GiB and a file of jax.export holds at most 2" in refusal(folder, out)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert "pip install 'igpt_jax[export]'" in refusal(folder, out)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_file_that_differs_from_the_model_is_not_written(tmp_path, monkeypatch):
    folder, out = save(tmp_path / "run")[0], tmp_path / "it.jaxexport"
    written = module._serialized(random_model(tiny(), seed=5), ["cpu"])
    monkeypatch.setattr(module, "_serialized", lambda model, platforms: written)
    assert "of the exported function differs from the model's by" in refusal(folder, out, "--platforms=cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
