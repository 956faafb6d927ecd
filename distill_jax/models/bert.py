"""One encoder for BERT and the families after it; what differs are its sizes.

The post-norm layer is Devlin et al. 2019 (arXiv 1810.04805); ELECTRA adds a projection
after narrower embeddings (2003.10555), ModernBERT rotary positions, windows and gates
in front of the norms' place (2412.13663), Llama's line root-mean-square norms, shared
key heads and a causal mask. Names of parameters are this file's attribute paths;
``weights.families`` maps them to and from Hugging Face folders. Heads are in
``models.bert_heads``.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.io.errors import UserError
from distill_jax.models.attention import (
    MultiHeadAttention,
    RelativeBias,
    dropout,
    dropout_key,
    rotary_table,
    split_key,
)
from distill_jax.models.disentangled import DistanceRows
from distill_jax.models.encoder_sizes import ACTIVATIONS, BertSizes
from distill_jax.models.linear import Linear
from distill_jax.models.stack import through
from distill_jax.models.t5_layers import RMSNorm
from distill_jax.ops.masked import token_mask
from distill_jax.runtime.placement import rows, weight


class Norm(nnx.Module):
    """Layer normalisation, computed in float32."""

    def __init__(self, width: int, eps: float, use_bias: bool = True):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if use_bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...]
        normal = normal if self.bias is None else normal + self.bias[...]
        return normal.astype(x.dtype)


def norm_of(sizes: BertSizes, width: int | None = None) -> nnx.Module:
    """The family's normalisation of ``width`` features, the model's when None."""
    width = width or sizes.d_model
    if sizes.norm == "rms":
        return RMSNorm(width, eps=sizes.eps, dtype=sizes.activation_dtype)
    return Norm(width, sizes.eps, sizes.norm_bias)


def linear(
    inputs: int, outputs: int, sizes: BertSizes, rngs: nnx.Rngs, use_bias: bool = True
) -> Linear:
    """A projection initialised as BERT's are, in the dtype of the activations."""
    return Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        dtype=jnp.dtype(sizes.activation_dtype),
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
        has_table = sizes.positions in ("table", "buckets")
        self.position = table(sizes.max_positions) if has_table else None
        self.token_type = table(sizes.type_vocab) if sizes.type_vocab else None
        self.norm = norm_of(sizes, sizes.width) if sizes.embedding_norm else None
        self.dtype, self.scale = sizes.activation_dtype, sizes.embedding_scale

    def __call__(
        self, tokens: Int[Array, "M L"], types: Int[Array, "M L"] | None
    ) -> Float[Array, "M L E"]:
        x = jnp.take(self.table(), tokens, axis=0)
        if self.scale != 1.0:
            x = x * np.float32(self.scale)
        if self.position is not None:
            x = x + self.position[: tokens.shape[1]]
        if self.token_type is not None:
            if types is None:
                x = x + self.token_type[0]
            else:
                x = x + jnp.take(self.token_type[...], types, axis=0)
        x = x if self.norm is None else self.norm(x)
        return x.astype(self.dtype)

    def table(self) -> Float[Array, "V E"]:
        """The embeddings of words, float32, as a device reads them."""
        return weight("embeddings.word", self.word[...], jnp.float32)


