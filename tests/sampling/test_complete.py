"""Sampling: the given pixels survive, the draw is what was asked for, pictures of any kind are taken."""

import dataclasses
import pathlib
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from igpt_jax import progress, sample
from igpt_jax.data import images, photographs, pipeline
from igpt_jax.distributed import sharding
from igpt_jax.model import objectives
from igpt_jax.sampling import complete, decode, generate, placement
from igpt_jax.sampling import grid as grid_module
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained
from tests.models import random_model, tiny
from tests.runs import call, grey_palette

ALL = decode.Choice("all", np.float32(1), np.int32(16), np.float32(1))


def noise_of(logits, seed=0):
    return decode.draw_noise(jax.random.split(jax.random.key(seed), len(logits)), logits.shape[1:])


@pytest.fixture(scope="module")
def pretrained():
    return Pretrained(random_model(tiny()), grey_palette(16), {"loss": {}}, 0, "")


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))


def test_given_rows_survive_exactly_and_completions_differ(pretrained, pictures):
    made = complete.complete(pretrained, pictures, rows=3, completions=4, seed=1)
    codes = pretrained.palette.encode(np.stack(pictures)).reshape(3, 1, 64)
    assert made.pictures.shape == (3, 4, 8, 8, 3) and made.codes.shape == (3, 4, 64)
    np.testing.assert_array_equal(made.codes[:, :, :24], np.broadcast_to(codes[:, :, :24], (3, 4, 24)))
    assert len({made.codes[0, i].tobytes() for i in range(4)}) == 4
    np.testing.assert_array_equal(made.originals, np.stack(pictures))
    assert (made.given[:, 3:] == 128).all()


