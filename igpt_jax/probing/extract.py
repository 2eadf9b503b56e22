"""Computes the features of every layer of a model and writes them as the folder that store.py describes."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.distributed import multihost, sharding
from igpt_jax.model import objectives
from igpt_jax.model.transformer import parameter_count, rms_norm
from igpt_jax.probing import store
from igpt_jax.progress import Progress
from igpt_jax.training import checkpoints

KINDS = ("normalised", "raw", "positions")
SPLITS = ("train", "validation", "test")
IMAGES_PER_PART = 4096  # fixed, so that a second run agrees with the first; 1.2 GB of float32 for iGPT-L
POSITIONS_PART = 2**28  # bytes of a part of kind positions, about; an image is 2 MiB in float16 for one layer of iGPT-M at 32 x 32
MASKS = 5  # that vote, paper 2.4
MASK_PROBABILITY = 0.15  # of a model that does not say; paper 2.1
MASK_SEED = 0  # fixed, so that two runs are the same
PER_SPLIT = ("counts", "fingerprints")  # of a description: what each split has of its own
SPARE = 2**20  # bytes of the disk left free


def write_features(
    pretrained,
    data_config,
    out,
    splits=SPLITS,
    kind="normalised",
    batch=None,
    dtype=None,
    images_per_part=None,
    overwrite=False,
    layers=None,
    masks=None,
    limit=0,
) -> dict:
    """Write the features of `splits` to the folder `out` and return its description (what features.json says).

    None means: `batch` 256, of kind positions 32; `dtype` float32, of kind positions float16; `images_per_part` 4096, of kind positions as many as make a
    quarter of a GiB; `masks` 5 for a bert model, 0 for others. `layers` are for kind positions, which needs them. `limit`: of each split at most so
    many images, drawn at random, the same each time; 0: all.
    Raises ValueError in one line where the images do not fit the model, or where `out` holds the features of something else; OSError where the disk has
    no room.
    """
    out, mesh = local_folder(out), pretrained.mesh or place(pretrained.model)
    together = mesh.devices.size > len(mesh.local_devices)  # all processes work on each part, for a model that one process does not hold
    _check(pretrained, data_config, kind, layers, masks)
    batch = (32 if kind == "positions" else 256) if batch is None else batch

    def begin():
        datasets = {split: pipeline.open_dataset(data_config, split).draw(limit) for split in splits}
        description = _describe(pretrained, data_config, datasets, kind, dtype, images_per_part, layers, masks, limit)
        if batch < 1 or description["images_per_part"] < 1:
            raise ValueError(f"batch {batch} and images per part {description['images_per_part']} must be at least 1")
        if jax.process_index() == 0:
            _check_claim(out, description, overwrite)
            _check_space(out, description, splits, overwrite)
            description = _claim(out, description, overwrite)
            for split, dataset in datasets.items():
                _write_array(out / split / "labels.npy", np.asarray(dataset.labels, np.int32))
        return datasets, description

    datasets, description = multihost.together(begin, "another process cannot begin: see what it says")
    everywhere = jax.NamedSharding(mesh, jax.P()) if together else None
    forward = jax.jit(partial(_features, description=description), static_argnames="probability", out_shardings=everywhere)
    probability = pretrained.config.get("loss", {}).get("mask_probability", MASK_PROBABILITY) if description.get("masks") else None

    def write():
        for split, dataset in datasets.items():
            for mask in range(store.mask_count(description, split)):
                run = partial(forward, pretrained.model, jnp.int32(mask), probability=probability)
                parts = _missing_parts(out, description, split, mask, of_all=together)
                if together:
                    multihost.wait_for_all("features")  # all see the same parts missing
                name = f"{split}, mask {mask}" if description.get("masks") else split
                with Progress(name, sum(stop - start for _, start, stop in parts)) as progress, jax.set_mesh(mesh):
                    for number, (path, start, stop) in enumerate(parts):
                        part = _part(run, pretrained, dataset, mesh, description, start, stop, batch, progress)
                        if not together or number % jax.process_count() == jax.process_index():
                            _write_array(path, part)

    multihost.together(write, "another process cannot write its parts: see what it says")
    return description


def _features(model, mask, batch, description, probability):
    """What is written of a batch {codes [B, S], index [B]}: [layers, B, D], or [layers, B, S, D]."""
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


def _check(pretrained, data_config, kind, layers, masks):
    """ValueError in one line for what does not go together."""
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


def _describe(pretrained, data_config, datasets, kind, dtype, images_per_part, layers, masks, limit):
    config = pretrained.model_config
    masks = (MASKS if config.objective == "bert" else 0) if masks is None else masks
    description = {
        "checkpoint": pretrained.path,
        "step": pretrained.step,
        "checksum": checkpoints.checksum(checkpoints.to_nested(pretrained.model)),
        "layers": config.layers,
        "width": config.width,
        "parameters": parameter_count(pretrained.model),
        "kind": kind,
        "dtype": dtype or ("float16" if kind == "positions" else "float32"),
        "data": dataclasses.asdict(data_config),
        "class_names": list(next(iter(datasets.values())).class_names),
        "images_per_part": IMAGES_PER_PART if images_per_part is None else images_per_part,
        "counts": {split: len(dataset) for split, dataset in datasets.items()},
        "fingerprints": {split: dataset.fingerprint() for split, dataset in datasets.items()},
    }
    if kind == "positions":
        description |= {"stored_layers": sorted(set(layers)), "positions": config.positions}
    if images_per_part is None and kind == "positions":
        description["images_per_part"] = min(IMAGES_PER_PART, max(1, POSITIONS_PART // store.image_bytes(description)))
    return description | ({"masks": masks} if masks else {}) | ({"limit": limit} if limit else {})


def _check_claim(out, description, overwrite):
    """ValueError where other features lie in `out` already."""
    path = out / "features.json"
    if overwrite or not path.exists():
        return
    old, skipped = store.read_claim(out), set(PER_SPLIT)
    free = {key: description["data"][key] for key in ("augment", "workers")}  # nothing is augmented; older descriptions lack keys
    old["data"] = dataclasses.asdict(pipeline.DataConfig(**old["data"])) | free
    if "checksum" not in old:
        multihost.note(f"{out} does not say the checksum of its model: taken for {old['checkpoint']}, step {old['step']}, as it was then")
        skipped |= {"checksum"}
    elif old["checksum"] == description["checksum"]:  # the same model, wherever it lies
        skipped |= {"checkpoint", "step"}
    pairs = [(key, old.get(key), description.get(key)) for key in description | old if key not in (*skipped, "data")]
    pairs += [(f"data.{key}", old["data"].get(key), value) for key, value in description["data"].items()]
    pairs += [(f"{key} of {split}", old.get(key, {}).get(split, value), value) for key in PER_SPLIT for split, value in description[key].items()]
    told = ", ".join(f"{key} ({_short(before)} there, {_short(now)} now)" for key, before, now in pairs if before != now)
    if told:
        raise ValueError(f"{out} holds other features, differing in {told}: give another --out, or --overwrite")


def _check_space(out, description, splits, overwrite):
    """Say how much is going to be written; OSError in one line where the disk has no room, before anything is."""
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
    what = " x ".join(map(str, (len(store.stored_layers(description)), *store.row_shape(description))))
    print(f"{out}: {sum(missing)} images of {what} in {description['dtype']}, {_size(need)} to write, {_size(free)} free", flush=True)
    if need + SPARE > free:
        way_out = "make room, give fewer --layers or --splits" if description["kind"] == "positions" else "make room, or give --dtype=float16 or fewer --splits"
        raise OSError(f"No space left on the disk of {out}: {_size(need)} to write, {_size(free)} free: {way_out}")


def _claim(out, description, overwrite):
    """Write features.json first; where it lies there already its splits stay."""
    path = out / "features.json"
    if overwrite and path.exists():
        for split in SPLITS:
            shutil.rmtree(out / split, ignore_errors=True)
        path.unlink()
    if path.exists():
        old = store.read_claim(out)
        unknown = {"checksum", "fingerprints"} - old.keys()  # of what lies there, and so of the whole
        description = {key: old[key] | value if key in PER_SPLIT and key in old else value for key, value in description.items() if key not in unknown}
    _write(path, lambda file: file.write((json.dumps(description, indent=1) + "\n").encode()))
    return description


def _missing_parts(out, description, split, mask, of_all=False):
    """(path, start, stop) of the parts that are not there whole: this process's, or `of_all`."""
    missing = []
    for number, (path, start, stop) in enumerate(_all_parts(out, description, split, mask)):
        shape = (len(store.stored_layers(description)), stop - start, *store.row_shape(description))
        mine = of_all or number % jax.process_count() == jax.process_index()
        if mine and not _is_whole(path, shape, description["dtype"]):
            missing.append((path, start, stop))
    return missing


