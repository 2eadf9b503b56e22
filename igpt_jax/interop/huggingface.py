"""Read and write folders of transformers' ImageGPT, versions 4.26 to 5: safetensors, config.json, preprocessor_config.json."""

import dataclasses
import json
import pathlib
import re
import warnings
import zipfile
from typing import Any

import jax
import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.distributed.multihost import note
from igpt_jax.interop.card import model_card
from igpt_jax.interop.weights import (
    Arrays,
    Shapes,
    check_arrays,
    check_destination,
    check_palette,
    first_line,
    listed,
    load_to_publish,
    model_config,
    read_json,
    stacked,
    write_checkpoint,
    written_whole,
)
from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from igpt_jax.types import PathLike

SETTINGS: dict[str, Any] = {  # transformers' defaults, which are the paper's; other values are refused
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": False,
}
HEADS = {"ImageGPTForCausalImageModeling": "lm_head.weight", "ImageGPTForImageClassification": "score.weight", "ImageGPTModel": None}
BLOCK = {  # our parameter of a block -> theirs. Only c_attn differs in its layout: [D, 3 D] for our [D, 3, N, K]. Each matrix has a bias beside it
    "attention_norm": "ln_1.weight",
    "query_key_value": "attn.c_attn.weight",
    "attention_output": "attn.c_proj.weight",
    "mlp_norm": "ln_2.weight",
    "mlp_in": "mlp.c_fc.weight",
    "mlp_out": "mlp.c_proj.weight",
}
BIASES = {f"{ours}_bias": theirs.replace("weight", "bias") for ours, theirs in BLOCK.items() if "norm" not in ours}
BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which old versions saved
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def from_hf(source: PathLike, destination: PathLike, palette: PathLike | None = None, origin: str | None = None) -> ModelConfig:
    """Convert a folder of transformers' ImageGPT and return the model's configuration.

    `palette` is the path of a .npy file (None: the `clusters` of the folder's preprocessor_config.json). `origin` is the model's name, which the recipe
    stores as where it comes from (None: the folder). The configuration has `bias` if any bias is not zero, as after training in transformers; biases of
    zero, as in OpenAI's weights, give the paper's model. Raises a ValueError that names what no model of ours has, such as another activation. If the
    folder has no lm_head, the output matrix is zero.
    """
    check_destination(destination)
    folder = pathlib.Path(source)
    settings = read_json(folder / "config.json")
    check_settings(settings, folder / "config.json")
    colours = _choose_palette(palette, folder / "preprocessor_config.json")
    arrays = _open(folder)
    config = _config(settings, arrays)
    class_names = _class_names(settings, config, folder / "config.json")
    prefix = "transformer." if "transformer.wte.weight" in arrays.shapes else ""
    shapes = _shapes(config, prefix, with_lm_head="lm_head.weight" in arrays.shapes)
    check_arrays(arrays, shapes, ignored={name for name in arrays.shapes if BUFFER.fullmatch(name)})
    check_palette(colours, config)
    biases = [name for name in shapes if name.endswith(".bias") and arrays.read(name).any()]
    if biases:
        note(f"{len(biases)} biases of {folder} are not zero: the model has config.model.bias=True, the paper's has none")
        config = dataclasses.replace(config, bias=True)
    if "lm_head.weight" not in shapes:
        note(f"{folder} has no lm_head, so the output matrix is zero: use the model for its features or classes, not to sample")
    write_checkpoint(destination, _read(arrays, config, prefix), config, colours, origin or str(folder), step=0, view="squash", class_names=class_names)
    return config


