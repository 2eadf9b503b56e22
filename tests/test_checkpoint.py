"""Checkpoints: every bit comes back, on any mesh; what is not there or not whole is said."""

import dataclasses

import jax
import numpy as np
import pytest

from igpt_jax import checkpoint, sharding
from igpt_jax.optim import OptimConfig
from igpt_jax.state import abstract_state, init_state
from tests.models import random_model, tiny
from tests.runs import grey_palette

OPTIM = OptimConfig(
    learning_rate=0.01, schedule="cosine", warmup_steps=2, steps=50, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip_norm=1.0, spike=0.0
)  # fmt: skip
PALETTE = grey_palette(16)


def save(workdir, state, step=3, **options):
    checkpoints = checkpoint.Checkpoints(workdir, **{"keep_last": 2, "keep_every": 0} | options)
    checkpoints.save(step, state, checkpoint.make_meta(tiny(), PALETTE, {"seed": 7}, images_seen=48))
    checkpoints.close()


def test_every_bit_comes_back_on_any_mesh(tmp_path):
    state = init_state(tiny(), OPTIM, sharding.make_mesh(1, 4, 2), jax.random.key(0))
    save(tmp_path, state)
    for sizes, devices in (((1, 8, 1), 8), ((2, 2, 2), 8), ((1, 1, 1), 1)):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:devices])
        restored, meta = checkpoint.restore_state(tmp_path, abstract_state(tiny(), OPTIM, mesh))
        assert meta["data"] == {"images_seen": 48} and meta["config"] == {"seed": 7}
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert len(ours.sharding.device_set) == devices


def test_the_arrays_are_a_plain_nested_dict_under_our_names(tmp_path):
    import orbax.checkpoint as ocp

    checkpoint.save_model(tmp_path, random_model(tiny()), PALETTE, {})
    with ocp.StandardCheckpointer() as reader:
        raw = reader.restore(tmp_path / "checkpoints/0/model")
    assert set(raw) == {"token_embedding", "position_embedding", "start_vector", "blocks", "final_norm", "output_embedding"}
    assert set(raw["blocks"]) == {"attention_norm", "query_key_value", "attention_output", "mlp_norm", "mlp_in", "mlp_out"}


def test_a_checkpoint_from_before_there_were_options_has_the_papers(tmp_path):
    import json

    model = random_model(tiny())
    checkpoint.save_model(tmp_path, model, PALETTE, {})
    path = next((tmp_path / "checkpoints/0/meta").glob("*"))
    meta = json.loads(path.read_text())
    for name in ("tokens_per_pixel", "position_encoding", "qk_norm", "activation"):
        del meta["model"][name]
    path.write_text(json.dumps(meta))
    assert checkpoint.load(tmp_path).model_config == model.config


def test_the_last_few_and_every_so_many_are_kept(tmp_path):
    state = init_state(tiny(), OPTIM, sharding.make_mesh(), jax.random.key(0))
    for step in range(1, 8):
        save(tmp_path, state, step, keep_every=3)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7]


def test_palette_survives_exactly_and_overrides_are_taken(tmp_path):
    palette = checkpoint.Palette(np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32))
    checkpoint.save_model(tmp_path, random_model(tiny()), palette, {})
    loaded = checkpoint.load(tmp_path, dtype="bfloat16")
    np.testing.assert_array_equal(loaded.palette.centers, palette.centers)
    assert loaded.model_config.dtype == "bfloat16"


def test_what_is_not_there_is_said_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: give the --workdir of a training run"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no whole checkpoint in"):
        checkpoint.load(tmp_path)
    assert checkpoint.restore_state(tmp_path, abstract_state(tiny(), OPTIM, sharding.make_mesh())) is None


def test_only_a_broken_step_is_an_error_that_changes_nothing(tmp_path, capsys):
    checkpoint.save_model(tmp_path, random_model(tiny()), PALETTE, {})
    (tmp_path / "checkpoints/0/meta/metadata").unlink()
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        checkpoint.load(tmp_path)
    assert "cannot be read" in capsys.readouterr().err
    assert (tmp_path / "checkpoints/0").exists()


def test_paths_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run", init_state(tiny(), OPTIM, sharding.make_mesh(), jax.random.key(0)))
    assert checkpoint.load("run").path == "run/checkpoints/3"
    assert int(checkpoint.restore_state("run", abstract_state(tiny(), OPTIM, sharding.make_mesh()))[0].step) == 0
    checkpoint.save_model("model", random_model(tiny()), PALETTE, {})
    assert checkpoint.load("model").step == 0


