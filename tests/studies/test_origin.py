"""What is kept between starts is used again only if it was made of the same data and the same model: each hidden assumption of that is false once."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.report.measurements import fingerprint_of
from experiments.studies import accuracy_by_layer, origin, stages, sweep
from igpt_jax.data import pipeline
from igpt_jax.training import checkpoints
from tests.models import random_model, tiny
from tests.runs import grey_palette, recipe

PROBING = stages.Probing(labels_per_class=4, test_images=10, solver="lbfgs")
SUM = sweep.Figure("sum", lambda rows: {"total": len(rows)}, lambda found: ["a line"], lambda found: Figure())


def arrays(folder, change=None, seed=0):
    """An npz data set of 200 training and 40 test images of two classes; `change(part)` changes its arrays."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for name, count in (("train", 200), ("test", 40)):
        part = {"images": random.integers(0, 256, (count, 8, 8, 3), np.uint8), "labels": np.arange(count) % 2}
        if change and name == "test":
            change(part)
        np.savez(folder / f"{name}.npz", **part)
    return f"npz:{folder}"


def config_of(source, image_size=8):
    return stages.images_of(recipe(data__source=source, data__image_size=image_size))


@functools.cache
def model_of(objective):
    return random_model(tiny(objective=objective, layers=1, width=8, heads=2))


def save(place, seed=0, step=1, objective="autoregressive"):
    model = jax.tree.map(lambda leaf: leaf + seed, model_of(objective))
    checkpoints.save_model(place, model, grey_palette(16), {"data": {"source": "digits"}, "seed": 0}, step=step)
    return str(place)


def one_pixel(part):
    part["images"][17, 3, 3, 0] ^= 1  # of an image that is not the first, the last or in the middle


def one_label(part):
    part["labels"] = part["labels"].copy()
    part["labels"][17] ^= 1


@pytest.mark.parametrize("change", [one_pixel, one_label, lambda part: part.update(images=part["images"][::-1])])
def test_other_arrays_have_another_content(tmp_path, change):
    known = origin.of_images(config_of(arrays(tmp_path / "one")))
    other = origin.of_images(config_of(arrays(tmp_path / "two", change)))
    assert known["content"]["test"] != other["content"]["test"] and known["content"]["all_train"] == other["content"]["all_train"]


def test_the_same_arrays_have_the_same_content_in_another_folder_and_at_another_resolution(tmp_path):
    known, small = (origin.of_images(config_of(arrays(tmp_path / name), size)) for name, size in (("one", 8), ("two", 4)))
    assert known["content"] == small["content"] and known["test_images"] == small["test_images"] and known["image_size"] != small["image_size"]


def test_a_mixture_has_the_content_of_its_parts(tmp_path):
    mixture = f"{arrays(tmp_path / 'one')}*1 + {arrays(tmp_path / 'two', seed=1)}*2"
    known = origin.of_images(config_of(mixture))
    arrays(tmp_path / "two", one_pixel, seed=1)
    assert origin.of_images(config_of(mixture)) != known


def test_a_picture_that_is_replaced_under_its_name_is_another_content(tmp_path):
    def draw(level):
        for number in range(40):
            Image.fromarray(np.full((8, 8, 3), 5 * number + level, np.uint8)).save(tmp_path / f"{number}.png")

    draw(0)
    known = origin.of_images(config_of(f"folder:{tmp_path}"))
    assert origin.of_images(config_of(f"folder:{shutil.copytree(tmp_path, tmp_path.parent / f'{tmp_path.name}-moved')}")) == known
    draw(1)
    other = origin.of_images(config_of(f"folder:{tmp_path}"))
    assert known["content"].keys() == {"all_train", "test"} == other["content"].keys() and not known["content"].items() & other["content"].items()
    for number in range(1, 40):
        (tmp_path / f"{number}.png").unlink()
    assert origin.of_images(config_of(f"folder:{tmp_path}"))["content"].keys() == {"all_train"}  # too few for a test split


def test_models_are_compared_by_their_parameters_and_not_by_path_or_step(tmp_path, capsys):
    one, same, other = save(tmp_path / "one"), save(tmp_path / "same", step=7), save(tmp_path / "other", seed=1)
    known = {"model": origin.of_model(one)}
    origin.check("here", known, {"model": origin.of_model(same)})
    with pytest.raises(ValueError, match=r"^here was made of other data or of another model \(model.checksum \d+ there, \d+ now\): delete here, or give"):
        origin.check("here", known, {"model": origin.of_model(other)})
    assert not capsys.readouterr().err
    origin.check("here", {"model": {"step": 1}}, known)  # an older version wrote the step alone
    assert "note: here does not say of which model.checksum it was made" in capsys.readouterr().err
    with pytest.raises(ValueError, match="model.step 2 there, 1 now"):
        origin.check("here", {"model": {"step": 2}}, known)


