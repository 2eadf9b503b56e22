"""A fine-tuning recipe that leaves model, palette, resolution, data and classes open."""

import numpy as np
import pytest

from configs import finetune as open_recipe
from igpt_jax import finetune
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints, inherit
from tests.models import random_model, tiny
from tests.runs import grey_palette

DATA = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.2, "directory": "", "workers": 0, "seed": 3}


def recipe(**values):
    config = open_recipe.get_config()
    config.model.dtype, config.batch_size, config.steps, config.eval_every, config.save_every = "float32", 8, 1, 0, 1
    config.eval_images, config.best.metric = 8, ""
    for name, value in values.items():
        section, _, key = name.rpartition("__")
        config[section][key] = value
    return config


@pytest.fixture
def pretrained(tmp_path):
    def save(**fields):
        config = tiny(**fields)
        levels = Palette(np.linspace(-1, 1, config.vocabulary)[:, None].repeat(3, 1).astype(np.float32))
        checkpoints.save_model(tmp_path / "given", random_model(config), levels if config.vocabulary != 16 else grey_palette(16), {"data": DATA})
        return str(tmp_path / "given")

    return save


@pytest.mark.parametrize("fields", [{}, {"objective": "bert", "layers": 1}, {"position_encoding": "axial", "heads": 2, "activation": "swiglu"}])
def test_everything_is_taken_from_the_checkpoint_and_a_second_start_continues(tmp_path, pretrained, fields, capsys):
    given = pretrained(**fields)
    finetune.finetune(recipe(), str(tmp_path / "run"), given)  # as the program gives it
    assert "model.classes 10, those of the data" in capsys.readouterr().err
    tuned, before = checkpoints.load(tmp_path / "run"), checkpoints.load(given)
    assert tuned.model_config.classes == 10 and tuned.config["data"]["seed"] == 3 and tuned.config["data"]["validation"] == 0.2
    same = {name: getattr(before.model_config, name) for name in ("layers", "width", "heads", "vocabulary", "positions", "objective", "activation")}
    assert same == {name: getattr(tuned.model_config, name) for name in same}
    config = recipe()
    config.steps = 2
    finetune.finetune(config, str(tmp_path / "run"), given)
    assert checkpoints.load(tmp_path / "run").step == 2


def test_what_the_recipe_states_stays(tmp_path, pretrained):
    finetune.finetune(recipe(data__source="digits", data__image_size=12, model__classes=10), tmp_path / "run", pretrained(), interpolate_positions=True)
    tuned = checkpoints.load(tmp_path / "run")
    assert tuned.model_config.positions == 144 and tuned.config["data"]["seed"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data__image_size": 12}, "is a model of another architecture: positions 64, recipe 144"),
        ({"palette__size": 8}, "is a model of another architecture: vocabulary 16, recipe 8"),
        ({"model__classes": 3}, "10"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(tmp_path, pretrained, values, message):
    with pytest.raises(ValueError, match=message):
        finetune.finetune(recipe(**values), tmp_path / "run", pretrained())


def test_nothing_to_take_from_is_refused(tmp_path, pretrained):
    with pytest.raises(ValueError, match="this recipe takes the model from a checkpoint: give one by --checkpoint"):
        finetune.finetune(recipe(), str(tmp_path / "run"))
    given = pretrained()
    checkpoints.save_model(tmp_path / "converted", checkpoints.load(given).model, grey_palette(16), {})
    with pytest.raises(ValueError, match="converted.* names no data: give them by --config.data.source"):
        finetune.finetune(recipe(), tmp_path / "run", str(tmp_path / "converted"))


def test_data_without_labels_is_refused(tmp_path, pretrained):
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8, 3), np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images)
    with pytest.raises(ValueError, match="has no classes: fine-tuning needs labels"):
        finetune.finetune(recipe(data__source=f"npz:{tmp_path}"), tmp_path / "run", pretrained())


def test_what_is_given_stays_and_the_view_is_that_of_the_checkpoint(tmp_path, pretrained):
    given = pretrained()
    before = checkpoints.load(given)
    checkpoints.save_model(tmp_path / "squashed", before.model, grey_palette(16), {"data": DATA | {"view": "squash"}})
    keys = {"data.validation", "data.view"}
    finetune.finetune(recipe(data__validation=0.3, data__view="imagenet"), tmp_path / "kept", str(tmp_path / "squashed"), given=keys)
    data = checkpoints.load(tmp_path / "kept").config["data"]
    assert (data["validation"], data["view"], data["seed"]) == (0.3, "imagenet", 3)
    finetune.finetune(recipe(data__source="digits"), tmp_path / "viewed", str(tmp_path / "squashed"))
    assert checkpoints.load(tmp_path / "viewed").config["data"]["view"] == "squash"
    with pytest.raises(ValueError, match="another architecture: width 32, recipe 64"):
        finetune.finetune(recipe(model__width=64), tmp_path / "wide", given, given={"model.width"})


@pytest.mark.parametrize(("given", "dtype"), [((), "bfloat16"), (("model.dtype",), "float32")])
def test_numbers_are_those_of_the_training_unless_they_are_given(tmp_path, given, dtype):
    config = tiny()
    checkpoints.save_model(tmp_path / "given", random_model(config), grey_palette(16), {"data": DATA, "model": {"dtype": "bfloat16"}})
    open_one = recipe()
    inherit.complete(open_one, tmp_path / "run", checkpoints.load(tmp_path / "given"), given)
    assert open_one.model.dtype == dtype
