"""Where a number comes from: command, commit, hardware, versions. Every file in experiments/results/ holds them."""

import shlex
import sys

from igpt_jax.provenance import provenance

__all__ = ["provenance", "typed"]


def typed(name: str) -> str:
    """Return the command line of this program, `python -m experiments.NAME`, as it was typed."""
    return shlex.join(["python", "-m", f"experiments.{name}", *sys.argv[1:]])
