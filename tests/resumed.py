"""What a process finds when it goes on with a run: `python -m tests.resumed WORKDIR DATA FSDP TENSOR`; process 0 prints one line of JSON.

{step, checksum of the bits of parameters and optimiser, hash of the codes of the next batches, their losses}. Joins other processes as the programs do.
"""

import hashlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from igpt_jax import processes
from igpt_jax.run import Run

STEPS = 3


@jax.jit
def checksum(tree):
    """Sum of the bits of every number, each weighed by its place, so that two arrays exchanged show; modulo 2^32, in which order does not matter."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        total += (number + 1) * (bits * (1 + jnp.arange(bits.size, dtype=jnp.uint32))).sum(dtype=jnp.uint32)
    return total


def main(workdir, *mesh):
    processes.join()
    config = ConfigDict(json.loads((pathlib.Path(workdir) / "config.json").read_text()))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = map(int, mesh)
    run = Run(config, workdir)
    with jax.set_mesh(run.mesh):
        step, state = run.start(None)
        found = {"step": step, "checksum": int(checksum(state)), "losses": []}
        seen, batches = hashlib.sha256(), run.batches(step)
        for _ in range(STEPS):
            batch = next(batches)
            seen.update(np.asarray(jax.jit(lambda x: x, out_shardings=jax.NamedSharding(run.mesh, jax.P()))(batch["codes"])).tobytes())
            state, values = run.step(state, batch, run.key)
            found["losses"].append(float(values["loss"]))
        batches.close()
        run.close()
    if jax.process_index() == 0:
        print(json.dumps(found | {"images": seen.hexdigest()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
