"""Rankings by smaller vectors of the same model: what their bytes cost in quality.

A form is a number of dimensions (of a Matryoshka student nearly free), "int8" (a scale
a vector), "binary" (signs of documents and queries), or "rescored": the first
``OVERSAMPLE`` times as many by signs, put in order by the query's floats and the
documents' int8 (Yamada et al. 2021; Shakir et al. 2024). Documents are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.inference.forward import encode_all
from distill_jax.io.errors import UserError, near
from distill_jax.models.pretrained import Pretrained
from distill_jax.ops.vector_form import VectorForm
from distill_jax.retrieval.columns import QuantisedVectors, quantise
from distill_jax.runs.run import Run
from distill_jax.workspace.context import Workspace
from distill_jax.workspace.ranking import corpus_vectors

FORMS = ("int8", "binary", "rescored")
OVERSAMPLE = 4


def name_of(form: str | int) -> str:
    """A form for people, as a row's name ends."""
    return f"{form} dimensions" if isinstance(form, int) else str(form)


def size_of(form: str | int | None, width: int) -> int:
    """Bytes of a document's vector in a form; None is float32 of all dimensions."""
    if form is None or isinstance(form, int):
        return 4 * (form or width)
    signs, codes = -(-width // 8), width + 4
    return {"int8": codes, "binary": signs, "rescored": signs + codes}[form]


def bytes_of(form: str | int, width: int) -> str:
    """What a document's vector takes in a form, beside float32 of all dimensions."""
    size = f"{size_of(form, width):,}"
    if form == "rescored":
        signs, codes = (size_of(part, width) for part in ("binary", "int8"))
        size = f"{signs:,} searched and {codes:,} read for the first"
    return f"{name_of(form)}: {size} bytes a document instead of {4 * width:,}"


def check(model: Pretrained, forms: Sequence[str | int]) -> None:
    """Refuses forms that this model has not.

    Raises:
        UserError: no dual encoder, an unknown name, or dimensions that are not there.
    """
    if forms and model.spec.vectors is not VectorForm.ONE:
        raise UserError(
            f"a {model.spec.kind} has no vectors of {', '.join(map(name_of, forms))}",
            "only a dual encoder has; set --gin.COMPACT=()",
        )
    for form in forms:
        if isinstance(form, int) and not 0 < form < model.spec.width:
            raise UserError(
                f"vectors of {form} dimensions, of {model.spec.width}",
                "give numbers from 1 up to the vectors' width, without it",
            )
        if isinstance(form, str) and form not in FORMS:
            raise UserError(
                f"no form of vectors {form!r}{near(form, FORMS)}",
                f"a number of dimensions, or one of {', '.join(FORMS)}",
            )


def search(
    model: Pretrained,
    queries: Queries,
    workspace: Workspace,
    forms: Sequence[str | int],
    *,
    depth: int,
    directory: Path,
) -> dict[str, Run]:
    """The model's ranking of the queries by each form of its vectors, by its name.

    Args:
        directory: where vectors of the corpus are kept, keyed by the model's digest.

    Raises:
        UserError: see ``check``.
    """
    check(model, forms)
    if not forms:
        return {}
    rows = np.arange(len(queries))
    features = workspace.query_features(model, queries)
    encoded = encode_all(model, "query", features, rows, mesh=workspace.mesh)
    docs = corpus_vectors(model, workspace, directory)
    found = {}
    for form in forms:
        run = searcher(model, docs, form, depth, workspace)(encoded)
        found[name_of(form)] = Run(
            tuple(queries.ids), run.rows, run.scores, workspace.collection.ids
        )
    return found


def searcher(
    model: Pretrained,
    docs: Any,
    form: str | int | None,
    depth: int,
    workspace: Workspace,
) -> Callable[[np.ndarray], Run]:
    """From vectors of queries, float[Q, D], to the first documents by a form.

    Args:
        docs: float[M, D] vectors of the collection; the index is built once.
        form: None is float32 of all dimensions.
    """
    from distill_jax.retrieval import Exact

    unit = model.spec.normalise or model.spec.similarity == "cosine"

    def index(docs: Any, similarity: str = "dot") -> Exact:
        ids = workspace.collection.ids
        return Exact.build(
            docs, doc_ids=ids, similarity=similarity, mesh=workspace.mesh
        )

    if form is None or isinstance(form, int):
        similarity = "cosine" if unit else "dot"
        exact = index(np.asarray(docs[:, :form]), similarity)
        return lambda queries: exact.search(queries[:, :form], depth)
    codes = QuantisedVectors(*quantise(np.asarray(docs)))
    if form == "int8":
        exact = index(codes)
        return lambda queries: exact.search(queries, depth)
    exact = index(QuantisedVectors(_signs(docs), np.ones(len(docs), np.float32)))

    def by_signs(queries: np.ndarray, k: int) -> Run:
        return exact.search(_signs(queries).astype(np.float32), k)

    if form == "binary":
        return lambda queries: by_signs(queries, depth)

    def rescored(queries: np.ndarray) -> Run:
        some = by_signs(queries, OVERSAMPLE * depth)
        places = np.where(some.where, some.rows, 0)
        scores = np.stack([codes[at] @ query for at, query in zip(places, queries)])
        scores = np.where(some.where, scores, -np.inf).astype(np.float32)
        return Run(some.query_ids, some.rows, scores, some.doc_ids).top(depth)

    return rescored


def _signs(vectors: Any) -> np.ndarray:
    """int8[N, D]: 1 where a number is above 0, else -1: their product is the width less
    twice the number of signs that differ."""
    return np.where(np.asarray(vectors) > 0, 1, -1).astype(np.int8)
