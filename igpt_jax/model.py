"""Image GPT, the only architecture file: a GPT-2 like transformer on palette codes (Chen et al. 2020; `src/model.py` of openai/image-gpt).

Shape suffixes: B batch, S sequence, D width, N heads, K head size, F mlp, V palette, L layers, C classes.
Parameters, norms, softmax and loss are float32; matrix products and the residual stream are in `config.dtype`.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from igpt_jax.attention import IMPLEMENTATIONS, attention
from igpt_jax.sharding import constrain

OBJECTIVES = ("autoregressive", "bert")
DTYPES = ("float32", "bfloat16")
REMATS = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is; every field is required, because a recipe says it (configs/base.py)."""

    layers: int
    width: int
    heads: int
    vocabulary: int  # colours of the palette
    positions: int  # pixels of an image
    objective: str  # autoregressive: causal, with a start vector; bert: sees all, with masked inputs
    classes: int  # of the class head; 0: no head
    class_layer: int  # features the class head reads, 0..layers; -1: the last, as the paper
    dtype: str  # of matrix products and the residual stream
    remat: str  # what the backward pass computes again. none; dots: all but matrix products; full: whole blocks
    unroll: int  # blocks in one turn of the loop over layers
    attention: str  # implementation, see attention.py

    def __post_init__(self):
        for name, known in (("objective", OBJECTIVES), ("dtype", DTYPES), ("remat", REMATS), ("attention", IMPLEMENTATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: one of {', '.join(known)}")
        for name in ("layers", "width", "heads", "vocabulary", "positions", "unroll"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.classes < 0 or not -1 <= self.class_layer <= self.layers:
            raise ValueError(f"classes {self.classes} must not be negative, class_layer {self.class_layer} must be in -1..{self.layers}")

    @property
    def causal(self) -> bool:
        return self.objective == "autoregressive"

    @property
    def mlp(self) -> int:
        return 4 * self.width

    def training_flops(self) -> float:
        """Floating-point operations of one training step on one image: 6 for each weight and pixel, half the attention where it is causal."""
        matrices = 12 * self.layers * self.width**2 + self.vocabulary * self.width
        attended = self.positions / 2 if self.causal else self.positions
        return self.positions * (6 * matrices + 12 * self.layers * self.width * attended)


class Output(NamedTuple):
    """What one forward pass computes; `None` where it was not asked for."""

    logits: Any  # float32 [B, S, V]
    features: Any  # float32 [L + 1, B, D]: mean over positions of the normalised input of block l, the last after the final norm (paper 2.6)
    raw_features: Any  # float32 [L + 1, B, D]: mean over positions of the embedding, then of each block's output
    class_logits: Any = None  # float32 [B, C]
    hidden: Any = None  # [L + 1, B, S, D]: the embedding, then each block's output
    cache: Any = None  # keys and values, each [L, B, S, N, K]


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig, key):
        D, N, F = config.width, config.heads, config.mlp
        keys = jax.random.split(key, 4)
        self.attention_norm = nnx.Param(jnp.ones(D))
        self.query_key_value = _normal(keys[0], (D, 3, N, D // N), D**-0.5)
        self.attention_output = _normal(keys[1], (D, D), (D * config.layers) ** -0.5)
        self.mlp_norm = nnx.Param(jnp.ones(D))
        self.mlp_in = _normal(keys[2], (D, F), 0.02)
        self.mlp_out = _normal(keys[3], (F, D), 0.02)

    def attend(self, n_BSD, config):
        """Queries, keys and values [B, S, N, K] of a normalised input."""
        qkv_BS3NK = constrain(product(n_BSD, self.query_key_value[...], config), "batch", None, None, "heads", None)
        return qkv_BS3NK[:, :, 0], qkv_BS3NK[:, :, 1], qkv_BS3NK[:, :, 2]

    def project(self, attended_BSNK, config):
        """Lead the heads back to the width."""
        return product(attended_BSNK.reshape(*attended_BSNK.shape[:2], -1), self.attention_output[...], config)

    def mlp(self, n_BSD, config):
        """The two-layer perceptron."""
        hidden_BSF = constrain(gelu(product(n_BSD, self.mlp_in[...], config)), "batch", None, "mlp")
        return product(hidden_BSF, self.mlp_out[...], config)


class ImageGPT(nnx.Module):
    """The transformer; a pytree of float32 parameters, blocks stacked along a leading layer axis."""

    def __init__(self, config: ModelConfig, key):
        self.config = config
        keys = jax.random.split(key, 4)
        self.token_embedding = _normal(keys[0], (config.vocabulary, config.width), 0.02)
        self.position_embedding = _normal(keys[1], (config.positions, config.width), 0.01)
        if config.causal:
            self.start_vector = _normal(keys[2], (config.width,), 0.02)
        self.blocks = jax.vmap(partial(Block, config))(jax.random.split(keys[3], config.layers))
        self.final_norm = nnx.Param(jnp.ones(config.width))
        self.output_embedding = nnx.Param(jnp.zeros((config.vocabulary, config.width)))
        if config.classes:
            self.class_embedding = nnx.Param(jnp.zeros((config.classes, config.width)))

    def __call__(self, codes_BS, keep_BS=None, hidden: bool = False, cache: bool = False) -> Output:
        """Run codes int [B, S], S at most `positions`, through the model.

        `keep_BS` (bert) is 1 where the model sees the code and 0 where it is masked. `hidden` and `cache` add those outputs.
        Position i of the logits predicts code i: an autoregressive model has seen the codes before it, a bert model all kept ones.
        """
        config = self.config
        x_BSD = constrain(self.embed(codes_BS, keep_BS), "batch", None, None)

        def layer(x_BSD, block):
            n_BSD = rms_norm(x_BSD, block.attention_norm[...])
            q_BSNK, k_BSNK, v_BSNK = block.attend(n_BSD, config)
            y_BSD = x_BSD + block.project(attention(q_BSNK, k_BSNK, v_BSNK, config.causal, config.attention), config)
            y_BSD = y_BSD + block.mlp(rms_norm(y_BSD, block.mlp_norm[...]), config)
            y_BSD = constrain(y_BSD, "batch", None, None)
            collected = (_pool(n_BSD), _pool(y_BSD), y_BSD if hidden else None, (k_BSNK, v_BSNK) if cache else None)
            return y_BSD, collected

        y_BSD, collected = jax.lax.scan(_remat(layer, config.remat), x_BSD, self.blocks, unroll=min(config.unroll, config.layers))
        features_LBD, raw_LBD, hidden_LBSD, key_value = collected
        n_BSD = rms_norm(y_BSD, self.final_norm[...])
        features_LBD = jnp.concatenate([features_LBD, _pool(n_BSD)[None]])
        return Output(
            logits=self.logits(n_BSD),
            features=features_LBD,
            raw_features=jnp.concatenate([_pool(x_BSD)[None], raw_LBD]),
            class_logits=self.class_logits(features_LBD[config.class_layer]) if config.classes else None,
            hidden=jnp.concatenate([x_BSD[None], hidden_LBSD]) if hidden else None,
            cache=key_value,
        )

    def embed(self, codes_BS, keep_BS=None):
        """Content plus position [B, S, D]: shifted right behind the start vector (autoregressive), or zero where masked (bert)."""
        x_BSD = self.token_embedding[...][codes_BS]
        if self.config.causal:
            start_B1D = jnp.broadcast_to(self.start_vector[...], (x_BSD.shape[0], 1, x_BSD.shape[-1]))
            x_BSD = jnp.concatenate([start_B1D, x_BSD[:, :-1]], axis=1)
        elif keep_BS is not None:
            x_BSD = x_BSD * keep_BS[..., None]
        return (x_BSD + self.position_embedding[...][: codes_BS.shape[1]]).astype(self.config.dtype)

    def logits(self, n_BSD):
        """Scores of every colour, float32 [..., V], from the final norm's output."""
        return product(n_BSD, self.output_embedding[...].T, self.config).astype(jnp.float32)

    def class_logits(self, features_BD):
        """Scores of every class, float32 [B, C], from pooled features."""
        return jnp.einsum("bd,cd->bc", features_BD, self.class_embedding[...], precision="highest")

    def decode(self, codes_B, position, caches):
        """One step of generation: the logits [B, V] at `position`, after the code before it, and the caches with that position filled.

        `caches` is a list of (keys, values), one pair for each layer, each [B, N, S, K]; see `empty_caches`. Source of the idea: HF #7 of openai/image-gpt.
        """
        config = self.config
        content_BD = jnp.where(position == 0, self.start_vector[...], self.token_embedding[...][codes_B])
        x_B1D = (content_BD + self.position_embedding[...][position])[:, None].astype(config.dtype)
        updated = []
        for index, (k_BNSK, v_BNSK) in enumerate(caches):
            block = jax.tree.map(lambda stacked, index=index: stacked[index], self.blocks)
            q_B1NK, k_B1NK, v_B1NK = block.attend(rms_norm(x_B1D, block.attention_norm[...]), config)
            k_BNSK = jax.lax.dynamic_update_slice_in_dim(k_BNSK, k_B1NK.swapaxes(1, 2), position, axis=2)
            v_BNSK = jax.lax.dynamic_update_slice_in_dim(v_BNSK, v_B1NK.swapaxes(1, 2), position, axis=2)
            updated.append((k_BNSK, v_BNSK))
            x_B1D = x_B1D + block.project(_attend_cached(q_B1NK, k_BNSK, v_BNSK, position), config)
            x_B1D = x_B1D + block.mlp(rms_norm(x_B1D, block.mlp_norm[...]), config)
        return self.logits(rms_norm(x_B1D[:, 0], self.final_norm[...])), updated

    def empty_caches(self, batch: int):
        """Caches for `decode` with nothing in them."""
        config = self.config
        shape = (batch, config.heads, config.positions, config.width // config.heads)
        return [(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)) for _ in range(config.layers)]


def parameter_count(model) -> int:
    """Number of parameters of a model, abstract or real."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def rms_norm(x, gain_D):
    """Divide by the root of the mean square, times a gain; no centring, no bias, epsilon inside the root (`norm` in the original)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-5) * gain_D).astype(x.dtype)


def gelu(x):
    """The original's approximation of GELU (`gelu2`)."""
    return x * jax.nn.sigmoid(1.702 * x)


def product(x, w, config):
    """x [..., D] times w [D, ...] in config.dtype; float32 means float32 on every chip, where GPUs and TPUs would round the factors otherwise.

    Rows are folded into one axis: the gradient of a product of matrices is twice as fast on a CPU as that of an einsum over batch and sequence.
    """
    precision = "highest" if config.dtype == "float32" else "default"
    y = jnp.matmul(x.astype(config.dtype).reshape(-1, x.shape[-1]), w.astype(config.dtype).reshape(len(w), -1), precision=precision)
    return y.reshape(*x.shape[:-1], *w.shape[1:])


def _attend_cached(q_B1NK, k_BNSK, v_BNSK, position):
    """Attention of one query to the cached positions up to its own."""
    q_BNK = q_B1NK[:, 0] * q_B1NK.shape[-1] ** -0.5
    logits_BNS = (q_BNK[:, :, None, :] * k_BNSK).sum(axis=-1, dtype=jnp.float32)
    logits_BNS = jnp.where(jnp.arange(k_BNSK.shape[2]) <= position, logits_BNS, -1e30)
    probabilities_BNS = jax.nn.softmax(logits_BNS, axis=-1).astype(v_BNSK.dtype)
    return jnp.einsum("bns,bnsk->bnk", probabilities_BNS, v_BNSK, precision="highest" if v_BNSK.dtype == jnp.float32 else "default")[:, None]


def _pool(x_BSD):
    return x_BSD.astype(jnp.float32).mean(axis=1)


def _normal(key, shape, deviation):
    return nnx.Param(deviation * jax.random.normal(key, shape, jnp.float32))


def _remat(layer, remat):
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)