def test_the_same_seed_gives_the_same_pictures_and_another_others(pretrained, pictures):
    first, again, other = (complete.complete(pretrained, pictures, seed=seed).codes for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_greedy_completion_is_what_the_uncached_model_says(pretrained, pictures):
    made = complete.complete(pretrained, pictures, rows=4, completions=1, temperature=0).codes[:, 0]
    model = jax.jit(lambda codes: pretrained.model(codes).logits)
    codes = jnp.asarray(made).at[:, 32:].set(0)
    for position in range(32, 64):
        codes = codes.at[:, position].set(model(codes)[:, position].argmax(axis=-1))
    np.testing.assert_array_equal(codes, made)


@pytest.mark.parametrize(("given", "settings"), [(0, {"top_p": 0.9}), (20, {"top_k": 5, "temperature": 0.8}), (24, {"temperature": 0})])
def test_sampling_to_be_watched_gives_row_by_row_what_sampling_at_once_gives(pretrained, pictures, given, settings):
    """Bit for bit, also from the middle of a row; what was yielded before stays as it was."""
    prompts = pretrained.palette.encode(np.stack(pictures)).reshape(3, 64)[:, :given]
    key = jax.random.key(3)
    whole = generate.sample_codes(pretrained.model, prompts, key, completions=2, **settings)
    watched = list(generate.sample_rows(pretrained.model, prompts, key, completions=2, **settings))
    np.testing.assert_array_equal(watched[-1], whole)
    assert len(watched) == -(-(64 - given) // 8)
    for number, codes in enumerate(watched):
        done = 8 * (given // 8 + number + 1)
        np.testing.assert_array_equal(codes, np.where(np.arange(64) < done, whole, 0))


@pytest.mark.slow
def test_devices_share_the_pictures_and_change_none(pretrained, bert, pictures, monkeypatch):
    """Three pictures twice on 1, 4 and 6 of 8 devices, on 4 with two rows to spare; a loop over positions waits for no other device."""
    codes = pretrained.palette.encode(np.stack(pictures)).reshape(3, 64)
    mask, key, programs = np.repeat([0.0, 1.0], 32)[None].repeat(3, 0), jax.random.key(4), []
    results = {}
    for count in (1, 4, 8):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: jax.devices()[:count])
        watched = list(generate.sample_rows(pretrained.model, codes[:, :20], key, completions=2))[-1]
        filled = generate.fill_codes(bert.model, codes, mask, key, 2, 5)
        results[count] = generate.sample_codes(pretrained.model, codes[:, :20], key, completions=2), watched, filled
        mesh = placement.mesh_for(pretrained.model, 6)
        model, prompts = placement.replicate((pretrained.model, decode.prepare_prompts(pretrained.model, codes[:, :20])), mesh)
        with placement.mesh_context(mesh):
            which, keys = placement.shard_pictures(mesh, np.arange(6) // 2, generate.draw_keys(key, codes[:, :20], 2))
            programs.append(decode.sample_images.lower(model, prompts, which, keys, ALL).compile())
    for others in (results[4], results[8]):
        for one, other in zip(results[1], others, strict=True):
            np.testing.assert_array_equal(one, other)
    assert [len(program.output_shardings.device_set) for program in programs] == [1, 4, 6]
    assert not any(re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text()) for program in programs)


def test_equal_prompts_continue_each_others_draws_and_other_prompts_change_none():
    a, b = np.arange(6), np.arange(6) + 1

    def keys(*prompts, completions=2):
        return jax.random.key_data(generate.draw_keys(jax.random.key(5), np.stack(prompts), completions)).tolist()

    four, other = keys(a, completions=4), keys(b)
    assert len({*map(tuple, four + other)}) == 6
    assert keys(a) == four[:2] and keys(a, a) == four
    assert keys(a, b) == four[:2] + other and keys(b, a) == other + four[:2]
    assert keys(a, b, a) == four[:2] + other + four[2:]
    nothing = np.zeros(0, int)
    assert keys(nothing, nothing) == keys(nothing, completions=4)


@pytest.mark.slow
@pytest.mark.parametrize("given_rows", [0, 4])
def test_pictures_with_the_same_given_part_continue_each_others_numbers_and_others_change_nothing(pretrained, pictures, given_rows):
    """A and B are the same in the given rows, and differ below. C differs in them, and no picture does where no row is given."""
    a, b, c = pictures[0], np.concatenate([pictures[0][:4], pictures[1][4:]]), pictures[2]

    def made(*chosen, completions=2):
        return complete.complete(pretrained, list(chosen), rows=given_rows, completions=completions, seed=5).codes[:, :, given_rows * 8 :]

    four, alone = made(a, completions=4)[0], made(b)[0]
    np.testing.assert_array_equal(alone, four[:2])
    for chosen in ((a, b), (b, a)):  # whichever is second gets the later numbers
        np.testing.assert_array_equal(made(*chosen), [four[:2], four[2:]])
    assert len({codes.tobytes() for codes in four}) == 4
    if given_rows:
        other = made(c)[0]
        np.testing.assert_array_equal(made(a, c, b), [four[:2], other, four[2:]])
        np.testing.assert_array_equal(made(c, a, b), [other, four[:2], four[2:]])
    else:
        np.testing.assert_array_equal(made(c, b), [four[:2], four[2:]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["complete", "fill"])
def test_a_completion_depends_on_its_given_part_and_number_alone(pretrained, bert, pictures, kind):
    """Not on the batch, pictures with other given parts, their order or how many completions are made: float32 on a CPU, where the last bits did not decide."""

    def made(chosen, **settings):
        if kind == "complete":
            return complete.complete(pretrained, chosen, seed=5, **settings).codes
        sizes = {picture.tobytes(): size for picture, size in zip(pictures, (5, 12, 40), strict=True)}  # below the number of rounds, and above
        regions = np.stack([np.arange(64).reshape(8, 8) < sizes[picture.tobytes()] for picture in chosen])
        return complete.fill(bert, chosen, regions, seed=5, **settings).codes

    whole = made(pictures, completions=4)
    assert len({codes.tobytes() for codes in whole.reshape(12, -1)}) == 12
    for batch in (1, 2, 5, 7, 12):
        np.testing.assert_array_equal(made(pictures, completions=4, batch=batch), whole)
    np.testing.assert_array_equal(made(pictures[::-1], completions=4), whole[::-1])
    np.testing.assert_array_equal(made(pictures[1:2], completions=4), whole[1:2])
    np.testing.assert_array_equal(made(pictures, completions=3, batch=4), whole[:, :3])
    twice = made([pictures[0], pictures[1], pictures[0]], completions=2, batch=4)
    np.testing.assert_array_equal(np.concatenate([twice[0], twice[2]]), whole[0])
    np.testing.assert_array_equal(twice[1], whole[1, :2])


@pytest.mark.slow
def test_the_nth_picture_from_nothing_is_the_same_whatever_the_count_and_the_batch(pretrained):
    whole = complete.unconditional(pretrained, 9, seed=2)
    assert len({picture.tobytes() for picture in whole}) == 9
    np.testing.assert_array_equal(complete.unconditional(pretrained, 5, seed=2, batch=2), whole[:5])
    np.testing.assert_array_equal(complete.unconditional(pretrained, 9, seed=2, batch=4), whole)


def test_a_batch_that_the_memory_does_not_hold_is_lowered_with_a_line(pretrained, bert, pictures, monkeypatch, capsys):
    whole = complete.complete(pretrained, pictures, completions=4).codes
    each = 2 * 2 * 3 * 64 * 32 * 4 + 8 * 16 * 4  # two sets of caches: keys and values of 3 layers, 64 positions, width 32, 4 bytes; and logits
    monkeypatch.setattr(generate, "free_memory", lambda devices: 5.5 * each / generate.MEMORY)
    np.testing.assert_array_equal(complete.complete(pretrained, pictures, completions=4).codes, whole)
    assert capsys.readouterr().err.splitlines()[0] == "5 pictures at once, not 12: each takes about 0.1 MiB and 0.0 GiB are free"
    monkeypatch.setattr(generate, "free_memory", lambda devices: 1000)
    for draw in (lambda: complete.complete(pretrained, pictures), lambda: complete.fill(bert, pictures, np.eye(8, dtype=bool))):
        with pytest.raises(MemoryError, match="a picture takes about 0.0 GiB to sample and 0.0 are free: give --dtype=bfloat16, or a larger device"):
            draw()


@pytest.mark.parametrize(("sizes", "fit"), [((1, 8, 1), 8), ((1, 1, 8), 11), ((2, 1, 4), 10)])
def test_the_memory_of_a_divided_model_is_that_of_equal_shards(sizes, fit, monkeypatch, capsys):
    """Devices along `tensor` share the caches and repeat the logits; the memory holds 11.5 such pictures, or so many in equal shards."""
    model = random_model(tiny(heads=8, width=32))
    mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:8])
    divided, tensor = jax.device_put(model, sharding.state_shardings(mesh, model)), sizes[2]
    each = 2 * 2 * 3 * 64 * 32 * 4 + tensor * 8 * 16 * 4
    monkeypatch.setattr(generate, "free_memory", lambda devices: 11.5 * each / generate.MEMORY if len(devices) == 8 else 0)
    assert generate.batch_that_fits(divided, 100, 30) == fit and f"{fit} pictures at once, not 30" in capsys.readouterr().err
    assert generate.batch_that_fits(divided, fit, 30) == fit and not capsys.readouterr().err
    monkeypatch.setattr(generate, "free_memory", lambda devices: 0.5 * each)
    with pytest.raises(MemoryError, match="picture"):
        generate.batch_that_fits(divided, 1, 1)


def test_free_memory_is_that_of_equal_parts():
    """A device with less than the others bounds what each can take."""

    class Device:
        platform = "gpu"

        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_limit": 100, "bytes_in_use": self.used}

    assert generate.free_memory([Device(0), Device(70), Device(10)]) == 3 * 30


@pytest.mark.parametrize("kind", ["complete", "fill", "unconditional"])
def test_many_batches_show_how_far_they_are_and_one_is_silent(pretrained, bert, pictures, kind, monkeypatch, capsys):
    draw = {
        "complete": lambda batch: complete.complete(pretrained, pictures, completions=4, batch=batch),
        "fill": lambda batch: complete.fill(bert, pictures, np.eye(8, dtype=bool), completions=4, batch=batch),
        "unconditional": lambda batch: complete.unconditional(pretrained, 12, batch=batch),
    }[kind]
    monkeypatch.setattr(progress, "SECONDS", 0)
    draw(5)
    lines = [re.match(r"sampling: (\d+) of 12 pictures, .* left$", line) for line in capsys.readouterr().err.splitlines()]
    assert [int(line[1]) for line in lines] == [4, 8, 12]
    draw(12)
    assert not capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 2, 2), (2, 1, 4)])
