"""Models of others into our checkpoints, and ours into Hugging Face's: `python -m igpt_jax.convert openai|hf|to-hf SRC DST`.

    python -m igpt_jax.convert openai igpt-s/model.ckpt-1000000 runs/igpt-s --palette=kmeans_centers.npy
    python -m igpt_jax.convert hf imagegpt-small runs/imagegpt-small
    python -m igpt_jax.convert to-hf runs/digits digits-hf

`openai` reads the TensorFlow checkpoint of openai/image-gpt (SRC: its prefix, or the folder that holds it): an autoregressive model where
it has `sos`, else bert; its class head is kept, optimizer and step are left out. `hf` reads a folder of transformers' ImageGPTModel,
ImageGPTForCausalImageModeling or ImageGPTForImageClassification, 4.26 to 5; the palette is that of its preprocessor_config.json. Both
write what the other programs take as --checkpoint: DST/checkpoints/STEP. `to-hf` reads such a checkpoint, or a run, and writes
model.safetensors, config.json and preprocessor_config.json. Every array is checked by name and shape before the first is written, and
DST is written whole or not at all.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from igpt_jax import checkpoint
from igpt_jax.cli import USER_ERRORS, fail
from igpt_jax.model import PAPER, ImageGPT, ModelConfig
from igpt_jax.palette import Palette

INSTALL = "pip install 'igpt_jax[convert]'"
HF_SETTINGS = {  # transformers' defaults, which are the paper's model; any other value is another model
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": False,
}
HF_HEADS = {"ImageGPTForCausalImageModeling": "lm_head.weight", "ImageGPTForImageClassification": "score.weight", "ImageGPTModel": None}
HF_BLOCK = {  # our parameter of a block -> theirs; the layout is the same, but for c_attn's [D, 3 D] for our [D, 3, N, K]
    "attention_norm": "ln_1.weight",
    "query_key_value": "attn.c_attn.weight",
    "attention_output": "attn.c_proj.weight",
    "mlp_norm": "ln_2.weight",
    "mlp_in": "mlp.c_fc.weight",
    "mlp_out": "mlp.c_proj.weight",
}
HF_BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which old versions saved
HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The arrays of somebody's checkpoint: shapes by name, and a function that reads one."""

    place: str  # for messages
    shapes: dict[str, tuple[int, ...]]
    reader: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """One array in float32; ValueError where it is not of floating point."""
        array = self.reader(name)
        if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise ValueError(f"{name} in {self.place} is {array.dtype.name}, expected floating-point numbers")
        return np.asarray(array, np.float32)


def from_openai(source, destination, palette=None, heads=None) -> ModelConfig:
    """Convert a TensorFlow checkpoint of openai/image-gpt and return the model's configuration.

    `palette`: path of kmeans_centers.npy; by default the one beside the checkpoint. `heads`, if given, must be the checkpoint's number.
    ValueError, FileNotFoundError or ImportError, one line, before anything is written.
    """
    _check_destination(destination)
    prefix = _openai_prefix(pathlib.Path(source))
    colours = _openai_palette(palette, prefix.parent / "kmeans_centers.npy")
    arrays = _open_tensorflow(prefix)
    config = _openai_config(arrays, heads)
    wanted = _openai_shapes(config)
    slots = {name for name in arrays.shapes if not name.startswith("model/") or name.rpartition("/")[0] in wanted}
    _check_arrays(arrays, wanted, ignored=slots)
    _check_palette(colours, config)
    step = re.search(r"-(\d+)$", prefix.name)
    _write_checkpoint(destination, _read_openai(arrays, config), config, colours, str(prefix), int(step[1]) if step else 0)
    return config


