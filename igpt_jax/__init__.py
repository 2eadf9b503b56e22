"""Image GPT in JAX: pretrain transformers on pixels, look inside them layer by layer, sample from them.

Read the modules in this order; an image goes the same way:

    palette     RGB pixels <-> codes                    data        image files -> codes -> batches
    model       codes -> logits, features, caches       objectives  logits -> nats
    state       one training step                       run, train  the loop and the program around it

Below them: images, codes, tfds (the sources), order (which image at which step), kmeans (fits the palette), attention, sharding (who holds what),
logistic and sgd (probes), activations (the features' files), metrics, optim, machine. Beside them: checkpoint and evaluate.
Programs, each `python -m igpt_jax.NAME --help`: quantize, train, evaluate, sample, features, probe, finetune, convert, aot, demo.

From Python:

    import igpt_jax
    pretrained = igpt_jax.load("runs/digits")              # newest checkpoint: model, palette, recipe
    output = pretrained(codes)                             # codes int [B, S] -> .logits [B, S, V], .features [L + 1, B, D]
    made = igpt_jax.complete(pretrained, "cat.jpg")        # one image or a list: paths, arrays, PIL images; .pictures uint8 [images, completions, H, H, 3]
    made = igpt_jax.fill(bert, ["cat.jpg"], region)        # a bert model fills a region, bool [H, H]
    pictures = igpt_jax.unconditional(pretrained, 64)      # from nothing: uint8 [64, H, H, 3]
"""

import importlib.util
from collections.abc import Callable
from typing import Any

__version__ = "0.2.0"
__all__ = ["complete", "fill", "load", "unconditional"]

if importlib.util.find_spec("jax") is None:  # `name` makes `python -m igpt_jax.PROGRAM` end with this one line instead of a stack trace
    raise ImportError("igpt_jax needs jax: pip install igpt_jax, or activate the environment that make installed: . .venv/bin/activate", name="igpt_jax")


def __getattr__(name: str) -> Callable[..., Any]:
    """Import a public function at its first use, so that `import igpt_jax` takes no time."""
    if name == "load":
        from igpt_jax.training.checkpoints import load

        return load
    if name in ("complete", "fill", "unconditional"):
        from igpt_jax.sampling import complete

        return getattr(complete, name)
    raise AttributeError(f"module 'igpt_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
