"""Labels as a source stores them, numbers or names, as the numbers of classes; classes of the same name in two lists of names."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from igpt_jax.data.arrays import as_text
from igpt_jax.data.messages import listed, print_once

ClassNames = tuple[str | int, ...]
MISSING = ("?", "-", "nan", "na", "n/a", "none", "null", "unknown")  # in any case: beside numbers alone they are no classes


def number_labels(values: Sequence[int | str | None], names: Sequence[str], training: ClassNames, where: str) -> tuple[np.ndarray, ClassNames]:
    """Return (labels int32 [N], -1 unlabelled; class names) of the stored labels of a split.

    A label is a number from 0 on, a name, or None, -1 or an empty text for none. `names` are the classes' names as stored with numbers, () if there are none:
    then a class is its number, up to the largest. Without numbers the classes are the sorted names. `training` holds the class names of training, () for
    training itself: a class of this split gets the number that its name has there. Where only one of the two has names, a text that is a whole number, as 1
    or 1.0, is that number. Raises ValueError, which begins with `where`, for a negative number, a number without a name, a class that training lacks, or
    texts that may be numbers as well as names.
    """
    values = [None if value == -1 or (isinstance(value, str) and not value.strip()) else value for value in values]
    if training:
        values, names = _as_training_says(values, names, training, where)
    if any(isinstance(value, str) for value in values):
        texts = [None if value is None else as_text(value) for value in values]
        words = sorted({text for text in texts if text is not None})
        if not training:
            _check_names(words, names, where)
        own: ClassNames = tuple(words)
        number = {name: i for i, name in enumerate(own)}
        labels = np.array([-1 if text is None else number[text] for text in texts], np.int64)
    else:
        labels = np.array([-1 if value is None else value for value in values], np.int64)
        low, high = int(labels.min(initial=0)), int(labels.max(initial=-1))
        if low < -1 or high >= 2**31:
            raise ValueError(f"{where} holds labels from {low} to {high}: number the classes from 0 on (-1: none)")
        _check_named(high, names, where)
        own = tuple(as_text(name) for name in names) or tuple(range(high + 1))
    return _as_in_training(labels, own, training, where).astype(np.int32), training or own


def from_texts(texts: Sequence[str | None], training: ClassNames, where: str) -> list[int | str | None]:
    """Return labels written as text as numbers if all of them are whole numbers (and the classes of training have no names), else as names; "" is none.

    1.0 is the number 1. Raises ValueError, which begins with `where`, for 01 beside 1: one number, and maybe two names.
    """
    words = {text for text in texts if text}
    numbers = {word: _whole_number(word) for word in words}
    if None in numbers.values() or are_names(training):
        return [text or None for text in texts]
    if twice := _of_one_number({word.partition(".")[0] for word in words}):
        raise ValueError(f"{where} holds the labels {listed(twice)}, which are one number: write it in one way")
    return [numbers[text] if text else None for text in texts]


def are_names(classes: Sequence[str | int]) -> bool:
    """Return whether classes have names; without names they are numbers."""
    return any(isinstance(name, str) for name in classes)


def _whole_number(text: str) -> int | None:
    """Return the whole number from 0 on, or -1, that a text is, also one written as 1.0; None for any other text."""
    found = re.fullmatch(r"([0-9]+|-1)(\.0*)?", text.strip())
    return int(found[1]) if found else None


def _of_one_number(words: Iterable[str]) -> list[str]:
    """Return the first texts that are the same whole number, sorted; [] if there are none."""
    spelled: dict[int, list[str]] = {}
    for word in sorted(words):
        if (number := _whole_number(word)) is not None:
            spelled.setdefault(number, []).append(word)
    return next((same for same in spelled.values() if len(same) > 1), [])


def _check_named(high: int, names: Sequence[str], where: str) -> None:
    if names and high >= len(names):
        raise ValueError(f"{where} holds label {high}, but only {len(names)} classes have names: {listed(names)}")


def _check_names(own: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refuse texts that are names of classes only because some of them are no numbers, where the others look like numbers; else a line says so."""
    if twice := _of_one_number(own):
        raise ValueError(f"{where} holds the labels {listed(twice)}, which are one number: write it in one way")
    others = [text for text in own if _whole_number(text) is None]
    if not 0 < len(others) < len(own):
        return
    found = f"{where} holds the label {listed(others)} beside whole numbers"
    if names or all(text.strip().casefold() in MISSING for text in others):
        raise ValueError(f"{found}: leave it empty where a picture has no label, or number all classes")
    print_once(f"{found}: all labels are names of classes, {len(own):,} of them")


def _as_training_says(
    values: list[int | str | None], names: Sequence[str], training: ClassNames, where: str
) -> tuple[list[int | str | None], Sequence[str]]:
    """Return labels and names of a split as names if the classes of training have names, else as numbers; ValueError for those that are no numbers."""
    if are_names(training):
        return (values, names) if names else ([str(value) if isinstance(value, int) else value for value in values], names)
    _check_named(max((value for value in values if isinstance(value, int)), default=-1), names, where)
    named = [names[value] if names and isinstance(value, int) and value >= 0 else value for value in values]
    numbers = {word: _whole_number(word) for word in named if isinstance(word, str)}
    if strange := sorted(word for word, number in numbers.items() if number is None):
        way_out = "leave it empty where a picture has no label, or name the classes of both"
        raise ValueError(f"{where} holds the label {listed(strange)}, but the classes of training are the numbers {listed(training)}: {way_out}")
    return [numbers[word] if isinstance(word, str) else word for word in named], ()


def _as_in_training(labels: np.ndarray, own: ClassNames, training: ClassNames, where: str) -> np.ndarray:
    """Return the labels with the numbers that their classes have in training: by name if they have names, else unchanged."""
    if not training or own == training:
        return labels
    used = np.unique(labels[labels >= 0])
    if are_names(training):
        numbers = np.array([training.index(name) if training.count(name) == own.count(name) == 1 else -1 for name in own], np.int64)
        if unknown := [own[label] for label in used if numbers[label] < 0]:
            raise ValueError(f"{where} holds {listed(unknown)}, which training lacks or has twice: {listed(training)}")
        return np.where(labels < 0, labels, numbers[labels] if len(own) else -1)
    if len(used) and used[-1] >= len(training):
        raise ValueError(f"{where} holds labels up to {used[-1]}, but training has the {len(training)} classes {listed(training)}")
    return labels


def class_numbers(names: Sequence[str | int], model_names: Sequence[str | int]) -> np.ndarray:
    """Return the number among `model_names` of each of `names`, int [len(names)]; -1 if none matches, or more than one.

    Names match that are equal in any Unicode form; one that is left then matches one that differs only in case and blanks.
    """
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
