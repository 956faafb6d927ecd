"""T5 in flax.nnx: the 1.0, 1.1 and Flan forms, encoder and decoder.

Rerankers read one decoder step, so the decoder has a form of its own for it
(``T5Decoder.first_step``), equal to the general one up to rounding and much cheaper.
Compute runs in the spec's dtype; norms, softmax and scores are float32 always.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.models.attention import dropout, dropout_key, split_key
from distill_jax.models.stack import through
from distill_jax.models.t5_layers import (
    TOKENS,
    DecoderLayer,
    EncoderLayer,
    norm_of,
    relative_bias_of,
)
from distill_jax.models.t5_sizes import SIZES, T5Sizes, sizes
from distill_jax.ops.masked import token_mask
from distill_jax.runtime.placement import rows, weight

__all__ = ["SIZES", "T5", "T5Decoder", "T5Encoder", "T5Sizes", "sizes"]

PAD_ID = 0
START_ID = 0  # T5's decoder starts from the padding token


class T5Encoder(nnx.Module):
    """Tokens to one vector per token.

    Attributes:
        embedding: [V, E]; the decoder and a tied head read it as well.
    """

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.spec = spec
        init = nnx.initializers.normal(1.0)
        self.embedding = nnx.Param(init(rngs.params(), (spec.vocab_size, spec.d_model)))
        common = None if spec.layer_bias else relative_bias_of(spec, True, rngs)
        self.relative_bias = common
        self.layers = nnx.List(
            [EncoderLayer(spec, rngs=rngs) for _ in range(spec.encoder_layers)]
        )
        self.final_norm = norm_of(spec)

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
        x = rows(self.embed(tokens))
        x = dropout(x, rate, keys[-1], broadcast=TOKENS)
        common = self.relative_bias
        bias = None if common is None else common(tokens.shape[1])

        def whole(layer, x, key):
            return layer(x, bias, mask, key)

        def leading(layer, x, key):
            return layer(x, bias, mask, key, positions=positions)

        upto = len(self.layers) - (positions is not None)
        spec = self.spec
        how: dict[str, Any] = {"dtype": spec.activation_dtype, "remat": spec.remat}
        x = through(self.layers[:upto], whole, x, keys, **how)
        x = through(self.layers[upto:], leading, x, keys[upto:], **how)
        return dropout(self.final_norm(x), rate, keys[-2], broadcast=TOKENS)

    def embed(self, tokens: Int[Array, "*L"]) -> Float[Array, "*L E"]:
        return self.table()[tokens].astype(self.spec.activation_dtype)

    def table(self) -> Float[Array, "V E"]:
        """The embeddings, float32, as a device reads them."""
        return weight("embedding", self.embedding[...], jnp.float32)


class T5Decoder(nnx.Module):
    """Target tokens and an encoded source to hidden states.

    The embedding table is the encoder's, so callers hand in embedded targets.
    """

    def __init__(self, spec: T5Sizes, *, rngs: nnx.Rngs):
        self.spec = spec
        common = None if spec.layer_bias else relative_bias_of(spec, False, rngs)
        self.relative_bias = common
        self.layers = nnx.List(
            [DecoderLayer(spec, rngs=rngs) for _ in range(spec.decoder_layers)]
        )
        self.final_norm = norm_of(spec)

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
        bias = None if self.relative_bias is None else self.relative_bias(length)
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]

        def call(layer, x, key):
            return layer(x, encoded, bias, causal, mask, key)

        spec = self.spec
        how: dict[str, Any] = {"dtype": spec.activation_dtype, "remat": spec.remat}
        x = through(self.layers, call, rows(x), keys, **how)
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

        def call(layer, x, key):
            return layer.first_step(x, encoded, mask, key)

        spec = self.spec
        how: dict[str, Any] = {"dtype": spec.activation_dtype, "remat": spec.remat}
        x = through(self.layers, call, x, keys, **how)
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
        if spec.tied:
            table = self.encoder.table()
        else:
            table = weight("lm_head", self.lm_head[...], jnp.float32).T
        if ids is not None:
            table = table[jnp.asarray(ids)]
        return jnp.einsum("...e,we->...w", hidden, table.astype(jnp.float32))
