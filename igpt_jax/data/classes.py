"""Which class of a data set is which class of a model: classes are matched by name."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from igpt_jax.data.dataset import Dataset
from igpt_jax.data.labels import ClassNames, are_names, class_numbers
from igpt_jax.data.messages import listed
from igpt_jax.distributed.multihost import note

NAMES_LISTED = 20  # of each side, in an error message


def match_classes(
    dataset: Dataset,
    names: Sequence[str | int] | None,
    model: str,
    way_out: str = "",
    every: bool = False,
    say: Callable[[str], object] | None = None,
) -> Dataset:
    """Return the data set with the class numbers of a model whose classes are `names` (str; int if its own data had no names; None if not known).

    Classes match whose names are equal in any Unicode form. A name that is left then matches one that differs only in case and blanks. If one side
    has no names, the numbers are used as they are, and a line says so. Raises ValueError with both lists if images belong to a class that the model
    lacks, or with `every` if the two sets of classes are not the same. `model` is the model's name in messages, `way_out` their end; `say` prints
    the line (None: `note`).
    """
    source, own, say = dataset.config.source, dataset.class_names, say or note
    if own == names:
        return dataset
    if names is None:
        say(f"{model} does not say its classes, those of {source} are matched by number")
        return dataset
    both = f"classes of {source}: {listed(own, NAMES_LISTED)}; of {model}: {listed(names, NAMES_LISTED)}{way_out}"
    if not (are_names(own) and are_names(names)):
        nameless = f"{model if are_names(own) else source} has no names of classes"
        fits = len(own) == len(names) if every or are_names(own) else dataset.labels.max(initial=-1) < len(names)
        if not fits:
            raise ValueError(f"{nameless}, and their numbers do not fit: {both}")
        say(f"{nameless}: those of {source} and of {model} are matched by number")
        return dataset.renumbered(np.arange(max(len(own), len(names))), names)
    numbers = class_numbers(own, names)
    used = np.arange(len(own)) if every else np.unique(dataset.labels[dataset.labels >= 0])
    lacking = [own[label] for label in used if numbers[label] < 0]
    if lacking:
        raise ValueError(f"{source} has {listed(lacking, NAMES_LISTED)}, which {model} lacks or has twice: {both}")
    if every and (unused := [name for number, name in enumerate(names) if number not in numbers]):
        raise ValueError(f"{source} lacks {listed(unused, NAMES_LISTED)} of {model}: {both}")
    return dataset.renumbered(numbers, names)


def names_of_splits(datasets: Mapping[str, Dataset]) -> ClassNames:
    """Return the class names that the splits of a source have in common; ValueError where a class has another name or number in one of them.

    A split without classes fits any. Classes that are numbers are the same in all splits, of which the longest list is returned.
    """
    found = {split: dataset.class_names for split, dataset in datasets.items() if dataset.class_names}
    names = max(found.values(), key=len, default=())
    first = next((split for split, own in found.items() if own == names), "")
    for split, own in found.items():
        if own != names and (are_names(own) or are_names(names)):
            both = f"{listed(names, NAMES_LISTED)} in {first}, {listed(own, NAMES_LISTED)} in {split}"
            raise ValueError(f"{datasets[split].config.source} numbers its classes in several ways: {both}. Give its splits the same classes, in one order")
    return names
