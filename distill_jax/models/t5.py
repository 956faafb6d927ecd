"""T5 in flax.nnx: the 1.0, 1.1 and Flan forms, encoder and decoder.

Rerankers read one decoder step, so the decoder has a form of its own for it
(``T5Decoder.first_step``), equal to the general one up to rounding and much cheaper.
Compute runs in the spec's dtype; norms, softmax and scores are float32 always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.ir.errors import UserError, near
from distill_jax.models.attention import (
    MASKED,
    MultiHeadAttention,
    RelativeBias,
    dropout,
    dropout_key,
    fused,
    split_key,
)
from distill_jax.ops.masked import token_mask

PAD_ID = 0
START_ID = 0  # T5's decoder starts from the padding token
TOKENS = (-2,)  # dropout masks are shared along the token axis, as in T5X


_POLICIES = {
    "none": None,
    "matmuls": "dots_with_no_batch_dims_saveable",
    "full": "nothing_saveable",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Sizes:
    """The sizes of a T5, and how it computes.

    Attributes:
        decoder_layers: 0 builds an encoder only.
        gated: the GELU-gated feed-forward of T5 1.1 and Flan; False is 1.0's ReLU.
        tied: the output head is the embedding table (T5 1.0).
        scale_logits: whether the decoder's output is scaled by ``d_model ** -0.5``
            before the head. None means as ``tied`` says, which holds for every
            published T5.
        dropout: rate in training; inference has none.
        dtype: of the matrix products: "float32" or "bfloat16". float16 is refused.
        remat: recompute each layer in the backward pass instead of keeping its
            activations: "none", "matmuls" (keep the matrix products), or "full".
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_ff: int = 2048
    heads: int = 8
    d_kv: int = 64
    encoder_layers: int = 6
    decoder_layers: int = 6
    gated: bool = False
    tied: bool = True
    scale_logits: bool | None = None
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dropout: float = 0.1
    eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"T5 cannot compute in {self.dtype}: it overflows",
                'set dtype to "bfloat16" or "float32"',
            )
        if self.remat not in _POLICIES:
            raise UserError(
                f"remat={self.remat!r} is not known{near(self.remat, _POLICIES)}",
                f"set it to one of {', '.join(_POLICIES)}",
            )

    def build(self, rngs: nnx.Rngs) -> T5:
        return T5(self, rngs=rngs)

    def forward_flops(self, length: int, *, absorbed: bool = True) -> float:
        """Matmul FLOPs to encode ``length`` tokens and decode one step.

        Attention is counted in full; look-ups and the head's few rows are free.

        Args:
            absorbed: as computed here; False is with keys and values of all source
                tokens projected in every decoder layer.
        """
        d, inner = self.d_model, self.heads * self.d_kv
        ffn = (3 if self.gated else 2) * d * self.d_ff
        encoder = 2 * length * (4 * d * inner + ffn) + 4 * length * length * inner
        # Self-attention over one token is value and out only.
        once = 2 * (2 * d * inner + 2 * d * inner + ffn)
        if absorbed:
            cross = 2 * (2 * d * inner) + 4 * length * d * self.heads
        else:
            cross = 2 * length * (2 * d * inner) + 4 * length * inner
        return float(
            self.encoder_layers * encoder + self.decoder_layers * (once + cross)
        )

    def replace(self, **changes: Any) -> T5Sizes:
        return dataclasses.replace(self, **changes)


def _sizes(d_model, d_ff, heads, layers, d_kv=64, **more) -> T5Sizes:
    return T5Sizes(
        d_model=d_model,
        d_ff=d_ff,
        heads=heads,
        d_kv=d_kv,
        encoder_layers=layers,
        decoder_layers=more.pop("decoder_layers", layers),
        **more,
    )


