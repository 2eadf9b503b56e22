"""One training step: what it depends on, that it learns, that sharding and accumulation change nothing."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.distributed import hlo, sharding
from igpt_jax.model import objectives
from igpt_jax.training import step
from igpt_jax.training.optimizer import OptimConfig
from igpt_jax.training.step import LossConfig, abstract_state, eval_step, init_state, jit_train_step, train_step
from tests.models import random_model, tiny, to_nested

OPTIM = OptimConfig(
    name="adam", learning_rate=0.01, schedule="cosine", warmup_steps=2, decay_steps=0, steps=50,
    beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.0, clip_norm=0.0, loss_spike_factor=0.0, ema_decay=0.0, base_width=0, layer_decay=1.0, frozen_layers=0
)  # fmt: skip
LOSS = LossConfig(generative=1.0, classification=0.0, mask_probability=0.15, evaluation_masks=5)
BATCH = {"codes": jax.random.randint(jax.random.key(1), (16, 64), 0, 16).at[:, ::2].set(3), "label": jnp.arange(16) % 10, "index": 5 * jnp.arange(16)}


def losses(mesh, steps=10, config=None, loss=LOSS, **settings):
    """Loss curve on one repeated batch, and the last state."""
    config = config or tiny()
    step = jax.jit(partial(train_step, optim_config=OPTIM, loss_config=loss, **settings))
    with jax.set_mesh(mesh):
        state, curve = init_state(config, mesh, jax.random.key(0)), []
        batch = sharding.shard_batch(mesh, jax.tree.map(np.asarray, BATCH))
        for _ in range(steps):
            state, metrics = step(state, batch, jax.random.key(2))
            curve.append(float(metrics["loss"]))
    return np.asarray(curve), state


@pytest.fixture(scope="module")
def one_device():
    return losses(sharding.make_mesh(devices=jax.devices()[:1]), 20)[0]


def test_loss_starts_at_the_logarithm_of_the_palette_and_falls(one_device):
    assert one_device[0] == pytest.approx(np.log(16), rel=1e-5)
    assert one_device[-1] < 0.8 * one_device[0]


MESHES = [(2, 2, 2), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((8, 1, 1), (1, 8, 1), (1, 4, 2), (4, 1, 2), (1, 2, 4)))]


@pytest.mark.parametrize("sizes", MESHES)
def test_every_mesh_gives_the_loss_curve_of_one_device(sizes, one_device):
    curve, state = losses(sharding.make_mesh(*sizes), 20)
    np.testing.assert_allclose(curve, one_device, rtol=1e-5)
    expected = sharding.state_shardings(sharding.make_mesh(*sizes), state)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)

@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (1, 2, 4), (2, 2, 2)])
def test_parameters_are_gathered_layer_by_layer_and_heads_never(sizes):
    """Outside the loop over layers nothing that has a layer axis is gathered; inside, weights of one layer, and no head of another shard."""
    mesh, config = sharding.make_mesh(*sizes), tiny(layers=7, heads=8, width=96, remat="full")  # 64 positions, heads of 12
    batch = {"codes": jax.ShapeDtypeStruct((16, 64), jnp.int32), "index": jax.ShapeDtypeStruct((16,), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh)) for name, x in batch.items()}
    with jax.set_mesh(mesh):
        step = jit_train_step(mesh, config, OPTIM, LOSS)
        text = step.lower(abstract_state(config, mesh), batch, jax.random.key(0)).compile().as_text()
    gathered = [tuple(map(int, shape.split(","))) for shape in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)]
    assert not [shape for shape in gathered if shape[0] == config.layers]
    one_layer = (96, 3, 8 // sizes[2], 12) if sizes[2] > 1 else (96, 3 * 96)  # queries, keys and values: of this shard's heads, or as one matrix
    assert one_layer in gathered
    assert not [shape for shape in gathered if {64, 12} <= set(shape)]
    [loops] = [{row["in_loop"] for row in hlo.collectives(text) if row["kind"] == "all-gather"}]
    assert loops == {True, False}


@pytest.mark.slow
def test_biases_learn_alike_on_one_device_and_on_eight():
    for activation in ("gelu", "swiglu"):
        config = tiny(bias=True, activation=activation)
        curve, state = losses(sharding.make_mesh(2, 2, 2), config=config)
        expected, _ = losses(sharding.make_mesh(devices=jax.devices()[:1]), config=config)
        np.testing.assert_allclose(curve, expected, rtol=1e-5)
        biases = {name: array for name, array in to_nested(state.model)["blocks"].items() if "bias" in name}
        assert len(biases) == {"gelu": 4, "swiglu": 5}[activation] and all(np.abs(bias).max() > 1e-3 for bias in biases.values())
        assert biases["query_key_value_bias"].sharding.shard_shape((3, 3, 4, 8)) == (3, 3, 2, 8)  # heads on the tensor axis
        assert biases["mlp_in_bias"].sharding.shard_shape((3, config.mlp)) == (3, config.mlp // 2)


def test_a_prefix_is_drawn_in_training(one_device):
    curve, _ = losses(sharding.make_mesh(devices=jax.devices()[:1]), 20, config=tiny(objective="prefix"))
    assert curve[0] == pytest.approx(np.log(16), rel=1e-5) and curve[-1] < 0.8 * curve[0]
    assert np.abs(curve[1:] - one_device[1:]).max() > 1e-3


def step_once(state, batch, optim=OPTIM):
    return jax.jit(partial(train_step, optim_config=optim, loss_config=LOSS))(state, batch, jax.random.key(2))


def test_a_gradient_that_is_no_number_changes_nothing_and_is_counted():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = init_state(tiny(), mesh, jax.random.key(0))
    state, metrics = step_once(state, BATCH)
    assert int(metrics["skipped"]) == 0
    gain = state.model.final_norm[...]
    broken = jax.tree.map(lambda leaf: leaf, state)
    broken.model.final_norm[...] = gain * jnp.nan
    for expected in (1, 2):
        after, metrics = step_once(broken, BATCH)
        assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == expected
        assert int(after.step) == int(broken.step) + 1 and float(after.guard.mean_loss) == float(state.guard.mean_loss)
        for ours, theirs in zip(jax.tree.leaves((after.model, after.opt_state)), jax.tree.leaves((broken.model, broken.opt_state)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        broken = after
    broken.model.final_norm[...] = gain
    _, metrics = step_once(broken, BATCH)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 0)


@pytest.mark.slow
def test_a_jump_of_the_loss_is_skipped_only_where_the_recipe_asks_for_it():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    for loss_spike_factor, skipped in ((0.0, 0), (1.5, 1)):
        optim = dataclasses.replace(OPTIM, loss_spike_factor=loss_spike_factor)
        state = init_state(tiny(), mesh, jax.random.key(0))
        state, _ = step_once(state, BATCH, optim)
        state = dataclasses.replace(state, guard=dataclasses.replace(state.guard, mean_loss=state.guard.mean_loss / 2))
        state, metrics = step_once(state, BATCH, optim)
        assert int(metrics["skipped"]) == skipped


def test_accumulation_changes_nothing(one_device):
    curve, _ = losses(sharding.make_mesh(devices=jax.devices()[:2]), gradient_accumulation_steps=4)
    np.testing.assert_allclose(curve, one_device[:10], rtol=1e-5)


def test_a_batch_is_run_in_as_many_parts_as_asked_for(monkeypatch):
    """The sizes of the batches whose gradients are taken: to be divided changes no loss, only the memory."""
    sizes, loss = set(), step.loss_and_metrics
    monkeypatch.setattr(step, "loss_and_metrics", lambda *given, **settings: sizes.add(given[1]["codes"].shape) or loss(*given, **settings))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    for steps, size in ((None, 16), (1, 16), (2, 8), (8, 2)):
        settings = {} if steps is None else {"gradient_accumulation_steps": steps}
        sizes.clear()
        with jax.set_mesh(mesh):
            jax.eval_shape(partial(train_step, optim_config=OPTIM, loss_config=LOSS, **settings), abstract_state(tiny(), mesh), BATCH, jax.random.key(2))
        assert sizes == {(size, 64)}


def test_the_learning_rate_logged_is_the_one_applied_after_skipped_updates_too():
    """Of two states that differ in their step alone, as after skips, the updates are in the ratio of the rates that are logged."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state, _ = step_once(init_state(tiny(layers=1), mesh, jax.random.key(0)), BATCH)
    moved, rates = [], []
    for number in (1, 25):
        after, metrics = step_once(dataclasses.replace(state, step=jnp.int32(number)), BATCH)
        moved.append(np.asarray(after.model.output_embedding[...] - state.model.output_embedding[...], np.float64))
        rates.append(float(metrics["learning_rate"]))
    assert rates == pytest.approx([0.005, 0.005 * (1 + np.cos(np.pi * 23 / 48))], rel=1e-5)
    np.testing.assert_allclose(moved[1], moved[0] * rates[1] / rates[0], atol=1e-6)


