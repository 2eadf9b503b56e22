"""Sample pictures, or complete the top rows of given ones: `python -m igpt_jax.sample --checkpoint=runs/digits --out=completions.png`.

Reads a checkpoint and images (files of any format and size, or a split of a data set); writes one PNG, a row for each image:
model input | completions | original. With --unconditional=N it writes N pictures made from nothing. The loop over pixels is one compiled
program with a cache of keys and values; the given rows are run through the model once, in one pass.
"""

import argparse
import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax import checkpoint, data, images
from igpt_jax.cli import USER_ERRORS, fail


@dataclasses.dataclass(frozen=True)
class Completions:
    """What `complete` made of I images of size H x H; RGB uint8."""

    pictures: np.ndarray  # [I, completions, H, H, 3]
    codes: np.ndarray  # int32 [I, completions, H * H]; the given rows are those of the input, bit for bit
    given: np.ndarray  # [I, H, H, 3]: the model's input, grey where it is to be completed
    originals: np.ndarray  # [I, H, H, 3]: the images resized, before colour coding


def complete(pretrained, pictures, rows=None, completions=4, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> Completions:
    """Complete images from their top `rows` (half of them by default), `completions` times each.

    `pictures`: paths, or RGB/grey uint8 arrays, of any size: cropped to the centre square and resized as in training. `temperature` 0 takes the
    likeliest colour; `top_k` (0: off) and `top_p` (1: off) keep only the likeliest colours. `batch` is how many pictures run at once.
    """
    size = pretrained.image_size
    rows = size // 2 if rows is None else rows
    if not 0 <= rows < size:
        raise ValueError(f"rows {rows} must be between 0 and {size - 1}: the images have {size} rows")
    if len(pictures) == 0:
        raise ValueError("there is no image to complete")
    originals = np.stack([_original(picture, size) for picture in pictures])
    codes_IS = pretrained.palette.encode(originals).reshape(len(originals), size * size)
    per_batch = max(1, batch // completions)
    parts = []
    for number, start in enumerate(range(0, len(codes_IS), per_batch)):
        prompt_IP = codes_IS[start : start + per_batch, : rows * size]
        key = jax.random.fold_in(jax.random.key(seed), number)
        parts.append(sample_codes(pretrained.model, prompt_IP, key, completions, temperature, top_k, top_p))
    codes = np.concatenate(parts)
    given = pretrained.palette.decode(codes_IS).reshape(originals.shape)
    given[:, rows:] = 128
    return Completions(pretrained.palette.decode(codes).reshape(len(codes), completions, size, size, 3), codes, given, originals)


def unconditional(pretrained, count, temperature=1.0, top_k=0, top_p=1.0, seed=0, batch=256) -> np.ndarray:
    """Pictures made from nothing, uint8 [count, H, H, 3]."""
    size, parts = pretrained.image_size, []
    for number, start in enumerate(range(0, count, batch)):
        key = jax.random.fold_in(jax.random.key(seed), number)
        nothing = np.zeros((1, 0), np.int32)
        parts.append(sample_codes(pretrained.model, nothing, key, min(batch, count - start), temperature, top_k, top_p)[0])
    return pretrained.palette.decode(np.concatenate(parts)).reshape(count, size, size, 3)


def sample_codes(model, prompt_IP, key, completions=1, temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """Continue each prompt of codes int [I, P] to a whole image, `completions` times: int32 [I, completions, S]."""
    config = model.config
    if not config.causal:
        raise ValueError("a bert model predicts each pixel from all others and cannot be sampled pixel by pixel")
    if temperature < 0 or not 0 <= top_k <= config.vocabulary or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be >= 0, top_k {top_k} in 0..{config.vocabulary}, top_p {top_p} in (0, 1]")
    prompt_IP = jnp.asarray(prompt_IP, jnp.int32)
    filters = {"greedy": temperature == 0, "top_k": top_k, "nucleus": top_p < 1}
    codes = _sample(model, prompt_IP, key, jnp.float32(temperature or 1), jnp.float32(top_p), completions=completions, **filters)
    return np.asarray(codes).reshape(len(prompt_IP), completions, config.positions)


def _original(picture, size):
    """A path or an array as RGB uint8 [size, size, 3]."""
    if not isinstance(picture, np.ndarray):
        picture = images.read_image(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"an image is uint8 [H, W], [H, W, 1] or [H, W, 3], not {picture.dtype} {list(picture.shape)}")
    picture = picture[..., None] if picture.ndim == 2 else picture
    return images.center_square(np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3))), size)