def _all_parts(out, description, split, mask):
    return [(store.part_path(out, split, mask, number), start, stop) for number, start, stop in store.parts(description, split)]


def _is_whole(path, shape, dtype):
    """Whether the file is an array of this shape and dtype, to its last byte."""
    try:
        array = np.load(path, mmap_mode="r")  # a truncated file is a ValueError or EOFError here
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == shape and array.dtype == dtype and path.stat().st_size == array.offset + array.nbytes


def _part(run, pretrained, dataset, mesh, description, start, stop, batch, progress):
    """Features of images start..stop, [layers, n, ...]; a batch is fetched when the next one is already under way."""
    dtype = description["dtype"]
    part_LnD = np.empty((len(store.stored_layers(description)), stop - start, *store.row_shape(description)), dtype)
    size, filled, pending = sharding.round_up(mesh, min(batch, stop - start)), 0, None
    batches = pipeline.evaluation_batches(dataset, pretrained.palette, size, sharding.part_of_batch(mesh, size), start, stop)
    for batch in itertools.chain(batches, [None]):
        result = None if batch is None else run(sharding.shard_batch(mesh, {"codes": batch["codes"], "index": batch["index"]}))
        if pending is not None:
            real = min(size, stop - start - filled)  # the last batch is padded
            with np.errstate(over="ignore"):  # too large for float16: said below
                part_LnD[:, filled : filled + real] = np.asarray(pending)[:, :real]
            filled += real
            progress.advance(real)
        pending = result
    if not np.isfinite(part_LnD).all():
        way_out = "use --dtype=float32" if dtype == "float16" else f"{pretrained.path} is not sound"
        raise ValueError(f"features of {dataset.split} images {start} to {stop - 1} are not finite in {dtype}: {way_out}")
    return part_LnD


def _write_array(path, array):
    _write(path, lambda file: np.save(file, array))


def _write(path, write):
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


def local_folder(out):
    """The path; ValueError for a bucket, where pathlib would make a folder called gs: in this one."""
    if "://" in str(out):
        raise ValueError(f"--out={out} must be a local or mounted folder: igpt_jax.probe maps the features into memory")
    return pathlib.Path(out)


def place(model):
    """The mesh for a model, abstract or real: the devices of this process, so that processes work on different parts and do not wait for each other; of
    all processes where those do not hold it."""
    mesh = sharding.divide(model, jax.local_devices())
    return mesh if sharding.holds(mesh, model) else sharding.divide(model, jax.devices())


def _size(count):
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _short(value):
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."
