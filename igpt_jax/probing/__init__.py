"""Features of every layer, stored, and the probes on them. `LinearProbe` and `KNNProbe` are for features in memory, with scikit-learn's interface."""

from typing import Any

__all__ = ["KNNProbe", "LinearProbe"]


def __getattr__(name: str) -> Any:
    """Import a public class at its first use, so that the modules here can be imported without jax."""
    if name in __all__:
        from igpt_jax.probing import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'igpt_jax.probing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
