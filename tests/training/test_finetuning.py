"""Fine-tuning: it starts from the pretrained parameters, keeps the best model, stops early, and refuses what does not fit."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, digits_finetune
from igpt_jax import finetune
from igpt_jax.data.arrays import open_digits
from igpt_jax.interop.pack import pack
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.training import checkpoints, evaluation, model_file, setup
from igpt_jax.training.loop import Run
from igpt_jax.training.setup import Setup
from igpt_jax.training.step import LossConfig, eval_step
from tests.models import random_model, tiny
from tests.runs import grey_palette, recipe

SMALL = {"model__layers": 3, "model__width": 32, "model__heads": 4, "palette__size": 16, "model__unroll": 1, "optim__warmup_steps": 0}
DATA = {"source": "digits", "image_size": 8, "augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of a model without a class head."""
    checkpoints.save_model(tmp_path / "pretrained", random_model(tiny()), grey_palette(16), {"data": DATA})
    return tmp_path / "pretrained"


def finetuning(**changes):
    return recipe(digits_finetune, **SMALL | {"steps": 6, "eval_every": 2, "save_every": 2} | changes)


@pytest.mark.slow
def test_it_starts_from_the_pretrained_parameters_with_a_head_of_zeros(tmp_path, pretrained):
    finetune.finetune(finetuning(steps=1, optim__learning_rate=1e-30), tmp_path / "run", str(pretrained))
    before, after = checkpoints.load(pretrained), checkpoints.load(tmp_path / "run")
    np.testing.assert_array_equal(before.model.blocks.mlp_in[...], after.model.blocks.mlp_in[...])
    np.testing.assert_array_equal(before.model.output_embedding[...], after.model.output_embedding[...])
    assert float(jnp.abs(after.model.class_embedding[...]).max()) < 1e-20  # one step of 1e-30
    np.testing.assert_array_equal(before.palette.centers, after.palette.centers)


def test_another_resolution_is_refused_unless_it_is_asked_for(tmp_path, pretrained):
    config, run = finetuning(data__image_size=12), tmp_path / "run"
    with pytest.raises(ValueError, match=r"positions 64, recipe 144\. Add --config.data.image_size=8, or --interpolate_positions to begin at 12 x 12$"):
        finetune.finetune(config, run, str(pretrained))
    with pytest.raises(ValueError, match="--interpolate_positions is for the positions of a checkpoint to begin with"):
        finetune.finetune(config, run, None, interpolate_positions=True)
    assert not run.exists()


@pytest.mark.slow
def test_a_run_begins_with_interpolated_positions_and_continues(tmp_path, pretrained, capsys):
    config, run = finetuning(steps=1, data__image_size=12, optim__learning_rate=1e-30, eval_every=0), tmp_path / "run"
    finetune.finetune(config, run, str(pretrained), interpolate_positions=True)
    assert "positions were interpolated: they go from 8 x 8 to 12 x 12 pixels" in capsys.readouterr().err
    tuned, wanted = checkpoints.load(run), checkpoints.load(pretrained, image_size=12)
    assert tuned.model_config.positions == 144 and tuned.config["data"]["image_size"] == 12
    np.testing.assert_array_equal(tuned.model.position_embedding[...], wanted.model.position_embedding[...])
    finetune.finetune(finetuning(steps=2, data__image_size=12, eval_every=0), run, str(pretrained), interpolate_positions=True)  # continues its own
    assert checkpoints.load(run).step == 2


@pytest.mark.slow
def test_it_learns_keeps_the_best_and_evaluates_it(tmp_path):
    checkpoints.save_model(tmp_path / "fresh", ImageGPT(tiny(), jax.random.key(0)), grey_palette(16), {"data": DATA})
    found = finetune.finetune(finetuning(steps=60, eval_every=20, optim__learning_rate=5e-3), tmp_path / "run", str(tmp_path / "fresh"))
    best = evaluation.evaluate_checkpoint(tmp_path / "run/best", "validation")
    assert best["accuracy"] == found["best"]["value"] and best["step"] == found["best"]["step"]
    assert best["class_nats"] < np.log(10) - 0.01 and best["nats_per_pixel"] < np.log(16) - 0.1


