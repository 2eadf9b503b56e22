"""Names for types that several folders use. An array's shape stands at the end of its name: `codes_BS` is batch, sequence; each file says its letters first."""

import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from etils import epath

Tree: TypeAlias = Any  # a pytree of arrays
Batch: TypeAlias = dict[str, Any]  # {"codes": int32 [B, S], "label": int32 [B], "index": int32 [B], "weight": float32 [B]} or fewer
PathLike: TypeAlias = str | os.PathLike[str] | epath.Path  # also of a bucket
Recipe: TypeAlias = Any  # an ml_collections.ConfigDict as configs/base.py makes it

if TYPE_CHECKING:
    import jax

    Array: TypeAlias = jax.Array  # on devices
    AnyArray: TypeAlias = jax.Array | np.ndarray  # on devices or the host


def __getattr__(name: str) -> Any:
    """Import jax for the two names that need it: processes that only decode pictures do without."""
    if name not in ("Array", "AnyArray"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import jax

    return jax.Array if name == "Array" else jax.Array | np.ndarray
