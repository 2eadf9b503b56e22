"""A split of a source: its images by number, as pixels, views and codes, its labels and its classes."""

import concurrent.futures
import functools
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from igpt_jax.data.arrays import Arrays
from igpt_jax.data.codes import Codes
from igpt_jax.data.config import DataConfig
from igpt_jax.data.folder import Folder
from igpt_jax.data.images import Picture, evaluation_view, imagenet_crop
from igpt_jax.data.mixture import Mixed
from igpt_jax.data.pictures import Pictures
from igpt_jax.data.tfds import Records
from igpt_jax.palette.palette import Palette

SAMPLED = 64  # images that `fingerprint` reads
ENCODE_AT_ONCE = 2048  # images in one call of the palette
Source: TypeAlias = Arrays | Folder | Pictures | Records | Codes | Mixed


class Dataset:
    """One split of a source: its images by number, `labels` int32 [N] (-1 unlabelled), `class_names`, `split` and `palette`.

    `class_names` holds a str for each class, or its number if the source has no names. `palette` is the one stored beside a codes or npy source, None for
    other sources.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        source: Source,
        numbers: np.ndarray | None = None,
        class_numbers: np.ndarray | None = None,
        class_names: Iterable[str | int] = (),
    ) -> None:
        self.config, self.split, self.source = config, split, source
        self._numbers = numbers  # of its images in the split; None: it holds all of them
        self.class_numbers = class_numbers  # int [C], the number of each class of the source, see `renumbered`; None: its own
        self.class_names = source.class_names if class_numbers is None else tuple(class_names)
        self.palette: Palette | None = getattr(source, "palette", None)
        self._encoded: tuple[Palette, np.ndarray] | None = None  # (palette, codes uint16 [N, H, W]) of a set held in memory

    def __len__(self) -> int:
        return len(self.source)

    def keep(self, rows: np.ndarray) -> "Dataset":
        """Return the images of these rows alone."""
        return Dataset(self.config, self.split, self.source.keep(rows), self.numbers(rows), self.class_numbers, self.class_names)

    def numbers(self, rows: Any) -> np.ndarray:
        """Return the images' numbers in the whole split. They stay the same in a part of it (`keep`, `draw`); masks are drawn by them."""
        return np.asarray(rows if self._numbers is None else self._numbers[rows])

    def renumbered(self, class_numbers: Any, class_names: Iterable[str | int]) -> "Dataset":
        """Return the same images with other class numbers: class c of the source becomes class_numbers[c] of the `class_names`."""
        return Dataset(self.config, self.split, self.source, self._numbers, np.asarray(class_numbers, np.int32), class_names)

    def draw(self, limit: int) -> "Dataset":
        """Return at most `limit` of the images, drawn at random but the same each time, in their order; 0: all. ValueError for a negative limit."""
        if limit < 0:
            raise ValueError(f"a limit of {limit} images must not be negative (0: all)")
        if not 0 < limit < len(self):
            return self
        return self.keep(np.sort(np.random.RandomState([self.config.seed, 1]).permutation(len(self))[:limit]))

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [N]; all records of a TFDS set are read for them."""
        return self.renumber(self.source.all_labels())

    def fingerprint(self) -> int:
        """Return a checksum that changes if images are added, removed, renamed, reordered or get other labels.

        It is the crc32 of the labels, the files' names, and the pixels (or stored codes) of SAMPLED images. It does not notice an image that is
        replaced by another of the same name and is not among those sampled.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64))
        if isinstance(self.source, Mixed):
            prints = [part.fingerprint() for part in self.sources.values()]
            return zlib.crc32(np.array(prints, np.int64).data)
        kind, _, place = self.config.source.partition(":")
        prefix = len((os.path.dirname(place) or ".") if kind == "csv" else place.rstrip("/"))
        names = "\n".join(str(path)[prefix:] for path in getattr(self.source, "paths", ()))
        pixels = self.source.stored(rows).astype(np.int32) if isinstance(self.source, Codes) else self._views(rows)
        checksum = zlib.crc32(np.asarray(self.labels, np.int32).data)
        checksum = zlib.crc32(names.encode("utf-8", "surrogateescape"), checksum)
        return zlib.crc32(np.ascontiguousarray(pixels).data, checksum)

    def names_checksum(self) -> int:
        """Return the crc32 of the names of the picture files, relative to the folder of all and in their order; 0 for data without such names."""
        names = [_within(getattr(part.source, "names", ())) for part in self.parts]
        return zlib.crc32(repr(names).encode("utf-8", "surrogatepass")) if any(names) else 0

    def content(self) -> int:
        """Return a checksum of what is stored, whatever the resolution, the view, the decoder and the place of the files.

        It is the crc32 of the number of images, the classes, the labels, the names of picture files, and the pictures as they are stored: all of images in
        memory, else SAMPLED ones. It does not notice another picture of the same name that is not sampled. Of a TFDS set only sampled labels are read.
        """
        if isinstance(self.source, Mixed):
            return zlib.crc32(np.array([part.content() for part in self.sources.values()], np.int64).data)
        rows, names = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64)), getattr(self.source, "names", ())
        checksum = zlib.crc32(repr((len(self), self.class_names, names)).encode("utf-8", "surrogatepass"))
        if not isinstance(self.source, Records):
            checksum = zlib.crc32(np.asarray(self.labels, np.int32).data, checksum)
        if isinstance(self.source, Arrays):
            return zlib.crc32(np.ascontiguousarray(self.source.images).data, checksum)
        if isinstance(self.source, Codes):
            return zlib.crc32(self.source.stored(rows).astype(np.int32).data, checksum)
        for row in rows:
            stored, label = self.source.read(row, _stored)
            checksum = zlib.crc32(repr((stored.shape, label)).encode() + stored.tobytes(), checksum)
        return checksum

    @property
    def parts(self) -> list["Dataset"]:
        """The images of each source of a mixture that has some; the data set itself where it is none."""
        return list(self.sources.values()) if isinstance(self.source, Mixed) else [self]

    @property
    def label_range(self) -> tuple[int, int]:
        """(smallest, largest) label, -1 if images have none. For a TFDS set with named classes a sample of labels and the declared classes are used."""
        if isinstance(self.source, Records) and self.class_names:
            sampled = self.renumber(self.source.some_labels())
            return int(sampled.min()), max(int(sampled.max()), len(self.class_names) - 1)
        if isinstance(self.source, Mixed):
            ranges = [part.label_range for part in self.sources.values()]
            return min(low for low, _ in ranges), max(high for _, high in ranges)
        return int(self.labels.min()), int(self.labels.max())

    def images(self, start: int, stop: int | None, palette: Palette | None = None) -> np.ndarray:
        """Return images start..stop as uint8 [n, H, W, 3] at `image_size`, in evaluation's view.

        `palette` gives the colours of stored codes that have no palette beside them (OpenAI's palette ids). Without one they raise ValueError.
        """
        size = self.config.image_size
        if isinstance(self.source, Arrays) and self.source.images.shape[1:3] == (size, size) and self.config.view != "imagenet":
            return self.source.read_block(start, stop)
        return self.pixels(np.arange(len(self))[start:stop], palette)

    def pixels(self, rows: np.ndarray, palette: Palette | None = None) -> np.ndarray:
        """Return the images of these rows as `images` does."""
        if isinstance(self.source, Mixed):
            side = self.config.image_size
            return self.source.gather(rows, lambda part, own: part.pixels(own, palette), (side, side, 3), np.uint8)
        if isinstance(self.source, Codes):
            palette = palette if self.palette is None else self.palette
            if palette is None:
                raise ValueError(f"{self.config.source} holds palette ids but no colours: put the kmeans_centers.npy they were made with beside them")
            return palette.decode(self.source.read_codes(rows, palette))
        return self._views(rows)

    def codes(self, indices: Any, palette: Palette) -> np.ndarray:
        """Return the images at `indices` as int32 [n, S] codes of the palette, in evaluation's view."""
        indices = np.asarray(indices, np.int64)
        self.check_palette(palette)
        positions = self.config.image_size**2 * palette.tokens_per_pixel
        if isinstance(self.source, Mixed):
            codes = self.source.gather(indices, lambda part, own: part.codes(own, palette), (positions,), np.int32)
        elif isinstance(self.source, Codes):
            codes = self.source.read_codes(indices, palette)
        elif isinstance(self.source, Arrays):
            codes = self._all_codes(palette)[indices]
        else:
            codes = palette.encode(self._views(indices))
        return np.asarray(codes, np.int32).reshape(len(indices), positions)

    def view(self, row: int, uniform: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Return one decoded (image uint8 [size, size, 3], label): evaluation's view, or with `uniform` [3] ImageNet's training view."""
        if isinstance(self.source, Codes):
            raise TypeError(f"{self.config.source} holds codes: read them by `codes`")
        if isinstance(self.source, Mixed):
            ((part, _, own),) = self.source.split(np.array([row]))
            image, label = part.view(int(own[0]), uniform)
            return image, self.renumber(label)
        view: Callable[[Picture], np.ndarray]
        if uniform is None or self.config.augment != "imagenet":
            view = functools.partial(evaluation_view, view=self.config.view, size=self.config.image_size)
        else:
            view = functools.partial(imagenet_crop, uniform=uniform, size=self.config.image_size)
        image, label = self.source.read(row, view)
        return image, self.renumber(label)

    def check_palette(self, palette: Palette) -> None:
        """Raise ValueError if the stored codes were made with another palette than the one given."""
        if self.palette is not None and not np.array_equal(self.palette.centers, palette.centers):
            raise ValueError(
                f"{self.config.source} was coded with another palette ({self.palette.size} colours) than the one given ({palette.size}): "
                "use the palette beside the codes, or code the images again"
            )

    def check_classes(self) -> None:
        """Raise ValueError for a mixture of sources that do not have the same classes."""
        if isinstance(self.source, Mixed) and self.source.disagreement:
            raise ValueError(f"a class head needs sources of the same classes: {self.source.disagreement}")

    @functools.cached_property
    def sources(self) -> dict[str, "Dataset"]:
        """Return the images of each source of a mixture that has some, by its name, with the numbers of images and classes of the whole; {} for other data."""
        if not isinstance(self.source, Mixed):
            return {}
        found = {}
        for name, part, member in zip(self.source.names, self.source.parts, self.source.members(), strict=True):
            rows = np.flatnonzero(member >= 0)
            if len(rows):
                numbers = part.class_numbers if self.class_numbers is None else self.renumber(part.class_numbers)
                found[name] = Dataset(part.config, self.split, part.source.keep(member[rows]), self.numbers(rows), numbers, self.class_names)
        return found

    def renumber(self, labels: Any) -> Any:
        """Return the numbers that labels of the source, -1 unlabelled, have in `class_names`."""
        if self.class_numbers is None:
            return labels
        if not len(self.class_numbers):
            return np.full_like(labels, -1)
        return np.where(np.asarray(labels) < 0, labels, self.class_numbers[labels])

    def _views(self, rows: np.ndarray) -> np.ndarray:
        with concurrent.futures.ThreadPoolExecutor(decoding_threads()) as pool:
            views = list(pool.map(lambda row: self.view(row)[0], rows))
        return np.stack(views) if views else np.zeros((0, self.config.image_size, self.config.image_size, 3), np.uint8)

    def _all_codes(self, palette: Palette) -> np.ndarray:
        if self._encoded is None or self._encoded[0] is not palette:
            blocks = [self.images(start, start + ENCODE_AT_ONCE) for start in range(0, len(self), ENCODE_AT_ONCE)]
            self._encoded = palette, np.concatenate([np.asarray(palette.encode(block), np.uint16) for block in blocks])
        return self._encoded[1]


def decoding_threads() -> int:
    """Return how many threads decode pictures in this process."""
    return min(16, os.cpu_count() or 1)


def _stored(picture: Picture) -> np.ndarray:
    """A picture as it is stored, uint8: the bytes of its file, or its pixels."""
    if isinstance(picture, np.ndarray):
        return picture
    if isinstance(picture, str | os.PathLike):
        return np.fromfile(picture, np.uint8)
    return np.frombuffer(picture.read(), np.uint8)


def _within(names: Sequence[str]) -> list[str]:
    """Names of files relative to the folder that holds all of them: a table may name them by a path that changes when they are moved."""
    common = os.path.commonpath({os.path.dirname(name) for name in names}) if names else ""
    return [os.path.relpath(name, common) if common else name for name in names]
