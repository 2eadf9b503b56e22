"""Compile a recipe's training step without the hardware and check that it fits: `python -m igpt_jax.aot --config=configs/xl.py --topology=v4-128`.

Prints a table with one row for each --topology: GiB of each device, floating-point operations, collectives by kind, compile time; then whether the step
fits. For GPUs a second table follows: kernels, operations and bytes by kind, the least time that the chip's peak allows for them, and the MFU of that time.
`peak` is the memory of the step as the compiler simulates it, `needs` what the runtime allocates, of which 95 % of the limit may be taken.
The step is the one that igpt_jax.train runs, compiled by the compiler of the topology's devices; nothing is executed. Exits with 1 if a recipe does not
fit. Topologies have the names that clouds use, as v4-128, v5p-64, v5e-256, v6e-64 or h100-64; v5e-256x2 is two slices. Needs the extra `aot`, for GPUs
`aot-gpu`, and no accelerator.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax

from igpt_jax.cli import prepare_file, run_recipe
from igpt_jax.distributed.topology import devices_of
from igpt_jax.training.compilation import WAYS_OUT, Compiled, compile_recipe, describe_fit, roofline_table, table
from igpt_jax.types import Recipe

KEYS = (  # of a recipe, shown by --help
    "data.image_size", "model.layers", "model.width", "model.heads", "model.dtype", "model.remat", "model.attention", "batch_size",
    "gradient_accumulation_steps", "mesh.data", "mesh.fsdp", "mesh.tensor",
)  # fmt: skip


def aot(config: Recipe, topology: Sequence[str], out: str | None = None) -> list[Compiled]:
    """Compile for each topology, print the table and return its rows; write them as JSON to `out` if given. MemoryError after the table if one does not fit."""
    rows: list[Compiled] = []
    refused: list[str] = []
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
            refused.append(f"{describe_fit(row)}: {WAYS_OUT}")
    if rows:
        print(table(rows))
        for row in rows:
            print(f"\n{describe_fit(row)}\n\n{roofline_table(row)}")
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump([dataclasses.asdict(row) for row in rows], file, indent=1)
    if refused:
        raise MemoryError("; ".join(refused))
    return rows


def _flags(flags: Any) -> dict[str, Any]:
    return {
        "topology": flags.DEFINE_multi_string("topology", ["v4-128"], "devices to compile for; may be given several times"),
        "out": flags.DEFINE_string("out", None, "also write the rows to this JSON file"),
    }


if __name__ == "__main__":
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # nothing runs; the CUDA plugin must not look for a GPU; and jax has already read the environment
    run_recipe(aot, _flags, with_workdir=False, keys=KEYS)
