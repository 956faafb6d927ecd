"""A model ranks: rerankers reorder a first stage, encoders search the collection."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.inference.forward import encode_all, score_features
from distill_jax.inference.passages import Passages, check_one, pair_scores, passages_of
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import digest
from distill_jax.models.pretrained import Pretrained
from distill_jax.retrieval.passages import ByPassages, PassageIds
from distill_jax.retrieval.scann import Scann, Width
from distill_jax.retrieval.stored_forms import stored_form
from distill_jax.runs.run import Run
from distill_jax.runtime import processes
from distill_jax.runtime.placement import platform
from distill_jax.teaching.scorers import rows_of_queries
from distill_jax.workspace import indexes
from distill_jax.workspace.console import Counter, say
from distill_jax.workspace.context import Workspace

Index: TypeAlias = Literal["auto", "exact", "scann"]
INDEXES = ("auto", "exact", "scann")
SCANN_FROM = 1_000_000
"""Documents from which "auto" is ScaNN: an exact search of them takes a CPU seconds."""
DUO_DEPTH = 10
"""Documents of a list that a pairwise reranker compares, each with each."""


def rank(
    model: Pretrained,
    queries: Queries,
    workspace: Workspace,
    *,
    first_stage: Run | None,
    depth: int,
    directory: Path,
    index: str = "exact",
    duo_depth: int = DUO_DEPTH,
) -> Run:
    """The model's own ranking of the queries.

    Rerankers reorder the first ``depth`` of ``first_stage``; a duo reranker reorders
    the first ``duo_depth`` of them by votes. Encoders search everything.

    Args:
        directory: where vectors of the corpus are kept, keyed by the model's digest.
        index: "exact", "scann", or "auto" for ScaNN where there are many documents
            (``SCANN_FROM``) and no accelerator; of ColBERT, "scann" and many documents
            keep its vectors as codes of a few bits a dimension.
    """
    if model.spec.vectors is not None:
        return search(
            model, queries, workspace, depth=depth, directory=directory, index=index
        )
    if first_stage is None:
        raise UserError(
            f"a {model.spec.kind} reorders candidates, and there are none",
            "give a first stage (--gin.RUN, or BM25)",
        )
    candidates = first_stage.select(queries.ids).top(depth)
    return rerank(model, queries, candidates, workspace, duo_depth)


def rerank(
    model: Pretrained,
    queries: Queries,
    candidates: Run,
    workspace: Workspace,
    duo_depth: int = DUO_DEPTH,
) -> Run:
    """Reorders the candidates of a run by any reranker or encoder.

    Encoders score only the documents that the run names: cheap enough to be done
    during training.

    Raises:
        UserError: a query of the run that ``queries`` lacks.
    """
    candidates = candidates.on(workspace.collection)
    if model.spec.documents == 2:
        return _duo_rank(model, queries, candidates, workspace, duo_depth)
    where = candidates.where
    query_rows = rows_of_queries(queries, list(candidates.query_ids))
    pair_queries = np.repeat(query_rows[:, None], where.shape[1], axis=1)[where]
    pair_docs = candidates.rows[where]
    if model.spec.vectors is not None:
        values = _score_by_vectors(model, queries, pair_queries, pair_docs, workspace)
    else:
        with Counter("ranking", len(pair_docs), "pairs") as counter:
            values = score_features(
                model,
                workspace.pair_features(model, queries),
                mesh=workspace.mesh,
                progress=counter.more,
                query=pair_queries,
                document=pair_docs,
            )
    scores = np.full(where.shape, -np.inf, np.float32)
    scores[where] = values
    return Run(candidates.query_ids, candidates.rows, scores, candidates.doc_ids)


def _score_by_vectors(model, queries, pair_queries, pair_docs, workspace) -> np.ndarray:
    """Scores of (query, doc) pairs, each text encoded once."""
    used_queries, query_at = np.unique(pair_queries, return_inverse=True)
    used_docs, doc_at = np.unique(pair_docs, return_inverse=True)
    docs = passages_of(model.spec, workspace.doc_features(model), used_docs)
    of_queries, of_docs = [
        encode_all(model, side, features, rows, mesh=workspace.mesh)
        for side, features, rows in (
            ("query", workspace.query_features(model, queries), used_queries),
            ("doc", docs.features, docs.rows),
        )
    ]
    return pair_scores(model.spec, of_queries, of_docs, docs.first, query_at, doc_at)


def search(
    model: Pretrained,
    queries: Queries,
    workspace: Workspace,
    *,
    depth: int,
    directory: Path,
    index: str = "exact",
) -> Run:
    """The first ``depth`` of the whole collection for each query."""
    index = chosen_index(index, model, len(workspace.collection))
    query_rows = np.arange(len(queries))
    query_features = workspace.query_features(model, queries)
    encoded = encode_all(
        model, "query", query_features, query_rows, mesh=workspace.mesh
    )
    passages, most = doc_passages(model, workspace), model.spec.passages
    docs = functools.cache(
        lambda: corpus_vectors(model, workspace, directory, passages)
    )
    k = min(depth * most, len(passages.rows))
    doc_ids = workspace.collection.ids
    ids = doc_ids if most == 1 else PassageIds(doc_ids, passages.first)

    def build(vectors: Any) -> Any:
        return stored_form(model.spec).build(
            vectors,
            ids,
            model.spec,
            index=index,
            mesh=workspace.mesh,
            queries=encoded,
            k=k,
        )

    kind = stored_form(model.spec).kept(index)
    if kind is None:
        retriever = build(docs())
    else:
        key = digest(kind.__name__, index, vectors_key(model, workspace, passages))[:16]
        retriever = indexes.kept(
            workspace, key, load=kind.load, build=build, slot="vectors", read=docs
        )
        if isinstance(retriever, Scann) and retriever.report["k"] != k:
            retriever = _at_depth(retriever, docs(), encoded, k)
    _say_shortfall(getattr(retriever, "report", None))
    if most > 1:
        retriever = ByPassages(retriever, passages.owner, doc_ids, most)
    return retriever.search(encoded, depth, query_ids=queries.ids)


def chosen_index(index: str, model: Pretrained, documents: int) -> str:
    """The index that a search uses: "exact" or "scann".

    Raises:
        UserError: no such index, or one that this kind of model has not.
    """
    if index not in INDEXES:
        raise UserError(
            f"no index {index!r}{near(index, INDEXES)}", f"one of {', '.join(INDEXES)}"
        )
    stored = stored_form(model.spec)
    if index not in stored.indexes:
        raise UserError(
            f"a {model.spec.kind} is searched by an inverted index, which is exact",
            "set --gin.INDEX=auto",
        )
    if index != "auto":
        return index
    many = "scann" in stored.indexes and documents >= SCANN_FROM
    by_scann = platform() == "cpu" or stored.scann_on_accelerators
    return "scann" if many and by_scann else "exact"


def _at_depth(index: Scann, docs: Any, queries: Any, k: int) -> Scann:
    """The index as wide as its recall at another ``k`` calls for, in all processes.

    Widths are compared by time, so that the first process decides.
    """
    width = np.zeros(2, np.int32)
    if processes.is_first():
        wanted = index.report["wanted_recall"]
        index = index.tuned(docs, queries, recall=wanted, k=k)
        width[:] = index.default.leaves or 0, index.default.reorder or 0
    leaves, reorder = (int(n) or None for n in processes.agreed_array(width))
    return dataclasses.replace(index, default=Width(leaves=leaves, reorder=reorder))


def doc_passages(model: Pretrained, workspace: Workspace) -> Passages:
    """The passages of every document; one each, unless the spec says more."""
    rows = np.arange(len(workspace.collection))
    return passages_of(model.spec, workspace.doc_features(model), rows)


def vectors_key(model: Pretrained, workspace: Workspace, passages: Passages) -> str:
    """Digest of everything that ``corpus_vectors`` depends on."""
    from distill_jax.retrieval import embeddings

    dtype = stored_form(model.spec).dtype
    return embeddings.embeddings_key(
        model, passages.features, dtype, workspace.collection.digest
    )


def _say_shortfall(report: dict[str, Any] | None) -> None:
    if report and not report.get("met", True):
        say(
            f"note: ScaNN finds {report['recall']:.3f} of the {report['k']} nearest "
            f"documents, {report['wanted_recall']} were wanted; index = 'exact' finds "
            "all"
        )


def corpus_vectors(
    model: Pretrained,
    workspace: Workspace,
    directory: Path,
    passages: Passages | None = None,
) -> Any:
    """Vectors of every document: of a dual encoder memory-mapped and resumable.

    Args:
        passages: what is encoded; None is the documents, of one passage each.

    Raises:
        UserError: the documents have several passages, and none are given.
    """
    from distill_jax.retrieval import embeddings

    if passages is None:
        check_one(model.spec, "this stage")
        passages = doc_passages(model, workspace)
    what = "documents" if model.spec.passages == 1 else "passages"
    with Counter("encoding", len(passages.rows), what) as counter:
        return embeddings.embed_docs(
            model,
            passages.features,
            directory,
            rows=passages.rows,
            corpus_digest=workspace.collection.digest,
            mesh=workspace.mesh,
            progress=counter.more,
        )


def _duo_rank(model, queries, candidates: Run, workspace: Workspace, depth: int) -> Run:
    from distill_jax.teaching.pairs import rank_by_votes

    return rank_by_votes(
        model,
        workspace.pair_features(model, queries),
        queries,
        candidates,
        top_k=depth,
        mesh=workspace.mesh,
    )
