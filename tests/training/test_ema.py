"""The moving average of the weights: its numbers, that it is saved, restored, evaluated and loaded, and what is refused."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from igpt_jax import finetune, train
from igpt_jax.distributed import sharding
from igpt_jax.interop.huggingface import from_hf, to_hf
from igpt_jax.interop.pack import pack
from igpt_jax.training import checkpoints, optimizer
from igpt_jax.training.evaluation import evaluate_checkpoint
from igpt_jax.training.setup import check_best
from igpt_jax.training.step import abstract_state, init_state, train_step
from igpt_jax.training.trees import to_flat
from tests.models import tiny
from tests.runs import make_workdir, recipe
from tests.training.test_checkpoints import save
from tests.training.test_step import BATCH, LOSS, OPTIM

EMA = dataclasses.replace(OPTIM, ema_decay=0.5)
SMALL = tiny(layers=1, width=16, heads=2)


def flat(model):
    return {name: np.asarray(value) for name, value in to_flat(model).items()}


def test_the_decay_rises_to_the_one_asked_for_and_a_skipped_step_moves_nothing():
    step = jax.jit(partial(train_step, optim_config=EMA, loss_config=LOSS))
    state = init_state(SMALL, sharding.make_mesh(devices=jax.devices()[:1]), jax.random.key(0), EMA)
    expected = flat(state.model)
    for number, decay in enumerate((0.1, 2 / 11, 0.25, 4 / 13)):
        state, _ = step(state, BATCH, jax.random.key(2))
        expected = {name: decay * value + (1 - decay) * flat(state.model)[name] for name, value in expected.items()}
        for name, value in flat(state.ema).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-8, err_msg=f"{number} {name}")
            assert value.dtype == np.float32
    broken = dataclasses.replace(state, model=jax.tree.map(lambda leaf: leaf * np.nan, state.model))
    after, metrics = step(broken, BATCH, jax.random.key(2))
    assert int(metrics["skipped"]) == 1
    for name, value in flat(after.ema).items():
        np.testing.assert_array_equal(value, flat(state.ema)[name])
    late = optimizer.average({"x": np.float32(1)}, {"x": np.float32(0)}, 0.5, 100)
    assert float(late["x"]) == 0.5


def test_the_model_learns_the_same_with_and_without_and_the_average_is_sharded_like_it():
    mesh = sharding.make_mesh(1, 4, 2)
    state = init_state(tiny(), mesh, jax.random.key(0), EMA)
    assert [leaf.sharding for leaf in jax.tree.leaves(state.ema)] == [leaf.sharding for leaf in jax.tree.leaves(state.model)]
    step = jax.jit(train_step, static_argnames=("optim_config", "loss_config"))
    models = []
    for config in (OPTIM, EMA):
        state = init_state(SMALL, mesh, jax.random.key(0), config)
        models.append(step(state, BATCH, jax.random.key(2), optim_config=config, loss_config=LOSS)[0].model)
    for ours, theirs in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_without_an_average_begins_one_with_its_weights(tmp_path, capsys):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    save(tmp_path, init_state(tiny(), mesh, jax.random.key(0)))
    state, _ = checkpoints.restore_state(tmp_path, abstract_state(tiny(), mesh, EMA))
    assert "has no average of the weights: it begins with the weights of this step" in capsys.readouterr().err
    for ours, theirs in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours is not theirs
    save(tmp_path, dataclasses.replace(state, step=state.step + 1), step=4)
    assert checkpoints.restore_state(tmp_path, abstract_state(tiny(), mesh))[0].ema is None  # and is left out again


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """(work directory, recipe) of a run of 6 steps with a checkpoint at step 3."""
    config = recipe(steps=6, optim__ema_decay=0.9, save_every=3, eval_every=3, optim__learning_rate=0.01)
    workdir = make_workdir(tmp_path_factory.mktemp("run"))
    train.train(config, workdir)
    return workdir, config


def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path, averaged):
    whole, config = averaged
    stopped = make_workdir(tmp_path / "stopped")
    shutil.copytree(whole / "checkpoints/3", stopped / "checkpoints/3")
    train.train(config, stopped)
    ours, theirs = (checkpoints.load(place, ema=True) for place in (stopped, whole))
    assert ours.step == 6 and ours.ema and ours.checksum == theirs.checksum == checkpoints.checksum(checkpoints.to_nested(ours.model))
    assert ours.checksum != checkpoints.load(whole).checksum == checkpoints.identify(whole)[2] and checkpoints.identify(whole, ema=True)[2] == ours.checksum


def test_both_are_evaluated_and_each_program_takes_the_one_that_it_is_asked_for(tmp_path, averaged):
    whole, _ = averaged
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation/nats_per_pixel_ema" in line for line in lines) == 2  # at step 3, and at the end
    result = json.loads((whole / "result.json").read_text())
    for ema, suffix in ((False, ""), (True, "_ema")):
        found = evaluate_checkpoint(whole, "validation", ema=ema)
        assert found["nats_per_pixel"] == pytest.approx(result[f"nats_per_pixel{suffix}"], rel=1e-6) and found.get("ema", False) == ema
    assert result["nats_per_pixel"] != result["nats_per_pixel_ema"] and "images_ema" not in result
    train.train(recipe(steps=2, optim__learning_rate=1e-30, optim__ema_decay=0.9), tmp_path / "next", init_from=str(whole), ema=True)
    started = {ema: checkpoints.load(tmp_path / "next", ema=ema).model.blocks.mlp_in[...] for ema in (False, True)}
    for value in started.values():  # its own average begins with the weights that it was given
        np.testing.assert_allclose(value, checkpoints.load(whole, ema=True).model.blocks.mlp_in[...], atol=1e-7)


def test_the_best_can_be_the_average(tmp_path):
    config = recipe(steps=4, optim__ema_decay=0.9, eval_every=2, best__metric="nats_per_pixel_ema", optim__learning_rate=0.01)
    result = train.train(config, make_workdir(tmp_path))
    best = checkpoints.load(tmp_path / "best")
    assert result["best"]["value"] == pytest.approx(result["nats_per_pixel_ema"]) and best.step == 4
    np.testing.assert_array_equal(best.model.blocks.mlp_in[...], checkpoints.load(tmp_path, ema=True).model.blocks.mlp_in[...])


def test_the_average_is_published_if_asked_for_and_named_if_not(tmp_path, averaged, capsys):
    whole, _ = averaged
    for ema in (False, True):
        pack(whole, tmp_path / f"{ema}.safetensors", "float32", ema=ema)
        assert ("has a moving average of the weights too: --ema writes that one" in capsys.readouterr().err) == (not ema)
        packed, expected = checkpoints.load(tmp_path / f"{ema}.safetensors"), checkpoints.load(whole, ema=ema)
        np.testing.assert_array_equal(packed.model.blocks.mlp_in[...], expected.model.blocks.mlp_in[...])
    to_hf(whole, tmp_path / "hf", ema=True)
    with pytest.raises(FileNotFoundError, match=r"hf is a folder of transformers, not a checkpoint: convert it first, python -m igpt_jax.convert hf "):
        checkpoints.load(tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "back")
    np.testing.assert_array_equal(checkpoints.load(tmp_path / "back").model.blocks.mlp_in[...], checkpoints.load(whole, ema=True).model.blocks.mlp_in[...])


def test_what_is_refused(tmp_path, averaged):
    checkpoints.save_model(tmp_path / "alone", checkpoints.load(averaged[0]).model, checkpoints.load(averaged[0]).palette, {})
    with pytest.raises(ValueError, match="has no average of the weights, as runs without config.optim.ema_decay and every best/: load it without ema"):
        checkpoints.load(tmp_path / "alone", ema=True)
    with pytest.raises(ValueError, match="cifar10-16 is a model in one file, which has no average beside its weights"):
        checkpoints.load("cifar10-16", ema=True)
    with pytest.raises(ValueError, match="--ema takes the average of the weights of a checkpoint: name one"):
        train.train(recipe(), tmp_path / "run", ema=True)
    with pytest.raises(ValueError, match="config.best.metric 'nats_per_pixel_ema' is not measured"):
        check_best("nats_per_pixel_ema", tiny(), None)
    with pytest.raises(ValueError, match="config.optim.frozen_layers=1 would keep random parameters"):
        train.train(recipe(optim__frozen_layers=1), tmp_path / "run")
    with pytest.raises(ValueError, match="optim.name 'adam' -> 'muon'"):
        train.train(recipe(optim__name="muon", steps=8), averaged[0])
    with pytest.raises(ValueError, match="--ema takes the average"):
        finetune.finetune(recipe(model__classes=10, loss__classification=1.0), tmp_path / "run", ema=True)
