"""Arrays of images and labels: the digits, and which contents have a single meaning."""

import numpy as np
import pytest

from igpt_jax.data.arrays import open_digits, take_labels, take_pixels

IMAGES = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def test_digits_are_grey_stratified_and_always_the_same():
    train, test = open_digits("train"), open_digits("test")
    assert len(train) + len(test) == 1797 and len(test) == 359
    assert np.bincount(test.labels).min() >= 35 and train.images.max() == 255 and train.read(0)[0].shape == (8, 8, 3)
    assert (np.ptp(train.read(0)[0], axis=-1) == 0).all()
    assert (int(test.labels[:50].sum()), int(test.images.astype(np.int64).sum())) == (204, 1804817)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (IMAGES / np.float32(255), IMAGES),
        (IMAGES / np.float64(255), IMAGES),
        (IMAGES.astype(np.float16), IMAGES),
        (IMAGES.astype(np.int64), IMAGES),
        (IMAGES.astype(">i4"), IMAGES),
        (IMAGES.transpose(0, 3, 1, 2), IMAGES),
        ((IMAGES / np.float32(255)).transpose(0, 3, 1, 2), IMAGES),
        (IMAGES[..., :1], IMAGES[..., :1]),
        (IMAGES[..., 0] / np.float32(255), IMAGES[..., 0]),
        (IMAGES[:, None, :, :, 0], IMAGES[..., :1]),
        (IMAGES[..., 0] > 127, 255 * (IMAGES[..., 0] > 127)),
        (np.concatenate([IMAGES, np.full((6, 8, 8, 1), 255, np.uint8)], 3), IMAGES),
        (np.concatenate([IMAGES, np.zeros((6, 8, 8, 1), np.uint8)], 3), np.full_like(IMAGES, 255)),
        (IMAGES[:, :4, :4], IMAGES[:, :4, :4]),  # 4 x 4 pixels, not four channels of 4 x 3
    ],
)
def test_images_of_one_meaning_are_taken(stored, expected):
    pixels, note = take_pixels(stored, "images")
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected)
    assert bool(note) == (stored.dtype != np.uint8 or stored.shape[-1] not in (1, 3)) and (not note or str(stored.dtype) in note)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (IMAGES / 255 * 1.5, "is float64 from 0.0 to 1.5: give uint8 from 0 to 255, or floats from 0 to 1"),
        (IMAGES / 127.5 - 1, "is float64 from -1.0 to 1.0"),
        (IMAGES[..., 0] / 255 * 16, "is float64 from 0.* to 1[56]"),  # scikit-learn's digits
        (np.where(IMAGES == IMAGES[0, 0, 0, 0], np.nan, IMAGES), "from nan to nan"),
        (IMAGES.astype(float) * 257, "to 65535"),
        (IMAGES.astype(np.uint16) * 257, "is uint16 from 0 to 65535"),
        (IMAGES.astype(np.int64) - 1, "is int64 from -1 to 254"),
        (IMAGES.astype(np.int64) // 128, "is int64 from 0 to 1"),
        (IMAGES[..., 0].astype(np.int64), "palette ids are read from .npy files"),
        (IMAGES[:, :3, :, :], r"uint8 \[6, 3, 8, 3\]: is the axis of 3 or that of 3 the channels"),
        (IMAGES[:, :3, :3], "is the axis of 3 or that of 3 the channels"),
        (IMAGES[..., :2], "no axis of 1, 3 or 4 channels"),
        (IMAGES[0], "8 grey images of 8 x 3 pixels, or a single picture"),
        (IMAGES.reshape(6, -1), r"must be \[N, H, W, 3\] or \[N, H, W\], not uint8 \[6, 192\]"),
        (IMAGES.astype(complex), "not complex128"),
        (IMAGES.astype(str), "not <U"),
    ],
)
def test_images_of_several_meanings_are_refused_with_the_numbers(stored, message):
    with pytest.raises(ValueError, match=message) as caught:
        take_pixels(stored, "images")
    assert "\n" not in str(caught.value)


def test_labels_of_uint8_to_255_and_none():
    labels, classes, note = take_labels(np.array([255, 0], np.uint8), 2, "labels")
    assert labels.tolist() == [255, 0] and classes == 256 and note == ""
    assert take_labels(np.array([-1, 2]), 2, "labels")[0].tolist() == [-1, 2]
    assert take_labels(np.array([True, False]), 2, "labels")[0].tolist() == [1, 0]