def test_wsd_is_stable_and_then_falls_to_zero_over_the_last_steps():
    from igpt_jax.training.optimizer import make_schedule

    rate = make_schedule(dataclasses.replace(OPTIM, schedule="wsd", decay_steps=10))
    assert [float(rate(step)) for step in (0, 1, 2, 40, 45, 50)] == pytest.approx([0, 0.005, 0.01, 0.01, 0.005, 0], abs=1e-8)
    stable = make_schedule(dataclasses.replace(OPTIM, schedule="wsd"))
    assert [float(stable(step)) for step in (1, 2, 50)] == pytest.approx([0.005, 0.01, 0.01])
    assert float(make_schedule(dataclasses.replace(OPTIM, schedule="wsd", warmup_steps=0, decay_steps=50))(25)) == pytest.approx(0.005)
    with pytest.raises(ValueError, match="warmup_steps 2 [+] decay_steps 49 must be at most the run's 50 steps"):
        dataclasses.replace(OPTIM, schedule="wsd", decay_steps=49)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate_warms_up_and_follows_the_schedule(schedule):
    from igpt_jax.training.optimizer import make_schedule

    rate = make_schedule(dataclasses.replace(OPTIM, schedule=schedule))
    assert float(rate(0)) == 0 and float(rate(1)) == pytest.approx(0.005) and float(rate(2)) == pytest.approx(0.01)
    assert float(rate(50)) == pytest.approx(0 if schedule == "cosine" else 0.01, abs=1e-9)
    at_once = make_schedule(dataclasses.replace(OPTIM, schedule=schedule, warmup_steps=0))
    assert float(at_once(0)) == pytest.approx(0.01) and float(at_once(25)) == pytest.approx(0.005 if schedule == "cosine" else 0.01)


