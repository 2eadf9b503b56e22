"""The architecture: properties first, then agreement with the original program."""

import collections
import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.distributed import sharding
from igpt_jax.model import objectives
from igpt_jax.model.transformer import ImageGPT, dense, gelu, look_up, parameter_count, rms_norm, rotate
from igpt_jax.sampling import decode
from tests.models import from_openai, random_model, tiny, to_nested

CODES = jax.random.randint(jax.random.key(7), (2, 64), 0, 16)
ORACLE_TOLERANCE = 2e-5  # ../shared/oracles/README.md: a faithful float64 forward is within 4e-6, the nearest wrong one 4e-5 away


def test_autoregressive_logits_see_only_the_codes_before():
    model = random_model(tiny())
    embedded = jax.jacobian(lambda x: _logits_from_tokens(model, x)[0, 20].sum())(model.token_embedding[...][CODES])
    reach = np.abs(np.asarray(embedded[0])).sum(axis=-1)
    assert (reach[20:] == 0).all() and (reach[:20] > 0).all()


def test_bert_logits_see_both_sides():
    model = random_model(tiny(objective="bert"))
    changed = CODES.at[0, 50].set((CODES[0, 50] + 1) % 16)
    difference = jnp.abs(model(CODES).logits - model(changed).logits)[0].max(axis=-1)
    assert (difference > 1e-6).all()


def test_bert_masked_content_is_unseen_and_its_position_is_kept():
    model = random_model(tiny(objective="bert"))
    mask = jnp.zeros(CODES.shape).at[:, 10:20].set(1)
    changed = CODES.at[:, 10:20].set(3)
    np.testing.assert_array_equal(model(CODES, mask).logits, model(changed, mask).logits)
    masked = model.embed(CODES, mask)[:, 10:20]
    np.testing.assert_array_equal(masked, jnp.broadcast_to(model.position_embedding[...][10:20], masked.shape))


def test_fresh_model_gives_every_colour_the_same_chance():
    model = ImageGPT(tiny(), jax.random.key(0))
    np.testing.assert_allclose(objectives.next_pixel_loss(model(CODES).logits, CODES), np.log(16), rtol=1e-6)


def test_initial_scales_are_the_papers():
    model = ImageGPT(tiny(layers=2, width=256, heads=4, vocabulary=512), jax.random.key(0))
    wanted = {
        "token_embedding": 0.02, "position_embedding": 0.01, "start_vector": 0.02, "output_embedding": 0.0,
        "query_key_value": 256**-0.5, "attention_output": (256 * 2) ** -0.5, "mlp_in": 0.02, "mlp_out": 0.02,
    }  # fmt: skip
    nested = to_nested(model)
    for name, deviation in wanted.items():
        measured = float(jnp.std(nested.get(name, nested["blocks"].get(name))))
        assert measured == pytest.approx(deviation, rel=0.15 if name == "start_vector" else 0.02), name


@pytest.mark.parametrize(("causal", "prefix"), [(True, None), (False, None), (True, [3, 0])])
def test_the_reference_attention_is_the_formula(causal, prefix):
    """One query of one head of one image at a time, in float64."""
    from igpt_jax.model import attention

    q, k, v = np.asarray(jax.random.normal(jax.random.key(0), (3, 2, 7, 3, 4)))
    output = attention.attention(q, k, v, causal, "reference", None if prefix is None else jnp.asarray(prefix))
    for image, position, head in np.ndindex(2, 7, 3):
        seen = max(position + 1, prefix[image] if prefix else 0) if causal else 7
        weights = np.exp(k[image, :seen, head].astype(np.float64) @ q[image, position, head] / np.sqrt(4))
        np.testing.assert_allclose(output[image, position, head], weights / weights.sum() @ v[image, :seen, head], atol=1e-6)


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_attention_over_contiguous_heads_is_the_reference_forward_and_backward(objective):
    def loss(model):
        return (model(CODES).logits ** 2).mean()

    value, gradient = jax.value_and_grad(loss)(random_model(tiny(objective=objective, attention="contiguous")))
    expected, expected_gradient = jax.value_and_grad(loss)(random_model(tiny(objective=objective, attention="reference")))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max() + 1e-9)