def from_hf(source, destination, palette=None) -> ModelConfig:
    """Convert a folder of transformers' ImageGPT and return the model's configuration.

    `palette`: path of a .npy file; by default the `clusters` of the folder's preprocessor_config.json. What the paper's model has
    not (a bias that is not zero, another activation, ...) is a ValueError that names it. Where the folder has no lm_head, it becomes zero.
    """
    _check_destination(destination)
    folder = pathlib.Path(source)
    said = _read_json(folder / "config.json")
    _check_hf_settings(said, folder / "config.json")
    colours = _hf_palette(palette, folder / "preprocessor_config.json")
    arrays = _open_hf(folder)
    config = _hf_config(said, arrays)
    prefix = "transformer." if "transformer.wte.weight" in arrays.shapes else ""
    wanted = _hf_shapes(config, prefix, with_lm_head="lm_head.weight" in arrays.shapes)
    _check_arrays(arrays, wanted, ignored={name for name in arrays.shapes if HF_BUFFER.fullmatch(name)})
    _check_palette(colours, config)
    biases = [name for name in wanted if name.endswith(".bias") and arrays.read(name).any()]
    if biases:
        raise ValueError(f"the paper's model has no biases, {arrays.place} has {len(biases)} that are not zero: {_listed(biases)}")
    if "lm_head.weight" not in wanted:
        _note(f"{folder} has no lm_head, so the output matrix is zero: use the model's features or class head, not its colours")
    _write_checkpoint(destination, _read_hf(arrays, config, prefix), config, colours, str(folder), step=0)
    return config


def to_hf(source, destination, classification=False) -> ModelConfig:
    """Write a checkpoint as a folder for transformers and return the configuration of what was written.

    With `classification` as ImageGPTForImageClassification, which has no output matrix, else as ImageGPTForCausalImageModeling, which
    has no class head. ValueError for what transformers cannot express: bert, or a class head that reads another layer than the last.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(f"writing safetensors needs safetensors ({error}): {INSTALL}") from None
    _check_destination(destination)
    pretrained = checkpoint.load(source)
    config = pretrained.model_config
    _check_hf_can_express(config, classification)
    tensors = _hf_tensors(pretrained.model, classification)
    written = config if classification else dataclasses.replace(config, classes=0)
    wanted = _hf_shapes(written, "transformer.", with_lm_head=not classification)
    _check_arrays(Arrays(pretrained.path, {name: array.shape for name, array in tensors.items()}, tensors.get), wanted)
    dropped = "output matrix" if classification else "class head" if config.classes else ""
    if dropped:
        _note(f"{_architecture(classification)} has no {dropped}: it is left out")
    with _written_whole(destination) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_hf_settings(config, classification), indent=2) + "\n")
        (folder / "preprocessor_config.json").write_text(json.dumps(_hf_processor(pretrained), indent=2) + "\n")
    return written


def _openai_prefix(path):
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
        raise FileNotFoundError(f"checkpoint {path} lacks {len(missing)} of {total} shards: {_listed(missing)}")
    return path


def _openai_palette(given, beside):
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
            raise ValueError(f"{what} cannot be read, it is damaged or no TensorFlow checkpoint: {_first_line(error)}") from None

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


def _openai_config(arrays, heads):
    shapes, ranks = arrays.shapes, {"model/wte": 2, "model/wpe": 2, "model/h0/attn/q_proj": 3}
    lacking = [name for name, rank in ranks.items() if len(shapes.get(name, ())) != rank]
    if lacking:
        raise ValueError(f"{arrays.place} is no Image GPT: it lacks {', '.join(lacking)} (of rank 2, 2 and 3) and holds {_listed(shapes)}")
    found_heads = shapes["model/h0/attn/q_proj"][0]
    if heads not in (None, found_heads):
        raise ValueError(f"--heads={heads}, but {arrays.place} has {found_heads}: leave --heads out")
    return _model_config(
        layers=1 + max(int(match[1]) for name in shapes if (match := re.match(r"model/h(\d+)/", name))),
        width=shapes["model/wte"][1],
        heads=found_heads,
        vocabulary=shapes["model/wte"][0],
        positions=shapes["model/wpe"][0],
        objective="autoregressive" if "model/sos" in shapes else "bert",
        classes=(shapes.get("model/clf/wclf") or (0,))[0],
    )


def _model_config(**found):
    config = ModelConfig(**PAPER, **found, class_layer=-1, dtype="float32", remat="none", unroll=1, attention="auto")
    if round(config.positions**0.5) ** 2 != config.positions:
        raise ValueError(f"{config.positions} positions are not the pixels of a square image")
    return config


def _openai_shapes(config):
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


def _read_openai(arrays, config):
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
    return {ours: arrays.read(f"model/{theirs}") for ours, theirs in names.items()} | {"blocks": _stacked(config.layers, block)}


def _stacked(layers, read_block):
    """The blocks' arrays along a leading layer axis, filled layer by layer, so that no second copy of the model is held."""
    stacked = {}
    for layer in tqdm(range(layers), desc="reading", unit="layer", disable=not sys.stderr.isatty()):
        for name, array in read_block(layer).items():
            stacked.setdefault(name, np.empty((layers, *array.shape), np.float32))[layer] = array
    return stacked