def test_a_run_from_a_shipped_model_continues_after_that_was_replaced(tmp_path, pretrained, monkeypatch, capsys):
    monkeypatch.setattr(model_file, "FOLDER", tmp_path / "models")
    file, config = tmp_path / "models" / "small.safetensors", {"optim__learning_rate": 1e-30, "eval_every": 0, "save_every": 2}
    pack(pretrained, file, "float32")
    finetune.finetune(finetuning(steps=2, **config), tmp_path / "run", "small")
    checkpoints.save_model(tmp_path / "other", random_model(tiny(), seed=1), grey_palette(16), {"data": DATA})
    pack(tmp_path / "other", file, "float32", overwrite=True)
    finetune.finetune(finetuning(steps=4, **config), tmp_path / "run", "small")
    before, after, other = checkpoints.load(pretrained), checkpoints.load(tmp_path / "run"), checkpoints.load("small")
    assert after.step == 4 and before.checksum != other.checksum
    np.testing.assert_array_equal(before.model.blocks.mlp_in[...], after.model.blocks.mlp_in[...])
    assert f"{tmp_path / 'run'} continues from its own checkpoint; small is not read" in capsys.readouterr().err
    with pytest.raises(ValueError, match="^small is a model of another architecture: width 32, recipe 64. Add --config.model.width=32$"):
        finetune.finetune(finetuning(model__width=64), tmp_path / "wide", "small")


def test_it_ends_when_the_best_is_long_ago(tmp_path, pretrained, capsys):
    config = finetuning(steps=50, eval_every=1, best__patience=2, optim__learning_rate=1e-30)
    found = finetune.finetune(config, tmp_path / "run", str(pretrained))
    assert {key: found["best"][key] for key in ("step", "since")} == {"step": 1, "since": 2} and checkpoints.load(tmp_path / "run").step == 3
    said = capsys.readouterr().out
    value = f"best: accuracy {found['best']['value']:.1%} at step 1, the model in {tmp_path / 'run'}/best"
    assert f"no better accuracy in 2 evaluations, so the run ends at step 3 of 50; {value}\n" in said
    assert said.count("step  3/50  validation") == 1  # not once more for the end
    shutil.rmtree(pretrained)  # it goes on without the weights that it began with
    assert finetune.finetune(config, tmp_path / "run", str(pretrained))["best"] == found["best"]  # finished: evaluates and exits


def test_a_best_of_other_validation_images_is_measured_again(tmp_path, pretrained, capsys):
    """The value of one image would stand against those of all, and nothing might be better."""
    config = {"eval_every": 1, "best__patience": 3, "optim__learning_rate": 1e-3}
    first = finetune.finetune(finetuning(steps=2, eval_images=1, **config), tmp_path / "run", str(pretrained))["best"]
    whole = int(re.search(r"chosen on 1 of (\d+) validation images", capsys.readouterr().out)[1])
    assert first["images"] == 1 and first["value"] in (0.0, 1.0)
    now = evaluation.evaluate_checkpoint(tmp_path / "run/best", "validation")["accuracy"]
    found = finetune.finetune(finetuning(steps=3, eval_images=0, **config), tmp_path / "run", str(pretrained))["best"]
    said = capsys.readouterr().out
    assert f"the best is now chosen on {whole} validation images, not those of before (1): the model in {tmp_path / 'run'}/best was measured again" in said
    assert f"accuracy {first['value']:.1%} -> {now:.1%}\n" in said and "chosen on" not in said.split("best: ")[1]
    assert found["images"] == whole and found["value"] >= now
    if found["step"] == first["step"]:
        assert found["value"] == now and found["since"] == first["since"] + 1
    capsys.readouterr()
    finetune.finetune(finetuning(steps=3, eval_images=0, **config), tmp_path / "run", str(pretrained))
    assert "measured again" not in capsys.readouterr().out


@pytest.mark.parametrize("labels", ["train", "validation"])
def test_other_labels_are_refused_and_change_nothing(tmp_path, pretrained, capsys, labels):
    """Those of training; others of validation make another best, which is measured again."""
    arrays = {}
    for split, name in (("train", "train"), ("validation", "test"), ("test", "test")):
        dataset = open_digits(name)
        arrays[split] = dataset.images, dataset.all_labels()
        np.savez(tmp_path / f"{split}.npz", images=arrays[split][0], labels=arrays[split][1])
    config = {"data__source": f"npz:{tmp_path}", "eval_every": 1, "optim__learning_rate": 1e-30}
    finetune.finetune(finetuning(steps=1, **config), tmp_path / "run", str(pretrained))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    np.savez(tmp_path / f"{labels}.npz", images=arrays[labels][0], labels=(arrays[labels][1] + 1) % 10)
    if labels == "train":
        with pytest.raises(ValueError, match="has other labels than the run in .* began with, and what it learnt and measured is of those"):
            finetune.finetune(finetuning(steps=2, **config), tmp_path / "run", str(pretrained))
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    else:
        found = finetune.finetune(finetuning(steps=2, **config), tmp_path / "run", str(pretrained))["best"]
        assert found["value"] == evaluation.evaluate_checkpoint(tmp_path / "run/best", "validation")["accuracy"]
        assert "not those of before (359): the model in" in capsys.readouterr().out


