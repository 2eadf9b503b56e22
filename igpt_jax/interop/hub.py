"""Models of the Hugging Face hub by their names: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION` at a branch, a tag or a commit.

huggingface_hub downloads into its own cache. Its environment variables hold: HF_TOKEN, HF_HOME, HF_ENDPOINT (a mirror), HF_HUB_OFFLINE and others. A
model that a program loads is then converted, once for each commit, and kept in our cache (cache.py). A branch or a tag is looked up at each start; without
a network, the commit that was downloaded last is used.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh

from igpt_jax.distributed import multihost
from igpt_jax.extras import install
from igpt_jax.files import one_line
from igpt_jax.interop import cache
from igpt_jax.interop.huggingface import check_settings, from_hf, to_hf
from igpt_jax.interop.weights import check_destination, read_json
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.types import PathLike

PREFIX = "hf:"
SETTINGS = ["config.json", "preprocessor_config.json"]
WEIGHTS = {  # what is downloaded: the first of these formats that a model has
    "safetensors": ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    "pickle": ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
}
WORD = r"[A-Za-z0-9_][\w.-]*"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class HubName:
    """The name of a model on the hub."""

    repository: str  # OWNER/NAME; old models have no owner
    revision: str | None  # a branch, a tag or a commit; None: the newest commit of main

    def __str__(self) -> str:
        return PREFIX + self.repository + (f"@{self.revision}" if self.revision else "")

    def at(self, commit: str) -> "HubName":
        """The same model at a commit."""
        return HubName(self.repository, commit)


def is_hub_name(path: PathLike) -> bool:
    """Whether a checkpoint is given as `hf:...`."""
    return isinstance(path, str) and path.startswith(PREFIX)


def load(
    path: PathLike, mesh: Mesh | Callable[[ImageGPT], Mesh] | None = None, image_size: int | None = None, ema: bool = False, **overrides: Any
) -> Pretrained:
    """Load a model with its palette.

    `path`: a run's directory (its newest complete step) or the directory of one step, a file that `igpt_jax.convert pack` wrote, the name of a model in the
    package such as "cifar10-16", or a model of the Hugging Face hub, "hf:OWNER/NAME" or "hf:OWNER/NAME@REVISION", of transformers' ImageGPT.

    `mesh`: where the model is placed, a Mesh or a function of the abstract model that chooses one; None: one device of this process, or all of them where
    one is too small. `image_size`: side in pixels of the pictures that it will be given; None: that of its training; for another one its positions are
    interpolated (`igpt_jax.model.resolution`), with a note. `ema` loads the moving average of the weights in their place, which a run with
    config.optim.ema_decay keeps. `overrides` replace fields of the ModelConfig that say how the model is computed: dtype, remat, unroll, attention,
    matmul_precision and dropout. FileNotFoundError in one line where there is no complete step, OSError where a model cannot be read or downloaded,
    ValueError for a damaged file, another kind of model, an `image_size` that is none, another override or an average that is not there, ImportError where
    huggingface_hub is needed and missing.
    """
    checkpoints.check_overrides(overrides)  # before a download
    pretrained = checkpoints.load(local(path), mesh, image_size, ema, **overrides)
    return dataclasses.replace(pretrained, name=_parse(str(path)).repository.split("/")[-1]) if is_hub_name(path) else pretrained


def local(path: PathLike) -> PathLike:
    """Return where a checkpoint is on this machine; a model of the hub, `hf:...`, is downloaded and converted first if that has not been done.

    Every process of a run calls it together. OSError, ValueError or ImportError in one line, on all processes where it fails on one.
    """
    if not is_hub_name(path):
        return path
    place = multihost.together(lambda: _local(_parse(str(path))), f"another process cannot have {path}: see what it says")
    if not multihost.all_equal(int(place.name[:7], 16)):
        raise OSError(f"the processes see different commits of {path}: give one, {path}@COMMIT")
    return place


def from_hub(source: PathLike, destination: PathLike, palette: PathLike | None = None) -> ModelConfig:
    """Convert a folder of transformers' ImageGPT as `from_hf` does, or a model of the hub by its name, and return the model's configuration.

    `source` is a folder, `hf:OWNER/NAME[@REVISION]`, or OWNER/NAME[@REVISION] where no such folder exists.
    """
    text = os.fspath(source)
    if not is_hub_name(text):
        if os.path.exists(text) or not re.fullmatch(rf"{WORD}/{WORD}(@\S+)?", text):
            return from_hf(source, destination, palette)
        text = PREFIX + text
    check_destination(destination)
    folder, name = download(_parse(text))
    return from_hf(folder, destination, palette, origin=str(name))


def publish(
    source: PathLike, destination: PathLike, classification: bool = False, push: str | None = None, private: bool = False, ema: bool = False
) -> ModelConfig:
    """Write a checkpoint as a folder for transformers as `to_hf` does; with `push`, OWNER/NAME, also write a model card and upload the folder to the hub.

    A repository that does not exist is made, `private` or public. A README.md that it has already is left as it is. If the upload fails, the folder stays.
    """
    if push is None:
        if private:
            raise ValueError("--private has no effect without --push")
        return to_hf(source, destination, classification, ema=ema)
    name = _parse(PREFIX + push)
    if name.revision or "/" not in name.repository:
        raise ValueError(f"--push={push} must be OWNER/NAME")
    hub = _library(f"--push={push}")
    if hub.get_token() is None:
        raise ValueError(f"--push={push} needs a token with the right to write: run `hf auth login`, or set HF_TOKEN")
    config = to_hf(source, destination, classification, name.repository, ema)
    with _explained(hub, name, f"{destination} is written, `hf upload {name.repository} {destination}` tries again"):
        address = _upload(hub.HfApi(), name.repository, destination, private)
    multihost.note(f"uploaded to {address}")
    return config


def download(name: HubName, complete: Callable[[pathlib.Path], bool] = lambda folder: False) -> tuple[pathlib.Path, HubName]:
    """Download a model of transformers' ImageGPT into the cache of huggingface_hub; return its folder and its name at its commit.

    Where `complete(folder)` is true the weights are not needed. OSError, ValueError or ImportError in one line.
    """
    hub = _library(str(name))
    with _explained(hub, name, _by_hand(name)):
        folder = pathlib.Path(hub.snapshot_download(name.repository, revision=name.revision, allow_patterns=SETTINGS))
    name = name.at(folder.name)
    if complete(folder):
        return folder, name
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} has no config.json: it is no model of transformers")
    check_settings(read_json(folder / "config.json"), folder / "config.json")
    for patterns in WEIGHTS.values():
        with _explained(hub, name, _by_hand(name)):
            hub.snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns)
        found = [path for pattern in patterns for path in folder.glob(pattern)]
        if found:
            for path in found:
                _check_blob(path)
            break
    return folder, name


def _parse(text: str) -> HubName:
    """Read `hf:OWNER/NAME@REVISION`; ValueError where it is something else."""
    match = re.fullmatch(rf"{PREFIX}((?:{WORD}/)?{WORD})(?:@(\S+))?", text)
    if match is None:
        raise ValueError(f"{text} is no name of a model on the hub: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    return HubName(match[1], match[2])


def _kept(name: HubName) -> pathlib.Path:
    """Where the converted model is kept, of a name with a commit."""
    return cache.home() / "hub" / name.repository.replace("/", "--") / str(name.revision)


def _local(name: HubName) -> pathlib.Path:
    """Return the folder of the converted model, after downloading and converting it if there is none of its commit."""
    if COMMIT.fullmatch(name.revision or "") and _kept(name).is_dir():
        return _kept(name)
    _, found = download(name, lambda folder: _kept(name.at(folder.name)).is_dir())
    place = _kept(found)
    if not place.is_dir():
        with cache.locked(place.parent):
            if not place.is_dir():
                _say(f"converts {found} and keeps it in {place}")
                with cache.made_once(place) as whole:
                    _convert(found, whole)
    return place


def _convert(name: HubName, destination: pathlib.Path) -> None:
    """Convert a downloaded model in a process of its own, on the CPU: this one may be one of many of a run, which write a checkpoint only together."""
    package = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    alone = {name: value for name, value in os.environ.items() if name not in multihost.COPIES}  # `convert` refuses to be one of many
    environment = alone | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    words = [sys.executable, "-m", "igpt_jax.convert", "hf", str(name), str(destination)]
    done = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        reason = lines[-1].removeprefix("error: ") if lines else f"the program ended with code {done.returncode}"
        raise ValueError(f"{name} cannot be converted: {reason}")
    for line in lines:
        if line.startswith("note: "):
            _say(line.removeprefix("note: "))


def _say(line: str) -> None:
    """Print a note of this process alone. `multihost.note` starts jax's devices, for which all processes meet, and one of them may wait for the lock."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def _library(wanted_for: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(f"{wanted_for} needs huggingface_hub ({error}): {install('hub')}") from None
    return huggingface_hub