def test_bert_masks_differ_from_step_to_step_and_not_from_run_to_run():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = tiny(objective="bert")
    frozen = dataclasses.replace(OPTIM, learning_rate=1e-12)
    step = jax.jit(partial(train_step, optim_config=frozen, loss_config=LOSS))
    def curve():
        state = dataclasses.replace(init_state(config, mesh, jax.random.key(0)), model=random_model(config))
        values = []
        for _ in range(3):
            state, metrics = step(state, BATCH, jax.random.key(2))
            values.append(float(metrics["loss"]))
        return values

    first = curve()
    assert len(set(first)) == 3 and first == curve()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["bert", "prefix"])
def test_what_is_drawn_for_an_image_depends_on_it_and_the_step_alone(objective):
    """Not on where in the batch it stands, into how many parts the batch falls, or on how many devices: the loss and its gradient are the same."""
    config, order = tiny(objective=objective), np.random.default_rng(0).permutation(16)

    def first_step(devices=1, batch=BATCH, **settings):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        state = dataclasses.replace(init_state(config, mesh, jax.random.key(0)), step=jnp.int32(3), model=random_model(config))
        with jax.set_mesh(mesh):
            _, metrics = jax.jit(partial(train_step, optim_config=OPTIM, loss_config=LOSS, **settings))(state, batch, jax.random.key(2))
        return [float(metrics[name]) for name in ("loss", "gradient_norm")]

    whole = first_step()
    shuffled = jax.tree.map(lambda x: x[order], BATCH)
    accumulated = [first_step(gradient_accumulation_steps=4), first_step(gradient_accumulation_steps=16), first_step(4, gradient_accumulation_steps=2)]
    for other in (*accumulated, first_step(batch=shuffled)):
        np.testing.assert_allclose(other, whole, rtol=1e-5)
    others = first_step(batch=BATCH | {"index": jnp.arange(16)})
    assert abs(others[0] - whole[0]) > 1e-3  # it is the index


def test_joint_loss_adds_the_class_head_and_trains_it():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    curve, state = losses(mesh, 3, tiny(classes=10), dataclasses.replace(LOSS, classification=1.0))
    assert curve[0] == pytest.approx(np.log(16) + np.log(10), rel=1e-5)
    assert float(jnp.abs(state.model.class_embedding[...]).max()) > 0


def test_evaluation_ignores_padding():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    _, state = losses(mesh, 2, tiny(classes=10), dataclasses.replace(LOSS, classification=1.0))
    step = jax.jit(partial(eval_step, loss_config=LOSS))
    batch = BATCH | {"weight": jnp.ones(16), "index": jnp.arange(16)}
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:4]]), batch) | {"weight": jnp.r_[jnp.ones(16), jnp.zeros(4)]}
    for name, value in step(state.model, batch, jax.random.key(0)).items():
        np.testing.assert_allclose(step(state.model, padded, jax.random.key(0))[name], value, rtol=1e-5)


