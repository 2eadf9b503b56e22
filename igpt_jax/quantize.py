"""Program: fit the palette by k-means on all training images and write it; with --codes also write the images as palette codes.

With config.palette.kind = "levels" nothing is fitted: the palette is the levels of a channel, and the images themselves are their codes.

    python -m igpt_jax.quantize --config=configs/digits.py --workdir=runs/digits [--codes] [--refit]

WORKDIR/palette.npy   float32 [V, 3] in [-1, 1]; kept when it is there already, unless --refit
        palette.png   a picture of the colours
        palette.json  size, seed, pixels, iterations, mse, PSNR, seconds and the data it was fitted on
        codes/        train.npy uint16 [N, H, W], train_labels.npy int32 [N], the same of test and validation where the data have their own,
                      palette.npy, dataset.json; read as the source "codes:WORKDIR/codes"
"""

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
from etils import epath
from tqdm import tqdm

from igpt_jax import data, kmeans, processes
from igpt_jax.cli import prepare_folder, run_recipe
from igpt_jax.lock import Lock
from igpt_jax.palette import Palette
from igpt_jax.recipe import check_numbers

KINDS = {"colours": 1, "levels": 3}  # config.palette.kind -> codes to a pixel
_PIXELS_AT_ONCE = 1 << 22
_SECONDS_BETWEEN_LINES = 10  # of progress where no terminal shows a bar


def quantize(config, workdir, codes=False, refit=False):
    """Fit WORKDIR/palette.npy, or keep it, and if `codes` write WORKDIR/codes; wrong settings raise before any image is read."""
    check_numbers(config.to_dict())
    workdir = epath.Path(workdir)
    data_config = data.DataConfig(**config.data)
    given = config.palette.path  # somebody else's palette, not to be fitted
    path = epath.Path(given or workdir / "palette.npy")
    if config.palette.kind not in KINDS:
        raise ValueError(f"config.palette.kind {config.palette.kind!r} is unknown: one of {', '.join(KINDS)}")
    if config.palette.kind == "levels" and codes:
        raise ValueError("--codes stores palette colours; of levels the images are their own codes: train from them")
    if codes and "://" in str(workdir):
        raise ValueError(f"--codes writes files to be mapped into memory: --workdir must be a local or mounted directory, not {workdir}")
    if given and refit:
        raise ValueError(f"--refit fits {workdir / 'palette.npy'}, but config.palette.path names {path}: leave one of them out")
    prepare_folder(workdir)
    with Lock(workdir):
        _write(config, data_config, workdir, path, codes, refit)


def _write(config, data_config, workdir, path, codes, refit):
    """What `quantize` does while it holds the lock of `workdir`; `path` is the palette's, given or to be written."""
    given = config.palette.path
    if codes and jax.process_index() == 0:
        open_parts(data_config)  # says what is wrong with them before the fit
    if given or (path.exists() and not refit):
        palette = Palette.load(path)
        if palette.size != config.palette.size:
            way_out = f"--config.palette.size={palette.size}" + ("" if given else " keeps it, --refit fits anew")
            raise ValueError(f"{path} has {palette.size} colours, but config.palette.size is {config.palette.size}: {way_out}")
        if palette.tokens_per_pixel != KINDS[config.palette.kind]:
            raise ValueError(f"{path} is not a palette of {config.palette.kind}: set config.palette.kind, or take another --workdir")
        print(f"{'using' if given else 'keeping'} {path}: {palette.size} colours" + ("" if given else " (--refit fits anew)"))
    elif config.palette.kind == "levels":
        palette = Palette.levels(config.palette.size)
        if jax.process_index() == 0:
            palette.save(path)
        print(f"{path}: {palette.size} levels of a channel, three codes to a pixel")
    else:
        palette = fit_palette(config, data_config, workdir)
    if codes and jax.process_index() == 0:
        write_codes(data_config, palette, workdir / "codes")
    processes.wait_for_all("codes")  # who leaves sooner ends the others after minutes


def fit_palette(config, data_config, workdir):
    """k-means on every pixel of the training and validation images -> Palette, written to `workdir` with its picture and statistics."""
    began = time.perf_counter()
    dataset = data.open_dataset(data_config, "all_train")
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
    parts = data.stored_parts(data_config)
    splits = {part: "all_train" if part == "train" and "validation" not in parts else part for part in data.SPLITS if part in parts}
    return {part: data.open_dataset(data_config, split) for part, split in splits.items()}


def write_codes(data_config, palette, directory):
    """Write the training images as codes, and validation and test images where the data have their own; dataset.json comes last: with it all is whole."""
    datasets = open_parts(data_config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dataset.json").unlink(missing_ok=True)
    for part in {*data.SPLITS} - {*datasets}:  # of other data, coded here before
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
    counted = ", ".join(f"{counts[part]:,} {part} images" for part in data.SPLITS if part in counts)
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


def _flags(flags):
    return {
        "codes": flags.DEFINE_bool("codes", False, "also write the images as codes to WORKDIR/codes"),
        "refit": flags.DEFINE_bool("refit", False, "fit anew although WORKDIR/palette.npy exists"),
    }


if __name__ == "__main__":
    run_recipe(quantize, _flags)
