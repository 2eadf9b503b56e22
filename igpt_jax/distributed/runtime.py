"""Settings of the process for jax: the cache of compiled programs, memory that malloc keeps between steps, and the cores of a CPU as devices."""

import contextlib
import ctypes
import functools
import logging
import math
import os
import pathlib
import threading
import time
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import jax

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CACHE = "~/.cache/igpt_jax/compiled"
GPU_MEMORY = "0.92"  # share of a GPU's memory for jax, whose default is 0.75; the rest is for CUDA, its libraries and the compiler's trials of kernels
MEMORY_SETTINGS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR")
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=3600"
NO_TPU = {"TPU_ACCELERATOR_TYPE": "v4-8", "TPU_WORKER_HOSTNAMES": "localhost"}
# of a step on several GPUs: collectives run while others compute
SEVERAL_GPUS = {"xla_gpu_enable_latency_hiding_scheduler": True}
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # parameters of mallopt(3)
# One arena for all threads: a thread's own arena holds at most 64 MiB, and larger blocks are requested from the system each time.
_MALLOC_SETTINGS = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}
_MALLOC_DEFAULTS = {_M_MMAP_MAX: 65_536, _M_TRIM_THRESHOLD: 128 * 1024}
LEAST_FREE, LEAST_FREE_BYTES = 1 / 8, 16 * 2**30  # of the memory; with less free than both, freed memory is returned to the system
FILLED_PER_SECOND = 2 * 2**30  # bytes of memory that a core can take
CHECK_SECONDS, TRIM_SECONDS = (0.02, 1.0), 5.0  # least and most between two checks, of which each takes half a millisecond
CGROUPS = (("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"), ("", "memory.max", "memory.current"))  # versions 1 and 2


def prepare() -> None:
    """Prepare the process of a program: keep memory and compiled programs, silence warnings. A program calls it before anything else."""
    keep_memory()
    keep_programs()
    take_gpu_memory()
    wait_for_busy_cores()
    warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")  # where it is gone, cached_attention does without
    warnings.filterwarnings("ignore", module="PIL")  # one for each file with a broken EXIF and the like; a file that cannot be read is an error anyway


def keep_programs(environment: Mapping[str, str] = os.environ) -> None:
    """Store compiled programs in CACHE if it can be written; JAX_COMPILATION_CACHE_DIR in the environment overrides it."""
    folder = pathlib.Path(CACHE).expanduser()
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: each run compiles
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def keep_memory(environment: Mapping[str, str] = os.environ) -> None:
    """Let glibc keep the memory that a step of XLA:CPU frees. Otherwise the next step waits while the system clears the same pages again.

    Call it before the first array: threads of XLA that have already allocated memory keep their own arenas. It can take up to three times the memory of a
    step, because freed memory is fragmented. A thread therefore ends it when little memory is left (LEAST_FREE). Settings for malloc in the environment
    (MALLOC_ARENA_MAX=2, say) override it.
    """
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        _keep_memory()


@functools.cache  # once in a process
def _keep_memory() -> None:
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return
    for option, value in _MALLOC_SETTINGS.items():
        mallopt(option, value)
    if memory()[1] < math.inf:
        threading.Thread(target=_return_memory_when_short, args=(mallopt, trim), name="memory", daemon=True).start()


def _return_memory_when_short(mallopt: Callable[[int, int], int], trim: Callable[[int], int]) -> None:
    """Wait until little memory is left; from then on let glibc return blocks of 128 KiB and more when they are freed."""
    least, most = CHECK_SECONDS
    while (room := _room()) >= 0:
        time.sleep(min(most, max(least, room / FILLED_PER_SECOND / (os.cpu_count() or 1))))
    for option, value in _MALLOC_DEFAULTS.items():
        mallopt(option, value)
    logging.getLogger(__name__).warning("little memory is left: freed memory is returned to the system, which makes steps on a CPU slower")
    while True:
        if _room() < 0:
            trim(0)  # what was freed before, and lies between blocks that are used
        time.sleep(TRIM_SECONDS)  # the other threads wait during a trim


