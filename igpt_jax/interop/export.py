"""Export the forward pass of a model as one file of jax.export, which jax alone runs: no igpt_jax, no flax, no checkpoint.

The file holds StableHLO with the parameters in it, for several platforms and any batch size. A JSON file beside it, DST.json, says what goes in and comes out,
the palette, and five lines of Python that run it. B batch, S sequence.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import igpt_jax
from igpt_jax.cli import prepare_file
from igpt_jax.data import pipeline
from igpt_jax.distributed.multihost import note
from igpt_jax.extras import install
from igpt_jax.files import write_atomically
from igpt_jax.interop.weights import load_to_publish
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.training import checkpoints
from igpt_jax.types import AnyArray, Array, PathLike

PLATFORMS = ("cpu", "cuda", "tpu")  # jax.export knows rocm too
SUFFIX = ".jaxexport"
MOST_BYTES = 2**31 - 2**20  # of the parameters: a flatbuffer holds 2 GiB
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}  # of the largest output: sums in another order; bfloat16 has 8 bits
BATCHES = (1, 3)  # with which the file is compared with the model


def export(source: PathLike, destination: PathLike, platforms: Sequence[str] = PLATFORMS, overwrite: bool = False, ema: bool = False) -> ModelConfig:
    """Write the forward pass of a checkpoint for `platforms` and return the model's configuration; `ema` takes the average of its weights.

    The function takes codes int32 [B, S], a bert model also a mask float32 [B, S], 1 where the code is masked. It returns a dict of float32 arrays: `logits`
    [B, S, V], `features` [layers + 1, B, D] and, with a class head, `class_logits` [B, C]; those of a prefix model's features and classes see the whole
    picture, as in `ImageGPT.forward_features`. Attention is the implementation that every platform has (`contiguous`).

    Nothing is written unless the file, read back, gives the model's numbers on this machine for each of BATCHES; a note says the largest difference.
    Raises ValueError, FileExistsError or ImportError, one line, for arguments that cannot be right, and a model of more than 2 GiB.
    """
    platforms = tuple(dict.fromkeys(platforms))
    _check(destination, platforms, overwrite)
    pretrained = load_to_publish(source, ema)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(pretrained.model))
    if size > MOST_BYTES:
        raise ValueError(f"the parameters take {size / 2**30:.1f} GiB and a file of jax.export holds at most 2: serve the checkpoint by igpt_jax.load")
    content = _serialized(pretrained.model, platforms)
    difference = _difference(content, pretrained.model)
    described = _description(pretrained, platforms, content, pathlib.Path(destination).name)
    write_atomically(pathlib.Path(f"{destination}.json"), (json.dumps(described, indent=1) + "\n").encode())
    write_atomically(pathlib.Path(destination), content)
    checked = jax.export.default_export_platform()
    note(f"{destination}: {len(content) / 2**20:.2f} MiB for {', '.join(platforms)}; on {checked} it differs from the model by at most {difference:.1e}")
    return pretrained.model_config


def _check(destination: PathLike, platforms: Sequence[str], overwrite: bool) -> None:
    """Raise ValueError, OSError or ImportError, one line, for arguments that cannot be right."""
    try:
        import flatbuffers  # noqa: F401  with which jax.export writes and reads
    except ImportError as error:
        raise ImportError(f"jax.export needs flatbuffers ({error}): {install('export')}") from None
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise ValueError(f"--platforms names {', '.join(map(repr, unknown))}: choose from {', '.join(PLATFORMS)}")
    here = jax.export.default_export_platform()
    if here not in platforms:
        raise ValueError(f"--platforms={','.join(platforms)} lacks {here}, the platform of this machine, on which the file is compared with the model: add it")
    if pathlib.Path(destination).suffix != SUFFIX:
        raise ValueError(f"DST is one file whose name ends in {SUFFIX}, not {destination}")
    if "://" in str(destination):
        raise ValueError(f"DST must be a local file, not {destination}: copy it there afterwards")
    for path in (pathlib.Path(destination), pathlib.Path(f"{destination}.json")):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: give another DST, or --overwrite")
        prepare_file(path)


def _forward(model: ImageGPT) -> Callable[..., dict[str, Array]]:
    """Return the function that is exported."""

    def forward(codes_BS: AnyArray, mask_BS: AnyArray | None = None) -> dict[str, Array]:
        output = model(codes_BS, mask_BS)
        seen = model.forward_features(codes_BS) if model.config.objective == "prefix" else output
        found = {"logits": output.logits, "features": seen.features}
        return found if seen.class_logits is None else found | {"class_logits": seen.class_logits}

    return forward


def _serialized(model: ImageGPT, platforms: Sequence[str]) -> bytes:
    """Lower the forward pass for all platforms, with the parameters as constants and a batch of any size."""
    portable = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), model)  # on no mesh: the file runs on one device
    attention = "contiguous" if model.config.block == 1 else "reference"  # which has the mask of blocks
    portable.config = dataclasses.replace(model.config, attention=attention, unroll=1, remat="none")
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, *shape), dtype) for _, dtype, shape in _inputs(model.config)]
    return bytes(jax.export.export(jax.jit(_forward(portable)), platforms=platforms)(*inputs).serialize())


def _inputs(config: ModelConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (name, dtype, shape without the batch) of each input."""
    codes, mask = ("codes", "int32", (config.positions,)), ("mask", "float32", (config.positions,))
    return [codes] if config.causal else [codes, mask]


