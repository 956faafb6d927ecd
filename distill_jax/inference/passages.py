"""Documents over an encoder's length: the vectors of their passages, the best counts.

The score of a document is the greatest of its passages' (MaxP; Dai and Callan 2019,
arXiv 1905.09217; for learned sparse retrieval Score-max of Nguyen et al. 2023, arXiv
2305.18494). A passage is one of the document's first ``spec.passages`` windows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from distill_jax.inference.vectors import form_of
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.text.passages import parted


@dataclasses.dataclass(frozen=True, eq=False)
class Passages:
    """P passages of M documents.

    Attributes:
        features: of the documents' template, with a store of passages.
        rows: int[P], rows of ``features``, in the order of the documents.
        first: int64[M + 1]; document i has passages ``first[i]`` to ``first[i + 1]``.
    """

    features: Any
    rows: np.ndarray
    first: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """int64[P]: which of the M documents each passage is of."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))


def passages_of(spec: Any, features: Any, rows: np.ndarray) -> Passages:
    """The passages of documents; each has one where ``spec.passages`` is 1.

    Args:
        spec: of an encoder.
        features: ``text.features.Features`` of its document template.
        rows: int[M], rows of the features.
    """
    rows = np.asarray(rows)
    if spec.passages == 1 or not len(rows):
        return Passages(features, rows, np.arange(len(rows) + 1))
    made, taken, first = parted(features, spec.passages, {"text": rows}, "text")
    (store,) = made.stores
    key = digest("passages", store.digest, spec.passages)
    made.replace_store(0, dataclasses.replace(store, digest=key))
    return Passages(made, taken["text"], np.append(first, len(taken["text"])))


def pair_scores(
    spec: Any,
    queries: Any,
    passages: Any,
    first: np.ndarray,
    query_rows: np.ndarray,
    doc_rows: np.ndarray,
) -> np.ndarray:
    """float32[P], the scores of pairs of a query and a document.

    Args:
        queries, passages: vectors, as ``encode_all`` gives them.
        first: int64[M + 1], where each document's passages begin.
        query_rows, doc_rows: int[P].
    """
    counts = np.diff(first)[doc_rows]
    begin = np.cumsum(counts) - counts
    at = np.arange(counts.sum()) + np.repeat(first[:-1][doc_rows] - begin, counts)
    form = form_of(spec)
    scores = form.pair_scores(queries, passages, np.repeat(query_rows, counts), at)
    return np.maximum.reduceat(scores, begin) if len(begin) else scores


def check_one(spec: Any, what: str) -> None:
    """Refuses several passages where a document must have one vector.

    Raises:
        UserError: ``spec.passages`` is above 1.
    """
    if spec.passages > 1:
        raise UserError(
            f"{what} takes one vector of a document, and passages={spec.passages}",
            "leave passages (--gin.PASSAGES) out; a document is cut at its length then",
        )
