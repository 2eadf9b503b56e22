"""The compiled loops that draw codes: one by one with a cache of keys and values, or in rounds for a region that a bert model fills.

I images, B pictures (several completions of an image are several pictures), P codes of a prompt, S sequence, V palette, N heads, K head size, L layers.
"""

import dataclasses
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from igpt_jax.model.objectives import cross_entropy
from igpt_jax.model.transformer import Caches, Decoder, ImageGPT, ModelConfig
from igpt_jax.sampling.placement import is_replicated, select_rows
from igpt_jax.types import AnyArray, Array

STRETCHES = 4  # lengths through which the caches grow: with more of them, less memory is read and compilation takes longer


@partial(jax.tree_util.register_dataclass, data_fields=["temperature", "top_k", "top_p"], meta_fields=["kind"])
@dataclasses.dataclass(frozen=True)
class Choice:
    """How a code is drawn from its logits. Only another `kind` compiles a program anew, another number does not.

    `kind` "greedy" takes the likeliest code; "all" draws from softmax(logits / temperature); "likeliest" draws from it restricted to the `top_k` likeliest
    codes (as many as there are colours: no restriction), then to the fewest likeliest of these that have probability `top_p` together (1: no restriction).
    Codes as likely as the last of the `top_k` are included, as in Hugging Face's TopKLogitsWarper; so are those as likely as the last of `top_p`.
    """

    kind: str
    temperature: ArrayLike  # float32 above 0
    top_k: ArrayLike  # int32, from 1 to V
    top_p: ArrayLike  # float32, above 0, at most 1


Prompts: TypeAlias = tuple[Array, Caches]  # codes int32 [I, P], and the keys and values of each layer, [I, N, P, K]
Carry: TypeAlias = tuple[Array, Caches]  # of the loop over positions: codes int32 [B, S], caches


@jax.jit
def sample_images(model: ImageGPT, prompts: Prompts, image_B: AnyArray, keys_B: Array, choice: Choice) -> Array:
    """Complete prompt `image_B` for each picture: codes int32 [B, S], where B is rounded up to equal shards.

    The caches stay in the carry of a loop, where they are updated in place.
    """
    codes_BS, caches = begin_loop(model, prompts, image_B)
    for begin, end in stretches(model.config, prompts[0].shape[1]):
        codes_BS, caches = draw_positions(model, (codes_BS, grow_caches(caches, end)), begin, end, keys_B, choice)
    return codes_BS