def _difference(content: bytes, model: ImageGPT) -> float:
    """Return the largest difference of an output of the file from the model's; ValueError where it is above TOLERANCE."""
    exported, wanted = jax.export.deserialize(bytearray(content)), jax.jit(lambda model, *inputs: _forward(model)(*inputs))
    random, largest = np.random.default_rng(0), 0.0
    for batch in BATCHES:
        codes = random.integers(0, model.config.vocabulary, (batch, model.config.positions), np.int32)
        inputs = [codes] if model.config.causal else [codes, (random.random(codes.shape) < 0.15).astype(np.float32)]
        found, expected = exported.call(*inputs), wanted(model, *inputs)
        for name, array in expected.items():
            difference, scale = float(np.abs(np.asarray(found[name]) - np.asarray(array)).max()), float(np.abs(np.asarray(array)).max())
            if not difference <= TOLERANCE[model.config.dtype] * max(scale, 1.0):
                raise ValueError(f"{name} of the exported function differs from the model's by {difference:.2g}, of {scale:.2g}: nothing is written")
            largest = max(largest, difference)
    return largest


def _description(pretrained: checkpoints.Pretrained, platforms: Sequence[str], content: bytes, name: str) -> dict[str, Any]:
    """Make the content of DST.json."""
    config = pretrained.model_config
    V, D, C = config.vocabulary, config.width, config.classes
    outputs = {"logits": ["batch", config.positions, V], "features": [config.layers + 1, "batch", D]} | ({"class_logits": ["batch", C]} if C else {})
    size, channels = pretrained.image_size, pretrained.palette.centers.shape[1]
    use = [
        "import json, jax.export, numpy as np",
        f"info = json.load(open({name + '.json'!r}))",
        f"forward = jax.export.deserialize(bytearray(open({name!r}, 'rb').read())).call",
        f"codes = np.square(pixels.reshape(len(pixels), -1, 1, {channels}) / 127.5 - 1 - np.array(info['palette'])).sum(-1).argmin(-1).astype('int32')",
        "output = forward(codes)" if config.causal else "output = forward(codes, np.zeros(codes.shape, 'float32'))",
    ]
    return {
        "made_by": f"igpt_jax {igpt_jax.__version__}, jax {jax.__version__}, from step {pretrained.step} of {pretrained.name or 'a run'}",
        "needs": "jax and flatbuffers",
        "use": [f"# pixels: uint8 RGB [batch, {size}, {size}, 3]", *use],
        "sha256": hashlib.sha256(content).hexdigest(),
        "platforms": list(platforms),
        "objective": config.objective,
        "inputs": {name: {"dtype": dtype, "shape": ["batch", *shape]} for name, dtype, shape in _inputs(config)},
        "outputs": {name: {"dtype": "float32", "shape": shape} for name, shape in outputs.items()},
        "meaning": _meaning(config),
        "image_size": size,
        "view": pipeline.view_of(pretrained.config, size),
        "tokens_per_pixel": config.tokens_per_pixel,
        "class_names": None if pretrained.class_names is None else list(pretrained.class_names),
        "palette": pretrained.palette.centers.tolist(),
    }


def _meaning(config: ModelConfig) -> dict[str, str]:
    """Say in words what each input and output is."""
    causal = "the codes before it" if config.causal else "the codes that are not masked"
    found = {
        "codes": f"numbers of palette entries, 0 to {config.vocabulary - 1}, row by row; the palette is in [-1, 1], a pixel's 0 to 255 is x / 127.5 - 1",
        "logits": f"position i predicts code i from {causal}",
        "features": "mean over positions of each block's normalised input, then of the final norm's output",
    }
    return found | ({} if config.causal else {"mask": "1 where the code is masked, 0 where the model sees it"})
