"""The maps are the weights of the forward pass: with them the model's own hidden states follow; they lie on the pixels that the keys hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import igpt_jax
from igpt_jax.inspection import maps
from igpt_jax.inspection.lens import logit_lens
from igpt_jax.model.transformer import normalize
from igpt_jax.palette.palette import Palette
from igpt_jax.training.checkpoints import Pretrained
from tests.models import random_model, tiny

KINDS = {
    "learned": {}, "rotary": {"position_encoding": "rotary"}, "axial": {"position_encoding": "axial", "activation": "swiglu"}, "qk_norm": {"qk_norm": True},
    "bias": {"bias": True}, "bert": {"objective": "bert"}, "prefix": {"objective": "prefix"},
    "rgb": {"positions": 48, "tokens_per_pixel": 3, "position_encoding": "rotary"}, "blocks": {"attention": "blocks", "unroll": 3},
    "bfloat16": {"dtype": "bfloat16"},
}  # fmt: skip


def given(config, images=2):
    """(codes, mask, prefix) as the objective takes them."""
    draw = np.random.default_rng(3)
    codes = draw.integers(0, config.vocabulary, (images, config.positions))
    mask = (draw.random(codes.shape) < 0.3).astype(np.float32) if config.objective == "bert" else None
    return codes, mask, np.array([5, 40])[:images] if config.objective == "prefix" else None


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_maps_the_models_own_hidden_states_follow(kind):
    model = random_model(tiny(**KINDS[kind]))
    config = model.config
    codes, mask, prefix = given(config)
    weights_LBNQS = maps.attention_maps(model, codes, mask_BS=mask, prefix_B=prefix)
    hidden = jax.jit(lambda model, *given: model(*given, hidden=True).hidden)(model, codes, mask, prefix)
    np.testing.assert_allclose(weights_LBNQS.sum(axis=-1), 1, atol=1e-5)
    for layer, weights_BNQS in enumerate(weights_LBNQS):
        block = jax.tree.map(lambda stacked, layer=layer: stacked[layer], model.blocks).fold_gains()
        _, _, v_BSNK = block.qkv(normalize(hidden[layer]), jnp.arange(config.positions), config)
        y_BSD = hidden[layer] + block.project(jnp.einsum("bnqs,bsnk->bqnk", weights_BNQS, v_BSNK.astype(jnp.float32), precision="highest"), config)
        expected = (y_BSD + block.mlp(normalize(y_BSD), config)).astype(jnp.float32)
        tolerance = 1e-5 if config.dtype == "float32" else 0.1  # bfloat16 has 8 bits; the hidden states are of the order of 10
        np.testing.assert_allclose(hidden[layer + 1].astype(jnp.float32), expected, rtol=tolerance, atol=tolerance)


def test_a_mask_that_has_no_effect_or_another_shape_is_refused():
    for look in (maps.attention_maps, maps.offset_maps, logit_lens):
        for kind in ("autoregressive", "prefix"):
            model = random_model(tiny(objective=kind))
            codes = given(model.config)[0]
            for mask in (np.ones(codes.shape, np.float32), np.ones((1, 3))):
                with pytest.raises(ValueError, match=f"mask_BS has no effect on a causal model, and the objective of this one is {kind}: leave it out"):
                    look(model, codes, mask_BS=mask)
        bert = random_model(tiny(objective="bert"))
        for shape in ((1, 64), (2, 63), (64,)):
            with pytest.raises(ValueError, match=r"mask_BS must have the shape of the codes, \[2, 64\], not \["):
                look(bert, codes, mask_BS=np.ones(shape, np.float32))
    mask = given(bert.config)[1]
    np.testing.assert_array_equal(maps.attention_maps(bert, codes, [3], [1], mask), maps.attention_maps(bert, codes, [3], [1], mask > 0))


def test_chosen_queries_and_layers_are_those_of_all():
    model = random_model(tiny(objective="prefix", position_encoding="rotary"))
    codes, _, prefix = given(model.config)
    whole = maps.attention_maps(model, codes, prefix_B=prefix)
    some = igpt_jax.attention_maps(Pretrained(model, Palette.levels(16), {}, 0, ""), codes, queries=[63, 7], layers=[3, 1], prefix_B=prefix)
    np.testing.assert_allclose(some, whole[[2, 0]][:, :, :, [63, 7]], atol=1e-6)
    assert (whole[:, 0, :, 0, 1:5] > 0).all() and (whole[:, 0, :, 0, 5:] == 0).all()  # the prefix of 5 sees itself, and a later key is not seen
    short = maps.attention_maps(model, codes[:, :9])
    np.testing.assert_allclose(short, maps.attention_maps(model, codes)[..., :9, :9], atol=1e-5)  # causal: later codes change nothing


@pytest.mark.parametrize("kind", ["learned", "bert", "rgb"])
def test_a_weight_lies_on_the_pixel_whose_colour_it_depends_on(kind):
    """In the first layer, another colour of a pixel changes the key of its token alone: all other weights keep their ratios."""
    model = random_model(tiny(**KINDS[kind]))
    config = model.config
    codes = given(config, 1)[0]
    row, column = config.rows - 2, 1
    changed = codes.copy()
    tokens = maps.tokens_of_pixel(config, row, column)
    changed[:, tokens] = (changed[:, tokens] + 5) % 16
    query = config.positions - 1
    before, after = (maps.on_pixels(config, maps.attention_maps(model, each, [query], [1])[0, 0, :, 0]) for each in (codes, changed))
    ratio_NHH = np.array(after.pixels / np.maximum(before.pixels, 1e-12))
    others_NHH = ratio_NHH / np.array(ratio_NHH[:, :1, :1])
    seen = np.ones((config.rows, config.rows), bool)
    seen[row, column] = False
    if config.causal:
        seen[-1, -1] = config.tokens_per_pixel == 3  # the last token is seen by none; of the last pixel's three tokens two are
        np.testing.assert_allclose(after.start / before.start, ratio_NHH[:, 0, 0], rtol=1e-4)
        np.testing.assert_allclose(before.pixels.sum((1, 2)) + before.start, 1, rtol=1e-5)
    else:
        assert (np.asarray(before.start) == 0).all()
    np.testing.assert_allclose(others_NHH[:, seen], 1, rtol=1e-3)
    assert (np.abs(others_NHH[:, row, column] - 1) > 1e-2).all()


@pytest.mark.parametrize("kind", ["learned", "bert", "rgb"])
def test_the_map_of_a_pixel_shows_what_predicts_it(kind):
    model = random_model(tiny(**KINDS[kind]))
    codes = given(model.config, 1)[0][0]
    found = maps.pixel_maps(model, codes, 2, 3)
    side = model.config.rows
    assert found.pixels.shape == (3, 4, side, side) and found.start.shape == (3, 4)
    np.testing.assert_allclose(found.pixels.sum((2, 3)) + found.start, 1, rtol=1e-5)
    number = np.arange(side**2).reshape(side, side)
    unseen = number > number[2, 3] if model.config.tokens_per_pixel == 3 else number >= number[2, 3]  # a channel sees those before it
    assert (found.pixels[..., unseen] == 0).all() == model.config.causal
    other = codes.copy()
    other[maps.tokens_of_pixel(model.config, 2, 3)[-1] :] = 3
    same = np.allclose(maps.pixel_maps(model, other, 2, 3).pixels, found.pixels, atol=1e-6)
    assert same == model.config.causal
    if not model.config.causal:  # the pixel itself is masked: its colour does not matter
        itself = np.where(np.arange(len(codes)) == maps.tokens_of_pixel(model.config, 2, 3)[0], (codes + 3) % 16, codes)
        np.testing.assert_allclose(maps.pixel_maps(model, itself, 2, 3).pixels, found.pixels, atol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "bert", "prefix", "rgb"])
def test_maps_by_offset_are_means_over_all_pixels(kind):
    model = random_model(tiny(**KINDS[kind]))
    config, side = model.config, model.config.rows
    codes, mask, prefix = given(config)
    offsets, start = maps.offset_maps(model, codes, mask, prefix)
    weights = maps.attention_maps(model, codes, mask_BS=mask, prefix_B=prefix)
    pixels, at_start = maps.on_pixels(config, weights)
    pixels_LBNQHH = np.asarray(pixels).reshape(*weights.shape[:3], side, side, config.tokens_per_pixel, side, side).mean(axis=5)
    for rows, columns in ((0, -1), (-1, 0), (-2, 3), (1, 1), (0, 0)):
        pairs = [(r, c) for r in range(side) for c in range(side) if 0 <= r + rows < side and 0 <= c + columns < side]
        expected = np.mean([pixels_LBNQHH[..., r, c, r + rows, c + columns] for r, c in pairs], axis=0)
        np.testing.assert_allclose(offsets[..., side - 1 + rows, side - 1 + columns], expected, atol=1e-6)
    np.testing.assert_allclose(start, np.asarray(at_start).mean(axis=-1), atol=1e-6)


def test_uniform_attention_and_distances():
    config = tiny(positions=4)
    uniform = maps.uniform_offset_maps(config)  # of 2 x 2 pixels: weights 1, 1/2, 1/3, 1/4 on each position seen
    np.testing.assert_allclose(uniform.start, np.mean([1, 1 / 2, 1 / 3, 1 / 4]))
    np.testing.assert_allclose(uniform.pixels[1], [np.mean([1 / 2, 1 / 4]), 0, 0], atol=1e-7)
    np.testing.assert_allclose(uniform.pixels[0], [1 / 4, np.mean([1 / 3, 1 / 4]), 1 / 3], atol=1e-7)
    weights = np.array([1 / 2 + 1 / 4, 1 / 3 + 1 / 4, 1 / 4 + 1 / 3])  # at distances 1, 1 and the square root of 2
    assert maps.mean_distance(uniform.pixels) == pytest.approx((weights[:2].sum() + weights[2] * 2**0.5) / weights.sum())
    bert = maps.uniform_offset_maps(tiny(positions=4, objective="bert"))
    np.testing.assert_allclose(bert.pixels, 0.25)
    assert bert.start == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"queries": [64]}, r"queries must be a list of whole numbers from 0 to 63, not \[64\]"),
        ({"queries": []}, "queries must be"),
        ({"queries": [1.5]}, "queries must be"),
        ({"layers": [0]}, r"layers must be a list of whole numbers from 1 to 3, not \[0\]"),
        ({"layers": 2}, "layers must be"),
    ],
)
def test_wrong_choices_are_one_line(settings, expected):
    model = random_model(tiny())
    with pytest.raises(ValueError, match=expected):
        maps.attention_maps(model, np.zeros((1, 64), int), **settings)


def test_other_refusals_name_their_numbers(monkeypatch):
    model = random_model(tiny())
    with pytest.raises(ValueError, match="codes must be from 0 to 15"):
        maps.attention_maps(model, np.full((1, 64), 16))
    with pytest.raises(ValueError, match="row 8, column 0 is outside the picture: both must be from 0 to 7"):
        maps.pixel_maps(model, np.zeros(64, int), 8, 0)
    with pytest.raises(ValueError, match="weights on 9 keys are not those of a whole picture of 64 tokens"):
        maps.on_pixels(model.config, np.zeros((2, 9)))
    monkeypatch.setattr(maps, "MOST_BYTES", 2**17)
    with pytest.raises(ValueError, match="3 layers, 1 images, 4 heads, 64 queries and 64 keys take .* give fewer queries, layers or images"):
        maps.attention_maps(model, np.zeros((1, 64), int))
    assert maps.attention_maps(model, np.zeros((1, 64), int), layers=[2], queries=[5]).shape == (1, 1, 4, 1, 64)