def test_a_divided_model_makes_the_samples_of_one_device_and_stays_divided(sizes):
    """With 16 positions only, because the devices wait for each other at each of them."""
    models = [random_model(tiny(layers=2, positions=16, objective=objective)) for objective in ("autoregressive", "bert")]
    codes = np.random.default_rng(0).integers(0, 16, (3, 16), dtype=np.int32)
    mask, key = np.repeat([0.0, 1.0], 8)[None].repeat(3, 0), jax.random.key(4)
    mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])

    def make(model, bert):
        watched = list(generate.sample_rows(model, codes[:, :5], key, completions=2))[-1]
        nothing = generate.sample_codes(model, np.zeros((1, 0), np.int32), key, completions=5)
        return generate.sample_codes(model, codes[:, :5], key, completions=2), watched, nothing, generate.fill_codes(bert, codes, mask, key, 2, 3)

    divided = [jax.device_put(model, sharding.state_shardings(mesh, model)) for model in models]
    for one, other in zip(make(*models), make(*divided), strict=True):
        np.testing.assert_array_equal(one, other)
    assert placement.mesh_for(divided[0], 6) == mesh
    for one, other in zip(*(jax.tree.leaves(model) for model in (divided[0], placement.replicate_everywhere(divided[0]))), strict=True):
        assert other.sharding.is_equivalent_to(one.sharding, one.ndim)
    if sizes[1] == 1:  # nothing is gathered in the loop: each device has its heads' caches and its part of the mlp
        prompts = decode.prepare_prompts(divided[0], codes[:, :5])
        with placement.mesh_context(mesh):
            which, keys = placement.shard_pictures(mesh, np.arange(6) // 2, generate.draw_keys(key, codes[:, :5], 2))
            text = decode.sample_images.lower(divided[0], prompts, which, keys, ALL).compile().as_text()
            caches = jax.tree.leaves(decode.begin_sample(divided[0], prompts, which)[1])
        assert "all-gather" not in text and "all-reduce" in text
        assert {cache.sharding.shard_shape(cache.shape)[:2] for cache in caches} == {(3, 1)}  # of six pictures and four heads


def test_samples_follow_the_models_own_distribution(pretrained):
    """First pixel of many unconditional samples against its probabilities; 4 standard deviations."""
    codes = generate.sample_codes(pretrained.model, np.zeros((1, 0), np.int32), jax.random.key(0), completions=4000)[0]
    probabilities = np.asarray(jax.nn.softmax(pretrained.model(jnp.zeros((1, 64), jnp.int32)).logits[0, 0]))
    counted = np.bincount(codes[:, 0], minlength=16) / 4000
    assert (np.abs(counted - probabilities) < 4 * np.sqrt(probabilities * (1 - probabilities) / 4000) + 1e-3).all()
    loss = objectives.next_pixel_loss(pretrained.model(codes[:500]).logits, codes[:500]).mean()
    assert loss < np.log(16)


@pytest.mark.parametrize("restriction", [{"top_k": 2}, {"top_p": 0.5}])
def test_top_k_and_top_p_draw_only_from_the_likeliest(restriction):
    probabilities = jnp.asarray([[0.05, 0.4, 0.3, 0.25]])
    choice = decode.Choice("likeliest", 1.0, restriction.get("top_k", 4), restriction.get("top_p", 1.0))
    logits = jnp.log(jnp.tile(probabilities, (3000, 1)))
    drawn = decode.choose(logits, noise_of(logits), choice)
    counted = np.bincount(drawn, minlength=4) / 3000
    np.testing.assert_allclose(counted, [0, 0.4 / 0.7, 0.3 / 0.7, 0], atol=0.04)


def test_both_restrictions_are_those_of_one_after_the_other_with_ties_and_a_sum_that_rounds_to_one():
    """By NumPy; of codes as likely as the last that top_k includes all stay."""
    generator = np.random.default_rng(0)
    logits = np.log(generator.dirichlet(np.full(16, 0.3), 50)).astype(np.float32)
    logits[:, 3] = logits[:, 5]
    for top_k, top_p in ((1, 1.0), (3, 1.0), (16, 0.6), (5, 0.8), (16, 1.0), (7, 1e-6)):
        smallest = np.sort(logits, axis=1)[:, ::-1][:, top_k - 1 : top_k]
        allowed = logits >= smallest
        probabilities = np.where(allowed, np.exp(logits), 0)
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        more_likely = (probabilities[:, None, :] * (logits[:, None, :] > logits[:, :, None])).sum(axis=2)
        allowed &= (more_likely < top_p - 1e-6) | (more_likely == 0) | (top_p == 1)
        choice = decode.Choice("likeliest", np.float32(1), np.int32(top_k), np.float32(top_p))
        drawn = np.stack([np.asarray(decode.choose(jnp.asarray(logits), noise_of(logits, draw), choice)) for draw in range(60)])
        assert allowed[np.arange(50), drawn].all()
        counts = np.stack([np.bincount(row, minlength=16) for row in drawn.T])
        assert ((counts > 0) | ~allowed | (probabilities < 0.2)).all()


def test_another_top_k_top_p_or_temperature_compiles_nothing(pretrained, pictures):
    complete.complete(pretrained, pictures[:1], completions=1, top_k=3)
    compiled = decode.sample_images._cache_size()
    for settings in ({"top_k": 5}, {"top_k": 2, "top_p": 0.5}, {"top_p": 0.9, "temperature": 0.5}):
        complete.complete(pretrained, pictures[:1], completions=1, **settings)
    assert decode.sample_images._cache_size() == compiled


def test_the_smallest_temperature_and_top_p_take_the_likeliest_colour_and_the_largest_temperature_any(pretrained):
    codes = np.zeros((1, 60), np.int32)
    likeliest = generate.sample_codes(pretrained.model, codes, jax.random.key(0), 3, temperature=0)
    for settings in ({"temperature": 1e-46}, {"temperature": 1e-38}, {"top_p": 1e-45}, {"top_p": 1e-38}):
        np.testing.assert_array_equal(generate.sample_codes(pretrained.model, codes, jax.random.key(0), 3, **settings), likeliest)
    drawn = generate.sample_codes(pretrained.model, codes, jax.random.key(0), 50, temperature=1e39)[..., 60:]
    assert len(np.unique(drawn)) == 16


def test_temperature_sharpens():
    logits = jnp.tile(jnp.asarray([[0.0, 1.0]]), (4000, 1))
    drawn = decode.choose(logits, noise_of(logits), decode.Choice("all", 0.25, 4, 1.0))
    assert np.mean(drawn) == pytest.approx(1 / (1 + np.exp(-4.0)), abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 8}, "rows 8 must be between 0 and 7"),
        ({"temperature": -1}, "temperature -1 must be a finite number >= 0"),
        ({"top_k": 17}, r"top_k 17 must be a whole number in 0\.\.16"),
        ({"top_p": 0}, r"top_p 0 must be in \(0, 1\]"),
    ],
)
def test_bad_settings_say_what_is_wrong(pretrained, pictures, settings, message):
    with pytest.raises(ValueError, match=message):
        complete.complete(pretrained, pictures, **settings)


