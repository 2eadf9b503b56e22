"""Images per second of the input pipeline beside torch's DataLoader, and the need of a training step: `python -m experiments.bench.data`.

jpeg   a folder of JPEGs of 256 x 256: decoded, ImageNet's random crop, resized, encoded
codes  a folder that quantize --codes wrote: read, CIFAR's shift and flip

ours            igpt_jax.data.pipeline.train_batches with threads (config.data.workers = 0)
ours-processes  the same with one worker process per core; not for stored codes, which need none
torch           DataLoader with one worker process per core; its Dataset calls the same functions of igpt_jax

The pictures are random crops of scikit-learn's two sample photographs, in a temporary folder. The step is that of experiments.bench.train.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import pathlib
import tempfile

import numpy as np

from experiments.bench import rounds
from experiments.bench.encode import palette_of
from igpt_jax.cli import Parser, integer
from igpt_jax.data import pipeline
from igpt_jax.palette.palette import Palette

PROGRAMS = {"ours": ("scikit-learn", "grain"), "ours-processes": ("grain",), "torch": ("torch",)}
JPEG_RESOLUTION, PHOTOGRAPHS_SEED = 256, 0
AUGMENT = {"jpeg": "imagenet", "codes": "cifar"}
COLUMNS = {
    "ms a batch": ("milliseconds", "{:,.1f}"),
    "images/s": ("images_per_second", "{:,.0f}"),
    "times the need of the step": ("times_the_step", "{:,.2f}"),
}


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    parser.add_argument("--image-size", type=integer(1), default=32, help="resolution of the model in pixels")
    parser.add_argument("--images", type=integer(1), default=512, help="images in the folder")
    parser.add_argument("--batch", type=integer(1), default=32, help="images in a batch")
    parser.add_argument("--batches", type=integer(1), default=40, help="batches in a turn")
    parser.add_argument("--warm", type=integer(), default=16, help="uncounted batches before a turn, which workers prepared in advance")
    parser.add_argument("--colours", type=integer(1), default=512, help="colours of the palette")
    parser.add_argument("--workers", type=integer(1), default=rounds.threads(), help="worker processes; default: one per core")
    small = {"image_size": 8, "images": 16, "batch": 4, "batches": 3, "warm": 1, "colours": 16, "workers": 1, "rounds": 1}
    return rounds.start("data", bench, parser, argv, PROGRAMS, small)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    needed = images_of_a_step(arguments)
    sources = {}
    with tempfile.TemporaryDirectory() as place:
        folders = {"jpeg": f"folder:{place}/jpeg", "codes": f"codes:{place}/codes"}
        palette = make_sources(pathlib.Path(place), arguments)
        for source, where in folders.items():
            config = pipeline.DataConfig(where, arguments.image_size, AUGMENT[source], validation=0.0, directory="", workers=0, seed=0)
            names = [name for name in arguments.programs if (source, name) != ("codes", "ours-processes")]
            print(f"-- {source}")
            rows = rounds.alternate({name: _program(name, config, palette, arguments) for name in names}, arguments.rounds)
            summary = rounds.summary(rows, arguments.batch, "images")
            for values in summary.values():
                if "failed" not in values:
                    values |= {"milliseconds": 1e3 * values["seconds"], "times_the_step": values["images_per_second"] / needed}
            sources[source] = {"programs": summary, "rounds": rows}
    for source, measured in sources.items():
        print(f"-- {source}: {arguments.image_size} x {arguments.image_size}, batch {arguments.batch}; the step needs {needed:,.1f} images/s")
        rounds.print_table(measured["programs"], COLUMNS)
    sizes = {name: getattr(arguments, name) for name in ("image_size", "images", "colours", "workers")} | {"jpeg_side": JPEG_RESOLUTION}
    what = "batches of codes, from a folder of JPEGs and from stored codes"
    return {"what": what, "sizes": sizes, "dtype": "int32", "batch": arguments.batch, "step_images_per_second": needed, "sources": sources}


def images_of_a_step(arguments: argparse.Namespace) -> float:
    """Return images per second of our training step, of the default sizes at this resolution."""
    from experiments.bench import models, train

    parser = Parser()
    models.add_arguments(parser)
    gpu = models.GPU if rounds.backend() == "gpu" else {}
    small = models.SMALL if arguments.small else {}
    parser.set_defaults(**gpu | small | {"positions": arguments.image_size**2, "colours": arguments.colours})
    turn = train.ours(models.model_config(parser.parse_args([])), arguments.batch, 2)
    return arguments.batch / min(turn()["seconds"] for _ in range(2))


def make_sources(place: pathlib.Path, arguments: argparse.Namespace) -> Palette:
    """Write the JPEGs and their codes below `place`; return their palette, whose table is ready."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(PHOTOGRAPHS_SEED)
    photographs = load_sample_images().images
    crops = []
    for number in range(arguments.images):
        photograph = photographs[number % len(photographs)]
        top, left = (generator.integers(size - JPEG_RESOLUTION + 1) for size in photograph.shape[:2])
        crops.append(photograph[top : top + JPEG_RESOLUTION, left : left + JPEG_RESOLUTION])
        path = place / "jpeg" / f"class{number % len(photographs)}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crops[-1]).save(path, quality=90)
    palette = palette_of(np.concatenate(photographs), arguments.colours)
    _write_codes(place / "codes", crops, palette, arguments.image_size)
    return palette