_V1_1 = {"gated": True, "tied": False}
SIZES: dict[str, T5Sizes] = {
    # For two CPU cores: real in everything but size.
    "tiny": _sizes(128, 512, 4, 2, d_kv=32, decoder_layers=1),
    "mini": _sizes(256, 1024, 4, 4, decoder_layers=1),
    "small": _sizes(512, 2048, 8, 6),
    "base": _sizes(768, 3072, 12, 12),
    "large": _sizes(1024, 4096, 16, 24),
    "3b": _sizes(1024, 16384, 32, 24, d_kv=128),
    "11b": _sizes(1024, 65536, 128, 24, d_kv=128),
    # T5 1.1; Flan-T5 has the same shapes.
    "v1_1_small": _sizes(512, 1024, 6, 8, **_V1_1),
    "v1_1_base": _sizes(768, 2048, 12, 12, **_V1_1),
    "v1_1_large": _sizes(1024, 2816, 16, 24, **_V1_1),
    "v1_1_xl": _sizes(2048, 5120, 32, 24, **_V1_1),
    "v1_1_xxl": _sizes(4096, 10240, 64, 24, **_V1_1),
}


def sizes(name: str = "small", **changes: Any) -> T5Sizes:
    """The sizes of a published T5 by name, with changes: ``sizes("base", remat=...)``.

    Raises:
        UserError: no such size.
    """
    if name not in SIZES:
        raise UserError(
            f"no T5 size {name!r}{near(name, SIZES)}", f"one of {', '.join(SIZES)}"
        )
    return dataclasses.replace(SIZES[name], **changes)


def rematerialised(function: Callable, policy: str) -> Callable:
    """``function`` under ``jax.checkpoint`` with the spec's policy."""
    if policy == "none":
        return function
    return jax.checkpoint(
        function, policy=getattr(jax.checkpoint_policies, _POLICIES[policy])
    )


class RMSNorm(nnx.Module):
    """T5's layer norm: no mean, no bias; statistics in float32."""

    def __init__(self, features: int, *, eps: float, dtype: str):
        self.scale = nnx.Param(jnp.ones((features,)))
        self.eps, self.dtype = eps, jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*L E"]) -> Float[Array, "*L E"]:
        wide = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normal = wide * jax.lax.rsqrt(variance + self.eps)
        return (normal * self.scale[...]).astype(self.dtype)


class FeedForward(nnx.Module):
    """ReLU(x wi) wo, or (GELU(x wi_0) * x wi_1) wo with the tanh form of GELU."""

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        def linear(size_in, size_out):
            return nnx.Linear(
                size_in,
                size_out,
                use_bias=False,
                dtype=jnp.dtype(spec.dtype),
                kernel_init=nnx.initializers.normal(size_in**-0.5),
                rngs=rngs,
            )

        self.gated, self.rate = spec.gated, spec.dropout
        if spec.gated:
            self.wi_0 = linear(spec.d_model, spec.d_ff)
            self.wi_1 = linear(spec.d_model, spec.d_ff)
        else:
            self.wi = linear(spec.d_model, spec.d_ff)
        self.wo = linear(spec.d_ff, spec.d_model)

    def __call__(
        self, x: Float[Array, "B L E"], key: Array | None = None
    ) -> Float[Array, "B L E"]:
        if self.gated:
            gate, up = fused((self.wi_0, self.wi_1), x)
            hidden = jax.nn.gelu(gate, approximate=True) * up
        else:
            hidden = jax.nn.relu(self.wi(x))
        return self.wo(dropout(hidden, self.rate, key, broadcast=TOKENS))


def _attention(spec: T5Sizes, rngs: nnx.Rngs) -> MultiHeadAttention:
    narrow, wide = spec.d_model**-0.5, (spec.heads * spec.d_kv) ** -0.5
    # The query's initial values carry the scale that T5's attention leaves out.
    return MultiHeadAttention(
        spec.d_model,
        spec.heads,
        spec.d_kv,
        rate=spec.dropout,
        dtype=spec.dtype,
        stddevs=((spec.d_model * spec.d_kv) ** -0.5, narrow, narrow, wide),
        rngs=rngs,
    )


def _norm(spec: T5Sizes) -> RMSNorm:
    return RMSNorm(spec.d_model, eps=spec.eps, dtype=spec.dtype)