def test_images_of_any_size_and_kind_are_taken_and_wrong_ones_refused(pretrained, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 31, 4), dtype=np.uint8), "RGBA").save(tmp_path / "a.png")
    made = complete.complete(pretrained, [tmp_path / "a.png", np.zeros((5, 9), np.uint8), np.zeros((300, 200, 1), np.uint8)])
    assert made.originals.shape == (3, 8, 8, 3)
    with pytest.raises(ValueError, match=r"an image is uint8 .* not float64 \[8, 8, 3\]"):
        complete.complete(pretrained, [np.zeros((8, 8, 3))])
    with pytest.raises(ValueError, match="no image to complete"):
        complete.complete(pretrained, [])


def test_a_bert_model_is_refused_with_the_reason():
    model = random_model(tiny(objective="bert"))
    for draw in (generate.sample_codes, lambda *arguments: list(generate.sample_rows(*arguments))):
        with pytest.raises(ValueError, match=r"cannot be sampled pixel by pixel: fill a region \(--fill\) instead"):
            draw(model, np.zeros((1, 0), np.int32), jax.random.key(0))


@pytest.fixture(scope="module")
def bert():
    return Pretrained(random_model(tiny(objective="bert")), grey_palette(16), {"loss": {}}, 0, "")


def test_filling_changes_the_region_alone_and_the_same_seed_gives_the_same(bert, pictures):
    region = np.zeros((3, 8, 8), bool)
    region[0, 2:5, 3:7], region[1, 0], region[2, 7, 7] = True, True, True  # each image its own, of other sizes
    made, again, other = (complete.fill(bert, pictures, region, completions=2, rounds=5, seed=seed) for seed in (1, 1, 2))
    codes = np.broadcast_to(bert.palette.encode(np.stack(pictures))[:, None], (3, 2, 8, 8))
    kept = np.broadcast_to(~region[:, None], codes.shape)
    np.testing.assert_array_equal(made.codes.reshape(codes.shape)[kept], codes[kept])
    np.testing.assert_array_equal(made.codes, again.codes)
    assert (made.codes != other.codes).any() and (made.codes[0, 0] != made.codes[0, 1]).any()
    assert (made.given[region] == 128).all() and (made.given[~region] == bert.palette.decode(codes[:, 0])[~region]).all()


