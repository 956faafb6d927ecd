"""Learned sparse retrieval (SPLADE): sparse docs and queries, scored by dot product."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.retrieval import folder
from distill_jax.retrieval.postings import Postings
from distill_jax.retrieval.ties import tie_ranks
from distill_jax.runs.run import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Sparse:
    """An inverted index over sparse vectors: ``Sparse.build(csr).search(queries, k)``.

    Attributes:
        postings: one list a feature.
        doc_ids, ranks: as in ``Exact``.
        source: digest of the model and texts of the vectors, or "".
    """

    postings: Postings
    doc_ids: Sequence[str]
    ranks: np.ndarray
    source: str = ""

    @classmethod
    def build(
        cls, vectors: Any, doc_ids: Sequence[str] | None = None, *, source: str = ""
    ) -> Sparse:
        """Indexes the rows of a sparse (or dense) matrix [N, V].

        Raises:
            UserError: no docs, negative or non-finite weights, ids that do not fit.
        """
        by_doc = _rows(vectors, "doc", doc_ids)
        if not by_doc.shape[0]:
            raise UserError("sparse retrieval over no docs", "encode the corpus first")
        if doc_ids is None:
            doc_ids = [str(row) for row in range(by_doc.shape[0])]
        if len(doc_ids) != by_doc.shape[0]:
            raise UserError(
                f"{by_doc.shape[0]} doc vectors but {len(doc_ids)} doc ids",
                "the vectors are of another corpus; encode this one",
            )
        by_term = by_doc.tocsc()
        by_term.sort_indices()
        postings = Postings(
            by_term.indptr.astype(np.int64),
            by_term.indices.astype(np.int32, copy=False),
            by_term.data,
            len(doc_ids),
        )
        return cls(postings, doc_ids, tie_ranks(doc_ids), source)

    def search(
        self,
        queries: Any,
        k: int,
        query_ids: Sequence[str] | None = None,
        *,
        threads: int | None = None,
    ) -> Run:
        """The k docs of greatest dot product of each row of a matrix [Q, V].

        Docs that share no feature with a query are not found: rows of -1.

        Raises:
            UserError: another V than the docs', or see ``build``.
        """
        rows = _rows(queries, "query", query_ids)
        if rows.shape[1] != len(self.postings.indptr) - 1:
            raise UserError(
                f"queries of {rows.shape[1]} features, the index has "
                f"{len(self.postings.indptr) - 1}",
                "encode queries and docs with the same model",
            )
        if query_ids is None:
            query_ids = [str(row) for row in range(rows.shape[0])]
        found, scores = self.postings.search(
            rows.indptr, rows.indices, rows.data, k, self.ranks, threads
        )
        return Run(tuple(query_ids), found, scores, self.doc_ids)

    def save(self, directory: str | Path) -> None:
        """Writes the index as a folder."""
        arrays = {
            "indptr": self.postings.indptr,
            "docs": self.postings.docs,
            "weights": self.postings.weights,
            "ranks": self.ranks,
            **folder.pack_strings("ids", self.doc_ids),
        }
        folder.write(directory, "sparse", arrays, {"source": self.source})

    @classmethod
    def load(cls, directory: str | Path, source: str | None = None) -> Sparse:
        """Reads a saved index; with ``source`` only one that carries the same."""
        with folder.described(directory):
            arrays, meta = folder.read(directory, "sparse")
            folder.check_source(directory, meta, source)
            doc_ids = folder.unpack_strings("ids", arrays)
            ranks = np.array(arrays["ranks"])
            indptr = arrays["indptr"]
            postings = Postings(indptr, arrays["docs"], arrays["weights"], len(doc_ids))
            return cls(
                postings.checked(len(indptr) - 1, ranks), doc_ids, ranks, meta["source"]
            )


def _rows(vectors: Any, what: str, ids: Sequence[str] | None) -> Any:
    """A float32 CSR matrix without explicit zeros, checked."""
    from scipy.sparse import csr_matrix

    rows = csr_matrix(vectors, dtype=np.float32)
    wrong = ~(np.isfinite(rows.data) & (rows.data >= 0))
    if wrong.any():
        row = int(np.searchsorted(rows.indptr, np.argmax(wrong), "right")) - 1
        raise UserError(
            f"the sparse vector of {what} {ids[row] if ids is not None else row!r} "
            "has a weight that is negative or not finite",
            "look at the model that encoded it; nothing was searched",
        )
    if not rows.has_canonical_format or (rows.data == 0).any():
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows
