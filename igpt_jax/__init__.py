"""Image GPT in JAX: pretrain transformers on pixels, examine their features layer by layer, sample from them.

The folders, in the order in which an image passes through them:

    palette      RGB pixels <-> palette codes, and the fit of the palette
    distributed  devices, processes and shardings
    data         image files and data sets -> batches of codes
    model        codes -> logits, features, caches; the losses
    training     the training step and loop, checkpoints, evaluation
    sampling     caches -> codes -> pictures
    probing      features of every layer, stored, and the linear probes on them
    inspection   where each head looks, what each layer would predict
    reporting    a work directory as one page
    interop      checkpoints of openai/image-gpt and of transformers

Programs, each `python -m igpt_jax.NAME --help`: quantize, train, finetune, evaluate, sample, features, probe, convert, aot, report, demo.

From Python:

    import igpt_jax
    pretrained = igpt_jax.load("cifar10-16")               # a model in the package; "runs/digits": a run's newest checkpoint; model, palette, recipe
    pretrained = igpt_jax.load("hf:openai/imagegpt-small") # a model of the Hugging Face hub, downloaded and converted at its first use
    larger = igpt_jax.load("cifar10-16", image_size=32)    # the same for pictures of another size: its positions are interpolated
    output = pretrained(codes)                             # codes int [B, S] -> .logits [B, S, V], .features [L + 1, B, D]
    made = igpt_jax.complete(pretrained, "cat.jpg")        # one image or several: paths, arrays, PIL images; .pictures uint8 [I, completions, H, H, 3]
    made = igpt_jax.fill(pretrained, "cat.jpg", region)    # a region, bool [H, H], of an image; see its docstring for causal and bert models
    pictures = igpt_jax.unconditional(pretrained, 64)      # from nothing: uint8 [64, H, H, 3]
    maps = igpt_jax.attention_maps(pretrained, codes)      # the weights of the forward pass: float32 [L, B, N, S, S]; queries=[100], layers=[1, 6] choose
    lens = igpt_jax.logit_lens(pretrained, codes)          # what each layer would predict: .nats and .likeliest, each [L + 1, B, S]
"""

import importlib.util
from collections.abc import Callable
from typing import Any

__version__ = "0.2.0"
__all__ = ["attention_maps", "complete", "fill", "load", "logit_lens", "unconditional"]

if importlib.util.find_spec("jax") is None:  # `name` makes `python -m igpt_jax.PROGRAM` end with this one line instead of a stack trace
    raise ImportError("igpt_jax needs jax: pip install igpt_jax, or activate the environment that make installed: . .venv/bin/activate", name="igpt_jax")


def __getattr__(name: str) -> Callable[..., Any]:
    """Import a public function at its first use, so that `import igpt_jax` takes no time."""
    if name == "load":
        from igpt_jax.interop.hub import load

        return load
    if name in ("complete", "fill", "unconditional"):
        from igpt_jax.sampling import complete

        return getattr(complete, name)
    if name == "attention_maps":
        from igpt_jax.inspection.maps import attention_maps

        return attention_maps
    if name == "logit_lens":
        from igpt_jax.inspection.lens import logit_lens

        return logit_lens
    raise AttributeError(f"module 'igpt_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
