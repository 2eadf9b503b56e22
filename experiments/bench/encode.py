"""Pixels to palette codes beside Hugging Face's image processor, colour quantising alone: `python -m experiments.bench.encode`.

ours                 Palette.encode with its table of all colours in place, as in a run: uint8 pixels in
ours-first           the same palette fresh, which builds that table within
hugging-face         color_quantize of transformers' ImageGPTImageProcessor in numpy; its pixels are normalised beforehand, at no cost
hugging-face-torch   the same in torch, the processor's own choice since transformers 5; only where torchvision is installed

The images are smooth random ones, whose colours fill the cube unevenly as photographs' do; the centres are colours of theirs.
"""


import numpy as np

from experiments.bench import rounds
from igpt_jax.cli import Parser, integer
from igpt_jax.palette.palette import Palette

PROGRAMS = {"ours": (), "ours-first": (), "hugging-face": ("torch", "transformers")}
PROGRAMS |= {"hugging-face-torch": ("torch", "transformers")} if rounds.installed("torchvision") else {}
SIDE = 32
COLUMNS = {"s": ("seconds", "{:,.3f}"), "images/s": ("images_per_second", "{:,.0f}"), "codes as ours": ("agreeing", "{:.4%}")}


def main(argv=None) -> dict:
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=integer(1), default=4096)
    parser.add_argument("--batch", type=integer(1), default=64, help="images that are encoded at once")
    parser.add_argument("--colours", type=integer(1), default=512)
    small = {"images": 32, "batch": 16, "colours": 16, "rounds": 2}
    return rounds.start("encode", bench, parser, argv, PROGRAMS, small)


def bench(arguments) -> dict:
    """Measure; the result without its provenance."""
    images = pictures(arguments.images)
    palette = palette_of(images, arguments.colours)
    batches = [images[first : first + arguments.batch] for first in range(0, len(images), arguments.batch)]
    codes = palette.encode(images)
    makers = {"ours": _ours, "ours-first": _ours_first, "hugging-face": _hugging_face, "hugging-face-torch": _hugging_face_torch}
    rows = rounds.alternate({name: _turn(makers[name](palette, batches), codes) for name in arguments.programs}, arguments.rounds)
    found = rounds.summary(rows, len(images), "images")
    print(f"{len(images)} images of {SIDE} x {SIDE}, {arguments.batch} at once, {arguments.colours} colours")
    rounds.print_table(found, COLUMNS)
    sizes = {"images": len(images), "side": SIDE, "colours": arguments.colours}
    return {"what": "all images to codes", "sizes": sizes, "dtype": "uint8", "batch": arguments.batch, "programs": found, "rounds": rows}


def palette_of(images: np.ndarray, colours: int) -> Palette:
    """A palette of random distinct colours of uint8 images, its table of all colours made."""
    pixels = np.unique(images.reshape(-1, 3), axis=0)
    chosen = np.random.default_rng(1).choice(len(pixels), colours, replace=False)
    palette = Palette((pixels[chosen] / 127.5 - 1).astype(np.float32))
    palette.encode(np.zeros((1 << 24, 1, 3), np.uint8))  # so many pixels at once pay for a table
    return palette


def pictures(count: int) -> np.ndarray:
    """Smooth random images uint8 [count, 32, 32, 3]: coarse noise, enlarged, plus a little of fine noise."""
    generator = np.random.default_rng(0)
    coarse = generator.normal(0, 50, (count, 4, 4, 3)).repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    bright = generator.normal(120, 50, (count, 1, 1, 1))
    return np.clip(bright + coarse + generator.normal(0, 8, (count, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def _turn(encode, codes):
    def turn():
        made = []
        seconds = rounds.seconds_each(lambda: made.append(encode()), 1, lambda _: None, warm=0)
        return {"seconds": seconds, "agreeing": float((np.concatenate(made[0]).reshape(-1) == codes.reshape(-1)).mean())}

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