def to_hf(source: PathLike, destination: PathLike, classification: bool = False, card_of: str | None = None, ema: bool = False) -> ModelConfig:
    """Write a checkpoint as a folder for transformers and return the configuration of the written model.

    `classification` selects ImageGPTForImageClassification, which has no output matrix, instead of ImageGPTForCausalImageModeling, which has no class
    head. `card_of`, the name OWNER/NAME of a repository, adds a model card for it, README.md. `ema` takes the average of the weights. Raises
    ValueError for a model that transformers cannot express: bert, options beyond the paper, a class head that does not read the last layer.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(f"writing safetensors needs safetensors ({error}): pip install safetensors") from None
    check_destination(destination)
    pretrained = load_to_publish(source, ema)
    config = pretrained.model_config
    _check_expressible(config, classification)
    tensors = _tensors(pretrained.model, classification)
    written = config if classification else dataclasses.replace(config, classes=0)
    shapes = _shapes(written, "transformer.", with_lm_head=not classification)
    check_arrays(Arrays(pretrained.path, {name: array.shape for name, array in tensors.items()}, tensors.__getitem__), shapes)
    dropped = "output matrix" if classification else "class head" if config.classes else ""
    if dropped:
        note(f"{_architecture(classification)} has no {dropped}: it is left out")
    size = pretrained.image_size
    view = pipeline.view_of(pretrained.config, size)
    if view != "squash":
        note(f"this model was trained with the view {view}, transformers squashes pictures to {size} x {size}: crop them to a square first")
    with written_whole(destination) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_settings(config, classification, pretrained.class_names), indent=2) + "\n")
        (folder / "preprocessor_config.json").write_text(json.dumps(_processor(pretrained), indent=2) + "\n")
        if card_of is not None:
            (folder / "README.md").write_text(model_card(pretrained, card_of, _architecture(classification)))
    return written


def check_settings(settings: dict[str, Any], path: pathlib.Path) -> None:
    """Raise ValueError if config.json describes another model than the paper's."""
    if settings.get("model_type") != "imagegpt":
        raise ValueError(f"{path} describes a model of type {settings.get('model_type')!r}, expected 'imagegpt'")
    lacking = [name for name in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size") if name not in settings]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}")
    expected = SETTINGS | {"n_inner": 4 * settings["n_embd"]}
    actual = {name: settings.get(name, value) for name, value in expected.items()}
    if actual["n_inner"] is None:
        actual["n_inner"] = expected["n_inner"]
    wrong = [f"{name} {actual[name]!r} instead of {value!r}" for name, value in expected.items() if actual[name] != value]
    wrong += [f"architecture {name}, none of {', '.join(HEADS)}" for name in settings.get("architectures") or [] if name not in HEADS]
    if wrong:
        raise ValueError(f"{path} describes another model than the paper's: {'; '.join(wrong)}")


def _choose_palette(path: PathLike | None, processor: pathlib.Path) -> Palette:
    if path is not None:
        return Palette.load(path)
    clusters = read_json(processor).get("clusters") if processor.is_file() else None
    if clusters is None:
        raise FileNotFoundError(f"the model has no palette, because {processor} has no clusters: give --palette=kmeans_centers.npy")
    try:
        return Palette(np.asarray(clusters, np.float32))
    except ValueError as error:
        raise ValueError(f"clusters in {processor}: {error}") from None


