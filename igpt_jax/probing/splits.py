"""The images of a probe: which are for training, validation and test, their labels, and the vote of several masks."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from igpt_jax.data.messages import listed
from igpt_jax.probing.store import Description, command, mask_count
from igpt_jax.types import PathLike

HOLD_OUT = 0.1  # share of the training images that become the validation split if the folder has none
HOLD_OUT_SEED = 0
FEW = 20  # images: with fewer, the 95 % interval of an accuracy of 50 % is wider than 40 points


class Sample(NamedTuple):
    """Images of a probe: features float32 [L, B, D], labels int [B], and in `more` the features of the same images under masks 1, 2, ..."""

    features: np.ndarray
    labels: np.ndarray
    more: tuple[np.ndarray, ...] = ()


class Splits:
    """The splits of a features folder: `rows` (part -> (split on disk, image numbers)), `labels` and `masks` of each part, and the number of `classes`.

    A part is train, validation or test. Without a validation split, a tenth of the training images is held out as one; `chosen_on` says which it is.
    `stored` holds all labels of each split on disk, int [N].
    """

    def __init__(self, directory: PathLike, description: Description, seed: int = HOLD_OUT_SEED):
        """Raises ValueError if no probe can be trained with these labels."""
        self.directory, self.description, counts = directory, description, description["counts"]
        self.stored = stored = {split: np.load(pathlib.Path(directory) / split / "labels.npy") for split in counts}
        if "train" not in stored:
            program = command(description, directory, ["train"])
            raise ValueError(f"{directory} has no train split, only {', '.join(stored)}: add it with {program}")
        self.classes = _count_classes(stored, description["class_names"])
        self.rows = {split: (split, np.arange(len(labels))) for split, labels in stored.items() if len(labels)}
        self.chosen_on = "the validation split"
        if "validation" not in self.rows:
            order = np.random.default_rng(seed).permutation(counts["train"])
            held_out = max(1, round(HOLD_OUT * len(order)))
            self.rows |= {"train": ("train", np.sort(order[held_out:])), "validation": ("train", np.sort(order[:held_out]))}
            self.chosen_on = f"{held_out} training images held out (seed {seed}), there being no validation split"
        self.labels = {part: stored[split][rows] for part, (split, rows) in self.rows.items()}
        self.masks = {part: mask_count(description, split) for part, (split, _) in self.rows.items()}

    def doubts(self) -> list[str]:
        """Sentences on validation or test images that are few, or lack classes of the training images: accuracy on them says little."""
        names = self.description["class_names"] or range(self.classes)
        trained, found = np.unique(self.labels["train"]), []
        for part, use in (("validation", "to choose the settings and the best layer by"), ("test", "and accuracy on so few says little")):
            labels = self.labels.get(part)
            if labels is not None and len(labels) < FEW:
                found.append(f"there {'is' if len(labels) == 1 else 'are'} {len(labels)} {part} image{'s' * (len(labels) != 1)}, {use}")
        if "test" in self.labels and len(missing := np.setdiff1d(trained, self.labels["test"])):
            named = listed(names[label] for label in missing)
            found.append(f"{len(missing)} of {len(trained)} classes of the training images have no test image ({named}): test accuracy says nothing of them")
        return found

    def samples(self, read: Callable[[str, int], np.ndarray], masked: bool = True) -> tuple[Sample, Sample, Sample | None]:
        """Samples of training, validation and test (None without one). `read(split, mask)` returns the features of a split on disk, [L, N, D]."""
        features: dict[tuple[str, int], np.ndarray] = {}  # each is read once, also where training and validation images are of one split

        def sample(part: str) -> Sample:
            split, rows = self.rows[part]
            sets = []
            for mask in range(self.masks[part] if masked else 1):
                if (split, mask) not in features:
                    features[split, mask] = read(split, mask)
                stored = features[split, mask]
                sets.append(stored if len(rows) == stored.shape[1] else stored[:, rows])
            return Sample(sets[0], self.labels[part], tuple(sets[1:]))

        return sample("train"), sample("validation"), sample("test") if "test" in self.rows else None


def vote(classes: np.ndarray, seed: int = 0) -> np.ndarray:
    """The most frequent of M predicted classes, int [..., M, B] -> [..., B] (paper 2.4). A tie is broken at random, always alike for the same image."""
    classes = np.asarray(classes)
    agreeing = sum((classes == classes[..., mask : mask + 1, :]).astype(np.float32) for mask in range(classes.shape[-2]))
    # tied classes have equally many masks, so the mask with the largest random number is a fair draw between the classes
    winner = (agreeing + 0.5 * np.random.default_rng(seed).random(classes.shape[-2:])).argmax(axis=-2)
    return np.take_along_axis(classes, winner[..., None, :], axis=-2)[..., 0, :]


def _count_classes(stored: dict[str, np.ndarray], class_names: list[str]) -> int:
    """Check the labels and return the number of classes."""
    for split, labels in stored.items():
        if unlabelled := int((labels < 0).sum()):
            raise ValueError(f"{unlabelled} of {len(labels)} {split} images have no label: a linear probe needs labelled images")
    largest = max(int(labels.max(initial=0)) for labels in stored.values())
    if class_names and largest >= len(class_names):
        raise ValueError(f"label {largest} is outside the {len(class_names)} classes of features.json: write the features again")
    if len(np.unique(stored["train"])) < 2:
        raise ValueError(f"all {len(stored['train'])} training images are of one class: a probe needs at least two")
    return len(class_names) or largest + 1