class EncoderLayer(nnx.Module):
    """Attention and feed-forward, each with a residual and its normalisations."""

    def __init__(self, sizes: BertSizes, *, first: bool = False, rngs: nnx.Rngs):
        d, f = sizes.d_model, sizes.d_ff
        spread = sizes.initializer_range
        scale = sizes.query_scale or sizes.head_dim**-0.5
        self.attention = MultiHeadAttention(
            d,
            sizes.heads,
            sizes.head_dim,
            scale=scale,
            use_bias=sizes.attention_bias,
            rate=sizes.attention_dropout,
            dtype=sizes.activation_dtype,
            stddevs=(spread, spread, spread, spread),
            kv_heads=sizes.kv_heads,
            out_bias=sizes.out_bias,
            norm=(lambda width: norm_of(sizes, width)) if sizes.head_norm else None,
            cap=sizes.logit_cap,
            rngs=rngs,
        )
        with_norm = sizes.first_norm or not first
        self.attention_norm = norm_of(sizes) if with_norm else None
        self.up = linear(d, f, sizes, rngs, sizes.up_bias)
        self.gate = linear(d, f, sizes, rngs, sizes.up_bias) if sizes.gated else None
        self.down = linear(f, d, sizes, rngs, sizes.down_bias)
        self.output_norm = norm_of(sizes)
        both = sizes.place == "both"
        self.attention_post_norm = norm_of(sizes) if both else None
        self.output_post_norm = norm_of(sizes) if both else None
        self.activation, self.place = sizes.activation, sizes.place
        self.rate = sizes.dropout

    def __call__(
        self,
        x: Float[Array, "M L D"],
        mask: Bool[Array, "M L"] | Bool[Array, "M 1 L L"],
        key: Array | None = None,
        *,
        positions: int | None = None,
        bias: Float[Array, "1 H L L"] | None = None,
        rotary: Any = None,
        distances: Float[Array, "R D"] | None = None,
    ) -> Float[Array, "M T D"]:
        """``positions``: how many of the first positions are computed and returned."""
        keys = split_key(key, 3)
        pre = self.place != "post"
        normal = self.attention_norm(x) if pre and self.attention_norm else x
        context = None if positions is None else normal
        if positions is not None:
            x, normal = x[:, :positions], normal[:, :positions]
            bias = None if bias is None else bias[:, :, :positions]
            mask = mask if mask.ndim == 2 else mask[:, :, :positions]
        y = self.attention(
            normal,
            context=context,
            bias=bias,
            mask=mask,
            key=keys[0],
            rotary=rotary,
            distances=distances,
        )
        post_norm: Any = self.attention_post_norm
        y = y if post_norm is None else post_norm(y)
        x = x + dropout(y, self.rate, keys[1])
        norm: Any = self.attention_norm  # pre-norm layers may have none
        x = x if pre else norm(x)
        y = self.feed_forward(self.output_norm(x) if pre else x)
        out_norm: Any = self.output_post_norm
        y = y if out_norm is None else out_norm(y)
        x = x + dropout(y, self.rate, keys[2])
        return x if pre else self.output_norm(x)

    def feed_forward(self, x: Float[Array, "M T D"]) -> Float[Array, "M T D"]:
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activate(self.up(x)))
        return self.down(activate(self.gate(x)) * self.up(x))


