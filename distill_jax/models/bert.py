"""BERT and ELECTRA: sizes and the one encoder that both are.

The layer is the post-norm transformer of Devlin et al. 2019 (arXiv 1810.04805);
ELECTRA (Clark et al. 2020, arXiv 2003.10555) adds a projection behind narrower
embeddings. Names of parameters are this file's attribute paths;
``weights.bert`` maps them to and from Hugging Face folders. Heads are in
``models.bert_heads``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.io.errors import UserError, near
from distill_jax.models.attention import (
    MultiHeadAttention,
    dropout,
    dropout_key,
    split_key,
)
from distill_jax.models.stack import through
from distill_jax.ops.masked import token_mask
from distill_jax.runtime.placement import rows, weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertSizes:
    """The shape of a BERT or ELECTRA encoder.

    Attributes:
        d_model, d_ff, heads, layers: widths and depth.
        embedding_size: width of the embeddings; a projection to ``d_model`` follows
            them when it differs (ELECTRA).
        max_positions: rows of the position table, the longest possible input.
        eps: added to the variance in every layer normalisation.
        activation: "gelu" is the exact one by erf; "gelu_tanh" the approximation.
        dropout: of hidden states and embeddings; ``attention_dropout`` of weights.
        dtype: of the activations; parameters are float32.
        remat: recompute each layer in the backward pass instead of keeping its
            activations: "none", "matmuls" (keep the matrix products), or "full".
        pad_id, sep_id: tokens that the mask and the token types are derived from.
        family: "bert" or "electra": under whose names the weights are written.
    """

    vocab_size: int = 30522
    d_model: int = 768
    d_ff: int = 3072
    heads: int = 12
    layers: int = 12
    embedding_size: int | None = None  # None: as d_model
    max_positions: int = 512
    type_vocab: int = 2
    eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    dtype: str = "float32"
    remat: str = "none"
    pad_id: int = 0
    sep_id: int = 102
    family: str = "bert"

    def __post_init__(self):
        if self.d_model % self.heads:
            raise UserError(
                f"d_model {self.d_model} is not a multiple of {self.heads} heads",
                "choose heads that divides d_model",
            )
        check_choice("BertSizes.activation", self.activation, tuple(ACTIVATIONS))
        check_choice("BertSizes.remat", self.remat, ("none", "matmuls", "full"))
        check_choice("BertSizes.family", self.family, ("bert", "electra"))
        check_choice("BertSizes.dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def width(self) -> int:
        """The width of the embeddings."""
        return self.embedding_size or self.d_model

    def build(self, rngs: nnx.Rngs) -> BertEncoder:
        """The encoder alone, without a head."""
        return BertEncoder(self, rngs=rngs)

    def forward_flops(self, length: int) -> float:
        """Matmul FLOPs of one sequence's forward pass; embedding look-ups are free.

        Attention is counted in full, 4 L^2 d per layer.
        """
        d, f = self.d_model, self.d_ff
        layer = 2 * length * (4 * d * d + 2 * d * f) + 4 * length * length * d
        project = 2 * length * self.width * d if self.width != d else 0
        return float(self.layers * layer + project)


ACTIVATIONS = {
    # As torch computes it; jax.nn.gelu goes by erfc, which costs 2.5 times as much.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5))),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}

# d_model, d_ff, heads, layers, embedding_size
_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "bert-tiny": (128, 512, 2, 2, 128),
    "bert-mini": (256, 1024, 4, 4, 256),
    "bert-small": (512, 2048, 8, 4, 512),
    "bert-medium": (512, 2048, 8, 8, 512),
    "bert-base": (768, 3072, 12, 12, 768),
    "bert-large": (1024, 4096, 16, 24, 1024),
    "minilm-l6": (384, 1536, 12, 6, 384),
    "minilm-l12": (384, 1536, 12, 12, 384),
    "electra-small": (256, 1024, 4, 12, 128),
    "electra-base": (768, 3072, 12, 12, 768),
    "electra-large": (1024, 4096, 16, 24, 1024),
}


def bert_sizes(name: str, **overrides: Any) -> BertSizes:
    """The sizes of a published encoder by its name.

    ``bert_sizes("minilm-l6")``; "base" is short for "bert-base".

    Raises:
        UserError: no such name.
    """
    name = f"bert-{name}" if f"bert-{name}" in _SIZES else name
    if name not in _SIZES:
        raise UserError(
            f"no BERT sizes named {name!r}{near(name, _SIZES)}",
            f"known: {', '.join(_SIZES)}",
        )
    fields = ("d_model", "d_ff", "heads", "layers", "embedding_size")
    family = "electra" if name.startswith("electra") else "bert"
    values = {**dict(zip(fields, _SIZES[name])), "family": family}
    return BertSizes(**{**values, **overrides})


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a value outside of a closed set."""
    if value not in known:
        raise UserError(
            f"{name} = {value!r} is not known", f"choose one of {', '.join(known)}"
        )


class Norm(nnx.Module):
    """Layer normalisation with scale and bias, computed in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


def linear(
    inputs: int, outputs: int, sizes: BertSizes, rngs: nnx.Rngs, use_bias: bool = True
) -> nnx.Linear:
    """A projection initialised as BERT's are, in the dtype of the activations."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        dtype=jnp.dtype(sizes.dtype),
        kernel_init=nnx.initializers.normal(sizes.initializer_range),
        rngs=rngs,
    )


