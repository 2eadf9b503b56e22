"""Sample pictures, or complete the top rows of given ones: `python -m igpt_jax.sample --checkpoint=runs/digits --out=completions.png`.

Reads a checkpoint and images (files of any format and size, or a split of a data set); writes one PNG, a row for each image:
model input | completions | original. With --unconditional=N it writes N pictures made from nothing. The loop over pixels is one compiled
program with a cache of keys and values; the given rows are run through the model once, in one pass.

What is drawn for a completion comes from the seed, from what the model is given of the picture, and from the completion's number: not from --batch, the
other pictures, their order or the number of devices. The model's scores may differ in their last bits from one batch size or device to another, so a
colour whose draw falls so near to the border between two may come out as the other one, and what follows it too. In float32 none did in the tests.
A bert model sees both sides and cannot be sampled so; with --fill=TOP,LEFT,HEIGHT,WIDTH (or a mask image) it fills any region of given images.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import re
import sys
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax import checkpoint, data, images, machine, sharding
from igpt_jax.cli import ANY_ERROR, SEEDS, Parser, fail, integer, prepare_file, real
from igpt_jax.model import check_codes
from igpt_jax.objectives import cross_entropy
from igpt_jax.progress import Progress

ROUNDS = 16  # of filling a region, where none are asked for: some pixels at a time, and not one
TEMPERATURE = real("a number of at least 0", lambda value: value >= 0)
TOP_P = real("a number above 0 and at most 1", lambda value: 0 < value <= 1)
SEED = integer(0, SEEDS)
MEMORY = 0.9  # share of what is free that a batch may take
STRETCHES = 4  # lengths that the caches grow through: a stretch more reads less, and takes its time to compile


@dataclasses.dataclass(frozen=True)
class Completions:
    """What `complete` or `fill` made of I images of size H x H; RGB uint8."""

    pictures: np.ndarray  # [I, completions, H, H, 3]
    codes: np.ndarray  # int32 [I, completions, H * H]; the given pixels are those of the input, bit for bit
    given: np.ndarray  # [I, H, H, 3]: the model's input, grey where it is to be completed
    originals: np.ndarray  # [I, H, H, 3]: the images resized, before colour coding


def complete(pretrained, pictures, rows=None, completions=4, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> Completions:
    """Complete images from their top `rows` (half of them by default), `completions` times each.

    `pictures`: one or several, as paths, arrays uint8 [H, W] or [H, W, 1, 3 or 4] of NumPy, JAX, ..., or PIL images (see `images.as_images`), of any size:
    seen as the model's evaluation sees them (config.data.view); one of the model's size is taken as it is. `temperature` 0 takes the likeliest colour;
    `top_k` (0: off) and `top_p` (1: off) keep only the likeliest colours. `batch` is how many pictures run at once, at most; fewer, said in a line, where
    the memory is too small. A picture that is there twice, or another with the same given rows, gets the completions of the next numbers: those that it
    would have if it were there once with twice as many.
    """
    size = pretrained.image_size
    rows = size // 2 if rows is None else rows
    _check_counts(completions=completions, batch=batch)
    if not _is_whole_number(rows) or not 0 <= rows < size:
        raise ValueError(f"rows {rows} must be between 0 and {size - 1}: the images have {size} rows")
    originals, codes_IS = _coded(pretrained, pictures)
    missing_IHH = np.broadcast_to(np.arange(size)[:, None] >= rows, originals.shape[:3])
    prompts_IP = codes_IS[:, : rows * pretrained.model_config.columns]
    made = sample_codes(_everywhere(pretrained.model), prompts_IP, _key(seed), completions, temperature, top_k, top_p, batch)
    return _shown(pretrained, made, originals, codes_IS, missing_IHH)


def fill(pretrained, pictures, region, completions=4, rounds=None, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> Completions:
    """Let a bert model fill a region of images, `completions` times each; `region` bool [H, H] or [I, H, H] is true where it fills.

    In each of `rounds` (None: 16) all missing pixels are predicted and those nearest to known ones stay, few at first; as many rounds as pixels
    fill one at a time. The draws belong to the pictures as those of `complete` do.
    """
    size = pretrained.image_size
    _check_counts(completions=completions, batch=batch, **({} if rounds is None else {"rounds": rounds}))
    originals, codes_IS = _coded(pretrained, pictures)
    region = np.asarray(region)
    if region.dtype.kind not in "biu" or not np.isin(region, (0, 1, 255)).all():
        raise ValueError(f"a region is bool, or 0 and 1, or 0 and 255, not {region.dtype} {list(region.shape)} of other values")
    if not region.any():
        raise ValueError("the region has no pixel to fill")
    region = region.astype(bool)
    if region.shape not in ((size, size), (len(originals), size, size)):
        raise ValueError(f"a region is bool [{size}, {size}], or one such for each of the {len(originals)} images, not {list(region.shape)}")
    region_IHH = np.broadcast_to(region, (len(originals), size, size))
    keep_IS = 1.0 - region_IHH.reshape(len(originals), -1).repeat(pretrained.palette.tokens_per_pixel, axis=1).astype(np.float32)
    made = fill_codes(_everywhere(pretrained.model), codes_IS, keep_IS, _key(seed), completions, rounds, temperature, top_k, top_p, batch)
    return _shown(pretrained, made, originals, codes_IS, region_IHH)


def one_of_each_class(pretrained, count, split="test", source=None) -> list[np.ndarray]:
    """So many images of a split, RGB uint8 [H, H, 3] each, of each class in turn, so that a picture shows all; `source` replaces the checkpoint's data."""
    config = data.config_for(pretrained.config, pretrained.image_size, source)
    dataset = data.open_dataset(config, split)
    labels = np.asarray(dataset.labels)
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    chosen = np.lexsort((labels, rank))[:count]
    return [dataset.images(index, index + 1, pretrained.palette)[0] for index in chosen]


