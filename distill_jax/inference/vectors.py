"""What an encoder makes of texts, on the host: one vector, one a token, or weights.

A form knows how a batch's values become vectors, how parts are joined, and how pairs
are scored; ``retrieval.stored_forms`` how they are kept and searched. A student names
its form in ``spec.vectors``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from distill_jax.ops.vector_form import VectorForm


class Form(Protocol):
    """Vectors of M texts: ``part`` is those of a batch, ``all`` those of all parts."""

    def collect(self, values: Any, where: np.ndarray) -> Any:
        """A batch's part: the model's values of the places ``where`` bool[M]."""
        ...

    def join(self, parts: Sequence[Any], order: np.ndarray) -> Any:
        """All vectors, text ``order[i]`` of the parts end to end at place i."""
        ...

    def empty(self, spec: Any) -> Any:
        """All vectors of no text."""
        ...

    def good(self, part: Any) -> bool:
        """Whether a model in order could have made this part."""
        ...

    def pair_scores(
        self, queries: Any, docs: Any, query_rows: np.ndarray, doc_rows: np.ndarray
    ) -> np.ndarray:
        """float32[P], the scores of pairs of rows of all vectors."""
        ...

    def similarity(self, queries: Any, docs: Any) -> np.ndarray:
        """float32[n, m], the scores of all queries with all documents."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Vectors of the tokens of M texts, end to end.

    Attributes:
        values: float32[T, D].
        lengths: int64[M], tokens of each text; they sum to T.
    """

    values: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def offsets(self) -> np.ndarray:
        """int64[M + 1]; text i is ``values[offsets[i]:offsets[i + 1]]``."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def split(self) -> list[np.ndarray]:
        """A list of M arrays float32[tokens, D]."""
        return np.split(self.values, self.offsets[1:-1]) if len(self) else []


class _Dense:
    """float32[M, D], in a part and in all."""

    def collect(self, values: Any, where: np.ndarray) -> Any:
        return values[where]

    def join(self, parts: Sequence[Any], order: np.ndarray) -> Any:
        return np.concatenate(parts)[order]

    def empty(self, spec: Any) -> Any:
        return np.zeros((0, spec.width), np.float32)

    def good(self, part: Any) -> bool:
        # Normalising turns a nan into zeros.
        return bool((np.isfinite(part).all(1) & (part != 0).any(1)).all())

    def pair_scores(self, queries, docs, query_rows, doc_rows) -> np.ndarray:
        return np.einsum("md,md->m", queries[query_rows], docs[doc_rows])

    def similarity(self, queries: Any, docs: Any) -> np.ndarray:
        return np.asarray(queries @ docs.T)


class _PerToken:
    """``Ragged`` in a part, a list of M arrays float32[tokens, D] in all; MaxSim."""

    def collect(self, values: Any, where: np.ndarray) -> Any:
        vectors, mask = values
        mask = mask[where]
        return Ragged(vectors[where][mask], mask.sum(1, dtype=np.int64))

    def join(self, parts: Sequence[Any], order: np.ndarray) -> Any:
        texts = [text for part in parts for text in part.split()]
        return [texts[i] for i in order]

    def empty(self, spec: Any) -> Any:
        del spec
        return []

    def good(self, part: Any) -> bool:
        return bool(np.isfinite(part.values).all())

    def pair_scores(self, queries, docs, query_rows, doc_rows) -> np.ndarray:
        scores = np.zeros(len(query_rows), np.float32)
        lengths = np.array([len(doc) for doc in docs])
        flat = np.concatenate(docs)
        starts = np.cumsum(lengths) - lengths
        for query in np.unique(query_rows):
            where = np.flatnonzero(query_rows == query)
            # One product with the tokens of all its docs, then a maximum per doc.
            counts = lengths[doc_rows[where]]
            begin = np.cumsum(counts) - counts
            shift = np.repeat(starts[doc_rows[where]] - begin, counts)
            similarity = queries[query] @ flat[np.arange(counts.sum()) + shift].T
            full = counts > 0
            best = np.maximum.reduceat(similarity, begin[full], axis=1)
            scores[where[full]] = best.sum(axis=0)
        return scores

    def similarity(self, queries: Any, docs: Any) -> np.ndarray:
        scores = [[(q @ d.T).max(1).sum() for d in docs] for q in queries]
        return np.asarray(scores, np.float32).reshape(len(queries), len(docs))


class _Sparse:
    """A scipy CSR matrix [M, V], in a part and in all."""

    def collect(self, values: Any, where: np.ndarray) -> Any:
        import scipy.sparse

        return scipy.sparse.csr_matrix(values[where])

    def join(self, parts: Sequence[Any], order: np.ndarray) -> Any:
        import scipy.sparse

        return scipy.sparse.csr_matrix(scipy.sparse.vstack(parts))[order]

    def empty(self, spec: Any) -> Any:
        import scipy.sparse

        return scipy.sparse.csr_matrix((0, spec.width), dtype=np.float32)

    def good(self, part: Any) -> bool:
        return bool(np.isfinite(part.data).all())

    def pair_scores(self, queries, docs, query_rows, doc_rows) -> np.ndarray:
        products = queries[query_rows].multiply(docs[doc_rows])
        return np.asarray(products.sum(axis=1), np.float32).reshape(-1)

    def similarity(self, queries: Any, docs: Any) -> np.ndarray:
        return np.asarray((queries @ docs.T).toarray())


_FORMS: dict[VectorForm, Form] = {
    VectorForm.ONE: _Dense(),
    VectorForm.PER_TOKEN: _PerToken(),
    VectorForm.SPARSE: _Sparse(),
}


def form_of(spec: Any) -> Form:
    """The form of an encoder's vectors."""
    return _FORMS[spec.vectors]
