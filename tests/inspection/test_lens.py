"""The lens shows what a model cut off after a layer would predict, and its last entry is the model itself, as `igpt_jax.evaluate` measures it."""

import dataclasses

import jax
import numpy as np
import pytest

import igpt_jax
from igpt_jax.inspection import batches, lens
from igpt_jax.model.objectives import cross_entropy
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.training.evaluation import evaluate_checkpoint
from tests.models import random_model, tiny
from tests.runs import grey_palette

DATA = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
LOSS = {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5}


@pytest.mark.parametrize("changes", [{}, {"objective": "bert", "activation": "swiglu", "bias": True}, {"objective": "prefix", "position_encoding": "rotary"}])
def test_each_layer_predicts_what_the_model_cut_off_after_it_does(changes):
    model = random_model(tiny(**changes))
    draw = np.random.default_rng(1)
    codes = draw.integers(0, 16, (2, 64))
    mask = (draw.random((2, 64)) < 0.2).astype(np.float32) if changes.get("objective") == "bert" else None
    prefix = np.array([9, 30]) if changes.get("objective") == "prefix" else None
    found = igpt_jax.logit_lens(model, codes, mask, prefix)
    assert found.nats.shape == found.likeliest.shape == (4, 2, 64)
    run = jax.jit(lambda model, *given: model(*given).logits)
    for layer in (1, 2, 3):
        cut = jax.tree.map(lambda x: x, model)
        cut.config = dataclasses.replace(model.config, layers=layer)
        cut.blocks = jax.tree.map(lambda stacked, layer=layer: stacked[:layer], model.blocks)
        logits = run(cut, codes, mask, prefix)
        np.testing.assert_allclose(found.nats[layer], cross_entropy(logits, codes), rtol=1e-5, atol=1e-5)
        assert (found.likeliest[layer] == logits.argmax(axis=-1)).mean() > 0.99  # a tie of the last bits
    assert np.ptp(found.nats.mean(axis=(1, 2))) > 0.01


@pytest.mark.parametrize("objective", ["autoregressive", "bert", "prefix"])
def test_the_last_layers_loss_is_that_of_evaluate(objective, tmp_path):
    """Images in other batches, of which the last is not full, and the masks of a bert model; sums of float32 differ in their last bits."""
    model = random_model(tiny(objective=objective))
    checkpoints.save_model(tmp_path, model, grey_palette(16), {"data": DATA, "loss": LOSS})
    pretrained = checkpoints.load(tmp_path)
    dataset = batches.open_images(pretrained, 50)
    found = []
    for batch, count in batches.evaluation_batches(pretrained, dataset, 16):
        assert batch.codes.shape == (16, 64)
        nats_LB = lens.nats_per_pixel(pretrained, lens.logit_lens(pretrained, batch.codes, batch.mask), batch.mask)
        found += nats_LB[-1, :count].tolist()
    expected = evaluate_checkpoint(tmp_path, limit=50)
    assert len(found) == expected["images"] == 50 and np.mean(found) == pytest.approx(expected["nats_per_pixel"], rel=1e-6)


def test_a_pixel_of_three_tokens_has_the_loss_of_three():
    model = random_model(tiny(positions=48, tokens_per_pixel=3))
    found = lens.logit_lens(model, np.random.default_rng(0).integers(0, 16, (2, 48)))
    np.testing.assert_allclose(lens.nats_per_pixel(model, found), 3 * found.nats.mean(axis=-1), rtol=1e-6)


def test_a_bert_model_predicts_every_token_of_a_whole_picture_while_it_is_masked():
    pretrained = Pretrained(random_model(tiny(objective="bert")), grey_palette(16), {"loss": LOSS}, 0, "")
    codes = np.random.default_rng(0).integers(0, 16, (2, 64))
    found = lens.whole_lens(pretrained, codes)
    changed = codes.copy()
    changed[0, 9] = (codes[0, 9] + 1) % 16
    again = lens.whole_lens(pretrained, changed)
    assert (found.likeliest[:, 0, 9] == again.likeliest[:, 0, 9]).all()  # a token's own colour is not seen
    np.testing.assert_array_equal(found.nats[:, 1], again.nats[:, 1])
    assert (found.nats[-1, 0] != again.nats[-1, 0]).sum() > 20  # others see it
    causal = Pretrained(random_model(tiny()), grey_palette(16), {}, 0, "")
    np.testing.assert_array_equal(lens.whole_lens(causal, codes).nats, lens.logit_lens(causal, codes).nats)


def test_pictures_of_the_layers():
    pretrained = Pretrained(random_model(tiny()), grey_palette(16), {"data": DATA}, 0, "")
    codes = np.random.default_rng(0).integers(0, 16, 64)
    shown = lens.lens_pictures(pretrained, codes)
    assert len(shown) == 5 and shown[-1][1] == "the picture" and shown[0][1].startswith("embedding: ")
    np.testing.assert_array_equal(shown[-1][0], batches.decode_pictures(pretrained, codes))
    likeliest = pretrained(codes[None]).logits[0].argmax(axis=-1)
    np.testing.assert_array_equal(shown[-2][0], batches.decode_pictures(pretrained, np.asarray(likeliest)))


def test_wrong_codes_are_one_line():
    with pytest.raises(ValueError, match="codes must be from 0 to 15"):
        lens.logit_lens(random_model(tiny()), np.full((1, 64), 16))
