"""Which class of a data set is which class of a model: matched by name."""

import unicodedata
from collections import Counter
from functools import partial

import numpy as np

from igpt_jax.distributed.multihost import note


def match_classes(dataset, names, model, way_out="", every=False, say=None):
    """The data set with the class numbers of a model whose classes are `names` (str; int where its own data had no names; None: not known).

    Classes are the same whose names are, in any Unicode form; a name without its like then matches one that differs in case and blanks alone.
    Where one side has no names, the numbers are taken as they are, and a line says so. ValueError with both lists where images are of a class that the
    model lacks, or with `every` where the classes are not the same ones. `model` is how messages call it, `way_out` how they end, `say` what tells
    the line (None: `note`).
    """
    source, theirs, say = dataset.config.source, dataset.class_names, say or note
    if theirs == names:
        return dataset
    if names is None:
        say(f"{model} does not say its classes, those of {source} are matched by number")
        return dataset
    both = f"classes of {source}: {_listed(theirs)}; of {model}: {_listed(names)}{way_out}"
    if not (_are_names(theirs) and _are_names(names)):
        nameless = f"{model if _are_names(theirs) else source} has no names of classes"
        fits = len(theirs) == len(names) if every or _are_names(theirs) else dataset.labels.max(initial=-1) < len(names)
        if not fits:
            raise ValueError(f"{nameless}, and their numbers do not fit: {both}")
        say(f"{nameless}: those of {source} and of {model} are matched by number")
        return dataset.renumbered(np.arange(max(len(theirs), len(names))), names)
    numbers = class_numbers(theirs, names)
    used = np.arange(len(theirs)) if every else np.unique(dataset.labels[dataset.labels >= 0])
    lacking = [theirs[label] for label in used if numbers[label] < 0]
    if lacking:
        raise ValueError(f"{source} has {_listed(lacking)}, which {model} lacks or has twice: {both}")
    if every and (unused := [name for number, name in enumerate(names) if number not in numbers]):
        raise ValueError(f"{source} lacks {_listed(unused)} of {model}: {both}")
    return dataset.renumbered(numbers, names)


def class_numbers(theirs, ours) -> np.ndarray:
    """Which of the names `ours` each of `theirs` is, int [len(theirs)]; -1: none, or not one alone."""
    found = np.full(len(theirs), -1)
    for form in (partial(unicodedata.normalize, "NFC"), lambda name: unicodedata.normalize("NFC", " ".join(name.split()).casefold())):
        free = [number for number in range(len(ours)) if number not in found]
        given, wanted = [form(ours[number]) for number in free], [form(name) if number < 0 else None for name, number in zip(theirs, found, strict=True)]
        places, times = dict(zip(given, free, strict=True)), (Counter(given), Counter(wanted))
        for index, name in enumerate(wanted):
            if name is not None and times[0][name] == times[1][name] == 1:
                found[index] = places[name]
    return found


def _are_names(classes):
    return any(isinstance(name, str) for name in classes)


def _listed(names, most=20):
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
