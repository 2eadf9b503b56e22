"""Where arrays are placed: one mesh, a table from parameter to logical axes, and a table from logical axis to mesh axis. No other module names a mesh axis.

Mesh axes: `data` replicates the model (across hosts or slices), `fsdp` shards parameters and batch, `tensor` shards heads and mlp.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from igpt_jax.types import Array, Batch, Tree

Axes: TypeAlias = Sequence[str | None]  # the logical axis of each axis of an array

MESH_AXES = ("data", "fsdp", "tensor")
ROOM = 0.5  # share of a device's memory for parameters that are not trained; the rest is for activations and caches

RULES = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",  # the width of a matrix: compilers gather and scatter best along the second-minor dimension
    "heads": "tensor",
    "mlp": "tensor",
    "heads_rows": ("tensor", "fsdp"),  # the rows of a matrix that maps the heads or the mlp back to the width
    "mlp_rows": ("tensor", "fsdp"),
    None: None,
}

PARAMETERS = {
    "token_embedding": (None, "embed"),
    "position_embedding": (None, "embed"),
    "row_embedding": (None, "embed"),
    "column_embedding": (None, "embed"),
    "start_vector": (None,),
    "blocks.attention_norm": (None, None),
    "blocks.query_key_value": (None, "embed", None, "heads", None),
    "blocks.query_key_value_bias": (None, None, "heads", None),
    "blocks.query_norm": (None, None),
    "blocks.key_norm": (None, None),
    "blocks.attention_output": (None, "heads_rows", None),
    "blocks.attention_output_bias": (None, None),
    "blocks.mlp_norm": (None, None),
    "blocks.mlp_gate": (None, "embed", "mlp"),
    "blocks.mlp_gate_bias": (None, "mlp"),
    "blocks.mlp_in": (None, "embed", "mlp"),
    "blocks.mlp_in_bias": (None, "mlp"),
    "blocks.mlp_out": (None, "mlp_rows", None),
    "blocks.mlp_out_bias": (None, None),
    "final_norm": (None,),
    "output_embedding": (None, "embed"),
    "class_embedding": (None, "embed"),
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange the devices as data x fsdp x tensor; one size may be -1 and takes the rest. ValueError where the product is not the number of devices.

    On several TPU slices only `data` spans slices. On other platforms the devices of a host are neighbours, so that tensor, then fsdp, stay within a host
    if they fit; any axis may span hosts.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices) or min(sizes) < 1:
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} does not make {len(devices)} devices: set config.mesh so that the product is, one size may be -1"
        )
    return Mesh(_arranged(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(sizes: list[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array along the mesh axes, with neighbours on the network next to each other; `data` spans TPU slices, whose network is slower."""
    if devices[0].platform != "tpu":  # slice_index numbers the hosts of GPUs, which are no slices
        hosts = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0) or 0, device.process_index, device.id))
        return np.array(hosts, dtype=object).reshape(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % slices:
        raise ValueError(f"mesh data={sizes[0]} is not divisible by the {slices} slices, across which the model is replicated: set config.mesh.data")
    return mesh_utils.create_hybrid_device_mesh([sizes[0] // slices, *sizes[1:]], [slices, 1, 1], devices, allow_split_physical_axes=True)


def divide(model: Any, devices: Sequence[jax.Device], axis: str = "fsdp") -> Mesh:
    """Make a mesh of all `devices` for inference: as many copies of the model as possible, each on the fewest devices along `axis` that hold it.

    `model` is an abstract ImageGPT. If no number of parts leaves ROOM, the model is divided into as many parts as its sizes allow.
    """
    chosen = None
    for parts in (parts for parts in range(1, len(devices) + 1) if len(devices) % parts == 0):
        try:
            sizes = {"fsdp": 1, axis: parts}
            mesh = make_mesh(data=len(devices) // parts, **sizes, devices=devices)
            check_model(mesh, model.config.width, model.config.heads, model.config.mlp)
        except ValueError:  # this number of parts does not divide the model, or would span slices
            continue
        chosen = mesh
        if holds(mesh, model):
            break
    if chosen is None:
        raise ValueError(f"no mesh of the {len(devices)} devices divides the model")
    return chosen


def alone(model: Any) -> Mesh:
    """Make the mesh of a model that one process uses: one device if it holds the model, else all, which divide heads and mlp, or else the width."""
    devices = jax.local_devices()
    for subset, axis in ((devices[:1], "fsdp"), (devices, "tensor"), (devices, "fsdp")):
        mesh = divide(model, subset, axis)
        if holds(mesh, model):
            break
    return mesh


def holds(mesh: Mesh, model: Any) -> bool:
    """Return whether the float32 parameters of each device take at most ROOM of its memory."""
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(model)) <= ROOM * device_memory() * mesh.shape["fsdp"] * mesh.shape["tensor"]


def device_memory() -> float:
    """Return the bytes of memory of the smallest device of all processes; infinite if the platform does not report it, as the CPU."""
    memory = min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in jax.local_devices())
    if jax.process_count() == 1:
        return memory
    from jax.experimental import multihost_utils

    return float(np.min(multihost_utils.process_allgather(np.float32(memory))))


def check_model(mesh: Mesh, width: int, heads: int, mlp: int) -> None:
    """ValueError where the mesh does not divide the model."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    for name, size, axis, parts in (
        ("heads", heads, "tensor", tensor),
        ("width", width, "fsdp x tensor", fsdp * tensor),
        ("mlp", mlp, "fsdp x tensor", fsdp * tensor),
    ):
        if size % parts:
            raise ValueError(f"{name} {size} is not divisible by {axis} = {parts}: choose config.mesh so that it is (data= takes the rest)")


def check_batch(mesh: Mesh, batch: int, accumulation_steps: int = 1) -> None:
    """ValueError where the batch does not divide into equal shards and accumulation steps."""
    shards = batch_shards(mesh)
    if batch % (shards * accumulation_steps):
        parts = shards * accumulation_steps
        way_out = "choose it so, or fewer shards by config.mesh.tensor, whose devices share the images of a shard"
        raise ValueError(f"batch_size {batch} is not divisible by {shards} data shards x {accumulation_steps} accumulation steps = {parts}: {way_out}")


def batch_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parameter_spec(path: str) -> P:
    """Return the PartitionSpec of the parameter at `path`; KeyError if PARAMETERS lacks it, so that none is replicated by mistake."""
    return P(*(RULES[axis] for axis in PARAMETERS[path]))


def state_shardings(mesh: Mesh, abstract: Tree) -> Tree:
    """Return a tree of NamedSharding for a tree of arrays that contains a model's parameters (or Adam's moments of them); scalars are replicated."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(parameter_path(path)) if leaf.ndim else P())

    return jax.tree_util.tree_map_with_path(place, abstract)


def placed(mesh: Mesh, abstract: Tree) -> Tree:
    """Return the tree of shapes, types and shardings that a restore or a compile takes."""
    shardings = state_shardings(mesh, abstract)
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings)


