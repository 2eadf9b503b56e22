"""Several processes as one run: on a TPU pod, under SLURM or Open MPI, or told by three environment variables.

    JAX_COORDINATOR_ADDRESS=host0:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 python -m igpt_jax.train ...
    JAX_COORDINATOR_ADDRESS=host0:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 python -m igpt_jax.train ...
"""

import os
import pathlib
import signal
import socket
import sys
import time

import jax
import numpy as np

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PATIENCE = 300  # seconds that the processes wait for each other


def join(environment=os.environ, patience: float = PATIENCE) -> None:
    """Join the processes of one run, where there are several; before any device is touched. ValueError, TimeoutError in one line."""
    if any(name in environment for name in ENVIRONMENT):
        address, count, index = _told(environment)
        if index:
            _await_coordinator(address, patience)
        _use_gloo()
        jax.distributed.initialize(address, count, index, initialization_timeout=int(patience))
    elif int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment or int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 or _on_tpu():
        _use_gloo()
        jax.distributed.initialize(initialization_timeout=int(patience))  # jax asks the cluster


class Stop:
    """Whether SIGTERM or SIGUSR1, which announce a preemption, asked the run to stop; all processes hear it at the same step."""

    def __enter__(self):
        self._requested, self.before = False, {}
        if jax.process_count() == 1:
            self.before = {name: signal.signal(name, self._request) for name in (signal.SIGTERM, signal.SIGUSR1)}
        else:  # jax itself listens for SIGTERM and tells the other processes
            self.before = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))}
        return self

    def __exit__(self, *_):
        for name, handler in self.before.items():
            signal.signal(name, handler)

    def requested(self, step: int) -> bool:
        """Ask once before each step."""
        if jax.process_count() > 1 and not self._requested:
            from jax.experimental import multihost_utils

            self._requested = multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _request(self, *_):
        self._requested = True


def wait_for_all(place: str) -> None:
    """Return when every process has come to this place."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"igpt_jax.{place}")


def all_agree(fine: bool) -> bool:
    """Whether it is so on every process."""
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


def together(do, otherwise: str):
    """What `do()` returns; where it fails on any process, its error there and OSError(otherwise) on the others, so that none goes on to wait for it."""
    found = failure = None
    try:
        found = do()
    except Exception as error:
        failure = error
    if not all_agree(failure is None):
        raise failure or OSError(otherwise)
    return found


def all_equal(number: int) -> bool:
    """Whether a number is the same on every process."""
    if jax.process_count() == 1:
        return True
    from jax.experimental import multihost_utils

    return len(set(np.asarray(multihost_utils.process_allgather(np.asarray(number, np.int32))).tolist())) == 1


def _told(environment):
    missing = [name for name in ENVIRONMENT if name not in environment]
    if missing:
        raise ValueError(f"{', '.join(ENVIRONMENT)} go together, {', '.join(missing)} not set: set all of them, or none for a single process")
    address, count, index = (environment[name] for name in ENVIRONMENT)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)) or not address.rpartition(":")[2].isdigit():
        found = f"{address!r}, {count!r}, {index!r}"
        raise ValueError(f"{', '.join(ENVIRONMENT)} are {found}: expected HOST:PORT, a number of processes, and one from 0 to below it")
    return address, int(count), int(index)


def _await_coordinator(address, patience):
    """Wait until process 0 listens; jax itself ends the process with a stack trace where nobody does."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                reason = error.strerror or error
                way_out = "start process 0 there, or mend JAX_COORDINATOR_ADDRESS"
                raise TimeoutError(f"no coordinator at {address} within {patience:g} s ({reason}): {way_out}") from None
        time.sleep(0.2)


def _use_gloo():
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPU processes; other platforms have their own


def _on_tpu():
    return any(pathlib.Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0"))


def note(line) -> None:
    """Say something once, whatever the number of processes."""
    if jax.process_index() == 0:
        print(f"note: {line}", file=sys.stderr)
