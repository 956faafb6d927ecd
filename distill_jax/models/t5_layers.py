"""The layers of T5: norm, feed-forward, and the blocks of encoder and decoder.

Each layer of the decoder has two forms: all positions of a target at once, and the
first position alone, which is all that a reranker reads and costs far less.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from distill_jax.models.attention import (
    MASKED,
    MultiHeadAttention,
    RelativeBias,
    dropout,
    split_key,
)
from distill_jax.models.encoder_sizes import ACTIVATIONS
from distill_jax.models.linear import Linear
from distill_jax.models.t5_sizes import T5Sizes

TOKENS = (-2,)  # dropout masks are shared along the token axis, as in T5X


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
    """act(x wi) wo, or (act(x wi_0) * x wi_1) wo."""

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        def linear(size_in, size_out):
            return Linear(
                size_in,
                size_out,
                use_bias=False,
                dtype=jnp.dtype(spec.activation_dtype),
                kernel_init=nnx.initializers.normal(size_in**-0.5),
                rngs=rngs,
            )

        self.gated, self.rate = spec.gated, spec.dropout
        self.activation = spec.feed_forward_activation
        if spec.gated:
            self.wi_0 = linear(spec.d_model, spec.d_ff)
            self.wi_1 = linear(spec.d_model, spec.d_ff)
        else:
            self.wi = linear(spec.d_model, spec.d_ff)
        self.wo = linear(spec.d_ff, spec.d_model)

    def __call__(
        self, x: Float[Array, "B L E"], key: Array | None = None
    ) -> Float[Array, "B L E"]:
        activate = ACTIVATIONS[self.activation]
        if self.gated:
            hidden = activate(self.wi_0(x)) * self.wi_1(x)
        else:
            hidden = activate(self.wi(x))
        return self.wo(dropout(hidden, self.rate, key, broadcast=TOKENS))


def attention_of(spec: T5Sizes, rngs: nnx.Rngs) -> MultiHeadAttention:
    narrow, wide = spec.d_model**-0.5, (spec.heads * spec.d_kv) ** -0.5
    # The query's initial values carry the scale that T5's attention leaves out.
    return MultiHeadAttention(
        spec.d_model,
        spec.heads,
        spec.d_kv,
        rate=spec.dropout,
        dtype=spec.activation_dtype,
        stddevs=((spec.d_model * spec.d_kv) ** -0.5, narrow, narrow, wide),
        rngs=rngs,
    )


def norm_of(spec: T5Sizes) -> RMSNorm:
    return RMSNorm(spec.d_model, eps=spec.eps, dtype=spec.activation_dtype)


def relative_bias_of(
    spec: T5Sizes, bidirectional: bool, rngs: nnx.Rngs
) -> RelativeBias:
    return RelativeBias(
        spec.heads,
        buckets=spec.relative_buckets,
        max_distance=spec.relative_max_distance,
        bidirectional=bidirectional,
        stddev=spec.d_model**-0.5,
        rngs=rngs,
    )


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each after a norm, with residuals."""

    relative_bias: Any  # only where it is not common to all layers

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.rate = spec.dropout
        self.attention_norm = norm_of(spec)
        self.attention = attention_of(spec, rngs)
        self.ffn_norm = norm_of(spec)
        self.ffn = FeedForward(spec, rngs=rngs)
        own = relative_bias_of(spec, True, rngs) if spec.layer_bias else None
        self.relative_bias = own

    def __call__(
        self,
        x: Float[Array, "B L E"],
        bias: Float[Array, "1 H Lq L"] | None,
        mask: Bool[Array, "B L"],
        key: Array | None = None,
        *,
        positions: int | None = None,
    ) -> Float[Array, "B Lq E"]:
        """``positions``: how many of the first positions are computed and returned."""
        keys = split_key(key, 4)
        normal = self.attention_norm(x)
        rows = self.relative_bias(x.shape[1]) if bias is None else bias
        if positions is None:
            mixed = self.attention(normal, bias=rows, mask=mask, key=keys[0])
        else:
            x = x[:, :positions]
            mixed = self.attention(
                normal[:, :positions],
                context=normal,
                bias=rows[:, :, :positions],
                mask=mask,
                key=keys[0],
            )
        x = x + dropout(mixed, self.rate, keys[1], broadcast=TOKENS)
        mixed = self.ffn(self.ffn_norm(x), keys[2])
        return x + dropout(mixed, self.rate, keys[3], broadcast=TOKENS)


class DecoderLayer(nnx.Module):
    """Causal self-attention, cross-attention and feed-forward."""

    relative_bias: Any  # only where it is not common to all layers

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.rate = spec.dropout
        self.self_attention_norm = norm_of(spec)
        self.self_attention = attention_of(spec, rngs)
        self.cross_attention_norm = norm_of(spec)
        self.cross_attention = attention_of(spec, rngs)
        self.ffn_norm = norm_of(spec)
        self.ffn = FeedForward(spec, rngs=rngs)
        own = relative_bias_of(spec, False, rngs) if spec.layer_bias else None
        self.relative_bias = own

    def __call__(
        self,
        x: Float[Array, "B T E"],
        encoded: Float[Array, "B L E"],
        bias: Float[Array, "1 H T T"] | None,
        causal: Bool[Array, "1 1 T T"],
        mask: Bool[Array, "B L"],
        key: Array | None = None,
    ) -> Float[Array, "B T E"]:
        """Teacher-forced: every position of the target at once."""
        keys = split_key(key, 6)

        def drop(y, i):
            return dropout(y, self.rate, keys[i], broadcast=TOKENS)

        bias = self.relative_bias(x.shape[1]) if bias is None else bias
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
    key_kernel = attention.key.weights().astype(dtype).reshape(-1, heads, width)
    value_kernel = attention.value.weights().astype(dtype).reshape(-1, heads, width)
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