class Embeddings(nnx.Module):
    """Word, position and token type embeddings, summed and normalised."""

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs):
        draw = nnx.initializers.normal(sizes.initializer_range)

        def table(rows: int) -> nnx.Param:
            return nnx.Param(draw(rngs.params(), (rows, sizes.width), jnp.float32))

        self.word = table(sizes.vocab_size)
        self.position = table(sizes.max_positions)
        self.token_type = table(sizes.type_vocab)
        self.norm = Norm(sizes.width, sizes.eps)
        self.dtype = sizes.dtype

    def __call__(
        self, tokens: Int[Array, "M L"], types: Int[Array, "M L"] | None
    ) -> Float[Array, "M L E"]:
        x = jnp.take(self.table(), tokens, axis=0) + self.position[: tokens.shape[1]]
        if types is None:
            x = x + self.token_type[0]
        else:
            x = x + jnp.take(self.token_type[...], types, axis=0)
        return self.norm(x).astype(self.dtype)

    def table(self) -> Float[Array, "V E"]:
        """The embeddings of words, float32, as a device reads them."""
        return weight("embeddings.word", self.word[...], jnp.float32)


class Layer(nnx.Module):
    """Attention and feed-forward, each followed by residual and normalisation."""

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs):
        d, f = sizes.d_model, sizes.d_ff
        spread = sizes.initializer_range
        self.attention = MultiHeadAttention(
            d,
            sizes.heads,
            sizes.head_dim,
            scale=sizes.head_dim**-0.5,
            use_bias=True,
            rate=sizes.attention_dropout,
            dtype=sizes.dtype,
            stddevs=(spread, spread, spread, spread),
            rngs=rngs,
        )
        self.attention_norm = Norm(d, sizes.eps)
        self.up = linear(d, f, sizes, rngs)
        self.down = linear(f, d, sizes, rngs)
        self.output_norm = Norm(d, sizes.eps)
        self.activation = sizes.activation
        self.rate = sizes.dropout

    def __call__(
        self,
        x: Float[Array, "M L D"],
        mask: Bool[Array, "M L"],
        key: Array | None = None,
        *,
        positions: int | None = None,
    ) -> Float[Array, "M T D"]:
        """``positions``: only the first so many are computed and returned."""
        keys = split_key(key, 3)
        context = None if positions is None else x
        x = x[:, :positions]
        y = self.attention(x, context=context, mask=mask, key=keys[0])
        x = self.attention_norm(x + dropout(y, self.rate, keys[1]))
        y = self.down(ACTIVATIONS[self.activation](self.up(x)))
        return self.output_norm(x + dropout(y, self.rate, keys[2]))


class BertEncoder(nnx.Module):
    """Tokens to hidden states."""

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs):
        self.sizes = sizes
        self.embeddings = Embeddings(sizes, rngs=rngs)
        if sizes.width != sizes.d_model:
            self.project = linear(sizes.width, sizes.d_model, sizes, rngs)
        else:
            self.project = None
        self.layers = nnx.List([Layer(sizes, rngs=rngs) for _ in range(sizes.layers)])

    def __call__(
        self,
        tokens: Int[Array, "M L"],
        *,
        mask: Bool[Array, "M L"] | None = None,
        positions: int | None = None,
        pairs: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "M T D"]:
        """Hidden states of the last layer.

        Args:
            tokens: padded with ``pad_id`` at the end.
            mask: True for tokens that count; None means up to the last non-pad token.
            positions: how many leading positions the caller reads. The last layer
                computes keys and values for all tokens, everything else for these
                only: exact, forward and backward, and 5/6 of a layer cheaper for one.
            pairs: token type 1 for everything after the first [SEP].
            rngs: given means training.

        Raises:
            UserError: L is more than ``max_positions``.
        """
        sizes = self.sizes
        if tokens.shape[-1] > sizes.max_positions:
            raise UserError(
                f"{tokens.shape[-1]} tokens, but the encoder has {sizes.max_positions}"
                " positions",
                "shorten QUERY_LENGTH / DOC_LENGTH, or use an encoder that reads more",
            )
        if mask is None:
            mask = token_mask(tokens, sizes.pad_id)
        types = token_types(tokens, mask, sizes.sep_id) if pairs else None
        keys = split_key(dropout_key(rngs), sizes.layers + 1)
        x = rows(self.embeddings(tokens, types))
        x = dropout(x, sizes.dropout, keys[-1])
        if self.project is not None:
            x = self.project(x)

        def whole(layer, x, key):
            return layer(x, mask, key)

        def leading(layer, x, key):
            return layer(x, mask, key, positions=positions)

        upto = sizes.layers - (positions is not None)
        how = {"dtype": sizes.dtype, "remat": sizes.remat}
        x = through(self.layers[:upto], whole, x, keys, **how)
        return through(self.layers[upto:], leading, x, keys[upto:], **how)


def token_types(
    tokens: Int[Array, "*any L"], mask: Bool[Array, "*any L"], sep_id: int
) -> Int[Array, "*any L"]:
    """1 for the tokens after the first [SEP] as far as ``mask`` reaches, else 0."""
    is_sep = (tokens == sep_id).astype(jnp.int32)
    before = jnp.cumsum(is_sep, axis=-1) - is_sep
    return ((before > 0) & mask).astype(jnp.int32)
