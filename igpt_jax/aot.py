"""Compile a recipe's training step for chips that are not here, and say whether it fits: `python -m igpt_jax.aot --config=configs/xl.py --topology=v4-128`.

Prints a table, one row for each --topology: bytes on each device, floating-point operations, collectives by kind, compile time. It is the function that
igpt_jax.train runs, lowered for the topology's devices by their own compiler; nothing is executed. Exits 1 where a recipe does not fit. A topology is
v4-128, v5p-64, v5e-256, v6e-64 or h100-64, in the numbers that clouds sell them by; v5e-256x2 is two slices. Needs `pip install 'igpt_jax[aot]'`,
for GPUs `'igpt_jax[aot_gpu]'`, and no chip.
"""

import dataclasses
import json
import os
import re
import time

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from igpt_jax import attention, sharding
from igpt_jax.cli import prepare_file, run_recipe
from igpt_jax.hlo import collectives
from igpt_jax.model import ModelConfig, parameter_count
from igpt_jax.optim import OptimConfig
from igpt_jax.recipe import check_numbers
from igpt_jax.state import LossConfig, abstract_state, jit_train_step

WAYS_OUT = "take more devices, or set config.model.remat=full, config.accumulate or config.mesh.tensor"
INSTALL = "pip install 'igpt_jax[aot]' for TPUs, 'igpt_jax[aot_gpu]' for GPUs"
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16"}
SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
MEGACORE = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator, as its compiler knows it and as its maker describes it."""

    compiler: str  # of jax.experimental.topologies
    shapes: dict  # chips -> arrangement; empty: GPUs
    cores: int  # counted in the name for each chip: v4-128 has 64 chips
    memory: float  # GiB that a program may use
    options: dict = dataclasses.field(default_factory=dict)


CHIPS = {  # memory: the limit the compiler enforces; for the H100 the 75 % that jax takes by default would be 59.3
    "v4": Chip("v4", CUBES, 2, 30.75, MEGACORE),
    "v5p": Chip("v5", CUBES, 2, 95.74, {"chips_per_host_bounds": (2, 2, 1)}),
    "v5e": Chip("v5e", SQUARES, 1, 15.75),
    "v6e": Chip("v6e", SQUARES, 1, 31.25),
    "h100": Chip("cuda", {}, 1, 79.1),
}
GPUS_OF_A_HOST = 8
H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 minor: 0 patch: 0 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one compile told; bytes are those of one device."""

    topology: str
    devices: int
    mesh: dict
    attention: str
    parameters: int
    argument_bytes: int  # parameters and Adam's state
    peak_bytes: int
    limit_bytes: int
    flops: float  # of a step on the whole batch, by ModelConfig.training_flops
    collectives: list  # {kind, in_loop, operations, executions, bytes}
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.limit_bytes


def devices_of(name: str):
    """The devices of a topology by the name users know, and its Chip; ValueError that lists the names for another."""
    match = re.fullmatch(r"(\w+?)-(\d+)(?:x(\d+))?", name)
    chip = match and CHIPS.get(match[1])
    count = int(match[2]) // chip.cores if chip else 0
    uneven = chip and not chip.shapes and count > GPUS_OF_A_HOST and count % GPUS_OF_A_HOST  # hosts of 8
    if not chip or (chip.shapes and count not in chip.shapes) or count < 1 or int(match[2]) % chip.cores or uneven:
        raise ValueError(f"topology {name!r} is unknown: one of {'; '.join(_names())}; or two slices, as v5e-256x2")
    slices = int(match[3] or 1)
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        if not chip.shapes:
            # partitions x hosts of each x GPUs: as in a cluster, where XLA takes every host for a partition and gives it a slice_index
            hosts = f"{slices * max(1, count // GPUS_OF_A_HOST)}x1x{min(count, GPUS_OF_A_HOST)}"
            return topologies.get_topology_desc(platform="cuda", topology_name="", target_config=H100, topology=hosts).devices, chip
        options = dict(chip.options)
        if count == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        if chip.shapes is CUBES and count >= 64:
            options["wrap"] = (True, True, True)  # without it every gather becomes an all-reduce of twice the bytes
        if chip.shapes is SQUARES and count == 256:
            options["wrap"] = (True, True, False)
        if slices > 1:
            options["num_slices"] = slices
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{chip.compiler}:{chip.shapes[count]}", **options).devices, chip
    except Exception as error:  # jax raises many kinds where libtpu or the CUDA plugin is missing
        raise ImportError(f"no compiler for {name} ({str(error).splitlines()[0][:160]}): {INSTALL}") from error


