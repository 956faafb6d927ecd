"""How vectors of each form are kept in columns on disk, and searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distill_jax.ops.vector_form import VectorForm
from distill_jax.retrieval.columns import QuantisedVectors, quantise
from distill_jax.retrieval.exact import Exact
from distill_jax.retrieval.late import LateInteraction
from distill_jax.retrieval.scann import Scann
from distill_jax.retrieval.sparse import Sparse
from distill_jax.retrieval.token_vectors import TokenVectors

CODE_BITS = 2
"""PLAID's codes: 36 bytes a token of 128 dimensions instead of 256 in float16."""


class StoredForm(Protocol):
    """Columns of N documents, and an index of them.

    Attributes:
        dtype: of the vectors, if none is given.
        shard: documents that an accelerator encodes between two points of return.
        indexes: the indexes that can be named for them.
        scann_on_accelerators: whether many documents call for ScaNN there too.
    """

    @property
    def dtype(self) -> str: ...
    @property
    def shard(self) -> int: ...
    @property
    def indexes(self) -> tuple[str, ...]: ...
    @property
    def scann_on_accelerators(self) -> bool: ...

    def dtypes(self, dtype: str) -> dict[str, str]:
        """The dtype of each column."""
        ...

    def columns(self, vectors: Any, dtype: str) -> dict[str, np.ndarray]:
        """The columns of ``inference.vectors``' joined vectors."""
        ...

    def vectors(
        self, columns: Mapping[str, np.ndarray], docs: int, width: int, dtype: str
    ) -> Any:
        """What is searched, from the columns of all documents.

        Raises:
            ValueError: they do not fit ``docs`` and ``width``.
        """
        ...

    def width(self, spec: Any) -> int:
        """Features of a vector."""
        ...

    def doc_bytes(self, spec: Any) -> int:
        """Bytes of a document on disk at most; 0 where no bound is of use."""
        ...

    def kept(self, index: str) -> Any:
        """The class of an index that is worth a file; None where columns serve."""
        ...

    def build(
        self,
        docs: Any,
        doc_ids: Sequence[str],
        spec: Any,
        *,
        index: str,
        mesh: Any,
        queries: Any,
        k: int,
    ) -> Any:
        """The retriever over ``vectors``.

        Args:
            index: one of ``indexes``, but "auto".
            mesh: devices of an exact search.
            queries, k: what will be searched, to tune an approximate index by.
        """
        ...


class _Dense:
    dtype, shard = "float32", 65536
    indexes = ("auto", "exact", "scann")
    scann_on_accelerators = False

    def dtypes(self, dtype: str) -> dict[str, str]:
        return {"vectors": dtype} | ({"scales": "float32"} if dtype == "int8" else {})

    def columns(self, vectors: Any, dtype: str) -> dict[str, np.ndarray]:
        if dtype != "int8":
            return {"vectors": vectors}
        codes, scales = quantise(vectors)
        return {"vectors": codes, "scales": scales}

    def vectors(self, columns, docs: int, width: int, dtype: str) -> Any:
        found = columns["vectors"].reshape(docs, width)
        return QuantisedVectors(found, columns["scales"]) if dtype == "int8" else found

    def width(self, spec: Any) -> int:
        return spec.width

    def doc_bytes(self, spec: Any) -> int:
        return 4 * spec.width

    def kept(self, index: str) -> Any:
        return Scann if index == "scann" else None

    def build(self, docs, doc_ids, spec, *, index, mesh, queries, k) -> Any:
        options: dict[str, Any] = {"doc_ids": doc_ids, "similarity": spec.similarity}
        if index == "scann":
            return Scann.build(docs, queries=queries, k=k, **options)
        return Exact.build(docs, mesh=mesh, **options)


class _PerToken:
    dtype, shard = "float16", 16384
    indexes = ("auto", "exact", "scann")
    scann_on_accelerators = True

    def dtypes(self, dtype: str) -> dict[str, str]:
        return {"vectors": dtype, "lengths": "int32"}

    def columns(self, vectors: Any, dtype: str) -> dict[str, np.ndarray]:
        lengths = np.array([len(text) for text in vectors])
        return {"vectors": np.concatenate(vectors), "lengths": lengths}

    def vectors(self, columns, docs: int, width: int, dtype: str) -> Any:
        offsets = np.concatenate([[0], np.cumsum(columns["lengths"])]).astype(np.int64)
        return TokenVectors(columns["vectors"].reshape(-1, width), offsets).checked(
            docs
        )

    def width(self, spec: Any) -> int:
        return spec.dim

    def doc_bytes(self, spec: Any) -> int:
        return 2 * spec.doc_length * spec.dim

    def kept(self, index: str) -> Any:
        del index
        return LateInteraction

    def build(self, docs, doc_ids, spec, *, index, mesh, queries, k) -> Any:
        codes = {"compression": CODE_BITS, "index": "scann"}
        options = codes if index == "scann" else {}
        return LateInteraction.build(docs, doc_ids=doc_ids, **options)


class _Sparse:
    dtype, shard = "float32", 65536
    indexes = ("auto", "exact")
    scann_on_accelerators = False

    def dtypes(self, dtype: str) -> dict[str, str]:
        return {"weights": "float32", "features": "int32", "lengths": "int32"}

    def columns(self, vectors: Any, dtype: str) -> dict[str, np.ndarray]:
        lengths = np.diff(vectors.indptr)
        return {
            "weights": vectors.data,
            "features": vectors.indices,
            "lengths": lengths,
        }

    def vectors(self, columns, docs: int, width: int, dtype: str) -> Any:
        from scipy.sparse import csr_matrix

        indptr = np.concatenate([[0], np.cumsum(columns["lengths"])])
        parts = (columns["weights"], columns["features"], indptr.astype(np.int64))
        return csr_matrix(parts, shape=(docs, width))

    def width(self, spec: Any) -> int:
        return spec.width

    def doc_bytes(self, spec: Any) -> int:
        del spec
        return 0

    def kept(self, index: str) -> Any:
        del index
        return None

    def build(self, docs, doc_ids, spec, *, index, mesh, queries, k) -> Any:
        return Sparse.build(docs, doc_ids=doc_ids)


FORMS: dict[VectorForm, StoredForm] = {
    VectorForm.ONE: _Dense(),
    VectorForm.PER_TOKEN: _PerToken(),
    VectorForm.SPARSE: _Sparse(),
}


def stored_form(spec: Any) -> StoredForm:
    """How the vectors of an encoder's spec are kept and searched."""
    return FORMS[spec.vectors]
