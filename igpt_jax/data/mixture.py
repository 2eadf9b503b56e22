"""Mixtures: several sources from which training draws by weights, as "folder:a*0.7 + tfds:b*0.3".

The weights are positive numbers of any scale. Each round of ROUND draws holds each source exactly by its share, rounded to 1 in ROUND, in an order drawn anew
(sampler.py); each source passes through its own epochs. Evaluation reads every image once, source after source. The split of a mixture holds the images of
those sources that have this split; all of them must have training images. A class has the number that it has in training, in every split.

The text is a mixture if a + is followed by the beginning of a source, such as `folder:`, and no file or folder has the name of the whole. The weight is what
follows the last * of each source, so a path may hold + and * itself.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from igpt_jax.data.labels import ClassNames, are_names, class_numbers
from igpt_jax.data.messages import listed
from igpt_jax.palette.palette import Palette

ROUND = 10_000  # draws
PLUS = re.compile(r"\s*\+\s*(?=(?:digits\b|\w+:))")


def split_mixture(source: str) -> list[tuple[str, str]]:
    """Return the (source, weight as written) of a mixture, [] for a single source; ValueError, one line, for a weight that is missing or not positive."""
    if os.path.exists(os.path.expanduser(source.partition(":")[2])):
        return []
    pieces = PLUS.split(source.strip())
    if re.search(r"\*\s*[\d.]+\s*\+$", pieces[-1]):
        raise ValueError(f"source {source!r} ends in a +: a mixture is SOURCE*WEIGHT + SOURCE*WEIGHT")
    if len(pieces) == 1:
        return []
    pairs = []
    for piece in pieces:
        name, star, weight = (word.strip() for word in piece.rpartition("*"))
        try:
            number = float(weight) if star else None
        except ValueError:
            number = None
        if number is None:
            raise ValueError(f"{piece!r} needs a weight, a number after a *, as in {piece}*0.5: source {source!r} is a mixture")
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{piece!r} has the weight {weight}, which must be a positive number: source {source!r} is a mixture")
        pairs.append((name, weight))
    _check_once([name for name, _ in pairs], source)
    return pairs


def _check_once(names: list[str], source: str) -> None:
    """Raise ValueError for a source that a mixture names twice, also by two paths."""
    for number, name in enumerate(names):
        if earlier := [other for other in names[:number] if _resolved(other) == _resolved(name)]:
            twice = f"{name} twice" if name in earlier else f"{earlier[0]} and {name}, which are the same"
            raise ValueError(f"source {source!r} names {twice}: give it once, with the sum of the weights")


def _resolved(source: str) -> str:
    """Return a source with the real path of its place; tfds names a data set, no place."""
    kind, colon, place = source.partition(":")
    return kind + colon + (os.path.realpath(os.path.expanduser(place)) if place and kind != "tfds" else place)


def shares_of(pairs: list[tuple[str, str]]) -> tuple[int, ...]:
    """Return the draws of each source in ROUND of them, which they add up to; ValueError for a weight so small that there is none."""
    weights = np.array([float(weight) for _, weight in pairs])
    exact = weights / weights.max()
    exact *= ROUND / exact.sum()
    shares = np.floor(exact).astype(int)
    shares[np.argsort(-(exact - shares), kind="stable")[: ROUND - shares.sum()]] += 1  # the largest remainders are rounded up
    for (name, weight), share in zip(pairs, shares, strict=True):
        if not share:
            raise ValueError(f"{name}*{weight} is less than 1 in {2 * ROUND:,} draws of the mixture: leave it out, or give it a larger weight")
    return tuple(shares.tolist())


def short_names(sources: list[str]) -> list[str]:
    """Return names of the sources for metrics: the kind and the last part of the place, or the whole source where several have the same."""
    names = [f"{kind}{colon}{os.path.basename(place.rstrip('/'))}" for kind, colon, place in (source.partition(":") for source in sources)]
    return [source if names.count(name) > 1 else name for name, source in zip(names, sources, strict=True)]


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The images of several sources that follow each other."""

    parts: tuple[Any, ...]  # a Dataset of each source; its labels are numbers of class_names
    names: tuple[str, ...]  # of the sources, `short_names`
    shares: tuple[int, ...]  # draws of each source in ROUND
    rows: np.ndarray  # int64 [N], places among the images of all parts
    class_names: ClassNames
    disagreement: str  # why their classes are not the same, "" if they are
    palette: Palette | None  # beside the coded ones

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, rows: np.ndarray) -> "Mixed":
        """Return the images of these rows alone."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def all_labels(self) -> np.ndarray:
        """Return the labels of all images, int [N]; -1 where there is none."""
        return np.concatenate([part.labels for part in self.parts])[self.rows]

    def members(self) -> list[np.ndarray]:
        """Return for each part int64 [N]: the number in it of each image, -1 for images of other parts."""
        return [np.where((own >= 0) & (own < len(part)), own, -1) for part, own in zip(self.parts, self._numbers(self.rows), strict=True)]

    def split(self, rows: np.ndarray) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Yield (part, bool [n], numbers in the part) of each part that has some of these rows."""
        for part, own in zip(self.parts, self._numbers(self.rows[rows]), strict=True):
            mine = (own >= 0) & (own < len(part))
            if mine.any():
                yield part, mine, own[mine]

    def _numbers(self, places: np.ndarray) -> list[np.ndarray]:
        starts = np.cumsum([0, *map(len, self.parts)])
        return [places - start for start in starts[:-1]]

    def gather(self, rows: np.ndarray, read: Callable[[Any, np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return read(part, numbers in it) of the images at `rows`, in their order: an array [n, *shape]."""
        result = np.zeros((len(rows), *shape), dtype)
        for part, mine, own in self.split(rows):
            result[mine] = read(part, own)
        return result


def mix(parts: list[Any], names: list[str], shares: tuple[int, ...], training: list[Any]) -> Mixed:
    """Mix data sets; ValueError for coded ones of other palettes. Where their classes are not the same all images are unlabelled.

    `training` holds a data set of each source of the mixture, also of those that have no part in this split, with the classes of its training images.
    """
    palettes = {part.config.source: part.palette for part in parts if part.palette is not None}
    first = next(iter(palettes), "")
    for source, palette in palettes.items():
        if not np.array_equal(palette.centers, palettes[first].centers):
            sizes = f"{palettes[first].size} and {palette.size} colours"
            raise ValueError(f"{first} and {source} were coded with other palettes ({sizes}): code both with one, by config.palette.path")
    class_names, disagreement = _common_classes(training, [part for part in parts if part not in training])
    numbered = []
    for part in parts:
        known = class_names and part.class_names
        numbered.append(part.renumbered(class_numbers(part.class_names, class_names) if known else (), class_names))
    rows = np.arange(sum(map(len, parts)))
    return Mixed(tuple(numbered), tuple(names), shares, rows, class_names, disagreement, palettes.get(first))


def _common_classes(training: list[Any], parts: list[Any]) -> tuple[ClassNames, str]:
    """Return (class names of the first source that has classes in training, ""), or ((), why the classes of another one are not the same).

    The sources must have the same classes in training. Other `parts` may lack some of them. Classes that are numbers go up to the largest of all.
    """
    labelled = [part for part in (*training, *parts) if part.class_names]
    for part in labelled[1:]:
        first = labelled[0]
        own, names = part.class_names, first.class_names
        both = f"{first.config.source} has {listed(names)}; {part.config.source} has {listed(own)}"
        named = are_names(names)
        if are_names(own) != named:
            return (), f"one has names of classes and the other numbers: {both}"
        if (part in training and len(own) != len(names)) or (named and -1 in class_numbers(own, names)):
            return (), f"their classes are not the same: {both}"
    return max((part.class_names for part in labelled), key=len, default=()), ""