@pytest.mark.parametrize("implementation", ["contiguous", "blocks"])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_blocks_of_queries_is_the_same(causal, implementation, monkeypatch):
    from igpt_jax.model import attention

    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 40, 2, 8))

    def value_and_gradients(implementation):
        return jax.value_and_grad(lambda *x: (attention.attention(*x, causal, implementation) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)  # contiguous: 16, 16 and a shorter last one; blocks: 10 each
    (value, gradients), (expected, theirs) = value_and_gradients(implementation), value_and_gradients("reference")
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_splash_attention_is_the_same(causal):
    """The TPU's kernel as plain operations; blocks of 128 in a sequence of 256."""
    from igpt_jax.model import attention

    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 256, 2, 64))

    def value_and_gradients(function):
        return jax.value_and_grad(lambda *x: (function(*x) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    value, gradients = value_and_gradients(lambda *x: attention._splash(*x, causal, interpret=True))
    expected, theirs = value_and_gradients(lambda *x: attention._reference(*x, causal, "highest"))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)  # sums of 256 products in another order


def test_what_auto_means_on_each_platform():
    from igpt_jax.model.attention import resolve

    assert resolve("auto", "tpu", "bfloat16", 1024) == "splash" and resolve("auto", "tpu", "bfloat16", 64) == "contiguous"
    assert resolve("auto", "gpu", "bfloat16", 1024) == "cudnn" and resolve("auto", "gpu", "float32", 1024) == "blocks"
    assert resolve("auto", "cpu", "float32", 1024) == "contiguous" and resolve("reference", "tpu", "float32", 1024) == "reference"


def test_attention_takes_bfloat16():
    exact = random_model(tiny())(CODES).logits
    rounded = random_model(tiny(dtype="bfloat16"))(CODES).logits
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05 * float(jnp.abs(exact).max()))  # 8 bits of mantissa through three blocks


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_the_program_and_not_the_numbers(remat):
    def gradient_of(config):
        return jax.grad(lambda model: objectives.next_pixel_loss(model(CODES).logits, CODES).mean())

    plain, again = random_model(tiny()), random_model(tiny(remat=remat))
    assert str(jax.make_jaxpr(gradient_of(plain))(plain)) != str(jax.make_jaxpr(gradient_of(again))(again))
    ours, theirs = gradient_of(again)(again), gradient_of(plain)(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * float(jnp.abs(b).max()) + 1e-9)


def test_unroll_changes_nothing():
    np.testing.assert_allclose(random_model(tiny(unroll=3))(CODES).logits, random_model(tiny())(CODES).logits, atol=1e-5)


def test_cached_logits_equal_uncached():
    model = random_model(tiny())
    caches, logits = model.empty_caches(2), []
    for position in range(64):
        step, caches = model.decode(CODES[:, position - 1], position, caches)
        logits.append(step)
    np.testing.assert_allclose(jnp.stack(logits, axis=1), model(CODES).logits, atol=1e-4)  # float32 sums in another order


