"""The compiled loops that draw codes: one by one with a cache of keys and values, or in rounds for a region that a bert model fills.

I images, B pictures (several completions of an image are several pictures), P codes of a prompt, S sequence, V palette, N heads, K head size.
"""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp

from igpt_jax.model.objectives import cross_entropy
from igpt_jax.model.transformer import Caches, ImageGPT, ModelConfig
from igpt_jax.sampling.placement import is_replicated, select_rows
from igpt_jax.types import AnyArray, Array

STRETCHES = 4  # lengths through which the caches grow: with more of them, less memory is read and compilation takes longer

Prompts: TypeAlias = tuple[Array, Caches]  # codes int32 [I, P], and the keys and values of each layer, [I, N, P, K]
Carry: TypeAlias = tuple[Array, Caches]  # of the loop over positions: codes int32 [B, S], caches


@partial(jax.jit, static_argnames=("greedy", "top_k", "nucleus"))
def sample_images(
    model: ImageGPT, prompts: Prompts, image_B: AnyArray, keys_B: Array, temperature: AnyArray, top_p: AnyArray, *, greedy: bool, top_k: int, nucleus: bool
) -> Array:
    """Complete prompt `image_B` for each picture: codes int32 [B, S], where B is rounded up to equal shards. See `choose` for the settings.

    The caches stay in the carry of a loop, where they are updated in place.
    """
    codes_BS, caches = begin_loop(model, prompts, image_B)
    for begin, end in stretches(model.config, prompts[0].shape[1]):
        codes_BS, caches = draw_positions(model, (codes_BS, grow_caches(caches, end)), begin, end, keys_B, temperature, top_p, greedy, top_k, nucleus)
    return codes_BS


