"""Computes the features of every layer of a model and writes them to a folder; store.py describes its files.

B batch, S sequence, L layers, D width, n images of a part.
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, BinaryIO, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.data.classes import names_of_splits
from igpt_jax.distributed import multihost, sharding
from igpt_jax.files import replacing
from igpt_jax.model import objectives
from igpt_jax.model.transformer import ImageGPT, parameter_count, rms_norm
from igpt_jax.probing import store
from igpt_jax.probing.store import Description
from igpt_jax.progress import Progress
from igpt_jax.training import checkpoints
from igpt_jax.types import Array, Batch, PathLike

Part: TypeAlias = tuple[pathlib.Path, int, int]  # path, first image, one past the last image

KINDS = ("normalised", "raw", "positions")
SPLITS = ("train", "validation", "test")
IMAGES_PER_PART = 4096  # constant, so that a second run agrees with the first; 1.2 GB of float32 for iGPT-L
POSITIONS_PART = 2**28  # approximate bytes of a part of kind positions; an image is 2 MiB in float16 for one layer of iGPT-M at 32 x 32
MASKS = 5  # masks that vote, paper 2.4
MASK_SEED = 0  # constant, so that two runs are equal
PER_SPLIT = ("counts", "fingerprints")  # keys of a description that have a value for each split
SPARE = 2**20  # bytes of the disk that stay free


def write_features(
    pretrained: checkpoints.Pretrained,
    data_config: pipeline.DataConfig,
    out: PathLike,
    splits: Iterable[str] = SPLITS,
    kind: str = "normalised",
    batch: int | None = None,
    dtype: str | None = None,
    images_per_part: int | None = None,
    overwrite: bool = False,
    layers: Sequence[int] | None = None,
    masks: int | None = None,
    limit: int = 0,
) -> Description:
    """Write the features of `splits` to the folder `out`. Returns the description, the content of features.json.

    None means: `batch` is 256 (32 for kind positions); `dtype` is float32 (float16 for kind positions); `images_per_part` is 4096 (for kind positions a
    quarter of a GiB); `masks` is 5 for a bert model and 0 for others. Kind positions needs `layers`, and only that kind takes them. `limit` is the largest
    number of images of each split, drawn at random, always the same; 0: all.
    Raises ValueError if the images do not fit the model, or if `out` holds other features; OSError if the disk has no room.
    """
    out, mesh, splits = local_folder(out), pretrained.mesh or place(pretrained.model), tuple(splits)
    together = mesh.devices.size > len(mesh.local_devices)  # all processes work on each part if the model needs the devices of all
    _check(pretrained, data_config, kind, layers, masks)
    batch = (32 if kind == "positions" else 256) if batch is None else batch

    def describe() -> tuple[dict[str, Any], Description]:
        datasets = {split: pipeline.open_dataset(data_config, split).draw(limit) for split in splits}
        description = _describe(pretrained, data_config, datasets, kind, dtype, images_per_part, layers, masks, limit)
        if batch < 1 or description["images_per_part"] < 1:
            raise ValueError(f"batch {batch} and images per part {description['images_per_part']} must be at least 1")
        return datasets, description

    def begin(description: Description) -> Description:
        if jax.process_index() == 0:
            _check_claim(out, description, overwrite)
            _check_space(out, description, splits, overwrite)
            description = _claim(out, description, overwrite)
            for split, dataset in datasets.items():
                _write_array(out / split / "labels.npy", np.asarray(dataset.labels, np.int32))
        return description

    datasets, description = multihost.together(describe, "another process cannot begin: see what it says")
    where = {"checkpoint", "data", "fingerprints", "checksum"}  # paths may differ; the rest is compared by name
    multihost.check_same(
        options=[splits, batch, overwrite, data_config.view, {name: value for name, value in description.items() if name not in where}],
        images=description["fingerprints"],
        weights=description["checksum"],
    )
    described = description
    description = multihost.together(lambda: begin(described), "another process cannot begin: see what it says")
    everywhere = jax.NamedSharding(mesh, jax.P()) if together else None
    forward = jax.jit(partial(_features, description=description), static_argnames="probability", out_shardings=everywhere)
    probability = pretrained.mask_probability if description.get("masks") else None

    def write() -> None:
        passes = [(split, mask) for split in datasets for mask in range(store.mask_count(description, split))]
        missing = [(*each, _missing_parts(out, description, *each, of_all=together)) for each in passes]
        if together:
            multihost.wait_for_all("features")  # until all processes have found the same missing parts
        with Progress("features", sum(stop - start for _, _, parts in missing for _, start, stop in parts)) as progress, jax.set_mesh(mesh):
            for split, mask, parts in missing:
                run = partial(forward, pretrained.model, jnp.int32(mask), probability=probability)
                for number, (path, start, stop) in enumerate(parts):
                    part = _part(run, pretrained, datasets[split], mesh, description, start, stop, batch, progress)
                    if not together or number % jax.process_count() == jax.process_index():
                        _write_array(path, part)

    multihost.together(write, "another process cannot write its parts: see what it says")
    return description


def _features(model: ImageGPT, mask: Array, batch: Batch, description: Description, probability: float | None) -> Array:
    """Features [layers, B, D] or [layers, B, S, D] of a batch {codes [B, S], index [B]}."""
    hidden = description["kind"] == "positions"
    if probability is None:
        output = model.forward_features(batch["codes"], hidden=hidden)
    else:
        keys_B = objectives.image_keys(jax.random.fold_in(jax.random.key(MASK_SEED), mask), batch["index"])
        mask_BS = objectives.sample_mask(keys_B, batch["codes"].shape[1], probability)
        output = model(batch["codes"], mask_BS, hidden=hidden)
    if not hidden:
        return output.raw_features if description["kind"] == "raw" else output.features
    gains_LD = jnp.concatenate([model.blocks.attention_norm[...], model.final_norm[...][None]])
    return jnp.stack([rms_norm(output.hidden[layer], gains_LD[layer]) for layer in description["stored_layers"]])


def _check(pretrained: checkpoints.Pretrained, data_config: pipeline.DataConfig, kind: str, layers: Sequence[int] | None, masks: int | None) -> None:
    """Raises ValueError for arguments that do not fit each other or the model."""
    config = pretrained.model_config
    if data_config.image_size != pretrained.image_size:
        size = data_config.image_size
        raise ValueError(f"images of {size} x {size} pixels do not fit {config.positions} positions: give --image-size={pretrained.image_size}")
    if (kind == "positions") != bool(layers):
        raise ValueError("--kind=positions needs --layers, a list like 4,8" if kind == "positions" else f"--kind={kind} writes all layers: leave out --layers")
    if layers and not all(0 <= layer <= config.layers for layer in layers):
        raise ValueError(f"--layers={','.join(map(str, layers))} must be from 0 to {config.layers}")
    if masks is not None and masks < 0:
        raise ValueError(f"--masks={masks} must not be negative")
    if masks and config.objective != "bert":
        raise ValueError(f"this model is {config.objective} and sees no masks: leave out --masks={masks}, only a bert model takes them")


def _describe(
    pretrained: checkpoints.Pretrained,
    data_config: pipeline.DataConfig,
    datasets: dict[str, Any],
    kind: str,
    dtype: str | None,
    images_per_part: int | None,
    layers: Sequence[int] | None,
    masks: int | None,
    limit: int,
) -> Description:
    config = pretrained.model_config
    masks = (MASKS if config.objective == "bert" else 0) if masks is None else masks
    description: Description = {
        "checkpoint": pretrained.path,
        "step": pretrained.step,
        "checksum": checkpoints.checksum(checkpoints.to_nested(pretrained.model)) if pretrained.checksum is None else pretrained.checksum,  # as it is stored
        **({"ema": True} if pretrained.ema else {}),
        "layers": config.layers,
        "width": config.width,
        "parameters": parameter_count(pretrained.model),
        "kind": kind,
        "dtype": dtype or ("float16" if kind == "positions" else "float32"),
        "data": dataclasses.asdict(data_config),
        "class_names": list(names_of_splits(datasets)),
        "images_per_part": IMAGES_PER_PART if images_per_part is None else images_per_part,
        "counts": {split: len(dataset) for split, dataset in datasets.items()},
        "fingerprints": {split: dataset.fingerprint() for split, dataset in datasets.items()},
    }
    if kind == "positions" and layers:
        description |= {"stored_layers": sorted(set(layers)), "positions": config.positions}
    if images_per_part is None and kind == "positions":
        description["images_per_part"] = min(IMAGES_PER_PART, max(1, POSITIONS_PART // store.image_bytes(description)))
    return description | ({"masks": masks} if masks else {}) | ({"limit": limit} if limit else {})


def _check_claim(out: pathlib.Path, description: Description, overwrite: bool) -> None:
    """Raises ValueError if `out` already holds other features."""
    path = out / "features.json"
    if overwrite or not path.exists():
        return
    old, skipped = store.read_claim(out), set(PER_SPLIT)
    free = {key: description["data"][key] for key in ("augment", "workers")}  # these do not change the features; older descriptions lack keys
    old["data"] = dataclasses.asdict(pipeline.DataConfig(**old["data"])) | free
    if "checksum" not in old:
        multihost.note(f"{out} does not say the checksum of its model: its features are assumed to be of {old['checkpoint']}, step {old['step']}")
        skipped |= {"checksum"}
    elif old["checksum"] == description["checksum"]:  # the same model, at any path
        skipped |= {"checkpoint", "step", "ema"}
    pairs = [(key, old.get(key), description.get(key)) for key in description | old if key not in (*skipped, "data")]
    pairs += [(f"data.{key}", old["data"].get(key), value) for key, value in description["data"].items()]
    pairs += [(f"{key} of {split}", old.get(key, {}).get(split, value), value) for key in PER_SPLIT for split, value in description[key].items()]
    differences = ", ".join(f"{key} ({_short(before)} there, {_short(now)} now)" for key, before, now in pairs if before != now)
    if differences:
        raise ValueError(f"{out} holds other features, differing in {differences}: give another --out, or --overwrite")


def _check_space(out: pathlib.Path, description: Description, splits: Sequence[str], overwrite: bool) -> None:
    """Print how much will be written. Raises OSError if the disk has no room for it."""
    missing = [
        stop - start
        for split in splits
        for mask in range(store.mask_count(description, split))
        for _, start, stop in (_missing_parts(out, description, split, mask, of_all=True) if not overwrite else _all_parts(out, description, split, mask))
    ]
    home = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    need, free = sum(missing) * store.image_bytes(description), shutil.disk_usage(home).free
    if overwrite:
        free += sum(path.stat().st_size for path in out.rglob("part-*.npy"))
    shape = " x ".join(map(str, (len(store.stored_layers(description)), *store.row_shape(description))))
    if not missing:
        print(f"{out}: all {sum(description['counts'][split] for split in splits):,} images of {shape} are there already: nothing to write", flush=True)
        return
    print(f"{out}: {sum(missing)} images of {shape} in {description['dtype']}, {_size(need)} to write, {_size(free)} free", flush=True)
    if need + SPARE > free:
        way_out = "make room, give fewer --layers or --splits" if description["kind"] == "positions" else "make room, or give --dtype=float16 or fewer --splits"
        raise OSError(f"No space left on the disk of {out}: {_size(need)} to write, {_size(free)} free: {way_out}")


def _claim(out: pathlib.Path, description: Description, overwrite: bool) -> Description:
    """Write features.json, before any part. The splits of an older one are kept in it. Returns its content."""
    path = out / "features.json"
    if overwrite and path.exists():
        for split in SPLITS:
            shutil.rmtree(out / split, ignore_errors=True)
        path.unlink()
    if path.exists():
        old = store.read_claim(out)
        unknown = {"checksum", "fingerprints"} - old.keys()  # not known for the old splits, so not for the folder
        description = {key: old[key] | value if key in PER_SPLIT and key in old else value for key, value in description.items() if key not in unknown}
    _write(path, lambda file: file.write((json.dumps(description, indent=1) + "\n").encode()))
    return description


def _missing_parts(out: pathlib.Path, description: Description, split: str, mask: int, of_all: bool = False) -> list[Part]:
    """The parts that are missing or incomplete: of this process, or `of_all` processes."""
    missing = []
    for number, (path, start, stop) in enumerate(_all_parts(out, description, split, mask)):
        shape = (len(store.stored_layers(description)), stop - start, *store.row_shape(description))
        mine = of_all or number % jax.process_count() == jax.process_index()
        if mine and not _is_complete(path, shape, description["dtype"]):
            missing.append((path, start, stop))
    return missing


def _all_parts(out: pathlib.Path, description: Description, split: str, mask: int) -> list[Part]:
    return [(store.part_path(out, split, mask, number), start, stop) for number, start, stop in store.parts(description, split)]


def _is_complete(path: pathlib.Path, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether the file is an array of this shape and dtype, with all of its bytes."""
    try:
        array = np.load(path, mmap_mode="r")  # raises ValueError or EOFError for a truncated file
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == shape and array.dtype == dtype and path.stat().st_size == array.offset + array.nbytes


