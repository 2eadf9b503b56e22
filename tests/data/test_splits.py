"""Names of splits, and the stored parts that make up a split."""

import pytest

from igpt_jax.data.splits import parts_of, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), (" Training", "train"), ("DEV", "validation"), ("\uff54\uff45\uff53\uff54", "test"), ("train2", None), ("", None)],
)
def test_a_name_is_that_of_a_split_in_any_case_and_unicode_form(name, split):
    assert split_of(name) == split


def test_all_train_has_the_validation_images_that_are_stored():
    assert parts_of("all_train", {"train", "test"}) == ("train",) and parts_of("all_train", {"train", "validation"}) == ("train", "validation")
    assert [parts_of(split, {"train", "validation"}) for split in ("train", "validation", "test")] == [("train",), ("validation",), ("test",)]
