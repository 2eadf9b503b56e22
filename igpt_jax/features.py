"""Write what every layer makes of a data set: `python -m igpt_jax.features --checkpoint=runs/digits --out=runs/digits/features`.

The folder, which igpt_jax.probe reads: `features.json` says what is in it; `SPLIT/part-00000.npy` holds images 0..n-1 of a split as
[L + 1, n, D], float32 or float16, part i images i * n and on, the last part fewer; `SPLIT/labels.npy` is int32 [N], -1 unlabelled. Entry l
of the first axis is the mean over positions of block l's normalised input, the last that after the final norm (paper 2.6); with
`--kind=raw` it is the mean of the embedding, then of each block's output. Images are seen as evaluation sees them, without augmentation.
Started again, the same command keeps the parts that are whole and makes the others.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
from tqdm import tqdm

from igpt_jax import checkpoint, data, sharding
from igpt_jax.cli import USER_ERRORS
from igpt_jax.model import parameter_count

KINDS = {"normalised": "features", "raw": "raw_features"}  # --kind -> field of the model's Output
SPLITS = ("train", "validation", "test")
IMAGES_PER_PART = 4096  # fixed, so that a second run agrees with the first; 0.8 GB of float32 for iGPT-L


def write_features(
    pretrained,
    data_config,
    out,
    splits=SPLITS,
    kind="normalised",
    batch=256,
    dtype="float32",
    images_per_part=IMAGES_PER_PART,
    overwrite=False,
) -> dict:
    """Write the features of `splits` to the folder `out` and return its description (what features.json says).

    Raises ValueError in one line where the images do not fit the model, or where `out` holds the features of something else.
    """
    out, mesh = pathlib.Path(out), _local_mesh()
    if data_config.image_size != pretrained.image_size:
        size, positions = data_config.image_size, pretrained.model_config.positions
        raise ValueError(f"images of {size} x {size} pixels do not fit {positions} positions: give --image-size={pretrained.image_size}")
    if batch < 1 or images_per_part < 1:
        raise ValueError(f"batch {batch} and images per part {images_per_part} must be at least 1")
    datasets = {split: data.open_dataset(data_config, split) for split in splits}
    description = _describe(pretrained, data_config, datasets, kind, dtype, images_per_part)
    if jax.process_index() == 0:
        description = _claim(out, description, overwrite)
        for split, dataset in datasets.items():
            _write_array(out / split / "labels.npy", np.asarray(dataset.labels, np.int32))
    _wait_for_all()
    forward = jax.jit(lambda model, codes_BS: getattr(model(codes_BS), KINDS[kind]))
    for split, dataset in datasets.items():
        parts = _missing_parts(out / split, description, len(dataset))
        with Progress(split, sum(stop - start for _, start, stop in parts)) as progress, jax.set_mesh(mesh):
            for path, start, stop in parts:
                _write_array(path, _part(forward, pretrained, dataset, mesh, start, stop, batch, dtype, progress))
    _wait_for_all()
    return description


class Progress:
    """Images done and images a second: a bar on a terminal, a line every ten seconds elsewhere; both on stderr."""

    def __init__(self, split, images):
        self.split, self.images, self.done = split, images, 0
        self.started = self.spoken = time.monotonic()

    def __enter__(self):
        self.bar = tqdm(total=self.images, desc=self.split, unit=" images", disable=not sys.stderr.isatty())
        return self

    def __exit__(self, *_):
        self.bar.close()

    def advance(self, images):
        """Count `images` more."""
        self.done += images
        self.bar.update(images)
        now = time.monotonic()
        if self.bar.disable and (now - self.spoken > 10 or self.done == self.images):
            self.spoken = now
            rate = self.done / max(now - self.started, 1e-9)
            print(f"{self.split}: {self.done} of {self.images} images, {rate:.0f} images/s", file=sys.stderr, flush=True)


def _describe(pretrained, data_config, datasets, kind, dtype, images_per_part):
    return {
        "checkpoint": pretrained.path,
        "step": pretrained.step,
        "layers": pretrained.model_config.layers,
        "width": pretrained.model_config.width,
        "parameters": parameter_count(pretrained.model),
        "kind": kind,
        "dtype": dtype,
        "data": dataclasses.asdict(data_config),
        "class_names": list(next(iter(datasets.values())).class_names),
        "images_per_part": images_per_part,
        "counts": {split: len(dataset) for split, dataset in datasets.items()},
    }


def _claim(out, description, overwrite):
    """Write features.json first; where one lies there already they must agree, and its splits stay."""
    path = out / "features.json"
    if overwrite and path.exists():
        for split in json.loads(path.read_text())["counts"]:
            shutil.rmtree(out / split, ignore_errors=True)
        path.unlink()
    if path.exists():
        old = json.loads(path.read_text())
        same_counts = all(old["counts"].get(split, count) == count for split, count in description["counts"].items())
        differing = [key for key in description if key != "counts" and old.get(key) != description[key]] + ["counts"] * (not same_counts)
        if differing:
            told = ", ".join(f"{key} ({_short(old.get(key))} there, {_short(description[key])} now)" for key in differing)
            raise ValueError(f"{out} holds other features, differing in {told}: give another --out, or --overwrite")
        description = description | {"counts": old["counts"] | description["counts"]}
    _write(path, lambda file: file.write((json.dumps(description, indent=1) + "\n").encode()))
    return description


def _missing_parts(directory, description, count):
    """This process's (path, start, stop) of the parts that are not there whole."""
    size, missing = description["images_per_part"], []
    for number, start in enumerate(range(0, count, size)):
        path, stop = directory / f"part-{number:05d}.npy", min(start + size, count)
        shape = (description["layers"] + 1, stop - start, description["width"])
        if number % jax.process_count() == jax.process_index() and not _is_whole(path, shape, description["dtype"]):
            missing.append((path, start, stop))
    return missing


