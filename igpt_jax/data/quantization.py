"""Fits the palette on the pixels of a data set, and writes the images of a data set as palette codes."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from igpt_jax.data import pipeline
from igpt_jax.data.classes import names_of_splits
from igpt_jax.data.images import encode_png
from igpt_jax.data.mixture import Mixed
from igpt_jax.files import replacing
from igpt_jax.palette import kmeans
from igpt_jax.palette.palette import Palette
from igpt_jax.progress import Progress
from igpt_jax.types import Recipe

_PIXELS_AT_ONCE = 1 << 22
_SECONDS_BETWEEN_LINES = 10  # of progress, if no terminal shows a bar


def fit_palette(config: Recipe, data_config: pipeline.DataConfig, workdir: epath.Path) -> Palette:
    """Fit a Palette by k-means on every pixel of the training and validation images; write it to `workdir` with its picture and statistics.

    The pixels of each source of a mixture count by its weight, whatever their number.
    """
    began = time.perf_counter()
    dataset = pipeline.open_dataset(data_config, "all_train")
    counts = _count_colours(dataset)
    options = config.palette
    centers, fit = kmeans.fit(counts, options.size, config.seed, options.iterations, options.tolerance, _reporter())
    palette = Palette(centers)
    if jax.process_index() == 0:
        facts = {"size": palette.size, "seed": config.seed, **dataclasses.asdict(fit), "seconds": time.perf_counter() - began}
        facts["psnr"] = fit.psnr if math.isfinite(fit.psnr) else None  # JSON has no infinity
        facts["data"] = dict(config.data)
        (workdir / "palette.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (workdir / "palette.png").write_bytes(encode_png(palette.picture()))
        palette.save(workdir / "palette.npy")  # last: once it exists, the other files do too
    print(f"{workdir / 'palette.npy'}: {palette.size} colours for {fit.pixels:,} pixels of {fit.distinct_colours:,} colours")
    print(f"mse {fit.mse:.6f} per pixel (three channels, range 2), PSNR {fit.psnr:.2f} dB, {time.perf_counter() - began:.1f} s")
    return palette


def _count_colours(dataset: pipeline.Dataset) -> np.ndarray:
    """Return how often each colour occurs, int64 [256^3]; for a mixture float64, in which the sum over each source's pixels is its share of all pixels."""

    def count(part: pipeline.Dataset) -> np.ndarray:
        return kmeans.count_colours(images for _, images in _blocks(part, "colours", jax.process_index(), jax.process_count()))

    source = dataset.source
    if not isinstance(source, Mixed):
        return count(dataset)
    counts = np.zeros(kmeans.COLOURS)
    for part, share in zip(source.parts, source.shares, strict=True):
        counts += count(part) * (len(dataset) / len(part) * share / sum(source.shares))
    return counts


def open_parts(data_config: pipeline.DataConfig) -> dict[str, pipeline.Dataset]:
    """Open the data sets {train | validation | test: Dataset} that are coded; no images are held out of `train`. ValueError for a mixture."""
    if data_config.mixture():
        way_out = "code each source in a --workdir of its own, with one palette by --config.palette.path, and mix codes:DIR*WEIGHT + codes:DIR*WEIGHT"
        raise ValueError(f"--codes cannot store the weights of the mixture {data_config.source}: {way_out}")
    parts = pipeline.stored_parts(data_config)
    splits = {part: "all_train" if part == "train" and "validation" not in parts else part for part in pipeline.SPLITS if part in parts}
    return {part: pipeline.open_dataset(data_config, split) for part, split in splits.items()}


def write_codes(data_config: pipeline.DataConfig, palette: Palette, directory: epath.Path) -> None:
    """Write the training images as codes, and validation and test images if the data have them.

    dataset.json is removed first and written last: while it exists, the other files are complete.
    """
    datasets = open_parts(data_config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dataset.json").unlink(missing_ok=True)
    for part in {*pipeline.SPLITS} - {*datasets}:  # of other data, coded here before
        (directory / f"{part}.npy").unlink(missing_ok=True)
        (directory / f"{part}_labels.npy").unlink(missing_ok=True)
    for part, dataset in datasets.items():
        _write_part(dataset, palette, directory, part)
    palette.save(directory / "palette.npy")
    names = names_of_splits(datasets)  # npy: a part has the classes that occur in it, or none
    counts = {part: len(dataset) for part, dataset in datasets.items()}
    facts = {"class_names": list(names), "image_size": data_config.image_size, "view": data_config.view, "palette": palette.checksum}
    facts |= {"source": data_config.source, "counts": counts}
    (directory / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    counted = ", ".join(f"{counts[part]:,} {part} images" for part in pipeline.SPLITS if part in counts)
    print(f"{directory}: {counted}, read as config.data.source = 'codes:{directory}'")


def _write_part(dataset: pipeline.Dataset, palette: Palette, directory: epath.Path, part: str) -> None:
    """Write the codes and the labels of one part."""
    size = dataset.config.image_size
    with replacing(directory / f"{part}.npy") as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint16, shape=(len(dataset), size, size))
        for start, images in _blocks(dataset, f"{part} codes"):
            array[start : start + len(images)] = palette.encode(images)
        array.flush()
        del array  # unmapped before the file is renamed
    with replacing(directory / f"{part}_labels.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, np.asarray(dataset.labels, np.int32))


def _blocks(dataset: pipeline.Dataset, what: str, process_index: int = 0, process_count: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, images uint8 [n, H, W, 3]) for this process's blocks of the set, with a progress bar, or a line every few seconds."""
    size = max(1, _PIXELS_AT_ONCE // dataset.config.image_size**2)
    with Progress(what, len(dataset)) as progress:
        for start in range(process_index * size, len(dataset), process_count * size):
            yield start, dataset.images(start, start + size)
            progress.advance(min(len(dataset), start + size) - progress.done)


def _reporter() -> Callable[[int, int, float], None]:
    """Return a function for kmeans.fit that prints a line every few seconds; a fit of a few seconds prints none."""
    last_line = time.monotonic()

    def report(points: int, iteration: int, mse: float) -> None:
        nonlocal last_line
        if time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(f"k-means on {points:,} points: step {iteration}, mse {mse:.6f}", file=sys.stderr)

    return report