def stretches(config: ModelConfig, start: int) -> list[tuple[int, int]]:
    """Divide the positions from `start` on into stretches of whole rows, (begin, end) each. In a stretch the caches have room up to its end.

    Where a kernel reads the caches, there is one stretch, because it reads filled positions alone; and one where a model predicts blocks.
    """
    size = -(-config.rows // (1 if config.samples_by_kernel or config.block > 1 else STRETCHES)) * config.columns
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


def draw_positions(model: ImageGPT, carry: Carry, start: int, stop: int, keys_B: Array, choice: Choice) -> Carry:
    """Draw the codes at positions start..stop - 1, one after the other: to the end of a row of pixels, then row by row."""
    columns, decoder = model.config.columns, model.decoder()
    if model.config.block > 1:
        return draw_row(model, carry, start, stop - start, keys_B, choice, decoder)
    in_first = min(-start % columns, stop - start)
    if in_first:
        carry = draw_row(model, carry, start, in_first, keys_B, choice, decoder)
    rows, rest = divmod(stop - start - in_first, columns)

    def draw_next(row: Array, carry: Carry) -> Carry:
        return draw_row(model, carry, start + in_first + row * columns, columns, keys_B, choice, decoder)

    carry = jax.lax.fori_loop(0, rows, draw_next, carry)
    return draw_row(model, carry, stop - rest, rest, keys_B, choice, decoder) if rest else carry


def draw_row(
    model: ImageGPT, carry: Carry, start: AnyArray | int, count: AnyArray | int, keys_B: Array, choice: Choice, decoder: Decoder | None = None
) -> Carry:
    """Draw the codes at `count` positions from `start` on, at most as many as a row of pixels has tokens; or any number of whole rows of blocks.

    The random numbers of the whole row are drawn at once, because the many small operations of the generator would take as long as a layer.
    """
    if model.config.block > 1:
        return draw_blocks(model, carry, start, count, keys_B, choice, decoder or model.decoder())
    decoder, numbers = decoder or model.decoder(), start + jnp.arange(model.config.columns)
    noise_CBV = jax.vmap(lambda number: draw_noise(fold_in(keys_B, number), (model.config.vocabulary,)))(numbers)

    def step(number: Array, carry: Carry) -> Carry:
        codes_BS, caches = carry
        position = start + number
        logits_BV, caches = model.decode(codes_BS[:, position - 1], position, caches, decoder)
        return codes_BS.at[:, position].set(choose(logits_BV, noise_CBV[number], choice)), caches

    return jax.lax.fori_loop(0, count, step, carry)


def draw_blocks(
    model: ImageGPT, carry: Carry, start: AnyArray | int, count: AnyArray | int, keys_B: Array, choice: Choice, decoder: Decoder
) -> Carry:
    """Draw the codes at `count` positions from `start` on, whole rows of blocks, all pixels of a block in one step (`config.block`)."""
    blocks, size = jnp.asarray(model.config.positions_of_blocks()), model.config.block**2

    def step(number: Array, carry: Carry) -> Carry:
        codes_BS, caches = carry
        logits_BQV, caches = model.decode_block(codes_BS[:, blocks[number - 1]], number, caches, decoder)
        drawn_BQ = choose(logits_BQV, draw_noise(fold_in(keys_B, number), logits_BQV.shape[1:]), choice)
        return codes_BS.at[:, blocks[number]].set(drawn_BQ), caches

    return jax.lax.fori_loop(start // size, (start + count) // size, step, carry)


def fold_in(keys_B: Array, number: AnyArray | int) -> Array:
    """Derive a key for each picture from its own, [B], and a number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


begin_sample = jax.jit(begin_loop)
advance = jax.jit(draw_row, donate_argnames="carry")


@partial(jax.jit, static_argnames="rounds")
def fill_region(
    model: ImageGPT,
    codes_IS: AnyArray,
    mask_IS: AnyArray,
    image_B: AnyArray,
    keys_B: Array,
    choice: Choice,
    rounds: int,
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
        drawn_BS = choose(logits_BSV, draw_noise(fold_in(keys_B, number), logits_BSV.shape[1:]), choice)
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


def draw_noise(keys_B: Array, shape: tuple[int, ...]) -> Array:
    """Draw the noise [B, *shape] that `choose` adds to logits of the shape [B, *shape]; all rows of a picture use its key."""
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys_B)


def choose(logits: Array, noise: Array, choice: Choice) -> Array:
    """Draw one code for each row of logits [B, V] or [B, S, V], int32 [B] or [B, S]: where logits plus noise are highest, as jax.random.categorical does."""
    if choice.kind == "greedy":
        return logits.argmax(axis=-1).astype(jnp.int32)
    logits = logits / choice.temperature
    if choice.kind == "likeliest":
        descending = jnp.sort(logits, axis=-1, descending=True)
        smallest = jnp.take_along_axis(descending, jnp.full((*logits.shape[:-1], 1), choice.top_k - 1), axis=-1)
        descending = jnp.where(descending < smallest, -jnp.inf, descending)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # 0 for the likeliest code, which is always included
        included = (before < choice.top_p) | (choice.top_p == 1)  # a sum may round to 1 before the last code
        logits = jnp.where(logits < jnp.where(included, jnp.maximum(descending, smallest), jnp.inf).min(axis=-1, keepdims=True), -jnp.inf, logits)
    return (logits + noise).argmax(axis=-1).astype(jnp.int32)
