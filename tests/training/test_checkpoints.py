"""Checkpoints: every bit comes back, on any mesh; what is not there or not whole is said."""

import copy
import dataclasses
import json
import os
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest

import igpt_jax
from igpt_jax.distributed import sharding
from igpt_jax.training import checkpoints, storage
from igpt_jax.training.step import abstract_state, init_state
from tests.models import random_model, tiny
from tests.runs import grey_palette

PALETTE = grey_palette(16)


def save(workdir, state, step=3, **options):
    writer = checkpoints.Checkpoints(workdir, **{"keep_last": 2, "keep_every": 0} | options)
    writer.save(step, state, checkpoints.make_meta(tiny(), PALETTE, {"seed": 7}, images_seen=48))
    writer.close()


def test_every_bit_comes_back_on_any_mesh(tmp_path):
    state = init_state(tiny(), sharding.make_mesh(1, 4, 2), jax.random.key(0))
    save(tmp_path, state)
    for sizes, devices in (((1, 8, 1), 8), ((2, 2, 2), 8), ((1, 1, 1), 1)):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:devices])
        restored, meta = checkpoints.restore_state(tmp_path, abstract_state(tiny(), mesh))
        assert meta["data"] == {"images_seen": 48} and meta["config"] == {"seed": 7}
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert len(ours.sharding.device_set) == devices


def test_the_arrays_are_a_plain_nested_dict_under_our_names(tmp_path):
    import orbax.checkpoint as ocp

    checkpoints.save_model(tmp_path, random_model(tiny()), PALETTE, {})
    with ocp.StandardCheckpointer() as reader:
        raw = reader.restore(tmp_path / "checkpoints/0/model")
    assert set(raw) == {"token_embedding", "position_embedding", "start_vector", "blocks", "final_norm", "output_embedding"}
    assert set(raw["blocks"]) == {"attention_norm", "query_key_value", "attention_output", "mlp_norm", "mlp_in", "mlp_out"}


def test_a_checkpoint_from_before_there_were_options_has_the_papers(tmp_path):
    import json

    model = random_model(tiny())
    checkpoints.save_model(tmp_path, model, PALETTE, {})
    path = next((tmp_path / "checkpoints/0/meta").glob("*"))
    meta = json.loads(path.read_text())
    for name in ("tokens_per_pixel", "position_encoding", "qk_norm", "activation", "bias"):
        del meta["model"][name]
    path.write_text(json.dumps(meta))
    assert checkpoints.load(tmp_path).model_config == model.config


def test_the_last_few_and_every_so_many_are_kept(tmp_path):
    state = init_state(tiny(), sharding.make_mesh(), jax.random.key(0))
    for step in range(1, 8):
        save(tmp_path, state, step, keep_every=3)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7]


def test_palette_survives_exactly_and_overrides_are_taken(tmp_path):
    palette = checkpoints.Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32))
    checkpoints.save_model(tmp_path, random_model(tiny()), palette, {})
    loaded = checkpoints.load(tmp_path, dtype="bfloat16")
    np.testing.assert_array_equal(loaded.palette.centers, palette.centers)
    assert loaded.model_config.dtype == "bfloat16"


@pytest.mark.parametrize(
    "wrong", [{"block": 2}, {"class_layer": 1}, {"objective": "prefix"}, {"layers": 3}, {"heads": 2}, {"tokens_per_pixel": 1}, {"dtpye": "bfloat16"}], ids=str
)
def test_an_override_that_is_not_about_the_computation_is_refused_before_anything_is_read(tmp_path, wrong):
    """Of a run, a file, a model in the package and one of the hub; also beside one that is taken."""
    (name,) = wrong
    message = f"^igpt_jax.load cannot set {name}: besides path, mesh, image_size and ema it takes {', '.join(checkpoints.FREE_FIELDS)}; [^\n]*$"
    for path in (tmp_path / "nothing", tmp_path / "nothing.safetensors", "cifar10-16", "hf:nobody/nothing"):
        for load in (igpt_jax.load, checkpoints.load) if not str(path).startswith("hf:") else (igpt_jax.load,):
            with pytest.raises(ValueError, match=message):
                load(path, **wrong, dtype="float32")