def _part(
    run: Callable[[Batch], Array],
    pretrained: checkpoints.Pretrained,
    dataset: Any,
    mesh: jax.sharding.Mesh,
    description: Description,
    start: int,
    stop: int,
    batch_size: int,
    progress: Progress,
) -> np.ndarray:
    """Features of images start to stop - 1, [layers, n, ...]. A batch is fetched from the devices after the next one has been started."""
    dtype = description["dtype"]
    part_LnD = np.empty((len(store.stored_layers(description)), stop - start, *store.row_shape(description)), dtype)
    size, filled, pending = sharding.round_up(mesh, min(batch_size, stop - start)), 0, None
    batches = pipeline.evaluation_batches(dataset, pretrained.palette, size, sharding.part_of_batch(mesh, size), start, stop)
    for batch in itertools.chain(batches, [None]):
        result = None if batch is None else run(sharding.shard_batch(mesh, {"codes": batch["codes"], "index": batch["index"]}))
        if pending is not None:
            real = min(size, stop - start - filled)  # the last batch is padded
            with np.errstate(over="ignore"):  # values too large for float16 raise an error below
                part_LnD[:, filled : filled + real] = np.asarray(pending)[:, :real]
            filled += real
            progress.advance(real)
        pending = result
    if not np.isfinite(part_LnD).all():
        way_out = "use --dtype=float32" if dtype == "float16" else f"the parameters of {pretrained.path} are damaged"
        raise ValueError(f"features of {dataset.split} images {start} to {stop - 1} are not finite in {dtype}: {way_out}")
    return part_LnD


def _write_array(path: pathlib.Path, array: np.ndarray) -> None:
    _write(path, lambda file: np.save(file, array))


def _write(path: pathlib.Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)


def local_folder(out: PathLike) -> pathlib.Path:
    """The path. Raises ValueError for a bucket, for which pathlib would create a local folder named `gs:`."""
    if "://" in str(out):
        raise ValueError(f"--out={out} must be a local or mounted folder: igpt_jax.probe maps the features into memory")
    return pathlib.Path(out)


def place(model: Any) -> jax.sharding.Mesh:
    """The mesh for a model, abstract or real: the devices of this process if the model fits on them, otherwise those of all processes.

    With a mesh of its own, each process works on other parts and waits for no other process.
    """
    mesh = sharding.divide(model, jax.local_devices())
    return mesh if sharding.holds(mesh, model) else sharding.divide(model, jax.devices())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."
