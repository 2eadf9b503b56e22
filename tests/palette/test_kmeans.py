"""K-means: exact steps, falling error, seeds, devices and degenerate sets."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from igpt_jax.palette import kmeans
from igpt_jax.palette.palette import Palette


def photo(pixels=20_000, seed=0):
    """Pixels as in photographs: a few soft clouds of colour, some colours very frequent."""
    rng = np.random.default_rng(seed)
    clouds = rng.uniform(20, 235, (12, 3))
    colours = clouds[rng.integers(0, 12, pixels)] + rng.normal(0, 18, (pixels, 3))
    colours[: pixels // 8] = (255, 255, 255)
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


def squared_error(pixels, centers):
    """Mean over pixels of the squared distance to the nearest centre, all in float64."""
    blocks = np.array_split(pixels / 127.5 - 1, 50)
    return sum(((block[:, None] - centers.astype(np.float64)) ** 2).sum(-1).min(-1).sum() for block in blocks) / len(pixels)


def test_every_colour_is_counted_once():
    pixels = photo(5000)
    counts = kmeans.count_colours([pixels[:1000].reshape(10, 10, 10, 3), pixels[1000:], pixels[:0]])
    colours, expected = np.unique(pixels, axis=0, return_counts=True)
    assert counts.sum() == 5000 and np.count_nonzero(counts) == len(colours)
    np.testing.assert_array_equal(counts[colours.astype(int) @ [1 << 16, 1 << 8, 1]], expected)
    with pytest.raises(ValueError, match=r"uint8 .* got float32 \[4, 3\]"):
        kmeans.count_colours([np.zeros((4, 3), np.float32)])


def test_processes_add_their_counts(monkeypatch):
    def gather(words):
        assert words.dtype.itemsize == 4  # jax would cut 64 bits
        return np.stack([words, words, words])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    counts = kmeans.count_colours([np.full((7, 3), 255, np.uint8)])
    assert counts[-1] == 21 and counts.sum() == 21
    large = np.zeros(kmeans.COLOURS, np.int64)
    large[5] = 5_000_000_000
    assert kmeans._sum_over_processes(large)[5] == 15_000_000_000


@pytest.mark.parametrize("size", [2, 33, 500])
def test_the_reported_error_is_the_error(size):
    pixels = photo()
    seen = []
    centers, fit = kmeans.fit(kmeans.count_colours([pixels]), size, 0, 12, 1e-4, lambda *values: seen.append(values))
    assert centers.shape == (size, 3) and centers.dtype == np.float32
    assert fit.pixels == len(pixels) and fit.distinct_colours == len(np.unique(pixels, axis=0))
    np.testing.assert_allclose(fit.mse, squared_error(pixels, centers), rtol=2e-6)  # float32 differences
    assert fit.mse_per_channel == fit.mse / 3
    np.testing.assert_allclose(fit.psnr, 10 * np.log10(255**2 / (fit.mse_per_channel * 127.5**2)))
    codes = Palette(centers).encode(pixels)
    assert len(np.unique(codes)) == size
    *coarse, last = {points: iteration for points, iteration, _ in seen}.values()
    assert (fit.iterations, fit.coarse_iterations) == (last, sum(coarse)) and bool(coarse) == (size < 500)
    for points in {points for points, _, _ in seen}:  # no step raises the error of its level, the relaxed ones included
        errors = [mse for level, _, mse in seen if level == points]
        assert all(later <= earlier * (1 + 1e-6) for earlier, later in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("size", [5, 600])
@pytest.mark.parametrize("devices", [1, None])
def test_a_step_skips_no_nearest_center(size, devices, monkeypatch):
    if devices:
        some = jax.local_devices()[:devices]
        monkeypatch.setattr(jax, "local_devices", lambda: some)
    rng = np.random.default_rng(1)
    keys = np.unique(photo(30_000).astype(int) @ [1 << 16, 1 << 8, 1])
    counts = rng.integers(1, 100, len(keys))
    points, weights = kmeans._colours_in_order(keys, counts)
    near = points[rng.choice(len(points), size // 2)] + rng.normal(0, 1e-3, (size // 2, 3))  # off the grid of colours, where ties are many
    centers = kmeans._in_order(np.clip(np.concatenate([rng.uniform(-1, 1, (size - size // 2, 3)), near]), -1, 1))
    lloyd = kmeans._Lloyd(len(points), size, 1, 0, None)
    mass, shifts, errors, point_errors = lloyd.assign(lloyd.place(points, weights, centers), centers)

    squared = np.stack([((points.astype(np.float32) - center) ** 2).sum(-1) for center in centers])
    codes = squared.argmin(0)
    np.testing.assert_allclose(errors.sum(), squared.min(0) @ weights, rtol=1e-6)
    np.testing.assert_allclose(sum(np.asarray(call, np.float64).sum() for call in point_errors), errors.sum(), rtol=1e-6)
    np.testing.assert_allclose(mass, np.bincount(codes, weights, size), rtol=1e-5)
    means = np.stack([np.bincount(codes, weights * channel, size) for channel in points.T], 1) / np.maximum(mass, 1)[:, None]
    np.testing.assert_allclose((centers + shifts)[mass > 0], means[mass > 0], atol=2e-6)


def test_merged_colours_weigh_as_much_as_all_and_have_their_mean():
    keys, counts = np.unique(photo().astype(int) @ [1 << 16, 1 << 8, 1], return_counts=True)
    points, weights = kmeans._colours_in_order(keys, counts)
    merged, masses = kmeans._merge(points, weights, 200)
    assert 100 < len(merged) <= 201 and masses.sum() == 20_000
    np.testing.assert_allclose(masses @ merged, weights @ points)
    assert kmeans._merge(points, weights, len(points))[0] is points


def test_the_last_step_goes_to_the_means():
    pixels = photo()
    centers, fit = kmeans.fit(kmeans.count_colours([pixels]), 8, 0, 200, 1e-7)
    codes = Palette(centers).encode(pixels)
    means = np.stack([pixels[codes == code].mean(0) / 127.5 - 1 for code in range(8)])
    assert fit.iterations < 200
    np.testing.assert_allclose(centers, means, atol=1e-3)  # settled: the means hardly move any more


def test_a_single_step_is_not_relaxed():
    pixels = photo(5000)
    points, weights = kmeans._colours_in_order(*np.unique(pixels.astype(int) @ [1 << 16, 1 << 8, 1], return_counts=True))
    start = kmeans._in_order(np.random.default_rng(0).uniform(-1, 1, (5, 3)))
    lloyd = kmeans._Lloyd(len(points), 5, 1, 0, lambda *values: None)
    mass, shifts, _, _ = lloyd.assign(lloyd.place(points, weights, start), start)
    assert (mass > 0).all()
    centers, _, steps = lloyd.run(points, weights, start, np.random.default_rng(0))
    assert steps == 1
    np.testing.assert_allclose(centers, kmeans._in_order(start + shifts), atol=1e-5)  # float32 sums; relaxed it would be 1e-2 off


def test_one_seed_one_palette():
    counts = kmeans.count_colours([photo()])
    first, second, third = (kmeans.fit(counts, 33, seed, 5, 1e-4)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - third).max() > 1e-3


def test_counts_beyond_32_bits_change_nothing():
    counts = kmeans.count_colours([photo()])
    small, large = (kmeans.fit(counts * factor, 16, 0, 10, 1e-5)[1] for factor in (1, 1 << 33))
    np.testing.assert_allclose(large.mse, small.mse, rtol=1e-6)


def test_as_many_colours_as_asked_for_are_kept_exactly():
    pixels = photo(300)
    distinct = np.unique(pixels, axis=0)
    centers, fit = kmeans.fit(kmeans.count_colours([pixels]), len(distinct), 0, 10, 1e-4)
    np.testing.assert_array_equal(np.unique(Palette(centers).decode(np.arange(len(distinct))), axis=0), distinct)
    assert fit.mse == 0 and fit.psnr == float("inf")


def test_too_few_colours_are_refused():
    counts = kmeans.count_colours([np.repeat(np.arange(17, dtype=np.uint8)[:, None], 3, 1)])
    with pytest.raises(ValueError, match="palette size 18 exceeds the 17 distinct colours .* at most 17"):
        kmeans.fit(counts, 18, 0, 10, 1e-4)
    with pytest.raises(ValueError, match="palette size 1 is not between 2 and 65536"):
        kmeans.fit(counts, 1, 0, 10, 1e-4)
    centers, _ = kmeans.fit(counts, 16, 0, 10, 1e-4)
    assert len(np.unique(centers, axis=0)) == 16


def test_empty_clusters_find_work():
    keys = np.unique(photo().astype(int) @ [1 << 16, 1 << 8, 1])
    points, weights = kmeans._colours_in_order(keys, np.ones(len(keys), int))
    lloyd = kmeans._Lloyd(len(points), 24, 20, 1e-4, lambda *values: None)
    start = np.full((24, 3), -1.0)  # one place for all
    centers, error, _ = lloyd.run(points, weights, start, np.random.default_rng(0))
    mass, _, _, _ = lloyd.assign(lloyd.place(points, weights, centers), centers)
    assert (mass > 0).all()


def test_a_palette_too_large_to_draw_one_by_one(monkeypatch):
    monkeypatch.setattr(kmeans, "_MOST_DRAWN", 4)
    pixels = photo()
    _, fit = kmeans.fit(kmeans.count_colours([pixels]), 33, 0, 30, 1e-4)
    monkeypatch.undo()
    _, drawn = kmeans.fit(kmeans.count_colours([pixels]), 33, 0, 30, 1e-4)
    assert fit.mse < 1.1 * drawn.mse


def test_no_worse_than_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    pixels = photo(5000)
    _, fit = kmeans.fit(kmeans.count_colours([pixels]), 16, 0, 50, 1e-5)
    other = cluster.KMeans(16, n_init=1, max_iter=50, random_state=0).fit(pixels / 127.5 - 1)
    assert fit.mse < 1.02 * other.inertia_ / len(pixels)  # two local minima; 2% lies between two seeds of either


def test_the_curve_visits_neighbours():
    cube = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1).reshape(-1, 3)
    places = kmeans._hilbert(cube)
    assert len(np.unique(places)) == 16**3
    steps = np.abs(np.diff(cube[np.argsort(places)], axis=0)).sum(1)
    assert (steps == 1).all()
