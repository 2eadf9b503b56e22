"""By what the learning rate of each parameter is multiplied: over width (muP), over depth (layer-wise decay), and frozen layers.

muP (Yang et al. 2022, arXiv 2203.03466, table 3): a learning rate that was found at a small width, `base_width`, fits a larger one if, with Adam,

    parameter                               its rate is multiplied by        its initial deviation is proportional to
    embeddings, start vector, gains         1                                1
    matrices in the blocks                  base_width / width               width^-1/2
    output and class matrix                 base_width / width               (they are zero at the start)

At `base_width` itself nothing changes. The forward pass stays as it is: attention divides its scores by the root of the head size, not by the head size,
which is the same as long as the width grows with the number of heads, at an equal head size. A transfer that keeps the number of heads is not muP.

Layer-wise decay (BEiT, Bao et al. 2021; Clark et al. 2020): a rate is multiplied by decay^(L + 1 - depth), with depth 0 for the embeddings, 1 to L for the
blocks, and L + 1 for the final norm, the output matrix and the class head.
"""

from typing import Any

import jax
import jax.numpy as jnp

from igpt_jax.distributed import sharding
from igpt_jax.types import Array, Tree

EMBEDDINGS = ("token_embedding", "position_embedding", "row_embedding", "column_embedding", "start_vector")
FROM_WIDTH = (  # parameters of which the width is the number of inputs
    "blocks.query_key_value", "blocks.attention_output", "blocks.mlp_gate", "blocks.mlp_in", "blocks.mlp_out", "output_embedding", "class_embedding",
)  # fmt: skip
FIXED_DEVIATION = ("blocks.mlp_gate", "blocks.mlp_in", "blocks.mlp_out")  # whose initial deviation does not depend on the width without muP


def check(base_width: int, layer_decay: float, frozen_layers: int) -> None:
    """ValueError where a value is outside its range."""
    for name, value in (("base_width", base_width), ("frozen_layers", frozen_layers)):
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, not {value!r}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay {layer_decay} must be above 0 and at most 1, which is no decay")


def check_layers(frozen_layers: int, layers: int, from_weights: bool) -> None:
    """ValueError where there are fewer layers than are to be frozen, or frozen ones would be random, in a new run that does not begin with given weights."""
    if frozen_layers > layers:
        raise ValueError(f"config.optim.frozen_layers={frozen_layers} is more than the model's {layers} layers")
    if frozen_layers and not from_weights:
        way_out = "give finetune a --checkpoint or train --init_from"
        raise ValueError(f"config.optim.frozen_layers={frozen_layers} would keep random parameters: {way_out}, or set it to 0")


def scale(updates: Tree, base_width: int, layer_decay: float, frozen_layers: int) -> Tree:
    """Multiply the update of each parameter by its factor, and make that of a frozen one zero; the names are those of a model's parameters."""
    if base_width:
        width = _width(updates)
        updates = _map(lambda name, update: update * (base_width / width) if name in FROM_WIDTH else update, updates)
    if layer_decay != 1:
        layers = _layers(updates)
        updates = _map(lambda name, update: update * layer_decay ** (layers + 1 - _depth(name, update, layers)), updates)
    if frozen_layers:
        updates = _map(lambda name, update: jnp.where(_is_frozen(name, update, frozen_layers), -0.0, update), updates)  # x + -0.0 has the bits of x
    return updates


def without_frozen(gradients: Tree, frozen_layers: int) -> Tree:
    """Make the gradients of frozen parameters zero, so that they count in no norm and change no moment."""
    if not frozen_layers:
        return gradients
    return _map(lambda name, gradient: jnp.where(_is_frozen(name, gradient, frozen_layers), 0, gradient), gradients)


def initial_values(model: Tree, base_width: int) -> Tree:
    """Scale the initial parameters of a model as muP does; without `base_width` return them as they are."""
    if not base_width:
        return model
    factor = (base_width / _width(model)) ** 0.5
    return _map(lambda name, value: value * factor if name in FIXED_DEVIATION else value, model)


def _map(function: Any, tree: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(".".join(sharding.names(path)), leaf), tree)


def _width(tree: Tree) -> int:
    return tree.output_embedding.shape[-1]


def _layers(tree: Tree) -> int:
    return tree.blocks.mlp_in.shape[0]


def _depth(name: str, leaf: Array, layers: int) -> Any:
    """The depth of a parameter: a number, or of those of the blocks an array that broadcasts along the layers."""
    if name.startswith("blocks."):
        return jnp.arange(1, layers + 1).reshape(-1, *(1,) * (leaf.ndim - 1))
    return 0 if name in EMBEDDINGS else layers + 1


def _is_frozen(name: str, leaf: Array, frozen_layers: int) -> Any:
    """Whether a parameter is frozen, which broadcasts to its shape."""
    return _depth(name, leaf, leaf.shape[0] if name.startswith("blocks.") else frozen_layers) <= frozen_layers