def test_a_best_that_is_gone_is_not_told(tmp_path, pretrained, capsys):
    config = finetuning(steps=2, eval_every=1, save_every=1)
    assert finetune.finetune(config, tmp_path / "run", str(pretrained))["best"]["step"] >= 1
    shutil.rmtree(tmp_path / "run/best")
    capsys.readouterr()
    assert "best" not in finetune.finetune(config, tmp_path / "run", str(pretrained))
    said = capsys.readouterr().out
    assert "the model in" not in said and "run/best" not in said
    longer = finetune.finetune(finetuning(steps=3, eval_every=1, save_every=1), tmp_path / "run", str(pretrained))
    assert longer["best"]["step"] == 3 and checkpoints.load(tmp_path / "run/best").step == 3


def test_a_best_chosen_on_a_part_of_the_images_says_so(tmp_path, pretrained, capsys):
    finetune.finetune(finetuning(steps=1, eval_every=1, eval_images=8), tmp_path / "run", str(pretrained))
    assert re.search(r"run/best, chosen on 8 of \d+ validation images\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_best_is_that_of_the_run_whatever_another_left_there(tmp_path, pretrained, capsys):
    """A run begun anew beside an old best/ of later steps; one that goes on with another recipe from before the best that was saved last."""
    config = finetuning(steps=6, eval_every=6, save_every=2, optim__learning_rate=5e-3)
    finetune.finetune(config, tmp_path / "run", str(pretrained))
    shutil.rmtree(tmp_path / "run/checkpoints")
    capsys.readouterr()
    shorter = finetuning(steps=4, eval_every=2, save_every=2, best__metric="nats_per_pixel")
    found = finetune.finetune(shorter, tmp_path / "run", str(pretrained))
    assert "is not read" not in capsys.readouterr().err
    best = evaluation.evaluate_checkpoint(tmp_path / "run/best", "validation")
    assert best["step"] == 4 and best["nats_per_pixel"] == pytest.approx(found["best"]["value"], rel=1e-5)
    shutil.rmtree(tmp_path / "run/checkpoints/4")  # as a kill between best/ of step 4 and its checkpoint
    rising = finetuning(steps=6, eval_every=3, save_every=3, best__metric="nats_per_pixel", optim__learning_rate=10.0)
    found = finetune.finetune(rising, tmp_path / "run", str(pretrained))
    assert found["best"]["step"] == checkpoints.load(tmp_path / "run/best").step == 3
    assert f"note: {tmp_path}/run continues from its own checkpoint; {pretrained} is not read" in capsys.readouterr().err


def named_source(folder, names, labels=None):
    """Twelve pictures for training and as many for a test, of the classes `names` in turn."""
    folder.mkdir()
    for part in ("train", "test"):
        images, classes = np.random.default_rng(len(part)).integers(0, 256, (24, 8, 8), np.uint8), np.arange(24) % len(names)
        np.savez(folder / f"{part}.npz", images=images, labels=classes, class_names=np.asarray(names))
    return f"npz:{folder}"


def with_head(folder, classes, class_names):
    checkpoints.save_model(folder, random_model(tiny(classes=classes)), grey_palette(16), {"data": DATA}, class_names=class_names)
    return str(folder)


def still(source, classes, **changes):
    """A recipe whose one step changes nothing that can be seen."""
    return finetuning(steps=1, batch_size=8, optim__learning_rate=1e-30, data__source=source, model__classes=classes, **changes)


@pytest.mark.slow
def test_a_head_is_fresh_or_kept_on_request_and_it_is_said(tmp_path, capsys):
    given = with_head(tmp_path / "given", 3, ("cat", "dog", "fish"))
    head = np.asarray(checkpoints.load(given).model.class_embedding[...])
    for name, classes in (("same", ["cat", "dog", "fish"]), ("other", ["a", "b", "c", "d"])):
        finetune.finetune(still(named_source(tmp_path / name, classes), len(classes)), tmp_path / f"fresh {name}", given)
        made = checkpoints.load(tmp_path / f"fresh {name}")
        assert float(jnp.abs(made.model.class_embedding[...]).max()) < 1e-20 and made.class_names == tuple(classes)
        line = f"without its class head of 3 classes (--keep_head keeps it), a class head of {len(classes)} classes that is zero\n"
        assert f"begins with {given}/checkpoints/0 {line}" in capsys.readouterr().out
    permuted = still(named_source(tmp_path / "permuted", ["Fish", "cat", "dog"]), 3)
    finetune.finetune(permuted, tmp_path / "kept", given, keep_head=True)
    made = checkpoints.load(tmp_path / "kept")
    np.testing.assert_array_equal(made.model.class_embedding[...], head)
    assert made.class_names == ("cat", "dog", "fish") == checkpoints.load(tmp_path / "kept/best").class_names
    assert f"begins with {given}/checkpoints/0 and its class head of 3 classes\n" in capsys.readouterr().out
    setup = Setup(permuted, tmp_path / "kept")  # continues without the flags: the classes are still those of the head
    with jax.set_mesh(setup.mesh):
        state, meta = setup.initial_state()
        run = Run(setup, int(state.step), meta)
    run.close()
    assert run.saved == 1 and run.key == jax.random.fold_in(jax.random.key(permuted.seed), 1)  # of another key a bert run that goes on had other masks
    assert run.training.class_names == run.validation.class_names == made.class_names == run.class_names
    np.testing.assert_array_equal(run.training.labels, np.asarray([2, 0, 1])[run.training.source.labels])


def test_nothing_is_written_before_a_head_is_known_to_fit(tmp_path, pretrained):
    """Neither the palette nor config.json, which would be in the way of the next try."""
    given, nameless = with_head(tmp_path / "given", 3, ("cat", "dog", "fish")), with_head(tmp_path / "nameless", 10, None)
    birds, two = named_source(tmp_path / "birds", ["bird", "cat", "dog"]), named_source(tmp_path / "two", ["cat", "dog"])
    for source, classes, model, message in (
        (birds, 3, given, f"{birds} has bird, which {given}/checkpoints/0 lacks or has twice: .*bird, cat, dog.*cat, dog, fish. Leave out --keep_head"),
        (two, 2, given, f"{two} lacks fish of {given}/checkpoints/0: .*Leave out --keep_head for a fresh head"),
        (birds, 3, nameless, f"the class head of {nameless}/checkpoints/0 has 10 classes and {birds} 3. Leave out --keep_head"),
        (birds, 3, str(pretrained), f"{pretrained}/checkpoints/0 has no class head: leave out --keep_head"),
        (birds, 3, None, "--keep_head keeps the class head of a --checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune.finetune(still(source, classes), tmp_path / "run", model, keep_head=True)
    with pytest.raises(ValueError, match="reads layer 3, config.model.class_layer says 1"):
        finetune.finetune(still(named_source(tmp_path / "own", ["cat", "dog", "fish"]), 3, model__class_layer=1), tmp_path / "run", given, keep_head=True)
    with pytest.raises(ValueError, match="has 3 classes and the model's head 4: set config.model.classes"):
        finetune.finetune(still(birds, 4), tmp_path / "run", given)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_only_with_the_classes_of_its_head(tmp_path, capsys):
    """Of the same number of classes; a class renamed in case, and one moved in the order, are the same."""
    source = named_source(tmp_path / "data", ["cat", "dog", "fish"])
    given = with_head(tmp_path / "given", 3, None)
    finetune.finetune(still(source, 3), tmp_path / "run", given)
    (tmp_path / "data").rename(tmp_path / "before")
    named_source(tmp_path / "data", ["bird", "cat", "dog"])
    with pytest.raises(ValueError, match=f"{source} has bird, which the run in {tmp_path}/run lacks or has twice: .*Take another --workdir"):
        finetune.finetune(still(source, 3), tmp_path / "run", given)
    assert capsys.readouterr().err == f"note: {tmp_path}/run continues from its own checkpoint; {given} is not read\n"


def test_without_a_checkpoint_it_starts_at_random(tmp_path):
    (tmp_path / "run").mkdir()
    grey_palette(16).save(tmp_path / "run/palette.npy")
    finetune.finetune(finetuning(steps=1), tmp_path / "run")
    assert checkpoints.load(tmp_path / "run/best").model_config.classes == 10


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ({}, {"layers": 5, "width": 64, "heads": 8}),
        ({}, {"vocabulary": 7, "positions": 144}),
        ({}, {"objective": "prefix", "qk_norm": True, "position_encoding": "rotary", "activation": "swiglu", "bias": True}),
        ({}, {"tokens_per_pixel": 3, "vocabulary": 256, "positions": 3 * 64}),
        ({}, {"tokens_per_pixel": 3, "vocabulary": 256, "positions": 3 * 144}),
    ],
)
def test_the_flags_of_the_refusal_give_the_recipe_the_models_architecture(recipe, given):
    """Set as on a command line, where the palette's size is the vocabulary, and the positions are the pixels."""
    config, wanted = base.get_config(), tiny(**given)
    with config.unlocked():
        for name, value in dataclasses.asdict(tiny()).items():
            if name in config.model and name not in ("vocabulary", "positions"):
                config.model[name] = value
    config.palette.size, config.data.image_size = 16, 8
    for flag in setup.flags_of(ModelConfig(**config.model), wanted):
        key, text = flag.removeprefix("--config.").split("=")
        section, name = key.split(".")
        assert name in config[section]
        config[section][name] = type(config[section][name])(text) if not isinstance(config[section][name], bool) else text == "True"
    setup.check_same(ModelConfig(**config.model), wanted, "it")
    assert config.data.image_size == wanted.rows and config.palette.size == wanted.vocabulary
    assert config.palette.kind == ("levels" if wanted.tokens_per_pixel == 3 else "colours")


def test_what_does_not_fit_is_refused_by_name(tmp_path, pretrained):
    with pytest.raises(ValueError, match=r"another architecture: layers 3, recipe 5; heads 4, recipe 2\. Add --config.model.layers=3 --config.model.heads=4$"):
        finetune.finetune(finetuning(model__layers=5, model__heads=2), tmp_path / "run", str(pretrained))
    with pytest.raises(ValueError, match=r"needs a class head and its loss, not config.model.classes 0"):
        finetune.finetune(finetuning(model__classes=0), tmp_path / "run", str(pretrained))
    with pytest.raises(ValueError, match="digits has 10 classes and the model's head 7"):
        finetune.finetune(finetuning(model__classes=7), tmp_path / "run", str(pretrained))
    (tmp_path / "other").mkdir()
    checkpoints.Palette(grey_palette(16).centers * 0.9).save(tmp_path / "other/palette.npy")
    with pytest.raises(ValueError, match="is not the palette of the checkpoint"):
        finetune.finetune(finetuning(), tmp_path / "other", str(pretrained))


def test_bert_votes_with_several_masks_and_breaks_ties_at_random():
    model = random_model(tiny(objective="bert", classes=10))
    codes = jax.random.randint(jax.random.key(0), (64, 64), 0, 16)
    batch = {"codes": codes, "label": jnp.zeros(64, jnp.int32), "weight": jnp.ones(64), "index": jnp.arange(64)}

    def hits(masks):
        return {k: float(v) for k, v in eval_step(model, batch, jax.random.key(1), loss_config=LossConfig(1.0, 0.0, 0.5, masks)).items()}

    assert hits(1)["correct"] == hits(1)["correct_one_mask"] == hits(5)["correct_one_mask"]
    from igpt_jax.model import objectives
    from igpt_jax.training.step import _votes

    drawn = [objectives.image_keys(jax.random.fold_in(jax.random.key(1), m) if m else jax.random.key(1), batch["index"]) for m in range(5)]
    votes = [objectives.generative_loss(model, codes, keys, 0.5, training=False)[1].class_logits for keys in drawn]
    chosen = np.asarray(_votes(model, batch, jax.random.key(1), votes[0], LossConfig(1.0, 0.0, 0.5, 5)).argmax(axis=1))
    counted = np.stack([np.bincount([int(v[i].argmax()) for v in votes], minlength=10) for i in range(64)])
    assert (counted[np.arange(64), chosen] == counted.max(axis=1)).all()
    for masks in (1, 2, 3):  # a vote of each, and less than a half for ties; of one mask the logits
        given = np.asarray(_votes(model, batch, jax.random.key(1), votes[0], LossConfig(1.0, 0.0, 0.5, masks)))
        assert (np.floor(given).sum(axis=1) == masks).all() if masks > 1 else (given == votes[0]).all()
    tied = [i for i in range(64) if (counted[i] == counted[i].max()).sum() > 1]
    assert any(chosen[i] != counted[i].argmax() for i in tied)  # not always the first of the tied