def test_every_stage_refuses_what_was_made_of_others(tmp_path):
    stages.make_once(tmp_path / "folder", lambda folder: None, {"a": 1})
    stages.compute_once(tmp_path / "file.json", lambda: {"found": 1}, {"a": 1})

    def train():
        for name in ("config", "result"):
            (tmp_path / f"run/{name}.json").write_text("{}")

    stages.train_once(tmp_path / "run", train, {"a": 1})
    assert stages.compute_once(tmp_path / "file.json", lambda: {}, {"a": 1}) == {"found": 1} and stages.train_once(tmp_path / "run", train, {"a": 1}) == {}
    for again in (
        lambda: stages.make_once(tmp_path / "folder", lambda folder: None, {"a": 2}),
        lambda: stages.compute_once(tmp_path / "file.json", lambda: {}, {"a": 2}),
        lambda: stages.train_once(tmp_path / "run", train, {"a": 2}),
    ):
        with pytest.raises(ValueError, match=r"a 1 there, 2 now\): delete .*/(folder|file.json|run), or give another --workdir"):
            again()


def test_what_an_older_version_made_is_used_and_it_is_said(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.json").write_text('{"found": 1}')
    stages.make_once(tmp_path / "folder", lambda folder: None, {"a": 1})
    assert stages.compute_once(tmp_path / "file.json", lambda: {}, {"a": 1}) == {"found": 1}
    assert capsys.readouterr().err.count("does not say of which a it was made: it is used as it is") == 2


def test_images_of_a_sweep_are_refused_after_their_source_has_changed(tmp_path):
    config = recipe(data__source=arrays(tmp_path / "data"))
    PROBING.images(config, config.data.source, tmp_path / "pool")
    PROBING.images(stages.changed(config, data__directory="elsewhere"), config.data.source, tmp_path / "pool")
    arrays(tmp_path / "data", one_pixel)
    with pytest.raises(ValueError, match=r"images.content.test \d+ there, \d+ now.* delete .*/pool, or give another --workdir"):
        PROBING.images(config, config.data.source, tmp_path / "pool")
    arrays(tmp_path / "data")
    with pytest.raises(ValueError, match="images.seed 0 there, 5 now"):
        PROBING.images(stages.changed(config, data__seed=5), config.data.source, tmp_path / "pool")


def test_sorted_test_images_of_the_same_counts_have_other_fingerprints(tmp_path):
    def fingerprint(name, size=8, seed=0):
        config = recipe(data__source=arrays(tmp_path / name, seed=seed), data__image_size=size)
        images = PROBING.images(config, config.data.source, tmp_path / f"{name}-{size}")
        return fingerprint_of(pipeline.open_dataset(images, "test").labels, origin.of_images(images)["test_images"])

    first, again, smaller, others = fingerprint("one"), fingerprint("same"), fingerprint("one", 4), fingerprint("other", seed=1)
    assert first == again == smaller and first != others and first[:16] == others[:16]


def jobs_of(place, calls=(), work=dict):
    return [sweep.Job("one", work, place)]


def test_a_model_that_was_trained_further_is_refused_where_its_job_is_done(tmp_path):
    place, work = save(tmp_path / "run"), tmp_path / "work"
    sweep.run(SUM, jobs_of(place), recipe(), {}, work)
    assert sweep.run(SUM, jobs_of(place), recipe(), {}, work)["jobs"][0]["made_of"]["model"]["step"] == 1
    before = (work / "sum.json").read_bytes()
    (work / "probes/one").mkdir(parents=True)
    save(tmp_path / "run", seed=1, step=2)
    for tries in (2, 0):
        with pytest.raises(ValueError, match=r"jobs/one.json was made of .*model.checksum.*: delete .*/jobs/one.json and .*/probes/one, or give another"):
            sweep.run(SUM, jobs_of(place), recipe(), {}, work, tries=tries)
    assert (work / "sum.json").read_bytes() == before
    (work / "jobs/one.json").unlink()
    assert sweep.run(SUM, jobs_of(place), recipe(), {}, work)["jobs"][0]["made_of"]["model"]["step"] == 2


def test_data_that_have_changed_are_refused_where_a_job_is_done_and_their_directory_is_free(tmp_path, capsys):
    config, work = recipe(data__source=arrays(tmp_path / "data")), tmp_path / "work"
    sweep.run(SUM, jobs_of(None), config, {}, work)
    sweep.run(SUM, jobs_of(None), stages.changed(config, data__directory="elsewhere"), {}, work)
    arrays(tmp_path / "data", one_label)
    with pytest.raises(ValueError, match=r"jobs/one.json was made of other data .*content.test.*: delete .*/work, or give another --workdir"):
        sweep.run(SUM, jobs_of(None), config, {}, work)
    shutil.rmtree(tmp_path / "data")
    assert sweep.run(SUM, jobs_of(None), config, {}, work)["total"] == 1  # nothing is to be run, so the figure can be drawn without the data
    assert "note: the data cannot be read, so it is not compared" in capsys.readouterr().err
    with pytest.raises((ValueError, OSError)):
        sweep.run(SUM, [*jobs_of(None), sweep.Job("two", dict)], config, {}, work)


def test_a_model_that_changes_while_its_job_runs_fails_the_job(tmp_path, capsys):
    place = save(tmp_path / "run")
    with pytest.raises(SystemExit, match="1 of 1 jobs failed"):
        sweep.run(SUM, jobs_of(place, work=lambda: save(tmp_path / "run", seed=1, step=2) and {}), recipe(), {}, tmp_path / "work", tries=1)
    assert "its data or its model changed while it ran" in capsys.readouterr().err and not (tmp_path / "work/jobs/one.json").exists()


def test_a_job_of_an_older_version_is_compared_by_its_step(tmp_path, capsys):
    place, work = save(tmp_path / "run"), tmp_path / "work"
    sweep.run(SUM, jobs_of(place, work=lambda: {"model": {"step": 1}}), recipe(), {}, work)
    path = work / "jobs/one.json"
    row = json.loads(path.read_text())
    del row["made_of"]
    path.write_text(json.dumps(row))
    assert sweep.run(SUM, jobs_of(place), recipe(), {}, work)["total"] == 1
    assert "1 of 1 jobs in" in (error := capsys.readouterr().err) and "do not say of which data and model they are" in error
    path.write_text(json.dumps(row | {"found": {"model": {"step": 5}}}))
    with pytest.raises(ValueError, match="model.step 5 there, 1 now"):
        sweep.run(SUM, jobs_of(place), recipe(), {}, work)


def test_a_probe_of_another_model_is_refused_before_and_after_it_is_finished(tmp_path, monkeypatch):
    images, place = config_of("digits"), tmp_path / "probes"
    monkeypatch.setattr(stages.features, "main", lambda arguments: (place / "features.json").write_text("{}") and 0)
    monkeypatch.setattr(stages.probe, "main", lambda arguments: (place / "probe.json").write_text('{"best": 1}') and 0)
    run = save(tmp_path / "run")
    stages.write_features(run, images, place)  # stopped here
    save(tmp_path / "run", seed=1, step=2)
    with pytest.raises(ValueError, match="model.checksum .* delete .*/probes, or give another --workdir"):
        stages.probe_layers(run, images, place)
    shutil.rmtree(place)
    assert stages.probe_layers(run, images, place) == {"best": 1} == stages.probe_layers(run, images, place)
    save(tmp_path / "run", seed=2, step=2)  # at the same step
    with pytest.raises(ValueError, match="model.checksum .* delete .*/probes, or give another --workdir"):
        stages.probe_layers(run, images, place)


def test_features_of_an_older_version_are_compared_by_their_checksum(tmp_path, capsys):
    run, place, images = save(tmp_path / "run"), tmp_path / "probes", config_of("digits")
    place.mkdir()
    (place / "probe.json").write_text("{}")
    for step, checksum in ((1, origin.of_model(run)["checksum"]), (1, 5)):
        (place / "features.json").write_text(json.dumps({"step": step, "checksum": checksum}))
        if checksum == 5:
            with pytest.raises(ValueError, match="model.checksum 5 there"):
                stages.probe_layers(run, images, place)
        else:
            assert stages.probe_layers(run, images, place) == {} and "does not say of which images" in capsys.readouterr().err


def test_different_paths_are_different_jobs_and_an_older_job_keeps_its_name(tmp_path):
    names = {accuracy_by_layer.job_name(tmp_path, place) for place in ("a/b", "a_b", "a b", "bert-0")}
    assert len(names) == 4 and "a_b" not in names and "bert-0" not in names
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/a_b.json").write_text(json.dumps({"found": {"checkpoint": "a/b"}}))
    assert accuracy_by_layer.job_name(tmp_path, "a/b") == "a_b" and accuracy_by_layer.job_name(tmp_path, "a_b") != "a_b"


def test_raw_pixels_are_in_every_job_and_are_probed_once(tmp_path, monkeypatch):
    calls = []
    found = {"layers": [], "raw_pixels": {"accuracy": 0.5}, "fingerprint": "f"}
    monkeypatch.setattr(stages.Probing, "layers", lambda self, place, images, folder: {"counts": {}, "refit": {"images": 4}, "classes": 10, "seconds": 1})
    monkeypatch.setattr(stages, "read_ways", lambda place: {"linear probe": found | ({} if "pixels" in str(place) else {"raw_pixels": None})})
    monkeypatch.setattr(stages, "_probe", lambda features, out, options: calls.append(options))
    places = [save(tmp_path / name, objective=name) for name in ("autoregressive", "bert")]
    for name, place in zip("ab", places, strict=True):
        row = accuracy_by_layer.probe_model(recipe(), tmp_path / "work", {"digits": "digits"}, PROBING, name, place)
        assert row["probes"]["digits"]["ways"]["linear probe"]["raw_pixels"] == {"accuracy": 0.5}
    assert len(calls) == 1 and "--raw-pixels" in calls[0]
