"""A training step compiled before it runs: what a recipe leaves open, decided by the memory that the step needs, and the step without the hardware.

A recipe leaves two fields of ModelConfig open. `unroll` 0 unrolls all layers on a CPU, and on GPUs that each hold all parameters: a loop copies what the
backward pass needs, a quarter of the time of a step on a GPU (experiments/results/gpu). Elsewhere it is 1, because a loop compiles faster and gathers the
parameters of one layer at a time. So does `remat` full, because of unrolled layers XLA would compute several again at once. `remat` auto takes the least
recomputation with which the step fits, by compiling it with each in turn; none on a CPU. Near the limit XLA may repeat operations by itself, which is not seen.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from igpt_jax.distributed import roofline, sharding
from igpt_jax.distributed.hlo import collectives
from igpt_jax.distributed.topology import Chip, devices_of
from igpt_jax.model import attention
from igpt_jax.model.transformer import ModelConfig, parameter_count
from igpt_jax.training.metrics import peak_flops
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.recipe import check_numbers
from igpt_jax.training.step import LossConfig, abstract_state, jit_train_step
from igpt_jax.types import Recipe

_WAYS_OUT = "take more devices, or set {}config.gradient_accumulation_steps or config.mesh.tensor"
WAYS_OUT, WAYS_OUT_OF_FULL = _WAYS_OUT.format("config.model.remat=full, "), _WAYS_OUT.format("")
LEAST_FIRST = ("none", "dots", "full")  # the values of remat
ROOM = 0.95  # share of a device's memory that a step may take; the next batches, metrics and the copies of a checkpoint need the rest


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The result of one compile; bytes are those of one device."""

    topology: str
    devices: int
    mesh: dict[str, int]
    attention: str
    remat: str
    parameters: int
    argument_bytes: int  # parameters and the optimiser's state
    peak_bytes: int  # as the compiler simulates it
    needed_bytes: int  # what the runtime allocates at once: state, batch and the block of all temporaries, in which there are gaps
    limit_bytes: int
    flops: float  # of a step on the whole batch, by ModelConfig.training_flops
    collectives: list[dict[str, Any]]  # {kind, in_loop, operations, executions, bytes}
    compile_seconds: float
    peak_flops: float = 0.0  # of one device in bfloat16; 0: not known
    roofline: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of one device, by igpt_jax.distributed.roofline; [] for TPUs

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a device; the condition of `remat` auto."""
        return self.needed_bytes <= ROOM * self.limit_bytes


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step to compile: everything but what the recipe leaves open. It keeps what it compiled, so that no program is compiled twice."""

    mesh: Mesh
    model_config: ModelConfig
    optim_config: OptimConfig
    loss_config: LossConfig
    batch_size: int
    gradient_accumulation_steps: int
    programs: dict[ModelConfig, tuple[jax.stages.Compiled, float]] = dataclasses.field(default_factory=dict, compare=False)  # and seconds to compile each

    def lower(self, model_config: ModelConfig) -> jax.stages.Lowered:
        """Trace the step of this model. Types and shardings are those of training, so that a run with a cache of programs (runtime.py) finds it there."""
        with jax.set_mesh(self.mesh):
            step = jit_train_step(self.mesh, model_config, self.optim_config, self.loss_config, self.gradient_accumulation_steps)
            return step.lower(abstract_state(model_config, self.mesh, self.optim_config), *_inputs(self.mesh, self.batch_size, model_config.positions))

    def compile(self, model_config: ModelConfig) -> jax.stages.Compiled:
        """Compile the step of this model; jax.errors.JaxRuntimeError RESOURCE_EXHAUSTED where the compiler refuses it for its memory."""
        if model_config not in self.programs:
            started = time.monotonic()
            lowered = self.lower(model_config)
            with jax.set_mesh(self.mesh):
                self.programs[model_config] = lowered.compile(), time.monotonic() - started
        return self.programs[model_config][0]

    def needed_bytes(self, model_config: ModelConfig) -> int:
        """Compile, and return the memory that the step takes on each device: state, batch and temporaries. Errors are those of `compile`."""
        memory: Any = self.compile(model_config).memory_analysis()
        return memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def decide(step: Step, limit: float) -> tuple[ModelConfig, list[str]]:
    """Return the model's config with nothing left open, and a line on each decision. `limit` is the memory of a device in bytes, infinite where unknown.

    MemoryError where the step does not even fit with full recomputation.
    """
    config, platform = step.model_config, step.mesh.devices.flat[0].platform
    if config.remat == "auto" and limit == math.inf:
        config = dataclasses.replace(config, remat="none")
    config = _unrolled(config, step)
    if config.remat in ("dots", "full") and config.unroll >= config.layers and platform == "cpu":
        return config, [f"config.model.remat={config.remat} saves no memory on a CPU where all layers are unrolled: set config.model.unroll=1"]
    if config.remat != "auto":
        return config, []
    refused: list[str] = []
    for remat in LEAST_FIRST:
        candidate = _unrolled(dataclasses.replace(step.model_config, remat=remat), step)
        needed = _bytes_unless_refused(step, candidate)
        if needed is not None and needed <= ROOM * limit:
            also = f"; {', '.join(refused)} did not fit" if refused else ""
            return candidate, [f"config.model.remat=auto: {remat}, the step needs {needed / 2**30:.1f} of {limit / 2**30:.1f} GiB{also}"]
        refused.append(f"{remat} ({'refused by the compiler' if needed is None else f'{needed / 2**30:.1f} GiB'})")
    memory = f"{ROOM:.0%} of the {limit / 2**30:.1f} GiB of a device"
    raise MemoryError(f"the step does not fit into {memory}, remat {', '.join(refused)}: {WAYS_OUT_OF_FULL}")


