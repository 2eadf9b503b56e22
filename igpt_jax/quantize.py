"""Program: fit the palette by k-means on all training images and write it; with --codes also write the images as palette codes.

With config.palette.kind = "levels" nothing is fitted: the palette is the levels of a channel, and the images themselves are their codes.

    python -m igpt_jax.quantize --config=configs/digits.py --workdir=runs/digits [--codes] [--refit]

WORKDIR/palette.npy   float32 [V, 3] in [-1, 1]; kept when it is there already, unless --refit
        palette.png   a picture of the colours
        palette.json  size, seed, pixels, iterations, mse, PSNR, seconds and the data it was fitted on
        codes/        train.npy uint16 [N, H, W], train_labels.npy int32 [N], the same of test and validation where the data have their own,
                      palette.npy, dataset.json; read as the source "codes:WORKDIR/codes"
"""


import jax
from etils import epath

from igpt_jax.cli import prepare_folder, run_recipe
from igpt_jax.data import pipeline
from igpt_jax.data.quantization import fit_palette, open_parts, write_codes
from igpt_jax.distributed import multihost
from igpt_jax.distributed.lock import Lock
from igpt_jax.palette.palette import Palette
from igpt_jax.training.recipe import check_numbers

KINDS = {"colours": 1, "levels": 3}  # config.palette.kind -> codes to a pixel


def quantize(config, workdir, codes=False, refit=False):
    """Fit WORKDIR/palette.npy, or keep it, and if `codes` write WORKDIR/codes; wrong settings raise before any image is read."""
    check_numbers(config.to_dict())
    workdir = epath.Path(workdir)
    data_config = pipeline.DataConfig(**config.data)
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
    multihost.wait_for_all("codes")  # who leaves sooner ends the others after minutes


def _flags(flags):
    return {
        "codes": flags.DEFINE_bool("codes", False, "also write the images as codes to WORKDIR/codes"),
        "refit": flags.DEFINE_bool("refit", False, "fit anew although WORKDIR/palette.npy exists"),
    }


if __name__ == "__main__":
    run_recipe(quantize, _flags)