def _write_codes(folder, crops, palette, size):
    """Write the files of quantize --codes."""
    step = JPEG_RESOLUTION // size
    codes = palette.encode(np.stack(crops)[:, : step * size : step, : step * size : step]).astype(np.uint16)
    folder.mkdir()
    palette.save(folder / "palette.npy")
    for part in ("train", "test"):
        np.save(folder / f"{part}.npy", codes)
        np.save(folder / f"{part}_labels.npy", np.arange(len(codes), dtype=np.int32) % 2)
    (folder / "dataset.json").write_text(json.dumps({"class_names": ["china", "flower"]}))


def _program(name, config, palette, arguments):
    """A pipeline as a program; every turn starts it and stops it."""
    makers = {"ours": _our_batches, "ours-processes": _our_batches_by_processes, "torch": _torch_batches}

    def turn():
        with contextlib.closing(makers[name](config, palette, arguments)) as batches:
            return {"seconds": rounds.seconds_each(lambda: next(batches), arguments.batches, lambda _: None, warm=arguments.warm)}

    return turn


def _our_batches(config, palette, arguments):
    yield from pipeline.train_batches(pipeline.open_dataset(config, "train"), palette, arguments.batch, seed=0)


def _our_batches_by_processes(config, palette, arguments):
    return _our_batches(dataclasses.replace(config, workers=arguments.workers), palette, arguments)


def _torch_batches(config, palette, arguments):
    from torch.utils.data import DataLoader, RandomSampler

    views = Views(pipeline.open_dataset(config, "train"), palette)
    endless = RandomSampler(views, replacement=True, num_samples=10**9)
    options = {"num_workers": arguments.workers, "multiprocessing_context": "spawn", "drop_last": True}
    yield from DataLoader(views, arguments.batch, sampler=endless, collate_fn=_same, **options)


class Views:
    """A map-style data set for DataLoader that returns batches {"codes": int32 [b, S], "label": int32 [b]}."""

    def __init__(self, dataset, palette):
        self.dataset, self.palette = dataset, palette

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, rows):
        import torch

        uniform, size = torch.rand(len(rows), 3).numpy(), self.dataset.config.image_size
        if self.dataset.config.augment == "cifar":
            codes = self.dataset.codes(rows, self.palette).reshape(-1, size, size)
            return {"codes": pipeline.shift_and_flip(codes, uniform).reshape(len(rows), -1), "label": self.dataset.labels[rows]}
        pixels, labels = zip(*itertools.starmap(self.dataset.view, zip(rows, uniform, strict=True)), strict=True)
        return {"codes": self.palette.encode(np.stack(pixels)).reshape(len(rows), -1), "label": np.asarray(labels, np.int32)}


def _same(batch):
    return batch


if __name__ == "__main__":
    main()
