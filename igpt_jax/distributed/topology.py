"""Chips by the names that clouds sell them by: their compilers, memory and arrangement, for compiling without them."""

import dataclasses
import os
import re

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


def _names():
    for name, chip in CHIPS.items():
        yield ", ".join(f"{name}-{count * chip.cores}" for count in chip.shapes or (1, 8, 64))
