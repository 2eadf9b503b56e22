"""The stream of images: each image once an epoch, mixed, and with bounded memory."""

import time
import weakref

import numpy as np
import pytest

from igpt_jax.data import pipeline
from igpt_jax.probing import store, stream
from tests.probing.test_lbfgs_probe import write_folder

SPLITS = (("train", 0, 123), ("validation", 1000, 61))


def numbered(folder, count, images_per_part=50, width=4):
    """Features that tell their image's number."""
    features = np.arange(count, dtype=np.float32)[None, :, None] + np.zeros((2, 1, width), np.float32)
    write_folder(folder, {"train": (features, np.arange(count) % 2)}, [], images_per_part)
    return store.Reader(folder, store.read_description(folder), "train", [0, 1])


def first_batches(reader, rows, window, size, seed, count):
    made = stream.batches(stream.windows(reader, rows, window, seed), size)
    features, numbers = zip(*(next(made) for _ in range(count)), strict=True)
    return np.concatenate(features, axis=1), np.concatenate(numbers)


@pytest.mark.parametrize("window, size", [(40, 16), (123, 16), (30, 64), (7, 3)])
def test_the_stream_visits_each_image_once_an_epoch(tmp_path, monkeypatch, window, size):
    monkeypatch.setattr(store, "BLOCK_BYTES", 7 * 16)  # blocks of 7 images
    reader = numbered(tmp_path, 123)
    rows = np.delete(np.arange(123), [0, 5, 50, 122])  # some are held out
    features, numbers = first_batches(reader, rows, window, size, 3, 3 * len(rows) // size + 1)
    np.testing.assert_array_equal(features, np.broadcast_to(numbers[None, :, None], features.shape))
    epochs = [numbers[start : start + len(rows)] for start in (0, len(rows), 2 * len(rows))]
    for epoch in epochs[: len(numbers) // len(rows)]:
        np.testing.assert_array_equal(np.sort(epoch), rows)
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(numbers[: 2 * size], first_batches(reader, rows, window, size, 3, 2)[1])
    assert not np.array_equal(numbers[: 2 * size], first_batches(reader, rows, window, size, 4, 2)[1])


def test_two_splits_are_read_as_one(tmp_path):
    features = {split: first + np.arange(count, dtype=np.float32)[None, :, None] * np.ones((1, 1, 4)) for split, first, count in SPLITS}
    write_folder(tmp_path, {split: (each, np.arange(each.shape[1]) % 2) for split, each in features.items()}, [], 50)
    reader = store.Reader(tmp_path, store.read_description(tmp_path), ["train", "validation"], [0])
    assert reader.first == {"train": 0, "validation": 150}  # the first part that begins after the training images
    rows = np.concatenate([np.arange(123), 150 + np.arange(61)])
    expected = np.concatenate([np.arange(123), 1000 + np.arange(61)])
    np.testing.assert_array_equal(reader.read(rows)[0, :, 0], expected)
    shown, numbers = first_batches(reader, rows, 70, 8, 0, len(rows) // 8)
    assert len(set(numbers)) == len(numbers) and set(shown[0, :, 0]) <= set(expected)


def test_a_window_mixes_places_far_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_BYTES", 5 * 16)
    reader = numbered(tmp_path, 1000)
    _, numbers = first_batches(reader, np.arange(1000), 200, 50, 0, 4)
    for batch in numbers.reshape(4, 50):
        assert len(np.unique(batch // 100)) > 6  # of ten hundreds; 40 blocks are in the window
        assert len(np.unique(np.diff(batch))) > 10
    windows = stream.windows(reader, np.arange(1000), 200, 0)
    sets = [set(next(windows)[1].tolist()) for _ in range(10)]  # two epochs of five
    assert not any(a == b for a in sets[:5] for b in sets[5:])


@pytest.mark.parametrize("parts", [4, 16])
def test_images_held_do_not_grow_with_the_number_of_parts(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(store, "BLOCK_BYTES", 5 * 16)
    reader, made, held = numbered(tmp_path, 50 * parts), [], []
    original = stream._read_window

    def window(*arguments):
        features, rows = original(*arguments)
        made.append((weakref.ref(features), len(rows)))  # alive as long as the array, or a view of it
        return features, rows

    monkeypatch.setattr(stream, "_read_window", window)
    windows = pipeline.prefetch(stream.windows(reader, np.arange(50 * parts), 30, 0), put=lambda pair: pair, depth=1)
    for _, _batch in zip(range(60), stream.batches(windows, 8), strict=False):
        time.sleep(0.002)  # the thread makes the next window
        held.append(sum(count for features, count in list(made) if features() is not None))
    windows.close()
    assert 30 <= max(held) <= 2 * 30  # one that is cut into batches, one that is being read
