"""Which class of a data set is which class of a model: classes are matched by name."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from igpt_jax.data.messages import listed
from igpt_jax.data.sources import Dataset
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
    if not (_are_names(own) and _are_names(names)):
        nameless = f"{model if _are_names(own) else source} has no names of classes"
        fits = len(own) == len(names) if every or _are_names(own) else dataset.labels.max(initial=-1) < len(names)
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


def class_numbers(names: Sequence[str | int], model_names: Sequence[str | int]) -> np.ndarray:
    """Return the number among `model_names` of each of `names`, int [len(names)]; -1 if none matches, or more than one."""
    numbers = np.full(len(names), -1)
    for form in (_composed, _without_case_and_blanks):
        free = [number for number in range(len(model_names)) if number not in numbers]
        candidates = [form(model_names[number]) for number in free]
        wanted = [form(name) if number < 0 else None for name, number in zip(names, numbers, strict=True)]
        places, times_offered, times_wanted = dict(zip(candidates, free, strict=True)), Counter(candidates), Counter(wanted)
        for index, name in enumerate(wanted):
            if name is not None and times_offered[name] == times_wanted[name] == 1:
                numbers[index] = places[name]
    return numbers


def _composed(name: str | int) -> str:
    return unicodedata.normalize("NFC", str(name))


def _without_case_and_blanks(name: str | int) -> str:
    return unicodedata.normalize("NFC", " ".join(str(name).split()).casefold())


def _are_names(classes: Sequence[str | int]) -> bool:
    return any(isinstance(name, str) for name in classes)