@pytest.mark.parametrize("objective", ["autoregressive", "prefix", "bert"])
def test_what_is_measured_by_hand(objective):
    """In training and in an evaluation, of a model with three tokens to a pixel: its nats are those of a pixel, its first five classes count."""
    model, key = random_model(tiny(objective=objective, layers=1, positions=48, tokens_per_pixel=3, classes=10)), jax.random.key(3)
    label, weight = np.arange(16) % 10, np.arange(16) % 4 / 2
    batch = {"codes": BATCH["codes"][:, :48], "label": jnp.asarray(label), "index": BATCH["index"]}

    @jax.jit
    def all_of_it(model, batch):
        joint, each = LossConfig(generative=0.5, classification=2.0, mask_probability=0.3, evaluation_masks=1), objectives.image_keys(key, batch["index"])
        passes = [objectives.generative_loss(model, batch["codes"], each, 0.3, training=training) for training in (True, False)]
        measured = eval_step(model, batch | {"weight": jnp.asarray(weight)}, key, loss_config=joint)
        return step.loss_and_metrics(model, batch, key, joint), measured, passes, model.forward_features(batch["codes"]).class_logits

    (loss, metrics), sums, ((nats, training), (nats_seen, evaluation)), seen = jax.tree.map(lambda x: np.asarray(x, np.float64), all_of_it(model, batch))
    logits = seen if objective == "prefix" else evaluation.class_logits

    def class_nats(logits):
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), label]

    ranks = (logits > logits[np.arange(16), label][:, None]).sum(axis=1)
    correct = [(weight * (ranks < most)).sum() for most in (1, 5)]
    assert sums == pytest.approx({
        "nats": 3 * (weight * nats_seen).sum(), "images": weight.sum(), "correct": correct[0], "correct_top5": correct[1],
        "correct_one_mask": correct[0], "class_nats": (weight * class_nats(logits)).sum(),
    }, rel=1e-4)  # fmt: skip
    assert correct[0] < correct[1] < weight.sum()
    expected = {"nats_per_pixel": 3 * nats.mean(), "class_nats": class_nats(training.class_logits).mean()}
    expected |= {"accuracy": (training.class_logits.argmax(axis=1) == label).mean(), "loss": 0.5 * nats.mean() + 2 * expected["class_nats"]}
    assert metrics == pytest.approx(expected, rel=1e-4) and loss == metrics["loss"]


def test_abstract_state_is_the_state():
    mesh = sharding.make_mesh()
    abstract, real = abstract_state(tiny(), mesh), init_state(tiny(), mesh, jax.random.key(0))
    assert jax.tree.structure(abstract) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(real), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and b.sharding.is_equivalent_to(a.sharding, b.ndim)


@pytest.mark.parametrize(
    ("mean", "loss", "norm", "loss_spike_factor", "expected"),
    [
        (1.0, 2.0, 5.0, 2.0, (True, 4, 0, 1.01)),  # as high as may be; the mean is of a hundred steps
        (1.0, 2.01, 5.0, 2.0, (False, 5, 3, 1.0)),
        (1.0, 50.0, 5.0, 0.0, (True, 4, 0, 1.49)),
        (0.0, 50.0, 5.0, 2.0, (True, 4, 0, 50.0)),  # the first step that counts
        (1.0, np.nan, 5.0, 0.0, (False, 5, 3, 1.0)),
        (1.0, 1.0, np.inf, 0.0, (False, 5, 3, 1.0)),
        (0.0, np.inf, np.nan, 2.0, (False, 5, 3, 0.0)),
    ],
)
def test_the_guard_by_hand(mean, loss, norm, loss_spike_factor, expected):
    """Four steps skipped before, the last two in a row: (whether this one is taken, skipped, skipped in a row, mean of the losses)."""
    guard = step.Guard(jnp.asarray(4), jnp.asarray(2), jnp.float32(mean))
    good, after = step._accept_update(guard, jnp.float32(loss), jnp.float32(norm), loss_spike_factor)
    assert (bool(good), int(after.skipped), int(after.skipped_in_a_row), pytest.approx(float(after.mean_loss))) == expected


SCATTERS = [{}, {"objective": "bert"}, {"objective": "prefix"}, {"position_encoding": "axial"}, {"classes": 10}, {"dtype": "bfloat16"}]


@pytest.mark.parametrize("options", SCATTERS, ids=str)
def test_no_gradient_is_a_scatter_that_sums(options):
    """XLA's scatters on GPUs sum in another order each time, and those of its deterministic mode are slow and were wrong (jax issue 27796)."""
    loss = dataclasses.replace(LOSS, classification=float("classes" in options))
    mesh, config = sharding.make_mesh(devices=jax.devices()[:1]), tiny(**options)
    lowered = jit_train_step(mesh, config, OPTIM, loss).lower(abstract_state(config, mesh), BATCH, jax.random.key(0))
    scatters = re.findall(r"stablehlo.scatter.*?unique_indices = (\w+)|scatter_add", lowered.as_text())
    assert set(scatters) == {"true"}, "positions alone, each once"
