"""The part of a recipe that says which images are read: what is refused, defaults of older recipes, other sources for a model."""

import dataclasses

import numpy as np
import pytest

from igpt_jax.data import pipeline
from tests.data.samples import DIGITS, replace


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "imagenet"}, "source 'imagenet' is unknown"),
        ({"source": "folder:"}, "is unknown"),
        ({"source": "digits:x"}, "is unknown"),
        ({"augment": "flip"}, "augment 'flip' is unknown: one of none, cifar, imagenet"),
        ({"source": "codes:x", "augment": "imagenet"}, "which codes cannot"),
        ({"image_size": 0}, "image_size must be a whole number of at least 1, not 0"),
        ({"workers": -1}, "workers must be a whole number of at least 0, not -1"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"validation": 1.0}, "validation"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        replace(DIGITS, **changes)
    assert "\n" not in str(caught.value)


def test_a_recipe_from_before_the_view_has_the_one_that_its_augmentation_implied(monkeypatch):
    for augment, view in (("none", "center_square"), ("cifar", "center_square"), ("imagenet", "imagenet")):
        assert replace(DIGITS, augment=augment, view="").view == view
    assert replace(DIGITS, source="folder:x", split_by="").split_by == "position" and replace(DIGITS, split_by="").split_by == "name"
    kept = replace(DIGITS, source="folder:x", augment="imagenet", view="squash", split_by="name")
    assert (kept.view, kept.split_by) == ("squash", "name")
    with pytest.raises(ValueError, match="view 'crop' is unknown: one of center_square, imagenet, squash"):
        replace(DIGITS, view="crop")


def test_another_source_is_seen_as_the_model_s_images_were():
    """An ImageNet model's pictures moved to another folder keep their view and their draw; only the augmentation is left out."""
    trained = {"source": "folder:there", "image_size": 32, "augment": "imagenet", "validation": 0.1, "directory": "", "workers": 0, "seed": 3}
    for known in (trained, trained | {"view": "imagenet", "split_by": "position"}):
        moved = pipeline.config_for({"data": known}, 32, "folder:here")
        assert (moved.source, moved.augment, moved.view, moved.split_by, moved.seed) == ("folder:here", "none", "imagenet", "position", 3)
        assert pipeline.config_for({"data": known}, 32).augment == "imagenet" and pipeline.config_for({"data": known}, 32, view="squash").view == "squash"
    assert pipeline.config_for({"data": trained | {"view": "squash"}}, 32, "npz:x").view == "squash"
    assert pipeline.config_for({"data": {"source": ""}}, 32, "npz:x").view == "center_square"


def test_the_home_folder_is_expanded_where_a_source_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("folder", "npz", "codes", "npy"):
        assert replace(DIGITS, source=f"{kind}:~/x$HOME").source == f"{kind}:{tmp_path}/x$HOME"
    assert replace(DIGITS, directory="~/tfds").directory == f"{tmp_path}/tfds" and replace(DIGITS, source="npz:a~b").source == "npz:a~b"
    stored = {"data": dataclasses.asdict(replace(DIGITS, source="npz:x")) | {"source": "npz:~/x"}}
    assert pipeline.config_for(stored, 8, f"npz:{tmp_path}/x").augment == "cifar"  # the same source
    (tmp_path / "x").mkdir()
    np.savez(tmp_path / "x" / "train.npz", images=np.zeros((10, 8, 8), np.uint8))
    assert len(pipeline.open_dataset(replace(DIGITS, source="npz:~/x"), "all_train")) == 10
