"""What only a GPU can show: `JAX_PLATFORMS=cuda,cpu python -m pytest -n 0 tests/test_gpu.py`.

cuDNN's attention against the reference, float32 that is float32, and logits that are those of a CPU.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.model import attention
from igpt_jax.model.cached_attention import cached_attention
from igpt_jax.model.transformer import dense, normalize
from tests.models import random_model, tiny

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("positions", "size"), [(1024, 64), (1024, 128), (1024, 96), (196, 64)])  # S, M, L, and no multiple of 64
def test_cudnn_attention_is_the_reference(causal, positions, size):
    """bfloat16 in, float32 softmax: errors of both against float64's own rounding of the inputs are of one bfloat16 unit."""
    q, k, v, g = (jax.random.normal(key, (2, positions, 4, size), jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4))

    def run(implementation, *arrays):
        def outputs(q, k, v):
            return attention.attention(q, k, v, causal, implementation)

        made, backward = jax.vjp(outputs, *arrays)
        return [np.asarray(x, np.float32) for x in (made, *backward(g.astype(made.dtype)))]

    exact = run("reference", *(x.astype(jnp.float32) for x in (q, k, v)))
    for name, wanted, found in zip(("output", "q", "k", "v"), exact, run("cudnn", q, k, v), strict=True):
        assert np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max(), name
        assert np.abs(found - wanted).mean() <= 0.004 * np.abs(wanted).mean() + 1e-3, name


def test_auto_is_cudnn_in_half_precision():
    assert attention.resolve("auto", "gpu", "bfloat16", 1024) == "cudnn"
    q = jnp.ones((1, 128, 2, 64), jnp.bfloat16)
    assert "cudnn" in jax.jit(lambda q: attention.attention(q, q, q, True)).lower(q).compile().as_text()


def test_float32_means_float32():
    config = tiny(dtype="float32")
    x, w = (np.random.default_rng(seed).standard_normal((256, 256)).astype(np.float32) for seed in (0, 1))
    assert np.abs(np.asarray(dense(jnp.asarray(x), jnp.asarray(w), config)) - x.astype(np.float64) @ w).max() < 1e-4


def test_logits_are_those_of_a_cpu():
    model = random_model(tiny(dtype="float32"))
    codes = np.random.default_rng(0).integers(model.config.vocabulary, size=(2, model.config.positions))
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        wanted = jax.jit(lambda m, c: m(c).logits)(jax.device_put(model, cpu), codes)
    found = jax.jit(lambda m, c: m(c).logits)(model, codes)
    assert np.abs(np.asarray(found) - np.asarray(wanted)).max() < 2e-5


@pytest.mark.parametrize("size", [64, 128, 96])  # S, M, L
def test_the_kernel_of_a_sampling_step_is_xlas(size):
    """bfloat16 in and out: one unit of it between them. The cache is equal to the bit."""
    keys = jax.random.split(jax.random.key(0), 3)
    new = jax.random.normal(keys[0], (3, 3, 5, size), jnp.bfloat16)
    cache = tuple(jax.random.normal(key, (3, 5, 1024, size), jnp.bfloat16) for key in keys[1:])
    run = jax.jit(cached_attention, static_argnames="kernel")
    for position in (0, 1, 127, 128, 500, 1023):
        wanted, filled = run(new, cache, jnp.int32(position), kernel=False)
        found, written = run(new, cache, jnp.int32(position), kernel=True)
        assert np.abs(np.asarray(found - wanted, np.float32)).max() <= 0.02 * np.abs(np.asarray(wanted, np.float32)).max(), position
        for ours, theirs in zip(written, filled, strict=True):
            np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))


def test_logits_of_a_sampling_step_are_those_of_the_whole_image():
    model = random_model(tiny(dtype="bfloat16", width=128))
    codes = np.random.default_rng(0).integers(model.config.vocabulary, size=(2, model.config.positions))
    wanted = np.asarray(jax.jit(lambda m, c: m(c).logits)(model, codes))
    caches, step = model.empty_caches(2), jax.jit(lambda m, *args: m.decode(*args))
    for position in range(model.config.positions):
        found, caches = step(model, codes[:, position - 1], position, caches)
        assert np.abs(np.asarray(found) - wanted[:, position]).max() < 0.05 * np.abs(wanted).max(), position


def test_normalize_backward():
    x, g = (jax.random.normal(jax.random.key(seed), (4, 32, 64)) for seed in (0, 2))

    def plain(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)

    wanted, found = (jax.vjp(function, x)[1](g)[0] for function in (plain, normalize))
    assert np.abs(np.asarray(found) - np.asarray(wanted)).max() < 2e-5


def train_on_the_gpu(workdir, config):
    from tests.runs import ROOT, flags

    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cuda,cpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", "igpt_jax.train", "--config=configs/digits.py", f"--workdir={workdir}", *flags(config), "--config.deterministic"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("attention", ["reference", "cudnn"])
def test_killed_and_resumed_is_bit_equal_where_the_recipe_is_deterministic(tmp_path, attention):
    pytest.importorskip("ml_collections", reason="recipes need ml_collections")
    from tests.runs import arrays, make_workdir, recipe

    settings = {"model__dtype": "bfloat16", "model__width": 64, "model__heads": 1, "model__attention": attention}
    config = recipe(steps=60, save_every=10, eval_every=60, **settings)
    whole, broken = make_workdir(tmp_path / "whole"), make_workdir(tmp_path / "broken")
    process = train_on_the_gpu(whole, config)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    process = train_on_the_gpu(broken, config)
    for line in process.stdout:
        if line.startswith("step 25/"):
            break
    process.kill()
    process.communicate()
    assert not (broken / "result.json").exists()
    process = train_on_the_gpu(broken, config)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 0 and "from step" in said, said
    for ours, theirs in zip(arrays(whole, config), arrays(broken, config), strict=True):
        np.testing.assert_array_equal(ours, theirs)
