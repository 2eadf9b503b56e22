"""Names for types that several folders use. An array's shape stands at the end of its name: `codes_BS` is batch, sequence; each file says its letters first."""

import os
from typing import Any, TypeAlias

import jax
import numpy as np
from etils import epath

Array: TypeAlias = jax.Array  # on devices
AnyArray: TypeAlias = jax.Array | np.ndarray  # on devices or the host
Tree: TypeAlias = Any  # a pytree of arrays
Batch: TypeAlias = dict[str, Any]  # {"codes": int32 [B, S], "label": int32 [B], "index": int32 [B], "weight": float32 [B]} or fewer
PathLike: TypeAlias = str | os.PathLike[str] | epath.Path  # also of a bucket
Recipe: TypeAlias = Any  # an ml_collections.ConfigDict as configs/base.py makes it
