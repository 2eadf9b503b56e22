"""Tiny real runs for the tests: a recipe of seconds, in this process or in one of its own."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from configs import digits
from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from igpt_jax.training.step import abstract_state

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT / "tests/data"


def recipe(module=digits, **changes):
    """The digits recipe (or a sister of it) at its smallest; `changes` are keys like model__layers=1."""
    config = module.get_config()
    small = {
        "palette__size": 8, "model__layers": 2, "model__width": 16, "model__heads": 2, "model__unroll": 2, "batch_size": 16, "steps": 12,
        "optim__warmup_steps": 2, "log_every": 1, "eval_every": 6, "save_every": 4,
    }  # fmt: skip
    for key, value in (small | changes).items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def grey_palette(colours: int = 8) -> Palette:
    return Palette(np.repeat(np.linspace(-1, 1, colours, dtype=np.float32)[:, None], 3, axis=1))


def make_workdir(path) -> pathlib.Path:
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    grey_palette().save(path / "palette.npy")
    return path


def arrays(workdir, config) -> list[np.ndarray]:
    """Every array of the newest checkpoint, optimiser included; the first is the step."""
    abstract = abstract_state(ModelConfig(**config.model), sharding.make_mesh(devices=jax.devices()[:1]))
    state, _ = checkpoints.restore_state(workdir, abstract)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def flags(config) -> list[str]:
    """Command-line overrides that turn the digits recipe into `config`."""
    base = digits.get_config()
    derived = ("model.vocabulary", "model.positions", "optim.steps")
    found = []
    for group, values in config.items():
        pairs = [(f"{group}.{key}", value, base[group][key]) for key, value in values.items()] if hasattr(values, "items") else [(group, values, base[group])]
        found += [f"--config.{key}={value}" for key, value, before in pairs if value != before and key not in derived]
    return found


def start(program: str, *arguments, devices: int = 1, **settings) -> subprocess.Popen:
    """Start `python -m igpt_jax.PROGRAM` in a process of its own with so many fake devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", program if "." in program else f"igpt_jax.{program}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def call(program: str, *arguments, devices: int = 1) -> tuple[int, str, str]:
    """Run a program to its end: (exit code, standard output, standard error)."""
    process = start(program, *arguments, devices=devices)
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error