def test_filling_in_as_many_rounds_as_pixels_goes_from_the_border_inwards(bert, pictures):
    """By hand: each time the pixel nearest to known ones, of equally near ones the surest."""
    region = np.zeros((8, 8), bool)
    region[3:5, 2:6] = True
    made = complete.fill(bert, pictures[:1], region, completions=1, rounds=8, temperature=0).codes[0, 0]
    codes = bert.palette.encode(np.stack(pictures[:1])).reshape(1, 64)
    missing = list(np.flatnonzero(region.ravel()))
    while missing:
        mask = np.zeros((1, 64), np.float32)
        mask[0, missing] = 1
        probabilities = jax.nn.softmax(bert.model(codes, mask).logits[0], axis=-1)
        known = np.stack(np.divmod(np.flatnonzero(mask[0] == 0), 8))

        def score(position, known=known, probabilities=probabilities):
            squared = ((known - np.stack(np.divmod(position, 8))[:, None]) ** 2).sum(axis=0)
            return np.exp(-squared / 2).sum() + 1e-3 * np.log(probabilities[position].max())

        chosen = max(missing, key=score)
        codes[0, chosen] = probabilities[chosen].argmax()
        missing.remove(chosen)
    np.testing.assert_array_equal(made, codes[0])


def test_one_missing_pixel_follows_the_models_own_distribution(bert, pictures):
    """Within 4 standard deviations of 4,000 draws."""
    region = np.zeros((8, 8), bool)
    region[4, 4] = True
    made = complete.fill(bert, pictures[:1], region, completions=4000, batch=4000)  # of one pixel there is one round
    codes, mask = bert.palette.encode(pictures[0]).reshape(1, 64), np.float32(region.reshape(1, 64))
    probabilities = np.asarray(jax.nn.softmax(bert.model(codes, mask).logits[0, 36]))
    counted = np.bincount(made.codes[0, :, 36], minlength=16) / 4000
    assert (np.abs(counted - probabilities) < 4 * np.sqrt(probabilities * (1 - probabilities) / 4000) + 1e-3).all()


def test_a_region_is_four_numbers_or_a_mask_image(tmp_path):
    expected = np.zeros((8, 8), bool)
    expected[1:3, 2:8] = True
    np.testing.assert_array_equal(complete.parse_region("1,2,2,6", 8, "center_square"), expected)
    Image.fromarray(np.uint8(255) * expected.repeat(4, 0).repeat(4, 1)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(complete.parse_region(str(tmp_path / "mask.png"), 8, "center_square"), expected)


@pytest.mark.parametrize(
    ("region", "message"),
    [("1,2,2", "neither TOP,LEFT,HEIGHT,WIDTH"), ("1,2,2,7", "reaches outside the model's image of 8 x 8"), ("a,b,c,d", "neither"), ("0,0,0,4", "outside")],
)
def test_a_bad_region_is_said_in_one_line(region, message):
    with pytest.raises(ValueError, match=message):
        complete.parse_region(region, 8, "center_square")


def test_filling_says_what_is_wrong(bert, pretrained, pictures, tmp_path):
    region = np.ones((8, 8), bool)
    with pytest.raises(ValueError, match="rounds has no effect with a causal model"):
        complete.fill(pretrained, pictures, region, rounds=2)
    with pytest.raises(ValueError, match="rounds 65 must be between 1 and the 64 pixels to fill"):
        complete.fill(bert, pictures, region, rounds=65)
    with pytest.raises(ValueError, match=r"not \[4, 4\]"):
        complete.fill(bert, pictures, region[:4, :4])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="no white pixel"):
        complete.parse_region(str(tmp_path / "black.png"), 8, "center_square")


def test_grid_shows_input_completions_and_original_with_sharp_pixels(pretrained, pictures):
    made = complete.complete(pretrained, pictures, completions=2)
    grid = np.asarray(grid_module.completion_grid(made, scale=3))
    assert grid.shape == (26 + 3 * 28, 4 * 28 + 4, 3)
    corner = grid[26:50, 4 + 3 * 28 : 4 + 3 * 28 + 24]
    np.testing.assert_array_equal(corner[::3, ::3], pictures[0])
    np.testing.assert_array_equal(corner[1::3, 2::3], pictures[0])


def test_grid_shows_pictures_before_they_were_made_small_and_originals_in_the_palettes_colours(pretrained, pictures):
    made = complete.complete(pretrained, pictures, completions=2)
    large = np.random.default_rng(0).integers(0, 256, (len(pictures), 24, 24, 3), dtype=np.uint8)
    grid = np.asarray(grid_module.completion_grid(made, scale=3, pictures=large))
    assert grid.shape == (26 + 3 * 28, 6 * 28 + 4, 3)

    def cell(row, column):
        return grid[26 + row * 28 :, 4 + column * 28 :][:24, :24]

    for row in range(3):
        np.testing.assert_array_equal(cell(row, 0), large[row])
        np.testing.assert_array_equal(cell(row, 1)[::3, ::3], made.given[row])
        np.testing.assert_array_equal(cell(row, 4)[1::3, 2::3], made.originals[row])
        np.testing.assert_array_equal(cell(row, 5)[1::3, 2::3], pretrained.palette.decode(pretrained.palette.encode(made.originals[row])))
    with pytest.raises(ValueError, match="a picture of 23 x 23 pixels cannot be drawn with 24 x 24"):
        grid_module.completion_grid(made, scale=3, pictures=large[:, :23, :23])