def _by_hand(name: HubName) -> str:
    """What to do on a machine without a network."""
    repository, folder = name.repository, name.repository.split("/")[-1]
    revision = f" --revision={name.revision}" if name.revision else ""
    fetched = f"`hf download {repository} config.json preprocessor_config.json model.safetensors{revision} --local-dir={folder}`"
    return f"run {fetched} where there is a network, copy that folder here, then `python -m igpt_jax.convert hf {folder} OUT` and --checkpoint=OUT"


@contextlib.contextmanager
def _explained(hub: Any, name: HubName, way_out: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line; `way_out` ends that of a failed connection."""
    errors, address = hub.errors, hub.constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        page = f"{address}/{name.repository}"
        raise OSError(f"{name} asks its users to accept conditions: accept them at {page}, then `hf auth login`, or set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        private = "if it is private, run `hf auth login`, or set HF_TOKEN, with an account that may read it"
        raise FileNotFoundError(f"{address} has no model {name.repository}, or does not show it: check the name; {private}") from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{name.repository} has no branch, tag or commit {name.revision} at {address}: leave @{name.revision} out for main") from None
    except errors.HfHubHTTPError as error:
        raise OSError(f"{address} refuses {name}, status {error.response.status_code} ({_reason(error)}): {way_out}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        offline = hub.constants.is_offline_mode()
        reason = "HF_HUB_OFFLINE is set" if offline else f"{address} cannot be reached ({_reason(error.__cause__ or error)})"
        raise FileNotFoundError(f"{name} is not complete in {hub.constants.HF_HUB_CACHE}, and {reason}: {way_out}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {_reason(error)}") from None
    except Exception as error:  # httpx and the system each raise their own
        raise OSError(f"{name}: the connection to {address} failed ({_reason(error)}): start again, or {way_out}") from None


def _reason(error: BaseException) -> str:
    return one_line(error).rstrip(".")


def _check_blob(path: pathlib.Path) -> None:
    """ValueError where a file is not the one that its server named. The cache of huggingface_hub names a file by its SHA-256, or by git's SHA-1."""
    blob = path.resolve()
    algorithm = {64: "sha256", 40: "sha1"}.get(len(blob.name))
    if algorithm is None or not re.fullmatch(r"[0-9a-f]+", blob.name):
        return  # a file system without links
    digest = hashlib.new(algorithm, b"" if algorithm == "sha256" else f"blob {blob.stat().st_size}\0".encode())
    with blob.open("rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    if digest.hexdigest() != blob.name:
        kind = algorithm.replace("sha", "SHA-")
        raise ValueError(f"{path.name} is damaged, its {kind} is {digest.hexdigest()[:12]} and not {blob.name[:12]}: delete {blob} and start again")


def _upload(api: Any, repository: str, folder: PathLike, private: bool) -> str:
    """Make the repository if there is none, and upload the files of a folder as one commit; return its address."""
    api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise ValueError(f"{repository} exists and is public: leave out --private, or make it private first")
    ignored = []
    if api.file_exists(repository, "README.md"):
        multihost.note(f"{repository} has a README.md, which is left as it is")
        ignored = ["README.md"]
    commit = api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=ignored, commit_message="Upload by igpt_jax")
    return str(commit.commit_url)
