"""Where arrays live: one mesh, one table from parameter to logical axes, one from logical axis to mesh axis. Nothing else knows a mesh axis.

Mesh axes: `data` replicates the model (across hosts or slices), `fsdp` shards parameters and batch, `tensor` shards heads and mlp.
"""

import functools
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor")
ROOM = 0.5  # of a device's memory for parameters that are not trained; the rest is for activations and caches

RULES = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",  # the width of a matrix: a compiler gathers and scatters best along the second-minor dimension
    "heads": "tensor",
    "mlp": "tensor",
    "heads_rows": ("tensor", "fsdp"),  # the rows of a matrix that leads from the heads or the mlp back to the width
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
    "blocks.query_norm": (None, None),
    "blocks.key_norm": (None, None),
    "blocks.attention_output": (None, "heads_rows", None),
    "blocks.mlp_norm": (None, None),
    "blocks.mlp_gate": (None, "embed", "mlp"),
    "blocks.mlp_in": (None, "embed", "mlp"),
    "blocks.mlp_out": (None, "mlp_rows", None),
    "final_norm": (None,),
    "output_embedding": (None, "embed"),
    "class_embedding": (None, "embed"),
}


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None):
    """Arrange the devices as data x fsdp x tensor; one size may be -1 and takes the rest. ValueError where they do not multiply to the devices.

    On TPUs of several slices `data` alone goes across them. On other platforms the devices of a host stand beside each other, so that tensor, then fsdp,
    stay within a host where they fit, and any axis may go across hosts.
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


def _arranged(sizes, devices):
    """The devices as an array along the mesh axes, neighbours on the network beside each other; `data` goes across TPU slices, the slow way."""
    if devices[0].platform != "tpu":  # XLA numbers GPU hosts by slice_index, and they are no slices
        hosts = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0) or 0, device.process_index, device.id))
        return np.array(hosts, dtype=object).reshape(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % slices:
        raise ValueError(f"mesh data={sizes[0]} is not divisible by the {slices} slices, across which the model is replicated: set config.mesh.data")
    return mesh_utils.create_hybrid_device_mesh([sizes[0] // slices, *sizes[1:]], [slices, 1, 1], devices, allow_split_physical_axes=True)


def divide(model, devices, axis: str = "fsdp"):
    """All `devices` as the mesh of a model that is used and not trained: as many copies as there can be, each on as few devices along `axis` as hold it.

    `model` is abstract. Where no number of parts leaves room to work (ROOM), it is divided into the most that its sizes allow.
    """
    for parts in (parts for parts in range(1, len(devices) + 1) if len(devices) % parts == 0):
        try:
            sizes = {"fsdp": 1, axis: parts}
            mesh = make_mesh(data=len(devices) // parts, **sizes, devices=devices)
            check_model(mesh, model.config.width, model.config.heads, model.config.mlp)
        except ValueError:  # so many parts do not divide the model, or cross slices
            continue
        found = mesh
        if holds(mesh, model):
            break
    return found


def alone(model):
    """The mesh of a model that one process uses: one device that holds it, else all its devices, which divide heads and mlp, or else the width."""
    devices = jax.local_devices()
    for some, axis in ((devices[:1], "fsdp"), (devices, "tensor"), (devices, "fsdp")):
        mesh = divide(model, some, axis)
        if holds(mesh, model):
            break
    return mesh


def holds(mesh, model) -> bool:
    """Whether each device has room for its part of the float32 parameters, and for the work on them."""
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(model)) <= ROOM * device_memory() * mesh.shape["fsdp"] * mesh.shape["tensor"]


def device_memory() -> float:
    """Bytes of memory of the smallest device of all processes; infinite where the platform does not say, as the CPU."""
    memory = min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in jax.local_devices())
    if jax.process_count() == 1:
        return memory
    from jax.experimental import multihost_utils

    return float(np.min(multihost_utils.process_allgather(np.float32(memory))))


def check_model(mesh, width: int, heads: int, mlp: int) -> None:
    """ValueError where the mesh does not divide the model."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    for name, size, axis, parts in (
        ("heads", heads, "tensor", tensor),
        ("width", width, "fsdp x tensor", fsdp * tensor),
        ("mlp", mlp, "fsdp x tensor", fsdp * tensor),
    ):
        if size % parts:
            raise ValueError(f"{name} {size} is not divisible by {axis} = {parts}: choose config.mesh so that it is (data= takes the rest)")


def check_batch(mesh, batch: int, accumulation_steps: int = 1) -> None:
    """ValueError where the batch does not divide into equal shards."""
    shards = batch_shards(mesh)
    if batch % (shards * accumulation_steps):
        parts = shards * accumulation_steps
        raise ValueError(f"batch_size {batch} is not divisible by {shards} data shards x {accumulation_steps} accumulation steps = {parts}")


def batch_shards(mesh) -> int:
    """Into how many shards a batch falls."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parameter_spec(path: str) -> P:
    """PartitionSpec of the parameter at `path`; KeyError where the table lacks it, so that none is replicated in silence."""
    return P(*(RULES[axis] for axis in PARAMETERS[path]))


def state_shardings(mesh, abstract):
    """A tree of NamedSharding for any tree of arrays in which a model's parameters appear (Adam's moments too); scalars are replicated."""

    def place(path, leaf):
        return NamedSharding(mesh, parameter_spec(parameter_path(path)) if leaf.ndim else P())

    return jax.tree_util.tree_map_with_path(place, abstract)


def placed(mesh, abstract):
    """The shapes and types of a tree with the sharding of each leaf, as a restore or a compile wants them."""
    shardings = state_shardings(mesh, abstract)
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings)


def parameter_path(path) -> str:
    """Name a leaf by the part of its path that the table knows: `opt_state[0].mu.blocks.mlp_in` is `blocks.mlp_in`."""
    found = names(path)
    return ".".join(found[-2:]) if "blocks" in found else found[-1]


def names(path) -> list[str]:
    """The names along a path of a pytree, without the one that nnx.Param adds."""
    found = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    return [name for name in found if name != "value"]


def batch_sharding(mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, P(RULES["batch"]))


@functools.lru_cache(maxsize=16)
def part_of_batch(mesh, batch: int, process: int | None = None):
    """The places of a global batch that a process supplies, int [b] ascending, each once: those of its devices' shards. None: this process.

    Processes that share a shard, as where a tensor group spans them, supply the same places, and those of one process need not be neighbours.
    """
    process = jax.process_index() if process is None else process
    shards = batch_sharding(mesh).devices_indices_map((batch,))
    return np.unique(np.concatenate([np.arange(batch)[index] for device, index in shards.items() if device.process_index == process]))


def shard_batch(mesh, batch):
    """Put this process's part of a batch (a tree of numpy arrays, axis 0 as `part_of_batch` says) on its devices as one global array."""
    place, shards = batch_sharding(mesh), batch_shards(mesh)
    ours = len(part_of_batch(mesh, shards))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x, (len(x) // ours * shards, *x.shape[1:])), batch)


def constrain(x, *axes):
    """Say along which logical axes an activation is sharded; nothing outside a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*(RULES[axis] for axis in axes)))


def per_shard(function, *axes):
    """`function` of arrays that all have these logical axes, run by each device on its own part; as it is outside a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    spec = P(*(RULES[axis] for axis in axes))
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)


def is_divided(axis: str) -> bool:
    """Whether the mesh that is set divides this logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape[RULES[axis]] > 1


def round_up(mesh, batch: int) -> int:
    """The smallest batch not below `batch` that divides into equal shards."""
    shards = batch_shards(mesh)
    return -(-batch // shards) * shards