def stretches(config: ModelConfig, start: int) -> list[tuple[int, int]]:
    """Divide the positions from `start` on into stretches of whole rows, (begin, end) each. In a stretch the caches have room up to its end."""
    size = -(-config.rows // STRETCHES) * config.columns
    ends = [min(end + size, config.positions) for end in range(0, config.positions, size)]
    return [(max(start, end - size), end) for end in ends if end > start]


def grow_caches(caches: Caches, positions: int) -> Caches:
    """Pad the caches with zeros to room for `positions`."""

    def grow(cache_BNSK: Array) -> Array:
        return jnp.pad(cache_BNSK, ((0, 0), (0, 0), (0, positions - cache_BNSK.shape[2]), (0, 0)))

    return [(grow(keys), grow(values)) for keys, values in caches]


def prepare_prompts(model: ImageGPT, prompt_IP: AnyArray) -> Prompts:
    """Run each prompt of codes int [I, P] through the model once: the prompts and their caches."""
    prompt_IP = jnp.asarray(prompt_IP, jnp.int32)
    if not prompt_IP.shape[1]:
        return prompt_IP, model.empty_caches(len(prompt_IP), 0)
    if is_replicated(model):  # on one device, because there may be fewer prompts than devices
        model = jax.device_put(model, jax.local_devices()[0])
    return prompt_IP, prefill(model, prompt_IP)


def begin_loop(model: ImageGPT, prompts: Prompts, image_B: AnyArray) -> Carry:
    """Make the carry before the first draw: the prompt of each picture, padded with zeros to [B, S], and its caches."""
    prompt_IP, caches = prompts
    unknown = ((0, 0), (0, model.config.positions - prompt_IP.shape[1]))
    codes_BS = select_rows(jnp.pad(prompt_IP, unknown), image_B)
    return codes_BS, jax.tree.map(lambda rows: select_rows(rows, image_B, "heads"), caches)


def draw_positions(
    model: ImageGPT,
    carry: Carry,
    start: int,
    stop: int,
    keys_B: Array,
    temperature: AnyArray,
    top_p: AnyArray,
    greedy: bool,
    top_k: int,
    nucleus: bool,
) -> Carry:
    """Draw the codes at positions start..stop - 1, one after the other."""

    def step(position: Array, carry: Carry) -> Carry:
        codes_BS, caches = carry
        logits_BV, caches = model.decode(codes_BS[:, position - 1], position, caches)
        codes_B = choose(logits_BV, _fold_in(keys_B, position), temperature, top_p, greedy, top_k, nucleus)
        return codes_BS.at[:, position].set(codes_B), caches

    return jax.lax.fori_loop(start, stop, step, carry)


def _fold_in(keys_B: Array, number: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


begin_sample = jax.jit(begin_loop)
advance = jax.jit(draw_positions, static_argnames=("greedy", "top_k", "nucleus"), donate_argnames="carry")


@partial(jax.jit, static_argnames=("rounds", "greedy", "top_k", "nucleus"))
def fill_region(
    model: ImageGPT,
    codes_IS: AnyArray,
    mask_IS: AnyArray,
    image_B: AnyArray,
    keys_B: Array,
    temperature: AnyArray,
    top_p: AnyArray,
    *,
    rounds: int,
    greedy: bool,
    top_k: int,
    nucleus: bool,
) -> Array:
    """Fill the masked positions (mask = 1) of image `image_B` for each picture, in rounds: codes int32 [B, S], where B is rounded up to equal shards.

    Each round predicts all masked codes and fixes some of them. Their number follows a cosine, as in MaskGIT (Chang et al. 2022, 3.2), and is at least
    one: a picture with fewer masked positions than `rounds` gets one a round, whatever the others need. Unlike MaskGIT, the positions nearest to known
    ones are fixed first, and among equally near ones those with the likelier colour. The region then closes from its border inwards. By confidence alone
    the background's colour would come first, because it is the most certain, and would fill the region.
    """
    codes_BS, mask_BS = (select_rows(x, image_B) for x in (codes_IS, mask_IS))
    total_B1, near_SS = mask_BS.sum(axis=1, keepdims=True), _nearness(model.config)

    def fill_some(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        codes_BS, mask_BS = carry
        logits_BSV = model(codes_BS, mask_BS).logits
        drawn_BS = choose(logits_BSV, _fold_in(keys_B, number), temperature, top_p, greedy, top_k, nucleus)
        score_BS = jnp.matmul(1 - mask_BS, near_SS, precision="highest") - 1e-3 * cross_entropy(logits_BSV, drawn_BS)
        rank_BS = jnp.argsort(jnp.argsort(jnp.where(mask_BS > 0, score_BS, jnp.inf), axis=1, descending=True), axis=1)
        left_B1 = jnp.floor(total_B1 * jnp.cos(jnp.pi / 2 * (number + 1) / rounds) + 1e-4)
        left_B1 = jnp.where(number + 1 == rounds, 0, jnp.minimum(left_B1, total_B1 - number - 1))
        still_masked_BS = rank_BS >= codes_BS.shape[1] - left_B1
        return jnp.where(mask_BS > 0, drawn_BS, codes_BS), jnp.minimum(mask_BS, still_masked_BS)

    return jax.lax.fori_loop(0, rounds, fill_some, (codes_BS, mask_BS))[0]


def _nearness(config: ModelConfig) -> Array:
    """Compute how near two positions are, [S, S]: exp(-d^2 / 2) for a distance of d pixels."""
    row_S, place_S = jnp.divmod(jnp.arange(config.positions), config.columns)
    column_S = place_S // config.tokens_per_pixel
    squared_SS = sum((axis_S[:, None] - axis_S) ** 2 for axis_S in (row_S, column_S))
    return jnp.exp(-squared_SS / 2.0)


@jax.jit
def prefill(model: ImageGPT, prompt_IP: Array) -> Caches:
    """Run the prompts through the model once and return their keys and values as `ImageGPT.decode` takes them."""
    keys_LINPK, values_LINPK = (x_LIPNK.swapaxes(2, 3) for x_LIPNK in model(prompt_IP, cache=True).cache)
    return list(zip(keys_LINPK, values_LINPK, strict=True))


def choose(logits: Array, keys_B: Array, temperature: AnyArray, top_p: AnyArray, greedy: bool, top_k: int, nucleus: bool) -> Array:
    """Draw one code for each row of logits [B, V] or [B, S, V], int32 [B] or [B, S]. All rows of a picture use its key.

    Draws from softmax(logits / temperature), restricted to the `top_k` likeliest codes (0: all), then, if `nucleus`, to the fewest likeliest codes that
    have probability `top_p` together. `greedy` takes the likeliest code instead.
    """
    if greedy:
        return logits.argmax(axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k:
        smallest = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if nucleus:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # 0 for the likeliest code, which is always included
        smallest = jnp.where(before < top_p, descending, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys_B, logits).astype(jnp.int32)