def test_prefilled_cache_equals_cache_filled_step_by_step():
    model = random_model(tiny())
    filled = decode.prefill(model, CODES[:, :40])
    caches = model.empty_caches(2, 40)
    for position in range(40):
        _, caches = model.decode(CODES[:, position - 1], position, caches)
    for (ours, _), (theirs, _) in zip(filled, caches, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_features_are_means_of_normalised_inputs_and_raw_outputs():
    model = random_model(tiny())
    output = model(CODES, hidden=True)
    for layer in range(3):
        gain = model.blocks.attention_norm[...][layer]
        np.testing.assert_allclose(output.features[layer], rms_norm(output.hidden[layer], gain).mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(output.features[3], rms_norm(output.hidden[3], model.final_norm[...]).mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(output.raw_features, output.hidden.mean(axis=2), atol=1e-5)


def test_class_head_reads_the_layer_that_the_config_names():
    for layer in (-1, 1):
        model = random_model(tiny(classes=10, class_layer=layer))
        output = model(CODES)
        np.testing.assert_allclose(output.class_logits, output.features[layer] @ model.class_embedding[...].T, atol=1e-5)


OPTIONS = [
    {"position_encoding": "axial"},
    {"position_encoding": "rotary"},
    {"qk_norm": True},
    {"activation": "swiglu"},
    {"bias": True},
    {"bias": True, "qk_norm": True, "activation": "swiglu", "position_encoding": "axial"},
    {"position_encoding": "rotary", "qk_norm": True, "activation": "swiglu", "positions": 48, "tokens_per_pixel": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_change_the_numbers_and_keep_causality_and_the_cache(options):
    model = random_model(tiny(**options))
    codes = CODES[:, : model.config.positions]
    logits = model(codes).logits
    changed = model(codes.at[0, 20].set((codes[0, 20] + 1) % 16)).logits
    np.testing.assert_array_equal(logits[0, :21], changed[0, :21])
    assert (np.abs(logits[0, 21:] - changed[0, 21:]).max(axis=-1) > 1e-6).all()
    assert np.abs(logits - random_model(tiny(positions=len(codes[0])))(codes).logits).max() > 1e-2
    caches, cached = model.empty_caches(2), []
    for position in range(len(codes[0])):
        step, caches = model.decode(codes[:, position - 1], position, caches)
        cached.append(step)
    np.testing.assert_allclose(jnp.stack(cached, axis=1), logits, atol=1e-4)  # float32 sums in another order


def test_rotary_products_depend_on_the_offset_in_rows_and_columns_alone():
    config = tiny(position_encoding="rotary")  # 8 x 8, heads of 8
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 4, 8))

    def product_of(first, second):
        return (rotate(q, jnp.asarray([first]), config) * rotate(k, jnp.asarray([second]), config)).sum(axis=-1)

    np.testing.assert_allclose(product_of(0, 8 * 2 + 3), product_of(8 * 4 + 2, 8 * 6 + 5), atol=1e-5)  # two rows down, three to the right
    assert np.abs(product_of(0, 8 * 2 + 3) - product_of(0, 8 * 3 + 2)).max() > 1e-2
    assert np.abs(product_of(0, 8 * 2 + 3) - product_of(5, 8 * 3)).max() > 1e-2  # as many places on, and another offset
    np.testing.assert_allclose((rotate(q, jnp.asarray([37]), config) ** 2).sum(), (q**2).sum(), rtol=1e-6)


def test_axial_positions_share_a_vector_along_rows_and_columns():
    model = random_model(tiny(position_encoding="axial"))
    vectors = model.position_vectors(0, 64).reshape(8, 8, 32)
    np.testing.assert_allclose(vectors[2, 3] - vectors[2, 5], vectors[7, 3] - vectors[7, 5], atol=1e-6)
    np.testing.assert_allclose(vectors[2, 3] - vectors[6, 3], vectors[2, 0] - vectors[6, 0], atol=1e-6)


def test_normalised_queries_and_keys_bound_the_attention_however_large_the_input():
    """Unit gains: no product of a query and a key of K entries exceeds K, whatever the weights."""
    model = ImageGPT(tiny(qk_norm=True), jax.random.key(0))
    block = jax.tree.map(lambda stacked: 1000 * stacked[0], model.blocks)
    block.query_norm[...], block.key_norm[...] = jnp.ones(8), jnp.ones(8)
    q, k, _ = block.qkv(jax.random.normal(jax.random.key(1), (2, 64, 32)), jnp.arange(64), model.config)
    assert np.abs(jnp.einsum("bsnk,btnk->bnst", q, k)).max() <= 8 * (1 + 1e-5)


def test_biases_begin_at_zero_where_they_change_nothing_and_are_not_multiplied_by_the_gains():
    fresh, without = ImageGPT(tiny(bias=True), jax.random.key(0)), ImageGPT(tiny(), jax.random.key(0))
    np.testing.assert_array_equal(fresh(CODES).features, without(CODES).features)
    assert parameter_count(fresh) - parameter_count(without) == 3 * (3 * 32 + 32 + 128 + 32)
    model = random_model(tiny(bias=True))
    block, n_BSD = jax.tree.map(lambda stacked: stacked[0], model.blocks), jax.random.normal(jax.random.key(1), (2, 64, 32))
    q, k, v = block.fold_gains().qkv(n_BSD, jnp.arange(64), model.config)
    wanted = jnp.einsum("bsd,dpnk->pbsnk", n_BSD * block.attention_norm[...], block.query_key_value[...], precision="highest")
    np.testing.assert_allclose(jnp.stack([q, k, v]), wanted + block.query_key_value_bias[...][:, None, None], atol=1e-5)
    three_products = block.fold_gains().qkv(n_BSD, jnp.arange(64), tiny(bias=True, attention="cudnn"))
    np.testing.assert_allclose(jnp.stack(three_products), jnp.stack([q, k, v]), atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_every_bias_changes_the_logits(activation):
    model = random_model(tiny(bias=True, activation=activation))
    expected, biases = model(CODES).logits, [name for name in to_nested(model)["blocks"] if "bias" in name]
    assert len(biases) == (5 if activation == "swiglu" else 4)
    for name in biases:
        changed = jax.tree.map(lambda x: x, model)
        getattr(changed.blocks, name)[...] *= 1.5
        assert np.abs(changed(CODES).logits - expected).max() > 1e-3, name


@pytest.mark.parametrize(
    ("kind", "fsdp", "tensor", "axes"), [(None, 1, 1, 2), ("cpu", 2, 1, 2), ("TPU v4", 1, 1, 2), ("TPU v4", 2, 1, 4), ("TPU v4", 1, 2, 4), ("cpu", 1, 2, 4)]
)
def test_a_weight_is_folded_where_no_compiler_would_gather_it(kind, fsdp, tensor, axes):
    device = collections.namedtuple("Device", "device_kind num_cores platform")(kind, 1, "")
    mesh = jax.sharding.AbstractMesh((1, fsdp, tensor), sharding.MESH_AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh) if kind else contextlib.nullcontext():
        text = str(jax.make_jaxpr(lambda x, w: dense(x, w, tiny()))(np.zeros((2, 3, 32), np.float32), np.zeros((32, 3, 2, 16), np.float32)))
    [product] = [line for line in text.splitlines() if "dot_general" in line]
    assert len(re.search(r":f32\[([\d,]+)\] = dot_general", product)[1].split(",")) == axes


def test_the_gradient_of_a_bias_is_summed_in_float32():
    """4,096 ones: a sum in bfloat16 ends at 256, where 256 + 1 is rounded to 256."""
    config, x = tiny(dtype="bfloat16"), jnp.zeros((4096, 32), jnp.bfloat16)
    gradient = jax.grad(lambda bias: dense(x, jnp.zeros((32, 8)), config, bias).astype(jnp.float32).sum())(jnp.zeros(8))
    np.testing.assert_array_equal(gradient, np.full(8, 4096, np.float32))
    text = jax.jit(jax.grad(lambda bias: dense(x, jnp.zeros((32, 8)), config, bias).astype(jnp.float32).sum())).lower(jnp.zeros(8)).as_text()
    assert re.findall(r"stablehlo.reduce.*?tensor<4096x8x(\w+)>", text) == ["f32"]


def test_sampling_keeps_biases_in_float32():
    decoder = random_model(tiny(bias=True, dtype="bfloat16")).decoder()
    types = {name: str(array.dtype) for name, array in to_nested(decoder.blocks[0]).items()}
    assert {name for name, kind in types.items() if kind == "bfloat16"} == {"query_key_value", "attention_output", "mlp_in", "mlp_out"}


def test_a_gated_mlp_has_as_many_parameters_as_the_papers():
    assert tiny(width=768, activation="swiglu").mlp == 2048 and 3 * 2048 == 2 * 4 * 768
    assert tiny(width=512, heads=8, activation="swiglu").mlp == 1408  # 1365.3 rounded up to a multiple of 64


def test_a_prefix_is_seen_both_ways_and_what_follows_stays_causal():
    model = random_model(tiny(objective="prefix"))
    prefix = jnp.asarray([30, 1])

    def reach(position):
        """Which inputs the logits of an image at a position depend on."""
        derivative = jax.jacobian(lambda x: _logits_from_tokens(model, x, prefix)[:, position].sum())(model.token_embedding[...][CODES])
        return np.abs(np.asarray(derivative)).sum(axis=-1) > 0

    np.testing.assert_array_equal(reach(10)[0], np.arange(64) < 29)  # 30 inputs: the start vector and the first 29 codes
    np.testing.assert_array_equal(reach(40)[0], np.arange(64) < 40)
    np.testing.assert_array_equal(reach(10)[1], np.arange(64) < 10)  # a prefix of one is none
    whole = model.forward_features(CODES)
    np.testing.assert_allclose(whole.logits, model(CODES, prefix_B=jnp.asarray([64, 64])).logits, atol=1e-6)
    assert np.abs(whole.features - model(CODES).features).max() > 1e-3
    np.testing.assert_array_equal(random_model(tiny()).forward_features(CODES).logits, random_model(tiny())(CODES).logits)


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_one_device_equals_eight(options):
    from igpt_jax.distributed import sharding

    model = random_model(tiny(**options))
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    codes = jnp.tile(CODES, (4, 1))[:, : model.config.positions]
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, sharding.state_shardings(mesh, model))
        spread = jax.jit(lambda model, codes: model(codes).logits)(placed, jax.device_put(codes, sharding.batch_sharding(mesh)))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(spread, model(codes).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "width 30 is not divisible by 4 heads"),
        ({"objective": "gan"}, "objective 'gan' is unknown"),
        ({"dtype": "float8"}, "dtype 'float8' is unknown"),
        ({"layers": 0}, "layers must be a positive whole number, not 0"),
        ({"position_encoding": "alibi"}, "position_encoding 'alibi' is unknown: one of learned, axial, rotary"),
        ({"position_encoding": "axial", "positions": 60}, "axial positions need a square image, not 60 positions, 1 for each pixel"),
        ({"position_encoding": "rotary", "width": 24}, "rotary positions need heads of a multiple of 4, not 24 / 4 = 6"),
        ({"tokens_per_pixel": 2}, "tokens_per_pixel 2 is unknown: one of 1, 3"),
        ({"activation": "relu"}, "activation 'relu' is unknown"),
        ({"class_layer": 9}, "class_layer 9 must be in -1..3"),
    ],
)
def test_bad_configurations_say_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_flops_are_those_of_the_paper_facts():
    small = tiny(layers=24, width=512, heads=8, vocabulary=512, positions=1024)
    assert small.training_flops() == pytest.approx(0.543e12, rel=1e-3)
    large = tiny(layers=48, width=1536, heads=16, vocabulary=512, positions=1024, objective="bert")
    assert large.training_flops() == pytest.approx(9.282e12, rel=1e-3)


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_parameter_count_is_the_formulas(objective):
    config = tiny(objective=objective)
    L, D, S, V = config.layers, config.width, config.positions, config.vocabulary
    count = L * (12 * D**2 + 2 * D) + D + S * D + 2 * V * D + (D if objective == "autoregressive" else 0)
    assert parameter_count(jax.eval_shape(partial(ImageGPT, config), jax.random.key(0))) == count


@pytest.fixture(params=["openai_ar", "openai_bert"])
def original(request, oracles):
    """(our model with the original's parameters, its numbers, folder)."""
    expected = dict(np.load(oracles / request.param / "expected.npz"))
    config = tiny(classes=10, objective="autoregressive" if request.param == "openai_ar" else "bert")
    return from_openai(expected, config), expected, oracles / request.param


def test_every_output_agrees_with_the_original_program(original):
    model, expected, _ = original
    output = model(expected["X"], _mask(expected), hidden=True, cache=True)
    np.testing.assert_allclose(output.logits, expected["gen_logits"], atol=ORACLE_TOLERANCE)
    np.testing.assert_allclose(output.class_logits, expected["clf_logits"], atol=ORACLE_TOLERANCE)
    np.testing.assert_allclose(output.hidden.swapaxes(0, 1), expected["hidden_states"], atol=ORACLE_TOLERANCE)
    np.testing.assert_allclose(output.features[-1], expected["ln_f"].mean(axis=1), atol=ORACLE_TOLERANCE)
    present = jnp.stack(output.cache, axis=2).transpose(1, 0, 2, 4, 3, 5)  # [L, B, 2, S, N, K] -> [B, L, 2, N, S, K]
    np.testing.assert_allclose(present, expected["present"], atol=ORACLE_TOLERANCE)


def test_losses_and_gradients_agree_with_the_original_program(original):
    model, expected, folder = original
    codes, labels, gradients = expected["X"], expected["Y"].argmax(axis=1), dict(np.load(folder / "grads.npz"))

    def generative(model):
        logits = model(codes, _mask(expected)).logits
        loss = objectives.next_pixel_loss(logits, codes) if model.config.causal else objectives.masked_pixel_loss(logits, codes, _mask(expected))
        return loss.mean()

    def classification(model):
        return objectives.classification_loss(model(codes, _mask(expected)).class_logits, labels).mean()

    for name, loss_of in (("gen", generative), ("clf", classification)):
        loss, gradient = jax.value_and_grad(loss_of)(model)
        assert float(loss) == pytest.approx(float(expected[f"{name}_loss"]), abs=ORACLE_TOLERANCE)
        absent = {key: np.zeros_like(value) for key, value in expected.items() if key.startswith("model/")}
        theirs = absent | {key.removeprefix(f"{name}/"): value for key, value in gradients.items() if key.startswith(f"{name}/")}
        wanted = from_openai(theirs, model.config)
        for ours, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, right, atol=2e-5 * float(jnp.abs(right).max()) + 1e-12)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_eight_devices_give_the_numbers_of_the_original_program(sizes, original):
    from igpt_jax.distributed import sharding

    model, expected, _ = original
    mesh = sharding.make_mesh(*sizes)
    repeated = 8 // len(expected["X"]) + 1
    codes, mask = (None if x is None else jnp.concatenate([x] * repeated)[:8] for x in (jnp.asarray(expected["X"]), _mask(expected)))
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, sharding.state_shardings(mesh, model))
        output = jax.jit(lambda *inputs: placed(*inputs, hidden=True))(*jax.device_put((codes, mask), sharding.batch_sharding(mesh)))
    some = slice(0, len(expected["X"]))
    assert len(output.logits.sharding.device_set) == 8
    np.testing.assert_allclose(output.logits[some], expected["gen_logits"][:8], atol=ORACLE_TOLERANCE)
    np.testing.assert_allclose(output.class_logits[some], expected["clf_logits"][:8], atol=ORACLE_TOLERANCE)
    np.testing.assert_allclose(output.hidden.swapaxes(0, 1)[some], expected["hidden_states"][:8], atol=ORACLE_TOLERANCE)


