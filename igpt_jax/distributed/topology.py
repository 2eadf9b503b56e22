"""Accelerators by the names that clouds use: their compilers, memory and topology, for compiling without the hardware."""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from igpt_jax.extras import install

CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16"}
SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
MEGACORE = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 minor: 0 patch: 0 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator."""

    compiler: str  # name in jax.experimental.topologies
    shapes: dict[int, str]  # number of chips -> their arrangement; empty: GPUs
    cores: int  # of each chip in the topology's name: v4-128 has 64 chips
    memory: float  # GiB that a program may use
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of get_topology_desc
    bandwidth: float = 0.0  # bytes/s of a GPU's memory, from its data sheet


CHIPS = {  # memory: the limit that the compiler enforces; of an H100's 79.1 GiB the part that the programs take (runtime.GPU_MEMORY)
    "v4": Chip("v4", CUBES, 2, 30.75, MEGACORE),
    "v5p": Chip("v5", CUBES, 2, 95.74, {"chips_per_host_bounds": (2, 2, 1)}),
    "v5e": Chip("v5e", SQUARES, 1, 15.75),
    "v6e": Chip("v6e", SQUARES, 1, 31.25),
    "h100": Chip("cuda", {}, 1, 72.8, {"target_config": H100}, 3.35e12),
}
GPUS_OF_A_HOST = 8


def devices_of(name: str) -> tuple[Sequence[jax.Device], Chip]:
    """Return the devices of a topology by its name, and their Chip; ValueError that lists the names for an unknown one, ImportError without a compiler."""
    chip, chips, slices = _parse(name)
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(**(_tpu_description(chip, chips, slices) if chip.shapes else _gpu_description(chip, chips, slices))).devices, chip
    except Exception as error:  # jax raises many kinds where libtpu or the CUDA plugin is missing
        raise ImportError(f"no compiler for {name} ({str(error).splitlines()[0][:160]}): {install('aot' if chip.shapes else 'aot-gpu')}") from error


def _parse(name: str) -> tuple[Chip, int, int]:
    """(kind of chip, chips in a slice, slices) of a topology's name."""
    match = re.fullmatch(r"(\w+?)-(\d+)(?:x(\d+))?", name)
    if match and match[1] in CHIPS:
        chip, cores = CHIPS[match[1]], int(match[2])
        chips = cores // chip.cores
        exists = chips in chip.shapes if chip.shapes else 1 <= chips <= GPUS_OF_A_HOST or chips % GPUS_OF_A_HOST == 0 < chips
        if exists and cores % chip.cores == 0:
            return chip, chips, int(match[3] or 1)
    raise ValueError(f"topology {name!r} is unknown: one of {'; '.join(_names())}; or two slices, as v5e-256x2")


def _tpu_description(chip: Chip, chips: int, slices: int) -> dict[str, Any]:
    """Arguments of get_topology_desc for slices of TPUs."""
    options = dict(chip.options)
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if chip.shapes is CUBES and chips >= 64:
        options["wrap"] = (True, True, True)  # without it every gather becomes an all-reduce of twice the bytes
    if chip.shapes is SQUARES and chips == 256:
        options["wrap"] = (True, True, False)
    if slices > 1:
        options["num_slices"] = slices
    return {"platform": "tpu", "topology_name": f"{chip.compiler}:{chip.shapes[chips]}"} | options


def _gpu_description(chip: Chip, count: int, slices: int) -> dict[str, Any]:
    """Arguments of get_topology_desc for GPUs, as partitions x hosts in each x GPUs in each: XLA takes every host of a cluster for a partition."""
    hosts = f"{slices * max(1, count // GPUS_OF_A_HOST)}x1x{min(count, GPUS_OF_A_HOST)}"
    return {"platform": "cuda", "topology_name": "", "topology": hosts} | chip.options


def _names() -> Iterator[str]:
    for name, chip in CHIPS.items():
        yield ", ".join(f"{name}-{count * chip.cores}" for count in chip.shapes or (1, 8, 64))