@partial(jax.jit, static_argnames=("completions", "greedy", "top_k", "nucleus"))
def _sample(model, prompt_IP, key, temperature, top_p, *, completions, greedy, top_k, nucleus):
    """The compiled loop, codes int32 [I * completions, S]; caches stay in the loop's carry, where they are updated in place."""
    images_count, prompt_length = prompt_IP.shape
    batch = images_count * completions
    caches = model.empty_caches(batch)
    codes_BS = jnp.zeros((batch, model.config.positions), jnp.int32)
    if prompt_length:
        codes_BS = codes_BS.at[:, :prompt_length].set(jnp.repeat(prompt_IP, completions, axis=0))
        caches = _prefill(model, prompt_IP, caches, completions)

    def step(position, carry):
        codes_BS, caches = carry
        logits_BV, caches = model.decode(codes_BS[:, position - 1], position, caches)
        codes_B = choose(logits_BV, jax.random.fold_in(key, position), temperature, top_p, greedy, top_k, nucleus)
        return codes_BS.at[:, position].set(codes_B), caches

    return jax.lax.fori_loop(prompt_length, model.config.positions, step, (codes_BS, caches))[0]


def _prefill(model, prompt_IP, caches, completions):
    """Run the shared prompts once and hand every completion its copy of their keys and values."""
    keys_LIPNK, values_LIPNK = model(prompt_IP, cache=True).cache

    def place(cache_BNSK, given_IPNK):
        given_BNPK = jnp.repeat(given_IPNK.swapaxes(1, 2), completions, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(cache_BNSK, given_BNPK, 0, axis=2)

    return [(place(k, keys_LIPNK[layer]), place(v, values_LIPNK[layer])) for layer, (k, v) in enumerate(caches)]


def choose(logits_BV, key, temperature, top_p, greedy: bool, top_k: int, nucleus: bool):
    """Draw one code for each row of scores: softmax(logits / temperature) restricted to the top_k, then to the fewest that hold top_p."""
    if greedy:
        return logits_BV.argmax(axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_k:
        smallest_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
    if nucleus:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV  # the likeliest colour has 0 before it and always stays
        smallest_B1 = jnp.where(before_BV < top_p, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


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
        overrides = {"dtype": arguments.dtype} if arguments.dtype else {}
        pretrained = checkpoint.load(arguments.checkpoint, **overrides)
        settings = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed", "batch")}
        if arguments.unconditional:
            made = unconditional(pretrained, arguments.unconditional, **settings)
            columns = math.ceil(len(made) ** 0.5)
            blank = np.full((-len(made) % columns, *made.shape[1:]), 255, np.uint8)
            grid = picture_grid(np.concatenate([made, blank]).reshape(-1, columns, *made.shape[1:]).swapaxes(0, 1))
        else:
            pictures = arguments.images or _from_split(pretrained, arguments)
            made = complete(pretrained, pictures, arguments.rows, arguments.completions, **settings)
            grid = completion_grid(made)
        grid.save(arguments.out)
    except USER_ERRORS as error:
        fail(error)
    print(f"wrote {arguments.out}, {grid.width} x {grid.height} pixels")


def _from_split(pretrained, arguments):
    """The first images of each class in turn from a split of the data set, so that the picture shows all classes."""
    config = data.config_for(pretrained.config, pretrained.image_size, arguments.data)
    dataset = data.open_dataset(config, arguments.split)
    labels = np.asarray(dataset.labels)
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    chosen = np.lexsort((labels, rank))[: arguments.count]
    return [dataset.images(index, index + 1)[0] for index in chosen]


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m igpt_jax.sample", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="directory of a run, or of a converted model")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--images", nargs="+", help="image files to complete; default: images of --split")
    parser.add_argument("--data", help="data source (see igpt_jax/data.py); default: the one the model was trained on")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--count", type=int, default=8, help="images taken from the split")
    parser.add_argument("--unconditional", type=int, default=0, metavar="N", help="make N pictures from nothing instead")
    parser.add_argument("--rows", type=int, help="rows given to the model; default: the upper half")
    parser.add_argument("--completions", type=int, default=4, help="of each image")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest colour")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest colours; 0: from all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the fewest colours that hold this probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="pictures made at once")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of matrix products and caches; default: as trained")
    return parser.parse_args()


if __name__ == "__main__":
    _main()
