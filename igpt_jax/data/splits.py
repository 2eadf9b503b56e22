"""The splits of a data set: their names, how folders and files spell them, and which stored parts make up a split."""

import itertools
import unicodedata
from collections.abc import Collection

SPLITS = ("train", "validation", "test", "all_train")  # all_train is train and validation
SPELLINGS = {"train": ("train", "training"), "validation": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
SPLIT_LIKE = {*itertools.chain(*SPELLINGS.values()), "trainset", "trainval", "valset", "devset", "testset", "eval", "evaluation", "holdout"}


def split_of(name: str) -> str | None:
    """Return the split that a folder, a file or a word is named after, in any case and Unicode form, or None."""
    word = unicodedata.normalize("NFKC", name).strip().casefold()
    return next((split for split, spellings in SPELLINGS.items() if word in spellings), None)


def parts_of(split: str, stored: Collection[str]) -> tuple[str, ...]:
    """Return the parts that make up a split: for `all_train` train, and validation if it is among the `stored` parts; else the split itself."""
    if split != "all_train":
        return (split,)
    return ("train", "validation") if "validation" in stored else ("train",)
