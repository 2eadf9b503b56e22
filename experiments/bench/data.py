"""Images per second of the input pipeline beside torch's DataLoader, and the need of a training step: `python -m experiments.bench.data`.

jpeg   a folder of JPEGs of 256 x 256: decoded, ImageNet's random crop, resized, encoded
codes  a folder that quantize --codes wrote: read, CIFAR's shift and flip

ours            igpt_jax.data.pipeline.train_batches with threads (config.data.workers = 0)
ours-processes  the same with one worker process per core; not for stored codes, which need none
torch           DataLoader with one worker process per core; its Dataset calls the same functions of igpt_jax
torch-pillow    the same with a Dataset that decodes, crops and resizes by plain calls of Pillow; not for stored codes

All read the same pictures in the same order, with the same crops and flips.

The pictures are random crops of scikit-learn's two sample photographs, in a temporary folder. The step is that of experiments.bench.train.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import tempfile

import numpy as np

from experiments.bench import rounds
from experiments.bench.encode import palette_of
from igpt_jax.cli import Parser, integer
from igpt_jax.data import images, pipeline
from igpt_jax.data.sampler import Shuffled
from igpt_jax.palette.palette import Palette

PROGRAMS = {"ours": ("scikit-learn", "grain"), "ours-processes": ("grain",), "torch": ("torch",), "torch-pillow": ("torch",)}
JPEG_ONLY = ("ours-processes", "torch-pillow")
JPEG_RESOLUTION, PHOTOGRAPHS_SEED = 256, 0
CPU_BATCH = 8  # the step takes 2 GiB at 1,024 positions
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
            names = [name for name in arguments.programs if source == "jpeg" or name not in JPEG_ONLY]
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
    """Return images per second of our training step, of the default sizes at this resolution; on a CPU with at most CPU_BATCH images."""
    from experiments.bench import models, train

    parser = Parser()
    models.add_arguments(parser)
    gpu = models.GPU if rounds.backend() == "gpu" else {}
    small = models.SMALL if arguments.small else {}
    parser.set_defaults(**gpu | small | {"positions": arguments.image_size**2, "colours": arguments.colours})
    batch = arguments.batch if rounds.backend() == "gpu" else min(arguments.batch, CPU_BATCH)
    turn = train.ours(models.model_config(parser.parse_args([])), batch, 2)
    return batch / min(turn()["seconds"] for _ in range(2))


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
    ours = {"ours": _our_batches, "ours-processes": _our_batches_by_processes}
    makers = ours | {"torch": functools.partial(_torch_batches, Views), "torch-pillow": functools.partial(_torch_batches, PillowViews)}

    def turn():
        with contextlib.closing(makers[name](config, palette, arguments)) as batches:
            return {"seconds": rounds.seconds_each(lambda: next(batches), arguments.batches, lambda _: None, warm=arguments.warm)}

    return turn


def _our_batches(config, palette, arguments):
    yield from pipeline.train_batches(pipeline.open_dataset(config, "train"), palette, arguments.batch, seed=0)


def _our_batches_by_processes(config, palette, arguments):
    return _our_batches(dataclasses.replace(config, workers=arguments.workers), palette, arguments)


def _torch_batches(kind, config, palette, arguments):
    from torch.utils.data import DataLoader

    dataset = pipeline.open_dataset(config, "train")
    options = {"num_workers": arguments.workers, "multiprocessing_context": "spawn", "collate_fn": _same}
    yield from DataLoader(kind(dataset, palette), batch_sampler=picks(dataset, arguments.batch), **options)


def picks(dataset, batch):
    """Yield for each step a list of (row, uniform [3]), those of `train_batches` with seed 0."""
    plan = Shuffled(len(dataset), batch, seed=0)
    for step in itertools.count():
        yield list(zip(*plan(step), strict=True))


class Views:
    """A map-style data set for DataLoader that returns batches {"codes": int32 [b, S], "label": int32 [b]} of `picks`."""

    def __init__(self, dataset, palette):
        self.dataset, self.palette = dataset, palette

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, picked):
        if self.dataset.config.augment == "cifar":
            rows, uniform = (np.array(values) for values in zip(*picked, strict=True))
            size = self.dataset.config.image_size
            codes = self.dataset.codes(rows, self.palette).reshape(-1, size, size)
            return {"codes": pipeline.shift_and_flip(codes, uniform).reshape(len(rows), -1), "label": self.dataset.labels[rows]}
        pixels, labels = zip(*itertools.starmap(self.view, picked), strict=True)
        return {"codes": self.palette.encode(np.stack(pixels)).reshape(len(picked), -1), "label": np.asarray(labels, np.int32)}

    def view(self, row, uniform):
        """Return (uint8 [size, size, 3], label) of a picture."""
        return self.dataset.view(row, uniform)


class PillowViews(Views):
    """The same crops by plain calls of Pillow; upright pictures alone, and a file that cannot be read is an error."""

    def view(self, row, uniform):
        from PIL import Image

        size = self.dataset.config.image_size
        with Image.open(self.dataset.source.paths[row]) as image:
            box = images.imagenet_box(*image.size, uniform)
            crop = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(crop), self.dataset.labels[row]


def _same(batch):
    return batch


if __name__ == "__main__":
    main()