@pytest.fixture
def model_of_a_file(pretrained):
    """A model as `load` makes it from a file, whose data this machine does not have."""
    data = {"source": "npz:/nowhere", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
    return dataclasses.replace(pretrained, config={"data": data}, name="small")


def drawn(model, monkeypatch, tmp_path, *flags):
    """The picture that the program draws, and the name of its file."""
    monkeypatch.setattr(sys, "argv", ["sample", "--checkpoint=small", "--completions=2", *flags])
    monkeypatch.setattr(checkpoints, "load", lambda path, *_: model)
    monkeypatch.setattr(sample.runtime, "prepare", lambda: None)
    monkeypatch.chdir(tmp_path)
    sample._main()
    [path] = tmp_path.glob("*.png")
    return np.asarray(Image.open(path)), path.name


def test_without_pictures_and_data_a_model_of_a_file_makes_some_from_nothing(model_of_a_file, pretrained, monkeypatch, tmp_path, capsys):
    picture, name = drawn(model_of_a_file, monkeypatch, tmp_path)
    made = complete.unconditional(pretrained, sample.FROM_NOTHING).reshape(6, 6, 8, 8, 3)
    np.testing.assert_array_equal(picture, np.asarray(grid_module.picture_grid(made.swapaxes(0, 1))))
    assert name == "samples.png"
    assert "36 pictures are made from nothing: --images FILE or --photographs completes some" in capsys.readouterr().err
    for model, flags in ((dataclasses.replace(model_of_a_file, name=None), ()), (model_of_a_file, ("--rows=3",)), (model_of_a_file, ("--data=npz:/nowhere",))):
        with pytest.raises(SystemExit, match="^error: .*/nowhere"):
            drawn(model, monkeypatch, tmp_path, *flags)


def test_photographs_are_shown_as_they_are_and_completed(model_of_a_file, monkeypatch, tmp_path):
    picture, name = drawn(model_of_a_file, monkeypatch, tmp_path, "--photographs")
    squares = photographs.photographs()
    assert name == "completions.png" and picture.shape == (26 + len(squares) * 100, 6 * 100 + 4, 3)
    made = complete.complete(model_of_a_file, list(squares.values()), completions=2)
    large = np.stack([images.center_square(square, 96) for square in squares.values()])
    np.testing.assert_array_equal(picture, np.asarray(grid_module.completion_grid(made, pictures=large)))


def test_a_picture_of_the_models_size_is_shown_with_its_pixels(model_of_a_file, pictures, monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(pictures[0]).save(tmp_path / "in" / "small.png")
    picture, _ = drawn(model_of_a_file, monkeypatch, tmp_path, "--images", str(tmp_path / "in" / "small.png"))
    np.testing.assert_array_equal(picture[26 : 26 + 96 : 12, 4 : 4 + 96 : 12], pictures[0])


@pytest.mark.slow
def test_the_program_writes_a_picture(pretrained, tmp_path):
    config = {"data": {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}}
    checkpoints.save_model(tmp_path / "model", pretrained.model, pretrained.palette, config)
    code, out, error = call("sample", f"--checkpoint={tmp_path / 'model'}", f"--out={tmp_path / 'a.png'}", "--count=3", "--completions=2")
    assert code == 0, error
    assert Image.open(tmp_path / "a.png").size == (4 * 100 + 4, 26 + 3 * 100)
    code, _, error = call("sample", f"--checkpoint={tmp_path / 'nothing'}", f"--out={tmp_path / 'new' / 'a.png'}")
    assert not (tmp_path / "new").exists()
    assert code == 1 and error.startswith("error: checkpoint") and "does not exist" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("view", pipeline.VIEWS)
def test_pictures_and_masks_are_seen_as_the_models_evaluation_sees_them(pretrained, tmp_path, view):
    """By the view of its recipe, also of a converted model's, which names no source; what has the model's size was seen before."""
    wide = np.random.default_rng(2).integers(0, 256, (12, 30, 3), np.uint8)
    wide[:, 20:] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for source in ("digits", ""):
        seeing = dataclasses.replace(pretrained, config={"data": {"source": source, "image_size": 8, "augment": "none", "view": view}})
        expected = images.evaluation_view(wide, view, 8)
        np.testing.assert_array_equal(complete.complete(seeing, [wide, expected], completions=1).originals, np.stack([expected] * 2))
        np.testing.assert_array_equal(complete.parse_region(str(tmp_path / "wide.png"), 8, pipeline.view_of(seeing.config, 8)), expected.mean(axis=2) > 127)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--unconditional=2 --images a.png", "--images has no effect with --unconditional"),
        ("--unconditional=2 --rows=0", "--rows has no effect with --unconditional"),
        ("--unconditional=2 --fill=0,0,1,1", "--fill has no effect with --unconditional"),
        ("--unconditional=2 --photographs", "--photographs has no effect with --unconditional"),
        ("--images a.png --photographs", "--photographs has no effect with --images"),
        ("--photographs --data=digits", "--data has no effect with --photographs"),
        ("--images a.png --data=digits", "--data has no effect with --images"),
        ("--fill=0,0,1,1 --rows=3", "--rows has no effect with --fill"),
        ("--unconditional=2 --completions=9", "--completions has no effect with --unconditional"),
        ("--unconditional=2 --count=5", "--count has no effect with --unconditional"),
        ("--unconditional=2 --split=test", "--split has no effect with --unconditional"),
        ("--images a.png --split=train", "--split has no effect with --images"),
        ("--images a.png --count=8", "--count has no effect with --images"),
        ("--photographs --split=train", "--split has no effect with --photographs"),
        ("--photographs --count=8", "--count has no effect with --photographs"),
        ("--rounds=3", "--rounds has no effect without --fill"),
        ("--particles=3", "--particles has no effect without --fill"),
        ("--unconditional=2 --particles=3", "--particles has no effect with --unconditional"),
    ],
)
def test_a_flag_without_effect_is_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample", "--checkpoint=no", "--out=no.png", *flags.split()])
    with pytest.raises(SystemExit, match=message):
        sample._main()


