"""What a program asks of its machine: compiled programs that stay for the next run, memory that stays for the next step, all cores of a CPU."""

import contextlib
import ctypes
import math
import os
import pathlib
import warnings

import jax

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CACHE = "~/.cache/igpt_jax/compiled"
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt(3)
_KEPT = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}  # arenas of threads hold 64 MiB at most, what is larger they ask the system for


def keep() -> None:
    """Keep memory and compiled programs: for a program to call before anything else."""
    keep_memory()
    keep_programs()
    warnings.filterwarnings("ignore", module="PIL")  # one for each file with a broken EXIF and the like; a file that cannot be read is an error anyway


def keep_programs(environment=os.environ) -> None:
    """Keep what the compiler makes in JAX_COMPILATION_CACHE_DIR, or where that is not set in CACHE, if it can be written."""
    folder = pathlib.Path(CACHE).expanduser()
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: each run compiles
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def keep_memory(environment=os.environ) -> None:
    """Have glibc keep what a step of XLA:CPU frees: the next one would wait for the system to clear its pages anew.

    Call before the first array: a thread that has allocated by itself goes on doing so, and XLA's threads are who allocates. It costs memory, up to three
    times that of a step, because what is kept falls into pieces: where the environment has settings for malloc (MALLOC_ARENA_MAX=2, say), they stay.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system's C library
        return
    for option, value in _KEPT.items():
        mallopt(option, value)


def be_deterministic(environment=os.environ) -> None:
    """Ask XLA for operations on GPUs that give the same bits each time. Call before a device is touched, which is when XLA reads it."""
    if DETERMINISTIC not in environment.get("XLA_FLAGS", ""):
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def divide_cores(parts: int = 0, environment=os.environ) -> None:
    """Make the CPU's cores devices of their own, a power of two that divides `parts` (0: any): XLA:CPU leaves attention's small products to one core.

    Call before the first array; later it does nothing. Left alone where the environment says how many devices there are, or where several processes are
    one run.
    """
    told = "JAX_NUM_CPU_DEVICES" in environment or "xla_force_host_platform_device_count" in environment.get("XLA_FLAGS", "")
    if not told and not jax.distributed.is_initialized():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # devices are counted already: a program within another
            jax.config.update("jax_num_cpu_devices", math.gcd(parts, 1 << (cores.bit_length() - 1)))
