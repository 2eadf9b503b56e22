"""Where the model and the pictures of a batch lie while they are sampled: on one device, copied to all of this host, or divided over a mesh."""

import contextlib

import jax
import numpy as np

from igpt_jax.distributed import sharding


def mesh_for(model, count):
    """The devices of this host, as many as share so many pictures, None where there is one; for a model whose parameters are divided its own mesh."""
    if not is_replicated(model):
        return model.token_embedding[...].sharding.mesh
    devices = jax.local_devices()
    return sharding.make_mesh(data=-1, fsdp=1, devices=devices[:count]) if len(devices) > 1 else None


def replicate(tree, mesh):
    """A copy of the whole arrays on each device of the mesh, divided ones as they are; for None the arrays."""

    def copy(x):
        divided = isinstance(x, jax.Array) and len(x.sharding.device_set) == mesh.size and not x.sharding.is_fully_replicated
        return x if divided else jax.device_put(x, jax.NamedSharding(mesh, jax.P()))

    return jax.tree.map(copy, tree) if mesh else tree


def is_replicated(model):
    """Whether each device that has parameters has all of them."""
    return all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model))


def replicate_everywhere(model):
    """A copy of the model on every device of this host, for batch after batch to use."""
    return replicate(model, mesh_for(model, jax.local_device_count()))


def within(mesh):
    """The context in which programs over a mesh, or None, run; entered anew for each, because a generator would leave it to its caller."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


def shard_pictures(mesh, which_B, keys_B):
    """Both with the last repeated up to equal shards, a shard on each device of the mesh."""
    if not mesh:
        return which_B, keys_B
    places = np.minimum(np.arange(sharding.round_up(mesh, len(which_B))), len(which_B) - 1)
    return jax.device_put((which_B[places], keys_B[places]), sharding.batch_sharding(mesh))


def select_rows(rows, which_B, *axes):
    """[I, ...] -> rows `which_B` of it, [b, ...], a shard on each device of the mesh that is set; logical `axes` come after the first."""
    return sharding.constrain(rows[which_B], "batch", *axes, *(None,) * (rows.ndim - 1 - len(axes)))