def test_every_field_about_the_computation_can_be_overridden_and_changes_no_number():
    settings = {"dtype": "float32", "remat": "full", "unroll": 2, "attention": "reference", "matmul_precision": "high", "dropout": 0.5}
    assert settings.keys() == {*checkpoints.FREE_FIELDS}
    plain, changed = igpt_jax.load("cifar10-16", dtype="float32"), igpt_jax.load("cifar10-16", **settings)
    codes = np.random.default_rng(0).integers(0, plain.palette.size, (2, 256), np.int32)
    np.testing.assert_allclose(changed(codes).logits, plain(codes).logits, atol=1e-4)  # sums in another order
    for name, value in settings.items():
        assert getattr(changed.model_config, name) == value


def test_a_loaded_model_can_be_pickled_and_copied_also_after_a_call(tmp_path):
    checkpoints.save_model(tmp_path, random_model(tiny()), PALETTE, {})
    loaded = checkpoints.load(tmp_path)
    codes = np.random.default_rng(0).integers(0, 16, (2, loaded.model_config.positions))
    expected = loaded(codes).logits
    for again in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        np.testing.assert_array_equal(again(codes).logits, expected)


def test_what_is_not_there_is_said_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: give the --workdir of a training run"):
        checkpoints.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
        checkpoints.load(tmp_path)
    assert checkpoints.restore_state(tmp_path, abstract_state(tiny(), sharding.make_mesh())) is None


def test_only_a_broken_step_is_an_error_that_changes_nothing(tmp_path, capsys):
    checkpoints.save_model(tmp_path, random_model(tiny()), PALETTE, {})
    (tmp_path / "checkpoints/0/meta/metadata").unlink()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoints.load(tmp_path)
    assert "cannot be read" in capsys.readouterr().err
    assert (tmp_path / "checkpoints/0").exists()


def test_paths_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run", init_state(tiny(), sharding.make_mesh(), jax.random.key(0)))
    assert checkpoints.load("run").path == "run/checkpoints/3"
    assert int(checkpoints.restore_state("run", abstract_state(tiny(), sharding.make_mesh()))[0].step) == 0
    checkpoints.save_model("model", random_model(tiny()), PALETTE, {})
    assert checkpoints.load("model").step == 0


@pytest.fixture
def failing(monkeypatch):
    """Lets so many of the next writes fail."""
    left, save_as_ever = [0], storage.ocp.CheckpointManager.save

    def save(self, *arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError("Input/output error")
        return save_as_ever(self, *arguments, **options)

    monkeypatch.setattr(storage.ocp.CheckpointManager, "save", save)
    monkeypatch.setattr(checkpoints, "PAUSES", (0.0, 0.0))
    return left


def test_a_write_that_fails_is_tried_again_and_then_is_an_error_that_leaves_the_old_ones(tmp_path, failing, capsys):
    state = init_state(tiny(), sharding.make_mesh(), jax.random.key(0))
    failing[0] = 2
    save(tmp_path, state, 3)
    assert capsys.readouterr().err.count("checkpoint 3 cannot be written, trying again in 0 s: Input/output error") == 2
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints/3").rglob("*") if path.is_file()}
    failing[0] = 3
    with pytest.raises(OSError, match=r"^checkpoint 4 cannot be written to .*: Input/output error; steps \[3\] are saved; free some disk space"):
        save(tmp_path, state, 4)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()} == before
    save(tmp_path, state, 5)
    assert checkpoints.load(tmp_path).step == 5


def test_a_write_that_fails_behind_the_runs_back_is_noticed(tmp_path, monkeypatch):
    state = init_state(tiny(), sharding.make_mesh(), jax.random.key(0))
    writer = checkpoints.Checkpoints(tmp_path, keep_last=2, keep_every=0)
    assert not writer.failed()
    before = writer.manager
    monkeypatch.setattr(before, "check_for_errors", lambda: (_ for _ in ()).throw(OSError("Input/output error")))
    assert writer.failed() and writer.manager is not before and not writer.failed()
    writer.save(4, state, checkpoints.make_meta(tiny(), PALETTE, {}, 0), wait=True)
    assert checkpoints.load(tmp_path).step == 4
    writer.close()


def test_a_checkpoint_of_other_shapes_is_said_and_stays(tmp_path):
    save(tmp_path, init_state(tiny(), sharding.make_mesh(), jax.random.key(0)))
    wider = abstract_state(tiny(width=64, layers=2, dtype="bfloat16"), sharding.make_mesh())
    with pytest.raises(ValueError, match=r"the model in .*checkpoints/3 has layers 3 and not 2, width 32 and not 64: use its recipe, or another --workdir"):
        checkpoints.restore_state(tmp_path, wider)
    assert checkpoints.load(tmp_path).step == 3


