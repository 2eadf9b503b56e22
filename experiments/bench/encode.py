"""Pixels to palette codes beside Hugging Face's image processor: `python -m experiments.bench.encode`.

ours                 Palette.encode of uint8 pixels with its table of all colours, as in a run
ours-first           the same with a new palette, which builds its table during the turn
hugging-face         color_quantize of transformers' ImageGPTImageProcessor in numpy; the time to normalise its pixels is not counted
hugging-face-torch   the same in torch, the default of transformers 5; only if torchvision is installed

The images are smooth and random. Their colours fill the cube unevenly, as those of photographs do. The centres are colours of the images.
"""

import argparse

import numpy as np

from experiments.bench import rounds
from igpt_jax.cli import Parser, integer
from igpt_jax.palette.palette import Palette

PROGRAMS = {"ours": (), "ours-first": (), "hugging-face": ("torch", "transformers")}
PROGRAMS |= {"hugging-face-torch": ("torch", "transformers")} if rounds.installed("torchvision") else {}
RESOLUTION = 32
COLUMNS = {"s": ("seconds", "{:,.3f}"), "images/s": ("images_per_second", "{:,.0f}"), "codes as ours": ("agreeing", "{:.4%}")}


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=integer(1), default=4096, help="images to encode")
    parser.add_argument("--batch", type=integer(1), default=64, help="images that are encoded together")
    parser.add_argument("--colours", type=integer(1), default=512, help="colours of the palette")
    small = {"images": 32, "batch": 16, "colours": 16, "rounds": 2}
    return rounds.start("encode", bench, parser, argv, PROGRAMS, small)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    images = pictures(arguments.images)
    palette = palette_of(images, arguments.colours)
    batches = [images[first : first + arguments.batch] for first in range(0, len(images), arguments.batch)]
    codes = palette.encode(images)
    makers = {"ours": _ours, "ours-first": _ours_first, "hugging-face": _hugging_face, "hugging-face-torch": _hugging_face_torch}
    rows = rounds.alternate({name: _turn(makers[name](palette, batches), codes) for name in arguments.programs}, arguments.rounds)
    summary = rounds.summary(rows, len(images), "images")
    print(f"{len(images)} images of {RESOLUTION} x {RESOLUTION}, {arguments.batch} at once, {arguments.colours} colours")
    rounds.print_table(summary, COLUMNS)
    sizes = {"images": len(images), "side": RESOLUTION, "colours": arguments.colours}
    return {"what": "all images to codes", "sizes": sizes, "dtype": "uint8", "batch": arguments.batch, "programs": summary, "rounds": rows}


def palette_of(images: np.ndarray, colours: int) -> Palette:
    """Return a palette of random distinct colours of uint8 images, whose table of all colours is ready."""
    pixels = np.unique(images.reshape(-1, 3), axis=0)
    chosen = np.random.default_rng(1).choice(len(pixels), colours, replace=False)
    palette = Palette((pixels[chosen] / 127.5 - 1).astype(np.float32))
    palette.encode(np.zeros((1 << 24, 1, 3), np.uint8))  # for so many pixels the palette makes its table
    return palette


def pictures(count: int) -> np.ndarray:
    """Return smooth random images uint8 [count, 32, 32, 3]: enlarged coarse noise plus a little fine noise."""
    generator = np.random.default_rng(0)
    coarse = generator.normal(0, 50, (count, 4, 4, 3)).repeat(RESOLUTION // 4, axis=1).repeat(RESOLUTION // 4, axis=2)
    bright = generator.normal(120, 50, (count, 1, 1, 1))
    return np.clip(bright + coarse + generator.normal(0, 8, (count, RESOLUTION, RESOLUTION, 3)), 0, 255).astype(np.uint8)


def _turn(encode, codes):
    def turn():
        codes_of_turn = []
        seconds = rounds.seconds_each(lambda: codes_of_turn.append(encode()), 1, lambda _: None, warm=0)
        return {"seconds": seconds, "agreeing": float((np.concatenate(codes_of_turn[0]).reshape(-1) == codes.reshape(-1)).mean())}

    return turn


def _ours(palette, batches):
    return lambda: [palette.encode(batch) for batch in batches]


def _ours_first(palette, batches):
    def encode():
        fresh = Palette(palette.centers)
        return [fresh.encode(batch) for batch in batches]

    return encode


def _hugging_face(palette, batches):
    try:
        from transformers.models.imagegpt.image_processing_pil_imagegpt import color_quantize
    except ImportError:  # before transformers 5
        from transformers.models.imagegpt.image_processing_imagegpt import color_quantize
    places = [(batch / 127.5 - 1).astype(np.float32) for batch in batches]
    return lambda: [color_quantize(place, palette.centers) for place in places]


def _hugging_face_torch(palette, batches):
    import torch
    from transformers.models.imagegpt.image_processing_imagegpt import color_quantize_torch

    device = rounds.torch_device()
    centers = torch.from_numpy(palette.centers).to(device)
    places = [torch.from_numpy((batch.reshape(-1, 3) / 127.5 - 1).astype(np.float32)).to(device) for batch in batches]
    return lambda: [color_quantize_torch(place, centers).cpu().numpy() for place in places]


if __name__ == "__main__":
    main()
