"""Eight fake CPU devices for every test, set before jax starts; compiled programs are kept and little optimised: compiling takes most of the time."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".pytest_cache/compiled")  # shared by tests, their programs and the next run
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["MALLOC_ARENA_MAX"] = "8"  # so that igpt_jax.distributed.runtime.keep_memory does nothing: a worker would keep the memory of all tests
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import pytest  # noqa: E402

SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def oracles():
    """The checkpoints and outputs of the original programs."""
    if not (SHARED / "oracles").exists():
        pytest.skip("needs ../shared/oracles: checkpoints and outputs of the original programs")
    return SHARED / "oracles"