@pytest.fixture
def failing(monkeypatch):
    """Lets so many of the next writes fail."""
    left, save_as_ever = [0], checkpoint.ocp.CheckpointManager.save

    def save(self, *arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError("Input/output error")
        return save_as_ever(self, *arguments, **options)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", save)
    monkeypatch.setattr(checkpoint, "PAUSES", (0.0, 0.0))
    return left


def test_a_write_that_fails_is_tried_again_and_then_is_an_error_that_leaves_the_old_ones(tmp_path, failing, capsys):
    state = init_state(tiny(), OPTIM, sharding.make_mesh(), jax.random.key(0))
    failing[0] = 2
    save(tmp_path, state, 3)
    assert capsys.readouterr().err.count("checkpoint 3 cannot be written, trying again in 0 s: Input/output error") == 2
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints/3").rglob("*") if path.is_file()}
    failing[0] = 3
    with pytest.raises(OSError, match=r"^checkpoint 4 cannot be written to .*: Input/output error; steps \[3\] are saved; make room, or mend the disk"):
        save(tmp_path, state, 4)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()} == before
    save(tmp_path, state, 5)
    assert checkpoint.load(tmp_path).step == 5


def test_a_write_that_fails_behind_the_runs_back_is_noticed(tmp_path, monkeypatch):
    state = init_state(tiny(), OPTIM, sharding.make_mesh(), jax.random.key(0))
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=2, keep_every=0)
    assert not checkpoints.failed()
    before = checkpoints.manager
    monkeypatch.setattr(before, "check_for_errors", lambda: (_ for _ in ()).throw(OSError("Input/output error")))
    assert checkpoints.failed() and checkpoints.manager is not before and not checkpoints.failed()
    checkpoints.save(4, state, checkpoint.make_meta(tiny(), PALETTE, {}, 0), wait=True)
    assert checkpoint.load(tmp_path).step == 4
    checkpoints.close()


def test_a_checkpoint_of_other_shapes_is_said_and_stays(tmp_path):
    save(tmp_path, init_state(tiny(), OPTIM, sharding.make_mesh(), jax.random.key(0)))
    wider = abstract_state(tiny(width=64, layers=2, dtype="bfloat16"), OPTIM, sharding.make_mesh())
    with pytest.raises(ValueError, match=r"the model in .*checkpoints/3 has layers 3 and not 2, width 32 and not 64: take its recipe, or another --workdir"):
        checkpoint.restore_state(tmp_path, wider)
    assert checkpoint.load(tmp_path).step == 3


def test_a_step_that_was_never_committed_is_not_offered(tmp_path, monkeypatch):
    """Where there are no renames (gs://) an uncommitted step has its final name; orbax knows it by a file."""
    state = init_state(tiny(), OPTIM, sharding.make_mesh(), jax.random.key(0))
    save(tmp_path, state, 3)
    save(tmp_path, state, 4)
    known = checkpoint.ocp.utils.is_checkpoint_finalized
    monkeypatch.setattr(checkpoint.ocp.utils, "is_checkpoint_finalized", lambda path: path.name != "4" and known(path))
    assert checkpoint.load(tmp_path).step == 3


def test_one_bit_that_flipped_is_seen_whichever_it_is(tmp_path, capsys):
    state = init_state(tiny(), OPTIM, sharding.make_mesh(1, 4, 2), jax.random.key(0))
    nested = jax.tree.map(np.asarray, checkpoint.to_nested(state.model))
    expected = checkpoint.checksum(checkpoint.to_nested(state.model))
    assert checkpoint.checksum(nested) == expected  # of one device
    for place in ((0, 0, 0, 0, 0), (2, 31, 2, 3, 7), (1, 5, 1, 2, 3)):
        changed = jax.tree.map(np.copy, nested)
        changed["blocks"]["query_key_value"].view(np.uint32)[place] ^= 1 << 31
        assert checkpoint.checksum(changed) != expected
    exchanged = jax.tree.map(np.copy, nested)
    exchanged["token_embedding"][[0, 1]] = exchanged["token_embedding"][[1, 0]]
    assert checkpoint.checksum(exchanged) != expected

    save(tmp_path, state, 3)
    save(tmp_path, dataclasses.replace(state, model=random_model(tiny())), 4)
    meta = next((tmp_path / "checkpoints/4/meta").glob("*"))
    meta.write_text(meta.read_text().replace('"model": ' + str(checkpoint.checksum(checkpoint.to_nested(random_model(tiny())))), '"model": 1'))
    assert checkpoint.load(tmp_path).step == 3
    assert "the bits of model are not those that were written" in capsys.readouterr().err
