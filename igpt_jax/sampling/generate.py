"""Codes in, codes out: prompts of palette codes continued or filled, in batches that the memory of the devices holds."""

import collections
import contextlib
import math
import pathlib
import re
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import check_codes
from igpt_jax.progress import Progress
from igpt_jax.sampling.decode import advance, begin_sample, fill_region, grow_caches, prepare_prompts, sample_images, stretches
from igpt_jax.sampling.placement import is_replicated, mesh_for, replicate, shard_pictures, within

ROUNDS = 16  # of filling a region, where none are asked for: some pixels at a time, and not one
MEMORY = 0.9  # share of what is free that a batch may take


def sample_codes(model, prompt_IP, key, completions=1, temperature=1.0, top_k=0, top_p=1.0, batch=0) -> np.ndarray:
    """Continue each prompt of codes int [I, P] to a whole image, `completions` times, `batch` at once (0: all): int32 [I, completions, S]."""
    config, prompt_IP, parts = model.config, np.asarray(check_codes(model.config, prompt_IP), np.int32), []
    _check_causal(config)
    values, filters = _choice(config, temperature, top_k, top_p)
    keys_B = draw_keys(key, prompt_IP, completions)
    with contextlib.closing(_batches(len(prompt_IP), completions, batch_that_fits(model, batch or len(keys_B), len(keys_B)))) as batches:
        for given, which_B, part in batches:
            mesh = mesh_for(model, len(which_B))
            copies, prompts = replicate((model, prepare_prompts(model, prompt_IP[given])), mesh)
            with within(mesh):
                codes = sample_images(copies, prompts, *shard_pictures(mesh, which_B, keys_B[part]), *values, **filters)
            parts.append(np.asarray(codes)[: len(which_B)])
    return np.concatenate(parts)[: len(keys_B)].reshape(len(prompt_IP), completions, config.positions)