def _is_whole(path, shape, dtype):
    """Whether the file is an array of this shape and dtype, to its last byte."""
    try:
        array = np.load(path, mmap_mode="r")  # a truncated file is a ValueError or EOFError here
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == shape and array.dtype == dtype and path.stat().st_size == array.offset + array.nbytes


def _part(forward, pretrained, dataset, mesh, start, stop, batch, dtype, progress):
    """Features of images start..stop, [L + 1, n, D]; a batch is fetched when the next one is already under way."""
    config = pretrained.model_config
    part_LnD, filled = np.empty((config.layers + 1, stop - start, config.width), dtype), 0
    size = sharding.round_up(mesh, min(batch, stop - start))
    batches = data.evaluation_batches(dataset, pretrained.palette, size, start=start, stop=stop)
    pending = None
    for codes_BS in itertools.chain((batch["codes"] for batch in batches), [None]):
        result = None if codes_BS is None else forward(pretrained.model, sharding.shard_batch(mesh, codes_BS))
        if pending is not None:
            real = min(size, stop - start - filled)  # the last batch is padded
            with np.errstate(over="ignore"):  # too large for float16: said below
                part_LnD[:, filled : filled + real] = np.asarray(pending)[:, :real]
            filled += real
            progress.advance(real)
        pending = result
    if not np.isfinite(part_LnD).all():
        way_out = "use --dtype=float32" if dtype == "float16" else f"{pretrained.path} is not sound"
        raise ValueError(f"features of {dataset.split} images {start} to {stop - 1} are not finite in {dtype}: {way_out}")
    return part_LnD


def _write_array(path, array):
    _write(path, lambda file: np.save(file, array))


def _write(path, write):
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


def _local_mesh():
    """This host's devices, each with a copy of the model: hosts work on different parts and do not wait for each other."""
    return sharding.make_mesh(data=-1, fsdp=1, devices=jax.local_devices())


def _wait_for_all():
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("igpt_jax.features")


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m igpt_jax.features", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="directory of a run, or of a converted model")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--data", help="data source (igpt_jax/data.py); like the next four, by default the one the model was trained on")
    parser.add_argument("--image-size", type=int, help="side of the images in pixels")
    parser.add_argument("--augment", choices=data.AUGMENTS, help="of which preprocessing; only its evaluation side is used")
    parser.add_argument("--validation", type=float, help="share of the training images held out")
    parser.add_argument("--directory", help="where TFDS keeps its data")
    parser.add_argument("--kind", choices=tuple(KINDS), default="normalised", help="block inputs after the norm (paper), or raw outputs")
    parser.add_argument("--splits", default=",".join(SPLITS), help="of train, validation, test; default: those that the data has")
    parser.add_argument("--batch", type=int, default=256, help="images in one forward pass")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="on disk")
    parser.add_argument("--images-per-part", type=int, default=IMAGES_PER_PART, help="images in a file")
    parser.add_argument("--overwrite", action="store_true", help="delete other features that lie in --out")
    return parser.parse_args(arguments)


def _data_config(arguments, recipe):
    """The recipe's data with what the command line says instead."""
    given = {"source": arguments.data} | {name: getattr(arguments, name) for name in ("image_size", "augment", "validation", "directory")}
    return data.DataConfig(**(recipe | {name: value for name, value in given.items() if value is not None}))


def main(arguments=None) -> int:
    """Run the program; returns its exit code."""
    arguments = _parse(arguments)
    try:
        splits = tuple(arguments.splits.split(","))
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ValueError(f"--splits names {unknown[0]!r}: choose of {', '.join(SPLITS)}")
        pretrained = checkpoint.load(arguments.checkpoint, mesh=_local_mesh())
        config = _data_config(arguments, pretrained.config["data"])
        if arguments.splits == ",".join(SPLITS) and not config.validation:
            splits = ("train", "test")
        names = ("out", "kind", "batch", "dtype", "images_per_part", "overwrite")
        description = write_features(pretrained, config, splits=splits, **{name: getattr(arguments, name) for name in names})
    except USER_ERRORS as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {split}" for split, count in description["counts"].items())
    print(f"{arguments.out}: layers 0 to {description['layers']}, width {description['width']}, {description['kind']}; {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