def test_a_step_that_was_never_committed_is_not_offered(tmp_path, monkeypatch):
    """Where there are no renames (gs://) an uncommitted step has its final name; orbax knows it by a file."""
    state = init_state(tiny(), sharding.make_mesh(), jax.random.key(0))
    save(tmp_path, state, 3)
    save(tmp_path, state, 4)
    known = storage.ocp.utils.is_checkpoint_finalized
    monkeypatch.setattr(storage.ocp.utils, "is_checkpoint_finalized", lambda path: path.name != "4" and known(path))
    assert checkpoints.load(tmp_path).step == 3


def test_one_bit_that_flipped_is_seen_whichever_it_is(tmp_path, capsys):
    state = init_state(tiny(), sharding.make_mesh(1, 4, 2), jax.random.key(0))
    nested = jax.tree.map(np.asarray, checkpoints.to_nested(state.model))
    expected = checkpoints.checksum(checkpoints.to_nested(state.model))
    assert checkpoints.checksum(nested) == expected  # of one device
    for place in ((0, 0, 0, 0, 0), (2, 31, 2, 3, 7), (1, 5, 1, 2, 3)):
        changed = jax.tree.map(np.copy, nested)
        changed["blocks"]["query_key_value"].view(np.uint32)[place] ^= 1 << 31
        assert checkpoints.checksum(changed) != expected
    exchanged = jax.tree.map(np.copy, nested)
    exchanged["token_embedding"][[0, 1]] = exchanged["token_embedding"][[1, 0]]
    assert checkpoints.checksum(exchanged) != expected

    save(tmp_path, state, 3)
    save(tmp_path, dataclasses.replace(state, model=random_model(tiny())), 4)
    meta = next((tmp_path / "checkpoints/4/meta").glob("*"))
    meta.write_text(meta.read_text().replace('"model": ' + str(checkpoints.checksum(checkpoints.to_nested(random_model(tiny())))), '"model": 1'))
    assert checkpoints.load(tmp_path).step == 3
    assert "the checksum of model is not the one that was written with it" in capsys.readouterr().err


SMALL = tiny(layers=1, width=8, heads=1)


def small_state(mesh=None):
    return init_state(SMALL, mesh or sharding.make_mesh(), jax.random.key(0))


def save_small(workdir, *steps):
    """Steps of a run of a very small model; and every byte of it."""
    writer = checkpoints.Checkpoints(workdir, keep_last=5, keep_every=0)
    for step in steps:
        writer.save(step, small_state(), checkpoints.make_meta(SMALL, PALETTE, {"seed": 7}, images_seen=48), wait=True)
    writer.close()
    return contents(workdir)


def contents(workdir):
    return {path: path.read_bytes() for path in pathlib.Path(workdir).rglob("*") if path.is_file() and not path.is_symlink()}


def restore_small(workdir):
    return checkpoints.restore_state(workdir, abstract_state(SMALL, sharding.make_mesh()))


def arrays_of(workdir, step, item):
    """The files in which the numbers are."""
    return list((workdir / f"checkpoints/{step}/{item}").rglob("d/*"))


@pytest.mark.parametrize("which", ["model", "training", "meta", "directory"])
def test_a_file_that_cannot_be_read_for_a_moment_stops_the_run_and_changes_nothing(tmp_path, which):
    before = save_small(tmp_path, 3, 4)
    path = tmp_path / "checkpoints" / ("" if which == "directory" else f"4/{which}")
    kept = tmp_path / "kept"
    path.rename(kept)
    path.symlink_to(path)  # to open it is an OSError, for root too
    with pytest.raises(OSError) as said:
        restore_small(tmp_path)
    assert which == "directory" or "checkpoints/4 cannot be read: " in str(said.value) and "nothing was changed, fix that" in str(said.value)
    if which in ("model", "meta"):
        with pytest.raises(OSError, match="checkpoints/4 cannot be read: "):
            checkpoints.load(tmp_path)
    path.unlink()
    kept.rename(path)
    assert contents(tmp_path) == before and int(restore_small(tmp_path)[1]["data"]["images_seen"]) == 48


