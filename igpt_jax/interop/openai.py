"""Convert TensorFlow checkpoints of openai/image-gpt: autoregressive if they contain `sos`, else bert (`src/model.py` there). TensorFlow reads them."""

import contextlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from igpt_jax.extras import install
from igpt_jax.interop import download
from igpt_jax.interop.weights import (
    Arrays,
    Shapes,
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
from igpt_jax.types import PathLike


def from_openai(
    source: PathLike, destination: PathLike, palette: PathLike | None = None, heads: int | None = None, mirror: str | None = None
) -> ModelConfig:
    """Convert a TensorFlow checkpoint of openai/image-gpt and return the model's configuration.

    `source` is the prefix of the checkpoint, the folder that contains it, or, where neither exists, the name of a model of OpenAI, igpt-s or igpt-s@524000,
    which is downloaded if it has not been (download.py), from `mirror` instead of OpenAI's address. `palette` is the path of kmeans_centers.npy (None: the
    one beside the checkpoint). `heads`, if given, must be the checkpoint's number of heads. Raises ValueError, OSError or ImportError, one line, before
    anything is written.
    """
    check_destination(destination)
    by_name = download.is_name(str(source)) and not os.path.exists(source) and not os.path.exists(f"{source}.index")
    if mirror is not None and not by_name:
        raise ValueError(f"--mirror has no effect: {source} is no name of a model of OpenAI ({', '.join(download.names())}), or exists here")
    if by_name:
        download.check_name(str(source))
        if importlib.util.find_spec("tensorflow") is None:  # before a long download
            raise ImportError(f"reading a TensorFlow checkpoint needs tensorflow: {install('convert')}")
    prefix = download.fetch(str(source), mirror) if by_name else _find_prefix(pathlib.Path(source))
    colours = _choose_palette(palette, prefix.parent / "kmeans_centers.npy")
    arrays = _open_tensorflow(prefix)
    config = _config(arrays, heads)
    shapes = _shapes(config)
    slots = {name for name in arrays.shapes if not name.startswith("model/") or name.rpartition("/")[0] in shapes}  # of the optimizer
    check_arrays(arrays, shapes, ignored=slots)
    check_palette(colours, config)
    step = re.search(r"-(\d+)$", prefix.name)
    write_checkpoint(destination, _read(arrays, config), config, colours, str(source) if by_name else str(prefix), int(step[1]) if step else 0, view="imagenet")
    return config


def _find_prefix(path: pathlib.Path) -> pathlib.Path:
    """Return the path of the checkpoint without .index, after a check that all shards exist."""
    if path.is_dir():
        indices = sorted(path.glob("*.index"))
        if len(indices) != 1:
            names = f"{len(indices)} ({', '.join(index.name for index in indices)})" if indices else "none"
            raise FileNotFoundError(f"{path} must hold one file *.index, it holds {names}: give the prefix, as {path}/model.ckpt-1000000")
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


def _choose_palette(path: PathLike | None, beside: pathlib.Path) -> Palette:
    if path is None and not beside.is_file():
        raise FileNotFoundError(f"the checkpoint has no palette: give --palette=kmeans_centers.npy, or copy OpenAI's to {beside}")
    return Palette.load(path or beside)


def _open_tensorflow(prefix: pathlib.Path) -> Arrays:
    """Open the variables of a TensorFlow checkpoint. TensorFlow verifies their checksums."""
    try:
        with _quiet():
            import tensorflow as tf
    except ImportError as error:
        raise ImportError(f"reading a TensorFlow checkpoint needs tensorflow ({error}): {install('convert')}") from None

    @contextlib.contextmanager
    def one_line(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorFlow's reader raises IndexError, RuntimeError and errors of its own
            raise ValueError(f"{name} cannot be read, it is damaged or no TensorFlow checkpoint: {first_line(error)}") from None

    with one_line(f"{prefix}.index"):
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}

    def read(name: str) -> np.ndarray:
        with one_line(f"{name} in {prefix}.data-*"):
            return np.asarray(reader.get_tensor(name))

    return Arrays(str(prefix), shapes, read)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard stderr. When TensorFlow's libraries are loaded, they write notices to the file descriptor, whatever the log level is."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _config(arrays: Arrays, heads: int | None) -> ModelConfig:
    """Derive the configuration from the shapes of the variables."""
    shapes, ranks = arrays.shapes, {"model/wte": 2, "model/wpe": 2, "model/h0/attn/q_proj": 3}
    lacking = [name for name, rank in ranks.items() if len(shapes.get(name, ())) != rank]
    if lacking:
        raise ValueError(f"{arrays.place} is no Image GPT: it lacks {', '.join(lacking)} (of rank 2, 2 and 3) and holds {listed(shapes)}")
    checkpoint_heads = shapes["model/h0/attn/q_proj"][0]
    if heads not in (None, checkpoint_heads):
        raise ValueError(f"--heads={heads}, but {arrays.place} has {checkpoint_heads}: leave --heads out")
    return model_config(
        layers=1 + max(int(match[1]) for name in shapes if (match := re.match(r"model/h(\d+)/", name))),
        width=shapes["model/wte"][1],
        heads=checkpoint_heads,
        vocabulary=shapes["model/wte"][0],
        positions=shapes["model/wpe"][0],
        objective="autoregressive" if "model/sos" in shapes else "bert",
        classes=(shapes.get("model/clf/wclf") or (0,))[0],
    )


def _shapes(config: ModelConfig) -> Shapes:
    """Return the shapes of all variables of such a model, by name."""
    D, N, K, F = config.width, config.heads, config.width // config.heads, config.mlp
    block: Shapes = {"ln_1/g": (D,), "attn/c_proj": (N, K, D), "ln_2/g": (D,), "mlp/c_fc/w": (D, F), "mlp/c_proj/w": (F, D)}
    block |= {f"attn/{kind}_proj": (N, K, D) for kind in "qkv"}
    shapes: Shapes = {"model/wte": (config.vocabulary, D), "model/wtet": (config.vocabulary, D)}
    shapes |= {"model/wpe": (config.positions, D), "model/ln_f/g": (D,)}
    if config.causal:
        shapes["model/sos"] = (D,)
    if config.classes:
        shapes["model/clf/wclf"] = (config.classes, D)
    return shapes | {f"model/h{layer}/{name}": shape for layer in range(config.layers) for name, shape in block.items()}


def _read(arrays: Arrays, config: ModelConfig) -> dict[str, Any]:
    """Read all arrays, under our names and in our layout."""

    def block(layer: int) -> dict[str, np.ndarray]:
        def read(name: str) -> np.ndarray:
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
