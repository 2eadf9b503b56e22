"""The two tables: nothing is replicated by a slip, and what does not divide is said."""

from functools import partial

import jax
import pytest

from igpt_jax import sharding
from igpt_jax.model import ImageGPT
from tests.models import tiny


def test_the_table_names_exactly_the_parameters_of_the_model():
    names = set()
    for options in ({"classes": 10}, {"objective": "bert"}, {"position_encoding": "axial", "qk_norm": True, "activation": "swiglu"}):
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


def test_models_and_batches_that_do_not_divide():
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    with pytest.raises(ValueError, match="heads 6 is not divisible by tensor = 4"):
        sharding.check_model(mesh, 48, 6, 192)
    with pytest.raises(ValueError, match="width 20 is not divisible by fsdp x tensor = 8"):
        sharding.check_model(mesh, 20, 4, 80)
    with pytest.raises(ValueError, match=r"batch_size 10 is not divisible by 2 data shards x 2 accumulation steps = 4"):
        sharding.check_batch(mesh, 10, 2)
    assert sharding.round_up(mesh, 5) == 6


def test_constrain_is_nothing_outside_a_mesh():
    x = jax.numpy.ones((2, 3))
    assert sharding.constrain(x, "batch", None) is x


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
        sharding.make_mesh(data=1, fsdp=8, tensor=1, devices=chips)
