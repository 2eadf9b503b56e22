"""The compiled loops that draw codes: pixel by pixel with a cache of keys and values, or a bert model's region in rounds."""

from functools import partial

import jax
import jax.numpy as jnp

from igpt_jax.model.objectives import cross_entropy
from igpt_jax.sampling.placement import is_replicated, select_rows

STRETCHES = 4  # lengths that the caches grow through: a stretch more reads less, and takes its time to compile


@partial(jax.jit, static_argnames=("greedy", "top_k", "nucleus"))
def sample_images(model, given, which_B, keys_B, temperature, top_p, *, greedy, top_k, nucleus):
    """The compiled loops, codes int32 [b or more, S]; caches stay in a loop's carry, where they are updated in place."""
    codes_BS, caches = begin_loop(model, given, which_B)
    for begin, end in stretches(model.config, given[0].shape[1]):
        codes_BS, caches = draw_positions(model, (codes_BS, grow_caches(caches, end)), begin, end, keys_B, temperature, top_p, greedy, top_k, nucleus)
    return codes_BS


def stretches(config, start):
    """(begin, end) of the positions from `start` on, in stretches of whole rows: in each the caches have room up to its end, and are read only so far."""
    size = -(-config.rows // STRETCHES) * config.columns
    ends = [min(end + size, config.positions) for end in range(0, config.positions, size)]
    return [(max(start, end - size), end) for end in ends if end > start]


def grow_caches(caches, positions):
    """The caches with room for so many positions."""
    return [tuple(jnp.pad(cache, ((0, 0), (0, 0), (0, positions - cache.shape[2]), (0, 0))) for cache in pair) for pair in caches]


def prepare_prompts(model, prompt_IP):
    """Prompts int [I, P] and what the model keeps of them: int32 [I, P], keys and values [I, N, P, K] of each layer; each prompt is seen once."""
    prompt_IP = jnp.asarray(prompt_IP, jnp.int32)
    if not prompt_IP.shape[1]:
        return prompt_IP, model.empty_caches(len(prompt_IP), 0)
    if is_replicated(model):  # one device does it: prompts may be fewer than devices
        model = jax.device_put(model, jax.local_devices()[0])
    return prompt_IP, prefill(model, prompt_IP)


def begin_loop(model, given, which_B):
    """The loop's carry before its first draw: codes [b or more, S] with the prompts in place, and the caches that know them."""
    prompt_IP, caches = given
    unknown = ((0, 0), (0, model.config.positions - prompt_IP.shape[1]))
    codes_BS = select_rows(jnp.pad(prompt_IP, unknown), which_B)
    return codes_BS, jax.tree.map(lambda rows: select_rows(rows, which_B, "heads"), caches)


def draw_positions(model, carry, start, stop, keys_B, temperature, top_p, greedy, top_k, nucleus):
    """The loop over positions start..stop - 1."""

    def step(position, carry):
        codes_BS, caches = carry
        logits_BV, caches = model.decode(codes_BS[:, position - 1], position, caches)
        codes_B = choose(logits_BV, _folded(keys_B, position), temperature, top_p, greedy, top_k, nucleus)
        return codes_BS.at[:, position].set(codes_B), caches

    return jax.lax.fori_loop(start, stop, step, carry)


def _folded(keys_B, number):
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


begin_sample = jax.jit(begin_loop)
advance = jax.jit(draw_positions, static_argnames=("greedy", "top_k", "nucleus"), donate_argnames="carry")


@partial(jax.jit, static_argnames=("rounds", "greedy", "top_k", "nucleus"))
def fill_region(model, codes_IS, mask_IS, which_B, keys_B, temperature, top_p, *, rounds, greedy, top_k, nucleus):
    """Fill the masked positions (mask = 1) in rounds: codes int32 [b or more, S].

    Each round predicts all masked codes and fixes some of them. Their number follows a cosine, as in MaskGIT (Chang et al. 2022, 3.2), and is at least
    one: a picture with fewer masked positions than `rounds` gets one a round, whatever the others need. Unlike MaskGIT, the positions nearest to known
    ones are fixed first, and among equally near ones those with the likelier colour. The region then closes from its border inwards. By confidence alone
    the background's colour would come first, because it is the most certain, and would fill the region.
    """
    codes_BS, mask_BS = (select_rows(x, which_B) for x in (codes_IS, mask_IS))
    total_B1, near_SS = mask_BS.sum(axis=1, keepdims=True), _nearness(model.config)

    def round_(number, carry):
        codes_BS, mask_BS = carry
        logits_BSV = model(codes_BS, mask_BS).logits
        drawn_BS = choose(logits_BSV, _folded(keys_B, number), temperature, top_p, greedy, top_k, nucleus)
        score_BS = jnp.matmul(1 - mask_BS, near_SS, precision="highest") - 1e-3 * cross_entropy(logits_BSV, drawn_BS)
        rank_BS = jnp.argsort(jnp.argsort(jnp.where(mask_BS > 0, score_BS, jnp.inf), axis=1, descending=True), axis=1)
        left_B1 = jnp.floor(total_B1 * jnp.cos(jnp.pi / 2 * (number + 1) / rounds) + 1e-4)
        left_B1 = jnp.where(number + 1 == rounds, 0, jnp.minimum(left_B1, total_B1 - number - 1))
        still_masked_BS = rank_BS >= codes_BS.shape[1] - left_B1
        return jnp.where(mask_BS > 0, drawn_BS, codes_BS), jnp.minimum(mask_BS, still_masked_BS)

    return jax.lax.fori_loop(0, rounds, round_, (codes_BS, mask_BS))[0]


def _nearness(config):
    """How near two positions are, [S, S]: exp(-d^2 / 2) of their distance in pixels."""
    row_S, place_S = jnp.divmod(jnp.arange(config.positions), config.columns)
    column_S = place_S // config.tokens_per_pixel
    squared_SS = sum((axis_S[:, None] - axis_S) ** 2 for axis_S in (row_S, column_S))
    return jnp.exp(-squared_SS / 2.0)


@jax.jit
def prefill(model, prompt_IP):
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
