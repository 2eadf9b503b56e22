"""Fits the palette on the pixels of a data set, and writes its images as palette codes."""

import contextlib
import dataclasses
import io
import json
import math
import os
import sys
import time

import jax
import numpy as np
from tqdm import tqdm

from igpt_jax.data import pipeline
from igpt_jax.palette import kmeans
from igpt_jax.palette.palette import Palette

_PIXELS_AT_ONCE = 1 << 22
_SECONDS_BETWEEN_LINES = 10  # of progress where no terminal shows a bar


def fit_palette(config, data_config, workdir):
    """k-means on every pixel of the training and validation images -> Palette, written to `workdir` with its picture and statistics."""
    began = time.perf_counter()
    dataset = pipeline.open_dataset(data_config, "all_train")
    counts = kmeans.count_colours(images for _, images in _blocks(dataset, "colours", jax.process_index(), jax.process_count()))
    options = config.palette
    centers, fit = kmeans.fit(counts, options.size, config.seed, options.iterations, options.tolerance, _reporter())
    palette = Palette(centers)
    if jax.process_index() == 0:
        facts = {"size": palette.size, "seed": config.seed, **dataclasses.asdict(fit), "seconds": time.perf_counter() - began}
        facts["psnr"] = fit.psnr if math.isfinite(fit.psnr) else None  # JSON knows no infinity
        facts["data"] = dict(config.data)
        (workdir / "palette.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        _write_picture(workdir / "palette.png", palette)
        palette.save(workdir / "palette.npy")  # last: where it is, the rest is
    print(f"{workdir / 'palette.npy'}: {palette.size} colours for {fit.pixels:,} pixels of {fit.distinct_colours:,} colours")
    print(f"mse {fit.mse:.6f} per pixel (three channels, range 2), PSNR {fit.psnr:.2f} dB, {time.perf_counter() - began:.1f} s")
    return palette


def open_parts(data_config):
    """The data sets {train | validation | test: Dataset} that are coded; held out of `train` is nothing."""
    parts = pipeline.stored_parts(data_config)
    splits = {part: "all_train" if part == "train" and "validation" not in parts else part for part in pipeline.SPLITS if part in parts}
    return {part: pipeline.open_dataset(data_config, split) for part, split in splits.items()}


def write_codes(data_config, palette, directory):
    """Write the training images as codes, and validation and test images where the data have their own; dataset.json comes last: with it all is whole."""
    datasets = open_parts(data_config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dataset.json").unlink(missing_ok=True)
    for part in {*pipeline.SPLITS} - {*datasets}:  # of other data, coded here before
        (directory / f"{part}.npy").unlink(missing_ok=True)
        (directory / f"{part}_labels.npy").unlink(missing_ok=True)
    counts, size = {}, data_config.image_size
    for name, dataset in datasets.items():
        with _whole_file(directory / f"{name}.npy") as temporary:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint16, shape=(len(dataset), size, size))
            for start, images in _blocks(dataset, f"{name} codes"):
                array[start : start + len(images)] = palette.encode(images)
            array.flush()
            del array  # unmapped before it is renamed
        with _whole_file(directory / f"{name}_labels.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.asarray(dataset.labels, np.int32))
        counts[name] = len(dataset)
    palette.save(directory / "palette.npy")
    names = max((dataset.class_names for dataset in datasets.values()), key=len)  # npy: each part has the numbers found in it, or none
    facts = {"class_names": list(names), "image_size": size, "view": data_config.view, "palette": palette.checksum}
    facts |= {"source": data_config.source, "counts": counts}
    (directory / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    counted = ", ".join(f"{counts[part]:,} {part} images" for part in pipeline.SPLITS if part in counts)
    print(f"{directory}: {counted}, read as config.data.source = 'codes:{directory}'")


def _blocks(dataset, what, process_index=0, process_count=1):
    """(start, images uint8 [n, H, W, 3]) for this process's blocks of the set, with a progress bar or now and then a line."""
    size = max(1, _PIXELS_AT_ONCE // dataset.config.image_size**2)
    said = time.monotonic()
    with tqdm(total=len(dataset), desc=what, unit="image", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for start in range(process_index * size, len(dataset), process_count * size):
            yield start, dataset.images(start, start + size)
            done = min(len(dataset), start + size)
            bar.update(done - bar.n)
            if bar.disable and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                print(f"{what}: {done:,} of {len(dataset):,} images", file=sys.stderr)


def _reporter():
    """A function for kmeans.fit that now and then prints a line; a fit of a few seconds prints none."""
    said = time.monotonic()

    def report(points, iteration, mse):
        nonlocal said
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"k-means on {points:,} points: step {iteration}, mse {mse:.6f}", file=sys.stderr)

    return report


@contextlib.contextmanager
def _whole_file(path):
    """Gives a temporary name to write to; the file gets its own name only when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_picture(path, palette):
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(palette.picture()).save(content, "png")
    path.write_bytes(content.getvalue())
