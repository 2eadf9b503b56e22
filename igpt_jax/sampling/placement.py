"""Where the model and the pictures of a batch are stored during sampling: on one device, on all devices of this host, or sharded over a mesh.

I images, B pictures (several completions of an image are several pictures).
"""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from igpt_jax.distributed import sharding
from igpt_jax.distributed.multihost import note
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.types import AnyArray, Array, Tree


def sample_in_bfloat16(model: ImageGPT) -> None:
    """Let a float32 model, as converted ones are, compute products and caches in bfloat16 on an accelerator, and say so.

    A step of sampling reads all weights and caches, so half of the bytes is half of the time. A CPU keeps float32, and so does a GPU whose cuDNN has no
    attention in bfloat16 for the model.
    """
    if model.config.dtype == "float32" and jax.default_backend() != "cpu" and _computes_bfloat16(model.config):
        model.config = dataclasses.replace(model.config, dtype="bfloat16")
        note("the model is float32: on this accelerator products and caches are bfloat16 (--dtype=float32 keeps float32)")


def _computes_bfloat16(config: ModelConfig) -> bool:
    """Whether this accelerator has attention in bfloat16 for the model: cuDNN's needs compute capability 8 and heads of a multiple of 8, at most 128."""
    size, capability = config.width // config.heads, getattr(jax.local_devices()[0], "compute_capability", None)
    return capability is None or (float(capability) >= 8 and size % 8 == 0 and size <= 128)


def mesh_for(model: ImageGPT, count: int) -> jax.sharding.Mesh | None:
    """Return the mesh to sample `count` pictures on: of a sharded model its own, else at most `count` devices of this host; None for a single device."""
    if not is_replicated(model):
        table: Any = model.token_embedding[...]
        return table.sharding.mesh
    devices = jax.local_devices()
    return sharding.make_mesh(data=-1, fsdp=1, devices=devices[:count]) if len(devices) > 1 else None


def replicate(tree: Tree, mesh: jax.sharding.Mesh | None) -> Tree:
    """Copy the arrays to each device of the mesh. Arrays that are sharded over the mesh stay as they are; so do all arrays without a mesh."""
    if not mesh:
        return tree

    def copy(x: AnyArray) -> AnyArray:
        sharded = isinstance(x, jax.Array) and len(x.sharding.device_set) == mesh.size and not x.sharding.is_fully_replicated
        return x if sharded else jax.device_put(x, jax.NamedSharding(mesh, jax.P()))

    return jax.tree.map(copy, tree)


def is_replicated(model: ImageGPT) -> bool:
    """Return whether each device of the model holds all parameters."""
    return all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model))


def replicate_everywhere(model: ImageGPT) -> ImageGPT:
    """Copy the model once to every device of this host, for all batches."""
    return replicate(model, mesh_for(model, jax.local_device_count()))


def mesh_context(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager:
    """Return the context in which programs over a mesh (or None) run. A generator must leave it before each yield, or its caller would be inside it."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


def shard_pictures(mesh: jax.sharding.Mesh | None, image_B: np.ndarray, keys_B: Array) -> tuple[AnyArray, Array]:
    """Shard both arrays over the mesh. The last element is repeated where the shards would not be equal."""
    if not mesh:
        return image_B, keys_B
    places = np.minimum(np.arange(sharding.round_up(mesh, len(image_B))), len(image_B) - 1)
    return jax.device_put((image_B[places], keys_B[places]), sharding.batch_sharding(mesh))


def select_rows(rows: Any, image_B: AnyArray, *axes: str) -> Array:
    """Take rows `image_B` of an array [I, ...]: [B, ...], sharded over the current mesh. `axes` are the logical axes after the first."""
    return sharding.constrain(rows[image_B], "batch", *axes, *(None,) * (rows.ndim - 1 - len(axes)))
