"""Where a number comes from: command, commit, hardware, versions. Every file in experiments/results/ holds them."""

import os
import pathlib
import platform
import shlex
import subprocess
import sys


def typed(name: str) -> str:
    """Return the command line of this program, `python -m experiments.NAME`, as it was typed."""
    return shlex.join(["python", "-m", f"experiments.{name}", *sys.argv[1:]])


def provenance(command: str) -> dict:
    """Return {command, commit, hardware, versions} of this run.

    The commit ends in "+" if tracked files were changed since. Without git it is the value of the environment variable COMMIT.
    """
    import jax

    root = pathlib.Path(__file__).parents[2]

    def git(*arguments):
        run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    device = jax.devices()[0]
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})" if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "command": command,
        "commit": (git("rev-parse", "--short=10", "HEAD") or os.environ.get("COMMIT", "")) + changed,
        "hardware": hardware,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }
