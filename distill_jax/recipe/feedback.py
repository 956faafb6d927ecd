"""A source that asks twice: what is found first moves the query that then searches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.ops.vector_form import VectorForm
from distill_jax.recipe import candidates
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.checkpoints import Model
from distill_jax.runs.run import Run
from distill_jax.workspace import ranking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feedback:
    """A dual encoder's search with pseudo-relevance feedback; it needs no training.

    Attributes:
        source: the order whose first documents are believed, e.g. ``candidates.Fused``.
        docs: how many of them move the query.
        alpha: how far, see ``retrieval.feedback.moved``.
        temperature: of the weights of these documents; divides the source's scores.
        checkpoint, doc_length: as of ``candidates.Search``.
    """

    source: Any
    docs: int = 3
    alpha: float = 1.0
    temperature: float = 1.0
    depth: int = 100
    checkpoint: Model | None = None
    doc_length: int | None = None

    def __call__(self, context: Context) -> Run:
        from distill_jax.inference.forward import encode_all
        from distill_jax.retrieval import Exact, feedback

        workspace = context.workspace
        model = candidates.model_of(self, context, doc_length=self.doc_length)
        if model.spec.vectors is not VectorForm.ONE:
            raise UserError(
                f"feedback moves a query's vector, and a {model.spec.kind} has none",
                "name a dual encoder: feedback.Feedback.checkpoint = 'PATH'",
            )
        first = self.source(context).on(workspace.collection).top(self.docs)
        vectors = ranking.corpus_vectors(
            model, workspace, workspace.directory / "vectors"
        )
        rows = context.queries.rows(list(first.query_ids))
        features = workspace.query_features(model, context.queries)
        queries = encode_all(model, "query", features, rows, mesh=workspace.mesh)
        docs = np.asarray(vectors[np.maximum(first.rows, 0).ravel()], np.float32)
        docs = docs.reshape(*first.rows.shape, -1)
        if not model.spec.normalise:
            queries, docs = _unit(queries), _unit(docs)
        moved = feedback.moved(
            queries,
            docs,
            first.scores,
            first.where,
            alpha=self.alpha,
            temperature=self.temperature,
        )
        index = Exact.build(
            vectors,
            doc_ids=workspace.collection.ids,
            similarity=model.spec.similarity,
            mesh=workspace.mesh,
        )
        return index.search(moved, self.depth, query_ids=first.query_ids)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
