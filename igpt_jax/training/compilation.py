"""A recipe's training step compiled without the hardware: memory, floating-point operations and collectives."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from igpt_jax.distributed import sharding
from igpt_jax.distributed.hlo import collectives
from igpt_jax.distributed.topology import Chip, devices_of
from igpt_jax.model import attention
from igpt_jax.model.transformer import ModelConfig, parameter_count
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.recipe import check_numbers
from igpt_jax.training.step import LossConfig, abstract_state, jit_train_step
from igpt_jax.types import Recipe

WAYS_OUT = "take more devices, or set config.model.remat=full, config.gradient_accumulation_steps or config.mesh.tensor"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The result of one compile; bytes are those of one device."""

    topology: str
    devices: int
    mesh: dict[str, int]
    attention: str
    parameters: int
    argument_bytes: int  # parameters and Adam's state
    peak_bytes: int
    limit_bytes: int
    flops: float  # of a step on the whole batch, by ModelConfig.training_flops
    collectives: list[dict[str, Any]]  # {kind, in_loop, operations, executions, bytes}
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a device."""
        return self.peak_bytes <= self.limit_bytes


def compile_recipe(config: Recipe, topology: str) -> Compiled:
    """Compile the training step of a recipe (an ml_collections.ConfigDict) for a topology; ValueError or MemoryError in one line."""
    check_numbers(config.to_dict())
    model_config, optim_config, loss_config = ModelConfig(**config.model), OptimConfig(**config.optim), LossConfig(**config.loss)
    devices, chip = devices_of(topology)
    chosen = attention.resolve(model_config.attention, "tpu" if chip.shapes else "gpu", model_config.dtype, model_config.positions)
    model_config = dataclasses.replace(model_config, attention=chosen)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_model(mesh, model_config.width, model_config.heads, model_config.mlp)
    sharding.check_batch(mesh, config.batch_size, config.gradient_accumulation_steps)
    started = time.monotonic()
    with jax.set_mesh(mesh):
        state = abstract_state(model_config, mesh)
        step = jit_train_step(mesh, model_config, optim_config, loss_config, config.gradient_accumulation_steps)
        lowered = step.lower(state, *_inputs(mesh, config.batch_size, model_config.positions))
        compiled = _compile(lowered, topology, chip)
    memory: Any = compiled.memory_analysis()
    return Compiled(
        topology=topology,
        devices=len(devices),
        mesh=dict(mesh.shape),
        attention=model_config.attention,
        parameters=parameter_count(state.model),
        argument_bytes=memory.argument_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        limit_bytes=int(chip.memory * 2**30),
        flops=config.batch_size * model_config.training_flops(),
        collectives=collectives(compiled.as_text() or ""),
        compile_seconds=time.monotonic() - started,
    )


def table(rows: list[Compiled]) -> str:
    """Format the rows as Markdown: GiB of one device, TFLOP of the whole step, and for each kind of collective its executions (GiB of their whole arrays)."""
    head = ("topology", "mesh", "attention", "parameters", "state", "peak", "limit", "TFLOP", "collectives in the layer loop", "outside", "compile")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        mesh = " x ".join(f"{name} {size}" for name, size in row.mesh.items() if size > 1) or "1 device"
        sizes = [f"{size / 2**30:.2f}" for size in (row.argument_bytes, row.peak_bytes, row.limit_bytes)]
        places = [
            ", ".join(f"{kind['kind']} {kind['executions']} ({kind['bytes'] / 2**30:.2f})" for kind in row.collectives if kind["in_loop"] == in_loop) or "-"
            for in_loop in (True, False)
        ]
        cells = [row.topology, mesh, row.attention, f"{row.parameters:,}", *sizes, f"{row.flops / 1e12:,.1f}", *places, f"{row.compile_seconds:.0f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _inputs(mesh: Mesh, batch_size: int, positions: int) -> tuple[dict[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch and of the run's key, as in training."""
    sharded = sharding.batch_sharding(mesh)
    shapes = {"codes": (batch_size, positions), "label": (batch_size,), "index": (batch_size,)}
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=sharded) for name, shape in shapes.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return batch, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _compile(lowered: jax.stages.Lowered, topology: str, chip: Chip) -> jax.stages.Compiled:
    """Compile; MemoryError in one line if the compiler refuses the program for its memory."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = re.search(r"\(([\d.]+)G\) exceeds", str(error))
        amount = f"about {needs[1]} GiB of temporaries" if needs else "more"
        raise MemoryError(f"{topology} has {chip.memory:g} GiB on a device and the step needs {amount}: {WAYS_OUT}") from None