def unconditional(pretrained, count, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> np.ndarray:
    """Pictures made from nothing, uint8 [count, H, H, 3]; the n-th is the same whatever the count."""
    size, nothing = pretrained.image_size, np.zeros((1, 0), np.int32)
    _check_counts(count=count, batch=batch)
    codes = sample_codes(_everywhere(pretrained.model), nothing, _key(seed), count, temperature, top_k, top_p, batch)
    return pretrained.palette.decode(codes[0]).reshape(count, size, size, 3)


def sample_codes(model, prompt_IP, key, completions=1, temperature=1.0, top_k=0, top_p=1.0, batch=0) -> np.ndarray:
    """Continue each prompt of codes int [I, P] to a whole image, `completions` times, `batch` at once (0: all): int32 [I, completions, S]."""
    config, prompt_IP, parts = model.config, np.asarray(check_codes(model.config, prompt_IP), np.int32), []
    _check_causal(config)
    values, filters = _choice(config, temperature, top_k, top_p)
    keys_B = draw_keys(key, prompt_IP, completions)
    with contextlib.closing(_batches(len(prompt_IP), completions, _affordable(model, batch or len(keys_B), len(keys_B)))) as batches:
        for given, which_B, part in batches:
            mesh = _mesh(model, len(which_B))
            copies, prompts = _copies((model, _given(model, prompt_IP[given])), mesh)
            with _within(mesh):
                codes = _sample(copies, prompts, *_shards(mesh, which_B, keys_B[part]), *values, **filters)
            parts.append(np.asarray(codes)[: len(which_B)])
    return np.concatenate(parts)[: len(keys_B)].reshape(len(prompt_IP), completions, config.positions)


def sample_rows(model, prompt_IP, key, completions=1, temperature=1.0, top_k=0, top_p=1.0):
    """As `sample_codes`, to be watched: yields int32 [I, completions, S] after each row of pixels, 0 where nothing is drawn; the last is what it returns."""
    config, prompt_IP = model.config, np.asarray(check_codes(model.config, prompt_IP), np.int32)
    _check_causal(config)
    values, filters = _choice(config, temperature, top_k, top_p)
    keys_B = draw_keys(key, prompt_IP, completions)
    count = len(keys_B)
    mesh = _mesh(model, count)
    model, given = _copies((model, _given(model, prompt_IP)), mesh)
    with _within(mesh):
        which_B, keys_B = _shards(mesh, np.arange(count) // completions, keys_B)
        codes_BS, caches = _begin_sample(model, given, which_B)
    for begin, end in _stretches(config, given[0].shape[1]):
        carry = codes_BS, _grow(caches, end)
        while begin < end:
            start, begin = begin, min(begin - begin % config.columns + config.columns, end)
            with _within(mesh):
                carry = _continue_sample(model, carry, start, begin, keys_B, *values, **filters)
            codes = jnp.copy(carry[0])  # the next row is drawn into the memory of this one
            yield np.asarray(codes)[:count].reshape(len(prompt_IP), completions, config.positions)
        codes_BS, caches = carry


def fill_codes(model, codes_IS, keep_IS, key, completions=1, rounds=None, temperature=1.0, top_k=0, top_p=1.0, batch=0) -> np.ndarray:
    """Replace the codes [I, S] where `keep_IS` is 0, `completions` times, `batch` at once (0: all): int32 [I, completions, S]; what is kept stays as it is."""
    config = model.config
    if config.causal:
        raise ValueError("an autoregressive model sees only the pixels before and completes the lower rows (--rows); to fill a region takes a bert model")
    values, filters = _choice(config, temperature, top_k, top_p)
    codes_IS, keep_IS, parts = np.asarray(check_codes(config, codes_IS, config.positions), np.int32), np.asarray(keep_IS, np.float32), []
    if keep_IS.shape != codes_IS.shape:
        raise ValueError(f"which codes to keep is [I, S] as the codes are, {list(codes_IS.shape)}, not {list(keep_IS.shape)}")
    missing = int((1 - keep_IS).sum(axis=1).max())
    rounds = min(ROUNDS, missing) if rounds is None else rounds
    if not 1 <= rounds <= missing:
        raise ValueError(f"rounds {rounds} must be between 1 and the {missing} pixels to fill")
    keys_B = draw_keys(key, np.where(keep_IS > 0, codes_IS, -1), completions)
    with contextlib.closing(_batches(len(codes_IS), completions, _affordable(model, batch or len(keys_B), len(keys_B)))) as batches:
        for given, which_B, part in batches:
            mesh = _mesh(model, len(which_B))
            with _within(mesh):
                shards = _shards(mesh, which_B, keys_B[part])
                codes = _fill(_copies(model, mesh), codes_IS[given], keep_IS[given], *shards, *values, rounds=rounds, **filters)
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


def parse_region(text, size, view) -> np.ndarray:
    """TOP,LEFT,HEIGHT,WIDTH in pixels of the model's image, or the path of a mask image (white: to fill) seen by the pictures' `view`; bool [size, size]."""
    if pathlib.Path(text).suffix:
        region = images.given_view(images.read_image(text), view, size).mean(axis=2) > 127
    else:
        try:
            top, left, height, width = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"--fill={text} is neither TOP,LEFT,HEIGHT,WIDTH nor the path of a mask image") from None
        if min(top, left) < 0 or min(height, width) < 1 or max(top + height, left + width) > size:
            raise ValueError(f"--fill={text} reaches outside the model's image of {size} x {size} pixels")
        region = np.zeros((size, size), bool)
        region[top : top + height, left : left + width] = True
    if not region.any():
        raise ValueError(f"{text} has no white pixel: white is what the model fills")
    return region


def _coded(pretrained, pictures):
    """Pictures as RGB uint8 [I, H, H, 3] and codes int32 [I, S]."""
    taken = images.as_images(pictures)
    if not taken:
        raise ValueError("there is no image to complete")
    size = pretrained.image_size
    originals = np.stack([images.given_view(picture, data.view_of(pretrained.config, size), size) for picture in taken])
    return originals, pretrained.palette.encode(originals).reshape(len(originals), -1)


def _shown(pretrained, codes_ICS, originals, codes_IS, missing_IHH) -> Completions:
    given = pretrained.palette.decode(codes_IS).reshape(originals.shape)
    given[missing_IHH] = 128
    return Completions(pretrained.palette.decode(codes_ICS).reshape(*codes_ICS.shape[:2], *originals.shape[1:]), codes_ICS, given, originals)


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


def _affordable(model, batch, total) -> int:
    """At most `batch` pictures, as many as the free memory of the devices that share them holds; a line where these are fewer. MemoryError where it holds none.

    Devices along `tensor` share the heads of a picture, and each holds the rest of it; a batch is rounded up to equal shards.
    """
    config, wanted = model.config, min(batch, total)
    mesh = _mesh(model, wanted)
    devices = jax.local_devices()[:1] if mesh is None else mesh.devices.flatten().tolist()
    shards = 1 if mesh is None else sharding.batch_shards(mesh)
    item, copies = 2 if config.dtype == "bfloat16" else 4, len(devices) // shards
    if config.causal:
        cache = 2 * config.layers * config.positions * config.width * item
        each = 2 * cache + copies * 8 * config.vocabulary * 4  # a stretch's caches beside those of the one before
    else:
        scores = 2 * config.heads * config.positions * 4
        each = config.positions * (scores + copies * (6 * config.vocabulary * 4 + 12 * config.width * item))
    free = _free_memory(devices)
    if free is None:
        return batch
    fits = int(MEMORY * free / each)
    at_least = 1 if _is_whole(model) and devices[0].platform == "cpu" else shards  # CPU devices have one memory: one alone may take it
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


def _free_memory(devices):
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


def _check_counts(**counts):
    """ValueError for what is no whole number of at least 1."""
    for name, value in counts.items():
        if not _is_whole_number(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def _key(seed):
    """The key of a seed; beyond 32 bits it would be another seed's."""
    if not _is_whole_number(seed) or not 0 <= seed <= SEEDS:
        raise ValueError(f"seed must be a whole number from 0 to {SEEDS}, not {seed!r}")
    return jax.random.key(seed)


def _is_whole_number(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_causal(config):
    if not config.causal:
        raise ValueError("a bert model predicts each pixel from all others and cannot be sampled pixel by pixel: let it fill a region by --fill")


def _choice(config, temperature, top_k, top_p):
    """How a colour is chosen, checked: (temperature, top_p) as the compiled loops take them, and what they are compiled for."""
    if not 0 <= temperature < math.inf or not _is_whole_number(top_k) or not 0 <= top_k <= config.vocabulary or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be >= 0, top_k {top_k} in 0..{config.vocabulary}, a whole number, top_p {top_p} in (0, 1]")
    filters = {"greedy": temperature == 0, "top_k": top_k, "nucleus": top_p < 1}
    return (jnp.float32(temperature or 1), jnp.float32(top_p)), filters


def _mesh(model, count):
    """The devices of this host, as many as share so many pictures, None where there is one; for a model whose parameters are divided its own mesh."""
    if not _is_whole(model):
        return model.token_embedding[...].sharding.mesh
    devices = jax.local_devices()
    return sharding.make_mesh(data=-1, fsdp=1, devices=devices[:count]) if len(devices) > 1 else None


def _copies(tree, mesh):
    """A copy of the whole arrays on each device of the mesh, divided ones as they are; for None the arrays."""

    def copy(x):
        divided = isinstance(x, jax.Array) and len(x.sharding.device_set) == mesh.size and not x.sharding.is_fully_replicated
        return x if divided else jax.device_put(x, jax.NamedSharding(mesh, jax.P()))

    return jax.tree.map(copy, tree) if mesh else tree


def _is_whole(model):
    """Whether each device that has parameters has all of them."""
    return all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model))


def _everywhere(model):
    """A copy of the model on every device of this host, for batch after batch to use."""
    return _copies(model, _mesh(model, jax.local_device_count()))


def _within(mesh):
    """The context in which programs over a mesh, or None, run; entered anew for each, because a generator would leave it to its caller."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


def _divided(rows, which_B, *axes):
    """[I, ...] -> rows `which_B` of it, [b, ...], a shard on each device of the mesh that is set; logical `axes` come after the first."""
    return sharding.constrain(rows[which_B], "batch", *axes, *(None,) * (rows.ndim - 1 - len(axes)))


def _shards(mesh, which_B, keys_B):
    """Both with the last repeated up to equal shards, a shard on each device of the mesh."""
    if not mesh:
        return which_B, keys_B
    places = np.minimum(np.arange(sharding.round_up(mesh, len(which_B))), len(which_B) - 1)
    return jax.device_put((which_B[places], keys_B[places]), sharding.batch_sharding(mesh))


@partial(jax.jit, static_argnames=("greedy", "top_k", "nucleus"))
def _sample(model, given, which_B, keys_B, temperature, top_p, *, greedy, top_k, nucleus):
    """The compiled loops, codes int32 [b or more, S]; caches stay in a loop's carry, where they are updated in place."""
    codes_BS, caches = _begin(model, given, which_B)
    for begin, end in _stretches(model.config, given[0].shape[1]):
        codes_BS, caches = _draw(model, (codes_BS, _grow(caches, end)), begin, end, keys_B, temperature, top_p, greedy, top_k, nucleus)
    return codes_BS


def _stretches(config, start):
    """(begin, end) of the positions from `start` on, in stretches of whole rows: in each the caches have room up to its end, and are read only so far."""
    size = -(-config.rows // STRETCHES) * config.columns
    ends = [min(end + size, config.positions) for end in range(0, config.positions, size)]
    return [(max(start, end - size), end) for end in ends if end > start]


def _grow(caches, positions):
    """The caches with room for so many positions."""
    return [tuple(jnp.pad(cache, ((0, 0), (0, 0), (0, positions - cache.shape[2]), (0, 0))) for cache in pair) for pair in caches]


def _given(model, prompt_IP):
    """Prompts int [I, P] and what the model keeps of them: int32 [I, P], keys and values [I, N, P, K] of each layer; each prompt is seen once."""
    prompt_IP = jnp.asarray(prompt_IP, jnp.int32)
    if not prompt_IP.shape[1]:
        return prompt_IP, model.empty_caches(len(prompt_IP), 0)
    if _is_whole(model):  # one device does it: prompts may be fewer than devices
        model = jax.device_put(model, jax.local_devices()[0])
    return prompt_IP, _prefill(model, prompt_IP)


def _begin(model, given, which_B):
    """The loop's carry before its first draw: codes [b or more, S] with the prompts in place, and the caches that know them."""
    prompt_IP, caches = given
    unknown = ((0, 0), (0, model.config.positions - prompt_IP.shape[1]))
    codes_BS = _divided(jnp.pad(prompt_IP, unknown), which_B)
    return codes_BS, jax.tree.map(lambda rows: _divided(rows, which_B, "heads"), caches)


def _draw(model, carry, start, stop, keys_B, temperature, top_p, greedy, top_k, nucleus):
    """The loop over positions start..stop - 1."""

    def step(position, carry):
        codes_BS, caches = carry
        logits_BV, caches = model.decode(codes_BS[:, position - 1], position, caches)
        codes_B = choose(logits_BV, _folded(keys_B, position), temperature, top_p, greedy, top_k, nucleus)
        return codes_BS.at[:, position].set(codes_B), caches

    return jax.lax.fori_loop(start, stop, step, carry)


def _folded(keys_B, number):
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


_begin_sample = jax.jit(_begin)
_continue_sample = jax.jit(_draw, static_argnames=("greedy", "top_k", "nucleus"), donate_argnames="carry")


@partial(jax.jit, static_argnames=("rounds", "greedy", "top_k", "nucleus"))
def _fill(model, codes_IS, keep_IS, which_B, keys_B, temperature, top_p, *, rounds, greedy, top_k, nucleus):
    """The compiled rounds, codes int32 [b or more, S]. How many stay follows a cosine, as in MaskGIT (Chang et al. 2022, 3.2).

    A picture with fewer pixels to fill than `rounds` gets one a round, whatever the others need.

    Which stay does not: the surest colour of all is the background's, and a region chosen by sureness becomes a hole. Those nearest to known pixels
    stay, so that it closes from its border inwards, and of equally near ones those whose colour is likelier. Every round fixes at least one pixel.
    """
    codes_BS, keep_BS = (_divided(x, which_B) for x in (codes_IS, keep_IS))
    missing_B1, near_SS = (1 - keep_BS).sum(axis=1, keepdims=True), _nearness(model.config)

    def round_(number, carry):
        codes_BS, known_BS = carry
        logits_BSV = model(codes_BS, known_BS).logits
        drawn_BS = choose(logits_BSV, _folded(keys_B, number), temperature, top_p, greedy, top_k, nucleus)
        score_BS = jnp.matmul(known_BS, near_SS, precision="highest") - 1e-3 * cross_entropy(logits_BSV, drawn_BS)
        rank_BS = jnp.argsort(jnp.argsort(jnp.where(known_BS > 0, jnp.inf, score_BS), axis=1, descending=True), axis=1)
        left_B1 = jnp.floor(missing_B1 * jnp.cos(jnp.pi / 2 * (number + 1) / rounds) + 1e-4)
        left_B1 = jnp.where(number + 1 == rounds, 0, jnp.minimum(left_B1, missing_B1 - number - 1))
        stays_BS = rank_BS < codes_BS.shape[1] - left_B1
        return jnp.where(known_BS > 0, codes_BS, drawn_BS), jnp.maximum(known_BS, stays_BS)

    return jax.lax.fori_loop(0, rounds, round_, (codes_BS, keep_BS))[0]


def _nearness(config):
    """How near two positions are, [S, S]: exp(-d^2 / 2) of their distance in pixels."""
    row_S, place_S = jnp.divmod(jnp.arange(config.positions), config.columns)
    column_S = place_S // config.tokens_per_pixel
    squared_SS = sum((axis_S[:, None] - axis_S) ** 2 for axis_S in (row_S, column_S))
    return jnp.exp(-squared_SS / 2.0)


@jax.jit
def _prefill(model, prompt_IP):
    """Run the prompts through the model once: their keys and values, as `decode` takes them."""
    keys_values = (x_LIPNK.swapaxes(2, 3) for x_LIPNK in model(prompt_IP, cache=True).cache)
    return list(zip(*keys_values, strict=True))


def choose(logits_BV, keys_B, temperature, top_p, greedy: bool, top_k: int, nucleus: bool):
    """Draw one code for each row of scores [B, V] or [B, S, V], those of a picture by its key.

    From softmax(logits / temperature) restricted to the top_k, then to the fewest that hold top_p.
    """
    if greedy:
        return logits_BV.argmax(axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_k:
        smallest_B1 = jax.lax.top_k(logits_BV, top_k)[0][..., -1:]
        logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
    if nucleus:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV  # the likeliest colour has 0 before it and always stays
        smallest_B1 = jnp.where(before_BV < top_p, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def completion_grid(made: Completions, scale: int = 0):
    """The blog's figure as a PIL image: a row for each image, model input | completions | original, pixels enlarged and never blurred."""
    columns = [made.given, *made.pictures.swapaxes(0, 1), made.originals]
    return picture_grid(columns, ["model input", *["completions"] * made.pictures.shape[1], "original"], scale)


def picture_grid(columns, titles=None, scale: int = 0, gap: int = 4):
    """A PIL image of columns of pictures [I, H, W, 3] on white; equal neighbouring titles are written once. `scale` 0 makes them about 96 pixels."""
    from PIL import Image, ImageDraw, ImageFont

    rows, height, width = np.asarray(columns[0]).shape[:3]
    scale = scale or max(1, math.ceil(96 / height))
    height, width = height * scale, width * scale
    top = 26 if titles else gap
    canvas = Image.new("RGB", (len(columns) * (width + gap) + gap, top + rows * (height + gap)), "white")
    for column, pictures in enumerate(columns):
        for row, picture in enumerate(np.asarray(pictures)):
            enlarged = np.kron(picture, np.ones((scale, scale, 1), np.uint8))
            canvas.paste(Image.fromarray(enlarged), (gap + column * (width + gap), top + row * (height + gap)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for column, title in enumerate(titles or []):
        if column == 0 or titles[column - 1] != title:
            span = next((end for end in range(column, len(titles)) if titles[end] != title), len(titles)) - column
            draw.text((gap + (column + span / 2) * (width + gap), 6), title, fill="black", font=font, anchor="mt")
    return canvas


def _main() -> None:
    arguments = _arguments()
    try:
        _check_together(arguments)
        machine.keep()
        machine.divide_cores()
        _check_picture(arguments.out)
        overrides = {"dtype": arguments.dtype} if arguments.dtype else {}
        pretrained = checkpoint.load(arguments.checkpoint, **overrides)
        settings = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed", "batch")}
        if arguments.unconditional:
            made = unconditional(pretrained, arguments.unconditional, **settings)
            columns = math.ceil(len(made) ** 0.5)
            blank = np.full((-len(made) % columns, *made.shape[1:]), 255, np.uint8)
            grid = picture_grid(np.concatenate([made, blank]).reshape(-1, columns, *made.shape[1:]).swapaxes(0, 1))
        else:
            size = pretrained.image_size
            region = parse_region(arguments.fill, size, data.view_of(pretrained.config, size)) if arguments.fill is not None else None
            pictures = arguments.images or one_of_each_class(pretrained, arguments.count, arguments.split, arguments.data)
            if region is not None:
                made = fill(pretrained, pictures, region, arguments.completions, arguments.rounds, **settings)
            else:
                made = complete(pretrained, pictures, arguments.rows, arguments.completions, **settings)
            grid = completion_grid(made)
        grid.save(arguments.out)
    except ANY_ERROR as error:
        fail(error)
    print(f"wrote {arguments.out}, {grid.width} x {grid.height} pixels")


def _check_together(arguments) -> None:
    """ValueError for a flag that another one would leave without effect."""
    for flag, without in (("unconditional", ("images", "data", "rows", "fill", "rounds")), ("images", ("data",)), ("fill", ("rows",))):
        for other in without:
            if getattr(arguments, flag) is not None and getattr(arguments, other) is not None:
                raise ValueError(f"--{other} means nothing with --{flag}: leave out one of them")
    if arguments.rounds is not None and arguments.fill is None:
        raise ValueError("--rounds means nothing without --fill: leave it out, or give a region to fill")


def _check_picture(path) -> None:
    """ValueError or OSError in one line where no picture can be written there."""
    from PIL import Image

    kinds = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    if pathlib.Path(path).suffix.lower() not in kinds:
        raise ValueError(f"--out={path} does not end like a picture's name: give one that ends with .png")
    prepare_file(path)


def _arguments():
    parser = Parser(prog="python -m igpt_jax.sample", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="directory of a run, or of a converted model")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--images", nargs="+", help="image files to complete; default: images of --split")
    parser.add_argument("--data", help="data source (see igpt_jax/data.py); default: the one the model was trained on")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--count", type=integer(1), default=8, help="images taken from the split")
    parser.add_argument("--unconditional", type=integer(1), metavar="N", help="make N pictures from nothing instead")
    parser.add_argument("--rows", type=integer(), help="rows given to the model; default: the upper half")
    parser.add_argument("--fill", metavar="REGION", help="bert models: TOP,LEFT,HEIGHT,WIDTH in pixels of the model's image, or a mask image, white to fill")
    parser.add_argument("--rounds", type=integer(1), help=f"of --fill: each predicts all missing pixels and keeps the nearest to known ones; default: {ROUNDS}")
    parser.add_argument("--completions", type=integer(1), default=4, help="of each image")
    parser.add_argument("--temperature", type=TEMPERATURE, default=1.0, help="0 takes the likeliest colour")
    parser.add_argument("--top-k", type=integer(), default=0, help="draw from the k likeliest colours; 0: from all")
    parser.add_argument("--top-p", type=TOP_P, default=1.0, help="draw from the fewest colours that hold this probability")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--batch", type=integer(1), default=256, help="pictures made at once, at most")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of matrix products and caches; default: as trained")
    return parser.parse_args()


if __name__ == "__main__":
    _main()