@pytest.mark.parametrize("error", [MemoryError("no more"), RuntimeError("RESOURCE_EXHAUSTED: out of memory"), KeyError("mu"), OSError("Input/output error")])
def test_an_error_that_is_no_evidence_of_damage_sets_nothing_aside(tmp_path, monkeypatch, error):
    before = save_small(tmp_path, 3, 4)

    def fail(*_):
        try:
            raise FileNotFoundError("one place that was looked into before")
        except FileNotFoundError:
            raise error  # noqa: B904

    monkeypatch.setattr(storage, "restore_trees", fail)
    with pytest.raises(OSError, match=rf"checkpoints/4 cannot be read: {type(error).__name__}: .*; nothing was changed"):
        restore_small(tmp_path)
    assert contents(tmp_path) == before


def test_damage_is_set_aside_only_where_an_older_step_is_whole(tmp_path, capsys):
    save_small(tmp_path, 3, 4, 5)
    for path in arrays_of(tmp_path, 5, "training"):
        os.truncate(path, path.stat().st_size // 2)
    (tmp_path / "checkpoints/4/meta/metadata").unlink()
    assert restore_small(tmp_path) is not None
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4.broken", "5.broken"]
    for path in arrays_of(tmp_path, 3, "model"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    before = contents(tmp_path)
    for _ in range(2):  # a second start is no fresh one
        message = r"none of the checkpoints \[3\] in .* is complete: nothing was changed; restore one from a copy, or remove that directory"
        with pytest.raises(OSError, match=message):
            restore_small(tmp_path)
    assert contents(tmp_path) == before and capsys.readouterr().err.count("trying the one before it") == 4


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    before = save_small(tmp_path, 3)
    meta = tmp_path / "checkpoints/3/meta/metadata"
    meta.write_text(meta.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(OSError, match="it has format 3 and this version reads up to 2: use the version of igpt_jax that wrote it"):
        restore_small(tmp_path)
    assert contents(tmp_path).keys() == before.keys()


def test_the_optimisers_state_lies_under_its_names():
    """The same whatever the recipe, of which a state is made without its optimiser's part."""
    assert set(checkpoints.to_nested(small_state())["opt_state"]["adam"]) == {"count", "mu", "nu"}


def test_the_checksum_by_hand():
    """The number at place i of array n, both from 0, weighs 2 (i + n + 1) + 1. With other weights all checkpoints that there are would be damaged ones."""
    tree = {"a": np.asarray([[1, 10, 100], [1000, 10_000, 2**32 - 1]], np.uint32), "b": np.asarray(7, np.uint32)}
    assert checkpoints.checksum(tree) == (1 * 3 + 10 * 5 + 100 * 7 + 1000 * 9 + 10_000 * 11 + (2**32 - 1) * 13 + 7 * 5) % 2**32


def test_a_checkpoint_is_begun_only_where_the_disk_has_room(tmp_path, monkeypatch):
    """For half as much again as the arrays, 2.5 MiB, and 256 KiB; a byte less is refused, and both sizes are said."""
    writer, usage = checkpoints.Checkpoints(tmp_path, keep_last=2, keep_every=0), shutil.disk_usage(tmp_path)
    state = {"some": np.zeros(2**19, np.float32), "more": np.zeros(2**17, np.int32)}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**22))
    writer.check_space(state)
    for free, said in ((2**22 - 1, "4.0"), (2**20, "1.0")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        with pytest.raises(OSError, match=rf"^No space left on the disk: {said} MiB free and a checkpoint may take 4\.0 MiB$"):
            writer.check_space(state)
    writer.close()


def test_a_step_loads_under_any_name_and_from_the_home(tmp_path, monkeypatch):
    """Copied out of its run, renamed, and named by ~; the step is still known, also of what was written before the meta said it."""
    model, palette = random_model(tiny()), grey_palette(16)
    checkpoints.save_model(tmp_path / "run", model, palette, {"batch_size": 4}, step=120)
    copied = tmp_path / "best_model"
    shutil.copytree(tmp_path / "run" / "checkpoints" / "120", copied)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (copied, "~/best_model", tmp_path / "run" / "checkpoints" / "120"):
        found = checkpoints.load(path)
        assert found.step == 120 and checkpoints.checksum(checkpoints.to_nested(found.model)) == checkpoints.checksum(checkpoints.to_nested(model))
    assert checkpoints.identify("~/best_model")[:2] == (str(copied), 120)
    [file] = [path for path in (copied / "meta").rglob("*") if path.is_file() and '"step"' in path.read_text(errors="ignore")]
    meta = json.loads(file.read_text())
    assert meta.pop("step") == 120 and meta["data"] == {"images_seen": 0}  # of a model alone
    file.write_text(json.dumps(meta | {"data": {"images_seen": 280}}))
    assert checkpoints.load(copied).step == 70
