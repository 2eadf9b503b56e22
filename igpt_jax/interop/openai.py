"""TensorFlow checkpoints of openai/image-gpt, read by TensorFlow itself: autoregressive where they have `sos`, else bert (`src/model.py` there)."""

import contextlib
import os
import pathlib
import re

import numpy as np

from igpt_jax.interop.weights import (
    INSTALL,
    Arrays,
    check_arrays,
    check_destination,
    check_palette,
    first_line,
    listed,
    model_config,
    stacked,
    write_checkpoint,
)
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.palette.palette import Palette


def from_openai(source, destination, palette=None, heads=None) -> ModelConfig:
    """Convert a TensorFlow checkpoint of openai/image-gpt and return the model's configuration.

    `palette`: path of kmeans_centers.npy; by default the one beside the checkpoint. `heads`, if given, must be the checkpoint's number.
    ValueError, FileNotFoundError or ImportError, one line, before anything is written.
    """
    check_destination(destination)
    prefix = _find_prefix(pathlib.Path(source))
    colours = _choose_palette(palette, prefix.parent / "kmeans_centers.npy")
    arrays = _open_tensorflow(prefix)
    config = _config(arrays, heads)
    wanted = _shapes(config)
    slots = {name for name in arrays.shapes if not name.startswith("model/") or name.rpartition("/")[0] in wanted}
    check_arrays(arrays, wanted, ignored=slots)
    check_palette(colours, config)
    step = re.search(r"-(\d+)$", prefix.name)
    write_checkpoint(destination, _read(arrays, config), config, colours, str(prefix), int(step[1]) if step else 0, view="imagenet")
    return config


def _find_prefix(path):
    """The checkpoint's path without .index, with all its shards there."""
    if path.is_dir():
        indices = sorted(path.glob("*.index"))
        if len(indices) != 1:
            found = f"{len(indices)} ({', '.join(index.name for index in indices)})" if indices else "none"
            raise FileNotFoundError(f"{path} must hold one file *.index, it holds {found}: give the prefix, as {path}/model.ckpt-1000000")
        path = indices[0].with_suffix("")
    index = path.with_name(path.name + ".index")
    if not index.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: {index} does not exist")
    pattern = re.compile(re.escape(path.name) + r"\.data-\d{5}-of-(\d{5})")
    totals = {entry.name: int(match[1]) for entry in path.parent.iterdir() if (match := pattern.fullmatch(entry.name))}
    if not totals:
        raise FileNotFoundError(f"checkpoint {path} has no shard: {path}.data-00000-of-... does not exist")
    total = max(totals.values())
    missing = [name for shard in range(total) if (name := f"{path.name}.data-{shard:05}-of-{total:05}") not in totals]
    if missing:
        raise FileNotFoundError(f"checkpoint {path} lacks {len(missing)} of {total} shards: {listed(missing)}")
    return path


def _choose_palette(given, beside):
    if given is None and not beside.is_file():
        raise FileNotFoundError(f"which palette? give --palette=kmeans_centers.npy, or lay OpenAI's at {beside}")
    return Palette.load(given or beside)


def _open_tensorflow(prefix):
    """The variables of a TensorFlow checkpoint, read by TensorFlow itself, which checks their sums."""
    try:
        with _quiet():
            import tensorflow as tf
    except ImportError as error:
        raise ImportError(f"reading a TensorFlow checkpoint needs tensorflow ({error}): {INSTALL}") from None

    @contextlib.contextmanager
    def in_one_line(what):
        try:
            yield
        except Exception as error:  # its reader raises IndexError, RuntimeError and errors of its own
            raise ValueError(f"{what} cannot be read, it is damaged or no TensorFlow checkpoint: {first_line(error)}") from None

    with in_one_line(f"{prefix}.index"):
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}

    def read(name):
        with in_one_line(f"{name} in {prefix}.data-*"):
            return np.asarray(reader.get_tensor(name))

    return Arrays(str(prefix), shapes, read)


@contextlib.contextmanager
def _quiet():
    """TensorFlow's libraries write notices about the machine when they are loaded, past Python and past their own log level."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _config(arrays, heads):
    shapes, ranks = arrays.shapes, {"model/wte": 2, "model/wpe": 2, "model/h0/attn/q_proj": 3}
    lacking = [name for name, rank in ranks.items() if len(shapes.get(name, ())) != rank]
    if lacking:
        raise ValueError(f"{arrays.place} is no Image GPT: it lacks {', '.join(lacking)} (of rank 2, 2 and 3) and holds {listed(shapes)}")
    found_heads = shapes["model/h0/attn/q_proj"][0]
    if heads not in (None, found_heads):
        raise ValueError(f"--heads={heads}, but {arrays.place} has {found_heads}: leave --heads out")
    return model_config(
        layers=1 + max(int(match[1]) for name in shapes if (match := re.match(r"model/h(\d+)/", name))),
        width=shapes["model/wte"][1],
        heads=found_heads,
        vocabulary=shapes["model/wte"][0],
        positions=shapes["model/wpe"][0],
        objective="autoregressive" if "model/sos" in shapes else "bert",
        classes=(shapes.get("model/clf/wclf") or (0,))[0],
    )


def _shapes(config):
    """Name -> shape of every variable that such a model has."""
    D, N, K, F = config.width, config.heads, config.width // config.heads, config.mlp
    block = {"ln_1/g": (D,), "attn/c_proj": (N, K, D), "ln_2/g": (D,), "mlp/c_fc/w": (D, F), "mlp/c_proj/w": (F, D)}
    block |= {f"attn/{kind}_proj": (N, K, D) for kind in "qkv"}
    shapes = {"model/wte": (config.vocabulary, D), "model/wtet": (config.vocabulary, D)}
    shapes |= {"model/wpe": (config.positions, D), "model/ln_f/g": (D,)}
    if config.causal:
        shapes["model/sos"] = (D,)
    if config.classes:
        shapes["model/clf/wclf"] = (config.classes, D)
    return shapes | {f"model/h{layer}/{name}": shape for layer in range(config.layers) for name, shape in block.items()}


def _read(arrays, config):
    def block(layer):
        def read(name):
            return arrays.read(f"model/h{layer}/{name}")

        return {
            "attention_norm": read("ln_1/g"),
            "query_key_value": np.stack([read(f"attn/{kind}_proj").transpose(2, 0, 1) for kind in "qkv"], axis=1),
            "attention_output": read("attn/c_proj").reshape(config.width, config.width),
            "mlp_norm": read("ln_2/g"),
            "mlp_in": read("mlp/c_fc/w"),
            "mlp_out": read("mlp/c_proj/w"),
        }

    names = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f/g", "output_embedding": "wtet"}
    names |= {"start_vector": "sos"} if config.causal else {}
    names |= {"class_embedding": "clf/wclf"} if config.classes else {}
    return {ours: arrays.read(f"model/{theirs}") for ours, theirs in names.items()} | {"blocks": stacked(config.layers, block)}