def _unrolled(config: ModelConfig, step: Step) -> ModelConfig:
    """The config with the layers to unroll, where the recipe leaves them open."""
    is_open = step.model_config.unroll == 0
    return dataclasses.replace(config, unroll=_layers_to_unroll(config, step.mesh)) if is_open else config


def _layers_to_unroll(config: ModelConfig, mesh: Mesh) -> int:
    platform = mesh.devices.flat[0].platform
    whole = mesh.shape["fsdp"] * mesh.shape["tensor"] == 1
    if platform == "cpu":
        return config.layers if config.remat in ("none", "auto") else 1  # recomputation of unrolled layers begins too early to save memory there
    return config.layers if platform != "tpu" and whole and config.remat != "full" else 1  # unrolled, L at batch 128 took 113 GiB with full


def _bytes_unless_refused(step: Step, config: ModelConfig) -> int | None:
    """The memory that a step takes on each device; None where the compiler refuses it."""
    try:
        return step.needed_bytes(config)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def compile_recipe(config: Recipe, topology: str) -> Compiled:
    """Compile the training step of a recipe (an ml_collections.ConfigDict) for a topology; ValueError or MemoryError in one line."""
    if not config.model.layers:
        raise ValueError("config.model.layers is 0: the recipe takes its model from a checkpoint. Compile the recipe that the checkpoint was trained by")
    check_numbers(config.to_dict())
    model_config, optim_config, loss_config = ModelConfig(**config.model), OptimConfig(**config.optim), LossConfig(**config.loss)
    devices, chip = devices_of(topology)
    if model_config.block == 1:  # blocks have the reference alone
        chosen = attention.resolve(model_config.attention, "tpu" if chip.shapes else "gpu", model_config.dtype, model_config.positions)
        model_config = dataclasses.replace(model_config, attention=chosen)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_model(mesh, model_config.width, model_config.heads, model_config.mlp)
    sharding.check_batch(mesh, config.batch_size, config.gradient_accumulation_steps)
    limit = int(chip.memory * 2**30)
    step = Step(mesh, model_config, optim_config, loss_config, config.batch_size, config.gradient_accumulation_steps)
    model_config, _ = decide(step, limit)
    compiled = _compile(step, model_config, topology, chip)
    memory: Any = compiled.memory_analysis()
    text, peak = compiled.as_text() or "", peak_flops(devices[0].device_kind) or 0.0
    return Compiled(
        topology=topology,
        devices=len(devices),
        mesh=dict(mesh.shape),
        attention=model_config.attention,
        remat=model_config.remat,
        parameters=parameter_count(abstract_state(model_config, mesh).model),
        argument_bytes=memory.argument_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        needed_bytes=step.needed_bytes(model_config),
        limit_bytes=limit,
        flops=config.batch_size * model_config.training_flops(),
        collectives=collectives(text),
        compile_seconds=step.programs[model_config][1],
        peak_flops=peak,
        roofline=roofline.roofline(text, peak, chip.bandwidth) if chip.bandwidth else [],
    )