def _check_hf_settings(said, path):
    """ValueError where config.json describes another model than the paper's."""
    if said.get("model_type") != "imagegpt":
        raise ValueError(f"{path} describes a model of type {said.get('model_type')!r}, expected 'imagegpt'")
    lacking = [name for name in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size") if name not in said]
    if lacking:
        raise ValueError(f"{path} does not say {', '.join(lacking)}")
    wanted = HF_SETTINGS | {"n_inner": 4 * said["n_embd"]}
    given = {name: said.get(name, value) for name, value in wanted.items()}
    if given["n_inner"] is None:
        given["n_inner"] = wanted["n_inner"]
    wrong = [f"{name} {given[name]!r} instead of {value!r}" for name, value in wanted.items() if given[name] != value]
    wrong += [f"architecture {name}, none of {', '.join(HF_HEADS)}" for name in said.get("architectures") or [] if name not in HF_HEADS]
    if wrong:
        raise ValueError(f"{path} describes another model than the paper's: {'; '.join(wrong)}")


def _hf_palette(given, path):
    if given is not None:
        return Palette.load(given)
    clusters = _read_json(path).get("clusters") if path.is_file() else None
    if clusters is None:
        raise FileNotFoundError(f"which palette? {path} has no clusters: give --palette=kmeans_centers.npy")
    try:
        return Palette(np.asarray(clusters, np.float32))
    except ValueError as error:
        raise ValueError(f"clusters in {path}: {error}") from None


def _open_hf(folder):
    """The arrays of all weight files of a folder."""
    name = next((name for name in HF_FILES if (folder / name).is_file()), None)
    if name is None:
        raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(HF_FILES)}")
    files = [name]
    if name.endswith(".index.json"):
        files = sorted(set(dict(_read_json(folder / name).get("weight_map") or {}).values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        raise FileNotFoundError(f"{folder / name} names {len(files)} weight files, of which are missing: {_listed(missing)}")
    open_file = _open_safetensors if ".safetensors" in name else _open_pickle
    readers, shapes = {}, {}
    for file in files:
        opened = open_file(folder / file)
        shapes |= opened.shapes
        readers |= dict.fromkeys(opened.shapes, opened.reader)
    return Arrays(str(folder / name), shapes, lambda array: readers[array](array))


def _open_safetensors(path):
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"reading {path} needs safetensors ({error}): {INSTALL}") from None
    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}, {path.stat().st_size} bytes, is cut off or no safetensors file: {_first_line(error)}") from None
    return Arrays(str(path), {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.get_tensor)


def _open_pickle(path):
    """A .bin file is a pickle, which may run anything; torch's weights-only loader takes arrays and nothing else."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"reading {path} needs torch ({error}): pip install torch, or save the model as safetensors") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of unusual pickles, which end in an error
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch, pickle and zipfile each raise their own, and torch's advice is to run the code
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds code, {code[1]}," if code else "it is damaged, or holds code,"
        raise ValueError(f"{path} is refused: {reason} none of which was run: save the model as safetensors") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} is refused: it holds something else than arrays by name")

    def read(name):
        return (tensors[name].float() if tensors[name].is_floating_point() else tensors[name]).numpy()

    return Arrays(str(path), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, read)


def _hf_config(said, arrays):
    """The configuration, with the head that the architecture must have."""
    for architecture in said.get("architectures") or []:
        head = HF_HEADS[architecture]
        if head and head not in arrays.shapes:
            raise ValueError(f"{arrays.place} lacks {head}, which {architecture} has; it holds {_listed(arrays.shapes)}")
    return _model_config(
        layers=said["n_layer"],
        width=said["n_embd"],
        heads=said["n_head"],
        vocabulary=said["vocab_size"] - 1,  # the last one is the start token
        positions=said["n_positions"],
        objective="autoregressive",
        classes=(arrays.shapes.get("score.weight") or (0,))[0],
    )


def _hf_shapes(config, prefix, with_lm_head):
    """Name -> shape of every array that such a folder has."""
    D, F = config.width, config.mlp
    block = dict(zip(HF_BLOCK.values(), [(D,), (D, 3 * D), (D, D), (D,), (D, F), (F, D)], strict=True))
    block |= {name.replace("weight", "bias"): shape[-1:] for name, shape in block.items() if len(shape) == 2}
    shapes = {f"{prefix}wte.weight": (config.vocabulary + 1, D), f"{prefix}wpe.weight": (config.positions, D), f"{prefix}ln_f.weight": (D,)}
    shapes |= {f"{prefix}h.{layer}.{name}": shape for layer in range(config.layers) for name, shape in block.items()}
    if with_lm_head:
        shapes["lm_head.weight"] = (config.vocabulary, D)
    if config.classes:
        shapes["score.weight"] = (config.classes, D)
    return shapes


def _read_hf(arrays, config, prefix):
    def block(layer):
        parameters = {ours: arrays.read(f"{prefix}h.{layer}.{theirs}") for ours, theirs in HF_BLOCK.items()}
        return parameters | {"query_key_value": parameters["query_key_value"].reshape(config.width, 3, config.heads, -1)}

    tokens = arrays.read(f"{prefix}wte.weight")
    nested = {
        "token_embedding": tokens[:-1],
        "position_embedding": arrays.read(f"{prefix}wpe.weight"),
        "start_vector": tokens[-1],
        "blocks": _stacked(config.layers, block),
        "final_norm": arrays.read(f"{prefix}ln_f.weight"),
        "output_embedding": np.zeros((config.vocabulary, config.width), np.float32),
    }
    if "lm_head.weight" in arrays.shapes:
        nested["output_embedding"] = arrays.read("lm_head.weight")
    if config.classes:
        nested["class_embedding"] = arrays.read("score.weight")
    return nested


def _check_hf_can_express(config, classification):
    if not config.causal:
        raise ValueError("a bert model cannot go to transformers: its ImageGPT is always causal, and these weights must see all pixels")
    options = [f"{name} {getattr(config, name)!r}" for name, value in PAPER.items() if getattr(config, name) != value]
    if options or (classification and config.objective == "prefix"):
        found = ", ".join(options) or "attention to both sides of a prefix"
        raise ValueError(f"transformers' ImageGPT has no {found}: only the paper's architecture can go there")
    if classification and not config.classes:
        raise ValueError("--classification needs a class head, and this model has none: fine-tune it first, or leave --classification out")
    if classification and config.class_layer not in (-1, config.layers):
        raise ValueError(f"the class head reads layer {config.class_layer}, transformers' reads the last, {config.layers}")


def _hf_tensors(model, classification):
    """The model's arrays, contiguous float32, under transformers' names; biases are zero."""
    config, parameters = model.config, jax.tree.map(np.asarray, checkpoint.to_nested(model))
    tensors = {
        "transformer.wte.weight": np.concatenate([parameters["token_embedding"], parameters["start_vector"][None]]),
        "transformer.wpe.weight": parameters["position_embedding"],
        "transformer.ln_f.weight": parameters["final_norm"],
    }
    tensors |= {"score.weight": parameters["class_embedding"]} if classification else {"lm_head.weight": parameters["output_embedding"]}
    for layer in range(config.layers):
        for ours, theirs in HF_BLOCK.items():
            array, name = parameters["blocks"][ours][layer], f"transformer.h.{layer}.{theirs}"
            tensors[name] = array if array.ndim == 1 else array.reshape(len(array), -1)
            if array.ndim > 1:
                tensors[name.replace("weight", "bias")] = np.zeros(tensors[name].shape[1], np.float32)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}


def _architecture(classification):
    return "ImageGPTForImageClassification" if classification else "ImageGPTForCausalImageModeling"


def _hf_settings(config, classification):
    """What config.json says; no dropout, as in the paper."""
    said = {
        "architectures": [_architecture(classification)],
        "model_type": "imagegpt",
        "vocab_size": config.vocabulary + 1,
        "n_positions": config.positions,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "use_cache": True,
    }
    if classification:
        said["id2label"] = {str(number): f"LABEL_{number}" for number in range(config.classes)}
        said["label2id"] = {label: int(number) for number, label in said["id2label"].items()}
    return said | HF_SETTINGS


def _hf_processor(pretrained):
    size = pretrained.image_size
    return {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": pretrained.palette.centers.tolist(),
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,  # Pillow's BILINEAR
        "do_normalize": True,
        "do_color_quantize": True,
    }


def _check_arrays(arrays, wanted, ignored=frozenset()):
    """ValueError that names every array that is missing, unexpected or of another shape."""
    found, problems = arrays.shapes, []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"missing {_listed(missing)}")
    if extra := [name for name in found if name not in wanted and name not in ignored]:
        problems.append(f"unexpected {_listed(extra)}")
    if wrong := [name for name, shape in wanted.items() if found.get(name, shape) != shape]:
        problems.append("wrong shape " + _listed(f"{name} {list(found[name])} instead of {list(wanted[name])}" for name in wrong))
    if problems:
        raise ValueError(f"{arrays.place} does not hold the arrays of an Image GPT: {'; '.join(problems)}")


def _check_palette(palette, config):
    if palette.size != config.vocabulary:
        raise ValueError(
            f"the palette has {palette.size} colours, the model {config.vocabulary}: give the palette that it was trained with"
        )


def _check_destination(destination):
    if "://" in str(destination):
        raise ValueError(f"DST must be a local folder, not {destination}: copy it there afterwards")
    destination = pathlib.Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists and is not an empty folder: give another DST, or delete it first")


def _write_checkpoint(destination, nested, config, palette, source, step):
    """Write the arrays as a checkpoint of ours, with the recipe that the other programs read in it."""
    model = checkpoint.from_nested(nested, jax.eval_shape(partial(ImageGPT, config), jax.random.key(0)))
    unknown_data = {"source": "", "image_size": round(config.positions**0.5), "augment": "none"}  # no source: --data must say it
    recipe = {
        "loss": {"generative": 1.0, "classification": 0.0, "mask_probability": 0.15, "evaluation_masks": 5},
        "data": unknown_data | {"validation": 0.1, "directory": "", "workers": 0, "seed": 0},
        "converted_from": source,
    }
    with _written_whole(destination) as folder:
        checkpoint.save_model(folder, model, palette, recipe, step)


@contextlib.contextmanager
def _written_whole(destination):
    """A new folder beside `destination` that takes its name when the block ends, and vanishes where it fails."""
    destination = pathlib.Path(destination).resolve()
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_json(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder written by transformers' save_pretrained")
    try:
        said = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds a {type(said).__name__}, expected names and values")
    return said


def _note(line):
    print(f"note: {line}", file=sys.stderr)


def _listed(names, most=24):
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _main(arguments=None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m igpt_jax.convert", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="openai|hf|to-hf")
    for name, convert, source in (
        ("openai", from_openai, "prefix or folder of a TensorFlow checkpoint of openai/image-gpt"),
        ("hf", from_hf, "folder of a transformers ImageGPT"),
        ("to-hf", to_hf, "directory of a run, or of a converted model"),
    ):
        command = commands.add_parser(name, help=source)
        command.set_defaults(convert=convert)
        command.add_argument("source", metavar="SRC", help=source)
        command.add_argument("destination", metavar="DST", help="folder to write; it must not exist, or be empty")
        if name != "to-hf":
            command.add_argument("--palette", help="kmeans_centers.npy, the colours of the model; default: those that lie with SRC")
        if name == "openai":
            command.add_argument("--heads", type=int, help="refuse a checkpoint with another number of heads")
        if name == "to-hf":
            command.add_argument("--classification", action="store_true", help="write the class head instead of the output matrix")
    settings = vars(parser.parse_args(arguments))
    convert = settings.pop("convert")
    try:
        config = convert(**settings)
    except USER_ERRORS as error:
        fail(error)
    described = f"{config.objective}, {config.layers} layers, width {config.width}, {config.heads} heads, {config.vocabulary} colours"
    print(f"wrote {settings['destination']}: {described}, {config.positions} positions, {config.classes or 'no'} classes")


if __name__ == "__main__":
    _main()
