"""Sweeps: shards partition the jobs, failures are tried again and reported, finished jobs are not repeated, and each study runs at its smallest size."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.studies import accuracy_by_layer, accuracy_by_loss, draws, low_data, resolution, stages, sweep
from tests.runs import call, flags, recipe

BUDGET = draws.Budget(finetune_steps=3, evaluate_every=2, patience=5, finetune_rate=0.0)
PROBING = stages.Probing(labels_per_class=20, test_images=60, solver="lbfgs")


def figure(name="sum"):
    return sweep.Figure(name, lambda rows: {"total": sum(row["value"] for row in rows)}, lambda found: [f"total {found['total']}"], lambda found: Figure())


def counting(values, calls):
    """Jobs that note that they were called; a value that is an exception is raised, a list gives its next."""

    def work(name, value):
        calls.append(name)
        value = value.pop(0) if isinstance(value, list) else value
        if isinstance(value, BaseException):
            raise value
        return {"value": value}

    return [sweep.Job(name, lambda name=name, value=value: work(name, value)) for name, value in values.items()]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
def test_shards_partition_the_jobs(count):
    jobs = counting({f"job-{number}": 1 for number in range(7)}, [])
    shards = [sweep.share(jobs, f"{index}/{count}") for index in range(count)]
    assert sorted(job.name for shard in shards for job in shard) == sorted(job.name for job in jobs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert sweep.share(jobs, None) == jobs


@pytest.mark.parametrize("shard", ["3/3", "0/0", "1", "a/b", "-1/4", "0/4/4"])
def test_a_malformed_shard_is_refused(shard):
    with pytest.raises(ValueError, match="must be i/n with i from 0"):
        sweep.share(counting({"a": 1}, []), shard)


def test_two_jobs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="different names"):
        sweep.share([*counting({"a": 1}, []), *counting({"a": 2}, [])], None)


def test_a_job_that_fails_is_tried_again_and_the_others_are_kept(tmp_path, capsys):
    calls = []
    values = {"good": 1, "once": [ValueError("no\nroom"), 2], "never": [OSError("broken"), OSError("broken")], "last": 4}
    with pytest.raises(SystemExit, match="error: 1 of 4 jobs failed, never: run the same command to try them again"):
        sweep.run(figure(), counting(values, calls), recipe(), {}, tmp_path, results=tmp_path / "results")
    assert calls == ["good", "once", "once", "never", "never", "last"]
    errors = capsys.readouterr().err
    assert "job once failed, try 1 of 2: ValueError: no room" in errors and "job never failed, try 2 of 2: OSError: broken" in errors
    assert "Traceback" in (tmp_path / "jobs/never.error").read_text() and not (tmp_path / "jobs/once.error").exists()
    found = json.loads((tmp_path / "results/sum.json").read_text())
    assert found["total"] == 7 and found["missing"] == ["never"]  # the figure is drawn from what there is
    calls.clear()
    found = sweep.run(figure(), counting(values | {"never": 3}, calls), recipe(), {}, tmp_path)
    assert calls == ["never"] and found["total"] == 10 and not found["missing"]
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.error"))


def test_shards_do_their_own_and_the_last_call_gathers(tmp_path, capsys):
    calls, values = [], {"a": 1, "b": 2, "c": 4}
    assert sweep.run(figure(), counting(values, calls), recipe(), {}, tmp_path, shard="1/2") is None
    assert calls == ["b"] and not (tmp_path / "sum.json").exists() and "1 of 3 jobs are done" in capsys.readouterr().out
    sweep.run(figure(), counting(values, calls), recipe(), {}, tmp_path, shard="0/2")
    found = sweep.run(figure(), counting(values, calls), recipe(), {}, tmp_path)
    assert calls == ["b", "a", "c"] and found["total"] == 7
    assert (tmp_path / "sum.png").read_bytes().startswith(b"\x89PNG")
    assert found["commit"] and found["hardware"] and all(row["commit"] and row["seconds"] >= 0 for row in found["jobs"])
    assert found["recipe"]["seed"] == 0


def test_without_tries_nothing_runs_and_what_is_there_is_drawn(tmp_path, capsys):
    calls, values = [], {"a": 1, "b": 2}
    assert sweep.run(figure(), counting(values, calls), recipe(), {}, tmp_path, tries=0) is None
    assert "none of 2 jobs is done" in capsys.readouterr().err
    sweep.run(figure(), counting(values, calls), recipe(), {}, tmp_path, shard="0/2")
    found = sweep.run(figure(), counting(values, calls), recipe(), {}, tmp_path, tries=0)
    assert calls == ["a"] and found["total"] == 1 and found["missing"] == ["b"]


def test_a_signal_ends_the_sweep_and_is_no_failure(tmp_path):
    calls = []
    with pytest.raises(SystemExit, match="stopped"):
        sweep.run(figure(), counting({"a": 1, "b": SystemExit("stopped by a signal"), "c": 1}, calls), recipe(), {}, tmp_path)
    assert calls == ["a", "b"] and (tmp_path / "jobs/a.json").exists()


def test_jobs_of_another_recipe_or_setting_are_not_mixed(tmp_path):
    sweep.run(figure(), counting({"a": 1}, []), recipe(), {"test_images": 60}, tmp_path)
    with pytest.raises(ValueError, match="sweep.test_images 60 -> 80"):
        sweep.run(figure(), counting({"a": 1}, []), recipe(), {"test_images": 80}, tmp_path)
    with pytest.raises(ValueError, match="steps 12 -> 24"):
        sweep.run(figure(), counting({"a": 1}, []), recipe(steps=24), {"test_images": 60}, tmp_path)


def test_a_sweep_of_an_older_version_continues_unless_a_newer_key_is_set(tmp_path):
    sweep.run(figure(), counting({"a": 1}, []), recipe(), {}, tmp_path)
    older = json.loads((tmp_path / "config.json").read_text())
    del older["model"]["qk_norm"], older["deterministic"], older["eval_pictures"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match="another recipe: model.qk_norm False -> True"):
        sweep.run(figure(), counting({"a": 1}, []), recipe(model__qk_norm=True), {}, tmp_path)
    assert sweep.run(figure(), counting({"a": 1}, []), recipe(eval_pictures=4), {}, tmp_path)["total"] == 1


def test_a_folder_is_made_once_and_whole(tmp_path):
    def make(text):
        return lambda folder: (folder / "file").write_text(text)

    assert (stages.make_once(tmp_path / "one", make("first"), {}) / "file").read_text() == "first"
    assert (stages.make_once(tmp_path / "one", make("second"), {}) / "file").read_text() == "first"

    def slower(folder):
        make("mine")(folder)
        stages.make_once(tmp_path / "two", make("theirs"), {})  # another host was faster

    assert (stages.make_once(tmp_path / "two", slower, {}) / "file").read_text() == "theirs"
    with pytest.raises(OSError, match="full"):
        stages.make_once(tmp_path / "three", lambda folder: (_ for _ in ()).throw(OSError("disk full")), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_changed_values_reach_what_refers_to_them():
    config = recipe()
    smaller = stages.changed(config, data__image_size=4, palette__size=5)
    assert (smaller.model.positions, smaller.model.vocabulary) == (16, 5) and (config.model.positions, config.model.vocabulary) == (64, 8)


def test_few_images_are_the_same_for_every_model_and_of_all_classes(tmp_path):
    images = PROBING.images(recipe(), "digits", tmp_path / "few")
    labels = np.load(tmp_path / "few/train.npz")["labels"]
    assert (np.bincount(labels) == 20).all() and len(np.load(tmp_path / "few/test.npz")["labels"]) == 60
    assert PROBING.images(recipe(seed=3), "digits", tmp_path / "few") == images and images.source == f"npz:{tmp_path}/few"
    assert stages.Probing(0, 0, "lbfgs").images(recipe(), "digits", tmp_path / "all").source == "digits" and not (tmp_path / "all").exists()


def test_wrong_lists_are_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="LAYERSxWIDTH"):
        accuracy_by_loss.recipe_of(recipe(), "8", 2)
    with pytest.raises(ValueError, match="head size 8"):
        accuracy_by_loss.recipe_of(recipe(), "2x20", 2)
    with pytest.raises(ValueError, match="multiple of 8"):
        accuracy_by_loss.recipe_of(recipe(), "2x16", 4)
    with pytest.raises(ValueError, match="list of pixels"):
        resolution.sweep_resolutions(recipe(), tmp_path, ["4", "x"], 1, PROBING)
    with pytest.raises(ValueError, match="two data sets are called b"):
        accuracy_by_layer.named_sources(["npz:a/b", "tfds:b"])
    with pytest.raises(ValueError, match="list of numbers of labels"):
        low_data.sweep_labels(recipe(), tmp_path, ["bert"], ["4", "x"], 1, PROBING, BUDGET)
    assert not list(tmp_path.iterdir())
    assert accuracy_by_layer.named_sources(["CIFAR-10 (JPEG q75)=npz:/data/cifar", "tfds:fashion_mnist", "digits"]) == {
        "CIFAR-10 (JPEG q75)": "npz:/data/cifar", "fashion_mnist": "tfds:fashion_mnist", "digits": "digits",
    }  # fmt: skip


def test_sizes_become_recipes_with_a_checkpoint_at_every_snapshot():
    made = accuracy_by_loss.recipe_of(recipe(steps=16), "3x32@0.001", 3)
    assert (made.model.layers, made.model.width, made.model.heads, made.model.unroll) == (3, 32, 4, 3)
    assert (made.save_every, made.keep_every, made.optim.learning_rate) == (4, 4, 0.001)


@pytest.mark.slow
def test_layers_at_their_smallest(tmp_path, monkeypatch):
    def start():
        return accuracy_by_layer.sweep_layers(recipe(steps=4, eval_every=4, save_every=4), tmp_path, ["autoregressive", "bert"], 1, [], PROBING)

    found = start()
    ways = list(dict.fromkeys(curve["way"] for curve in found["curves"]))
    kinds = [(curve["way"], curve["objective"]) for curve in found["curves"]]
    assert ways[0] == "linear probe" and kinds == [(way, objective) for way in ways for objective in ("autoregressive", "bert")]
    assert found["curves"][0]["layers"] == [0, 1, 2] and found["curves"][0]["counts"] == {"train": 180, "validation": 20, "test": 60, "refit": 200}
    assert [(row["way"], row["test"] > 0.5) for row in found["raw_pixels"]] == [(way, True) for way in ways]
    probe = json.loads((tmp_path / "probes/autoregressive-0/digits/probe.json").read_text())  # what igpt_jax.probe says of the same images
    assert found["curves"][0]["mean"] == pytest.approx([row["test"] for row in probe["layers"]])
    assert found["curves"][0]["validation"] == pytest.approx([row["validation"] for row in probe["layers"]])
    assert {len(row["fingerprint"]) for row in found["measurements"]} == {33} and len(found["measurements"]) == len(ways) * (2 * 5 + 1)
    for module in (stages.loop, stages.features, stages.probe):  # nothing is done a second time
        monkeypatch.setattr(module, "train" if module is stages.loop else "main", None)
    assert start()["curves"] == found["curves"]
    (tmp_path / "jobs/bert-0.json").unlink()  # the job again, but its stages are kept
    assert start()["curves"] == found["curves"]
    again = accuracy_by_layer.sweep_layers(recipe(), tmp_path / "other", [], 1, [], PROBING, [str(tmp_path / "models/bert-0")], tries=0)
    assert again is None


@pytest.mark.slow
def test_layers_of_a_checkpoint_that_is_there(tmp_path):
    config = stages.with_palette(recipe(steps=2, eval_every=2, save_every=2), tmp_path)
    stages.pretrain(config, tmp_path / "model")
    found = accuracy_by_layer.sweep_layers(config, tmp_path / "work", ["bert"], 1, ["mine=digits"], PROBING, [str(tmp_path / "model")])
    assert {(curve["data"], curve["objective"], *curve["seeds"]) for curve in found["curves"]} == {("mine", "autoregressive", 0)}
    assert {row["resolution"] for row in found["raw_pixels"]} == {8} and "model" in accuracy_by_layer.title(found)


@pytest.mark.slow
def test_losses_at_their_smallest(tmp_path):
    config = recipe(steps=4, eval_every=4)
    found = accuracy_by_loss.sweep_losses(config, tmp_path, ["2x16", "1x16"], 1, 2, PROBING, results=tmp_path / "results")
    assert [curve["size"] for curve in found["curves"]] == ["1x16", "2x16"] and [pair["larger"] for pair in found["gains"]] == ["2x16"]
    assert [[point["step"] for point in run] for run in found["curves"][0]["runs"]] == [[2, 4]]
    for row in found["jobs"]:
        for point in row["found"]["points"]:
            assert point["accuracy"] == point["layers"][point["best_layer"]]["test"] and point["images"] == 60
            assert point["layers"][point["best_layer"]]["validation"] == max(layer["validation"] for layer in point["layers"])
    assert found["raw_pixels"]["accuracy"] > 0.5
    losses = [(row["factors"]["size"], row["mean"]) for row in found["measurements"] if row["unit"] == "nats" and row["factors"]["step"] == 4]
    assert dict(losses) == pytest.approx({curve["size"]: curve["runs"][0][-1]["loss"] for curve in found["curves"]}, rel=1e-5)
    assert (tmp_path / "results/accuracy_by_loss.png").exists()


@pytest.mark.slow
def test_few_labels_at_their_smallest(tmp_path):
    config = recipe(steps=4, eval_every=4, save_every=4)
    found = low_data.sweep_labels(config, tmp_path, ["autoregressive"], ["4", "8"], 2, PROBING, BUDGET, finetune_labels=["4"], finetune_draws=1)
    ways = [(row["factors"]["way"], row["factors"].get("features", "model"), row["factors"]["labels"], row["seeds"]) for row in found["rows"]]
    probes = [(way, features, size, [0, 1]) for way in ("linear probe", "kNN") for features in ("model", "raw pixels") for size in (4, 8)]
    assert sorted(ways) == sorted([("fine-tuned", "model", 4, [0]), *probes])
    assert found["not_run"] == ["autoregressive: fine-tuning with 8 labels of each class was not run"]
    assert found["models"]["autoregressive"]["nats_per_pixel"] > 0


@pytest.mark.slow
def test_resolutions_by_shards_on_the_command_line(tmp_path):
    settings = ["--config=configs/digits.py", f"--workdir={tmp_path}", *flags(recipe(steps=2, eval_every=2, save_every=2)), "--sides=4,8", "--seeds=1"]
    settings += ["--labels_per_class=20", "--test_images=60", f"--results={tmp_path}/results"]
    code, out, error = call("experiments.studies.resolution", *settings, "--shard=1/2")
    assert code == 0 and "1 of 2 jobs are done" in out and not (tmp_path / "results").exists(), error
    code, out, error = call("experiments.studies.resolution", *settings)
    assert code == 0 and "1 of 2 jobs are done already" in out, error
    found = json.loads((tmp_path / "results/resolution.json").read_text())
    assert [row["side"] for row in found["sides"]] == [4, 8] and found["command"].startswith("python -m experiments.studies.resolution --config=")
