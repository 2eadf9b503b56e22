"""Codes in, codes out: prompts of palette codes completed, or regions filled, in batches that fit the memory of the devices.

I images, B pictures (several completions of an image are several pictures), P codes of a prompt, S sequence.
"""

import collections
import contextlib
import math
import pathlib
import re
import sys
import zlib
from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ImageGPT, ModelConfig, check_codes
from igpt_jax.progress import Progress
from igpt_jax.sampling.decode import Choice, advance, begin_sample, fill_region, grow_caches, prepare_prompts, sample_images, stretches
from igpt_jax.sampling.particles import fill_by_particles, survivors
from igpt_jax.sampling.placement import is_replicated, mesh_context, mesh_for, replicate, shard_pictures
from igpt_jax.types import AnyArray, Array

ROUNDS = 16  # default number of rounds in which a bert model fills a region, several pixels in each
PARTICLES = 16  # default number of particles with which a causal model fills a region
SMALL = 1e-20  # a temperature below takes the likeliest code, as 0 does: logits divided by it would be infinite
MEMORY = 0.9  # share of the free memory that a batch may take


def sample_codes(
    model: ImageGPT,
    prompt_IP: Any,
    key: Array,
    completions: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch: int = 0,
) -> np.ndarray:
    """Complete each prompt of codes int [I, P] to a whole image, `completions` times: int32 [I, completions, S].

    At most `batch` pictures (0: all) are drawn at once, fewer where memory is short. Equal prompts continue each other's numbers (`draw_keys`). Raises
    ValueError for a bert model and for wrong codes or settings.
    """
    config, prompt_IP, parts = model.config, np.asarray(check_codes(model.config, prompt_IP), np.int32), []
    _check_causal(config, prompt_IP.shape[1])
    choice = check_settings(config, temperature, top_k, top_p)
    keys_B = draw_keys(key, prompt_IP, completions)
    with contextlib.closing(_batches(len(prompt_IP), completions, batch_that_fits(model, batch or len(keys_B), len(keys_B)))) as batches:
        for images, image_B, pictures in batches:
            mesh = mesh_for(model, len(image_B))
            placed_model, prompts = replicate((model, prepare_prompts(model, prompt_IP[images])), mesh)
            with mesh_context(mesh):
                codes_BS = sample_images(placed_model, prompts, *shard_pictures(mesh, image_B, keys_B[pictures]), choice)
            parts.append(np.asarray(codes_BS)[: len(image_B)])
    return np.concatenate(parts)[: len(keys_B)].reshape(len(prompt_IP), completions, config.positions)


