"""Pytrees as a checkpoint stores them: nested dicts of arrays under the names of the fields, and the checksum of their bits."""

from typing import Any

import jax
import jax.numpy as jnp

from igpt_jax.distributed import sharding
from igpt_jax.types import Array, Tree

NestedArrays = dict[str, Any]  # {name: array, or a NestedArrays}


def to_nested(tree: Tree) -> NestedArrays:
    """Convert a pytree into a nested dict of its leaves under their names."""
    return nest(to_flat(tree))


def to_flat(tree: Tree) -> dict[str, Any]:
    """Convert a pytree into a dict of its leaves under all names to them, `blocks.mlp_in` and so on."""
    return {".".join(sharding.names(path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nest(flat: dict[str, Any]) -> NestedArrays:
    """Convert what `to_flat` returns into a nested dict."""
    nested: NestedArrays = {}
    for names, leaf in flat.items():
        *parents, name = names.split(".")
        folder = nested
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[name] = leaf
    return nested


def from_nested(nested: NestedArrays, like: Tree) -> Tree:
    """Build a tree of the structure of `like` with the leaves of `nested`, the inverse of `to_nested`; KeyError where `nested` lacks one."""

    def find(path: Any, _: Any) -> Any:
        node: Any = nested
        for name in sharding.names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def checksum(tree: Tree) -> int:
    """Sum the bits of all numbers, each multiplied by an odd weight from its position, modulo 2^32.

    The leaves have 4 bytes a number. The result does not depend on the mesh, because a sum modulo 2^32 does not depend on the order.
    """
    return int(_checksum(tree))


@jax.jit
def _checksum(tree: Tree) -> Array:
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        position, stride = jnp.full(leaf.shape, number + 1, jnp.uint32), 1
        for axis in reversed(range(leaf.ndim)):  # along the axes: flattening a sharded array would gather it
            position += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride % 2**32)
            stride *= leaf.shape[axis]
        total += (bits * (2 * position + 1)).sum(dtype=jnp.uint32)  # an odd weight is invertible: a change of one number always changes the sum
    return total