def parameter_path(path: Any) -> str:
    """Return the part of a leaf's path that PARAMETERS has: of `opt_state.adam.mu.blocks.mlp_in` it is `blocks.mlp_in`."""
    parts = names(path)
    return ".".join(parts[-2:]) if "blocks" in parts else parts[-1]


def names(path: Any) -> list[str]:
    """Return the names along a path of a pytree, without the "value" that nnx.Param adds."""
    parts = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    return [name for name in parts if name != "value"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, P(RULES["batch"]))


@functools.lru_cache(maxsize=16)
def part_of_batch(mesh: Mesh, batch: int, process: int | None = None) -> np.ndarray:
    """Return the rows of a global batch that a process (None: this one) supplies, int [b] in ascending order: those of its devices' shards.

    Processes that share a shard, because a tensor group spans them, supply the same rows. The rows of a process need not be contiguous.
    """
    process = jax.process_index() if process is None else process
    shards: dict[Any, Any] = dict(batch_sharding(mesh).devices_indices_map((batch,)))
    return np.unique(np.concatenate([np.arange(batch)[index] for device, index in shards.items() if device.process_index == process]))


def shard_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Put this process's part of a batch (numpy arrays whose rows are `part_of_batch`) on its devices, as global arrays."""
    place, shards = batch_sharding(mesh), batch_shards(mesh)
    ours = len(part_of_batch(mesh, shards))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x, (len(x) // ours * shards, *x.shape[1:])), batch)


def constrain(x: Array, *axes: str | None) -> Array:
    """Constrain an activation to be sharded along logical axes; outside a mesh return it unchanged."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*(RULES[axis] for axis in axes)))


def per_shard(function: Callable[..., Any], inputs: Sequence[Axes], outputs: Any) -> Callable[..., Any]:
    """Let each device run `function` on its own part of arrays with these logical axes; outside a mesh return `function`.

    `inputs` are the axes of each argument, `outputs` those of the result or a tuple of them.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def spec(axes: Axes) -> P:
        return P(*(RULES[axis] for axis in axes))

    several = isinstance(outputs[0], tuple)
    out_specs = tuple(map(spec, outputs)) if several else spec(outputs)
    return jax.shard_map(function, in_specs=tuple(map(spec, inputs)), out_specs=out_specs, check_vma=False)


def is_divided(axis: str) -> bool:
    """Return whether the current mesh divides this logical axis; False outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape[RULES[axis]] > 1


def on_cpu() -> bool:
    """Return whether the devices of the current mesh are cores of a CPU, also where a program is compiled for other devices; False outside a mesh."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device is not None and device.device_kind == "cpu"


def round_up(mesh: Mesh, batch: int) -> int:
    """Return the smallest batch not below `batch` that divides into equal shards."""
    shards = batch_shards(mesh)
    return -(-batch // shards) * shards
