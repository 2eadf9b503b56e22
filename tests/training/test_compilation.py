"""What a recipe leaves open, decided by the memory that the step needs."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.training import compilation, loop
from igpt_jax.training.compilation import Step, decide
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.setup import Setup
from igpt_jax.training.step import LossConfig
from tests.runs import make_workdir, recipe


def step_of(devices=1, **changes):
    config = recipe(model__remat="auto", model__unroll=0, **changes)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    return Step(mesh, ModelConfig(**config.model), OptimConfig(**config.optim), LossConfig(**config.loss), config.batch_size, 1)


def bytes_of(step, remat):
    return step.needed_bytes(dataclasses.replace(step.model_config, remat=remat))


def test_auto_is_the_least_recomputation_that_fits():
    step = step_of(model__layers=6, model__width=32, batch_size=32)
    step = dataclasses.replace(step, model_config=dataclasses.replace(step.model_config, unroll=1))
    none, dots, full = (bytes_of(step, remat) for remat in ("none", "dots", "full"))
    assert none > dots > full
    for needed, less, chosen in ((none, 0, "none"), (none, 8, "dots"), (dots, 8, "full")):
        config, (line,) = decide(step, (needed - less) / compilation.ROOM + 1)
        assert (config.remat, config.unroll) == (chosen, 1)
        assert f"auto: {chosen}" in line and "GiB" in line
    with pytest.raises(MemoryError, match=r"none \(.*GiB\), dots \(.*GiB\), full \(.*GiB\): take more devices, or set config.gradient"):
        decide(step, (full - 8) / compilation.ROOM)


def test_memory_that_is_not_reported_costs_no_compilation(monkeypatch):
    monkeypatch.setattr(Step, "compile", lambda *_: pytest.fail("compiled"))
    config, said = decide(step_of(), math.inf)
    assert (config.remat, config.unroll, said) == ("none", 2, [])
    fixed = dataclasses.replace(step_of(), model_config=dataclasses.replace(step_of().model_config, remat="full", unroll=1))
    assert decide(fixed, 0) == (fixed.model_config, [])


def test_what_the_compiler_refuses_does_not_fit(monkeypatch):
    compiled = Step.compile

    def refuse(step, config):
        if config.remat == "none":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return compiled(step, config)

    monkeypatch.setattr(Step, "compile", refuse)
    config, (line,) = decide(step_of(), 2**40)
    assert config.remat == "dots" and "none (refused by the compiler) did not fit" in line


def test_a_run_with_an_open_recipe_says_what_was_decided_and_does_not_compile_again(tmp_path, monkeypatch, capsys):
    """The program that was compiled to decide is that of the first step: same types and shardings, so the cache has it."""
    monkeypatch.setattr(sharding, "device_memory", lambda: 2.0**40)
    config = recipe(model__remat="auto", model__unroll=0, mesh__fsdp=2, mesh__data=-1)
    setup = Setup(config, make_workdir(tmp_path / "run"))
    decisions = setup.decide()
    run = loop.Run(setup, 0, None, decisions)
    with jax.set_mesh(setup.mesh):
        state, _ = setup.initial_state()
        batch = next(run.batches(0))
        lowered = Step(setup.mesh, setup.model_config, setup.optim_config, setup.loss_config, config.batch_size, 1).lower(setup.model_config)
        assert run.train_step.lower(state, batch, run.key).as_text() == lowered.as_text()
    run.close()
    assert "config.model.remat=auto: none, the step needs" in capsys.readouterr().out


def test_recomputation_that_a_cpu_would_not_do_is_said():
    step = step_of()
    for unroll, lines in ((2, 1), (1, 0), (0, 0)):
        asked = dataclasses.replace(step.model_config, remat="full", unroll=unroll)
        config, said = decide(dataclasses.replace(step, model_config=asked), math.inf)
        assert (config.unroll, len(said)) == (unroll or 1, lines)


def test_layers_stay_in_a_loop_where_devices_divide_the_parameters():
    assert compilation._layers_to_unroll(step_of().model_config, sharding.make_mesh(devices=jax.devices()[:2])) == 2, "a CPU's cores"

    class Gpu:
        platform, process_index, id = "gpu", 0, 0

    for sizes, layers in (((1, 1, 1), 2), ((2, 1, 1), 2), ((1, 2, 1), 1), ((1, 1, 2), 1)):
        devices = [Gpu() for _ in range(math.prod(sizes))]
        mesh = type("Mesh", (), {"devices": np.array(devices, dtype=object), "shape": dict(zip(sharding.MESH_AXES, sizes, strict=True))})
        assert compilation._layers_to_unroll(step_of().model_config, mesh) == layers, sizes
        full = dataclasses.replace(step_of().model_config, remat="full")
        assert compilation._layers_to_unroll(full, mesh) == 1


def test_a_program_is_compiled_once(monkeypatch):
    step = step_of()
    config = dataclasses.replace(step.model_config, remat="none", unroll=1)
    first = step.compile(config)
    monkeypatch.setattr(Step, "lower", lambda *_: pytest.fail("traced again"))
    assert step.compile(config) is first and step.needed_bytes(config) > 0