def refusal(monkeypatch, *flags):
    """What `sample` says before it opens a checkpoint."""
    monkeypatch.setattr(checkpoints, "load", lambda path: pytest.fail("it began the work"))
    monkeypatch.setattr(sample.runtime, "prepare", lambda: None)
    monkeypatch.setattr(sys, "argv", ["sample", "--checkpoint=no", *flags])
    with pytest.raises(SystemExit) as stopped:
        sample._main()
    return str(stopped.value.code)


def test_an_input_is_not_replaced(tmp_path, monkeypatch, pictures):
    """By the default name too, through links, beside other inputs, and a mask image."""
    monkeypatch.chdir(tmp_path)
    for name in ("completions.png", "mine.png"):
        Image.fromarray(pictures[0]).save(name)
    before = pathlib.Path("mine.png").read_bytes()
    pathlib.Path("link.png").symlink_to("mine.png")
    pathlib.Path("hard.png").hardlink_to("mine.png")
    pathlib.Path("folder").mkdir()
    said = "error: {} would replace an input, {}: give another name of the file to write"
    for flags, out, given in (
        (["--images", "mine.png"], "mine.png", "mine.png"),
        (["--images", "completions.png", "mine.png"], f"{tmp_path}/folder/../mine.png", "mine.png"),
        (["--images", "mine.png"], "link.png", "mine.png"),
        (["--images", "link.png"], "mine.png", "link.png"),
        (["--images", "hard.png"], "mine.png", "hard.png"),
        (["--images", "completions.png", "--fill=mine.png"], "mine.png", "mine.png"),
    ):
        assert refusal(monkeypatch, *flags, f"--out={out}") == said.format(out, given)
    assert refusal(monkeypatch, "--images", "completions.png") == said.format("completions.png", "completions.png")
    assert pathlib.Path("mine.png").read_bytes() == before


@pytest.mark.parametrize("out", ["u.xbm", "u.json", "maps", "u.pngg", "u.mpg"])
def test_a_format_that_cannot_be_written_is_refused_before_the_work(out, monkeypatch, tmp_path):
    said = refusal(monkeypatch, f"--out={tmp_path}/new/{out}")
    assert said.startswith(f"error: --out={tmp_path}/new/{out} does not end like the name of a picture") and said.endswith("give one that ends in .png")
    assert "report" not in said and not (tmp_path / "new").exists()


def test_formats_that_can_be_written_are_taken(tmp_path, pictures):
    for name in ("a.png", "a.JPG", "a.webp", "a.gif", "a.tif"):
        grid_module.prepare_picture(tmp_path / name)
        Image.fromarray(pictures[0]).save(tmp_path / name)


def test_a_folder_is_said_to_be_one(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}.*it is a folder: give picture files, such as {tmp_path}/\\*.png"):
        images.as_images([str(tmp_path)])


