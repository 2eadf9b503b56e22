"""Compiled programs stay for the next run, memory for the next step; a CPU's cores are devices."""

import os
import pathlib
import subprocess
import sys

import pytest

from igpt_jax.distributed import runtime

ROOT = pathlib.Path(__file__).parents[2]
COMPILE = """
import jax, sys
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from igpt_jax.distributed.runtime import keep_programs
keep_programs()
jax.monitoring.register_event_listener(lambda name, **_: print(name) if "cache_hits" in name else None)
print(jax.config.jax_compilation_cache_dir, jax.jit(lambda x: x * 3 + 1)(2))
"""
STEPS = """
import resource, sys, threading
import numpy as np
from igpt_jax.distributed import runtime
runtime.memory = lambda: (1.0, 1.0)  # nothing is short
if sys.argv[1] == "keep":
    runtime.keep_memory()
def steps():
    np.ones(32_000_000, np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(32_000_000, np.float32)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""
SHORT = """
import os, time
import numpy as np
from igpt_jax.distributed import runtime
free = [1.0]
runtime.memory = lambda: (free[0], 1.0)
runtime.CHECK_SECONDS, runtime.TRIM_SECONDS = (0.01, 0.01), 0.01
runtime.keep_memory()
runtime.keep_memory()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
def settle(most):
    end = time.monotonic() + 20
    while resident() > most and time.monotonic() < end:
        time.sleep(0.01)
    return resident()
arrays = [np.ones(2_000_000, np.float32) for _ in range(50)]
begun = resident()
del arrays[:-1]  # the last one stands at the end of the heap, so that nothing can be cut off
time.sleep(0.1)
kept = resident()
free[0] = 0.1
returned = settle(begun - 300)
free[0] = 1.0  # no trim any more: what is freed must go by itself
time.sleep(0.1)
array = np.ones(100_000_000, np.float32)
del array
print(begun, kept, returned, resident())
"""
THREADS = "import threading; from igpt_jax.distributed import runtime; {}runtime.prepare(); print([thread.name for thread in threading.enumerate()])"
CORES = """
import os, sys
os.sched_getaffinity = lambda process: range(int(sys.argv[1]))
import jax
from configs import base
from igpt_jax.cli import divide_cores
config = base.get_config()
config.batch_size, config.gradient_accumulation_steps, config.mesh.fsdp = int(sys.argv[2]), 2, int(sys.argv[3])
divide_cores(config)
print(jax.device_count())
divide_cores(config)  # too late, and no error
"""


def run(program, *arguments, **environment):
    """What the program prints, as on a user's machine: with its cache, and nothing said of devices."""
    ours = ("JAX_COMPILATION", "JAX_PERSISTENT", "MALLOC_", "XLA_FLAGS")  # of conftest.py
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | environment
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_second_run_finds_what_the_first_compiled(tmp_path):
    home = tmp_path / "home"
    first, second = run(COMPILE, HOME=str(home)), run(COMPILE, HOME=str(home))
    assert first.split() == [str(home / ".cache/igpt_jax/compiled"), "7"]
    assert second.splitlines()[0].endswith("cache_hits") and second.splitlines()[-1] == first.strip()


