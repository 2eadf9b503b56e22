"""Fit the palette by k-means on all training images: `python -m igpt_jax.quantize --config=configs/digits.py --workdir=runs/digits [--codes] [--refit]`.

With --codes it also writes the images as palette codes. With config.palette.kind = "levels" nothing is fitted: the palette is the levels of a channel, and
the images themselves are their codes.

WORKDIR/palette.npy   float32 [V, 3] in [-1, 1]; an existing one is used again, unless --refit
        palette.png   a picture of the colours
        palette.json  size, seed, pixels, iterations, mse, PSNR, seconds and the data it was fitted on
        codes/        train.npy uint16 [N, H, W], train_labels.npy int32 [N], the same for test and validation if the data have them,
                      palette.npy, dataset.json; read as the source "codes:WORKDIR/codes"; --refit alone leaves them as they are, with a note
"""

import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from etils import epath

from igpt_jax.cli import prepare_folder, run_recipe
from igpt_jax.data import pipeline
from igpt_jax.data.quantization import fit_palette, open_parts, write_codes
from igpt_jax.distributed import multihost
from igpt_jax.distributed.lock import Lock
from igpt_jax.palette.palette import Palette
from igpt_jax.training.recipe import check_numbers, shared
from igpt_jax.types import PathLike, Recipe

KEYS = ("data.source", "data.image_size", "data.validation", "data.directory", "palette.kind", "palette.size", "palette.iterations", "palette.path", "seed")
KINDS = {"colours": 1, "levels": 3}  # config.palette.kind -> codes to a pixel


def quantize(config: Recipe, workdir: PathLike, codes: bool = False, refit: bool = False) -> None:
    """Fit WORKDIR/palette.npy, or use the existing one, and if `codes` write WORKDIR/codes; wrong settings raise before any image is read."""
    check_numbers(config.to_dict())
    workdir = epath.Path(workdir)
    data_config = pipeline.DataConfig(**config.data)
    path = epath.Path(config.palette.path or workdir / "palette.npy")
    if config.palette.kind not in KINDS:
        raise ValueError(f"config.palette.kind {config.palette.kind!r} is unknown: one of {', '.join(KINDS)}")
    if config.palette.kind == "levels" and codes:
        raise ValueError("--codes stores palette colours; with levels the images are their own codes: train from them")
    if codes and "://" in str(workdir):
        raise ValueError(f"--codes writes files to be mapped into memory: --workdir must be a local or mounted directory, not {workdir}")
    if config.palette.path and refit:
        raise ValueError(f"--refit fits {workdir / 'palette.npy'}, but config.palette.path names {path}: leave one of them out")
    multihost.check_same(recipe=shared(config), flags=[codes, refit])
    multihost.together(partial(prepare_folder, workdir), "another process cannot write to the work directory: see what it says")
    multihost.check_same(work_directory=path.exists())
    with Lock(workdir):
        _write(config, data_config, workdir, path, codes, refit)


def _write(config: Recipe, data_config: pipeline.DataConfig, workdir: epath.Path, path: epath.Path, codes: bool, refit: bool) -> None:
    """Make or load the palette, then write the codes; `quantize` holds the lock of `workdir`. `path` is the palette's."""
    first = jax.process_index() == 0
    if codes:  # raises before the fit if something is wrong with them
        multihost.together(partial(open_parts, data_config) if first else lambda: None, "another process cannot open the images: see what it says")
    if config.palette.path or (path.exists() and not refit):
        palette = _load_palette(config, path)
    elif config.palette.kind == "levels":
        palette = Palette.levels(config.palette.size)
        if first:
            palette.save(path)
        print(f"{path}: {palette.size} levels of a channel, three codes to a pixel")
    else:
        palette = fit_palette(config, data_config, workdir)
    multihost.check_same(palette=palette.centers.tolist())
    if not codes and first and _has_other_codes(workdir / "codes", palette):
        way_out = "write them again by the same command with --codes and without --refit, or delete them"
        multihost.note(f"{workdir / 'codes'} holds codes of another palette than {path}, which train refuses together: {way_out}")
    write = partial(write_codes, data_config, palette, workdir / "codes") if codes and first else lambda: None
    multihost.together(write, "another process cannot write the codes: see what it says")  # a process that leaves early would end the others after minutes


def _load_palette(config: Recipe, path: epath.Path) -> Palette:
    """Load a palette that the recipe names or an earlier run wrote; ValueError if it is not of the recipe's size or kind."""
    palette, named = Palette.load(path), bool(config.palette.path)
    if palette.size != config.palette.size:
        way_out = f"--config.palette.size={palette.size}" + ("" if named else " keeps it, --refit fits a new one")
        raise ValueError(f"{path} has {palette.size} colours, but config.palette.size is {config.palette.size}: {way_out}")
    if palette.tokens_per_pixel != KINDS[config.palette.kind]:
        raise ValueError(f"{path} is not a palette of {config.palette.kind}: set config.palette.kind, or choose another --workdir")
    print(f"{'using' if named else 'keeping'} {path}: {palette.size} colours" + ("" if named else " (--refit fits a new one)"))
    return palette


def _has_other_codes(directory: epath.Path, palette: Palette) -> bool:
    """Return whether `directory` holds codes of another palette, or of one that cannot be read."""
    try:
        return palette.differs_from(directory / "palette.npy")
    except (OSError, ValueError):
        return True


def next_command(words: Sequence[str], config: Recipe, workdir: PathLike, codes: bool) -> str:
    """Return the command of `train` after this one of `words`; it reads the `codes` that were written, unless the recipe's augmentation resizes pictures."""
    kept = [word for word in words if not re.fullmatch(r"--?(no)?(codes|refit)(=.*)?", word)]
    if codes and config.data.augment != "imagenet":
        kept = [word for word in kept if not word.lstrip("-").startswith("config.data.source=")] + [f"--config.data.source=codes:{workdir}/codes"]
    return shlex.join(["python", "-m", "igpt_jax.train", *kept])


def _program(config: Recipe, workdir: PathLike, codes: bool = False, refit: bool = False) -> None:
    quantize(config, workdir, codes, refit)
    if jax.process_index() == 0:
        print(f"next: {next_command(sys.argv[1:], config, workdir, codes)}")


def _flags(flags: Any) -> dict[str, Any]:
    return {
        "codes": flags.DEFINE_bool("codes", False, "also write the images as codes to WORKDIR/codes"),
        "refit": flags.DEFINE_bool("refit", False, "fit a new palette although WORKDIR/palette.npy exists"),
    }


if __name__ == "__main__":
    run_recipe(_program, _flags, keys=KEYS)
