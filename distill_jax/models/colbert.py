"""ColBERT: one vector per token, late interaction (Khattab and Zaharia 2020).

The layout of PyLate and of Stanford's code: position 1 of a text is the marker [Q] or
[D]; queries are filled up with [MASK] to one length, and those positions count; of
documents, padding and punctuation do not. Vectors are projected without bias and have
unit length.
"""

from __future__ import annotations

import dataclasses
import string
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.batches import DualBatch
from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.encoder_spec import EncoderSpec, build_encoder, pad_id
from distill_jax.ops.masked import token_mask
from distill_jax.ops.similarity import maxsim_cross, maxsim_lists, normalise
from distill_jax.ops.vector_form import VectorForm

# The template leaves the marker's place to a token that every vocabulary has: markers
# are often no piece that a tokenizer can find in a text ([unused0]).
BERT_WRAP = "{cls} {mask} {} {sep}"
UNMARKED_WRAP = "{cls} {} {sep}"
T5_WRAP = "<extra_id_0> {}</s>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColbertSpec(EncoderSpec):
    """A late-interaction encoder. Backbone, prefixes, lengths: see ``EncoderSpec``.

    The ids default to bert-base-uncased with Stanford's markers; ``resolved`` takes
    them from a tokenizer.

    Attributes:
        dim: D, features of a token's vector.
        wrap: the special tokens around a text, the marker's place among them; "" takes
            the backbone's usual ones.
        query_length: what every query is filled up to.
        query_marker, doc_marker: ids of [Q] and [D]; None is a model without markers.
        marker_position: position of the markers.
        mask_id: what queries are filled up with.
        expand: whether queries are filled up at all.
        attend_to_expansion: whether attention sees the filled-up positions.
        skiplist: ids of document tokens that are left out of the interaction.
    """

    kind: ClassVar[str] = "colbert"
    vectors: ClassVar[VectorForm] = VectorForm.PER_TOKEN

    query_length: int = 32
    doc_length: int = 180
    dim: int = 128
    wrap: str = ""
    query_marker: int | None = 1
    doc_marker: int | None = 2
    marker_position: int = 1
    mask_id: int = 103
    expand: bool = True
    attend_to_expansion: bool = False
    skiplist: tuple[int, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.wrap:
            bert = isinstance(self.backbone, BertSizes)
            object.__setattr__(self, "wrap", BERT_WRAP if bert else T5_WRAP)
        if self.skiplist is not None:
            object.__setattr__(self, "skiplist", tuple(self.skiplist))
        if self.query_length <= self.marker_position + 2:
            raise UserError(
                f"a query_length of {self.query_length} leaves no room for text",
                "set it to 32 or so",
            )

    def resolved(self, tokenizer: Any) -> ColbertSpec:
        """This spec with the ids of a tokenizer's markers, mask and punctuation.

        Markers that are pieces of the vocabulary as "[Q] " or "[Q]" are taken, else
        Stanford's [unused0] and [unused1], else none. T5's kind has <extra_id_*>.
        """
        spec = super().resolved(tokenizer)
        if tokenizer.mask_id is None:
            ids = [tokenizer.token_id(f"<extra_id_{i}>") for i in range(3)]
            changes = {"wrap": T5_WRAP, "marker_position": 0, "mask_id": ids[0]}
            changes |= {"query_marker": ids[1], "doc_marker": ids[2]}
        else:
            changes = {"wrap": BERT_WRAP, "marker_position": 1}
            changes["mask_id"] = tokenizer.mask_id
            changes["query_marker"] = _marker(tokenizer, "Q", "[unused0]")
            changes["doc_marker"] = _marker(tokenizer, "D", "[unused1]")
            if None in (changes["query_marker"], changes["doc_marker"]):
                changes |= dict.fromkeys(("query_marker", "doc_marker"))
                changes["wrap"] = UNMARKED_WRAP
        if self.skiplist is None:
            changes["skiplist"] = punctuation_ids(tokenizer)
        return dataclasses.replace(spec, **changes)

    def side_text(self, side: str) -> str:
        """The text of the template of "query" or "doc"."""
        prefix = (self.query_prefix if side == "query" else self.doc_prefix).strip()
        return self.wrap.replace("{}", f"{prefix} {{text}}" if prefix else "{text}")

    def build(self, rngs: nnx.Rngs) -> Colbert:
        return Colbert(self, rngs=rngs)


def _marker(tokenizer: Any, letter: str, otherwise: str) -> int | None:
    for text in (f"[{letter}] ", f"[{letter}]", otherwise):
        found = tokenizer.find(text)
        if found is not None:
            return found
    return None


def punctuation_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of the ASCII punctuation marks that are one token each."""
    found = tokenizer.encode_batch(list(string.punctuation))
    return tuple(sorted({ids[0] for ids in found if len(ids) == 1}))


class Colbert(nnx.Module):
    """Tokens to unit vectors; scores by MaxSim."""

    def __init__(self, spec: ColbertSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        self.encoder = build_encoder(spec.backbone, rngs)
        self.projection = nnx.Linear(
            spec.backbone.d_model,
            spec.dim,
            use_bias=False,
            kernel_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )

    def encode_queries(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "M Lq D"], Bool[Array, "M Lq"]]:
        """Vectors of all ``query_length`` positions, and which of them count.

        Positions beyond ``query_length`` are cut off: the template leaves none.
        """
        spec = self.spec
        pad = pad_id(spec.backbone)
        missing = spec.query_length - tokens.shape[1]
        tokens = jnp.pad(
            tokens[:, : spec.query_length],
            ((0, 0), (0, max(0, missing))),
            constant_values=pad,
        )
        real = token_mask(tokens, pad)
        if spec.expand:
            tokens = jnp.where(real, tokens, spec.mask_id)
            counts = jnp.ones_like(real)
        else:
            counts = real
        seen = counts if spec.attend_to_expansion else real
        return self._vectors(tokens, seen, counts, spec.query_marker, rngs), counts

    def encode_docs(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "M L D"], Bool[Array, "M L"]]:
        """Vectors of all positions, and which of them count."""
        spec = self.spec
        real = token_mask(tokens, pad_id(spec.backbone))
        counts = real
        if spec.skiplist:
            skipped = jnp.isin(tokens, jnp.asarray(spec.skiplist, tokens.dtype))
            counts = counts & ~skipped
        return self._vectors(tokens, real, counts, spec.doc_marker, rngs), counts

    def _vectors(self, tokens, seen, counts, marker, rngs):
        if marker is not None:
            at = self.spec.marker_position
            placed = jnp.where(seen[:, at], marker, tokens[:, at])
            tokens = tokens.at[:, at].set(placed)
        hidden = self.encoder(tokens, mask=seen, rngs=rngs)
        vectors = normalise(self.projection(hidden.astype(jnp.float32)))
        return jnp.where(counts[..., None], vectors, 0.0)

    def represent(
        self, batch: DualBatch, *, rngs: nnx.Rngs | None = None
    ) -> dict[str, Array]:
        """``q`` [B, Lq, D], ``d`` [B, N, Ld, D] and their ``q_mask``, ``d_mask``."""
        b, n, length = batch.doc_tokens.shape
        q, q_mask = self.encode_queries(batch.query_tokens, rngs=rngs)
        d, d_mask = self.encode_docs(batch.doc_tokens.reshape(b * n, length), rngs=rngs)
        return {
            "q": q,
            "q_mask": q_mask,
            "d": d.reshape(b, n, *d.shape[1:]),
            "d_mask": d_mask.reshape(b, n, length),
        }

    def scores(self, rep: dict[str, Array], batch: Any = None) -> Float[Array, "B N"]:
        """MaxSim of each query and its own documents."""
        return maxsim_lists(rep["q"], rep["d"], rep["d_mask"], rep["q_mask"])

    def cross_scores(
        self, rep: dict[str, Array], batch: Any = None
    ) -> Float[Array, "B B N"]:
        """MaxSim of query i and document n of query j, in tiles of documents."""
        b, n, length, width = rep["d"].shape
        scores = maxsim_cross(
            rep["q"],
            rep["d"].reshape(b * n, length, width),
            rep["d_mask"].reshape(b * n, length),
            rep["q_mask"],
        )
        return scores.reshape(b, b, n)

    def __call__(
        self, batch: DualBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        return self.scores(self.represent(batch, rngs=rngs), batch)
