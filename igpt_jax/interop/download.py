"""OpenAI's checkpoints by name: igpt-s, igpt-m, igpt-l, bert models igpt-s-bert and so on; `igpt-s@524000` is an earlier step of the training.

Host and paths are those of download.py of openai/image-gpt (commit c6af2eb). The shards, the index and the palette are kept in CACHE/openai/NAME/STEP
(cache.py), each complete under its name, or incomplete as NAME.part, which a later start continues. files.json beside them has the address, and size, ETag
and SHA-256 of each file from its first download; a file that no longer agrees with it is refused. Files that were copied there by hand are taken as they are.
"""

import hashlib
import http.client
import json
import pathlib
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from typing import Any, TypeAlias

from igpt_jax.files import one_line, write_atomically
from igpt_jax.interop import cache
from igpt_jax.progress import Progress

ADDRESS = "https://openaipublic.blob.core.windows.net/image-gpt"
SHARDS = {"igpt-s": 32, "igpt-m": 32, "igpt-l": 64}
STEPS = ("131000", "262000", "524000", "1000000")
PALETTE = "kmeans_centers.npy"
RECORD = "files.json"
PAUSES = (1.0, 5.0, 15.0)  # seconds before an interrupted transfer continues
TIMEOUT = 60.0  # seconds without a byte
MIB = 2**20

Facts: TypeAlias = dict[str, Any]  # of one file: size in bytes, etag (None: the server has none), sha256 (once the file is complete)


def names() -> list[str]:
    """Return the names of OpenAI's models."""
    return [f"{name}{kind}" for kind in ("", "-bert") for name in SHARDS]


def is_name(source: str) -> bool:
    """Whether `source` is a name as those of OpenAI's models, known or not, and no path."""
    return re.fullmatch(r"igpt-[^/\\.]*", source) is not None


def check_name(model: str) -> None:
    """ValueError, one line, for a name, or a step of it, that OpenAI did not publish."""
    _parse(model)


def fetch(model: str, address: str | None = None) -> pathlib.Path:
    """Download what is missing of a model and return the prefix of its checkpoint; the palette is beside it.

    `model`: a name of `names()`, with `@STEP` for one of STEPS, else the last. `address` replaces ADDRESS, for a mirror with the same paths. ValueError for
    an unknown name, or a file that differs from its first download; OSError where a transfer fails. Each is one line.
    """
    name, step = _parse(model)
    base, folder = (address or ADDRESS).rstrip("/"), cache.home() / "openai" / name / step
    if not re.match("https?://", base):
        raise ValueError(f"--mirror={address} must begin with http:// or https://")
    paths = _paths(name, step)
    with cache.locked(folder):
        record = _read_record(folder)
        if record["address"] != base:  # ETags are those of one server, and a part of a file may be continued from this one alone
            for part in folder.glob("*.part"):
                part.unlink()
            record = {"address": base, "files": {file: facts | {"etag": None} for file, facts in record["files"].items()}}
        _check_present(folder, paths, record)
        missing = [file for file in paths if not (folder / file).is_file()]
        if missing:
            _ask_sizes(folder, {file: f"{base}/{paths[file]}" for file in missing}, record)
            _download(folder, model, {file: f"{base}/{paths[file]}" for file in missing}, record)
    return folder / f"model.ckpt-{step}"


def _parse(model: str) -> tuple[str, str]:
    """Return (name, step)."""
    name, _, step = model.partition("@")
    if name not in names():
        raise ValueError(f"{name} is neither a path nor a model of OpenAI: the models are {', '.join(names())}")
    if step and step not in STEPS:
        raise ValueError(f"{name} has no step {step}: the steps are {', '.join(STEPS)}")
    return name, step or STEPS[-1]


def _paths(name: str, step: str) -> dict[str, str]:
    """Return the files of a model, and where each is below the address."""
    shards = SHARDS[name.removesuffix("-bert")]
    files = [f"model.ckpt-{step}.index", *(f"model.ckpt-{step}.data-{shard:05}-of-{shards:05}" for shard in range(shards))]
    return {PALETTE: f"color-clusters/{PALETTE}"} | {file: f"checkpoints/{name}/{step}/{file}" for file in files}


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        return {"address": None, "files": {}}
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return {"address": record["address"], "files": record["files"]}
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is damaged: delete it if you trust the files beside it, or {folder}") from None


def _write_record(folder: pathlib.Path, record: dict[str, Any]) -> None:
    write_atomically(folder / RECORD, json.dumps(record, indent=1).encode())


def _check_present(folder: pathlib.Path, paths: dict[str, str], record: dict[str, Any]) -> None:
    """ValueError for a complete file that is no longer that of its first download; one without a checksum gets it now."""
    for file in paths:
        if (folder / file).is_file():
            facts, size = record["files"].setdefault(file, {"etag": None}), (folder / file).stat().st_size
            if facts.setdefault("size", size) != size:
                raise ValueError(f"{folder / file} has {size:,} of {facts['size']:,} bytes: delete it to download it again")
            facts["sha256"] = _checked(folder / file, facts, f"delete it to download it again, or {folder} to start from the beginning")
    _write_record(folder, record)