def sample_rows(model, prompt_IP, key, completions=1, temperature=1.0, top_k=0, top_p=1.0):
    """As `sample_codes`, to be watched: yields int32 [I, completions, S] after each row of pixels, 0 where nothing is drawn; the last is what it returns."""
    config, prompt_IP = model.config, np.asarray(check_codes(model.config, prompt_IP), np.int32)
    _check_causal(config)
    values, filters = _choice(config, temperature, top_k, top_p)
    keys_B = draw_keys(key, prompt_IP, completions)
    count = len(keys_B)
    mesh = mesh_for(model, count)
    model, given = replicate((model, prepare_prompts(model, prompt_IP)), mesh)
    with within(mesh):
        which_B, keys_B = shard_pictures(mesh, np.arange(count) // completions, keys_B)
        codes_BS, caches = begin_sample(model, given, which_B)
    for begin, end in stretches(config, given[0].shape[1]):
        carry = codes_BS, grow_caches(caches, end)
        while begin < end:
            start, begin = begin, min(begin - begin % config.columns + config.columns, end)
            with within(mesh):
                carry = advance(model, carry, start, begin, keys_B, *values, **filters)
            codes = jnp.copy(carry[0])  # the next row is drawn into the memory of this one
            yield np.asarray(codes)[:count].reshape(len(prompt_IP), completions, config.positions)
        codes_BS, caches = carry


def fill_codes(model, codes_IS, mask_IS, key, completions=1, rounds=None, temperature=1.0, top_k=0, top_p=1.0, batch=0) -> np.ndarray:
    """Replace the codes [I, S] where `mask_IS` [I, S] is 1, `completions` times, `batch` at once (0: all): int32 [I, completions, S].

    The codes where `mask_IS` is 0 stay as they are. `rounds`: None takes 16, or the largest number of masked codes if that is less.
    """
    config = model.config
    if config.causal:
        raise ValueError("an autoregressive model sees only the pixels before and completes the lower rows (--rows); to fill a region takes a bert model")
    values, filters = _choice(config, temperature, top_k, top_p)
    codes_IS, mask_IS, parts = np.asarray(check_codes(config, codes_IS, config.positions), np.int32), np.asarray(mask_IS, np.float32), []
    if mask_IS.shape != codes_IS.shape:
        raise ValueError(f"the mask must have the shape of the codes, {list(codes_IS.shape)}, not {list(mask_IS.shape)}")
    missing = int(mask_IS.sum(axis=1).max())
    rounds = min(ROUNDS, missing) if rounds is None else rounds
    if not 1 <= rounds <= missing:
        raise ValueError(f"rounds {rounds} must be between 1 and the {missing} pixels to fill")
    keys_B = draw_keys(key, np.where(mask_IS > 0, -1, codes_IS), completions)
    with contextlib.closing(_batches(len(codes_IS), completions, batch_that_fits(model, batch or len(keys_B), len(keys_B)))) as batches:
        for given, which_B, part in batches:
            mesh = mesh_for(model, len(which_B))
            with within(mesh):
                shards = shard_pictures(mesh, which_B, keys_B[part])
                codes = fill_region(replicate(model, mesh), codes_IS[given], mask_IS[given], *shards, *values, rounds=rounds, **filters)
            parts.append(np.asarray(codes)[: len(which_B)])
    return np.concatenate(parts)[: len(keys_B)].reshape(len(codes_IS), completions, config.positions)


def draw_keys(key, given_IP, completions: int):
    """A key for each completion, [I * completions]: from `key`, a checksum of what is given of the picture (int32 [I, P]), and the completion's number.

    Of pictures that are given alike, the second's completions go on numbering where those of the first end.
    """
    checks_I = np.asarray([zlib.crc32(row.tobytes()) for row in given_IP.astype("<i4")], np.uint32)
    seen = collections.Counter()
    before_I = np.zeros(len(checks_I), np.uint32)
    for image, check in enumerate(checks_I.tolist()):
        before_I[image] = seen[check]
        seen[check] += 1
    numbers_B = np.repeat(before_I * np.uint32(completions), completions) + np.tile(np.arange(completions, dtype=np.uint32), len(checks_I))

    def draw(check, number):
        return jax.random.fold_in(jax.random.fold_in(key, check), number)

    return jax.vmap(draw)(np.repeat(checks_I, completions), numbers_B)


def _batches(images, completions, batch):
    """The pictures in batches of one size, at most `batch`, so that one program serves all: (slice of the images, of which each is [b], their numbers [b]).

    The last batch repeats its last picture up to that size. Where there are several, progress is shown: what was yielded counts when the next is asked for.
    """
    total = images * completions
    size = -(-total // -(-total // batch))
    starts = range(0, total, size)
    most = max(min(start + size - 1, total - 1) // completions - start // completions + 1 for start in starts)
    with Progress("sampling", total, "pictures") if len(starts) > 1 else contextlib.nullcontext() as progress:
        for start in starts:
            numbers_B = np.minimum(np.arange(start, start + size), total - 1)
            first = min(start // completions, images - most)
            yield slice(first, first + most), numbers_B // completions - first, numbers_B
            if progress:
                progress.advance(min(size, total - start))


def batch_that_fits(model, batch, total) -> int:
    """At most `batch` pictures, as many as the free memory of the devices that share them holds; a line where these are fewer. MemoryError where it holds none.

    Devices along `tensor` share the heads of a picture, and each holds the rest of it; a batch is rounded up to equal shards.
    """
    config, wanted = model.config, min(batch, total)
    mesh = mesh_for(model, wanted)
    devices = jax.local_devices()[:1] if mesh is None else mesh.devices.flatten().tolist()
    shards = 1 if mesh is None else sharding.batch_shards(mesh)
    item, copies = 2 if config.dtype == "bfloat16" else 4, len(devices) // shards
    if config.causal:
        cache = 2 * config.layers * config.positions * config.width * item
        each = 2 * cache + copies * 8 * config.vocabulary * 4  # a stretch's caches beside those of the one before
    else:
        scores = 2 * config.heads * config.positions * 4
        each = config.positions * (scores + copies * (6 * config.vocabulary * 4 + 12 * config.width * item))
    free = free_memory(devices)
    if free is None:
        return batch
    fits = int(MEMORY * free / each)
    at_least = 1 if is_replicated(model) and devices[0].platform == "cpu" else shards  # CPU devices have one memory: one alone may take it
    if fits >= shards or at_least > 1:
        fits -= fits % shards
    if fits >= wanted:
        return batch
    if not fits:
        pictures = "a picture takes" if at_least == 1 else f"{at_least} pictures, one for each part of a batch, take"
        needed = f"{pictures} about {at_least * each / 2**30:.1f} GiB to sample"
        raise MemoryError(f"{needed} and {free / 2**30:.1f} are free: give --dtype=bfloat16, or a larger device")
    memory = f"each takes about {each / 2**20:,.1f} MiB and {free / 2**30:.1f} GiB are free"
    print(f"{fits} pictures at once, not {wanted}: {memory}", file=sys.stderr, flush=True)
    return fits


def free_memory(devices):
    """Bytes that the devices can take in equal parts, or for CPUs those free on the host; None where nothing tells."""
    told = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in one for one in told):
        return len(told) * min(one["bytes_limit"] - one["bytes_in_use"] for one in told)
    if devices[0].platform != "cpu":
        return None
    try:
        return int(re.search(r"MemAvailable:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text())[1]) * 1024
    except (OSError, TypeError):
        return None


def is_whole_number(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_causal(config):
    if not config.causal:
        raise ValueError("a bert model predicts each pixel from all others and cannot be sampled pixel by pixel: let it fill a region by --fill")


def _choice(config, temperature, top_k, top_p):
    """How a colour is chosen, checked: (temperature, top_p) as the compiled loops take them, and what they are compiled for."""
    if not 0 <= temperature < math.inf or not is_whole_number(top_k) or not 0 <= top_k <= config.vocabulary or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be >= 0, top_k {top_k} in 0..{config.vocabulary}, a whole number, top_p {top_p} in (0, 1]")
    filters = {"greedy": temperature == 0, "top_k": top_k, "nucleus": top_p < 1}
    return (jnp.float32(temperature or 1), jnp.float32(top_p)), filters