def _open(folder: pathlib.Path) -> Arrays:
    """Open the arrays of all weight files of a folder."""
    name = next((name for name in FILES if (folder / name).is_file()), None)
    if name is None:
        raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(FILES)}")
    files = [name]
    if name.endswith(".index.json"):
        files = sorted(set(dict(read_json(folder / name).get("weight_map") or {}).values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        raise FileNotFoundError(f"{folder / name} names {len(files)} weight files, {len(missing)} of them are missing: {listed(missing)}")
    open_file = _open_safetensors if ".safetensors" in name else _open_pickle
    readers: dict[str, Any] = {}
    shapes: Shapes = {}
    for file in files:
        opened = open_file(folder / file)
        shapes |= opened.shapes
        readers |= dict.fromkeys(opened.shapes, opened.reader)
    return Arrays(str(folder / name), shapes, lambda array: readers[array](array))


def _open_safetensors(path: pathlib.Path) -> Arrays:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"reading {path} needs safetensors ({error}): pip install safetensors") from None
    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}, {path.stat().st_size} bytes, is cut off or no safetensors file: {first_line(error)}") from None
    return Arrays(str(path), {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.get_tensor)


def _open_pickle(path: pathlib.Path) -> Arrays:
    """Open a .bin file, which is a pickle and could run code. The weights-only loader of torch accepts nothing but arrays."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"reading {path} needs torch ({error}): pip install torch, or save the model as safetensors") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # about unusual pickles, which are refused below
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch, pickle and zipfile each raise their own, and torch's message advises to run the code
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds code, {code[1]}," if code else "it is damaged, or holds code,"
        raise ValueError(f"{path} is refused: {reason} none of which was run: save the model as safetensors") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} is refused: it does not hold arrays by name")

    def read(name: str) -> np.ndarray:
        return (tensors[name].float() if tensors[name].is_floating_point() else tensors[name]).numpy()

    return Arrays(str(path), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, read)


def _config(settings: dict[str, Any], arrays: Arrays) -> ModelConfig:
    """Make the configuration, after a check that the head of the architecture exists."""
    for architecture in settings.get("architectures") or []:
        head = HEADS[architecture]
        if head and head not in arrays.shapes:
            raise ValueError(f"{arrays.place} lacks {head}, which {architecture} has; it holds {listed(arrays.shapes)}")
    return model_config(
        layers=settings["n_layer"],
        width=settings["n_embd"],
        heads=settings["n_head"],
        vocabulary=settings["vocab_size"] - 1,  # the last token is the start token
        positions=settings["n_positions"],
        objective="autoregressive",
        classes=(arrays.shapes.get("score.weight") or (0,))[0],
    )


def _class_names(settings: dict[str, Any], config: ModelConfig, path: pathlib.Path) -> tuple[str, ...] | None:
    """Return the class names in `id2label`; None without a class head, or if they are transformers' default LABEL_0, LABEL_1, ..."""
    names = settings.get("id2label") or {}
    if not config.classes or not names or all(name == f"LABEL_{number}" for number, name in names.items()):
        return None
    if sorted(names) != sorted(map(str, range(config.classes))):
        raise ValueError(f"id2label in {path} names {len(names)} classes, {listed(names, most=5)}, and the class head has {config.classes}, from 0 on")
    return tuple(str(names[str(number)]) for number in range(config.classes))


def _shapes(config: ModelConfig, prefix: str, with_lm_head: bool) -> Shapes:
    """Return the shapes of all arrays of such a folder, by name."""
    D, F = config.width, config.mlp
    block: Shapes = dict(zip(BLOCK.values(), [(D,), (D, 3 * D), (D, D), (D,), (D, F), (F, D)], strict=True))
    block |= dict(zip(BIASES.values(), [(3 * D,), (D,), (F,), (D,)], strict=True))
    shapes: Shapes = {f"{prefix}wte.weight": (config.vocabulary + 1, D), f"{prefix}wpe.weight": (config.positions, D), f"{prefix}ln_f.weight": (D,)}
    shapes |= {f"{prefix}h.{layer}.{name}": shape for layer in range(config.layers) for name, shape in block.items()}
    if with_lm_head:
        shapes["lm_head.weight"] = (config.vocabulary, D)
    if config.classes:
        shapes["score.weight"] = (config.classes, D)
    return shapes


def _read(arrays: Arrays, config: ModelConfig, prefix: str) -> dict[str, Any]:
    """Read all arrays, under our names and in our layout."""

    def block(layer: int) -> dict[str, np.ndarray]:
        names = BLOCK | (BIASES if config.bias else {})
        parameters = {ours: arrays.read(f"{prefix}h.{layer}.{theirs}") for ours, theirs in names.items()}
        heads = {ours: array.reshape(*array.shape[:-1], 3, config.heads, -1) for ours, array in parameters.items() if ours.startswith("query_key_value")}
        return parameters | heads

    tokens = arrays.read(f"{prefix}wte.weight")
    nested = {
        "token_embedding": tokens[:-1],
        "position_embedding": arrays.read(f"{prefix}wpe.weight"),
        "start_vector": tokens[-1],
        "blocks": stacked(config.layers, block),
        "final_norm": arrays.read(f"{prefix}ln_f.weight"),
        "output_embedding": np.zeros((config.vocabulary, config.width), np.float32),
    }
    if "lm_head.weight" in arrays.shapes:
        nested["output_embedding"] = arrays.read("lm_head.weight")
    if config.classes:
        nested["class_embedding"] = arrays.read("score.weight")
    return nested


def _check_expressible(config: ModelConfig, classification: bool) -> None:
    """Raise ValueError for a model that transformers' ImageGPT cannot compute."""
    if not config.causal:
        raise ValueError("a bert model cannot be written for transformers: it attends to all pixels, and transformers' ImageGPT is always causal")
    options = [f"{name} {getattr(config, name)!r}" for name, value in PAPER.items() if name != "bias" and getattr(config, name) != value]
    if options or (classification and config.objective == "prefix"):
        lacking = ", ".join(options) or "attention in both directions"
        raise ValueError(f"transformers' ImageGPT has no {lacking}: only the paper's architecture can be written for it")
    if classification and not config.classes:
        raise ValueError("--classification needs a class head, and this model has none: fine-tune it first, or leave out --classification")
    if classification and config.class_layer not in (-1, config.layers):
        raise ValueError(f"the class head reads layer {config.class_layer}, transformers' reads the last, {config.layers}")


def _tensors(model: ImageGPT, classification: bool) -> dict[str, np.ndarray]:
    """Return the model's arrays as contiguous float32 under transformers' names; biases that it does not have are zero."""
    config, parameters = model.config, jax.tree.map(np.asarray, checkpoints.to_nested(model))
    tensors = {
        "transformer.wte.weight": np.concatenate([parameters["token_embedding"], parameters["start_vector"][None]]),
        "transformer.wpe.weight": parameters["position_embedding"],
        "transformer.ln_f.weight": parameters["final_norm"],
    }
    tensors |= {"score.weight": parameters["class_embedding"]} if classification else {"lm_head.weight": parameters["output_embedding"]}
    for layer in range(config.layers):
        block = {ours: array[layer] for ours, array in parameters["blocks"].items()}
        for ours, theirs in BLOCK.items():
            tensors[f"transformer.h.{layer}.{theirs}"] = block[ours] if block[ours].ndim == 1 else block[ours].reshape(len(block[ours]), -1)
        for ours, theirs in BIASES.items():
            size = block[ours.removesuffix("_bias")][0].size
            tensors[f"transformer.h.{layer}.{theirs}"] = block[ours].reshape(-1) if config.bias else np.zeros(size, np.float32)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}


def _architecture(classification: bool) -> str:
    return "ImageGPTForImageClassification" if classification else "ImageGPTForCausalImageModeling"


def _settings(config: ModelConfig, classification: bool, class_names: tuple | None) -> dict[str, Any]:
    """Make the content of config.json, without dropout as in the paper. Classes without names get those of transformers, LABEL_0, LABEL_1, ..."""
    settings: dict[str, Any] = {
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
        names = [f"LABEL_{number}" if isinstance(name, int) else name for number, name in enumerate(class_names or range(config.classes))]
        settings["id2label"] = {str(number): name for number, name in enumerate(names)}
        settings["label2id"] = {label: int(number) for number, label in settings["id2label"].items()}
    return settings | SETTINGS


def _processor(pretrained: checkpoints.Pretrained) -> dict[str, Any]:
    """Make the content of preprocessor_config.json."""
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
