"""The models of the benchmarks: sizes, our model, and the same model in plain PyTorch and of Hugging Face.

The sizes are repeated here because configs/ needs ml_collections, and benchmarks also run with only jax, flax, optax, orbax and torch.
"""

import argparse
import math
import types

import jax
import numpy as np

from igpt_jax.cli import integer
from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import DTYPES, PAPER, REMATS, ImageGPT, ModelConfig
from igpt_jax.training.optimizer import OptimConfig

SIZES = {  # paper 3.3, at 32 x 32 with 512 colours
    "s": {"layers": 24, "width": 512, "heads": 8, "positions": 1024, "colours": 512},
    "m": {"layers": 36, "width": 1024, "heads": 8, "positions": 1024, "colours": 512},
    "l": {"layers": 48, "width": 1536, "heads": 16, "positions": 1024, "colours": 512},
    "xl": {"layers": 60, "width": 3072, "heads": 24, "positions": 1024, "colours": 512},
}
LAPTOP = {"layers": 8, "width": 128, "heads": 4, "positions": 256, "colours": 64}
SMALL = {"layers": 2, "width": 32, "heads": 2, "positions": 64, "colours": 16}
GPU = SIZES["s"] | {"dtype": "bfloat16"}
OPTIM = OptimConfig(  # the recipe of configs/base.py
    name="adam", learning_rate=0.003, schedule="cosine", warmup_steps=9_609, decay_steps=0, steps=1_000_000, beta1=0.9, beta2=0.95, epsilon=1e-8,
    weight_decay=0.0, clip_norm=0.0, loss_spike_factor=0.0, ema_decay=0.0, base_width=0, layer_decay=1.0, frozen_layers=0,
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model; `rounds.start` replaces their defaults by SMALL, GPU or a size of SIZES."""
    parser.add_argument("--model", choices=SIZES, help="a size of the paper; default: 8 layers of width 128 on a CPU, s on a GPU")
    for name, value in LAPTOP.items():
        parser.add_argument(f"--{name}", type=integer(1), default=value, help=f"{name} of the model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of matrix products; default on a GPU: bfloat16")
    parser.add_argument("--remat", choices=REMATS, default="none", help="what the backward pass of our model computes again")
    parser.add_argument("--unroll", type=integer(), default=0, help="blocks in one turn of our loop over layers; 0: all")


def model_config(arguments: argparse.Namespace | types.SimpleNamespace) -> ModelConfig:
    """Return the config of our model, unrolled: faster on a CPU (speed.md) and on a GPU (experiments/results/gpu)."""
    return ModelConfig(
        layers=arguments.layers, width=arguments.width, heads=arguments.heads, vocabulary=arguments.colours, positions=arguments.positions,
        objective="autoregressive", **PAPER, classes=0, class_layer=-1, dtype=arguments.dtype, remat=arguments.remat,
        unroll=arguments.unroll or arguments.layers, attention="auto",
    )  # fmt: skip


def sizes(config: ModelConfig) -> dict:
    """Return what the JSON file holds about a model."""
    return {name: getattr(config, name) for name in ("layers", "width", "heads", "positions", "vocabulary", "dtype", "remat", "unroll")}


def one_device() -> jax.sharding.Mesh:
    """Return a mesh of the first device."""
    return sharding.make_mesh(devices=jax.devices()[:1])


def training_mesh(batch: int) -> jax.sharding.Mesh:
    """Return the mesh of a training step: on a CPU the devices that igpt_jax.train makes of its cores, else one device."""
    count = math.gcd(batch, jax.device_count()) if jax.default_backend() == "cpu" else 1
    return sharding.make_mesh(devices=jax.devices()[:count])


def make_model(config: ModelConfig) -> ImageGPT:
    """Return a model with random parameters on the device."""
    return jax.jit(lambda key: ImageGPT(config, key))(jax.random.key(0))


def random_codes(config: ModelConfig, batch: int) -> np.ndarray:
    """Return int32 [batch, positions]; the speed does not depend on the values."""
    return np.random.default_rng(0).integers(config.vocabulary, size=(batch, config.positions), dtype=np.int32)


def hugging_face(config: ModelConfig, device):
    """Return transformers' ImageGPT of the same sizes with random parameters, without dropout, as in the paper, and without cache, which generate sets."""
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling
    from transformers.utils import logging

    logging.set_verbosity_error()
    sizes = ImageGPTConfig(
        vocab_size=config.vocabulary + 1, n_positions=config.positions, n_embd=config.width, n_layer=config.layers, n_head=config.heads,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    return ImageGPTForCausalImageModeling(sizes).to(device)


def plain_torch(config: ModelConfig, device):
    """Return the paper's model in plain PyTorch with torch's own attention: codes [B, S], of which the first is the start, to logits."""
    import torch
    from torch import nn
    from torch.nn import functional

    D, N = config.width, config.heads

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.RMSNorm(D, eps=1e-5), nn.RMSNorm(D, eps=1e-5)
            self.query_key_value, self.attention_output = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
            self.mlp_in, self.mlp_out = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

        def forward(self, x_BSD):
            B, S, _ = x_BSD.shape
            q, k, v = self.query_key_value(self.attention_norm(x_BSD)).view(B, S, 3, N, D // N).permute(2, 0, 3, 1, 4)
            attended_BSD = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, S, D)
            x_BSD = x_BSD + self.attention_output(attended_BSD)
            hidden_BSF = self.mlp_in(self.mlp_norm(x_BSD))
            return x_BSD + self.mlp_out(hidden_BSF * torch.sigmoid(1.702 * hidden_BSF))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(config.vocabulary + 1, D), nn.Embedding(config.positions, D)
            self.blocks = nn.ModuleList(Block() for _ in range(config.layers))
            self.final_norm, self.output = nn.RMSNorm(D, eps=1e-5), nn.Linear(D, config.vocabulary, bias=False)

        def forward(self, codes_BS):
            x_BSD = self.tokens(codes_BS) + self.positions.weight[: codes_BS.shape[1]]
            for block in self.blocks:
                x_BSD = block(x_BSD)
            return self.output(self.final_norm(x_BSD))

    with device:
        return GPT()
