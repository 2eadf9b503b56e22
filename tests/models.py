"""Small models for the tests: a configuration, random parameters with every array non-trivial, and the original programs' arrays in our names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.model.transformer import PAPER, ImageGPT, ModelConfig
from igpt_jax.training.checkpoints import from_nested, to_nested

TINY = ModelConfig(
    layers=3, width=32, heads=4, vocabulary=16, positions=64, objective="autoregressive", **PAPER, classes=0, class_layer=-1,
    dtype="float32", remat="none", unroll=1, attention="auto",
)  # fmt: skip


def tiny(**changes) -> ModelConfig:
    return dataclasses.replace(TINY, **changes)


def random_model(config: ModelConfig, seed: int = 0) -> ImageGPT:
    """A model whose output matrix is not zero and whose gains are not one, so that a mistake shows."""
    model = ImageGPT(config, jax.random.key(seed))
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return structure.unflatten([leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)])


def from_openai(arrays, config: ModelConfig, prefix: str = "model/") -> ImageGPT:
    """OpenAI's variables, or their gradients, in our structure."""
    D = config.width

    def stacked(name, arrange=lambda x: x):
        return jnp.stack([arrange(arrays[f"{prefix}h{layer}/{name}"]) for layer in range(config.layers)])

    def qkv(kind):
        return stacked(f"attn/{kind}_proj", lambda x: x.transpose(2, 0, 1))  # [N, K, D] -> [D, N, K]

    nested = {
        "token_embedding": arrays[f"{prefix}wte"],
        "position_embedding": arrays[f"{prefix}wpe"],
        "output_embedding": arrays[f"{prefix}wtet"],
        "final_norm": arrays.get(f"{prefix}ln_f/g", np.ones(D, np.float32)),
        "blocks": {
            "attention_norm": stacked("ln_1/g"),
            "query_key_value": jnp.stack([qkv("q"), qkv("k"), qkv("v")], axis=2),
            "attention_output": stacked("attn/c_proj", lambda x: x.reshape(D, D)),
            "mlp_norm": stacked("ln_2/g"),
            "mlp_in": stacked("mlp/c_fc/w"),
            "mlp_out": stacked("mlp/c_proj/w"),
        },
    }
    if config.causal:
        nested["start_vector"] = arrays[f"{prefix}sos"]
    if config.classes:
        nested["class_embedding"] = arrays[f"{prefix}clf/wclf"]
    return from_nested(jax.tree.map(jnp.asarray, nested), jax.eval_shape(lambda: ImageGPT(config, jax.random.key(0))))


__all__ = ["TINY", "from_openai", "random_model", "tiny", "to_nested"]
