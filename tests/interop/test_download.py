"""OpenAI's files by name, against a server on the loopback: paths, resumed transfers, checksums of the first download, refusals; the converted model."""

import json
import shutil
import socket
import sys

import numpy as np
import pytest

from igpt_jax import convert
from igpt_jax.interop import download
from igpt_jax.training import checkpoints
from tests.interop import servers
from tests.models import from_openai, tiny
from tests.runs import grey_palette

CONTENT = {  # of igpt-s@131000 as if it had two shards
    "color-clusters/kmeans_centers.npy": b"palette" * 100,
    "checkpoints/igpt-s/131000/model.ckpt-131000.index": b"index" * 30,
    "checkpoints/igpt-s/131000/model.ckpt-131000.data-00000-of-00002": bytes(range(256)) * 40,
    "checkpoints/igpt-s/131000/model.ckpt-131000.data-00001-of-00002": bytes(range(255, -1, -1)) * 30,
}
SHARD = "checkpoints/igpt-s/131000/model.ckpt-131000.data-00000-of-00002"
SIZE = len(CONTENT[SHARD])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("IGPT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(download.SHARDS, "igpt-s", 2)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    with servers.serving(servers.FileServer()) as running:
        running.files |= CONTENT
        yield running


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache/openai/igpt-s/131000"


def fetch(server, model="igpt-s@131000"):
    return download.fetch(model, server.address)


def refusal(function, *arguments) -> str:
    with pytest.raises((OSError, ValueError, ImportError)) as error:
        function(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def transfers(server):
    return [(path.rpartition("/")[2], asked) for method, path, asked in server.requests if method == "GET"]


def complete(folder):
    return {path: (folder / path.rpartition("/")[2]).read_bytes() for path in CONTENT} == CONTENT and not list(folder.glob("*.part"))


def test_the_files_are_those_of_openai_s_program():
    """Host, folders and names as in download.py of openai/image-gpt, c6af2eb."""
    assert download.ADDRESS == "https://openaipublic.blob.core.windows.net/image-gpt"
    for name, folder, shards in (("igpt-s", "igpt-s", 32), ("igpt-m", "igpt-m", 32), ("igpt-l-bert", "igpt-l-bert", 64)):
        paths = download._paths(name, "524000")
        assert len(paths) == shards + 2 and paths["kmeans_centers.npy"] == "color-clusters/kmeans_centers.npy"
        assert paths["model.ckpt-524000.index"] == f"checkpoints/{folder}/524000/model.ckpt-524000.index"
        last = f"model.ckpt-524000.data-{shards - 1:05}-of-{shards:05}"
        assert paths[last] == f"checkpoints/{folder}/524000/{last}"


def test_all_files_are_downloaded_once_and_recorded(server, folder, capsys):
    assert fetch(server) == folder / "model.ckpt-131000" and complete(folder)
    total = sum(map(len, CONTENT.values()))
    assert server.sent == total and "4 files" in (shown := capsys.readouterr().err) and f"igpt-s@131000: {total / 1000:.1f}k of {total / 1000:.1f}k B" in shown
    record = json.loads((folder / "files.json").read_text())
    assert record["address"] == server.address and record["files"]["model.ckpt-131000.index"]["size"] == 150
    assert all(len(facts["sha256"]) == 64 for facts in record["files"].values()) and len(record["files"]) == 4
    asked = len(server.requests)
    fetch(server)
    assert len(server.requests) == asked  # not even a question: it works without a network


def test_the_steps_and_models_do_not_mix(server, folder):
    server.files |= {path.replace("131000", "1000000"): content + b"!" for path, content in CONTENT.items() if "131000" in path}
    fetch(server)
    assert fetch(server, "igpt-s") == folder.parent / "1000000/model.ckpt-1000000" and complete(folder)


def test_an_interrupted_transfer_continues_in_the_same_start(server, folder):
    server.cuts = [700, 150, 4000, 1000]  # the palette and the index whole, then the shard twice
    fetch(server)
    assert complete(folder) and server.sent == sum(map(len, CONTENT.values()))
    shard = SHARD.rpartition("/")[2]
    assert [asked for file, asked in transfers(server) if file == shard] == ["", "bytes=4000-", "bytes=5000-"]


def test_an_interrupted_start_continues_in_the_next_and_transfers_only_the_rest(server, folder, capsys):
    server.cuts = [700, 150, 4000, 0, 0]
    line = refusal(fetch, server)
    assert f"{server.address}/{SHARD}: the transfer ended after 4,000 of {SIZE:,} bytes" in line and "the same command continues it" in line
    assert not complete(folder) if (folder / SHARD.rpartition("/")[2]).exists() else True
    server.sent, before = 0, len(transfers(server))
    capsys.readouterr()
    fetch(server)
    assert complete(folder) and server.sent == sum(map(len, CONTENT.values())) - 700 - 150 - 4000
    assert transfers(server)[before][1] == "bytes=4000-" and "of them are there" in capsys.readouterr().err


@pytest.mark.parametrize("begin", [0, 1, SIZE - 1, SIZE])
def test_a_part_of_any_length_is_completed(server, folder, begin):
    server.cuts = [700, 150, begin, 0, 0] if begin < SIZE else []
    if begin < SIZE:
        refusal(fetch, server)
    else:
        fetch(server)
        (folder / SHARD.rpartition("/")[2]).rename(folder / f"{SHARD.rpartition('/')[2]}.part")
    fetch(server)
    assert complete(folder)


def test_a_server_without_ranges_sends_the_whole_file_again(server, folder):
    server.ranges = False
    server.cuts = [700, 150, 4000]
    fetch(server)
    assert complete(folder)


def test_a_file_that_changed_here_is_refused(server, folder):
    fetch(server)
    shard = folder / SHARD.rpartition("/")[2]
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    assert f"{shard} differs from its first download, SHA-256" in refusal(fetch, server)
    shard.write_bytes(bytes(content[:100]))
    assert f"{shard} has 100 of {SIZE:,} bytes: delete it" in refusal(fetch, server)
    shard.unlink()
    fetch(server)
    assert complete(folder)


def test_a_file_that_changed_on_the_server_is_refused_before_a_transfer_and_after_it(server, folder):
    fetch(server)
    shard = folder / SHARD.rpartition("/")[2]
    shard.unlink()
    server.files[SHARD] = bytes(SIZE)
    before = server.sent
    assert "has changed since its first download, etag" in refusal(fetch, server) and server.sent == before
    with servers.serving(servers.FileServer()) as mirror:  # whose ETags may be others: the checksum decides
        mirror.files |= CONTENT | {SHARD: bytes(SIZE)}
        assert f"{shard}.part differs from its first download" in refusal(fetch, mirror) and not shard.exists()
        mirror.files |= CONTENT
        fetch(mirror)
        assert complete(folder)


def test_a_file_that_changes_between_two_parts_is_not_mixed(server, folder):
    server.cuts = [700, 150, 4000, 0, 0]
    refusal(fetch, server)
    server.files[SHARD] = bytes(SIZE)
    assert "has changed since its first download, etag" in refusal(fetch, server)
    with servers.serving(servers.FileServer()) as mirror:  # another server never continues the part of this one
        mirror.files |= CONTENT
        fetch(mirror)
        assert complete(folder) and (SHARD.rpartition("/")[2], "") in transfers(mirror)


def test_without_a_network_a_line_says_what_to_copy_where(server, folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    line = refusal(download.fetch, "igpt-s@131000", address)
    assert f"{address}/color-clusters/kmeans_centers.npy cannot be reached (" in line and f"copy the 4 files that are missing, {address}/color" in line
    assert line.endswith(f"to {folder}, and start again")
    for path, content in CONTENT.items():
        (folder / path.rpartition("/")[2]).write_bytes(content)
    assert download.fetch("igpt-s@131000", address) == folder / "model.ckpt-131000"


def test_wrong_names_and_answers_are_one_line(server, folder, tmp_path, monkeypatch):
    assert "igpt-xl is neither a path nor a model of OpenAI: the models are igpt-s, igpt-m, igpt-l, igpt-s-bert" in refusal(fetch, server, "igpt-xl")
    assert "igpt-s has no step 5: the steps are 131000, 262000, 524000, 1000000" in refusal(fetch, server, "igpt-s@5")
    assert "must begin with http:// or https://" in refusal(download.fetch, "igpt-s", "ftp://x")
    del server.files[SHARD]
    assert f"{server.address}/{SHARD} answers 404" in refusal(fetch, server) and not list(folder.glob("*.part"))
    server.files |= CONTENT
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("Usage", (), {"free": 100})())
    assert "No space left for 0 MiB in" in refusal(fetch, server)
    (folder / "files.json").write_text("{")
    assert "files.json is damaged" in refusal(fetch, server)


def test_two_at_once_transfer_each_file_once(server, folder):
    import threading

    threads = [threading.Thread(target=fetch, args=(server,)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert complete(folder) and server.sent == sum(map(len, CONTENT.values()))


def test_convert_says_what_is_wrong_before_a_download(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["igpt-s", "out"], "needs tensorflow"),
        (["igpt-xs", "out"], "igpt-xs"),
        (["runs/it", "out", "--mirror=http://x"], "--mirror has no effect: runs/it is no name"),
    ):
        with pytest.raises(SystemExit) as stopped:
            convert._main(["openai", *words])
        assert said in str(stopped.value.code)
    assert not server.requests


@pytest.mark.slow
def test_a_model_is_converted_by_its_name(server, folder, oracles, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow", reason="needs the extra `convert`")
    monkeypatch.setitem(download.SHARDS, "igpt-s", 1)
    monkeypatch.chdir(tmp_path)
    grey_palette(16).save(tmp_path / "palette.npy")
    server.files = {"color-clusters/kmeans_centers.npy": (tmp_path / "palette.npy").read_bytes()}
    for file in (oracles / "openai_ar").glob("model.ckpt-1.*"):
        server.files[f"checkpoints/igpt-s/1000000/{file.name.replace('ckpt-1.', 'ckpt-1000000.')}"] = file.read_bytes()
    convert._main(["openai", "igpt-s", "out", f"--mirror={server.address}"])
    converted = checkpoints.load("out")
    assert converted.step == 1000000 and converted.config["converted_from"] == "igpt-s"
    expected = from_openai(dict(np.load(oracles / "openai_ar" / "expected.npz")), tiny(classes=10))
    np.testing.assert_array_equal(converted.model.token_embedding, expected.token_embedding)
    np.testing.assert_array_equal(converted.palette.centers, grey_palette(16).centers)
