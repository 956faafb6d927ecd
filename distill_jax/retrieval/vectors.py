"""What the dense retrievers ask of vectors, and the errors when they do not get it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from distill_jax.io.errors import UserError

SIMILARITIES = ("dot", "cosine")

# Rows are read about this many bytes at a time: large enough for a disk, small enough
# to come and go beside an index.
_BLOCK_BYTES = 64 << 20


class RowNumbers(Sequence[str]):
    """The ids "0", "1", ... of rows without any: a million of them take no memory."""

    def __init__(self, count: int):
        self._rows = range(count)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row):
        found = self._rows[row]
        return list(map(str, found)) if isinstance(row, slice) else str(found)


def blocks(vectors: Any, block_bytes: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Slices that cover all rows, each about ``block_bytes`` of float32."""
    rows, width = vectors.shape
    step = max(1, block_bytes // (4 * max(width, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def as_float32(values: Any) -> np.ndarray:
    """Any slice of vectors as a float32 array."""
    return np.asarray(values).astype(np.float32, copy=False)


def check_docs(
    vectors: Any, doc_ids: Sequence[str] | None, similarity: str, finite: bool = True
) -> Sequence[str]:
    """Checks the vectors of a corpus and returns its ids ("0", "1", ... for None).

    Raises:
        UserError: not a matrix, no rows, ids that do not fit or occur twice, a
            similarity that does not exist, a nan or an infinity (with its doc).
    """
    shape = getattr(vectors, "shape", None)
    if shape is None or len(shape) != 2 or 0 in shape:
        raise UserError(
            f"doc vectors must be a matrix [N, D] with N, D > 0, not {shape}",
            "encode the corpus again; an empty corpus cannot be searched",
        )
    if similarity not in SIMILARITIES:
        raise UserError(
            f"unknown similarity {similarity!r}", f"choose one of {SIMILARITIES}"
        )
    if doc_ids is None:
        doc_ids = RowNumbers(shape[0])
    if len(doc_ids) != shape[0]:
        raise UserError(
            f"{shape[0]} doc vectors but {len(doc_ids)} doc ids",
            "the vectors are of another corpus; encode this one",
        )
    if finite:
        for block in blocks(vectors):
            _check_finite(vectors[block], "doc", doc_ids, block.start)
    return doc_ids


def check_queries(
    vectors: Any, width: int, query_ids: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Query vectors as float32 [Q, D], and their ids ("0", "1", ... for None).

    Raises:
        UserError: another dimension than the docs', ids that do not fit, a nan or an
            infinity (with its query).
    """
    vectors = as_float32(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise UserError(
            f"query vectors of shape {list(vectors.shape)}, the index has dimension "
            f"{width}",
            "encode queries and docs with the same model",
        )
    if query_ids is None:
        query_ids = [str(row) for row in range(len(vectors))]
    if len(query_ids) != len(vectors):
        raise UserError(f"{len(vectors)} query vectors but {len(query_ids)} query ids")
    _check_finite(vectors, "query", query_ids, 0)
    return vectors, tuple(query_ids)


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Unit length in float32; a zero vector stays zero."""
    vectors = as_float32(vectors)
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return vectors / np.maximum(norms, 1e-12)[:, None].astype(np.float32)


def _check_finite(values: Any, what: str, ids: Sequence[str], start: int) -> None:
    values = as_float32(values)
    # One pass without a temporary: a sum of products is finite only if all terms are.
    with np.errstate(all="ignore"):
        if np.isfinite(np.dot(values.reshape(-1), values.reshape(-1))):
            return
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        row = start + int(bad[0])
        raise UserError(
            f"the vector of {what} {ids[row]!r} (row {row}) holds nan or inf",
            "look at the model that encoded it; nothing was searched",
        )