def compile_recipe(config, topology: str) -> Compiled:
    """Compile the training step of a recipe (an ml_collections.ConfigDict) for a topology; ValueError or MemoryError in one line."""
    check_numbers(config.to_dict())
    model_config, optim_config, loss_config = ModelConfig(**config.model), OptimConfig(**config.optim), LossConfig(**config.loss)
    devices, chip = devices_of(topology)
    chosen = attention.resolve(model_config.attention, "tpu" if chip.shapes else "gpu", model_config.dtype, model_config.positions)
    model_config = dataclasses.replace(model_config, attention=chosen)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_model(mesh, model_config.width, model_config.heads, model_config.mlp)
    sharding.check_batch(mesh, config.batch_size, config.accumulate)
    started = time.monotonic()
    with jax.set_mesh(mesh):
        state = abstract_state(model_config, mesh)
        step = jit_train_step(mesh, model_config, optim_config, loss_config, config.accumulate)
        lowered = step.lower(state, *_inputs(mesh, config.batch_size, model_config.positions))
        compiled = _compile(lowered, topology, chip)
    memory = compiled.memory_analysis()
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
        collectives=collectives(compiled.as_text()),
        compile_seconds=time.monotonic() - started,
    )


def table(rows: list[Compiled]) -> str:
    """The rows as Markdown; GiB of one device, TFLOP of the whole step, and of each kind of collective its executions and the GiB of their whole arrays."""
    head = ("topology", "mesh", "attention", "parameters", "state", "peak", "limit", "TFLOP", "collectives in the layer loop", "outside", "compile")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        mesh = " x ".join(f"{name} {size}" for name, size in row.mesh.items() if size > 1) or "1 device"
        sizes = [f"{size / 2**30:.2f}" for size in (row.argument_bytes, row.peak_bytes, row.limit_bytes)]
        places = [
            ", ".join(f"{one['kind']} {one['executions']} ({one['bytes'] / 2**30:.2f})" for one in row.collectives if one["in_loop"] == in_loop) or "-"
            for in_loop in (True, False)
        ]
        cells = [row.topology, mesh, row.attention, f"{row.parameters:,}", *sizes, f"{row.flops / 1e12:,.1f}", *places, f"{row.compile_seconds:.0f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def aot(config, topology, out=None) -> list[Compiled]:
    """Compile for each topology and print the table; MemoryError, after the table, where one does not fit. `out` takes the rows as JSON."""
    rows, refused = [], []
    if out:
        prepare_file(out)
    for name in topology:
        devices_of(name)  # every name is checked before the first compile
    for name in topology:
        try:
            row = compile_recipe(config, name)
        except MemoryError as error:
            refused.append(str(error))
            continue
        rows.append(row)
        if not row.fits:
            refused.append(f"{name} has {row.limit_bytes / 2**30:.2f} GiB on a device and the step needs {row.peak_bytes / 2**30:.2f}: {WAYS_OUT}")
    if rows:
        print(table(rows))
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump([dataclasses.asdict(row) for row in rows], file, indent=1)
    if refused:
        raise MemoryError("; ".join(refused))
    return rows


def _inputs(mesh, batch_size, positions):
    """Shapes of a batch and of the run's key, placed as the program places them."""
    sharded = sharding.batch_sharding(mesh)
    shapes = {"codes": (batch_size, positions), "label": (batch_size,), "index": (batch_size,)}
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=sharded) for name, shape in shapes.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return batch, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _compile(lowered, topology, chip):
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs = re.search(r"\(([\d.]+)G\) exceeds", str(error))
        amount = f"about {needs[1]} GiB of temporaries" if needs else "more"
        raise MemoryError(f"{topology} has {chip.memory:g} GiB on a device and the step needs {amount}: {WAYS_OUT}") from None


def _names():
    for name, chip in CHIPS.items():
        yield ", ".join(f"{name}-{count * chip.cores}" for count in chip.shapes or (1, 8, 64))


def _flags(flags):
    return {
        "topology": flags.DEFINE_multi_string("topology", ["v4-128"], "chips to compile for; may be given several times"),
        "out": flags.DEFINE_string("out", None, "also write the rows to this JSON file"),
    }


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs; and the CUDA plugin must not look for a GPU
    run_recipe(aot, _flags, with_workdir=False)