def sample_rows(
    model: ImageGPT, prompt_IP: Any, key: Array, completions: int = 1, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Iterator[np.ndarray]:
    """Yield the codes int32 [I, completions, S] after each row of pixels, or of blocks, 0 where none is drawn yet. The last are those of `sample_codes`."""
    config, prompt_IP = model.config, np.asarray(check_codes(model.config, prompt_IP), np.int32)
    _check_causal(config, prompt_IP.shape[1])
    choice = check_settings(config, temperature, top_k, top_p)
    keys_B = draw_keys(key, prompt_IP, completions)
    count = len(keys_B)
    mesh = mesh_for(model, count)
    model, prompts = replicate((model, prepare_prompts(model, prompt_IP)), mesh)
    with mesh_context(mesh):
        image_B, keys_B = shard_pictures(mesh, np.arange(count) // completions, keys_B)
        codes_BS, caches = begin_sample(model, prompts, image_B)
    row = config.block * config.columns
    for begin, end in stretches(config, prompts[0].shape[1]):
        carry = codes_BS, grow_caches(caches, end)
        while begin < end:
            start, begin = begin, min(begin - begin % row + row, end)
            with mesh_context(mesh):
                carry = advance(model, carry, start, begin - start, keys_B, choice)
            codes = jnp.copy(carry[0])  # because the next row is drawn into the memory of this array
            yield np.asarray(codes)[:count].reshape(len(prompt_IP), completions, config.positions)
        codes_BS, caches = carry


def fill_codes(
    model: ImageGPT,
    codes_IS: Any,
    mask_IS: AnyArray,
    key: Array,
    completions: int = 1,
    rounds: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch: int = 0,
) -> np.ndarray:
    """Replace the codes [I, S] where `mask_IS` [I, S] is 1, `completions` times: int32 [I, completions, S]. Codes where it is 0 stay as they are.

    `rounds`: None takes 16, or the largest number of masked codes if that is less. At most `batch` pictures (0: all) are filled at once, fewer where
    memory is short. Raises ValueError for a causal model and for wrong codes or settings.
    """
    config = model.config
    if config.causal:
        raise ValueError("a causal model does not fill a region in rounds, but by particles: fill_codes_causally")
    choice, parts = check_settings(config, temperature, top_k, top_p), []
    codes_IS, mask_IS = _check_mask(config, codes_IS, mask_IS)
    most_masked = int(mask_IS.sum(axis=1).max())
    rounds = min(ROUNDS, most_masked) if rounds is None else rounds
    if not 1 <= rounds <= most_masked:
        raise ValueError(f"rounds {rounds} must be between 1 and the {most_masked} pixels to fill")
    keys_B = draw_keys(key, np.where(mask_IS > 0, -1, codes_IS), completions)
    with contextlib.closing(_batches(len(codes_IS), completions, batch_that_fits(model, batch or len(keys_B), len(keys_B)))) as batches:
        for images, image_B, pictures in batches:
            mesh = mesh_for(model, len(image_B))
            with mesh_context(mesh):
                shards = shard_pictures(mesh, image_B, keys_B[pictures])
                codes_BS = fill_region(replicate(model, mesh), codes_IS[images], mask_IS[images], *shards, choice, rounds)
            parts.append(np.asarray(codes_BS)[: len(image_B)])
    return np.concatenate(parts)[: len(keys_B)].reshape(len(codes_IS), completions, config.positions)


def fill_codes_causally(
    model: ImageGPT,
    codes_IS: Any,
    mask_IS: AnyArray,
    key: Array,
    completions: int = 1,
    particles: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the codes [I, S] where `mask_IS` [I, S] is 1 by a causal model, `completions` times, with `particles` for each (particles.py; None: 16).

    Returns the codes, int32 [I, completions, S], and the effective number of different particles at the end, float [I, completions]. A completion takes
    the work and the memory of as many pictures as it has particles; `batch` counts completions. At temperature 0 all particles would be equal, and there is
    one. Raises ValueError for a bert model and for wrong codes or settings.
    """
    config, parts = model.config, []
    _check_causal(config)
    choice = check_settings(config, temperature, top_k, top_p)
    codes_IS, mask_IS = _check_mask(config, codes_IS, mask_IS)
    particles = 1 if choice.kind == "greedy" else PARTICLES if particles is None else particles
    keys_B = draw_keys(key, np.where(mask_IS > 0, -1, codes_IS), completions)
    start = int(np.append(mask_IS.any(axis=0), True).argmax())  # before it all codes of all images are known
    start -= start % (config.block * config.columns) if config.block > 1 else 0
    with contextlib.closing(_batches(len(codes_IS), completions, batch_that_fits(model, batch or len(keys_B), len(keys_B), particles))) as batches:
        for images, image_B, pictures in batches:
            mesh = mesh_for(model, len(image_B))
            placed_model, prompts = replicate((model, prepare_prompts(model, codes_IS[images, :start])), mesh)
            with mesh_context(mesh):
                shards = shard_pictures(mesh, image_B, keys_B[pictures])
                found = fill_by_particles(placed_model, prompts, codes_IS[images], mask_IS[images], *shards, choice, particles)
            codes_BMS, weights_BM, chosen_B = (np.asarray(part)[: len(image_B)] for part in found)
            parts.append((codes_BMS[np.arange(len(image_B)), chosen_B], survivors(codes_BMS, weights_BM)))
    codes_BS, survivors_B = (np.concatenate(part)[: len(keys_B)] for part in zip(*parts, strict=True))
    return codes_BS.reshape(len(codes_IS), completions, -1), survivors_B.reshape(len(codes_IS), completions)


def draw_keys(key: Array, given_IP: np.ndarray, completions: int) -> Array:
    """Derive a key for each completion, [I * completions]: from `key`, a checksum of the given part of the image, and the completion's number.

    `given_IP` int [I, P] is what the model is given of each image. Where two images are given alike, the second continues the numbers of the first.
    """
    checksums_I = np.asarray([zlib.crc32(row.tobytes()) for row in given_IP.astype("<i4")], np.uint32)
    seen: collections.Counter[int] = collections.Counter()
    before_I = np.zeros(len(checksums_I), np.uint32)
    for image, checksum in enumerate(checksums_I.tolist()):
        before_I[image] = seen[checksum]
        seen[checksum] += 1
    numbers_B = np.repeat(before_I * np.uint32(completions), completions) + np.tile(np.arange(completions, dtype=np.uint32), len(checksums_I))

    def draw(checksum: AnyArray, number: AnyArray) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, checksum), number)

    return jax.vmap(draw)(np.repeat(checksums_I, completions), numbers_B)


def _batches(images: int, completions: int, batch: int) -> Generator[tuple[slice, np.ndarray, np.ndarray], None, None]:
    """Divide the pictures into batches of one size, at most `batch`, so that all use the same program.

    Yields the slice of the images that a batch needs, and for each of its pictures [B] the index of its image in that slice and its own number.
    The last batch repeats its last picture up to the size. With several batches, progress is shown: a batch counts when the next is requested.
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


def batch_that_fits(model: ImageGPT, batch: int, total: int, particles: int = 1) -> int:
    """Return how many of at most `batch` pictures, of `particles` each, fit into the free memory of the devices that share them.

    Prints a line where these are fewer, and raises MemoryError where none fits. Devices along `tensor` share the heads of a picture, and each
    stores the rest of it. A batch is rounded up to equal shards.
    """
    wanted = min(batch, total)
    mesh = mesh_for(model, wanted)
    devices = jax.local_devices()[:1] if mesh is None else mesh.devices.flatten().tolist()
    shards = 1 if mesh is None else sharding.batch_shards(mesh)
    free = free_memory(devices)
    if free is None:
        return batch
    each = particles * _bytes_of_picture(model.config, copies=len(devices) // shards)
    fits = int(MEMORY * free / each)
    at_least = 1 if is_replicated(model) and devices[0].platform == "cpu" else shards  # CPU devices share one memory: a single one may use all of it
    if fits >= shards or at_least > 1:
        fits -= fits % shards
    if fits >= wanted:
        return batch
    if not fits:
        pictures = "a picture takes" if at_least == 1 else f"{at_least} pictures, one for each part of a batch, take"
        needed = f"{pictures} about {at_least * each / 2**30:.1f} GiB to sample"
        fewer = ", fewer --particles" if particles > 1 else ""
        raise MemoryError(f"{needed} and {free / 2**30:.1f} are free: give --dtype=bfloat16{fewer}, or a larger device")
    memory = f"each takes about {each / 2**20:,.1f} MiB and {free / 2**30:.1f} GiB are free"
    print(f"{fits} pictures at once, not {wanted}: {memory}", file=sys.stderr, flush=True)
    return fits


def _bytes_of_picture(config: ModelConfig, copies: int) -> int:
    """Estimate the memory that a picture takes on all devices together; `copies` of them repeat what is not divided by heads."""
    itemsize = 2 if config.dtype == "bfloat16" else 4
    if config.causal:
        return 2 * cache_bytes(config) + copies * 8 * config.vocabulary * 4  # the caches of a stretch exist beside those of the stretch before
    scores = 2 * config.heads * config.positions * 4
    return config.positions * (scores + copies * (6 * config.vocabulary * 4 + 12 * config.width * itemsize))


def cache_bytes(config: ModelConfig) -> int:
    """Return the bytes of the keys and values of a picture."""
    return 2 * config.layers * config.positions * config.width * (2 if config.dtype == "bfloat16" else 4)


def free_memory(devices: list[jax.Device]) -> int | None:
    """Return the bytes that the devices can take in equal parts, of CPUs the free memory of the host; None where it is unknown."""
    statistics = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in of_device for of_device in statistics):
        return len(devices) * min(of_device["bytes_limit"] - of_device["bytes_in_use"] for of_device in statistics)
    if devices[0].platform != "cpu":
        return None
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(available[1]) * 1024 if available else None


def is_whole_number(value: Any) -> bool:
    """Return whether the value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_causal(config: ModelConfig, given: int = 0) -> None:
    """Raise ValueError for a bert model, and where the `given` codes of an image end inside a row of blocks."""
    if not config.causal:
        raise ValueError("a bert model predicts each pixel from all others and cannot be sampled pixel by pixel: fill a region (--fill) instead")
    if config.block > 1 and given % (config.block * config.columns):
        way_out = f"give a multiple of {config.block} rows, or fill a region (--fill)"
        raise ValueError(f"{given / config.columns:g} given rows end inside a row of blocks, of {config.block} x {config.block} pixels: {way_out}")


def _check_mask(config: ModelConfig, codes_IS: Any, mask_IS: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return codes int32 and mask float32 of whole images, both [I, S]."""
    codes_IS, mask_IS = np.asarray(check_codes(config, codes_IS, config.positions), np.int32), np.asarray(mask_IS, np.float32)
    if mask_IS.shape != codes_IS.shape:
        raise ValueError(f"the mask must have the shape of the codes, {list(codes_IS.shape)}, not {list(mask_IS.shape)}")
    return codes_IS, mask_IS


def check_settings(config: ModelConfig, temperature: float, top_k: int, top_p: float) -> Choice:
    """Check the settings by which a code is drawn (`top_k` 0: no restriction)."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature} must be a finite number >= 0")
    if not is_whole_number(top_k) or not 0 <= top_k <= config.vocabulary:
        raise ValueError(f"top_k {top_k} must be a whole number in 0..{config.vocabulary}, 0 for every colour")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} must be in (0, 1]")
    top_k, top_p, temperature = top_k or config.vocabulary, max(top_p, SMALL), min(temperature, 1 / SMALL)  # floats without denormals and infinities
    kind = "greedy" if temperature < SMALL else "likeliest" if top_k < config.vocabulary or top_p < 1 else "all"
    return Choice(kind, np.float32(temperature if kind != "greedy" else 1), np.int32(top_k), np.float32(top_p))
