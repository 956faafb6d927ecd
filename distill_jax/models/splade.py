"""SPLADE: a sparse vector over the vocabulary (Formal et al. 2021, arXiv 2109.10086).

The masked language model's logits of all tokens, through an activation that saturates,
and the greatest over the tokens: term weights of a text, expansion included.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.io.errors import UserError
from distill_jax.models.bert import BertEncoder
from distill_jax.models.bert_heads import VocabularyHead
from distill_jax.models.dual_encoder import TwoTowers
from distill_jax.models.encoder_sizes import BertSizes, check_choice
from distill_jax.models.encoder_spec import EncoderSpec
from distill_jax.ops.masked import fill, token_mask
from distill_jax.ops.vector_form import VectorForm

POOLINGS = ("max", "sum")
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "log1p_relu": lambda x: jnp.log1p(jax.nn.relu(x)),
    "log1p_log1p_relu": lambda x: jnp.log1p(jnp.log1p(jax.nn.relu(x))),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpladeSpec(EncoderSpec):
    """A sparse encoder. Backbone, prefixes and lengths: see ``EncoderSpec``.

    Attributes:
        tied: one model for queries and documents.
        pooling: "max" or "sum" over the tokens.
        query_activation, doc_activation: "log1p_relu", "relu", "log1p_log1p_relu".
        head_activation: of the masked language model's head.
        inference_free: a query's vector is a weight for each of its words, read from a
            table float32[V]; only documents pass the encoder, which has to be ``tied``.
    """

    kind: ClassVar[str] = "splade"
    vectors: ClassVar[VectorForm] = VectorForm.SPARSE

    backbone: BertSizes
    tied: bool = True
    pooling: str = "max"
    query_activation: str = "log1p_relu"
    doc_activation: str = "log1p_relu"
    head_activation: str = "gelu"
    inference_free: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.backbone, BertSizes):
            raise UserError(
                "SPLADE reads a masked language model's head, which T5 does not have",
                "use a BERT or ELECTRA backbone, e.g. bert:tiny",
            )
        check_choice("SpladeSpec.pooling", self.pooling, POOLINGS)
        for name in ("query_activation", "doc_activation"):
            check_choice(f"SpladeSpec.{name}", getattr(self, name), tuple(ACTIVATIONS))
        if self.inference_free and not self.tied:
            raise UserError(
                "an inference_free SPLADE has no query encoder", "leave out tied=False"
            )

    @property
    def width(self) -> int:
        """V, the number of features of a vector."""
        return self.backbone.vocab_size

    def build(self, rngs: nnx.Rngs) -> Splade:
        return Splade(self, rngs=rngs)


class SpladeTower(nnx.Module):
    """Tokens to pooled logits over the vocabulary, before the activation."""

    def __init__(self, spec: SpladeSpec, *, rngs: nnx.Rngs):
        sizes: Any = spec.backbone
        self.spec, self.pad_id = spec, sizes.pad_id
        self.encoder = BertEncoder(sizes, rngs=rngs)
        self.mlm = VocabularyHead(sizes, rngs=rngs, activation=spec.head_activation)

    def __call__(
        self,
        tokens: Int[Array, "M L"],
        *,
        activation: str,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "M V"]:
        """Term weights, float32 and never negative."""
        mask = token_mask(tokens, self.pad_id)
        hidden = self.mlm.transform(self.encoder(tokens, mask=mask, rngs=rngs))
        activate = ACTIVATIONS[activation]
        table = self.encoder.embeddings.table()

        def greatest(table, bias):
            # The activations grow: the greatest logit gives the greatest weight.
            return activate(_greatest(_logits(hidden, table, bias), mask))

        def total(table, bias):
            weights = activate(_logits(hidden, table, bias))
            return fill(weights, mask[..., None]).sum(1)

        pool = greatest if self.spec.pooling == "max" else total
        join = _in_turn if rngs is None else _at_once
        return join(pool, table, self.mlm.bias[...])


class Splade(TwoTowers):
    """Sparse vectors; the score is their inner product."""

    def __init__(self, spec: SpladeSpec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        if spec.inference_free:
            self.query_weights = nnx.Param(jnp.ones(spec.width))

    def build_tower(self, spec: SpladeSpec, rngs: nnx.Rngs) -> SpladeTower:
        return SpladeTower(spec, rngs=rngs)

    def encode_queries(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M V"]:
        """Term weights of queries."""
        if self.spec.inference_free:
            counted = token_mask(tokens, self.tower.pad_id).astype(jnp.float32)
            rows = jnp.arange(len(tokens))[:, None]
            there = jnp.zeros((len(tokens), self.spec.width)).at[rows, tokens]
            return there.max(counted) * self.query_weights[...]
        tower = self.tower if self.spec.tied else self.query_tower
        return tower(tokens, activation=self.spec.query_activation, rngs=rngs)

    def encode_docs(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M V"]:
        """Term weights of documents."""
        tower = self.tower if self.spec.tied else self.doc_tower
        return tower(tokens, activation=self.spec.doc_activation, rngs=rngs)

    def regularise(
        self, rep: dict[str, Array], batch: Any
    ) -> dict[str, Float[Array, ""]]:
        """FLOPS of queries and of documents, to be weighted and added to the loss.

        :math:`\\sum_v (\\operatorname{mean}_i w_{iv})^2`, the expected cost of a sparse
        inner product (Paria et al. 2020); padded documents are left out.
        """
        where = batch.targets.where
        docs = rep["d"].reshape(-1, rep["d"].shape[-1])
        return {
            "flops_queries": flops(rep["q"], where.any(-1)),
            "flops_docs": flops(docs, where.reshape(-1)),
        }


def flops(weights: Float[Array, "M V"], where: Bool[Array, "M"]) -> Float[Array, ""]:
    """Sum over terms of the squared mean weight over the texts that count."""
    count = jnp.maximum(where.sum(), 1).astype(weights.dtype)
    return jnp.square(fill(weights, where[:, None]).sum(0) / count).sum()


def _logits(hidden, table, bias):
    return (
        jnp.einsum(
            "mle,ve->mlv",
            hidden,
            table.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        + bias
    )


def _greatest(logits, mask):
    # The activations are 0 from 0 down: that is also what a text without tokens gets.
    return fill(logits, mask[..., None]).max(1)


TILE = 8192
LOOPED = 2048
"""Words of a tile, in training and in inference."""


def _in_turn(pool, table, bias):
    """``pool`` of tiles of the vocabulary, one after the other, for inference.

    No more than one tile's logits are there at a time. The last tile goes over some
    of the words of the one before it, so that all are of one size.
    """
    words = table.shape[0]
    if words <= LOOPED:
        return pool(table, bias)

    def step(i, weights):
        start = jnp.minimum(i * LOOPED, words - LOOPED)
        tile = jax.lax.dynamic_slice_in_dim(table, start, LOOPED)
        part = pool(tile, jax.lax.dynamic_slice_in_dim(bias, start, LOOPED))
        return jax.lax.dynamic_update_slice(weights, part, (0, start))

    shape = jax.eval_shape(pool, table[:1], bias[:1]).shape[0], words
    return jax.lax.fori_loop(0, -(-words // LOOPED), step, jnp.zeros(shape))


def _at_once(pool, table, bias):
    """``pool`` of tiles of the vocabulary, joined: the gradient needs no loop.

    Each tile's logits are recomputed in the backward pass.
    """
    if table.shape[0] <= TILE:
        return pool(table, bias)
    tile = jax.checkpoint(pool)
    parts = [
        tile(table[i : i + TILE], bias[i : i + TILE])
        for i in range(0, table.shape[0], TILE)
    ]
    return jnp.concatenate(parts, axis=-1)