def test_norm_and_gelu_are_the_originals():
    x = jnp.asarray([[1.0, -2.0, 3.0, 0.5]])
    np.testing.assert_allclose(rms_norm(x, jnp.ones(4)), np.asarray(x) / np.sqrt((np.asarray(x) ** 2).mean() + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(gelu(jnp.asarray(1.0)), 1 / (1 + np.exp(-1.702)), rtol=1e-6)


def _mask(expected):
    """The mask of a bert model's input, 1 where masked: the original's `M` is 1 where the code is seen."""
    return 1 - expected["mask_M"] if "mask_M" in expected else None


def _logits_from_tokens(model, tokens_BSD, prefix_B=None):
    """The model's logits as a function of the token vectors, so that a derivative can be taken."""
    table = tokens_BSD.reshape(-1, tokens_BSD.shape[-1])
    leaves = to_nested(model) | {"token_embedding": table}
    from igpt_jax.training.checkpoints import from_nested

    return from_nested(leaves, model)(jnp.arange(len(table)).reshape(tokens_BSD.shape[:2]), prefix_B=prefix_B).logits


def test_the_gradient_of_a_look_up_is_that_of_an_index():
    table, codes = jax.random.normal(jax.random.key(0), (16, 8)), CODES[:, :20]
    weights = jax.random.normal(jax.random.key(1), (*codes.shape, 8))
    wanted = jax.grad(lambda table: (table[codes] * weights).sum())(table)
    np.testing.assert_allclose(jax.grad(lambda table: (look_up(table, codes, "float32") * weights).sum())(table), wanted, atol=1e-5)
    rounded = jax.grad(lambda table: (look_up(table, codes, "bfloat16") * weights.astype(jnp.bfloat16)).sum())(table)
    np.testing.assert_allclose(rounded, wanted, atol=0.02 * float(np.abs(wanted).max()))
    assert rounded.dtype == jnp.float32, "sums of bfloat16 are float32"


def test_blocks_take_memory_linear_in_the_positions():
    from igpt_jax.model import attention

    def bytes_of(implementation, positions):
        shape = jax.ShapeDtypeStruct((1, positions, 2, 8), jnp.float32)
        gradient = jax.grad(lambda q, k, v: attention.attention(q, k, v, True, implementation).sum(), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of("blocks", 2048) < 2.5 * bytes_of("blocks", 1024)
    assert bytes_of("blocks", 2048) < bytes_of("reference", 2048) / 4


def test_products_of_float32_have_the_precision_of_the_config():
    """Of every product in the forward pass; attention's too, with each implementation that float32 may have."""
    for implementation in ("contiguous", "blocks", "reference"):
        for precision, name in (("highest", "HIGHEST"), ("high", "HIGH")):
            config = tiny(matmul_precision=precision, attention=implementation)
            text = jax.jit(lambda m, c: m(c).logits).lower(random_model(config), CODES).as_text()
            assert set(re.findall(r"precision = \[(\w+), (\w+)\]", text)) == {(name, name)}, (implementation, precision)
    assert tiny(dtype="bfloat16", matmul_precision="high").precision == "default"
