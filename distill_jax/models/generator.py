"""Query generator: a T5 that reads a document and writes the query it answers.

Trained as every student is, from batches of queries and documents: its score of a pair
is how likely the query is given the document, and ``losses.query_likelihood`` raises
it. Source: docT5query (Nogueira and Lin 2019).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from distill_jax.batches import DualBatch
from distill_jax.io.errors import UserError
from distill_jax.models.t5 import PAD_ID, T5, T5Sizes
from distill_jax.ops import masked


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """How a query generator is built and fed.

    Attributes:
        backbone: sizes of the T5; it must have a decoder.
        query_length, doc_length: tokens kept of each, the end token included.
        query_prefix, doc_prefix: texts before each, "" for none.
    """

    kind: ClassVar[str] = "generator"
    vectors: ClassVar[None] = None
    documents: ClassVar[int] = 0
    inputs: ClassVar[tuple[str, ...]] = ("sides",)

    backbone: Any = dataclasses.field(default_factory=T5Sizes)
    query_length: int = 48
    doc_length: int = 384
    query_prefix: str = ""
    doc_prefix: str = ""

    def __post_init__(self):
        if not getattr(self.backbone, "decoder_layers", 0):
            raise UserError(
                "a query generator needs a T5 with a decoder",
                "start from a T5 checkpoint, e.g. a Flan-T5",
            )

    def resolved(self, tokenizer: Any) -> GeneratorSpec:
        """This spec: it holds no token ids."""
        del tokenizer
        return self

    def build(self, rngs: nnx.Rngs) -> Generator:
        return Generator(self, rngs=rngs)


class Generator(nnx.Module):
    """(query, document) to the query's mean log-probability per token; [B, N]."""

    def __init__(self, spec: GeneratorSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        self.backbone = T5(spec.backbone, rngs=rngs)

    def score(
        self,
        docs: Int[Array, "M L"],
        queries: Int[Array, "M T"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "M"]:
        """Mean log p(token | tokens before it, document), the end token included."""
        logits = self.backbone.target_logits(docs, queries, rngs=rngs)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        chosen = jnp.take_along_axis(log_p, queries[..., None], -1)[..., 0]
        where = masked.token_mask(queries, PAD_ID)
        number = jnp.maximum(jnp.sum(where, -1), 1)
        return jnp.sum(masked.fill(chosen, where), -1) / number

    def represent(
        self, batch: DualBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        size, number, length = batch.doc_tokens.shape
        queries = jnp.repeat(batch.query_tokens, number, axis=0)
        docs = batch.doc_tokens.reshape(size * number, length)
        return self.score(docs, queries, rngs=rngs).reshape(size, number)

    def scores(self, rep: Float[Array, "B N"], batch: DualBatch) -> Float[Array, "B N"]:
        return rep

    def __call__(
        self, batch: DualBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        return self.scores(self.represent(batch, rngs=rngs), batch)