def _room() -> float:
    """The bytes that can be taken before little memory is left; below 0 there is little."""
    free, total = memory()
    return free - min(LEAST_FREE * total, LEAST_FREE_BYTES)


def memory(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> tuple[float, float]:
    """Return (free, total) bytes of the machine, or of the container or job that has less left; (inf, inf) where the system does not tell."""
    try:
        lines = dict(line.split(":") for line in pathlib.Path(proc, "meminfo").read_text().splitlines())
        free, total = (1024 * int(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError, IndexError):
        return math.inf, math.inf
    for folder, limit_name, used_name in _groups(pathlib.Path(proc), pathlib.Path(cgroups)):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max": no limit
            limit, used = (int((folder / name).read_text()) for name in (limit_name, used_name))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))  # the system drops these pages first
            if limit - used + files < free:
                free, total = max(0, limit - used + files), limit
    return free, total


@functools.cache
def _groups(proc: pathlib.Path, cgroups: pathlib.Path) -> list[tuple[pathlib.Path, str, str]]:
    """The folders of this process's control groups, and of those that contain them, with the names of their files for the limit and for what is used."""
    try:
        own = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for controller, limit, used in CGROUPS:
        for _, controllers, path in own:
            if controller in controllers.split(","):
                place = pathlib.PurePosixPath(path.lstrip("/"))
                found += [(cgroups / controller / part, limit, used) for part in dict.fromkeys([place, *place.parents])]
    return found


def take_gpu_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let jax take GPU_MEMORY of a GPU; call it before a device is touched. It does nothing if the environment says how memory is allocated."""
    if not any(name in environment for name in MEMORY_SETTINGS):
        environment["XLA_CLIENT_MEM_FRACTION"] = GPU_MEMORY


def quieten_tpu(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep libtpu, which the extra `aot` brings, from printing errors where jax found no TPU (it then sets TPU_SKIP_MDS_QUERY at its import).

    Call it before a device is touched. Each variable is one that libtpu reports as missing; their values are not used.
    """
    if environment.get("TPU_SKIP_MDS_QUERY") == "1":
        for name, value in NO_TPU.items():
            environment.setdefault(name, value)


def compiler_options(devices: Sequence[jax.Device], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the compiler's options of a training step on these devices, without those that XLA_FLAGS in the environment sets."""
    several_gpus = len(devices) > 1 and devices[0].platform in ("gpu", "cuda", "rocm")
    return {name: value for name, value in SEVERAL_GPUS.items() if several_gpus and name not in environment.get("XLA_FLAGS", "")}


def be_deterministic(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set XLA_FLAGS so that operations on GPUs give the same bits each time; call it before a device is touched, when XLA reads the flags."""
    if DETERMINISTIC not in environment.get("XLA_FLAGS", ""):
        _append_flag(DETERMINISTIC, environment)


def wait_for_busy_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let XLA:CPU wait an hour where a device waits for another, and not abort after 40 s, as on a machine that is very busy; call it as `be_deterministic`."""
    if PATIENT.partition("=")[0] not in environment.get("XLA_FLAGS", ""):  # the user's own value stays
        _append_flag(PATIENT, environment)


def _append_flag(flag: str, environment: MutableMapping[str, str]) -> None:
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()


def divide_cores(parts: int = 0, environment: Mapping[str, str] = os.environ) -> None:
    """Make devices of the CPU's cores, a power of two that divides `parts` (0: any), because XLA:CPU runs the small products of attention on one core.

    Call it before the first array; later it does nothing. It also does nothing if the environment sets the number of devices, or if several processes are
    one run.
    """
    is_set = "JAX_NUM_CPU_DEVICES" in environment or "xla_force_host_platform_device_count" in environment.get("XLA_FLAGS", "")
    if not is_set and not jax.distributed.is_initialized():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # the devices exist already: a program within another
            jax.config.update("jax_num_cpu_devices", math.gcd(parts, 1 << (cores.bit_length() - 1)))
