"""An inverted index with impacts: what BM25 and learned sparse retrieval both search.

A posting holds the finished contribution of a term to a doc, so a score is a sparse
dot product and one compiled loop serves every model.
"""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.retrieval.ties import rows_of

# Queries that one thread takes at a time: few enough to balance, many enough to
# make the accumulator's allocation free.
_CHUNK = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Postings:
    """Postings of V terms over N docs, docs ascending within a term.

    Attributes:
        indptr: int64[V + 1], where each term's postings begin.
        docs: int32[P].
        weights: float32[P], positive.
        count: N.
    """

    indptr: np.ndarray
    docs: np.ndarray
    weights: np.ndarray
    count: int

    def checked(self, terms: int, ranks: np.ndarray) -> Postings:
        """Itself, after looking for positions that would read outside the arrays.

        The compiled search trusts docs to ascend within a term: it walks windows of
        docs, and a doc out of order would be before its window.

        Raises:
            UserError: the postings came from a damaged or hostile file.
        """
        postings = len(self.docs)
        inside = not postings or 0 <= self.docs.min() <= self.docs.max() < self.count
        if (
            not postings == len(self.weights) == int(self.indptr[-1])
            or len(self.indptr) != terms + 1
            or not np.array_equal(np.sort(ranks), np.arange(self.count))
            or self.indptr[0] != 0
            or np.any(np.diff(self.indptr) < 0)
            or not inside
            or not self._ascend()
        ):
            raise UserError("the index's postings are damaged", "build the index again")
        return self

    def _ascend(self) -> bool:
        """Whether each term's docs are in strictly ascending order."""
        rises = self.docs[1:] > self.docs[:-1]
        begins = np.asarray(self.indptr[1:-1])
        rises[begins[(begins > 0) & (begins < len(self.docs))] - 1] = True
        return bool(rises.all())

    def search(
        self,
        query_indptr: np.ndarray,
        query_terms: np.ndarray,
        query_weights: np.ndarray,
        k: int,
        ranks: np.ndarray,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best docs of each query that share a term with it.

        Args:
            query_indptr, query_terms, query_weights: sparse rows, weights positive.
            k: how many docs; the answer has min(k, N) columns.
            ranks: ``tie_ranks`` of the docs.
            threads: None takes what the machine has.

        Returns:
            rows int32[Q, K] padded with -1, and scores float32[Q, K], -inf there.
        """
        try:
            from distill_jax.retrieval import kernels
        except ImportError as error:
            raise UserError(
                "sparse search needs numba, which is not installed", "pip install numba"
            ) from error

        queries = len(query_indptr) - 1
        width = min(check_k(k), self.count)
        top_ranks = np.full((queries, width), -1, np.int32)
        top_scores = np.full((queries, width), -np.inf, np.float32)
        arguments = (
            np.asarray(self.indptr),
            np.asarray(self.docs),
            np.asarray(self.weights),
            np.asarray(ranks, np.int32),
            np.asarray(query_indptr, np.int64),
            np.asarray(query_terms, np.int32),
            np.asarray(query_weights, np.float32),
        )

        def chunk(first: int) -> None:
            last = min(first + _CHUNK, queries)
            kernels.search_postings(*arguments, first, last, top_ranks, top_scores)

        starts = range(0, queries, _CHUNK)
        if width and queries:
            chunk(0)  # compiles, if that was not done before, in one thread
            with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
                list(pool.map(chunk, starts[1:]))
        return rows_of(ranks, top_ranks), top_scores


def check_k(k: int) -> int:
    """k itself.

    Raises:
        UserError: k is less than one.
    """
    if k < 1:
        raise UserError(f"a search for k={k} docs", "ask for one or more")
    return int(k)
