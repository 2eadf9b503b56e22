"""Opens the sources of images: their splits, and which images are held out.

A source has `len`, `class_names` (str, or the classes' numbers if they have no names), `all_labels()` -> int32 [N] (-1 unlabelled), `keep(rows)` -> a source,
and `read(row, view)` -> (what `view` makes of the stored picture, uint8 [H, W, 3], label), or for stored codes `read_codes(rows, palette)`. Each kind has a
file of its own in this folder.
"""

import numpy as np

from igpt_jax.data.arrays import Arrays, open_digits
from igpt_jax.data.codes import coded_parts, open_codes, open_openai_arrays, openai_parts
from igpt_jax.data.config import DataConfig
from igpt_jax.data.csv_files import csv_parts, open_csv
from igpt_jax.data.dataset import Dataset, Source
from igpt_jax.data.folder import Folder, folder_splits, open_folder
from igpt_jax.data.hf import hf_parts, open_hf
from igpt_jax.data.images import CROP
from igpt_jax.data.messages import count_classes, print_once
from igpt_jax.data.mixture import ROUND, mix, short_names
from igpt_jax.data.npz import npz_files, open_npz
from igpt_jax.data.pictures import Pictures
from igpt_jax.data.splits import SPLITS
from igpt_jax.data.tfds import open_tfds, tfds_parts
from igpt_jax.data.wds import open_wds, wds_parts


def stored_parts(config: DataConfig) -> set[str]:
    """Return which of train, validation and test a source has of its own; the test pictures drawn from an undivided folder count."""
    if mixture := config.mixture():
        return set().union(*(stored_parts(part) for part, _ in mixture))
    kind, _, place = config.source.partition(":")
    match kind:
        case "npz":
            return set(npz_files(place))
        case "folder":
            return set(folder_splits(place)) or {"train", "test"}
        case "csv":
            return csv_parts(place)
        case "hf":
            return hf_parts(place)
        case "wds":
            return wds_parts(place)
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
    if mixture := config.mixture():
        return tuple(split for split in SPLITS[:3] if any(split in splits_of(part) for part, _ in mixture))
    parts = stored_parts(config)
    return tuple(split for split in SPLITS[:3] if split in parts or (split == "validation" and config.validation and "train" in parts))


def open_dataset(config: DataConfig, split: str) -> Dataset:
    """Open a split: train, validation (held out of the training images, or the data's own), test, or all_train (train and validation)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: one of {', '.join(SPLITS)}")
    if config.mixture():
        return _open_mixture(config, split)
    kind = config.source.partition(":")[0]
    own = split != "test" and _has_own_validation(config)
    source = _open_source(config, split, split if own or split == "test" else "train")
    if not len(source):
        raise ValueError(f"{config.source} has no images in its {split} split")
    if own and config.validation and kind != "npy":
        print_once(f"{config.source} has validation images of its own: config.data.validation {config.validation} is not used")
    if split in ("train", "validation") and not own:
        source = _hold_out(config, source, split)
    dataset = Dataset(config, split, source)
    if isinstance(source, Folder | Pictures):
        print_once(f"{config.source}, {split}: {count_classes(dataset.labels, dataset.class_names)}")
    if isinstance(source, Arrays) and config.view == "imagenet" and source.images.shape[1:3] == (config.image_size,) * 2:
        size = f"{config.image_size} x {config.image_size}"
        print_once(f"{config.source} has images of {size}, which view imagenet enlarges to {CROP} and shrinks: center_square leaves them unchanged")
    return dataset


def _has_own_validation(config: DataConfig) -> bool:
    # The validation split of TFDS is not used for validation: ImageNet's is the paper's test set.
    return config.source.partition(":")[0] not in ("digits", "tfds") and "validation" in stored_parts(config)


def _open_mixture(config: DataConfig, split: str) -> Dataset:
    """Open a split of a mixture: training images of all sources, or the validation or test images of those that have some."""
    mixture = config.mixture()
    having = [(part, share) for part, share in mixture if split in ("train", "all_train") or split in splits_of(part)]
    if not having:
        raise ValueError(f"none of the sources of {config.source} has {split} images")
    if lacking := [part.source for part, _ in mixture if part not in [one for one, _ in having]]:
        print_once(f"{split} images of the mixture: none from {', '.join(lacking)}")
    names = dict(zip([part.source for part, _ in mixture], short_names([part.source for part, _ in mixture]), strict=True))
    parts = [open_dataset(part, split) for part, _ in having]
    training = _training_parts([part for part, _ in mixture], parts)
    source = mix(parts, [names[part.source] for part, _ in having], tuple(share for _, share in having), training)
    if split in ("train", "all_train"):
        drawn = ", ".join(f"{share / ROUND:.2%} from the {len(data):,} of {part.source}" for (part, share), data in zip(having, parts, strict=True))
        print_once(f"training draws its images {drawn}" + (f"; unlabelled, because {source.disagreement}" if source.disagreement else ""))
    elif source.disagreement:
        print_once(f"{split} images of the mixture: unlabelled, because {source.disagreement}")
    return Dataset(config, split, source)


def _training_parts(configs: list[DataConfig], parts: list[Dataset]) -> list[Dataset]:
    """Return a data set of each source with the classes of its training images: one of `parts` whose images are among these, or these images, opened."""
    of_training = {part.config.source: part for part in parts if part.split == "train" or (part.split != "test" and not _has_own_validation(part.config))}
    return [of_training[config.source] if config.source in of_training else open_dataset(config, "train") for config in configs]


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
        case "csv":
            return open_csv(place, part, config.seed, config.split_by)
        case "hf":
            return open_hf(place, part)
        case "wds":
            return open_wds(place, part)
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
