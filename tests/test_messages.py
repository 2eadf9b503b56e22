"""Messages name extras that exist, in one wording; results that hold arrays are printed as one line."""

import configparser
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax import extras, shapes
from igpt_jax.inspection.batches import Batch
from igpt_jax.inspection.lens import LogitLens
from igpt_jax.inspection.maps import PixelMap
from igpt_jax.model.transformer import ImageGPT, Output
from igpt_jax.palette.palette import Palette
from igpt_jax.probing import results
from igpt_jax.sampling.complete import Completions
from igpt_jax.training.checkpoints import Pretrained
from tests.layout import PACKAGE, ROOT
from tests.models import tiny

PLAIN = {"igpt_jax", "scikit-learn", "grain", "torch", "safetensors"}  # what messages install by its own name


def test_each_extra_of_a_message_exists_and_its_commands_stand_in_one_place():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        named |= set(re.findall(r"""install\(['"](\w+)['"]\)""", text))
        if path.name != "extras.py":
            assert set(re.findall(r"pip install ([^\s,\"]+)", text)) <= PLAIN, path
    assert {"demo", "hub", "convert", "export", "wandb", "datasets", "wds", "tfds"} <= named <= set(setup["options.extras_require"])
    assert "pip install 'igpt_jax[demo]'" in extras.install("demo") and "pip install -e '.[demo]'" in extras.install("demo")


def test_results_are_printed_as_one_line_of_types_and_shapes():
    many, small = np.zeros((2, 4, 8, 8, 3), np.uint8), np.zeros((3, 2), np.float32)
    made = Completions(many, many[..., 0].astype(np.int32), many[0], many[0], many[0], many[0, ..., 0] > 0)
    assert repr(made).startswith("Completions(pictures=uint8 [2, 4, 8, 8, 3], codes=int32 [2, 4, 8, 8], given=uint8 [4, 8, 8, 3]")
    assert repr(made).endswith("missing=bool [4, 8, 8], survivors=None)")
    output = Output(jnp.zeros((1, 64, 16)), jnp.zeros((3, 1, 8)), jnp.zeros((3, 1, 8)), cache=[(jnp.zeros(2), jnp.zeros(2))] * 12)
    assert repr(output).startswith("Output(logits=float32 [1, 64, 16], features=float32 [3, 1, 8]") and repr(output).endswith("... 12 in all])")
    held = [LogitLens(small, small), PixelMap(small, small), Batch(small, None), results.Linear(small, small, small, small), results.Outcome({"C": 1}, {})]
    held.append(results.Predictions(small, {layer: small for layer in range(9)}, None, {}, None, None, {}, ["a"] * 1000))
    for one in (made, output, *held):
        assert "\n" not in repr(one) and len(repr(one)) < 400 and type(one).__name__ in repr(one) and "array(" not in repr(one), one
    assert "layers={0: float32 [3, 2], 1: float32 [3, 2], 2: float32 [3, 2], ... 9 in all}" in repr(held[-1])


@pytest.mark.parametrize(("tokens", "colours"), [(1, "16 colours"), (3, "16 levels of each channel")])
def test_a_model_and_a_palette_are_printed_as_one_line(tokens, colours):
    config = tiny(layers=2, width=16, heads=2, vocabulary=16, positions=16 * tokens, tokens_per_pixel=tokens)
    palette = Palette.levels(16) if tokens == 3 else Palette(np.linspace(-1, 1, 48).reshape(16, 3))
    model = ImageGPT(config, jax.random.key(0))
    shown = repr(Pretrained(model, palette, {}, 7, "runs/x/checkpoints/7", ema=True))
    assert shown.startswith("Pretrained('runs/x/checkpoints/7', step 7, moving average: autoregressive, 2 layers of width 16, ")
    assert shown.endswith(f"parameters, 4 x 4 pixels in {colours})") and repr(palette) == f"Palette({colours})"


def test_a_result_inside_a_result_is_described_too():
    assert "nats=float32 [2]" in shapes.describe(Batch(LogitLens(np.zeros(2, np.float32), None), None))
