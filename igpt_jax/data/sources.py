"""Opens the sources of images: their splits, and the images of a split as pixels, views and codes.

A source has `len`, `class_names` (str, or the classes' numbers if they have no names), `all_labels()` -> int32 [N] (-1 unlabelled), `keep(rows)` -> a source,
and `read(row, view)` -> (what `view` makes of the stored picture, uint8 [H, W, 3], label), or for stored codes `read_codes(rows, palette)`. Each kind has a
file of its own in this folder.
"""

import concurrent.futures
import functools
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from igpt_jax.data.arrays import Arrays, open_digits
from igpt_jax.data.codes import Codes, coded_parts, open_codes, open_openai_arrays, openai_parts
from igpt_jax.data.config import DataConfig
from igpt_jax.data.folder import Folder, folder_splits, open_folder
from igpt_jax.data.images import CROP, Picture, evaluation_view, imagenet_crop
from igpt_jax.data.messages import count_classes, print_once
from igpt_jax.data.npz import npz_files, open_npz
from igpt_jax.data.splits import SPLITS
from igpt_jax.data.tfds import Records, open_tfds, tfds_parts
from igpt_jax.palette.palette import Palette

SAMPLED = 64  # images that `fingerprint` reads
ENCODE_AT_ONCE = 2048  # images in one call of the palette
Source: TypeAlias = Arrays | Folder | Records | Codes


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
        return self._renumber(self.source.all_labels())

    def fingerprint(self) -> int:
        """Return a checksum that changes if images are added, removed, renamed, reordered or get other labels.

        It is the crc32 of the labels, the files' names, and the pixels (or stored codes) of SAMPLED images. It does not notice an image that is
        replaced by another of the same name and is not among those sampled.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64))
        prefix = len(self.config.source.partition(":")[2].rstrip("/"))
        names = "\n".join(str(path)[prefix:] for path in getattr(self.source, "paths", ()))
        pixels = self.source.stored(rows).astype(np.int32) if isinstance(self.source, Codes) else self._views(rows)
        checksum = zlib.crc32(np.asarray(self.labels, np.int32).data)
        checksum = zlib.crc32(names.encode("utf-8", "surrogateescape"), checksum)
        return zlib.crc32(np.ascontiguousarray(pixels).data, checksum)

    @property
    def label_range(self) -> tuple[int, int]:
        """(smallest, largest) label, -1 if images have none. For a TFDS set with named classes a sample of labels and the declared classes are used."""
        if isinstance(self.source, Records) and self.class_names:
            sampled = self._renumber(self.source.some_labels())
            return int(sampled.min()), max(int(sampled.max()), len(self.class_names) - 1)
        return int(self.labels.min()), int(self.labels.max())

    def images(self, start: int, stop: int | None, palette: Palette | None = None) -> np.ndarray:
        """Return images start..stop as uint8 [n, H, W, 3] at `image_size`, in evaluation's view.

        `palette` gives the colours of stored codes that have no palette beside them (OpenAI's palette ids). Without one they raise ValueError.
        """
        rows, size = np.arange(len(self))[start:stop], self.config.image_size
        if isinstance(self.source, Codes):
            palette = palette if self.palette is None else self.palette
            if palette is None:
                raise ValueError(f"{self.config.source} holds palette ids but no colours: put the kmeans_centers.npy they were made with beside them")
            return palette.decode(self.source.read_codes(rows, palette))
        if isinstance(self.source, Arrays) and self.source.images.shape[1:3] == (size, size) and self.config.view != "imagenet":
            return self.source.read_block(start, stop)
        return self._views(rows)

    def codes(self, indices: Any, palette: Palette) -> np.ndarray:
        """Return the images at `indices` as int32 [n, S] codes of the palette, in evaluation's view."""
        indices = np.asarray(indices, np.int64)
        self.check_palette(palette)
        if isinstance(self.source, Codes):
            codes = self.source.read_codes(indices, palette)
        elif isinstance(self.source, Arrays):
            codes = self._all_codes(palette)[indices]
        else:
            codes = palette.encode(self._views(indices))
        return np.asarray(codes, np.int32).reshape(len(indices), -1)

    def view(self, row: int, uniform: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Return one decoded (image uint8 [size, size, 3], label): evaluation's view, or with `uniform` [3] ImageNet's training view."""
        if isinstance(self.source, Codes):
            raise TypeError(f"{self.config.source} holds codes: read them by `codes`")
        view: Callable[[Picture], np.ndarray]
        if uniform is None or self.config.augment != "imagenet":
            view = functools.partial(evaluation_view, view=self.config.view, size=self.config.image_size)
        else:
            view = functools.partial(imagenet_crop, uniform=uniform, size=self.config.image_size)
        image, label = self.source.read(row, view)
        return image, self._renumber(label)

    def check_palette(self, palette: Palette) -> None:
        """Raise ValueError if the stored codes were made with another palette than the one given."""
        if self.palette is not None and not np.array_equal(self.palette.centers, palette.centers):
            raise ValueError(
                f"{self.config.source} was coded with another palette ({self.palette.size} colours) than the one given ({palette.size}): "
                "use the palette beside the codes, or code the images again"
            )

    def _renumber(self, labels: Any) -> Any:
        return labels if self.class_numbers is None else np.where(np.asarray(labels) < 0, labels, self.class_numbers[labels])

    def _views(self, rows: np.ndarray) -> np.ndarray:
        with concurrent.futures.ThreadPoolExecutor(decoding_threads()) as pool:
            views = list(pool.map(lambda row: self.view(row)[0], rows))
        return np.stack(views) if views else np.zeros((0, self.config.image_size, self.config.image_size, 3), np.uint8)

    def _all_codes(self, palette: Palette) -> np.ndarray:
        if self._encoded is None or self._encoded[0] is not palette:
            blocks = [self.images(start, start + ENCODE_AT_ONCE) for start in range(0, len(self), ENCODE_AT_ONCE)]
            self._encoded = palette, np.concatenate([np.asarray(palette.encode(block), np.uint16) for block in blocks])
        return self._encoded[1]


def stored_parts(config: DataConfig) -> set[str]:
    """Return which of train, validation and test a source has of its own; the test pictures drawn from an undivided folder count."""
    kind, _, place = config.source.partition(":")
    match kind:
        case "npz":
            return set(npz_files(place))
        case "folder":
            return set(folder_splits(place)) or {"train", "test"}
        case "tfds":
            return tfds_parts(place, config.directory)
        case "codes":
            return coded_parts(place)
        case "npy":
            return openai_parts(place)
        case "digits":
            return {"train", "test"}
    raise AssertionError(kind)  # DataConfig knows no other


def splits_of(config: DataConfig) -> tuple[str, ...]:
    """Return those of train, validation and test that the data have, including validation images held out of training."""
    parts = stored_parts(config)
    return tuple(split for split in SPLITS[:3] if split in parts or (split == "validation" and config.validation and "train" in parts))


def open_dataset(config: DataConfig, split: str) -> Dataset:
    """Open a split: train, validation (held out of the training images, or the data's own), test, or all_train (train and validation)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: one of {', '.join(SPLITS)}")
    kind = config.source.partition(":")[0]
    # The validation split of TFDS is not used for validation: ImageNet's is the paper's test set.
    own = split != "test" and kind not in ("digits", "tfds") and "validation" in stored_parts(config)
    source = _open_source(config, split, split if own or split == "test" else "train")
    if not len(source):
        raise ValueError(f"{config.source} has no images in its {split} split")
    if own and config.validation and kind != "npy":
        print_once(f"{config.source} has validation images of its own: config.data.validation {config.validation} is not used")
    if split in ("train", "validation") and not own:
        source = _hold_out(config, source, split)
    dataset = Dataset(config, split, source)
    if kind == "folder":
        print_once(f"{config.source}, {split}: {count_classes(dataset.labels, dataset.class_names)}")
    if isinstance(source, Arrays) and config.view == "imagenet" and source.images.shape[1:3] == (config.image_size,) * 2:
        size = f"{config.image_size} x {config.image_size}"
        print_once(f"{config.source} has images of {size}, which view imagenet enlarges to {CROP} and shrinks: center_square leaves them unchanged")
    return dataset


def decoding_threads() -> int:
    """Return how many threads decode pictures in this process."""
    return min(16, os.cpu_count() or 1)


def _open_source(config: DataConfig, split: str, part: str) -> Source:
    """Open the source of a split; `part` is the stored part that the split's images are in."""
    kind, _, place = config.source.partition(":")
    match kind:
        case "digits":
            return open_digits(part)
        case "npz":
            return open_npz(place, part)
        case "folder":
            return open_folder(place, part, config.seed, config.split_by)
        case "tfds":
            return open_tfds(place, part, config.directory)
        case "codes":
            return open_codes(place, part, config.image_size, config.view)
        case "npy":
            return open_openai_arrays(place, split, config.image_size)
    raise AssertionError(kind)  # DataConfig knows no other


def _hold_out(config: DataConfig, source: Source, split: str) -> Source:
    """Return the training images without those held out for validation, or those held out, as `split` says.

    A picture file is held out by its name alone; for other sources the draw depends on the number of images.
    """
    if isinstance(source, Folder) and config.split_by == "name":
        held_out = source.draws(config.seed, "validation") < config.validation
    else:
        order = np.random.RandomState([config.seed, 0]).permutation(len(source))  # numpy guarantees RandomState's stream for ever
        held_out = np.isin(np.arange(len(source)), order[: round(len(source) * config.validation)])
    chosen = source.keep(np.flatnonzero(held_out if split == "validation" else ~held_out))
    if not len(chosen):
        raise ValueError(f"validation {config.validation} of {len(source)} images of {config.source} leaves none for {split}")
    return chosen
