"""Every recipe builds, has exactly the number of parameters in its docstring, and has every key that the programs need."""

import importlib
import pathlib
from functools import partial

import jax
import pytest

from igpt_jax.data.pipeline import DataConfig
from igpt_jax.model.transformer import ImageGPT, ModelConfig, parameter_count
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.step import LossConfig

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
COUNTS = {
    "base": 76_571_648,
    "s": 76_571_648,
    "m": 455_157_760,
    "l": 1_362_250_752,
    "xl": 6_810_875_904,
    "s_bert": 76_571_136,
    "m_bert": 455_156_736,
    "l_bert": 1_362_249_216,
    "digits": 400_512,
    "digits_bert": 400_448,
    "digits_finetune": 401_152,
    "cifar10": 9_968_128,
    "cifar10_finetune": 9_970_688,
    "cifar10_rgb": 9_772_288,
    "cifar10_16": 1_640_704,
    "cifar10_small": 328_320,
    "fashion_mnist": 1_679_616,
    "fashion_mnist_small": 249_472,
    "fashion_mnist_14": 211_840,
    "fashion_mnist_tiny": 38_144,
}


def recipe(name):
    return importlib.import_module(f"configs.{name}").get_config()


def count(config):
    return parameter_count(jax.eval_shape(partial(ImageGPT, ModelConfig(**config.model)), jax.random.key(0)))


def test_every_recipe_has_its_count_here():
    assert set(COUNTS) == {path.stem for path in CONFIGS.glob("*.py")} - {"__init__", "finetune"}  # whose model is that of a checkpoint


@pytest.mark.parametrize("name", COUNTS)
def test_recipe_builds_and_has_exactly_these_parameters(name):
    config = recipe(name)
    assert count(config) == COUNTS[name]
    DataConfig(**config.data), OptimConfig(**config.optim), LossConfig(**config.loss)
    documented = importlib.import_module(f"configs.{name}").__doc__
    assert name == "base" or f"{COUNTS[name]:,}" in documented


@pytest.mark.parametrize(("name", "parameters"), [("s", 76_571_648), ("m", 455_157_760), ("l", 1_362_250_752), ("xl", 6_801_438_720)])
def test_published_counts_are_those_at_1024_positions(name, parameters):
    config = recipe(name)
    config.data.image_size = 32
    assert count(config) == parameters


def test_image_and_palette_size_reach_the_model():
    config = recipe("digits")
    config.data.image_size, config.palette.size = 16, 8
    assert (config.model.positions, config.model.vocabulary) == (256, 8)


def test_no_recipe_adds_a_key_that_base_lacks():
    def keys(config, prefix=""):
        return {name for key, value in config.items() for name in (keys(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key})}

    for name in (*COUNTS, "finetune"):
        assert keys(recipe(name)) == keys(recipe("base"))