def _checked(path: pathlib.Path, facts: Facts, way_out: str) -> str:
    """Return the SHA-256 of a file; ValueError where its first download had another one."""
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if (first := facts.get("sha256")) not in (None, digest):
        raise ValueError(f"{path} differs from its first download, SHA-256 {digest[:12]} and not {first[:12]}: {way_out}")
    return digest


def _ask_sizes(folder: pathlib.Path, addresses: dict[str, str], record: dict[str, Any]) -> None:
    """Ask the server for the sizes before the first byte; ValueError where a file is another one than before, OSError where there is no space."""
    for file, address in addresses.items():
        facts, known = _head(folder, address, addresses), record["files"].get(file, {})
        changed = [f"{key} {facts[key]} and not {known[key]}" for key in ("size", "etag") if known.get(key) is not None and known[key] != facts[key]]
        if changed:
            raise ValueError(f"{address} has changed since its first download, {', '.join(changed)}: delete {folder} to start from the beginning")
        record["files"][file] = known | facts
    _write_record(folder, record)
    need = sum(record["files"][file]["size"] - _size_of(_part(folder / file)) for file in addresses)
    if (free := shutil.disk_usage(folder).free) < need:
        raise OSError(f"No space left for {need / MIB:,.0f} MiB in {folder}, {free / MIB:,.0f} MiB are free: set {cache.VARIABLE} to another folder")


def _head(folder: pathlib.Path, address: str, addresses: dict[str, str]) -> Facts:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT) as response:
            size = response.headers["Content-Length"]
            if size is None:
                raise ValueError(f"{address} does not say its size: use another --mirror")
            return {"size": int(size), "etag": response.headers["ETag"]}
    except urllib.error.HTTPError as error:
        raise OSError(f"{address} answers {error.code} {error.reason}: --mirror=URL names another server with the same paths") from None
    except (OSError, http.client.HTTPException) as error:
        reason = one_line(getattr(error, "reason", None) or error)
        copied = f"copy the {len(addresses)} files that are missing, {address} to {list(addresses.values())[-1]}, to {folder}, and start again"
        raise OSError(f"{address} cannot be reached ({reason}): {copied}") from None


def _download(folder: pathlib.Path, model: str, addresses: dict[str, str], record: dict[str, Any]) -> None:
    """Download files one after the other, each from where its part ends."""
    total, begun = (sum(values) for values in ([record["files"][file]["size"] for file in addresses], [_size_of(_part(folder / file)) for file in addresses]))
    continued = f", {begun / MIB:,.1f} of them are there" if begun else ""
    print(f"downloads {model} to {folder}: {len(addresses)} files, {total / MIB:,.1f} MiB{continued}", file=sys.stderr, flush=True)
    with Progress(model, total, "B") as progress:
        progress.advance(begun)
        for file, address in addresses.items():
            path, facts = folder / file, record["files"][file]
            _complete(address, _part(path), facts, progress)
            try:
                facts["sha256"] = _checked(_part(path), facts, f"it is deleted; use another --mirror, or delete {folder} to start from the beginning")
            except ValueError:
                _part(path).unlink()
                facts["etag"] = None
                raise
            else:
                _part(path).rename(path)
            finally:
                _write_record(folder, record)


def _complete(address: str, part: pathlib.Path, facts: Facts, progress: Progress) -> None:
    """Transfer the rest of a file; an interrupted transfer continues after each of PAUSES."""
    for pause in (*PAUSES, None):
        try:
            _transfer(address, part, facts, progress)
            return
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if pause is None or refused:
                done = f"{_size_of(part):,} of {facts['size']:,} bytes"
                raise OSError(f"{address}: the transfer ended after {done} ({one_line(error)}): the same command continues it") from None
            time.sleep(pause)


def _transfer(address: str, part: pathlib.Path, facts: Facts, progress: Progress) -> None:
    """Append what is missing of a file to `part`; OSError where the connection ends early, ValueError where the file has changed."""
    begin, size = _size_of(part), facts["size"]
    if begin > size:
        raise ValueError(f"{part} has {begin:,} bytes, and {address} {size:,}: delete {part}")
    if begin == size and part.exists():
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={begin}-"} if begin else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if facts["etag"] not in (None, response.headers["ETag"]):
            raise ValueError(f"{address} changed during its download: start again")
        whole = response.status != 206  # a server that does not know Range
        if not whole and response.headers["Content-Range"] != f"bytes {begin}-{size - 1}/{size}":
            raise ValueError(f"{address} sends {response.headers['Content-Range']}, and not bytes {begin} to {size - 1} of {size}: use another --mirror")
        with part.open("wb" if whole else "ab") as file:
            progress.advance(-begin if whole else 0)
            while content := response.read(MIB):
                file.write(content)
                progress.advance(len(content))
    if (found := _size_of(part)) != size:
        raise OSError(f"the connection ended at byte {found:,}")


def _part(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.part")


def _size_of(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0
