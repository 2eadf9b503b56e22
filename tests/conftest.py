"""Eight fake CPU devices for every test, set before jax starts; little optimisation, since compiling takes most of a test's time."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a test compiles what it tests
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
