"""Where a number comes from: command, commit, hardware, versions."""

import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from typing import Any

from etils import epath

from igpt_jax.files import write_atomically


def provenance(command: str) -> dict[str, Any]:
    """Return {command, commit, hardware, versions} of this process.

    The commit is that of the repository that this package lies in, and ends in "+" if tracked files were changed since. Without git or a repository it is
    the value of the environment variable COMMIT.
    """
    import jax

    device = jax.devices()[0]
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})" if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    return {"command": command, "commit": commit(), "hardware": hardware, "versions": {"python": platform.python_version(), "jax": jax.__version__}}


def commit() -> str:
    """Return the commit as `provenance` does; "" where it is not known."""
    root = pathlib.Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        try:
            run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        except OSError:  # git is not installed
            return ""
        return run.stdout.strip() if run.returncode == 0 else ""

    if not (root / ".git").exists():  # an installed package may lie in another project's repository
        return os.environ.get("COMMIT", "")
    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short=10", "HEAD") or os.environ.get("COMMIT", "")) + changed


def add_start(workdir: epath.Path, step: int, **more: Any) -> None:
    """Add this start of a run at `step` to WORKDIR/starts.json, a list of {time, step, processes, command, commit, hardware, versions} and `more`."""
    import jax

    path = workdir / "starts.json"
    start = {"time": time.time(), "step": step, "processes": jax.process_count()} | more | provenance(_typed())
    write_atomically(path, json.dumps([*read_starts(workdir), start], indent=1).encode())


def _typed() -> str:
    """The command line of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", *(["-m", spec.name] if spec else sys.argv[:1]), *sys.argv[1:]])


def read_starts(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the starts of a run; [] of one from before they were written, and where the file is damaged."""
    try:
        starts = json.loads((workdir / "starts.json").read_text())
    except (OSError, ValueError):
        return []
    return starts if isinstance(starts, list) else []
