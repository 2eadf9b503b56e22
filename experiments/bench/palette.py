"""k-means beside scikit-learn and FAISS: `python -m experiments.bench.palette --images=DIR [--colours=512] [--rounds=3]`.

ours          igpt_jax.palette.kmeans.fit until convergence
ours-early    the same, stopped after --early steps of each level
faiss         its Kmeans, on a GPU if this build of it can use one
scikit-learn  its KMeans

DIR holds train.npz with `images` uint8 [N, H, W, 3]. All programs minimise the same error over all pixels: distinct colours, weighted by their counts.
scikit-learn and FAISS have 25 iterations. The programs take turns; the number of a round is its seed.
"""

import argparse
import functools
import pathlib
import time

import numpy as np

from experiments.bench import rounds
from igpt_jax.cli import Parser, integer
from igpt_jax.palette import kmeans
from igpt_jax.palette.palette import Palette

PROGRAMS = {"ours": (), "ours-early": (), "faiss": ("faiss",), "scikit-learn": ("scikit-learn",)}
SMALL_IMAGES = (20, 8, 8, 3)  # random ones


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=pathlib.Path, help="folder of train.npz")
    parser.add_argument("--colours", type=integer(1), default=512, help="colours of the palette")
    parser.add_argument("--iterations", type=integer(1), default=25, help="iterations of scikit-learn and FAISS; ours stops by its own rule, after at most 100")
    parser.add_argument("--early", type=integer(1), default=2, help="steps of each level after which ours-early stops")
    return rounds.start("palette", bench, parser, argv, PROGRAMS, {"colours": 16, "iterations": 3, "rounds": 1})


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    images = _images(arguments)
    began = time.perf_counter()
    counts = kmeans.count_colours([images])
    counting = time.perf_counter() - began
    keys = np.flatnonzero(counts)
    colours = np.stack([keys >> 16, (keys >> 8) & 255, keys & 255], axis=-1).astype(np.uint8)
    points, weights = (colours / 127.5 - 1).astype(np.float32), counts[keys].astype(np.float32)
    fits = {"ours": _ours, "ours-early": functools.partial(_ours, steps=arguments.early), "faiss": _faiss, "scikit-learn": _sklearn}
    few = slice(0, 2 * arguments.colours)
    for name in arguments.programs:  # ours compiles, on all colours; FAISS prepares a GPU
        fits[name](*((counts, points, weights) if name.startswith("ours") else (counts, points[few], weights[few])), arguments.colours, 2, 0)
    rows = {name: [] for name in arguments.programs}
    for seed in range(arguments.rounds):
        for name in rows:
            began = time.perf_counter()
            centers = fits[name](counts, points, weights, arguments.colours, arguments.iterations, seed)
            seconds = time.perf_counter() - began
            rows[name].append({"seed": seed, "seconds": round(seconds, 4), "mse": _error(centers, colours, counts[keys])})
            print(f"round {seed}  {name:13} mse {rows[name][-1]['mse']:.6f}  {seconds:7.1f} s", flush=True)
    median = {name: {key: float(np.median([row[key] for row in turns])) for key in ("mse", "seconds")} for name, turns in rows.items()}
    for name, values in median.items():
        print(f"{name:13} median mse {values['mse']:.6f}, {values['seconds']:.1f} s")
    return {
        "what": "mse per pixel, three channels, range 2; seconds from the counted colours to the centres",
        "pixels": int(counts.sum()), "distinct_colours": len(keys), "colours": arguments.colours, "counting_seconds": round(counting, 2),
        "early": arguments.early, "faiss_gpus": _faiss_gpus() if "faiss" in rows else 0, "median": median, "rounds": rows,
    }  # fmt: skip


def _images(arguments):
    if arguments.small:
        return np.random.default_rng(0).integers(256, size=SMALL_IMAGES, dtype=np.uint8)
    if arguments.images is None:
        raise ValueError("give the folder of train.npz by --images, or --small")
    return np.load(arguments.images / "train.npz")["images"]


def _ours(counts, points, weights, colours, iterations, seed, steps=100):
    return kmeans.fit(counts, colours, seed, steps, 1e-4)[0]


def _faiss(counts, points, weights, colours, iterations, seed):
    import faiss

    means = faiss.Kmeans(3, colours, niter=iterations, seed=seed + 1, max_points_per_centroid=10**9, gpu=_faiss_gpus() > 0)
    means.train(points, weights=weights)
    return means.centroids


def _faiss_gpus() -> int:
    """Return the number of GPUs that FAISS can use; 0 for a build for CPUs."""
    import faiss

    return getattr(faiss, "get_num_gpus", lambda: 0)()


def _sklearn(counts, points, weights, colours, iterations, seed):
    from sklearn.cluster import KMeans

    return KMeans(colours, max_iter=iterations, n_init=1, random_state=seed, tol=0).fit(points, sample_weight=weights).cluster_centers_


def _error(centers, colours, counts) -> float:
    palette = Palette(np.clip(centers, -1, 1))
    nearest = palette.centers[palette.encode(colours[None])[0]].astype(np.float64)
    return float((counts * ((colours / 127.5 - 1 - nearest) ** 2).sum(axis=1)).sum() / counts.sum())


if __name__ == "__main__":
    main()
