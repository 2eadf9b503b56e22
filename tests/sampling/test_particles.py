"""Regions filled by a causal model: exact posteriors of models that are small enough to list all images, any mask, and what the command says."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from igpt_jax import sample
from igpt_jax.model.objectives import cross_entropy
from igpt_jax.sampling import complete, generate, particles
from igpt_jax.training.checkpoints import Pretrained
from tests.models import random_model, tiny
from tests.runs import grey_palette

FACTOR, SEED = 2.5, 4  # what the pixels below say moves 25 to 56 % of the probability, and no image gets more than 10 times as likely


@pytest.fixture(scope="module")
def small():
    """2 colours and 3 x 3 pixels that depend on each other."""
    return jax.tree.map(lambda x: FACTOR * x, random_model(tiny(vocabulary=2, positions=9, layers=1, width=8, heads=2), SEED))


CODES = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1])


def mask_of(*missing):
    return np.isin(np.arange(9), missing).astype(np.float32)


def exact(model, codes_S, mask_S, forced=False, temperature=1.0):
    """{missing codes: probability} given the known codes, by listing all images; `forced`: without what known codes say of those before them."""
    missing = np.flatnonzero(mask_S)
    images = np.tile(codes_S, (2 ** len(missing), 1))
    images[:, missing] = list(itertools.product((0, 1), repeat=len(missing)))
    logits = model(images).logits
    log_BS = -np.where(mask_S > 0, cross_entropy(logits / temperature, images), 0 if forced else cross_entropy(logits, images)).astype(float)
    shares = np.exp(log_BS.sum(axis=1))
    return dict(zip(map(tuple, images[:, missing].tolist()), shares / shares.sum(), strict=True))


def drawn(model, codes_S, mask_S, count, seed=0, **settings):
    """({missing codes: share of the draws}, codes [count, S])."""
    made, _ = generate.fill_codes_causally(model, codes_S[None], mask_S[None], jax.random.key(seed), count, **settings)
    rows, counts = np.unique(made[0][:, mask_S > 0], axis=0, return_counts=True)
    return dict(zip(map(tuple, rows.tolist()), counts / count, strict=True)), made[0]


def distance(one, other):
    """Total variation."""
    return sum(abs(one.get(key, 0) - other.get(key, 0)) for key in {*one, *other}) / 2


@pytest.mark.slow
@pytest.mark.parametrize("missing", [(0, 1), (0, 4, 6), (0, 1, 2, 3, 8)])
def test_many_particles_follow_the_exact_posterior_and_one_is_forced(small, missing):
    """In total variation, at most as far as 2,000 draws of the posterior itself are, in 1 of 1,000 cases."""
    mask = mask_of(*missing)
    posterior, forced = exact(small, CODES, mask), exact(small, CODES, mask, forced=True)
    generator, shares = np.random.default_rng(0), np.array(list(posterior.values()))
    noise = np.quantile(np.abs(generator.multinomial(2000, shares, 1000) / 2000 - shares).sum(axis=1) / 2, 0.999)
    found = {count: drawn(small, CODES, mask, 2000, particles=count) for count in (1, 2, 128)}
    apart = {count: distance(shares, posterior) for count, (shares, _) in found.items()}
    assert distance(posterior, forced) > 3 * noise, "the pixels below tell nothing, so that nothing is tested"
    assert distance(found[1][0], forced) < 1.5 * noise
    assert apart[128] < 1.5 * noise and apart[1] > apart[2] > apart[128]  # 128 are not infinitely many
    for _, made in found.values():
        assert (made[:, mask == 0] == CODES[mask == 0]).all()


@pytest.mark.slow
def test_a_model_that_predicts_blocks_fills_pixels_inside_and_across_them():
    """4 x 4 pixels in 4 blocks; two missing pixels of one block, one of the next, which known ones of all blocks weigh."""
    model = jax.tree.map(lambda x: 2 * x, random_model(tiny(vocabulary=2, positions=16, layers=1, width=8, heads=2, block=2)))
    codes, mask = np.random.default_rng(0).integers(0, 2, 16), np.isin(np.arange(16), (1, 4, 6)).astype(np.float32)
    posterior, forced = exact(model, codes, mask), exact(model, codes, mask, forced=True)
    shares, made = drawn(model, codes, mask, 2000, particles=64)
    assert distance(shares, posterior) < 0.05 < 0.1 < distance(posterior, forced) and (made[:, mask == 0] == codes[mask == 0]).all()
    mask[:8] = 0  # the first row of blocks is known: it passes through the model once
    mask[13] = 1
    shares, _ = drawn(model, codes, mask, 2000, particles=64)
    assert distance(shares, exact(model, codes, mask)) < 0.05


def test_a_temperature_changes_the_draws_and_not_what_known_pixels_say(small):
    mask = mask_of(0, 1)
    shares, _ = drawn(small, CODES, mask, 2000, particles=128, temperature=0.5)
    assert distance(shares, exact(small, CODES, mask, temperature=0.5)) < 0.03 < distance(shares, exact(small, CODES, mask))


def test_nothing_known_is_what_the_model_makes_and_no_gap_changes_nothing(small):
    shares, _ = drawn(small, CODES, mask_of(*range(9)), 2000, particles=2)
    expected = exact(small, CODES, mask_of(*range(9)))
    generator, values = np.random.default_rng(0), np.array(list(expected.values()))
    noise = np.quantile(np.abs(generator.multinomial(2000, values, 1000) / 2000 - values).sum(axis=1) / 2, 0.999)
    assert distance(shares, expected) < noise
    made, left = generate.fill_codes_causally(small, np.stack([CODES, CODES]), np.zeros((2, 9)), jax.random.key(0), 3, 4)
    assert (made == CODES).all() and (left == 1).all()


def test_without_known_pixels_below_one_particle_draws_as_the_samples_do(small, monkeypatch):
    """The same noise with the same keys, bit for bit."""
    monkeypatch.setattr(generate, "draw_keys", lambda key, given, completions: jax.random.split(key, completions))
    made = generate.sample_codes(small, CODES[None, :3], jax.random.key(1), 20)
    filled, _ = generate.fill_codes_causally(small, CODES[None], mask_of(*range(3, 9))[None], jax.random.key(1), 20, particles=1)
    np.testing.assert_array_equal(made, filled)


@pytest.mark.slow
def test_each_image_of_a_batch_has_its_own_region_and_the_batch_does_not_matter(small):
    codes = np.random.default_rng(0).integers(0, 2, (3, 9))
    masks = np.float32([[0, 0, 1, 1, 0, 0, 0, 0, 1], [0] * 9, [1] * 9])
    whole, left = generate.fill_codes_causally(small, codes, masks, jax.random.key(0), 2, 4)
    kept = np.broadcast_to(masks[:, None] == 0, whole.shape)
    np.testing.assert_array_equal(whole[kept], np.broadcast_to(codes[:, None], whole.shape)[kept])
    assert left.shape == (3, 2) and (left >= 1).all() and (left <= 4 + 1e-6).all() and (left[1] == 1).all()
    again, _ = generate.fill_codes_causally(small, codes[::-1], masks[::-1], jax.random.key(0), 2, 4, batch=4)
    np.testing.assert_array_equal(again[::-1], whole)


def test_particles_are_drawn_anew_in_proportion_to_their_weights_with_their_caches():
    shares = np.array([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    codes, caches = jnp.arange(12).reshape(12, 1), [(jnp.arange(12.0).reshape(12, 1, 1, 1), -jnp.arange(12.0).reshape(12, 1, 1, 1))]
    counts = np.zeros((3, 4))
    resample = jax.jit(particles.resample)
    for seed in range(50):
        keys = jax.random.split(jax.random.key(seed), 3)
        new, [(k, v)], weights = resample(keys, (codes, caches, jnp.log(jnp.maximum(shares, 1e-30))))
        np.testing.assert_array_equal(new.ravel(), k.ravel())
        np.testing.assert_array_equal(new.ravel(), -v.ravel())
        assert (np.asarray(new).reshape(3, 4) // 4 == np.arange(3)[:, None]).all()  # a picture's particles stay its own
        counts += [np.bincount(row, minlength=4) for row in np.asarray(new).reshape(3, 4) % 4]
        assert (weights[0] == 0).all() and (weights[1] != 0).all() and (weights[2] == 0).all()
    np.testing.assert_allclose(counts / 200, shares, atol=0.06)
    assert (counts[1] == 50).all()  # of equal weights nothing is drawn


def test_equal_particles_count_as_one_with_their_weights():
    codes = np.array([[[0, 1], [0, 1], [1, 1], [1, 0]], [[0, 0]] * 4])
    weights = np.log([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]]) - 1000
    np.testing.assert_allclose(particles.survivors(codes, weights), [1 / (0.25 + 0.0625 + 0.0625), 1])


@pytest.mark.slow
def test_devices_share_the_pictures_and_change_none(monkeypatch):
    model = random_model(tiny(layers=1))
    codes = np.random.default_rng(0).integers(0, 16, (3, 64), dtype=np.int32)
    mask = np.zeros((3, 64), np.float32)
    mask[:, 9:20], mask[1, 30:33] = 1, 1
    results = []
    for count in (1, 4):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: jax.devices()[:count])
        results.append(generate.fill_codes_causally(model, codes, mask, jax.random.key(4), 2, 8))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4)


@pytest.fixture(scope="module")
def pretrained():
    models = {objective: random_model(tiny(layers=1, objective=objective)) for objective in ("autoregressive", "bert")}
    return {objective: Pretrained(model, grey_palette(16), {"loss": {}}, 0, "") for objective, model in models.items()}


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("autoregressive", {"rounds": 3}, "rounds has no effect with a causal model: leave it out"),
        ("bert", {"particles": 3}, "particles has no effect with a bert model: leave it out"),
        ("autoregressive", {"particles": 0}, "particles must be a whole number of at least 1, not 0"),
        ("autoregressive", {"particles": 2.0}, "particles must be a whole number of at least 1, not 2.0"),
    ],
)
def test_what_has_no_effect_or_is_no_number_is_refused(pretrained, objective, settings, message):
    with pytest.raises(ValueError, match=message):
        complete.fill(pretrained[objective], np.zeros((8, 8), np.uint8), np.eye(8, dtype=bool), **settings)


def test_functions_of_codes_refuse_the_other_kind_of_model_and_too_many_particles(pretrained, monkeypatch):
    codes, mask = np.zeros((1, 64), int), np.ones((1, 64))
    with pytest.raises(ValueError, match="does not fill a region in rounds, but by particles"):
        generate.fill_codes(pretrained["autoregressive"].model, codes, mask, jax.random.key(0))
    with pytest.raises(ValueError, match="a bert model predicts each pixel from all others"):
        generate.fill_codes_causally(pretrained["bert"].model, codes, mask, jax.random.key(0))
    with pytest.raises(ValueError, match=r"\[1, 64\], not \[1, 8\]"):
        generate.fill_codes_causally(pretrained["autoregressive"].model, codes, mask[:, :8], jax.random.key(0))
    each = generate._bytes_of_picture(pretrained["autoregressive"].model.config, 1)
    monkeypatch.setattr(generate, "free_memory", lambda devices: 20 * each)
    with pytest.raises(MemoryError, match="fewer --particles"):
        generate.fill_codes_causally(pretrained["autoregressive"].model, codes, mask, jax.random.key(0), particles=40)


def test_the_command_says_what_particles_cost_and_how_many_are_left(pretrained, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sample.hub, "load", lambda path, **more: pretrained["autoregressive"])
    monkeypatch.setattr(sample.runtime, "prepare", lambda: None)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    flags = ["--images", str(tmp_path / "a.png"), "--completions=2", f"--out={tmp_path}/it.png", f"--gif={tmp_path}/it.gif"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["sample", "--checkpoint=it", *flags, *more])
        sample._main()
        return capsys.readouterr().err

    said = run("--fill=2,2,3,4", "--particles=8")
    assert said.startswith("note: 8 particles for each completion: 8 times the work, and 0.1 MiB of caches\nnote: compiling, then drawing 2 pictures\n")
    assert "note: effective number of different particles at the end: median" in said.splitlines()[-1]
    assert "drawing" not in run("--fill=2,2,3,4", "--particles=2", "--batch=1")  # two batches show their progress
    assert "particles" not in run("--fill=2,2,3,4", "--temperature=0")
    with Image.open(tmp_path / "it.gif") as opened:
        assert opened.n_frames == 13
    with pytest.raises(SystemExit, match="--particles has no effect without --fill"):
        run("--particles=8")
