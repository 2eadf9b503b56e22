"""A model in one file, and the models that the package ships.

The file is in the format of safetensors. Its arrays are the parameters, `model.blocks.mlp_in` and so on, in float16, bfloat16 or float32, and `palette`,
the colours in float32. Its metadata are `format`, the version of this format; `meta`, JSON with what the meta of a checkpoint has (model, config, step,
class_names, checksums); and `sha256`, the checksum of everything else in the file. `checksums.model` is that of the parameters in float32, as they are
loaded. `igpt_jax.convert pack` writes such a file from a run. A file in igpt_jax/models/ is loaded by its name without the suffix.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from igpt_jax.distributed.multihost import note
from igpt_jax.files import one_line, write_atomically
from igpt_jax.training.trees import NestedArrays, from_nested, nest, to_flat
from igpt_jax.types import PathLike, Tree

FOLDER = pathlib.Path(__file__).parents[1] / "models"
SUFFIX = ".safetensors"
FORMAT = 1
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}  # safetensors' name -> NumPy's
PARAMETERS = "model."  # in front of a parameter's name


def shipped() -> list[str]:
    """Return the names of the models in the package."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def find(path: PathLike) -> epath.Path | None:
    """Return the file of the model that `path` names: a file, or the name of a shipped model. None where `path` is a directory.

    An existing directory or file has precedence over a shipped model of its name, with a note. FileNotFoundError in one line where nothing has this name.
    """
    place, name = epath.Path(os.path.expanduser(path)), os.fspath(path)
    exists, names = place.exists(), shipped()
    if name in names:
        file = FOLDER / f"{name}{SUFFIX}"
        if not exists:
            return epath.Path(file)
        kind = "directory" if place.is_dir() else "file"
        note(f"{name} is read from the {kind} of that name in {os.getcwd()}; the model of that name in the package is {file}")
    if not exists:
        known = f", the name of a model in the package ({', '.join(names)})" if names else ""
        hub = "hf:OWNER/NAME for a model of the Hugging Face hub"
        ways = f"the --workdir of a training run, a directory or file written by igpt_jax.convert{known}, or {hub}"
        raise FileNotFoundError(f"checkpoint {place} does not exist: give {ways}")
    return place if place.is_file() else None


def write(path: PathLike, nested: NestedArrays, palette: np.ndarray, meta: dict[str, Any]) -> int:
    """Write a model as one file, completely or not at all, and return its size in bytes.

    `nested` holds NumPy arrays of one of DTYPES, `palette` float32 [V, 3 or 1], and `meta` what JSON can express.
    """
    from safetensors.numpy import save

    tensors = {PARAMETERS + name: array for name, array in to_flat(nested).items()} | {"palette": np.asarray(palette, np.float32)}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    metadata = {"format": str(FORMAT), "meta": json.dumps(meta)}
    stored = {name: (array.dtype.name, list(array.shape), array.tobytes()) for name, array in tensors.items()}
    content = save(tensors, metadata | {"sha256": _digest(metadata, stored)})
    write_atomically(epath.Path(path), content)
    return len(content)


def read(path: PathLike) -> tuple[dict[str, Any], NestedArrays]:
    """Read a model's file as (meta, with the palette as a nested list; parameters in float32).

    ValueError in one line for a file that is damaged, of another version, or no model of this package; OSError where it cannot be read.
    """
    path = epath.Path(path)
    content = path.read_bytes()
    metadata, stored = _parse(path, content)
    if not {"format", "meta", "sha256"} <= metadata.keys():
        raise ValueError(f"{path} is a file of safetensors without a model of igpt_jax: `python -m igpt_jax.convert hf` converts a folder of transformers")
    if metadata["format"] != str(FORMAT):
        way_out = "use the version of igpt_jax that wrote it, or a later one"
        raise ValueError(f"{path} has format {metadata['format']} of a model's file and this version reads {FORMAT}: {way_out}")
    if _digest(metadata, stored) != metadata["sha256"]:
        raise ValueError(f"{path}, {len(content):,} bytes, is damaged: its SHA-256 is not the one that was written into it. Restore it from a copy")
    arrays = {name: np.frombuffer(data, jnp.dtype(dtype)).reshape(shape).astype(np.float32) for name, (dtype, shape, data) in stored.items()}
    meta = json.loads(metadata["meta"]) | {"palette": arrays.pop("palette").tolist()}
    return meta, nest({name.removeprefix(PARAMETERS): array for name, array in arrays.items()})


def parameters_like(path: PathLike, nested: NestedArrays, abstract: Tree) -> Tree:
    """Arrange the parameters as `abstract` does; ValueError where a name or a shape is not that of its model."""
    found, wanted = ({name: tuple(array.shape) for name, array in to_flat(tree).items()} for tree in (nested, abstract))
    if differ := sorted(dict(found.items() ^ wanted.items())):
        raise ValueError(f"{path} does not hold the parameters of its model: {', '.join(differ)} are missing, unexpected or of another shape")
    return from_nested(nested, abstract)


def _parse(path: epath.Path, content: bytes) -> tuple[dict[str, str], dict[str, tuple[str, list[int], bytes]]]:
    """Return the metadata of a safetensors file, and {name: (dtype, shape, bytes)}; ValueError where it is cut off or something else."""
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(content)
    except SafetensorError as error:
        raise ValueError(f"{path}, {len(content):,} bytes, is cut off or no file of safetensors: {one_line(error)}") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # which `deserialize` has checked, and does not return
    stored = {name: (DTYPES.get(each["dtype"], each["dtype"]), list(each["shape"]), bytes(each["data"])) for name, each in tensors}
    return header.get("__metadata__") or {}, stored


def _digest(metadata: dict[str, str], stored: dict[str, tuple[str, list[int], bytes]]) -> str:
    """Return the SHA-256 of the format, the meta, and every array's name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name, (dtype, shape, data) in sorted(stored.items()):
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(data)
    digest.update(json.dumps([metadata["format"], metadata["meta"]]).encode())
    return digest.hexdigest()
