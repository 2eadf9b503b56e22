"""Models that predict squares of pixels together (`ModelConfig.block`): who sees whom, a proper likelihood, and the caches of sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpt_jax.inspection import maps
from igpt_jax.interop import huggingface
from igpt_jax.model import objectives
from igpt_jax.model.attention import attention
from igpt_jax.sampling import generate
from tests.models import random_model, tiny


def test_blocks_are_squares_in_rows_and_a_block_of_one_pixel_is_the_sequence():
    config = tiny(positions=36, block=2)
    assert config.block_of_position().reshape(6, 6)[::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert config.positions_of_blocks()[4].tolist() == [14, 15, 20, 21]
    np.testing.assert_array_equal(config.block_of_position()[config.positions_of_blocks()], np.arange(9).repeat(4).reshape(9, 4))
    np.testing.assert_array_equal(tiny(positions=192, tokens_per_pixel=3).positions_of_blocks()[:, 0], np.arange(192))


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("encoding", ["learned", "rotary"])
def test_the_gradient_of_a_prediction_is_zero_for_its_own_block_and_those_after_it(block, encoding):
    """Each pixel has a code of its own, so that the gradient of its vector is that of the pixel."""
    config = tiny(vocabulary=16, positions=16, layers=2, width=16, position_encoding=encoding, block=block)
    model, codes = random_model(config), np.random.default_rng(0).permutation(16)[None]

    def summed(table_VD):
        changed = jax.tree.map(lambda x: x, model)
        changed.token_embedding[...] = table_VD
        return changed(codes).logits[0] @ jnp.arange(16.0)

    influence = np.abs(jax.jit(jax.jacrev(summed))(model.token_embedding[...])).max(axis=-1)[:, codes[0]]  # [prediction, pixel]
    number = config.block_of_position()
    np.testing.assert_array_equal(influence > 0, number[None] < number[:, None])


def test_the_reference_in_the_order_of_positions_is_causal_attention_bit_for_bit():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
    np.testing.assert_array_equal(attention(q, k, v, True, "reference", order_S=np.arange(16)), attention(q, k, v, True, "reference"))


def test_one_block_for_the_whole_image_makes_its_pixels_independent():
    config = tiny(positions=16, layers=2, block=4)
    model, codes = random_model(config), np.random.default_rng(0).integers(0, 16, (5, 16))
    logits = np.asarray(model(codes).logits)
    np.testing.assert_array_equal(logits, logits[:1].repeat(5, 0))
    assert np.abs(logits[0, 1:] - logits[0, :-1]).max(axis=-1).min() > 1e-3  # each position has colours of its own


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2, 4])
def test_probabilities_of_all_images_sum_to_one(block):
    model = random_model(tiny(vocabulary=2, positions=16, layers=1, width=4, heads=1, block=block))
    images = np.array(list(itertools.product((0, 1), repeat=16)), np.int32)
    nats = jax.lax.map(lambda codes: objectives.next_pixel_loss(model(codes).logits, codes), images.reshape(16, 4096, 16))
    assert np.exp(-16 * np.asarray(nats, float)).sum() == pytest.approx(1, abs=1e-4)  # float32 logits


@pytest.mark.parametrize(
    ("block", "options"), [(1, {}), (2, {"position_encoding": "axial", "bias": True}), (2, {"position_encoding": "rotary", "qk_norm": True})]
)
def test_cached_logits_are_those_of_the_whole_pass_and_given_rows_fill_the_caches(block, options):
    config = tiny(positions=16, layers=2, block=block, **options)
    model, codes = random_model(config), np.random.default_rng(0).integers(0, 16, (3, 16))
    blocks, expected = config.positions_of_blocks(), np.asarray(model(codes).logits)
    step, caches = jax.jit(lambda codes, number, caches: model.decode_block(codes, number, caches)), model.empty_caches(3)
    for number, places in enumerate(blocks):
        logits, caches = step(codes[:, blocks[number - 1]], number, caches)
        np.testing.assert_allclose(logits, expected[:, places], atol=2e-5)
    filled = model(codes[:, :8], cache=True).cache[0]  # the upper half, two rows
    np.testing.assert_allclose(np.stack([keys for keys, _ in caches])[:, :, :, :8], filled.swapaxes(2, 3), atol=2e-5)


@pytest.mark.parametrize("given", [0, 2])
def test_greedy_completion_is_what_the_uncached_model_says_a_block_at_a_time(given):
    config = tiny(positions=16, layers=2, block=2)
    model, codes = random_model(config), np.random.default_rng(0).integers(0, 16, (2, 16))
    prompts = codes[:, : 4 * given]
    made = generate.sample_codes(model, prompts, jax.random.key(0), temperature=0)[:, 0]
    codes[:, 4 * given :] = 0
    for places in config.positions_of_blocks()[given:]:
        codes[:, places] = np.asarray(model(codes).logits[:, places].argmax(axis=-1))
    np.testing.assert_array_equal(made, codes)
    watched = list(generate.sample_rows(model, prompts, jax.random.key(3), 2))
    np.testing.assert_array_equal(watched[-1], generate.sample_codes(model, prompts, jax.random.key(3), 2))
    assert len(watched) == 2 - given // 2 and (watched[0][:, :, 4 * given + 8 :] == 0).all()


def test_weights_of_attention_are_those_of_the_mask():
    model = random_model(tiny(positions=16, layers=1, block=2))
    codes = np.random.default_rng(0).integers(0, 16, (1, 16))
    weights, number = maps.attention_maps(model, codes)[0, 0], model.config.block_of_position()
    np.testing.assert_array_equal(weights > 0, np.broadcast_to(number[None] <= number[:, None], weights.shape))
    with pytest.raises(ValueError, match="predicts blocks of 2 x 2 pixels together"):
        maps.pixel_maps(model, codes[0], 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 3}, "block 3 must be a whole number that divides the side of a square image, here 64 positions"),
        ({"block": 0}, "block 0 must be a whole number"),
        ({"block": 2.0}, "block 2.0 must be a whole number"),
        ({"block": 2, "positions": 60}, "square image, here 60 positions"),
        ({"block": 2, "objective": "bert"}, "block 2 needs objective 'autoregressive' and tokens_per_pixel 1, not objective 'bert', tokens_per_pixel 1"),
        ({"block": 2, "objective": "prefix"}, "not objective 'prefix'"),
        ({"block": 2, "positions": 192, "tokens_per_pixel": 3}, "block 2 must be a whole number that divides the side of a square image, here 192 positions"),
        ({"block": 2, "attention": "cudnn"}, "attention 'cudnn' has no mask of blocks, and block is 2: set attention to 'auto', which takes 'reference'"),
        ({"block": 2, "attention": "splash"}, "attention 'splash' has no mask of blocks"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_calls_that_end_inside_a_block_are_refused():
    model, codes = random_model(tiny(positions=16, layers=1, block=2)), np.zeros((1, 16), int)
    with pytest.raises(ValueError, match=r"codes \[1, 4\] are not whole rows of blocks, of 2 x 4 positions each"):
        model(codes[:, :4])
    with pytest.raises(ValueError, match="not single ones: call decode_block"):
        model.decode(codes[:, 0], 0, model.empty_caches(1))
    with pytest.raises(ValueError, match=r"1 given rows end inside a row of blocks, of 2 x 2 pixels: give a multiple of 2 rows, or fill"):
        generate.sample_codes(model, codes[:, :4], jax.random.key(0))
    with pytest.raises(ValueError, match="transformers' ImageGPT has no block 2"):
        huggingface._check_expressible(model.config, False)
    assert not tiny(block=2, dtype="bfloat16").uses_kernels
