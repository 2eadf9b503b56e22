"""Squares of the two photographs that scikit-learn brings, china.jpg and flower.jpg: colour pictures for a first try, without a download."""

import importlib.util
import pathlib

import numpy as np

from igpt_jax.data.images import read_image

SQUARES = {  # name -> (file, left, top, side), pixels
    "pagoda": ("china.jpg", 0, 0, 427),
    "roof": ("china.jpg", 60, 10, 290),
    "lake": ("china.jpg", 213, 0, 427),
    "trees": ("china.jpg", 330, 117, 310),
    "flower": ("flower.jpg", 95, 0, 427),
    "blossom": ("flower.jpg", 158, 72, 300),
}


def find_photographs() -> list[pathlib.Path]:
    """Return the paths of china.jpg and flower.jpg; those that are missing are left out."""
    library = importlib.util.find_spec("sklearn")
    if library is None or library.origin is None:
        return []
    folder = pathlib.Path(library.origin).parent / "datasets" / "images"
    return [folder / name for name in ("china.jpg", "flower.jpg") if (folder / name).is_file()]


def photographs() -> dict[str, np.ndarray]:
    """Return squares of the photographs by name, uint8 [side, side, 3]; FileNotFoundError where scikit-learn or its photographs are missing."""
    files = {path.name: read_image(path) for path in find_photographs()}
    if len(files) < 2:
        raise FileNotFoundError("the photographs are those of scikit-learn, which is not installed with them: pip install scikit-learn")
    return {name: files[file][top : top + side, left : left + side] for name, (file, left, top, side) in SQUARES.items()}