def test_one_picture_or_several_in_any_form(pretrained, tmp_path):
    """A path, an open file, a PIL image, an array of NumPy or JAX, one or a list: a single one is one, and not twenty."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = images.center_square(pixels, 8)
    with open(path, "rb") as file, Image.open(path) as opened:
        forms = [path, str(path), file, opened]
        forms += [Image.fromarray(pixels), pixels, memoryview(pixels), jnp.asarray(pixels), pixels[None], [path], (jnp.asarray(pixels),)]
        for one in forms:
            originals, codes = complete._encode(pretrained, one)
            np.testing.assert_array_equal(originals, expected[None])
            assert codes.shape == (1, 64)
    several = [path, pixels, jnp.asarray(pixels), Image.fromarray(pixels)]
    for some in (several, tuple(several), iter(several), np.stack([pixels] * 4), jnp.stack([pixels] * 4), np.asarray([str(path)] * 4)):
        np.testing.assert_array_equal(complete._encode(pretrained, some)[0], np.stack([expected] * 4))
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(complete._encode(pretrained, grey)[0], grey[None, :, :, None].repeat(3, 3))
    glass = np.dstack([pixels, np.zeros((20, 20), np.uint8)])
    assert (complete._encode(pretrained, [glass, Image.fromarray(glass)])[0] == 255).all()  # white, seen through it
    wide = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    turned = Image.fromarray(np.uint8([[0, 255]] * 2).repeat(4, 0).repeat(4, 1))
    turned.getexif()[0x0112] = 3  # by half a turn
    np.testing.assert_array_equal(complete._encode(pretrained, [wide, turned])[0][:, 0, 0, 0], [255, 255])


@pytest.mark.parametrize(
    ("wrong", "described"),
    [
        (np.zeros((20, 8, 8), np.uint8), r"uint8 \[20, 8, 8\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),  # channels first
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\]"),
        (jnp.zeros((8, 8, 3), jnp.int32), r"int32 \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], r"uint8 \[2, 8, 8, 3\]"),
        ([[[1, 2, 3]]], "list"),
        (b"cat.jpg", "int"),
        (7, "int"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_by_what_it_is(pretrained, wrong, described):
    with pytest.raises(ValueError, match=rf"^an image is .*, not {described}$"):
        complete.complete(pretrained, wrong)


def test_codes_are_checked_before_the_model_sees_them(pretrained):
    """Beyond the last colour, JAX would take the last one; beyond the last position, it would repeat that."""
    codes = np.random.default_rng(0).integers(0, 16, (2, 64))
    for wrong, message in (
        (np.where(codes == codes[0, 0], 16, codes), "codes must be from 0 to 15, the model's colours, not from 0 to 16"),
        (jnp.asarray(codes) - 1, "codes must be from 0 to 15, the model's colours, not from -1 to"),
        ([[1, 2], [3]], "codes must be whole numbers, a row for each image, and all rows of the same length"),
        (codes.reshape(1, 128), r"codes must be whole numbers \[B, 64\], a row for each image, not int64 \[1, 128\]"),
        (codes[:0], r"codes must be whole numbers \[B, 64\], a row for each image, not int64 \[0, 64\]"),
        (codes[:, :32], r"\[B, 64\], a row for each image, not int64 \[2, 32\]"),
        (codes[0], r"not int64 \[64\]"),
        (codes.reshape(2, 8, 8), r"not int64 \[2, 8, 8\]"),
        (codes / 2, r"not float64 \[2, 64\]"),
        (codes > 3, r"not bool \[2, 64\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrained(wrong)
    with pytest.raises(ValueError, match=r"codes \[1, 256\] are more than the model's 64 positions"):
        pretrained.model(np.zeros((1, 256), np.int32))
    expected = pretrained(codes).logits
    for same in (codes.tolist(), codes.astype(np.uint8), jnp.asarray(codes)):
        np.testing.assert_array_equal(pretrained(same).logits, expected)
    np.testing.assert_allclose(jax.jit(lambda codes: pretrained(codes).logits)(codes), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda model, bert, image: complete.complete(model, image, completions=0), "completions must be a whole number of at least 1, not 0"),
        (lambda model, bert, image: complete.complete(model, image, batch=-1), "batch must be a whole number of at least 1, not -1"),
        (lambda model, bert, image: complete.complete(model, image, rows=2.5), "rows 2.5 must be between 0 and 7"),
        (lambda model, bert, image: complete.complete(model, image, seed=2**32), "seed must be a whole number from 0 to 4294967295, not 4294967296"),
        (lambda model, bert, image: complete.complete(model, image, seed=0.5), "seed must be a whole number .* not 0.5"),
        (lambda model, bert, image: complete.complete(model, image, top_k=2.0), r"top_k 2.0 must be a whole number in 0\.\.16"),
        (lambda model, bert, image: complete.unconditional(model, -1), "count must be a whole number of at least 1, not -1"),
        (lambda model, bert, image: complete.unconditional(model, 0), "count must be a whole number of at least 1, not 0"),
        (lambda model, bert, image: complete.fill(bert, image, np.zeros((8, 8), bool)), "the region has no pixel to fill"),
        (lambda model, bert, image: complete.fill(bert, image, np.full((8, 8), 0.5)), r"a region is bool, .* not float64 \[8, 8\] of other values"),
        (lambda model, bert, image: complete.fill(bert, image, "mask.png"), r"a region is bool, .* not <U8 \[\] of other values"),
        (lambda model, bert, image: complete.fill(bert, image, np.ones((8, 8), bool), rounds=True), "rounds must be a whole number of at least 1, not True"),
        (lambda model, bert, image: generate.sample_codes(model.model, [[16]], jax.random.key(0)), "codes must be from 0 to 15"),
        (lambda model, bert, image: generate.sample_codes(model.model, np.zeros((1, 65), int), jax.random.key(0)), r"S at most 64, not int64 \[1, 65\]"),
        (lambda model, bert, image: generate.fill_codes(bert.model, np.zeros((1, 64), int), np.zeros((1, 8)), jax.random.key(0)), r"\[1, 64\], not \[1, 8\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(pretrained, bert, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(pretrained, bert, np.zeros((8, 8), np.uint8))


def test_a_float32_model_samples_in_bfloat16_on_an_accelerator_and_says_so(monkeypatch, capsys):
    model = random_model(tiny())
    placement.sample_in_bfloat16(model)
    assert model.config.dtype == "float32" and not capsys.readouterr().err, "a CPU"
    monkeypatch.setattr(placement.jax, "default_backend", lambda: "gpu")
    placement.sample_in_bfloat16(model)
    assert model.config.dtype == "bfloat16" and "--dtype=float32" in capsys.readouterr().err
    placement.sample_in_bfloat16(model)
    assert not capsys.readouterr().err, "it is bfloat16 already"
    for capability, width, dtype in (("7.0", 32, "float32"), ("8.0", 32, "bfloat16"), ("9.0", 24, "float32")):  # heads of 8, 8 and 6
        monkeypatch.setattr(placement.jax, "local_devices", lambda capability=capability: [SimpleNamespace(compute_capability=capability)])
        model = random_model(tiny(width=width))
        placement.sample_in_bfloat16(model)
        assert model.config.dtype == dtype, (capability, width)


def test_a_model_trained_by_cudnns_attention_is_sampled_on_a_cpu():
    model = random_model(tiny(attention="cudnn", dtype="bfloat16"))
    assert generate.sample_codes(model, np.zeros((1, 0), np.int32), jax.random.key(0)).shape == (1, 1, 64)


def test_a_draw_is_that_of_jaxs_categorical():
    keys, logits = jax.random.split(jax.random.key(0), 4), 3 * jax.random.normal(jax.random.key(1), (4, 20, 16))
    drawn = decode.choose(logits, decode.draw_noise(keys, (20, 16)), decode.Choice("all", 1.0, 16, 1.0))
    np.testing.assert_array_equal(drawn, jax.vmap(jax.random.categorical)(keys, logits))
