"""Image GPT, a GPT-2 like transformer on palette codes (Chen et al. 2020; `src/model.py` of openai/image-gpt). It is the only architecture file.

Shape suffixes: B batch, S sequence, D width, N heads, K head size, F mlp, V palette, L layers, C classes.
Parameters, norms, softmax and loss are float32; matrix products and the residual stream are in `config.dtype`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from igpt_jax.distributed.sharding import constrain, is_divided, on_cpu, per_shard
from igpt_jax.model.attention import IMPLEMENTATIONS, PRECISIONS, attention, attention_weights, resolve
from igpt_jax.model.cached_attention import Cache, cached_attention
from igpt_jax.shapes import describe
from igpt_jax.types import AnyArray, Array, Tree

Caches: TypeAlias = list[Cache]  # (keys, values) of each layer, each [B, N, S, K]

OBJECTIVES = ("autoregressive", "bert", "prefix")
POSITION_ENCODINGS = ("learned", "axial", "rotary")
ACTIVATIONS = ("gelu", "swiglu")
# the options of converted models and of old checkpoints
PAPER: dict[str, Any] = {"tokens_per_pixel": 1, "position_encoding": "learned", "qk_norm": False, "activation": "gelu", "bias": False, "block": 1}
DTYPES = ("float32", "bfloat16")
REMATS = ("none", "dots", "full", "auto")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Define an architecture. Every field is required, because the recipe sets all of them (configs/base.py)."""

    layers: int
    width: int
    heads: int
    vocabulary: int  # colours of the palette
    positions: int  # tokens of an image
    tokens_per_pixel: int  # 1: a palette colour; 3: red, then green, then blue, for bits per dimension (Sparse Transformer, Child et al. 2019)
    objective: str  # autoregressive: causal, with a start vector; bert: bidirectional, masked inputs; prefix: causal after a random prefix (AIM 3.2)
    position_encoding: str  # learned: a vector for each position (paper); axial: one for its row plus one for its column; rotary: q and k rotated by both
    qk_norm: bool  # normalise queries and keys, with a gain each (Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters")
    activation: str  # of the mlp. gelu: the paper's; swiglu: gated, with as many parameters (Shazeer 2020)
    classes: int  # of the class head; 0: no head
    class_layer: int  # layer whose features the class head reads, 0..layers; -1: the last, as in the paper
    dtype: str  # of matrix products and the residual stream
    remat: str  # what the backward pass recomputes. none; dots: all but matrix products and attention; full: whole blocks; auto: see training/compilation.py
    unroll: int  # blocks in one iteration of the loop over layers; 0: see training/compilation.py
    attention: str  # implementation (attention.py)
    matmul_precision: str = "highest"  # of float32 products in training: highest: float32; high: TF32 on GPUs. Older checkpoints lack it
    bias: bool = False  # a vector is added to each product of the blocks' matrices, as in transformers' ImageGPT; the paper's model has none
    dropout: float = 0.0  # in training, share of the numbers dropped of the embedding and of what attention and mlp add. Older checkpoints lack it
    block: int = 1  # side in pixels of the squares whose pixels are predicted together, from all squares before; 1: the paper's (XTRA, Amrani et al. 2024)

    def __post_init__(self) -> None:
        choices = (("objective", OBJECTIVES), ("position_encoding", POSITION_ENCODINGS), ("activation", ACTIVATIONS), ("tokens_per_pixel", (1, 3)))
        for name, known in (*choices, ("dtype", DTYPES), ("remat", REMATS), ("attention", IMPLEMENTATIONS), ("matmul_precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: one of {', '.join(map(str, known))}")
        for name in ("layers", "width", "heads", "vocabulary", "positions"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        if not isinstance(self.unroll, int) or self.unroll < 0:
            raise ValueError(f"unroll must be a whole number of at least 0, not {self.unroll!r}")
        self._check_block()
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.position_encoding != "learned" and self.rows * self.columns != self.positions:
            raise ValueError(f"{self.position_encoding} positions need a square image, not {self.positions} positions, {self.tokens_per_pixel} for each pixel")
        if self.position_encoding == "rotary" and self.width // self.heads % 4:
            raise ValueError(f"rotary positions need heads of a multiple of 4, not {self.width} / {self.heads} = {self.width // self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} must be from 0 (none) to below 1")
        if self.classes < 0 or not -1 <= self.class_layer <= self.layers:
            raise ValueError(f"classes {self.classes} must not be negative, class_layer {self.class_layer} must be in -1..{self.layers}")

    def _check_block(self) -> None:
        if not isinstance(self.block, int) or self.block < 1 or (self.block > 1 and (self.rows**2 != self.positions or self.rows % self.block)):
            raise ValueError(f"block {self.block!r} must be a whole number that divides the side of a square image, here {self.positions} positions")
        if self.block > 1 and (self.objective, self.tokens_per_pixel) != ("autoregressive", 1):
            found = f"objective {self.objective!r}, tokens_per_pixel {self.tokens_per_pixel}"
            raise ValueError(f"block {self.block} needs objective 'autoregressive' and tokens_per_pixel 1, not {found}")
        if self.block > 1 and self.attention not in ("auto", "reference"):
            raise ValueError(f"attention {self.attention!r} has no mask of blocks, and block is {self.block}: set attention to 'auto', which takes 'reference'")

    def block_of_position(self) -> np.ndarray:
        """Return the number of the block of each position, int [S]: row of blocks by row of blocks, from left to right."""
        if self.block == 1:
            return np.arange(self.positions)
        row_S, column_S = np.divmod(np.arange(self.positions), self.rows)
        return row_S // self.block * (self.rows // self.block) + column_S // self.block

    def positions_of_blocks(self) -> np.ndarray:
        """Return the positions of each block, row by row: int [blocks, block * block]."""
        return np.argsort(self.block_of_position(), kind="stable").reshape(-1, self.block**2)

    @property
    def causal(self) -> bool:
        """Whether the model predicts each code from those before it, and can be sampled code by code."""
        return self.objective != "bert"

    @property
    def precision(self) -> str:
        """Precision of the matrix products, as jax names it: by default, GPUs and TPUs round factors of float32 to 10 or 8 bits."""
        return self.matmul_precision if self.dtype == "float32" else "default"

    @property
    def uses_kernels(self) -> bool:
        """Whether attention runs in cuDNN's kernels for GPUs, also where it is only compiled for one."""
        return self.block == 1 and resolve(self.attention, jax.default_backend(), self.dtype, self.positions) == "cudnn"

    @property
    def samples_by_kernel(self) -> bool:
        """Whether a kernel reads the caches in sampling. A model that was trained by cuDNN's attention is sampled on a CPU without."""
        return self.uses_kernels and jax.default_backend() == "gpu"

    @property
    def mlp(self) -> int:
        """Width of the hidden layer. A gated one has 3 matrices instead of 2, so it has two thirds of the width, rounded up to a multiple of 64."""
        return 4 * self.width if self.activation == "gelu" else -(-8 * self.width // (3 * 64)) * 64

    @property
    def rows(self) -> int:
        """Rows of an image: its resolution in pixels."""
        return round((self.positions / self.tokens_per_pixel) ** 0.5)

    @property
    def columns(self) -> int:
        """Tokens in a row of an image."""
        return self.rows * self.tokens_per_pixel

    def training_flops(self) -> float:
        """Count floating-point operations of one training step on one image: 6 for each weight and token; causal attention counts half."""
        mlp = (2 if self.activation == "gelu" else 3) * self.width * self.mlp
        matrices = self.layers * (4 * self.width**2 + mlp) + self.vocabulary * self.width
        attended = (self.positions + self.block**2 - 1) / 2 if self.causal else self.positions
        return self.positions * (6 * matrices + 12 * self.layers * self.width * attended)


class Output(NamedTuple):
    """The results of one forward pass; None for those that were not requested."""

    logits: Array  # float32 [B, S, V]
    features: Array  # float32 [L + 1, B, D]: mean over positions of the normalised input of each block, then of the final norm's output (paper 2.6)
    raw_features: Array  # float32 [L + 1, B, D]: mean over positions of the embedding, then of each block's output
    class_logits: Any = None  # float32 [B, C]; None without a class head
    hidden: Any = None  # [L + 1, B, S, D]: the embedding, then each block's output
    cache: Any = None  # keys and values, each [L, B, S, N, K]

    def __repr__(self) -> str:
        return describe(self)


class Decoder(NamedTuple):
    """The parameters as `ImageGPT.decode` takes them."""

    blocks: list["Block"]  # after `fold_gains`
    head_DV: Array


class Block(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig, key: Array):
        D, N, F = config.width, config.heads, config.mlp
        keys = jax.random.split(key, 4)
        self.attention_norm = nnx.Param(jnp.ones(D))
        self.query_key_value = _normal(keys[0], (D, 3, N, D // N), D**-0.5)
        self.attention_output = _normal(keys[1], (D, D), (D * config.layers) ** -0.5)
        if config.qk_norm:
            self.query_norm, self.key_norm = nnx.Param(jnp.ones(D // N)), nnx.Param(jnp.ones(D // N))
        self.mlp_norm = nnx.Param(jnp.ones(D))
        if config.activation == "swiglu":
            self.mlp_gate = _normal(jax.random.fold_in(keys[2], 0), (D, F), 0.02)
        self.mlp_in = _normal(keys[2], (D, F), 0.02)
        self.mlp_out = _normal(keys[3], (F, D), 0.02)
        if config.bias:
            self.query_key_value_bias = nnx.Param(jnp.zeros((3, N, D // N)))
            self.attention_output_bias = nnx.Param(jnp.zeros(D))
            if config.activation == "swiglu":
                self.mlp_gate_bias = nnx.Param(jnp.zeros(F))
            self.mlp_in_bias, self.mlp_out_bias = nnx.Param(jnp.zeros(F)), nnx.Param(jnp.zeros(D))

    def fold_gains(self) -> "Block":
        """Return a copy for normalised inputs: its first matrices are multiplied by the gains of the norms before them, (n * gain) @ w = n @ (gain * w).
        Biases are added after the product and stay as they are.

        The gradient of a gain is then a sum over a matrix, instead of one over all positions. Blocks may be stacked. `qkv` and `mlp` are methods of the copy.
        """
        folded = jax.tree.map(lambda x: x, self)
        # constrained, because the compiler would divide the gradient of a gain as that of its matrix, and gather it later
        attention_gain, mlp_gain = (constrain(gain[...], *(None,) * gain[...].ndim) for gain in (self.attention_norm, self.mlp_norm))
        folded.query_key_value[...] = attention_gain[..., None, None, None] * self.query_key_value[...]
        folded.mlp_in[...] = mlp_gain[..., None] * self.mlp_in[...]
        if hasattr(self, "mlp_gate"):
            folded.mlp_gate[...] = mlp_gain[..., None] * self.mlp_gate[...]
        return folded

    def qkv(self, n_BSD: Array, positions_S: Array, config: ModelConfig) -> tuple[Array, Array, Array]:
        """Compute queries, keys and values, each [B, S, N, K], of a normalised input at these positions.

        cuDNN's attention takes three arrays, so they are made by three products. Elsewhere they are made by one, which is faster on a CPU.
        """
        w_D3NK, b_3NK = self.query_key_value[...], self._bias("query_key_value")
        if config.uses_kernels:
            parts = [(w_D3NK[:, part], None if b_3NK is None else b_3NK[part]) for part in range(3)]
            q_BSNK, k_BSNK, v_BSNK = (constrain(dense(n_BSD, w_DNK, config, b_NK), "batch", None, "heads", None) for w_DNK, b_NK in parts)
        else:
            qkv_BS3NK = constrain(dense(n_BSD, w_D3NK, config, b_3NK), "batch", None, None, "heads", None)
            q_BSNK, k_BSNK, v_BSNK = (part.squeeze(2) for part in jnp.split(qkv_BS3NK, 3, axis=2))  # the gradient of a split is one concatenation
        return *self._positioned(q_BSNK, k_BSNK, positions_S, config), v_BSNK

    def one_qkv(self, n_BD: Array, position: Array, config: ModelConfig) -> Array:
        """Compute query, key and value of a single position, [B, 3, N, K]; by one product on every platform."""
        qkv_B3NK = constrain(dense(n_BD, self.query_key_value[...], config, self._bias("query_key_value")), "batch", None, "heads", None)
        if not config.qk_norm and config.position_encoding != "rotary":
            return qkv_B3NK
        q_B1NK, k_B1NK, v_B1NK = jnp.split(qkv_B3NK, 3, axis=1)
        return jnp.concatenate([*self._positioned(q_B1NK, k_B1NK, position[None], config), v_B1NK], axis=1)

    def _positioned(self, q_BSNK: Array, k_BSNK: Array, positions_S: Array, config: ModelConfig) -> tuple[Array, Array]:
        """Queries and keys normalised and rotated where the architecture does so."""
        if config.qk_norm:
            q_BSNK, k_BSNK = rms_norm(q_BSNK, self.query_norm[...]), rms_norm(k_BSNK, self.key_norm[...])
        if config.position_encoding == "rotary":
            q_BSNK, k_BSNK = rotate(q_BSNK, positions_S, config), rotate(k_BSNK, positions_S, config)
        return q_BSNK, k_BSNK

    def project(self, attended_BSNK: Array, config: ModelConfig) -> Array:
        """Project the outputs [..., N, K] of all heads to the width, [..., D]."""
        return dense(attended_BSNK.reshape(*attended_BSNK.shape[:-2], -1), self.attention_output[...], config, self._bias("attention_output"))

    def mlp(self, n_BSD: Array, config: ModelConfig) -> Array:
        """Apply the two-layer perceptron to a normalised input [..., D]: [..., D]."""
        hidden_BSF = dense(n_BSD, self.mlp_in[...], config, self._bias("mlp_in"))
        if config.activation == "swiglu":
            hidden_BSF = jax.nn.silu(dense(n_BSD, self.mlp_gate[...], config, self._bias("mlp_gate"))) * hidden_BSF
        else:
            hidden_BSF = gelu(hidden_BSF)
        hidden_BSF = constrain(hidden_BSF, "batch", *(None,) * (hidden_BSF.ndim - 2), "mlp")
        return dense(hidden_BSF, self.mlp_out[...], config, self._bias("mlp_out"))

    def _bias(self, matrix: str) -> Array | None:
        """Return the bias of a matrix; None where the architecture has none."""
        bias = getattr(self, f"{matrix}_bias", None)
        return None if bias is None else bias[...]


class ImageGPT(nnx.Module):
    """The transformer: a pytree of float32 parameters. Those of the blocks are stacked along a leading layer axis."""

    def __init__(self, config: ModelConfig, key: Array):
        self.config = config
        keys = jax.random.split(key, 4)
        self.token_embedding = _normal(keys[0], (config.vocabulary, config.width), 0.02)
        if config.position_encoding == "learned":
            self.position_embedding = _normal(keys[1], (config.positions, config.width), 0.01)
        if config.position_encoding == "axial":
            row_key, column_key = jax.random.split(keys[1])
            self.row_embedding = _normal(row_key, (config.rows, config.width), 0.01)
            self.column_embedding = _normal(column_key, (config.columns, config.width), 0.01)
        if config.causal:
            self.start_vector = _normal(keys[2], (config.width,), 0.02)
        self.blocks = jax.vmap(partial(Block, config))(jax.random.split(keys[3], config.layers))
        self.final_norm = nnx.Param(jnp.ones(config.width))
        self.output_embedding = nnx.Param(jnp.zeros((config.vocabulary, config.width)))
        if config.classes:
            self.class_embedding = nnx.Param(jnp.zeros((config.classes, config.width)))

    def __call__(
        self, codes_BS: AnyArray, mask_BS: AnyArray | None = None, prefix_B: AnyArray | None = None, hidden: bool = False, cache: bool = False,
        dropout_keys_B: Array | None = None,
    ) -> Output:  # fmt: skip
        """Run codes int [B, S], S at most `positions`, through the model.

        `mask_BS` (bert) is 1 where the code is masked and 0 where the model sees it; None masks nothing. `prefix_B` (causal models) is the number of
        first inputs that attend to each other in both directions. `hidden` and `cache` add those outputs. `dropout_keys_B`, a key for each image, draws
        what is dropped; None drops nothing.
        Position i of the logits predicts code i: a causal model sees the codes before it (with `config.block`, those of the blocks before its own), a bert
        model all codes that are not masked.
        """
        config, positions_S = self.config, jnp.arange(codes_BS.shape[1])
        if len(positions_S) > config.positions:  # jax clips an index beyond the end of an array instead of failing
            raise ValueError(f"codes {list(codes_BS.shape)} are more than the model's {config.positions} positions")
        if config.block > 1 and len(positions_S) % (config.block * config.rows):
            raise ValueError(f"codes {list(codes_BS.shape)} are not whole rows of blocks, of {config.block} x {config.rows} positions each")
        x_BSD = drop(constrain(self.embed(codes_BS, mask_BS), "batch", None, None), dropout_keys_B, 0, config)

        attention_fn: Callable = partial(
            attention, causal=config.causal, implementation=config.attention, prefix_B=prefix_B, precision=config.matmul_precision,
            order_S=config.block_of_position()[: len(positions_S)] if config.block > 1 else None,
        )  # fmt: skip
        if prefix_B is None:  # heads and images are independent, but the compiler would gather the heads, and cannot partition a kernel
            heads = ("batch", None, "heads", None)
            attention_fn = per_shard(attention_fn, (heads,) * 3, heads)

        def layer(x_BSD: Array, block_and_place: tuple[Block, Array]) -> tuple[Array, tuple]:
            block, place = block_and_place
            folded, n_BSD = block.fold_gains(), normalize(x_BSD)
            q_BSNK, k_BSNK, v_BSNK = folded.qkv(n_BSD, positions_S, config)
            y_BSD = x_BSD + drop(folded.project(attention_fn(q_BSNK, k_BSNK, v_BSNK), config), dropout_keys_B, place, config)
            y_BSD = y_BSD + drop(folded.mlp(normalize(y_BSD), config), dropout_keys_B, place + 1, config)
            y_BSD = constrain(y_BSD, "batch", None, None)
            collected = (_pool(n_BSD) * block.attention_norm[...], _pool(y_BSD), y_BSD if hidden else None, (k_BSNK, v_BSNK) if cache else None)
            return y_BSD, collected

        places_L = 1 + 2 * jnp.arange(config.layers)  # of `drop`
        y_BSD, collected = jax.lax.scan(_remat(layer, config), x_BSD, (self.blocks, places_L), unroll=min(config.unroll or 1, config.layers))
        features_LBD, raw_LBD, hidden_LBSD, key_value = collected
        n_BSD = normalize(y_BSD)
        features_LBD = jnp.concatenate([features_LBD, (_pool(n_BSD) * self.final_norm[...])[None]])
        return Output(
            logits=dense(n_BSD, self.head(), config).astype(jnp.float32),
            features=features_LBD,
            raw_features=jnp.concatenate([_pool(x_BSD)[None], raw_LBD]),
            class_logits=self.class_logits(features_LBD[config.class_layer]) if config.classes else None,
            hidden=jnp.concatenate([x_BSD[None], hidden_LBSD]) if hidden else None,
            cache=key_value,
        )

    def forward_features(self, codes_BS: AnyArray, hidden: bool = False, cache: bool = False) -> Output:
        """Run the forward pass for features and classes: as in training, but a prefix model attends to the whole image in both directions (AIM 3.2)."""
        whole_B = jnp.full(codes_BS.shape[0], codes_BS.shape[1]) if self.config.objective == "prefix" else None
        return self(codes_BS, prefix_B=whole_B, hidden=hidden, cache=cache)

    def embed(self, codes_BS: AnyArray, mask_BS: AnyArray | None = None) -> Array:
        """Add token and position vectors, [B, S, D]. Tokens are shifted right behind the start vector (causal), or zero where `mask_BS` is 1 (bert).

        With `config.block`, they are shifted by a block: a position holds the token of the same place in the block before, and the position vector says
        which pixel it predicts. The start vector is at all positions of the first block.
        """
        table_VD = constrain(self.token_embedding[...], None, None)  # gathering the small table is faster than exchanging activations
        x_BSD = look_up(table_VD, codes_BS, self.config.dtype)
        if self.config.block > 1:
            blocks = self.config.positions_of_blocks()
            before_S = np.empty(self.config.positions, int)
            before_S[blocks] = np.roll(blocks, 1, axis=0)
            first_S1 = (self.config.block_of_position() == 0)[: codes_BS.shape[1], None]
            x_BSD = jnp.where(first_S1, self.start_vector[...], x_BSD[:, before_S[: codes_BS.shape[1]]])
        elif self.config.causal:
            start_B1D = jnp.broadcast_to(self.start_vector[...], (x_BSD.shape[0], 1, x_BSD.shape[-1]))
            x_BSD = jnp.concatenate([start_B1D, x_BSD[:, :-1]], axis=1)
        elif mask_BS is not None:
            x_BSD = x_BSD * (1 - mask_BS)[..., None]
        return (x_BSD + self.position_vectors(0, codes_BS.shape[1])).astype(self.config.dtype)

    def position_vectors(self, start: AnyArray | int, count: int) -> Array | float:
        """Return the vectors that are added to the tokens at positions start..start + count - 1, [count, D].

        0.0 for rotary positions, where queries and keys are rotated instead.
        """
        if self.config.position_encoding == "rotary":
            return 0.0
        if self.config.position_encoding == "axial":
            table_SD = (self.row_embedding[...][:, None] + self.column_embedding[...]).reshape(self.config.positions, -1)
        else:
            table_SD = self.position_embedding[...]
        # With a slice, XLA would store every gradient of the GPU's backward pass transposed, from the sum over images back. No index is there twice, so that
        # the scatter that is the gradient sums nothing.
        return table_SD.at[start + jnp.arange(count)].get(mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)

    def head(self) -> Array:
        """Return the matrix [D, V] from the normalised output of the last block to the logits of all colours: the final norm's gain is part of it."""
        return constrain(self.final_norm[...], None)[:, None] * self.output_embedding[...].T

    def class_logits(self, features_BD: Array) -> Array:
        """Compute the logits of all classes, float32 [B, C], from pooled features."""
        return jnp.einsum("bd,cd->bc", features_BD, self.class_embedding[...], precision="highest")

    def decoder(self) -> "Decoder":
        """Return what `decode` needs of the parameters, once for all steps: matrices of each block with the gains in them, in the model's dtype."""
        dtype = self.config.dtype
        stacked = jax.tree_util.tree_map_with_path(
            lambda path, x: x.astype(dtype) if x.ndim > 2 and "bias" not in jax.tree_util.keystr(path) else x, self.blocks.fold_gains()
        )
        blocks = [jax.tree.map(lambda x, index=index: x[index], stacked) for index in range(self.config.layers)]
        return Decoder(blocks, self.head().astype(dtype))

    def decode(self, codes_B: AnyArray, position: AnyArray | int, caches: Caches, decoder: "Decoder | None" = None) -> tuple[Array, Caches]:
        """Take one step of generation: return the logits [B, V] at `position`, and the caches with that position filled.

        `codes_B` are the codes at the position before; position 0 ignores them. `caches` has a pair (keys, values) for each layer, each [B, N, S, K] with
        S above `position`; see `empty_caches`. `decoder` is what the method of this name returns; None makes it for this step alone.
        Source of the idea: HF #7 of openai/image-gpt.
        """
        config, position = self.config, jnp.asarray(position)
        if config.block > 1:
            raise ValueError(f"the model predicts blocks of {config.block} x {config.block} pixels, not single ones: call decode_block")
        blocks, head_DV = decoder or self.decoder()
        content_BD = jnp.where(position == 0, self.start_vector[...], self.token_embedding[...][codes_B])
        x_BD = (content_BD + self.position_vectors(position, 1)).astype(config.dtype)
        updated = []
        for block, cache in zip(blocks, caches, strict=True):
            attended_BNK, cache = cached_attention(block.one_qkv(normalize(x_BD), position, config), cache, position, kernel=config.samples_by_kernel)
            updated.append(cache)
            x_BD = x_BD + block.project(attended_BNK, config)
            x_BD = x_BD + block.mlp(normalize(x_BD), config)
        return dense(normalize(x_BD), head_DV, config).astype(jnp.float32), updated

    def decode_block(self, codes_BQ: AnyArray, number: AnyArray | int, caches: Caches, decoder: "Decoder | None" = None) -> tuple[Array, Caches]:
        """Take one step of generation with `config.block`: return the logits [B, Q, V] of the Q pixels of block `number`, and the caches with them filled.

        `codes_BQ` are the codes of the block before; block 0 ignores them. The other parameters are those of `decode`; the caches have all positions.
        """
        config, number = self.config, jnp.asarray(number)
        blocks, head_DV = decoder or self.decoder()
        positions_Q = jnp.asarray(config.positions_of_blocks())[number]
        content_BQD = jnp.where(number == 0, self.start_vector[...], self.token_embedding[...][codes_BQ])
        position_SD = self.position_vectors(0, config.positions)
        x_BQD = (content_BQD + (position_SD if isinstance(position_SD, float) else position_SD[positions_Q])).astype(config.dtype)
        updated = []
        for block, cache in zip(blocks, caches, strict=True):
            q_BQNK, *new = block.qkv(normalize(x_BQD), positions_Q, config)
            k_BSNK, v_BSNK = (old.swapaxes(1, 2).at[:, positions_Q].set(part) for old, part in zip(cache, new, strict=True))
            updated.append((k_BSNK.swapaxes(1, 2), v_BSNK.swapaxes(1, 2)))
            weights_BNQS = attention_weights(q_BQNK, k_BSNK, positions_Q, True, order_T=config.block_of_position())
            attended_BQNK = jnp.einsum("bnqs,bsnk->bqnk", weights_BNQS.astype(v_BSNK.dtype), v_BSNK, precision=config.precision)
            x_BQD = x_BQD + block.project(attended_BQNK, config)
            x_BQD = x_BQD + block.mlp(normalize(x_BQD), config)
        return dense(normalize(x_BQD), head_DV, config).astype(jnp.float32), updated

    def empty_caches(self, batch: int, positions: int | None = None) -> Caches:
        """Make caches of zeros for `decode`, with room for the first `positions` (None: all)."""
        config = self.config
        shape = (batch, config.heads, config.positions if positions is None else positions, config.width // config.heads)
        return [(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)) for _ in range(config.layers)]


def check_codes(config: ModelConfig, codes_BS: Any, positions: int | None = None) -> AnyArray:
    """Return the codes as an array int [B, S], after a check: each row has `positions` codes (None: at most as many as the model has), all in the palette.

    Raises ValueError otherwise: JAX would clip an index beyond the palette, and the model would see another colour. Traced values are not checked.
    """
    try:
        codes_BS = codes_BS if hasattr(codes_BS, "dtype") else np.asarray(codes_BS)
    except ValueError:  # NumPy's for a ragged list
        raise ValueError("codes must be whole numbers, a row for each image, and all rows of the same length") from None
    fits = codes_BS.ndim == 2 and len(codes_BS) and (codes_BS.shape[1] <= config.positions if positions is None else codes_BS.shape[1] == positions)
    if codes_BS.dtype.kind not in "iu" or not fits:
        shape = f"[B, {positions}], a row for each image" if positions else f"[B, S], a row for each image, S at most {config.positions}"
        raise ValueError(f"codes must be whole numbers {shape}, not {codes_BS.dtype} {list(codes_BS.shape)}")
    if codes_BS.size and not isinstance(codes_BS, jax.core.Tracer):
        least, most = int(codes_BS.min()), int(codes_BS.max())
        if least < 0 or most >= config.vocabulary:
            raise ValueError(f"codes must be from 0 to {config.vocabulary - 1}, the model's colours, not from {least} to {most}")
    return codes_BS


def parameter_count(model: Tree) -> int:
    """Count the parameters of a model, abstract or real."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def rms_norm(x: Array, gain_D: Array) -> Array:
    """Divide by the root of the mean square and multiply by a gain: no centring, no bias, epsilon inside the root (`norm` in the original)."""
    return (normalize(x) * gain_D).astype(x.dtype)


@jax.custom_vjp
def normalize(x: Array) -> Array:
    """Divide by the root of the mean square, which is computed in float32.

    The backward pass stores the result, which the product that follows stores too, and one number for each row. Derived by jax, it would store four float32
    arrays of x's shape.
    """
    return _normalize_forward(x)[0]


def _normalize_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-5)
    n = (x32 * inverse).astype(x.dtype)
    return n, (n, inverse)


def _normalize_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    n, inverse = jax.lax.optimization_barrier(residuals)  # without it the compiler computes n again from x, and stores x too
    n32, gradient32 = n.astype(jnp.float32), gradient.astype(jnp.float32)
    return ((inverse * (gradient32 - n32 * jnp.mean(gradient32 * n32, axis=-1, keepdims=True))).astype(n.dtype),)


normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Apply the original's approximation of GELU (`gelu2`). The backward pass stores only x, and is one loop over it."""
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    x = jax.lax.optimization_barrier(x)  # without it the compiler stores the gate of the forward pass, a second array of this size
    gate = jax.nn.sigmoid(1.702 * x)
    return (gradient * (gate + 1.702 * x * gate * (1.0 - gate)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: Array, codes: AnyArray, dtype: str) -> Array:
    """Return the rows `codes` of a table, [..., D]. The gradient is a product of one-hot codes in `dtype`, to which its factor is rounded.

    The gradient of an index would be a scatter, which is slow on accelerators, and on GPUs sums in another order each time.
    """
    return table_VD[codes]


def _look_up_backward(dtype: str, residuals: tuple[AnyArray, int], gradient: Array) -> tuple[Array, None]:
    codes, rows = residuals
    one_hot = jax.nn.one_hot(codes.reshape(-1), rows, dtype=dtype)
    flat = gradient.astype(dtype).reshape(-1, gradient.shape[-1])
    precision = "highest" if dtype == "float32" else "default"
    return jnp.einsum("tv,td->vd", one_hot, flat, precision=precision, preferred_element_type=jnp.float32), None


look_up.defvjp(lambda table_VD, codes, dtype: (table_VD[codes], (codes, len(table_VD))), _look_up_backward)


def rotate(x_BSNK: Array, positions_S: Array, config: ModelConfig) -> Array:
    """Rotate pairs of entries of queries or keys, half of them by angles of the row and half by angles of the column.

    Products of queries and keys then depend only on the offset between their positions.
    Source: Su et al. 2021 with base 10,000; two axes as in LlamaGen (Sun et al. 2024).
    """
    quarter = x_BSNK.shape[-1] // 4
    frequencies = 10_000.0 ** (-jnp.arange(quarter) / quarter)
    angles_SK = jnp.concatenate([axis_S[:, None] * frequencies for axis_S in jnp.divmod(positions_S, config.columns)], axis=-1)
    cosine_S1K, sine_S1K = jnp.cos(angles_SK)[:, None], jnp.sin(angles_SK)[:, None]
    a, b = jnp.split(x_BSNK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cosine_S1K - b * sine_S1K, a * sine_S1K + b * cosine_S1K], axis=-1).astype(x_BSNK.dtype)


def drop(x_BSD: Array, keys_B: Array | None, place: Array | int, config: ModelConfig) -> Array:
    """Set `config.dropout` of each image's numbers to zero, drawn from its key and the place in the model, and divide the others by the share that is left.

    Of the places of GPT-2's dropout these are the embedding and what is added to the residual stream, not the weights of attention, which kernels do not give.
    """
    if keys_B is None:
        return x_BSD

    def draw(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - config.dropout, x_BSD.shape[1:])

    kept_BSD = constrain(jax.vmap(draw)(keys_B), "batch", None, None)
    return jnp.where(kept_BSD, x_BSD / (1 - config.dropout), 0)


def dense(x: Array, w: Array, config: ModelConfig, bias: Array | None = None) -> Array:
    """Multiply x [..., D] by w [D, ...] in config.dtype and at config.precision, and add `bias`, of the shape of w without its first axis, in float32.

    The leading axes of x are folded into one: on a CPU, the gradient of a matrix product is twice as fast as that of an einsum over batch and sequence.
    The axes of w are folded too, except where heads are sharded, because the compiler would gather the heads, and where the width is sharded on other devices
    than a CPU's, because it would gather w once more for its gradient.
    """
    fold = not is_divided("heads") and (not is_divided("embed") or on_cpu())
    matrix = w.reshape(len(w), -1) if fold else w
    y = jnp.tensordot(x.astype(config.dtype).reshape(-1, x.shape[-1]), matrix.astype(config.dtype), axes=1, precision=config.precision)
    y = y.reshape(*x.shape[:-1], *w.shape[1:])
    return y if bias is None else (y.astype(jnp.float32) + bias).astype(y.dtype)  # float32, in which the gradient of a bias is summed too


def _pool(x_BSD: Array) -> Array:
    return x_BSD.astype(jnp.float32).mean(axis=1)


def _normal(key: Array, shape: tuple[int, ...], deviation: float) -> nnx.Param:
    return nnx.Param(deviation * jax.random.normal(key, shape, jnp.float32))


def _remat(layer: Callable, config: ModelConfig) -> Callable:
    """Let the backward pass of a layer compute again what `config.remat` does not save.

    A loop keeps forward and backward apart. Without one (all layers unrolled) the compiler would merge what is computed twice, and save it after all.
    """
    if config.remat in ("none", "auto"):  # auto: not decided, because there is no training step
        return layer
    return jax.checkpoint(layer, policy=_is_saved if config.remat == "dots" else None, prevent_cse=config.unroll >= config.layers)


def _is_saved(primitive: Any, *avals: Any, **parameters: Any) -> bool:
    """Save the outputs of matrix products of the weights and of flash attention, which are expensive for their size."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **parameters)
    return bool(dots) or primitive.name.startswith("dot_product_attention_fwd")
