"""What a process restores when it continues a run: `python -m tests.resumed WORKDIR DATA FSDP TENSOR`; process 0 prints one line of JSON.

{step, checksum of the bits of parameters and optimiser, hash of the codes of the next batches, their losses}. Joins other processes as the programs do.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from igpt_jax.distributed import multihost
from igpt_jax.training import checkpoints
from igpt_jax.training.loop import Run
from igpt_jax.training.setup import Setup

STEPS = 3


def main(workdir, *mesh):
    multihost.join()
    config = ConfigDict(json.loads((pathlib.Path(workdir) / "config.json").read_text()))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = map(int, mesh)
    setup = Setup(config, workdir)
    with jax.set_mesh(setup.mesh):
        state, meta = setup.initial_state()
        run = Run(setup, step := int(state.step), meta)
        found = {"step": step, "checksum": checkpoints.checksum(checkpoints.to_nested(state)), "losses": []}
        seen, batches = hashlib.sha256(), run.batches(step)
        for _ in range(STEPS):
            batch = next(batches)
            seen.update(np.asarray(jax.jit(lambda x: x, out_shardings=jax.NamedSharding(setup.mesh, jax.P()))(batch["codes"])).tobytes())
            state, values = run.train_step(state, batch, run.key)
            found["losses"].append(float(values["loss"]))
        batches.close()
        run.close()
    if jax.process_index() == 0:
        print(json.dumps(found | {"images": seen.hexdigest()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
