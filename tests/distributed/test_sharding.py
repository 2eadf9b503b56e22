"""The two tables: nothing is replicated by a slip, and what does not divide is said."""

import collections
import dataclasses
import importlib
import math
import random
from functools import partial

import jax
import numpy as np
import pytest

from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from tests.models import tiny


def test_the_table_names_exactly_the_parameters_of_the_model():
    names = set()
    for options in ({"classes": 10}, {"objective": "bert"}, {"position_encoding": "axial", "qk_norm": True, "activation": "swiglu", "bias": True}):
        model = jax.eval_shape(partial(ImageGPT, tiny(**options)), jax.random.key(0))
        names |= {sharding.parameter_path(path) for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]}
    assert names == set(sharding.PARAMETERS)


def test_a_misspelt_parameter_is_an_error():
    with pytest.raises(KeyError, match="mlp_inn"):
        sharding.parameter_spec("blocks.mlp_inn")


def test_rules_use_only_axes_of_the_mesh():
    for axis in sharding.RULES.values():
        for name in axis if isinstance(axis, tuple) else (axis,):
            assert name is None or name in sharding.MESH_AXES


def test_specs_have_an_entry_for_every_dimension():
    model = jax.eval_shape(partial(ImageGPT, tiny(classes=10)), jax.random.key(0))
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        assert len(sharding.parameter_spec(sharding.parameter_path(path))) == leaf.ndim


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((3, 1, 1), "does not make 8 devices"), ((-1, -1, 1), "does not make 8 devices"), ((3, -1, 1), "does not make 8 devices"), ((0, 8, 1), "does not make")],
)
def test_meshes_that_do_not_multiply_to_the_devices(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(*sizes)


@pytest.mark.parametrize(
    ("given", "sizes"), [({}, (1, 8, 1)), ({"data": -1, "fsdp": 2, "tensor": 2}, (2, 2, 2)), ({"data": 2}, (2, 4, 1)), ({"fsdp": 2, "tensor": -1}, (1, 2, 4))]
)
def test_one_size_takes_the_rest(given, sizes):
    assert sharding.make_mesh(**given).devices.shape == sizes
    assert sharding.make_mesh(devices=jax.devices()[:1]).devices.shape == (1, 1, 1)


def test_a_leaf_is_placed_by_its_parameter_wherever_it_stands_and_a_scalar_on_all():
    mesh, leaf, number = sharding.make_mesh(1, 4, 2), jax.ShapeDtypeStruct((3, 32, 128), np.float32), jax.ShapeDtypeStruct((), np.int32)
    moments = {"blocks": {"mlp_in": leaf}, "final_norm": jax.ShapeDtypeStruct((32,), np.float32)}
    tree = {"blocks": {"mlp_in": leaf}, "opt_state": {"adam": {"mu": moments, "count": number}}}
    found = jax.tree.map(lambda place: place.spec, sharding.state_shardings(mesh, tree))
    moments = found["opt_state"]["adam"]
    assert found["blocks"]["mlp_in"] == moments["mu"]["blocks"]["mlp_in"] == jax.P(None, "fsdp", "tensor")
    assert moments["mu"]["final_norm"] == jax.P(None) and moments["count"] == jax.P()


def test_a_batch_of_one_process_is_the_global_batch():
    mesh = sharding.make_mesh(2, 2, 2)
    batch = {"codes": np.arange(24).reshape(12, 2), "label": np.arange(12)}
    placed = sharding.shard_batch(mesh, batch)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {3}


def test_an_axis_is_divided_where_its_mesh_axis_has_several_devices():
    assert not sharding.is_divided("heads")
    for tensor in (1, 2):
        with jax.set_mesh(sharding.make_mesh(tensor=tensor)):
            assert sharding.is_divided("embed") and sharding.is_divided("heads") == (tensor > 1)


def test_the_devices_of_a_mesh_say_whether_they_are_of_a_cpu_also_where_a_program_is_compiled_for_others():
    assert not sharding.on_cpu()
    with jax.set_mesh(sharding.make_mesh()):
        assert sharding.on_cpu()
    topology = collections.namedtuple("Device", "device_kind num_cores platform")("TPU v4", 1, "tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1, 2, 1), sharding.MESH_AXES, abstract_device=topology)):
        assert not sharding.on_cpu()


def test_models_and_batches_that_do_not_divide():
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    with pytest.raises(ValueError, match="heads 6 is not divisible by tensor = 4"):
        sharding.check_model(mesh, 48, 6, 192)
    with pytest.raises(ValueError, match="width 20 is not divisible by fsdp x tensor = 8"):
        sharding.check_model(mesh, 20, 4, 80)
    with pytest.raises(ValueError, match="mlp 2048 is not divisible by fsdp x tensor = 6"):  # a gated mlp of width 768
        sharding.check_model(sharding.make_mesh(fsdp=3, tensor=2, devices=jax.devices()[:6]), 768, 12, 2048)
    with pytest.raises(ValueError, match=r"batch_size 10 is not divisible by 2 data shards x 2 accumulation steps = 4"):
        sharding.check_batch(mesh, 10, 2)
    assert sharding.round_up(mesh, 5) == 6


def test_constrain_is_nothing_outside_a_mesh():
    x = jax.numpy.ones((2, 3))
    assert sharding.constrain(x, "batch", None) is x


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as XLA describes it in a cluster of hosts of `of_host`: each host has a slice_index of its own."""

    id: int
    of_host: int
    a_process: bool  # one process for each GPU, as SLURM starts them; else for each host
    platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    @property
    def slice_index(self):
        return self.id // self.of_host

    @property
    def process_index(self):
        return self.id if self.a_process else self.slice_index


class Dealt(Gpu):
    """Processes are dealt out to two hosts in turns."""

    @property
    def slice_index(self):
        return self.id % 2


def gpus(count, of_host=8, a_process=True):
    return [Gpu(number, of_host, a_process) for number in range(count)]


def hosts(devices):
    return {device.slice_index for device in np.ravel(devices)}


@pytest.mark.parametrize("sizes", [(1, 16, 1), (1, 8, 2), (1, 2, 8), (2, 4, 2), (4, 4, 1), (1, 1, 16), (8, 1, 2)])
def test_hosts_of_gpus_are_no_slices_and_the_inner_axes_stay_in_a_host_where_they_fit(sizes):
    """Also where processes are dealt out to the hosts in turns, so that the ids of neighbours are of two hosts."""
    for devices in (gpus(16), gpus(16, a_process=False), random.Random(0).sample(gpus(16), 16), [Dealt(number, 8, True) for number in range(16)]):
        mesh = sharding.make_mesh(*sizes, devices=devices)
        assert mesh.devices.shape == sizes and len(set(mesh.devices.flat)) == 16
        if sizes[2] <= 8:
            assert all(len(hosts(group)) == 1 for replica in mesh.devices for group in replica)
        if sizes[1] * sizes[2] <= 8:
            assert all(len(hosts(replica)) == 1 for replica in mesh.devices)


def test_a_model_that_is_used_takes_as_few_devices_as_hold_it(monkeypatch):
    """iGPT-XL in float32, 27 GB, and iGPT-S on chips of several sizes; heads before width where one process uses it."""
    largest, small = (
        jax.eval_shape(partial(ImageGPT, ModelConfig(**importlib.import_module(f"configs.{name}").get_config().model)), jax.random.key(0))
        for name in ("xl", "s")
    )
    for memory, parts in ((math.inf, 1), (80e9, 1), (40e9, 2), (16e9, 4), (2e9, 8)):
        monkeypatch.setattr(sharding, "device_memory", lambda memory=memory: memory)
        assert dict(sharding.divide(largest, jax.devices()).shape) == {"data": 8 // parts, "fsdp": parts, "tensor": 1}
        if memory > 16e9:
            assert dict(sharding.alone(largest).shape) == {"data": 1 if parts == 1 else 8 // parts, "fsdp": 1, "tensor": parts}
        assert sharding.alone(small).size == 1
    odd = jax.eval_shape(partial(ImageGPT, tiny(width=36, heads=3)), jax.random.key(0))
    monkeypatch.setattr(sharding, "device_memory", lambda: 1.0)
    assert dict(sharding.divide(odd, jax.devices()).shape) == {"data": 2, "fsdp": 4, "tensor": 1}  # 36 and 144 are not divisible by 8


def test_the_rows_of_a_process_are_those_of_its_devices_shards():
    """Sets of places over processes x devices x meshes, each computed by hand from the rows of the mesh."""
    cases = {  # (hosts of so many GPUs, mesh, batch): places of each process
        (1, (1, 1, 2), 4): [[0, 1, 2, 3]] * 2,  # a tensor group that spans two processes
        (1, (1, 2, 2), 4): [[0, 1], [0, 1], [2, 3], [2, 3]],
        (2, (1, 4, 1), 4): [[0, 1], [2, 3]],
        (2, (2, 1, 2), 4): [[0, 1], [2, 3]],
        (4, (1, 2, 4), 6): [[0, 1, 2], [3, 4, 5]],
        (2, (1, 2, 4), 6): [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]],
    }
    for (each, sizes, batch), expected in cases.items():
        mesh = sharding.make_mesh(*sizes, devices=gpus(math.prod(sizes), of_host=each, a_process=False))
        assert [sharding.part_of_batch(mesh, batch, process).tolist() for process in range(len(expected))] == expected, (each, sizes)
    crossed = np.array(gpus(8, of_host=2, a_process=False), dtype=object).reshape(2, 4).T[None]  # as a TPU's torus is dealt out: host 0 is in shards 0 and 1
    mesh = jax.sharding.Mesh(crossed, sharding.MESH_AXES)
    assert [sharding.part_of_batch(mesh, 8, process).tolist() for process in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    apart = np.array(gpus(4, of_host=2, a_process=False), dtype=object)[[0, 2, 1, 3]].reshape(1, 4, 1)
    mesh = jax.sharding.Mesh(apart, sharding.MESH_AXES)
    assert [sharding.part_of_batch(mesh, 8, process).tolist() for process in range(2)] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_slices_are_joined_by_replicas_alone():
    """Two slices of 2 x 2 chips as the TPU runtime describes them: `data` goes across, and cannot be 1."""

    class Chip:
        platform, device_kind, process_index = "tpu", "TPU v5 lite", 0

        def __init__(self, number):
            self.id, self.slice_index, self.coords, self.core_on_chip = number, number // 4, (number % 2, number // 2 % 2, 0), 0

    chips = [Chip(number) for number in range(8)]
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2, devices=chips)
    assert [{chip.slice_index for chip in replica.flat} for replica in mesh.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match=r"mesh data=1 is not divisible by the 2 slices, across which the model is replicated: set config.mesh.data"):
        sharding.make_mesh(data=1, fsdp=4, tensor=2, devices=chips)
    assert sharding.make_mesh(data=1, fsdp=2, tensor=2, devices=chips[:4]).devices.shape == (1, 2, 2)
