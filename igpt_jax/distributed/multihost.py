"""Several processes as one run: on a TPU pod, under SLURM or Open MPI, or described by three environment variables.

    JAX_COORDINATOR_ADDRESS=host0:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 python -m igpt_jax.train ...
    JAX_COORDINATOR_ADDRESS=host0:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 python -m igpt_jax.train ...
"""

import json
import os
import pathlib
import re
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
COPIES = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes our variables, srun or mpirun started
LOST = re.compile("Gloo|NCCL|coordination service|heartbeat|Connection (reset|closed|refused)", re.I)  # in errors of jax about another process
PATIENCE = 300  # seconds that the processes wait for each other


def join(environment: Mapping[str, str] = os.environ, patience: float = PATIENCE) -> None:
    """Join the processes of one run, if there are several, before any device is touched; ValueError or TimeoutError in one line."""
    if any(name in environment for name in ENVIRONMENT):
        address, count, index = _read_environment(environment)
        if index:
            _await_coordinator(address, patience)
        _use_gloo()
        jax.distributed.initialize(address, count, index, initialization_timeout=int(patience))
    elif int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment or int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 or _on_tpu():
        _use_gloo()
        jax.distributed.initialize(initialization_timeout=int(patience))  # jax asks the cluster


def check_alone(program: str, environment: Mapping[str, str] = os.environ) -> None:
    """ValueError in one line where a launcher started several copies of a program of one process, which would all do the same work and write the same files."""
    count = max(_number(environment, name) for name in COPIES)
    if count > 1:
        raise ValueError(f"{program} is a program of one process, and {count} were started: start it once; it uses all devices of its machine")


def _number(environment: Mapping[str, str], name: str) -> int:
    """The whole number in a variable; 1 where it is missing or no number."""
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 1


class Stop:
    """Watch for SIGTERM and SIGUSR1, which announce a preemption; all processes stop at the same step. A context manager."""

    def __init__(self) -> None:
        self._requested = False
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if jax.process_count() == 1:
            self._previous_handlers = {name: signal.signal(name, self._request) for name in (signal.SIGTERM, signal.SIGUSR1)}
        else:  # jax itself listens for SIGTERM and informs the other processes
            self._previous_handlers = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))}
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._previous_handlers.items():
            signal.signal(name, handler)

    def requested(self, step: int) -> bool:
        """Return whether to stop at `step`; every process calls it once before each step."""
        if jax.process_count() > 1 and not self._requested:
            from jax.experimental import multihost_utils

            self._requested = multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _request(self, *_: object) -> None:
        self._requested = True


def wait_for_all(place: str) -> None:
    """Return when every process has reached this place; all of them pass the same name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"igpt_jax.{place}")


def all_agree(condition: bool) -> bool:
    """Return whether the condition is true on every process."""
    if jax.process_count() == 1:
        return condition
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(condition))))


def together(action: Callable[[], T], otherwise: str) -> T:
    """Return `action()`; where it fails on any process, raise its error there and OSError(otherwise) on the others, so that none waits for it."""
    try:
        result = action()
    except Exception:
        all_agree(False)
        raise
    if not all_agree(True):
        raise OSError(otherwise)
    return result


def all_equal(number: int) -> bool:
    """Return whether an int32 is the same on every process."""
    if jax.process_count() == 1:
        return True
    from jax.experimental import multihost_utils

    return len(set(np.asarray(multihost_utils.process_allgather(np.asarray(number, np.int32))).tolist())) == 1


def check_same(**values: Any) -> None:
    """ValueError, on every process, that names the first of the values (numbers, texts, lists, dicts) in which the processes differ.

    Each process of a run does a part of one work: with other values the parts would not belong together.
    """
    for name, value in values.items():
        if not all_equal(zlib.crc32(json.dumps(value, default=str).encode()) >> 1):
            raise ValueError(f"the processes do not have the same {name.replace('_', ' ')}: start all of them with one command, on the same files")


def is_lost(error: BaseException) -> bool:
    """Return whether an error of jax says that another process of the run has ended or does not answer."""
    return jax.distributed.is_initialized() and isinstance(error, jax.errors.JaxRuntimeError) and LOST.search(str(error)) is not None


def note(line: str) -> None:
    """Print a line on the standard error of the first process."""
    if jax.process_index() == 0:
        print(f"note: {line}", file=sys.stderr)


def _read_environment(environment: Mapping[str, str]) -> tuple[str, int, int]:
    """(address of the coordinator, number of processes, number of this process)."""
    missing = [name for name in ENVIRONMENT if name not in environment]
    if missing:
        raise ValueError(f"{', '.join(ENVIRONMENT)} go together, {', '.join(missing)} not set: set all of them, or none for a single process")
    address, count, index = (environment[name] for name in ENVIRONMENT)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)) or not address.rpartition(":")[2].isdigit():
        values = f"{address!r}, {count!r}, {index!r}"
        raise ValueError(f"{', '.join(ENVIRONMENT)} are {values}: expected HOST:PORT, a number of processes, and one from 0 to below it")
    return address, int(count), int(index)


def _await_coordinator(address: str, patience: float) -> None:
    """Wait until process 0 listens; jax itself would end the process with a stack trace."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                reason = error.strerror or error
                way_out = "start process 0 there, or correct JAX_COORDINATOR_ADDRESS"
                raise TimeoutError(f"no coordinator at {address} within {patience:g} s ({reason}): {way_out}") from None
        time.sleep(0.2)


def _use_gloo() -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for CPU processes; other platforms have their own


def _on_tpu() -> bool:
    return any(pathlib.Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0"))