def table(rows: list[Compiled]) -> str:
    """Format the rows as Markdown: GiB of one device, TFLOP of the whole step, and for each kind of collective its executions (GiB of their whole arrays)."""
    gib = ("state, GiB", "peak, GiB", "needs, GiB", "limit, GiB")
    head = ("topology", "mesh", "attention", "parameters", *gib, "TFLOP", "collectives in the layer loop (GiB)", "outside (GiB)", "compile")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        mesh = " x ".join(f"{name} {size}" for name, size in row.mesh.items() if size > 1) or "1 device"
        sizes = [f"{size / 2**30:.2f}" for size in (row.argument_bytes, row.peak_bytes, row.needed_bytes, row.limit_bytes)]
        places = [
            ", ".join(f"{kind['kind']} {kind['executions']} ({kind['bytes'] / 2**30:.2f})" for kind in row.collectives if kind["in_loop"] == in_loop) or "-"
            for in_loop in (True, False)
        ]
        cells = [row.topology, mesh, row.attention, f"{row.parameters:,}", *sizes, f"{row.flops / 1e12:,.1f}", *places, f"{row.compile_seconds:.0f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe_fit(row: Compiled) -> str:
    """Say in one line whether the step fits the memory of a device."""
    verdict, needs, limit = "fits" if row.fits else "does not fit", row.needed_bytes / 2**30, row.limit_bytes / 2**30
    return f"{row.topology}: {verdict}: the step needs {needs:.2f} of the {limit:.2f} GiB of each device, of which it may take {ROOM:.0%}"


def roofline_table(row: Compiled) -> str:
    """Format the least time of each kind of kernel on one device as Markdown, with the MFU that it allows; one line for a TPU."""
    if not row.roofline:
        return f"{row.topology}: least times by kind of kernel are given for GPUs alone: the compiler for TPUs writes other instructions"
    network = "; without the time of the network" if row.collectives else ""
    head = f"{row.topology}: the least time of one step's kernels on a device{network}"
    return f"{head}\n\n{roofline.table(row.roofline, row.flops / row.devices, row.peak_flops)}"


def _inputs(mesh: Mesh, batch_size: int, positions: int) -> tuple[dict[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch and of the run's key."""
    sharded = sharding.batch_sharding(mesh)
    shapes = {"codes": (batch_size, positions), "label": (batch_size,), "index": (batch_size,)}
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=sharded) for name, shape in shapes.items()}
    return batch, jax.eval_shape(lambda: jax.random.key(0))


def _compile(step: Step, model_config: ModelConfig, topology: str, chip: Chip) -> jax.stages.Compiled:
    """Compile; MemoryError in one line if the compiler refuses the program for its memory."""
    try:
        return step.compile(model_config)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = re.search(r"\(([\d.]+)G\) exceeds", str(error))
        amount = f"about {needs[1]} GiB of temporaries" if needs else "more"
        raise MemoryError(f"{topology} has {chip.memory:g} GiB on a device and the step needs {amount}: {WAYS_OUT}") from None
