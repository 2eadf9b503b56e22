"""Sample pictures, or complete the top rows of given ones: `python -m igpt_jax.sample --checkpoint=cifar10-16 --images cat.jpg`.

Reads a checkpoint and images (files of any format and size, --photographs, or a split of a data set). Writes one PNG with a row for each image:
model input | completions | original. Given files and photographs are also shown before they were made small, first, and in the palette's colours, last.
With --gif=FILE it also writes an animation of the same completions being drawn, pixel after pixel.
With --unconditional=N it writes N pictures made from nothing. With --fill=TOP,LEFT,HEIGHT,WIDTH (or a mask image) it fills any region of given images:
a bert model, which cannot be sampled pixel by pixel, in rounds; a causal model by particles. Each of --particles draws the region pixel by pixel, and the
known pixels after it weigh the particles, so a completion takes as many times the work and the memory. The loop over pixels is one compiled program
with a cache of keys and values; the given rows pass through the model once, in parallel.

A completion depends on the seed, on the given part of its picture in the palette's colours, and on its number. It does not depend on --batch, the number of
devices, or pictures with another given part and their order. Pictures with the same given part (blank upper rows, or --rows=0) continue each other's numbers
in their order: of two with --completions=4, the first gets numbers 0 to 3 and the second 4 to 7, and alone the second would get 0 to 3.

The last bits of the model's scores may differ from one batch size or device to another. A draw that falls very close to the border between two
colours may then give the other colour, and change the rest of the picture. In float32 this never happened in the tests.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from igpt_jax.cli import ANY_ERROR, SEEDS, USER_ERRORS, Parser, check_together, fail, integer, prepare_file, real
from igpt_jax.data import pipeline
from igpt_jax.data.images import as_images, evaluation_view
from igpt_jax.data.photographs import photographs
from igpt_jax.distributed import runtime
from igpt_jax.distributed.multihost import check_alone, note
from igpt_jax.interop import hub
from igpt_jax.sampling.complete import Completions, complete, fill, one_of_each_class, parse_region, unconditional
from igpt_jax.sampling.generate import PARTICLES, ROUNDS, cache_bytes, check_settings
from igpt_jax.sampling.grid import STEPS, TILE, completion_grid, drawing_frames, drawing_order, picture_grid, prepare_picture, save_animation, square_grid
from igpt_jax.sampling.placement import sample_in_bfloat16
from igpt_jax.training import checkpoints

FROM_NOTHING = 36  # pictures where there is no image to complete
COUNT, COMPLETIONS, SPLIT = 8, 4, "test"  # where nothing else is asked for
Drawn: TypeAlias = tuple[Image.Image, list[Image.Image]]  # the picture, and the frames of an animation


def _main() -> None:
    arguments = _arguments()
    try:
        _check_together(arguments)
        check_alone("sample")
        runtime.prepare()
        runtime.divide_cores()
        inputs = [*(arguments.images or ()), *([arguments.fill] if arguments.fill else ())]
        prepare_picture(_out(arguments), inputs)
        if arguments.gif:
            _prepare_gif(arguments, inputs)
        overrides = {"dtype": arguments.dtype} if arguments.dtype else {}
        pretrained = hub.load(arguments.checkpoint, image_size=arguments.image_size, ema=arguments.ema, **overrides)
        if not overrides:
            sample_in_bfloat16(pretrained.model)
        check_settings(pretrained.model_config, arguments.temperature, arguments.top_k, arguments.top_p)
        if arguments.gif and not pretrained.model_config.causal:
            raise ValueError("--gif shows pixels in the order of the draws, and a bert model fills many at once: leave it out")
        grid, frames = _draw(pretrained, arguments)
        grid.save(_out(arguments))
        lines = [f"wrote {_out(arguments)}, {grid.width} x {grid.height} pixels"]
        if frames:
            lines.append(f"wrote {arguments.gif}, {save_animation(frames, arguments.gif)}")
        lines.append(f"next: python -m igpt_jax.demo --checkpoint={arguments.checkpoint}, to draw in the browser")
    except ANY_ERROR as error:
        fail(error)
    print("\n".join(lines))


def _out(arguments: argparse.Namespace) -> str:
    """The PNG to write."""
    return arguments.out or ("samples.png" if arguments.unconditional else "completions.png")


def _prepare_gif(arguments: argparse.Namespace, inputs: Sequence[str]) -> None:
    """Raise ValueError or OSError, before the work, for a name of the animation that cannot be written."""
    if pathlib.Path(arguments.gif).suffix.lower() != ".gif":
        raise ValueError(f"--gif={arguments.gif} must end in .gif")
    if pathlib.Path(arguments.gif).absolute() == pathlib.Path(_out(arguments)).absolute():
        raise ValueError(f"--gif and --out are both {arguments.gif}: give two names")
    prepare_file(arguments.gif, inputs)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed", "batch")}


def _draw(pretrained: checkpoints.Pretrained, arguments: argparse.Namespace) -> Drawn:
    """Draw the picture that the arguments ask for, and the frames of --gif, of the same pixels."""
    if arguments.photographs or arguments.images:
        pictures = list(photographs().values()) if arguments.photographs else as_images(arguments.images)
        return _completion_grid(pretrained, pictures, arguments, _squares(pretrained, pictures))
    pictures = [] if arguments.unconditional else _pictures_of_its_data(pretrained, arguments)
    if pictures:
        return _completion_grid(pretrained, pictures, arguments)
    arguments.unconditional = arguments.unconditional or FROM_NOTHING
    _note_work(arguments, arguments.unconditional)
    made = unconditional(pretrained, arguments.unconditional, **_settings(arguments))
    return square_grid(made), drawing_frames(made, np.array(True), square_grid, drawing_order(pretrained.model_config)) if arguments.gif else []


def _squares(pretrained: checkpoints.Pretrained, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return the part of each picture that the model is given, uint8 [I, W, W, 3] as large as `completion_grid` draws it."""
    size = pretrained.image_size
    view, scale = pipeline.view_of(pretrained.config, size), -(-TILE // size)
    return np.stack(
        [
            picture.repeat(scale, 0).repeat(scale, 1) if picture.shape[:2] == (size, size) else evaluation_view(picture, view, size * scale)
            for picture in pictures
        ]
    )


def _pictures_of_its_data(pretrained: checkpoints.Pretrained, arguments: argparse.Namespace) -> list[np.ndarray]:
    """Choose images of --split. None of them, with a note, for a model in a file if its data are not on this machine and no other argument needs them."""
    try:
        return one_of_each_class(pretrained, arguments.count or COUNT, arguments.split or SPLIT, arguments.data)
    except USER_ERRORS:
        needs_images = not pretrained.model_config.causal or any(getattr(arguments, name) is not None for name in ("data", "split", "count", "rows", "fill"))
        if pretrained.name is None or needs_images:
            raise
        source = pretrained.config.get("data", {}).get("source") or "no data named"
        note(f"its images ({source}) are not on this machine, so {FROM_NOTHING} pictures are made from nothing: --images FILE or --photographs completes some")
        return []


def _completion_grid(
    pretrained: checkpoints.Pretrained, pictures: Sequence[np.ndarray], arguments: argparse.Namespace, shown: np.ndarray | None = None
) -> Drawn:
    """Complete images, or fill their region if --fill is given, and show them beside their originals, and `shown` first."""
    size, completions = pretrained.image_size, arguments.completions or COMPLETIONS
    if arguments.fill is None:
        _note_work(arguments, len(pictures) * completions)
        made = complete(pretrained, pictures, arguments.rows, completions, **_settings(arguments))
    else:
        region = parse_region(arguments.fill, size, pipeline.view_of(pretrained.config, size))
        _note_work(arguments, len(pictures) * completions, _cost_of_particles(pretrained, arguments))
        made = fill(pretrained, pictures, region, completions, arguments.rounds, particles=arguments.particles, **_settings(arguments))
        _note_particles(arguments, made)
    frames = []
    if arguments.gif:
        order_HH = drawing_order(pretrained.model_config)
        frames = drawing_frames(made.pictures, made.missing[:, None], lambda drawn: picture_grid(drawn.swapaxes(0, 1)), order_HH)
    return completion_grid(made, pictures=shown), frames


def _cost_of_particles(pretrained: checkpoints.Pretrained, arguments: argparse.Namespace) -> str:
    """What the particles of a causal model cost; "" where there are none."""
    if not pretrained.model_config.causal or not arguments.temperature:
        return ""
    count = arguments.particles or PARTICLES
    return f"{count} particles for each completion: {count} times the work, and {count * cache_bytes(pretrained.model_config) / 2**20:,.1f} MiB of caches"


def _note_work(arguments: argparse.Namespace, count: int, cost: str = "") -> None:
    """Say what is done before the first `count` pictures are there: a single batch shows no progress."""
    under_way = [f"compiling, then drawing {count} picture{'s' * (count > 1)}"] * (count <= arguments.batch)
    for line in [cost] * bool(cost) + under_way:
        note(line)


def _note_particles(arguments: argparse.Namespace, made: Completions) -> None:
    """Say how many different particles were left."""
    if made.survivors is not None and arguments.temperature > 0:
        count = arguments.particles or PARTICLES
        few = f": --particles={4 * count} has more of them" if np.median(made.survivors) < 2 < count else ""
        note(f"effective number of different particles at the end: median {np.median(made.survivors):.1f}, least {made.survivors.min():.1f}{few}")


def _check_together(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a flag that has no effect beside another one."""
    of_a_split = ("data", "split", "count")
    pictures = {"unconditional": ("images", "photographs", *of_a_split, "completions", "rows", "fill", "rounds", "particles"), "photographs": of_a_split}
    check_together(arguments, pictures | {"images": ("photographs", *of_a_split), "fill": ("rows",)})
    for flag in ("rounds", "particles"):
        if getattr(arguments, flag) is not None and arguments.fill is None:
            raise ValueError(f"--{flag} has no effect without --fill: leave it out, or give a region to fill")


def add_draws(parser: Any) -> None:
    """Add the flags of the draws, --temperature, --top-k, --top-p and --seed, to an argparse parser or a group of one."""
    temperature, top_p = real("a number of at least 0", lambda value: value >= 0), real("a number above 0 and at most 1", lambda value: 0 < value <= 1)
    parser.add_argument("--temperature", type=temperature, default=1.0, help="0 takes the most likely colour")
    parser.add_argument("--top-k", type=integer(), default=0, help="draw from the k most likely colours; 0: from all")
    parser.add_argument("--top-p", type=top_p, default=1.0, help="draw from the smallest set of most likely colours with this total probability")
    parser.add_argument("--seed", type=integer(0, SEEDS), default=0, help="of all draws")


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m igpt_jax.sample", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--ema", action="store_true", help=checkpoints.HELP_EMA)
    parser.add_argument("--out", help="the PNG to write; default: completions.png, or samples.png with --unconditional")
    parser.add_argument("--gif", metavar="FILE", help=f"also write the completions as they are drawn, in at most {STEPS} steps, as a GIF; no second sampling")
    inputs = parser.add_argument_group("images")
    inputs.add_argument("--images", nargs="+", metavar="FILE", help="image files to complete; default: images of --split")
    inputs.add_argument("--photographs", action="store_true", default=None, help="complete squares of the two photographs that scikit-learn brings")
    inputs.add_argument("--data", help="data source, see igpt_jax/data/config.py; default: the one that the model was trained on")
    inputs.add_argument("--split", choices=("train", "validation", "test"), help=f"split of --data (default: {SPLIT})")
    inputs.add_argument("--count", type=integer(1), help=f"images of the split (default: {COUNT})")
    inputs.add_argument("--unconditional", type=integer(1), metavar="N", help="instead, make N pictures that start from nothing")
    inputs.add_argument("--image-size", type=integer(1), help=f"side of the pictures in pixels, {checkpoints.ANOTHER_SIZE}")
    inputs.add_argument("--rows", type=integer(), help="rows that the model is given; default: the upper half")
    inputs.add_argument("--fill", metavar="REGION", help="TOP,LEFT,HEIGHT,WIDTH in pixels of the model's image, or a mask image, white where to fill")
    rounds = f"of --fill with a bert model: each predicts all missing pixels and keeps those nearest to known ones; default: {ROUNDS}"
    inputs.add_argument("--rounds", type=integer(1), help=rounds)
    particles = f"of --fill with a causal model, for each completion, which takes as many times the work and the memory; default: {PARTICLES}"
    inputs.add_argument("--particles", type=integer(1), help=particles)
    draws = parser.add_argument_group("sampling")
    draws.add_argument("--completions", type=integer(1), help=f"number for each image (default: {COMPLETIONS})")
    add_draws(draws)
    draws.add_argument("--batch", type=integer(1), default=256, help="largest number of pictures at once")
    draws.add_argument("--dtype", choices=("float32", "bfloat16"), help="of products and caches; default: as in training, but bfloat16 on an accelerator")
    return parser.parse_args()


if __name__ == "__main__":
    _main()