class BertEncoder(nnx.Module):
    """Tokens to hidden states."""

    def __init__(self, sizes: BertSizes, *, rngs: nnx.Rngs):
        self.sizes = sizes
        self.embeddings = Embeddings(sizes, rngs=rngs)
        if sizes.width != sizes.d_model or sizes.shared:
            self.project = linear(sizes.width, sizes.d_model, sizes, rngs)
        else:
            self.project = None
        # Assigned once: an attribute that was None cannot become a module.
        self.relative_bias = _relative_bias(sizes, rngs)
        self.distances = (
            DistanceRows(sizes, norm_of(sizes), rngs=rngs)
            if sizes.positions == "disentangled"
            else None
        )
        built = 1 if sizes.shared else sizes.layers
        self.layers = nnx.List(
            [EncoderLayer(sizes, first=i == 0, rngs=rngs) for i in range(built)]
        )
        self.final_norm = None if sizes.place == "post" else norm_of(sizes)

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
        sizes, length = self.sizes, tokens.shape[-1]
        if length > sizes.max_positions:
            raise UserError(
                f"{length} tokens, but the encoder has {sizes.max_positions} positions",
                "shorten QUERY_LENGTH / DOC_LENGTH, or use an encoder that reads more",
            )
        if mask is None:
            mask = token_mask(tokens, sizes.pad_id)
        pairs = pairs and sizes.type_vocab > 1
        types = token_types(tokens, mask, sizes.sep_id) if pairs else None
        keys = split_key(dropout_key(rngs), sizes.layers + 1)
        x = rows(self.embeddings(tokens, types))
        x = dropout(x, sizes.dropout, keys[-1])
        if self.project is not None:
            x = self.project(x)
        bias = None if self.relative_bias is None else self.relative_bias(length)
        dtype = sizes.activation_dtype
        places = None if self.distances is None else self.distances(length, dtype)

        def call(layer, x, key, at, last=None):
            seen, rotary = self.seen(at, mask), self.rotary(at, length)
            how: dict[str, Any] = {"positions": last, "bias": bias, "rotary": rotary}
            return layer(x, seen, key, distances=places, **how)

        how: dict[str, Any] = {"dtype": sizes.activation_dtype, "remat": sizes.remat}
        layers = [self.layers[0 if sizes.shared else i] for i in range(sizes.layers)]
        upto = sizes.layers - (positions is not None)
        # Layers of one form follow each other through one compiled body.
        for _, group in itertools.groupby(range(upto), self.form):
            these = list(group)
            run = functools.partial(call, at=these[0])
            of = [layers[i] for i in these]
            x = through(of, run, x, [keys[i] for i in these], **how)
        run = functools.partial(call, at=sizes.layers - 1, last=positions)
        x = through(layers[upto:], run, x, keys[upto : sizes.layers], **how)
        return x if self.final_norm is None else self.final_norm(x)

    def form(self, layer: int) -> tuple[bool, bool]:
        """What tells layers apart: a window, and the norm that the first may lack."""
        sizes = self.sizes
        marked = layer < len(sizes.windowed) and sizes.windowed[layer]
        return marked, layer == 0 and not sizes.first_norm

    def rotary(self, layer: int, length: int) -> Any:
        """Cosines and sines for a layer, None without rotary positions."""
        sizes = self.sizes
        if sizes.positions != "rotary":
            return None
        marked = layer < len(sizes.windowed) and sizes.windowed[layer]
        if marked and sizes.local_theta is not None:
            return rotary_table(length, sizes.head_dim, sizes.local_theta)
        scaling = sizes.rope_scaling
        return rotary_table(length, sizes.head_dim, sizes.theta, scaling)

    def seen(
        self, layer: int, mask: Bool[Array, "M L"]
    ) -> Bool[Array, "M L"] | Bool[Array, "M 1 L L"]:
        """What the queries of a layer see: tokens that count, near, and not ahead."""
        sizes, length = self.sizes, mask.shape[-1]
        windowed = sizes.has_window(layer, length)
        if not windowed and not sizes.causal:
            return mask
        ahead = np.arange(length)[None, :] - np.arange(length)[:, None]
        allowed = np.ones((length, length), bool)
        if windowed:
            allowed &= np.abs(ahead) <= sizes.window
        if sizes.causal:
            allowed &= ahead <= 0
        return mask[:, None, None, :] & jnp.asarray(allowed)[None, None]


def _relative_bias(sizes: BertSizes, rngs: nnx.Rngs) -> RelativeBias | None:
    if sizes.positions != "buckets":
        return None
    return RelativeBias(
        sizes.heads,
        buckets=sizes.relative_buckets,
        max_distance=sizes.relative_max_distance,
        bidirectional=True,
        stddev=sizes.initializer_range,
        rngs=rngs,
    )


def token_types(
    tokens: Int[Array, "*any L"], mask: Bool[Array, "*any L"], sep_id: int
) -> Int[Array, "*any L"]:
    """1 for unmasked tokens after the first [SEP], else 0."""
    is_sep = (tokens == sep_id).astype(jnp.int32)
    before = jnp.cumsum(is_sep, axis=-1) - is_sep
    return ((before > 0) & mask).astype(jnp.int32)
