"""The source of pictures that are stored encoded inside larger files: tables of the datasets library, tar files, array records."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from igpt_jax.data.failures import Failures, rows_of_same_label
from igpt_jax.data.images import Picture, decoded


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Encoded pictures read at random by their number, and decoded by `images`, so the same rules hold for all sources."""

    name: str
    stored: Any  # stored[number] -> Picture; ValueError if there is none. It is pickled for Grain's workers
    rows: np.ndarray  # int [N], numbers in `stored`
    labels: np.ndarray  # int32 [N], -1 unlabelled
    class_names: tuple[str | int, ...]
    failures: Failures

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, rows: np.ndarray) -> "Pictures":
        """Return the images of these rows alone."""
        return dataclasses.replace(self, rows=self.rows[rows], labels=self.labels[rows], failures=Failures(self.name, len(rows)))

    def read(self, row: int, view: Callable[[Picture], np.ndarray] = decoded) -> tuple[np.ndarray, int]:
        """Return (view of the picture, uint8 [H, W, 3], label), or that of another one of its label if it cannot be decoded."""
        decode = functools.partial(self._decode, view=view)
        return self.failures.first_readable(decode, rows_of_same_label(row, len(self), self.labels.__getitem__))

    def all_labels(self) -> np.ndarray:
        """Return the labels of all images, int [N]; -1 where there is none."""
        return self.labels

    def _decode(self, row: int, view: Callable[[Picture], np.ndarray]) -> tuple[np.ndarray, int]:
        return view(self.stored[int(self.rows[row])]), int(self.labels[row])
