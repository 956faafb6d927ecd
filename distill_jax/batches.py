"""The pytrees that cross from host to device.

Letters: ``B`` queries in a batch, ``N`` candidates of a query, ``L`` tokens,
``P`` pairs of a query. Everything that pads a list is marked by a boolean
``where``; optional parts are ``None`` when a recipe does not use them, so that one
train step serves every student and every mixture of losses.
"""

from __future__ import annotations

import dataclasses
from typing import Any, dataclass_transform

import jax
from jaxtyping import Array, Bool, Float, Int


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _pytree(cls):
    """Freezes a dataclass and lets jax see all of its fields as children."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])


@_pytree
class Targets:
    """The inputs of the losses for one batch, the same for every kind of student.

    Attributes:
        labels: teacher scores (higher is better) or grades. Anything where padded.
        where: True for the candidates that exist.
        doc_rows: position of each candidate in its collection, -1 pads. In-batch
            losses mask other queries' candidates by it.
        labelled: True for queries whose first candidate is a judged positive. The
            contrastive part of a mixture counts only these; None counts all.
        first, second: candidate positions of the pairs a pairwise teacher judged.
        probability: P(first over second) of each pair.
        pair_where: True for the pairs that exist.
        query_rows: position of each query in its ``Queries``, -1 pads. In-batch losses
            tell by it which lists are one query's; messages name it.
    """

    labels: Float[Array, "B N"]
    where: Bool[Array, "B N"]
    doc_rows: Int[Array, "B N"] | None = None
    labelled: Bool[Array, "B"] | None = None
    first: Int[Array, "B P"] | None = None
    second: Int[Array, "B P"] | None = None
    probability: Float[Array, "B P"] | None = None
    pair_where: Bool[Array, "B P"] | None = None
    query_rows: Int[Array, "B"] | None = None


@_pytree
class PairBatch:
    """Query and document joined in one sequence: what a reranker reads."""

    tokens: Int[Array, "B N L"]
    targets: Targets


@_pytree
class DuoBatch:
    """A query and two documents in one sequence: what a pairwise reranker reads.

    ``targets.labels[b, p]`` is P(first document over second) in [0, 1]; the list axis
    N of ``targets`` is the axis of pairs here.
    """

    tokens: Int[Array, "B N L"]
    targets: Targets


@_pytree
class DualBatch:
    """Query and documents apart: what dual encoders, ColBERT and SPLADE read."""

    query_tokens: Int[Array, "B Lq"]
    doc_tokens: Int[Array, "B N Ld"]
    targets: Targets


@_pytree
class VectorBatch:
    """Queries as tokens and documents as vectors: what a query tower alone reads.

    ``doc_vectors`` are constants of the training, gathered by ``targets.doc_rows``
    from a table that stays on the device; anything where a list is padded.
    """

    query_tokens: Int[Array, "B Lq"]
    doc_vectors: Float[Array, "B N D"]
    targets: Targets


Batch = PairBatch | DuoBatch | DualBatch | VectorBatch


def batch_size(batch: Any) -> int:
    """The number of queries B of a batch."""
    return batch.targets.labels.shape[0]
