"""Training the query tower alone: documents keep their vectors, and so does an index.

A tied model becomes one of two towers. The document tower does not change, so what was
encoded before is what is searched after, byte for byte; only queries are encoded again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from distill_jax.inference.forward import encode_all
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.models.pretrained import Pretrained
from distill_jax.ops.vector_form import VectorForm
from distill_jax.recipe.candidates import Context
from distill_jax.runs.run import Run
from distill_jax.workspace import ranking


def query_tower(student: Pretrained) -> Pretrained:
    """The query tower of a dual encoder, as a tied model of its own.

    Raises:
        UserError: the student is not a dual encoder.
    """
    if student.spec.vectors is not VectorForm.ONE:
        raise UserError(
            f"a {student.spec.kind} has no query tower that can be trained alone",
            "use a dual encoder, or train it whole (TRAINED='both')",
        )
    name = "tower" if student.spec.tied else "query_tower"
    return student.replace(
        spec=dataclasses.replace(student.spec, tied=True),
        params={"tower": student.params[name]},
    )


def with_query_tower(student: Pretrained, params: dict) -> Pretrained:
    """The student with another query tower; its document tower is as it was.

    Args:
        params: of ``query_tower(student)``, trained.
    """
    name = "tower" if student.spec.tied else "doc_tower"
    return student.replace(
        spec=dataclasses.replace(student.spec, tied=False),
        params={"query_tower": params["tower"], "doc_tower": student.params[name]},
        fresh=(),
    )


def doc_vectors(student: Pretrained, context: Context) -> Any:
    """float[M, D] of the collection, kept in ``MODEL_DIR/vectors``."""
    workspace = context.workspace
    return ranking.corpus_vectors(student, workspace, workspace.directory / "vectors")


def vectors_digest(vectors: Any) -> str:
    """Digest of every byte of a table of vectors."""
    return digest(np.ascontiguousarray(vectors))


def exact(spec: Any, context: Context, vectors: Any) -> Any:
    """Exact search of the collection's vectors, on all devices."""
    from distill_jax.retrieval import Exact

    return Exact.build(
        vectors,
        doc_ids=context.workspace.collection.ids,
        similarity=spec.similarity,
        mesh=context.workspace.mesh,
    )


def searcher(
    tower: Pretrained, context: Context, queries: Any, vectors: Any, depth: int
) -> Callable[[dict], Run]:
    """From parameters of a query tower to its exact search of frozen vectors."""
    workspace = context.workspace
    index = exact(tower.spec, context, vectors)
    features = workspace.query_features(tower, queries)
    rows = np.arange(len(queries))

    def search(params: dict) -> Run:
        model = tower.replace(params=params)
        found = encode_all(model, "query", features, rows, mesh=workspace.mesh)
        return index.search(found, depth, query_ids=queries.ids)

    return search