def test_the_users_own_place_is_left_and_a_home_without_room_is_no_error(tmp_path):
    own = run(COMPILE, HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert own.split()[0] == str(tmp_path / "own") and not (tmp_path / ".cache").exists()
    (tmp_path / "file").write_text("")
    assert run(COMPILE, HOME=str(tmp_path / "file")).split() == ["None", "7"]


@pytest.mark.parametrize(
    "cores, batch, fsdp, environment, devices",
    [
        (6, 24, -1, {}, 4),
        (16, 12, -1, {}, 2),  # 6 images at once
        (1, 24, -1, {}, 1),
        (6, 24, 1, {}, 1),  # the recipe says one
        (6, 24, -1, {"JAX_NUM_CPU_DEVICES": "1"}, 1),
        (6, 24, -1, {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
    ],
)
def test_cores_are_devices_as_far_as_they_divide_the_batch_and_nobody_said_otherwise(cores, batch, fsdp, environment, devices):
    assert int(run(CORES, cores, batch, fsdp, **environment)) == devices


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and glibc")
def test_memory_of_a_step_is_not_cleared_anew_for_the_next():
    """A step writes 128 MB in a thread, as XLA's do; without it each of them faults in all pages anew (31,250 of 4 KiB, fewer if huge)."""
    kept, returned, own = int(run(STEPS, "keep")), int(run(STEPS, "return")), int(run(STEPS, "keep", MALLOC_ARENA_MAX="8"))
    assert kept < 100 < min(returned, own)  # the user's own settings stay


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and glibc")
def test_memory_is_returned_when_little_is_left():
    """400 MB are freed: they stay with the process until the machine has less than an eighth of its memory, and then freed arrays go at once."""
    begun, kept, returned, after = map(int, run(SHORT).split())
    assert kept > begun - 20 and returned < begun - 300 and after < returned + 20


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux and glibc")
def test_one_thread_looks_and_none_where_the_user_or_the_system_leaves_nothing_to_do():
    nothing = "runtime.memory = lambda: (float('inf'), float('inf')); "
    assert run(THREADS.format("runtime.prepare(); ")).strip() == "['MainThread', 'memory']"
    assert run(THREADS.format(""), MALLOC_ARENA_MAX="8").strip() == run(THREADS.format(nothing)).strip() == "['MainThread']"


@pytest.mark.parametrize(("free", "total", "short"), [(1, 8.1, True), (1, 8, False), (15 * 2**30, 2**41, True), (17 * 2**30, 2**41, False)])
def test_little_is_an_eighth_of_the_memory_or_16_gib(free, total, short, monkeypatch):
    monkeypatch.setattr(runtime, "memory", lambda: (free, total))
    assert (runtime._room() < 0) is short


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_what_the_machine_or_the_nearest_container_has_left(version, tmp_path):
    """A job in a slice: the least of what each of them leaves counts; pages of files that nobody reads do not."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    assert runtime.memory(str(proc), str(groups)) == (float("inf"), float("inf"))
    (proc / "meminfo").write_text("MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   3000 kB\n")
    whole = (3000 * 1024, 8000 * 1024)
    assert runtime.memory(str(proc), str(groups)) == whole  # no control groups
    line, root, limit, used, files = (
        ("0::/slice/job", groups, "memory.max", "memory.current", "inactive_file"),
        ("4:cpu,cpuacct:/other\n3:memory:/slice/job", groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )[version == 1]
    (proc / "self" / "cgroup").write_text(line + "\n")
    runtime._groups.cache_clear()
    assert runtime.memory(str(proc), str(groups)) == whole  # the folder of another mount
    for folder, most, taken in ((root / "slice", "2000000", "1900000"), (root / "slice" / "job", "max", "7")):
        folder.mkdir(parents=True)
        for name, content in ((limit, most), (used, taken), ("memory.stat", f"anon 1\n{files} 500000\n")):
            (folder / name).write_text(content)
    assert runtime.memory(str(proc), str(groups)) == (600_000, 2_000_000)
    (root / "slice" / "job" / limit).write_text("1000000")
    (root / "slice" / "job" / used).write_text("1600000")
    assert runtime.memory(str(proc), str(groups)) == (0, 1_000_000)


def test_the_compiler_for_tpus_is_silent_where_there_is_none(monkeypatch):
    pytest.importorskip("libtpu", reason="needs the extra `aot`: the compiler for TPUs")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)  # else jax asks for no TPU
    program = "import jax, sys; from igpt_jax.distributed import runtime; runtime.prepare(); sys.stderr = sys.stdout; print(jax.default_backend())"
    # libtpu is also silent while another process of this machine holds its lock
    assert run(f"import os; os.dup2(1, 2); {program}", ALLOW_MULTIPLE_LIBTPU_LOAD="1").strip() in ("cpu", "cuda", "rocm")


def test_a_machine_with_a_tpu_keeps_its_own_settings():
    environment = {"TPU_WORKER_HOSTNAMES": "10.0.0.1"}
    runtime.quieten_tpu(environment)
    assert environment == {"TPU_WORKER_HOSTNAMES": "10.0.0.1"}


@pytest.mark.parametrize("own", ["", "--xla_cpu_collective_call_terminate_timeout_seconds=7"])
def test_a_device_waits_long_for_another_on_a_busy_machine(own):
    """A training run beside five other programs was aborted by XLA:CPU after 40 s in an all-reduce."""
    program = "import os, jax; from igpt_jax.distributed import runtime; runtime.prepare(); jax.devices(); print(os.environ['XLA_FLAGS'])"
    assert run(program, **({"XLA_FLAGS": own} if own else {})).strip() == (own or "--xla_cpu_collective_call_terminate_timeout_seconds=3600")


def test_deterministic_operations_are_asked_for_once_and_other_flags_stay():
    environment = {"XLA_FLAGS": "--xla_a=1"}
    for _ in range(2):
        runtime.be_deterministic(environment)
    assert environment["XLA_FLAGS"] == f"--xla_a=1 {runtime.DETERMINISTIC}"
    runtime.be_deterministic(empty := {})
    assert empty == {"XLA_FLAGS": runtime.DETERMINISTIC}


def test_the_recipe_asks_for_them_before_a_device_is_touched():
    program = """
import os, sys
from igpt_jax import cli
from igpt_jax.distributed import runtime
def main(config, workdir):
    from jax._src import xla_bridge
    assert not xla_bridge._backends, "a device was touched"
    print(runtime.DETERMINISTIC in os.environ.get("XLA_FLAGS", ""))
sys.argv = ["program", "--config=configs/digits.py", "--workdir=nowhere", *sys.argv[1:]]
cli.run_recipe(main)
"""
    for given, expected in (([], "False"), (["--config.deterministic"], "True")):
        done = subprocess.run([sys.executable, "-c", program, *given], cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.stdout.strip() == expected, done.stderr
