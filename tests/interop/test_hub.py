"""Models by name, against a server on the loopback that speaks the hub's protocol: load, revisions, offline, refusals, damage, uploads."""

import importlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import igpt_jax
from igpt_jax import convert
from igpt_jax.distributed import multihost
from igpt_jax.interop import hub
from igpt_jax.interop.huggingface import to_hf
from igpt_jax.training import checkpoints
from tests.interop import servers
from tests.models import random_model, tiny
from tests.runs import grey_palette

hub_library = pytest.importorskip("huggingface_hub", reason="needs the extra `hub`")
importlib.import_module("huggingface_hub.constants")

ROOT = pathlib.Path(__file__).parents[2]
NAME = "hf:someone/small"
RECIPE = {"data": {"source": "digits", "augment": "none", "view": "center_square"}, "batch_size": 16, "seed": 7, "optim": {"learning_rate": 0.003}}


def make_run(path, seed=0, **changes):
    """Write a checkpoint of a small model with random parameters; return them and its place."""
    model = random_model(tiny(**changes), seed)
    checkpoints.save_model(path, model, grey_palette(16), RECIPE, step=12, class_names=("cat", "dog", "owl") if "classes" in changes else None)
    return model, path


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two models: (parameters, {file: content} of transformers' folder, the run)."""
    place, made = tmp_path_factory.mktemp("models"), []
    for seed in (0, 1):
        model, run = make_run(place / f"run{seed}", seed)
        to_hf(run, place / f"hf{seed}")
        made.append((model, files_of(place / f"hf{seed}"), run))
    return made


@pytest.fixture
def server():
    with servers.serving(servers.HubServer()) as running:
        yield running


@pytest.fixture
def online(server, tmp_path, monkeypatch, written):
    """The hub at the server, with one model, and empty caches. Conversions run in this process, which is faster."""
    constants = hub_library.constants
    point_at(server.address, monkeypatch)
    settings = {"HF_HUB_CACHE": str(tmp_path / "hf"), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": str(tmp_path / "none")}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("IGPT_JAX_CACHE", str(tmp_path / "ours"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "_convert", lambda name, destination: hub.from_hub(str(name), destination))
    server.repositories["someone/small"] = servers.Repository()
    server.repositories["someone/small"].commit(written[0][1], "main", "v1")
    return server.repositories["someone/small"]


def point_at(address, monkeypatch):
    monkeypatch.setattr(hub_library.constants, "ENDPOINT", address)
    monkeypatch.setattr(hub_library.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def offline(monkeypatch):
    monkeypatch.setattr(hub_library.constants, "HF_HUB_OFFLINE", True)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def same(pretrained, model):
    for ours, theirs in zip(jax.tree.leaves(pretrained.model), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def refusal(function, *arguments, **options) -> str:
    with pytest.raises((OSError, ValueError, ImportError)) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


def fetched(server):
    return [path.rpartition("/")[2] for method, path, _ in server.requests if method == "GET" and "/resolve/" in path]


def test_a_model_loads_by_name_once_and_then_from_the_cache(server, online, written, tmp_path, monkeypatch):
    pretrained = igpt_jax.load(NAME)
    same(pretrained, written[0][0])
    commit = online.refs["main"]
    assert pretrained.name == "small" and pretrained.config["converted_from"] == f"{NAME}@{commit}" and pretrained.config["data"]["view"] == "squash"
    assert pretrained.path == str(tmp_path / "ours/hub/someone--small" / commit / "checkpoints/0")
    assert sorted(fetched(server)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    monkeypatch.setattr(hub, "_convert", lambda *_: pytest.fail("converted twice"))
    same(igpt_jax.load(NAME), written[0][0])  # looks the branch up, transfers nothing
    assert len(fetched(server)) == 3
    asked = len(server.requests)
    same(igpt_jax.load(f"{NAME}@{commit}"), written[0][0])  # a commit cannot change: no question
    assert len(server.requests) == asked
    offline(monkeypatch)
    same(igpt_jax.load(NAME), written[0][0])
    assert len(server.requests) == asked
    assert not list((tmp_path / "ours").rglob(".*.tmp"))
    shutil.rmtree(tmp_path / "hf")  # what was converted is enough, of a commit
    same(igpt_jax.load(f"{NAME}@{commit}"), written[0][0])
    assert "is not complete in" in refusal(igpt_jax.load, NAME)


def test_without_a_network_the_commit_that_was_downloaded_last_is_used(online, written, monkeypatch):
    igpt_jax.load(NAME)
    point_at(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    same(igpt_jax.load(NAME), written[0][0])


def test_a_model_that_changes_on_the_hub_is_loaded_anew_and_a_revision_stays(online, written):
    igpt_jax.load(NAME)
    first, second = online.refs["main"], online.commit(written[1][1])
    assert first != second
    for revision, model in (("", 1), ("@main", 1), ("@v1", 0), (f"@{first}", 0), (f"@{second}", 1)):
        same(igpt_jax.load(NAME + revision), written[model][0])


@pytest.mark.parametrize("kind", ["both", "shards", pytest.param("pickle", marks=pytest.mark.slow)])
def test_only_the_files_that_are_needed_are_downloaded(kind, server, online, written, tmp_path):
    files = dict(written[0][1])
    if kind == "pickle":
        torch = pytest.importorskip("torch", reason="needs torch: it reads pytorch_model.bin")
        from safetensors.torch import load

        torch.save(load(files.pop("model.safetensors")), tmp_path / "it.bin")
        files["pytorch_model.bin"] = (tmp_path / "it.bin").read_bytes()
    elif kind == "shards":
        from safetensors.numpy import load, save

        arrays = load(files.pop("model.safetensors"))
        parts = {f"model-0000{number + 1}-of-00002.safetensors": dict(sorted(arrays.items())[number::2]) for number in (0, 1)}
        files |= {file: save(part) for file, part in parts.items()}
        files["model.safetensors.index.json"] = json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}).encode()
    else:
        files |= {"pytorch_model.bin": b"never read"}
    needed = sorted(set(files) - ({"pytorch_model.bin"} if kind == "both" else set()))
    online.commit(files | {"README.md": b"#", "tf_model.h5": b"x", "model.fp16.safetensors": b"x", "training_args.bin": b"x"})
    same(igpt_jax.load(NAME), written[0][0])
    assert sorted(fetched(server)) == needed


def test_a_name_that_does_not_exist_a_private_model_and_a_wrong_revision_are_one_line(server, online, written, monkeypatch):
    assert f"{server.address} has no model someone/smal, or does not show it: check the name" in refusal(igpt_jax.load, "hf:someone/smal")
    assert "someone/small has no branch, tag or commit v9" in refusal(igpt_jax.load, f"{NAME}@v9")
    assert "is no name of a model on the hub: expected hf:OWNER/NAME" in refusal(igpt_jax.load, "hf:some one/small")
    assert "is no name of a model on the hub" in refusal(igpt_jax.load, "hf:../small")
    online.private = True
    assert "if it is private, run `hf auth login`, or set HF_TOKEN" in refusal(igpt_jax.load, NAME)
    monkeypatch.setenv("HF_TOKEN", "good")
    same(igpt_jax.load(NAME), written[0][0])
    online.commit(written[1][1])
    online.gated = True
    monkeypatch.setenv("HF_TOKEN", "other")
    online.private = False
    assert f"accept them at {server.address}/someone/small" in refusal(igpt_jax.load, NAME)


def test_another_kind_of_model_is_refused_before_its_weights_are_downloaded(server, online):
    online.commit({"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"large"})
    assert "describes a model of type 'gpt2', expected 'imagegpt'" in refusal(igpt_jax.load, NAME)
    assert fetched(server) == ["config.json"]
    online.commit({"weights.bin": b"large"})
    assert "has no config.json" in refusal(igpt_jax.load, NAME)


def test_without_a_network_a_line_says_what_to_copy_where(online, monkeypatch):
    address = f"http://127.0.0.1:{closed_port()}"
    point_at(address, monkeypatch)
    line = refusal(igpt_jax.load, NAME)
    assert f"{address} cannot be reached (" in line
    assert "run `hf download someone/small config.json preprocessor_config.json model.safetensors --local-dir=small` where there is a network" in line
    assert "copy that folder here, then `python -m igpt_jax.convert hf small OUT` and --checkpoint=OUT" in line
    offline(monkeypatch)
    assert "and HF_HUB_OFFLINE is set: run `hf download" in refusal(igpt_jax.load, NAME)


def test_a_transfer_that_is_cut_continues_and_one_that_stays_cut_leaves_nothing(server, online, written, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(hub_library.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what the library keeps of a connection that is cut
    hub.download(hub.HubName("someone/small", None), lambda folder: True)  # the settings
    size = len(written[0][1]["model.safetensors"])
    server.cuts = [1000] + [0] * 20
    assert "the connection to" in refusal(igpt_jax.load, NAME)
    assert not list((tmp_path / "ours").rglob("checkpoints")) and not list((tmp_path / "hf").rglob("*.incomplete"))
    server.cuts, server.sent, before = [1000, 2000], 0, len(server.requests)
    same(igpt_jax.load(NAME), written[0][0])
    assert [asked for method, path, asked in server.requests[before:] if "model.safetensors" in path and method == "GET"] == ["", "bytes=1000-", "bytes=3000-"]
    assert server.sent == size


def test_a_file_whose_checksum_differs_is_refused_and_not_converted(server, online, written, tmp_path):
    server.content_of = lambda path, content: content[:-1] + bytes([content[-1] ^ 1]) if path.endswith("model.safetensors") else content
    line = refusal(igpt_jax.load, NAME)
    assert "model.safetensors is damaged, its SHA-256 is" in line and not list((tmp_path / "ours").rglob("checkpoints"))
    blob = pathlib.Path(line.partition("delete ")[2].partition(" and start")[0])
    blob.unlink()
    server.content_of = lambda path, content: content
    same(igpt_jax.load(NAME), written[0][0])


def test_a_conversion_that_was_killed_is_done_again_and_its_rest_is_removed(online, written, tmp_path):
    rest = tmp_path / "ours/hub/someone--small/.abc.tmp"
    rest.mkdir(parents=True)
    (rest / "half").write_bytes(b"x")
    os.utime(rest, (0, 0))
    same(igpt_jax.load(NAME), written[0][0])
    assert not rest.exists()


def test_convert_takes_a_name_of_the_hub_where_no_such_folder_exists(online, written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("someone/small", f"someone/small@{online.refs['v1']}", "hf:someone/small@v1")):
        convert._main(["hf", name, f"out{number}"])
        same(checkpoints.load(tmp_path / f"out{number}"), written[0][0])
    folder = tmp_path / "someone/small"
    folder.mkdir(parents=True)
    for file, content in written[1][1].items():
        (folder / file).write_bytes(content)
    convert._main(["hf", "someone/small", "local"])
    same(checkpoints.load("local"), written[1][0])
    assert "someone/missing" in refusal(hub.from_hub, "someone/missing", "never")
    assert "small2/config.json does not exist" in refusal(hub.from_hub, "small2", "never")  # no owner: a folder
    assert "exists and is not an empty folder" in refusal(hub.from_hub, "someone/small", "local")


def test_without_the_library_a_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "hf:a/b needs huggingface_hub" in (line := refusal(igpt_jax.load, "hf:a/b")) and "pip install 'igpt_jax[hub]'" in line


def test_names_in_the_package_and_paths_do_not_need_the_hub(monkeypatch, written):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    same(igpt_jax.load(written[0][2]), written[0][0])
    assert igpt_jax.load("cifar10-16").name == "cifar10-16"
    line = refusal(igpt_jax.load, "cifar10-17")
    assert "cifar10-16" in line and "hf:OWNER/NAME" in line


@pytest.mark.parametrize("classification", [False, True])
def test_push_uploads_the_folder_with_a_card(server, online, tmp_path, monkeypatch, capsys, classification):
    monkeypatch.setenv("HF_TOKEN", "good")
    model, run = make_run(tmp_path / "run", classes=3)
    (run / "result.json").write_text(json.dumps({"step": 12, "split": "validation", "nats_per_pixel": 1.25}))
    words = ["to-hf", str(run), str(tmp_path / "out"), "--push=someone/mine"] + (["--classification", "--private"] if classification else [])
    convert._main(words)
    repository = server.repositories["someone/mine"]
    files = repository.commits[repository.refs["main"]]
    assert files == files_of(tmp_path / "out") and set(files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert repository.private == classification and f"uploaded to {server.address}/someone/mine/commit/" in capsys.readouterr().err
    card = files["README.md"].decode()
    assert 'igpt_jax.load("hf:someone/mine")' in card and "view `center_square`" in card
    for text in ("12 steps of 16 images", "| data | digits |", "1.2500", "3 layers, width 32, 4 heads"):
        assert text in card
    assert ("image-classification" in card) == classification and ("3: cat, dog, owl" in card) == classification
    loaded = igpt_jax.load("hf:someone/mine")
    for name in ("token_embedding", "class_embedding" if classification else "output_embedding"):
        np.testing.assert_array_equal(getattr(loaded.model, name), getattr(model, name))


@pytest.mark.slow
def test_what_transformers_reads_of_an_uploaded_model_is_the_model(server, online, written, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    monkeypatch.setenv("HF_TOKEN", "good")
    model, run = written[0][0], written[0][2]
    hub.publish(run, tmp_path / "out", push="someone/mine")
    folder = hub_library.snapshot_download("someone/mine")
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(folder)
    np.testing.assert_array_equal(theirs.transformer.wpe.weight.detach().numpy(), np.asarray(model.position_embedding[...]))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    np.testing.assert_array_equal(np.asarray(processor.clusters, np.float32), grey_palette(16).centers)


def test_a_card_names_no_path_and_no_private_data(tmp_path):
    from igpt_jax.interop.card import model_card

    model, run = make_run(tmp_path / "run")
    recipe = RECIPE | {"data": {"source": "folder:/home/me/secret", "augment": "none", "view": "squash"}, "converted_from": "/home/me/theirs"}
    checkpoints.save_model(tmp_path / "other", model, grey_palette(16), recipe, step=0)
    card = model_card(checkpoints.load(tmp_path / "other"), "a/b", "ImageGPTForCausalImageModeling")
    assert "/home" not in card and "secret" not in card and "a source of the kind folder" in card and "license: " not in card.split("---")[1]


def test_refused_uploads_are_one_line_and_the_folder_stays(server, online, written, tmp_path, monkeypatch, capsys):
    run, out = written[0][2], tmp_path / "out"
    assert "needs a token" in refusal(hub.publish, run, out, push="someone/mine") and not out.exists()
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert "`hf upload someone/mine" in refusal(hub.publish, run, out, push="someone/mine") and (out / "README.md").exists()
    monkeypatch.setenv("HF_TOKEN", "good")
    assert "must be OWNER/NAME" in refusal(hub.publish, run, tmp_path / "b", push="mine")
    assert "must be OWNER/NAME" in refusal(hub.publish, run, tmp_path / "b", push="a/b@main")
    assert "is no name of a model" in refusal(hub.publish, run, tmp_path / "b", push="a/b/c")
    assert "--private has no effect without --push" in refusal(hub.publish, run, tmp_path / "b", private=True)
    assert "someone/small exists and is public" in refusal(hub.publish, run, tmp_path / "c", push="someone/small", private=True)
    online.commit(online.commits[online.refs["main"]] | {"README.md": b"mine"})
    hub.publish(written[1][2], tmp_path / "d", push="someone/small")
    assert online.commits[online.refs["main"]]["README.md"] == b"mine" and "has a README.md, which is left as it is" in capsys.readouterr().err
    point_at(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    line = refusal(hub.publish, run, tmp_path / "e", push="someone/mine")
    assert f"`hf upload someone/mine {tmp_path / 'e'}` tries again" in line and (tmp_path / "e/model.safetensors").exists()


def start(*words, **environment):
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_programs_load_by_name_two_at_once_and_offline_afterwards(server, written, tmp_path):
    """As a user does it: only the environment says where the hub and the caches are."""
    server.repositories["someone/small"] = servers.Repository()
    commit = server.repositories["someone/small"].commit(written[0][1])
    places = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "IGPT_JAX_CACHE": ""}
    sample = ["-m", "igpt_jax.sample", f"--checkpoint={NAME}", "--unconditional=1"]
    both = [start(*sample, f"--out={tmp_path / name}", **places) for name in ("a.png", "b.png")]
    ends = [(each.communicate(timeout=300), each.returncode) for each in both]
    assert [code for _, code in ends] == [0, 0], ends
    assert sum("converts hf:someone/small@" in errors for (_, errors), _ in ends) == 1  # the other waits
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    kept = tmp_path / "cache/igpt_jax/hub/someone--small"
    assert sorted(path.name for path in kept.iterdir()) == sorted([".lock", commit])
    server.shutdown()
    evaluate = ["-m", "igpt_jax.evaluate", f"--checkpoint={NAME}", "--data=digits", "--limit=8", "--batch=8"]
    again = start(*evaluate, **places | {"HF_HUB_OFFLINE": "1"})
    shown, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert json.loads(shown)["checkpoint"] == str(kept / commit / "checkpoints/0")


def test_the_conversion_is_not_one_of_the_processes_of_the_run(tmp_path, monkeypatch):
    """Under srun, mpirun or our variables: `convert` is a program of one process."""
    environments = []
    for name in multihost.COPIES:
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(hub.subprocess, "run", lambda words, env, **_: environments.append(env) or SimpleNamespace(returncode=0, stderr=""))
    hub._convert(hub._parse(NAME), tmp_path / "out")
    (environment,) = environments
    multihost.check_alone("convert", environment)
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["PATH"] == os.environ["PATH"]


@pytest.mark.slow
def test_processes_of_one_run_load_by_name_with_one_cache_and_end_together(server, written, tmp_path):
    """The one that converts has the lock and must not wait for the other, which waits for the lock."""
    server.repositories["someone/small"] = servers.Repository()
    server.repositories["someone/small"].commit(written[0][1])
    words = ["-m", "igpt_jax.evaluate", f"--checkpoint={NAME}", "--data=digits", "--limit=8", "--batch=8"]

    def run(places):
        shared = {"HF_ENDPOINT": server.address, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{closed_port()}", "JAX_NUM_PROCESSES": "2"}
        both = [start(*words, **shared | {"JAX_PROCESS_ID": str(number)} | place) for number, place in enumerate(places)]
        try:
            return [(*each.communicate(timeout=200), each.returncode) for each in both]
        finally:
            for each in both:
                each.kill()

    ends = run([{"HF_HOME": str(tmp_path / f"hf{number}"), "IGPT_JAX_CACHE": str(tmp_path / "cache")} for number in (0, 1)])
    assert [code for *_, code in ends] == [0, 0] and "nats_per_pixel" in ends[0][0], ends
    offline = {"HF_HOME": str(tmp_path / "hf2"), "HF_HUB_OFFLINE": "1", "IGPT_JAX_CACHE": str(tmp_path / "cache2")}
    ends = run([{"HF_HOME": str(tmp_path / "hf3"), "IGPT_JAX_CACHE": str(tmp_path / "cache3")}, offline])
    assert [code for *_, code in ends] == [1, 1] and "another process cannot have hf:someone/small" in ends[0][1] and "HF_HUB_OFFLINE is set" in ends[1][1]


@pytest.mark.slow
def test_a_model_that_cannot_be_converted_is_one_line_of_the_program(server, written, tmp_path):
    server.repositories["someone/small"] = servers.Repository()
    server.repositories["someone/small"].commit({name: content for name, content in written[0][1].items() if name != "preprocessor_config.json"})
    places = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hf"), "IGPT_JAX_CACHE": str(tmp_path / "cache")}
    ended = start("-m", "igpt_jax.features", f"--checkpoint={NAME}", f"--out={tmp_path / 'features'}", **places)
    _, errors = ended.communicate(timeout=300)
    assert ended.returncode == 1 and errors.strip().splitlines()[-1].startswith("error: hf:someone/small@") and "the model has no palette" in errors
    assert not (tmp_path / "features").exists() and not list((tmp_path / "cache").rglob("checkpoints"))
