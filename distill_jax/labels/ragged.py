"""Ragged lists of doc ids and numbers to padded rectangles of rows and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError


def rectangle(
    values: Any, lengths: Sequence[int] | np.ndarray, pad: float, dtype: Any
) -> np.ndarray:
    """Flat values of Q lists of these lengths to [Q, N]; N is the longest, 1 at least.

    Raises:
      ValueError: there are more or fewer values than the lengths say.
    """
    lengths = np.asarray(lengths, np.int64)
    width = max(int(lengths.max(initial=0)), 1)
    out = np.full((len(lengths), width), pad, dtype)
    out[np.arange(width) < lengths[:, None]] = values
    return out


def rows_of(
    doc_ids: Sequence[str], collection: Any = None, unknown: str = "refuse"
) -> tuple[np.ndarray, Sequence[str]]:
    """Rows int32[M] of M doc ids, and what they index; unknown ids are -1 if dropped.

    Every different id is looked up once, so millions of ids cost seconds.
    """
    import pyarrow as pa

    if unknown not in ("refuse", "drop"):
        raise UserError(f'unknown={unknown!r}: it is "refuse" or "drop"')
    if not len(doc_ids):
        return np.zeros(0, np.int32), () if collection is None else collection.ids
    column = pa.array(doc_ids, pa.string()) if isinstance(doc_ids, list) else doc_ids
    encoded = column.dictionary_encode()  # type: ignore[attr-defined]
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    met = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    if collection is None:
        return codes.astype(np.int32), tuple(met)
    rows = np.asarray(collection.rows(met), np.int32)
    lost = np.flatnonzero(rows < 0)
    if lost.size and unknown == "refuse":
        raise UserError(
            f"{lost.size} of {len(met)} labelled docs are not in the collection"
            f" {collection.name!r}, the first is {met[lost[0]]!r}",
            "give the collection that the candidates came from, or read with"
            ' unknown="drop"',
        )
    return rows[codes], collection.ids


def translate(
    rows: np.ndarray, doc_ids: Sequence[str], collection: Any, unknown: str
) -> tuple[np.ndarray, Sequence[str]]:
    """Rows of ``doc_ids`` to rows of the collection; looks up what is used only."""
    used = np.unique(rows[rows >= 0])
    table = np.full(len(doc_ids) + 1, -1, np.int32)  # the last one is for -1
    table[used], ids = rows_of([doc_ids[int(i)] for i in used], collection, unknown)
    return table[rows], ids


def first_twice(ids: Iterable[str]) -> str:
    """The first id that has come before."""
    seen: set[str] = set()
    return next(i for i in ids if i in seen or seen.add(i))