def _relative_bias(spec: T5Sizes, bidirectional: bool, rngs: nnx.Rngs) -> RelativeBias:
    return RelativeBias(
        spec.heads,
        buckets=spec.relative_buckets,
        max_distance=spec.relative_max_distance,
        bidirectional=bidirectional,
        stddev=spec.d_model**-0.5,
        rngs=rngs,
    )


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each behind a norm, with residuals."""

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.rate = spec.dropout
        self.attention_norm = _norm(spec)
        self.attention = _attention(spec, rngs)
        self.ffn_norm = _norm(spec)
        self.ffn = FeedForward(spec, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L E"],
        bias: Float[Array, "1 H Lq L"],
        mask: Bool[Array, "B L"],
        key: Array | None = None,
        *,
        positions: int | None = None,
    ) -> Float[Array, "B Lq E"]:
        """``positions``: only the first so many positions are computed and returned."""
        keys = split_key(key, 4)
        normal = self.attention_norm(x)
        if positions is None:
            mixed = self.attention(normal, bias=bias, mask=mask, key=keys[0])
        else:
            x = x[:, :positions]
            mixed = self.attention(
                normal[:, :positions],
                context=normal,
                bias=bias[:, :, :positions],
                mask=mask,
                key=keys[0],
            )
        x = x + dropout(mixed, self.rate, keys[1], broadcast=TOKENS)
        mixed = self.ffn(self.ffn_norm(x), keys[2])
        return x + dropout(mixed, self.rate, keys[3], broadcast=TOKENS)


class T5Encoder(nnx.Module):
    """Tokens to one vector per token.

    Attributes:
        embedding: [V, E]; the decoder and a tied head read it as well.
    """

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.spec = spec
        init = nnx.initializers.normal(1.0)
        self.embedding = nnx.Param(init(rngs.params(), (spec.vocab_size, spec.d_model)))
        self.relative_bias = _relative_bias(spec, True, rngs)
        self.layers = nnx.List(
            [EncoderLayer(spec, rngs=rngs) for _ in range(spec.encoder_layers)]
        )
        self.final_norm = _norm(spec)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        *,
        mask: Bool[Array, "B L"] | None = None,
        positions: int | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B Lq E"]:
        """Encodes token ids.

        Args:
            tokens: padded with 0.
            mask: True for tokens that count; None means up to the last non-pad token.
            positions: how many leading positions the caller reads. The last layer is
                computed for these only: exact, and 5/6 of a layer cheaper for one.
            rngs: given means training.
        """
        if mask is None:
            mask = token_mask(tokens, PAD_ID)
        key = dropout_key(rngs)
        keys = split_key(key, len(self.layers) + 2)
        rate = self.spec.dropout
        x = self.embed(tokens)
        x = dropout(x, rate, keys[-1], broadcast=TOKENS)
        bias = self.relative_bias(tokens.shape[1])
        for i, layer in enumerate(self.layers):
            last = positions if i == len(self.layers) - 1 else None

            def run(x, bias, key, layer=layer, last=last):
                return layer(x, bias, mask, key, positions=last)

            x = rematerialised(run, self.spec.remat)(x, bias, keys[i])
        return dropout(self.final_norm(x), rate, keys[-2], broadcast=TOKENS)

    def embed(self, tokens: Int[Array, "*L"]) -> Float[Array, "*L E"]:
        return self.embedding[...][tokens].astype(self.spec.dtype)


class DecoderLayer(nnx.Module):
    """Causal self-attention, cross-attention and feed-forward."""

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.rate = spec.dropout
        self.self_attention_norm = _norm(spec)
        self.self_attention = _attention(spec, rngs)
        self.cross_attention_norm = _norm(spec)
        self.cross_attention = _attention(spec, rngs)
        self.ffn_norm = _norm(spec)
        self.ffn = FeedForward(spec, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T E"],
        encoded: Float[Array, "B L E"],
        bias: Float[Array, "1 H T T"],
        causal: Bool[Array, "1 1 T T"],
        mask: Bool[Array, "B L"],
        key: Array | None = None,
    ) -> Float[Array, "B T E"]:
        """Teacher-forced: every position of the target at once."""
        keys = split_key(key, 6)

        def drop(y, i):
            return dropout(y, self.rate, keys[i], broadcast=TOKENS)

        mixed = self.self_attention(
            self.self_attention_norm(x), bias=bias, mask=causal, key=keys[0]
        )
        x = x + drop(mixed, 1)
        mixed = self.cross_attention(
            self.cross_attention_norm(x), context=encoded, mask=mask, key=keys[2]
        )
        x = x + drop(mixed, 3)
        return x + drop(self.ffn(self.ffn_norm(x), keys[4]), 5)

    def first_step(
        self,
        x: Float[Array, "B1 E"],
        encoded: Float[Array, "B L E"],
        mask: Bool[Array, "B L"],
        key: Array | None = None,
    ) -> Float[Array, "B1 E"]:
        """One target token; ``B1`` is 1 while x is the same for all examples.

        Over a single token the softmax is 1, so self-attention is out(value(x)).
        """
        keys = split_key(key, 6)
        drop = self.rate
        attention = self.self_attention
        values = attention.split(attention.value(self.self_attention_norm(x)))
        values = dropout(values, drop, keys[0], broadcast=(-1,))
        mixed = attention.out(values.reshape(*x.shape[:-1], -1))
        x = x + dropout(mixed, drop, keys[1])
        mixed = absorbed(
            self.cross_attention, self.cross_attention_norm(x), encoded, mask, keys[2]
        )
        x = x + dropout(mixed, drop, keys[3])
        mixed = self.ffn(self.ffn_norm(x)[:, None], keys[4])[:, 0]
        return x + dropout(mixed, drop, keys[5])


def absorbed(
    attention: MultiHeadAttention,
    x: Float[Array, "B1 E"],
    encoded: Float[Array, "B L E"],
    mask: Bool[Array, "B L"],
    key: Array | None = None,
) -> Float[Array, "B E"]:
    """Cross-attention of one token without projecting keys or values of the source.

    ``q . (Wk h) = (Wk^T q) . h``, and ``sum_s a_s Wv h_s = Wv (sum_s a_s h_s)``: the
    projections move from the L source tokens to the one target token. 4 L E H
    operations instead of 4 L E (H D), exact up to rounding.
    """
    heads, width = attention.heads, attention.head_dim
    dtype = encoded.dtype
    query = attention.split(attention.query(x))
    key_kernel = attention.key.kernel[...].astype(dtype).reshape(-1, heads, width)
    value_kernel = attention.value.kernel[...].astype(dtype).reshape(-1, heads, width)
    looked_for = jnp.einsum("bhd,ehd->beh", query, key_kernel)
    # [L, E] @ [E, H], as stored: of the operands only the small result is transposed.
    # The first layer's query is the same for all examples.
    form = "ble,eh->blh" if looked_for.shape[0] == 1 else "ble,beh->blh"
    looked_for = looked_for[0] if looked_for.shape[0] == 1 else looked_for
    logits = jnp.einsum(form, encoded, looked_for, preferred_element_type=jnp.float32)
    logits = logits.swapaxes(1, 2)
    logits = jnp.where(mask[:, None, :], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
    weights = dropout(weights, attention.rate, key)
    mixed = jnp.einsum("bhl,ble->bhe", weights, encoded)
    context = jnp.einsum("bhe,ehd->bhd", mixed, value_kernel)
    return attention.out(context.reshape(context.shape[0], -1))


class T5Decoder(nnx.Module):
    """Target tokens and an encoded source to hidden states.

    The embedding table is the encoder's, so callers hand in embedded targets.
    """

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.spec = spec
        self.relative_bias = _relative_bias(spec, False, rngs)
        self.layers = nnx.List(
            [DecoderLayer(spec, rngs=rngs) for _ in range(spec.decoder_layers)]
        )
        self.final_norm = _norm(spec)

    def __call__(
        self,
        x: Float[Array, "B T E"],
        encoded: Float[Array, "B L E"],
        mask: Bool[Array, "B L"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T E"]:
        """Every position of a given target at once (training a query generator)."""
        keys = split_key(dropout_key(rngs), len(self.layers) + 2)
        x = dropout(x, self.spec.dropout, keys[-1], broadcast=TOKENS)
        length = x.shape[1]
        bias = self.relative_bias(length)
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
        for layer, key in zip(self.layers, keys):

            def run(x, encoded, bias, key, layer=layer):
                return layer(x, encoded, bias, causal, mask, key)

            x = rematerialised(run, self.spec.remat)(x, encoded, bias, key)
        x = self.final_norm(x)
        return dropout(x, self.spec.dropout, keys[-2], broadcast=TOKENS)

    def first_step(
        self,
        start: Float[Array, "E"],
        encoded: Float[Array, "B L E"],
        mask: Bool[Array, "B L"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B E"]:
        """The hidden state of the first target position.

        Its input is the start token for every example, so up to the first
        cross-attention there is one vector to compute, not B (in training dropout
        makes them differ).
        """
        keys = split_key(dropout_key(rngs), len(self.layers) + 2)
        rate = self.spec.dropout
        x = start[None]
        if rngs is not None and rate > 0:
            x = jnp.broadcast_to(x, (encoded.shape[0], x.shape[1]))
            x = dropout(x, rate, keys[-1])
        for layer, key in zip(self.layers, keys):

            def run(x, encoded, key, layer=layer):
                return layer.first_step(x, encoded, mask, key)

            x = rematerialised(run, self.spec.remat)(x, encoded, key)
        return dropout(self.final_norm(x), rate, keys[-2])


class T5(nnx.Module):
    """Encoder, decoder and output head; an encoder alone when it has no layers."""

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.spec = spec
        self.encoder = T5Encoder(spec, rngs=rngs)
        if spec.decoder_layers:
            self.decoder = T5Decoder(spec, rngs=rngs)
            if not spec.tied:
                init = nnx.initializers.normal(spec.d_model**-0.5)
                shape = (spec.d_model, spec.vocab_size)
                self.lm_head = nnx.Param(init(rngs.params(), shape))

    def first_step_logits(
        self,
        tokens: Int[Array, "B L"],
        ids: tuple[int, ...],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B W"]:
        """Logits of the words ``ids`` at the first decoder step, in float32."""
        mask = token_mask(tokens, PAD_ID)
        encoded = self.encoder(tokens, mask=mask, rngs=rngs)
        start = self.encoder.embed(jnp.asarray(START_ID))
        hidden = self.decoder.first_step(start, encoded, mask, rngs=rngs)
        return self.logits(hidden, ids)

    def target_logits(
        self,
        tokens: Int[Array, "B L"],
        targets: Int[Array, "B T"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of every target position given the targets before it (float32)."""
        mask = token_mask(tokens, PAD_ID)
        encoded = self.encoder(tokens, mask=mask, rngs=rngs)
        shifted = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=START_ID)[:, :-1]
        hidden = self.decoder(self.encoder.embed(shifted), encoded, mask, rngs=rngs)
        return self.logits(hidden)

    def logits(
        self, hidden: Float[Array, "*B E"], ids: tuple[int, ...] | None = None
    ) -> Float[Array, "*B W"]:
        """The head over the whole vocabulary, or over the rows of ``ids`` only.

        T5 1.0 multiplies by ``d_model ** -0.5`` before its tied head; the untied head
        of 1.1 and Flan is not scaled.
        """
        spec = self.spec
        hidden = hidden.astype(jnp.float32)
        if spec.tied if spec.scale_logits is None else spec.scale_logits:
            hidden = hidden * spec.d_model**-0.5
        table = self.encoder.embedding[...] if spec.tied else self.lm_head[...].T
        if ids is not None:
            table = table[jnp.asarray(ids)]
        return jnp.einsum("...e,we->...w", hidden, table.astype(jnp.float32))
