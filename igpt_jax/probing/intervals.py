"""The uncertainty of an accuracy that is measured on finitely many images."""

import math
from collections.abc import Sequence

QUANTILE = 1.959963984540054  # of the normal distribution at 0.975: 95 % lie between minus this and this


def wilson(share: float | None, images: int) -> list[float] | None:
    """The 95 % interval [low, high] of an accuracy, a `share` of `images` test images that are correct; None if there is none.

    Wilson's score interval (Wilson 1927; Brown, Cai and DasGupta 2001 compare it with others). Unlike the share plus and minus two deviations it has a width
    at 0 and 1 and stays inside them. It says what other test images would change, and nothing about other training images or seeds.
    """
    if share is None or not images:
        return None
    if not 0 <= share <= 1 or images < 0:
        raise ValueError(f"an accuracy of {share} on {images} images: it must be from 0 to 1, and the images at least 0")
    weight = QUANTILE**2 / images
    centre = (share + weight / 2) / (1 + weight)
    half = QUANTILE / (1 + weight) * math.sqrt(share * (1 - share) / images + weight / (4 * images))
    return [max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))]


def in_percent(interval: Sequence[float]) -> str:
    """The interval in percent, such as 71.3 to 74.0."""
    return "{:.1f} to {:.1f}".format(*(100 * end for end in interval))
